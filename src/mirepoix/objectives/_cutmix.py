"""CutMix: a box of one image in another, and labels in the proportion of what is seen of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._boxes import box, corners, drawn_centres
from mirepoix.objectives._joint import single
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError

__all__ = ["CutMix"]


class CutMix(Objective):
    r"""Patches of other images (Yun et al., 2019).

    With a random permutation :math:`\pi` of the joint batch, and for each sample, with probability :math:`p`, a box
    :math:`B_i` of the area :math:`a_i \sim \mathrm{Beta}(\alpha, \alpha)` around a random pixel,

    .. math:: \frac{1}{n} \sum_{i=1}^{n} \lambda_i \, \mathrm{CE}(f(\tilde x_i), y_i)
        + (1 - \lambda_i) \, \mathrm{CE}(f(\tilde x_i), y_{\pi_i}), \qquad
        \tilde x_i = x_i \text{ outside of } B_i, \ x_{\pi_i} \text{ inside}

    where :math:`\lambda_i` is the share of the image that is left of :math:`x_i`. It is counted in pixels: boxes are
    cut off at the frame, so that less is pasted than was drawn (0.30 in the mean, not 0.5, on 32 pixels). Samples
    without a box have :math:`\lambda_i = 1`; with a probability of 0 it is ERM.

    Domains are mixed with each other, and weigh by their batch size. A sample whose partner is itself stays as it is,
    so does a batch of one image. The box, the area and whether there is one are drawn for each sample, as in the
    baseline of MixMo; the release of CutMix draws one area and one box for the whole batch.

    All draws are from torch's global generator of the processor, whatever the device, which the trainer seeds for
    every step.

    Args:
        alpha: Both parameters of the Beta distribution, from the paper: 1 for areas that are all equally likely.
        probability: :math:`p`, as released for CIFAR; for ImageNet it is 1.

    Raises:
        InputError: If ``alpha`` is not a positive number, or ``probability`` is not one from 0 to 1.

    References:
        Yun et al. (2019), CutMix: regularization strategy to train strong classifiers with localizable features,
        equations 1 and 2.
    """

    def __init__(self, alpha: float = 1.0, probability: float = 0.5) -> None:
        super().__init__()
        if not 0 < alpha < math.inf:
            raise InputError(f"CutMix needs a positive, finite alpha, got {alpha}; 1 is usual.")
        if not 0 <= probability <= 1:
            raise InputError(f"CutMix needs a probability from 0 to 1, got {probability}; 0.5 is usual.")
        self.alpha, self.probability = float(alpha), float(probability)

    def configuration(self) -> Mapping[str, Any]:
        """The parameter of the Beta distribution, and how often there is a box."""
        return {"alpha": self.alpha, "probability": self.probability}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy with both labels, a scalar in nats."""
        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        samples, size = len(images), (images.shape[-2], images.shape[-1])
        # In double precision: with a small alpha many draws lie next to 0 or 1.
        alpha = torch.tensor(self.alpha, dtype=torch.float64)
        chosen = torch.rand(samples, dtype=torch.float64) < self.probability
        area = torch.distributions.Beta(alpha, alpha).sample((samples,)) * chosen  # others get an empty box
        edges = corners(area, drawn_centres(samples, size), size).to(images.device)
        partners = torch.randperm(samples).to(images.device)
        inside = box(edges, size)  # (samples, 1, height, width)
        logits = single(model(torch.where(inside, images[partners], images)).logits)
        own = 1 - inside.to(logits.dtype).mean((1, 2, 3))
        losses = own * F.cross_entropy(logits, labels, reduction="none")
        losses = losses + (1 - own) * F.cross_entropy(logits, labels[partners], reduction="none")
        return losses.mean()
