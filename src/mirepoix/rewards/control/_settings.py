"""Studies of locomotion as data: what the start, the experts and the comparison are trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mirepoix.rewards.control._locomotion import Locomotion
from mirepoix.rewards.control._train import PPORun

__all__ = ["HALFCHEETAH", "HUMANOID", "LocomotionStudy"]


@dataclass(frozen=True, kw_only=True)
class LocomotionStudy:
    """A rewarded soup from start to front.

    Attributes:
        task: Environment and rewards; one expert for each reward.
        start_reward: Coefficients of the rewards for the start.
        start: Configuration of the start.
        expert: Configuration of each fine-tuning, of experts and of MORL runs alike.
        hidden: Widths of the networks.
        intervals: Of the front: coefficients 0, 1/intervals, ..., 1.
        morl: Coefficients of the MORL runs.
        seeds: Of the evaluation, one for each episode.
    """

    task: Locomotion
    start_reward: Mapping[str, float]
    start: PPORun
    expert: PPORun
    hidden: tuple[int, ...] = (64, 64)
    intervals: int = 10
    morl: tuple[Mapping[str, float], ...] = ({"risky": 0.5, "cautious": 0.5},)
    seeds: tuple[int, ...] = tuple(range(6))


HALFCHEETAH = LocomotionStudy(
    task=Locomotion(),
    # v - 0.1 a^2, the environment's own reward. From a start with the price 1 the experts are not connected.
    start_reward={"risky": 0.9, "cautious": 0.1},
    start=PPORun(steps=200_000, learning_rate=5e-4),
    expert=PPORun(steps=100_000, learning_rate=1e-4, seed=1),
)
"""Minutes on one core."""

HUMANOID = LocomotionStudy(
    task=Locomotion(environment="Humanoid-v5", options={"terminate_when_unhealthy": False}),
    start_reward={"risky": 0.9, "cautious": 0.1},
    start=PPORun(
        steps=20_000_000,
        learning_rate=3e-4,
        environments=32,
        rollout_steps=512,
        batch_size=1024,
        gamma=0.97,
        checkpoint_every=20,
        entropy_coefficient=1e-3,
    ),
    expert=PPORun(
        steps=10_000_000,
        learning_rate=1e-4,
        environments=32,
        rollout_steps=512,
        batch_size=1024,
        gamma=0.97,
        checkpoint_every=20,
        entropy_coefficient=1e-3,
        seed=1,
    ),
    hidden=(256, 256),
    intervals=20,
    morl=tuple({"risky": 1 - i / 10, "cautious": i / 10} for i in range(11)),
    seeds=tuple(range(16)),
)
"""The environment of the thesis in another simulator (Brax there), with 21 soups and 11 MORL runs as there.

Rewards and numbers of soups and runs are those of the thesis; steps, rates and widths are our guesses. Never run:
hours to days on one core.
"""
