"""A later member whose features keep the topology of those of the first: SSE-RTD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from mirepoix.landscape import rtd_loss
from mirepoix.models import NetworkSpec
from mirepoix.snapshots._feature_penalty import FeaturePenalty
from mirepoix.types import Batch, InputError, Weights

__all__ = ["RTDPenalty"]

FEWEST = 3


class RTDPenalty(FeaturePenalty):
    r"""The risk plus the representation topology divergence (RTD) from the anchor: SSE-RTD, StarSSE-RTD.

    .. math:: \frac{1}{n} \sum_{i = 1}^{n} -\log p_w(y_i \mid x_i)
        + \alpha \sum_e c_e \, \mathrm{RTD}\big( f^e_{w_1}(x), f^e_w(x) \big)

    with :math:`f^e` what layer :math:`e` returns for the joint batch, one point per sample, and RTD as in
    `mirepoix.landscape.rtd_loss`: distances divided by the square root of the number of features, the 50 longest bars
    of each direction. A member of a snapshot ensemble that moves far loses accuracy; this lets it move while what is
    near stays near. Lower is nearer to the anchor; 0 for equal shapes, whatever the rotation.

    The anchor is in evaluation mode and sees the same augmented images. Where the member starts at its anchor the
    term and its gradient are 0 (without batch norm in training mode), which is right: there is nothing to correct yet.
    The published anchor is the first member of the ensemble; give the pre-trained start instead (with the head that the
    training begins with) for the anchor of the paper before it, whose baselines hold members near the start.

    In the network in training, ``"features"`` are what the classifier sees, so after dropout, of which the anchor has
    none. A module of the featurizer is watched by a hook, so with ``layers`` of its own a compiled network is trained
    uncompiled. A training whose features are not finite any more has the loss NaN, for which the trainer stops.

    Logged: ``nll`` and ``rtd``, the sum over layers with their weights, without :math:`\alpha`; with several layers
    also ``rtd.<layer>``, without its weight.

    The state is the anchor. An update costs one more forward pass, and the topology of :math:`n` points on the
    processor, in which time grows with about the third power of :math:`n`.

    Args:
        network: The network of a member.
        members: The first one is the anchor :math:`w_1`, the others are not looked at.
        alpha: :math:`\alpha`, 0 or more. The default is that of the published runs, whose grid was 0.0316, 0.1, 0.316,
            1, 3.16, 10.
        layers: From the name of a module of the featurizer to its weight :math:`c_e`, above 0; what it returns is
            flattened. ``"features"`` is what the classifier sees, which is the default, with weight 1, as published.
        gradient: ``"exact"``, or ``"transfer"`` as in the public code; see `rtd_loss`. The value is the same.

    Raises:
        InputError: Without an anchor, or for one of another network; for an unknown layer or an option out of its
            range; in a step, for a joint batch of fewer than 3 samples; without gudhi.

    References:
        Sadrtdinov et al. (2023), To stay or not to stay in the pre-train basin (SSE);
        Barannikov et al. (2022), Representation topology divergence.
    """

    called = "rtd"

    def __init__(
        self,
        network: NetworkSpec,
        members: Sequence[Weights],
        *,
        alpha: float = 0.0316,
        layers: Mapping[str, float] | None = None,
        gradient: Literal["exact", "transfer"] = "exact",
    ) -> None:
        super().__init__(network, members, alpha=alpha, layers=layers)
        if gradient not in ("exact", "transfer"):
            raise InputError(f"RTDPenalty needs gradient to be 'exact' or 'transfer', got {gradient!r}.")
        self.gradient = gradient

    def configuration(self) -> Mapping[str, Any]:
        """The network and all options."""
        return {**super().configuration(), "gradient": self.gradient}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy of the joint batch plus the weighted divergence, a scalar."""
        samples = sum(len(batch.labels) for batch in batches)
        if samples < FEWEST:
            raise InputError(
                f"RTDPenalty needs at least {FEWEST} samples in the joint batch, got {samples}: fewer points have no "
                "topology; use a larger batch."
            )
        return super().forward(model, batches)

    def distance(self, anchor: Tensor, own: Tensor) -> Tensor:
        """RTD, the anchor first; NaN for features that are not finite."""
        if not bool(own.isfinite().all()):
            return (own - own).sum()  # NaN: that a training diverged is for the trainer to say
        return rtd_loss(anchor.flatten(1), own.flatten(1), gradient=self.gradient)
