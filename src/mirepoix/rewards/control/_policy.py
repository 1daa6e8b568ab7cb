"""Gaussian policies of Stable-Baselines3, built to fit the weights that they get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mirepoix.rewards.control._locomotion import Locomotion, gymnasium
from mirepoix.rewards.control._normaliser import without_normaliser
from mirepoix.seeds import seed_hash
from mirepoix.types import InputError, Weights

__all__ = ["architecture", "build_policy", "initial_policy", "load_policy_"]


def initial_policy(task: Locomotion, *, seed: int = 0, hidden: Sequence[int] = (64, 64)) -> dict[str, Any]:
    """Random weights of a policy and its value function, for the start of all: two tanh networks and the log std.

    They have no observation statistics yet; `PPOTrainer` with ``gather=True`` adds them.

    Args:
        task: Says the sizes of observations and actions.
        seed: Of the weights.
        hidden: Widths of the hidden layers of both networks; 64 and 64 as in Stable-Baselines3.

    Raises:
        InputError: Without hidden layers.
    """
    if not hidden or min(hidden) < 1:
        raise InputError(f"hidden: expected the widths of one or more layers, got {list(hidden)}.")
    env = task.make()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_hash(seed, "policy"))
            policy = _new(env, {"pi": list(hidden), "vf": list(hidden)})
    finally:
        env.close()
    return {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()}


def architecture(theta: Weights) -> dict[str, list[int]]:
    """``net_arch`` of Stable-Baselines3, read from the shapes of weights."""
    widths: dict[str, list[int]] = {}
    for key, network in (("pi", "policy_net"), ("vf", "value_net")):
        found = widths.setdefault(key, [])
        while (name := f"mlp_extractor.{network}.{2 * len(found)}.weight") in theta:
            found.append(int(theta[name].shape[0]))
    return widths


def build_policy(theta: Weights, task: Locomotion, env: Any) -> Any:
    """A policy for the environment, with the weights theta."""
    with torch.random.fork_rng(devices=[]):  # its random first weights
        policy = _new(env, architecture(theta))
    load_policy_(policy, theta, task)
    policy.set_training_mode(False)
    return policy


def load_policy_(policy: Any, theta: Weights, task: Locomotion, owner: str = "theta") -> None:
    """Write theta into the policy, statistics left out."""
    own = {name: torch.as_tensor(value) for name, value in without_normaliser(theta).items()}
    expected = policy.state_dict()
    wrong = sorted(
        name
        for name in {*own, *expected}
        if name not in own or name not in expected or own[name].shape != expected[name].shape
    )
    if wrong:
        name = wrong[0]
        shapes = ["nothing" if name not in group else tuple(group[name].shape) for group in (expected, own)]
        raise InputError(
            f"{owner}: expected weights of a policy for {task.environment}, {name!r} has shape {shapes[1]}, "
            f"expected {shapes[0]}. `initial_policy(task)` makes such weights."
        )
    policy.load_state_dict(own)


def _new(env: Any, net_arch: dict[str, list[int]]) -> Any:
    gymnasium()
    from stable_baselines3.common.policies import ActorCriticPolicy

    return ActorCriticPolicy(env.observation_space, env.action_space, lambda _: 0.0, net_arch=net_arch)
