"""Coefficients that may differ from tensor to tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from mirepoix.merging._rule import Coefficient, Coefficients
from mirepoix.types import InputError

__all__ = ["check_coefficients", "resolve"]


def check_coefficients(coefficients: Coefficients | None, labels: Sequence[str]) -> None:
    """Raise unless there is one coefficient per member, and every number and pattern can be read."""
    if coefficients is None:
        return
    if isinstance(coefficients, Mapping):
        if set(coefficients) != set(labels):
            raise InputError(
                f"coefficients: expected the members {', '.join(labels)}, got {', '.join(coefficients)}. "
                "Name each member once."
            )
        items = list(coefficients.values())
    else:
        items = list(coefficients)
        if len(items) != len(labels):
            raise InputError(
                f"expected one coefficient per member, got {len(items)} for {len(labels)} members."
            )
    for item in items:
        if isinstance(item, int | float):
            _finite(item)
        elif not callable(item):
            for pattern, value in item:
                _finite(value)
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise InputError(
                        f"coefficients: {pattern!r} is not a regular expression: {error}."
                    ) from error


def resolve(coefficients: Coefficients | None, labels: Sequence[str], name: str) -> list[float]:
    """The number of each member for the tensor ``name``; 1 where no coefficients are given.

    Raises:
        InputError: If no pattern of a member matches the name.
    """
    if coefficients is None:
        return [1.0] * len(labels)
    items = [coefficients[label] for label in labels] if isinstance(coefficients, Mapping) else coefficients
    return [_value(item, label, name) for item, label in zip(items, labels, strict=True)]


def _value(item: Coefficient, label: str, name: str) -> float:
    if isinstance(item, int | float):
        return float(item)
    if callable(item):
        return _finite(item(name))
    for pattern, value in item:
        if re.search(pattern, name):
            return float(value)
    raise InputError(
        f"coefficients: no pattern of member {label} matches {name!r}. End the list with ('', number) for the rest."
    )


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"coefficients: expected finite numbers, got {value!r}.")
    return float(value)
