"""Outcomes of all targets and data seeds become rows, means over targets, and words of caution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mirepoix import __version__
from mirepoix.data import Task
from mirepoix.experiment._start import Start
from mirepoix.experiment._trust import caution, verdict
from mirepoix.models import has_batch_norm
from mirepoix.recipe import Recipe
from mirepoix.runs import Run
from mirepoix.strategies import diwa, fine_tuning, moving_average, wise

if TYPE_CHECKING:
    from mirepoix.experiment._outcome import Outcome

__all__ = ["build_report"]

LABELS = {
    ("fine_tuning", "mean"): "mean member",
    ("fine_tuning", "best"): "best on ID validation",
    ("wise", "interpolate"): "WiSE",
    ("moving_average", "best"): "moving average",
    ("diwa", "average"): "average (DiWA)",
    ("diwa", "greedy"): "greedy soup",
    ("diwa", "ensemble"): "ensemble of logits",
}


def equations(share: float, train_name: str = "Train") -> dict[tuple[str, str], str]:
    """The equation of every row, printed by the strategies themselves."""

    def train(theta: str, task: str, run: Run) -> str:
        text = f"{train_name}({theta}, {task}; c_i)"
        return f"mean_t theta_t along {text}" if run.collect == "moving_average" else text

    def combined(prefix: str) -> Callable[[Any], str]:
        return lambda terms: prefix + next(iter(terms))

    runs = [Run()]
    start, task = "theta_pt", "D"
    return {
        ("fine_tuning", "mean"): fine_tuning(train, start, task, runs, combined("")),
        ("fine_tuning", "best"): fine_tuning(train, start, task, runs, combined("best_i ")),
        ("wise", "interpolate"): wise(
            train,
            start,
            task,
            runs[0],
            share,
            lambda terms, shares: " + ".join(f"{s:g} {t}" for s, t in zip(shares, terms, strict=True)),
        ),
        ("moving_average", "best"): "best_i " + moving_average(train, start, task, runs[0]),
        ("diwa", "average"): diwa(train, start, task, runs, combined("1/M sum_i ")),
        ("diwa", "greedy"): diwa(train, start, task, runs, combined("1/|K| sum_(i in K) ")),
        ("diwa", "ensemble"): "1/M sum_i f(x; " + diwa(train, start, task, runs, combined("")) + ")",
    }


def build_report(
    recipe: Recipe, task: Task, start: Start, outcomes: Sequence[Outcome], targets: Sequence[str]
) -> dict[str, Any]:
    """Everything the page shows, as plain values; the same outcomes give the same values."""
    printed = equations(recipe.evidence.wise, recipe.objective.train)
    kinds = list(LABELS)

    def cell(kind: tuple[str, str], chosen: Sequence[Outcome]) -> list[dict[str, Any]]:
        return [
            row for outcome in chosen for row in outcome.rows if (row["strategy"], row["combine"]) == kind
        ]

    def described(kind: tuple[str, str], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        def most(field: str) -> int:
            return max(int(row[field]) for row in rows)

        return {
            "strategy": kind[0],
            "combine": kind[1],
            "label": LABELS[kind],
            "equation": printed[kind],
            "members": most("members"),
            "runs": most("runs"),
            "inference_cost": most("inference_cost"),
        }

    rows = []
    for target in targets:
        chosen = [outcome for outcome in outcomes if outcome.target == target]
        for kind in kinds:
            found = cell(kind, chosen)
            per_seed = [
                {
                    "data_seed": outcome.data_seed,
                    "id_accuracy": row["id_accuracy"],
                    "ood_accuracy": row["ood_accuracy"],
                    "members": row["members"],
                }
                for outcome, row in zip(chosen, found, strict=True)
            ]
            rows.append(
                {**described(kind, found), "target": target, **_moments(per_seed), "per_seed": per_seed}
            )

    averages = []
    for kind in kinds:
        per_seed = []
        for seed in recipe.data.seeds:
            found = cell(kind, [outcome for outcome in outcomes if outcome.data_seed == seed])
            per_seed.append(
                {
                    "data_seed": seed,
                    "id_accuracy": sum(row["id_accuracy"] for row in found) / len(found),
                    "ood_accuracy": sum(row["ood_accuracy"] for row in found) / len(found),
                }
            )
        averages.append(
            {
                **described(kind, cell(kind, outcomes)),
                **_moments(per_seed),
                "per_seed": per_seed,
                "targets": len(targets),
            }
        )

    members = max(row["members"] for row in rows)  # fewer than planned where every target lost some
    base = recipe.base_run()
    probe = recipe.probe_run()
    report = {
        "format": 1,
        "mirepoix": __version__,
        "name": recipe.name,
        "title": recipe.title,
        "source": recipe.source,
        "equation": f"theta = 1/{members} sum_i {recipe.objective.train}(theta_pt, D; c_i)",
        "task": {
            "name": task.name,
            "classes": list(task.classes),
            "domains": [{"name": domain.name, "images": len(domain)} for domain in task.domains],
            "notes": list(task.notes),
        },
        "start": start.description,
        "network": start.network.name,
        "protocol": {
            "members": recipe.members,
            "objective": _objective(recipe),
            "steps": base.steps,
            "probe_steps": probe.steps if probe else 0,
            "data_seeds": list(recipe.data.seeds),
            "holdout": recipe.data.holdout,
            "validation": f"un-augmented {recipe.data.holdout:.0%} of every source domain",
            "batch_norm": _batch_norm(start),
            "target_images": "all images of the target domain",
        },
        "targets": list(targets),
        "runs": [row for outcome in outcomes for row in outcome.runs],
        "rows": rows,
        "averages": averages,
        "why": [{"data_seed": outcome.data_seed, **outcome.why} for outcome in outcomes],
    }
    report["trust"] = caution(report)
    report["verdict"] = verdict(report)
    return report


def _moments(per_seed: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Mean over data seeds; the error is the population deviation over the root of their number, as in DomainBed."""
    values: dict[str, float | None] = {}
    n = len(per_seed)
    for part in ("id", "ood"):
        numbers = [entry[f"{part}_accuracy"] for entry in per_seed]
        mean = sum(numbers) / n
        deviation = math.sqrt(sum((x - mean) ** 2 for x in numbers) / n)
        values[f"{part}_accuracy"] = mean
        values[f"{part}_standard_error"] = deviation / math.sqrt(n) if n > 1 else None
    return values


def _objective(recipe: Recipe) -> str:
    """Its name, and the options that the recipe sets."""
    options = [f"{name} = {value}" for name, value in recipe.objective.options.items()]
    return ", ".join([recipe.objective.name, *options])


def _batch_norm(start: Start) -> str:
    if not has_batch_norm(start.network):
        return "none"
    return "frozen, averaged" if start.network.frozen_batch_norm else "re-estimated after averaging"
