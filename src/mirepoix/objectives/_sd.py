"""Spectral decoupling: small logits, so that no feature starves the others of gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import single
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError

__all__ = ["SD"]


class SD(Objective):
    r"""Spectral decoupling (Pezeshki et al., 2021), as in DomainBed.

    With :math:`l_{ik}` the logit of class :math:`k` of :math:`K` for sample :math:`i` of :math:`n`, over the images
    of all source domains in one joint forward pass,

    .. math:: \frac{1}{n} \sum_i -\log p_\theta(y_i \mid x_i) + \lambda \frac{1}{n K} \sum_{i, k} l_{ik}^2

    It addresses correlation shift in so far as a shortcut causes it: cross-entropy stops learning other features
    once one of them makes the logits large, and a penalty on the logits keeps the gradient of the others alive.

    Domains weigh by their batch size as in `ERM`, and serve for nothing else; neither their order nor that of
    samples matters. One source domain, a batch of one and classes that are missing need no special case. The
    penalty is in single precision at least, also under autocast. There is no state. An update costs one forward
    and one backward pass.

    The paper has half the sum of squares for two classes with one logit; here it is the mean over all logits.

    Args:
        sd_reg: Weight :math:`\lambda` of the penalty; with 0 this is `ERM`. Default as in DomainBed, where random
            trials draw 10^U(-5, -1).

    Raises:
        InputError: If ``sd_reg`` is negative or not finite.

    References:
        Pezeshki et al. (2021), Gradient starvation: a learning proclivity in neural networks.
    """

    def __init__(self, *, sd_reg: float = 0.1) -> None:
        super().__init__()
        if not 0 <= sd_reg < math.inf:
            raise InputError(f"SD needs a finite sd_reg of 0 or more, got {sd_reg}; 0.1 is usual.")
        self.sd_reg = float(sd_reg)

    def configuration(self) -> Mapping[str, Any]:
        """The weight of the penalty."""
        return {"sd_reg": self.sd_reg}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy of the joint batch plus the weighted mean squared logit, a scalar."""
        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        logits = single(model(images).logits)
        return F.cross_entropy(logits, labels) + self.sd_reg * logits.square().mean()
