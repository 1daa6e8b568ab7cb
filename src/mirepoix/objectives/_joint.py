"""One forward pass over all source domains, cut into the domains again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.types import Batch, Outputs

__all__ = ["joint", "risks", "single"]


def joint(model: nn.Module, batches: Sequence[Batch]) -> list[Outputs]:
    """The outputs of each domain from one joint pass, in single precision at least."""
    outputs = model(torch.cat([batch.images for batch in batches]))
    sizes = [len(batch.labels) for batch in batches]
    features, logits = (torch.split(single(x), sizes) for x in (outputs.features, outputs.logits))
    return [Outputs(*parts) for parts in zip(features, logits, strict=True)]


def risks(outputs: Sequence[Outputs], batches: Sequence[Batch]) -> Tensor:
    """The mean cross-entropy of each domain, in nats."""
    pairs = zip(outputs, batches, strict=True)
    values = [F.cross_entropy(output.logits, batch.labels) for output, batch in pairs]
    return torch.stack(values)  # (domains,)


def single(values: Tensor) -> Tensor:
    """Single precision at least: what is squared or subtracted under autocast would lose its digits or overflow."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
