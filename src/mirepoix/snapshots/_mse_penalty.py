"""A later member whose features stay near those of the first: SSE-MSE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mirepoix.models import NetworkSpec
from mirepoix.snapshots._feature_penalty import FeaturePenalty
from mirepoix.types import InputError, Weights

__all__ = ["MSEPenalty"]


class MSEPenalty(FeaturePenalty):
    r"""The risk plus the mean squared difference of features from the anchor: SSE-MSE, StarSSE-MSE.

    .. math:: \frac{1}{n} \sum_{i = 1}^{n} -\log p_w(y_i \mid x_i)
        + \alpha \sum_e c_e \frac{1}{n d_e} \sum_{i = 1}^{n} \big\lVert f^e_w(x_i) - f^e_{w_1}(x_i) \big\rVert^2

    with :math:`f^e(x) \in \mathbb{R}^{d_e}` what layer :math:`e` returns for the joint batch. Lower is nearer to the
    anchor. It is stricter than `RTDPenalty`, which a rotation of all features costs nothing: published members are more
    accurate each, and less diverse.

    The anchor is in evaluation mode and sees the same augmented images. The published anchor is the first member of
    the ensemble; give the pre-trained start instead (with the head that the training begins with) for the anchor of
    the paper before it, whose baselines hold members near the start.

    In the network in training, ``"features"`` are what the classifier sees, so after dropout, of which the anchor has
    none. A module of the featurizer is watched by a hook, so with ``layers`` of its own a compiled network is trained
    uncompiled. Features are compared in single precision at least, also under autocast. A batch of one needs no special
    case.

    Logged: ``nll`` and ``mse``, the sum over layers with their weights, without :math:`\alpha`; with several layers
    also ``mse.<layer>``, without its weight.

    The state is the anchor. An update costs one more forward pass.

    Args:
        network: The network of a member.
        members: The first one is the anchor :math:`w_1`, the others are not looked at.
        alpha: :math:`\alpha`, 0 or more. The default is that of the published runs, whose grid was 0.1, 1, 10, 20, 40.
        layers: From the name of a module of the featurizer to its weight :math:`c_e`, above 0. ``"features"`` is what
            the classifier sees, which is the default, with weight 1, as published.

    Raises:
        InputError: Without an anchor, or for one of another network; for an unknown layer or an option out of its
            range; in a step, if the network in training has features of another shape.

    References:
        Sadrtdinov et al. (2023), To stay or not to stay in the pre-train basin (SSE).
    """

    called = "mse"

    def __init__(
        self,
        network: NetworkSpec,
        members: Sequence[Weights],
        *,
        alpha: float = 20.0,
        layers: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(network, members, alpha=alpha, layers=layers)

    def configuration(self) -> Mapping[str, object]:
        """The network and all options."""
        return super().configuration()

    def distance(self, anchor: Tensor, own: Tensor) -> Tensor:
        """The mean over samples and features of the squared difference."""
        if anchor.shape != own.shape:
            raise InputError(
                f"MSEPenalty compares features one by one, got shape {tuple(own.shape)} in the network in training and "
                f"{tuple(anchor.shape)} in the anchor; make it with the NetworkSpec of the trainer."
            )
        return (own - anchor).square().mean()
