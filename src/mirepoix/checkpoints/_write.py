"""Writing weights: the bytes depend on the content alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mirepoix.checkpoints._atomic import atomic_path, write_atomically
from mirepoix.checkpoints._checkpoint import Checkpoint, record_path
from mirepoix.checkpoints._json import to_json
from mirepoix.checkpoints._stream import header_of
from mirepoix.checkpoints._tensors import DTYPES, RawTensor, raw
from mirepoix.types import InputError

__all__ = ["raw_tensors", "write_weights"]


def raw_tensors(theta: Mapping[str, Any]) -> Iterator[tuple[str, RawTensor]]:
    """The bytes of each tensor, in the order of their names."""
    if not all(isinstance(name, str) for name in theta):
        wrong = next(name for name in theta if not isinstance(name, str))
        raise InputError(f"weights: expected names that are text, got {wrong!r}.")
    for name in sorted(theta):
        yield name, theta.raw(name) if isinstance(theta, Checkpoint) else raw(name, theta[name])


def write_weights(
    path: str | os.PathLike[str],
    theta: Mapping[str, Any],
    *,
    record: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write weights as a safetensors file, whole or not at all.

    Equal names, dtypes, shapes and values (and ``metadata``) give equal bytes, whatever the order, the
    framework, the device or the memory layout. Tensors that share memory are written each in full.

    Args:
        path: The file, ending in ``.safetensors``.
        theta: Torch tensors or NumPy arrays, or another `Checkpoint`.
        record: What the weights were made of; written as JSON beside the file, after it. The record of
            weights that are replaced is removed with them, so that no record describes other weights.
        metadata: Texts for the header of the file, beside ``format: pt``, which other libraries ask for.

    Returns:
        The SHA-256 digest of the file, in hexadecimal.

    Raises:
        InputError: If there is nothing to write, or a name, a tensor, the record or the metadata cannot be
            written; the file is as it was.
        OSError: From the disk (full, read-only); the file is as it was.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path}: expected a name ending in .safetensors, got {path.suffix or 'no suffix'!r}."
        )
    if not theta:
        raise InputError(f"{path}: expected weights to write, got no tensors.")
    texts = {"format": "pt", **(metadata or {})}
    if not all(isinstance(text, str) for item in texts.items() for text in item):
        raise InputError(
            f"{path}: expected metadata of names and texts, got {metadata!r}. Convert the values."
        )
    text = None if record is None else to_json(dict(record), record_path(path))
    tensors = dict(raw_tensors(theta))
    if "__metadata__" in tensors:
        raise InputError(f"{path}: no tensor can be called '__metadata__' in a safetensors file. Rename it.")
    # Wide elements first, so that every tensor begins at a multiple of its element's size.
    tensors = dict(sorted(tensors.items(), key=lambda item: (-DTYPES[item[1].code][1], item[0])))
    try:
        first, _ = header_of({name: (x.code, x.shape) for name, x in tensors.items()}, texts)
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: a name or metadata is not valid text: {error}. Rename it.") from error

    digest = hashlib.sha256()
    with atomic_path(path) as temporary:
        with temporary.open("xb") as file:
            parts: list[bytes | memoryview] = [first, *(tensor.data for tensor in tensors.values())]
            for part in parts:
                file.write(part)
                digest.update(part)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            record_path(path).unlink(missing_ok=True)
    if text is not None:
        write_atomically(record_path(path), text)
    return digest.hexdigest()
