"""The start: a diffusion model of real digits, trained from random weights."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch

from mirepoix.rewards.diffusion._digits import DigitDiffusion, digits_digest, real_digits
from mirepoix.rewards.diffusion._libraries import code_version, library_versions, one_thread
from mirepoix.rewards.diffusion._network import TIMESTEPS, build_network, noise_schedule, schedule_digest
from mirepoix.rewards.diffusion._optimise import Optimisation, Progress
from mirepoix.seeds import generator, seed_hash
from mirepoix.store import Store, StoredWeights, key_of
from mirepoix.types import Diverged, InputError, Weights

__all__ = ["diffusion_start"]

WARM_UP = 50
STRETCH = 50


def diffusion_start(
    task: DigitDiffusion,
    store: Store | None,
    *,
    seed: int = 0,
    steps: int = 600,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    on_progress: Progress | None = None,
) -> Weights:
    r"""Weights of a network that draws the digits it is asked for, the common start of all experts.

    diffusers' ``UNet2DModel`` (0.65 M parameters at the default widths) is trained from random weights on all real
    digits :math:`x_0` and their labels :math:`c`, to minimise the mean over pixels of

    .. math:: \lVert \epsilon - \epsilon_\theta(x_t, t, c) \rVert^2, \qquad
        x_t = \sqrt{\bar\alpha_t} \, x_0 + \sqrt{1 - \bar\alpha_t} \, \epsilon, \quad t \sim \mathcal U\{0..199\},

    with Adam; the learning rate rises over 50 steps and falls along half a cosine to 0. With the defaults it takes
    about a minute on one core.

    Args:
        task: Says the widths of the network; its rewards take no part.
        store: Where the start is kept, by what it was made of. A training that was killed continues there, with the
            same bits. None trains each time.
        seed: Of the first weights and of all that is drawn.
        steps: Updates.
        batch_size: Real digits of an update, drawn with replacement.
        learning_rate: At its highest.
        on_progress: Called after each 50 steps with the steps done, all steps, and their mean ``loss``.

    Returns:
        The weights by name, with the ``record`` of their training.

    Raises:
        Diverged: If the loss or a weight is not finite.
        InputError: Without diffusers; for a number out of its range.

    References:
        Ho, Jain and Abbeel (2020), Denoising diffusion probabilistic models, algorithm 1.
    """
    for name, number in (("steps", steps), ("batch_size", batch_size)):
        if number < 1:
            raise InputError(f"{name}: expected at least 1, got {number}.")
    if not 0 < learning_rate < math.inf:
        raise InputError(f"learning_rate: expected a positive number, got {learning_rate}.")
    identity = {
        "name": "diffusion start",
        "digits": digits_digest(),
        "channels": list(task.channels),
        "noise schedule": schedule_digest(),
        "seed": seed,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "code": code_version(),
        "libraries": library_versions(),
    }

    def make(workspace: Path | None) -> tuple[dict[str, Weights], dict[str, Any]]:
        with one_thread():
            network = build_network(task, seed_hash(seed, "network"))
            optimisation = Optimisation(
                parameters=dict(network.named_parameters()),
                loss=functools.partial(_loss, network, noise_schedule(), seed, batch_size),
                learning_rate=functools.partial(_learning_rate, learning_rate, steps),
                steps=steps,
                stretch=STRETCH,
                identity=key_of(identity),
                state_file=None if workspace is None else workspace / "state.bin",
                on_progress=on_progress,
            )
            try:
                optimisation.run()
            except Diverged as diverged:
                return {}, {"status": "diverged", "step": diverged.step, "message": str(diverged)}
        record = {
            "status": "finished",
            "steps": steps,
            "losses": optimisation.losses,
            "seconds": round(optimisation.seconds, 3),
        }
        return {"last": {name: x.detach().clone() for name, x in network.state_dict().items()}}, record

    weights, record = make(None) if store is None else store.get_or_make("diffusion-starts", identity, make)
    if record["status"] == "diverged":
        raise Diverged(record["message"], record["step"])
    return StoredWeights(weights["last"], record)


def _learning_rate(highest: float, steps: int, step: int) -> float:
    return highest * min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2


def _loss(network: Any, schedule: Any, seed: int, batch_size: int, step: int) -> torch.Tensor:
    images, labels = (torch.tensor(array) for array in real_digits())
    random = generator("diffusion start", seed, step)
    rows = torch.randint(len(images), (batch_size,), generator=random)
    times = torch.randint(TIMESTEPS, (batch_size,), generator=random)
    noise = torch.randn(images[rows].shape, generator=random)
    noised = schedule.add_noise(images[rows], noise, times)
    predicted: torch.Tensor = network(noised, times, class_labels=labels[rows]).sample
    return (noise - predicted).square().mean()
