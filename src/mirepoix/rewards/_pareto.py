r"""Which points of a front no other point dominates."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mirepoix.rewards._points import Array, as_array, as_points
from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = ["front_of", "nondominated_probability", "pareto_mask"]

Mask = NDArray[np.bool_]


def pareto_mask(points: ArrayLike, eps: float = 0.0) -> Mask:
    r"""Which points are not dominated by another.

    All rewards are maximised. Point :math:`a` dominates :math:`b` if it is nowhere worse and somewhere better,

    .. math:: \forall k: a_k \ge b_k - \varepsilon \quad\text{and}\quad \exists k: a_k > b_k + \varepsilon,

    so that differences up to :math:`\varepsilon` count as ties. Of points that tie in all rewards the first is kept.
    With :math:`\varepsilon > 0` and three or more rewards, points could dominate each other in a circle; there,
    :math:`a` must also have the larger sum (which follows from the above in all other cases). Two rewards take
    :math:`O(n \log n)` steps, more take :math:`O(n^2)`.

    Args:
        points: ``(points, rewards)``; negate a reward that is minimised.
        eps: Largest difference that is a tie, in the unit of the rewards.

    Returns:
        True where a point is kept; at least one is.

    Raises:
        InputError: For a point that is not finite, with its row; without points; for a negative ``eps``.

    Example:
        >>> pareto_mask([(0.2, 0.9), (0.5, 0.6), (0.9, 0.1), (0.4, 0.5)]).tolist()
        [True, True, True, False]

    References:
        Ramé et al. (2023), Rewarded soups; thesis, equation 6.1: the Pareto front.
    """
    rows = as_points("points", points)
    _check_eps(eps)
    kept = ~_dominated(rows, eps)
    kept[kept] = ~_repeated(rows[kept], eps)
    return kept


def nondominated_probability(
    values: ArrayLike, *, eps: float = 0.0, resamples: int = 1000, seed: int = 0
) -> Array:
    """How often each point stays undominated when the evaluation items are drawn again.

    A paired bootstrap: every draw takes the same items, with replacement, for all points and rewards, and computes
    all means anew. A point that is equal to another is not dominated by it, so the probabilities of equal points are
    equal.

    Args:
        values: ``(points, rewards, items)``, with the items in the same order for all points.
        eps: As in `pareto_mask`.
        resamples: How many draws.
        seed: Of the draws.

    Returns:
        One probability for each point, also for those that `pareto_mask` drops.

    Raises:
        InputError: For values of another shape, or not finite, with point, reward and item.

    Example:
        >>> values = [[[1.0, 3.0], [0.0, 0.0]], [[2.0, 1.0], [0.0, 0.0]]]  # means (2, 0) and (1.5, 0)
        >>> nondominated_probability(values, resamples=200).round(1).tolist()
        [0.8, 0.2]
    """
    table = as_values("values", values)
    _check_eps(eps)
    if resamples < 1:
        raise InputError(f"resamples: expected at least 1, got {resamples}.")
    items = table.shape[-1]
    random = stream("nondominated_probability", seed)
    undominated = np.zeros(len(table))
    for _ in range(resamples):
        counts = np.bincount(random.integers(items, size=items), minlength=items)
        # Not a product of matrices, which may round equal rows differently: one would dominate the other.
        undominated += ~_dominated((table * counts).sum(axis=-1) / items, eps)
    return undominated / resamples


def as_values(name: str, values: ArrayLike) -> Array:
    """Values per item, ``(points, rewards, items)``, all finite."""
    table = as_array(name, values)
    if table.ndim != 3 or 0 in table.shape:
        raise InputError(
            f"{name}: expected an array of shape (points, rewards, items), got shape {table.shape}."
        )
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        point, reward, item = (int(i) for i in bad[0])
        raise InputError(
            f"{name}: expected finite rewards, got {table[point, reward, item]} at point {point}, reward {reward}, "
            f"item {item}."
        )
    return table


def front_of(rows: Array) -> Array:
    """The rows that are not dominated, one of each; for rows that are known to be finite."""
    rows = rows[~_dominated(rows, 0.0)]
    return rows[~_repeated(rows, 0.0)]


def _check_eps(eps: float) -> None:
    if not 0 <= eps < np.inf:
        raise InputError(f"eps: expected 0 or a positive number, got {eps!r}.")


def _dominated(rows: Array, eps: float) -> Mask:
    if rows.shape[1] == 1:
        return np.asarray(rows[:, 0] + eps < rows[:, 0].max(initial=-np.inf))
    if rows.shape[1] == 2:
        return _dominated_in_two(rows, eps)
    return _dominated_exactly(rows) if eps == 0 else _dominated_in_many(rows, eps)


def _dominated_in_two(rows: Array, eps: float) -> Mask:
    """By sorting: who has at least this first reward, and how large is the second among those?"""
    order = np.argsort(rows[:, 0])
    first = rows[order, 0]
    best = np.append(np.maximum.accumulate(rows[order, 1][::-1])[::-1], -np.inf)  # second reward from here on
    x, y = rows.T
    better_first = best[np.searchsorted(first, x + eps, side="right")] >= y - eps
    better_second = best[np.searchsorted(first, x - eps, side="left")] > y + eps
    return np.asarray(better_first | better_second)


def _dominated_exactly(rows: Array) -> Mask:
    """For any number of rewards: who dominates a point comes before it in the order of sums."""
    order = np.lexsort((*rows.T[::-1], rows.sum(axis=1)))[::-1]
    rewards = np.ascontiguousarray(rows[order].T)  # comparing whole columns is several times faster
    dominated = np.zeros(len(rows), dtype=bool)
    for i in range(len(rows)):
        if dominated[i]:  # and so is all that it dominates
            continue
        under = _everywhere(rewards[:, i + 1 :], "<=", rewards[:, i])
        (places,) = np.nonzero(under)
        places += i + 1
        dominated[places] |= (rewards[:, places] < rewards[:, i, None]).any(axis=0)
    back = np.empty_like(dominated)
    back[order] = dominated
    return back


def _dominated_in_many(rows: Array, eps: float) -> Mask:
    rewards, sums = np.ascontiguousarray(rows.T), rows.sum(axis=1)
    dominated = np.zeros(len(rows), dtype=bool)
    for i, row in enumerate(rows):
        (places,) = np.nonzero(_everywhere(rewards, ">=", row - eps))
        better = (rewards[:, places] > (row + eps)[:, None]).any(axis=0)
        dominated[i] = (better & (sums[places] > sums[i])).any()
    return dominated


def _everywhere(rewards: Array, sign: Literal["<=", ">="], row: Array) -> Mask:
    """Which columns are at most, or at least, ``row`` in every reward."""
    compare = np.less_equal if sign == "<=" else np.greater_equal
    found = compare(rewards[0], row[0])
    for reward, value in zip(rewards[1:], row[1:], strict=True):
        found &= compare(reward, value)
    return np.asarray(found)


def _repeated(rows: Array, eps: float) -> Mask:
    """Whether a row ties in all rewards with an earlier one that is kept."""
    repeated = np.ones(len(rows), dtype=bool)
    if eps == 0:
        repeated[np.unique(rows + 0.0, axis=0, return_index=True)[1]] = False  # + 0.0 as -0.0 is 0
        return repeated
    kept = np.empty(rows.shape[::-1])
    count = 0
    for i, row in enumerate(rows):
        near = _everywhere(kept[:, :count], "<=", row + eps) & _everywhere(kept[:, :count], ">=", row - eps)
        if not near.any():
            kept[:, count], repeated[i] = row, False
            count += 1
    return repeated
