"""The rewards of a diffusion model: the same noise and the same wanted digits for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mirepoix.rewards.diffusion._digits import DigitDiffusion
from mirepoix.rewards.diffusion._libraries import code_version, library_versions, one_thread
from mirepoix.rewards.diffusion._network import TIMESTEPS, build_network, load_, schedule_digest
from mirepoix.rewards.diffusion._samples import balanced_labels
from mirepoix.rewards.diffusion._sampling import CHUNK, draw_noise, sample_with
from mirepoix.store import key_of
from mirepoix.types import InputError, Weights

__all__ = ["DiffusionEvaluation"]

Values = dict[str, NDArray[np.float64]]
"""From the name of a reward to its value for each image, shape (images,)."""

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class DiffusionEvaluation:
    r"""``evaluate(theta)``: every reward of every image that the weights draw.

    Images are sampled by DDIM without noise on the way, so an image depends on its first noise, its digit and theta
    alone, and those are the same for all theta: differences between models are paired. Weights are written into one
    network in place; nothing is built for a further theta. It takes one thread, always, so that the bits do not
    depend on the machine's setting.

    Args:
        task: Rewards and widths. All three rewards are measured, also those that nothing is trained on.
        start: Weights of the architecture of all that will be evaluated: usually the start.
        images: How many, the digits 0 to 9 in turn.
        seed: Of the first noise. It is another one than that of the images of the trainings, whatever their seed.
        steps: Of DDIM.

    Attributes:
        rewards: The names of the rewards.
        digest: A text that names the evaluation: task, images, seed, steps, code, versions of libraries.

    Raises:
        InputError: Without diffusers; for a number out of its range; if the start does not fit the task.

    Example:
        >>> evaluate = DiffusionEvaluation(task, start)  # doctest: +SKIP
        >>> evaluate(start)["boldness"].shape  # doctest: +SKIP
        (256,)

    References:
        Song, Meng and Ermon (2021), Denoising diffusion implicit models, equation 12 with sigma 0.
    """

    def __init__(
        self, task: DigitDiffusion, start: Weights, *, images: int = 256, seed: int = 0, steps: int = 25
    ) -> None:
        if images < 1:
            raise InputError(f"images: expected at least 1, got {images}.")
        if not 1 <= steps <= TIMESTEPS:
            raise InputError(f"steps: expected 1 to {TIMESTEPS}, got {steps}.")
        self.task, self.images, self.seed, self.steps = task, images, seed, steps
        self._labels = balanced_labels(images)
        self._noise = draw_noise(images, "evaluation", seed)
        self._networks: list[Any] = []
        self._place(0, start, "start")

    @property
    def rewards(self) -> tuple[str, ...]:
        """The names of the rewards: those of the task first, then those that nothing is trained on."""
        return self.task.measured

    @property
    def digest(self) -> str:
        """What decides the numbers, beside the weights."""
        return key_of(
            {
                "task": self.task.digest,
                "images": self.images,
                "seed": self.seed,
                "steps": self.steps,
                "noise schedule": schedule_digest(),
                "code": code_version(),
                "libraries": library_versions(),
            }
        )

    def __call__(self, theta: Weights) -> Values:
        """Every reward of every image.

        Raises:
            InputError: If theta is of another architecture, or not finite.
        """
        return self._score(self._draw([self._place(0, theta, "theta")], [1.0], self.images))

    def ensemble(self, thetas: Mapping[str, Weights], coefficients: Mapping[str, float]) -> Values:
        r"""Every reward of the functional ensemble, whose noise prediction is
        :math:`\sum_i \lambda_i \, \epsilon_{\theta_i}(x_t, t, c)` at each step of DDIM.

        It costs one forward pass for each expert and step, those with :math:`\lambda_i = 0` included.

        Args:
            thetas: Weights by name.
            coefficients: :math:`\lambda_i` by the same names, on the simplex.

        Raises:
            InputError: As in a call; if names differ, or the coefficients are not on the simplex.
        """
        if not thetas or set(thetas) != set(coefficients):
            raise InputError(
                f"coefficients: expected one for each expert ({', '.join(sorted(thetas))}), "
                f"got {', '.join(sorted(coefficients)) or 'none'}."
            )
        shares = {name: float(coefficients[name]) for name in thetas}
        total = math.fsum(shares.values())
        if not (min(shares.values()) >= 0 and abs(total - 1) <= 1e-6):
            raise InputError(f"coefficients: expected numbers of 0 or more that sum to one, got {shares}.")
        members = [
            self._place(i, theta, f"expert {name!r}") for i, (name, theta) in enumerate(thetas.items())
        ]
        return self._score(self._draw(members, [share / total for share in shares.values()], self.images))

    def images_of(self, theta: Weights, count: int) -> NDArray[np.uint8]:
        """The first images of the evaluation, ``(count, 8, 8)``: 0 is paper, 255 is ink.

        Raises:
            InputError: As in a call; for more images than the evaluation has.
        """
        self._check_count(count)
        drawn = self._draw([self._place(0, theta, "theta")], [1.0], count)
        return np.rint((drawn[:count, 0].astype(np.float64) + 1) * 127.5).astype(np.uint8)

    def prompts(self, count: int) -> list[str]:
        """What the first images were asked to show, such as "a seven".

        Raises:
            InputError: For more than the evaluation has images.
        """
        self._check_count(count)
        return [f"{'an' if digit == 8 else 'a'} {WORDS[digit]}" for digit in self._labels[:count]]

    def _check_count(self, count: int) -> None:
        if not 1 <= count <= self.images:
            raise InputError(
                f"count: expected 1 to {self.images}, the images of the evaluation, got {count}."
            )

    def _place(self, index: int, theta: Weights, owner: str) -> Any:
        """One of the networks, with theta in it."""
        while len(self._networks) <= index:
            self._networks.append(build_network(self.task).eval().requires_grad_(False))
        load_(self._networks[index], theta, owner)
        return self._networks[index]

    def _draw(self, members: Sequence[Any], shares: Sequence[float], count: int) -> NDArray[np.float32]:
        """The first images, and what fills their last chunk."""

        def predict(images: torch.Tensor, time: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            # In double precision, so that an ensemble of copies is the copy.
            total = torch.zeros(images.shape, dtype=torch.float64)
            for member, share in zip(members, shares, strict=True):
                total += share * member(images, time, class_labels=labels).sample.double()
            return total.to(images.dtype)

        count = min(self.images, -(-count // CHUNK) * CHUNK)
        with one_thread():
            return sample_with(
                predict, self._noise[:count], torch.from_numpy(self._labels[:count]), self.steps
            )

    def _score(self, images: NDArray[np.float32]) -> Values:
        return self.task.score(images, self._labels)
