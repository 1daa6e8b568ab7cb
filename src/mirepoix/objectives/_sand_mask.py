"""SAND-mask: an entry of the weights moves as far as the source domains agree on its direction and its length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mirepoix.objectives._masked import Masked
from mirepoix.types import InputError

__all__ = ["SANDMask"]


class SANDMask(Masked):
    r"""Smoothed AND-mask (Shahtalebi et al., 2021).

    With :math:`g_e` the gradient of the risk of domain :math:`e` of :math:`E` in one tensor of weights, in one forward
    pass per domain, the update is made with

    .. math:: \frac{m \, \bar g}{10^{-10} + \bar m}, \qquad \bar g = \frac{1}{E} \sum_e g_e, \qquad
        m = \max \Big( 0, \tanh \frac{k}{\sigma^2} \Big(
        \Big\lvert \frac{1}{E} \sum_e \mathrm{sign}(g_e) \Big\rvert - \tau \Big) \Big)

    entry by entry, where :math:`\sigma^2` is the unbiased variance of the :math:`g_e` and :math:`\bar m` is the mean
    over the entries of the tensor. Gradients of networks are small, so :math:`k / \sigma^2` is mostly large, and the
    mask close to 0 or 1.

    It addresses correlation shift: what pulls at the weights in some domains alone, or much harder, is not learned.

    **A correction.** The released default is :math:`\tau = 1`. No agreement is larger, so the mask is zero everywhere,
    all gradients are zero, and nothing is ever trained. The default here is 0.5, the middle of the range of random
    trials, with which unanimous entries move whatever the number of domains; at :math:`\tau = 1` an error is raised.
    With ``parity=True`` the default is 1, as released, and allowed.

    Domains weigh the same, whatever their batch size; neither their order nor that of samples matters. With one
    source domain the variance is undefined and taken as :math:`10^{-17}`, as released, so that all gradients but zero
    are kept, and only zeros are masked. A product of zero and infinity, of an agreement of exactly :math:`\tau` and a
    variance of zero, gives the mask :math:`10^{-17}`, as released. A batch of one and classes that are missing need no
    special case. Gradients that are not finite stay so.

    There is no state. An update costs one forward and one backward pass per domain, as much as a joint one
    altogether, and the memory of :math:`E` gradients. The variance is that of gradients without the scale of a gradient
    scaler. `step` logs ``loss``, the mean risk, and ``kept``, the mean of the mask over all weights.

    Args:
        tau: The agreement :math:`\tau` above which an entry moves, in [0, 1). Random trials of DomainBed draw U(0, 1).
        k: How steep the mask is. Default as in DomainBed, where random trials draw 10^U(-3, 5).
        parity: Allow and default to the released ``tau`` of 1, which trains nothing.

    Raises:
        InputError: If an option is out of its range.

    References:
        Shahtalebi et al. (2021), SAND-mask: an enhanced gradient masking strategy for the discovery of invariances in
        domain generalization.
    """

    def __init__(self, *, tau: float | None = None, k: float = 10.0, parity: bool = False) -> None:
        super().__init__()
        if tau is None:
            tau = 1.0 if parity else 0.5
        if not 0 <= tau <= 1:
            raise InputError(f"SANDMask needs tau to be a share in [0, 1), got {tau}; 0.5 trains.")
        if tau == 1 and not parity:
            raise InputError(
                "SANDMask needs tau below 1, got 1: no agreement is above it, so nothing would be trained. 0.5 trains; "
                "parity=True allows 1, the released default."
            )
        if not 0 < k < math.inf:
            raise InputError(f"SANDMask needs a positive, finite k, got {k}; 10 is usual.")
        self.tau, self.k, self.parity = float(tau), float(k), bool(parity)

    def configuration(self) -> Mapping[str, Any]:
        """The agreement that is asked for, how steep the mask is, and whether the released default is allowed."""
        return {"tau": self.tau, "k": self.k, "parity": self.parity}

    def mask(self, gradients: Tensor) -> Tensor:
        """Near 1 where domains have the same sign and a small variance, and 0 where too many differ."""
        domains = len(gradients)
        variance = gradients.var(0) if domains > 1 else torch.full_like(gradients[0], torch.nan)
        variance = torch.where(variance.isnan(), 1e-17, variance)
        agreement = gradients.sign().sum(0).abs() / domains
        mask = (self.k * (1 / variance) * (agreement - self.tau)).tanh().clamp(min=0)
        return torch.where(mask.isnan(), 1e-17, mask)
