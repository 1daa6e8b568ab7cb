"""Members that are drawn around a trained one: from a Gaussian, or from a simplex of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mirepoix.comparison._recipe import Kind
from mirepoix.data import Split
from mirepoix.seeds import seed_hash
from mirepoix.snapshots import SWAG, laplace_samples, sample_simplex
from mirepoix.training import snapshots
from mirepoix.types import Weights

__all__ = ["draw_members"]


def draw_members(
    kind: Kind, options: Any, model: nn.Module, trained: Sequence[Weights], split: Split, count: int
) -> list[Weights]:
    """Weights of members, whose batch-norm statistics are to be measured again.

    Args:
        kind: ``swag``, ``laplace`` or ``simplex``.
        options: As its table in the recipe.
        model: The network of a member, on the device.
        trained: The weights of member 1, and for ``swag`` the checks of the run from there on; for ``simplex`` all
            vertices.
        split: Whose training images tell the curvature, and whose data seed the draws.
        count: How many.
    """
    seeds = [seed_hash("drawn", kind, place, split.data_seed) for place in range(count)]
    match kind:
        case "swag":
            gaussian = SWAG(snapshots(trained[1]).values(), rank=options.rank)
            return [gaussian.sample(seed, options.scale) for seed in seeds]
        case "laplace":
            drawn = laplace_samples(
                model, trained[0], split, count=count, seed=seeds[0], **options.model_dump()
            )
            return list(drawn)
        case _:
            return [sample_simplex(trained, seed) for seed in seeds]
