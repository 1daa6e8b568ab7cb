"""The verdict in one sentence, and when not to trust it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["caution", "verdict"]


def _row(
    rows: list[dict[str, Any]], strategy: str, combine: str, target: str | None = None
) -> dict[str, Any]:
    return next(
        row
        for row in rows
        if row["strategy"] == strategy and row["combine"] == combine and row.get("target") == target
    )


def verdict(report: Mapping[str, Any]) -> str:
    """What averaging all members gave, against one run; then which single model was best, and the ensemble.

    The first sentence is always about the plain average, which nothing was chosen for; a sentence about
    whatever scored best on the target would read like advice to choose by the target.
    """
    averages = report["averages"]
    single = _row(averages, "fine_tuning", "best")
    averaged = _row(averages, "diwa", "average")
    ensemble = _row(averages, "diwa", "ensemble")
    targets = report["targets"]
    wins = sum(
        _row(report["rows"], "diwa", "average", target)["ood_accuracy"]
        > _row(report["rows"], "fine_tuning", "best", target)["ood_accuracy"]
        for target in targets
    )
    gain = averaged["ood_accuracy"] - single["ood_accuracy"]
    side = "above" if gain >= 0 else "below"
    where = f" (better on {wins} of {len(targets)} target domains)" if len(targets) > 1 else ""
    text = (
        f"The average of {averaged['members']} members: {_percent(averaged['ood_accuracy'])} OOD, "
        f"{_points(abs(gain))} {side} the run that is best on ID validation{where}, at the cost of one model."
    )
    cheap = [row for row in averages if row["inference_cost"] == 1 and row["combine"] != "mean"]
    first = max(cheap, key=lambda row: row["ood_accuracy"])
    if first["ood_accuracy"] > averaged["ood_accuracy"]:
        text += f" Best single model here: {first['label']}, {_percent(first['ood_accuracy'])}."
    more = ensemble["ood_accuracy"] - averaged["ood_accuracy"]
    if ensemble["inference_cost"] > 1:
        text += (
            f" The ensemble of the same members: {_percent(ensemble['ood_accuracy'])} "
            f"({100 * more:+.1f} points), at {ensemble['inference_cost']} times the cost of every prediction."
        )
    diverged = sum(row["status"] == "diverged" for row in report["runs"])
    if diverged:
        text += f" {diverged} of {len(report['runs'])} runs diverged and are left out."
    return text


def caution(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Everything in the numbers that should make a reader hesitate."""
    items: list[dict[str, Any]] = []

    def say(level: str, target: str | None, text: str) -> None:
        items.append({"level": level, "target": target, "text": text})

    seeds = report["protocol"]["data_seeds"]
    images = {domain["name"]: domain["images"] for domain in report["task"]["domains"]}
    for target in report["targets"]:
        mean = _row(report["rows"], "fine_tuning", "mean", target)
        averaged = _row(report["rows"], "diwa", "average", target)
        best = _row(report["rows"], "fine_tuning", "best", target)
        fall = mean["ood_accuracy"] - averaged["ood_accuracy"]
        if averaged["members"] > 1 and fall > 0:
            say(
                "warning",
                target,
                f"The average is {_points(fall)} below its mean member. Members may lie too far apart to be "
                "averaged: use a milder space, fewer steps, or a shared linear probe.",
            )
        noise = _binomial(best["ood_accuracy"], images[target])
        gap = abs(averaged["ood_accuracy"] - best["ood_accuracy"])
        if gap < 2 * noise:
            say(
                "note",
                target,
                f"With {images[target]} target images, accuracies are known to about ±{100 * noise:.1f} points; the "
                f"average differs from the best single run by {_points(gap)}, which may be chance.",
            )
    for entry in report["why"]:
        if entry.get("ratio_error", {}).get("ood") == 0:
            say(
                "warning",
                entry["target"],
                "All members fail on the same images: nothing can be gained by combining.",
            )
        disagreement = entry.get("average_ensemble_disagreement")
        if disagreement is not None and disagreement > 0.1:
            say(
                "warning",
                entry["target"],
                f"The average and the ensemble disagree on {_percent(disagreement)} of the images (data seed "
                f"{entry['data_seed']}): the members are not close enough for one to stand for the other.",
            )
    saturated = [
        row["target"]
        for row in report["rows"]
        if (row["strategy"], row["combine"]) == ("fine_tuning", "best") and row["id_accuracy"] > 0.995
    ]
    if saturated:
        say(
            "note",
            None,
            f"ID validation is nearly perfect ({', '.join(saturated)}), so it can hardly tell members apart: choosing "
            "by it, and the greedy soup, are close to chance there.",
        )
    diverged = [row for row in report["runs"] if row["status"] == "diverged"]
    for row in diverged:
        say(
            "warning",
            row["target"],
            f"Run {row['run']} (data seed {row['data_seed']}) is left out: {row['message']}",
        )
    if len(seeds) == 1:
        say(
            "note",
            None,
            "One data seed: there are no standard errors over splits. Set data.seeds = [0, 1, 2] to see how much of a "
            "difference is luck.",
        )
    for note in report["task"]["notes"]:
        say("warning", None, note)
    say(
        "note",
        None,
        "No weights were chosen by OOD accuracy. Comparing strategies by it is fair over several targets; choosing "
        "one for a target by that target's own column is not.",
    )
    return items


def _binomial(accuracy: float, images: int) -> float:
    return math.sqrt(max(accuracy * (1 - accuracy), 1e-9) / images)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f} points"
