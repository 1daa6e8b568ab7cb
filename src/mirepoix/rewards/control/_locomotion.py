"""The task: walk forward, and be rewarded for speed and for gentle actions in several proportions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from mirepoix.store import key_of
from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.rewards.control._normaliser import ObservationNormaliser

__all__ = ["Locomotion", "gymnasium"]


@dataclass(frozen=True, kw_only=True)
class Locomotion:
    r"""A MuJoCo environment with one reward for each price of action.

    .. math:: R_k = \sum_t \left( v_t - \alpha_k \lVert a_t \rVert^2 \right)

    with :math:`v_t` the forward velocity (``x_velocity`` in the environment's ``info``, metres per second) and
    :math:`a_t` the action, clipped to its bounds. All rewards are maximised. The environment's own reward takes no
    part: neither its cost of control nor its bonus for standing.

    Attributes:
        environment: Of Gymnasium's MuJoCo suite, version 5: older ones need other packages.
        alphas: From the name of a reward to its :math:`\alpha_k`, 0 or more. In the thesis ``risky`` (0) and
            ``cautious`` (1).
        options: Keyword arguments of ``gymnasium.make``: numbers, texts, booleans, lists.
        episode_steps: Where an episode is cut off; the environment's own limit by default (1000).

    Raises:
        InputError: Without rewards, or with a negative or infinite alpha.

    References:
        Ramé et al. (2023), Rewarded soups; thesis, section 6.3.6.
    """

    environment: str = "HalfCheetah-v5"
    alphas: Mapping[str, float] = field(default_factory=lambda: {"risky": 0.0, "cautious": 1.0})
    options: Mapping[str, Any] = field(default_factory=dict)
    episode_steps: int | None = None

    def __post_init__(self) -> None:
        if not self.alphas:
            raise InputError(
                "alphas: expected a reward or more, such as {'risky': 0.0, 'cautious': 1.0}, got none."
            )
        for name, alpha in self.alphas.items():
            if not (math.isfinite(alpha) and alpha >= 0):
                raise InputError(f"alphas[{name!r}]: expected a price of 0 or more, got {alpha!r}.")
        if self.episode_steps is not None and self.episode_steps < 1:
            raise InputError(f"episode_steps: expected at least 1, got {self.episode_steps}.")
        object.__setattr__(self, "alphas", MappingProxyType({k: float(v) for k, v in self.alphas.items()}))
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    @property
    def rewards(self) -> tuple[str, ...]:
        """The names of the rewards, in the order given."""
        return tuple(self.alphas)

    @property
    def digest(self) -> str:
        """A text that names the content of the task."""
        return key_of(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a record; the order of the rewards counts."""
        return {
            "environment": self.environment,
            "alphas": [[name, alpha] for name, alpha in self.alphas.items()],
            "options": dict(self.options),
            "episode_steps": self.episode_steps,
        }

    def step_rewards(self, velocity: float, action: Any) -> tuple[float, ...]:
        """What one step earns: ``velocity - alpha * ||action||^2`` for each reward, in the order of `rewards`."""
        effort = float(np.square(np.asarray(action, dtype=np.float64)).sum())
        return tuple(velocity - alpha * effort for alpha in self.alphas.values())

    def shares(self, reward: Mapping[str, float]) -> tuple[float, ...]:
        r"""The coefficients :math:`\mu_k` of a scalar reward, in the order of `rewards`; 0 for those not named.

        They are used as given: they need not sum to one, and are not divided by their sum.

        Raises:
            InputError: For a name that is no reward, a coefficient that is not finite, or none but zeros.
        """
        for name, share in reward.items():
            if name not in self.alphas:
                raise InputError(
                    f"reward: there is no reward {name!r}; expected some of {', '.join(self.rewards)}."
                )
            if not math.isfinite(share):
                raise InputError(f"reward[{name!r}]: expected a finite coefficient, got {share}.")
        if not any(reward.values()):
            raise InputError(
                f"reward: expected a coefficient that is not 0, for one of {', '.join(self.rewards)}, got "
                f"{dict(reward)}."
            )
        return tuple(float(reward.get(name, 0.0)) for name in self.rewards)

    def make(
        self, shares: Sequence[float] | None = None, normaliser: ObservationNormaliser | None = None
    ) -> Any:
        """One environment.

        Args:
            shares: Coefficients of the scalar reward; by default uniform. All rewards of a step are in
                ``info["rewards"]`` whatever the coefficients.
            normaliser: Normalises the observations; none by default.

        Raises:
            InputError: Without Gymnasium and MuJoCo, or for an environment that is not there.
        """
        gym = gymnasium()
        from mirepoix.rewards.control._wrappers import LocomotionReward, NormalisedObservations

        limit = {} if self.episode_steps is None else {"max_episode_steps": self.episode_steps}
        with _without_deprecated_models():
            try:
                made = gym.make(self.environment, disable_env_checker=True, **limit, **self.options)
            except (gym.error.Error, TypeError) as error:
                raise InputError(
                    f"environment: {self.environment!r} with options {dict(self.options)} cannot be made: {error} "
                    "Expected one of Gymnasium's MuJoCo suite, such as HalfCheetah-v5."
                ) from error
        if shares is None:
            shares = [1 / len(self.alphas)] * len(self.alphas)
        made = LocomotionReward(made, self, shares)
        return made if normaliser is None else NormalisedObservations(made, normaliser)


def gymnasium() -> Any:
    """Gymnasium with MuJoCo and Stable-Baselines3, or an error that says how to get them."""
    try:
        import gymnasium as gym
        import mujoco  # noqa: F401
        import stable_baselines3  # noqa: F401
    except ImportError as error:
        raise InputError(
            "locomotion needs Stable-Baselines3 and Gymnasium with MuJoCo, which cannot be imported "
            f"({error}): pip install 'mirepoix[control]'."
        ) from error
    return gym


@contextmanager
def _without_deprecated_models() -> Iterator[None]:
    """Keep MuJoCo 4 from printing that the bundled models use deprecated attributes; what else it says is a warning."""
    import mujoco

    if not hasattr(mujoco, "set_mju_user_warning"):  # before 4: nothing is printed
        yield
        return
    before = mujoco.get_mju_user_warning()

    def pass_on(message: str) -> None:
        if "is deprecated and will be removed" in message:
            return
        if before is not None:
            before(message)
        else:
            warnings.warn(f"MuJoCo: {message}", stacklevel=2)

    mujoco.set_mju_user_warning(pass_on)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
