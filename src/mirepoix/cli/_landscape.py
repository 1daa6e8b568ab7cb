"""``mirepoix landscape``: where do weights lie, and what lies between them?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirepoix.cli._columns import aligned, plain, written
from mirepoix.cli._connect import AVERAGED, _check_files, _check_options, _statistics_differ
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
from mirepoix.types import Batch, InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mirepoix.report._figure_files import Drawn
    from mirepoix.scores import ClassificationScore
    from mirepoix.types import Weights

__all__ = ["landscape"]

WRITTEN_PAIRS = 10
"""Members up to which matrices are printed."""

WHOLE = "cosines of whole weights from one start are all near 1; give --start for those of task vectors"


def landscape(
    weights: Annotated[
        list[Path],
        typer.Argument(help="Two files of weights or more.", show_default=False),
    ],
    start: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where they started: angles are seen from there.")
    ] = None,
    score: ScoreOption = None,
    better: BetterOption = None,
    model: ModelOption = None,
    validation: ValidationOption = None,
    metric: MetricOption = "accuracy",
    points: Annotated[int, typer.Option(help="Points on the line between each two files.")] = 5,
    tolerance: ToleranceOption = 0.02,
    plane: Annotated[
        tuple[Path, Path, Path] | None,
        typer.Option(
            metavar="A B C",
            help="Three of the files: the value over the plane through them. [default with --out: the first three]",
            show_default=False,
        ),
    ] = None,
    grid: Annotated[int, typer.Option(help="Points along each side of the plane.")] = 11,
    hessian: Annotated[
        bool, typer.Option("--hessian", help="Measure flatness too, with --model: slow.")
    ] = False,
    batch_norm: BatchNormOption = "average",
    width: WidthOption = None,
    size: SizeOption = None,
    batch_size: BatchSizeOption = 256,
    device: DeviceOption = "auto",
    skip_unreadable: SkipUnreadableOption = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for figures, the numbers behind them, and landscape.json."),
    ] = None,
    parquet: Annotated[
        bool, typer.Option("--parquet", help="Write the numbers as .parquet too; needs pyarrow.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure distances, angles and locality of weights; with a score, their values and what lies between them.

    Exit code 0 means that all pairs are connected, or that there is no score; 1 that some are not; 2 bad input.
    """
    if len(weights) < 2:
        raise InputError(f"landscape: expected two files of weights or more, got {len(weights)}.")
    scored = score is not None or model is not None or validation is not None
    if (model is None) != (validation is None) and score is None:
        alone = "--model" if validation is None else "--validation"
        raise InputError(f"{alone}: expected --model NAME and --validation FOLDER together, got one alone.")
    if scored:
        _check_options(score, better, model, validation, batch_norm)
    for name, given in (
        ("--better", better is not None),
        ("--plane", plane is not None),
        ("--batch-norm reestimate", batch_norm == "reestimate"),
    ):
        if given and not scored:
            raise InputError(f"{name}: needs a score, --score, or --model and --validation.")
    if hessian and model is None:
        raise InputError("--hessian: needs the images of --model and --validation.")
    corners = _corners(weights, plane, scored and out is not None)
    from mirepoix.checkpoints import open_weights
    from mirepoix.cli._progress import Bar
    from mirepoix.report._figure_files import check_folder, write_figures
    from mirepoix.scores import ClassificationScore, load_score

    check_folder(out, parquet=parquet)
    names = [path.stem for path in weights]
    names = names if len(set(names)) == len(names) else [str(path) for path in weights]
    if len(set(names)) != len(names):
        raise InputError("landscape: expected each file once.")
    with Bar() as bar:
        thetas = [open_weights(path) for path in weights]
        bar.stage("comparing weights")
        content: dict[str, Any] = {
            "weights": [str(path) for path in weights],
            "members": names,
            "start": None if start is None else str(start),
            **_places(thetas, None if start is None else open_weights(start)),
            "score": None,
            "notes": [] if start is not None else [WHOLE],
        }
        if scored:
            judge = None
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
                evaluate: Callable[[Weights], Any] = judge.samples
                higher = judge.higher_is_better
                content["notes"] += judge.task.notes
            else:
                evaluate, higher = load_score(score or ""), better != "lower"
            refresh = judge.refresh if judge is not None and batch_norm == "reestimate" else None
            differ = _statistics_differ(thetas)
            if differ and refresh is None:
                content["notes"].append(AVERAGED)
            content["score"] = score or metric
            content["higher_is_better"] = higher
            content["batch_norm"] = batch_norm if differ else "equal or none"
            content["values"] = _values(thetas, names, evaluate, judge, refresh, bar)
            content |= _connections(thetas, names, evaluate, higher, points, tolerance, refresh, bar)
            content["plane"] = None
            if corners is not None:
                try:
                    content["plane"] = _plane(thetas, names, corners, evaluate, grid, refresh, bar)
                except InputError as error:
                    if plane is not None:
                        raise
                    content["notes"].append(f"no plane is drawn: {error}")
            content["flatness"] = _flatness(thetas, names, judge, refresh, bar) if judge and hessian else None
    percent = score is None and metric == "accuracy"
    if out is not None:
        also = {out / "landscape.json": plain(content)}
        write_figures(_figures(content, percent), out, parquet=parquet, also=also)
    if as_json:
        typer.echo(json.dumps(plain(content), ensure_ascii=False))
    else:
        typer.echo(_text(content, percent))
        if out is not None:
            typer.echo(f"\nFigures and numbers: {out}")
    if scored and not content["connected"]:
        raise typer.Exit(1)


def _corners(
    weights: Sequence[Path], plane: tuple[Path, Path, Path] | None, unasked: bool
) -> tuple[int, int, int] | None:
    """The places of the three weights whose plane is looked at."""
    if plane is None:
        return (0, 1, 2) if unasked and len(weights) > 2 else None
    found = [weights.index(path) for path in plane if path in weights]
    if len(set(found)) != 3:
        wrong = next((path for path in plane if path not in weights), None)
        what = f"got {wrong}" if wrong is not None else "got one twice"
        raise InputError(f"--plane: expected three different files among the weights, {what}.")
    return found[0], found[1], found[2]


# What is measured.


def _places(thetas: Sequence[Weights], start: Weights | None) -> dict[str, Any]:
    """Distances and angles, from the weights alone."""
    from mirepoix.diversity import distance_to_average, weight_cosine_matrix, weight_distance_matrix
    from mirepoix.landscape import angles

    to_average = distance_to_average(thetas).tolist()
    return {
        "distances": weight_distance_matrix(thetas).tolist(),
        "cosines": weight_cosine_matrix(thetas, relative_to=start).tolist(),
        "distance_to_average": to_average,
        "locality": max(to_average) ** 2,
        "angles": None if start is None else angles(thetas, start).to_dict(),
    }


def _values(
    thetas: Sequence[Weights],
    names: Sequence[str],
    evaluate: Callable[[Weights], Any],
    judge: ClassificationScore | None,
    refresh: Callable[[Weights], Weights] | None,
    bar: Any,
) -> dict[str, Any]:
    """Of the members, of their average and, where there are logits, of their ensemble."""
    from mirepoix.weights import average

    bar.stage("evaluating the members")
    values: dict[str, Any] = {"members": {}, "average": None, "ensemble": None}
    logits = []
    for name, theta in zip(names, thetas, strict=True):
        if judge is None:
            values["members"][name] = _mean(evaluate(theta))
        else:
            logits.append(_logits(judge, theta))
            values["members"][name] = _metric(judge, logits[-1])
    mean: Weights = average(thetas)
    values["average"] = _mean(evaluate(mean if refresh is None else refresh(mean)))
    if judge is not None:
        import torch

        from mirepoix.ensembles import average_logits

        values["ensemble"] = _metric(judge, average_logits(torch.stack(logits)))
    return values


def _mean(value: Any) -> float:
    import numpy as np

    value = value.detach().cpu() if hasattr(value, "detach") else value
    try:
        return float(np.mean(np.asarray(value, dtype=np.float64)))
    except (TypeError, ValueError):
        raise InputError(
            f"score: expected a number, or one per sample, got {type(value).__name__}."
        ) from None


def _network(judge: ClassificationScore, theta: Weights) -> nn.Module:
    from mirepoix.models import load_pretrained

    model: nn.Module = judge.network.build().to(judge.device).eval()
    model.load_state_dict(load_pretrained(judge.network, theta, keep_classifier=True))
    return model


def _batches(judge: ClassificationScore) -> Iterator[Batch]:
    from mirepoix.data import evaluation_batches

    return chain.from_iterable(
        evaluation_batches(subset, judge.task.transform, batch_size=judge.batch_size, device=judge.device)
        for subset in judge.subsets
    )


def _logits(judge: ClassificationScore, theta: Weights) -> Tensor:
    from mirepoix.predictions import predict

    return predict(_network(judge, theta), _batches(judge))


def _metric(judge: ClassificationScore, logits: Tensor) -> float:
    import torch

    from mirepoix.metrics import accuracy, nll

    return float((accuracy if judge.metric == "accuracy" else nll)(logits, torch.from_numpy(judge.labels)))


def _connections(
    thetas: Sequence[Weights],
    names: Sequence[str],
    evaluate: Callable[[Weights], Any],
    higher: bool,
    points: int,
    tolerance: float,
    refresh: Callable[[Weights], Weights] | None,
    bar: Any,
) -> dict[str, Any]:
    """The way between each two weights."""
    from mirepoix.landscape import connect

    pairs = list(combinations(range(len(thetas)), 2))
    barriers = [[0.0] * len(thetas) for _ in thetas]
    found = []
    for number, (i, j) in enumerate(pairs):
        bar.stage(f"connecting {names[i]} and {names[j]} ({number + 1} of {len(pairs)})")
        connection = connect(
            [thetas[i], thetas[j]],
            evaluate,
            higher_is_better=higher,
            points=points,
            tolerance=tolerance,
            refresh=refresh,
        )
        barriers[i][j] = barriers[j][i] = connection.barrier
        found.append(
            {"first": names[i], "second": names[j], **connection.to_dict(), "verdict": connection.verdict()}
        )
    return {
        "connections": found,
        "barriers": barriers,
        "connected": all(each["connected"] for each in found),
    }


def _plane(
    thetas: Sequence[Weights],
    names: Sequence[str],
    corners: tuple[int, int, int],
    evaluate: Callable[[Weights], Any],
    grid: int,
    refresh: Callable[[Weights], Weights] | None,
    bar: Any,
) -> dict[str, Any]:
    """The values around three weights, with the places of the three and of their average."""
    from mirepoix.landscape import plane

    total = grid * grid + 4
    bar.stage("evaluating the plane", total)
    a, b, c = (thetas[corner] for corner in corners)
    found = plane(
        a,
        b,
        c,
        evaluate,
        points=(grid, grid),
        refresh=refresh,
        progress=lambda done, _: bar.bar.update(bar.task, completed=done, total=total),
    )
    return {"corners": [names[corner] for corner in corners], **found.to_dict()}


def _flatness(
    thetas: Sequence[Weights],
    names: Sequence[str],
    judge: ClassificationScore,
    refresh: Callable[[Weights], Weights] | None,
    bar: Any,
) -> dict[str, Any]:
    """Trace and largest eigenvalue of the Hessian at the members and at their average."""
    from mirepoix.landscape import hessian_trace, top_eigenvalues
    from mirepoix.models import load_pretrained
    from mirepoix.weights import average

    mean: Weights = average(thetas)
    result = {}
    places = [*zip(names, thetas, strict=True), ("average", mean if refresh is None else refresh(mean))]
    for name, theta in places:
        bar.stage(f"flatness of {name}")
        own = load_pretrained(judge.network, theta, keep_classifier=True)
        model = _network(judge, theta)
        trace = hessian_trace(model, own, _batches(judge))
        top = top_eigenvalues(model, own, _batches(judge))
        result[name] = {
            "trace": trace.value,
            "standard_error": trace.standard_error,
            "products": trace.samples,
            "top_eigenvalue": float(top[0]),
        }
    return result


# What is printed.


def _text(content: dict[str, Any], percent: bool) -> str:
    names, few = content["members"], len(content["members"]) <= WRITTEN_PAIRS
    parts = [_members_table(content, percent)]
    told = "squared distance of the farthest member from the average"
    parts.append(f"Locality: {content['locality']:.6g}, the {told}.")
    if few:
        parts.append(_matrix("distance", names, content["distances"], ".4g"))
        of = "" if content["start"] is None else " of task vectors"
        parts.append(_matrix(f"cosine{of}", names, content["cosines"], ".4f"))
        if content["angles"] is not None:
            parts.append(_matrix(f"angle{of}, degrees", names, content["angles"]["degrees"], ".2f"))
    if content["score"] is not None:
        if few:
            unit, scale = (", points", 100) if percent else ("", 1)
            barriers = [[scale * value for value in row] for row in content["barriers"]]
            parts.append(_matrix(f"barrier{unit}", names, barriers, ".1f" if percent else ".4g"))
        parts.append(_verdict(content))
    notes = [f"note: {note}" for note in content["notes"]]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def _members_table(content: dict[str, Any], percent: bool) -> str:
    values, flatness, angles = (content.get(key) for key in ("values", "flatness", "angles"))
    heads = ["", "to the average"]
    heads += ["to the start"] if angles is not None else []
    heads += [f"{content['score']}, %" if percent else content["score"]] if values is not None else []
    heads += ["Hessian trace", "top eigenvalue"] if flatness is not None else []

    def line(name: str, *, value: float | None, place: int | None = None) -> list[str]:
        cells = [name, "" if place is None else f"{content['distance_to_average'][place]:.4g}"]
        if angles is not None:
            cells.append("" if place is None else written(angles["norms"][place], ".4g"))
        if values is not None and value is not None:
            cells.append(written(100 * value, ".1f") if percent else written(value, ".6g"))
        if flatness is not None:
            own = flatness.get(name)
            cells += ["", ""] if own is None else [_trace(own), written(own["top_eigenvalue"], ".4g")]
        return cells

    lines = [heads]
    for place, name in enumerate(content["members"]):
        lines.append(line(name, value=values and values["members"][name], place=place))
    if values is not None:
        combined = (("average", "average"), ("ensemble of logits", "ensemble"))
        lines += [line(name, value=values[key]) for name, key in combined if values[key] is not None]
    return aligned(lines)


def _trace(own: dict[str, float]) -> str:
    return f"{written(own['trace'], '.4g')} ± {written(own['standard_error'], '.2g')}"


def _matrix(label: str, names: Sequence[str], matrix: Sequence[Sequence[float | None]], form: str) -> str:
    lines = [[label, *names]]
    for i, (name, row) in enumerate(zip(names, matrix, strict=True)):
        lines.append([name, *("" if i == j else written(value, form) for j, value in enumerate(row))])
    return aligned(lines)


def _verdict(content: dict[str, Any]) -> str:
    bad = [each for each in content["connections"] if not each["connected"]]
    total = len(content["connections"])
    if not bad:
        return f"Connected: all {total} pairs." if total > 1 else content["connections"][0]["verdict"]
    lines = [f"Not connected: {len(bad)} of {total} pairs."]
    lines += [f"{each['first']}, {each['second']}: {each['verdict']}" for each in bad[:20]]
    return "\n".join([*lines, *(["..."] if len(bad) > 20 else [])])


# What is drawn.


def _figures(content: dict[str, Any], percent: bool) -> list[Drawn]:
    from mirepoix.report._measure_figures import draw_heatmap, draw_plane

    names = content["members"]
    of = "" if content["start"] is None else " of task vectors"
    figures = [
        draw_heatmap(
            content["distances"],
            names,
            measure="distance of weights",
            name="distances",
            write="{:.3g}".format,
        ),
        draw_heatmap(content["cosines"], names, measure=f"cosine{of or ' of weights'}", name="cosines"),
    ]
    if content["angles"] is not None:
        degrees = [
            [math.nan if value is None else value for value in row] for row in content["angles"]["degrees"]
        ]
        figures.append(
            draw_heatmap(degrees, names, measure=f"angle{of}, degrees", name="angles", write="{:.1f}".format)
        )
    if content["score"] is None:
        return figures
    scale = 100 if percent else 1
    what = "accuracy, percent" if percent else content["score"]
    barriers = [[scale * value for value in row] for row in content["barriers"]]
    figures.append(
        draw_heatmap(
            barriers,
            names,
            measure="barrier, points of accuracy" if percent else "barrier",
            name="barriers",
            write=("{:.1f}" if percent else "{:.3g}").format,
        )
    )
    plane = content["plane"]
    if plane is not None:
        figures.append(
            draw_plane(
                plane["x"],
                plane["y"],
                [[math.nan if value is None else scale * value for value in row] for row in plane["values"]],
                {
                    name: (place["x"], place["y"])
                    for name, place in zip(
                        [*plane["corners"], "average"], plane["places"].values(), strict=True
                    )
                },
                what=what,
            )
        )
    return figures
