"""Reading a report: plain data, as ``report.json`` holds it, from which all of the page is computed.

Its fields, where accuracies are fractions and null is what is not available:

- ``format``, ``mirepoix`` (version), ``name``, ``equation``, ``start``, ``network``, ``verdict``; optionally
  ``title`` and ``source`` of the recipe, and the ``command`` that makes the result again.
- ``task``: ``name``, ``classes``, ``domains`` (``name``, ``images``), ``notes``.
- ``protocol``: ``members``, ``steps``, ``data_seeds``, ``holdout``, ``validation``, ``batch_norm``,
  ``target_images``; anything else in it is printed too.
- ``targets``: names of the domains left out, each in its turn.
- ``rows``: one per strategy and target: ``label``, ``strategy``, ``combine``, ``equation``, ``target``,
  ``id_accuracy`` and ``ood_accuracy`` with their ``..._standard_error``, ``members``, ``runs``,
  ``inference_cost``, ``per_seed`` (``data_seed`` and the two accuracies).
- ``averages``: the same, without a target: the mean over targets.
- ``why``: one per target and data seed: ``target``, ``data_seed``, ``members_curve`` (``members``, and the
  OOD accuracy of ``average`` and ``ensemble``), ``ratio_error`` and ``q_statistic`` (``id``, ``ood``;
  ``"infinite"`` is possible), ``distance_to_average`` and ``distance_to_start`` (one per member),
  ``start_norm``, ``average_minus_ensemble``, ``average_ensemble_disagreement``, ``greedy`` (``order``,
  ``kept``, and ``scores`` in that order).
- ``trust``: ``level`` (``warning`` or ``note``), ``target``, ``text``.
- ``runs``: ``target``, ``data_seed``, ``run``, ``status``, ``message``, the two accuracies, ``best_step``,
  ``configuration``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mirepoix.report._numbers import cleaned, finite, mean

__all__ = [
    "any_row",
    "as_list",
    "as_map",
    "curve_mean",
    "find_label",
    "gains",
    "labels",
    "prepared",
    "row_of",
]


def as_list(value: Any) -> list[Any]:
    """The value, or an empty list where there is none."""
    return list(value) if isinstance(value, list | tuple) else []


def as_map(value: Any) -> Mapping[str, Any]:
    """The value, or an empty mapping where there is none."""
    return value if isinstance(value, Mapping) else {}


def prepared(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with printable names, and with its evidence in the mean over data seeds."""
    result: dict[str, Any] = cleaned(dict(report))
    found: dict[str, list[Mapping[str, Any]]] = {}
    for why in as_list(result.get("why")):
        found.setdefault(why["target"], []).append(why)
    result["why"] = [_over_seeds(target, entries) for target, entries in found.items()]
    return result


def _known_mean(values: Iterable[Any]) -> float | None:
    """The mean of the values that are known; infinite if one of them is."""
    values = list(values)
    if "infinite" in values or math.inf in values:
        return math.inf
    known = [number for value in values if (number := finite(value)) is not None]
    return math.fsum(known) / len(known) if known else None


def _over_seeds(target: str, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    curves = [{point["members"]: point for point in as_list(why.get("members_curve"))} for why in entries]
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    return {
        "target": target,
        "members_curve": [
            {"members": m, **{k: _known_mean(c[m].get(k) for c in curves) for k in ("average", "ensemble")}}
            for m in common
        ],
        **{
            key: {
                side: _known_mean(as_map(why.get(key)).get(side) for why in entries) for side in ("id", "ood")
            }
            for key in ("ratio_error", "q_statistic")
        },
        **{
            key: _known_mean(distance for why in entries for distance in as_list(why.get(key)))
            for key in ("distance_to_average", "distance_to_start")
        },
        **{
            key: _known_mean(why.get(key) for why in entries)
            for key in ("start_norm", "average_minus_ensemble", "average_ensemble_disagreement")
        },
        "greedy": [(why.get("data_seed"), as_map(why.get("greedy"))) for why in entries],
    }


def labels(report: Mapping[str, Any]) -> list[str]:
    """The names of the rows, each once, in the order given."""
    rows = as_list(report.get("rows")) + as_list(report.get("averages"))
    return list(dict.fromkeys(row["label"] for row in rows))


def find_label(report: Mapping[str, Any], kind: str) -> str | None:
    """The name of the row that is the ``mean`` member, the ``average`` of all, or their ``ensemble``.

    Known by how its name begins; else by how it combines, the last such row: WiSE and moving averages are
    averages too, and come before.
    """
    rows = as_list(report.get("rows")) + as_list(report.get("averages"))
    named = (row for row in rows if row["label"] == kind or row["label"].startswith(f"{kind} "))
    combined = (row for row in reversed(rows) if row.get("combine") == kind)
    row = next(named, None) or next(combined, None)
    return None if row is None else str(row["label"])


def row_of(report: Mapping[str, Any], label: str, target: str | None) -> Mapping[str, Any]:
    """The row of one label on one target, or its mean over targets; empty if there is none."""
    rows = as_list(report.get("averages" if target is None else "rows"))
    found = (r for r in rows if r["label"] == label and (target is None or r.get("target") == target))
    return next(found, {})


def any_row(report: Mapping[str, Any], label: str) -> Mapping[str, Any]:
    """A row of one label, for what is the same on all targets."""
    rows = as_list(report.get("averages")) + as_list(report.get("rows"))
    return next((row for row in rows if row["label"] == label), {})


def gains(report: Mapping[str, Any], label: str, target: str) -> tuple[float | None, float | None]:
    """OOD accuracy of a row minus that of the mean member, and its standard error over data seeds.

    The error is that of the paired differences, one per data seed: both rows come from the same members, so
    their errors do not add up. As in DomainBed, it is the population deviation over the root of the number of
    seeds.
    """
    base = find_label(report, "mean")
    if base is None:
        return None, None
    rows = row_of(report, label, target), row_of(report, base, target)
    ours, theirs = (finite(row.get("ood_accuracy")) for row in rows)
    if ours is None or theirs is None:
        return None, None
    seeds = [
        {each.get("data_seed"): finite(each.get("ood_accuracy")) for each in as_list(row.get("per_seed"))}
        for row in rows
    ]
    differences = []
    for seed, value in seeds[0].items():
        other = seeds[1].get(seed)
        if value is not None and other is not None:
            differences.append(value - other)
    error = None
    if len(differences) > 1:
        centre = math.fsum(differences) / len(differences)
        variance = math.fsum((d - centre) ** 2 for d in differences) / len(differences)
        error = math.sqrt(variance / len(differences))
    return ours - theirs, error


def curve_mean(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The curve of accuracy against members, mean over targets, where every target has a value."""
    found = [as_list(why.get("members_curve")) for why in as_list(report.get("why"))]
    curves = [{point["members"]: point for point in curve} for curve in found if curve]
    if not curves:
        return []
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    return [
        {
            "members": members,
            **{k: mean([finite(c[members].get(k)) for c in curves]) for k in ("average", "ensemble")},
        }
        for members in common
    ]
