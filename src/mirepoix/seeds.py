"""Seeds from names: every source of randomness has its own stream, so that none can disturb another.

A stream is named by what it is for and where it is used, for example ``stream(run.seed, "order", step)``.
What happens at one step then depends on nothing that was drawn before it: a killed job continues in the
middle of a run with the same bits, and changing how often a run is evaluated does not change the run.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["generator", "seed_hash", "stream"]


def seed_hash(*parts: object) -> int:
    """The seed DomainBed derives from a tuple of values, in ``[0, 2**31)``.

    The MD5 digest of the tuple's text form, as an integer, modulo ``2**31``. The text form decides, so
    ``seed_hash(0, 1)`` and ``seed_hash(0, 1.0)`` differ.

    Example:
        >>> seed_hash(0, 1)
        1514274641
    """
    digest = hashlib.md5(repr(parts).encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 2**31


def stream(*parts: object) -> np.random.Generator:
    """A NumPy generator that depends on the named parts only."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def generator(*parts: object) -> torch.Generator:
    """A torch generator on the CPU that depends on the named parts only."""
    import torch

    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
