"""Invariant risk minimisation with an information bottleneck."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mirepoix.objectives._iberm import check_ib, ib_penalty
from mirepoix.objectives._irm import Estimate, check_irm, irm_penalty
from mirepoix.objectives._joint import joint, risks
from mirepoix.objectives._scheduled import Scheduled, check_count
from mirepoix.types import Batch

__all__ = ["IBIRM"]


class IBIRM(Scheduled):
    r"""Invariant risk minimisation with an information bottleneck (Ahuja et al., 2021), as in DomainBed.

    With :math:`R_e` the mean cross-entropy in domain :math:`e` of :math:`E`, :math:`P_e` the penalty of `IRM` and
    :math:`I_e` that of `IBERM`, the mean unbiased variance of its features, all in one joint forward pass,

    .. math:: \frac{1}{E} \sum_e \left( R_e + \lambda^{\text{IRM}}_t P_e + \lambda^{\text{IB}}_t I_e \right)

    where :math:`\lambda^{\text{IRM}}_t` is 1 before the update ``irm_penalty_anneal_iters``, counted from 0, and
    ``irm_lambda`` from it on, and :math:`\lambda^{\text{IB}}_t` is 0 before the update
    ``ib_penalty_anneal_iters`` and ``ib_lambda`` from it on. Before each of the two updates the optimizer forgets its
    moments, because those of the old loss are of another size.

    It addresses correlation shift: invariance rules out features whose relation with the label changes between
    source domains, and the bottleneck decides where invariance alone leaves several answers.

    Domains weigh the same, whatever their batch size, and their order does not matter; that of samples matters
    as far as it decides who shares a half in `IRM`. One source domain and classes that are missing need no special
    case. The penalties are in single precision at least, also under autocast.

    State: the count of updates. An update costs one forward and one backward pass. `step` logs ``loss``, ``nll``
    (the mean risk; DomainBed logs the whole loss under this name), ``irm_penalty`` and ``ib_penalty``, both
    without their weights. `SAM` cannot wrap it, as it makes its own step.

    It deviates from the papers as `IRM` and `IBERM` do: means over domains, features instead of logits.

    Args:
        irm_lambda: The weight of the invariance from its anneal step on. Random trials of DomainBed draw 10^U(-1, 5).
        irm_penalty_anneal_iters: The update with which it jumps. Random trials draw int 10^U(0, 4).
        ib_lambda: The weight of the bottleneck from its anneal step on. Random trials draw 10^U(-1, 5).
        ib_penalty_anneal_iters: The update with which it begins. Random trials draw int 10^U(0, 4).
        irm_estimate: ``product`` of two halves as in DomainBed, or ``square`` of the whole; see `IRM`.

    Raises:
        InputError: If an option is out of its range; in a step, if a domain has a single sample, whose variance is
            undefined.

    References:
        Ahuja et al. (2021), Invariance principle meets information bottleneck for out-of-distribution
        generalization.
    """

    def __init__(
        self,
        *,
        irm_lambda: float = 100.0,
        irm_penalty_anneal_iters: int = 500,
        ib_lambda: float = 100.0,
        ib_penalty_anneal_iters: int = 500,
        irm_estimate: Estimate = "product",
    ) -> None:
        super().__init__()
        check_irm("IBIRM", irm_lambda, irm_estimate)
        check_ib("IBIRM", ib_lambda)
        self.irm_lambda, self.ib_lambda = float(irm_lambda), float(ib_lambda)
        self.irm_penalty_anneal_iters = check_count(
            "IBIRM", "irm_penalty_anneal_iters", irm_penalty_anneal_iters
        )
        self.ib_penalty_anneal_iters = check_count(
            "IBIRM", "ib_penalty_anneal_iters", ib_penalty_anneal_iters
        )
        self.irm_estimate = irm_estimate

    def configuration(self) -> Mapping[str, Any]:
        """The weights of both penalties, when they come, and how the invariance is estimated."""
        return {
            "irm_lambda": self.irm_lambda,
            "irm_penalty_anneal_iters": self.irm_penalty_anneal_iters,
            "ib_lambda": self.ib_lambda,
            "ib_penalty_anneal_iters": self.ib_penalty_anneal_iters,
            "irm_estimate": self.irm_estimate,
        }

    def resets(self) -> Collection[int]:
        """Both anneal steps."""
        return (self.irm_penalty_anneal_iters, self.ib_penalty_anneal_iters)

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean risk plus both weighted penalties, a scalar."""
        outputs = joint(model, batches)
        risk = risks(outputs, batches).mean()
        variance = ib_penalty("IBIRM", outputs, batches)
        invariance = irm_penalty("IBIRM", outputs, batches, self.irm_estimate)
        irm_weight = 1.0 if self.updates < self.irm_penalty_anneal_iters else self.irm_lambda
        ib_weight = 0.0 if self.updates < self.ib_penalty_anneal_iters else self.ib_lambda
        self.parts = {
            "nll": risk.detach(),
            "irm_penalty": invariance.detach(),
            "ib_penalty": variance.detach(),
        }
        return risk + irm_weight * invariance + ib_weight * variance
