"""The members of every family, written down by the page of equations itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from mirepoix.domainbed._nodes import Node, Pretrained, TaskName, Trained, WithHead, fused
from mirepoix.domainbed._rows import family_of
from mirepoix.domainbed._settings import GENERATED, Benchmark
from mirepoix.heads import linear_probe
from mirepoix.runs import Run
from mirepoix.strategies import (
    classifier_first,
    diverse_objectives,
    diwa,
    exponential_average,
    fusing,
    fusing_coefficients,
    moving_average,
    ratatouille,
    recycle,
    robust_recycle,
    sequence,
    swad,
)
from mirepoix.types import Train

__all__ = ["Members"]

Recycle: TypeAlias = Callable[..., list[Any]]


def _train(
    theta: Node,
    task: TaskName,
    run: Run,
    *,
    objective: str = "erm",
    options: tuple[tuple[str, Any], ...] = (),
) -> Trained:
    """``Train``, written down."""
    return Trained(theta, task, run, objective, options)


@dataclass(frozen=True)
class Members:
    """Members of every family for one benchmark, as expressions.

    Attributes:
        benchmark: The recipe.
    """

    benchmark: Benchmark
    _known: dict[tuple[str, TaskName], list[Node]] = field(default_factory=dict, compare=False, repr=False)

    def start(self, task: TaskName) -> Node:
        """theta_pt with the head that all runs on one task share: its linear probe, or a random head."""
        probe = self.benchmark.probe_on(task.dataset)
        theta = Pretrained(task.dataset)
        if probe is None:
            return theta
        shared = self.benchmark.shared_probe or self.benchmark.protocol == "reference"
        if shared and self.benchmark.table(task.dataset).dataset not in GENERATED:
            task = TaskName(task.dataset, task.target, 0, task.without)  # one probe for all data seeds
        node: Node = linear_probe(_train, theta, task, probe)
        return node

    def auxiliaries(self, dataset: str) -> list[str]:
        """The auxiliary tasks for a dataset: all but itself."""
        own = next(table for table in self.benchmark.datasets if table.label == dataset)
        return [auxiliary.label for auxiliary in self.benchmark.auxiliaries_for(own)]

    def recycled(self, name: str, h: int, head: Node, recycling: Recycle = recycle) -> Node:
        """phi_i on one auxiliary task for run h, with the head of the target."""
        task, run = TaskName(name), self.auxiliary_run(name, h)
        (phi,) = recycling(_train, self.start(task), [task], [run])
        return WithHead(phi, head)

    def starts(self, dataset: str, head: Node, recycling: Recycle = recycle) -> list[Node]:
        """Where run h begins: theta_pt or an auxiliary task in turn, and in turn one of its fine-tunings.

        With A auxiliary tasks, run h begins at number ``h mod (A + 1)``, number 0 being theta_pt, and with fine-tuning
        ``h mod R`` of the R on that task.
        """
        names = self.auxiliaries(dataset)
        return [
            self.recycled(names[k - 1], h, head, recycling) if k else head
            for h, k in ((h, h % (len(names) + 1)) for h in range(self.benchmark.runs))
        ]

    def chains(self, dataset: str, head: Node) -> list[Node]:
        """Where run h of sequential inter-training begins: after two auxiliary tasks, one after the other."""
        pairs = list(itertools.permutations(self.auxiliaries(dataset), 2))
        chosen: list[Node] = []
        for h in range(self.benchmark.runs):
            first, second = (TaskName(name) for name in pairs[h % len(pairs)])
            runs = [self.auxiliary_run(stage.dataset, h) for stage in (first, second)]
            chain = sequence(_train, self.start(first), [first, second], runs, self.attach)
            chosen.append(WithHead(chain, head))
        return chosen

    def attach(self, theta: Node, task: TaskName) -> Node:
        """``theta`` with the head that runs on a task begin with; where it is that start already, as it is."""
        start = self.start(task)
        return theta if theta == start else WithHead(theta, start)

    def auxiliary_run(self, name: str, h: int) -> Run:
        """The configuration of the auxiliary fine-tuning that run h begins at; what counts is where it ends."""
        runs = self.benchmark.runs_on(name)
        return runs[h % len(runs)].with_(collect="last")

    def of(self, family: str, task: TaskName) -> list[Node]:
        """Member h of a family for one split, for every run h."""
        if (family, task) not in self._known:
            self._known[family, task] = self._of(family, task)
        return self._known[family, task]

    def _of(self, family: str, task: TaskName) -> list[Node]:
        runs = self.benchmark.runs_on(task.dataset, task.data_seed)
        theta = self.start(task)
        recycled = classifier_first(_train, theta, steps=self.benchmark.freeze_on(task.dataset))
        match family:
            case "fine_tuning":
                members = diwa(_train, theta, task, runs, combine=list)
            case "moving_average":
                members = [moving_average(_train, theta, task, run) for run in runs]
            case "ema":
                members = [exponential_average(_train, theta, task, run) for run in runs]
            case "swad":
                members = [swad(_train, theta, task, run) for run in runs]
            case "swad_released":
                members = [_train(theta, task, run.with_(collect="swad_released")) for run in runs]
            case "sam":
                members = diverse_objectives(self.by(["sam"], task), theta, task, runs, combine=list)
            case "sam_moving_average":
                trains = self.by(["sam"], task)
                members = [
                    moving_average(sam, theta, task, run) for sam, run in zip(trains, runs, strict=True)
                ]
            case "inter_training":
                members = ratatouille(recycled, self.starts(task.dataset, theta), task, runs, combine=list)
            case "robust":
                starts = self.starts(task.dataset, theta, robust_recycle)
                members = ratatouille(recycled, starts, task, runs, combine=list)
            case "sequential":
                members = ratatouille(recycled, self.chains(task.dataset, theta), task, runs, combine=list)
            case "fusing":
                members = self.fused(recycled, theta, task, runs)
            case "objectives":
                trains = self.by(self.benchmark.objectives, task)
                members = diverse_objectives(trains, theta, task, runs, combine=list)
            case _:
                name = family_of(family).objective
                assert name is not None
                members = diverse_objectives(self.by([name], task), theta, task, runs, combine=list)
        found: list[Node] = members
        return found

    def by(self, objectives: Sequence[str], task: TaskName) -> list[Train]:
        """``Train`` of every run h: by the objectives in turn, with what a random search draws of them."""
        turns = itertools.islice(itertools.cycle(objectives), self.benchmark.runs)
        return [
            partial(_train, objective=name, options=self.benchmark.drawn_options(name, h, task))
            for h, name in enumerate(turns)
        ]

    def fused(self, train: Train, theta: Node, task: TaskName, runs: Sequence[Run]) -> list[Node]:
        """Members of fusing: each begins at its own mixture of theta_pt and one fine-tuning per auxiliary task."""
        names = self.auxiliaries(task.dataset)
        found: list[Node] = []
        for h, run in enumerate(runs):
            starts = [theta, *(self.recycled(name, h, theta) for name in names)]
            shares = fusing_coefficients(len(starts), run.seed, kappa_max=self.benchmark.fusing_range)
            found += fusing(train, starts, task, [run], [shares], combine=list, fuse=fused)
        return found
