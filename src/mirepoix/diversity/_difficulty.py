"""Difficulty: whether samples are easy for all members and hard for all members."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mirepoix.diversity._votes import right_histogram

__all__ = ["difficulty"]


def difficulty(correct: Bool[Tensor, "members samples"]) -> Float[Tensor, ""]:
    r"""The variance, over samples, of the fraction of members that are right.

    With :math:`l(x)` of :math:`M` members right on sample x,

    .. math:: \theta = \mathrm{Var}_x \left[ l(x) / M \right],

    divided by the number of samples. Lower is more diverse. In [0, 1/4]: 0 if all samples are equally hard, and
    :math:`p (1 - p)` for copies of a member of accuracy p.

    Args:
        correct: Whether each member classifies each sample correctly.

    Raises:
        InputError: With fewer than two members, or without samples.

    Example:
        >>> difficulty(torch.tensor([[True, True, False, False], [True, False, False, True]]))
        tensor(0.1250)

    References:
        Hansen and Salamon (1990); Kuncheva and Whitaker (2003), Measures of diversity in classifier ensembles.
    """
    return difficulty_of(right_histogram(correct)).to(correct.device)


def difficulty_of(right: list[int]) -> Tensor:
    """The variance, once the members that are right are counted."""
    members, samples = len(right) - 1, sum(right)
    total = sum(n * hits for hits, n in enumerate(right))
    squares = sum(n * hits * hits for hits, n in enumerate(right))
    return torch.tensor((samples * squares - total**2) / (samples * members) ** 2)
