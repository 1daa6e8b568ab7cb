"""What a table needs: every distinct training once, what is there already, and a forecast of time and disk."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mirepoix.domainbed._measure import pair
from mirepoix.domainbed._members import Members
from mirepoix.domainbed._nodes import Pretrained, TaskName, Trained, WithHead, trainings
from mirepoix.domainbed._rows import FAMILIES, family_of
from mirepoix.domainbed._workbench import NotMade, Status, Workbench, begins_when_drawn
from mirepoix.objectives._named import BEGIN_OPTIONS, check_named
from mirepoix.types import InputError

__all__ = ["Forecast", "Plan", "Planned", "SplitPlan", "forecast", "make_plan", "rehearse"]

CALIBRATION = (3, 9)
"""Steps of the two short trainings that tell the time of a step from that of a check."""


@dataclass(frozen=True)
class Planned:
    """One distinct training.

    Attributes:
        node: The training.
        label: For people.
        status: Whether it is there.
        needs: Indices, in the plan, of the trainings behind its start.
        work: How long it takes, in steps of the base configuration.
    """

    node: Trained
    label: str
    status: Status
    needs: tuple[int, ...]
    work: float


@dataclass(frozen=True)
class SplitPlan:
    """One target and data seed, with the trainings its cells are computed from."""

    dataset: str
    target: str
    data_seed: int
    needs: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Everything that a table needs.

    Attributes:
        trainings: Distinct, each after those that it starts from.
        splits: In the order of the table.
        asked: Members that the rows of the table ask for, each row on its own.
        late: From the name of a criterion to how many of its trainings have options that a random search drew, and how
            many of these drew that it begins after the last step.
    """

    trainings: tuple[Planned, ...]
    splits: tuple[SplitPlan, ...]
    asked: int
    late: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def waiting(self) -> list[Planned]:
        """Those that are not there yet."""
        return [planned for planned in self.trainings if planned.status in ("missing", "waiting")]

    def to_dict(self) -> dict[str, Any]:
        """Counts, and each training by its label."""
        return {
            "trainings": len(self.trainings),
            "stored": sum(planned.status == "stored" for planned in self.trainings),
            "diverged": sum(planned.status == "diverged" for planned in self.trainings),
            "to_train": len(self.waiting()),
            "asked_by_rows": self.asked,
            "splits": len(self.splits),
            "begin_too_late": {name: {"drawn": n, "late": k} for name, (n, k) in self.late.items()},
            "list": [{"training": p.label, "status": p.status} for p in self.trainings],
        }


def make_plan(bench: Workbench) -> Plan:
    """Write down what the rows of the recipe need.

    Raises:
        InputError: For datasets, domains or weights that are not there.
    """
    with bench.planning():
        return _make_plan(bench)


def _make_plan(bench: Workbench) -> Plan:
    benchmark = bench.benchmark
    members = Members(benchmark)
    found: dict[Trained, str] = {}
    splits, asked = [], 0
    for table in benchmark.datasets:
        needed: dict[TaskName, list[Trained]] = {}
        for target, seed in itertools.product(bench.targets(table.label), table.seeds):
            task = TaskName(table.label, target, seed)
            needed[task] = []
            for node, label in _asked(bench, members, task):
                asked += 1
                for training in trainings(node):
                    if training not in found:
                        found[training] = _label(training, label, members)
                    needed[task].append(training)
        splits += list(needed.items())
    _check_leakage(bench)
    _check_channels(bench)
    _tell_apart(found)
    order = {node: i for i, node in enumerate(found)}
    planned = tuple(
        Planned(
            node,
            label,
            bench.status(node),
            tuple(dict.fromkeys(order[need] for need in trainings(node.theta))),
            _work(node),
        )
        for node, label in found.items()
    )
    return Plan(
        planned,
        tuple(
            SplitPlan(
                task.dataset, str(task.target), task.data_seed, tuple(dict.fromkeys(order[n] for n in nodes))
            )
            for task, nodes in splits
        ),
        asked,
        _late(bench, planned),
    )


def _late(bench: Workbench, trainings: Iterable[Planned]) -> dict[str, tuple[int, int]]:
    """Of the trainings by each criterion whose options were drawn, how many there are, and begin after their end."""
    found: dict[str, tuple[int, int]] = {}
    for node in (planned.node for planned in trainings):
        if not {option for option, _ in node.options}.intersection(BEGIN_OPTIONS.get(node.objective, ())):
            continue
        drawn, late = found.get(node.objective, (0, 0))
        options = {**bench.benchmark.options_of(node.objective), **dict(node.options)}
        begins = check_named(node.objective, options).begins()
        found[node.objective] = (drawn + 1, late + (begins >= node.run.steps))
    return {name: counts for name, counts in found.items() if counts[1]}


def rehearse(bench: Workbench, plan: Plan) -> None:
    """Make one update by every criterion of a plan, and throw it away: once for each number of source domains.

    Raises:
        InputError: Naming a training whose criterion cannot be used with this network, these domains or its run.
    """
    smallest: dict[tuple[str, str, int], Planned] = {}
    for planned in plan.waiting():
        node = planned.node
        if node.objective == "erm":
            continue
        try:
            bench.objective(node)
            place = node.task.dataset, node.objective, len(bench.split(node.task).train)
            if place not in smallest or node.run.batch_size < smallest[place].node.run.batch_size:
                smallest[place] = planned
        except NotMade as error:
            raise InputError(f"{planned.label}: {error.reason}") from None
    for planned in smallest.values():
        try:
            bench.rehearse(planned.node)
        except InputError as error:
            raise InputError(f"{planned.label}: {str(error).removeprefix('objective: ')}") from None


def _asked(bench: Workbench, members: Members, task: TaskName) -> Iterator[tuple[Trained, str]]:
    """Every member that every row asks for on one split, with a name for it."""
    benchmark = bench.benchmark
    for row in benchmark.rows():
        tasks = [task]
        if "leave-one-out" in benchmark.selection and row.combine == "best":
            sources = [n for n in bench.task(task.dataset, task.data_seed).domain_names if n != task.target]
            tasks += [pair(task.dataset, str(task.target), source, task.data_seed) for source in sources]
        for each in tasks:
            for run, node in enumerate(members.of(row.family, each)):
                assert isinstance(node, Trained)
                yield node, f"{family_of(row.family).label}, run {run}"


def _label(training: Trained, member: str, members: Members) -> str:
    if isinstance(training.theta, Pretrained) and training.run.classifier_steps == training.run.steps:
        kind = "linear probe"
    elif training.task.target is None:
        runs = members.benchmark.runs_on(training.task.dataset)
        same = [i for i, run in enumerate(runs) if run.with_(collect="best") == training.run]
        kind = f"auxiliary run {same[0]}" if same else "auxiliary run"
        before = training.theta.theta if isinstance(training.theta, WithHead) else None
        if isinstance(before, Trained):
            kind += f" after {before.task.dataset}"
    elif training.objective == "erm" and training.theta == members.start(training.task):
        kind = member.replace(member.split(", run")[0], FAMILIES["fine_tuning"].label)
    else:
        kind = member
    return f"{training.task}: {kind}"


def _tell_apart(labels: dict[Trained, str]) -> None:
    """Give every training a label of its own."""
    seen: dict[str, int] = {}
    for node, label in labels.items():
        seen[label] = seen.get(label, 0) + 1
        if seen[label] > 1:
            labels[node] = f"{label} ({seen[label]})"


PASSES = {"sam": 2, "adrmx": 2, "mldg": 2, "iga": 3, "sagnet": 3, "transfer": 3}
"""How many forward and backward passes of the joint batch an update of a criterion costs, where that is not one."""


def _work(node: Trained) -> float:
    """Steps, with those of the classifier alone at a third, times what an update of the criterion costs."""
    run = node.run
    steps = run.steps - run.classifier_steps * 2 / 3
    return steps * PASSES.get(node.objective, 1)


def _check_leakage(bench: Workbench) -> None:
    """An auxiliary task that holds the images of a target teaches what is tested."""
    for table in bench.benchmark.datasets:
        own = bench.task(table.label, table.seeds[0])
        for name in Members(bench.benchmark).auxiliaries(table.label):
            if bench.task(name).digest == own.digest:
                raise InputError(
                    f"auxiliaries: {name!r} is the same images as the dataset {table.label!r}, so its runs would have "
                    "seen the target. Leave it out, or give it the dataset's name and folder."
                )


def _check_channels(bench: Workbench) -> None:
    """All tasks share one network."""
    first, *others = bench.benchmark.tables()
    if not bench.benchmark.auxiliaries:
        return
    expected = bench.task(first.label, first.seeds[0]).domains[0].images.shape[0]
    for table in others:
        channels = bench.task(table.label, table.seeds[0]).domains[0].images.shape[0]
        if channels != expected:
            raise InputError(
                f"all tasks share one network, but images of {first.label} have {expected} channels and those of "
                f"{table.label} {channels}; the MNIST variants take channels = 3."
            )


@dataclass(frozen=True)
class Forecast:
    """What the trainings that are left will take.

    Attributes:
        seconds: Of one worker after another; divide by the workers.
        bytes: On disk.
        origin: What the time was taken from.
    """

    seconds: float
    bytes: int
    origin: str


def forecast(bench: Workbench, plan: Plan, note: Callable[[str], None] = lambda text: None) -> Forecast:
    """Time from trainings of this plan that are stored, or else from a few steps made now; disk from the weights."""
    waiting = plan.waiting()
    if not waiting:
        return Forecast(0.0, 0, "nothing is left")
    first = waiting[0]
    theta = bench.start(first.node.task.dataset).theta
    size = sum(int(value.numel() * value.element_size()) for value in theta.values())
    kept = bench.benchmark.collected()
    disk = sum(
        size * (len(kept) + ("snapshots" in kept) * (_checks(planned.node) - 1)) for planned in waiting
    )
    rates: dict[str, list[float]] = {}  # by the images trained on, seconds for a step of work
    for planned in plan.trainings:
        if planned.status == "stored":
            record = bench.store.record("weights", bench.key(planned.node))
            if record and record.get("seconds"):
                rates.setdefault(planned.node.task.dataset, []).append(record["seconds"] / planned.work)
    timed = {label: statistics.median(values) for label, values in rates.items()}
    seconds = 0.0
    for label in dict.fromkeys(planned.node.task.dataset for planned in waiting):
        own = [planned for planned in waiting if planned.node.task.dataset == label]
        if label in timed:
            seconds += timed[label] * sum(planned.work for planned in own)
            continue
        note(f"timing a few steps on {label} for the forecast")
        per_step, per_check = _calibrate(bench, own[0].node)
        seconds += sum(p.work * per_step + _checks(p.node) * per_check for p in own)
    made_now = len(dict.fromkeys(planned.node.task.dataset for planned in waiting)) > len(
        timed.keys() & {planned.node.task.dataset for planned in waiting}
    )
    origin = "a few steps made now" if made_now else "the trainings stored"
    return Forecast(seconds, disk, origin)


def _checks(node: Trained) -> int:
    """How often a training is evaluated: after step 0, every so many steps, and after the last."""
    last = node.run.steps - 1
    return 1 + last // node.run.check_every + (last % node.run.check_every > 0)


def _calibrate(bench: Workbench, node: Trained) -> tuple[float, float]:
    """Seconds of a step and of a check, with as many threads as a worker has."""
    torch.set_num_threads(bench.threads)
    trainer = bench.trainer(node)
    theta, split = bench.start(node.task.dataset).theta, bench.split(node.task)
    seconds = []
    run = node.run.with_(classifier_steps=0, learning_rate=1e-6)  # so that nothing diverges
    with begins_when_drawn():
        trainer.fit(theta, split, run.with_(steps=1))  # the first step is slow
        for steps in CALIBRATION:
            began = time.monotonic()
            trainer.fit(theta, split, run.with_(steps=steps, check_every=10**9))
            seconds.append(time.monotonic() - began)
    per_step = max((seconds[1] - seconds[0]) / (CALIBRATION[1] - CALIBRATION[0]), 0.0)
    checks = max(
        (seconds[0] - CALIBRATION[0] * per_step) / 2, 0.0
    )  # one after the first step, one at the end
    return per_step, checks
