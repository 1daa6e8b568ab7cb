"""Fisher-weighted merging: every entry is averaged with weights that say how much each member depends on it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mirepoix.merging._coefficients import check_coefficients
from mirepoix.merging._inputs import Source
from mirepoix.merging._rule import BLOCK, Array, Coefficients, Inputs, Piece, Rule, TensorInputs
from mirepoix.merging._statistics import mean, opened, positive_weights, statistics
from mirepoix.types import Batch, InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Fisher", "fisher_diagonal"]

CLASSES = 16
"""Up to so many classes the expectation over labels is exact."""


@dataclass(frozen=True, slots=True)
class _Measured:
    weights: Sequence[float]
    fishers: Sequence[Source] | None
    factors: Sequence[float]


@dataclass(frozen=True, eq=False)
class Fisher(Rule):
    r"""The average of members weighted per entry by their diagonal Fisher information.

    .. math:: \theta = \frac{\sum_i w_i (F_i + \epsilon) \theta_i}{\sum_i w_i (F_i + \epsilon)}

    With :math:`F` the curvature of each member's loss at its minimum, this minimises the sum of the losses'
    diagonal quadratic approximations. Where all :math:`F` are 0 it is the plain average, and tensors that no
    member has :math:`F` for are averaged. Beware of the scale: :math:`F` of a large network is often far below
    the default :math:`\epsilon`, which then decides; compare the two, lower the floor or use ``normalize``.

    Args:
        fishers: Per member the diagonals by tensor name, of the shapes of the tensors, none below 0: the
            results of `fisher_diagonal`, or files opened by `open_weights`. In the order of the members, or by
            their names.
        coefficients: The weights :math:`w`, at least 0; equal by default.
        floor: :math:`\epsilon > 0`, added to every entry of :math:`F`.
        normalize: Divide each :math:`F_i` by its length over all tensors first (then add the floor), so that
            members with a steep loss do not rule.

    Raises:
        InputError: If a tensor has :math:`F` for some members only, or of another shape, or an entry of
            :math:`F` is negative or not finite.

    Example:
        >>> import numpy as np
        >>> from mirepoix.merging import Fisher, merge
        >>> members = [{"w": np.array([1.0, 1.0])}, {"w": np.array([3.0, 3.0])}]
        >>> fishers = [{"w": np.array([1.0, 3.0])}, {"w": np.array([1.0, 1.0])}]
        >>> merge(members, Fisher(fishers, floor=1e-12))["w"].round(6).tolist()
        [2.0, 1.5]

    References:
        Matena, Raffel (2022), *Merging models with Fisher-weighted averaging*.
    """

    method = "fisher"

    fishers: Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]] = field(repr=False)
    coefficients: Coefficients | None = None
    floor: float = 1e-6
    normalize: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.floor < math.inf:
            raise InputError(f"floor: expected a number above 0, got {self.floor!r}.")

    def check(self, labels: Sequence[str]) -> None:
        """One diagonal and one coefficient per member."""
        check_coefficients(self.coefficients, labels)
        opened(self.fishers, labels, "fishers")

    def survey(self, inputs: Inputs) -> dict[str, tuple[Source, float]]:
        """The diagonals of each member, and what to multiply them by."""
        sources = opened(self.fishers, inputs.labels, "fishers")
        return {label: (s, 1 / _length(s) if self.normalize else 1.0) for label, s in sources.items()}

    def measure(self, tensor: TensorInputs, survey: Any) -> _Measured:
        """The diagonals for one tensor."""
        weights = positive_weights(self.coefficients, list(survey), tensor)
        known = [survey[label] for label in tensor.labels]
        sources = statistics([source for source, _ in known], tensor.name, tensor.shape)
        return _Measured(weights, sources, [factor for _, factor in known])

    def combine(self, piece: Piece, members: Sequence[Array], base: Array | None, measured: Any) -> Array:
        """The weighted average of the entries of the piece."""
        known: _Measured = measured
        if known.fishers is None:
            return mean(members, known.weights)
        weights = []
        for weight, source, factor in zip(known.weights, known.fishers, known.factors, strict=True):
            f = source.wide(piece.name, piece.start, piece.stop, np.float64)
            if not (f.min(initial=0.0) >= 0 and f.max(initial=0.0) < math.inf):
                raise InputError(
                    f"{source.label}: {piece.name!r} holds entries that are negative or not finite. A Fisher "
                    "diagonal is a mean of squares; measure it again."
                )
            weights.append(weight * (f * factor + self.floor))
        return mean(members, weights)


def _length(source: Source) -> float:
    """The Euclidean norm over all tensors, summed by blocks."""
    total = 0.0
    for name in source.names:
        size = math.prod(source.shape(name))
        for start in range(0, size, BLOCK):
            f = source.wide(name, start, min(start + BLOCK, size), np.float64)
            total += float((f * f).sum())
    if not 0 < total < math.inf:
        raise InputError(f"{source.label}: has the squared length {total}, so it cannot be normalised.")
    return math.sqrt(total)


def fisher_diagonal(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    labels: Literal["model", "true"] = "model",
    samples: int | None = None,
    seed: int = 0,
    chunk: int = 8,
) -> dict[str, Tensor]:
    r"""The diagonal of the Fisher information of a classifier: mean squared gradients of single examples.

    .. math:: F = \frac{1}{n} \sum_{j=1}^n \mathbb{E}_{y} \left(\nabla_\theta \log p_\theta(y \mid x_j)\right)^2

    Gradients are squared before anything is summed: neither over a batch nor over classes, which would be
    another quantity. The network is used as in evaluation (no dropout, running statistics) and is not changed.

    Args:
        model: The network, returning logits or an object with ``logits``.
        batches: The data.
        labels: Whose labels the expectation is over. ``"model"``: those of the network itself, all weighted
            by their probability if there are at most 16 classes, else one drawn per example. ``"true"``: those
            of the data (the *empirical* Fisher, which vanishes with the training error).
        samples: How many examples to use at most; by default all.
        seed: Where the drawn labels start.
        chunk: Examples whose gradients are held at once; each takes the memory of the trained parameters.

    Returns:
        For each parameter that requires a gradient a tensor of its shape, float32 or wider, on the CPU; tied
        parameters appear under each of their names.

    Raises:
        InputError: Without examples, or for an option out of range.

    References:
        Matena, Raffel (2022); Kunstner, Balles, Hennig (2019) on the empirical Fisher.
    """
    import torch
    from torch.func import functional_call, grad, vmap

    if labels not in ("model", "true"):
        raise InputError(f"labels: expected 'model' or 'true', got {labels!r}.")
    for option, value in (("samples", 1 if samples is None else samples), ("chunk", chunk)):
        if value < 1:
            raise InputError(f"{option}: expected at least 1, got {value!r}.")
    model = copy.deepcopy(model).eval()
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    rest = {
        n: t.detach() for n, t in (*model.named_parameters(), *model.named_buffers()) if n not in parameters
    }
    random = np.random.default_rng(seed)

    def scores(theta: dict[str, Tensor], image: Tensor) -> Tensor:
        out = functional_call(model, {**rest, **theta}, (image[None],))
        logits: Tensor = getattr(out, "logits", out)
        return logits[0].log_softmax(-1)

    def score(theta: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return scores(theta, image).gather(0, label[None])[0]

    gradients = vmap(grad(score), (None, 0, 0))
    probabilities = vmap(lambda image: scores(parameters, image).exp())
    total = {name: torch.zeros_like(p, dtype=_wide(p)) for name, p in parameters.items()}
    seen = 0

    def add(images: Tensor, chosen: Tensor, weights: Tensor) -> None:
        for name, g in gradients(parameters, images, chosen).items():
            square = g.to(total[name].dtype).square()
            total[name] += torch.tensordot(weights.to(square.dtype), square, 1)

    for batch in batches:
        left = len(batch.images) if samples is None else min(len(batch.images), samples - seen)
        for start in range(0, left, chunk):
            images, true = (x[start : min(start + chunk, left)] for x in (batch.images, batch.labels))
            ones = torch.ones(len(images), device=images.device)
            if labels == "true":
                add(images, true, ones)
                continue
            with torch.no_grad():
                p = probabilities(images)
            if p.shape[1] <= CLASSES:
                for c in range(p.shape[1]):
                    add(images, torch.full_like(ones, c, dtype=torch.long), p[:, c])
            else:
                # One number per example, in their order: the draws do not depend on batches and chunks.
                height = torch.from_numpy(random.random(len(images))).to(p.device)
                drawn = (p.double().cumsum(1) < height[:, None]).sum(1).clamp(max=p.shape[1] - 1)
                add(images, drawn, ones)
        seen += left
        if samples is not None and seen >= samples:
            break
    if not seen:
        raise InputError("batches: expected at least one example, got none.")
    measured = {id(p): total[name].div(seen).cpu() for name, p in model.named_parameters() if name in total}
    every = model.named_parameters(remove_duplicate=False)
    return {name: measured[id(p)] for name, p in every if id(p) in measured}


def _wide(parameter: Tensor) -> Any:
    import torch

    return torch.promote_types(parameter.dtype, torch.float32)
