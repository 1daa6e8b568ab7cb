"""Can these weights be averaged? Decided from names, dtypes and shapes, before anything large is read.

What a person needs is the file at fault, not a list of pairs. So files are sorted into groups of equal structure;
where one group is larger than every other, its structure is the expected one, and each other file is described
by how it differs from that. Everything is looked at and everything found is reported: nothing here stops at the
first problem.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mirepoix.checkpoints._tensors import DTYPES
from mirepoix.merging._check_adapters import check_adapters, is_adapter
from mirepoix.merging._check_models import check_models
from mirepoix.merging._findings import Fault, Findings, listed, nbytes, size_text
from mirepoix.merging._inputs import FLOAT8, Source, open_source, widen
from mirepoix.merging._rule import Array
from mirepoix.types import InputError

__all__ = ["Check", "check_files", "nonfinite", "scan"]

STEP = 1 << 20
"""Entries that are looked at together."""

EXPONENTS = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "F16": 31 << 10, "BF16": 0xFF << 7}
"""The bits of the exponent."""

ALLOWED = {"legacy-torch": "--allow-torch-load", "view-expanded": "--allow-expand"}
"""What is refused unless a person allows it."""

Progress: TypeAlias = Callable[[int, int], None]


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
    found = Findings(facts={"files": len(labels)})
    sources = _open(labels, container, found)
    start = None if base is None else open_source(os.fspath(base), os.fspath(base), container=container)
    opened = [*sources, *([start] if start is not None else [])]
    try:
        _check_repeats(sources, found)
        adapters = [source for source in sources if is_adapter(source)]
        models = [source for source in sources if not is_adapter(source)]
        if len(adapters) > len(models):
            for source in models:
                found.fault(source, "is a whole model, the others are LoRA adapters", "Leave it out.")
            check_adapters(adapters, start, found)
        else:
            for source in adapters:
                found.fault(
                    source,
                    "is a LoRA adapter, the others are whole models",
                    f"Merge it into its base first: mirepoix soup {source.label} --lora dense --base BASE -o "
                    "merged.safetensors.",
                )
            check_models(models, start, rows, finite, found)
        if finite:
            _check_finite(opened, found, progress)
        found.facts["bytes_to_read"] = sum(map(nbytes, opened))
        _check_room(found)
    finally:
        for source in opened:
            source.close()
    return Check(
        not found.faults,
        _verdict(labels, found, len(adapters) > len(models)),
        tuple(found.faults),
        tuple(found.warnings),
        found.facts,
    )


def _open(labels: Sequence[str], container: str | None, found: Findings) -> list[Source]:
    """The members that can be opened; the others are faults, unless there is none to compare with."""
    sources, errors = [], []
    for label in labels:
        try:
            sources.append(open_source(label, label, container=container))
        except InputError as error:
            errors.append(str(error))
            what = str(error).removeprefix(f"{label}: ")
            option = ALLOWED.get(getattr(error, "rule", ""))
            advice = "Replace it, or leave it out."
            if option:
                advice = f"If you trust it, `mirepoix convert {label} OUT.safetensors {option}` makes it a safe file."
            found.faults.append(Fault(label, what, advice))
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            errors.append(f"{label}: {what}. Change its permissions.")
            found.faults.append(Fault(label, what, "Change its permissions, or leave it out."))
    if not sources:
        raise InputError("\n".join(dict.fromkeys(errors)))
    return sources


def _check_repeats(sources: Sequence[Source], found: Findings) -> None:
    labels: dict[tuple[str, ...], list[str]] = {}
    for source in sources:
        assert source.checkpoint is not None
        labels.setdefault(tuple(map(os.path.realpath, source.checkpoint.files)), []).append(source.label)
    for same in labels.values():
        if len(same) > 1:
            found.warnings.append(f"{same[0]} is given {len(same)} times, and counts {len(same)} times.")


def _verdict(labels: Sequence[str], found: Findings, adapters: bool) -> str:
    done = "averaged" if len(labels) > 1 else "merged with the base"
    begin = f"{len(labels)} {'adapter' if adapters else 'file'}{'s' if len(labels) > 1 else ''}"
    if not found.faults:
        return f"{begin} can be {done}."
    begin += f" cannot be {done}"
    guilty = list(dict.fromkeys(fault.member for fault in found.faults if fault.member is not None))
    rest = len([label for label in labels if label not in guilty])
    if found.disagree and len(labels) == 2:
        return f"{begin}: {labels[0]} and {labels[1]} do not fit each other."
    if found.disagree:
        return f"{begin}: no structure is that of most of them."
    if not guilty or not rest:
        return f"{begin}: {'none is without fault' if guilty else 'a merge would refuse them'}."
    without = f" Without {'it' if len(guilty) == 1 else 'them'}, {rest} can be." if rest > 1 else ""
    return f"{begin}: {listed(guilty)} {'is' if len(guilty) == 1 else 'are'} at fault.{without}"


def nonfinite(code: str, stored: Array) -> tuple[int, int]:
    """How many stored entries are NaN, and how many infinite."""
    if code in EXPONENTS:
        size = DTYPES[code][1]
        kind = np.dtype(f"<u{size}")
        values, mask = stored.view(kind), kind.type(EXPONENTS[code])
        # Such a value has an exponent of ones; one look at the largest clears the pieces that are in order.
        if not values.size or (values & mask).max() != mask:
            return 0, 0
        magnitudes = values & kind.type((1 << (8 * size - 1)) - 1)
        return int((magnitudes > mask).sum()), int((magnitudes == mask).sum())
    if code not in FLOAT8:
        return 0, 0
    values = widen(code, stored, np.empty(stored.size, np.float32))
    return int(np.isnan(values).sum()), int(np.isinf(values).sum())


def scan(source: Source, name: str) -> tuple[int, int]:
    """The same of a whole tensor, piece by piece."""
    code, count = source.code(name), math.prod(source.shape(name))
    nan = infinite = 0
    if code.startswith(("F", "BF")):
        buffer = memoryview(bytearray(min(count, STEP) * DTYPES[code][1]))
        for start in range(0, count, STEP):
            more = nonfinite(code, source.stored(name, start, min(start + STEP, count), buffer))
            nan, infinite = nan + more[0], infinite + more[1]
    return nan, infinite


def _check_finite(sources: Sequence[Source], found: Findings, progress: Progress | None) -> None:
    total, done = sum(map(nbytes, sources)), 0
    for source in sources:
        bad = []
        for name in source.names:
            if name in source.tied:
                continue
            nan, infinite = scan(source, name)
            count = math.prod(source.shape(name))
            done += count * DTYPES[source.code(name)][1]
            if progress is not None:
                progress(done, total)
            if nan or infinite:
                bad.append(f"{name!r} ({nan} NaN, {infinite} infinite of {count} values)")
        if bad:
            more_of = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
            found.fault(
                source,
                f"holds NaN or infinity in {', '.join(bad[:10])}{more_of}",
                "Leave it out: its training diverged, or its dtype was too narrow.",
            )
    found.facts["values_read"] = True


def _check_room(found: Findings) -> None:
    """Whether the result fits where the command was given; it may be written elsewhere."""
    free = found.facts["free_bytes"] = shutil.disk_usage(Path.cwd()).free
    need = found.facts.get("result_bytes", 0)
    if need > free:
        found.warnings.append(
            f"the result needs {size_text(need)}, and the disk of this folder has {size_text(free)} free. Make room, "
            "or write it to another disk."
        )
