"""Correlation of errors: the phi coefficient of being right."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mirepoix.diversity._pairs import PairCounts, mean_over_pairs, pair_counts

__all__ = ["error_correlation", "error_correlation_matrix"]


def error_correlation(correct: Bool[Tensor, "members samples"]) -> Float[Tensor, ""]:
    r"""Pearson's correlation between the errors of two members, the phi coefficient of their table.

    .. math:: \rho = \frac{N^{11} N^{00} - N^{01} N^{10}}
              {\sqrt{(N^{11} + N^{10}) (N^{01} + N^{00}) (N^{11} + N^{01}) (N^{10} + N^{00})}},

    averaged over pairs. In [-1, 1], lower is more diverse: 1 for copies, 0 for independent members, -1 if exactly
    one is right on each sample. It has the sign of `q_statistic` and is never larger in size. A member that is
    always right or always wrong has no correlation, which makes the result NaN.

    Args:
        correct: Whether each member classifies each sample correctly.

    Raises:
        InputError: With fewer than two members, or without samples.

    Example:
        >>> error_correlation(torch.tensor([[True, True, True, False, False], [True, True, False, True, False]]))
        tensor(0.1667)

    References:
        Kuncheva and Whitaker (2003), Measures of diversity in classifier ensembles.
    """
    return mean_over_pairs(error_correlation_matrix(correct))


def error_correlation_matrix(correct: Bool[Tensor, "members samples"]) -> Float[Tensor, "members members"]:
    """The correlation of errors of each pair of members, symmetric.

    On the diagonal 1, or NaN for a member that is always right or always wrong; so are its row and column.

    Args:
        correct: Whether each member classifies each sample correctly.

    Raises:
        InputError: As in `error_correlation`.

    Example:
        >>> error_correlation_matrix(torch.tensor([[True, False, False], [True, True, True]]))
        tensor([[1., nan],
                [nan, nan]])
    """
    return error_correlation_of_counts(pair_counts(correct))


def error_correlation_of_counts(counts: PairCounts) -> Tensor:
    """The matrix, once the pairs are counted."""
    covariance = counts.both_right * counts.both_wrong - counts.only_first * counts.only_second
    # The product of all four margins leaves the integers from 80,000 samples on; that of two and a root do not.
    spread = (counts.both_right.diagonal() * counts.both_wrong.diagonal()).cpu().double().sqrt()
    phi = covariance.cpu() / (spread[:, None] * spread)  # 0 / 0 is NaN
    return phi.clamp(-1, 1).to(counts.both_right.device, torch.get_default_dtype())
