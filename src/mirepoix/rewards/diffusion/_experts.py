"""A fine-tuned diffusion model as an expert of a rewarded soup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards._experts import Expert
from mirepoix.rewards.diffusion._network import schedule_digest
from mirepoix.types import InputError, Weights
from mirepoix.weights import check_averageable

__all__ = ["diffusion_expert"]


def diffusion_expert(
    name: str,
    theta: Weights,
    start: Weights,
    *,
    reward: str | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Expert:
    """The expert with these weights, which states its start and its noise schedule.

    `mirepoix.rewards.check_experts` then refuses experts of another start or with another schedule.

    Args:
        name: What coefficients call it.
        theta: Its weights, as `DiffusionTrainer` returns them.
        start: The weights it was fine-tuned from.
        reward: What it was trained on; the reward of its name by default.
        metrics: Whatever its training reported.

    Raises:
        InputError: If names or shapes of its tensors are not those of ``start``.
    """
    try:
        check_averageable([start, theta])
    except InputError as error:
        raise InputError(
            f"expert {name!r}: it was not fine-tuned from this start (member 0 is the start, member 1 the expert): "
            f"{error}"
        ) from error
    return Expert(
        name=name,
        reward=name if reward is None else reward,
        weights=theta,
        start=fingerprint(start),
        metrics=dict(metrics or {}),
        state={"noise schedule": schedule_digest()},
    )
