"""The rewards of a policy: mean actions, the same episodes for every policy, each reward of each episode."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mirepoix.rewards.control._locomotion import Locomotion
from mirepoix.rewards.control._normaliser import ObservationNormaliser, check_observations
from mirepoix.rewards.control._policy import build_policy, load_policy_
from mirepoix.store import key_of
from mirepoix.types import InputError, Weights

__all__ = ["PolicyEvaluation"]

Returns = dict[str, NDArray[np.float64]]
"""From the name of a reward to its sum over each episode, shape (episodes,)."""


class PolicyEvaluation:
    r"""``evaluate(theta)``: every reward of a policy, :math:`R_k = \sum_t (v_t - \alpha_k \lVert a_t \rVert^2)`.

    Actions are the means of the policy, clipped to their bounds, so an episode depends on its seed and theta alone.
    All policies walk the same episodes. Weights are written into one policy in place, and the environments are made
    once: nothing is built for a further theta.

    The sum is over the steps of an episode, in the units of the environment; it is not discounted. An episode that
    ends early, because the robot fell, has the rewards up to there.

    Args:
        task: Environment and rewards.
        start: Weights of the architecture and with the statistics of all that will be evaluated: usually the start.
        seeds: One for each episode; 6 or more distinguish policies of HalfCheetah.

    Attributes:
        rewards: The names of the rewards.
        digest: A text that names the evaluation: task, seeds, statistics, versions of the simulator.

    Raises:
        InputError: Without seeds, with a seed twice, or if the weights do not fit the task.

    Example:
        >>> evaluate = PolicyEvaluation(task, start)  # doctest: +SKIP
        >>> evaluate(start)["risky"].mean()  # doctest: +SKIP
        1399.1
    """

    def __init__(self, task: Locomotion, start: Weights, *, seeds: Sequence[int] = range(6)) -> None:
        self.task, self.seeds, self.start = task, tuple(int(seed) for seed in seeds), start
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(
                f"seeds: expected different numbers, 0 or more, at least one; got {list(seeds)}."
            )
        self.normaliser = ObservationNormaliser.from_weights(start, "start")
        self._environments = [task.make(normaliser=self.normaliser) for _ in self.seeds]
        self._policy = build_policy(start, task, self._environments[0])
        self._members: list[Any] = []

    @property
    def rewards(self) -> tuple[str, ...]:
        """The names of the rewards, in the order of the task."""
        return self.task.rewards

    @property
    def digest(self) -> str:
        """What decides the numbers, beside the weights."""
        return key_of(
            {
                "task": self.task.digest,
                "seeds": list(self.seeds),
                "normaliser": self.normaliser.fingerprint,
                "code": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16],
                "libraries": {name: metadata.version(name) for name in ("gymnasium", "mujoco")},
            }
        )

    def __call__(self, theta: Weights) -> Returns:
        """Every reward of every episode.

        Raises:
            InputError: If theta has other observation statistics than the start, or another architecture.
            FloatingPointError: If an action or a reward is not finite.
        """
        self._check(theta, "theta")
        load_policy_(self._policy, theta, self.task)
        return self._walk([self._policy], [1.0])

    def ensemble(self, experts: Mapping[str, Weights], coefficients: Mapping[str, float]) -> Returns:
        r"""Every reward of the functional ensemble, whose action is :math:`\sum_i \lambda_i \, \mu_{\theta_i}(o)`.

        The mean actions are averaged before they are clipped. It costs one forward pass for each expert and step,
        those with :math:`\lambda_i = 0` included.

        Args:
            experts: Weights by name.
            coefficients: :math:`\lambda_i` by the same names, on the simplex.

        Raises:
            InputError: As in a call; if names differ, or the coefficients are not on the simplex.
        """
        if not experts or set(experts) != set(coefficients):
            raise InputError(
                f"coefficients: expected one for each expert ({', '.join(sorted(experts))}), "
                f"got {', '.join(sorted(coefficients)) or 'none'}."
            )
        shares = {name: float(coefficients[name]) for name in experts}
        total = math.fsum(shares.values())
        if not (min(shares.values()) >= 0 and abs(total - 1) <= 1e-6):
            raise InputError(f"coefficients: expected numbers of 0 or more that sum to one, got {shares}.")
        check_observations(experts)
        for name, theta in experts.items():
            self._check(theta, f"expert {name!r}")
        while len(self._members) < len(experts):
            self._members.append(build_policy(self.start, self.task, self._environments[0]))
        members = self._members[: len(experts)]
        for member, (name, theta) in zip(members, experts.items(), strict=True):
            load_policy_(member, theta, self.task, f"expert {name!r}")
        return self._walk(members, [share / total for share in shares.values()])

    def close(self) -> None:
        """Free the simulators."""
        for environment in self._environments:
            environment.close()

    def _check(self, theta: Weights, owner: str) -> None:
        self.normaliser.check_same(ObservationNormaliser.from_weights(theta, owner), "the start", owner)

    @torch.inference_mode()
    def _walk(self, members: Sequence[Any], shares: Sequence[float]) -> Returns:
        """One episode for each seed, side by side."""
        space = self._environments[0].action_space
        returns = np.zeros((len(self.seeds), len(self.rewards)))
        observations = np.stack(
            [env.reset(seed=seed)[0] for env, seed in zip(self._environments, self.seeds, strict=True)]
        )
        walking = list(range(len(self.seeds)))
        while walking:
            # All rows, also of episodes that are over: the bits of a product depend on the number of its rows.
            seen = torch.from_numpy(observations)
            actions = torch.zeros(len(self.seeds), *space.shape, dtype=torch.float64)
            for member, share in zip(members, shares, strict=True):
                actions += share * member.get_distribution(seen).mode().double()
            clipped = np.clip(actions.float().numpy(), space.low, space.high)
            for row in tuple(walking):
                observations[row], _, terminated, truncated, info = self._environments[row].step(clipped[row])
                returns[row] += info["rewards"]
                if terminated or truncated:
                    walking.remove(row)
        return dict(zip(self.rewards, returns.T.copy(), strict=True))
