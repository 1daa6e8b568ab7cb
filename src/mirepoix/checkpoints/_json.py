"""Records as text: the same value always gives the same bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mirepoix.checkpoints._atomic import write_atomically
from mirepoix.types import InputError

__all__ = ["read_json", "to_json", "write_json"]


def to_json(value: Any, path: Path) -> str:
    """The text of ``value`` in the file ``path``: keys in the order given, one space per level."""
    try:
        return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: expected values JSON can hold (text, finite numbers, booleans, None, lists and "
            f"mappings with text keys), got one it cannot: {error}. Convert it first."
        ) from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as JSON, atomically and deterministically (keys stay in the order given).

    Raises:
        InputError: If the value holds something JSON cannot express; NaN and infinity are such things.
    """
    write_atomically(path, to_json(value, Path(path)))


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file.

    Raises:
        InputError: If the file is missing, is a folder or is not JSON.
    """
    path = Path(path)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        return json.loads(path.read_bytes(), parse_constant=refuse)
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected a JSON file, got nothing there. Check the path.") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: expected a JSON file, got a folder. Name the file inside it.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected JSON, got text that is not: {error}. Mend or replace it."
        ) from error
