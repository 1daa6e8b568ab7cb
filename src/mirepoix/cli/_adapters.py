"""A soup of LoRA adapters: one adapter again, or the base with all of them in it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirepoix.cli._carry_out import Description, copy_companions
from mirepoix.cli._staging import is_file_name
from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.merging import LoraReport, MergeReport

__all__ = ["MODES", "make_of_adapters"]

MODES = ("cat", "svd", "factor", "dense")


def make_of_adapters(description: Description, folder: Path, out: Path) -> MergeReport:
    """Merge adapter folders as `Description.adapters` says, into a folder that is to become ``out``."""
    from mirepoix.merging import MergeReport

    started = time.perf_counter()
    assert description.adapters is not None
    mode = description.adapters["mode"]
    if mode not in MODES:
        raise InputError(f"--lora: expected one of {', '.join(MODES)}, got {mode!r}.")
    coefficients = _coefficients(description)
    notes: list[str] = []
    if mode == "dense":
        report, more = _dense(description, folder, out, coefficients)
        notes += more
    else:
        report = _merged(description, folder, out, coefficients)
    if report.dropped:
        notes.append(f"left out, value heads: {', '.join(report.dropped)}")
    if report.lost_energy > 0:
        notes.append(
            f"{mode}: {100 * report.lost_energy:.3g} % of the squared length of the exact change is lost"
        )
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.name.endswith((".safetensors", "adapter_config.json"))
    ]
    return MergeReport(
        files=tuple(files),
        tensors=len(report.layers),
        integers=0,
        aliases={},
        bytes_read=0,
        bytes_written=sum(file.stat().st_size for file in files),
        seconds=time.perf_counter() - started,
        notes=tuple(notes),
    )


def _coefficients(description: Description) -> list[Any] | None:
    """One per adapter; they are divided by their sum like those of any average."""
    given = dict(description.parameters)
    values, normalize = given.pop("coefficients", None), given.pop("normalize", True)
    if description.method != "average" or given:
        raise InputError(
            f"--method {' '.join([description.method, *given])}: adapters are averaged, with --coefficients and "
            "--no-normalize. For other rules merge each into its base first (--lora dense --base BASE)."
        )
    if values is None:
        if not normalize:
            raise InputError("--no-normalize: adapters then need --coefficients.")
        return None
    if not normalize:
        return list(values)
    if not all(isinstance(value, int | float) for value in values):
        raise InputError("--coefficients-for: needs --no-normalize where adapters are merged.")
    total = math.fsum(values)
    if abs(total) < 1e-12:
        raise InputError(
            "--coefficients: expected a sum other than 0. Pass --no-normalize to use them as they are."
        )
    return [value / total for value in values]


def _merged(
    description: Description, folder: Path, out: Path, coefficients: Sequence[Any] | None
) -> LoraReport:
    from mirepoix.merging import merge_adapters

    assert description.adapters is not None
    if is_file_name(out):
        raise InputError(f"{out}: expected a folder for the merged adapter; --lora dense writes weights.")
    if description.base is not None:
        raise InputError("--base: only --lora dense uses one. Leave it out.")
    report = merge_adapters(
        description.members,
        folder / "adapter",
        coefficients,
        mode=description.adapters["mode"],
        rank=description.adapters.get("rank"),
        **_only(description.options, ("dtype",), description.adapters["mode"]),
    )
    for file in (folder / "adapter").iterdir():
        file.rename(folder / file.name)
    (folder / "adapter").rmdir()
    return report


def _dense(
    description: Description, folder: Path, out: Path, coefficients: Sequence[Any] | None
) -> tuple[LoraReport, list[str]]:
    from mirepoix.merging import merge_into_base

    if description.base is None:
        raise InputError("--lora dense: needs the weights of the base model. Pass --base.")
    options = _only(description.options, ("rename", "max_shard"), "dense")
    name = out.name if is_file_name(out) else "model.safetensors"
    report = merge_into_base(description.base, description.members, folder / name, coefficients, **options)
    return report, [] if is_file_name(out) else copy_companions([description.base], folder)


def _only(options: Mapping[str, Any], allowed: Sequence[str], mode: str) -> dict[str, Any]:
    for name in options:
        if name not in allowed:
            raise InputError(f"--{name.replace('_', '-')}: --lora {mode} does not take it.")
    return dict(options)
