"""The network of the digits and its noise schedule, both diffusers'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mirepoix.rewards.diffusion._digits import DIGITS, GROUPS, SIZE, DigitDiffusion
from mirepoix.rewards.diffusion._libraries import diffusers
from mirepoix.store import key_of
from mirepoix.types import InputError, Weights

__all__ = [
    "SCHEDULE",
    "TIMESTEPS",
    "build_network",
    "load_",
    "noise_schedule",
    "schedule_digest",
    "trainable_names",
]

TIMESTEPS = 200

SCHEDULE: Mapping[str, Any] = {
    "num_train_timesteps": TIMESTEPS,
    # The usual linear betas suit 1000 steps: after 200 of them an image would still be seen through the noise.
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
}
"""Settings of the noise schedule, as diffusers calls them."""

EMBEDDINGS = ("time_embedding.", "class_embedding.")


def noise_schedule(*, sampling: bool = False) -> Any:
    """The schedule that noises images (DDPM), or the one that samples them (DDIM)."""
    library = diffusers()
    kind = library.DDIMScheduler if sampling else library.DDPMScheduler
    return kind(**SCHEDULE)


def schedule_digest() -> str:
    """A text that names the noise schedule: weights mean another model with another one."""
    return key_of(SCHEDULE)


def build_network(task: DigitDiffusion, seed: int = 0) -> Any:
    """The network of a task, with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = diffusers().UNet2DModel(
            sample_size=SIZE,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=task.channels,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=GROUPS,
            num_class_embeds=DIGITS,
        )
    return network


def load_(network: Any, theta: Weights, owner: str = "theta") -> None:
    """Write theta into the network.

    Raises:
        InputError: If names or shapes are not the network's, or a number is not finite.
    """
    own = network.state_dict()
    wrong = sorted(
        name
        for name in {*own, *theta}
        if name not in own or name not in theta or tuple(own[name].shape) != tuple(theta[name].shape)
    )
    if wrong:
        name = wrong[0]
        expected, came = ("nothing" if name not in of else tuple(of[name].shape) for of in (own, theta))
        raise InputError(
            f"{owner}: expected weights of the task's network, {name!r} has shape {came}, expected {expected}. "
            "`diffusion_start(task, store)` makes such weights; `task.channels` says their widths."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            value = theta[name]
            tensor.copy_(value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value)))
            if not bool(tensor.isfinite().all()):
                raise InputError(
                    f"{owner}: {name!r} is not finite. Was it saved after a training that diverged?"
                )


def trainable_names(network: Any, which: str) -> Sequence[str]:
    """The parameters to train: ``all``, or ``small``: norms, biases, embeddings of time and class."""
    return [
        name
        for name, parameter in network.named_parameters()
        if which == "all"
        or parameter.ndim == 1  # norms and biases
        or name.startswith(EMBEDDINGS)
        or ".time_emb_proj." in name
    ]
