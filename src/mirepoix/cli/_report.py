"""``mirepoix report``: the page of a finished job again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished job, with its report.json.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write the report of a finished job again, and print its table."""
    from mirepoix.report import read_report, terminal_table, write_report

    content = read_report(folder)
    write_report(content, folder)
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False))
    else:
        from rich.console import Console

        Console().print(terminal_table(content))
        typer.echo(f"\n{content['verdict']}\n\nReport: {folder / 'report.html'}")
