"""Coefficients that may differ from tensor to tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from mirepoix.merging._rule import Coefficient, Coefficients
from mirepoix.types import InputError

__all__ = ["check_coefficients", "resolve"]


def check_coefficients(coefficients: Coefficients | None, labels: Sequence[str]) -> None:
    """Raise unless there is one coefficient per member, and every number and pattern can be read."""
    if coefficients is None:
        return
    if isinstance(coefficients, Mapping) and set(coefficients) != set(labels):
        raise InputError(
            f"coefficients: expected the members {', '.join(map(repr, labels))}, got "
            f"{', '.join(map(repr, coefficients))}. Name each member once."
        )
    if not isinstance(coefficients, Mapping) and not _is_row(coefficients):
        raise InputError(f"coefficients: expected one per member, got {coefficients!r}. Put them in a list.")
    items = _items(coefficients, labels)
    if len(items) != len(labels):
        raise InputError(f"expected one coefficient per member, got {len(items)} for {len(labels)} members.")
    for item in items:
        if _is_row(item):
            for pattern, value in _pairs(item):
                _finite(value)
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise InputError(
                        f"coefficients: {pattern!r} is not a regular expression: {error}."
                    ) from error
        elif not callable(item):
            _finite(item)


def resolve(coefficients: Coefficients | None, labels: Sequence[str], name: str) -> list[float]:
    """The number of each member for the tensor ``name``; 1 where no coefficients are given.

    Raises:
        InputError: If no pattern of a member matches the name.
    """
    if coefficients is None:
        return [1.0] * len(labels)
    items = _items(coefficients, labels)
    return [_value(item, label, name) for item, label in zip(items, labels, strict=True)]


def _items(coefficients: Any, labels: Sequence[str]) -> list[Coefficient]:
    return (
        [coefficients[label] for label in labels] if isinstance(coefficients, Mapping) else list(coefficients)
    )


def _is_row(item: object) -> bool:
    """Whether it is a sequence or an array, which can be read again and in the same order."""
    if isinstance(item, str | bytes):
        return False
    return isinstance(item, Sequence) or getattr(item, "ndim", 0) > 0


def _pairs(item: Any) -> list[tuple[str, Any]]:
    pairs = list(item)
    for pair in pairs:
        if not isinstance(pair, Sequence) or len(pair) != 2 or not isinstance(pair[0], str):
            raise InputError(
                f"coefficients: expected pairs of a pattern and a number, got {pair!r} in {item!r}."
            )
    return pairs


def _value(item: Any, label: str, name: str) -> float:
    if _is_row(item):
        for pattern, value in item:
            if re.search(pattern, name):
                return _finite(value)
        raise InputError(
            f"coefficients: no pattern of member {label} matches {name!r}. End the list with ('', number) for the rest."
        )
    return _finite(item(name) if callable(item) else item)


def _finite(value: Any) -> float:
    """The number, of Python or a scalar of NumPy or torch."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"coefficients: expected finite numbers, got {value!r}.")
    return float(value)
