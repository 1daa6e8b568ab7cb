"""Members that are unsure together and wrong apart: ADP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mirepoix.ensembles._combiners import average_probabilities
from mirepoix.ensembles._joint_objective import JointObjective, cross_entropies, outputs_and_labels
from mirepoix.ensembles._one import check_weight
from mirepoix.objectives._joint import single
from mirepoix.types import Batch, InputError

__all__ = ["ADP", "log_volumes"]


class ADP(JointObjective):
    r"""Adaptive diversity promoting (Pang et al., 2019): what members say of the wrong classes spans a large volume.

    With :math:`p_m(x)` the probabilities of member :math:`m` of :math:`M` for :math:`K` classes, and
    :math:`\bar p = \frac{1}{M} \sum_m p_m`,

    .. math:: \frac{1}{n} \sum_{i = 1}^{n} \Big( -\sum_{m = 1}^{M} \log p_m(y_i \mid x_i) - \alpha \, H(\bar p(x_i))
        - \beta \, \log \det \big( U_i U_i^\top + 10^{-6} I \big) \Big), \qquad
        H(p) = -\sum_{k = 1}^{K} p_k \log p_k

    where row :math:`m` of :math:`U_i \in \mathbb{R}^{M \times (K - 1)}` is :math:`p_m(x_i)` without the entry of the
    true class, divided by its Euclidean norm. The determinant is the squared volume that these rows span: near one if
    the members that are wrong would be wrong in different ways. The true class has no part in it, so diversity does
    not cost accuracy; the entropy is there so that some probability is left for the other classes.

    It is about predictions, and was made against adversarial examples, which then pass from one member to another
    less easily. The cross-entropies are summed over members, so :math:`\alpha` and :math:`\beta` are per ensemble:
    with more members they weigh less.

    Predictions are the average of the members' logits, as of every criterion here; the paper averages probabilities,
    see `average_probabilities`.

    Rows are taken from the logits of the wrong classes, which gives the same directions when the true class has all
    the probability that numbers can hold. The logarithm is taken of the diagonal of a Cholesky factor in double
    precision (single on a device without): in single precision the :math:`10^{-6}` is hardly more than the rounding.
    The rest is in single precision at least, also under autocast.

    Members that say the same have the log-determinant :math:`\log(M + 10^{-6}) + (M - 1) \log 10^{-6}`, and no
    gradient of it: members need different starts. With one member it is a constant. More than :math:`K - 1` members
    cannot all differ, so they are refused, unless :math:`\beta = 0`. With both weights zero this is `Independent`.
    Domains weigh by their batch size; neither the order of samples nor that of members matters. A batch of one and
    missing classes need no special case.

    Logged: ``nll``, the sum of the cross-entropies, ``entropy``, and ``log_det`` where :math:`\beta` is not 0, both
    without their weights.

    There is no state. An update costs one forward and one backward pass of the network, and products of
    :math:`n M^2 K` numbers.

    Args:
        alpha: :math:`\alpha`, the weight of the entropy. Published settings of both are (2, 0.5) and (2, 0); the flags
            of the released code are (1, 0.5).
        beta: :math:`\beta`, the weight of the log-determinant.

    Raises:
        InputError: If an option is out of its range; in a step, if there are more members than wrong classes.

    References:
        Pang et al. (2019), Improving adversarial robustness via promoting ensemble diversity.
    """

    def __init__(self, *, alpha: int | float = 2.0, beta: int | float = 0.5) -> None:
        super().__init__()
        self.alpha = check_weight("ADP", "alpha", alpha)
        self.beta = check_weight("ADP", "beta", beta)

    def configuration(self) -> Mapping[str, Any]:
        """The two weights."""
        return {"alpha": self.alpha, "beta": self.beta}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The risks of the members, minus the weighted entropy and log-determinant, a scalar in nats."""
        outputs, labels = outputs_and_labels(self, model, batches)
        members, _, classes = outputs.logits.shape
        if self.beta and members > classes - 1:
            raise InputError(
                f"ADP needs at most {classes - 1} members for {classes} classes, got {members}: there is no room for "
                "more directions among the wrong classes; use fewer members, or beta=0."
            )
        nll = cross_entropies(outputs.logits, labels).sum()
        with torch.autocast(labels.device.type, enabled=False):
            logits = single(outputs.logits)
            log_mean = average_probabilities(logits)
            entropy = -(log_mean.exp() * log_mean).sum(1).mean()
            self.parts = {"nll": nll.detach(), "entropy": entropy.detach()}
            loss = nll - self.alpha * entropy
            if self.beta:
                log_det = log_volumes(logits, labels).mean()
                self.parts["log_det"] = log_det.detach()
                loss = loss - self.beta * log_det
        return loss


def log_volumes(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-determinant of the members' directions among the wrong classes, for each sample."""
    wide = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64)
    true = labels[:, None] == torch.arange(logits.shape[2], device=labels.device)  # (samples, classes)
    wrong = wide.masked_fill(true, -torch.inf).softmax(-1).transpose(0, 1)  # (samples, members, classes)
    rows = wrong / torch.linalg.vector_norm(wrong, dim=-1, keepdim=True)
    gram = rows @ rows.mT + 1e-6 * torch.eye(len(logits), dtype=wide.dtype, device=wide.device)
    # Without a look at errors, for which one would have to wait for the device.
    factor: Tensor = torch.linalg.cholesky_ex(gram).L
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1).to(logits.dtype)
