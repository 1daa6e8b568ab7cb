"""``mirepoix soup``: many checkpoints into one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mirepoix.cli._bytes import bytes_bar
from mirepoix.cli._carry_out import Description, Opened, make, open_inputs, record_of
from mirepoix.cli._methods import METHODS, SELECTIONS
from mirepoix.cli._staging import check_out, is_file_name, publish, record_file, refuse_inputs, staging
from mirepoix.types import InputError

__all__ = ["soup"]

_RULE = "Options of the methods"
_WHAT = "What may differ between members"
_SCORE = "Choosing members by a score"
_OUT = "Output"


def soup(
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(help="Files of weights, model folders, or adapter folders.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .safetensors file, or a model folder.", show_default=False),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", "-m", help=f"One of {', '.join((*METHODS, *SELECTIONS))}.")
    ] = "average",
    coefficients: Annotated[
        str | None, typer.Option(help="One number per checkpoint: 0.5,0.3,0.2.", rich_help_panel=_RULE)
    ] = None,
    coefficients_for: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX=NUMBERS",
            help="Other coefficients for tensors whose name matches; may be repeated, the first match wins.",
            rich_help_panel=_RULE,
        ),
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="The common start, for methods that need it.", rich_help_panel=_RULE)
    ] = None,
    t: Annotated[
        float | None,
        typer.Option("--t", help="Place on the line (interpolate, slerp).", rich_help_panel=_RULE),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="task-arithmetic, ties, dare.", rich_help_panel=_RULE)
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of entries kept (ties, dare).", rich_help_panel=_RULE)
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(help="ties: global, tensor. model-stock: tensor, row.", rich_help_panel=_RULE),
    ] = None,
    rescale: Annotated[
        str | None, typer.Option(help="dare: expectation, l1 or none.", rich_help_panel=_RULE)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="dare.", rich_help_panel=_RULE)] = None,
    decay: Annotated[float | None, typer.Option(help="ema.", rich_help_panel=_RULE)] = None,
    fishers: Annotated[
        list[Path] | None, typer.Option(help="fisher: one file per checkpoint.", rich_help_panel=_RULE)
    ] = None,
    grams: Annotated[
        list[Path] | None, typer.Option(help="regmean: one file per checkpoint.", rich_help_panel=_RULE)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other parameter of the rule, such as on=delta.",
            rich_help_panel=_RULE,
        ),
    ] = None,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Allow coefficients outside [0, 1].", rich_help_panel=_RULE)
    ] = False,
    no_normalize: Annotated[
        bool,
        typer.Option("--no-normalize", help="Do not divide by the coefficients' sum.", rich_help_panel=_RULE),
    ] = False,
    recipe: Annotated[
        Path | None,
        typer.Option(help="A mergekit YAML file instead of checkpoints and method.", rich_help_panel=_RULE),
    ] = None,
    lora: Annotated[
        str | None,
        typer.Option(
            help="Adapters: cat (exact), svd, factor, or dense (with --base).", rich_help_panel=_RULE
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Rank of the result of --lora svd.", rich_help_panel=_RULE)
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(help="module:function(theta) -> float, higher is better.", rich_help_panel=_SCORE),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Network of the built-in score: timm:resnet18, ...", rich_help_panel=_SCORE),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="Images of the built-in score, one folder per class.", rich_help_panel=_SCORE),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Of the built-in score: accuracy or nll. [default: accuracy]", rich_help_panel=_SCORE
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="greedy: only keep what raises the score.", rich_help_panel=_SCORE),
    ] = False,
    rounds: Annotated[
        int | None, typer.Option(help="forward: additions at most.", rich_help_panel=_SCORE)
    ] = None,
    top: Annotated[int | None, typer.Option(help="top-k: how many.", rich_help_panel=_SCORE)] = None,
    delta: Annotated[
        float | None, typer.Option(help="threshold: how far below the best.", rich_help_panel=_SCORE)
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder to keep scores in, by content of the weights.", rich_help_panel=_SCORE),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16, float64.", rich_help_panel=_OUT)
    ] = None,
    integers: Annotated[
        str, typer.Option(help="Where integers differ: auto, first, max, error.", rich_help_panel=_WHAT)
    ] = "auto",
    check: Annotated[
        str, typer.Option(help="NaN and infinity: output, inputs, none.", rich_help_panel=_WHAT)
    ] = "output",
    container: Annotated[
        str | None,
        typer.Option(
            help="Where the weights are in torch files: state_dict, model, ...", rich_help_panel=_WHAT
        ),
    ] = None,
    names: Annotated[
        str, typer.Option(help="strict, intersection, union.", rich_help_panel=_WHAT)
    ] = "strict",
    rename: Annotated[
        list[str] | None, typer.Option(metavar="REGEX=NEW", help="Change names.", rich_help_panel=_WHAT)
    ] = None,
    rows: Annotated[
        bool, typer.Option("--rows", help="Allow vocabularies that grew.", rich_help_panel=_WHAT)
    ] = False,
    untie: Annotated[
        bool, typer.Option("--untie", help="Merge tied weights apart.", rich_help_panel=_WHAT)
    ] = False,
    upcast: Annotated[bool, typer.Option("--upcast", help="Allow float8.", rich_help_panel=_WHAT)] = False,
    max_shard: Annotated[
        str | None, typer.Option(help="Most bytes per file: 5GB.", rich_help_panel=_OUT)
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing output.", rich_help_panel=_OUT)
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record.", rich_help_panel=_OUT)] = False,
) -> None:
    """Merge checkpoints into one, streaming: time grows with the bytes, memory does not.

    The members stay as they are. The result is written whole or not at all, with a record beside it from which
    `mirepoix rebuild` makes the same bits again.
    """
    if out is None:
        raise InputError(
            "soup: expected a name for the result, got none. Pass -o soup.safetensors, or -o FOLDER."
        )
    given: dict[str, Any] = {
        "t": t,
        "scale": scale,
        "density": density,
        "scope": scope,
        "seed": seed,
        "decay": decay,
        "fishers": [str(path) for path in fishers] if fishers else None,
        "grams": [str(path) for path in grams] if grams else None,
        "extrapolate": True if extrapolate else None,
        "normalize": False if no_normalize else None,
    }
    parameters = {name: value for name, value in given.items() if value is not None}
    if rescale is not None:
        parameters["rescale"] = None if rescale == "none" else rescale
    parameters |= dict(_setting(text) for text in settings or [])
    options = _options(dtype, integers, check, names, rename, rows, untie, upcast, max_shard)
    members = [str(path) for path in checkpoints or []]
    start = str(base) if base else None
    notes: Sequence[str] = ()
    if recipe is not None:
        if members or parameters or method != "average" or coefficients or coefficients_for or start:
            raise InputError(
                f"{recipe}: a recipe names checkpoints, base, method and parameters; give it alone, with -o."
            )
        from mirepoix.merging import read_mergekit

        read = read_mergekit(recipe)
        members, method, parameters, notes = (
            list(read.members),
            read.method,
            dict(read.parameters),
            read.notes,
        )
        start = read.base
        if read.dtype is not None:
            options.setdefault("dtype", read.dtype)
    elif not members:
        raise InputError("soup: expected at least one checkpoint, got none.")
    if (numbers := _coefficients(coefficients, coefficients_for, len(members))) is not None:
        parameters["coefficients"] = numbers
    adapters = None
    if any((Path(member) / "adapter_config.json").is_file() for member in members):
        adapters = {"mode": lora or "cat", **({"rank": rank} if rank is not None else {})}
    elif lora is not None or rank is not None:
        raise InputError(
            "--lora: expected adapter folders (with adapter_config.json), got other checkpoints."
        )
    choosing = {
        "score": score,
        "model": model,
        "validation": validation,
        "metric": metric,
        "strict": strict or None,
        "rounds": rounds,
        "top": top,
        "delta": delta,
        "cache": cache,
    }
    check_out(out, force=force)
    description = Description(members, method, parameters, start, options, adapters, container)
    patterns = [*(options.get("rename") or {}), *(_pair(text, "", "")[0] for text in coefficients_for or [])]
    record = _merge(description, out, choosing, patterns, force)
    for note in (*notes, *record["notes"]):
        typer.echo(f"note: {note}", err=True)
    typer.echo(json.dumps(record, ensure_ascii=False) if as_json else _summary(record, out))


def _merge(
    description: Description, out: Path, choosing: dict[str, Any], patterns: Sequence[str], force: bool
) -> dict[str, Any]:
    """Choose, merge, and publish the result with its record."""
    from mirepoix.checkpoints import write_json

    opened = open_inputs(description)
    refuse_inputs([out, record_file(out)], opened.files)
    _check_patterns(patterns, opened)
    selection = None
    if description.method in SELECTIONS:
        from mirepoix.cli._choose import choose

        if description.adapters is not None or description.base is not None:
            raise InputError(
                f"--method {description.method}: takes whole models and no --base. Merge adapters into their base "
                "first (--lora dense)."
            )
        selection = choose(
            description.method, description.members, description.parameters, choosing, description.container
        )
        description = replace(
            description,
            method="average",
            members=selection.pop("members"),
            parameters=selection.pop("parameters"),
        )
    else:
        wrong = next((name for name, value in choosing.items() if value is not None), None)
        if wrong is not None:
            raise InputError(
                f"--{wrong}: {description.method} uses no score. Methods that do: {', '.join(SELECTIONS)}."
            )
    with staging(out) as folder:
        with bytes_bar("merging") as progress:
            report = make(description, opened, folder, out, progress)
        record = record_of(description, opened, report, out)
        if selection is not None:
            record["selection"] = selection
        write_json(folder / record_file(folder / out.name if is_file_name(out) else folder).name, record)
        publish(folder, out, opened.files, force=force)
    return record


def _check_patterns(patterns: Sequence[str], opened: Opened) -> None:
    """A pattern that matches nothing is a slip of the pen."""
    for pattern in patterns:
        try:
            found = any(re.search(pattern, name) for theta in opened.weights.values() for name in theta)
        except re.error as error:
            raise InputError(f"{pattern!r} is not a regular expression: {error}.") from error
        if not found:
            raise InputError(
                f"{pattern!r} matches no name in any checkpoint. `mirepoix inspect` lists the names."
            )


def _setting(text: str) -> tuple[str, Any]:
    """A parameter and its value: JSON where it is, text otherwise."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set: expected KEY=VALUE, got {text!r}.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _options(
    dtype: str | None,
    integers: str,
    check: str,
    names: str,
    rename: list[str] | None,
    rows: bool,
    untie: bool,
    upcast: bool,
    max_shard: str | None,
) -> dict[str, Any]:
    """Options of `merge_files` that are not at their default."""
    from mirepoix.checkpoints import parse_size

    pairs = dict(_pair(text, "--rename", "REGEX=NEW") for text in rename or [])
    given = {
        "dtype": dtype,
        "integers": integers if integers != "auto" else None,
        "check": check if check != "output" else None,
        "names": names if names != "strict" else None,
        "rename": pairs or None,
        "rows": rows or None,
        "untie": untie or None,
        "upcast": upcast or None,
        "max_shard": parse_size(max_shard) if max_shard else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    # The last equals sign parts them, so that a pattern may hold some.
    left, equals, right = text.rpartition("=")
    if not equals or not left:
        raise InputError(f"{option}: expected {form}, got {text!r}.")
    return left, right


def _coefficients(text: str | None, special: list[str] | None, count: int) -> list[Any] | None:
    """One number per member, or for each member pairs of pattern and number, ending with the rest."""
    if text is None and not special:
        return None
    rest = _numbers(text, "--coefficients", count) if text is not None else [1.0] * count
    if not special:
        return rest
    rules = []
    for item in special:
        pattern, numbers = _pair(item, "--coefficients-for", "REGEX=NUMBERS")
        rules.append((pattern, _numbers(numbers, f"--coefficients-for {pattern}", count)))
    return [[*([pattern, numbers[i]] for pattern, numbers in rules), ["", rest[i]]] for i in range(count)]


def _numbers(text: str, option: str, count: int) -> list[float]:
    words = [word for word in re.split(r"[,\s]+", text.strip()) if word]
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise InputError(f"{option}: expected numbers such as 0.5,0.3,0.2, got {text!r}.") from error
    if len(numbers) != count:
        raise InputError(f"{option}: expected one number per checkpoint ({count}), got {len(numbers)}.")
    return numbers


def _summary(record: dict[str, Any], out: Path) -> str:
    from mirepoix.merging._findings import size_text

    members = len(record["members"])
    size = sum(file["bytes"] for file in record["result"]["files"].values())
    lines = [
        f"{record['equation']}  ({members} member{'s' if members > 1 else ''}, {record['method']})",
        f"{out}: {size_text(size)} in {record['seconds']:.2f} s",
    ]
    if "selection" in record:
        chosen = record["selection"]
        lines.insert(
            1, f"kept {chosen['kept']} of {chosen['looked_at']}, score of the soup {chosen['score']:.6g}"
        )
    return "\n".join(lines)
