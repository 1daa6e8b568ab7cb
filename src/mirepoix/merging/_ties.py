"""TIES: trim small changes, elect a sign per entry, and average the changes that agree with it.

The largest share of all changes of a member is found in constant memory: the bits of a non-negative float32 are in
the order of its value, so a histogram of their upper half, then one of the lower half inside a single bucket, give
the exact threshold in two passes. A third pass is made only if some of several equal changes at the threshold must
go; the first ones stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeAlias

import numpy as np

from mirepoix.merging._coefficients import check_coefficients, resolve
from mirepoix.merging._rule import Array, Coefficient, Coefficients, Inputs, Piece, Rule, TensorInputs
from mirepoix.merging._statistics import weights_of
from mirepoix.types import InputError

__all__ = ["Normalize", "Ties", "add_delta", "check_densities", "check_density", "disjoint_sum"]

Normalize: TypeAlias = bool | Literal["count"]
"""Whether the sum of changes is divided by the sum of the coefficients, or by the number of members."""


EVERY = 1 << 62
"""Beyond the last entry of any tensor."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """The smallest kept magnitude, and the place (tensor, entry) before which entries of that size are kept."""

    bits: int
    tensor: float = math.inf
    stop: int = 0


@dataclass(frozen=True, slots=True)
class _Survey:
    labels: Sequence[str]
    ranks: Mapping[str, int]
    cuts: Mapping[str, _Cut]
    """By member; none yet where each tensor is cut by itself."""


@dataclass(frozen=True, slots=True)
class _Measured:
    weights: Sequence[float]
    limits: Sequence[tuple[int, int]]
    """Per member the threshold's bits, and up to which entry those that equal it are kept."""


@dataclass(frozen=True)
class Ties(Rule):
    r"""Trim, elect sign, and merge the differences :math:`\tau_i = \theta_i - \theta_0` from the base.

    1. *Trim*: of the :math:`n` entries of :math:`\tau_i` keep the :math:`\lceil k n \rceil` largest in magnitude,
       giving :math:`\hat\tau_i`. Magnitudes are compared in float32, and of equal ones the first are kept, in the
       order of the tensors, then of the entries.
    2. *Elect*: :math:`\gamma = \operatorname{sign} \sum_i w_i \hat\tau_i` per entry, 0 counting as positive.
    3. *Merge*: over the members :math:`A` whose :math:`w_i \hat\tau_i` is not 0 and has the sign :math:`\gamma`,

    .. math:: \theta = \theta_0 + \lambda \frac{\sum_{i \in A} w_i \hat\tau_i}{\sum_{i \in A} |w_i|}.

    An entry that no member changes, or that is trimmed in all, is the base's, to the last bit. With the default
    density even copies do not give themselves back: four fifths of the entries return to the base.

    Args:
        coefficients: The weights :math:`w`, one per member, also negative; 1 each by default. Each is a number,
            a function of the tensor's name, or pairs of a pattern and a number.
        density: The kept share :math:`k`, in (0, 1]; one, or one per member, which within tensors may differ by
            their names as coefficients may. The default is the paper's.
        scale: The factor :math:`\lambda`; 1 is the paper's advice where no validation set is at hand.
        scope: Trim over all tensors of a member together, as published (two or three more readings of all
            files), or within each tensor.
        elect: Elect on weighted changes, or on the changes themselves (then agreement too is that of
            :math:`\hat\tau_i`).
        normalize: Divide by the coefficients of those that agree, or by their number (``"count"``), or not at all.

    Raises:
        InputError: If a density is outside (0, 1].

    Example:
        >>> import numpy as np
        >>> from mirepoix.merging import Ties, merge
        >>> members = [{"w": np.array([4.0, -1.0, 3.0, 0.5])}, {"w": np.array([2.0, 5.0, -4.0, 0.1])}]
        >>> merge(members, Ties(density=0.5), base={"w": np.zeros(4)})["w"].tolist()
        [4.0, 5.0, -4.0, 0.0]

    References:
        Yadav, Tam, Choshen, Raffel, Bansal (2023), *TIES-merging*, algorithm 1.
    """

    method = "ties"
    needs_base = True

    coefficients: Coefficients | None = None
    density: float | Coefficients = 0.2
    scale: float = 1.0
    scope: Literal["global", "tensor"] = "global"
    elect: Literal["weighted", "unweighted"] = "weighted"
    normalize: Normalize = True

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if self.scope not in ("global", "tensor"):
            raise InputError(f"scope: expected 'global' or 'tensor', got {self.scope!r}.")
        if self.elect not in ("weighted", "unweighted"):
            raise InputError(f"elect: expected 'weighted' or 'unweighted', got {self.elect!r}.")
        check_normalize(self.normalize)
        shares = check_density(self.density)
        if self.scope == "global" and not all(isinstance(share, int | float) for share in shares):
            raise InputError("density: one that differs from tensor to tensor needs scope='tensor'.")

    def check(self, labels: Sequence[str]) -> None:
        """One coefficient, and one density if there are several, per member."""
        check_coefficients(self.coefficients, labels)
        check_densities(self.density, labels)

    def survey(self, inputs: Inputs) -> _Survey:
        """The thresholds over all tensors."""
        cuts: Mapping[str, _Cut] = {}
        if self.scope == "global":
            shares = densities(self.density, inputs.labels, "")
            cuts = _cuts([inputs.tensor(name) for name in inputs.names], shares)
        return _Survey(tuple(inputs.labels), {name: rank for rank, name in enumerate(inputs.names)}, cuts)

    def measure(self, tensor: TensorInputs, survey: Any) -> _Measured:
        """The thresholds for this tensor."""
        known: _Survey = survey
        rank, cuts = known.ranks[tensor.name], known.cuts
        if self.scope == "tensor":
            shares = densities(self.density, known.labels, tensor.name)
            rank, cuts = 0, _cuts([tensor], {label: shares[label] for label in tensor.labels})
        limits = []
        for label in tensor.labels:
            cut = cuts[label]
            limit = EVERY if rank < cut.tensor else cut.stop if rank == cut.tensor else 0
            limits.append((cut.bits, limit))
        return _Measured(weights_of(self.coefficients, known.labels, tensor), limits)

    def combine(self, piece: Piece, members: Sequence[Array], base: Array | None, measured: Any) -> Array:
        """Trim, elect and merge the entries of the piece."""
        assert base is not None
        known: _Measured = measured
        deltas = []
        for x, (threshold, limit) in zip(members, known.limits, strict=True):
            delta = x - base
            bits = _magnitudes(delta)
            keep = bits > threshold
            equal = slice(0, max(0, limit - piece.start))
            keep[equal] |= bits[equal] == threshold
            deltas.append(delta * keep)
        mixed = disjoint_sum(deltas, known.weights, self.elect, self.normalize)
        return add_delta(base, mixed, self.scale)


def check_scale(scale: float) -> None:
    """Raise unless the factor is a finite number."""
    if not math.isfinite(scale):
        raise InputError(f"scale: expected a finite number, got {scale!r}.")


def check_normalize(normalize: Normalize) -> None:
    """Raise unless it is one of the three."""
    if not isinstance(normalize, bool) and normalize != "count":
        raise InputError(f"normalize: expected True, False or 'count', got {normalize!r}.")


def check_density(density: float | Coefficients) -> list[Coefficient]:
    """Raise unless every density that is a number is a kept share; all of them."""
    given: list[Coefficient]
    if isinstance(density, int | float):
        given = [density]
    else:
        given = list(density.values() if isinstance(density, Mapping) else density)
    for item in given:
        if isinstance(item, int | float):
            _share(item, "")
    return given


def check_densities(density: float | Coefficients, labels: Sequence[str]) -> None:
    """Raise unless there is one density, or one per member."""
    if isinstance(density, Mapping) and set(density) != set(labels):
        raise InputError(
            f"density: expected the members {', '.join(labels)}, got {', '.join(density)}. Name each once."
        )
    if isinstance(density, int | float):
        return
    if len(density) != len(labels):
        raise InputError(f"density: expected one per member ({len(labels)}), got {len(density)}.")
    check_coefficients(density, labels)


def densities(density: float | Coefficients, labels: Sequence[str], name: str) -> dict[str, float]:
    """The density of each member for the tensor ``name``."""
    if isinstance(density, int | float):
        return dict.fromkeys(labels, float(density))
    values = resolve(density, labels, name)
    return {label: _share(value, f" for {name!r}") for label, value in zip(labels, values, strict=True)}


def _share(value: float, where: str) -> float:
    if not 0 < value <= 1:
        raise InputError(f"density{where}: expected the kept share, in (0, 1], got {value!r}.")
    return float(value)


def disjoint_sum(
    deltas: Sequence[Array],
    weights: Sequence[float],
    elect: Literal["weighted", "unweighted"],
    normalize: Normalize,
) -> Array:
    """The weighted sum per entry of the changes that agree with the elected sign, divided as asked."""
    weighted = [delta * w for delta, w in zip(deltas, weights, strict=True)]
    ballots = weighted if elect == "weighted" else deltas
    poll = ballots[0].copy()
    for ballot in ballots[1:]:
        poll += ballot
    positive = poll >= 0
    total, divisor = np.zeros_like(poll), np.zeros_like(poll)
    for term, ballot, w in zip(weighted, ballots, weights, strict=True):
        agrees = np.where(positive, ballot > 0, ballot < 0)
        total += np.where(agrees, term, 0)
        divisor += agrees * poll.dtype.type(1 if normalize == "count" else abs(w))
    if normalize:
        total = np.divide(total, divisor, out=np.zeros_like(total), where=divisor > 0)
    total[np.isnan(poll)] = np.nan  # NaN agrees with no sign, and must not vanish
    return total


def add_delta(base: Array, delta: Array, scale: float) -> Array:
    """The base moved by the change; where that is 0 the base itself, the sign of its zeros included."""
    return np.asarray(np.where(delta == 0, base, base + delta * scale))


def _magnitudes(delta: Array) -> Array:
    """The bits of the magnitudes in float32, ordered as these are; NaN comes above infinity."""
    with np.errstate(over="ignore", under="ignore"):
        return np.abs(delta).astype(np.float32, copy=False).view(np.uint32)


def _cuts(tensors: Sequence[TensorInputs], shares: Mapping[str, float]) -> dict[str, _Cut]:
    """Where to cut each member so that exactly its share of all its entries is kept."""
    if all(share == 1 for share in shares.values()):
        return dict.fromkeys(shares, _Cut(0))
    upper = {label: np.zeros(1 << 16, np.int64) for label in shares}
    for _, _, label, bits in _changes(tensors):
        upper[label] += np.bincount(bits >> 16, minlength=1 << 16)
    # As written: 0.7 of 10 entries are 7, though 0.7 * 10 is more than 7 in floats.
    wanted = {
        label: math.ceil(Fraction(repr(float(share))) * int(upper[label].sum()))
        for label, share in shares.items()
    }
    found = {label: _bucket(upper[label], wanted[label]) for label in shares}
    lower = {label: np.zeros(1 << 16, np.int64) for label in shares}
    for _, _, label, bits in _changes(tensors):
        inside = bits[bits >> 16 == found[label][0]] & 0xFFFF
        lower[label] += np.bincount(inside, minlength=1 << 16)
    cuts: dict[str, _Cut] = {}
    spare: dict[str, int] = {}  # how many of those that equal the threshold stay, where not all do
    for label, (high, rest) in found.items():
        low, left = _bucket(lower[label], rest)
        cuts[label] = _Cut(high << 16 | low)
        if left < lower[label][low]:
            spare[label] = left
    if spare:
        for rank, piece, label, bits in _changes(tensors):
            if label in spare:
                equal = np.flatnonzero(bits == cuts[label].bits)
                if len(equal) < spare[label]:
                    spare[label] -= len(equal)
                    continue
                last = piece.start + int(equal[spare.pop(label) - 1])
                cuts[label] = _Cut(cuts[label].bits, rank, last + 1)
            elif not spare:
                break
    return cuts


def _bucket(counts: Array, wanted: int) -> tuple[int, int]:
    """The bucket of the wanted-th entry from the top, and how many are wanted of that bucket."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, wanted))
    return len(counts) - 1 - place, wanted - (int(from_top[place - 1]) if place else 0)


def _changes(tensors: Sequence[TensorInputs]) -> Iterator[tuple[int, Piece, str, Array]]:
    """The magnitudes' bits, block by block and member by member."""
    for rank, tensor in enumerate(tensors):
        for piece, members, base in tensor.blocks():
            for label, x in zip(tensor.labels, members, strict=True):
                with np.errstate(invalid="ignore", over="ignore"):
                    bits = _magnitudes(x - base)
                yield rank, piece, label, bits
