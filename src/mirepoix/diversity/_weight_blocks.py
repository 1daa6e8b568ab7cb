"""The weights of all members side by side, a block at a time: each tensor of each member is read once."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mirepoix.types import InputError, Weights
from mirepoix.weights import check_averageable

__all__ = ["Names", "layer_of", "weight_blocks"]

Names: TypeAlias = Callable[[str], bool] | Collection[str] | None
"""Which tensors: a rule for their names, the names, or None for all."""

_STATISTICS = ("running_mean", "running_var")
_ENTRIES = 2**18  # numbers in a block: 2 MiB, near the processor


def weight_blocks(
    thetas: Iterable[Weights], *, names: Names = None, base: Weights | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The float tensors of all members, flattened, in blocks of a bounded number of columns.

    The running mean and variance of batch norm are left out, as their scale is that of the activations, unless they
    are named one by one. Integer tensors are left out.

    Args:
        thetas: The members, of torch or NumPy, in memory or lazy.
        names: A rule that is asked for each name, or the names themselves.
        base: Weights to subtract, such as the common start.

    Yields:
        The name of the tensor, and a float64 block of shape (members, columns), on the device of the first member
        (float32 where it has no float64). A large tensor comes in several blocks.

    Raises:
        InputError: As `check_averageable`; for a name that no float tensor has; when nothing is chosen; when a tensor
            of ``base`` is missing or has another shape.
        TypeError: As `check_averageable`.

    Example:
        >>> theta = {"a.weight": np.eye(2), "a.running_mean": np.ones(2), "a.steps": np.array(3)}
        >>> [(name, block.tolist()) for name, block in weight_blocks([theta, theta])]
        [('a.weight', [[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]])]
    """
    if isinstance(thetas, Mapping):
        raise TypeError("expected members, a list of mappings, got one mapping; put it in a list.")
    thetas = list(thetas)
    # The names alone: no tensor is read before they agree.
    check_averageable([dict.fromkeys(theta, np.zeros(())) for theta in thetas])
    asked = names is not None and not callable(names)
    chosen = _choose(list(thetas[0]), names)
    found = False
    for name in chosen:
        values = [theta[name] for theta in thetas]
        check_averageable([{name: value} for value in values])
        if not _is_float(values[0]):
            if asked:
                raise InputError(f"{name!r} is no float tensor: integers have neither length nor angle here.")
            continue
        found = True
        device = values[0].device if isinstance(values[0], Tensor) else torch.device("cpu")
        dtype = torch.float32 if device.type == "mps" else torch.float64
        start = None if base is None else _flat(_of_base(base, name, tuple(values[0].shape)))
        rows = [_flat(value) for value in values]
        step = max(1, _ENTRIES // len(rows))
        for first in range(0, max(1, len(rows[0])), step):
            part = slice(first, first + step)
            block = torch.empty((len(rows), len(rows[0][part])), dtype=dtype, device=device)
            for line, row in zip(block, rows, strict=True):
                line.copy_(_wide(row[part]))
            if start is not None:
                block -= _wide(start[part]).to(device, dtype)
            yield name, block
    if not found:
        raise InputError(
            "no float tensor is left to compare: batch-norm statistics count only when they are named one by one. "
            f"The members hold {', '.join(map(repr, list(thetas[0])[:10])) or 'nothing'}."
        )


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to: ``"stem.conv"`` for ``"stem.conv.weight"``."""
    return name.rpartition(".")[0] or name


def _choose(every: list[str], names: Names) -> list[str]:
    if names is None or callable(names):
        return [name for name in every if not name.endswith(_STATISTICS) and (names is None or names(name))]
    if isinstance(names, str):
        raise TypeError(f"names: expected a rule or several names, got one text; write [{names!r}].")
    unknown = [name for name in names if name not in set(every)]
    if unknown:
        raise InputError(f"no tensor is named {', '.join(map(repr, unknown[:10]))}; there are {every[:10]}.")
    wanted = set(names)
    return [name for name in every if name in wanted]


def _is_float(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return np.asarray(value).dtype.name.startswith(("float", "bfloat"))


def _of_base(base: Weights, name: str, shape: tuple[int, ...]) -> Any:
    if name not in base:
        raise InputError(f"relative_to holds no {name!r}; leave it out with `names`, such as a new head.")
    value = base[name]
    if tuple(value.shape) != shape:
        raise InputError(
            f"{name!r} has shape {tuple(value.shape)} in relative_to and {shape} in the members; leave it out with "
            "`names`, such as a new head."
        )
    return value


def _flat(value: Any) -> Any:
    return value.detach().reshape(-1) if isinstance(value, Tensor) else np.asarray(value).reshape(-1)


def _wide(part: Any) -> Tensor:
    return part if isinstance(part, Tensor) else torch.from_numpy(part.astype(np.float64))
