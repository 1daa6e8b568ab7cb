"""A comparison from beginning to end: task, starts, members of every system and trial, numbers, report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import torch

from mirepoix import __version__
from mirepoix.checkpoints import fingerprint, write_atomically, write_json
from mirepoix.comparison._members import Bench
from mirepoix.comparison._outcome import Outcome, outcome_of
from mirepoix.comparison._recipe import Comparison, SystemTable, soup_of
from mirepoix.comparison._systems import equation
from mirepoix.comparison._table import cautions, rows_csv, table_rows, trials_csv, verdict
from mirepoix.data import Task
from mirepoix.experiment import DIGITS_SIZE, Progress, build_start, build_task, claimed
from mirepoix.experiment._run import Silence, begin
from mirepoix.experiment._start import find_weights
from mirepoix.models import has_batch_norm, load_pretrained
from mirepoix.store import Store, environment
from mirepoix.training import Loop, choose_device
from mirepoix.types import InputError, Weights

__all__ = ["run_comparison"]


def run_comparison(
    recipe: Comparison,
    *,
    recipe_path: Path,
    out: Path,
    data: Path | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Do all the work of a comparison, continuing where an earlier call stopped.

    Args:
        recipe: What to do.
        recipe_path: Its file; weights are looked for beside it.
        out: Folder for everything the job makes.
        data: Folder of the images, for recipes that need one.
        store: Folder for finished results, ``out/store`` unless given; several jobs may share one.
        progress: Told of the work as it goes.
        command: How a person can ask for the same again; the report shows it.

    Returns:
        What ``report.json`` holds, all but the page itself: see `mirepoix.report.write_comparison_report`.

    Raises:
        InputError: For anything in the recipe, the images or the weights that a person must mend.
    """
    progress = progress or cast(Progress, Silence())
    choose_device(recipe.loop.device)  # a typing error is told before any image is read
    with claimed(out):
        return _run(recipe, recipe_path, out, data, store or out / "store", progress, command)


def _run(
    recipe: Comparison,
    recipe_path: Path,
    out: Path,
    data: Path | None,
    store_path: Path,
    progress: Progress,
    command: str | None,
) -> dict[str, Any]:
    began = time.monotonic()
    if recipe.loop.threads:
        torch.set_num_threads(recipe.loop.threads)
    progress.stage("reading the images")
    task = build_task(recipe.data, data, cache_dir=store_path / "images", progress=progress.images)
    for note in task.notes:
        progress.note(note)
    (target,) = recipe.data.targets
    splits = [task.split(target, data_seed=seed, holdout=recipe.data.holdout) for seed in recipe.data.seeds]
    job_record = {
        "recipe": recipe.model_dump(mode="json", exclude_none=True, exclude={"space"}),
        "mirepoix": __version__,
        "task": {"digest": task.digest, "notes": list(task.notes)},
    }
    begin(out, job_record)

    bench = _bench(recipe, task, data, recipe_path, store_path, progress)
    for note in _stuck(bench):
        progress.note(note)
    progress.stage("trying every system")
    for system in recipe.systems:  # what one of them cannot do is told before any is trained
        bench.rehearse(system, splits[0])
    outcomes = []
    for split in splits:
        judge = bench.judge(split)
        for system in recipe.systems:
            try:
                outcomes += outcome_of(bench, judge, system, split, out)
            except InputError as error:
                raise InputError(f"trial {split.data_seed}: systems.{system.name}: {error}") from None
    report = _report(bench, outcomes, target)
    report["environment"] = {**environment(), "device": str(bench.device), "threads": torch.get_num_threads()}
    if command:
        report["command"] = command
    for name, text in (("table", rows_csv(report["rows"])), ("trials", _trials(report))):
        write_atomically(out / f"{name}.csv", text)
    write_json(
        out / "job.json",
        {
            "status": "finished",
            **job_record,
            "start": bench.start.sha256,
            "environment": environment(),
            "device": str(bench.device),
            "seconds": round(time.monotonic() - began, 1),
            "made_now": len(bench.store.made),
        },
    )
    return report


def _bench(
    recipe: Comparison,
    task: Task,
    data: Path | None,
    recipe_path: Path,
    store_path: Path,
    progress: Progress,
) -> Bench:
    """The start, and what all systems share."""
    loop = Loop(**recipe.loop.model_dump(exclude={"threads"}))
    store = Store(store_path)
    pretraining = recipe.pretraining_run()
    progress.stage("preparing the start", pretraining.steps if pretraining else 0)
    digits = (recipe.data.size or DIGITS_SIZE) if recipe.data.dataset == "digits" else None
    paths = {
        name: find_weights(name, data, recipe_path, key=f"systems.{system.name}.starts")
        for system in recipe.systems
        for name in system.starts or ()
    }
    start = build_start(recipe, task, data, recipe_path, store, loop, progress.training, digits=digits)
    files: dict[str, Weights] = {name: load_pretrained(start.network, path) for name, path in paths.items()}
    bench = Bench(
        recipe=recipe,
        task=task,
        start=start,
        files=files,
        loop=loop,
        store=store,
        device=choose_device(recipe.loop.device),
        progress=progress,
    )
    progress.plan(bench.planned_steps(recipe.data.seeds) + (pretraining.steps if pretraining else 0))
    return bench


def _trials(report: dict[str, Any]) -> str:
    return trials_csv(report["rows"], report["protocol"]["trials"])


def _report(bench: Bench, outcomes: list[Outcome], target: str) -> dict[str, Any]:
    """Everything the page shows, as plain values; the same outcomes give the same values."""
    recipe = bench.recipe
    about = [row for system in recipe.systems for row in _about(bench, system)]
    labels = [row["label"] for row in about]
    found = {label: [outcome.measures for outcome in outcomes if outcome.label == label] for label in labels}
    rows = table_rows(about, found, recipe.compared_with)
    members = [row for outcome in outcomes for row in outcome.members]
    images = len(next(domain for domain in bench.task.domains if domain.name == target))
    trials, notes = len(recipe.data.seeds), [*bench.task.notes, *_stuck(bench), *_same(found)]
    probe = recipe.probe_run()
    return {
        "format": 1,
        "kind": "comparison",
        "mirepoix": __version__,
        "name": recipe.name,
        "title": recipe.title,
        "source": recipe.source,
        "task": {
            "name": bench.task.name,
            "classes": list(bench.task.classes),
            "domains": [{"name": domain.name, "images": len(domain)} for domain in bench.task.domains],
            "notes": list(bench.task.notes),
        },
        "target": target,
        "start": _start(bench),
        "starts": {name: fingerprint(theta) for name, theta in bench.files.items()},
        "network": bench.start.network.name,
        "baseline": recipe.compared_with,
        "protocol": {
            "trials": list(recipe.data.seeds),
            "holdout": recipe.data.holdout,
            "steps": recipe.base_run().steps,
            "probe_steps": probe.steps if probe else 0,
            "weights": "the last of every training",
            "combination": "the average of the members' logits",
            "temperature": "fitted on each half of the target for the other, of the combined prediction",
            "batch_norm": _batch_norm(bench),
        },
        "rows": rows,
        "members": members,
        "along": _along(outcomes),
        "verdict": verdict(rows, recipe.compared_with, trials),
        "trust": cautions(rows, members, trials=trials, images=images, notes=notes),
    }


def _same(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What to say of rows that are the same networks: with two members, those of a star know nothing to avoid."""
    told = ("accuracy", "nll", "ratio_error", "members")
    groups: dict[str, list[str]] = {}
    for label, measures in found.items():
        if all(measures):
            groups.setdefault(repr([[each.get(name) for name in told] for each in measures]), []).append(
                label
            )
    return [
        f"{' and '.join(group)} are the same members, trained once: what tells these systems apart does not come into "
        "play with so few members."
        for group in groups.values()
        if len(group) > 1
    ]


def _about(bench: Bench, system: SystemTable) -> list[dict[str, Any]]:
    """A system in words, and its soup."""
    recipe = bench.recipe
    members = recipe.members_of(system) * system.copies
    plain = system.objective.words if system.objective else ""
    formula = equation(
        system.kind,
        recipe.members_of(system),
        system.copies,
        2 if recipe.from_scratch(system) else len(set(system.starts or ["start"])),
        system.objective.name if system.objective else "",
        system.later.name if system.later else "",
    )
    row = {
        "label": system.name,
        "kind": system.kind,
        "equation": formula,
        "objective": plain or ("independent" if system.kind == "joint" else "erm"),
        "later": system.later.words if system.later else None,
        "asked": members,
    }
    soup = {
        **row,
        "label": soup_of(system.name),
        "kind": "soup",
        "equation": f"1/{members} sum_i theta_i, {formula}",
    }
    return [row, soup] if system.soup else [row]


def _along(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """The points of all systems that were looked at along their training."""
    return [
        {"system": outcome.label, "trial": outcome.trial, "network": number, "points": points}
        for outcome in outcomes
        for number, points in enumerate(outcome.along, start=1)
    ]


def _start(bench: Bench) -> str:
    """Where networks start, in words."""
    if bench.recipe.network.scratch:
        return f"{bench.start.network.name}, random weights, others for every network"
    return bench.start.description


def _stuck(bench: Bench) -> list[str]:
    """Systems whose batch norm stays as it is in random weights, which is seldom meant."""
    fresh = [system.name for system in bench.recipe.systems if bench.recipe.from_scratch(system)]
    if not fresh or not bench.start.network.frozen_batch_norm or not has_batch_norm(bench.start.network):
        return []
    return [
        f"{', '.join(fresh)}: batch-norm statistics are frozen at those of random weights; set "
        "network.frozen_batch_norm = false to let them be learned."
    ]


def _batch_norm(bench: Bench) -> str:
    if not has_batch_norm(bench.start.network):
        return "none"
    if bench.start.network.frozen_batch_norm:
        return "frozen"
    return "of each member as it is after training; re-estimated for averages of weights"
