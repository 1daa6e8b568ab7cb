"""How much two boxes are the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mirepoix.types import InputError

__all__ = ["intersection_over_union"]


def intersection_over_union(boxes: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    r"""The area of the intersection of two boxes over that of their union.

    .. math:: \text{IoU}(a, b) = \frac{|a \cap b|}{|a| + |b| - |a \cap b|}.

    In [0, 1]: 1 for equal boxes, 0 for boxes that do not overlap or only touch. It depends on no unit of length.

    Args:
        boxes: Corners ``(x0, y0, x1, y1)`` with ``x0 < x1`` and ``y0 < y1``, shape (..., 4).
        others: Likewise, of a shape that broadcasts.

    Returns:
        Shape (...).

    Raises:
        InputError: For other shapes, or a box without an area.

    Example:
        >>> intersection_over_union([[0, 0, 2, 2], [0, 0, 2, 2]], [[0, 0, 2, 2], [1, 0, 3, 2]]).round(3).tolist()
        [1.0, 0.333]
    """
    first, second = (np.asarray(given, dtype=np.float64) for given in (boxes, others))
    for name, found in (("boxes", first), ("others", second)):
        if found.ndim < 1 or found.shape[-1] != 4:
            raise InputError(
                f"{name}: expected x0, y0, x1, y1 along the last axis, got the shape {found.shape}."
            )
        good = (found[..., 2:] > found[..., :2]).all(axis=-1) & np.isfinite(found).all(axis=-1)
        if not good.all():
            wrong = found[~good].reshape(-1, 4)[0].tolist()
            raise InputError(f"{name}: expected x0 < x1 and y0 < y1, got {wrong}.")
    try:
        corners = np.broadcast_arrays(first, second)
    except ValueError as error:
        raise InputError(
            f"boxes: expected a shape that broadcasts with that of others, {second.shape}, got {first.shape}."
        ) from error
    low, high = (
        np.maximum(corners[0][..., :2], corners[1][..., :2]),
        np.minimum(corners[0][..., 2:], corners[1][..., 2:]),
    )
    common = np.prod(np.maximum(high - low, 0.0), axis=-1)
    areas = [np.prod(corner[..., 2:] - corner[..., :2], axis=-1) for corner in corners]
    return np.asarray(common / (areas[0] + areas[1] - common))
