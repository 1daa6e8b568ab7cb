"""Variance of answers over members, the Kohavi-Wolpert variance: of being right, and of the labels themselves."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mirepoix.diversity._votes import right_histogram, vote_histogram

__all__ = ["kohavi_wolpert", "label_variance"]


def kohavi_wolpert(correct: Bool[Tensor, "members samples"]) -> Float[Tensor, ""]:
    r"""The variance, over members, of being right on a sample, averaged over samples.

    With :math:`l(x)` of :math:`M` members right on sample x,

    .. math:: \frac{1}{N M^2} \sum_x l(x) (M - l(x)).

    Higher is more diverse. In [0, 1/4]: 0 if on each sample all are right or all are wrong. It is
    :math:`(M - 1) / (2 M)` times the mean over pairs of `oracle_disagreement`, so it grows with the number of
    members at equal disagreement.

    Args:
        correct: Whether each member classifies each sample correctly.

    Raises:
        InputError: With fewer than two members, or without samples.

    Example:
        >>> kohavi_wolpert(torch.tensor([[True, True, False, True], [True, False, False, False]]))
        tensor(0.1250)

    References:
        Kohavi and Wolpert (1996); Kuncheva and Whitaker (2003), Measures of diversity in classifier ensembles.
    """
    return kohavi_wolpert_of(right_histogram(correct)).to(correct.device)


def kohavi_wolpert_of(right: list[int]) -> Tensor:
    """The variance, once the members that are right are counted."""
    members = len(right) - 1
    return torch.tensor(
        sum(n * hits * (members - hits) for hits, n in enumerate(right)) / (members**2 * sum(right))
    )


def label_variance(predicted: Int[Tensor, "members samples"], classes: int) -> Float[Tensor, ""]:
    r"""The variance, over members, of the predicted label, averaged over samples.

    With :math:`v_k(x)` the fraction of members that predict class k for sample x,

    .. math:: \frac1N \sum_x \frac12 \Big(1 - \sum_k v_k(x)^2\Big).

    Higher is more diverse. In [0, 1/2): 0 if all members agree everywhere. It is :math:`(M - 1) / (2 M)` times the
    mean over pairs of `disagreement`; with two classes it is `kohavi_wolpert`.

    Args:
        predicted: The class that each member predicts for each sample.
        classes: How many classes there are.

    Raises:
        InputError: With fewer than two members, or without samples; for a class beyond ``classes``.

    Example:
        >>> label_variance(torch.tensor([[0, 1, 2, 2], [0, 1, 1, 0]]), classes=3)
        tensor(0.1250)

    References:
        Kohavi and Wolpert (1996), the variance term.
    """
    return label_variance_of(vote_histogram(predicted, classes)).to(predicted.device)


def label_variance_of(votes: list[int]) -> Tensor:
    """The variance, once the votes are counted."""
    members = len(votes) - 1
    samples = sum(n * count for n, count in enumerate(votes)) // members
    squares = sum(n * n * count for n, count in enumerate(votes))
    return torch.tensor((members**2 * samples - squares) / (2 * members**2 * samples))
