r"""The squared error of an ensemble in terms: bias, variance and covariance, and for averaged weights locality.

Everything is an identity on the samples at hand, so the terms add up to the error to the last digits. What differs
is what one wishes to read from them: the terms of these very predictions, or, with ``correct=True``, unbiased
estimates of the terms in expectation over trainings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from mirepoix.bootstrap import Interval
from mirepoix.landscape._locality import Locality, locality
from mirepoix.landscape._per_sample import (
    Array,
    blocks,
    check_finite,
    check_shape,
    domain_indices,
    mean_intervals,
    plain,
    read_targets,
    terms_to_dict,
    unit_intervals,
)
from mirepoix.types import InputError, Weights

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

__all__ = [
    "BVCL",
    "BiasVariance",
    "BiasVarianceCovariance",
    "bias_variance",
    "bias_variance_covariance",
    "bvcl",
]

Given: TypeAlias = Literal["probabilities", "logits", "values"]

# Half precision rounds each probability to 8 bits or more; a sum farther off is of something else.
SUM_TOLERANCE = 0.02


@dataclass(frozen=True)
class BiasVariance:
    r"""The squared error of single runs.

    Attributes:
        bias_squared: :math:`\lVert y - \bar f \rVert^2`, the part that more runs do not lower.
        variance: :math:`\lVert f - \bar f \rVert^2`, the mean over runs.
        member_error: :math:`\lVert y - f \rVert^2`, the mean over runs: the sum of both.
        ensemble_error: :math:`\lVert y - \bar f \rVert^2` of the ensemble of all runs.
        runs: How many there are.
        samples: How many the means are over.
        corrected: Whether bias and variance are the unbiased estimates.
        draw: What the intervals draw again.
        domains: The same for each domain alone; empty where no domains were given.
    """

    bias_squared: Interval
    variance: Interval
    member_error: Interval
    ensemble_error: Interval
    runs: int
    samples: int
    corrected: bool
    draw: str
    domains: Mapping[int, BiasVariance]

    def error(self, members: int) -> float:
        r"""The error of an ensemble of independent runs that these terms predict, :math:`bias^2 + var / M`.

        With ``corrected`` and up to ``runs`` members it is exactly the mean error of all ensembles of so many
        different runs of this pool. Without, it is that of runs drawn with replacement from this pool.

        Args:
            members: How many, :math:`M`.

        Raises:
            InputError: With fewer than one member.
        """
        _check_members(members)
        return self.bias_squared.value + self.variance.value / members

    def curve(self, members: Iterable[int]) -> dict[int, float]:
        """`error` for several numbers of members."""
        return {int(m): self.error(int(m)) for m in members}

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is not finite becomes ``None``."""
        return terms_to_dict(self)


@dataclass(frozen=True)
class BiasVarianceCovariance:
    r"""The squared error of ensembles.

    Attributes:
        bias_squared: :math:`\lVert y - \bar f \rVert^2`, the part that no ensemble lowers.
        variance: :math:`\lVert f - \bar f \rVert^2`, the mean over members; the ensemble divides it by :math:`M`.
        covariance: Between two different members of one ensemble; 0 for independent members, negative for members
            that err in opposite ways, and as large as the variance for copies.
        member_error: Of single members, :math:`bias^2 + var`.
        ensemble_error: Of the ensembles, :math:`bias^2 + var / M + (M - 1) / M \cdot cov`.
        members: How many each ensemble has, :math:`M`.
        replicates: How many ensembles there are, :math:`G`.
        samples: How many the means are over.
        corrected: Whether the three terms are the unbiased estimates.
        draw: What the intervals draw again.
        domains: The same for each domain alone; empty where no domains were given.
    """

    bias_squared: Interval
    variance: Interval
    covariance: Interval
    member_error: Interval
    ensemble_error: Interval
    members: int
    replicates: int
    samples: int
    corrected: bool
    draw: str
    domains: Mapping[int, BiasVarianceCovariance]

    def error(self, members: int) -> float:
        r"""The error that these terms predict for another number of members.

        .. math:: bias^2 + \frac1M var + \frac{M-1}{M} cov.

        It supposes that any two of the members are related as those of the replicates are. For as many members as
        the replicates have it is their error, exactly; without end it falls to :math:`bias^2 + cov`.

        Args:
            members: How many, :math:`M`.

        Raises:
            InputError: With fewer than one member.
        """
        _check_members(members)
        rest = self.variance.value / members + (members - 1) / members * self.covariance.value
        return self.bias_squared.value + rest

    def curve(self, members: Iterable[int]) -> dict[int, float]:
        """`error` for several numbers of members."""
        return {int(m): self.error(int(m)) for m in members}

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is not finite becomes ``None``."""
        return terms_to_dict(self)


@dataclass(frozen=True)
class BVCL:
    r"""The squared error of averaged weights: the terms of the ensemble, and locality.

    Attributes:
        terms: Bias, variance and covariance of the members' predictions.
        locality: How far the members lie from their average.
        average_error: :math:`\lVert y - f_{WA} \rVert^2`, the mean over replicates; ``None`` where the predictions
            of the averages were not given.
        remainder: ``average_error`` minus the three terms, the :math:`\mathcal{O}(\bar\Delta^2)` of the
            proposition. Negative where averaging weights beats averaging predictions.
        domains: ``average_error`` and ``remainder`` for each domain alone.
    """

    terms: BiasVarianceCovariance
    locality: Locality
    average_error: Interval | None
    remainder: Interval | None
    domains: Mapping[int, tuple[Interval, Interval]]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is not finite becomes ``None``."""
        return {
            "terms": self.terms.to_dict(),
            "locality": self.locality.to_dict(),
            "average_error": plain(self.average_error),
            "remainder": plain(self.remainder),
            "domains": {
                str(domain): {"average_error": plain(error), "remainder": plain(rest)}
                for domain, (error, rest) in self.domains.items()
            },
        }


def bias_variance(
    predictions: Float[Tensor, "runs samples classes"],
    labels: Int[Tensor, " samples"] | Float[Tensor, "samples classes"],
    *,
    domains: Int[Tensor, " samples"] | None = None,
    given: Given = "probabilities",
    correct: bool = False,
    draw: Literal["samples", "runs"] = "samples",
    resamples: int = 1000,
    seed: int = 0,
) -> BiasVariance:
    r"""Bias and variance of the squared error of a pool of runs.

    With :math:`\bar f` the mean of the :math:`R` runs and :math:`y` the one-hot label,

    .. math:: \frac1R \sum_r \lVert y - f_r \rVert^2
              = \lVert y - \bar f \rVert^2 + \frac1R \sum_r \lVert f_r - \bar f \rVert^2
              = bias^2 + var,

    each a mean over samples, summed over classes as in the Brier score: errors lie in [0, 2]. Lower is better. The
    mean of few runs still holds some of their variance, and counts it as bias: with ``correct=True``,
    :math:`var / (R - 1)` goes from the bias to the variance, which makes both unbiased when the runs are
    independent; the bias may then be negative by chance.

    Args:
        predictions: Of each run. Compare ID with OOD samples: variance grows under diversity shift, bias under
            correlation shift.
        labels: The true classes, or a target for each class.
        domains: The domain of each sample, for the terms of each domain too.
        given: What the predictions are: probabilities; logits, of which the softmax is taken; or any values whose
            squared error makes sense.
        correct: Estimate the terms in expectation over runs, and not those of these runs.
        draw: What the intervals draw again: samples, for other samples of the same domains, or runs, for other runs.
            Intervals over few runs are too short.
        resamples: How often; 0 for no intervals.
        seed: Of the draws.

    Raises:
        InputError: With fewer than two runs, or without samples; for predictions that are not finite, or are not
            probabilities; for labels or domains that do not fit.

    Example:
        >>> import torch
        >>> predictions = torch.tensor([[[1.0, 0.0]], [[0.6, 0.4]]])
        >>> terms = bias_variance(predictions, torch.tensor([0]))
        >>> round(terms.bias_squared.value, 6), round(terms.variance.value, 6), round(terms.member_error.value, 6)
        (0.08, 0.08, 0.16)
        >>> unbiased = bias_variance(predictions, torch.tensor([0]), correct=True)
        >>> round(unbiased.error(1), 6), round(unbiased.error(2), 6)  # of one run, of both
        (0.16, 0.08)

    References:
        Kohavi and Wolpert (1996); thesis, section 2.1.4, equation (BV).
    """
    runs, *_ = check_shape("bias_variance", predictions, "runs", "samples", "classes")
    if runs < 2:
        raise InputError("bias_variance: expected at least 2 runs, got 1: there is no variance in one run.")
    _check_choice("bias_variance", "draw", draw, ("samples", "runs"))
    table = _Table(
        "bias_variance", predictions[:, None], labels, domains, given, None, correct, draw == "runs"
    )

    def result(place: int | None, within: Mapping[int, BiasVariance]) -> BiasVariance:
        bias, variance, _, member, ensemble, *_ = table.intervals(place, resamples, seed)
        return BiasVariance(bias, variance, member, ensemble, runs, table.count(place), correct, draw, within)

    return result(None, {domain: result(domain, {}) for domain in table.indices})


def bias_variance_covariance(
    predictions: Float[Tensor, "replicates members samples classes"],
    labels: Int[Tensor, " samples"] | Float[Tensor, "samples classes"],
    *,
    domains: Int[Tensor, " samples"] | None = None,
    given: Given = "probabilities",
    correct: bool = False,
    draw: Literal["samples", "replicates"] = "samples",
    resamples: int = 1000,
    seed: int = 0,
) -> BiasVarianceCovariance:
    r"""Bias, variance and covariance of the squared error of ensembles that average predictions.

    With :math:`f_{gi}` member :math:`i` of replicate :math:`g` and :math:`\bar f` the mean over both,

    .. math:: \frac1G \sum_g \Big\lVert y - \frac1M \sum_i f_{gi} \Big\rVert^2
              = bias^2 + \frac1M var + \frac{M-1}{M} cov, \qquad
              cov = \frac1G \sum_g \frac{1}{M(M-1)} \sum_{i \ne j}
              \langle f_{gi} - \bar f, f_{gj} - \bar f \rangle ,

    each a mean over samples, summed over classes; equal to the last digits. Independent members have a covariance
    near 0, snapshots of one run a large one. From a single ensemble it could not be told: there it would be
    :math:`-var / (M - 1)`, whatever the members are. So at least two replicates are needed, the same way of making
    an ensemble repeated with other seeds.

    The mean of few replicates still holds some of their variance. With ``correct=True`` its estimate,
    :math:`\frac{1}{G (G-1)} \sum_g \lVert \bar f_g - \bar f \rVert^2`, is taken from the bias and added to variance
    and covariance. The sum stays the error; the terms are unbiased when the replicates are independent, and the
    bias may be negative by chance. For independent members it is the variance over the number of runs.

    Args:
        predictions: Of each member of each replicate.
        labels: The true classes, or a target for each class.
        domains: The domain of each sample, for the terms of each domain too.
        given: As in `bias_variance`; of logits the softmax is taken first, so the ensemble averages probabilities.
        correct: Estimate the terms in expectation over replicates, and not those of these replicates.
        draw: What the intervals draw again: samples or replicates. Intervals over few replicates are too short: in a
            simulation those of 95 % held the truth 81 to 90 times in 100 with five replicates, 88 to 93 with ten.
        resamples: How often; 0 for no intervals.
        seed: Of the draws.

    Raises:
        InputError: With one replicate or one member; otherwise as `bias_variance`.

    Example:
        >>> import torch
        >>> f = torch.tensor([[[[1.0, 0.0]], [[0.6, 0.4]]], [[[0.6, 0.4]], [[1.0, 0.0]]]])  # members that differ
        >>> terms = bias_variance_covariance(f, torch.tensor([0]))
        >>> [round(x.value, 6) for x in (terms.bias_squared, terms.variance, terms.covariance, terms.ensemble_error)]
        [0.08, 0.08, -0.08, 0.08]

    References:
        Ueda and Nakano (1996); Brown, Wyatt and Tino (2005); thesis, proposition 2.3, equation (BVC).
    """
    return _ensembles(
        "bias_variance_covariance", predictions, labels, domains, given, correct, draw, resamples, seed, None
    )[0]


def bvcl(
    predictions: Float[Tensor, "replicates members samples classes"],
    labels: Int[Tensor, " samples"] | Float[Tensor, "samples classes"],
    thetas: Sequence[Sequence[Weights]],
    *,
    averages: Float[Tensor, "replicates samples classes"] | None = None,
    domains: Int[Tensor, " samples"] | None = None,
    given: Given = "probabilities",
    correct: bool = False,
    draw: Literal["samples", "replicates"] = "samples",
    resamples: int = 1000,
    seed: int = 0,
) -> BVCL:
    r"""Bias, variance, covariance and locality: what the error of averaged weights is made of.

    .. math:: \mathbb{E}\, \mathcal{E}(f_{WA}) = bias^2 + \frac1M var + \frac{M-1}{M} cov
              + \mathcal{O}(\bar\Delta^2).

    The first three are those of `bias_variance_covariance`. The last is what averaging weights, and not
    predictions, costs. Its constant is not known, so it is not computed from the distance: with the predictions of
    the averages it is measured, as what their error has more than the three terms.

    Args:
        predictions: Of each member of each replicate.
        labels: As in `bias_variance_covariance`.
        thetas: The weights of each member of each replicate, in the same order, in memory or lazy.
        averages: The predictions of the averaged weights of each replicate, given the same way.
        domains: As in `bias_variance_covariance`.
        given: As in `bias_variance_covariance`.
        correct: As in `bias_variance_covariance`.
        draw: As in `bias_variance_covariance`.
        resamples: As in `bias_variance_covariance`.
        seed: As in `bias_variance_covariance`.

    Raises:
        InputError: As `bias_variance_covariance` and `mirepoix.landscape.locality`; when predictions, weights and
            averages are not of the same replicates and members.

    Example:
        >>> import torch
        >>> f = torch.tensor([[[[0.9, 0.1]], [[0.7, 0.3]]], [[[0.6, 0.4]], [[1.0, 0.0]]]])
        >>> thetas = [[{"w": f[g, i, 0]} for i in range(2)] for g in range(2)]  # a model that is its prediction
        >>> found = bvcl(f, torch.tensor([0]), thetas, averages=f.mean(1))
        >>> round(found.locality.squared, 4), round(abs(found.remainder.value), 6)
        (0.05, 0.0)

    References:
        Thesis, proposition 4.1, equation (BVCL).
    """
    replicates, members, samples, classes = check_shape(
        "bvcl", predictions, "replicates", "members", "samples", "classes"
    )
    counts = [len(ensemble) for ensemble in thetas]
    if counts != [members] * replicates:
        raise InputError(
            f"bvcl: expected the weights of {replicates} replicates of {members} members, as there are predictions "
            f"of, got {counts} members."
        )
    if averages is not None and tuple(np.shape(averages)) != (replicates, samples, classes):
        raise InputError(
            f"bvcl: expected predictions of the averages of shape {(replicates, samples, classes)}, got "
            f"{tuple(np.shape(averages))}."
        )
    terms, rest = _ensembles(
        "bvcl", predictions, labels, domains, given, correct, draw, resamples, seed, averages
    )
    error, remainder = rest.pop(None, (None, None))
    within = {domain: pair for domain, pair in rest.items() if domain is not None}
    return BVCL(terms, locality(*thetas), error, remainder, within)


def _ensembles(
    caller: str,
    predictions: Any,
    labels: Any,
    domains: Any,
    given: Given,
    correct: bool,
    draw: str,
    resamples: int,
    seed: int,
    averages: Any,
) -> tuple[BiasVarianceCovariance, dict[int | None, tuple[Interval, Interval]]]:
    """The terms, and the error and remainder of the averages: of all samples under ``None``, and of each domain."""
    replicates, members, *_ = check_shape(caller, predictions, "replicates", "members", "samples", "classes")
    if replicates < 2:
        raise InputError(
            f"{caller}: expected at least 2 replicates, got 1. One ensemble says nothing of the covariance: it would "
            "be -var / (M - 1), whatever the members are. Make the ensemble again with other seeds, or use "
            "bias_variance(predictions[0], labels) for a pool of runs."
        )
    if members < 2:
        raise InputError(
            f"{caller}: expected at least 2 members, got 1. Use bias_variance(predictions[:, 0], labels)."
        )
    _check_choice(caller, "draw", draw, ("samples", "replicates"))
    table = _Table(caller, predictions, labels, domains, given, averages, correct, draw == "replicates")
    rest: dict[int | None, tuple[Interval, Interval]] = {}

    def result(place: int | None, within: Mapping[int, BiasVarianceCovariance]) -> BiasVarianceCovariance:
        bias, variance, covariance, member, ensemble, *more = table.intervals(place, resamples, seed)
        if averages is not None:
            rest[place] = (more[0], more[1])
        return BiasVarianceCovariance(
            bias,
            variance,
            covariance,
            member,
            ensemble,
            members=members,
            replicates=replicates,
            samples=table.count(place),
            corrected=correct,
            draw=draw,
            domains=within,
        )

    return result(None, {domain: result(domain, {}) for domain in table.indices}), rest


class _Table:
    """The terms of each sample, and the inner products between replicates that drawing these again needs.

    Columns: bias, variance, covariance (0 for a pool of runs, which has one member in each replicate), error of
    members, error of ensembles, and, with the predictions of averages, their error and what it has more than that of
    the ensembles.
    """

    def __init__(
        self,
        caller: str,
        predictions: Any,
        labels: Any,
        domains: Any,
        given: Given,
        averages: Any,
        correct: bool,
        over_units: bool,
    ) -> None:
        _check_choice(caller, "given", given, get_args(Given))
        self.replicates, self.members, samples, classes = np.shape(predictions)
        self.correct = correct
        self.over_units = over_units
        targets = read_targets(caller, labels, samples, classes, distribution=False)
        self.indices = domain_indices(caller, domains, samples)
        self.rows = np.empty((samples, 5 if averages is None else 7))
        self.products = {place: _Products(self.replicates) for place in (None, *self.indices)}
        self.own = np.zeros((samples, self.replicates))  # errors of the averages
        axes = ("replicate", "member", "sample") if self.members > 1 else ("run", "member", "sample")
        for part, block in blocks(predictions):
            f = _as_given(caller, block, given, part, axes)  # (replicates, members, part, classes)
            y = targets[part]
            mean = f.mean(axis=(0, 1))
            from_mean = f - mean
            ensembles = from_mean.mean(axis=1)  # (replicates, part, classes)
            offset = y - mean
            spread = np.square(from_mean).sum(-1).mean(1)  # (replicates, part)
            of_ensembles = np.square(ensembles).sum(-1).mean(0)
            self.rows[part, 0] = np.square(offset).sum(-1)
            self.rows[part, 1] = spread.mean(0)
            self.rows[part, 2] = self._covariance(spread.mean(0), of_ensembles)
            self.rows[part, 3] = np.square(y - f).sum(-1).mean(axis=(0, 1))
            # Single runs are no ensembles, so theirs is that of all runs.
            joined = f.mean(axis=1) if self.members > 1 else mean[None]
            self.rows[part, 4] = np.square(y - joined).sum(-1).mean(0)
            if over_units:
                for place, products in self.products.items():
                    products.add(offset, ensembles, spread, self._inside(place, part))
            if correct:
                shift = of_ensembles / (self.replicates - 1)  # the variance of the mean, without bias
                self.rows[part, 0] -= shift
                self.rows[part, 1] += shift
                self.rows[part, 2] += shift if self.members > 1 else 0.0
        if averages is not None:
            for part, block in blocks(averages):
                f = _as_given(f"{caller}, averages", block, given, part, ("replicate", "sample"))
                self.own[part] = np.square(targets[part] - f).sum(-1).T
            self.rows[:, 5] = self.own.mean(axis=1)
            self.rows[:, 6] = self.rows[:, 5] - self.rows[:, 4]

    def count(self, place: int | None) -> int:
        return len(self.rows) if place is None else len(self.indices[place])

    def intervals(self, place: int | None, resamples: int, seed: int) -> list[Interval]:
        """Of the columns, on all samples or on those of a domain."""
        chosen: Any = slice(None) if place is None else self.indices[place]
        rows = self.rows[chosen]
        if not self.over_units:
            return mean_intervals(rows, resamples=resamples, seed=seed)
        count, sums = len(rows), self.products[place]
        base, gram, cross = sums.bias / count, sums.gram / count, sums.cross / count
        spread, own = sums.spread / count, self.own[chosen].mean(0)

        def terms(drawn: NDArray[np.int64]) -> Array:
            share = np.bincount(drawn, minlength=len(gram)) / len(drawn)
            moved = share @ gram @ share  # squared distance of the mean of the drawn from that of all
            bias = base - 2 * share @ cross + moved
            variance, of_ensembles = share @ spread - moved, share @ np.diagonal(gram) - moved
            covariance = self._covariance(variance, of_ensembles)
            member, ensemble = bias + variance, bias + (of_ensembles if self.members > 1 else 0.0)
            if self.correct:
                shift = of_ensembles / (len(gram) - 1)
                bias, variance = bias - shift, variance + shift
                covariance += shift if self.members > 1 else 0.0
            averages = share @ own
            found = [bias, variance, covariance, member, ensemble, averages, averages - ensemble]
            return np.array(found[: rows.shape[1]])

        found = unit_intervals(terms, len(gram), rows.mean(axis=0), resamples=resamples, seed=seed)
        # Replicates drawn twice vary less. How much less on average is known, and taken out of the ends: otherwise an
        # interval of a variance may lie below its own value.
        less = np.trace(gram) / len(gram) / (len(gram) - self.correct)
        shifts = [-less, less, less, 0.0, 0.0, 0.0, 0.0]
        if self.members == 1:
            shifts[4] = -np.trace(gram) / len(gram) ** 2
        return [
            replace(each, low=each.low + shift, high=each.high + shift)
            for each, shift in zip(found, shifts, strict=False)
        ]

    def _inside(self, place: int | None, part: slice) -> Any:
        """Where the samples of a domain are in a block."""
        if place is None:
            return slice(None)
        indices = self.indices[place]
        return indices[(indices >= part.start) & (indices < part.stop)] - part.start

    def _covariance(self, variance: Any, of_ensembles: Any) -> Any:
        # |sum_i d_i|^2 = sum_i |d_i|^2 + sum_{i != j} <d_i, d_j>
        if self.members == 1:
            return 0.0 * variance
        return (self.members * of_ensembles - variance) / (self.members - 1)


class _Products:
    """Sums over samples of what the terms of any replicates drawn again are made of."""

    def __init__(self, replicates: int) -> None:
        self.bias = 0.0
        self.gram = np.zeros((replicates, replicates))
        self.cross, self.spread = np.zeros(replicates), np.zeros(replicates)

    def add(self, offset: Array, ensembles: Array, spread: Array, inside: Any) -> None:
        flat, own = ensembles[:, inside].reshape(len(ensembles), -1), offset[inside].reshape(-1)
        self.bias += float(own @ own)
        self.gram += flat @ flat.T
        self.cross += flat @ own
        self.spread += spread[:, inside].sum(axis=1)


def _as_given(caller: str, block: Array, given: Given, part: slice, axes: Sequence[str]) -> Array:
    check_finite(caller, block, part, axes)
    if given == "logits":
        powers = np.exp(block - block.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
    if given == "probabilities":
        sums = block.sum(axis=-1)
        if block.min() < -1e-6 or np.abs(sums - 1).max() > SUM_TOLERANCE:
            raise InputError(
                f"{caller}: expected probabilities, at least 0 with sums of one over classes; the smallest is "
                f"{block.min():.4g}, and sums go from {sums.min():.4g} to {sums.max():.4g}. Say what was given: "
                "given='logits', or given='values' for predictions that are not probabilities."
            )
    return block


def _check_members(members: int) -> None:
    if members < 1:
        raise InputError(f"members: expected at least 1, got {members}.")


def _check_choice(caller: str, name: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        raise InputError(f"{caller}: {name} must be one of {', '.join(map(repr, known))}, got {value!r}.")
