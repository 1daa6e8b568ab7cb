r"""What a front is worth: its curves, its spider map, and another front beside it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mirepoix.bootstrap import Interval, bootstrap
from mirepoix.rewards._front import RewardFront
from mirepoix.rewards._hypervolume import (
    Mode,
    Volume,
    check_extent,
    clipped_area,
    common_box,
    volume_above,
)
from mirepoix.rewards._pareto import front_of
from mirepoix.rewards._points import Array, as_bound, write, written
from mirepoix.rewards._simplex import check_numbers
from mirepoix.types import InputError

__all__ = [
    "FrontComparison",
    "RewardCurve",
    "RewardCurves",
    "SpiderArea",
    "compare_fronts",
    "reward_curves",
    "spider_area",
]

ENUMERATED_AXES = 8


@dataclass(frozen=True, slots=True)
class RewardCurve:
    """One reward over the points of a front.

    Attributes:
        reward: Its name.
        trained: Whether an expert was trained on it.
        ends: Its mean for each expert alone.
        best: The largest mean over all points.
        at: The coefficients there; the first of equals.
        gain: How far ``best`` lies above the best expert alone, at least 0.
        gain_interval: A 95 % interval of the gain from a paired bootstrap over items, or None without values per item.
            The largest of several noisy means is optimistic, so it is shifted upwards.
        above_ends: The share of soups (points that are no expert alone) that beat every expert alone.
        direction: With two experts, whether the reward rises or falls from the first expert to the second; else None.
        violation: With two experts, the largest change between two points against that direction; else None.
        tolerance: What ``violation`` may be by chance: the 95 % quantile, over draws of the items, of how far two
            points of the curve move against each other. 0 without values per item.
        monotone: Whether the violation is within the tolerance; None with other than two experts.
    """

    reward: str
    trained: bool
    ends: Mapping[str, float]
    best: float
    at: Mapping[str, float]
    gain: float
    gain_interval: Interval | None
    above_ends: float
    direction: Literal["rising", "falling"] | None
    violation: float | None
    tolerance: float
    monotone: bool | None


@dataclass(frozen=True)
class RewardCurves:
    """All rewards over the points of a front.

    Attributes:
        curves: By reward.
    """

    curves: Mapping[str, RewardCurve]

    @property
    def improved(self) -> tuple[str, ...]:
        """Rewards that were never trained on and that some soup earns more of than every expert."""
        return tuple(curve.reward for curve in self.curves.values() if not curve.trained and curve.gain > 0)

    def __str__(self) -> str:
        lines = []
        for curve in self.curves.values():
            ends = written(curve.ends)
            text = f"{curve.reward} ({'trained' if curve.trained else 'not trained'}): experts {ends}"
            if curve.gain > 0:
                text += f", best {write(curve.best)} at lambda = {written(curve.at)}"
                text += f", {write(curve.gain)} above every expert"
            else:
                text += ", no soup above the best of them"
            if curve.direction is not None:
                text += f"; {curve.direction if curve.monotone else 'not monotone'}"
            lines.append(text)
        untrained = [curve for curve in self.curves.values() if not curve.trained]
        if untrained:
            lines.append(
                f"{len(self.improved)} of {len(untrained)} rewards that were not trained on gain from a soup."
            )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class SpiderArea:
    """The area of one polygon of a spider map.

    Attributes:
        value: The mean over all orders of the axes: the number to compare.
        in_order: With the axes in the order given.
        smallest: Over all orders, or None with more than 8 axes.
        largest: Over all orders, or None with more than 8 axes.
        orders: How many orders there are, rotations and mirror images counted once.
    """

    value: float
    in_order: float
    smallest: float | None
    largest: float | None
    orders: int


@dataclass(frozen=True)
class FrontComparison:
    """Two fronts, measured with one ideal and one nadir.

    Attributes:
        labels: What the fronts are of.
        rewards: Which rewards were compared.
        hypervolumes: Of the two fronts; higher is better.
        areas: Over the two fronts; lower is better. Linear with two rewards, else the staircase.
        hypervolume_difference: First minus second, with a 95 % paired bootstrap interval (NaN ends where there is
            none); positive speaks for the first.
        area_difference: First minus second; negative speaks for the first.
        dominated: The share of the points of each front that a point of the other dominates.
    """

    labels: tuple[str, str]
    rewards: tuple[str, ...]
    hypervolumes: tuple[Volume, Volume]
    areas: tuple[Volume, Volume]
    hypervolume_difference: Interval
    area_difference: Interval
    dominated: tuple[float, float]

    def __str__(self) -> str:
        lines = [
            f"{label}: {what}"
            for numbers in (self.hypervolumes, self.areas)
            for label, what in zip(self.labels, numbers, strict=True)
        ]
        for name, found in (("hypervolume", self.hypervolume_difference), ("area", self.area_difference)):
            known = not math.isnan(found.low)
            interval = (
                f", 95 % interval {write(found.low)} to {write(found.high)}" if known else ", no interval"
            )
            lines.append(
                f"difference of {name}, {self.labels[0]} - {self.labels[1]}: {write(found.value)}{interval}"
            )
        for label, other, share in zip(self.labels, self.labels[::-1], self.dominated, strict=True):
            lines.append(f"points of {label} that one of {other} dominates: {100 * share:.0f} %")
        return "\n".join(lines)


def reward_curves(front: RewardFront, *, resamples: int = 1000, seed: int = 0) -> RewardCurves:
    r"""Every reward against :math:`\lambda`, above all those that no expert was trained on.

    A user's reward is not a weighted sum of the proxies in general. That soups earn more of such a reward than each
    expert does is the evidence that they help against misspecified rewards. Training rewards are expected to be
    monotone between two experts.

    Args:
        front: With each expert alone among its points, and any number of evaluation rewards.
        resamples: Of the bootstrap over items, where there are values per item.
        seed: Of the bootstrap.

    Raises:
        InputError: If an expert alone is missing.

    Example:
        >>> front = RewardFront(
        ...     experts=("a", "b"),
        ...     rewards=("a", "b", "other"),
        ...     coefficients=({"a": 1, "b": 0}, {"a": 0.5, "b": 0.5}, {"a": 0, "b": 1}),
        ...     means=[(1.0, 0.0, 0.2), (0.75, 0.75, 0.5), (0.0, 1.0, 0.3)],
        ... )
        >>> found = reward_curves(front)
        >>> found.improved, found.curves["a"].direction, found.curves["a"].monotone, found.curves["other"].monotone
        (('other',), 'falling', True, False)

    References:
        Ramé et al. (2023), Rewarded soups; thesis, section 6.3.2 and figure 6.4 (b).
    """
    ends = front.ends()
    inside = [i for i in range(len(front)) if i not in set(ends)]
    means = front.means
    gains: Sequence[Interval | None] = [None] * len(front.rewards)
    tolerances = np.zeros(len(front.rewards))
    if front.values is not None:
        values, items = front.values, front.values.shape[-1]

        def redrawn(drawn: NDArray[np.int64]) -> Array:
            return np.asarray(values @ np.bincount(drawn, minlength=items) / items)

        gains = bootstrap(lambda drawn: _gain(redrawn(drawn), ends), items, resamples=resamples, seed=seed)
        # The upper end of a 90 % interval is the 95 % quantile.
        moves = bootstrap(
            lambda drawn: np.ptp(redrawn(drawn) - means, axis=0),
            items,
            resamples=resamples,
            level=0.9,
            seed=seed,
        )
        tolerances = np.nan_to_num([move.high for move in moves])
    trained = set(front.trained_on.values())
    order = np.argsort(front.shares[:, 1], kind="stable") if len(front.experts) == 2 else None
    curves = {}
    for k, name in enumerate(front.rewards):
        column = means[:, k]
        best = int(column.argmax())
        direction: Literal["rising", "falling"] | None = None
        violation = None
        if order is not None:
            direction = "rising" if column[ends[1]] >= column[ends[0]] else "falling"
            along = column[order] if direction == "rising" else -column[order]
            violation = float((np.maximum.accumulate(along) - along).max())
        curves[name] = RewardCurve(
            reward=name,
            trained=name in trained,
            ends=dict(zip(front.experts, column[ends].tolist(), strict=True)),
            best=float(column[best]),
            at=front.coefficients[best],
            gain=float(column[best] - column[ends].max()),
            gain_interval=gains[k],
            above_ends=float((column[inside] > column[ends].max()).mean()) if inside else 0.0,
            direction=direction,
            violation=violation,
            tolerance=float(tolerances[k]),
            monotone=None if violation is None else violation <= float(tolerances[k]),
        )
    return RewardCurves(curves)


def spider_area(values: Mapping[str, float]) -> SpiderArea:
    r"""The area of a polygon with one axis per reward, over all orders of the axes.

    .. math:: A = \tfrac12 \sin\frac{2\pi}{N} \sum_k r_k\, r_{k+1}

    depends on which axes are neighbours. Over all :math:`(N-1)!/2` orders every pair is equally often, so

    .. math:: \bar A = \tfrac12 \sin\frac{2\pi}{N} \cdot \frac{2}{N-1} \sum_{i<j} r_i\, r_j .

    Larger is better, on axes that were scaled for all polygons together: `minmax` with a margin of 0.05, or
    `init_worst`.

    Args:
        values: One number from 0 for each of three or more rewards, by name.

    Raises:
        InputError: For fewer than three rewards, or numbers that are negative or not finite.

    Example:
        >>> found = spider_area({"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0})
        >>> found.in_order, round(found.value, 4), found.largest, found.orders
        (0.0, 0.3333, 0.5, 3)
    """
    numbers = check_numbers(values, list(values), "values")
    if len(numbers) < 3:
        raise InputError(f"values: a spider map needs three rewards or more, got {len(numbers)}.")
    low = [name for name, value in numbers.items() if value < 0]
    if low:
        raise InputError(
            f"values: expected numbers from 0, got {numbers[low[0]]:g} for {low[0]!r}. Scale the rewards of all "
            "polygons together: `minmax` or `init_worst`."
        )
    radii = np.array(list(numbers.values()))
    count = len(radii)
    wedge = math.sin(2 * math.pi / count) / 2
    pairs = (float(radii.sum()) ** 2 - float(radii @ radii)) / 2
    smallest = largest = None
    if count <= ENUMERATED_AXES:
        orders = [(0, *rest) for rest in itertools.permutations(range(1, count)) if rest[0] < rest[-1]]
        turned = radii[np.array(orders)]
        areas = wedge * (turned * np.roll(turned, -1, axis=1)).sum(axis=1)
        smallest, largest = float(areas.min()), float(areas.max())
    return SpiderArea(
        value=wedge * 2 / (count - 1) * pairs,
        in_order=wedge * float(radii @ np.roll(radii, -1)),
        smallest=smallest,
        largest=largest,
        orders=math.factorial(count - 1) // 2,
    )


def compare_fronts(
    first: RewardFront,
    second: RewardFront,
    *,
    rewards: Sequence[str] | None = None,
    ideal: ArrayLike | None = None,
    nadir: ArrayLike | None = None,
    beside: Sequence[RewardFront] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> FrontComparison:
    """Two fronts side by side: soups against MORL, or any others.

    Both are mapped to [0, 1] by one ideal and one nadir, then measured in both conventions (`hypervolume`,
    `area_over_front`). The intervals come from a paired bootstrap: items are drawn again, the same ones for all points
    of both fronts, and means and, unless given, ideal and nadir computed anew. Runs are not drawn again, so the
    intervals say nothing of other seeds.

    True fronts are not known: what is compared is what two procedures reached with the same trainings.

    Args:
        first: Usually the rewarded soups.
        second: With the same rewards, evaluated on the same items in the same order.
        rewards: Which to compare; by default those that experts of ``first`` were trained on.
        ideal: The best of each reward; by default over both fronts and those beside them.
        nadir: The worst of each reward; likewise.
        beside: Further fronts of the same rewards and items, such as that of an ensemble, which ideal and nadir are
            taken over too.
        resamples: Of the bootstrap, 0 for none. With five or more rewards and many points, a draw takes long unless
            moocore is installed.
        seed: Of the bootstrap.

    Raises:
        InputError: For a reward that a front does not have; for fronts on different scales, of different items or of
            different evaluations; for a point outside of ideal and nadir; for a reward without extent.

    Example:
        >>> soup = RewardFront(("a", "b"), ("a", "b"), ({"a": 1, "b": 0}, {"a": 0, "b": 1}), [(2, 0), (0, 2)])
        >>> morl = RewardFront(("a", "b"), ("a", "b"), ({"a": 0.5, "b": 0.5},), [(1, 1)], label="MORL")
        >>> found = compare_fronts(soup, morl)
        >>> [volume.value for volume in found.hypervolumes], [volume.value for volume in found.areas]
        ([0.0, 0.25], [0.5, 0.75])

    References:
        Ramé et al. (2023), Rewarded soups; thesis, section 6.3.1 and remark 6.2.
    """
    names = tuple(rewards) if rewards is not None else first.trained_rewards()
    for other in (second, *beside):
        _check_comparable(first, other)
    one, two, *rest = (front.means[:, front.columns(names)] for front in (first, second, *beside))
    best, worst = common_box(one, two, *rest)
    given = [
        None if bound is None else as_bound(name, bound, len(names))
        for name, bound in (("ideal", ideal), ("nadir", nadir))
    ]
    top, bottom = (
        bound if bound is not None else found for bound, found in zip(given, (best, worst), strict=True)
    )
    if (best > top).any() or (worst < bottom).any():
        raise InputError(
            f"ideal, nadir: expected bounds on all points of the fronts, which reach from {written(worst)} to "
            f"{written(best)}, got ideal {written(top)} and nadir {written(bottom)}."
        )
    check_extent(top, bottom)
    mode: Mode = "linear" if len(names) == 2 else "staircase"
    plain = _numbers(one, two, top, bottom, mode)
    differences = [Interval(value, math.nan, math.nan) for value in plain[:2]]
    known = [front.values for front in (first, second, *beside)]
    values = [table for table in known if table is not None]
    if len(values) == len(known) and resamples:
        columns = [front.columns(names) for front in (first, second, *beside)]
        tables = [table[:, column] for table, column in zip(values, columns, strict=True)]
        items = tables[0].shape[-1]

        def redrawn(drawn: NDArray[np.int64]) -> list[float]:
            counts = np.bincount(drawn, minlength=items)
            a, b, *others = (table @ counts / items for table in tables)
            highest, lowest = common_box(a, b, *others)
            box = (highest if given[0] is None else given[0], lowest if given[1] is None else given[1])
            # A draw in which a reward has no extent says nothing.
            return [math.nan] * 2 if (box[0] <= box[1]).any() else _numbers(a, b, *box, mode)[:2]

        drawn_again = bootstrap(redrawn, items, resamples=resamples, seed=seed)
        differences = [
            replace(interval, value=plain_one.value)  # without the rounding of another order of sums
            for interval, plain_one in zip(drawn_again, differences, strict=True)
        ]

    def volume(value: float, rows: Array, convention: str, better: bool) -> Volume:
        return Volume(
            value,
            convention,
            better,
            tuple(top.tolist()),
            tuple(bottom.tolist()),
            "minmax",
            len(rows),
            len(front_of(rows)),
        )

    above, over = "hypervolume above the nadir", f"area over the front ({mode})"
    return FrontComparison(
        labels=(first.label, second.label),
        rewards=names,
        hypervolumes=(volume(plain[2], one, above, True), volume(plain[3], two, above, True)),
        areas=(volume(plain[4], one, over, False), volume(plain[5], two, over, False)),
        hypervolume_difference=differences[0],
        area_difference=differences[1],
        dominated=(_dominated_share(one, two), _dominated_share(two, one)),
    )


def _numbers(one: Array, two: Array, ideal: Array, nadir: Array, mode: Mode) -> list[float]:
    """The difference of hypervolumes, that of areas, then the two hypervolumes and the two areas."""
    volumes = [volume_above((rows - nadir) / (ideal - nadir), np.zeros(len(ideal))) for rows in (one, two)]
    areas = [clipped_area(front_of(rows), ideal, nadir, mode, "minmax") for rows in (one, two)]
    return [volumes[0] - volumes[1], areas[0] - areas[1], *volumes, *areas]


def _gain(means: Array, ends: Sequence[int]) -> Array:
    return np.asarray(means.max(axis=0) - means[ends].max(axis=0))


def _dominated_share(rows: Array, others: Array) -> float:
    """The share of rows that one of the others dominates."""
    covered = [bool(((others >= row).all(axis=1) & (others > row).any(axis=1)).any()) for row in rows]
    return sum(covered) / len(covered)


def _check_comparable(first: RewardFront, second: RewardFront) -> None:
    scales: list[Any] = [front.normaliser and front.normaliser.to_dict() for front in (first, second)]
    if scales[0] != scales[1]:
        raise InputError("compare_fronts: the fronts are on different scales. Apply one normaliser to both.")
    if first.items and second.items and first.items != second.items:
        raise InputError(
            f"compare_fronts: expected the same evaluation items, got {first.items} and {second.items}. Evaluate both "
            "fronts on the same items."
        )
    evaluations = [front.provenance.get("evaluation") for front in (first, second)]
    if None not in evaluations and evaluations[0] != evaluations[1]:
        raise InputError(
            f"compare_fronts: the fronts were evaluated differently, as {evaluations[0]!r} and {evaluations[1]!r}. "
            "Evaluate both with the same items and sampling seed."
        )
