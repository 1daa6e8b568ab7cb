"""A study of rewarded soups from beginning to end: starts, experts, MORL, front, choice, report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from mirepoix import __version__
from mirepoix.checkpoints import fingerprint, write_json
from mirepoix.experiment import claimed
from mirepoix.experiment._run import begin
from mirepoix.fronts._choice import choice
from mirepoix.fronts._content import Trial, front_report
from mirepoix.fronts._recipe import FrontRecipe
from mirepoix.fronts._subject import Place, Progress, Silence, Subject
from mirepoix.fronts._subjects import build
from mirepoix.rewards import (
    Expert,
    RewardFront,
    evaluate_policies,
    simplex_design,
    simplex_lattice,
    sweep,
)
from mirepoix.store import Store, environment
from mirepoix.types import Diverged, InputError, Weights

__all__ = ["run_front"]


def run_front(
    recipe: FrontRecipe,
    *,
    recipe_path: Path,
    out: Path,
    data: Path | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Do all the work of a study, continuing where an earlier call stopped.

    Args:
        recipe: What to do.
        recipe_path: Its file; inputs are looked for beside it.
        out: Folder for everything the job makes.
        data: Folder of inputs, for recipes that need one.
        store: Folder for finished results, ``out/store`` unless given; several jobs may share one.
        progress: Told of the work as it goes.
        command: How a person can ask for the same again; the report shows it.

    Returns:
        What ``report.json`` holds: see `front_report`.

    Raises:
        InputError: For anything in the recipe or the inputs that a person must mend; if all experts of a trial
            diverged.
    """
    progress = progress or cast(Progress, Silence())
    with claimed(out):
        return _Study(recipe, recipe_path, out, data, store or out / "store", progress).run(command)


class _Study:
    """One job under way."""

    def __init__(
        self,
        recipe: FrontRecipe,
        recipe_path: Path,
        out: Path,
        data: Path | None,
        store: Path,
        progress: Progress,
    ) -> None:
        self.recipe, self.out, self.progress = recipe, out, progress
        self.front = recipe.front
        self.store = Store(store)
        self.place = Place(recipe_path, data, self.store, progress)

    def run(self, command: str | None) -> dict[str, Any]:
        began = time.monotonic()
        if self.front.threads:
            torch.set_num_threads(self.front.threads)
        self.progress.stage("reading the inputs")
        subjects = [build(self.recipe, self.place, seed) for seed in self.front.seeds]
        job = {
            "recipe": self.recipe.model_dump(mode="json", exclude_none=True, exclude={"front": {"threads"}}),
            "mirepoix": __version__,
            "task": {"digest": subjects[0].inputs},
        }
        begin(self.out, job)
        self.progress.stage("trying the rewards")
        subjects[0].rehearse()
        trainings = len(self.front.experts) + len(self.front.preferences)
        self.progress.plan(sum(subject.start_steps + trainings * subject.steps for subject in subjects))
        trials, chosen, samples, facts = [], None, None, []
        for seed, subject in zip(self.front.seeds, subjects, strict=True):
            made = _Made(self, subject, seed)
            trials.append(made.trial())
            if seed == self.front.seeds[0]:
                chosen, samples, facts = made.chosen(), made.samples(), subject.facts()
            subject.close()
        trials, warnings = _comparable(trials)
        content = front_report(
            trials,
            name=self.recipe.name,
            title=self.recipe.title or self.recipe.name,
            source=self.recipe.source,
            facts=facts,
            protocol=self.protocol(),
            choice=chosen,
            samples=samples,
            warnings=warnings,
            environment={**environment(), "threads": torch.get_num_threads()},
            command=command,
        )
        for trial in trials:
            for role, front in trial.fronts():
                (self.out / "fronts").mkdir(exist_ok=True)
                front.save(self.out / "fronts" / f"{trial.name.replace(' ', '-')}-{role}.json")
        write_json(
            self.out / "job.json",
            {
                "status": "finished",
                **job,
                "environment": environment(),
                "seconds": round(time.monotonic() - began, 1),
                "made_now": len(self.store.made),
            },
        )
        return content

    def protocol(self) -> dict[str, Any]:
        """How it was done."""
        front = self.front
        return {
            "seeds": list(front.seeds),
            "soups": front.points,
            "MORL": [_written(preference) for preference in front.preferences] or "none",
            "functional ensemble": {
                "none": "none",
                "uniform": "uniform coefficients",
                "all": "at every point",
            }[front.ensemble],
            **{
                f"{table} {key}": value
                for table in ("task", "start", "run", "evaluation")
                for key, value in getattr(self.recipe, table).items()
            },
        }


class _Made:
    """The trainings and evaluations of one trial."""

    def __init__(self, study: _Study, subject: Subject, seed: int) -> None:
        self.study, self.subject, self.seed = study, subject, seed
        self.front = study.front
        self.notes: list[str] = []
        self.progress = study.progress
        self.values = study.store.path / "values"

    def trial(self) -> Trial:
        front, name = self.front, f"seed {self.seed}"
        self.progress.stage(f"{name}: the start", self.subject.start_steps)
        self.begun = self.subject.start()
        self.thetas = self._trained({expert: {expert: 1.0} for expert in front.experts})
        if not self.thetas:
            raise InputError(f"{name}: all experts diverged. Lower run.learning_rate. {' '.join(self.notes)}")
        self.compromises = compromises = self._trained(
            {f"MORL {_written(preference)}": preference for preference in front.preferences}
        )
        self.kept: dict[str, Any] = {
            "evaluation": self.subject.evaluation,
            "cache": self.values,
            "progress": lambda done, total: self.progress.images(done, total, "points"),
        }
        self.progress.stage(f"{name}: the front")
        self.soups = sweep(
            [self.subject.expert(expert, theta) for expert, theta in self.thetas.items()],
            self._points(list(self.thetas)),
            self.subject.evaluate,
            **self.kept,
        )
        start = sweep(
            [Expert("start", "none", self.begun)],
            [{"start": 1.0}],
            self.subject.evaluate,
            label="start",
            **self.kept,
        )
        self.morl = self._morl(compromises)
        seconds = {"soup": _seconds(self.thetas)}
        trainings = {"soup": len(self.thetas)}
        if self.morl is not None:
            seconds["morl"] = seconds["soup"] + _seconds(compromises)
            trainings["morl"] = len(self.thetas) + len(compromises)
        if front.ensemble != "none":
            trainings["ensemble"], seconds["ensemble"] = trainings["soup"], seconds["soup"]
        return Trial(
            name=name,
            soups=self.soups,
            morl=self.morl,
            ensemble=self._ensemble(),
            start=start,
            trainings=trainings,
            seconds={role: value for role, value in seconds.items() if value},
            notes=tuple(self.notes),
        )

    def _trained(self, wanted: Mapping[str, Mapping[str, float]]) -> dict[str, Weights]:
        """What each reward led to, but for those that diverged, which are noted."""
        found = {}
        for name, reward in wanted.items():
            self.progress.stage(f"seed {self.seed}: {name}", self.subject.steps)
            try:
                found[name] = self.subject.train(reward)
            except Diverged as diverged:
                self.notes.append(f"seed {self.seed}: {name} diverged and is left out: {diverged}")
                self.progress.note(self.notes[-1])
        return found

    def _points(self, experts: Sequence[str]) -> list[dict[str, float]]:
        if len(experts) < 2:
            return [dict.fromkeys(experts, 1.0)]
        if len(experts) == 2:
            return list(simplex_lattice(experts, self.front.points - 1))
        return list(simplex_design(experts, max(self.front.points, len(experts) + 1), seed=0))

    def _morl(self, compromises: Mapping[str, Weights]) -> RewardFront | None:
        """The MORL runs with, for one reward alone, the experts: it is the same training."""
        if not compromises:
            return None
        names = list(dict.fromkeys(name for each in self.front.preferences for name in each))
        policies = {f"MORL {_written(each)}": each for each in self.front.preferences}
        alone = {expert: {name: float(name == expert) for name in names} for expert in self.thetas}
        return evaluate_policies(
            [*self.thetas.values(), *compromises.values()],
            [
                *alone.values(),
                *({name: policies[label].get(name, 0.0) for name in names} for label in compromises),
            ],
            self.subject.evaluate,
            **self.kept,
        )

    def _ensemble(self) -> RewardFront | None:
        """Functional ensembles at the points that are asked for; each is kept as soon as it is made."""
        experts = list(self.thetas)
        if self.front.ensemble == "none" or len(experts) < 2:
            return None
        points = [dict.fromkeys(experts, 1 / len(experts))]
        if self.front.ensemble == "all":
            points = [dict(shares) for shares in self.soups.coefficients]
        self.progress.stage(f"seed {self.seed}: functional ensembles")
        made_of = {name: fingerprint(theta) for name, theta in self.thetas.items()}
        rows = []
        for done, shares in enumerate(points, start=1):
            identity = {"experts": made_of, "coefficients": shares, "evaluation": self.subject.evaluation}

            def make(workspace: Path, shares: Mapping[str, float] = shares) -> Any:
                found = self.subject.ensemble(self.thetas, shares)
                return {}, {"values": {name: [float(v) for v in values] for name, values in found.items()}}

            _, record = self.study.store.get_or_make("ensembles", identity, make)
            rows.append([record["values"][name] for name in self.soups.rewards])
            self.progress.images(done, len(points), "ensembles")
        return RewardFront(
            experts=tuple(experts),
            rewards=self.soups.rewards,
            coefficients=tuple(points),
            values=rows,
            trained_on=self.soups.trained_on,
            label="functional ensemble",
            provenance={"evaluation": self.subject.evaluation},
        )

    def chosen(self) -> dict[str, Any] | None:
        """The soup for the user's preference, exported with its record."""
        experts = list(self.thetas)
        if len(experts) < 2:
            return None
        preference = self.front.preference or dict.fromkeys(experts, 1 / len(experts))
        found = choice(self.soups, preference)
        self.progress.stage("writing the chosen weights")
        name = self.subject.export(self.thetas, found["coefficients"], self.study.out)
        record = {
            "format": 1,
            "kind": "rewarded soup",
            "mirepoix": __version__,
            "equation": "theta = sum_i lambda_i theta_i",
            "coefficients": found["coefficients"],
            "experts": {expert: fingerprint(theta) for expert, theta in self.thetas.items()},
            "start": fingerprint(self.begun),
            "preference": found["preference"],
            "method": found["method"],
            "expected": found["expected"],
            "seed": self.seed,
            "environment": environment(),
        }
        write_json(self.study.out / "choice.json", record)
        return {**found, "exported": name}

    def samples(self) -> dict[str, Any] | None:
        """What start, experts, soups between them and MORL answer to the same items."""
        count = self.front.samples
        items = self.subject.items(count) if count else []
        if not items:
            return None
        self.progress.stage("answers for the table of samples")
        columns = [("start", self.begun)]
        columns += [(f"lambda[{name}] = 1", theta) for name, theta in self.thetas.items()]
        columns += list(self.compromises.items())
        experts = [self.subject.expert(name, theta) for name, theta in self.thetas.items()]
        between = self._between(list(self.thetas))
        found = [{"label": label, "answers": self.subject.answers(theta, count)} for label, theta in columns]

        def heard(theta: Weights) -> dict[str, list[float]]:
            label, _ = between[len(spoken)]
            spoken.append({"label": label, "answers": self.subject.answers(theta, count)})
            return {"heard": [0.0]}

        spoken: list[dict[str, Any]] = []
        if between:
            sweep(experts, [shares for _, shares in between], heard)
        return {"items": items, "columns": [*found[:2], *spoken, *found[2:]]}

    def _between(self, experts: Sequence[str]) -> list[tuple[str, dict[str, float]]]:
        """Soups whose answers are shown: thirds between two experts, else the uniform one."""
        if len(experts) < 2:
            return []
        if len(experts) > 2:
            return [("uniform soup", dict.fromkeys(experts, 1 / len(experts)))]
        one, two = experts
        shares = [0.7, 0.5, 0.3]
        return [(f"lambda[{one}] = {share:g}", {one: share, two: 1 - share}) for share in shares]


def _comparable(trials: Sequence[Trial]) -> tuple[list[Trial], list[str]]:
    """The trials with most experts, and a word about each other."""
    most = max(len(trial.soups.experts) for trial in trials)
    first = next(trial for trial in trials if len(trial.soups.experts) == most)
    kept = [trial for trial in trials if trial.soups.experts == first.soups.experts]
    left_out = [trial for trial in trials if trial.soups.experts != first.soups.experts]
    return kept, [note for trial in left_out for note in trial.notes]


def _seconds(thetas: Mapping[str, Weights]) -> float:
    return float(sum(getattr(theta, "record", {}).get("seconds", 0.0) for theta in thetas.values()))


def _written(shares: Mapping[str, float]) -> str:
    return " + ".join(f"{share:.3g} {name}" for name, share in shares.items() if share)
