"""From stored bytes to what the network sees.

The transform belongs to the *subset*, not to the domain: training images are augmented, validation and test
images never are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from mirepoix.data._augment import augmented, draw_augmentation
from mirepoix.types import InputError

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8
    from torch import Tensor

__all__ = ["Transform"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Transform:
    """How images are resized, augmented and normalised.

    Attributes:
        size: Side in pixels of what the network sees; the aspect is not kept.
        normalise: Whether to subtract the mean of ImageNet's colours and divide by their deviation;
            otherwise values are in [0, 1].
        augmentation: ``domainbed`` (crop of 70 % to 100 % of the area, flip, colour jitter of 0.3, grey one
            time in ten) for three channels, or ``none``.
    """

    size: int
    normalise: bool = True
    augmentation: Literal["domainbed", "none"] = "domainbed"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"size: expected at least 1 pixel, got {self.size}.")
        if self.augmentation not in ("domainbed", "none"):
            raise InputError(f"augmentation: expected 'domainbed' or 'none', got {self.augmentation!r}.")

    def train(
        self, images: UInt8[Tensor, "samples channels height width"], generator: torch.Generator
    ) -> Float32[Tensor, "samples channels size size"]:
        """Augmented images, as training sees them.

        Args:
            images: As stored, on any device.
            generator: On the CPU; it alone decides the augmentation.

        Raises:
            InputError: When there is an augmentation or a normalisation and not three channels.
        """
        if self.augmentation == "none":
            return self.plain(images)
        count, channels, height, width = images.shape
        self._expect_colour(channels)
        drawn = draw_augmentation(count, height, width, generator)
        return self._normalised(augmented(images, drawn, self.size))

    def plain(
        self, images: UInt8[Tensor, "samples channels height width"]
    ) -> Float32[Tensor, "samples channels size size"]:
        """Images as validation and test see them: resized (bilinear, antialiased) and normalised.

        Raises:
            InputError: When there is a normalisation and not three channels.
        """
        seen = images.float().div_(255)
        if seen.shape[2:] != (self.size, self.size):
            seen = torch.nn.functional.interpolate(
                seen, size=(self.size, self.size), mode="bilinear", antialias=True
            )
        return self._normalised(seen)

    def _normalised(self, seen: Float32[Tensor, "samples channels size size"]) -> Float32[Tensor, ...]:
        if not self.normalise:
            return seen
        self._expect_colour(seen.shape[1])
        mean, std = seen.new_tensor(MEAN)[:, None, None], seen.new_tensor(STD)[:, None, None]
        return seen.sub_(mean).div_(std)

    def _expect_colour(self, channels: int) -> None:
        if channels != 3:
            raise InputError(
                f"expected images with 3 channels, got {channels}. Use Transform(size, normalise=False, "
                f"augmentation='none') for these."
            )
