"""What an engine is, the futures it returns, and the engine that is this process."""

from __future__ import annotations

import pickle
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from mirepoix.types import InputError

__all__ = [
    "Attempt",
    "ClusterLost",
    "Engine",
    "Inline",
    "WorkFuture",
    "WorkerLost",
    "attempt",
    "set_threads",
    "settle",
]


class WorkerLost(RuntimeError):
    """The process that did a work ended before the work did: it was killed, or its memory ran out.

    Attributes:
        final: Whether the engine itself has already tried again and given up.
    """

    def __init__(self, message: str, final: bool = False) -> None:
        super().__init__(message, final)  # both, so that the error survives the way from another process
        self.final = final

    def __str__(self) -> str:
        return str(self.args[0])


class ClusterLost(RuntimeError):
    """The cluster no longer answers. What was finished is kept; the same call goes on from there."""


class Untransported(RuntimeError):
    """An error of a worker that cannot travel as it is: its name and text."""


class WorkFuture(Future[Any]):
    """A future that also knows how long the function ran.

    Attributes:
        seconds: On the worker, without waiting and travelling; None until known.
    """

    seconds: float | None = None


class Engine(Protocol):
    """Where works run. An engine works inside its ``with`` block.

    Leaving the block after an error, Ctrl-C included, ends what still runs; leaving it otherwise waits.
    """

    @property
    def workers(self) -> int:
        """How many works run at once."""
        ...

    def describe(self) -> str:
        """The engine in words, for a person."""
        ...

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> WorkFuture:
        """Call ``function(*arguments)`` on a worker; never blocks, but for `Inline`."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class Attempt:
    """What a call came to, in a form that travels between processes."""

    value: Any
    error: Exception | None
    seconds: float


def attempt(
    load: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]], threads: int | None, *, here: bool = False
) -> Attempt:
    """Load a function with its arguments and call it; an error is returned, not raised.

    On a worker that is so for `SystemExit` too; ``here``, in the driver, it ends the driver.
    """
    started = time.perf_counter()
    try:
        function, arguments = load()  # an import that fails belongs to this work alone
        if threads:
            set_threads(threads)
        value = function(*arguments)
    except (Exception, SystemExit) as error:
        if here and isinstance(error, SystemExit):
            raise
        trace = "".join(traceback.format_exception(error))
        return Attempt(None, portable(error, trace), time.perf_counter() - started)
    return Attempt(value, None, time.perf_counter() - started)


def set_threads(threads: int) -> None:
    """Torch's threads, if torch is there; if it comes later, it reads the worker's environment.

    Before every work, as an earlier one may have changed them: sums depend on the number of threads.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def portable(error: BaseException, trace: str) -> Exception:
    """The error, if it can travel to another process and be the same there; else its name and text."""
    try:
        copy = pickle.loads(pickle.dumps(error))
        same = type(copy) is type(error) and str(copy) == str(error) and isinstance(copy, Exception)
    except Exception:
        same = False
    if not same or not isinstance(error, Exception):
        error = Untransported(f"{type(error).__name__}: {error}")
    error.add_note(f"On the worker:\n{trace}")
    return error


def settle(future: WorkFuture, result: Attempt) -> None:
    """End a future as the attempt ended."""
    future.seconds = result.seconds
    if result.error is not None:
        future.set_exception(result.error)
    else:
        future.set_result(result.value)


class Inline:
    """The engine that is this process: one work after the other, when it is submitted.

    Args:
        threads: Of torch inside the block, as for `LocalPool`; None leaves them as they are.
    """

    workers = 1

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None:
            at_least_one("Inline: threads", threads)
        self._threads, self._before = threads, threads

    def describe(self) -> str:
        """The engine in words."""
        return "this process, one work at a time"

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> WorkFuture:
        """Call the function now; the future is done when this returns."""
        future = WorkFuture()
        future.set_running_or_notify_cancel()
        settle(future, attempt(lambda: (function, arguments), self._threads, here=True))
        return future

    def __enter__(self) -> Self:
        if self._threads is not None:
            import torch

            self._before = torch.get_num_threads()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            set_threads(self._before)


def at_least_one(what: str, value: int) -> None:
    """Refuse a count below one."""
    if value < 1:
        raise InputError(f"{what}: expected at least 1, got {value}.")
