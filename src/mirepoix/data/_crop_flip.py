"""The usual augmentation of small images: a shift by a few pixels and a mirror image, half of the time.

Each image is surrounded by black pixels, an eighth of its side wide (4 for 32), and a window of the original size is
cut out anywhere in it; so it is shifted by at most that many pixels, and what comes in is black *before* colours are
normalised, as in torchvision's ``RandomCrop(32, padding=4)``. All random numbers come from a generator on the CPU,
and one pass moves the whole batch on its device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Shaped
    from torch import Tensor

__all__ = ["CropFlip", "crop_flipped", "draw_crop_flip", "padding"]

FLIP = 0.5


@dataclass(frozen=True, slots=True)
class CropFlip:
    """What happens to each image of a batch.

    Attributes:
        corners: Top and left of the window in the padded image, from 0 to twice the padding; the padding itself
            leaves the image where it is.
        flips: Whether the window is mirrored.
    """

    corners: Int[Tensor, "samples 2"]
    flips: Bool[Tensor, " samples"]


def padding(size: int) -> int:
    """Black pixels on each side of an image of this side: 4 for 32."""
    return size // 8


def draw_crop_flip(count: int, size: int, generator: torch.Generator) -> CropFlip:
    """One independent shift and flip per image, all shifts equally likely."""
    return CropFlip(
        corners=torch.randint(2 * padding(size) + 1, (count, 2), generator=generator),
        flips=torch.rand(count, generator=generator) < FLIP,
    )


def crop_flipped(
    images: Shaped[Tensor, "samples channels size size"], drawn: CropFlip
) -> Shaped[Tensor, "samples channels size size"]:
    """The images after the drawn shifts and flips, in their dtype."""
    size = images.shape[-1]
    padded = torch.nn.functional.pad(images, [padding(size)] * 4)
    windows = padded.unfold(2, size, 1).unfold(
        3, size, 1
    )  # (samples, channels, tops, lefts, size, size), a view
    top, left = drawn.corners.to(images.device).unbind(1)
    seen = windows[torch.arange(len(images), device=images.device), :, top, left]
    return torch.where(drawn.flips.to(images.device)[:, None, None, None], seen.flip(-1), seen)
