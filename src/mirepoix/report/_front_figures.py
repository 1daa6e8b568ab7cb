"""The figures of a front of rewarded soups: rewards against each other, rewards along lambda, and the spider map.

Every system has its colour and marker, by its role, in all figures. Numbers that are not known are not drawn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mirepoix.report._figures import COLORS, Plot
from mirepoix.report._numbers import amount, decimal, decimals, finite
from mirepoix.report._result import as_list, as_map
from mirepoix.report._strategy_figures import _axes, _legend, _style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["along_plots", "digits_of", "front_plots", "short", "spider_plots", "trained"]

_ROLES = ("soup", "ensemble", "morl", "start")
_LATER = 0.35  # opacity of the trials after the first
_MANY = 25  # points from which markers are smaller

Row = Mapping[str, Any]


def digits_of(report: Mapping[str, Any]) -> dict[str, int]:
    """The decimals of each reward, the same in all tables and figures: two digits of its usual standard error."""
    rows = [row for trial in as_list(report.get("trials")) for row in _rows(trial)]
    digits = {}
    for reward in map(str, as_list(report.get("rewards"))):
        digits[reward] = decimals(_mean(row, reward) for row in rows)
        errors = sorted(error for row in rows if (error := _error(row, reward)) > 0)
        if errors:
            wanted = 1 - math.floor(math.log10(errors[len(errors) // 2]))
            digits[reward] = min(max(digits[reward], wanted), digits[reward] + 2)
    return digits


def short(text: str, length: int) -> str:
    """A name for a place that is small: its begin and its end, as long names often differ there alone."""
    end = length // 3
    return text if len(text) <= length else f"{text[: length - 1 - end]}…{text[-end:]}"


def front_plots(report: Mapping[str, Any]) -> list[Plot]:
    """The points of all systems, a drawing for each pair of up to three trained rewards."""
    trials, rewards = as_list(report.get("trials")), trained(report)
    if not 2 <= len(rewards) <= 3:
        return []
    pairs = list(itertools.combinations(rewards, 2))
    plots = [
        _front(f"front_{number}" if len(pairs) > 1 else "front", report, trials, x, y)
        for number, (x, y) in enumerate(pairs)
    ]
    return [plot for plot in plots if plot is not None]


def along_plots(report: Mapping[str, Any]) -> dict[str, Plot]:
    """For two experts, each reward against the share of the first one."""
    experts, trials = list(map(str, as_list(report.get("experts")))), as_list(report.get("trials"))
    if len(experts) != 2:
        return {}
    plots = {}
    for number, reward in enumerate(map(str, as_list(report.get("rewards")))):
        soups = [_soup(trial, experts, reward) for trial in trials]
        if any(len(soup) > 1 for soup in soups):
            plots[reward] = _along(f"along_{number}", report, trials, soups, reward)
    return plots


def spider_plots(report: Mapping[str, Any]) -> list[Plot]:
    """One axis per reward, a polygon per system; of the first trial that has them."""
    for trial in as_list(report.get("trials")):
        spider = as_map(trial.get("spider"))
        axes = list(map(str, as_list(spider.get("axes"))))
        polygons = {}
        for each in as_list(spider.get("polygons")):
            values = [finite(as_map(each.get("values")).get(reward)) for reward in axes]
            radii = [value for value in values if value is not None]
            if len(radii) == len(axes) > 2:
                polygons[str(each.get("label"))] = radii
        if polygons:
            several = len(as_list(report.get("trials"))) > 1
            return [_spider(axes, polygons, str(trial.get("name")) if several else "")]
    return []


def trained(report: Mapping[str, Any]) -> list[str]:
    """The rewards that experts were trained on; all where that is not known."""
    return list(map(str, as_list(report.get("trained")) or as_list(report.get("rewards"))))


# The front.


def _front(
    name: str, report: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], x: str, y: str
) -> Plot | None:
    experts, digits = list(map(str, as_list(report.get("experts")))), digits_of(report)
    styles = _styles(trials)
    found: list[tuple[int, Mapping[str, Any], list[Row]]] = []
    for number, trial in enumerate(trials):
        for front in as_list(trial.get("fronts")):
            rows = [
                row
                for row in as_list(front.get("rows"))
                if _mean(row, x) is not None and _mean(row, y) is not None
            ]
            if rows:
                found.append((number, front, rows))
    if not found:
        return None
    first = min(number for number, _, _ in found)
    labels = list(dict.fromkeys(str(front.get("label")) for _, front, _ in found))
    soups = {str(front.get("label")) for _, front, _ in found if front.get("role") == "soup"}
    hollow = any(row.get("nondominated") is False for _, _, rows in found for row in rows)
    bars = any(
        as_map(row.get("standard_errors")) for number, _, rows in found for row in rows if number == first
    )
    lines = len(experts) == 2

    def draw(figure: Figure) -> None:
        axes = _axes(figure, "", short(x, 48), short(y, 36))
        axes.margins(0.14, 0.1)
        # Later trials lie below, and within a trial the soup, which has most points.
        for number, front, rows in sorted(found, key=lambda each: -each[0]):
            style = styles[str(front.get("label"))]
            soup = lines and str(front.get("label")) in soups
            if soup:
                rows = _by_share(rows, experts[0])
            _points(axes, rows, x, y, style, line=soup, later=number > first)
            if soup and number == first:
                _name_shares(axes, rows, x, y, experts[0])
        for label in labels:
            style = styles[label]
            line = lines and label in soups
            axes.plot(
                [], [], label=_visible(short(label, 24)), **{**style, "linestyle": "-" if line else "none"}
            )
        if hollow:
            empty = {**styles[labels[0]], "color": _ink("muted"), "mfc": _ink("surface"), "linestyle": "none"}
            axes.plot([], [], label="dominated", **empty)
        _legend(figure, len(labels) + hollow)

    told = [_told(front, rows, x, y, digits, experts) for number, front, rows in found if number == first]
    caption = [f"λ is the share of {experts[0]}."] if lines else []
    caption += ["Hollow: dominated by a point of the same system."] if hollow else []
    caption += ["Bars: one standard error over items."] if bars else []
    if len({number for number, _, _ in found}) > 1:
        caption.append(f"Lighter: trials after {trials[first].get('name')}.")
    return Plot(
        name=name,
        section="front",
        alt=f"{y} against {x}, one mark per policy: {'; '.join(told)}.",
        caption=" ".join(["Upper right is better.", *caption]),
        size=(380, 285 + 15 * ((len(labels) + hollow + 1) // 2)),
        draw=draw,
    )


def _points(
    axes: Axes, rows: Sequence[Row], x: str, y: str, style: Mapping[str, Any], *, line: bool, later: bool
) -> None:
    alpha = _LATER if later else 1.0
    plain = {**style, "linestyle": "none"}
    if len(rows) > _MANY:
        plain["markersize"] = 2.5
    xs, ys = _means(rows, x), _means(rows, y)
    if line:
        axes.plot(xs, ys, color=style["color"], linestyle="-", linewidth=1.4, alpha=alpha, zorder=2)
    if not later:
        axes.errorbar(
            xs,
            ys,
            xerr=[_error(row, x) for row in rows],
            yerr=[_error(row, y) for row in rows],
            fmt="none",
            ecolor=style["color"],
            elinewidth=0.8,
            zorder=1.5,
        )
    for dominated in (True, False):
        chosen = [row for row in rows if (row.get("nondominated") is False) is dominated]
        fill = {"mfc": _ink("surface")} if dominated else {}
        axes.plot(_means(chosen, x), _means(chosen, y), alpha=alpha, zorder=3, **{**plain, **fill})


def _name_shares(axes: Axes, rows: Sequence[Row], x: str, y: str, expert: str) -> None:
    """Lambda at both ends and in the middle of the line."""
    middle = min(range(len(rows)), key=lambda i: abs((_share(rows[i], expert) or 0.0) - 0.5))
    for i in sorted({0, middle, len(rows) - 1}):
        share = _share(rows[i], expert)
        if share is not None:
            axes.annotate(
                f"λ = {share:.3g}",
                (_means(rows, x)[i], _means(rows, y)[i]),
                (5, 5),
                textcoords="offset points",
                fontsize=9,
                color=_ink("ink"),
                zorder=4,
            )


def _told(
    front: Mapping[str, Any],
    rows: Sequence[Row],
    x: str,
    y: str,
    digits: Mapping[str, int],
    experts: Sequence[str],
) -> str:
    """``MORL, 5 points, from (0.1, 0.9) to (0.8, 0.2)``: the ends by lambda, else by the first reward."""
    if front.get("role") == "soup" and len(experts) == 2:
        rows = _by_share(rows, experts[0])
    else:
        rows = sorted(rows, key=lambda row: _mean(row, x) or 0.0)
    ends = [
        f"({decimal(_mean(row, x), digits=digits.get(x, 2))}, {decimal(_mean(row, y), digits=digits.get(y, 2))})"
        for row in (rows[0], rows[-1])
    ]
    if len(rows) == 1:
        return f"{front.get('label')} at {ends[0]}"
    return f"{front.get('label')}, {amount(len(rows), 'point')}, from {ends[0]} to {ends[1]}"


# Along lambda.


def _soup(trial: Mapping[str, Any], experts: Sequence[str], reward: str) -> list[Row]:
    """The rows of the soup with this reward, in the order of lambda."""
    fronts = as_list(trial.get("fronts"))
    front: Mapping[str, Any] = next((front for front in fronts if front.get("role") == "soup"), {})
    return _by_share(_known(front, experts[0], reward), experts[0])


def _along(
    name: str,
    report: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
    soups: Sequence[Sequence[Row]],
    reward: str,
) -> Plot:
    expert = str(report["experts"][0])
    digits = digits_of(report)[reward]
    styles = _styles(trials)
    first = next(number for number, soup in enumerate(soups) if len(soup) > 1)

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = _axes(figure, short(reward, 24), "", "")
        for number, (trial, soup) in reversed(list(enumerate(zip(trials, soups, strict=True)))):
            alpha = 1.0 if number == first else _LATER
            for front in as_list(trial.get("fronts")):
                if front.get("role") in ("morl", "ensemble"):
                    rows = _known(front, expert, reward)
                    style = {**styles[str(front.get("label"))], "linestyle": "none", "markersize": 3}
                    axes.plot(*_line(rows, expert, reward), alpha=alpha, **style)
            color = _ink("average")
            size = 3 if len(soup) <= _MANY else 0
            axes.plot(
                *_line(soup, expert, reward), "o-", color=color, linewidth=1.6, markersize=size, alpha=alpha
            )
        ends = [soups[first][0], soups[first][-1]]
        if [round(_share(row, expert) or 0.0, 9) for row in ends] == [0, 1]:
            axes.plot(*_line(ends, expert, reward), ":", color=_ink("muted"), linewidth=1.2)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))

    rows = soups[first]
    values = _means(rows, reward)
    best = rows[values.index(max(values))]
    told = ", ".join(
        f"{decimal(_mean(row, reward), digits=digits)} at {_share(row, expert):.3g}"
        for row in (rows[0], rows[-1])
    )
    top = f"{decimal(_mean(best, reward), digits=digits)} at {_share(best, expert):.3g}"
    return Plot(
        name=name,
        section="along",
        alt=f"{reward} of the soup against the share of {expert}: {told}; highest {top}.",
        caption="",
        size=(180, 135),
        draw=draw,
        small=True,
    )


def _line(rows: Sequence[Row], expert: str, reward: str) -> tuple[list[Any], list[Any]]:
    return [_share(row, expert) for row in rows], [_mean(row, reward) for row in rows]


def _known(front: Mapping[str, Any], expert: str, reward: str) -> list[Row]:
    rows: list[Row] = as_list(front.get("rows"))
    return [row for row in rows if _share(row, expert) is not None and _mean(row, reward) is not None]


# The spider map.


def _spider(names: Sequence[str], polygons: Mapping[str, Sequence[float]], trial: str) -> Plot:
    angles = [math.pi / 2 - 2 * math.pi * k / len(names) for k in range(len(names))]

    def closed(radii: Sequence[float]) -> tuple[list[float], list[float]]:
        around = [*zip(radii, angles, strict=True), (radii[0], angles[0])]
        return [r * math.cos(angle) for r, angle in around], [r * math.sin(angle) for r, angle in around]

    def draw(figure: Figure) -> None:
        axes = _axes(figure, "", "", "")
        axes.axis("off")
        axes.set_aspect("equal")
        for ring in (0.25, 0.5, 0.75, 1.0):
            axes.plot(*closed([ring] * len(names)), color=_ink("line"), linewidth=1)
        for name, angle in zip(names, angles, strict=True):
            x, y = math.cos(angle), math.sin(angle)
            axes.plot([0, x], [0, y], color=_ink("line"), linewidth=1)
            side = "center" if abs(x) < 0.1 else "left" if x > 0 else "right"
            height = "bottom" if y > 0.9 else "top" if y < -0.9 else "center"
            axes.text(1.06 * x, 1.06 * y, short(name, 16), ha=side, va=height, fontsize=10)
        for k, (label, radii) in enumerate(polygons.items()):
            axes.plot(*closed(radii), label=_visible(short(label, 24)), **_style(k))
        _legend(figure, len(polygons))

    told = "; ".join(
        f"{label} {', '.join(decimal(radius) for radius in radii)}" for label, radii in polygons.items()
    )
    return Plot(
        name="spider",
        section="spider",
        alt=f"Spider map with the axes {', '.join(names)}: {told}.",
        caption=f"The outer ring is 1, the centre 0.{f' From {trial}.' if trial else ''}",
        size=(380, 300 + 15 * ((len(polygons) + 1) // 2)),
        draw=draw,
    )


# Rows.


def _rows(trial: Mapping[str, Any]) -> Iterable[Row]:
    return (row for front in as_list(trial.get("fronts")) for row in as_list(front.get("rows")))


def _mean(row: Row, reward: str) -> float | None:
    return finite(as_map(row.get("means")).get(reward))


def _means(rows: Iterable[Row], reward: str) -> list[float]:
    """Of rows that have this reward."""
    return [value for row in rows if (value := _mean(row, reward)) is not None]


def _error(row: Row, reward: str) -> float:
    """The standard error; of what is not known, no bar is drawn."""
    error = finite(as_map(row.get("standard_errors")).get(reward))
    return math.nan if error is None or error < 0 else error


def _share(row: Row, expert: str) -> float | None:
    return finite(as_map(row.get("coefficients")).get(expert))


def _by_share(rows: Iterable[Row], expert: str) -> list[Row]:
    return sorted(rows, key=lambda row: _share(row, expert) or 0.0)


def _styles(trials: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The style of each system by its label: that of its role, or of its own where the role is taken."""
    taken: dict[str, int] = {}
    for trial in trials:
        for front in as_list(trial.get("fronts")):
            label, role = str(front.get("label")), front.get("role")
            if label not in taken:
                place = _ROLES.index(role) if role in _ROLES else len(_ROLES)
                taken[label] = (
                    place if place not in taken.values() else max(len(_ROLES), max(taken.values()) + 1)
                )
    return {label: _style(place) for label, place in taken.items()}


def _visible(label: str) -> str:
    """A label for a legend, which leaves out those that begin with an underscore."""
    return f" {label}" if label.startswith("_") else label


def _ink(name: str) -> str:
    return COLORS[name][0]
