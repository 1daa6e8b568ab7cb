"""The configuration of one fine-tuning of a diffusion model."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from mirepoix.rewards.diffusion._network import TIMESTEPS
from mirepoix.types import InputError

__all__ = ["DiffusionRun"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionRun:
    r"""The configuration of one reward-weighted fine-tuning; the same for all experts and MORL runs of a soup.

    Attributes:
        seed: Of the order of the images, their times and their noise.
        steps: Updates.
        batch_size: Images of an update.
        learning_rate: Of Adam, constant; gradients are clipped at norm 1. A new optimizer for every training.
        generated: Images that the start generates once, the digits 0 to 9 in turn (10,000 in the paper).
        kept: The share of them that is kept, those with the highest rewards (0.5, as in the paper).
        clip: The largest weight of an image in the loss, before the weights are divided by their mean.
        trainable: ``small`` trains norms, biases and the embeddings of time and class, 12 % of the parameters at the
            default widths (the paper trains about 10 %); ``all`` trains all.
        sampling_steps: Of DDIM, for the generated images.
        samples_seed: Of the noise of the generated images, the same for all experts of a soup.
        checkpoint_every: Steps between two states that are saved. It does not change the result.

    Raises:
        InputError: For a number out of its range.

    References:
        Ramé et al. (2023), Rewarded soups, the experiment with diffusion models; Lee et al. (2023), Aligning
        text-to-image models using human feedback, for the weighted likelihood.
    """

    seed: int = 0
    steps: int = 200
    batch_size: int = 64
    learning_rate: float = 1e-3
    generated: int = 1024
    kept: float = 0.5
    clip: float = 5.0
    trainable: Literal["small", "all"] = "small"
    sampling_steps: int = 25
    samples_seed: int = 0
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        def expect(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise InputError(f"run.{name}: expected {expected}, got {getattr(self, name)!r}.")

        for name in ("steps", "batch_size", "checkpoint_every"):
            expect(getattr(self, name) >= 1, name, "at least 1")
        for name in ("learning_rate", "clip"):
            expect(0 < getattr(self, name) < math.inf, name, "a positive number")
        expect(0 < self.kept <= 1, "kept", "a share above 0 and up to 1")
        expect(self.generated >= 2, "generated", "at least 2")
        expect(self.kept * self.generated > 1, "kept", f"a share of 2 or more of {self.generated} images")
        expect(self.trainable in ("small", "all"), "trainable", "'small' or 'all'")
        expect(1 <= self.sampling_steps <= TIMESTEPS, "sampling_steps", f"1 to {TIMESTEPS}")

    def with_(self, **changes: Any) -> DiffusionRun:
        """The same run with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a record."""
        return dataclasses.asdict(self)
