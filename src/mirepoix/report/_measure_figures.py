"""The figures of measures: pairs of members, pairs by group, accuracy against diversity, a plane of three weights.

Each function takes plain numbers and returns a `Drawn`: the drawing for the light and the dark theme, and the numbers
that are seen in it. Amounts are told by the opacity of one colour, which reads the same way on both backgrounds, and
series by their marker or outline as well as by their colour. What is not finite is never drawn as a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mirepoix.report._figure_files import Drawn
from mirepoix.report._figures import COLORS, Plot
from mirepoix.report._numbers import amount, cleaned
from mirepoix.types import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_heatmap", "draw_histogram", "draw_plane", "draw_scatter"]

_COLORS = ("average", "ensemble", "ink", "muted")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_LINES = ("-", "--", "-.", ":")
_SIZE = (380.0, 260.0)
_LEVELS = 16  # of opacity
_FAINT, _FULL = 0.08, 0.95
_READABLE = 0.5  # the fullest cell on which a number in ink has a contrast of 4.5 in both themes
_WRITTEN = 9  # members up to which each value is written in its cell
_NAMED = 24  # members up to which each is named


def draw_heatmap(
    matrix: ArrayLike,
    members: Sequence[str],
    *,
    measure: str,
    groups: Sequence[str] | None = None,
    title: str = "",
    name: str = "heatmap",
    section: str = "why",
    write: Callable[[float], str] = "{:.2f}".format,
) -> Drawn:
    """A measure of all pairs of members: the fuller the colour, the larger the value.

    The diagonal is not drawn, as a member is no pair. A value that is not known has an empty cell, an infinite one
    has the sign of it.

    Args:
        matrix: The measure of members i and j at (i, j), members × members.
        members: Their names.
        measure: What the values are.
        groups: The group of each member; members of a group are put beside each other, and groups are parted by
            a line.
        title: Above the drawing.
        name: Of the file.
        section: Of the page.
        write: How a value is written.

    Returns:
        The drawing with the columns ``first``, ``second``, ``value``, and ``first_group``, ``second_group`` where
        there are groups.

    Raises:
        InputError: If matrix, members and groups are not as many.
    """
    values = np.asarray(matrix, dtype=np.float64)
    if values.shape != (len(members),) * 2 or (groups is not None and len(groups) != len(members)):
        raise InputError(
            f"heatmap: expected a matrix of {len(members)} × {len(members)} for {len(members)} members"
            f"{'' if groups is None else f' in {len(groups)} groups'}, got shape {values.shape}."
        )
    order = list(range(len(members)))
    if groups is not None:
        order.sort(key=lambda i: list(groups).index(groups[i]))
    values = values[np.ix_(order, order)]
    names = [str(cleaned(members[i])) for i in order]
    kinds = [] if groups is None else [str(cleaned(groups[i])) for i in order]
    title, measure = cleaned(title), cleaned(measure)
    off = ~np.eye(len(names), dtype=bool)
    low, high = _range(values[off])

    def draw(figure: Figure) -> None:
        axes = _with_scale(figure, low, high, measure, write, shown=len(names) > _WRITTEN)
        _cells(axes, values, off, low, high, _READABLE if len(names) <= _WRITTEN else _FULL)
        if len(names) <= _WRITTEN:
            for i, j in zip(*off.nonzero(), strict=True):
                text = _written(values[i, j], write)
                axes.text(j, i, text, ha="center", va="center", fontsize=9, color=_ink("ink"))
        for k in range(1, len(kinds)):
            if kinds[k] != kinds[k - 1]:
                axes.axhline(k - 0.5, color=_ink("ink"), linewidth=1.2)
                axes.axvline(k - 0.5, color=_ink("ink"), linewidth=1.2)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if len(names) <= _NAMED:
            axes.set_xticks(range(len(names)), [_short(each, 14) for each in names], rotation=90, fontsize=9)
            axes.set_yticks(range(len(names)), [_short(each, 14) for each in names], fontsize=9)
        else:
            axes.set_xlabel("member")
            axes.set_ylabel("member")
        if title:
            axes.set_title(_short(title, 48), loc="left")

    told = _told(values[off], write)
    grouped = f" Lines part the groups {', '.join(dict.fromkeys(kinds))}." if len(set(kinds)) > 1 else ""
    unknown = int((~np.isfinite(values[off])).sum())
    missing = f" Not finite: {amount(unknown // 2, 'pair')}." if unknown else ""
    plot = Plot(
        name=name,
        section=section,
        alt=f"{_capital(measure)} of all pairs of {amount(len(names), 'member')}{_of(title)}: {told}.",
        caption=f"{_capital(measure)} of pairs of members: {told}. The fuller, the larger.{grouped}{missing}",
        size=(380, 360) if len(names) > 3 else (380, 260),
        draw=draw,
    )
    columns = ("first", "second", "value", *(("first_group", "second_group") if kinds else ()))
    rows = [
        (names[i], names[j], float(values[i, j]), *((kinds[i], kinds[j]) if kinds else ()))
        for i in range(len(names))
        for j in range(len(names))
        if i != j
    ]
    return Drawn(plot, columns, tuple(rows))


def draw_histogram(
    series: Mapping[str, Sequence[float]],
    *,
    what: str,
    title: str = "",
    name: str = "histogram",
    section: str = "why",
    bins: int | None = None,
) -> Drawn:
    """How values are spread in each of some groups, each as shares of its own total, with a line at its mean.

    Args:
        series: Values by the name of their group, such as the diversity of pairs ``within`` and ``across`` groups.
        what: What the values are.
        title: Above the drawing.
        name: Of the file.
        section: Of the page.
        bins: How many bins the range of all values has; by default the root of their number, from 5 to 20.

    Returns:
        The drawing with the columns ``group`` and ``value``, one row per value, those left out as well.

    Raises:
        InputError: If no value is finite.
    """
    what, title = cleaned(what), cleaned(title)
    every = {str(cleaned(group)): np.asarray(values, dtype=np.float64) for group, values in series.items()}
    known = {group: values[np.isfinite(values)] for group, values in every.items()}
    known = {group: values for group, values in known.items() if len(values)}
    if not known:
        raise InputError(f"histogram: expected at least one finite value of {what}, got none.")
    together = np.concatenate(list(known.values()))
    count = bins or min(20, max(5, math.isqrt(len(together))))
    low, high = float(together.min()), float(together.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, count + 1)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for k, (group, values) in enumerate(known.items()):
            color = _ink(_COLORS[k % len(_COLORS)])
            shares = 100 * np.histogram(values, edges)[0] / len(values)
            axes.stairs(shares, edges, fill=True, color=color, alpha=0.18)
            line = _LINES[k % len(_LINES)]
            axes.stairs(shares, edges, color=color, linewidth=1.8, linestyle=line, label=_short(group, 28))
            axes.axvline(float(values.mean()), color=color, linewidth=1.2, linestyle=line)
        axes.set_xlabel(_short(what, 48))
        axes.set_ylabel("share of its pairs, percent" if len(known) > 1 else "share of pairs, percent")
        axes.set_ylim(bottom=0)
        if title:
            axes.set_title(_short(title, 48), loc="left")
        _legend(figure, len(known))

    means = "; ".join(
        f"{group}: mean {values.mean():.3g} over {amount(len(values), 'pair')}"
        for group, values in known.items()
    )
    left_out = sum(len(values) for values in every.values()) - len(together)
    plot = Plot(
        name=name,
        section=section,
        alt=f"Histogram of {what}{_of(title)}. {_capital(means)}.",
        caption=f"{_capital(means)}. Upright lines: the means."
        + (f" Left out, as not finite: {left_out}." if left_out else ""),
        size=_SIZE,
        draw=draw,
    )
    rows = tuple((group, float(value)) for group, values in every.items() for value in values)
    return Drawn(plot, ("group", "value"), rows)


def draw_scatter(
    series: Mapping[str, Sequence[tuple[float, float, str]]],
    *,
    x: str,
    y: str,
    title: str = "",
    name: str = "scatter",
    section: str = "why",
) -> Drawn:
    """One value against another, a dot each, with a marker and a colour for each series.

    Args:
        series: Triples of x, y and the name of the dot, by the name of the series.
        x: What lies along the horizontal axis.
        y: What lies along the vertical axis.
        title: Above the drawing.
        name: Of the file.
        section: Of the page.

    Returns:
        The drawing with the columns ``series``, ``name``, ``x`` and ``y``, one row per dot, those left out as well.

    Raises:
        InputError: If no dot has two finite values.
    """
    x, y, title = cleaned(x), cleaned(y), cleaned(title)
    every = [
        (str(cleaned(group)), str(cleaned(dot)), float(a), float(b))
        for group, dots in series.items()
        for a, b, dot in dots
    ]
    known = [row for row in every if math.isfinite(row[2]) and math.isfinite(row[3])]
    if not known:
        raise InputError(f"scatter: expected at least one dot with a finite {x} and {y}, got none.")
    groups = list(dict.fromkeys(row[0] for row in known))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for k, group in enumerate(groups):
            dots = [row for row in known if row[0] == group]
            axes.plot(
                [row[2] for row in dots],
                [row[3] for row in dots],
                linestyle="none",
                marker=_MARKERS[k % len(_MARKERS)],
                markersize=6 if len(known) <= 60 else 3.5,
                markerfacecolor="none" if k % 2 else _ink(_COLORS[k % len(_COLORS)]),
                color=_ink(_COLORS[k % len(_COLORS)]),
                label=_short(group, 28),
            )
        if len(known) <= 12:
            middle = (min(row[2] for row in known) + max(row[2] for row in known)) / 2
            for _, dot, a, b in known:
                side = -1 if a > middle else 1
                axes.annotate(
                    _short(dot, 20),
                    (a, b),
                    (7 * side, 0),
                    textcoords="offset points",
                    ha="right" if side < 0 else "left",
                    va="center",
                    fontsize=9,
                    color=_ink("muted"),
                )
        axes.margins(0.12)
        axes.set_xlabel(_short(x, 48))
        axes.set_ylabel(_short(y, 48))
        if title:
            axes.set_title(_short(title, 48), loc="left")
        _legend(figure, len(groups))

    told = []
    for group in groups:
        dots = np.array([row[2:] for row in known if row[0] == group])
        one = f"{group}: {amount(len(dots), 'dot')}"
        if len(dots) > 2 and (dots.std(axis=0) > 0).all():
            one += f", correlation {np.corrcoef(dots.T)[0, 1]:.2f}".replace("-", "−")
        told.append(one)
    left_out = len(every) - len(known)
    plot = Plot(
        name=name,
        section=section,
        alt=f"{_capital(y)} against {x}{_of(title)}. {'; '.join(told)}.",
        caption=f"{_capital('; '.join(told))}."
        + (f" Left out, as not finite: {left_out}." if left_out else ""),
        size=_SIZE,
        draw=draw,
    )
    return Drawn(plot, ("series", "name", "x", "y"), tuple(every))


def draw_plane(
    x: ArrayLike,
    y: ArrayLike,
    values: ArrayLike,
    marks: Mapping[str, tuple[float, float]],
    *,
    what: str,
    title: str = "",
    name: str = "plane",
    section: str = "why",
    write: Callable[[float], str] = "{:.3g}".format,
) -> Drawn:
    """A value over the plane through three weights, as level lines: the fuller the colour, the larger the value.

    Args:
        x: Places along the first axis, increasing, as many as ``values`` has columns.
        y: Places along the second axis, increasing, as many as ``values`` has rows.
        values: At the places; what is not finite stays empty.
        marks: Where weights lie in the plane, such as the three and their average, by name.
        what: What the value is.
        title: Above the drawing.
        name: Of the file.
        section: Of the page.
        write: How a value is written.

    Returns:
        The drawing with the columns ``x``, ``y``, ``value`` and ``mark``, one row per place of the grid, then one
        per mark, without a value.

    Raises:
        InputError: If the shapes do not fit, or no value is finite.
    """
    what, title = cleaned(what), cleaned(title)
    across, up, grid = (np.asarray(array, dtype=np.float64) for array in (x, y, values))
    if grid.shape != (len(up), len(across)) or min(grid.shape) < 2:
        raise InputError(
            f"plane: expected values of shape ({len(up)}, {len(across)}), a row for each y, at least 2 by 2, got "
            f"{grid.shape}."
        )
    if not np.isfinite(grid).any():
        raise InputError(f"plane: expected at least one finite value of {what}, got none.")
    low, high = _range(grid)
    named = {str(cleaned(mark)): place for mark, place in marks.items()}

    def draw(figure: Figure) -> None:
        axes = _with_scale(figure, low, high, what, write, shown=True)
        if low < high:
            edges = np.linspace(low, high, 11)
            middles = (edges[:-1] + edges[1:]) / 2
            colors = [_faded(_opacity(value, low, high)) for value in middles]
            shown = np.ma.masked_invalid(grid)
            filled = axes.contourf(across, up, shown, levels=edges, colors=colors)
            lines = axes.contour(
                across, up, shown, levels=edges[1:-1], colors=[_ink("muted")], linewidths=0.5
            )
            for drawn in (filled, lines):
                drawn.set_array(None)  # or a map of colours would set them again when it is drawn
            filled.set(facecolor=colors, edgecolor="none")
            lines.set(facecolor="none", edgecolor=_ink("muted"))
        for k, (mark, place) in enumerate(named.items()):
            axes.plot(
                *place,
                marker="X" if k == len(named) - 1 and len(named) > 3 else "o",
                markersize=7,
                color=_ink("ink"),
                markeredgecolor=_ink("surface"),
            )
            axes.annotate(
                _short(mark, 16),
                place,
                (0, 9),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=_ink("ink"),
                bbox={"facecolor": _ink("surface"), "alpha": 0.75, "linewidth": 0, "pad": 1},
            )
        axes.set_aspect("equal")
        axes.margins(0)
        axes.grid(visible=False)
        axes.set_xlabel("distance in the plane")
        if title:
            axes.set_title(_short(title, 48), loc="left")

    missing = int((~np.isfinite(grid)).sum())
    told = f"from {write(low)} to {write(high)}"
    plot = Plot(
        name=name,
        section=section,
        alt=f"{_capital(what)} over the plane through {', '.join(named)}{_of(title)}: {told}.",
        caption=f"{_capital(what)} over the plane: {told}. The fuller, the larger."
        + (f" Empty, as not finite: {amount(missing, 'place')}." if missing else ""),
        size=(380, 330),
        draw=draw,
    )
    rows: list[tuple[Any, ...]] = [
        (float(a), float(b), float(grid[i, j]), None) for i, b in enumerate(up) for j, a in enumerate(across)
    ]
    rows += [(float(place[0]), float(place[1]), None, mark) for mark, place in named.items()]
    return Drawn(plot, ("x", "y", "value", "mark"), tuple(rows))


# Amounts as opacity.


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)


def _opacity(value: float, low: float, high: float, full: float = _FULL) -> float:
    """From faint to full; 0 where there is no value."""
    if math.isnan(value):
        return 0.0
    share = 0.5 if low == high else (value - low) / (high - low)
    level = round(min(max(share, 0.0), 1.0) * (_LEVELS - 1)) / (_LEVELS - 1)
    return _FAINT + (full - _FAINT) * level


def _faded(opacity: float) -> tuple[float, ...]:
    from matplotlib.colors import to_rgba

    return to_rgba(_ink("average"), opacity)


def _cells(
    axes: Axes,
    values: NDArray[np.float64],
    shown: NDArray[np.bool_],
    low: float,
    high: float,
    full: float,
) -> None:
    """One path for each level of opacity: a page need not hold a thousand squares."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    side = 0.94 if len(values) <= _NAMED else 1.0
    square = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]]) * side
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    levels: dict[float, list[NDArray[np.float64]]] = {}
    for i, j in zip(*shown.nonzero(), strict=True):
        opacity = _opacity(values[i, j], low, high, full)
        levels.setdefault(opacity, []).append(square + np.array([j, i]))
    for opacity, squares in sorted(levels.items()):
        if opacity:
            path = Path(np.concatenate(squares), codes * len(squares))
            axes.add_patch(PathPatch(path, facecolor=_faded(opacity), linewidth=0))


def _with_scale(
    figure: Figure, low: float, high: float, what: str, write: Callable[[float], str], *, shown: bool
) -> Axes:
    """The axes of the drawing, and beside them what each opacity means."""
    if not shown:
        axes: Axes = figure.subplots()
        return axes
    from matplotlib.patches import Rectangle

    axes, scale = figure.subplots(ncols=2, width_ratios=(22, 1))
    for level in range(_LEVELS):
        value = level / (_LEVELS - 1)
        opacity = _faded(_opacity(value, 0.0, 1.0))
        scale.add_patch(Rectangle((0, level / _LEVELS), 1, 1 / _LEVELS, facecolor=opacity, linewidth=0))
    scale.set_xlim(0, 1)
    scale.set_ylim(0, 1)
    scale.set_xticks([])
    middle = (low + high) / 2
    ticks = [(0.5, low)] if low == high else [(0.0, low), (0.5, middle), (1.0, high)]
    scale.set_yticks([place for place, _ in ticks], [write(value) for _, value in ticks])
    scale.yaxis.tick_right()
    scale.tick_params(length=0)
    scale.grid(visible=False)
    scale.set_ylabel(_short(what, 40))
    for spine in scale.spines.values():
        spine.set_visible(False)
    return axes


# Words.


def _ink(name: str) -> str:
    return COLORS[name][0]


def _legend(figure: Figure, series: int) -> None:
    if series > 1:
        figure.legend(loc="outside lower left", ncols=2, handletextpad=0.4, columnspacing=1.2)


def _written(value: float, write: Callable[[float], str]) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return write(value).replace("-", "−")


def _told(values: NDArray[np.float64], write: Callable[[float], str]) -> str:
    known = values[np.isfinite(values)]
    if not len(known):
        return "no value is finite"
    low, high, mean = (_written(value, write) for value in (known.min(), known.max(), known.mean()))
    return f"from {low} to {high}, mean {mean}"


def _of(title: str) -> str:
    return f" ({title})" if title else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
