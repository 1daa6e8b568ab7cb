"""Wrappers of an environment: its reward, and its observations. They need Gymnasium, so they are imported late."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from mirepoix.rewards.control._normaliser import CLIP, ObservationNormaliser
from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.rewards.control._locomotion import Locomotion

__all__ = ["LocomotionReward", "NormalisedObservations"]


class LocomotionReward(gymnasium.Wrapper):  # type: ignore[misc]
    """The scalar reward of a step instead of the environment's; each reward is in ``info["rewards"]``."""

    def __init__(self, env: Any, task: Locomotion, shares: Sequence[float]) -> None:
        super().__init__(env)
        self.task, self.shares = task, tuple(shares)

    def step(self, action: Any) -> Any:
        """One step, with another reward."""
        if not np.isfinite(action).all():  # before MuJoCo sees it and writes a log file
            raise FloatingPointError("an action is not finite")
        observation, _, terminated, truncated, info = self.env.step(action)
        if "x_velocity" not in info:
            raise InputError(
                f"environment: {self.task.environment!r} tells no 'x_velocity' in its info, only "
                f"{', '.join(sorted(info)) or 'nothing'}. Take one that moves forward, such as HalfCheetah-v5."
            )
        rewards = self.task.step_rewards(float(info["x_velocity"]), action)
        scalar = math.fsum(share * reward for share, reward in zip(self.shares, rewards, strict=True))
        if not math.isfinite(scalar):
            raise FloatingPointError(
                f"a reward is not finite: {dict(zip(self.task.rewards, rewards, strict=True))}"
            )
        return observation, scalar, terminated, truncated, {**info, "rewards": rewards}


class NormalisedObservations(gymnasium.ObservationWrapper):  # type: ignore[misc]
    """Observations in units of statistics that never change."""

    def __init__(self, env: Any, normaliser: ObservationNormaliser) -> None:
        super().__init__(env)
        normaliser.check_size(env.observation_space.shape)
        self.normaliser = normaliser
        self.observation_space = gymnasium.spaces.Box(-CLIP, CLIP, env.observation_space.shape, np.float32)

    def observation(self, observation: Any) -> Any:
        """Normalise one observation."""
        return self.normaliser(observation)
