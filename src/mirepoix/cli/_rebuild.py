"""``mirepoix rebuild``: the same soup again, from the record beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.cli._carry_out import Description

__all__ = ["rebuild"]

PIECE = 1 << 20
OPTIONS = ("dtype", "integers", "check", "names", "rename", "rows", "untie", "upcast", "max_shard")


def rebuild(
    record: Annotated[Path, typer.Argument(help="The .json beside a soup, or the soup itself.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write. [default: beside the record]")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare with the soup that is there, byte by byte; write nothing."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Make a soup again from its record: the same members and method give the same bits.

    With --verify the exit code is 1 when the bits differ, or an input is not what it was. Without it, nothing is
    written unless the bits are those of the record.
    """
    from mirepoix.checkpoints import read_json, write_json
    from mirepoix.cli._carry_out import make, open_inputs, record_of
    from mirepoix.cli._staging import check_out, is_file_name, publish, record_file, staging

    path = _record_path(record)
    content = read_json(path)
    description, name, recorded = _described(content, path)
    is_file = is_file_name(Path(name))
    name = path.with_suffix(".safetensors").name if is_file else name  # files may have been renamed together
    there = path.parent / name if is_file else path.parent
    if not verify:
        if out is not None:
            if is_file_name(out) != is_file:
                raise InputError(
                    f"{out}: expected {'a .safetensors file' if is_file else 'a folder'}, as it was."
                )
            check_out(out, force=False)
        elif not is_file or there.exists():
            raise InputError(f"{there}: exists already. Name another with -o, or compare with --verify.")
    target = out or (path.parent / name)
    problems = _changed(content, path)
    if problems and not verify:
        raise InputError(f"{path}: cannot be rebuilt, {'; '.join(problems)}. Bring the inputs back first.")
    if not problems:
        opened = open_inputs(description)
        with staging(target) as folder:
            report = make(description, opened, folder, target)
            problems = _differences(report.files, recorded, there.parent if is_file else there, verify)
            if not problems and not verify:
                if out is not None:
                    place = record_file(folder / out.name if is_file else folder)
                    write_json(place, record_of(description, opened, report, out) | _selection(content))
                publish(folder, target, opened.files, force=False)
    if as_json:
        typer.echo(json.dumps({"same": not problems, "problems": problems}, ensure_ascii=False))
    elif problems:
        typer.echo(f"{path}: not the same: {'; '.join(problems)}")
    elif verify:
        typer.echo(f"{path}: the same bits again ({len(description.members)} members, {description.method})")
    else:
        typer.echo(f"{target}: rebuilt, the same bits")
    if problems:
        raise typer.Exit(1)


def _record_path(path: Path) -> Path:
    from mirepoix.cli._staging import record_file

    if path.is_dir() or path.suffix == ".safetensors":
        path = record_file(path)
    if not path.is_file():
        raise InputError(f"{path}: expected the record of a soup, got nothing there. Check the path.")
    return path


def _described(record: Any, path: Path) -> tuple[Description, str, Mapping[str, Any]]:
    """The description in a record with paths from here, the name of the result, and its digests.

    Raises:
        InputError: If it is not the record of a soup, or names what no soup writes.
    """
    from mirepoix.cli._carry_out import FILES, Description
    from mirepoix.cli._methods import METHODS

    def fail(what: str) -> InputError:
        return InputError(
            f"{path}: expected the record of a soup, as `mirepoix soup` writes beside its result, got one with {what}."
        )

    def kind(value: Any, expected: type, what: str) -> Any:
        if not isinstance(value, expected):
            raise fail(f"no {what}")
        return value

    content = kind(record, dict, "fields")
    if content.get("verb") != "soup" or content.get("method") not in METHODS:
        raise fail("another verb or method")
    members = kind(content.get("members"), list, "members")
    if not members or not all(isinstance(member, str) for member in members):
        raise fail("no members")
    parameters = dict(kind(content.get("parameters"), dict, "parameters"))
    options = dict(kind(content.get("options"), dict, "options"))
    unknown = next((name for name in options if name not in OPTIONS), None)
    if unknown is not None:
        raise fail(f"an unknown option {unknown!r}")
    result = kind(content.get("result"), dict, "result")
    name = kind(result.get("name"), str, "name of the result")
    files = kind(result.get("files"), dict, "files of the result")
    if any(text in ("", ".", "..") or Path(text).name != text for text in (name, *files)):
        raise fail("a name that is no plain file name")
    for found in (content.get("inputs"), files):
        if not all(isinstance(item, dict) for item in kind(found, dict, "inputs").values()):
            raise fail("no digests")
    adapters = content.get("adapters")
    if adapters is not None and not isinstance(kind(adapters, dict, "adapters").get("mode"), str):
        raise fail("no mode of adapters")
    for key in FILES:
        if key in parameters:
            parameters[key] = [_from(path, file) for file in kind(parameters[key], list, key)]
    base = content.get("base")
    description = Description(
        [_from(path, member) for member in members],
        content["method"],
        parameters,
        None if base is None else _from(path, kind(base, str, "base")),
        options,
        adapters,
        content.get("container"),
    )
    return description, name, files


def _from(record: Path, path: Any) -> str:
    """A path in a record, from the current folder."""
    return os.path.normpath(record.parent / str(path))


def _selection(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"selection": record["selection"]} if "selection" in record else {}


def _changed(record: Mapping[str, Any], path: Path) -> list[str]:
    """Which inputs are no longer what they were, in words."""
    from mirepoix.checkpoints import open_weights
    from mirepoix.cli._carry_out import digests

    changed = []
    for name, expected in record["inputs"].items():
        try:
            opened = open_weights(_from(path, name), framework="numpy", container=record.get("container"))
        except InputError:
            changed.append(f"{name}: is no longer there, or cannot be opened")
            continue
        if digests(opened.files) != expected:
            changed.append(f"{name}: its content changed")
    return changed


def _differences(again: Sequence[Path], recorded: Mapping[str, Any], folder: Path, verify: bool) -> list[str]:
    """What differs between the files made again and those recorded, or those that lie there."""
    from mirepoix.cli._carry_out import digests

    found = []
    names = sorted(recorded)
    if len(names) != len(again):
        return [f"{len(again)} files were made, and {len(names)} are in the record"]
    for file, name in zip(sorted(again), names, strict=True):
        there = folder / file.name
        if verify and there.is_file():
            if not _equal(file, there):
                found.append(f"{file.name}: other bytes")
        elif digests([file])[file.name] != recorded[name]:
            found.append(f"{file.name}: other bytes than recorded")
    return found


def _equal(a: Path, b: Path) -> bool:
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as one, b.open("rb") as other:
        while piece := one.read(PIECE):
            if piece != other.read(PIECE):
                return False
    return True
