"""``mirepoix domainbed``: plan, run, table and trace of a benchmark."""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.cluster import Engine
    from mirepoix.domainbed import Benchmark, Plan, Sweep, Workbench

__all__ = ["domainbed"]

domainbed = typer.Typer(
    help="Compare strategies by the DomainBed protocol, on this machine or on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe with [[datasets]], or the name of one.")
]
DataOption = Annotated[Path | None, typer.Option(help="Folder that holds the folders of the datasets.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder for the results. [default: mirepoix-<recipe>]")]
StoreOption = Annotated[
    str | None,
    typer.Option(
        help="Folder, or address such as s3://bucket/sweep, of the finished trainings. [default: OUT/store]"
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
FormatOption = Annotated[Literal["markdown", "csv", "latex"], typer.Option("--format", help="Of the tables.")]
MeasureOption = Annotated[
    Literal["whole", "part"],
    typer.Option(help="Accuracy on all images of the target, or on its 80 % part, as DomainBed publishes."),
]


@domainbed.command()
def plan(
    recipe: RecipeArgument,
    data: DataOption = None,
    out: OutOption = None,
    store: StoreOption = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print which trainings a table needs, which are stored, and a forecast of time and disk.

    Nothing is trained, but for the short pre-training on the built-in digits, without which no start is known.
    """
    bench, _ = _open(recipe, data, out, store, changes)
    content = _announce(bench, workers=_at_once(bench, None, None), details=not as_json)[1]
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False))


@domainbed.command()
def run(
    recipe: RecipeArgument,
    data: DataOption = None,
    out: OutOption = None,
    store: StoreOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Processes on this machine; 0 trains in this one. [default: one per core or GPU]"
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A Ray cluster: auto, local, HOST:PORT or ray://HOST:PORT."),
    ] = None,
    cpus_per_run: Annotated[float, typer.Option(min=0, help="Processors that Ray sets aside for a run.")] = 1,
    gpus_per_run: Annotated[
        float, typer.Option(min=0, help="GPUs that Ray sets aside for a run; 0.25 puts four on one.")
    ] = 0,
    retries: Annotated[
        int, typer.Option(min=0, help="How often a run is tried again whose worker was lost.")
    ] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train what a table needs, each distinct run once, and write the tables with their report.

    A sweep that was stopped, however it was stopped, continues when the same command runs again.
    """
    from mirepoix.experiment import claimed

    bench, folder = _open(recipe, data, out, store, changes)
    words = ["mirepoix", "domainbed", "run", recipe, *(["--data", str(data)] if data else [])]
    words += [word for change in changes or [] for word in ("--set", change)]
    engine = _engine(bench, workers, ray, cpus_per_run, gpus_per_run, retries)
    with claimed(folder):
        _check_folder(folder, bench)
        prepared, content = _announce(bench, workers=_at_once(bench, workers, ray))
        if dry_run:
            if as_json:
                typer.echo(json.dumps(content, ensure_ascii=False))
            return
        _write_job(folder, bench, content, status="unfinished")
        began = time.monotonic()
        from mirepoix.cli._progress import SweepBar
        from mirepoix.domainbed import run_plan

        with engine, SweepBar() as bar:
            typer.echo(f"Working on {engine.describe()}.", err=True)
            sweep = run_plan(bench, prepared, engine, bar.event, retries=retries)
        content |= {
            "seconds": round(time.monotonic() - began, 1),
            "trained_now": sweep.trained,
            "diverged_now": sweep.diverged,
            "failed": sweep.failed,
            "engine": engine.describe(),
        }
        written = _write(folder, bench, sweep, content, shlex.join(words))
        incomplete = any(cell.missing for cell in sweep.cells)
        status = "failed" if sweep.failed else "incomplete" if incomplete else "finished"
        _write_job(folder, bench, content, status=status)
    if as_json:
        typer.echo(json.dumps({**content, "cells": [c.to_dict() for c in sweep.cells]}, ensure_ascii=False))
    else:
        typer.echo(written)
        typer.echo(f"Report: {folder / 'report.html'}")
    if not sweep.failed and not any(cell.missing is None for cell in sweep.cells):
        typer.echo("mirepoix: no row has a number; the reasons stand below the table.", err=True)
        raise typer.Exit(1)
    if sweep.failed:
        first, reason = next(iter(sweep.failed.items()))
        typer.echo(
            f"mirepoix: {len(sweep.failed)} works failed or were skipped; the first: {first}: {reason}",
            err=True,
        )
        raise typer.Exit(1)


@domainbed.command()
def table(
    recipe: RecipeArgument,
    data: DataOption = None,
    out: OutOption = None,
    store: StoreOption = None,
    form: FormatOption = "markdown",
    measure: MeasureOption = "whole",
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the tables from what is trained so far; what is missing is listed below them."""
    from mirepoix.domainbed import make_plan, tables
    from mirepoix.domainbed import measure as measured

    bench, _ = _open(recipe, data, out, store, changes)
    cells = measured(bench, make_plan(bench))
    if as_json:
        typer.echo(json.dumps({"cells": [cell.to_dict() for cell in cells]}, ensure_ascii=False))
    else:
        typer.echo(tables(cells, form, measure, protocol=bench.benchmark.protocol))


@domainbed.command()
def trace(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the results, or its cells.json.")],
    row: Annotated[str, typer.Argument(help="A strategy, such as diwa.")],
    target: Annotated[str, typer.Argument(help="The left-out domain.")],
    dataset: Annotated[str | None, typer.Option(help="The dataset, where there are several.")] = None,
) -> None:
    """Say what a cell of the table was computed from: what was chosen, and the records in the store."""
    from mirepoix.checkpoints import read_json
    from mirepoix.domainbed import read_cells
    from mirepoix.domainbed import trace as traced

    if folder.suffix == ".toml":
        raise InputError(f"{folder}: expected the folder of the results, got a recipe; name what --out was.")

    cells = read_cells(folder / "cells.json" if folder.is_dir() else folder)
    names = list(dict.fromkeys(cell.dataset for cell in cells))
    if dataset is None and len(names) != 1:
        raise InputError(f"--dataset: expected one of {', '.join(names)}, got none.")
    typer.echo(traced(cells, dataset or names[0], row, target))
    job = folder / "job.json"
    if job.is_file():
        place = read_json(job).get("store")
        typer.echo(f"The sources are folders, with a record.json each, in the store {place}.", err=True)


@domainbed.command()
def export(
    recipe: RecipeArgument,
    data: DataOption = None,
    out: OutOption = None,
    store: StoreOption = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the files go. [default: exported in --out]")
    ] = None,
    family: Annotated[str, typer.Option(help="Which members, such as fine_tuning.")] = "fine_tuning",
    along: Annotated[
        str, typer.Option(metavar="STEPS", help="Predictions along each run too, at these steps: 50,75,100.")
    ] = "",
    changes: SetOption = None,
) -> None:
    """Write trained members, their averages and their predictions as files for the other verbs.

    ``mirepoix explain``, ``diversity``, ``landscape``, ``connect`` and ``soup`` take them.
    """
    from mirepoix.domainbed import export as write

    bench, folder = _open(recipe, data, out, store, changes)
    try:
        steps = [int(text) for text in along.split(",") if text.strip()]
    except ValueError:
        raise InputError(f"--along {along}: expected whole numbers such as 50,75,100.") from None
    place = to or folder / "exported"
    files = write(bench, place, family=family, along=steps, note=lambda text: typer.echo(text, err=True))
    typer.echo(f"{len(files)} files in {place}")


MEASURES: tuple[Literal["whole", "part"], ...] = ("whole", "part")
FORMATS: dict[Literal["markdown", "csv", "latex"], str] = {"markdown": "md", "csv": "csv", "latex": "tex"}
"""Formats of the tables, with the endings of their files."""

# What the verbs share -----------------------------------------------------------------------------------------


def _open(
    recipe: str, data: Path | None, out: Path | None, store: str | None, changes: list[str] | None
) -> tuple[Workbench, Path]:
    """The workbench of a recipe, and the folder of its results."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from mirepoix.domainbed import Workbench, load_benchmark

    if data is not None and not data.is_dir():
        raise InputError(f"--data {data}: expected a folder that holds the datasets, got none.")
    benchmark, path = load_benchmark(recipe, list(changes or []))
    folder = out or Path(f"mirepoix-{benchmark.name}")
    place = store or str(folder / "store")
    # Absolute, as workers may have another current folder.
    place = place if "://" in place else str(Path(place).absolute())
    cache = (folder if "://" in place else Path(place)).absolute()
    bench = Workbench(benchmark, path.absolute(), place, cache, data.absolute() if data else None)
    return bench, folder


def _processors(bench: Workbench) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // bench.threads)


def _engine(
    bench: Workbench, workers: int | None, ray: str | None, cpus: float, gpus: float, retries: int
) -> Engine:
    from mirepoix.cluster import Inline, LocalPool, RayCluster

    threads = bench.threads
    if ray is not None and workers == 0:
        raise InputError("--workers 0 trains in this process, and --ray on a cluster: leave one of them out.")
    if ray is not None:
        return RayCluster(
            ray, cpus_per_work=cpus, gpus_per_work=gpus, threads=threads, retries=retries, workers=workers
        )
    if workers == 0:
        return Inline(threads)
    return LocalPool(_at_once(bench, workers, ray), threads=threads, gpus=_gpus(bench.benchmark))


def _at_once(bench: Workbench, workers: int | None, ray: str | None) -> int:
    """How many trainings run at a time; of a cluster that was not asked yet, 1."""
    if workers == 0:
        return 1
    return workers or (1 if ray else len(_gpus(bench.benchmark)) or _processors(bench))


def _gpus(benchmark: Benchmark) -> list[int]:
    if benchmark.loop.device not in ("auto", "cuda"):
        return []
    import torch

    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


def _announce(bench: Workbench, *, workers: int, details: bool = True) -> tuple[Plan, dict[str, Any]]:
    """Make the plan and print it on standard error; its counts and forecast as plain values."""
    from mirepoix.cli._progress import Bar
    from mirepoix.domainbed import forecast, make_plan
    from mirepoix.domainbed._plan import rehearse

    with Bar() as bar:
        bar.stage("reading the images")
        for table in bench.benchmark.tables():
            for note in bench.task(table.label, table.seeds[0], bar.images).notes:
                bar.note(f"{table.label}: {note}")
        bar.stage("planning")
        made = make_plan(bench)
        bar.stage("trying the objectives")
        rehearse(bench, made)
        expected = forecast(bench, made, bar.stage)
    content = made.to_dict()
    content["forecast"] = {
        "hours": round(expected.seconds / workers / 3600, 4),
        "gigabytes": round(expected.bytes / 1e9, 4),
        "workers": workers,
        "origin": expected.origin,
    }
    lines = [
        f"{content['trainings']} distinct trainings serve {content['asked_by_rows']} members of "
        f"{len(bench.benchmark.strategies)} rows on {content['splits']} splits.",
        f"{content['stored']} are stored, {content['diverged']} diverged, {content['to_train']} are to be trained.",
    ]
    lines += [
        f"{late} of the {drawn} trainings by {name} with drawn options begin after their last step, and never are "
        "what they are called."
        for name, (drawn, late) in made.late.items()
    ]
    if content["to_train"]:
        lines.append(
            f"Forecast of the trainings: {_duration(expected.seconds / workers)} with {workers} at a time (from "
            f"{expected.origin}), {expected.bytes / 1e9:.2g} GB of disk. Measuring and figures come on top."
        )
    if details:
        by_task: dict[str, list[str]] = {}
        for planned in made.trainings:
            by_task.setdefault(str(planned.node.task), []).append(planned.status)
        lines += [
            f"  {task}: {len(found)} trainings, {sum(status == 'stored' for status in found)} stored"
            for task, found in by_task.items()
        ]
    typer.echo("\n".join(lines), err=True)
    return made, content


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _check_folder(folder: Path, bench: Workbench) -> None:
    """Results of something else are never overwritten."""
    from mirepoix.checkpoints import read_json

    file = folder / "job.json"
    before = read_json(file) if file.is_file() else None
    if before is None:
        return
    recipe = before.get("recipe", {}) if isinstance(before, dict) else {}
    if "datasets" not in recipe or recipe.get("name") != bench.benchmark.name:
        raise InputError(
            f"{folder}: holds the results of another recipe ({recipe.get('name', 'unknown')!r}). Choose another --out; "
            f"with --store {folder / 'store'} it takes over the trainings that are the same."
        )


def _write_job(folder: Path, bench: Workbench, content: dict[str, Any], *, status: str) -> None:
    from mirepoix import __version__
    from mirepoix.checkpoints import write_json
    from mirepoix.store import environment

    write_json(
        folder / "job.json",
        {
            "status": status,
            "mirepoix": __version__,
            "recipe": bench.benchmark.model_dump(mode="json", exclude_none=True),
            "store": bench.store_place,
            "counts": {key: value for key, value in content.items() if key != "list"},
            "environment": environment(),
        },
    )


def _write(folder: Path, bench: Workbench, sweep: Sweep, content: dict[str, Any], command: str) -> str:
    """Cells, tables and the report; the markdown tables, to be shown."""
    import dataclasses

    from mirepoix import __version__
    from mirepoix.checkpoints import write_atomically
    from mirepoix.domainbed import comparisons, printed_tables, tables, write_cells
    from mirepoix.report import write_benchmark_report
    from mirepoix.store import environment

    benchmark, cells = bench.benchmark, sweep.cells
    protocol = benchmark.protocol
    write_cells(folder / "cells.json", cells)
    for measure in MEASURES:
        suffix = "" if measure == "whole" else "-80-percent"
        for form, ending in FORMATS.items():
            text = tables(cells, form, measure, protocol=protocol)
            write_atomically(folder / f"tables{suffix}.{ending}", text.encode())
    page = {
        "title": benchmark.title or benchmark.name,
        "name": benchmark.name,
        "source": benchmark.source,
        "mirepoix": __version__,
        "protocol": _protocol(benchmark),
        "selection": list(benchmark.selection),
        "datasets": [_described(bench, table.label) for table in benchmark.datasets],
        "auxiliaries": [table.label for table in benchmark.auxiliaries],
        "tables": [
            dataclasses.asdict(table)
            for table in (
                *printed_tables(cells, "whole", protocol),
                *comparisons(cells),
                *printed_tables(cells, "part", protocol),
            )
        ],
        "evidence": sweep.evidence,
        "rows": [{"key": r.key, "label": r.label, "equation": r.equation} for r in benchmark.rows()],
        "plan": content,
        "cautions": [
            {"level": "note", "text": f"{table.label}: {note}."}
            for table in benchmark.tables()
            for note in bench.task(table.label, table.seeds[0]).notes
        ],
        "seconds": content["seconds"],
        "diverged": sweep.diverged,
        "failed": sweep.failed,
        "command": command,
        "environment": {**environment(), "engine": content["engine"], "threads": bench.threads},
    }
    write_benchmark_report(page, folder)
    return tables(cells, "markdown", protocol=protocol)


def _protocol(benchmark: Benchmark) -> dict[str, str]:
    """The protocol, and by which criteria with which options the rows were trained, where that is not the risk."""
    terms: dict[str, str] = {"protocol": benchmark.protocol}
    names = benchmark.trained_by()
    if any(row.family == "objectives" for row in benchmark.rows()):
        terms["objectives in turn"] = ", ".join(benchmark.objectives)
    if set(names) <= {"erm"}:
        return terms
    for name in names:
        said = (benchmark.objective_options or {}).get(name, {})
        options = said if benchmark.search_objectives else benchmark.options_of(name)
        if options:
            terms[f"options of {name}"] = ", ".join(f"{key} = {value}" for key, value in options.items())
    terms["all other options"] = (
        "drawn for run 1 and later, as DomainBed's random search does; run 0 has DomainBed's defaults"
        if benchmark.search_objectives
        else "the defaults, in every run"
    )
    return terms


def _described(bench: Workbench, label: str) -> dict[str, Any]:
    task, targets = bench.task(label, bench.table(label).seeds[0]), bench.targets(label)
    return {
        "name": label,
        "targets": targets,
        "data_seeds": list(bench.table(label).seeds),
        "images": min(len(domain) for domain in task.domains if domain.name in targets),
    }
