r"""Which coefficients to take for a preference, on the points of a front."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mirepoix.rewards import RewardFront, cross_validate, lambda_equals_mu, minmax
from mirepoix.types import InputError

__all__ = ["check_preference", "choice"]

FOLDS = 5


def check_preference(preference: Mapping[str, float], front: RewardFront) -> dict[str, float]:
    r"""The preference :math:`\hat\mu`: a weight of 0 or more for some rewards, divided by their sum.

    Raises:
        InputError: For a reward that the front does not have, a number that is no weight, or none but zeros.
    """
    unknown = [name for name in preference if name not in front.rewards]
    if unknown:
        raise InputError(
            f"preference: there is no reward {unknown[0]!r}; the front has {', '.join(map(repr, front.rewards))}."
        )
    for name, weight in preference.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise InputError(f"preference: expected a weight of 0 or more for {name!r}, got {weight!r}.")
    total = float(sum(preference.values()))
    if total <= 0:
        raise InputError("preference: expected a weight above 0 for at least one reward.")
    return {name: float(weight) / total for name, weight in preference.items()}


def choice(front: RewardFront, preference: Mapping[str, float]) -> dict[str, Any]:
    r"""The point of a front for the user's reward :math:`\hat R = \sum_k \hat\mu_k R_k`, as plain values for a report.

    Rewards are scaled to [0, 1] between the worst and the best point of the front before they are weighted, so that the
    preference does not depend on their units; if one is the same everywhere they are taken as they are.

    If it is known which expert was trained on which reward, every reward of the preference is one of these, and there
    are items enough, a point is cross-validated: of those within one standard error of the best, the nearest to
    :math:`\lambda = \hat\mu`. Otherwise it is the point with the largest user's reward.

    Args:
        front: Of soups.
        preference: A weight for each reward that counts; they are divided by their sum.

    Returns:
        ``preference``, ``coefficients``, ``method`` in words, ``expected`` (the mean rewards there), ``exported``
        (None), and ``notes``.

    Raises:
        InputError: As from `check_preference`.
    """
    wanted = check_preference(preference, front)
    extent = np.ptp(front.means, axis=0)
    scaled = front.normaliser is None and bool((extent > 0).all())
    judged = front.normalised(minmax(front.by_reward())) if scaled else front
    unit = "rewards scaled to [0, 1] over the front" if scaled else "rewards as they are"
    best = judged.best(wanted)
    coefficients, method = dict(best.coefficients), f"largest mean of the preferred reward, {unit}"
    notes = []
    trained = set(front.trained_on.values())
    items = front.items or 0
    if set(wanted) <= trained and len(front.trained_on) == len(front.experts) and items >= 2 * FOLDS:
        found = cross_validate(judged, wanted, folds=FOLDS)
        coefficients = dict(found.coefficients)
        method = (
            f"cross-validated in {FOLDS} folds, the rule of one standard error nearest to lambda = mu, {unit}"
        )
        near = lambda_equals_mu(wanted, front.trained_on).coefficients
        notes.append(
            f"On items that were not chosen on, the preferred reward is {found.held_out:.4g} ± "
            f"{found.held_out_error:.2g}."
        )
        if coefficients == near:
            notes.append("It is the preference itself, lambda = mu, which needs no evaluation.")
    else:
        notes.append("It was chosen on the items it is reported on, which is optimistic.")
    row = next(i for i, shares in enumerate(front.coefficients) if dict(shares) == coefficients)
    expected = dict(zip(front.rewards, front.means[row].tolist(), strict=True))
    return {
        "preference": wanted,
        "coefficients": coefficients,
        "method": method,
        "expected": expected,
        "exported": None,
        "notes": notes,
    }
