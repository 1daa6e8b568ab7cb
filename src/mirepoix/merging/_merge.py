r"""The engine: any rule on any members, file by file and piece by piece, or in memory with the same bits.

One pass over the output, in its order: read a piece of every member, widen it, combine, round once, write. For
linear rules the memory is three pieces per worker whatever the number of members and the size of the model;
other rules need a piece of every member at once, and get smaller pieces for more members.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from mirepoix.checkpoints import Checkpoint
from mirepoix.checkpoints._layout import ALIASES
from mirepoix.checkpoints._stream import WeightsWriter
from mirepoix.checkpoints._tensors import DTYPES, build
from mirepoix.merging._average import Average
from mirepoix.merging._inputs import Source, is_float, narrow, open_source, round_to_odd, wide_dtype, widen
from mirepoix.merging._plan import Names, Planned, plan_merge
from mirepoix.merging._rule import BLOCK, Array, Inputs, Line, LinearRule, Piece, Rule, TensorInputs
from mirepoix.types import InputError

__all__ = ["Members", "MergeReport", "merge", "merge_files"]

Integers: TypeAlias = Literal["auto", "first", "max", "error"]
Check: TypeAlias = Literal["output", "inputs", "none"]
Members: TypeAlias = Sequence[Any] | Mapping[str, Any]
"""Weights, opened checkpoints or paths: one after another, or by a name for each."""

_Turn: TypeAlias = tuple[Planned, Any, int]
"""A tensor whose turn it is, what was measured of it, and what it costs to read."""

CHUNK = 262_144
"""Entries combined at once by linear rules: a megabyte of float32; smaller pieces cost more in calls than they save."""

ROOM = 16_000_000
"""Bytes for the pieces of all members that other rules see at once."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        files: The files written.
        inputs: The files that were read, by the path of the member (or base) they belong to.
        tensors: Number of float tensors combined.
        integers: Number of integer tensors copied or chosen.
        aliases: Names of tied weights, each with the name that was written.
        bytes_read: Bytes read of members and base; rules that measure first read most of them twice.
        bytes_written: Bytes of all files.
        seconds: Time it took.
        notes: What the user should know: left out names, raised variances.
    """

    files: tuple[Path, ...]
    tensors: int
    integers: int
    aliases: Mapping[str, str]
    bytes_read: int
    bytes_written: int
    seconds: float
    notes: tuple[str, ...] = field(default=())
    inputs: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)


def merge(
    members: Members,
    rule: Rule | None = None,
    *,
    base: Any = None,
    dtype: str | None = None,
    integers: Integers = "auto",
    check: Check = "output",
    names: Names = "strict",
    rename: Mapping[str, str] | None = None,
    rows: bool = False,
    untie: bool = False,
    upcast: bool = False,
    chunk: int | None = None,
    workers: int = 2,
) -> dict[str, Any]:
    """Merge weights, and return the result in memory.

    The result has the bits that `merge_files` writes. Where the members are all equal, base included, it is
    that member under every rule.

    Args:
        members: Weights of torch or NumPy, opened checkpoints, or paths. Given by name, coefficients may be too.
        rule: How to merge; the uniform `Average` where none is given.
        base: The common start, for rules that need it; its tensors are read for these alone.
        dtype: Of the float tensors of the result; by default that of the members, or the widest of theirs.
        integers: What to do with integer tensors that differ. ``"auto"``: the largest ``num_batches_tracked``,
            and an error for others; ``"first"`` and ``"max"`` choose; ``"error"`` never does.
        check: ``"output"`` refuses a result that is not finite and names the tensor; ``"inputs"`` names the
            member too, before it is used; ``"none"`` lets everything through.
        names: Names that not all members hold are an error (``"strict"``), left out (``"intersection"``) or
            merged from those that hold them (``"union"``).
        rename: Regular expressions and their replacements, applied to all names in turn.
        rows: Allow tensors that differ in their number of rows, as vocabularies do: the first rows, which all
            have, are merged, and the rest copied from the (first) member that has most.
        untie: Merge the names of tied weights apart.
        upcast: Take float8 tensors at their stored values; the result is bfloat16 or wider.
        chunk: Entries combined at once, at least 1; changes memory and time, never the result.
        workers: Threads, at least 1.

    Returns:
        New tensors: of NumPy if the first member is, else of torch, on the CPU. Names that a file or its
        configuration ties are one tensor; a tensor that is twice in a mapping is merged twice, to equal values.

    Raises:
        InputError: When members do not fit each other or the rule; see above for what each option allows.

    Example:
        >>> import numpy as np
        >>> merge([{"w": np.array([2.0, 0.0])}, {"w": np.array([4.0, 1.0])}])
        {'w': array([3. , 0.5])}
    """
    _check_counts(chunk, workers)
    job = _Job(members, rule, base, integers, check, names, rename, rows, untie, upcast, dtype)
    try:
        content = {name: np.empty(planned.nbytes, np.uint8) for name, planned in job.plan.tensors.items()}

        def write(name: str, start: int, data: memoryview, *, beyond: bool = False) -> None:
            content[name].data[start : start + data.nbytes] = data

        job.execute(write, chunk, workers, None)
    finally:
        job.close()
    torch = not job.is_numpy
    theta = {name: _array(name, job.plan.tensors[name], content.pop(name), torch) for name in list(content)}
    for name, target in job.plan.aliases.items():
        theta[name] = theta[target]
    return {name: theta[name] for name in job.order()}


def merge_files(
    members: Members,
    out: str | os.PathLike[str],
    rule: Rule | None = None,
    *,
    base: Any = None,
    dtype: str | None = None,
    integers: Integers = "auto",
    check: Check = "output",
    names: Names = "strict",
    rename: Mapping[str, str] | None = None,
    rows: bool = False,
    untie: bool = False,
    upcast: bool = False,
    max_shard: int | str | None = None,
    metadata: Mapping[str, str] | None = None,
    chunk: int | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merge weights into a safetensors file, whole or not at all, in memory that does not grow with them.

    Arguments not listed are those of `merge`. A stop at any moment leaves nothing under the name ``out``.

    Args:
        out: The file, ending in ``.safetensors``; never one of the members'.
        max_shard: The most bytes of tensors per file, as a number or as text such as ``"5GB"``; see
            `WeightsWriter` for the names of several.
        metadata: Texts for the header, beside ``mirepoix.method`` and ``mirepoix.aliases``.
        progress: Called with the bytes done and in all, from the calling thread.

    Raises:
        InputError: As `merge`; when ``out`` is one of the members' files, or cannot be written.
        OSError: From the disk; nothing stays then.
    """
    started = time.perf_counter()
    _check_counts(chunk, workers)
    job = _Job(members, rule, base, integers, check, names, rename, rows, untie, upcast, dtype)
    try:
        _refuse_inputs(Path(out), job)
        texts = {"mirepoix.method": job.rule.method, **(metadata or {})}
        if job.plan.aliases:
            texts[ALIASES] = json.dumps(job.plan.aliases)
        layout = {name: (planned.code, planned.shape) for name, planned in job.plan.tensors.items()}
        with WeightsWriter(out, layout, metadata=texts, max_shard=max_shard) as writer:
            job.execute(writer.write, chunk, workers, progress, writer)
    finally:
        job.close()
    floats = sum(planned.is_float for planned in job.plan.tensors.values())
    return MergeReport(
        files=tuple(writer.files),
        tensors=floats,
        integers=len(job.plan.tensors) - floats,
        aliases=job.plan.aliases,
        bytes_read=job.read,
        bytes_written=writer.nbytes,
        seconds=time.perf_counter() - started,
        notes=tuple(job.plan.notes),
        inputs={
            str(source.checkpoint.path): source.checkpoint.files
            for source in job.everyone
            if source.checkpoint is not None
        },
    )


def _refuse_inputs(out: Path, job: _Job) -> None:
    for source in job.everyone:
        for file in getattr(source.checkpoint, "files", ()):
            if out.exists() and file.exists() and out.samefile(file):
                raise InputError(f"{out}: is one of the members. Choose another name for the result.")


class _Job:
    """Members that were opened and planned, ready to be executed once."""

    def __init__(
        self,
        members: Members,
        rule: Rule | None,
        base: Any,
        integers: Integers,
        check: Check,
        names: Names,
        rename: Mapping[str, str] | None,
        rows: bool,
        untie: bool,
        upcast: bool,
        dtype: str | None,
    ) -> None:
        _check_option("integers", integers, Integers)
        _check_option("check", check, Check)
        self.rule = Average() if rule is None else rule
        self.integers, self.check, self.untie = integers, check, untie
        if isinstance(members, str | os.PathLike) or not isinstance(members, Mapping | Sequence):
            members = list(members) if not isinstance(members, str | os.PathLike) else [members]
        if (
            isinstance(members, Mapping)
            and members
            and not all(isinstance(member, Mapping | str | os.PathLike) for member in members.values())
        ):
            raise InputError(
                "members: expected weights by member, got the weights of one. Put them in a list."
            )
        self.labels = (
            [str(label) for label in members]
            if isinstance(members, Mapping)
            else [str(i) for i in range(len(members))]
        )
        twice = next((label for i, label in enumerate(self.labels) if label in self.labels[:i]), None)
        if twice is not None:
            raise InputError(f"members: expected a name for each, got {twice!r} twice. Rename one of them.")
        if not self.labels:
            raise InputError("there is no member to merge: expected at least one.")
        self.rule.check(self.labels)
        if names == "union" and not self.rule.partial:
            raise InputError(
                f"{self.rule.method}: needs every tensor from every member, so names='union' cannot be used with it. "
                "Use 'strict' or 'intersection'."
            )
        if self.rule.needs_base and base is None:
            raise InputError(
                f"{self.rule.method}: needs the common start of the members. Pass base= (--base), for example the "
                "pre-trained weights."
            )
        if isinstance(members, Mapping):
            given = [(label, str(label)) for label in members]
            values = list(members.values())
        else:
            given = [(label, f"member {label}") for label in self.labels]
            values = list(members)
        self.is_numpy = _is_numpy(values[0])
        self.sources: list[Source] = []
        self.base: Source | None = None
        try:
            for (_, label), value in zip(given, values, strict=True):
                self.sources.append(open_source(value, label, rename=rename))
            if self.rule.needs_base:
                self.base = open_source(base, "base", rename=rename)
            self.plan = plan_merge(
                self.sources, self.base, names=names, dtype=dtype, rows=rows, untie=untie, upcast=upcast
            )
        except BaseException:
            self.close()
            raise
        self.clamped: list[str] = []
        self.read = 0
        self.stop = threading.Event()
        self._counting = threading.Lock()

    @property
    def everyone(self) -> list[Source]:
        """The members, and the base where there is one."""
        return [*self.sources, *([self.base] if self.base is not None else [])]

    def order(self) -> list[str]:
        """Names of the result, aliases included, in the order in which the members have them."""
        wanted = {*self.plan.tensors, *self.plan.aliases}
        return list(dict.fromkeys(name for source in self.sources for name in source.names if name in wanted))

    def count(self, read: int) -> None:
        """Add to the bytes that were read."""
        with self._counting:
            self.read += read

    def close(self) -> None:
        """Let go of all files."""
        for source in self.everyone:
            source.close()

    def execute(
        self,
        write: Callable[..., None],
        chunk: int | None,
        workers: int,
        progress: Callable[[int, int], None] | None,
        writer: WeightsWriter | None = None,
    ) -> None:
        """Combine all tensors and hand their bytes to ``write``, from several threads."""
        survey = self.rule.survey(_Inputs(self))
        tensors = list(self.plan.tensors.values())
        if writer is not None:
            tensors.sort(key=lambda planned: writer.place(planned.name))
        jobs: Iterable[_Turn] = self._jobs(tensors, survey)
        if self.measures:
            total = sum(self._cost(planned, None) for planned in tensors)
        else:  # nothing is read for them, so they can all be known now
            jobs = list(jobs)
            total = sum(cost for _, _, cost in jobs)
            if writer is not None and isinstance(self.rule, LinearRule) and self.check != "inputs":
                jobs = self._joined(jobs, writer)
        pieces = self._pieces(jobs, chunk)
        lock, stop = threading.Lock(), self.stop
        errors: list[BaseException] = []
        done = 0

        def work() -> None:
            nonlocal done
            worker = _Worker(self)
            try:
                while not stop.is_set():
                    with lock:
                        job = next(pieces, None)
                    if job is None:
                        return
                    planned, start, end, measured, share = job
                    data = worker.piece(planned, start, end, measured)
                    write(planned.name, start * DTYPES[planned.code][1], data, beyond=bool(planned.run))
                    with lock:
                        done += share
            except BaseException as error:
                errors.append(error)
                stop.set()
            finally:
                self.count(worker.read)

        helpers = [threading.Thread(target=work) for _ in range(workers)]
        try:
            for helper in helpers:
                helper.start()
            for helper in helpers:
                while helper.is_alive():
                    helper.join(0.1)  # not for ever: Ctrl-C is only heard between waits
                    if progress:
                        progress(done, total)
            if progress and not errors:
                progress(done, total)  # threads may have ended between two looks
        finally:
            stop.set()
            for helper in helpers:
                helper.join()
        if errors:
            raise errors[0]
        if self.clamped:
            found = ", ".join(map(repr, sorted(set(self.clamped))[:10]))
            warnings.warn(
                f"negative running variances of batch norm were raised to 0 in {found}. "
                "Estimate the statistics again on data, or silence this UserWarning.",
                stacklevel=3,
            )

    @property
    def measures(self) -> bool:
        """Whether the rule reads a tensor before it combines it."""
        return type(self.rule).measure is not Rule.measure

    def _jobs(self, tensors: Sequence[Planned], survey: Any) -> Iterator[_Turn]:
        """Tensors in the order of the output; each is measured when its turn comes."""
        for planned in tensors:
            measured = None
            if planned.is_float:
                measured = self.rule.measure(_TensorInputs(self, planned), survey)
                if isinstance(self.rule, LinearRule):
                    line = self.rule.line(planned.name, len(self.labels), measured)
                    measured = _sum_of(_among(line, planned, self), planned, self)
            yield planned, measured, self._cost(planned, None if self.measures else measured)

    def _cost(self, planned: Planned, measured: Any) -> int:
        """Bytes to read to combine a tensor; what only its measures can tell counts as read."""
        name = planned.name
        if not planned.is_float:
            return planned.nbytes * len(self.deciding(planned))
        owners = [self.sources[i] for i in planned.members] + (
            [self.base] if planned.base and self.base else []
        )
        if isinstance(measured, _Sum):
            owners = [source for _, source in measured.terms]
        entries = [(planned.common, source) for source in owners]
        if planned.rows is not None:
            entries.append((planned.size - planned.common, self.longest(planned)))
        return sum(count * DTYPES[source.code(name)][1] for count, source in entries)

    def deciding(self, planned: Planned) -> list[Source]:
        """The members that are asked for an integer tensor."""
        return [self.sources[i] for i in planned.members[: 1 if self.integers == "first" else None]]

    def longest(self, planned: Planned) -> Source:
        """The first member that has most rows."""
        assert planned.rows is not None
        rows = planned.rows[1:] if planned.base else planned.rows
        return self.sources[planned.members[rows.index(max(rows))]]

    def _joined(self, jobs: Iterable[_Turn], writer: WeightsWriter) -> Iterator[_Turn]:
        """The same, with tensors that lie side by side in every file, and mean the same numbers, as one.

        Networks have many small tensors; reading each apart costs more than averaging it.
        """
        pending: list[Planned] = []
        numbers: Any = None
        costs = 0
        for planned, measured, cost in jobs:
            # What may have to be raised to 0 must be known by its name.
            apart = measured != numbers or (isinstance(measured, _Sum) and measured.clamp)
            if pending and (apart or not self._side_by_side(pending[-1], planned, writer)):
                yield _run_of(pending), numbers, costs
                pending, costs = [], 0
            pending.append(planned)
            numbers = measured
            costs += cost
        if pending:
            yield _run_of(pending), numbers, costs

    def _side_by_side(self, a: Planned, b: Planned, writer: WeightsWriter) -> bool:
        if a.code != b.code or not a.is_float or a.rows or b.rows:
            return False
        if a.members != b.members or a.base != b.base or not a.size or not b.size:
            return False
        owners = [self.sources[i] for i in a.members] + ([self.base] if a.base and self.base else [])
        ends = [(source.place(a.name), source.place(b.name), source) for source in owners]
        for first, second, source in ends:
            if first is None or second is None or source.code(a.name) != source.code(b.name):
                return False
            step = a.size * DTYPES[source.code(a.name)][1]
            if second != (first[0], first[1] + step):
                return False
        shard, start = writer.place(a.name)
        return writer.place(b.name) == (shard, start + a.nbytes)

    def _pieces(
        self, jobs: Iterable[_Turn], chunk: int | None
    ) -> Iterator[tuple[Planned, int, int, Any, int]]:
        """Tensors cut into pieces, each with its share of the cost."""
        for planned, measured, cost in jobs:
            if not planned.is_float or (self.rule.whole and planned.size):
                yield planned, 0, planned.size, measured, cost
                continue
            size = chunk or CHUNK
            if chunk is None and not isinstance(self.rule, LinearRule):
                size = max(4096, min(CHUNK, ROOM // (8 * (len(planned.members) + 2))))
            for start in range(0, planned.size, size):
                stop = min(start + size, planned.size)
                share = cost * stop // planned.size - cost * start // planned.size
                yield planned, start, stop, measured, share


def _run_of(row: list[Planned]) -> Planned:
    if len(row) == 1:
        return row[0]
    size = sum(planned.size for planned in row)
    return replace(row[0], shape=(size,), run=tuple(planned.name for planned in row))


@dataclass(frozen=True)
class _Sum:
    """A linear rule on one tensor: what is read, times what."""

    terms: Sequence[tuple[float, Source]]
    divisor: float
    dtype: type[np.floating[Any]]
    clamp: bool
    watch: bool
    """Whether equal entries must be kept by hand, for lack of digits."""
    large: bool
    """Whether a sum may overflow where the result need not."""
    copies: bool
    """Whether the one term's bytes are the result."""


def _sum_of(line: Line, planned: Planned, job: _Job) -> _Sum:
    name = planned.name
    terms = [(c, job.sources[i]) for c, i in zip(line.coefficients, planned.members, strict=True) if c != 0]
    if line.base != 0:
        if not planned.base or job.base is None:
            raise InputError(
                f"base: has no {planned.name!r}, which members hold. Leave it out with names='intersection'."
            )
        terms.insert(0, (line.base, job.base))
    if not terms:
        raise InputError(f"coefficients for {planned.name!r}: expected one other than 0, got none.")
    terms, divisor = _scaled(terms, line.divisor)
    codes = {source.code(name) for _, source in terms}
    copies = len(terms) == 1 and terms[0][0] == divisor and planned.rows is None and codes == {planned.code}
    # Float32 sums in float64, and float16 in float32, of few positive terms round back to equal entries anyway,
    # if these are stored as the result is: others may be ties of its dtype, which the last digit decides.
    exact = codes == {planned.code} and planned.code != "F64"
    watch = line.affine and (not exact or any(c < 0 for c, _ in terms) or len(terms) > 1000)
    dtype = _wide(job, planned)
    if not all(2.0**-64 <= abs(number) <= 2.0**64 for number in (divisor, *(c for c, _ in terms))):
        dtype = np.float64
    return _Sum(terms, divisor, dtype, line.clamp, watch, dtype is np.float32 or "F64" in codes, copies)


def _scaled(terms: list[tuple[float, Source]], divisor: float) -> tuple[list[tuple[float, Source]], float]:
    """Coefficients of ordinary size in the same proportions: a power of two changes no digit."""
    size = max(abs(c) for c, _ in terms)
    if 2.0**-10 <= size <= 2.0**10:
        return terms, divisor
    power = max(-1000, min(-math.frexp(size)[1], 1000))
    return [(math.ldexp(c, power), source) for c, source in terms], math.ldexp(divisor, power)


class _Worker:
    """One thread's buffers, and what it does with a piece."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        self.buffers: dict[Any, Array] = {}
        self.read = 0

    def buffer(self, key: Any, count: int, dtype: Any) -> Array:
        """An array of ``count`` entries, the same memory whenever the key is the same."""
        found = self.buffers.get((key, dtype))
        if found is None or found.size < count:
            found = self.buffers[key, dtype] = np.empty(count, dtype)
        return found[:count]

    def piece(self, planned: Planned, start: int, stop: int, measured: Any) -> memoryview:
        """The bytes of a piece of the result."""
        if not planned.is_float:
            owners = self.job.deciding(planned)
            self.read += planned.nbytes * len(owners)
            return _integers(self.job, planned, owners)
        # Overflow and NaN are judged on the result, with the name of the tensor, and not by NumPy.
        with np.errstate(all="ignore"):
            if isinstance(measured, _Sum) and measured.copies:
                stored = self._stored(measured.terms[0][1], planned.name, start, stop, bool(planned.run))
            elif planned.rows is not None:
                stored = narrow(planned.code, self._rows(planned, start, stop, measured))
            else:
                stored = narrow(planned.code, self._combine(planned, start, stop, measured))
        if self.job.check != "none":
            self._check_finite(planned, start, stop, stored)
        return stored.data.cast("B") if stored.size else memoryview(b"")

    def _combine(self, planned: Planned, start: int, stop: int, measured: Any) -> Array:
        if isinstance(measured, _Sum):
            return self._line(planned, start, stop, measured)
        rule, job = self.job.rule, self.job
        dtype = _wide(job, planned)
        members = [
            self._read(job.sources[i], planned.name, start, stop, dtype, ("member", i))
            for i in planned.members
        ]
        base = None
        if planned.base and job.base is not None:
            base = self._read(job.base, planned.name, start, stop, dtype, "base")
        elif rule.needs_base:
            raise InputError(
                f"base: has no {planned.name!r}, which members hold. Leave it out with names='intersection'."
            )
        piece = Piece(planned.name, planned.shape, start, stop)
        return self._clamped(planned.name, rule.combine(piece, members, base, measured))

    def _line(self, planned: Planned, start: int, stop: int, line: _Sum) -> Array:
        """`LinearRule.combine` with one running sum; equal entries stay what they are."""
        name, count, dtype, beyond = planned.name, stop - start, line.dtype, bool(planned.run)
        total = self.buffer("total", count, dtype)
        first = equal = None
        for number, (coefficient, source) in enumerate(line.terms):
            if number == 0:
                self._read(source, name, start, stop, dtype, "total", beyond)
                if line.watch:
                    first = self.buffer("first", count, dtype)
                    first[...] = total
                if coefficient != 1:
                    total *= dtype(coefficient)
                continue
            x = self._read(source, name, start, stop, dtype, "term", beyond)
            if first is not None:
                same = _bits(x) == _bits(first)
                equal = same if equal is None else equal & same
            if coefficient != 1:
                x *= dtype(coefficient)
            total += x
        if line.divisor != 1:
            total /= dtype(line.divisor)
        if line.large and not math.isfinite(total.sum()):
            self._add_divided(total, name, start, stop, line, beyond)
        if first is not None and equal is not None:
            np.copyto(total, first, where=equal)
        return self._clamped(name, total) if line.clamp else total

    def _add_divided(self, total: Array, name: str, start: int, stop: int, line: _Sum, beyond: bool) -> None:
        """Entries that overflowed once more, in float64 and divided before they are added."""
        entries = np.flatnonzero(~np.isfinite(total))
        again = np.zeros(entries.size)
        for coefficient, source in line.terms if entries.size else ():
            x = self._read(source, name, start, stop, np.float64, "again", beyond)
            again += x[entries] * (coefficient / line.divisor)
        total[entries] = again if total.dtype == np.float64 else round_to_odd(again)

    def _clamped(self, name: str, wide: Array) -> Array:
        """A variance is not negative, wherever a rule may have moved it."""
        if name.endswith("running_var") and bool((wide < 0).any()):
            self.job.clamped.append(name)
            return np.maximum(wide, 0)
        return wide

    def _rows(self, planned: Planned, start: int, stop: int, measured: Any) -> Array:
        """Rows that all have are merged, the rest copied from the first member that has most."""
        assert planned.rows is not None
        out = np.empty(stop - start, _wide(self.job, planned))
        middle = min(max(planned.common, start), stop)
        if start < middle:
            out[: middle - start] = self._combine(planned, start, middle, measured)
        if middle < stop:
            self._read(self.job.longest(planned), planned.name, middle, stop, out.dtype.type, "rest")
            out[middle - start :] = self.buffer("rest", stop - middle, out.dtype.type)
        return out

    def _stored(self, source: Source, name: str, start: int, stop: int, beyond: bool = False) -> Array:
        buffer = self.buffer("stored", (stop - start) * DTYPES[source.code(name)][1], np.uint8)
        self.read += buffer.size
        return source.stored(name, start, stop, buffer.data, beyond=beyond)

    def _read(
        self, source: Source, name: str, start: int, stop: int, dtype: Any, key: Any, beyond: bool = False
    ) -> Array:
        code = source.code(name)
        stored = self._stored(source, name, start, stop, beyond)
        if self.job.check == "inputs" and not np.isfinite(_floats(code, stored)).all():
            raise InputError(
                f"{source.label}: {name!r} holds NaN or infinity. Leave this one out, or pass check='none' "
                "(--check none)."
            )
        return widen(code, stored, self.buffer(key, stop - start, dtype))

    def _check_finite(self, planned: Planned, start: int, stop: int, stored: Array) -> None:
        finite = np.isfinite(_floats(planned.code, stored))
        if bool(finite.all()):
            return
        name, entry = self._locate(planned, start + int(np.flatnonzero(~finite)[0]))
        owners = [self.job.sources[i] for i in planned.members]
        owners += [self.job.base] if planned.base and self.job.base is not None else []
        for source in owners:
            rows_here = entry < math.prod(source.shape(name))
            if rows_here and not np.isfinite(source.wide(name, entry, entry + 1)).all():
                why = f"{source.label} holds NaN or infinity there; leave it out"
                break
        else:
            why = "all that went in is finite there, so the sum or the dtype of the result overflows; use a wider dtype"
        raise InputError(f"{name!r} of the result is not finite: {why}, or pass check='none' (--check none).")

    def _locate(self, planned: Planned, entry: int) -> tuple[str, int]:
        """Name of the tensor of a run that an entry belongs to, and its place in it."""
        for name in planned.run:
            size = self.job.plan.tensors[name].size
            if entry < size:
                return name, entry
            entry -= size
        return planned.name, entry


def _integers(job: _Job, planned: Planned, owners: Sequence[Source]) -> memoryview:
    """The integer tensor that the policy chooses."""
    name = planned.name
    kept = owners[0].bytes(name)
    for source in owners[1:]:
        other = source.bytes(name)
        if other == kept:
            continue
        dtype = np.dtype(DTYPES[planned.code][0]).newbyteorder("<")
        a, b = np.frombuffer(kept, dtype), np.frombuffer(other, dtype)
        if planned.code == "BOOL":  # any byte but 0 is true
            a, b = (x.view(np.uint8) != 0 for x in (a, b))
            if bool((a == b).all()):
                continue
        largest = job.integers == "max" or (job.integers == "auto" and name.endswith("num_batches_tracked"))
        if not largest:
            i = int(np.flatnonzero(a != b)[0])
            raise InputError(
                f"{owners[0].label} and {source.label} cannot be merged: {name!r} differs, {a[i]} and {b[i]} at entry "
                f"{i}, one of {int((a != b).sum())}. Integers have no average: pass integers='first' (--integers "
                "first) to keep those of the first member, or 'max' for the largest."
            )
        kept = memoryview(np.maximum(a, b)).cast("B")
    return kept


class _Stopped(Exception):
    """Measuring is of no use any more; the reason is raised elsewhere."""


class _Inputs(Inputs):
    """All float tensors, for rules that look at everything first."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        self.labels = job.labels
        self.names = [name for name, planned in job.plan.tensors.items() if planned.is_float]

    def tensor(self, name: str) -> TensorInputs:
        """One of them."""
        return _TensorInputs(self.job, self.job.plan.tensors[name])


class _TensorInputs(TensorInputs):
    """One float tensor, block by block."""

    def __init__(self, job: _Job, planned: Planned) -> None:
        self.job, self.planned = job, planned
        self.name, self.shape = planned.name, planned.shape
        self.labels = [job.labels[i] for i in planned.members]

    def blocks(self) -> Iterator[tuple[Piece, Sequence[Array], Array | None]]:
        """Pieces of `BLOCK` entries; rows that not all have are left out."""
        job, planned = self.job, self.planned
        worker = _Worker(job)
        dtype = _wide(job, planned)
        for start in range(0, planned.common, BLOCK):
            if job.stop.is_set():
                raise _Stopped
            stop = min(start + BLOCK, planned.common)
            before = worker.read
            members = [
                worker._read(job.sources[i], planned.name, start, stop, dtype, ("member", i))
                for i in planned.members
            ]
            base = None
            if planned.base and job.base is not None:
                base = worker._read(job.base, planned.name, start, stop, dtype, "base")
            job.count(worker.read - before)
            yield Piece(planned.name, planned.shape, start, stop), members, base


def _among(line: Line, planned: Planned, job: _Job) -> Line:
    """The line through the members that hold a tensor.

    Where there is a base the others count as it; else what they would have given is left out.
    """
    if len(planned.members) == len(job.labels):
        return line
    coefficients = [line.coefficients[i] for i in planned.members]
    total = math.fsum(coefficients)
    if job.rule.needs_base:
        return replace(line, coefficients=coefficients, base=line.divisor - total)
    if line.affine and abs(total) <= 1e-12 * sum(map(abs, coefficients)):
        raise InputError(
            f"coefficients for {planned.name!r}: expected a sum other than 0 of the members that hold it, "
            f"got {coefficients}."
        )
    return replace(line, coefficients=coefficients, divisor=total if line.affine else line.divisor)


def _wide(job: _Job, planned: Planned) -> type[np.floating[Any]]:
    owners = [job.sources[i] for i in planned.members]
    owners += [job.base] if planned.base and job.base is not None else []
    codes = [source.code(planned.name) for source in owners]
    return wide_dtype([*codes, planned.code])


def _bits(x: Array) -> Array:
    return x.view(np.int64 if x.dtype == np.float64 else np.int32)


def _floats(code: str, stored: Array) -> Array:
    """Something whose finiteness is that of the stored entries."""
    if code == "BF16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if not is_float(code) or code.startswith("F8"):
        return widen(code, stored, np.empty(stored.size, np.float32))
    return stored


def _is_numpy(member: Any) -> bool:
    """Whether a member is of NumPy; what is given as a path becomes torch, which has all dtypes."""
    if isinstance(member, Checkpoint):
        return member.framework == "numpy"
    return isinstance(member, Mapping) and isinstance(
        next(iter(member.values()), None), np.ndarray | np.generic
    )


def _array(name: str, planned: Planned, content: Array, torch: bool) -> Any:
    def fill(buffer: memoryview) -> None:
        buffer[:] = content.data

    return build(name, planned.code, planned.shape, fill, "torch" if torch else "numpy")


def _check_counts(chunk: int | None, workers: int) -> None:
    for name, value in {"chunk": chunk, "workers": workers}.items():
        if name == "chunk" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise InputError(f"{name}: expected a whole number of at least 1, got {value!r}.")


def _check_option(name: str, value: str, options: Any) -> None:
    if value not in get_args(options):
        raise InputError(f"{name}: expected one of {', '.join(get_args(options))}, got {value!r}.")
