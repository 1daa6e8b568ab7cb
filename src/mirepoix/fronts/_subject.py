"""What a study of rewarded soups trains and evaluates: one class per kind of task, behind one small interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mirepoix.rewards import Expert
from mirepoix.store import Store
from mirepoix.types import Weights

__all__ = ["Place", "Progress", "Silence", "Subject", "default_steps", "told"]


class Progress(Protocol):
    """Told of the work as it goes."""

    def plan(self, steps: int) -> None:
        """The number of training steps of the whole job."""

    def stage(self, text: str, steps: int = 0) -> None:
        """A new piece of work; ``steps`` of training belong to it."""

    def step(self, done: int, steps: int, text: str) -> None:
        """A training step of the current piece."""

    def images(self, done: int, total: int, text: str) -> None:
        """Something else that is counted."""

    def note(self, text: str) -> None:
        """Something a person should know."""


class Silence:
    """Hears everything and says nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


@dataclass(frozen=True)
class Place:
    """Where a study finds its inputs and keeps its results.

    Attributes:
        recipe: The file of the recipe.
        data: The folder of inputs, if one is given.
        store: Results.
        progress: Told of the work.
    """

    recipe: Path
    data: Path | None
    store: Store
    progress: Progress


class Subject(Protocol):
    """One trial: a start, trainings from it by any mean of the rewards, and the evaluation of any weights.

    Attributes:
        rewards: All that is measured.
        inputs: Names what is read: data, prompts, rewards.
        evaluation: Names what decides the values of an evaluation, beside the weights.
        start_steps: Training steps of the start, 0 if it is given.
        steps: Training steps of one expert.
    """

    rewards: tuple[str, ...]
    start_steps: int
    steps: int

    @property
    def inputs(self) -> str: ...

    @property
    def evaluation(self) -> str: ...

    def facts(self) -> list[tuple[str, str]]:
        """What is trained and evaluated, as terms and sentences."""
        ...

    def rehearse(self) -> None:
        """Find what a person must mend before anything is trained."""
        ...

    def start(self) -> Weights:
        """The common start: found, or made now and kept."""
        ...

    def train(self, reward: Mapping[str, float]) -> Weights:
        """The fine-tuning for a weighted sum of rewards: found, or made now and kept. Its ``record`` has seconds."""
        ...

    def expert(self, name: str, theta: Weights) -> Expert:
        """What `train` gave, with what it says of its start."""
        ...

    def evaluate(self, theta: Weights) -> Mapping[str, Any]:
        """Every reward, one value per item, the same items for all weights."""
        ...

    def ensemble(self, thetas: Mapping[str, Weights], coefficients: Mapping[str, float]) -> Mapping[str, Any]:
        """The same of the functional ensemble."""
        ...

    def items(self, count: int) -> list[dict[str, Any]]:
        """The first items for the table of samples: each with ``prompt`` and, if it is one, ``image``."""
        ...

    def answers(self, theta: Weights, count: int) -> list[Any]:
        """What these weights answer to the first items: texts, or ``{"image": data URI}``; none if nothing is said."""
        ...

    def export(self, thetas: Mapping[str, Weights], coefficients: Mapping[str, float], folder: Path) -> str:
        """Write the soup into the folder as ``chosen`` or ``chosen.safetensors``, whole or not at all: the name."""
        ...

    def close(self) -> None:
        """Free what is held."""
        ...


def default_steps(train: Callable[..., Any]) -> int:
    """How many steps a function trains for unless it is told."""
    return int(inspect.signature(train).parameters["steps"].default)


def told(progress: Progress, names: Sequence[str]) -> Callable[[int, int, Mapping[str, Any]], None]:
    """A trainer's progress, with the means of some rewards."""

    def tell(done: int, steps: int, means: Mapping[str, Any]) -> None:
        found = [(name, means.get(name)) for name in names]
        words = "  ".join(f"{name} {value:.3g}" for name, value in found if isinstance(value, float))
        progress.step(done, steps, words)

    return tell
