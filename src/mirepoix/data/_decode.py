"""One encoded picture to 8-bit RGB, whatever it was saved as.

Grey, palette, CMYK, 16-bit and transparent pictures all become RGB. Transparency is dropped, of
several frames the first is taken, and the EXIF orientation is not applied, as in the reference protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

__all__ = ["FilePicture", "Picture", "decode", "picture_size", "reason", "stored_extent"]


class Picture(Protocol):
    """An encoded picture; its text form is what a person would look for."""

    def open(self) -> BinaryIO:
        """A file to read the encoded bytes from."""
        ...

    def __str__(self) -> str: ...


@dataclass(frozen=True, slots=True)
class FilePicture:
    """A picture in a file of its own."""

    path: Path

    def open(self) -> BinaryIO:
        """The file, opened for reading."""
        return self.path.open("rb")

    def __str__(self) -> str:
        return str(self.path)


def picture_size(file: BinaryIO) -> tuple[int, int]:
    """Height and width, from the header alone."""
    with Image.open(file) as image:
        return image.height, image.width


def decode(file: BinaryIO, extent: tuple[int, int]) -> NDArray[np.uint8]:
    """The pixels, channels first, resized to ``extent`` (height, width) if they differ from it.

    The resize is bilinear with antialiasing and does not keep the aspect.
    """
    height, width = extent
    with Image.open(file) as image:
        rgb = _rgb(image)
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(rgb).transpose(2, 0, 1)  # (3, height, width)


def reason(error: Exception) -> str:
    """Why a picture cannot be read, on one line and the same in every run."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture Pillow knows"  # Pillow's own words end in the address of an object
    return " ".join(f"{type(error).__name__}: {error}".split())


def stored_extent(sizes: set[tuple[int, int]], size: int) -> tuple[int, int]:
    """Height and width at which the pictures of a task are kept, for networks that see ``size`` pixels.

    Pictures that share one size of at most ``max(256, size)`` pixels a side are kept as they are. Others are
    resized to a square of side ``8/7 size`` (256 for 224), so that a random crop of 70 % to 100 % of the area
    still has about as many pixels as the network sees. This deviates from the reference, which crops the
    original picture: crops are then drawn in the resized square, whose aspect is no longer the picture's.
    """
    if len(sizes) == 1 and max(next(iter(sizes))) <= max(256, size):
        return next(iter(sizes))
    side = round(size * 8 / 7)
    return side, side


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; save the picture with 8 bits")
    if image.mode.startswith("I"):
        # Pillow's own conversion of 16-bit grey to RGB clips at 255 and leaves white.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                "32-bit pixels beyond 16 bits have no agreed range; save the picture with 8 bits"
            )
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "P":
        # By way of RGBA: Pillow warns when it drops the transparency of a palette.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
