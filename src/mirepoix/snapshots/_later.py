"""A member in training that is held to, or kept away from, the members before it, which are frozen."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.models import Network, NetworkSpec
from mirepoix.objectives import Objective
from mirepoix.objectives._joint import single
from mirepoix.types import Batch, InputError, Outputs, Weights

__all__ = ["LaterMember", "check_number", "check_weight", "joint_batch", "uncompiled"]


class LaterMember(Objective):
    r"""A criterion of one member of a sequence, made with the members before it.

    They are held as networks in evaluation mode, also in training: running statistics, no dropout. Nothing trains
    them, and they take no gradient. They are part of the state of the criterion, so they go to its device, into its
    copies and through an interruption, and results that were made with other members are other results. Each costs the
    memory of one network, without gradients or moments.

    Where a step takes one of several members, it is drawn from torch's default generator, which the trainer seeds
    for every step; the draw comes after the forward pass of the network in training, so its dropout is what it would be
    without.

    Args:
        network: The network of a member, as the trainer has it.
        members: Weights of the earlier members that the criterion looks at, of that network.

    Raises:
        InputError: If the network has several members, or some weights are not of this network or not finite.
    """

    def __init__(self, network: NetworkSpec, members: Sequence[Weights]) -> None:
        super().__init__()
        owner = type(self).__name__
        if not isinstance(network, NetworkSpec):
            raise InputError(f"{owner}: network must be a NetworkSpec, got {network!r}.")
        if network.members > 1 or network.inputs > 1 or network.split_at is not None:
            raise InputError(
                f"{owner} trains one member after the other, each a network of its own, got a network with "
                f"members={network.members}, split_at={network.split_at!r} and inputs={network.inputs}; use "
                "network.one_member()."
            )
        if isinstance(members, Mapping):
            raise InputError(f"{owner}: members must be a list of weights, got one mapping; write [theta].")
        self.network = network
        self.members = nn.ModuleList(
            self.frozen(theta, f"member {place}") for place, theta in enumerate(members)
        )

    @abstractmethod
    def configuration(self) -> Mapping[str, Any]:
        """The network and the hyperparameters; the members are in the state."""
        return {"network": self.network.to_dict()}

    def train(self, mode: bool = True) -> Self:
        """Choose the mode of the criterion; its members stay in evaluation mode."""
        super().train(mode)
        for part in self.children():
            part.eval()
        return self

    def trained_with_network(self) -> list[nn.Parameter]:
        """None of the members'."""
        return [parameter for parameter in super().trained_with_network() if parameter.requires_grad]

    def frozen(self, theta: Weights, called: str) -> Network:
        """The network with these weights, in evaluation mode and without gradients; weights are copied."""
        made = self.network.build().requires_grad_(False).eval()
        _check_member(type(self).__name__, called, theta, made.state_dict())
        made.load_state_dict({name: _tensor(theta[name]) for name in made.state_dict()})
        return made

    def member(self, place: int) -> Network:
        """One of the members."""
        return cast(Network, self.members[place])

    def drawn(self) -> Network:
        """One of the members, all equally likely."""
        return self.member(int(torch.randint(len(self.members), ())))

    def look(self, member: Network, images: Tensor) -> Outputs:
        """What a member says to images, without a gradient."""
        with torch.no_grad():
            outputs: Outputs = member(images)
        return outputs

    def nll(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """The mean cross-entropy of the joint batch, in nats."""
        return F.cross_entropy(single(outputs.logits), labels)

    def pairs(self, model: nn.Module, member: Network) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, value in the network in training, and value in a member, of every parameter."""
        own, theirs = dict(uncompiled(model).named_parameters()), dict(member.named_parameters())
        if own.keys() != theirs.keys() or any(own[name].shape != theirs[name].shape for name in own):
            name = next(
                name
                for name in (*own, *theirs)
                if name not in own or name not in theirs or own[name].shape != theirs[name].shape
            )
            raise InputError(
                f"{type(self).__name__} compares weights, so the network in training must be that of its members, "
                f"{self.network.name}: {name!r} is {_shape(own.get(name))} there and {_shape(theirs.get(name))} in "
                "the members. Make it with the NetworkSpec of the trainer."
            )
        for name, value in own.items():
            yield name, single(value), single(theirs[name])


def joint_batch(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Images and labels of all source domains."""
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


def uncompiled(model: nn.Module) -> nn.Module:
    """The network itself, whose parts have the names they have in a checkpoint."""
    return cast(nn.Module, getattr(model, "_orig_mod", model))


def check_number(owner: str, name: str, value: float) -> float:
    """A finite number.

    Raises:
        InputError: For what is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{owner} needs {name} to be a finite number, got {value!r}.")
    return float(value)


def check_weight(owner: str, name: str, value: float) -> float:
    """A finite number of 0 or more.

    Raises:
        InputError: For what is none.
    """
    value = check_number(owner, name, value)
    if value < 0:
        raise InputError(f"{owner} needs {name} to be 0 or more, got {value}; 0 leaves its term out.")
    return value


def _check_member(owner: str, called: str, theta: Weights, like: Mapping[str, Tensor]) -> None:
    """Weights of this network, all finite."""
    if not isinstance(theta, Mapping):
        raise InputError(
            f"{owner}: {called} must be weights, names to tensors, got a {type(theta).__name__}."
        )
    for name in (*like, *theta):
        there = theta.get(name)
        if name not in like or there is None or tuple(there.shape) != tuple(like[name].shape):
            raise InputError(
                f"{owner}: {called} is of another network: {name!r} is {_shape(there)} there and "
                f"{_shape(like.get(name))} in the network. Earlier members need the network of the one in training, "
                "with its head."
            )
        if not bool(torch.isfinite(_tensor(there)).all()):
            raise InputError(
                f"{owner}: {called} holds NaN or infinity in {name!r}; a member that diverged is no anchor, leave "
                "it out."
            )


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(np.asarray(value))


def _shape(value: Any) -> str:
    return "missing" if value is None else f"of shape {tuple(value.shape)}"
