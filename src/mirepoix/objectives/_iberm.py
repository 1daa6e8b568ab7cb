"""Information bottleneck: features that vary no more than the labels need."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mirepoix.objectives._joint import joint, risks
from mirepoix.objectives._scheduled import Scheduled, check_count
from mirepoix.types import Batch, InputError, Outputs

__all__ = ["IBERM", "check_ib", "ib_penalty"]


class IBERM(Scheduled):
    r"""Empirical risk minimisation with an information bottleneck (Ahuja et al., 2021), as in DomainBed.

    With :math:`R_e` the mean cross-entropy in domain :math:`e` of :math:`E` and :math:`z_{ik}` feature :math:`k` of
    :math:`d` of its sample :math:`i`, all in one joint forward pass,

    .. math:: \frac{1}{E} \sum_e R_e + \lambda_t \frac{1}{E} \sum_e I_e, \qquad
        I_e = \frac{1}{d} \sum_k \frac{1}{n_e - 1} \sum_i (z_{ik} - \bar{z}_k)^2

    where :math:`\lambda_t` is 0 before the update ``ib_penalty_anneal_iters``, counted from 0, and ``ib_lambda``
    from it on; before that update the optimizer forgets its moments, because those of the old loss are of another
    size. The variance stands for the entropy of the features, which it bounds.

    It addresses correlation shift where the features that are invariant do not need those that are not: of the
    classifiers that fit, it prefers one whose features carry less.

    Domains weigh the same, whatever their batch size; neither their order nor that of samples matters. One source
    domain and classes that are missing need no special case. The penalty is in single precision at least, also
    under autocast.

    State: the count of updates. An update costs one forward and one backward pass. `step` logs ``loss``, ``nll``
    (the mean risk; DomainBed logs the whole loss under this name) and ``penalty`` (the mean of :math:`I_e`, without
    its weight). `SAM` cannot wrap it, as it makes its own step.

    The text of the paper penalises the logits, DomainBed and this class the features. A network can lower the
    variance of features without losing anything by scaling them down and its classifier up.

    Args:
        ib_lambda: The weight from the anneal step on. Random trials of DomainBed draw 10^U(-1, 5).
        ib_penalty_anneal_iters: The update with which the penalty begins. Random trials draw int 10^U(0, 4).

    Raises:
        InputError: If an option is out of its range; in a step, if a domain has a single sample, whose variance is
            undefined.

    References:
        Ahuja et al. (2021), Invariance principle meets information bottleneck for out-of-distribution
        generalization.
    """

    def __init__(self, *, ib_lambda: float = 100.0, ib_penalty_anneal_iters: int = 500) -> None:
        super().__init__()
        check_ib("IBERM", ib_lambda)
        self.ib_lambda = float(ib_lambda)
        self.ib_penalty_anneal_iters = check_count(
            "IBERM", "ib_penalty_anneal_iters", ib_penalty_anneal_iters
        )

    def configuration(self) -> Mapping[str, Any]:
        """The weight of the penalty, and when it begins."""
        return {"ib_lambda": self.ib_lambda, "ib_penalty_anneal_iters": self.ib_penalty_anneal_iters}

    def resets(self) -> Collection[int]:
        """The anneal step."""
        return (self.ib_penalty_anneal_iters,)

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean risk plus the weighted mean variance of the features, a scalar."""
        outputs = joint(model, batches)
        risk = risks(outputs, batches).mean()
        penalty = ib_penalty("IBERM", outputs, batches)
        weight = 0.0 if self.updates < self.ib_penalty_anneal_iters else self.ib_lambda
        self.parts = {"nll": risk.detach(), "penalty": penalty.detach()}
        return risk + weight * penalty


def ib_penalty(owner: str, outputs: Sequence[Outputs], batches: Sequence[Batch]) -> Tensor:
    """The mean over domains and features of the unbiased variance of a feature in a domain."""
    for batch in batches:
        if len(batch.labels) < 2:
            raise InputError(
                f"{owner} needs at least 2 samples per domain for a variance, got {len(batch.labels)} of domain "
                f"{batch.domains.tolist()}; use a larger batch size."
            )
    return torch.stack([output.features.var(0).mean() for output in outputs]).mean()


def check_ib(owner: str, ib_lambda: float) -> None:
    """Refuse a weight that is out of range."""
    if not 0 <= ib_lambda < math.inf:
        raise InputError(f"{owner} needs a finite ib_lambda of 0 or more, got {ib_lambda}; 100 is usual.")
