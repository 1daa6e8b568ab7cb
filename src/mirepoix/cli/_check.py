"""``mirepoix check``: can these be averaged, and if not, which file is at fault?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["check"]


def check(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(help="Files of weights, model folders, or adapter folders.", show_default=False),
    ],
    base: Annotated[Path | None, typer.Option(help="The common start, for methods that need it.")] = None,
    finite: Annotated[
        bool, typer.Option("--finite", help="Read all values, and look for NaN and infinity.")
    ] = False,
    rows: Annotated[bool, typer.Option("--rows", help="Allow vocabularies that grew.")] = False,
    container: Annotated[
        str | None, typer.Option(help="Where the weights are in a torch file: state_dict, model, ...")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say whether checkpoints can be averaged, and name those at fault, without reading the weights.

    Exit code 0 means yes, 1 no, 2 bad input.
    """
    from mirepoix.cli._bytes import bytes_bar
    from mirepoix.merging._check import check_files

    with bytes_bar("reading values", finite) as progress:
        found = check_files(
            checkpoints, base=base, finite=finite, rows=rows, container=container, progress=progress
        )
    if as_json:
        typer.echo(json.dumps(found.as_json(), ensure_ascii=False))
    else:
        for name, text in _facts(found.facts):
            typer.echo(f"{name:<12}{text}")
        typer.echo(f"\n{found.verdict}")
        for (what, advice), members in _grouped(found.faults):
            typer.echo(f"  {members}{what}" + ("" if what.endswith((".", "]")) else "."))
            if advice:
                typer.echo(f"    {advice}")
        for warning in found.warnings:
            typer.echo(f"note: {warning}")
        if found.ok:
            typer.echo(f"Average them: mirepoix soup ... -o {_out(found.facts)}")
    if not found.ok:
        raise typer.Exit(1)


def _facts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What was seen, a line each."""
    from mirepoix.merging._findings import size_text

    lines = [("files", f"{facts['files']}, {size_text(facts['bytes_to_read'])} to read")]
    if "tensors" in facts:
        dtypes = ", ".join(facts["dtypes"])
        lines.append(
            (
                "each",
                f"{facts['weights']} weights ({facts['parameters']:,} parameters), {facts['statistics']} statistics, "
                f"{facts['integers']} integers; {dtypes}",
            )
        )
    if facts.get("head"):
        lines.append(("head", f"{facts['head']['name']}, {facts['head']['rows']} rows"))
    if "aliases" in facts:
        lines.append(("tied", ", ".join(f"{a} = {b}" for a, b in list(facts["aliases"].items())[:5])))
    if "adapters" in facts:
        lines += _adapters(facts["adapters"])
    if "start" in facts:
        lines.append(("start", facts["start"]["text"]))
    if facts.get("batch_norm"):
        lines.append(
            (
                "batch norm",
                f"{facts['batch_norm']} layers. Their statistics are averaged too; measuring them again on data is "
                "optional, and advised for extrapolation: mirepoix.merging.reestimate_batch_norm",
            )
        )
    if "values_read" in facts:
        lines.append(("values", "all were read"))
    if "result_bytes" in facts:
        memory = f", memory {size_text(facts['memory_bytes'])}" if "memory_bytes" in facts else ""
        dtypes = f" ({', '.join(facts['result_dtypes'])})" if "result_dtypes" in facts else ""
        lines.append(
            (
                "result",
                f"{size_text(facts['result_bytes'])}{dtypes}{memory}; {size_text(facts['free_bytes'])} free here",
            )
        )
    return lines


def _adapters(facts: dict[str, Any]) -> list[tuple[str, str]]:
    kinds = [name for name in ("rslora", "dora", "patterns") if facts[name]]
    ranks, alphas = (" or ".join(map(str, facts[key])) for key in ("ranks", "alphas"))
    text = f"{facts['layers']} layers, rank {ranks}, alpha {alphas}"
    return [("adapters", ", ".join([text, *kinds]) + f"; exact soup of rank {facts['result_rank']}")]


def _grouped(faults: Any) -> list[tuple[tuple[str, str], str]]:
    """Each fault once, with all files that have it before it."""
    from mirepoix.merging._findings import listed

    groups: dict[tuple[str, str], list[str]] = {}
    for member, what, advice in faults:
        groups.setdefault((what, advice), []).extend([member] if member else [])
    return [(key, f"{listed(members)}: " if members else "") for key, members in groups.items()]


def _out(facts: dict[str, Any]) -> str:
    return "FOLDER" if "adapters" in facts else "soup.safetensors"
