r"""How much of the space of rewards a front reaches, or leaves unreached: one number for a whole front.

Two conventions are in use, with opposite directions: the hypervolume above a reference point (larger is better), and
the area between the front and an ideal point (lower is better), which the chapter on rewarded soups reports. Neither
number means anything without its reference points and scaling, so the results say them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from mirepoix.rewards._pareto import front_of
from mirepoix.rewards._points import Array, as_bound, as_points, write, written
from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = [
    "Mode",
    "Scale",
    "Volume",
    "area_over_front",
    "clipped_area",
    "common_box",
    "hypervolume",
    "volume_above",
]

Mode: TypeAlias = Literal["linear", "staircase"]
Scale: TypeAlias = Literal["minmax"]
Method: TypeAlias = Literal["auto", "exact", "monte_carlo"]

EXACT_UP_TO = 8  # rewards


@dataclass(frozen=True, slots=True)
class Volume:
    """One number for a front, and what it was measured with. It prints all of it, and `float` gives the number.

    Attributes:
        value: The number.
        convention: What is measured.
        higher_is_better: The direction.
        ideal: The point that is best in all rewards, or None where the convention needs none.
        nadir: The point that is worst in all rewards: the reference point of a hypervolume.
        scale: ``"minmax"`` if rewards were mapped to [0, 1] between nadir and ideal first, else None.
        points: How many points were given.
        used: How many of them decide the value.
        standard_error: Of a value estimated by sampling, else None.
    """

    value: float
    convention: str
    higher_is_better: bool
    ideal: tuple[float, ...] | None
    nadir: tuple[float, ...]
    scale: Scale | None
    points: int
    used: int
    standard_error: float | None = None

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {write(self.standard_error)} (standard error)"
        return (
            f"{write(self.value)}{error}: {self.convention}, {'higher' if self.higher_is_better else 'lower'} is "
            f"better; ideal {'none' if self.ideal is None else written(self.ideal)}, nadir {written(self.nadir)}, "
            f"scaling {self.scale or 'none'}, {self.used} of {self.points} points count"
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "value": self.value,
            "convention": self.convention,
            "higher_is_better": self.higher_is_better,
            "ideal": None if self.ideal is None else list(self.ideal),
            "nadir": list(self.nadir),
            "scale": self.scale,
            "points": self.points,
            "used": self.used,
            "standard_error": self.standard_error,
        }


def hypervolume(
    points: ArrayLike, reference: ArrayLike, *, method: Method = "auto", samples: int = 100_000, seed: int = 0
) -> Volume:
    r"""The hypervolume: the volume of what the points dominate, above a reference point. Larger is better.

    .. math:: \text{hv}(P, r) = \text{Lebesgue measure of } \textstyle\bigcup_{p \in P} \prod_k [r_k, p_k].

    A point that is not better than the reference in all rewards contributes nothing. Exact for up to 8 rewards: for
    two by sorting, for more by moocore (``pip install 'mirepoix[analysis]'``) or, where it is missing, by the
    recursion of While et al., which is slow for hundreds of points in five rewards or more. Beyond 8 rewards it is
    estimated with random points, and the result has a standard error.

    Args:
        points: ``(points, rewards)``, all rewards maximised.
        reference: One number for each reward, the same for all fronts that are compared.
        method: ``"exact"`` or ``"monte_carlo"`` to override the number of rewards.
        samples: Of the estimate.
        seed: Of the estimate.

    Raises:
        InputError: For points that are not finite, with the row; for a reference of another length; for an unknown
            ``method`` or fewer than two samples.

    Example:
        >>> print(hypervolume([(0.2, 0.9), (0.5, 0.6), (0.9, 0.1), (0.4, 0.5)], (0, 0)))
        0.4: hypervolume above the nadir, higher is better; ideal none, nadir (0, 0), scaling none, 3 of 4 points count

    References:
        Zitzler and Thiele (1998), Multiobjective optimization using evolutionary algorithms; While, Bradstreet and
        Barone (2012), A fast way of calculating exact hypervolumes; Karp and Luby (1983), Monte-Carlo algorithms for
        enumeration, for the estimate.
    """
    rows = as_points("points", points)
    nadir = as_bound("reference", reference, rows.shape[1])
    if method not in get_args(Method):
        raise InputError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r}.")
    if samples < 2:
        raise InputError(f"samples: expected at least 2, got {samples}.")
    above = front_of(rows[(rows > nadir).all(axis=1)]) - nadir
    error = None
    if method == "monte_carlo" or (method == "auto" and rows.shape[1] > EXACT_UP_TO):
        value, error = _sampled(above, samples, seed)
    else:
        value = _exact(above)
    return Volume(
        value=value,
        convention="hypervolume above the nadir",
        higher_is_better=True,
        ideal=None,
        nadir=_plain(nadir),
        scale=None,
        points=len(rows),
        used=len(above),
        standard_error=error,
    )


def area_over_front(
    points: ArrayLike,
    ideal: ArrayLike | None = None,
    nadir: ArrayLike | None = None,
    mode: Mode = "linear",
    scale: Scale | None = None,
    keep_dominated: bool = False,
) -> Volume:
    r"""The area between a front and the ideal point: what no solution reaches. Lower is better.

    ``mode="linear"``, for two rewards, joins the points by straight lines, as a plot does. With the points sorted by
    the first reward,

    .. math:: A = (x_1 - x_\text{nadir})(y_\text{ideal} - y_1)
              + \sum_i (x_{i+1} - x_i) \Big(y_\text{ideal} - \frac{y_i + y_{i+1}}2\Big)
              + (x_\text{ideal} - x_n)(y_\text{ideal} - y_\text{nadir}).

    ``mode="staircase"``, for any number of rewards, is the complement of the hypervolume in the box,
    :math:`\prod_k (\text{ideal}_k - \text{nadir}_k) - \text{hv}(P, \text{nadir})`.

    Two fronts can be compared only with the same ideal and nadir: take `common_box` of both, or `compare_fronts`.

    Args:
        points: ``(points, rewards)``, all rewards maximised.
        ideal: The best of each reward over everything that is compared; by default over ``points``.
        nadir: The worst of each reward over everything that is compared; by default over ``points``.
        mode: See above.
        scale: ``"minmax"`` maps each reward to [0, 1] between nadir and ideal first, so that the area is a share.
        keep_dominated: Draw the line through dominated points too, as the curve of a figure does; for
            ``"linear"`` only, as they change no staircase.

    Raises:
        InputError: For points that are not finite, or outside the box of nadir and ideal; for other than two rewards
            where the mode is linear; for a reward in which nadir and ideal are equal, if it is to be scaled.

    Example:
        >>> front = [(0.0, 1.0), (0.8, 0.8), (1.0, 0.0)]
        >>> round(area_over_front(front).value, 3), round(area_over_front(front, mode="staircase").value, 3)
        (0.2, 0.36)

    References:
        Ramé et al. (2023), Rewarded soups; thesis, section 6.3.1: "lower is better, the area over the curve w.r.t. an
        optimal point". Ideal point and scaling of the published values are not given, so they cannot be compared.
    """
    rows = as_points("points", points)
    rewards = rows.shape[1]
    if mode not in get_args(Mode):
        raise InputError(f"mode: expected one of {', '.join(get_args(Mode))}, got {mode!r}.")
    if scale is not None and scale not in get_args(Scale):
        raise InputError(f"scale: expected 'minmax' or None, got {scale!r}.")
    if mode == "linear" and rewards != 2:
        raise InputError(
            f"mode: 'linear' joins points by lines, which needs two rewards, got {rewards}. Use 'staircase'."
        )
    top = rows.max(axis=0) if ideal is None else as_bound("ideal", ideal, rewards)
    bottom = rows.min(axis=0) if nadir is None else as_bound("nadir", nadir, rewards)
    for name, outside in (("ideal", rows > top), ("nadir", rows < bottom)):
        for row, reward in np.argwhere(outside)[:1]:
            raise InputError(
                f"{name}: expected a bound on all points, but row {row} has {rows[row, reward]:g} in reward {reward} "
                f"and the {name} {(top if name == 'ideal' else bottom)[reward]:g}. Take it over everything compared: "
                "common_box(first, second)."
            )
    if scale == "minmax":
        check_extent(top, bottom)
    used = rows if keep_dominated and mode == "linear" else front_of(rows)
    return Volume(
        value=clipped_area(used, top, bottom, mode, scale),
        convention=f"area over the front ({mode}{', dominated points kept' if used is rows else ''})",
        higher_is_better=False,
        ideal=_plain(top),
        nadir=_plain(bottom),
        scale=scale,
        points=len(rows),
        used=len(used),
    )


def common_box(*fronts: ArrayLike) -> tuple[Array, Array]:
    """The ideal and the nadir of several fronts: the best and the worst of each reward over all of them.

    Args:
        fronts: Each ``(points, rewards)``, of the same rewards.

    Raises:
        InputError: Without fronts, or with different numbers of rewards.

    Example:
        >>> ideal, nadir = common_box([(1, 5), (3, 4)], [(2, 7)])
        >>> ideal.tolist(), nadir.tolist()
        ([3.0, 7.0], [1.0, 4.0])
    """
    found = [as_points(f"front {i}", front) for i, front in enumerate(fronts)]
    if len({rows.shape[1] for rows in found}) != 1:
        raise InputError(
            f"common_box: expected fronts of the same rewards, got {[rows.shape[1] for rows in found]} rewards."
        )
    rows = np.concatenate(found)
    return rows.max(axis=0), rows.min(axis=0)


def check_extent(ideal: Array, nadir: Array) -> None:
    """Raise if a reward has no extent to be scaled by."""
    flat = np.flatnonzero(ideal <= nadir)
    if len(flat):
        raise InputError(
            f"scale: reward {flat[0]} is {ideal[flat[0]]:g} in the ideal and the nadir, so it cannot be mapped to "
            "[0, 1]. Leave that reward out, or give a wider ideal or nadir."
        )


def clipped_area(rows: Array, ideal: Array, nadir: Array, mode: Mode, scale: Scale | None) -> float:
    """The area over the front, for points that are clipped to the box first."""
    rows = rows.clip(nadir, ideal)
    if scale == "minmax":
        rows, ideal, nadir = (rows - nadir) / (ideal - nadir), np.ones_like(ideal), np.zeros_like(nadir)
    if mode == "staircase":
        return float((ideal - nadir).prod()) - volume_above(rows, nadir)
    x, y = rows[np.lexsort((-rows[:, 1], rows[:, 0]))].T
    under = ideal[1] - y  # the height that is not reached
    left = (x[0] - nadir[0]) * under[0]
    right = (ideal[0] - x[-1]) * (ideal[1] - nadir[1])
    return float(left + np.diff(x) @ (under[1:] + under[:-1]) / 2 + right)


def volume_above(rows: Array, nadir: Array) -> float:
    """The hypervolume, for rows that are known to be finite."""
    return _exact(front_of(rows[(rows > nadir).all(axis=1)]) - nadir)


def _exact(above: Array) -> float:
    """The volume of undominated points above the origin."""
    if len(above) and above.shape[1] > 2:
        try:
            import moocore
        except ImportError:
            pass
        else:
            return float(moocore.hypervolume(above, ref=np.zeros(above.shape[1]), maximise=True))
    return _recursive(above)


def _recursive(above: Array) -> float:
    """The recursion of While et al. over points in order of their last reward.

    What a point adds to those after it is a box as high as its own last reward, because theirs is at least as large.
    So the last reward drops out of what is to be subtracted.
    """
    if not len(above):
        return 0.0
    if above.shape[1] == 1:
        return float(above.max())
    if above.shape[1] == 2:
        x, y = above[np.argsort(above[:, 0])].T
        return float(np.diff(x, prepend=0.0) @ y)
    above = above[np.argsort(above[:, -1], kind="stable")]
    total = 0.0
    for i, point in enumerate(above):
        shadows = np.minimum(above[i + 1 :, :-1], point[:-1])
        covered = _recursive(front_of(shadows)) if len(shadows) else 0.0
        total += float(point[-1]) * (float(point[:-1].prod()) - covered)
    return total


def _sampled(above: Array, samples: int, seed: int) -> tuple[float, float]:
    """The volume and its standard error, by the estimate of Karp and Luby for a union of boxes.

    A box is drawn in proportion to its volume, then a point in it: the mean of one over the number of boxes that hold
    the point is the share of the union in the sum of volumes. However small the union is, no draw is lost.
    """
    if not len(above):
        return 0.0, 0.0
    edges = above.prod(axis=1).cumsum()
    random = stream("hypervolume", seed)
    shares = []
    block = max(1, 2**22 // above.size)
    for done in range(0, samples, block):
        count = min(block, samples - done)
        box = np.searchsorted(edges, random.random(count) * edges[-1], side="right").clip(max=len(above) - 1)
        drawn = random.random((count, above.shape[1])) * above[box]
        shares.append(1 / (drawn[:, None, :] <= above).all(axis=-1).sum(axis=-1))
    share = np.concatenate(shares)
    return float(edges[-1] * share.mean()), float(edges[-1] * share.std(ddof=1) / samples**0.5)


def _plain(bound: Array) -> tuple[float, ...]:
    return tuple(bound.tolist())
