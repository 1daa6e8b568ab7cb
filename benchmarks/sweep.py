"""What an engine adds to the works of a sweep: this process, the local pool and Ray, beside the bare tools.

Every round starts each engine afresh, one after the other, and measures

``start``
    Seconds to enter the engine and to leave it, without work.
``first``
    Seconds from the first submission to its value; this is when most engines start their processes.
``empty``
    Milliseconds per work of many works that do nothing, all workers being there. Ours go through `carry_out`,
    with its graph and its events; the peers get their plain calls. joblib puts many such calls into one message.
``50 ms``
    Seconds for works that sleep 50 ms over the ideal, which is the number of works by workers, rounded up,
    times 50 ms. A training takes minutes, so what is above 1 here shrinks further.

Numbers are medians over the rounds, with the smallest and the largest beside them. Nothing imports torch: what
that takes is the same for all.

    python benchmarks/sweep.py                        # about 2 minutes on 2 cores
    python benchmarks/sweep.py --engines inline pool --rounds 9 --json result.json
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from mirepoix.cluster import Engine, Inline, LocalPool, RayCluster, Work, carry_out

NAP = 0.05
Run = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], None]
"""Call a function with each of the arguments and wait for all."""


def nothing(number: int) -> int:
    return number


def nap(number: int) -> int:
    time.sleep(NAP)
    return number


# The engines and their peers --------------------------------------------------------------------------------


@contextmanager
def ours(engine: Engine) -> Iterator[Run]:
    def run(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
        works = [Work(str(number), function, values) for number, values in enumerate(arguments)]
        done = carry_out(works, engine, on_event=lambda event: None)
        assert all(result.status == "done" for result in done.values())

    with engine:
        yield run


@contextmanager
def bare_executor(workers: int) -> Iterator[Run]:
    def run(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
        for future in [executor.submit(function, *values) for values in arguments]:
            future.result()

    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield run


@contextmanager
def with_joblib(workers: int) -> Iterator[Run]:
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    def run(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
        Parallel(n_jobs=workers, backend="loky")(delayed(function)(*values) for values in arguments)

    yield run
    get_reusable_executor(max_workers=workers).shutdown(wait=True)


ENGINES: dict[str, tuple[str, Callable[[int], Any]]] = {
    "inline": ("`Inline`", lambda workers: ours(Inline())),
    "pool": ("`LocalPool`", lambda workers: ours(LocalPool(workers))),
    "ray": ("`RayCluster`, local", lambda workers: ours(RayCluster("local", workers=workers))),
    "executor": ("ProcessPoolExecutor, spawn", bare_executor),
    "joblib": ("joblib, loky", with_joblib),
}


# The measurement --------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One engine.

    Attributes:
        engine: Its name.
        workers: How many.
        start: Seconds to enter and leave, by round.
        first: Seconds of the first work, by round.
        empty: Milliseconds per empty work, by round.
        naps: Seconds of the works that sleep over the ideal, by round.
    """

    engine: str
    workers: int
    start: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    empty: list[float] = field(default_factory=list)
    naps: list[float] = field(default_factory=list)

    def markdown(self) -> str:
        cells = [self.engine, str(self.workers)]
        for values, digits in ((self.start, 2), (self.first, 3), (self.empty, 3), (self.naps, 3)):
            cells += [
                f"{statistics.median(values):.{digits}f}",
                f"{min(values):.{digits}f}-{max(values):.{digits}f}",
            ]
        return f"| {' | '.join([*cells, str(len(self.naps))])} |"


COLUMNS = ("start s", "first s", "empty ms", "50 ms, x ideal")
HEADER = (
    f"| engine | workers | {' | '.join(f'{column} | min-max' for column in COLUMNS)} | rounds |\n"
    f"| --- |{' --: |' * (2 * len(COLUMNS) + 2)}"
)


def measure(row: Row, make: Callable[[int], Any], empty: int, naps: int) -> None:
    """Add one round to a row."""
    entered = time.perf_counter()
    with make(row.workers) as run:
        start = time.perf_counter() - entered
        started = time.perf_counter()
        run(nothing, [(0,)])
        row.first.append(time.perf_counter() - started)
        run(nap, [(i,) for i in range(4 * row.workers)])  # all workers are there now
        started = time.perf_counter()
        run(nothing, [(i,) for i in range(empty)])
        row.empty.append(1000 * (time.perf_counter() - started) / empty)
        started = time.perf_counter()
        run(nap, [(i,) for i in range(naps)])
        row.naps.append((time.perf_counter() - started) / (math.ceil(naps / row.workers) * NAP))
        left = time.perf_counter()
    row.start.append(start + time.perf_counter() - left)
    print(
        f"  {row.engine}: start {row.start[-1]:.2f} s, first {row.first[-1]:.3f} s, "
        f"empty {row.empty[-1]:.3f} ms, 50 ms x {row.naps[-1]:.3f}",
        file=sys.stderr,
        flush=True,
    )


def machine() -> dict[str, Any]:
    """Where this runs."""
    model, facts = platform.machine(), Path("/proc/cpuinfo")
    for line in facts.read_text().splitlines() if facts.exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    versions = {}
    for name in ("ray", "joblib"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {"cores": os.cpu_count(), "cpu": model, "python": platform.python_version(), **versions}


def main() -> None:
    """Measure what the command line asks for and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--empty", type=int, default=1000, help="works that do nothing")
    parser.add_argument("--naps", type=int, default=100, help="works that sleep 50 ms")
    parser.add_argument("--json", type=Path, help="also write every number to this file")
    parser.add_argument("--quick", action="store_true", help="see that it works; no numbers to report")
    options = parser.parse_args()
    rounds, empty, naps = (1, 20, 4) if options.quick else (options.rounds, options.empty, options.naps)

    machine_now = machine()
    names = [name for name in ENGINES if name in options.engines]
    skipped = [name for name in names if machine_now.get(name) == "not installed"]
    names = [name for name in names if name not in skipped]
    rows = {name: Row(ENGINES[name][0], 1 if name == "inline" else options.workers) for name in names}
    started, load = time.monotonic(), os.getloadavg()[0]
    for number in range(rounds):
        print(f"round {number + 1}/{rounds}", file=sys.stderr)
        for name, row in rows.items():
            measure(row, ENGINES[name][1], empty, naps)
    seconds = time.monotonic() - started

    command = " ".join(["python", *sys.argv])
    print(
        f"`{command}`: {seconds:.0f} s; {empty} empty works, {naps} of 50 ms; load before it: {load:.1f}.\n"
    )
    print(", ".join(f"{name} {value}" for name, value in machine_now.items()) + "\n")
    print("\n".join([HEADER, *(row.markdown() for row in rows.values())]))
    for name in skipped:
        print(f"\n{ENGINES[name][0]} was skipped: {name} is not installed.")
    if options.json:
        result = {
            "command": command,
            "machine": machine_now,
            "seconds": seconds,
            "load": load,
            "empty": empty,
            "naps": naps,
            "rows": [asdict(row) for row in rows.values()],
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
