"""The figures of `mirepoix.domainbed`, drawn as those of the report: one drawing for the light and the dark theme.

Each function takes the numbers of one question, as plain values, and returns a `Plot`: ``plot.svg(inline=True)`` for
a page, ``plot.svg(inline=False)`` for a file. What is seen (``alt``) and what follows (``caption``) are sentences with
the numbers in them, so that nothing is lost without the picture. Series differ by marker and line as well as by
colour. Accuracies are in percent, their differences in points, and bars are one standard error over subsets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mirepoix.report._figures import COLORS, Plot
from mirepoix.report._numbers import amount, cleaned, finite, percent, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "draw_accuracy_against_members",
    "draw_accuracy_against_share",
    "draw_accuracy_against_tasks",
    "draw_gain_against_diversity",
    "draw_interpolation_curve",
    "draw_slope_against_members",
]

_COLORS = ("average", "ensemble", "ink", "muted")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_LINES = ("-", "--", "-.", ":")
_MEASURES = {"ratio_error": "ratio-error", "q_diversity": "Q-diversity"}
_SIZE = (380.0, 260.0)


def draw_accuracy_against_members(
    numbers: Mapping[str, Any],
    *,
    what: str = "OOD accuracy",
    title: str = "",
    name: str = "accuracy_against_members",
) -> Plot:
    """The accuracy of averages against their number of members: runs, snapshots of one run, ensembles.

    Args:
        numbers: As from `mirepoix.evidence.accuracy_against_members`.
        what: What the accuracy is, for the axis and the sentences.
        title: Above the drawing.
        name: Of the file; pages with several figures need different ones.
    """
    numbers, what, title = cleaned(dict(numbers)), cleaned(what), cleaned(title)
    curves = (
        ("runs", "average of runs", "average of {} of different runs"),
        ("ensemble", "ensemble of runs", "ensemble of {} of different runs"),  # in its colour of the report
        ("snapshots", "average along one run", "average of {} of one run"),
    )
    series = {label: _known(numbers[key]) for key, label, _ in curves if numbers.get(key)}
    told = "; ".join(_rise(numbers[key], words) for key, label, words in curves if series.get(label))

    def draw(figure: Figure) -> None:
        axes = _axes(figure, title, "members", f"{what}, percent", whole=True)
        for k, (_, label, _) in enumerate(curves):
            if label in series:
                _curve(axes, [p["members"] for p in series[label]], series[label], k, label)
        _legend(figure, len(series))

    subsets = "the best members first" if numbers.get("ranked") else "a point is the mean over subsets"
    return Plot(
        name=name,
        section="why",
        alt=_sentence(f"{what} in percent against the number of members", title, told),
        caption=f"{_capital(told)}. In percent; {subsets}.{_bars(series.values())}",
        size=_SIZE,
        draw=draw,
    )


def draw_gain_against_diversity(
    numbers: Mapping[str, Any],
    *,
    what: str = "OOD accuracy",
    title: str = "",
    name: str = "gain_against_diversity",
) -> Plot:
    """The gain of averages over their members against diversity: a dot per subset, a line per number of members.

    Args:
        numbers: As from `mirepoix.evidence.gain_against_diversity`.
        what: What the gain is a gain of.
        title: Above the drawing.
        name: Of the file.
    """
    numbers, what, title = cleaned(dict(numbers)), cleaned(what), cleaned(title)
    measure = _measure(numbers)
    sizes = [size for size in numbers["sizes"] if size["subsets"]]

    def draw(figure: Figure) -> None:
        axes = _axes(figure, title, f"{measure}, mean over pairs", f"gain in {what}, points")
        for k, size in enumerate(sizes):
            style = _style(k)
            line = style.pop("linestyle")
            x = size["diversity"]
            axes.plot(
                x,
                [100 * gain for gain in size["gain"]],
                linestyle="none",
                label=f"M = {size['members']}",
                **{**style, "markersize": 3.5},
            )
            if size["slope"] is not None:
                ends = [min(x), max(x)]
                ys = [100 * (size["intercept"] + size["slope"] * end) for end in ends]
                axes.plot(ends, ys, linestyle=line, color=style["color"], linewidth=1.6)
        _legend(figure, len(sizes), ncols=4)

    left_out = sum(size["left_out"] for size in numbers["sizes"])
    without = (
        f" {_capital(amount(left_out, 'subset'))} without a finite {measure} left out." if left_out else ""
    )
    slopes = [_slope(size, f" points per unit of {measure}" * (k == 0)) for k, size in enumerate(sizes)]
    told = "; ".join(slopes) or "no subset has a finite diversity"
    return Plot(
        name=name,
        section="why",
        alt=_sentence(f"Gain in {what} of averages over their members against {measure}", title, told),
        caption=f"{_capital(told)}. A dot is a subset of M members.{without}",
        size=(_SIZE[0], _SIZE[1] + 15 * ((len(sizes) - 1) // 4)),
        draw=draw,
    )


def draw_slope_against_members(
    numbers: Mapping[str, Any],
    *,
    what: str = "OOD accuracy",
    title: str = "",
    name: str = "slope_against_members",
) -> Plot:
    """The slopes of `draw_gain_against_diversity` against the number of members.

    Args:
        numbers: As from `mirepoix.evidence.gain_against_diversity`.
        what: What the gain is a gain of.
        title: Above the drawing.
        name: Of the file.
    """
    numbers, what, title = cleaned(dict(numbers)), cleaned(what), cleaned(title)
    measure = _measure(numbers)
    found = [
        {"members": size["members"], "mean": size["slope"], "error": size["slope_error"]}
        for size in numbers["sizes"]
        if size["slope"] is not None
    ]

    def draw(figure: Figure) -> None:
        axes = _axes(figure, title, "members", f"points of gain per unit of {measure}", whole=True)
        axes.axhline(0, color=_ink("muted"), linewidth=1)
        _curve(axes, [p["members"] for p in found], found, 0, "slope")

    told = "no slope is determined"
    if found:
        first, last = found[0], found[-1]
        told = f"slope {_signed(first['mean'], first['error'])} for M = {first['members']}"
        if len(found) > 1:
            told += f" and {_signed(last['mean'], last['error'])} for M = {last['members']}"
        told += f", in points of {what} per unit of {measure}"
    return Plot(
        name=name,
        section="why",
        alt=_sentence(f"Slope of the gain over {measure} against the number of members", title, told),
        caption=f"{_capital(told)}. A slope that grows says that diversity counts more with more members."
        + (" Bars: one standard error of the slope." if any(p["error"] is not None for p in found) else ""),
        size=_SIZE,
        draw=draw,
    )


def draw_accuracy_against_share(
    numbers: Mapping[str, Any],
    *others: Mapping[str, Any],
    labels: Sequence[str] | None = None,
    what: str = "OOD accuracy",
    title: str = "",
    name: str = "accuracy_against_share",
) -> Plot:
    """The accuracy of averages against the share of their members that were inter-trained.

    Args:
        numbers: As from `mirepoix.evidence.accuracy_against_share`.
        others: More of them, each a curve of its own: other numbers of members, or another accuracy.
        labels: Of the curves, by default their number of members.
        what: What the accuracy is.
        title: Above the drawing.
        name: Of the file.
    """
    each, what, title = [cleaned(dict(one)) for one in (numbers, *others)], cleaned(what), cleaned(title)
    given = [f"M = {one['members']}" for one in each] if labels is None else cleaned(list(labels))
    series = list(zip(given, [one["shares"] for one in each], strict=True))

    def draw(figure: Figure) -> None:
        axes = _axes(figure, title, "share of inter-trained members, percent", f"{what}, percent")
        for k, (label, shares) in enumerate(series):
            _curve(axes, [100 * p["share"] for p in shares], shares, k, _short(label, 24))
        _legend(figure, len(series), ncols=4 if labels is None else 2)

    told = "; ".join(f"{label}: {_best_share(shares)}" for label, shares in series)
    return Plot(
        name=name,
        section="why",
        alt=_sentence(f"{what} in percent against the share of inter-trained members", title, told),
        caption=f"{_capital(told)}. A point is the mean over choices of members."
        f"{_bars([shares for _, shares in series])}",
        size=_SIZE,
        draw=draw,
    )


def draw_accuracy_against_tasks(
    numbers: Mapping[str, Any],
    *,
    what: str = "OOD accuracy",
    title: str = "",
    name: str = "accuracy_against_tasks",
) -> Plot:
    """The accuracy of averages of M members against the number of initialisations that they come from.

    Args:
        numbers: As from `mirepoix.evidence.accuracy_against_tasks`.
        what: What the accuracy is.
        title: Above the drawing.
        name: Of the file.
    """
    numbers, what, title = cleaned(dict(numbers)), cleaned(what), cleaned(title)
    found = _known(numbers["tasks"])
    missing = [str(p["tasks"]) for p in numbers["tasks"] if p["mean"] is None]
    small = {p["tasks"]: p["too_small"] for p in numbers["tasks"] if p["too_small"] and p["mean"] is not None}

    def draw(figure: Figure) -> None:
        axes = _axes(figure, title, "auxiliary tasks", f"{what}, percent", whole=True)
        _curve(axes, [p["tasks"] for p in found], found, 0, f"M = {numbers['members']}")

    first, last = found[0], found[-1]
    told = f"{percent(last['mean'], last['error'])} with {amount(last['tasks'], 'auxiliary task')}"
    if len(found) > 1:
        told += f", {_change(last['mean'] - first['mean'])} than with {first['tasks']}"
    told += f", always of {amount(numbers['members'], 'member')}"
    notes = f" Too few members for {', '.join(missing)}: not drawn." if missing else ""
    notes += "".join(f" With {t}, too small and left out: {', '.join(names)}." for t, names in small.items())
    return Plot(
        name=name,
        section="why",
        alt=_sentence(f"{what} in percent against the number of auxiliary tasks", title, told),
        caption=f"{_capital(told)}. A point is the mean over combinations of tasks and members.{_bars([found])}{notes}",
        size=_SIZE,
        draw=draw,
    )


def draw_interpolation_curve(
    numbers: Mapping[str, Any],
    *,
    names: Sequence[str] = ("A", "B", "C"),
    title: str = "",
    name: str = "interpolation_curve",
) -> Plot:
    """Accuracies along the line between two weights, or from the average of two to a third, beside their chords.

    Args:
        numbers: As from `mirepoix.evidence.interpolation_curve`.
        names: Of the two or three weights.
        title: Above the drawing, such as the hypothesis that is tested.
        name: Of the file.
    """
    numbers, title, names = (
        cleaned(dict(numbers)),
        cleaned(title),
        [_short(n, 16) for n in cleaned(list(names))],
    )
    first, last = (names[0], names[1]) if numbers["ends"] == 2 else (f"{names[0]} + {names[1]}", names[2])
    series = numbers["scores"]

    def draw(figure: Figure) -> None:
        axes = _axes(figure, title, "", "accuracy, percent")
        for k, (label, found) in enumerate(series.items()):
            style = _style(k)
            known = [p for p in found["points"] if finite(p["value"]) is not None]
            axes.plot(
                [p["coefficients"][-1] for p in known],
                [100 * p["value"] for p in known],
                label=_short(label, 24),
                **{**style, "linestyle": "-"},
            )
            axes.plot(
                [p["coefficients"][-1] for p in found["points"]],
                [100 * p["chord"] for p in found["points"]],
                linestyle=":",
                linewidth=1.2,
                color=style["color"],
                label="chord" if k == len(series) - 1 else None,
            )
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], [first, "0.25", "0.5", "0.75", last])
        _legend(figure, 1 + len(series))

    told = " ".join(f"{label}: {found['verdict']}" for label, found in series.items())
    return Plot(
        name=name,
        section="why",
        alt=f"Accuracy in percent on the line from {first} to {last}{f' ({title})' if title else ''}. {told}",
        caption=f"{told} Dotted: the chord, which connected weights stay above up to the tolerance.",
        size=_SIZE,
        draw=draw,
    )


# Drawing.


def _ink(name: str) -> str:
    return COLORS[name][0]


def _style(k: int) -> dict[str, Any]:
    """Of series number k: nine markers, and sixteen pairs of a colour and a line."""
    return {
        "color": _ink(_COLORS[k % len(_COLORS)]),
        "marker": _MARKERS[k % len(_MARKERS)],
        "linestyle": _LINES[(k + k // len(_COLORS)) % len(_LINES)],
        "markersize": 4.5,
        "linewidth": 1.8,
    }


def _axes(figure: Figure, title: str, x: str, y: str, *, whole: bool = False) -> Axes:
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(_short(title, 48), loc="left")
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    return axes


def _curve(axes: Axes, xs: Sequence[float], found: Sequence[Mapping[str, Any]], k: int, label: str) -> None:
    """Means in percent, with a bar for each known error."""
    style = _style(k)
    axes.plot(xs, [100 * p["mean"] for p in found], label=label, **style)
    for x, p in zip(xs, found, strict=True):
        if p["error"] is not None:
            ends = [100 * (p["mean"] - p["error"]), 100 * (p["mean"] + p["error"])]
            axes.plot([x, x], ends, color=style["color"], linewidth=1)


def _legend(figure: Figure, series: int, *, ncols: int = 2) -> None:
    """A single series is named by the axes and the caption."""
    if series > 1:
        figure.legend(loc="outside lower left", ncols=ncols, handletextpad=0.4, columnspacing=1.2)


# Sentences.


def _rise(curve: Sequence[Mapping[str, Any]], words: str) -> str:
    """``average of 20 members of different runs: 72.1, 3.4 points more than of 1``."""
    found = _known(curve)
    first, last = found[0], found[-1]
    text = f"{words.format(amount(last['members'], 'member'))}: {percent(last['mean'], last['error'])}"
    if len(found) == 1:
        return text
    return f"{text}, {_change(last['mean'] - first['mean'])} than of {first['members']}"


def _best_share(shares: Sequence[Mapping[str, Any]]) -> str:
    """``70.1 ± 0.2 without and 70.5 ± 0.3 with inter-trained members only, highest at 50 % with 71.2 ± 0.3``."""
    best = max(shares, key=lambda p: p["mean"])
    none, only, most = (percent(p["mean"], p["error"]) for p in (shares[0], shares[-1], best))
    place = f"{100 * best['share']:.0f} %"
    return f"{none} without and {only} with inter-trained members only, highest at {place} with {most}"


def _known(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [point for point in found if finite(point["mean"]) is not None]


def _measure(numbers: Mapping[str, Any]) -> str:
    name = str(numbers["measure"])
    return _MEASURES.get(name, name.replace("_", " "))


def _slope(size: Mapping[str, Any], unit: str) -> str:
    """``slope 0.8 ± 0.2 points per unit of ratio-error for M = 4 (r = 0.61, 50 subsets)``; the unit is said once."""
    many = amount(size["subsets"], "subset")
    if size["slope"] is None:
        return f"no slope is determined for M = {size['members']} ({many})"
    r = "" if size["r"] is None else f"r = {_minus(format(size['r'], '.2f'))}, "
    slope = _signed(size["slope"], size["slope_error"])
    return f"slope {slope}{unit} for M = {size['members']} ({r}{many})"


def _signed(value: float, error: float | None) -> str:
    return _minus(percent(value, error))


def _minus(text: str) -> str:
    """With the sign for minus, and without one before zero."""
    return re.sub(r"^-(?=0\.0*( |$))", "", text).replace("-", "−")


def _change(difference: float) -> str:
    """``2.3 points more``, ready for "than"."""
    text = points(difference)
    direction = "less" if text.startswith("−") else "more"
    return f"{text.lstrip('+−')} points {direction}"


def _bars(series: Any) -> str:
    known = any(point["error"] is not None for found in series for point in found)
    return " Bars and ±: one standard error." if known else ""


def _sentence(what: str, title: str, told: str) -> str:
    return f"{what}{f' ({title})' if title else ''}: {told}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
