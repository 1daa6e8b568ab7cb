"""What the measures of a front share: reading points, and numbers written short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mirepoix.types import InputError

__all__ = ["Array", "as_array", "as_bound", "as_points", "write", "written"]

Array: TypeAlias = NDArray[np.float64]


def as_array(name: str, values: Any) -> Array:
    """A copy in float64.

    Raises:
        InputError: If the values are not numbers, or do not form a box of them.
    """
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected numbers in rows of equal length, got {error}.") from error


def as_points(name: str, points: Any) -> Array:
    """Points as ``(points, rewards)``, at least one of each and all finite.

    Raises:
        InputError: Otherwise, with the row.
    """
    array = as_array(name, points)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"{name}: expected one row of rewards for each point, shape (points, rewards), got shape {array.shape}."
        )
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        row, column = (int(i) for i in bad[0])
        raise InputError(
            f"{name}: expected finite rewards, got {array[row, column]} in row {row}, reward {column}. "
            "Evaluate that point again or leave it out."
        )
    return array


def as_bound(name: str, bound: Any, rewards: int) -> Array:
    """One finite number for each reward."""
    array = as_array(name, bound)
    if array.shape != (rewards,) or not np.isfinite(array).all():
        raise InputError(f"{name}: expected {rewards} finite numbers, one for each reward, got {bound!r}.")
    return array


def write(value: float) -> str:
    """A number in few digits."""
    return f"{value:.5g}"


def written(values: Sequence[float] | Array | Mapping[str, float]) -> str:
    """Numbers in few digits, with their names if they have any."""
    if isinstance(values, Mapping):
        return "{" + ", ".join(f"{name}: {write(value)}" for name, value in values.items()) + "}"
    return "(" + ", ".join(write(value) for value in values) + ")"
