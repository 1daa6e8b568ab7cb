"""The perceptron that serves as a discriminator."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["mlp"]


def mlp(inputs: int, outputs: int, *, width: int, depth: int, dropout: float, seed: int) -> nn.Sequential:
    """``depth`` linear layers, with dropout and then a ReLU between them, as in DomainBed.

    The weights depend on ``seed`` alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers: list[nn.Module] = []
        for place in range(depth - 1):
            layers += [nn.Linear(width if place else inputs, width), nn.Dropout(dropout), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(width, outputs))
