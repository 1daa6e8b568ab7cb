"""Sharpness-aware minimisation: descend with the gradient of the worst weights nearby."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mirepoix.objectives._erm import ERM
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError, Outputs

__all__ = ["SAM"]


class SAM(Objective):
    r"""Sharpness-aware minimisation (Foret et al., 2021) of another objective, ERM by default.

    With :math:`g = \nabla L(\theta)` on the joint batch,

    .. math:: \epsilon = \rho \, g / \lVert g \rVert_2, \qquad
        \theta \leftarrow \theta - \mathrm{update}\big(\nabla L(\theta + \epsilon)\big)

    where the norm is over the concatenation of all parameters of the optimizer that have a gradient, the
    objective's own included, and no small constant is added to it. An update costs two forward and two backward
    passes. The weights come back from a copy before the optimizer moves them, so they are restored exactly;
    subtracting :math:`\epsilon` would leave a rounding error.

    A gradient of norm zero perturbs nothing: the update is that of the objective alone. The scale of a gradient
    scaler cancels in :math:`\epsilon`. If the first gradient is not finite, nothing is perturbed (batch-norm
    statistics would never lose the NaN) and the second gradient is made NaN: a scaler skips that step and
    lowers its scale, and without a scaler the training diverges, both as with any other objective.

    Both passes see the same batch, the same random draws (dropout, mixup), and the same state of the objective,
    which moves once per update. Batch norm of the network in training mode moves its statistics in both.

    Args:
        objective: What to minimise; it must not make steps of its own.
        rho: Length of the perturbation. Default and choices {0.01, 0.02, 0.05, 0.1} as in DomainBed's SAM of
            Cha et al. (2021).

    Raises:
        InputError: If ``rho`` is not a positive number, or ``objective`` has its own `step`, which would be lost.

    References:
        Foret et al. (2021), Sharpness-aware minimization, equation 2 and algorithm 1.
    """

    def __init__(self, objective: Objective | None = None, rho: float = 0.05) -> None:
        super().__init__()
        if not 0 < rho < math.inf:
            raise InputError(f"SAM needs a positive, finite rho, got {rho}; 0.05 is usual, and ERM is rho 0.")
        self.objective = ERM() if objective is None else objective
        self.rho = float(rho)
        if type(self.objective).step is not Objective.step:
            raise InputError(
                f"SAM cannot wrap {type(self.objective).__qualname__}: it makes its own step, which SAM replaces. "
                "Wrap an objective that only defines forward."
            )

    def configuration(self) -> Mapping[str, Any]:
        """The wrapped objective, by name and options, and the length of the perturbation."""
        kind = type(self.objective)
        wrapped = {"name": f"{kind.__module__}.{kind.__qualname__}", **self.objective.configuration()}
        return {"objective": wrapped, "rho": self.rho}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The wrapped objective at the weights as they are, without a perturbation."""
        loss: Tensor = self.objective(model, batches)
        return loss

    def predict(self, model: nn.Module, images: Tensor) -> Outputs:
        """What the wrapped objective predicts."""
        return self.objective.predict(model, images)

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, Tensor]:
        """Make one update; `loss` is the perturbed loss, `unperturbed_loss` that of the weights as they were."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        scale = scaler.scale if scaler is not None else _unscaled
        optimizer.zero_grad(set_to_none=True)
        with _same_draws(parameters), _same_buffers(self.objective):
            unperturbed = self(model, batches)
            scale(unperturbed).backward()
        moved = [parameter for parameter in parameters if parameter.grad is not None]
        norm = _norm(moved, unperturbed)
        with _perturbed(moved, self.rho, norm):
            optimizer.zero_grad(set_to_none=True)
            loss = self(model, batches)
            scale(loss).backward()
        poison = torch.where(norm.isfinite(), 0.0, math.nan)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.add_(poison.to(parameter.grad))
                break  # one NaN is enough for a scaler
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        return {"loss": loss.detach(), "unperturbed_loss": unperturbed.detach()}


def _unscaled(loss: Tensor) -> Tensor:
    return loss


def _norm(moved: Sequence[Tensor], like: Tensor) -> Tensor:
    """The Euclidean norm of all gradients together, at least in single precision: scaled halves overflow."""
    gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
    if not gradients:
        return torch.zeros((), device=like.device)
    norms = [
        torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
        for gradient in gradients
    ]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


@contextmanager
def _perturbed(moved: Sequence[Tensor], rho: float, norm: Tensor) -> Iterator[None]:
    """Parameters moved by rho along their gradients, and back bit for bit."""
    usable = norm.isfinite() & (norm > 0)
    copies = [parameter.detach().clone() for parameter in moved]
    try:
        with torch.no_grad():
            for parameter in moved:
                assert parameter.grad is not None
                # A choice, not a product: 0 * inf is NaN. It asks the device nothing.
                epsilon = torch.where(usable, parameter.grad * (rho / norm), 0.0)
                parameter.add_(epsilon.to(parameter.dtype))
        # Autocast remembers its half-precision copies of the weights: the second pass would see the old ones.
        torch.clear_autocast_cache()
        yield
    finally:
        with torch.no_grad():
            for parameter, copy in zip(moved, copies, strict=True):
                parameter.copy_(copy)
        torch.clear_autocast_cache()


@contextmanager
def _same_draws(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Put the global generators back afterwards, so that the next pass draws the same."""
    devices = list({parameter.device for parameter in parameters if parameter.device.type != "cpu"})
    with torch.random.fork_rng(devices, device_type=devices[0].type if devices else "cuda"):
        yield


@contextmanager
def _same_buffers(module: nn.Module) -> Iterator[None]:
    """Put the buffers back afterwards, those set for the first time to what they were: none."""
    before = [
        (part, {name: buffer.clone() for name, buffer in part.named_buffers(recurse=False)})
        for part in module.modules()
    ]
    yield
    for part, buffers in before:
        for name, _ in list(part.named_buffers(recurse=False)):
            setattr(part, name, buffers.get(name))
