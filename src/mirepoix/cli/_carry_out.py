"""Carrying out a soup from a description of plain values, as `soup` and `rebuild` both do."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirepoix import __version__
from mirepoix.cli._methods import METHODS, rule_of
from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.merging import MergeReport

__all__ = [
    "Description",
    "carry_out",
    "changed_inputs",
    "copy_companions",
    "described",
    "new_folder",
    "record_file",
    "record_of",
]

COMPANIONS = (".json", ".txt", ".model", ".jinja")
"""Suffixes of what lies beside weights in a model folder and is copied with them: configuration, tokenizer."""


ADAPTERS_EQUATION = "theta_0 + sum_i w_i s_i B_i A_i"


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
    """

    members: Sequence[str]
    method: str = "average"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    adapters: Mapping[str, Any] | None = None


def carry_out(
    description: Description, out: Path, progress: Callable[[int, int], None] | None = None
) -> MergeReport:
    """Merge into ``out``: a file, or a model folder when it has no suffix, whole or not at all."""
    if description.adapters is not None:
        from mirepoix.cli._adapters import carry_out_adapters

        return carry_out_adapters(description, out)
    from mirepoix.merging import merge_files

    rule = rule_of(description.method, _opened(description.parameters))

    def write(file: Path) -> MergeReport:
        return merge_files(
            description.members, file, rule, base=description.base, progress=progress, **description.options
        )

    if out.suffix == ".safetensors":
        return write(out)
    if out.suffix and not out.is_dir():
        raise InputError(
            f"{out}: expected a name ending in .safetensors, or a folder (no suffix), got suffix {out.suffix!r}."
        )
    with new_folder(out) as folder:
        copy_companions(Path(description.members[0]), folder, description.options.get("dtype"))
        report = write(folder / "model.safetensors")
    return replace(report, files=tuple(out / file.name for file in report.files))


def record_of(description: Description, report: MergeReport, out: Path, command: str) -> dict[str, Any]:
    """What the soup was made of, with paths relative to the record, so that a folder can be moved as one."""
    here = record_file(out).parent.resolve()
    inputs = [*description.members, *([description.base] if description.base else [])]
    return {
        "mirepoix": __version__,
        "verb": "soup",
        "equation": METHODS[description.method].equation
        if description.adapters is None
        else ADAPTERS_EQUATION,
        "members": [_relative(path, here) for path in description.members],
        "method": description.method,
        "parameters": _relative_parameters(description.parameters, here),
        "base": _relative(description.base, here) if description.base else None,
        "options": dict(description.options),
        **({"adapters": dict(description.adapters)} if description.adapters is not None else {}),
        "inputs": {
            _relative(path, here): _digests(path, report.inputs.get(str(Path(path))))
            for path in dict.fromkeys(inputs)
        },
        "result": {"name": out.name, "files": _digests_of(report.files)},
        "notes": list(report.notes),
        "command": command,
        "seconds": round(report.seconds, 3),
    }


def described(record: Mapping[str, Any], path: Path) -> Description:
    """The description in a record, with its paths made absolute.

    Raises:
        InputError: If the record is not that of a soup.
    """
    here = path.resolve().parent
    try:
        if record["verb"] != "soup" or record["method"] not in METHODS:
            raise KeyError("verb")
        parameters = dict(record["parameters"])
        for name in FILES & parameters.keys():
            parameters[name] = [str(here / file) for file in parameters[name]]
        return Description(
            [str(here / member) for member in record["members"]],
            record["method"],
            parameters,
            str(here / record["base"]) if record["base"] else None,
            dict(record["options"]),
            record.get("adapters"),
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected the record of a soup, as `mirepoix soup` writes beside its result, got another file "
            f"(no {error})."
        ) from error


def record_file(out: Path) -> Path:
    """Where the record lies: beside the file, or beside the weights in a folder."""
    if out.suffix == ".safetensors":
        return out.with_suffix(".json")
    return out / ("adapter_model.json" if (out / "adapter_config.json").is_file() else "model.json")


def changed_inputs(record: Mapping[str, Any], path: Path) -> list[str]:
    """Which inputs are no longer what they were, in words."""
    here = path.resolve().parent
    changed = []
    for name, digests in record["inputs"].items():
        try:
            if _digests(str(here / name)) != digests:
                changed.append(f"{name}: its content changed")
        except InputError:
            changed.append(f"{name}: is no longer there")
    return changed


FILES = {"fishers", "grams"}
"""Parameters that are paths of files, one per member."""


def _opened(parameters: Mapping[str, Any]) -> dict[str, Any]:
    from mirepoix.checkpoints import open_weights

    return {
        name: [open_weights(path, framework="numpy") for path in value] if name in FILES else value
        for name, value in parameters.items()
    }


def _relative_parameters(parameters: Mapping[str, Any], here: Path) -> dict[str, Any]:
    return {
        name: [_relative(path, here) for path in value] if name in FILES else value
        for name, value in parameters.items()
    }


def _relative(path: str, here: Path) -> str:
    return os.path.relpath(os.path.realpath(path), here)


def _digests(path: str, files: Sequence[Path] | None = None) -> dict[str, Any]:
    from mirepoix.checkpoints import open_weights

    return _digests_of(open_weights(path, framework="numpy").files if files is None else files)


def _digests_of(files: Sequence[Path]) -> dict[str, Any]:
    from mirepoix.checkpoints import quick_digest

    return {
        file.name: {"bytes": file.stat().st_size, "quick_digest": quick_digest(file)}
        for file in sorted(files)
    }


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that takes its name when the block ends well, and is gone when it does not."""
    if not out.parent.is_dir():
        raise InputError(
            f"{out}: cannot be written, the folder {out.parent} does not exist. Create it first."
        )
    if out.exists() and not record_file(out).is_file():
        raise InputError(
            f"{out}: exists and is not the result of a soup, so it will not be replaced. Name another."
        )
    temporary = out.parent / f".{out.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        old = None
        if out.exists():
            old = temporary.with_suffix(".old")
            out.rename(old)
        temporary.rename(out)
        if old is not None:
            shutil.rmtree(old)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)


def copy_companions(member: Path, folder: Path, dtype: str | None) -> None:
    """Configuration and tokenizer of a model folder, with the dtype of the result."""
    if not member.is_dir():
        return
    from mirepoix.checkpoints import read_json, write_json

    for file in sorted(member.iterdir()):
        if file.suffix not in COMPANIONS or file.name.endswith(".index.json") or file.name == "model.json":
            continue
        if file.name == "config.json" and dtype is not None:
            config = read_json(file)
            config.update({key: dtype for key in ("dtype", "torch_dtype") if key in config})
            write_json(folder / file.name, config)
        elif file.is_file():
            shutil.copyfile(file, folder / file.name)
