"""Model stock: how far to go from the base towards the mean, read off the angles between the members."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mirepoix.merging._gram import cosines, gram, products
from mirepoix.merging._rule import BLOCK, Array, Piece, Rule, TensorInputs
from mirepoix.merging._statistics import mean
from mirepoix.types import InputError

__all__ = ["ModelStock"]


@dataclass(frozen=True)
class ModelStock(Rule):
    r"""The point between the base and the mean of the members that is nearest to the centre of their shell.

    .. math:: \theta = (1 - t)\, \theta_0 + \frac{t}{N} \sum_i \theta_i, \qquad
        t = \frac{N \cos\varphi}{1 + (N - 1)\cos\varphi},

    where :math:`\cos\varphi` is the mean cosine over pairs of differences from the base. Members that went the
    same way (:math:`\cos\varphi = 1`) give their mean, members that went unrelated ways (0) the base. A pair with
    a member that did not move counts as unrelated.

    Args:
        scope: One :math:`t` per tensor, or one per row (output unit or filter) of tensors of two axes or more,
            which are then held in memory whole.
        clamp: Keep :math:`t` in [0, 1]. The published formula goes below 0 for members that went opposite ways.

    Raises:
        InputError: With fewer than two members, or without ``clamp`` where differences cancel and :math:`t`
            is infinite.

    Example:
        >>> import numpy as np
        >>> from mirepoix.merging import ModelStock, merge
        >>> members = [{"w": np.array([2.0, 0.0])}, {"w": np.array([1.0, 3.0**0.5])}]  # 60 degrees apart
        >>> merge(members, ModelStock(), base={"w": np.zeros(2)})["w"].round(4).tolist()  # t = 2/3
        [1.0, 0.5774]

    References:
        Jang, Yun, Han (2024), *Model stock: all we need is just a few fine-tuned models*.
    """

    method = "model-stock"
    needs_base = True

    scope: Literal["tensor", "row"] = "tensor"
    clamp: bool = True

    def __post_init__(self) -> None:
        if self.scope not in ("tensor", "row"):
            raise InputError(f"scope: expected 'tensor' or 'row', got {self.scope!r}.")

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """Rows must not be cut."""
        return self.scope == "row"

    def check(self, labels: Sequence[str]) -> None:
        """At least two."""
        if len(labels) < 2:
            raise InputError(f"model stock: expected at least 2 members, got {len(labels)}.")

    def measure(self, tensor: TensorInputs, survey: Any) -> float | None:
        """The place of the tensor between base and mean; rows are measured when they are combined."""
        if self.scope == "row" and len(tensor.shape) >= 2:
            return None
        return float(self._place(gram(tensor, deltas=True), tensor.name))

    def combine(self, piece: Piece, members: Sequence[Array], base: Array | None, measured: Any) -> Array:
        """The point between base and mean."""
        assert base is not None
        if measured is not None:
            return _between(base, members, measured)
        out = np.empty_like(base)
        columns = math.prod(piece.shape[1:])
        for rows in _slices(base.size, columns):
            first = base[rows].reshape(-1, columns)
            others = [x[rows].reshape(-1, columns) for x in members]
            t = self._place(products(others, first), piece.name).astype(base.dtype)
            out[rows] = _between(first, others, t[:, None]).reshape(-1)
        return out

    def _place(self, inner: Array, name: str) -> Array:
        count = len(inner)
        if count == 1:  # a tensor that only one member holds
            return np.ones(inner.shape[2:])
        cos = cosines(inner)[np.triu_indices(count, 1)].mean(0)
        below = 1 + (count - 1) * cos
        if not self.clamp and (below < 1e-12).any():
            raise InputError(
                f"{name!r}: the members' differences from the base cancel, so model stock is infinitely far from "
                "the mean. Use clamp=True."
            )
        t = count * cos / np.where(below < 1e-12, 1.0, below)
        return np.clip(t, 0.0, 1.0) if self.clamp else np.asarray(t)


def _slices(size: int, columns: int) -> Iterator[slice]:
    """Flat entries of a few whole rows at a time."""
    step = max(1, BLOCK // max(1, columns)) * columns
    return (slice(start, min(start + step, size)) for start in range(0, size, max(1, step)))


def _between(base: Array, members: Sequence[Array], t: Array | float) -> Array:
    centre = mean(members, [1.0] * len(members))
    # The ends and equal entries are exact, signs of zeros included.
    out = np.where((t == 0) | (centre == base), base, base * (1 - t) + centre * t)
    return np.asarray(np.where(t == 1, centre, out))
