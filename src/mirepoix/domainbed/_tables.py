"""The tables of the benchmark, and the way back from a number to the records it was computed from.

Every table states its protocol, its selection and what is measured, for the same row under another selection is
another number. A missing number prints a dash, and the reason stands below the table.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from mirepoix.domainbed._cells import (
    Cell,
    Entry,
    Measure,
    aggregate,
    average_over_datasets,
    average_over_seeds,
    average_over_targets,
)
from mirepoix.domainbed._selection import METHODS, Method
from mirepoix.types import InputError

__all__ = ["Format", "PrintedTable", "comparisons", "printed_tables", "tables", "trace"]

Format: TypeAlias = Literal["markdown", "csv", "latex"]

_SELECTIONS: dict[Method, str] = {
    "training-domain": "training-domain validation",
    "leave-one-out": "leave-one-out validation",
    "oracle": "oracle (test-domain validation)",
}
_MEASURES: dict[Measure, str] = {
    "whole": "accuracy on all images of the target domain",
    "part": "accuracy on the 80 % part of the target domain",
}
_DASH = "–"


@dataclass(frozen=True)
class PrintedTable:
    """Text that is ready to print; the first column is the name of the row."""

    title: str
    caption: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    missing: tuple[str, ...]


def tables(
    cells: Iterable[Cell], format: Format = "markdown", measure: Measure = "whole", *, protocol: str
) -> str:
    """One table per selection and dataset, and with several datasets one of averages per selection.

    A number is ``m ± e``, percent with one decimal: mean and standard error over data seeds, see `aggregate`. The
    last column ``Avg`` is the mean over targets within each data seed, then mean and error over data seeds, see
    `average_over_seeds`; with the protocol ``reference`` it has no error, as published. The table of averages has the
    same numbers, one column per dataset. A missing number is a dash, makes the average a dash, and is explained below
    the table.

    Args:
        cells: Rows, targets and datasets stand in the order in which they come.
        format: ``"markdown"``; ``"latex"``, for the plain article class; or ``"csv"``, one line per entry with
            mean and error as fractions, targets first, then the averages over data seeds (no target) and over
            datasets (no dataset).
        measure: On all images of the target, or on its 80 % part.
        protocol: Name of the protocol, for the captions.

    Raises:
        InputError: As in `aggregate`; without cells, or for an unknown format.
    """
    given = list(cells)
    if format not in get_args(Format):
        raise InputError(f"format: expected one of {', '.join(get_args(Format))}, got {format!r}.")
    if not given:
        raise InputError("tables: expected at least one cell, got none.")
    if format == "csv":
        return _csv(given, measure, protocol)
    made = printed_tables(given, measure, protocol)
    return "\n".join(_WRITERS[format](table) for table in made)


def printed_tables(cells: Sequence[Cell], measure: Measure, protocol: str) -> list[PrintedTable]:
    """The tables of `tables` as texts by line and column, for a page of one's own."""
    entries = aggregate(cells, measure)
    averages = average_over_seeds(cells, measure)
    made = []
    for selection in METHODS:
        own = [entry for entry in entries if entry.selection == selection]
        datasets = list(dict.fromkeys(entry.dataset for entry in own))
        for dataset in datasets:
            here = [entry for entry in own if entry.dataset == dataset]
            caption = _caption(cells, [dataset], selection, measure, protocol)
            title = f"{dataset}, {_SELECTIONS[selection]}"
            if protocol == "reference":
                last = average_over_targets(here)
            else:
                last = [e for e in averages if (e.selection, e.dataset) == (selection, dataset)]
            made.append(_table(title, caption, here, last, _target))
        if len(datasets) > 1:
            here = [entry for entry in averages if entry.selection == selection]
            caption = _caption(cells, datasets, selection, measure, protocol)
            caption += " Averaged over target domains within each data seed first."
            title = f"Averages, {_SELECTIONS[selection]}"
            made.append(_table(title, caption, here, average_over_datasets(here), _dataset))
    return made


def comparisons(cells: Sequence[Cell], baseline: str = "fine_tuning") -> list[PrintedTable]:
    """Each row against a baseline on the same splits, with what it costs; one table per selection and dataset.

    The difference of accuracies on the whole target is taken on each target and data seed, averaged over targets
    within each data seed, and printed as mean and standard error over data seeds, in points. Rows share splits and
    most of their members, so differences are known better than the numbers they are taken of. A row that lacks a
    number, or is made of all data seeds, has no difference.

    Args:
        cells: As for `tables`.
        baseline: Key of the row to compare with; where it is missing there is no table.
    """
    made = []
    for dataset, selection in dict.fromkeys((cell.dataset, cell.selection) for cell in cells):
        own = [cell for cell in cells if (cell.dataset, cell.selection) == (dataset, selection)]
        base = {(c.target, c.data_seed): c.whole for c in own if c.row == baseline}
        if not base or None in base.values():
            continue
        lines = []
        for row in dict.fromkeys(cell.row for cell in own):
            lines.append(_compared([cell for cell in own if cell.row == row], base, baseline))
        label = next(cell.label for cell in own if cell.row == baseline)
        made.append(
            PrintedTable(
                f"{dataset}, {_SELECTIONS[selection]}, against {label}",
                f"Difference from {label} on the same targets and data seeds, in points of accuracy on all images "
                "of the target; ID accuracy in percent. A difference within two errors of 0 is none.",
                ("Row", "Difference", "Better on", "ID accuracy", "Members", "Forwards"),
                tuple(lines),
                (),
            )
        )
    return made


def _compared(
    cells: Sequence[Cell], base: Mapping[tuple[str, int | None], float | None], baseline: str
) -> tuple[str, ...]:
    gains: dict[int | None, list[float]] = {}
    for cell in cells:
        reference = base.get((cell.target, cell.data_seed))
        if cell.whole is not None and reference is not None:
            gains.setdefault(cell.data_seed, []).append(100 * (cell.whole - reference))
    every = [gain for values in gains.values() for gain in values]
    complete = len(every) == len(base) and cells[0].row != baseline
    difference = better = _DASH
    if complete:
        means = [math.fsum(values) / len(values) for values in gains.values()]
        mean = math.fsum(means) / len(means)
        error = math.sqrt(math.fsum((value - mean) ** 2 for value in means)) / len(means)
        difference = f"{mean:+.1f}" + (f" ± {error:.1f}" if len(means) > 1 else "")
        better = f"{sum(gain > 0 for gain in every)} of {len(every)}"
    known = [cell.id_accuracy for cell in cells if cell.id_accuracy is not None]
    accuracy = f"{100 * math.fsum(known) / len(known):.1f}" if len(known) == len(cells) else _DASH
    members, cost = max(cell.members for cell in cells), max(cell.inference_cost for cell in cells)
    return (cells[0].label, difference, better, accuracy, str(members), str(cost))


def _target(entry: Entry) -> str:
    return str(entry.target)


def _dataset(entry: Entry) -> str:
    return str(entry.dataset)


def _table(
    title: str,
    caption: str,
    entries: Sequence[Entry],
    averages: Sequence[Entry],
    column_of: Callable[[Entry], str],
) -> PrintedTable:
    columns = list(dict.fromkeys(column_of(entry) for entry in entries))
    found = {(entry.row, column_of(entry)): entry for entry in entries}
    lines, missing = [], []
    for average in averages:
        own = [found.get((average.row, column)) for column in columns]
        lines.append((average.label, *(_number(entry) for entry in own), _number(average)))
        for column, entry in zip(columns, own, strict=True):
            reasons = ("no cell",) if entry is None else entry.missing
            missing += [f"{average.label}, {column}: {why}" for why in reasons]
    return PrintedTable(title, caption, ("Row", *columns, "Avg"), tuple(lines), tuple(missing))


def _caption(
    cells: Sequence[Cell], datasets: Sequence[str | None], selection: Method, measure: Measure, protocol: str
) -> str:
    seeds = {cell.data_seed for cell in cells if cell.selection == selection and cell.dataset in datasets} - {
        None
    }
    count = len(seeds)
    spread = f"mean ± standard error over {count} data seeds" if count > 1 else "one data seed, no error"
    text = f"Protocol {protocol}; {_SELECTIONS[selection]}; {_MEASURES[measure]}, in percent"
    return f"{text}; {spread}." if count else f"{text}."


def _number(entry: Entry | None) -> str:
    if entry is None or entry.mean is None:
        return _DASH
    text = f"{100 * entry.mean:.1f}"
    return text if entry.error is None else f"{text} ± {100 * entry.error:.1f}"


def _line(text: str) -> str:
    """On one line, without control characters."""
    kept = "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    return " ".join(kept.split())


def _markdown_text(text: str) -> str:
    """Text that markdown prints as it is; an underscore inside a word needs no help."""
    text = _line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~])|(?<!\w)(_)|(_)(?!\w)", lambda found: "\\" + found[0], text)


def _markdown(table: PrintedTable) -> str:
    lines = [f"### {_markdown_text(table.title)}", "", _markdown_text(table.caption), ""]
    lines.append("| " + " | ".join(_markdown_text(name) for name in table.columns) + " |")
    lines.append("| --- |" + " ---: |" * (len(table.columns) - 1))
    lines += ["| " + " | ".join(_markdown_text(text) for text in line) + " |" for line in table.lines]
    if table.missing:
        lines += ["", "Missing:", "", *(f"- {_markdown_text(why)}" for why in table.missing)]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # \textquotedbl is not in the default font encoding
    **{letter: "\\" + letter for letter in "_%&#${}"},
    "–": "--",
    "—": "---",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\to$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "²": "$^2$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "θ": r"$\theta$",
    "λ": r"$\lambda$",
    "ρ": r"$\rho$",
    "φ": r"$\phi$",
    "ω": r"$\omega$",
}


def _latex_letter(letter: str) -> str:
    if letter in _LATEX:
        return _LATEX[letter]
    # A plain article knows ASCII and the letters of Latin-1; anything else would stop the compiler.
    if letter.isascii() or ("À" <= letter <= "ÿ" and letter.isalpha() and letter not in "ÐðÞþ"):
        return letter
    return f"(U+{ord(letter):04X})"


def _latex_text(text: str) -> str:
    return "".join(_latex_letter(letter) for letter in _line(text))


def _latex(table: PrintedTable) -> str:
    def row(texts: Sequence[str]) -> str:
        # The empty group keeps a name that opens with a bracket from being an option of the \\ before it.
        return "{}" + " & ".join(_latex_text(text) for text in texts) + r" \\"

    lines = [
        r"\begin{table}[htbp]",
        r"\centering\small",
        rf"\caption{{{_latex_text(f'{table.title}. {table.caption}')}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\hline",
        row(table.columns),
        r"\hline",
        *(row(line) for line in table.lines),
        r"\hline",
        r"\end{tabular}",
        r"\end{table}",
    ]
    if table.missing:
        lines += [
            rf"\noindent Missing in {_latex_text(table.title)}:",
            r"\begin{itemize}",
            *(rf"\item {{}}{_latex_text(why)}" for why in table.missing),
            r"\end{itemize}",
        ]
    return "\n".join(lines) + "\n"


_WRITERS: dict[str, Callable[[PrintedTable], str]] = {"markdown": _markdown, "latex": _latex}

_COLUMNS = (
    "protocol",
    "measure",
    "selection",
    "dataset",
    "row",
    "label",
    "target",
    "mean",
    "error",
    "count",
    "missing",
)


def _csv(cells: Sequence[Cell], measure: Measure, protocol: str) -> str:
    averages = average_over_seeds(cells, measure)
    entries = [*aggregate(cells, measure), *averages]
    if len({cell.dataset for cell in cells}) > 1:
        entries += average_over_datasets(averages)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for entry in entries:
        numbers = ["" if value is None else repr(value) for value in (entry.mean, entry.error)]
        place = [entry.selection, entry.dataset or "", entry.row, entry.label, entry.target or ""]
        writer.writerow([protocol, measure, *place, *numbers, entry.count, "; ".join(entry.missing)])
    return text.getvalue()


def trace(
    cells: Iterable[Cell],
    dataset: str,
    row: str,
    target: str,
    *,
    selection: Method | None = None,
    data_seed: int | None = None,
) -> str:
    """What a number in a table was made of: its value, what was chosen, and the records in the store.

    Args:
        cells: Of the tables.
        dataset: Its name.
        row: Key of the row, or its label.
        target: The domain left out.
        selection: One way of choosing; by default all there are.
        data_seed: One data seed; by default all there are.

    Returns:
        Text for people, one paragraph per cell, in the order of selections and data seeds.

    Raises:
        InputError: If there is no such cell; the message names what there is.

    Example:
        >>> cell = Cell(dataset="PACS", row="diwa", label="DiWA", selection="oracle", target="sketch", data_seed=0,
        ...             whole=0.72, members=2, sources=("weights/a", "weights/b"), choice={"kept": [0, 1]})
        >>> print(trace([cell], "PACS", "diwa", "sketch"))
        PACS, DiWA (diwa), target sketch, oracle, data seed 0
          72.0 on all images, 2 members, inference cost 1
          chosen: kept [0, 1]
          from: weights/a
                weights/b
    """
    given = list(cells)
    found = [
        cell
        for cell in given
        if cell.dataset == dataset
        and row in (cell.row, cell.label)
        and cell.target == target
        and (selection is None or cell.selection == selection)
        and (data_seed is None or cell.data_seed == data_seed)
    ]
    if not found:
        asked: dict[str, tuple[str | int | None, list[Any]]] = {
            "dataset": (dataset, [cell.dataset for cell in given]),
            "row": (row, [cell.row for cell in given]),
            "target": (target, [cell.target for cell in given if cell.dataset == dataset]),
            "selection": (selection, [cell.selection for cell in given]),
            "data_seed": (data_seed, [cell.data_seed for cell in given]),
        }
        there = "; ".join(
            f"{name} {value} (there: {', '.join(map(str, dict.fromkeys(known))) or 'none'})"
            for name, (value, known) in asked.items()
            if value is not None
        )
        raise InputError(f"expected a cell with {there}, got none of {len(given)} cells.")
    found.sort(
        key=lambda cell: (METHODS.index(cell.selection), -1 if cell.data_seed is None else cell.data_seed)
    )
    return "\n\n".join(_paragraph(cell) for cell in found)


def _paragraph(cell: Cell) -> str:
    seed = "all data seeds" if cell.data_seed is None else f"data seed {cell.data_seed}"
    head = f"{cell.dataset}, {cell.label} ({cell.row}), target {cell.target}, {cell.selection}, {seed}"
    measured = [
        f"{100 * value:.1f} {where}"
        for value, where in (
            (cell.whole, "on all images"),
            (cell.part, "on the 80 % part"),
            (cell.id_accuracy, "on ID validation"),
        )
        if value is not None
    ]
    members = f"{cell.members} member{'' if cell.members == 1 else 's'}"
    lines = [head, "  " + ", ".join([*measured, members, f"inference cost {cell.inference_cost}"])]
    if cell.missing:
        lines.append(f"  missing: {cell.missing}")
    if cell.choice:
        chosen = ", ".join(f"{name} {json.dumps(value)}" for name, value in cell.choice.items())
        lines.append(f"  chosen: {chosen}")
    lines += [f"  {'      ' if i else 'from: '}{place}" for i, place in enumerate(cell.sources)]
    return "\n".join(lines)
