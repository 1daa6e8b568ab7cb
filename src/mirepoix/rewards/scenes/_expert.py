"""A fine-tuned network of scenes as an expert of a rewarded soup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards._experts import Expert
from mirepoix.rewards.scenes._task import SceneTask
from mirepoix.types import InputError, Weights

__all__ = ["scene_expert"]


def scene_expert(
    name: str,
    theta: Weights,
    start: Weights,
    *,
    task: SceneTask,
    reward: str | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Expert:
    """The expert with these weights, which states its start, its words and how answers are made.

    `mirepoix.rewards.check_experts` then refuses experts of another start or with another vocabulary.

    Args:
        name: What coefficients call it.
        theta: Its weights, as `SceneTrainer` returns them.
        start: The weights it was fine-tuned from.
        task: What it was trained for.
        reward: What it was trained on; the reward of its name by default.
        metrics: Whatever its training reported.

    Raises:
        InputError: If the task has no such reward.
    """
    trained = name if reward is None else reward
    if trained not in task.rewards:
        raise InputError(
            f"expert {name!r}: the task {task.name!r} has no reward {trained!r}; expected one of "
            f"{', '.join(task.rewards)}. Pass reward= if the expert has a name of its own."
        )
    return Expert(
        name=name,
        reward=trained,
        weights=theta,
        start=fingerprint(start),
        metrics=dict(metrics or {}),
        tokenizer=task.words,
        generation={"longest": task.longest, "decoding": "greedy"},
    )
