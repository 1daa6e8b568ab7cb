"""The tables of the page, as text that is ready to print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirepoix.report._numbers import NOT_AVAILABLE, finite, percent, points, ratio, setting
from mirepoix.report._result import any_row, as_list, as_map, labels, row_of

__all__ = ["Cell", "Table", "accuracy_table", "evidence_table", "greedy_table", "runs_table", "table_of"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell; the best of its column is printed bold."""

    text: str
    best: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Columns by name; the first cell of a line is its name."""

    columns: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]


def table_of(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """A table in which nothing is best."""
    return Table(tuple(columns), tuple(tuple(Cell(text) for text in line) for line in lines))


def _times(value: Any) -> str:
    number = finite(value)
    return NOT_AVAILABLE if number is None else f"{number:g}×"


def accuracy_table(report: Mapping[str, Any], side: str, *, costs: bool = False) -> Table:
    """Rows are strategies, columns are targets and their mean; the best of each column is marked.

    Two accuracies that print alike are both the best: the page does not rank what it does not show.

    Args:
        report: The cleaned report.
        side: ``id`` or ``ood``.
        costs: Also what a row costs, in trainings and in forward passes.
    """
    names = labels(report)
    targets: list[str | None] = list(as_list(report.get("targets")))
    if len(targets) != 1:
        targets.append(None)
    columns = [["" for _ in names] for _ in targets]
    best = [[False for _ in names] for _ in targets]
    for c, target in enumerate(targets):
        rows = [row_of(report, name, target) for name in names]
        values = [finite(row.get(f"{side}_accuracy")) for row in rows]
        top = percent(max((v for v in values if v is not None), default=None))
        for r, (row, value) in enumerate(zip(rows, values, strict=True)):
            columns[c][r] = percent(value, row.get(f"{side}_standard_error"))
            best[c][r] = value is not None and percent(value) == top
    lines = []
    for r, name in enumerate(names):
        line = [Cell(name), *(Cell(columns[c][r], best[c][r]) for c in range(len(targets)))]
        if costs:
            row = any_row(report, name)
            runs = row.get("runs")
            line += [
                Cell(NOT_AVAILABLE if runs is None else str(runs)),
                Cell(_times(row.get("inference_cost"))),
            ]
        lines.append(tuple(line))
    heads = ["Strategy", *("Mean" if target is None else target for target in targets)]
    return Table(tuple([*heads, "Runs", "Inference"] if costs else heads), tuple(lines))


def evidence_table(report: Mapping[str, Any]) -> Table:
    """Diversity, distances, and how average and ensemble differ, for each target."""
    lines = []
    for why in as_list(report.get("why")):
        ratios, q = as_map(why.get("ratio_error")), as_map(why.get("q_statistic"))
        inner, outer, norm = (
            finite(why[key]) for key in ("distance_to_average", "distance_to_start", "start_norm")
        )
        lines.append(
            [
                str(why["target"]),
                ratio(ratios.get("id")),
                ratio(ratios.get("ood")),
                ratio(q.get("id")),
                ratio(q.get("ood")),
                ratio(inner / outer if inner is not None and outer else None),
                ratio(outer / norm if outer is not None and norm else None),
                points(why.get("average_minus_ensemble")),
                percent(why.get("average_ensemble_disagreement")),
            ]
        )
    heads = ["Target", "Ratio-error ID", "Ratio-error OOD", "Q ID", "Q OOD"]
    heads += ["Spread of the members", "Length of the fine-tuning", "Average − ensemble", "Disagreement"]
    return table_of(heads, lines)


_COLUMNS = {"target": "Target", "data_seed": "Data seed", "run": "Run", "status": "Status"}


def runs_table(report: Mapping[str, Any]) -> tuple[Table, str, tuple[str, ...]]:
    """The runs, what all of them share, and what the unfinished ones said."""
    runs = as_list(report.get("runs"))
    settings = [as_map(run.get("configuration")) for run in runs]
    fields = list(dict.fromkeys(field for each in settings for field in each))
    same = [f for f in fields if len({setting(each.get(f)) for each in settings}) == 1 and len(runs) > 1]
    varying = [field for field in fields if field not in same]
    heads = [*_COLUMNS.values(), "ID", "OOD", "Best step", *(field.replace("_", " ") for field in varying)]
    lines = [
        [
            *(setting(run.get(key)) for key in _COLUMNS),
            percent(run.get("id_accuracy")),
            percent(run.get("ood_accuracy")),
            setting(run.get("best_step")),
            *(setting(each.get(field)) for field in varying),
        ]
        for run, each in zip(runs, settings, strict=True)
    ]
    shared = ", ".join(f"{field.replace('_', ' ')} {setting(settings[0].get(field))}" for field in same)
    messages = tuple(
        f"{run.get('target')}, data seed {setting(run.get('data_seed'))}, run {setting(run.get('run'))}: "
        f"{run['message']}"
        for run in runs
        if run.get("message")
    )
    return table_of(heads, lines), shared, messages


def greedy_table(report: Mapping[str, Any]) -> Table:
    """What the greedy soups tried and kept."""
    lines = []
    for why in as_list(report.get("why")):
        for seed, trace in why["greedy"]:
            order, scores, kept = (as_list(trace.get(key)) for key in ("order", "scores", "kept"))
            steps = [
                f"run {member} {'kept' if member in kept else 'left out'}"
                + (f" ({percent(scores[i])})" if i < len(scores) else "")
                for i, member in enumerate(order)
            ]
            if steps:
                lines.append([why["target"], setting(seed), str(len(kept)), ", ".join(steps)])
    heads = [
        "Target",
        "Data seed",
        "Kept",
        "Candidates in the order tried, with ID accuracy of the soup in percent",
    ]
    return table_of(heads, lines)
