r"""Averaged weights against the ensemble of the same members: how near one comes to the other.

Two questions. Is the difference of second order in the distance of the members, as a smooth network must have it?
Then it falls by four when they are brought to half their distance from the average. And how do their scores compare,
for many sets of members as they are?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mirepoix.landscape._locality import locality
from mirepoix.landscape._per_sample import Array, finite, float64
from mirepoix.seeds import stream
from mirepoix.types import InputError, Weights
from mirepoix.weights import average, interpolate

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

__all__ = ["Contraction", "SubsetScores", "average_against_ensemble", "compare_on_subsets"]


@dataclass(frozen=True)
class Contraction:
    r"""The difference between the average and the ensemble, as the members are brought closer.

    Attributes:
        scales: :math:`t`, the share of their distance from the average that the members keep.
        delta_squared: :math:`t^2 \Delta^2`, the squared distance of the farthest member at each scale.
        differences: Between the predictions of the average and those of the ensemble, at each scale.
        slope: Of the logarithm of the differences against that of the scales, by least squares. 2 for the second
            order, so that the difference is proportional to ``delta_squared``; NaN where a difference is 0, as for
            a linear model.
        slopes: The same between each scale and the next.
    """

    scales: tuple[float, ...]
    delta_squared: tuple[float, ...]
    differences: tuple[float, ...]
    slope: float
    slopes: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is not finite becomes ``None``."""
        return {
            "scales": list(self.scales),
            "delta_squared": [finite(value) for value in self.delta_squared],
            "differences": [finite(value) for value in self.differences],
            "slope": finite(self.slope),
            "slopes": [finite(value) for value in self.slopes],
        }


@dataclass(frozen=True, slots=True)
class SubsetScores:
    """One dot of the figure of averages against ensembles.

    Attributes:
        members: Which members, by their index.
        average: The score of the average of their weights.
        ensemble: The score of their ensemble.
    """

    members: tuple[int, ...]
    average: float
    ensemble: float

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is not finite becomes ``None``."""
        return {
            "members": list(self.members),
            "average": finite(self.average),
            "ensemble": finite(self.ensemble),
        }


def average_against_ensemble(
    thetas: Sequence[Weights],
    predict: Callable[[Weights], Any],
    *,
    scales: Sequence[float] = (1.0, 0.5, 0.25, 0.125),
    progress: Callable[[int, int], None] | None = None,
) -> Contraction:
    r"""How the difference between averaged weights and the ensemble falls as the members are brought closer.

    The members are put at :math:`\theta_{WA} + t (\theta_i - \theta_{WA})`, which leaves their average where it is,
    and at each scale :math:`t`

    .. math:: d(t) = \operatorname*{mean}_x \Big\lVert f(x, \theta_{WA})
              - \frac1M \sum_i f\big(x, \theta_{WA} + t (\theta_i - \theta_{WA})\big) \Big\rVert_2 .

    For a network that is smooth between its members this is :math:`\mathcal{O}(t^2 \Delta^2)`: the slope of
    :math:`\log d` against :math:`\log t` approaches 2 as :math:`t` falls, which is 1 against
    :math:`\log t^2 \Delta^2`. A slope well below 2 at the larger scales says that the members are too far apart for
    the lemma. With ReLU the slope may stay between 1 and 2. Where the difference comes near the rounding of the
    predictions, the slope falls to 0: leave out such scales, or take weights and network in float64.

    Args:
        thetas: The members, in memory or lazy. Half precision is widened to float32, so that ``predict`` is given
            that.
        predict: Of weights: the predictions on fixed samples, logits or probabilities, samples first, as a tensor or
            an array. The ensemble averages what it returns.
        scales: Of the distance to the average, from the largest to the smallest, at least one.
        progress: Called with (done, total) after each prediction.

    Raises:
        InputError: With fewer than two members; for scales that are not above 0 and falling; for predictions that
            are not finite or change their shape; for members that cannot be averaged.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(-1, 1, 9)[:, None]
        >>> thetas = [{"w": np.array([0.5])}, {"w": np.array([1.5])}]
        >>> found = average_against_ensemble(thetas, lambda theta: np.sin(theta["w"] * x))
        >>> found.delta_squared
        (0.25, 0.0625, 0.015625, 0.00390625)
        >>> [round(slope, 2) for slope in found.slopes]
        [1.98, 2.0, 2.0]

    References:
        Thesis, lemma 4.1 and appendix C.3, equation (C.6).
    """
    scales = [float(scale) for scale in scales]
    if len(thetas) < 2:
        raise InputError(f"average_against_ensemble: expected at least 2 members, got {len(thetas)}.")
    if (
        not scales
        or not all(0 < scale < math.inf for scale in scales)
        or sorted(set(scales), reverse=True) != scales
    ):
        raise InputError(f"scales: expected numbers above 0, from the largest to the smallest, got {scales}.")
    total = 1 + len(scales) * len(thetas)
    done = 0

    def predicted(theta: Weights) -> Array:
        nonlocal done
        found = _predictions(predict, theta)
        done += 1
        if progress is not None:
            progress(done, total)
        return found

    far = locality(thetas).squared
    centre = average([_Wide(theta) for theta in thetas])
    of_average = predicted(_copy(centre))
    differences = []
    for scale in scales:
        mean = np.zeros_like(of_average)
        for theta in thetas:
            wide = _Wide(theta)
            # Integer buffers stay those of the average.
            near = interpolate([centre, wide], [1 - scale, scale], extrapolate=scale > 1, integers="first")
            found = predicted(near)
            del near  # not beside the next
            if found.shape != of_average.shape:
                raise InputError(
                    f"predict: expected predictions of shape {of_average.shape} each time, got {found.shape}."
                )
            mean += found / len(thetas)
        gap = (of_average - mean).reshape(len(mean), -1)
        differences.append(float(np.sqrt(np.square(gap).sum(axis=1)).mean()))
    return Contraction(
        tuple(scales),
        tuple(scale**2 * far for scale in scales),
        tuple(differences),
        _slope(scales, differences),
        tuple(_slope(scales[i : i + 2], differences[i : i + 2]) for i in range(len(scales) - 1)),
    )


def compare_on_subsets(
    thetas: Sequence[Weights],
    predict: Callable[[Weights], Tensor],
    labels: Int[Tensor, " samples"],
    *,
    subsets: Sequence[Sequence[int]] | None = None,
    count: int = 100,
    sizes: Sequence[int] | None = None,
    metric: Callable[[Tensor, Tensor], Any] | None = None,
    refresh: Callable[[Weights], Weights] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[SubsetScores]:
    r"""The score of averaged weights and that of the ensemble, for many subsets of a pool.

    Drawn as dots, one axis each, they lie near the diagonal where averaging weights is as good as averaging logits.
    Each member is run once and each average once.

    Args:
        thetas: The pool, in memory or lazy.
        predict: Of weights: the logits on fixed samples, ``(samples, classes)``.
        labels: The true classes of these samples.
        subsets: The subsets, each by the indices of its members. Drawn if left out.
        count: How many subsets are drawn at most, none of them twice.
        sizes: How many members a drawn subset may have, each size as likely; from 2 to all if left out.
        metric: Of logits and labels; accuracy if left out.
        refresh: Applied to each average, for example to re-estimate batch norm.
        seed: Of the subsets that are drawn.
        progress: Called with (done, total) after each prediction.

    Raises:
        InputError: With fewer than two members; for subsets that are empty, name a member twice or one that is not
            there; for a count below 1 or sizes outside 1 to the number of members; for predictions that are not
            finite or do not fit the labels.

    Example:
        >>> import torch
        >>> x, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1])
        >>> thetas = [{"w": torch.tensor([[a, b]])} for a, b in ((1.0, 0.0), (0.0, 2.0), (0.0, -0.5))]
        >>> dots = compare_on_subsets(thetas, lambda theta: x @ theta["w"], labels, subsets=[(0, 2), (0, 1)])
        >>> [(dot.average, dot.ensemble) for dot in dots]
        [(0.5, 0.5), (0.5, 0.5)]

    References:
        Thesis, section 4.6, figure 4.5.
    """
    import torch

    from mirepoix.ensembles import average_logits
    from mirepoix.metrics import accuracy

    if len(thetas) < 2:
        raise InputError(f"compare_on_subsets: expected at least 2 members, got {len(thetas)}.")
    chosen = _subsets(len(thetas), subsets, count, sizes, seed)
    measure = accuracy if metric is None else metric
    total = len(thetas) + len(chosen)
    done = 0

    def predicted(theta: Weights) -> Tensor:
        nonlocal done
        found = torch.as_tensor(_predictions(predict, theta))
        if found.ndim != 2 or labels.shape != found.shape[:1]:
            raise InputError(
                "predict: expected logits of shape (samples, classes) and labels of shape (samples,), got "
                f"{tuple(found.shape)} and {tuple(labels.shape)}."
            )
        done += 1
        if progress is not None:
            progress(done, total)
        return found

    labels = labels.cpu()
    logits = torch.stack([predicted(_copy(theta)) for theta in thetas])
    dots = []
    for members in chosen:
        theta: Weights = average([thetas[i] for i in members])
        of_average = predicted(theta if refresh is None else refresh(theta))
        del theta
        of_ensemble = average_logits(logits[list(members)])
        scores = [float(measure(each, labels)) for each in (of_average, of_ensemble)]
        dots.append(SubsetScores(members, *scores))
    return dots


class _Wide(Mapping[str, Any]):
    """Weights whose half-precision tensors are read in float32."""

    def __init__(self, theta: Weights) -> None:
        self._theta = theta

    def __getitem__(self, name: str) -> Any:
        value = self._theta[name]
        if isinstance(value, np.ndarray | np.generic):
            return np.asarray(value, dtype=np.float32) if value.dtype == np.float16 else value
        return value.float() if value.is_floating_point() and value.itemsize < 4 else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._theta)

    def __len__(self) -> int:
        return len(self._theta)


def _copy(theta: Weights) -> dict[str, Any]:
    """For a function that may change what it is given."""
    return interpolate([theta], [1.0], check="none")


def _predictions(predict: Callable[[Weights], Any], theta: Weights) -> Array:
    found = float64(predict(theta))
    if found.ndim == 0 or found.size == 0:
        raise InputError(f"predict: expected predictions with samples first, got shape {found.shape}.")
    if not np.isfinite(found).all():
        raise InputError(
            "predict: predictions must be finite, some are not. Leave out members that diverged."
        )
    return found


def _slope(scales: Sequence[float], differences: Sequence[float]) -> float:
    """Of the logarithms, by least squares; NaN where there is none."""
    if len(scales) < 2 or min(differences) <= 0:
        return math.nan
    x, y = np.log(scales), np.log(differences)
    x -= x.mean()
    return float(x @ (y - y.mean()) / (x @ x))


def _subsets(
    pool: int, subsets: Sequence[Sequence[int]] | None, count: int, sizes: Sequence[int] | None, seed: int
) -> list[tuple[int, ...]]:
    if subsets is not None:
        found = [tuple(int(i) for i in subset) for subset in subsets]
        for subset in found:
            if not subset or len(set(subset)) < len(subset) or min(subset) < 0 or max(subset) >= pool:
                raise InputError(
                    f"subsets: expected different members out of 0 to {pool - 1}, got {list(subset)}."
                )
        return found
    choice = list(range(2, pool + 1)) if sizes is None else [int(size) for size in sizes]
    if count < 1 or not choice or min(choice) < 1 or max(choice) > pool:
        raise InputError(
            f"compare_on_subsets: expected a count of at least 1 and sizes from 1 to {pool}, got {count} and {choice}."
        )
    random = stream("subsets", seed)
    drawn: dict[tuple[int, ...], None] = {}
    for _ in range(20 * count):  # few members have few subsets: then there are fewer than asked for
        size = int(random.choice(choice))
        drawn[tuple(sorted(int(i) for i in random.choice(pool, size=size, replace=False)))] = None
        if len(drawn) == count:
            break
    return list(drawn)
