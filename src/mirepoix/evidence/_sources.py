"""Where evidence comes from: the folder of a job or of exported members, or predictions and weights of anybody.

Whatever it was, it becomes blocks: one per target domain and data seed, each with the members, what was combined of
them, and how they did on ID validation and on OOD data. Later steps know blocks only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from mirepoix.prediction_files import read_predictions
from mirepoix.predictions import Predictions
from mirepoix.report import read_report
from mirepoix.types import InputError

__all__ = ["COMBINED", "Block", "Source", "source_of_files", "source_of_folder"]

COMBINED = {
    "average": "average",
    "uniform": "average",
    "uniform_soup": "average",
    "soup": "average",
    "greedy": "greedy",
    "greedy_soup": "greedy",
    "wise": "wise",
    "moving_average": "moving_average",
    "ensemble": "ensemble",
}
"""Names that are combinations of members and not members, and what they are."""


@dataclass(frozen=True)
class Block:
    """Members that can be combined, on the same samples: one target domain and data seed.

    Attributes:
        name: In sentences and figures.
        target: The domain that was left out, if there is one.
        data_seed: Of the split, if there is one.
        members: Names of the members.
        combined: From ``average``, ``greedy``, ``wise``, ``moving_average`` to the name in the predictions.
        id: Predictions on ID validation, of the members and of what is combined of them.
        ood: The same on OOD data.
        weights: Files of the members' weights, for those that have one.
        start: The file of the weights they all began with.
        recorded: What the job measured itself, an entry of ``why`` in its report.
        notes: What was left out, in sentences.
        remarks: What was changed and does no harm.
    """

    name: str
    members: tuple[str, ...]
    target: str | None = None
    data_seed: int | None = None
    combined: Mapping[str, str] = field(default_factory=dict)
    id: Predictions | None = None
    ood: Predictions | None = None
    weights: Mapping[str, Path] = field(default_factory=dict)
    start: Path | None = None
    recorded: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def side(self, side: str) -> Predictions | None:
        """The predictions of the side ``id`` or ``ood``."""
        return self.id if side == "id" else self.ood


@dataclass(frozen=True)
class Source:
    """What is explained.

    Attributes:
        title: Of the page.
        kind: ``run`` for the folder of a job, ``export`` for that of exported members of a benchmark, ``files`` for
            files of predictions and weights.
        blocks: One per target and data seed.
        facts: Names and values, for the reader.
        data_seeds: How many splits there are of each target; 0 if nobody knows.
        command: That makes what is explained, if it is known.
    """

    title: str
    kind: str
    blocks: tuple[Block, ...]
    facts: tuple[tuple[str, str], ...] = ()
    data_seeds: int = 0
    command: str = ""


def source_of_folder(folder: str | os.PathLike[str]) -> Source:
    """The evidence in the folder of a finished ``mirepoix run``, or in one of ``mirepoix domainbed export``.

    Of a job, read are ``report.json``, ``predictions/*.safetensors`` and the files in ``members/``, whose weights may
    be missing. Of an export, which has no report, the records beside the members tell the target and the data seed.

    Args:
        folder: What ``--out`` of the job, or ``--to`` of the export, named.

    Raises:
        InputError: For a folder without a report that is no export, such as that of a benchmark; for predictions that
            are missing or damaged; for members in the report that have no predictions; for records that are missing or
            damaged.
    """
    folder = Path(folder)
    if (folder / "starts").is_dir() and not (folder / "job.json").exists():
        return _exported(folder)
    if (folder / "cells.json").is_file() and not (folder / "report.json").exists():
        raise InputError(
            f"{folder}: holds the tables of a benchmark, whose members are in its store. Write them as files with "
            f"`mirepoix domainbed export RECIPE --out {folder}`, then `mirepoix explain {folder / 'exported'}`."
        )
    report = read_report(folder)
    if report.get("kind") == "comparison":
        raise InputError(
            f"{folder}: holds a comparison of ensembles, which has members of several systems. Name the predictions of "
            f"one: `mirepoix diversity {folder / 'predictions'}/TRIAL/SYSTEM.safetensors`."
        )
    try:
        targets = [str(target) for target in report["targets"]]
        seeds = [int(seed) for seed in report["protocol"]["data_seeds"]]
        runs, why = list(report["runs"]), list(report["why"])
        blocks = []
        for target in targets:
            for seed in seeds:
                recorded: dict[str, Any] = next(
                    (w for w in why if w["target"] == target and w["data_seed"] == seed), {}
                )
                finished = [
                    f"run-{run['run']}"
                    for run in runs
                    if run["target"] == target and run["data_seed"] == seed and run["status"] == "finished"
                ]
                diverged = [
                    f"{target}: run {run['run']} diverged and is not among the members."
                    for run in runs
                    if run["target"] == target and run["data_seed"] == seed and run["status"] == "diverged"
                ]
                several = len(seeds) > 1
                # As `mirepoix.experiment` names the folders of a job.
                stem = quote(target, safe=" +,()") + (f"-seed-{seed}" if several else "")
                sides = _sides(folder, stem, KEPT)
                _check_finished(folder, sides, finished)
                block = _block(folder, stem, sides, f"{target}, seed {seed}" if several else target)
                start = folder / "starts" / f"{stem}.safetensors"
                block = replace(
                    block,
                    target=target,
                    data_seed=seed,
                    start=start if start.is_file() else None,
                    recorded=recorded,
                    notes=tuple(diverged),
                )
                blocks.append(_without_zeros(_without_diverged(block)))
        facts = [
            ("Task", f"{report['task']['name']}, {len(report['task']['classes'])} classes"),
            ("Start", str(report["start"])),
            ("Targets", f"{', '.join(targets)}; each was left out of training in its turn"),
            ("Data seeds", ", ".join(map(str, seeds))),
            ("ID validation", str(report["protocol"].get("validation", "held-out source images"))),
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / 'report.json'}: expected the report of a job, and {error} is missing or of another kind. Run "
            "the same command again: what is already trained is kept."
        ) from error
    title = str(report.get("title") or report.get("name") or folder.name)
    return Source(title, "run", tuple(blocks), tuple(facts), len(seeds), str(report.get("command") or ""))


KEPT = "Run the same command again: what is already trained is kept."


def _sides(folder: Path, stem: str, advice: str) -> tuple[Predictions, Predictions]:
    """The predictions on ID validation and on OOD data."""
    paths = [folder / "predictions" / f"{stem}-{ending}.safetensors" for ending in ("validation", "test")]
    for path in paths:
        if not path.is_file():
            raise InputError(
                f"{path}: expected the predictions of the members, and there is no such file. {advice}"
            )
    inner, ood = (Predictions.load(path) for path in paths)
    if set(inner.members) != set(ood.members):
        strange = min(set(inner.members) ^ set(ood.members))
        raise InputError(
            f"{paths[1]}: expected the members of {paths[0].name}, and {strange!r} is in one of them only. The files "
            f"are not of the same time. {advice}"
        )
    return inner, ood.of(inner.members)


def _check_finished(folder: Path, sides: tuple[Predictions, Predictions], finished: Sequence[str]) -> None:
    missing = [name for name in finished if name not in sides[0].members]
    if missing:
        raise InputError(
            f"{folder / 'predictions'}: expected predictions of {', '.join(finished)}, as report.json says, and "
            f"{missing[0]} is missing. The file and the report are of different jobs: run the same command again."
        )


def _block(folder: Path, stem: str, sides: tuple[Predictions, Predictions], name: str) -> Block:
    members, combined = _roles(sides[0].members)
    weights = {
        member: path
        for member in members
        if (path := folder / "members" / stem / f"{member}.safetensors").is_file()
    }
    return Block(name, members, combined=combined, weights=weights, id=sides[0], ood=sides[1])


EXPORT = "Run `mirepoix domainbed export` again."


def _exported(folder: Path) -> Source:
    """What `mirepoix.domainbed` exported: a block for each split, whose data seeds are replicates of its target."""
    ending = "-validation.safetensors"
    splits = {
        path.name.removesuffix(ending) for path in (folder / "predictions").glob(f"*{ending}")
    }  # what is named -along-test is on the way to the members, and no member
    splits |= {path.name for path in (folder / "members").glob("*") if path.is_dir()}
    if not splits:
        raise InputError(f"{folder}: expected exported members, and there are none. {EXPORT}")
    records = {split: _record(folder, split) for split in splits}
    datasets = sorted({record["dataset"] for record in records.values()})
    blocks = []
    for split, record in records.items():
        # A target such as sketch may be in several datasets, and is not the same images there.
        target = record["target"] if len(datasets) == 1 else f"{record['dataset']}: {record['target']}"
        block = _block(folder, split, _sides(folder, split, EXPORT), f"{target}, seed {record['data_seed']}")
        start = folder / "starts" / f"{split}.safetensors"
        block = replace(
            block, target=target, data_seed=record["data_seed"], start=start if start.is_file() else None
        )
        blocks.append(_without_zeros(_without_diverged(block)))
    blocks.sort(key=lambda block: (str(block.target), block.data_seed or 0))
    seeds: dict[str, list[int]] = {}
    for block in blocks:
        seeds.setdefault(str(block.target), []).append(block.data_seed or 0)
    several = max(map(len, seeds.values()))
    if several == 1:
        blocks = [replace(block, name=str(block.target)) for block in blocks]
    facts = (
        ("Members", f"exported from a sweep on {', '.join(datasets)}"),
        ("Targets", f"{', '.join(seeds)}; each was left out of training in its turn"),
        ("Data seeds", ", ".join(map(str, sorted({seed for each in seeds.values() for seed in each})))),
    )
    return Source(f"members of {', '.join(datasets)}", "export", tuple(blocks), facts, several)


def _record(folder: Path, split: str) -> dict[str, Any]:
    """Dataset, target and data seed of a split, from the record beside any of its members."""
    path = min((folder / "members" / split).glob("*.json"), default=None)
    if path is None:
        raise InputError(
            f"{folder / 'members' / split}: expected a record beside each member, which tells its target and data "
            f"seed, and there is none. {EXPORT}"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {
            "dataset": str(record["dataset"]),
            "target": str(record["target"]),
            "data_seed": int(record["data_seed"]),
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: expected the record of a member, with dataset, target and data_seed, and it cannot be read "
            f"({error}). {EXPORT}"
        ) from error


def source_of_files(
    *,
    id_predictions: Sequence[str | os.PathLike[str]] = (),
    ood_predictions: Sequence[str | os.PathLike[str]] = (),
    labels: str | os.PathLike[str] | None = None,
    ood_labels: str | os.PathLike[str] | None = None,
    weights: Sequence[str | os.PathLike[str]] = (),
    start: str | os.PathLike[str] | None = None,
    probabilities: bool | None = None,
) -> Source:
    """The evidence in files of predictions and weights, from whatever trained them.

    A member called ``average``, ``greedy``, ``wise`` or ``moving_average`` (or ``soup``, ``uniform``) is taken as what
    was combined of the others. A file of weights belongs to the member whose name is that of the file.

    Args:
        id_predictions: Files on ID validation data, as `mirepoix.prediction_files.read_predictions` reads them; only
            by these is anything chosen.
        ood_predictions: Files of the same members on OOD data; only by these is the choice confirmed.
        labels: The true classes of ``id_predictions``, if no file holds them.
        ood_labels: The same for ``ood_predictions``.
        weights: Checkpoints of the members.
        start: The checkpoint that all of them began with.
        probabilities: As in `mirepoix.prediction_files.read_predictions`.

    Raises:
        InputError: Without predictions and weights; for members that are on one side and not on the other; for files
            that cannot be read.
    """
    if not ood_predictions and not id_predictions and not weights:
        raise InputError(
            "explain: expected the folder of a job, or files: --id FILE for ID validation, --ood FILE for OOD data, "
            "--weights FILE for checkpoints. Got none."
        )
    if labels is not None and not id_predictions:
        raise InputError("--labels: goes with --id; the labels of --ood are named by --ood-labels.")
    if ood_labels is not None and not ood_predictions:
        raise InputError("--ood-labels: goes with --ood; the labels of --id are named by --labels.")
    if start is not None and not weights:
        raise InputError("--start: goes with --weights, the checkpoints that began there.")
    ood = inner = None
    if ood_predictions:
        ood = read_predictions(list(ood_predictions), labels=ood_labels, probabilities=probabilities)
    if id_predictions:
        inner = read_predictions(list(id_predictions), labels=labels, probabilities=probabilities)
    if ood is not None and inner is not None:
        _check_sides(ood, inner)
        ood = ood.of(inner.members)
    names = inner or ood
    paths = [Path(path) for path in weights]
    stems = [path.stem if path.suffix else path.name for path in paths]
    if len(set(stems)) != len(stems):
        stems = [str(path) for path in paths]
    if names is None:
        members: tuple[str, ...] = tuple(stems)
        block = Block("members", members, weights=dict(zip(stems, paths, strict=True)), start=_path(start))
    else:
        members, combined = _roles(names.members)
        known = dict(zip(stems, paths, strict=True))
        unknown = [stem for stem in known if stem not in names.members]
        if unknown:
            raise InputError(
                f"--weights {known[unknown[0]]}: expected files called after the members of the predictions "
                f"({', '.join(members)}), and there is no member {unknown[0]!r}. Rename the file, or the member."
            )
        block = Block(
            "your members",
            members,
            combined=combined,
            id=inner,
            ood=ood,
            weights={name: known[name] for name in members if name in known},
            start=_path(start),
        )
    facts = [
        (what, ", ".join(map(str, files)))
        for what, files in (("ID predictions", id_predictions), ("OOD predictions", ood_predictions))
        if files
    ]
    if paths:
        facts.append(("Weights", ", ".join(map(str, paths))))
    if start is not None:
        facts.append(("Start", str(start)))
    block = _without_zeros(_without_diverged(block))
    return Source(
        f"{len(block.members)} member{'s' if len(block.members) != 1 else ''} of your own",
        "files",
        (block,),
        tuple(facts),
    )


def _path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


def _check_sides(ood: Predictions, inner: Predictions) -> None:
    only = [set(ood.members) - set(inner.members), set(inner.members) - set(ood.members)]
    for missing, where in zip(only, ("--id", "--ood"), strict=True):
        if missing:
            raise InputError(
                f"{where}: expected the same members as on the other side, and {min(missing)!r} is missing; members "
                "are named after their files, or in them. Name the files of both sides alike."
            )
    if ood.classes != inner.classes:
        raise InputError(
            f"--id: expected the classes of --ood ({', '.join(ood.classes[:10])}), got "
            f"{', '.join(inner.classes[:10])}. Both sides need the same classes in the same order."
        )
    same = ood.logits.shape == inner.logits.shape and torch.equal(ood.labels, inner.labels)
    if same and torch.equal(ood.logits, inner.of(ood.members).logits):
        raise InputError(
            "--id: expected predictions on other images than --ood, got the same numbers. What is chosen on "
            "images cannot be confirmed on them: give each set once, or leave one side out."
        )


def _roles(names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Members, and what is combined of them; the first name of each kind counts."""
    combined: dict[str, str] = {}
    for name in names:
        kind = COMBINED.get(name.lower())
        if kind is not None:
            combined.setdefault(kind, name)
    combined.pop("ensemble", None)  # it is made here, of these members
    members = tuple(name for name in names if name.lower() not in COMBINED)
    taken = next((name for name in members if name in ("mean", "best")), None)
    if taken is not None:
        raise InputError(
            f"expected members of other names than 'mean' and 'best', which mean the mean member and the best one on "
            f"ID validation, got {taken!r}. Rename the file, or the member."
        )
    if not members:
        raise InputError(
            f"expected predictions of members, got combinations only: {', '.join(names)}. Name the members otherwise "
            f"than {', '.join(sorted(COMBINED))}."
        )
    return members, combined


def _without_diverged(block: Block) -> Block:
    """Without models that predict NaN, whose accuracy means nothing."""
    broken: dict[str, int] = {}
    for predictions in (block.id, block.ood):
        if predictions is not None:
            wrong = (~predictions.logits.amax(-1).isfinite()).sum(
                1
            )  # (members,): NaN and +inf pass through amax
            for name, count in zip(predictions.members, wrong.tolist(), strict=True):
                broken[name] = max(broken.get(name, 0), int(count))
    broken = {name: count for name, count in broken.items() if count}
    if not broken:
        return block
    members = tuple(name for name in block.members if name not in broken)
    if not members:
        raise InputError(
            f"{block.name}: every member has logits that are not numbers ({', '.join(broken)}). Did the trainings "
            "diverge?"
        )
    notes = tuple(
        f"{name} is left out: its logits are not numbers on {count} images. Did its training diverge?"
        for name, count in broken.items()
    )
    known = block.id or block.ood
    assert known is not None  # where something is broken
    kept = [name for name in known.members if name not in broken]
    return replace(
        block,
        members=members,
        combined={kind: name for kind, name in block.combined.items() if name not in broken},
        id=None if block.id is None else block.id.of(kept),
        ood=None if block.ood is None else block.ood.of(kept),
        weights={name: path for name, path in block.weights.items() if name not in broken},
        notes=(*block.notes, *notes),
    )


ZERO = 100.0
"""How far below the largest logit of an image a probability of zero is put."""


def _without_zeros(block: Block) -> Block:
    """With tiny probabilities in place of zeros: where each class has a zero from some member, none would be left."""
    sides: dict[str, Predictions] = {}
    images = 0
    for side in ("id", "ood"):
        predictions = block.side(side)
        if predictions is None:
            continue
        zero = predictions.logits == -torch.inf
        if zero.any():
            low = predictions.logits.amax(-1, keepdim=True) - ZERO
            images += int(zero.any(-1).any(0).sum())
            sides[side] = replace(predictions, logits=torch.where(zero, low, predictions.logits))
    if not images:
        return block
    remark = (
        f"Some probabilities are zero, on {images} images. Here they count as e^-{ZERO:.0f} of the largest, so that "
        "members that exclude different classes can be combined. No prediction of a member changes."
    )
    return replace(
        block,
        id=sides.get("id", block.id),
        ood=sides.get("ood", block.ood),
        remarks=(*block.remarks, remark),
    )
