"""Results that appear when they are complete, all their files together, and never in place of an input."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mirepoix.types import InputError

__all__ = ["check_out", "is_file_name", "publish", "record_file", "refuse_inputs", "staging"]

WEIGHTS = (".pt", ".pth", ".th", ".bin", ".ckpt", ".npz", ".gguf", ".json", ".yml", ".yaml")
"""Suffixes of files that a soup is not written as; a folder may have any other dot in its name."""


def is_file_name(out: Path) -> bool:
    """Whether a result of this name is a file, not a folder."""
    if out.suffix in WEIGHTS:
        raise InputError(
            f"{out}: expected a name ending in .safetensors, or that of a folder, got suffix {out.suffix!r}. "
            "`mirepoix convert` writes other formats."
        )
    return out.suffix == ".safetensors"


def record_file(out: Path) -> Path:
    """Where the record lies: beside the file, or beside the weights in a folder."""
    if out.suffix == ".safetensors":
        return out.with_suffix(".json")
    return out / ("adapter_model.json" if (out / "adapter_config.json").is_file() else "model.json")


def check_out(out: Path, *, force: bool) -> None:
    """Raise unless a result may take this name.

    Raises:
        InputError: If the name is unfit, its folder is missing, or something is there that may not be replaced:
            anything without ``force``, and with it what is no soup.
    """
    if out.is_symlink():
        raise InputError(
            f"{out}: is a symbolic link and will not be replaced. Name what it points to, or another."
        )
    if not out.parent.is_dir():
        raise InputError(
            f"{out}: cannot be written, the folder {out.parent} does not exist. Create it first."
        )
    if not is_file_name(out):
        if out.is_dir() and any(out.iterdir()):
            _check_replaceable(out, force)
        elif out.exists() and not out.is_dir():
            raise InputError(f"{out}: expected a folder or nothing there, got a file. Choose another name.")
        return
    if out.is_dir():
        raise InputError(f"{out}: expected the name of a file, got a folder. Choose another name.")
    index = out.with_name(out.name + ".index.json")
    if (out.exists() or index.exists()) and not force:
        raise InputError(f"{out}: exists already. Choose another name, or pass --force to replace it.")
    record = record_file(out)
    if record.exists() and not (force and _is_record(record)):
        raise InputError(
            f"{record}: would be replaced by the record of the soup, and is "
            f"{'the record of another' if _is_record(record) else 'none'}. Choose another name for the soup"
            f"{', or pass --force' if _is_record(record) else ''}."
        )


def _check_replaceable(out: Path, force: bool) -> None:
    if not force:
        raise InputError(f"{out}: exists already. Choose another name, or pass --force to replace a soup.")
    if not _is_record(record_file(out)):
        raise InputError(
            f"{out}: exists and is not the result of a soup, so it will not be replaced. Name another."
        )


def _is_record(path: Path) -> bool:
    return _read(path).get("verb") == "soup"


def _read(path: Path) -> dict[str, Any]:
    from mirepoix.checkpoints import read_json

    with contextlib.suppress(InputError):
        record = read_json(path)
        if isinstance(record, dict):
            return record
    return {}


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to prepare it in; it is gone at the end, whatever happens.

    What a killed job of this machine left for the same name is removed first.
    """
    host = os.uname().nodename[:30].replace("/", "-")
    for old in out.parent.glob(f".{_escaped(out.name[:50])}.{_escaped(host)}.*.tmp"):
        pid = old.name.split(".")[-3]
        if pid.isdecimal() and not _alive(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    folder = out.parent / f".{out.name[:50]}.{host}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir()
        yield folder
    except OSError as error:
        # The temporary name means nothing to anybody.
        if error.filename is not None and str(folder) in str(error.filename):
            error.filename, error.filename2 = str(out), None
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _escaped(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def publish(staged: Path, out: Path, inputs: Iterable[Path], *, force: bool) -> None:
    """Give staged files their names: those of a file in its folder, or those of a folder.

    The one that opens the result comes last. Without ``force`` nothing is replaced, not even what appeared
    meanwhile; with it, what the record of an earlier soup lists and this one does not have is removed.

    Raises:
        InputError: If a name is that of an input, or is taken.
    """
    inputs = list(inputs)
    target = out.parent if is_file_name(out) else out
    files = sorted((file for file in staged.iterdir() if file.is_file()), key=_doors_last)
    refuse_inputs((target / file.name for file in files), inputs)
    if target == out and not (force and out.is_dir() and any(out.iterdir())):
        with _taken(out):
            staged.replace(out)  # onto nothing, or an empty folder; fails on any other
        return
    stale = _listed(record_file(out), target) if force else []
    done: list[Path] = []
    try:
        for file in files:
            place = target / file.name
            if force:
                file.replace(place)
            else:
                with _taken(place):
                    _move_to_free(file, place)
                done.append(place)
    except BaseException:
        for place in done:
            place.unlink(missing_ok=True)
        raise
    kept = {file.name for file in files}
    for place in stale:
        if place.name not in kept and not any(_same(place, file) for file in inputs):
            place.unlink(missing_ok=True)


def _move_to_free(file: Path, place: Path) -> None:
    """Rename, but never onto something."""
    try:
        os.link(file, place)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        if place.exists():  # a file system without links cannot promise more than this look
            raise FileExistsError(errno.EEXIST, "exists", str(place)) from error
        file.replace(place)


def _doors_last(file: Path) -> tuple[bool, bool, str]:
    is_shard = "-of-" in file.name
    return file.name.endswith(".index.json"), file.suffix == ".safetensors" and not is_shard, file.name


def refuse_inputs(places: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise if a file to be written is one that is read, by whatever name."""
    inputs = list(inputs)
    for place in places:
        if any(_same(place, file) for file in inputs):
            raise InputError(f"{place}: is one of the inputs, which are never changed. Choose another name.")


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)


@contextmanager
def _taken(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise InputError(
            f"{place}: appeared while the soup was made, and was left as it is. Choose another name."
        ) from error


def _listed(record: Path, folder: Path) -> list[Path]:
    """The files of an earlier soup."""
    files = _read(record).get("result", {})
    names = files.get("files", {}) if isinstance(files, dict) else {}
    index = [name.split("-0")[0] + ".safetensors.index.json" for name in names if "-of-" in name]
    return [folder / name for name in {*names, *index} if Path(name).name == name]
