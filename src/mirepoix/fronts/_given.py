"""The front of experts somebody already has: files of weights or adapters, from any trainer.

The experts are looked at before anything is computed; then every soup is written into the same tensors and judged.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mirepoix.experiment import claimed
from mirepoix.fronts._choice import choice as choose
from mirepoix.fronts._content import Trial
from mirepoix.fronts._given_experts import GivenExperts, Point, quoted
from mirepoix.fronts._given_rewards import COMPLETIONS, Evaluation, OfTexts, OfWeights, Speaking, forget
from mirepoix.rewards import RewardFront, simplex_design, simplex_lattice
from mirepoix.types import InputError

__all__ = ["Export", "GivenFront", "front_of_experts"]

WRITTEN = ("front.json", "report.json", "chosen.json")
"""Files of the job that could have the name of a record beside an expert."""


class Progress(Protocol):
    """What hears how far it is; `mirepoix.cli._progress.Bar` is one."""

    def plan(self, steps: int, /) -> None:
        """The job has this many steps."""

    def stage(self, text: str, steps: int = 0, /) -> None:
        """This is done now, and has so many steps."""


@dataclass(frozen=True)
class Export:
    """What the chosen weights are made of.

    Attributes:
        members: Paths of the experts that take part.
        coefficients: One for each.
        adapters: Whether they are adapters.
        folders: Whether all are folders of models with their settings.
        base: The weights that the adapters change.
    """

    members: tuple[str, ...]
    coefficients: tuple[float, ...]
    adapters: bool
    folders: bool
    base: str | None


@dataclass(frozen=True)
class GivenFront:
    """The front, and all that a report says about it.

    Attributes:
        trial: The soups and, if the start is given, its rewards.
        choice: As from `mirepoix.fronts.choice`, or None without a preference.
        export: What the chosen weights are made of, or None without a preference.
        facts: What was given and evaluated, as terms and sentences.
        protocol: How, as plain values.
        samples: Completions of some prompts, for language models.
        warnings: What a reader should know before the numbers.
    """

    trial: Trial
    choice: dict[str, Any] | None
    export: Export | None
    facts: list[tuple[str, str]]
    protocol: dict[str, Any]
    samples: dict[str, Any] | None
    warnings: list[str]


def front_of_experts(
    experts: Mapping[str, str | os.PathLike[str]],
    rewards: Sequence[str],
    *,
    out: str | os.PathLike[str],
    start: str | os.PathLike[str] | None = None,
    trained: Mapping[str, str] | None = None,
    speaking: Speaking | None = None,
    points: int = 11,
    preference: Mapping[str, float] | None = None,
    seed: int = 0,
    container: str | None = None,
    force: bool = False,
    fresh: bool = False,
    held: bool = False,
    progress: Progress | None = None,
) -> GivenFront:
    r"""The rewards of the soups :math:`\theta_\lambda = \sum_i \lambda_i \theta_i` of given experts.

    Without ``speaking``, a reward is a function of weights: it gets a mapping from names to torch tensors, which are
    written again for the next soup, and returns one number per evaluation item, the same items every time; a single
    function may return ``{reward: numbers}``. With ``speaking``, it is a reward of texts. All are maximised.

    Before each call of a reward the global generators of Python, NumPy and torch are seeded with ``seed``, and they are
    put back afterwards, so that what a reward draws from them is the same for all soups.

    Values are kept in ``out/values`` by the content of weights, prompts and reward, and are not computed again: a job
    that was killed goes on where it was. A function is known by the text of its module; what it reads, and what it
    calls elsewhere, is not seen.

    Args:
        experts: Two or more files of weights, folders of models, or folders of LoRA adapters, by name.
        rewards: Each ``[name=]module:function``. With ``speaking`` also, after ``name=`` or alone, a built-in of
            `mirepoix.rewards.text.named_reward` or the folder of a sequence classifier (``FOLDER:LABEL`` if it has
            several). Modules are searched in the current folder first.
        out: Folder of ``front.json`` and of the values.
        start: The common start, or the base of the adapters. It is taken as the start of experts that do not tell
            theirs, and its rewards are evaluated too.
        trained: From expert to the reward it was trained on. By default an expert named as a reward was trained on it;
            of others it is not known.
        speaking: How language models are evaluated. Network and tokenizer are those of ``start``, or of the base that
            adapters name.
        points: For two experts, that many on the line between them, ends included; for more, of `simplex_design`.
        preference: A weight for each reward that counts, to choose a soup by.
        seed: Of the design, of sampled tokens, and of what rewards draw.
        container: Where the weights are in torch files that hold several.
        force: Let through experts of which it is not known that they share a start, or known that they do not.
        fresh: Evaluate anew what is kept.
        held: The caller holds ``out`` already (`mirepoix.experiment.claimed`).
        progress: Hears of every soup.

    Returns:
        The front and what to report of it; ``front.json`` is written.

    Raises:
        InputError: For experts that cannot be averaged or do not share a start; for a reward that raises, is not
            finite or has another number of values, with its name, the coefficients, and the prompt where there is one.
    """
    folder = Path(out)
    given = GivenExperts(
        {name: Path(path) for name, path in experts.items()},
        None if start is None else Path(start),
        speaking is not None,
        container,
        force,
    )
    trained, preference = dict(trained or {}), None if preference is None else dict(preference)
    _check_options(given.paths, rewards, trained, points, preference)
    with nullcontext() if held else claimed(folder, shares=False):
        if (folder / "job.json").exists():
            raise InputError(f"{folder}: holds the results of `mirepoix run`. Choose another --out.")
        values = folder / "values"
        (values / COMPLETIONS).mkdir(parents=True, exist_ok=True)
        told = given.check([folder / name for name in WRITTEN])
        evaluation: Evaluation
        if speaking is None:
            evaluation = OfWeights(rewards, values, seed)
        else:
            assert given.text_start is not None
            evaluation = OfTexts(rewards, values, seed, start=given.text_start, speaking=speaking)
        _check_rewards(evaluation.names, trained, preference)
        if fresh:  # only once the command is known to be right
            forget(values)
        stage = progress.stage if progress is not None else _silent
        stage("reading the experts")
        left_out = given.diverged()
        kept = [name for name in given.paths if name not in left_out]
        if len(kept) < 2:
            raise InputError(
                f"front: expected two experts or more that are finite. {' '.join(left_out.values())}"
            )
        design = simplex_lattice(kept, points - 1) if len(kept) == 2 else simplex_design(kept, points, seed)
        planned, origin = given.points(design), given.start_point()
        given.warnings += _repeated(planned, origin)
        if progress is not None:
            progress.plan(len(planned) + (origin is not None))
        tables = []
        for number, point in enumerate(planned, start=1):
            stage(f"soup {number} of {len(planned)}: {_shares(point)}", 1)
            tables.append(evaluation.table(point))
            _check_rewards(evaluation.names, trained, preference)
        names = evaluation.names
        soups = RewardFront(
            experts=tuple(kept),
            rewards=names,
            coefficients=tuple(design),
            values=[[table[name] for name in names] for table in tables],
            trained_on={name: trained[name] for name in kept if name in trained}
            | {name: name for name in kept if name in names and name not in trained},
            provenance={
                "experts": {name: str(given.paths[name]) for name in kept},
                "start": told,
                "evaluation": evaluation.identity,
                "warnings": given.warnings,
                "left_out": left_out,
            },
        )
        of_start = None
        if origin is not None:
            stage("the start", 1)
            of_start = _alone("start", evaluation.table(origin), names)
        chosen = None if preference is None else choose(soups, preference)
        stage("writing the front")
        soups.save(folder / "front.json")
        return GivenFront(
            trial=Trial(folder.resolve().name or "front", soups, start=of_start),
            choice=chosen,
            export=None if chosen is None else _export(given, chosen["coefficients"]),
            facts=_facts(given, soups, told, seed) + evaluation.facts(len(tables[0][names[0]])),
            protocol={
                "experts": [f"{name}={path}" for name, path in given.paths.items()],
                "start": None if given.start is None else str(given.start),
                "points": len(soups),
                "items": soups.items,
                "seed": seed,
                **evaluation.protocol(),
            },
            samples=evaluation.samples(_shown(planned, origin, chosen)),
            warnings=list(given.warnings),
        )


def _check_options(
    experts: Mapping[str, Path],
    rewards: Sequence[str],
    trained: Mapping[str, str],
    points: int,
    preference: Mapping[str, float] | None,
) -> None:
    if len(experts) < 2:
        raise InputError(
            f"front: expected two or more experts, got {len(experts)}. They go before the options: mirepoix front "
            "a=A.safetensors b=B.safetensors --rewards ..."
        )
    for name, path in experts.items():
        if not name or re.search(r"[=,\s]", name):
            raise InputError(
                f"front: expected names of experts without spaces, commas and =, got {name!r}. Name it: NAME={path}."
            )
    if not rewards:
        raise InputError("--rewards: expected at least one, got none.")
    unknown = next((name for name in trained if name not in experts), None)
    if unknown is not None:
        raise InputError(f"--trained: there is no expert {unknown!r}; there are {quoted(experts)}.")
    least = 2 if len(experts) == 2 else len(experts) + 1
    if points < least:
        why = "both ends" if least == 2 else f"{len(experts)} experts alone and their uniform soup"
        raise InputError(f"--points: expected at least {least}, for {why}, got {points}.")
    for name, weight in (preference or {}).items():
        if not 0 <= weight < math.inf:
            raise InputError(f"--preference: expected a weight of 0 or more for {name!r}, got {weight:g}.")
    if preference is not None and not sum(preference.values()) > 0:
        raise InputError("--preference: expected a weight above 0 for at least one reward.")


def _check_rewards(
    names: Sequence[str], trained: Mapping[str, str], preference: Mapping[str, float] | None
) -> None:
    """Raise for rewards that there are not, once it is known which there are."""
    for option, used in (("--preference", list(preference or {})), ("--trained", list(trained.values()))):
        unknown = next((name for name in used if names and name not in names), None)
        if unknown is not None:
            raise InputError(f"{option}: there is no reward {unknown!r}; there are {quoted(names)}.")


def _repeated(points: Sequence[Point], origin: Point | None) -> list[str]:
    """Experts that are the start, or one another, in words."""
    alone = [(name, p) for p in points for name, share in p.shares.items() if share == 1]
    seen = {} if origin is None else {json.dumps(origin.made_of): "the start"}
    found = []
    for name, point in alone:
        other = seen.setdefault(json.dumps(point.made_of), f"expert {name!r}")
        if other != f"expert {name!r}":
            found.append(f"The weights of expert {name!r} are those of {other}.")
    return found


def _alone(name: str, table: Mapping[str, Sequence[float]], rewards: Sequence[str]) -> RewardFront:
    """A front of one policy that is no soup."""
    return RewardFront(
        experts=(name,),
        rewards=tuple(rewards),
        coefficients=({name: 1.0},),
        values=[[table[reward] for reward in rewards]],
        label=name,
    )


def _export(given: GivenExperts, coefficients: Mapping[str, float]) -> Export:
    part = {name: share for name, share in coefficients.items() if share}
    members = [given.paths[name] for name in part]
    return Export(
        members=tuple(map(str, members)),
        coefficients=tuple(part.values()),
        adapters=given.are_adapters,
        folders=all((path / "config.json").is_file() for path in members),
        base=str(given.base) if given.are_adapters else None,
    )


def _facts(given: GivenExperts, soups: RewardFront, told: str, seed: int) -> list[tuple[str, str]]:
    def expert(name: str) -> str:
        reward = soups.trained_on.get(name)
        return f"{name} ({given.paths[name]}{f', trained on {reward}' if reward else ''})"

    kind = "LoRA adapters, whose changes are added exactly" if given.are_adapters else "whole models"
    where = "on the line between the two"
    if len(soups.experts) > 2:
        where = f"the experts alone, their uniform soup, and uniform draws with the seed {seed}"
    return [
        ("Experts", f"{'; '.join(map(expert, soups.experts))}: {kind}."),
        ("Start", f"{told[0].upper()}{told[1:]}." if given.start is None else f"{told}."),
        ("Soups", f"{len(soups)} points: {where}."),
    ]


def _shown(
    points: Sequence[Point], origin: Point | None, chosen: Mapping[str, Any] | None
) -> list[tuple[str, Point]]:
    """The start, the experts alone, the soup nearest to uniform, and the chosen one."""
    names = list(points[0].shares)
    alone = {name: point for point in points for name, share in point.shares.items() if share == 1}
    shown = [] if origin is None else [("start", origin)]
    shown += [(name, alone[name]) for name in names]
    inner = [point for point in points if max(point.shares.values()) < 1]
    if inner:
        middle = min(inner, key=lambda point: max(abs(s - 1 / len(names)) for s in point.shares.values()))
        shown.append((_shares(middle), middle))
    if chosen is not None:
        found = next(point for point in points if point.shares == dict(chosen["coefficients"]))
        shown.append((f"chosen: {_shares(found)}", found))
    return shown


def _shares(point: Point) -> str:
    return ", ".join(f"{name} {share:.3g}" for name, share in point.shares.items() if share)


def _silent(text: str, steps: int = 0, /) -> None:
    pass
