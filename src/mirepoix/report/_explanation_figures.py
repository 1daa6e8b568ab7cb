"""The figures of an explanation, each with the sentence that a hurried reader takes from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mirepoix.report._explanation_invariance import draw_invariance
from mirepoix.report._figure_files import Drawn
from mirepoix.report._figures import COLORS, Plot
from mirepoix.report._measure_figures import draw_heatmap, draw_scatter
from mirepoix.report._numbers import finite, percent, points
from mirepoix.report._strategy_figures import draw_accuracy_against_members, draw_gain_against_diversity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DETAILED", "Shown", "shown_figures"]

DETAILED = 8
"""Targets up to which each has figures of its own."""

FEW_IN_BIN = 10
"""Images below which a bin of confidences says nothing."""

WORDS = {
    "mean": "mean member",
    "best": "best on ID",
    "average": "average",
    "greedy": "greedy soup",
    "ensemble": "ensemble",
}
SIDES = {"id": "ID validation", "ood": "OOD data"}


@dataclass(frozen=True, slots=True)
class Shown:
    """A figure on the page.

    Attributes:
        drawn: The drawing and its numbers.
        title: Above it.
        reading: What it says here, in a sentence.
        block: The name of the target that it is about; empty for all together.
    """

    drawn: Drawn
    title: str
    reading: str
    block: str = ""


def shown_figures(content: Mapping[str, Any]) -> list[Shown]:
    """The figures for which an explanation has numbers, in the order of the page.

    Args:
        content: From `mirepoix.evidence.explain`, with printable names.
    """
    blocks = content["blocks"]
    found = [
        _gains(content),
        _members(content),
        _gain_against_diversity(content),
        _diversity(content),
        _reliability(content),
        _weights(content),
        _losses(content),
        *(_terms(terms, k) for k, terms in enumerate(content["terms"])),
        _invariance(content),
    ]
    if len(blocks) <= DETAILED:
        for number, block in enumerate(blocks):
            found += [_errors(block, number), _cosines(block, number)]
    return [figure for figure in found if figure is not None]


def _gains(content: Mapping[str, Any]) -> Shown | None:
    """Differences with their intervals: what is right of zero is a gain."""
    comparisons = [
        one
        for one in content["total"]["comparisons"]
        if (one["first"], one["second"]) != ("ensemble", "best") or not _has(content, "average")
    ]
    if not comparisons:
        return None
    pairs = list(dict.fromkeys((one["first"], one["second"]) for one in comparisons))
    sides = [side for side in ("ood", "id") if any(one["side"] == side for one in comparisons)]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for one in comparisons:
            y = pairs.index((one["first"], one["second"])) + (0.16 if one["side"] == "id" else -0.16) * (
                len(sides) > 1
            )
            _bar(axes, one, y, one["side"])
        axes.axvline(0, color=_ink("ink"), linewidth=1)
        axes.set_ylim(len(pairs) - 0.5, -0.5)
        axes.set_yticks(range(len(pairs)), [f"{WORDS[a]}\n− {WORDS[b]}" for a, b in pairs])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("points of accuracy")
        _sides(figure, sides)

    side = sides[0]
    told = [one for one in comparisons if one["side"] == side]
    reading = " ".join(_told(one) for one in told[:3])
    return Shown(
        Drawn(
            Plot(
                name="differences",
                section="why",
                alt=f"Differences of accuracy with their intervals. {reading}",
                caption="Right of the line the first is better. A bar that crosses the line leaves open which one is. "
                "Bars: 95 % intervals over images.",
                size=(380, 70 + 46 * len(pairs)),
                draw=draw,
            ),
            ("side", "first", "second", "difference", "low", "high", "seen"),
            tuple(
                (o["side"], o["first"], o["second"], o["value"], o["low"], o["high"], o["seen"])
                for o in comparisons
            ),
        ),
        "Who is better than whom",
        reading,
    )


def _has(content: Mapping[str, Any], name: str) -> bool:
    return any(row["name"] == name for row in content["total"]["rows"])


def _told(one: Mapping[str, Any]) -> str:
    """``On OOD data the average is better than the mean member (+2.0 points).``"""
    seen = {
        "gain": "is better than",
        "loss": "is worse than",
        "same": "is as good as",
        "unknown": "cannot be told from",
    }[one["seen"]]
    first, second = WORDS[one["first"]], WORDS[one["second"]]
    return f"On {SIDES[one['side']]} the {first} {seen} the {second} ({points(one['value'])} points)."


def _members(content: Mapping[str, Any]) -> Shown | None:
    """Accuracy against members, the mean over blocks where there are several."""
    curves = [block["curve"] for block in content["blocks"]]
    if any(curve is None for curve in curves):
        return None
    averages = [curve["average"] for curve in curves]
    numbers = {
        "runs": None if any(each is None for each in averages) else _mean_curve(averages),
        "ensemble": _mean_curve([curve["ensemble"] for curve in curves]),
    }
    what = "OOD accuracy" if curves[0]["side"] == "ood" else "ID accuracy"
    # As all intervals of the page: 95 %, which are 1.96 standard errors.
    wide = {
        kind: found and [{**point, "error": _times(point["error"], 1.96)} for point in found]
        for kind, found in numbers.items()
    }
    plot = draw_accuracy_against_members(wide, what=what, name="members")
    plot = replace(plot, caption=plot.caption.replace("one standard error", "95 % intervals over subsets"))
    label, curve = ("average", numbers["runs"]) if numbers["runs"] else ("ensemble", numbers["ensemble"])
    assert curve is not None
    first, last = curve[0]["mean"], curve[-1]["mean"]
    before = curve[-2]["mean"] if len(curve) > 2 else first
    reading = f"From 1 to {curve[-1]['members']} members the {label} goes from {percent(first)} % to {percent(last)} %"
    reading += f"; the last member gave {points(last - before)} points." if len(curve) > 2 else "."
    rows = [
        (kind, point["members"], point["mean"], point["error"], point["subsets"])
        for kind in ("runs", "ensemble")
        for point in numbers[kind] or ()
    ]
    drawn = Drawn(plot, ("curve", "members", "accuracy", "standard_error", "subsets"), tuple(rows))
    return Shown(drawn, "Do more members help?", reading)


def _times(value: Any, factor: float) -> float | None:
    number = finite(value)
    return None if number is None else factor * number


def _mean_curve(curves: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The mean over blocks at the numbers of members that all of them have."""
    if len(curves) == 1:
        return [dict(point) for point in curves[0]]
    by_size = [{point["members"]: point for point in curve} for curve in curves]
    sizes = sorted(set.intersection(*(set(one) for one in by_size)))
    return [
        {
            "members": size,
            "mean": math.fsum(one[size]["mean"] for one in by_size) / len(by_size),
            "error": None,
            "subsets": sum(one[size]["subsets"] for one in by_size),
        }
        for size in sizes
    ]


def _gain_against_diversity(content: Mapping[str, Any]) -> Shown | None:
    blocks = content["blocks"]
    if len(blocks) == 1:
        numbers = blocks[0]["gain"]
        if numbers is None or not any(size["subsets"] for size in numbers["sizes"]):
            return None
        what = "OOD accuracy" if numbers["side"] == "ood" else "ID accuracy"
        # As all intervals of the page: 95 %, which are 1.96 standard errors.
        wide = {
            **numbers,
            "sizes": [
                {**size, "slope_error": _times(size["slope_error"], 1.96)} for size in numbers["sizes"]
            ],
        }
        plot = draw_gain_against_diversity(wide, what=what, name="gain_against_diversity")
        slopes = [size["slope"] for size in numbers["sizes"] if size["slope"] is not None]
        rows = [
            (size["members"], x, y)
            for size in numbers["sizes"]
            for x, y in zip(size["diversity"], size["gain"], strict=True)
        ]
        # A slope is told from zero by 1.96 of its errors, as 95 % intervals are.
        ends = [
            (size["slope"] - 1.96 * size["slope_error"], size["slope"] + 1.96 * size["slope_error"])
            for size in numbers["sizes"]
            if finite(size["slope"]) is not None and finite(size["slope_error"]) is not None
        ]
        rising, falling = sum(low > 0 for low, _ in ends), sum(high < 0 for _, high in ends)
        of = f"{len(slopes)} size{'s' if len(slopes) != 1 else ''} of subsets"
        if rising and 2 * rising > len(slopes):
            reading = (
                f"Yes: for {rising} of {of}, those that fail on more different images clearly gain more."
            )
        elif falling and 2 * falling > len(slopes):
            reading = (
                f"No: for {falling} of {of}, those that fail on more different images clearly gain less."
            )
        else:
            reading = (
                "This cannot be told: subsets that fail on more different images do not clearly gain more or "
                "less."
            )
        plot = replace(plot, caption=f"{plot.caption} ±: 95 % intervals of the slopes, over subsets.")
        drawn = Drawn(plot, ("members", "ratio_error", "gain"), tuple(rows))
        return Shown(drawn, "Does diversity pay?", reading)
    series: dict[str, list[tuple[float, float, str]]] = {}
    for block in blocks:
        side = "ood" if block["images"]["ood"] else "id"
        x = finite((block["diversity"].get(side) or {}).get("ratio_error", {}).get("value"))
        for kind in ("average", "ensemble"):
            y = _difference(block, side, kind, "mean")
            if x is not None and y is not None:
                series.setdefault(kind, []).append((x, 100 * y, block["name"] if kind == "average" else ""))
    if not series or max(map(len, series.values())) < 2:
        return None
    drawn = draw_scatter(
        series,
        x="ratio-error of the members",
        y="gain over the mean member, points",
        name="gain_against_diversity",
    )
    kind, dots = next(iter(series.items()))
    r = _correlation([dot[0] for dot in dots], [dot[1] for dot in dots])
    unit = "splits" if content["data_seeds"] > 1 else "targets"
    low, high = _fisher(r, len(dots))
    if low > 0:
        reading = f"Yes: the {kind} gains more on {unit} where members fail on more different images."
    elif high < 0:
        reading = f"No: the {kind} gains less on {unit} where members fail on more different images."
    else:
        reading = f"This cannot be told from {len(dots)} {unit}."
    told = "The correlation is not determined." if r is None else f"The correlation is {r:.2f}."
    if r is not None and len(dots) > 3:
        told = f"The correlation is {r:.2f} (95 % interval {low:.2f} to {high:.2f})."
    told = told.replace("-", "−")
    return Shown(
        _captioned(drawn, f"A dot is one of the {unit}. {told} Few illustrate and prove nothing."),
        "Does diversity pay?",
        reading,
    )


def _fisher(r: float | None, number: int) -> tuple[float, float]:
    """The 95 % interval of a correlation, by Fisher's transformation."""
    if r is None or number < 4:
        return -1.0, 1.0
    z, half = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, r))), 1.96 / math.sqrt(number - 3)
    return math.tanh(z - half), math.tanh(z + half)


def _correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    import numpy as np

    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _difference(block: Mapping[str, Any], side: str, first: str, second: str) -> float | None:
    for one in block["comparisons"]:
        if (one["side"], one["first"], one["second"]) == (side, first, second):
            return finite(one["value"])
    return None


def _diversity(content: Mapping[str, Any]) -> Shown | None:
    """The ratio-error on ID and OOD data, with intervals."""
    blocks = [block for block in content["blocks"] if block["diversity"]]
    sides = [side for side in ("ood", "id") if any(side in block["diversity"] for block in blocks)]
    rows = []
    for block in blocks:
        for side, found in block["diversity"].items():
            for measure in ("ratio_error", "q_diversity", "disagreement"):
                one = found[measure]
                rows.append((block["name"], side, measure, one["value"], one["low"], one["high"]))
    known = [row for row in rows if row[2] == "ratio_error" and finite(row[3]) is not None]
    if not known or len(sides) < 2 or len(blocks) > 40:
        return None
    names = [block["name"] for block in blocks]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, side, _, value, low, high in known:
            _bar(
                axes,
                {"value": value, "low": low, "high": high},
                names.index(name) + (0.16 if side == "id" else -0.16),
                side,
                scale=1,
            )
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), [_short(name, 18) for name in names])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("ratio-error: more is more diverse")
        _sides(figure, sides)

    means = {
        side: math.fsum(row[3] for row in known if row[1] == side) / max(1, sum(r[1] == side for r in known))
        for side in sides
    }
    numbers = f"ratio-error {means['ood']:.2f} on OOD data against {means['id']:.2f} on ID data"
    apart = [_apart(block) for block in blocks]
    clear = max(apart.count("more"), apart.count("less"))
    if 2 * clear > len(blocks):
        more = "more differently" if apart.count("more") == clear else "more alike"
        reading = f"On OOD data members fail {more} than on ID data: {numbers}."
    else:
        reading = f"Whether members fail more differently on OOD data cannot be told: {numbers}, and wide intervals."
    return Shown(
        Drawn(
            Plot(
                name="diversity",
                section="why",
                alt=f"Ratio-error on ID and OOD data. {reading}",
                caption="Failing together (0) gives nothing to correct; failing apart does. Bars: 95 % intervals over "
                f"images.{_undrawn(rows)}",
                size=(380, 80 + max(40, 30 * len(names))),
                draw=draw,
            ),
            ("target", "side", "measure", "value", "low", "high"),
            tuple(rows),
        ),
        "How differently do members fail?",
        reading,
    )


def _undrawn(rows: Sequence[tuple[Any, ...]]) -> str:
    """What a figure of ratio-errors cannot show."""
    ratios = [row for row in rows if row[2] == "ratio_error"]
    none = [row for row in ratios if finite(row[3]) is None]
    bare = [row for row in ratios if finite(row[3]) is not None and finite(row[4]) is None]
    text = ""
    if none:
        names = ", ".join(f"{_short(name, 18)} ({side.upper()})" for name, side, *_ in none[:5])
        more = ", ..." if len(none) > 5 else ""
        text += (
            f" Not drawn, as some two members share no error and it is infinite or undefined: {names}{more}."
        )
    if bare:
        text += " A dot without a bar: its interval is not determined, as few images are failed by both of a pair."
    return text


def _apart(block: Mapping[str, Any]) -> str:
    """Whether the intervals of the ratio-error on both sides do not meet, and which is higher."""
    inner, outer = (block["diversity"].get(side, {}).get("ratio_error", {}) for side in ("id", "ood"))
    ends = [finite(one.get(end)) for one in (inner, outer) for end in ("low", "high")]
    if any(end is None for end in ends):
        return ""
    if outer["low"] > inner["high"]:
        return "more"
    return "less" if outer["high"] < inner["low"] else ""


def _reliability(content: Mapping[str, Any]) -> Shown | None:
    """Accuracy against confidence, of what is shipped."""
    ship = content["verdict"]["ship"]
    found = content["total"]["calibration"].get(ship)
    if not found:
        return None
    sides = [side for side in ("ood", "id") if found.get(side)]
    if not sides:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], ":", color=_ink("muted"), linewidth=1.2)
        for side in reversed(sides):
            bins = [one for one in found[side]["bins"] if one["images"]]
            most = max(one["images"] for one in bins)
            drawn = [one for one in bins if one["images"] >= FEW_IN_BIN]
            axes.plot(
                [100 * one["confidence"] for one in drawn],
                [100 * one["accuracy"] for one in drawn],
                **_style(side),
                linewidth=1.6,
                linestyle="-" if side == "ood" else "--",
            )
            for one in bins:  # the height of a tick says how many images there are
                x = 100 * one["confidence"]
                height = 12 * one["images"] / most
                axes.plot([x, x], [0, height], color=_style(side)["color"], linewidth=3, alpha=0.35)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.set_xlabel("confidence, percent")
        axes.set_ylabel("right, percent")
        _sides(figure, sides)

    side = sides[0]
    error, gap = found[side]["ece"], found[side]["confidence_gap"]
    kind = "claims more than it keeps" if gap > 0 else "is right more often than it claims"
    name = content["verdict"]["ship_label"]
    reading = f"On {SIDES[side]} confidence and accuracy differ by {percent(error)} points on average"
    reading += f": {name} {kind}." if error > 0.02 else ": it can be believed."
    return Shown(
        Drawn(
            Plot(
                name="reliability",
                section="why",
                alt=f"Share of right predictions against confidence. {reading}",
                caption="On the dotted line, of 100 predictions at 80 % confidence 80 are right. Below it, it is "
                f"overconfident. Ticks at the bottom: where the images are; bins of fewer than {FEW_IN_BIN} have no "
                "dot.",
                size=(380, 280),
                draw=draw,
            ),
            ("side", "low", "high", "images", "confidence", "accuracy"),
            tuple(
                (side, one["low"], one["high"], one["images"], one["confidence"], one["accuracy"])
                for side in sides
                for one in found[side]["bins"]
            ),
        ),
        "Can its confidence be believed?",
        reading,
    )


def _weights(content: Mapping[str, Any]) -> Shown | None:
    """How far members moved, and how far they ended from their average."""
    blocks = [block for block in content["blocks"] if block["weights"]]
    if not blocks or len(blocks) > 40:
        return None
    rows = []
    for block in blocks:
        found = block["weights"]
        for kind in ("to_start", "to_average"):
            values = [finite(value) for value in found[kind] or ()]
            for member, value in zip(found["members"], values, strict=False):
                if value is not None:
                    rows.append((block["name"], member, kind, value))
    if not rows:
        return None
    names = [block["name"] for block in blocks]
    kinds = [kind for kind in ("to_start", "to_average") if any(row[2] == kind for row in rows)]
    labels = {"to_start": "member to start", "to_average": "member to average"}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for kind in kinds:
            style = _style("ood" if kind == "to_average" else "id")
            dots = [row for row in rows if row[2] == kind]
            axes.plot(
                [row[3] for row in dots],
                [names.index(row[0]) + (0.14 if kind == "to_start" else -0.14) for row in dots],
                linestyle="none",
                label=labels[kind],
                **{**style, "markersize": 5},
            )
        axes.set_xlim(left=0)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), [_short(name, 18) for name in names])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("distance between weights")
        figure.legend(loc="outside lower left", ncols=2, handletextpad=0.3, columnspacing=1)

    means = {
        kind: math.fsum(row[3] for row in rows if row[2] == kind) / sum(row[2] == kind for row in rows)
        for kind in kinds
    }
    cosines = [
        value
        for block in blocks
        for i, row in enumerate(block["weights"]["cosines"] or ())
        for value in row[i + 1 :]
        if finite(value) is not None
    ]
    reading = f"Members lie {means['to_average']:.3g} from their average on the mean"
    if "to_start" in means:
        reading += f", after moving {means['to_start']:.3g} from their start"
    if cosines:
        shared = math.fsum(cosines) / len(cosines)
        reading += f"; the cosine between their moves is {shared:.2f}".replace("-", "−")
    return Shown(
        Drawn(
            Plot(
                name="weights",
                section="why",
                alt=f"Distances of members from their start and from their average. {reading}.",
                caption="A dot is a member. Averaging needs members close to their average, compared with the way "
                "they went. A cosine of 1: all moved the same way; 0: in unrelated directions.",
                size=(380, 80 + max(50, 30 * len(names))),
                draw=draw,
            ),
            ("target", "member", "distance", "value"),
            tuple(rows),
        ),
        "How far apart are the weights?",
        f"{reading}.",
    )


def _losses(content: Mapping[str, Any]) -> Shown | None:
    """The loss of a member is that of the ensemble and what diversity takes away."""
    found: dict[str, list[tuple[float, float]]] = {}
    rows = []
    for block in content["blocks"]:
        for side, loss in block["loss"].items():
            ensemble, diversity = finite(loss["ensemble"]), finite(loss["diversity"])
            rows.append((block["name"], side, loss["member"], loss["ensemble"], loss["diversity"]))
            if ensemble is not None and diversity is not None:
                found.setdefault(side, []).append((ensemble, diversity))
    sides = [side for side in ("ood", "id") if len(found.get(side, ())) == len(content["blocks"])]
    if not sides:
        return None
    means = {
        side: tuple(math.fsum(one[k] for one in found[side]) / len(found[side]) for k in (0, 1))
        for side in sides
    }

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for y, side in enumerate(sides):
            ensemble, diversity = means[side]
            axes.barh(y, ensemble, 0.55, color=_ink("ensemble"), label="ensemble" if not y else None)
            axes.barh(
                y,
                diversity,
                0.55,
                left=ensemble,
                color=_ink("average"),
                alpha=0.55,
                label="what diversity takes away" if not y else None,
            )
        axes.set_ylim(len(sides) - 0.4, -0.6)
        axes.set_yticks(range(len(sides)), [SIDES[side] for side in sides])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("loss (negative log-likelihood, nats)")
        figure.legend(loc="outside lower left", ncols=2, handletextpad=0.4, columnspacing=1)

    ensemble, diversity = means[sides[0]]
    reading = (
        f"On {SIDES[sides[0]]} the mean member loses {ensemble + diversity:.3f}; their diversity takes "
        f"{diversity:.3f} of it away ({100 * diversity / max(ensemble + diversity, 1e-12):.0f} %)."
    )
    return Shown(
        Drawn(
            Plot(
                name="loss",
                section="why",
                alt=f"The loss of the mean member as that of the ensemble and diversity. {reading}",
                caption="The whole bar is the loss of the mean member. Diversity never adds to it: the ensemble of "
                "logits is never worse than its mean member in this loss.",
                size=(380, 90 + 45 * len(sides)),
                draw=draw,
            ),
            ("target", "side", "member", "ensemble", "diversity"),
            tuple(rows),
        ),
        "What diversity takes from the loss",
        reading,
    )


def _terms(terms: Mapping[str, Any], number: int) -> Shown | None:
    """Bias, variance, covariance and locality, from several data seeds."""
    m = terms["members"]
    found = terms["terms"]
    parts: list[tuple[str, Mapping[str, Any], float]] = [
        ("bias²", found["bias_squared"], 1.0),
        (f"variance / {m}", found["variance"], 1 / m),
        (f"covariance × {m - 1}/{m}", found["covariance"], (m - 1) / m),
    ]
    if terms.get("remainder"):
        parts.append(("locality (rest)", terms["remainder"], 1.0))
    if any(finite(part["value"]) is None for _, part, _ in parts):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for y, (_, part, share) in enumerate(parts):
            axes.barh(y, share * part["value"], 0.55, color=_ink("average"), alpha=0.6)
            ends = [part["low"], part["high"]]
            if all(finite(end) is not None for end in ends):
                axes.plot([share * end for end in ends], [y, y], color=_ink("ink"), linewidth=1.4)
        axes.axvline(0, color=_ink("ink"), linewidth=1)
        axes.set_ylim(len(parts) - 0.5, -0.5)
        axes.set_yticks(range(len(parts)), [label for label, _, _ in parts])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("squared error")

    largest = max(parts, key=lambda part: part[2] * part[1]["value"])
    reading = f"On {terms['target']} most of the squared error is {largest[0]}"
    reading += f" ({largest[2] * largest[1]['value']:.3f})."
    return Shown(
        Drawn(
            Plot(
                name=f"terms_{number}",
                section="why",
                alt=f"Bias, variance, covariance and locality on {terms['target']}. {reading}",
                caption="More members lower the variance part only. The rest is what averaging weights, and not "
                f"predictions, costs; members lie {terms['locality']['distance']:.3g} from their average, by weights. "
                f"From {terms['replicates']} data seeds; lines: 95 % intervals over images.",
                size=(380, 70 + 34 * len(parts)),
                draw=draw,
            ),
            ("term", "value", "low", "high", "share"),
            tuple((label, p["value"], p["low"], p["high"], share) for label, p, share in parts),
        ),
        f"What the error on {_short(str(terms['target']), 24)} is made of",
        reading,
    )


def _invariance(content: Mapping[str, Any]) -> Shown | None:
    found = draw_invariance(content)
    return None if found is None else Shown(found[0], "Further apart than chance?", found[1])


def _errors(block: Mapping[str, Any], number: int) -> Shown | None:
    side = "ood" if "ood" in block["diversity"] else "id"
    found = block["diversity"].get(side)
    if found is None or len(block["names"]) > 60:
        return None
    matrix = [[_float(value) for value in row] for row in found["matrix"]]
    drawn = draw_heatmap(matrix, block["names"], measure="ratio-error", name=f"errors_{number}")
    pairs = [
        (matrix[i][j], i, j)
        for i in range(len(matrix))
        for j in range(i + 1, len(matrix))
        if math.isfinite(matrix[i][j])
    ]
    reading = "No pair of members shares an error."
    if pairs:
        (_, a, b), (_, c, d) = min(pairs), max(pairs)
        names = block["names"]
        reading = f"{names[a]} and {names[b]} fail most alike"
        reading += f", {names[c]} and {names[d]} most differently." if len(pairs) > 1 else "."
    return Shown(drawn, f"Pairs of members, {SIDES[side]}", reading, block["name"])


def _cosines(block: Mapping[str, Any], number: int) -> Shown | None:
    found = block["weights"]
    if not found or len(found["members"]) > 60:
        return None
    if found["cosines"] is not None:
        matrix, measure = found["cosines"], "cosine of the moves from the start"
        reading = "1: both moved the same way from their start; 0: in unrelated directions."
    else:
        matrix, measure = found["between"], "distance between weights"
        reading = "The larger, the further apart; without the start, no angle is known."
    values = [[_float(value) for value in row] for row in matrix]
    drawn = draw_heatmap(values, found["members"], measure=measure, name=f"weights_{number}")
    return Shown(drawn, "Pairs of weights", reading, block["name"])


# Drawing.


def _ink(name: str) -> str:
    return COLORS[name][0]


def _style(side: str) -> dict[str, Any]:
    """OOD is full and blue, ID is hollow and grey; never told apart by colour alone."""
    if side == "ood":
        return {"color": _ink("average"), "marker": "o", "markersize": 6}
    return {"color": _ink("muted"), "marker": "s", "markersize": 5, "markerfacecolor": "none"}


def _bar(axes: Axes, one: Mapping[str, Any], y: float, side: str, *, scale: float = 100) -> None:
    style = _style(side)
    ends = [finite(one["low"]), finite(one["high"])]
    if ends[0] is not None and ends[1] is not None:
        axes.plot([scale * ends[0], scale * ends[1]], [y, y], color=style["color"], linewidth=1.6)
    axes.plot([scale * one["value"]], [y], linestyle="none", **style)


def _sides(figure: Figure, sides: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="none", label=SIDES[side], **_style(side)) for side in sides]
    figure.legend(handles=handles, loc="outside lower left", ncols=2, handletextpad=0.3, columnspacing=1)


def _captioned(drawn: Drawn, caption: str) -> Drawn:
    return replace(drawn, plot=replace(drawn.plot, caption=caption))


def _float(value: Any) -> float:
    if value == "infinite":
        return math.inf
    return math.nan if value is None else float(value)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
