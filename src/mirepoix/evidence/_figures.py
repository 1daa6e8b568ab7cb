r"""The numbers behind the figures of the papers: what averaging gains, and on what the gain depends.

Five questions about members that are there already; nothing is trained.

- `accuracy_against_members`: how fast does the average improve with the number of members?
- `gain_against_diversity`: do members that fail on different samples gain more?
- `accuracy_against_share`: which share of the members should start from an auxiliary task?
- `accuracy_against_tasks`: do more auxiliary tasks help, at the same number of members?
- `interpolation_curve`: is the way from one set of weights to another free of a barrier?

A score is a function of weights, usually the OOD accuracy as a fraction; another one, such as the ID accuracy,
makes another figure. Within one call the average of the same members is made and scored once. Where there are more
subsets than are asked for, random ones are drawn, all different, and depend on the seed only. A standard error is
:math:`s / \sqrt n` over the n values of a point, or None for a single value. It speaks of the choice of the subsets:
they share members, so it is no confidence interval for members that were not trained. Results are plain values,
ready for JSON; `mirepoix.report` draws them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from mirepoix.bootstrap import bootstrap
from mirepoix.diversity import mean_over_pairs, ratio_error
from mirepoix.ensembles import average_logits
from mirepoix.landscape import Connection, Point, connect
from mirepoix.metrics import accuracy
from mirepoix.seeds import stream
from mirepoix.types import InputError, Score, Weights
from mirepoix.weights import average

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = [
    "accuracy_against_members",
    "accuracy_against_share",
    "accuracy_against_tasks",
    "gain_against_diversity",
    "interpolation_curve",
]

Chosen = tuple[int, ...]
"""The indices of the members of one subset, in increasing order, so that a subset has one name."""


def accuracy_against_members(
    members: Sequence[Weights],
    score: Score,
    *,
    snapshots: Sequence[Weights] | None = None,
    logits: Float[Tensor, "members samples classes"] | None = None,
    labels: Int[Tensor, " samples"] | None = None,
    sizes: Iterable[int] | None = None,
    subsets: int = 20,
    ranked: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    r"""The accuracy of the average of m members, as m grows.

    For each m, the mean over subsets S of m members:

    .. math:: a(m) = \operatorname{mean}_{|S| = m}\ \mathrm{acc}\Big(\tfrac1m \textstyle\sum_{i \in S} \theta_i\Big),

    so :math:`a(1)` is the mean member. The same for snapshots of one run, and for ensembles of the same subsets:
    of their predictions in place of their weights.

    Args:
        members: The weights of several runs.
        score: The accuracy of weights.
        snapshots: Weights along a single run, a second curve.
        logits: Of the members, on the samples that the score is about: a third curve, the ensembles.
        labels: The true classes, with ``logits``.
        sizes: The values of m; by default all of them. A curve leaves out those above its number of weights.
        subsets: The most subsets for each m.
        ranked: Members and snapshots are given from the best to the worst on ID validation, and the only subset is
            that of the first m, as in the figure of the thesis.
        seed: Of the subsets.

    Returns:
        ``members``; the curves ``runs``, ``snapshots`` and ``ensemble`` (None if not asked for), of points with
        ``members``, ``mean``, ``error`` and ``subsets``; ``ranked`` and ``seed``.

    Raises:
        InputError: Without members; for sizes that no curve has; for logits without labels or not of these members;
            for a score that is not a finite number.

    Example:
        >>> members = [{"w": np.array([x])} for x in (-1.0, 1.0)]
        >>> found = accuracy_against_members(members, lambda theta: 1 - float(theta["w"][0] ** 2))
        >>> [point["mean"] for point in found["runs"]]
        [0.0, 1.0]

    References:
        Thesis, figure 4.9 (``ranked=True``); Ramé et al. (2022), Diverse weight averaging.
    """
    _check_members(members, "members")
    _check_subsets(subsets)
    wanted = None if sizes is None else sorted(set(sizes))
    longest = max(len(members), len(snapshots or ()))
    if wanted is not None and not (wanted and 1 <= wanted[0] <= wanted[-1] <= longest):
        raise InputError(f"sizes: expected numbers of members from 1 to {longest}, got {wanted}.")

    def curve(name: str, count: int, value: Callable[[Chosen], float]) -> list[dict[str, Any]]:
        points = []
        for m in wanted or range(1, count + 1):
            if m > count:
                continue
            random = stream("accuracy_against_members", name, seed, m)
            chosen = [tuple(range(m))] if ranked else _ways([range(count)], [(m,)], subsets, random)
            points.append({"members": m, **_summary([value(subset) for subset in chosen])})
        return points

    runs = curve("runs", len(members), _Averages(members, score))
    along = None
    if snapshots is not None:
        _check_members(snapshots, "snapshots")
        along = curve("snapshots", len(snapshots), _Averages(snapshots, score))
    ensemble = None
    if logits is not None or labels is not None:
        # "runs" again: the same subsets, so that the two curves differ by how members are combined alone.
        ensemble = curve("runs", len(members), _Ensembles(*_predictions(logits, labels, len(members))))
    return {
        "members": len(members),
        "runs": runs,
        "snapshots": along,
        "ensemble": ensemble,
        "ranked": ranked,
        "seed": seed,
    }


def gain_against_diversity(
    members: Sequence[Weights],
    score: Score,
    correct: Bool[Tensor, "members samples"] | None = None,
    *,
    sizes: Iterable[int] | None = None,
    subsets: int = 50,
    measure: Callable[[Tensor], Any] = ratio_error,
    pairs: Float[Tensor, "members members"] | None = None,
    name: str | None = None,
    combined: Literal["average", "ensemble"] = "average",
    logits: Float[Tensor, "members samples classes"] | None = None,
    labels: Int[Tensor, " samples"] | None = None,
    runs: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    r"""What combining gains over its members, against how differently they fail.

    A dot for each subset S of M members, and a straight line through the dots of each M by least squares:

    .. math::
        x_S = d(S), \qquad
        y_S = \mathrm{acc}\Big(\tfrac1M \textstyle\sum_{i \in S} \theta_i\Big)
              - \tfrac1M \textstyle\sum_{i \in S} \mathrm{acc}(\theta_i), \qquad
        y \approx \text{slope} \cdot x + \text{intercept}.

    The slope is the gain in accuracy, as a fraction, per unit of diversity. Subsets whose diversity is infinite or
    NaN (members without a shared error, say) cannot be drawn: they are left out and counted, and not scored.

    *How sure the slope is.* Its standard error takes the dots for independent, which they are not: they share members,
    and members share runs. The interval, 95 %, draws the R runs again, with replacement. Run r drawn :math:`c_r` times,
    a dot would count :math:`\prod_{r \in S} c_r` times, and with large M hardly one would be left; so what a run does
    to the slope is told by the dots without it, and drawn as a pseudo-value of the jackknife:

    .. math:: \text{slope}^* = \text{slope} + \tfrac{R - 1}{R} \textstyle\sum_r (c_r - 1)
              \big(\text{slope} - \text{slope}_{\text{without } r}\big).

    In simulated worlds such intervals held the slope in 88 to 100 % of the cases, those of the standard error in 36 to
    84 %. They are too short for few runs, and too long where a run takes most of the dots with it; where it leaves no
    line, there is none.

    Args:
        members: The weights.
        score: The accuracy of weights. Ensembles do not call it.
        correct: Whether each member is right on each sample, OOD for an OOD score, such as ``logits.argmax(-1) ==
            labels`` or `mirepoix.predictions.Predictions.correct`. Not with ``pairs``.
        sizes: The values of M, from 2; by default those up to 9 that leave a choice.
        subsets: The most subsets for each M.
        measure: The diversity d, higher for more diverse: `mirepoix.diversity.ratio_error` or ``q_diversity``, or any
            function of ``correct`` of the subset that averages over pairs.
        pairs: In place of ``correct`` and ``measure``, the diversity of each pair of members in any measure: d is the
            mean over pairs. For features, one minus a similarity such as CKA.
        name: Of the measure in the result; by default that of the function, or ``"diversity"`` of a matrix.
        combined: What gains: the ``"average"`` of weights, or the ``"ensemble"`` of predictions, the mean of the
            ``logits``. The accuracies of the members are then those of their logits.
        logits: Of the members, for ensembles.
        labels: The true classes, with ``logits``.
        runs: The run of each member, by any name, where several are snapshots of one; by default each has its own.
        resamples: How often runs are drawn for the intervals; 0 for none.
        seed: Of the subsets and of the resamples.

    Returns:
        ``measure``, its name; ``combined``; ``runs``, how many; ``resamples``; ``sizes``, for each M: ``members``, the
        dots ``diversity`` and ``gain``, their ``subsets`` and how many more were ``left_out``, ``mean_diversity``,
        ``diversity_error``, ``mean_gain``, ``gain_error``, and the line: ``slope``, ``slope_error`` (its standard
        error), ``intercept``, the correlation ``r``, ``r_squared`` and ``slope_interval``, a pair, each None where the
        dots do not determine it; and ``seed``.

    Raises:
        InputError: For sizes outside 2 to the number of members; for ``correct``, ``pairs``, ``logits`` or ``runs`` of
            another number of members; without ``correct`` and ``pairs``, or with both; for an ensemble without logits;
            for a score that is not a finite number.

    Example:
        >>> members = [{"w": np.array([x])} for x in (-1.0, 0.5, 2.0)]
        >>> apart = np.array([[(a["w"][0] - b["w"][0]) ** 2 for a in members] for b in members])
        >>> found = gain_against_diversity(
        ...     members, lambda theta: -float(theta["w"][0] ** 2), pairs=torch.as_tensor(apart), sizes=[2]
        ... )
        >>> round(found["sizes"][0]["slope"], 3)  # the gain of an average of two is a quarter of their distance squared
        0.25

    References:
        Thesis, figures 4.6, 4.7 and 5.3(c), for M from 2 to 9.
    """
    _check_members(members, "members")
    _check_subsets(subsets)
    count = len(members)
    diversity = _diversity(correct, pairs, measure, count)
    if name is None:
        name = getattr(measure, "__name__", "diversity") if pairs is None else "diversity"
    clusters = _clusters(runs, count)
    if resamples != 0 and resamples < 2:
        raise InputError(f"resamples: expected 0 or at least 2, got {resamples}.")
    wanted = list(range(2, max(3, min(count, 10)))) if sizes is None else sorted(set(sizes))
    if not (wanted and 2 <= wanted[0] <= wanted[-1] <= count):
        raise InputError(f"sizes: expected numbers of members from 2 to {count}, got {wanted}.")
    accuracy_of: Callable[[Chosen], float]
    match combined:
        case "average":
            if logits is not None or labels is not None:
                raise InputError("logits and labels are for combined='ensemble', got 'average'.")
            accuracy_of = _Averages(members, score)
        case "ensemble":
            accuracy_of = _Ensembles(*_predictions(logits, labels, count))
        case _:
            raise InputError(f"combined: expected 'average' or 'ensemble', got {combined!r}.")
    found = []
    for m in wanted:
        chosen = _ways([range(count)], [(m,)], subsets, stream("gain_against_diversity", seed, m))
        diversities = [diversity(subset) for subset in chosen]
        known = [i for i, value in enumerate(diversities) if math.isfinite(value)]
        x = [diversities[i] for i in known]
        y = [accuracy_of(chosen[i]) - _mean([accuracy_of((j,)) for j in chosen[i]]) for i in known]
        line = _line(np.array(x), np.array(y))
        r = line["r"]
        found.append(
            {
                "members": m,
                "subsets": len(known),
                "left_out": len(chosen) - len(known),
                "diversity": x,
                "gain": y,
                "mean_diversity": _mean(x) if x else None,
                "diversity_error": _error(x),
                "mean_gain": _mean(y) if y else None,
                "gain_error": _error(y),
                **line,
                "r_squared": None if r is None else r * r,
                "slope_interval": _slope_interval(
                    np.array(x), np.array(y), [chosen[i] for i in known], clusters, resamples, seed
                ),
            }
        )
    return {
        "measure": name,
        "combined": combined,
        "runs": int(clusters.max()) + 1,
        "resamples": resamples,
        "sizes": found,
        "seed": seed,
    }


def accuracy_against_share(
    plain: Sequence[Weights],
    recycled: Sequence[Weights],
    score: Score,
    *,
    members: int,
    subsets: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    r"""The accuracy of the average of M members, of which a share was inter-trained on an auxiliary task.

    For k = 0, ..., M and the share :math:`\mu = k / M`, the mean over choices P of M - k plain members and R of k
    recycled ones:

    .. math:: a(\mu) = \operatorname{mean}_{P, R}\ \mathrm{acc}\Big(
              \tfrac1M \textstyle\sum_{i \in P} \theta_i + \tfrac1M \textstyle\sum_{j \in R} \theta_j\Big).

    At both ends it is a soup of one kind; where the kinds complement each other, it is highest between them.

    Args:
        plain: Fine-tuned from the pre-trained weights, at least M.
        recycled: Fine-tuned from weights that were trained on an auxiliary task, at least M.
        score: The accuracy of weights.
        members: M, the number of members of each average.
        subsets: The most choices for each share.
        seed: Of the choices.

    Returns:
        ``members``; ``shares``, of points with ``share``, ``recycled`` (k), ``mean``, ``error`` and ``subsets``; and
        ``seed``.

    Raises:
        InputError: For fewer than M members of one kind; for a score that is not a finite number.

    References:
        Thesis, figures 5.3(d) and 5.6(b), for M = 8; Ramé et al. (2023), Model ratatouille, figure 3(d).
    """
    _check_subsets(subsets)
    if members < 1:
        raise InputError(f"members: expected at least 1, got {members}.")
    for name, thetas in (("plain", plain), ("recycled", recycled)):
        if len(thetas) < members:
            raise InputError(
                f"{name}: expected at least {members} members, as many as each average has, got {len(thetas)}. "
                "Train more or lower `members`."
            )
    accuracy_of = _Averages([*plain, *recycled], score)
    pools = [range(len(plain)), range(len(plain), len(plain) + len(recycled))]
    shares = []
    for k in range(members + 1):
        chosen = _ways(pools, [(members - k, k)], subsets, stream("accuracy_against_share", seed, members, k))
        values = [accuracy_of(choice) for choice in chosen]
        shares.append({"share": k / members, "recycled": k, **_summary(values)})
    return {"members": members, "shares": shares, "seed": seed}


def accuracy_against_tasks(
    groups: Mapping[str, Sequence[Weights]],
    score: Score,
    *,
    members: int,
    subsets: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    r"""The accuracy of the average of always M members, which come from t = 1, 2, ... initialisations.

    With G running over the combinations of t groups, and :math:`S_g \subset g` a choice of
    :math:`\lfloor M / t \rfloor` members of each group, or of one more in as many as the division leaves over,

    .. math:: a(t) = \operatorname{mean}_{|G| = t,\ S}\ \mathrm{acc}\Big(
              \tfrac1M \textstyle\sum_{g \in G} \sum_{i \in S_g} \theta_i\Big), \qquad \sum_{g \in G} |S_g| = M.

    The groups that get one more are drawn with the members. All combinations are taken if there are no more than
    ``subsets``, and share them equally, else as many random ones.

    A group with too few members for its part at some t is left out of that t, and named. So a point may be about
    fewer groups than its neighbours: with at least M members in every group it never is. A combination with fewer
    different choices than its part of the ``subsets`` weighs less.

    Args:
        groups: The members by what they were trained on first, such as ``{"ImageNet": [...], "VLCS": [...]}``.
        score: The accuracy of weights.
        members: M, the number of members of each average.
        subsets: About how many averages there are for each t.
        seed: Of the combinations and choices.

    Returns:
        ``members``; ``groups``, their sizes; ``tasks``, of points with ``tasks`` (t), ``combinations``, ``mean``,
        ``error``, ``subsets`` and ``too_small``, the names of the groups that are in no combination. A t without any
        combination has 0 subsets and the mean None; there is none above M. And ``seed``.

    Raises:
        InputError: Without groups; if there are too few members for every t; for a score that is not a finite number.

    References:
        Thesis, figure 5.5, for M = 20 and t from 1 to 5; Ramé et al. (2023), Model ratatouille, figure 6.
    """
    _check_subsets(subsets)
    if members < 1 or not groups:
        raise InputError(f"expected members from 1 and at least one group, got {members} and {len(groups)}.")
    accuracy_of = _Averages([theta for thetas in groups.values() for theta in thetas], score)
    pools: dict[str, range] = {}
    for name, thetas in groups.items():
        first = sum(map(len, pools.values()))
        pools[name] = range(first, first + len(thetas))
    tasks = []
    for t in range(1, min(len(groups), members) + 1):
        random = stream("accuracy_against_tasks", seed, members, t)
        parts = _equal_parts(members, t)
        possible = [
            names
            for names in itertools.combinations(pools, t)
            if any(_fit([pools[name] for name in names], part) for part in parts)
        ]
        order = random.permutation(len(possible))[:subsets]
        values = []
        for names in (possible[i] for i in sorted(order)):
            ways = _ways([pools[name] for name in names], parts, subsets // len(order), random)
            values += [accuracy_of(way) for way in ways]
        tasks.append(
            {
                "tasks": t,
                "combinations": len(order),
                **_summary(values),
                "too_small": [name for name in pools if all(name not in names for names in possible)],
            }
        )
    if not any(point["subsets"] for point in tasks):
        sizes = ", ".join(f"{name!r} {len(pool)}" for name, pool in pools.items())
        raise InputError(
            f"groups: expected enough members for {members} in equal parts from some of the groups, got {sizes}. "
            "Train more members or lower `members`."
        )
    sizes_of = {name: len(pool) for name, pool in pools.items()}
    return {"members": members, "groups": sizes_of, "tasks": tasks, "seed": seed}


def interpolation_curve(
    theta_a: Weights,
    theta_b: Weights,
    scores: Mapping[str, Callable[[Weights], Any]],
    *,
    theta_c: Weights | None = None,
    points: int = 11,
    tolerance: float = 0.02,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Accuracies along a line between weights, beside the chord, and whether the weights are linearly connected.

    Two or three weights are connected if, up to the tolerance, for all :math:`\lambda` of a grid on [0, 1],

    .. math::
        \mathrm{acc}((1 - \lambda) \theta_a + \lambda \theta_b)
        &\ge (1 - \lambda)\, \mathrm{acc}(\theta_a) + \lambda\, \mathrm{acc}(\theta_b), \\
        \mathrm{acc}\big(\tfrac{1 - \lambda}2 \theta_a + \tfrac{1 - \lambda}2 \theta_b + \lambda \theta_c\big)
        &\ge \tfrac{1 - \lambda}2\, \mathrm{acc}(\theta_a) + \tfrac{1 - \lambda}2\, \mathrm{acc}(\theta_b)
        + \lambda\, \mathrm{acc}(\theta_c).

    The line of three starts at the average of the first two, which may itself lie below the chord.

    What the weights are is up to the caller. Featurizers of two auxiliary tasks under one probed head test hypothesis 1
    of ratatouille, weights after fine-tuning on the target task hypothesis 2.

    Args:
        theta_a: The first weights.
        theta_b: The second.
        scores: The accuracies by name, such as ``{"ID": ..., "OOD": ...}``: a number, or one number per sample. Between
            two weights, the latter adds the noise of the samples to the verdict (`mirepoix.landscape.connect`).
        theta_c: The third weights, if any.
        points: How many on the line, ends included.
        tolerance: The largest drop below the chord that is none, as a fraction; 0 takes the inequality at its word.
        seed: Of the noise of the samples.

    Returns:
        ``ends``, 2 or 3; ``scores``, for each name what `mirepoix.landscape.Connection.to_dict` holds (of a point,
        :math:`\lambda` is the last of the ``coefficients``) and a sentence, ``verdict``; ``connected``, whether all of
        them are.

    Raises:
        InputError: Without scores; as `mirepoix.landscape.connect` for the rest.

    References:
        Thesis, figure 5.4; Ramé et al. (2023), Model ratatouille, figures 4 and 17 (three weights).
    """
    if not scores:
        raise InputError("scores: expected at least one, such as {'OOD': score}, got none.")
    found: dict[str, Connection] = {}
    for name, score in scores.items():
        if theta_c is None:
            found[name] = connect(
                [theta_a, theta_b],
                score,
                higher_is_better=True,
                points=points,
                tolerance=tolerance,
                seed=seed,
            )
        else:
            found[name] = _connect_three([theta_a, theta_b, theta_c], score, points, tolerance)
    return {
        "ends": 2 if theta_c is None else 3,
        "scores": {
            name: {**connection.to_dict(), "verdict": connection.verdict(_in_points)}
            for name, connection in found.items()
        },
        "connected": all(connection.connected for connection in found.values()),
    }


def _connect_three(
    thetas: Sequence[Weights], score: Callable[[Weights], Any], points: int, tolerance: float
) -> Connection:
    """From the average of two weights to a third, against the chord over all three."""
    a, b, c = thetas
    # The line has the average of two as its end, so `connect` gives values and checks, but not this chord.
    line = connect([average([a, b]), c], score, higher_is_better=True, points=points, tolerance=tolerance)
    ends = [_finite(np.mean(np.asarray(score(theta))), f"end {i}") for i, theta in enumerate((a, b))]
    ends.append(line.points[-1].value)
    moved = []
    for point in line.points:
        share = point.coefficients[-1]
        coefficients = ((1 - share) / 2, (1 - share) / 2, share)
        chord = math.fsum(coefficient * end for coefficient, end in zip(coefficients, ends, strict=True))
        drop = chord - point.value
        if abs(drop) < 1e-12 * max(map(abs, ends)):  # what rounding may make is no drop
            drop = 0.0
        moved.append(Point(coefficients, point.value, chord, drop))
    return replace(line, points=tuple(moved), samples=None, margin=0.0)


# The values of subsets.


class _Averages:
    """The score of the average of a subset; each is made once and let go."""

    def __init__(self, members: Sequence[Weights], score: Score) -> None:
        self._members, self._score = members, score
        self._known: dict[Chosen, float] = {}

    def __call__(self, chosen: Chosen) -> float:
        if chosen not in self._known:
            alone = len(chosen) == 1
            theta = self._members[chosen[0]] if alone else average(self._members[i] for i in chosen)
            where = (
                f"member {chosen[0]}" if alone else f"the average of members {', '.join(map(str, chosen))}"
            )
            self._known[chosen] = _finite(self._score(theta), where)
        return self._known[chosen]


class _Ensembles:
    """The accuracy of the ensemble of a subset, the mean of its logits."""

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        self._logits, self._labels = logits, labels
        self._known: dict[Chosen, float] = {}

    def __call__(self, chosen: Chosen) -> float:
        if chosen not in self._known:
            combined = average_logits(self._logits[list(chosen)])
            self._known[chosen] = float(accuracy(combined, self._labels))
        return self._known[chosen]


def _diversity(
    correct: Any, pairs: Any, measure: Callable[[Tensor], Any], count: int
) -> Callable[[Chosen], float]:
    """Of a subset: by a measure of who is right, or as the mean over a matrix of pairs."""
    if (correct is None) == (pairs is None):
        both = "neither" if correct is None else "both"
        raise InputError(f"expected correct, for the measure, or pairs, a matrix of diversities, got {both}.")
    if pairs is None:
        right = torch.as_tensor(correct)
        if right.ndim != 2 or len(right) != count or right.dtype != torch.bool:
            raise InputError(
                f"correct: expected booleans of shape ({count}, samples), a row for each member, got {right.dtype} of "
                f"shape {tuple(right.shape)}. Pass `logits.argmax(-1) == labels`."
            )
        return lambda chosen: float(measure(right[list(chosen)]))
    matrix = torch.as_tensor(pairs).double()
    if matrix.shape != (count, count):
        raise InputError(
            f"pairs: expected shape ({count}, {count}), a row for each member, got {tuple(matrix.shape)}."
        )
    return lambda chosen: float(mean_over_pairs(matrix[list(chosen)][:, list(chosen)]))


def _clusters(runs: Sequence[Hashable] | None, count: int) -> NDArray[np.int64]:
    """The run of each member, numbered from 0."""
    if runs is None:
        return np.arange(count)
    if len(runs) != count:
        raise InputError(f"runs: expected the run of each of the {count} members, got {len(runs)}.")
    numbers = {run: number for number, run in enumerate(dict.fromkeys(runs))}
    return np.array([numbers[run] for run in runs])


def _ways(
    pools: Sequence[range], parts: Sequence[Sequence[int]], count: int, random: np.random.Generator
) -> list[Chosen]:
    """Different choices of ``part[i]`` items of pool i, for any part: all if few, else random ones; pools increase."""
    parts = [part for part in parts if _fit(pools, part)]
    if sum(math.prod(map(math.comb, map(len, pools), part)) for part in parts) <= count:
        return [
            tuple(itertools.chain(*way))
            for part in parts
            for way in itertools.product(*map(itertools.combinations, pools, part))
        ]
    found: dict[Chosen, None] = {}
    while len(found) < count:
        part = parts[int(random.integers(len(parts)))]
        picked = (random.choice(pool, n, replace=False) for pool, n in zip(pools, part, strict=True))
        found[tuple(sorted(int(i) for each in picked for i in each))] = None
    return list(found)


def _fit(pools: Sequence[range], part: Sequence[int]) -> bool:
    return all(n <= len(pool) for pool, n in zip(pools, part, strict=True))


def _equal_parts(total: int, count: int) -> list[Chosen]:
    """The ways to write a total as parts that differ by at most one."""
    low, more = divmod(total, count)
    places = itertools.combinations(range(count), more)
    return [tuple(low + (i in larger) for i in range(count)) for larger in places]


# Statistics.


def _summary(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": _mean(values) if values else None, "error": _error(values), "subsets": len(values)}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _error(values: Sequence[float]) -> float | None:
    """The standard error of the mean."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, float | None]:
    r"""The least-squares line, with the standard error :math:`\sqrt{\sum e^2 / (n - 2) / S_{xx}}` of its slope."""
    line: dict[str, float | None] = dict.fromkeys(("slope", "slope_error", "intercept", "r"))
    if len(x) < 3 or np.ptp(x) == 0:
        return line  # a line through two points fits them, whatever they are
    dx, dy = x - x.mean(), y - y.mean()
    sxx, sxy, syy = float(dx @ dx), float(dx @ dy), float(dy @ dy)
    slope = sxy / sxx
    line |= {"slope": slope, "intercept": float(y.mean() - slope * x.mean())}
    residuals = dy - slope * dx
    line["slope_error"] = math.sqrt(float(residuals @ residuals) / (len(x) - 2) / sxx)
    if syy > 0:
        line["r"] = sxy / math.sqrt(sxx * syy)
    return line


def _slope_interval(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    chosen: Sequence[Chosen],
    clusters: NDArray[np.int64],
    resamples: int,
    seed: int,
) -> list[float] | None:
    """The slope with runs drawn again, by what it is without each of them: see `gain_against_diversity`."""
    slope = _line(x, y)["slope"]
    count = int(clusters.max()) + 1
    if slope is None or resamples == 0 or count < 2:
        return None
    has = np.zeros((len(chosen), count), dtype=bool)  # (dots, runs)
    for row, subset in zip(has, chosen, strict=True):
        row[clusters[list(subset)]] = True
    without = [_line(x[~row], y[~row])["slope"] for row in has.T]
    if any(other is None for other in without):
        return None
    influence = (count - 1) / count * (slope - np.array(without, dtype=np.float64))

    def drawn_slope(drawn: NDArray[np.int64]) -> float:
        return slope + float((np.bincount(drawn, minlength=count) - 1) @ influence)

    (interval,) = bootstrap(drawn_slope, count, resamples=resamples, seed=seed)
    return [interval.low, interval.high]


# Checks.


def _check_members(members: Sequence[Weights], name: str) -> None:
    if isinstance(members, Mapping):
        raise InputError(f"{name}: expected a list of weights, got one mapping; put it in a list.")
    if len(members) == 0:
        raise InputError(f"{name}: expected at least one, got none.")


def _check_subsets(subsets: int) -> None:
    if subsets < 1:
        raise InputError(f"subsets: expected at least 1, got {subsets}.")


def _predictions(logits: Any, labels: Any, members: int) -> tuple[Tensor, Tensor]:
    if logits is None or labels is None:
        given, missing = ("labels", "logits") if logits is None else ("logits", "labels")
        raise InputError(f"expected logits and labels together, got {given} without {missing}.")
    z, y = torch.as_tensor(logits), torch.as_tensor(labels)
    if z.ndim != 3 or len(z) != members:
        raise InputError(
            f"logits: expected shape ({members}, samples, classes), a row for each member, got {tuple(z.shape)}."
        )
    return z, y


def _finite(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"score: expected a number for {where}, got {type(value).__name__}.") from error
    if not math.isfinite(number):
        raise InputError(
            f"score: expected a finite number for {where}, got {number}. Leave out members that diverged."
        )
    return number


def _in_points(difference: float) -> str:
    return f"{100 * difference:.1f} points"
