"""What comes of one target domain and one data seed: members, their combinations, and the evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from mirepoix.data import Split, Task
from mirepoix.ensembles import average_logits
from mirepoix.experiment._evidence import look_into
from mirepoix.experiment._files import keep
from mirepoix.experiment._judge import Judge
from mirepoix.experiment._objective import objective_for
from mirepoix.experiment._start import Start
from mirepoix.heads import linear_probe
from mirepoix.predictions import Predictions
from mirepoix.recipe import Recipe
from mirepoix.runs import Run, sample_runs
from mirepoix.selection import Choice, best, greedy
from mirepoix.store import Store, cached
from mirepoix.strategies import diwa, fine_tuning, moving_average, wise
from mirepoix.training import Trainer
from mirepoix.types import Diverged, InputError, Train, Weights
from mirepoix.weights import average, interpolate

__all__ = ["Job", "Outcome", "Progress", "outcome_of"]


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


@dataclass(frozen=True)
class Job:
    """What all targets and data seeds of one recipe share; the trainer minimises the empirical risk."""

    recipe: Recipe
    task: Task
    start: Start
    trainer: Trainer
    store: Store
    out: Path
    progress: Progress
    device: torch.device

    def trainer_on(self, task: Split) -> Trainer:
        """What minimises the objective of the recipe on a split."""
        table = self.recipe.objective
        return replace(self.trainer, objective=objective_for(self.start, task, table.name, table.options))

    def train(self, theta: Weights, task: Split, run: Run) -> Any:
        """``Train(theta, D; c)`` by the objective of the recipe, never done twice."""
        return cached(self.trainer_on(task), self.store)(theta, task, run)

    def runs_on(self, split: Split) -> list[Run]:
        """The configurations c_i."""
        return sample_runs(
            self.recipe.space.space(),
            self.recipe.members,
            data_seed=split.data_seed,
            base=self.recipe.base_run(),
        )

    def rehearse(self, split: Split) -> None:
        """Make one update by the objective and throw it away, on the smallest batch of any run.

        Raises:
            InputError: If the objective cannot be used with this network, these source domains or these runs.
        """
        if self.recipe.objective.name == "erm":
            return
        run = min(self.runs_on(split), key=lambda run: run.batch_size)
        try:
            self.trainer_on(split).rehearse(self.start.theta, split, run)
        except InputError as error:
            text = str(error).removeprefix("objective: ")
            raise InputError(f"objective: with {split.target!r} left out: {text}") from None

    def probe(self, theta: Weights, task: Split, run: Run) -> Any:
        """The same by the empirical risk: recipes with other objectives share their probe."""
        return cached(self.trainer, self.store)(theta, task, run)


@dataclass
class Outcome:
    """Rows of the tables, and the numbers behind the section "why"."""

    target: str
    data_seed: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    why: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Combined:
    """One set of members under every combination."""

    members: list[Any]
    chosen: Choice
    wise: Weights
    moving: Weights
    uniform: Weights
    soup: Choice


def outcome_of(job: Job, split: Split) -> Outcome:
    """Train the members of one split, combine them in every way, and measure."""
    assert split.target is not None
    outcome = Outcome(split.target, split.data_seed)
    start, numbers, runs = _train(job, split, outcome)

    job.progress.stage(f"{_where(job, split)}: combining and measuring")
    judge = Judge(job.start.network, split, job.store, job.device, augment=job.recipe.base_run().augment)
    refresh = judge.refresh
    combined = _combine(job, split, judge, refresh, start, runs)
    names = [f"run-{number}" for number in numbers]
    models: dict[str, Weights] = dict(zip(names, combined.members, strict=True))
    models |= {
        "wise": combined.wise,
        "moving_average": combined.moving,
        "average": combined.uniform,
        "greedy": combined.soup.theta,
    }
    validation = judge.predictions(list(models.items()), "validation")
    test = judge.predictions(list(models.items()), "test")

    scores = _scores(judge, validation, test, names)
    for name, number, run, member in zip(names, numbers, runs, combined.members, strict=True):
        id_accuracy, ood_accuracy = scores[name]
        values = {
            "id_accuracy": id_accuracy,
            "ood_accuracy": ood_accuracy,
            "best_step": member.record["best_step"],
        }
        outcome.runs.append(_run_row(outcome, number, run, status="finished", **values))
    outcome.runs.sort(key=lambda row: row["run"])
    outcome.rows = _rows(scores, names, combined)

    shown = [*names, "average"]
    outcome.why = look_into(
        judge,
        start,
        combined.members,
        combined.uniform,
        validation=validation.of(shown),
        test=test.of(shown),
        subsets=job.recipe.evidence.subsets,
        refresh=refresh,
        seed=split.data_seed,
    )
    outcome.why["greedy"] = {
        "order": [numbers[i] for i in combined.soup.order],
        "kept": [numbers[i] for i in combined.soup.kept],
        "scores": list(combined.soup.scores),
    }
    keep(
        job.out,
        job.recipe,
        split,
        job.start.network,
        start,
        numbers,
        models,
        combined.soup.kept,
        validation,
        test,
    )
    return outcome


def _where(job: Job, split: Split) -> str:
    return (
        f"{split.target}, data seed {split.data_seed}"
        if len(job.recipe.data.seeds) > 1
        else str(split.target)
    )


def _train(job: Job, split: Split, outcome: Outcome) -> tuple[Weights, list[int], list[Run]]:
    """Train all runs; return their start, and the numbers and configurations of those that did not diverge."""
    recipe, where = job.recipe, _where(job, split)
    start = job.start.theta
    probe = recipe.probe_run()
    if probe:
        job.progress.stage(f"{where}: linear probe", probe.steps)
        try:
            start = linear_probe(job.probe, start, split, probe)
        except Diverged as diverged:
            raise InputError(
                f"target {split.target!r}: the linear probe diverged: {diverged} Lower probe.learning_rate."
            ) from None
    runs = job.runs_on(split)
    finished = []
    for number, run in enumerate(runs):
        job.progress.stage(f"{where}: run {number} ({number + 1} of {len(runs)})", run.steps)
        try:
            job.train(start, split, run)
            finished.append(number)
        except Diverged as diverged:
            job.progress.note(f"{where}: run {number} diverged and is left out: {diverged}")
            outcome.runs.append(_run_row(outcome, number, run, status="diverged", message=str(diverged)))
    if not finished:
        raise InputError(
            f"target {split.target!r}: all {len(runs)} runs diverged; the first said: "
            f"{outcome.runs[0]['message']} Lower run.learning_rate in the recipe, or that of the probe they start from."
        )
    return start, finished, [runs[number] for number in finished]


def _combine(
    job: Job,
    split: Split,
    judge: Judge,
    refresh: Callable[[Weights], Weights],
    start: Weights,
    runs: Sequence[Run],
) -> _Combined:
    """The page of equations: the same members serve every row, because ``train`` does nothing twice."""
    train, evidence = _remembered(job.train), job.recipe.evidence
    members = diwa(train, start, split, runs, combine=list)
    member_scores = [member.record["id_accuracy"] for member in members]
    chosen = fine_tuning(
        train, start, split, runs, combine=partial(best, score=judge.score, member_scores=member_scores)
    )
    uniform = diwa(train, start, split, runs, combine=lambda thetas: refresh(average(thetas)))
    soup = diwa(
        train,
        start,
        split,
        runs,
        combine=partial(
            greedy,
            score=lambda candidate: judge.score(refresh(candidate)),
            strict=evidence.greedy_strict,
            member_scores=member_scores,
        ),
    )
    interpolated = wise(
        train,
        start,
        split,
        runs[chosen.kept[0]],
        evidence.wise,
        combine=lambda thetas, coefficients: refresh(interpolate(thetas, coefficients)),
    )
    averages = [moving_average(train, start, split, run) for run in runs]
    scores = [judge.id_accuracy(judge.logits(theta, "validation")) for theta in averages]
    return _Combined(
        members=members,
        chosen=chosen,
        wise=interpolated,
        moving=best(averages, judge.score, member_scores=scores).theta,
        uniform=uniform,
        soup=Choice(refresh(soup.theta), soup.kept, soup.order, soup.scores),
    )


def _remembered(train: Train) -> Train:
    """``train`` that looks a result up once: the store reads and verifies whole files every time."""
    known: dict[tuple[int, str, Run], Any] = {}

    def lookup(theta: Any, task: Split, run: Run) -> Any:
        key = (id(theta), task.digest, run)  # the start outlives this function's use
        if key not in known:
            known[key] = train(theta, task, run)
        return known[key]

    return lookup


def _scores(
    judge: Judge, validation: Predictions, test: Predictions, members: Sequence[str]
) -> Mapping[str, tuple[float, float]]:
    """ID and OOD accuracy of every model, and of the ensemble of the members."""
    scores = {
        name: (judge.id_accuracy(validation.logits[i]), judge.ood_accuracy(test.logits[i]))
        for i, name in enumerate(validation.members)
    }
    ensemble = (average_logits(validation.of(members).logits), average_logits(test.of(members).logits))
    return scores | {"ensemble": (judge.id_accuracy(ensemble[0]), judge.ood_accuracy(ensemble[1]))}


def _rows(
    scores: Mapping[str, tuple[float, float]], names: Sequence[str], combined: _Combined
) -> list[dict[str, Any]]:
    """One row per strategy and combination, in the order of the report."""
    m = len(names)
    mean = (sum(scores[name][0] for name in names) / m, sum(scores[name][1] for name in names) / m)
    table: list[tuple[str, str, int, int, tuple[float, float]]] = [
        # strategy, combine, members, forwards per prediction, accuracies
        ("fine_tuning", "mean", 1, 1, mean),
        ("fine_tuning", "best", 1, 1, scores[names[combined.chosen.kept[0]]]),
        ("wise", "interpolate", 1, 1, scores["wise"]),
        ("moving_average", "best", 1, 1, scores["moving_average"]),
        ("diwa", "average", m, 1, scores["average"]),
        ("diwa", "greedy", len(combined.soup.kept), 1, scores["greedy"]),
        ("diwa", "ensemble", m, m, scores["ensemble"]),
    ]
    return [
        {
            "strategy": strategy,
            "combine": combine,
            "id_accuracy": id_accuracy,
            "ood_accuracy": ood_accuracy,
            "members": members,
            "runs": m,
            "inference_cost": cost,
        }
        for strategy, combine, members, cost, (id_accuracy, ood_accuracy) in table
    ]


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
