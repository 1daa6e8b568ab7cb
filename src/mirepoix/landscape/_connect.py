"""Linear connectivity: weights can be averaged where the way between them has no barrier.

Each point of the way is made, evaluated and let go before the next; the ends are evaluated as they are, and the
weights that were given are never changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirepoix.landscape._per_sample import finite, float64
from mirepoix.seeds import stream
from mirepoix.types import InputError, Weights
from mirepoix.weights import interpolate

__all__ = ["Connection", "Point", "connect", "evaluate"]

CONFIDENCE = 0.95
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Point:
    """One place between the ends.

    Attributes:
        coefficients: Of the ends, summing to one.
        value: The score or loss there.
        chord: The same average of the values at the ends.
        drop: How much worse the value is than the chord; negative where it is better, 0 at the ends.
    """

    coefficients: tuple[float, ...]
    value: float
    chord: float
    drop: float


@dataclass(frozen=True)
class Connection:
    """The way between two or three weights.

    Attributes:
        points: From the first end to the second, or over the triangle, row by row.
        higher_is_better: The direction of the value.
        tolerance: The largest drop that is none, in the unit of the value.
        samples: How many samples the values are means of; ``None`` where that is not known.
        margin: Half the width of a 95 % interval around all drops at once, from the samples; 0 where not known.
    """

    points: tuple[Point, ...]
    higher_is_better: bool
    tolerance: float
    samples: int | None
    margin: float

    @property
    def worst(self) -> Point:
        """Where the value is farthest below the chord; the first of equals, and an end if it nowhere is below."""
        return max(self.points, key=lambda point: _or_infinite(point.drop))

    @property
    def barrier(self) -> float:
        """The drop at the worst point, at least 0; infinite where the value there is NaN."""
        return _or_infinite(self.worst.drop)

    @property
    def connected(self) -> bool:
        """Whether the barrier is within the tolerance, or may be by chance: ``barrier - margin <= tolerance``."""
        return self.barrier - self.margin <= self.tolerance

    @property
    def curved(self) -> float:
        """The largest second difference by which the value bends away from better, at least 0.

        Over any three neighbours in a row, ``first - 2 * middle + last`` for a score and its negative for a loss:
        how far the middle lies below the mean of the two beside it, twice. NaN and infinite values make it infinite.
        """
        shares = np.array([point.coefficients for point in self.points])
        values = np.array([point.value for point in self.points])
        step = np.abs(np.diff(shares, axis=0)).sum(axis=1).min()
        sign = 1.0 if self.higher_is_better else -1.0
        largest = 0.0
        for share, middle in zip(shares, values, strict=True):
            away = shares - share
            distances = np.abs(away).sum(axis=1)
            beside = np.flatnonzero((distances > 0) & (distances < 1.5 * step))
            for first, last in combinations(beside, 2):
                if np.abs(away[first] + away[last]).max() < 0.1 * step:
                    bend = sign * float(values[first] - 2 * middle + values[last])
                    largest = max(largest, _or_infinite(abs(bend) if math.isinf(bend) else bend))
        # What the rounding of values makes is no bend, so that a straight line has none.
        scale = np.abs(values[np.isfinite(values)]).max(initial=0.0)
        return largest if largest > 1e-12 * scale else 0.0

    @property
    def concave(self) -> bool:
        """Whether the value bends nowhere away from better by more than the tolerance: ``curved <= tolerance``.

        For a score that is concave along the way, for a loss convex. It is a stronger property than being connected
        where the tolerance is 0, as a concave curve lies above its chord.
        """
        return self.curved <= self.tolerance

    def verdict(self, write: Callable[[float], str] = "{:.4g}".format) -> str:
        """A sentence with the verdict, the barrier and what it was compared with.

        Args:
            write: How a difference of values is written.
        """
        worst, barrier = self.worst, self.barrier
        if len(worst.coefficients) == 2:
            place = f"t = {worst.coefficients[1]:.3g}"
        else:
            place = "coefficients " + ", ".join(f"{c:.3g}" for c in worst.coefficients)
        noise = f" and the noise of {self.samples:,} samples, {write(self.margin)}" if self.samples else ""
        limit = f"the tolerance of {write(self.tolerance)}{noise}"
        if not self.connected:
            return f"Not connected: at {place} the value is {write(barrier)} worse than the chord, beyond {limit}."
        if barrier == 0:
            text = "Connected: no point is worse than the chord"
        elif barrier <= self.tolerance:
            text = f"Connected: the barrier is {write(barrier)}, at {place}, within {limit}"
        else:
            text = f"Connected as far as can be told: the barrier of {write(barrier)}, at {place}, is within {limit}"
        unclear = self.samples and barrier + self.margin > self.tolerance
        more = (
            f" A barrier of {write(barrier + self.margin)} cannot be excluded; take more samples."
            if unclear
            else ""
        )
        return f"{text}.{more}"

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is not finite becomes ``None``."""
        return {
            "points": [
                {
                    "coefficients": list(point.coefficients),
                    "value": finite(point.value),
                    "chord": finite(point.chord),
                    "drop": finite(point.drop),
                }
                for point in self.points
            ],
            "higher_is_better": self.higher_is_better,
            "barrier": finite(self.barrier),
            "at": list(self.worst.coefficients),
            "tolerance": self.tolerance,
            "samples": self.samples,
            "margin": self.margin,
            "connected": self.connected,
            "curved": finite(self.curved),
            "concave": self.concave,
        }


def connect(
    thetas: Sequence[Weights],
    score: Callable[[Weights], Any],
    *,
    higher_is_better: bool,
    points: int = 11,
    tolerance: float = 0.02,
    refresh: Callable[[Weights], Weights] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Connection:
    r"""The values of a score or a loss along the line between two weights, or over the triangle of three.

    For a loss, the barrier is the largest rise above the chord; for a score, the largest drop below it:

    .. math:: \max_\lambda \Big[ L\big(\textstyle\sum_i \lambda_i \theta_i\big)
              - \textstyle\sum_i \lambda_i L(\theta_i) \Big],

    over the points that are looked at. It is at least 0, as it is 0 at the ends. The ends are *connected* if the
    barrier is at most ``tolerance``.

    Where the score returns one value per sample, their mean is the value, and the barrier must exceed the tolerance
    by more than chance: samples are drawn again with replacement, the same ones at all points, and the margin is
    the 95 % quantile of :math:`\max_\lambda |d^*_\lambda - d_\lambda|`, where the drop :math:`d` becomes
    :math:`d^*`. Few samples make a wide margin, under which a barrier stays unseen: the verdict then says so.

    Args:
        thetas: Two or three ends, in memory or lazy; each is read once per point that it takes part in.
        score: Of weights: a number, or one number per sample (the samples in the same order every time).
        higher_is_better: Whether it is a score (accuracy) or, if not, a loss.
        points: How many on the line, or on each edge of the triangle: ``points (points + 1) / 2`` in all.
        tolerance: The largest drop that is none, in the unit of the value. The default is for accuracies and
            errors as fractions.
        refresh: Applied to the averages and not to the ends, for example to re-estimate batch norm.
        seed: Of the samples drawn again.
        progress: Called with (done, total) after each point.

    Raises:
        InputError: For other than two or three ends; for fewer than three points; for a negative tolerance; for ends
            that cannot be averaged (see `mirepoix.weights.interpolate`) or have no finite value; for a score that
            is neither a number nor one per sample.

    Example:
        >>> import numpy as np
        >>> ends = [{"w": np.array([-1.0])}, {"w": np.array([1.0])}]
        >>> connection = connect(ends, lambda theta: float(theta["w"][0] ** 2), higher_is_better=True)
        >>> connection.barrier, connection.worst.coefficients, connection.connected
        (1.0, (0.5, 0.5), False)

    References:
        Frankle et al. (2020), Linear mode connectivity and the lottery ticket hypothesis: there, a rise of the
        error below 2 % counts as none.
    """
    if len(thetas) not in (2, 3):
        raise InputError(f"connect: expected 2 or 3 weights, got {len(thetas)}.")
    if points < 3:
        raise InputError(f"points: expected at least 3, the ends and one between, got {points}.")
    if not 0 <= tolerance < math.inf:
        raise InputError(f"tolerance: expected a number from 0, got {tolerance!r}.")
    places = list(_simplex(len(thetas), points - 1))
    results: list[NDArray[np.float64]] = []
    for coefficients in places:
        results.append(evaluate(thetas, coefficients, score, refresh))
        if results[-1].shape != results[0].shape:
            raise InputError(
                f"score: expected values of shape {results[0].shape} everywhere, as at the first end, got "
                f"{results[-1].shape} at coefficients {coefficients}. Score the same samples each time."
            )
        if progress is not None:
            progress(len(results), len(places))
    return _connection(places, np.stack(results), higher_is_better, tolerance, seed)


def _simplex(ends: int, steps: int) -> Iterator[tuple[float, ...]]:
    """Coefficients that are multiples of ``1 / steps``, from the first end on."""
    for i in range(steps + 1):
        if ends == 2:
            yield (steps - i) / steps, i / steps
        else:
            yield from (((steps - i) / steps, (i - j) / steps, j / steps) for j in range(i + 1))


def evaluate(
    thetas: Sequence[Weights],
    coefficients: tuple[float, ...],
    score: Callable[[Weights], Any],
    refresh: Callable[[Weights], Weights] | None,
    *,
    extrapolate: bool = False,
) -> NDArray[np.float64]:
    """The value at one point; the weights there live no longer than this."""
    # With a coefficient of one this is a copy with the same bits, so that no score can change what was given.
    theta: Weights = interpolate(thetas, coefficients, extrapolate=extrapolate)
    if refresh is not None and 1 not in coefficients:
        theta = refresh(theta)
    value = score(theta)
    value = float64(value) if hasattr(value, "detach") else value
    try:
        array = np.asarray("none" if value is None else value, dtype=np.float64)  # NumPy makes None a NaN
    except (TypeError, ValueError):
        array = np.empty((0, 0))
    if array.ndim > 1 or array.size == 0:
        raise InputError(
            f"score: expected a number, or one per sample, got {type(value).__name__} of shape "
            f"{getattr(value, 'shape', 'none')}."
        )
    return array


def _connection(
    places: Sequence[tuple[float, ...]],
    results: NDArray[np.float64],
    higher_is_better: bool,
    tolerance: float,
    seed: int,
) -> Connection:
    ends = [places.index(place) for place in sorted((p for p in places if 1 in p), reverse=True)]
    columns = results.reshape(len(places), -1)  # (points, samples)
    with np.errstate(invalid="ignore"):
        values = columns.mean(axis=1)
    for number, end in enumerate(ends):
        if not math.isfinite(values[end]):
            raise InputError(f"score: expected a finite value at end {number}, got {values[end]}.")
    shares = np.array(places)  # (points, ends)
    sign = -1.0 if higher_is_better else 1.0
    chords = shares @ values[ends]
    drops = sign * (values - chords)
    # What the rounding of the chord may make is no drop, so that copies are connected at tolerance 0.
    drops[np.abs(drops) < 1e-12 * np.abs(values[ends]).max()] = 0.0
    drops[ends] = 0.0
    samples = results.shape[1] if results.ndim == 2 else None
    margin = 0.0
    if samples is not None:
        known = np.isfinite(columns).all(axis=1)
        margin = _margin((columns - shares @ columns[ends])[known].T, seed)
    return Connection(
        tuple(
            Point(place, float(value), float(chord), float(drop))
            for place, value, chord, drop in zip(places, values, chords, drops, strict=True)
        ),
        higher_is_better,
        tolerance,
        samples,
        margin,
    )


def _margin(drops: NDArray[np.float64], seed: int) -> float:
    """The quantile of the largest change of a mean when samples (the rows) are drawn again."""
    random, samples = stream("connect", seed), len(drops)
    centred = drops - drops.mean(axis=0)
    largest = []
    for _ in range(RESAMPLES):
        counts = np.bincount(random.integers(samples, size=samples), minlength=samples)
        largest.append(np.abs(counts @ centred).max() / samples)
    return float(np.quantile(largest, CONFIDENCE))


def _or_infinite(drop: float) -> float:
    return math.inf if math.isnan(drop) else drop
