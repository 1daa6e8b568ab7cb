"""CIFAR-10 and CIFAR-100 with their official division: the domains are ``train`` and ``test``.

Read are the official *binary* version and the Parquet files of the datasets hub. The official Python version is not:
its files are pickles, and unpickling runs code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from mirepoix.data._cache import Loading, read_pictures
from mirepoix.data._folder import assemble
from mirepoix.data._images import ArrayImages, IntArray
from mirepoix.data._mnist import check_limit
from mirepoix.data._parquet import IMAGE_COLUMNS, SPLIT, RowPicture, encoded_pictures, read_parts
from mirepoix.data._task import Domain, Task, digest_of, make_task, nearest
from mirepoix.data._transform import AugmentationName, Transform
from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = ["CIFAR", "cifar_task", "stratified"]

SIDE = 32  # pixels of an image
PIXELS = 3 * SIDE * SIDE
IMAGES = {"train": 50_000, "test": 10_000}
JPEG = b"\xff\xd8\xff"
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
worm
"""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a dataset lies and how its records begin.

    Attributes:
        folders: Names that its folder may have.
        binary: The folder and the archive of the binary version.
        python: The folder of the Python version, and one of its files.
        files: Binary files of each domain.
        labels: Bytes before the pixels of a record; the last of them is the class.
        names: File with the names of the classes.
        column: Of the class, in Parquet files.
        classes: Official names, in the order of the labels.
    """

    folders: tuple[str, ...]
    binary: tuple[str, str]
    python: tuple[str, str]
    files: Mapping[str, tuple[str, ...]]
    labels: int
    names: str
    column: str
    classes: tuple[str, ...]


CIFAR = {
    "CIFAR10": _Layout(
        folders=("cifar10", "CIFAR10", "cifar-10", "CIFAR-10"),
        binary=("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
        python=("cifar-10-batches-py", "data_batch_1"),
        files={
            "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            "test": ("test_batch.bin",),
        },
        labels=1,
        names="batches.meta.txt",
        column="label",
        classes=tuple(CIFAR10_CLASSES.split()),
    ),
    "CIFAR100": _Layout(
        folders=("cifar100", "CIFAR100", "cifar-100", "CIFAR-100"),
        binary=("cifar-100-binary", "cifar-100-binary.tar.gz"),
        python=("cifar-100-python", "train"),
        files={"train": ("train.bin",), "test": ("test.bin",)},
        labels=2,
        names="fine_label_names.txt",
        column="fine_label",
        classes=tuple(CIFAR100_CLASSES.split()),
    ),
}


def cifar_task(
    dataset: str,
    root: str | Path,
    *,
    size: int = SIDE,
    augmentation: AugmentationName = "crop_flip",
    domains: Sequence[str] | None = None,
    limit: int | None = None,
    **loading: Unpack[Loading],
) -> Task:
    """CIFAR-10 or CIFAR-100 with the domains ``train`` (50,000 images) and ``test`` (10,000).

    ``task.split("test")`` trains and validates on the official training images and tests on the official test images.

    The binary version (``data_batch_1.bin`` ... ``test_batch.bin``; ``train.bin`` and ``test.bin``) is taken where
    there is one, else Parquet files of the hub (``train-*.parquet``, ``test-*.parquet``, with the columns ``img`` and
    ``label`` or ``fine_label``), which need ``pip install 'mirepoix[data]'``. Images of some copies of the hub went
    through JPEG, which changes their pixels and costs a few points of published accuracies; a note says so.

    Args:
        dataset: ``CIFAR10`` or ``CIFAR100``, the latter with its 100 fine classes.
        root: A folder that holds the files, or their folder (``cifar10``, ``cifar-10-batches-bin``, ...).
        size: Side in pixels of what the network sees; images are kept with 32.
        augmentation: Of training images, see ``Transform``.
        domains: ``train``, ``test``, or both by default.
        limit: Training images; all of them by default. They are spread over the classes as evenly as possible, are
            the same whatever the data seed, and are some of those that a larger limit takes. Test images stay all.
        **loading: As for ``folder_task``; they matter for Parquet files only. The binary version needs no decoding,
            and lies in memory.

    Raises:
        InputError: For missing or damaged files, files of the Python version alone, another domain than these two,
            or a limit below 1.

    References:
        Krizhevsky (2009), Learning multiple layers of features from tiny images.
    """
    layout = CIFAR[dataset]
    check_limit(dataset, limit)
    for domain in domains if domains is not None else ():
        if domain not in IMAGES:
            raise InputError(
                f"{dataset}: expected the domains train and test, got {domain!r}.{nearest(domain, IMAGES)}"
            )
    chosen = [domain for domain in IMAGES if domains is None or domain in domains]
    if not chosen:
        raise InputError(f"{dataset}: expected at least one of the domains train and test, got none.")
    transform = Transform(size, augmentation=augmentation)
    binary, tables = _find(dataset, layout, Path(root), chosen)
    if binary is not None:
        return _from_binary(dataset, layout, binary, chosen, transform, limit)
    return _from_tables(dataset, layout, tables, transform, limit, loading)


def stratified(labels: IntArray, limit: int | None, *place: object) -> IntArray:
    """Numbers of ``limit`` samples, as many of each class as of any other, or one more; all samples without a limit.

    The samples of each class are shuffled, by a stream of the given name, and taken in turn: the first of every
    class, then the second, and so on. Fewer are therefore some of more, and a class that runs out leaves its turns
    to the others. The numbers come in ascending order.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        turn[rows[stream(*place, int(label)).permutation(len(rows))]] = np.arange(len(rows))
    return np.sort(np.lexsort((labels, turn))[:limit])


# Files ------------------------------------------------------------------------------------------------------


def _find(
    dataset: str, layout: _Layout, root: Path, domains: Sequence[str]
) -> tuple[Path | None, dict[str, list[Path]]]:
    """The folder of the binary version, or else the Parquet files of each domain."""
    above = [folder for name in layout.folders if (folder := root / name).is_dir()] + [root]
    places = [place for folder in above for place in (folder / layout.binary[0], folder)]
    for place in places:
        if any((place / file).is_file() for domain in domains for file in layout.files[domain]):
            return place, {}
    for folder in above:
        for place in (folder, folder / "data", folder / "plain_text", folder / dataset.lower()):
            tables = {domain: _tables(place, domain) for domain in domains}
            if all(tables.values()):
                return None, tables
    raise InputError(_missing(dataset, layout, root, places))


def _tables(folder: Path, domain: str) -> list[Path]:
    return sorted([*folder.glob(f"{domain}-*.parquet"), *folder.glob(f"{domain}.parquet")])


def _missing(dataset: str, layout: _Layout, root: Path, places: Sequence[Path]) -> str:
    expected = (
        f"{dataset}: expected {layout.files['train'][0]} and the other files of the binary version, or train-*.parquet "
        f"and test-*.parquet, in {root} or its folder {layout.folders[0]} or {layout.binary[0]}"
    )
    name, file = layout.python
    for place in (*(place.parent / name for place in places), *places):
        if (place / file).is_file():
            return (
                f"{expected}, got the Python version in {place}. It is pickled, and unpickling runs code: take the "
                f"binary version, {layout.binary[1]}, and unpack it there."
            )
    return f"{expected}, got none. Unpack {layout.binary[1]} there, or name the folder that holds it."


# The binary version -----------------------------------------------------------------------------------------


def _from_binary(
    dataset: str,
    layout: _Layout,
    folder: Path,
    chosen: Sequence[str],
    transform: Transform,
    limit: int | None,
) -> Task:
    classes = _names(layout, folder)
    domains, digests, notes = [], [], []
    for name in chosen:
        images, labels = _records(layout, folder, name, len(classes))
        kept = _kept(dataset, name, labels, limit)
        notes += _notes(dataset, name, labels, kept)
        if len(kept) < len(labels):
            images, labels = images[kept], labels[kept]
        domains.append(Domain(name, ArrayImages(images), labels))
        digests.append(digest_of(images))
    return make_task(dataset, classes, domains, transform, image_digests=digests, notes=notes)


def _names(layout: _Layout, folder: Path) -> tuple[str, ...]:
    """The names that the folder states, or the official ones."""
    try:
        lines = (folder / layout.names).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return layout.classes
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{folder / layout.names}: expected the names of the classes, one per line, got "
            f"{type(error).__name__}: {error}. Unpack {layout.binary[1]} again, or remove the file."
        ) from error
    if len(lines) != len(layout.classes):
        raise InputError(
            f"{folder / layout.names}: expected the names of {len(layout.classes)} classes, one per line, got "
            f"{len(lines)}. Unpack {layout.binary[1]} again, or remove the file: the official names are known."
        )
    return tuple(lines)


def _records(layout: _Layout, folder: Path, domain: str, classes: int) -> tuple[NDArray[np.uint8], IntArray]:
    """Images and labels of the files of one domain."""
    length = layout.labels + PIXELS
    files = layout.files[domain]
    parts = []
    for file in files:
        path = folder / file
        expected = IMAGES[domain] // len(files) * length
        try:
            data = np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise InputError(
                f"{path}: expected a file of {expected:,} bytes, got {error.strerror}. Unpack {layout.binary[1]} again."
            ) from error
        if not len(data) or len(data) % length:
            raise InputError(
                f"{path}: expected {expected:,} bytes ({length:,} for each image), got {len(data):,}: the file is "
                f"truncated or another one. Unpack {layout.binary[1]} again."
            )
        records = data.reshape(-1, length)
        wrong = np.flatnonzero(records[:, layout.labels - 1] >= classes)
        if len(wrong):
            raise InputError(
                f"{path}: expected labels below {classes}, got {records[wrong[0], layout.labels - 1]} for image "
                f"{wrong[0]}: the file is damaged or another one. Unpack {layout.binary[1]} again."
            )
        parts.append(records)
    images = np.concatenate([records[:, layout.labels :] for records in parts]).reshape(-1, 3, SIDE, SIDE)
    return images, np.concatenate([records[:, layout.labels - 1] for records in parts]).astype(np.int64)


# Parquet ----------------------------------------------------------------------------------------------------


def _from_tables(
    dataset: str,
    layout: _Layout,
    files: Mapping[str, Sequence[Path]],
    transform: Transform,
    limit: int | None,
    loading: Loading,
) -> Task:
    folder = next(iter(files.values()))[0].parent
    table, key = read_parts(folder, files, loading.get("cache_dir"))
    columns = table.column_names
    image = next((column for column in reversed(IMAGE_COLUMNS) if column in columns), IMAGE_COLUMNS[-1])
    for column in (image, layout.column):
        if column not in columns:
            raise InputError(
                f"{folder}: expected a column {column!r}, as {dataset} has, got none. Columns: "
                f"{', '.join(column for column in columns if column != SPLIT)}. Name the folder of {dataset}."
            )
    table, nested = encoded_pictures(table, image)
    places = np.array(list(table[SPLIT]))
    classes, labels = _labels(layout, folder, table)
    notes: list[str] = []
    if len(classes) != len(layout.classes):
        notes.append(f"there are {len(classes)} classes; {dataset} was published with {len(layout.classes)}")
    rows = []
    for name in files:
        of_domain = np.flatnonzero(places == name)
        kept = _kept(dataset, name, labels[of_domain], limit)
        notes += _notes(dataset, name, labels[of_domain], kept)
        rows.append(of_domain[kept])
    choice = () if sum(map(len, rows)) == len(table) else (limit,)
    pictures = [[RowPicture(table, image, int(row), nested) for row in of_domain] for of_domain in rows]
    shelves, unreadable = read_pictures(
        pictures,
        size=transform.size,
        key=digest_of(dataset, key, image, list(files), *choice),
        **loading,
    )
    if any(of_domain and _is_jpeg(of_domain[0]) for of_domain in pictures):
        notes.append(
            "the images are stored as JPEG, which changed their pixels: results do not strictly compare with "
            "published ones"
        )
    return assemble(
        dataset,
        classes,
        list(files),
        [labels[of_domain] for of_domain in rows],
        shelves,
        transform,
        [*notes, *unreadable],
    )


def _labels(layout: _Layout, folder: Path, table: Any) -> tuple[tuple[str, ...], IntArray]:
    """The names that the table states, or the official ones, and the label of every row."""
    classes = tuple(getattr(table.features[layout.column], "names", None) or layout.classes)
    values = list(table[layout.column])
    for row, value in enumerate(values):
        if not isinstance(value, int) or not 0 <= value < len(classes):
            raise InputError(
                f"{folder}: expected a number from 0 to {len(classes) - 1} in column {layout.column!r} of every row, "
                f"got {value!r} in row {row}. Fetch the files again."
            )
    return classes, np.array(values, dtype=np.int64)


def _is_jpeg(picture: RowPicture) -> bool:
    try:
        with picture.open() as file:
            return file.read(len(JPEG)) == JPEG
    except (OSError, ValueError):
        return False  # said elsewhere: it is unreadable


# What is kept, and what to know of it -----------------------------------------------------------------------


def _kept(dataset: str, domain: str, labels: IntArray, limit: int | None) -> IntArray:
    # Seed 0 whatever the trial: all trials of a small CIFAR train on the same images.
    return stratified(labels, limit if domain == "train" else None, "images of", dataset, 0)


def _notes(dataset: str, domain: str, labels: IntArray, kept: IntArray) -> list[str]:
    notes = []
    if len(labels) != IMAGES[domain]:
        notes.append(
            f"domain {domain!r} has {len(labels):,} images; {dataset} was published with {IMAGES[domain]:,}"
        )
    if len(kept) < len(labels):
        notes.append(
            f"domain {domain!r} has {len(kept):,} of {len(labels):,} images, spread evenly over the classes (limit)"
        )
    return notes
