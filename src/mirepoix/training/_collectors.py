"""What is kept along a run: the best weights on ID validation, the last ones, the mean of the iterates.

A collector sees the weights after every update and after every check, and gives weights in the end. One
training serves all of its collectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Best", "Check", "Collector", "Last", "UniformAverage"]


@dataclass(frozen=True, slots=True)
class Check:
    """One evaluation on ID validation.

    Attributes:
        step: Number of the step just made, from 0.
        score: Mean over source domains of the validation accuracy, a fraction.
        loss: Mean over source domains of the validation cross-entropy, in nats.
        accuracies: Validation accuracy of each source domain.
    """

    step: int
    score: float
    loss: float
    accuracies: Mapping[str, float]


class Collector(Protocol):
    """Keeps something of the weights along a run.

    ``theta`` is always the live weights of the network: a collector copies what it keeps.
    """

    def after_step(self, update: int, theta: Mapping[str, Tensor]) -> None:
        """Look at the weights after update number ``update``, from 1."""

    def after_check(self, check: Check, theta: Mapping[str, Tensor]) -> None:
        """Look at the weights after an evaluation."""

    def weights(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The collected weights at the end of the run, on the CPU, in the dtypes of the network."""

    def state(self) -> dict[str, Any]:
        """Everything needed to continue, as tensors and plain values."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""


def _copy(theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in theta.items()}


def _floats(theta: Mapping[str, Tensor]) -> list[Tensor]:
    return [tensor.detach() for tensor in theta.values() if tensor.is_floating_point()]


def _with_floats(theta: Mapping[str, Tensor], values: Iterable[Tensor]) -> dict[str, Tensor]:
    """A copy of the weights with other floating-point values, rounded to the dtypes of the weights."""
    result = _copy(theta)
    names = [name for name, tensor in result.items() if tensor.is_floating_point()]
    for name, value in zip(names, values, strict=True):
        result[name] = value.to("cpu", result[name].dtype, copy=True).contiguous()
    return result


def _wide_copy(values: Sequence[Tensor]) -> list[Tensor]:
    """Copies in float64, or in float32 on a device that has nothing wider."""
    return [
        value.to(torch.float32 if value.device.type == "mps" else torch.float64, copy=True)
        for value in values
    ]


class _Sum:
    """A running sum of lists of tensors, in float64 where the device has it."""

    def __init__(self) -> None:
        self.count = 0
        self._totals: list[Tensor] = []

    def add(self, values: Sequence[Tensor]) -> None:
        """Add one list; the sum lies where the latest one lay."""
        if not self.count:
            self._totals = _wide_copy(values)
        else:
            self._totals = [total.to(value.device) for total, value in zip(self._totals, values, strict=True)]
            torch._foreach_add_(self._totals, list(values))
        self.count += 1

    def means(self) -> Iterator[Tensor]:
        """The mean of each tensor, on the CPU, not rounded yet."""
        return (total.cpu() / self.count for total in self._totals)

    def clone(self) -> _Sum:
        """A sum that goes its own way from here."""
        other = _Sum()
        other.load(self.state())
        return other

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "sums": [total.cpu() for total in self._totals]}

    def load(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]
        self._totals = [total.clone() for total in state["sums"]]  # they change in place


class Best:
    """The weights with the highest ID validation score; of equal scores the earliest."""

    def __init__(self) -> None:
        self.check: Check | None = None
        self._theta: dict[str, Tensor] = {}

    def after_step(self, update: int, theta: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def after_check(self, check: Check, theta: Mapping[str, Tensor]) -> None:
        """Keep the weights if the score is strictly greater."""
        if self.check is None or check.score > self.check.score:
            self.check, self._theta = check, _copy(theta)

    def weights(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The best weights seen."""
        return self._theta

    def state(self) -> dict[str, Any]:
        """The best check and its weights."""
        check = self.check
        fields = check and [check.step, check.score, check.loss, dict(check.accuracies)]
        return {"check": fields, "theta": self._theta}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue."""
        self.check = state["check"] and Check(*state["check"])
        self._theta = dict(state["theta"])


class Last:
    """The weights after the last update."""

    def after_step(self, update: int, theta: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def after_check(self, check: Check, theta: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def weights(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A copy of the live weights."""
        return _copy(theta)

    def state(self) -> dict[str, Any]:
        """Nothing: the loop itself keeps the live weights."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue."""


class UniformAverage:
    r"""The plain mean of the iterates from one step on.

    .. math:: \bar\theta_k = \frac{1}{k - k_0 + 2} \sum_{j = k_0 - 1}^{k} \theta_j

    with :math:`k_0` the argument ``start``. The published moving average begins as a copy of the iterate just
    before the start, so that one is part of the mean (:math:`k_0 = 100` averages iterates 99, 100, ...). A run
    shorter than the start returns its last weights; a start of 1 averages iterates 1, 2, ..., without the weights
    that the run began with. Floating-point buffers are averaged alike; integer
    buffers are those of the last iterate. Sums are kept in float64 where the device has it.

    References:
        Arpit et al. (2021), Ensemble of averages.
    """

    def __init__(self, start: int = 100) -> None:
        self.start = start
        self._sum = _Sum()

    def after_step(self, update: int, theta: Mapping[str, Tensor]) -> None:
        """Add one iterate."""
        if update >= self.start - 1:
            self._sum.add(_floats(theta))

    def after_check(self, check: Check, theta: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def weights(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean of the iterates so far."""
        return _with_floats(theta, self._sum.means()) if self._sum.count else _copy(theta)

    def state(self) -> dict[str, Any]:
        """The sums and their count."""
        return self._sum.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue."""
        self._sum.load(state)
