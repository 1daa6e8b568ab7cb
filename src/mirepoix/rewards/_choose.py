r"""Choosing the coefficients of a soup for a user, whose reward is known only after the trainings.

The user's preference :math:`\hat\mu` is a weight for each reward, :math:`\hat R = \sum_k \hat\mu_k R_k`; the
coefficients :math:`\lambda` are weights of the experts. From no evaluation to many: take :math:`\lambda = \hat\mu`;
correct it by the table of the experts' rewards; choose by cross-validation among the points of a front; refine by a
search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from mirepoix.rewards._front import RewardFront
from mirepoix.rewards._points import Array, as_array
from mirepoix.rewards._simplex import check_coefficients, check_names, check_numbers
from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = [
    "CrossValidation",
    "Fold",
    "LambdaChoice",
    "Refined",
    "cross_validate",
    "grid_then_refine",
    "lambda_equals_mu",
    "lambda_quadratic",
    "quadratic_optimum",
    "suboptimality_bound",
]


@dataclass(frozen=True, slots=True)
class LambdaChoice:
    """Coefficients chosen without evaluating any soup.

    Attributes:
        coefficients: By expert.
        method: What chose them, ``"lambda_equals_mu"`` or ``"lambda_quadratic"``.
        notes: What was assumed, or why another method was taken.
        curvatures: By expert, what `lambda_quadratic` fitted, up to a common factor; empty otherwise.
    """

    coefficients: Mapping[str, float]
    method: Literal["lambda_equals_mu", "lambda_quadratic"]
    notes: tuple[str, ...] = ()
    curvatures: Mapping[str, float] = field(default_factory=dict)


def lambda_equals_mu(
    preference: Mapping[str, float], trained_on: Mapping[str, str] | None = None
) -> LambdaChoice:
    r"""The preference itself: each expert weighs as much as its reward, :math:`\lambda = \hat\mu`.

    No evaluation is needed. Close to optimal in the published figures, where the user's reward is linear and the
    rewards have one scale. Rewards on other scales are other preferences: normalise them first. Experts trained on
    one reward share its weight equally.

    Args:
        preference: By reward, on the simplex.
        trained_on: From expert to its reward; by default experts are named as the rewards.

    Raises:
        InputError: For a preference that is not on the simplex, or for a reward with weight on which no expert was
            trained.

    Example:
        >>> lambda_equals_mu({"bleu": 0.25, "rouge": 0.75}, {"first": "bleu", "second": "rouge"}).coefficients
        {'first': 0.25, 'second': 0.75}

    References:
        Ramé et al. (2023), Rewarded soups; thesis, section 6.2.2.3 and figure 6.4 (a).
    """
    weights = check_coefficients(preference, list(preference), what="preference")
    by = dict(trained_on) if trained_on is not None else {name: name for name in weights}
    check_names("trained_on", list(by))
    experts = {reward: [name for name, of in by.items() if of == reward] for reward in weights}
    without = [reward for reward, weight in weights.items() if weight > 0 and not experts[reward]]
    if without:
        raise InputError(
            f"preference: {without[0]!r} has a weight of {weights[without[0]]:g}, and no expert was trained on it. "
            f"Experts were trained on {', '.join(map(repr, dict.fromkeys(by.values())))}; for another reward, use "
            "`cross_validate`."
        )
    return LambdaChoice(
        {
            name: weights[reward] / len(experts[reward]) if reward in weights else 0.0
            for name, reward in by.items()
        },
        "lambda_equals_mu",
    )


def lambda_quadratic(
    preference: Mapping[str, float],
    table: Mapping[str, Mapping[str, float]],
    *,
    trained_on: Mapping[str, str] | None = None,
    distances: Mapping[str, Mapping[str, float]] | None = None,
) -> LambdaChoice:
    r"""The best coefficients if rewards are quadratic around their experts, from the experts' rewards alone.

    With two experts and diagonal Hessians the best single coefficient, that of the second, is

    .. math:: \bar\lambda = \frac{\hat\mu \Delta_2}{(1 - \hat\mu) \Delta_1 + \hat\mu \Delta_2}, \qquad
              \Delta_1 = R_1(\theta_1) - R_1(\theta_2), \quad \Delta_2 = R_2(\theta_2) - R_2(\theta_1),

    with :math:`\hat\mu` the preference for the second reward. With more experts and Hessians proportional to the
    identity,

    .. math:: \lambda_i \propto \hat\mu_i \eta_i, \qquad
              \eta_k = \arg\min_\eta \textstyle\sum_i \big(R_k(\theta_k) - R_k(\theta_i)
                       - \eta \lVert \theta_i - \theta_k \rVert^2\big)^2,

    which for two experts is the same. The preference is one for the rewards as they are in the table. Where an expert
    is not the best in its own reward (:math:`\Delta \le 0`, or :math:`\eta_k \le 0`), rewards are not as assumed; the
    preference is returned, and the notes say so.

    Args:
        preference: By reward, on the simplex, with all its rewards trained on by one expert each.
        table: ``table[expert][reward]``, the mean rewards: see `RewardFront.table`.
        trained_on: From expert to its reward; by default experts are named as the rewards.
        distances: ``distances[expert][expert]``, the Euclidean distances between weights (`mirepoix.distance`). Needed
            for three or more experts; without them all are taken as equal, and the notes say so.

    Raises:
        InputError: When preference, table, experts or distances do not fit each other.

    Example:
        >>> table = {"a": {"a": 1.0, "b": 0.0}, "b": {"a": 0.0, "b": 3.0}}
        >>> lambda_quadratic({"a": 0.5, "b": 0.5}, table).coefficients
        {'a': 0.25, 'b': 0.75}

    References:
        Ramé et al. (2023), Rewarded soups; thesis, lemma 6.1 and, for diagonal Hessians, the proof of lemma C.2,
        equation C.14.
    """
    weights = check_coefficients(preference, list(preference), what="preference")
    experts = check_names("table", list(table))
    by = {name: name if trained_on is None else trained_on.get(name, "no reward") for name in experts}
    expert_of = {reward: [name for name in experts if by[name] == reward] for reward in weights}
    if len(experts) != len(weights) or any(len(found) != 1 for found in expert_of.values()):
        raise InputError(
            f"table: expected one expert for each of the rewards {', '.join(map(repr, weights))} in the preference, "
            f"got the experts {', '.join(f'{name!r} (trained on {by[name]!r})' for name in experts)}."
        )
    for name in experts:
        if not isinstance(table[name], Mapping) or not set(weights) <= set(table[name]):
            raise InputError(
                f"table: expected the rewards {', '.join(map(repr, weights))} of expert {name!r}."
            )
        check_numbers(
            {reward: table[name][reward] for reward in weights}, list(weights), f"table of {name!r}"
        )
    notes = []
    if distances is None and len(experts) > 2:
        notes.append("Distances between experts were not given and are taken as equal.")
    curvatures = {}
    for own in experts:
        reward = by[own]
        others = [name for name in experts if name != own]
        falls = np.array([table[own][reward] - table[name][reward] for name in others])
        squares = np.array([_square(distances, own, name) for name in others])
        curvatures[own] = float(falls @ squares / (squares @ squares)) if others else 1.0
    flat = [name for name in experts if curvatures[name] <= 0]
    if flat:
        notes.append(
            f"Expert {flat[0]!r} is not better than the others in its own reward {by[flat[0]]!r}, so rewards are "
            "not quadratic around their experts: lambda = mu is returned."
        )
        return LambdaChoice(
            lambda_equals_mu(weights, by).coefficients, "lambda_equals_mu", tuple(notes), curvatures
        )
    shares = quadratic_optimum({name: weights[by[name]] for name in experts}, curvatures)
    return LambdaChoice(shares, "lambda_quadratic", tuple(notes), curvatures)


def quadratic_optimum(preference: Mapping[str, float], curvatures: Mapping[str, ArrayLike]) -> dict[str, Any]:
    r"""Where the preferred sum of quadratic rewards is largest, as coefficients of the experts.

    For :math:`R_i(\theta) = R_i(\theta_i) - \eta_i \lVert \theta - \theta_i \rVert^2`,

    .. math:: \arg\max_\theta \textstyle\sum_i \hat\mu_i R_i(\theta)
              = \sum_i \lambda_i \theta_i, \qquad \lambda_i = \hat\mu_i \eta_i \big/ \sum_j \hat\mu_j \eta_j,

    inside the hull of the experts. With a curvature for each parameter (diagonal Hessians) the same holds parameter by
    parameter, so the coefficients are arrays: a merge weighted by Fisher information, which has none of the loss that
    one coefficient for all parameters has.

    Args:
        preference: By expert, that of its reward, on the simplex.
        curvatures: By expert, :math:`\eta_i > 0`: a number, or one per parameter.

    Returns:
        By expert, a number or an array of the shape of the curvatures; they sum to one.

    Raises:
        InputError: For a preference that is not on the simplex; for curvatures that are not positive, or differ in
            shape.

    Example:
        >>> shares = quadratic_optimum({"a": 0.5, "b": 0.5}, {"a": [1.0, 1.0], "b": [1.0, 3.0]})
        >>> shares["b"].tolist()
        [0.5, 0.75]

    References:
        Ramé et al. (2023), Rewarded soups; thesis, lemma 6.1 and, for one curvature per parameter, equation C.12 and
        remark C.2.
    """
    weights = check_coefficients(preference, list(curvatures), what="preference")
    etas = {name: as_array(f"curvature of {name!r}", eta) for name, eta in curvatures.items()}
    for name, eta in etas.items():
        if not (np.isfinite(eta).all() and (eta > 0).all()) or eta.shape != next(iter(etas.values())).shape:
            raise InputError(
                f"curvatures: expected positive numbers of one shape, got {curvatures[name]!r} for {name!r}."
            )
    terms = {name: weights[name] * eta for name, eta in etas.items()}
    total = np.sum(list(terms.values()), axis=0)
    shares = {name: np.asarray(term / total) for name, term in terms.items()}
    return {name: share if share.ndim else float(share) for name, share in shares.items()}


def suboptimality_bound(mu: float, ratio: float, delta_1: float = 1.0, delta_2: float = 1.0) -> float:
    r"""What a rewarded soup of two experts loses at most against the best weights of all, for quadratic rewards.

    With diagonal Hessians whose entries differ between the two rewards at most by a factor :math:`M`,

    .. math:: \Delta R_{\hat\mu} \le \frac{\hat\mu^2 (1 - \hat\mu)^2 (M \Delta_1 - \Delta_2)(M \Delta_2 - \Delta_1)}
              {\big(\hat\mu (1 - \hat\mu)(M - 1)^2 + M\big)\big((1 - \hat\mu) \Delta_1 + \hat\mu \Delta_2\big)}.

    0 for equal Hessians (:math:`M = 1`) and for a preference for one reward alone. In the unit of the rewards.

    Args:
        mu: The preference for the second reward, in [0, 1].
        ratio: :math:`M \ge 1`, the largest ratio of entries, either way round.
        delta_1: :math:`R_1(\theta_1) - R_1(\theta_2) > 0`.
        delta_2: :math:`R_2(\theta_2) - R_2(\theta_1) > 0`.

    Raises:
        InputError: For numbers out of range; when the ratio of the deltas exceeds ``ratio``, which it cannot.

    Example:
        >>> round(suboptimality_bound(0.5, 2), 4), round(suboptimality_bound(0.5, 10), 4)
        (0.0278, 0.1674)

    References:
        Ramé et al. (2023), Rewarded soups; thesis, lemma C.2, equation C.9 and figure C.1.
    """
    if not 0 <= mu <= 1:
        raise InputError(f"mu: expected a number in [0, 1], got {mu!r}.")
    if not 1 <= ratio < math.inf:
        raise InputError(f"ratio: expected a number from 1, got {ratio!r}.")
    for name, delta in (("delta_1", delta_1), ("delta_2", delta_2)):
        if not 0 < delta < math.inf:
            raise InputError(
                f"{name}: expected a positive number, as each expert is the best in its own reward, got {delta!r}."
            )
    if max(delta_1 / delta_2, delta_2 / delta_1) > ratio * (1 + 1e-9):
        raise InputError(
            f"ratio: expected at least {max(delta_1 / delta_2, delta_2 / delta_1):g}, the ratio of the deltas, got "
            f"{ratio:g}."
        )
    room = max(ratio * delta_1 - delta_2, 0.0) * max(ratio * delta_2 - delta_1, 0.0)
    both = mu * (1 - mu)
    return both**2 * room / ((both * (ratio - 1) ** 2 + ratio) * ((1 - mu) * delta_1 + mu * delta_2))


@dataclass(frozen=True, slots=True)
class Fold:
    """What one fold of a cross-validation chose, and what it is worth on items it did not see.

    Attributes:
        coefficients: Chosen on the items of the other folds.
        chosen_by: The mean user's reward there.
        held_out: The mean user's reward on the items of this fold.
        items: How many items this fold has.
    """

    coefficients: Mapping[str, float]
    chosen_by: float
    held_out: float
    items: int


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Coefficients chosen by cross-validation.

    Attributes:
        coefficients: The choice on all items, by the rule of one standard error.
        best: The coefficients with the largest mean on all items.
        means: The mean user's reward of each point, on all items.
        standard_errors: Of these means, from the items.
        held_out: The mean user's reward on held-out items of what the other folds chose: an honest estimate of what
            choosing like this is worth.
        held_out_error: Its standard error, from the items.
        folds: One by one.
    """

    coefficients: Mapping[str, float]
    best: Mapping[str, float]
    means: Array
    standard_errors: Array
    held_out: float
    held_out_error: float
    folds: tuple[Fold, ...]


def cross_validate(
    front: RewardFront,
    preference: Mapping[str, float],
    *,
    user_reward: Callable[[Mapping[str, Array]], ArrayLike] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> CrossValidation:
    r"""Coefficients among those of a front, chosen on some items and reported on others.

    Each fold of the items is held out once; a point is chosen on the rest and reported on the fold. A choice follows
    the rule of one standard error: of all points whose mean is within one standard error of the best one's, that with
    the coefficients nearest to the preference :math:`\hat\mu` (Euclidean; the first of equals).

    Args:
        front: With values per item.
        preference: By trained reward, on the simplex: the user's reward, unless ``user_reward`` is given, and where the
            rule pulls to.
        user_reward: A reward that is not linear: from the values by reward, ``(points, items)`` each, to
            ``(points, items)``.
        folds: How many, at least 2; each with one item or more and two left to choose on.
        seed: Of the assignment of items to folds.

    Raises:
        InputError: For a front without values per item, or with too few items; for a preference that does not fit
            (`lambda_equals_mu`); for a user's reward of another shape or not finite.

    Example:
        >>> front = RewardFront(
        ...     experts=("a", "b"),
        ...     rewards=("a", "b"),
        ...     coefficients=({"a": 1, "b": 0}, {"a": 0.5, "b": 0.5}, {"a": 0, "b": 1}),
        ...     values=[[[1, 1, 1, 1], [0, 0, 0, 0]], [[0.9, 0.8, 0.9, 0.8], [0.8] * 4], [[0] * 4, [1] * 4]],
        ... )
        >>> found = cross_validate(front, {"a": 0.5, "b": 0.5}, folds=2)
        >>> found.coefficients, round(found.held_out, 3)
        ({'a': 0.5, 'b': 0.5}, 0.825)

    References:
        Ramé et al. (2023), Rewarded soups; thesis, figure 6.4 (a), "CV lambda". Breiman et al. (1984), Classification
        and regression trees, for the rule of one standard error.
    """
    table = front.require_values("cross_validate")
    points, _, items = table.shape
    if folds < 2 or items < folds or items - math.ceil(items / folds) < 2:
        raise InputError(
            f"folds: expected 2 or more, with an item in each and two items outside of it, got {folds} folds of "
            f"{items} items."
        )
    near = lambda_equals_mu(preference, front.trained_on).coefficients
    target = np.array([near.get(name, 0.0) for name in front.experts])
    distances = np.linalg.norm(front.shares - target, axis=1)
    if user_reward is None:
        weights = check_numbers(preference, list(preference), "preference")
        scores = np.einsum(
            "pki,k->pi", table[:, front.columns(list(weights))], np.array(list(weights.values()))
        )
    else:
        scores = as_array("user_reward", user_reward(front.values_by_reward()))
        if scores.shape != (points, items) or not np.isfinite(scores).all():
            raise InputError(
                f"user_reward: expected finite values of shape {(points, items)}, (points, items), got shape "
                f"{scores.shape}."
            )

    def choose(of: Array) -> int:
        means = of.mean(axis=1)
        best = int(means.argmax())
        error = float(of[best].std(ddof=1)) / math.sqrt(of.shape[1])
        near_best = np.flatnonzero(means >= means[best] - error)
        return int(near_best[distances[near_best].argmin()])

    found, held_out = [], np.empty(items)
    for fold in np.array_split(stream("cross_validate", seed).permutation(items), folds):
        rest = np.setdiff1d(np.arange(items), fold)
        row = choose(scores[:, rest])
        held_out[fold] = scores[row, fold]
        found.append(
            Fold(
                front.coefficients[row],
                float(scores[row, rest].mean()),
                float(scores[row, fold].mean()),
                len(fold),
            )
        )
    means = scores.mean(axis=1)
    return CrossValidation(
        coefficients=front.coefficients[choose(scores)],
        best=front.coefficients[int(means.argmax())],
        means=means,
        standard_errors=scores.std(axis=1, ddof=1) / math.sqrt(items),
        held_out=float(held_out.mean()),
        held_out_error=float(held_out.std(ddof=1)) / math.sqrt(items),
        folds=tuple(found),
    )


@dataclass(frozen=True, slots=True)
class Refined:
    """What `grid_then_refine` found.

    Attributes:
        coefficients: Where the largest value was seen.
        value: The mean there.
        standard_error: Of the mean, or None where the evaluation gave one number.
        evaluations: From the coefficient of the second expert to the mean, in the order of the search.
        bracket: The coefficients of the second expert between which the best one lies, if the values have one peak.
        stopped_by: ``"noise"`` if the values in the bracket cannot be told apart, ``"width"`` if the bracket became as
            narrow as asked for.
    """

    coefficients: Mapping[str, float]
    value: float
    standard_error: float | None
    evaluations: Mapping[float, float]
    bracket: tuple[float, float]
    stopped_by: Literal["noise", "width"]


def grid_then_refine(
    evaluate: Callable[[dict[str, float]], Any],
    experts: Sequence[str],
    *,
    points: int = 11,
    noise: float | None = None,
    width: float = 1e-3,
) -> Refined:
    """The best coefficient between two experts: a coarse grid, then golden section around its best point.

    The search ends when the values at both ends of the bracket are within the noise of the best value, or when the
    bracket is narrow. For values with one peak inside the cells beside the best grid point; with several, it finds one
    of them.

    Args:
        evaluate: From coefficients by expert to the user's reward: a number, or one value per evaluation item in the
            same order every time.
        experts: Two names.
        points: Of the grid, ends included.
        noise: Differences up to this are none. By default the paired standard error of the difference, where values per
            item are given, else 0.
        width: Of the narrowest bracket.

    Raises:
        InputError: For other than two experts, fewer than three points, a width that is not positive, a negative noise;
            for a value that is not finite, with its coefficients.

    Example:
        >>> found = grid_then_refine(lambda shares: -((shares["b"] - 0.33) ** 2), ["a", "b"], points=5)
        >>> round(found.coefficients["b"], 2), found.stopped_by
        (0.33, 'width')

    References:
        Kiefer (1953), Sequential minimax search for a maximum.
    """
    first, second = _two(experts)
    if points < 3:
        raise InputError(f"points: expected at least 3, got {points}.")
    if not 0 < width < math.inf:
        raise InputError(f"width: expected a positive number, got {width!r}.")
    if noise is not None and not 0 <= noise < math.inf:
        raise InputError(f"noise: expected a number from 0, got {noise!r}.")
    seen: dict[float, Array] = {}

    def value(share: float) -> float:
        if share not in seen:
            shares = {first: 1 - share, second: share}
            seen[share] = as_array("evaluate", evaluate(shares))
            expected = next(iter(seen.values())).shape
            found = seen[share]
            if found.ndim > 1 or not found.size or not np.isfinite(found).all() or found.shape != expected:
                raise InputError(
                    f"evaluate: expected a finite number, or one per item as before, at {shares}, got "
                    f"{found.tolist()!r:.60}."
                )
        return float(seen[share].mean())

    def same(one: float, other: float) -> bool:
        gap = seen[one] - seen[other]
        limit = noise
        if limit is None:
            limit = float(gap.std(ddof=1)) / math.sqrt(gap.size) if gap.size > 1 else 0.0
        return abs(float(gap.mean())) <= limit

    grid = [i / (points - 1) for i in range(points)]
    best = max(grid, key=value)
    low, high = grid[max(grid.index(best) - 1, 0)], grid[min(grid.index(best) + 1, points - 1)]
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    stopped: Literal["noise", "width"] = "width"
    while high - low > width:
        if same(best, low) and same(best, high):
            stopped = "noise"
            break
        if value(left) >= value(right):
            high, right = right, left
            left = high - golden * (high - low)
        else:
            low, left = left, right
            right = low + golden * (high - low)
        best = max(seen, key=value)
    chosen = seen[best]
    error = float(chosen.std(ddof=1)) / math.sqrt(chosen.size) if chosen.size > 1 else None
    return Refined(
        {first: 1 - best, second: best},
        value(best),
        error,
        {share: value(share) for share in seen},
        (low, high),
        stopped,
    )


def _two(experts: Sequence[str]) -> tuple[str, str]:
    names = check_names("experts", experts)
    if len(names) != 2:
        raise InputError(
            f"experts: expected two, got {len(names)}. For more, take the best of a `simplex_design`."
        )
    return names[0], names[1]


def _square(distances: Mapping[str, Mapping[str, float]] | None, one: str, other: str) -> float:
    if distances is None:
        return 1.0
    try:
        distance = float(distances[one][other])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"distances: expected a number for {one!r} and {other!r}.") from error
    if not 0 < distance < math.inf:
        raise InputError(
            f"distances: expected a positive number for {one!r} and {other!r}, got {distance!r}. Equal experts are one."
        )
    return distance**2
