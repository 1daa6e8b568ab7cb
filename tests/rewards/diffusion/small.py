"""A task, a configuration and weights so small that a training takes a moment."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from mirepoix.rewards.diffusion import DiffusionRun, DiffusionTrainer, DigitDiffusion, diffusion_start

TASK = DigitDiffusion(channels=(8, 16))
RUN = DiffusionRun(
    steps=7, batch_size=8, generated=40, sampling_steps=3, checkpoint_every=3, learning_rate=5e-3, seed=1
)
"""Three stretches, of three, three and one step."""
START = {"steps": 60, "batch_size": 16, "learning_rate": 5e-3}


@cache
def start() -> dict[str, Any]:
    """A start."""
    return dict(diffusion_start(TASK, None, **START))


@cache
def expert(name: str) -> dict[str, Any]:
    """An expert for one reward."""
    return dict(DiffusionTrainer(reward={name: 1.0})(start(), TASK, RUN))


def same(a: Any, b: Any) -> bool:
    """Whether two weights have the same names and bits."""
    return set(a) == set(b) and all(
        np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes() for name in a
    )
