"""The part of a network that makes logits of features, for criteria that give it other features."""

from __future__ import annotations

from torch import nn

from mirepoix.types import InputError

__all__ = ["classifier_of"]


def classifier_of(owner: str, model: nn.Module) -> nn.Module:
    """The classifier of a network.

    Raises:
        InputError: If the model has no module of this name.
    """
    classifier = getattr(model, "classifier", None)
    if not isinstance(classifier, nn.Module):
        raise InputError(
            f"{owner} needs a model with a module `classifier` that makes logits of features, got a "
            f"{type(model).__name__} without one; `mirepoix.models.Network` has one."
        )
    return classifier
