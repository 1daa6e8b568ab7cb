"""The content of the page, ready to print; markdown, HTML and the terminal only dress it.

A report is a plain dict, as ``report.json`` holds it. Everything computed here comes from that dict alone,
so the page can be made again at any time. Its fields, where accuracies are fractions and null is what is not
available:

- ``format``, ``mirepoix`` (version), ``name``, ``equation``, ``start``, ``network``, ``verdict``; optionally
  ``command``, which makes the result again.
- ``task``: ``name``, ``classes``, ``domains`` (``name``, ``images``), ``notes``.
- ``protocol``: ``members``, ``steps``, ``data_seeds``, ``holdout``, ``validation``, ``batch_norm``,
  ``target_images``; anything else in it is printed too.
- ``targets``: names of the domains left out, each in its turn.
- ``rows``: one per strategy and target: ``label``, ``strategy``, ``combine``, ``equation``, ``target``,
  ``id_accuracy`` and ``ood_accuracy`` with their ``..._standard_error``, ``members``, ``runs``,
  ``inference_cost``, ``per_seed`` (``data_seed`` and the two accuracies).
- ``averages``: the same, without a target: the mean over targets.
- ``why``: one per target: ``members_curve`` (``members``, and the OOD accuracy of ``average`` and
  ``ensemble``), ``ratio_error`` and ``q_statistic`` (``id``, ``ood``; ``"infinite"`` is possible),
  ``distance_to_average``, ``distance_to_start``, ``start_norm``, ``average_minus_ensemble``,
  ``average_ensemble_disagreement``, ``greedy`` (``order``, ``kept``, and ``scores`` in that order).
- ``trust``: ``level`` (``warning`` or ``note``), ``target``, ``text``.
- ``runs``: ``target``, ``data_seed``, ``run``, ``status``, ``message``, the two accuracies, ``best_step``,
  ``configuration``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirepoix.report._numbers import (
    NOT_AVAILABLE,
    amount,
    cleaned,
    finite,
    mean,
    percent,
    points,
    ratio,
    setting,
)

__all__ = ["Cell", "Page", "Table", "accuracy_table", "curve_mean", "find_label", "gains", "labels", "page"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell; the best of its column is printed bold."""

    text: str
    best: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Columns by name; the first cell of a line is its name."""

    columns: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Page:
    """The five sections, as sentences and tables."""

    title: str
    version: str
    equation: str
    facts: tuple[tuple[str, str], ...]
    verdict: str
    warnings: int
    gain: str
    ood: Table
    id: Table
    has_errors: bool
    why: tuple[str, ...]
    evidence: Table
    terms: tuple[tuple[str, str], ...]
    trust: tuple[tuple[str, str, str], ...]
    caveats: tuple[str, ...]
    strategies: Table
    runs: Table
    shared_settings: str
    messages: tuple[str, ...]
    greedy: Table
    domains: Table
    notes: tuple[str, ...]
    protocol: tuple[tuple[str, str], ...]
    reproduce: tuple[str, ...]
    command: str


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    return Table(tuple(columns), tuple(tuple(Cell(text) for text in line) for line in lines))


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _listing(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " and " + names[-1]


def labels(report: Mapping[str, Any]) -> list[str]:
    """The names of the rows, each once, in the order given."""
    rows = _list(report.get("rows")) + _list(report.get("averages"))
    return list(dict.fromkeys(row["label"] for row in rows))


def find_label(report: Mapping[str, Any], kind: str) -> str | None:
    """The name of the row that is the ``mean`` member, the ``average`` of all, or their ``ensemble``.

    Known by how its name begins; else by how it combines, the last such row: WiSE and moving averages are
    averages too, and come before.
    """
    rows = _list(report.get("rows")) + _list(report.get("averages"))
    named = (row for row in rows if row["label"] == kind or row["label"].startswith(f"{kind} "))
    combined = (row for row in reversed(rows) if row.get("combine") == kind)
    row = next(named, None) or next(combined, None)
    return None if row is None else str(row["label"])


def _row(report: Mapping[str, Any], label: str, target: str | None) -> Mapping[str, Any]:
    """The row of one label on one target, or its mean over targets; empty if there is none."""
    rows = _list(report.get("averages" if target is None else "rows"))
    found = (r for r in rows if r["label"] == label and (target is None or r.get("target") == target))
    return next(found, {})


def _any_row(report: Mapping[str, Any], label: str) -> Mapping[str, Any]:
    rows = _list(report.get("averages")) + _list(report.get("rows"))
    return next((row for row in rows if row["label"] == label), {})


def _times(value: Any) -> str:
    number = finite(value)
    return NOT_AVAILABLE if number is None else f"{number:g}×"


def accuracy_table(report: Mapping[str, Any], side: str, *, costs: bool = False) -> Table:
    """Rows are strategies, columns are targets and their mean; the best of each column is marked.

    Two accuracies that print alike are both the best: the page does not rank what it does not show.

    Args:
        report: The cleaned report.
        side: ``id`` or ``ood``.
        costs: Also what a row costs, in trainings and in forward passes.
    """
    names = labels(report)
    targets: list[str | None] = list(_list(report.get("targets")))
    if len(targets) != 1:
        targets.append(None)
    columns = [["" for _ in names] for _ in targets]
    best = [[False for _ in names] for _ in targets]
    for c, target in enumerate(targets):
        rows = [_row(report, name, target) for name in names]
        values = [finite(row.get(f"{side}_accuracy")) for row in rows]
        top = percent(max((v for v in values if v is not None), default=None))
        for r, (row, value) in enumerate(zip(rows, values, strict=True)):
            columns[c][r] = percent(value, row.get(f"{side}_standard_error"))
            best[c][r] = value is not None and percent(value) == top
    lines = []
    for r, name in enumerate(names):
        line = [Cell(name), *(Cell(columns[c][r], best[c][r]) for c in range(len(targets)))]
        if costs:
            row = _any_row(report, name)
            runs = row.get("runs")
            line += [
                Cell(NOT_AVAILABLE if runs is None else str(runs)),
                Cell(_times(row.get("inference_cost"))),
            ]
        lines.append(tuple(line))
    heads = ["Strategy", *("Mean" if target is None else target for target in targets)]
    return Table(tuple([*heads, "Runs", "Inference"] if costs else heads), tuple(lines))


def gains(report: Mapping[str, Any], label: str, target: str) -> tuple[float | None, float | None]:
    """OOD accuracy of a row minus that of the mean member, and its standard error over data seeds.

    The error is that of the paired differences, one per data seed: both rows come from the same members, so
    their errors do not add up.
    """
    base = find_label(report, "mean")
    if base is None:
        return None, None
    rows = _row(report, label, target), _row(report, base, target)
    ours, theirs = (finite(row.get("ood_accuracy")) for row in rows)
    if ours is None or theirs is None:
        return None, None
    seeds = [
        {each.get("data_seed"): finite(each.get("ood_accuracy")) for each in _list(row.get("per_seed"))}
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
        variance = math.fsum((d - centre) ** 2 for d in differences) / (len(differences) - 1)
        error = math.sqrt(variance / len(differences))
    return ours - theirs, error


def curve_mean(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The curve of accuracy against members, mean over targets, where every target has a value."""
    curves = [_list(why.get("members_curve")) for why in _list(report.get("why"))]
    curves = [{point["members"]: point for point in curve} for curve in curves if curve]
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


def _gain_sentence(report: Mapping[str, Any]) -> str:
    label, base = find_label(report, "average"), find_label(report, "mean")
    if label is None or base is None:
        return ""
    found = [(gains(report, label, target)[0], target) for target in _list(report.get("targets"))]
    known = [(gain, target) for gain, target in found if gain is not None]
    if not known:
        return ""
    total = points(mean([gain for gain, _ in known]))
    if len(known) == 1:
        return f"Over the mean member, the average gains {total} points of OOD accuracy on {known[0][1]}."
    low, high = min(known), max(known)
    return (
        f"Over the mean member, the average gains {total} points of OOD accuracy, in the mean over "
        f"{len(known)} targets: from {points(low[0])} on {low[1]} to {points(high[0])} on {high[1]}."
    )


def _why_sentences(report: Mapping[str, Any]) -> tuple[str, ...]:
    sentences = []
    evidence = _list(report.get("why"))
    curve = [point for point in curve_mean(report) if point["average"] is not None]
    if len(curve) > 1:
        first, last = curve[0], curve[-1]
        sentences.append(
            f"With {amount(last['members'], 'member')} the average has {percent(last['average'])} % OOD accuracy, "
            f"with {first['members']} it has {percent(first['average'])} % "
            f"({points(last['average'] - first['average'])} points)"
            f"{_over(sum(bool(w.get('members_curve')) for w in evidence), len(evidence))}."
        )
    gaps = [
        (gap, apart)
        for why in evidence
        if (gap := finite(why.get("average_minus_ensemble"))) is not None
        and (apart := finite(why.get("average_ensemble_disagreement"))) is not None
    ]
    if gaps:
        gap, apart = (math.fsum(column) / len(gaps) for column in zip(*gaps, strict=True))
        sentences.append(
            f"Average minus ensemble is {points(gap)} points OOD, and the two disagree on {percent(apart)} % of "
            f"the images{_over(len(gaps), len(evidence))}."
        )
    ratios = [
        (inside, outside)
        for why in evidence
        if (inside := finite(_map(why.get("ratio_error")).get("id"))) is not None
        and (outside := finite(_map(why.get("ratio_error")).get("ood"))) is not None
    ]
    if ratios:
        inside, outside = (math.fsum(column) / len(ratios) for column in zip(*ratios, strict=True))
        sentences.append(
            f"The ratio-error is {ratio(outside)} OOD and {ratio(inside)} ID"
            f"{_over(len(ratios), len(evidence))}. Higher means that members fail on different images."
        )
    return tuple(sentences)


def _over(known: int, total: int) -> str:
    """What a mean is over, where that is not plain."""
    if total == 1:
        return ""
    count = f"{total}" if known == total else f"{known} of {total}"
    return f", in the mean over {count} targets"


def _evidence(report: Mapping[str, Any]) -> Table:
    lines = []
    for why in _list(report.get("why")):
        ratios, q = _map(why.get("ratio_error")), _map(why.get("q_statistic"))
        inner = mean([finite(d) for d in _list(why.get("distance_to_average"))])
        outer = mean([finite(d) for d in _list(why.get("distance_to_start"))])
        norm = finite(why.get("start_norm"))
        lines.append(
            [
                str(why["target"]),
                ratio(ratios.get("id")),
                ratio(ratios.get("ood")),
                ratio(q.get("id")),
                ratio(q.get("ood")),
                ratio(inner / outer if inner is not None and outer else None),
                ratio(outer / norm if outer is not None and norm else None),
                points(why.get("average_minus_ensemble")),
                percent(why.get("average_ensemble_disagreement")),
            ]
        )
    heads = ["Target", "Ratio-error ID", "Ratio-error OOD", "Q ID", "Q OOD"]
    heads += ["Spread of the members", "Length of the fine-tuning", "Average − ensemble", "Disagreement"]
    return _table(heads, lines)


def _terms(report: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    members = finite(_map(report.get("protocol")).get("members"))
    unrelated = "." if not members or members < 2 else (
        f"; {math.sqrt(1 - 1 / members):.2f}: {members:g} unrelated directions."
    )  # fmt: skip
    infinite = any(
        value in ("infinite", math.inf)
        for why in _list(report.get("why"))
        for value in _map(why.get("ratio_error")).values()
    )
    shared = " ∞: no image is wrong for both members of some pair." if infinite else ""
    return (
        (
            "Ratio-error",
            "How often two members fail apart, over how often they fail together. Higher means that members "
            "fail on different images, which an average can mend." + shared,
        ),
        (
            "Q",
            "Whether members are right on the same images. 1: the same images; 0: independently of each other. "
            "Lower is more diverse.",
        ),
        (
            "Spread of the members",
            "Mean distance from a member to their average, over the mean distance from the start to a member. "
            "0: copies" + unrelated,
        ),
        (
            "Length of the fine-tuning",
            "Mean distance from the start to a member, over the norm of the start. Small means that members "
            "stayed near the start, where averaging weights is safe.",
        ),
        (
            "Average − ensemble",
            "OOD accuracy of averaged weights minus that of averaged predictions, in points. Near 0, the "
            "average does what the ensemble does, at the cost of one network.",
        ),
        ("Disagreement", "Images on which average and ensemble predict different classes, in percent."),
    )


def _facts(report: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    task, protocol = _map(report.get("task")), _map(report.get("protocol"))
    targets, runs = _list(report.get("targets")), _list(report.get("runs"))
    domains, seeds = _list(task.get("domains")), _list(protocol.get("data_seeds"))
    facts = []
    if task:
        images = sum(domain.get("images") or 0 for domain in domains)
        sizes = [
            amount(len(_list(task.get("classes"))), "class", "classes"),
            amount(len(domains), "domain"),
            amount(images, "image"),
        ]
        facts.append(("Task", f"{task.get('name', '')}: {', '.join(sizes)}."))
    if targets:
        facts.append(("Targets", f"{_listing(targets)}, each left out of training in its turn."))
    facts.append(("Start", f"{report.get('start') or NOT_AVAILABLE}"))
    members = protocol.get("members")
    if members is not None:
        steps = protocol.get("steps")
        length = f", {amount(steps, 'step')} each" if isinstance(steps, int) else ""
        facts.append(("Members", f"{amount(members, 'fine-tuning')} from this start{length}."))
    if runs:
        statuses = [run.get("status") for run in runs]
        ends = ", ".join(f"{statuses.count(status):,} {status}" for status in dict.fromkeys(statuses))
        text = f"{amount(len(runs), 'run')} over {amount(len(targets), 'target')}"
        text += f" and {amount(len(seeds), 'data seed')}" if seeds else ""
        facts.append(
            ("Cost of training", f"{text}; {'all finished' if set(statuses) == {'finished'} else ends}.")
        )
    costs = []
    for kind in ("average", "ensemble"):
        label = find_label(report, kind)
        cost = None if label is None else finite(_any_row(report, label).get("inference_cost"))
        if cost is not None:
            costs.append(f"the {kind} runs {'one network' if cost == 1 else f'{cost:g} networks'} per image")
    if costs:
        text = "; ".join(costs)
        facts.append(("Cost of inference", f"{text[0].upper()}{text[1:]}."))
    return tuple(facts)


def _caveats(report: Mapping[str, Any]) -> tuple[str, ...]:
    protocol = _map(report.get("protocol"))
    caveats = []
    if len(_list(protocol.get("data_seeds"))) == 1:
        caveats.append(
            "There is one data seed, hence no standard error: a difference of a point or two may be luck."
        )
    targets = set(_list(report.get("targets")))
    sizes = [
        (domain["images"], domain["name"])
        for domain in _list(_map(report.get("task")).get("domains"))
        if domain.get("images") and domain.get("name") in targets
    ]
    if sizes:
        images, name = min(sizes)
        caveats.append(
            f"The smallest target, {name}, has {amount(images, 'image')}: one image is "
            f"{100 / images:.2g} points there."
        )
    said = {
        "validation": "ID validation, which selects steps and members",
        "target_images": "OOD accuracy is measured on",
        "batch_norm": "Batch norm",
    }
    caveats += [f"{words}: {protocol[key]}." for key, words in said.items() if protocol.get(key)]
    return tuple(caveats)


_COLUMNS = {"target": "Target", "data_seed": "Data seed", "run": "Run", "status": "Status"}


def _runs(report: Mapping[str, Any]) -> tuple[Table, str, tuple[str, ...]]:
    """The runs, what all of them share, and what the unfinished ones said."""
    runs = _list(report.get("runs"))
    settings = [_map(run.get("configuration")) for run in runs]
    fields = list(dict.fromkeys(field for each in settings for field in each))
    same = [f for f in fields if len({setting(each.get(f)) for each in settings}) == 1 and len(runs) > 1]
    varying = [field for field in fields if field not in same]
    heads = [*_COLUMNS.values(), "ID", "OOD", "Best step", *(field.replace("_", " ") for field in varying)]
    lines = [
        [
            *(setting(run.get(key)) for key in _COLUMNS),
            percent(run.get("id_accuracy")),
            percent(run.get("ood_accuracy")),
            setting(run.get("best_step")),
            *(setting(each.get(field)) for field in varying),
        ]
        for run, each in zip(runs, settings, strict=True)
    ]
    shared = ", ".join(f"{field.replace('_', ' ')} {setting(settings[0].get(field))}" for field in same)
    messages = tuple(
        f"{run.get('target')}, data seed {setting(run.get('data_seed'))}, run {setting(run.get('run'))}: "
        f"{run['message']}"
        for run in runs
        if run.get("message")
    )
    return _table(heads, lines), shared, messages


def _greedy(report: Mapping[str, Any]) -> Table:
    lines = []
    for why in _list(report.get("why")):
        trace = _map(why.get("greedy"))
        order, scores = _list(trace.get("order")), _list(trace.get("scores"))
        kept = _list(trace.get("kept"))
        steps = [
            f"run {member} {'kept' if member in kept else 'left out'}"
            + (f" ({percent(scores[i])})" if i < len(scores) else "")
            for i, member in enumerate(order)
        ]
        if steps:
            lines.append([str(why["target"]), str(len(kept)), ", ".join(steps)])
    return _table(["Target", "Kept", "Candidates in the order tried, with ID accuracy of the soup"], lines)


def _protocol(report: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    protocol = dict(_map(report.get("protocol")))
    if finite(protocol.get("holdout")) is not None:
        protocol["holdout"] = f"{percent(protocol['holdout'])} %"
    facts = [("Network", str(report.get("network") or NOT_AVAILABLE))]
    for key, value in protocol.items():
        text = ", ".join(setting(v) for v in value) if isinstance(value, list) else setting(value)
        facts.append((key.replace("_", " ").capitalize(), text))
    return tuple(facts)


def page(report: Mapping[str, Any]) -> Page:
    """All that the page says, from the dict that ``report.json`` holds."""
    report = cleaned(dict(report))
    task = _map(report.get("task"))
    targets = _list(report.get("targets"))
    trust = [
        (item["level"], item.get("target") or "", item["text"])
        for level in ("warning", "note")
        for item in _list(report.get("trust"))
        if item["level"] == level
    ]
    runs, shared, messages = _runs(report)
    rows = _list(report.get("rows")) + _list(report.get("averages"))
    start = report.get("start") or NOT_AVAILABLE
    return Page(
        title=str(report.get("name") or "report"),
        version=str(report.get("mirepoix") or ""),
        equation=str(report.get("equation") or ""),
        facts=_facts(report),
        verdict=str(report.get("verdict") or ""),
        warnings=sum(level == "warning" for level, _, _ in trust),
        gain=_gain_sentence(report),
        ood=accuracy_table(report, "ood", costs=True),
        id=accuracy_table(report, "id"),
        has_errors=any(
            finite(row.get(f"{s}_standard_error")) is not None for row in rows for s in ("id", "ood")
        ),
        why=_why_sentences(report),
        evidence=_evidence(report),
        terms=_terms(report),
        trust=tuple(trust),
        caveats=_caveats(report),
        strategies=_table(
            ["Strategy", "Equation", *targets],
            [
                [
                    name,
                    str(_any_row(report, name).get("equation") or NOT_AVAILABLE),
                    *(setting(_row(report, name, target).get("members")) for target in targets),
                ]
                for name in labels(report)
            ],
        ),
        runs=runs,
        shared_settings=shared,
        messages=messages,
        greedy=_greedy(report),
        domains=_table(
            ["Domain", "Images", "Role"],
            [
                [d["name"], setting(d.get("images")), "target" if d["name"] in targets else "source only"]
                for d in _list(task.get("domains"))
            ],
        ),
        notes=tuple(_list(task.get("notes"))),
        protocol=_protocol(report),
        reproduce=(
            f"Made by mirepoix {report.get('mirepoix')}, from this start: {start}.",
            "Every random draw comes from the data seeds of the protocol and the seed of each run, listed above.",
            "report.json in the same folder holds every number of this page; mirepoix report FOLDER makes the "
            "page again.",
        ),
        command=str(report.get("command") or ""),
    )
