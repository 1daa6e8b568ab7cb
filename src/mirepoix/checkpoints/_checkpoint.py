"""A file of weights that behaves like the weights: tensors are read when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mirepoix.checkpoints._json import read_json
from mirepoix.checkpoints._layout import Entry, read_layout
from mirepoix.checkpoints._tensors import DTYPES, Framework, RawTensor, build
from mirepoix.types import InputError

__all__ = ["Checkpoint", "existing_file", "record_path"]


def record_path(path: Path) -> Path:
    """Where the record of a file of weights lies: ``soup.safetensors`` has ``soup.json``."""
    return path.with_suffix(".json")


def existing_file(path: str | os.PathLike[str], expected: str) -> Path:
    """The path, if a file is there."""
    path = Path(path)
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (".safetensors", ".pt", ".pth", ".bin"))
        found = f" It holds {', '.join(inside[:3])}{', ...' if len(inside) > 3 else ''}." if inside else ""
        raise InputError(f"{path}: expected {expected}, got a folder. Name one file inside it.{found}")
    if not path.exists():
        raise InputError(f"{path}: expected {expected}, got nothing there. Check the path.")
    return path


class Checkpoint(Mapping[str, Any]):
    """The weights in one safetensors file, read-only and lazy.

    Opening reads the header alone; each ``checkpoint[name]`` reads that tensor and returns a new one, so
    changing it changes nothing else. Copies and pickles hold the path, not the tensors.

    Args:
        path: The file.
        framework: Whether tensors are torch's (on the CPU) or NumPy's (then torch is not imported).

    Attributes:
        path: The file.
        framework: As given.
        metadata: The texts in the header of the file.

    Raises:
        InputError: If there is no such file, it is damaged, or it holds no tensors; and later, when a tensor
            is read, if the file was replaced since it was opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, framework: Framework = "torch") -> None:
        if framework not in ("torch", "numpy"):
            raise InputError(f"framework: expected 'torch' or 'numpy', got {framework!r}.")
        self.path = existing_file(path, "a safetensors file")
        self.framework: Framework = framework
        with self.path.open("rb") as file:
            self._state = _state(file)
            layout = read_layout(file, os.fstat(file.fileno()).st_size, self.path)
        self._entries = layout.entries
        self.metadata = layout.metadata
        if not self._entries:
            raise InputError(f"{self.path}: expected weights, got a file without tensors. Write it again.")

    @property
    def record(self) -> dict[str, Any] | None:
        """What the weights were made of: the JSON beside the file, or None without one."""
        path = record_path(self.path)
        if not path.exists():
            return None
        record = read_json(path)
        if not isinstance(record, dict):
            raise InputError(f"{path}: expected a record with named fields, got a {type(record).__name__}.")
        return record

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, known without reading it."""
        return {name: entry.shape for name, entry in self._entries.items()}

    @property
    def dtypes(self) -> dict[str, str]:
        """The name of each tensor's dtype (``"float32"``, ``"bfloat16"``), known without reading it."""
        return {name: DTYPES[entry.code][0] for name, entry in self._entries.items()}

    def raw(self, name: str) -> RawTensor:
        """The bytes of a tensor, whatever the framework."""
        entry = self._entries[name]
        data = np.empty(entry.stop - entry.start, dtype=np.uint8)
        self._reader(name, entry)(data.data)
        return RawTensor(entry.code, entry.shape, data.data)

    def __getitem__(self, name: str) -> Any:
        entry = self._entries[name]
        where = f"{self.path}: {name}"
        return build(where, entry.code, entry.shape, self._reader(name, entry), self.framework)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, framework={self.framework!r}): {len(self)} tensors"

    def __reduce__(self) -> tuple[Callable[..., Checkpoint], tuple[Path, Framework]]:
        return _reopen, (self.path, self.framework)

    def _reader(self, name: str, entry: Entry) -> Callable[[memoryview], None]:
        def fill(buffer: memoryview) -> None:
            with existing_file(self.path, "the safetensors file opened before").open(
                "rb", buffering=0
            ) as file:
                changed = _state(file) != self._state
                file.seek(entry.start)
                done = 0
                while not changed and done < len(buffer):
                    count = file.readinto(buffer[done:])  # the system reads at most 2 GiB at once
                    changed, done = not count, done + count
            if changed:
                raise InputError(f"{self.path}: changed while open, {name!r} cannot be read. Open it again.")

        return fill


def _state(file: BinaryIO | Any) -> tuple[int, int, int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _reopen(path: Path, framework: Framework) -> Checkpoint:
    return Checkpoint(path, framework=framework)
