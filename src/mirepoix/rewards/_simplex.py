r"""Coefficients on the simplex: which soups of N experts to look at.

.. math:: \Delta_N = \{\lambda \in \mathbb{R}^N : \lambda_i \ge 0,\ \textstyle\sum_i \lambda_i = 1\}.

Coefficients are always keyed by the name of the expert: a list of numbers would not say which is whose.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np

from mirepoix.rewards._points import Array
from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = [
    "check_coefficients",
    "check_names",
    "check_numbers",
    "simplex_design",
    "simplex_lattice",
    "simplex_uniform",
]


def simplex_uniform(experts: Sequence[str], count: int, seed: int = 0) -> list[dict[str, float]]:
    r"""Coefficients drawn uniformly from the simplex.

    .. math:: \lambda_i = E_i / \textstyle\sum_j E_j, \qquad E_i \sim \text{Exponential}(1),

    which is Dirichlet(1, ..., 1): each coefficient has the mean :math:`1/N` and the variance
    :math:`(N-1) / (N^2 (N+1))`. (Uniform numbers divided by their sum would crowd around the centre.) The first
    draws are the same for every ``count``.

    Args:
        experts: Their names.
        count: How many.
        seed: Of the draws.

    Returns:
        One mapping from expert to coefficient for each draw.

    Raises:
        InputError: Without experts, with a name twice, or with a negative ``count``.

    Example:
        >>> [{name: round(share, 2) for name, share in draw.items()} for draw in simplex_uniform(["a", "b"], 2)]
        [{'a': 0.61, 'b': 0.39}, {'a': 0.38, 'b': 0.62}]

    References:
        Ramé et al. (2023), Rewarded soups; thesis, section 6.2.1: the M coefficients among which one is selected.
    """
    names = check_names("experts", experts)
    if count < 0:
        raise InputError(f"count: expected 0 or more draws, got {count}.")
    return _named(names, _uniform(len(names), count, seed))


def simplex_lattice(experts: Sequence[str], steps: int) -> list[dict[str, float]]:
    r"""All coefficients that are multiples of 1 / ``steps``, in lexicographic order.

    :math:`\lambda = h / H` for all non-negative integers :math:`h` with :math:`\sum_i h_i = H`, in all
    :math:`\binom{H+N-1}{N-1}`. For two experts and ``steps=10`` these are the 11 coefficients of the published
    figures, from the second expert alone to the first alone.

    Args:
        experts: Their names.
        steps: :math:`H`.

    Raises:
        InputError: Without experts, with a name twice, or with fewer than one step.

    Example:
        >>> simplex_lattice(["helpful", "short"], 2)
        [{'helpful': 0.0, 'short': 1.0}, {'helpful': 0.5, 'short': 0.5}, {'helpful': 1.0, 'short': 0.0}]

    References:
        Scheffé (1958), Experiments with mixtures: the simplex-lattice design.
    """
    names = check_names("experts", experts)
    if steps < 1:
        raise InputError(f"steps: expected at least 1, got {steps}.")
    return _named(names, _lattice(len(names), steps))


def simplex_design(experts: Sequence[str], count: int, seed: int = 0) -> list[dict[str, float]]:
    """The experts alone, their uniform soup, then uniform draws, ``count`` in all.

    No coefficients come twice. A larger ``count`` adds draws and changes none. With one expert there is nothing to
    mix, and the one vertex is returned.

    Args:
        experts: Their names.
        count: How many, at least one more than experts.
        seed: Of the draws.

    Raises:
        InputError: Without experts, with a name twice, or when ``count`` leaves no room for vertices and centre.

    Example:
        >>> simplex_design(["a", "b"], 3)
        [{'a': 1.0, 'b': 0.0}, {'a': 0.0, 'b': 1.0}, {'a': 0.5, 'b': 0.5}]
    """
    names = check_names("experts", experts)
    size = len(names)
    if size == 1:
        return [{names[0]: 1.0}]
    if count < size + 1:
        raise InputError(
            f"count: expected at least {size + 1}, for {size} experts alone and their uniform soup, got {count}."
        )
    fixed = np.concatenate([np.eye(size), np.full((1, size), 1 / size)])
    rows = [tuple(row) for row in np.concatenate([fixed, _uniform(size, count - size - 1, seed)]).tolist()]
    return _named(names, np.array(list(dict.fromkeys(rows))))


def check_names(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names, at least one and none twice.

    Raises:
        InputError: Otherwise.
    """
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{what}: expected a list of names, got {names!r}.")
    found = tuple(names)
    if not found:
        raise InputError(f"{what}: expected at least one name, got none.")
    twice = [name for i, name in enumerate(found) if name in found[:i]]
    if twice:
        raise InputError(f"{what}: expected each name once, got {twice[0]!r} twice. Rename one of them.")
    return found


def check_coefficients(
    coefficients: Mapping[str, float],
    experts: Sequence[str],
    *,
    extrapolate: bool = False,
    what: str = "coefficients",
) -> dict[str, float]:
    """The coefficients in the order of the experts.

    Args:
        coefficients: One for each expert, by name.
        experts: The names.
        extrapolate: Allow coefficients outside [0, 1]; they sum to one all the same.
        what: How messages call them.

    Raises:
        InputError: For other names than those of the experts; for numbers that are not finite, lie outside [0, 1]
            or do not sum to one within 1e-6.
    """
    values = check_numbers(coefficients, experts, what)
    total = math.fsum(values.values())
    if abs(total - 1) > 1e-6:
        raise InputError(
            f"{what}: expected numbers on the simplex, which sum to one, got {dict(values)}, which sum to "
            f"{total:.9g}. Divide them by their sum."
        )
    outside = [name for name, value in values.items() if not 0 <= value <= 1]
    if outside and not extrapolate:
        raise InputError(
            f"{what}: expected numbers on the simplex, in [0, 1], got {values[outside[0]]:g} for {outside[0]!r}. "
            "Pass extrapolate=True to leave the simplex."
        )
    return values


def check_numbers(numbers: Mapping[str, float], names: Sequence[str], what: str) -> dict[str, float]:
    """One finite number for each name and no other, in the order of the names."""
    if not isinstance(numbers, Mapping):
        raise InputError(f"{what}: expected a mapping from name to number, got {numbers!r}.")
    if set(numbers) != set(names):
        raise InputError(
            f"{what}: expected one number for each of {', '.join(map(repr, names))}, got "
            f"{', '.join(map(repr, numbers)) or 'none'}."
        )
    for name in names:
        value = numbers[name]
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise InputError(f"{what}: expected a finite number for {name!r}, got {value!r}.")
    return {name: float(numbers[name]) for name in names}


def _named(names: Sequence[str], rows: Array) -> list[dict[str, float]]:
    return [dict(zip(names, row, strict=True)) for row in rows.tolist()]


def _uniform(size: int, count: int, seed: int) -> Array:
    draws = stream("simplex", seed).exponential(size=(count, size))
    return np.asarray(draws / draws.sum(axis=1, keepdims=True))


def _lattice(size: int, steps: int) -> Array:
    # Stars and bars: the bars stand between the coefficients, and what is between two bars is one of them.
    chosen = list(itertools.combinations(range(steps + size - 1), size - 1))
    bars = np.array(chosen, dtype=np.int64).reshape(len(chosen), size - 1)
    first, last = np.full((len(bars), 1), -1), np.full((len(bars), 1), steps + size - 1)
    return np.asarray((np.diff(np.concatenate([first, bars, last], axis=1), axis=1) - 1) / steps)
