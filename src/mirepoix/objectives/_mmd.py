"""Maximum mean discrepancy: features with the same distribution in every source domain."""

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

__all__ = ["MMD"]

_PRECISIONS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


class MMD(Objective):
    r"""Maximum mean discrepancy between the features of domains (Li et al., 2018), against diversity shift.

    With :math:`R_e` the mean cross-entropy in domain :math:`e` and :math:`z_e` the :math:`n_e` features of its samples,
    in one forward pass per domain,

    .. math:: \frac{1}{E} \sum_e R_e + \gamma \frac{2}{E (E - 1)} \sum_{e < e'} \mathrm{MMD}^2(z_e, z_{e'})

    where the squared distance of the mean embeddings of two samples, under a sum of seven Gaussian kernels, is

    .. math:: \mathrm{MMD}^2(z, z') = \frac{1}{n^2} \sum_{i, j} k(z_i, z_j)
        + \frac{1}{n'^2} \sum_{i, j} k(z'_i, z'_j) - \frac{2}{n n'} \sum_{i, j} k(z_i, z'_j), \qquad
        k(a, b) = \sum_{g \in \{10^{-3}, \ldots, 10^{3}\}} e^{-g \lVert a - b \rVert_2^2}

    It sees every difference of distributions that some kernel resolves, CORAL the first two moments alone. All pairs
    of samples count, a sample with itself too: the estimate is biased, between 0 and 14, and a domain of a single
    sample is no special case. With one source domain there is no penalty. Domains weigh the same, whatever their batch
    size.

    The kernels are evaluated in single precision at least, also under autocast, and from differences of features: from
    norms and products, as usual, the precise kernels would see rounding errors. Their cost is small, and an update
    takes one forward and one backward pass over the samples. There is no state.

    The paper adds an adversarial autoencoder, which neither DomainBed nor this has.

    Args:
        mmd_gamma: Weight :math:`\gamma` of the penalty. Default as in DomainBed, where random trials draw
            10^U(-1, 1). With 0 this is ERM with one forward pass per domain, equal domains.

    Raises:
        InputError: If ``mmd_gamma`` is negative or not finite.

    References:
        Li et al. (2018), Domain generalization with adversarial feature learning; Gretton et al. (2012), A kernel
        two-sample test.
    """

    def __init__(self, mmd_gamma: float = 1.0) -> None:
        super().__init__()
        if not 0 <= mmd_gamma < math.inf:
            raise InputError(f"MMD needs a finite mmd_gamma of 0 or more, got {mmd_gamma}; 1 is usual.")
        self.mmd_gamma = float(mmd_gamma)

    def configuration(self) -> Mapping[str, Any]:
        """The weight of the penalty."""
        return {"mmd_gamma": self.mmd_gamma}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean risk plus the weighted mean discrepancy between pairs of domains, a scalar."""
        outputs = [model(batch.images) for batch in batches]
        risk = risks(outputs, batches).mean()
        if len(batches) < 2:
            return risk
        with torch.autocast(risk.device.type, enabled=False):
            embeddings = [_embedding(output.features) for output in outputs]
            discrepancies = [_discrepancy(*one, *other) for one, other in combinations(embeddings, 2)]
            return risk + self.mmd_gamma * torch.stack(discrepancies).mean()


def _embedding(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features, and the squared norm of their mean embedding."""
    features = single(features)
    return features, _product(features, features)


def _discrepancy(features: Tensor, norm: Tensor, other_features: Tensor, other_norm: Tensor) -> Tensor:
    return norm + other_norm - 2 * _product(features, other_features)


def _product(one: Tensor, other: Tensor) -> Tensor:
    """The inner product of two mean embeddings: the mean of the kernel over pairs."""
    # Its gradient at a distance of 0 is 0, and it holds nothing of the size samples x samples x features.
    distances = torch.cdist(
        one, other, compute_mode="donot_use_mm_for_euclid_dist"
    )  # (samples, other samples)
    return _kernel(distances.square(), _PRECISIONS).mean()


def _kernel(squares: Tensor, precisions: Sequence[float]) -> Tensor:
    """A sum of Gaussian kernels of squared distances."""
    return torch.stack([torch.exp(-precision * squares) for precision in precisions]).sum(0)
