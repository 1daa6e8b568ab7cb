"""Criteria that change along a run: updates are counted, and at one of them a weight jumps, moments forgotten."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError

__all__ = ["Scheduled", "check_count"]


class Scheduled(Objective):
    """A criterion that knows how many updates it has made.

    The count is part of the state, so a run that was stopped goes on at the same place of the schedule. In `forward`,
    ``self.updates`` is the number of the current update, from 0.
    """

    def __init__(self) -> None:
        super().__init__()
        # Not a buffer: to compare a number on an accelerator with another would wait for it at every step.
        self.updates = 0

    @abstractmethod
    def resets(self) -> Collection[int]:
        """The updates before which the optimizer forgets its moments, as if it were built anew."""

    def begins(self) -> int:
        """The last of the updates at which something begins."""
        return max(self.resets(), default=0)

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, Tensor]:
        """Make one update, with a fresh optimizer where the schedule says so, and count it."""
        if self.updates in self.resets():
            optimizer.state.clear()
        logged = super().step(model, batches, optimizer, scaler)
        self.updates += 1
        return logged

    def get_extra_state(self) -> Tensor:
        """The count, as a tensor: states are kept in files that hold nothing else."""
        return torch.tensor(self.updates)

    def set_extra_state(self, state: Tensor) -> None:
        """Continue."""
        self.updates = int(state)


def check_count(owner: str, name: str, value: float) -> int:
    """A number of updates, from 0.

    Raises:
        InputError: For what is no whole number of 0 or more.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf or value != int(value):
        raise InputError(f"{owner} needs {name} to be a whole number of updates from 0, got {value!r}.")
    return int(value)
