"""Statistics of observations: gathered while the start is trained, then frozen and shared by all that comes from it.

A policy sees normalised observations, so the same weights with other statistics are another function. The
statistics therefore lie among the weights, as buffers of these names: an expert carries them, an average of
experts keeps them, and experts that do not share them are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirepoix.checkpoints import fingerprint
from mirepoix.types import InputError, Weights

__all__ = ["CLIP", "EPSILON", "NAMES", "ObservationNormaliser", "check_observations", "without_normaliser"]

CLIP = 10.0
EPSILON = 1e-8
NAMES = ("normaliser.mean", "normaliser.variance", "normaliser.return_variance")
"""Names of the statistics among the weights."""

TOLERANCE = 1e-6  # relative: what an average of equal float32 numbers may lose


@dataclass(frozen=True, eq=False)
class ObservationNormaliser:
    r"""Frozen statistics of observations, and the scale of the reward.

    .. math:: \tilde o = \mathrm{clip}\left( \frac{o - m}{\sqrt{s^2 + 10^{-8}}}, -10, 10 \right)

    (constants of Stable-Baselines3). In training the reward is likewise divided by the standard deviation of the
    discounted return, and clipped: the value function of the start was learned on that scale. Evaluation is in the
    units of the environment.

    Attributes:
        mean: :math:`m`, float32, shape (observations,).
        variance: :math:`s^2`, float32, shape (observations,).
        return_variance: Of the discounted return of the start's reward, float32, shape ().
    """

    mean: NDArray[np.float32]
    variance: NDArray[np.float32]
    return_variance: NDArray[np.float32]

    def __post_init__(self) -> None:
        arrays = {}
        for name in ("mean", "variance", "return_variance"):
            # Float32, for then an average of equal statistics has the same bits.
            array = np.asarray(getattr(self, name)).astype(np.float32)
            if not np.isfinite(array).all() or (name != "mean" and (array < 0).any()):
                raise InputError(
                    f"normaliser.{name}: expected finite numbers, of variances 0 or more, got {array}."
                )
            array.setflags(write=False)
            object.__setattr__(self, name, array)
            arrays[name] = array
        if arrays["mean"].ndim != 1 or arrays["variance"].shape != arrays["mean"].shape:
            raise InputError(
                "normaliser: expected a mean and a variance for each observation, got shapes "
                f"{arrays['mean'].shape} and {arrays['variance'].shape}."
            )
        if arrays["return_variance"].shape != ():
            raise InputError(
                f"normaliser.return_variance: expected one number, got shape {arrays['return_variance'].shape}."
            )

    def __call__(self, observation: Any) -> NDArray[np.float32]:
        """Normalise observations, shape (..., observations)."""
        scaled = (np.asarray(observation, dtype=np.float64) - self.mean) / np.sqrt(
            self.variance.astype(np.float64) + EPSILON
        )
        return np.clip(scaled, -CLIP, CLIP).astype(np.float32)

    @property
    def fingerprint(self) -> str:
        """The digest of the statistics."""
        return fingerprint(dict(zip(NAMES, (self.mean, self.variance, self.return_variance), strict=True)))

    def buffers(self) -> dict[str, Any]:
        """The statistics as tensors, under the names that they have among the weights."""
        import torch

        arrays = (self.mean, self.variance, self.return_variance)
        return {name: torch.tensor(array) for name, array in zip(NAMES, arrays, strict=True)}

    @classmethod
    def from_weights(cls, theta: Weights, owner: str = "theta") -> ObservationNormaliser:
        """The statistics among the weights of a policy.

        Args:
            theta: The weights.
            owner: What an error calls them.

        Raises:
            InputError: If they are not there.
        """
        missing = [name for name in NAMES if name not in theta]
        if missing:
            raise InputError(
                f"{owner}: expected a policy with its observation statistics, {missing[0]!r} is not there. "
                "Train the start with PPOTrainer(..., gather=True), and fine-tune from what it returns."
            )
        return cls(*(np.asarray(theta[name]) for name in NAMES))

    def check_size(self, shape: tuple[int, ...] | None) -> None:
        """Raise `InputError` unless observations of this shape can be normalised."""
        if shape != self.mean.shape:
            raise InputError(
                f"normaliser: the statistics are of {self.mean.shape[0]} observations, the environment's have "
                f"shape {shape}. Take the environment that the start was trained in."
            )

    def check_same(self, other: ObservationNormaliser, first: str, second: str) -> None:
        """Raise `InputError` unless ``other`` has these statistics, up to the rounding of an average."""
        for name in ("mean", "variance", "return_variance"):
            mine, its = getattr(self, name), getattr(other, name)
            if mine.shape != its.shape or not np.allclose(mine, its, rtol=TOLERANCE, atol=TOLERANCE):
                raise InputError(
                    f"{first} and {second} have other observation statistics (normaliser.{name}), so the same "
                    "weights are other functions in them, and their average is neither. Train both from one "
                    "start, which gathers the statistics once."
                )


def check_observations(thetas: Mapping[str, Weights]) -> str:
    """Raise `InputError` unless all policies have the same observation statistics.

    Args:
        thetas: From the name of an expert to its weights.

    Returns:
        The fingerprint of the statistics of the first.
    """
    if not thetas:
        raise InputError("experts: expected one or more, got none.")
    found = {
        name: ObservationNormaliser.from_weights(theta, f"expert {name!r}") for name, theta in thetas.items()
    }
    first, *others = found
    for name in others:
        found[first].check_same(found[name], f"experts {first!r}", repr(name))
    return found[first].fingerprint


def without_normaliser(theta: Weights) -> dict[str, Any]:
    """The weights that are the policy's own."""
    return {name: theta[name] for name in theta if name not in NAMES}
