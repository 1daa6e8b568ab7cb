"""What the report of a front holds, as plain values: the same for a recipe and for experts somebody already has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mirepoix import __version__
from mirepoix.bootstrap import Interval
from mirepoix.rewards import (
    RewardFront,
    area_over_front,
    common_box,
    compare_fronts,
    hypervolume,
    minmax,
    reward_connectivity,
    reward_curves,
    spider_area,
)
from mirepoix.types import InputError

__all__ = ["Trial", "front_report"]


@dataclass(frozen=True)
class Trial:
    """The fronts of one start and its experts, all evaluated on the same items.

    Attributes:
        name: What the report calls it.
        soups: Of the experts.
        morl: Of policies that were trained for a mean of the rewards, if there are any.
        ensemble: Of functional ensembles of the experts.
        start: One point, the start.
        trainings: How many fine-tunings are behind the soups and behind MORL, by ``soup`` and ``morl``.
        seconds: What these took, by the same names.
        notes: What went wrong and did not end the job.
    """

    name: str
    soups: RewardFront
    morl: RewardFront | None = None
    ensemble: RewardFront | None = None
    start: RewardFront | None = None
    trainings: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def fronts(self) -> list[tuple[str, RewardFront]]:
        """Those that there are, with their roles, the soups first."""
        named = [
            ("soup", self.soups),
            ("morl", self.morl),
            ("ensemble", self.ensemble),
            ("start", self.start),
        ]
        return [(role, front) for role, front in named if front is not None]


def front_report(
    trials: Sequence[Trial],
    *,
    name: str,
    title: str,
    facts: Sequence[tuple[str, str]],
    protocol: Mapping[str, Any],
    choice: Mapping[str, Any] | None = None,
    samples: Mapping[str, Any] | None = None,
    source: str = "",
    warnings: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Everything the page shows, as plain values; the same fronts give the same values.

    Args:
        trials: One or more, of the same experts and rewards.
        name: Of the job.
        title: Of the page.
        facts: What was trained and evaluated, as terms and sentences.
        protocol: How, as plain values.
        choice: As from `choice`.
        samples: ``items`` (each with ``prompt`` or ``image``) and ``columns`` (each with ``label`` and ``answers``).
        source: Where the study comes from.
        warnings: What a reader should know before the numbers.
        environment: Versions and machine.
        command: How to ask for the same again.

    Returns:
        What `mirepoix.report.write_report` takes.

    Raises:
        InputError: Without trials, or if they differ in experts or rewards.
    """
    if not trials:
        raise InputError("trials: expected at least one, got none.")
    first = trials[0].soups
    for trial in trials[1:]:
        if (trial.soups.experts, trial.soups.rewards) != (first.experts, first.rewards):
            raise InputError(f"trials: {trial.name!r} has other experts or rewards than {trials[0].name!r}.")
    told = [_trial(trial) for trial in trials]
    notes = [*warnings, *(note for trial in trials for note in trial.notes)]
    for trial in trials:
        notes += [text for text in trial.soups.provenance.get("warnings", ()) if text not in notes]
        notes += [text for text in trial.soups.provenance.get("left_out", {}).values() if text not in notes]
    report = {
        "format": 1,
        "kind": "front",
        "mirepoix": __version__,
        "name": name,
        "title": title,
        "source": source,
        "facts": [list(fact) for fact in facts],
        "experts": list(first.experts),
        "rewards": list(first.rewards),
        "trained": list(first.trained_rewards()),
        "trials": told,
        "summary": _summary(trials, told),
        "choice": None if choice is None else dict(choice),
        "samples": None if samples is None else dict(samples),
        "warnings": notes,
        "verdict": _verdict(told),
        "trust": _trust(trials, told, notes),
        "protocol": dict(protocol),
        "environment": dict(environment or {}),
        "command": command or "",
    }
    return report


def _trial(trial: Trial) -> dict[str, Any]:
    soups, names = trial.soups, trial.soups.trained_rewards()
    fronts = trial.fronts()
    compared = [(role, front) for role, front in fronts if role != "start"]
    columns = [front.means[:, front.columns(names)] for _, front in compared]
    ideal, nadir = common_box(*columns)
    extended = bool((ideal > nadir).all()) and len(names) > 1
    volumes = [
        {
            "label": front.label,
            "role": role,
            "trainings": trial.trainings.get(role),
            "points": len(front),
            **_volumes(rows, ideal, nadir, extended),
        }
        for (role, front), rows in zip(compared, columns, strict=True)
    ]
    difference = None
    if trial.morl is not None and extended:
        beside = [front for role, front in compared if role not in ("soup", "morl")]
        found = compare_fronts(soups, trial.morl, rewards=names, beside=beside)
        difference = {
            "label": f"{soups.label} - {trial.morl.label}",
            "hypervolume": _plain(found.hypervolume_difference),
            "area": _plain(found.area_difference),
            "dominated": list(found.dominated),
        }
    return {
        "name": trial.name,
        "fronts": [
            {"label": front.label, "role": role, "rows": _rows(front, names)} for role, front in fronts
        ],
        "connectivity": _connectivity(soups, names),
        "volumes": volumes,
        "box": {
            "ideal": dict(zip(names, ideal.tolist(), strict=True)),
            "nadir": dict(zip(names, nadir.tolist(), strict=True)),
        },
        "difference": difference,
        "curves": _curves(soups),
        "spider": _spider(trial),
        "seconds": dict(trial.seconds),
    }


def _plain(interval: Interval) -> dict[str, float | None]:
    low, high = (None if np.isnan(end) else end for end in (interval.low, interval.high))
    return {"mean": interval.value, "low": low, "high": high}


def _rows(front: RewardFront, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row per point; whether it is dominated is asked of the rewards that were trained on."""
    return [
        {"standard_errors": None, "nondominated_probability": None, **row}
        for row in front.rows(rewards=names)
    ]


def _volumes(rows: Any, ideal: Any, nadir: Any, extended: bool) -> dict[str, Any]:
    """Hypervolume and area in the box that all fronts of a trial share."""
    if not extended or len(rows) < 2:  # one reward, one that is the same everywhere, or one point
        return {"hypervolume": None, "area": None, "used": None}
    mode: Any = "linear" if rows.shape[1] == 2 else "staircase"
    above = hypervolume((rows - nadir) / (ideal - nadir), np.zeros(len(ideal)))
    area = area_over_front(rows, ideal=ideal, nadir=nadir, mode=mode, scale="minmax")
    return {"hypervolume": above.value, "area": area.value, "used": area.used}


def _has_ends(front: RewardFront) -> bool:
    return all(front.vertex(expert) is not None for expert in front.experts)


def _connectivity(soups: RewardFront, names: Sequence[str]) -> dict[str, Any] | None:
    if len(soups.experts) < 2 or not _has_ends(soups) or len(soups) <= len(soups.experts):
        return None
    found = reward_connectivity(soups, rewards=names)
    return {
        "holds": found.holds,
        "above_chord": found.above_chord,
        "verdict": found.verdict(),
        "rewards": [
            {
                "reward": margin.reward,
                "minimum": margin.minimum,
                "at": dict(margin.at),
                "mean": margin.mean,
                "largest": margin.largest,
                "tolerance": margin.tolerance,
                "holds": margin.holds,
            }
            for margin in found.rewards.values()
        ],
    }


def _curves(soups: RewardFront) -> list[dict[str, Any]]:
    if not _has_ends(soups):
        return []
    return [
        {
            "reward": curve.reward,
            "trained": curve.trained,
            "best": curve.best,
            "at": dict(curve.at),
            "gain": curve.gain,
            "above_ends": curve.above_ends,
            "monotone": curve.monotone,
        }
        for curve in reward_curves(soups).curves.values()
    ]


def _spider(trial: Trial) -> dict[str, Any] | None:
    """Start, experts, the soup nearest to uniform and MORL, each reward scaled over all of these."""
    soups = trial.soups
    if len(soups.rewards) < 3:
        return None
    polygons = {}
    if trial.start is not None:
        polygons["start"] = trial.start.means[0]
    for expert in soups.experts:
        row = soups.vertex(expert)
        if row is not None:
            polygons[f"expert {expert}"] = soups.means[row]
    even = 1 / len(soups.experts)
    middle = int(np.abs(soups.shares - even).max(axis=1).argmin())
    if np.abs(soups.shares[middle] - even).max() < 1e-9:
        polygons["uniform soup"] = soups.means[middle]
    if trial.morl is not None:
        shares = trial.morl.shares
        middle = int(np.abs(shares - shares.mean(axis=1, keepdims=True)).max(axis=1).argmin())
        polygons[f"MORL {_written(trial.morl.coefficients[middle])}"] = trial.morl.means[middle]
    table = np.array(list(polygons.values()))
    flat = np.ptp(table, axis=0) <= 0
    if flat.any():
        return None
    scaled = minmax({name: table[:, k] for k, name in enumerate(soups.rewards)}, margin=0.05)
    found = []
    for label, row in polygons.items():
        values = {name: float(scaled.apply_to(name, row[k])) for k, name in enumerate(soups.rewards)}
        found.append({"label": label, "values": values, "area": spider_area(values).value})
    return {"axes": list(soups.rewards), "polygons": found}


def _written(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:g}" for name, share in shares.items() if share)


def _summary(trials: Sequence[Trial], told: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each kind of front over all trials: mean and standard error."""
    roles: dict[str, str] = {}
    for trial in told:
        roles |= {volume["role"]: volume["label"] for volume in trial["volumes"]}
    rows = []
    for role, label in roles.items():
        volumes = [volume for trial in told for volume in trial["volumes"] if volume["role"] == role]
        trainings = [volume["trainings"] for volume in volumes if volume["trainings"] is not None]
        seconds = [trial.seconds[role] for trial in trials if role in trial.seconds]
        rows.append(
            {
                "label": label,
                "role": role,
                "trainings": max(trainings) if trainings else None,
                "seconds": float(np.mean(seconds)) if seconds else None,
                "hypervolume": _mean([volume["hypervolume"] for volume in volumes]),
                "area": _mean([volume["area"] for volume in volumes]),
            }
        )
    return rows


def _mean(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {"mean": None, "error": None}
    error = float(np.std(known, ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "error": error}


def _verdict(told: Sequence[Mapping[str, Any]]) -> str:
    """What came out, in sentences."""
    known = [trial["connectivity"] for trial in told if trial["connectivity"] is not None]
    sentences = []
    if known:
        held = sum(found["holds"] for found in known)
        above = sum(bool(found["above_chord"]) for found in known)
        if len(told) == 1:
            sentences.append(
                "The experts are linearly connected: no soup earns less than the average of its experts by more than "
                "noise."
                if held
                else "The experts are not linearly connected: a soup earns less than the average of its experts"
                + (
                    ", though the front is on or above the chord, or below by no more than noise."
                    if above
                    else ", and the front is below the chord."
                )
            )
        else:
            sentences.append(
                f"Linear mode connectivity holds in {held} of {len(known)} trials; the front is on or above the chord, "
                f"or below by no more than noise, in {above}."
            )
    for trial in told:
        found = trial["difference"]
        if found is None:
            continue
        where = f" ({trial['name']})" if len(told) > 1 else ""
        volumes = {volume["role"]: volume for volume in trial["volumes"]}
        soup, morl = volumes["soup"], volumes["morl"]
        if soup["hypervolume"] is None or morl["hypervolume"] is None:
            continue
        # A hypervolume grows with the number of points, the area over straight lines between them hardly does.
        fair = soup["points"] == morl["points"]
        what, sign = ("hypervolume", 1) if fair else ("area", -1)
        counts = [_trainings(volume["trainings"]) for volume in (soup, morl)]
        told_as = "Hypervolume" if fair else "Area over the front (lower is better)"
        text = f"{told_as} of the soups{counts[0]}: {soup[what]:.3f}, of MORL{counts[1]}: {morl[what]:.3f}{where}"
        interval = found[what]
        if not fair and len(trial["box"]["ideal"]) > 2:
            text += f"; {soup['points']} points against {morl['points']}, which is no fair comparison"
        elif interval["low"] is not None and interval["low"] <= 0 <= interval["high"]:
            text += "; the items do not tell them apart"
        elif interval["mean"]:
            text += f"; the soups are {'ahead' if sign * interval['mean'] > 0 else 'behind'}"
        sentences.append(f"{text}.")
    if not sentences:
        sentences.append("A front of soups, without anything to compare it with.")
    return " ".join(sentences)


def _learned(trials: Sequence[Trial]) -> list[list[str]]:
    """Experts that do not beat the start in the reward they were trained on."""
    found = []
    for trial in trials:
        soups, start = trial.soups, trial.start
        if start is None:
            continue
        for expert, reward in soups.trained_on.items():
            row = soups.vertex(expert)
            if row is None or reward not in soups.rewards or reward not in start.rewards:
                continue
            one, other = soups.rewards.index(reward), start.rewards.index(reward)
            gain, error = float(soups.means[row, one] - start.means[0, other]), 0.0
            if soups.values is not None and start.values is not None and (soups.items or 0) > 1:
                paired = soups.values[row, one] - start.values[0, other]
                error = float(paired.std(ddof=1) / np.sqrt(len(paired)))
            if gain <= 2 * error:
                found.append(
                    [
                        "warning",
                        f"{trial.name}: expert {expert} does not beat the start in {reward}, by more than noise: "
                        f"{gain:+.3g} ± {error:.2g}. Train it longer, with a higher rate or a weaker KL penalty, "
                        "before judging its soups.",
                    ]
                )
    return found


def _trainings(count: int | None) -> str:
    return "" if count is None else f" of {count} training{'' if count == 1 else 's'}"


def _trust(
    trials: Sequence[Trial], told: Sequence[Mapping[str, Any]], notes: Sequence[str]
) -> list[list[str]]:
    """When not to believe the page."""
    found = [["warning", note] for note in notes]
    for trial in told:
        connectivity = trial["connectivity"]
        if connectivity is not None and not connectivity["holds"]:
            broken = [margin["reward"] for margin in connectivity["rewards"] if not margin["holds"]]
            found.append(
                [
                    "warning" if not connectivity["above_chord"] else "note",
                    f"{trial['name']}: soups earn less than the average of their experts in {', '.join(broken)}. "
                    "Experts that stay nearer to the start, by fewer steps or a stronger KL penalty, are "
                    "connected more often.",
                ]
            )
        flat = [name for name, top in trial["box"]["ideal"].items() if top <= trial["box"]["nadir"][name]]
        if flat:
            found.append(
                [
                    "warning",
                    f"{trial['name']}: all points earn the same {', '.join(flat)}, so no volume is given.",
                ]
            )
    found += _learned(trials)
    unknown = [expert for expert in trials[0].soups.experts if expert not in trials[0].soups.trained_on]
    if unknown:
        found.append(
            [
                "note",
                f"It is not known what {', '.join(unknown)} was trained on, so volumes and connectivity are of the "
                "rewards of the other experts, or of all. Call an expert like its reward, or say so: --trained "
                "EXPERT=REWARD.",
            ]
        )
    counts = {volume["role"]: volume["points"] for volume in told[0]["volumes"]}
    if counts.get("morl", counts["soup"]) != counts["soup"]:
        found.append(
            [
                "note",
                f"{counts['soup']} soups are compared with {counts['morl']} policies of MORL. A hypervolume grows with "
                "the number of points; the area over the straight lines between them, for two rewards, hardly does.",
            ]
        )
    items = trials[0].soups.items
    if items is not None and items < 30:
        found.append(["note", f"{items} items are few: intervals from so few are too narrow."])
    if len(trials) == 1:
        found.append(
            ["note", "One trial: other seeds of the start and of the trainings may tell another story."]
        )
    found.append(
        ["note", "The best of many points is optimistic on the items it was chosen on; report it on others."]
    )
    return found
