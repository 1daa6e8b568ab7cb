"""``mirepoix connect``: is the way between weights flat enough to average them?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirepoix.cli._score_options import (
    BatchNormOption,
    BatchSizeOption,
    BetterOption,
    DeviceOption,
    MetricOption,
    ModelOption,
    ScoreOption,
    SizeOption,
    SkipUnreadableOption,
    ToleranceOption,
    ValidationOption,
    WidthOption,
)
from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.landscape import Connection
    from mirepoix.scores import ClassificationScore
    from mirepoix.types import Weights

__all__ = ["connect"]

AVERAGED = (
    "batch-norm statistics differ between the files and are averaged like the weights. Measured again on images, they "
    "may change the verdict: --batch-norm reestimate."
)


def connect(
    weights: Annotated[
        list[Path],
        typer.Argument(help="Two or three files of weights.", show_default=False),
    ],
    score: ScoreOption = None,
    better: BetterOption = None,
    model: ModelOption = None,
    validation: ValidationOption = None,
    metric: MetricOption = "accuracy",
    points: Annotated[int, typer.Option(help="Points on the line, or on each edge of the triangle.")] = 11,
    tolerance: ToleranceOption = 0.02,
    batch_norm: BatchNormOption = "average",
    width: WidthOption = None,
    size: SizeOption = None,
    batch_size: BatchSizeOption = 256,
    device: DeviceOption = "auto",
    skip_unreadable: SkipUnreadableOption = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the values: .svg or .png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Evaluate weights along the line (or over the triangle) between two (or three) files.

    The barrier is how far the value falls below the chord, the average of the values at the ends. Exit code 0 means
    connected, 1 not connected, 2 bad input.
    """
    if len(weights) not in (2, 3):
        raise InputError(f"connect: expected 2 or 3 files of weights, got {len(weights)}.")
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise InputError(f"--plot {plot}: expected a name ending in .svg or .png.")
    _check_options(score, better, model, validation, batch_norm)
    from mirepoix.checkpoints import open_weights
    from mirepoix.cli._progress import Bar
    from mirepoix.landscape import connect as measure
    from mirepoix.landscape import plot as draw
    from mirepoix.scores import ClassificationScore, load_score

    refresh = None
    with Bar() as bar:
        thetas = [open_weights(path) for path in weights]
        if model is not None and validation is not None:
            bar.stage("reading images")
            judge = ClassificationScore.of_folder(
                model,
                validation,
                width=width,
                size=size,
                metric=metric,
                batch_size=batch_size,
                device=device,
                skip_unreadable=skip_unreadable,
                progress=bar.images,
            )
            _check_files(judge, weights, thetas)
            values: Callable[[Weights], Any] = judge.samples
            higher, notes = judge.higher_is_better, list(judge.task.notes)
            refresh = judge.refresh if batch_norm == "reestimate" else None
        else:
            values, higher, notes = load_score(score or ""), better != "lower", []
        differ = _statistics_differ(thetas)
        if differ and refresh is None:
            notes.append(AVERAGED)
        total = points if len(thetas) == 2 else points * (points + 1) // 2
        bar.plan(total)
        bar.stage("evaluating", total)
        connection = measure(
            thetas,
            values,
            higher_is_better=higher,
            points=points,
            tolerance=tolerance,
            refresh=refresh,
            progress=lambda done, _: bar.bar.update(bar.task, completed=done),
        )
    label = score or metric
    percent = score is None and metric == "accuracy"
    if plot is not None:
        names = [path.stem for path in weights]
        draw(
            connection,
            plot,
            names=names if len(set(names)) == len(names) else [str(path) for path in weights],
            label="accuracy, percent" if percent else label,
            scale=100 if percent else 1,
        )
    verdict = connection.verdict(_points if percent else "{:.4g}".format)
    if as_json:
        how = {"weights": [str(path) for path in weights], "score": label}
        how |= {"batch_norm": batch_norm if differ else "equal or none"}
        content = {**how, **connection.to_dict(), "verdict": verdict, "notes": notes}
        typer.echo(json.dumps(content, ensure_ascii=False))
    else:
        typer.echo(_table(connection, "accuracy" if percent else "value", percent))
        typer.echo(f"\n{verdict}")
        for note in notes:
            typer.echo(f"note: {note}")
        if plot is not None:
            typer.echo(f"Figure: {plot}")
    if not connection.connected:
        raise typer.Exit(1)


def _check_options(
    score: str | None, better: str | None, model: str | None, validation: Path | None, batch_norm: str
) -> None:
    given = [name for name, value in (("--model", model), ("--validation", validation)) if value is not None]
    if score is not None:
        if given:
            raise InputError(
                f"--score: expected no {given[0]} beside it, as each is a score of its own. Give one."
            )
        if batch_norm == "reestimate":
            raise InputError(
                "--batch-norm reestimate: needs the images of --model and --validation. With --score, re-estimate in "
                "your function."
            )
    elif len(given) < 2:
        raise InputError(
            "connect: expected a score, either --score module:function, or --model NAME and --validation FOLDER; got "
            f"{given[0] + ' alone' if given else 'none'}."
        )
    elif better is not None:
        raise InputError("--better: goes with --score only; the direction of --metric is known.")


def _check_files(judge: ClassificationScore, paths: Sequence[Path], thetas: Sequence[Weights]) -> None:
    """Say which file does not fit before anything is evaluated."""
    for path, theta in zip(paths, thetas, strict=True):
        try:
            judge.check(theta)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def _statistics_differ(thetas: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there are batch-norm statistics that an average changes."""
    first = thetas[0]
    names = [name for name in first if name.endswith(("running_mean", "running_var"))]
    return any(
        theta[name].shape != first[name].shape or bool((theta[name] != first[name]).any())
        for theta in thetas[1:]
        for name in names
        if name in theta
    )


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"


def _table(connection: Connection, label: str, percent: bool) -> str:
    """Coefficients, value, chord and drop, in aligned columns."""

    def write(value: float) -> str:
        return f"{100 * value:.1f}" if percent else f"{value:.6g}"

    ends = len(connection.points[0].coefficients)
    heads = ["t"] if ends == 2 else ["A", "B", "C"]
    unit = ", %" if percent else ""
    lines = [[*heads, f"{label}{unit}", f"chord{unit}", "worse by"]]
    for point in connection.points:
        place = point.coefficients[1:] if ends == 2 else point.coefficients
        numbers = (point.value, point.chord, point.drop + 0.0)
        lines.append([*(f"{share:.3f}" for share in place), *map(write, numbers)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )
