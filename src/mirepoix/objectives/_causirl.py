"""Causal invariant representation learning: features that do not tell a random division of the samples."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mirepoix.objectives._coral import _distance, _moments
from mirepoix.objectives._joint import risks
from mirepoix.objectives._mmd import _discrepancy, _embedding
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError

__all__ = ["CausIRLCORAL", "CausIRLMMD"]


class _CausIRL(Objective):
    """What both have in common: all but the distance of two sets of features."""

    def __init__(self, mmd_gamma: float = 1.0) -> None:
        super().__init__()
        if not 0 <= mmd_gamma < math.inf:
            name = type(self).__name__
            raise InputError(f"{name} needs a finite mmd_gamma of 0 or more, got {mmd_gamma}; 1 is usual.")
        self.mmd_gamma = float(mmd_gamma)

    def configuration(self) -> Mapping[str, Any]:
        """The weight of the penalty."""
        return {"mmd_gamma": self.mmd_gamma}

    @abstractmethod
    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """The distance of two sets of at least two features each, a scalar."""

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean risk plus the weighted distance of the two sets of features, a scalar."""
        # Before the forward passes: dropout on a processor draws from the same generator.
        cuts = [int(torch.randint(len(batch.labels), ())) for batch in batches]
        outputs = [model(batch.images) for batch in batches]
        risk = risks(outputs, batches).mean()
        one = torch.cat([output.features[:cut] for output, cut in zip(outputs, cuts, strict=True)])
        other = torch.cat([output.features[cut:] for output, cut in zip(outputs, cuts, strict=True)])
        if len(one) < 2 or len(other) < 2:
            return risk
        with torch.autocast(risk.device.type, enabled=False):
            return risk + self.mmd_gamma * self.distance(one, other)


class CausIRLCORAL(_CausIRL):
    r"""Causal invariant representation learning (Chevalley et al., 2022) with the distance of CORAL.

    Against diversity shift, an intervention on the style of images. The batch of each domain :math:`e`, of
    :math:`n_e` samples, is cut at a random place :math:`r_e`, uniform on :math:`\{0, \ldots, n_e - 1\}`. With
    :math:`R_e` its mean cross-entropy and :math:`z_e` its features, in one forward pass per domain,

    .. math:: \frac{1}{E} \sum_e R_e + \gamma \, D(S, S'), \qquad
        S = \bigcup_e \{z_e^i : i < r_e\}, \qquad S' = \bigcup_e \{z_e^i : i \geq r_e\}

    where, with :math:`\mu, C` the mean and the unbiased covariance of the :math:`d` features of a set,

    .. math:: D(S, S') = \frac{1}{d} \lVert \mu - \mu' \rVert_2^2 + \frac{1}{d^2} \lVert C - C' \rVert_F^2

    Both sets mix the domains in random proportions; where they look alike whatever the mixture, so do the domains. One
    source domain is divided like several: the penalty is then noise of sampling alone. With fewer than two samples in
    either set it is 0, so always with batches of one sample. Domains weigh the same in the risk, whatever their batch
    size.

    The cuts come from torch's global generator of the processor, whatever the device, in the order of the domains and
    before any other draw of the update; the trainer seeds it for every step. Released code draws them with NumPy, and
    puts 0 for a penalty that is not a number, which only features beyond single precision give: here the training
    stops there, as with any other loss that is not a number.

    Statistics are taken in single precision at least, also under autocast. An update costs one forward and one
    backward pass over the samples. There is no state.

    Args:
        mmd_gamma: Weight :math:`\gamma` of the penalty. Default as in DomainBed, where random trials draw
            10^U(-1, 1). With 0 this is ERM with one forward pass per domain, equal domains.

    Raises:
        InputError: If ``mmd_gamma`` is negative or not finite.

    References:
        Chevalley et al. (2022), Invariant causal mechanisms through distribution matching.
    """

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """That of means and covariances."""
        return _distance(*_moments(one), *_moments(other))


class CausIRLMMD(_CausIRL):
    r"""Causal invariant representation learning (Chevalley et al., 2022) with the distance of MMD.

    As `CausIRLCORAL`, where the random sets :math:`S` and :math:`S'`, the corner cases and the cost are told, but

    .. math:: D(S, S') = \mathrm{MMD}^2(S, S')

    with the sum of seven Gaussian kernels of `MMD`. It addresses the same shift, diversity shift.

    Args:
        mmd_gamma: Weight :math:`\gamma` of the penalty. Default as in DomainBed, where random trials draw
            10^U(-1, 1). With 0 this is ERM with one forward pass per domain, equal domains.

    Raises:
        InputError: If ``mmd_gamma`` is negative or not finite.

    References:
        Chevalley et al. (2022), Invariant causal mechanisms through distribution matching.
    """

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """The squared distance of mean embeddings."""
        return _discrepancy(*_embedding(one), *_embedding(other))
