"""The page as markdown, for a terminal, a code host or an e-mail."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mirepoix.report._figures import plots
from mirepoix.report._page import page
from mirepoix.report._tables import Table

__all__ = ["markdown"]


def _plain(text: str) -> str:
    """Text that markdown prints as it is; an underscore inside a word needs no help."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~])|(?<!\w)(_)|(_)(?!\w)", lambda found: "\\" + found[0], text)


def _code(text: str) -> str:
    """Verbatim text, within as many backticks as it needs."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _table(table: Table) -> str:
    lines = ["| " + " | ".join(_plain(name) for name in table.columns) + " |"]
    lines.append("| --- |" + " ---: |" * (len(table.columns) - 1))
    for line in table.lines:
        cells = [f"**{_plain(cell.text)}**" if cell.best else _plain(cell.text) for cell in line]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _terms(terms: tuple[tuple[str, str], ...]) -> str:
    return "\n".join(f"- **{_plain(term)}**: {_plain(text)}" for term, text in terms)


def _items(items: tuple[str, ...]) -> str:
    return "\n".join(f"- {_plain(item)}" for item in items)


def markdown(report: Mapping[str, Any]) -> str:
    """The report as one markdown document; figures are linked as ``figures/*.svg``."""
    content = page(report)
    figures: dict[str, list[str]] = {"good": [], "why": []}
    for plot in plots(report):
        figures[plot.section].append(
            f"![{_plain(plot.alt)}](figures/{plot.name}.svg)"
            + (f"\n\n{_plain(plot.caption)}" * bool(plot.caption))
        )

    blocks = [f"# {_plain(content.title)}", "## 1. What it is"]
    if content.equation:
        blocks.append(_code(content.equation))
    blocks.append(_terms(content.facts))

    blocks.append("## 2. Is it good?")
    blocks += [f"**{_plain(content.verdict)}**"] if content.verdict else []
    blocks += [_plain(content.gain)] if content.gain else []
    errors = ", ± one standard error over data seeds" if content.has_errors else ""
    blocks.append(f"OOD accuracy on each target, in percent{errors}. The best of each column is bold.")
    blocks += [_table(content.ood), *figures["good"]]
    blocks.append(f"ID accuracy on held-out images of the source domains, in percent{errors}.")
    blocks.append(_table(content.id))

    blocks.append("## 3. Why?")
    blocks += [_items(content.why)] if content.why else []
    blocks += figures["why"]
    if content.evidence.lines:
        blocks += [_table(content.evidence), _terms(content.terms)]
    else:
        blocks.append("No evidence was collected.")

    blocks.append("## 4. When not to trust it")
    if content.trust:
        blocks.append(
            "\n".join(
                f"- **{level.capitalize()}**{f' ({_plain(target)})' if target else ''}: {_plain(text)}"
                for level, target, text in content.trust
            )
        )
    else:
        blocks.append("Nothing suspicious was found.")
    blocks += [_items(content.caveats)] if content.caveats else []

    blocks += ["## 5. Details", "### Strategies and their number of members", _table(content.strategies)]
    blocks.append("### Runs")
    blocks += (
        [f"The same in every run: {_plain(content.shared_settings)}."] if content.shared_settings else []
    )
    blocks.append(_table(content.runs))
    blocks += [_items(content.messages)] if content.messages else []
    if content.greedy.lines:
        blocks += ["### Greedy soups", _table(content.greedy)]
    blocks += ["### Task and domains", _table(content.domains)]
    blocks += [_items(content.notes)] if content.notes else []
    blocks += ["### Protocol", _terms(content.protocol), "### How to reproduce"]
    blocks += [_code(content.command)] if content.command else []
    blocks.append(_items(content.reproduce))
    return "\n\n".join(blocks) + "\n"
