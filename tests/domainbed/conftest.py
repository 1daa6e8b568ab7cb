"""Small benchmarks on the built-in digits: written as recipes, carried out once for all tests of this folder."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from mirepoix.cluster import Inline
from mirepoix.data import Subset
from mirepoix.domainbed import Cell, Plan, Sweep, Workbench, load_benchmark, make_plan, run_plan
from mirepoix.domainbed._members import Members
from mirepoix.domainbed._nodes import TaskName
from mirepoix.domainbed._run import _workbench

RECIPE = """
name = "tiny"
runs = 3
strategies = ["fine_tuning"]
auxiliary_runs = 2
frozen_steps = 3
shared_probe = true
figures = false

[[datasets]]
dataset = "digits"
size = 12
targets = ["rotated_0", "rotated_75"]

[[auxiliaries]]
dataset = "digits-inverted"
size = 12

[[auxiliaries]]
dataset = "digits-sloped"
size = 12

[network]
name = "mnist_cnn"
width = 8

[pretraining]
steps = 100
learning_rate = 3e-3
batch_size = 32

[probe]
steps = 4
learning_rate = 1e-2

[run]
steps = 8
learning_rate = 3e-3
batch_size = 4
check_every = 2
average_from = 3
ema_decay = 0.5
swad_start_patience = 1
swad_end_patience = 2

[space]
learning_rate = [1e-3, 3e-3, 1e-2]
weight_decay = [1e-4, 1e-6]
dropout = [0.0, 0.1]

[loop]
device = "cpu"
threads = 1
"""

TABLE = (
    "mean_member",
    "fine_tuning",
    "wise",
    "ensemble",
    "diwa",
    "diwa_greedy",
    "diwa_dagger",
    "moving_average",
    "moving_average/greedy",
    "ratatouille",
    "inter_training",
    "robust_ratatouille",
    "fusing",
)


def listed(names: Sequence[str]) -> str:
    """A list in TOML."""
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


@dataclass(frozen=True)
class Carried:
    """A benchmark that was carried out."""

    bench: Workbench
    plan: Plan
    sweep: Sweep
    worker: Workbench

    def cell(
        self, row: str, selection: str = "training-domain", target: str = "rotated_0", seed: int | None = 0
    ) -> Cell:
        """The one cell of this place."""
        (found,) = (
            cell
            for cell in self.sweep.cells
            if (cell.row, cell.selection, cell.target, cell.data_seed) == (row, selection, target, seed)
        )
        return found


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of this folder."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def scratch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of this folder from random weights, without the pre-training that digits of one size share."""
    table = RECIPE.partition("[pretraining]")[2].partition("[probe]")[0]
    text = RECIPE.replace(f"[pretraining]{table}", "").replace("[network]", "[network]\nscratch = true")
    path = tmp_path_factory.mktemp("scratch") / "tiny.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="session")
def make_bench(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Workbench]:
    """A workbench of the recipe with some changes; all share one pre-training unless they name a store."""
    shared = tmp_path_factory.mktemp("shared")

    def make(*changes: str, store: Path | None = None, data: Path | None = None) -> Workbench:
        benchmark, path = load_benchmark(recipe_file, changes)
        return Workbench(benchmark, path, str(store or shared / "store"), shared / "cache", data)

    return make


def carry(bench: Workbench) -> Carried:
    """Plan, train and measure, in this process."""
    plan = make_plan(bench)
    with Inline() as engine:
        sweep = run_plan(bench, plan, engine)
    assert sweep.failed == {}
    return Carried(bench, plan, sweep, _workbench(pickle.dumps(bench)))


@pytest.fixture(scope="session")
def table(make_bench: Callable[..., Workbench], tmp_path_factory: pytest.TempPathFactory) -> Carried:
    """Many strategies on two targets and two data seeds, corrected protocol."""
    return carry(
        make_bench(
            f"strategies={listed(TABLE)}",
            "datasets=[{dataset='digits', size=12, targets=['rotated_0', 'rotated_75'], seeds=[0, 1]}]",
            "selection=['training-domain', 'oracle']",
            store=tmp_path_factory.mktemp("table"),
        )
    )


@pytest.fixture(scope="session")
def left_one_out(make_bench: Callable[..., Workbench], tmp_path_factory: pytest.TempPathFactory) -> Carried:
    """Leave-one-domain-out in the corrected protocol."""
    return carry(
        make_bench(
            "strategies=['fine_tuning', 'moving_average', 'wise', 'diwa_greedy']",
            "runs=2",
            "datasets=[{dataset='digits', size=12, targets=['rotated_0']}]",
            "selection=['leave-one-out']",
            store=tmp_path_factory.mktemp("left"),
        )
    )


@pytest.fixture(scope="session")
def reference(make_bench: Callable[..., Workbench], tmp_path_factory: pytest.TempPathFactory) -> Carried:
    """The protocol of the published code, with every selection."""
    return carry(
        make_bench(
            "protocol='reference'",
            "strategies=['fine_tuning', 'moving_average', 'diwa']",
            "runs=2",
            "run.steps=5",
            "datasets=[{dataset='digits', size=12, targets=['rotated_0']}]",
            "selection=['training-domain', 'leave-one-out', 'oracle']",
            store=tmp_path_factory.mktemp("reference"),
        )
    )


class Direct:
    """Predictions on one split by the plain way: a network, its weights, whole domains of images."""

    def __init__(
        self, bench: Workbench, target: str = "rotated_0", seed: int = 0, without: tuple[str, ...] = ()
    ):
        self.bench, self.name = bench, TaskName("digits", target, seed, without)
        self.split = bench.split(self.name)
        self.members = Members(bench.benchmark)

    def logits(self, theta, subset: Subset) -> torch.Tensor:
        """On one subset."""
        model = self.bench.start("digits").network.build()
        model.load_state_dict(dict(theta))
        model.eval()
        images = self.split.task.transform.plain(subset.domain.images.read(subset.indices))
        with torch.no_grad():
            return model(images).logits

    def correct(self, theta, subset: Subset) -> list[bool]:
        """Of each image of one subset."""
        labels = torch.as_tensor(subset.labels)
        return [bool(right) for right in self.logits(theta, subset).argmax(1) == labels]

    def accuracy(self, theta, subset: Subset) -> float:
        """On one subset."""
        correct = self.correct(theta, subset)
        return sum(correct) / len(correct)

    def whole(self, theta) -> float:
        """On all images of the target."""
        return self.accuracy(theta, self.split.test[0])

    def target_parts(self, theta) -> tuple[float, float]:
        """On the 80 % and the 20 % of the target that would train and validate were it a source."""
        other = next(name for name in self.split.task.domain_names if name != self.name.target)
        as_source = self.split.task.split(other, data_seed=self.name.data_seed, holdout=self.split.holdout)
        parts = []
        for subsets in (as_source.train, as_source.validation):
            (subset,) = (each for each in subsets if each.name == self.name.target)
            parts.append(self.accuracy(theta, subset))
        return parts[0], parts[1]

    def id_mean(self, theta) -> float:
        """Mean over the sources of the validation accuracy."""
        each = [self.accuracy(theta, subset) for subset in self.split.validation]
        return sum(each) / len(each)

    def id_pooled(self, theta) -> float:
        """On the validation images of all sources together."""
        correct = [right for subset in self.split.validation for right in self.correct(theta, subset)]
        return sum(correct) / len(correct)

    def of(self, family: str, collect: str | None = None) -> list:
        """The weights of the members of a family."""
        nodes = self.members.of(family, self.name)
        if collect:
            nodes = [_collecting(node, collect) for node in nodes]
        return [self.bench.weights(node) for node in nodes]


def _collecting(node, collect):
    return replace(node, run=node.run.with_(collect=collect))
