"""What was measured of the members on their data, for rules that weigh by it, and the average where nothing was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mirepoix.merging._coefficients import resolve
from mirepoix.merging._inputs import Source, is_float, open_source
from mirepoix.merging._rule import Array, Coefficients, TensorInputs
from mirepoix.types import InputError

__all__ = ["mean", "opened", "positive_weights", "statistics", "weights_of"]


def mean(members: Sequence[Array], weights: Sequence[Array | float]) -> Array:
    """The weighted average per entry, exact where all members are equal."""
    total: Array | float = 0.0
    same: Array | bool = True
    for x, weight in zip(members, weights, strict=True):
        total = total + np.multiply(x, weight, dtype=np.float64)
        same = same & (x == members[0])
    out = np.asarray(total / sum(weights[1:], start=weights[0]), dtype=members[0].dtype)
    return np.where(same, members[0], out)


def opened(statistics: Any, labels: Sequence[str], what: str) -> dict[str, Source]:
    """The statistics of each member by its name."""
    if isinstance(statistics, Mapping):
        if set(statistics) != set(labels):
            raise InputError(
                f"{what}: expected the members {', '.join(labels)}, got {', '.join(map(str, statistics))}. "
                "Name each once."
            )
        given = [statistics[label] for label in labels]
    else:
        given = list(statistics)
        if len(given) != len(labels):
            raise InputError(f"{what}: expected one per member ({len(labels)}), got {len(given)}.")
    for label, one in zip(labels, given, strict=True):
        if not isinstance(one, Mapping):
            raise InputError(
                f"{what} of member {label}: expected tensors by name, got {type(one).__name__}. Open a file with "
                "`open_weights`."
            )
    return {
        label: open_source(one, f"{what} of member {label}") for label, one in zip(labels, given, strict=True)
    }


def statistics(sources: Sequence[Source], name: str, shape: tuple[int, ...]) -> list[Source] | None:
    """The sources, if they hold a tensor of that name and shape, or None if none does."""
    have = [source for source in sources if name in source]
    if not have:
        return None
    if len(have) < len(sources):
        missing = next(source for source in sources if name not in source)
        raise InputError(
            f"{missing.label}: has no {name!r}, which {have[0].label} has. Measure all members alike, or leave it out "
            "of all."
        )
    for source in sources:
        found, code = source.shape(name), source.code(name)
        if found != shape or not is_float(code):
            raise InputError(
                f"{source.label}: {name!r} must be floats of shape {shape}, got {code} of {found}."
            )
    return list(sources)


def weights_of(coefficients: Coefficients | None, labels: Sequence[str], tensor: TensorInputs) -> list[float]:
    """The coefficients of those of all members that hold a tensor."""
    values = dict(zip(labels, resolve(coefficients, labels, tensor.name), strict=True))
    return [values[label] for label in tensor.labels]


def positive_weights(
    coefficients: Coefficients | None, labels: Sequence[str], tensor: TensorInputs
) -> list[float]:
    """The same, for rules that divide by weighted sums of what is positive."""
    weights = weights_of(coefficients, labels, tensor)
    if min(weights) < 0 or not any(weights):
        raise InputError(
            f"coefficients for {tensor.name!r}: expected numbers of at least 0, not all 0, got {weights}."
        )
    return weights
