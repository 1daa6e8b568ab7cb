"""The contracts on one page: what flows between data, training, combination and measures.

Three verbs carry the library. *Train* turns weights, a task and a run into weights; *combine* turns the
weights of several members into one model or one predictor; *measure* turns predictions or weights into a
number. This module names their types and imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from mirepoix.runs import Run

__all__ = [
    "Batch",
    "Combine",
    "Diverged",
    "InputError",
    "Outputs",
    "Score",
    "Train",
    "UnsafeCheckpoint",
    "Weights",
]

Weights: TypeAlias = Mapping[str, Any]
"""A read-only mapping from names to tensors (torch) or arrays (numpy), lazy or in memory."""

Score: TypeAlias = Callable[[Weights], float]
"""The value of one model on held-out data; higher is better."""

Combined = TypeVar("Combined", covariant=True)


class Train(Protocol):
    """One fine-tuning: ``Train(theta, task; run)``, deterministic given its arguments on one kind of device."""

    def __call__(self, theta: Any, task: Any, run: Run, /) -> Any:
        """Return the weights reached from ``theta`` on ``task`` with the configuration ``run``."""
        ...


class Combine(Protocol[Combined]):
    """Members to one result: an average, a greedy selection, an ensemble, or just a ``list``."""

    def __call__(self, thetas: Iterable[Weights], /) -> Combined:
        """Combine the members, in the order given."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one domain, ready for a network.

    Attributes:
        images: Normalised images, float.
        labels: Class indices.
        domains: Index of the domain of each sample in the task.
    """

    images: Float[Tensor, "samples channels height width"]
    labels: Int[Tensor, " samples"]
    domains: Int[Tensor, " samples"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a network returns; several members put their axis first."""

    features: Float[Tensor, "*members samples features"]
    logits: Float[Tensor, "*members samples classes"]


class InputError(ValueError):
    """Something a person gave is wrong, and the message says what, where, and what to do.

    The command line prints the message without a traceback and exits with 2.
    """


class UnsafeCheckpoint(InputError):
    """A file of weights that is damaged or hostile: a rule of the readers refused it, and nothing in it ran.

    Attributes:
        rule: The short name of the rule, such as ``"pickle-global"``; the message ends with it in brackets.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(rule, message)  # both, so that the error survives the way from another process
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.args[1]} [{self.rule}]"


class Diverged(RuntimeError):
    """A training whose loss is no longer a finite number; the other runs go on.

    Attributes:
        step: Number of the step, from 0, by which the loss was seen to be not finite.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message, step)  # both, so that the error survives the way from another process
        self.step = step

    def __str__(self) -> str:
        return str(self.args[0])
