"""Generalised diversity: whether a second member fails where a first one does."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mirepoix.diversity._votes import right_histogram

__all__ = ["generalised_diversity"]


def generalised_diversity(correct: Bool[Tensor, "members samples"]) -> Float[Tensor, ""]:
    r"""One minus the chance that two members drawn at random both fail, over the chance that one does.

    With :math:`f(x)` of :math:`M` members wrong on sample x,

    .. math:: 1 - \frac{p(2)}{p(1)}, \qquad p(1) = \frac1N \sum_x \frac{f(x)}{M}, \qquad
              p(2) = \frac1N \sum_x \frac{f(x) (f(x) - 1)}{M (M - 1)}.

    Higher is more diverse. In [0, 1]: 0 if members always fail together, 1 if never two of them do. NaN if no member
    ever errs. It is one minus `double_fault` over the mean error.

    Args:
        correct: Whether each member classifies each sample correctly.

    Raises:
        InputError: With fewer than two members, or without samples.

    Example:
        >>> generalised_diversity(torch.tensor([[True, True, False, True], [True, False, False, True]]))
        tensor(0.3333)

    References:
        Partridge and Krzanowski (1997); Kuncheva and Whitaker (2003), Measures of diversity in classifier ensembles.
    """
    return generalised_diversity_of(right_histogram(correct)).to(correct.device)


def generalised_diversity_of(right: list[int]) -> Tensor:
    """The measure, once the members that are right are counted."""
    members = len(right) - 1
    failures = [(members - hits, n) for hits, n in enumerate(right)]
    one = (members - 1) * sum(n * f for f, n in failures)
    two = sum(n * f * (f - 1) for f, n in failures)
    return torch.tensor((one - two) / one if one else math.nan)
