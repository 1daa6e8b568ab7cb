"""Robots that walk: PPO on gymnasium's MuJoCo environments, one reward for each price of action."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mirepoix.fronts._files import write_soup
from mirepoix.fronts._recipe import FrontRecipe, changed, table_of
from mirepoix.fronts._subject import Place, told
from mirepoix.recipe import Count
from mirepoix.rewards import Expert
from mirepoix.rewards.control import (
    Locomotion,
    PolicyEvaluation,
    PPORun,
    PPOTrainer,
    initial_policy,
    policy_expert,
)
from mirepoix.store import cached
from mirepoix.types import InputError, Weights

__all__ = ["LocomotionSubject", "build", "tables"]

START = {"reward": dict[str, float], "hidden": tuple[int, ...]}
EVALUATION = {"episodes": Count}


def task_of(values: Mapping[str, Any]) -> Locomotion:
    """Environment and rewards."""
    return changed("task", lambda: Locomotion(**table_of("task", Locomotion, values)))


def run_of(key: str, values: Mapping[str, Any]) -> PPORun:
    """The configuration of a training."""
    return changed(key, lambda: PPORun(**table_of(key, PPORun, values, without=("seed", "collect"))))


def start_of(values: Mapping[str, Any]) -> tuple[PPORun, dict[str, Any]]:
    """The configuration of the start, and what is not of its run."""
    own = {name: value for name, value in values.items() if name in START}
    rest = {name: value for name, value in values.items() if name not in START}
    return run_of("start", rest), table_of("start", START, own)


def tables(subject: str) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    """The tables of the recipes."""
    return {
        "task": task_of,
        "start": start_of,
        "run": lambda values: run_of("run", values),
        "evaluation": lambda values: table_of("evaluation", EVALUATION, values),
    }


def build(recipe: FrontRecipe, place: Place, seed: int) -> LocomotionSubject:
    """The subject for one seed, of the start and of the trainings."""
    return LocomotionSubject(recipe, place, seed)


class LocomotionSubject:
    """Policies of one environment."""

    def __init__(self, recipe: FrontRecipe, place: Place, seed: int) -> None:
        self.recipe, self.place, self.seed = recipe, place, seed
        self.task = task_of(recipe.task)
        start, options = start_of(recipe.start)
        self.start_run, self.run = start.with_(seed=seed), run_of("run", recipe.run).with_(seed=seed)
        self.start_reward = dict(options.get("reward") or dict.fromkeys(self.task.rewards, 1.0))
        self.hidden = options.get("hidden", (64, 64))
        self.episodes = int(recipe.evaluation.get("episodes", 6))
        self.rewards = self.task.rewards
        self.start_steps = self.start_run.rollouts * self.start_run.rollout_size
        self.steps = self.run.rollouts * self.run.rollout_size
        self._start: Weights | None = None
        self._judge: PolicyEvaluation | None = None
        wanted = [*recipe.front.experts, *recipe.front.also]
        unknown = [name for name in wanted if name not in self.rewards]
        if unknown:
            raise InputError(
                f"front.experts: there is no reward {unknown[0]!r}; task.alphas has {', '.join(self.rewards)}."
            )

    @property
    def judge(self) -> PolicyEvaluation:
        """The simulators."""
        if self._judge is None:
            self._judge = PolicyEvaluation(self.task, self.start(), seeds=range(self.episodes))
        return self._judge

    @property
    def inputs(self) -> str:
        """Names the task."""
        return self.task.digest

    @property
    def evaluation(self) -> str:
        """Names task, episodes and statistics."""
        return self.judge.digest

    def facts(self) -> list[tuple[str, str]]:
        """As the report says it."""
        prices = ", ".join(f"{name} {alpha:g}" for name, alpha in self.task.alphas.items())
        own = ", ".join(f"{name} {share:g}" for name, share in self.start_reward.items())
        return [
            (
                "Task",
                f"{self.task.environment}: velocity minus a price times the squared length of the action, summed over "
                f"an episode. Prices: {prices}.",
            ),
            ("Start", f"PPO from random weights, {self.start_steps:,} steps, by the rewards {own}."),
            ("Training", f"PPO, {self.steps:,} steps, learning rate {self.run.learning_rate:g}."),
            ("Evaluation", f"{self.episodes} episodes, the same for all weights, by the mean actions."),
        ]

    def rehearse(self) -> None:
        """The environment is made, and the rewards of the start are there."""
        self.task.shares(self.start_reward)
        self.task.make().close()

    def start(self) -> Weights:
        """Trained from random weights; it gathers the statistics of the observations."""
        if self._start is None:
            first = initial_policy(self.task, seed=self.seed, hidden=self.hidden)
            trainer = PPOTrainer(reward=self.start_reward, gather=True, on_progress=self._told())
            self._start = cached(trainer, self.place.store)(first, self.task, self.start_run)
        assert self._start is not None
        return self._start

    def train(self, reward: Mapping[str, float]) -> Weights:
        """A fine-tuned policy."""
        trainer = PPOTrainer(reward=reward, on_progress=self._told())
        found: Weights = cached(trainer, self.place.store)(self.start(), self.task, self.run)
        return found

    def _told(self) -> Any:
        return told(self.place.progress, self.rewards)

    def expert(self, name: str, theta: Weights) -> Expert:
        """With its start and its statistics."""
        return policy_expert(name, theta, self.start())

    def evaluate(self, theta: Weights) -> Mapping[str, Any]:
        """Returns of the episodes."""
        return self.judge(theta)

    def ensemble(self, thetas: Mapping[str, Weights], coefficients: Mapping[str, float]) -> Mapping[str, Any]:
        """Mean actions averaged."""
        return self.judge.ensemble(thetas, coefficients)

    def items(self, count: int) -> list[dict[str, Any]]:
        """None: a walk is not shown."""
        return []

    def answers(self, theta: Weights, count: int) -> list[Any]:
        """None."""
        return []

    def export(self, thetas: Mapping[str, Weights], coefficients: Mapping[str, float], folder: Path) -> str:
        """A file of weights, statistics included."""
        return write_soup(thetas, coefficients, folder)

    def close(self) -> None:
        """Free the simulators."""
        if self._judge is not None:
            self._judge.close()
            self._judge = None
