"""A simplex of weights on which the loss is low, vertex by vertex, and members from inside of it: SPRO."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mirepoix.models import NetworkSpec
from mirepoix.seeds import stream
from mirepoix.snapshots._later import LaterMember, check_weight, joint_batch, uncompiled
from mirepoix.types import Batch, InputError, Weights
from mirepoix.weights import check_averageable, distance, interpolate

__all__ = ["SimplexVolume", "sample_simplex", "simplex_volume"]

FLOOR = 1e-4
"""Added to the volume in the logarithm, as the first step may begin at a volume of 0."""


class SimplexVolume(LaterMember):
    r"""One more vertex of a simplex of weights that is large, and low everywhere (Benton et al., 2021, SPRO).

    With :math:`w_1, \dots, w_{n-1}` the vertices so far, which are frozen, and :math:`w_n = w` the network in training,

    .. math:: \frac{1}{P} \sum_{p = 1}^{P} \mathrm{CE}\Big(f_{\sum_i \lambda^p_i w_i}\Big)
        - \alpha \log \big( V(w_1, \dots, w_n) + 10^{-4} \big), \qquad \lambda^p \sim \mathrm{Dirichlet}(1, \dots, 1)

    on the joint batch, with :math:`P` points drawn anew in every step, and the volume of `simplex_volume`. Vertices are
    trained one after the other, each from the mean of those before, and members are then drawn with `sample_simplex`::

        vertices = [theta_1]
        for run in runs:
            criterion = SimplexVolume(network, vertices, alpha=1e-6)
            vertices.append(Trainer(network, criterion)(average(vertices), split, run))
        members = [sample_simplex(vertices, seed) for seed in range(4)]

    Published settings are 10 to 20 epochs per vertex with a learning rate of 0.01. At the mean, where a vertex begins,
    the volume has no slope: it is the risk that moves the vertex away first. Right after, the slope of the logarithm is
    steep, :math:`10^4 \alpha` for the second vertex. With :math:`\alpha = 0` the simplex is low, and may be small.

    Distances and volume are in float64, where the device has it. Only parameters are mixed. Buffers are those of the
    network in training, so batch-norm layers that are not frozen gather statistics of all points that were drawn, which
    are neither those of the vertex nor of any member: measure them again, for each member, with
    `mirepoix.merging.reestimate_batch_norm`. Validation during the training is that of the vertex alone. The network
    runs uncompiled.

    Logged: ``nll``, the mean over points, and ``volume``.

    The state are the vertices. An update costs P forward and backward passes, and holds the activations of all.

    Args:
        network: The network of a vertex.
        members: The vertices before, from one on.
        alpha: :math:`\alpha`, 0 or more. What fits depends on the size of the network and the number of vertices.
        points: P, as published.
        root: Take the volume. Without, the square of it, as the public code does; its logarithm is twice as large.

    Raises:
        InputError: Without a vertex, or for one of another network; if an option is out of its range; in a step, if the
            network in training is another one.

    References:
        Benton et al. (2021), Loss surface simplexes for mode connecting volumes and fast ensembling.
    """

    def __init__(
        self,
        network: NetworkSpec,
        members: Sequence[Weights],
        *,
        alpha: float,
        points: int = 5,
        root: bool = True,
    ) -> None:
        super().__init__(network, members)
        if not len(self.members):
            raise InputError(
                "SimplexVolume needs the vertices before this one, got none; the first is trained with ERM."
            )
        self.alpha = check_weight("SimplexVolume", "alpha", alpha)
        if isinstance(points, bool) or not isinstance(points, int) or points < 1:
            raise InputError(f"SimplexVolume needs points to be a whole number from 1, got {points!r}.")
        self.points, self.root = points, bool(root)
        weights = [dict(self.member(place).named_parameters()) for place in range(len(self.members))]
        self.sides = [[distance(one, other, squared=True) for other in weights] for one in weights]

    def configuration(self) -> Mapping[str, Any]:
        """The network and all options; the vertices are in the state."""
        return {
            **super().configuration(),
            "alpha": self.alpha,
            "points": self.points,
            "root": self.root,
        }

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy over points of the simplex, minus the weighted logarithm of its volume."""
        images, labels = joint_batch(batches)
        network = uncompiled(model)
        volume = self._volume(network)
        ones = torch.ones(len(self.members) + 1, dtype=torch.float64)
        shares = torch.distributions.Dirichlet(ones).sample((self.points,)).tolist()
        losses = [
            self.nll(functional_call(network, self._mixed(network, share), (images,)), labels)
            for share in shares
        ]
        nll = torch.stack(losses).mean()
        self.parts = {"nll": nll.detach(), "volume": volume.detach().to(nll.dtype)}
        return nll - (self.alpha * (volume + FLOOR).log()).to(nll.dtype)

    def _mixed(self, network: nn.Module, share: Sequence[float]) -> dict[str, Tensor]:
        """The parameters at one point; the last share is that of the network in training."""
        mixed = {name: share[-1] * own for name, own in network.named_parameters()}
        for place, of_vertex in enumerate(share[:-1]):
            for name, value in self.member(place).named_parameters():
                mixed[name] = mixed[name] + of_vertex * value
        return mixed

    def _volume(self, network: nn.Module) -> Tensor:
        """Of the simplex with the network in training as the last vertex."""
        own_sides = []
        for place in range(len(self.members)):
            squares = [
                (_wide(own) - _wide(theirs)).square().sum()
                for _, own, theirs in self.pairs(network, self.member(place))
            ]
            own_sides.append(torch.stack(squares).sum())
        own = torch.stack(own_sides)
        if own.device.type == "mps":
            own = own.cpu()
        rows = torch.tensor(self.sides, dtype=torch.float64, device=own.device)
        squared = torch.cat([torch.cat([rows, own[:, None]], 1), F.pad(own, (0, 1))[None]])
        return _volume_of(squared, self.root).to(own_sides[0])


def simplex_volume(vertices: Sequence[Weights], *, root: bool = True) -> float:
    r"""The volume of the simplex whose vertices are these weights.

    .. math:: V^2 = \frac{\lvert \det C \rvert}{2^{n - 1} \, ((n - 1)!)^2}, \qquad
        C = \begin{pmatrix} 0 & 1^\top \\ 1 & D \end{pmatrix}

    with :math:`D_{ij}` the squared distance of vertices i and j (`mirepoix.weights.distance`) and :math:`C` the
    Cayley-Menger matrix: a length for two vertices, an area for three. It is 0 where they lie in a plane of fewer
    dimensions, and grows with the power n - 1 of their distance.

    Args:
        vertices: n of them, two or more.
        root: Return :math:`V`; otherwise :math:`V^2`.

    Raises:
        InputError: For fewer than two vertices, or of different networks.

    Example:
        >>> import torch
        >>> corners = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
        >>> round(simplex_volume([{"w": corner} for corner in corners]), 6)
        6.0
    """
    if isinstance(vertices, Mapping) or len(vertices) < 2:
        raise InputError("simplex_volume needs a list of two vertices or more.")
    squared = [[distance(one, other, squared=True) for other in vertices] for one in vertices]
    return _volume_of(torch.tensor(squared, dtype=torch.float64), root).item()


def sample_simplex(vertices: Sequence[Weights], seed: int) -> dict[str, Any]:
    r"""One member from the simplex between some weights, all points being equally likely.

    .. math:: \theta = \sum_i \lambda_i w_i, \qquad \lambda \sim \mathrm{Dirichlet}(1, \dots, 1)

    by `mirepoix.weights.interpolate`. Batch-norm statistics are interpolated too, and fit no member: measure them
    again, with `mirepoix.merging.reestimate_batch_norm`. Of one vertex it is a copy.

    Args:
        vertices: Weights of one network.
        seed: Of the draw; another one gives another, independent member.

    Raises:
        InputError: Without vertices, or for weights of different networks.

    References:
        Benton et al. (2021), Loss surface simplexes for mode connecting volumes and fast ensembling.
    """
    check_averageable(vertices)
    shares = stream("sample_simplex", seed).dirichlet(np.ones(len(vertices)))
    return interpolate(vertices, shares.tolist())


def _volume_of(squared: Tensor, root: bool) -> Tensor:
    """From the squared distances of all vertices."""
    count = len(squared)
    bordered = F.pad(squared, (1, 0, 1, 0), value=1.0)
    bordered[0, 0] = 0
    volume: Tensor = torch.linalg.det(bordered).abs() / (2 ** (count - 1) * math.factorial(count - 1) ** 2)
    if not root:
        return volume
    # The root has no slope at 0.
    flat = volume == 0
    return torch.where(flat, 0.0, torch.where(flat, 1.0, volume).sqrt())


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)
