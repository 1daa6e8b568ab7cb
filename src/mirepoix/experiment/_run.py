"""One recipe from beginning to end: task, start, members, combinations, predictions, report."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any, cast

import torch

from mirepoix import __version__
from mirepoix.checkpoints import read_json, write_json
from mirepoix.experiment._outcome import Job, Progress, outcome_of
from mirepoix.experiment._start import build_start
from mirepoix.experiment._table import build_report
from mirepoix.experiment._task import build_task
from mirepoix.recipe import Recipe
from mirepoix.store import Store, environment
from mirepoix.training import Loop, Trainer, choose_device
from mirepoix.types import InputError

__all__ = ["Progress", "run_recipe"]


class _Silence:
    """Hears everything and says nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


def run_recipe(
    recipe: Recipe,
    *,
    recipe_path: Path,
    out: Path,
    data: Path | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Do all the work of a recipe, continuing where an earlier call stopped.

    Args:
        recipe: What to do.
        recipe_path: Its file; weights are looked for beside it.
        out: Folder for everything the job makes.
        data: Folder of the images, for recipes that need one.
        store: Folder for finished results, ``out/store`` unless given; several jobs may share one.
        progress: Told of the work as it goes.
        command: How a person can ask for the same again; the report shows it.

    Returns:
        What ``report.json`` holds, all but the page itself: see `mirepoix.report.write_report`.

    Raises:
        InputError: For anything in the recipe, the images or the weights that a person must mend.
    """
    began = time.monotonic()
    progress = progress or cast(Progress, _Silence())
    _claim(out, recipe)
    store_path = store or out / "store"
    if recipe.loop.threads:
        torch.set_num_threads(recipe.loop.threads)

    progress.stage("reading the images")
    task = build_task(recipe.data, data, cache_dir=store_path / "images", progress=progress.images)
    for note in task.notes:
        progress.note(note)
    targets = list(task.domain_names) if recipe.data.targets == "all" else list(recipe.data.targets)
    splits = [
        task.split(target, data_seed=seed, holdout=recipe.data.holdout)
        for target, seed in itertools.product(targets, recipe.data.seeds)
    ]

    described = recipe.model_dump(mode="json", exclude_none=True)
    write_json(out / "job.json", {"status": "unfinished", "recipe": described, "mirepoix": __version__})
    options = recipe.loop.model_dump(exclude={"threads"})
    results = Store(store_path)
    progress.plan(_planned_steps(recipe, len(splits)))
    progress.stage("preparing the start")
    start = build_start(recipe, task, data, recipe_path, results, Loop(**options), progress.training)
    job = Job(
        recipe=recipe,
        task=task,
        start=start,
        trainer=Trainer(start.network, loop=Loop(**options), on_progress=progress.training),
        store=results,
        out=out,
        progress=progress,
        device=choose_device(recipe.loop.device),
    )
    outcomes = [outcome_of(job, split) for split in splits]
    report = build_report(recipe, task, start, outcomes, targets)
    report["environment"] = {**environment(), "device": str(job.device), "threads": torch.get_num_threads()}
    if command:
        report["command"] = command
    write_json(
        out / "job.json",
        {
            "status": "finished",
            "recipe": described,
            "mirepoix": __version__,
            "task": {"digest": task.digest, "notes": list(task.notes)},
            "start": start.sha256,
            "environment": environment(),
            "device": str(job.device),
            "seconds": round(time.monotonic() - began, 1),
            "made_now": len(results.made),
        },
    )
    return report


def _claim(out: Path, recipe: Recipe) -> None:
    """Take the output folder, or say why not: finished results of another recipe are never overwritten."""
    described = recipe.model_dump(mode="json", exclude_none=True)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder for the results, got a file. Choose another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        job = out / "job.json"
        if job.is_file():
            before = read_json(job)
            if before.get("status") == "finished" and before.get("recipe") != described:
                changed = _first_difference(before.get("recipe", {}), described)
                raise InputError(
                    f"{out}: holds the finished results of another recipe ({changed}). Choose another --out; "
                    f"with --store {out / 'store'} it takes over the members that are the same."
                )
        for leftover in (path for path in out.rglob(".*.tmp") if "store" not in path.relative_to(out).parts):
            leftover.unlink(missing_ok=True)
        probe = out / f".writable.{os.getpid()}.tmp"
        probe.write_bytes(b"?")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{out}: cannot write here ({error.strerror or error}). Free some space or choose another --out."
        ) from None


def _first_difference(before: Any, now: Any, key: str = "") -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *now]:
            if before.get(name) != now.get(name):
                return _first_difference(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    return f"{key} was {before!r}, now {now!r}"


def _planned_steps(recipe: Recipe, splits: int) -> int:
    probe = recipe.probe_run()
    each = recipe.members * recipe.base_run().steps + (probe.steps if probe else 0)
    pretraining = recipe.pretraining.over(recipe.base_run()).steps if recipe.pretraining else 0
    return splits * each + pretraining
