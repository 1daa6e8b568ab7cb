"""Results kept by what they were made of.

A result is looked up by the fingerprint of everything that decides it: the start, the task, the run, the
trainer and the code that trains. So recycling, resuming and provenance come for free: `cached` turns any
``train`` into one that never does the same work twice.

On disk every result is a folder named by that fingerprint::

    <store>/<kind>/<key>/record.json      written last: with it the result is finished
                        /best.safetensors ...
                        /state.bin, lock  only while it is being made

Files are written to temporary names and renamed, a lock keeps other processes from making the same result at
the same time, and every file is compared with the digest in the record before it is used. What does not
agree is moved to ``<store>/damaged`` and made again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from mirepoix.checkpoints import file_digest, fingerprint, open_weights, read_json, write_json, write_weights
from mirepoix.runs import Run
from mirepoix.types import Diverged, InputError, Weights

__all__ = ["Store", "StoredWeights", "cached", "code_version", "environment", "key_of", "result_key"]

log = logging.getLogger(__name__)

Result = tuple[Mapping[str, Weights], dict[str, Any]]
"""Weights by name, and the record."""


def key_of(made_of: Mapping[str, Any]) -> str:
    """The fingerprint of plain values: their JSON text, hashed."""
    text = json.dumps(made_of, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@functools.cache
def code_version(*also: str) -> str:
    """A digest of the source files that decide the outcome of a training.

    Args:
        also: Further files and folders of the package, for results that depend on more.
    """
    digest = hashlib.sha256()
    package = Path(str(resources.files("mirepoix")))
    deciding = [package / "runs.py", package / "seeds.py", package / "predictions.py"]
    deciding += [
        package / "landscape" / f"_{name}.py" for name in ("distances", "persistence", "rtd")
    ]  # a criterion's
    for room in ("data", "ensembles", "models", "objectives", "snapshots", "training"):
        deciding += sorted((package / room).rglob("*.py"))
    for name in also:
        place = package / name
        deciding += sorted(place.rglob("*.py")) if place.is_dir() else [place]
    for file in deciding:
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def environment() -> dict[str, str]:
    """Versions and machine, for a record; nothing in it decides which result is looked up."""
    libraries = ("mirepoix", "torch", "torchvision", "timm", "numpy", "safetensors")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: metadata.version(name) for name in libraries},
    }


@dataclass(frozen=True)
class Store:
    """A folder of results.

    Attributes:
        path: The folder; made when first written.
        made: Keys of the results that this object made, and did not find.
    """

    path: Path
    made: list[str] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    def entry(self, kind: str, key: str) -> Path:
        """The folder of one result."""
        return self.path / kind / key

    def find(self, kind: str, key: str) -> Result | None:
        """A finished result, every file of it verified; a damaged one is not returned."""
        entry = self.entry(kind, key)
        if not (entry / "record.json").is_file() or _damage(entry):
            return None
        record = read_json(entry / "record.json")
        return {Path(name).stem: open_weights(entry / name) for name in record["files"]}, record

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        """The record of a finished result, without a look at its files."""
        try:
            record = read_json(self.entry(kind, key) / "record.json")
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def set_damaged_aside(self, kind: str, key: str) -> None:
        """Move a result that is not what was written to ``damaged``, so that it counts as not made; else nothing."""
        entry = self.entry(kind, key)
        if not (entry / "record.json").is_file():
            return
        with _locked(entry):
            if (entry / "record.json").is_file() and (problem := _damage(entry)):
                self._set_aside(entry, problem)

    def get_or_make(self, kind: str, made_of: Mapping[str, Any], make: Callable[[Path], Result]) -> Result:
        """The result made of ``made_of``: found, or made now and kept.

        Args:
            kind: A word for the folder, such as ``weights``.
            made_of: Everything that decides the result, as plain values.
            make: Makes it; gets the folder where an unfinished result may keep its state.
        """
        key = key_of(made_of)
        entry = self.entry(kind, key)
        found = self.find(kind, key)
        # A process killed just after it finished leaves its state, which the lock's holder removes.
        if found and not (entry / "state.bin").exists():
            return found
        entry.mkdir(parents=True, exist_ok=True)
        with _locked(entry):
            found = self.find(kind, key)  # another process may have made it while we waited
            if found:
                _remove_leftovers(entry)
                return found
            if (entry / "record.json").is_file():  # we hold the lock: nobody else judges it or moves it
                self._set_aside(entry, _damage(entry) or "it cannot be read")
            _remove_leftovers(entry, but="state.bin")
            weights, record = make(entry)
            files = {f"{name}.safetensors": theta for name, theta in weights.items()}
            record = {
                "format": 1,
                "made_of": dict(made_of),
                **record,
                "files": {name: write_weights(entry / name, theta) for name, theta in files.items()},
                "environment": environment(),
            }
            record["sha256"] = key_of(record)
            write_json(entry / "record.json", record)
            _remove_leftovers(entry)
            self.made.append(key)
        result = self.find(kind, key)
        if result is None:
            raise OSError(f"{entry}: the result just written reads back damaged; check the disk.")
        return result

    def _set_aside(self, entry: Path, problem: str) -> None:
        damaged = self.path / "damaged"
        damaged.mkdir(exist_ok=True)
        target = Path(tempfile.mkdtemp(prefix=f"{entry.name}-", dir=damaged))
        # The record first: without it, what remains is no result.
        for file in sorted(entry.iterdir(), key=lambda file: file.name != "record.json"):
            if file.name != "lock":
                file.rename(target / file.name)
        log.warning("a stored result is damaged (%s); it is set aside in %s and made again.", problem, target)


def _damage(entry: Path) -> str | None:
    """What is wrong with a finished result, or None."""
    try:
        record = read_json(entry / "record.json")
        sealed = record.pop("sha256")
        if key_of(record) != sealed or key_of(record["made_of"]) != entry.name:
            return "record.json is not the file that was written"
        for name, digest in record["files"].items():
            if file_digest(entry / name) != digest:
                return f"{name} is not the file that was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return str(error) or type(error).__name__
    return None


def _remove_leftovers(entry: Path, but: str = "") -> None:
    """What a process that was killed left, or our own state; we hold the lock, so nobody is writing."""
    for file in (*entry.glob(".*.tmp"), entry / "state.bin"):
        if file.name != but:
            file.unlink(missing_ok=True)


@contextmanager
def _locked(entry: Path) -> Iterator[None]:
    """Hold the lock of one result; it is released when the process ends, however it ends."""
    import filelock

    lock = filelock.FileLock(entry / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.info("another process is making %s; waiting for it.", entry.name)
        lock.acquire()
    try:
        yield
    finally:
        if (entry / "record.json").is_file():
            (entry / "lock").unlink(missing_ok=True)
        lock.release()


def cached(train: Any, store: Store, *, made_of: Mapping[str, Any] | None = None) -> Any:
    """``train``, with every result kept in ``store`` and looked up before it is made.

    Works with any callable ``(theta, task, run) -> Weights`` whose task has a ``digest``. A `Trainer` keeps all
    that one training collects, and continues inside an interrupted run. A run that diverged is remembered too.

    Args:
        train: The training.
        store: Where results are kept.
        made_of: What ``train`` adds to the identity of its results, as plain values: its options, a version.
            A `Trainer` says so itself.

    Raises:
        InputError: If nothing says what ``train`` is made of, or the task has no digest.
        Diverged: If the run diverged, now or when it was made.
    """
    described = _described(train, made_of)
    fits = hasattr(train, "fit")

    def lookup(theta: Weights, task: Any, run: Run) -> Weights:
        identity = _identity(train, described, fingerprint(theta), task, run)

        def make(workspace: Path) -> Result:
            if not fits:
                return {run.collect: train(theta, task, run)}, {"status": "finished"}
            try:
                fit = train.fit(theta, task, run, workspace=workspace)
            except Diverged as diverged:
                return {}, {"status": "diverged", "step": diverged.step, "message": str(diverged)}
            return fit.weights, fit.record

        weights, record = store.get_or_make("weights", identity, make)
        if record["status"] == "diverged":
            raise Diverged(record["message"], record["step"])
        return StoredWeights(weights[run.collect], record)

    return lookup


def result_key(train: Any, theta: Weights | str, task: Any, run: Run) -> str:
    """The key under which `cached` keeps the result of a training, which need not have been made.

    Args:
        train: As for `cached`; it says itself what it is made of.
        theta: The start, or its fingerprint.
        task: With a ``digest``.
        run: The configuration.
    """
    start = theta if isinstance(theta, str) else fingerprint(theta)
    return key_of(_identity(train, _described(train, None), start, task, run))


def _described(train: Any, made_of: Mapping[str, Any] | None) -> dict[str, Any]:
    if made_of is None and not hasattr(train, "made_of"):
        raise InputError(
            f"cached: nothing says what {train!r} adds to its results; pass made_of={{...}} with its name, its "
            "options and a version, so that changing them makes new results."
        )
    return dict(made_of) if made_of is not None else dict(train.made_of())


def _identity(train: Any, described: Mapping[str, Any], start: str, task: Any, run: Run) -> dict[str, Any]:
    """Everything that decides the outcome of a training."""
    digest = getattr(task, "digest", None)
    if not isinstance(digest, str):
        raise InputError(f"cached: the task needs a `digest`, a text that names its content; got {task!r}.")
    fits = hasattr(train, "fit")
    configuration = run.to_dict()
    if fits and run.collect in train.keep:  # one training serves every collector that is kept
        configuration["collect"] = "all"
    return {
        "theta": start,
        "task": digest,
        "run": configuration,
        "train": dict(described),
        "code": code_version() if fits else None,
    }


class StoredWeights(Mapping[str, Any]):
    """Weights in a store: a read-only lazy mapping, with its file and the record of how it was made.

    Attributes:
        record: What the weights were made of, the checks along the run, seconds, device, library versions.
    """

    def __init__(self, theta: Weights, record: dict[str, Any]) -> None:
        self._theta = theta
        self.record = record

    @property
    def path(self) -> Path:
        """The file of the weights."""
        path: Path = self._theta.path  # type: ignore[attr-defined]
        return path

    def __getitem__(self, name: str) -> Any:
        return self._theta[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._theta)

    def __len__(self) -> int:
        return len(self._theta)
