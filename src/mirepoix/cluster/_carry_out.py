"""A sweep: works that need each other, done by an engine, the longest way first."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from dataclasses import dataclass
from typing import Any, Literal

from mirepoix.cluster._engine import ClusterLost, Engine, Untransported, WorkerLost, WorkFuture
from mirepoix.cluster._works import Done, Event, Work, in_order
from mirepoix.types import Diverged, InputError

__all__ = ["carry_out"]

AHEAD = 2  # works submitted per worker: one runs, one waits at hand; thousands would only flood the engine
GLANCE = 0.2  # seconds between looks at which of them were started


def carry_out(
    works: Sequence[Work],
    engine: Engine,
    *,
    retries: int = 2,
    on_event: Callable[[Event], None] | None = None,
    keep_going: bool = True,
) -> dict[str, Done]:
    """Do all works, each when what it needs is done.

    Of the works that can start, the one with the largest weight from itself to an end of the sweep starts first;
    equals start in the order given. The engine decides how many run at once, never what they return.

    Args:
        works: What is to be done, in any order.
        engine: Where, inside its ``with`` block.
        retries: How often a work is started again whose worker was lost. An engine that does so by itself
            (`RayCluster`) has its own number. An error raised by the function is never tried again.
        on_event: Told what happens, in this thread. An error it raises ends the sweep.
        keep_going: After a failure, go on with the works that do not need it. Else no further work starts, and
            those that run are waited for.

    Returns:
        What became of each work, by name, in the order given.

    Raises:
        InputError: For a name given twice, a need that is no work, or works that wait for each other.
        ClusterLost: If the cluster no longer answers; what was finished is kept in the store.
        KeyboardInterrupt: On Ctrl-C, at once; what waits is cancelled, and leaving the engine ends what runs.

    Example:
        >>> import math
        >>> works = [Work("six", math.factorial, (3,)), Work("root", math.sqrt, (9,), needs=("six",))]
        >>> with Inline() as engine:
        ...     carry_out(works, engine)["root"].value
        3.0
    """
    if retries < 0:
        raise InputError(f"carry_out: expected retries of at least 0, got {retries}.")
    return _Sweep(works, engine, retries, on_event, keep_going).run()


@dataclass
class _Try:
    """One attempt at a work."""

    name: str
    number: int
    since: float
    started: bool = False


class _Sweep:
    def __init__(
        self,
        works: Sequence[Work],
        engine: Engine,
        retries: int,
        on_event: Callable[[Event], None] | None,
        keep_going: bool,
    ) -> None:
        order = in_order(works)
        self.works = {work.name: work for work in works}
        self.engine, self.retries, self.on_event, self.keep_going = engine, retries, on_event, keep_going
        self.dependents: dict[str, list[str]] = {name: [] for name in self.works}
        for work in works:
            for need in dict.fromkeys(work.needs):
                self.dependents[need].append(work.name)
        self.missing = {work.name: set(work.needs) for work in works}
        # The largest weight from the start of a work to an end of the sweep.
        self.way: dict[str, float] = {}
        for name in reversed(order):
            after = max((self.way[other] for other in self.dependents[name]), default=0.0)
            self.way[name] = self.works[name].weight + after
        self.place = {name: number for number, name in enumerate(self.works)}
        self.ready: list[tuple[float, int, str, int]] = []  # a heap; the last entry counts the attempts
        self.running: dict[WorkFuture, _Try] = {}
        self.done: dict[str, Done] = {}
        self.stopped = ""  # why no further work starts
        self.counts = {"done": 0, "failed": 0, "skipped": 0}
        for name, missing in self.missing.items():
            if not missing:
                self._offer(name, 1)

    def run(self) -> dict[str, Done]:
        try:
            while self.ready or self.running:
                self._submit()
                self._collect()
        except BaseException as error:
            for future in self.running:
                future.cancel()
            if isinstance(error, ClusterLost):
                raise ClusterLost(
                    f"{error} {self.counts['done']} of {len(self.works)} works are done, and what they made is "
                    "kept in the store. When the cluster is back, give the same command again: it goes on "
                    "from there."
                ) from error
            raise
        return {name: self.done[name] for name in self.works}

    def _offer(self, name: str, number: int) -> None:
        heapq.heappush(self.ready, (-self.way[name], self.place[name], name, number))

    def _submit(self) -> None:
        room = AHEAD * self.engine.workers
        while self.ready and len(self.running) < room:
            *_, name, number = heapq.heappop(self.ready)
            work = self.works[name]
            self._tell("submitted", name, running=1)
            attempt = _Try(name, number, time.perf_counter())
            future = self.engine.submit(work.function, *work.arguments)
            self.running[future] = attempt
            if future.done():  # by `Inline`: what it makes possible may come before the next in the heap
                break

    def _collect(self) -> None:
        wait(self.running, timeout=GLANCE, return_when=FIRST_COMPLETED)
        ended = [future for future in self.running if future.done()]  # in the order of submission
        for future, attempt in self.running.items():
            if not attempt.started and (future.running() or (future in ended and not future.cancelled())):
                attempt.started, attempt.since = True, time.perf_counter()
                self._tell("started", attempt.name)
        for future in ended:
            self._judge(future, self.running.pop(future))

    def _judge(self, future: WorkFuture, attempt: _Try) -> None:
        name, number = attempt.name, attempt.number
        seconds = future.seconds if future.seconds is not None else time.perf_counter() - attempt.since
        try:
            value = future.result()
        except CancelledError:
            self._skip(name, self.stopped or "it was cancelled before it started")
        except ClusterLost:
            raise
        except WorkerLost as lost:
            if not lost.final and number <= self.retries and not self.stopped:
                self._tell("retried", name, str(lost), seconds)
                self._offer(name, number + 1)
                return
            tries = "" if lost.final else f", {number} time{'s' if number > 1 else ''}"
            self._fail(name, Done("failed", None, f"{lost}{tries}", seconds, number))
        except Exception as error:
            known = isinstance(error, (InputError, Diverged, Untransported)) and str(error)
            message = str(error) if known else f"{type(error).__name__}: {error}"
            self._fail(name, Done("failed", None, message, seconds, number))
        else:
            self._end(name, Done("done", value, "", seconds, number))
            for other in self.dependents[name]:
                self.missing[other].discard(name)
                if not self.missing[other] and other not in self.done:
                    self._offer(other, 1)

    def _fail(self, name: str, result: Done) -> None:
        self._end(name, result)
        self._skip_dependents(name, f"it needs {name!r}, which failed: {result.message}")
        if self.keep_going or self.stopped:
            return
        self.stopped = f"not started, as {name!r} failed"
        self.ready.clear()
        for future in self.running:
            future.cancel()
        busy = {attempt.name for attempt in self.running.values()}
        for other in self.works:
            if other not in self.done and other not in busy:
                self._end(other, Done("skipped", None, self.stopped))

    def _skip(self, name: str, why: str) -> None:
        self._end(name, Done("skipped", None, why))
        self._skip_dependents(name, why)

    def _skip_dependents(self, name: str, why: str) -> None:
        waiting = list(self.dependents[name])
        while waiting:
            other = waiting.pop(0)
            if other not in self.done:
                self._end(other, Done("skipped", None, why))
                waiting += self.dependents[other]

    def _end(self, name: str, result: Done) -> None:
        self.done[name] = result
        self.counts[result.status] += 1
        self._tell(result.status, name, result.message, result.seconds)

    def _tell(
        self,
        kind: Literal["submitted", "started", "done", "failed", "retried", "skipped"],
        name: str,
        message: str = "",
        seconds: float = 0.0,
        running: int = 0,
    ) -> None:
        if self.on_event:
            running += len(self.running)
            total = len(self.works)
            counts: dict[str, Any] = self.counts
            self.on_event(Event(kind, name, message, seconds, running=running, total=total, **counts))
