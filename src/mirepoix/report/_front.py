"""The page of a front of rewarded soups: what it reaches, whether experts are connected, and which weights to take.

The head of the page with its style and its macros is that of the report of a job (``template.html``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirepoix.report._comparison import _named
from mirepoix.report._figures import Plot
from mirepoix.report._front_figures import (
    along_plots,
    digits_of,
    front_plots,
    short,
    spider_plots,
    trained,
)
from mirepoix.report._html import page_template
from mirepoix.report._markdown import _code, _items, _plain, _table, _terms
from mirepoix.report._numbers import NOT_AVAILABLE, amount, cleaned, decimal, decimals, finite
from mirepoix.report._result import as_list, as_map
from mirepoix.report._tables import Cell, Table, table_of

__all__ = ["front_texts", "front_volumes"]

Terms = tuple[tuple[str, str], ...]

_SECTIONS = {
    "what": "What it is",
    "front": "The front",
    "connectivity": "Are the experts connected?",
    "along": "Every reward along lambda",
    "spider": "All rewards at once",
    "samples": "Samples",
    "choice": "Which weights?",
    "trust": "When not to trust it",
    "details": "Details",
}
_LONG = 40  # lines from which a table is folded
_SHOWN = 3  # prompts that are not folded
_NAME = 24  # characters of a name in a table
_IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True, slots=True)
class _Listing:
    """A table with its title, folded away unless it is short and comes first."""

    title: str
    table: Table
    folded: bool


@dataclass(frozen=True, slots=True)
class _Sentences:
    """What one trial says, line by line."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Answer:
    """A text, an image, or neither where there is none; ``alt`` is what the image shows."""

    label: str
    text: str | None
    image: str | None
    alt: str


@dataclass(frozen=True, slots=True)
class _Sample:
    """A prompt and what every column makes of it."""

    prompt: _Answer
    answers: tuple[_Answer, ...]


@dataclass(frozen=True, slots=True)
class _Page:
    """All that the page says; what is empty is left out."""

    title: str
    name: str
    version: str
    heads: Mapping[str, str]
    facts: Terms
    verdict: str
    volumes: Table
    volumes_note: str
    volume_terms: Terms
    every_trial: Table
    differences: tuple[str, ...]
    points: tuple[_Listing, ...]
    points_note: str
    connectivity: str
    margins: Table
    verdicts: tuple[_Sentences, ...]
    curves: _Listing
    curves_verdict: str
    along_note: str
    areas: Table
    samples: tuple[_Sample, ...]
    choice: Terms
    choice_notes: tuple[str, ...]
    trust: tuple[tuple[str, str], ...]
    protocol: Terms
    environment: Terms
    command: str


def front_texts(report: Mapping[str, Any]) -> dict[str, str]:
    """The page in every form: a text for each file, the page in HTML last.

    Args:
        report: Of the kind ``front``: ``name``, ``title``, ``source``, ``mirepoix``, ``facts``, ``experts``,
            ``rewards``, ``trained``, ``trials`` (each with ``name``, ``fronts``, ``connectivity``, ``volumes``,
            ``box``, ``difference``, ``curves``, ``spider``), ``summary``, ``choice``, ``samples``, ``warnings``,
            ``verdict``, ``trust``, ``protocol``, ``environment``, ``command``. What is null or missing is left out.
    """
    report = _prepared(report)
    front, along, spider = front_plots(report), along_plots(report), spider_plots(report)
    page = _page(report, drawn=bool(front), along=bool(along), spider=bool(spider))
    texts = {"report.md": _markdown(page, report, front, along, spider)}
    for plot in (*front, *along.values(), *spider):
        texts[f"figures/{plot.name}.svg"] = plot.svg(inline=False)
    texts["report.html"] = _html(page, report, front, along, spider)
    return texts


def front_volumes(report: Mapping[str, Any]) -> Table:
    """A line per system: its hypervolume, the area over its front, and what it costs; the best are marked.

    Args:
        report: As in `front_texts`, cleaned.
    """
    rows = as_list(report.get("summary"))
    found: list[tuple[str, list[tuple[str, bool]]]] = []
    for head, key, sign in (("Hypervolume", "hypervolume", 1), ("Area over the front", "area", -1)):
        known = [value for row in rows if (value := finite(as_map(row.get(key)).get("mean"))) is not None]
        digits = max(3, decimals(known))
        best = decimal(max(known, key=lambda v: sign * v), digits=digits) if len(known) > 1 else None
        cells = []
        for row in rows:
            numbers = as_map(row.get(key))
            alone = decimal(numbers.get("mean"), digits=digits)
            cells.append((decimal(numbers.get("mean"), numbers.get("error"), digits=digits), alone == best))
        if known or key == "hypervolume":
            found.append((head, cells))
    points = [_counted(report, str(row.get("label"))) for row in rows]
    for head, texts in (
        ("Points that count", points),
        ("Trainings", [_whole(row.get("trainings")) for row in rows]),
        ("Seconds", [_whole(row.get("seconds")) for row in rows]),
    ):
        if any(text != NOT_AVAILABLE for text in texts):
            found.append((head, [(text, False) for text in texts]))
    lines = [
        (Cell(str(row.get("label"))), *(Cell(*cells[i]) for _, cells in found)) for i, row in enumerate(rows)
    ]
    return Table(("System", *(head for head, _ in found)), tuple(lines))


# Facts.


def _prepared(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with printable texts, those of several lines as lists of them."""
    result = dict(report)
    result["trials"] = []
    for trial in as_list(report.get("trials")):
        found = dict(trial)
        if trial.get("connectivity"):
            connectivity = dict(trial["connectivity"])
            found["connectivity"] = {**connectivity, "verdict": _split(connectivity.get("verdict"))}
        result["trials"].append(found)
    samples = as_map(report.get("samples"))
    result["samples"] = {
        "items": [{**item, "prompt": _split(item.get("prompt"))} for item in as_list(samples.get("items"))],
        "columns": [
            {
                "label": column.get("label"),
                "answers": [
                    dict(answer) if isinstance(answer, Mapping) else _split(answer)
                    for answer in as_list(column.get("answers"))
                ],
            }
            for column in as_list(samples.get("columns"))
        ],
    }
    prepared: dict[str, Any] = cleaned(result)
    return prepared


def _split(text: Any) -> list[str] | None:
    return None if text is None else str(text).splitlines()


def _page(report: Mapping[str, Any], *, drawn: bool, along: bool, spider: bool) -> _Page:
    trials = as_list(report.get("trials"))
    connectivity, margins, verdicts = _connectivity(report)
    curves, curves_verdict = _curves(report)
    areas = _areas(trials)
    volumes, points, samples = front_volumes(report), _points(report), _samples(report)
    choice = as_map(report.get("choice"))
    trust = _trust(report)
    protocol, environment = (_named(as_map(report.get(key))) for key in ("protocol", "environment"))
    verdict, command = str(report.get("verdict") or ""), str(report.get("command") or "")
    content = {
        "what": True,
        "front": verdict or drawn or volumes.lines or points,
        "connectivity": connectivity,
        "along": along or curves.table.lines,
        "spider": spider,
        "samples": samples,
        "choice": choice,
        "trust": True,
        "details": protocol or environment or command,
    }
    present = [key for key in _SECTIONS if content[key]]
    several = len(trials) > 1
    spread = f"Mean ± standard error over {len(trials)} trials." if several else "One trial."
    rows = [
        row
        for trial in trials
        for front in as_list(trial.get("fronts"))
        for row in as_list(front.get("rows"))
    ]
    errors = any(as_map(row.get("standard_errors")) for row in rows)
    morl = any(front.get("role") == "morl" for trial in trials for front in as_list(trial.get("fronts")))
    return _Page(
        title=str(report.get("title") or report.get("name") or "rewarded soup"),
        name=str(report.get("name") or ""),
        version=str(report.get("mirepoix") or ""),
        heads={key: f"{number}. {_SECTIONS[key]}" for number, key in enumerate(present, 1)},
        facts=_facts(report),
        verdict=verdict,
        volumes=volumes,
        volumes_note=f"{spread} The best of a column is bold.",
        volume_terms=_volume_terms(report),
        every_trial=_every_trial(report) if several else table_of([], []),
        differences=_differences(report),
        points=points,
        points_note=f"Mean rewards{' ± one standard error over items' if errors else ''}; the best of a column is "
        f"bold. Dominated: by a point of the same system{' and trial' if several else ''}."
        + (" μ is the preference that a policy of MORL was trained for." if morl else ""),
        connectivity=connectivity,
        margins=margins,
        verdicts=verdicts,
        curves=curves,
        curves_verdict=curves_verdict,
        along_note=_along_note(report) if along else "",
        areas=areas,
        samples=samples,
        choice=_choice(report),
        choice_notes=tuple(map(str, as_list(choice.get("notes")))),
        trust=trust,
        protocol=protocol,
        environment=environment,
        command=command,
    )


def _facts(report: Mapping[str, Any]) -> Terms:
    given = [(str(term), str(text)) for term, text in as_list(report.get("facts"))]
    names = trained(report)
    rewards = [
        f"{reward} ({'trained on' if reward in names else 'only measured'})"
        for reward in map(str, as_list(report.get("rewards")))
    ]
    own = [
        ("Experts", ", ".join(map(str, as_list(report.get("experts"))))),
        ("Rewards", ", ".join(rewards)),
        ("Source", str(report.get("source") or "")),
    ]
    said = {term.lower() for term, _ in given}
    return (*given, *((term, text) for term, text in own if text and term.lower() not in said))


def _trust(report: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What was warned of, then what is to be kept in mind; nothing twice."""
    found = [("warning", str(text)) for text in as_list(report.get("warnings"))]
    found += [(str(level), str(text)) for level, text in as_list(report.get("trust"))]
    return tuple({text: (level, text) for level, text in reversed(found)}.values())[::-1]


def _choice(report: Mapping[str, Any]) -> Terms:
    choice, digits = as_map(report.get("choice")), digits_of(report)
    if not choice:
        return ()
    exported = choice.get("exported")
    found = [
        ("Preference", _shares(choice.get("preference"))),
        ("Coefficients", _shares(choice.get("coefficients"))),
        ("Chosen by", str(choice.get("method") or "")),
        ("Expected rewards", _rewards(choice.get("expected"), digits)),
        ("Weights", str(exported) if exported else "not exported"),
    ]
    return tuple((term, text) for term, text in found if text)


def _shares(numbers: Any, length: int = 10_000) -> str:
    """``helpful 0.3, short 0.7``; what has no share is left out."""
    known = {
        str(name): value for name, share in as_map(numbers).items() if (value := finite(share)) is not None
    }
    parts = [f"{short(name, length)} {_share(value)}" for name, value in known.items() if value]
    return ", ".join(parts) or ("all 0" if known else "")


def _share(value: Any) -> str:
    number = finite(value)
    return "–" if number is None else f"{number:.3g}".replace("-", "−")


def _rewards(numbers: Any, digits: Mapping[str, int]) -> str:
    return ", ".join(
        f"{name} {decimal(value, digits=digits.get(name, 3))}" for name, value in as_map(numbers).items()
    )


def _signed(value: Any) -> str:
    text = decimal(value, digits=4)
    return f"+{text}" if (finite(value) or 0.0) > 0 else text


def _whole(value: Any) -> str:
    number = finite(value)
    return NOT_AVAILABLE if number is None else f"{number:,.0f}" if number >= 10 else f"{number:.3g}"


def _yes(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else NOT_AVAILABLE


# The front.


def _counted(report: Mapping[str, Any], label: str) -> str:
    """``9 of 11``; of several trials, from the fewest to the most."""
    found = [
        volume
        for trial in as_list(report.get("trials"))
        for volume in as_list(trial.get("volumes"))
        if volume.get("label") == label
    ]
    spans = []
    for key in ("used", "points"):
        known = [int(value) for volume in found if (value := finite(volume.get(key))) is not None]
        if not known:
            return NOT_AVAILABLE
        low, high = min(known), max(known)
        spans.append(f"{low:,}" if low == high else f"{low:,}–{high:,}")
    return f"{spans[0]} of {spans[1]}"


def _volume_terms(report: Mapping[str, Any]) -> Terms:
    trials, digits = as_list(report.get("trials")), digits_of(report)
    boxes = [(str(trial.get("name")), as_map(trial.get("box"))) for trial in trials if trial.get("box")]
    if not boxes and not as_list(report.get("summary")):
        return ()
    lines = "; the front joins its points by straight lines" if len(trained(report)) == 2 else ""
    found = [
        (
            "Hypervolume",
            "Share of the box above the nadir that the points dominate, with rewards scaled to [0, 1] by the common "
            "ideal and nadir. Higher is better.",
        ),
        (
            "Area over the front",
            f"Share of the same box between the front and the ideal, which no point reaches{lines}. Lower is better.",
        ),
        ("Points that count", "Those that no other dominates and that are above the nadir in all rewards."),
    ]
    flat = []
    for name, box in boxes:
        where = f", {name}" if len(trials) > 1 else ""
        ideal, nadir = as_map(box.get("ideal")), as_map(box.get("nadir"))
        text = (
            f"The best and the worst of every reward: {_rewards(ideal, digits)}; {_rewards(nadir, digits)}."
        )
        found.append((f"Ideal and nadir{where}", text))
        flat += [
            reward for reward, top in ideal.items() if finite(top) is not None and top == nadir.get(reward)
        ]
    for reward in dict.fromkeys(flat):
        found.append(("Without extent", f"All points have the same {reward}, which cannot be scaled."))
    return tuple(found)


def _every_trial(report: Mapping[str, Any]) -> Table:
    """The hypervolume of each system in each trial."""
    trials = as_list(report.get("trials"))
    found = [
        {str(volume.get("label")): volume.get("hypervolume") for volume in as_list(trial.get("volumes"))}
        for trial in trials
    ]
    digits = max(3, decimals(value for volumes in found for value in volumes.values()))
    labels = list(dict.fromkeys(label for volumes in found for label in volumes))
    return table_of(
        ["System", *(str(trial.get("name")) for trial in trials)] if labels else [],
        [[label, *(decimal(volumes.get(label), digits=digits) for volumes in found)] for label in labels],
    )


def _differences(report: Mapping[str, Any]) -> tuple[str, ...]:
    trials = as_list(report.get("trials"))
    sentences = []
    for trial in trials:
        found = as_map(trial.get("difference"))
        volume = as_map(found.get("hypervolume"))
        if finite(volume.get("mean")) is None:
            continue
        values = [volume.get(key) for key in ("mean", "low", "high")]
        mean, low, high = (_signed(value) for value in values)
        text = f"{trial.get('name')}: " if len(trials) > 1 else ""
        text += f"Hypervolume, {str(found.get('label')).replace(' - ', ' − ')}: {mean}"
        if NOT_AVAILABLE not in (low, high):
            text += f" (95 % interval {low} to {high})"
        text += "."
        dominated = [finite(value) for value in as_list(found.get("dominated"))]
        if len(dominated) == 2 and dominated[0] is not None and dominated[1] is not None:
            text += (
                f" MORL dominates {100 * dominated[0]:.0f} % of the soups; soups dominate {100 * dominated[1]:.0f} % "
                "of the points of MORL."
            )
        sentences.append(text)
    return tuple(sentences)


def _points(report: Mapping[str, Any]) -> tuple[_Listing, ...]:
    """A table for each system with a line per point, that of the soup first."""
    trials = as_list(report.get("trials"))
    systems: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    roles: dict[str, Any] = {}
    for trial in trials:
        for front in as_list(trial.get("fronts")):
            label = str(front.get("label"))
            roles.setdefault(label, front.get("role"))
            systems.setdefault(label, []).extend(
                (str(trial.get("name")), row) for row in as_list(front.get("rows"))
            )
    found: list[_Listing] = []
    for label, rows in systems.items():
        if rows:
            table = _point_table(report, label, roles[label], rows, several=len(trials) > 1)
            folded = bool(found) or len(rows) > _LONG
            found.append(
                _Listing(f"{label[:1].upper()}{label[1:]}: {amount(len(rows), 'point')}", table, folded)
            )
    return tuple(found)


def _point_table(
    report: Mapping[str, Any],
    label: str,
    role: Any,
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    several: bool,
) -> Table:
    digits = digits_of(report)
    rewards = list(digits)
    names = list(dict.fromkeys(str(name) for _, row in rows for name in as_map(row.get("coefficients"))))
    likely = any(finite(row.get("nondominated_probability")) is not None for _, row in rows)
    best = {}
    for reward in rewards:
        values = [finite(as_map(row.get("means")).get(reward)) for _, row in rows]
        known = [value for value in values if value is not None]
        best[reward] = decimal(max(known), digits=digits[reward]) if len(known) > 1 else None
    symbol = "μ" if role == "morl" else "λ"
    heads = [f"{symbol} {short(name, _NAME)}" for name in names] or ["System"]
    heads += ["Trial"] * several + [short(reward, _NAME) for reward in rewards] + ["Dominated"]
    heads += ["Probability undominated"] * likely
    lines = []
    for trial, row in rows:
        coefficients, means = as_map(row.get("coefficients")), as_map(row.get("means"))
        errors = as_map(row.get("standard_errors"))
        line = [Cell(_share(coefficients.get(name))) for name in names] or [Cell(label)]
        line += [Cell(trial)] * several
        for reward in rewards:
            alone = decimal(means.get(reward), digits=digits[reward])
            text = decimal(means.get(reward), errors.get(reward), digits=digits[reward])
            line.append(Cell(text, alone == best[reward]))
        kept = row.get("nondominated")
        line.append(Cell(("–" if kept else "dominated") if isinstance(kept, bool) else NOT_AVAILABLE))
        line += [Cell(decimal(row.get("nondominated_probability")))] * likely
        lines.append(tuple(line))
    return Table(tuple(heads), tuple(lines))


# Connectivity.


def _connectivity(report: Mapping[str, Any]) -> tuple[str, Table, tuple[_Sentences, ...]]:
    """In how many trials it holds, the margins, and the sentences of each trial."""
    trials, digits = as_list(report.get("trials")), digits_of(report)
    found = [
        (str(trial.get("name")), as_map(trial["connectivity"]))
        for trial in trials
        if trial.get("connectivity")
    ]
    if not found:
        return "", table_of([], []), ()
    several = len(trials) > 1
    lines = []
    for name, each in found:
        for margin in as_list(each.get("rewards")):
            reward = str(margin.get("reward"))
            numbers = [
                decimal(margin.get(key), digits=digits.get(reward, 3) + 1)
                for key in ("minimum", "mean", "largest", "tolerance")
            ]
            place = _shares(margin.get("at"), _NAME)
            lines.append(
                [reward, *[name] * several, numbers[0], place, *numbers[1:], _yes(margin.get("holds"))]
            )
    heads = [
        "Reward",
        *["Trial"] * several,
        "Smallest margin",
        "at λ",
        "Mean",
        "Largest",
        "Tolerance",
        "Holds",
    ]
    if several:
        holds = sum(each.get("holds") is True for _, each in found)
        above = [each["above_chord"] for _, each in found if isinstance(each.get("above_chord"), bool)]
        summary = f"Linear mode connectivity holds in {holds} of {amount(len(found), 'trial')}."
        if above:
            summary += f" The front is on or above the chord in {sum(above)} of {len(above)}."
    else:
        summary = {"yes": "Yes, as far as was measured.", "no": "No."}.get(
            _yes(found[0][1].get("holds")), "Not known."
        )
    verdicts = tuple(_Sentences(name, tuple(as_list(each.get("verdict")))) for name, each in found)
    return summary, table_of(heads, lines), tuple(verdict for verdict in verdicts if verdict.lines)


# Along lambda.


def _along_note(report: Mapping[str, Any]) -> str:
    experts, trials = as_list(report.get("experts")), as_list(report.get("trials"))
    roles = {front.get("role") for trial in trials for front in as_list(trial.get("fronts"))}
    text = f"From {experts[1]} alone (0) to {experts[0]} alone (1). Line: the soup; dotted: the average of the experts"
    text += "; squares: the ensemble" if "ensemble" in roles else ""
    text += "; triangles: MORL" if "morl" in roles else ""
    text += f"; lighter: trials after {trials[0].get('name')}" if len(trials) > 1 else ""
    return f"{text}."


def _curves(report: Mapping[str, Any]) -> tuple[_Listing, str]:
    """A line for each reward and trial, and how many rewards that nobody trained on gain."""
    trials, digits = as_list(report.get("trials")), digits_of(report)
    found = [(str(trial.get("name")), curve) for trial in trials for curve in as_list(trial.get("curves"))]
    several = len(trials) > 1
    order = list(dict.fromkeys(str(curve.get("reward")) for _, curve in found))
    found.sort(key=lambda each: order.index(str(each[1].get("reward"))))
    lines = []
    for name, curve in found:
        reward = str(curve.get("reward"))
        gain, above = finite(curve.get("gain")), finite(curve.get("above_ends"))
        lines.append(
            [
                reward,
                *[name] * several,
                "yes" if curve.get("trained") else "no",
                decimal(curve.get("best"), digits=digits.get(reward, 3)),
                _shares(curve.get("at"), _NAME),
                f"+{decimal(gain, digits=digits.get(reward, 3))}"
                if gain
                else "none"
                if gain == 0
                else NOT_AVAILABLE,
                NOT_AVAILABLE if above is None else f"{100 * above:.0f} %",
                _yes(curve.get("monotone")),
            ]
        )
    heads = ["Reward", *["Trial"] * several, "Trained on", "Highest", "at λ", "Above every expert"]
    heads += ["Soups above every expert", "Monotone, but for noise"]
    gains: dict[str, list[bool]] = {}
    for _, curve in found:
        if not curve.get("trained"):
            gains.setdefault(str(curve.get("reward")), []).append((finite(curve.get("gain")) or 0.0) > 0)
    verdict = ""
    if gains:
        better = sum(map(all, gains.values()))
        where = " in every trial" if several else ""
        verdict = (
            f"{better} of {amount(len(gains), 'reward')} that nobody trained on {'is' if better == 1 else 'are'} "
            f"higher for some soup than for every expert{where}. The highest of several noisy means is optimistic."
        )
    return _Listing("Rewards along lambda", table_of(heads, lines), len(lines) > _LONG), verdict


def _areas(trials: Sequence[Mapping[str, Any]]) -> Table:
    """The areas of the polygons in every trial."""
    found: list[tuple[str, dict[str, Any]]] = []
    for trial in trials:
        polygons = as_list(as_map(trial.get("spider")).get("polygons"))
        if polygons:
            found.append(
                (str(trial.get("name")), {str(each.get("label")): each.get("area") for each in polygons})
            )
    labels = list(dict.fromkeys(label for _, areas in found for label in areas))
    heads = [name for name, _ in found] if len(trials) > 1 else ["Area"] * len(found)
    return table_of(
        ["Polygon", *heads],
        [[label, *(decimal(areas.get(label), digits=3) for _, areas in found)] for label in labels],
    )


# Samples.


def _samples(report: Mapping[str, Any]) -> tuple[_Sample, ...]:
    samples = as_map(report.get("samples"))
    columns = as_list(samples.get("columns"))
    found = []
    for number, item in enumerate(as_list(samples.get("items"))):
        label = f"Prompt {number + 1}"
        prompt = _Answer(
            label, _joined(item.get("prompt")), _image(item.get("image")), f"Image of prompt {number + 1}"
        )
        answers = []
        for column in columns:
            given = as_list(column.get("answers"))
            answer = given[number] if number < len(given) else None
            pictured = as_map(answer).get("image")
            head = str(column.get("label"))
            what = f"{head}: image for {label.lower()}"
            answers.append(_Answer(head, _joined(answer), _image(pictured), what))
        if answers or prompt.text is not None or prompt.image is not None:
            found.append(_Sample(prompt, tuple(answers)))
    return tuple(found)


def _joined(lines: Any) -> str | None:
    return "\n".join(lines) if isinstance(lines, list) else None


def _image(value: Any) -> str | None:
    """The image, if it is one that the page holds itself."""
    return value if isinstance(value, str) and _IMAGE.fullmatch(value) else None


# Files.


def _along_groups(report: Mapping[str, Any], along: Mapping[str, Plot]) -> list[tuple[str, list[Plot]]]:
    """Panels of the rewards that were trained on, then of the others."""
    names = trained(report)
    groups = [
        ("Trained on", [plot for reward, plot in along.items() if reward in names]),
        ("Only measured", [plot for reward, plot in along.items() if reward not in names]),
    ]
    return [(title, plots) for title, plots in groups if plots]


def _html(
    page: _Page,
    report: Mapping[str, Any],
    front: Sequence[Plot],
    along: Mapping[str, Plot],
    spider: Sequence[Plot],
) -> str:
    from markupsafe import Markup

    def drawn(plots: Iterable[Plot]) -> list[dict[str, Any]]:
        # Markup: the drawing is ours, and names within it were escaped when it was drawn.
        return [{"caption": plot.caption, "svg": Markup(plot.svg(inline=True))} for plot in plots]

    return page_template("front.html").render(
        page=page,
        front=drawn(front),
        along=[(title, drawn(plots)) for title, plots in _along_groups(report, along)],
        spider=drawn(spider),
        shown=_SHOWN,
    )


def _markdown(
    page: _Page,
    report: Mapping[str, Any],
    front: Sequence[Plot],
    along: Mapping[str, Plot],
    spider: Sequence[Plot],
) -> str:
    def linked(plots: Iterable[Plot]) -> list[str]:
        texts = []
        for plot in plots:
            texts.append(f"![{_plain(plot.alt)}](figures/{plot.name}.svg)")
            texts += [_plain(plot.caption)] if plot.caption else []
        return texts

    heads = page.heads
    blocks = [f"# {_plain(page.title)}", f"## {heads['what']}", _terms(page.facts)]
    if "front" in heads:
        blocks.append(f"## {heads['front']}")
        blocks += [f"**{_plain(page.verdict)}**"] if page.verdict else []
        blocks += linked(front)
        if page.volumes.lines:
            blocks += ["### Volumes", _plain(page.volumes_note), _table(page.volumes)]
        blocks += [_terms(page.volume_terms)] if page.volume_terms else []
        blocks += [_items(page.differences)] if page.differences else []
        if page.every_trial.lines:
            blocks += ["### Hypervolume of every trial", _table(page.every_trial)]
        if page.points:
            blocks.append(_plain(page.points_note))
        for listing in page.points:
            blocks += [f"### {_plain(listing.title)}", _table(listing.table)]
    if "connectivity" in heads:
        blocks += [f"## {heads['connectivity']}", f"**{_plain(page.connectivity)}**"]
        for verdict in page.verdicts:
            blocks += [f"### {_plain(verdict.title)}"] if len(page.verdicts) > 1 else []
            blocks.append(_items(verdict.lines))
        blocks += [_table(page.margins)] if page.margins.lines else []
    if "along" in heads:
        blocks.append(f"## {heads['along']}")
        blocks += [_plain(text) for text in (page.curves_verdict, page.along_note) if text]
        for title, plots in _along_groups(report, along):
            blocks += [f"### {title}", *linked(plots)]
        blocks += [_table(page.curves.table)] if page.curves.table.lines else []
    if "spider" in heads:
        blocks += [f"## {heads['spider']}", *linked(spider), _table(page.areas)]
    if "samples" in heads:
        blocks.append(f"## {heads['samples']}")
        for sample in page.samples:
            blocks.append(f"### {sample.prompt.label}")
            if sample.prompt.text is not None or sample.prompt.image is not None:
                blocks.append(f"> {_told(sample.prompt)}")
            told = tuple((answer.label, _told(answer, plain=False)) for answer in sample.answers)
            blocks += [_terms(told)] if told else []
    if "choice" in heads:
        blocks += [f"## {heads['choice']}", _terms(page.choice)]
        blocks += [_items(page.choice_notes)] if page.choice_notes else []
    blocks.append(f"## {heads['trust']}")
    trust = [f"- **{_plain(level.capitalize())}**: {_plain(text)}" for level, text in page.trust]
    blocks.append("\n".join(trust) or "Nothing suspicious was found.")
    if "details" in heads:
        blocks.append(f"## {heads['details']}")
        blocks += ["### Protocol", _terms(page.protocol)] if page.protocol else []
        if page.command or page.environment:
            blocks.append("### How to reproduce")
            blocks += [_code(page.command)] if page.command else []
            blocks += [_terms(page.environment)] if page.environment else []
    return "\n\n".join(blocks) + "\n"


def _told(answer: _Answer, *, plain: bool = True) -> str:
    """The answer on one line, or where its image is."""
    text = " ".join(answer.text.split("\n")) if answer.text is not None else ""
    parts = [text] * bool(text) + ["(image, in report.html)"] * (answer.image is not None)
    told = " ".join(parts) or ("(empty)" if answer.text is not None else NOT_AVAILABLE)
    return _plain(told) if plain else told
