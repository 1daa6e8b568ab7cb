"""Manifold mixup: what two images have become inside of the network, interpolated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import single
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError

__all__ = ["ManifoldMixup"]

STAGES = (("layer1", "layer2", "layer3"), ("conv2", "conv3", "conv4"), ("1", "2", "3"))
"""Stages of residual networks, layers of ``mnist_cnn``, modules of a sequence: what comes before each is mixed."""


class ManifoldMixup(Objective):
    r"""Mixup of hidden states (Verma et al., 2019).

    Each update draws one of the ``layers``, :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)` and a permutation
    :math:`\pi` of the joint batch. With :math:`g` what comes before the layer and :math:`f` the layer and the rest,

    .. math:: \frac{1}{n} \sum_{i=1}^{n} \lambda \, \mathrm{CE}(f(h_i), y_i) + (1 - \lambda) \,
        \mathrm{CE}(f(h_i), y_{\pi_i}), \qquad h_i = \lambda \, g(x_i) + (1 - \lambda) \, g(x_{\pi_i}).

    A layer is the name of a module of the featurizer, whose input is mixed; ``""`` is the featurizer itself, so the
    images. Name whole stages: inside of a residual block, what goes around the module would not be mixed. By default
    these are the images and the inputs of ``layer1``, ``layer2`` and ``layer3`` of CIFAR ResNets, WRN-28-k and timm's
    ResNets (so after the stem and after the first two stages), of the last three convolutions of ``mnist_cnn``, or of
    the second to fourth module of a `torch.nn.Sequential`. Other networks need ``layers``, such as
    ``["", "stages.0", "stages.1", "stages.2"]`` for a ConvNeXt.

    Domains are mixed with each other, and weigh by their batch size. Batch-norm layers see mixed values. With a batch
    of one image it is ERM. Of a network compiled with ``torch.compile``, updates that mix hidden states run uncompiled.

    All draws are from torch's global generator of the processor, whatever the device, which the trainer seeds for
    every step.

    Args:
        alpha: Both parameters of the Beta distribution; 2 is usual for CIFAR.
        layers: Names of modules of the featurizer, each as likely; by default as above.

    Raises:
        InputError: If ``alpha`` is not a positive number, or there are no layers, or one twice; in an update, if the
            network has no such module, or does not call it exactly once with a tensor of samples.

    References:
        Verma et al. (2019), Manifold mixup: better representations by interpolating hidden states, section 2.
    """

    def __init__(self, alpha: float = 2.0, layers: Sequence[str] | None = None) -> None:
        super().__init__()
        if not 0 < alpha < math.inf:
            raise InputError(f"ManifoldMixup needs a positive, finite alpha, got {alpha}; 2 is usual.")
        if layers is not None and (isinstance(layers, str) or not layers or len({*layers}) != len(layers)):
            raise InputError(
                "ManifoldMixup needs layers to be different names of modules of the featurizer, such as "
                f"['', 'layer1'], got {layers!r}; leave it out for the images and the stages."
            )
        self.alpha = float(alpha)
        self.layers = None if layers is None else list(layers)

    def configuration(self) -> Mapping[str, Any]:
        """The parameter of the Beta distribution, and the layers if they were named."""
        return {"alpha": self.alpha, "layers": self.layers}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy with both labels, a scalar in nats."""
        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        network = getattr(model, "_orig_mod", model)  # hooks are not for compiled networks
        featurizer = getattr(network, "featurizer", network)
        layers = self.layers if self.layers is not None else _default_layers(featurizer)
        layer = layers[int(torch.randint(len(layers), ()))]
        alpha = torch.tensor(self.alpha, dtype=torch.float64)
        coefficient = torch.distributions.Beta(alpha, alpha).sample().item()
        partners = torch.randperm(len(labels)).to(labels.device)
        if layer == "":
            logits = model(_mixed(images, coefficient, partners)).logits
        else:
            with _mixing(featurizer, layer, coefficient, partners):
                logits = network(images).logits
        logits = single(logits)
        own, other = F.cross_entropy(logits, labels), F.cross_entropy(logits, labels[partners])
        return coefficient * own + (1 - coefficient) * other


def _mixed(values: Tensor, coefficient: float, partners: Tensor) -> Tensor:
    return coefficient * values + (1 - coefficient) * values[partners]


@contextmanager
def _mixing(featurizer: nn.Module, layer: str, coefficient: float, partners: Tensor) -> Iterator[None]:
    """Mix what a module is given, for one pass; afterwards, also after an error, the module is as it was."""
    modules = dict(featurizer.named_modules())
    if layer not in modules:
        children = ", ".join(name for name, _ in featurizer.named_children())
        raise InputError(
            f"layers: expected names of modules of the featurizer ({children}, or inside them), got {layer!r}."
        )
    calls = 0

    def mix(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal calls
        calls += 1
        values = inputs[0] if inputs else None
        if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != len(partners):
            got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"{type(values).__name__}"
            raise InputError(
                f"layers: {layer!r} must be given a tensor of {len(partners)} samples first, got {got}; name "
                "another layer."
            )
        return _mixed(values, coefficient, partners), *inputs[1:]

    handle = modules[layer].register_forward_pre_hook(mix)
    try:
        yield
    finally:
        handle.remove()
    if calls != 1:
        raise InputError(
            f"layers: expected a module that is called once, got {layer!r}, which was called {calls} times."
        )


def _default_layers(featurizer: nn.Module) -> list[str]:
    """The images and the inputs of the stages, where the featurizer has them."""
    names = {name for name, _ in featurizer.named_children()}
    for stages in STAGES:
        if names.issuperset(stages):
            return ["", *stages]
    raise InputError(
        f"layers: {type(featurizer).__name__} has none of the stages that are known; name its own, such as "
        "layers=['', 'blocks']. Their inputs are mixed, and '' is the images."
    )
