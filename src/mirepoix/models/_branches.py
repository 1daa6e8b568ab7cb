"""Several members in one network: a trunk that they share, and a branch and a classifier for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from mirepoix.models._network import Network
from mirepoix.types import InputError, Outputs, Weights

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["BranchNetwork", "WholeModules", "branch_weights", "cut", "member_weights"]


class BranchNetwork(Network):
    """M members on one trunk (Lee et al., 2015, TreeNet), or M whole networks side by side.

    What comes before the module ``split_at`` of the first featurizer is the trunk; that module and what comes after
    it is a branch, one of each member, from its own featurizer. Without ``split_at`` the members share nothing. Outputs
    have the members first: features ``(members, samples, features)`` and logits ``(members, samples, classes)``.

    The names of the weights are ``featurizer.trunk.<name>``, ``featurizer.members.<i>.<name>`` and
    ``classifier.<i>.<name>``, where ``<name>`` is that of a network of one member: `member_weights` gives a member
    back as such a network, and `branch_weights` puts networks together. With one member, outputs and gradients are
    those of the plain network, bit for bit.

    Dropout mutes other features in each member.

    Args:
        featurizers: One per member, of the same architecture.
        feature_size: Number of features.
        classes: Number of classes.
        split_at: Name of a module of the featurizer, such as ``layer3``, that is called once.
        dropout: Probability of dropping a feature before the classifiers.
        frozen_batch_norm: Whether batch-norm statistics stay as they are in the weights.

    Raises:
        InputError: If there is no such module, or it is not called exactly once.

    References:
        Lee et al. (2015), Why M heads are better than one: training a diverse ensemble of deep networks, section 3.1.
    """

    def __init__(
        self,
        featurizers: Sequence[nn.Module],
        feature_size: int,
        classes: int,
        *,
        split_at: str | None = None,
        dropout: float = 0.0,
        frozen_batch_norm: bool = True,
    ) -> None:
        nn.Module.__init__(self)
        self.featurizer: nn.Module = _Members(featurizers, split_at)
        self.dropout = nn.Dropout(dropout)
        self.classifier: Any = nn.ModuleList(nn.Linear(feature_size, classes) for _ in featurizers)
        self.feature_size = feature_size
        self.frozen_batch_norm = frozen_batch_norm
        self.train(self.training)

    @property
    def members(self) -> int:
        """How many there are."""
        return len(self.classifier)

    def forward(self, images: Float[Tensor, "samples channels height width"]) -> Outputs:
        """The features as the classifiers see them, and their logits; members first."""
        features = self.dropout(self.featurizer(images))  # (members, samples, features)
        logits = [classifier(own) for classifier, own in zip(self.classifier, features, strict=True)]
        return Outputs(features=features, logits=torch.stack(logits))


class _Members(nn.Module):
    """The trunk and the branches."""

    def __init__(self, featurizers: Sequence[nn.Module], split_at: str | None) -> None:
        super().__init__()
        if split_at is None:
            self.trunk: nn.Module | None = None
            self.members = nn.ModuleList(featurizers)
            return
        trunks, branches = zip(*(cut(featurizer, split_at) for featurizer in featurizers), strict=True)
        self.trunk = trunks[0]
        self.members = nn.ModuleList(branches)

    def forward(self, images: Tensor) -> Tensor:
        shared = (images,) if self.trunk is None else self.trunk(images)
        return torch.stack([member(*shared) for member in self.members])  # (members, samples, features)


class WholeModules(fx.Tracer):
    """Sees every module as a whole, but for those that the split goes through."""

    def __init__(self, split_at: str) -> None:
        super().__init__()
        self.split_at = split_at

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.split_at.startswith(f"{module_qualified_name}.")


def cut(network: nn.Module, split_at: str) -> tuple[nn.Module, nn.Module]:
    """What comes before a module, and the module with what comes after it; both hold the modules of the network.

    The first returns a tuple, which is what the second takes. Names of the weights stay what they are. The order of
    the computation is read from a trace of ``forward`` by torch.fx, so this goes for any network whose ``forward`` does
    not look at values, at least outside of its modules: ResNets, ViT, Swin, ConvNeXt, MobileNet.

    Raises:
        InputError: If there is no such module, or it is not called exactly once, or ``forward`` cannot be traced.
    """
    names = [name for name, _ in network.named_modules() if name]
    if split_at not in names:
        children = ", ".join(name for name, _ in network.named_children())
        raise InputError(
            f"split_at: expected the name of a module of the featurizer ({children}, or one inside them), "
            f"got {split_at!r}."
        )
    try:
        graph = WholeModules(split_at).trace(network)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise InputError(
            f"split_at: {type(network).__name__} cannot be cut at {split_at!r}, as its forward decides by values "
            f"({error}); leave split_at out, and members share nothing."
        ) from error
    nodes = list(graph.nodes)
    calls = [place for place, node in enumerate(nodes) if (node.op, node.target) == ("call_module", split_at)]
    if len(calls) != 1:
        raise InputError(
            f"split_at: expected a module that is called once, got {split_at!r}, which is called {len(calls)} times."
        )
    before, after = nodes[: calls[0]], nodes[calls[0] :]
    given = [node for node in before if any(user in set(after) for user in node.users)]
    trunk, branch = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in before:
        copies[node] = trunk.node_copy(node, copies.__getitem__)
    trunk.output(tuple(copies[node] for node in given))
    copies = {node: branch.placeholder(node.name) for node in given}
    for node in after:
        copies[node] = branch.node_copy(node, copies.__getitem__)
    return fx.GraphModule(network, trunk), fx.GraphModule(network, branch)


def member_weights(theta: Weights, member: int) -> dict[str, Tensor]:
    """The weights of one member of a `BranchNetwork`, as a network of its own: trunk, branch and classifier.

    Args:
        theta: Weights of the whole; tensors are not copied.
        member: Its place, from 0.

    Raises:
        InputError: If there is no such member.
    """
    if any(name.startswith("featurizer.encoders.") for name in theta):
        raise InputError(
            "member_weights: the members of a network of several inputs share its core and are no networks of their "
            "own; average its logits."
        )
    count = len({name.split(".")[1] for name in theta if name.startswith("classifier.")})
    if not 0 <= member < count or f"classifier.{member}.weight" not in theta:
        raise InputError(
            f"member: expected 0 to {count - 1}, a member of these weights, got {member}; weights of a network of "
            "several members hold classifier.0.weight and so on."
        )
    return {
        name: theta[whole]
        for name, whole in ((_name(whole, member), whole) for whole in theta)
        if name is not None
    }


def branch_weights(members: Sequence[Weights], whole: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a `BranchNetwork` whose members are these networks; the trunk is that of the first.

    Args:
        members: Weights of plain networks, one per member.
        whole: The state of the network to fill: its names say what is shared.

    Raises:
        InputError: If a weight is missing.
    """
    filled = {}
    for name in whole:
        for place, theta in enumerate(members):
            plain = _name(name, place)
            if plain is None:
                continue
            if plain not in theta:
                raise InputError(f"member {place} has no weight {plain!r}, which the network needs.")
            filled[name] = theta[plain]
            break
        else:
            raise InputError(
                f"expected as many members as the network has, got {len(members)}: {name!r} is of none."
            )
    return filled


def _name(whole: str, member: int) -> str | None:
    """What a weight of the whole is called in a member; None if it is of another."""
    for prefix, plain in (
        ("featurizer.trunk.", "featurizer."),
        (f"featurizer.members.{member}.", "featurizer."),
        (f"classifier.{member}.", "classifier."),
    ):
        if whole.startswith(prefix):
            return plain + whole.removeprefix(prefix)
    return None
