"""Group distributional robustness: more weight for the source domains with a larger loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import single
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError

__all__ = ["GroupDRO"]


class GroupDRO(Objective):
    r"""Group distributionally robust optimisation (Sagawa et al., 2020), with a source domain as a group.

    With :math:`R_e` the mean cross-entropy in domain :math:`e` of :math:`E`, in one forward pass per domain, and
    weights :math:`q_e` that are equal at the beginning,

    .. math:: \sum_e q_e R_e, \qquad q_e \leftarrow \frac{q_e \exp(\eta R_e)}{\sum_{e'} q_{e'} \exp(\eta R_{e'})}

    where the weights move first and are a constant for the gradient.

    It addresses a shift in the proportions of the source domains: of all mixtures of them, training is for the
    worst.

    Domains weigh by :math:`q`, whatever their batch size. Their order does not matter as long as it is the same
    in every update, because a weight belongs to a position. With one source domain this is ERM. A batch of one and
    classes that are missing need no special case. Risks are in single precision at least, also under autocast.

    State: the buffer ``log_weights``, :math:`\log q`, there from the start, so that the state of a run loads into a
    new objective. Logarithms cannot overflow with a large loss, and a domain whose weight became too small for a
    floating-point number can still come back. Every forward pass moves it, within `SAM` the second one only. An
    update costs one forward pass per domain, as much as a joint one altogether, and one backward pass.

    The paper draws one group per update and moves the weight of this one; here all domains are in every update.

    Args:
        domains: How many source domains there are.
        groupdro_eta: The step size of the weights; with 0 they stay equal. Default as in DomainBed, where random
            trials draw 10^U(-3, -1).

    Raises:
        InputError: If an option is out of its range; in a step, if the domains are not as many as was said.

    References:
        Sagawa et al. (2020), Distributionally robust neural networks for group shifts, algorithm 1.
    """

    log_weights: Tensor

    def __init__(self, *, domains: int, groupdro_eta: float = 1e-2) -> None:
        super().__init__()
        if isinstance(domains, bool) or domains != int(domains) or domains < 1:
            raise InputError(f"GroupDRO needs a whole number of domains from 1, got {domains!r}.")
        if not 0 <= groupdro_eta < math.inf:
            raise InputError(
                f"GroupDRO needs a finite groupdro_eta of 0 or more, got {groupdro_eta}; 0.01 is usual."
            )
        self.domains = int(domains)
        self.groupdro_eta = float(groupdro_eta)
        self.register_buffer("log_weights", torch.full((self.domains,), -math.log(self.domains)))

    def configuration(self) -> Mapping[str, Any]:
        """The number of domains and the step size of their weights."""
        return {"domains": self.domains, "groupdro_eta": self.groupdro_eta}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """Move the weights of the domains, and return the weighted sum of the risks, a scalar in nats."""
        if len(batches) != self.domains:
            raise InputError(
                f"GroupDRO was made for {self.domains} source domains, got {len(batches)}; "
                f"make it with domains={len(batches)}."
            )
        risks = torch.stack(
            [F.cross_entropy(single(model(batch.images).logits), batch.labels) for batch in batches]
        )
        log_weights = (self.log_weights + self.groupdro_eta * risks.detach()).log_softmax(0)
        if self.training:
            self.log_weights.copy_(log_weights)
        return (log_weights.exp() * risks).sum()  # not a dot product: autocast would halve its precision
