"""The small convolutional network of DomainBed for 28-pixel images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["MnistCNN"]

GROUPS = 8


class MnistCNN(nn.Module):
    """Four 3x3 convolutions, each followed by ReLU and group normalisation (8 groups), then the mean.

    Without batch norm, averages of its weights need no new statistics.

    Args:
        channels: Of the images.
        width: Channels of the first convolution, a multiple of 8; the others and the features have twice as
            many (DomainBed: 64 and 128).

    References:
        Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, 2021, appendix D.
    """

    def __init__(self, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.conv4 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.norm1 = nn.GroupNorm(GROUPS, width)
        self.norm2 = nn.GroupNorm(GROUPS, 2 * width)
        self.norm3 = nn.GroupNorm(GROUPS, 2 * width)
        self.norm4 = nn.GroupNorm(GROUPS, 2 * width)

    def forward(
        self, images: Float[Tensor, "samples channels height width"]
    ) -> Float[Tensor, "samples features"]:
        """The features of images."""
        x = self.norm1(F.relu(self.conv1(images)))  # (samples, width, height, width)
        x = self.norm2(F.relu(self.conv2(x)))  # (samples, 2 width, height / 2, width / 2)
        x = self.norm3(F.relu(self.conv3(x)))
        x = self.norm4(F.relu(self.conv4(x)))
        features: Tensor = x.mean(dim=(2, 3))
        return features
