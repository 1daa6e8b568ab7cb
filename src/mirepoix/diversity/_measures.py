"""All measures of the diversity of predictions: a table of them, and their values from one pass over the logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mirepoix.diversity._blocks import Block, blocks
from mirepoix.diversity._difficulty import difficulty_of
from mirepoix.diversity._disagreement import disagreement_matrix, oracle_disagreement_of_counts
from mirepoix.diversity._double_fault import double_fault_of_counts
from mirepoix.diversity._entropy import entropy_of_correctness_of, vote_entropy_of
from mirepoix.diversity._error_correlation import error_correlation_of_counts
from mirepoix.diversity._generalised_diversity import generalised_diversity_of
from mirepoix.diversity._interrater_agreement import interrater_agreement_of
from mirepoix.diversity._jensen_shannon import JensenShannonSums
from mirepoix.diversity._kohavi_wolpert import kohavi_wolpert_of, label_variance_of
from mirepoix.diversity._kullback_leibler import KullbackLeiblerSums
from mirepoix.diversity._mutual_information import MutualInformationSums
from mirepoix.diversity._normalised_difference import normalise
from mirepoix.diversity._pairs import PairCounts, mean_over_pairs, pair_counts
from mirepoix.diversity._q_statistic import q_statistic_of_counts
from mirepoix.diversity._ratio_error import pooled_ratio_error_of_counts, ratio_error_of_counts
from mirepoix.diversity._votes import right_histogram, vote_histogram
from mirepoix.types import InputError

__all__ = ["MEASURES", "Measure", "Measured", "Spread", "measure_predictions"]


@dataclass(frozen=True)
class Measure:
    """What there is to know about a measure without computing it.

    Attributes:
        name: That of the function.
        label: For people, in a table or on an axis.
        higher_is_diverse: Its direction.
        pairwise: Whether it is a mean over pairs, with a matrix beside it.
        of: What it needs: who is right, the predicted labels, or the logits.
        lowest: No value is below.
        highest: No value is above.
        default: Whether `measure_predictions` computes it unasked.
    """

    name: str
    label: str
    higher_is_diverse: bool
    pairwise: bool
    of: Literal["correct", "predicted", "logits"]
    lowest: float
    highest: float
    default: bool = True


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        measure.name: measure
        for measure in (
            Measure("ratio_error", "ratio-error", True, True, "correct", 0.0, math.inf),
            Measure("pooled_ratio_error", "pooled ratio-error", True, False, "correct", 0.0, math.inf),
            Measure("q_statistic", "Q-statistic", False, True, "correct", -1.0, 1.0),
            Measure("q_diversity", "Q-diversity", True, True, "correct", 0.0, 2.0),
            Measure("oracle_disagreement", "disagreement on being right", True, True, "correct", 0.0, 1.0),
            Measure("double_fault", "double fault", False, True, "correct", 0.0, 1.0),
            Measure("error_correlation", "correlation of errors", False, True, "correct", -1.0, 1.0),
            Measure("disagreement", "disagreement", True, True, "predicted", 0.0, 1.0),
            Measure("agreement", "agreement", False, True, "predicted", 0.0, 1.0),
            Measure("normalised_difference", "normalised difference", True, True, "predicted", 0.0, 2.0),
            Measure("kullback_leibler", "Kullback-Leibler divergence", True, True, "logits", 0.0, math.inf),
            # The only one that needs a logarithm per pair, sample and class: for 60 members some seven times the
            # time of all others together (benchmarks/measures.py), and it tells little that the others do not.
            Measure(
                "jensen_shannon", "Jensen-Shannon divergence", True, True, "logits", 0.0, math.log(2), False
            ),
            Measure("mutual_information", "mutual information", True, False, "logits", 0.0, math.inf),
            Measure("kohavi_wolpert", "Kohavi-Wolpert variance", True, False, "correct", 0.0, 1 / 4),
            Measure("label_variance", "variance of labels", True, False, "predicted", 0.0, 1 / 2),
            Measure("vote_entropy", "entropy of votes", True, False, "predicted", 0.0, math.inf),
            Measure("entropy_of_correctness", "entropy of being right", True, False, "correct", 0.0, 1.0),
            Measure("interrater_agreement", "interrater agreement", False, False, "correct", -1.0, 1.0),
            Measure("generalised_diversity", "generalised diversity", True, False, "correct", 0.0, 1.0),
            Measure("difficulty", "variance of difficulty", False, False, "correct", 0.0, 1 / 4),
        )
    }
)
"""Every measure of predictions by its name; a function of that name in this room computes it alone."""


@dataclass(frozen=True)
class Spread:
    """How the pairs of an ensemble differ in a measure.

    Attributes:
        lowest: The value of the lowest pair.
        highest: The value of the highest pair.
        std: The standard deviation over pairs, divided by their number; 0 for one pair, NaN if a pair is not finite.
    """

    lowest: float
    highest: float
    std: float


@dataclass(frozen=True)
class Measured:
    """The diversity of an ensemble in many measures.

    Attributes:
        matrices: The values of all pairs, of each measure that has pairs.
        values: The value of the ensemble in each measure, in the order of `MEASURES`.
        notes: Where a value is not what its formula says, or not finite, and why.
    """

    matrices: dict[str, Float[Tensor, "members members"]]
    values: dict[str, float]
    notes: tuple[str, ...]

    def spread(self, name: str) -> Spread:
        """The extremes and the standard deviation over pairs.

        Args:
            name: Of a measure of pairs.

        Raises:
            InputError: If the measure was not computed, or has no pairs.
        """
        if name not in self.matrices:
            raise InputError(
                f"spread: expected a measure of pairs that was computed, one of {', '.join(self.matrices)}, "
                f"got {name!r}."
            )
        matrix = self.matrices[name]
        i, j = torch.triu_indices(len(matrix), len(matrix), offset=1, device=matrix.device)
        pairs = matrix[i, j].cpu().double()
        return Spread(float(pairs.min()), float(pairs.max()), float(pairs.std(correction=0)))


def measure_predictions(
    logits: Float[Tensor, "members samples classes"],
    labels: Int[Tensor, " samples"],
    *,
    names: Collection[str] | None = None,
    block_samples: int | None = None,
) -> Measured:
    """The diversity of an ensemble in all measures at once, in one pass over its logits.

    Each value is what the function of its name returns, with two exceptions where a formula divides by zero, both
    with a note: if the ratio-error of a pair is not finite, that of the ensemble is `pooled_ratio_error`; and the
    Q-statistic of a pair without denominator is that of ``zero_denominator="haldane"``.

    Memory beyond the logits is that of a block of samples and of some numbers per pair.

    Args:
        logits: A score per class.
        labels: The true classes.
        names: Of `MEASURES`; all but the Jensen-Shannon divergence of pairs, which is slow, if not given.
        block_samples: How many samples are looked at together; as many as make 16 MB if not given. It changes
            the rounding of measures of probabilities and nothing else.

    Raises:
        InputError: With fewer than two members, or without samples; for labels that are no classes or not one per
            sample; for logits whose largest is not finite; for an unknown name.

    Example:
        >>> logits = torch.tensor([[[3.0, 0.0], [3.0, 0.0]], [[3.0, 0.0], [0.0, 3.0]]])
        >>> measured = measure_predictions(logits, torch.tensor([0, 1]), names=["disagreement", "double_fault"])
        >>> measured.values
        {'double_fault': 0.0, 'disagreement': 0.5}

    References:
        Kuncheva and Whitaker (2003), Measures of diversity in classifier ensembles; and that of each measure.
    """
    unknown = [name for name in names or () if name not in MEASURES]
    if unknown:
        raise InputError(f"names: expected names of measures, {', '.join(MEASURES)}; got {unknown[0]!r}.")
    chosen = [m for name, m in MEASURES.items() if (m.default if names is None else name in names)]
    _check_labels(logits, labels)
    logits = logits.detach()  # or the sums would keep every block

    sums = {m.name: SUMS[m.name](len(logits)) for m in chosen if m.name in SUMS}
    # Made at once: what is kept of each block would stay between the freed tensors of the blocks and double the peak.
    predicted = torch.empty(logits.shape[:2], dtype=torch.long, device=logits.device)  # (members, samples)
    done = 0
    for block in blocks(logits, block_samples):
        predicted[:, done : done + block.predicted.shape[1]] = block.predicted
        done += block.predicted.shape[1]
        for total in sums.values():
            total.add(block)
    correct = predicted == labels
    counts = pair_counts(correct)

    results = {name: total.result(logits) for name, total in sums.items()}
    results |= _of_counts(counts) | _of_right(right_histogram(correct))
    if any(m.of == "predicted" for m in chosen):
        results |= _of_predicted(predicted, correct, logits.shape[2])
    matrices = {m.name: results[m.name] for m in chosen if m.pairwise}
    values = {m.name: float(_mean(results[m.name])) for m in chosen}
    if not math.isfinite(values.get("ratio_error", 0)):
        values["ratio_error"] = float(results["pooled_ratio_error"])
    if "q_diversity" in values:
        values["q_diversity"] = float(1 - _mean(results["q_statistic"]))
    return Measured(matrices, values, tuple(_notes(counts, matrices, values)))


class Sums(Protocol):
    """What a measure of probabilities keeps of the blocks that it saw."""

    def add(self, block: Block, /) -> None:
        """Add the samples of a block."""
        ...

    def result(self, logits: Tensor, /) -> Tensor:
        """The measure, or its matrix, of all samples."""
        ...


SUMS: Mapping[str, Callable[[int], Sums]] = {
    "kullback_leibler": KullbackLeiblerSums,
    "jensen_shannon": JensenShannonSums,
    "mutual_information": MutualInformationSums,
}


def _of_counts(counts: PairCounts) -> dict[str, Tensor]:
    q = q_statistic_of_counts(counts, "haldane")
    return {
        "ratio_error": ratio_error_of_counts(counts),
        "pooled_ratio_error": pooled_ratio_error_of_counts(counts),
        "q_statistic": q,
        "q_diversity": 1 - q,
        "oracle_disagreement": oracle_disagreement_of_counts(counts),
        "double_fault": double_fault_of_counts(counts),
        "error_correlation": error_correlation_of_counts(counts),
    }


def _of_right(right: list[int]) -> dict[str, Tensor]:
    return {
        "kohavi_wolpert": kohavi_wolpert_of(right),
        "entropy_of_correctness": entropy_of_correctness_of(right),
        "interrater_agreement": interrater_agreement_of(right),
        "generalised_diversity": generalised_diversity_of(right),
        "difficulty": difficulty_of(right),
    }


def _of_predicted(predicted: Tensor, correct: Tensor, classes: int) -> dict[str, Tensor]:
    different = disagreement_matrix(predicted)
    votes = vote_histogram(predicted, classes)
    return {
        "disagreement": different,
        "agreement": 1 - different,
        "normalised_difference": normalise(different, (~correct).sum(1) / correct.shape[1]),
        "label_variance": label_variance_of(votes),
        "vote_entropy": vote_entropy_of(votes),
    }


def _mean(result: Tensor) -> Tensor:
    return mean_over_pairs(result) if result.ndim else result


REASONS = {
    "pooled_ratio_error": "no two members share an error",
    "error_correlation": "a member is always right or always wrong",
    "kullback_leibler": "one member gives probability 0 to a class and the other does not",
    "interrater_agreement": "all answers are right, or all are wrong",
    "generalised_diversity": "no member ever errs",
}


def _notes(counts: PairCounts, matrices: Mapping[str, Tensor], values: Mapping[str, float]) -> Iterator[str]:
    """What a reader of the values must know."""
    if "ratio_error" in matrices:
        pairs = _where(~matrices["ratio_error"].isfinite())
        if pairs:
            yield f"ratio_error: {pairs} without a shared error; the value is the ratio of the pooled counts."
    without = counts.both_right * counts.both_wrong + counts.only_first * counts.only_second == 0
    for name in ("q_statistic", "q_diversity"):
        pairs = _where(without) if name in matrices else ""
        if pairs:
            yield (
                f"{name}: {pairs} without a denominator; Q is 1 if they are right on the same samples, else half a "
                "sample was added to each of their counts."
            )
    for name, reason in REASONS.items():
        value = values.get(name, 0)
        if not math.isfinite(value):
            pairs = f", {_where(~matrices[name].isfinite())}" if name in matrices else ""
            yield f"{name} is {value}{pairs}: {reason}."


def _where(pairs: Tensor) -> str:
    """How many pairs, and which is the first; nothing if none."""
    upper = pairs.triu(1).nonzero().tolist()
    if not upper:
        return ""
    i, j = upper[0]
    return f"{len(upper)} of {math.comb(len(pairs), 2)} pairs (first members {i} and {j})"


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 3 or labels.shape != logits.shape[1:2]:
        raise InputError(
            "expected logits of shape (members, samples, classes) and labels of shape (samples,), "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(f"labels: expected classes, got {labels.dtype}.")
    classes = logits.shape[2]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"labels must lie in 0 to {classes - 1}, as there are {classes} logits, got {int(labels.min())} "
            f"to {int(labels.max())}."
        )
