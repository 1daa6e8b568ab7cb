"""Prompts from a file: a text per line, or objects whose other keys are what rewards ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mirepoix.types import InputError

__all__ = ["read_prompts"]


def read_prompts(path: Path, option: str = "--prompts") -> tuple[list[str], dict[str, list[Any]]]:
    """The prompts of a file, and its columns: what else belongs to each.

    Args:
        path: A ``.txt`` file with a prompt per line, empty lines left out; a ``.jsonl`` file with an object per line;
            or a ``.json`` file with a list of objects. Objects have the key ``prompt``, and all the same others.
        option: What messages call it.

    Raises:
        InputError: If it is no such file, or has no prompt, with the line.
    """
    if not path.is_file():
        raise InputError(f"{option} {path}: expected a file, got nothing there. Check the path.")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{option} {path}: expected text in UTF-8: {error}.") from error
    if path.suffix == ".txt":
        lines = [line for line in content.split("\n") if line.strip()]
        if not lines:
            raise InputError(f"{option} {path}: expected a prompt per line, got none.")
        return [line.removesuffix("\r") for line in lines], {}
    if path.suffix not in (".json", ".jsonl"):
        raise InputError(f"{option} {path}: expected a .txt, .json or .jsonl file, got {path.suffix!r}.")
    rows = (
        _lines(f"{option} {path}", content)
        if path.suffix == ".jsonl"
        else _entries(f"{option} {path}", content)
    )
    if not rows:
        raise InputError(f"{option} {path}: expected objects with the key 'prompt', got none.")
    first_place, first = rows[0]
    for place, row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"]:
            raise InputError(
                f"{option} {path}: expected an object whose 'prompt' is a text in {place}, got {str(row)[:60]!r}. "
                "Apply the chat template before."
            )
        if set(row) != set(first):
            odd = sorted(set(row) ^ set(first))
            raise InputError(
                f"{option} {path}: expected the same keys in all objects, but {odd[0]!r} is not both in {first_place} "
                f"and in {place}."
            )
    columns = {key: [row[key] for _, row in rows] for key in first if key != "prompt"}
    return [row["prompt"] for _, row in rows], columns


def _lines(where: str, content: str) -> list[tuple[str, Any]]:
    numbered = enumerate(content.split("\n"), start=1)
    return [
        (f"line {number}", _read(where, f"line {number}", line)) for number, line in numbered if line.strip()
    ]


def _entries(where: str, content: str) -> list[tuple[str, Any]]:
    found = _read(where, "the file", content)
    if not isinstance(found, list):
        raise InputError(f"{where}: expected a list of objects, got {type(found).__name__}.")
    return [(f"entry {number}", row) for number, row in enumerate(found, start=1)]


def _read(where: str, place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: {place} is not JSON: {error}.") from error
