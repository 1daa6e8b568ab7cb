"""Choosing members of a soup by a score: what the choice becomes is a weighted average of files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.scores import ClassificationScore
    from mirepoix.types import Score, Weights

__all__ = ["choose"]

TAKES = {"greedy": "strict", "forward": "rounds", "top-k": "top", "threshold": "delta"}
"""The option that belongs to one method alone."""


def choose(
    method: str,
    members: Sequence[str],
    parameters: Mapping[str, Any],
    options: Mapping[str, Any],
    container: str | None = None,
) -> dict[str, Any]:
    """Files and coefficients of the average that the method chose, with the trace.

    Args:
        method: One of `SELECTIONS`.
        members: Paths.
        parameters: Of rules; a selection takes none.
        options: ``score``, or ``model``, ``validation`` and ``metric``; ``strict``, ``rounds``, ``top``, ``delta``;
            ``cache``, a folder for scores by content.
        container: Where the weights are in torch files that hold several.

    Raises:
        InputError: For options that do not belong together, members that do not fit each other, or scores that
            are all NaN.
    """
    if parameters:
        raise InputError(
            f"--{next(iter(parameters)).replace('_', '-')}: {method} does not take it; the score decides."
        )
    for owner, option in TAKES.items():
        if options.get(option) is not None and owner != method:
            raise InputError(f"--{option}: {method} does not take it, {owner} does.")
    if method == "top-k" and not 1 <= (options.get("top") or 0) <= len(members):
        raise InputError(
            f"--method top-k: needs --top, how many members to average, from 1 to {len(members)}."
        )
    if method == "threshold" and options.get("delta") is None:
        raise InputError("--method threshold: needs --delta, how far below the best a score may lie.")
    from mirepoix import selection
    from mirepoix.checkpoints import open_weights
    from mirepoix.merging._inputs import open_source
    from mirepoix.merging._plan import plan_merge

    thetas: list[Weights] = [open_weights(member, container=container) for member in members]
    # Before the first evaluation, which may take long, and with the names of the files.
    plan_merge([open_source(theta, member) for theta, member in zip(thetas, members, strict=True)], None)
    if method == "learned":
        judge = _judge(options, members, thetas)
        learned = selection.learned_coefficients(thetas, judge.loss)
        values = list(learned.coefficients["model"])
        return {
            "method": method,
            "members": list(members),
            "parameters": {"coefficients": values},
            "kept": len(values),
            "looked_at": len(members),
            "score": _number(judge(learned.theta)),
            "trace": list(learned.losses),
        }
    score = _score(options, members, thetas)
    if method == "best":
        choice = selection.best(thetas, score)
    elif method == "greedy":
        choice = selection.greedy(thetas, score, strict=bool(options.get("strict")))
    elif method == "forward":
        choice = selection.forward_selection(thetas, score, rounds=options.get("rounds"))
    elif method == "top-k":
        choice = selection.top_k(thetas, score, options["top"])
    else:
        choice = selection.threshold(thetas, score, options["delta"])
    # What a soup of members that were only looked at one by one is worth, nobody has seen yet.
    last = score(choice.theta) if method in ("top-k", "threshold") else None
    best = max(
        (trial.score for trial in choice.trace if trial.kept and trial.score == trial.score), default=None
    )
    if best is None:
        raise InputError(f"--method {method}: every score is NaN, so nothing can be chosen.")
    coefficients = list(choice.coefficients)
    uniform = len(set(coefficients)) <= 1
    return {
        "method": method,
        "members": [members[i] for i in choice.kept],
        "parameters": {} if uniform else {"coefficients": coefficients},
        "kept": len(choice.kept),
        "looked_at": len(members),
        "score": _number(best if last is None else last),
        "trace": [
            {"member": Path(members[trial.member]).name, "score": _number(trial.score), "kept": trial.kept}
            for trial in choice.trace
        ],
    }


def _number(value: Any) -> float | None:
    """A score as JSON can hold it."""
    return float(value) if math.isfinite(value) else None


def _score(options: Mapping[str, Any], members: Sequence[str], thetas: Sequence[Weights]) -> Score:
    from mirepoix.scores import cached_score, load_score

    if options.get("score"):
        if options.get("model") or options.get("validation"):
            raise InputError("--score: give either your own score, or --model and --validation.")
        # What the function does may change without its name: a cache of it is asked for knowingly.
        judge, key = load_score(options["score"]), options["score"]
    else:
        built_in = _judge(options, members, thetas)
        judge, key = built_in, built_in.key
    return cached_score(judge, options["cache"], key) if options.get("cache") else judge


def _judge(
    options: Mapping[str, Any], members: Sequence[str], thetas: Sequence[Weights]
) -> ClassificationScore:
    from mirepoix.scores import ClassificationScore

    if options.get("score"):
        raise InputError(
            "--method learned: needs a loss with a gradient: --model and --validation, not --score."
        )
    missing = [f"--{name}" for name in ("model", "validation") if not options.get(name)]
    if missing:
        raise InputError(
            f"choosing members needs a score: {' and '.join(missing)} missing. Pass --model NAME and --validation "
            "FOLDER, or --score MODULE:FUNCTION."
        )
    judge = ClassificationScore.of_folder(
        options["model"], options["validation"], metric=options.get("metric") or "accuracy"
    )
    for member, theta in zip(members, thetas, strict=True):
        try:
            judge.check(theta)
        except InputError as error:
            raise InputError(f"{member}: {error}") from error
    return judge
