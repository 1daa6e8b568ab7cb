"""Diffusion models of handwritten digits: reward-weighted fine-tuning, one round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mirepoix.fronts._files import data_uri, write_soup
from mirepoix.fronts._recipe import FrontRecipe, changed, table_of
from mirepoix.fronts._subject import Place, default_steps, told
from mirepoix.recipe import Count, Natural
from mirepoix.rewards import Expert
from mirepoix.rewards.diffusion import (
    DiffusionEvaluation,
    DiffusionRun,
    DiffusionTrainer,
    DigitDiffusion,
    diffusion_expert,
    diffusion_start,
)
from mirepoix.types import InputError, Weights

__all__ = ["DiffusionSubject", "build", "tables"]

TASK = {"channels": tuple[int, int]}
START = {"steps": Count, "batch_size": Count, "learning_rate": float}
EVALUATION = {"images": Count, "seed": Natural, "steps": Count}


def run_of(values: Mapping[str, Any]) -> DiffusionRun:
    """The configuration of an expert."""
    return changed("run", lambda: DiffusionRun(**table_of("run", DiffusionRun, values, without=("seed",))))


def task_of(values: Mapping[str, Any], experts: tuple[str, ...] | None = None) -> DigitDiffusion:
    """The digits, and the rewards that experts are trained on."""
    given: dict[str, Any] = {"rewards": experts} if experts else {}
    return changed("task", lambda: DigitDiffusion(**given, **table_of("task", TASK, values)))


def tables(subject: str) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    """The tables of the recipes."""
    return {
        "task": task_of,
        "start": lambda values: table_of("start", START, values),
        "run": run_of,
        "evaluation": lambda values: table_of("evaluation", EVALUATION, values),
    }


def build(recipe: FrontRecipe, place: Place, seed: int) -> DiffusionSubject:
    """The subject for one seed: of the start, of the generated images, and of the trainings."""
    return DiffusionSubject(recipe, place, seed)


class DiffusionSubject:
    """Networks that draw the digits they are asked for."""

    def __init__(self, recipe: FrontRecipe, place: Place, seed: int) -> None:
        self.recipe, self.place, self.seed = recipe, place, seed
        self.task = task_of(recipe.task, tuple(recipe.front.experts))
        self.run = run_of(recipe.run).with_(seed=seed, samples_seed=seed)
        self.options = dict(recipe.start)
        self.rewards = self.task.measured
        self.start_steps = int(self.options.get("steps", default_steps(diffusion_start)))
        self.steps = self.run.steps
        self._start: Weights | None = None
        self._judge: DiffusionEvaluation | None = None
        unknown = [name for name in recipe.front.also if name not in self.rewards]
        if unknown:
            raise InputError(
                f"front.also: there is no reward {unknown[0]!r}; measured are {', '.join(self.rewards)}."
            )

    @property
    def judge(self) -> DiffusionEvaluation:
        """One network, one set of noise."""
        if self._judge is None:
            self._judge = DiffusionEvaluation(self.task, self.start(), **self.recipe.evaluation)
        return self._judge

    @property
    def inputs(self) -> str:
        """Names the task."""
        return self.task.digest

    @property
    def evaluation(self) -> str:
        """Names rewards, noise and sampler."""
        return self.judge.digest

    def facts(self) -> list[tuple[str, str]]:
        """As the report says it."""
        parameters = sum(int(tensor.numel()) for tensor in self.start().values())
        return [
            ("Task", "Handwritten digits of 8 by 8 pixels (scikit-learn's), drawn on demand."),
            ("Start", f"A UNet of {parameters:,} parameters, {self.start_steps:,} steps of denoising."),
            (
                "Training",
                f"One round of reward-weighted fine-tuning, {self.steps} steps on the best "
                f"{100 * self.run.kept:g} % of {self.run.generated:,} generated images"
                + (", norms, biases and embeddings only." if self.run.trainable == "small" else "."),
            ),
            (
                "Evaluation",
                f"{len(self.judge.prompts(self.judge.images)):,} images, the same noise and labels for all weights.",
            ),
        ]

    def rehearse(self) -> None:
        """Nothing is needed but the libraries."""

        from mirepoix.rewards.diffusion._libraries import diffusers

        diffusers()

    def start(self) -> Weights:
        """Trained from random weights."""
        if self._start is None:
            self._start = diffusion_start(
                self.task,
                self.place.store,
                seed=self.seed,
                on_progress=told(self.place.progress, ("loss",)),
                **self.options,
            )
        return self._start

    def train(self, reward: Mapping[str, float]) -> Weights:
        """A tenth of the parameters, fine-tuned."""
        trainer = DiffusionTrainer(
            reward=reward, store=self.place.store, on_progress=told(self.place.progress, ("loss",))
        )
        return trainer(self.start(), self.task, self.run)

    def expert(self, name: str, theta: Weights) -> Expert:
        """With its start and the noise schedule."""
        return diffusion_expert(name, theta, self.start())

    def evaluate(self, theta: Weights) -> Mapping[str, Any]:
        """Rewards of images."""
        return self.judge(theta)

    def ensemble(self, thetas: Mapping[str, Weights], coefficients: Mapping[str, float]) -> Mapping[str, Any]:
        """Predictions of the noise averaged."""
        return self.judge.ensemble(thetas, coefficients)

    def items(self, count: int) -> list[dict[str, Any]]:
        """What is asked for."""
        return [{"prompt": prompt, "image": None} for prompt in self.judge.prompts(count)]

    def answers(self, theta: Weights, count: int) -> list[Any]:
        """Images."""
        return [{"image": data_uri(image)} for image in self.judge.images_of(theta, count)]

    def export(self, thetas: Mapping[str, Weights], coefficients: Mapping[str, float], folder: Path) -> str:
        """A file of weights."""
        return write_soup(thetas, coefficients, folder)

    def close(self) -> None:
        """Let the network go."""
        self._judge = None
