"""The diagonal of the Hessian: how curved the loss is along each single weight."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mirepoix.landscape._loss import MeanLoss, rademacher
from mirepoix.merging import fisher_diagonal
from mirepoix.types import Batch, InputError, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["HessianDiagonal", "hessian_diagonal"]

CLASSES = 16
"""Up to so many classes the expectation over labels is exact."""


@dataclass(frozen=True)
class HessianDiagonal:
    """The diagonal of a Hessian, and how it was computed.

    Attributes:
        values: From each parameter to its entries, float64 tensors of its shape.
        standard_error: Likewise, of the values; ``None`` where nothing was estimated.
        method: ``exact``, ``hutchinson`` or ``gauss_newton``.
        samples: Random vectors of the estimate; 0 where nothing was estimated.
        relative_error: The length of the standard errors over the length of the values: 0.1 lowers a cosine by
            about 0.005.
    """

    values: dict[str, Tensor] = field(repr=False)
    standard_error: dict[str, Tensor] | None = field(repr=False)
    method: str
    samples: int
    relative_error: float


def hessian_diagonal(
    model: nn.Module,
    theta: Weights,
    batches: Iterable[Batch],
    *,
    names: Iterable[str] | None = None,
    method: Literal["auto", "exact", "hutchinson", "gauss_newton"] = "auto",
    exact_limit: int = 5000,
    samples: int = 100,
    seed: int = 0,
) -> HessianDiagonal:
    r"""The diagonal of the Hessian of the mean cross-entropy, for some parameters or all.

    - ``"exact"``: the product with each basis vector, as many as there are weights.
    - ``"hutchinson"``: the mean of :math:`v \odot Hv` over random signs :math:`v`. The error of an entry comes
      from the rest of its row, so it is large where the Hessian is far from diagonal: look at
      ``relative_error``.
    - ``"gauss_newton"``: :math:`\frac1n \sum_j \mathbb{E}_{y \sim p_\theta(x_j)}
      (\nabla_\theta \log p_\theta(y \mid x_j))^2`, by one gradient per image and class. It *is* the diagonal of
      the Hessian where the logits are piecewise linear in each single weight: linear and convolutional layers,
      ReLU, pooling, frozen batch norm. Elsewhere (group or layer norm, attention, GELU) it leaves out a term.
    - ``"auto"``: exact up to ``exact_limit`` weights, else Hutchinson.

    Entries can be negative, except with ``"gauss_newton"``.

    Args:
        model: Returns `mirepoix.types.Outputs` (or logits); used in evaluation mode and not changed.
        theta: All weights of the network. Half precision is widened; in float64 everything is.
        batches: The images, read once and kept.
        names: Parameters whose entries are wanted, such as those of the classifier; all by default.
        method: See above.
        exact_limit: Weights up to which ``"auto"`` is exact.
        samples: Random vectors of Hutchinson's estimate.
        seed: Of the random vectors.

    Raises:
        InputError: As `mirepoix.landscape.hessian_trace`; for ``"gauss_newton"`` with more than 16 classes.

    Example:
        >>> import torch
        >>> from mirepoix.types import Batch
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> batch = Batch(torch.tensor([[1.0, 2.0]]), torch.tensor([0]), torch.tensor([0]))
        >>> diagonal = hessian_diagonal(model, {"weight": torch.zeros(2, 2)}, [batch])
        >>> diagonal.values["weight"], diagonal.method  # p (1 - p) x^2
        (tensor([[0.2500, 1.0000],
                [0.2500, 1.0000]], dtype=torch.float64), 'exact')

    References:
        Bekas, Kokiopoulou and Saad (2007) for the estimate; Schraudolph (2002) and Martens (2020) for the
        Gauss-Newton matrix and the Fisher information; thesis, table E.1.
    """
    check_method(method, samples)
    return diagonal_of(
        MeanLoss("hessian_diagonal", model, theta, batches, names), method, exact_limit, samples, seed
    )


def check_method(method: str, samples: int) -> None:
    """One of the ways there are, and vectors enough for a standard error."""
    if method not in ("auto", "exact", "hutchinson", "gauss_newton"):
        raise InputError(f"method: expected 'auto', 'exact', 'hutchinson' or 'gauss_newton', got {method!r}.")
    if samples < 2:
        raise InputError(f"samples: expected at least 2, got {samples}.")


def diagonal_of(loss: MeanLoss, method: str, exact_limit: int, samples: int, seed: int) -> HessianDiagonal:
    """The diagonal of the Hessian of a loss that is at hand."""
    if method == "auto":
        method = "exact" if loss.size <= exact_limit else "hutchinson"
    if method == "exact":
        return HessianDiagonal(loss.named(_exact(loss)), None, method, 0, 0.0)
    if method == "gauss_newton":
        return HessianDiagonal(_gauss_newton(loss), None, method, 0, 0.0)
    mean, error = _hutchinson(loss, samples, seed)
    length = float(mean.norm())
    relative = float(error.norm()) / length if length else math.nan
    return HessianDiagonal(loss.named(mean), loss.named(error), method, samples, relative)


def _exact(loss: MeanLoss) -> Tensor:
    import torch

    diagonal = torch.empty(loss.size, dtype=torch.float64)
    for group in loss.chunks(loss.size, 512):
        basis = torch.zeros(len(group), loss.size, dtype=loss.dtype, device=loss.device)
        places = torch.arange(len(group))
        basis[places, places + group.start] = 1
        diagonal[group.start : group.stop] = loss.products(basis)[places, places + group.start].double().cpu()
    return diagonal


def _hutchinson(loss: MeanLoss, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """The mean over random vectors, and its standard error; of a running mean, so that nothing cancels."""
    import torch

    mean = torch.zeros(loss.size, dtype=torch.float64, device=loss.device)
    squares = torch.zeros_like(mean)
    for group in loss.chunks(samples, 10):
        vectors = rademacher(loss, "hessian_diagonal", seed, group)
        for number, value in zip(group, vectors.double() * loss.products(vectors).double(), strict=True):
            change = value - mean
            mean += change / (number + 1)
            squares += change * (value - mean)
    return mean.cpu(), (squares / (samples - 1) / samples).sqrt().cpu()


def _gauss_newton(loss: MeanLoss) -> dict[str, Tensor]:
    classes = loss.logits(loss.batches[0][0][:1]).shape[-1]
    if classes > CLASSES:
        raise InputError(
            f"{loss.measure}: expected at most {CLASSES} classes for 'gauss_newton', which takes a gradient for "
            f"each, got {classes}. Use 'hutchinson'."
        )
    batches = (Batch(images, labels, labels) for images, labels in loss.batches)
    found = fisher_diagonal(loss.network, batches, labels="model", chunk=32)
    return {name: found[name].double() for name in loss.names}
