"""Pairs of members compared by where they come from: one run or several, one start or several."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from mirepoix.bootstrap import Interval, bootstrap
from mirepoix.types import InputError

__all__ = ["GroupMeans", "PairSummary", "group_means", "summarise_pairs"]


@dataclass(frozen=True, slots=True)
class GroupMeans:
    """A measure of pairs, within groups of members and across them.

    Attributes:
        within: The mean over pairs of one group; None without such a pair.
        across: The mean over pairs of two groups; None without such a pair.
        difference: ``across - within``; None where either is.
        groups: How many groups there are.
        pairs_within: How many pairs lie within groups.
        pairs_across: How many lie across.
    """

    within: Interval | None
    across: Interval | None
    difference: Interval | None
    groups: int
    pairs_within: int
    pairs_across: int


@dataclass(frozen=True, slots=True)
class PairSummary:
    """A measure of pairs in a few numbers, each pair taken once.

    Attributes:
        mean: Over all pairs; NaN if one is undefined.
        std: Standard deviation of the pairs at hand, 0 for one pair; NaN if one is undefined or infinite.
        minimum: The smallest defined value; NaN without one.
        maximum: The largest defined value; NaN without one.
        minimum_pair: The members, first the lower index, that have the smallest; the first such pair.
        maximum_pair: The members that have the largest.
        pairs: How many pairs there are.
        undefined: How many of them are NaN.
    """

    mean: float
    std: float
    minimum: float
    maximum: float
    minimum_pair: tuple[int, int] | None
    maximum_pair: tuple[int, int] | None
    pairs: int
    undefined: int


def group_means(
    matrix: Float[Tensor, "members members"],
    groups: Sequence[Hashable] | Tensor | NDArray[Any],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> GroupMeans:
    r"""Whether members of different groups differ more than members of one: of one run, start or architecture.

    .. math:: \text{within} = \operatorname*{mean}_{i<j,\ g_i = g_j} m_{ij}, \qquad
        \text{across} = \operatorname*{mean}_{i<j,\ g_i \ne g_j} m_{ij}.

    For the intervals whole groups are drawn again, and not pairs: pairs that share a member or a group go up and down
    together, and drawing them apart would make the interval too short. A group drawn twice counts twice; its two
    copies make no pair. With one group there is no interval, with two or three there is none for what lies across, as
    too many draws hold one group only; below six or so do not lean on it.

    Args:
        matrix: The measure of members i and j at :math:`(i, j)`; what lies above the diagonal is read.
        groups: The group of each member: any labels, such as run numbers or names of starts.
        resamples: How often groups are drawn.
        level: Of the intervals.
        seed: Of the draws.

    Returns:
        Means, intervals and numbers of pairs. A pair that is NaN makes its mean NaN.

    Raises:
        InputError: When the labels are not one per member; with fewer than two members; and as
            `mirepoix.bootstrap.bootstrap`.

    Example:
        >>> matrix = torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 7.0], [5.0, 7.0, 0.0]])
        >>> means = group_means(matrix, ["a", "a", "b"])
        >>> means.within.value, means.across.value, means.difference.value
        (1.0, 6.0, 5.0)
    """
    count = _check_square(matrix)
    labels = list(groups.tolist() if isinstance(groups, Tensor | np.ndarray) else groups)
    if len(labels) != count:
        raise InputError(f"expected one group per member, got {len(labels)} for {count} members.")
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    owner = np.array([places[label] for label in labels])
    i, j = np.triu_indices(count, 1)
    values = matrix.detach().cpu().double().numpy()[i, j]
    size = len(places)
    sums, pairs = np.zeros((size, size)), np.zeros((size, size))
    np.add.at(sums, (owner[i], owner[j]), values)
    np.add.at(pairs, (owner[i], owner[j]), 1)
    within, across = np.diagonal(sums).copy(), _off_diagonal(sums)
    pairs_within, pairs_across = np.diagonal(pairs).copy(), _off_diagonal(pairs)

    def means(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        times = np.bincount(drawn, minlength=size).astype(np.float64)
        taken = times > 0  # what was not drawn may be NaN
        outer = np.ix_(taken, taken)
        times = times[taken]
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = np.divide(times @ within[taken], times @ pairs_within[taken])
            outside = np.divide(times @ across[outer] @ times, times @ pairs_across[outer] @ times)
            return np.array([inside, outside, outside - inside])

    intervals = bootstrap(means, size, resamples=resamples, level=level, seed=seed)
    has_within, has_across = bool(pairs_within.any()), bool(pairs_across.any())
    return GroupMeans(
        within=intervals[0] if has_within else None,
        across=intervals[1] if has_across else None,
        difference=intervals[2] if has_within and has_across else None,
        groups=size,
        pairs_within=int(pairs_within.sum()),
        pairs_across=int(pairs_across.sum()) // 2,
    )


def summarise_pairs(matrix: Float[Tensor, "members members"]) -> PairSummary:
    """Mean, spread and extremes of a measure of pairs, and who the extreme pairs are.

    Args:
        matrix: The measure of members i and j at :math:`(i, j)`; what lies above the diagonal is read.

    Raises:
        InputError: With fewer than two members.

    Example:
        >>> summary = summarise_pairs(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 6.0], [2.0, 6.0, 0.0]]))
        >>> summary.mean, summary.maximum, summary.maximum_pair
        (3.0, 6.0, (1, 2))
    """
    count = _check_square(matrix)
    i, j = torch.triu_indices(count, count, offset=1)
    values = matrix.detach().cpu().double()[i, j]
    defined = (~values.isnan()).nonzero().flatten()
    low = high = None
    if len(defined):
        low, high = (
            int(defined[int(place)]) for place in (values[defined].argmin(), values[defined].argmax())
        )
    return PairSummary(
        mean=float(values.mean()),
        std=float(values.std(correction=0)),
        minimum=float("nan") if low is None else float(values[low]),
        maximum=float("nan") if high is None else float(values[high]),
        minimum_pair=None if low is None else (int(i[low]), int(j[low])),
        maximum_pair=None if high is None else (int(i[high]), int(j[high])),
        pairs=len(values),
        undefined=len(values) - len(defined),
    )


def _check_square(matrix: Tensor) -> int:
    if matrix.ndim != 2 or len(matrix) != matrix.shape[1] or len(matrix) < 2:
        raise InputError(
            f"expected a measure of all pairs of two members or more, got shape {tuple(matrix.shape)}."
        )
    return len(matrix)


def _off_diagonal(x: Any) -> Any:
    """Pairs of two different groups, symmetric: each in both places."""
    both = x + x.T
    np.fill_diagonal(both, 0)
    return both
