"""Yule's Q: the association between the errors of two members."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mirepoix.diversity._pairs import PairCounts, mean_over_pairs, pair_counts
from mirepoix.types import InputError

__all__ = ["q_diversity", "q_statistic", "q_statistic_matrix"]


def q_statistic(
    correct: Bool[Tensor, "members samples"], *, zero_denominator: Literal["nan", "haldane"] = "nan"
) -> Float[Tensor, ""]:
    r"""Association of errors: whether members are right on the same samples.

    With the counts :math:`N^{ij}` of two members, right (1) or wrong (0) on a sample,

    .. math:: Q = \frac{N^{11} N^{00} - N^{01} N^{10}}{N^{11} N^{00} + N^{01} N^{10}},

    averaged over pairs. Lower is more diverse. In [-1, 1]: 0 for independent members, 1 as soon as one of
    them is right wherever the other is, -1 if they never fail together. Two copies of a member give 1,
    unless it is always right or always wrong, which makes the denominator zero.

    Args:
        correct: Whether each member classifies each sample correctly.
        zero_denominator: The value of a pair whose denominator is 0, and of no other: NaN; or, with
            ``"haldane"``, 1 for two members that are right on the same samples, and else the formula with half
            a sample more in each of the four counts (Haldane's correction).

    Raises:
        InputError: With fewer than two members, or without samples.

    Example:
        >>> q_statistic(torch.tensor([[True, True, True, False, False], [True, True, False, True, False]]))
        tensor(0.3333)

    References:
        Yule (1900); Kuncheva and Whitaker (2003), Measures of diversity in classifier ensembles.
    """
    return mean_over_pairs(q_statistic_matrix(correct, zero_denominator=zero_denominator))


def q_diversity(
    correct: Bool[Tensor, "members samples"], *, zero_denominator: Literal["nan", "haldane"] = "nan"
) -> Float[Tensor, ""]:
    r"""The Q-statistic turned around, so that higher is more diverse: :math:`1 - Q`, in [0, 2].

    Args:
        correct: Whether each member classifies each sample correctly.
        zero_denominator: As in `q_statistic`.

    Raises:
        InputError: With fewer than two members, or without samples.

    Example:
        >>> q_diversity(torch.tensor([[True, True, True, False, False], [True, True, False, True, False]]))
        tensor(0.6667)
    """
    return 1 - q_statistic(correct, zero_denominator=zero_denominator)


def q_statistic_matrix(
    correct: Bool[Tensor, "members samples"], *, zero_denominator: Literal["nan", "haldane"] = "nan"
) -> Float[Tensor, "members members"]:
    """The Q-statistic of each pair of members, symmetric.

    On the diagonal a member meets itself: 1, but NaN by default if it is always right or always wrong.

    Args:
        correct: Whether each member classifies each sample correctly.
        zero_denominator: As in `q_statistic`.

    Raises:
        InputError: As in `q_statistic`.

    Example:
        >>> q_statistic_matrix(torch.tensor([[True, False, False], [False, True, False]]))
        tensor([[ 1., -1.],
                [-1.,  1.]])
    """
    if zero_denominator not in ("nan", "haldane"):
        raise InputError(f"zero_denominator must be 'nan' or 'haldane', got {zero_denominator!r}.")
    return q_statistic_of_counts(pair_counts(correct), zero_denominator)


def q_statistic_of_counts(counts: PairCounts, zero_denominator: str = "nan") -> Tensor:
    """The matrix, once the pairs are counted."""
    table = torch.stack([counts.both_right, counts.both_wrong, counts.only_first, counts.only_second])
    q, denominator = _q(table)
    if zero_denominator == "haldane":
        # Twice the counts, so that the half stays an integer; Q does not notice.
        corrected, _ = _q(2 * table + 1)
        corrected[counts.only_first + counts.only_second == 0] = 1
        q = torch.where(denominator == 0, corrected, q)
    return q


def _q(table: Tensor) -> tuple[Tensor, Tensor]:
    concordant, discordant = table[0] * table[1], table[2] * table[3]
    denominator = concordant + discordant
    return (concordant - discordant) / denominator, denominator  # 0 / 0 is NaN
