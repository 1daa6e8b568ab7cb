"""A later member that is pushed away from what an earlier one predicts: StarSSE-CE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.models import NetworkSpec
from mirepoix.objectives._joint import single
from mirepoix.snapshots._later import LaterMember, check_number, check_weight, joint_batch
from mirepoix.types import Batch, InputError, Weights

__all__ = ["PredictionRepulsion"]


class PredictionRepulsion(LaterMember):
    r"""The risk minus the cross-entropy with what an earlier member predicts: StarSSE-CE.

    .. math:: \frac{1}{n} \sum_{i = 1}^{n} -\log p_w(y_i \mid x_i)
        - \frac{\alpha}{|S|} \sum_{i \in S} -\log p_w(\hat y_{ij} \mid x_i), \qquad
        \hat y_{ij} = \operatorname{argmax}_k p_{w_j}(k \mid x_i)

    with :math:`j` drawn anew in every step, uniformly from ``members``, and :math:`S` the samples that member :math:`j`
    gets wrong (version 2 of the method), or with ``samples="all"`` all of them (version 1). There, the target is
    :math:`\mathrm{onehot}(y) - \alpha \, \mathrm{onehot}(\hat y_j)`, which takes from the right classes too.

    As published, member :math:`i \ge 3` looks at the members 2 to :math:`i - 1`: give ``earlier[1:]``. Member 2 has
    none to look at, and without members this is ERM. Members are in evaluation mode and see the same augmented images.

    **Beware of the mean over** :math:`S`. A member that fits the training data gets few samples wrong, and then each of
    them has the weight :math:`\alpha n / |S|`, many times :math:`\alpha`. ``reduction="batch"`` divides by the batch
    size instead. What is subtracted has no bound: a network can lower its loss for ever by giving the repelled class no
    probability, so trainings with :math:`\alpha \ge 0.3` may diverge; ``cap`` ends the gradient of a sample whose
    subtracted cross-entropy has reached it. The loss may be negative. An empty :math:`S` adds 0.

    Logits are in single precision at least, also under autocast. A batch of one and missing classes need no special
    case.

    Logged: ``nll``; ``repelled``, the subtracted mean without :math:`\alpha`; and ``repelled_share``,
    :math:`|S| / n`.

    The state are the members. An update costs one more forward pass.

    Args:
        network: The network of a member.
        members: The earlier members to be drawn from; there may be none.
        alpha: :math:`\alpha`, 0 or more. The default is the best published one of ``samples="wrong"``, whose grid was
            0.00316, 0.01, 0.0316, 0.1, 0.316.
        samples: The ``"wrong"`` ones of the member, or ``"all"``.
        target: ``"hard"`` as in the public code, or ``"soft"``: the cross-entropy with all its probabilities,
            :math:`-\sum_k p_{w_j}(k \mid x_i) \log p_w(k \mid x_i)`. Which samples are wrong is decided as before.
        reduction: The mean over the ``"subset"`` :math:`S` as in the public code, or over the ``"batch"``, with 0 for
            other samples.
        cap: The largest cross-entropy that is subtracted for a sample, in nats; by default without end.

    Raises:
        InputError: For members of another network; if an option is out of its range; in a step, if the network in
            training has other classes.

    References:
        The method is from work on StarSSE after Sadrtdinov et al. (2023), To stay or not to stay in the pre-train
        basin.
    """

    def __init__(
        self,
        network: NetworkSpec,
        members: Sequence[Weights],
        *,
        alpha: float = 0.1,
        samples: Literal["wrong", "all"] = "wrong",
        target: Literal["hard", "soft"] = "hard",
        reduction: Literal["subset", "batch"] = "subset",
        cap: float | None = None,
    ) -> None:
        super().__init__(network, members)
        self.alpha = check_weight("PredictionRepulsion", "alpha", alpha)
        for name, value, choices in (
            ("samples", samples, ("wrong", "all")),
            ("target", target, ("hard", "soft")),
            ("reduction", reduction, ("subset", "batch")),
        ):
            if value not in choices:
                raise InputError(
                    f"PredictionRepulsion needs {name} to be {choices[0]!r} or {choices[1]!r}, got {value!r}."
                )
        self.samples, self.target, self.reduction = samples, target, reduction
        self.cap = None if cap is None else check_number("PredictionRepulsion", "cap", cap)
        if self.cap is not None and self.cap <= 0:
            raise InputError(f"PredictionRepulsion needs cap to be positive or None, got {self.cap}.")

    def configuration(self) -> Mapping[str, Any]:
        """The network and all options."""
        return {
            **super().configuration(),
            "alpha": self.alpha,
            "samples": self.samples,
            "target": self.target,
            "reduction": self.reduction,
            "cap": self.cap,
        }

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy of the joint batch minus the weighted one with the member's predictions, a scalar."""
        images, labels = joint_batch(batches)
        outputs = model(images)
        nll = self.nll(outputs, labels)
        self.parts = {"nll": nll.detach()}
        if not len(self.members):
            return nll
        theirs = single(self.look(self.drawn(), images).logits)
        if theirs.shape != outputs.logits.shape:
            raise InputError(
                f"PredictionRepulsion: the network in training has logits of shape {tuple(outputs.logits.shape)}, the "
                f"members have {tuple(theirs.shape)}; make it with the NetworkSpec of the trainer."
            )
        repelled, share = self._repelled(single(outputs.logits), theirs, labels)
        self.parts |= {"repelled": repelled.detach(), "repelled_share": share}
        return nll - self.alpha * repelled

    def _repelled(self, own: Tensor, theirs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean cross-entropy with the predictions of a member, and the share of the samples that have one."""
        predicted = theirs.argmax(1)
        target = predicted if self.target == "hard" else theirs.softmax(1)
        values = F.cross_entropy(own, target, reduction="none")  # (samples,)
        if self.cap is not None:
            values = values.clamp(max=self.cap)
        chosen = torch.ones_like(labels, dtype=torch.bool) if self.samples == "all" else predicted != labels
        # A choice, not an index: how many there are is known to the device alone.
        total = torch.where(chosen, values, torch.zeros_like(values)).sum()
        count = chosen.sum().clamp(min=1) if self.reduction == "subset" else len(labels)
        return total / count, chosen.to(values.dtype).mean()
