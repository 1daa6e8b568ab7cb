"""SelfReg: features and logits like those of other samples of the same class, whatever their domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import single
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError

__all__ = ["SelfReg"]


class SelfReg(Objective):
    r"""Self-supervised contrastive regularization (Kim et al., 2021).

    In one joint forward pass, with features :math:`z`, their projections :math:`p = P(z)` and logits :math:`s` of all
    samples, :math:`\pi` and :math:`\rho` two random permutations of the samples within each class, and one draw
    :math:`\lambda \sim \mathrm{Beta}(0.5, 0.5)`,

    .. math:: R + c \, \Big( \lambda \big(\lVert s - s_\pi \rVert^2 + 0.3 \lVert z - p_\pi \rVert^2\big)
        + (1 - \lambda) \big(\lVert s - \tilde s \rVert^2 + 0.3 \lVert z - \tilde p \rVert^2\big) \Big), \qquad
        \tilde s = \lambda s_\pi + (1 - \lambda) s_\rho

    where :math:`\tilde p` is mixed like :math:`\tilde s`, the squared norms are means over all samples and entries,
    :math:`R` is the mean cross-entropy, and :math:`c = \min(1, R)` is a constant: the penalty fades as the risk falls.
    The projection head :math:`P` is Linear(d, h), batch norm, ReLU, Linear(h, h), batch norm, ReLU, Linear(h, d), batch
    norm, with :math:`h = 2d`, or :math:`h = d` for the 2048 features of ResNet-50.

    It addresses diversity shift: samples of one class get the same features whatever their domain. There are no
    negative pairs: nothing is pushed apart.

    **A correction.** The released head is in no optimizer, so it stays as it was drawn (its authors report little
    difference). Here its weights are parameters of the objective, which the trainer trains with those of the network;
    with ``parity=True`` they are not trained.

    Domains weigh by their batch size. The order of samples or domains matters only in the draws, not in distribution. A
    class with one sample is compared with itself: its logits have no penalty, its features the distance to their own
    projection. Missing classes and one source domain need no special case. The penalty and the head are in single
    precision at least, also under autocast.

    :math:`\lambda` and then the permutations come from torch's global generator of the processor, whatever the device,
    which the trainer seeds for every step; released code draws :math:`\lambda` with NumPy.

    State: the weights of the head and the statistics of its batch norm. An update costs one joint forward and one
    backward pass, and those of the head. There are no hyperparameters. The stochastic weight averaging that the paper
    adds is a matter of the trainer; its curriculum of domains is left out, as in DomainBed.

    Args:
        features: The number :math:`d` of features of the network.
        parity: Leave the head as it was drawn, as released.
        seed: Of the weights of the head, which depend on nothing else: two equal objectives give equal results.

    Raises:
        InputError: If an option is out of its range; in a step, if the features are not as many as was said, or the
            joint batch has a single sample, of which batch norm has no variance.

    References:
        Kim et al. (2021), SelfReg: self-supervised contrastive regularization for domain generalization.
    """

    def __init__(self, *, features: int, parity: bool = False, seed: int = 0) -> None:
        super().__init__()
        if isinstance(features, bool) or features != int(features) or features < 1:
            raise InputError(f"SelfReg needs a whole number of features from 1, got {features!r}.")
        self.features, self.parity, self.seed = int(features), bool(parity), int(seed)
        hidden = self.features if self.features == 2048 else 2 * self.features
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            self.projection = nn.Sequential(
                nn.Linear(self.features, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
                nn.Linear(hidden, self.features),
                nn.BatchNorm1d(self.features),
            )
        self.projection.requires_grad_(not self.parity)

    def configuration(self) -> Mapping[str, Any]:
        """The number of features, whether the head is left untrained, and its seed."""
        return {"features": self.features, "parity": self.parity, "seed": self.seed}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The risk of the joint batch plus the distances within classes, a scalar."""
        labels = torch.cat([batch.labels for batch in batches])
        if len(labels) < 2:
            raise InputError(
                "SelfReg needs at least 2 samples in the joint batch, for the batch norm of its projection, got 1; "
                "use a larger batch size."
            )
        outputs = model(torch.cat([batch.images for batch in batches]))
        if outputs.features.shape[1] != self.features:
            raise InputError(
                f"SelfReg was made for {self.features} features, got {outputs.features.shape[1]}; "
                f"make it with features={outputs.features.shape[1]}."
            )
        # In double precision: many draws lie next to 0 or 1.
        half = torch.tensor(0.5, dtype=torch.float64)
        mix = torch.distributions.Beta(half, half).sample().item()
        order = labels.argsort(stable=True)
        one, other = _shuffled(labels), _shuffled(labels)
        with torch.autocast(labels.device.type, enabled=False):
            features, logits = single(outputs.features), single(outputs.logits)
            projected = self.projection(features)
            risk = F.cross_entropy(logits, labels)
            in_class = F.mse_loss(logits[order], logits[one])
            in_class = in_class + 0.3 * F.mse_loss(features[order], projected[one])
            mixed = F.mse_loss(logits[order], mix * logits[one] + (1 - mix) * logits[other])
            between = mix * projected[one] + (1 - mix) * projected[other]
            mixed = mixed + 0.3 * F.mse_loss(features[order], between)
            loss: Tensor = risk + risk.detach().clamp(max=1.0) * (mix * in_class + (1 - mix) * mixed)
            return loss


def _shuffled(labels: Tensor) -> Tensor:
    """The samples sorted by their label, in random order within each: no count of a class is asked of the device."""
    order = torch.randperm(len(labels)).to(labels.device)
    return order[labels[order].argsort(stable=True)]
