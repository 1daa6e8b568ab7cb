"""Members that learn from a weighted average of themselves: ONE, and the distillation that others share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.ensembles._bottleneck import check_number, check_whole, ramped
from mirepoix.ensembles._joint_objective import (
    JointObjective,
    cross_entropies,
    member_outputs,
    outputs_and_labels,
)
from mirepoix.objectives._joint import single
from mirepoix.objectives._scheduled import Scheduled, check_count
from mirepoix.types import Batch, InputError, Outputs

__all__ = ["ONE", "check_positive", "check_sizes", "check_weight", "distillation"]


class ONE(JointObjective, Scheduled):
    r"""On-the-fly native ensemble (Lan et al., 2018): members learn from the average of their logits, which is gated.

    With :math:`z_m(x)` the logits of member :math:`m` of :math:`M`, and :math:`p_m = \mathrm{softmax}(z_m)`,

    .. math:: \frac{1}{n} \sum_{i = 1}^{n} \Big( -\sum_{m = 1}^{M} \log p_m(y_i \mid x_i) - \log p_t(y_i \mid x_i)
        + \alpha \, r \, T^2 \sum_{m = 1}^{M} \mathrm{KL}\big(\mathrm{softmax}(z_t(x_i) / T) \,\big\|\,
        \mathrm{softmax}(z_m(x_i) / T)\big) \Big), \qquad z_t = \sum_{m = 1}^{M} g_m z_m

    where the teacher :math:`p_t = \mathrm{softmax}(z_t)` is the ensemble with weights :math:`g(x)`, positive numbers
    that sum to one, from a gate; :math:`T` is a temperature, and :math:`r = e^{-5 (1 - t)^2}` grows with the share
    :math:`t` of ``ramp_steps`` that is done.

    It makes each member better, as all learn from the ensemble in one training, and more alike: there is less for an
    average to gain. It is a baseline for criteria that want members to differ, and a way to one good small network.

    **Deviations.** The gate of the paper sees the pooled output of the trunk, which an objective does not get. Here it
    takes the mean over members of their features; then it is as there: linear to :math:`M` numbers, batch norm, ReLU,
    softmax. So it also serves members without a trunk, and its gradient goes through the branches. Nothing is added to
    the teacher's probabilities, where released code adds :math:`10^{-7}`. The ramp grows with every update, not epoch.

    Predictions are the average of the members' logits, as in the tables of the thesis. With ``combiner="gate"`` they
    are :math:`z_t`: then the network alone does not predict, and this objective, with its state, is needed. The
    trainer's own checks have it; the weights that a training returns are those of the network.

    With one member the teacher is that member, and the loss is twice its risk. With ``alpha=0`` it is `Independent`
    plus the risk of the teacher. Domains weigh by their batch size; the order of samples does not matter, and that of
    members only in the gate. Missing classes need no special case. Teacher, gate and divergences are in single
    precision at least, also under autocast.

    Logged: ``nll``, the sum of the members' cross-entropies, ``teacher_nll``, and ``distillation``, the sum of the
    divergences with their :math:`T^2`, without :math:`\alpha r`.

    State: the gate, :math:`M d + 3 M` numbers and the statistics of its batch norm, and the number of updates. An
    update costs one forward and one backward pass of the network.

    Args:
        features: The number :math:`d` of features of a member.
        members: The number :math:`M` of members.
        alpha: :math:`\alpha`, the weight of the distillation.
        temperature: :math:`T`.
        ramp_steps: Updates in which :math:`\alpha` grows from 0.7 % of it; 0 for none. Published: 80 of 300 epochs,
            which on CIFAR with batches of 128 are 31 280 updates.
        detach_teacher: Whether members learn from the teacher as from a constant, as in the code of the authors. By
            default the divergence also moves the teacher to the members, as in that of Chen et al. (2020), from whom
            the settings are; then the gate learns from it too.
        combiner: ``"logits"`` or ``"gate"``: what a prediction is.
        seed: Of the weights of the gate, which depend on nothing else: two equal objectives give equal results.

    Raises:
        InputError: If an option is out of its range; in a step, if the network is not of these sizes, or the joint
            batch has a single sample, of which batch norm has no variance.

    References:
        Lan, Zhu and Gong (2018), Knowledge distillation by on-the-fly native ensemble; Chen et al. (2020), Online
        knowledge distillation with diverse peers, where it is a baseline.
    """

    def __init__(
        self,
        *,
        features: int,
        members: int,
        alpha: int | float = 1.0,
        temperature: int | float = 3.0,
        ramp_steps: int = 0,
        detach_teacher: bool = False,
        combiner: str = "logits",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.features = check_whole("ONE", "features", features, 1)
        self.members = check_whole("ONE", "members", members, 1)
        self.alpha = check_weight("ONE", "alpha", alpha)
        self.temperature = check_positive("ONE", "temperature", temperature)
        self.ramp_steps = check_count("ONE", "ramp_steps", ramp_steps)
        self.detach_teacher = bool(detach_teacher)
        if combiner not in ("logits", "gate"):
            raise InputError(f"ONE needs combiner to be one of logits, gate, got {combiner!r}.")
        self.combiner = combiner
        self.seed = int(seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            self.gate = nn.Sequential(
                nn.Linear(self.features, self.members), nn.BatchNorm1d(self.members), nn.ReLU()
            )

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {
            "features": self.features,
            "members": self.members,
            "alpha": self.alpha,
            "temperature": self.temperature,
            "ramp_steps": self.ramp_steps,
            "detach_teacher": self.detach_teacher,
            "combiner": self.combiner,
            "seed": self.seed,
        }

    def resets(self) -> Collection[int]:
        """None: the ramp is smooth."""
        return ()

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The risks of members and teacher, plus the weighted divergences between them, a scalar in nats."""
        if sum(len(batch.labels) for batch in batches) < 2:
            raise InputError(
                "ONE needs at least 2 samples in the joint batch, for the batch norm of its gate, got 1; use a larger "
                "batch size."
            )
        outputs, labels = outputs_and_labels(self, model, batches)
        nll = cross_entropies(outputs.logits, labels).sum()
        teacher = self.teacher(outputs)
        teacher_nll = F.cross_entropy(teacher, labels)
        with torch.autocast(labels.device.type, enabled=False):
            target = teacher.detach() if self.detach_teacher else teacher
            divergence = distillation(outputs.logits, target.expand_as(outputs.logits), self.temperature)
        self.parts = {
            "nll": nll.detach(),
            "teacher_nll": teacher_nll.detach(),
            "distillation": divergence.detach(),
        }
        return nll + teacher_nll + self.alpha * ramped("exp", self.updates, self.ramp_steps) * divergence

    def teacher(self, outputs: Outputs) -> Tensor:
        """The logits of the gated ensemble, (samples, classes)."""
        check_sizes(self, outputs, members=self.members, features=self.features)
        with torch.autocast(outputs.logits.device.type, enabled=False):
            weights: Tensor = self.gate(single(outputs.features).mean(0)).softmax(1)  # (samples, members)
            return (weights.T[:, :, None] * single(outputs.logits)).sum(0)

    def predict(self, model: nn.Module, images: Tensor) -> Outputs:
        """The average of the members' logits, or that of the gate; with the features of each."""
        if self.combiner == "logits":
            return super().predict(model, images)
        outputs = member_outputs(self, model, images)
        return Outputs(features=outputs.features, logits=self.teacher(outputs))


def distillation(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """The divergences of each student (members, samples, classes) from its target, times the squared temperature.

    They are summed over members, and the mean over samples is taken, in nats.
    """
    student = (single(logits) / temperature).log_softmax(-1)
    target = (single(targets) / temperature).log_softmax(-1)
    divergences = (target.exp() * (target - student)).sum(-1)  # (members, samples)
    return temperature**2 * divergences.mean(1).sum()


def check_sizes(owner: nn.Module, outputs: Outputs, *, members: int, features: int) -> None:
    """Refuse outputs of a network that the owner was not made for."""
    found = (outputs.features.shape[0], outputs.features.shape[2])
    if found != (members, features):
        raise InputError(
            f"{type(owner).__name__} was made with members={members}, features={features}, got a network of "
            f"members={found[0]}, features={found[1]}; make it with these."
        )


def check_weight(owner: str, name: str, value: int | float) -> float:
    """The weight of a term of a loss.

    Raises:
        InputError: For what is no finite number of 0 or more.
    """
    value = check_number(owner, name, value)
    if value < 0:
        raise InputError(f"{owner} needs {name} to be 0 or more, got {value}; 0 leaves its term out.")
    return value


def check_positive(owner: str, name: str, value: int | float) -> float:
    """A finite number above 0.

    Raises:
        InputError: For what is none.
    """
    value = check_number(owner, name, value)
    if value <= 0:
        raise InputError(f"{owner} needs {name} to be positive, got {value}.")
    return value
