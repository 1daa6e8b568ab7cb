"""Flatness: how fast the loss grows around the weights, by the trace and the top eigenvalues of its Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mirepoix.landscape._loss import MeanLoss, rademacher
from mirepoix.seeds import stream
from mirepoix.types import Batch, InputError, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["TraceEstimate", "hessian_trace", "top_eigenvalues"]

FEWEST = 10
"""Probes before the standard error is trusted enough to stop."""

DENSE = 32
"""Up to so many weights the Hessian is written out and all its eigenvalues are computed."""


@dataclass(frozen=True)
class TraceEstimate:
    """The trace of a Hessian, estimated with random vectors.

    Attributes:
        value: The estimate.
        standard_error: Of the value, from the spread over the vectors.
        samples: Hessian-vector products that were used.
        by_layer: The part of each layer, by the name of its module; they sum to the value.
        by_layer_error: The standard error of each part.
        method: As asked for.
        loss: The mean loss at the weights.
        images: How many the loss is a mean of.
    """

    value: float
    standard_error: float
    samples: int
    by_layer: dict[str, float]
    by_layer_error: dict[str, float]
    method: str
    loss: float
    images: int


def hessian_trace(
    model: nn.Module,
    theta: Weights,
    batches: Iterable[Batch],
    *,
    samples: int = 100,
    relative_error: float | None = 0.05,
    method: Literal["hutchinson", "hutch++"] = "hutchinson",
    names: Iterable[str] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TraceEstimate:
    r"""The trace of the Hessian of the mean cross-entropy: flatter where it is lower.

    .. math:: \mathrm{tr}\, H \approx \frac1S \sum_{s=1}^S v_s^\top H v_s,
        \qquad H = \nabla^2_\theta \frac1n \sum_j -\log p_\theta(y_j \mid x_j),

    with :math:`v_s` random signs (Hutchinson). The trace can be negative, away from a minimum. Compare networks
    on the same images only, at least 1,000 of the training images; evaluation mode (running batch-norm
    statistics, no dropout), so give images without augmentation. It is not invariant to a rescaling of the
    weights that leaves the function as it is.

    With ``"hutch++"``, a third of the products finds the directions :math:`Q` of the largest curvature, a third
    gives their part of the trace exactly, and the rest estimates what remains. It pays where few directions
    rule; it holds ``samples / 3`` vectors in memory, and its standard error is that of the remainder.

    The part of a layer is the same sum over its entries of :math:`v \odot Hv`, so it costs nothing more.

    The products are not those of curvlinops: it goes forward over backward, for which group norm and fused attention
    have no derivative, so that it fails on networks of ours; where it does not, tests compare the two.

    Args:
        model: Returns `mirepoix.types.Outputs` (or logits); it is not changed.
        theta: All weights of the network. Half precision is widened; in float64 everything is.
        batches: The images, read once and kept; a batch must fit into memory with its graph.
        samples: Hessian-vector products at most, each about three times a gradient.
        relative_error: Stop when the standard error is below this share of the value, after at least 10 probes;
            ``None`` uses all samples.
        method: Hutchinson's estimate, or Hutch++.
        names: Parameters of which it is the Hessian; all by default, frozen ones included.
        seed: Of the random signs. Equal seeds compare two networks with the same vectors.
        progress: Called with the products made and their limit.

    Raises:
        InputError: For weights of another network, no images, a loss that is not finite, an operation without a
            second derivative, or an option out of range.

    Example:
        >>> import torch
        >>> from mirepoix.types import Batch
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> theta = {"weight": torch.zeros(2, 2)}  # p = 1/2, and the trace is that of xx^T, times p(1 - p), twice
        >>> images = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> batch = Batch(images, torch.tensor([0, 1]), torch.tensor([0, 0]))
        >>> estimate = hessian_trace(model, theta, [batch], samples=1000, relative_error=None)
        >>> abs(estimate.value - 1.25) < 3 * estimate.standard_error
        True

    References:
        Hutchinson (1990); Meyer et al. (2021), Hutch++; Yao et al. (2020), PyHessian; thesis, figure
        4.1. Attention is computed in its plain form, which has second derivatives.
    """
    fewest = {"hutchinson": 2, "hutch++": 4}
    if method not in fewest:
        raise InputError(f"method: expected 'hutchinson' or 'hutch++', got {method!r}.")
    if samples < fewest[method]:
        raise InputError(f"samples: expected at least {fewest[method]} for {method}, got {samples}.")
    if relative_error is not None and not 0 < relative_error < math.inf:
        raise InputError(f"relative_error: expected a positive number or None, got {relative_error!r}.")
    loss = MeanLoss("hessian_trace", model, theta, batches, names)
    report = progress or (lambda done, total: None)
    if method == "hutchinson":
        basis, known, used = None, np.zeros(len(loss.names)), 0
    else:
        basis, known, used = _sketch(loss, samples // 3, seed, lambda done: report(done, samples))
    probes = samples - used
    parts: list[NDArray[np.float64]] = []  # of each probe: the sum of v * Hv over each parameter
    for group in loss.chunks(probes, FEWEST):
        vectors = rademacher(loss, "hessian_trace", seed, group)
        if basis is not None:
            vectors -= (vectors @ basis) @ basis.T
        sums = _sums(loss, vectors, loss.products(vectors))
        for number, part in zip(group, sums, strict=True):
            parts.append(part)
            report(used + number + 1, samples)
            if _precise(parts, known, relative_error):
                return _estimate(loss, np.stack(parts), known, used, method)
    return _estimate(loss, np.stack(parts), known, used, method)


def top_eigenvalues(
    model: nn.Module,
    theta: Weights,
    batches: Iterable[Batch],
    *,
    count: int = 1,
    tolerance: float = 1e-3,
    names: Iterable[str] | None = None,
    seed: int = 0,
) -> Tensor:
    r"""The largest eigenvalues of the Hessian of the mean cross-entropy, the sharpest directions of the loss.

    By Lanczos iteration with restarts, which needs fewer products than power iteration and finds the largest
    eigenvalue where power iteration finds the largest magnitude. The order is by value, not by magnitude. A
    Hessian of up to 32 weights is written out instead.

    Args:
        model: As for `hessian_trace`.
        theta: As for `hessian_trace`.
        batches: As for `hessian_trace`.
        count: How many, the largest first.
        tolerance: Relative accuracy of the eigenvalues.
        names: Parameters of which it is the Hessian; all by default.
        seed: Of the vector the iteration begins with.

    Returns:
        ``count`` values in float64.

    Raises:
        InputError: As `hessian_trace`; for fewer weights than eigenvalues; when the iteration does not converge.

    Example:
        >>> import torch
        >>> from mirepoix.types import Batch
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> images = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> batch = Batch(images, torch.tensor([0, 1]), torch.tensor([0, 0]))
        >>> top_eigenvalues(model, {"weight": torch.zeros(2, 2)}, [batch], count=2)
        tensor([1.0000, 0.2500], dtype=torch.float64)

    References:
        Lehoucq, Sorensen and Yang (1998), ARPACK.
    """
    import torch

    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance: expected a number from 0 to 1, got {tolerance!r}.")
    loss = MeanLoss("top_eigenvalues", model, theta, batches, names)
    if not 1 <= count <= loss.size:
        raise InputError(f"count: expected 1 to {loss.size}, the number of weights, got {count}.")
    if loss.size <= max(DENSE, count + 1):
        eye = torch.eye(loss.size, dtype=loss.dtype, device=loss.device)
        hessian = loss.products(eye).double()
        every: Tensor = torch.linalg.eigvalsh((hessian + hessian.T) / 2)
        return every.flip(0)[:count].cpu()
    linalg = import_module("scipy.sparse.linalg")

    def product(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        row = torch.from_numpy(vector.reshape(1, -1)).to(loss.device, loss.dtype)
        found: NDArray[np.float64] = loss.products(row)[0].double().cpu().numpy()
        return found

    operator = linalg.LinearOperator((loss.size, loss.size), matvec=product, dtype=np.float64)
    start = stream("top_eigenvalues", int(seed)).standard_normal(loss.size)
    if not product(start).any():  # the Hessian is zero, and the iteration would have nowhere to go
        return torch.zeros(count, dtype=torch.float64)
    try:
        values = linalg.eigsh(
            operator, count, which="LA", v0=start, tol=tolerance, maxiter=100, return_eigenvectors=False
        )
    except linalg.ArpackNoConvergence as error:
        raise InputError(
            f"top_eigenvalues: expected {count} eigenvalues within a tolerance of {tolerance:g}, got "
            f"{len(error.eigenvalues)} after 100 restarts. Ask for fewer, or raise the tolerance."
        ) from error
    return torch.from_numpy(np.sort(values)[::-1].copy())


def _sketch(
    loss: MeanLoss, width: int, seed: int, report: Callable[[int], None]
) -> tuple[Tensor, NDArray[np.float64], int]:
    """Hutch++: an orthonormal basis of the sharp directions, their part of the trace, the products it took."""
    import torch

    width = min(width, loss.size)

    def products(vectors: Tensor, before: int) -> Tensor:
        rows = []
        for group in loss.chunks(width, FEWEST):
            rows.append(loss.products(vectors[group.start : group.stop]))
            report(before + group.stop)
        return torch.cat(rows)

    images = products(rademacher(loss, "hessian_trace sketch", seed, range(width)), 0)
    basis = torch.linalg.qr(images.double().T).Q.to(loss.dtype)  # (size, width)
    rows = basis.T.contiguous()
    return basis, _sums(loss, rows, products(rows, width)).sum(axis=0), 2 * width


def _sums(loss: MeanLoss, vectors: Tensor, products: Tensor) -> NDArray[np.float64]:
    """The sum of ``v * Hv`` over the entries of each parameter, ``(vectors, parameters)``."""
    import torch

    both = (torch.split(rows, loss.sizes, dim=1) for rows in (vectors, products))
    columns = [(v.double() * hv.double()).sum(dim=1).cpu().numpy() for v, hv in zip(*both, strict=True)]
    return np.stack(columns, axis=1)


def _precise(
    parts: list[NDArray[np.float64]], known: NDArray[np.float64], relative_error: float | None
) -> bool:
    if relative_error is None or len(parts) < FEWEST:
        return False
    values = np.array([part.sum() for part in parts])
    return bool(_error(values) <= relative_error * abs(values.mean() + known.sum()))


def _error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _estimate(
    loss: MeanLoss, parts: NDArray[np.float64], known: NDArray[np.float64], used: int, method: str
) -> TraceEstimate:
    layers = {name: np.array(places) for name, places in loss.layers().items()}
    return TraceEstimate(
        value=float((parts.mean(axis=0) + known).sum()),
        standard_error=_error(parts.sum(axis=1)),
        samples=used + len(parts),
        by_layer={name: float((parts.mean(axis=0) + known)[places].sum()) for name, places in layers.items()},
        by_layer_error={name: _error(parts[:, places].sum(axis=1)) for name, places in layers.items()},
        method=method,
        loss=loss.value,
        images=loss.samples,
    )
