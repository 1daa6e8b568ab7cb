"""What the decompositions share: predictions read in blocks, targets, and means over samples with their intervals.

A decomposition is a mean over samples of a few terms. So the terms are kept per sample, and the means over all
samples, over a domain and over samples drawn again all come from the same table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirepoix.bootstrap import Interval, bootstrap
from mirepoix.types import InputError

__all__ = [
    "Array",
    "blocks",
    "check_finite",
    "check_shape",
    "domain_indices",
    "finite",
    "float64",
    "log_softmax",
    "mean_intervals",
    "plain",
    "read_targets",
    "terms_to_dict",
    "unit_intervals",
]

Array = NDArray[np.float64]

BLOCK = 2**22  # numbers of predictions in memory at a time in float64, 32 MiB


def float64(x: Any) -> Array:
    """Of a tensor or an array, on the CPU."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().double().numpy()
    return np.asarray(x, dtype=np.float64)


def check_shape(caller: str, predictions: Any, *axes: str) -> tuple[int, ...]:
    """The shape, once it has all axes and none is empty."""
    shape = tuple(int(size) for size in np.shape(predictions))
    if len(shape) != len(axes):
        raise InputError(f"{caller}: expected predictions of shape ({', '.join(axes)}), got {shape}.")
    for axis, size in zip(axes, shape, strict=True):
        if size == 0:
            raise InputError(f"{caller}: expected at least one of {axis}, got predictions of shape {shape}.")
    return shape


def blocks(predictions: Any) -> Iterator[tuple[slice, Array]]:
    """Predictions ``(..., samples, classes)`` in float64, some samples at a time."""
    shape = np.shape(predictions)
    samples = shape[-2]
    step = max(1, BLOCK * samples // max(1, math.prod(shape)))
    for start in range(0, samples, step):
        part = slice(start, min(start + step, samples))
        yield part, float64(predictions[..., part, :])


def check_finite(caller: str, block: Array, part: slice, axes: Sequence[str]) -> None:
    """Raise for the first number that is NaN or infinite, with its place."""
    good = np.isfinite(block).all(axis=-1)
    if not good.all():
        place = list(np.argwhere(~good)[0])
        place[-1] += part.start
        where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, place, strict=True))
        raise InputError(
            f"{caller}: predictions must be finite, those of {where} are not. Leave out what diverged."
        )


def log_softmax(logits: Array, caller: str, part: slice, axes: Sequence[str]) -> Array:
    """Over the last axis; minus infinity is allowed as long as one class is left."""
    highest = logits.max(axis=-1, keepdims=True)
    good = np.isfinite(highest[..., 0])
    if not good.all():
        place = list(np.argwhere(~good)[0])
        place[-1] += part.start
        where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, place, strict=True))
        raise InputError(
            f"{caller}: the largest logit must be a number, that of {where} is not. Leave out what diverged."
        )
    shifted = logits - highest
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def read_targets(caller: str, labels: Any, samples: int, classes: int, *, distribution: bool) -> Array:
    """Labels as ``(samples, classes)``: one-hot of classes, or the numbers that were given."""
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu()
        half = labels.is_floating_point() and labels.itemsize < 4  # NumPy has no bfloat16
        labels = (labels.float() if half else labels).numpy()
    values = np.asarray(labels)
    if np.issubdtype(values.dtype, np.integer):
        if values.shape != (samples,):
            raise InputError(
                f"{caller}: expected labels of shape ({samples},), one class per sample, got {values.shape}."
            )
        if values.min() < 0 or values.max() >= classes:
            raise InputError(
                f"{caller}: labels must lie in 0 to {classes - 1}, as there are {classes} classes, got "
                f"{values.min()} to {values.max()}."
            )
        targets = np.zeros((samples, classes))
        targets[np.arange(samples), values] = 1.0
        return targets
    if not np.issubdtype(values.dtype, np.floating) or values.shape != (samples, classes):
        raise InputError(
            f"{caller}: expected labels that are classes, shape ({samples},), or floats of shape "
            f"({samples}, {classes}), got {values.dtype} of shape {values.shape}."
        )
    targets = values.astype(np.float64)
    if not np.isfinite(targets).all():
        raise InputError(f"{caller}: labels must be finite, some are not.")
    if distribution and (targets.min() < 0 or np.abs(targets.sum(1) - 1).max() > 1e-6):
        raise InputError(
            f"{caller}: soft labels must be at least 0 and sum to one over classes, to 1e-6; sums go from "
            f"{targets.sum(1).min():.6g} to {targets.sum(1).max():.6g}. Divide them by their sums, in float32 at least."
        )
    return targets


def domain_indices(caller: str, domains: Any, samples: int) -> dict[int, NDArray[np.int64]]:
    """The samples of each domain, the domains in increasing order; nothing without domains."""
    if domains is None:
        return {}
    values = domains.detach().cpu().numpy() if hasattr(domains, "detach") else np.asarray(domains)
    if values.shape != (samples,) or not np.issubdtype(values.dtype, np.integer):
        raise InputError(
            f"{caller}: expected domains of shape ({samples},), one index per sample, got {values.dtype} of shape "
            f"{values.shape}."
        )
    return {int(domain): np.flatnonzero(values == domain) for domain in np.unique(values)}


def mean_intervals(rows: Array, *, resamples: int, seed: int) -> list[Interval]:
    """The means of the columns of ``(samples, numbers)``, samples drawn again; no ends with 0 resamples."""
    samples = len(rows)
    with np.errstate(invalid="ignore"):  # an infinite mean has no interval
        value = rows.mean(axis=0)
        centred = rows - value  # so that a mean of equal values has an interval of no width

    def mean(drawn: NDArray[np.int64]) -> Array:
        counts = np.bincount(drawn, minlength=samples).astype(np.float64)
        with np.errstate(invalid="ignore"):
            return np.asarray(value + counts @ centred / samples)

    return unit_intervals(mean, samples, value, resamples=resamples, seed=seed)


def unit_intervals(
    statistic: Callable[[NDArray[np.int64]], Any],
    units: int,
    values: Sequence[float] | Array,
    *,
    resamples: int,
    seed: int,
) -> list[Interval]:
    """As `bootstrap`, around ``values`` that were computed another way; no ends with 0 resamples."""
    if resamples == 0:
        return [Interval(float(value), math.nan, math.nan) for value in values]
    found = bootstrap(statistic, units, resamples=resamples, seed=seed)
    return [dataclasses.replace(each, value=float(value)) for each, value in zip(found, values, strict=True)]


def finite(value: float) -> float | None:
    """The number, or ``None`` for what JSON cannot hold."""
    return float(value) if math.isfinite(value) else None


def plain(interval: Interval | None) -> dict[str, float | None] | None:
    """An interval as plain values."""
    if interval is None:
        return None
    return {
        "value": finite(interval.value),
        "low": finite(interval.low),
        "high": finite(interval.high),
        "level": interval.level,
    }


def terms_to_dict(found: Any) -> dict[str, Any]:
    """A decomposition, and those of its domains, as plain values."""
    values: dict[str, Any] = {}
    for name in found.__dataclass_fields__:
        value = getattr(found, name)
        if isinstance(value, Interval):
            values[name] = plain(value)
        elif name == "domains":
            values[name] = {str(domain): terms_to_dict(each) for domain, each in value.items()}
        else:
            values[name] = finite(value) if isinstance(value, float) else value
    return values
