"""One recipe from beginning to end: task, start, members, combinations, predictions, report."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import quote

import torch

from mirepoix import __version__
from mirepoix.checkpoints import fingerprint, read_json, write_json, write_weights
from mirepoix.data import Split, Task, evaluation_batches
from mirepoix.ensembles import average_logits
from mirepoix.experiment._evidence import look_into
from mirepoix.experiment._judge import Judge
from mirepoix.experiment._start import Start, build_start
from mirepoix.experiment._table import build_report
from mirepoix.experiment._task import build_task
from mirepoix.heads import linear_probe
from mirepoix.merging import reestimate_batch_norm
from mirepoix.models import has_batch_norm
from mirepoix.recipe import Recipe
from mirepoix.runs import Run, sample_runs
from mirepoix.selection import best, greedy
from mirepoix.store import Store, cached, environment
from mirepoix.strategies import diwa, fine_tuning, moving_average, wise
from mirepoix.training import Loop, Trainer, choose_device
from mirepoix.types import Diverged, InputError, Weights
from mirepoix.weights import average, interpolate

__all__ = ["Progress", "run_recipe"]


class Progress(Protocol):
    """Told of the work as it goes."""

    def plan(self, steps: int) -> None:
        """The number of training steps of the whole job."""

    def stage(self, text: str, steps: int = 0) -> None:
        """A new piece of work; ``steps`` of training belong to it."""

    def images(self, done: int, total: int, text: str) -> None:
        """Images read."""

    def training(self, step: int, steps: int, loss: float, id_accuracy: float | None) -> None:
        """A training step of the current piece."""

    def note(self, text: str) -> None:
        """Something a person should know."""


class _Silence:
    """Hears everything and says nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


@dataclass(frozen=True)
class Job:
    """What all targets and data seeds of one recipe share."""

    recipe: Recipe
    task: Task
    start: Start
    trainer: Trainer
    store: Store
    out: Path
    progress: Progress
    device: torch.device

    def train(self, theta: Weights, task: Split, run: Run) -> Any:
        """``Train(theta, D; c)``, never done twice."""
        return cached(self.trainer, self.store)(theta, task, run)


@dataclass
class Outcome:
    """What came of one target domain and one data seed."""

    target: str
    data_seed: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    why: dict[str, Any] = field(default_factory=dict)


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
    outcomes = [_one_split(job, split) for split in splits]
    report = build_report(recipe, task, start, outcomes, targets)
    report["environment"] = {**environment(), "device": str(job.device), "threads": torch.get_num_threads()}
    if command:
        report["command"] = command
    write_json(
        out / "job.json",
        {
            "status": "finished",
            "recipe": recipe.model_dump(exclude_none=True),
            "mirepoix": __version__,
            "task": {"digest": task.digest, "notes": list(task.notes)},
            "start": start.sha256,
            "environment": environment(),
            "device": str(job.device),
            "seconds": round(time.monotonic() - began, 1),
            "trained_now": len(results.made),
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
        write_json(job, {"status": "unfinished", "recipe": described, "mirepoix": __version__})
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


def _one_split(job: Job, split: Split) -> Outcome:
    """Members, combinations and evidence for one target domain and one data seed."""
    recipe, progress = job.recipe, job.progress
    assert split.target is not None
    seeds = f", data seed {split.data_seed}" if len(recipe.data.seeds) > 1 else ""
    where = f"{split.target}{seeds}"
    outcome = Outcome(split.target, split.data_seed)

    theta = job.start.theta
    probe_run = recipe.probe_run()
    if probe_run:
        progress.stage(f"{where}: linear probe", probe_run.steps)
        theta = linear_probe(job.train, theta, split, probe_run)

    runs = sample_runs(
        recipe.space.space(), recipe.members, data_seed=split.data_seed, base=recipe.base_run()
    )
    finished: list[int] = []
    for number, run in enumerate(runs):
        progress.stage(f"{where}: run {number + 1} of {len(runs)}", run.steps)
        try:
            job.train(theta, split, run)
            finished.append(number)
        except Diverged as diverged:
            progress.note(f"{where}: run {number} diverged and is left out: {diverged}")
            outcome.runs.append(_run_row(outcome, number, run, status="diverged", message=str(diverged)))
    if not finished:
        raise InputError(
            f"target {split.target!r}: all {len(runs)} runs diverged; the first said: "
            f"{outcome.runs[0]['message']} Lower run.learning_rate in the recipe."
        )
    runs = [runs[number] for number in finished]

    progress.stage(f"{where}: combining and measuring")
    judge = Judge(job.start.network, split, job.store, job.device)
    refresh = partial(_refresh, judge) if _needs_refresh(job) else dict

    # The page of equations: the same members serve every row, because `train` never does the same work twice.
    members = diwa(job.train, theta, split, runs, combine=list)
    member_scores = [member.record["id_accuracy"] for member in members]
    chosen = fine_tuning(
        job.train, theta, split, runs, combine=partial(best, score=judge.score, member_scores=member_scores)
    )
    uniform = diwa(job.train, theta, split, runs, combine=lambda thetas: refresh(average(thetas)))
    soup = diwa(
        job.train,
        theta,
        split,
        runs,
        combine=partial(
            greedy,
            score=lambda candidate: judge.score(refresh(candidate)),
            strict=recipe.evidence.greedy_strict,
            member_scores=member_scores,
        ),
    )
    share = recipe.evidence.wise
    wise_theta = wise(
        job.train,
        theta,
        split,
        runs[chosen.kept[0]],
        share,
        combine=lambda thetas, coefficients: refresh(interpolate(thetas, coefficients)),
    )
    averages = [moving_average(job.train, theta, split, run) for run in runs]
    moving = best(
        averages,
        judge.score,
        member_scores=[judge.id_accuracy(judge.logits(one, "validation")) for one in averages],
    )

    models: dict[str, Weights] = {f"run-{n}": theta_n for n, theta_n in zip(finished, members, strict=True)}
    models |= {
        "wise": wise_theta,
        "moving_average": moving.theta,
        "average": uniform,
        "greedy": refresh(soup.theta),
    }
    validation = judge.predictions(list(models.items()), "validation")
    test = judge.predictions(list(models.items()), "test")
    names = list(models)[: len(members)]

    def scored(name: str) -> tuple[float, float]:
        i = validation.members.index(name)
        return judge.id_accuracy(validation.logits[i]), judge.ood_accuracy(test.logits[i])

    each = [scored(name) for name in names]
    for number, run, member, (id_accuracy, ood_accuracy) in zip(finished, runs, members, each, strict=True):
        outcome.runs.append(
            _run_row(
                outcome,
                number,
                run,
                status="finished",
                id_accuracy=id_accuracy,
                ood_accuracy=ood_accuracy,
                best_step=member.record["best_step"],
            )
        )
    outcome.runs.sort(key=lambda row: row["run"])

    def row(strategy: str, combine: str, count: int, accuracies: tuple[float, float], cost: int = 1) -> None:
        outcome.rows.append(
            {
                "strategy": strategy,
                "combine": combine,
                "id_accuracy": accuracies[0],
                "ood_accuracy": accuracies[1],
                "members": count,
                "runs": len(runs),
                "inference_cost": cost,
            }
        )

    m = len(members)
    ensemble = (
        judge.id_accuracy(average_logits(validation.of(names).logits)),
        judge.ood_accuracy(average_logits(test.of(names).logits)),
    )
    row("fine_tuning", "mean", 1, (sum(a for a, _ in each) / m, sum(b for _, b in each) / m))
    row("fine_tuning", "best", 1, each[chosen.kept[0]])
    row("wise", "interpolate", 1, scored("wise"))
    row("moving_average", "best", 1, scored("moving_average"))
    row("diwa", "average", m, scored("average"))
    row("diwa", "greedy", len(soup.kept), scored("greedy"))
    row("diwa", "ensemble", m, ensemble, cost=m)

    outcome.why = look_into(
        judge,
        theta,
        members,
        uniform,
        validation=validation.of([*names, "average"]),
        test=test.of([*names, "average"]),
        subsets=recipe.evidence.subsets,
        refresh=refresh,
        seed=split.data_seed,
    )
    outcome.why["greedy"] = {
        "order": [finished[i] for i in soup.order],
        "kept": [finished[i] for i in soup.kept],
        "scores": list(soup.scores),
    }
    _keep(job, split, finished, members, models, validation, test, soup.kept, share)
    return outcome


def _run_row(outcome: Outcome, number: int, run: Run, *, status: str, **values: Any) -> dict[str, Any]:
    return {
        "target": outcome.target,
        "data_seed": outcome.data_seed,
        "run": number,
        "status": status,
        "message": None,
        "id_accuracy": None,
        "ood_accuracy": None,
        "best_step": None,
        **values,
        "configuration": {name: value for name, value in run.to_dict().items() if name != "collect"},
    }


def _needs_refresh(job: Job) -> bool:
    return not job.start.network.frozen_batch_norm and has_batch_norm(job.start.network)


def _refresh(judge: Judge, theta: Weights) -> dict[str, Any]:
    """Averaged weights with batch-norm statistics measured again on training images, un-augmented."""
    judge.model.load_state_dict(dict(theta))
    transform = judge.split.task.transform
    batches = (
        batch
        for subset in judge.split.train
        for batch in itertools.islice(evaluation_batches(subset, transform, device=judge.device), 8)
    )
    return reestimate_batch_norm(judge.model, batches)


def _keep(
    job: Job,
    split: Split,
    finished: Sequence[int],
    members: Sequence[Any],
    models: Mapping[str, Weights],
    validation: Any,
    test: Any,
    kept: Sequence[int],
    share: float,
) -> None:
    """Put members, soups and predictions, each with its record, where a person looks for them."""
    folder = quote(str(split.target), safe=" +,()")
    if len(job.recipe.data.seeds) > 1:
        folder += f"-seed-{split.data_seed}"
    origin = {"target": split.target, "data_seed": split.data_seed, "mirepoix": __version__}

    for number, member in zip(finished, members, strict=True):
        path = job.out / "members" / folder / f"run-{number}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        _link(member.path, path)
        write_json(
            path.with_suffix(".json"), {**origin, "equation": "Train(theta_pt, D; c)", **member.record}
        )

    def ingredients(numbers: Sequence[int]) -> list[dict[str, Any]]:
        return [{"run": finished[i], "fingerprint": fingerprint(members[i])} for i in numbers]

    m = len(members)
    details: dict[str, dict[str, Any]] = {
        "wise": {"equation": f"{1 - share:g} Train(theta_pt, D; c) + {share:g} theta_pt"},
        "moving_average": {"equation": "mean_t theta_t along Train(theta_pt, D; c)"},
        "average": {"equation": f"1/{m} sum_i Train(theta_pt, D; c_i)", "members": ingredients(range(m))},
        "greedy": {
            "equation": f"1/{len(kept)} sum_(i kept) Train(theta_pt, D; c_i)",
            "members": ingredients(kept),
        },
    }
    for name, detail in details.items():
        path = job.out / "soups" / folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            **origin,
            **detail,
            "network": job.start.network.to_dict(),
            "classes": list(job.task.classes),
        }
        write_weights(path, models[name], record=record)

    predictions = job.out / "predictions"
    predictions.mkdir(exist_ok=True)
    validation.save(predictions / f"{folder}-validation.safetensors")
    test.save(predictions / f"{folder}-test.safetensors")


def _link(source: Path, path: Path) -> None:
    """The same file under a second name, or a copy where the file system has no links."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, path)
    temporary.unlink(missing_ok=True)  # a rename onto another link of the same file leaves both names
