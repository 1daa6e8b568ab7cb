"""Which step of which run is reported, and what each way of choosing may look at.

The records of one dataset, strategy, target and data seed are the steps of all runs. The benchmark chooses one of
them in three ways. Each way gets a narrowed copy of the records that does not hold the numbers it may not see, so
that a mistaken score raises `HiddenLabels` instead of choosing by the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NoReturn, TypeAlias, get_args

from mirepoix.data import IntArray, Split, Subset, split_indices
from mirepoix.types import InputError

__all__ = [
    "METHODS",
    "HiddenLabels",
    "LeftOut",
    "Method",
    "Missing",
    "Part",
    "Record",
    "Selected",
    "by_leaving_one_out",
    "by_training_domains",
    "labels_for",
    "left_out_part",
    "oracle",
    "subsets_for",
    "visible",
]

Method: TypeAlias = Literal["training-domain", "leave-one-out", "oracle"]
"""A way of choosing among the records."""

Part: TypeAlias = Literal["validation", "target_validation", "target_train"]
"""The validation parts of the source domains, or the 20 % or the 80 % part of a left-out domain."""

METHODS: tuple[Method, ...] = get_args(Method)

_MAY_READ: dict[Method, str] = {
    "training-domain": "training-domain validation chooses by the validation parts of the domains a run trained on",
    "leave-one-out": "leave-one-out validation chooses by the other domains that a run left out",
    "oracle": "the oracle chooses by the 20 % part of the target",
}
_NAMES: dict[Method, str] = {
    "training-domain": "training-domain validation",
    "leave-one-out": "leave-one-out validation",
    "oracle": "the oracle",
}


class HiddenLabels(InputError):
    """A selection tried to read accuracies or labels that its method may not see."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Accuracy on a domain the run did not train on, as fractions; ``None`` where it was not measured.

    Attributes:
        train: On its 80 % part, the training part if it were a source.
        validation: On its 20 % part, the validation part if it were a source.
        whole: On all of its images.
    """

    train: float | None = None
    validation: float | None = None
    whole: float | None = None


@dataclass(frozen=True)
class Record:
    """What was measured at one step of one run.

    Attributes:
        run: Number of the run in the search.
        step: Number of the step.
        last: Whether it is the last step of its run.
        validation: Accuracy on the validation part of each domain the run trained on.
        left_out: Accuracy on each domain the run left out.
    """

    run: int
    step: int
    last: bool
    validation: Mapping[str, float]
    left_out: Mapping[str, LeftOut]

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains the run trained on, then those it left out."""
        return (*self.validation, *self.left_out)


@dataclass(frozen=True, slots=True)
class Selected:
    """The chosen record.

    Attributes:
        record: As it was given, with every number, to report from.
        score: What it was chosen by.
        method: How it was chosen.
    """

    record: Record
    score: float
    method: Method


@dataclass(frozen=True, slots=True)
class Missing:
    """No record could be chosen.

    Attributes:
        reason: Why, for people; it names the run, the step and the domain where there is one.
    """

    reason: str


class _Narrowed(LeftOut):
    """Accuracies of a left-out domain of which only some were copied; reading another one raises."""

    __slots__ = ("_refusal",)
    _refusal: str

    def __init__(self, given: Mapping[str, float | None], refusal: str) -> None:
        for name, value in {**given, "_refusal": refusal}.items():
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> NoReturn:  # called for what was not set
        if name in LeftOut.__slots__:
            raise HiddenLabels(self._refusal)
        raise AttributeError(name)

    def __repr__(self) -> str:
        return "LeftOut(hidden)"


class _Guarded(Mapping[str, LeftOut]):
    """Left-out domains by name; the names can be listed, hidden domains cannot be read."""

    def __init__(self, shown: Mapping[str, LeftOut | None], refusals: Mapping[str, str]) -> None:
        self._shown, self._refusals = dict(shown), dict(refusals)

    def __getitem__(self, name: str) -> LeftOut:
        found = self._shown[name]
        if found is None:
            raise HiddenLabels(self._refusals[name])
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._shown

    def __iter__(self) -> Iterator[str]:
        return iter(self._shown)

    def __len__(self) -> int:
        return len(self._shown)

    def __repr__(self) -> str:
        return f"left_out({', '.join(self._shown)})"


def _checked(method: Method) -> Method:
    if method not in METHODS:
        raise InputError(f"method: expected one of {', '.join(METHODS)}, got {method!r}.")
    return method


def _refusal(method: Method, what: str, domain: str, target: str) -> str:
    kind = "target" if domain == target else "left-out"
    hint = (
        "Report it after the choice is made."
        if method == "oracle"
        else "To choose by the target, use the oracle, and call the number so."
    )
    return (
        f"{_NAMES[method]} may not read {what} of the {kind} domain {domain!r}; {_MAY_READ[method]}. {hint}"
    )


def visible(records: Iterable[Record], method: Method, target: str) -> list[Record]:
    """Copies of the records that hold only what the method may read.

    Every method sees the validation parts of the domains a run trained on. Of the left-out domains,
    ``"training-domain"`` sees none, ``"leave-one-out"`` all but the target, and ``"oracle"`` the 20 % part of the
    target. Names of domains are not hidden.

    Args:
        records: Of runs that left out the target.
        method: The way of choosing.
        target: Name of the target domain.

    Returns:
        The records in the order given; a hidden number raises `HiddenLabels` when it is read.

    Raises:
        InputError: For a run that trained on the target, or an unknown method.

    Example:
        >>> record = Record(0, 100, True, {"photo": 0.9}, {"sketch": LeftOut(0.6, 0.7, 0.62)})
        >>> (view,) = visible([record], "oracle", "sketch")
        >>> view.left_out["sketch"].validation
        0.7
    """
    return [_view(record, _checked(method), target) for record in records]


def _view(record: Record, method: Method, target: str) -> Record:
    if target in record.validation:
        raise InputError(
            f"run {record.run}: expected a run that left out the target domain {target!r}, got one that trained on "
            "it. Its accuracies there are no test of generalization; use the runs that left it out."
        )
    shown: dict[str, LeftOut | None] = {}
    refusals: dict[str, str] = {}
    for name, accuracies in record.left_out.items():
        refusals[name] = _refusal(method, "accuracies", name, target)
        shown[name] = None
        if method == "oracle" and name == target:
            refusal = _refusal(method, "accuracies on the other images", name, target)
            shown[name] = _Narrowed({"validation": accuracies.validation}, refusal)
        elif method == "leave-one-out" and name != target:
            shown[name] = accuracies
    return Record(record.run, record.step, record.last, dict(record.validation), _Guarded(shown, refusals))


def _mean_validation(record: Record) -> float:
    return math.fsum(record.validation.values()) / len(record.validation)


def by_training_domains(
    records: Iterable[Record], target: str, *, score: Callable[[Record], float] = _mean_validation
) -> Selected | Missing:
    """Training-domain validation: the step with the best mean accuracy on the sources' validation parts.

    Every domain the run trained on counts the same, whatever its size. Within a run the first of equal steps is
    kept; of equal runs, the one with the largest number wins, as in DomainBed. NaN is below every number.

    Args:
        records: Of the runs that left out the target, and only the target.
        target: Name of the target domain.
        score: Of a narrowed record; higher is better. By default the mean over the training domains.

    Returns:
        The choice; `Missing` without records, or when every score is NaN.

    Raises:
        InputError: For a run that trained on the target or left out another domain, runs that trained on
            different domains, or a step that is there twice.
        HiddenLabels: When the score reads a left-out domain.

    Example:
        >>> early = Record(0, 100, False, {"photo": 0.65}, {})
        >>> late = Record(0, 200, True, {"photo": 0.75}, {})
        >>> by_training_domains([early, late], "sketch").record.step
        200

    References:
        Gulrajani and Lopez-Paz (2021), In search of lost domain generalization, section 3.
    """
    given = _same_search(records, target)
    views = visible(given, "training-domain", target)
    return _choice(given, [float(score(view)) for view in views], "training-domain")


def by_leaving_one_out(
    records: Iterable[Record],
    pair_records: Mapping[str, Iterable[Record]],
    target: str,
    *,
    score: Callable[[Record, str], float] | None = None,
) -> Selected | Missing:
    r"""Leave-one-domain-out validation: the step at which runs do best on a further domain they left out.

    A run that left out the target :math:`t` is scored by the runs of the same number that left out
    :math:`\{t, v\}`, at the same step,

    .. math:: \frac1{|S|} \sum_{v \in S} \mathrm{acc}_v(\text{run without } t \text{ and } v),

    with :math:`S` the domains the run trained on, and accuracies on the 80 % part of :math:`v`. Undefined for the
    whole search if any of them is missing: a choice among fewer runs is another number. Ties as in
    `by_training_domains`.

    Args:
        records: Of the runs that left out the target, and only the target.
        pair_records: For each other domain :math:`v`, the records of the runs that left out :math:`\{t, v\}`.
        target: Name of the target domain.
        score: Of a narrowed record of a pair and the name :math:`v`; higher is better.

    Returns:
        The choice, of a record in ``records``; `Missing` with the first run, step and domain that lack a number.

    Raises:
        InputError: As in `by_training_domains`; for a pair whose run trained on one of the two domains, or for a
            domain that the runs did not train on.
        HiddenLabels: When the score reads the target.

    References:
        Gulrajani and Lopez-Paz (2021), section 3.
    """
    given = _same_search(records, target)
    sources = tuple(given[0].validation) if given else ()
    for name in pair_records:
        if name not in sources and given:
            raise InputError(
                f"pairs of {target!r}: expected the domains the runs trained on ({', '.join(sources)}), got "
                f"{name!r}. Key the records of a pair by the domain left out beside the target."
            )
    pairs = {name: _pairs(pair_records.get(name, ()), target, name) for name in sources}
    scores = []
    for record in given:
        values = []
        for name in sources:
            where = f"run {record.run}, step {record.step}"
            pair = pairs[name].get((record.run, record.step))
            if pair is None:
                return Missing(
                    f"leave-one-out needs {where} of the run that left out {target!r} and {name!r}; there is none"
                )
            if score is not None:
                values.append(float(score(pair, name)))
                continue
            measured = pair.left_out[name].train if name in pair.left_out else None
            if measured is None:
                return Missing(
                    f"leave-one-out needs the accuracy on the 80 % part of {name!r} of {where} without "
                    f"{target!r} and {name!r}; it was not measured"
                )
            values.append(measured)
        scores.append(math.fsum(values) / len(values))
    return _choice(given, scores, "leave-one-out")


def _pairs(records: Iterable[Record], target: str, name: str) -> dict[tuple[int, int], Record]:
    """The narrowed records of one pair, by run and step."""
    views = visible(_distinct(records), "leave-one-out", target)
    for view in views:
        if name in view.validation:
            raise InputError(
                f"run {view.run} of the pair {target!r} and {name!r}: expected a run that left out both, got one "
                f"that trained on {name!r}."
            )
    return {(view.run, view.step): view for view in views}


def oracle(
    records: Iterable[Record], target: str, *, score: Callable[[Record], float] | None = None
) -> Selected | Missing:
    """Test-domain validation: the run whose last step is best on the 20 % part of the target.

    It looks at the target, so it bounds what a selection could reach and is no result of generalization. It may
    not stop early: the last step counts even where an earlier one is better. Of equal runs the one with the
    largest number wins, and NaN is below every number.

    Args:
        records: Of the runs that left out the target, and only the target.
        target: Name of the target domain.
        score: Of a narrowed record; higher is better.

    Returns:
        The choice; `Missing` for a run without its last step or without the accuracy.

    Raises:
        InputError: As in `by_training_domains`; for a run with two last steps or steps after its last one.
        HiddenLabels: When the score reads the target's 80 % part or all of its images.

    References:
        Gulrajani and Lopez-Paz (2021), section 3.
    """
    given = _same_search(records, target)
    lasts: dict[int, Record] = {}
    for record in given:  # in the order of runs and steps
        if record.run in lasts:
            raise InputError(
                f"run {record.run}: expected one last step, the largest, got step {record.step} after "
                f"{lasts[record.run].step}, which is marked as last."
            )
        if record.last:
            lasts[record.run] = record
    unfinished = [record.run for record in given if record.run not in lasts]
    if unfinished:
        return Missing(f"the oracle needs the last step of each run; run {unfinished[0]} has none")
    chosen, scores = list(lasts.values()), []
    for view in visible(chosen, "oracle", target):
        if score is not None:
            scores.append(float(score(view)))
            continue
        measured = view.left_out[target].validation if target in view.left_out else None
        if measured is None:
            return Missing(
                f"the oracle needs the accuracy on the 20 % part of {target!r} of run {view.run}, step "
                f"{view.step}; it was not measured"
            )
        scores.append(measured)
    return _choice(chosen, scores, "oracle")


def _distinct(records: Iterable[Record]) -> list[Record]:
    """The records in the order of runs and steps, each of them once."""
    ordered = sorted(records, key=lambda record: (record.run, record.step))
    for before, after in pairwise(ordered):
        if (before.run, before.step) == (after.run, after.step):
            raise InputError(
                f"run {after.run}, step {after.step}: expected one record, got two. Were the records of two "
                "searches, targets or data seeds mixed?"
            )
    return ordered


def _same_search(records: Iterable[Record], target: str) -> list[Record]:
    """The records in order, if they can be compared: the same sources, and only the target left out."""
    ordered = _distinct(records)
    for record in ordered:
        if target in record.validation:
            _view(record, "training-domain", target)  # raises
        others = [name for name in record.left_out if name != target]
        if others:
            raise InputError(
                f"run {record.run}: expected a run that left out only {target!r}, got one that left out "
                f"{others[0]!r} too. Such runs belong in the pairs of leave-one-out validation."
            )
        if not record.validation or set(record.validation) != set(ordered[0].validation):
            raise InputError(
                f"run {record.run}, step {record.step}: expected an accuracy on the validation part of each "
                f"training domain ({', '.join(ordered[0].validation) or 'at least one'}), got "
                f"{', '.join(record.validation) or 'none'}."
            )
    return ordered


def _choice(records: Sequence[Record], scores: Sequence[float], method: Method) -> Selected | Missing:
    """First maximum within a run, largest number among equal runs; the records are in order."""
    if not records:
        return Missing("there are no records of finished runs to choose from")
    best: dict[int, tuple[float, Record]] = {}
    for record, score in zip(records, scores, strict=True):
        if not math.isnan(score) and (record.run not in best or score > best[record.run][0]):
            best[record.run] = (score, record)
    if not best:
        return Missing(f"every score of the {len(records)} records is NaN")
    score, record = max(best.values(), key=lambda each: (each[0], each[1].run))
    return Selected(record, score, method)


def left_out_part(split: Split, domain: str, part: Literal["train", "validation"]) -> Subset:
    """The 80 % or the 20 % part of a domain that the split leaves out, divided as if it were a source.

    For evaluation and reports; a selection asks `subsets_for`, which refuses what it may not see.

    Args:
        split: With one or more domains left out.
        domain: Name of one of them.
        part: ``"train"`` for the larger part, ``"validation"`` for the smaller.

    Raises:
        InputError: For a domain that the split does not leave out.
    """
    left_out = _left_out(split)
    if domain not in left_out:
        raise InputError(
            f"expected a domain that the split leaves out ({', '.join(left_out) or 'it leaves out none'}), got "
            f"{domain!r}."
        )
    number = split.task.domain_names.index(domain)
    whole = split.task.domains[number]
    train, validation = split_indices(
        len(whole), data_seed=split.data_seed, domain=number, holdout=split.holdout
    )
    return Subset(whole, number, train if part == "train" else validation)


def _left_out(split: Split) -> tuple[str, ...]:
    return (*(() if split.target is None else (split.target,)), *split.without)


def subsets_for(
    split: Split, part: Part, method: Method, *, target: str | None = None, domain: str | None = None
) -> tuple[Subset, ...]:
    """The labelled samples that a selection may compute scores on.

    Args:
        split: Of the runs that are scored.
        part: ``"validation"`` of every source domain; ``"target_validation"`` or ``"target_train"``, the 20 % or
            the 80 % part of a domain the split leaves out.
        method: The way of choosing. Training-domain validation may read ``"validation"`` only, leave-one-out
            validation also both parts of a left-out domain that is not the target, the oracle also the
            ``"target_validation"`` of the target.
        target: The target the choice is for; by default that of the split. A split that leaves out a pair serves
            two targets.
        domain: The left-out domain whose part is meant; by default the split's target.

    Raises:
        HiddenLabels: For a part that the method may not see, or a split that trains on the target.
        InputError: For an unknown part or method, or a domain the split does not leave out.
    """
    _checked(method)
    if part not in get_args(Part):
        raise InputError(f"part: expected one of {', '.join(get_args(Part))}, got {part!r}.")
    target = split.target if target is None else target
    if target is not None and target not in _left_out(split):
        raise HiddenLabels(
            f"{_NAMES[method]} for the target domain {target!r} may not use a split that trains on it; this one "
            f"leaves out {', '.join(_left_out(split)) or 'no domain'}."
        )
    if part == "validation":
        return split.validation
    domain = split.target if domain is None else domain
    if domain is None or target is None:
        raise InputError(
            f"part {part!r}: expected a split with a target, got one that trains on all domains."
        )
    asked = left_out_part(split, domain, "train" if part == "target_train" else "validation")
    if not (
        (method == "leave-one-out" and domain != target)
        or (method == "oracle" and domain == target and part == "target_validation")
    ):
        size = "20 %" if part == "target_validation" else "80 %"
        raise HiddenLabels(_refusal(method, f"labels of the {size} part", domain, target))
    return (asked,)


def labels_for(
    split: Split, part: Part, method: Method, *, target: str | None = None, domain: str | None = None
) -> dict[str, IntArray]:
    """The labels that a selection may read, from names of domains to class indices; otherwise as `subsets_for`."""
    found = subsets_for(split, part, method, target=target, domain=domain)
    return {subset.name: subset.labels for subset in found}
