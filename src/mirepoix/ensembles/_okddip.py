"""Members that learn from each other, each choosing whom it listens to: OKDDip."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mirepoix.ensembles._bottleneck import check_whole, ramped
from mirepoix.ensembles._combiners import average_logits
from mirepoix.ensembles._joint_objective import (
    JointObjective,
    cross_entropies,
    member_outputs,
    outputs_and_labels,
)
from mirepoix.ensembles._one import check_positive, check_sizes, check_weight, distillation
from mirepoix.objectives._joint import single
from mirepoix.objectives._scheduled import Scheduled, check_count
from mirepoix.types import Batch, InputError, Outputs

__all__ = ["OKDDip"]


class OKDDip(JointObjective, Scheduled):
    r"""Online knowledge distillation with diverse peers (Chen et al., 2020): each member has a target of its own.

    With :math:`h_m(x)` the features and :math:`z_m(x)` the logits of member :math:`m` of :math:`M`, all of them peers,
    and :math:`D_T(a \,\|\, b) = T^2 \, \mathrm{KL}(\mathrm{softmax}(a / T) \,\|\, \mathrm{softmax}(b / T))`,

    .. math:: \frac{1}{n} \sum_{i = 1}^{n} \sum_{m = 1}^{M} \Big( -\log p_m(y_i \mid x_i)
        + \alpha \, r \, D_T(t_{m i} \,\|\, z_{m i}) \Big), \qquad
        t_{m i} = \sum_{m' = 1}^{M} a_{m m' i} \, z_{m' i}, \qquad
        a_{m \cdot i} = \mathrm{softmax}_{m'} \big( (Q h_{m i}) \cdot (K h_{m' i}) \big)

    where the matrices :math:`Q` and :math:`K`, which members share, are learned, and :math:`r = e^{-5 (1 - t)^2}` grows
    with the share :math:`t` of ``ramp_steps`` that is done. Targets differ, as a member may listen to itself most:
    members stay more diverse than with the one teacher of `ONE`. Gradients go to students and targets alike, as in the
    released code; what trains :math:`Q` and :math:`K` is the divergence alone.

    With ``leader=True`` the last member is the leader of the group. It is no peer: nobody listens to it, and it adds

    .. math:: \frac{1}{n} \sum_{i = 1}^{n} \Big( -\log p_M(y_i \mid x_i) + \alpha \, r \, D_T\Big(
        \frac{1}{M - 1} \sum_{m = 1}^{M - 1} z_{m i} \,\Big\|\, z_{M i} \Big) \Big)

    which moves the peers too. A prediction is then that of the leader alone, whose weights are
    ``member_weights(theta, M - 1)``: the group is for training, and what is left is one network. Without a leader, as
    in the tables of the thesis, a prediction is the average of the logits of all members.

    **Deviations.** None of the formula; the released code adds :math:`10^{-7}` to the probabilities of targets, and its
    ramp grows with epochs, not updates.

    A single peer listens to itself: its divergence is zero. With ``alpha=0`` this is `Independent`. Domains weigh by
    their batch size; neither the order of samples nor that of peers matters. A batch of one and missing classes need
    no special case. Attention, targets and divergences are in single precision at least, also under autocast.

    Logged: ``nll``, the sum of the cross-entropies; ``distillation``, the sum over peers of :math:`D_T`; with a leader,
    ``leader_distillation``; all without :math:`\alpha r`.

    State: :math:`Q` and :math:`K`, and the number of updates. An update costs one forward and one backward pass of the
    network.

    Args:
        features: The number :math:`d` of features of a member.
        members: The number :math:`M` of members, the leader among them.
        alpha: :math:`\alpha`, the weight of the distillation.
        temperature: :math:`T`.
        ramp_steps: Updates in which :math:`\alpha` grows from 0.7 % of it; 0 for none. Published: 80 of 300 epochs,
            which on CIFAR with batches of 128 are 31 280 updates.
        factor: :math:`Q` and :math:`K` have :math:`d` divided by this many rows, rounded down.
        leader: Whether the last member leads.
        seed: Of :math:`Q` and :math:`K`, which depend on nothing else: two equal objectives give equal results.

    Raises:
        InputError: If an option is out of its range, or there is a leader and no peer; in a step, if the network is not
            of these sizes.

    References:
        Chen, Mei, Wang, Feng and Chen (2020), Online knowledge distillation with diverse peers.
    """

    def __init__(
        self,
        *,
        features: int,
        members: int,
        alpha: int | float = 1.0,
        temperature: int | float = 3.0,
        ramp_steps: int = 0,
        factor: int = 8,
        leader: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.features = check_whole("OKDDip", "features", features, 1)
        self.members = check_whole("OKDDip", "members", members, 1)
        self.alpha = check_weight("OKDDip", "alpha", alpha)
        self.temperature = check_positive("OKDDip", "temperature", temperature)
        self.ramp_steps = check_count("OKDDip", "ramp_steps", ramp_steps)
        self.factor = check_whole("OKDDip", "factor", factor, 1)
        if self.factor > self.features:
            raise InputError(
                f"OKDDip needs factor to be at most the number of features, {self.features}, got {factor}: no row "
                "would be left; 1 keeps them all."
            )
        self.leader = bool(leader)
        self.seed = int(seed)
        self.peers = self.members - self.leader
        if self.peers < 1:
            raise InputError("OKDDip needs at least 2 members for leader=True, got 1: a leader needs a peer.")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            self.query = nn.Linear(self.features, self.features // self.factor, bias=False)
            self.key = nn.Linear(self.features, self.features // self.factor, bias=False)

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {
            "features": self.features,
            "members": self.members,
            "alpha": self.alpha,
            "temperature": self.temperature,
            "ramp_steps": self.ramp_steps,
            "factor": self.factor,
            "leader": self.leader,
            "seed": self.seed,
        }

    def resets(self) -> Collection[int]:
        """None: the ramp is smooth."""
        return ()

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The risks of the members, plus their weighted divergences from their targets, a scalar in nats."""
        outputs, labels = outputs_and_labels(self, model, batches)
        check_sizes(self, outputs, members=self.members, features=self.features)
        nll = cross_entropies(outputs.logits, labels).sum()
        with torch.autocast(labels.device.type, enabled=False):
            logits = single(outputs.logits)
            peers = logits[: self.peers]
            attention = self.attention(outputs.features[: self.peers])
            targets = torch.einsum("nij,jnk->ink", attention, peers)
            divergence = distillation(peers, targets, self.temperature)
            self.parts = {"nll": nll.detach(), "distillation": divergence.detach()}
            if self.leader:
                led = distillation(logits[-1:], peers.mean(0, keepdim=True), self.temperature)
                self.parts["leader_distillation"] = led.detach()
                divergence = divergence + led
        return nll + self.alpha * ramped("exp", self.updates, self.ramp_steps) * divergence

    def attention(self, features: Tensor) -> Tensor:
        """How much each peer listens to each, from the peers' features: (samples, peers, peers), rows sum to one."""
        features = single(features).transpose(0, 1)  # (samples, peers, features)
        scores: Tensor = self.query(features) @ self.key(features).mT
        return scores.softmax(-1)

    def predict(self, model: nn.Module, images: Tensor) -> Outputs:
        """The average of the members' logits, or those of the leader; with the features of each member."""
        outputs = member_outputs(self, model, images)
        logits = outputs.logits[-1:] if self.leader else outputs.logits
        return Outputs(features=outputs.features, logits=average_logits(logits))
