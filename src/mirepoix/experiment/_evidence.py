"""Why averaging worked, or did not: what can be read off members, their average and their predictions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from mirepoix.diversity import q_statistic, ratio_error
from mirepoix.ensembles import average_logits
from mirepoix.experiment._judge import Judge
from mirepoix.metrics import accuracy
from mirepoix.predictions import Predictions
from mirepoix.seeds import stream
from mirepoix.types import Weights
from mirepoix.weights import average, distance

__all__ = ["look_into"]

ENSEMBLE_SUBSETS = 50
"""Subsets of predictions cost nothing, so many are averaged."""


def look_into(
    judge: Judge,
    start: Weights,
    members: Sequence[Weights],
    uniform: Weights,
    *,
    validation: Predictions,
    test: Predictions,
    subsets: int,
    refresh: Callable[[Weights], Weights],
    seed: int,
) -> dict[str, Any]:
    """The numbers behind section "why" of the report, for one target and data seed.

    Args:
        judge: Predicts on this split.
        start: Where the members began.
        members: The fine-tuned weights.
        uniform: Their average.
        validation: Predictions of the members, and last of their average, on ID validation.
        test: The same on the target domain.
        subsets: Weight averages evaluated for each number of members.
        refresh: Applied to every weight average.
        seed: Of the choice of subsets.
    """
    m = len(members)
    ensemble = average_logits(test.logits[:m])
    averaged = test.logits[m]
    curve = []
    for size in range(1, m + 1):
        chosen = _subsets(m, size, ENSEMBLE_SUBSETS, seed)
        ensembles = [float(accuracy(average_logits(test.logits[list(c)]), test.labels)) for c in chosen]
        if size == 1:
            averages = [float(accuracy(logits, test.labels)) for logits in test.logits[:m]]
        elif size == m:
            averages = [float(accuracy(averaged, test.labels))]
        else:
            averages = [
                judge.ood_accuracy(judge.logits(refresh(average(members[i] for i in c)), "test"))
                for c in chosen[:subsets]
            ]
        curve.append(
            {
                "members": size,
                "average": _mean(averages),
                "ensemble": _mean(ensembles),
                "subsets": len(averages),
            }
        )
    id_correct, ood_correct = validation.correct()[:m], test.correct()[:m]
    measured = m > 1
    return {
        "target": judge.split.target,
        "members_curve": curve,
        "ratio_error": {
            "id": _number(ratio_error(id_correct)) if measured else None,
            "ood": _number(ratio_error(ood_correct)) if measured else None,
        },
        "q_statistic": {
            "id": _number(q_statistic(id_correct)) if measured else None,
            "ood": _number(q_statistic(ood_correct)) if measured else None,
        },
        "distance_to_average": [distance(theta, uniform) for theta in members],
        "distance_to_start": [distance(theta, start) for theta in members],
        "start_norm": distance(start, {name: start[name] * 0 for name in start}),
        "average_minus_ensemble": float(accuracy(averaged, test.labels))
        - float(accuracy(ensemble, test.labels)),
        "average_ensemble_disagreement": float((averaged.argmax(1) != ensemble.argmax(1)).double().mean()),
        "target_images": len(test.labels),
        "validation_images": len(validation.labels),
    }


def _subsets(members: int, size: int, count: int, seed: int) -> list[tuple[int, ...]]:
    """Different subsets of the members: all of them if there are few, else random ones."""
    if math.comb(members, size) <= count:
        return _shuffled(list(itertools.combinations(range(members), size)), seed, size)
    random = stream("subsets", seed, size)
    chosen: dict[tuple[int, ...], None] = {}
    while len(chosen) < count:
        chosen[tuple(sorted(int(i) for i in random.choice(members, size, replace=False)))] = None
    return list(chosen)


def _shuffled(subsets: list[tuple[int, ...]], seed: int, size: int) -> list[tuple[int, ...]]:
    order = stream("subsets", seed, size).permutation(len(subsets))
    return [subsets[int(i)] for i in order]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _number(value: Any) -> float | str | None:
    """A measure as JSON can hold it."""
    number = float(value)
    if math.isnan(number):
        return None
    return "infinite" if math.isinf(number) else number
