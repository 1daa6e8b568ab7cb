"""Merges written for mergekit: its YAML, read as one of our rules with its numbers.

Only the file is read, not the code: what each key means, and what it is where it is left out, was found by running
mergekit 0.1.5. A key that would change the result and cannot be followed is an error; one that changes nothing, or
what will differ from mergekit's own result, is a note.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from mirepoix.checkpoints import open_weights, read_json
from mirepoix.types import InputError

__all__ = ["MergekitRecipe", "read_mergekit"]

Setting: TypeAlias = float | list[list[Any]]
"""A number, or pairs of a pattern and a number, as in `mirepoix.merging.Coefficient`, but in lists for JSON."""

LARGEST, DEEPEST, MOST_ALIASES, LONGEST_NUMBER = 1_000_000, 32, 16, 64

METHODS = {
    "linear": "average",
    "task_arithmetic": "task-arithmetic",
    "ties": "ties",
    "dare_linear": "dare",
    "dare_ties": "dare-ties",
    "slerp": "slerp",
    "model_stock": "model-stock",
}
SPARSE = ("weight", "density", "lambda", "normalize", "rescale")
USED: Mapping[str, tuple[str, ...]] = {
    "linear": ("weight", "normalize"),
    "task_arithmetic": ("weight", "lambda", "normalize"),
    "ties": SPARSE,
    "dare_linear": SPARSE,
    "dare_ties": SPARSE,
    "slerp": ("t",),
    "model_stock": ("filter_wise",),
}
PARAMETERS = (*SPARSE, "t", "filter_wise", "int8_mask")  # the last saves memory, and changes no number
PER_MEMBER = ("weight", "density")  # the others are read for all members together, whatever a member says

TOP = (
    "merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template",
)  # fmt: skip
DTYPES = ("float64", "float32", "float16", "bfloat16")
RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "t": (lambda t: 0 <= t <= 1, "numbers in [0, 1]"),
    "density": (lambda k: 0 < k <= 1, "the kept share, in (0, 1]"),
}
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class MergekitRecipe:
    """A merge as mergekit's YAML describes it, in our terms.

    Attributes:
        members: Paths of the members, as the current folder sees them. The base is one of them only where it
            is averaged like the others: of ``linear``, and first of ``slerp``.
        base: Path of the base, for rules that need one.
        method: ``"average"``, ``"task-arithmetic"``, ``"ties"``, ``"dare"``, ``"dare-ties"`` (which is `Dare` with
            ``elect=True``, not repeated in the parameters), ``"slerp"`` or ``"model-stock"``.
        parameters: Arguments of the rule, as JSON can hold them. One that depends on the tensor is a list of
            pairs of a regular expression and a number, the first that matches wins.
        dtype: Of the float tensors of the result; None for that of the members.
        notes: What was ignored, and what will differ from mergekit's result.
    """

    members: tuple[str, ...]
    base: str | None
    method: str
    parameters: Mapping[str, Any]
    dtype: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    """A model as listed, and its own parameters; ``key`` says where."""

    key: str
    model: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class _Listed:
    """The models of a file, and the parameters that hold for all of them, the nearest first."""

    entries: Sequence[_Entry]
    shared: Sequence[tuple[str, Mapping[str, Any]]]
    base: str | None
    layers: int | None = None


def read_mergekit(path: str | os.PathLike[str]) -> MergekitRecipe:
    r"""Read a merge that was written for mergekit.

    ``merge_method`` is one of ``linear``, ``task_arithmetic``, ``ties``, ``dare_linear``, ``dare_ties``, ``slerp``
    and ``model_stock``; ``models`` are listed, or the ``sources`` of a single slice over all layers. What mergekit
    does where a key is left out:

    ================  ============  ============  ===========  =============  ==========
    merge_method      weight        normalize     density      rescale        lambda
    ================  ============  ============  ===========  =============  ==========
    linear            required      yes
    task_arithmetic   required      no                                        1
    ties              required      yes           1            no             1
    dare_linear       required      no            1            l1, per tensor 1
    dare_ties         required      no            1            l1, per tensor 1
    ================  ============  ============  ===========  =============  ==========

    ``ties`` trims each tensor by itself. ``slerp`` goes from ``base_model`` (``t`` of 0, required) to the other
    model, whatever their order. ``model_stock`` has one ratio per tensor, not clamped. ``linear`` averages
    ``base_model`` like the others, also where it is not among ``models``; the other methods never take it for a
    member.

    A value is a number; several numbers, which are interpolated over the layers (tensors outside the layers get
    the first); or a list of ``{filter, value}``, of which the first counts whose ``filter`` is part of the
    tensor's name or is missing. What a model says comes before what the slice says, and that before the whole.

    Results agree with mergekit's up to rounding, but for DARE, whose choice is random; for TIES, which here keeps
    :math:`\lceil k n \rceil` of a tensor's entries, not :math:`\lfloor k n \rfloor`; and for SLERP with a tensor
    that is zero in one model. Members are not rounded to ``dtype`` before they are merged: it is the dtype of the
    result, unless ``out_dtype`` says another.

    Args:
        path: A YAML file of at most 1 MB, without tags, with at most 16 aliases and no key twice. Paths in it are
            relative to its folder or to the current folder, in which mergekit looks; nothing is downloaded. Of
            the members no tensor is read.

    Raises:
        InputError: Naming the key: one that is unknown or given twice, a value that is missing or cannot be
            followed here (other methods, slices that cut layers, vocabularies that must be united), or a model
            that is not there.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mirepoix.merging import read_mergekit
        >>> with TemporaryDirectory() as folder:
        ...     for name in ("a", "b"):
        ...         Path(folder, name).mkdir()
        ...     file = Path(folder, "merge.yml")
        ...     _ = file.write_text("{merge_method: linear, models: [{model: a}, {model: b}], parameters: {weight: 1}}")
        ...     read_mergekit(file).parameters
        {'coefficients': [1.0, 1.0], 'normalize': True, 'extrapolate': False}

    References:
        Goddard et al. (2024), *Arcee's MergeKit*; https://github.com/arcee-ai/mergekit, version 0.1.5.
    """
    path = Path(path)
    try:
        return _recipe(_load(path), path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _recipe(values: Any, folder: Path) -> MergekitRecipe:
    values = _mapping(values, "", TOP)
    method = _method(values.get("merge_method"))
    listed = _listed(values)
    notes = _remarks(values, listed, method)
    entries, base = _roles(listed, method, notes)
    members = [_locate(entry.model, entry.key, folder) for entry in entries]
    found = _locate(base, "base_model", folder) if base is not None else None
    if listed.layers is not None:
        for place in [*members, *([found] if found is not None else [])]:
            notes += _check_layers(place, listed.layers)
    parameters = _Settings(method, entries, listed.shared, cache(lambda: _layers(members[0])), notes).read()
    return MergekitRecipe(
        tuple(members),
        None if method in ("linear", "slerp") else found,
        METHODS[method],
        parameters,
        _dtype(values, notes),
        tuple(dict.fromkeys(notes)),
    )


# Which models, and what each of them is.


def _method(method: Any) -> str:
    known = ", ".join(METHODS)
    if method is None:
        raise InputError(f"merge_method: missing; expected one of {known}.")
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(f"merge_method: expected one of {known}, got {method!r}.{_near(method, METHODS)}")
    return method


def _listed(values: Mapping[str, Any]) -> _Listed:
    if values.get("modules"):
        raise InputError(
            "modules: is not supported. Merge the parts of the model one by one, each by its models."
        )
    shared = [("parameters", _parameters(values, ""))]
    base = _text(values.get("base_model"), "base_model", optional=True)
    models, slices = values.get("models"), values.get("slices")
    if bool(models) == bool(slices):
        raise InputError(f"expected either models or slices, got {'both' if models else 'neither'}.")
    if models:
        entries = [_entry(item, f"models[{i}]", ()) for i, item in enumerate(_list(models, "models"))]
        return _Listed(_once(entries), shared, base)
    cuts = _list(slices, "slices")
    if len(cuts) > 1:
        raise InputError(
            "slices: expected one slice over all layers, got several: slices that cut or reorder layers are not "
            "supported. Where they only give layers other numbers, list the models and give lists of numbers, "
            "which are interpolated over the layers."
        )
    cut = _mapping(cuts[0], "slices[0]", ("sources", "base_model", "parameters"))
    sources = _list(cut.get("sources"), "slices[0].sources")
    keys = [f"slices[0].sources[{i}]" for i in range(len(sources))]
    entries = [_entry(item, key, ("layer_range",)) for item, key in zip(sources, keys, strict=True)]
    ranges = [
        _range(item.get("layer_range"), f"{key}.layer_range") for item, key in zip(sources, keys, strict=True)
    ]
    if any(r != ranges[0] or r[0] != 0 or r[1] < 1 for r in ranges):
        raise InputError(
            f"slices[0].sources: expected the same layers of all models, from 0 on, got {ranges}: slices that cut "
            "or reorder layers are not supported."
        )
    shared.insert(0, ("slices[0].parameters", _parameters(cut, "slices[0]")))
    own = _text(cut.get("base_model"), "slices[0].base_model", optional=True)
    return _Listed(_once(entries), shared, own if own is not None else base, ranges[0][1])


def _entry(item: Any, key: str, more: Sequence[str]) -> _Entry:
    values = _mapping(item, key, ("model", "parameters", *more))
    if "model" not in values:
        raise InputError(f"{key}.model: missing; expected the path of a file or folder of weights.")
    return _Entry(key, _text(values["model"], f"{key}.model") or "", _parameters(values, key))


def _once(entries: list[_Entry]) -> list[_Entry]:
    seen: dict[str, str] = {}
    for entry in entries:
        if entry.model in seen:
            raise InputError(
                f"{entry.key}: {entry.model!r} is listed already, as {seen[entry.model]}. Give it twice the weight."
            )
        seen[entry.model] = entry.key
    return entries


def _range(value: Any, key: str) -> list[int]:
    if not isinstance(value, list) or len(value) != 2 or any(type(end) is not int for end in value):
        raise InputError(f"{key}: expected [first layer, last layer + 1], such as [0, 32], got {value!r}.")
    return value


def _roles(listed: _Listed, method: str, notes: list[str]) -> tuple[list[_Entry], str | None]:
    """The members in order, and the base."""
    base, entries = listed.base, list(listed.entries)
    of_base = [entry for entry in entries if entry.model == base]
    if method == "linear":
        if base is not None and not of_base and listed.layers is not None:
            notes.append("base_model: is ignored; linear averages the sources only")
        elif base is not None and not of_base:
            entries.append(_Entry("base_model", base, {}))
        return entries, None
    if base is None:
        raise InputError(f"base_model: missing; {method} needs it.")
    others = [entry for entry in entries if entry.model != base]
    notes += [f"{e.key}.parameters: ignored, for it is the base model" for e in of_base if e.parameters]
    least = 2 if method == "model_stock" else 1
    if len(others) < least or (method == "slerp" and len(others) > 1):
        wanted = "one model" if method == "slerp" else f"at least {least} model{'s' * (least > 1)}"
        raise InputError(f"models: {method} needs {wanted} beside the base model, got {len(others)}.")
    return [_Entry("base_model", base, {}), *others] if method == "slerp" else others, base


def _locate(model: str, key: str, folder: Path) -> str:
    """The path of a model as the current folder sees it."""
    places = list(dict.fromkeys([folder / model, Path(model)]))
    there = [place for place in places if os.path.exists(place)]  # also where no file can have such a name
    if len(there) == 2 and not there[0].samefile(there[1]):
        raise InputError(
            f"{key}: {model!r} is both in the folder of this file and in the current one. Write the whole path."
        )
    if there:
        return str(there[0])
    where = f"{key}: there is no {model!r} beside this file or in the current folder."
    if "+" in model:
        raise InputError(
            f"{where} A model with an adapter is not supported: merge the adapter into it first, and name the result."
        )
    name, _, revision = model.partition("@")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        command = f"hf download {name}{f' --revision {revision}' * bool(revision)} --local-dir {name}"
        raise InputError(f"{where} Nothing is downloaded here: fetch it with `{command}` and write {name!r}.")
    raise InputError(f"{where} Write the path of a file or folder of weights.")


# What is not a number.


def _remarks(values: Mapping[str, Any], listed: _Listed, method: str) -> list[str]:
    notes = []
    for key, given in [*((f"{e.key}.parameters", e.parameters) for e in listed.entries), *listed.shared]:
        for name in given:
            if name not in USED[method]:
                notes.append(f"{key}.{name}: ignored, for it changes nothing in {method}")
            elif key.endswith("].parameters") and key != "slices[0].parameters" and name not in PER_MEMBER:
                raise InputError(
                    f"{key}.{name}: is one for all members, and mergekit does not look for it here. Write it under "
                    "the parameters of the whole file, or delete it."
                )
    if values.get("tokenizer_source") and values.get("tokenizer"):
        raise InputError("expected tokenizer_source or tokenizer, got both.")
    source, key = values.get("tokenizer_source"), "tokenizer_source"
    if values.get("tokenizer"):
        tokenizer = _mapping(values["tokenizer"], "tokenizer", ("source", "tokens", "pad_to_multiple_of"))
        source, key = tokenizer.get("source", "union"), "tokenizer.source"  # "union" as in mergekit
        for name in ("tokens", "pad_to_multiple_of"):
            if tokenizer.get(name):
                raise InputError(
                    f"tokenizer.{name}: is not supported. Change the vocabulary before or after the merge."
                )
    if source is not None and source != "base" and source != listed.base:
        raise InputError(
            f"{key}: expected 'base', got {source!r}: embeddings are not rearranged. If all models have the same "
            "vocabulary, delete it."
        )
    if source is not None:
        notes.append(f"{key}: embeddings are merged row by row, as of one vocabulary")
    if values.get("chat_template"):
        notes.append("chat_template: ignored, for it is not a matter of weights")
    return notes


def _dtype(values: Mapping[str, Any], notes: list[str]) -> str | None:
    found = {}
    for key in ("dtype", "out_dtype"):
        value = values.get(key)
        name = value.removeprefix("torch.") if isinstance(value, str) else value
        if name is not None and name not in DTYPES:
            raise InputError(f"{key}: expected one of {', '.join(DTYPES)}, got {value!r}.")
        found[key] = name
    if found["out_dtype"] is None:
        return found["dtype"]
    if found["dtype"] not in (None, found["out_dtype"]):
        notes.append("dtype: ignored, for members are not rounded before they are merged")
    return found["out_dtype"]


def _layer_count(config: Any) -> int | None:
    counts = [config.get(key) for key in LAYER_COUNTS] if isinstance(config, dict) else []
    return next((count for count in counts if isinstance(count, int)), None)


def _check_layers(path: str, expected: int) -> list[str]:
    file = Path(path, "config.json")
    count = _layer_count(read_json(file)) if file.is_file() else None
    if count is None:
        return [
            f"layer_range: [0, {expected}] is taken for all layers of {path}, which does not say how many it has"
        ]
    if count != expected:
        raise InputError(
            f"slices[0].sources: expected all {count} layers of {path}, got [0, {expected}]: slices that cut or "
            "reorder layers are not supported."
        )
    return []


def _layers(path: str) -> dict[str, int]:
    """The lists of layers of a model, such as ``model.layers.``, and how many each has."""
    with open_weights(path, framework="numpy") as theta:
        names, wanted = list(theta), _layer_count(theta.config)
    found: dict[str, set[int]] = {}
    for name in names:
        if match := re.match(r"((?:[^.]+\.)*?)(\d+)\.", name):
            found.setdefault(match[1], set()).add(int(match[2]))
    counts = {prefix: len(seen) for prefix, seen in found.items() if max(seen) + 1 == len(seen)}
    if wanted is not None:
        counts = {prefix: count for prefix, count in counts.items() if count == wanted}
    if not counts or (wanted is None and len(counts) > 1):
        got = ", ".join(f"{prefix or 'names'} 0 to {max(seen)}" for prefix, seen in found.items()) or "none"
        said = f"{wanted} layers, as its config.json says" if wanted is not None else "one list of layers"
        raise InputError(
            f"expected {said}, among the names of {path}, got {got}. Use filters in place of a list of numbers."
        )
    return counts


# Numbers.


@dataclass(frozen=True)
class _Settings:
    """The parameters in the file, to be turned into arguments of our rules."""

    method: str
    entries: Sequence[_Entry]
    shared: Sequence[tuple[str, Mapping[str, Any]]]
    layers: Callable[[], Mapping[str, int]]
    notes: list[str]

    def read(self) -> dict[str, Any]:
        """The arguments of the rule."""
        if self.method == "slerp":
            return {"t": self._one("t")}
        if self.method == "model_stock":
            rows = self._flag("filter_wise", False)
            if rows:
                self.notes.append(
                    "filter_wise: one ratio per output unit; of tensors with more than two axes mergekit takes one "
                    "per last axis"
                )
            return {"scope": "row" if rows else "tensor", "clamp": False}
        weights = self._each("weight")
        normalize = self._flag("normalize", self.method in ("linear", "ties"))
        negative = any(number < 0 for weight in weights for number in _numbers(weight))
        if self.method == "linear":
            return {"coefficients": weights, "normalize": normalize, "extrapolate": negative}
        scale = self._one("lambda", 1.0)
        if not isinstance(scale, float):
            raise InputError(
                "lambda: expected one number for all tensors. Multiply the weights by it instead."
            )
        if self.method == "task_arithmetic":
            return {"coefficients": self._normalized(weights) if normalize else weights, "scale": scale}
        if normalize and negative:
            raise InputError(
                "weight: expected none below 0 with normalize: mergekit then divides by a sum that may be near 0. "
                "Write normalize: false, or weights of at least 0."
            )
        each = self._each("density", 1.0)
        density = each[0] if isinstance(each[0], float) and all(k == each[0] for k in each) else each
        parameters = {"coefficients": weights, "density": density, "scale": scale, "normalize": normalize}
        return parameters | (self._ties(density) if self.method == "ties" else self._dare(density))

    def _ties(self, density: Any) -> dict[str, Any]:
        if density != 1.0:  # else nothing is trimmed, and there is nothing to rescale
            if self._flag("rescale", False):
                raise InputError(
                    "rescale: is not supported for ties. Delete it, or use dare_ties, which drops at random."
                )
            self.notes.append("density: rounded up to whole entries of a tensor; mergekit rounds down")
        return {"scope": "tensor"}

    def _dare(self, density: Any) -> dict[str, Any]:
        if density != 1.0:
            self.notes.append(
                "density: other entries are dropped than by mergekit, which takes them from torch's random state"
            )
        # mergekit restores the sum of magnitudes of each tensor; divided by the density as published it never is.
        return {"rescale": "l1" if self._flag("rescale", True) else None}

    def _normalized(self, weights: Sequence[Setting]) -> list[float]:
        numbers = [weight for weight in weights if isinstance(weight, float)]
        if len(numbers) < len(weights):
            raise InputError(
                "normalize: task_arithmetic with weights that differ from tensor to tensor cannot be "
                "normalised. Write weights that sum to 1, or merge with linear."
            )
        total = math.fsum(numbers)
        if abs(total) < 1e-8:
            raise InputError(f"weight: expected a sum other than 0 to divide by (normalize), got {numbers}.")
        return [number / total for number in numbers]

    def _each(self, name: str, default: float | None = None) -> list[Setting]:
        own = [(f"{entry.key}.parameters", entry.parameters) for entry in self.entries]
        return [self._setting(name, [scope, *self.shared], default) for scope in own]

    def _one(self, name: str, default: float | None = None) -> Setting:
        return self._setting(name, self.shared, default)

    def _setting(
        self, name: str, scopes: Sequence[tuple[str, Mapping[str, Any]]], default: float | None
    ) -> Setting:
        """What the nearest scope says, and for tensors on which it has no word the next one."""
        pairs: list[list[Any]] = []
        good, range_ = RANGES.get(name, (math.isfinite, ""))
        for key, given in scopes:
            if name in given:
                found = self._pairs(given[name], f"{key}.{name}")
                for _, number in found:
                    if not good(number):
                        raise InputError(f"{key}.{name}: expected {range_}, got {number:g}.")
                pairs += found
        if default is not None:
            pairs.append(["", default])
        if not pairs and scopes[0][0] == "base_model.parameters":
            raise InputError(
                f"parameters.{name}: missing; linear counts the base model as a member, which needs one. Write it, "
                "or delete base_model."
            )
        if not pairs:
            raise InputError(f"{scopes[0][0]}.{name}: missing; {self.method} needs it.")
        end = next((i for i, (pattern, _) in enumerate(pairs) if pattern == ""), len(pairs))
        return pairs[: end + 1] if end else float(pairs[0][1])

    def _pairs(self, value: Any, key: str) -> list[list[Any]]:
        if isinstance(value, dict):
            value = [value]
        if not isinstance(value, list) or not any(isinstance(item, dict) for item in value):
            return self._gradient(value, "", key)
        pairs = []
        for i, item in enumerate(value):
            where = f"{key}[{i}]"
            known = _mapping(item, where, ("filter", "value"))
            if "value" not in known:
                raise InputError(f"{where}.value: missing.")
            part = _text(known.get("filter"), f"{where}.filter", optional=True, empty=True) or ""
            pairs += self._gradient(known["value"], "" if part == "*" else part, f"{where}.value")
        return pairs

    def _gradient(self, value: Any, part: str, key: str) -> list[list[Any]]:
        """Pairs for the tensors whose names hold ``part``: one, or one per layer and one for what is in none."""
        if not isinstance(value, list):
            return [[re.escape(part), _number(value, key)]]
        if not value:
            raise InputError(f"{key}: expected numbers, got an empty list.")
        ends = [_number(end, f"{key}[{i}]") for i, end in enumerate(value)]
        if len(ends) == 1:
            return [[re.escape(part), ends[0]]]
        try:
            layers = self.layers()
        except InputError as error:
            raise InputError(f"{key}: a list of numbers is interpolated over the layers: {error}") from error
        hold = f"(?=.*{re.escape(part)})" if part else ""
        pairs: list[list[Any]] = [
            [f"^{hold}{re.escape(f'{prefix}{i}.')}", _between(ends, i, count)]
            for prefix, count in layers.items()
            for i in range(count)
        ]
        return [*pairs, [re.escape(part), ends[0]]]

    def _flag(self, name: str, default: bool) -> bool:
        for key, given in self.shared:
            if name in given:
                if given[name] not in (True, False):
                    raise InputError(f"{key}.{name}: expected true or false, got {given[name]!r}.")
                return bool(given[name])
        return default


def _between(ends: Sequence[float], layer: int, count: int) -> float:
    """The value of a layer where the ends lie at equal distances from the first layer to the last."""
    if count == 1:
        return ends[-1]  # an only layer is the last one, not the first, in mergekit
    place, rest = divmod(layer * (len(ends) - 1), count - 1)
    if rest == 0:
        return ends[place]
    return (ends[place] * (count - 1 - rest) + ends[place + 1] * rest) / (count - 1)


def _numbers(setting: Setting) -> list[float]:
    return [setting] if isinstance(setting, float) else [number for _, number in setting]


def _number(value: Any, key: str) -> float:
    if isinstance(value, str):  # 1e-3 is a text in YAML 1.1; mergekit takes it for the number
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{key}: expected a number, got {value!r}.")
    return float(value)


# Keys and values.


def _mapping(value: Any, key: str, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{key + ': ' if key else ''}expected keys such as {known[0]}, got {value!r:.60}.")
    for name in value:
        if name not in known:
            hint = _near(name, known) or f" Known keys are {', '.join(known)}."
            if name in PARAMETERS and "parameters" in known:
                hint = " It belongs below parameters."
            raise InputError(f"{key + '.' if key else ''}{name}: unknown key.{hint}")
    return value


def _parameters(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    given = values.get("parameters")
    return {} if given is None else _mapping(given, f"{key + '.' if key else ''}parameters", PARAMETERS)


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{key}: expected a list, got {value!r:.60}.")
    return value


def _text(value: Any, key: str, *, optional: bool = False, empty: bool = False) -> str | None:
    if value is None and optional:
        return None
    if not isinstance(value, str) or not (value or empty):
        raise InputError(f"{key}: expected a text, got {value!r:.60}.")
    return value


def _near(name: Any, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


# YAML.


def _load(path: Path) -> Any:
    """The value of a YAML file from a stranger: numbers, texts, lists and mappings, and nothing else."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"expected a YAML file, got none that can be read: {error.strerror}.") from error
    if len(content) > LARGEST:
        raise InputError(
            f"expected a YAML file of at most {LARGEST} bytes, got more. Is it a file of weights?"
        )
    import yaml  # type: ignore[import-untyped]

    try:
        return _Yaml(content.decode()).document()
    except UnicodeDecodeError as error:
        raise InputError(f"expected text in UTF-8, got other bytes: {error}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise InputError(f"{where}not YAML: {getattr(error, 'problem', None) or error}.") from error


class _Yaml:
    """Builds values while the events come in, so that nothing is built from what must be refused."""

    def __init__(self, text: str) -> None:
        import yaml

        self.yaml, self.loader = yaml, yaml.SafeLoader(text)
        self.anchors: dict[str, Any] = {}
        self.aliases = 0

    def document(self) -> Any:
        """The one document in the text."""
        self.loader.get_event()
        if self.loader.check_event(self.yaml.StreamEndEvent):
            raise InputError("expected keys such as merge_method, got an empty file.")
        self.loader.get_event()
        value = self._value(0)
        self.loader.get_event()
        if not self.loader.check_event(self.yaml.StreamEndEvent):
            raise InputError("expected one document, got several (---).")
        return value

    def _value(self, depth: int) -> Any:
        event = self.loader.get_event()
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, self.yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MOST_ALIASES:
                raise InputError(f"{line}: expected at most {MOST_ALIASES} aliases, got more.")
            if event.anchor not in self.anchors:
                raise InputError(f"{line}: there is no anchor &{event.anchor:.60} before this alias.")
            return self.anchors[event.anchor]
        if event.tag is not None:
            raise InputError(f"{line}: expected no tags, got {event.tag:.60}. Write the plain value.")
        if depth > DEEPEST:
            raise InputError(f"{line}: expected at most {DEEPEST} levels, got more.")
        if isinstance(event, self.yaml.ScalarEvent):
            value = self._scalar(event, line)
        elif isinstance(event, self.yaml.SequenceStartEvent):
            value = self._sequence(depth)
        else:
            value = self._keys(depth)
        if event.anchor is not None:  # after its content, which thus cannot hold itself
            self.anchors[event.anchor] = value
        return value

    def _sequence(self, depth: int) -> list[Any]:
        items = []
        while not self.loader.check_event(self.yaml.SequenceEndEvent):
            items.append(self._value(depth + 1))
        self.loader.get_event()
        return items

    def _keys(self, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not self.loader.check_event(self.yaml.MappingEndEvent):
            line = f"line {self.loader.peek_event().start_mark.line + 1}"
            key = self._value(depth + 1)
            if not isinstance(key, str) or key == "<<":
                raise InputError(f"{line}: expected a text as a key, got {key!r:.60}.")
            if key in values:
                raise InputError(f"{line}: the key {key[:60]!r} is there twice.")
            values[key] = self._value(depth + 1)
        self.loader.get_event()
        return values

    def _scalar(self, event: Any, line: str) -> Any:
        tag = self.loader.resolve(self.yaml.ScalarNode, event.value, event.implicit)
        if tag.rpartition(":")[2] not in ("null", "bool", "int", "float"):
            return event.value  # dates too are texts here
        try:
            if len(event.value) > LONGEST_NUMBER:
                raise ValueError
            return self.loader.construct_object(self.yaml.ScalarNode(tag, event.value, event.start_mark))
        except ValueError:
            raise InputError(f"{line}: expected a number, got {event.value[:60]!r}.") from None
