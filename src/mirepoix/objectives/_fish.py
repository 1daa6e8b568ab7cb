"""Fish: one step per source domain, one after the other, and then part of the way they went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import single
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError

__all__ = ["Fish"]


class Fish(Objective):
    r"""Gradient matching (Shi et al., 2022), by its first-order algorithm.

    From :math:`\theta_0 = \theta` one step is made on the mean cross-entropy :math:`R_e` of each of the :math:`E`
    source domains in turn, and then part :math:`\eta` of the way is gone:

    .. math:: \theta_e = \theta_{e - 1} - \mathrm{update}\big(\nabla R_e(\theta_{e - 1})\big), \qquad
        \theta \leftarrow \theta + \eta \, (\theta_E - \theta)

    To the first order in the step size, this increases the inner products of the gradients of different domains.

    It addresses correlation shift: a step on one domain that also helps the next uses what both share.

    The inner steps are those of the optimizer that `step` is given, and there is no outer optimizer. So its moments
    persist across updates, are saved with the run, and any kind of optimizer will do: DomainBed has Adam. Weights are
    moved in place, beside one copy of the values of the start; the network is not copied.

    All parameters and buffers of the model go part of the way. Batch norm that is not frozen moves its statistics in
    every inner pass, and they go part of the way too; so do integers, such as its counters, rounded down as released.

    The order of domains matters: it is that of the batches, as in DomainBed. The paper permutes them anew in each
    update. The order of samples does not matter. Domains weigh the same, whatever their batch size. With one source
    domain and :math:`\eta = 1` this is ERM. A batch of one and classes that are missing need no special case. A
    gradient scaler works on each inner step: one whose gradient overflows is skipped.

    There is no state beside that of the optimizer. An update costs one forward and one backward pass per domain, as
    much as a joint one altogether, and one step of the optimizer per domain. `step` logs ``loss``, the mean of the
    risks at the weights each was taken at; DomainBed logs the last one.

    Args:
        meta_lr: The part :math:`\eta` of the way, in (0, 1]. Default as in DomainBed, where random trials draw from
            {0.05, 0.1, 0.5}.

    Raises:
        InputError: If ``meta_lr`` is out of its range.

    References:
        Shi et al. (2022), Gradient matching for domain generalization, algorithm 1.
    """

    def __init__(self, *, meta_lr: float = 0.5) -> None:
        super().__init__()
        if not 0 < meta_lr <= 1:
            raise InputError(
                f"Fish needs meta_lr to be a part of the way, in (0, 1], got {meta_lr}; 0.5 is usual."
            )
        self.meta_lr = float(meta_lr)

    def configuration(self) -> Mapping[str, Any]:
        """The part of the way."""
        return {"meta_lr": self.meta_lr}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean risk at the weights as they are, a scalar in nats."""
        pairs = [(model(batch.images).logits, batch.labels) for batch in batches]
        return torch.stack([F.cross_entropy(single(logits), labels) for logits, labels in pairs]).mean()

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, Tensor]:
        """Make one step per domain and go part of the way; `loss` is the mean of the risks on the way."""
        state = [*model.parameters(), *model.buffers()]
        starts = [tensor.detach().clone() for tensor in state]
        risks = []
        for batch in batches:
            risks.append(super().step(model, [batch], optimizer, scaler)["loss"])
            # Autocast remembers its half-precision copies of the weights: the next pass would see the old ones.
            torch.clear_autocast_cache()
        with torch.no_grad():
            for tensor, start in zip(state, starts, strict=True):
                tensor.copy_(_part_of_the_way(start, tensor, self.meta_lr))
        torch.clear_autocast_cache()
        return {"loss": torch.stack(risks).mean()}


def _part_of_the_way(start: Tensor, end: Tensor, part: float) -> Tensor:
    if start.dtype == torch.bool:
        return end
    if not (start.is_floating_point() or start.is_complex()):
        return start + (part * (end - start)).floor().to(start.dtype)
    # What did not move stays as it is: a mask of attention may hold infinities, whose difference is NaN.
    return torch.where(start == end, end, torch.lerp(start, end, part))
