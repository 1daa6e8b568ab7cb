"""``mirepoix diversity``: how differently do members predict, in all measures, on images of training and other ones?"""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirepoix.cli._columns import aligned, plain, written
from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.predictions import Predictions
    from mirepoix.report._figure_files import Drawn

__all__ = ["diversity"]

DRAWN = ("ratio_error", "q_diversity", "disagreement")
"""Measures whose pairs are drawn unless --measures names others."""

WRITTEN_PAIRS = 10
"""Members up to which the matrix of pairs is printed."""


def diversity(
    predictions: Annotated[
        list[Path],
        typer.Argument(
            help="Predictions of the members, on ID samples where --ood names others: .safetensors, .npz, .npy, .csv, "
            ".tsv or .parquet.",
            show_default=False,
        ),
    ],
    ood: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILES", help="Predictions of the same members on OOD samples."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="True classes, where the predictions do not hold them."),
    ] = None,
    ood_labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="True classes of the OOD samples.")
    ] = None,
    probabilities: Annotated[
        bool | None,
        typer.Option(
            "--probabilities/--logits",
            help="What the scores are. [default: logits, unless they look otherwise]",
        ),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Group of each member, such as its run: lines 'member,group'."),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Group of each member, found in its name: '^(.*)-step'."),
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Measures, separated by commas. [default: all but jensen_shannon]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for figures, the numbers behind them, and diversity.json."),
    ] = None,
    parquet: Annotated[
        bool, typer.Option("--parquet", help="Write the numbers as .parquet too; needs pyarrow.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure the diversity of members from their predictions: means, pairs, domains and groups.

    Members are files, or the members in a file; ID and OOD files must name them alike.
    """
    if groups is not None and group_by is not None:
        raise InputError("--groups, --group-by: expected one of them, got both.")
    if ood_labels is not None and not ood:
        raise InputError("--ood-labels: goes with --ood only.")
    from mirepoix.cli._progress import Bar
    from mirepoix.diversity import MEASURES
    from mirepoix.prediction_files import read_predictions
    from mirepoix.report._figure_files import check_folder, write_figures

    check_folder(out, parquet=parquet)
    names = (
        None
        if measures is None
        else [each.strip().replace("-", "_") for each in measures.split(",") if each.strip()]
    )
    unknown = [name for name in names or () if name not in MEASURES]
    if unknown or names == []:
        near = difflib.get_close_matches(unknown[0], MEASURES, 1) if unknown else []
        hint = f"did you mean {near[0]}? " if near else ""
        got = repr(unknown[0]) if unknown else "none"
        raise InputError(f"--measures: {hint}Expected names among {', '.join(MEASURES)}, got {got}.")
    with Bar() as bar:
        bar.stage("reading predictions")
        first, aside = _single(read_predictions(predictions, labels=labels, probabilities=probabilities))
        sets, members = {"ID": first}, first.members
        if ood:
            found, more = _single(read_predictions(ood, labels=ood_labels, probabilities=probabilities))
            sets["OOD"] = _same_members(members, found)
            aside = list(dict.fromkeys([*aside, *more]))
        if len(members) < 2:
            beside = f", beside {', '.join(aside)}, combined of others" if aside else ""
            raise InputError(f"diversity: expected two members or more, got {members[0]} alone{beside}.")
        of_group = _groups(members, groups, group_by, aside)
        results = {}
        for label, each in sets.items():
            bar.stage(f"measuring {label}" if ood else "measuring")
            results[label] = _measured(each, names, of_group)
    content = {
        "files": {"ID": [str(path) for path in predictions], "OOD": [str(path) for path in ood or ()]},
        "members": list(members),
        "left_aside": aside,
        "groups": of_group,
        "measures": {
            name: {key: getattr(MEASURES[name], key) for key in ("label", "higher_is_diverse", "pairwise")}
            for name in results["ID"]["values"]
        },
        "sets": results,
    }
    if out is not None:
        drawn = [name for name in names or DRAWN if MEASURES[name].pairwise]
        also = {out / "diversity.json": plain(content)}
        write_figures(_figures(content, drawn), out, parquet=parquet, also=also)
    if as_json:
        typer.echo(json.dumps(plain(content), ensure_ascii=False))
        return
    typer.echo(_text(content, names))
    if out is not None:
        typer.echo(f"\nFigures and numbers: {out}")


# What is given.


def _single(predictions: Predictions) -> tuple[Predictions, list[str]]:
    """Without what was combined of the members, and the names of that."""
    from mirepoix.evidence._sources import COMBINED

    aside = [name for name in predictions.members if name.lower() in COMBINED]
    members = [name for name in predictions.members if name not in aside]
    if not members:
        raise InputError(
            f"diversity: expected two members or more, got {', '.join(aside)} alone: these names mean what was "
            "combined of others. Rename members that are called so."
        )
    return predictions.of(members), aside


def _same_members(members: tuple[str, ...], found: Predictions) -> Predictions:
    """In the order of the ID members."""
    if set(found.members) != set(members):
        strange = sorted(set(found.members) ^ set(members))
        where = "--ood only" if strange[0] in found.members else "the ID predictions only"
        raise InputError(
            f"--ood: expected the members of the ID predictions, {', '.join(members[:5])}"
            f"{', ...' if len(members) > 5 else ''}; {strange[0]!r} is in {where}. Name the files alike, for example "
            "id/run-0.npz and ood/run-0.npz."
        )
    return found.of(members)


def _groups(
    members: Sequence[str], file: Path | None, pattern: str | None, aside: Sequence[str] = ()
) -> list[str] | None:
    """The group of each member, in their order; lines of what is left aside are not looked at."""
    if pattern is not None:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise InputError(
                f"--group-by: expected a regular expression, got {pattern!r} ({error})."
            ) from None
        found = [compiled.search(member) for member in members]
        for member, match in zip(members, found, strict=True):
            if match is None:
                raise InputError(
                    f"--group-by: {pattern!r} is not found in the name of the member {member!r}."
                )
        return [match[1] or "" if compiled.groups else match[0] for match in found if match is not None]
    if file is None:
        return None
    if not file.is_file():
        raise InputError(
            f"--groups {file}: expected a file with a line 'member,group' for each, and there is none."
        )
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: expected lines 'member,group' as text in UTF-8 ({error}).") from None
    if rows and rows[0] == ["member", "group"]:
        rows = rows[1:]
    rows = [row for row in rows if row[0] not in aside]
    for row in rows:
        if len(row) != 2:
            raise InputError(f"{file}: expected a line 'member,group' for each, got {','.join(row)!r}.")
        if row[0] not in members:
            raise InputError(f"{file}: expected members among {', '.join(members[:10])}, got {row[0]!r}.")
    told = dict(rows)
    missing = [member for member in members if member not in told]
    if missing or len(told) != len(rows):
        raise InputError(
            f"{file}: expected each member once; "
            + (
                f"{missing[0]!r} is missing."
                if missing
                else f"there are {len(rows)} lines for {len(told)} members."
            )
        )
    return [told[member] for member in members]


# What is measured.


def _measured(
    predictions: Predictions, names: Sequence[str] | None, groups: list[str] | None
) -> dict[str, Any]:
    """All of one set of samples, as plain values."""
    import torch

    from mirepoix.diversity import group_means, measure_predictions
    from mirepoix.ensembles import average_logits
    from mirepoix.evidence._sources import ZERO

    logits, labels = predictions.logits, predictions.labels
    measured = measure_predictions(logits, labels, names=names)
    notes = list(measured.notes)
    zero = logits == -torch.inf
    if (
        zero.any()
    ):  # where each class has a zero from some member, the mean of logits would have no class left
        notes.append(f"in the ensemble, probabilities of zero count as e^-{ZERO:.0f} of the largest")
    combined = average_logits(torch.where(zero, logits.amax(-1, keepdim=True) - ZERO, logits))
    result: dict[str, Any] = {
        "samples": len(labels),
        "classes": len(predictions.classes),
        "metrics": {
            name: _metrics(each, labels) for name, each in zip(predictions.members, logits, strict=True)
        },
        "ensemble": _metrics(combined, labels),
        "values": measured.values,
        "pairs": {name: matrix.tolist() for name, matrix in measured.matrices.items()},
        "spread": {name: asdict(measured.spread(name)) for name in measured.matrices},
        "notes": notes,
        "domains": {},
        "groups": None,
    }
    present = [
        number for number in range(len(predictions.domain_names)) if (predictions.domains == number).any()
    ]
    if len(present) > 1:
        for number in present:
            inside = predictions.domains == number
            of_domain = measure_predictions(logits[:, inside], labels[inside], names=names)
            result["domains"][predictions.domain_names[number]] = {
                "samples": int(inside.sum()),
                "values": of_domain.values,
                "notes": list(of_domain.notes),
            }
    if groups is not None:
        result["groups"] = {
            name: asdict(group_means(matrix, groups)) for name, matrix in measured.matrices.items()
        }
    return result


def _metrics(logits: Any, labels: Any) -> dict[str, float]:
    from mirepoix.metrics import accuracy, brier, ece, nll

    of = {"accuracy": accuracy, "nll": nll, "ece": ece, "brier": brier}
    return {name: float(function(logits, labels)) for name, function in of.items()}


# What is printed.


def _label(content: Mapping[str, Any], label: str, before: str = "", after: str = "") -> str:
    """The name of a set of samples, where there are several."""
    return f"{before}{label}{after}" if len(content["sets"]) > 1 else ""


def _text(content: Mapping[str, Any], names: Sequence[str] | None) -> str:
    sets = content["sets"]
    parts = [_members_table(content), _measures_table(content)]
    parts += [_domains_table(label, content) for label, found in sets.items() if found["domains"]]
    if content["groups"] is not None:
        parts.append(_groups_table(content))
    if len(content["members"]) <= WRITTEN_PAIRS:
        pairwise = [name for name in names or ("ratio_error",) if name in sets["ID"]["pairs"]]
        parts += [_pairs_table(label, name, content) for name in pairwise for label in sets]
    aside = ", ".join(content["left_aside"])
    notes = [f"note: left aside, as they are combined of the others: {aside}"] if aside else []
    notes += [
        f"note: {_label(content, label, after=': ')}{note}"
        for label, found in sets.items()
        for note in found["notes"]
    ]
    notes += [
        f"note: {_label(content, label, after=', ')}{domain}: {note}"
        for label, found in sets.items()
        for domain, each in found["domains"].items()
        for note in each["notes"]
    ]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def _members_table(content: Mapping[str, Any]) -> str:
    sets, groups = content["sets"], content["groups"]
    heads = ["member", *(["group"] if groups else [])]
    for label in sets:
        heads += [f"{_label(content, label, after=' ')}accuracy, %", "nll", "ece, %"]

    def line(first: Sequence[str], metrics: Sequence[Mapping[str, float]]) -> list[str]:
        cells = [*first, *([""] if groups and len(first) == 1 else [])]
        for found in metrics:
            cells += [
                written(100 * found["accuracy"], ".1f"),
                written(found["nll"]),
                written(100 * found["ece"], ".1f"),
            ]
        return cells

    lines = [heads]
    for number, member in enumerate(content["members"]):
        own = [member, *([groups[number]] if groups else [])]
        lines.append(line(own, [found["metrics"][member] for found in sets.values()]))
    means = []
    for found in sets.values():
        every = list(found["metrics"].values())
        means.append({key: sum(each[key] for each in every) / len(every) for key in every[0]})
    lines.append(line(["mean"], means))
    lines.append(line(["ensemble of logits"], [found["ensemble"] for found in sets.values()]))
    return aligned(lines, left=2 if groups else 1)


def _measures_table(content: Mapping[str, Any]) -> str:
    sets = content["sets"]
    heads = ["measure", "more diverse"]
    for label in sets:
        heads += [_label(content, label) or "mean", "pairs"]
    lines = [heads]
    for name, about in content["measures"].items():
        cells = [about["label"], "higher" if about["higher_is_diverse"] else "lower"]
        for found in sets.values():
            spread = found["spread"].get(name)
            between = "" if spread is None else f"{written(spread['lowest'])} to {written(spread['highest'])}"
            cells += [written(found["values"][name]), between]
        lines.append(cells)
    return aligned(lines, left=2)


def _domains_table(label: str, content: Mapping[str, Any]) -> str:
    domains = content["sets"][label]["domains"]
    lines = [
        [f"{_label(content, label, after=' ')}domains", *domains],
        ["samples", *(f"{each['samples']:,}" for each in domains.values())],
    ]
    for name, about in content["measures"].items():
        lines.append([about["label"], *(written(each["values"][name]) for each in domains.values())])
    return aligned(lines)


def _groups_table(content: Mapping[str, Any]) -> str:
    first = next(iter(content["sets"]["ID"]["groups"].values()), None)
    if first is None:
        return "No measure of pairs was asked for, so groups are not compared."
    several = len(content["sets"]) > 1
    lines = [["pairs", *(["of"] if several else []), "same group", "different groups", "difference"]]
    for label, found in content["sets"].items():
        for name, means in found["groups"].items():
            cells = [content["measures"][name]["label"], *([label] if several else [])]
            for key in ("within", "across", "difference"):
                cells.append(_interval(means[key]))
            lines.append(cells)
    counts = (
        f"{first['groups']} groups, {first['pairs_within']} pairs in the same and {first['pairs_across']} in different "
        "ones; in brackets, 95 % intervals over groups."
    )
    return f"{aligned(lines, left=2 if several else 1)}\n{counts}"


def _interval(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "n/a"
    known = found["low"] == found["low"] and found["high"] == found["high"]
    return written(found["value"]) + (
        f" [{written(found['low'])}, {written(found['high'])}]" if known else ""
    )


def _pairs_table(label: str, name: str, content: Mapping[str, Any]) -> str:
    members = content["members"]
    lines = [[f"{content['measures'][name]['label']}{_label(content, label, before=', ')}", *members]]
    for i, (member, row) in enumerate(zip(members, content["sets"][label]["pairs"][name], strict=True)):
        lines.append([member, *("" if i == j else written(value) for j, value in enumerate(row))])
    return aligned(lines)


# What is drawn.


def _figures(content: Mapping[str, Any], names: Sequence[str]) -> list[Drawn]:
    """Of each measure: the pairs of each set, how they are spread, and accuracy against diversity."""
    from mirepoix.report._measure_figures import draw_heatmap, draw_histogram, draw_scatter

    members, groups, figures = content["members"], content["groups"], []
    pairs = [(i, j) for i in range(len(members)) for j in range(i + 1, len(members))]
    kinds = ["all pairs"] * len(pairs)
    if groups is not None:
        kinds = ["same group" if groups[i] == groups[j] else "different groups" for i, j in pairs]
    for name in names:
        measure = content["measures"][name]["label"]
        spread: dict[
            tuple[str, str], dict[str, list[float]]
        ] = {}  # by name and title of the histogram, and series
        dots: dict[str, list[tuple[float, float, str]]] = {}
        for label, found in content["sets"].items():
            matrix = found["pairs"][name]
            accuracies = [100 * found["metrics"][member]["accuracy"] for member in members]
            shown = _label(content, label)  # empty for the only set
            place = f"{name}{_label(content, label, before='_').lower()}"
            figures.append(
                draw_heatmap(
                    matrix, members, measure=measure, groups=groups, title=shown, name=f"{place}_pairs"
                )
            )
            for (i, j), kind in zip(pairs, kinds, strict=True):
                histogram = (name, "") if groups is None else (place, shown)
                series = shown if groups is None and shown else kind
                spread.setdefault(histogram, {}).setdefault(series, []).append(matrix[i][j])
                dot = (accuracies[i] + accuracies[j]) / 2, matrix[i][j], f"{members[i]}, {members[j]}"
                own = shown or kind if groups is None else f"{_label(content, label, after=', ')}{kind}"
                dots.setdefault(own, []).append(dot)
        for (place, title), each in spread.items():
            if any(math.isfinite(value) for values in each.values() for value in values):
                # The same group first, whichever pair came first.
                ordered = {series: each[series] for series in sorted(each, reverse=groups is not None)}
                figures.append(draw_histogram(ordered, what=measure, title=title, name=f"{place}_histogram"))
        if any(math.isfinite(dot[1]) for every in dots.values() for dot in every):
            figures.append(
                draw_scatter(
                    dots, x="mean accuracy of the pair, percent", y=measure, name=f"{name}_against_accuracy"
                )
            )
    return figures
