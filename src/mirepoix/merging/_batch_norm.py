"""Batch-norm statistics after averaging: averaged weights have activations that no member had."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mirepoix.types import Batch, InputError, Weights
from mirepoix.weights import distance

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Recommendation", "recommend_batch_norm", "reestimate_batch_norm"]

_STATISTICS = ("running_mean", "running_var")

# Relative distances up to which averaged statistics were good enough: see `recommend_batch_norm`.
_MOVED = 0.8
_APART = 0.5
_APART_WITHOUT_BASE = 0.25


class _Moments:
    """Sums over all batches of what enters one layer, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Any = 0.0
        self.squares: Any = 0.0

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().transpose(0, 1).flatten(1).double()  # (channels, values)
        self.count += x.shape[1]
        self.total = self.total + x.sum(1)
        self.squares = self.squares + x.square().sum(1)


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    r"""The weights of a network with its batch-norm statistics measured again.

    Every batch-norm layer sees the batches as in training (normalised by their own statistics; dropout stays
    off) and gets the mean and the unbiased variance of all values that entered it, pooled over batches:

    .. math:: \mu = \frac{1}{n} \sum_i x_i, \qquad \sigma^2 = \frac{1}{n-1} \sum_i (x_i - \mu)^2

    so larger batches weigh more, and the variance is the one within batches and between them. The layers'
    momentum and what they had before play no part; ``num_batches_tracked`` goes on counting.

    Later layers see earlier ones normalised batch by batch, so a few large batches are better than many small
    ones: at least 1,000 samples in batches of at least 32 are advised.

    Args:
        model: The network, with the averaged weights; it is not changed.
        batches: Images, un-augmented or as in training.

    Returns:
        The network's weights on the CPU; without batch norm they are just a copy.

    Raises:
        InputError: If a layer saw fewer than two values per channel.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    model = copy.deepcopy(model).eval()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    moments = {name: _Moments() for name in layers}
    for name, layer in layers.items():
        layer.train()
        layer.register_forward_pre_hook(moments[name])
    with torch.no_grad():
        for batch in batches if layers else ():
            model(batch.images)
        for name, layer in layers.items():
            seen = moments[name]
            if seen.count < 2:
                raise InputError(
                    f"batch-norm layer {name!r} saw {seen.count} values per channel, expected at least 2."
                )
            if layer.running_mean is None or layer.running_var is None:
                continue
            mean = seen.total / seen.count
            variance = (seen.squares - seen.count * mean.square()).clamp(min=0) / (seen.count - 1)
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Whether an average of weights needs batch-norm statistics measured again, and why.

    Attributes:
        level: ``"none"`` (nothing would change for the better), ``"optional"`` (a cheap insurance) or
            ``"required"``.
        reason: In a sentence, with the numbers.
    """

    level: Literal["none", "optional", "required"]
    reason: str


def recommend_batch_norm(thetas: Sequence[Weights], base: Weights | None = None) -> Recommendation:
    r"""Whether the average of some weights needs `reestimate_batch_norm`, judged from names and weights.

    With the mean distance of two members :math:`d = \overline{\lVert \theta_i - \theta_j \rVert} /
    \overline{\lVert \theta_i \rVert}`, and the mean way from a common start :math:`m = \overline{\lVert
    \theta_i - \theta_0 \rVert} / \lVert \theta_0 \rVert`:

    - ``"none"``: no batch norm (no ``running_mean``), or the members' statistics are all the same (frozen).
    - ``"optional"``: :math:`d \le 0.5` and :math:`m \le 0.8`; or, where no start is given to vouch for the
      members, :math:`d \le 0.25`.
    - ``"required"``: everything else. It is also required, whatever this says, after an alignment, an
      extrapolation, TIES or DARE: then the merged weights lie elsewhere than between the members.

    The limits are from pairs of small convolutional networks on scikit-learn's digits (three layers with
    batch norm, members' accuracy about 0.99). Accuracy of the average, and with statistics measured again:

    ============================  ====  ====  =======  ========
    members                       d     m     average  measured
    ============================  ====  ====  =======  ========
    fine-tuned, 100 steps, 0.01   0.03  0.20  0.980    0.987
    fine-tuned, 400 steps, 0.1    0.21  0.52  0.993    0.993
    fine-tuned, 400 steps, 0.3    0.49  0.79  0.987    0.990
    fine-tuned, 1,000 steps, 0.3  0.64  0.91  0.955    0.990
    independent, aligned          0.64        0.925    0.985
    independent                   0.86        0.152    0.337
    ============================  ====  ====  =======  ========

    Args:
        thetas: The members, torch or NumPy, in memory or lazy; only what is needed is read: nothing without batch
            norm, the statistics alone where they are all the same.
        base: Their common start, if there is one.

    Raises:
        InputError: Without members; when names or shapes differ.
    """
    if not thetas:
        raise InputError("there is no member to judge: expected at least one mapping of names to tensors.")
    names = [name for name in thetas[0] if name.endswith(_STATISTICS)]
    if not any(name.endswith(_STATISTICS) for theta in thetas for name in theta):
        return Recommendation(
            "none", "there is no batch norm: no tensor is named running_mean or running_var."
        )
    for i, theta in enumerate(thetas):
        if set(theta) != set(thetas[0]):
            name = sorted(set(theta) ^ set(thetas[0]))[0]
            raise InputError(f"members 0 and {i} have different names: {name!r} is in one of them only.")
    if all(
        np.array_equal(_wide(theta[name]), _wide(thetas[0][name])) for name in names for theta in thetas[1:]
    ):
        return Recommendation(
            "none", f"all members have the same statistics in all {len(names)} tensors, as when frozen."
        )
    pairs = [distance(a, b) for i, a in enumerate(thetas) for b in thetas[:i]]
    apart = float(np.mean(pairs)) / (float(np.mean([_norm(theta) for theta in thetas])) or 1.0)
    fact = f"the members are {apart:.2g} of their norm apart on average"
    if base is None:
        fact += ", and no common start was given"
        near = apart <= _APART_WITHOUT_BASE
    else:
        moved = float(np.mean([distance(theta, base) for theta in thetas])) / (_norm(base) or 1.0)
        fact += f", and moved {moved:.2g} of the norm of their start"
        near = apart <= _APART and moved <= _MOVED
    if near:
        return Recommendation("optional", f"{fact}: averaged statistics mostly suffice at such distances.")
    return Recommendation("required", f"{fact}: averaged statistics fail at such distances.")


def _norm(theta: Weights) -> float:
    """Of what `distance` measures."""
    total = 0.0
    for name in theta:
        if not name.endswith((*_STATISTICS, "num_batches_tracked")):
            total += float(np.square(_wide(theta[name])).sum())
    return math.sqrt(total)


def _wide(value: Any) -> np.ndarray[Any, Any]:
    """In float64; NumPy has no bfloat16."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value, dtype=np.float64)
    array: np.ndarray[Any, Any] = value.detach().cpu().double().numpy()
    return array
