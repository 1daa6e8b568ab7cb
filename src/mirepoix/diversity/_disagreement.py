"""Disagreement: how often two members answer differently, by their labels or by being right."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mirepoix.diversity._pairs import PairCounts, mean_over_pairs, pair_counts
from mirepoix.diversity._votes import check_predicted

__all__ = [
    "agreement",
    "agreement_matrix",
    "disagreement",
    "disagreement_matrix",
    "oracle_disagreement",
    "oracle_disagreement_matrix",
]


def disagreement(predicted: Int[Tensor, "members samples"]) -> Float[Tensor, ""]:
    r"""The fraction of samples to which two members give different labels.

    .. math:: \frac1N \sum_n [\hat y_{in} \ne \hat y_{jn}],

    averaged over pairs. In [0, 1], higher is more diverse. Two different wrong labels count, which
    `oracle_disagreement` cannot see.

    Args:
        predicted: The class that each member predicts for each sample.

    Raises:
        InputError: With fewer than two members, or without samples.

    Example:
        >>> disagreement(torch.tensor([[0, 1, 2, 2], [0, 1, 1, 0]]))
        tensor(0.5000)

    References:
        Fort et al. (2019), Deep ensembles: a loss landscape perspective, section 4.
    """
    return mean_over_pairs(disagreement_matrix(predicted))


def disagreement_matrix(predicted: Int[Tensor, "members samples"]) -> Float[Tensor, "members members"]:
    """The disagreement of each pair of members, symmetric; 0 on the diagonal.

    Args:
        predicted: The class that each member predicts for each sample.

    Raises:
        InputError: As in `disagreement`.

    Example:
        >>> disagreement_matrix(torch.tensor([[0, 1, 2, 2], [0, 1, 1, 0]]))
        tensor([[0.0000, 0.5000],
                [0.5000, 0.0000]])
    """
    return _different(predicted) / predicted.shape[1]


def agreement(predicted: Int[Tensor, "members samples"]) -> Float[Tensor, ""]:
    r"""The fraction of samples to which two members give the same label: 1 - `disagreement`.

    In [0, 1], lower is more diverse.

    Args:
        predicted: The class that each member predicts for each sample.

    Raises:
        InputError: With fewer than two members, or without samples.

    Example:
        >>> agreement(torch.tensor([[0, 1, 2, 2], [0, 1, 1, 2]]))
        tensor(0.7500)
    """
    return mean_over_pairs(agreement_matrix(predicted))


def agreement_matrix(predicted: Int[Tensor, "members samples"]) -> Float[Tensor, "members members"]:
    """The agreement of each pair of members, symmetric; 1 on the diagonal.

    Args:
        predicted: The class that each member predicts for each sample.

    Raises:
        InputError: As in `agreement`.

    Example:
        >>> agreement_matrix(torch.tensor([[0, 1, 2, 2], [0, 1, 1, 2]]))
        tensor([[1.0000, 0.7500],
                [0.7500, 1.0000]])
    """
    return 1 - disagreement_matrix(predicted)


def oracle_disagreement(correct: Bool[Tensor, "members samples"]) -> Float[Tensor, ""]:
    r"""The fraction of samples on which one of two members is right and the other wrong.

    .. math:: (N^{01} + N^{10}) / N,

    averaged over pairs. In [0, 1], higher is more diverse. At most the `disagreement` of labels.

    Args:
        correct: Whether each member classifies each sample correctly.

    Raises:
        InputError: With fewer than two members, or without samples.

    Example:
        >>> oracle_disagreement(torch.tensor([[True, False, False, True], [False, True, False, True]]))
        tensor(0.5000)

    References:
        Skalak (1996); Kuncheva and Whitaker (2003), Measures of diversity in classifier ensembles.
    """
    return mean_over_pairs(oracle_disagreement_matrix(correct))


def oracle_disagreement_matrix(
    correct: Bool[Tensor, "members samples"],
) -> Float[Tensor, "members members"]:
    """The oracle disagreement of each pair of members, symmetric; 0 on the diagonal.

    Args:
        correct: Whether each member classifies each sample correctly.

    Raises:
        InputError: As in `oracle_disagreement`.

    Example:
        >>> oracle_disagreement_matrix(torch.tensor([[True, False, False, True], [False, True, False, True]]))
        tensor([[0.0000, 0.5000],
                [0.5000, 0.0000]])
    """
    return oracle_disagreement_of_counts(pair_counts(correct))


def oracle_disagreement_of_counts(counts: PairCounts) -> Tensor:
    """The matrix, once the pairs are counted."""
    apart = counts.only_first + counts.only_second
    return apart / (counts.both_right + apart + counts.both_wrong)


def _different(predicted: Tensor) -> Tensor:
    """How many labels differ, of each pair."""
    check_predicted(predicted)
    # One byte per label is compared 2.5 times as fast as eight. One-hot products would cost classes times more.
    if predicted.min() >= 0 and predicted.max() < 256:
        predicted = predicted.to(torch.uint8)
    members = len(predicted)
    different = torch.zeros(members, members, dtype=torch.long, device=predicted.device)
    for i in range(members - 1):
        different[i, i + 1 :] = (predicted[i] != predicted[i + 1 :]).sum(1)
    return different + different.T
