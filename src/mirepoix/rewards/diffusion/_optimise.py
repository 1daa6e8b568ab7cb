"""Gradient descent that survives a kill: what is drawn at a step depends on the step alone, and the rest is saved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mirepoix.training._interruption import load_state, save_state
from mirepoix.types import Diverged, InputError

__all__ = ["Optimisation", "Progress"]

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after each stretch with the steps done, the steps of the run, and the mean ``loss`` of the stretch."""

MAX_GRADIENT_NORM = 1.0


@dataclass
class Optimisation:
    """Adam over some steps.

    Attributes:
        parameters: Of the network, by name.
        loss: Of a step, from its number.
        learning_rate: Of a step, from its number.
        steps: How many.
        stretch: Steps between two states that are saved.
        identity: What the saved state belongs to.
        state_file: Where it is saved, if anywhere.
        on_progress: Called after each stretch.
        losses: After `run`, the mean loss of each stretch.
        seconds: After `run`, what it took, interruptions not counted.
    """

    parameters: Mapping[str, torch.nn.Parameter]
    loss: Callable[[int], torch.Tensor]
    learning_rate: Callable[[int], float]
    steps: int
    stretch: int
    identity: str
    state_file: Path | None = None
    on_progress: Progress | None = None
    losses: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def run(self) -> None:
        """Descend to the last step, from the saved state if there is one.

        Raises:
            Diverged: If a loss or a parameter is not finite.
            InputError: If the saved state is another one's.
        """
        tensors = list(self.parameters.values())
        optimizer = torch.optim.Adam(tensors, lr=self.learning_rate(0))
        done = self._resume(optimizer)
        while done < self.steps:
            started, total = time.monotonic(), 0.0
            upto = min(self.steps, (done // self.stretch + 1) * self.stretch)
            for step in range(done, upto):
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate(step)
                loss = self.loss(step)
                value = loss.item()
                if not math.isfinite(value):
                    raise Diverged(
                        f"the training diverged: its loss is {value} at step {step:,}. A smaller learning_rate may "
                        f"help, got {self.learning_rate(step):g}.",
                        step,
                    )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(tensors, MAX_GRADIENT_NORM)
                optimizer.step()
                total += value
            if not all(bool(tensor.isfinite().all()) for tensor in tensors):
                raise Diverged(
                    f"the training diverged: its weights are not finite after {upto:,} steps.", upto - 1
                )
            mean = total / (upto - done)
            done = upto
            self.losses.append({"step": done, "loss": mean})
            self.seconds += time.monotonic() - started
            if self.state_file is not None and done < self.steps:
                self._save(optimizer, done)
            if self.on_progress is not None:
                self.on_progress(done, self.steps, {"loss": mean})

    def _save(self, optimizer: torch.optim.Optimizer, done: int) -> None:
        assert self.state_file is not None
        state = {
            "identity": self.identity,
            "done": done,
            "parameters": {name: tensor.detach() for name, tensor in self.parameters.items()},
            "optimizer": optimizer.state_dict(),
            "losses": self.losses,
            "seconds": self.seconds,
        }
        save_state(self.state_file, state)

    def _resume(self, optimizer: torch.optim.Optimizer) -> int:
        """The steps that were done before."""
        state = None if self.state_file is None else load_state(self.state_file)
        if state is None:
            return 0
        if state["identity"] != self.identity:
            raise InputError(
                f"{self.state_file}: expected the state of this training, got that of another one. Remove the file."
            )
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                tensor.copy_(state["parameters"][name])
        optimizer.load_state_dict(state["optimizer"])
        self.losses, self.seconds = state["losses"], state["seconds"]
        return int(state["done"])
