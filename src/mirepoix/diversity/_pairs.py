"""All pairs of members at once: who is right together, alone, or not at all."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mirepoix.diversity._votes import check_correct
from mirepoix.types import InputError

__all__ = ["PairCounts", "mean_over_pairs", "pair_counts"]


@dataclass(frozen=True)
class PairCounts:
    r"""The contingency tables of all pairs: entry :math:`(i, j)` is about members i and j.

    The four add up to the number of samples, in each entry.

    Attributes:
        both_right: :math:`N^{11}`, symmetric; on the diagonal, what each member gets right.
        only_first: :math:`N^{10}`, samples that i gets right and j wrong.
        only_second: :math:`N^{01}`, the transpose of it.
        both_wrong: :math:`N^{00}`, symmetric; on the diagonal, the errors of each member.
    """

    both_right: Int[Tensor, "members members"]
    only_first: Int[Tensor, "members members"]
    only_second: Int[Tensor, "members members"]
    both_wrong: Int[Tensor, "members members"]


def pair_counts(correct: Bool[Tensor, "members samples"]) -> PairCounts:
    """Count, for all pairs of members, the samples on which they are right or wrong together.

    Args:
        correct: Whether each member classifies each sample correctly.

    Raises:
        InputError: With fewer than two members, or without samples.

    Example:
        >>> pair_counts(torch.tensor([[True, True, False], [True, False, False]])).both_right
        tensor([[2, 1],
                [1, 1]])
    """
    check_correct(correct)
    samples = correct.shape[1]
    # Products of integers do not exist on a GPU and are slow on a processor; in float64 they are exact up to
    # 2^53 samples, in float32, where the device has nothing better, up to 2^24.
    x = correct.to(torch.float32 if correct.device.type == "mps" else torch.float64)
    both_right = (x @ x.T).long()  # (members, members)
    right = both_right.diagonal()[:, None]  # (members, 1): of the first of each pair
    only_first = right - both_right
    return PairCounts(
        both_right=both_right,
        only_first=only_first,
        only_second=only_first.T,
        both_wrong=samples - right - only_first.T,
    )


def mean_over_pairs(matrix: Float[Tensor, "members members"]) -> Float[Tensor, ""]:
    """The mean over pairs of different members, each pair taken once, of a measure of pairs.

    An infinite pair makes the mean infinite, a pair that is NaN makes it NaN.

    Args:
        matrix: The measure of members i and j at :math:`(i, j)`; what lies above the diagonal is read.

    Raises:
        InputError: With fewer than two members.

    Example:
        >>> mean_over_pairs(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 6.0], [2.0, 6.0, 0.0]]))
        tensor(3.)
    """
    if len(matrix) < 2:
        raise InputError(f"a mean over pairs needs two members, got {len(matrix)}.")
    i, j = torch.triu_indices(len(matrix), len(matrix), offset=1, device=matrix.device)
    return matrix[i, j].mean()
