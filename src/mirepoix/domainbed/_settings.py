"""A benchmark as a TOML file: datasets, strategies, auxiliary tasks, and how runs are trained and chosen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mirepoix.domainbed._nodes import TaskName
from mirepoix.domainbed._rows import FAMILIES, Row, family_of
from mirepoix.domainbed._selection import Method
from mirepoix.objectives._named import BEGIN_OPTIONS, check_named, never_begins
from mirepoix.objectives._spaces import SMALL_DEFAULTS, draw_options
from mirepoix.recipe import (
    Count,
    Data,
    Experiment,
    Flag,
    Natural,
    Number,
    RunTable,
    blame,
    read_values,
    validated,
)
from mirepoix.runs import COLLECTED, Run, sample_runs
from mirepoix.types import InputError

__all__ = ["Auxiliary", "Benchmark", "Dataset", "Protocol", "load_benchmark"]

Protocol = Literal["corrected", "reference"]


GENERATED = ("ColoredMNIST", "RotatedMNIST")
"""Datasets whose digits a data seed deals to the domains anew."""


class Named(Data):
    """Images with a name, and how runs on them differ."""

    name: str | None = None
    """In tables and plans; the dataset's own name unless given."""
    run: RunTable = RunTable()
    """Run 0 on these images: the recipe's, changed by what is set here."""

    @property
    def label(self) -> str:
        """What tables and plans call it."""
        return self.name or self.dataset


class Dataset(Named):
    """Images to leave domains out of, one at a time."""


class Auxiliary(Named):
    """Images to fine-tune on before the target task; all domains of it are trained on."""


class Benchmark(Experiment):
    """Strategies compared on datasets by one protocol."""

    name: str
    title: str = ""
    source: str = ""
    protocol: Protocol = "corrected"
    """``reference`` does what the published benchmark's code does, where that differs."""
    runs: Count = 20
    """Runs of every family for each target and data seed: run 0 is the base configuration, the others are drawn."""
    strategies: Annotated[tuple[str, ...], Field(min_length=1)]
    """Rows of the table: names of strategies, or ``family/combine``."""
    selection: Annotated[tuple[Method, ...], Field(min_length=1)] = ("training-domain",)
    datasets: Annotated[tuple[Dataset, ...], Field(min_length=1)]
    auxiliaries: tuple[Auxiliary, ...] = ()
    auxiliary_runs: Count = 4
    """Fine-tunings on each auxiliary task, shared by all targets."""
    auxiliary_run: RunTable = RunTable()
    """Run 0 of the auxiliary fine-tunings: that of the target, changed by what is set here."""
    shared_probe: Flag = False
    """One linear probe, that of data seed 0, for all data seeds, as in the reference: a small leakage, as it has seen
    validation images of the others. Rows with a dagger need it, for members that are averaged begin with one head."""
    frozen_steps: Natural = 200
    """Steps of the classifier alone, for runs that start from an auxiliary fine-tuning (Ramé et al., 2023)."""
    fusing_range: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 4.0
    """Logits of fusing's coefficients are uniform between 0 and this."""
    objectives: Annotated[tuple[str, ...], Field(min_length=1)] = ("erm", "mixup", "coral")
    """Criteria that take turns in the soup of diverse objectives."""
    objective_options: dict[str, dict[str, Any]] | None = None
    """From the name of a criterion to options of its constructor, wherever it trains; they are never drawn."""
    search_objectives: Flag = False
    """Draw the options of every criterion for run 1 and later, as DomainBed's random search does."""
    sharpness_radius: Annotated[Number, Field(gt=0)] = 0.05
    """``rho`` of SAM, where ``objective_options`` does not say it and no random search draws it."""
    wise_points: Annotated[int, Field(strict=True, ge=2)] = 11
    """Coefficients tried between the fine-tuned weights and their start."""
    greedy_strict: Flag = False
    keep: tuple[str, ...] = ("best", "last", "moving_average", "ema", "swad")
    """What every training keeps of itself; a row that needs more adds it."""
    figures: Flag = True
    """Draw the figures of the papers, for the first data seed."""
    subsets: Count = 4
    """Random subsets of members averaged for each point of a figure."""

    @field_validator("strategies")
    @classmethod
    def _known_rows(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for key in value:
            try:
                Row.of(key)
            except InputError as error:
                raise ValueError(str(error)) from None
        if len(set(value)) != len(value):
            raise ValueError("expected each strategy once")
        return value

    @field_validator("selection")
    @classmethod
    def _each_method_once(cls, value: tuple[Method, ...]) -> tuple[Method, ...]:
        if len(set(value)) != len(value):
            raise ValueError("expected each selection once")
        return value

    @field_validator("keep")
    @classmethod
    def _known_collectors(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := sorted(set(value) - set(COLLECTED)):
            raise ValueError(f"expected some of {', '.join(COLLECTED)}, got {wrong[0]!r}")
        return value

    @field_validator("objectives")
    @classmethod
    def _known_objectives(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            try:
                check_named(name, {})
            except InputError as error:
                raise ValueError(str(error).removeprefix("objective.name: ")) from None
        return value

    @model_validator(mode="after")
    def _names_differ(self) -> Benchmark:
        for what, tables in (("datasets", self.datasets), ("auxiliaries", self.auxiliaries)):
            labels = [table.label for table in tables]
            twice = next((label for label in labels if labels.count(label) > 1), None)
            if twice is not None:
                raise ValueError(f"{what}: expected different names, got {twice!r} twice; set `name`")
        labels = [table.label for table in self.datasets]
        for auxiliary in self.auxiliaries:
            if auxiliary.label in labels:
                raise ValueError(
                    f"auxiliaries: expected a name that no dataset has, got {auxiliary.label!r}; set `name`"
                )
            if auxiliary.targets != "all":
                raise ValueError(
                    f"auxiliaries: {auxiliary.label!r} is trained on whole; leave its `targets` out"
                )
        one_head = self.shared_probe or self.shared_head or self.probe is None or self.protocol == "reference"
        dagger = [row.key for row in self.rows() if row.combine == "dagger"]
        if dagger and not one_head and any(len(table.seeds) > 1 for table in self.datasets):
            raise ValueError(
                f"strategies: {dagger[0]!r} averages members of all data seeds, which must begin with one head; set "
                "shared_probe = true"
            )
        dealt = [
            table.label for table in self.datasets if table.dataset in GENERATED and len(table.seeds) > 1
        ]
        if dealt and (dagger or self.shared_probe):
            raise ValueError(
                f"{dealt[0]}: each data seed deals its digits to the domains anew, so what is made of all data seeds "
                "has seen the targets; leave out rows with a dagger and shared_probe, or take one data seed"
            )
        from mirepoix.experiment import DIGITS_SIZE

        digits = [table for table in self.tables() if table.dataset.startswith("digits")]
        sizes = {table.size or DIGITS_SIZE for table in digits}
        if self.pretraining is not None and len(sizes) > 1:
            raise ValueError(
                "the built-in digits share one pre-training, so all their tables need the same size"
            )
        for row, table in itertools.product(self.rows(), self.datasets):
            needed = AUXILIARIES_NEEDED.get(row.family, 0)
            found = len(self.auxiliaries_for(table))
            if found < needed:
                raise ValueError(
                    f"strategies: {row.key!r} needs {needed} auxiliary task{'s' if needed > 1 else ''} other than the "
                    f"dataset {table.label!r}, got {found}; add [[auxiliaries]]"
                )
        return self

    def auxiliaries_for(self, table: Dataset) -> list[Auxiliary]:
        """The auxiliary tasks for a dataset, all but itself, by name as in the reference."""
        own = (table.dataset, table.path)
        others = [auxiliary for auxiliary in self.auxiliaries if (auxiliary.dataset, auxiliary.path) != own]
        return sorted(others, key=lambda auxiliary: auxiliary.label)

    def rows(self) -> list[Row]:
        """The rows of the table."""
        return [Row.of(key) for key in self.strategies]

    def collected(self) -> tuple[str, ...]:
        """What every training keeps: what the recipe says, and what its rows need."""
        kept = {*self.keep, "best", *(family_of(row.family).collect for row in self.rows())}
        if "oracle" in self.selection:
            kept.add("last")
        if any(row.family == "robust" for row in self.rows()):
            kept.add("moving_average")
        if any(row.family in NEEDS_AUXILIARIES for row in self.rows()):
            kept.add("last")
        return tuple(name for name in COLLECTED if name in kept)

    def base_run(self) -> Run:
        """The configuration of run 0, whatever the dataset."""
        return self.run.over(Run(augment_validation=self.protocol == "reference"))

    def tables(self) -> tuple[Named, ...]:
        """The datasets, then the auxiliary tasks."""
        return (*self.datasets, *self.auxiliaries)

    def table(self, label: str) -> Named:
        """The table of a dataset or an auxiliary task."""
        return next(table for table in self.tables() if table.label == label)

    def base_run_on(self, label: str) -> Run:
        """The configuration of run 0 on a dataset or an auxiliary task."""
        table = self.table(label)
        base = self.base_run()
        return table.run.over(self.auxiliary_run.over(base) if isinstance(table, Auxiliary) else base)

    def runs_on(self, label: str, data_seed: int = 0) -> list[Run]:
        """The configurations c_i: every family and every target of a dataset uses the same.

        On an auxiliary task there are ``auxiliary_runs`` of them, shared by all targets.
        """
        count = self.auxiliary_runs if isinstance(self.table(label), Auxiliary) else self.runs
        return sample_runs(self.space.space(), count, data_seed=data_seed, base=self.base_run_on(label))

    def probe_on(self, label: str) -> Run | None:
        """The configuration of the linear probe on a dataset or an auxiliary task."""
        if self.shared_head or self.probe is None:
            return None
        return self.probe.over(self.base_run_on(label).with_(classifier_steps=0))

    def freeze_on(self, label: str) -> int:
        """Updates of the classifier alone after inter-training: the reference's code makes one more than it says."""
        return min(self.frozen_steps + (self.protocol == "reference"), self.base_run_on(label).steps)

    def options_of(self, objective: str) -> dict[str, Any]:
        """What the recipe says of a criterion, whatever the run."""
        said = {"rho": self.sharpness_radius} if objective == "sam" else {}
        return {**said, **(self.objective_options or {}).get(objective, {})}

    def drawn_options(self, objective: str, h: int, task: TaskName) -> tuple[tuple[str, Any], ...]:
        """What a random search draws of a criterion for run h; nothing without one, nor what the recipe says."""
        if not self.search_objectives:
            return ()
        dataset = self.table(task.dataset).dataset
        small = dataset in GENERATED or dataset.startswith("digits")
        if h == 0:
            drawn = dict(SMALL_DEFAULTS.get(objective, {})) if small else {}
        else:
            drawn = draw_options(objective, h, task.data_seed, small=small)
        said = (self.objective_options or {}).get(objective, {})
        return tuple((name, value) for name, value in drawn.items() if name not in said)

    def check_runs(self) -> None:
        """Try every configuration that the recipe can lead to."""
        super().check_runs()
        for objective in self.objective_options or {}:
            try:
                check_named(objective, self.options_of(objective))
            except InputError as error:
                text = str(error).removeprefix("objective")
                place = "" if text.startswith(".name") else f".{objective}"
                raise InputError(f"objective_options{place}{text.removeprefix('.name')}") from None
        self._check_used()
        blame("auxiliary_run", lambda: self.auxiliary_run.over(self.base_run()))
        for kind, tables in (("datasets", self.datasets), ("auxiliaries", self.auxiliaries)):
            for table in tables:
                blame(f"{kind}.{table.label}.run", partial(self.base_run_on, table.label))
                blame("probe", partial(self.probe_on, table.label))
        for row, dataset in itertools.product(self.rows(), self.datasets):
            self._check_along(row, dataset.label)
            self._check_begins(row, dataset)
        for auxiliary in self.auxiliaries:
            if any(row.family == "robust" for row in self.rows()):
                self._check_along(Row.of("moving_average"), auxiliary.label)

    def objectives_of(self, row: Row) -> tuple[str, ...]:
        """The criteria of a row: its own, or those that take turns, as many as there are runs for."""
        name = family_of(row.family).objective
        return (name,) if name is not None else self.objectives[: self.runs]

    def trained_by(self) -> list[str]:
        """The criteria of all rows, each once."""
        return list(dict.fromkeys(name for row in self.rows() for name in self.objectives_of(row)))

    def _check_used(self) -> None:
        """Refuse options of a criterion that nothing is trained by."""
        used = self.trained_by()
        unused = next((name for name in self.objective_options or {} if name not in used), None)
        if unused is not None:
            raise InputError(
                f"objective_options.{unused}: no row trains by {unused!r}; the rows train by {', '.join(used)}. Add it "
                "to strategies, or to objectives with a row diverse_objectives, or leave its options out."
            )

    def _check_begins(self, row: Row, table: Dataset) -> None:
        """Refuse a criterion that begins after the last step of a run, unless a random search drew when it begins."""
        steps, names = self.base_run_on(table.label).steps, self.objectives_of(row)
        tried = set()
        for seed, h in itertools.product(table.seeds, range(self.runs)):
            name = names[h % len(names)]
            drawn = dict(self.drawn_options(name, h, TaskName(table.label, data_seed=seed)))
            at_once = tuple(option for option in BEGIN_OPTIONS.get(name, ()) if option in drawn)
            if (name, at_once) in tried or name not in BEGIN_OPTIONS:
                continue
            tried.add((name, at_once))
            said = {**self.options_of(name), **dict.fromkeys(at_once, 0)}
            place, where = f"objective_options.{name}", f"a run on {table.label}"
            if late := never_begins(name, said, steps, place, where):
                raise InputError(f"strategies: {row.key!r} cannot be trained: {late}, or run.steps higher.")

    def _check_along(self, row: Row, label: str) -> None:
        """Refuse an average along a run that would be the last weights and nothing else."""
        run, collect = self.base_run_on(label), family_of(row.family).collect
        if collect == "moving_average" and run.average_from > run.steps:
            raise InputError(
                f"run.average_from: {row.key!r} averages from update {run.average_from} on, but a run on {label} has "
                f"{run.steps} steps, so it would be the last weights alone; set a smaller average_from."
            )
        checks = 1 + -(-(run.steps - 1) // run.check_every)
        if collect.startswith("swad") and checks < run.swad_start_patience:
            raise InputError(
                f"run.check_every: {row.key!r} looks for {run.swad_start_patience} checks in a row "
                f"(swad_start_patience), but a run on {label} has {checks}; check more often."
            )


NEEDS_AUXILIARIES = {name for name, family in FAMILIES.items() if family.auxiliaries}
AUXILIARIES_NEEDED = {**dict.fromkeys(NEEDS_AUXILIARIES, 1), "sequential": 2}


def load_benchmark(recipe: str | Path, changes: Sequence[str] = ()) -> tuple[Benchmark, Path]:
    """Read and validate the recipe of a benchmark.

    Args:
        recipe: A TOML file, or the name of a recipe that comes with mirepoix.
        changes: ``key=value`` pairs with dotted keys, such as ``runs=4``.

    Returns:
        The recipe, and the file it came from.

    Raises:
        InputError: Naming the file and the key, what was expected, what came, and the nearest known key.
    """
    values, path = read_values(recipe, changes)
    if "datasets" not in values and "data" in values:
        raise InputError(
            f"{path}: this recipe is one job; run it with `mirepoix run {recipe}`. "
            "A benchmark has [[datasets]] and strategies."
        )
    return validated(Benchmark, values, path), path
