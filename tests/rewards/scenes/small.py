"""A task, a configuration and weights so small that a training takes a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from mirepoix.rewards.scenes import SceneExamples, SceneRun, SceneTask, SceneTrainer, render, scene_start
from mirepoix.rewards.scenes._renderer import Part
from mirepoix.rewards.scenes._task import Scores

STROKES = ("thin", "bold")


@dataclass(frozen=True, kw_only=True)
class Strokes(SceneTask):
    """``first ?`` or ``which digit ?`` and its stroke, or stroke and relation: prompts and answers of two lengths."""

    train: int = 40
    validation: int = 10
    test: int = 12

    name: ClassVar[str] = "strokes"
    rewards: ClassVar[tuple[str, ...]] = ("right", "short", "constant")
    trained: ClassVar[tuple[str, ...]] = ("right", "short")
    vocabulary: ClassVar[tuple[str, ...]] = ("first", "which", "digit", "?", *STROKES, "left", "above")
    longest: ClassVar[int] = 4
    longest_prompt: ClassVar[int] = 3

    def make(self, part: Part, count: int) -> SceneExamples:
        images, scenes = render(count, part=part, seed=self.seed, scales=(2.0,))
        prompts, references = [], []
        for place, scene in enumerate(scenes):
            prompts.append("first ?" if place % 3 else "which digit ?")
            stroke, where = scene.digits[0].stroke, scene.relations[0].name.split()[0]
            references.append([stroke, f"{stroke} {where}"])
        return SceneExamples(images, prompts, references, list(scenes))

    def measure(self, examples: SceneExamples, rows: Sequence[int], answers: Sequence[str]) -> Scores:
        said = [answer.split() for answer in answers]
        wanted = [examples.references[row][-1].split() for row in rows]
        right = [len(set(one) & set(two)) / 2 for one, two in zip(said, wanted, strict=True)]
        return {
            "right": np.array(right),
            "short": np.array([1 - len(one) / 4 for one in said]),
            "constant": np.ones(len(said)),
        }


@dataclass(frozen=True, kw_only=True)
class Anchored(Strokes):
    """With cross-entropy in the loss."""

    cross_entropy: ClassVar[float] = 0.5


TASK = Strokes()
RUN = SceneRun(steps=6, batch_size=4, samples=3, learning_rate=3e-3, normaliser_samples=32, seed=1)
START = {"steps": 30, "batch_size": 8, "width": 16, "layers": 2}


@cache
def start() -> dict[str, Any]:
    """A start."""
    return dict(scene_start(TASK, **START))


@cache
def expert(name: str) -> dict[str, Any]:
    """An expert for one reward."""
    return dict(SceneTrainer(reward={name: 1.0})(start(), TASK, RUN))


def same(a: Any, b: Any) -> bool:
    """Whether two weights have the same names and bits."""
    return set(a) == set(b) and all(
        np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes() for name in a
    )
