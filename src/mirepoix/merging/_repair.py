"""Channels of an average brought back to the statistics of its members.

Where members disagree, their features cancel in the average: channels vary less than in any member, layer after
layer (variance collapse). REPAIR rescales and shifts every channel to what the members have on average.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mirepoix.merging._batch_norm import reestimate_batch_norm
from mirepoix.merging._permutation import as_tensors
from mirepoix.types import Batch, InputError, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["repair"]


def repair(
    model: nn.Module,
    average: Weights,
    members: Sequence[Weights],
    batches: Iterable[Batch],
    *,
    coefficients: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    r"""The average of some members, with the channel statistics that it should have (REPAIR).

    For every channel of a linear or convolutional layer, with mean :math:`\mu` and standard deviation
    :math:`\sigma` of its pre-activations over samples and pixels,

    .. math:: x \leftarrow \sum_i c_i \mu_i + \frac{\sum_i c_i \sigma_i}{\sigma} \, (x - \mu),

    folded back into the layer's weight and bias. Layers are treated in the order they run, each with those before
    it already repaired, so that afterwards the statistics on these batches are the averaged ones. (In the paper
    all layers are normalised batch by batch at once; that agrees only for a single batch.)

    The last layer, which writes the logits, is left as it is. A channel that is constant in the average cannot be
    rescaled and is only shifted. Layers that run inside another module's own code, as the output layer of
    ``torch.nn.MultiheadAttention``, and transposed convolutions are not seen. With batch norm in the network, its
    statistics are measured again instead, against the same collapse: see `reestimate_batch_norm`.

    This mends averages of networks that were trained apart, after `align`. Members that share their start collapse
    little, and so far no alignment has made their average more accurate.

    Args:
        model: The network, to run weights in; it is not changed.
        average: The weights to repair, torch or NumPy.
        members: The weights it is the average of, in the order of the permutation it was made with.
        batches: As for `reestimate_batch_norm`; kept in memory, as each layer needs them.
        coefficients: Of the members; equal if not given.

    Returns:
        The repaired weights, on the CPU.

    Raises:
        InputError: Without members or data; when coefficients do not fit; when a layer has no bias to shift,
            runs twice in one forward pass or shares its weights with another.

    Example:
        >>> import torch
        >>> from mirepoix import average
        >>> from mirepoix.types import Batch
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1))
        >>> a, b = ({**model.state_dict(), "0.weight": torch.tensor([[w]])} for w in (1.0, -0.5))
        >>> images, zeros = torch.tensor([[-1.0], [1.0]]), torch.zeros(2)
        >>> theta = repair(model, average([a, b]), [a, b], [Batch(images, zeros, zeros)])
        >>> theta["0.weight"]  # the average varied by 0.25, the members by 0.75 on average
        tensor([[0.7500]])

    References:
        Jordan, Sedghi, Saukh, Entezari and Neyshabur, REPAIR: REnormalizing Permuted
        Activations for Interpolation Repair, 2023.
    """
    import torch

    if not members:
        raise InputError("there is no member whose statistics the average should have.")
    weights = _coefficients(coefficients, len(members))
    data = list(batches)
    model = copy.deepcopy(model).eval()
    if any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        model.load_state_dict(as_tensors(average))
        return reestimate_batch_norm(model, data)

    with torch.no_grad():
        names: list[str] = []
        means: dict[str, Any] = {}
        stds: dict[str, Any] = {}
        for theta, weight in zip(members, weights, strict=True):
            model.load_state_dict(as_tensors(theta))
            seen = _statistics(model, data, _layers(model))
            names = list(seen)[:-1]  # in the order they ran
            for name in names:
                means[name] = means.get(name, 0.0) + weight * seen[name].mean
                stds[name] = stds.get(name, 0.0) + weight * seen[name].std
        model.load_state_dict(as_tensors(average))
        layers = _layers(model)
        _check(model, {name: layers[name] for name in names})
        for name in names:
            layer = layers[name]
            now = _statistics(model, data, {name: layer}, stop=True)[name]
            varies = now.std > 1e-12 * now.mean.abs().clamp(min=1e-12)
            scale = torch.where(varies, stds[name] / now.std.where(varies, torch.ones_like(now.std)), 1.0)
            weight, bias = layer.weight.double(), layer.bias.double()
            layer.weight.copy_(weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))
            layer.bias.copy_((bias - now.mean) * scale + means[name])
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


class _Channels:
    """Mean and standard deviation of what one layer puts out, by channel, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.calls = 0
        self.mean: Any = 0.0
        self._squares: Any = 0.0  # of distances from the mean

    def add(self, x: Tensor) -> None:
        """``x``: ``(channels, values)``. The update of Chan et al. (1983), which keeps small variances."""
        n = x.shape[1]
        mean = x.mean(1)
        gap = mean - self.mean
        self.count += n
        self.mean = self.mean + gap * n / self.count
        self._squares = self._squares + (x - mean[:, None]).square().sum(1)
        self._squares = self._squares + gap.square() * n * (self.count - n) / self.count

    @property
    def std(self) -> Any:
        return (self._squares / self.count).sqrt()


class _Stop(Exception):
    """The layer of interest has run; the rest of the forward pass is of no use."""


def _layers(model: nn.Module) -> dict[str, Any]:
    from torch import nn

    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _statistics(
    model: nn.Module, batches: Sequence[Batch], layers: dict[str, Any], *, stop: bool = False
) -> dict[str, _Channels]:
    """Of the outputs of layers, in the order in which they run."""
    from torch import nn

    seen: dict[str, _Channels] = {}

    def hook(name: str, module: nn.Module, out: Tensor) -> None:
        axis = out.ndim - 1 if isinstance(module, nn.Linear) else 1
        channels = seen.setdefault(name, _Channels())
        channels.calls += 1
        channels.add(out.detach().movedim(axis, 0).flatten(1).double())
        if stop:
            raise _Stop

    handles = [
        layer.register_forward_hook(lambda module, _, out, name=name: hook(name, module, out))
        for name, layer in layers.items()
    ]
    for batch in batches:
        try:
            model(batch.images)
        except _Stop:
            continue
    for handle in handles:
        handle.remove()
    if not seen:
        raise InputError("batches: no linear or convolutional layer saw data; give at least one batch.")
    for name, channels in seen.items():
        if channels.calls != len(batches):
            raise InputError(
                f"layer {name!r} runs {channels.calls} times in {len(batches)} forward passes, expected once in "
                "each: what it is given then depends on what it puts out, and there is no one correction."
            )
    return seen


def _check(model: nn.Module, layers: dict[str, Any]) -> None:
    bare = [name for name, layer in layers.items() if layer.bias is None]
    if bare:
        raise InputError(
            f"layers without bias cannot be shifted: {', '.join(map(repr, bare[:4]))}"
            f"{f' and {len(bare) - 4} more' if len(bare) > 4 else ''}. Build the network with biases of zero there."
        )
    parameters = [id(value) for value in model.state_dict(keep_vars=True).values()]
    shared = [name for name, layer in layers.items() if parameters.count(id(layer.weight)) > 1]
    if shared:
        raise InputError(
            f"layer {shared[0]!r} shares its weight with another, so it cannot be corrected alone."
        )


def _coefficients(coefficients: Sequence[float] | None, count: int) -> list[float]:
    if coefficients is None:
        return [1 / count] * count
    values = [float(value) for value in coefficients]
    if len(values) != count:
        raise InputError(f"expected one coefficient per member, got {len(values)} for {count} members.")
    if not abs(math.fsum(values) - 1) <= 1e-6:
        raise InputError(f"coefficients must sum to one, got {values}.")
    return values
