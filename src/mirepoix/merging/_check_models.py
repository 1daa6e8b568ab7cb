"""What must agree between whole models, besides their structure: ties, dtypes, integers, start, settings, classes."""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mirepoix.checkpoints._tensors import DTYPES
from mirepoix.merging._check_structure import differences, find_head, structure_of
from mirepoix.merging._findings import Findings, config_of, listed, tensors, usual
from mirepoix.merging._inputs import FLOAT8, Source, is_float
from mirepoix.merging._merge import CHUNK
from mirepoix.merging._plan import plan_merge
from mirepoix.types import InputError

__all__ = ["check_models", "is_statistic", "record_of"]

SMALL = 64 * 1024
"""Bytes of integer tensors that are read of each file; larger ones are left to the merge."""

MEMORY = 40_000_000 + 2 * 3 * CHUNK * 8
"""Bytes: interpreter, NumPy and headers, and the pieces of two workers."""

QUANTISED = re.compile(r"\.(qweight|qzeros|absmax|quant_map|SCB|quant_state\..+|weight_scale(_inv)?)$")
"""What the common quantisers store beside their integers."""

SETTINGS = (
    "model_type", "architectures", "num_attention_heads", "num_key_value_heads", "head_dim", "rope_theta",
    "rope_scaling", "hidden_act", "layer_norm_eps", "rms_norm_eps", "patch_size", "image_size",
)  # fmt: skip
"""What changes the function of a network and no shape."""

UNKNOWN_START = (
    "not told by these files. Members must be fine-tunings of one start: averaging others usually ruins them"
)


def check_models(
    sources: Sequence[Source], base: Source | None, rows: bool, finite: bool, found: Findings
) -> None:
    """Look at everything, and last ask for the plan that a merge would make."""
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of mixed dtypes, which are told here for all files at once
            # Where only some files tie, the values decide, and those are not read here.
            plan = plan_merge(sources, base, rows=rows, untie="tied_in_some" in found.facts)
    except InputError as error:
        found.fault(None, str(error), "")
        return
    found.facts["result_bytes"] = sum(planned.nbytes for planned in plan.tensors.values())
    dtypes = [DTYPES[planned.code][0] for planned in plan.tensors.values() if planned.is_float]
    found.facts["result_dtypes"] = dict(Counter(dtypes))
    found.facts["memory_bytes"] = MEMORY
    for planned in plan.tensors.values():
        if planned.rows is not None:
            fewest, most = min(planned.rows), max(planned.rows)
            found.warnings.append(
                f"{planned.name!r} has {fewest} to {most} rows: the first {fewest} are averaged, the others copied "
                "from the first file that has most."
            )


def is_statistic(name: str) -> bool:
    """Whether a tensor holds statistics of batch norm, which are measured and not trained."""
    return name.endswith(("running_mean", "running_var"))


def record_of(source: Source) -> dict[str, Any]:
    """What the weights were made of, where that lies beside them."""
    try:
        return (source.checkpoint.record if source.checkpoint is not None else None) or {}
    except (InputError, OSError):
        return {}  # a JSON beside a file of weights need not be ours


def _check_ties(sources: Sequence[Source], finite: bool, found: Findings) -> dict[str, str]:
    """Names that repeat another in one of the files, and need not be in the others."""
    tied = [source.tied for source in sources]
    repeats = {name: target for each in tied for name, target in each.items()}
    repeats = {name: repeats[name] for name in repeats if any(name in source for source in sources)}
    mixed = []
    for name, target in repeats.items():
        for source, each in zip(sources, tied, strict=True):
            if each.get(name) == target or name not in source or target not in source:
                continue
            mixed.append(name)
            if not finite:
                found.warnings.append(
                    f"{source.label} holds {name!r} and {target!r} twice, other files once (tied). A merge takes them "
                    "for one if they are equal, and refuses otherwise; --untie averages them apart."
                )
            elif source.bytes(name) != source.bytes(target):
                found.fault(
                    source,
                    f"holds other values in {name!r} than in {target!r}, which are one tensor in other files (tied)",
                    "Pass untie=True (--untie) to average them apart.",
                )
    if repeats:
        found.facts["aliases"] = repeats
    if mixed:
        found.facts["tied_in_some"] = sorted(set(mixed))
    return repeats


def _check_kinds(sources: Sequence[Source], found: Findings) -> None:
    """Tensors that have no average as they are stored."""
    for source in sources:
        by_kind: dict[str, list[str]] = (
            {"quantised": []} if "quantization_config" in config_of(source) else {}
        )
        for name in source.names:
            code = source.code(name)
            is_matrix = name.endswith("weight") and len(source.shape(name)) > 1
            if code.startswith(("F8", "C")):
                by_kind.setdefault(DTYPES[code][0], []).append(name)
            elif QUANTISED.search(name) or (is_matrix and not is_float(code)):
                by_kind.setdefault("quantised", []).append(name)
        for kind, names in by_kind.items():
            where = tensors(names) if names else "its config.json says so"
            if kind == "quantised":
                advice = "Dequantise it first, or take it as it was before."
                found.fault(source, f"is quantised: {where}", advice)
            elif kind.startswith("complex"):
                found.fault(source, f"holds {kind} in {where}", "Split them into real and imaginary part.")
            else:
                stored = ", or pass upcast=True (--upcast) if its values are as stored"
                advice = (
                    f"Dequantise it first{stored if any(DTYPES[code][0] == kind for code in FLOAT8) else ''}."
                )
                found.fault(source, f"holds {kind} in {where}, whose values may need scales", advice)


def _check_structure(
    sources: Sequence[Source], base: Source | None, tied: Mapping[str, str], rows: bool, found: Findings
) -> Source:
    """Compare names, kinds and shapes; returns a member that is as expected."""
    structures = {id(source): structure_of(source, tied, rows) for source in sources}
    group, who = usual(sources, lambda source: frozenset(structures[id(source)].items()))
    reference = group[0]
    found.disagree = len(group) * 2 <= len(sources)
    for source in sources:
        for what, advice in differences(structures[id(source)], structures[id(reference)], who):
            found.fault(source, what, advice)
    if base is not None:
        for what, advice in differences(
            structure_of(base, tied, rows), structures[id(reference)], "the members"
        ):
            found.fault(base, what, advice)
    return reference


def _check_dtypes(sources: Sequence[Source], found: Findings) -> None:
    """Mixed dtypes are merged, but into what?"""
    codes = {
        id(source): {name: code for name in source.names if is_float(code := source.code(name))}
        for source in sources
    }
    group, who = usual(sources, lambda source: frozenset(codes[id(source)].items()))
    expected = codes[id(group[0])]
    seen: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for source in sources:
        pairs: dict[tuple[str, str], list[str]] = {}
        for name, code in codes[id(source)].items():
            if (other := expected.get(name, code)) != code:
                pairs.setdefault((code, other), []).append(name)
        for (code, other), names in pairs.items():
            seen.setdefault((code, other, tuple(names)), []).append(source.label)
    for (code, other, names_), labels in seen.items():
        found.warnings.append(
            f"{listed(labels)} {'holds' if len(labels) == 1 else 'hold'} {tensors(names_)} as {DTYPES[code][0]}, {who} "
            f"as {DTYPES[other][0]}: the result takes the wider one. Name its dtype to be sure: dtype= (--dtype)."
        )


def _check_integers(
    sources: Sequence[Source], tied: Mapping[str, str], finite: bool, found: Findings
) -> None:
    """Integer tensors must be equal, but for the counters of batch norm."""
    kinds: dict[str, set[tuple[str, tuple[int, ...]]]] = {}
    for source in sources:
        for name in source.names:
            code = source.code(name)
            if code[0] in "IUB" and code != "BF16" and name not in tied:
                kinds.setdefault(name, set()).add((code, source.shape(name)))
    unread, left = [], SMALL
    for name, several in kinds.items():
        if len(several) > 1 or name.endswith("num_batches_tracked"):
            continue  # another shape is told already
        ((code, shape),) = several
        size = math.prod(shape) * DTYPES[code][1]
        if size > left and not finite:
            unread.append(name)
            continue
        left -= min(size, left)
        holders = [source for source in sources if name in source]
        digests = {id(source): hashlib.blake2b(source.bytes(name)).digest() for source in holders}
        group, who = usual(holders, lambda source, of=digests: of[id(source)])  # type: ignore[misc]
        for source in holders:
            if digests[id(source)] != digests[id(group[0])]:
                found.fault(
                    source,
                    f"holds other integers in {name!r} than {who}",
                    "Integers have no average: pass integers='first' (--integers first) to keep those of the first "
                    "file, or 'max' for the largest.",
                )
    if unread:
        found.facts["unread_integers"] = unread
        found.warnings.append(
            f"{tensors(unread)} {'is' if len(unread) == 1 else 'are'} integer, and too large to be read here. A merge "
            "refuses them if they differ; --finite reads them now."
        )


def _check_start(sources: Sequence[Source], base: Source | None, found: Findings) -> None:
    """Members should be fine-tunings of one start; compared where something beside the files tells it."""
    records: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    for source in sources:
        made_of = record_of(source).get("made_of")
        told = made_of.get("theta") if isinstance(made_of, dict) else None
        for starts, value in ((records, told), (names, config_of(source).get("_name_or_path"))):
            if isinstance(value, str) and value:
                starts.setdefault(value, []).append(source.label)
    starts = records or names
    known = sum(map(len, starts.values()))
    found.facts["start"] = {"known": known, "same": None, "text": UNKNOWN_START}
    if starts:
        words = {value: value[:12] if records else repr(value) for value in starts}
        if len(starts) == 1:
            text = f"the same ({next(iter(words.values()))}" + (")" if records else ", by its name)")
            text += f" for the {known} of {len(sources)} files that tell" if known < len(sources) else ""
        else:
            text = "; ".join(f"{words[value]} for {listed(labels)}" for value, labels in starts.items())
            found.warnings.append(
                f"starts differ: {text}. An average is good only where the loss stays low between the members: try "
                "`mirepoix connect A B`."
            )
        found.facts["start"] = {"known": known, "same": len(starts) == 1, "text": text}
    own = record_of(base).get("fingerprint") if base is not None else None
    if base is not None and records and isinstance(own, str) and own not in records:
        found.warnings.append(
            f"{base.label} is not the start that the records of the members name: it is {own[:12]}, they name "
            f"{listed([value[:12] for value in records])}."
        )


def _check_settings(sources: Sequence[Source], found: Findings) -> None:
    """Settings that change the function and no shape."""
    for key in SETTINGS:
        groups: dict[str, list[str]] = {}
        for source in sources:
            if key in config_of(source):
                groups.setdefault(repr(config_of(source)[key]), []).append(source.label)
        if len(groups) > 1:
            values = ", ".join(f"{value} in {listed(labels)}" for value, labels in groups.items())
            found.warnings.append(
                f"{key} differs (config.json): {values}. The same weights are another function then."
            )


def _check_classes(sources: Sequence[Source], found: Findings) -> None:
    """Rows of a head mean classes, which must be the same in the same order."""
    told = {id(source): _classes(source) for source in sources}
    holders = [source for source in sources if told[id(source)]]
    if not holders:
        return
    group, who = usual(holders, lambda source: told[id(source)])
    expected = told[id(group[0])]
    for source in holders:
        own = told[id(source)]
        if len(own) == len(expected) and own != expected:
            i = next(i for i, (a, b) in enumerate(zip(own, expected, strict=True)) if a != b)
            same = "the same classes in another order" if sorted(own) == sorted(expected) else "other classes"
            found.fault(
                source,
                f"has {same}: number {i} is {own[i]!r}, {who} have {expected[i]!r}",
                "Heads can be averaged only if each row means the same class: attach one head with "
                "`with_head(theta, head)`, or correct the names (id2label of config.json, or the record).",
            )


def _classes(source: Source) -> tuple[str, ...]:
    """Names of the classes in the order of the rows, if they are told."""
    labels = config_of(source).get("id2label")
    classes = list(labels.values()) if isinstance(labels, dict) else record_of(source).get("classes")
    return tuple(map(str, classes)) if isinstance(classes, list) else ()


def _describe(source: Source, tied: Mapping[str, str], found: Findings) -> None:
    """What a member that is as expected consists of."""
    names = [name for name in source.names if name not in tied]
    floats = {name: source.shape(name) for name in names if is_float(source.code(name))}
    weights = {name: shape for name, shape in floats.items() if not is_statistic(name)}
    found.facts |= {
        "tensors": len(names),
        "weights": len(weights),
        "parameters": sum(map(math.prod, weights.values())),
        "statistics": len(floats) - len(weights),
        "integers": len(names) - len(floats),
        "dtypes": dict(Counter(DTYPES[source.code(name)][0] for name in names)),
        "batch_norm": sum(name.endswith("running_var") for name in floats),
        "head": find_head(weights),
    }
