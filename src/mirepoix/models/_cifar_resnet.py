"""Residual networks for 32-pixel images (He et al., 2016, section 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["CifarResNet"]


class CifarResNet(nn.Module):
    """``depth = 6 n + 2`` layers: three stages of ``n`` blocks with 16, 32 and 64 channels, 64 features.

    Shortcuts have no weights (option A). Names of the weights are those of the widely shared CIFAR-10 files
    (``conv1``, ``bn1``, ``layer1.0.conv1``, ...), so these load as they are.

    Args:
        depth: 20, 32, 44, 56 or 110.
        channels: Of the images.

    References:
        He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, 2016.
    """

    def __init__(self, depth: int, channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = _conv3x3(channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "samples channels height width"]) -> Float[Tensor, "samples 64"]:
        """The features of images."""
        x = F.relu(self.bn1(self.conv1(images)))  # (samples, 16, height, width)
        x = self.layer3(self.layer2(self.layer1(x)))  # (samples, 64, height / 4, width / 4)
        features: Tensor = x.mean(dim=(2, 3))
        return features


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        # Option A: every other pixel, and zeros for the new channels, half of them on each side. The paper
        # leaves the side open; the shared weights were trained with the zeros on both.
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + shortcut)


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _Block(inputs, outputs, stride), *(_Block(outputs, outputs, 1) for _ in range(blocks - 1))
    )
