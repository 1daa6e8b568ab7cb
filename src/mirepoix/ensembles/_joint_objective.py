"""Members trained together, in one network: what all such criteria have in common, and the plain one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.ensembles._combiners import average_logits
from mirepoix.objectives import Objective
from mirepoix.types import Batch, InputError, Outputs

__all__ = ["Independent", "JointObjective", "cross_entropies", "member_outputs", "outputs_and_labels"]


class JointObjective(Objective):
    """A criterion of all members of a network at once, such as `mirepoix.models.BranchNetwork`.

    The network returns outputs with the members first. A prediction is the average of their logits.
    """

    def predict(self, model: nn.Module, images: Tensor) -> Outputs:
        """The average of the members' logits, with the features of each."""
        outputs = member_outputs(self, model, images)
        return Outputs(features=outputs.features, logits=average_logits(outputs.logits))


class Independent(JointObjective):
    r"""Members that do not know of each other: the sum of their risks (Lee et al., 2015).

    .. math:: \sum_{m = 1}^{M} \frac{1}{n} \sum_{i = 1}^{n} -\log p_m(y_i \mid x_i)

    over the joint batch. A trunk that they share gets the sum of their gradients. Without one this is a deep ensemble
    whose members see the same batches in the same order; members that also draw other batches are independent runs.
    """

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The sum of the members' mean cross-entropies, a scalar in nats."""
        outputs, labels = outputs_and_labels(self, model, batches)
        return cross_entropies(outputs.logits, labels).sum()


def member_outputs(owner: Objective, model: nn.Module, images: Tensor) -> Outputs:
    """The outputs of a network of several members.

    Raises:
        InputError: If the network has one member and no axis for more.
    """
    outputs: Outputs = model(images)
    if outputs.logits.ndim != 3:
        raise InputError(
            f"{type(owner).__name__} needs a network of several members, whose logits are (members, samples, classes), "
            f"got logits of shape {tuple(outputs.logits.shape)}; mirepoix.models.NetworkSpec(members=3) makes one."
        )
    return outputs


def outputs_and_labels(
    owner: Objective, model: nn.Module, batches: Sequence[Batch]
) -> tuple[Outputs, Tensor]:
    """The outputs of all members on the joint batch, and its labels."""
    labels = torch.cat([batch.labels for batch in batches])
    return member_outputs(owner, model, torch.cat([batch.images for batch in batches])), labels


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of each member, in nats."""
    return torch.stack([F.cross_entropy(own, labels) for own in logits])  # (members,)
