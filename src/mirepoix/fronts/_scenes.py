"""Scenes of handwritten digits: captions, boxes of digits that are named, answers to questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from mirepoix.fronts._files import data_uri, write_soup
from mirepoix.fronts._recipe import FrontRecipe, changed, table_of
from mirepoix.fronts._subject import Place, default_steps, told
from mirepoix.recipe import Count, Natural
from mirepoix.rewards import Expert
from mirepoix.rewards.scenes import (
    Captioning,
    Grounding,
    SceneEvaluation,
    SceneRun,
    SceneTask,
    SceneTrainer,
    VisualQuestions,
    scene_expert,
    scene_start,
)
from mirepoix.types import InputError, Weights

__all__ = ["SceneSubject", "build", "tables"]

TASKS: Mapping[str, type[SceneTask]] = {
    "captioning": Captioning,
    "grounding": Grounding,
    "visual-questions": VisualQuestions,
}
WHAT = {
    "captioning": "captions of scenes of two handwritten digits",
    "grounding": "the box of the digit that is named, among others",
    "visual-questions": "answers to questions about scenes of handwritten digits",
}
TASK = {"seed": Natural, "train": Count, "validation": Count, "test": Count}
START = {"steps": Count, "batch_size": Count, "learning_rate": float, "width": Count, "layers": Count}
EVALUATION = {"part": Literal["train", "validation", "test"], "examples": Count}


def run_of(values: Mapping[str, Any]) -> SceneRun:
    """The configuration of an expert."""
    return changed("run", lambda: SceneRun(**table_of("run", SceneRun, values, without=("seed",))))


def tables(subject: str) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    """The tables of the recipes."""
    return {
        "task": lambda values: table_of("task", TASK, values),
        "start": lambda values: table_of("start", START, values),
        "run": run_of,
        "evaluation": lambda values: table_of("evaluation", EVALUATION, values),
    }


def build(recipe: FrontRecipe, place: Place, seed: int) -> SceneSubject:
    """The subject for one seed, of the start and of the trainings; the scenes stay."""
    return SceneSubject(recipe, place, seed)


class SceneSubject:
    """Networks that look at an image and say words."""

    def __init__(self, recipe: FrontRecipe, place: Place, seed: int) -> None:
        self.recipe, self.place, self.seed = recipe, place, seed
        self.task: SceneTask = TASKS[recipe.front.subject](**recipe.task)
        self.run = run_of(recipe.run).with_(seed=seed)
        self.options = dict(recipe.start)
        self.rewards = self.task.rewards
        self.start_steps = int(self.options.get("steps", default_steps(scene_start)))
        self.steps = self.run.steps
        self._start: Weights | None = None
        self._judge: SceneEvaluation | None = None
        wanted = [*recipe.front.experts, *recipe.front.also]
        unknown = [name for name in wanted if name not in self.rewards]
        if unknown:
            raise InputError(
                f"front.experts: there is no reward {unknown[0]!r}; measured are {', '.join(self.rewards)}."
            )

    @property
    def judge(self) -> SceneEvaluation:
        """One network, one set of scenes."""
        if self._judge is None:
            self._judge = SceneEvaluation(self.task, self.start(), **self.recipe.evaluation)
        return self._judge

    @property
    def inputs(self) -> str:
        """Names the task."""
        return self.task.digest

    @property
    def evaluation(self) -> str:
        """Names scenes and rewards."""
        return self.judge.digest

    def facts(self) -> list[tuple[str, str]]:
        """As the report says it."""
        parameters = sum(int(tensor.numel()) for tensor in self.start().values())
        return [
            ("Task", f"{WHAT[self.task.name].capitalize()}; the true answers are known."),
            (
                "Start",
                f"A vision transformer and a decoder, {parameters:,} parameters, {self.start_steps:,} steps of "
                "cross-entropy.",
            ),
            (
                "Training",
                f"Self-critical: {self.steps} steps of {self.run.batch_size} images with {self.run.samples} drawn "
                f"answers each, baseline {self.run.baseline.replace('_', ' ')}.",
            ),
            (
                "Evaluation",
                f"{len(self.judge.prompts()):,} scenes of handwriting that no training saw, the most probable words.",
            ),
        ]

    def rehearse(self) -> None:
        """Every reward of a true answer."""
        examples = self.task.examples("validation")
        self.task.score(examples, [0], [examples.references[0][0]])

    def start(self) -> Weights:
        """Trained from random weights."""
        if self._start is None:
            self._start = scene_start(
                self.task,
                self.place.store,
                seed=self.seed,
                on_progress=told(self.place.progress, ("loss",)),
                **self.options,
            )
        return self._start

    def train(self, reward: Mapping[str, float]) -> Weights:
        """All parameters, fine-tuned."""
        trainer = SceneTrainer(
            reward=reward,
            store=self.place.store,
            on_progress=told(self.place.progress, self.recipe.front.experts),
        )
        return trainer(self.start(), self.task, self.run)

    def expert(self, name: str, theta: Weights) -> Expert:
        """With its start and its words."""
        return scene_expert(name, theta, self.start(), task=self.task)

    def evaluate(self, theta: Weights) -> Mapping[str, Any]:
        """Rewards of answers."""
        return self.judge(theta)

    def ensemble(self, thetas: Mapping[str, Weights], coefficients: Mapping[str, float]) -> Mapping[str, Any]:
        """Probabilities of words averaged."""
        return self.judge.ensemble(thetas, coefficients)

    def items(self, count: int) -> list[dict[str, Any]]:
        """Images, and what is asked about them."""
        return [
            {"prompt": prompt or None, "image": data_uri(image)}
            for prompt, image in zip(self.judge.prompts(count), self.judge.images(count), strict=True)
        ]

    def answers(self, theta: Weights, count: int) -> list[Any]:
        """Words."""
        return list(self.judge.answers(theta, count))

    def export(self, thetas: Mapping[str, Weights], coefficients: Mapping[str, float], folder: Path) -> str:
        """A file of weights."""
        return write_soup(thetas, coefficients, folder)

    def close(self) -> None:
        """Let the network go."""
        self._judge = None
