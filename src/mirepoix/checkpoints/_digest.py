"""Names for content: of a file, and of weights wherever they lie."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from mirepoix.checkpoints._reader import existing_file
from mirepoix.checkpoints._write import raw_tensors

__all__ = ["file_digest", "fingerprint"]


def file_digest(path: str | os.PathLike[str]) -> str:
    """The SHA-256 digest of a file, in hexadecimal.

    Raises:
        InputError: If there is no such file.
    """
    with existing_file(path, "a file").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(theta: Mapping[str, Any]) -> str:
    """The SHA-256 digest of weights: of names, dtypes, shapes and bytes, in the order of the names.

    Weights with equal content have equal fingerprints, in torch, in NumPy or in a `Checkpoint`, whatever
    their order, device or file. The bytes decide: 0.0 and -0.0 differ, a NaN equals the same NaN.

    Raises:
        InputError: If a value is not a tensor.
    """
    digest = hashlib.sha256()
    for name, tensor in raw_tensors(theta):
        # JSON has no bare line break, and dtype and shape give the number of bytes: no two weights collide.
        digest.update(json.dumps([name, tensor.code, tensor.shape]).encode() + b"\n")
        digest.update(tensor.data)
    return digest.hexdigest()
