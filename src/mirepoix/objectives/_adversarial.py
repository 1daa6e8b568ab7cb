"""Criteria with an adversary: a network and a discriminator of domains, of which one learns in each update."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mirepoix.objectives._mlp import mlp
from mirepoix.objectives._owned import Owned
from mirepoix.objectives._put_back import put_back
from mirepoix.objectives._scheduled import Scheduled
from mirepoix.types import Batch, InputError

__all__ = ["Adversarial"]


class Adversarial(Scheduled):
    """A network that hides the domain of a sample from a discriminator, which learns to tell it.

    A new one makes ``discriminator`` with `own`, and writes `losses`.
    """

    discriminator: Owned

    def __init__(
        self,
        *,
        features: int,
        domains: int,
        d_steps_per_g_step: int,
        beta1: float,
        mlp_width: int,
        mlp_depth: int,
        mlp_dropout: float,
        seed: int,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(domains, bool) and domains == 1:
            raise InputError(
                f"{name} needs at least 2 source domains, or there is nothing to tell apart, got 1; "
                "with one there is ERM."
            )
        self.features = self.whole("features", features)
        self.domains = self.whole("domains", domains, least=2)
        self.d_steps_per_g_step = self.whole("d_steps_per_g_step", d_steps_per_g_step)
        self.mlp_width = self.whole("mlp_width", mlp_width)
        self.mlp_depth = self.whole("mlp_depth", mlp_depth, least=2)
        for option, share in (("beta1", beta1), ("mlp_dropout", mlp_dropout)):
            if not 0 <= share < 1:
                raise InputError(f"{name} needs {option} to be in [0, 1), got {share}.")
        self.beta1, self.mlp_dropout, self.seed = float(beta1), float(mlp_dropout), int(seed)

    def whole(self, name: str, value: float, least: int = 1) -> int:
        """An option that is a whole number."""
        if isinstance(value, bool) or value != value // 1 or not least <= value < math.inf:
            raise InputError(
                f"{type(self).__name__} needs {name} to be a whole number from {least}, got {value!r}."
            )
        return int(value)

    def amount(self, name: str, value: float, usual: float, *, positive: bool = False) -> float:
        """An option that is a weight or a rate."""
        if not 0 <= value < math.inf or (positive and value == 0):
            kind = f"a positive, finite {name}" if positive else f"a finite {name} of 0 or more"
            raise InputError(f"{type(self).__name__} needs {kind}, got {value}; {usual:g} is usual.")
        return float(value)

    def perceptron(self) -> nn.Sequential:
        """From features to domains."""
        return mlp(
            self.features,
            self.domains,
            width=self.mlp_width,
            depth=self.mlp_depth,
            dropout=self.mlp_dropout,
            seed=self.seed,
        )

    def own(self, discriminator: nn.Module, *, lr: float, weight_decay: float) -> Owned:
        """A discriminator, with its Adam."""
        adam = partial(torch.optim.Adam, lr=lr, betas=(self.beta1, 0.9), weight_decay=weight_decay)
        return Owned(discriminator, adam)

    def configuration(self) -> Mapping[str, Any]:
        """The options of the discriminator and of the turns."""
        return {
            "features": self.features,
            "domains": self.domains,
            "d_steps_per_g_step": self.d_steps_per_g_step,
            "beta1": self.beta1,
            "mlp_width": self.mlp_width,
            "mlp_depth": self.mlp_depth,
            "mlp_dropout": self.mlp_dropout,
            "seed": self.seed,
        }

    def resets(self) -> Collection[int]:
        """None."""
        return ()

    @abstractmethod
    def losses(self, model: nn.Module, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """What the network minimises, and what the discriminator does; their terms go to ``parts``."""

    def joined(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels, and domains by their position, of all samples."""
        self.expect("domains", "source domains", self.domains, len(batches))
        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        domains = torch.cat([torch.full_like(batch.labels, place) for place, batch in enumerate(batches)])
        return images, labels, domains

    def expect(self, option: str, what: str, made_for: int, got: int) -> None:
        """Refuse a network or batches that the criterion was not made for."""
        if got != made_for:
            raise InputError(
                f"{type(self).__name__} was made for {made_for} {what}, got {got}; make it with {option}={got}."
            )

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """What the network minimises, a scalar."""
        return self.losses(model, batches)[0]

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, Tensor]:
        """Make one update, of the discriminator or of the network; `loss` is that of the network in both."""
        for group in optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (self.beta1, 0.9)
        turns = self.d_steps_per_g_step
        if (self.updates + 1) % (turns + 1) == turns:
            self.discriminator.requires_grad_(False)
            try:
                return super().step(model, batches, optimizer, scaler)
            finally:
                self.discriminator.requires_grad_(True)
        # Statistics of batch norm that is not frozen would move in the forward pass.
        kept = [(buffer, buffer.detach().clone()) for buffer in (*model.buffers(), *self.buffers())]
        with put_back(kept):
            loss, discriminator = self.losses(model, batches)
        self.discriminator.descend(discriminator)
        self.updates += 1
        return {"loss": loss.detach(), **self.parts}


def told_apart(logits: Tensor, domains: Tensor) -> Tensor:
    """The share of samples whose domain is guessed right."""
    return (logits.detach().argmax(1) == domains).to(logits.dtype).mean()
