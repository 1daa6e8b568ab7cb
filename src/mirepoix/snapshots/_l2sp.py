"""A later member whose featurizer stays near an anchor in weight space: L2-SP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mirepoix.models import NetworkSpec
from mirepoix.snapshots._later import LaterMember, check_weight, joint_batch
from mirepoix.types import Batch, InputError, Weights

__all__ = ["L2SP"]


class L2SP(LaterMember):
    r"""The risk plus the squared distance of the featurizer from an anchor: L2-SP (Li et al., 2018).

    .. math:: \frac{1}{n} \sum_{i = 1}^{n} -\log p_w(y_i \mid x_i) + \frac{\alpha}{2} \lVert \phi - \phi^* \rVert_2^2

    over the parameters :math:`\phi` of the featurizer, scale and shift of its norm layers included; the classifier and
    running statistics are free. The anchor of the paper is the pre-trained start, where it replaces weight decay, which
    pulls towards zero: train with ``weight_decay=0``. (The paper also has a weight decay of the classifier alone, which
    is not here.) In ensembles from one checkpoint the anchor is the pre-trained start or the first member.

    Where the member starts at its anchor the term and its gradient are 0. With :math:`\alpha = 0` this is ERM. Weights
    are compared in single precision at least, also under autocast.

    Logged: ``nll`` and ``squared_distance``, :math:`\lVert \phi - \phi^* \rVert_2^2`.

    The state is the anchor. An update costs a few passes over the weights.

    Args:
        network: The network of a member.
        members: The first one is the anchor, the others are not looked at. Its classifier does not matter.
        alpha: :math:`\alpha`, 0 or more. No value is published for ensembles; 1e-3 to 1e3, in powers of ten, is a
            grid to begin with.

    Raises:
        InputError: Without an anchor, or for one of another network; if ``alpha`` is out of its range; in a step, if
            the network in training is another one.

    References:
        Li et al. (2018), Explicit inductive bias for transfer learning with convolutional networks, section 3;
        Sadrtdinov et al. (2023), To stay or not to stay in the pre-train basin (as a baseline).
    """

    def __init__(self, network: NetworkSpec, members: Sequence[Weights], *, alpha: float) -> None:
        super().__init__(network, members if isinstance(members, Mapping) else members[:1])
        if not len(self.members):
            raise InputError("L2SP needs an anchor as the first of its members, got none.")
        self.alpha = check_weight("L2SP", "alpha", alpha)

    def configuration(self) -> Mapping[str, Any]:
        """The network and the weight of the term."""
        return {**super().configuration(), "alpha": self.alpha}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy of the joint batch plus the weighted squared distance, a scalar."""
        images, labels = joint_batch(batches)
        nll = self.nll(model(images), labels)
        squares = [
            (own - anchor).square().sum()
            for name, own, anchor in self.pairs(model, self.member(0))
            if name.startswith("featurizer.")
        ]
        distance = torch.stack(squares).sum()
        self.parts = {"nll": nll.detach(), "squared_distance": distance.detach()}
        return nll + self.alpha / 2 * distance
