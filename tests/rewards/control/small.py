"""A task, a configuration and weights so small that a training takes a second."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from mirepoix.rewards.control import Locomotion, ObservationNormaliser, PPORun, PPOTrainer, initial_policy

TASK = Locomotion(episode_steps=50)
RUN = PPORun(
    steps=600,
    environments=2,
    rollout_steps=64,
    batch_size=32,
    epochs=2,
    checkpoint_every=2,
    learning_rate=1e-3,
)
"""Five rollouts, in stretches of two, two and one."""

START_REWARD = {"risky": 0.9, "cautious": 0.1}


@cache
def start() -> dict[str, Any]:
    """A start with its statistics."""
    trainer = PPOTrainer(reward=START_REWARD, gather=True)
    return dict(trainer(initial_policy(TASK, hidden=(16, 16)), TASK, RUN))


@cache
def expert(name: str) -> dict[str, Any]:
    """An expert for one reward."""
    return dict(PPOTrainer(reward={name: 1.0})(start(), TASK, RUN.with_(seed=1)))


def other_statistics() -> dict[str, Any]:
    """The start with other statistics."""
    theta = start()
    mean = np.asarray(theta["normaliser.mean"])
    normaliser = ObservationNormaliser(
        mean + 0.1, theta["normaliser.variance"], theta["normaliser.return_variance"]
    )
    return {**theta, **normaliser.buffers()}


def same(a: Any, b: Any) -> bool:
    """Whether two weights have the same names and bits."""
    return set(a) == set(b) and all(
        np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes() for name in a
    )
