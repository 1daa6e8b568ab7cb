"""Risk distribution matching: losses that are distributed in the worst domain as in all of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import single
from mirepoix.objectives._mmd import _kernel
from mirepoix.objectives._scheduled import Scheduled, check_count
from mirepoix.types import Batch, InputError

__all__ = ["RDM"]

_PRECISIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


class RDM(Scheduled):
    r"""Risk distribution matching (Nguyen et al., 2024), against correlation shift.

    With :math:`c_e` the cross-entropies of the samples of domain :math:`e` in the batch, :math:`c` those of all
    domains together, :math:`R_e` the mean of :math:`c_e` and :math:`e^* = \arg\max_e R_e` the worst domain, the update
    :math:`t` minimises

    .. math:: \frac{1}{E} \sum_e R_e + a_t \, \mathrm{MMD}^2(c_{e^*}, c) + b_t \big( \mathrm{var}(c) +
        \mathrm{var}(c_{e^*}) \big)

    in one joint forward pass. The discrepancy is that of `MMD`, of numbers here, with the kernels
    :math:`g \in \{10^{-4}, \ldots, 10^{3}\}`; variances are unbiased. The weights :math:`a_t, b_t` are 0 before update
    ``rdm_penalty_anneal_iters``, ``rdm_lambda`` and ``variance_weight`` from then on. At that update the optimizer
    forgets its moments, and from that update on its learning rate is ``rdm_lr``, whatever the schedule of the run.

    As V-REx and GroupDRO it works on losses alone, whatever the size of the network; a predictor that is as often as
    badly wrong in every domain does not lean on what holds in some.

    Domains weigh the same in the risk; in :math:`c` they weigh by their batch size, which may differ (released code
    needs equal ones, and an accelerator). The order of domains does not matter, but for equal risks, where the first is
    the worst. With one source domain the discrepancy is 0 and the variances remain. Losses are compared in single
    precision at least, also under autocast. An update costs one forward and one backward pass, as ERM. The state is the
    number of updates.

    Args:
        rdm_lambda: Weight of the discrepancy. Default as in DomainBed (0.5 on DomainNet), where random trials draw
            U(0.1, 10) (PACS and TerraIncognita U(1, 10), DomainNet U(0.1, 1)).
        rdm_penalty_anneal_iters: Update, from 0, at which the penalties begin (2400 on DomainNet); random trials draw
            int U(800, 2700) (DomainNet int U(1500, 3000)).
        variance_weight: Weight of the variances (0 on TerraIncognita, OfficeHome and DomainNet); random trials draw
            U(0.001, 0.007). With 0 they are not computed.
        rdm_lr: Learning rate from the anneal step on, for all parameters; random trials draw U(8e-6, 2e-5).

    In published trials the batches are large: 88 images per domain of 224 pixels, int U(70, 100) (DomainNet and
    TerraIncognita 40, int U(30, 60)).

    Raises:
        InputError: If a weight is negative, ``rdm_penalty_anneal_iters`` no whole number from 0 or ``rdm_lr`` not
            positive, or one of them not finite; in a step, for a domain of one sample, which has no variance, unless
            ``variance_weight`` is 0.

    References:
        Nguyen et al. (2024), Domain generalisation via risk distribution matching.
    """

    def __init__(
        self,
        rdm_lambda: float = 5.0,
        rdm_penalty_anneal_iters: int = 1500,
        variance_weight: float = 0.004,
        rdm_lr: float = 1.5e-5,
    ) -> None:
        super().__init__()
        for name, value in (("rdm_lambda", rdm_lambda), ("variance_weight", variance_weight)):
            if not 0 <= value < math.inf:
                raise InputError(f"RDM needs a finite {name} of 0 or more, got {value}.")
        if not 0 < rdm_lr < math.inf:
            raise InputError(f"RDM needs a positive, finite rdm_lr, got {rdm_lr}; 1.5e-5 is usual.")
        self.rdm_lambda = float(rdm_lambda)
        self.rdm_penalty_anneal_iters = check_count(
            "RDM", "rdm_penalty_anneal_iters", rdm_penalty_anneal_iters
        )
        self.variance_weight = float(variance_weight)
        self.rdm_lr = float(rdm_lr)

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {
            "rdm_lambda": self.rdm_lambda,
            "rdm_penalty_anneal_iters": self.rdm_penalty_anneal_iters,
            "variance_weight": self.variance_weight,
            "rdm_lr": self.rdm_lr,
        }

    def resets(self) -> Collection[int]:
        """The update at which the penalties begin."""
        return (self.rdm_penalty_anneal_iters,)

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, Tensor]:
        """Make one update; `nll` is the mean risk of the domains, the penalties are without their weights."""
        if self.updates >= self.rdm_penalty_anneal_iters:
            # At every update from there on: a loop with a schedule sets its own before each.
            for group in optimizer.param_groups:
                group["lr"] = self.rdm_lr
        return super().step(model, batches, optimizer, scaler)

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean risk, later with the weighted discrepancy and variances, a scalar."""
        sizes = [len(batch.labels) for batch in batches]
        for size, batch in zip(sizes, batches, strict=True):
            if self.variance_weight > 0 and size < 2:
                raise InputError(
                    f"RDM needs at least 2 samples per domain for a variance, got {size} of domain "
                    f"{batch.domains.tolist()}; use a larger batch size, or variance_weight=0."
                )
        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        losses = F.cross_entropy(model(images).logits, labels, reduction="none")
        with torch.autocast(losses.device.type, enabled=False):
            losses = single(losses)
            domains = torch.split_with_sizes(losses, sizes)
            risks = torch.stack([domain.mean() for domain in domains])
            risk = risks.mean()
            # A mask, not a choice of a tensor: the device alone knows which domain is the worst.
            worst = (torch.arange(len(sizes), device=risks.device) == risks.argmax()).to(losses.dtype)
            matching = _matching(losses, sizes, worst)
            self.parts = {"nll": risk.detach(), "matching_penalty": matching.detach()}
            penalty = self.rdm_lambda * matching
            if self.variance_weight > 0:
                variances = torch.stack([domain.var() for domain in domains])
                variance = losses.var() + variances @ worst
                self.parts["variance_penalty"] = variance.detach()
                penalty = penalty + self.variance_weight * variance
            return risk + penalty if self.updates >= self.rdm_penalty_anneal_iters else risk


def _matching(losses: Tensor, sizes: Sequence[int], worst: Tensor) -> Tensor:
    """The squared MMD of the losses of one domain and of all, as a quadratic form.

    With u and v the weights of each loss in either mean, u'Ku + v'Kv - 2 u'Kv = (u - v)'K(u - v).
    """
    shares = torch.cat([one.expand(size) / size for one, size in zip(worst, sizes, strict=True)])
    weights = shares - 1 / len(losses)
    kernel = _kernel((losses[:, None] - losses).square(), _PRECISIONS)  # (samples, samples)
    return weights @ kernel @ weights
