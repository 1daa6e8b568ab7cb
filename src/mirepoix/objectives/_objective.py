"""The contract of a training criterion: one scalar from a model and one minibatch per source domain."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mirepoix.objectives._owned import Owned
from mirepoix.types import Batch, InputError, Outputs

__all__ = ["Objective"]


class Objective(nn.Module, ABC):
    """A training criterion; it owns its extra parameters and its state.

    A new criterion writes `forward`, which may leave terms of the loss in ``parts``, for the log. The few that
    edit gradients or take inner steps override `step`. What it must carry through an interruption belongs into
    parameters and buffers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Tensor] = {}
        """What `forward` leaves for the log beside the loss: the terms of it, detached."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a criterion with options of its own that does not name them in `configuration`."""
        super().__init_subclass__(**options)
        own = cls.__dict__.get("__init__")
        takes_options = own is not None and len(inspect.signature(own).parameters) > 1
        if takes_options and "configuration" not in cls.__dict__:
            raise TypeError(
                f"{cls.__name__} takes options, so it must define configuration() and return them: results are "
                "looked up by what they were made of, and two options must not share one result."
            )

    @abstractmethod
    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The scalar to minimise, from one minibatch per source domain."""

    def configuration(self) -> Mapping[str, Any]:
        """The hyperparameters, as plain values: part of what a result is made of."""
        return {}

    def begins(self) -> int:
        """The first update, from 0, at which it is what it is called; a shorter training never sees that."""
        return 0

    def trained_with_network(self) -> list[nn.Parameter]:
        """Its own parameters that the optimizer given to `step` is to hold beside those of the network.

        Those of an `Owned` module are not among them.
        """
        owned = {
            id(parameter)
            for module in self.modules()
            if isinstance(module, Owned)
            for parameter in module.parameters()
        }
        return [parameter for parameter in self.parameters() if id(parameter) not in owned]

    def predict(self, model: nn.Module, images: Tensor) -> Outputs:
        """What the trained model returns for images, none of whose labels or domains is known.

        Most criteria leave a network that needs nothing else; a few predict with parts of their own.
        """
        outputs: Outputs = model(images)
        return outputs

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, Tensor]:
        """Make one update and return the scalars to log, without waiting for the device.

        Args:
            model: Returns `mirepoix.types.Outputs` for a batch of images.
            batches: One per source domain.
            optimizer: Holds the parameters to update: those of the model, and `trained_with_network`.
            scaler: Scales the loss in half precision; without one, or switched off, nothing is scaled.
        """
        optimizer.zero_grad(set_to_none=True)
        loss = self(model, batches)
        _check_loss(self, loss)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return {"loss": loss.detach(), **self.parts}


def _check_loss(owner: Objective, loss: object) -> None:
    """Refuse what is no scalar to differentiate."""
    if isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad:
        return
    got = f"a {type(loss).__name__}"
    if isinstance(loss, Tensor):
        got = f"a tensor of shape {tuple(loss.shape)}" if loss.ndim else "one that depends on no parameter"
    raise InputError(
        f"{type(owner).__name__}.forward must return one scalar tensor that depends on what is trained, got {got}; "
        "take the mean of a loss per sample, and do not detach it."
    )
