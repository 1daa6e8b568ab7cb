"""Which samples of a domain train and which validate: DomainBed's rule, to the index."""

from __future__ import annotations

import numpy as np

from mirepoix.data._images import IntArray
from mirepoix.seeds import seed_hash

__all__ = ["split_indices"]


def split_indices(
    count: int, *, data_seed: int, domain: int, holdout: float = 0.2
) -> tuple[IntArray, IntArray]:
    """Numbers of the training and of the validation samples of one domain.

    The numbers ``0 .. count - 1`` are shuffled by a generator that depends on the data seed and the number of
    the domain only; the first ``int(holdout * count)`` validate, the others train. Both are kept in shuffled
    order, as in DomainBed.

    Args:
        count: Samples of the domain.
        data_seed: DomainBed's trial seed; its "three splits" are 0, 1 and 2.
        domain: Number of the domain in the task.
        holdout: Fraction of the samples that validate.

    Returns:
        Training numbers, then validation numbers.

    Example:
        >>> train, validation = split_indices(10, data_seed=0, domain=0)
        >>> train.tolist(), validation.tolist()
        ([8, 1, 4, 5, 0, 9, 6, 7], [2, 3])
    """
    numbers = np.arange(count, dtype=np.int64)
    # The legacy generator is what fixes the published splits.
    np.random.RandomState(seed_hash(int(data_seed), int(domain))).shuffle(numbers)
    cut = int(count * holdout)
    return numbers[cut:], numbers[:cut]
