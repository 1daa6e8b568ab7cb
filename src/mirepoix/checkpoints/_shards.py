"""A model in several files: an index says which file has which tensor, and both sides must agree."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from mirepoix.checkpoints._entry import Entry, Layout
from mirepoix.checkpoints._layout import read_safetensors
from mirepoix.checkpoints._reader import State, existing_file, opened, read_bytes
from mirepoix.checkpoints._torch_zip import read_torch_zip
from mirepoix.types import UnsafeCheckpoint

__all__ = ["INDEX", "read_json_object", "read_shards"]

INDEX = ".index.json"
LARGEST_JSON = 100_000_000  # bytes


def read_shards(path: Path, *, allow_expand: bool) -> Layout:
    """The tensors of all shards an index names; of each file only what names its tensors is read now."""
    suffix = Path(path.name.removesuffix(INDEX)).suffix
    listed = read_json_object(path).get("weight_map")
    if (
        not isinstance(listed, dict)
        or not listed
        or not all(isinstance(file, str) for file in listed.values())
    ):
        raise UnsafeCheckpoint(
            "index", f"{path}: expected weight_map with names of files, got none. Fetch it again."
        )
    files = [_shard(path, name, suffix) for name in sorted(set(listed.values()))]
    states: list[State] = []
    found: dict[str, Entry] = {}
    aliases: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for number, file in enumerate(files):
        if suffix == ".safetensors":
            layout = read_safetensors(file)
        else:
            layout = read_torch_zip(file, container=None, allow_expand=allow_expand, strip=False)
        for name, entry in layout.entries.items():
            if listed.get(name) != file.name:
                there = f"it in {listed[name]!r}" if name in listed else "it nowhere"
                raise UnsafeCheckpoint(
                    "index-tensors",
                    f"{path}: {name!r} is in {file.name!r}, the index has {there}. Fetch both.",
                )
            found[name] = entry._replace(file=number)
        states += layout.states
        aliases |= layout.aliases
        metadata |= layout.metadata
    missing = [name for name in listed if name not in found]
    if missing:
        raise UnsafeCheckpoint(
            "index-tensors",
            f"{path}: {missing[0]!r} is not in {listed[missing[0]]!r} where the index has it, nor are "
            f"{len(missing) - 1} others where they should be. Fetch the files again.",
        )
    entries = {name: found[name] for name in listed}
    return Layout(tuple(files), tuple(states), entries, metadata, aliases)


def _shard(index: Path, name: str, suffix: str) -> Path:
    """The file of a shard, if its name is one and it lies beside the index."""
    plain = name and not set(name) & set("/\\:\0") and name not in (".", "..")
    if not plain or Path(name).suffix != suffix:
        raise UnsafeCheckpoint(
            "index-path",
            f"{index}: expected names of {suffix} files beside the index, got {name[:200]!r}. It was not opened.",
        )
    file = existing_file(index.parent / name, f"a shard that {index.name} names")
    folder, real = index.parent.resolve(), file.resolve().parent
    # The cache of the Hugging Face hub keeps the bytes in blobs/ and links to them from snapshots/<revision>/.
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    if stat.S_ISLNK(file.lstat().st_mode) and real not in (folder, blobs):
        raise UnsafeCheckpoint(
            "index-link",
            f"{index}: the shard {name!r} is a link out of the folder. It was not opened. Copy it there.",
        )
    return file


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds named fields, from a stranger."""
    with opened(path, "a JSON file") as (descriptor, state):
        if state[2] > LARGEST_JSON:
            raise UnsafeCheckpoint("json", f"{path}: expected at most {LARGEST_JSON} bytes, got {state[2]}.")
        text = read_bytes(descriptor, 0, state[2])
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UnsafeCheckpoint(
            "json", f"{path}: expected JSON, got text that is not: {str(error)[:200]}. Mend or replace it."
        ) from error
    if not isinstance(value, dict):
        raise UnsafeCheckpoint(
            "json", f"{path}: expected named fields, got a {type(value).__name__}. Replace it."
        )
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is named twice")
    return fields
