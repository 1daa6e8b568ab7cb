"""Interrater agreement: Fleiss' kappa of being right."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mirepoix.diversity._votes import right_histogram

__all__ = ["interrater_agreement"]


def interrater_agreement(correct: Bool[Tensor, "members samples"]) -> Float[Tensor, ""]:
    r"""How much more members are right together than chance would have it.

    With :math:`l(x)` of :math:`M` members right on sample x, and :math:`\bar p` their mean accuracy,

    .. math:: \kappa = 1 - \frac{\sum_x l(x) (M - l(x))}{N M (M - 1) \bar p (1 - \bar p)}.

    Lower is more diverse. In :math:`[-1 / (M - 1), 1]`: 1 if on each sample all are right or all are wrong, about 0
    for independent members of one accuracy. NaN if all answers are right, or all wrong.

    Args:
        correct: Whether each member classifies each sample correctly.

    Raises:
        InputError: With fewer than two members, or without samples.

    Example:
        >>> interrater_agreement(torch.tensor([[True, True, False, True], [True, False, False, True]]))
        tensor(0.4667)

    References:
        Fleiss (1981); Kuncheva and Whitaker (2003), Measures of diversity in classifier ensembles.
    """
    return interrater_agreement_of(right_histogram(correct)).to(correct.device)


def interrater_agreement_of(right: list[int]) -> Tensor:
    """Kappa, once the members that are right are counted."""
    members, samples = len(right) - 1, sum(right)
    answers = members * samples
    total = sum(n * hits for hits, n in enumerate(right))
    apart = sum(n * hits * (members - hits) for hits, n in enumerate(right))
    chance = (members - 1) * total * (answers - total)  # whole numbers up to the one division
    return torch.tensor(1 - apart * answers / chance if chance else math.nan)
