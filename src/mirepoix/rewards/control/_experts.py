"""A fine-tuned policy as an expert of a rewarded soup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards._experts import Expert
from mirepoix.rewards.control._normaliser import ObservationNormaliser
from mirepoix.types import InputError, Weights

__all__ = ["policy_expert"]


def policy_expert(
    name: str,
    theta: Weights,
    start: Weights,
    *,
    reward: str | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Expert:
    """The expert with these weights, which states its start and its observation statistics.

    `mirepoix.rewards.check_experts` then refuses experts of another start or with other statistics.

    Args:
        name: What coefficients call it.
        theta: Its weights, as `PPOTrainer` returns them.
        start: The weights it was fine-tuned from.
        reward: What it was trained on; the reward of its name by default.
        metrics: Whatever its training reported.

    Raises:
        InputError: If its statistics are missing, or are not those of ``start``.
    """
    mine = ObservationNormaliser.from_weights(theta, f"expert {name!r}")
    its = ObservationNormaliser.from_weights(start, "start")
    if mine.fingerprint != its.fingerprint:
        raise InputError(
            f"expert {name!r}: its observation statistics are not those of the start, so it was not fine-tuned from "
            "there. Give the start that it was trained from."
        )
    return Expert(
        name=name,
        reward=name if reward is None else reward,
        weights=theta,
        start=fingerprint(start),
        metrics=dict(metrics or {}),
        state={"observation statistics": mine.fingerprint},
    )
