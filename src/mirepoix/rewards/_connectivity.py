r"""Linear mode connectivity for rewards: does a soup earn at least what its experts earn on average?

Rewarded soups rest on it, and it can fail: networks trained from scratch, or led too far from their start, are not
connected. So the answer here may be no.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from mirepoix.bootstrap import bootstrap
from mirepoix.rewards._front import RewardFront
from mirepoix.rewards._points import Array, as_points, write, written
from mirepoix.rewards._simplex import check_coefficients, check_numbers
from mirepoix.types import InputError

__all__ = ["RewardConnectivity", "RewardMargin", "chord_margin", "reward_connectivity"]

ALARMS = 0.05  # over all rewards
ROUNDING = 1e-12  # of the largest reward: a difference that rounding makes


@dataclass(frozen=True, slots=True)
class RewardMargin:
    """How far one reward lies above the average of the experts.

    Attributes:
        reward: Its name.
        minimum: The smallest margin over all points; at most 0, as it is 0 for each expert alone.
        at: The coefficients there; of an expert alone if the margin is negative nowhere.
        mean: Over all points but the experts alone; 0 without such points.
        largest: The largest margin.
        tolerance: How far below 0 the minimum may be.
        holds: Whether ``minimum >= -tolerance``.
    """

    reward: str
    minimum: float
    at: Mapping[str, float]
    mean: float
    largest: float
    tolerance: float
    holds: bool


@dataclass(frozen=True, eq=False)
class RewardConnectivity:
    """The verdict on linear mode connectivity, and the numbers behind it.

    Attributes:
        rewards: The `RewardMargin` of each reward, by name.
        margins: ``(points, rewards)``.
        chord: The chord margin of each point: see `chord_margin`.
        chord_with_tolerance: The same of points that earn more by the tolerance of each reward.
        coefficients: Of the points.
        tolerance_from: ``"bootstrap"``, ``"given"``, or ``"none"`` where neither was possible and it is 0.
    """

    rewards: Mapping[str, RewardMargin]
    margins: Array
    chord: Array
    chord_with_tolerance: Array
    coefficients: tuple[Mapping[str, float], ...]
    tolerance_from: Literal["bootstrap", "given", "none"]

    @property
    def holds(self) -> bool:
        """Whether the margin of every reward is within its tolerance: hypothesis 6.1 on these points."""
        return all(margin.holds for margin in self.rewards.values())

    @property
    def above_chord(self) -> bool:
        """The weaker check of the figures: no point is below the chord, but for the tolerance of each reward."""
        return bool(self.chord_with_tolerance.min() >= 0)

    def verdict(self) -> str:
        """Sentences with the verdict, the smallest margins and where they are."""
        source = {
            "bootstrap": "simultaneous over all points, 5 % false alarms",
            "given": "as given",
            "none": "no values per item to estimate noise from",
        }[self.tolerance_from]
        noise = "" if min(margin.minimum for margin in self.rewards.values()) >= 0 else " by more than noise"
        lines = [
            f"Linear mode connectivity holds: no soup earns less than the average of its experts{noise}."
            if self.holds
            else "Linear mode connectivity fails: a soup earns less than the average of its experts."
        ]
        for margin in self.rewards.values():
            lines.append(
                f"{margin.reward}: smallest margin {write(margin.minimum)} at lambda = {written(margin.at)}, mean "
                f"{write(margin.mean)}, tolerance {write(margin.tolerance)} ({source})."
            )
        place = written(self.coefficients[int(self.chord.argmin())])
        lowest = float(self.chord.min())
        where = (
            "on or above" if lowest >= 0 else "below, by no more than noise," if self.above_chord else "below"
        )
        lines.append(
            f"The front lies {where} the chord of the experts' rewards: smallest chord margin {write(lowest)}, at "
            f"lambda = {place}."
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "holds": self.holds,
            "above_chord": self.above_chord,
            "tolerance_from": self.tolerance_from,
            "rewards": {
                name: {
                    "minimum": margin.minimum,
                    "at": dict(margin.at),
                    "mean": margin.mean,
                    "largest": margin.largest,
                    "tolerance": margin.tolerance,
                    "holds": margin.holds,
                }
                for name, margin in self.rewards.items()
            },
            "coefficients": [dict(shares) for shares in self.coefficients],
            "margins": self.margins.tolist(),
            "chord": self.chord.tolist(),
        }


def reward_connectivity(
    front: RewardFront,
    tolerance: float | Mapping[str, float] | None = None,
    *,
    rewards: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> RewardConnectivity:
    r"""Whether every reward of every soup is at least the average of the experts' rewards.

    .. math:: \text{margin}_{k, \lambda} = R_k(\theta_\lambda) - \textstyle\sum_i \lambda_i R_k(\theta_i) \ge 0

    for all rewards :math:`k` and points :math:`\lambda` of the front. Positive is better; 0 for each expert alone. The
    verdict compares the smallest margin of each reward with a tolerance for all points at once, because the smallest of
    many noisy numbers is below zero even where none of the true ones is. Items are drawn again with replacement, the
    same ones for all points and rewards, and the tolerance is the quantile of :math:`\max_\lambda (\text{margin} -
    \text{margin drawn again})` that is exceeded in 5 % of the draws, divided by the number of rewards: so if no true
    margin is negative, the verdict is "fails" in at most about 5 % of the evaluations. Few items make a wide tolerance,
    under which a negative margin stays unseen.

    Whether it holds between the points that were evaluated is not known.

    Args:
        front: With each expert alone among its points.
        tolerance: A number of your own in the unit of the rewards, or one for each reward. Without it, and without
            values per item, the tolerance is 0.
        rewards: Which to look at; by default those that experts were trained on, as in the hypothesis.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: If an expert alone is missing; for coefficients that do not sum to one; for a negative tolerance;
            for a reward the front does not have.

    Example:
        >>> front = RewardFront(
        ...     experts=("a", "b"),
        ...     rewards=("a", "b"),
        ...     coefficients=({"a": 0, "b": 1}, {"a": 0.5, "b": 0.5}, {"a": 1, "b": 0}),
        ...     means=[(0.0, 1.0), (0.75, 0.25), (1.0, 0.0)],
        ... )
        >>> found = reward_connectivity(front)
        >>> found.holds, found.rewards["b"].minimum, found.rewards["a"].minimum
        (False, -0.25, 0.0)

    References:
        Ramé et al. (2023), Rewarded soups; thesis, hypothesis 6.1.
    """
    names = tuple(rewards) if rewards is not None else front.trained_rewards()
    columns, ends = front.columns(names), front.ends()
    for i, numbers in enumerate(front.coefficients):
        check_coefficients(numbers, front.experts, extrapolate=True, what=f"coefficients of point {i}")
    means = front.means[:, columns]
    scale = ROUNDING * np.abs(means).max()
    shares = front.shares
    margins = _exact_margins(shares, means, ends, scale)
    source: Literal["bootstrap", "given", "none"] = "given"
    if tolerance is None and front.values is not None:
        values, source = front.values[:, columns], "bootstrap"
        items = values.shape[-1]

        def deepest(drawn: Any) -> Array:
            counts = np.bincount(drawn, minlength=items)
            return np.asarray(
                (margins - _exact_margins(shares, values @ counts / items, ends, scale)).max(axis=0)
            )

        # The upper end of an interval of level 1 - 2 a is the quantile 1 - a.
        level = 1 - 2 * ALARMS / len(names)
        intervals = bootstrap(deepest, items, resamples=resamples, level=level, seed=seed)
        # One item: no interval, no tolerance.
        tolerances = np.nan_to_num([interval.high for interval in intervals])
        tolerances[tolerances <= scale] = 0
    else:
        source = "none" if tolerance is None else "given"
        tolerances = _tolerances(tolerance, names)
    inside = [i for i in range(len(front)) if i not in set(ends)]
    found = {}
    for k, name in enumerate(names):
        row = int(margins[:, k].argmin())
        row = ends[0] if margins[row, k] == 0 else row
        found[name] = RewardMargin(
            reward=name,
            minimum=float(margins[row, k]),
            at=front.coefficients[row],
            mean=float(margins[inside, k].mean()) if inside else 0.0,
            largest=float(margins[:, k].max()),
            tolerance=float(tolerances[k]),
            holds=bool(margins[row, k] >= -tolerances[k]),
        )
    chord = chord_margin(means, means[ends])
    chord[np.abs(chord) <= scale] = 0.0
    lifted = chord_margin(means + tolerances, means[ends])
    return RewardConnectivity(found, margins, chord, lifted, front.coefficients, source)


def chord_margin(points: ArrayLike, ends: ArrayLike) -> Array:
    r"""How far each point lies above the segment (the simplex) that joins the experts' rewards.

    .. math:: \max_{s \in \Delta_N} \min_k \Big( p_k - \textstyle\sum_i s_i e_{i,k} \Big)

    for a point :math:`p` and the rewards :math:`e_i` of expert :math:`i`. Positive if some average of the experts is
    worse in all rewards, negative if all are better in some reward. It is what a figure shows, and weaker than
    `reward_connectivity`, which takes :math:`s = \lambda`: an expert that is reached sooner along the way only moves
    :math:`\lambda`.

    Args:
        points: ``(points, rewards)``.
        ends: ``(experts, rewards)``. Two experts are solved in closed form; more need SciPy
            (``pip install 'mirepoix[analysis]'``).

    Returns:
        One margin for each point, at least 0 (up to rounding) for an expert alone.

    Raises:
        InputError: For numbers of rewards that differ; for rewards that are not finite; without SciPy for more than
            two experts.

    Example:
        >>> chord_margin([(0.75, 0.25), (0.75, 0.5), (0.25, 0.25)], [(0, 1), (1, 0)]).tolist()
        [0.0, 0.125, -0.25]
    """
    rows, corners = as_points("points", points), as_points("ends", ends)
    if rows.shape[1] != corners.shape[1]:
        raise InputError(f"ends: expected {rows.shape[1]} rewards as in the points, got {corners.shape[1]}.")
    if len(corners) == 1:
        return np.asarray((rows - corners[0]).min(axis=1))
    if len(corners) == 2:
        return np.array([_above_segment(row, *corners) for row in rows])
    return np.array([_above_simplex(row, corners) for row in rows])


def _exact_margins(shares: Array, means: Array, ends: Sequence[int], scale: float) -> Array:
    """The margins, without what rounding makes of those that are 0."""
    margins = means - shares @ means[ends]
    margins[np.abs(margins) <= scale] = 0.0
    margins[ends] = 0.0
    return np.asarray(margins)


def _tolerances(tolerance: float | Mapping[str, float] | None, names: Sequence[str]) -> Array:
    if tolerance is None:
        return np.zeros(len(names))
    given = tolerance if isinstance(tolerance, Mapping) else dict.fromkeys(names, tolerance)
    values = check_numbers(given, names, "tolerance")
    if min(values.values()) < 0:
        raise InputError(f"tolerance: expected numbers from 0, got {tolerance!r}.")
    return np.array(list(values.values()))


def _above_segment(point: Array, first: Array, second: Array) -> float:
    """The largest value on [0, 1] of the lowest of some lines: at an end, or where two lines cross."""
    start, slope = point - first, first - second  # line k is start[k] + s slope[k]
    places = [0.0, 1.0]
    for i, j in itertools.combinations(range(len(point)), 2):
        if slope[i] != slope[j]:
            crossing = (start[j] - start[i]) / (slope[i] - slope[j])
            if 0 < crossing < 1:
                places.append(crossing)
    return float((start + np.array(places)[:, None] * slope).min(axis=1).max())


def _above_simplex(point: Array, ends: Array) -> float:
    """The same by a linear program: the largest t with t + sum_i s_i e_ik <= p_k for all k."""
    try:
        from scipy.optimize import linprog  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(
            "chord_margin: more than two experts need SciPy: pip install 'mirepoix[analysis]'."
        ) from error
    experts, rewards = ends.shape
    # Around the point and in the unit of the experts' extent, so that the solver's tolerances suit any reward.
    shifted = ends - point
    unit = float(np.abs(shifted).max()) or 1.0
    solved = linprog(
        c=[-1.0] + [0.0] * experts,
        A_ub=np.column_stack([np.ones(rewards), shifted.T / unit]),
        b_ub=np.zeros(rewards),
        A_eq=[[0.0] + [1.0] * experts],
        b_eq=[1.0],
        bounds=[(None, None)] + [(0.0, 1.0)] * experts,
    )
    if solved.status != 0:
        raise InputError(f"chord_margin: the linear program has no solution: {solved.message}")
    return float(solved.x[0]) * unit
