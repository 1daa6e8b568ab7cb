"""Recipes of rewarded soups: a TOML file with a table ``[front]``, read strictly."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator

from mirepoix.recipe import Checkable, Natural, Number, Table, explained, read_values, validated
from mirepoix.types import InputError

__all__ = ["FrontRecipe", "FrontTable", "changed", "load_front_recipe", "table_of"]

Made = TypeVar("Made")

Subject = Literal[
    "movie-reviews", "text", "locomotion", "diffusion", "captioning", "grounding", "visual-questions"
]
"""Kinds of tasks, each with tables of its own."""


class FrontTable(Table):
    """What is trained, and where the front is looked at."""

    subject: Subject
    experts: Annotated[list[str], Field(min_length=2)]
    """Rewards: one expert is trained for each."""
    also: list[str] = Field(default_factory=list)
    """Rewards that are measured, and that nobody is trained on."""
    points: Annotated[int, Field(strict=True, ge=3)] = 11
    """Soups of the front: evenly spaced for two experts; for more the experts, the uniform soup and random ones."""
    morl: list[dict[str, Number]] | None = None
    """Weights of the rewards, one table per MORL run beside those of one reward alone, which are the experts. One run
    with equal weights unless given; an empty list for none."""
    seeds: Annotated[list[Natural], Field(min_length=1)] = Field(default_factory=lambda: [0])
    """Trials: each trains its own start and its own experts."""
    ensemble: Literal["none", "uniform", "all"] = "uniform"
    """At which points the functional ensemble is evaluated too."""
    preference: dict[str, Number] | None = None
    """What the user wants: the soup for it is chosen and exported. Equal weights of the experts' rewards by default."""
    samples: Natural = 5
    """Items in the table of answers."""
    threads: Annotated[int, Field(strict=True, ge=0, le=1024)] = 1
    """Threads of the processor; 0 leaves the choice to torch. Bits may depend on it."""

    @field_validator("experts", "also", "seeds")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        if len(set(value)) != len(value):
            raise ValueError("expected each entry once")
        return value

    def check(self) -> None:
        """Raise for names that are not those of the experts.

        Raises:
            InputError: Naming the key.
        """
        twice = [name for name in self.also if name in self.experts]
        if twice:
            raise InputError(f"front.also: {twice[0]!r} is an expert's reward already. Leave it out.")
        for preference in self.preferences:
            self._known("front.morl", preference)
            if set(preference) - set(self.experts):
                raise InputError(
                    f"front.morl: expected rewards of the experts ({', '.join(self.experts)}), got "
                    f"{sorted(set(preference) - set(self.experts))[0]!r}."
                )
        if self.preference is not None:
            self._known("front.preference", self.preference)

    def _known(self, key: str, weights: Mapping[str, float]) -> None:
        names = [*self.experts, *self.also]
        unknown = [name for name in weights if name not in names]
        if unknown:
            raise InputError(
                f"{key}: there is no reward {unknown[0]!r}; expected some of {', '.join(names)}."
            )
        low = [name for name, weight in weights.items() if weight < 0]
        if low or not sum(weights.values()) > 0:
            raise InputError(f"{key}: expected weights of 0 or more, one above 0, got {dict(weights)}.")

    @property
    def preferences(self) -> list[dict[str, float]]:
        """Of the MORL runs that are trained beside the experts."""
        if self.morl is None:
            return [dict.fromkeys(self.experts, 1 / len(self.experts))]
        return [{name: float(each.get(name, 0.0)) for name in (*self.experts, *each)} for each in self.morl]


class FrontRecipe(Checkable):
    """One study of rewarded soups; the tables below ``front`` are those of its subject."""

    name: str
    title: str = ""
    source: str = ""
    front: FrontTable
    task: dict[str, Any] = Field(default_factory=dict)
    """What is trained on."""
    start: dict[str, Any] = Field(default_factory=dict)
    """The training of the start."""
    run: dict[str, Any] = Field(default_factory=dict)
    """The training of an expert, and of MORL runs alike."""
    evaluation: dict[str, Any] = Field(default_factory=dict)
    """The items that rewards are measured on."""
    rewards: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """For the subject ``text``: what each reward is."""

    def check_runs(self) -> None:
        """Try the tables of the subject."""
        from mirepoix.fronts._subjects import tables

        self.front.check()
        expected = tables(self.front.subject)
        for name in ("task", "start", "run", "evaluation", "rewards"):
            if name in expected:
                expected[name](getattr(self, name))
            elif getattr(self, name):
                raise InputError(
                    f"{name}: the subject {self.front.subject!r} has no such table. Leave it out."
                )


def load_front_recipe(recipe: str | Path, changes: Sequence[str] = ()) -> tuple[FrontRecipe, Path]:
    """Read and validate a recipe of rewarded soups.

    Args:
        recipe: A TOML file, or the name of a recipe that comes with mirepoix.
        changes: ``key=value`` pairs with dotted keys, such as ``run.steps=20``.

    Returns:
        The recipe, and the file it came from.

    Raises:
        InputError: Naming the file and the key, what was expected, what came, and the nearest known key.
    """
    values, path = read_values(recipe, changes)
    if "front" not in values:
        raise InputError(f"{path}: expected a recipe with a table [front], got one without.")
    return validated(FrontRecipe, values, path), path


def table_of(
    key: str, like: Any, values: Mapping[str, Any], *, without: Sequence[str] = ()
) -> dict[str, Any]:
    """The values of a table, checked against the fields of a dataclass or the parameters of a function.

    Args:
        key: What messages call the table.
        like: A dataclass, or a mapping from names to types.
        values: As read.
        without: Fields that no recipe sets.

    Raises:
        InputError: For a key that is not known, with the nearest that is, or a value of another type.
    """
    types = like if isinstance(like, Mapping) else typing.get_type_hints(like)
    if not isinstance(like, Mapping):
        types = {field.name: types[field.name] for field in dataclasses.fields(like)}
    known = {name: kind for name, kind in types.items() if name not in without}
    model = _model(tuple(known.items()))
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        found = model.model_validate(plain)
    except ValidationError as error:
        lines = [f"{key}.{line}" for line in explained(error, model)]
        raise InputError("\n".join(lines)) from None
    return {name: getattr(found, name) for name in values}


@cache
def _model(fields: tuple[tuple[str, Any], ...]) -> type[BaseModel]:
    """A strict table in which everything may be left out."""
    made: dict[str, Any] = {name: (kind | None, None) for name, kind in fields}
    settings = ConfigDict(extra="forbid", frozen=True, strict=True)
    found: type[BaseModel] = create_model("Options", __config__=settings, **made)
    return found


def changed(key: str, make: Callable[[], Made]) -> Made:
    """What ``make`` gives, an error about ``run.<field>`` or ``<field>`` naming the table."""
    try:
        return make()
    except InputError as error:
        text = str(error)
        raise InputError(
            text if text.startswith(f"{key}.") else f"{key}.{text.removeprefix('run.')}"
        ) from None
