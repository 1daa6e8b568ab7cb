"""Locomotion the slow and obvious way: loops, float64, the bare simulator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def normalise(observation: Sequence[float], mean: Sequence[float], variance: Sequence[float]) -> list[float]:
    result = []
    for value, centre, spread in zip(observation, mean, variance, strict=True):
        scaled = (float(value) - float(centre)) / math.sqrt(float(spread) + 1e-8)
        result.append(min(max(scaled, -10.0), 10.0))
    return result


def mean_action(theta: Mapping[str, Any], observation: Sequence[float]) -> list[float]:
    """Two tanh layers and a linear one, not clipped."""
    values = list(observation)
    for layer in ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"):
        weight, bias = np.asarray(theta[f"{layer}.weight"]), np.asarray(theta[f"{layer}.bias"])
        values = [
            math.fsum(float(w) * v for w, v in zip(row, values, strict=True)) + float(b)
            for row, b in zip(weight, bias, strict=True)
        ]
        if layer != "action_net":
            values = [math.tanh(value) for value in values]
    return values


def episode(
    bare: Any,
    members: Sequence[tuple[float, Mapping[str, Any]]],
    alphas: Mapping[str, float],
    seed: int,
    steps: int,
) -> dict[str, float]:
    """Every reward of one episode of an ensemble in the bare environment; velocity is read from the simulator."""
    observation, _ = bare.reset(seed=seed)
    totals = dict.fromkeys(alphas, 0.0)
    for _ in range(steps):
        theta = members[0][1]
        seen = normalise(observation, theta["normaliser.mean"], theta["normaliser.variance"])
        means = [(share, mean_action(theta, seen)) for share, theta in members]
        low, high = bare.action_space.low, bare.action_space.high
        action = [
            min(max(sum(share * mean[i] for share, mean in means), float(low[i])), float(high[i]))
            for i in range(len(low))
        ]
        before = float(bare.data.qpos[0])
        observation, _, terminated, _, _ = bare.step(np.array(action, dtype=np.float32))
        velocity = (float(bare.data.qpos[0]) - before) / bare.dt
        for name, alpha in alphas.items():
            totals[name] += velocity - alpha * sum(value * value for value in action)
        if terminated:
            break
    return totals
