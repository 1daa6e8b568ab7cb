"""Rewarded soups of locomotion policies: environments, PPO fine-tunings from one start, evaluation on fixed seeds.

The names are imported when they are first used; training and evaluation need ``pip install 'mirepoix[control]'``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirepoix.lazy import contents

if TYPE_CHECKING:
    from mirepoix.rewards.control._evaluate import PolicyEvaluation
    from mirepoix.rewards.control._experts import policy_expert
    from mirepoix.rewards.control._locomotion import Locomotion
    from mirepoix.rewards.control._normaliser import ObservationNormaliser, check_observations
    from mirepoix.rewards.control._policy import initial_policy
    from mirepoix.rewards.control._settings import HALFCHEETAH, HUMANOID, LocomotionStudy
    from mirepoix.rewards.control._train import PPOFit, PPORun, PPOTrainer

_PLACES = {
    "HALFCHEETAH": "_settings",
    "HUMANOID": "_settings",
    "Locomotion": "_locomotion",
    "LocomotionStudy": "_settings",
    "ObservationNormaliser": "_normaliser",
    "PPOFit": "_train",
    "PPORun": "_train",
    "PPOTrainer": "_train",
    "PolicyEvaluation": "_evaluate",
    "check_observations": "_normaliser",
    "initial_policy": "_policy",
    "policy_expert": "_experts",
}

__getattr__, __dir__ = contents(__name__, _PLACES)

__all__ = [
    "HALFCHEETAH",
    "HUMANOID",
    "Locomotion",
    "LocomotionStudy",
    "ObservationNormaliser",
    "PPOFit",
    "PPORun",
    "PPOTrainer",
    "PolicyEvaluation",
    "check_observations",
    "initial_policy",
    "policy_expert",
]
