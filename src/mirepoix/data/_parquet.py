"""Tables of pictures as a task: Parquet files or a dataset of the hub, a column of which names the domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Unpack

import numpy as np

from mirepoix.data._cache import Loading, read_pictures
from mirepoix.data._folder import assemble, check_classes, check_domain_count
from mirepoix.data._images import IntArray
from mirepoix.data._mnist import check_limit
from mirepoix.data._task import Task, digest_of, nearest
from mirepoix.data._transform import AugmentationName, Transform
from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = ["SPLIT", "RowPicture", "encoded_pictures", "parquet_task", "read_parts"]

IMAGE_COLUMNS = ("image", "img")
SPLIT = "__split__"


def parquet_task(
    source: str | Path,
    *,
    domain_column: str | None,
    label_column: str = "label",
    image_column: str | None = None,
    name: str | None = None,
    size: int = 224,
    augmentation: AugmentationName = "domainbed",
    domains: Sequence[str] | None = None,
    limit: int | None = None,
    data_seed: int = 0,
    **loading: Unpack[Loading],
) -> Task:
    """A task from a table with one picture per row; it needs ``pip install 'mirepoix[data]'``.

    Rows keep their order within a domain; domains are sorted by name.

    Args:
        source: A Parquet file, a folder of them, or the name of a dataset on the hub.
        domain_column: Column that names the domain of a row; ``None`` makes each split of the dataset (or
            each file, by its path in the folder without the extension) a domain. One domain is then enough:
            split such a task with target ``None``.
        label_column: Column of the class: a number or a name. Classes are named as the table's ``ClassLabel``
            names them, or else after their values.
        image_column: Column of the encoded pictures; by default ``image`` or ``img``.
        name: Of the task; that of the source by default.
        size: Side in pixels of what the network sees.
        augmentation: Of training images, see ``Transform``.
        domains: Names of the domains to use; all of them by default.
        limit: Images per domain; all of them by default. Which ones depends on the data seed, the name of
            the domain and its number of rows only; a smaller limit takes some of those that a larger one
            takes. Only these are decoded, a note states them, and the classes are those of all rows.
        data_seed: Of the choice of ``limit`` images, and of nothing else.
        **loading: As for ``folder_task``. ``cache_dir`` also receives the tables as the ``datasets`` library
            keeps them.

    Raises:
        InputError: For a missing library, source or column, rows without a domain or a class, fewer than two
            domains of a domain column, fewer than two classes, a limit below 1, or unreadable pictures.
    """
    check_limit(source, limit)
    transform = Transform(size, augmentation=augmentation)
    table, key = _table(source, domain_column, loading.get("cache_dir"))
    columns = table.column_names
    image_column = image_column or next((column for column in IMAGE_COLUMNS if column in columns), "image")
    one_is_enough = domain_column is None
    domain_column = domain_column or SPLIT
    for column in (image_column, label_column, domain_column):
        if column not in columns:
            raise InputError(
                f"{source}: expected a column {column!r}, got none.{nearest(column, columns)} "
                f"Columns: {', '.join(column for column in columns if column != SPLIT)}."
            )
    table, picture_of = encoded_pictures(table, image_column)
    homes = list(table[domain_column])
    if None in homes:
        raise InputError(
            f"{source}: expected a domain in column {domain_column!r} of every row, got none in "
            f"{homes.count(None)} rows, such as row {homes.index(None)}. Remove them, or name another "
            f"domain_column."
        )
    places = np.array([str(value) for value in homes])
    known = sorted(set(places.tolist()))
    for domain in domains if domains is not None else ():
        if domain not in known:
            raise InputError(
                f"{source}: expected rows of domain {domain!r}, got none.{nearest(domain, known)} "
                f"Domains: {', '.join(known)}."
            )
    chosen = [domain for domain in known if domains is None or domain in domains]
    if not (one_is_enough and len(chosen) == 1):
        check_domain_count(source, chosen)
    every = [np.flatnonzero(places == domain) for domain in chosen]
    classes, labels = _labels(source, table, label_column, np.concatenate(every))
    rows = [_limited(some, limit, data_seed, domain) for some, domain in zip(every, chosen, strict=True)]
    drawn = [
        f"domain {domain!r} has {len(some):,} of {len(all_):,} rows, drawn with data seed {data_seed} (limit)"
        for domain, some, all_ in zip(chosen, rows, every, strict=True)
        if len(some) < len(all_)
    ]
    choice = (limit, data_seed) if drawn else ()
    shelves, notes = read_pictures(
        [[RowPicture(table, image_column, int(row), picture_of) for row in some] for some in rows],
        size=size,
        key=None if key is None else digest_of(key, image_column, domain_column, chosen, *choice),
        **loading,
    )
    return assemble(
        name or Path(source).stem,
        classes,
        chosen,
        [labels[some] for some in rows],
        shelves,
        transform,
        [*drawn, *notes],
    )


def _limited(rows: IntArray, limit: int | None, data_seed: int, domain: str) -> IntArray:
    """The first of a permutation of these rows, back in their order."""
    if limit is None or limit >= len(rows):
        return rows
    order = stream("rows of a table", int(data_seed), domain).permutation(len(rows))
    return rows[np.sort(order[:limit])]


@dataclass(frozen=True, slots=True)
class RowPicture:
    """The picture of one row, read from the table when it is opened."""

    table: Any
    column: str
    row: int
    nested: bool  # {"bytes": ..., "path": ...}, as the datasets library stores images

    def open(self) -> BinaryIO:
        value = self.table[self.row][self.column]
        data, path = (value["bytes"], value["path"]) if self.nested else (value, None)
        if data is None and path is not None:
            return Path(path).open("rb")
        if data is None:
            raise ValueError("the row holds no picture")
        return BytesIO(data)

    def __str__(self) -> str:
        return f"row {self.row} of column {self.column!r}"


def _table(source: str | Path, domain_column: str | None, cache_dir: Path | None) -> tuple[Any, str | None]:
    """All rows as one table, and a key for the files they come from."""
    _library(source)
    path = Path(source)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
    if path.exists() and not files:
        raise InputError(f"expected Parquet files in {path}, got none. Check the path.")
    if files and domain_column is None:
        folder = path if path.is_dir() else path.parent
        groups = {file.relative_to(folder).with_suffix("").as_posix(): [file] for file in files}
    else:
        groups = {"all": files} if files else {}
    parts = _loaded(source, groups, cache_dir)
    return _joined(parts, named=domain_column is None), _key(path, files) if files else None


def read_parts(source: Path, parts: Mapping[str, Sequence[Path]], cache_dir: Path | None) -> tuple[Any, str]:
    """All rows of these Parquet files as one table, whose column ``SPLIT`` names their part, and a key for them."""
    table = _joined(_loaded(source, parts, cache_dir), named=True)
    return table, _key(source, [file for files in parts.values() for file in files])


def _library(source: str | Path) -> Any:
    """The module that reads tables."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"reading {source} needs the datasets library. Install it with `pip install 'mirepoix[data]'`."
        ) from error
    return datasets


def _loaded(
    source: str | Path, groups: Mapping[str, Sequence[Path]], cache_dir: Path | None
) -> dict[str, Any]:
    """The tables of groups of files, or the splits of a dataset of the hub where there are no files."""
    datasets = _library(source)
    where = None if cache_dir is None else str(Path(cache_dir) / "datasets")
    try:
        if not groups:
            return dict(datasets.load_dataset(str(source), cache_dir=where))
        return {
            name: datasets.load_dataset(
                "parquet", data_files=[str(file) for file in files], split="train", cache_dir=where
            )
            for name, files in groups.items()
        }
    except Exception as error:  # the library raises its own, Arrow's and the network's errors
        raise InputError(
            f"expected a Parquet file, a folder of them or a dataset of the hub, got {source}, "
            f"which could not be read: {type(error).__name__}: {error}"
        ) from error


def _joined(parts: Mapping[str, Any], *, named: bool) -> Any:
    """The rows of all parts, with a column that names the part if asked to."""
    import datasets

    tables = [part.add_column(SPLIT, [name] * len(part)) if named else part for name, part in parts.items()]
    return datasets.concatenate_datasets(tables)


def _key(path: Path, files: Sequence[Path]) -> str:
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return digest_of("parquet", str(path.resolve()), *stats)


def encoded_pictures(table: Any, column: str) -> tuple[Any, bool]:
    """The table with its pictures left encoded, and whether they lie in a structure."""
    import datasets

    feature = table.features[column]
    if isinstance(feature, datasets.Image):
        return table.cast_column(column, datasets.Image(decode=False)), True
    if isinstance(feature, dict) and {"bytes", "path"} <= set(feature):
        return table, True
    if getattr(feature, "dtype", None) in ("binary", "large_binary"):
        return table, False
    raise InputError(
        f"column {column!r}: expected encoded pictures, got {feature}. Name another image_column."
    )


def _labels(source: object, table: Any, column: str, rows: IntArray) -> tuple[list[str], IntArray]:
    """Names of the classes, and the label of every row."""
    import datasets

    feature = table.features[column]
    values = list(table[column])
    empty = [
        int(row) for row in rows if values[row] is None or (isinstance(values[row], int) and values[row] < 0)
    ]
    if empty:
        raise InputError(
            f"{source}: expected a class in column {column!r} of every row, got none in {len(empty)} "
            f"rows, such as row {empty[0]}. Remove them, or name another label_column."
        )
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names), np.array(values, dtype=np.int64)
    distinct = {values[row] for row in rows}
    order = sorted(distinct)
    check_classes(source, {str(value) for value in order})
    number = {value: index for index, value in enumerate(order)}
    return [str(value) for value in order], np.array(
        [number.get(value, -1) for value in values], dtype=np.int64
    )
