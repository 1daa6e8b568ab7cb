"""What is trained for each system and trial; what two systems share is trained once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mirepoix.checkpoints import fingerprint
from mirepoix.comparison._drawn import draw_members
from mirepoix.comparison._recipe import CYCLIC, SAMPLED, Comparison, SystemTable
from mirepoix.comparison._systems import trained
from mirepoix.data import Split, Subset, Task, draw, evaluation_batches
from mirepoix.ensembles import Independent
from mirepoix.ensembles._named import joint_objective
from mirepoix.experiment import Judge, Progress, Start, objective_for
from mirepoix.heads import linear_probe
from mirepoix.merging import fisher_diagonal
from mirepoix.models import NetworkSpec, initial_weights, load_pretrained
from mirepoix.objectives import ERM, Objective
from mirepoix.recipe import blame
from mirepoix.runs import Run, sample_runs
from mirepoix.seeds import seed_hash, stream
from mirepoix.snapshots import SimplexVolume, laplace_samples
from mirepoix.snapshots._named import Fisher, anchors_of, later_objective
from mirepoix.store import Store, StoredWeights, cached, code_version, result_key
from mirepoix.training import Loop, Trainer
from mirepoix.types import Diverged, InputError, Train, Weights
from mirepoix.weights import average

__all__ = ["Bench", "Lost", "Made", "Members", "part_of"]


@dataclass(frozen=True)
class Lost:
    """A training that gave no weights.

    Attributes:
        number: Of the training in its system, from 1.
        message: Why.
    """

    number: int
    message: str


@dataclass(frozen=True)
class Made:
    """A training that was made, or found.

    Attributes:
        number: Of the training in its system, from 1; of a member that is drawn, its own.
        theta: Its last weights, with their record.
        network: What they are of: one network, or several members in one.
        run: The configuration; None of a member that is drawn.
        key: Of the result in the store.
    """

    number: int
    theta: StoredWeights
    network: NetworkSpec
    run: Run | None
    key: str


@dataclass(frozen=True)
class Members:
    """What came of one system in one trial.

    Attributes:
        made: Networks, each a member or several.
        lost: Trainings that diverged, or whose start did.
        trainings: What was trained for them.
    """

    made: tuple[Made, ...]
    lost: tuple[Lost, ...]
    trainings: tuple[Made, ...]


@dataclass
class Bench:
    """What all systems and trials share."""

    recipe: Comparison
    task: Task
    start: Start
    files: dict[str, Weights]
    """Weights of the files that some systems start from."""
    loop: Loop
    store: Store
    device: torch.device
    progress: Progress
    known: dict[str, Any] = field(default_factory=dict)
    """Results of this job by their key; a store would verify whole files again."""

    # What is trained ----------------------------------------------------------------------------------------

    def network_of(self, system: SystemTable) -> NetworkSpec:
        """What a training of a system is of."""
        network = self.start.network
        if self.recipe.from_scratch(system):
            network = replace(network, pretrained=False)
        if system.kind != "joint":
            return network
        if system.inputs is not None:
            return replace(network, inputs=system.inputs)
        return replace(network, members=self.recipe.members_of(system), split_at=system.split_at)

    def runs_of(self, system: SystemTable, trial: int) -> list[Run]:
        """The configurations c_i; the seed is that of the trial and of i, whatever the system."""
        count = self.recipe.trainings_of(system)
        seeds = [run.seed for run in sample_runs({}, count, data_seed=trial)]
        first, later = self.recipe.run_of(system), self.recipe.run_of(system)
        if system.kind in CYCLIC:
            later = self.recipe.cycle_of(system)
        if system.kind == "swag":
            later = later.with_(collect="snapshots")
        return [(later if i else first).with_(seed=seed) for i, seed in enumerate(seeds)]

    def objective_of(self, system: SystemTable, split: Split, run: Run) -> Objective:
        """What a training of a system minimises, where it knows of no earlier member."""
        table = system.objective
        if system.kind == "joint":
            if table is None:
                return Independent()
            return joint_objective(
                table.name,
                table.options,
                features=self.start.network.build_empty().feature_size,
                classes=self.start.network.classes,
                members=self.recipe.members_of(system),
                total_steps=run.steps,
                seed=run.seed,
            )
        return ERM() if table is None else objective_for(self.start, split, table.name, table.options)

    def later_objective(
        self, system: SystemTable, split: Split, earlier: Sequence[Weights], fisher: Fisher | None = None
    ) -> Objective | None:
        """What a later training minimises; nothing of its own where no earlier member is asked for."""
        if system.kind == "simplex":
            drawn = system.drawn_by()
            return SimplexVolume(
                self.network_of(system), earlier, alpha=drawn.alpha, points=drawn.points, root=drawn.root
            )
        if system.later is None:
            return None
        anchors = anchors_of(system.later.name, earlier)
        if not anchors:
            return None
        return later_objective(
            system.later.name,
            self.network_of(system),
            anchors,
            system.later.options,
            fisher or partial(self.fisher, self.network_of(system), split),
        )

    def fisher(
        self, network: NetworkSpec, split: Split, theta: Weights, images: int
    ) -> Mapping[str, torch.Tensor]:
        """The diagonal of the Fisher information of a member, on training images without augmentation."""
        made_of = {
            "theta": fingerprint(theta),
            "network": network.to_dict(),
            "split": split.digest,
            "images": images,
            "code": code_version("merging/_fisher.py", "comparison/_members.py"),
        }

        def make(_: Path) -> tuple[dict[str, Weights], dict[str, Any]]:
            model = network.build()
            model.load_state_dict(dict(theta))
            each = -(-images // len(split.train))
            parts = [part_of(subset, each, "fisher", split.data_seed) for subset in split.train]
            batches = (
                batch
                for part in parts
                for batch in evaluation_batches(part, split.task.transform, device=self.device)
            )
            found = fisher_diagonal(model.to(self.device), batches, labels="true", samples=images)
            return {"fisher": found}, {"status": "finished"}

        weights, _ = self.store.get_or_make("fisher", made_of, make)
        return {name: weights["fisher"][name] for name in weights["fisher"]}

    def trainer(self, system: SystemTable, objective: Objective) -> Trainer:
        """The loop for a system."""
        along = system.kind == "joint" and self.recipe.evidence.dynamics
        return Trainer(
            self.network_of(system),
            objective,
            self.loop,
            keep=("last", "snapshots") if along else ("last",),
            on_progress=self.progress.training,
        )

    # Where it starts ----------------------------------------------------------------------------------------

    def starts_of(self, system: SystemTable, split: Split) -> list[Weights]:
        """Where the trainings of a system start, in turn.

        Members of one network that have a pre-trained start differ in their classifiers alone.
        """
        trial, network = split.data_seed, self.network_of(system)
        if self.recipe.from_scratch(system):
            count = 1 if system.kind in (*CYCLIC, "laplace") else self.recipe.trainings_of(system)
            return [initial_weights(network, seed=seed_hash("start", i, trial)) for i in range(count)]
        if system.kind == "joint":
            return [
                load_pretrained(network, self.start.theta, seed=seed_hash("classifiers", i, trial))
                for i in range(system.copies)
            ]
        thetas = [self.files[name] for name in system.starts] if system.starts else [self.start.theta]
        return [self.probed(theta, split) for theta in thetas]

    def probed(self, theta: Weights, split: Split) -> Weights:
        """A start with the head of its linear probe, if the recipe has one."""
        probe = self.recipe.probe_run()
        if probe is None:
            return theta
        trainer = Trainer(
            self.start.network, loop=self.loop, keep=("last",), on_progress=self.progress.training
        )
        try:
            found: Weights = linear_probe(partial(self.looked_up, trainer), theta, split, probe)
        except Diverged as diverged:
            raise InputError(f"the linear probe diverged: {diverged} Lower probe.learning_rate.") from None
        return found

    def looked_up(self, trainer: Trainer, theta: Weights, split: Split, run: Run) -> Any:
        """A linear probe, never made twice."""
        key = result_key(trainer, theta, split, run)
        if key not in self.known:
            self.progress.stage(f"trial {split.data_seed}: linear probe", run.steps)
            self.known[key] = cached(trainer, self.store)(theta, split, run)
        return self.known[key]

    # The work -----------------------------------------------------------------------------------------------

    def rehearse(self, system: SystemTable, split: Split) -> None:
        """Make one update of every kind that a system asks for, and throw it away.

        Raises:
            InputError: Naming the system, for what cannot be trained.
        """
        try:
            theta = self.rehearsed_from(system)
            first, *others = self.runs_of(system, split.data_seed)
            objective = self.objective_of(system, split, first)
            self.trainer(system, objective).rehearse(theta, split, first)
            if system.kind == "laplace":
                self.rehearse_laplace(system, theta, split)
            if others and system.kind in CYCLIC:
                objective = self.later_objective(system, split, [theta, theta], self.ones) or objective
                blame("cycle", partial(self.trainer(system, objective).rehearse, theta, split, others[0]))
        except InputError as error:
            raise InputError(f"systems.{system.name}: {str(error).removeprefix('objective: ')}") from None

    def rehearse_laplace(self, system: SystemTable, theta: Weights, split: Split) -> None:
        """Draw from the curvature on a few images: a structure that the library lacks is told before any training."""
        batches = draw(split, 0, batch_size=4, seed=0, augment=False, device=self.device)
        model = self.network_of(system).build().to(self.device)
        laplace_samples(model, theta, batches, count=1, seed=0, **system.drawn_by().model_dump())

    def ones(self, theta: Weights, images: int) -> Mapping[str, torch.Tensor]:
        """In place of the Fisher information, for a rehearsal: measuring it takes long."""
        parameters = self.start.network.build().named_parameters()
        return {name: torch.ones_like(value) for name, value in parameters}

    def rehearsed_from(self, system: SystemTable) -> Weights:
        """Weights that a system could start from; nothing is trained for them."""
        network = self.network_of(system)
        if self.recipe.from_scratch(system):
            return initial_weights(network)
        return load_pretrained(network, self.start.theta) if system.kind == "joint" else self.start.theta

    def members_of(self, system: SystemTable, split: Split) -> Members:
        """Train what a system needs, or find it."""
        made: list[Made | Lost] = []
        count = self.recipe.trainings_of(system)
        what = {"joint": "network", **dict.fromkeys(SAMPLED, "training")}.get(system.kind, "member")
        several = f" {what} {{}} of {count}" if count > 1 else ""

        def train_by(objective: Objective | None) -> Train:
            def train(theta: Any, task: Split, run: Run, /) -> Any:
                number = len(made) + 1
                where = f"trial {split.data_seed}: {system.name}{several.format(number)}"
                result: Made | Lost
                if isinstance(theta, Lost):
                    result = Lost(number, f"it starts from member {theta.number}, which diverged")
                else:
                    result = self.attempt(
                        where,
                        number,
                        system,
                        theta.theta if isinstance(theta, Made) else theta,
                        task,
                        run,
                        objective,
                    )
                if isinstance(result, Lost):
                    self.progress.note(f"{where} is left out: {result.message}")
                made.append(result)
                return result

            return train

        def later(earlier: Sequence[Made | Lost]) -> Train:
            if isinstance(earlier[0], Lost):
                return train_by(None)  # nothing is trained from it
            known = [each.theta for each in earlier if isinstance(each, Made)]
            return train_by(self.later_objective(system, split, known))

        def mean(vertices: Sequence[Made | Lost]) -> Any:
            lost = next((each for each in vertices if isinstance(each, Lost)), None)
            return lost or average(each.theta for each in vertices if isinstance(each, Made))

        found = trained(
            system.kind,
            train_by(None),
            self.starts_of(system, split),
            split,
            self.runs_of(system, split.data_seed),
            later if system.later is not None or system.kind == "simplex" else None,
            mean,
        )
        trainings = tuple(each for each in found if isinstance(each, Made))
        lost = tuple(each for each in found if isinstance(each, Lost))
        if system.kind in SAMPLED:
            if lost:
                return Members((), lost, trainings)
            drawn = self.drawn(system, split, trainings)
            wild = next((each for each in drawn if not _finite(each.theta)), None)
            if wild is not None:
                why = f"member {wild.number}, drawn around the first, has weights that are not finite; lower its scale"
                return Members((), (Lost(wild.number, why),), trainings)
            return Members((*trainings[:1], *drawn), lost, trainings)
        return Members(trainings, lost, trainings)

    def drawn(self, system: SystemTable, split: Split, trainings: Sequence[Made]) -> list[Made]:
        """Members 2, 3, ... of a system whose later members are drawn; kept as trainings are."""
        network, options = self.network_of(system), system.drawn_by()
        count = self.recipe.members_of(system) - 1
        made_of = {
            "kind": system.kind,
            "options": options.model_dump(mode="json"),
            "of": [fingerprint(each.theta) for each in trainings],
            "network": network.to_dict(),
            "split": split.digest,
            "seed": split.data_seed,
            "count": count,
            "code": code_version("comparison", "experiment/_judge.py", "merging", "weights.py"),
        }
        if system.kind == "laplace":
            made_of["laplace-torch"] = metadata.version("laplace-torch")
        self.progress.stage(f"trial {split.data_seed}: {system.name}: drawing members")

        def make(_: Path) -> tuple[dict[str, Weights], dict[str, Any]]:
            began = time.monotonic()
            model, refresh = network.build().to(self.device), self.judge(split).refresh
            thetas = draw_members(
                system.kind, options, model, [each.theta for each in trainings], split, count
            )
            weights: dict[str, Weights] = {
                f"member-{place}": refresh(theta) for place, theta in enumerate(thetas, start=2)
            }
            return weights, {"status": "finished", "seconds": round(time.monotonic() - began, 3)}

        weights, record = self.store.get_or_make("drawn", made_of, make)
        return [
            Made(m, StoredWeights(weights[f"member-{m}"], {**record, "checks": []}), network, None, "")
            for m in range(2, 2 + count)
        ]

    def attempt(
        self,
        where: str,
        number: int,
        system: SystemTable,
        theta: Weights,
        split: Split,
        run: Run,
        objective: Objective | None,
    ) -> Made | Lost:
        """One training, or why it gave no weights."""
        trainer = self.trainer(system, objective or self.objective_of(system, split, run))
        key = result_key(trainer, theta, split, run)
        there = key in self.known or self.store.record("weights", key) is not None
        self.progress.stage(f"{where} (found)" if there else where, 0 if there else run.steps)
        if key not in self.known:
            try:
                self.known[key] = cached(trainer, self.store)(theta, split, run)
            except Diverged as diverged:
                self.known[key] = str(diverged)
        if isinstance(self.known[key], str):
            return Lost(number, self.known[key])
        return Made(number, self.known[key], trainer.network, run, key)

    # What is planned ----------------------------------------------------------------------------------------

    def planned_steps(self, trials: Sequence[int]) -> int:
        """The updates of all different trainings, the probes included, as if nothing were in the store.

        A training is known by its equation, spelled out: what is shared has one.
        """
        steps: dict[str, int] = {}

        def spelled(system: SystemTable, criterion: str) -> Train:
            def train(theta: Any, task: Any, run: Run, /) -> Any:
                text = f"{criterion}({self.network_of(system)}, {theta}, {task}; {run})"
                steps[text] = run.steps
                return text

            return train

        probe, probed = self.recipe.probe_run(), set()
        for trial, system in itertools.product(trials, self.recipe.systems):
            starts = list(system.starts or ["start"])
            if self.recipe.from_scratch(system):
                starts = [f"random {i}" for i in range(self.recipe.trainings_of(system))]
            elif system.kind != "joint" and probe is not None:
                probed |= {(trial, start) for start in starts}
            risk = "independent" if system.kind == "joint" else "erm"
            plain = spelled(system, system.objective.words if system.objective else risk)

            def later(earlier: Sequence[Any], system: SystemTable = system, plain: Train = plain) -> Train:
                if system.later is None:
                    return spelled(system, f"simplex {system.sampling} of {earlier}")
                anchors = anchors_of(system.later.name, earlier)
                return spelled(system, f"{system.later.words} of {anchors}") if anchors else plain

            knows = system.later is not None or system.kind == "simplex"
            runs = self.runs_of(system, trial)
            trained(system.kind, plain, starts, trial, runs, later if knows else None, str)
        return sum(steps.values()) + (len(probed) * probe.steps if probe else 0)

    def judge(self, split: Split) -> Judge:
        """Predicts with one member on a split."""
        return Judge(
            self.start.network,
            split,
            self.store,
            self.device,
            channels_last=self.loop.channels_last,
            augment=self.recipe.base_run().augment,
        )


def _finite(theta: Weights) -> bool:
    return all(bool(theta[name].isfinite().all()) for name in theta if theta[name].is_floating_point())


def part_of(subset: Subset, images: int, *name: object) -> Subset:
    """Some samples of a subset, drawn by name without repetition and in their order; all if there are fewer."""
    if images >= len(subset):
        return subset
    chosen = stream(*name, subset.number).choice(len(subset), images, replace=False)
    return Subset(subset.domain, subset.number, subset.indices[np.sort(chosen)])
