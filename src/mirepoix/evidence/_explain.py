"""Numbers that say what to ship and why: accuracies, diversity, calibration, weights, and the verdict on them.

Everything is computed from predictions and weights that are there; nothing is trained or forwarded, but for the
invariance across source domains, which is measured before. Accuracies are means over the domains of a side, and means
over targets where there are several.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mirepoix import __version__
from mirepoix.bootstrap import Interval
from mirepoix.calibration import fit_temperature, scale
from mirepoix.checkpoints import open_weights
from mirepoix.diversity import (
    distance_to_average,
    q_diversity,
    ratio_error,
    ratio_error_matrix,
    weight_cosine_matrix,
    weight_distance_matrix,
)
from mirepoix.ensembles import average_logits
from mirepoix.evidence._figures import accuracy_against_members, gain_against_diversity
from mirepoix.evidence._paired import Draws, draw_images
from mirepoix.evidence._source_invariance import SourceInvariance
from mirepoix.evidence._sources import Block, Source
from mirepoix.evidence._verdict import LABELS, Measured, judged, verdict
from mirepoix.landscape import bvcl
from mirepoix.metrics import accuracy, ece, nll
from mirepoix.predictions import Predictions
from mirepoix.seeds import stream
from mirepoix.types import InputError
from mirepoix.weights import distance

__all__ = ["FORMAT", "explain"]

FORMAT = 1
"""Number of the layout of ``explanation.json``."""

ROLES = ("mean", "best", "average", "greedy", "wise", "moving_average", "ensemble")
"""What is compared, in the order of the table."""

PAIRS = (
    ("average", "mean"),
    ("average", "best"),
    ("average", "ensemble"),
    ("greedy", "average"),
    ("ensemble", "mean"),
    ("ensemble", "best"),
)
"""Differences that are judged, the first minus the second."""

SIDES = ("id", "ood")
CALIBRATED = ("average", "best", "ensemble", "greedy", "wise", "moving_average")
BINS = 10
WORK = 2e9
"""Numbers read for the curves over subsets; with more samples and classes there are fewer subsets."""


def explain(
    source: Source, *, resamples: int = 1000, seed: int = 0, invariance: SourceInvariance | None = None
) -> dict[str, Any]:
    """What to ship, whether to trust it, and the numbers behind both.

    Args:
        source: From `source_of_folder` or `source_of_files`.
        resamples: Draws of the intervals, which are over images.
        seed: Of the draws and of the choice of subsets.
        invariance: From `source_invariance`, if it is to be part of it.

    Returns:
        Plain values, ready for JSON; accuracies are fractions:

        - ``format``, ``mirepoix``, ``title``, ``kind``, ``facts``, ``command``, ``data_seeds``, ``resamples``,
          ``seed``, ``one_start`` (whether members are taken for networks from one start: a job, or weights are given);
        - ``verdict``: as `mirepoix.evidence._verdict.verdict` returns it;
        - ``total``: ``name``, ``members``, ``images``, ``rows`` (``name``, ``label``, ``forwards``, and accuracy,
          ``low`` and ``high`` under ``id`` and ``ood``), ``comparisons`` (``side``, ``first``, ``second``, ``value``,
          ``low``, ``high``, ``seen``);
        - ``blocks``: for each target and data seed the same, and ``individuals`` (rows of the members),
          ``diversity``, ``curve``, ``gain``, ``calibration``, ``loss``, ``weights``, ``notes``;
        - ``terms``: bias, variance, covariance and locality for each target with several data seeds;
        - ``invariance``: as `SourceInvariance.to_dict` returns it, or ``None``.

    Raises:
        InputError: For weights that do not fit together or cannot be read.
    """
    measured = [_measured(block, resamples, seed) for block in source.blocks]
    total = _total(source.blocks, measured, resamples, seed)
    blocks = [
        _block_numbers(block, each, resamples, seed)
        for block, each in zip(source.blocks, measured, strict=True)
    ]
    notes = [note for block in source.blocks for note in block.notes]
    remarks = [remark for block in source.blocks for remark in block.remarks]
    terms, skipped = _terms(source.blocks, resamples, seed)
    one_start = source.kind != "files" or any(block.weights or block.start for block in source.blocks)
    return {
        "format": FORMAT,
        "mirepoix": __version__,
        "title": source.title,
        "kind": source.kind,
        "facts": [list(fact) for fact in source.facts],
        "command": source.command,
        "data_seeds": source.data_seeds,
        "resamples": resamples,
        "seed": seed,
        "one_start": one_start,
        "verdict": verdict(
            total,
            measured,
            data_seeds=source.data_seeds,
            notes=notes,
            remarks=[*remarks, *skipped],
            one_start=one_start,
        ),
        "total": _numbers(total, source.blocks),
        "blocks": blocks,
        "terms": terms,
        "invariance": None if invariance is None else invariance.to_dict(),
    }


# Predictors and their accuracies.


def _best(block: Block) -> str | None:
    """The member with the highest ID accuracy, the mean over source domains; the first among equals."""
    if block.id is None:
        return None
    shares = _shares(block.id)
    scores = (block.id.of(block.members).correct().double() @ shares).tolist()
    top = max(scores)
    return next(
        name
        for name, score in zip(block.members, scores, strict=True)
        if math.isclose(score, top, rel_tol=1e-9)
    )


def _shares(predictions: Predictions) -> Tensor:
    """What each image adds to the accuracy: domains weigh the same, and images of one domain."""
    domains, place, counts = torch.unique(predictions.domains, return_inverse=True, return_counts=True)
    shares: Tensor = 1 / (len(domains) * counts.double()[place])
    return shares


def _logits(block: Block, predictions: Predictions) -> dict[str, Tensor]:
    """The logits of every predictor that has some, by its role or its name."""
    stack = predictions.of(block.members).logits
    found = dict(zip(block.members, stack, strict=True))
    for role, name in block.combined.items():
        found[role] = predictions.of([name]).logits[0]
    if len(block.members) > 1:
        found["ensemble"] = average_logits(stack)
    best = _best(block)
    if best is not None:
        found["best"] = found[best]
    return found


def _correct(block: Block, predictions: Predictions) -> dict[str, Tensor]:
    """Whether every predictor is right on each image; of the mean member, how many members are."""
    found = {
        name: (logits.argmax(-1) == predictions.labels).double()
        for name, logits in _logits(block, predictions).items()
    }
    found["mean"] = torch.stack([found[name] for name in block.members]).mean(0)
    return found


def _strata(
    block: Block, side: str, names: Sequence[str], *, divide: float = 1.0
) -> dict[object, NDArray[np.float64]]:
    """What each image adds to the score of each predictor, by domain; the same images have the same key."""
    predictions = block.side(side)
    assert predictions is not None
    right = _correct(block, predictions)
    shares = _shares(predictions) / divide
    rows = torch.stack([right[name] * shares for name in names], dim=1).numpy()  # (samples, names)
    found: dict[object, NDArray[np.float64]] = {}
    for number in torch.unique(predictions.domains).tolist():
        inside = (predictions.domains == number).numpy()
        labels = predictions.labels.numpy()[inside]
        # Other splits share ID images of a domain within a data seed, and OOD images of a target between data seeds.
        split = block.data_seed if side == "id" else None
        mark = hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest()
        found[(predictions.domain_names[number], split, mark)] = rows[inside]
    return found


def _measured(block: Block, resamples: int, seed: int) -> Measured:
    sides: dict[str, Draws] = {}
    errors_apart: dict[str, float] = {}
    missing: dict[str, list[str]] = {}
    for side in SIDES:
        predictions = block.side(side)
        if predictions is None:
            continue
        names = list(_correct(block, predictions))
        sides[side] = draw_images(names, _strata(block, side, names), resamples=resamples, seed=seed)
        if len(block.members) > 1:
            errors_apart[side] = float(_apart(predictions.of(block.members).correct()).mean())
        seen = set(torch.unique(predictions.labels).tolist())
        missing[side] = [name for k, name in enumerate(predictions.classes) if k not in seen]
    return Measured(
        block.name,
        block.members,
        sides.get("id"),
        sides.get("ood"),
        _best(block),
        errors_apart,
        {name: _calibration(block, name) for name in CALIBRATED},
        missing,
        _optimism(block, seed),
        len(some.classes) if (some := block.id or block.ood) is not None else 0,
    )


def _optimism(block: Block, seed: int, splits: int = 200) -> float:
    r"""How much of the lead of the best member on ID validation is the choice itself.

    The images are halved at random; the best member on one half leads the mean member by less on the other half, on
    average over the splits. What it leads by less is the part that choosing gives.
    """
    if block.id is None or len(block.members) < 2 or len(block.id.labels) < 4:
        return 0.0
    right = (block.id.of(block.members).correct().double() * _shares(block.id)).numpy()  # (members, images)
    shares = _shares(block.id).numpy()
    images = right.shape[1]
    random = stream("optimism", seed)
    lost = []
    for _ in range(splits):
        order = random.permutation(images)
        first, second = order[: images // 2], order[images // 2 :]
        chosen = int((right[:, first].sum(1) / shares[first].sum()).argmax())
        scores = right[:, second].sum(1) / shares[second].sum()
        lost.append(float(scores[chosen] - scores.mean()))
    scores = right.sum(1)
    return max(0.0, float(scores.max() - scores.mean()) - math.fsum(lost) / splits)


def _apart(values: Tensor) -> Tensor:
    """Of each image, the share of pairs of members whose values (classes, or right and wrong) are different."""
    pairs = list(itertools.combinations(range(len(values)), 2))
    share = torch.zeros(values.shape[1], dtype=torch.float64)
    for i, j in pairs:
        share += values[i] != values[j]
    return share / len(pairs)


def _total(blocks: Sequence[Block], measured: Sequence[Measured], resamples: int, seed: int) -> Measured:
    """All blocks together: means over them, with images that several of them share drawn once."""
    if len(blocks) == 1:
        return measured[0]
    sides: dict[str, Draws] = {}
    for side in SIDES:
        found = [getattr(each, side) for each in measured]
        if any(draws is None for draws in found):
            continue
        names = [name for name in ROLES if all(name in draws.names for draws in found)]
        if not names:  # members without any combination
            continue
        strata: dict[object, NDArray[np.float64]] = {}
        for block in blocks:
            for key, rows in _strata(block, side, names, divide=len(blocks)).items():
                strata[key] = strata[key] + rows if key in strata else rows
        sides[side] = draw_images(names, strata, resamples=resamples, seed=seed)
    sizes = {len(block.members) for block in blocks}
    # Names of members mean other weights in other blocks; what counts here is how many there are.
    members = max(blocks, key=lambda block: len(block.members)).members
    targets = len({block.target for block in blocks})
    name = f"mean over {targets} targets" if targets > 1 else f"mean over {len(blocks)} data seeds"
    if max(sizes) == 1:
        members = members[:1]
    return Measured(
        name,
        members,
        sides.get("id"),
        sides.get("ood"),
        calibration=_mean_calibration([each.calibration for each in measured]),
        optimism=math.fsum(each.optimism for each in measured) / len(measured),
    )


def _numbers(measured: Measured, blocks: Sequence[Block]) -> dict[str, Any]:
    """The table and the comparisons of one block, or of all."""
    m = len(measured.members)
    some = measured.id or measured.ood
    rows, comparisons = [], []
    roles: Sequence[str] = () if some is None else ROLES if m > 1 else ("mean",)
    for role in roles:
        sides = {
            side: _interval(draws.of(role)) if draws is not None and role in draws.names else None
            for side, draws in (("id", measured.id), ("ood", measured.ood))
        }
        if any(sides.values()):
            label = f"{measured.best} (best on ID)" if role == "best" and measured.best else LABELS[role]
            if m == 1:
                label = "the member" if len(blocks) > 1 else measured.members[0]
            rows.append(
                {
                    "name": role if m > 1 else "member",
                    "label": label,
                    "forwards": m if role == "ensemble" else 1,
                    **sides,
                }
            )
    for side, draws in (("id", measured.id), ("ood", measured.ood)):
        for first, second in PAIRS:
            if draws is not None and m > 1 and {first, second} <= set(draws.names):
                interval = draws.difference(first, second)
                differing = draws.differing(first, second)
                comparisons.append(
                    {
                        "side": side,
                        "first": first,
                        "second": second,
                        **_interval(interval),
                        "seen": judged(interval, differing, draws.images),
                        "differing": differing,
                    }
                )
    return {
        "name": measured.name,
        "members": m,
        "blocks": len(blocks),
        "images": {
            side: draws.images if draws is not None else 0
            for side, draws in (("id", measured.id), ("ood", measured.ood))
        },
        "rows": rows,
        "comparisons": comparisons,
        "optimism": measured.optimism,
        "calibration": dict(measured.calibration),
    }


def _interval(interval: Interval) -> dict[str, Any]:
    return {"value": _plain(interval.value), "low": _plain(interval.low), "high": _plain(interval.high)}


def _plain(value: Any) -> float | str | None:
    """A number as JSON can hold it."""
    number = float(value)
    if math.isnan(number):
        return None
    return "infinite" if math.isinf(number) else number


# What lies behind the accuracies.


def _block_numbers(block: Block, measured: Measured, resamples: int, seed: int) -> dict[str, Any]:
    individuals = []
    for name in block.members:
        sides = {
            side: _interval(draws.of(name)) if draws is not None else None
            for side, draws in (("id", measured.id), ("ood", measured.ood))
        }
        individuals.append({"name": name, "label": name, "forwards": 1, **sides})
    several = len(block.members) > 1
    return {
        **_numbers(measured, [block]),
        "target": block.target,
        "data_seed": block.data_seed,
        "names": list(block.members),
        "best": measured.best,
        "individuals": individuals,
        "diversity": {
            side: _diversity(predictions.of(block.members), resamples, seed)
            for side in SIDES
            if several and (predictions := block.side(side)) is not None
        },
        "curve": _curve(block, seed),
        "gain": _gain(block, seed),
        "loss": {
            side: _loss(predictions.of(block.members))
            for side in SIDES
            if several and (predictions := block.side(side)) is not None
        },
        "weights": _weights(block),
        "notes": list(block.notes),
    }


def _diversity(predictions: Predictions, resamples: int, seed: int) -> dict[str, Any]:
    """How differently members err and predict, with intervals over images."""
    correct = predictions.correct()
    apart = _apart(predictions.logits.argmax(-1))
    spread = draw_images(
        ["disagreement"], {"all": apart.numpy()[:, None] / len(apart)}, resamples=resamples, seed=seed
    )
    return {
        **_drawn_counts(correct, resamples, seed),
        "disagreement": _interval(spread.of("disagreement")),
        "matrix": [[_plain(value) for value in row] for row in ratio_error_matrix(correct).tolist()],
    }


def _drawn_counts(correct: Tensor, resamples: int, seed: int) -> dict[str, Any]:
    """Ratio-error and Q-diversity over draws of images: all counts of pairs from how often each pattern comes."""
    patterns, times = np.unique(correct.numpy().T, axis=0, return_counts=True)  # (patterns, members)
    i, j = np.triu_indices(len(correct), 1)
    a, b = patterns[:, i].astype(np.float64), patterns[:, j].astype(np.float64)  # (patterns, pairs)
    tables = [a * b, a * (1 - b), (1 - a) * b, (1 - a) * (1 - b)]
    random = stream("diversity of images", seed)
    ratios, qs = [], []
    for first in range(0, resamples, 100):
        size = min(100, resamples - first)
        drawn = random.multinomial(correct.shape[1], times / correct.shape[1], size=size)
        both, one, other, neither = (drawn @ table for table in tables)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios.append(((one + other) / neither).mean(1))
            product, crossed = both * neither, one * other
            qs.append((1 - (product - crossed) / (product + crossed)).mean(1))
    return {
        "ratio_error": _with_draws(float(ratio_error(correct)), np.concatenate(ratios)),
        "q_diversity": _with_draws(float(q_diversity(correct)), np.concatenate(qs)),
    }


def _with_draws(value: float, draws: NDArray[np.float64]) -> dict[str, Any]:
    """As `mirepoix.bootstrap.bootstrap`: draws that are not finite are left out, and too many of them end it."""
    known = draws[np.isfinite(draws)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) >= 0.9 * len(draws) else (np.nan, np.nan)
    return _interval(Interval(value, float(low), float(high)))


def _subsets(predictions: Predictions) -> int:
    """How many subsets can be looked at in reasonable time."""
    return int(min(50, max(3, WORK / max(1, predictions.logits.numel() * len(predictions) * 10))))


def _curve(block: Block, seed: int) -> dict[str, Any] | None:
    """OOD accuracy against the number of members: ensembles of these predictions, averages as the job measured them."""
    predictions = block.ood or block.id
    if predictions is None or len(block.members) < 2:
        return None
    stack = predictions.of(block.members).logits
    if not bool(stack.isfinite().all()):
        return None
    # Averaging logits is linear, so the average of these "weights" is the ensemble.
    thetas = [{"logits": logits} for logits in stack]
    ensemble = accuracy_against_members(
        thetas,
        lambda theta: float(accuracy(theta["logits"], predictions.labels)),
        subsets=_subsets(predictions),
        seed=seed,
    )["runs"]
    averages = None
    if block.ood is not None:
        points = [p for p in block.recorded.get("members_curve", []) if p.get("average") is not None]
        if len(points) > 1:
            averages = [
                {"members": p["members"], "mean": p["average"], "error": None, "subsets": p.get("subsets", 1)}
                for p in points
            ]
    return {
        "side": "ood" if block.ood is not None else "id",
        "members": len(block.members),
        "average": averages,
        "ensemble": ensemble,
    }


def _gain(block: Block, seed: int) -> dict[str, Any] | None:
    """What ensembles of subsets gain over their members, against how differently these fail."""
    predictions = block.ood or block.id
    if predictions is None or len(block.members) < 3:
        return None
    ours = predictions.of(block.members)
    if not bool(ours.logits.isfinite().all()):
        return None
    found = gain_against_diversity(
        [{"logits": logits} for logits in ours.logits],
        lambda theta: float(accuracy(theta["logits"], ours.labels)),
        ours.correct(),
        sizes=range(2, min(len(block.members) - 1, 5) + 1),
        subsets=_subsets(predictions),
        seed=seed,
    )
    return {"side": "ood" if block.ood is not None else "id", **found}


def _calibration(block: Block, role: str) -> dict[str, Any] | None:
    """What the confidence of a predictor is worth; its temperature is fitted on ID validation, never on OOD data."""
    temperature = None
    found: dict[str, Any] = {}
    for side in SIDES:
        predictions = block.side(side)
        if predictions is None:
            continue
        logits = _logits(block, predictions).get(role)
        if logits is None:
            return None
        if side == "id":
            temperature = fit_temperature(logits, predictions.labels)
        found[side] = _reliability(logits, predictions.labels)
        if temperature is not None and not temperature.at_bound:
            tempered = scale(logits, temperature)
            found[side]["ece_tempered"] = _plain(ece(tempered, predictions.labels, bins=BINS))
            found[side]["nll_tempered"] = _plain(nll(tempered, predictions.labels))
    usable = temperature is not None and not temperature.at_bound
    found["temperature"] = temperature.value if temperature is not None and usable else None
    return found


def _reliability(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    confidence, guess = logits.double().softmax(1).max(1)
    right = (guess == labels).double()
    place = (confidence * BINS).ceil().clamp(1, BINS).long() - 1
    bins = []
    for k in range(BINS):
        inside = place == k
        count = int(inside.sum())
        bins.append(
            {
                "low": k / BINS,
                "high": (k + 1) / BINS,
                "images": count,
                "confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": float(right[inside].mean()) if count else None,
            }
        )
    return {
        "nll": _plain(nll(logits, labels)),
        "ece": float(ece(logits, labels, bins=BINS)),
        "confidence_gap": float((confidence - right).mean()),
        "bins": bins,
    }


def _mean_calibration(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over blocks of the numbers that the verdict reads, and the bins of all images together."""
    result: dict[str, Any] = {}
    for role in found[0]:
        each = [calibration.get(role) for calibration in found]
        known = [one for one in each if one is not None]
        if len(known) != len(found):
            continue
        result[role] = {"temperature": _mean([one["temperature"] for one in known])}
        for side in SIDES:
            if all(side in one for one in known):
                sides = [one[side] for one in known]
                keys = ("nll", "ece", "confidence_gap", "ece_tempered", "nll_tempered")
                result[role][side] = {key: _mean([one.get(key) for one in sides]) for key in keys}
                result[role][side]["bins"] = _pooled([one["bins"] for one in sides])
    return result


def _mean(values: Iterable[Any]) -> float | None:
    known = list(values)
    if not known or not all(isinstance(value, float) for value in known):
        return None
    return math.fsum(known) / len(known)


def _pooled(bins: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    result = []
    for same in zip(*bins, strict=True):
        images = sum(one["images"] for one in same)
        result.append(
            {
                "low": same[0]["low"],
                "high": same[0]["high"],
                "images": images,
                **{
                    key: sum(one["images"] * one[key] for one in same if one["images"]) / images
                    if images
                    else None
                    for key in ("confidence", "accuracy")
                },
            }
        )
    return result


def _loss(predictions: Predictions) -> dict[str, Any]:
    """The cross-entropy of members and of their ensemble; what lies between is the diversity that pays."""
    members = [float(nll(logits, predictions.labels)) for logits in predictions.logits]
    ensemble = float(nll(average_logits(predictions.logits), predictions.labels))
    member = math.fsum(members) / len(members)
    return {
        "member": _plain(member),
        "ensemble": _plain(ensemble),
        "diversity": _plain(max(member - ensemble, 0.0) if math.isfinite(member) else math.nan),
    }


# Weights.


def _weights(block: Block) -> dict[str, Any] | None:
    """How far members lie from each other, their average and their start."""
    names = [name for name in block.members if name in block.weights]
    if len(names) < 2:
        return None
    thetas = [open_weights(block.weights[name]) for name in names]
    try:
        between = weight_distance_matrix(thetas)
        centre = distance_to_average(thetas).tolist()
        start, cosines = None, None
        if block.start is not None:
            origin = open_weights(block.start)
            start = [distance(theta, origin) for theta in thetas]
            cosines = weight_cosine_matrix(thetas, relative_to=origin)
    except InputError as error:
        files = ", ".join(f"{i}: {block.weights[name]}" for i, name in enumerate(names))
        raise InputError(f"weights: {error} The members are, in order: {files}.") from None
    recorded = block.recorded.get("distance_to_start")
    if start is None and recorded is not None and len(recorded) == len(names) == len(block.members):
        # Without the file of the start, three sides of a triangle give the angle between two of them.
        start = [float(length) for length in recorded]
        a = torch.tensor(start, dtype=torch.float64)
        cosines = (a[:, None] ** 2 + a**2 - between**2) / (2 * a[:, None] * a)
        cosines = cosines.clamp(-1, 1).fill_diagonal_(1.0)
    norm = block.recorded.get("start_norm")
    return {
        "members": names,
        "between": [[_plain(value) for value in row] for row in between.tolist()],
        "to_average": [_plain(value) for value in centre],
        "to_start": None if start is None else [_plain(value) for value in start],
        "cosines": None
        if cosines is None
        else [[_plain(value) for value in row] for row in cosines.tolist()],
        "start_norm": _plain(norm) if norm is not None else None,
    }


# Bias, variance, covariance, locality.


def _terms(blocks: Sequence[Block], resamples: int, seed: int) -> tuple[list[dict[str, Any]], list[str]]:
    """For each target with several data seeds, what the OOD error is made of; and what could not be told, and why."""
    found, skipped = [], []
    for target in dict.fromkeys(block.target for block in blocks):
        same = [block for block in blocks if block.target == target]
        tests = [block.ood for block in same if block.ood is not None]
        count = min(len(block.members) for block in same)
        if target is None or len(tests) != len(same) or len(same) < 2 or count < 2:
            continue
        if any(not torch.equal(test.labels, tests[0].labels) for test in tests):
            continue
        chosen = [block.members[:count] for block in same]
        logits = torch.stack([test.of(names).logits for test, names in zip(tests, chosen, strict=True)])
        whole = all(len(block.members) == count and "average" in block.combined for block in same)
        averages = None
        if whole:
            averages = torch.stack(
                [
                    test.of([block.combined["average"]]).logits[0]
                    for test, block in zip(tests, same, strict=True)
                ]
            )
        if any(
            name not in block.weights for block, names in zip(same, chosen, strict=True) for name in names
        ):
            skipped.append(
                f"Weights of some members are missing, so bias, variance, covariance and locality on {target} are not "
                "measured."
            )
            continue
        thetas = [
            [open_weights(block.weights[name]) for name in names]
            for block, names in zip(same, chosen, strict=True)
        ]
        terms = bvcl(
            logits,
            tests[0].labels,
            thetas,
            averages=averages,
            given="logits",
            resamples=min(resamples, 500),
            seed=seed,
        )
        found.append({"target": target, "replicates": len(same), "members": count, **terms.to_dict()})
    return found, skipped
