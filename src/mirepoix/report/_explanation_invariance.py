"""Is it invariant across the source domains? The tables and the figure of that section."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirepoix.report._figure_files import Drawn
from mirepoix.report._figures import COLORS, Plot
from mirepoix.report._numbers import NOT_AVAILABLE, finite, ratio
from mirepoix.report._tables import Table, table_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Invariance", "draw_invariance", "invariance_of"]

WORDS = {"risk": "Losses", "gradient_variance": "Gradient variances", "hessian_diagonal": "Curvatures"}
WHO = {"start": "Start", "mean": "Mean member", "member": "The member", "average": "Average of weights"}
MARKS = {
    "start": ("muted", "s"),
    "mean": ("ensemble", "D"),
    "member": ("average", "o"),
    "average": ("average", "o"),
}


@dataclass(frozen=True, slots=True)
class Invariance:
    """The section, ready to print.

    Attributes:
        answer: In sentences.
        read: Which images were read.
        table: Start, mean member and average; empty with one source domain.
        details: For each target its name, and the tables of every member, each with what it shows.
    """

    answer: tuple[str, ...]
    read: str
    table: Table
    details: tuple[tuple[str, tuple[tuple[str, Table], ...]], ...]


def invariance_of(content: Mapping[str, Any]) -> Invariance | None:
    """The section, if the explanation has the numbers.

    Args:
        content: From `mirepoix.evidence.explain`, with printable names.
    """
    found = content.get("invariance")
    if not found:
        return None
    lines = [
        [WHO[row["name"]], *(f"{_number(row['distance'][q])} ({_number(row['chance'][q])})" for q in WORDS)]
        for row in found["rows"]
    ]
    return Invariance(
        tuple(found["answer"]),
        f"Read were {found['images']}.",
        table_of(["", *WORDS.values()], lines),
        tuple((block["name"], _tables(block)) for block in found["blocks"]),
    )


def _tables(block: Mapping[str, Any]) -> tuple[tuple[str, Table], ...]:
    """Losses, distances and cosines of everything that was examined on one target, each with what it is."""

    def of_domains(key: str, cell: Callable[[Any], str]) -> Table:
        lines = [
            [_who(row), *(cell(row["domains"][domain][key]) for domain in block["domains"])]
            for row in block["rows"]
        ]
        return table_of(["", *block["domains"]], lines)

    tables = [("Mean loss on each source domain.", of_domains("risk", "{:.3f}".format))]
    if len(block["domains"]) > 1:
        lines = [[_who(row), *(_distance(row, quantity) for quantity in WORDS)] for row in block["rows"]]
        text = "Squared distances between the domains; in brackets, by chance. Seen: no shuffle came as far."
        tables.append((text, table_of(["", *WORDS.values()], lines)))
    text = "Cosine of gradient variance and curvature in each domain; 1: the same up to a factor."
    return (*tables, (text, of_domains("cosine", _cosine)))


def _who(row: Mapping[str, Any]) -> str:
    return WHO[row["name"]] if row["name"] in ("start", "average") else str(row["name"])


def _distance(row: Mapping[str, Any], quantity: str) -> str:
    text = _number(row["distance"][quantity])
    if row["chance"] is not None:
        text += f" ({_number(row['chance'][quantity])})"
    return f"{text}, seen" if row["seen"][quantity] else text


def _cosine(value: Any) -> str:
    number = finite(value)
    return ratio(value) if number is None or number < 0.99 else f"{number:.5f}"


def _number(value: Any) -> str:
    number = finite(value)
    if number is None:
        return NOT_AVAILABLE
    return f"{number:,.0f}" if number >= 100 else f"{number:#.2g}" if number else "0"


def draw_invariance(content: Mapping[str, Any]) -> tuple[Drawn, str] | None:
    """How many times further apart domains are than shuffled images, and what it says; if there is anything to draw."""
    found = content.get("invariance")
    if not found or not found["rows"]:
        return None
    rows, times = [], []
    for row in found["rows"]:
        for quantity in WORDS:
            distance, chance = row["distance"][quantity], row["chance"][quantity]
            rows.append((row["name"], quantity, distance, chance, row["seen"][quantity], row["of"]))
            if chance and distance:
                times.append(
                    (row["name"], quantity, distance / chance, 2 * row["seen"][quantity] > row["of"])
                )
    if not times:
        return None
    names = [row["name"] for row in found["rows"]]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, quantity, value, seen in times:
            y = list(WORDS).index(quantity) + 0.2 * (names.index(name) - (len(names) - 1) / 2)
            axes.plot([value], [y], linestyle="none", **_style(name, seen))
        axes.axvline(1, color=COLORS["ink"][0], linewidth=1)
        axes.set_xscale("log")
        low, high = min(1.0, *(one[2] for one in times)), max(1.0, *(one[2] for one in times))
        axes.set_xlim(low / 1.5, high * 1.5)
        steps = (1, 2, 5) if high < 50 * low else (1,)
        ticks = [step * 10.0**power for power in range(-9, 10) for step in steps]
        axes.set_xticks([tick for tick in ticks if low / 1.5 <= tick <= high * 1.5])
        axes.set_ylim(len(WORDS) - 0.5, -0.5)
        axes.set_yticks(range(len(WORDS)), list(WORDS.values()))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("times as far apart as by chance")
        axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, place: "")
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], linestyle="none", label=WHO[name], **_style(name, True)) for name in names]
        figure.legend(handles=handles, loc="outside lower left", ncols=3, handletextpad=0.3, columnspacing=1)

    answer = found["answer"][0]
    plot = Plot(
        name="invariance",
        section="why",
        alt=f"Distances between source domains, as multiples of those of shuffled images. {answer}",
        caption="On the line, source domains are as far apart as the same images shuffled among them: nothing depends "
        "on the domain. Right of it, they differ. Full: seen; hollow: could be chance.",
        size=(380, 230),
        draw=draw,
    )
    columns = ("weights", "quantity", "distance", "chance", "seen", "of")
    reading = found["answer"][-1] if len(found["answer"]) > 1 else answer
    return Drawn(plot, columns, tuple(rows)), reading


def _style(name: str, seen: bool) -> dict[str, Any]:
    color, marker = MARKS[name]
    style = {"color": COLORS[color][0], "marker": marker, "markersize": 7}
    return style if seen else {**style, "markerfacecolor": "none"}
