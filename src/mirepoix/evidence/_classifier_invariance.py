"""Are weights invariant across source domains, in losses, gradients and curvature? Tables E.1 and E.2 of the thesis.

Everything is about the classifier alone, which is linear, so that gradients and curvatures have closed forms: one pass
of the network over the images of a domain is enough. For all weights of a network there is
`mirepoix.landscape.domain_invariance`, which is slow.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mirepoix.landscape import PairDistance
from mirepoix.seeds import generator
from mirepoix.types import Batch, InputError, Weights

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = [
    "QUANTITIES",
    "SHUFFLES",
    "ClassifierInvariance",
    "SourceDomain",
    "classifier_invariance",
    "mean_distance",
]

QUANTITIES = ("risk", "gradient_variance", "hessian_diagonal")
"""What is compared between domains."""

ENTRIES = 2**24
"""Entries of the moments of all domains in memory; larger classifiers are measured a few classes at a time."""

IMAGES = 4096
"""Images whose features are in double precision at a time."""

SHUFFLES = 19
"""That none of 19 comes as far has a chance of one in twenty."""


@dataclass(frozen=True)
class SourceDomain:
    """One domain at given weights.

    Attributes:
        images: How many.
        risk: Their mean loss.
        cosine: Of the diagonal of the Hessian and the gradient variance; NaN where one of them is zero.
    """

    images: int
    risk: float
    cosine: float


@dataclass(frozen=True)
class ClassifierInvariance:
    """How far domains are apart at given weights, in squared distances.

    Attributes:
        domains: By name.
        pairs: By the names of the two domains.
        distance: The mean over pairs; ``None`` with one domain.
        chance: The same with the images shuffled among the domains, the mean over shuffles.
        reached: For each quantity, the shuffles whose distance is not below the one that was found.
        shuffles: How many there were.
    """

    domains: dict[str, SourceDomain]
    pairs: dict[tuple[str, str], PairDistance]
    distance: PairDistance | None
    chance: PairDistance | None
    reached: dict[str, int]
    shuffles: int

    def seen(self, quantity: str) -> bool:
        """Whether domains differ more than shuffled images do, but for a chance of 5 %."""
        return self.distance is not None and 20 * (1 + self.reached[quantity]) <= 1 + self.shuffles

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is undefined becomes ``None``."""
        return {
            "domains": {
                name: {**asdict(domain), "cosine": None if math.isnan(domain.cosine) else domain.cosine}
                for name, domain in self.domains.items()
            },
            "pairs": [{"domains": list(names), **asdict(pair)} for names, pair in self.pairs.items()],
            "distance": None if self.distance is None else asdict(self.distance),
            "chance": None if self.chance is None else asdict(self.chance),
            "reached": dict(self.reached),
            "seen": {quantity: self.seen(quantity) for quantity in QUANTITIES},
        }


def classifier_invariance(
    model: nn.Module,
    theta: Weights,
    batches_by_domain: Mapping[str, Iterable[Batch]],
    *,
    head: str = "classifier",
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> ClassifierInvariance:
    r"""How far domains are apart in losses, gradient variances and curvatures of a linear classifier.

    With features :math:`h_j` (and a 1 for the bias) and probabilities :math:`p_j` of image :math:`j = 1, \dots, n`,
    the gradient of its loss is :math:`G_j = (p_j - y_j) h_j^\top`, and

    .. math:: \mathrm{Var}(G)_{ck} = \frac{1}{n - 1} \sum_j (G_{jck} - \bar G_{ck})^2, \qquad
        \mathrm{Diag}(H)_{ck} = \frac1n \sum_j p_{jc} (1 - p_{jc}) h_{jk}^2

    are exact. For each domain, the mean loss :math:`R` and :math:`\cos(\mathrm{Diag}(H), \mathrm{Var}(G))`; for each
    pair :math:`\lVert \mathrm{Var}(G_a) - \mathrm{Var}(G_b) \rVert^2`, :math:`|R_a - R_b|^2` and
    :math:`\lVert \mathrm{Diag}(H_a) - \mathrm{Diag}(H_b) \rVert^2`. The numbers are those of
    `mirepoix.landscape.domain_invariance` with the parameters of the classifier as its ``names``.

    No distance between finite sets of images is zero. What images of one kind would give is measured too: they are
    shuffled among the domains, whose sizes stay.

    Args:
        model: Has a linear classifier, whose output is its logits; used in evaluation mode and not changed.
        theta: All weights of the network.
        batches_by_domain: The images of each domain, by its name, at least two; each batch is read once. Features and
            probabilities of all are kept: about 4 bytes per image and feature, and 8 per image and class.
        head: Name of the classifier in the network.
        shuffles: Of the images, each as costly as the comparison itself and without a pass of the network.
        seed: Of the shuffles.

    Raises:
        InputError: For no domain, or one with fewer than two images; for weights of another network; for a head that is
            no linear layer, or whose output is not what the network returns; for a loss that is not finite.

    References:
        Thesis, tables E.1 and E.2; Rame et al. (2022), Fishr.
    """
    if not batches_by_domain:
        raise InputError("classifier_invariance: expected at least one domain, got none.")
    if shuffles < 0:
        raise InputError(f"shuffles: expected 0 or more, got {shuffles}.")
    network = _with_weights(model, theta)
    classifier = dict(network.named_modules()).get(head)
    if not isinstance(classifier, nn.Linear):
        got = "nothing of that name" if classifier is None else f"a {type(classifier).__name__}"
        raise InputError(
            f"classifier_invariance: expected a linear classifier called {head!r} in the network, got {got}. Name it "
            "with head=, or use mirepoix.landscape.domain_invariance, which works for any network."
        )
    parts = [_read(network, classifier, name, batches) for name, batches in batches_by_domain.items()]
    images = _Images(*(torch.cat(values) for values in zip(*parts, strict=True)))
    counts = [len(labels) for _, _, labels, _ in parts]
    del parts
    groups = torch.split(torch.arange(sum(counts)), counts)
    pairs, distances, cosines = _compare(images, groups)
    names = list(batches_by_domain)
    domains = {
        name: SourceDomain(len(rows), float(images.losses[rows].mean()), cosine)
        for name, rows, cosine in zip(names, groups, cosines, strict=True)
    }
    found = {(names[a], names[b]): one for (a, b), one in zip(pairs, distances, strict=True)}
    distance, drawn = None, []
    if distances:
        distance = mean_distance(distances)
        for number in range(shuffles):
            order = torch.randperm(sum(counts), generator=generator("invariance", int(seed), number))
            drawn.append(mean_distance(_compare(images, torch.split(order, counts))[1]))
    reached = {
        quantity: sum(getattr(one, quantity) >= getattr(distance, quantity) for one in drawn)
        for quantity in QUANTITIES
    }
    return ClassifierInvariance(
        domains, found, distance, mean_distance(drawn) if drawn else None, reached, len(drawn)
    )


@dataclass(frozen=True)
class _Images:
    """What the network makes of the images of all domains, one domain after another; a feature of 1 for the bias."""

    features: Float[Tensor, "images features"]
    probabilities: Float[Tensor, "images classes"]
    labels: Int[Tensor, " images"]
    losses: Float[Tensor, " images"]


def _with_weights(model: nn.Module, theta: Weights) -> nn.Module:
    """A copy of the network with the weights, in evaluation mode, at least in single precision."""
    tensors = {name: torch.as_tensor(theta[name]) for name in theta}
    dtype = torch.float32
    for tensor in tensors.values():
        if tensor.is_floating_point():
            dtype = torch.promote_types(dtype, tensor.dtype)
    network = copy.deepcopy(model).to(dtype)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise InputError(
            f"classifier_invariance: expected weights of the network. {' '.join(lines)}"
        ) from None
    return network.eval()


@torch.inference_mode()
def _read(
    network: nn.Module, classifier: nn.Linear, name: str, batches: Iterable[Batch]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, probabilities, labels and losses of one domain."""
    caught: list[Tensor] = []
    handle = classifier.register_forward_pre_hook(lambda module, given: caught.append(given[0]))
    found = []
    try:
        for batch in batches:
            if not len(batch.labels):
                continue
            caught.clear()
            floats = batch.images.is_floating_point()
            images = batch.images.to(classifier.weight.device, classifier.weight.dtype if floats else None)
            out = network(images)
            logits = _logits(name, classifier, caught, getattr(out, "logits", out).cpu().double())
            labels = batch.labels.cpu().long()
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= logits.shape[1]:
                raise InputError(
                    f"domain {name!r}: expected labels from 0 to {logits.shape[1] - 1}, the classes of the network, "
                    f"got {low if low < 0 else high}."
                )
            losses = nn.functional.cross_entropy(logits, labels, reduction="none")
            seen = caught[0].cpu()
            if classifier.bias is not None:
                seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
            found.append((seen, logits.softmax(1), labels, losses))
    finally:
        handle.remove()
    count = sum(len(labels) for _, _, labels, _ in found)
    if count < 2:
        raise InputError(
            f"domain {name!r}: expected at least 2 images, whose gradients can differ, got {count}."
        )
    features, probabilities, labels, losses = (torch.cat(values) for values in zip(*found, strict=True))
    return features, probabilities, labels, losses


def _logits(name: str, classifier: nn.Linear, caught: Sequence[Tensor], shown: Tensor) -> Tensor:
    """What the classifier makes of the features, in double precision, once it is what the network returns."""
    if not bool(shown.isfinite().all()):
        raise InputError(
            f"domain {name!r}: expected finite logits at these weights, got others. Did the training diverge?"
        )
    if len(caught) == 1 and caught[0].ndim == 2:
        logits = nn.functional.linear(
            caught[0].cpu().double(),
            classifier.weight.cpu().double(),
            None if classifier.bias is None else classifier.bias.cpu().double(),
        )
        # The network computes in lower precision, on some devices much lower; another layer would differ wholly.
        slack = 0.01 * max(1.0, float(shown.abs().max()))
        if logits.shape == shown.shape and bool(((logits - shown).abs() <= slack).all()):
            return logits
    raise InputError(
        "classifier_invariance: expected a network that returns the output of its linear classifier, got other logits. "
        "mirepoix.landscape.domain_invariance works for any network."
    )


def _compare(
    images: _Images, groups: Sequence[Tensor]
) -> tuple[list[tuple[int, int]], list[PairDistance], list[float]]:
    """Distances of all pairs of groups of images, and the cosine of each group."""
    classes = images.probabilities.shape[1]
    step = max(1, ENTRIES // (images.features.shape[1] * len(groups)))
    pairs = list(itertools.combinations(range(len(groups)), 2))
    risks = [float(images.losses[rows].mean()) for rows in groups]
    apart = torch.zeros(2, len(pairs), dtype=torch.float64)
    squares = torch.zeros(3, len(groups), dtype=torch.float64)
    for low in range(0, classes, step):
        moments = [_moments(images, rows, low, min(low + step, classes)) for rows in groups]
        for number, (variance, diagonal) in enumerate(moments):
            squares[0, number] += variance.square().sum()
            squares[1, number] += diagonal.square().sum()
            squares[2, number] += (variance * diagonal).sum()
        for number, (a, b) in enumerate(pairs):
            for kind in (0, 1):
                apart[kind, number] += (moments[a][kind] - moments[b][kind]).square().sum()
    distances = [
        PairDistance(float(variance), (risks[a] - risks[b]) ** 2, float(diagonal))
        for (a, b), variance, diagonal in zip(pairs, *apart, strict=True)
    ]
    lengths = (squares[0] * squares[1]).sqrt().tolist()
    cosines = [
        dot / length if length else math.nan for dot, length in zip(squares[2].tolist(), lengths, strict=True)
    ]
    return pairs, distances, cosines


def _moments(images: _Images, rows: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Gradient variance and diagonal of the Hessian of some classes, on some images."""
    first, second, diagonal = torch.zeros(3, high - low, images.features.shape[1], dtype=torch.float64)
    for chunk in torch.split(rows, IMAGES):
        h = images.features[chunk].double()
        p = images.probabilities[chunk, low:high]
        y = (images.labels[chunk, None] == torch.arange(low, high)).double()
        first += (p - y).T @ h
        second += (p - y).square().T @ h.square()
        diagonal += (p * (1 - p)).T @ h.square()
    n = len(rows)
    return ((second - first.square() / n) / (n - 1)).clamp(min=0), diagonal / n


def mean_distance(distances: Sequence[PairDistance]) -> PairDistance:
    """The mean of each distance."""
    return PairDistance(
        **{
            name: math.fsum(getattr(one, name) for one in distances) / len(distances)
            for name in ("gradient_variance", "risk", "hessian_diagonal")
        }
    )
