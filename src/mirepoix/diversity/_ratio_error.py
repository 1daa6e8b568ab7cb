"""Ratio-error: the diversity of errors that the thesis measures first."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mirepoix.diversity._pairs import PairCounts, mean_over_pairs, pair_counts
from mirepoix.types import InputError

__all__ = ["pooled_ratio_error", "ratio_error", "ratio_error_matrix"]


def ratio_error(
    correct: Bool[Tensor, "members samples"],
    *,
    no_shared_error: Literal["infinite", "nan", "haldane", "mixmo"] = "infinite",
) -> Float[Tensor, ""]:
    r"""Diversity of errors: how often members fail apart rather than together.

    For two members, with :math:`N^{ij}` the number of samples on which the first is right (:math:`i=1`) or
    wrong (:math:`i=0`) and likewise the second,

    .. math:: r = (N^{01} + N^{10}) / N^{00},

    averaged over pairs. Higher is more diverse. In :math:`[0, \infty]`: a pair that always fails together
    counts 0, a pair that shares no error makes the result infinite, a pair that never errs makes it NaN.

    Args:
        correct: Whether each member classifies each sample correctly.
        no_shared_error: The value of a pair with :math:`N^{00} = 0`, and of no other: what the formula says
            (``"infinite"``); NaN; ``"haldane"``, half a sample more in numerator and denominator, so 1 for a
            pair that never errs; or ``"mixmo"``, the :math:`2 (N^{01} + N^{10}) / N` of the public code of
            MixMo.

    Returns:
        The mean over pairs, a ratio of counts.

    Raises:
        InputError: With fewer than two members, or without samples.

    Example:
        >>> correct = torch.tensor([[True, False, False], [False, True, False]])
        >>> ratio_error(correct)
        tensor(2.)

    References:
        Aksela (2003); thesis, section 2.3.3.1, item 1.
    """
    return mean_over_pairs(ratio_error_matrix(correct, no_shared_error=no_shared_error))


def ratio_error_matrix(
    correct: Bool[Tensor, "members samples"],
    *,
    no_shared_error: Literal["infinite", "nan", "haldane", "mixmo"] = "infinite",
) -> Float[Tensor, "members members"]:
    """The ratio-error of each pair of members, symmetric.

    On the diagonal a member meets itself: 0, or as ``no_shared_error`` says (NaN by default) if it never
    errs.

    Args:
        correct: Whether each member classifies each sample correctly.
        no_shared_error: As in `ratio_error`.

    Raises:
        InputError: As in `ratio_error`.

    Example:
        >>> ratio_error_matrix(torch.tensor([[True, False, False], [False, True, False]]))
        tensor([[0., 2.],
                [2., 0.]])
    """
    return ratio_error_of_counts(pair_counts(correct), no_shared_error)


def ratio_error_of_counts(counts: PairCounts, no_shared_error: str = "infinite") -> Tensor:
    """The matrix, once the pairs are counted."""
    apart, together = counts.only_first + counts.only_second, counts.both_wrong
    ratio = apart / together  # 0 / 0 is NaN: no error at all says nothing about diversity
    match no_shared_error:
        case "infinite":
            return ratio
        case "nan":
            instead = torch.full_like(ratio, torch.nan)
        case "haldane":
            instead = (apart + 0.5) / (together + 0.5)
        case "mixmo":
            samples = counts.both_right + apart + together
            instead = 2 * apart / samples
        case _:
            raise InputError(
                f"no_shared_error must be 'infinite', 'nan', 'haldane' or 'mixmo', got {no_shared_error!r}."
            )
    return torch.where(together == 0, instead, ratio)


def pooled_ratio_error(correct: Bool[Tensor, "members samples"]) -> Float[Tensor, ""]:
    r"""The ratio-error of the counts of all pairs together.

    .. math:: r = \sum_{i<j} (N^{01}_{ij} + N^{10}_{ij}) \Big/ \sum_{i<j} N^{00}_{ij}.

    Not the mean of `ratio_error`: pairs with many shared errors weigh more, and it stays finite as long as
    one pair shares an error. With two members both are equal. Higher is more diverse.

    Args:
        correct: Whether each member classifies each sample correctly.

    Raises:
        InputError: With fewer than two members, or without samples.

    Example:
        >>> correct = torch.tensor([[True, False], [False, True], [False, True]])
        >>> ratio_error(correct), pooled_ratio_error(correct)
        (tensor(inf), tensor(4.))
    """
    return pooled_ratio_error_of_counts(pair_counts(correct))


def pooled_ratio_error_of_counts(counts: PairCounts) -> Tensor:
    """The pooled ratio, once the pairs are counted."""
    apart = (counts.only_first + counts.only_second).triu(1).sum()
    return apart / counts.both_wrong.triu(1).sum()
