r"""The cross-entropy of an ensemble in terms: bias, variance and diversity.

For an ensemble that averages logits, its prediction is the normalised geometric mean of its members' probabilities,
and the centre of several predictions in the same sense is their normalised geometric mean too. With

.. math:: \log Z = \log \sum_k \exp \Big( \frac1M \sum_i \log p_{ik} \Big) \le 0,

the mean divergence :math:`\frac1M \sum_i KL(\bar q \,\Vert\, p_i)` from the centre is :math:`-\log Z`: so it is
computed, without a difference of logarithms of tiny probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mirepoix.bootstrap import Interval
from mirepoix.landscape._per_sample import (
    Array,
    blocks,
    check_shape,
    domain_indices,
    log_softmax,
    mean_intervals,
    read_targets,
    terms_to_dict,
    unit_intervals,
)
from mirepoix.types import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

__all__ = [
    "Ambiguity",
    "CrossEntropyDecomposition",
    "DiversityEffect",
    "ambiguity",
    "cross_entropy_decomposition",
    "diversity_effect",
]


@dataclass(frozen=True)
class Ambiguity:
    r"""The cross-entropy of one ensemble.

    Attributes:
        ensemble_error: Of the average of logits: ``member_error - ambiguity``.
        member_error: The mean over members.
        ambiguity: :math:`\frac1M \sum_i KL(\bar q \,\Vert\, p_i)`, what averaging gains; at least 0.
        probability_gain: What averaging probabilities instead would gain, at least 0 too; NaN where that and
            ``member_error`` are infinite.
        members: How many.
        samples: How many the means are over.
        domains: The same for each domain alone; empty where no domains were given.
    """

    ensemble_error: Interval
    member_error: Interval
    ambiguity: Interval
    probability_gain: Interval
    members: int
    samples: int
    domains: Mapping[int, Ambiguity]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is not finite becomes ``None``."""
        return terms_to_dict(self)


@dataclass(frozen=True)
class CrossEntropyDecomposition:
    r"""The cross-entropy of ensembles in expectation: ``bias + variance - diversity``.

    Attributes:
        ensemble_error: The mean over replicates.
        bias: :math:`CE(y, q^\circ)` at the centroid, with the entropy of the labels in it.
        variance: :math:`KL(q^\circ \,\Vert\, p)`, the mean over members and replicates; at least 0.
        diversity: :math:`KL(\bar q \,\Vert\, p)`, the mean over members and replicates; at least 0.
        member_error: ``bias + variance``, the mean over members and replicates.
        label_entropy: Of the labels, the error that no prediction can go below; 0 for classes.
        members: How many each ensemble has.
        replicates: How many ensembles there are.
        samples: How many the means are over.
        centroid: Which centre bias and variance are measured from.
        draw: What the intervals draw again.
        domains: The same for each domain alone; empty where no domains were given.
    """

    ensemble_error: Interval
    bias: Interval
    variance: Interval
    diversity: Interval
    member_error: Interval
    label_entropy: float
    members: int
    replicates: int
    samples: int
    centroid: str
    draw: str
    domains: Mapping[int, CrossEntropyDecomposition]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is not finite becomes ``None``."""
        return terms_to_dict(self)


@dataclass(frozen=True)
class DiversityEffect:
    """What voting changes about the rate of errors.

    Attributes:
        effect: ``member_error - ensemble_error``; negative where the vote is worse than its members.
        member_error: The mean over members of their rate of errors.
        ensemble_error: Of the vote.
        members: How many.
        samples: How many the means are over.
        domains: The same for each domain alone; empty where no domains were given.
    """

    effect: Interval
    member_error: Interval
    ensemble_error: Interval
    members: int
    samples: int
    domains: Mapping[int, DiversityEffect]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is not finite becomes ``None``."""
        return terms_to_dict(self)


def ambiguity(
    logits: Float[Tensor, "members samples classes"],
    labels: Int[Tensor, " samples"] | Float[Tensor, "samples classes"],
    *,
    domains: Int[Tensor, " samples"] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Ambiguity:
    r"""What an ensemble that averages logits gains over its members, in cross-entropy.

    With :math:`\bar q` the softmax of the average of logits,

    .. math:: CE(y, \bar q) = \frac1M \sum_i CE(y, p_i) - \frac1M \sum_i KL(\bar q \,\Vert\, p_i),

    in nats, each a mean over samples; exact. The second term does not depend on the labels. It is at least 0 and 0
    only for members that agree, so that the ensemble is never worse than the mean of its members; it may be worse
    than the best.

    Args:
        logits: Of each member. A class may be excluded with minus infinity.
        labels: The true classes, or a distribution over classes.
        domains: The domain of each sample, for the terms of each domain too.
        resamples: How often the intervals draw samples again; 0 for no intervals.
        seed: Of the draws.

    Raises:
        InputError: Without members or samples; for logits whose largest is not a number; when members exclude every
            class between them; for labels or domains that do not fit.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log()
        >>> found = ambiguity(logits, torch.tensor([0]))
        >>> round(found.member_error.value, 4), round(found.ambiguity.value, 4), round(found.ensemble_error.value, 4)
        (0.3993, 0.1116, 0.2877)

    References:
        Wood et al. (2023), A unified theory of diversity in ensemble learning.
    """
    members, samples, classes = check_shape("ambiguity", logits, "members", "samples", "classes")
    targets = read_targets("ambiguity", labels, samples, classes, distribution=True)
    rows = np.empty((samples, 4))
    for part, block in blocks(logits):
        log_p = log_softmax(block, "ambiguity", part, ("member", "sample"))
        mean = log_p.mean(axis=0)
        log_z = _log_z("ambiguity", mean, part)
        own = _cross_entropy(targets[part], log_p).mean(axis=0)
        rows[part, 0] = _cross_entropy(targets[part], mean) + log_z
        rows[part, 1], rows[part, 2] = own, -log_z
        with np.errstate(
            invalid="ignore"
        ):  # where no member gives the label any probability, both are infinite
            rows[part, 3] = own - _cross_entropy(targets[part], _log_mean_exp(log_p))
    indices = domain_indices("ambiguity", domains, samples)

    def result(chosen: Any, within: Mapping[int, Ambiguity]) -> Ambiguity:
        part = rows[chosen]
        error, member, gain, other = mean_intervals(part, resamples=resamples, seed=seed)
        return Ambiguity(error, member, gain, other, members, len(part), within)

    return result(slice(None), {domain: result(chosen, {}) for domain, chosen in indices.items()})


def cross_entropy_decomposition(
    logits: Float[Tensor, "replicates members samples classes"],
    labels: Int[Tensor, " samples"] | Float[Tensor, "samples classes"],
    *,
    centroid: Literal["member", "pooled"] = "member",
    domains: Int[Tensor, " samples"] | None = None,
    draw: Literal["samples", "replicates"] = "samples",
    resamples: int = 1000,
    seed: int = 0,
) -> CrossEntropyDecomposition:
    r"""Bias, variance and diversity of the cross-entropy of ensembles that average logits.

    With :math:`p_{gi}` member :math:`i` of replicate :math:`g`, :math:`\bar q_g` the softmax of the average of the
    logits of the replicate, and the centroid :math:`q^\circ_i \propto \exp( \frac1G \sum_g \log p_{gi} )`,

    .. math:: \frac1G \sum_g CE(y, \bar q_g)
              = \underbrace{\frac1M \sum_i CE(y, q^\circ_i)}_{bias}
              + \underbrace{\frac1{GM} \sum_{gi} KL(q^\circ_i \,\Vert\, p_{gi})}_{variance}
              - \underbrace{\frac1{GM} \sum_{gi} KL(\bar q_g \,\Vert\, p_{gi})}_{diversity},

    in nats, each a mean over samples; exact. Diversity lowers the error, but it is bought with variance: members that
    scatter more have more of both. The centroid of few replicates lies too close to them, so that the variance comes
    out too low and the bias too high: compare equal numbers of replicates.

    Args:
        logits: Of each member of each replicate. A class may be excluded with minus infinity.
        labels: The true classes, or a distribution over classes.
        centroid: ``"member"`` for one centre per place in the ensemble, where members differ by design (other
            architectures, other settings); ``"pooled"`` for one centre of all, where members are exchangeable. Both
            are exact; they share out bias and variance differently.
        domains: The domain of each sample, for the terms of each domain too.
        draw: What the intervals draw again: samples or replicates. The latter keeps all predictions in memory in
            float64, and intervals over few replicates are too short.
        resamples: How often; 0 for no intervals.
        seed: Of the draws.

    Raises:
        InputError: With one replicate; otherwise as `ambiguity`.

    Example:
        >>> import torch
        >>> logits = torch.randn(3, 4, 50, 10, generator=torch.Generator().manual_seed(0))
        >>> found = cross_entropy_decomposition(logits, torch.zeros(50, dtype=torch.long), resamples=0)
        >>> gap = found.bias.value + found.variance.value - found.diversity.value - found.ensemble_error.value
        >>> abs(gap) < 1e-12
        True

    References:
        Wood et al. (2023), A unified theory of diversity in ensemble learning.
    """
    caller = "cross_entropy_decomposition"
    axes = ("replicates", "members", "samples", "classes")
    replicates, members, samples, classes = check_shape(caller, logits, *axes)
    if replicates < 2:
        raise InputError(
            f"{caller}: expected at least 2 replicates, got 1: one ensemble has no variance. Make it again with "
            "other seeds, or use ambiguity(logits[0], labels)."
        )
    for name, value, known in (
        ("centroid", centroid, ("member", "pooled")),
        ("draw", draw, ("samples", "replicates")),
    ):
        if value not in known:
            raise InputError(f"{caller}: {name} must be {known[0]!r} or {known[1]!r}, got {value!r}.")
    targets = read_targets(caller, labels, samples, classes, distribution=True)
    indices = domain_indices(caller, domains, samples)
    rows = np.empty((samples, 5))
    kept = np.empty((replicates, members, samples, classes)) if draw == "replicates" else None
    for part, block in blocks(logits):
        log_p = log_softmax(block, caller, part, ("replicate", "member", "sample"))
        rows[part] = _terms(caller, log_p, targets[part], np.full(replicates, 1 / replicates), centroid, part)
        if kept is not None:
            kept[:, :, part] = log_p
    entropy = _cross_entropy(targets, np.log(targets, out=np.zeros_like(targets), where=targets > 0))

    def intervals(chosen: Any) -> list[Interval]:
        if kept is None:
            return mean_intervals(rows[chosen], resamples=resamples, seed=seed)
        log_p, y = kept[:, :, chosen], targets[chosen]
        drawings: list[Array] = []

        def again(drawn: NDArray[np.int64]) -> Array:
            share = np.bincount(drawn, minlength=replicates) / len(drawn)
            found: Array = _terms(caller, log_p, y, share, centroid, slice(0, len(y))).mean(axis=0)
            drawings.append(found)
            return found

        values = rows[chosen].mean(axis=0)
        found = unit_intervals(again, replicates, values, resamples=resamples, seed=seed)
        if resamples == 0:
            return found
        # Replicates drawn twice vary less, so bias and variance are off on average: the ends are moved back.
        with np.errstate(invalid="ignore"):
            shifts = values - np.mean(drawings[1:], axis=0)
        for column in (1, 2):
            each, shift = found[column], float(shifts[column])
            found[column] = replace(each, low=each.low + shift, high=each.high + shift)
        return found

    def result(chosen: Any, within: Mapping[int, CrossEntropyDecomposition]) -> CrossEntropyDecomposition:
        error, bias, variance, diversity, own = intervals(chosen)
        return CrossEntropyDecomposition(
            error,
            bias,
            variance,
            diversity,
            own,
            label_entropy=float(entropy[chosen].mean()) + 0.0,
            members=members,
            replicates=replicates,
            samples=len(rows[chosen]),
            centroid=centroid,
            draw=draw,
            domains=within,
        )

    return result(slice(None), {domain: result(chosen, {}) for domain, chosen in indices.items()})


def diversity_effect(
    logits: Float[Tensor, "members samples classes"],
    labels: Int[Tensor, " samples"],
    *,
    domains: Int[Tensor, " samples"] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> DiversityEffect:
    r"""What a vote gains over its members, in the rate of errors.

    .. math:: \frac1M \sum_i err_i - err(vote).

    In [-1, 1], higher is better. Unlike for squared error and cross-entropy there is no term that is never negative:
    where most members are wrong together, the vote is worse than their mean.

    Args:
        logits: Of each member; the vote is that of `mirepoix.ensembles.vote`.
        labels: The true classes.
        domains: The domain of each sample, for the effect on each domain too.
        resamples: How often the intervals draw samples again; 0 for no intervals.
        seed: Of the draws.

    Raises:
        InputError: Without members or samples; for logits whose largest is not a number; for labels or domains that
            do not fit.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
        >>> round(diversity_effect(logits, torch.tensor([0, 0])).effect.value, 4)  # one of three errs, each time
        0.3333

    References:
        Wood et al. (2023), A unified theory of diversity in ensemble learning.
    """
    from mirepoix.ensembles import vote

    members, samples, classes = check_shape("diversity_effect", logits, "members", "samples", "classes")
    if labels.is_floating_point():
        raise InputError(
            f"diversity_effect: expected labels that are classes, shape ({samples},), got {labels.dtype}."
        )
    read_targets("diversity_effect", labels, samples, classes, distribution=True)
    rows = np.empty((samples, 3))
    labels = labels.to(logits.device)
    rows[:, 1] = (logits.argmax(-1) != labels).double().mean(0).cpu().numpy()
    rows[:, 2] = (vote(logits) != labels).double().cpu().numpy()
    rows[:, 0] = rows[:, 1] - rows[:, 2]
    indices = domain_indices("diversity_effect", domains, samples)

    def result(chosen: Any, within: Mapping[int, DiversityEffect]) -> DiversityEffect:
        part = rows[chosen]
        effect, member, ensemble = mean_intervals(part, resamples=resamples, seed=seed)
        return DiversityEffect(effect, member, ensemble, members, len(part), within)

    return result(slice(None), {domain: result(chosen, {}) for domain, chosen in indices.items()})


def _terms(caller: str, log_p: Array, targets: Array, share: Array, centroid: str, part: slice) -> Array:
    """Error, bias, variance, diversity and error of members, of each sample; ``share`` of each replicate."""
    used = share > 0  # a replicate that was not drawn must not bring in its infinities
    log_p, share = log_p[used], share[used]
    own = np.tensordot(share, _cross_entropy(targets, log_p).mean(axis=1), axes=1)
    ensembles = log_p.mean(axis=1)  # (replicates, samples, classes), not normalised
    ensembles_z = _log_z(caller, ensembles, part)
    error = np.tensordot(share, _cross_entropy(targets, ensembles) + ensembles_z, axes=1)
    centres = np.tensordot(share, log_p, axes=1)  # (members, samples, classes)
    if centroid == "pooled":
        centres = centres.mean(axis=0, keepdims=True)
    centres_z = _log_z(caller, centres, part)
    bias = (_cross_entropy(targets, centres) + centres_z).mean(axis=0)
    columns = [error, bias, -centres_z.mean(axis=0), -np.tensordot(share, ensembles_z, axes=1), own]
    return np.stack(columns, axis=1)


def _cross_entropy(targets: Array, log_p: Array) -> Array:
    """``-sum_k y_k log p_k``, where a class that is not meant may have probability 0."""
    with np.errstate(invalid="ignore"):
        products = targets * log_p
    return np.asarray(-np.where(targets > 0, products, 0.0).sum(axis=-1))


def _log_z(caller: str, log_mean: Array, part: slice) -> Array:
    """The logarithm of the sum over classes of a geometric mean."""
    highest = log_mean.max(axis=-1, keepdims=True)
    if not np.isfinite(highest).all():
        sample = part.start + int(np.argwhere(~np.isfinite(highest[..., 0]))[0][-1])
        raise InputError(
            f"{caller}: no class of sample {sample} has a logit above minus infinity in all members, so that their "
            "average predicts nothing."
        )
    total = np.exp(log_mean - highest).sum(axis=-1)
    return np.asarray(highest[..., 0] + np.log(total))


def _log_mean_exp(log_p: Array) -> Array:
    """The logarithm of the mean probability over members."""
    highest = log_p.max(axis=0)
    highest = np.where(np.isfinite(highest), highest, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(highest + np.log(np.exp(log_p - highest).mean(axis=0)))
