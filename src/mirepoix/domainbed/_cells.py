"""The numbers behind the tables: one cell per row, selection, target and data seed, and their means.

Accuracies are fractions; percent is printed. A cell without a number says why, and a mean that lacks one of its
cells is no number either: a mean over fewer seeds or targets would pass for the one that was asked for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mirepoix.checkpoints import read_json, write_json
from mirepoix.domainbed._selection import METHODS, Method
from mirepoix.types import InputError

__all__ = [
    "Cell",
    "Entry",
    "Measure",
    "aggregate",
    "average_over_datasets",
    "average_over_seeds",
    "average_over_targets",
    "read_cells",
    "write_cells",
]

Measure: TypeAlias = Literal["whole", "part"]
"""Accuracy on all images of the target, or on its 80 % part."""

FORMAT = "mirepoix-cells-1"

_MEASURED: dict[Measure, str] = {"whole": "all images of the target", "part": "the 80 % part of the target"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One result: a row of the table on one target with one data seed.

    Attributes:
        dataset: Its name.
        row: Key of the row, such as ``"diwa"``.
        label: Name of the row, for people.
        selection: How the models or members were chosen.
        target: The domain left out.
        data_seed: Of the split; ``None`` for a model made of the members of all data seeds.
        whole: Accuracy on all images of the target, a fraction.
        part: Accuracy on its 80 % part.
        id_accuracy: Accuracy on the validation parts of the sources.
        members: How many models were combined.
        inference_cost: Forward passes per prediction.
        sources: Places in the store of the records it was computed from.
        choice: What was chosen (run, step, coefficients, ...), as values JSON can hold.
        missing: Why there is no number; ``None`` if there is one.

    Raises:
        InputError: For a number that is not a fraction, a number without a source, a cell without a number or a
            reason, or with both.
    """

    dataset: str
    row: str
    label: str
    selection: Method
    target: str
    data_seed: int | None
    whole: float | None = None
    part: float | None = None
    id_accuracy: float | None = None
    members: int = 1
    inference_cost: int = 1
    sources: tuple[str, ...] = ()
    choice: Mapping[str, Any] = field(default_factory=dict, hash=False)
    missing: str | None = None

    def __post_init__(self) -> None:
        if self.selection not in METHODS:
            raise InputError(
                f"{self.place}: expected a selection among {', '.join(METHODS)}, got {self.selection!r}."
            )
        for name in ("whole", "part", "id_accuracy"):
            value = getattr(self, name)
            if value is None:
                continue
            if not 0 <= value <= 1:  # NaN too
                raise InputError(
                    f"{self.place}: expected {name} as a fraction between 0 and 1, got {value!r}. Divide percent "
                    "by 100; where there is no number, leave it out and say why in `missing`."
                )
            object.__setattr__(self, name, float(value))
        measured = self.whole is not None or self.part is not None
        if measured == bool(self.missing):
            raise InputError(
                f"{self.place}: expected an accuracy on the target or the reason why there is none, got "
                f"{'both' if measured else 'neither'}."
            )
        if measured and not self.sources:
            raise InputError(
                f"{self.place}: expected the records the number was computed from, got none. Name their places in "
                "the store, so that the number can be traced."
            )
        object.__setattr__(self, "sources", tuple(self.sources))
        object.__setattr__(self, "choice", _plain(self.choice))
        object.__setattr__(self, "missing", self.missing or None)

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        seed = "all data seeds" if self.data_seed is None else f"data seed {self.data_seed}"
        return f"cell {self.dataset}, {self.row}, {self.selection}, {self.target}, {seed}"

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, ready for JSON."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**values, "sources": list(self.sources), "choice": dict(self.choice)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cell:
        """The cell from what `to_dict` gave.

        Raises:
            InputError: For fields that are missing or unknown, or of another kind.
        """
        known = {each.name for each in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != known:
            got = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
            raise InputError(f"expected a cell with the fields {', '.join(sorted(known))}, got {got}.")
        _check_kinds(values)
        return cls(**{**values, "sources": tuple(values["sources"])})


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("dataset", "row", "label", "selection", "target"), (str,)),
    **dict.fromkeys(("whole", "part", "id_accuracy"), (int, float, type(None))),
    **dict.fromkeys(("members", "inference_cost"), (int,)),
    "data_seed": (int, type(None)),
    "sources": (list, tuple),
    "choice": (dict,),
    "missing": (str, type(None)),
}


def _check_kinds(values: Mapping[str, Any]) -> None:
    for name, kinds in _KINDS.items():
        value = values[name]
        wrong = isinstance(value, bool) or not isinstance(value, kinds)
        if wrong or (name == "sources" and not all(isinstance(place, str) for place in value)):
            raise InputError(
                f"expected {name} of a cell as {' or '.join(kind.__name__ for kind in kinds)}, got {value!r}."
            )


def _plain(value: Any) -> Any:
    """Tuples as lists and mappings as dictionaries, as JSON gives them back."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def write_cells(path: str | os.PathLike[str], cells: Iterable[Cell]) -> None:
    """Write the cells as JSON, in the order given.

    Raises:
        InputError: If a choice holds something JSON cannot.
    """
    write_json(path, {"format": FORMAT, "cells": [cell.to_dict() for cell in cells]})


def read_cells(path: str | os.PathLike[str]) -> list[Cell]:
    """The cells in a file of `write_cells`.

    Raises:
        InputError: If it is missing, not JSON, of another format, or one of its cells is not right.
    """
    content = read_json(path)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT or not isinstance(content.get("cells"), list):
        raise InputError(
            f"{Path(path)}: expected cells in the format {FORMAT!r}, got "
            f"{'no format' if found is None else repr(found)}. Name the file that the benchmark wrote."
        )
    cells = []
    for number, values in enumerate(content["cells"]):
        try:
            cells.append(Cell.from_dict(values))
        except InputError as error:
            raise InputError(f"{Path(path)}: cell {number}: {error}") from error
    return cells


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A mean with its error, as it stands in a table.

    Attributes:
        dataset: ``None`` for the mean over datasets.
        row: Key of the row.
        label: Name of the row, for people.
        selection: How the models or members were chosen.
        target: The domain left out; ``None`` for the mean over targets.
        mean: A fraction; ``None`` where a cell is missing.
        error: Standard error of the mean; ``None`` where it has none.
        count: How many numbers there were.
        missing: What is missing and why; empty if there is a mean.
    """

    dataset: str | None
    row: str
    label: str
    selection: Method
    target: str | None
    mean: float | None
    error: float | None
    count: int
    missing: tuple[str, ...] = ()


def aggregate(cells: Iterable[Cell], measure: Measure = "whole") -> list[Entry]:
    r"""Mean and standard error over data seeds, for each dataset, selection, row and target.

    .. math:: m = \frac1n \sum_s a_s, \qquad e = \sqrt{\frac1n \sum_s (a_s - m)^2} \Big/ \sqrt n .

    The deviation is that of the population, as in DomainBed. One seed, or one model made of the members of all
    seeds, has no error. Rows of one dataset and selection are expected on the same targets and data seeds: what one
    of them lacks is missing, and an entry with anything missing has no mean.

    Args:
        cells: In any order; datasets, rows and targets keep the order in which they come.
        measure: On all images of the target, or on its 80 % part.

    Returns:
        Entries by dataset, then selection, row and target.

    Raises:
        InputError: For two cells of one place, a row with two labels, or with and without data seeds.

    Example:
        >>> cells = [
        ...     Cell(dataset="PACS", row="erm", label="ERM", selection="oracle", target="sketch", data_seed=seed,
        ...          whole=accuracy, sources=("weights/a",))
        ...     for seed, accuracy in enumerate([0.70, 0.71, 0.75])
        ... ]
        >>> (entry,) = aggregate(cells)
        >>> round(entry.mean, 4), round(entry.error, 4)
        (0.72, 0.0125)
    """
    entries = []
    for grid in _grids(cells, measure):
        for row in grid.rows:
            for target in grid.targets:
                found = [grid.look_up(row, target, seed) for seed in grid.seeds[row]]
                missing = [
                    _with_seed(why, seed)
                    for (_, why), seed in zip(found, grid.seeds[row], strict=True)
                    if why is not None
                ]
                values = [value for value, _ in found if value is not None]
                entries.append(grid.entry(row, target, values, missing))
    return entries


def average_over_targets(entries: Iterable[Entry]) -> list[Entry]:
    """The mean of the domain means of each row, without an error, as published tables print it.

    Args:
        entries: Of `aggregate`.

    Returns:
        One entry per dataset, selection and row, with no target; without a mean if one of its targets has none.
    """
    groups: dict[tuple[str | None, Method, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.dataset, entry.selection, entry.row), []).append(entry)
    return [
        _mean_of(group, [f"{entry.target}: {why}" for entry in group for why in entry.missing])
        for group in groups.values()
    ]


def average_over_seeds(cells: Iterable[Cell], measure: Measure = "whole") -> list[Entry]:
    """First the mean over targets within each data seed, then mean and standard error over data seeds.

    The mean is that of `average_over_targets`; the error tells how far the average itself moves from one data seed
    to the next.

    Args:
        cells: As in `aggregate`.
        measure: As in `aggregate`.

    Returns:
        One entry per dataset, selection and row, with no target.

    Raises:
        InputError: As in `aggregate`.
    """
    entries = []
    for grid in _grids(cells, measure):
        for row in grid.rows:
            values, missing = [], []
            for seed in grid.seeds[row]:
                found = {target: grid.look_up(row, target, seed) for target in grid.targets}
                known = [value for value, _ in found.values() if value is not None]
                if len(known) == len(found):
                    values.append(math.fsum(known) / len(known))
                missing += [
                    f"{target}: {_with_seed(why, seed)}"
                    for target, (_, why) in found.items()
                    if why is not None
                ]
            entries.append(grid.entry(row, None, values, missing))
    return entries


def average_over_datasets(entries: Iterable[Entry]) -> list[Entry]:
    """The mean over datasets of each row, without an error: the last column of a table of averages.

    Args:
        entries: Of `average_over_seeds` or `average_over_targets`.

    Returns:
        One entry per selection and row, with no dataset; without a mean if the row lacks one of the datasets.
    """
    given = list(entries)
    out = []
    for selection in METHODS:
        group = [entry for entry in given if entry.selection == selection]
        datasets = list(dict.fromkeys(entry.dataset for entry in group))
        for row in dict.fromkeys(entry.row for entry in group):
            own = [entry for entry in group if entry.row == row]
            missing = [f"{entry.dataset}, {why}" for entry in own for why in entry.missing]
            there = {entry.dataset for entry in own}
            missing += [f"{dataset}: no cell" for dataset in datasets if dataset not in there]
            out.append(_mean_of(own, missing, over_datasets=True))
    return out


def _mean_of(group: Sequence[Entry], missing: Sequence[str], *, over_datasets: bool = False) -> Entry:
    first, values = group[0], [entry.mean for entry in group if entry.mean is not None]
    return Entry(
        dataset=None if over_datasets else first.dataset,
        row=first.row,
        label=first.label,
        selection=first.selection,
        target=None,
        mean=None if missing else math.fsum(values) / len(values),
        error=None,
        count=len(values),
        missing=tuple(missing),
    )


def _with_seed(why: str, seed: int | None) -> str:
    return why if seed is None else f"data seed {seed}: {why}"


@dataclass(frozen=True)
class _Grid:
    """The cells of one dataset and selection, and the places they are expected in."""

    dataset: str
    selection: Method
    rows: tuple[str, ...]
    targets: tuple[str, ...]
    seeds: Mapping[str, tuple[int | None, ...]]  # of each row
    labels: Mapping[str, str]
    measure: Measure
    cells: Mapping[tuple[str, str, int | None], Cell]

    def look_up(self, row: str, target: str, seed: int | None) -> tuple[float | None, str | None]:
        """The number, or why there is none."""
        cell = self.cells.get((row, target, seed))
        if cell is None:
            return None, "no cell"
        value = cell.whole if self.measure == "whole" else cell.part
        if value is None:
            return None, cell.missing or f"no accuracy on {_MEASURED[self.measure]}"
        return value, None

    def entry(self, row: str, target: str | None, values: Sequence[float], missing: Sequence[str]) -> Entry:
        mean = error = None
        if values and not missing:
            mean = math.fsum(values) / len(values)
            if len(values) > 1:
                error = math.sqrt(math.fsum((value - mean) ** 2 for value in values)) / len(values)
        return Entry(
            dataset=self.dataset,
            row=row,
            label=self.labels[row],
            selection=self.selection,
            target=target,
            mean=mean,
            error=error,
            count=len(values),
            missing=tuple(missing),
        )


def _grids(cells: Iterable[Cell], measure: Measure) -> list[_Grid]:
    """One grid per dataset and selection, datasets in the order they come."""
    if measure not in _MEASURED:
        raise InputError(f"measure: expected one of {', '.join(_MEASURED)}, got {measure!r}.")
    given = list(cells)
    labels: dict[str, str] = {}
    for cell in given:
        if labels.setdefault(cell.row, cell.label) != cell.label:
            raise InputError(
                f"row {cell.row!r}: expected one label, got {labels[cell.row]!r} and {cell.label!r}."
            )
    grids = []
    for dataset in dict.fromkeys(cell.dataset for cell in given):
        for selection in METHODS:
            own = [cell for cell in given if (cell.dataset, cell.selection) == (dataset, selection)]
            if own:
                grids.append(_grid(own, labels, measure))
    return grids


def _grid(cells: Sequence[Cell], labels: Mapping[str, str], measure: Measure) -> _Grid:
    places: dict[tuple[str, str, int | None], Cell] = {}
    for cell in cells:
        if places.setdefault((cell.row, cell.target, cell.data_seed), cell) is not cell:
            raise InputError(f"{cell.place}: expected one cell there, got two.")
    every = tuple(sorted({cell.data_seed for cell in cells if cell.data_seed is not None}))
    rows = tuple(dict.fromkeys(cell.row for cell in cells))
    seeds: dict[str, tuple[int | None, ...]] = {}
    for row in rows:
        own = {cell.data_seed for cell in cells if cell.row == row}
        if None in own and len(own) > 1:
            raise InputError(
                f"row {row!r} of {cells[0].dataset}: expected cells either with data seeds or made of all of "
                "them, got both. Give them two rows."
            )
        seeds[row] = (None,) if None in own else every
    return _Grid(
        cells[0].dataset,
        cells[0].selection,
        rows,
        tuple(dict.fromkeys(cell.target for cell in cells)),
        seeds,
        labels,
        measure,
        places,
    )
