"""The result in a terminal: the table of OOD accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mirepoix.report._numbers import NOT_AVAILABLE, cleaned, finite, percent
from mirepoix.report._page import Cell, Table, accuracy_table

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = ["terminal_table"]


def terminal_table(report: Mapping[str, Any], *, width: int | None = None) -> RichTable:
    """OOD accuracy in percent for each strategy and target, best of each column bold.

    Args:
        report: What ``report.json`` holds.
        width: Columns of the terminal. Where the targets do not fit beside each other, their mean and the
            worst of them are shown instead. Without it every target has its column.
    """
    from rich.table import Table as RichTable
    from rich.text import Text

    report = cleaned(dict(report))
    table = accuracy_table(report, "ood", costs=True)
    if width is not None and _width(table) > width:
        table = _narrow(report, table)
    result = RichTable(title="OOD accuracy, percent", title_justify="left")
    for index, name in enumerate(table.columns):
        # Text and not str: a domain may be called "[red]".
        result.add_column(Text(name), justify="right" if index else "left", no_wrap=index > 0)
    for line in table.lines:
        result.add_row(*(Text(cell.text, style="bold" if cell.best else "") for cell in line))
    return result


def _width(table: Table) -> int:
    from rich.cells import cell_len

    columns = zip(table.columns, *([cell.text for cell in line] for line in table.lines), strict=True)
    return sum(3 + max(cell_len(text) for text in column) for column in columns) + 1


def _narrow(report: Mapping[str, Any], table: Table) -> Table:
    """Strategy, mean, worst target and costs."""
    targets = list(report["targets"])
    worst = []
    for line in table.lines:
        rows = [row for row in report["rows"] if row["label"] == line[0].text and row["target"] in targets]
        values = [finite(row.get("ood_accuracy")) for row in rows]
        known = [value for value in values if value is not None]
        worst.append(min(known) if len(known) == len(targets) else None)
    top = percent(max((value for value in worst if value is not None), default=None))
    middle = slice(1 + len(targets), len(table.columns))
    lines = tuple(
        (
            line[0],
            *line[middle][:1],
            Cell(percent(low), percent(low) == top != NOT_AVAILABLE),
            *line[middle][1:],
        )
        if len(targets) != 1
        else (line[0], *line[1:])
        for line, low in zip(table.lines, worst, strict=True)
    )
    if len(targets) == 1:
        return table
    heads = table.columns[middle]
    return Table((table.columns[0], heads[0], "Worst target", *heads[1:]), lines)
