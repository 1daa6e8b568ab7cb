r"""Many soups, one set of tensors: each :math:`\theta_\lambda` is written into it, evaluated, and remembered.

An evaluation is known by the weights that went in, their coefficients and what evaluated them. With a folder for a
cache every one is kept as soon as it is made, so a sweep that was killed goes on where it stopped.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mirepoix.checkpoints import fingerprint, read_json, write_json
from mirepoix.rewards._experts import Expert, check_experts
from mirepoix.rewards._front import RewardFront
from mirepoix.rewards._points import Array, written
from mirepoix.rewards._simplex import check_coefficients, check_names, check_numbers
from mirepoix.store import key_of
from mirepoix.types import InputError, Weights
from mirepoix.weights import interpolate

__all__ = ["evaluate_policies", "sweep"]

Evaluate = Callable[[Weights], Any]
Rewards = Mapping[str, Callable[[Any], Any]]


def sweep(
    experts: Sequence[Expert],
    coefficients: Sequence[Mapping[str, float]],
    evaluate: Evaluate,
    *,
    rewards: Rewards | None = None,
    evaluation: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    into: Mapping[str, Any] | None = None,
    items: int | None = None,
    extrapolate: bool = False,
    force: bool = False,
    label: str = "rewarded soup",
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RewardFront:
    r"""The rewards of the soups with the given coefficients.

    Each :math:`\theta_\lambda = \sum_i \lambda_i \theta_i` is written into the same tensors, tensor by tensor, and
    ``evaluate`` is called with them; memory is that of one model more. Coefficients that are 1 for an expert give its
    weights bit for bit. Common random numbers are up to ``evaluate``: take the same prompts and the same sampling seed
    each time.

    Experts whose weights are not finite have diverged: they are left out, with all coefficients in which they have a
    part, a warning, and a note in the provenance.

    Args:
        experts: Of one start: see `check_experts`. Lazy weights are read once for each point they take part in.
        coefficients: Of the soups, by expert: `simplex_design`, `simplex_lattice`. What comes twice is evaluated once.
        evaluate: From weights to ``{reward: one value per item}``, the items in the same order every time. The tensors
            are written again for the next point: do not keep them.
        rewards: If given, ``evaluate`` returns anything (completions, say) and each of these turns it into one value
            per item. Then a reward that fails is known by its name.
        evaluation: A text that names what decides the values beside the weights: prompts, sampling seed, settings of
            generation, reward models. Needed with ``cache``.
        cache: A folder for the values; made if it is not there.
        into: Tensors to write into, by name, such as the ``state_dict()`` of the one model that ``evaluate`` runs. By
            default new ones, of the dtype and on the device of the first expert. They hold the last soup at the end.
        items: How many values each reward has, where that is known beforehand.
        extrapolate: Allow coefficients outside [0, 1].
        force: As in `check_experts`.
        label: Of the front.
        provenance: Plain values to add to that of the front.
        progress: Called with (done, total) after each point.

    Returns:
        The front, its points in the order given. Its ``provenance`` holds the experts' fingerprints, their start,
        ``evaluation``, the warnings, and what was left out.

    Raises:
        InputError: As from `check_experts`; for coefficients off the simplex; for a reward that raises, is missing, is
            not finite or has another number of values, with its name, the coefficients and the item; if no expert or
            no point is left.

    Example:
        >>> a = Expert("a", "a", {"w": np.array([1.0, 0.0])}, start="the same")
        >>> b = Expert("b", "b", {"w": np.array([0.0, 1.0])}, start="the same")
        >>> front = sweep(
        ...     [a, b],
        ...     [{"a": 1, "b": 0}, {"a": 0.5, "b": 0.5}, {"a": 0, "b": 1}],
        ...     lambda theta: {"a": [1 - (theta["w"][0] - 1) ** 2], "b": [1 - (theta["w"][1] - 1) ** 2]},
        ... )
        >>> front.means.tolist()
        [[1.0, 0.0], [0.75, 0.75], [0.0, 1.0]]

    References:
        Ramé et al. (2023), Rewarded soups; thesis, section 6.2.1, the selection phase.
    """
    experts = list(experts)
    check = check_experts(experts, force=force)
    names = [expert.name for expert in experts]
    wanted = _listed("coefficients", coefficients)
    checked = [
        check_coefficients(shares, names, extrapolate=extrapolate, what=f"coefficients of point {i}")
        for i, shares in enumerate(wanted)
    ]
    kept, left_out = _without_diverged(experts)
    points = [
        {expert.name: shares[expert.name] for expert in kept}
        for shares in checked
        if all(shares[name] == 0 for name in left_out)
    ]
    if not points:
        raise InputError(
            "sweep: expected coefficients of at least one point, got none"
            + (f" without the diverged experts {', '.join(map(repr, left_out))}." if left_out else ".")
        )
    if left_out:
        warnings.warn(
            f"{' '.join(left_out.values())} {len(checked) - len(points)} of {len(checked)} points are left out.",
            stacklevel=2,
        )
    buffers = SoupBuffers(kept, into, extrapolate)
    judge = _Judge(evaluate, rewards, evaluation, cache, items)
    tables: dict[str, Array] = {}
    keys = []
    for done, shares in enumerate(points, start=1):
        taking_part = {name: share for name, share in shares.items() if share != 0}
        made_of = {
            "experts": {name: check.fingerprints[name] for name in taking_part},
            "coefficients": taking_part,
        }
        key = key_of(made_of)
        keys.append(key)
        if key not in tables:
            tables[key] = judge(made_of, f"lambda = {written(shares)}", partial(buffers.write, shares))
        if progress is not None:
            progress(done, len(points))
    return RewardFront(
        experts=tuple(expert.name for expert in kept),
        rewards=judge.names,
        coefficients=tuple(points),
        values=[tables[key] for key in keys],
        trained_on={expert.name: expert.reward for expert in kept},
        label=label,
        provenance={
            "experts": {expert.name: check.fingerprints[expert.name] for expert in kept},
            "start": check.start,
            "evaluation": evaluation,
            "warnings": list(check.warnings),
            "left_out": left_out,
            **(provenance or {}),
        },
    )


def evaluate_policies(
    policies: Sequence[Weights],
    preferences: Sequence[Mapping[str, float]],
    evaluate: Evaluate,
    *,
    rewards: Rewards | None = None,
    evaluation: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    items: int | None = None,
    label: str = "MORL",
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RewardFront:
    r"""The rewards of policies as they are: those of MORL, each trained with its own preference :math:`\mu`.

    Args:
        policies: Their weights, in memory or lazy.
        preferences: The weights of the rewards that each was trained with, by the same names for all.
        evaluate: As in `sweep`, and the same as for the soups to compare with.
        rewards: As in `sweep`.
        evaluation: As in `sweep`.
        cache: As in `sweep`; the same folder may serve both.
        items: As in `sweep`.
        label: Of the front.
        provenance: Plain values to add to that of the front.
        progress: Called with (done, total) after each policy.

    Returns:
        The front; its ``coefficients`` are the preferences.

    Raises:
        InputError: When the number of preferences is not that of policies, for their names, and for rewards as in
            `sweep`.

    Example:
        >>> front = evaluate_policies(
        ...     [{"w": np.array([0.7])}], [{"a": 0.5, "b": 0.5}], lambda theta: {"a": theta["w"], "b": 1 - theta["w"]}
        ... )
        >>> front.label, front.means.round(3).tolist()
        ('MORL', [[0.7, 0.3]])

    References:
        Ramé et al. (2023), Rewarded soups; thesis, section 6.2.1, the MORL baseline.
    """
    given = _listed("preferences", preferences)
    if len(given) != len(policies) or not given:
        raise InputError(
            f"preferences: expected one for each of the policies, at least one, got {len(given)} for {len(policies)}."
        )
    names = check_names("preferences", list(given[0]))
    checked = [check_numbers(weights, names, f"preferences of policy {i}") for i, weights in enumerate(given)]
    judge = _Judge(evaluate, rewards, evaluation, cache, items)
    tables, fingerprints = [], []
    for theta, weights in zip(policies, checked, strict=True):
        fingerprints.append(fingerprint(theta))
        tables.append(judge({"policy": fingerprints[-1]}, f"mu = {written(weights)}", partial(_as_is, theta)))
        if progress is not None:
            progress(len(tables), len(checked))
    return RewardFront(
        experts=names,
        rewards=judge.names,
        coefficients=tuple(checked),
        values=tables,
        label=label,
        provenance={"policies": fingerprints, "evaluation": evaluation, **(provenance or {})},
    )


class SoupBuffers:
    """One set of tensors, into which every soup is written."""

    def __init__(self, experts: Sequence[Expert], into: Mapping[str, Any] | None, extrapolate: bool) -> None:
        self.experts = {expert.name: expert.weights for expert in experts}
        self.names = list(experts[0].weights)
        self.extrapolate = extrapolate
        self.tensors: dict[str, Any] = {}
        self.own = into is None
        if into is not None:
            missing = [name for name in self.names if name not in into]
            if missing:
                raise InputError(
                    f"into: expected a tensor for each name of the experts, {missing[0]!r} is missing."
                )
            self.tensors = {name: into[name] for name in self.names}
            first = experts[0].weights
            for name, tensor in self.tensors.items():
                if tuple(tensor.shape) != tuple(first[name].shape):
                    raise InputError(
                        f"into: {name!r} has shape {tuple(tensor.shape)}, and {tuple(first[name].shape)} in expert "
                        f"{experts[0].name!r}."
                    )

    def write(self, shares: Mapping[str, float]) -> Weights:
        """The soup with these coefficients, in the tensors of this object."""
        # Experts without a part are not read.
        thetas = [self.experts[name] for name, share in shares.items() if share != 0]
        numbers = [share for share in shares.values() if share != 0]
        for name in self.names:
            soup = interpolate(
                [{name: theta[name]} for theta in thetas], numbers, extrapolate=self.extrapolate
            )[name]
            tensor = self.tensors.get(name)
            if tensor is None or (self.own and tensor.dtype != soup.dtype):
                self.tensors[name] = soup
            elif isinstance(tensor, np.ndarray):
                np.copyto(tensor, soup, casting="same_kind")
            else:
                tensor.detach().copy_(soup)
        return self.tensors


class _Judge:
    """Evaluations, checked and kept by what they are of."""

    def __init__(
        self,
        evaluate: Evaluate,
        rewards: Rewards | None,
        evaluation: str | None,
        cache: str | os.PathLike[str] | None,
        items: int | None,
    ) -> None:
        if cache is not None and not (isinstance(evaluation, str) and evaluation):
            raise InputError(
                "evaluation: expected a text that names prompts, sampling and reward models, as values are kept by it, "
                f"got {evaluation!r}."
            )
        self.evaluate, self.rewards, self.evaluation = evaluate, rewards, evaluation
        self.names: tuple[str, ...] = () if rewards is None else check_names("rewards", list(rewards))
        self.items = items
        self.cache = None if cache is None else Path(cache)
        if self.cache is not None:
            self.cache.mkdir(parents=True, exist_ok=True)

    def __call__(self, made_of: Mapping[str, Any], place: str, theta: Callable[[], Weights]) -> Array:
        """The values as ``(rewards, items)``: found, or made now and kept."""
        identity = {**made_of, "evaluation": self.evaluation}
        path = None if self.cache is None else self.cache / f"{key_of(identity)}.json"
        values = None if path is None else kept_values(path, identity)
        if values is None or not self._fits(values):
            values = self._evaluated(place, theta())
            if path is not None:
                write_json(path, {"format": 1, "made_of": identity, "values": values})
        self.names = self.names or check_names("rewards", list(values))
        self.items = len(values[self.names[0]])
        return np.array([values[name] for name in self.names])

    def _fits(self, values: Mapping[str, Sequence[float]]) -> bool:
        """Whether kept values have the rewards that are asked for; a reward may have been added since."""
        if not set(self.names) <= set(values):
            return False
        return self.items is None or all(len(found) == self.items for found in values.values())

    def _evaluated(self, place: str, theta: Weights) -> dict[str, list[float]]:
        what = "evaluate"
        try:
            found = self.evaluate(theta)
            if self.rewards is not None:
                outputs, found = found, {}
                for name, reward in self.rewards.items():
                    what = f"reward {name!r}"
                    found[name] = reward(outputs)
        except Exception as error:
            raise InputError(f"{what} failed at {place}: {type(error).__name__}: {error}") from error
        if not isinstance(found, Mapping):
            raise InputError(
                f"evaluate: expected values by the name of the reward at {place}, got {type(found).__name__}. For "
                "other results pass the rewards that score them: rewards={name: function}."
            )
        names = self.names or tuple(found)
        if set(found) != set(names):
            raise InputError(
                f"evaluate: expected the rewards {', '.join(map(repr, names))} at {place}, got "
                f"{', '.join(map(repr, found)) or 'none'}."
            )
        values: dict[str, list[float]] = {}
        for name in names:
            array = as_float64(found[name])
            where = f"reward {name!r} at {place}"
            if array is None or array.ndim != 1 or not array.size:
                shape = "something else" if array is None else f"shape {array.shape}"
                raise InputError(f"{where}: expected one number per item, got {shape}.")
            items = self.items or len(next(iter(values.values()), array))
            if len(array) != items:
                raise InputError(
                    f"{where}: expected {items} values, one per item, got {len(array)}; item "
                    f"{min(len(array), items)} is the first without a partner."
                )
            bad = np.flatnonzero(~np.isfinite(array))
            if len(bad):
                raise InputError(
                    f"{where}: expected finite values, got {array[bad[0]]} for item {bad[0]}, and {len(bad)} such in "
                    "all. Mend the reward, or take the item out of the evaluation set."
                )
            values[name] = [float(value) for value in array]
        return values


def _as_is(theta: Weights) -> Weights:
    return theta


def as_float64(values: Any) -> Array | None:
    """The values in float64, whatever library they come from."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def kept_values(path: Path, identity: Mapping[str, Any]) -> dict[str, list[float]] | None:
    """The values in a file of the cache; None if there is none, or it is not what was written."""
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        if record["made_of"] != dict(identity):
            return None
        values = {name: [float(value) for value in found] for name, found in record["values"].items()}
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return values if values and len({len(found) for found in values.values()}) == 1 else None


def _without_diverged(experts: Sequence[Expert]) -> tuple[list[Expert], dict[str, str]]:
    """The experts whose weights are finite, and why each other is left out."""
    kept, left_out = [], {}
    for expert in experts:
        bad = next((name for name in expert.weights if not _is_finite(expert.weights[name])), None)
        if bad is None:
            kept.append(expert)
        else:
            left_out[expert.name] = f"Expert {expert.name!r} diverged: {bad!r} holds NaN or infinity."
    if not kept:
        raise InputError(f"sweep: all experts diverged. {' '.join(left_out.values())}")
    return kept, left_out


def _is_finite(tensor: Any) -> bool:
    if isinstance(tensor, np.ndarray | np.generic):
        return bool(np.isfinite(tensor).all())
    import torch

    return bool(torch.isfinite(tensor).all())


def _listed(what: str, mappings: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    if isinstance(mappings, Mapping):
        raise InputError(
            f"{what}: expected a list of mappings, got a single one; put it in a list: [{{...}}]."
        )
    return list(mappings)
