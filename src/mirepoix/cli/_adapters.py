"""A soup of LoRA adapters: one adapter again, or the base with all of them in it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirepoix.cli._carry_out import Description, copy_companions, new_folder
from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.merging import LoraReport, MergeReport

__all__ = ["carry_out_adapters"]

MODES = ("cat", "svd", "factor", "dense")


def carry_out_adapters(description: Description, out: Path) -> MergeReport:
    """Merge adapter folders as `Description.adapters` says; whole or not at all."""
    from mirepoix.merging import MergeReport

    started = time.perf_counter()
    assert description.adapters is not None
    mode = description.adapters["mode"]
    if mode not in MODES:
        raise InputError(f"--lora: expected one of {', '.join(MODES)}, got {mode!r}.")
    coefficients = _coefficients(description)
    report = (
        _dense(description, out, coefficients) if mode == "dense" else _merged(description, out, coefficients)
    )
    notes = [f"left out, value heads: {', '.join(report.dropped)}"] if report.dropped else []
    if report.lost_energy > 0:
        notes.append(
            f"{mode}: {100 * report.lost_energy:.3g} % of the squared length of the exact change is lost"
        )
    files = _written(report.path)
    return MergeReport(
        files=files,
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
    if values is None or not normalize:
        return None if values is None else list(values)
    if not all(isinstance(value, int | float) for value in values):
        raise InputError("--coefficients-for: needs --no-normalize where adapters are merged.")
    total = math.fsum(values)
    if abs(total) < 1e-12:
        raise InputError(
            "--coefficients: expected a sum other than 0. Pass --no-normalize to use them as they are."
        )
    return [value / total for value in values]


def _merged(description: Description, out: Path, coefficients: Sequence[Any] | None) -> LoraReport:
    from mirepoix.merging import merge_adapters

    assert description.adapters is not None
    if out.suffix:
        raise InputError(
            f"{out}: expected a folder for the merged adapter (no suffix); --lora dense writes weights."
        )
    options = _only(description.options, ("dtype",), description.adapters["mode"])
    return merge_adapters(
        description.members,
        out,
        coefficients,
        mode=description.adapters["mode"],
        rank=description.adapters.get("rank"),
        overwrite=True,  # what may not be replaced was refused before
        **options,
    )


def _dense(description: Description, out: Path, coefficients: Sequence[Any] | None) -> LoraReport:
    from mirepoix.merging import merge_into_base

    base = description.base
    if base is None:
        raise InputError("--lora dense: needs the weights of the base model. Pass --base.")
    options = _only(description.options, ("rename", "max_shard"), "dense")

    def write(file: Path) -> LoraReport:
        return merge_into_base(base, description.members, file, coefficients, overwrite=True, **options)

    if out.suffix:
        return write(out)
    with new_folder(out) as folder:
        copy_companions(Path(base), folder, None)
        report = write(folder / "model.safetensors")
    return replace(report, path=out / "model.safetensors")


def _only(options: Mapping[str, Any], allowed: Sequence[str], mode: str) -> dict[str, Any]:
    for name in options:
        if name not in allowed:
            raise InputError(f"--{name.replace('_', '-')}: --lora {mode} does not take it.")
    return dict(options)


def _written(path: Path) -> tuple[Path, ...]:
    """The files of a result: an adapter's two, or those of weights."""
    if path.is_dir():
        return (path / "adapter_config.json", path / "adapter_model.safetensors")
    if path.is_file():
        return (path,)
    return tuple(sorted(path.parent.glob(f"{path.stem}-*-of-*{path.suffix}")))
