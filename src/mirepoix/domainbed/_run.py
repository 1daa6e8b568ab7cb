"""A benchmark from its plan to its tables, on any engine, continuing where an earlier call stopped."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from mirepoix.cluster import Done, Engine, Event, Work, carry_out
from mirepoix.domainbed._cells import Cell
from mirepoix.domainbed._evidence import look_into_split
from mirepoix.domainbed._measure import cells_of_seeds, cells_of_split
from mirepoix.domainbed._nodes import Trained
from mirepoix.domainbed._plan import Plan
from mirepoix.domainbed._rows import Row
from mirepoix.domainbed._workbench import NotMade, Workbench
from mirepoix.types import InputError

__all__ = ["Sweep", "measure", "run_plan"]


@dataclass
class Sweep:
    """What became of a plan.

    Attributes:
        cells: Of the table, those without a number included.
        evidence: Numbers of the figures, for each target with its first data seed.
        failed: From the label of a work to why it was not done.
        trained: How many trainings were made now.
        diverged: Labels of the trainings that diverged.
    """

    cells: list[Cell] = field(default_factory=list)
    evidence: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    trained: int = 0
    diverged: list[str] = field(default_factory=list)


_WORKBENCHES: dict[bytes, Workbench] = {}
"""In a worker: one workbench for all its works, so that images are opened once."""


def _workbench(pickled: bytes) -> Workbench:
    if pickled not in _WORKBENCHES:
        _WORKBENCHES[pickled] = pickle.loads(pickled)
    bench = _WORKBENCHES[pickled]
    torch.set_num_threads(bench.threads)  # whatever the engine: the order of sums depends on it
    return bench


def train_one(pickled: bytes, node: Trained) -> str:
    """One training, on a worker; its start is in the store."""
    bench = _workbench(pickled)
    try:
        if bench.status(node) == "stored":
            return "found"
        bench.make(node)
    except NotMade as error:
        if error.reason:
            raise InputError(error.reason) from None
        if not error.diverged:
            raise InputError(
                f"{error.training.task}: the weights it starts from are not in the store at {bench.store_place} on "
                "this machine. All machines need one store: a folder that all of them mount, or an address such as "
                "s3://bucket/sweep; name it with --store."
            ) from None
        return "diverged" if error.training.training() == node.training() else "start diverged"
    return "stored"


def measure_split(
    pickled: bytes, dataset: str, target: str, data_seed: int, rows: Sequence[Row]
) -> list[dict[str, Any]]:
    """The cells of one split, on a worker."""
    bench = _workbench(pickled)
    try:
        return [cell.to_dict() for cell in cells_of_split(bench, dataset, target, data_seed, rows)]
    finally:
        bench.forget()


def measure_seeds(pickled: bytes, dataset: str, target: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The cells over all data seeds of one target, on a worker."""
    bench = _workbench(pickled)
    try:
        return [cell.to_dict() for cell in cells_of_seeds(bench, dataset, target, rows)]
    finally:
        bench.forget()


def look_into(pickled: bytes, dataset: str, target: str, data_seed: int) -> dict[str, Any]:
    """The numbers of the figures of one split, on a worker."""
    bench = _workbench(pickled)
    try:
        return look_into_split(bench, dataset, target, data_seed, subsets=bench.benchmark.subsets)
    finally:
        bench.forget()


def run_plan(
    bench: Workbench,
    plan: Plan,
    engine: Engine,
    on_event: Callable[[Event], None] | None = None,
    *,
    retries: int = 2,
) -> Sweep:
    """Carry out what is left of a plan, and measure; everything finished stays, however this ends.

    Args:
        bench: The benchmark with its folders.
        plan: Of `make_plan`.
        engine: Where the works run.
        on_event: Told of every work.
        retries: How often a work is tried again whose worker was lost.
    """
    pickled = pickle.dumps(bench)
    left = {planned.label for planned in plan.waiting()}
    works = [
        Work(
            planned.label,
            train_one,
            (pickled, planned.node),
            tuple(plan.trainings[i].label for i in planned.needs if plan.trainings[i].label in left),
            planned.work,
        )
        for planned in plan.waiting()
    ]
    measuring = _measuring(bench, pickled, plan, left)
    works += measuring
    figures = _looking(bench, pickled, plan) if bench.benchmark.figures else []
    works += figures
    results = carry_out(works, engine, retries=retries, on_event=on_event)
    # What a failed training leaves is measured all the same: its cells say what is missing.
    left_over = [replace(work, needs=()) for work in measuring if results[work.name].status == "skipped"]
    if left_over:
        results |= carry_out(left_over, engine, retries=retries, on_event=on_event)
    sweep = Sweep()
    sweep.trained = sum(results[label].value == "stored" for label in left)
    sweep.diverged = [each.label for each in plan.waiting() if results[each.label].value == "diverged"]
    sweep.failed = {name: done.message for name, done in results.items() if done.status != "done"}
    sweep.cells = _explained(_cells(bench, plan, results), plan, sweep.failed)
    sweep.evidence = [results[work.name].value for work in figures if results[work.name].status == "done"]
    return sweep


def measure(bench: Workbench, plan: Plan) -> list[Cell]:
    """The cells as the store has them now; nothing is trained."""
    return _cells(bench, plan, {})


def _split_name(dataset: str, target: str, data_seed: int | str) -> str:
    return f"measure {dataset} without {target}, data seed {data_seed}"


def _measuring(bench: Workbench, pickled: bytes, plan: Plan, left: set[str]) -> list[Work]:
    rows = tuple(bench.benchmark.rows())
    works: list[Work] = []
    of_target: dict[tuple[str, str], tuple[str, ...]] = {}
    for split in plan.splits:
        needs = tuple(plan.trainings[i].label for i in split.needs if plan.trainings[i].label in left)
        place = (split.dataset, split.target)
        of_target[place] = (*of_target.get(place, ()), *needs)
        arguments = (pickled, *place, split.data_seed, rows)
        works.append(Work(_split_name(*place, split.data_seed), measure_split, arguments, needs, 1.0))
    if any(row.combine == "dagger" for row in rows):
        for place, needs in of_target.items():
            unique = tuple(dict.fromkeys(needs))
            works.append(
                Work(_split_name(*place, "all"), measure_seeds, (pickled, *place, rows), unique, 1.0)
            )
    return works


def _looking(bench: Workbench, pickled: bytes, plan: Plan) -> list[Work]:
    """The figures of each target, for its first data seed."""
    works = []
    for split in plan.splits:
        place = (split.dataset, split.target, split.data_seed)
        if split.data_seed == bench.table(split.dataset).seeds[0]:
            name = f"figures of {split.dataset} without {split.target}, data seed {split.data_seed}"
            works.append(Work(name, look_into, (pickled, *place), (_split_name(*place),), 0.5))
    return works


def _cells(bench: Workbench, plan: Plan, results: Mapping[str, Done]) -> list[Cell]:
    """The cells of all splits in order; those whose measuring failed say why."""
    rows = tuple(bench.benchmark.rows())
    found: list[Cell] = []

    def take(place: tuple[str, str], seed: int | None, measured: Callable[[], list[Cell]]) -> None:
        done = results.get(_split_name(*place, "all" if seed is None else seed))
        if done is None:
            found.extend(measured())
        elif done.status == "done":
            found.extend(Cell.from_dict(values) for values in done.value)
        else:
            found.extend(_without_numbers(bench, place, seed, done.message))

    for split in plan.splits:
        place = (split.dataset, split.target)
        take(place, split.data_seed, partial(cells_of_split, bench, *place, split.data_seed, rows))
    for place in dict.fromkeys((split.dataset, split.target) for split in plan.splits):
        take(place, None, partial(cells_of_seeds, bench, *place, rows))
    order = {row.key: i for i, row in enumerate(rows)}
    return sorted(found, key=lambda cell: (order[cell.row],))


def _explained(cells: Sequence[Cell], plan: Plan, failed: Mapping[str, str]) -> list[Cell]:
    """Cells that lack a number because a training failed, with its message."""
    why: dict[tuple[str, str], str] = {}
    for split in plan.splits:
        for label in (plan.trainings[i].label for i in split.needs):
            if label in failed and "which failed" not in failed[label]:
                why.setdefault((split.dataset, split.target), f"{label} failed: {failed[label]}")
    return [
        replace(cell, missing=f"{cell.missing}; {why[cell.dataset, cell.target]}")
        if cell.missing and (cell.dataset, cell.target) in why
        else cell
        for cell in cells
    ]


def _without_numbers(bench: Workbench, place: tuple[str, str], seed: int | None, why: str) -> list[Cell]:
    """The cells of a split that could not be measured."""
    return [
        Cell(
            dataset=place[0],
            row=row.key,
            label=row.label,
            selection=method,
            target=place[1],
            data_seed=seed,
            missing=f"measuring failed: {why}",
        )
        for row, method in itertools.product(bench.benchmark.rows(), bench.benchmark.selection)
        if (row.combine == "dagger") == (seed is None)
    ]
