"""What comes of one system in one trial: members, predictions, numbers, files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from mirepoix import __version__
from mirepoix.checkpoints import fingerprint, write_json, write_weights
from mirepoix.comparison._along import along
from mirepoix.comparison._measure import cost_of, predictions_of, quality, stored_member_logits
from mirepoix.comparison._members import Bench, Members
from mirepoix.comparison._recipe import SystemTable, soup_of
from mirepoix.data import Split
from mirepoix.experiment import Judge
from mirepoix.experiment._files import link
from mirepoix.metrics import accuracy
from mirepoix.models import member_weights
from mirepoix.predictions import Predictions
from mirepoix.runs import Run
from mirepoix.types import Weights
from mirepoix.weights import average

__all__ = ["Outcome", "folder_of", "outcome_of"]


@dataclass
class Outcome:
    """Numbers of one row in one trial.

    Attributes:
        label: Of the row.
        trial: Its seed.
        measures: By name; None for what does not apply, and empty where all members diverged.
        members: For each training: its number, status, message, accuracies, and configuration.
        along: What it was at each check, for each network of several members, where that was asked for.
    """

    label: str
    trial: int
    measures: dict[str, Any] = field(default_factory=dict)
    members: list[dict[str, Any]] = field(default_factory=list)
    along: list[list[dict[str, Any]]] = field(default_factory=list)


def outcome_of(bench: Bench, judge: Judge, system: SystemTable, split: Split, out: Path) -> list[Outcome]:
    """Train one system in one trial, measure it, and write its files; a second outcome is that of its soup."""
    members = bench.members_of(system, split)
    bench.progress.stage(f"trial {split.data_seed}: {system.name}: measuring")
    outcome = Outcome(system.name, split.data_seed)
    outcomes = [outcome, *([Outcome(soup_of(system.name), split.data_seed)] if system.soup else [])]
    for lost in members.lost:
        outcome.members.append(
            {**_about(outcome, lost.number), "status": "diverged", "message": lost.message}
        )
    if not members.made:
        return outcomes
    names, logits, numbers = _predicted(bench, judge, system, split, members)
    predictions = predictions_of(split, names, logits)
    size = split.task.transform.size
    outcome.measures = {
        **quality(logits, predictions.labels),
        **cost_of(members.made[0].network, len(members.made), size),
        "soup_accuracy": None,
        "members": len(names),
        "updates": sum(each.run.steps for each in members.trainings if each.run),
        "seconds": sum(each.theta.record["seconds"] for each in members.trainings),
    }
    alone = outcome.measures.pop("member_accuracies")
    for made in members.made:
        outcome.members.append(
            {
                **_about(outcome, made.number),
                "status": "finished" if made.run else "drawn",
                "message": None,
                "id_accuracy": made.theta.record["checks"][-1]["score"] if made.run else None,
                "accuracies": [value for value, of in zip(alone, numbers, strict=True) if of == made.number],
                "seconds": made.theta.record["seconds"] if made.run else None,
                "configuration": _configuration(made.run),
            }
        )
    outcome.members.sort(key=lambda row: row["number"])
    folder = Path(f"trial-{split.data_seed}", folder_of(system.name))
    _keep_members(out / "members" / folder, system, split, members)
    _keep_predictions(out, folder, predictions)
    if system.kind == "joint" and bench.recipe.evidence.dynamics:
        outcome.along = [along(bench, split, made) for made in members.made]
    if averageable(bench, system) and len(members.made) > 1:
        soup = judge.refresh(average([made.theta for made in members.made]))
        averaged = judge.logits(soup, "test")
        outcome.measures["soup_accuracy"] = float(accuracy(averaged.double(), predictions.labels))
        if system.soup:
            row = outcomes[1]
            row.measures = {
                **quality(averaged[None], predictions.labels),
                **cost_of(bench.start.network, 1, size),
                "soup_accuracy": None,
                "members": 1,
                "updates": outcome.measures["updates"],
                "seconds": outcome.measures["seconds"],
            }
            row.measures.pop("member_accuracies")
            _keep_predictions(
                out,
                folder.with_name(folder_of(row.label)),
                predictions_of(split, [row.label], averaged[None]),
            )
            _keep_soup(out / "soups" / folder, bench, system, split, members, soup)
    return outcomes


def averageable(bench: Bench, system: SystemTable) -> bool:
    """Whether the members of a system have one start, so that an average of their weights means something."""
    alike = system.kind == "deep_ensemble" and not bench.recipe.from_scratch(system)
    return (alike and len(set(system.starts or ["start"])) == 1) or system.kind in ("snapshot", "star")


def folder_of(label: str) -> str:
    """A label as the name of a folder."""
    return quote(label, safe=" +,()")


def _predicted(
    bench: Bench, judge: Judge, system: SystemTable, split: Split, members: Members
) -> tuple[list[str], Tensor, list[int]]:
    """Names and logits of all members, members first, and the number of the training that each is of."""
    names, logits, numbers = [], [], []
    for made in members.made:
        if system.kind != "joint":
            own = judge.logits(made.theta, "test")[None]
            names.append(f"member-{made.number}")
        else:
            own = stored_member_logits(made.network, made.theta, split, bench.store, bench.device)
            before = f"network-{made.number}-" if system.copies > 1 else ""
            names += [f"{before}member-{m}" for m in range(1, 1 + len(own))]
        logits.append(own)
        numbers += [made.number] * len(own)
    return names, torch.cat(logits), numbers


def _about(outcome: Outcome, number: int) -> dict[str, Any]:
    return {
        "system": outcome.label,
        "trial": outcome.trial,
        "number": number,
        "id_accuracy": None,
        "accuracies": [],
        "seconds": None,
        "configuration": {},
    }


def _configuration(run: Run | None) -> dict[str, Any]:
    return {} if run is None else {name: value for name, value in run.to_dict().items() if name != "collect"}


def _origin(system: SystemTable, split: Split) -> dict[str, Any]:
    return {
        "system": system.name,
        "kind": system.kind,
        "target": split.target,
        "data_seed": split.data_seed,
        "mirepoix": __version__,
    }


def _keep_members(folder: Path, system: SystemTable, split: Split, members: Members) -> None:
    """A file for each member, or for each network whose members are none of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    for made in members.made:
        record = {**_origin(system, split), **made.theta.record, "classes": list(split.task.classes)}
        if system.kind == "joint" and system.inputs is None:
            before = f"network-{made.number}-" if system.copies > 1 else ""
            network = replace(made.network, members=1, split_at=None)
            for m in range(made.network.members):
                theta: Weights = member_weights(made.theta, m)
                own = {"network": network.to_dict(), "member": m + 1, "fingerprint": fingerprint(theta)}
                write_weights(folder / f"{before}member-{m + 1}.safetensors", theta, record={**record, **own})
            continue
        name = f"network-{made.number}" if system.kind == "joint" else f"member-{made.number}"
        link(made.theta.path, folder / f"{name}.safetensors")
        own = {"network": made.network.to_dict(), "fingerprint": fingerprint(made.theta)}
        write_json(folder / f"{name}.json", {**record, **own})


def _keep_soup(
    place: Path, bench: Bench, system: SystemTable, split: Split, members: Members, soup: Weights
) -> None:
    """The average of the members, and what it was made of."""
    record = {
        **_origin(system, split),
        "equation": f"1/{len(members.made)} sum_i theta_i",
        "members": [{"member": made.number, "fingerprint": fingerprint(made.theta)} for made in members.made],
        "fingerprint": fingerprint(soup),
        "network": bench.start.network.to_dict(),
        "classes": list(split.task.classes),
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    write_weights(place.with_name(f"{place.name}.safetensors"), soup, record=record)


def _keep_predictions(out: Path, place: Path, predictions: Predictions) -> None:
    file = out / "predictions" / place.parent / f"{place.name}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    predictions.save(file)
