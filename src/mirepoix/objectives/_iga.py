"""IGA: the same gradient in every source domain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import single
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError

__all__ = ["IGA"]


class IGA(Objective):
    r"""Inter-environmental gradient alignment (Koyama and Yamaguchi, 2020).

    With :math:`R_e` the mean cross-entropy in domain :math:`e` of :math:`E`, in one forward pass per domain, and
    :math:`g_e` its gradient in all trained weights of the network,

    .. math:: \frac{1}{E} \sum_e R_e + \lambda \sum_e \lVert g_e - \bar g \rVert_2^2, \qquad
        \bar g = \frac{1}{E} \sum_e g_e

    where :math:`\bar g` is a constant. The gradient is the same as if it were not, because the differences sum to
    zero: no graph is kept for it.

    It addresses correlation shift: weights at which every domain pulls alike use what predicts in all of them.

    Domains weigh the same, whatever their batch size; neither their order nor that of samples matters. With one
    source domain the penalty is zero. A batch of one and classes that are missing need no special case. The squares
    are taken in single precision at least, also under autocast. Weights that are frozen, or that no domain uses, do
    not count.

    There is no state. An update costs one forward pass per domain, and one backward pass per domain with a graph, all
    of which are held until a second backward pass goes through them: in time and memory it is the most expensive
    objective here. Every operation of the network must be twice differentiable; a network that was compiled
    (``torch.compile``) is not, and is used as it was before. `step` logs ``loss``, ``nll`` (the mean risk) and
    ``penalty`` (the sum, without its weight); `SAM` cannot wrap it, as it makes its own step.

    The paper weighs the trace of the covariance of gradients, which is the penalty divided by :math:`E`; the sum is
    that of DomainBed.

    Args:
        penalty: Weight :math:`\lambda`. Default as in DomainBed, where random trials draw 10^U(1, 5). With 0 this is
            the mean risk.

    Raises:
        InputError: If ``penalty`` is negative or not finite; in a step, with a gradient scaler that is switched on:
            the gradients inside of the loss would not be scaled, and in half precision many would be lost.

    References:
        Koyama and Yamaguchi (2020), When is invariance useful in an out-of-distribution generalization problem?
    """

    def __init__(self, *, penalty: float = 1000.0) -> None:
        super().__init__()
        if not 0 <= penalty < math.inf:
            raise InputError(f"IGA needs a finite penalty of 0 or more, got {penalty}; 1000 is usual.")
        self.penalty = float(penalty)

    def configuration(self) -> Mapping[str, Any]:
        """The weight of the penalty."""
        return {"penalty": self.penalty}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean risk plus the weighted sum of squared distances between gradients, a scalar."""
        network = getattr(model, "_orig_mod", model)  # a compiled one has no second derivatives
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        risks = [F.cross_entropy(single(network(batch.images).logits), batch.labels) for batch in batches]
        risk = torch.stack(risks).mean()
        gradients = [torch.autograd.grad(r, parameters, create_graph=True, allow_unused=True) for r in risks]
        penalty = torch.zeros_like(risk)
        for parameter, of_domains in zip(parameters, zip(*gradients, strict=True), strict=True):
            if all(gradient is None for gradient in of_domains):
                continue
            filled = [torch.zeros_like(parameter) if g is None else g for g in of_domains]
            stacked = single(torch.stack(filled))  # (domains, *shape)
            penalty = penalty + (stacked - stacked.detach().mean(0)).square().sum()
        self.parts = {"nll": risk.detach(), "penalty": penalty.detach()}
        return risk + self.penalty * penalty

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, Tensor]:
        """Make one update, without a gradient scaler."""
        if scaler is not None and scaler.is_enabled():
            raise InputError(
                "IGA cannot be trained with a gradient scaler, got one that is switched on (fp16): the gradients "
                "inside of the loss would not be scaled. Use bf16 or full precision."
            )
        return super().step(model, batches, optimizer, scaler)
