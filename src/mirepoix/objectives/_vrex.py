"""Variance of risks: a loss that is as large in every source domain."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mirepoix.objectives._joint import joint, risks
from mirepoix.objectives._scheduled import Scheduled, check_count
from mirepoix.types import Batch, InputError

__all__ = ["VREx"]


class VREx(Scheduled):
    r"""Variance risk extrapolation (Krueger et al., 2021).

    With :math:`R_e` the mean cross-entropy in domain :math:`e` of :math:`E`, all in one joint forward pass,

    .. math:: m + \lambda_t \frac{1}{E} \sum_e (R_e - m)^2, \qquad m = \frac{1}{E} \sum_e R_e

    where :math:`\lambda_t` is 1 before the update ``vrex_penalty_anneal_iters``, counted from 0, and
    ``vrex_lambda`` from it on; before that update the optimizer forgets its moments, because those of the old loss
    are of another size.

    It addresses correlation shift, and a shift of the inputs along the directions in which the source domains
    differ: risks that are equal in the source domains stay equal beyond them.

    Domains weigh the same, whatever their batch size; neither their order nor that of samples matters. With one
    source domain the penalty is zero. A batch of one and classes that are missing need no special case. The
    penalty is in single precision at least, also under autocast.

    State: the count of updates. An update costs one forward and one backward pass. `step` logs ``loss``, ``nll``
    (the mean risk :math:`m`; DomainBed logs the risk of the last domain) and ``penalty`` (the variance, without its
    weight). `SAM` cannot wrap it, as it makes its own step.

    The paper adds the weighted variance to the sum of risks instead of the mean.

    Args:
        vrex_lambda: The weight from the anneal step on. Random trials of DomainBed draw 10^U(-1, 5).
        vrex_penalty_anneal_iters: The update with which the weight jumps. Random trials draw int 10^U(0, 4).

    Raises:
        InputError: If an option is out of its range.

    References:
        Krueger et al. (2021), Out-of-distribution generalization via risk extrapolation, V-REx in section 3.
    """

    def __init__(self, *, vrex_lambda: float = 10.0, vrex_penalty_anneal_iters: int = 500) -> None:
        super().__init__()
        if not 0 <= vrex_lambda < math.inf:
            raise InputError(f"VREx needs a finite vrex_lambda of 0 or more, got {vrex_lambda}; 10 is usual.")
        self.vrex_lambda = float(vrex_lambda)
        self.vrex_penalty_anneal_iters = check_count(
            "VREx", "vrex_penalty_anneal_iters", vrex_penalty_anneal_iters
        )

    def configuration(self) -> Mapping[str, Any]:
        """The weight of the variance, and when it comes."""
        return {
            "vrex_lambda": self.vrex_lambda,
            "vrex_penalty_anneal_iters": self.vrex_penalty_anneal_iters,
        }

    def resets(self) -> Collection[int]:
        """The anneal step."""
        return (self.vrex_penalty_anneal_iters,)

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean of the risks plus their weighted variance, a scalar."""
        risk = risks(joint(model, batches), batches)  # (domains,)
        mean, variance = risk.mean(), risk.var(unbiased=False)
        weight = 1.0 if self.updates < self.vrex_penalty_anneal_iters else self.vrex_lambda
        self.parts = {"nll": mean.detach(), "penalty": variance.detach()}
        return mean + weight * variance
