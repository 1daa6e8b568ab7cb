"""Gradients of each source domain, and only where they agree: what the masks of gradients share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import single
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch

__all__ = ["Masked"]


class Masked(Objective):
    r"""A criterion that edits the mean gradient: entry by entry, by how much the source domains agree.

    With :math:`g_e` the gradient of the risk of domain :math:`e` in one tensor of weights, :math:`\bar g` their mean,
    and a mask :math:`m` of the same shape,

    .. math:: \frac{m \, \bar g}{10^{-10} + \bar m}

    takes the place of the gradient of that tensor, where :math:`\bar m` is the mean over the entries of the tensor.
    """

    @abstractmethod
    def mask(self, gradients: Tensor) -> Tensor:
        """A number in [0, 1] for every entry of a tensor of weights, from its gradients, the domains first."""

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean risk, in one forward pass per domain, a scalar in nats: the mask is a matter of `step`."""
        return torch.stack([_risk(model, batch) for batch in batches]).mean()

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, Tensor]:
        """Make one update with the masked gradient.

        `loss` is the mean risk, and `kept` the mean of the mask over all weights: at 0, nothing is trained.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        optimizer.zero_grad(set_to_none=True)
        risks: list[Tensor] = []
        gradients: list[tuple[Tensor | None, ...]] = []
        for batch in batches:
            risk = _risk(model, batch)
            scaled = risk if scaler is None else scaler.scale(risk)
            gradients.append(torch.autograd.grad(scaled, parameters, allow_unused=True))
            risks.append(risk.detach())
        loss = torch.stack(risks).mean()
        # A variance knows the scale of a scaler, so the mask is that of gradients without it.
        scale = torch.ones_like(loss) if scaler is None else scaler.scale(torch.ones_like(loss))
        kept, entries = torch.zeros_like(loss), 0
        for parameter, of_domains in zip(parameters, zip(*gradients, strict=True), strict=True):
            if all(gradient is None for gradient in of_domains):
                continue
            filled = [torch.zeros_like(parameter) if g is None else g for g in of_domains]
            stacked = single(torch.stack(filled))  # (domains, *shape)
            mask = self.mask(stacked / scale)  # (*shape)
            parameter.grad = (mask * stacked.mean(0) / (1e-10 + mask.mean())).to(parameter.dtype)
            kept += mask.sum()
            entries += mask.numel()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        return {"loss": loss, "kept": kept / max(entries, 1)}


def _risk(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(single(model(batch.images).logits), batch.labels)
