"""The page of a comparison of ensembles: the table, how members differ, what they cost, and what happened along.

The head of the page with its style and its macros is that of the report of a job (``template.html``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirepoix.report._figures import COLORS, Plot
from mirepoix.report._html import page_template
from mirepoix.report._markdown import _code, _items, _plain, _table, _terms
from mirepoix.report._numbers import NOT_AVAILABLE, amount, cleaned, finite, setting
from mirepoix.report._result import as_list, as_map
from mirepoix.report._strategy_figures import _axes, _legend, _style
from mirepoix.report._tables import Cell, Table, table_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracies", "comparison_texts", "narrowed"]

Shown = Callable[[Any, Any], str]
"""A mean and its error, or no error, as text."""


@dataclass(frozen=True, slots=True)
class _Result:
    """One table with what stands above and below it."""

    title: str
    caption: str
    table: Table
    terms: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Page:
    """All that the page says."""

    title: str
    name: str
    version: str
    facts: tuple[tuple[str, str], ...]
    verdict: str
    trust: tuple[tuple[str, str], ...]
    results: tuple[_Result, ...]
    overview: tuple[Plot, ...]
    along: tuple[Plot, ...]
    along_note: str
    systems: Table
    members: Table
    messages: tuple[str, ...]
    protocol: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]
    command: str


def comparison_texts(report: Mapping[str, Any]) -> dict[str, str]:
    """The page in every form: a text for each file, the page in HTML last.

    Args:
        report: What `mirepoix.comparison.run_comparison` returns: ``name``, ``title``, ``source``, ``mirepoix``,
            ``task``, ``target``, ``start``, ``network``, ``baseline``, ``protocol``, ``rows``, ``members``, ``along``,
            ``verdict``, ``trust``; optionally ``environment`` and ``command``.
    """
    page = _page(cleaned(dict(report)))
    texts = {"report.md": _markdown(page)}
    for plot in (*page.overview, *page.along):
        texts[f"figures/{plot.name}.svg"] = plot.svg(inline=False)
    texts["report.html"] = _html(page)
    return texts


# Tables.


def accuracies(report: Mapping[str, Any]) -> Table:
    """A line per system: its accuracy, that of its members, and the difference to the baseline."""
    rows = as_list(report.get("rows"))
    soups = any(_measure(row, "soup_accuracy")["mean"] is not None for row in rows)
    columns: list[tuple[str, str, Shown, int]] = [
        ("Accuracy", "accuracy", _percent, 1),
        ("Mean member", "member_accuracy", _percent, 1),
        ("Probabilities averaged", "accuracy_of_probabilities", _percent, 1),
        *([("Weights averaged", "soup_accuracy", _percent, 1)] if soups else []),
        ("Members", "members", _count, 0),
        ("Forwards", "forward_cost", _times, 0),
    ]
    table = _measured(rows, columns)
    heads = [table.columns[0], table.columns[1], "Difference", *table.columns[2:]]
    lines = [
        (line[0], line[1], Cell(_difference(row)), *line[2:])
        for line, row in zip(table.lines, rows, strict=True)
    ]
    return Table(tuple(heads), tuple(lines))


def narrowed(table: Table) -> Table:
    """The same for a narrow terminal: system, accuracy and difference."""
    return Table(table.columns[:3], tuple(line[:3] for line in table.lines))


def _measured(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, Shown, int]]) -> Table:
    """A line per row and a column per measure; the best of a column is marked, the highest (1) or lowest (-1)."""
    printed = [
        [shown(_measure(row, name)["mean"], _measure(row, name)["error"]) for _, name, shown, _ in columns]
        for row in rows
    ]
    best: list[str | None] = []
    for _, name, shown, sign in columns:
        known = [value for row in rows if (value := finite(_measure(row, name)["mean"])) is not None]
        # Two numbers that print alike are both the best: the page does not rank what it does not show.
        best.append(shown(max(known, key=lambda v: sign * v), None) if sign and len(known) > 1 else None)
    lines = []
    for row, texts in zip(rows, printed, strict=True):
        line = [Cell(str(row["label"]))]
        for (_, name, shown, _), text, top in zip(columns, texts, best, strict=True):
            line.append(Cell(text, top is not None and shown(_measure(row, name)["mean"], None) == top))
        lines.append(tuple(line))
    return Table(("System", *(head for head, *_ in columns)), tuple(lines))


def _measure(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return {"mean": None, "error": None, **as_map(as_map(row.get("measures")).get(name))}


def _shown(value: Any, error: Any, factor: float, digits: int) -> str:
    if value == "infinite":
        return "∞"
    number, spread = finite(value), finite(error)
    if number is None:
        return NOT_AVAILABLE
    text = f"{factor * number:.{digits}f}".replace("-", "−")
    return text if spread is None else f"{text} ± {factor * spread:.{digits}f}"


def _percent(value: Any, error: Any) -> str:
    return _shown(value, error, 100, 2)


def _hundred(value: Any, error: Any) -> str:
    return _shown(value, error, 100, 1)


def _thousandths(value: Any, error: Any) -> str:
    return _shown(value, error, 1, 3)


def _hundredths(value: Any, error: Any) -> str:
    return _shown(value, error, 1, 2)


def _count(value: Any, error: Any) -> str:
    number = finite(value)
    return NOT_AVAILABLE if number is None else f"{number:,.4g}" if number < 1000 else f"{number:,.0f}"


def _times(value: Any, error: Any) -> str:
    number = finite(value)
    return NOT_AVAILABLE if number is None else f"{number:.3g}×"


def _millions(value: Any, error: Any) -> str:
    number = finite(value)
    return NOT_AVAILABLE if number is None else f"{number / 1e6:,.3g}"


def _difference(row: Mapping[str, Any]) -> str:
    found = as_map(row.get("difference"))
    if finite(found.get("mean")) is None:
        return "–"
    text = _signed(found["mean"])
    return (
        text
        if finite(found.get("low")) is None
        else f"{text} ({_signed(found['low'])} to {_signed(found['high'])})"
    )


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−")


def _results(report: Mapping[str, Any]) -> tuple[_Result, ...]:
    rows = as_list(report.get("rows"))
    trials = as_list(as_map(report.get("protocol")).get("trials"))
    spread = f"mean ± standard error over {len(trials)} trials" if len(trials) > 1 else "one trial"
    base = report.get("baseline")
    interval = ", with the 95 % interval of a paired t-test over trials" if len(trials) > 1 else ""
    per_trial = table_of(
        ["System", *(f"Trial {trial}" for trial in trials)],
        [
            [row["label"], *(_percent(as_map(values).get("accuracy"), None) for values in row["trials"])]
            for row in rows
        ],
    )
    return (
        _Result(
            "Accuracy, percent",
            f"On all images of {report.get('target')}; {spread}. A prediction is the average of the members' logits, "
            "beside it that of their probabilities, and one network with the average of their weights where they "
            f"have one start. Difference: in points, from {base} in the same trials{interval}.",
            accuracies(report),
        ),
        _Result(
            "Confidence",
            f"Of the average of logits; {spread}. Lower is better, but for the temperature.",
            _measured(
                rows,
                [
                    ("NLL", "nll", _thousandths, -1),
                    ("Calibrated NLL", "calibrated_nll", _thousandths, -1),
                    ("Temperature", "temperature", _hundredths, 0),
                    ("ECE, percent", "ece", _percent, -1),
                    ("Brier", "brier", _thousandths, -1),
                ],
            ),
            (
                ("NLL", "Negative log-likelihood of the labels, in nats."),
                (
                    "Calibrated NLL",
                    "The same after division of the logits by a temperature, fitted on one half of the target for "
                    "the other, and the other way round.",
                ),
                ("ECE", "Expected calibration error, 15 bins of equal width."),
                ("Brier", "Squared distance of probabilities from the label, summed over classes."),
            ),
        ),
        _Result(
            "Diversity",
            f"Means over pairs of members; {spread}. Higher is more diverse.",
            _measured(
                rows,
                [
                    ("Mean member", "member_accuracy", _percent, 0),
                    ("Ratio-error", "ratio_error", _thousandths, 0),
                    ("Normalised difference", "normalised_difference", _hundred, 0),
                    ("Disagreement, percent", "disagreement", _percent, 0),
                ],
            ),
            (
                ("Ratio-error", "How often two members fail apart, over how often they fail together."),
                (
                    "Normalised difference",
                    "100 times how often two members answer differently, in units of the larger of their errors.",
                ),
                ("Disagreement", "How often two members answer differently."),
            ),
        ),
        _Result(
            "Cost",
            "Means over trials. A training that two systems share is made once, and counted for both.",
            _measured(
                rows,
                [
                    ("Members", "members", _count, 0),
                    ("Parameters, millions", "parameters", _millions, 0),
                    ("Forwards", "forward_cost", _times, 0),
                    ("Updates", "updates", _count, 0),
                    ("Seconds", "seconds", _count, 0),
                ],
            ),
            (
                ("Parameters", "Of all that a prediction needs."),
                ("Forwards", "Multiplications of a prediction, in units of one network's."),
                (
                    "Updates",
                    "Of networks, in all trainings of a trial; an update of several members in one costs more.",
                ),
                ("Seconds", "Of these trainings, by the clock of the machine that made them."),
            ),
        ),
        _Result("Accuracy of every trial, percent", "", per_trial),
    )


# Facts.


def _page(report: Mapping[str, Any]) -> _Page:
    rows, members = as_list(report.get("rows")), as_list(report.get("members"))
    along, note = _along(report)
    return _Page(
        title=str(report.get("title") or report.get("name") or "comparison"),
        name=str(report.get("name") or ""),
        version=str(report.get("mirepoix") or ""),
        facts=_facts(report),
        verdict=str(report.get("verdict") or ""),
        trust=tuple((str(each["level"]), str(each["text"])) for each in as_list(report.get("trust"))),
        results=_results(report),
        overview=tuple(_overview(rows)),
        along=tuple(along),
        along_note=note,
        systems=table_of(
            ["System", "Equation", "Kind", "Minimised", "By later members"],
            [
                [
                    row["label"],
                    str(row.get("equation") or ""),
                    str(row.get("kind")).replace("_", " "),
                    str(row.get("objective") or ""),
                    str(row.get("later") or "–"),
                ]
                for row in rows
            ],
        ),
        members=_members(members),
        messages=tuple(
            f"{row['system']}, trial {row['trial']}, training {row['number']}: {row['message']}"
            for row in members
            if row.get("message")
        ),
        protocol=_named(as_map(report.get("protocol"))),
        environment=_named(as_map(report.get("environment"))),
        command=str(report.get("command") or ""),
    )


def _facts(report: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    task, protocol = as_map(report.get("task")), as_map(report.get("protocol"))
    domains = as_list(task.get("domains"))
    target = report.get("target")
    images = sum(domain["images"] for domain in domains if domain["name"] == target)
    others = sum(domain["images"] for domain in domains if domain["name"] != target)
    trained = ", ".join(str(domain["name"]) for domain in domains if domain["name"] != target)
    facts = [
        (
            "Task",
            f"{task.get('name', '')}: {amount(len(as_list(task.get('classes'))), 'class', 'classes')}; tested on "
            f"{target} ({amount(images, 'image')}), trained on {trained} ({amount(others, 'image')}, some held out).",
        ),
        ("Network", str(report.get("network") or NOT_AVAILABLE)),
        ("Start", str(report.get("start") or NOT_AVAILABLE)),
        (
            "Systems",
            f"{amount(len(as_list(report.get('rows'))), 'row')}, each in "
            f"{amount(len(as_list(protocol.get('trials'))), 'trial')}.",
        ),
    ]
    if report.get("source"):
        facts.append(("Source", str(report["source"])))
    return tuple(facts)


def _members(members: Sequence[Mapping[str, Any]]) -> Table:
    lines = []
    for row in members:
        run = as_map(row.get("configuration"))
        accuracies = ", ".join(_percent(value, None) for value in as_list(row.get("accuracies")))
        lines.append(
            [
                str(row["system"]),
                setting(row.get("trial")),
                setting(row.get("number")),
                str(row.get("status")),
                _percent(row.get("id_accuracy"), None),
                accuracies or NOT_AVAILABLE,
                setting(run.get("steps")),
                setting(run.get("learning_rate")),
                setting(run.get("seed")),
            ]
        )
    heads = ["System", "Trial", "Training", "Status", "Held out", "Members on the target"]
    return table_of([*heads, "Steps", "Learning rate", "Seed"], lines)


def _named(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (
            str(key).replace("_", " ").capitalize(),
            ", ".join(map(setting, value)) if isinstance(value, list) else setting(value),
        )
        for key, value in values.items()
    )


# Figures.


def _ink(name: str) -> str:
    return COLORS[name][0]


def _overview(rows: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Accuracy of every system and of its mean member."""
    found = [row for row in rows if finite(_measure(row, "accuracy")["mean"]) is not None]
    if not found:
        return []
    kinds = (
        ("accuracy", "the members together", "o", "average"),
        ("member_accuracy", "mean member", "D", "muted"),
    )

    def draw(figure: Figure) -> None:
        axes = _axes(figure, "", "accuracy, percent", "")
        for name, label, marker, color in kinds:
            values = [_measure(row, name) for row in found]
            places = range(len(found))
            axes.plot(
                [100 * value["mean"] for value in values],
                places,
                linestyle="none",
                marker=marker,
                markersize=6 if name == "accuracy" else 4.5,
                color=_ink(color),
                label=label,
            )
            for place, value in zip(places, values, strict=True):
                error = finite(value["error"])
                if error is not None:
                    ends = [100 * (value["mean"] - error), 100 * (value["mean"] + error)]
                    axes.plot(ends, [place, place], color=_ink(color), linewidth=1)
        axes.set_yticks(range(len(found)), [_short(str(row["label"])) for row in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        _legend(figure, len(kinds))

    best = max(found, key=lambda row: _measure(row, "accuracy")["mean"])
    told = f"highest: {best['label']}, {_percent(**_given(best, 'accuracy'))}"
    errors = any(_measure(row, "accuracy")["error"] is not None for row in found)
    bars = " Bars: one standard error over trials." if errors else ""
    return [
        Plot(
            name="systems",
            section="good",
            alt=f"Accuracy in percent of each system and of its mean member; {told}.",
            caption=f"The distance of the two marks is what combining gives.{bars}",
            size=(380, 70 + 24 * len(found)),
            draw=draw,
        )
    ]


def _given(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    measure = _measure(row, name)
    return {"value": measure["mean"], "error": measure["error"]}


def _along(report: Mapping[str, Any]) -> tuple[list[Plot], str]:
    """What changed along the training, a line per system, and how it was measured."""
    curves: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for each in as_list(report.get("along")):
        own = curves.setdefault(str(each["system"]), {})
        for point in as_list(each["points"]):
            own.setdefault(int(point["step"]), []).append(point)
    if not curves:
        return [], ""
    systems = list(curves)
    plots = []
    redundancy = _lines(curves, lambda point: as_map(point.get("terms")).get("redundancy"))
    if redundancy:
        what = "What members say twice, as the criterion of each system estimates it on its training images"
        plots.append(_plot("along_redundancy", systems, redundancy, {}, "estimated redundancy, nats", what))
    ratios = _lines(curves, lambda point: point.get("ratio_error"))
    if ratios:
        what = "How often members fail apart, over how often they fail together"
        plots.append(_plot("along_ratio_error", systems, ratios, {}, "ratio-error", what))
    together = _lines(curves, lambda point: point.get("accuracy"), 100)
    alone = _lines(curves, lambda point: point.get("member_accuracy"), 100)
    if together:
        what = "Members together, and the mean member (dashed)"
        plots.append(_plot("along_accuracy", systems, together, alone, "accuracy, percent", what))
    return plots, "Measured at every check on the same images of the target, in the mean over trials."


def _lines(
    curves: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]],
    value: Callable[[Mapping[str, Any]], Any],
    factor: float = 1.0,
) -> dict[str, list[tuple[int, float]]]:
    """For each system the mean of a value at each step at which every trial has one."""
    found: dict[str, list[tuple[int, float]]] = {}
    for label, steps in curves.items():
        line = []
        for step, points in sorted(steps.items()):
            values = [finite(value(point)) for point in points]
            known = [each for each in values if each is not None]
            if known and len(known) == len(values):
                line.append((step, factor * sum(known) / len(known)))
        if line:
            found[label] = line
    return found


def _plot(
    name: str,
    systems: Sequence[str],
    lines: Mapping[str, Sequence[tuple[int, float]]],
    dashed: Mapping[str, Sequence[tuple[int, float]]],
    what: str,
    caption: str,
) -> Plot:
    """Lines against updates; a system has its colour and marker in every figure, and may have a dashed line too."""

    def draw(figure: Figure) -> None:
        axes = _axes(figure, "", "updates", what, whole=True)
        for found, line, ending in ((lines, "-", ""), (dashed, "--", ", mean member")):
            for label, points in found.items():
                style = {**_style(systems.index(label)), "linestyle": line}
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, label=f"{_short(label)}{ending}", **style)
        _legend(figure, 2)

    ends = [f"{label} {_end(points)}" for label, points in lines.items()]
    ends += [f"{label}, mean member, {_end(points)}" for label, points in dashed.items()]
    told = "; ".join(ends)
    return Plot(
        name=name,
        section="why",
        alt=f"{what[:1].upper()}{what[1:]} against updates; at the end: {told}.",
        caption=f"{caption}. At the end: {told}.",
        size=(380, 260 + 15 * ((len(lines) + len(dashed) - 1) // 2)),
        draw=draw,
    )


def _end(points: Sequence[tuple[int, float]]) -> str:
    return f"{points[-1][1]:.3g}".replace("-", "−")


def _short(text: str, length: int = 24) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


# Files.


def _html(page: _Page) -> str:
    from markupsafe import Markup

    def drawn(plots: Sequence[Plot]) -> list[dict[str, Any]]:
        # Markup: the drawing is ours, and names within it were escaped when it was drawn.
        return [{"caption": plot.caption, "svg": Markup(plot.svg(inline=True))} for plot in plots]

    return page_template("comparison.html").render(
        page=page, overview=drawn(page.overview), along=drawn(page.along)
    )


def _markdown(page: _Page) -> str:
    def linked(plots: Sequence[Plot]) -> list[str]:
        return [
            text
            for plot in plots
            for text in (f"![{_plain(plot.alt)}](figures/{plot.name}.svg)", _plain(plot.caption))
        ]

    blocks = [f"# {_plain(page.title)}", _terms(page.facts)]
    blocks += [f"**{_plain(page.verdict)}**"] if page.verdict else []
    blocks.append("## When not to trust it")
    blocks.append("\n".join(f"- **{level.capitalize()}**: {_plain(text)}" for level, text in page.trust))
    blocks.append("## Which system is good?")
    for number, result in enumerate(page.results):
        blocks.append(f"### {_plain(result.title)}")
        blocks += [_plain(result.caption)] if result.caption else []
        blocks.append(_table(result.table))
        blocks += [_terms(result.terms)] if result.terms else []
        blocks += linked(page.overview) if number == 0 else []
    if page.along:
        blocks += ["## Along training", _plain(page.along_note), *linked(page.along)]
    blocks += ["## Details", "### Systems", _table(page.systems), "### Trainings", _table(page.members)]
    blocks += [_items(page.messages)] if page.messages else []
    blocks += ["### Protocol", _terms(page.protocol)]
    if page.command or page.environment:
        blocks.append("### How to reproduce")
        blocks += [_code(page.command)] if page.command else []
        blocks += [_terms(page.environment)] if page.environment else []
    return "\n\n".join(blocks) + "\n"
