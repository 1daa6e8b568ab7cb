"""A later member that stays near an anchor in the directions on which the anchor depends: EWC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mirepoix.models import NetworkSpec
from mirepoix.snapshots._later import LaterMember, check_weight, joint_batch
from mirepoix.types import Batch, InputError, Weights

__all__ = ["EWC"]


class EWC(LaterMember):
    r"""Elastic weight consolidation (Kirkpatrick et al., 2017): weights on which the anchor depends stay near it.

    .. math:: \frac{1}{n} \sum_{i = 1}^{n} -\log p_w(y_i \mid x_i) + \frac{\alpha}{2} \sum_j F_j (w_j - w^*_j)^2

    over parameters :math:`j`, with :math:`F` the diagonal of the Fisher information of the anchor :math:`w^*`. For
    ensembles from one checkpoint it is the empirical one,

    .. math:: F_j = \frac{1}{N} \sum_{i = 1}^{N} \Big( \frac{\partial \log p_{w^*}(y_i \mid x_i)}{\partial w_j} \Big)^2,

    which is ``mirepoix.merging.fisher_diagonal(model, batches, labels="true")`` of a network with the weights of the
    anchor; with ``labels="model"`` it is that of Kirkpatrick et al. A pre-trained start without a classifier has no
    likelihood: attach a linear probe first. With :math:`F` one everywhere in the featurizer, and no entry for the
    classifier, this is `L2SP`.

    The size of :math:`F` differs by orders of magnitude between networks, and falls with the training error, so
    :math:`\alpha` is to be tuned for each. Where the member starts at its anchor the term and its gradient are 0. With
    :math:`\alpha = 0` this is ERM. Weights are compared in single precision at least, also under autocast.

    Logged: ``nll`` and ``fisher_distance``, :math:`\sum_j F_j (w_j - w^*_j)^2`.

    The state is the anchor and :math:`F`. An update costs a few passes over the weights.

    Args:
        network: The network of a member.
        members: The first one is the anchor, the others are not looked at.
        fisher: Names of parameters to diagonals of their shape, none below 0. A parameter that is not named is free.
        alpha: :math:`\alpha`, 0 or more. No value is published for ensembles; 1e-3 to 1e3, in powers of ten, is a
            grid to begin with.

    Raises:
        InputError: Without an anchor, or for one of another network; for a diagonal of no parameter, of another shape,
            or with entries that are negative or not finite; if ``alpha`` is out of its range; in a step, if the network
            in training is another one.

    References:
        Kirkpatrick et al. (2017), Overcoming catastrophic forgetting in neural networks, equation 3;
        Sadrtdinov et al. (2023), To stay or not to stay in the pre-train basin (as a baseline).
    """

    fisher: Tensor

    def __init__(
        self,
        network: NetworkSpec,
        members: Sequence[Weights],
        *,
        fisher: Mapping[str, Tensor],
        alpha: float,
    ) -> None:
        super().__init__(network, members if isinstance(members, Mapping) else members[:1])
        if not len(self.members):
            raise InputError("EWC needs an anchor as the first of its members, got none.")
        self.alpha = check_weight("EWC", "alpha", alpha)
        anchor = self.member(0)
        _check_fisher(fisher, dict(anchor.named_parameters(remove_duplicate=False)))
        # In the order of the parameters of the network, zeros for those that are free.
        diagonals = [
            fisher[name].detach().to("cpu", parameter.dtype)
            if name in fisher
            else torch.zeros_like(parameter)
            for name, parameter in anchor.named_parameters()
        ]
        self.register_buffer("fisher", torch.cat([diagonal.flatten() for diagonal in diagonals]))

    def configuration(self) -> Mapping[str, Any]:
        """The network and the weight of the term; the diagonal is in the state."""
        return {**super().configuration(), "alpha": self.alpha}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy of the joint batch plus the weighted distance, a scalar."""
        images, labels = joint_batch(batches)
        nll = self.nll(model(images), labels)
        pairs = list(self.pairs(model, self.member(0)))
        diagonals = torch.split(self.fisher, [own.numel() for _, own, _ in pairs])
        squares = [
            (diagonal.view_as(own) * (own - anchor).square()).sum()
            for (_, own, anchor), diagonal in zip(pairs, diagonals, strict=True)
        ]
        distance = torch.stack(squares).sum()
        self.parts = {"nll": nll.detach(), "fisher_distance": distance.detach()}
        return nll + self.alpha / 2 * distance


def _check_fisher(fisher: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    if not isinstance(fisher, Mapping) or not fisher:
        raise InputError(
            "EWC needs fisher to be names of parameters with their diagonals, as mirepoix.merging.fisher_diagonal "
            f"returns them, got {'none' if isinstance(fisher, Mapping) else type(fisher).__name__}."
        )
    for name, diagonal in fisher.items():
        if name not in parameters:
            raise InputError(
                f"EWC: fisher has {name!r}, which is no parameter of the network; measure it on the network of the "
                "anchor."
            )
        if diagonal.shape != parameters[name].shape:
            raise InputError(
                f"EWC: fisher has shape {tuple(diagonal.shape)} for {name!r}, the parameter has "
                f"{tuple(parameters[name].shape)}; measure it on the network of the anchor."
            )
        if not bool((diagonal.isfinite() & (diagonal >= 0)).all()):
            raise InputError(
                f"EWC: fisher holds entries that are negative or not finite for {name!r}; it is a mean of squares, "
                "measure it again."
            )
