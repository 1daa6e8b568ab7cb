r"""The plane through three weights: what lies around them, and not only between them.

Any point of the plane is :math:`\theta_a + \alpha (\theta_b - \theta_a) + \beta (\theta_c - \theta_a)`, an affine
combination of the three, so that batch-norm statistics follow the weights. Axes are orthonormal in the space of
weights: distances in the figure are distances between weights. As in `mirepoix.landscape.connect`, each point is
made, scored and let go before the next, and the weights that were given are never changed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mirepoix.landscape._connect import evaluate
from mirepoix.landscape._locality import inner_products
from mirepoix.landscape._per_sample import Array, finite
from mirepoix.types import InputError, Weights

__all__ = ["Place", "Plane", "plane"]

# The height of the triangle below which it is a line, against its longest side: float32 weights keep 7 digits.
FLAT = 1e-5
CORNERS = ("a", "b", "c")


@dataclass(frozen=True, slots=True)
class Place:
    """One of the three weights, or their average.

    Attributes:
        x: Along the first axis, from ``a`` to ``b``.
        y: Along the second.
        value: The score or loss there.
    """

    x: float
    y: float
    value: float


@dataclass(frozen=True)
class Plane:
    r"""Values over a grid of the plane through three weights.

    Attributes:
        x: Coordinates of the columns, in the unit of `mirepoix.weights.distance`; 0 is ``a``, and ``b`` lies at the
            distance of the two.
        y: Coordinates of the rows; 0 is the line through ``a`` and ``b``, and ``c`` lies above it.
        values: The score or loss at each point, row by row; NaN where it is none.
        coefficients: Of ``a``, ``b`` and ``c`` at each point, which sum to one; outside the triangle one is below 0.
        places: ``"a"``, ``"b"``, ``"c"``, and ``"average"`` of the three.
        clamped: At how many points of the grid a running variance of batch norm would have been below 0, and was 0.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    coefficients: tuple[tuple[tuple[float, float, float], ...], ...]
    places: dict[str, Place]
    clamped: int

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is not finite becomes ``None``."""
        return {
            "x": list(self.x),
            "y": list(self.y),
            "values": [[finite(value) for value in row] for row in self.values],
            "coefficients": [[list(each) for each in row] for row in self.coefficients],
            "places": {
                name: {"x": place.x, "y": place.y, "value": finite(place.value)}
                for name, place in self.places.items()
            },
            "clamped": self.clamped,
        }


def plane(
    a: Weights,
    b: Weights,
    c: Weights,
    score: Callable[[Weights], Any],
    *,
    points: tuple[int, int] = (15, 15),
    margin: float = 0.2,
    grid: tuple[Sequence[float], Sequence[float]] | None = None,
    refresh: Callable[[Weights], Weights] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Plane:
    r"""The values of a score or a loss over a grid of the plane through three weights.

    With :math:`u` the direction from :math:`\theta_a` to :math:`\theta_b`, and :math:`v` that of
    :math:`\theta_c - \theta_a` once its part along :math:`u` is taken out,

    .. math:: \theta(x, y) = \theta_a + x u + y v .

    Running means and variances of batch norm have no part in the axes and follow with the same coefficients; those of
    far points may be meaningless, so re-estimate them with ``refresh``. Integer buffers are as in
    `mirepoix.weights.average`. It takes ``points[0] * points[1] + 4`` scores. For a verdict on whether weights are
    connected, use `mirepoix.landscape.connect`.

    Args:
        a: The origin; in memory or lazy, read once per point.
        b: Where the first axis points.
        c: Out of the line through the other two.
        score: Of weights: a number, or one number per sample, of which the mean is the value.
        points: How many columns and rows there are.
        margin: How far the grid goes beyond the triangle on each side, as a share of its width and height.
        grid: The coordinates of columns and rows themselves, instead of points and margin.
        refresh: Applied to all but the three weights themselves.
        progress: Called with (done, total) after each score.

    Raises:
        InputError: For weights on one line, or that cannot be averaged; for fewer than two points on a side; for a
            margin below 0; for coordinates that do not increase; for a score that is neither a number nor one per
            sample.

    Example:
        >>> import numpy as np
        >>> a, b, c = ({"w": np.array(w)} for w in ([0.0, 0.0], [2.0, 0.0], [1.0, 3.0]))
        >>> found = plane(a, b, c, lambda theta: float(theta["w"].sum()), points=(3, 2), margin=0)
        >>> found.x, found.y
        ((0.0, 1.0, 2.0), (0.0, 3.0))
        >>> found.values
        ((0.0, 1.0, 2.0), (3.0, 4.0, 5.0))
        >>> found.places["average"]
        Place(x=1.0, y=1.0, value=2.0)

    References:
        Garipov et al. (2018), Loss surfaces, mode connectivity and fast ensembling of DNNs; Izmailov et al. (2018),
        Averaging weights leads to wider optima and better generalization.
    """
    thetas = [a, b, c]
    length, along, height = _triangle(thetas)
    corners = {"a": (0.0, 0.0), "b": (length, 0.0), "c": (along, height)}
    if grid is None:
        if min(points) < 2:
            raise InputError(f"points: expected at least 2 columns and 2 rows, got {points}.")
        if not 0 <= margin < math.inf:
            raise InputError(f"margin: expected a number from 0, got {margin!r}.")
        left, right = min(0.0, along), max(length, along)
        aside, above = margin * (right - left), margin * height
        x = np.linspace(left - aside, right + aside, points[0])
        y = np.linspace(-above, height + above, points[1])
    else:
        x, y = (np.asarray(axis, dtype=np.float64) for axis in grid)
        for name, axis in (("columns", x), ("rows", y)):
            if axis.ndim != 1 or axis.size == 0 or not np.isfinite(axis).all() or (np.diff(axis) <= 0).any():
                raise InputError(f"grid: expected increasing coordinates of the {name}, got {axis.tolist()}.")
    total, done, clamped = 4 + x.size * y.size, 0, 0

    def value(coefficients: tuple[float, float, float]) -> float:
        nonlocal done, clamped
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = float(np.mean(evaluate(thetas, coefficients, score, refresh, extrapolate=True)))
        # Counted instead, as each far point would say it again. All other warnings go on as they were.
        for each in caught:
            if str(each.message).startswith("negative running variances"):
                clamped += 1
            else:
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        done += 1
        if progress is not None:
            progress(done, total)
        return found

    def coefficients(column: float, row: float) -> tuple[float, float, float]:
        beta = row / height
        alpha = (column - beta * along) / length
        return 1 - alpha - beta, alpha, beta

    places = {
        name: Place(*corners[name], value(tuple(float(name == other) for other in CORNERS)))  # type: ignore[arg-type]
        for name in CORNERS
    }
    places["average"] = Place((length + along) / 3, height / 3, value((1 / 3, 1 / 3, 1 / 3)))
    mixtures = tuple(tuple(coefficients(float(column), float(row)) for column in x) for row in y)
    values = tuple(tuple(value(mixture) for mixture in row) for row in mixtures)
    return Plane(
        tuple(float(each) for each in x), tuple(float(each) for each in y), values, mixtures, places, clamped
    )


def _triangle(thetas: Sequence[Weights]) -> tuple[float, float, float]:
    """The distance of a and b, and how far c is along that line and above it."""
    gram: Array = inner_products(thetas[1:], thetas[0])
    if not np.isfinite(gram).all():
        raise InputError("plane: the weights must be finite, some are NaN or infinite.")
    length = math.sqrt(gram[0, 0])
    longest = math.sqrt(max(gram[0, 0], gram[1, 1]))
    along = float(gram[0, 1] / length) if length > 0 else 0.0
    height = math.sqrt(max(0.0, float(gram[1, 1]) - along**2))
    if length <= FLAT * longest or height <= FLAT * longest:
        raise InputError(
            f"plane: the three weights lie on one line (b is {length:.4g} from a, c is {math.sqrt(gram[1, 1]):.4g} "
            f"from a and {height:.4g} from the line), so that there is no plane. Use connect([a, b], ...) for the line."
        )
    return length, along, height
