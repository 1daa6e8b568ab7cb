r"""Rewards brought to a common scale before they are compared or summed.

Each function fits constants on some data and returns them as a `Normaliser`, which applies them to any other and
never fits again. The constants belong to the front: see `RewardFront.normalised`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from mirepoix.rewards._points import Array, as_array
from mirepoix.rewards._simplex import check_names
from mirepoix.types import InputError

__all__ = ["Method", "Normaliser", "init_worst", "minmax", "none", "rank", "zscore"]

Method: TypeAlias = Literal["init_worst", "minmax", "zscore", "rank", "none"]


@dataclass(frozen=True, eq=False)
class Normaliser:
    r"""Constants that were fitted once: :math:`r' = (r - \text{offset}) / \text{scale}`, or ranks.

    Attributes:
        method: Which function fitted them.
        offset: By reward.
        scale: By reward, positive.
        ranked: For ``"rank"``, by reward: the sorted values of the compared models, ``(items, models)``.
    """

    method: Method
    offset: Mapping[str, float] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)
    ranked: Mapping[str, Array] = field(default_factory=dict)

    @property
    def rewards(self) -> tuple[str, ...]:
        """The rewards it knows."""
        return tuple(self.ranked) if self.method == "rank" else tuple(self.offset)

    def apply(self, values: Mapping[str, ArrayLike]) -> dict[str, Array]:
        """The rewards on the fitted scale.

        Args:
            values: By reward, of any shape. For ``"rank"`` the last axis is that of the items that were ranked.

        Raises:
            InputError: For a reward that was not fitted; for another number of items than was ranked.
        """
        return {name: self.apply_to(name, value) for name, value in values.items()}

    def apply_to(self, reward: str, values: ArrayLike) -> Array:
        """The same for one reward.

        Raises:
            InputError: As in `apply`.
        """
        array = as_array(f"reward {reward!r}", values)
        if reward not in self.rewards:
            raise InputError(
                f"normaliser: {reward!r} was not among the rewards it was fitted on, "
                f"{', '.join(map(repr, self.rewards))}. Fit it again with that reward."
            )
        if self.method != "rank":
            return (array - self.offset[reward]) / self.scale[reward]
        ranked = self.ranked[reward]
        if array.shape[-1:] != (len(ranked),):
            raise InputError(
                f"normaliser: expected the {len(ranked)} items that were ranked along the last axis of {reward!r}, got "
                f"shape {array.shape}."
            )
        ranks = np.empty_like(array)
        for item, known in enumerate(ranked):
            below = np.searchsorted(known, array[..., item], side="left")
            upto = np.searchsorted(known, array[..., item], side="right")
            ranks[..., item] = (below + upto + 1) / 2
        return ranks

    def to_dict(self) -> dict[str, Any]:
        """The constants as plain values."""
        return {
            "method": self.method,
            "offset": dict(self.offset),
            "scale": dict(self.scale),
            "ranked": {name: known.tolist() for name, known in self.ranked.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Normaliser:
        """The inverse of `to_dict`.

        Raises:
            InputError: If a key is missing, or the method is unknown.
        """
        missing = {"method", "offset", "scale", "ranked"} - set(values)
        if missing or values["method"] not in get_args(Method):
            raise InputError(
                f"normaliser: expected method, offset, scale and ranked, with one of the methods "
                f"{', '.join(get_args(Method))}, got {dict(values)!r}."
            )
        return cls(
            values["method"],
            {name: float(value) for name, value in values["offset"].items()},
            {name: float(value) for name, value in values["scale"].items()},
            {name: as_array(name, known) for name, known in values["ranked"].items()},
        )


def init_worst(means: Mapping[str, ArrayLike], initial: Mapping[str, float]) -> Normaliser:
    r"""Rewards counted from the worst compared model, in units of what the initialisation has above it.

    .. math:: r' = \frac{r - r_\text{worst}}{r_\text{init} - r_\text{worst}}:

    1 is the initialisation, 0 the worst model, more than 1 a gain.

    Args:
        means: By reward, the means of all compared models; the initialisation may be among them.
        initial: By reward, the mean of the initialisation.

    Raises:
        InputError: If no compared model is worse than the initialisation in some reward; for means that are not
            finite, or missing.

    Example:
        >>> fitted = init_worst({"bleu": [0.80, 0.86, 0.84]}, {"bleu": 0.83})
        >>> fitted.apply_to("bleu", [0.80, 0.83, 0.86]).round(6).tolist()
        [0.0, 1.0, 2.0]

    References:
        Ramé et al. (2023), Rewarded soups; thesis, figure 6.4 (a) and (b).
    """
    known = _finite(means)
    if set(initial) != set(known):
        raise InputError(
            f"initial: expected one number for each of {', '.join(map(repr, known))}, got "
            f"{', '.join(map(repr, initial)) or 'none'}."
        )
    first = {name: array.ravel() for name, array in _finite(initial).items()}
    offset, scale = {}, {}
    for name, array in known.items():
        offset[name] = float(array.min())
        scale[name] = float(first[name][0]) - offset[name]
        if scale[name] <= 0:
            raise InputError(
                f"init_worst: expected a model worse than the initialisation in {name!r}, got {first[name][0]:g} for "
                f"the initialisation and {offset[name]:g} for the worst. Compare more models, or take minmax."
            )
    return Normaliser("init_worst", offset, scale)


def minmax(means: Mapping[str, ArrayLike], *, margin: float = 0.0) -> Normaliser:
    r"""The worst compared model at 0, the best at 1.

    .. math:: r' = \frac{r - (r_\text{min} - m d)}{(1 + 2m) d}, \qquad d = r_\text{max} - r_\text{min}.

    Args:
        means: By reward, the means of all compared models.
        margin: :math:`m`, room on both sides as a share of the extent: 0.05 in spider maps, so that the worst model is
            not a point in the centre.

    Raises:
        InputError: If all models have the same mean in some reward; for a negative margin; for means that are not
            finite.

    Example:
        >>> minmax({"bleu": [0.80, 0.86, 0.84]}).apply_to("bleu", [0.80, 0.83, 0.86]).round(6).tolist()
        [0.0, 0.5, 1.0]
    """
    if not 0 <= margin < np.inf:
        raise InputError(f"margin: expected 0 or a positive number, got {margin!r}.")
    offset, scale = {}, {}
    for name, array in _finite(means).items():
        extent = float(array.max() - array.min())
        if extent <= 0:
            raise InputError(
                f"minmax: all compared models have {array.flat[0]:g} in {name!r}, so it has no scale. Leave it out."
            )
        offset[name] = float(array.min()) - margin * extent
        scale[name] = (1 + 2 * margin) * extent
    return Normaliser("minmax", offset, scale)


def zscore(samples: Mapping[str, ArrayLike]) -> Normaliser:
    r"""Mean 0 and variance 1 on the rewards of single samples.

    .. math:: r' = (r - \bar r) / s, \qquad s^2 = \tfrac1n \textstyle\sum_j (r_j - \bar r)^2.

    The choice when several rewards enter one scalar, as in `strategies.morl`: fit it on the rewards of the
    initialisation on training prompts, before training, and keep it.

    Args:
        samples: By reward, one value per sample.

    Raises:
        InputError: If a reward is constant; for values that are not finite.

    Example:
        >>> fitted = zscore({"score": [1.0, 3.0], "length": [10, 30]})
        >>> {name: values.tolist() for name, values in fitted.apply({"score": [5.0], "length": [20]}).items()}
        {'score': [3.0], 'length': [0.0]}
    """
    offset, scale = {}, {}
    for name, array in _finite(samples).items():
        offset[name], scale[name] = float(array.mean()), float(array.std())
        if array.min() == array.max():
            raise InputError(
                f"zscore: {name!r} is {array.flat[0]:g} for all {array.size} samples, so it has no scale. "
                "Fit on more samples, or leave it out."
            )
    return Normaliser("zscore", offset, scale)


def rank(values: Mapping[str, ArrayLike]) -> Normaliser:
    r"""The rank among the compared models, item by item: 1 for the worst, their number for the best.

    Models that tie share the mean of their ranks. A value that is none of a compared model has
    :math:`\#\{\text{below}\} + (\#\{\text{equal}\} + 1) / 2`, so 1/2 if it is worse than all. Blind to the scale of a
    reward, and to how much better a model is.

    Args:
        values: By reward, ``(models, items)``.

    Raises:
        InputError: For another shape; for values that are not finite.

    Example:
        >>> rank({"score": [[0.1, 9.0], [0.3, 2.0], [0.3, 5.0]]}).apply_to("score", [[0.1, 9.0], [0.3, 2.0]]).tolist()
        [[1.0, 3.0], [2.5, 1.0]]
    """
    ranked = {}
    for name, array in _finite(values).items():
        if array.ndim != 2:
            raise InputError(f"rank: expected {name!r} as (models, items), got shape {array.shape}.")
        ranked[name] = np.sort(array.T, axis=1)
    return Normaliser("rank", ranked=ranked)


def none(rewards: Sequence[str]) -> Normaliser:
    """Rewards as they are, for code that always has a normaliser.

    Args:
        rewards: Their names.

    Raises:
        InputError: Without rewards, or with a name twice.

    Example:
        >>> none(["score"]).apply_to("score", [0.25]).tolist()
        [0.25]
    """
    names = check_names("rewards", rewards)
    return Normaliser("none", dict.fromkeys(names, 0.0), dict.fromkeys(names, 1.0))


def _finite(values: Mapping[str, Any]) -> dict[str, Array]:
    if not isinstance(values, Mapping) or not values:
        raise InputError(f"expected values by the name of the reward, got {values!r}.")
    found = {}
    for name, value in values.items():
        found[name] = as_array(f"reward {name!r}", value)
        if not found[name].size or not np.isfinite(found[name]).all():
            raise InputError(f"reward {name!r}: expected finite values, got {value!r}.")
    return found
