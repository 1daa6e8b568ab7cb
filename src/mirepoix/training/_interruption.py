"""The state of an unfinished run, in one file that is whole or absent.

The file is a digest followed by what it covers, so a file that a dying disk or a stray editor changed is
recognised and not used: the run then starts again from its beginning.
"""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from mirepoix.checkpoints import write_atomically

__all__ = ["load_state", "save_state"]

log = logging.getLogger(__name__)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write nested dictionaries and lists of tensors and plain values, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomically(path, hashlib.sha256(payload).digest() + payload)


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote, or None if there is no such file or it is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
        log.warning("%s is damaged; this run starts again from its beginning.", path)
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    return state
