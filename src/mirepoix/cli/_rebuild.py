"""``mirepoix rebuild``: the same soup again, from the record beside it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mirepoix.types import InputError

__all__ = ["rebuild"]

PIECE = 1 << 20


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

    With --verify the exit code is 1 when the bits differ, or an input is not what it was.
    """
    from mirepoix.checkpoints import read_json
    from mirepoix.cli._carry_out import carry_out, changed_inputs, described

    path = _record_path(record)
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected the record of a soup, got another file.")
    description = described(content, path)
    problems = changed_inputs(content, path)
    is_folder = not content["result"]["name"].endswith(".safetensors")
    if not verify:
        if problems:
            raise InputError(
                f"{path}: cannot be rebuilt, {'; '.join(problems)}. Bring the inputs back first."
            )
        target = out or (path.parent if is_folder else path.parent / content["result"]["name"])
        if target.exists():
            raise InputError(f"{target}: exists already. Name another with -o, or compare with --verify.")
        carry_out(description, target)
        typer.echo(json.dumps({"out": str(target)}) if as_json else f"{target}: rebuilt")
        return
    if not problems:
        with tempfile.TemporaryDirectory(prefix=".rebuild-", dir=path.parent) as folder:
            again = Path(folder) / (content["result"]["name"])
            problems = _differences(
                carry_out(description, again).files, path.parent, content["result"]["files"]
            )
    if as_json:
        typer.echo(json.dumps({"same": not problems, "problems": problems}, ensure_ascii=False))
    elif problems:
        typer.echo(f"{path}: not the same: {'; '.join(problems)}")
    else:
        typer.echo(f"{path}: the same bits again ({len(description.members)} members, {description.method})")
    if problems:
        raise typer.Exit(1)


def _record_path(path: Path) -> Path:
    from mirepoix.cli._carry_out import record_file

    if path.is_dir():
        path = record_file(path)
    elif path.suffix == ".safetensors":
        path = path.with_suffix(".json")
    if not path.is_file():
        raise InputError(f"{path}: expected the record of a soup, got nothing there. Check the path.")
    return path


def _differences(again: Sequence[Path], folder: Path, recorded: Mapping[str, Any]) -> list[str]:
    """What differs between the files made again and those beside the record, or what the record says of them."""
    from mirepoix.checkpoints import quick_digest

    found = []
    for file in again:
        there = folder / file.name
        if there.is_file():
            if not _equal(file, there):
                found.append(f"{file.name}: other bytes")
        elif recorded.get(file.name, {}).get("quick_digest") != quick_digest(file):
            found.append(f"{file.name}: is not there, and other bytes than recorded")
    if {file.name for file in again} != set(recorded):
        found.append(f"other files: {', '.join(sorted(recorded))} were recorded")
    return found


def _equal(a: Path, b: Path) -> bool:
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as one, b.open("rb") as other:
        while piece := one.read(PIECE):
            if piece != other.read(PIECE):
                return False
    return True
