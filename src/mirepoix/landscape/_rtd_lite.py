"""RTD-Lite: the part of representation topology divergence that minimum spanning trees can see.

It knows when clusters come together and nothing of loops, in quadratic time where RTD needs the third power.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from mirepoix.landscape._distances import (
    Divergence,
    Normalisation,
    both_distances,
    checked_distances,
    clouds,
    draws,
    summary,
)

__all__ = ["rtd_lite", "rtd_lite_barcode", "rtd_lite_loss"]


def rtd_lite(
    p: Float[Tensor, "objects ..."],
    q: Float[Tensor, "objects ..."],
    *,
    normalisation: Normalisation = "quantile",
    subsets: int = 10,
    subset_size: int = 2048,
    seed: int = 0,
) -> Divergence:
    r"""RTD-Lite: how differently the clusters of two representations come together.

    .. math:: \mathrm{Lite}(P, Q) = \tfrac12 [\mathrm{MST}(D_P) + \mathrm{MST}(D_Q)] - \mathrm{MST}(\min(D_P, D_Q)),

    with the total weights of minimum spanning trees, on Euclidean distances divided by their own 0.9-quantile. Each
    direction, :math:`\mathrm{MST}(D_P) - \mathrm{MST}(\min(D_P, D_Q))`, is a lower bound of that of `rtd`.

    Higher is more different. In :math:`[0, \infty)`; 0 for equal shapes, with any rotation, shift or scale, but also
    for some that differ in their loops only. It grows with the number of objects. Computed in float64 on the
    processor, without gradient (see `rtd_lite_loss`); the memory is that of two matrices of distances.

    Args:
        p: A representation of each object; further axes are flattened.
        q: Another one, of the same objects in the same order. Its size may differ.
        normalisation: As in `rtd`.
        subsets: How many random subsets, if there are more objects than ``subset_size``.
        subset_size: How many objects each has. Time and memory grow with the square.
        seed: Of the subsets. `rtd` with the same sizes draws the same ones.

    Returns:
        Mean, standard deviation and both directions over the subsets.

    Raises:
        InputError: For different numbers of objects or fewer than three; for values that are not finite; for a
            cloud with so many copies that its quantile is 0; for unknown options.

    Example:
        >>> p = torch.tensor([[0.0], [1.0], [3.0]])
        >>> q = torch.tensor([[0.0], [2.0], [3.0]])
        >>> rtd_lite(p, q, normalisation=1.0).mean  # (3 + 3) / 2 - 2
        1.0

    References:
        Tulchinskii et al. (2025), RTD-Lite: scalable topological analysis for comparing weighted graphs in learning
        tasks.
    """
    p, q = (x.detach().cpu().double() for x in clouds("rtd_lite", p, q))
    directions = []
    for chosen in draws(len(p), subsets, subset_size, seed):
        d_p, d_q = (d.numpy() for d in both_distances(p[chosen], q[chosen], normalisation))
        weight_p, weight_q, weight = (float(d[_tree(d)].sum()) for d in (d_p, d_q, np.minimum(d_p, d_q)))
        directions.append((weight_p - weight, weight_q - weight))
    return summary(directions, min(subset_size, len(p)), len(p))


def rtd_lite_loss(
    p: Float[Tensor, "objects ..."],
    q: Float[Tensor, "objects ..."],
    *,
    normalisation: Normalisation = "quantile",
    detach_normalisation: bool = True,
) -> Float[Tensor, ""]:
    r"""RTD-Lite of two representations of a minibatch, with gradients.

    The edges of each cloud's tree get a gradient of one half, those of the tree of the minimum get minus one, which
    goes to the cloud that attains the minimum, and to both in halves where they are equal. The trees are found on the
    processor. At two equal clouds, and for points that coincide, the gradient is 0.

    Args:
        p: A representation of each object; further axes are flattened.
        q: Another one, of the same objects in the same order.
        normalisation: As in `rtd`. For a drop-in replacement of `rtd_loss` take ``"dimension"``.
        detach_normalisation: Whether a normalisation made of the distances is a constant for the gradient.

    Returns:
        The value of `rtd_lite` on all objects, in the wider of both types and at least float32.

    Raises:
        InputError: As `rtd_lite`; also for clouds on two devices.

    Example:
        >>> p = torch.tensor([[0.0], [1.0], [3.0]])
        >>> q = torch.tensor([[0.0], [2.0], [3.0]], requires_grad=True)
        >>> loss = rtd_lite_loss(p, q, normalisation=1.0)
        >>> loss.backward()
        >>> loss.item(), q.grad.flatten().tolist()
        (1.0, [-0.5, 1.0, -0.5])

    References:
        Tulchinskii et al. (2025), RTD-Lite.
    """
    p, q = clouds("rtd_lite_loss", p, q)
    d_p, d_q = both_distances(p, q, normalisation, detach=detach_normalisation)
    a, b = (d.detach().cpu().double().numpy() for d in (d_p, d_q))
    tree_p, tree_q, tree = (_tree(d) for d in (a, b, np.minimum(a, b)))
    # At equal entries `torch.minimum` halves the gradient, so that it cancels that of the trees of equal clouds.
    nearer = torch.minimum(_at(d_p, tree), _at(d_q, tree))
    return (_at(d_p, tree_p).sum() + _at(d_q, tree_q).sum()) / 2 - nearer.sum()


def rtd_lite_barcode(
    d_p: Float[Tensor, "objects objects"], d_q: Float[Tensor, "objects objects"]
) -> Float[Tensor, "bars 2"]:
    r"""When clusters come together in ``q``, and when they do so in ``p``: the bars of one direction of RTD-Lite.

    The edges of the minimum spanning tree of :math:`\min(D_P, D_Q)` are taken by increasing weight. Each begins a
    bar at its weight, and ends it at the weight at which edges of the tree of :math:`D_P`, with all edges taken
    before, connect the same two clusters. The lengths sum to
    :math:`\mathrm{MST}(D_P) - \mathrm{MST}(\min(D_P, D_Q))`.

    Args:
        d_p: Distances between the objects, in the unit of the others. They need not be a metric.
        d_q: Other distances between the same objects.

    Returns:
        Births and deaths of the bars that have a length, by increasing birth; float64, without gradient.

    Raises:
        InputError: As `directed_rtd`.

    Example:
        >>> d_p = torch.tensor([[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]])
        >>> d_q = torch.tensor([[0.0, 2.0, 3.0], [2.0, 0.0, 1.0], [3.0, 1.0, 0.0]])
        >>> rtd_lite_barcode(d_p, d_q)
        tensor([[1., 2.]], dtype=torch.float64)

    References:
        Tulchinskii et al. (2025), RTD-Lite.
    """
    a, b = (d.detach().cpu().double().numpy() for d in checked_distances("rtd_lite_barcode", d_p, d_q))
    nearer = np.minimum(a, b)
    rows, columns = _tree(nearer)
    forest = _Forest(a)
    bars = []
    for edge in np.argsort(nearer[rows, columns], kind="stable"):
        u, v = int(rows[edge]), int(columns[edge])
        birth, death = float(nearer[u, v]), forest.replace(u, v)
        if death > birth:
            bars.append((birth, death))
    return torch.tensor(bars, dtype=torch.float64).reshape(-1, 2)


class _Forest:
    """A tree whose edges are replaced one by one by edges that weigh nothing."""

    def __init__(self, distances: NDArray[np.float64]) -> None:
        parents, children = _tree(distances)
        self.parent: dict[int, int] = dict(
            zip(children.tolist(), parents.tolist(), strict=True)
        )  # of all but the root
        self.weight: dict[int, float] = dict(
            zip(children.tolist(), distances[parents, children].tolist(), strict=True)
        )

    def replace(self, u: int, v: int) -> float:
        """Take the heaviest edge on the way from u to v out, connect them at no weight, and tell what it weighed."""
        self._lift(u)
        way = [v]
        while way[-1] in self.parent:
            way.append(self.parent[way[-1]])
        heaviest = max(way[:-1], key=self.weight.__getitem__)
        death = self.weight.pop(heaviest)
        del self.parent[heaviest]
        self._lift(v)  # of its own half now
        self.parent[v], self.weight[v] = u, -np.inf
        return death

    def _lift(self, node: int) -> None:
        """Make it the root: turn the edges above it."""
        above, weight = self.parent.pop(node, None), self.weight.pop(node, 0.0)
        while above is not None:
            beyond, heavier = self.parent.pop(above, None), self.weight.pop(above, 0.0)
            self.parent[above], self.weight[above] = node, weight
            node, above, weight = above, beyond, heavier


def _tree(distances: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The edges of a minimum spanning tree, by Prim, from object 0 on: of each, the vertex before and the new one.

    Not SciPy's: for it a distance of 0 in a dense array is no edge, so copies of a point make the tree too heavy.
    """
    objects = len(distances)
    before = np.zeros(objects, dtype=np.int64)
    nearest = distances[0].copy()
    outside = np.ones(objects, dtype=bool)
    outside[0], nearest[0] = False, np.inf
    order = np.empty(objects - 1, dtype=np.int64)
    for step in range(objects - 1):
        new = int(nearest.argmin())
        order[step] = new
        outside[new], nearest[new] = False, np.inf
        closer = outside & (distances[new] < nearest)
        nearest[closer] = distances[new, closer]
        before[closer] = new
    return before[order], order


def _at(
    distances: Float[Tensor, "objects objects"], edges: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> Float[Tensor, " edges"]:
    rows, columns = (torch.from_numpy(part).to(distances.device) for part in edges)
    return distances[rows, columns]
