"""Representation topology divergence (RTD): do two representations of the same objects have the same shape?

Objects come together at some scale in one cloud and at another in the other one. A graph that holds both clouds at
once has a loop for each difference, from the scale at which it shows to the scale at which it is gone.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

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
from mirepoix.landscape._persistence import Engine, h1_edges
from mirepoix.types import InputError

__all__ = ["directed_rtd", "rtd", "rtd_loss"]

# Distances below this share of the mean count as none, as in the public code.
NEGLIGIBLE = 1e-6


class _Ends(NamedTuple):
    """One end of each bar, as an entry of the distances."""

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    nearer: NDArray[np.bool_]  # of the minimum of both clouds; otherwise of the first
    zero: NDArray[np.bool_]  # or no entry at all: the number 0


class _Bars(NamedTuple):
    births: _Ends
    deaths: _Ends
    lengths: NDArray[np.float64]


def rtd(
    p: Float[Tensor, "objects ..."],
    q: Float[Tensor, "objects ..."],
    *,
    normalisation: Normalisation = "quantile",
    longest: int | None = None,
    subsets: int = 10,
    subset_size: int = 500,
    engine: Engine = "gudhi",
    seed: int = 0,
) -> Divergence:
    r"""Representation topology divergence (RTD): how differently two representations connect the same objects.

    .. math:: \mathrm{RTD}(P, Q) = \tfrac12 [\mathrm{RTD}_1(P \to Q) + \mathrm{RTD}_1(Q \to P)],

    with the directions of `directed_rtd`, on Euclidean distances that are divided by their own 0.9-quantile over all
    pairs (a point with itself included). Averaged over random subsets, with the same objects in both clouds.

    Higher is more different. In :math:`[0, \infty)`; 0 for equal shapes, with any rotation, shift or scale, and for
    little else. It grows with the number of objects: compare values of equal ``points`` only. Computed in float64
    on the processor, without gradient: see `rtd_loss` to train with it and `rtd_lite` for more points.

    Args:
        p: A representation of each object; further axes are flattened.
        q: Another one, of the same objects in the same order. Its size may differ.
        normalisation: What each cloud's distances are divided by: their 0.9-quantile, mean or median, the square
            root of the number of features (``"dimension"``), or a number for both.
        longest: Only this many of the longest bars in each direction; all by default.
        subsets: How many random subsets, if there are more objects than ``subset_size``.
        subset_size: How many objects each has. Time grows with about the third power.
        engine: ``"gudhi"``, or ``"simplex_tree"``: the same values, much slower.
        seed: Of the subsets.

    Returns:
        Mean, standard deviation and both directions over the subsets.

    Raises:
        InputError: For different numbers of objects or fewer than three; for values that are not finite; for a
            cloud with so many copies that its quantile is 0; for unknown options; without gudhi.

    Example:
        >>> p = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])  # a square
        >>> rtd(p, 2 * p + 1).mean
        0.0
        >>> line = torch.tensor([[0.0], [1.0], [3.0], [2.0]])  # the same tour, cut open
        >>> result = rtd(p, line, normalisation=1.0)
        >>> result.p_to_q, round(result.q_to_p, 4)  # the loop of the square, from 1 to its diagonal
        (0.0, 0.4142)

    References:
        Barannikov et al. (2022), Representation topology divergence: a method for comparing neural network
        representations; 10 subsets of 500 objects are those of its public code.
    """
    p, q = (x.detach().cpu().double() for x in clouds("rtd", p, q))
    directions = []
    for chosen in draws(len(p), subsets, subset_size, seed):
        d_p, d_q = both_distances(p[chosen], q[chosen], normalisation)
        there, back = _both_bars(d_p, d_q, longest, engine)
        directions.append((float(there.lengths.sum()), float(back.lengths.sum())))
    return summary(directions, min(subset_size, len(p)), len(p))


def rtd_loss(
    p: Float[Tensor, "objects ..."],
    q: Float[Tensor, "objects ..."],
    *,
    normalisation: Normalisation = "dimension",
    detach_normalisation: bool = True,
    longest: int | None = 50,
    gradient: Literal["exact", "transfer"] = "exact",
    engine: Engine = "gudhi",
) -> Float[Tensor, ""]:
    r"""RTD of two representations of a minibatch, with gradients.

    As `rtd`, on the batch as it is, with the distances divided by :math:`\sqrt d` only and the 50 longest bars of
    each direction. A bar is the difference of two distances, so almost everywhere

    .. math:: \partial\, \mathrm{RTD}_1 = \sum_{\text{bars}} (\partial A_{\text{death}} - \partial A_{\text{birth}}).

    The two distances are found on the processor in float64 without gradient, the loss is then made of them where
    the clouds are. At 0, and for points that coincide, the gradient is 0: a member that starts at its anchor is not
    moved by this loss alone.

    Args:
        p: A representation of each object, such as the features of the anchor, detached; further axes are flattened.
        q: Another one, of the same objects in the same order, such as the features of the member in training.
        normalisation: As in `rtd`.
        detach_normalisation: Whether a normalisation made of the distances is a constant for the gradient.
        longest: How many of the longest bars in each direction; ``None`` for all.
        gradient: ``"exact"``, or ``"transfer"`` as in the public code of SSE-RTD: where the death of a bar is the
            minimum of both distances, ``q`` gets the gradient even if the minimum is that of ``p``. The value is the
            same.
        engine: As in `rtd`.

    Returns:
        The mean of both directions, in the wider of both types and at least float32.

    Raises:
        InputError: As `rtd`; also for clouds on two devices.

    Example:
        >>> p = torch.tensor([[0.0], [1.0], [3.0]])
        >>> q = torch.tensor([[0.0], [2.0], [3.0]], requires_grad=True)
        >>> loss = rtd_loss(p, q)
        >>> loss.backward()
        >>> loss.item(), q.grad.flatten().tolist()
        (1.0, [-0.5, 1.0, -0.5])

    References:
        Trofimov et al. (2023), Learning topology-preserving data representations (the gradient);
        Sadrtdinov et al. (2023), To stay or not to stay in the pre-train basin (SSE).
    """
    if gradient not in ("exact", "transfer"):
        raise InputError(f"gradient must be 'exact' or 'transfer', got {gradient!r}.")
    p, q = clouds("rtd_loss", p, q)
    d_p, d_q = both_distances(p, q, normalisation, detach=detach_normalisation)
    there, back = _both_bars(d_p, d_q, longest, engine)
    movable = d_q if gradient == "transfer" else None
    return (_total(d_p, d_q, there, movable) + _total(d_q, d_p, back, movable)) / 2


def directed_rtd(
    d_p: Float[Tensor, "objects objects"],
    d_q: Float[Tensor, "objects objects"],
    *,
    longest: int | None = None,
    engine: Engine = "gudhi",
) -> Float[Tensor, ""]:
    r"""RTD in one direction: what comes together in ``q`` and is still apart in ``p``.

    The sum of the lengths of the bars of the first homology (loops, over Z/2) of the graph on two copies of the
    objects with the lengths

    .. math:: A = \begin{pmatrix} 0 & D_P \\ D_P & \min(D_P, D_Q) \end{pmatrix}.

    Zero if :math:`D_Q \ge D_P` everywhere; at least the difference of the total weights of the minimum spanning
    trees of :math:`D_P` and :math:`\min(D_P, D_Q)`, which is `rtd_lite`. Differentiable with respect to both. Its
    dual is ``directed_rtd(torch.maximum(d_p, d_q), d_q)``, and the sum of the two is called MinMax-RTD.

    Args:
        d_p: Distances between the objects, in the unit of the others. They need not be a metric.
        d_q: Other distances between the same objects.
        longest: As in `rtd`.
        engine: As in `rtd`.

    Raises:
        InputError: For other than two square matrices of one size, at least 3; for negative entries, such that are
            not finite, and a diagonal that is not zero; for matrices that are not symmetric.

    Example:
        >>> d_p = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
        >>> d_q = torch.tensor([[0.0, 0.5, 1.0], [0.5, 0.0, 1.0], [1.0, 1.0, 0.0]])
        >>> directed_rtd(d_p, d_q), directed_rtd(d_q, d_p)
        (tensor(0.5000), tensor(0.))

    References:
        Barannikov et al. (2022): the R-cross-barcode.
    """
    d_p, d_q = checked_distances("directed_rtd", d_p, d_q)
    return _total(d_p, d_q, _bars(_array(d_p), _array(d_q), longest, engine), None)


def _array(distances: Float[Tensor, "objects objects"]) -> NDArray[np.float64]:
    array: NDArray[np.float64] = distances.detach().cpu().double().numpy()
    return array


def _both_bars(
    d_p: Float[Tensor, "objects objects"],
    d_q: Float[Tensor, "objects objects"],
    longest: int | None,
    engine: Engine,
) -> tuple[_Bars, _Bars]:
    """Of both directions, at once: gudhi lets go of the interpreter."""
    a, b = _array(d_p), _array(d_q)
    with ThreadPoolExecutor(2) as pool:
        there, back = pool.map(lambda d_p, d_q: _bars(d_p, d_q, longest, engine), (a, b), (b, a))
    return there, back


def _bars(d_p: NDArray[np.float64], d_q: NDArray[np.float64], longest: int | None, engine: Engine) -> _Bars:
    if longest is not None and longest < 1:
        raise InputError(f"longest: expected at least one bar or None for all, got {longest}.")
    matrix, objects = _graph(d_p, d_q), len(d_p)
    edges = h1_edges(matrix, engine)
    births, deaths = edges[:, :2].T, edges[:, 2:].T  # (2, bars)
    lengths = matrix[tuple(deaths)] - matrix[tuple(births)]
    kept = np.argsort(-lengths, kind="stable")[:longest]
    births, deaths = births[:, kept], deaths[:, kept]
    return _Bars(_ends(matrix, births, objects), _ends(matrix, deaths, objects), lengths[kept])


def _graph(d_p: NDArray[np.float64], d_q: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""The matrix :math:`A`, with fewer edges and the same bars, and the copy with the minimum first.

    Between the copies it keeps the edges :math:`(i, j)` with :math:`i \le j`; as the other copy is one point, the
    rest adds nothing. That, and its order, make gudhi two to three times faster.
    """
    objects = len(d_p)
    negligible = NEGLIGIBLE * d_p.mean()
    nearer = np.minimum(d_p, d_q)
    between = d_p.copy()
    for block in (nearer, between):
        block[block < negligible] = 0.0
    between[np.tri(objects, k=-1, dtype=bool)] = np.inf
    return np.block([[nearer, between], [between.T, np.zeros_like(d_p)]])


def _ends(matrix: NDArray[np.float64], edges: NDArray[np.int64], objects: int) -> _Ends:
    larger, smaller = edges
    return _Ends(larger % objects, smaller % objects, larger < objects, matrix[larger, smaller] == 0)


def _total(
    d_p: Float[Tensor, "objects objects"],
    d_q: Float[Tensor, "objects objects"],
    bars: _Bars,
    movable: Float[Tensor, "objects objects"] | None,
) -> Float[Tensor, ""]:
    return (_entries(d_p, d_q, bars.deaths, movable) - _entries(d_p, d_q, bars.births, None)).sum()


def _entries(
    d_p: Float[Tensor, "objects objects"],
    d_q: Float[Tensor, "objects objects"],
    ends: _Ends,
    movable: Float[Tensor, "objects objects"] | None,
) -> Float[Tensor, " bars"]:
    """The lengths of the edges, read again where there is a gradient."""
    row, column, nearer, zero = (torch.from_numpy(part).to(d_p.device) for part in ends)
    first, second = d_p[row, column], d_q[row, column]
    least = torch.where(second < first, second, first)
    if movable is not None:
        there = movable[row, column]
        least = least.detach() + (there - there.detach())
    value = torch.where(nearer, least, first)
    return torch.where(zero, torch.zeros_like(value), value)
