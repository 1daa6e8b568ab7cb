r"""AugMix: each image is blended with a mixture of three chains of operations on it.

.. math:: \tilde x = (1 - m)\, x + m \sum_{k=1}^{3} w_k\, (o_{k,d_k} \circ \dots \circ o_{k,1})(x), \qquad
          m \sim \mathrm{Beta}(1, 1), \quad w \sim \mathrm{Dirichlet}(1, 1, 1), \quad d_k \sim U\{1, 2, 3\},

where each operation :math:`o` is drawn uniformly from ten: identity, equalize, posterize, rotate, solarize, shear along
either axis, translate along either axis, invert. There is no Jensen-Shannon loss: the blend is the training image.

An operation's range is crossed by :math:`s/30` with the severity :math:`s = 3`, as in MixMo's code: posterize keeps 4
bits (of the range 4 to 8, 4.4 rounded down), solarize inverts values of 25.6 or more (0 to 256), rotations are by 3
degrees (0 to 30), shears by 0.03 (0 to 0.3) and translations by 0.045 of the side (0 to 0.45), each in either direction
half of the time. Pixels are taken from the nearest one, and what comes in is black. The original AugMix draws the
severity anew for each operation, has autocontrast in place of identity and invert, and blends normalised images, which
is the same here because the coefficients of the blend sum to one.

All random numbers come from a generator on the CPU. An operation is applied at once to all images of a batch that drew
it, on their device.

References:
    Hendrycks et al. (2020), AugMix, algorithm 1; the operations and ranges are those of Rame et al. (2021), MixMo.
    Where its published code draws depths from 1 to 4, an inclusive bound, ours are 1 to 3, as in AugMix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float32, Int, UInt8
    from torch import Tensor

__all__ = ["CHAINS", "DEPTH", "OPERATIONS", "AugMix", "augmixed", "draw_augmix", "operate"]

CHAINS = 3
DEPTH = 3
STRENGTH = 3 / 30  # the severity, and what it is out of
BITS = int(4 + STRENGTH * (8 - 4))
THRESHOLD = STRENGTH * 256
DEGREES = STRENGTH * 30
SHEAR = STRENGTH * 0.3
SHIFT = STRENGTH * 0.45  # of the side
OPERATIONS = (
    "identity",
    "equalize",
    "posterize",
    "rotate",
    "solarize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "invert",
)
DIRECTED = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


@dataclass(frozen=True, slots=True)
class AugMix:
    """What happens to each image of a batch.

    Attributes:
        operations: Indices into ``OPERATIONS``, in the order of their application; chains shorter than three end
            in identities.
        signs: The direction of each operation, 1 or -1; 1 where it has none.
        weights: Of the chains, summing to one.
        blends: Share of the mixture of chains; the rest is the image itself.
    """

    operations: Int[Tensor, "samples chains depth"]
    signs: Int[Tensor, "samples chains depth"]
    weights: Float32[Tensor, "samples chains"]
    blends: Float32[Tensor, " samples"]


def draw_augmix(count: int, generator: torch.Generator) -> AugMix:
    """One independent set of chains, weights and blend per image."""
    shape = (count, CHAINS, DEPTH)
    depths = torch.randint(1, DEPTH + 1, shape[:2], generator=generator)
    operations = torch.randint(len(OPERATIONS), shape, generator=generator)
    operations[torch.arange(DEPTH) >= depths[..., None]] = OPERATIONS.index("identity")
    signs = 2 * torch.randint(2, shape, generator=generator) - 1
    directed = torch.tensor([operation in DIRECTED for operation in OPERATIONS])
    signs[~directed[operations]] = 1
    # Exponential numbers over their sum are uniform on the simplex, which is Dirichlet(1, 1, 1).
    weights = torch.empty(shape[:2]).exponential_(generator=generator)
    blends = torch.rand(count, generator=generator)  # uniform, which is Beta(1, 1)
    return AugMix(operations, signs, weights / weights.sum(1, keepdim=True), blends)


def augmixed(
    images: UInt8[Tensor, "samples channels size size"], drawn: AugMix
) -> Float32[Tensor, "samples channels size size"]:
    """The blends, with values in [0, 1]."""
    chains = images.repeat_interleave(CHAINS, dim=0)  # (samples * chains, channels, size, size)
    for operations, signs in zip(
        drawn.operations.flatten(0, 1).unbind(1), drawn.signs.flatten(0, 1).unbind(1), strict=True
    ):
        for number, sign in sorted(set(zip(operations.tolist(), signs.tolist(), strict=True))):
            rows = ((operations == number) & (signs == sign)).nonzero()[:, 0].to(images.device)
            chains[rows] = operate(chains[rows], OPERATIONS[number], sign)
    weights = drawn.weights.to(images.device)[:, :, None, None, None]
    blends = drawn.blends.to(images.device)[:, None, None, None]
    mixture = (chains.reshape(len(images), CHAINS, *images.shape[1:]) * weights).sum(1)
    return torch.lerp(images.float(), mixture, blends).div_(255)


def operate(
    images: UInt8[Tensor, "samples channels height width"], operation: str, sign: int
) -> UInt8[Tensor, "samples channels height width"]:
    """One operation on all of these images, in one direction."""
    from torchvision.transforms.v2 import functional

    seen: Tensor
    match operation:
        case "identity":
            seen = images
        case "equalize":
            seen = functional.equalize(images)
        case "posterize":
            seen = functional.posterize(images, BITS)
        case "solarize":
            seen = functional.solarize(images, THRESHOLD)
        case "invert":
            seen = functional.invert(images)
        case "rotate":
            seen = functional.rotate(images, sign * DEGREES)
        case _:
            seen = functional.affine(images, angle=0.0, scale=1.0, **_moved(images, operation, sign))
    return seen


def _moved(images: Tensor, operation: str, sign: int) -> dict[str, list[float]]:
    """The shear or the translation, along one axis."""
    kind, axis = operation.split("_")

    def along(value: float) -> list[float]:
        return [value, 0.0] if axis == "x" else [0.0, value]

    angle = sign * math.degrees(math.atan(SHEAR)) if kind == "shear" else 0.0
    shift = sign * SHIFT * images.shape[3 if axis == "x" else 2] if kind == "translate" else 0.0
    return {"shear": along(angle), "translate": along(shift), "center": [0.0, 0.0]}  # the corner stays
