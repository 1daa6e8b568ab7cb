"""RegMean: the linear layer whose outputs are nearest to those of each member on that member's own inputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mirepoix.merging._coefficients import check_coefficients
from mirepoix.merging._inputs import Source
from mirepoix.merging._rule import Array, Coefficients, Inputs, Piece, Rule, TensorInputs
from mirepoix.merging._statistics import mean, opened, positive_weights, statistics
from mirepoix.types import Batch, InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["RegMean", "gram_matrices"]


@dataclass(frozen=True, slots=True)
class _Measured:
    weights: Sequence[float]
    grams: Sequence[Source] | None


@dataclass(frozen=True, eq=False)
class RegMean(Rule):
    r"""Linear layers by least squares on their inputs, everything else by the average.

    For a layer with weights :math:`W_i` and Gram matrices :math:`G_i = X_i^\top X_i / n_i` of its inputs,

    .. math:: W^\top = \Big(\sum_i w_i \hat G_i\Big)^{-1} \sum_i w_i \hat G_i W_i^\top, \qquad
        \hat G = a G + (1 - a) \operatorname{diag}(G),

    which for :math:`a = 1` minimises :math:`\sum_i w_i \|X_i W^\top - X_i W_i^\top\|^2 / n_i`. It is solved in
    float64 for the departure from the (weighted) average, with a ridge: along directions that no input has the
    average stays, and rows that are the same in all members are kept to the last bit. Tensors that no member has
    a Gram matrix for (biases, norms, embeddings) are averaged.

    Whole layers are held in memory, and with them the members' Gram matrices one at a time.

    Args:
        grams: Per member the Gram matrices by the names of the weights: the results of `gram_matrices`, or files
            opened by `open_weights`. In the order of the members, or by their names.
        coefficients: The weights :math:`w`, at least 0; equal by default. The numbers of inputs :math:`n_i` give
            the least squares solution on all data together.
        scaling: The factor :math:`a` of the entries off the diagonal, in [0, 1]; the paper's is 0.9, and 0 is a
            weighted average per input.
        ridge: What is added to the diagonal of the sum of Gram matrices, as a share of its mean, at least 0.

    Raises:
        InputError: If a tensor has a Gram matrix for some members only, or one that does not fit it or is not
            finite.

    Example:
        >>> import numpy as np
        >>> from mirepoix.merging import RegMean, merge
        >>> members = [{"w": np.array([[1.0, 2.0]])}, {"w": np.array([[3.0, 4.0]])}]
        >>> grams = [{"w": np.diag([1.0, 0.0])}, {"w": np.diag([0.0, 1.0])}]  # each saw one input only
        >>> merge(members, RegMean(grams))["w"].round(4).tolist()
        [[1.0, 4.0]]

    References:
        Jin, Ren, Preotiuc-Pietro, Cheng (2023), *Dataless knowledge fusion by merging weights of language models*.
    """

    method = "regmean"
    whole = True

    grams: Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]] = field(repr=False)
    coefficients: Coefficients | None = None
    scaling: float = 0.9
    ridge: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 <= self.scaling <= 1:
            raise InputError(f"scaling: expected a number in [0, 1], got {self.scaling!r}.")
        if not 0 <= self.ridge < math.inf:
            raise InputError(f"ridge: expected a number of at least 0, got {self.ridge!r}.")

    def check(self, labels: Sequence[str]) -> None:
        """Gram matrices and one coefficient per member."""
        check_coefficients(self.coefficients, labels)
        opened(self.grams, labels, "grams")

    def survey(self, inputs: Inputs) -> dict[str, Source]:
        """The Gram matrices of each member."""
        return opened(self.grams, inputs.labels, "grams")

    def measure(self, tensor: TensorInputs, survey: Any) -> _Measured:
        """The Gram matrices for one tensor."""
        weights = positive_weights(self.coefficients, list(survey), tensor)
        size = math.prod(tensor.shape[1:])
        sources = statistics([survey[label] for label in tensor.labels], tensor.name, (size, size))
        return _Measured(weights, sources)

    def combine(self, piece: Piece, members: Sequence[Array], base: Array | None, measured: Any) -> Array:
        """The solution for the whole tensor."""
        known: _Measured = measured
        centre = mean(members, known.weights)
        size = math.prod(piece.shape[1:])
        if known.grams is None or not centre.size:
            return centre
        left, right = np.zeros((size, size)), np.zeros((size, centre.size // size))
        for x, weight, source in zip(members, known.weights, known.grams, strict=True):
            g = source.wide(piece.name, 0, size * size, np.float64).reshape(size, size)
            if not np.isfinite(g).all():
                raise InputError(f"{source.label}: {piece.name!r} holds NaN or infinity. Measure it again.")
            diagonal = g.diagonal()
            g = g * self.scaling
            np.fill_diagonal(g, diagonal)
            left += weight * g
            right += weight * (g @ np.subtract(x, centre, dtype=np.float64).reshape(-1, size).T)
        left += self.ridge * left.trace() / size * np.eye(size)
        departure = _solve(left, right).T.reshape(-1)
        return np.where(departure == 0, centre, centre + departure.astype(centre.dtype))


def _solve(left: Array, right: Array) -> Array:
    """The solution of a positive definite system, or the shortest one if it is singular."""
    try:
        factor = np.linalg.cholesky(left)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(left, right)[0])
    return np.asarray(np.linalg.solve(factor.T, np.linalg.solve(factor, right)))


class _Gram:
    """The sum of outer products of what enters one layer, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Any = 0.0

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        import torch
        from torch.nn import functional

        x = inputs[0].detach()
        if isinstance(layer, torch.nn.Conv2d):
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x = functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
            x = functional.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride).transpose(1, 2)
        x = x.reshape(-1, x.shape[-1]).double()
        self.total = self.total + x.T @ x
        self.count += len(x)


def gram_matrices(
    model: nn.Module, batches: Iterable[Batch], *, convolutions: bool = False
) -> dict[str, Tensor]:
    r"""Gram matrices :math:`X^\top X / n` of what enters the linear layers of a network, for `RegMean`.

    The network is used as in evaluation and is not changed. :math:`n` counts all vectors that entered a layer
    (every token, every place of a filter). Layers that are never called themselves, such as the projections
    inside ``nn.MultiheadAttention``, have none, and are then averaged.

    Args:
        model: The network.
        batches: The data of this member; a few thousand examples are enough for layers of usual width.
        convolutions: Include ``nn.Conv2d`` without groups, whose inputs are the patches under the filter.

    Returns:
        By ``"<layer>.weight"`` a float64 matrix of as many rows as the layer has inputs (channels times filter
        size for convolutions), on the CPU.

    Raises:
        InputError: If no layer was called.
    """
    import torch

    model = copy.deepcopy(model).eval()
    moments: dict[str, _Gram] = {}
    for name, layer in model.named_modules():
        linear = isinstance(layer, torch.nn.Linear)
        filters = convolutions and isinstance(layer, torch.nn.Conv2d) and layer.groups == 1
        if linear or filters:
            moments[f"{name}.weight" if name else "weight"] = moment = _Gram()
            layer.register_forward_pre_hook(moment)
    with torch.no_grad():
        for batch in batches:
            model(batch.images)
    found = {name: moment.total.div(moment.count).cpu() for name, moment in moments.items() if moment.count}
    if not found:
        raise InputError(
            "batches: no linear layer of the network was called, so there is nothing to measure. Give at least one "
            "batch, or pass convolutions=True."
        )
    return found
