"""The page of an explanation: what to ship, whether to trust it, and why; for one minute, then for an hour.

The style of the page is that of the report of a job (``template.html``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mirepoix.report._explanation_figures import DETAILED, Shown, shown_figures
from mirepoix.report._explanation_invariance import Invariance, invariance_of
from mirepoix.report._figure_files import write_figures
from mirepoix.report._html import page_template
from mirepoix.report._numbers import NOT_AVAILABLE, amount, cleaned, finite, percent, points, ratio
from mirepoix.report._tables import Cell, Table, table_of

__all__ = ["explanation_html", "write_explanation"]

TRUST = {
    "high": "Yes",
    "medium": "Partly",
    "low": "Not yet",
    "none": "Unknown",
}

# Each with what to look for on the page: words that it does not use are not explained.
GLOSSARY = (
    ("Member", "One of several networks that can be combined.", r"\bmembers?\b"),
    (
        "ID, OOD",
        "In distribution: held-out images like those of the training. Out of distribution: images of a domain "
        "that training never saw. Only ID images may choose; OOD images tell whether the choice was good.",
        r"\b(id|ood)\b",
    ),
    (
        "Mean member",
        "The mean accuracy of the members: what training one network gives on average.",
        "mean member",
    ),
    (
        "Best on ID",
        "The member with the highest accuracy on ID validation: what one ships without any combining.",
        "best on id|best member",
    ),
    (
        "Average",
        "One network, whose weights are the mean of the members' weights. It costs as much as one member.",
        "average of weights|ship the average|the average",
    ),
    (
        "Greedy soup",
        "An average too, of those members only that do not lower the ID accuracy. Soup is another word for an average "
        "of weights.",
        "greedy soup",
    ),
    ("WiSE", "One network whose weights lie between the start and what training made of it.", r"\bwise\b"),
    ("Moving average", "One network: the mean of the weights along one training.", "moving average"),
    ("Ensemble", "All members are run, and their logits averaged: M forwards per image.", "ensemble"),
    ("Forward", "One run of one network on an image.", r"\bforwards?\b"),
    (
        "Interval",
        "Where the number would lie on other images of the same kind, 95 times of 100. It does not speak of "
        "other trainings or other domains.",
        "interval",
    ),
    ("Points", "Differences of accuracies in percent: from 80 % to 83 % is 3 points.", r"\bpoints?\b"),
    (
        "Ratio-error",
        "Of two members: images on which exactly one fails, over images on which both fail. 0: they fail "
        "together. More is more diverse.",
        "ratio-error",
    ),
    ("Disagreement", "The share of images on which two members predict different classes.", "disagreement"),
    (
        "Calibration",
        "Whether of 100 predictions at 80 % confidence 80 are right. Dividing logits by a temperature T "
        "mends most of it and changes no prediction.",
        "calibration|confidence|temperature",
    ),
    ("Source domain", "A domain whose images trained the members.", "source domain"),
    (
        "Gradient variance",
        "How much the gradients of single images differ, weight by weight. Where labels are fitted and not learnt by "
        "heart it is close to the curvature.",
        "gradient variance",
    ),
    (
        "Curvature",
        "How fast the loss rises when one weight moves: the diagonal of the Hessian. Domains with other curvatures ask "
        "for other weights.",
        "curvatures?",
    ),
)

LIMITS = (
    "Intervals draw images again. Luck of training, of the split and of the choice of domains is not in them.",
    "What was chosen on ID validation (the best member; a greedy soup) looks better there than it is; what replaces "
    "the average must lead by more than that.",
    "OOD labels never choose here. Choosing by them after reading this page would make the OOD numbers worthless.",
    "A difference is called seen if its 95 % interval excludes zero and at least 6 images are decided differently; "
    "with fewer than 30 images nothing is.",
)


@dataclass(frozen=True, slots=True)
class _Detail:
    """One target, folded away."""

    title: str
    table: Table
    diversity: Table
    figures: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Page:
    """All that the page says."""

    title: str
    version: str
    sentences: tuple[str, ...]
    alternative: str
    trust: str
    answer: str
    badges: tuple[tuple[str, str], ...]
    reasons: tuple[tuple[str, str, str], ...]
    compared: str
    member: str
    table: Table
    targets: Table
    invariance: Invariance | None
    measured: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    details: tuple[_Detail, ...]
    left_out: str
    command: str
    glossary: tuple[tuple[str, str], ...]
    limits: tuple[str, ...]


def write_explanation(content: Mapping[str, Any], out: Path, *, parquet: bool = False) -> Path:
    """Write ``figures/NAME.svg``, ``.png`` and ``.csv``, ``explanation.json`` and ``explanation.html``.

    Everything is written under other names before any file is replaced. Equal contents give equal bytes. The page
    loads nothing from elsewhere.

    Args:
        content: From `mirepoix.evidence.explain`.
        out: Made if it does not exist.
        parquet: Write the numbers of the figures as Parquet too.

    Returns:
        The page.

    Raises:
        InputError: Without pyarrow, for ``parquet``.
    """
    out = Path(out)
    printable = cleaned(dict(content))
    figures = shown_figures(printable)
    page = _html(printable, figures)
    also = {out / "explanation.html": page, out / "explanation.json": dict(content)}
    write_figures([figure.drawn for figure in figures], out / "figures", parquet=parquet, also=also)
    return out / "explanation.html"


def explanation_html(content: Mapping[str, Any]) -> str:
    """The explanation as one self-contained page, for any browser, screen or paper; without scripts.

    Args:
        content: From `mirepoix.evidence.explain`.
    """
    printable = cleaned(dict(content))
    return _html(printable, shown_figures(printable))


def _html(content: Mapping[str, Any], figures: Sequence[Shown]) -> str:
    from markupsafe import Markup

    template = page_template("explanation.html")
    shown = [
        {
            "title": figure.title,
            "reading": figure.reading,
            "caption": figure.drawn.plot.caption,
            "name": figure.drawn.plot.name,
            "block": figure.block,
            # Markup: the drawing is ours, and names within it were escaped when it was drawn.
            "svg": Markup(figure.drawn.plot.svg(inline=True)),
        }
        for figure in figures
    ]
    first = next((item for item in shown if item["name"] == "differences"), None)
    invariant = next((item for item in shown if item["name"] == "invariance"), None)
    why = [item for item in shown if not item["block"] and item is not first and item is not invariant]
    details = [item for item in shown if item["block"]]
    page = _page(content, details)
    found = {"first": first, "why": why, "invariant": invariant}
    _, _, body = template.render(page=page, **found).partition("<body>")
    words = re.sub(r"<[^>]+>", " ", body).lower()
    page = replace(
        page, glossary=tuple((term, text) for term, text, used in GLOSSARY if re.search(used, words))
    )
    head, body, text = template.render(page=page, **found).partition("<body>")
    return head + body + text.replace(" % ", "\u00a0% ")  # no line ends before a percent sign


def _page(content: Mapping[str, Any], figures: Sequence[dict[str, Any]]) -> _Page:
    verdict, total, blocks = content["verdict"], content["total"], content["blocks"]
    reasons = [(one["level"], one["target"] or "", one["text"]) for one in verdict["reasons"]]
    images = total["images"]
    compared = f"{amount(total['members'], 'member')}, judged on "
    unit = "splits" if content["data_seeds"] > 1 else "targets"
    parts = []
    for side, words in (("ood", "OOD data"), ("id", "ID validation")):
        if images[side] and images[side] < sum(block["images"][side] for block in blocks):
            # Several targets or splits hold some of the same images.
            parts.append(f"{amount(images[side], 'different image')} of {words}, shared by the {unit},")
        elif images[side]:
            parts.append(f"{amount(images[side], 'image')} of {words}")
    compared += " and ".join(parts).rstrip(",") if parts else "no predictions"
    if len(blocks) > 1:
        compared += f"; {total['name']}, each of which has members of its own"
    one_start = content.get("one_start", True)
    return _Page(
        member="A member is one of the fine-tuned networks."
        if one_start
        else "A member is one of the networks that were given.",
        title=f"What to ship: {content['title']}",
        version=str(content["mirepoix"]),
        sentences=tuple(verdict["sentences"]),
        alternative=(verdict["alternative"] or {}).get("text", ""),
        trust=verdict["trust"],
        answer=TRUST[verdict["trust"]],
        badges=tuple((badge["level"], badge["text"]) for badge in verdict["badges"]),
        reasons=tuple(reasons),
        compared=f"{compared}.",
        table=_compared(total, verdict["ship"]),
        targets=_targets(blocks, verdict["ship"]) if len(blocks) > 1 else table_of((), ()),
        invariance=invariance_of(content),
        measured=_how(content),
        facts=tuple((str(name), str(value)) for name, value in content["facts"]),
        details=tuple(
            _Detail(
                block["name"],
                _members(block),
                _diversity(block),
                tuple(figure for figure in figures if figure["block"] == block["name"]),
                tuple(block["notes"]),
            )
            for block in blocks
        ),
        left_out=f"More than {DETAILED} targets: their pairs are in explanation.json and not drawn."
        if len(blocks) > DETAILED
        else "",
        command=str(content["command"]),
        glossary=(),
        limits=LIMITS,
    )


def _compared(total: Mapping[str, Any], ship: str | None) -> Table:
    """One line for everything that could be shipped."""
    rows = total["rows"] or []
    sides = [side for side in ("ood", "id") if total["images"][side]]
    heads = [""]
    gains = len(rows) > 1 and any(row["name"] == "mean" for row in rows)
    if gains:
        heads.append(f"{sides[0].upper()} gain, points")
    heads += [*(f"{side.upper()} accuracy, %" for side in sides), "Forwards"]
    lines = []
    for row in rows:
        shipped = row["name"] == ship
        # A member keeps its name as it is.
        label = row["label"] if row["label"].endswith("(best on ID)") else _capital(row["label"])
        line = [Cell(f"➜ {label}" if shipped else label)]
        if gains:
            base = next(one for one in rows if one["name"] == "mean")[sides[0]]
            known = row[sides[0]] is not None and row["name"] != "mean"
            line.append(Cell(points(row[sides[0]]["value"] - base["value"]) if known else "–", shipped))
        line += [Cell(_with_interval(row[side]), shipped) for side in sides]
        line.append(Cell(f"{row['forwards']}", shipped))
        lines.append(tuple(line))
    return Table(tuple(heads), tuple(lines))


def _with_interval(one: Mapping[str, Any] | None) -> str:
    """``84.6 (82.5 to 86.7)``."""
    if one is None:
        return NOT_AVAILABLE
    if finite(one["low"]) is None:
        return percent(one["value"])
    return f"{percent(one['value'])} ({percent(one['low'])} to {percent(one['high'])})"


SEEN = {"gain": "better", "loss": "worse", "same": "as good", "unknown": "cannot be told"}


def _targets(blocks: Sequence[Mapping[str, Any]], ship: str | None) -> Table:
    """Each target in one line: the numbers, and whether the difference from the best member is seen."""
    name = ship if ship in ("average", "greedy", "ensemble") else "average"
    lines = []
    for block in blocks:
        side = "ood" if block["images"]["ood"] else "id"
        values = {row["name"]: row[side] for row in block["rows"]}
        first = name if name != "greedy" else "average"
        line = [block["name"], *(_seen(block, side, first, other) for other in ("mean", "best"))]
        line += [
            percent((values.get(role) or values.get("member") or {}).get("value"))
            for role in ("average", "mean", "best", "ensemble")
        ]
        lines.append([*line, f"{block['images'][side]:,}"])
    what = "Ensemble" if name == "ensemble" else "Average"
    heads = ["Target", f"{what} − mean member", f"{what} − best on ID"]
    return table_of([*heads, "Average", "Mean member", "Best on ID", "Ensemble", "Images"], lines)


def _seen(block: Mapping[str, Any], side: str, first: str, second: str) -> str:
    for one in block["comparisons"]:
        if (one["side"], one["first"], one["second"]) == (side, first, second):
            return f"{points(one['value'])}: {SEEN[one['seen']]}"
    return NOT_AVAILABLE


def _members(block: Mapping[str, Any]) -> Table:
    sides = [side for side in ("ood", "id") if block["images"][side]]
    weights = block["weights"] or {}
    known = weights.get("members", [])
    columns = [
        (key, words)
        for key, words in (("to_start", "Distance to start"), ("to_average", "Distance to average"))
        if weights.get(key)
    ]
    heads = ["Member", *(f"{side.upper()} accuracy, %" for side in sides), *(words for _, words in columns)]
    lines = []
    for row in block["individuals"]:
        line = [row["name"], *(_with_interval(row[side]) for side in sides)]
        place = known.index(row["name"]) if row["name"] in known else None
        line += [ratio(weights[key][place]) if place is not None else NOT_AVAILABLE for key, _ in columns]
        lines.append(line)
    return table_of(heads, lines)


def _diversity(block: Mapping[str, Any]) -> Table:
    names = {"ratio_error": "Ratio-error", "q_diversity": "Q-diversity", "disagreement": "Disagreement"}
    sides = [side for side in ("ood", "id") if side in block["diversity"]]
    lines = []
    for key, words in names.items():
        line = [words]
        for side in sides:
            one = block["diversity"][side][key]
            text = ratio(one["value"])
            if finite(one["low"]) is not None:
                text += f" ({ratio(one['low'])} to {ratio(one['high'])})"
            line.append(text)
        lines.append(line)
    return table_of(["Measure", *(side.upper() for side in sides)], lines if sides else [])


def _how(content: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    total = content["total"]
    found = [
        ("Accuracy", "The mean over the domains of a side, and over targets where there are several."),
        (
            "Intervals",
            f"95 %, from {content['resamples']:,} draws of images, the same draws for all (seed "
            f"{content['seed']}); images that several splits share are drawn once.",
        ),
        (
            "Choice",
            "The average of all members, as it needs no choice and costs one network. Another single model replaces it "
            "only if its lead on ID validation, less what is expected from being chosen on these images"
            + (f" ({100 * total['optimism']:.1f} points here)" if total["optimism"] else "")
            + ", can be told from zero, with Bonferroni's correction for the number of such models.",
        ),
        (
            "Trust",
            "Yes: better on OOD data than what would be shipped otherwise (the best member on ID; the average where a "
            "member is shipped), and nothing marked Against it. Partly: better than the mean member only, surely as "
            "good as the other, or better with a warning. Not yet: no gain seen on OOD data, none given, or accuracy "
            "about chance. What is marked Mind limits how far the numbers reach, and takes no trust away.",
        ),
    ]
    calibration = (total["calibration"] or {}).get(content["verdict"]["ship"]) or {}
    if calibration.get("temperature") is not None:
        found.append(
            ("Temperature", f"{calibration['temperature']:.2f}, fitted on ID validation for what is shipped.")
        )
    invariance = content.get("invariance")
    if invariance:
        found.append(
            (
                "Invariance",
                f"Of the classifier alone, on {invariance['images']}; exact. Distances are squared, and means over "
                "pairs of domains. By chance: the same after shuffling the images among the domains, the mean of "
                f"{invariance['shuffles']} shuffles; seen: no shuffle came as far.",
            )
        )
    return tuple(found)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
