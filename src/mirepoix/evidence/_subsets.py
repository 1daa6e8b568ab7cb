"""All ensembles of k members out of n: what tells the good ones from the bad, better members or more diverse ones?

Predictions are made once for each member and cached by the caller; an ensemble of some of them is then an average, and
those of thousands of subsets are a few products of matrices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mirepoix.bootstrap import bootstrap
from mirepoix.diversity import normalised_difference_matrix
from mirepoix.ensembles import average_logits, average_probabilities
from mirepoix.seeds import stream
from mirepoix.types import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Extreme", "Fit", "SeparatingLine", "Subsets", "ensembles_of_size"]

EXTREME = 0.05
GRID = 41
BLOCK = (
    2**21
)  # numbers in a block of predictions: 8 MiB in float32; more is slower, as memory is then always new


@dataclass(frozen=True, slots=True)
class SeparatingLine:
    r"""Where ensembles above the median part from those below, on the plane of mean accuracy and diversity.

    The line is :math:`w_a a + w_d d + b = 0`, with the better side where the left is positive.

    Attributes:
        accuracy_weight: :math:`w_a`, per unit of mean accuracy.
        diversity_weight: :math:`w_d`, per unit of diversity.
        intercept: :math:`b`.
        standardised: Both weights per standard deviation of the subsets, so that they compare.
        standardised_low: Their lower ends, 95 % of the resamples between.
        standardised_high: Their upper ends.
        separated: The share of subsets on their side of the line; 0.5 is chance.
        accuracy: A grid on the range of mean accuracy.
        diversity: The line over it, NaN where it is vertical.
        low: The lower end of the band over it.
        high: The upper end.
    """

    accuracy_weight: float
    diversity_weight: float
    intercept: float
    standardised: tuple[float, float]
    standardised_low: tuple[float, float]
    standardised_high: tuple[float, float]
    separated: float
    accuracy: tuple[float, ...]
    diversity: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Fit:
    r"""A plane through the accuracies of ensembles by least squares, and the correlations behind it.

    .. math:: \text{accuracy} \approx c_0 + c_a \cdot \text{mean accuracy} + c_d \cdot \text{diversity}.

    What is not determined, such as a correlation with a constant, is None.

    Attributes:
        intercept: :math:`c_0`.
        accuracy_slope: :math:`c_a`.
        diversity_slope: :math:`c_d`.
        r_squared: The share of the variance that the plane explains.
        pearson_accuracy: The correlation of the ensemble's with the mean accuracy.
        pearson_diversity: The correlation of the ensemble's accuracy with diversity.
        pearson_between: The correlation of mean accuracy with diversity.
        spearman_accuracy: As above, of ranks.
        spearman_diversity: As above, of ranks.
        spearman_between: As above, of ranks.
    """

    intercept: float | None
    accuracy_slope: float | None
    diversity_slope: float | None
    r_squared: float | None
    pearson_accuracy: float | None
    pearson_diversity: float | None
    pearson_between: float | None
    spearman_accuracy: float | None
    spearman_diversity: float | None
    spearman_between: float | None


@dataclass(frozen=True, slots=True)
class Extreme:
    """The means of the worst or of the best subsets, with their standard deviations.

    Attributes:
        subsets: How many.
        mean_accuracy: Of the members.
        diversity: Over pairs of members.
        accuracy: Of the ensembles.
        mean_accuracy_deviation: Over the subsets.
        diversity_deviation: Over the subsets.
        accuracy_deviation: Over the subsets.
    """

    subsets: int
    mean_accuracy: float
    diversity: float
    accuracy: float
    mean_accuracy_deviation: float
    diversity_deviation: float
    accuracy_deviation: float


@dataclass(frozen=True)
class Subsets:
    """Ensembles of k of n members. Accuracies are fractions.

    Attributes:
        members: n.
        size: k.
        containing: The member that is in every subset, if any.
        possible: How many such subsets there are; more than were taken where they were drawn.
        combined: What was averaged, ``"average_logits"`` or ``"average_probabilities"``.
        chosen: The members of each subset, ``(subsets, k)``.
        mean_accuracy: Of the members of each subset.
        diversity: The mean over pairs of each subset.
        accuracy: Of each ensemble.
        median: Of the accuracies.
        above: Whether each ensemble lies above the median; equal to it counts as below.
        left_out: Subsets whose diversity is not finite. They are in the arrays, but in nothing that follows.
        line: None where there is nothing to separate: all ensembles, all mean accuracies or all diversities equal.
        fit: Correlations and regression.
        worst: The worst 5 % of the ensembles, at least one; None without a subset.
        best: The best 5 %.
    """

    members: int
    size: int
    containing: int | None
    possible: int
    combined: str
    chosen: NDArray[np.int64]
    mean_accuracy: NDArray[np.float64]
    diversity: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    median: float
    above: NDArray[np.bool_]
    left_out: int
    line: SeparatingLine | None
    fit: Fit
    worst: Extreme | None
    best: Extreme | None

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is not finite becomes ``None``."""
        plain: dict[str, Any] = _plain(self)
        return plain


def ensembles_of_size(
    logits: Float[Tensor, "members samples classes"],
    labels: Int[Tensor, " samples"],
    k: int,
    *,
    containing: int | None = None,
    combine: Callable[[Tensor], Tensor] = average_logits,
    pairs: Float[Tensor, "members members"] | None = None,
    limit: int = 5000,
    resamples: int = 200,
    seed: int = 0,
) -> Subsets:
    r"""Every ensemble of k members: its accuracy against the mean accuracy and the diversity of its members.

    Ensembles above the median accuracy and the others are separated by a straight line on the plane of the two: a
    linear support vector machine (squared hinge, C = 1) on standardised values, mapped back. Its
    band holds 95 % of the lines of resampled subsets at each mean accuracy. Subsets share members, and the members are
    always the same: band and correlations speak of the choice among these n, not of n others.

    Args:
        logits: Of each member, on the test samples.
        labels: The true classes.
        k: Members of an ensemble, from 2.
        containing: A member that every subset must have, such as the centre of a star.
        combine: `mirepoix.ensembles.average_logits` or ``average_probabilities``.
        pairs: The diversity of each pair of members, any symmetric matrix; by default the
            `mirepoix.diversity.normalised_difference_matrix` of the predictions. Others:
            ``ratio_error_matrix(logits.argmax(-1) == labels)``, or one minus a similarity of features.
        limit: The most subsets. Where there are more, this many different ones are drawn.
        resamples: How many lines the band is made of.
        seed: Of the drawn subsets and of the resamples.

    Returns:
        The subsets in lexicographic order, or in the order drawn.

    Raises:
        InputError: For k outside 2 to n; a member that is none; labels or a matrix of another size; logits that are
            not finite; another way to combine; a limit below 1 or fewer than two resamples.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]], [[0.5, 0.0], [3.0, 0.0]]])
        >>> found = ensembles_of_size(logits, torch.tensor([0, 1]), 2)
        >>> found.chosen.tolist(), found.accuracy.tolist()
        ([[0, 1], [0, 2], [1, 2]], [1.0, 0.5, 0.0])

    References:
        The analysis of 5 out of 15 members of StarSSE (Sadrtdinov et al. 2023, To stay or not to stay in the
        pre-train basin: insights on ensembling in transfer learning), with a band defined here.
    """
    z, y, distances = _checked(logits, labels, k, containing, combine, pairs)
    if limit < 1 or resamples < 2:
        raise InputError(f"expected a limit from 1 and resamples from 2, got {limit} and {resamples}.")
    n = len(z)
    chosen, possible = _chosen(n, k, containing, limit, seed)
    right = (z.argmax(-1) == y).sum(1).numpy()  # (members,)
    mean_accuracy = right[chosen].sum(1) / (k * len(y))  # of whole numbers, so that ties are ties
    matrix = distances.numpy()
    diversity = np.zeros(len(chosen))
    couples = list(itertools.combinations(range(k), 2))
    for i, j in couples:
        diversity += matrix[chosen[:, i], chosen[:, j]]
    diversity /= len(couples)
    outputs = z.softmax(-1) if combine is average_probabilities else z
    accuracy = _accuracies(outputs, y, chosen)

    known = np.isfinite(diversity)
    median = float(np.median(accuracy[known])) if known.any() else math.nan
    x = np.stack([mean_accuracy, diversity], 1)[known]  # (subsets, 2)
    order = np.argsort(accuracy[known], kind="stable")
    count = max(1, math.ceil(EXTREME * len(order)))
    return Subsets(
        members=n,
        size=k,
        containing=containing,
        possible=possible,
        combined="average_probabilities" if combine is average_probabilities else "average_logits",
        chosen=chosen,
        mean_accuracy=mean_accuracy,
        diversity=diversity,
        accuracy=accuracy,
        median=median,
        above=accuracy > median,
        left_out=int((~known).sum()),
        line=_line(x, accuracy[known] > median, resamples, seed),
        fit=_fit(x, accuracy[known]),
        worst=_extreme(x, accuracy[known], order[:count]),
        best=_extreme(x, accuracy[known], order[-count:]),
    )


# Subsets and their ensembles.


def _chosen(n: int, k: int, containing: int | None, limit: int, seed: int) -> tuple[NDArray[np.int64], int]:
    """The subsets, each in increasing order, and how many there are in all."""
    always = [] if containing is None else [containing]
    others = [i for i in range(n) if i != containing]
    free = k - len(always)
    possible = math.comb(len(others), free)
    if possible <= limit:
        ways = [sorted([*always, *way]) for way in itertools.combinations(others, free)]
        return np.array(sorted(ways), dtype=np.int64).reshape(-1, k), possible
    random = stream("ensembles_of_size", n, k, containing, seed)
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < limit:
        way = random.choice(others, free, replace=False).tolist()
        drawn[tuple(sorted([*always, *way]))] = None
    return np.array(list(drawn), dtype=np.int64), possible


def _accuracies(outputs: Tensor, labels: Tensor, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """How often the largest sum over members is that of the label, for each subset."""
    members, samples, classes = outputs.shape
    # Members of a subset as ones in a row: sums over all subsets are one product.
    rows = torch.zeros(len(chosen), members, dtype=outputs.dtype)
    rows.scatter_(1, torch.as_tensor(chosen), 1)
    right = torch.zeros(len(chosen), dtype=torch.int64)
    step = max(1, min(samples, BLOCK // (classes * min(len(chosen), 1024))))
    for first in range(0, samples, step):
        block = outputs[:, first : first + step].reshape(members, -1)
        y = labels[first : first + step]
        for start in range(0, len(chosen), 1024):
            sums = (rows[start : start + 1024] @ block).view(-1, len(y), classes)
            right[start : start + 1024] += (sums.argmax(-1) == y).sum(1)
    counts: NDArray[np.float64] = right.numpy() / samples
    return counts


# What parts the good from the bad.


def _line(
    x: NDArray[np.float64], above: NDArray[np.bool_], resamples: int, seed: int
) -> SeparatingLine | None:
    """The separating line in the units of ``x``, which is (subsets, 2), and its band."""
    found = _separate(x, above)
    if found is None:
        return None
    grid = np.linspace(x[:, 0].min(), x[:, 0].max(), GRID)

    def over(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        line = _separate(x[drawn], above[drawn])
        if line is None:
            return np.full(2 + GRID, np.nan)
        weights, intercept, standardised = line
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.concatenate([standardised, -(intercept + weights[0] * grid) / weights[1]])

    intervals = bootstrap(over, len(x), resamples=resamples, seed=seed)
    first, second, *band = intervals
    weights, intercept, _ = found
    return SeparatingLine(
        accuracy_weight=float(weights[0]),
        diversity_weight=float(weights[1]),
        intercept=intercept,
        standardised=(first.value, second.value),
        standardised_low=(first.low, second.low),
        standardised_high=(first.high, second.high),
        separated=float(np.mean((x @ weights + intercept > 0) == above)),
        accuracy=tuple(grid.tolist()),
        diversity=tuple(interval.value for interval in band),
        low=tuple(interval.low for interval in band),
        high=tuple(interval.high for interval in band),
    )


def _separate(
    x: NDArray[np.float64], above: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]] | None:
    """Weights and intercept in the units of ``x``, and weights per standard deviation; None with one class."""
    from sklearn.svm import LinearSVC

    if above.all() or not above.any():
        return None
    middle, spread = x.mean(0), x.std(0)
    if not (spread > 1e-12 * np.abs(middle)).all():
        return None
    # In the primal there is no randomness, and two weights take milliseconds.
    machine = LinearSVC(dual=False, tol=1e-8, max_iter=10_000).fit((x - middle) / spread, above)
    standardised: NDArray[np.float64] = machine.coef_[0]
    weights = standardised / spread
    return weights, float(machine.intercept_[0] - weights @ middle), standardised


def _fit(x: NDArray[np.float64], y: NDArray[np.float64]) -> Fit:
    a, d = x.T
    intercept = accuracy_slope = diversity_slope = r_squared = None
    moved = x - x.mean(0) if len(x) else x
    spread = moved.std(0) if len(x) else np.zeros(2)
    if len(x) > 3 and (spread > 0).all():
        # Standardised, so that the rank does not depend on units.
        slopes, _, rank, _ = np.linalg.lstsq(moved / spread, y - y.mean(), rcond=1e-9)
        if rank == 2:
            residuals = y - y.mean() - (moved / spread) @ slopes
            slopes = slopes / spread
            total = float(((y - y.mean()) ** 2).sum())
            intercept = float(y.mean() - slopes @ x.mean(0))
            accuracy_slope, diversity_slope = float(slopes[0]), float(slopes[1])
            r_squared = 1 - float(residuals @ residuals) / total if total > 0 else None
    ranks = [_ranks(values) for values in (y, a, d)]
    return Fit(
        intercept,
        accuracy_slope,
        diversity_slope,
        r_squared,
        _correlation(y, a),
        _correlation(y, d),
        _correlation(a, d),
        _correlation(ranks[0], ranks[1]),
        _correlation(ranks[0], ranks[2]),
        _correlation(ranks[1], ranks[2]),
    )


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, ties at their middle."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    da, db = a - a.mean(), b - b.mean()
    return float(da @ db / math.sqrt(float(da @ da) * float(db @ db)))


def _extreme(x: NDArray[np.float64], y: NDArray[np.float64], where: NDArray[np.int64]) -> Extreme | None:
    if not len(where):
        return None
    columns = (x[where, 0], x[where, 1], y[where])
    means, deviations = ([float(f(c)) for c in columns] for f in (np.mean, np.std))
    return Extreme(len(where), *means, *deviations)


# Checks.


def _checked(
    logits: Tensor,
    labels: Tensor,
    k: int,
    containing: int | None,
    combine: Callable[[Tensor], Tensor],
    pairs: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float32 at least, labels and distances in float64, all on the CPU."""
    z, y = torch.as_tensor(logits).detach().cpu(), torch.as_tensor(labels).cpu()
    if z.ndim != 3 or not z.is_floating_point() or y.shape != z.shape[1:2] or 0 in z.shape:
        raise InputError(
            "expected float logits of shape (members, samples, classes) and labels of shape (samples,), "
            f"got {z.dtype} of shape {tuple(z.shape)} and {tuple(y.shape)}."
        )
    n = len(z)
    if not 2 <= k <= n:
        raise InputError(f"k: expected from 2 to {n} members of an ensemble, got {k}.")
    if containing is not None and not 0 <= containing < n:
        raise InputError(f"containing: expected a member from 0 to {n - 1}, got {containing}.")
    if combine is not average_logits and combine is not average_probabilities:
        raise InputError(
            f"combine: expected average_logits or average_probabilities, got {getattr(combine, '__name__', combine)}."
        )
    finite = z.isfinite().flatten(1).all(1)
    if not finite.all():
        raise InputError(
            f"logits: expected finite numbers, but member {int((~finite).nonzero()[0])} has others. "
            "Leave out members that diverged."
        )
    matrix = normalised_difference_matrix(z.argmax(-1), y) if pairs is None else torch.as_tensor(pairs)
    matrix = matrix.detach().cpu().double()
    if matrix.shape != (n, n):
        raise InputError(f"pairs: expected shape ({n}, {n}), got {tuple(matrix.shape)}.")
    if not torch.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-9, equal_nan=True):
        raise InputError(
            "pairs: expected a symmetric matrix, the diversity of i and j being that of j and i."
        )
    return z.to(torch.promote_types(z.dtype, torch.float32)), y, matrix


def _plain(value: Any) -> Any:
    """Dataclasses, arrays and tuples as dictionaries and lists."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
