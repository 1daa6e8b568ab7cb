"""Two experts on a line and quadratic rewards: what a sweep is tried on, without torch."""

import numpy as np

from mirepoix.rewards import Expert, simplex_lattice

TARGETS = np.random.default_rng(0).normal(size=(2, 4, 3))  # rewards, items, parameters


def expert(name, values, **options):
    weights = {"w": np.array(values, dtype=float), "count": np.array(7)}
    return Expert(**{"name": name, "reward": name, "weights": weights, "start": "one start", **options})


A, B = expert("a", [1.0, 0.0, 0.5]), expert("b", [0.0, 1.0, 0.1])
LINE = simplex_lattice(["a", "b"], 4)


def evaluate(theta):
    """Quadratic rewards: one target per reward and item."""
    values = -((theta["w"] - TARGETS) ** 2).sum(axis=-1)
    return {"a": values[0], "b": values[1]}
