"""Intervals around a number, by drawing what it was made from again.

What is drawn again decides what the interval speaks of: images, for other images from the same domain; runs, for
other runs; data seeds, for other splits. Nothing that is not drawn again is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = ["Interval", "bootstrap"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and where it may lie.

    Attributes:
        value: On all units as they are.
        low: The lower end, NaN where there is none.
        high: The upper end.
        level: How often such an interval holds the true value, 0.95 for 95 %.
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; false where there is no interval."""
        return self.low > 0 or self.high < 0


def bootstrap(
    statistic: Callable[..., Any],
    units: int | Sequence[int],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    r"""Percentile intervals of several numbers at once, from the same draws.

    The units are drawn with replacement as often as there are, ``resamples`` times. The interval goes from the
    :math:`(1 - \text{level}) / 2` to the :math:`(1 + \text{level}) / 2` quantile of the statistic over the draws. It is
    too short for few units: with two, do not read it. Draws on which a number is NaN or infinite are left out of its
    quantiles; where more than a tenth are, there is no interval (NaN).

    Args:
        statistic: Of the numbers of the drawn units, ``arange(units)`` first: a number or a sequence of them.
        units: How many there are to draw from; or how many there are in each of several groups, which are drawn apart
            from each other, and of which the statistic is given one array each.
        resamples: How often.
        level: Of the interval.
        seed: Of the draws.

    Returns:
        An interval for each number of the statistic. With one unit in each group there is nothing to draw: low and
        high are NaN.

    Raises:
        InputError: Without units, also in one group; for ``level`` outside (0, 1) or fewer than two resamples.

    Example:
        >>> values = np.arange(100.0)
        >>> interval = bootstrap(lambda drawn: values[drawn].mean(), 100)[0]
        >>> interval.value, 43 < interval.low < interval.value < interval.high < 56
        (49.5, True)

    References:
        Efron and Tibshirani (1993), An introduction to the bootstrap, section 13.3.
    """
    groups = [units] if isinstance(units, int | np.integer) else list(units)
    if not groups or min(groups) < 1:
        raise InputError(f"bootstrap: expected at least one unit to draw, got {units}.")
    if not 0 < level < 1 or resamples < 2:
        raise InputError(
            f"bootstrap: expected a level between 0 and 1 and at least 2 resamples, got {level} and {resamples}."
        )

    def numbers(drawn: list[NDArray[np.int64]]) -> NDArray[np.float64]:
        return np.atleast_1d(np.asarray(statistic(*drawn), dtype=np.float64))

    values = numbers([np.arange(count) for count in groups])
    if max(groups) == 1:
        return [Interval(float(value), np.nan, np.nan, level) for value in values]
    random = stream("bootstrap", seed)
    draws = np.stack(
        [numbers([random.integers(count, size=count) for count in groups]) for _ in range(resamples)]
    )  # (resamples, numbers)
    intervals = []
    for value, column in zip(values, draws.T, strict=True):
        known = column[np.isfinite(column)]
        if len(known) < 0.9 * resamples:
            low = high = np.nan
        else:
            low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
        intervals.append(Interval(float(value), float(low), float(high), level))
    return intervals
