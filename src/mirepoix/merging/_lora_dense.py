"""LoRA adapters added to their base: the only merge for DoRA, whose change depends on the base."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mirepoix.checkpoints._layout import ALIASES
from mirepoix.checkpoints._stream import WeightsWriter, index_path, parse_size
from mirepoix.checkpoints._tensors import DTYPES
from mirepoix.merging._inputs import EMBEDDINGS, HEADS, Source, open_source
from mirepoix.merging._lora import (
    Adapters,
    LoraLayerReport,
    LoraReport,
    Members,
    Term,
    average,
    base_name,
    check_same_kind,
    check_sum,
    common_integers,
    is_frozen,
    metadata,
    open_members,
    put,
)
from mirepoix.merging._lora_adapter import PREFIX, LoraAdapter, is_float, some, widest
from mirepoix.merging._rule import Array, Coefficients
from mirepoix.types import InputError

__all__ = ["merge_into_base"]

Steps: TypeAlias = Iterator[tuple[int, Array | bytes]]
"""First entry and new values of pieces of a tensor."""

STEP = 1 << 20
"""Entries of a dense weight that are computed together."""


def merge_into_base(
    base: Mapping[str, Any] | str | os.PathLike[str],
    adapters: Adapters,
    out: str | os.PathLike[str],
    coefficients: Coefficients | None = None,
    *,
    strict: bool = True,
    same_base: bool = True,
    transposed: str | None = None,
    rename: Mapping[str, str] | None = None,
    max_shard: str | int | None = None,
    overwrite: bool = False,
) -> LoraReport:
    r"""Add adapters to the weights of their base model, tensor by tensor.

    .. math:: W = W_0 + \sum_i \lambda_i s_i B_i A_i,

    in float64, rounded once to the dtype of the base. An adapter with DoRA changes the base by
    :math:`m (W_0 + s B A) / \|W_0 + s B A\| - W_0`, the norm taken over the inputs of each output; its change
    counts with its coefficient like any other. What was trained besides factors becomes
    :math:`W_0 + \sum_i \lambda_i (W_i - W_0)`; modules that the base does not have (a new head) are added, and
    then their coefficients must sum to one.

    Args:
        base: The weights the adapters were trained on, or their path.
        adapters: Opened adapters or their folders, in order or by name.
        out: The file to write, ending in ``.safetensors``, whole or not at all.
        coefficients: As in `merge_adapters`.
        strict: As in `merge_adapters`; it also holds for what is no factor.
        same_base: As in `merge_adapters`.
        transposed: A regular expression for the modules whose weight the base stores as (in, out); the rest
            is stored as (out, in). Needed only where a weight is square and shapes and settings contradict
            each other elsewhere; otherwise shapes decide, and for square weights ``fan_in_fan_out``.
        rename: Regular expressions and their replacements, from the names in the adapters (without
            ``base_model.model.``) to those in the base.
        max_shard: The most bytes of one file, such as ``"5GB"``, if the output is to be cut.
        overwrite: Whether a file ``out`` may be replaced.

    Returns:
        What was written.

    Raises:
        InputError: As in `merge_adapters`; if the base lacks an adapted layer or has it in another shape, is
            quantised, or ties a weight that is adapted to one that is not; for torch's own attention module,
            whose output PEFT counts twice in some versions.
    """
    out = Path(out)
    size = None if max_shard is None else parse_size(max_shard)
    with open_members(adapters, coefficients, strict=strict, same_base=same_base) as members:
        source = open_source(base, "base")
        try:
            _check(out, members, source, overwrite)
            dense = _Dense(members, source, transposed, rename or {}, strict)
            dense.check_ties()
            tensors = {
                name: (source.code(name), source.shape(name))
                for name in source.names
                if name not in source.tied
            } | dense.added
            with WeightsWriter(out, tensors, metadata=dense.texts, max_shard=size) as writer:
                for name in tensors:
                    dense.write(writer, name, tensors[name][0])
        finally:
            source.close()
        reports = tuple(dense.report(module) for module in members.modules)
    return LoraReport(
        path=out,
        mode="dense",
        layers=reports,
        averaged=tuple(dense.averaged),
        added=tuple(dense.added),
        dropped=members.dropped,
    )


def _check(out: Path, members: Members, base: Source, overwrite: bool) -> None:
    inputs = [file for adapter in members.adapters for file in adapter.files]
    inputs += base.checkpoint.files if base.checkpoint is not None else ()
    if any(out.exists() and file.exists() and out.samefile(file) for file in inputs):
        raise InputError(f"{out}: is one of the inputs. Name another file.")
    if not overwrite and (out.exists() or index_path(out).exists()):
        raise InputError(f"{out}: exists already. Name another file, or pass overwrite=True.")
    for adapter in members.adapters:
        if adapter.config.get("layer_replication"):
            raise InputError(
                f"{adapter.label}: repeats layers of its base (layer_replication). Merge it into its base with PEFT."
            )
        twice = next((module for module in adapter.layers if ".base_layer." in module), None)
        if twice is not None:
            raise InputError(
                f"{adapter.label}: adapts an attention of torch, of which PEFT 0.21.2 and earlier count {twice!r} "
                "twice (huggingface/peft, pull request 3774), so its change depends on the version. Use "
                "merge_adapters, and merge the result into the base with the version it was trained with."
            )


class _Dense:
    """What the adapters change in a base: for each tensor, the pieces of its new values."""

    def __init__(
        self,
        members: Members,
        base: Source,
        transposed: str | None,
        rename: Mapping[str, str],
        strict: bool,
    ) -> None:
        self.members, self.base, self.rename = members, base, rename
        self.names = set(base.names)
        self.steps: dict[str, Callable[[], Steps]] = {}
        self.added: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.averaged: list[str] = []
        self.squares = dict.fromkeys(members.modules, 0.0)
        weights = {module: self._weight(module) for module in members.modules}
        turned = self._orientations(weights, transposed)
        for module, name in weights.items():
            self._plan_layer(module, name, turned[module])
        for name in dict.fromkeys(name for adapter in members.adapters for name in adapter.others):
            self._plan_other(name, strict)

    @property
    def texts(self) -> dict[str, str]:
        """For the header of the output."""
        names = {name: held for name, held in self.base.tied.items() if name in self.base.names}
        tied = {ALIASES: json.dumps(names)} if names else {}
        return metadata(self.members, "dense") | tied

    def check_ties(self) -> None:
        """Refuse to change one of two names of one weight."""
        changed = [*self.steps, *self.added]
        for name, held in self.base.tied.items():
            if name in changed or held in changed:
                raise InputError(
                    f"base: {name!r} and {held!r} are tied, and an adapter changes one of them. Merge the "
                    "adapters with merge_adapters, or untie the base first."
                )
        config = self.base.checkpoint.config if self.base.checkpoint is not None else None
        parts = [config, *(config.values() if isinstance(config, dict) else ())]
        tied = any(isinstance(part, dict) and part.get("tie_word_embeddings") is True for part in parts)
        ends = [name for name in changed if name.endswith(EMBEDDINGS) or name in HEADS]
        if tied and ends:
            raise InputError(
                f"base: its config.json ties input and output embeddings, and an adapter changes {ends[0]!r}. Merge "
                "the adapters with merge_adapters, or untie the base first (tie_word_embeddings)."
            )

    def write(self, writer: WeightsWriter, name: str, code: str) -> None:
        """Write one tensor, piece by piece."""
        if name in self.steps:
            for start, value in self.steps[name]():
                put(writer, name, start, code, value)
            return
        count = math.prod(self.base.shape(name))
        for start in range(0, count, STEP):
            piece = self.base.stored(name, start, min(start + STEP, count))
            writer.write(name, start * DTYPES[code][1], piece.view(np.uint8).data)

    def report(self, module: str) -> LoraLayerReport:
        return self.members.report(module, None, math.sqrt(self.squares[module]), 0.0)

    def _renamed(self, name: str) -> str:
        for pattern, replacement in self.rename.items():
            try:
                name = re.sub(pattern, replacement, name)
            except re.error as error:
                raise InputError(
                    f"rename: {pattern!r} -> {replacement!r} is not a substitution: {error}."
                ) from error
        return name

    def _change(self, name: str, steps: Callable[[], Steps]) -> None:
        if name in self.steps:
            raise InputError(
                f"base: {name!r} is changed twice by one adapter, for example by bias and lora_bias. Merge the "
                "adapters with merge_adapters, which keeps both."
            )
        self.steps[name] = steps

    def _weight(self, module: str) -> str:
        name = self._renamed(f"{module}.weight")
        if name not in self.names:
            last = module.rsplit(".", 1)[-1]
            near = [other for other in self.base.names if other.endswith(f"{last}.weight")]
            why = f" but {some(near, 3)}. Pass rename=." if near else ". Is it another model?"
            raise InputError(f"base: expected {name!r}, which the adapters change, got no such name{why}")
        if not is_float(self.base.code(name)):
            raise InputError(
                f"base: {name!r} has dtype {self.base.code(name)}, expected floats. Is it quantised? Use the weights "
                "before quantisation."
            )
        return name

    def _orientations(self, weights: Mapping[str, str], transposed: str | None) -> dict[str, bool]:
        """Whether the base has each weight as (in, out)."""
        flags = {bool(adapter.config.get("fan_in_fan_out")) for adapter in self.members.adapters}
        said = True in flags
        turned: dict[str, bool] = {}
        square, contradictions = [], []
        for module, name in weights.items():
            layer, shape = self.members.layer(module), self.base.shape(name)
            straight = (layer.b[1][0], *layer.a[1][1:])
            fits = shape in ((straight[::-1],) if layer.is_embedding else (straight, straight[::-1]))
            if not fits or (layer.is_convolution and shape != straight):
                raise InputError(
                    f"base: {name!r} has shape {shape}, but the adapters change a weight of shape "
                    f"{straight[::-1] if layer.is_embedding else straight}. Is it another model?"
                )
            turned[module] = layer.is_embedding or (not layer.is_convolution and shape != straight)
            if layer.is_embedding or layer.is_convolution:
                continue
            if straight == straight[::-1]:
                square.append(module)
                turned[module] = said if transposed is None else bool(re.search(transposed, module))
            elif turned[module] != said:
                contradictions.append(module)
        if square and transposed is None and (contradictions or len(flags) > 1):
            why = f"wrong for {some(contradictions, 3)}" if contradictions else "not the same in all adapters"
            raise InputError(
                f"base: {weights[square[0]]!r} is square, and fan_in_fan_out is {why}. Pass transposed=, a regular "
                "expression for the modules that are stored as (in, out)."
            )
        return turned

    def _plan_layer(self, module: str, name: str, turned: bool) -> None:
        terms = self.members.terms(module)
        if not any(term.coefficient for term in terms):
            return
        if any(term.layer.magnitude for term in terms):
            self._change(name, lambda: self._dora(module, name, turned))
        else:
            self._change(name, lambda: self._product(module, name, turned))
        biased = [term for term in terms if term.layer.bias]
        if biased:
            bias = self._renamed(f"{module}.bias")
            if bias not in self.names:
                raise InputError(
                    f"base: expected {bias!r}, which the adapters change (lora_bias), got no such name."
                )
            self._change(bias, lambda: self._bias(bias, biased))

    def _product(self, module: str, name: str, turned: bool) -> Steps:
        terms = self.members.terms(module)
        pairs = [term.adapter.factors(module) for term in terms]
        left = np.concatenate([term.weight * b for term, (b, _) in zip(terms, pairs, strict=True)], axis=1)
        right = np.concatenate([a for _, a in pairs])
        if turned:
            left, right = right.T, left.T
        rows, width = left.shape[0], right.shape[1]
        step = max(1, STEP // width)
        for row in range(0, rows, step):
            change = (left[row : row + step] @ right).reshape(-1)
            self.squares[module] += float(change @ change)
            start = row * width
            yield start, self.base.wide(name, start, start + change.size, np.float64) + change

    def _dora(self, module: str, name: str, turned: bool) -> Steps:
        shape = self.base.shape(name)
        base = self.base.wide(name, 0, math.prod(shape), np.float64)
        change = np.zeros_like(base)
        for term in self.members.terms(module):
            b, a = term.adapter.factors(module)
            delta = term.layer.scale * (b @ a)
            if term.layer.magnitude:
                weight = base.reshape(delta.shape[::-1]).T if turned else base.reshape(delta.shape)
                moved = weight + delta
                magnitude = term.adapter.values(term.layer.magnitude).reshape(-1, 1)
                # Where an output has no inputs, the result is not finite and will be refused.
                with np.errstate(divide="ignore", invalid="ignore"):
                    delta = magnitude / np.linalg.norm(moved, axis=1, keepdims=True) * moved - weight
            change += term.coefficient * (delta.T if turned else delta).reshape(-1)
        self.squares[module] += float(change @ change)
        yield 0, base + change

    def _bias(self, name: str, terms: Sequence[Term]) -> Steps:
        base = self.base.wide(name, 0, math.prod(self.base.shape(name)), np.float64)
        yield 0, base + sum(term.weight * term.adapter.values(term.layer.bias or "") for term in terms)

    def _plan_other(self, name: str, strict: bool) -> None:
        holders = [adapter for adapter in self.members.adapters if name in adapter.others]
        first = holders[0]
        # With bias="all" PEFT saves the bias of a module saved whole three times: trained, untrained, and plainly.
        if ".original_module." in name or (
            ".modules_to_save." in name and PREFIX + base_name(name) in first.others
        ):
            return
        for adapter in holders[1:]:
            check_same_kind(first, adapter, name)
        lacking = [adapter for adapter in self.members.adapters if name not in adapter.others]
        numbers = zip(self.members.adapters, self.members.numbers(base_name(name)), strict=True)
        terms = [(adapter, number) for adapter, number in numbers if name in adapter.others]
        target = self._renamed(base_name(name))
        known = target in self.names
        if known and self.base.shape(target) != first.shape(name):
            raise InputError(
                f"base: {target!r} has shape {self.base.shape(target)}, {first.shape(name)} in {first.label}. "
                "Resize the base first."
            )
        if known and is_float(self.base.code(target)) != is_float(first.code(name)):
            raise InputError(
                f"base: {target!r} has dtype {self.base.code(target)}, {first.code(name)} in {first.label}."
            )
        if not known and not self._saved_whole(target):
            raise InputError(
                f"base: expected {target!r}, which {first.label} changes, got no such name. Pass rename=."
            )
        if lacking and (strict or not known):
            raise InputError(
                f"{first.label} changes {target!r}, {lacking[0].label} does not. "
                + (
                    "Pass strict=False to let it change by 0 there."
                    if known
                    else "The base does not have it."
                )
            )
        if is_frozen(name):
            wide = self.base.wide(target, 0, math.prod(first.shape(name)), np.float64).reshape(
                first.shape(name)
            )
            for adapter in holders:
                if not np.array_equal(adapter.values(name), wide):
                    raise InputError(
                        f"base: {target!r} differs from the copy in {adapter.label}. Is it another base?"
                    )
            return
        self.averaged.append(name)
        if not known:
            self.added[target] = widest([adapter.code(name) for adapter in holders]), first.shape(name)
        if not is_float(first.code(name)):
            self._change(target, lambda: iter([(0, common_integers(holders, name))]))
        elif known:
            self._change(target, lambda: self._moved(target, terms, name))
        else:
            check_sum(self.members, base_name(name), "the base does not have it, so it can only be averaged")
            self._change(target, lambda: iter([(0, average(terms, name))]))

    def _moved(self, target: str, terms: Sequence[tuple[LoraAdapter, float]], name: str) -> Steps:
        total = math.fsum(number for _, number in terms)
        if abs(total - 1) <= 1e-6:
            yield 0, average(terms, name)
        else:
            base = self.base.wide(target, 0, math.prod(self.base.shape(target)), np.float64)
            moves = (number * (adapter.values(name).reshape(-1) - base) for adapter, number in terms)
            yield 0, base + sum(moves)

    def _saved_whole(self, target: str) -> bool:
        """Whether the settings say that this belongs to a module that is new, or trained whole."""
        modules = {
            m for adapter in self.members.adapters for m in adapter.config.get("modules_to_save") or ()
        }
        return any(f".{module}." in f".{target}" for module in modules)
