"""Selections: members and a score on held-out data give a choice.

The score must see neither the target's labels nor the images that members were trained on. Every rule is
stated with its tie-break.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mirepoix.types import InputError, Score, Weights
from mirepoix.weights import RunningAverage

__all__ = ["Choice", "best", "greedy"]


@dataclass(frozen=True)
class Choice:
    """What a selection chose.

    Attributes:
        theta: The chosen weights.
        kept: Numbers of the members in it, in the order of choice.
        order: Numbers of all members, in the order they were looked at.
        scores: Score of what was tried at each place of ``order``.
    """

    theta: Weights
    kept: tuple[int, ...]
    order: tuple[int, ...]
    scores: tuple[float, ...]


def _ranked(
    thetas: Iterable[Weights], score: Score, member_scores: Sequence[float] | None
) -> tuple[list[Weights], list[float], list[int]]:
    members = list(thetas)
    if not members:
        raise InputError("a selection needs at least one member, got none.")
    scores = [score(theta) for theta in members] if member_scores is None else list(member_scores)
    if len(scores) != len(members):
        raise InputError(f"member_scores: expected one per member ({len(members)}), got {len(scores)}.")
    # NaN is worse than any number; of equal scores the first given comes first.
    order = sorted(range(len(members)), key=lambda i: (scores[i] != scores[i], -scores[i], i))
    return members, scores, order


def best(thetas: Iterable[Weights], score: Score, *, member_scores: Sequence[float] | None = None) -> Choice:
    """The member with the highest score; of equal ones the first given.

    Args:
        thetas: The members.
        score: Higher is better; called once per member.
        member_scores: The scores, where they are known; ``score`` is then not called.

    Raises:
        InputError: Without members.
    """
    members, scores, order = _ranked(thetas, score, member_scores)
    return Choice(members[order[0]], (order[0],), tuple(order), tuple(scores[i] for i in order))


def greedy(
    thetas: Iterable[Weights],
    score: Score,
    *,
    strict: bool = False,
    member_scores: Sequence[float] | None = None,
) -> Choice:
    r"""Greedy soup: add members, best first, as long as the average does not get worse.

    Members are looked at by decreasing score (of equal ones the first given). The first is kept. Each next one is
    kept if the score of the average of all kept and this one is at least that of the average kept so far:

    .. math:: \mathrm{score}\Big(\tfrac{1}{|K|+1} \sum_{j \in K \cup \{i\}} \theta_j\Big) \geq
              \mathrm{score}\Big(\tfrac{1}{|K|} \sum_{j \in K} \theta_j\Big).

    One running sum, and one evaluation per candidate.

    Args:
        thetas: The members.
        score: Of weights on ID validation; higher is better.
        strict: Keep a member only if the score rises (``>``), as in Wortsman et al. (2022).
        member_scores: Scores to rank the members by, where they are known from training; the average is
            still judged by ``score``.

    Returns:
        The average of the kept members, and the trace.

    Raises:
        InputError: Without members.

    References:
        Wortsman et al. (2022), Model soups, recipe 1; Ramé et al. (2022), Diverse weight averaging, where it is
        called "restricted".
    """
    members, _, order = _ranked(thetas, score, member_scores)
    kept: list[int] = []
    scores: list[float] = []
    running, highest = RunningAverage(), float("-inf")
    for i in order:
        candidate = running.plus(members[i])
        tried = score(candidate.weights())
        scores.append(tried)
        if not kept or tried > highest or (tried == highest and not strict):
            kept.append(i)
            running, highest = candidate, tried
    return Choice(running.weights(), tuple(kept), tuple(order), tuple(scores))
