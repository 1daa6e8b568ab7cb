"""From stored bytes to what the network sees.

The transform belongs to the *subset*, not to the domain: training images are augmented, validation and test
images never are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch

from mirepoix.data._augment import augmented, draw_augmentation
from mirepoix.data._augmix import augmixed, draw_augmix
from mirepoix.data._crop_flip import crop_flipped, draw_crop_flip
from mirepoix.types import InputError

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8
    from torch import Tensor

__all__ = ["AugmentationName", "Transform"]

AugmentationName: TypeAlias = Literal["domainbed", "crop_flip", "augmix", "none"]
"""What may happen to training images; see ``Transform``."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Transform:
    """How images are resized, augmented and normalised.

    Attributes:
        size: Side in pixels of what the network sees; the aspect is not kept.
        normalise: Whether to subtract the mean of ImageNet's colours and divide by their deviation;
            otherwise values are in [0, 1].
        augmentation: Of training images. ``domainbed``: crop of 70 % to 100 % of the area, flip, colour jitter of
            0.3, grey one time in ten; for three channels. ``crop_flip``, the usual one for CIFAR: a shift by at most
            an eighth of the side (4 pixels of 32), where black comes in, and a flip half of the time. ``augmix``:
            these two, then a blend with copies that are equalized, posterized, rotated, solarized, sheared,
            translated or inverted; for three channels. ``none``.
    """

    size: int
    normalise: bool = True
    augmentation: AugmentationName = "domainbed"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"size: expected at least 1 pixel, got {self.size}.")
        known = get_args(AugmentationName)
        if self.augmentation not in known:
            raise InputError(
                f"augmentation: expected {', '.join(map(repr, known[:-1]))} or {known[-1]!r}, got "
                f"{self.augmentation!r}."
            )

    def train(
        self, images: UInt8[Tensor, "samples channels height width"], generator: torch.Generator
    ) -> Float32[Tensor, "samples channels size size"]:
        """Augmented images, as training sees them.

        Args:
            images: As stored, on any device.
            generator: On the CPU; it alone decides the augmentation.

        Raises:
            InputError: When there is a normalisation, or the augmentation ``domainbed`` or ``augmix``, and not
                three channels.
        """
        if self.augmentation == "none":
            return self.plain(images)
        count, channels, height, width = images.shape
        if self.augmentation in ("domainbed", "augmix"):
            self._expect_colour(channels)
        if self.augmentation == "domainbed":
            drawn = draw_augmentation(count, height, width, generator)
            return self._normalised(augmented(images, drawn, self.size))
        seen = crop_flipped(self._resized(images), draw_crop_flip(count, self.size, generator))
        if self.augmentation == "crop_flip":
            return self._normalised(_scaled(seen))
        return self._normalised(augmixed(_bytes(seen), draw_augmix(count, generator)))

    def plain(
        self, images: UInt8[Tensor, "samples channels height width"]
    ) -> Float32[Tensor, "samples channels size size"]:
        """Images as validation and test see them: resized (bilinear, antialiased) and normalised.

        Raises:
            InputError: When there is a normalisation and not three channels.
        """
        return self._normalised(_scaled(self._resized(images)))

    def _resized(
        self, images: UInt8[Tensor, "samples channels height width"]
    ) -> UInt8[Tensor, "samples channels size size"] | Float32[Tensor, "samples channels size size"]:
        """The bytes if they have the size of the network; else real numbers, resized, in [0, 1]."""
        if images.shape[2:] == (self.size, self.size):
            return images
        return torch.nn.functional.interpolate(
            images.float().div_(255), size=(self.size, self.size), mode="bilinear", antialias=True
        )

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


def _scaled(
    images: UInt8[Tensor, "samples channels height width"] | Float32[Tensor, "samples channels height width"],
) -> Float32[Tensor, "samples channels height width"]:
    """In [0, 1]; real numbers are already."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def _bytes(
    images: UInt8[Tensor, "samples channels height width"] | Float32[Tensor, "samples channels height width"],
) -> UInt8[Tensor, "samples channels height width"]:
    """Eight bits; real numbers in [0, 1] are rounded."""
    return images if images.dtype == torch.uint8 else images.mul(255).round_().to(torch.uint8)
