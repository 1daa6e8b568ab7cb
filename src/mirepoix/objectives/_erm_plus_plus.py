"""ERM++: empirical risk minimisation that trains the classifier first."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._classifier import classifier_of
from mirepoix.objectives._joint import single
from mirepoix.objectives._scheduled import Scheduled, check_count
from mirepoix.types import Batch, InputError

__all__ = ["ERMPlusPlus"]


class ERMPlusPlus(Scheduled):
    r"""ERM++ (Teterwak et al., 2023), the part of it that is a criterion: ERM that trains the classifier first.

    With the featurizer :math:`\phi` and the classifier :math:`w`, every update descends

    .. math:: \frac{1}{n} \sum_{i=1}^{n} -\log p_{w, \phi}(y_i \mid x_i)

    over the joint batch. The first ``linear_steps`` + 1 updates descend it in :math:`w` alone, with learning rate
    ``linear_lr``; from then on all parameters are trained, with the learning rate of the run. The optimizer begins this
    second phase without moments. The one update more than the option says is that of the release.

    It addresses no shift in particular: a classifier that fits the pre-trained features spoils them less.

    In the first phase nothing but ``classifier`` has a gradient, so the optimizer leaves all else alone, and there is
    no backward pass of the featurizer. Dropout acts, and batch norm that is not frozen moves its statistics. Whatever
    the schedule of the run, each update there sets the learning rate of all groups of the optimizer, and puts back what
    it found. Other options of the optimizer, such as weight decay, are those of the run in both phases; the release has
    one optimizer for each.

    Domains weigh by their batch size. Neither the order of samples nor that of domains matters. Missing classes, one
    source domain and a batch of one need no special case. The state is the number of updates. An update costs one joint
    forward and one backward pass, in the first phase that of the classifier alone.

    **What else belongs to ERM++** and is not here:

    - the average of weights from update 600 on, with which it predicts, is
      ``Run(collect="moving_average", average_from=600)``; where batch norm is not frozen, the release also gives each
      batch to the averaged network, to move its statistics, which is not built;
    - the two stages are not built: a first one on 80 % of the data finds a schedule of the learning rate, which falls
      where the loss on the rest does not, and a second one trains on all the data with that schedule;
    - nor is sampling without replacement;
    - ``lars``, an optimizer for the first phase, is not supported: in the release it raises.

    So this alone does not give the published numbers of ERM++.

    Args:
        linear_lr: Learning rate of the first phase. Default as in DomainBed, where random trials draw 10^U(-5, -3.5).
        linear_steps: Last update, from 0, of the first phase; not drawn in random trials.

    Raises:
        InputError: If ``linear_lr`` is not positive and finite, or ``linear_steps`` no whole number from 0; in a step,
            if the model has no ``classifier``.

    References:
        Teterwak et al. (2023), ERM++: an improved baseline for domain generalization.
    """

    def __init__(self, *, linear_lr: float = 5e-5, linear_steps: int = 500) -> None:
        super().__init__()
        if not 0 < linear_lr < math.inf:
            raise InputError(
                f"ERMPlusPlus needs a positive, finite linear_lr, got {linear_lr}; 5e-5 is usual."
            )
        self.linear_lr = float(linear_lr)
        self.linear_steps = check_count("ERMPlusPlus", "linear_steps", linear_steps)

    def configuration(self) -> Mapping[str, Any]:
        """The learning rate and the length of the first phase."""
        return {"linear_lr": self.linear_lr, "linear_steps": self.linear_steps}

    def resets(self) -> Collection[int]:
        """The first update of all parameters."""
        return (self.linear_steps + 1,)

    def trains_classifier_only(self) -> bool:
        """Whether the current update is one of the first phase."""
        return self.updates <= self.linear_steps

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, Tensor]:
        """Make one update, of the classifier alone or of all parameters."""
        if not self.trains_classifier_only():
            return super().step(model, batches, optimizer, scaler)
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = self.linear_lr
        try:
            return super().step(model, batches, optimizer, scaler)
        finally:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy of the joint batch, a scalar in nats; in the first phase features are constants."""
        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        classifier = classifier_of("ERMPlusPlus", model)
        if not self.trains_classifier_only():
            return F.cross_entropy(single(model(images).logits), labels)
        with torch.no_grad():
            features = model(images).features
        # In older releases of torch autocast would use its half-precision copy of the classifier again, which has no
        # gradient when it was made here.
        torch.clear_autocast_cache()
        return F.cross_entropy(single(classifier(features)), labels)
