"""What the measures that are not of pairs are made of: how many members are right, and how votes are split.

Both are whole numbers in a histogram, so the order of members and samples cannot change a bit of what follows.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mirepoix.types import InputError

__all__ = ["check_correct", "check_predicted", "right_histogram", "vote_histogram"]

BLOCK = 2**22  # votes of samples times classes that are held at a time


def check_correct(correct: Tensor) -> None:
    """Raise unless there are booleans of two members and one sample."""
    if correct.ndim != 2 or correct.dtype != torch.bool:
        raise InputError(
            "expected booleans of shape (members, samples), such as `logits.argmax(-1) == labels`, "
            f"got {correct.dtype} of shape {tuple(correct.shape)}."
        )
    _check_size(*correct.shape)


def check_predicted(predicted: Tensor) -> None:
    """Raise unless there are predicted classes of two members and one sample."""
    if predicted.ndim != 2 or predicted.is_floating_point() or predicted.dtype == torch.bool:
        raise InputError(
            "expected predicted classes of shape (members, samples), such as `logits.argmax(-1)`, "
            f"got {predicted.dtype} of shape {tuple(predicted.shape)}."
        )
    _check_size(*predicted.shape)


def right_histogram(correct: Bool[Tensor, "members samples"]) -> list[int]:
    """The number of samples on which no member is right, one, two, ... all of them."""
    check_correct(correct)
    members = len(correct)
    counts: list[int] = torch.bincount(correct.sum(0), minlength=members + 1).tolist()
    return counts


def vote_histogram(predicted: Int[Tensor, "members samples"], classes: int) -> list[int]:
    """Over all samples and classes, how often a class of a sample gets no vote, one, two, ... all of them."""
    check_predicted(predicted)
    members, samples = predicted.shape
    low, high = int(predicted.min()), int(predicted.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"predicted: expected classes from 0 to {classes - 1}, as there are {classes}, got {low} to {high}."
        )
    histogram = torch.zeros(members + 1, dtype=torch.long, device=predicted.device)
    block = max(1, BLOCK // classes)
    for start in range(0, samples, block):
        part = predicted[:, start : start + block].long()
        places = part + classes * torch.arange(part.shape[1], device=part.device)  # (members, block)
        votes = torch.bincount(places.flatten(), minlength=classes * part.shape[1])
        histogram += torch.bincount(votes, minlength=members + 1)
    counts: list[int] = histogram.tolist()
    return counts


def _check_size(members: int, samples: int) -> None:
    if members < 2 or samples < 1:
        raise InputError(f"diversity needs two members and one sample, got {members} and {samples}.")
