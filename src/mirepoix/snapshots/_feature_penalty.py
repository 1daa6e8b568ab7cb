"""The features of a member in training against those of an earlier one, at chosen layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mirepoix.models import NetworkSpec
from mirepoix.objectives._joint import single
from mirepoix.snapshots._later import LaterMember, check_number, check_weight, joint_batch, uncompiled
from mirepoix.types import Batch, InputError, Outputs, Weights

__all__ = ["FEATURES", "FeaturePenalty"]

FEATURES = "features"
"""In place of a layer: what the classifier sees."""


class FeaturePenalty(LaterMember):
    r"""The risk plus a distance between the features of the member in training and those of its anchor.

    .. math:: \frac{1}{n} \sum_{i = 1}^{n} -\log p_w(y_i \mid x_i)
        + \alpha \sum_e c_e \, D\big( f^e_{w_1}(x), f^e_w(x) \big)

    A subclass says what :math:`D` is, and gives it a name for the log.

    Args:
        network: The network of a member.
        members: The first one is the anchor :math:`w_1`, the others are not looked at.
        alpha: :math:`\alpha`.
        layers: From the name of a module of the featurizer to its weight :math:`c_e`.
    """

    called: str

    def __init__(
        self,
        network: NetworkSpec,
        members: Sequence[Weights],
        *,
        alpha: float,
        layers: Mapping[str, float] | None,
    ) -> None:
        owner = type(self).__name__
        super().__init__(network, members if isinstance(members, Mapping) else members[:1])
        if not len(self.members):
            raise InputError(
                f"{owner} needs an anchor as the first of its members, got none; the first member of a sequence is "
                "trained with ERM."
            )
        self.alpha = check_weight(owner, "alpha", alpha)
        self.layers = self._checked({FEATURES: 1.0} if layers is None else layers)

    def configuration(self) -> Mapping[str, Any]:
        """The network, the weight of the term and those of the layers."""
        return {**super().configuration(), "alpha": self.alpha, "layers": dict(self.layers)}

    @abstractmethod
    def distance(self, anchor: Tensor, own: Tensor) -> Tensor:
        """The distance between features of the same samples, both in single precision at least."""

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy of the joint batch plus the weighted distance."""
        images, labels = joint_batch(batches)
        inner = [name for name in self.layers if name != FEATURES]
        # Hooks are not for compiled networks.
        outputs, own = self._seen(uncompiled(model) if inner else model, inner, images)
        with torch.no_grad():
            _, anchor = self._seen(self.member(0), inner, images)
        nll = self.nll(outputs, labels)
        with torch.autocast(images.device.type, enabled=False):
            terms = {name: self.distance(single(anchor[name]), single(own[name])) for name in self.layers}
            penalty = torch.stack([weight * terms[name] for name, weight in self.layers.items()]).sum()
        self.parts = {"nll": nll.detach(), self.called: penalty.detach()}
        if len(terms) > 1:
            self.parts |= {f"{self.called}.{name}": term.detach() for name, term in terms.items()}
        return nll + self.alpha * penalty

    def _seen(
        self, model: nn.Module, inner: Sequence[str], images: Tensor
    ) -> tuple[Outputs, dict[str, Tensor]]:
        """The outputs, and the features at all layers."""
        with _watched(type(self).__name__, model, inner) as seen:
            outputs: Outputs = model(images)
        for name in inner:
            if name not in seen:
                raise InputError(f"{type(self).__name__}: the layer {name!r} is not used by the network.")
        return outputs, {**seen, FEATURES: outputs.features}

    def _checked(self, layers: Mapping[str, float]) -> dict[str, float]:
        owner = type(self).__name__
        if not isinstance(layers, Mapping) or not layers:
            raise InputError(
                f"{owner} needs layers to be names with their weights, such as {{'{FEATURES}': 1.0}}, got {layers!r}."
            )
        featurizer = self.member(0).featurizer
        known = {FEATURES, *(name for name, _ in featurizer.named_modules() if name)}
        checked = {}
        for name, weight in layers.items():
            if name not in known:
                outer = ", ".join(name for name, _ in featurizer.named_children())
                raise InputError(
                    f"{owner}: layers must be {FEATURES!r} or modules of the featurizer of {self.network.name} "
                    f"({outer}, or one inside them), got {name!r}."
                )
            checked[name] = check_number(owner, f"the weight of layer {name!r}", weight)
            if checked[name] <= 0:
                raise InputError(
                    f"{owner} needs the weight of layer {name!r} to be positive, got {weight}; leave the layer out."
                )
        return checked


@contextmanager
def _watched(owner: str, model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What modules of the featurizer return in the next pass."""
    seen: dict[str, Tensor] = {}

    def record(name: str, module: nn.Module, inputs: Any, output: object) -> None:
        if name in seen or not isinstance(output, Tensor):
            got = (
                "is called more than once"
                if name in seen
                else f"returns a {type(output).__name__}, no tensor"
            )
            raise InputError(f"{owner}: the layer {name!r} {got}; choose another layer.")
        seen[name] = output

    hooks = []
    try:
        for name in names:
            try:
                layer = model.get_submodule(f"featurizer.{name}")
            except AttributeError:
                raise InputError(
                    f"{owner}: the network in training has no layer {name!r} in its featurizer, the members have one; "
                    "make the criterion with the NetworkSpec of the trainer."
                ) from None
            hooks.append(layer.register_forward_hook(partial(record, name)))
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
