"""Any folder of pictures as a task: ``root/<domain>/<class>/<picture>``.

Domains are sorted by name, and so are the classes of all domains together, so that a class that is missing in
one domain moves no label. Pictures are ordered by class and path, as in the reference, which the published
splits depend on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mirepoix.data._cache import MEMORY_BUDGET, Progress, Shelf, read_pictures
from mirepoix.data._decode import FilePicture
from mirepoix.data._images import IntArray
from mirepoix.data._task import Domain, Task, digest_of, make_task, nearest
from mirepoix.data._transform import AugmentationName, Transform
from mirepoix.types import InputError

__all__ = ["assemble", "check_classes", "check_domain_count", "folder_task", "subfolders"]

EXTENSIONS = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
LITTER = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True, slots=True)
class _Listing:
    """The pictures of one domain folder, by class, and the files that are none."""

    pictures: Mapping[str, Sequence[Path]]
    others: Sequence[Path]


def folder_task(
    path: str | Path,
    *,
    name: str | None = None,
    size: int = 224,
    augmentation: AugmentationName = "domainbed",
    domains: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    memory_budget: int = MEMORY_BUDGET,
    skip_unreadable: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Task:
    """A task from a folder with one sub-folder per domain and, in each, one per class.

    Hidden files and folders are ignored, files whose name does not end like a picture's are left out with a
    note, and a picture that cannot be decoded is an error that lists all of them. The EXIF orientation is not
    applied and transparency is dropped, as in the reference.

    Args:
        path: The folder.
        name: Of the task; the folder's by default.
        size: Side in pixels of what the network sees.
        augmentation: Of training images, see ``Transform``.
        domains: Names of the sub-folders to use; all of them by default.
        cache_dir: Where decoded images are kept for later runs; ``None`` keeps them in memory.
        memory_budget: Bytes that decoded images may take; a larger task is decoded each time it is read.
        skip_unreadable: Leave unreadable pictures out, with a note, instead of raising.
        workers: Threads that decode; one per processor by default.
        progress: Called with (done, total, "reading images").

    Raises:
        InputError: For a missing folder, fewer than two domains or classes, a domain without pictures, or
            unreadable pictures.
    """
    root = Path(path)
    transform = Transform(size, augmentation=augmentation)
    listings = {folder.name: _listing(folder) for folder in _domain_folders(root, domains)}
    empty = [domain for domain, listing in listings.items() if not listing.pictures]
    if empty:
        raise InputError(
            f"{root}: expected pictures in <domain>/<class>/, got none in domains: {', '.join(empty)}. Add "
            f"some ({', '.join(sorted(EXTENSIONS))}), or name the domains to use."
        )
    classes = check_classes(root, {label for listing in listings.values() for label in listing.pictures})
    files = {
        domain: [
            (file, classes.index(label)) for label in classes for file in listing.pictures.get(label, ())
        ]
        for domain, listing in listings.items()
    }
    shelves, notes = read_pictures(
        [[FilePicture(file) for file, _ in domain] for domain in files.values()],
        size=size,
        key=_key(root, [file for domain in files.values() for file, _ in domain]),
        cache_dir=cache_dir,
        memory_budget=memory_budget,
        skip_unreadable=skip_unreadable,
        workers=workers,
        progress=progress,
    )
    others = [other for listing in listings.values() for other in listing.others]
    if others:
        notes.append(
            f"{len(others)} files are not pictures in a class folder and were left out, such as {others[0]}"
        )
    labels = [np.array([label for _, label in domain], dtype=np.int64) for domain in files.values()]
    return assemble(name or root.resolve().name, classes, list(files), labels, shelves, transform, notes)


def assemble(
    name: str,
    classes: Sequence[str],
    domains: Sequence[str],
    labels: Sequence[IntArray],
    shelves: Sequence[Shelf],
    transform: Transform,
    notes: Sequence[str],
) -> Task:
    """A task from read pictures; ``labels`` are those of all pictures, read or left out."""
    for domain, shelf in zip(domains, shelves, strict=True):
        if not len(shelf.kept):
            raise InputError(f"domain {domain!r} of {name}: expected pictures, got none that can be read.")
    return make_task(
        name,
        classes,
        [
            Domain(domain, shelf.images, label[shelf.kept])
            for domain, shelf, label in zip(domains, shelves, labels, strict=True)
        ],
        transform,
        image_digests=[shelf.digest for shelf in shelves],
        notes=notes,
    )


def check_classes(where: object, classes: set[str]) -> list[str]:
    """The classes in order, at least two."""
    if len(classes) < 2:
        raise InputError(
            f"{where}: expected at least 2 classes, got {len(classes)}: {', '.join(sorted(classes))}."
        )
    return sorted(classes)


def check_domain_count(where: object, domains: Sequence[str]) -> None:
    """At least two domains."""
    if len(domains) < 2:
        raise InputError(
            f"{where}: expected at least 2 domains, one to leave out and one to train on, got "
            f"{len(domains)}: {', '.join(domains)}."
        )


def subfolders(folder: Path) -> list[Path]:
    """Sub-folders that are not hidden, sorted by name."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _domain_folders(root: Path, domains: Sequence[str] | None) -> list[Path]:
    if not root.is_dir():
        raise InputError(
            f"expected a folder with one sub-folder per domain, got {root}, which "
            f"{'is not a folder' if root.exists() else 'does not exist'}. Check the path."
        )
    folders = subfolders(root)
    if not folders:
        raise InputError(
            f"{root}: expected one sub-folder per domain (<domain>/<class>/<picture>), got none. "
            f"Check the path."
        )
    known = [folder.name for folder in folders]
    for domain in domains if domains is not None else ():
        if domain not in known:
            raise InputError(
                f"{root}: expected the folder of domain {domain!r}, got none.{nearest(domain, known)} "
                f"Domains: {', '.join(known)}."
            )
    chosen = [folder for folder in folders if domains is None or folder.name in domains]
    check_domain_count(root, [folder.name for folder in chosen])
    return chosen


def _listing(domain: Path) -> _Listing:
    pictures: dict[str, list[Path]] = {}
    others = [entry for entry in sorted(domain.iterdir()) if entry.is_file() and not _ignored(entry.name)]
    for label in subfolders(domain):
        for file in _files(label):
            if file.suffix.lower() in EXTENSIONS:
                pictures.setdefault(label.name, []).append(file)
            else:
                others.append(file)
    return _Listing(pictures, others)


def _files(folder: Path) -> list[Path]:
    """All files below a folder, those of one sub-folder together, as the reference orders them."""
    found = []
    for parent, inner, names in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [(parent, name) for name in names if not _ignored(name)]
    return [Path(parent, name) for parent, name in sorted(found)]


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in LITTER


def _key(root: Path, files: Sequence[Path]) -> str:
    """Stands for the files as they are: another place, time of change or size is another key.

    Without the place, two unpacked archives whose files share names, sizes and times would be confused.
    """
    stats = ((file, file.stat()) for file in files)
    return digest_of(
        "files",
        str(root.resolve()),
        *((file.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns) for file, stat in stats),
    )
