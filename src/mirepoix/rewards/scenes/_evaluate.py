"""The rewards of a network on held-out scenes: the most probable answers, each reward of each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import metadata

import numpy as np
from numpy.typing import NDArray

from mirepoix.rewards.scenes._network import SceneNetwork, decode
from mirepoix.rewards.scenes._renderer import Part
from mirepoix.rewards.scenes._start import LIBRARIES
from mirepoix.rewards.scenes._task import SceneTask, Scores, code_digest
from mirepoix.store import key_of
from mirepoix.types import InputError, Weights

__all__ = ["SceneEvaluation"]

CHUNK = 125
"""Images at once. Always the same number, as the bits of a product depend on it."""


class SceneEvaluation:
    """``evaluate(theta)``: every reward of the answer to each example.

    Answers are greedy: the most probable word each time, so they depend on the image and theta alone. The same
    examples serve all weights, which are written into one network in place.

    Args:
        task: Scenes, words and rewards.
        start: Weights of the architecture of all that will be evaluated: usually the start.
        part: ``validation`` to choose, ``test`` to report.
        examples: How many of that part, its first.

    Attributes:
        rewards: The names of the rewards, those of the task.
        digest: A text that names the evaluation: task, examples, code of the network, versions of the libraries.

    Raises:
        InputError: For a part that is not there or does not have so many examples, or if the weights do not fit.

    Example:
        >>> evaluate = SceneEvaluation(task, start)  # doctest: +SKIP
        >>> evaluate(start)["rouge"].mean()  # doctest: +SKIP
        0.706
    """

    def __init__(self, task: SceneTask, start: Weights, *, part: Part = "test", examples: int = 500) -> None:
        there = task.examples(part)
        if not 1 <= examples <= len(there):
            raise InputError(
                f"examples: expected 1 to {len(there)}, as many as the task has in {part!r}, got {examples}."
            )
        self.task, self.part = task, part
        self._examples = there.take(range(examples))
        self._networks = [SceneNetwork(task, start)]
        self._start = start

    @property
    def rewards(self) -> tuple[str, ...]:
        """The names of the rewards, in the order of the task."""
        return self.task.rewards

    @property
    def digest(self) -> str:
        """What decides the numbers, beside the weights."""
        return key_of(
            {
                "task": self.task.digest,
                "part": self.part,
                "examples": len(self._examples),
                "code": code_digest("_network.py", "_evaluate.py"),
                "libraries": {name: metadata.version(name) for name in LIBRARIES},
            }
        )

    def __call__(self, theta: Weights) -> Scores:
        """Every reward of each example.

        Raises:
            InputError: If theta has another architecture than the start.
        """
        return self._score(self._say(self._loaded({"theta": theta}), [1.0]))

    def ensemble(self, thetas: Mapping[str, Weights], coefficients: Mapping[str, float]) -> Scores:
        r"""Every reward of the functional ensemble, whose next word is the most probable in the mixture of all.

        .. math:: \arg\max_v \sum_i \lambda_i \, p_{\theta_i}(v | y_{<t}, x)

        It costs one network for each expert and word, those with :math:`\lambda_i = 0` included.

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
        return self._score(self._say(self._loaded(thetas), [share / total for share in shares.values()]))

    def answers(self, theta: Weights, count: int | None = None) -> list[str]:
        """What these weights say to the first examples; to all by default."""
        count = self._count(count)
        return self._say(self._loaded({"theta": theta}), [1.0], count)

    def prompts(self, count: int | None = None) -> list[str]:
        """What is asked in the first examples; empty texts where nothing is."""
        return self._examples.prompts[: self._count(count)]

    def images(self, count: int | None = None) -> NDArray[np.uint8]:
        """The first images: (count, 32, 32)."""
        return self._examples.images[: self._count(count)].copy()

    def references(self, count: int | None = None) -> list[list[str]]:
        """True answers to the first examples."""
        return [list(texts) for texts in self._examples.references[: self._count(count)]]

    def _count(self, count: int | None) -> int:
        if count is None:
            return len(self._examples)
        if not 1 <= count <= len(self._examples):
            raise InputError(f"count: expected 1 to {len(self._examples)} examples, got {count}.")
        return count

    def _loaded(self, thetas: Mapping[str, Weights]) -> list[SceneNetwork]:
        while len(self._networks) < len(thetas):
            self._networks.append(SceneNetwork(self.task, self._start))
        for network, (name, theta) in zip(self._networks, thetas.items(), strict=False):
            network.write_(theta, name if name == "theta" else f"expert {name!r}")
        return self._networks[: len(thetas)]

    def _say(
        self, networks: Sequence[SceneNetwork], shares: Sequence[float], count: int | None = None
    ) -> list[str]:
        said: list[str] = []
        for first in range(0, len(self._examples) if count is None else count, CHUNK):
            rows = slice(first, first + CHUNK)
            decoded = decode(networks, shares, self._examples.images[rows], self._examples.prompts[rows])
            said += networks[0].texts(decoded)
        return said if count is None else said[:count]

    def _score(self, answers: Sequence[str]) -> Scores:
        return self.task.score(self._examples, range(len(self._examples)), answers)
