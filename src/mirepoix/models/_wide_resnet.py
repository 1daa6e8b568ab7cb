"""Wide residual networks for 32-pixel images (Zagoruyko and Komodakis, 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["WideResNet28"]

BLOCKS = 4  # per stage: (28 - 4) / 6


class WideResNet28(nn.Module):
    """WRN-28-k: three stages of four pre-activation blocks with 16k, 32k and 64k channels, 64k features.

    Args:
        factor: The widening factor ``k``.
        channels: Of the images.

    References:
        Zagoruyko and Komodakis, Wide Residual Networks, 2016, table 1.
    """

    def __init__(self, factor: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = _conv(channels, 16, 3)
        self.layer1 = _stage(16, 16 * factor, stride=1)
        self.layer2 = _stage(16 * factor, 32 * factor, stride=2)
        self.layer3 = _stage(32 * factor, 64 * factor, stride=2)
        self.bn = nn.BatchNorm2d(64 * factor)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self, images: Float[Tensor, "samples channels height width"]
    ) -> Float[Tensor, "samples features"]:
        """The features of images."""
        x = self.layer3(
            self.layer2(self.layer1(self.conv1(images)))
        )  # (samples, 64 k, height / 4, width / 4)
        features: Tensor = F.relu(self.bn(x)).mean(dim=(2, 3))
        return features


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 3)
        self.shortcut = None if inputs == outputs and stride == 1 else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = F.relu(self.bn1(x))
        y: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        # Where the shape changes, the shortcut starts after the activation; elsewhere it is the identity.
        return y + (x if self.shortcut is None else self.shortcut(activated))


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _Block(inputs, outputs, stride), *(_Block(outputs, outputs, 1) for _ in range(BLOCKS - 1))
    )
