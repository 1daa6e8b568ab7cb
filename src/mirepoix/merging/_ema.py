"""The exponential moving average, along a training or over checkpoints in their order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mirepoix.checkpoints import write_weights
from mirepoix.merging._rule import Line, LinearRule
from mirepoix.merging._running_mean import copied, is_floating, read_state, widened
from mirepoix.types import InputError, Weights
from mirepoix.weights import check_averageable

__all__ = ["EMA", "ExponentialAverage"]

STATISTICS = ("running_mean", "running_var")


def _decay_at(decay: float, t: int, warm_up: bool) -> float:
    return min(decay, (1 + t) / (10 + t)) if warm_up else decay


def _check_decay(decay: float) -> None:
    if not 0 <= decay < 1:
        raise InputError(
            f"decay: expected a number in [0, 1), got {decay!r}. 0.999 is usual for steps of training."
        )


@dataclass(frozen=True)
class ExponentialAverage(LinearRule):
    r"""The exponential moving average over members in their order, oldest first.

    .. math:: m_1 = \theta_1, \qquad m_t = d\, m_{t-1} + (1 - d)\, \theta_t

    Written as one average: member t has the coefficient :math:`(1-d)\, d^{N-t}`, the first :math:`d^{N-1}`.

    Args:
        decay: :math:`d`; 0 keeps the last member alone.
        buffers: ``"last"`` copies batch-norm statistics from the last member; ``"average"`` averages them too.

    References:
        Polyak and Juditsky (1992); Tarvainen and Valpola (2017), Mean teachers, equation 1.
    """

    method = "ema"

    decay: float = 0.5
    buffers: str = "last"

    def check(self, labels: Sequence[str]) -> None:
        """A decay that decays."""
        _check_decay(self.decay)
        if self.buffers not in ("last", "average"):
            raise InputError(f"buffers: expected 'last' or 'average', got {self.buffers!r}.")

    def line(self, name: str, count: int, measured: Any) -> Line:
        """The coefficient of each member."""
        if name.endswith(STATISTICS) and self.buffers == "last":
            return Line([0.0] * (count - 1) + [1.0])
        d = self.decay
        return Line([d ** (count - 1), *((1 - d) * d ** (count - t) for t in range(2, count + 1))])


class EMA:
    r"""The exponential moving average along a training.

    .. math:: m \leftarrow d\, m + (1 - d)\, x

    started from the first weights. Kept in float32 (float64 for float64 weights) whatever the dtype of the
    weights: in half precision a step of :math:`1 - d = 0.001` would be rounded away. Integer tensors are those
    of the last weights.

    Args:
        decay: :math:`d`, in [0, 1).
        warm_up: Use :math:`d_t = \min(d, (1 + t)/(10 + t))` at the update number t, so that early weights are
            forgotten sooner.
        from_zero: Start from :math:`m_0 = 0` instead, and divide by :math:`1 - \prod_t d_t` on reading (bias
            correction), so that the first weights have no special part.
        buffers: ``"last"`` copies batch-norm statistics from the last weights; ``"average"`` averages them too.

    Example:
        >>> import numpy as np
        >>> ema = EMA(decay=0.5)
        >>> for value in (0.0, 4.0, 2.0):
        ...     ema.update({"w": np.array([value])})
        >>> ema.weights()
        {'w': array([2.])}

    References:
        Polyak and Juditsky (1992); Kingma and Ba (2015), section 3, for the bias correction.
    """

    def __init__(
        self, decay: float = 0.999, *, warm_up: bool = False, from_zero: bool = False, buffers: str = "last"
    ) -> None:
        ExponentialAverage(decay, buffers).check(["0"])
        self.decay, self.warm_up, self.from_zero, self.buffers = decay, warm_up, from_zero, buffers
        self.count = 0
        self._mean: dict[str, Any] = {}
        self._zero_part = 1.0  # the product of all decays: how much of m_0 is left

    def update(self, theta: Weights) -> None:
        """Take in the next weights.

        Raises:
            InputError: If they do not fit the ones before, or are not finite; the average is as it was then.
        """
        x = widened(theta)
        if self.count:
            check_averageable([self._mean, x])
        # The update number counts from 0 at the first weights that are mixed with others.
        d = _decay_at(self.decay, self.count + (1 if self.from_zero else 0), self.warm_up)
        if self.count or self.from_zero:
            mean = self._mean or {name: value * 0 for name, value in x.items()}
            self._mean = {
                name: value if self._copied(name, value) else d * mean[name] + (1 - d) * value
                for name, value in x.items()
            }
            self._zero_part *= d
        else:
            self._mean = x
        self.count += 1

    def weights(self) -> dict[str, Any]:
        """The average so far, float32 at least.

        Raises:
            InputError: Before the first update.
        """
        if not self.count:
            raise InputError("the moving average has seen no weights yet: call update(theta) first.")
        part = 1 - self._zero_part if self.from_zero else 1.0
        return {
            name: copied(value) if self._copied(name, value) else value / part
            for name, value in self._mean.items()
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state, with its settings, to one safetensors file, whole or not at all."""
        state = {
            "count": str(self.count),
            "decay": repr(self.decay),
            "warm_up": str(int(self.warm_up)),
            "from_zero": str(int(self.from_zero)),
            "buffers": self.buffers,
            "zero_part": repr(self._zero_part),
        }
        write_weights(path, self._mean, metadata={f"mirepoix.ema.{key}": text for key, text in state.items()})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, framework: str = "torch") -> EMA:
        """Continue from a saved state.

        Raises:
            InputError: If the file holds none.
        """
        mean, texts = read_state(path, framework, "mirepoix.ema.count")
        state = {key.removeprefix("mirepoix.ema."): text for key, text in texts.items()}
        ema = cls(
            float(state["decay"]),
            warm_up=state["warm_up"] == "1",
            from_zero=state["from_zero"] == "1",
            buffers=state["buffers"],
        )
        ema._mean, ema.count, ema._zero_part = mean, int(state["count"]), float(state["zero_part"])
        return ema

    def _copied(self, name: str, value: Any) -> bool:
        return not is_floating(value) or (self.buffers == "last" and name.endswith(STATISTICS))
