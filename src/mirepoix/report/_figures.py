"""The figures, as SVG: drawn with matplotlib, coloured by the page.

Everything is drawn in placeholder colours. On the page they become CSS variables, so that one drawing serves
the light and the dark theme; in a file of its own they become the light theme on white. Panels are drawn at
the width of a phone and only ever enlarged, so that their text stays readable.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from mirepoix.report._numbers import finite
from mirepoix.report._result import curve_mean, find_label, gains, labels, prepared

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "Plot", "plots"]

COLORS = {
    "ink": ("#010111", "#1b1f24"),
    "muted": ("#010122", "#59636e"),
    "line": ("#010133", "#d5dae0"),
    "average": ("#010144", "#0b5cc0"),
    "ensemble": ("#010155", "#a24a00"),
    "surface": ("#010166", "#ffffff"),
}
"""From the name of a CSS variable to the placeholder drawn with, and its value in the light theme."""

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the layout is the same on every machine
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.titlesize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "text.parse_math": False,  # a domain may be called "$x"
    "svg.fonttype": "none",
    "svg.hashsalt": "mirepoix",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def _ink(name: str) -> str:
    return COLORS[name][0]


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure that can be drawn from the report.

    Attributes:
        name: Of its file, without the ending.
        section: ``good`` or ``why``.
        alt: What is seen, in a sentence.
        caption: How to read it.
        size: Width and height in pixels.
        draw: Fills a figure.
        small: One panel of a series.
    """

    name: str
    section: str
    alt: str
    caption: str
    size: tuple[float, float]
    draw: Callable[[Figure], None]
    small: bool = False

    def svg(self, *, inline: bool) -> str:
        """The drawing, for the page (``inline``) or as a file of its own."""
        text = _draw(self)
        for name, (placeholder, light) in COLORS.items():
            text = text.replace(placeholder, f"var(--{name})" if inline else light)
        width, height = (f"{side:g}" for side in self.size)
        tag = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(self.alt)}"'
        if inline:
            return f'{tag} class="plot">\n{text}</svg>\n'
        white = f'<rect width="100%" height="100%" fill="{COLORS["surface"][1]}"/>'
        return (
            '<?xml version="1.0" encoding="utf-8"?>\n'
            f'{tag} width="{width}" height="{height}" xmlns="http://www.w3.org/2000/svg">\n{white}\n{text}</svg>\n'
        )


def _draw(plot: Plot) -> str:
    """The elements inside of the SVG, without what is not ours: metadata, links, common identifiers."""
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # Settings of the user must not change the bytes of a report.
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The browser draws the text with its own fonts; what DejaVu lacks is not missing on the page.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        settings: Any = {
            **_RC,
            **dict.fromkeys(
                ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), _ink("ink")
            ),
            **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), _ink("muted")),
            "grid.color": _ink("line"),
        }
        matplotlib.rcParams.update(settings)
        width, height = _inches(plot.size)
        figure = Figure(figsize=(width, height), layout="constrained")
        plot.draw(figure)
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = text[text.index(">") + 1 : text.rindex("</svg>")].lstrip("\n")
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href").replace("'DejaVu Sans'", "system-ui, sans-serif")
    # Several drawings share a page, and matplotlib numbers each from one.
    return re.sub(r'(\bid="|href="#|url\(#)', lambda found: f"{found[1]}{plot.name}-", text)


def _inches(size: tuple[float, float]) -> tuple[float, float]:
    """A size in pixels of the SVG, whose unit is a 72nd of an inch."""
    return size[0] / 72, size[1] / 72


def _short(name: str, length: int = 20) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def plots(report: Mapping[str, Any]) -> list[Plot]:
    """The figures for which the report has numbers, in the order of the page."""
    report = prepared(report)
    return [*_gains(report), *_curves(report), *_ratio_error(report)]


_OTHERS = ("s", "^", "D", "v", "P", "X", "<", ">")


def _styles(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A marker for each row but the mean member; colour is for the average and the ensemble only."""
    base, ours, theirs = (find_label(report, kind) for kind in ("mean", "average", "ensemble"))
    others = iter(_OTHERS * (1 + len(labels(report)) // len(_OTHERS)))
    styles: dict[str, dict[str, Any]] = {}
    for label in labels(report):
        if label == ours:
            styles[label] = {"color": _ink("average"), "marker": "o", "markersize": 7}
        elif label == theirs:
            styles[label] = {"color": _ink("ensemble"), "marker": "o", "markersize": 6, "mfc": "none"}
        elif label != base:
            styles[label] = {"color": _ink("muted"), "marker": next(others), "markersize": 4.5}
    return styles


def _gains(report: Mapping[str, Any]) -> list[Plot]:
    targets = report.get("targets") or []
    styles = _styles(report)
    found = {label: [gains(report, label, target) for target in targets] for label in styles}
    found = {label: each for label, each in found.items() if any(gain is not None for gain, _ in each)}
    if not found:
        return []

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        step = 0.8 / len(found)
        for k, (label, each) in enumerate(found.items()):
            known = [(y, gain, error) for y, (gain, error) in enumerate(each) if gain is not None]
            xs = [100 * gain for _, gain, _ in known]
            ys = [y + (k + 0.5) * step - 0.4 for y, _, _ in known]
            axes.plot(xs, ys, linestyle="none", label=_short(label, 28), **styles[label])
            for x, y, (_, _, error) in zip(xs, ys, known, strict=True):
                if error is not None:
                    axes.plot(
                        [x - 100 * error, x + 100 * error], [y, y], color=styles[label]["color"], linewidth=1
                    )
        axes.axvline(0, color=_ink("ink"), linewidth=1)
        for y in range(1, len(targets)):
            axes.axhline(y - 0.5, color=_ink("line"), linewidth=0.8)
        axes.set_ylim(len(targets) - 0.5, -0.5)
        axes.set_yticks(range(len(targets)), [_short(target, 16) for target in targets])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("points of OOD accuracy over the mean member")
        figure.legend(loc="outside lower left", ncols=2, handletextpad=0.3, columnspacing=1)

    errors = any(error is not None for each in found.values() for _, error in each)
    bars = " Bars: one standard error of the difference, over data seeds." if errors else ""
    row = max(22.0, 11.0 * len(found))
    return [
        Plot(
            name="gains",
            section="good",
            alt="Gain in OOD accuracy over the mean member, for each strategy and target.",
            caption=f"Right of the line is better than training one network, in expectation.{bars}",
            size=(380, 60 + row * len(targets) + 17 * ((len(found) + 1) // 2)),
            draw=draw,
        )
    ]


def _curve(axes: Axes, curve: list[Any], *, bold: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    width = 2.4 if bold else 1.4
    for key, style in (("ensemble", "--"), ("average", "-")):
        known = [(p["members"], finite(p.get(key))) for p in curve]
        axes.plot(
            [members for members, value in known if value is not None],
            [100 * value for _, value in known if value is not None],
            style,
            color=_ink(key),
            linewidth=width,
            marker="o",
            markersize=4 if bold else 2.5,
            label=key,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5 if not bold else 10))


def _curves(report: Mapping[str, Any]) -> list[Plot]:
    why = [each for each in report.get("why") or [] if len(each.get("members_curve") or []) > 1]
    if not why:
        return []

    def values(curve: list[Any]) -> list[float]:
        both = [finite(point.get(key)) for point in curve for key in ("average", "ensemble")]
        return [100 * value for value in both if value is not None]

    spans = [(min(found), max(found)) for each in why if (found := values(each["members_curve"]))]
    span = 1.1 * max((high - low for low, high in spans), default=0.0) or 1.0

    def large(curve: list[Any]) -> Callable[[Figure], None]:
        def draw(figure: Figure) -> None:
            axes = figure.subplots()
            _curve(axes, curve, bold=True)
            axes.set_xlabel("members")
            axes.set_ylabel("OOD accuracy, percent")
            axes.legend(loc="best", reverse=True)

        return draw

    def small(each: Mapping[str, Any]) -> Callable[[Figure], None]:
        def draw(figure: Figure) -> None:
            axes = figure.subplots()
            _curve(axes, each["members_curve"], bold=False)
            found = values(each["members_curve"])
            if found:
                middle = (min(found) + max(found)) / 2
                axes.set_ylim(middle - span / 2, middle + span / 2)
            axes.set_title(_short(each["target"], 24), loc="left")

        return draw

    first = curve_mean(report)
    single = len(why) == 1
    result = []
    if len(first) > 1 and values(first):
        where = f"on {why[0]['target']}" if single else f"mean over {len(why)} targets"
        result.append(
            Plot(
                name="members",
                section="why",
                alt=f"OOD accuracy against the number of members, average and ensemble, {where}.",
                caption=f"More members, {where}. A point is the mean over subsets of the members.",
                size=(380, 250),
                draw=large(first),
            )
        )
    if not single:
        result += [
            Plot(
                name=f"members_{index}",
                section="why",
                alt=f"OOD accuracy on {each['target']} against the number of members.",
                caption="",
                size=(180, 135),
                draw=small(each),
                small=True,
            )
            for index, each in enumerate(why)
            if values(each["members_curve"])
        ]
    return result


def _ratio_error(report: Mapping[str, Any]) -> list[Plot]:
    label = find_label(report, "average")
    found, missing = [], []
    for why in report.get("why") or []:
        x = finite((why.get("ratio_error") or {}).get("ood"))
        y = gains(report, label, why["target"])[0] if label is not None else None
        if x is not None and y is not None:
            found.append((x, 100 * y, why["target"]))
        else:
            missing.append(why["target"])
    if len(found) < 2:
        return []

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(
            [x for x, _, _ in found], [y for _, y, _ in found], "o", color=_ink("average"), markersize=6
        )
        right = (min(x for x, _, _ in found) + max(x for x, _, _ in found)) / 2
        for x, y, target in found:
            side = -1 if x > right else 1
            axes.annotate(
                _short(target, 16),
                (x, y),
                (7 * side, 0),
                textcoords="offset points",
                ha="right" if side < 0 else "left",
                va="center",
                fontsize=9,
                color=_ink("muted"),
            )
        axes.margins(0.12)
        axes.set_xlabel("ratio-error OOD")
        axes.set_ylabel("gain of the average, points")

    left_out = f" Not drawn, for want of a finite value: {', '.join(missing)}." if missing else ""
    return [
        Plot(
            name="ratio_error",
            section="why",
            alt="OOD gain of the average over the mean member against the ratio-error, one dot per target.",
            caption="Where members fail on different images, the average should gain more: dots should rise "
            f"to the right. {len(found)} targets illustrate this and prove nothing.{left_out}",
            size=(380, 250),
            draw=draw,
        )
    ]
