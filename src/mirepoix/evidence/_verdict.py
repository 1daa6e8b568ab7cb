"""What to ship, and whether to trust it: rules that a reader can check, each with its numbers.

What to ship is chosen on ID validation alone. The average of all members is what the theory promises and needs no
choice, so another single model must be better by more than chance to take its place. OOD labels come afterwards, and
only ever confirm, contradict or leave open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mirepoix.bootstrap import Interval
from mirepoix.evidence._paired import Draws

__all__ = ["LABELS", "TRUST", "Measured", "judged", "verdict"]

Seen = Literal["gain", "loss", "same", "unknown"]

FEW_IMAGES = 30
"""Below this number of images nothing is said about a difference."""

FEW_DIFFERING = 6
"""Two predictors that differ on fewer images may do so by chance: six against none has probability 1/32."""

SAME = 0.01
"""A difference that surely is smaller than this, as a fraction, counts as none."""

ALIKE = 0.01
"""Members that fail apart on a smaller share of the images hardly differ."""

WEAK = 0.05
"""A member that surely is so far below the others is weak."""

COARSE = 0.02
"""ID validation whose intervals reach further than this to either side hardly chooses."""

PERFECT = 0.995
"""ID validation on which the best member is better than this can hardly tell members apart."""

UNCERTAIN = 0.03
"""An OOD accuracy known no better than this is from few images."""

MISCALIBRATED = 0.05
"""An expected calibration error above this is worth mending."""

LABELS = {
    "mean": "mean member",
    "best": "best member on ID",
    "average": "average of weights",
    "greedy": "greedy soup",
    "wise": "WiSE",
    "moving_average": "moving average",
    "ensemble": "ensemble",
}
"""What the combinations are called."""

TRUST = {"high": "yes", "medium": "partly", "low": "not yet", "none": "unknown"}
"""The words for how far to trust."""

SINGLE = ("best", "greedy", "moving_average", "wise")
"""Single models that may take the place of the average."""


@dataclass(frozen=True)
class Measured:
    """What is known of one block, or of all together.

    Attributes:
        name: Of the target, or of all.
        members: Names of the members.
        id: Accuracies on ID validation.
        ood: Accuracies on OOD data.
        best: The member that is best on ID validation.
        errors_apart: The share of images on which one of two members is right and the other is not, by side.
        calibration: Of what can be shipped, by name and side: ``ece``, ``confidence_gap``; and ``temperature``.
        missing: Classes without images, by side.
        optimism: How much better than it is the best member looks on ID validation because it was chosen there.
        classes: How many there are; 0 if blocks have different numbers of them.
    """

    name: str
    members: tuple[str, ...]
    id: Draws | None = None
    ood: Draws | None = None
    best: str | None = None
    errors_apart: Mapping[str, float] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    optimism: float = 0.0
    classes: int = 0


def judged(interval: Interval, differing: int, images: int) -> Seen:
    """Whether a difference is seen (``gain``, ``loss``), surely small (``same``), or cannot be told.

    Args:
        interval: Of the difference.
        differing: On how many images the two differ.
        images: How many there are.
    """
    if images < FEW_IMAGES:
        return "unknown"
    if interval.excludes_zero and differing >= FEW_DIFFERING:
        return "gain" if interval.value > 0 else "loss"
    # With no difference among N images, one in 3/N may still be hidden: the rule of three.
    if max(abs(interval.low), abs(interval.high), 3 / images) <= SAME:
        return "same"
    return "unknown"


def verdict(
    total: Measured,
    blocks: Sequence[Measured],
    *,
    data_seeds: int = 0,
    notes: Sequence[str] = (),
    remarks: Sequence[str] = (),
    one_start: bool = True,
) -> dict[str, Any]:
    """What to ship and how far to trust it.

    Args:
        total: All blocks together.
        blocks: Each target and data seed.
        data_seeds: How many splits there are of each target; 0 if nobody knows.
        notes: What was left out, in sentences; they become reasons against.
        remarks: What was changed and does no harm; they become reasons to mind.
        one_start: Whether the members are networks that were fine-tuned from one start, as far as one can see.

    Returns:
        ``ship`` (``average``, ``greedy``, ``best``, ``wise``, ``moving_average``, ``ensemble``, ``member``, or None
        without predictions), ``ship_label``, ``forwards``; ``alternative``, what is better at a higher cost;
        ``trust`` (``high``, ``medium``, ``low`` or ``none``); ``sentences``, what to ship and whether to trust it, each
        of one or a few sentences; ``badges`` and ``reasons``, each
        with ``level`` (``good``, ``note``, ``warning``), ``code`` and ``text``.
    """
    if total.id is None and total.ood is None:
        return _without_predictions(total, notes)
    reasons: list[dict[str, Any]] = []

    def say(level: str, code: str, text: str, target: str | None = None) -> None:
        reasons.append({"level": level, "code": code, "target": target, "text": text})

    one = all(len(block.members) == 1 for block in blocks)
    unit = "splits" if data_seeds > 1 else "targets"
    ship, chosen = _choice(total, one, one_start, say)
    alternative = _alternative(total, ship, one)
    trust, second = _confirmation(total, blocks, ship, one, unit, say)
    second = " ".join(part for part in (_standing(total, ship), second) if part)
    if len(blocks) > 1:
        _look_at_distance(total, None, 0.95, say)
    guesses = 0
    for block in blocks:
        target = block.name if len(blocks) > 1 else None
        _look_at_members(block, target, say)
        guesses += _look_at_chance(block, target, say)
        # Several splits have several chances to look bad by luck.
        _look_at_distance(block, target, 1 - 0.05 / len(blocks), say)
    _look_at_id(total, ship, say)
    _look_at_ood(total, say)
    _look_at_calibration(total, ship, say)
    if data_seeds == 1:
        say(
            "note",
            "one_seed",
            "One data seed: the intervals speak of other images, not of other splits or trainings. Set data.seeds = "
            "[0, 1, 2] to see how much of a difference is luck.",
        )
    for note in notes:
        say("warning", "left_out", note)
    for remark in dict.fromkeys(remarks):
        say("note", "changed", remark)
    if guesses == len(blocks):
        trust = "low"
    if trust == "high" and any(reason["level"] == "warning" for reason in reasons):
        trust = "medium"
    reasons.sort(key=lambda reason: ("good", "warning", "note").index(reason["level"]))
    forwards = len(total.members) if ship == "ensemble" else 1
    return {
        "ship": ship,
        "ship_label": _named(total, ship),
        "forwards": forwards,
        "alternative": alternative,
        "trust": trust,
        "sentences": [chosen, second],
        "badges": _badges(trust, forwards, unit, reasons),
        "reasons": reasons,
    }


def _without_predictions(total: Measured, notes: Sequence[str]) -> dict[str, Any]:
    text = "There are weights only: give predictions with --id and --ood to learn what to ship."
    reasons = [{"level": "warning", "code": "no_predictions", "target": None, "text": text}]
    reasons += [{"level": "warning", "code": "left_out", "target": None, "text": note} for note in notes]
    return {
        "ship": None,
        "ship_label": "",
        "forwards": 1,
        "alternative": None,
        "trust": "none",
        "sentences": [
            "This cannot be said from weights alone.",
            "Below is how far apart the members are; whether their average is good, only predictions can tell.",
        ],
        "badges": [{"level": "warning", "text": "no predictions"}],
        "reasons": reasons,
    }


# What to ship.


def _choice(total: Measured, one: bool, one_start: bool, say: Any) -> tuple[str, str]:
    """The single model to ship, by ID validation alone, and the sentence that says so."""
    m = len(total.members)
    if one:
        say(
            "note", "one_member", "There is one member, so there is nothing to combine and nothing to choose."
        )
        return "member", f"There is one member, {total.members[0]}: ship it, as there is nothing to combine."
    known = total.id or total.ood
    assert known is not None
    if total.id is None or "best" not in total.id.names:
        if "average" in known.names:
            return (
                "average",
                f"Ship the average of the {m} members: it needs no choice, and there is no ID data to choose by.",
            )
        return "ensemble", (
            f"Ship the ensemble of the {m} members, at {m} forwards per image: it needs no choice, and there is no ID "
            "data to choose by."
        )
    if "average" not in known.names and "ensemble" not in known.names:
        return "best", f"Ship {_named(total, 'best')}: nothing that is combined has predictions everywhere."
    if "average" not in known.names:
        say(
            "note",
            "no_average",
            "The average of the weights has no predictions here. "
            + ("Make it" if one_start else "If the members are networks from one start: make it")
            + " (mirepoix soup), predict with it, and give the file as average: it may be as good as the ensemble at "
            "the cost of one model.",
        )
        interval = total.id.difference("ensemble", "best")
        seen = _judged(total.id, "ensemble", "best", shift=total.optimism)
        text = f"Ship {_named(total, 'best')}"
        if seen == "gain":
            return "ensemble", (
                f"Ship the ensemble if {m} forwards per image are acceptable: on ID validation it is "
                f"{_than(interval, _named(total, 'best'))}. Otherwise ship the latter."
            )
        return "best", f"{text}: on ID validation the ensemble of all {m} is not clearly better."
    rivals = [name for name in SINGLE if name in total.id.names]
    # Several rivals have several chances to look better by luck, so each must be seen more surely (Bonferroni).
    level = 1 - 0.05 / max(1, len(rivals))
    # They were chosen on these very images, and look better there than they are.
    clear = [name for name in rivals if _judged(total.id, name, "average", level, -total.optimism) == "gain"]
    if not clear:
        text = f"Ship the average of the {m} members: it needs no choice and costs one network."
        best = max(
            rivals, key=lambda name: (total.id.of(name).value if total.id else 0.0, -SINGLE.index(name))
        )
        if total.id.difference(best, "average").value > 0:
            return (
                "average",
                f"{text} {_sentence(_named(total, best))} {_lead(total, total.id, best, level)}.",
            )
        interval = total.id.difference("average", "best")
        return "average", f"{text} On ID validation it is {_than(interval, _named(total, 'best'))}."
    # The first among equals: the order of SINGLE.
    ship = max(clear, key=lambda name: (total.id.of(name).value if total.id else 0.0, -SINGLE.index(name)))
    return ship, f"Ship {_named(total, ship)}, not the average: it {_lead(total, total.id, ship, level)}."


def _lead(total: Measured, draws: Draws, rival: str, level: float) -> str:
    """By how much a rival leads the average, how much of it is luck, and whether the rest is more than chance."""
    lead, luck = draws.difference(rival, "average", level), total.optimism
    text = f"leads it by {100 * lead.value:.1f} points on ID validation"
    rest = Interval(lead.value - luck, lead.low - luck, lead.high - luck, level)
    some = "the lead"
    if luck >= 0.0005:
        if rest.value <= 0:
            return f"{text}, and about {100 * luck:.1f} are expected from being chosen on these images"
        text += f", of which about {100 * luck:.1f} are expected from being chosen on these images"
        some = "the rest"
    link = "; " if some == "the rest" else ", and "
    differing = draws.differing(rival, "average")
    span = f"{100 * level:.3g} % interval {_signed(rest.low)} to {_signed(rest.high)}"
    if judged(rest, differing, draws.images) == "gain":
        return f"{text}; {some} is more than chance ({span})"
    if draws.images < FEW_IMAGES:
        return f"{text}; {_images(draws.images)} are too few to tell {some} from zero"
    if rest.excludes_zero:
        return f"{text}; {some} comes from {_images(differing)}, too few to tell it from chance"
    return f"{text}{link}{some} cannot be told from zero ({span})"


def _alternative(total: Measured, ship: str, one: bool) -> dict[str, Any] | None:
    """The ensemble, where it is clearly better on ID validation than the single model to ship."""
    if one or total.id is None or ship == "ensemble" or "ensemble" not in total.id.names:
        return None
    if _judged(total.id, "ensemble", ship, shift=0.0 if ship == "average" else total.optimism) != "gain":
        return None
    interval, m = total.id.difference("ensemble", ship), len(total.members)
    text = f"If {m} forwards per image are acceptable, the ensemble is {_than(interval)} on ID validation"
    if total.ood is not None:
        text += f", and on OOD data {_than(total.ood.difference('ensemble', ship))}"
    return {"name": "ensemble", "forwards": m, "text": f"{text}."}


# Whether to trust it.


def _standing(total: Measured, ship: str) -> str:
    """How often what is shipped is right on OOD data, and how much less often than on ID validation."""
    name = "mean" if ship == "member" and total.ood is not None and "mean" in total.ood.names else ship
    if name == "member":
        name = total.members[0]
    if total.ood is None or name not in total.ood.names:
        return ""
    value = total.ood.of(name).value
    text = f"It is right on {100 * value:.1f} % of the OOD images"
    if total.id is None or name not in total.id.names:
        return f"{text}."
    drop = total.id.of(name).value - value
    if f"{abs(100 * drop):.1f}" == "0.0":
        return f"{text}, as on ID."
    return f"{text}, {abs(100 * drop):.1f} points {'below' if drop > 0 else 'above'} ID."


def _reference(total: Measured, ship: str) -> str | None:
    """What is shipped otherwise: the other side of the comparison that confirms."""
    known = total.ood or total.id
    assert known is not None
    wanted = ("average", "mean") if ship == "best" else ("best", "mean")
    return next((name for name in wanted if name in known.names and name != ship), None)


def _confirmation(
    total: Measured, blocks: Sequence[Measured], ship: str, one: bool, unit: str, say: Any
) -> tuple[str, str]:
    """How far to trust the choice, and the sentence that says so."""
    if total.ood is None:
        say(
            "warning",
            "no_ood",
            "No labelled OOD data: whether the choice carries over to other domains is not confirmed. Give "
            "predictions on a domain that training never saw, with --ood.",
        )
        return (
            "low",
            "There are no OOD labels, and ID validation says little about domains that training never saw.",
        )
    images = total.ood.images
    if one:
        return "low", "Without a second member there is nothing to compare it with."
    other = _reference(total, ship)
    assert other is not None
    interval, seen = total.ood.difference(ship, other), _judged(total.ood, ship, other)
    against = _named(total, other)
    wins = _wins(blocks, ship, other, unit)
    if seen == "gain" and other == "mean":
        say(
            "good",
            "over_mean",
            f"Seen on the OOD data: {_points(interval, f'over {against}')}{wins}. The mean member is what one training "
            "gives, and nothing else was there to compare with.",
        )
        return "medium", f"There it is {_than(interval, against)}{wins}, which was all there was to beat."
    if seen == "gain":
        say(
            "good",
            "confirmed",
            f"Confirmed on the OOD data: {_points(interval, f'over {against}')}{wins}.",
        )
        return "high", f"There it is {_than(interval, against)}{wins}."
    if seen == "loss":
        say(
            "warning",
            "contradicted",
            f"Contradicted by the OOD data: {_points(interval, f'against {against}')}{wins}. What "
            "is good on ID validation is not good there; do not choose by the OOD labels afterwards, but look for the "
            "reason below.",
        )
        return "low", f"There it is {_than(interval, against)}{wins}: the choice did not carry over."
    mean_gain = (
        _judged(total.ood, ship, "mean") if "mean" in total.ood.names and other != "mean" else "unknown"
    )
    gain = total.ood.difference(ship, "mean") if mean_gain == "gain" else None
    if seen == "same":
        say(
            "note",
            "no_gain",
            f"No gain on the OOD data: the difference from {against} is surely below {100 * SAME:.0f} point "
            f"({_points(interval)}).",
        )
        return (
            "medium",
            f"It is safe but gains nothing: there it is as good as {against} ({_points(interval)}).",
        )
    if images >= FEW_IMAGES:
        text = f"Not confirmed: from {_images(images, 'OOD ')} the difference from {against} cannot be told"
    else:
        verb = "is" if images == 1 else "are"
        text = f"Not confirmed: {_images(images, 'OOD ')} {verb} too few to tell any difference"
    say("warning" if gain is None else "note", "unknown", f"{text} ({_points(interval)}){wins}.")
    if gain is not None:
        say(
            "good",
            "over_mean",
            f"Seen on the OOD data: {_points(gain, 'over the mean member')}; the mean member is what "
            "one training gives.",
        )
        return "medium", (
            f"There it is {_than(gain, 'the mean member')}, but whether it is better than {against} cannot be told "
            f"from {_images(images)}."
        )
    return "low", (
        f"From {_images(images, 'OOD ')} it cannot be told whether it is better than {against} ({_points(interval)})."
    )


def _wins(blocks: Sequence[Measured], ship: str, other: str, unit: str) -> str:
    """On how many targets, or splits, it holds, and on how many it does not."""
    known = [b for b in blocks if b.ood is not None and {ship, other} <= set(b.ood.names)]
    if len(known) < 2:
        return ""
    values = [b.ood.difference(ship, other).value for b in known if b.ood is not None]
    counts = {
        "better": sum(value > 1e-12 for value in values),
        "equal": sum(abs(value) <= 1e-12 for value in values),
        "worse": sum(value < -1e-12 for value in values),
    }
    parts = [f"{word} on {count}" for word, count in counts.items() if count]
    return f"; {', '.join(parts)} of {len(known)} {unit}"


def _look_at_distance(block: Measured, target: str | None, level: float, say: Any) -> None:
    """Members that are too far apart to be averaged."""
    for where, draws in (("OOD data", block.ood), ("ID validation", block.id)):
        if draws is None or not {"average", "mean", "ensemble"} <= set(draws.names):
            continue
        fall = draws.difference("average", "mean", level)
        gap = draws.difference("average", "ensemble", level)
        if _judged(draws, "average", "mean", level) == "loss" and gap.high < 0:
            say(
                "warning",
                "far_apart",
                f"The members are too far apart to be averaged: on {where} their average is "
                f"{_than(fall, 'the mean member')}, and {_than(gap, 'their ensemble')}. Use a milder space, fewer "
                "steps or a shared linear probe.",
                target,
            )
            return


def _look_at_members(block: Measured, target: str | None, say: Any) -> None:
    """Members that are too alike, too weak or equal, and classes that are missing."""
    if len(block.members) < 2:
        return
    side = "ood" if "ood" in block.errors_apart else "id"
    share = block.errors_apart.get(side)
    if share is not None and share < ALIKE:
        say(
            "warning",
            "alike",
            f"The members hardly differ: on {100 * share:.1f} % of the {side.upper()} images one of two is right and "
            "the other is not, so there is nothing to gain by combining. Train them longer or more differently.",
            target,
        )
    weak = _weak(block)
    if weak is not None:
        say("warning", "weak_member", weak, target)
    draws = block.id
    if draws is not None:
        scores = {round(draws.of(name).value, 9) for name in block.members}
        if len(scores) == 1:
            say(
                "note",
                "equal",
                f"All members score {_percent(draws.of(block.members[0]))} on ID validation, so the best of them is "
                f"only the first, {block.best}.",
                target,
            )
    for where, classes in block.missing.items():
        if classes:
            some = ", ".join(repr(name) for name in classes[:5]) + (", ..." if len(classes) > 5 else "")
            say(
                "note",
                "missing_classes",
                f"{len(classes)} class{'es' if len(classes) > 1 else ''} without any image in the {where.upper()} data "
                f"({some}): nothing here speaks of {'them' if len(classes) > 1 else 'it'}.",
                target,
            )


def _look_at_chance(block: Measured, target: str | None, say: Any) -> bool:
    """Whether no member is right more often than a guess: then samples and labels may be in different orders."""
    if block.classes < 2:
        return False
    found = False
    for where, draws in (("ID validation", block.id), ("OOD data", block.ood)):
        if draws is None or draws.images < FEW_IMAGES:
            continue
        if all(draws.of(name).low <= 1 / block.classes for name in block.members):
            scores = [100 * draws.of(name).value for name in block.members]
            say(
                "warning",
                "chance",
                f"On {where} accuracy is about chance: no member can be told from a guess among "
                f"{block.classes} classes ({100 / block.classes:.1f} %), and the best is right on {max(scores):.1f} %. "
                "Are samples and labels in the same order?",
                target,
            )
            found = True
    return found


def _weak(block: Measured) -> str | None:
    """The sentence about one member that is far below all others on ID validation."""
    draws, m = block.id, len(block.members)
    if draws is None or m < 3 or draws.images < FEW_IMAGES:
        return None
    values = sorted((draws.of(name).value, name) for name in block.members)
    (low, name), (next_low, _), top = values[0], values[1], values[-1][0]
    gap = draws.difference("mean", name)
    scale = m / (m - 1)  # from the mean of all to the mean of the others
    alone = next_low - low > top - next_low
    if scale * gap.low <= WEAK or not alone:
        return None
    others = low + scale * gap.value
    text = (
        f"One weak member: on ID validation {name} is right on {100 * low:.1f} %, the others on "
        f"{100 * others:.1f} % on average."
    )
    if "average" in draws.names and draws.of("average").value < others:
        text += f" It pulls the average down to {_percent(draws.of('average'))}"
        if "greedy" in draws.names and draws.of("greedy").value > draws.of("average").value:
            return f"{text}; the greedy soup, which may leave it out, reaches {_percent(draws.of('greedy'))}."
        return f"{text}: leave it out, or take a greedy soup."
    return f"{text} Leave it out, or take a greedy soup."


def _look_at_id(total: Measured, ship: str, say: Any) -> None:
    """Whether ID validation can choose at all."""
    if total.id is None:
        say("note", "no_id", "No ID validation data: nothing could be chosen, so nothing was.")
        return
    if len(total.members) < 2:
        return
    images = total.id.images
    if images < FEW_IMAGES:
        say(
            "warning",
            "id_too_small",
            f"ID validation has {_images(images)}, too few to choose by: every choice here is close to chance.",
        )
        return
    other = "average" if "average" in total.id.names else "mean"
    interval = total.id.difference("best", other)
    half = (interval.high - interval.low) / 2
    if half > COARSE:
        say(
            "note",
            "id_too_small",
            f"ID validation has {_images(images)}, and tells differences of about {100 * half:.1f} points or more: the "
            "choice between closer models is chance.",
        )
    if total.id.of("best").value > PERFECT:
        say(
            "note",
            "saturated",
            f"ID validation is nearly perfect ({_percent(total.id.of('best'))}), so it can hardly tell members apart.",
        )


def _look_at_ood(total: Measured, say: Any) -> None:
    if total.ood is None:
        return
    name = next(name for name in ("average", "ensemble", "mean", *total.members) if name in total.ood.names)
    interval = total.ood.of(name)
    half = (interval.high - interval.low) / 2
    if half > UNCERTAIN or total.ood.images < FEW_IMAGES:
        say(
            "note",
            "few_images",
            f"Few images: with {_images(total.ood.images, 'OOD ')} an accuracy is known to about ±{100 * half:.1f} "
            "points.",
        )


def _look_at_calibration(total: Measured, ship: str, say: Any) -> None:
    """Whether confidences can be believed, of what is shipped."""
    found = total.calibration.get(ship)
    if not found:
        return
    ood, temperature = found.get("ood"), found.get("temperature")
    worst = ood or found.get("id")
    if worst is None:
        return
    after = ood.get("ece_tempered") if ood and temperature is not None else None
    # What mends the confidence on ID data, and harms it where it matters, must not be used unseen.
    harmed = after is not None and after > worst["ece"] and after > MISCALIBRATED
    if worst["ece"] <= MISCALIBRATED and not harmed:
        return
    where = "OOD data" if ood else "ID validation"
    kind = "overconfident" if worst["confidence_gap"] > 0 else "underconfident"
    text = (
        f"{'Calibration is off: on' if worst['ece'] > MISCALIBRATED else 'On'} {where} confidence and accuracy differ "
        f"by {100 * worst['ece']:.1f} points on average, and it is {kind}."
    )
    if harmed and after is not None:
        text += (
            f" The temperature fitted on ID validation, T = {temperature:.2f}, does not carry over: it makes this "
            f"worse, {100 * after:.1f} points. Do not use it for images like these."
        )
    elif after is not None:
        text += (
            f" Divide its logits by the temperature fitted on ID validation, T = {temperature:.2f}: they differ by "
            f"{100 * after:.1f} points then."
        )
    elif temperature is not None:
        text += f" Divide its logits by the temperature fitted on ID validation, T = {temperature:.2f}."
    say("warning" if harmed else "note", "calibration", text)


# Words.


def _badges(
    trust: str, forwards: int, unit: str, reasons: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    words = {
        "confirmed": ("good", "confirmed on OOD data"),
        "contradicted": ("warning", "contradicted by OOD data"),
        "no_gain": ("note", "no gain on OOD data"),
        "over_mean": ("good", "better than the mean member"),
        "unknown": ("note", "gain on OOD data cannot be told"),
        "chance": ("warning", "accuracy is about chance"),
        "no_ood": ("warning", "no OOD data"),
        "no_id": ("note", "no ID data"),
        "far_apart": ("warning", "members too far apart"),
        "weak_member": ("warning", "one weak member"),
        "alike": ("warning", "members hardly differ"),
        "few_images": ("note", "few images"),
        "id_too_small": ("note", "ID data small"),
        "calibration": ("note", "confidence is off"),
        "one_member": ("note", "one member"),
    }
    level = {"high": "good", "medium": "note", "low": "warning"}.get(trust, "warning")
    badges = [{"level": level, "text": f"trust: {TRUST[trust]}"}]
    if any(reason["code"] == "over_mean" for reason in reasons):  # a gain is seen, only not over the other
        words["unknown"] = ("note", "not told from the best member")
    badges.append({"level": "note", "text": f"{forwards} forward{'s' if forwards > 1 else ''} per image"})
    for code, (color, text) in words.items():
        found = [reason for reason in reasons if reason["code"] == code]
        if code == "id_too_small":
            found = [reason for reason in found if reason["level"] == "warning"]
        if found:
            targets = {reason["target"] for reason in found}
            where = f" ({len(targets)} {unit if len(targets) > 1 else unit[:-1]})"
            badges.append({"level": color, "text": text if None in targets else text + where})
    return badges


def _named(total: Measured, name: str) -> str:
    """A predictor in a sentence."""
    if name == "member":
        return total.members[0]
    if name == "best" and total.best is not None:
        return f"{total.best} (best on ID validation)"
    words = {"best": "the best member on ID validation", "average": "the average", "wise": LABELS["wise"]}
    return words.get(name, f"the {LABELS[name]}")


def _judged(draws: Draws, first: str, second: str, level: float = 0.95, shift: float = 0.0) -> Seen:
    """Whether the first is better than the second by more than chance, after ``shift`` is added to its lead."""
    found = draws.difference(first, second, level)
    moved = Interval(found.value + shift, found.low + shift, found.high + shift, level)
    return judged(moved, draws.differing(first, second), draws.images)


def _images(number: int, kind: str = "") -> str:
    """``1 OOD image``, ``1,200 images``."""
    return f"{number:,} {kind}image{'' if number == 1 else 's'}"


def _sentence(text: str) -> str:
    """A predictor at the beginning of a sentence; the name of a member stays as it is."""
    return f"The{text[3:]}" if text.startswith("the ") else text


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} %"


def _signed(value: float) -> str:
    """With its sign, and with so many digits that they are not all zero, as the sign decides."""
    text = f"{abs(100 * value):.1f}"
    if text == "0.0":
        if abs(value) < 1e-12:
            return text
        text = f"{abs(100 * value):.1g}" if abs(value) >= 1e-5 else "0.001"
    return f"+{text}" if value > 0 else f"−{text}"


def _points(interval: Interval, than: str = "") -> str:
    """``+3.1 points over the mean member (95 % interval +2.3 to +3.9)``; alone, without the brackets."""
    level = f"{100 * interval.level:.3g} % interval {_signed(interval.low)} to {_signed(interval.high)}"
    if than:
        return f"{_signed(interval.value)} points {than} ({level})"
    return f"{_signed(interval.value)} points, {level}"


def _than(interval: Interval, other: str = "") -> str:
    """``3.1 points better than the mean member (95 % interval +2.3 to +3.9)``."""
    text = f"{abs(100 * interval.value):.1f}"
    side, link = f"{text} points {'better' if interval.value > 0 else 'worse'}", "than"
    if text == "0.0":
        side, link = "as good", "as"
    level = f"{100 * interval.level:.3g} % interval {_signed(interval.low)} to {_signed(interval.high)}"
    return f"{side} {link} {other} ({level})" if other else f"{side} ({level})"
