r"""Locality: how far apart weights are, by distance from their average and by angle from their start.

Distances are over all float tensors together in float64, without the running mean and variance of batch norm, as in
`mirepoix.weights.distance`. One tensor of all members is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mirepoix.landscape._per_sample import Array, finite, float64
from mirepoix.types import InputError, Weights
from mirepoix.weights import check_averageable

__all__ = ["Angles", "Locality", "angles", "inner_products", "locality"]


@dataclass(frozen=True)
class Locality:
    r"""How far members lie from the average of their weights.

    Attributes:
        squared: :math:`\bar\Delta^2`, the squared distance of the farthest member, the mean over replicates.
        distance: The distance of a member, the mean over members and replicates.
        distances: Of each member of each replicate.
    """

    squared: float
    distance: float
    distances: tuple[tuple[float, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is not finite becomes ``None``."""
        return {
            "squared": finite(self.squared),
            "distance": finite(self.distance),
            "distances": [[finite(value) for value in row] for row in self.distances],
        }


@dataclass(frozen=True)
class Angles:
    """How members left their common start.

    Attributes:
        degrees: Between each two task vectors, from 0 to 180; 90 for directions that have nothing in common. NaN
            where one is zero.
        norms: The length of each task vector.
        mean: Over all pairs; NaN with one member.
    """

    degrees: tuple[tuple[float, ...], ...]
    norms: tuple[float, ...]
    mean: float

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is not finite becomes ``None``."""
        return {
            "degrees": [[finite(value) for value in row] for row in self.degrees],
            "norms": [finite(value) for value in self.norms],
            "mean": finite(self.mean),
        }


def locality(*replicates: Sequence[Weights]) -> Locality:
    r"""The locality term of averaged weights: the squared distance of the farthest member from the average.

    .. math:: \Delta_g^2 = \max_i \lVert \theta_{gi} - \theta_{WA,g} \rVert_2^2, \qquad
              \bar\Delta^2 = \frac1G \sum_g \Delta_g^2 .

    At least 0, and 0 for copies. Lower keeps the average closer to the ensemble; a pool that is more diverse lies
    farther apart. It has the scale of the weights: compare pools of one network only.

    Args:
        *replicates: The members of one ensemble, or of each of several; in memory or lazy. Each tensor is read
            twice at most.

    Raises:
        InputError: Without replicates or members; for members that cannot be averaged, as
            `mirepoix.weights.average`.

    Example:
        >>> import numpy as np
        >>> found = locality([{"w": np.array([0.0, 0.0])}, {"w": np.array([6.0, 8.0])}])
        >>> found.squared, found.distance
        (25.0, 5.0)

    References:
        Thesis, lemma 4.1 and proposition 4.1, equation (BVCL).
    """
    if not replicates:
        raise InputError("locality: expected the members of at least one ensemble, got none.")
    rows = []
    for members in replicates:
        check_averageable(members)
        squares = np.zeros(len(members))
        for tensors in _float_tensors(members):
            squares += np.square(tensors - tensors.mean(axis=0)).sum(axis=1)
        rows.append(squares)
    distances = [np.sqrt(row) for row in rows]
    return Locality(
        float(np.mean([row.max() for row in rows])),
        float(np.mean([row.mean() for row in distances])),
        tuple(tuple(float(value) for value in row) for row in distances),
    )


def angles(thetas: Sequence[Weights], origin: Weights) -> Angles:
    r"""The angles between task vectors :math:`\tau_i = \theta_i - \theta_0`, in degrees, and their lengths.

    .. math:: \arccos \frac{\langle \tau_i, \tau_j \rangle}{\lVert \tau_i \rVert \lVert \tau_j \rVert} .

    In [0, 180]: 0 for fine-tunings that moved the same way, 90 for ones that have no direction in common. In many
    dimensions, unrelated directions are close to 90.

    Args:
        thetas: The members, in memory or lazy.
        origin: Where they started, usually the pre-trained weights, with the same names and shapes.

    Raises:
        InputError: Without members; for weights that do not have the same structure.

    Example:
        >>> import numpy as np
        >>> start = {"w": np.zeros(2)}
        >>> found = angles([{"w": np.array([3.0, 0.0])}, {"w": np.array([0.0, 2.0])}], start)
        >>> found.mean, found.norms
        (90.0, (3.0, 2.0))

    References:
        Ilharco et al. (2023), Editing models with task arithmetic.
    """
    gram = inner_products(thetas, origin)
    norms = np.sqrt(np.diagonal(gram))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = gram / np.outer(norms, norms)
    np.fill_diagonal(cosines, np.where(norms > 0, 1.0, np.nan))  # itself, not what rounding left of it
    degrees = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    pairs = degrees[np.triu_indices(len(degrees), 1)]
    return Angles(
        tuple(tuple(float(value) for value in row) for row in degrees),
        tuple(float(value) for value in norms),
        float(pairs.mean()) if len(pairs) else math.nan,
    )


def inner_products(thetas: Sequence[Weights], origin: Weights) -> Array:
    """The matrix of inner products between the task vectors from one origin."""
    if not thetas:
        raise InputError("there are no weights to compare: expected at least one member, got none.")
    everyone = [origin, *thetas]
    check_averageable(everyone)
    gram = np.zeros((len(thetas), len(thetas)))
    for tensors in _float_tensors(everyone):
        vectors = tensors[1:] - tensors[0]
        gram += vectors @ vectors.T
    return gram


def _float_tensors(thetas: Sequence[Weights]) -> Iterator[Array]:
    """Each float tensor of all members at once, ``(members, size)``."""
    for name in thetas[0]:
        if name.endswith(("running_mean", "running_var")):
            continue
        values = [theta[name] for theta in thetas]
        array = isinstance(values[0], np.ndarray | np.generic)
        if np.issubdtype(values[0].dtype, np.floating) if array else values[0].is_floating_point():
            yield np.stack([float64(value).reshape(-1) for value in values])
