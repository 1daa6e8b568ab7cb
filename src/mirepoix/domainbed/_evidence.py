"""Why the rows of the table differ: the five figures of the papers, for one split, from members that are there.

This is computed after the tables and reads the labels of the target, so nothing that selects may see it. Nothing is
trained. Each average is scored once and its predictions stay in the store, so a second look is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from mirepoix.checkpoints import fingerprint
from mirepoix.domainbed._measure import Gathered, Measured, Member
from mirepoix.domainbed._nodes import TaskName, Trained, WithHead
from mirepoix.domainbed._rows import family_of
from mirepoix.domainbed._workbench import NotMade, Workbench
from mirepoix.evidence import (
    accuracy_against_members,
    accuracy_against_share,
    accuracy_against_tasks,
    gain_against_diversity,
    interpolation_curve,
)
from mirepoix.training import snapshots
from mirepoix.types import InputError, Weights

__all__ = ["look_into_split"]

THETA_PT = "theta_pt"
"""Name of the initialisation that no auxiliary task has changed."""

POINTS = 5
"""On a line between weights, ends included."""

SHARE_MEMBERS = 4
"""The most members of an average of plain and inter-trained ones; each more costs a point of the figure."""


def look_into_split(
    bench: Workbench, dataset: str, target: str, data_seed: int, *, subsets: int
) -> dict[str, Any]:
    r"""The numbers of the figures of one split, as plain values ready for JSON.

    OOD accuracy is that on the whole target, ID accuracy the mean over source domains of their validation accuracy.
    An average gets batch-norm statistics of its own before it predicts; members are scored as the tables score them.

    The figures, by their keys:

    - ``members``: accuracy against M, of fine-tunings, of their ensembles, and of snapshots of run 0 (its M best checks
      on ID validation), for M = 1, 2, 4, ... and all of them;
    - ``diversity`` and ``diversity_inter_training``: the gain of averages against their ratio-error on the target, of
      fine-tunings and of inter-trainings;
    - ``share``: accuracy against the share of members that start at an auxiliary task, of at most 4 members;
    - ``tasks``: accuracy against the number of initialisations: ``theta_pt`` and each auxiliary task. M is the one
      for which the most points are about all initialisations;
    - ``hypothesis_1``: between two initialisations under the head of the target, without training on the target;
      batch-norm statistics are those of the source images everywhere, the ends included;
    - ``hypothesis_2``: between two members that were fine-tuned from these initialisations;
    - ``three``: from the average of these two to a member of a third initialisation.

    The initialisations of the last three are auxiliary tasks in the order of the recipe, then ``theta_pt``.

    Args:
        bench: The benchmark with its store.
        dataset: Label of the dataset.
        target: The left-out domain.
        data_seed: Of the split.
        subsets: The most subsets of members for each point of a figure. With 6 members and 4 subsets, some sixty
            averages are predicted with.

    Returns:
        ``dataset``, ``target``, ``data_seed``, ``subsets``; ``figures``: for each key its ``kind``, the name of the
        function of `mirepoix.domainbed` that made its ``numbers``, and ``names`` of the weights on a line; or, where
        a family of members is in no row of the recipe or not complete, ``missing``, the reason; ``notes``, sentences
        about what was left out; and ``averages``, how many averages were scored.

    Raises:
        InputError: If ``subsets`` is below 1, or for datasets, domains or weights that are not there.
    """
    if subsets < 1:
        raise InputError(f"subsets: expected at least 1, got {subsets}.")
    return _Look(Measured(bench, TaskName(dataset, target, data_seed)), subsets).result()


class _Left(Exception):
    """Why a figure cannot be made."""


class _Scores:
    """Accuracies of weights: members as they are, averages with batch-norm statistics of their own."""

    def __init__(self, judge: Any) -> None:
        self.judge = judge
        self._as_they_are: set[str] = set()
        self._known: dict[tuple[str, str], float] = {}

    def keep(self, theta: Weights) -> Weights:
        """These weights are ready to predict; a copy of them is too."""
        self._as_they_are.add(fingerprint(theta))
        return theta

    def ood(self, theta: Weights) -> float:
        """On the whole target."""
        return self._accuracies(theta, "ood")["ood"]

    def id(self, theta: Weights) -> float:
        """The mean over source domains; the OOD accuracy is found on the way, for the same weights come next."""
        return self._accuracies(theta, "id", "ood")["id"]

    @property
    def averages(self) -> int:
        """How many averages were scored."""
        return len({key for key, _ in self._known} - self._as_they_are)

    def _accuracies(self, theta: Weights, *sides: str) -> dict[str, float]:
        key = fingerprint(theta)
        wanted = [side for side in sides if (key, side) not in self._known]
        if wanted and key not in self._as_they_are:
            theta = self.judge.refresh(theta)
        for side in wanted:
            if side == "ood":
                value = self.judge.ood_accuracy(self.judge.logits(theta, "test"))
            else:
                value = self.judge.id_accuracy(self.judge.logits(theta, "validation"))
            self._known[key, side] = value
        return {side: self._known[key, side] for side in sides}


class _Look:
    """One split under way."""

    def __init__(self, measured: Measured, subsets: int) -> None:
        self.measured, self.subsets = measured, subsets
        self.bench = measured.bench
        self.notes: list[str] = []
        self._gathered: dict[str, Gathered] = {}

    @cached_property
    def scores(self) -> _Scores:
        """The two accuracies."""
        return _Scores(self.measured.judge)

    def result(self) -> dict[str, Any]:
        """All figures."""
        figures = {
            "members": self.figure(accuracy_against_members.__name__, self.members),
            "diversity": self.figure(gain_against_diversity.__name__, lambda: self.diversity("fine_tuning")),
            "diversity_inter_training": self.figure(
                gain_against_diversity.__name__, lambda: self.diversity("inter_training")
            ),
            "share": self.figure(accuracy_against_share.__name__, self.share),
            "tasks": self.figure(accuracy_against_tasks.__name__, self.tasks),
            "hypothesis_1": self.figure(interpolation_curve.__name__, self.hypothesis_1),
            "hypothesis_2": self.figure(interpolation_curve.__name__, self.hypothesis_2),
            "three": self.figure(interpolation_curve.__name__, self.three),
        }
        name = self.measured.name
        made = any("numbers" in figure for figure in figures.values())
        return {
            "dataset": name.dataset,
            "target": name.target,
            "data_seed": name.data_seed,
            "subsets": self.subsets,
            "figures": figures,
            "notes": list(dict.fromkeys(self.notes)),
            "averages": self.scores.averages if made else 0,
        }

    def figure(self, kind: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The numbers of one figure, or why there are none."""
        try:
            return {"kind": kind, **make()}
        except _Left as why:
            return {"kind": kind, "missing": str(why)}

    # Members ------------------------------------------------------------------------------------------------

    def gather(self, family: str) -> Sequence[Member]:
        """All members of a family, those that diverged left out and noted."""
        label = family_of(family).label
        if family not in {row.family for row in self.bench.benchmark.rows()}:
            raise _Left(f"no row of the recipe is about {label}")
        if family not in self._gathered:
            self._gathered[family] = self.measured.gather(family)
        found = self._gathered[family]
        if found.missing:
            raise _Left(f"{label}: {found.missing}")
        if found.diverged:
            runs = ", ".join(map(str, found.diverged))
            self.notes.append(f"{label}: left out, for they diverged: runs {runs}")
        return found.members

    def weights(self, members: Sequence[Member], fewest: int, what: str) -> list[Weights]:
        """Their weights, if there are enough of them."""
        if len(members) < fewest:
            raise _Left(f"expected at least {fewest} {what}, got {len(members)}")
        return [self.scores.keep(member.theta) for member in members]

    def initialisations(self) -> dict[str, list[Member]]:
        """Members by where they began: each auxiliary task, then theta_pt."""
        found: dict[str, list[Member]] = {}
        plain: list[Member] = []
        for member in self.gather("inter_training"):
            name = _auxiliary(member.node)
            (plain if name is None else found.setdefault(name, [])).append(member)
        order = self.measured.members_of.auxiliaries(self.measured.name.dataset)
        groups = {name: found[name] for name in order if name in found}
        # A run of inter-training that starts at theta_pt is one of fine-tuning: the others are of the same kind.
        if "fine_tuning" in {row.family for row in self.bench.benchmark.rows()}:
            there = {member.node for member in plain}
            plain += [member for member in self.gather("fine_tuning") if member.node not in there]
        return {**groups, THETA_PT: plain} if plain else groups

    def some_initialisations(self, count: int) -> list[tuple[str, Member]]:
        """The first member of each of the first initialisations."""
        groups = self.initialisations()
        if len(groups) < count:
            raise _Left(f"expected members of at least {count} initialisations, got {len(groups)}")
        return [(name, members[0]) for name, members in list(groups.items())[:count]]

    # Figures ------------------------------------------------------------------------------------------------

    def members(self) -> dict[str, Any]:
        """Accuracy against the number of members."""
        members = self.gather("fine_tuning")
        thetas = self.weights(members, 2, "fine-tunings")
        numbers = accuracy_against_members(
            thetas,
            self.scores.ood,
            snapshots=self.snapshots(members[0], len(thetas)),
            logits=self.logits(thetas),
            labels=self.measured.judge.labels("test"),
            sizes=_doubling(1, len(thetas)),
            subsets=self.subsets,
        )
        return {"numbers": numbers}

    def snapshots(self, member: Member, count: int) -> list[Weights] | None:
        """The best checks of one run on ID validation; None, with a note, where they were not kept."""
        if "snapshots" not in self.bench.benchmark.collected():
            self.notes.append('no curve of one run: add "snapshots" to `keep` in the recipe')
            return None
        node = replace(member.node, run=member.node.run.with_(collect="snapshots"))
        try:
            kept = snapshots(self.bench.weights(node))
        except NotMade:
            self.notes.append("no curve of one run: its snapshots were not kept")
            return None
        scores = {check["step"]: _mean(check["accuracies"].values()) for check in member.record["checks"]}
        best = sorted(kept, key=lambda step: (-scores[step], step))[:count]
        return [self.scores.keep(kept[step]) for step in best]

    def logits(self, thetas: Sequence[Weights]) -> torch.Tensor:
        """Of members, on the whole target."""
        return torch.stack([self.measured.judge.logits(theta, "test") for theta in thetas])

    def diversity(self, family: str) -> dict[str, Any]:
        """Gain against ratio-error."""
        thetas = self.weights(self.gather(family), 2, "members")
        right = self.logits(thetas).argmax(-1) == self.measured.judge.labels("test")
        sizes = [size for size in _doubling(2, len(thetas)) if size < len(thetas)]  # that leave a choice
        numbers = gain_against_diversity(
            thetas, self.scores.ood, right, sizes=sizes or [2], subsets=self.subsets
        )
        return {"numbers": numbers}

    def share(self) -> dict[str, Any]:
        """Accuracy against the share of inter-trained members."""
        plain = self.weights(self.gather("fine_tuning"), 2, "fine-tunings")
        recycled = [member for member in self.gather("inter_training") if _auxiliary(member.node) is not None]
        thetas = self.weights(recycled, 2, "members that start at an auxiliary task")
        count = min(len(plain), len(thetas), SHARE_MEMBERS)
        numbers = accuracy_against_share(plain, thetas, self.scores.ood, members=count, subsets=self.subsets)
        return {"numbers": numbers}

    def tasks(self) -> dict[str, Any]:
        """Accuracy against the number of initialisations."""
        groups = self.initialisations()
        count = _members_of_tasks([len(members) for members in groups.values()])
        if count is None:
            sizes = ", ".join(f"{name} {len(members)}" for name, members in groups.items())
            raise _Left(
                "expected enough members of each initialisation to compare numbers of them at the same number of "
                f"members, got {sizes}"
            )
        thetas = {name: self.weights(members, 1, "members") for name, members in groups.items()}
        numbers = accuracy_against_tasks(thetas, self.scores.ood, members=count, subsets=self.subsets)
        return {"numbers": numbers}

    def hypothesis_1(self) -> dict[str, Any]:
        """Between two initialisations, before any training on the target task."""
        chosen = self.some_initialisations(2)
        # What auxiliary images left in batch norm says nothing of a featurizer: the ends are refreshed too.
        ends = [self.measured.judge.refresh(self.bench.weights(member.node.theta)) for _, member in chosen]
        return self.line(chosen, ends)

    def hypothesis_2(self) -> dict[str, Any]:
        """Between two members of different initialisations."""
        chosen = self.some_initialisations(2)
        return self.line(chosen, [member.theta for _, member in chosen])

    def three(self) -> dict[str, Any]:
        """From the average of two members to a third, all of different initialisations."""
        chosen = self.some_initialisations(3)
        return self.line(chosen, [member.theta for _, member in chosen])

    def line(self, chosen: Sequence[tuple[str, Member]], thetas: Sequence[Weights]) -> dict[str, Any]:
        """ID and OOD accuracies on the way."""
        a, b, *others = [self.scores.keep(theta) for theta in thetas]
        numbers = interpolation_curve(
            a,
            b,
            {"ID": self.scores.id, "OOD": self.scores.ood},
            theta_c=others[0] if others else None,
            points=POINTS,
        )
        return {"numbers": numbers, "names": [name for name, _ in chosen]}


def _auxiliary(node: Trained) -> str | None:
    """The auxiliary task that a member started at; None for theta_pt."""
    start = node.theta
    if isinstance(start, WithHead) and isinstance(start.theta, Trained):
        return start.theta.task.dataset
    return None


def _doubling(first: int, last: int) -> list[int]:
    """``first``, twice as many, ..., and ``last``."""
    sizes = []
    while first < last:
        sizes.append(first)
        first *= 2
    return [*sizes, last]


def _members_of_tasks(sizes: Sequence[int]) -> int | None:
    """M with the most points to which every group can contribute, the smallest of several; None below two points."""
    best, most = None, 1
    for members in range(2, sum(sizes) + 1):
        parts = [-(-members // t) for t in range(1, min(len(sizes), members) + 1)]
        points = sum(part <= min(sizes) for part in parts)
        if points > most:
            best, most = members, points
    return best


def _mean(values: Any) -> float:
    numbers = list(values)
    return float(sum(numbers) / len(numbers))
