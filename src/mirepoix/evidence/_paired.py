"""Many predictors on the same images: accuracies and all their differences, from the same draws of images.

A predictor is right or wrong on an image, so images on which all predictors do alike are interchangeable. Drawing
how often each pattern comes is the same bootstrap as drawing images, at a fraction of the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mirepoix.bootstrap import Interval
from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = ["Draws", "draw_images"]


@dataclass(frozen=True)
class Draws:
    """The scores of several predictors, in [0, 1], and what they would be on other images.

    Where no draw moves a number, its interval is that of the rule of three: what never happened among N images may
    still happen on others.

    Attributes:
        names: Of the predictors.
        values: Their scores on the images as they are.
        draws: Their scores on images drawn anew, shape (resamples, predictors).
        differ: On how many images two of them differ, shape (predictors, predictors).
        images: How many different images there are.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    draws: NDArray[np.float64]
    differ: NDArray[np.int64]
    images: int

    def of(self, name: str, level: float = 0.95) -> Interval:
        """The score of one predictor."""
        k = self.names.index(name)
        found = self._interval(float(self.values[k]), self.draws[:, k], level)
        return Interval(found.value, max(found.low, 0.0), min(found.high, 1.0), level)

    def difference(self, first: str, second: str, level: float = 0.95) -> Interval:
        """The first score minus the second, on the same draws."""
        a, b = self.names.index(first), self.names.index(second)
        found = self._interval(
            float(self.values[a] - self.values[b]), self.draws[:, a] - self.draws[:, b], level
        )
        return Interval(found.value, max(found.low, -1.0), min(found.high, 1.0), level)

    def differing(self, first: str, second: str) -> int:
        """On how many images the two differ."""
        return int(self.differ[self.names.index(first), self.names.index(second)])

    def _interval(self, value: float, draws: NDArray[np.float64], level: float) -> Interval:
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        if high - low < 1e-12:
            # What never happened among N images may still happen: the rule of three, 3 / N for 95 %.
            low, high = low + np.log(1 - level) / self.images, high - np.log(1 - level) / self.images
        # Sums of fractions that cancel leave a trace of either sign: an end that touches zero is zero.
        ends = [0.0 if abs(end) < 1e-12 else float(end) for end in (low, high)]
        return Interval(value, ends[0], ends[1], level)


def draw_images(
    names: Sequence[str],
    strata: Mapping[object, NDArray[np.float64]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Draws:
    r"""Percentile bootstrap over images of scores that are sums over images.

    Each stratum (a domain, say) is drawn with replacement as often as it has images, on its own, so that domains keep
    their share.

    .. math:: a_k = \sum_s \sum_{n \in s} c_{nk}.

    Args:
        names: Of the predictors.
        strata: What each image (row) adds to the score of each predictor (column): with N images in all,
            ``correct / N``. An image that counts several times, as in several splits, is one row.
        resamples: How often images are drawn.
        seed: Of the draws.

    Raises:
        InputError: Without images.

    Example:
        >>> right = np.array([[1, 1], [1, 0], [1, 0], [0, 0]]) / 4
        >>> draws = draw_images(["a", "b"], {"all": right})
        >>> draws.difference("a", "b").value, draws.differing("a", "b")
        (0.5, 2)

    References:
        Efron and Tibshirani (1993), An introduction to the bootstrap, chapters 8 and 13.
    """
    images = sum(len(rows) for rows in strata.values())
    if images == 0:
        raise InputError("bootstrap over images: expected at least one image, got none.")
    count = len(names)
    values = np.zeros(count)
    draws = np.zeros((resamples, count))
    differ = np.zeros((count, count), dtype=np.int64)
    for number, rows in enumerate(strata.values()):
        patterns, times = np.unique(rows, axis=0, return_counts=True)
        values += times @ patterns
        random = stream("draw_images", seed, number)
        for first in range(0, resamples, 100):  # bounds the memory where no two images are alike
            block = random.multinomial(len(rows), times / len(rows), size=min(100, resamples - first))
            draws[first : first + len(block)] += block @ patterns
        for a in range(count):
            apart = ~np.isclose(patterns, patterns[:, a : a + 1], rtol=0, atol=1e-12)
            differ[a] += times @ apart
    return Draws(tuple(names), values, draws, differ, images)
