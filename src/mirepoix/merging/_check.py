"""Can these weights be averaged? Decided from names, dtypes and shapes, before anything large is read.

What a person needs is the file at fault, not a list of pairs. So files are sorted into groups of equal structure;
where one group is larger than every other, its structure is the expected one, and each other file is described
by how it differs from that. Everything is looked at and everything found is reported: nothing here stops at the
first problem.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import warnings as python_warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mirepoix.checkpoints._tensors import DTYPES
from mirepoix.merging._inputs import FLOAT8, Source, is_float, open_source
from mirepoix.merging._lora_adapter import LoraAdapter, some
from mirepoix.merging._merge import CHUNK
from mirepoix.merging._plan import EMBEDDINGS, HEADS, _tied, plan_merge
from mirepoix.types import InputError

__all__ = ["Check", "Fault", "check_files", "find_head", "is_statistic", "nonfinite", "size_text"]

SMALL = 64 * 1024
"""Bytes of integer tensors that are read of each file; larger ones are left to the merge."""

MEMORY = 40_000_000 + 2 * 3 * CHUNK * 8
"""Bytes: interpreter, NumPy and headers, and the pieces of two workers."""

STEP = 1 << 20
"""Entries that are looked at together."""

HEAD = re.compile(
    r"(^|\.)(fc|classifier|heads?|lm_head|score|logits|output|last_linear)(\.(\d+|fc|head|out_proj))?\.(weight|bias)"
)
STATISTIC = re.compile(r"(^|\.)(running_mean|running_var)")
QUANTISED = re.compile(r"\.(qweight|qzeros|absmax|quant_map|SCB|quant_state\..+|weight_scale(_inv)?)")

SETTINGS = (
    "model_type", "architectures", "num_attention_heads", "num_key_value_heads", "head_dim", "rope_theta",
    "rope_scaling", "hidden_act", "layer_norm_eps", "rms_norm_eps", "patch_size", "image_size",
)  # fmt: skip
"""What changes a network and no shape."""

Structure: TypeAlias = dict[str, tuple[str, tuple[Any, ...]]]
"""Kind and shape of each tensor by name."""

Progress: TypeAlias = Callable[[int, int], None]


class Fault(NamedTuple):
    """Why weights cannot be averaged.

    Attributes:
        member: The file, or None where it is all of them together.
        what: What is wrong with it.
        advice: What to do about it.
    """

    member: str | None
    what: str
    advice: str


@dataclass(frozen=True, slots=True)
class Check:
    """Whether weights can be averaged.

    Attributes:
        ok: Whether they can.
        verdict: The same in a sentence.
        faults: All that is in the way, by file.
        warnings: What is not, but may change the result.
        facts: What was seen: tensors, dtypes, start, bytes to read and to write.
    """

    ok: bool
    verdict: str
    faults: tuple[Fault, ...]
    warnings: tuple[str, ...]
    facts: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self) | {"faults": [fault._asdict() for fault in self.faults]}


def check_files(
    paths: Sequence[str | os.PathLike[str]],
    *,
    base: str | os.PathLike[str] | None = None,
    finite: bool = False,
    rows: bool = False,
    container: str | None = None,
    progress: Progress | None = None,
) -> Check:
    """Whether files of weights can be averaged, and if not, which of them are at fault.

    Reads what names the tensors, small integer tensors, and the records and settings beside the files; the weights
    themselves only if ``finite``. What it finds in order, `merge_files` does not refuse by its structure. It cannot
    tell that an average is any good: for that the members must share a start, and the loss along the line between
    them must stay low (`mirepoix.landscape.connect`).

    Args:
        paths: Two or more files, folders of models or folders of adapters; or one, with a base.
        base: The common start, for the rules that need it.
        finite: Whether to read all values and look for NaN and infinity.
        rows: Allow tensors that differ in their number of rows, as vocabularies do.
        container: Which container of torch files to take, where they have several.
        progress: Called with the bytes read and in all, while values are read.

    Raises:
        InputError: If there are too few paths, nothing is at one of them, or no file at all can be opened.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import numpy as np
        >>> from mirepoix.checkpoints import write_weights
        >>> with TemporaryDirectory() as folder:
        ...     files = [Path(folder, name) for name in ("a.safetensors", "b.safetensors")]
        ...     for rows, file in enumerate(files, start=2):
        ...         _ = write_weights(file, {"fc.weight": np.ones((rows, 4))})
        ...     check = check_files(files)
        >>> check.ok, check.faults[0].what.split(",")[0]
        (False, 'has a head of 3 rows')
    """
    if isinstance(paths, str | os.PathLike):
        raise InputError(f"paths: expected a list of files, got {os.fspath(paths)!r}. Put it in a list.")
    labels = [os.fspath(path) for path in paths]
    everyone = labels if base is None else [*labels, os.fspath(base)]
    if not labels or len(everyone) < 2:
        raise InputError(
            f"check: expected two or more files of weights, or one and its base, got {len(labels)}. "
            "One file by itself is shown by `mirepoix inspect`."
        )
    missing = [label for label in everyone if not os.path.exists(label)]
    if missing:
        raise InputError(
            f"{missing[0]}: expected weights, got nothing there"
            f"{f', nor at {len(missing) - 1} other paths' if missing[1:] else ''}. Check the path."
        )
    found = _Findings()
    sources = _open(labels, container, found)
    start = None if base is None else open_source(os.fspath(base), os.fspath(base), container=container)
    opened = [*sources, *([start] if start is not None else [])]
    try:
        _compare_paths(sources, found)
        adapters = [source for source in sources if _is_adapter(source)]
        if len(adapters) * 2 > len(sources):
            members = adapters
            dense = [source for source in sources if source not in adapters]
            for source in dense:
                found.fault(source, "is a whole model, the others are LoRA adapters", "Leave it out.")
            _check_adapters(members, start, found)
        else:
            members = [source for source in sources if source not in adapters]
            for source in adapters:
                found.fault(
                    source,
                    "is a LoRA adapter, the others are whole models",
                    f"Merge it into its base first: mirepoix soup {source.label} --lora dense --base BASE -o "
                    "merged.safetensors.",
                )
            if members:
                _check_models(members, start, rows, finite, found)
        if finite:
            _check_finite(opened, found, progress)
        found.facts["bytes_to_read"] = sum(_nbytes(source) for source in opened)
        _check_room(found)
    finally:
        for source in opened:
            source.close()
    return Check(
        not found.faults,
        _verdict(labels, found.faults, bool(adapters)),
        tuple(found.faults),
        tuple(found.warnings),
        found.facts,
    )


@dataclass
class _Findings:
    """What is found on the way."""

    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def fault(self, source: Source | None, what: str, advice: str) -> None:
        self.faults.append(Fault(None if source is None else source.label, what, advice))


def _open(labels: Sequence[str], container: str | None, found: _Findings) -> list[Source]:
    """The members that can be opened; the others are faults, unless there is none to compare with."""
    sources, errors = [], []
    for label in labels:
        try:
            sources.append(open_source(label, label, container=container))
        except InputError as error:
            errors.append(str(error))
            what = str(error).removeprefix(f"{label}: ")
            found.faults.append(Fault(label, what, "Replace it, or leave it out."))
        except OSError as error:
            errors.append(f"{label}: cannot be read: {error.strerror}.")
            found.faults.append(
                Fault(label, f"cannot be read: {error.strerror}", "Change its permissions, or leave it out.")
            )
    if not sources:
        raise InputError("\n".join(dict.fromkeys(errors)))
    found.facts["files"] = len(labels)
    return sources


def _compare_paths(sources: Sequence[Source], found: _Findings) -> None:
    counts = Counter(_file_key(source) for source in sources)
    for source in {_file_key(source): source for source in sources}.values():
        if (count := counts[_file_key(source)]) > 1:
            found.warnings.append(f"{source.label} is given {count} times, and counts {count} times.")


def _file_key(source: Source) -> Hashable:
    assert source.checkpoint is not None
    return tuple(os.path.realpath(file) for file in source.checkpoint.files)


def _nbytes(source: Source) -> int:
    assert source.checkpoint is not None
    return source.checkpoint.nbytes


def _config(source: Source) -> dict[str, Any]:
    return getattr(source.checkpoint, "config", None) or {}


def _is_adapter(source: Source) -> bool:
    return "peft_type" in _config(source) or any(".lora_" in name for name in source.names)


def _verdict(labels: Sequence[str], faults: Sequence[Fault], adapters: bool) -> str:
    several = len(labels) != 1
    noun = ("adapter" if adapters else "file") + ("s" if several else "")
    if not faults:
        return f"{len(labels)} {noun} can be {'averaged' if several else 'merged with the base'}."
    guilty = list(dict.fromkeys(fault.member for fault in faults if fault.member is not None))
    rest = len([label for label in labels if label not in guilty])
    begin = f"{len(labels)} {noun} cannot be {'averaged' if several else 'merged with the base'}: "
    if not guilty or not rest:
        return begin + ("see below." if not guilty else "no file is without fault.")
    does = "do" if len(guilty) > 1 else "does"
    end = f" Without {'them' if len(guilty) > 1 else 'it'}, {rest} can." if rest > 1 else ""
    return begin + f"{_listed(guilty)} {does} not fit." + (end if None not in _members(faults) else "")


def _members(faults: Iterable[Fault]) -> set[str | None]:
    return {fault.member for fault in faults}


# Whole models.


def _check_models(
    sources: Sequence[Source], base: Source | None, rows: bool, finite: bool, found: _Findings
) -> None:
    everyone = [*sources, *([base] if base is not None else [])]
    before = len(found.faults)
    tied = _check_ties(everyone, finite, found)
    _check_kinds(everyone, found)
    reference = _check_structure(sources, base, tied, rows, found)
    _describe(reference, tied, found)
    _check_dtypes(sources, found)
    _check_integers(everyone, tied, finite, found)
    _check_start(sources, base, found)
    _check_settings(sources, found)
    _check_classes(sources, found)
    if len(found.faults) > before:
        return
    # The judge is the plan that a merge makes; a merge reads the values that decide about ties.
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")  # of mixed dtypes, said above for all files
            plan = plan_merge(sources, base, rows=rows, untie=bool(found.facts.get("tied_in_some")))
    except InputError as error:
        found.fault(None, str(error), "")
        return
    found.facts["result_bytes"] = sum(planned.nbytes for planned in plan.tensors.values())
    found.facts["result_dtypes"] = dict(
        Counter(DTYPES[planned.code][0] for planned in plan.tensors.values() if planned.is_float)
    )
    found.facts["memory_bytes"] = MEMORY
    different = [planned for planned in plan.tensors.values() if planned.rows is not None]
    for planned in different:
        held = planned.rows or ()
        found.warnings.append(
            f"{planned.name!r} has {min(held)} to {max(held)} rows: the first {min(held)} are averaged, the others "
            "copied from the first file that has most."
        )


def _check_ties(sources: Sequence[Source], finite: bool, found: _Findings) -> dict[str, str]:
    """Names that repeat another in one of the files, and need not be in the others."""
    tied = [_tied(source) for source in sources]
    repeats = {
        name: target
        for each in tied
        for name, target in each.items()
        if any(name in source for source in sources)
    }
    mixed = []
    for name, target in repeats.items():
        for source, each in zip(sources, tied, strict=True):
            if each.get(name) == target or name not in source or target not in source:
                continue
            mixed.append(name)
            if finite and source.bytes(name) != source.bytes(target):
                found.fault(
                    source,
                    f"holds other values in {name!r} than in {target!r}, which are one tensor in other files (tied)",
                    "Pass untie=True (--untie) to average them apart.",
                )
            elif not finite:
                found.warnings.append(
                    f"{source.label} holds {name!r} and {target!r} twice, other files once (tied). A merge takes them "
                    "for one if they are equal, and refuses otherwise; --untie averages them apart."
                )
    if repeats:
        found.facts["aliases"] = repeats
    if mixed:
        found.facts["tied_in_some"] = sorted(set(mixed))
    return repeats


def _check_kinds(sources: Sequence[Source], found: _Findings) -> None:
    """Tensors that have no average as they are stored."""
    for source in sources:
        by_kind: dict[str, list[str]] = {}
        for name in source.names:
            code = source.code(name)
            weights = name.endswith("weight") and len(source.shape(name)) > 1
            if code.startswith(("F8", "C")):
                by_kind.setdefault(DTYPES[code][0], []).append(name)
            elif QUANTISED.search(name) or (weights and not is_float(code)):
                by_kind.setdefault("quantised", []).append(name)
        if "quantization_config" in _config(source):
            by_kind.setdefault("quantised", [])
        for kind, names in by_kind.items():
            where = f"{len(names)} tensors ({some(names, 3)})" if names else "its config.json"
            if kind == "quantised":
                found.fault(
                    source, f"is quantised: {where}", "Dequantise it first, or take it as it was before."
                )
            elif kind.startswith("complex"):
                found.fault(source, f"holds {kind} in {where}", "Split them into real and imaginary part.")
            else:
                known = "" if any(DTYPES[code][0] == kind for code in FLOAT8) else " to float16 or wider"
                found.fault(
                    source,
                    f"holds {kind} in {where}, whose values may need scales",
                    f"Dequantise it first{known}"
                    + ("." if known else ", or merge its stored values with upcast=True (--upcast)."),
                )


def _structure(source: Source, leave_out: Mapping[str, str], rows: bool = False) -> Structure:
    structure: Structure = {}
    for name in source.names:
        if name in leave_out:
            continue
        code, shape = source.code(name), source.shape(name)
        kind = "float" if is_float(code) or code.startswith(("F8", "C")) else DTYPES[code][0]
        if rows and kind == "float" and shape:
            structure[name] = kind, ("any", *shape[1:])
        else:
            structure[name] = kind, shape
    return structure


def _check_structure(
    sources: Sequence[Source], base: Source | None, tied: Mapping[str, str], rows: bool, found: _Findings
) -> Source:
    """Compare names, kinds and shapes; returns a member that is as expected."""
    structures = {id(source): _structure(source, tied, rows) for source in sources}
    usual, who = _usual(sources, lambda source: frozenset(structures[id(source)].items()))
    reference = usual[0]
    for source in sources:
        for what, advice in _differences(structures[id(source)], structures[id(reference)], who):
            found.fault(source, what, advice)
    if base is not None:
        others = "the members" if len(usual) == len(sources) else who
        for what, advice in _differences(_structure(base, tied, rows), structures[id(reference)], others):
            found.fault(base, f"(the base) {what}", advice)
    return reference


def _usual(sources: Sequence[Source], key: Callable[[Source], Hashable]) -> tuple[list[Source], str]:
    """The largest group of equal members (the first of several), and what to call it."""
    groups: dict[Hashable, list[Source]] = {}
    for source in sources:
        groups.setdefault(key(source), []).append(source)
    ordered = sorted(groups.values(), key=len, reverse=True)
    usual = ordered[0]
    if len(usual) * 2 > len(sources) and len(usual) > 1:
        return usual, f"the other {len(usual)}" if len(ordered) > 1 else "the members"
    more = f" (with {len(usual) - 1} more)" if len(usual) > 1 else ""
    return usual, f"{usual[0].label}{more}"


def _differences(own: Structure, others: Structure, who: str) -> list[tuple[str, str]]:
    """How a structure differs from the expected one, most telling first."""
    if own == others:
        return []
    result = []
    prefix, longer = _prefix(own, others)
    if prefix:
        pattern = "^" + prefix.replace(".", r"\.")
        whose = "its names begin" if longer else f"the names of {who} begin"
        result.append(
            (
                f"has other names: {whose} with {prefix!r}",
                f"Drop it while merging: rename={{{pattern!r}: ''}} (--rename '{pattern}=').",
            )
        )
        if longer:
            own = {name.removeprefix(prefix): kind for name, kind in own.items()}
        else:
            others = {name.removeprefix(prefix): kind for name, kind in others.items()}
    lacks = [name for name in others if name not in own]
    extra = [name for name in own if name not in others]
    if lacks or extra:
        result.append(_name_difference(own, others, lacks, extra, who))
    common = [name for name in own if name in others]
    kinds = [name for name in common if own[name][0] != others[name][0]]
    if kinds:
        first = kinds[0]
        result.append(
            (
                f"holds {_some(kinds)} as {own[first][0]}, {who} as {others[first][0]}",
                "Convert it to the dtype that the network declares.",
            )
        )
    shapes = [name for name in common if own[name][1] != others[name][1] and name not in kinds]
    if shapes:
        result.append(_shape_difference(own, others, shapes, who))
    return result


def _prefix(own: Structure, others: Structure) -> tuple[str, bool]:
    """What all names of one begin with in addition to those of the other, and whether they are its own."""
    for long, short, longer in ((own, others, True), (others, own, False)):
        first = min(short, key=len, default="")
        for name in long:
            if first and name != first and name.endswith(first):
                prefix = name[: -len(first)]
                if {prefix + other for other in short} == long.keys():
                    return prefix, longer
    return "", False


def _name_difference(
    own: Structure, others: Structure, lacks: list[str], extra: list[str], who: str
) -> tuple[str, str]:
    parts = [f"lacks {_some(lacks)}"] if lacks else []
    parts += [f"has {_some(extra)} besides"] if extra else []
    what = " and ".join(parts) + f", unlike {who}"
    both = [*lacks, *extra]
    if all(name.endswith("num_batches_tracked") for name in both):
        return what, "These counters do not matter: pass names='union' (--names union)."
    if lacks and extra and Counter(own[n] for n in extra) == Counter(others[n] for n in lacks):
        old, new = extra[0], next(name for name in lacks if others[name] == own[extra[0]])
        old, new = _shorter(old, new)
        pattern = f"^{re.escape(old)}"
        return what, (
            f"They have the same shapes under other names. If they mean the same, rename them: rename={{{pattern!r}: "
            f"{new!r}}} (--rename '{pattern}={new}')."
        )
    if all(HEAD.search(name) for name in both):
        return what, (
            "Their heads differ. Attach one head to all with `with_head(theta, head)`, or average what all share with "
            "names='intersection' (--names intersection)."
        )
    return what, (
        "Members need one architecture. Rename tensors (rename=, --rename), or average what all share with "
        "names='intersection' (--names intersection)."
    )


def _shorter(old: str, new: str) -> tuple[str, str]:
    """Two names without the end they share, cut at a dot."""
    olds, news = old.split("."), new.split(".")
    while len(olds) > 1 and len(news) > 1 and olds[-1] == news[-1]:
        olds.pop()
        news.pop()
    return ".".join(olds), ".".join(news)


def _shape_difference(own: Structure, others: Structure, names: list[str], who: str) -> tuple[str, str]:
    pairs = [(own[name][1], others[name][1]) for name in names]
    listed = ", ".join(
        f"{name!r} is {a} instead of {b}" for name, (a, b) in list(zip(names, pairs, strict=True))[:3]
    )
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    only_rows = all(a and b and a[1:] == b[1:] for a, b in pairs)
    a, b = next(((a, b) for a, b in pairs if len(a) > 1), pairs[0])
    modules = {name.rpartition(".")[0] for name in names}
    if only_rows and all(name.endswith(EMBEDDINGS) or name in HEADS for name in names):
        return f"has a vocabulary of {a[0]} rows, {who} of {b[0]}: {listed}{more}", (
            "If words were added at the end, pass rows=True (--rows): common rows are averaged, the others copied."
        )
    if only_rows and len(modules) == 1:
        (module,) = modules
        return f"has a head of {a[0]} rows, {who} of {b[0]}: {listed}", (
            "Members need the same classes and the same head to start from: attach one before fine-tuning with "
            f"`with_head(theta, head, prefix='{module}.')`."
        )
    if all(len(a) == 2 and a == b[::-1] for a, b in pairs):
        return f"has {len(names)} tensors transposed, compared with {who}: {listed}{more}", (
            "It was saved by another library: export it with the one that wrote the others."
        )
    count = f"{len(names)} tensors" if len(names) > 1 else "a tensor"
    return f"has {count} of another shape than {who}: {listed}{more}", (
        "It is another architecture or width: leave it out."
    )


def _check_dtypes(sources: Sequence[Source], found: _Findings) -> None:
    """Mixed dtypes are merged, but into what?"""
    codes = {
        id(source): {name: code for name in source.names if is_float(code := source.code(name))}
        for source in sources
    }
    usual, who = _usual(sources, lambda source: frozenset(codes[id(source)].items()))
    expected = codes[id(usual[0])]
    seen: dict[tuple[str, str], dict[tuple[str, ...], list[str]]] = {}
    for source in sources:
        pairs: dict[tuple[str, str], list[str]] = {}
        for name, code in codes[id(source)].items():
            if (other := expected.get(name, code)) != code:
                pairs.setdefault((code, other), []).append(name)
        for pair, names in pairs.items():
            seen.setdefault(pair, {}).setdefault(tuple(names), []).append(source.label)
    for (code, other), groups in seen.items():
        for names, labels in groups.items():
            found.warnings.append(
                f"{_listed(labels)} {'holds' if len(labels) == 1 else 'hold'} {_some(names)} as {DTYPES[code][0]}, "
                f"{who} as {DTYPES[other][0]}: the result takes the wider one. Name its dtype to be sure: dtype= (--dtype)."
            )


def _check_integers(
    sources: Sequence[Source], tied: Mapping[str, str], finite: bool, found: _Findings
) -> None:
    """Integer tensors must be equal, but for the counters of batch norm."""
    names = dict.fromkeys(
        name
        for source in sources
        for name in source.names
        if name not in tied
        and not is_float(source.code(name))
        and source.code(name)[0] in "IUB"
        and not name.endswith("num_batches_tracked")
    )
    unread, left = [], SMALL
    for name in names:
        holders = [source for source in sources if name in source]
        size = max(math.prod(s.shape(name)) * DTYPES[s.code(name)][1] for s in holders)
        if len({(s.code(name), s.shape(name)) for s in holders}) > 1:
            continue  # said already
        if size > left and not finite:
            unread.append(name)
            continue
        left -= min(size, left)
        digests = {id(s): hashlib.blake2b(s.bytes(name)).digest() for s in holders}
        usual, who = _usual(holders, lambda source, d=digests: d[id(source)])  # type: ignore[misc]
        for source in holders:
            if digests[id(source)] != digests[id(usual[0])]:
                found.fault(
                    source,
                    f"holds other integers in {name!r} than {who}",
                    "Integers have no average: pass integers='first' (--integers first) to keep those of the first "
                    "file, or 'max' for the largest.",
                )
    if unread:
        found.facts["unread_integers"] = unread
        found.warnings.append(
            f"{_some(unread)} {'is' if len(unread) == 1 else 'are'} integer and too large to be read here. A merge "
            "refuses them if they differ; --finite reads them now."
        )


def _check_start(sources: Sequence[Source], base: Source | None, found: _Findings) -> None:
    """Members should be fine-tunings of one start; compared where something beside the files tells it."""
    starts: dict[str, dict[str, list[str]]] = {}
    for source in sources:
        made_of = _record(source).get("made_of")
        start = made_of.get("theta") if isinstance(made_of, dict) else None
        name = _config(source).get("_name_or_path")
        for kind, value in (("record", start), ("name", name)):
            if isinstance(value, str) and value:
                starts.setdefault(kind, {}).setdefault(value, []).append(source.label)
    facts: dict[str, Any] = {"known": 0, "same": None, "text": UNKNOWN_START}
    for kind, groups in reversed(starts.items()):
        known = sum(map(len, groups.values()))
        values = [value[:12] if kind == "record" else repr(value) for value in groups]
        whose = f"{known} of {len(sources)} files" if known < len(sources) else "all files"
        if len(groups) == 1:
            told = "one start" if kind == "record" else "one start by name"
            text = f"{told} ({values[0]}) for {whose} that tell" if known < len(sources) else None
            facts = {"known": known, "same": True, "text": text or f"{told} for {whose} ({values[0]})"}
        else:
            listed = "; ".join(
                f"{value} for {_listed(labels)}" for value, labels in zip(values, groups.values(), strict=True)
            )
            facts = {"known": known, "same": False, "text": f"several: {listed}"}
            found.warnings.append(
                f"starts differ: {listed}. An average works where the loss stays low on the line between the members: "
                "try `mirepoix connect A B`."
            )
    found.facts["start"] = facts
    if base is not None and "record" in starts:
        own = _record(base).get("fingerprint")
        if isinstance(own, str) and own not in starts["record"]:
            found.warnings.append(
                f"{base.label} is not the start that the records of the members name: {own[:12]} instead of "
                f"{', '.join(value[:12] for value in starts['record'])}."
            )


UNKNOWN_START = (
    "not told by these files. Members must be fine-tunings of one start, or the average is no better than noise"
)


def _record(source: Source) -> dict[str, Any]:
    try:
        return (source.checkpoint.record if source.checkpoint is not None else None) or {}
    except (InputError, OSError):
        return {}  # a JSON beside a file of weights need not be ours


def _check_settings(sources: Sequence[Source], found: _Findings) -> None:
    """Settings that change the function and no shape."""
    told = [source for source in sources if _config(source)]
    for key in SETTINGS:
        values = {source.label: repr(_config(source)[key]) for source in told if key in _config(source)}
        if len(set(values.values())) > 1:
            groups: dict[str, list[str]] = {}
            for label, value in values.items():
                groups.setdefault(value, []).append(label)
            listed = ", ".join(f"{value} in {_listed(labels)}" for value, labels in groups.items())
            found.warnings.append(
                f"{key} of config.json differs: {listed}. The same weights mean another function then."
            )


def _check_classes(sources: Sequence[Source], found: _Findings) -> None:
    """Rows of a head mean classes, which must be the same in the same order."""

    def classes(source: Source) -> tuple[str, ...] | None:
        labels = _config(source).get("id2label")
        told = list(labels.values()) if isinstance(labels, dict) else _record(source).get("classes")
        return tuple(map(str, told)) if isinstance(told, list) and told else None

    told = [source for source in sources if classes(source)]
    if not told:
        return
    usual, who = _usual(told, classes)
    expected = classes(usual[0]) or ()
    for source in told:
        own = classes(source) or ()
        if len(own) == len(expected) and own != expected:
            i = next(i for i, (a, b) in enumerate(zip(own, expected, strict=True)) if a != b)
            same = "the same classes in another order" if sorted(own) == sorted(expected) else "other classes"
            found.fault(
                source,
                f"has {same}: number {i} is {own[i]!r}, that of {who} {expected[i]!r}",
                "Heads can be averaged only if each row means the same class: attach one head with "
                "`with_head(theta, head)`, or correct the names (id2label, or the record).",
            )


def _describe(source: Source, tied: Mapping[str, str], found: _Findings) -> None:
    """What a member that is as expected consists of."""
    names = [name for name in source.names if name not in tied]
    sizes = {name: math.prod(source.shape(name)) for name in names}
    floats = [name for name in names if is_float(source.code(name))]
    statistics = [name for name in floats if is_statistic(name)]
    found.facts |= {
        "tensors": len(names),
        "weights": len(floats) - len(statistics),
        "parameters": sum(sizes[name] for name in floats) - sum(sizes[name] for name in statistics),
        "statistics": len(statistics),
        "integers": len(names) - len(floats),
        "dtypes": dict(Counter(DTYPES[source.code(name)][0] for name in names)),
        "batch_norm": sum(name.endswith("running_var") for name in statistics),
        "head": find_head({name: source.shape(name) for name in floats}),
    }


def is_statistic(name: str) -> bool:
    """Whether a tensor holds statistics of batch norm, which are measured and not trained."""
    return STATISTIC.search(name) is not None


def find_head(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The layer that, by its name, makes the outputs: its name and number of rows; or None."""
    heads = [name for name, shape in shapes.items() if HEAD.search(name) and len(shape) > 1]
    if not heads:
        return None

    def place(name: str) -> tuple[int, list[int]]:
        return -name.count("."), [int(number) for number in re.findall(r"\d+", name)]

    name = max(heads, key=place)
    return {"name": name.rpartition(".")[0], "rows": shapes[name][0]}


# Adapters.


def _check_adapters(sources: Sequence[Source], base: Source | None, found: _Findings) -> None:
    adapters: list[tuple[Source, LoraAdapter]] = []
    for source in sources:
        if "peft_type" not in _config(source):
            found.fault(
                source,
                "holds the factors of an adapter without its settings",
                "Name its folder, in which adapter_config.json tells the scale.",
            )
            continue
        try:
            assert source.checkpoint is not None
            adapters.append((source, LoraAdapter(_config(source), source.checkpoint, source.label)))
        except InputError as error:
            found.fault(source, str(error).removeprefix(f"{source.label}: "), "Mend it, or leave it out.")
    if not adapters:
        return
    opened = {id(source): adapter for source, adapter in adapters}
    members = [source for source, _ in adapters]
    _compare_adapters(members, opened, found)
    _compare_bases(members, found)
    for source, adapter in adapters:
        if adapter.uses_dora and base is None:
            found.fault(
                source,
                "uses DoRA, which is not linear in its factors, so no adapter equals the merge",
                "Merge into the base instead: pass --base here, and --lora dense --base BASE to `mirepoix soup`.",
            )
        if adapter.dropped:
            found.warnings.append(
                f"{source.label} has a value head, which is no part of the model: left out."
            )
        if base is not None:
            _check_base_of(adapter, source, base, found)
    first = adapters[0][1]
    found.facts["adapters"] = {
        "layers": len(first.layers),
        "ranks": sorted({layer.rank for _, a in adapters for layer in a.layers.values()}),
        "alphas": sorted({a.config["lora_alpha"] for _, a in adapters}),
        "rslora": any(a.config.get("use_rslora") for _, a in adapters),
        "dora": any(a.uses_dora for _, a in adapters),
        "patterns": any(a.config.get("rank_pattern") or a.config.get("alpha_pattern") for _, a in adapters),
        "base": _base_name(members[0]),
        "result_rank": max(
            sum(a.layers[module].rank for _, a in adapters if module in a.layers) for module in first.layers
        ),
    }
    found.facts["result_bytes"] = sum(_nbytes(source) for source in members)


def _compare_adapters(
    sources: Sequence[Source], opened: Mapping[int, LoraAdapter], found: _Findings
) -> None:
    def structure(source: Source) -> dict[str, Any]:
        adapter = opened[id(source)]
        layers = {module: layer.frame for module, layer in adapter.layers.items()}
        return layers | {name: ("saved whole", adapter.shape(name)) for name in adapter.others}

    structures = {id(source): structure(source) for source in sources}
    usual, who = _usual(sources, lambda source: frozenset(structures[id(source)].items()))
    expected = structures[id(usual[0])]
    for source in sources:
        own = structures[id(source)]
        lacks, extra = [n for n in expected if n not in own], [n for n in own if n not in expected]
        if lacks or extra:
            parts = [f"does not adapt {_some(lacks)}"] if lacks else []
            parts += [f"adapts {_some(extra)} besides"] if extra else []
            found.fault(
                source,
                " and ".join(parts) + f", unlike {who}",
                "merge_adapters(..., strict=False) lets an adapter change by 0 what it does not have.",
            )
        differ = [name for name in own if name in expected and own[name] != expected[name]]
        if differ:
            found.fault(
                source,
                f"changes {_some(differ)} of another shape than {who}",
                "It was trained on another base: leave it out.",
            )


def _base_name(source: Source) -> str | None:
    name, revision = (_config(source).get(key) for key in ("base_model_name_or_path", "revision"))
    return f"{name} at {revision}" if revision else name


def _compare_bases(sources: Sequence[Source], found: _Findings) -> None:
    usual, who = _usual(sources, _base_name)
    expected = _base_name(usual[0])
    for source in sources:
        if _base_name(source) != expected:
            found.fault(
                source,
                f"was trained on {_base_name(source)!r}, {who} on {expected!r}",
                "Leave it out; or, if it is one model under two names, correct base_model_name_or_path in "
                "adapter_config.json or pass same_base=False to merge_adapters.",
            )
    same = len(usual) == len(sources)
    text = f"one base ({expected})" if same else "several bases"
    found.facts["start"] = {"known": len(sources), "same": same, "text": text}


def _check_base_of(adapter: LoraAdapter, source: Source, base: Source, found: _Findings) -> None:
    """Whether the base has the weights that an adapter changes."""
    missing, other = [], []
    for module, layer in adapter.layers.items():
        plain = module.replace(".base_layer.", ".")
        name = next((f"{plain}.{end}" for end in ("weight", "in_proj_weight") if f"{plain}.{end}" in base), None)
        if name is None:
            missing.append(f"{plain}.weight")
        else:
            straight = (layer.b[1][0], *layer.a[1][1:])
            if base.shape(name) not in (straight, straight[::-1]):
                other.append(name)
    for names, what in ((missing, "which the base does not have"), (other, "of another shape than in the base")):
        if names:
            found.fault(
                source,
                f"changes {_some(names)}, {what}",
                f"Is {base.label} its base? Names can be changed with rename= of merge_into_base.",
            )


# Values and room.


def nonfinite(code: str, stored: np.ndarray[Any, Any]) -> tuple[int, int]:
    """How many entries of a piece are NaN, and how many infinite."""
    bits = {"F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0xFF << 23), "F16": ("<u2", 31 << 10), "BF16": ("<u2", 0xFF << 7)}
    if code in bits:
        dtype, exponent = bits[code]
        mask = np.dtype(dtype).type(exponent)
        values = stored.view(dtype)
        # The exponent is all ones; a look at the largest one is enough for the pieces that are in order.
        if not values.size or (values & mask).max() != mask:
            return 0, 0
        magnitude = values & np.dtype(dtype).type((1 << (8 * values.itemsize - 1)) - 1)
        return int((magnitude > mask).sum()), int((magnitude == mask).sum())
    if code not in FLOAT8:
        return 0, 0
    magnitude = stored & np.uint8(0x7F)
    if code == "F8_E4M3":  # has no infinity
        return int((magnitude == 0x7F).sum()), 0
    return int((magnitude > 0x7C).sum()), int((magnitude == 0x7C).sum())


def _check_finite(sources: Sequence[Source], found: _Findings, progress: Progress | None) -> None:
    total = sum(_nbytes(source) for source in sources)
    done = 0
    buffer = memoryview(bytearray(8 * STEP))
    for source in sources:
        bad: dict[str, tuple[int, int, int]] = {}
        for name in source.names:
            if name in source.aliases:
                continue
            code, count = source.code(name), math.prod(source.shape(name))
            size = DTYPES[code][1]
            if not (is_float(code) or code.startswith("F8")):
                done += count * size
                continue
            nan = infinite = 0
            for start in range(0, count, STEP):
                stop = min(start + STEP, count)
                more = nonfinite(code, source.stored(name, start, stop, buffer))
                nan, infinite, done = nan + more[0], infinite + more[1], done + (stop - start) * size
                if progress is not None:
                    progress(done, total)
            if nan or infinite:
                bad[name] = nan, infinite, count
        if bad:
            listed = ", ".join(
                f"{name!r} ({nan} NaN and {infinite} infinite of {count} values)"
                for name, (nan, infinite, count) in list(bad.items())[:10]
            )
            more_names = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
            found.fault(
                source,
                f"holds NaN or infinity in {listed}{more_names}",
                "Leave it out: its training diverged, or it was converted to a dtype too narrow.",
            )
    found.facts["finite"] = "read"


def _check_room(found: _Findings) -> None:
    """Whether the result fits where the command was given; the output may go elsewhere."""
    free = shutil.disk_usage(Path.cwd()).free
    found.facts["free_bytes"] = free
    need = found.facts.get("result_bytes", 0)
    if need > free:
        found.warnings.append(
            f"the result needs {size_text(need)}, and the disk of this folder has {size_text(free)} free. Free some, or "
            "write it to another disk."
        )


# Words.


def size_text(count: int) -> str:
    """A number of bytes for people."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{count} bytes" if units[0] == "bytes" else f"{value:.3g} {units[0]}"


def _some(names: Sequence[str]) -> str:
    return repr(names[0]) if len(names) == 1 else f"{len(names)} tensors ({some(list(names), 3)})"


def _listed(labels: Sequence[str]) -> str:
    if len(labels) == 1:
        return labels[0]
    if len(labels) <= 4:
        return f"{', '.join(labels[:-1])} and {labels[-1]}"
    return f"{', '.join(labels[:3])} and {len(labels) - 3} more"
