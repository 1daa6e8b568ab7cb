"""Expressions become weights: what a worker needs to carry out any part of a plan.

A workbench is made of a recipe and two folders, so it can be built again in another process or on another
machine. It holds nothing that is not in the store: whatever it makes is found there by the next one.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from mirepoix import __version__
from mirepoix.checkpoints import fingerprint, write_atomically
from mirepoix.data import Split, Task
from mirepoix.domainbed._nodes import Interpolated, Node, Pretrained, TaskName, Trained, WithHead
from mirepoix.domainbed._settings import GENERATED, Benchmark, Named
from mirepoix.experiment import DIGITS_SIZE, Judge, Start, build_start, build_task, objective_for
from mirepoix.heads import with_head
from mirepoix.objectives import Objective
from mirepoix.store import Store, StoredWeights, cached, key_of, result_key
from mirepoix.training import Loop, Trainer, choose_device
from mirepoix.types import Diverged, InputError, Weights
from mirepoix.weights import interpolate

__all__ = ["NotMade", "Status", "Workbench", "begins_when_drawn"]


@contextmanager
def begins_when_drawn() -> Iterator[None]:
    """No warning of an objective that begins after the last step: the plan counts those that were drawn so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\w+ begins at update")
        yield


Status = Literal["stored", "diverged", "missing", "waiting"]
"""Of a training: kept, kept as diverged, ready to be made, or its start is not there yet."""


class NotMade(LookupError):
    """Weights that no store has yet.

    Attributes:
        training: What is to be made first.
        diverged: Whether it was made, and diverged.
        reason: Why it cannot be made, where its objective says so.
    """

    def __init__(self, training: Trained, diverged: bool = False, reason: str | None = None) -> None:
        super().__init__(f"{training.task}: {reason or ('diverged' if diverged else 'not trained yet')}")
        self.training = training
        self.diverged = diverged
        self.reason = reason

    def __reduce__(self) -> Any:  # an error is made again from its text alone, otherwise
        return NotMade, (self.training, self.diverged, self.reason)


@dataclasses.dataclass(frozen=True)
class Workbench:
    """One benchmark with its folders.

    Attributes:
        benchmark: The recipe.
        recipe_path: Its file; weights are looked for beside it.
        store_place: Folder or address of the finished trainings.
        cache: Folder on this machine for decoded images and for copies from a store elsewhere.
        data: What ``--data`` named.
    """

    benchmark: Benchmark
    recipe_path: Path
    store_place: str
    cache: Path
    data: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_known", {})
        object.__setattr__(self, "_statuses", None)

    def __reduce__(self) -> Any:  # what was read stays in this process
        return Workbench, (self.benchmark, self.recipe_path, self.store_place, self.cache, self.data)

    def _once(self, key: Any, make: Any) -> Any:
        known: dict[Any, Any] = self._known  # type: ignore[attr-defined]
        if key not in known:
            known[key] = make()
        return known[key]

    @cached_property
    def store(self) -> Any:
        """The finished trainings."""
        if "://" not in self.store_place:
            return Store(Path(self.store_place))
        from mirepoix.remote_store import open_store

        return open_store(self.store_place, cache=self.cache / "results")

    @cached_property
    def loop(self) -> Loop:
        """Options of the training loop."""
        return Loop(**self.benchmark.loop.model_dump(exclude={"threads"}))

    @property
    def threads(self) -> int:
        """Threads of one training: what the recipe says, or one."""
        return self.benchmark.loop.threads or 1

    @cached_property
    def device(self) -> torch.device:
        """Where trainings run."""
        return choose_device(self.benchmark.loop.device)

    # Images -------------------------------------------------------------------------------------------------

    def table(self, label: str) -> Named:
        """The recipe's table of a dataset or an auxiliary task."""
        return self.benchmark.table(label)

    def task(self, label: str, data_seed: int = 0, progress: Any = None) -> Task:
        """The images of a dataset or an auxiliary task."""
        table = self.table(label)
        if table.dataset not in GENERATED:
            data_seed = table.seeds[0]

        def read() -> Task:
            reading = table.model_copy(update={"seeds": [data_seed]})
            folder = None if table.dataset.startswith("digits") else self.data
            silent = progress or (lambda done, total, text: None)
            return build_task(reading, folder, cache_dir=self.cache / "images", progress=silent)

        return self._once(("task", label, data_seed), read)  # type: ignore[no-any-return]

    def split(self, name: TaskName) -> Split:
        """The split of a name."""

        def make() -> Split:
            return self.task(name.dataset, name.data_seed).split(
                name.target,
                data_seed=name.data_seed,
                holdout=self.table(name.dataset).holdout,
                without=name.without,
            )

        return self._once(("split", name), make)  # type: ignore[no-any-return]

    def targets(self, label: str) -> list[str]:
        """The domains of a dataset that are left out, one at a time."""
        table = self.table(label)
        if table.targets != "all":
            for target in table.targets:
                self.task(label, table.seeds[0]).split(
                    target
                )  # an unknown one is an error now, not in an hour
            return list(table.targets)
        return list(self.task(label, table.seeds[0]).domain_names)

    # Weights ------------------------------------------------------------------------------------------------

    def start(self, label: str) -> Start:
        """theta_pt with a fresh classifier for a dataset."""

        def make() -> Start:
            torch.set_num_threads(
                self.threads
            )  # a pre-training made here has the bits of one made by a worker
            task = self.task(label, self.table(label).seeds[0])
            digits = None
            if self.table(label).dataset.startswith("digits"):
                digits = self.table(label).size or DIGITS_SIZE
            return build_start(
                self.benchmark, task, self.data, self.recipe_path, self.store, self.loop, digits=digits
            )

        return self._once(("start", label), make)  # type: ignore[no-any-return]

    def trainer(self, node: Trained, **options: Any) -> Trainer:
        """What carries out a training."""
        return Trainer(
            self.start(node.task.dataset).network,
            objective=self.objective(node),
            loop=self.loop,
            keep=self.benchmark.collected(),
            watch_left_out=self.benchmark.protocol == "reference" and node.task.target is not None,
            **options,
        )

    def objective(self, node: Trained) -> Objective:
        """What a training minimises.

        Raises:
            NotMade: With the reason, if there is no such objective for this network and these source domains: other
                rows are none the worse for it.
        """
        options = {**self.benchmark.options_of(node.objective), **dict(node.options)}
        start, split = self.start(node.task.dataset), self.split(node.task)
        try:
            return objective_for(start, split, node.objective, options)
        except InputError as error:
            raise NotMade(node, reason=str(error).removeprefix("objective: ")) from None

    def rehearse(self, node: Trained) -> None:
        """Make one update of a training from theta_pt and throw it away.

        Raises:
            NotMade: With the reason, if its objective cannot be made.
            InputError: If it cannot be used with this network, these source domains or this run.
        """
        with begins_when_drawn():
            self.trainer(node).rehearse(self.start(node.task.dataset).theta, self.split(node.task), node.run)

    def weights(self, node: Node) -> Weights:
        """The weights of an expression, read from the store.

        Raises:
            NotMade: If a training behind it is not there, or diverged.
        """
        match node:
            case Pretrained():
                return self.start(node.dataset).theta
            case WithHead():
                return with_head(self.weights(node.theta), self.weights(node.head))
            case Interpolated():
                return interpolate([self.weights(theta) for theta in node.thetas], list(node.coefficients))
            case Trained():
                return self._once(("weights", node), lambda: self._stored(node))  # type: ignore[no-any-return]

    def _stored(self, node: Trained) -> Weights:
        key = self.key(node)
        found = self.store.find("weights", key)
        if found is None:
            self.store.set_damaged_aside("weights", key)  # so that the next plan has it made again
            raise NotMade(node)
        weights, record = found
        if record["status"] == "diverged":
            raise NotMade(node, diverged=True)
        return StoredWeights(weights[node.run.collect], record)

    def start_fingerprint(self, node: Node) -> str:
        """The fingerprint of the weights of an expression.

        It is kept beside the images under what the expression is made of: a plan of a thousand starts does not read
        and add them up again each time.
        """

        def look_up() -> str:
            note = self.cache / "fingerprints" / self._made_of(node)
            if note.is_file() and len(text := note.read_text()) == 64:
                return text
            text = fingerprint(self.weights(node))
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(note, text.encode())
            return text

        return self._once(("fingerprint", node), look_up)  # type: ignore[no-any-return]

    def _made_of(self, node: Node) -> str:
        """A digest of an expression with the contents that its ends have; no weights are read."""
        match node:
            case Pretrained():
                parts: list[Any] = ["start", self.start(node.dataset).sha256]
            case Trained():
                record = self.store.record("weights", self.key(node))
                if record is None or record["status"] == "diverged":
                    raise NotMade(node, diverged=record is not None)
                parts = ["trained", record["sha256"], node.run.collect]
            case WithHead():
                parts = ["head", self._made_of(node.theta), self._made_of(node.head)]
            case Interpolated():
                parts = ["sum", [self._made_of(theta) for theta in node.thetas], list(node.coefficients)]
        return key_of({"parts": parts, "mirepoix": __version__})

    def key(self, node: Trained) -> str:
        """Under which key of the store a training is kept.

        Raises:
            NotMade: If it cannot be known, because the start is not there or the objective cannot be made.
        """
        start = self.start_fingerprint(node.theta)
        return result_key(self.trainer(node), start, self.split(node.task), node.run)

    def status(self, node: Trained) -> Status:
        """Whether a training is there."""
        planned: dict[Trained, Status] | None = self._statuses  # type: ignore[attr-defined]
        if planned is None:
            return self._status(node)
        if node not in planned:
            planned[node] = self._status(node)
        return planned[node]

    @contextmanager
    def planning(self) -> Iterator[None]:
        """While a plan is made, look at each training once."""
        object.__setattr__(self, "_statuses", {})
        try:
            yield
        finally:
            object.__setattr__(self, "_statuses", None)

    def _status(self, node: Trained) -> Status:
        try:
            record = self.store.record("weights", self.key(node))
        except NotMade as absent:
            return "diverged" if absent.diverged else "waiting"
        if record is None:
            return "missing"
        return "diverged" if record["status"] == "diverged" else "stored"

    def make(self, node: Trained, **options: Any) -> Any:
        """The weights of a training, found in the store or trained now; its start must be there.

        Raises:
            NotMade: If the start is not there, or the training diverges.
        """
        theta = self.weights(node.theta)
        try:
            with begins_when_drawn():
                return cached(self.trainer(node, **options), self.store)(
                    theta, self.split(node.task), node.run
                )
        except Diverged:
            raise NotMade(node, diverged=True) from None

    def forget(self) -> None:
        """Let go of networks and weights; images and starts stay."""
        known: dict[Any, Any] = self._known  # type: ignore[attr-defined]
        for key in [key for key in known if key[0] in ("judge", "weights")]:
            del known[key]

    # Predictions --------------------------------------------------------------------------------------------

    def judge(self, name: TaskName) -> Judge:
        """Predicts on one split."""

        def make() -> Judge:
            network = self.start(name.dataset).network
            last = self.loop.channels_last
            augment = self.benchmark.base_run().augment
            return Judge(
                network, self.split(name), self.store, self.device, channels_last=last, augment=augment
            )

        return self._once(("judge", name), make)  # type: ignore[no-any-return]
