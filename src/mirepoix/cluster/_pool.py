"""Worker processes on this machine, each with its own share of cores or its GPU.

`concurrent.futures.ProcessPoolExecutor` ends every running call when one of its processes dies, and gives its
processes one environment. Here each process has a thread of the driver that feeds it, so a process that is
killed takes one work with it, and the next work gets a new process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

from mirepoix.cluster._engine import Attempt, WorkerLost, WorkFuture, at_least_one, attempt, settle
from mirepoix.types import InputError

__all__ = ["LocalPool", "thread_variables"]

SPAWN = multiprocessing.get_context("spawn")  # a fork would copy torch's locks in whatever state they are
ENVIRONMENT = threading.Lock()
GLANCE = 1.0  # seconds between looks at whether the other side lives
PATIENCE = 5.0  # seconds that a worker without work has to end by itself


def thread_variables(threads: int) -> dict[str, str]:
    """The environment in which numerical libraries use this many threads, if it is set before they load."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


class LocalPool:
    """Worker processes on this machine.

    Processes are started with ``spawn`` when there is work for them, and stay for the next work, so that torch
    is loaded once. Their environment is set before anything is imported. A worker that dies loses the work it
    had, and no other. Workers end with the driver, however that ends.

    As with any spawned process, a script that uses it needs ``if __name__ == "__main__":``.

    Args:
        workers: How many processes, so how many works at once.
        threads: Of torch and the other numerical libraries, in each. The order of a sum depends on it, so compare
            results with equal numbers only.
        gpus: Which GPUs to use, as counted by the driver; each worker sees one, in turn, as its only one. More
            workers than GPUs share them. Empty: workers see what the driver sees.

    Raises:
        InputError: For counts below one, or a GPU that the driver may not use.
    """

    def __init__(self, workers: int, threads: int = 1, gpus: Sequence[int] = ()) -> None:
        at_least_one("LocalPool: workers", workers)
        at_least_one("LocalPool: threads", threads)
        self._workers, self._threads = workers, threads
        self._devices = [visible_gpu(gpu) for gpu in gpus]
        self._calls: queue.SimpleQueue[tuple[WorkFuture, bytes] | None] = queue.SimpleQueue()
        self._slots: list[_Slot] = []

    @property
    def workers(self) -> int:
        """How many works run at once."""
        return self._workers

    def describe(self) -> str:
        """The engine in words."""
        many = "s" if self._workers > 1 else ""
        text = f"{self._workers} process{'es' if many else ''} on this machine, {self._threads} thread"
        text += "s" if self._threads > 1 else ""
        text += " each" if many else ""
        return text + (f", on GPU {', '.join(self._devices)}" if self._devices else "")

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> WorkFuture:
        """Call ``function(*arguments)`` in a worker.

        The future ends with the function's value or its error, with `InputError` if something cannot be sent to
        or from a worker, or with `WorkerLost`.
        """
        if not self._slots:
            raise InputError("LocalPool: submit works inside its `with` block only.")
        future = WorkFuture()
        try:
            # Not multiprocessing's own pickler: torch teaches it to share memory, which dies with its process.
            call = pickle.dumps((function, arguments))
        except Exception as error:
            future.set_running_or_notify_cancel()
            future.set_exception(
                InputError(
                    f"{function!r} or its arguments cannot be sent to a worker ({error}); use a function of a "
                    "module and plain arguments."
                )
            )
            return future
        self._calls.put((future, call))
        return future

    def __enter__(self) -> Self:
        for number in range(self._workers):
            variables = thread_variables(self._threads)
            if self._devices:
                variables["CUDA_VISIBLE_DEVICES"] = self._devices[number % len(self._devices)]
            self._slots.append(_Slot(self._calls, variables, self._threads))
        for slot in self._slots:
            slot.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        slots, self._slots = self._slots, []
        if error is not None:
            with contextlib.suppress(queue.Empty):
                while item := self._calls.get_nowait():
                    item[0].cancel()
        for _ in slots:
            self._calls.put(None)
        try:
            for slot in slots if error is None else ():
                slot.thread.join()
        finally:  # after Ctrl-C while waiting, too
            for slot in slots:
                slot.kill()
            for slot in slots:
                slot.thread.join(PATIENCE)


def visible_gpu(gpu: int) -> str:
    """What CUDA calls the GPU that the driver counts as ``gpu``."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible is not None else None
    if gpu < 0 or (names is not None and (gpu >= len(names) or not names[gpu])):
        raise InputError(
            f"LocalPool: expected the numbers of GPUs this process may use, got {gpu}; "
            f"CUDA_VISIBLE_DEVICES is {visible!r}."
        )
    return str(gpu) if names is None else names[gpu]


class _Slot:
    """One worker process after the other, and the thread of the driver that feeds it."""

    def __init__(self, calls: Any, variables: Mapping[str, str], threads: int) -> None:
        self.calls, self.variables, self.threads = calls, variables, threads
        self.process: Any = None
        self.connection: Connection[Any, Any] | None = None
        self.closed = False
        self.starting = threading.Lock()
        self.thread = threading.Thread(target=self.feed, daemon=True, name="mirepoix-pool")

    def feed(self) -> None:
        while (item := self.calls.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    result = self.ask(call)
                except Exception as error:  # no memory for a process, a reply that cannot be read
                    self.end()
                    future.set_exception(error)
                else:
                    settle(future, result)
        self.end()

    def ask(self, call: bytes) -> Attempt:
        connection = self.ready()
        try:
            connection.send_bytes(call)
            while not wait([connection], GLANCE):
                # What the worker forked may hold the pipe open after it died, so look at the process itself.
                if not self.process.is_alive() and not connection.poll():
                    raise EOFError
            reply: Attempt = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            self.process.join(PATIENCE)
            raise WorkerLost(f"its worker {ending(self.process.exitcode)}") from None
        return reply

    def ready(self) -> Connection[Any, Any]:
        """The pipe to a living process, a new one if need be."""
        if self.process is not None and self.connection is not None and self.process.is_alive():
            return self.connection
        self.end()
        with self.starting:
            if self.closed:
                raise WorkerLost("the pool was closed", final=True)
            self.connection, theirs = SPAWN.Pipe()
            process = SPAWN.Process(
                target=serve, args=(theirs, os.getpid(), self.threads), name="mirepoix-worker"
            )
            with theirs, environment(self.variables):
                process.start()
            self.process = process
        return self.connection

    def end(self) -> None:
        """Let the process go: closing the pipe tells it to, and it has a moment to do so."""
        if self.connection is not None:
            self.connection.close()
        if self.process is not None:
            self.process.join(PATIENCE)
            if self.process.is_alive():
                self.process.kill()
                self.process.join()
        self.process = self.connection = None

    def kill(self) -> None:
        """From another thread: no process from now on."""
        with self.starting:
            self.closed = True
            process = self.process
        if process is not None:
            with contextlib.suppress(ValueError, OSError):
                process.kill()


def ending(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "closed its pipe"
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    hint = "; perhaps the memory ran out" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables while a process starts: it reads them before it imports the script it belongs to."""
    with ENVIRONMENT:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def serve(connection: Connection[Any, Any], driver: int, threads: int) -> None:
    """What a worker does: one call after the other, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the driver decides
    threading.Thread(target=follow, args=(driver,), daemon=True).start()
    while True:
        try:
            call = connection.recv_bytes()
        except (EOFError, OSError):
            return
        result = attempt(lambda call=call: pickle.loads(call), threads)  # type: ignore[misc]
        try:
            reply = pickle.dumps(result)
        except Exception as error:
            told = InputError(f"what the work returned cannot be sent back ({error}); return plain values.")
            reply = pickle.dumps(Attempt(None, told, result.seconds))
        try:
            connection.send_bytes(reply)
        except OSError:
            return


def follow(driver: int) -> None:
    """End this process when the driver is gone, even killed: nobody would read what it computes."""
    parent = multiprocessing.parent_process()
    while os.getppid() == driver and not (parent and wait([parent.sentinel], GLANCE)):
        pass
    os._exit(1)
