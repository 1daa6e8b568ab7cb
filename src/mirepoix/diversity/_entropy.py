"""Entropy diversity: how evenly the votes of the members are split."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mirepoix.diversity._votes import right_histogram, vote_histogram

__all__ = ["entropy_of_correctness", "vote_entropy"]


def vote_entropy(predicted: Int[Tensor, "members samples"], classes: int) -> Float[Tensor, ""]:
    r"""The entropy of the votes for a sample, in nats, averaged over samples.

    With :math:`v_k(x)` the fraction of members that predict class k for sample x,

    .. math:: -\frac1N \sum_x \sum_k v_k(x) \log v_k(x).

    This is what "entropy diversity" means without more words. Higher is more diverse. In
    :math:`[0, \log \min(M, K)]`: 0 if all members agree everywhere.

    Args:
        predicted: The class that each member predicts for each sample.
        classes: How many classes there are.

    Raises:
        InputError: With fewer than two members, or without samples; for a class beyond ``classes``.

    Example:
        >>> vote_entropy(torch.tensor([[0, 1, 2, 2], [0, 1, 1, 0]]), classes=3)  # log(2) / 2
        tensor(0.3466)

    References:
        Dagan and Engelson (1995), Committee-based sampling for training probabilistic classifiers.
    """
    return vote_entropy_of(vote_histogram(predicted, classes)).to(predicted.device)


def vote_entropy_of(votes: list[int]) -> Tensor:
    """The entropy, once the votes are counted."""
    members = len(votes) - 1
    samples = sum(n * count for n, count in enumerate(votes)) // members
    terms = [count * n * math.log(members / n) for n, count in enumerate(votes) if n]
    return torch.tensor(math.fsum(terms) / (members * samples))


def entropy_of_correctness(correct: Bool[Tensor, "members samples"]) -> Float[Tensor, ""]:
    r"""How close to half of the members are right, averaged over samples.

    With :math:`l(x)` of :math:`M` members right on sample x,

    .. math:: \frac1N \sum_x \frac{\min(l(x), M - l(x))}{M - \lceil M / 2 \rceil}.

    Higher is more diverse. In [0, 1]: 0 if on each sample all are right or all are wrong, 1 if half of them are
    everywhere. Kuncheva and Whitaker call it entropy, though it has no logarithm.

    Args:
        correct: Whether each member classifies each sample correctly.

    Raises:
        InputError: With fewer than two members, or without samples.

    Example:
        >>> entropy_of_correctness(torch.tensor([[True, True, False, True], [True, False, False, False]]))
        tensor(0.5000)

    References:
        Kuncheva and Whitaker (2003), Measures of diversity in classifier ensembles.
    """
    return entropy_of_correctness_of(right_histogram(correct)).to(correct.device)


def entropy_of_correctness_of(right: list[int]) -> Tensor:
    """The measure, once the members that are right are counted."""
    members = len(right) - 1
    return torch.tensor(
        sum(n * min(hits, members - hits) for hits, n in enumerate(right)) / (members // 2 * sum(right))
    )
