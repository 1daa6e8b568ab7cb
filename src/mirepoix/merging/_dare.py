"""DARE: drop most of each member's changes at random and enlarge the rest, before they are added up.

The random numbers are counter-based: those of an entry depend on the seed, the member's and the tensor's name and
the entry's place, so neither threads nor the order or size of the pieces matter.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mirepoix.merging._coefficients import check_coefficients
from mirepoix.merging._rule import Array, Coefficients, Inputs, Piece, Rule, TensorInputs
from mirepoix.merging._statistics import weights_of
from mirepoix.merging._ties import (
    Normalize,
    add_delta,
    check_densities,
    check_density,
    check_normalize,
    check_scale,
    densities,
    disjoint_sum,
)
from mirepoix.types import InputError

__all__ = ["Dare", "kept"]


@dataclass(frozen=True, slots=True)
class _Measured:
    labels: Sequence[str]
    weights: Sequence[float]
    shares: Sequence[float]
    factors: Sequence[float]
    """Per member what the kept changes are multiplied by."""


@dataclass(frozen=True)
class Dare(Rule):
    r"""Drop and rescale the differences :math:`\tau_i = \theta_i - \theta_0` from the base, then add them.

    .. math:: \theta = \theta_0 + \lambda \sum_i w_i \frac{m_i \odot \tau_i}{1 - p}, \qquad
        m_i \sim \operatorname{Bernoulli}(1 - p) \text{ per entry},

    whose expectation is :math:`\theta_0 + \lambda \sum_i w_i \tau_i`, task arithmetic. An entry that no member
    changes, or that is dropped in all, is the base's, to the last bit. Renaming a member or a tensor draws other
    entries.

    Args:
        coefficients: The weights :math:`w`, one per member; by default :math:`1/N`, for the mean. Each is a
            number, a function of the tensor's name, or pairs of a pattern and a number.
        density: The kept share :math:`1 - p` (not the dropped one), in (0, 1]; one, or one per member, which may
            differ by the tensors' names as coefficients may.
        seed: Where the random numbers start.
        rescale: Divide by the density, as published; or multiply by what restores the sum of magnitudes of each
            member's tensor (one more reading); or leave the kept changes as they are.
        scale: The factor :math:`\lambda`.
        elect: Elect a sign per entry and add only what agrees with it, as in `Ties`.
        normalize: Divide by the sum of :math:`|w_i|` or by the number of members (``"count"``), of those that
            agree under ``elect``, else of all. The mean over agreeing members of TIES is ``elect=True,
            normalize=True``.

    Raises:
        InputError: If a density is outside (0, 1] or an option is unknown.

    Example:
        >>> import numpy as np
        >>> from mirepoix.merging import Dare, merge
        >>> members, base = [{"w": np.full(8, 1.0)}, {"w": np.full(8, 3.0)}], {"w": np.zeros(8)}
        >>> theta = merge(members, Dare(density=0.5), base=base)["w"]
        >>> set(theta.tolist()) <= {0.0, 1.0, 3.0, 4.0}  # (2 m_1 + 6 m_2) / 2
        True

    References:
        Yu, Yu, Yu, Huang, Li (2024), *Language models are super Mario*; with election as in
        Yadav et al. (2023), *TIES-merging*, steps 2 and 3.
    """

    method = "dare"
    needs_base = True

    coefficients: Coefficients | None = None
    density: float | Coefficients = 0.5
    seed: int = 0
    rescale: Literal["expectation", "l1"] | None = "expectation"
    scale: float = 1.0
    elect: bool = False
    normalize: Normalize = False

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_density(self.density)
        check_normalize(self.normalize)
        if self.rescale not in ("expectation", "l1", None):
            raise InputError(f"rescale: expected 'expectation', 'l1' or None, got {self.rescale!r}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InputError(f"seed: expected a whole number, got {self.seed!r}.")

    def check(self, labels: Sequence[str]) -> None:
        """One coefficient, and one density if there are several, per member."""
        check_coefficients(self.coefficients, labels)
        check_densities(self.density, labels)

    def survey(self, inputs: Inputs) -> Sequence[str]:
        """The members' names."""
        return tuple(inputs.labels)

    def measure(self, tensor: TensorInputs, survey: Any) -> _Measured:
        """The members' factors for this tensor."""
        labels = tensor.labels
        weights = weights_of(self.coefficients, survey, tensor)
        if self.coefficients is None:
            weights = [1 / len(labels)] * len(labels)
        every = densities(self.density, survey, tensor.name)
        shares = [every[label] for label in labels]
        factors = [1.0] * len(labels)
        if self.rescale == "expectation":
            factors = [1 / share for share in shares]
        elif self.rescale == "l1":
            before, after = np.zeros(len(labels)), np.zeros(len(labels))
            for piece, members, base in tensor.blocks():
                assert base is not None
                for i, x in enumerate(members):
                    with np.errstate(invalid="ignore", over="ignore"):
                        size = np.abs(np.subtract(x, base, dtype=np.float64))
                        before[i] += size.sum()
                        after[i] += (size * kept(self.seed, labels[i], piece, shares[i])).sum()
            factors = np.divide(before, after, out=np.ones(len(labels)), where=after > 0).tolist()
        return _Measured(labels, weights, shares, factors)

    def combine(self, piece: Piece, members: Sequence[Array], base: Array | None, measured: Any) -> Array:
        """Drop, rescale and add the entries of the piece."""
        assert base is not None
        known: _Measured = measured
        deltas = [
            # A product, so that NaN stays NaN even where it is dropped.
            (x - base) * kept(self.seed, label, piece, share) * factor
            for x, label, share, factor in zip(
                members, known.labels, known.shares, known.factors, strict=True
            )
        ]
        if self.elect:
            return add_delta(
                base, disjoint_sum(deltas, known.weights, "weighted", self.normalize), self.scale
            )
        mixed = deltas[0] * known.weights[0]
        for delta, weight in zip(deltas[1:], known.weights[1:], strict=True):
            mixed += delta * weight
        if self.normalize:
            total = len(deltas) if self.normalize == "count" else math.fsum(map(abs, known.weights))
            mixed = mixed / total if total else mixed
        return add_delta(base, mixed, self.scale)


def kept(seed: int, label: str, piece: Piece, density: float) -> Array:
    """Which entries of a piece of a member are kept, each with the probability ``density``.

    Entry :math:`e` has the :math:`e`-th 32-bit word of the Philox stream whose key is the hash of the names.
    """
    key = hashlib.blake2b(json.dumps([seed, label, piece.name]).encode(), digest_size=16).digest()
    first, last = piece.start // 8, -(-piece.stop // 8)  # a step of the counter gives 4 words of 64 bits
    stream = np.random.Philox(key=int.from_bytes(key, "little"))
    stream.advance(first)
    words = stream.random_raw((last - first) * 4).astype("<u8", copy=False).view("<u4")
    return np.asarray(words[piece.start - first * 8 : piece.stop - first * 8] < round(density * 2**32))
