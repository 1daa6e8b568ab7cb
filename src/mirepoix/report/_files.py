"""A report as files: written whole or not at all, read back with a sentence for each way it can fail."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirepoix.report._comparison import comparison_texts
from mirepoix.report._figures import plots
from mirepoix.report._front import front_texts
from mirepoix.report._html import html
from mirepoix.report._markdown import markdown
from mirepoix.types import InputError

__all__ = ["FORMAT", "read_report", "write_report"]

FORMAT = 1
"""Number of the layout of ``report.json``."""


def write_report(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``report.json``, ``report.md``, ``figures/*.svg`` and, last, ``report.html`` into a folder.

    Everything is rendered before anything is written, and each file replaces its predecessor in one step, so
    what can be read is always whole. Equal reports give equal bytes.

    Args:
        report: Plain data, with the fields that the page prints (`mirepoix.report._result`), or of the kind
            ``comparison`` what `mirepoix.comparison.run_comparison` returns, or of the kind ``front`` a front of
            rewarded soups (`mirepoix.report._front`).
        folder: Made if it does not exist.

    Returns:
        The files, in the order written.
    """
    from mirepoix.checkpoints import write_atomically, write_json

    folder = Path(folder)
    pages = {"comparison": comparison_texts, "front": front_texts}
    if report.get("kind") in pages:
        texts = {folder / name: text for name, text in pages[report["kind"]](report).items()}
    else:
        texts = {folder / "report.md": markdown(report)}
        for plot in plots(report):
            texts[folder / "figures" / f"{plot.name}.svg"] = plot.svg(inline=False)
        texts[folder / "report.html"] = html(report)

    (folder / "figures").mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", dict(report))
    for path, text in texts.items():
        write_atomically(path, text)
    return [folder / "report.json", *texts]


def read_report(folder: Path) -> dict[str, Any]:
    """Read ``report.json`` from the folder of a finished job.

    Raises:
        InputError: If the folder or the file is missing, cannot be read, or has another format.
    """
    folder = Path(folder)
    path = folder / "report.json"
    if not folder.is_dir():
        raise InputError(f"{folder}: expected the folder of a job, and there is no such folder.")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder}: there is no report.json, so the job has not finished. Run the same command again to "
            "continue it: what is already trained is kept."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected a report in JSON, and it cannot be read ({error}). Run the same command "
            "again: what is already trained is kept, and the report is written anew."
        ) from error
    found = report.get("format") if isinstance(report, dict) else None
    if not isinstance(report, dict) or found != FORMAT:
        raise InputError(
            f"{path}: expected a report of format {FORMAT}, got format {found!r}. Run the same command again "
            "with this version of mirepoix, or read the report with the version that wrote it."
        )
    return report
