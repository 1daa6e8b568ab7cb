r"""``Train(theta, task; run)`` for diffusion models: offline, reward-weighted likelihood, in one round.

The start generates images once, the scalar reward drops the worse half, and the rest is learned again, the better an
image the heavier. Nothing is generated during the training, so an expert and a MORL run differ in which images are
kept and in their weights alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards._normalise import zscore
from mirepoix.rewards.diffusion._digits import DigitDiffusion
from mirepoix.rewards.diffusion._libraries import code_version, library_versions, one_thread
from mirepoix.rewards.diffusion._loss_weights import best_of, loss_weights
from mirepoix.rewards.diffusion._network import (
    TIMESTEPS,
    build_network,
    load_,
    noise_schedule,
    schedule_digest,
    trainable_names,
)
from mirepoix.rewards.diffusion._optimise import Optimisation, Progress
from mirepoix.rewards.diffusion._run import DiffusionRun
from mirepoix.rewards.diffusion._samples import generated_images
from mirepoix.seeds import generator
from mirepoix.store import Store, StoredWeights, key_of
from mirepoix.types import Diverged, InputError, Weights

__all__ = ["DiffusionTrainer"]


@dataclass(frozen=True, kw_only=True)
class DiffusionTrainer:
    r"""``Train(theta, D; c)`` with the reward :math:`r = \sum_k \mu_k (R_k - m_k) / s_k`: an expert, or a MORL run.

    The start generates images :math:`x_i` for the digits :math:`c_i`, the same for every reward. The means
    :math:`m_k` and standard deviations :math:`s_k` of the rewards on them are the constants that bring rewards to a
    common scale. The images with the highest :math:`r` are kept, and the trainable parameters descend on

    .. math::
        \sum_i w_i \lVert \epsilon - \epsilon_\theta(x_{i,t}, t, c_i) \rVert^2, \qquad
        w_i \propto \min\left(\exp \frac{r_i - \bar r}{s}, \text{clip}\right),

    where :math:`\bar r` and :math:`s` are those of the kept images and the mean weight is 1; the sum is averaged over
    batch and pixels. The weights do not change when all :math:`\mu_k` are multiplied by a positive number.

    Deterministic given its arguments, on CPU with one thread, which it always takes: a network this small is not
    faster on an accelerator.

    Attributes:
        reward: From the name of a reward to its coefficient :math:`\mu_k`, used as given; those not named count 0.
            ``{"legibility": 1}`` trains an expert.
        store: Where results and generated images are kept, by what they were made of; a training that was killed
            continues there with the same bits. Without one images are generated for each training.
        on_progress: Called after each ``checkpoint_every`` steps with the steps done, all steps, and ``loss``.

    Example:
        >>> expert = DiffusionTrainer(reward={"legibility": 1.0})
        >>> compromise = DiffusionTrainer(reward={"legibility": 0.5, "boldness": 0.5})  # MORL

    References:
        Ramé et al. (2023), Rewarded soups, the experiment with diffusion models; Lee et al. (2023), Aligning
        text-to-image models using human feedback.
    """

    reward: Mapping[str, float]
    store: Store | None = None
    on_progress: Progress | None = dataclasses.field(default=None, compare=False)

    def made_of(self) -> dict[str, Any]:
        """What the trainer adds to the identity of its results."""
        return {
            "name": "diffusion",
            "reward": {name: float(share) for name, share in sorted(self.reward.items()) if share},
            "noise schedule": schedule_digest(),
            "code": code_version(),
            "libraries": library_versions(),
        }

    def __call__(self, theta: Weights, task: DigitDiffusion, run: DiffusionRun, /) -> Weights:
        """The weights reached from ``theta``; what is not trained has its bits.

        Args:
            theta: Where to start: weights of the task's network, usually those of `diffusion_start`.
            task: Rewards and widths.
            run: The configuration.

        Returns:
            The weights by name, with a ``record``: constants of the rewards (``normaliser``), rewards of the
            generated and of the kept images, the largest weight, the trained share, the losses.

        Raises:
            Diverged: If the loss or a weight is not finite any more; a store remembers it.
            InputError: If theta does not fit the task; for a reward that is not there, or that is the same for all
                generated images.
        """
        task.shares(self.reward)
        identity = {
            "theta": fingerprint(theta),
            "task": task.digest,
            "run": {name: value for name, value in run.to_dict().items() if name != "checkpoint_every"},
            "train": self.made_of(),
        }

        def make(workspace: Path | None) -> tuple[dict[str, Weights], dict[str, Any]]:
            try:
                with one_thread():
                    return self._fit(theta, task, run, identity, workspace)
            except Diverged as diverged:
                return {}, {"status": "diverged", "step": diverged.step, "message": str(diverged)}

        store = self.store
        weights, record = (
            make(None) if store is None else store.get_or_make("diffusion-experts", identity, make)
        )
        if record["status"] == "diverged":
            raise Diverged(record["message"], record["step"])
        return StoredWeights(weights["last"], record)

    def _fit(
        self,
        theta: Weights,
        task: DigitDiffusion,
        run: DiffusionRun,
        identity: Mapping[str, Any],
        workspace: Path | None,
    ) -> tuple[dict[str, Weights], dict[str, Any]]:
        network = build_network(task)
        load_(network, theta)
        images, labels = generated_images(network, identity["theta"], run, self.store)
        if not np.isfinite(images).all():
            raise InputError(
                "theta: the images that it generates are not finite, so there is nothing to learn from."
            )
        rewards = task.score(images, labels)
        shares = {
            name: share for name, share in zip(task.rewards, task.shares(self.reward), strict=True) if share
        }
        normaliser = zscore({name: rewards[name] for name in shares})
        scores = np.zeros(len(images))
        for name, share in shares.items():
            scores += share * normaliser.apply_to(name, rewards[name])
        kept = best_of(scores, run.kept)
        weights = loss_weights(scores[kept], run.clip)

        trained = trainable_names(network, run.trainable)
        parameters = dict(network.named_parameters())
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in trained)
        data = tuple(
            torch.from_numpy(array) for array in (images[kept], labels[kept], weights.astype(np.float32))
        )
        optimisation = Optimisation(
            parameters={name: parameters[name] for name in trained},
            loss=functools.partial(_loss, network, noise_schedule(), run, data),
            learning_rate=lambda step: run.learning_rate,
            steps=run.steps,
            stretch=run.checkpoint_every,
            identity=key_of(identity),
            state_file=None if workspace is None else workspace / "state.bin",
            on_progress=self.on_progress,
        )
        optimisation.run()
        count = sum(parameters[name].numel() for name in trained)
        record = {
            "status": "finished",
            "steps": run.steps,
            "normaliser": normaliser.to_dict(),
            "generated": {name: float(values.mean()) for name, values in rewards.items()},
            "kept": {name: float(values[kept].mean()) for name, values in rewards.items()},
            "images": {"generated": len(images), "kept": len(kept), "largest weight": float(weights.max())},
            "trained": {
                "parameters": count,
                "share": count / sum(parameter.numel() for parameter in parameters.values()),
            },
            "losses": optimisation.losses,
            "seconds": round(optimisation.seconds, 3),
            "device": "cpu",
        }
        return {"last": {name: x.detach().clone() for name, x in network.state_dict().items()}}, record


def _loss(
    network: Any, schedule: Any, run: DiffusionRun, data: tuple[torch.Tensor, ...], step: int
) -> torch.Tensor:
    """Of one batch, drawn uniformly from the kept images."""
    images, labels, weights = data
    random = generator("diffusion expert", run.seed, step)
    rows = torch.randint(len(images), (run.batch_size,), generator=random)
    times = torch.randint(TIMESTEPS, (run.batch_size,), generator=random)
    noise = torch.randn(images[rows].shape, generator=random)
    noised = schedule.add_noise(images[rows], noise, times)
    predicted = network(noised, times, class_labels=labels[rows]).sample
    errors = (noise - predicted).square().mean(dim=(1, 2, 3))
    weighted: torch.Tensor = (weights[rows] * errors).mean()
    return weighted
