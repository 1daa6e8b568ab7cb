"""MLDG: a step on one source domain should also help on another one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import single
from mirepoix.objectives._objective import Objective
from mirepoix.objectives._put_back import put_back
from mirepoix.types import Batch, InputError

__all__ = ["MLDG"]


class MLDG(Objective):
    r"""Meta-learning for domain generalization (Li et al., 2018), to the first order.

    A random permutation of the :math:`E` source domains makes the last :math:`m` meta-test domains and the others
    meta-train domains. Each meta-train domain :math:`i` is paired with the next meta-test domain :math:`j`, in a cycle,
    and both batches are cut to the shorter one. The gradient of the update is

    .. math:: \frac{1}{E} \sum_{(i, j)} \big( \nabla R_i(\theta) + \beta \, \nabla R_j(\theta_i') \big), \qquad
        \theta_i' = \theta - \mathrm{update}\big(\nabla R_i(\theta)\big)

    with :math:`R` the mean cross-entropy of a domain. The sum is divided by the number of domains, not of pairs. The
    second gradient is taken at :math:`\theta_i'` and not carried through the inner step, hence the first order.

    It addresses any shift of which the source domains are samples: each update rehearses going from some domains to
    another.

    The inner step is the first one of a fresh optimizer, of the kind and with the options (learning rate, weight decay)
    of the one that `step` is given, whose moments are put aside for it: DomainBed has Adam. It is made in place, and
    the weights come back from a copy of their values; the network is not copied. Buffers come back too, as in the
    release, which throws its copies of the network away: the statistics of batch norm that is not frozen never move, so
    freeze it.

    **A correction.** With as many meta-test domains as there are domains, or more, there are no pairs, and the released
    code trains nothing: with its defaults, on two source domains. Here :math:`m` is at most :math:`E - 1`. One source
    domain, from which there is nowhere to go, is an error. With ``parity=True`` both make updates with a gradient of
    zero, as released.

    The permutation comes from torch's global generator of the processor, which the trainer seeds for every step. So the
    order of domains matters in one update, but not in distribution. The order of samples matters only where the batches
    of a pair are cut. A parameter that no domain uses has gradient zero. A batch of one and classes that are missing
    need no special case. A gradient scaler scales both losses; where the first gradient overflows, the inner step
    leaves these entries out, and the scaler skips the update.

    There is no state. An update costs two forward and two backward passes per pair, of one domain each: at most
    :math:`E - 1` pairs, so less than two joint ones. `step` logs ``loss``, the scalar above with risks in place of
    gradients.

    The paper carries the gradient through the inner step, and sums over all meta-test domains at the weights after a
    step on all meta-train domains together.

    Args:
        mldg_beta: Weight :math:`\beta` of the meta-test risk. Default as in DomainBed, where random trials draw
            10^U(-1, 1).
        n_meta_test: Number :math:`m` of meta-test domains, at most one less than there are domains. Default as in
            DomainBed, where random trials draw from {1, 2}.
        parity: Do not limit ``n_meta_test``: with too few domains, train nothing, as released.

    Raises:
        InputError: If an option is out of its range; in a step, with one source domain.

    References:
        Li et al. (2018), Learning to generalize: meta-learning for domain generalization, algorithm 1.
    """

    def __init__(self, *, mldg_beta: float = 1.0, n_meta_test: int = 2, parity: bool = False) -> None:
        super().__init__()
        if not 0 <= mldg_beta < math.inf:
            raise InputError(f"MLDG needs a finite mldg_beta of 0 or more, got {mldg_beta}; 1 is usual.")
        if isinstance(n_meta_test, bool) or n_meta_test != int(n_meta_test) or n_meta_test < 1:
            raise InputError(
                f"MLDG needs n_meta_test to be a whole number of domains from 1, got {n_meta_test!r}."
            )
        self.mldg_beta, self.n_meta_test, self.parity = float(mldg_beta), int(n_meta_test), bool(parity)

    def configuration(self) -> Mapping[str, Any]:
        """The weight of the meta-test risk, the number of meta-test domains, and whether that is limited."""
        return {"mldg_beta": self.mldg_beta, "n_meta_test": self.n_meta_test, "parity": self.parity}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean risk at the weights as they are, in one forward pass per domain, a scalar in nats."""
        return torch.stack([_risk(model, batch, len(batch.labels)) for batch in batches]).mean()

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, Tensor]:
        """Make one update with the sum of the gradients before and after inner steps."""
        domains = len(batches)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        total = [torch.zeros_like(parameter) for parameter in parameters]
        loss = torch.zeros((), device=batches[0].images.device)
        values = [(tensor, tensor.detach().clone()) for tensor in (*parameters, *model.buffers())]
        for one, other in self._pairs(batches):
            samples = min(len(one.labels), len(other.labels))
            with put_back(values):
                for place, (batch, weight) in enumerate(((one, 1.0), (other, self.mldg_beta))):
                    risk = _risk(model, batch, samples)
                    scaled = risk if scaler is None else scaler.scale(risk)
                    gradients = torch.autograd.grad(scaled, parameters, allow_unused=True)
                    for accumulated, gradient in zip(total, gradients, strict=True):
                        if gradient is not None:
                            accumulated.add_(gradient, alpha=weight / domains)
                    loss = loss + weight / domains * risk.detach()
                    if place == 0:
                        _inner_step(optimizer, parameters, gradients, scaler)
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        return {"loss": loss}

    def _pairs(self, batches: Sequence[Batch]) -> list[tuple[Batch, Batch]]:
        """Meta-train domains, each with a meta-test domain."""
        domains = len(batches)
        if domains < 2 and not self.parity:
            raise InputError(
                f"MLDG needs at least 2 source domains, one to step on and one to test the step on, got {domains}. "
                "With one there is ERM."
            )
        held_out = self.n_meta_test if self.parity else min(self.n_meta_test, domains - 1)
        order = torch.randperm(domains).tolist()
        trained = max(domains - held_out, 0)
        pairs = zip(order[:trained], cycle(order[trained:]), strict=False)
        return [(batches[i], batches[j]) for i, j in pairs]


def _risk(model: nn.Module, batch: Batch, samples: int) -> Tensor:
    return F.cross_entropy(single(model(batch.images[:samples]).logits), batch.labels[:samples])


def _inner_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    scaler: torch.amp.GradScaler | None,
) -> None:
    """The first step that an optimizer like this one would make."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and scaler is not None and scaler.is_enabled():
            gradient = gradient / scaler.scale(torch.ones((), device=gradient.device))
            # The update will be skipped; what is not finite would make the second loss NaN, and end the training.
            gradient = torch.where(gradient.isfinite(), gradient, 0.0)
        parameter.grad = gradient
    state, optimizer.state = optimizer.state, defaultdict(dict)
    try:
        optimizer.step()
    finally:
        optimizer.state = state
    # Autocast remembers its half-precision copies of the weights: the next pass would see the old ones.
    torch.clear_autocast_cache()
