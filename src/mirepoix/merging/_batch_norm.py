"""Batch-norm statistics after averaging: averaged weights have activations that no member had."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mirepoix.types import Batch, InputError

__all__ = ["reestimate_batch_norm"]


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


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    r"""The weights of a network with its batch-norm statistics measured again.

    Every batch-norm layer sees the batches as in training (normalised by their own statistics; dropout stays
    off) and gets the mean and the unbiased variance of all values that entered it, pooled over batches:

    .. math:: \mu = \frac{1}{n} \sum_i x_i, \qquad \sigma^2 = \frac{1}{n-1} \sum_i (x_i - \mu)^2

    Args:
        model: The network, with the averaged weights; it is not changed.
        batches: At least 1,000 images are advised, un-augmented or as in training.

    Returns:
        The network's weights on the CPU; without batch norm they are just a copy.

    Raises:
        InputError: If a layer saw fewer than two values per channel.
    """
    model = copy.deepcopy(model).eval()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    moments = {name: _Moments() for name in layers}
    for name, layer in layers.items():
        layer.train()
        layer.register_forward_pre_hook(moments[name])
    if layers:
        for batch in batches:
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
        layer.running_mean.copy_(mean)
        layer.running_var.copy_((seen.squares - seen.count * mean.square()).clamp(min=0) / (seen.count - 1))
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
