"""The running mean along a trajectory: stochastic weight averaging, one set of weights at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mirepoix.checkpoints import Checkpoint, open_weights, write_weights
from mirepoix.merging._merge import merge
from mirepoix.types import InputError, Weights
from mirepoix.weights import check_averageable

__all__ = ["RunningMean"]


class RunningMean:
    r"""The mean of all weights so far, kept as a mean and a count.

    .. math:: m \leftarrow m + \frac{x - m}{n + 1}

    The mean is kept in float32 (float64 for float64 weights) whatever the dtype of the weights, so a long
    trajectory in half precision does not stop moving. Up to rounding it is the average of what was given.
    Integer tensors are those of the last weights; batch-norm statistics are averaged like parameters.

    Example:
        >>> import numpy as np
        >>> mean = RunningMean()
        >>> for value in (1.0, 2.0, 6.0):
        ...     mean.update({"w": np.array([value])})
        >>> mean.count, mean.weights()
        (3, {'w': array([3.])})

    References:
        Izmailov et al. (2018), Averaging weights leads to wider optima and better generalization.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: dict[str, Any] = {}

    def update(self, theta: Weights) -> None:
        """Take in the next weights.

        Raises:
            InputError: If they do not fit the ones before, or are not finite; the mean is as it was then.
        """
        x = widened(theta)
        if self.count:
            check_averageable([self._mean, x])
        n = self.count + 1
        self._mean = {
            name: value
            if not is_floating(value) or n == 1
            else self._mean[name] + (value - self._mean[name]) / n
            for name, value in x.items()
        }
        self.count = n

    def weights(self) -> dict[str, Any]:
        """The mean so far, float32 at least.

        Raises:
            InputError: Before the first update.
        """
        if not self.count:
            raise InputError("the running mean has seen no weights yet: call update(theta) first.")
        return {
            name: value.copy() if isinstance(value, np.ndarray) else value.clone()
            for name, value in self._mean.items()
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to one safetensors file, whole or not at all."""
        write_weights(path, self.weights(), metadata={"mirepoix.running_mean.count": str(self.count)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, framework: str = "torch") -> RunningMean:
        """Continue from a saved state.

        Raises:
            InputError: If the file holds none.
        """
        mean = cls()
        mean._mean, texts = read_state(path, framework, "mirepoix.running_mean.count")
        mean.count = int(texts["mirepoix.running_mean.count"])
        return mean


def widened(theta: Weights) -> dict[str, Any]:
    """A copy with 16-bit floats as float32; refuses what has no mean and what is not finite."""
    wide = merge([theta])
    return {name: _float32(value) for name, value in wide.items()}


def copied(value: Any) -> Any:
    """A tensor that can be changed apart."""
    return value.copy() if isinstance(value, np.ndarray) else value.clone()


def is_floating(value: Any) -> bool:
    """Whether a tensor has a mean."""
    return value.dtype.kind == "f" if isinstance(value, np.ndarray) else bool(value.is_floating_point())


def read_state(
    path: str | os.PathLike[str], framework: Any, key: str
) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Tensors and texts of a saved state."""
    opened = open_weights(path, framework=framework)
    texts = opened.metadata if isinstance(opened, Checkpoint) else {}
    if not texts.get(key, "").isdecimal():
        raise InputError(
            f"{path}: expected a saved state with {key!r} in its header, got weights without it."
        )
    return dict(opened), texts


def _float32(value: Any) -> Any:
    if not is_floating(value) or value.dtype.itemsize >= 4:
        return value
    return value.astype(np.float32) if isinstance(value, np.ndarray) else value.float()
