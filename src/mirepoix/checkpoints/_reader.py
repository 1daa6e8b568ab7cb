"""Files opened to be read at positions: checked to be what they were, one descriptor at a time."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from mirepoix.types import InputError

__all__ = ["Reader", "State", "existing_file", "opened", "read_at", "read_bytes"]

State: TypeAlias = tuple[int, int, int, int]
"""Device, inode, size and time of change of a file: enough to notice that it is another one."""


def existing_file(path: str | os.PathLike[str], expected: str) -> Path:
    """The path, if a file is there."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: expected {expected}, got a folder. Name one file inside it.")
    if not path.exists():
        raise InputError(f"{path}: expected {expected}, got nothing there. Check the path.")
    if not path.is_file():  # to open a pipe would wait for a writer, maybe for ever
        raise InputError(f"{path}: expected {expected}, got a device or a pipe. Name a file.")
    return path


@contextmanager
def opened(path: Path, expected: str) -> Iterator[tuple[int, State]]:
    """A descriptor of a regular file, read-only, and the state of the file."""
    descriptor = _open(path, expected)
    try:
        yield descriptor, _state(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def read_at(descriptor: int, start: int, buffer: memoryview) -> bool:
    """Fill the buffer from a position; whether the file went so far."""
    done, count = 0, len(buffer)
    while done < count:
        got = os.preadv(descriptor, [buffer[done:]], start + done)  # the system reads at most 2 GiB at once
        if not got:
            return False
        done += got
    return True


def read_bytes(descriptor: int, start: int, count: int) -> bytes:
    """At most ``count`` bytes from a position."""
    data = os.pread(descriptor, count, start)
    while len(data) < count and (more := os.pread(descriptor, count - len(data), start + len(data))):
        data += more
    return data


class Reader:
    """Reads from several files; keeps at most one of them open between reads, and notices when one has changed.

    Threads may share it, and read at the same time. So may processes after a fork: positional reads have no
    common place in the file.
    """

    def __init__(self, files: Sequence[Path], states: Sequence[State]) -> None:
        self._files, self._states = files, states
        self._lock = threading.Lock()
        self._open: dict[int, list[int]] = {}  # number of the file: descriptor, reads under way

    def fill(self, name: str, file: int, start: int, buffer: memoryview, *, keep: bool) -> None:
        """Fill the buffer from a file, and leave that file open for the next read if ``keep``."""
        descriptor = self._borrow(file)
        whole = same = False
        try:
            whole = read_at(descriptor, start, buffer)
            # After the read, so that a change during it is seen.
            same = _state(os.fstat(descriptor)) == self._states[file]
        finally:
            self._give_back(file, keep=keep and whole and same)
        if not whole or not same:
            raise InputError(
                f"{self._files[file]}: changed while open, {name!r} cannot be read. Open it again."
            )

    def close(self) -> None:
        """Close what is open; the next read opens it again."""
        with self._lock:
            self._close_idle()

    def _borrow(self, file: int) -> int:
        with self._lock:
            if file not in self._open:
                self._close_idle()
                self._open[file] = [_open(self._files[file], "the file of weights opened before"), 0]
            self._open[file][1] += 1
            return self._open[file][0]

    def _give_back(self, file: int, *, keep: bool) -> None:
        with self._lock:
            self._open[file][1] -= 1
            if not keep:
                self._close_idle()

    def _close_idle(self) -> None:
        for file in [file for file, (_, users) in self._open.items() if not users]:
            os.close(self._open.pop(file)[0])

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # at exit, or when opening failed
            self.close()


def _open(path: Path, expected: str) -> int:
    # The check by descriptor decides; without O_NONBLOCK a pipe put there meanwhile would make the opening wait.
    descriptor = os.open(existing_file(path, expected), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path}: expected {expected}, got a device or a pipe. Name a file.")
    return descriptor


def _state(status: os.stat_result) -> State:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
