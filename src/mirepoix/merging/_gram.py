"""Inner products of members: whatever a rule needs to know about their angles and lengths.

They are summed in float64 over fixed blocks, each by NumPy's pairwise sum and the blocks in order, without BLAS:
the bits depend neither on threads nor on the size of the pieces that are merged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mirepoix.merging._rule import Array, TensorInputs

__all__ = ["cosines", "gram", "products"]


def products(members: Sequence[Array], base: Array | None = None) -> Array:
    """Inner products along the last axis of all pairs, of the differences from the base if there is one."""
    vectors = [
        x.astype(np.float64, copy=False) if base is None else np.subtract(x, base, dtype=np.float64)
        for x in members
    ]
    count = len(vectors)
    out = np.empty((count, count, *vectors[0].shape[:-1]))
    for i in range(count):
        for j in range(i + 1):
            out[i, j] = out[j, i] = (vectors[i] * vectors[j]).sum(-1)
    return out


def gram(tensor: TensorInputs, *, deltas: bool) -> Array:
    """Inner products of all pairs of members, or of their differences from the base."""
    count = len(tensor.labels)
    total = np.zeros((count, count))
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is judged on the result
        for _, members, base in tensor.blocks():
            total += products(members, base if deltas else None)
    return total


def cosines(gram: Array) -> Array:
    """Cosines from inner products, over the first two axes; 0 where a vector is zero, exactly 1 for copies."""
    squares = np.einsum("ii...->i...", gram)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # sqrt(a) * sqrt(b) would round copies away from 1, and a * b could overflow.
        size = np.sqrt(np.abs(squares[:, None] / gram)) * np.sqrt(np.abs(squares[None] / gram))
        out = np.where(gram == 0, 0.0, np.clip(np.sign(gram) / size, -1.0, 1.0))
    return np.where(np.isnan(gram), np.nan, out)
