"""Correlation alignment: features with the same mean and covariance in every source domain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from mirepoix.objectives._joint import risks, single
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError

__all__ = ["CORAL"]


class CORAL(Objective):
    r"""Correlation alignment (Sun and Saenko, 2016), with the means as in DomainBed.

    With :math:`R_e` the mean cross-entropy in domain :math:`e`, and :math:`\mu_e, C_e` the mean and the unbiased
    covariance of its :math:`d` features, in one forward pass per domain,

    .. math:: \frac{1}{E} \sum_e R_e + \gamma \frac{2}{E (E - 1)} \sum_{e < e'} \Big(
        \frac{1}{d} \lVert \mu_e - \mu_{e'} \rVert_2^2 + \frac{1}{d^2} \lVert C_e - C_{e'} \rVert_F^2 \Big)

    Domains weigh the same, whatever their batch size. With one source domain there is no penalty. Means and
    covariances are taken in single precision at least, also under autocast: half precision would overflow.

    Args:
        mmd_gamma: Weight :math:`\gamma` of the penalty. Default as in DomainBed, where random
            trials draw 10^U(-1, 1). With 0 this is ERM with one forward pass per domain, equal domains.

    Raises:
        InputError: If ``mmd_gamma`` is negative or not finite; in a step, if a domain has a single sample, whose
            covariance is undefined, and there are others to compare with.
    """

    def __init__(self, mmd_gamma: float = 1.0) -> None:
        super().__init__()
        if not 0 <= mmd_gamma < math.inf:
            raise InputError(f"CORAL needs a finite mmd_gamma of 0 or more, got {mmd_gamma}; 1 is usual.")
        self.mmd_gamma = float(mmd_gamma)

    def configuration(self) -> Mapping[str, Any]:
        """The weight of the penalty."""
        return {"mmd_gamma": self.mmd_gamma}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean risk plus the weighted mean distance between pairs of domains, a scalar."""
        for batch in batches:
            if len(batch.labels) < 2 <= len(batches):
                raise InputError(
                    "CORAL needs at least 2 samples per domain for a covariance, got "
                    f"{len(batch.labels)} of domain {batch.domains.tolist()}; use a larger batch size."
                )
        outputs = [model(batch.images) for batch in batches]
        risk = risks(outputs, batches).mean()
        if len(batches) < 2:
            return risk
        with torch.autocast(risk.device.type, enabled=False):
            moments = [_moments(output.features) for output in outputs]
            distances = [_distance(*one, *other) for one, other in combinations(moments, 2)]
            return risk + self.mmd_gamma * torch.stack(distances).mean()


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the unbiased covariance of features."""
    features = single(features)
    mean = features.mean(0)
    centred = features - mean  # (samples, features)
    return mean, centred.T @ centred / (len(features) - 1)


def _distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    return (mean - other_mean).square().mean() + (covariance - other_covariance).square().mean()
