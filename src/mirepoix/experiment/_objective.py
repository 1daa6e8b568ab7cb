"""The criterion that a recipe names, for the network and the source domains of one split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mirepoix.data import Split
from mirepoix.experiment._start import Start
from mirepoix.objectives import Objective
from mirepoix.objectives._named import model_facts, objective

__all__ = ["objective_for"]


def objective_for(start: Start, split: Split, name: str, options: Mapping[str, Any]) -> Objective:
    """The criterion of a name with its options, told what it must know of the model and of the data.

    Args:
        start: The network; a criterion with a second featurizer begins with a copy of this one.
        split: Whose source domains are trained on.
        name: One of `mirepoix.objectives.OBJECTIVES`.
        options: The hyperparameters.
    """

    def featurizer() -> nn.Module:
        network = start.network.build()
        network.load_state_dict(dict(start.theta))
        return network.featurizer

    tell: dict[str, Any] = {
        "features": lambda: start.network.build_empty().feature_size,
        "classes": lambda: start.network.classes,
        "domains": lambda: len(split.train),
        "channels": lambda: start.network.channels,
        "featurizer": lambda: featurizer,
    }
    return objective(name, **{fact: tell[fact]() for fact in model_facts(name)}, **options)
