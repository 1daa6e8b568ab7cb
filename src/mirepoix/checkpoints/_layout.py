"""The safetensors format: eight bytes of length, a JSON header, then the data of all tensors.

Read here rather than by the reference library for three reasons: no framework is needed, a bfloat16 tensor
has bytes even where it has no NumPy dtype, and the reference accepts a header that names a tensor twice.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mirepoix.checkpoints._tensors import DTYPES, RawTensor
from mirepoix.types import InputError

__all__ = ["Entry", "Layout", "header", "read_layout"]

LARGEST_HEADER = 100_000_000  # bytes, the limit of the format


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: dtype code, shape, and first byte and end within the file."""

    code: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What the header of a file says."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def header(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file that holds the tensors one after another in the order given."""
    fields: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.data.nbytes
        fields[name] = {"dtype": tensor.code, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the data begins at a multiple of eight
    return struct.pack("<Q", len(text)) + text


def read_layout(file: BinaryIO, size: int, path: Path) -> Layout:
    """Read and check the header of an open file of ``size`` bytes."""
    try:
        return _read_layout(file, size)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{path}: is not a whole safetensors file: {error}. It may be cut short by a full disk or a "
            "broken download; write or fetch it again."
        ) from error


def _read_layout(file: BinaryIO, size: int) -> Layout:
    start = file.read(8)
    if len(start) < 8:
        raise ValueError(f"expected a header, got {size} bytes in all")
    (length,) = struct.unpack("<Q", start)
    if length > min(LARGEST_HEADER, size - 8):
        raise ValueError(f"expected a header of {length} bytes, got {size - 8} bytes after its length")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise ValueError("expected a header in JSON, got other bytes")
    fields = json.loads(text.decode(), object_pairs_hook=_unique)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("expected metadata of names and texts, got something else")
    entries = {name: _entry(name, field, offset=8 + length) for name, field in fields.items()}
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise ValueError(f"expected {name!r} to begin at byte {end}, got {entry.start}")
        end = entry.stop
    if end != size:
        raise ValueError(f"expected {end} bytes in all, got {size}")
    return Layout(entries, metadata)


def _entry(name: str, field: Any, offset: int) -> Entry:
    code, shape, (start, stop) = field["dtype"], field["shape"], field["data_offsets"]
    if code not in DTYPES:
        raise ValueError(f"{name!r} has dtype {code!r}, expected one of {', '.join(DTYPES)}")
    if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
        raise ValueError(f"{name!r} has shape {shape} and offsets {start}, {stop}, expected integers from 0")
    if stop - start != math.prod(shape) * DTYPES[code][1]:
        raise ValueError(
            f"{name!r} has {stop - start} bytes, which is not shape {shape} of {DTYPES[code][0]}"
        )
    return Entry(code, tuple(shape), offset + start, offset + stop)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("the header names a tensor or a field twice")
    return fields
