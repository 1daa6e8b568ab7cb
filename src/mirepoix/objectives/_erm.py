"""Empirical risk minimisation: the mean loss over all source domains together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch

__all__ = ["ERM"]


class ERM(Objective):
    r"""Empirical risk minimisation (Vapnik, 1998).

    .. math:: \frac{1}{n} \sum_{i=1}^{n} -\log p_\theta(y_i \mid x_i)

    over the images of all source domains in one joint forward pass, so that domains weigh by their batch size.
    """

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy of the joint batch, a scalar in nats."""
        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        return F.cross_entropy(model(images).logits, labels)
