"""A later member whose weights are turned away from those of an earlier one: StarSSE-WO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mirepoix.models import NetworkSpec
from mirepoix.snapshots._later import LaterMember, check_number, joint_batch
from mirepoix.types import Batch, InputError, Weights

__all__ = ["WeightOrthogonalisation"]


class WeightOrthogonalisation(LaterMember):
    r"""The risk plus the squared cosine between weights and those of an earlier member: StarSSE-WO.

    .. math:: \frac{1}{n} \sum_{i = 1}^{n} -\log p_w(y_i \mid x_i) + \alpha \cos^2(w, w_j), \qquad
        \cos(u, v) = \frac{\langle u, v \rangle}{\lVert u \rVert_2 \lVert v \rVert_2}

    with :math:`j` drawn anew in every step, uniformly from ``members``. Positive :math:`\alpha` makes weights
    orthogonal, negative :math:`\alpha` makes them parallel. The term is in [0, 1], and blind to the length of
    :math:`w`, so its gradient is orthogonal to :math:`w`.

    As published, member :math:`i \ge 3` looks at the members 2 to :math:`i - 1`, never at the first one, from which all
    start: give ``earlier[1:]``. Member 2 has none to look at, and without members this is ERM.

    The published values are of a term without a gradient, as the public code reads the weights in training past it; so
    they are those of StarSSE trained again, and no evidence that the term does nothing. ``detach=True`` is that.

    Weights that were fine-tuned from one start have a cosine near one, whatever they learned. With ``relative_to``
    the start, it is that of their displacements,

    .. math:: \cos(w - w_1, w_j - w_1),

    which is taken as 0 while one of them is 0, as in the first step from there. Its gradient grows with
    :math:`1 / \lVert w - w_1 \rVert`: it is large at first.

    Products are in single precision at least, also under autocast. Running statistics are no weights.

    Logged: ``nll``, and ``cos2``, the squared cosine with the member of the step.

    The state are the members, and the start. An update costs a few passes over the weights.

    Args:
        network: The network of a member.
        members: The earlier members to be drawn from; there may be none.
        alpha: :math:`\alpha`, of any sign. Published: -31.6, -10, -3.16, 1, 3.16, 10, 31.6.
        parameters: ``"all"`` parameters, or only the kernels of ``"convolutions"``.
        relative_to: The weights :math:`w_1` that are subtracted on both sides; by default none.
        detach: Leave the gradient of the term out, as the public code does.

    Raises:
        InputError: For members of another network; for a network without convolutions, if they were chosen; if an
            option is out of its range; in a step, if the network in training is another one.

    References:
        The method is from work on StarSSE after Sadrtdinov et al. (2023), To stay or not to stay in the pre-train
        basin.
    """

    def __init__(
        self,
        network: NetworkSpec,
        members: Sequence[Weights],
        *,
        alpha: float,
        parameters: Literal["all", "convolutions"] = "all",
        relative_to: Weights | None = None,
        detach: bool = False,
    ) -> None:
        super().__init__(network, members)
        self.alpha = check_number("WeightOrthogonalisation", "alpha", alpha)
        if parameters not in ("all", "convolutions"):
            raise InputError(
                f"WeightOrthogonalisation needs parameters to be 'all' or 'convolutions', got {parameters!r}."
            )
        self.which = parameters
        self.start = None if relative_to is None else self.frozen(relative_to, "relative_to")
        self.detach = bool(detach)
        plain = network.build_empty()
        self.names = {name for name, _ in plain.named_parameters()}
        if parameters == "convolutions":
            self.names = {
                f"{name}.weight" for name, module in plain.named_modules() if isinstance(module, _ConvNd)
            }
            if not self.names:
                raise InputError(
                    f"WeightOrthogonalisation: {network.name} has no convolutions; use parameters='all'."
                )

    def configuration(self) -> Mapping[str, Any]:
        """The network and all options; members and start are in the state."""
        return {
            **super().configuration(),
            "alpha": self.alpha,
            "parameters": self.which,
            "relative": self.start is not None,
            "detach": self.detach,
        }

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy of the joint batch plus the weighted squared cosine, a scalar."""
        images, labels = joint_batch(batches)
        nll = self.nll(model(images), labels)
        self.parts = {"nll": nll.detach()}
        if not len(self.members):
            return nll
        squared = self._squared_cosine(model)
        self.parts["cos2"] = squared.detach()
        return nll + self.alpha * (squared.detach() if self.detach else squared)

    def _squared_cosine(self, model: nn.Module) -> Tensor:
        """With one of the members, drawn."""
        start = dict(self.start.named_parameters()) if self.start is not None else {}
        products, own_squares, their_squares = [], [], []
        for name, own, other in self.pairs(model, self.drawn()):
            if name not in self.names:
                continue
            if start:
                own, other = own - start[name], other - start[name]
            products.append((own * other).sum())
            own_squares.append(own.square().sum())
            their_squares.append(other.square().sum())
        product, own_square, their_square = (
            torch.stack(sums).sum() for sums in (products, own_squares, their_squares)
        )
        # Divided one after the other: the product of two small squares would be 0 in single precision.
        usable = (own_square > 0) & (their_square > 0)
        one = torch.ones_like(product)
        ratios = [product / torch.where(usable, square, one) for square in (own_square, their_square)]
        return torch.where(usable, ratios[0] * ratios[1], torch.zeros_like(product))
