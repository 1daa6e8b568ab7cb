"""Double fault: how often two members fail together."""

from jaxtyping import Bool, Float
from torch import Tensor

from mirepoix.diversity._pairs import PairCounts, mean_over_pairs, pair_counts

__all__ = ["double_fault", "double_fault_matrix"]


def double_fault(correct: Bool[Tensor, "members samples"]) -> Float[Tensor, ""]:
    r"""The fraction of samples that two members both get wrong.

    .. math:: N^{00} / N,

    averaged over pairs. In [0, 1], lower is more diverse. It goes with the error of the members: copies have
    their error, and independent members the product of theirs.

    Args:
        correct: Whether each member classifies each sample correctly.

    Raises:
        InputError: With fewer than two members, or without samples.

    Example:
        >>> import torch
        >>> double_fault(torch.tensor([[True, False, False, True], [False, True, False, True]]))
        tensor(0.2500)

    References:
        Giacinto and Roli (2001); Kuncheva and Whitaker (2003), Measures of diversity in classifier ensembles.
    """
    return mean_over_pairs(double_fault_matrix(correct))


def double_fault_matrix(correct: Bool[Tensor, "members samples"]) -> Float[Tensor, "members members"]:
    """The double fault of each pair of members, symmetric; on the diagonal, the error of each member.

    Args:
        correct: Whether each member classifies each sample correctly.

    Raises:
        InputError: As in `double_fault`.

    Example:
        >>> import torch
        >>> double_fault_matrix(torch.tensor([[True, False, False, True], [False, True, False, True]]))
        tensor([[0.5000, 0.2500],
                [0.2500, 0.5000]])
    """
    return double_fault_of_counts(pair_counts(correct))


def double_fault_of_counts(counts: PairCounts) -> Tensor:
    """The matrix, once the pairs are counted."""
    samples = counts.both_right + counts.only_first + counts.only_second + counts.both_wrong
    return counts.both_wrong / samples
