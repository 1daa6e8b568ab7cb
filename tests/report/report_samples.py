"""Plausible reports, made by arithmetic: numbers of the right size with every corner a real job can have."""

from __future__ import annotations

import math
from typing import Any

LABELS = [
    # strategy, combine, label, equation, gain in points over the mean member
    ("fine_tuning", "mean", "mean member", "Train(theta_pt, D; c_i)", 0.0),
    ("fine_tuning", "best", "best on ID validation", "argmax_i Train(theta_pt, D; c_i)", 1.1),
    ("wise", "average", "WiSE", "1/2 theta_pt + 1/2 Train(theta_pt, D; c_0)", 0.4),
    ("moving_average", "best", "moving average", "MA Train(theta_pt, D; c_i)", 2.2),
    ("diwa", "average", "average (DiWA uniform)", "1/M sum_i Train(theta_pt, D; c_i)", 4.8),
    ("diwa", "greedy", "greedy soup", "1/|K| sum_(i in K) Train(theta_pt, D; c_i)", 4.1),
    ("diwa", "ensemble", "ensemble of logits", "f(Train(theta_pt, D; c_1)) + ...", 4.5),
]


def wave(*parts: float) -> float:
    """A number in [-1, 1] that looks random and is always the same."""
    return math.sin(sum((i + 1) * 12.9898 * part for i, part in enumerate(parts)) * 1.37 + 0.5)


def sample_report(
    targets: tuple[str, ...] = (
        "rotated_0",
        "rotated_15",
        "rotated_30",
        "rotated_45",
        "rotated_60",
        "rotated_75",
    ),
    *,
    seeds: int = 1,
    members: int = 8,
) -> dict[str, Any]:
    rows, averages, why, runs = [], [], [], []
    for k, (strategy, combine, label, equation, gain) in enumerate(LABELS):
        count = {"mean": 1, "best": 1, "greedy": max(1, members // 2)}.get(combine, members)
        common = {
            "strategy": strategy,
            "combine": combine,
            "label": label,
            "equation": equation,
            "members": 1 if strategy == "wise" else count,
            "runs": 1 if strategy == "wise" else members,
            "inference_cost": members if combine == "ensemble" else 1,
        }
        error = None if seeds == 1 else 0.004 + 0.002 * abs(wave(k))
        for t, target in enumerate(targets):
            per_seed = [
                {
                    "data_seed": s,
                    "id_accuracy": 0.941 + 0.002 * gain + 0.004 * wave(k, t, s),
                    "ood_accuracy": 0.71
                    + 0.17 * wave(t, 3)
                    + 0.01 * gain * (1 + 0.4 * wave(t, 1))
                    + 0.01 * wave(k, t, s),
                }
                for s in range(seeds)
            ]
            row = {**common, "target": target, "per_seed": per_seed}
            for side in ("id", "ood"):
                row[f"{side}_accuracy"] = sum(p[f"{side}_accuracy"] for p in per_seed) / seeds
                row[f"{side}_standard_error"] = error
            rows.append(row)
        mine = [row for row in rows if row["label"] == label]
        average = {**common}
        for side in ("id", "ood"):
            average[f"{side}_accuracy"] = sum(row[f"{side}_accuracy"] for row in mine) / len(targets)
            average[f"{side}_standard_error"] = error
        averages.append(average)
    for t, target, seed in ((t, target, seed) for t, target in enumerate(targets) for seed in range(seeds)):
        low = rows[t]["ood_accuracy"]
        high = rows[4 * len(targets) + t]["ood_accuracy"]
        why.append(
            {
                "target": target,
                "data_seed": seed,
                "members_curve": [
                    {
                        "members": m,
                        "average": low + (high - low) * (1 - 1 / m) * 1.14 + 0.002 * wave(m, t),
                        "ensemble": low + (high - low) * (1 - 1 / m) * 1.08 + 0.002 * wave(m, t, 1),
                        "subsets": 1 if m == members else 8,
                    }
                    for m in range(1, members + 1)
                ],
                "ratio_error": {"id": 2.1 + 0.5 * wave(t), "ood": 0.9 + 0.4 * wave(t, 1)},
                "q_statistic": {"id": 0.97 + 0.02 * wave(t), "ood": 0.9 + 0.04 * wave(t, 2)},
                "distance_to_average": [1.8 + 0.2 * wave(t, i) for i in range(members)],
                "distance_to_start": [2.6 + 0.2 * wave(t, i, 1) for i in range(members)],
                "start_norm": 31.4,
                "average_minus_ensemble": 0.004 * wave(t, 4),
                "average_ensemble_disagreement": 0.03 + 0.01 * wave(t, 5),
                "greedy": {
                    "order": list(range(members))[::-1],
                    "kept": list(range(members))[::-1][: max(1, members // 2)],
                    "scores": [0.94 + 0.01 * wave(t, i) for i in range(members)],
                },
            }
        )
        for i in range(members):
            runs.append(
                {
                    "target": target,
                    "data_seed": seed,
                    "run": i,
                    "status": "finished",
                    "message": None,
                    "id_accuracy": 0.94 + 0.01 * wave(i, t),
                    "ood_accuracy": low + 0.02 * wave(i, t, seed),
                    "best_step": 40 + i,
                    "configuration": {
                        "learning_rate": (1e-3, 5e-4, 3e-3)[i % 3],
                        "weight_decay": (1e-4, 1e-6)[i % 2],
                        "dropout": (0.0, 0.1, 0.5)[i % 3],
                        "batch_size": 32,
                        "optimizer": "adam",
                        "augment": True,
                        "seed": 1_000_003 * (i + 1) + seed,
                    },
                }
            )
    return {
        "format": 1,
        "mirepoix": "0.1.0",
        "name": "digits",
        "equation": f"theta = 1/{members} sum_i Train(theta_pt, D; c_i)",
        "task": {
            "name": "digits",
            "classes": [str(i) for i in range(10)],
            "domains": [{"name": target, "images": 299 + i} for i, target in enumerate(targets)],
            "notes": ["class '7' is missing in domain 'rotated_75'"],
        },
        "start": "network mnist_cnn, pre-trained on 60,000 upright digits (sha256 ab12cd34)",
        "network": "mnist_cnn",
        "protocol": {
            "members": members,
            "steps": 60,
            "data_seeds": list(range(seeds)),
            "holdout": 0.2,
            "validation": "un-augmented 20 % of every source domain",
            "batch_norm": "none",
            "target_images": "all images of the target domain",
        },
        "targets": list(targets),
        "runs": runs,
        "rows": rows,
        "averages": averages,
        "why": why,
        "trust": [
            {
                "level": "note",
                "target": None,
                "text": "All members share one pre-trained start and one linear probe.",
            }
        ],
        "verdict": f"The average of {members} members is best, at the cost of one network.",
    }


def hard_report() -> dict[str, Any]:
    """Four targets over three data seeds, with a diverged run, an infinite ratio-error and missing values."""
    report = sample_report(("art_painting", "cartoon", "photo", "sketch"), seeds=3)
    report["name"] = "pacs"
    report["command"] = "mirepoix run recipes/pacs.toml --out results/pacs"
    run = report["runs"][29]
    run.update(
        status="diverged", message="the loss is not finite at step 12", id_accuracy=None, ood_accuracy=None
    )
    run["best_step"] = None
    for why in report["why"]:
        if why["target"] == "photo":
            why["ratio_error"] = {"id": "infinite", "ood": "infinite"}
            why["q_statistic"] = {"id": None, "ood": None}
        if why["target"] == "sketch":
            why.update(greedy=None, average_minus_ensemble=None)
    for row in report["rows"]:
        if row["label"] == "WiSE" and row["target"] == "sketch":
            row.update(ood_accuracy=None, ood_standard_error=None, per_seed=[])
    report["averages"][2].update(ood_accuracy=None, ood_standard_error=None)
    report["trust"] += [
        {
            "level": "warning",
            "target": "sketch",
            "text": "The average is 3.1 points below the mean member: members are too far apart.",
        },
        {"level": "warning", "target": None, "text": "1 of 96 runs diverged and is not in any average."},
    ]
    return report
