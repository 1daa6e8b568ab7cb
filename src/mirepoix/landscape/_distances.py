"""Two clouds of the same objects: their distances, in units that can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = ["Divergence", "Normalisation", "both_distances", "checked_distances", "clouds", "draws", "summary"]

Normalisation = Literal["quantile", "mean", "median", "dimension"] | float


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far the topologies of two clouds are apart, over subsets of their objects.

    Attributes:
        mean: Over the subsets, of the mean of both directions.
        std: Of the values of the subsets, with ``subsets - 1`` in the denominator: 0 where all objects were used at
            once, NaN where a single smaller subset was.
        p_to_q: The mean of the first direction.
        q_to_p: The mean of the other.
        points: How many objects each subset has.
        values: Of each subset, the mean of both directions.
    """

    mean: float
    std: float
    p_to_q: float
    q_to_p: float
    points: int
    values: tuple[float, ...]


def summary(directions: list[tuple[float, float]], points: int, objects: int) -> Divergence:
    """The divergence over subsets, from the two directions of each."""
    table = np.array(directions)  # (subsets, 2)
    values = table.mean(axis=1)
    alone = 0.0 if points == objects else math.nan
    std = float(values.std(ddof=1)) if len(values) > 1 else alone
    p_to_q, q_to_p = table.mean(axis=0).tolist()
    return Divergence(float(values.mean()), std, p_to_q, q_to_p, points, tuple(values.tolist()))


def draws(objects: int, subsets: int, subset_size: int, seed: int) -> Iterator[Int[Tensor, " points"]]:
    """Subsets of the objects, each without repetition; all objects, once, if they are no more than a subset."""
    if subsets < 1 or subset_size < 3:
        raise InputError(
            f"expected at least one subset of at least 3 points, got subsets={subsets} and subset_size={subset_size}."
        )
    if objects <= subset_size:
        yield torch.arange(objects)
        return
    random = stream("rtd", seed)
    for _ in range(subsets):
        yield torch.from_numpy(random.choice(objects, subset_size, replace=False))


def clouds(
    name: str, p: Float[Tensor, "objects ..."], q: Float[Tensor, "objects ..."]
) -> tuple[Float[Tensor, "objects p_flat"], Float[Tensor, "objects q_flat"]]:
    """Both clouds as matrices of one type, no narrower than float32, after all checks."""
    for which, x in (("p", p), ("q", q)):
        if not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
            raise InputError(
                f"{name}: {which} must be floating-point features (objects, features), got {x.dtype} of shape "
                f"{tuple(x.shape)}."
            )
    if len(p) != len(q):
        raise InputError(
            f"{name}: row i of p and row i of q must be the same object, got {len(p)} rows in p and {len(q)} in q."
        )
    if len(p) < 3:
        raise InputError(f"{name}: expected at least 3 objects, got {len(p)}.")
    if p.device != q.device:
        raise InputError(f"{name}: p is on {p.device} and q on {q.device}; bring them to one device.")
    for which, x in (("p", p), ("q", q)):
        rows = (~x.detach().isfinite().flatten(1).all(dim=1)).nonzero()
        if len(rows):
            raise InputError(
                f"{name}: {which} is not finite for {len(rows)} of {len(x)} objects, the first is row {int(rows[0])}."
            )
    dtype = torch.promote_types(torch.promote_types(p.dtype, q.dtype), torch.float32)
    return p.to(dtype).flatten(1), q.to(dtype).flatten(1)


def both_distances(
    p: Float[Tensor, "objects p_features"],
    q: Float[Tensor, "objects q_features"],
    normalisation: Normalisation,
    *,
    detach: bool = True,
) -> tuple[Float[Tensor, "objects objects"], Float[Tensor, "objects objects"]]:
    """The Euclidean distances inside each cloud, each divided by its own constant."""
    d_p, d_q = (_normalised(x, normalisation, detach, which) for which, x in (("p", p), ("q", q)))
    return d_p, d_q


def checked_distances(
    name: str, d_p: Float[Tensor, "objects objects"], d_q: Float[Tensor, "objects objects"]
) -> tuple[Float[Tensor, "objects objects"], Float[Tensor, "objects objects"]]:
    """Both matrices in one type, no narrower than float32, and symmetric to the last bit."""
    if d_p.ndim != 2 or d_p.shape != d_q.shape or d_p.shape[0] != d_p.shape[1] or len(d_p) < 3:
        raise InputError(
            f"{name}: expected two square matrices of distances between the same objects, at least 3, got shapes "
            f"{tuple(d_p.shape)} and {tuple(d_q.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(d_p.dtype, d_q.dtype), torch.float32)
    for which, d in (("d_p", d_p), ("d_q", d_q)):
        if not bool((d.isfinite() & (d >= 0)).all()) or bool(d.diagonal().any()):
            raise InputError(f"{name}: {which} must be finite, not negative, and zero on the diagonal.")
        if not torch.allclose(d, d.T, rtol=1e-3 if d.element_size() < 4 else 1e-5, atol=0):
            raise InputError(f"{name}: {which} must be symmetric.")
    d_p, d_q = d_p.to(dtype), d_q.to(dtype)
    return (d_p + d_p.T) / 2, (d_q + d_q.T) / 2


def _normalised(
    x: Float[Tensor, "objects features"], normalisation: Normalisation, detach: bool, which: str
) -> Float[Tensor, "objects objects"]:
    # Not by a product of matrices: its cancellation gives copies of a point a distance, and that a gradient of NaN.
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    if not bool(distances.isfinite().all()):
        raise InputError(
            f"distances between the objects in {which} are too large for {x.dtype}: scale the features down."
        )
    constant: float | Tensor
    match normalisation:
        case "quantile":
            constant = _quantile(distances, 0.9)
        case "mean":
            constant = distances.mean()
        case "median":
            constant = _quantile(distances, 0.5)
        case "dimension":
            constant = math.sqrt(x.shape[1])
        case float() | int() if 0 < normalisation < math.inf and normalisation is not True:
            constant = float(normalisation)
        case _:
            raise InputError(
                f"normalisation must be 'quantile', 'mean', 'median', 'dimension' or a number above 0, got "
                f"{normalisation!r}."
            )
    if isinstance(constant, Tensor):
        if not constant > 0:
            name = "0.9-quantile" if normalisation == "quantile" else normalisation
            raise InputError(
                f"the {name} of the distances in {which} is {constant.item()}: too many of its {len(x)} objects "
                f"coincide. Leave the copies out, or give a fixed normalisation."
            )
        constant = constant.detach() if detach else constant
    return distances / constant


def _quantile(distances: Float[Tensor, "objects objects"], share: float) -> Float[Tensor, ""]:
    """Over all entries, the diagonal too; `torch.quantile` refuses more than 4,096 objects."""
    place = share * (distances.numel() - 1)
    flat, low = distances.flatten(), math.floor(place)
    lower = flat.kthvalue(low + 1).values
    upper = flat.kthvalue(min(low + 2, flat.numel())).values
    return lower + (place - low) * (upper - lower)
