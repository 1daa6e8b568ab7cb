"""Images from noise, by DDIM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mirepoix.rewards.diffusion._digits import SIZE
from mirepoix.rewards.diffusion._network import noise_schedule
from mirepoix.seeds import generator

__all__ = ["CHUNK", "draw_noise", "sample", "sample_with"]

CHUNK = 64
"""Images that are sampled side by side. The bits of a product depend on the number of its rows, so it is fixed."""

Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From noisy images, a time and labels to the noise that is in the images."""


def draw_noise(images: int, *parts: object) -> torch.Tensor:
    """The noise that images are made of, each image's its own, ``(images, 1, 8, 8)``."""
    return torch.stack([torch.randn(1, SIZE, SIZE, generator=generator(*parts, i)) for i in range(images)])


@torch.no_grad()
def sample_with(
    predict: Predict, noise: torch.Tensor, labels: torch.Tensor, steps: int
) -> NDArray[np.float32]:
    """Images in [-1, 1], without further noise on the way (DDIM with eta 0), ``(images, 1, 8, 8)``."""
    schedule = noise_schedule(sampling=True)
    schedule.set_timesteps(steps)
    found = []
    for first in range(0, len(noise), CHUNK):
        images, wanted = noise[first : first + CHUNK], labels[first : first + CHUNK]
        for time in schedule.timesteps:
            images = schedule.step(predict(images, time, wanted), time, images).prev_sample
        found.append(images)
    result: NDArray[np.float32] = torch.cat(found).numpy()
    return result


def sample(network: Any, noise: torch.Tensor, labels: torch.Tensor, steps: int) -> NDArray[np.float32]:
    """`sample_with` one network."""
    return sample_with(lambda x, t, c: network(x, t, class_labels=c).sample, noise, labels, steps)
