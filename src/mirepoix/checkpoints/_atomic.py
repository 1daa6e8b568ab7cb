"""Writing whole or not at all: a temporary name in the same folder, flushed, then renamed.

A reader sees the old file or the new one, never a part; a crash or a full disk leaves the old one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirepoix.types import InputError

__all__ = ["atomic_path", "sync_folder", "write_atomically"]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write to; when the block ends well, it becomes ``path`` in one step.

    When the block raises, the temporary is removed and ``path`` is what it was. The temporary is called
    ``.<name>.<pid>-<random>.tmp``: a writer that reads the format from the suffix must be told the format.

    Raises:
        InputError: If ``path`` is a folder, or its folder does not exist.
        OSError: From the disk (full, read-only); nothing has changed then.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(
            f"{path}: expected the name of a file to write, got a folder. Name a file inside it."
        )
    if not path.parent.is_dir():
        raise InputError(
            f"{path}: cannot be written, the folder {path.parent} does not exist. Create it first."
        )
    # The pid alone is not enough: threads share it, and so do machines on one network disk. The name is cut
    # because the longest allowed one leaves no room for the rest.
    temporary = path.parent / f".{path.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        # An error of the clean-up (a disk that became read-only) must not hide the first one.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write bytes, or text as UTF-8, so that ``path`` is the old file or the whole new one.

    Raises:
        InputError: If ``path`` is a folder, or its folder does not exist.
        OSError: From the disk (full, read-only); nothing has changed then.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def sync_folder(folder: Path) -> None:
    """Make the rename itself survive a loss of power, where the file system can promise it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
