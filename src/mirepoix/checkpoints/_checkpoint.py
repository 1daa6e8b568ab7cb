"""Weights in files that behave like weights: tensors are read when they are asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mirepoix.checkpoints._entry import Entry
from mirepoix.checkpoints._formats import read_weights
from mirepoix.checkpoints._json import read_json
from mirepoix.checkpoints._reader import Reader, existing_file
from mirepoix.checkpoints._tensors import DTYPES, Framework, RawTensor, build, raw
from mirepoix.types import InputError, UnsafeCheckpoint

__all__ = ["Checkpoint", "existing_file", "record_path"]


def record_path(path: Path) -> Path:
    """Where the record of a file of weights lies: ``soup.safetensors`` has ``soup.json``."""
    return path.with_suffix(".json")


class Checkpoint(Mapping[str, Any]):
    """The weights in a file, in the shards of one model or in a folder, read-only and lazy.

    Opening reads what names the tensors, not the tensors; each ``checkpoint[name]`` reads that tensor and
    returns a new one, so changing it changes nothing else. Copies and pickles hold the path, not the tensors.
    Threads may share it. Reading by `read_into` leaves a file open, at most one at a time, until `close` or
    the end of a ``with`` block; reading after that opens it again.

    Args:
        path: What `open_weights` opens.
        framework: Whether tensors are torch's (on the CPU) or NumPy's (then torch is not imported).
        container: As in `open_weights`.
        allow_expand: As in `open_weights`.
        allow_torch_load: As in `open_weights`.
        max_bytes: As in `open_weights`.

    Attributes:
        path: As given.
        framework: As given.
        files: The files that hold the tensors.
        metadata: The texts in the header of a safetensors file.
        aliases: From each name that only repeats a tensor (tied embeddings) to the name it repeats. Both are
            names of the mapping.
        config: The model's ``config.json``, or an adapter's ``adapter_config.json``, of a folder; else None.

    Raises:
        InputError: As `open_weights`; and later, when a tensor is read, if the file was replaced since it
            was opened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        framework: Framework = "torch",
        container: str | None = None,
        allow_expand: bool = False,
        allow_torch_load: bool = False,
        max_bytes: int | None = None,
    ) -> None:
        if framework not in ("torch", "numpy"):
            raise InputError(f"framework: expected 'torch' or 'numpy', got {framework!r}.")
        self.path = Path(path)
        self.framework: Framework = framework
        self._options = {
            "framework": framework,
            "container": container,
            "allow_expand": allow_expand,
            "allow_torch_load": allow_torch_load,
            "max_bytes": max_bytes,
        }
        layout = read_weights(
            self.path, container=container, allow_expand=allow_expand, allow_torch_load=allow_torch_load
        )
        self._entries = layout.entries
        self._loaded = layout.loaded
        self.files = layout.files
        self.metadata = layout.metadata
        self.aliases = layout.aliases
        self.config = layout.config
        self._reader = Reader(layout.files, layout.states)
        self._packed: tuple[str, memoryview] | None = None  # the last tensor read that is not in C order
        self._packing = threading.Lock()
        if not self._entries:
            raise InputError(f"{self.path}: expected weights, got a file without tensors. Write it again.")
        if max_bytes is not None and self.nbytes > max_bytes:
            raise UnsafeCheckpoint(
                "max-bytes",
                f"{self.path}: expected weights of at most {max_bytes} bytes, got {self.nbytes}. "
                "Raise max_bytes if the file is meant.",
            )

    @property
    def record(self) -> dict[str, Any] | None:
        """What the weights were made of: the JSON beside the file, or None without one."""
        file = self.path if len(self.files) > 1 else self.files[0]
        path = record_path(file.with_name(file.name.removesuffix(".index.json")))
        if path == file or not path.exists():
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

    @property
    def codes(self) -> dict[str, str]:
        """The code of each tensor's dtype in safetensors files (``"F32"``, ``"BF16"``)."""
        return {name: entry.code for name, entry in self._entries.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; one with several names counts once."""
        return sum(entry.nbytes for name, entry in self._entries.items() if name not in self.aliases)

    def raw(self, name: str) -> RawTensor:
        """The bytes of a tensor, whatever the framework."""
        entry = self._entries[name]
        data = np.empty(entry.nbytes, dtype=np.uint8)
        self._fill(name, entry, data.data)
        return RawTensor(entry.code, entry.shape, data.data)

    def place(self, name: str) -> tuple[int, int] | None:
        """Number of the file and first byte of a tensor that lies there in C order; None for others."""
        entry = self._entries[name]
        return None if self._loaded is not None or entry.strides is not None else (entry.file, entry.start)

    def read_into(self, name: str, start: int, buffer: memoryview, *, beyond: bool = False) -> None:
        """Fill a buffer with bytes of a tensor, from its byte ``start`` on, in C order and little endian.

        A tensor that does not lie in C order (a transposed view in a torch file) is read whole at its first
        part and kept until another such tensor is read, or `close`.

        Args:
            name: The tensor.
            start: The first byte of it to read.
            buffer: Where to, whole.
            beyond: Go on into what follows the tensor in its file, whose `place` is known to be right behind.

        Raises:
            ValueError: If the tensor has no bytes there.
            InputError: If the file was replaced since it was opened.
        """
        entry = self._entries[name]
        buffer = buffer.cast("B")
        if start < 0 or (start + len(buffer) > entry.nbytes and not beyond):
            raise ValueError(
                f"{self.path}: {name}: expected bytes within 0 to {entry.nbytes}, got {start} to {start + len(buffer)}."
            )
        if not len(buffer):
            return
        if self._loaded is not None:
            buffer[:] = raw(name, self._loaded[name]).data[start : start + len(buffer)]
        elif entry.strides is None:
            self._reader.fill(name, entry.file, entry.start + start, buffer, keep=True)
        else:
            with self._packing:
                if self._packed is None or self._packed[0] != name:
                    self._packed = None  # so that there are never two of them
                    self._packed = name, self.raw(name).data
                buffer[:] = self._packed[1][start : start + len(buffer)]

    def close(self) -> None:
        """Close the file `read_into` left open; what is read later opens it again."""
        self._reader.close()
        with self._packing:
            self._packed = None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> Any:
        entry = self._entries[name]
        where = f"{self.path}: {name}"
        return build(where, entry.code, entry.shape, partial(self._fill, name, entry), self.framework)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, framework={self.framework!r}): {len(self)} tensors"

    def __reduce__(self) -> tuple[Callable[..., Checkpoint], tuple[Path, dict[str, Any]]]:
        return _reopen, (self.path, self._options)

    def _fill(self, name: str, entry: Entry, buffer: memoryview) -> None:
        """Fill a buffer with the whole tensor."""
        if not len(buffer):
            return
        if self._loaded is not None:
            buffer[:] = raw(name, self._loaded[name]).data
        elif entry.strides is None:
            self._reader.fill(name, entry.file, entry.start, buffer, keep=False)
        else:
            size = DTYPES[entry.code][1]
            pieces = np.empty(entry.stop - entry.start, dtype=np.uint8)
            self._reader.fill(name, entry.file, entry.start, pieces.data, keep=False)
            view = np.lib.stride_tricks.as_strided(
                pieces.view(f"u{size}"), entry.shape, [size * stride for stride in entry.strides]
            )
            np.copyto(np.frombuffer(buffer, dtype=f"u{size}").reshape(entry.shape), view)


def _reopen(path: Path, options: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(path, **options)
