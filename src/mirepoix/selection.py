"""Selections: members and a score on held-out data give a choice.

The score must see neither the target's labels nor the images that members were trained on: a rule that looks at
more candidates fits the held-out data more closely. Every rule is stated with its tie-break. A score that is NaN
is worse than any number.

*Cost.* Members may be lazy (files): each is read once by the score that ranks it, and once more each time it is
tried in an average. Of ``M`` members, ``best``, ``top_k`` and ``threshold`` evaluate each once, ``greedy`` also
``M - 1`` averages, and ``forward_selection`` one average per member and round. With ``member_scores`` nothing is
evaluated to rank. The sum of the kept members, that of the candidate, and one average are alive.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mirepoix.types import Diverged, InputError, Score, Weights
from mirepoix.weights import RunningAverage, average, check_averageable, interpolate

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Choice",
    "Learned",
    "Trial",
    "best",
    "forward_selection",
    "greedy",
    "learned_coefficients",
    "threshold",
    "top_k",
]


@dataclass(frozen=True, slots=True)
class Trial:
    """One line of the trace of a selection.

    Attributes:
        member: Number of the member that was looked at.
        score: Of what was tried with it: the member itself, or the average with it.
        kept: Whether it was kept then.
    """

    member: int
    score: float
    kept: bool


@dataclass(frozen=True)
class Choice:
    """What a selection chose.

    Attributes:
        theta: The chosen weights.
        kept: Numbers of the members in it, in the order of choice.
        order: Numbers of the members that were looked at, one for each trial.
        scores: Score of what was tried at each place of ``order``.
        coefficients: Of the kept members in ``theta``; equal ones unless said otherwise.
        accepted: Whether what was tried was kept, at each place of ``order``; by default, that of a kept member.
    """

    theta: Weights
    kept: tuple[int, ...]
    order: tuple[int, ...]
    scores: tuple[float, ...]
    coefficients: tuple[float, ...] = ()
    accepted: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if not self.coefficients:
            object.__setattr__(self, "coefficients", (1 / len(self.kept),) * len(self.kept))
        if not self.accepted:
            object.__setattr__(self, "accepted", tuple(i in self.kept for i in self.order))

    @property
    def trace(self) -> tuple[Trial, ...]:
        """What was tried, one after another."""
        return tuple(map(Trial, self.order, self.scores, self.accepted))


def _ranked(
    thetas: Iterable[Weights], score: Score, member_scores: Sequence[float] | None
) -> tuple[list[Weights], list[float], list[int]]:
    members = list(thetas)
    if not members:
        raise InputError("a selection needs at least one member, got none.")
    scores = [score(theta) for theta in members] if member_scores is None else list(member_scores)
    if len(scores) != len(members):
        raise InputError(f"member_scores: expected one per member ({len(members)}), got {len(scores)}.")
    return members, scores, _best_first(scores)


def _best_first(scores: Sequence[float]) -> list[int]:
    """Places by decreasing score; NaN comes last, and of equal scores the first given comes first."""
    return sorted(range(len(scores)), key=lambda i: (math.isnan(scores[i]), -scores[i], i))


def _rises(tried: float, highest: float) -> bool:
    """``tried > highest``, where NaN is worse than any number."""
    return tried > highest or (math.isnan(highest) and not math.isnan(tried))


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


def top_k(
    thetas: Iterable[Weights], score: Score, k: int, *, member_scores: Sequence[float] | None = None
) -> Choice:
    """The uniform average of the ``k`` members with the highest scores; of equal ones the first given.

    Args:
        thetas: The members.
        score: Higher is better; called once per member.
        k: How many to average; 1 gives `best`, and all of them the uniform average.
        member_scores: The scores, where they are known; ``score`` is then not called.

    Raises:
        InputError: Without members; for ``k`` below 1 or above the number of members whose score is a number.

    Example:
        >>> import numpy as np
        >>> members = [{"w": np.array([value])} for value in (0.0, 2.0, 9.0)]
        >>> top_k(members, lambda theta: -float(theta["w"][0]), k=2).theta
        {'w': array([1.])}
    """
    members, scores, order = _ranked(thetas, score, member_scores)
    known = sum(not math.isnan(value) for value in scores)
    if not 1 <= k <= known:
        bad = f" (of {len(members)}; the score of the others is NaN)" if known < len(members) else ""
        raise InputError(f"k: expected 1 to {known} members{bad}, got {k}.")
    return _averaged(members, order[:k], order, scores)


def threshold(
    thetas: Iterable[Weights], score: Score, delta: float, *, member_scores: Sequence[float] | None = None
) -> Choice:
    r"""The uniform average of the members whose score is close to the best.

    .. math:: \{i : \mathrm{score}(\theta_i) \ge \max_j \mathrm{score}(\theta_j) - \delta\}

    The best member is always in it, and so are all of its equals.

    Args:
        thetas: The members.
        score: Higher is better; called once per member.
        delta: How far below the best a score may be, in the unit of the score.
        member_scores: The scores, where they are known; ``score`` is then not called.

    Raises:
        InputError: Without members; for a negative ``delta``.
    """
    if not delta >= 0:
        raise InputError(f"delta: expected a distance from the best score, 0 or more, got {delta!r}.")
    members, scores, order = _ranked(thetas, score, member_scores)
    close = [i for i in order if scores[i] >= scores[order[0]] - delta]
    return _averaged(members, close or order[:1], order, scores)  # all NaN: the first, as in `best`


def _averaged(
    members: Sequence[Weights], kept: Sequence[int], order: Sequence[int], scores: Sequence[float]
) -> Choice:
    theta = average([members[i] for i in kept])
    return Choice(theta, tuple(kept), tuple(order), tuple(scores[i] for i in order))


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

    One running sum, and one evaluation and one reading per candidate; the first is not evaluated again when
    ``score`` has ranked it.

    This is also the *restricted* selection of DiWA, which is the same rule with the ranks by ID validation
    accuracy: give the score of validation images of the source domains, or the ``member_scores`` of training.

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
    members, ranks, order = _ranked(thetas, score, member_scores)
    kept: list[int] = []
    scores: list[float] = []
    running, highest = RunningAverage(), math.nan
    for i in order:
        candidate = running.plus(members[i])
        # The average of one member is that member, bit for bit.
        known = not kept and member_scores is None
        tried = ranks[i] if known else score(candidate.weights())
        scores.append(tried)
        if not kept or _rises(tried, highest) or (tried == highest and not strict):
            kept.append(i)
            running, highest = candidate, tried
    return Choice(running.weights(), tuple(kept), tuple(order), tuple(scores))


def forward_selection(
    thetas: Iterable[Weights], score: Score, *, rounds: int | None = None, replacement: bool = True
) -> Choice:
    r"""Forward selection: in each round, add the member whose addition gives the best average.

    With replacement a member can be added again, so that its multiplicity becomes a coefficient:

    .. math:: \theta = \tfrac1R \textstyle\sum_{r \le R} \theta_{i_r}, \qquad
              i_r = \arg\max_i \mathrm{score}\Big(\tfrac1r \big(\sum_{s < r} \theta_{i_s} + \theta_i\big)\Big).

    All rounds are made, although an addition may lower the score, and the best of the averages on the way is
    returned. Of equal members the first given is added; of equal averages that of fewer rounds is returned.

    Args:
        thetas: The members; each is read, and one average is evaluated, once per member and round.
        score: Of weights on held-out data; higher is better. With many rounds it is easily fitted.
        rounds: How many additions are tried; by default as many as there are members.
        replacement: Whether a member may be added more than once.

    Returns:
        The best average, with the coefficients of the members in it; the trace has every trial.

    Raises:
        InputError: Without members; for less than one round, or without replacement for more than members.

    Example:
        >>> import numpy as np
        >>> members = [{"w": np.array([value])} for value in (0.0, 3.0)]
        >>> choice = forward_selection(members, lambda theta: -abs(float(theta["w"][0]) - 1), rounds=3)
        >>> choice.theta, choice.kept
        ({'w': array([1.])}, (0, 1))

    References:
        Caruana et al. (2004), Ensemble selection from libraries of models, section 2.1, there of predictions.
    """
    members = list(thetas)
    if not members:
        raise InputError("a selection needs at least one member, got none.")
    rounds = len(members) if rounds is None else rounds
    if rounds < 1 or (not replacement and rounds > len(members)):
        most = "1 or more" if replacement else f"1 to {len(members)} (the members, without replacement)"
        raise InputError(f"rounds: expected {most}, got {rounds}.")
    order: list[int] = []
    scores: list[float] = []
    added: list[int] = []  # places in `order`, one per round
    running = chosen = RunningAverage()
    used = 0  # rounds in `chosen`
    for _ in range(rounds):
        winner, place = running, len(order)
        for i in range(len(members)):
            if not replacement and any(order[each] == i for each in added):
                continue
            candidate = running.plus(members[i])
            order.append(i)
            scores.append(score(candidate.weights()))
            if winner is running or _rises(scores[-1], scores[place]):
                winner, place = candidate, len(order) - 1
        running = winner
        added.append(place)
        if not used or _rises(scores[place], scores[added[used - 1]]):
            chosen, used = running, len(added)
    drawn = [order[place] for place in added[:used]]
    kept = tuple(dict.fromkeys(drawn))
    return Choice(
        chosen.weights(),
        kept,
        tuple(order),
        tuple(scores),
        coefficients=tuple(drawn.count(i) / used for i in kept),
        accepted=tuple(place in added[:used] for place in range(len(order))),
    )


@dataclass(frozen=True)
class Learned:
    """What `learned_coefficients` found.

    Attributes:
        theta: The weighted average.
        coefficients: Of the members, one per member, for each group of tensors.
        losses: The loss at each step, before it was made; the first is that of the uniform average.
    """

    theta: Weights
    coefficients: dict[str, tuple[float, ...]]
    losses: tuple[float, ...]


def learned_coefficients(
    thetas: Iterable[Weights],
    loss: Callable[[Weights, int], Tensor],
    *,
    groups: Literal["model", "tensor"] | Sequence[str] = "model",
    softmax: bool = True,
    steps: int = 100,
    learning_rate: float = 0.05,
    device: str | None = None,
) -> Learned:
    r"""Coefficients of a weighted average, learned by gradient descent on a held-out loss.

    For each group :math:`g` of tensors, and from equal coefficients on, Adam minimises

    .. math:: \ell\Big(\textstyle\sum_i \lambda_{gi} \theta_i\Big), \qquad
              \lambda_g = \mathrm{softmax}(v_g) \quad \text{or, free,} \quad
              \lambda_g = v_g - \bar v_g + \tfrac1M .

    Either way the coefficients of a group sum to one; free ones may be negative or above one, and then running
    variances of batch norm below 0 are raised to 0. What is not a float is as in `average`. All members are in
    memory at once, and a gradient passes through the network once per step.

    Args:
        thetas: The members.
        loss: Takes weights of torch tensors and the number of the step, from 0 (to choose a minibatch by), and
            returns a scalar; lower is better. Run the network with ``torch.func.functional_call``.
        groups: ``"model"`` for one coefficient per member, ``"tensor"`` for one per member and tensor, or regular
            expressions: a tensor belongs to the first that is found in its name, for example
            ``["featurizer", "classifier"]``.
        softmax: Whether coefficients are positive.
        steps: Of Adam.
        learning_rate: Of Adam, for :math:`v`.
        device: Where the members are moved; by default they stay where they are.

    Raises:
        InputError: As in `average`; for a tensor in no group or a group without tensors; for a loss that is not a
            scalar tensor with a gradient.
        Diverged: When the loss is not finite.

    Example:
        >>> import torch
        >>> members = [{"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}]
        >>> learned = learned_coefficients(members, lambda theta, step: (theta["w"] - 0.8).square().sum())
        >>> round(learned.coefficients["model"][1], 2)
        0.8

    References:
        Wortsman et al. (2022), Model soups, "learned soup", there with a temperature in addition.
    """
    import torch

    if steps < 1 or not learning_rate > 0:
        raise InputError(
            f"expected at least 1 step and a learning rate above 0, got {steps} and {learning_rate!r}."
        )
    loaded = [dict(theta) for theta in thetas]  # a lazy member is read here, once
    if not loaded:
        raise InputError("a selection needs at least one member, got none.")
    check_averageable(loaded)
    members = [{name: _as_tensor(value, device) for name, value in theta.items()} for theta in loaded]
    were_arrays = any(not isinstance(value, torch.Tensor) for value in loaded[0].values())
    del loaded
    names = list(members[0])
    floats = [name for name in names if members[0][name].is_floating_point()]
    others = [name for name in names if name not in set(floats)]
    fixed = average([{name: theta[name] for name in others} for theta in members])
    places = _groups(groups, floats)

    v = torch.zeros(len(places), len(members), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([v], lr=learning_rate)

    def coefficients() -> Tensor:
        return v.softmax(1) if softmax else v - v.mean(1, keepdim=True) + 1 / len(members)

    losses: list[float] = []
    with torch.enable_grad():
        for step in range(steps):
            mixed = _mixed(members, places, coefficients())
            value = loss({name: mixed[name] if name in mixed else fixed[name] for name in names}, step)
            losses.append(_checked_loss(value, step))
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    found = {group: tuple(row) for group, row in zip(places, coefficients().tolist(), strict=True)}

    theta = dict(fixed)
    for group, members_of_group in places.items():
        parts = [{name: member[name] for name in members_of_group} for member in members]
        theta |= interpolate(parts, found[group], extrapolate=not softmax)
    if were_arrays:
        theta = {name: tensor.numpy(force=True) for name, tensor in theta.items()}
    return Learned({name: theta[name] for name in names}, found, tuple(losses))


def _as_tensor(value: Any, device: str | None) -> Tensor:
    import torch

    tensor = value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    return tensor.to(device or tensor.device)


def _groups(groups: Literal["model", "tensor"] | Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """From each group to the names of its tensors."""
    if groups == "model":
        return {"model": list(names)}
    if groups == "tensor":
        return {name: [name] for name in names}
    if isinstance(groups, str):
        raise InputError(f"groups: expected 'model', 'tensor' or a list of expressions, got {groups!r}.")
    places: dict[str, list[str]] = {expression: [] for expression in groups}
    for name in names:
        group = next((expression for expression in groups if re.search(expression, name)), None)
        if group is None:
            raise InputError(
                f"groups: expected each tensor in a group, got {name!r} in none of {', '.join(groups)}. "
                "Add '.*' as the last one for all that is left."
            )
        places[group].append(name)
    for group, found in places.items():
        if not found:
            raise InputError(f"groups: expected tensors in each group, got none for {group!r}.")
    return places


def _mixed(
    members: Sequence[Weights], places: dict[str, list[str]], coefficients: Tensor
) -> dict[str, Tensor]:
    """``sum_i lambda_gi theta_i`` with a gradient, in float32 at least, rounded to the dtype of the members."""
    import torch

    mixed = {}
    for row, names in zip(coefficients, places.values(), strict=True):
        for name in names:
            x = members[0][name]
            wide = torch.promote_types(x.dtype, torch.float32)
            shares = row.to(x.device, wide)
            total = sum(share * member[name].to(wide) for share, member in zip(shares, members, strict=True))
            total = total.clamp(min=0) if name.endswith("running_var") else total
            mixed[name] = total.to(x.dtype)
    return mixed


def _checked_loss(value: Any, step: int) -> float:
    import torch

    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        got = (
            f"a tensor of shape {tuple(value.shape)} {'with' if value.requires_grad else 'without'} a gradient"
            if isinstance(value, torch.Tensor)
            else f"a {type(value).__name__}"
        )
        raise InputError(
            f"loss: expected a scalar tensor with a gradient with respect to the weights it was given, got {got}. "
            "Run the network with torch.func.functional_call(network, theta, images), not under no_grad."
        )
    number = float(value.detach())
    if not math.isfinite(number):
        raise Diverged(f"the loss of the weighted average is {number} at step {step}.", step)
    return number
