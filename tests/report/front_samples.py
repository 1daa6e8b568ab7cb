"""Reports of rewarded soups, made of rewards that are quadratic in the weights: every number has its real source."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mirepoix.rewards import (
    RewardFront,
    area_over_front,
    common_box,
    compare_fronts,
    hypervolume,
    lambda_quadratic,
    minmax,
    reward_connectivity,
    reward_curves,
    simplex_design,
    simplex_lattice,
    spider_area,
)

SIZE = 12  # weights
ITEMS = 40


def picture(seed: int = 0, side: int = 8) -> str:
    """A grey PNG as a data URI."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


def fronts_of(experts: Sequence[str], trial: int, steps: int) -> dict[str, RewardFront]:
    """Soups, MORL, the ensemble and the start, with one reward per expert and two that nobody trained on."""
    random = np.random.default_rng(trial)
    goals = {name: random.normal(size=SIZE) for name in experts}
    stiff = {name: random.uniform(0.02, 0.12, SIZE) for name in experts}
    noise = random.normal(0, 0.3, (ITEMS, SIZE))
    middle = sum(goals.values()) / len(experts)

    def values(theta: np.ndarray) -> list[np.ndarray]:
        own = [1 - (stiff[name] * (theta - goals[name] - noise) ** 2).sum(axis=1) for name in experts]
        fluency = 1 - (0.05 * (theta - middle - noise) ** 2).sum(axis=1)
        return [*own, fluency, 100 * theta.sum() + 10 * noise.sum(axis=1)]

    names = (*experts, "fluency", "length")
    grid = simplex_lattice(experts, steps) if len(experts) < 3 else simplex_design(experts, steps + 1, 0)

    def front(label: str, points: Sequence[Any], thetas: Sequence[np.ndarray]) -> RewardFront:
        trained_on = {name: name for name in experts}
        return RewardFront(
            tuple(experts),
            names,
            tuple(points),
            values=np.array([values(t) for t in thetas]),
            trained_on=trained_on,
            label=label,
        )

    soups = [sum(share * goals[name] for name, share in point.items()) for point in grid]
    coarse = grid[:: max(1, len(grid) // 5)]
    best = [
        sum(share * stiff[n] * goals[n] for n, share in p.items()) / sum(s * stiff[n] for n, s in p.items())
        for p in coarse
    ]
    wobbly = [theta + 0.05 * random.normal(size=SIZE) for theta in soups[:: max(1, len(grid) // 5)]]
    nothing = [dict.fromkeys(experts, 0.0)]
    return {
        "soup": front("rewarded soup", grid, soups),
        "morl": front("MORL", coarse, best),
        "ensemble": front("ensemble", coarse, wobbly),
        "start": front("start", nothing, [np.zeros(SIZE)]),
    }


def trial_of(experts: Sequence[str], trial: int, steps: int, roles: Sequence[str]) -> dict[str, Any]:
    found = {role: front for role, front in fronts_of(experts, trial, steps).items() if role in roles}
    soup = found["soup"]
    columns = soup.columns(experts)
    rows = {role: front.means[:, columns] for role, front in found.items()}
    ideal, nadir = common_box(*rows.values())
    volumes = []
    for role, points in rows.items():
        scaled = (
            hypervolume((points - nadir) / (ideal - nadir), [0.0] * len(experts))
            if (ideal > nadir).all()
            else None
        )
        mode = "linear" if len(experts) == 2 else "staircase"
        area = area_over_front(points, ideal, nadir, mode, "minmax") if scaled else None
        volumes.append(
            {
                "label": found[role].label,
                "role": role,
                "hypervolume": scaled and scaled.value,
                "area": area and area.value,
                "trainings": {"soup": len(experts), "ensemble": len(experts), "start": 0}.get(
                    role, len(points)
                ),
                "points": len(points),
                "used": scaled.used if scaled else 0,
            }
        )
    connectivity = reward_connectivity(soup, resamples=100) if len(experts) > 1 else None
    difference = None
    if "morl" in found:
        compared = compare_fronts(soup, found["morl"], resamples=50)
        interval = compared.hypervolume_difference
        difference = {
            "label": "rewarded soup - MORL",
            "hypervolume": {"mean": interval.value, "low": interval.low, "high": interval.high},
            "dominated": list(compared.dominated),
        }
    polygons = None
    if len(soup) > 1:
        scale = minmax(soup.by_reward(), margin=0.05)
        centre = min(range(len(soup)), key=lambda i: max(soup.coefficients[i].values()))
        corners = {**dict(zip(experts, soup.ends(), strict=True)), "uniform soup": centre}
        polygons = []
        for label, row in corners.items():
            values = {
                r: float(scale.apply_to(r, soup.means[row, [k]])[0]) for k, r in enumerate(soup.rewards)
            }
            polygons.append({"label": label, "values": values, "area": spider_area(values).value})
    return {
        "name": f"seed {trial}",
        "fronts": [
            {"label": front.label, "role": role, "rows": front.rows(resamples=50)}
            for role, front in found.items()
        ],
        "connectivity": connectivity
        and {
            "holds": connectivity.holds,
            "above_chord": connectivity.above_chord,
            "verdict": connectivity.verdict(),
            "rewards": [
                {
                    "reward": name,
                    "minimum": margin.minimum,
                    "at": dict(margin.at),
                    "mean": margin.mean,
                    "largest": margin.largest,
                    "tolerance": margin.tolerance,
                    "holds": margin.holds,
                }
                for name, margin in connectivity.rewards.items()
            ],
        },
        "volumes": volumes,
        "box": {
            "ideal": dict(zip(experts, ideal.tolist(), strict=True)),
            "nadir": dict(zip(experts, nadir.tolist(), strict=True)),
        },
        "difference": difference,
        "curves": [
            {
                "reward": curve.reward,
                "trained": curve.trained,
                "best": curve.best,
                "at": dict(curve.at),
                "gain": curve.gain,
                "above_ends": curve.above_ends,
                "monotone": curve.monotone,
            }
            for curve in reward_curves(soup, resamples=50).curves.values()
        ],
        "spider": polygons and {"axes": list(soup.rewards), "polygons": polygons},
    }


def front_report(
    experts: Sequence[str] = ("helpful", "short"),
    *,
    trials: int = 1,
    steps: int = 10,
    roles: Sequence[str] = ("soup", "morl", "ensemble", "start"),
    **more: Any,
) -> dict[str, Any]:
    made = [trial_of(experts, trial, steps, roles) for trial in range(trials)]
    soup = fronts_of(experts, 0, steps)["soup"]
    summary = []
    for number, volume in enumerate(made[0]["volumes"]):

        def over_trials(key: str, number: int = number) -> dict[str, Any]:
            values = [trial["volumes"][number][key] for trial in made]
            if None in values:
                return {"mean": None, "error": None}
            error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
            return {"mean": float(np.mean(values)), "error": error}

        summary.append(
            {
                "label": volume["label"],
                "role": volume["role"],
                "trainings": volume["trainings"],
                "seconds": 61.5 * volume["trainings"],
                "hypervolume": over_trials("hypervolume"),
                "area": over_trials("area"),
            }
        )
    choice = None
    if len(experts) == 2:
        preference = dict(zip(experts, (0.3, 0.7), strict=True))
        chosen = lambda_quadratic(preference, soup.table()).coefficients
        nearest = min(range(len(soup)), key=lambda i: abs(soup.shares[i, 0] - chosen[experts[0]]))
        choice = {
            "preference": preference,
            "coefficients": dict(chosen),
            "method": "lambda_quadratic, from the table of the experts' rewards",
            "expected": dict(zip(soup.rewards, soup.means[nearest].tolist(), strict=True)),
            "exported": "chosen",
            "notes": ["Rewards share a scale."],
        }
    thirds = ["λ = 0", "λ = 0.5", "λ = 1"]
    return {
        "format": 1,
        "kind": "front",
        "mirepoix": "0.1",
        "name": "reviews",
        "title": "Rewarded soups of reviews",
        "source": "Ramé et al. (2023)",
        "facts": [["Policy", "a small Llama, 0.38 M parameters"], ["Start", "fine-tuned on 30,000 lines"]],
        "experts": list(experts),
        "rewards": list(soup.rewards),
        "trained": list(experts),
        "trials": made,
        "summary": summary,
        "choice": choice,
        "samples": {
            "items": [
                {"prompt": "The film was", "image": None},
                {"prompt": "I went to the\ncinema and", "image": None},
                {"prompt": None, "image": picture()},
            ],
            "columns": [
                {
                    "label": label,
                    "answers": [
                        "good." * (k + 1),
                        "it was\n  a long evening, " + "very " * 10 * k + "long.",
                        {"image": picture(k + 1)},
                    ],
                }
                for k, label in enumerate(thirds)
            ],
        },
        "warnings": [],
        "verdict": "Experts are connected; MORL reaches a little more, with more trainings.",
        "trust": [["warning", "Few prompts."], ["note", "Choose on other prompts than you report on."]],
        "protocol": {"algorithm": "RLOO", "steps": 100, "prompts": ITEMS, "seeds": list(range(trials))},
        "environment": {"torch": "2.15", "device": "cpu"},
        "command": "mirepoix rewards reviews.toml",
        **more,
    }
