"""Steps in place that are taken back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["put_back"]


@contextmanager
def put_back(values: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Tensors as they were, bit for bit, also after an error."""
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        torch.clear_autocast_cache()
