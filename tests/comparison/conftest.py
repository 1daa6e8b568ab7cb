"""A small comparison of every kind of system, and what runs it in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mirepoix.checkpoints import fingerprint
from mirepoix.comparison import Comparison
from mirepoix.comparison._members import Bench
from mirepoix.experiment import Start
from mirepoix.models import initial_weights
from mirepoix.store import Store
from mirepoix.training import Loop
from tests.tiny import tiny_network, tiny_task

RECIPE = """
name = "small"
title = "Every kind of system"
members = 3
shared_head = true
[data]
dataset = "digits"
size = 8
targets = ["rotated_0"]
seeds = [0, 1]
[network]
name = "mnist_cnn"
width = 8
[pretraining]
steps = 20
learning_rate = 3e-3
batch_size = 16
[run]
steps = 6
batch_size = 4
learning_rate = 3e-3
schedule = "cosine"
check_every = 3
[cycle]
steps = 4
learning_rate = 5e-3
[evidence]
dynamics = true
images = 40
[[systems]]
name = "Local DE"
kind = "deep_ensemble"
[[systems]]
name = "SSE"
kind = "snapshot"
[[systems]]
name = "StarSSE"
kind = "star"
soup = true
[[systems]]
name = "StarSSE-CE"
kind = "star"
later = { name = "prediction_repulsion", alpha = 0.1 }
[[systems]]
name = "StarSSE PEFT (1)"
kind = "star"
cycle = { train_from = "conv4" }
[[systems]]
name = "DICE"
kind = "joint"
members = 2
split_at = "last_stage"
objective = { name = "dice", delta = 0.2 }
[[systems]]
name = "MIMO"
kind = "joint"
inputs = 2
copies = 2
scratch = true
objective = "mimo"
"""

VALUES: dict[str, Any] = {
    "name": "tiny",
    "members": 3,
    "shared_head": True,
    "data": {"targets": ["domain_0"], "seeds": [0]},
    "network": {"name": "mnist_cnn", "width": 8},
    "run": {"steps": 3, "batch_size": 4, "learning_rate": 1e-2, "check_every": 2},
    "cycle": {"steps": 2},
}
"""A recipe without systems, for the images of tests/tiny.py."""


class Listening:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.notes: list[str] = []
        self.planned = 0

    def plan(self, steps: int) -> None:
        self.planned = steps

    def stage(self, text: str, steps: int = 0) -> None:
        self.stages.append((text, steps))

    def images(self, done: int, total: int, text: str) -> None:
        pass

    def training(self, step: int, steps: int, loss: float, id_accuracy: float | None) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


def recipe_of(*systems: dict[str, Any], **changes: Any) -> Comparison:
    """The tiny recipe with these systems."""
    recipe = Comparison.model_validate({**VALUES, **changes, "systems": list(systems)})
    recipe.check_runs()
    return recipe


def bench_of(recipe: Comparison, path: Path) -> Bench:
    """What trains the systems of a tiny recipe, into a store at a path."""
    theta = initial_weights(tiny_network())
    return Bench(
        recipe=recipe,
        task=tiny_task(),
        start=Start(tiny_network(), theta, "tiny", fingerprint(theta)),
        files={},
        loop=Loop(),
        store=Store(path),
        device=torch.device("cpu"),
        progress=Listening(),
    )


@pytest.fixture
def split():
    return tiny_task().split("domain_0")


@pytest.fixture(scope="session")
def job(tmp_path_factory) -> tuple[Path, dict[str, Any], Listening]:
    """The folder of a finished comparison with its report, and what was heard of it. Do not change it."""
    from mirepoix.comparison import load_comparison, run_comparison
    from mirepoix.report import write_report

    folder = tmp_path_factory.mktemp("comparison")
    file = folder / "small.toml"
    file.write_text(RECIPE)
    recipe, path = load_comparison(file)
    heard = Listening()
    content = run_comparison(
        recipe, recipe_path=path, out=folder / "out", progress=heard, command="mirepoix run small.toml"
    )
    write_report(content, folder / "out")
    return folder / "out", json.loads((folder / "out" / "report.json").read_text()), heard
