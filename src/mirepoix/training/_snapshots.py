"""The weights at every check, as one flat mapping that any checkpoint format can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mirepoix.training._collectors import Check, _copy
from mirepoix.types import InputError

__all__ = ["Snapshots", "snapshots"]


class Snapshots:
    """The weights at every check, named ``000300/classifier.weight``: the step, a slash, the name.

    Read the result with `snapshots`. All of them are kept in memory, and in the state of an unfinished run:
    a run of 5001 steps with a check every 100 keeps 51 times the weights (4.8 GB for a ResNet-50).
    A second check at the same step replaces the first. Without a check the result is empty.
    """

    def __init__(self) -> None:
        self._thetas: dict[int, dict[str, Tensor]] = {}

    def after_step(self, update: int, theta: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def after_check(self, check: Check, theta: Mapping[str, Tensor]) -> None:
        """Copy the weights."""
        self._thetas[check.step] = _copy(theta)

    def weights(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of all checks in one mapping, earliest first."""
        return {
            f"{step:06d}/{name}": tensor
            for step, kept in sorted(self._thetas.items())
            for name, tensor in kept.items()
        }

    def state(self) -> dict[str, Any]:
        """The weights of each check."""
        return {"thetas": dict(self._thetas)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue."""
        self._thetas = dict(state["thetas"])


def snapshots(theta: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Split what `Snapshots` returned into the weights of each step, earliest first.

    Works on a lazy mapping too, such as an opened checkpoint: each tensor is read once.

    Args:
        theta: Weights with names such as ``000300/classifier.weight``.

    Returns:
        From the number of a step, from 0, to the weights after it.

    Raises:
        InputError: If a name does not begin with a step of six digits or more and a slash.

    Example:
        >>> import torch
        >>> snapshots({"000000/w": torch.zeros(1), "000300/w": torch.ones(1)})
        {0: {'w': tensor([0.])}, 300: {'w': tensor([1.])}}
    """
    result: dict[int, dict[str, Tensor]] = {}
    for key in theta:
        step, name = _step_and_name(key)
        result.setdefault(step, {})[name] = theta[key]
    return dict(sorted(result.items()))


def _step_and_name(key: str) -> tuple[int, str]:
    match = re.fullmatch(r"([0-9]{6}|[1-9][0-9]{6,})/(.+)", key, re.DOTALL)
    if match is None:
        raise InputError(
            f"snapshots are named by their step, such as '000300/classifier.weight', got {key!r}; "
            "give the weights that the collector 'snapshots' returned, not those of one model."
        )
    return int(match[1]), match[2]
