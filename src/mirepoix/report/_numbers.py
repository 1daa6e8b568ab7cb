"""How numbers and names are printed: fractions as percent, one word for what is not available."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["NOT_AVAILABLE", "amount", "cleaned", "finite", "mean", "percent", "points", "ratio", "setting"]

NOT_AVAILABLE = "n/a"


def finite(value: Any) -> float | None:
    """The value as a float, or None for whatever is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def mean(values: list[float | None]) -> float | None:
    """The mean, available only if every value is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def percent(value: Any, error: Any = None) -> str:
    """A fraction in percent with one decimal, without the sign: ``0.9314, 0.004`` is ``93.1 ± 0.4``."""
    fraction, spread = finite(value), finite(error)
    if fraction is None:
        return NOT_AVAILABLE
    text = f"{100 * fraction:.1f}"
    return text if spread is None else f"{text} ± {100 * spread:.1f}"


def points(value: Any) -> str:
    """A difference of two fractions in points of percent, with its sign."""
    fraction = finite(value)
    if fraction is None:
        return NOT_AVAILABLE
    text = f"{abs(100 * fraction):.1f}"
    if text == "0.0":
        return text
    return f"+{text}" if fraction > 0 else f"−{text}"


def ratio(value: Any) -> str:
    """A number with two decimals; ``"infinite"`` is the sign for it."""
    if value == "infinite" or value == math.inf:
        return "∞"
    number = finite(value)
    return NOT_AVAILABLE if number is None else f"{number:.2f}".replace("-", "−")


def amount(number: int, noun: str, plural: str | None = None) -> str:
    """``1 run``, ``8 runs``, ``1,200 images``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def setting(value: Any) -> str:
    """A value of a configuration."""
    if value is None:
        return NOT_AVAILABLE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def cleaned(value: Any) -> Any:
    """The same plain data with every string printable on one line.

    Domains are named by folders of strangers: a control character would be obeyed by a terminal, break an
    SVG, or end the row of a table.
    """
    if isinstance(value, str):
        return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in value)
    if isinstance(value, dict):
        return {cleaned(key): cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(item) for item in value]
    return value
