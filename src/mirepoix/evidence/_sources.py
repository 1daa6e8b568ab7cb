"""Where evidence comes from: the folder of a finished job, or predictions and weights that a person brings.

Whatever it was, it becomes blocks: one per target domain and data seed, each with the members, what was combined of
them, and how they did on ID validation and on OOD data. Later steps know blocks only.
"""

from __future__ import annotations

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
        kind: ``run`` for the folder of a job, ``files`` for files of predictions and weights.
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
    """The evidence in the folder of a finished ``mirepoix run``.

    Read are ``report.json``, ``predictions/*.safetensors`` and the files in ``members/``, whose weights may be missing.

    Args:
        folder: What ``--out`` named.

    Raises:
        InputError: For a folder without a report, predictions that are missing or damaged, and members in the report
            that have no predictions.
    """
    folder = Path(folder)
    report = read_report(folder)
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
                blocks.append(_block(folder, target, seed, several, finished, recorded, diverged))
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


def _block(
    folder: Path,
    target: str,
    seed: int,
    several: bool,
    finished: Sequence[str],
    recorded: Mapping[str, Any],
    notes: Sequence[str],
) -> Block:
    # As `mirepoix.experiment` names the folders of a job.
    stem = quote(target, safe=" +,()") + (f"-seed-{seed}" if several else "")
    sides = {}
    for side, ending in (("id", "validation"), ("ood", "test")):
        path = folder / "predictions" / f"{stem}-{ending}.safetensors"
        if not path.is_file():
            raise InputError(
                f"{path}: expected the predictions of the members, and there is no such file. Run the same command "
                "again: what is already trained is kept."
            )
        sides[side] = Predictions.load(path)
        missing = [name for name in finished if name not in sides[side].members]
        if missing:
            raise InputError(
                f"{path}: expected predictions of {', '.join(finished)}, as report.json says, and {missing[0]} is "
                "missing. The file and the report are of different jobs: run the same command again."
            )
    members, combined = _roles(sides["id"].members)
    weights = {
        name: path
        for name in members
        if (path := folder / "members" / stem / f"{name}.safetensors").is_file()
    }
    block = Block(
        f"{target}, seed {seed}" if several else target,
        members,
        target=target,
        data_seed=seed,
        combined=combined,
        weights=weights,
        recorded=recorded,
        notes=tuple(notes),
        id=sides["id"],
        ood=sides["ood"],
    )
    return _without_zeros(_without_diverged(block))


def source_of_files(
    predictions: Sequence[str | os.PathLike[str]] = (),
    *,
    id_predictions: Sequence[str | os.PathLike[str]] = (),
    weights: Sequence[str | os.PathLike[str]] = (),
    start: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    id_labels: str | os.PathLike[str] | None = None,
    probabilities: bool | None = None,
) -> Source:
    """The evidence in files of predictions and weights, from whatever trained them.

    A member called ``average``, ``greedy``, ``wise`` or ``moving_average`` (or ``soup``, ``uniform``) is taken as what
    was combined of the others. A file of weights belongs to the member whose name is that of the file.

    Args:
        predictions: Files on OOD data, as `mirepoix.prediction_files.read_predictions` reads them.
        id_predictions: Files on ID validation data; only by these is anything chosen.
        weights: Checkpoints of the members.
        start: The checkpoint that all of them began with.
        labels: The true classes of ``predictions``, if no file holds them.
        id_labels: The same for ``id_predictions``.
        probabilities: As in `mirepoix.prediction_files.read_predictions`.

    Raises:
        InputError: Without predictions and weights; for members that are on one side and not on the other; for files
            that cannot be read.
    """
    if not predictions and not id_predictions and not weights:
        raise InputError(
            "explain: expected the folder of a job, or files: --predictions FILE for OOD data, --id FILE for ID "
            "validation, --weights FILE for checkpoints. Got none."
        )
    if labels is not None and not predictions:
        raise InputError("--labels: goes with --predictions; the labels of --id are named by --id-labels.")
    if id_labels is not None and not id_predictions:
        raise InputError("--id-labels: goes with --id.")
    if start is not None and not weights:
        raise InputError("--start: goes with --weights, the checkpoints that began there.")
    ood = (
        read_predictions(list(predictions), labels=labels, probabilities=probabilities)
        if predictions
        else None
    )
    inner = None
    if id_predictions:
        inner = read_predictions(list(id_predictions), labels=id_labels, probabilities=probabilities)
    if ood is not None and inner is not None:
        _check_sides(ood, inner)
        inner = inner.of(ood.members)
    names = ood or inner
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
        for what, files in (("OOD predictions", predictions), ("ID predictions", id_predictions))
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
    for missing, where in zip(only, ("--id", "--predictions"), strict=True):
        if missing:
            raise InputError(
                f"{where}: expected the same members as on the other side, and {min(missing)!r} is missing; members "
                "are named after their files, or in them. Name the files of both sides alike."
            )
    if ood.classes != inner.classes:
        raise InputError(
            f"--id: expected the classes of --predictions ({', '.join(ood.classes[:10])}), got "
            f"{', '.join(inner.classes[:10])}. Both sides need the same classes in the same order."
        )
    same = ood.logits.shape == inner.logits.shape and torch.equal(ood.labels, inner.labels)
    if same and torch.equal(ood.logits, inner.of(ood.members).logits):
        raise InputError(
            "--id: expected predictions on other images than --predictions, got the same numbers. What is chosen on "
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
    kept = [name for name in (block.id or block.ood or _NOBODY).members if name not in broken]
    return Block(
        block.name,
        members,
        target=block.target,
        data_seed=block.data_seed,
        combined={kind: name for kind, name in block.combined.items() if name not in broken},
        id=None if block.id is None else block.id.of(kept),
        ood=None if block.ood is None else block.ood.of(kept),
        weights={name: path for name, path in block.weights.items() if name not in broken},
        start=block.start,
        recorded=block.recorded,
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


_NOBODY = Predictions(
    torch.zeros(0, 0, 0), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), (), (), ()
)
