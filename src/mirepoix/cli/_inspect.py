"""``mirepoix inspect``: what is in a file of weights, from its header."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.checkpoints import Checkpoint

__all__ = ["inspect"]

OPTIMIZER = re.compile(r"(^|[._])(exp_avg|exp_avg_sq|momentum_buffer|optimizer|max_exp_avg_sq)([._]|$)")
HUGE_HEAD = 20_000
PLAIN_NAME = re.compile(r"[\w.\-:/]+", re.ASCII)
SETTINGS = (
    "architectures", "model_type", "architecture", "num_classes", "num_labels", "hidden_size", "num_hidden_layers",
    "num_attention_heads", "vocab_size", "tie_word_embeddings", "torch_dtype", "dtype", "_name_or_path",
    "peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "use_dora", "target_modules",
    "rank_pattern", "alpha_pattern",
)  # fmt: skip
RECORDED = (
    "equation",
    "method",
    "verb",
    "status",
    "target",
    "data_seed",
    "fingerprint",
    "mirepoix",
    "seconds",
)


def inspect(
    checkpoint: Annotated[
        Path, typer.Argument(help="A file of weights, or the folder of a model or an adapter.")
    ],
    names: Annotated[
        str | None,
        typer.Option("--filter", metavar="REGEX", help="List only tensors whose name matches somewhere."),
    ] = None,
    finite: Annotated[
        bool, typer.Option("--finite", help="Read all values, and look for NaN and infinity.")
    ] = False,
    container: Annotated[
        str | None, typer.Option(help="Where the weights are in a torch file: state_dict, model, ...")
    ] = None,
    allow_torch_load: Annotated[
        bool, typer.Option("--allow-torch-load", help="Let torch read old files (weights_only).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show tensors, dtypes, settings and what is unusual, without reading the weights.

    Exit code 0; 1 if --finite finds NaN or infinity; 2 for bad input.
    """
    try:
        pattern = re.compile(names or "")
    except re.error as error:
        raise InputError(f"--filter {names}: expected a regular expression, got one with {error}.") from error
    from mirepoix.checkpoints import open_weights
    from mirepoix.cli._bytes import bytes_bar

    with open_weights(
        checkpoint, framework="numpy", container=container, allow_torch_load=allow_torch_load
    ) as theta:
        tensors = _tensors(theta)
        content = _content(theta, tensors)
        if content["format"] == "torch":
            content["container"] = container or _container(theta, allow_torch_load)
        bad = {}
        if finite:
            with bytes_bar("reading values") as progress:
                bad = content["not_finite"] = _not_finite(theta, tensors, progress)
    if names is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if pattern.search(name)}
        if not tensors:
            raise InputError(
                f"--filter {names}: matches none of the {content['tensors']} names, such as {next(iter(theta))!r}."
            )
    if as_json:
        content["tensor"] = tensors
        typer.echo(json.dumps(content, ensure_ascii=False))
    else:
        _print(content, tensors)
    if bad:
        raise typer.Exit(1)


def _content(theta: Checkpoint, tensors: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Everything but the list of tensors."""
    from mirepoix.merging._check_models import is_statistic
    from mirepoix.merging._check_structure import find_head
    from mirepoix.merging._inputs import is_float

    shapes, codes = theta.shapes, theta.codes
    own = [name for name in theta if name not in theta.aliases]
    sizes = {name: math.prod(shapes[name]) for name in own}
    floats = [name for name in own if is_float(codes[name])]
    weights = [name for name in floats if not is_statistic(name)]
    is_torch = theta.files[0].suffix != ".safetensors"
    kind = "torch" if is_torch else "safetensors"
    content: dict[str, Any] = {
        "path": str(theta.path),
        "format": kind + (f", {len(theta.files)} shards" if len(theta.files) > 1 else ""),
        "container": None,
        "files": {str(file): file.stat().st_size for file in theta.files},
        "tensors": len(own),
        "parameters": sum(sizes[name] for name in weights),
        "buffers": sum(sizes.values()) - sum(sizes[name] for name in weights),
        "bytes": theta.nbytes,
        "dtypes": {
            dtype: {
                "tensors": count,
                "bytes": sum(tensors[name]["bytes"] for name in own if tensors[name]["dtype"] == dtype),
            }
            for dtype, count in Counter(tensors[name]["dtype"] for name in own).most_common()
        },
        "batch_norm": sum(name.endswith("running_var") for name in floats),
        "head": find_head({name: shapes[name] for name in weights}),
        "aliases": theta.aliases,
        "metadata": theta.metadata,
        "config": {key: theta.config[key] for key in SETTINGS if key in theta.config}
        if theta.config
        else None,
        "record": _record(theta),
    }
    content["suspicious"] = _suspicious(theta, content, own)
    return content


def _tensors(theta: Checkpoint) -> dict[str, dict[str, Any]]:
    from mirepoix.checkpoints._tensors import DTYPES

    shapes, codes = theta.shapes, theta.codes
    return {
        name: {
            "dtype": DTYPES[codes[name]][0],
            "shape": list(shapes[name]),
            "bytes": math.prod(shapes[name]) * DTYPES[codes[name]][1],
        }
        | ({"same_as": theta.aliases[name]} if name in theta.aliases else {})
        for name in theta
    }


def _container(theta: Checkpoint, allow_torch_load: bool) -> str:
    """Which container of a torch file was taken, where only one was there to take."""
    from mirepoix.checkpoints import open_weights
    from mirepoix.checkpoints._containers import CONTAINERS

    for name in CONTAINERS:
        with suppress(InputError):
            open_weights(theta.files[0], framework="numpy", container=name, allow_torch_load=allow_torch_load)
            return name
    return "."


def _record(theta: Checkpoint) -> dict[str, Any] | None:
    try:
        record = theta.record
    except InputError:
        return None  # a JSON beside a file of weights need not be ours
    if record is None:
        return None
    summary = {key: record[key] for key in RECORDED if key in record}
    made_of = record.get("made_of")
    if isinstance(made_of, dict):
        summary |= {
            new: made_of[old] for new, old in (("start", "theta"), ("task", "task")) if old in made_of
        }
    if isinstance(record.get("members"), list):
        summary["members"] = len(record["members"])
    return summary or None


def _suspicious(theta: Checkpoint, content: dict[str, Any], own: list[str]) -> list[str]:
    """What a person should look at before using the weights."""
    from mirepoix.merging._check_models import QUANTISED
    from mirepoix.merging._findings import size_text
    from mirepoix.merging._findings import tensors as some

    shapes, codes = theta.shapes, theta.codes
    kinds = {
        "empty": [name for name in own if 0 in shapes[name]],
        "named like the state of an optimizer": [name for name in own if OPTIMIZER.search(name)],
        "with unusual signs in the name": [name for name in own if not PLAIN_NAME.fullmatch(name)],
        "not in C order, so read whole and put in order": [
            name
            for name, entry in theta._entries.items()
            if entry.strides is not None and theta._loaded is None
        ],
        "float8 or complex, so without an average as stored": [
            name for name in own if codes[name].startswith(("F8", "C"))
        ],
        "quantised, so without an average as stored": [name for name in own if QUANTISED.search(name)],
    }
    found = [f"{some(names)}: {what}" for what, names in kinds.items() if names]
    prefix = own[0].partition(".")[0] + "."
    if prefix in ("module.", "_orig_mod.") and all(name.startswith(prefix) for name in theta):
        found.append(
            f"all names begin with {prefix!r}: --rename '^{prefix[:-1]}\\.=' of `mirepoix convert` drops it"
        )
    head = content["head"]
    if head and head["rows"] >= HUGE_HEAD and not head["name"].endswith(("lm_head", "output")):
        found.append(f"the head {head['name']} has {head['rows']:,} rows: a classifier of so many classes?")
    spare = sum(content["files"].values()) - content["bytes"]
    if spare > max(content["bytes"] // 4, 1_000_000):
        found.append(
            f"the files hold {size_text(spare)} besides these tensors, such as the state of an optimizer: `mirepoix "
            "convert` leaves it behind"
        )
    wide = [name for name in own if codes[name] == "F64"]
    if wide and "float32" in content["dtypes"]:
        found.append(f"{some(wide)}: float64 among float32")
    return found


def _not_finite(
    theta: Checkpoint, tensors: dict[str, dict[str, Any]], progress: Any
) -> dict[str, dict[str, int]]:
    from mirepoix.merging._check import scan
    from mirepoix.merging._inputs import Source

    done, bad = 0, {}
    source = Source(theta, str(theta.path))
    for name in theta:
        if name in theta.aliases:
            continue
        nan, infinite = scan(source, name)
        if nan or infinite:
            bad[name] = {"nan": nan, "infinite": infinite}
        done += tensors[name]["bytes"]
        if progress is not None:
            progress(done, theta.nbytes)
    return bad


def _print(content: dict[str, Any], tensors: dict[str, dict[str, Any]]) -> None:
    from mirepoix.merging._findings import size_text

    container = content["container"]
    where = f", container {container!r}" if container not in (None, ".") else ""
    lines = [
        ("path", content["path"]),
        ("format", content["format"] + where),
        ("size", f"{size_text(content['bytes'])} in {content['tensors']} tensors"),
        ("parameters", f"{content['parameters']:,}, and {content['buffers']:,} entries of buffers"),
    ]
    dtypes = content["dtypes"].items()
    lines.append(
        (
            "dtypes",
            ", ".join(
                f"{dtype} ({part['tensors']} tensors, {size_text(part['bytes'])})" for dtype, part in dtypes
            ),
        )
    )
    if content["head"]:
        lines.append(("head", f"{content['head']['name']}, {content['head']['rows']:,} rows"))
    if content["batch_norm"]:
        lines.append(("batch norm", f"{content['batch_norm']} layers"))
    for part in ("aliases", "metadata", "config", "record"):
        for key, value in (content[part] or {}).items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines.append(({"aliases": "tied"}.get(part, part), f"{key} = {_short(text)}"))
    for name, text in lines:
        typer.echo(f"{name:<12}{text}")
    typer.echo("")
    cells = [
        (
            _visible(name),
            tensor["dtype"],
            "x".join(map(str, tensor["shape"])) or "scalar",
            size_text(tensor["bytes"]) if "same_as" not in tensor else f"= {_visible(tensor['same_as'])}",
        )
        for name, tensor in tensors.items()
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    for row in cells:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)))
    if len(tensors) < content["tensors"]:
        typer.echo(f"({len(tensors)} of {content['tensors']} tensors)")
    for text in content["suspicious"]:
        typer.echo(f"note: {text}")
    for name, counts in content.get("not_finite", {}).items():
        typer.echo(
            f"not finite: {_visible(name)} holds {counts['nan']} NaN and {counts['infinite']} infinite values"
        )
    if content.get("not_finite") == {}:
        typer.echo("All values are finite.")


def _short(text: str, most: int = 100) -> str:
    text = _visible(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _visible(text: str) -> str:
    """The text of a stranger, without what would move a terminal's cursor."""
    return text if text.isprintable() else repr(text)[1:-1]
