"""Recipes: one experiment as a TOML file, read strictly.

A key that is not known, or a value of another type, is an error that names the key and the nearest known
one: a typing error is found before an hour of training, not after it.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import numpy as np
import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from tomlkit.exceptions import TOMLKitError

from mirepoix.runs import SPACES, Run, Space
from mirepoix.types import InputError

__all__ = ["Recipe", "builtin_recipes", "load_recipe"]

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1)]
Natural = Annotated[int, Field(strict=True, ge=0)]
Flag = Annotated[bool, Field(strict=True)]


class Table(BaseModel):
    """A table of a recipe: strict, and read-only."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Table):
    """Where the images come from."""

    path: str | None = None
    """Folder or file of the images inside the one that ``--data`` names; that one itself unless given."""
    dataset: str = "folder"
    """``digits``, ``folder`` (one sub-folder per domain), ``parquet``, or the name of a known dataset; for an
    auxiliary task also ``digits-parity`` and the others that the built-in images make."""
    size: Count | None = None
    """Side of the images that the network sees, in pixels."""
    augmentation: Literal["domainbed", "crop_flip", "augmix", "none"] | None = None
    """Of training images: ``domainbed`` unless the dataset has none, or another one (``crop_flip`` for CIFAR)."""
    targets: Literal["all"] | Annotated[list[str], Field(min_length=1)] = "all"
    """Domains to leave out, one at a time."""
    seeds: Annotated[list[Natural], Field(min_length=1)] = [0]
    """Data seeds: other splits into training and validation, and other configurations."""
    holdout: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.2
    """Share of every source domain that is kept for ID validation."""
    skip_unreadable: Flag = False
    memory_budget: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 4.0
    """GiB of decoded images kept in the cache; more than that is decoded again and again."""
    domain_column: str = "domain"
    """Of a parquet table; with an empty one, each file is a domain."""
    label_column: str = "label"
    image_column: str | None = None
    channels: Literal[1, 3] | None = None
    """Of the MNIST variants: 3 for a network that takes colour images."""
    limit: Count | None = None
    """Images per domain, of the MNIST variants and of parquet tables, or training images of CIFAR; all of them by
    default."""

    @field_validator("targets", "seeds")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        if isinstance(value, list) and len(set(value)) != len(value):
            raise ValueError("expected each entry once")
        return value


class NetworkTable(Table):
    """Which network, and its pre-trained weights."""

    name: str
    weights: str | None = None
    """A file, relative to the recipe, the data folder or the current folder."""
    pretrained: Flag = False
    """Fetch the weights of a timm network from its hub."""
    scratch: Flag = False
    """Start from random weights that all runs share, as the benchmark does for the MNIST variants."""
    width: Count | None = None
    frozen_batch_norm: Flag = True


class RunTable(Table):
    """Fields of `mirepoix.runs.Run` that a recipe may set."""

    steps: Count | None = None
    learning_rate: Number | None = None
    weight_decay: Number | None = None
    dropout: Number | None = None
    batch_size: Count | None = None
    optimizer: Literal["adam", "adamw", "sgd"] | None = None
    momentum: Number | None = None
    nesterov: Flag | None = None
    schedule: Literal["constant", "cosine", "steps", "triangular"] | None = None
    schedule_every: Count | None = None
    warmup_steps: Natural | None = None
    milestones: list[Number] | None = None
    decay: Number | None = None
    augment: Flag | None = None
    classifier_steps: Natural | None = None
    train_from: str | None = None
    frozen_statistics: Flag | None = None
    check_every: Count | None = None
    augment_validation: Flag | None = None
    average_from: Count | None = None
    ema_decay: Annotated[float, Field(strict=True, ge=0, lt=1)] | None = None
    swad_start_patience: Count | None = None
    swad_end_patience: Count | None = None
    swad_tolerance: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = None

    def over(self, base: Run) -> Run:
        """``base`` with the fields that are set here."""
        return base.with_(**self.model_dump(exclude_none=True))


class SpaceTable(Table):
    """What varies between the runs: a published space, or lists of values to choose from."""

    preset: Literal["mild", "extreme", "extreme-small"] | None = None
    learning_rate: Annotated[list[Number], Field(min_length=1)] | None = None
    weight_decay: Annotated[list[Number], Field(min_length=1)] | None = None
    dropout: Annotated[list[Number], Field(min_length=1)] | None = None
    batch_size: Annotated[list[Count], Field(min_length=1)] | None = None

    def space(self) -> Space:
        """The distributions, with the names DomainBed seeds them with."""
        names = {"learning_rate": "lr", "dropout": "resnet_dropout"}
        lists = self.model_dump(exclude_none=True, exclude={"preset"})
        chosen: dict[str, Any] = dict(SPACES[self.preset]) if self.preset else {}
        for field, values in lists.items():
            chosen[field] = (names.get(field, field), _Choice(values))
        return chosen


class _Choice:
    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values

    def __call__(self, random: np.random.RandomState) -> Any:
        return self.values[int(random.choice(len(self.values)))]


class ObjectiveTable(Table):
    """What the runs minimise: a name, and the options of the criterion of that name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Annotated[str, Field(strict=True)] = "erm"
    """One of `mirepoix.objectives.OBJECTIVES`; keys beside it are options of the constructor."""

    @property
    def options(self) -> dict[str, Any]:
        """The hyperparameters that the recipe sets."""
        return dict(self.model_extra or {})

    @property
    def train(self) -> str:
        """How equations call a training by it."""
        return "Train" if self.name == "erm" else f"Train_{self.name}"

    def check(self, steps: int) -> None:
        """Try it on a tiny model.

        Args:
            steps: Of the runs that minimise it.

        Raises:
            InputError: For an unknown name or option, a value of another type, one out of its range, or a criterion
                that begins after the last step.
        """
        if self.name == "erm" and not self.options:
            return  # without torch
        from mirepoix.objectives._named import never_begins

        late = never_begins(self.name, self.options, steps, "objective")
        if late:
            raise InputError(f"objective: {late}, or run.steps higher.")


class LoopTable(Table):
    """Options of the training loop."""

    device: str = "auto"
    mixed_precision: Literal["none", "bf16", "fp16"] = "none"
    channels_last: Flag = False
    compile: Flag = False
    save_every: Annotated[float, Field(strict=True, ge=0)] = 30.0
    threads: Annotated[int, Field(strict=True, ge=0, le=1024)] = 0
    """Threads of the processor; 0 leaves the choice to torch."""


class Evidence(Table):
    """What the report looks at."""

    subsets: Natural = 2
    """Random subsets of members averaged for each size in the figure of accuracy against their number."""
    wise: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.5
    """Share of the start in the WiSE row."""
    greedy_strict: Flag = False
    """The greedy soup keeps a member only if validation rises, instead of if it does not fall."""


class Checkable(Table):
    """A whole recipe, whose configurations can be tried before anything runs."""

    def check_runs(self) -> None:
        """Try every configuration that the recipe can lead to.

        Raises:
            InputError: Naming the table and the field of a value that no run can have.
        """


class Experiment(Checkable):
    """What the recipes of networks for images have: a network, and how it is trained."""

    network: NetworkTable
    pretraining: RunTable | None = None
    """Pre-train on the images that the built-in task sets apart."""
    probe: RunTable | None = RunTable()
    """The linear probe that all runs start from: run 0's configuration, changed by what is set here."""
    shared_head: Flag = False
    """Start from one random head shared by all runs, in place of the probe."""
    run: RunTable = RunTable()
    space: SpaceTable = SpaceTable(preset="mild")
    loop: LoopTable = LoopTable()

    def base_run(self) -> Run:
        """The configuration of run 0."""
        return self.run.over(Run())

    def probe_run(self) -> Run | None:
        """The configuration of the probe: run 0's, changed where the probe's table says so."""
        if self.shared_head or self.probe is None:
            return None
        return self.probe.over(self.base_run().with_(classifier_steps=0))

    def pretraining_run(self) -> Run | None:
        """The configuration of the pre-training: run 0's, changed where its table says so."""
        if self.pretraining is None:
            return None
        return self.pretraining.over(self.base_run().with_(classifier_steps=0))

    def check_runs(self) -> None:
        """Try every configuration that the recipe can lead to.

        Raises:
            InputError: Naming the table and the field of a value that no run can have.
        """
        base = self.base_run()
        blame("probe", self.probe_run)
        blame("pretraining", self.pretraining_run)
        for field, values in self.space.model_dump(exclude_none=True, exclude={"preset"}).items():
            for value in values:
                blame("space", partial(base.with_, **{field: value}))


class Recipe(Experiment):
    """One experiment."""

    name: str
    title: str = ""
    source: str = ""
    members: Count = 8
    data: Data = Data()
    objective: ObjectiveTable = ObjectiveTable()
    """What the members minimise; the probe and the pre-training always minimise the empirical risk."""
    evidence: Evidence = Evidence()

    @field_validator("objective", mode="before")
    @classmethod
    def _by_name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def check_runs(self) -> None:
        """Try every configuration that the recipe can lead to, and the objective."""
        super().check_runs()
        self.objective.check(self.base_run().steps)  # no space varies the steps


Checked = TypeVar("Checked", bound=Checkable)


def blame(table: str, make: Callable[[], Any]) -> None:
    """Let an error about ``run.<field>`` name the table that the value stands in."""
    try:
        make()
    except InputError as error:
        raise InputError(str(error).replace("run.", f"{table}.", 1)) from None


def recipes_folder() -> Path:
    """Where the recipes that come with mirepoix lie: inside an installed package, or in the repository."""
    package = Path(str(resources.files("mirepoix")))
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def builtin_recipes() -> dict[str, Path]:
    """The recipes that can be named without a path."""
    return {path.stem: path for path in sorted(recipes_folder().glob("*.toml"))}


def load_recipe(recipe: str | Path | None = None, changes: Sequence[str] = ()) -> tuple[Recipe, Path]:
    """Read and validate a recipe of one job.

    Args:
        recipe: A TOML file, or the name of a recipe that comes with mirepoix; None is ``digits``.
        changes: ``key=value`` pairs with dotted keys, such as ``run.steps=100``; values in TOML's notation,
            and what is not TOML is taken as text.

    Returns:
        The recipe, and the file it came from.

    Raises:
        InputError: Naming the file and the key, what was expected, what came, and the nearest known key.
    """
    values, path = read_values(recipe, changes)
    if "datasets" in values:
        raise InputError(
            f"{path}: this recipe compares strategies on a benchmark; run it with `mirepoix domainbed run {recipe}`."
        )
    if "front" in values:
        raise InputError(
            f"{path}: this recipe trains rewarded soups; run it with `mirepoix run {recipe}`, or read it with "
            "mirepoix.fronts.load_front_recipe."
        )
    if "systems" in values:
        raise InputError(
            f"{path}: this recipe compares ensembles; run it with `mirepoix run {recipe}`, or read it with "
            "mirepoix.comparison.load_comparison."
        )
    return validated(Recipe, values, path), path


def read_values(recipe: str | Path | None, changes: Sequence[str] = ()) -> tuple[dict[str, Any], Path]:
    """The values of a recipe's file with the changes applied, not yet validated, and the file."""
    path = _find(recipe)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file: {error}.") from None
    for change in sorted(changes, key=_rank):
        _set(values, change)
    if "system" in values:
        raise InputError(f"{path}: system: unknown key (did you mean [[systems]]?)")
    return values, path


def validated(model: type[Checked], values: dict[str, Any], path: Path) -> Checked:
    """The values as a recipe of one kind, every configuration that it can lead to tried."""
    try:
        parsed = model.model_validate(values)
        parsed.check_runs()
    except ValidationError as error:
        raise InputError("\n".join(f"{path}: {line}" for line in explained(error, model))) from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return parsed


def _find(recipe: str | Path | None) -> Path:
    known = builtin_recipes()
    if recipe is None:
        return known["digits"]
    path = Path(recipe)
    if path.is_file():
        return path
    if str(recipe) in known:
        return known[str(recipe)]
    if path.is_dir():
        raise InputError(
            f"{path}: expected a recipe (a TOML file), got a folder. Images are given by --data."
        )
    near = difflib.get_close_matches(path.stem, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(
        f"{recipe}: there is no such recipe file; recipes that come with mirepoix are {', '.join(known)}.{hint}"
    )


def _rank(change: str) -> float:
    """What an objective is called comes first, so that its options stay, in whichever order the two are given."""
    tables = change.partition("=")[0].strip().split(".")
    return len(tables) if set(tables) == {"objective"} else math.inf


def _set(values: Any, change: str) -> None:
    """Apply one ``a.b=value`` to nested tables."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {change}: expected key=value, such as run.steps=100.")
    try:
        value = tomlkit.value(text.strip()).unwrap()
    except (TOMLKitError, ValueError):
        value = text.strip()
    *tables, last = key.strip().split(".")
    for table in tables:
        if isinstance(values, list):  # [[datasets]]: the table of this name
            named = [entry for entry in values if table in (entry.get("name"), entry.get("dataset"))]
            if len(named) != 1:
                known = [str(entry.get("name", entry.get("dataset"))) for entry in values]
                raise InputError(
                    f"--set {change}: expected the name of one table ({', '.join(known)}), got {table!r}."
                )
            values = named[0]
            continue
        if table == "objective" and isinstance(values.get(table), str):
            values[table] = {"name": values[table]}  # a name alone is short for a table
        values = values.setdefault(table, {})
        if not isinstance(values, dict | list):
            raise InputError(f"--set {change}: {table!r} is a value and has no keys below it.")
    if isinstance(values, list):
        raise InputError(
            f"--set {change}: there are several tables; name one, such as {'.'.join(tables)}.NAME.{last}."
        )
    values[last] = value


def explained(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per problem: the full key, what was expected, what came."""
    lines = []
    for problem in error.errors(include_url=False):
        loc = [str(part) for part in problem["loc"] if not str(part).startswith(("literal[", "list["))]
        key = ".".join(loc)
        if problem["type"] == "extra_forbidden":
            known = _keys_beside(loc, model)
            near = difflib.get_close_matches(loc[-1], known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else f"; known keys: {', '.join(known)}"
            lines.append(f"{key}: unknown key{hint}")
        elif problem["type"] == "missing":
            lines.append(f"{key}: missing")
        elif not loc:  # of the whole recipe; the message names the key
            lines.append(problem["msg"].removeprefix("Value error, "))
        else:
            message = problem["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
            lines.append(f"{key}: {message.removesuffix('.')}, got {problem['input']!r}")
    return list(dict.fromkeys(lines))


def _keys_beside(loc: Sequence[str], model: type[BaseModel]) -> list[str]:
    """The known keys of the table in which the key at ``loc`` stands."""
    table: Any = model
    for part in loc[:-1]:
        if part.isdigit():  # a place in a list of tables
            continue
        table = next(_tables_in(table.model_fields[part].annotation))
    return list(table.model_fields)


def _tables_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The tables that a type speaks of, through unions and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _tables_in(inner)
