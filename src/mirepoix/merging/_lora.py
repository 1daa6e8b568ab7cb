r"""LoRA adapters (PEFT's folders), merged exactly: on the weights they stand for, not on their factors.

An adapter changes the weight of a layer by :math:`\Delta_i = s_i B_i A_i`, with :math:`s_i = \alpha/r`, or
:math:`\alpha/\sqrt r` with rsLoRA. The soup of adapters is defined on effective weights,

.. math:: W_\lambda = W_0 + \sum_i \lambda_i s_i B_i A_i,

and that sum of products is one product of longer factors, :math:`[\lambda_i s_i B_i]\,[A_i]`: an adapter of rank
:math:`\sum_i r_i`, exact for any coefficients, signs and ranks, and known without the base. Averaging the factors
is another thing, since :math:`(\sum_i \lambda_i B_i)(\sum_i \lambda_i A_i)` has cross terms.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from mirepoix.checkpoints import write_json
from mirepoix.checkpoints._stream import WeightsWriter
from mirepoix.checkpoints._tensors import CODES, DTYPES
from mirepoix.merging._coefficients import check_coefficients, resolve
from mirepoix.merging._inputs import narrow, widen
from mirepoix.merging._lora_adapter import (
    CONFIG,
    FLOATS,
    PREFIX,
    WEIGHTS,
    LoraAdapter,
    LoraLayer,
    is_float,
    open_adapter,
    some,
    widest,
)
from mirepoix.merging._rule import Array, Coefficients
from mirepoix.types import InputError

__all__ = [
    "Adapters",
    "LoraLayerReport",
    "LoraReport",
    "Members",
    "Term",
    "average",
    "base_name",
    "check_same_kind",
    "check_sum",
    "common_integers",
    "is_frozen",
    "merge_adapters",
    "metadata",
    "open_members",
    "put",
]

Mode: TypeAlias = Literal["cat", "svd", "factor"]
Adapters: TypeAlias = (
    Sequence[LoraAdapter | str | os.PathLike[str]] | Mapping[str, LoraAdapter | str | os.PathLike[str]]
)


@dataclass(frozen=True, slots=True)
class LoraLayerReport:
    r"""What became of one layer.

    Attributes:
        module: Its name.
        coefficients: The number of each adapter.
        ranks: The rank of each adapter, 0 where one does not change this layer.
        rank: The rank of the result, None where it is dense.
        norm: The length of the exact sum, :math:`\|\sum_i \lambda_i \Delta_i\|_F`.
        error: How far the result is from it, before the factors are rounded to their dtype: 0 for ``"cat"``
            and for a dense result.
    """

    module: str
    coefficients: tuple[float, ...]
    ranks: tuple[int, ...]
    rank: int | None
    norm: float
    error: float

    @property
    def lost_energy(self) -> float:
        """The fraction of the squared length that is wrong: 0 is exact, and above 1 nothing would be better."""
        return (self.error / self.norm) ** 2 if self.norm else (math.inf if self.error else 0.0)


@dataclass(frozen=True, slots=True)
class LoraReport:
    """What a merge of adapters wrote.

    Attributes:
        path: The folder or file.
        mode: How the factors were merged, or ``"dense"``.
        layers: One report for each adapted layer.
        averaged: Names of tensors that are no factors and were averaged plainly.
        added: Names of tensors that the base did not have.
        dropped: Names of tensors of value heads, left out.
    """

    path: Path
    mode: str
    layers: tuple[LoraLayerReport, ...]
    averaged: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def lost_energy(self) -> float:
        """The fraction of the squared length of all layers together that is wrong."""
        norm = math.hypot(*(layer.norm for layer in self.layers))
        error = math.hypot(*(layer.error for layer in self.layers))
        return (error / norm) ** 2 if norm else (math.inf if error else 0.0)


def merge_adapters(
    adapters: Adapters,
    out: str | os.PathLike[str],
    coefficients: Coefficients | None = None,
    *,
    mode: Mode = "cat",
    rank: int | None = None,
    dtype: str | None = None,
    strict: bool = True,
    same_base: bool = True,
    overwrite: bool = False,
) -> LoraReport:
    r"""Merge adapters into one adapter that PEFT can load, without the base model.

    .. math:: \Delta = \sum_i \lambda_i s_i B_i A_i.

    ``"cat"`` is exact for any coefficients and ranks: the factors stand side by side, and the rank is the sum of
    the ranks. :math:`\lambda_i s_i` goes into :math:`B_i`, or into ``lora_alpha`` where it has the same size for
    all adapters of a layer (a uniform average of equals): then no factor is rounded. ``"svd"`` is the nearest
    adapter of a given rank, exact if the rank is not below the sum. ``"factor"`` averages :math:`A` and
    :math:`B` apart, as the text experiments of rewarded soups did, and is wrong by

    .. math:: s \sum_i \lambda_i (B_i - \bar B)(A_i - \bar A),

    which the report gives per layer; it shrinks a soup whose members disagree. Do not use it for anything but
    reproducing them. What was trained besides factors (biases, ``modules_to_save``) is averaged plainly, so its
    coefficients must sum to one. A member with coefficient 0 takes no part.

    Args:
        adapters: Opened adapters or their folders, in order or by name.
        out: The folder to write, whole or not at all. It must not exist.
        coefficients: One per adapter; each may be a function of the module's name, or pairs of a regular
            expression and a number. By default the uniform average, :math:`1/N`. They need not sum to one.
        mode: See above.
        rank: For ``"svd"``, the largest rank of a layer; by default the largest rank among the adapters.
        dtype: The dtype of the result, such as ``"float32"``; by default that of the adapters (the wider one).
        strict: Whether all adapters must change the same layers. If not, an adapter changes the layers it does
            not have by 0.
        same_base: Whether the settings must name the same base model. Pass False if you know that it is the
            same under two names.
        overwrite: Whether an adapter that is in ``out`` may be replaced, and its folder with it.

    Returns:
        What was written, and how far each layer is from the exact sum.

    Raises:
        InputError: For adapters that do not belong together, for DoRA, and for a result that is not finite;
            nothing is written then.

    References:
        Hu et al. (2022), LoRA; Ramé et al. (2023), rewarded soups; Kalajdzievski (2023), rsLoRA.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode: expected one of {', '.join(get_args(Mode))}, got {mode!r}.")
    if rank is not None and (mode != "svd" or type(rank) is not int or rank < 1):
        raise InputError(
            f"rank: expected a whole number from 1 with mode='svd', got {rank!r} with mode={mode!r}."
        )
    code = _code(dtype)
    with open_members(adapters, coefficients, strict=strict, same_base=same_base) as members:
        _check_mergeable(members, mode)
        others = _check_others(members)
        results = [_result(members, module, mode, rank, code) for module in members.modules]
        config = _config(members, results, mode, unchanged=dtype is None)
        tensors = {name: kind for result in results for name, kind in result.tensors.items()}
        for name in others:
            codes = [adapter.code(name) for adapter in members.adapters]
            kept = code if code is not None and is_float(codes[0]) else widest(codes)
            tensors[name] = kept, members.adapters[0].shape(name)
        reports = []
        with _new_folder(out, members, overwrite) as folder:
            with WeightsWriter(folder / WEIGHTS, tensors, metadata=metadata(members, mode)) as writer:
                for result in results:
                    values, norm, error = _compute(result, mode)
                    reports.append(members.report(result.layer.module, result.rank, norm, error))
                    for name, value in values.items():
                        put(writer, name, 0, tensors[name][0], value)
                for name in others:
                    _put_other(writer, members, name, tensors[name][0])
            write_json(folder / CONFIG, config)
    return LoraReport(Path(out), mode, tuple(reports), averaged=tuple(others), dropped=members.dropped)


class Term(NamedTuple):
    """One adapter's part in one layer: lambda, and lambda times scale."""

    adapter: LoraAdapter
    layer: LoraLayer
    coefficient: float
    weight: float


@dataclass(frozen=True, slots=True)
class Members:
    """Adapters that belong together, with their coefficients."""

    labels: list[str]
    adapters: list[LoraAdapter]
    coefficients: Coefficients
    modules: list[str]

    @property
    def dropped(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for adapter in self.adapters for name in adapter.dropped))

    def numbers(self, name: str) -> list[float]:
        return resolve(self.coefficients, self.labels, name)

    def layer(self, module: str) -> LoraLayer:
        return next(adapter.layers[module] for adapter in self.adapters if module in adapter.layers)

    def terms(self, module: str) -> list[Term]:
        """The adapters that take part; one with coefficient 0 where none does."""
        numbers = zip(self.adapters, self.numbers(self.layer(module).root), strict=True)
        terms = [
            Term(adapter, adapter.layers[module], number, number * adapter.layers[module].scale)
            for adapter, number in numbers
            if module in adapter.layers
        ]
        return [term for term in terms if term.coefficient] or terms[:1]

    def report(self, module: str, rank: int | None, norm: float, error: float) -> LoraLayerReport:
        ranks = [adapter.layers[module].rank if module in adapter.layers else 0 for adapter in self.adapters]
        numbers = self.numbers(self.layer(module).root)
        return LoraLayerReport(module, tuple(numbers), tuple(ranks), rank, float(norm), float(error))


@dataclass(frozen=True, slots=True)
class _Result:
    """A layer of the merged adapter, planned: what stands where, and dtype code and shape of each tensor."""

    layer: LoraLayer
    terms: list[Term]
    rank: int
    scale: float
    bias: str | None
    tensors: dict[str, tuple[str, tuple[int, ...]]]


@contextmanager
def open_members(
    adapters: Adapters, coefficients: Coefficients | None, *, strict: bool, same_base: bool
) -> Iterator[Members]:
    """Open adapters and check that they belong together; what was opened here is closed at the end."""
    items = dict(adapters) if isinstance(adapters, Mapping) else {str(i): a for i, a in enumerate(adapters)}
    if not items:
        raise InputError("expected adapters to merge, got none.")
    labels = list(items)
    opened = [item if isinstance(item, LoraAdapter) else open_adapter(item) for item in items.values()]
    try:
        yield _checked(opened, labels, coefficients, strict, same_base)
    finally:
        for adapter, item in zip(opened, items.values(), strict=True):
            if adapter is not item:
                adapter.close()


def _checked(
    opened: list[LoraAdapter],
    labels: list[str],
    coefficients: Coefficients | None,
    strict: bool,
    same_base: bool,
) -> Members:
    if coefficients is None:
        coefficients = [1 / len(labels)] * len(labels)
    check_coefficients(coefficients, labels)
    first = opened[0]
    for adapter in opened[1:]:
        bases = [
            (a.config.get("base_model_name_or_path"), a.config.get("revision")) for a in (first, adapter)
        ]
        if same_base and bases[0] != bases[1]:
            raise InputError(
                f"{first.label} and {adapter.label} have different bases, {_base(bases[0])} and {_base(bases[1])}. "
                "Adapters of different bases cannot be merged. If it is one model under two names, pass "
                "same_base=False."
            )
        missing = [module for module in first.layers if module not in adapter.layers]
        extra = [module for module in adapter.layers if module not in first.layers]
        if strict and (missing or extra):
            holder, lacker, names = (first, adapter, missing) if missing else (adapter, first, extra)
            raise InputError(
                f"{holder.label} adapts {len(names)} layers that {lacker.label} does not: {some(names)}. Pass "
                "strict=False to let an adapter change by 0 what it does not have."
            )
    modules = list(dict.fromkeys(module for adapter in opened for module in adapter.layers))
    members = Members(labels, opened, coefficients, modules)
    for module in modules:
        reference = members.layer(module)
        for adapter in opened:
            layer = adapter.layers.get(module, reference)
            if layer.frame != reference.frame:
                raise InputError(
                    f"{module} has factors of shapes {layer.a[1]} and {layer.b[1]} in {adapter.label}, "
                    f"{reference.a[1]} and {reference.b[1]} elsewhere. They were trained on different layers."
                )
    return members


def _base(named: tuple[str | None, str | None]) -> str:
    return f"{named[0]!r}" + (f" at {named[1]}" if named[1] else "")


def _check_mergeable(members: Members, mode: Mode) -> None:
    for adapter in members.adapters:
        if adapter.uses_dora:
            raise InputError(
                f"{adapter.label}: uses DoRA, which is not linear in its factors, so no adapter equals the merge. "
                "Use merge_into_base (--lora dense --base BASE), which merges the dense weights."
            )
        if adapter.config.get("ensure_weight_tying"):
            raise InputError(f"{adapter.label}: ties its factors (ensure_weight_tying). Use merge_into_base.")
    if mode != "factor":
        return
    for module in members.modules:
        layers = [adapter.layers.get(module) for adapter in members.adapters]
        kinds = {(layer.rank, layer.scale, layer.bias is None) if layer else None for layer in layers}
        if len(kinds) > 1:
            raise InputError(
                f"{module}: averaging factors needs the same rank and scale in all adapters, got "
                f"{', '.join(f'{x.rank} and {x.scale:g}' if x else 'none' for x in layers)}. Use mode='cat'."
            )
        check_sum(
            members, members.layer(module).root, "averaged factors are no average otherwise. Use mode='cat'"
        )


def check_sum(members: Members, name: str, why: str) -> float:
    """The sum of the coefficients, about one."""
    numbers = members.numbers(name)
    total = math.fsum(numbers)
    if abs(total - 1) > 1e-6:
        raise InputError(
            f"{name}: expected coefficients that sum to one, got {numbers}, which sum to {total:.9g}; {why}."
        )
    return total


def _check_others(members: Members) -> list[str]:
    first, *rest = members.adapters
    for adapter in rest:
        odd = sorted(set(first.others) ^ set(adapter.others))
        if odd:
            raise InputError(
                f"{first.label} and {adapter.label} were not trained on the same besides factors: {some(odd)} "
                f"{'is' if len(odd) == 1 else 'are'} in one only, and its value in the base is not known here. "
                "Use merge_into_base with strict=False."
            )
        for name in first.others:
            check_same_kind(first, adapter, name)
            if is_frozen(name) and first.bytes(name) != adapter.bytes(name):
                raise InputError(
                    f"{name}: is the base's own weight, but differs in {first.label} and {adapter.label}."
                )
    for name in first.others:
        if is_float(first.code(name)) and not is_frozen(name):
            check_sum(
                members,
                base_name(name),
                "it is saved whole, so it can only be averaged; use merge_into_base, which knows the base's",
            )
    return first.others


def check_same_kind(a: LoraAdapter, b: LoraAdapter, name: str) -> None:
    if a.shape(name) != b.shape(name) or is_float(a.code(name)) != is_float(b.code(name)):
        raise InputError(
            f"{name}: has shape {a.shape(name)} of {a.code(name)} in {a.label}, {b.shape(name)} of {b.code(name)} in "
            f"{b.label}. They need the same head."
        )


def is_frozen(name: str) -> bool:
    """Whether it is a copy of what was not trained: PEFT saves the weights of adapted embeddings so."""
    return name.endswith(".base_layer.weight") or ".original_module." in name


def base_name(name: str) -> str:
    """What a tensor saved whole is called in the base."""
    return name.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")


def _result(members: Members, module: str, mode: Mode, rank: int | None, code: str | None) -> _Result:
    layer, terms = members.layer(module), members.terms(module)
    total = sum(term.layer.rank for term in terms)
    (out, *_), inputs = layer.b[1], layer.a[1][1:]
    scale = 1.0
    if mode == "cat":
        new = total
        sizes = {abs(term.weight) for term in terms}
        if len(sizes) == 1 and sizes != {0.0}:
            (scale,) = sizes
    elif mode == "svd":
        new = min(rank or max(term.layer.rank for term in terms), total, out, math.prod(inputs))
    else:
        new, scale = layer.rank, layer.scale
    kind = code or widest([term.layer.code for term in terms])
    tensors = {
        layer.a[0]: (kind, (new, *inputs)),
        layer.b[0]: (kind, (out, new, *layer.b[1][2:])),
    }
    bias = next((term.layer.bias for term in terms if term.layer.bias), None)
    if bias:
        tensors[bias] = kind, (out,)
    return _Result(layer, terms, new, scale, bias, tensors)


def _compute(result: _Result, mode: Mode) -> tuple[dict[str, Array], float, float]:
    """The values of a layer's tensors in float64, the length of the exact sum, and the distance to it."""
    terms, new = result.terms, result.rank
    pairs = [term.adapter.factors(term.layer.module) for term in terms]
    left = np.concatenate([term.weight * b for term, (b, _) in zip(terms, pairs, strict=True)], axis=1)
    right = np.concatenate([a for _, a in pairs])
    outer, core, inner = _core(left, right)
    a: Any
    b: Any
    error: Any = 0.0
    if mode == "cat":
        # By the ratio, which is 1 or -1 wherever one scale serves all: multiplying and dividing would round.
        ratios = [term.weight / result.scale for term in terms]
        b = np.concatenate([ratio * b for ratio, (b, _) in zip(ratios, pairs, strict=True)], axis=1)
        a = right
    elif mode == "svd":
        u, s, vt = np.linalg.svd(core, full_matrices=False)
        root = np.sqrt(s[:new])
        b, a = outer @ (u[:, :new] * root), (root[:, None] * vt[:new]) @ inner.T
        error = np.linalg.norm(s[new:])
    else:
        b, a = (sum(t.coefficient * pair[i] for t, pair in zip(terms, pairs, strict=True)) for i in (0, 1))
        apart = [term.weight * (x - b) for term, (x, _) in zip(terms, pairs, strict=True)]
        error = np.linalg.norm(_core(np.concatenate(apart, axis=1), right - np.tile(a, (len(terms), 1)))[1])
    values = {result.layer.a[0]: a, result.layer.b[0]: b}
    if result.bias:
        biased = [term for term in terms if term.layer.bias]
        values[result.bias] = sum(
            term.weight / result.scale * term.adapter.values(term.layer.bias or "") for term in biased
        )
    return values, float(np.linalg.norm(core)), float(error)


def _core(left: Array, right: Array) -> tuple[Array, Array, Array]:
    """``left @ right`` as ``outer @ core @ inner.T`` with orthonormal outer and inner columns, never dense."""
    outer, upper = np.linalg.qr(left)
    inner, lower = np.linalg.qr(right.T)
    return outer, upper @ lower.T, inner


def _config(members: Members, results: Sequence[_Result], mode: Mode, unchanged: bool) -> dict[str, Any]:
    first = members.adapters[0]
    alone = {id(term.adapter): term.adapter for module in members.modules for term in members.terms(module)}
    numbers = {term.coefficient for module in members.modules for term in members.terms(module)}
    (sole, *more) = alone.values()
    if (
        mode == "cat"
        and unchanged
        and not more
        and numbers == {1.0}
        and set(sole.layers) == set(members.modules)
    ):
        return sole.config  # nothing was merged: factors and settings stay
    if mode == "factor":
        return {**first.config, "init_lora_weights": True}
    alphas = {result.layer.module: _alpha(result.scale, result.rank) for result in results}
    ranks = {result.layer.module: result.rank for result in results}
    rank, rank_pattern = _patterns(ranks)
    alpha, alpha_pattern = _patterns(alphas)
    config = {
        **first.config,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "use_rslora": False,
        # A start computed from data or from the base would be computed again at loading.
        "init_lora_weights": True,
        "lora_bias": any(layer.bias for adapter in members.adapters for layer in adapter.layers.values()),
    }
    config |= {key: None for key in ("eva_config", "corda_config", "lora_ga_config") if key in config}
    if any(set(adapter.layers) != set(members.modules) for adapter in members.adapters):
        roots = dict.fromkeys(members.layer(module).root for module in members.modules)
        config["target_modules"] = "|".join(re.escape(root) for root in roots)
        config |= {"exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    return config


def _alpha(scale: float, rank: int) -> float | int:
    """The ``lora_alpha`` that gives this scale, a whole number where it is one but for the last bit."""
    alpha = scale * rank
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-15) else alpha


def _patterns(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most common value, and the rest by patterns that fit one module each."""
    ((common, _),) = Counter(values.values()).most_common(1)
    # The projection inside an attention takes the settings of the attention. Without the anchor, 'fc' would also
    # fit 'block.fc'.
    rest = {module.split(".base_layer.")[0]: value for module, value in values.items() if value != common}
    return common, {f"^{re.escape(module)}": value for module, value in rest.items()}


def metadata(members: Members, mode: str) -> dict[str, str]:
    """For the header of a file: what was merged, and by which numbers where they are the same for all layers."""
    texts = {"mirepoix.method": f"lora-{mode}"}
    given = members.coefficients
    named = given if isinstance(given, Mapping) else dict(zip(members.labels, given, strict=True))
    if all(isinstance(value, int | float) for value in named.values()):
        texts["mirepoix.coefficients"] = json.dumps({label: named[label] for label in members.labels})
    return texts


def put(writer: WeightsWriter, name: str, start: int, code: str, value: Array | bytes) -> None:
    """Round once and write entries from ``start``; bytes are written as they are."""
    if isinstance(value, bytes):
        writer.write(name, start, memoryview(value))
        return
    stored = narrow(code, np.ascontiguousarray(value, dtype=np.float64).reshape(-1))
    if not np.isfinite(widen(code, stored, np.empty(stored.size))).all():
        raise InputError(
            f"{name!r} is not finite after merging in {DTYPES[code][0]}. Look for NaN or infinity in the adapters, or "
            "use a wider dtype."
        )
    writer.write(name, start * DTYPES[code][1], np.ascontiguousarray(stored).view(np.uint8).data)


def _put_other(writer: WeightsWriter, members: Members, name: str, code: str) -> None:
    """Write the plain average of a tensor that is no factor, or the copy that all have in common."""
    if not is_float(code):
        put(writer, name, 0, code, common_integers(members.adapters, name))
    elif is_frozen(name):
        put(writer, name, 0, code, members.adapters[0].values(name))
    else:
        terms = list(zip(members.adapters, members.numbers(base_name(name)), strict=True))
        put(writer, name, 0, code, average(terms, name))


def average(terms: Sequence[tuple[LoraAdapter, float]], name: str) -> Array:
    """What is left of the sum of the coefficients is divided out."""
    used = [(adapter, number) for adapter, number in terms if number]
    total = math.fsum(number for _, number in used)
    value: Any = sum(number * adapter.values(name) for adapter, number in used)
    return np.asarray(value / total)


def common_integers(adapters: Sequence[LoraAdapter], name: str) -> bytes:
    contents = {adapter.bytes(name) for adapter in adapters}
    if len(contents) == 1:
        return contents.pop()
    if name.endswith("num_batches_tracked"):
        return max(contents, key=lambda content: int.from_bytes(content, "little"))
    raise InputError(f"{name}: holds integers that differ between the adapters, which have no average.")


@contextmanager
def _new_folder(out: str | os.PathLike[str], members: Members, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its name when the block ends well."""
    out = Path(out)
    if not out.parent.is_dir():
        raise InputError(
            f"{out}: cannot be written, the folder {out.parent} does not exist. Create it first."
        )
    if any(adapter.folder is not None and _same(out, adapter.folder) for adapter in members.adapters):
        raise InputError(f"{out}: is one of the inputs. Name another folder.")
    if (out.exists() or out.is_symlink()) and not (
        overwrite and (out / CONFIG).is_file() and not out.is_symlink()
    ):
        raise InputError(
            f"{out}: exists already. Name another folder"
            + (
                ", this one holds no adapter."
                if overwrite
                else ", or pass overwrite=True to replace an adapter."
            )
        )
    stem = f".{out.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}"
    temporary, old = out.parent / f"{stem}.tmp", out.parent / f"{stem}.old"
    temporary.mkdir()
    try:
        yield temporary
        if out.exists():
            out.rename(old)
        try:
            temporary.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _code(dtype: str | None) -> str | None:
    code = None if dtype is None else CODES.get(dtype)
    if dtype is not None and code not in FLOATS:
        names = ", ".join(DTYPES[code][0] for code in FLOATS)
        raise InputError(f"dtype: expected one of {names}, got {dtype!r}.")
    return code


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)
