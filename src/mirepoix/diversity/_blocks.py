"""Logits in blocks of samples: what measures of probabilities have in common.

All that is needed of a block is taken while it is there, and nothing grows with the number of samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mirepoix.types import InputError

__all__ = ["Block", "accumulator", "blocks"]

NUMBERS = {"cpu": 2**22}
"""Logits in a block: 16 MB on a processor, where smaller ones are no faster and threads meet more often; elsewhere
64 million, to keep a GPU busy."""


@dataclass(frozen=True)
class Block:
    """Some samples of all members; probabilities are made when they are first asked for.

    Attributes:
        logits: In float32 at least.
        predicted: The class of the largest logit, the first of equals.
    """

    logits: Float[Tensor, "members block classes"]
    predicted: Int[Tensor, "members block"]

    @cached_property
    def _log_softmax(self) -> Tensor:
        return self.logits.log_softmax(-1)

    @cached_property
    def missing(self) -> Bool[Tensor, "members block classes"] | None:
        """Where a log-probability is minus infinity; ``None`` if nowhere."""
        log_p = self._log_softmax
        return log_p == -torch.inf if log_p.amin() == -torch.inf else None

    @cached_property
    def log_p(self) -> Float[Tensor, "members block classes"]:
        """Log-probabilities, and 0 where they are minus infinity, so that ``p * log_p`` is 0 there."""
        log_p = self._log_softmax
        return log_p if self.missing is None else log_p.masked_fill(self.missing, 0)

    @cached_property
    def p(self) -> Float[Tensor, "members block classes"]:
        """Probabilities."""
        return self._log_softmax.exp()


def blocks(
    logits: Float[Tensor, "members samples classes"],
    block_samples: int | None = None,
) -> Iterator[Block]:
    """All samples in their order."""
    if logits.ndim != 3 or not logits.is_floating_point():
        raise InputError(
            f"expected float logits of shape (members, samples, classes), got {logits.dtype} of shape "
            f"{tuple(logits.shape)}."
        )
    members, samples, classes = logits.shape
    if members < 2 or samples < 1:
        raise InputError(f"diversity needs two members and one sample, got {members} and {samples}.")
    if classes < 1:
        raise InputError(f"expected logits of at least one class, got shape {tuple(logits.shape)}.")
    if block_samples is not None and block_samples < 1:
        raise InputError(f"block_samples: expected at least 1, got {block_samples}.")
    step = block_samples or max(1, NUMBERS.get(logits.device.type, 2**26) // (members * classes))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    for start in range(0, samples, step):
        z = logits[:, start : start + step].to(dtype).contiguous()
        largest, predicted = z.max(-1)  # (members, block)
        if not largest.isfinite().all():
            member, sample = (int(place) for place in (~largest.isfinite()).nonzero()[0])
            raise InputError(
                f"logits must be numbers, but the largest of member {member} for sample {start + sample} is "
                f"{float(largest[member, sample])}. Did the training diverge?"
            )
        yield Block(z, predicted)


def accumulator(*shape: int) -> Tensor:
    """Zeros to add blocks to. In float64, as many blocks are summed; on the processor, as not all devices have it."""
    return torch.zeros(shape, dtype=torch.float64)
