"""One recipe from beginning to end: task, start, members, combinations, predictions, report."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import filelock
import torch

from mirepoix import __version__
from mirepoix.checkpoints import read_json, write_json
from mirepoix.experiment._outcome import Job, Progress, outcome_of
from mirepoix.experiment._start import build_start
from mirepoix.experiment._table import build_report
from mirepoix.experiment._task import DIGITS_SIZE, build_task
from mirepoix.recipe import Recipe
from mirepoix.store import Store, environment
from mirepoix.training import Loop, Trainer, choose_device
from mirepoix.types import InputError

__all__ = ["Progress", "Silence", "begin", "claimed", "run_recipe"]


class Silence:
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
    progress = progress or cast(Progress, Silence())
    choose_device(recipe.loop.device)  # a typing error is told before any image is read
    with claimed(out):
        return _run(recipe, recipe_path, out, data, store or out / "store", progress, command)


def _run(
    recipe: Recipe,
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
    targets = list(task.domain_names) if recipe.data.targets == "all" else list(recipe.data.targets)
    splits = [
        task.split(target, data_seed=seed, holdout=recipe.data.holdout)
        for target, seed in itertools.product(targets, recipe.data.seeds)
    ]
    job_record = {
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "mirepoix": __version__,
        "task": {"digest": task.digest, "notes": list(task.notes)},
    }
    begin(out, job_record)

    options = recipe.loop.model_dump(exclude={"threads"})
    results = Store(store_path)
    pretraining = recipe.pretraining_run()
    progress.plan(_planned_steps(recipe, len(splits)))
    progress.stage("preparing the start", pretraining.steps if pretraining else 0)
    digits = (recipe.data.size or DIGITS_SIZE) if recipe.data.dataset == "digits" else None
    start = build_start(
        recipe, task, data, recipe_path, results, Loop(**options), progress.training, digits=digits
    )
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
    for split in splits:  # what one of them cannot do is told before any is trained on
        job.rehearse(split)
    outcomes = [outcome_of(job, split) for split in splits]
    report = build_report(recipe, task, start, outcomes, targets)
    report["environment"] = {
        **environment(),
        "device": str(job.device),
        "threads": torch.get_num_threads(),
    }
    if command:
        report["command"] = command
    write_json(
        out / "job.json",
        {
            "status": "finished",
            **job_record,
            "start": start.sha256,
            "environment": environment(),
            "device": str(job.device),
            "seconds": round(time.monotonic() - began, 1),
            "made_now": len(results.made),
        },
    )
    return report


RESULTS = (
    "members",
    "soups",
    "predictions",
    "fronts",
    "chosen",
    "chosen.safetensors",
    "choice.json",
    "figures",
    "report.json",
    "report.md",
    "report.html",
)
"""What a job puts into its folder, beside ``job.json`` and the store."""


@contextmanager
def claimed(out: Path, *, shares: bool = True) -> Iterator[None]:
    """Hold the output folder: one process at a time, and it must be possible to write there.

    Args:
        out: The folder.
        shares: Whether the job has a store that others may share.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder for the results, got a file. Choose another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / ".lock")
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(
            f"{out}: another process is working in this folder. Wait for it, or choose another --out"
            + (f"; with --store {out / 'store'} the two share what they train." if shares else ".")
        ) from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{out}: cannot write here ({reason}). Free some space or choose another --out."
        ) from None
    try:
        yield
    finally:
        (out / ".lock").unlink(missing_ok=True)
        lock.release()


def begin(out: Path, now: dict[str, Any]) -> None:
    """Start or continue a job here; finished results of another recipe or other images are never overwritten."""
    file = out / "job.json"
    before = read_json(file) if file.is_file() else None
    if before is None and (out / "front.json").exists():
        raise InputError(f"{out}: holds the results of `mirepoix front`. Choose another --out.")
    if before is not None and not isinstance(before, dict):
        raise InputError(f"{file}: expected the record of a job, got something else. Choose another --out.")
    if before is not None:
        changed = _first_difference(_deciding(before), _deciding(now))
        if changed and before.get("status") == "finished":
            raise InputError(
                f"{out}: holds the finished results of another recipe ({changed}). Choose another --out; "
                f"with --store {out / 'store'} it takes over the members that are the same."
            )
        for name in RESULTS:
            for leftover in out.glob(f"{name}/**/.*.tmp"):
                leftover.unlink(missing_ok=True)
            if changed:  # an unfinished job of ours that another one replaces
                shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
        for leftover in out.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
    if before is None or before.get("status") != "finished":
        write_json(file, {"status": "unfinished", **now})


def _deciding(job: dict[str, Any]) -> dict[str, Any]:
    """The part of a job's record that decides its results."""
    recipe = {"objective": {"name": "erm"}, **job.get("recipe", {})}  # older jobs name none
    idle = ("threads", "save_every", "device")
    recipe["loop"] = {key: value for key, value in recipe.get("loop", {}).items() if key not in idle}
    return {"recipe": recipe, "images": job.get("task", {}).get("digest")}


def _first_difference(before: Any, now: Any, key: str = "") -> str | None:
    if before == now:
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *now]:
            if before.get(name) != now.get(name):
                inner = f"{key}.{name}" if key else name
                return _first_difference(before.get(name), now.get(name), inner)
    return f"{key.removeprefix('recipe.')} was {before!r}, now {now!r}"


def _planned_steps(recipe: Recipe, splits: int) -> int:
    probe = recipe.probe_run()
    each = recipe.members * recipe.base_run().steps + (probe.steps if probe else 0)
    pretraining = recipe.pretraining_run()
    return splits * each + (pretraining.steps if pretraining else 0)
