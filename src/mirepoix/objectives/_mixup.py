"""Mixup between domains: images and labels of two source domains, interpolated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError

__all__ = ["Mixup"]


class Mixup(Objective):
    r"""Inter-domain mixup (Yan et al., 2020; mixup: Zhang et al., 2018).

    With a random permutation :math:`\pi` of the :math:`E` source domains, and for the pair of domains
    :math:`i = \pi_e` and :math:`j = \pi_{(e + 1) \bmod E}` a draw :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)`,

    .. math:: \frac{1}{E} \sum_{e} \lambda \, \mathrm{CE}(f(x), y_i) + (1 - \lambda) \, \mathrm{CE}(f(x), y_j),
        \qquad x = \lambda x_i + (1 - \lambda) x_j

    with one forward pass per pair, both batches cut to the shorter one. One :math:`\lambda` serves all samples
    of a pair. With one source domain the only pair is the domain with itself, which is ERM up to rounding.

    The permutation and then all :math:`\lambda` come from torch's global generator of the processor, whatever
    the device, which the trainer seeds for every step; released code draws :math:`\lambda` with NumPy.

    Args:
        mixup_alpha: Both parameters of the Beta distribution: small ones mix little. Default as in DomainBed,
            where random trials draw 10^U(-1, 1).

    Raises:
        InputError: If ``mixup_alpha`` is not a positive number.
    """

    def __init__(self, mixup_alpha: float = 0.2) -> None:
        super().__init__()
        if not 0 < mixup_alpha < math.inf:
            raise InputError(f"Mixup needs a positive, finite mixup_alpha, got {mixup_alpha}; 0.2 is usual.")
        self.mixup_alpha = float(mixup_alpha)

    def configuration(self) -> Mapping[str, Any]:
        """The parameter of the Beta distribution."""
        return {"mixup_alpha": self.mixup_alpha}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean over pairs of domains of the interpolated cross-entropy, a scalar in nats."""
        domains = len(batches)
        order = torch.randperm(domains).tolist()
        # In double precision: with a small alpha many draws lie next to 0 or 1.
        alpha = torch.tensor(self.mixup_alpha, dtype=torch.float64)
        coefficients = torch.distributions.Beta(alpha, alpha).sample((domains,)).tolist()
        losses = []
        for place, coefficient in enumerate(coefficients):
            one, other = batches[order[place]], batches[order[(place + 1) % domains]]
            samples = min(len(one.labels), len(other.labels))
            images = coefficient * one.images[:samples] + (1 - coefficient) * other.images[:samples]
            logits = model(images).logits
            losses.append(
                coefficient * F.cross_entropy(logits, one.labels[:samples])
                + (1 - coefficient) * F.cross_entropy(logits, other.labels[:samples])
            )
        return torch.stack(losses).mean()
