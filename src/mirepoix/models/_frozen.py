"""Part of a network stays as it is: what comes before a module in the forward pass."""

from __future__ import annotations

from torch import nn

from mirepoix.models._branches import BranchNetwork, cut
from mirepoix.models._multi_input import MultiInputNetwork
from mirepoix.models._network import Network
from mirepoix.models._spec import NetworkSpec
from mirepoix.types import InputError

__all__ = ["part_before"]


def part_before(network: Network, spec: NetworkSpec, train_from: str) -> nn.Module:
    """The part of the featurizer that comes before the first module that is trained.

    Before ``layer3`` of a ResNet-50 with 100 classes are 6.1 % of its parameters, before ``layer4`` 36.0 %, and
    before ``classifier`` all but 0.86 %.

    Args:
        network: As ``spec`` builds it.
        spec: Says which module ``last_stage`` is.
        train_from: The name of a module of the featurizer, ``last_stage``, or ``classifier``.

    Returns:
        A module that holds the same parameters and layers as ``network``.

    Raises:
        InputError: If there is no such module, it cannot be told what comes before it, or the network has several
            members.
    """
    if isinstance(network, BranchNetwork | MultiInputNetwork):
        raise InputError(
            f"run.train_from: expected a network of one member, got one of several with train_from {train_from!r}; "
            "leave train_from out."
        )
    if train_from == "classifier":
        return network.featurizer
    name = spec.module_name(train_from, network.featurizer)
    assert name is not None
    try:
        before, _ = cut(network.featurizer, name)
    except InputError as error:
        raise InputError(str(error).replace("split_at", "run.train_from")) from None
    return before
