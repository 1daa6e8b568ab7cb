"""From trained members to the cells of the table: combine, choose by one method, and measure on the target."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mirepoix.data import Subset
from mirepoix.domainbed._cells import Cell
from mirepoix.domainbed._members import Members
from mirepoix.domainbed._nodes import TaskName, Trained
from mirepoix.domainbed._rows import Row, family_of
from mirepoix.domainbed._selection import (
    LeftOut,
    Method,
    Missing,
    Record,
    Selected,
    by_leaving_one_out,
    by_training_domains,
    left_out_part,
    oracle,
    subsets_for,
)
from mirepoix.domainbed._workbench import NotMade, Workbench
from mirepoix.ensembles import average_logits
from mirepoix.metrics import accuracy
from mirepoix.selection import greedy
from mirepoix.strategies import wise_sweep
from mirepoix.types import Weights
from mirepoix.weights import average, interpolate

__all__ = ["Measured", "cells_of_seeds", "cells_of_split", "pair"]


@dataclass(frozen=True)
class Member:
    """One member that is there.

    Attributes:
        run: Its number.
        node: How it is made.
        theta: Its weights, ready to predict.
        record: Of its training.
        source: Place of that record in the store.
    """

    run: int
    node: Trained
    theta: Weights
    record: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class Gathered:
    """The members of one family on one split.

    Attributes:
        members: Those that are there.
        diverged: Numbers of the runs that diverged, or whose start did.
        missing: Why the family is not complete, or None.
    """

    members: tuple[Member, ...]
    diverged: tuple[int, ...]
    missing: str | None


def pair(dataset: str, one: str, other: str, data_seed: int) -> TaskName:
    """The split that leaves two domains out; it is the same whichever of them is named first."""
    first, second = sorted((one, other))
    return TaskName(dataset, first, data_seed, (second,))


class Measured:
    """Accuracies on one split, with the reading of labels left to the method that chooses."""

    def __init__(self, bench: Workbench, name: TaskName) -> None:
        self.bench, self.name = bench, name
        self.members_of = Members(bench.benchmark)
        self.gathered: dict[Any, Gathered] = {}

    @cached_property
    def judge(self) -> Any:
        """Predicts on the split."""
        return self.bench.judge(self.name)

    @cached_property
    def split(self) -> Any:
        """The split."""
        return self.bench.split(self.name)

    # Members ------------------------------------------------------------------------------------------------

    def gather(self, family: str, task: TaskName | None = None, *, last: bool = False) -> Gathered:
        """The members of a family that are there.

        Args:
            family: Which.
            task: What they were trained on; this split unless given.
            last: Take the last weights of each run in place of the best ones.
        """
        key = (family, task, last)
        if key not in self.gathered:
            self.gathered[key] = self._gather(family, task, last)
        return self.gathered[key]

    def _gather(self, family: str, task: TaskName | None, last: bool) -> Gathered:
        members: list[Member] = []
        diverged: list[int] = []
        absent: list[int] = []
        reasons: list[str] = []
        nodes = self.members_of.of(family, task or self.name)
        for run, node in enumerate(nodes):
            assert isinstance(node, Trained)
            if last and node.run.collect == "best":
                node = replace(node, run=node.run.with_(collect="last"))
            try:
                members.append(self.member(run, node))
            except NotMade as error:
                (diverged if error.diverged else absent).append(run)
                reasons += [error.reason] if error.reason else []
        missing = None
        if reasons:
            missing = f"{len(reasons)} of {len(nodes)} runs cannot be trained: {reasons[0]}"
        elif absent:
            missing = f"{len(absent)} of {len(nodes)} runs are not trained yet"
        elif not members:
            missing = f"all {len(nodes)} runs diverged"
        return Gathered(tuple(members), tuple(diverged), missing)

    def member(self, run: int, node: Trained) -> Member:
        """One member, its batch-norm statistics made new where averaging along the run needs it."""
        stored = self.bench.weights(node)
        theta: Weights = stored
        if node.run.collect not in ("best", "last"):
            theta = self.judge.refresh(stored)
        record: Mapping[str, Any] = stored.record  # type: ignore[attr-defined]
        return Member(run, node, theta, record, f"weights/{stored.path.parent.name}")  # type: ignore[attr-defined]

    # Accuracies ---------------------------------------------------------------------------------------------

    def validation(self, logits: Tensor) -> dict[str, float]:
        """Accuracy on the validation part of each source domain."""
        labels, domains = self.judge.labels("validation"), self.judge.domains("validation")
        return {
            subset.name: float(accuracy(logits[domains == subset.number], labels[domains == subset.number]))
            for subset in self.split.validation
        }

    def on_target(self, logits: Tensor) -> LeftOut:
        """Accuracy on the target: its two parts, and all of it."""
        labels = self.judge.labels("test")

        def of(part: Subset) -> float:
            return float(accuracy(logits[part.indices], labels[part.indices]))

        return LeftOut(
            train=of(left_out_part(self.split, self.split.target, "train")),
            validation=of(left_out_part(self.split, self.split.target, "validation")),
            whole=float(accuracy(logits, labels)),
        )

    def record(self, member: Member) -> Record:
        """What was measured of the weights of one member."""
        validation = self.judge.logits(member.theta, "validation")
        test = self.judge.logits(member.theta, "test")
        best = member.node.run.collect == "best"
        step = member.record["best_step"] if best else member.node.run.steps - 1
        return Record(
            run=member.run,
            step=step,
            last=step == member.node.run.steps - 1,
            validation=self.validation(validation),
            left_out={self.split.target: self.on_target(test)},
        )

    def records_along(self, member: Member) -> list[Record]:
        """What was measured at every check of a run, as the published benchmark does."""
        checks = member.record["checks"]
        return [
            Record(
                run=member.run,
                step=check["step"],
                last=check is checks[-1],
                validation=check["accuracies"],
                left_out={name: LeftOut(**parts) for name, parts in check["left_out"].items()},
            )
            for check in checks
        ]

    def score_for(self, method: Method) -> Callable[[Weights], float]:
        """The score that a greedy choice under ``method`` may use, on pooled images."""
        if method == "training-domain":
            subsets_for(self.split, "validation", method)
            score: Callable[[Weights], float] = self.judge.score
            return score
        (part,) = subsets_for(self.split, "target_validation", method)
        labels = self.judge.labels("test")[part.indices]
        return lambda theta: float(accuracy(self.judge.logits(theta, "test")[part.indices], labels))


def cells_of_split(
    bench: Workbench, dataset: str, target: str, data_seed: int, rows: Sequence[Row]
) -> list[Cell]:
    """All cells of one target and data seed; what is not trained yet is a cell that says so.

    Args:
        bench: The benchmark with its store.
        dataset: Label of the dataset.
        target: The left-out domain.
        data_seed: Of the split.
        rows: Of the table; those over all data seeds are left to `cells_of_seeds`.
    """
    measured = Measured(bench, TaskName(dataset, target, data_seed))
    cells = []
    for row, method in itertools.product(rows, bench.benchmark.selection):
        if row.combine != "dagger":
            cells.append(_Cells(measured, row, method).cell())
    return cells


def cells_of_seeds(bench: Workbench, dataset: str, target: str, rows: Sequence[Row]) -> list[Cell]:
    """The cells of rows that average the members of all data seeds of one target."""
    seeds = bench.table(dataset).seeds
    splits = [Measured(bench, TaskName(dataset, target, seed)) for seed in seeds]
    cells = []
    for row, method in itertools.product(rows, bench.benchmark.selection):
        if row.combine != "dagger":
            continue
        empty = Cell(
            dataset=dataset,
            row=row.key,
            label=row.label,
            selection=method,
            target=target,
            data_seed=None,
            missing="-",
        )
        gathered = [split.gather(row.family) for split in splits]
        missing = [
            f"data seed {seed}: {found.missing}"
            for seed, found in zip(seeds, gathered, strict=True)
            if found.missing
        ]
        if missing:
            cells.append(replace(empty, missing="; ".join(missing)))
            continue
        members = [member for found in gathered for member in found.members]
        diverged = {
            str(seed): found.diverged for seed, found in zip(seeds, gathered, strict=True) if found.diverged
        }
        choice = {"diverged": diverged} if diverged else {}
        theta = splits[0].judge.refresh(average(member.theta for member in members))
        numbers = [split.on_target(split.judge.logits(theta, "test")) for split in splits]
        cells.append(
            replace(
                empty,
                missing=None,
                whole=_mean([number.whole for number in numbers]),
                part=_mean([number.train for number in numbers]),
                members=len(members),
                sources=tuple(member.source for member in members),
                choice={**choice, "data_seeds": list(seeds), "selects": "nothing"},
            )
        )
    return cells


class _Cells:
    """One cell under way."""

    def __init__(self, measured: Measured, row: Row, method: Method) -> None:
        self.measured, self.row, self.method = measured, row, method
        self.benchmark = measured.bench.benchmark

    def cell(self) -> Cell:
        """The number, or why there is none."""
        name = self.measured.name
        assert name.target is not None
        self.empty = Cell(
            dataset=name.dataset,
            row=self.row.key,
            label=self.row.label,
            selection=self.method,
            target=name.target,
            data_seed=name.data_seed,
            missing="-",
        )
        gathered = self.measured.gather(self.row.family)
        self.diverged = set(gathered.diverged)  # and those of pairs, where they are looked at
        if gathered.missing:
            return replace(self.empty, missing=gathered.missing)
        choice = {"diverged": list(gathered.diverged)} if gathered.diverged else {}
        match self.row.combine:
            case "mean":
                return self.mean(gathered, choice)
            case "best":
                return self.best(gathered, choice)
            case "wise":
                return self.wise(gathered, choice)
            case "average":
                theta = average(member.theta for member in gathered.members)
                return self.averaged(gathered.members, theta, {**choice, "selects": "nothing"})
            case "greedy":
                return self.greedy(gathered, choice)
            case _:
                return self.ensemble(gathered, choice)

    def number(self, made_of: Sequence[Member], **values: Any) -> Cell:
        """A cell with a number."""
        return replace(self.empty, missing=None, sources=tuple(member.source for member in made_of), **values)

    def averaged(self, members: Sequence[Member], theta: Weights, choice: Mapping[str, Any]) -> Cell:
        """The cell of one model made of members."""
        judge = self.measured.judge
        theta = judge.refresh(theta)
        target = self.measured.on_target(judge.logits(theta, "test"))
        return self.number(
            members,
            whole=target.whole,
            part=target.train,
            id_accuracy=judge.id_accuracy(judge.logits(theta, "validation")),
            members=len(members),
            choice=choice,
        )

    def mean(self, gathered: Gathered, choice: Mapping[str, Any]) -> Cell:
        """The mean accuracy of the members: what one run gives on average, chosen by nothing."""
        records = [self.measured.record(member) for member in gathered.members]
        targets = [record.left_out[self.empty.target] for record in records]
        return self.number(
            gathered.members,
            whole=_mean([target.whole for target in targets]),
            part=_mean([target.train for target in targets]),
            id_accuracy=_mean([_mean(list(record.validation.values())) for record in records]),
            members=len(records),
            choice={**choice, "selects": "nothing"},
        )

    def ensemble(self, gathered: Gathered, choice: Mapping[str, Any]) -> Cell:
        """The mean of the members' logits."""
        judge, members = self.measured.judge, gathered.members
        test = average_logits(_stack([judge.logits(member.theta, "test") for member in members]))
        validation = average_logits(_stack([judge.logits(member.theta, "validation") for member in members]))
        target = self.measured.on_target(test)
        return self.number(
            members,
            whole=target.whole,
            part=target.train,
            id_accuracy=judge.id_accuracy(validation),
            members=len(members),
            inference_cost=len(members),
            choice={**choice, "selects": "nothing"},
        )

    # One of the members -------------------------------------------------------------------------------------

    def along(self) -> bool:
        """Whether every step of a run is a candidate, as in the published benchmark, or one of its results."""
        return self.benchmark.protocol == "reference" and family_of(self.row.family).collect == "best"

    def records(self, members: Sequence[Member]) -> list[Record]:
        """The candidates of the choice."""
        if self.along():
            return [record for member in members for record in self.measured.records_along(member)]
        return [self.measured.record(member) for member in members]

    def select(self, gathered: Gathered) -> tuple[Selected | Missing, Sequence[Member]]:
        """Choose one run, and a step of it, by the method."""
        target = self.empty.target
        if self.method == "training-domain":
            return by_training_domains(self.records(gathered.members), target), gathered.members
        if self.method == "oracle":  # no early stopping by the target
            last = self.measured.gather(self.row.family, last=True)
            if self.along():
                return oracle(self.records(last.members), target), last.members
            records = [replace(self.measured.record(member), last=True) for member in last.members]
            return oracle(records, target), last.members
        pairs: dict[str, list[Record]] = {}
        numbers = {member.run for member in gathered.members}
        ranked = {member.run: rank for rank, member in enumerate(gathered.members)}
        for subset in self.measured.split.train:
            task = pair(self.empty.dataset, target, subset.name, self.measured.name.data_seed)
            there = Measured(
                self.measured.bench,
                TaskName(task.dataset, subset.name, task.data_seed, (target,)),
            )
            found = there.gather(self.row.family, task)
            if found.missing:
                return Missing(f"leaving out {target!r} and {subset.name!r}: {found.missing}"), ()
            numbers &= {member.run for member in found.members}
            self.diverged |= set(found.diverged)
            if self.along():
                pairs[subset.name] = [r for member in found.members for r in there.records_along(member)]
            else:  # one result per run: its number stands for its step
                pairs[subset.name] = [replace(there.record(member), step=0) for member in found.members]
        records = [record for record in self.records(gathered.members) if record.run in numbers]
        if self.along():
            return by_leaving_one_out(records, pairs, target), gathered.members
        chosen = by_leaving_one_out([replace(record, step=0) for record in records], pairs, target)
        if isinstance(chosen, Selected):
            member = gathered.members[ranked[chosen.record.run]]
            chosen = replace(chosen, record=self.measured.record(member))
        return chosen, gathered.members

    def best(self, gathered: Gathered, choice: Mapping[str, Any]) -> Cell:
        """The cell of the chosen run."""
        chosen, candidates = self.select(gathered)
        if isinstance(chosen, Missing):
            return replace(self.empty, missing=chosen.reason)
        record = chosen.record
        target = record.left_out[self.empty.target]
        if self.diverged:
            choice = {**choice, "diverged": sorted(self.diverged)}
        member = next(member for member in candidates if member.run == record.run)
        whole = target.whole
        steps = {"best": member.record["best_step"], "last": member.node.run.steps - 1}
        if whole is None and record.step == steps.get(member.node.run.collect):
            whole = self.measured.on_target(self.measured.judge.logits(member.theta, "test")).whole
        return self.number(
            [member],
            whole=whole,
            part=target.train,
            id_accuracy=_mean(list(record.validation.values())),
            choice={**choice, "run": record.run, "step": record.step, "score": chosen.score},
        )

    def wise(self, gathered: Gathered, choice: Mapping[str, Any]) -> Cell:
        """The cell of the chosen run, interpolated with its start."""
        if self.method == "leave-one-out":
            return replace(self.empty, missing="WiSE has no choice of its coefficient by leaving one out")
        chosen, candidates = self.select(gathered)
        if isinstance(chosen, Missing):
            return replace(self.empty, missing=chosen.reason)
        member = next(member for member in candidates if member.run == chosen.record.run)
        judge, points = self.measured.judge, self.benchmark.wise_points
        score = self.measured.score_for(self.method)
        swept = wise_sweep(
            lambda *_: member.theta,
            self.measured.bench.weights(member.node.theta),
            self.measured.split,
            member.node.run,
            lambda theta: score(judge.refresh(theta)),
            [i / (points - 1) for i in range(points)],
            interpolate,
        )
        return self.averaged(
            [member],
            swept.theta,
            {
                **choice,
                "run": member.run,
                "coefficient": swept.coefficient,
                "scores": list(swept.scores.values()),
            },
        )

    def greedy(self, gathered: Gathered, choice: Mapping[str, Any]) -> Cell:
        """The greedy soup, ranked and accepted by what the method may see."""
        if self.method == "leave-one-out":
            return replace(self.empty, missing="a greedy soup has no validation set under leave-one-out")
        judge, members = self.measured.judge, gathered.members
        score = self.measured.score_for(self.method)
        if self.method == "training-domain" and self.along():  # as measured in training, on augmented images
            ranks = [member.record["id_accuracy"] for member in members]
        elif self.method == "training-domain":
            ranks = [judge.id_accuracy(judge.logits(member.theta, "validation")) for member in members]
        else:
            ranks = [score(member.theta) for member in members]
        soup = greedy(
            [member.theta for member in members],
            lambda theta: score(judge.refresh(theta)),
            strict=self.benchmark.greedy_strict,
            member_scores=ranks,
        )
        kept = [members[i] for i in soup.kept]
        trace = {
            "order": [members[i].run for i in soup.order],
            "kept": [member.run for member in kept],
            "scores": list(soup.scores),
        }
        return self.averaged(kept, soup.theta, {**choice, **trace})


def _stack(logits: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(logits))


def _mean(values: Sequence[float | None]) -> float:
    numbers = [value for value in values if value is not None]
    assert len(numbers) == len(values)
    return sum(numbers) / len(numbers)
