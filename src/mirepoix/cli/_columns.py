"""Tables of text: aligned columns, and one word for each number that is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["aligned", "plain", "written"]


def aligned(lines: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Rows of cells as text: the first ``left`` columns begin together, the others end together."""
    rows = [list(line) for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def written(value: float | None, form: str = ".3f") -> str:
    """A number, or a word where there is none."""
    if value is None or math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    text = format(value, form)
    return text.removeprefix("-") if not float(text) else text


def plain(value: Any) -> Any:
    """The same values as JSON has them: NaN is ``None``, infinity the text ``"infinite"`` or ``"-infinite"``.

    Bytes in the name of a file that are no text are spelled out.
    """
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if math.isinf(value):
            return "infinite" if value > 0 else "-infinite"
    return value
