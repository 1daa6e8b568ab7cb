"""What a merge will do, decided from names, dtypes and shapes before any tensor is read.

Each name of the output is one of four: a float tensor, which the rule combines; an integer tensor, which has no
average and follows a policy; an alias (tied weights), written once and named twice; or a float tensor of which
some members hold more rows than others, as after adding words to a vocabulary.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from mirepoix.checkpoints._tensors import CODES, DTYPES
from mirepoix.merging._inputs import FLOAT8, Source, is_float
from mirepoix.types import InputError

__all__ = ["Names", "Plan", "Planned", "out_code", "plan_merge"]

Names: TypeAlias = Literal["strict", "intersection", "union"]

INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})
"""What follows the policy for integers; anything else that is no float is refused."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the output.

    Attributes:
        name: Its name.
        code: Its dtype, as a code of safetensors.
        shape: Its shape.
        members: Numbers of the members that hold it.
        base: Whether the base holds it.
        rows: Rows of the base and of every member that holds it, where they differ.
        run: Names of a row of tensors that lie one after another wherever they are and are merged as one, of
            which this is the first, with the shape of all.
    """

    name: str
    code: str
    shape: tuple[int, ...]
    members: tuple[int, ...]
    base: bool
    rows: tuple[int, ...] | None = None
    run: tuple[str, ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether the rule combines it."""
        return is_float(self.code)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def common(self) -> int:
        """Number of entries that all have: those of the smallest number of rows."""
        return self.size if not self.rows or not self.size else self.size // self.shape[0] * min(self.rows)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * DTYPES[self.code][1]


@dataclass(frozen=True)
class Plan:
    """All tensors of the output, in the order of the first member, and the names that are tied."""

    tensors: dict[str, Planned]
    aliases: dict[str, str]
    notes: list[str] = field(default_factory=list)


def plan_merge(
    sources: Sequence[Source],
    base: Source | None,
    *,
    names: Names = "strict",
    dtype: str | None = None,
    rows: bool = False,
    untie: bool = False,
    upcast: bool = False,
) -> Plan:
    """Decide, or raise `InputError` with the member, the name and what would allow it."""
    if names not in get_args(Names):
        raise InputError(f"names: expected one of {', '.join(get_args(Names))}, got {names!r}.")
    out = out_code(dtype)
    everything = list(dict.fromkeys(name for source in sources for name in source.names))
    aliases = {} if untie else _common_aliases(everything, sources, base)
    chosen = [name for name in everything if name not in aliases]
    notes = []
    dropped: list[str] = []
    if names == "strict":
        for source in [*sources[1:], *([base] if base is not None else [])]:
            _check_names(sources[0], source, aliases, untie)
    elif names == "intersection":
        everyone = [*sources, *([base] if base is not None else [])]
        dropped = [name for name in chosen if not all(_holds(source, name, untie) for source in everyone)]
        chosen = [name for name in chosen if name not in set(dropped)]
        if dropped:
            notes.append(f"{len(dropped)} names that not all members hold were left out: {_some(dropped)}")
    else:
        partial = [name for name in chosen if not all(_holds(source, name, untie) for source in sources)]
        if partial:
            notes.append(
                f"{len(partial)} names were merged from the members that hold them: {_some(partial)}"
            )
    if not chosen:
        raise InputError(
            f"{sources[0].label}: shares no name with the other members, so nothing can be merged."
        )
    tensors = {
        name: _planned(name, sources, base, out=out, rows=rows, untie=untie, upcast=upcast) for name in chosen
    }
    kept = {name: aliases[name] for name in everything if aliases.get(name) in tensors}
    assert {*tensors, *kept} == {name for name in everything if aliases.get(name, name) not in dropped}
    widened = _widened(tensors.values(), sources) if out is None else None
    if widened:
        warnings.warn(widened, stacklevel=4)
    return Plan(tensors, kept, notes)


def out_code(dtype: str | None) -> str | None:
    """The code of a dtype asked for by name.

    Raises:
        InputError: If it is not a float dtype that can be written.
    """
    if dtype is None:
        return None
    short = {
        "f64": "float64",
        "f32": "float32",
        "f16": "float16",
        "fp16": "float16",
        "fp32": "float32",
        "bf16": "bfloat16",
    }
    name = short.get(dtype, dtype)
    if name not in ("float64", "float32", "float16", "bfloat16"):
        raise InputError(f"dtype: expected float64, float32, float16 or bfloat16, got {dtype!r}.")
    return CODES[name]


# Names.


def _common_aliases(
    everything: Sequence[str], sources: Sequence[Source], base: Source | None
) -> dict[str, str]:
    """Names tied in any member, each with the name to write.

    That is the one that the first member that ties them writes, if all hold it, else the first that all hold.
    Where a member holds several names of a group apart, they must hold the same values.
    """
    everyone = [*sources, *([base] if base is not None else [])]
    found: dict[str, str] = {}
    for group, by in _tied_groups(everyone):
        ordered = [name for name in everything if name in group]
        holders = [source for source in everyone if any(name in source for name in ordered)]
        for source in holders:
            first, *others = (name for name in ordered if name in source)
            for name in others:
                if not _same(source, first, name):
                    raise InputError(
                        f"{source.label}: {first!r} and {name!r} differ, but {by.label} holds them as one tensor "
                        "(tied weights). Pass untie=True (--untie) to merge them apart."
                    )
        shared = [name for name in ordered if all(name in source for source in holders)]
        if ordered and not shared:
            raise InputError(
                f"{_some(sorted(group))} are one tensor (tied weights), with no name that all members hold. "
                "Write them again with the same names, or give rename= (--rename)."
            )
        target = next((name for name in by.tied.values() if name in shared), shared[0] if shared else None)
        found |= {name: target for name in ordered if target is not None and name != target}
    return found


def _tied_groups(everyone: Sequence[Source]) -> list[tuple[set[str], Source]]:
    """Names that are one tensor, directly or through others, and the first member that says so."""
    groups: list[tuple[set[str], Source]] = []
    for source in everyone:
        for pair in source.tied.items():
            if not any(pair[0] in other for other in everyone):
                continue  # tied by configuration, and written once by all: nothing to do
            joined = [(group, by) for group, by in groups if not group.isdisjoint(pair)]
            groups = [known for known in groups if known not in joined]
            by = joined[0][1] if joined else source
            groups.append(({*pair, *(name for group, _ in joined for name in group)}, by))
    return groups


def _same(source: Source, a: str, b: str) -> bool:
    """Whether two names of a member hold the same values."""
    if source.tied.get(a, a) == source.tied.get(b, b):
        return True
    kinds = [(source.code(name), source.shape(name)) for name in (a, b)]
    return kinds[0] == kinds[1] and source.bytes(a) == source.bytes(b)


def _holds(source: Source, name: str, untie: bool) -> bool:
    return name in source or (untie and name in source.tied)


def _check_names(first: Source, source: Source, aliases: Mapping[str, str], untie: bool) -> None:
    both = [name for name in dict.fromkeys([*first.names, *source.names]) if name not in aliases]
    ours = [name for name in both if _holds(first, name, untie)]
    theirs = [name for name in both if _holds(source, name, untie)]
    a, b = set(ours), set(theirs)
    if a == b:
        return
    sides = [
        f"{len(only)} only in {owner.label}: {_some(only)}"
        for owner, only in (
            (first, [n for n in ours if n not in b]),
            (source, [n for n in theirs if n not in a]),
        )
        if only
    ]
    advice = (
        "Members need the same architecture and the same head. Names can be changed with rename={'pattern': "
        "'replacement'} (--rename), or merged where shared with names='intersection' (--names intersection)."
    )
    for prefix in ("module.", "_orig_mod.", "model.", "backbone."):
        if {name.removeprefix(prefix) for name in a} == {name.removeprefix(prefix) for name in b}:
            advice = f"They agree without the prefix {prefix!r}: rename={{'^{prefix}': ''}} (--rename '^{prefix}=')."
    raise InputError(
        f"{first.label} and {source.label} cannot be merged: names differ, {'; '.join(sides)}. {advice}"
    )


# Dtypes and shapes.


def _planned(
    name: str,
    sources: Sequence[Source],
    base: Source | None,
    *,
    out: str | None,
    rows: bool,
    untie: bool,
    upcast: bool,
) -> Planned:
    holders = tuple(i for i, source in enumerate(sources) if _holds(source, name, untie))
    in_base = base is not None and _holds(base, name, untie)
    owners = [*([base] if in_base and base is not None else []), *(sources[i] for i in holders)]
    codes = [source.code(name) for source in owners]
    shapes = [source.shape(name) for source in owners]
    for source, code in zip(owners, codes, strict=True):
        if code.startswith("C"):
            raise InputError(
                f"{source.label}: {name!r} is {DTYPES[code][0]}. Split it into real and imaginary part."
            )
        if code in FLOAT8 and not upcast:
            raise InputError(
                f"{source.label}: {name!r} is {DTYPES[code][0]}, whose values may need the scales of the checkpoint. "
                "Dequantise it first, or pass upcast=True (--upcast) if its values are as stored."
            )
        if not is_float(code) and code not in INTEGERS:
            raise InputError(
                f"{source.label}: {name!r} is {DTYPES[code][0]}, which is neither averaged nor an integer. "
                "Dequantise it first."
            )
    kinds = {is_float(code) for code in codes}
    if len(kinds) > 1 or (kinds == {False} and len(set(codes)) > 1):
        i = next(i for i, code in enumerate(codes) if code != codes[0])
        raise InputError(
            f"{name!r} is {DTYPES[codes[0]][0]} in {owners[0].label} and {DTYPES[codes[i]][0]} in {owners[i].label}. "
            "Convert it to the dtype that the network declares."
        )
    member_codes = codes[1:] if in_base else codes
    code = codes[0] if kinds == {False} else out or _widest(member_codes)
    if len(set(shapes)) == 1:
        return Planned(name, code, shapes[0], holders, in_base)
    i = next(i for i, shape in enumerate(shapes) if shape != shapes[0])
    differ = f"{name!r} has shape {shapes[0]} in {owners[0].label} and {shapes[i]} in {owners[i].label}"
    if kinds == {True} and all(shape and shape[1:] == shapes[0][1:] for shape in shapes):
        if rows:
            most = max(shape[0] for shape in shapes[1 if in_base else 0 :])
            return Planned(
                name, code, (most, *shapes[0][1:]), holders, in_base, tuple(shape[0] for shape in shapes)
            )
        raise InputError(
            f"{differ}: the number of rows differs. For vocabularies that grew at their end pass rows=True (--rows): "
            "common rows are merged, the others copied. A head of other classes must be replaced first."
        )
    raise InputError(
        f"{differ}. Members need the same architecture and the same head; attach one with `with_head(theta, head)`."
    )


def _widest(codes: Iterable[str]) -> str:
    order = ("F16", "BF16", "F32", "F64")
    found = {"BF16" if code in FLOAT8 else code for code in codes}
    if {"F16", "BF16"} <= found:
        found.add("F32")
    return max(found, key=order.index)


def _widened(tensors: Iterable[Planned], sources: Sequence[Source]) -> str | None:
    found = []
    for planned in tensors:
        if planned.is_float and planned.rows is None:
            codes: dict[str, str] = {}
            for i in planned.members:
                if planned.name in sources[i]:
                    codes.setdefault(sources[i].code(planned.name), sources[i].label)
            if len(codes) > 1:
                both = " and ".join(f"{DTYPES[code][0]} in {label}" for code, label in codes.items())
                found.append(f"{planned.name!r} is {both}, and {DTYPES[planned.code][0]} in the result")
    if not found:
        return None
    more = f" (and {len(found) - 1} more such differences)" if len(found) > 1 else ""
    return f"dtypes differ: {found[0]}{more}. Name the dtype of the result (dtype=, --dtype) to silence this."


def _some(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
