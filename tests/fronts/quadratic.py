"""Rewards that are quadratic functions of few weights, so that a whole front is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from mirepoix.checkpoints import fingerprint
from mirepoix.fronts import Trial
from mirepoix.rewards import Expert, evaluate_policies, simplex_lattice, sweep

ITEMS = 40
GOALS = {"a": np.array([1.0, 0.0]), "b": np.array([0.0, 1.0])}
ASKED = np.random.default_rng(0).normal(size=(ITEMS, 2))
START = {"w": np.zeros(2)}


def evaluate(theta: Any) -> dict[str, Any]:
    """1 at the goal, less by the squared distance; what is asked shifts the goal a little."""
    found = {name: 1 - ((theta["w"] - goal - 0.05 * ASKED) ** 2).sum(axis=1) for name, goal in GOALS.items()}
    return {**found, "other": np.minimum(found["a"], found["b"])}


def experts() -> list[Expert]:
    return [Expert(name, name, {"w": goal}, start=fingerprint(START)) for name, goal in GOALS.items()]


def trial(name: str = "seed 0", shift: float = 0.0, **options: Any) -> Trial:
    """With a MORL run beside the experts, whose goal is missed by ``shift``."""
    soups = sweep(experts(), simplex_lattice(list(GOALS), 4), evaluate)
    middle = {"w": np.array([0.5 + shift, 0.5 - shift])}
    policies = [*({"w": goal} for goal in GOALS.values()), middle]
    preferences = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 0.5}]
    made: dict[str, Any] = {
        "morl": evaluate_policies(policies, preferences, evaluate),
        "start": sweep([Expert("start", "none", START)], [{"start": 1}], evaluate, label="start"),
        "trainings": {"soup": 2, "morl": 3},
        "seconds": {"soup": 20.0, "morl": 30.0},
        **options,
    }
    return Trial(name, soups, **made)
