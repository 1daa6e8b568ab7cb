"""Decoded images by number: the one thing a domain asks of its pictures.

Whether the pixels lie in memory, in a mapped file or still in JPEG files is hidden behind ``Images``.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from mirepoix.data._decode import Picture, decode, reason
from mirepoix.types import InputError

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

__all__ = ["ArrayImages", "Images", "IntArray", "StreamedImages"]

IntArray: TypeAlias = NDArray[np.int64]
"""Numbers of samples, or their labels."""


class Images(Protocol):
    """Decoded images by number; all have one shape."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: IntArray) -> UInt8[Tensor, "samples channels height width"]:
        """The images with these numbers, in this order; numbers may repeat."""
        ...


class ArrayImages:
    """Images that are rows of one array, in memory or mapped from a file."""

    def __init__(self, array: NDArray[np.uint8], rows: IntArray | None = None) -> None:
        self._array = np.asarray(array)
        self._rows = np.arange(len(array)) if rows is None else rows

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        _, channels, height, width = self._array.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: IntArray) -> UInt8[Tensor, "samples channels height width"]:
        """A copy of these rows."""
        return torch.from_numpy(self._array[self._rows[indices]])


class StreamedImages:
    """Images that stay encoded and are decoded each time they are read, by threads.

    Pillow decodes outside Python's lock, so threads are as fast as processes and cannot be left behind.
    """

    def __init__(self, pictures: Sequence[Picture], extent: tuple[int, int], workers: int) -> None:
        self._pictures = tuple(pictures)
        self._extent = extent
        self._workers = workers

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image, as stored."""
        return (3, *self._extent)

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, indices: IntArray) -> UInt8[Tensor, "samples channels height width"]:
        """Decode these pictures."""
        pixels = np.empty((len(indices), *self.shape), dtype=np.uint8)

        def fill(row: int) -> None:
            picture = self._pictures[indices[row]]
            try:
                with picture.open() as file:
                    pixels[row] = decode(file, self._extent)
            except Exception as error:
                raise InputError(
                    f"expected to read {picture} again, got {reason(error)}. The file was readable "
                    f"when the task was opened; restore it, or open the task again."
                ) from error

        with ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(fill, range(len(indices))))
        return torch.from_numpy(pixels)
