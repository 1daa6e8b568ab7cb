"""Predictions of others, as files: logits or probabilities of any framework become `Predictions`.

Whether scores are logits or probabilities is said, never guessed: numbers that look like probabilities are refused
until it is. Nothing that is read can run code.
"""

from __future__ import annotations

import csv
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mirepoix.predictions import Predictions
from mirepoix.types import InputError

__all__ = ["read_predictions"]

SUM_TOLERANCE = (
    1e-2  # half precision over a thousand classes, and tables printed with four digits, stay within
)
RESERVED = ("label", "domain", "sample")
ENDINGS = ".safetensors, .npz, .npy, .csv, .tsv or .parquet"


def read_predictions(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    labels: str | os.PathLike[str] | None = None,
    probabilities: bool | None = None,
) -> Predictions:
    """Read the scores of several members on the same samples, whoever wrote them.

    ===============  ===============================================================================================
    Ending           What is in it
    ===============  ===============================================================================================
    .safetensors     what `Predictions.save` wrote; always logits
    .npz             ``logits`` or ``probabilities``, (members, samples, classes) or (samples, classes); optional
                     ``labels``, ``domains`` (numbers or names), ``members``, ``classes`` (names)
    .npy             one array, (samples, classes) or (members, samples, classes)
    .csv, .tsv       a header, then a row per sample: a column of scores for each class, named after it; optional
                     columns ``label`` (names or numbers of classes), ``domain``, and ``sample`` (a name)
    .parquet         the same columns; needs pyarrow
    ===============  ===============================================================================================

    A member is named after its file; several of one file have their names or are numbered. Where names collide, the
    name of the file, or its path, is put before. Labels and domains may stand in one file for all; where several tell
    them, they must agree, as must ``sample``.

    A probability of zero becomes a logit of minus infinity, and so an infinite log-likelihood if it is the label's.
    Half precision is widened to float32.

    Args:
        paths: One file or several.
        labels: A file with the true classes: ``.npy``, ``.npz`` with ``labels``, ``.txt`` with one per line, or a
            table with the column ``label`` or only one column.
        probabilities: Whether scores are probabilities, whose logarithm is taken. Unless told, they are logits, and
            such as look like probabilities are refused.

    Raises:
        InputError: With the file, for what does not fit: shapes, numbers of samples, names or order of classes,
            labels that name no class, scores that are not numbers; without labels; for predicted classes alone.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.savez(folder / "a.npz", logits=np.array([[2.0, 1.0], [0.0, 1.0]]), labels=np.array([0, 1]))
        >>> np.save(folder / "b.npy", np.array([[1.0, 3.0], [0.5, 0.7]]))
        >>> predictions = read_predictions([folder / "a.npz", folder / "b.npy"])
        >>> predictions.members, predictions.correct().tolist()
        (('a', 'b'), [[True, True], [False, True]])
    """
    several = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not several:
        raise InputError("predictions: expected at least one file, got none.")
    parts = [_read(Path(path), probabilities) for path in several]
    _check_shapes(parts)
    _check_samples(parts)
    classes = _agreed_classes(parts)
    told = [(str(part.path), part.labels) for part in parts if part.labels is not None]
    if labels is not None:
        told.insert(0, (str(labels), _read_labels(Path(labels))))
    if not told:
        raise InputError(
            f"{parts[0].path}: holds no labels, and nor does another file. Pass them in a file of their own: --labels "
            "FILE (--ood-labels for files of --ood), or labels=FILE in Python."
        )
    samples = parts[0].scores.shape[1]
    for where, values in told:
        _check_count(where, values, parts[0])
    found = [(where, _label_indices(where, values, classes)) for where, values in told]
    for where, values in found[1:]:
        _check_equal(found[0], (where, values), "labels")
    domains, domain_names = _agreed_domains(parts, samples)
    dtype = torch.float32
    for part in parts:
        dtype = torch.promote_types(dtype, part.scores.dtype)
    return Predictions(
        torch.cat([part.scores.to(dtype) for part in parts]),
        torch.from_numpy(found[0][1]),
        domains,
        _member_names(parts),
        classes,
        domain_names,
    )


@dataclass(frozen=True)
class _Part:
    """What one file holds."""

    path: Path
    scores: Tensor  # (members, samples, classes), logits
    members: tuple[str, ...]
    classes: tuple[str, ...] | None = None
    labels: NDArray[Any] | None = None  # indices or names
    domains: tuple[str, ...] | None = None  # the name of each sample's
    domain_names: tuple[str, ...] | None = None  # in their order
    samples: tuple[str, ...] | None = None


# Files.


def _read(path: Path, probabilities: bool | None) -> _Part:
    if not path.is_file():
        what = "is a folder; name the files in it" if path.is_dir() else "does not exist"
        raise InputError(f"{path}: expected a file of predictions, and it {what}.")
    if path.suffix == ".safetensors":
        return _own(path)
    if path.suffix == ".npz":
        part, declared = _archive(path)
    elif path.suffix == ".npy":
        part, declared = _Part(path, _scores(path, _single_array(path)), ()), None
    elif path.suffix in (".csv", ".tsv", ".parquet"):
        part, declared = _table(path), None
    else:
        more = " Files of torch can run code and are not read." if path.suffix in (".pt", ".pth") else ""
        raise InputError(
            f"{path}: expected predictions in {ENDINGS}, got {path.suffix or 'no ending'!r}.{more} Write them with "
            "numpy.savez(path, logits=..., labels=...)."
        )
    if declared and probabilities is False:
        raise InputError(
            f"{path}: holds 'probabilities', which cannot be taken as logits. Leave --logits out."
        )
    part = replace(part, scores=_logits(path, part.scores, declared or probabilities))
    members = part.members or _numbered(path.stem, len(part.scores))
    if len(members) != len(part.scores):
        raise InputError(f"{path}: expected {len(part.scores)} names in 'members', got {len(members)}.")
    classes = part.scores.shape[2]
    if part.classes is not None and (
        len(part.classes) != classes or len(set(part.classes)) != len(part.classes)
    ):
        raise InputError(
            f"{path}: expected {classes} different names in 'classes', got {', '.join(part.classes[:10])}."
        )
    return replace(part, members=members)


def _own(path: Path) -> _Part:
    """What `Predictions.save` wrote."""
    predictions = Predictions.load(path)
    names = predictions.domain_names
    _check_numbers(path, predictions.logits)
    return _Part(
        path,
        predictions.logits.float() if predictions.logits.dtype != torch.float64 else predictions.logits,
        predictions.members,
        predictions.classes,
        predictions.labels.numpy(),
        tuple(names[number] for number in predictions.domains.tolist()),
        names,
    )


def _load(path: Path) -> Any:
    """An array or, by name, the arrays of NumPy's; what would have to be unpickled is refused."""
    try:
        with path.open("rb") as file:  # NumPy leaves it open when the archive is broken
            found = np.load(file, allow_pickle=False)
            return (
                {name: found[name] for name in found.files}
                if isinstance(found, np.lib.npyio.NpzFile)
                else found
            )
    except (
        ValueError,
        OSError,
        EOFError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(f"{path}: expected arrays saved by NumPy, without objects ({error}).") from None


def _named_arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    found = _load(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected an archive of numpy.savez, got a single array. Call it .npy.")
    return found


def _single_array(path: Path) -> NDArray[Any]:
    found = _load(path)
    if isinstance(found, dict):
        raise InputError(f"{path}: expected a single array, got an archive of numpy.savez. Call it .npz.")
    return np.asarray(found)


def _archive(path: Path) -> tuple[_Part, bool | None]:
    arrays = _named_arrays(path)
    keys = [key for key in ("logits", "probabilities") if key in arrays]
    if len(keys) != 1:
        got = " and ".join(keys) if keys else ", ".join(list(arrays)[:10]) or "nothing"
        raise InputError(
            f"{path}: expected an array 'logits' or 'probabilities', got {got}. Write it with "
            "numpy.savez(path, logits=..., labels=...)."
        )
    scores = _scores(path, arrays[keys[0]])
    domains = _vector(path, arrays, "domains", scores)
    part = _Part(
        path,
        scores,
        _texts(_vector(path, arrays, "members")) or (),
        _texts(_vector(path, arrays, "classes")),
        _vector(path, arrays, "labels", scores),
        _texts(domains),
        None if domains is None else tuple(str(name) for name in np.unique(domains)),
    )
    return part, keys == ["probabilities"] or None


def _vector(
    path: Path, arrays: Mapping[str, NDArray[Any]], name: str, scores: Tensor | None = None
) -> NDArray[Any] | None:
    """The array of this name, of the length of the samples where scores are given."""
    if name not in arrays:
        return None
    array = arrays[name]
    length = None if scores is None else scores.shape[1]
    if array.ndim != 1 or (length is not None and len(array) != length):
        expected = "one per member or class" if length is None else f"one per sample, {length}"
        raise InputError(
            f"{path}: '{name}': expected {expected}, got an array of shape {array.shape}."
            f"{_turned(path, scores, array) if scores is not None else ''}"
        )
    return array


def _table(path: Path) -> _Part:
    """Columns of scores, and of what is known about the samples."""
    columns = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    classes = [name for name in columns if name not in RESERVED]
    if not classes:
        raise InputError(
            f"{path}: expected a column of scores for each class beside {', '.join(columns)}, got none. Predicted "
            "classes alone do not tell what is needed here: write logits or probabilities."
        )
    for name in classes:
        column = columns[name]
        if column.dtype.kind not in "fiu":
            raise InputError(
                f"{path}: column {name!r} is read as the scores of a class, and holds no numbers. Columns that hold "
                f"none are called {', '.join(RESERVED)}; leave others out."
            )
        numbers_rows = len(column) > 2 and bool((np.diff(column) == 1).all()) and column[0] in (0, 1)
        if name in ("", "Unnamed: 0", "id", "index") or (numbers_rows and len(classes) > 1):
            raise InputError(
                f"{path}: column {name!r} would be read as the scores of a class, and numbers the rows. Leave it out, "
                "or call it 'sample'."
            )
    domains = columns.get("domain")
    return _Part(
        path,
        _scores(path, np.stack([columns[name] for name in classes], axis=1)),
        (),
        tuple(classes),
        columns.get("label"),
        _texts(domains),
        None if domains is None else tuple(str(name) for name in np.unique(domains)),
        _texts(columns.get("sample")),
    )


def _csv(path: Path) -> dict[str, NDArray[Any]]:
    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, delimiter=separator)
            header, first = [name.strip() for name in next(rows, [])], next(rows, None)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a table as text in UTF-8 ({error}).") from None
    if len(header) == 1 and ";" in header[0]:
        raise InputError(f"{path}: expected columns separated by commas, got semicolons.")
    if not header or all(_is_number(name) and not name.isdecimal() for name in header):
        raise InputError(
            f"{path}: expected a header with a name for each column (of the class, or {', '.join(RESERVED)}), got "
            f"{separator.join(header[:4]) or 'an empty file'}."
        )
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise InputError(f"{path}: expected different names of columns, got {twice[0]!r} twice.")
    if first is not None and len(first) > len(header):  # as R writes the names of rows, which have no head
        raise InputError(
            f"{path}: expected {len(header)} cells in each row, as in the header, got {len(first)} in row 0."
        )
    texts = [number for number, name in enumerate(header) if name in RESERVED]
    numbers = [number for number in range(len(header)) if number not in texts]
    result: dict[str, NDArray[Any]] = {}
    if numbers:
        values = _columns(path, separator, numbers, np.float64)
        result = {header[number]: values[:, k] for k, number in enumerate(numbers)}
    for number in texts:
        result[header[number]] = _columns(path, separator, [number], np.str_)[:, 0]
    return {name: result[name] for name in header}


def _columns(path: Path, separator: str, numbers: Sequence[int], dtype: Any) -> NDArray[Any]:
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*input contained no data")
            return np.loadtxt(
                path,
                dtype=dtype,
                comments=None,
                delimiter=separator,
                skiprows=1,
                usecols=numbers,
                ndmin=2,
                encoding="utf-8-sig",
                quotechar='"',
            )
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected a text file in UTF-8.") from None
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: {_wrong_cell(path, separator, numbers) or error}") from None


def _wrong_cell(path: Path, separator: str, numbers: Sequence[int]) -> str | None:
    """Where a table is not one of numbers."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, delimiter=separator)
        header = next(rows)
        for number, row in enumerate(row for row in rows if row):
            if len(row) != len(header):
                return f"expected {len(header)} cells in each row, as in the header, got {len(row)} in row {number}."
            for column in numbers:
                if not _is_number(row[column]):
                    return (
                        f"column {header[column].strip()!r} is read as the scores of a class, and row {number}, "
                        f"counted from 0, has {row[column]!r}. Columns that hold no scores are called "
                        f"{', '.join(RESERVED)}; leave others out."
                    )
    return None


def _parquet(path: Path) -> dict[str, NDArray[Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path}: reading it needs pyarrow: pip install pyarrow. Or write a .csv.") from None
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error}).") from None
    result = {}
    for name in table.column_names:
        column = table.column(name)
        if column.null_count:
            raise InputError(
                f"{path}: column {name!r} has {column.null_count} empty cells. Fill them, or leave it out."
            )
        values = column.to_numpy()
        result[name] = values.astype(np.str_) if values.dtype.kind == "O" else values
    return result


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# Scores.


def _scores(path: Path, array: NDArray[Any]) -> Tensor:
    """(members, samples, classes), in float32 or float64."""
    if array.ndim == 1 and array.dtype.kind in "iub":
        raise InputError(
            f"{path}: expected scores of every class, (samples, classes), got {len(array)} whole numbers. Predicted "
            "classes alone do not tell what is needed here: write logits or probabilities."
        )
    if array.ndim not in (2, 3) or 0 in array.shape or array.shape[-1] < 2:
        raise InputError(
            f"{path}: expected scores of shape (samples, classes) or (members, samples, classes), with two classes "
            f"or more, got shape {array.shape}."
        )
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path}: expected scores that are numbers, got {array.dtype}.")
    wide = array.astype(np.float32 if array.dtype in (np.float16, np.float32) else np.float64)
    return torch.from_numpy(wide if array.ndim == 3 else wide[None])


def _logits(path: Path, scores: Tensor, probabilities: bool | None) -> Tensor:
    """The scores, or the logarithm of what is said to be probabilities."""
    if probabilities:
        _check_numbers(path, scores)
        wrong = ((scores < 0) | (scores > 1)).any(-1) | ((scores.sum(-1) - 1).abs() > SUM_TOLERANCE)
        if wrong.any():
            member, sample = (int(number) for number in wrong.nonzero()[0])
            some = ", ".join(f"{value:.4g}" for value in scores[member, sample, :4].tolist())
            raise InputError(
                f"{path}: expected probabilities, from 0 to 1 with the sum 1; {_place(member, sample, scores)} "
                f"({some}{', ...' if scores.shape[2] > 4 else ''}) has the sum "
                f"{float(scores[member, sample].sum()):.4g}. If these are logits, leave --probabilities out."
            )
        return scores.log()
    _check_numbers(path, scores)
    if probabilities is None and bool(
        ((scores >= 0) & (scores <= 1)).all() and ((scores.sum(-1) - 1).abs() <= SUM_TOLERANCE).all()
    ):
        raise InputError(
            f"{path}: these look like probabilities: all from 0 to 1, with the sum 1 in each row. Pass --probabilities "
            "(probabilities=True in Python) if they are, or --logits (probabilities=False) if they are logits "
            "nevertheless."
        )
    return scores


def _check_numbers(path: Path, scores: Tensor) -> None:
    top = scores.amax(-1)  # NaN if one is
    wrong = ~torch.isfinite(top)
    if wrong.any():
        member, sample = (int(number) for number in wrong.nonzero()[0])
        value = float(top[member, sample])
        what = (
            "all are minus infinity"
            if value == -np.inf
            else "one is NaN"
            if np.isnan(value)
            else "one is infinity"
        )
        raise InputError(
            f"{path}: expected scores that are numbers; {_place(member, sample, scores)}, {what}; "
            f"{_rows(int(wrong.sum()))} in all."
        )


def _rows(number: int) -> str:
    return f"{number} row{'' if number == 1 else 's'}"


def _place(member: int, sample: int, scores: Tensor) -> str:
    of = f" of member {member}" if len(scores) > 1 else ""
    return f"in row {sample}{of}, counted from 0"


# Agreement.


def _check_shapes(parts: Sequence[_Part]) -> None:
    """As many samples and classes in all; the file that differs from most is named."""
    shapes = [(part.scores.shape[1], part.scores.shape[2]) for part in parts]
    counts = Counter(shapes)
    # Of two that are each other's transpose as often, the one with more samples than classes is right.
    usual = max(shapes, key=lambda shape: (counts[shape], shape[::-1] in counts and shape[0] > shape[1]))
    like = parts[shapes.index(usual)]
    for part, shape in zip(parts, shapes, strict=True):
        if shape == usual:
            continue
        if shape == usual[::-1]:
            raise InputError(
                f"{part.path}: expected {usual[0]} samples of {usual[1]} classes as in {like.path}, got {shape[0]} "
                f"samples of {shape[1]} classes: transposed? Write scores as (samples, classes)."
            )
        axis = 0 if shape[0] != usual[0] else 1
        raise InputError(
            f"{part.path}: expected {usual[axis]} {('samples', 'classes')[axis]} as in {like.path}, got "
            f"{shape[axis]}. Members must see the same samples, in the same order, and know the same classes."
        )


def _check_count(where: str, labels: NDArray[Any], part: _Part) -> None:
    samples = part.scores.shape[1]
    if len(labels) != samples:
        raise InputError(
            f"{where}: expected {samples} labels, one per sample of {part.path}, got {len(labels)}."
            f"{_turned(part.path, part.scores, labels)}"
        )


def _turned(path: Path, scores: Tensor, told: NDArray[Any]) -> str:
    """Advice where there are as many labels as classes."""
    samples, classes = scores.shape[1:]
    if len(told) != classes:
        return ""
    return (
        f" The scores of {path} are {samples} samples of {classes} classes: transposed? Write them as "
        "(samples, classes)."
    )


def _check_samples(parts: Sequence[_Part]) -> None:
    """Where tables name the samples, the names are the same."""
    named = [part for part in parts if part.samples is not None]
    for part in named[1:]:
        _check_equal(
            (str(named[0].path), np.array(named[0].samples)),
            (str(part.path), np.array(part.samples)),
            "samples",
        )


def _agreed_classes(parts: Sequence[_Part]) -> tuple[str, ...]:
    named = [part for part in parts if part.classes is not None]
    if not named:
        return tuple(str(number) for number in range(parts[0].scores.shape[2]))
    first = named[0].classes or ()
    for part in named[1:]:
        for expected, got in zip(first, part.classes or (), strict=True):
            if expected != got:
                raise InputError(
                    f"{part.path}: expected the class {expected!r} as in {named[0].path}, got {got!r}. Names and order "
                    "of the classes must be the same."
                )
    return first


def _agreed_domains(parts: Sequence[_Part], samples: int) -> tuple[Tensor, tuple[str, ...]]:
    told = [part for part in parts if part.domains is not None and part.domain_names is not None]
    if not told:
        return torch.zeros(samples, dtype=torch.long), ("all",)
    first = told[0]
    for part in told[1:]:
        _check_equal(
            (str(first.path), np.array(first.domains)), (str(part.path), np.array(part.domains)), "domains"
        )
    names = first.domain_names or ()
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers[name] for name in first.domains or ()]), names


def _check_equal(first: tuple[str, NDArray[Any]], second: tuple[str, NDArray[Any]], what: str) -> None:
    differ = np.flatnonzero(first[1] != second[1])
    if len(differ):
        row = int(differ[0])
        raise InputError(
            f"{second[0]}: expected the {what} of {first[0]}; row {row}, counted from 0, is {second[1][row]} here and "
            f"{first[1][row]} there. {_rows(len(differ))} differ{'s' if len(differ) == 1 else ''}: members must "
            "see the same samples, in the same order."
        )


def _label_indices(where: str, values: NDArray[Any], classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Labels as numbers of classes, from numbers or names."""
    if values.dtype.kind in "fiub":
        whole = values.astype(np.int64) if np.isfinite(values).all() else np.zeros(0, dtype=np.int64)
        wrong = np.flatnonzero(whole != values) if len(whole) else np.flatnonzero(~np.isfinite(values))
        if not len(wrong):
            if whole.min() >= 1 and whole.max() == len(classes):
                raise InputError(
                    f"{where}: the labels run from {whole.min()} to {whole.max()}, and there are {len(classes)} "
                    f"classes 0 to {len(classes) - 1}: subtract 1."
                )
            wrong = np.flatnonzero((whole < 0) | (whole >= len(classes)))
        if len(wrong):
            raise InputError(
                f"{where}: expected labels from 0 to {len(classes) - 1}, got {values[wrong[0]]} in row {wrong[0]}, "
                "counted from 0."
            )
        return whole
    if values.dtype.kind not in "US":
        raise InputError(
            f"{where}: expected labels that are names or numbers of classes, got {values.dtype}."
        )
    try:
        names = values.astype(np.str_)
    except UnicodeDecodeError:
        raise InputError(f"{where}: expected labels as text, got bytes that are not ASCII.") from None
    distinct = {str(name) for name in np.unique(names)}
    numbers = {name: number for number, name in enumerate(classes)}
    if not distinct <= set(classes):
        # A number that is the name of a class too would have two meanings, unless classes are called by number.
        unnamed = classes == tuple(map(str, range(len(classes))))
        decimal = all(name.isdecimal() for name in distinct)
        if not decimal or (distinct & set(classes) and not unnamed):
            unknown = min(distinct - set(classes))
            if unnamed:
                raise InputError(
                    f"{where}: expected labels from 0 to {len(classes) - 1}, as the predictions do not name their "
                    f"classes, got {unknown!r}. Name the classes, in the order of the scores: as 'classes' in an "
                    ".npz, or in the header of a .csv, .tsv or .parquet."
                )
            raise InputError(
                f"{where}: expected labels among the classes {', '.join(classes[:10])}"
                f"{', ...' if len(classes) > 10 else ''}, or their numbers from 0, got {unknown!r}."
            )
        return _label_indices(where, names.astype(np.int64), classes)
    return np.array([numbers[str(name)] for name in names], dtype=np.int64)


def _read_labels(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise InputError(f"{path}: expected a file of labels, and there is none.")
    if path.suffix == ".npy":
        found = _single_array(path)
    elif path.suffix == ".npz":
        arrays = _named_arrays(path)
        if "labels" not in arrays:
            raise InputError(f"{path}: expected an array 'labels', got {', '.join(arrays) or 'nothing'}.")
        found = arrays["labels"]
    elif path.suffix == ".parquet":
        columns = _parquet(path)
        if "label" not in columns and len(columns) != 1:
            raise InputError(f"{path}: expected a column 'label', got {', '.join(columns)}.")
        found = columns.get("label", next(iter(columns.values())))
    elif path.suffix in (".csv", ".tsv", ".txt"):
        found = _label_lines(path)
    else:
        raise InputError(
            f"{path}: expected labels in .npy, .npz, .csv, .tsv, .parquet or .txt, got {path.suffix or 'no ending'!r}."
        )
    if found.ndim != 1:
        raise InputError(f"{path}: expected one label per sample, got an array of shape {found.shape}.")
    return np.asarray(found)


def _label_lines(path: Path) -> NDArray[Any]:
    """One per line, or the column ``label``."""
    separator = {".csv": ",", ".tsv": "\t", ".txt": "\n"}[path.suffix]
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix == ".txt":
                rows = [[line.strip()] for line in file if line.strip()]
            else:
                rows = [
                    [cell.strip() for cell in row] for row in csv.reader(file, delimiter=separator) if row
                ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected labels as text in UTF-8 ({error}).") from None
    column = 0
    if rows and "label" in rows[0]:
        column = rows[0].index("label")
        rows = rows[1:]
    elif rows and len(rows[0]) > 1:
        raise InputError(f"{path}: expected a column 'label', or one column, got {', '.join(rows[0][:5])}.")
    short = next((number for number, row in enumerate(rows) if len(row) <= column), None)
    if short is not None:
        raise InputError(f"{path}: row {short}, counted from 0, has no label.")
    return np.array([row[column] for row in rows], dtype=np.str_)


# Names.


def _texts(array: NDArray[Any] | None) -> tuple[str, ...] | None:
    return None if array is None else tuple(str(value) for value in array.tolist())


def _numbered(stem: str, members: int) -> tuple[str, ...]:
    return (stem,) if members == 1 else tuple(f"{stem}-{number}" for number in range(members))


def _member_names(parts: Sequence[_Part]) -> tuple[str, ...]:
    """The names, with as much of the file before them as makes them different."""
    single = [part.members == (part.path.stem,) for part in parts]
    forms = [
        [name for part in parts for name in part.members],
        [
            f"{part.path.parent.name}/{name}" if alone else f"{part.path.stem}/{name}"
            for part, alone in zip(parts, single, strict=True)
            for name in part.members
        ],
        [
            str(part.path) if alone else f"{part.path}/{name}"
            for part, alone in zip(parts, single, strict=True)
            for name in part.members
        ],
    ]
    names = forms[0]
    for longer in forms[1:]:
        counts = Counter(names)
        names = [name if counts[name] == 1 else long for name, long in zip(names, longer, strict=True)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"{twice[0]}: this member is given twice. Name each file once, and each member in it."
        )
    return tuple(names)
