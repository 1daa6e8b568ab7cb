"""Trials to a table: means and their errors, differences to a baseline, and what to be careful about."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mirepoix.comparison._measure import MEASURES

__all__ = ["cautions", "moments", "paired", "rows_csv", "table_rows", "trials_csv", "verdict"]

LEVEL = 0.95


def moments(values: Sequence[Any]) -> dict[str, Any]:
    r"""The mean over trials and its standard error.

    .. math:: \bar x = \frac1n \sum_t x_t, \qquad e = \sqrt{\frac{1}{n (n - 1)} \sum_t (x_t - \bar x)^2}

    One trial has no error. Where a trial has no number there is no mean; where one is infinite the mean is, and there
    is no error.
    """
    if not values or any(value is None for value in values):
        return {"mean": None, "error": None}
    if "infinite" in values:
        return {"mean": "infinite", "error": None}
    mean = math.fsum(values) / len(values)
    return {"mean": mean, "error": _error(values, mean)}


def paired(ours: Sequence[float | None], theirs: Sequence[float | None]) -> dict[str, Any] | None:
    r"""The difference of two rows in the same trials, and where the difference of new trials has its mean.

    .. math:: \bar d \pm t_{0.975, n - 1} \sqrt{\frac{1}{n (n - 1)} \sum_t (d_t - \bar d)^2}

    with :math:`d_t` the difference in trial t: the 95 % interval of a paired t-test. One trial has none.

    Returns:
        ``mean``, ``low``, ``high``, and how many trials were ``better``; None where a trial lacks a number.
    """
    if not ours or any(value is None for value in (*ours, *theirs)):
        return None
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    differences = [a - b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    n = len(differences)
    mean = math.fsum(differences) / n
    error = _error(differences, mean)
    half = None if error is None else float(stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    return {
        "mean": mean,
        "low": None if half is None else mean - half,
        "high": None if half is None else mean + half,
        "better": sum(d > 0 for d in differences),
        "trials": n,
    }


def _error(values: Sequence[float], mean: float) -> float | None:
    n = len(values)
    if n < 2:
        return None
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n * (n - 1)))


def table_rows(
    about: Sequence[Mapping[str, Any]], found: Mapping[str, Sequence[Mapping[str, Any]]], baseline: str
) -> list[dict[str, Any]]:
    """One row per label: what it is, its numbers in every trial, their moments, and the difference to the baseline.

    Args:
        about: Of each row its ``label``, and what else there is to say.
        found: From a label to its measures in each trial, in the order of trials.
        baseline: A label.
    """
    rows = []
    base = [trial.get("accuracy") for trial in found[baseline]]
    for row in about:
        trials = found[row["label"]]
        rows.append(
            {
                **row,
                "measures": {name: moments([trial.get(name) for trial in trials]) for name in MEASURES},
                "difference": None
                if row["label"] == baseline
                else paired([trial.get("accuracy") for trial in trials], base),
                "trials": [dict(trial) for trial in trials],
            }
        )
    return rows


def rows_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per row: mean and standard error of every measure; fractions, not percent."""
    lines = []
    for row in rows:
        difference = row["difference"] or {}
        values = [row["label"], *(difference.get(key) for key in ("mean", "low", "high"))]
        for name in MEASURES:
            values += [row["measures"][name]["mean"], row["measures"][name]["error"]]
        lines.append(values)
    heads = ["system", "difference", "difference_low", "difference_high"]
    return _csv(heads + [text for name in MEASURES for text in (name, f"{name}_standard_error")], lines)


def trials_csv(rows: Sequence[Mapping[str, Any]], trials: Sequence[int]) -> str:
    """One line per row and trial with every measure."""
    lines = [
        [row["label"], trial, *(values.get(name) for name in MEASURES)]
        for row in rows
        for trial, values in zip(trials, row["trials"], strict=True)
    ]
    return _csv(["system", "trial", *MEASURES], lines)


def _csv(heads: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for line in lines:
        writer.writerow(["" if value is None else value for value in line])
    return text.getvalue()


# Words.


def verdict(rows: Sequence[Mapping[str, Any]], baseline: str, trials: int) -> str:
    """Which row has the highest accuracy, and what the difference to the baseline is worth."""
    known = [row for row in rows if row["measures"]["accuracy"]["mean"] is not None]
    if not known:
        return "No system has a number in every trial."
    best = max(known, key=lambda row: row["measures"]["accuracy"]["mean"])
    accuracy = best["measures"]["accuracy"]
    error = "" if accuracy["error"] is None else f" ± {100 * accuracy['error']:.2f}"
    text = f"Highest accuracy: {best['label']}, {100 * accuracy['mean']:.2f}{error} %"
    text += f", over {trials} trials." if trials > 1 else ", in one trial."
    difference = best["difference"]
    if best["label"] == baseline:
        return f"{text} It is the baseline."
    if difference is None:
        return text
    text += f" That is {_points(difference['mean'])} points from {baseline}"
    if difference["low"] is None:
        return f"{text}, which may be chance."
    inside = difference["low"] <= 0 <= difference["high"]
    interval = f"{_points(difference['low'])} to {_points(difference['high'])}"
    meaning = "so it may be chance" if inside else "which does not hold zero"
    return f"{text} (95 % interval of the paired difference: {interval}, {meaning})."


def _points(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−")


def cautions(
    rows: Sequence[Mapping[str, Any]],
    members: Sequence[Mapping[str, Any]],
    *,
    trials: int,
    images: int,
    notes: Sequence[str],
) -> list[dict[str, str]]:
    """What should make a reader hesitate, warnings first."""
    items: list[dict[str, str]] = []

    def say(level: str, text: str) -> None:
        items.append({"level": level, "text": text})

    for row in members:
        if row["status"] == "diverged":
            say(
                "warning",
                f"{row['system']}, trial {row['trial']}: training {row['number']} is left out: {row['message']}",
            )
    for row in rows:
        if row["measures"]["accuracy"]["mean"] is None:
            say("warning", f"{row['label']} has no member in some trial, so it has no mean.")
    for note in notes:
        say("warning", note)
    if trials == 1:
        say(
            "warning",
            "One trial: no number has an error, and a small difference may be chance. Set data.seeds = [0, 1, 2] to "
            "see how much of it is luck.",
        )
    else:
        say(
            "note",
            f"± is one standard error over {trials} trials, from the deviation with {trials - 1} in the denominator. A "
            "trial has its own seeds and its own division into training and validation; the target is the same.",
        )
        if trials < 5:
            say(
                "note",
                f"With {trials} trials, errors are themselves uncertain, which the intervals of differences allow for.",
            )
    accuracies = [row["measures"]["accuracy"]["mean"] for row in rows]
    known = [value for value in accuracies if value is not None]
    if known and images:
        middle = sum(known) / len(known)
        noise = math.sqrt(max(middle * (1 - middle), 1e-9) / images)
        say(
            "note",
            f"With {images:,} target images, an accuracy on other images of this kind would differ by about "
            f"±{100 * noise:.2f} points; differences between systems on the same images are known better.",
        )
    if any(row["measures"]["ratio_error"]["mean"] == "infinite" for row in rows):
        say("note", "A ratio-error is infinite where two members share no error in some trial.")
    say(
        "note",
        "Nothing was chosen by the target: every member is the last weights of its training. The system with the "
        "highest number here was, if one picks it, chosen by the target.",
    )
    return sorted(items, key=lambda item: item["level"] != "warning")
