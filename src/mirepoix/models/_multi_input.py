"""Several inputs in one network: a first convolution and a classifier for each, and one core that they share."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from mirepoix.models._branches import WholeModules
from mirepoix.models._network import Network
from mirepoix.types import InputError, Outputs, Weights

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["MultiInputNetwork", "first_convolution", "multi_input_weights"]


class MultiInputNetwork(Network):
    r"""M members that share all but their first convolution and their classifier (Havasi et al., 2021, MIMO).

    The first convolution of the featurizer becomes M encoders :math:`c_i`; what comes after it is the core :math:`C`,
    and there are M linear classifiers :math:`d_i`. To predict, all members see the same image, and the core runs once:

    .. math:: z_i(x) = d_i\Big(C\Big(\sum_{j = 1}^{M} c_j(x)\Big)\Big)

    To be trained, each member sees an image of its own, and is asked for the label of that one; masks say where in the
    sum it is seen, see `mixed`.

    Outputs have the members first: features ``(members, samples, features)``, which are the same for every member, and
    logits ``(members, samples, classes)``. Dropout mutes the same features for all members. The first convolution stays
    what it is in the featurizer, with a bias if it has one there; those of the published networks have none.

    The names of the weights are ``featurizer.encoders.<i>.weight``, ``featurizer.core.<name>`` and
    ``classifier.<i>.<name>``, where ``<name>`` is that of the plain network. A member cannot be taken out as a network
    of its own, as the core knows it only by its sum with the others. With one member, outputs and gradients are those
    of the plain network, bit for bit.

    An extra member costs a convolution and a classifier, in weights and in time.

    Args:
        featurizers: One per member, of the same architecture, whose first module is a convolution. All give their first
            convolution, and the first of them gives the core.
        feature_size: Number of features.
        classes: Number of classes.
        dropout: Probability of dropping a feature before the classifiers.
        frozen_batch_norm: Whether batch-norm statistics stay as they are in the weights.

    Raises:
        InputError: If a featurizer does not begin with a convolution, or cannot be taken apart there.

    References:
        Havasi et al. (2021), Training independent subnetworks for robust prediction; Ramé et al. (2021), MixMo: mixing
        multiple inputs for multiple outputs via deep subnetworks, section 3.
    """

    def __init__(
        self,
        featurizers: Sequence[nn.Module],
        feature_size: int,
        classes: int,
        *,
        dropout: float = 0.0,
        frozen_batch_norm: bool = True,
    ) -> None:
        nn.Module.__init__(self)
        self.featurizer: Any = _Encoded(featurizers)
        self.dropout = nn.Dropout(dropout)
        self.classifier: Any = nn.ModuleList(nn.Linear(feature_size, classes) for _ in featurizers)
        self.feature_size = feature_size
        self.frozen_batch_norm = frozen_batch_norm
        self.train(self.training)

    @property
    def members(self) -> int:
        """How many there are."""
        return len(self.classifier)

    def forward(
        self,
        images: Float[Tensor, "samples channels height width"] | Sequence[Tensor],
        masks: Float[Tensor, "members samples 1 rows columns"] | None = None,
    ) -> Outputs:
        """The outputs of all members for the same images; with masks, those of `mixed`."""
        return self._classified(self.featurizer(images, masks))

    def mixed(
        self,
        inputs: Sequence[Float[Tensor, "samples channels height width"]],
        masks: Float[Tensor, "members samples 1 rows columns"],
    ) -> Outputs:
        r"""The outputs of all members, for images of their own.

        .. math:: z_i = d_i\Big(C\Big(M \sum_{j = 1}^{M} m_j \odot c_j(x_j)\Big)\Big)

        Masks of 1/M everywhere and equal images are `forward`.

        Args:
            inputs: The images :math:`x_j` of each member.
            masks: :math:`m_j`, not negative, with the sum 1 over members at every place, of the size that `mask_size`
                says. One row and column will do for masks that are the same everywhere.

        Raises:
            InputError: If there are not as many inputs and masks as members.
        """
        if not len(inputs) == len(masks) == self.members:
            raise InputError(
                f"inputs: expected images and a mask for each of {self.members} members, got {len(inputs)} inputs and "
                f"{len(masks)} masks."
            )
        return self._classified(self.featurizer(inputs, masks))

    def mask_size(self, images: Float[Tensor, "samples channels height width"]) -> tuple[int, int]:
        """Rows and columns of a mask for such images: those of what an encoder returns."""
        # Not under no_grad: autocast of older torch would then keep weights without a gradient for the whole step.
        rows, columns = self.featurizer.encoders[0](images[:1]).shape[-2:]
        return int(rows), int(columns)

    def _classified(self, features: Tensor) -> Outputs:
        features = self.dropout(features)  # (samples, features)
        logits = torch.stack([classifier(features) for classifier in self.classifier])
        return Outputs(features=features.expand(self.members, *features.shape), logits=logits)


class _Encoded(nn.Module):
    """The encoders and the core."""

    def __init__(self, featurizers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.replaced, self.core = _without_first_convolution(featurizers[0])
        # Copies, so that one featurizer may be given several times.
        self.encoders = nn.ModuleList(
            copy.deepcopy(featurizer.get_submodule(self.replaced)) for featurizer in featurizers
        )

    def forward(self, images: Any, masks: Tensor | None = None) -> Tensor:
        if masks is None:
            encoded = [encoder(images) for encoder in self.encoders]
            whole = encoded[0]
            for one in encoded[1:]:
                whole = whole + one
        else:
            encoded = [encoder(own) for encoder, own in zip(self.encoders, images, strict=True)]
            masks = len(encoded) * masks
            whole = masks[0] * encoded[0]
            for mask, one in zip(masks[1:], encoded[1:], strict=True):
                whole = whole + mask * one
            whole = whole.to(encoded[0].dtype)  # masks stay exact under autocast
        features: Tensor = self.core(whole)
        return features


def first_convolution(featurizer: nn.Module) -> str | None:
    """The name of the first convolution, if there is one."""
    names = (name for name, module in featurizer.named_modules() if isinstance(module, nn.Conv2d))
    return next(names, None)


def _without_first_convolution(network: nn.Module) -> tuple[str, nn.Module]:
    """The name of the first convolution, and what comes after it; this holds the modules of the network.

    Raises:
        InputError: If the network does not begin with a convolution, or its ``forward`` cannot be traced.
    """
    kind, name = type(network).__name__, first_convolution(network)
    refused = f"inputs: expected a featurizer whose first module is a convolution, got {kind}, "
    if not name:
        raise InputError(f"{refused}{'which is one' if name == '' else 'which has none'}.")
    try:
        nodes = list(WholeModules(name).trace(network).nodes)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise InputError(
            f"inputs: {kind} cannot be taken apart after {name!r}, as its forward decides by values ({error})."
        ) from error
    calls = [place for place, node in enumerate(nodes) if (node.op, node.target) == ("call_module", name)]
    if len(calls) != 1:
        raise InputError(f"{refused}whose {name!r} is called {len(calls)} times.")
    convolution, after = nodes[calls[0]], nodes[calls[0] + 1 :]
    images = nodes[0]
    if convolution.args != (images,):
        raise InputError(f"{refused}where other things come before {name!r}.")
    core = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {convolution: core.placeholder("encoded")}
    # Further arguments of forward, such as the attention mask of a ViT, keep their defaults.
    options = [node for node in nodes[1 : calls[0]] if node.op == "placeholder"]
    for node in [*options, *after]:
        if not all(used in copies for used in node.all_input_nodes):
            raise InputError(f"{refused}whose forward uses the image again after {name!r}.")
        copies[node] = core.node_copy(node, copies.__getitem__)
    return name, fx.GraphModule(network, core)


def multi_input_weights(theta: Weights, network: MultiInputNetwork) -> dict[str, Tensor]:
    r"""The weights of a network of M inputs that computes what a plain network does.

    Each encoder gets the first convolution, weight and bias, divided by M, so that the sum of all, given the same
    image, is what the plain network computes (up to rounding, if M is no power of 2). Each classifier is that of the
    plain network.

    Args:
        theta: Weights of the plain network.
        network: The network to fill; it stays as it is.

    Raises:
        InputError: If a weight is missing, or the first convolution is not linear in its weights, as one whose weights
            are standardised.
    """
    encoded, members = network.featurizer, network.members
    if not _linear_in_weights(encoded.encoders[0]):
        raise InputError(
            f"{encoded.replaced}: expected a convolution that is linear in its weights, so that they can be shared out "
            f"among the inputs, got {type(encoded.encoders[0]).__name__}; start from random weights."
        )
    filled = {}
    for name in network.state_dict():
        part, _, rest = name.partition(".")
        kind, _, rest = rest.partition(".")
        if part == "classifier":
            plain = f"classifier.{rest}"
        elif kind == "core":
            plain = f"featurizer.{rest}"
        else:
            plain = f"featurizer.{encoded.replaced}.{rest.partition('.')[2]}"
        if plain not in theta:
            raise InputError(f"theta has no weight {plain!r}, which the network needs.")
        filled[name] = theta[plain] / members if kind == "encoders" else theta[plain]
    return filled


def _linear_in_weights(convolution: Any) -> bool:
    """Whether twice the weights give twice the output, which is exact in floating point."""
    shape = (convolution.in_channels, *convolution.kernel_size)
    image = torch.linspace(-1, 1, math.prod(shape)).view(1, *shape)
    twice = {name: 2 * weight.detach() for name, weight in convolution.named_parameters()}
    with torch.no_grad():
        return torch.equal(functional_call(convolution, twice, image), 2 * convolution(image))
