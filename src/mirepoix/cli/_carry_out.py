"""Carrying out a soup from a description of plain values, as `soup` and `rebuild` both do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirepoix import __version__
from mirepoix.cli._methods import METHODS, rule_of
from mirepoix.cli._staging import is_file_name
from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.checkpoints import Checkpoint
    from mirepoix.merging import MergeReport

__all__ = [
    "Description",
    "Opened",
    "copy_companions",
    "digests",
    "make",
    "open_inputs",
    "record_of",
    "relative",
]

ADAPTERS_EQUATION = "theta_0 + sum_i w_i s_i B_i A_i"

COMPANIONS = (".json", ".txt", ".model", ".jinja")
"""Suffixes of what lies beside weights in a model folder and is copied with them: configuration, tokenizer."""

FILES = ("fishers", "grams")
"""Parameters that are paths of files, one per member."""


@dataclass(frozen=True)
class Description:
    """All that decides the bits of a soup.

    Attributes:
        members: Paths, in their order.
        method: A name of `METHODS`.
        parameters: Of the rule.
        base: Path of the common start, or None.
        options: Of `mirepoix.merging.merge_files`.
        adapters: For adapter folders, ``mode`` and ``rank`` of their merging.
        container: Where the weights are in torch files that hold several.
    """

    members: Sequence[str]
    method: str = "average"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    adapters: Mapping[str, Any] | None = None
    container: str | None = None

    @property
    def paths(self) -> list[str]:
        """All inputs, each once."""
        more = [path for name in FILES for path in self.parameters.get(name, ())]
        return list(dict.fromkeys([*self.members, *([self.base] if self.base else []), *more]))


@dataclass(frozen=True)
class Opened:
    """The inputs of a description, opened once.

    Attributes:
        weights: The opened checkpoint of each path.
        digests: What the files of each path are, before anything is read.
    """

    weights: Mapping[str, Checkpoint]
    digests: Mapping[str, Any]

    @property
    def files(self) -> list[Path]:
        """All files that are read."""
        return [file for checkpoint in self.weights.values() for file in checkpoint.files]


def open_inputs(description: Description) -> Opened:
    """Open everything, and take its digests."""
    from mirepoix.checkpoints import open_weights

    weights = {
        path: open_weights(path, framework="numpy", container=description.container)
        for path in description.paths
    }
    return Opened(weights, {path: digests(opened.files) for path, opened in weights.items()})


def make(
    description: Description,
    opened: Opened,
    folder: Path,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merge into a folder: the files that ``out`` is to have there."""
    if description.adapters is not None:
        from mirepoix.cli._adapters import make_of_adapters

        return make_of_adapters(description, folder, out)
    from mirepoix.merging import merge_files

    parameters = {
        name: [opened.weights[path] for path in value] if name in FILES else value
        for name, value in description.parameters.items()
    }
    rule = rule_of(description.method, parameters)
    if description.base is not None and not rule.needs_base:
        raise InputError(
            f"--base: {description.method} does not use one. Leave it out, or choose another method."
        )
    name = out.name if is_file_name(out) else "model.safetensors"
    report = merge_files(
        [opened.weights[path] for path in description.members],
        folder / name,
        rule,
        base=opened.weights[description.base] if description.base else None,
        progress=progress,
        **description.options,
    )
    if is_file_name(out):
        return report
    notes = copy_companions(description.members, folder, rows=bool(description.options.get("rows")))
    return replace(report, notes=(*report.notes, *notes))


def record_of(description: Description, opened: Opened, report: MergeReport, out: Path) -> dict[str, Any]:
    """What the soup was made of, with paths relative to the record, so that a folder can be moved as one."""
    here = out.parent if is_file_name(out) else out
    adapters = description.adapters
    return {
        "mirepoix": __version__,
        "verb": "soup",
        "equation": METHODS[description.method].equation if adapters is None else ADAPTERS_EQUATION,
        "members": [relative(path, here) for path in description.members],
        "method": description.method,
        "parameters": {
            name: [relative(path, here) for path in value] if name in FILES else value
            for name, value in description.parameters.items()
        },
        "base": relative(description.base, here) if description.base else None,
        "options": dict(description.options),
        "adapters": None if adapters is None else dict(adapters),
        "container": description.container,
        "inputs": {relative(path, here): found for path, found in opened.digests.items()},
        "result": {"name": out.name, "files": digests(report.files)},
        "notes": list(report.notes),
        "seconds": round(report.seconds, 3),
    }


def relative(path: str, here: Path) -> str:
    """The path from a folder, links as they are: what a link points to may have another kind of name."""
    return os.path.relpath(os.path.abspath(path), os.path.abspath(here))


def digests(files: Sequence[Path]) -> dict[str, Any]:
    """Size and quick digest of each file, by its name."""
    from mirepoix.checkpoints import quick_digest

    return {
        file.name: {"bytes": file.stat().st_size, "quick_digest": quick_digest(file)}
        for file in sorted(files)
    }


def copy_companions(members: Sequence[str], folder: Path, *, rows: bool = False) -> list[str]:
    """Configuration and tokenizer of the first model folder, or of that with most words; what to know of it."""
    from mirepoix.checkpoints import open_weights, read_json, write_json

    folders = [Path(member) for member in members if Path(member).is_dir()]
    if not folders:
        return ["no configuration or tokenizer was copied: the members are files"]
    configs = [read_json(f / "config.json") if (f / "config.json").is_file() else {} for f in folders]
    source = folders[0]
    if rows:  # the vocabulary that has all the words that were kept
        words = [config.get("vocab_size", 0) if isinstance(config, dict) else 0 for config in configs]
        source = folders[words.index(max(words))]
    for file in sorted(source.iterdir()):
        if file.suffix not in COMPANIONS or file.name.endswith(".index.json") or file.name == "model.json":
            continue
        if file.name == "config.json" and file.is_file():
            config = read_json(file)
            dtypes = list(open_weights(_door(folder), framework="numpy").dtypes.values())
            floats = [dtype for dtype in dtypes if "float" in dtype]
            if isinstance(config, dict) and floats:
                config.update(
                    {key: max(floats, key=floats.count) for key in ("dtype", "torch_dtype") if key in config}
                )
            write_json(folder / file.name, config)
        elif file.is_file():
            shutil.copyfile(file, folder / file.name)
    return [f"configuration and tokenizer are those of {source}"] if len(folders) > 1 else []


def _door(folder: Path) -> Path:
    index = folder / "model.safetensors.index.json"
    return index if index.is_file() else folder / "model.safetensors"
