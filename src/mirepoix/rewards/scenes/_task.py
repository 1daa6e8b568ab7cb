"""What a network is to say about scenes, and the rewards of what it says."""

from __future__ import annotations

import functools
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mirepoix.rewards.scenes._renderer import PARTS, Part, Scene
from mirepoix.store import key_of
from mirepoix.types import InputError

__all__ = ["SceneExamples", "SceneTask", "code_digest"]

Scores = dict[str, NDArray[np.float64]]
"""From the name of a reward to its value for each answer, shape (answers,)."""


@dataclass(frozen=True, eq=False, slots=True)
class SceneExamples:
    """Images with true answers.

    Attributes:
        images: uint8, shape (examples, 32, 32).
        prompts: Words that begin the answer and are given to the decoder; empty texts where nothing is asked.
        references: The true answers of each, at least one; words of the vocabulary with spaces between.
        scenes: What is on each image.
    """

    images: NDArray[np.uint8]
    prompts: list[str]
    references: list[list[str]]
    scenes: list[Scene]

    def __post_init__(self) -> None:
        counts = {len(self.images), len(self.prompts), len(self.references), len(self.scenes)}
        if len(counts) != 1:
            raise InputError(
                "examples: expected as many images as prompts, references and scenes, got "
                f"{len(self.images)}, {len(self.prompts)}, {len(self.references)}, {len(self.scenes)}."
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Sequence[int]) -> SceneExamples:
        """The examples of these rows, in this order."""
        return SceneExamples(
            self.images[list(rows)],
            [self.prompts[row] for row in rows],
            [self.references[row] for row in rows],
            [self.scenes[row] for row in rows],
        )


@dataclass(frozen=True, kw_only=True)
class SceneTask(ABC):
    """Scenes, words and rewards; the same for all experts of one soup.

    A task of one's own is a frozen dataclass that states the class attributes and defines ``make`` and ``measure``.

    Attributes:
        seed: Of the scenes.
        train: Examples of this part.
        validation: Likewise; of other handwriting than the others.
        test: Likewise.
        name: Of the task.
        rewards: The names of all that is measured; all are maximised.
        trained: Those of them that experts are trained on by default.
        vocabulary: All words of prompts and answers.
        longest: The most tokens of an answer, its end included: at least one more than the longest true one has words.
        longest_prompt: The most words of a prompt.
        cross_entropy: The weight of the cross-entropy of a true answer in the loss of the reinforcement learning.
        files: The files of this folder that decide examples and scores, beside those of every task.

    Raises:
        InputError: For a part without examples.
    """

    seed: int = 0
    train: int = 4000
    validation: int = 500
    test: int = 1000

    name: ClassVar[str]
    rewards: ClassVar[tuple[str, ...]]
    trained: ClassVar[tuple[str, ...]]
    vocabulary: ClassVar[tuple[str, ...]]
    longest: ClassVar[int]
    longest_prompt: ClassVar[int] = 0
    cross_entropy: ClassVar[float] = 0.0
    files: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for part in PARTS:
            if getattr(self, part) < 1:
                raise InputError(f"{part}: expected at least 1 example, got {getattr(self, part)}.")

    @abstractmethod
    def make(self, part: Part, count: int) -> SceneExamples:
        """The examples of a part, made anew; a function of the fields alone."""

    @abstractmethod
    def measure(self, examples: SceneExamples, rows: Sequence[int], answers: Sequence[str]) -> Scores:
        """Every reward of each answer, to the example with the row beside it."""

    def examples(self, part: Part) -> SceneExamples:
        """The examples of a part, made once.

        Raises:
            InputError: For a part that is not there.
        """
        if part not in PARTS:
            raise InputError(f"part: expected one of {', '.join(PARTS)}, got {part!r}.")
        return _examples(self, part)

    def score(self, examples: SceneExamples, rows: Sequence[int], answers: Sequence[str]) -> Scores:
        """Every reward of each answer.

        Args:
            examples: What was asked.
            rows: For each answer, to which of the examples it belongs; a row may come several times.
            answers: Words with spaces between; an empty text is an answer too.

        Raises:
            InputError: If there are not as many rows as answers, or there is no such row.
            FloatingPointError: If a reward is not finite.
        """
        rows = [int(row) for row in rows]
        if len(rows) != len(answers):
            raise InputError(f"rows: expected one for each of {len(answers)} answers, got {len(rows)}.")
        wrong = next((row for row in rows if not 0 <= row < len(examples)), None)
        if wrong is not None:
            raise InputError(f"rows: expected numbers from 0 to {len(examples) - 1}, got {wrong}.")
        found = self.measure(examples, rows, list(answers))
        scores = {name: np.asarray(found[name], dtype=np.float64) for name in self.rewards}
        for name, values in scores.items():
            if values.shape != (len(answers),) or not np.isfinite(values).all():
                raise FloatingPointError(
                    f"reward {name!r}: expected a finite number for each answer, got {values}."
                )
        return scores

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a record."""
        return {"name": self.name, **asdict(self)}

    @property
    def digest(self) -> str:
        """A text that names the content of the task: fields, words, and the code of examples and rewards."""
        return _digest(self)

    @property
    def words(self) -> str:
        """A text that names the vocabulary."""
        return key_of({"vocabulary": list(self.vocabulary)})

    def shares(self, reward: Mapping[str, float]) -> tuple[float, ...]:
        r"""The coefficients :math:`\mu_k` of a scalar reward, in the order of `rewards`; 0 for those not named.

        They are used as given: they need not sum to one, and are not divided by their sum.

        Raises:
            InputError: For a name that is no reward, a coefficient that is not finite, or none but zeros.
        """
        for name, share in reward.items():
            if name not in self.rewards:
                raise InputError(
                    f"reward: there is no reward {name!r}; expected some of {', '.join(self.rewards)}."
                )
            if not math.isfinite(share):
                raise InputError(f"reward[{name!r}]: expected a finite coefficient, got {share}.")
        if not any(reward.values()):
            raise InputError(
                f"reward: expected a coefficient that is not 0, for one of {', '.join(self.rewards)}, got "
                f"{dict(reward)}."
            )
        return tuple(float(reward.get(name, 0.0)) for name in self.rewards)


@functools.lru_cache(maxsize=16)
def _examples(task: SceneTask, part: Part) -> SceneExamples:
    return task.make(part, getattr(task, part))


@functools.lru_cache(maxsize=64)
def _digest(task: SceneTask) -> str:
    return key_of(
        {
            **task.to_dict(),
            "vocabulary": list(task.vocabulary),
            "longest": [task.longest_prompt, task.longest],
            "cross_entropy": task.cross_entropy,
            "rewards": list(task.rewards),
            "code": code_digest("_renderer.py", "_task.py", *task.files),
        }
    )


@functools.cache
def code_digest(*files: str) -> str:
    """A digest of files of this folder."""
    folder = resources.files("mirepoix") / "rewards" / "scenes"
    digest = hashlib.sha256()
    for name in files:
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()[:16]
