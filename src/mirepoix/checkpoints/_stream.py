"""Writing weights that do not fit into memory: names and shapes first, then bytes in any order."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from mirepoix.checkpoints._atomic import sync_folder, write_atomically
from mirepoix.checkpoints._entry import LARGEST_NAME
from mirepoix.checkpoints._json import to_json
from mirepoix.checkpoints._tensors import DTYPES
from mirepoix.types import InputError

__all__ = ["WeightsWriter", "parse_size"]

EARLY = 16 << 20
"""Bytes after which the disk is asked to begin."""


def parse_size(text: str | int) -> int:
    """Bytes from ``"5GB"``, ``"500MB"``, ``"1GiB"`` or a number.

    Raises:
        InputError: If it is none of these, or not positive.
    """
    match = re.fullmatch(r"(\d{1,30}(?:\.\d{1,30})?)\s*([KMGT]?)(i?)B?", str(text).strip(), re.IGNORECASE)
    size = 0
    if match:
        base = 1024 if match[3] else 1000
        number = float(match[1]) if "." in match[1] else int(match[1])
        size = int(number * base ** " KMGT".index(match[2].upper() or " "))
    if size <= 0:
        raise InputError(f"size: expected a number of bytes such as 5GB or 500MB, got {text!r}.")
    return size


class WeightsWriter:
    """A safetensors file (or several) whose tensors are filled piece by piece, from any thread.

    All sizes are known before the first byte, so nothing is moved later. The pieces go to temporary files in
    the same folder; when the block ends well and every byte was written, they are flushed and take their
    names, the index of a sharded output last. When it does not, nothing stays.

    Args:
        path: The file, ending in ``.safetensors``. With several shards, ``soup.safetensors`` becomes
            ``soup-00001-of-00002.safetensors`` and so on, and ``soup.safetensors.index.json``.
        tensors: Dtype code and shape of each tensor, in the order of the file; wide elements come first
            so that every tensor begins at a multiple of its element's size.
        metadata: Texts for the header of every file, beside ``format: pt``.
        max_shard: The most bytes of tensors in one file, as a number or as `parse_size` reads them; a larger
            tensor gets a file of its own.

    Raises:
        InputError: If the path is unfit, ``max_shard`` is no size, or a name or the metadata is not valid text.
        OSError: From the disk (full, read-only); nothing stays then.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tensors: Mapping[str, tuple[str, tuple[int, ...]]],
        *,
        metadata: Mapping[str, str] | None = None,
        max_shard: int | str | None = None,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != ".safetensors":
            raise InputError(
                f"{path}: expected a name ending in .safetensors, got {self.path.suffix or 'no suffix'!r}."
            )
        if self.path.is_dir():
            raise InputError(
                f"{path}: expected the name of a file to write, got a folder. Name a file in it."
            )
        if self.path.is_symlink():
            raise InputError(
                f"{path}: is a symbolic link and will not be written through. Name the file itself."
            )
        if not self.path.parent.is_dir():
            raise InputError(
                f"{path}: cannot be written, the folder {self.path.parent} does not exist. Create it."
            )
        if not tensors:
            raise InputError(f"{path}: expected weights to write, got no tensors.")
        if "__metadata__" in tensors:
            raise InputError(
                f"{path}: no tensor can be called '__metadata__' in a safetensors file. Rename it."
            )
        ordered = sorted(
            tensors, key=lambda name: -DTYPES[tensors[name][0]][1]
        )  # stable: file order otherwise
        texts = {"format": "pt", **(metadata or {})}
        if not all(isinstance(text, str) for item in texts.items() for text in item):
            raise InputError(
                f"metadata: expected texts by name, got {dict(metadata or {})!r}. Write other values with json.dumps."
            )
        shards = _shards(ordered, tensors, None if max_shard is None else parse_size(max_shard))
        self._places: dict[str, tuple[int, int, int]] = {}  # name -> shard, first byte, bytes
        self._headers: list[bytes] = []
        self._sizes: list[int] = []
        for number, names in enumerate(shards):
            try:
                first, offsets = header_of({name: tensors[name] for name in names}, texts)
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{path}: a name or metadata is not valid text: {error}. Rename it."
                ) from error
            for name, (start, stop) in offsets.items():
                self._places[name] = (number, len(first) + start, stop - start)
            self._headers.append(first)
            self._sizes.append(len(first) + sum(stop - start for start, stop in offsets.values()))
        self.files = _names(self.path, len(shards))
        self._descriptors: list[int] = []
        self._temporaries: list[Path] = []
        self._written = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all files together."""
        return sum(self._sizes)

    def __enter__(self) -> WeightsWriter:
        try:
            for file, first, size in zip(self.files, self._headers, self._sizes, strict=True):
                name = f".{file.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
                temporary = file.parent / name
                self._temporaries.append(temporary)
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                with _named(file):
                    self._descriptors.append(os.open(temporary, flags, 0o666))
                    # Not reserved (posix_fallocate): zeroing the blocks costs as much as writing them.
                    os.ftruncate(self._descriptors[-1], size)
                self._pwrite(len(self._descriptors) - 1, 0, memoryview(first))
        except BaseException:
            self._drop()
            raise
        return self

    def place(self, name: str) -> tuple[int, int]:
        """Number of the file and first byte of a tensor."""
        return self._places[name][:2]

    def write(self, name: str, start: int, data: memoryview, *, beyond: bool = False) -> None:
        """Write bytes of a tensor, ``start`` bytes after its first; ``beyond`` also of those that follow it."""
        shard, first, size = self._places[name]
        assert start >= 0, name
        assert beyond or start + data.nbytes <= size, f"{name}: {start} + {data.nbytes} > {size}"
        self._pwrite(shard, first + start, data)
        with self._lock:
            before, self._written = self._written, self._written + data.nbytes
        if before // EARLY != self._written // EARLY:
            self._start_flushing(shard, first + start + data.nbytes)

    def _start_flushing(self, shard: int, stop: int) -> None:
        """Let the disk begin with what was written, so that the flush at the end finds little to wait for."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                # This range alone: what was flushed before is clean, and would be dropped from the cache.
                start = max(0, stop - EARLY)
                os.posix_fadvise(self._descriptors[shard], start, stop - start, os.POSIX_FADV_DONTNEED)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._drop()

    def _finish(self) -> None:
        expected = sum(size for _, _, size in self._places.values())
        assert self._written == expected, f"{self._written} of {expected} bytes were written"
        while self._descriptors:
            descriptor = self._descriptors.pop()
            try:
                with _named(self.path):
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        index = index_path(self.path)
        for temporary, file in zip(self._temporaries, self.files, strict=True):
            temporary.replace(file)
        if len(self.files) > 1:
            weight_map = {name: self.files[shard].name for name, (shard, _, _) in self._places.items()}
            total = {"metadata": {"total_size": expected}, "weight_map": dict(sorted(weight_map.items()))}
            write_atomically(index, to_json(total, index))
        sync_folder(self.path.parent)

    def _drop(self) -> None:
        while self._descriptors:
            with contextlib.suppress(OSError):
                os.close(self._descriptors.pop())
        while self._temporaries:
            with contextlib.suppress(OSError):
                self._temporaries.pop().unlink(missing_ok=True)

    def _pwrite(self, shard: int, offset: int, data: memoryview) -> None:
        with _named(self.files[shard]):
            while data.nbytes:
                count = os.pwrite(self._descriptors[shard], data, offset)
                data, offset = data[count:], offset + count


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
    """The temporary name means nothing to anybody; errors name the file it was to become."""
    try:
        yield
    except OSError as error:
        error.filename = str(file)
        raise


def header_of(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The first bytes of a file that holds the tensors in this order, and where in its data each lies."""
    fields: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offsets = {}
    end = 0
    for name, (code, shape) in tensors.items():
        if "\0" in name or len(name.encode()) > LARGEST_NAME:
            raise InputError(
                f"{name[:60]!r}: a name of a tensor has no NUL and at most {LARGEST_NAME} bytes, or no reader "
                "takes it. Rename it."
            )
        start, end = end, end + math.prod(shape) * DTYPES[code][1]
        offsets[name] = (start, end)
        fields[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the data begins at a multiple of eight
    return struct.pack("<Q", len(text)) + text, offsets


def index_path(path: Path) -> Path:
    """Where the index of a sharded output lies."""
    return path.with_name(path.name + ".index.json")


def _shards(
    names: Sequence[str], tensors: Mapping[str, tuple[str, tuple[int, ...]]], most: int | None
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name in names:
        code, shape = tensors[name]
        size = math.prod(shape) * DTYPES[code][1]
        if most is not None and shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _names(path: Path, count: int) -> list[Path]:
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i:05d}-of-{count:05d}{path.suffix}") for i in range(1, count + 1)]
