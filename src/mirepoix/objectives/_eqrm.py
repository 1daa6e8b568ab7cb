"""Empirical quantile risk minimisation: a risk that most domains, seen or not, stay below."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import single
from mirepoix.objectives._scheduled import Scheduled
from mirepoix.types import Batch, InputError

__all__ = ["EQRM"]

_HALVINGS = 32


class EQRM(Scheduled):
    r"""Empirical quantile risk minimisation (Eastwood et al., 2022), against a shift that the sources show in part.

    A new domain is taken for another draw from the distribution of the source domains. With :math:`R_e` the mean
    cross-entropy in domain :math:`e`, in one forward pass per domain, that of its risk is estimated by kernels,

    .. math:: F(x) = \frac{1}{E} \sum_e \Phi\Big(\frac{x - R_e}{h}\Big), \qquad
        h = 1.06 \, \hat\sigma \, E^{-1/5}

    with :math:`\Phi` the normal distribution function and :math:`\hat\sigma` the unbiased standard deviation of the
    risks. The first ``eqrm_burnin_iters`` updates minimise the mean risk; from then on it is the quantile
    :math:`F^{-1}(\alpha)`, a risk that a share :math:`\alpha` of domains does not exceed. At that update the optimizer
    forgets its moments, and from that update on its learning rate is ``eqrm_lr``, whatever the schedule of the run.

    The quantile lies between those of two single kernels, and is found there by 32 halvings:

    .. math:: F^{-1}(\alpha) = \kappa \, q_{\max} + (1 - \kappa) \, q_{\min}, \qquad
        q_{\min} = \min_e R_e + h \, \Phi^{-1}(\alpha), \quad q_{\max} = \max_e R_e + h \, \Phi^{-1}(\alpha)

    The gradient takes :math:`\kappa` for a constant: it flows through the least risk, the largest, and :math:`h`.
    The paper does not say so, released code does so; the gradient of the quantile itself would weigh each domain by
    the density of its kernel there.

    With equal risks :math:`h` is 0 and the quantile is the risk. The order of domains does not matter. One domain has
    no distribution and is refused. The kernels are evaluated in single precision at least, also under autocast. An
    update costs one forward and one backward pass over the samples. The state is the number of updates.

    Args:
        eqrm_quantile: The share :math:`\alpha` of domains; near 1 it is the worst that counts. Default as in
            DomainBed, where random trials draw U(0.5, 0.99).
        eqrm_burnin_iters: First update, from 0, that minimises the quantile; a fraction is cut off, as random trials
            draw 10^U(2.5, 3.5).
        eqrm_lr: Learning rate from then on, for all parameters; random trials draw 10^U(-7, -5).
        parity: Keep the fraction of ``eqrm_burnin_iters``, as released code does: the quantile comes one update
            later, and as no update has such a number, moments and learning rate stay as they are.

    Raises:
        InputError: If ``eqrm_quantile`` is not inside (0, 1), ``eqrm_burnin_iters`` negative or ``eqrm_lr`` not
            positive, or one of them not finite; in a step, for a single source domain.

    References:
        Eastwood et al. (2022), Probable domain generalization via quantile risk minimization, algorithm 1.
    """

    def __init__(
        self,
        eqrm_quantile: float = 0.75,
        eqrm_burnin_iters: float = 2500,
        eqrm_lr: float = 1e-6,
        *,
        parity: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < eqrm_quantile < 1:
            raise InputError(
                f"EQRM needs an eqrm_quantile between 0 and 1, got {eqrm_quantile}; 0.75 is usual."
            )
        if not 0 <= eqrm_burnin_iters < math.inf:
            raise InputError(f"EQRM needs eqrm_burnin_iters to be updates from 0, got {eqrm_burnin_iters}.")
        if not 0 < eqrm_lr < math.inf:
            raise InputError(f"EQRM needs a positive, finite eqrm_lr, got {eqrm_lr}; 1e-6 is usual.")
        self.eqrm_quantile = float(eqrm_quantile)
        self.eqrm_burnin_iters = float(eqrm_burnin_iters) if parity else int(eqrm_burnin_iters)
        self.eqrm_lr = float(eqrm_lr)
        self.parity = bool(parity)

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {
            "eqrm_quantile": self.eqrm_quantile,
            "eqrm_burnin_iters": self.eqrm_burnin_iters,
            "eqrm_lr": self.eqrm_lr,
            "parity": self.parity,
        }

    def begins(self) -> int:
        """The first update that minimises the quantile."""
        return math.ceil(self.eqrm_burnin_iters)

    def resets(self) -> Collection[int]:
        """The first update that minimises the quantile."""
        return (int(self.eqrm_burnin_iters),) if self.eqrm_burnin_iters == int(self.eqrm_burnin_iters) else ()

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, Tensor]:
        """Make one update; `nll` is the mean risk of the domains."""
        if any(self.updates >= update for update in self.resets()):
            # At every update from there on: a loop with a schedule sets its own before each.
            for group in optimizer.param_groups:
                group["lr"] = self.eqrm_lr
        return super().step(model, batches, optimizer, scaler)

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean risk of the domains, later a quantile of their risks, a scalar in nats."""
        if len(batches) < 2:
            raise InputError(
                f"EQRM needs at least 2 source domains for a distribution of risks, got {len(batches)}; "
                "use more, or ERM."
            )
        risks = torch.stack([F.cross_entropy(model(batch.images).logits, batch.labels) for batch in batches])
        risk = risks.mean()
        self.parts = {"nll": risk.detach()}
        if self.updates < self.eqrm_burnin_iters:
            return risk
        with torch.autocast(risks.device.type, enabled=False):
            return _quantile(single(risks), self.eqrm_quantile)


def _quantile(risks: Tensor, share: float) -> Tensor:
    """The quantile of a kernel density estimate, without waiting for the device."""
    bandwidth = 1.06 * risks.std() * len(risks) ** -0.2
    shift = NormalDist().inv_cdf(share) * bandwidth
    lowest, highest = risks.amin() + shift, risks.amax() + shift
    with torch.no_grad():
        left, right = torch.zeros_like(lowest), torch.ones_like(lowest)
        for _ in range(_HALVINGS):
            kappa = (left + right) / 2
            point = lowest + kappa * (highest - lowest)
            # With a bandwidth of 0 this compares a NaN, which is as good as any: both ends are the same.
            beyond = torch.special.ndtr((point - risks) / bandwidth).mean() > share
            left, right = torch.where(beyond, left, kappa), torch.where(beyond, kappa, right)
        kappa = (left + right) / 2
    return torch.lerp(lowest, highest, kappa)
