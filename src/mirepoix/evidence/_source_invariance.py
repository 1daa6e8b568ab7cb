"""Start, members and average on the source domains of a job, or of somebody: are they invariant?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mirepoix.checkpoints import open_weights, read_json
from mirepoix.data import Subset, Task, evaluation_batches
from mirepoix.evidence._classifier_invariance import (
    QUANTITIES,
    SHUFFLES,
    ClassifierInvariance,
    classifier_invariance,
    mean_distance,
)
from mirepoix.evidence._sources import COMBINED, Block, Source
from mirepoix.models import NetworkSpec, input_size_hint, load_pretrained
from mirepoix.scores import validation_folder
from mirepoix.training import choose_device
from mirepoix.types import InputError, Weights
from mirepoix.weights import average

__all__ = ["Examined", "SourceInvariance", "source_invariance"]

Progress = Callable[[int, int, str], None]

AGAIN = "Run the same command again: what is already trained is kept."


@dataclass(frozen=True)
class Examined:
    """One target and data seed.

    Attributes:
        name: As that of the block.
        domains: The source domains.
        found: For ``start``, each member and ``average``, where they are there; in this order.
    """

    name: str
    domains: tuple[str, ...]
    found: dict[str, ClassifierInvariance]


@dataclass(frozen=True)
class SourceInvariance:
    """Whether members and their average are invariant across source domains.

    Attributes:
        images: Which images were read, in words.
        blocks: One per target and data seed.
    """

    images: str
    blocks: tuple[Examined, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``images``, ``shuffles``, ``answer`` (sentences), ``rows`` (means) and ``blocks``."""
        rows = [row for name in ("start", "mean", "average") if (row := self._total(name)) is not None]
        return {
            "images": self.images,
            "shuffles": max(found.shuffles for block in self.blocks for found in block.found.values()),
            "answer": _answer(rows, self.blocks),
            "rows": rows,
            "blocks": [
                {
                    "name": block.name,
                    "domains": list(block.domains),
                    "rows": [{"name": name, **found.to_dict()} for name, found in block.found.items()],
                }
                for block in self.blocks
            ],
        }

    def _total(self, name: str) -> dict[str, Any] | None:
        """The mean over blocks, and for ``mean`` over members; where domains can be compared."""
        each = []
        for block in self.blocks:
            chosen = (
                [one for key, one in block.found.items() if key not in ("start", "average")]
                if name == "mean"
                else [block.found[name]]
                if name in block.found
                else []
            )
            each.append([one for one in chosen if one.distance is not None and one.chance is not None])
        if not all(each):
            return None
        one_member = max(map(len, each)) == 1
        flat = [one for same in each for one in same]
        means = {
            what: asdict(
                mean_distance([mean_distance([getattr(one, what) for one in same]) for same in each])
            )
            for what in ("distance", "chance")
        }
        return {
            "name": "member" if name == "mean" and one_member else name,
            **means,
            "seen": {quantity: sum(one.seen(quantity) for one in flat) for quantity in QUANTITIES},
            "of": len(flat),
        }


WORDS = {
    "risk": "losses",
    "gradient_variance": "gradient variances",
    "hessian_diagonal": "curvatures",
}
WHO = {"start": "the start", "mean": "the mean member", "member": "the member", "average": "the average"}


def _answer(rows: Sequence[Mapping[str, Any]], blocks: Sequence[Examined]) -> list[str]:
    """What a hurried reader takes from it, of the average where there is one."""
    if not rows:
        alone = next((block.domains[0] for block in blocks if len(block.domains) == 1), None)
        if alone is None:
            return ["The images were not shuffled, so distances have nothing to be compared with."]
        return [f"There is one source domain ({alone}), so there is nothing to compare."]
    last = rows[-1]
    who, times = WHO[last["name"]], {}
    for quantity, words in WORDS.items():
        chance = last["chance"][quantity]
        often = f"{last['distance'][quantity] / chance:.2g} times" if chance else "not determined"
        on = f" (seen on {last['seen'][quantity]} of {last['of']})" if last["of"] > 1 else ""
        times[quantity] = f"{words} {often}{on}"
    seen = [times[quantity] for quantity in WORDS if 2 * last["seen"][quantity] > last["of"]]
    rest = [times[quantity] for quantity in WORDS if 2 * last["seen"][quantity] <= last["of"]]
    if seen:
        text = (
            f"{'Partly' if rest else 'No'}. For {who}, source domains are further apart than the same images "
        )
        text += f"shuffled among them: {', '.join(seen)} as far, in squared distances"
        text += f"; not clearly so: {', '.join(rest)}." if rest else "."
    else:
        text = f"As far as these images tell, yes. For {who}, source domains are not clearly further apart than the "
        text += f"same images shuffled among them: {', '.join(rest)} as far, in squared distances."
    others = [
        f"{row['distance']['gradient_variance']:.2g} for {WHO[row['name']]}" for row in reversed(rows[:-1])
    ]
    more = f"The distance in gradient variances is {last['distance']['gradient_variance']:.2g} for {who}"
    return [text, more + (f", {' and '.join(others)}." if others else ".")]


def source_invariance(
    source: Source,
    *,
    folder: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    model: str | None = None,
    width: int | None = None,
    size: int | None = None,
    device: str = "auto",
    shuffles: int = SHUFFLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> SourceInvariance:
    """`classifier_invariance` of the start, the members and their average, on the source domains.

    Of a job, read are the training images of the source domains, without augmentation, as in table E.2 of the thesis.
    Of files, all images of a folder with one sub-folder per domain.

    Args:
        source: What is explained: a job, or files with the weights of all members.
        folder: Of the job.
        data: Folder of the images: of a job, what its ``--data`` was.
        model: Of files, the network, as in `mirepoix.models.NetworkSpec`.
        width: Of files, that of ``mnist_cnn``.
        size: Of files, the side in pixels of what the network sees; by default, what it was designed for.
        device: Of the network; the rest is computed on the processor.
        shuffles: As for `classifier_invariance`.
        seed: As for `classifier_invariance`.
        progress: Told of images read and of weights measured.

    Raises:
        InputError: For exported members; where weights, the network or images are missing; for other images than those
            of the job; and as `classifier_invariance`.
    """
    progress = progress or (lambda done, total, text: None)
    place = choose_device(device)
    if source.kind == "run" and folder is not None:
        if model is not None or width is not None or size is not None:
            raise InputError(
                "--model, --width and --size: go with weights of your own; a job knows its network."
            )
        images = "the training images of each source domain, without augmentation"
        cases: Iterable[_Case] = _of_job(source, Path(folder), data, progress)
    elif source.kind == "files":
        images = f"all images of {data}"
        cases = [_of_files(source.blocks[0], data, model, width, size, progress)]
    else:
        raise InputError(
            "--invariance: exported members do not say which images they were trained on. Name the weights of one "
            "split (members/SPLIT/*.safetensors) with --weights, their network with --model and a folder of source "
            "images with --data."
        )
    blocks = []
    for case in cases:
        network = case.spec.build().to(place)
        found = {}
        for number, (name, theta) in enumerate(case.thetas()):
            progress(number + 1, case.models, f"{case.name}: {name}")
            domains = {
                subset.name: evaluation_batches(subset, case.task.transform, device=place)
                for subset in case.subsets
            }
            found[name] = classifier_invariance(network, theta, domains, shuffles=shuffles, seed=seed)
        blocks.append(Examined(case.name, tuple(subset.name for subset in case.subsets), found))
    return SourceInvariance(images, tuple(blocks))


@dataclass(frozen=True)
class _Case:
    """What belongs together: a network, its weights one by one, and images."""

    name: str
    spec: NetworkSpec
    task: Task
    subsets: Sequence[Subset]
    files: Mapping[str, Path]
    made: bool

    @property
    def models(self) -> int:
        return len(self.files) + self.made

    def thetas(self) -> Iterator[tuple[str, Weights]]:
        """Read one at a time; of files the average is made here, of members in the names of our networks."""
        for name, path in self.files.items():
            yield name, self._read(path)
        if self.made:
            yield "average", average(self._read(p) for name, p in self.files.items() if name != "start")

    def _read(self, path: Path) -> Weights:
        try:
            return load_pretrained(self.spec, open_weights(path), keep_classifier=True)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def _of_job(source: Source, folder: Path, data: Any, progress: Progress) -> Iterator[_Case]:
    from mirepoix.experiment import build_task
    from mirepoix.recipe import Recipe

    try:
        job = read_json(folder / "job.json")
        recipe = Recipe.model_validate(job["recipe"])
        digest = str(job["task"]["digest"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / 'job.json'}: expected the record of a job, with its recipe, and it cannot be read ({error}). "
            "Run the same command again: what is already trained is kept."
        ) from None
    task = build_task(
        recipe.data,
        None if data is None else Path(data),
        cache_dir=folder / "store" / "images",
        progress=progress,
    )
    if task.digest != digest:
        raise InputError(
            f"--data {data}: expected the images of the job in {folder}, got others. Name the folder that its --data "
            "named."
            if data is not None
            else f"{folder}: its images were made by another version of mirepoix, and are not the same now. Run the "
            "job again into another folder."
        )
    for block in source.blocks:
        if block.start is None:
            raise InputError(
                f"{folder / 'starts'}: expected the start of {block.name}, and there is none. {AGAIN}"
            )
        split = task.split(block.target, data_seed=block.data_seed or 0, holdout=recipe.data.holdout)
        files = {"start": block.start}
        for name in block.members:
            if name not in block.weights:
                raise InputError(
                    f"{folder / 'members' / block.start.stem}: expected the weights of {name}, and there are none. "
                    f"{AGAIN}"
                )
            files[name] = block.weights[name]
        if len(block.members) > 1:
            files["average"] = folder / "soups" / block.start.stem / "average.safetensors"
            if not files["average"].is_file():
                raise InputError(f"{files['average']}: expected the average, and there is none. {AGAIN}")
        record = read_json(block.start.with_suffix(".json"))
        try:
            spec = NetworkSpec(**record["network"])
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{block.start.with_suffix('.json')}: expected a record with the network, got {error}. {AGAIN}"
            ) from None
        yield _Case(block.name, spec, task, split.train, files, made=False)


def _of_files(
    block: Block, data: Any, model: str | None, width: int | None, size: int | None, progress: Progress
) -> _Case:
    missing = [name for name in block.members if name not in block.weights]
    lacking = [
        words
        for words, there in (
            ("--weights CKPTS, the weights of the members", bool(block.weights)),
            ("--model NAME, their network", model is not None),
            ("--data FOLDER, images of the source domains with one sub-folder per domain", data is not None),
        )
        if not there
    ]
    if lacking:
        raise InputError(
            f"--invariance: runs the networks on source images, so it needs {'; '.join(lacking)}."
        )
    if missing:
        raise InputError(f"--invariance: expected weights of all members, and {missing[0]} has none.")
    assert model is not None
    side = input_size_hint(NetworkSpec(name=model, classes=1, width=width)) if size is None else size
    task = validation_folder(data, size=side, progress=progress)
    spec = NetworkSpec(name=model, classes=len(task.classes), width=width)
    whole = [
        Subset(domain, number, torch.arange(len(domain)).numpy())
        for number, domain in enumerate(task.domains)
    ]
    if block.start is not None and "start" in block.members:
        raise InputError("--invariance: expected members of other names than 'start' beside --start.")
    files = {} if block.start is None else {"start": block.start}
    files |= {name: block.weights[name] for name in block.members}
    kinds = {COMBINED.get(name.lower(), name.lower()) for name in block.members}
    made = len(block.members) > 1 and "average" not in kinds
    return _Case(block.name, spec, task, whole, files, made)
