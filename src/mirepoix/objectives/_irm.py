"""Invariant risk minimisation: one classifier that is optimal in every source domain."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mirepoix.objectives._joint import joint, risks
from mirepoix.objectives._scheduled import Scheduled, check_count
from mirepoix.types import Batch, InputError, Outputs

__all__ = ["IRM", "Estimate", "check_irm", "irm_penalty"]

Estimate = Literal["product", "square"]
"""How the squared norm of a gradient is estimated from the samples of a domain."""


class IRM(Scheduled):
    r"""Invariant risk minimisation (Arjovsky et al., 2019), the penalised form IRMv1 as in DomainBed.

    With :math:`R_e` the mean cross-entropy in domain :math:`e` of :math:`E`, all in one joint forward pass,

    .. math:: \frac{1}{E} \sum_e R_e + \lambda_t \frac{1}{E} \sum_e P_e, \qquad
        P_e = g_e^{\text{even}} \, g_e^{\text{odd}}, \qquad
        g_e = \frac{d}{ds} R_e(s \cdot \text{logits}) \Big|_{s = 1}
            = \frac{1}{n} \sum_i \Big( \sum_k p_{ik} l_{ik} - l_{i y_i} \Big)

    with :math:`l_{ik}` the logit of class :math:`k` for sample :math:`i` and :math:`p` their softmax:
    :math:`g_e^{\text{even}}` is over the samples at positions 0, 2, ... of the batch of the domain,
    :math:`g_e^{\text{odd}}` over the others. Two halves that share no sample make :math:`P_e` an unbiased
    estimate of :math:`g_e^2`, which can be negative, and so can the loss. It depends on which samples share a
    half, not on their order in it. ``irm_estimate="square"`` takes :math:`g_e^2` over all samples instead, as the
    experiments of the paper with whole domains: never negative, too large on average by the variance of
    :math:`g_e`. :math:`\lambda_t` is 1 before the update ``irm_penalty_anneal_iters``, counted from 0, and
    ``irm_lambda`` from it on; before that update the optimizer forgets its moments, because those of the old loss
    are of another size.

    It addresses correlation shift: a feature whose relation with the label changes between source domains cannot
    serve one classifier that is optimal in all of them.

    Domains weigh the same, whatever their batch size, and their order does not matter. One source domain and
    classes that are missing need no special case. The penalty is in single precision at least, also under autocast.

    State: the count of updates. An update costs one forward and one backward pass: the closed form of
    :math:`g_e` needs no second derivative. `step` logs ``loss``, ``nll`` (the mean risk) and ``penalty`` (the mean
    of :math:`P_e`, without its weight). `SAM` cannot wrap it, as it makes its own step.

    The paper sums over domains, and its code divides the loss by a weight larger than 1; here means are taken, and
    the loss grows with the weight.

    Args:
        irm_lambda: The weight from the anneal step on. Random trials of DomainBed draw 10^U(-1, 5).
        irm_penalty_anneal_iters: The update with which the weight jumps. Random trials draw int 10^U(0, 4).
        irm_estimate: ``product`` of two halves as in DomainBed, or ``square`` of the whole.

    Raises:
        InputError: If an option is out of its range; in a step with ``product``, if a domain has a single sample,
            which has no two halves.

    References:
        Arjovsky et al. (2019), Invariant risk minimization, IRMv1 in section 3.1; the two halves in appendix D.
    """

    def __init__(
        self,
        *,
        irm_lambda: float = 100.0,
        irm_penalty_anneal_iters: int = 500,
        irm_estimate: Estimate = "product",
    ) -> None:
        super().__init__()
        check_irm("IRM", irm_lambda, irm_estimate)
        self.irm_lambda = float(irm_lambda)
        self.irm_penalty_anneal_iters = check_count(
            "IRM", "irm_penalty_anneal_iters", irm_penalty_anneal_iters
        )
        self.irm_estimate = irm_estimate

    def configuration(self) -> Mapping[str, Any]:
        """The weight of the penalty, when it comes, and how it is estimated."""
        return {
            "irm_lambda": self.irm_lambda,
            "irm_penalty_anneal_iters": self.irm_penalty_anneal_iters,
            "irm_estimate": self.irm_estimate,
        }

    def resets(self) -> Collection[int]:
        """The anneal step."""
        return (self.irm_penalty_anneal_iters,)

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean risk plus the weighted mean penalty, a scalar."""
        outputs = joint(model, batches)
        risk = risks(outputs, batches).mean()
        penalty = irm_penalty("IRM", outputs, batches, self.irm_estimate)
        weight = 1.0 if self.updates < self.irm_penalty_anneal_iters else self.irm_lambda
        self.parts = {"nll": risk.detach(), "penalty": penalty.detach()}
        return risk + weight * penalty


def irm_penalty(
    owner: str, outputs: Sequence[Outputs], batches: Sequence[Batch], estimate: Estimate
) -> Tensor:
    """The mean over domains of the squared gradient of the risk by a scale of the logits, estimated."""
    penalties = []
    for output, batch in zip(outputs, batches, strict=True):
        slopes = _slopes(output.logits, batch.labels)
        if estimate == "square":
            penalties.append(slopes.mean().square())
        elif len(slopes) < 2:
            raise InputError(
                f"{owner} needs at least 2 samples per domain for two halves, got {len(slopes)} of domain "
                f'{batch.domains.tolist()}; use a larger batch size or irm_estimate="square".'
            )
        else:
            penalties.append(slopes[0::2].mean() * slopes[1::2].mean())
    return torch.stack(penalties).mean()


def check_irm(owner: str, irm_lambda: float, irm_estimate: str) -> None:
    """Refuse options of the penalty that are out of range."""
    if not 0 <= irm_lambda < math.inf:
        raise InputError(f"{owner} needs a finite irm_lambda of 0 or more, got {irm_lambda}; 100 is usual.")
    if irm_estimate not in get_args(Estimate):
        expected = " or ".join(map(repr, get_args(Estimate)))
        raise InputError(f"{owner} needs irm_estimate to be {expected}, got {irm_estimate!r}.")


def _slopes(logits: Tensor, labels: Tensor) -> Tensor:
    """The derivative of each sample's cross-entropy by a factor on its logits, where the factor is 1."""
    expected = (logits.softmax(1) * logits).sum(1)
    return expected - logits.gather(1, labels[:, None]).squeeze(1)  # (samples,)
