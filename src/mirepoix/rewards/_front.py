"""A front: the rewards of many soups, with the coefficients that made them and what they were measured on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirepoix.checkpoints import read_json, write_atomically
from mirepoix.rewards._normalise import Normaliser
from mirepoix.rewards._pareto import as_values, nondominated_probability, pareto_mask
from mirepoix.rewards._points import Array, as_points, write
from mirepoix.rewards._simplex import check_names, check_numbers
from mirepoix.types import InputError

__all__ = ["FrontPoint", "RewardFront"]

FORMAT = 1
VERTEX = 1e-12  # how near to 1 the coefficient of an expert alone is


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """One soup of a front.

    Attributes:
        index: Its row.
        coefficients: By expert.
        means: By reward.
        score: What it was chosen by.
    """

    index: int
    coefficients: Mapping[str, float]
    means: Mapping[str, float]
    score: float


@dataclass(frozen=True, eq=False)
class RewardFront:
    r"""The rewards of several policies, on one fixed set of evaluation items. All rewards are maximised.

    Usually the policies are soups :math:`\theta_\lambda = \sum_i \lambda_i \theta_i` and ``coefficients`` their
    :math:`\lambda`. A front of MORL has one trained policy per row instead; its ``coefficients`` are the preferences
    :math:`\mu` they were trained with, and ``experts`` the names those are keyed by.

    Attributes:
        experts: Names that key the coefficients.
        rewards: Names of the rewards, the columns.
        coefficients: One mapping from expert to number for each point.
        means: ``(points, rewards)``; computed from ``values`` if those are given.
        values: ``(points, rewards, items)``, the same items in the same order for all points; or None. Intervals and
            cross-validation need them.
        trained_on: From expert to the reward it was trained on. By default an expert named as a reward was trained on
            that reward.
        normaliser: The scale the rewards are on, or None as they came.
        label: What the front is of.
        provenance: What it was made of, as plain values.

    Raises:
        InputError: When a number of rows, columns or names does not fit; for a reward that is not finite; for means
            that are not those of the values.

    Example:
        >>> front = RewardFront(
        ...     experts=("helpful", "short"),
        ...     rewards=("helpful", "short"),
        ...     coefficients=({"helpful": 1, "short": 0}, {"helpful": 0.5, "short": 0.5}, {"helpful": 0, "short": 1}),
        ...     means=[(3.0, 0.0), (2.5, 0.75), (1.0, 1.0)],
        ... )
        >>> front.best({"helpful": 0.5, "short": 0.5}).coefficients
        {'helpful': 0.5, 'short': 0.5}
    """

    experts: tuple[str, ...]
    rewards: tuple[str, ...]
    coefficients: tuple[Mapping[str, float], ...]
    means: Any = None
    values: Any = None
    trained_on: Mapping[str, str] = field(default_factory=dict)
    normaliser: Normaliser | None = None
    label: str = "rewarded soup"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        experts, rewards = check_names("experts", self.experts), check_names("rewards", self.rewards)
        coefficients = tuple(
            check_numbers(shares, experts, f"coefficients of point {i}")
            for i, shares in enumerate(self.coefficients)
        )
        if self.means is None and self.values is None:
            raise InputError(
                "means: expected the mean rewards of each point, or values per item, got neither."
            )
        values = None if self.values is None else as_values("values", self.values)
        means = as_points("means", self.means if values is None else values.mean(axis=-1))
        if values is not None and self.means is not None:
            given = as_points("means", self.means)
            if given.shape != means.shape or not np.allclose(given, means, rtol=1e-6, atol=1e-9):
                raise InputError("means: expected those of the values, got others. Give the values alone.")
        if means.shape != (len(coefficients), len(rewards)):
            raise InputError(
                f"means: expected {len(coefficients)} points (one for each of the coefficients) of {len(rewards)} "
                f"rewards, got shape {means.shape}."
            )
        trained_on = dict(self.trained_on) or {name: name for name in experts if name in rewards}
        unknown = [name for name in trained_on if name not in experts]
        if unknown:
            raise InputError(
                f"trained_on: {unknown[0]!r} is none of the experts {', '.join(map(repr, experts))}."
            )
        for array in (means, values):
            if array is not None:
                array.flags.writeable = False
        made = {
            "experts": experts,
            "rewards": rewards,
            "coefficients": coefficients,
            "means": means,
            "values": values,
            "trained_on": trained_on,
            "provenance": dict(self.provenance),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.coefficients)

    @property
    def shares(self) -> Array:
        """The coefficients as ``(points, experts)``."""
        return np.array([[shares[name] for name in self.experts] for shares in self.coefficients])

    @property
    def items(self) -> int | None:
        """How many evaluation items there are, or None where only means are known."""
        return None if self.values is None else int(self.values.shape[-1])

    def columns(self, rewards: Sequence[str] | None = None) -> list[int]:
        """The columns of some rewards, all by default.

        Raises:
            InputError: For a reward the front does not have.
        """
        names = self.rewards if rewards is None else check_names("rewards", rewards)
        missing = [name for name in names if name not in self.rewards]
        if missing:
            raise InputError(
                f"rewards: the front has no {missing[0]!r}; it has {', '.join(map(repr, self.rewards))}."
            )
        return [self.rewards.index(name) for name in names]

    def trained_rewards(self) -> tuple[str, ...]:
        """The rewards of the front that some expert was trained on; all if it is not known of any."""
        known = set(self.trained_on.values())
        return tuple(name for name in self.rewards if name in known) or self.rewards

    def vertex(self, expert: str) -> int | None:
        """The row of an expert alone, or None."""
        for i, shares in enumerate(self.coefficients):
            if all(abs(share - (name == expert)) <= VERTEX for name, share in shares.items()):
                return i
        return None

    def ends(self) -> list[int]:
        """The rows of the experts alone, in their order.

        Raises:
            InputError: If one is missing.
        """
        found = [self.vertex(expert) for expert in self.experts]
        missing = [expert for expert, row in zip(self.experts, found, strict=True) if row is None]
        if missing:
            raise InputError(
                f"front: expected each expert alone among its points, but {missing[0]!r} is missing. Evaluate the "
                f"coefficients that are 1 for it and 0 for the others."
            )
        return [row for row in found if row is not None]

    def table(self) -> dict[str, dict[str, float]]:
        """The mean rewards of each expert alone: ``table[expert][reward]``.

        Raises:
            InputError: If one is missing among the points.
        """
        return {
            expert: self._named(self.means[row])
            for expert, row in zip(self.experts, self.ends(), strict=True)
        }

    def score(self, preference: Mapping[str, float] | Callable[[Mapping[str, float]], float]) -> Array:
        """The user's reward of each point.

        Args:
            preference: A weight for some of the rewards, the others having none; or any function of the mean
                rewards by name.

        Raises:
            InputError: For a reward the front does not have, weights that are not finite, or a score that is NaN.
        """
        if callable(preference):
            scores = np.array([float(preference(self._named(row))) for row in self.means])
        else:
            weights = check_numbers(preference, list(preference), "preference")
            scores = self.means[:, self.columns(list(weights))] @ np.array(list(weights.values()))
        if np.isnan(scores).any():
            raise InputError(f"preference: the score of point {int(np.isnan(scores).argmax())} is NaN.")
        return np.asarray(scores)

    def best(self, preference: Mapping[str, float] | Callable[[Mapping[str, float]], float]) -> FrontPoint:
        r"""The point with the largest user's reward, the first of equals.

        .. math:: \arg\max_\lambda \hat R(\theta_\lambda).

        The score of the winner is optimistic on the items it was chosen on: report it on others
        (`cross_validate`).

        Args:
            preference: As in `score`.

        Raises:
            InputError: As in `score`.
        """
        scores = self.score(preference)
        row = int(scores.argmax())
        return FrontPoint(row, self.coefficients[row], self._named(self.means[row]), float(scores[row]))

    def nondominated(self, eps: float = 0.0, rewards: Sequence[str] | None = None) -> NDArray[np.bool_]:
        """Which points no other dominates: see `pareto_mask`.

        Args:
            eps: Largest difference that is a tie.
            rewards: Which to look at; all by default.
        """
        return pareto_mask(self.means[:, self.columns(rewards)], eps)

    def rows(
        self, *, rewards: Sequence[str] | None = None, resamples: int = 1000, seed: int = 0
    ) -> list[dict[str, Any]]:
        """The front as a table, one row of plain values for each point.

        Args:
            rewards: Which to look at for what is dominated; all by default.
            resamples: Of the bootstrap behind ``nondominated_probability``.
            seed: Of its draws.

        Returns:
            For each point ``coefficients``, ``means``, ``nondominated`` and, where there are values
            per item, ``standard_errors`` of the means (None for one item) and ``nondominated_probability``.
        """
        mask = self.nondominated(rewards=rewards)
        rows: list[dict[str, Any]] = [
            {"coefficients": dict(shares), "means": self._named(means), "nondominated": bool(kept)}
            for shares, means, kept in zip(self.coefficients, self.means, mask, strict=True)
        ]
        if self.values is None:
            return rows
        looked_at = self.values[:, self.columns(rewards)]
        likely = nondominated_probability(looked_at, resamples=resamples, seed=seed)
        count = self.values.shape[-1]
        for row, values, probability in zip(rows, self.values, likely, strict=True):
            errors = None if count < 2 else self._named(values.std(axis=-1, ddof=1) / math.sqrt(count))
            row.update(standard_errors=errors, nondominated_probability=float(probability))
        return rows

    def normalised(self, normaliser: Normaliser) -> RewardFront:
        """The front on another scale, which it keeps.

        Args:
            normaliser: Fitted on the rewards of this front, or of a front to compare with.

        Raises:
            InputError: If the front is normalised already; if a reward was not fitted; for ``rank`` without values
                per item.
        """
        if self.normaliser is not None:
            raise InputError(
                "normaliser: the front is normalised already. Begin with the rewards as they came."
            )
        if normaliser.method == "rank" and self.values is None:
            raise InputError("normaliser: ranks need values per item, and the front has means only.")
        values = None
        if self.values is not None:
            values = np.stack(
                [normaliser.apply_to(name, self.values[:, k]) for k, name in enumerate(self.rewards)], axis=1
            )
        means = None
        if values is None:
            means = np.stack(
                [normaliser.apply_to(name, self.means[:, k]) for k, name in enumerate(self.rewards)], axis=1
            )
        return replace(self, means=means, values=values, normaliser=normaliser)

    def by_reward(self) -> dict[str, Array]:
        """The means of all points by reward, as `minmax` and `init_worst` want them."""
        return {name: self.means[:, k] for k, name in enumerate(self.rewards)}

    def values_by_reward(self) -> dict[str, Array]:
        """The values by reward, ``(points, items)`` each, as `rank` wants them.

        Raises:
            InputError: If only means are known.
        """
        values = self.require_values("values_by_reward")
        return {name: values[:, k] for k, name in enumerate(self.rewards)}

    def require_values(self, what: str) -> Array:
        """The values per item.

        Raises:
            InputError: If only means are known.
        """
        if self.values is None:
            raise InputError(
                f"{what}: expected a front with values per item, got means only. Make it with `sweep`, or pass "
                "`values`."
            )
        return np.asarray(self.values)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "format": FORMAT,
            "label": self.label,
            "experts": list(self.experts),
            "rewards": list(self.rewards),
            "trained_on": dict(self.trained_on),
            "coefficients": [dict(shares) for shares in self.coefficients],
            "means": self.means.tolist(),
            "values": None if self.values is None else self.values.tolist(),
            "normaliser": None if self.normaliser is None else self.normaliser.to_dict(),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "front") -> RewardFront:
        """The inverse of `to_dict`.

        Args:
            values: As from `to_dict`.
            where: What messages call it.

        Raises:
            InputError: For another format, a missing key, or values that do not fit each other.
        """
        wanted = {"format", "experts", "rewards", "coefficients", "means", "values"}
        missing = sorted(wanted - set(values)) if isinstance(values, Mapping) else sorted(wanted)
        if missing:
            raise InputError(
                f"{where}: expected a front as `RewardFront.save` writes it, but it has no {missing[0]!r}."
            )
        if values["format"] != FORMAT:
            raise InputError(
                f"{where}: expected a front of format {FORMAT}, got {values['format']!r}. Read it with a newer "
                "mirepoix."
            )
        fitted = values.get("normaliser")
        per_item = values["values"]
        try:
            return cls(
                experts=tuple(values["experts"]),
                rewards=tuple(values["rewards"]),
                coefficients=tuple(values["coefficients"]),
                means=values["means"] if per_item is None else None,
                values=per_item,
                trained_on=values.get("trained_on") or {},
                normaliser=None if fitted is None else Normaliser.from_dict(fitted),
                label=values.get("label", "rewarded soup"),
                provenance=values.get("provenance") or {},
            )
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    def to_json(self) -> str:
        """The front as text; the same front gives the same text, and numbers come back with the same bits.

        Raises:
            InputError: If the provenance holds something JSON cannot.
        """
        try:
            return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"provenance: expected plain values, got one JSON cannot hold: {error}."
            ) from error

    @classmethod
    def from_json(cls, text: str) -> RewardFront:
        """The inverse of `to_json`.

        Raises:
            InputError: If the text is not JSON, or as in `from_dict`.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise InputError(f"front: expected JSON, got text that is not: {error}.") from error
        return cls.from_dict(values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the front as JSON, whole or not at all.

        Raises:
            InputError: If the folder does not exist, or the provenance holds something JSON cannot.
        """
        write_atomically(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RewardFront:
        """Read what `save` wrote.

        Raises:
            InputError: If there is no such file, or as in `from_dict`, with the path.
        """
        return cls.from_dict(read_json(path), where=str(Path(path)))

    def __str__(self) -> str:
        head = [*(f"lambda[{name}]" for name in self.experts), *self.rewards]
        cells = [
            [*(write(shares[name]) for name in self.experts), *(write(value) for value in means)]
            for shares, means in zip(self.coefficients, self.means, strict=True)
        ]
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in (head, *cells)
        ]
        return "\n".join([f"{self.label}, {len(self)} points", *lines])

    def _named(self, row: Array) -> dict[str, float]:
        return dict(zip(self.rewards, row.tolist(), strict=True))
