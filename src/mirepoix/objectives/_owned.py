"""A module of a criterion that has an optimizer of its own, such as the discriminator of an adversarial one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Owned"]

_STATE = "optimizer_state."


class Owned(nn.Module):
    """A module and the optimizer that trains it, which the optimizer of the network does not.

    The state of the optimizer (its moments) is part of the state of the module, so that a run which was stopped goes
    on with the same bits. What has no state yet adds nothing.

    Args:
        module: What is trained.
        optimizer: Makes the optimizer, from the parameters; its options stay what they are.
    """

    def __init__(
        self, module: nn.Module, optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    ) -> None:
        super().__init__()
        self.module = module
        self.optimizer = optimizer(list(module.parameters()))

    def forward(self, *inputs: Any) -> Any:
        """Those of the module."""
        return self.module(*inputs)

    def descend(self, loss: Tensor) -> None:
        """One step down the gradient of a loss in these parameters; gradients of others are left alone."""
        parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Owned:
        """Moments go where their parameters go, and become of their type; a count of steps stays on the processor."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for parameter in self.module.parameters():
            state = self.optimizer.state.get(parameter, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = fn(value)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for place, parameter in enumerate(self.module.parameters()):
            for name, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                if isinstance(value, Tensor):
                    destination[f"{prefix}{_STATE}{place}.{name}"] = value.detach()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        parameters = list(self.module.parameters())
        self.optimizer.state.clear()
        for key in [key for key in state_dict if key.startswith(prefix + _STATE)]:
            place, name = key.removeprefix(prefix + _STATE).split(".", 1)
            value = state_dict.pop(key)  # of a copy; what is left is unexpected
            parameter = parameters[int(place)]
            # Moments lie beside their parameter; a count of steps stays on the processor.
            device = parameter.device if value.shape == parameter.shape else value.device
            self.optimizer.state[parameter][name] = value.detach().to(device, copy=True)
        super()._load_from_state_dict(state_dict, prefix, *args)
