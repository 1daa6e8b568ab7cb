"""The exponential moving average of the iterates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mirepoix.training._collectors import Check, _copy, _floats, _wide_copy, _with_floats
from mirepoix.types import InputError

__all__ = ["ExponentialAverage"]


class ExponentialAverage:
    r"""The exponential moving average of the iterates: what is long past counts little.

    .. math:: \bar\theta_1 = \theta_1, \qquad
        \bar\theta_t = d \, \bar\theta_{t-1} + (1 - d) \, \theta_t

    with :math:`d` the decay. It begins as a copy of the first iterate, which so keeps the coefficient
    :math:`d^{t-1}`; the coefficients sum to one. Half of the average lies in the latest
    :math:`\log 2 / (1 - d)` iterates (693 for the default), so a run should be much longer than that. A decay
    of 0 gives the last iterate. Floating-point buffers are averaged alike; integer buffers are those of the
    last iterate. The average is kept in float64 where the device has it.

    Args:
        decay: In [0, 1).

    Raises:
        InputError: If the decay is out of its range.

    References:
        Polyak and Juditsky (1992); Tarvainen and Valpola (2017), Mean teachers, equation 2.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise InputError(
                f"the decay of an exponential average lies in [0, 1), got {decay}; "
                "0.999 averages over about a thousand steps."
            )
        self.decay = decay
        self._average: list[Tensor] | None = None

    def after_step(self, update: int, theta: Mapping[str, Tensor]) -> None:
        """Move the average towards one iterate."""
        values = _floats(theta)
        if self._average is None:
            self._average = _wide_copy(values)
            return
        self._average = [mean.to(value.device) for mean, value in zip(self._average, values, strict=True)]
        torch._foreach_mul_(self._average, self.decay)
        torch._foreach_add_(self._average, values, alpha=1 - self.decay)

    def after_check(self, check: Check, theta: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def weights(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The average so far; before the first update, a copy of the live weights."""
        return _copy(theta) if self._average is None else _with_floats(theta, self._average)

    def state(self) -> dict[str, Any]:
        """The average."""
        average = self._average
        return {"average": None if average is None else [mean.cpu() for mean in average]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue."""
        average = state["average"]
        self._average = None if average is None else [mean.clone() for mean in average]
