"""The way between weights as a figure: the value against the chord, or coloured over the triangle."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirepoix.checkpoints import atomic_path
from mirepoix.landscape._connect import Connection
from mirepoix.types import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot"]

INK, MUTED, VALUE, WORST = "#1b1f24", "#59636e", "#0b5cc0", "#a24a00"
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])


def plot(
    connection: Connection,
    path: str | PathLike[str],
    *,
    names: Sequence[str] = ("A", "B", "C"),
    label: str = "value",
    scale: float = 1.0,
) -> None:
    """Draw the values of a connection into a file.

    Between two ends: the value, the chord, and the barrier where there is one. Between three: the value as colour
    over the triangle, whose corners are the ends.

    Args:
        connection: As from `connect`.
        path: Ends in ``.svg`` or ``.png``; written whole or not at all.
        names: Of the ends.
        label: What the value is.
        scale: What values are multiplied with, such as 100 for percent.

    Raises:
        InputError: For another ending; when the path cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".svg", ".png"):
        raise InputError(
            f"{path}: expected a name ending in .svg or .png, got {path.suffix or 'no suffix'!r}."
        )
    import matplotlib
    from matplotlib.figure import Figure

    # Settings of the user must not change the bytes.
    with matplotlib.rc_context(), atomic_path(path) as temporary:
        matplotlib.rcdefaults()
        settings: Any = {
            "text.parse_math": False,  # a file may be called "$x"
            "svg.fonttype": "none",
            "svg.hashsalt": "mirepoix",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=(5.3, 3.5), layout="constrained")
        draw = _line if len(connection.points[0].coefficients) == 2 else _triangle
        draw(figure, connection, [_short(name) for name in names], label, scale)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)


def _line(figure: Figure, connection: Connection, names: Sequence[str], label: str, scale: float) -> None:
    axes = figure.subplots()
    t = [point.coefficients[1] for point in connection.points]
    axes.plot(t, [scale * point.chord for point in connection.points], "--", color=MUTED, label="chord")
    axes.plot(
        t, [scale * point.value for point in connection.points], "-o", color=VALUE, markersize=4, label=label
    )
    worst = connection.worst
    if 0 < connection.barrier < float("inf"):
        axes.plot(
            [worst.coefficients[1]] * 2,
            [scale * worst.value, scale * worst.chord],
            color=WORST,
            label=f"barrier {scale * connection.barrier:.3g}",
        )
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], [names[0], "0.25", "0.5", "0.75", names[1]])
    axes.set_ylabel(label)
    figure.legend(loc="outside upper left", ncols=3)


def _triangle(figure: Figure, connection: Connection, names: Sequence[str], label: str, scale: float) -> None:
    axes = figure.subplots()
    known = [point for point in connection.points if np.isfinite(point.value)]
    x, y = (np.array([point.coefficients for point in connection.points]) @ CORNERS).T
    axes.scatter(
        x, y, s=110, facecolors="none", edgecolors=MUTED, linewidths=0.6
    )  # also where there is no value
    x, y = (np.array([point.coefficients for point in known]) @ CORNERS).T
    dots = axes.scatter(x, y, s=110, c=[scale * point.value for point in known], cmap="viridis")
    if connection.barrier > 0:
        x, y = np.array(connection.worst.coefficients) @ CORNERS
        ring: Any = {"facecolors": "none", "edgecolors": WORST, "linewidths": 2.5}
        axes.scatter(x, y, s=210, label="worst against the chord", **ring)
        figure.legend(loc="outside upper left")
    for (x, y), name, below in zip(CORNERS, names, (True, True, False), strict=True):
        axes.annotate(
            name,
            (x, y),
            (0, -12 if below else 12),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            color=INK,
        )
    axes.set_aspect("equal")
    axes.margins(0.15)
    axes.set_axis_off()
    figure.colorbar(dots, label=label)


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else "…" + name[1 - length :]
