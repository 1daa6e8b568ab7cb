"""Boxes in images, at random places: what CutMix pastes, and where a member of MixMo is seen."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["box", "corners", "drawn_centres"]


def drawn_centres(samples: int, size: tuple[int, int]) -> Int[Tensor, "{samples} 2"]:
    """A row and a column for each sample, each as likely; from torch's global generator of the processor."""
    return torch.stack([torch.randint(side, (samples,)) for side in size], dim=1)


def corners(
    share: Float[Tensor, " samples"], centres: Int[Tensor, "samples 2"], size: tuple[int, int]
) -> Int[Tensor, "samples 4"]:
    r"""First and last row, first and last column of boxes (Yun et al., 2019, CutMix); the last are not in the box.

    The sides are the fraction :math:`\sqrt{s}` of those of the frame, rounded down, and the box reaches from its
    centre half of them, rounded down, to each side, so far as the frame does.

    Args:
        share: :math:`s`, the area of the box before it is cut off at the frame.
        centres: Its row and column.
        size: Rows and columns of the frame.
    """
    frame = torch.tensor(size)
    half = (frame * share.sqrt()[:, None]).long() // 2  # (samples, 2)
    first, last = (centres - half).clamp(min=0), torch.minimum(centres + half, frame)
    return torch.stack([first[:, 0], last[:, 0], first[:, 1], last[:, 1]], dim=1)


def box(edges: Int[Tensor, "samples 4"], size: tuple[int, int]) -> Bool[Tensor, "samples 1 rows columns"]:
    """Whether a place is inside of boxes with these `corners`, on their device."""
    rows, columns = (torch.arange(side, device=edges.device) for side in size)
    top, bottom, left, right = edges.T[..., None]  # (samples, 1)
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]
    result: Tensor = inside[:, None]
    return result
