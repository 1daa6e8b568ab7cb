"""Experts: one fine-tuning per reward from one start, and what they must share to be interpolated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards._simplex import check_names
from mirepoix.types import InputError, Weights
from mirepoix.weights import check_averageable

__all__ = ["Expert", "ExpertCheck", "check_experts"]


@dataclass(frozen=True, eq=False)
class Expert:
    """The result of one fine-tuning, for one reward.

    Attributes:
        name: What coefficients call it.
        reward: The reward it was trained on.
        weights: In memory or lazy (`mirepoix.open_weights`), torch or NumPy. For LoRA the effective weights, or an
            adapter merged from them: factors of adapters cannot be averaged (`mirepoix.merging.merge_adapters`).
        start: The fingerprint of the weights it started from (`mirepoix.checkpoints.fingerprint`), or None if unknown.
        metrics: Whatever its training reported, as plain values.
        tokenizer: What identifies its tokenizer, such as a digest of its files; None without one.
        generation: The settings of generation it was trained with; None without.
        state: What is fixed beside the weights and must be shared, by name, as plain values or digests: normalisers of
            observations, constants of a noise schedule. All experts name the same.
    """

    name: str
    reward: str
    weights: Weights
    start: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    generation: Mapping[str, Any] | None = None
    state: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """That of the weights: see `mirepoix.checkpoints.fingerprint`."""
        return fingerprint(self.weights)


@dataclass(frozen=True, slots=True)
class ExpertCheck:
    """What `check_experts` found.

    Attributes:
        fingerprints: Of the weights, by expert.
        start: The fingerprint of the start they share, or None where it is unknown or not shared.
        warnings: What was let through and may spoil the soup, as sentences.
    """

    fingerprints: Mapping[str, str]
    start: str | None
    warnings: tuple[str, ...]


def check_experts(experts: Sequence[Expert], *, force: bool = False) -> ExpertCheck:
    """Raise unless the experts can be interpolated and started from the same weights.

    Weights that did not start from the same pre-trained ones are not connected: their soup is noise, and nothing in
    their names and shapes tells. So an unknown start is refused too, unless forced.

    Args:
        experts: With different names.
        force: Accept starts that differ or are unknown; the result then carries a warning.

    Raises:
        InputError: Without experts or with a name twice; for starts that differ or are unknown, unless forced; when
            tensors differ in names, shapes or kinds; for tokenizers, settings of generation or fixed states that
            differ.

    Example:
        >>> import numpy as np
        >>> start = {"w": np.zeros(2)}
        >>> a = Expert("a", "helpful", {"w": np.array([1.0, 0.0])}, start=fingerprint(start))
        >>> b = Expert("b", "short", {"w": np.array([0.0, 1.0])}, start=fingerprint(start))
        >>> check_experts([a, b]).warnings
        ()

    References:
        Ramé et al. (2023), Rewarded soups; thesis, remark 6.1: the start must be shared.
    """
    if isinstance(experts, Expert):
        raise InputError("experts: expected a list, got a single Expert; put it in one: [expert].")
    check_names("experts", [expert.name for expert in experts])
    warnings = []
    starts = {expert.name: expert.start for expert in experts}
    unknown = [name for name, start in starts.items() if start is None]
    known = {name: start for name, start in starts.items() if start is not None}
    first = next(iter(known), None)
    other = next((name for name, start in known.items() if first is not None and start != known[first]), None)
    if first is not None and other is not None:
        text = (
            f"experts {first!r} and {other!r} started from different weights, {known[first]:.12} and "
            f"{known[other]:.12}, so their soup may be worse than each of them."
        )
        if not force:
            raise InputError(
                f"{text} Train both from one start, or pass force=True to interpolate all the same."
            )
        warnings.append(text[0].upper() + text[1:])
    if unknown and len(starts) > 1:
        text = f"it is not known from which weights {unknown[0]!r} started"
        if not force:
            raise InputError(
                f"experts: {text}. Give its start, `fingerprint(theta)`, or pass force=True if you know that all "
                "started from the same weights."
            )
        warnings.append(f"{text[0].upper()}{text[1:]}, so it may not be connected with the others.")
    labels = ", ".join(f"member {i} is {expert.name!r}" for i, expert in enumerate(experts))
    try:
        check_averageable([expert.weights for expert in experts])
    except InputError as error:
        raise InputError(f"experts cannot be interpolated ({labels}): {error}") from error
    _check_same("tokenizer", {expert.name: expert.tokenizer for expert in experts})
    _check_same("settings of generation", {expert.name: expert.generation for expert in experts})
    for name in dict.fromkeys(key for expert in experts for key in expert.state):
        states = {expert.name: expert.state.get(name, "nothing") for expert in experts}
        _check_same(f"fixed states {name!r}", states)
    fingerprints = {expert.name: expert.fingerprint for expert in experts}
    for expert in experts:
        if expert.start == expert.fingerprint:
            warnings.append(f"Expert {expert.name!r} is its start: its training changed nothing.")
    shared = None if unknown or other is not None or first is None else known[first]
    return ExpertCheck(fingerprints, shared, tuple(warnings))


def _check_same(what: str, values: Mapping[str, Any]) -> None:
    """Raise if two experts that say so differ."""
    given = {name: value for name, value in values.items() if value is not None}
    first = next(iter(given), None)
    for name, value in given.items():
        if first is not None and _plain(value) != _plain(given[first]):
            raise InputError(
                f"experts {first!r} and {name!r} have different {what}: {given[first]!r} and {value!r}. The same "
                "weights would be different policies; train all experts with the same."
            )


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value
