"""Combining weights beyond the average, and what an average needs afterwards."""

from mirepoix.merging._batch_norm import reestimate_batch_norm

__all__ = ["reestimate_batch_norm"]
