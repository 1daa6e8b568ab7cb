"""The content of the page, ready to print; markdown, HTML and the terminal only dress it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirepoix.report._numbers import NOT_AVAILABLE, amount, finite, mean, percent, points, ratio, setting
from mirepoix.report._result import (
    any_row,
    as_list,
    as_map,
    curve_mean,
    find_label,
    gains,
    labels,
    prepared,
    row_of,
)
from mirepoix.report._tables import (
    Table,
    accuracy_table,
    evidence_table,
    greedy_table,
    runs_table,
    table_of,
)

__all__ = ["Page", "page"]


@dataclass(frozen=True, slots=True)
class Page:
    """The five sections, as sentences and tables."""

    title: str
    name: str
    version: str
    equation: str
    facts: tuple[tuple[str, str], ...]
    verdict: str
    warnings: int
    gain: str
    ood: Table
    id: Table
    has_errors: bool
    several_seeds: bool
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


def _listing(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " and " + names[-1]


def _gain_sentence(report: Mapping[str, Any]) -> str:
    label, base = find_label(report, "average"), find_label(report, "mean")
    if label is None or base is None:
        return ""
    found = [(gains(report, label, target)[0], target) for target in as_list(report.get("targets"))]
    known = [(gain, target) for gain, target in found if gain is not None]
    if not known:
        return ""
    total = points(mean([gain for gain, _ in known]))
    if len(known) == 1:
        return f"Against the mean member, the average moves OOD accuracy by {total} points on {known[0][1]}."
    low, high = min(known), max(known)
    return (
        f"Against the mean member, the average moves OOD accuracy by {total} points, in the mean over "
        f"{len(known)} targets: from {points(low[0])} on {low[1]} to {points(high[0])} on {high[1]}."
    )


def _why_sentences(report: Mapping[str, Any]) -> tuple[str, ...]:
    sentences = []
    evidence = as_list(report.get("why"))
    curve = [point for point in curve_mean(report) if point["average"] is not None]
    if len(curve) > 1:
        first, last = curve[0], curve[-1]
        sentences.append(
            f"With {amount(last['members'], 'member')} the average has {percent(last['average'])} % OOD "
            f"accuracy, with {first['members']} it has {percent(first['average'])} % "
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
            f"Average minus ensemble is {points(gap)} points OOD, and the two disagree on {percent(apart)} % "
            f"of the images{_over(len(gaps), len(evidence))}."
        )
    ratios = [
        (inside, outside)
        for why in evidence
        if (inside := finite(as_map(why.get("ratio_error")).get("id"))) is not None
        and (outside := finite(as_map(why.get("ratio_error")).get("ood"))) is not None
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


def _terms(report: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    members = finite(as_map(report.get("protocol")).get("members"))
    unrelated = "."
    if members and members > 1:
        # Orthogonal steps of length 1: their mean has length 1/sqrt(M), each is sqrt(1 - 1/M) from it.
        unrelated = f"; {math.sqrt(1 - 1 / members):.2f}: {members:g} unrelated directions."
    infinite = any(
        value in ("infinite", math.inf)
        for why in as_list(report.get("why"))
        for value in why["ratio_error"].values()
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
            "Whether members are right on the same images. 1: on the same; 0: independently of each other; "
            "lower is more diverse.",
        ),
        (
            "Spread of the members",
            "Mean distance from a member to their average, over the mean distance from the start to a "
            "member. 0: copies" + unrelated,
        ),
        (
            "Length of the fine-tuning",
            "Mean distance from the start to a member, over the norm of the start. Small means that members "
            "stayed near the start, where averaging weights is safest.",
        ),
        (
            "Average − ensemble",
            "OOD accuracy of averaged weights minus that of averaged predictions, in points. Near 0, the "
            "average does what the ensemble does, at the cost of one network.",
        ),
        ("Disagreement", "Images on which average and ensemble predict different classes, in percent."),
    )


def _facts(report: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    task, protocol = as_map(report.get("task")), as_map(report.get("protocol"))
    targets, runs = as_list(report.get("targets")), as_list(report.get("runs"))
    domains, seeds = as_list(task.get("domains")), as_list(protocol.get("data_seeds"))
    facts = []
    if task:
        images = sum(domain.get("images") or 0 for domain in domains)
        sizes = [
            amount(len(as_list(task.get("classes"))), "class", "classes"),
            amount(len(domains), "domain"),
            amount(images, "image"),
        ]
        facts.append(("Task", f"{task.get('name', '')}: {', '.join(sizes)}."))
    if targets:
        facts.append(("Targets", f"{_listing(targets)}, each left out of training in its turn."))
    facts.append(("Start", str(report.get("start") or NOT_AVAILABLE)))
    if report.get("source"):
        facts.append(("Source", str(report["source"])))
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
        cost = None if label is None else finite(any_row(report, label).get("inference_cost"))
        if cost is not None:
            costs.append(f"the {kind} runs {'one network' if cost == 1 else f'{cost:g} networks'} per image")
    if costs:
        text = "; ".join(costs)
        facts.append(("Cost of inference", f"{text[0].upper()}{text[1:]}."))
    return tuple(facts)


def _caveats(report: Mapping[str, Any]) -> tuple[str, ...]:
    protocol = as_map(report.get("protocol"))
    caveats = []
    targets = set(as_list(report.get("targets")))
    sizes = [
        (domain["images"], domain["name"])
        for domain in as_list(as_map(report.get("task")).get("domains"))
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


def _protocol(report: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    protocol = dict(as_map(report.get("protocol")))
    if finite(protocol.get("holdout")) is not None:
        protocol["holdout"] = f"{percent(protocol['holdout'])} %"
    facts = [("Network", str(report.get("network") or NOT_AVAILABLE))]
    for key, value in protocol.items():
        text = ", ".join(setting(v) for v in value) if isinstance(value, list) else setting(value)
        facts.append((key.replace("_", " ").capitalize(), text))
    return tuple(facts)


def page(report: Mapping[str, Any]) -> Page:
    """All that the page says, from the dict that ``report.json`` holds."""
    report = prepared(report)
    task = as_map(report.get("task"))
    targets = as_list(report.get("targets"))
    trust = [
        (item["level"], item.get("target") or "", item["text"])
        for item in sorted(as_list(report.get("trust")), key=lambda item: item["level"] != "warning")
    ]
    runs, shared, messages = runs_table(report)
    rows = as_list(report.get("rows")) + as_list(report.get("averages"))
    start = report.get("start") or NOT_AVAILABLE
    return Page(
        title=str(report.get("title") or report.get("name") or "report"),
        name=str(report.get("name") or ""),
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
        several_seeds=len(as_list(as_map(report.get("protocol")).get("data_seeds"))) > 1,
        why=_why_sentences(report),
        evidence=evidence_table(report),
        terms=_terms(report),
        trust=tuple(trust),
        caveats=_caveats(report),
        strategies=table_of(
            ["Strategy", "Equation", *targets],
            [
                [
                    name,
                    str(any_row(report, name).get("equation") or NOT_AVAILABLE),
                    *(setting(row_of(report, name, target).get("members")) for target in targets),
                ]
                for name in labels(report)
            ],
        ),
        runs=runs,
        shared_settings=shared,
        messages=messages,
        greedy=greedy_table(report),
        domains=table_of(
            ["Domain", "Images", "Role"],
            [
                [d["name"], setting(d.get("images")), "target" if d["name"] in targets else "source only"]
                for d in as_list(task.get("domains"))
            ],
        ),
        notes=tuple(as_list(task.get("notes"))),
        protocol=_protocol(report),
        reproduce=(
            f"Made by mirepoix {report.get('mirepoix')}, from this start: {start}.",
            "All that is random comes from the data seeds of the protocol and the seed of each run.",
            "report.json in the same folder holds every number of this page; mirepoix report FOLDER makes "
            "the page again.",
        ),
        command=str(report.get("command") or ""),
    )
