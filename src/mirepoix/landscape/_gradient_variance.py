"""Gradient variances, and whether they and the Hessian are the same in all domains."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from mirepoix.landscape._hessian_diagonal import check_method, diagonal_of
from mirepoix.landscape._loss import MeanLoss
from mirepoix.landscape._per_sample import finite
from mirepoix.types import Batch, InputError, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["DomainCurvature", "DomainInvariance", "PairDistance", "domain_invariance", "gradient_variance"]


def gradient_variance(
    model: nn.Module,
    theta: Weights,
    batches: Iterable[Batch],
    *,
    names: Iterable[str] | None = None,
    centred: bool = True,
    chunk: int = 32,
) -> dict[str, Tensor]:
    r"""How much the gradients of single images differ, for each weight.

    With :math:`G_{jk} = \partial_k (-\log p_\theta(y_j \mid x_j))` for images :math:`j = 1, \dots, n`,

    .. math:: \mathrm{Var}(G)_k = \frac{1}{n - 1} \sum_j (G_{jk} - \bar G_k)^2,

    or, not centred, :math:`\frac1n \sum_j G_{jk}^2`: the diagonal of the empirical Fisher information. Near a
    minimum the mean :math:`\bar G` is small and the two nearly agree. Gradients are squared before anything is
    summed. It is not a property of batches: their sizes do not matter.

    Args:
        model: Returns `mirepoix.types.Outputs` (or logits); used in evaluation mode and not changed.
        theta: All weights of the network. Half precision is widened; in float64 everything is.
        batches: The images of one domain, read once and kept.
        names: Parameters whose variances are wanted; all by default.
        centred: Subtract the mean gradient.
        chunk: Images whose gradients are held at once; each takes the memory of the parameters, twice.

    Returns:
        For each parameter a float64 tensor of its shape, on the CPU; never negative.

    Raises:
        InputError: As `mirepoix.landscape.hessian_trace`; for fewer than two images, or one if not centred.

    Example:
        >>> import torch
        >>> from mirepoix.types import Batch
        >>> model = torch.nn.Linear(1, 2, bias=False)
        >>> batch = Batch(torch.tensor([[2.0], [2.0]]), torch.tensor([0, 1]), torch.tensor([0, 0]))
        >>> gradient_variance(model, {"weight": torch.zeros(2, 1)}, [batch])["weight"]  # gradients -1 and 1
        tensor([[2.],
                [2.]], dtype=torch.float64)

    References:
        Rame et al. (2022), Fishr; thesis, appendix E.3.2.3.
    """
    loss = MeanLoss("gradient_variance", model, theta, batches, names)
    return loss.named(_variance(loss, centred, chunk))


@dataclass(frozen=True)
class DomainCurvature:
    """One domain at given weights.

    Attributes:
        risk: Its mean loss.
        images: How many.
        head_cosine: Of the diagonal of its Hessian and its gradient variance, for the classifier.
        cosine: Likewise for all weights.
        method: How the diagonal for all weights was computed.
        relative_error: Of that diagonal: the noise lowers the cosine.
    """

    risk: float
    images: int
    head_cosine: float
    cosine: float
    method: str
    relative_error: float


@dataclass(frozen=True)
class PairDistance:
    """Two domains at given weights: squared distances, over all weights that are measured.

    Attributes:
        gradient_variance: Between the gradient variances.
        risk: Between the mean losses.
        hessian_diagonal: Between the diagonals of the Hessians.
    """

    gradient_variance: float
    risk: float
    hessian_diagonal: float


@dataclass(frozen=True)
class DomainInvariance:
    """Gradient variances, risks and Hessians of several domains.

    Attributes:
        domains: By name.
        pairs: By the names of the two domains, in the order of `domains`.
    """

    domains: dict[str, DomainCurvature]
    pairs: dict[tuple[str, str], PairDistance]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is undefined becomes ``None``."""
        return {
            "domains": {name: _finite(asdict(domain)) for name, domain in self.domains.items()},
            "pairs": [
                {"domains": list(names), **_finite(asdict(pair))} for names, pair in self.pairs.items()
            ],
        }


def domain_invariance(
    model: nn.Module,
    theta: Weights,
    batches_by_domain: Mapping[str, Iterable[Batch]],
    *,
    head: str = "classifier.",
    names: Iterable[str] | None = None,
    centred: bool = True,
    method: Literal["auto", "exact", "hutchinson", "gauss_newton"] = "auto",
    exact_limit: int = 5000,
    samples: int = 100,
    seed: int = 0,
    chunk: int = 32,
) -> DomainInvariance:
    r"""Is the gradient variance a stand-in for the Hessian, and do the domains agree in them?

    For each domain :math:`e` the cosine :math:`\cos(\mathrm{Diag}(H_e), \mathrm{Var}(G_e))`, for the classifier
    and for all weights; for each pair of domains :math:`\lVert \mathrm{Var}(G_a) - \mathrm{Var}(G_b) \rVert^2`,
    :math:`|R_a - R_b|^2` and :math:`\lVert \mathrm{Diag}(H_a) - \mathrm{Diag}(H_b) \rVert^2`, for all weights,
    with :math:`H` the Hessian of the mean loss :math:`R` of a domain.

    The cosine is high where predictions are as uncertain as labels are, so near convergence on the data that is
    measured. It is NaN where one of the two is zero. Noise of an estimated diagonal lowers cosines and raises
    distances; all domains are measured with the same random vectors.

    Args:
        model: Returns `mirepoix.types.Outputs` (or logits); used in evaluation mode and not changed.
        theta: All weights of the network.
        batches_by_domain: The images of each domain, by its name.
        head: What the names of the classifier begin with.
        names: What "all weights" are, the classifier among them; all parameters by default.
        centred: As for `gradient_variance`.
        method: As for `mirepoix.landscape.hessian_diagonal`; of the classifier too.
        exact_limit: As for `mirepoix.landscape.hessian_diagonal`.
        samples: As for `mirepoix.landscape.hessian_diagonal`.
        seed: As for `mirepoix.landscape.hessian_diagonal`.
        chunk: As for `gradient_variance`.

    Raises:
        InputError: As `gradient_variance` and `mirepoix.landscape.hessian_diagonal`; for no domain; if no
            parameter is of the head.

    References:
        Thesis, tables E.1 and E.2; Rame et al. (2022), Fishr.
    """
    import torch

    if not batches_by_domain:
        raise InputError("domain_invariance: expected at least one domain, got none.")
    check_method(method, samples)
    every = None if names is None else list(names)
    domains, variances, diagonals = {}, {}, {}
    for domain, batches in batches_by_domain.items():
        loss = MeanLoss(f"domain {domain!r}", model, theta, batches, every)
        of_head = [name for name in loss.names if name.startswith(head)]
        if not of_head:
            raise InputError(
                f"domain_invariance: expected parameters whose names begin with {head!r}, got none; the last is "
                f"{loss.names[-1]!r}. Name the classifier with head=."
            )
        variance = loss.named(_variance(loss, centred, chunk))
        diagonal = diagonal_of(loss, method, exact_limit, samples, seed)
        head_diagonal = diagonal.values
        if (
            diagonal.method == "hutchinson"
        ):  # the few weights of the classifier can have a diagonal of their own
            kept = (Batch(images, labels, labels) for images, labels in loss.batches)
            head_loss = MeanLoss(loss.measure, loss.network, theta, kept, of_head)
            head_diagonal = diagonal_of(head_loss, method, exact_limit, samples, seed).values
        variances[domain] = _flat(variance, loss.names)
        diagonals[domain] = _flat(diagonal.values, loss.names)
        domains[domain] = DomainCurvature(
            risk=loss.value,
            images=loss.samples,
            head_cosine=_cosine(_flat(head_diagonal, of_head), _flat(variance, of_head)),
            cosine=_cosine(diagonals[domain], variances[domain]),
            method=diagonal.method,
            relative_error=diagonal.relative_error,
        )
    pairs = {
        (a, b): PairDistance(
            gradient_variance=float(torch.sum((variances[a] - variances[b]) ** 2)),
            risk=(domains[a].risk - domains[b].risk) ** 2,
            hessian_diagonal=float(torch.sum((diagonals[a] - diagonals[b]) ** 2)),
        )
        for a, b in itertools.combinations(domains, 2)
    }
    return DomainInvariance(domains, pairs)


def _variance(loss: MeanLoss, centred: bool, chunk: int) -> Tensor:
    """The variance of the per-image gradients, flat: chunks are merged by their means and squared deviations."""
    import torch

    if chunk < 1:
        raise InputError(f"chunk: expected at least 1 image, got {chunk}.")
    if centred and loss.samples < 2:
        raise InputError(
            f"{loss.measure}: expected at least 2 images, whose gradients can differ, got {loss.samples}."
        )
    mean = torch.zeros(loss.size, dtype=torch.float64, device=loss.device)
    squares = torch.zeros_like(mean)
    seen = 0
    for gradients in loss.sample_gradients(chunk):
        wide = gradients.double()
        if not centred:
            squares += wide.square().sum(dim=0)
            continue
        count, here = len(wide), wide.mean(dim=0)
        change = here - mean
        squares += (wide - here).square().sum(dim=0) + change.square() * (seen * count / (seen + count))
        seen += count
        mean += change * (count / seen)
    variance: Tensor = squares / (loss.samples - 1 if centred else loss.samples)
    return variance.cpu()


def _flat(values: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
    import torch

    return torch.cat([values[name].reshape(-1) for name in names])


def _cosine(a: Tensor, b: Tensor) -> float:
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths else math.nan


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {name: finite(value) if isinstance(value, float) else value for name, value in values.items()}
