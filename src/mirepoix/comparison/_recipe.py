"""A comparison of ensembles as a TOML file: one task, one network, and the systems that are compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from mirepoix.ensembles._named import check_joint, mixes_inputs
from mirepoix.models import NetworkSpec
from mirepoix.objectives._named import never_begins
from mirepoix.recipe import (
    Count,
    Data,
    Experiment,
    Flag,
    Natural,
    Number,
    RunTable,
    Table,
    blame,
    explained,
    read_values,
    validated,
)
from mirepoix.runs import Run
from mirepoix.snapshots._named import check_later
from mirepoix.types import InputError

__all__ = ["Along", "Comparison", "Kind", "Named", "SystemTable", "load_comparison"]

Kind = Literal["deep_ensemble", "snapshot", "star", "joint", "swag", "laplace", "simplex"]

TAKES: Mapping[str, tuple[str, ...]] = {
    "deep_ensemble": ("objective", "run", "starts", "scratch", "soup"),
    "snapshot": ("objective", "run", "cycle", "later", "scratch", "soup"),
    "star": ("objective", "run", "cycle", "later", "scratch", "soup"),
    "joint": ("objective", "run", "inputs", "split_at", "copies", "scratch"),
    "swag": ("objective", "run", "cycle", "scratch", "sampling"),
    "laplace": ("objective", "run", "scratch", "sampling"),
    "simplex": ("objective", "run", "cycle", "scratch", "sampling"),
}
"""The keys of a system that go with its kind, beside ``name``, ``kind`` and ``members``."""

CYCLIC = ("snapshot", "star", "swag", "simplex")
"""Kinds whose later trainings start from a trained member."""

SAMPLED = ("swag", "laplace", "simplex")
"""Kinds whose later members are drawn and not trained."""

WHY: Mapping[str, str] = {
    "cycle": "it has no trainings that start from a trained member",
    "later": "it has no later members that know of earlier ones",
    "starts": "all of its members begin with one training, or in one network",
    "soup": "its members are no networks that can be averaged",
    "inputs": "only members of one network share its core",
    "split_at": "only members of one network share a trunk",
    "copies": "set members instead",
    "sampling": "its members are trained, not drawn",
}


class SwagTable(Table):
    """Options of `mirepoix.snapshots.SWAG`."""

    rank: Annotated[int, Field(strict=True, ge=0)] = 20
    """The most deviations that the covariance is made of."""
    scale: Annotated[Number, Field(ge=0)] = 0.5
    """What the covariance is multiplied by."""

    @field_validator("rank")
    @classmethod
    def _no_single(cls, value: int) -> int:
        if value == 1:
            raise ValueError("expected 0, or 2 and more, as the covariance is divided by rank - 1")
        return value


class LaplaceTable(Table):
    """Options of `mirepoix.snapshots.laplace_samples`."""

    scale: Annotated[Number, Field(ge=0)] = 1.0
    """What the covariance is multiplied by."""
    prior_precision: Annotated[Number, Field(gt=0)] = 1.0
    structure: Literal["kron", "diag", "full"] = "kron"
    """Of the curvature."""
    layers: Literal["all", "last"] = "all"


class SimplexTable(Table):
    """Options of `mirepoix.snapshots.SimplexVolume`, and how many vertices there are."""

    alpha: Annotated[Number, Field(ge=0)]
    """Weight of the volume."""
    vertices: Annotated[int, Field(strict=True, ge=2)] = 3
    """Trainings, member 1 among them."""
    points: Count = 5
    """Points of the simplex in every update."""
    root: Flag = True
    """The volume, and not its square."""


SAMPLING: Mapping[str, type[Table]] = {"swag": SwagTable, "laplace": LaplaceTable, "simplex": SimplexTable}
"""The options of each kind whose members are drawn."""


class Named(Table):
    """A criterion: its name, and beside it the options of its constructor."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Annotated[str, Field(strict=True)]

    @property
    def options(self) -> dict[str, Any]:
        """The hyperparameters that the recipe sets."""
        return dict(self.model_extra or {})

    @property
    def words(self) -> str:
        """Name and options, for people."""
        return ", ".join([self.name, *(f"{name} = {value}" for name, value in self.options.items())])


class OneTarget(Data):
    """Where the images come from; one domain is tested on."""

    targets: Annotated[list[str], Field(min_length=1, max_length=1)]
    """The domain that is left out of training and tested on."""
    seeds: Annotated[list[Natural], Field(min_length=1)] = Field(default=[0, 1, 2])
    """The trials: other divisions into training and validation, and other seeds of all that is random."""
    holdout: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.1
    """Share of the training images that are looked at along the way; they choose nothing."""


class SystemTable(Table):
    """One system: some members, how they are trained, and so how their predictions differ."""

    name: Annotated[str, Field(strict=True)]
    """What tables call it."""
    kind: Kind
    """``deep_ensemble``, ``snapshot``, ``star``, ``joint``, ``swag``, ``laplace`` or ``simplex``."""
    members: Count | None = None
    """How many; those of the recipe unless given."""
    objective: Named | None = None
    """What its trainings minimise; the empirical risk, or the sum of the risks of ``joint`` members."""
    later: Named | None = None
    """What members after the first minimise, which know of the earlier ones."""
    run: RunTable = RunTable()
    """Its trainings: those of the recipe, changed by what is set here."""
    cycle: RunTable | None = None
    """Trainings of later members: those of the recipe's ``[cycle]``, changed by what is set here."""
    starts: Annotated[list[str], Field(min_length=1)] | None = None
    """Files of weights that members start from in turn, in place of that of the network."""
    scratch: Flag = False
    """Start every network from random weights of its own."""
    soup: Flag = False
    """A further row: the average of the members' weights."""
    inputs: Annotated[int, Field(strict=True, ge=2)] | None = None
    """How many members share all but a first convolution and a classifier."""
    split_at: str | None = None
    """Where the branches of the members begin, such as ``last_stage``; without it they share nothing."""
    copies: Count = 1
    """Networks of several members, trained apart, whose members make one prediction."""
    sampling: dict[str, Any] = Field(default={})
    """How later members are drawn, of the kinds ``swag``, ``laplace`` and ``simplex``."""

    @field_validator("objective", "later", mode="before")
    @classmethod
    def _by_name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def check_keys(self, at: str) -> None:
        """Whether the keys that are set go with the kind and with each other.

        Args:
            at: Where the table stands.
        """
        if not re.search(r"\w", self.name) or not self.name.isprintable():
            raise ValueError(
                f"systems.name: expected a letter or a digit in it, and no line break, got {self.name!r}"
            )
        if self.objective is not None and self.later is not None:
            raise ValueError(
                f"{at}.objective: not beside later, whose members minimise the risk and a term of their own; leave one "
                "out"
            )
        takes = (*TAKES[self.kind], "name", "kind", "members")
        for key in (key for key in type(self).model_fields if key in self.model_fields_set):
            if key not in takes:
                fitting = [kind for kind in get_args(Kind) if key in TAKES[kind]]
                raise ValueError(
                    f"{at}.{key}: not of a system of the kind {self.kind!r}: {WHY[key]}; leave it out, or make the "
                    f"kind one of {', '.join(fitting)}"
                )
        if self.inputs is not None:
            for key in ("members", "split_at"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{at}.{key}: not beside inputs, which are the members and share all but a first convolution "
                        "and a classifier; leave one of both out"
                    )
            if self.objective is None:
                raise ValueError(
                    f"{at}.objective: expected one that mixes inputs, mimo, linear_mixmo or cut_mixmo, got none"
                )
        if self.kind in SAMPLED:
            try:
                self.drawn_by()
            except ValidationError as error:
                lines = explained(error, SAMPLING[self.kind])
                raise ValueError("; ".join(f"{at}.sampling.{line}" for line in lines)) from None
        if self.scratch and self.starts:
            raise ValueError(f"{at}.starts: not beside scratch, whose members start from random weights")

    def drawn_by(self) -> Any:
        """The options of a kind whose members are drawn."""
        return SAMPLING[self.kind].model_validate(self.sampling)

    @property
    def changes_cycle(self) -> RunTable:
        """What its later members change."""
        return self.cycle or RunTable()


class Along(Table):
    """What is looked at beside the finished systems."""

    dynamics: Flag = False
    """Measure systems of the kind ``joint`` along their training, at every check."""
    images: Count = 1000
    """Images of the target that are predicted along the training."""


class Comparison(Experiment):
    """Systems of several members, compared on one task."""

    name: str
    title: str = ""
    source: str = ""
    members: Count = 5
    """Of every system that says no other number."""
    baseline: str | None = None
    """The name of the system that the others are compared with; the first unless given."""
    data: OneTarget
    cycle: RunTable | None = None
    """What trainings that start from a trained member change in ``[run]``."""
    evidence: Along = Along()
    systems: Annotated[tuple[SystemTable, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits_together(self) -> Comparison:
        if "space" in self.model_fields_set:
            raise ValueError(
                "space: the runs of a comparison are those of [run] and differ by their seeds; leave it out"
            )
        if self.network.scratch:
            for key, why in (("probe", "have no features to probe"), ("pretraining", "are not pre-trained")):
                if key in self.model_fields_set:
                    raise ValueError(f"{key}: random weights {why}; leave it out, or network.scratch")
        labels = self.labels()
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"systems: expected different names, got {twice!r} twice")
        if self.baseline is not None and self.baseline not in labels:
            raise ValueError(f"baseline: expected one of {', '.join(labels)}, got {self.baseline!r}")
        for system in self.systems:
            at = f"systems.{system.name}"
            system.check_keys(at)
            members = self.members_of(system)
            if members < 2 and system.kind != "deep_ensemble":
                raise ValueError(
                    f"{at}.members: expected at least 2 members of the kind {system.kind!r}, got {members}; a network "
                    "alone is a deep_ensemble of one member"
                )
            apart = system.kind == "deep_ensemble" and self.from_scratch(system)
            if system.soup and (members < 2 or apart):
                why = "there is one" if members < 2 else "they start from different random weights"
                raise ValueError(f"{at}.soup: members cannot be averaged, as {why}; leave it out")
            if system.soup and system.starts and len(set(system.starts)) > 1:
                raise ValueError(f"{at}.soup: members of different starts cannot be averaged; leave it out")
            if system.kind in CYCLIC and self.cycle is None and system.cycle is None:
                raise ValueError(
                    f"{at}.cycle: missing; say in [cycle], for all systems, or here what trainings that start from a "
                    "trained member change in [run]: steps = 100, for instance; an empty table for nothing"
                )
            objective = system.objective
            if objective is not None and system.kind == "joint":
                self._check_mixing(at, system, objective)
        return self

    def _check_mixing(self, at: str, system: SystemTable, objective: Named) -> None:
        """Whether a criterion is of the network that the members are in; unknown names are told later."""
        try:
            mixes = mixes_inputs(objective.name)
        except KeyError:
            return
        if mixes and system.inputs is None:
            raise ValueError(
                f"{at}.objective: {objective.name} mixes the inputs of one network; set inputs = 2 in place of members"
            )
        if not mixes and system.inputs is not None:
            raise ValueError(
                f"{at}.objective: expected one that mixes inputs, mimo, linear_mixmo or cut_mixmo, got "
                f"{objective.name!r}; or set members in place of inputs"
            )

    def labels(self) -> list[str]:
        """The rows of the table: systems, each followed by its soup where there is one."""
        return [
            label
            for system in self.systems
            for label in (system.name, soup_of(system.name))[: 1 + system.soup]
        ]

    @property
    def compared_with(self) -> str:
        """The row that the others are compared with."""
        return self.baseline or self.systems[0].name

    def members_of(self, system: SystemTable) -> int:
        """How many members a system, or each network of it, has."""
        return system.inputs or system.members or self.members

    def trainings_of(self, system: SystemTable) -> int:
        """How many trainings a system asks for in a trial, that of its first member among them."""
        match system.kind:
            case "joint":
                return system.copies
            case "swag":
                return 2
            case "laplace":
                return 1
            case "simplex":
                return int(system.drawn_by().vertices)
            case _:
                return self.members_of(system)

    def from_scratch(self, system: SystemTable) -> bool:
        """Whether the networks of a system start from random weights of their own."""
        return system.starts is None and (system.scratch or self.network.scratch)

    def base_run(self) -> Run:
        """The configuration of phase one; its last weights are its result."""
        return self.run.over(Run(collect="last"))

    def run_of(self, system: SystemTable) -> Run:
        """Of the first members of a system, or of all that know of none."""
        return system.run.over(self.base_run())

    def cycle_of(self, system: SystemTable) -> Run:
        """Of the later members of a system."""
        return system.changes_cycle.over((self.cycle or RunTable()).over(self.run_of(system)))

    def probe_run(self) -> Run | None:
        """The configuration of the probe; random weights have no features to probe."""
        return None if self.network.scratch else super().probe_run()

    def check_runs(self) -> None:
        """Try every configuration that the recipe can lead to, and every criterion."""
        super().check_runs()
        if self.cycle is not None:
            blame("cycle", partial(self.cycle.over, self.base_run()))
        for system in self.systems:
            at = f"systems.{system.name}"
            blame(f"{at}.run", partial(self.run_of, system))
            if system.kind in CYCLIC:
                blame(f"{at}.cycle" if system.cycle else "cycle", partial(self.cycle_of, system))
            if system.kind == "swag" and self.cycle_of(system).steps < 2:
                raise InputError(
                    f"{at}.cycle.steps: expected at least 2 steps to collect weights along, got 1."
                )
            steps = self.run_of(system).steps
            if system.objective is not None:
                table = system.objective
                if system.kind == "joint":
                    check = partial(check_joint, table.name, table.options, self.members_of(system), steps)
                else:
                    check = partial(_check_plain, table, steps)
                _blamed(f"{at}.objective", "objective", check)
            if system.later is not None:
                network = NetworkSpec(
                    name=self.network.name,
                    classes=3,
                    width=self.network.width,
                    frozen_batch_norm=self.network.frozen_batch_norm,
                )
                later = partial(check_later, system.later.name, system.later.options, network)
                _blamed(f"{at}.later", "later", later)


def soup_of(name: str) -> str:
    """What tables call the average of the members of a system."""
    return f"{name} soup"


def _check_plain(table: Named, steps: int) -> None:
    """Try a criterion of one network."""
    late = never_begins(table.name, table.options, steps, "objective")
    if late:
        raise InputError(f"objective: {late}, or run.steps higher.")


def _blamed(at: str, key: str, check: Callable[[], None]) -> None:
    """Let an error about a criterion name the table that it stands in."""
    try:
        check()
    except InputError as error:
        text = str(error)
        raise InputError(at + text.removeprefix(key) if text.startswith(key) else f"{at}: {text}") from None


def load_comparison(recipe: str | Path, changes: Sequence[str] = ()) -> tuple[Comparison, Path]:
    """Read and validate the recipe of a comparison of ensembles.

    Args:
        recipe: A TOML file, or the name of a recipe that comes with mirepoix.
        changes: ``key=value`` pairs with dotted keys, such as ``members=3`` or ``systems.DICE.objective.delta=0.1``.

    Returns:
        The recipe, and the file it came from.

    Raises:
        InputError: Naming the file and the key, what was expected, what came, and the nearest known key.
    """
    values, path = read_values(recipe, changes)
    if "systems" not in values:
        raise InputError(f"{path}: expected a recipe with [[systems]] to compare, got one without.")
    try:
        return validated(Comparison, values, path), path
    except InputError as error:
        raise InputError(_with_names(str(error), values["systems"])) from None


def _with_names(text: str, systems: Any) -> str:
    """Errors about ``systems.3`` with the name of that system, by which ``--set`` knows it too."""

    def name(found: re.Match[str]) -> str:
        try:
            return f"systems.{systems[int(found[1])]['name']}"
        except (KeyError, IndexError, TypeError):
            return found[0]

    return re.sub(r"\bsystems\.(\d+)(?=[.:])", name, text)
