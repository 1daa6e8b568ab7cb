"""The result in a terminal: the table of OOD accuracies, as wide as the terminal allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirepoix.report._comparison import accuracies, narrowed
from mirepoix.report._front import front_volumes
from mirepoix.report._numbers import NOT_AVAILABLE, cleaned, finite, percent
from mirepoix.report._tables import Cell, Table, accuracy_table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table as RichTable

__all__ = ["TerminalTable", "terminal_table"]


@dataclass(frozen=True, slots=True)
class TerminalTable:
    """A table for `rich.console.Console.print`.

    Attributes:
        wide: Every target has its column.
        narrow: The mean over targets and the worst of them, for when that does not fit.
        title: What the numbers are.
    """

    wide: Table
    narrow: Table
    title: str = "OOD accuracy, percent"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RichTable]:
        yield _rich(self.wide if _width(self.wide) <= options.max_width else self.narrow, self.title)


def terminal_table(report: Mapping[str, Any]) -> TerminalTable:
    """OOD accuracy in percent for each strategy and target, best of each column bold; of a comparison, each system.

    Of a front of rewarded soups, the hypervolume of each system and the area over its front.

    Example:
        >>> from rich.console import Console
        >>> Console().print(terminal_table(report))  # doctest: +SKIP
    """
    report = cleaned(dict(report))
    if report.get("kind") == "comparison":
        table = accuracies(report)
        return TerminalTable(table, narrowed(table), f"Accuracy on {report['target']}, percent")
    if report.get("kind") == "front":
        table = front_volumes(report)
        title = "Hypervolume: higher is better; area over the front: lower is better"
        return TerminalTable(table, narrowed(table), title)
    wide = accuracy_table(report, "ood", costs=True)
    return TerminalTable(wide, _narrow(report, wide))


def _rich(table: Table, title: str) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    result = RichTable(title=Text(title), title_justify="left")
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
    """Strategy, mean, worst target and costs; with one target, the table as it is."""
    targets = list(report["targets"])
    if len(targets) == 1:
        return table
    worst = []
    for line in table.lines:
        rows = [row for row in report["rows"] if row["label"] == line[0].text and row["target"] in targets]
        known = [value for row in rows if (value := finite(row.get("ood_accuracy"))) is not None]
        worst.append(min(known) if known and len(known) == len(targets) else None)
    top = percent(max((value for value in worst if value is not None), default=None))
    mean = 1 + len(targets)
    lines = tuple(
        (line[0], line[mean], Cell(percent(low), percent(low) == top != NOT_AVAILABLE), *line[mean + 1 :])
        for line, low in zip(table.lines, worst, strict=True)
    )
    heads = table.columns
    return Table((heads[0], heads[mean], "Worst target", *heads[mean + 1 :]), lines)
