"""The images that fine-tunings learn from: the start makes them once, for all rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mirepoix.rewards.diffusion._digits import DIGITS
from mirepoix.rewards.diffusion._libraries import code_version, library_versions
from mirepoix.rewards.diffusion._network import schedule_digest
from mirepoix.rewards.diffusion._run import DiffusionRun
from mirepoix.rewards.diffusion._sampling import draw_noise, sample
from mirepoix.store import Store
from mirepoix.types import Weights

__all__ = ["balanced_labels", "generated_images"]

Images = tuple[NDArray[np.float32], NDArray[np.int64]]
"""``(images, 1, 8, 8)`` and the digits that were wanted."""


def balanced_labels(images: int) -> NDArray[np.int64]:
    """The digits in turn: 0 to 9 and again."""
    return np.arange(images, dtype=np.int64) % DIGITS


def generated_images(network: Any, theta_fingerprint: str, run: DiffusionRun, store: Store | None) -> Images:
    """What the network draws with the start's weights in it; found in the store if another training made it."""
    labels = balanced_labels(run.generated)

    def make(_: Path | None) -> tuple[dict[str, Weights], dict[str, Any]]:
        noise = draw_noise(run.generated, "generated images", run.samples_seed)
        images = sample(network, noise, torch.from_numpy(labels), run.sampling_steps)
        return {"images": {"images": torch.from_numpy(images)}}, {"status": "finished"}

    if store is None:
        made: Any = make(None)[0]
    else:
        identity = {
            "theta": theta_fingerprint,
            "generated": run.generated,
            "seed": run.samples_seed,
            "steps": run.sampling_steps,
            "noise schedule": schedule_digest(),
            "code": code_version(),
            "libraries": library_versions(),
        }
        made = store.get_or_make("diffusion-images", identity, make)[0]
    return np.asarray(made["images"]["images"], dtype=np.float32), labels
