"""Steps of an optimizer that go on, with the same bits, where they were killed.

All that is random in a step is drawn from its number, so the state between two steps is the network, the optimizer
and what was noted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mirepoix.rewards.scenes._network import SceneNetwork
from mirepoix.training._interruption import load_state, save_state
from mirepoix.types import Diverged

__all__ = ["Progress", "descend", "one_thread"]

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step with the steps done, the steps of the training, and what was measured in the step."""


def descend(
    network: SceneNetwork,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    *,
    steps: int,
    learning_rate: Callable[[int], float],
    workspace: Path | None,
    save_every: int,
    largest_gradient: float | None = None,
    on_progress: Progress | None,
) -> dict[str, Any]:
    """Train in place, and return the record.

    Args:
        network: Its parameters are those of the optimizer.
        optimizer: New.
        loss_of: From the number of a step to its loss and to what is noted of it.
        steps: Updates.
        learning_rate: Of each step.
        workspace: Folder of the state; found there, the training goes on from it. None keeps no state.
        save_every: Steps between two states.
        largest_gradient: Norm to which gradients are clipped; they are not by default.
        on_progress: Called after each step.

    Raises:
        Diverged: When a loss or a weight is not finite.
    """
    path = None if workspace is None else workspace / "state.bin"
    state = None if path is None else load_state(path)
    begun, history, seconds = 0, list[dict[str, float]](), 0.0
    if state is not None:
        network.model.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        begun, history, seconds = state["step"], state["history"], state["seconds"]
    started = time.monotonic() - seconds
    for step in range(begun, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        loss, noted = loss_of(step)
        if not math.isfinite(loss.item()):
            raise Diverged(
                f"the loss is {loss.item()} after {step} steps. A smaller learning_rate may help.", step
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if largest_gradient is not None:
            torch.nn.utils.clip_grad_norm_(network.model.parameters(), largest_gradient)
        optimizer.step()
        done = step + 1
        history.append({"step": done, **noted})
        if path is not None and done % save_every == 0 and done < steps:
            save_state(
                path,
                {
                    "network": network.model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": done,
                    "history": history,
                    "seconds": time.monotonic() - started,
                },
            )
        if on_progress is not None:
            on_progress(done, steps, noted)
    if not all(bool(tensor.isfinite().all()) for tensor in network.model.state_dict().values()):
        raise Diverged(
            f"a weight is not finite after {steps} steps. A smaller learning_rate may help.", steps
        )
    return {
        "status": "finished",
        "steps": steps,
        "history": history,
        "seconds": round(time.monotonic() - started, 3),
        "device": "cpu",
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """The bits of a sum depend on the number of threads; afterwards it is what it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
