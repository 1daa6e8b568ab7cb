"""Weights as expressions: what is to be made, before anything is made.

The page of equations takes any ``train``. Given one that returns `Trained` instead of weights, a strategy writes
down which trainings it needs; equal expressions are equal objects, so the plan of a whole table is a set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from mirepoix.runs import Run

__all__ = [
    "Interpolated",
    "Node",
    "Pretrained",
    "TaskName",
    "Trained",
    "WithHead",
    "fused",
    "trainings",
]


@dataclass(frozen=True, slots=True)
class TaskName:
    """A split that has not been read: which dataset, which domains are left out, which division.

    Attributes:
        dataset: Label of the dataset or of the auxiliary task.
        target: The left-out domain, None to train on all of them.
        data_seed: Of the division into train and validation.
        without: Further domains that are left out.
    """

    dataset: str
    target: str | None = None
    data_seed: int = 0
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        left_out = " and ".join(name for name in (self.target, *self.without) if name)
        where = f"{self.dataset} without {left_out}" if left_out else self.dataset
        return f"{where}, data seed {self.data_seed}"


@dataclass(frozen=True, slots=True)
class Pretrained:
    """theta_pt with a fresh classifier for the classes of a dataset."""

    dataset: str


@dataclass(frozen=True, slots=True)
class Trained:
    """``Train(theta, D; c)`` with one criterion.

    Attributes:
        theta: The start.
        task: D.
        run: c, with what is collected along it.
        objective: Name of the criterion.
        options: What was drawn of it for this run, beside what the recipe says of it.
    """

    theta: Node
    task: TaskName
    run: Run
    objective: str = "erm"
    options: tuple[tuple[str, Any], ...] = ()

    def training(self) -> Trained:
        """The training itself, whatever is collected along it."""
        return replace(self, run=self.run.with_(collect="best"))


@dataclass(frozen=True, slots=True)
class WithHead:
    """The featurizer of one with the classifier of another."""

    theta: Node
    head: Node


@dataclass(frozen=True, slots=True)
class Interpolated:
    """``sum_j lambda_j theta_j``."""

    thetas: tuple[Node, ...]
    coefficients: tuple[float, ...]


Node: TypeAlias = Pretrained | Trained | WithHead | Interpolated


def fused(thetas: Sequence[Node], coefficients: Sequence[float]) -> Interpolated:
    """`mirepoix.interpolate`, written down."""
    return Interpolated(tuple(thetas), tuple(float(value) for value in coefficients))


def trainings(node: Node) -> Iterator[Trained]:
    """Every training behind an expression, those it starts from first; some more than once."""
    match node:
        case Trained():
            yield from trainings(node.theta)
            yield node.training()
        case WithHead():
            yield from trainings(node.theta)
            yield from trainings(node.head)
        case Interpolated():
            for theta in node.thetas:
                yield from trainings(theta)
