"""How numbers and names are printed: fractions as percent, one word for what is not available."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

__all__ = [
    "NOT_AVAILABLE",
    "amount",
    "cleaned",
    "decimal",
    "decimals",
    "finite",
    "mean",
    "percent",
    "points",
    "ratio",
    "setting",
]

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


def decimals(values: Iterable[Any]) -> int:
    """How many decimals tell numbers of one kind apart: those of three digits of their extent."""
    known = [number for value in values if (number := finite(value)) is not None]
    largest = max(map(abs, known), default=0.0)
    extent = max(known, default=0.0) - min(known, default=0.0)
    if extent <= 1e-9 * largest:  # equal, up to rounding
        extent = largest
    return min(8, max(0, 2 - math.floor(math.log10(extent)))) if extent else 2


def decimal(value: Any, error: Any = None, *, digits: int = 2) -> str:
    """A number with a fixed number of decimals: ``-0.25, 0.1`` is ``−0.25 ± 0.10``."""
    number, spread = finite(value), finite(error)
    if number is None:
        return NOT_AVAILABLE
    if abs(number) >= 1e9 or 0 < abs(number) < 1e-6:
        text = f"{number:.4g}"
    else:
        text = f"{number:,.{digits}f}"
        text = text.lstrip("-") if not text.strip("-0.,") else text
    text = text.replace("-", "−")
    return text if spread is None else f"{text} ± {decimal(spread, digits=digits)}"


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
