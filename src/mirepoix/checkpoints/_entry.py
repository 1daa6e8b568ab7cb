"""Where tensors lie in files: the one description that every reader makes and `Checkpoint` reads from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mirepoix.checkpoints._reader import State
from mirepoix.checkpoints._tensors import DTYPES

__all__ = ["LARGEST_NAME", "MOST_TENSORS", "Entry", "Layout", "Refused", "check_name", "check_total"]

LARGEST_NAME = 4096  # bytes
MOST_TENSORS = 1_000_000


class Entry(NamedTuple):
    """Where a tensor lies: dtype code, shape, first byte and end within a file.

    ``strides`` are None for a tensor in C order; otherwise they count elements, and the range from ``start``
    to ``stop`` holds all that the tensor shows.
    """

    code: str
    shape: tuple[int, ...]
    start: int
    stop: int
    file: int = 0
    strides: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in C order."""
        return math.prod(self.shape) * DTYPES[self.code][1]


@dataclass(frozen=True, slots=True)
class Layout:
    """What opening found, without the tensors.

    Attributes:
        files: The files the tensors are in; entries name them by number.
        states: What each file was like when it was opened.
        entries: The place of every tensor, aliases included.
        metadata: Texts beside the tensors.
        aliases: From each name that repeats a tensor to the name that came first.
        config: The model's own description, of a folder.
        loaded: The tensors themselves, where only torch could read the file.
    """

    files: tuple[Path, ...]
    states: tuple[State, ...]
    entries: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    loaded: Mapping[str, Any] | None = None


class Refused(Exception):
    """A rule was broken; the reader of the format adds the file and the advice."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(what)
        self.rule = rule


def check_name(name: str) -> None:
    """Refuse what is not a name of a tensor. No name is ever used as a path."""
    try:
        long = len(name) > LARGEST_NAME or (not name.isascii() and len(name.encode()) > LARGEST_NAME)
    except UnicodeEncodeError as error:
        raise Refused("tensor-name", f"the name {name[:60]!r} is not valid text") from error
    if long:
        raise Refused("tensor-name", f"the name {name[:60]!r}... is longer than {LARGEST_NAME} bytes")
    if "\0" in name:
        raise Refused("tensor-name", f"the name {name[:60]!r} has a NUL in it")


def check_total(entries: Iterable[Entry], size: int) -> None:
    """Refuse tensors that together are far larger than the file they are views of."""
    total = sum(entry.nbytes for entry in entries)
    if total > 4 * size:
        raise Refused("view-total", f"its tensors have {total} bytes together, the file has {size}")
