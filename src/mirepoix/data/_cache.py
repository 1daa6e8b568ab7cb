"""Pictures to images, each decoded once: into memory, into a file that later runs find, or only checked.

Beside the decoded pixels the cache keeps a *manifest*: what was learnt from a list of files, under a key made
of their relative paths, sizes and times of change. A run that finds it reads no picture at all. Everything is
written under a temporary name and renamed; whoever holds the lock may remove what a killed run left behind.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mirepoix.data._decode import Picture, decode, picture_size, reason, stored_extent
from mirepoix.data._images import ArrayImages, Images, IntArray, StreamedImages
from mirepoix.data._task import digest_of
from mirepoix.types import InputError

__all__ = ["MEMORY_BUDGET", "Loading", "Progress", "Shelf", "read_pictures"]

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with how many are done, of how many, and what is being done."""

MEMORY_BUDGET = 4 * 2**30
FORMAT = 1
WHOLE = 2 * 2**30  # bytes; larger files are checked by samples
BLOCK = 2**20
SAMPLES = 256
SLICE = 256  # pictures handed to the threads at a time
LISTED = 20  # unreadable pictures named in an error


class Loading(TypedDict, total=False):
    """Options that change how pictures are read, not what the task contains.

    Attributes:
        cache_dir: Where decoded images are kept for later runs; ``None`` keeps them in memory.
        memory_budget: Bytes that decoded images may take; a larger task is decoded each time it is read.
        skip_unreadable: Leave unreadable pictures out, with a note, instead of raising.
        workers: Threads that decode; one per processor by default.
        progress: Called with (done, total, "reading images").
    """

    cache_dir: Path | None
    memory_budget: int
    skip_unreadable: bool
    workers: int | None
    progress: Progress | None


@dataclass(frozen=True, slots=True)
class Shelf:
    """The images of one domain.

    Attributes:
        images: The readable ones.
        kept: Their numbers among the domain's pictures.
        digest: Of their encoded bytes.
    """

    images: Images
    kept: IntArray
    digest: str


@dataclass(frozen=True, slots=True)
class _Contents:
    """What one pass over the pictures teaches, short of the pixels; this is what a manifest keeps."""

    extent: tuple[int, int]
    digests: tuple[str, ...]  # one per domain
    pixels: str  # names the folder of the decoded images
    unreadable: dict[int, str]  # number of the picture, and why


def read_pictures(
    domains: Sequence[Sequence[Picture]],
    *,
    size: int,
    key: str | None,
    cache_dir: Path | None = None,
    memory_budget: int = MEMORY_BUDGET,
    skip_unreadable: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[Shelf], list[str]]:
    """The images of each domain, and notes about what was left out.

    Args:
        domains: The pictures of each domain.
        size: Side in pixels of what the network will see.
        key: Stands for the list of pictures as it is on disk; ``None`` when nothing does.
        cache_dir: See ``Loading``, as all the following.
        memory_budget: Bytes.
        skip_unreadable: Whether to go on without them.
        workers: Threads.
        progress: Told about every few hundred pictures.

    Raises:
        InputError: With the paths of unreadable pictures, unless they are to be skipped.
    """
    pictures = list(itertools.chain.from_iterable(domains))
    threads = workers if workers is not None else _processors()
    if threads < 1:
        raise InputError(f"workers: expected at least 1 thread, got {workers}.")
    reader = _Reader(
        pictures, [len(domain) for domain in domains], size, memory_budget, skip_unreadable, threads
    )
    report = progress or (lambda done, total, what: None)
    if cache_dir is None:
        contents, array = reader.read(report, reader.in_memory)
    else:
        contents, array = _Cache(Path(cache_dir), key).find_or_make(reader, report)
    reader.check(contents.unreadable)
    return reader.shelves(contents, array), reader.notes(contents.unreadable)


@dataclass(frozen=True, slots=True)
class _Reader:
    """The one pass over the pictures, and what follows from it."""

    pictures: Sequence[Picture]
    counts: Sequence[int]
    size: int
    budget: int
    skip: bool
    workers: int

    def shape(self, extent: tuple[int, int]) -> tuple[int, int, int, int]:
        return len(self.pictures), 3, *extent

    def fits(self, extent: tuple[int, int]) -> bool:
        return math.prod(self.shape(extent)) <= self.budget

    def in_memory(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        return np.empty(shape, dtype=np.uint8)

    def read(
        self, report: Progress, allocate: Callable[[tuple[int, ...]], NDArray[np.uint8]]
    ) -> tuple[_Contents, NDArray[np.uint8] | None]:
        """Decode and hash every picture once; keep the pixels if they fit."""
        extent = stored_extent(self.sizes(), self.size)
        array = allocate(self.shape(extent)) if self.fits(extent) else None

        def work(number: int) -> bytes | str:
            try:
                with self.pictures[number].open() as file:
                    data = file.read()
                pixels = decode(BytesIO(data), extent)
            except Exception as error:  # Pillow's decoders raise almost anything on a damaged file
                return reason(error)
            if array is not None:
                array[number] = pixels
            return hashlib.sha256(data).digest()

        hashes: list[bytes] = []
        unreadable: dict[int, str] = {}
        total = len(self.pictures)
        report(0, total, "reading images")
        with ThreadPoolExecutor(self.workers) as pool:
            for first in range(0, total, SLICE):
                for result in pool.map(work, range(first, min(first + SLICE, total))):
                    if isinstance(result, str):
                        unreadable[len(hashes)] = result
                    hashes.append(b"" if isinstance(result, str) else result)
                report(len(hashes), total, "reading images")
        self.check(unreadable)
        digests = tuple(
            hashlib.sha256(b"".join(hashes[part.start : part.stop])).hexdigest() for part in self.parts()
        )
        return _Contents(extent, digests, digest_of("pixels", extent, hashes), unreadable), array

    def sizes(self) -> set[tuple[int, int]]:
        """The sizes that occur, as far as needed to know whether there is one."""
        seen: set[tuple[int, int]] = set()
        for picture in self.pictures:
            try:
                with picture.open() as file:
                    seen.add(picture_size(file))
            except Exception:
                continue  # reported, with all the others, when it is decoded
            if len(seen) > 1:
                break
        return seen

    def parts(self) -> Iterator[range]:
        """The numbers of the pictures of each domain."""
        ends = list(itertools.accumulate(self.counts))
        return (range(end - count, end) for end, count in zip(ends, self.counts, strict=True))

    def check(self, unreadable: dict[int, str]) -> None:
        if unreadable and not self.skip:
            raise InputError(
                f"{len(unreadable)} of {len(self.pictures)} pictures cannot be read:\n"
                + "\n".join(f"  {line}" for line in self.named(unreadable))
                + "\nReplace or remove them, or leave them out with --skip-unreadable on the command line "
                "(in the library skip_unreadable=True)."
            )

    def notes(self, unreadable: dict[int, str]) -> list[str]:
        return [f"{len(unreadable)} unreadable: {'; '.join(self.named(unreadable))}"] if unreadable else []

    def named(self, unreadable: dict[int, str]) -> list[str]:
        lines = [f"{self.pictures[number]} ({reason})" for number, reason in unreadable.items()]
        more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        return lines[:LISTED] + more

    def shelves(self, contents: _Contents, array: NDArray[np.uint8] | None) -> list[Shelf]:
        shelves = []
        for part, digest in zip(self.parts(), contents.digests, strict=True):
            rows = np.array([row for row in part if row not in contents.unreadable], dtype=np.int64)
            images: Images
            if array is None:
                images = StreamedImages([self.pictures[row] for row in rows], contents.extent, self.workers)
            else:
                images = ArrayImages(array, rows)
            shelves.append(Shelf(images, rows - part.start, digest))
        return shelves


class _Cache:
    """A folder with manifests (``<key>.json``) and decoded images (``<digest>/``)."""

    def __init__(self, folder: Path, key: str | None) -> None:
        self.folder = folder
        self.key = key
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cache_dir: expected a folder that can be written, got {folder} ({error}). Name another one: "
                f"--store on the command line, cache_dir in the library."
            ) from error

    def find_or_make(self, reader: _Reader, report: Progress) -> tuple[_Contents, NDArray[np.uint8] | None]:
        # A hit needs no lock: what it reads was renamed into place whole.
        found = self.find(reader)
        if found is not None:
            return found
        with FileLock(self.folder / ".lock"):
            return self.find(reader) or self.make(reader, report)

    def find(self, reader: _Reader) -> tuple[_Contents, NDArray[np.uint8] | None] | None:
        contents = self.manifest(reader)
        if contents is None:
            return None
        if not reader.fits(contents.extent):
            return contents, None
        array = _open(self.folder / contents.pixels, reader.shape(contents.extent))
        return None if array is None else (contents, array)

    def manifest(self, reader: _Reader) -> _Contents | None:
        body = None if self.key is None else _unseal(self.manifest_path(reader))
        if body is None:
            return None
        unreadable = {int(number): reason for number, reason in body["unreadable"].items()}
        return _Contents(tuple(body["extent"]), tuple(body["digests"]), body["pixels"], unreadable)

    def manifest_path(self, reader: _Reader) -> Path:
        return (
            self.folder / f"{digest_of('manifest', FORMAT, self.key, reader.size, list(reader.counts))}.json"
        )

    def make(self, reader: _Reader, report: Progress) -> tuple[_Contents, NDArray[np.uint8] | None]:
        for left in self.folder.glob("*.tmp-*"):
            _remove(left)
        workplace = self.folder / f"images.tmp-{os.getpid()}"
        workplace.mkdir()
        try:
            contents, array = reader.read(report, lambda shape: _mapped(workplace / "images.u8", shape))
            if isinstance(array, np.memmap):
                shape = array.shape
                array.flush()
                del array
                self.keep(workplace, contents, shape)
            if self.key is not None:
                _write(self.manifest_path(reader), _seal(_manifest(contents)))
        finally:
            _remove(workplace)
        if not reader.fits(contents.extent):
            return contents, None
        return contents, _map(self.folder / contents.pixels, reader.shape(contents.extent))

    def keep(self, workplace: Path, contents: _Contents, shape: tuple[int, ...]) -> None:
        """Move the finished pixels, with their index, to where they will be found."""
        data = workplace / "images.u8"
        _sync(data)
        index = {"format": FORMAT, "shape": shape, "checksum": _checksum(data), "files": contents.pixels}
        _write(workplace / "index.json", _seal(index))
        place = self.folder / contents.pixels
        _remove(place)  # a damaged one; an intact one would have been found
        workplace.rename(place)
        _sync(self.folder)


def _manifest(contents: _Contents) -> dict[str, Any]:
    return {
        "extent": contents.extent,
        "digests": contents.digests,
        "pixels": contents.pixels,
        "unreadable": contents.unreadable,
    }


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A new mapped file, its space reserved: a full disk is then an error here and not a crash later."""
    size = math.prod(shape)
    try:
        with path.open("wb") as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise InputError(
            f"cache_dir: expected room for {_bytes(size)} of decoded images in {path.parent.parent}, got "
            f"{error.strerror}. Name a folder on another disk: --store on the command line, cache_dir in the "
            f"library, where None keeps the images in memory."
        ) from error
    return np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)


def _bytes(size: int) -> str:
    """A size as a person would say it."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _map(folder: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.memmap(folder / "images.u8", dtype=np.uint8, mode="r", shape=shape)


def _open(folder: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The decoded images of this folder, or nothing when they are absent, of another shape or damaged."""
    index, data = _unseal(folder / "index.json"), folder / "images.u8"
    if index is None or index.get("format") != FORMAT or index.get("shape") != list(shape):
        return None
    if not data.is_file() or data.stat().st_size != math.prod(shape) or _checksum(data) != index["checksum"]:
        return None
    return _map(folder, shape)


def _checksum(path: Path) -> str:
    """SHA-256 of a file; of its size and of evenly spaced blocks when it is larger than 2 GiB."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        total = hashlib.sha256(str(size).encode())
        for sample in range(SAMPLES):
            file.seek((size - BLOCK) * sample // (SAMPLES - 1))
            total.update(file.read(BLOCK))
        return total.hexdigest()


def _seal(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True)
    return json.dumps(
        {"sha256": hashlib.sha256(text.encode()).hexdigest(), "body": body}, sort_keys=True
    ).encode()


def _unseal(path: Path) -> dict[str, Any] | None:
    """The body of a sealed file, or nothing when it is absent, incomplete or altered."""
    try:
        sealed = json.loads(path.read_bytes())
        body: dict[str, Any] = sealed["body"]
        text = json.dumps(body, sort_keys=True)
        return body if hashlib.sha256(text.encode()).hexdigest() == sealed["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
