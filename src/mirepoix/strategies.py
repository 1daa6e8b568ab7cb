"""The page of equations: every strategy as where a run starts, how it is trained, how members are combined.

``train`` is passed in, so a strategy knows nothing of networks, losses or devices. With a ``train`` and a
``combine`` that return text, a strategy prints its own equation; with ``combine=list``, a greedy selection or
an `Ensemble`, the same members serve every row of a table. Members reach ``combine`` one by one, each trained
when it is asked for; ``combine=iter`` hands them on untrained.

In the equations theta_pt is the pre-trained start with the head of the target task D (`heads.linear_probe`),
A_i an auxiliary task, phi_i the weights after it, c_i a run, lambda the coefficients of an average. Where a reward R_i
is maximised, theta_sft is the start after supervised fine-tuning, and mu the weights of rewards in a sum.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from mirepoix.types import Combine, InputError, Score, Train
from mirepoix.weights import average, interpolate

if TYPE_CHECKING:
    from mirepoix.runs import Run

__all__ = [
    "WiseSweep",
    "classifier_first",
    "dagger",
    "diverse_objectives",
    "diwa",
    "exponential_average",
    "fine_tuning",
    "fusing",
    "fusing_coefficients",
    "inter_training",
    "morl",
    "moving_average",
    "ratatouille",
    "recycle",
    "rewarded_soup",
    "robust_recycle",
    "sequence",
    "snapshot",
    "star",
    "swad",
    "wise",
    "wise_sweep",
]

Interpolate: TypeAlias = Callable[[Sequence[Any], Sequence[float]], Any]
Attach: TypeAlias = Callable[[Any, Any], Any]
Later: TypeAlias = Callable[[Sequence[Any]], Train]


def _as_is(theta: Any, task: Any) -> Any:
    return theta


# From theta_pt.


def fine_tuning(train: Train, theta: Any, task: Any, runs: Iterable[Run], combine: Combine[Any]) -> Any:
    """theta = best_i Train(theta_pt, D; c_i).

    ``combine`` chooses: usually the best on ID validation (`mirepoix.selection.best`).
    """
    return combine(train(theta, task, run) for run in runs)


def diwa(train: Train, theta: Any, task: Any, runs: Iterable[Run], combine: Combine[Any] = average) -> Any:
    """theta = 1/M sum_i Train(theta_pt, D; c_i).

    All members start from the same weights, head included: with a head of their own they end too far apart.

    References:
        Ramé et al. (2022), Diverse weight averaging; Wortsman et al. (2022), Model soups.
    """
    return combine(train(theta, task, run) for run in runs)


def diverse_objectives(
    trains: Sequence[Train], theta: Any, task: Any, runs: Iterable[Run], combine: Combine[Any] = average
) -> Any:
    """theta = 1/M sum_i Train_{o_i}(theta_pt, D; c_i), with the objectives o_i in turn.

    Run i is trained by ``trains[i mod len(trains)]``, so shares are equal if the number of runs is a multiple
    of that of the objectives, and an objective beyond the last run takes no part. Members need the same
    network: what an objective adds for itself (a discriminator, say) belongs to the objective, not to theta.

    Raises:
        InputError: Without ``trains``, or with one that is not in a list.

    References:
        Ramé et al. (2022), Diverse weight averaging, the table of OfficeHome with various objectives: ERM, Mixup
        and CORAL; the same as table 4.4 of the thesis.
    """
    return combine(
        train(theta, task, run) for train, run in zip(_cycle("trains", trains), runs, strict=False)
    )


def dagger(
    train: Any,
    theta: Any,
    splits: Sequence[Any],
    runs: Sequence[Iterable[Run]],
    combine: Combine[Any] = average,
    *,
    strategy: Callable[..., Any] = diwa,
) -> Any:
    """theta = 1/(M S) sum_s sum_i Train(theta_pt, D_s; c_si), over all data seeds s.

    D_s is the task split by data seed s into train and validation parts, c_si its own runs. Members of all
    seeds must begin with one head, that of a probe shared by the seeds. Together they have trained on nearly
    every source image: no validation image is unseen by all, so ``combine`` must not choose (no greedy, no
    best), and the result has no error bar over the seeds.

    Args:
        train: As in ``strategy``.
        theta: As in ``strategy``: the start, or the starts.
        splits: One task per data seed.
        runs: The runs of each data seed.
        combine: Of the members of all data seeds together.
        strategy: Whose members are combined: `diwa`, `ratatouille`, or any with the same arguments.

    Raises:
        InputError: Without splits, or when the number of splits is not that of the lists of runs.

    References:
        Ramé et al. (2022), Diverse weight averaging, and Ramé et al. (2023), Model ratatouille: the rows with a
        dagger, M = 20 and S = 3.
    """
    pairs = _pairs("splits", splits, "runs", runs)
    return combine(
        theta_si for split, own in pairs for theta_si in strategy(train, theta, split, own, combine=iter)
    )


# Along one run.


def moving_average(train: Train, theta: Any, task: Any, run: Run) -> Any:
    """theta = mean_t theta_t along one Train(theta_pt, D; c).

    The mean begins at ``run.average_from``.

    References:
        Arpit et al. (2021), Ensemble of averages; Izmailov et al. (2018).
    """
    return train(theta, task, run.with_(collect="moving_average"))


def exponential_average(train: Train, theta: Any, task: Any, run: Run) -> Any:
    """theta = m_T along one Train(theta_pt, D; c), where m_t = d m_{t-1} + (1 - d) theta_t.

    The decay d is ``run.ema_decay``; the average remembers about 1 / (1 - d) updates, 1000 for 0.999.

    References:
        Szegedy et al. (2016), Rethinking the Inception architecture for computer vision.
    """
    return train(theta, task, run.with_(collect="ema"))


def swad(train: Train, theta: Any, task: Any, run: Run) -> Any:
    """theta = mean_{t in valley} theta_t along one Train(theta_pt, D; c).

    The valley of the validation loss is where it has stopped falling and not yet risen: see the ``swad_``
    fields of `Run`. It is looked for at every check, so ``run.check_every`` decides how finely.

    References:
        Cha et al. (2021), SWAD: domain generalization by seeking flat minima, algorithm 1.
    """
    return train(theta, task, run.with_(collect="swad"))


# Between a training and its start.


def wise(
    train: Train,
    theta: Any,
    task: Any,
    run: Run,
    coefficient: float = 0.5,
    combine: Interpolate = interpolate,
) -> Any:
    """theta = (1 - lambda) Train(theta_pt, D; c) + lambda theta_pt.

    ``coefficient`` is lambda, the share of the start: 0 is fine-tuning, 1 the start itself.

    References:
        Wortsman et al. (2022), Robust fine-tuning of zero-shot models, with alpha = 1 - lambda.
    """
    return combine([train(theta, task, run), theta], [1 - coefficient, coefficient])


@dataclass(frozen=True, slots=True)
class WiseSweep:
    """What `wise_sweep` chose.

    Attributes:
        theta: The chosen weights.
        coefficient: Its lambda, the share of the start.
        scores: From every lambda that was tried to its score.
    """

    theta: Any
    coefficient: float
    scores: Mapping[float, float]


def wise_sweep(
    train: Train,
    theta: Any,
    task: Any,
    run: Run,
    score: Score,
    coefficients: Sequence[float] = tuple(i / 10 for i in range(11)),
    combine: Interpolate = interpolate,
) -> WiseSweep:
    """theta = best_lambda (1 - lambda) Train(theta_pt, D; c) + lambda theta_pt.

    One training; every lambda costs one evaluation. Of equal scores the smallest lambda is kept, the one
    closest to the fine-tuned weights; NaN is worse than any number.

    Args:
        train: Called once.
        theta: The start, with a head that fits the task: a probe, or a zero-shot head.
        task: The source domains.
        run: The configuration.
        score: On ID validation, higher is better; never on the target.
        coefficients: The lambdas to try, in [0, 1] and in any order.
        combine: The interpolation.

    Raises:
        InputError: Before training, without coefficients or with one outside [0, 1].

    References:
        Wortsman et al. (2022), Robust fine-tuning of zero-shot models, with alpha = 1 - lambda.
    """
    shares = sorted({float(share) for share in coefficients})
    outside = [share for share in shares if not 0 <= share <= 1]
    if outside or not shares:
        raise InputError(
            "wise_sweep: expected one or more coefficients in [0, 1], got "
            f"{outside[0] if outside else 'none'}. 0 is the fine-tuned weights, 1 the start."
        )
    tuned = train(theta, task, run)
    scores: dict[float, float] = {}
    kept, coefficient, highest = tuned, 0.0, (-1, 0.0)
    for share in shares:
        candidate = combine([tuned, theta], [1 - share, share])
        scores[share] = float(score(candidate))
        rank = (0, 0.0) if math.isnan(scores[share]) else (1, scores[share])
        if rank > highest:
            kept, coefficient, highest = candidate, share, rank
    return WiseSweep(kept, coefficient, scores)


# From a member.


def snapshot(
    train: Train,
    theta: Any,
    task: Any,
    runs: Iterable[Run],
    combine: Combine[Any],
    *,
    later: Later | None = None,
) -> Any:
    """theta_i = Train(theta_{i-1}, D; c_i), a chain that begins with theta_0 = theta_pt: SSE.

    The first run is usually the longest, and chosen for the accuracy of one member; the others are cycles of the
    learning rate, chosen for that of the ensemble. Each begins with a new optimizer and should have its own seed.

    Args:
        train: Of the first member, and of all with no ``later``.
        theta: The pre-trained start.
        task: The source domains.
        runs: c_1, c_2, ...; `Run` with ``schedule="cosine"`` and ``collect="last"``, as published.
        combine: `mirepoix.ensembles.Ensemble` for a snapshot ensemble, ``list`` for its members.
        later: From the members so far, in order, to the training of the next: a criterion that looks at them, such
            as those of `mirepoix.snapshots`.

    References:
        Huang et al. (2017), Snapshot ensembles; Sadrtdinov et al. (2023), To stay or not to stay in the
        pre-train basin.
    """
    return combine(_later_members(train, theta, task, runs, later, lambda members: members[-1]))


def star(
    train: Train,
    theta: Any,
    task: Any,
    runs: Iterable[Run],
    combine: Combine[Any],
    *,
    later: Later | None = None,
) -> Any:
    """theta_1 = Train(theta_pt, D; c_1), theta_i = Train(theta_1, D; c_i): StarSSE.

    All later members start from the first, so they can be trained in parallel, and with ``combine=average`` they
    are a soup. Arguments are those of `snapshot`.

    References:
        Sadrtdinov et al. (2023), To stay or not to stay in the pre-train basin.
    """
    return combine(_later_members(train, theta, task, runs, later, lambda members: members[0]))


def _later_members(
    train: Train,
    theta: Any,
    task: Any,
    runs: Iterable[Run],
    later: Later | None,
    start: Callable[[Sequence[Any]], Any],
) -> Iterator[Any]:
    """A member from theta, then each from one of those before it."""
    members: list[Any] = []
    for run in runs:
        next_train = later(tuple(members)) if later and members else train
        members.append(next_train(start(members) if members else theta, task, run))
        yield members[-1]


# From auxiliary tasks.


def recycle(
    train: Train, theta: Any, auxiliaries: Sequence[Any], runs: Sequence[Run], attach: Attach = _as_is
) -> list[Any]:
    """phi_i = Train(theta_pt, A_i; c_i): the starts of `inter_training`, `ratatouille` and `fusing`.

    Each auxiliary is trained on once, whatever the number of targets and members that start there. Between two
    trainings the head is replaced, twice:

    - before, ``attach(theta, auxiliary)`` gives theta_pt the head of that auxiliary, usually its probe;
    - after, the caller gives every phi_i the head of the target, the probe of theta_pt (not of phi_i)::

        starts = [theta_pt, *(with_head(phi, theta_pt) for phi in recycle(...))]

    The target's own data set must not be among the auxiliaries. The published starts are last weights:
    ``collect="last"`` in ``runs``.

    Args:
        train: Any training.
        theta: The pre-trained start.
        auxiliaries: The tasks A_i.
        runs: One for each auxiliary.
        attach: From weights and a task to these weights with the head of the task; unchanged by default.

    Raises:
        InputError: Without auxiliaries, or when their number is not that of the runs.

    References:
        Ramé et al. (2023), Model ratatouille, section 3: steps 1 and 2.
    """
    pairs = _pairs("auxiliaries", auxiliaries, "runs", runs)
    return [train(attach(theta, auxiliary), auxiliary, run) for auxiliary, run in pairs]


def robust_recycle(
    train: Train, theta: Any, auxiliaries: Sequence[Any], runs: Sequence[Run], attach: Attach = _as_is
) -> list[Any]:
    """phi_i = mean_t theta_t along Train(theta_pt, A_i; c_i): the starts of the robust forms.

    Robust inter-training is `inter_training` from these starts, theta = best_i Train(phi_i, D; c_i); robust
    ratatouille is `ratatouille` from them, theta = 1/M sum_i Train(phi_i, D; c_i). Only the auxiliary
    trainings are averaged along the way. Arguments and errors are those of `recycle`.

    References:
        Ramé et al. (2023), Model ratatouille, appendix E, equation 3, table 2.
    """
    averaged = [run.with_(collect="moving_average") for run in runs]
    return recycle(train, theta, auxiliaries, averaged, attach)


def sequence(
    train: Train, theta: Any, auxiliaries: Sequence[Any], runs: Sequence[Run], attach: Attach = _as_is
) -> Any:
    """phi = Train(... Train(Train(theta_pt, A_1; c_1), A_2; c_2) ..., A_K; c_K): one start from a chain.

    With `inter_training` from it: sequential inter-training. Order matters, the last task most. Before every
    stage ``attach(theta, auxiliary)`` replaces the head by that of the stage; after the last, the caller
    attaches that of the target. Arguments and errors are those of `recycle`.

    References:
        Ramé et al. (2023), Model ratatouille, appendix D.3: weights fine-tuned on several tasks in turn.
    """
    for auxiliary, run in _pairs("auxiliaries", auxiliaries, "runs", runs):
        theta = train(attach(theta, auxiliary), auxiliary, run)
    return theta


def inter_training(
    train: Train, starts: Sequence[Any], task: Any, runs: Iterable[Run], combine: Combine[Any]
) -> Any:
    """theta = best_i Train(phi_i, D; c_i), with the starts phi_i in turn.

    The members are those of `ratatouille`; ``combine`` chooses one, usually the best on ID validation. Run i
    starts from ``starts[i mod len(starts)]``; a start beyond the last run takes no part. All starts carry the
    head of the target, and `classifier_first` fits it to them before the features move.

    Raises:
        InputError: Without starts, or with one start that is not in a list.

    References:
        Phang et al. (2018), Sentence encoders on STILTs; Ramé et al. (2023), Model ratatouille, equation 2.
    """
    return combine(
        train(start, task, run) for start, run in zip(_cycle("starts", starts), runs, strict=False)
    )


def ratatouille(
    train: Train, starts: Sequence[Any], task: Any, runs: Iterable[Run], combine: Combine[Any] = average
) -> Any:
    """theta = 1/M sum_i Train(phi_i, D; c_i), with the starts phi_i in turn.

    Starts, heads and errors are those of `inter_training`. With theta_pt as the only start it is `diwa`.

    References:
        Ramé et al. (2023), Model ratatouille, equation 2 and table 1.
    """
    return combine(
        train(start, task, run) for start, run in zip(_cycle("starts", starts), runs, strict=False)
    )


def fusing(
    train: Train,
    starts: Sequence[Any],
    task: Any,
    runs: Sequence[Run],
    coefficients: Sequence[Sequence[float]],
    combine: Combine[Any],
    fuse: Interpolate = interpolate,
) -> Any:
    """theta = best_i Train(sum_j lambda_ij phi_j, D; c_i): average before the training, not after.

    All starts carry one head, that of the target, so the fused weights carry it too.

    Args:
        train: Any training.
        starts: The phi_j, theta_pt among them.
        task: The source domains.
        runs: The configurations c_i.
        coefficients: One list lambda_i for each run, with one number for each start: `fusing_coefficients`.
        combine: Chooses, usually the best on ID validation.
        fuse: The interpolation of the starts.

    Raises:
        InputError: Before training: without starts or runs, or when a number of coefficients does not fit.

    References:
        Choshen et al. (2022), Fusing finetuned models for better pretraining; Ramé et al. (2023), Model
        ratatouille, table 1.
    """
    _cycle("starts", starts)
    for i, shares in enumerate(coefficients):
        if len(shares) != len(starts):
            raise InputError(
                f"fusing: expected one coefficient for each of {len(starts)} starts, got {len(shares)} for run {i}."
            )
    pairs = _pairs("runs", runs, "coefficients", coefficients)
    return combine(train(fuse(starts, shares), task, run) for run, shares in pairs)


def fusing_coefficients(count: int, seed: int, *, kappa_max: float = 4.0) -> tuple[float, ...]:
    """lambda_j = exp(kappa_j) / sum_k exp(kappa_k), with kappa_j drawn from U(0, kappa_max).

    Positive, with sum one, and none more than exp(kappa_max) times another. The draws are those of Python's
    ``random.Random(seed)``, in the order of the starts: theta_pt first, then the auxiliaries by name.

    Args:
        count: How many starts.
        seed: Usually that of the run.
        kappa_max: 0 makes the average uniform; large values leave one start.

    Raises:
        InputError: With ``count`` below 1, or a negative or infinite ``kappa_max``.

    References:
        Ramé et al. (2023), Model ratatouille, appendix F.1, with kappa_max = 4.
    """
    if count < 1:
        raise InputError(f"fusing_coefficients: expected at least 1 start, got {count}.")
    if not 0 <= kappa_max < math.inf:
        raise InputError(f"fusing_coefficients: expected kappa_max of 0 or more, got {kappa_max}.")
    generator = random.Random(seed)
    kappas = [generator.uniform(0, kappa_max) for _ in range(count)]
    powers = [math.exp(kappa - max(kappas)) for kappa in kappas]
    return tuple(power / math.fsum(powers) for power in powers)


def classifier_first(train: Train, pretrained: Any, steps: int = 200) -> Train:
    """Train with its first steps on the classifier alone, unless it starts from ``pretrained``.

    A probe of theta_pt does not fit the features of phi_i; without these steps its errors would spoil them. It
    fits those of theta_pt, so runs from there are left as they are. The steps count among ``run.steps``, then
    a new optimizer trains all weights; they replace the ``classifier_steps`` of the run.

    Args:
        train: Any training that honours ``run.classifier_steps``. Put `cached` inside:
            ``classifier_first(cached(train, store), theta_pt)``.
        pretrained: The start that needs none: the object itself (``is``) that is among the starts, not an
            equal copy.
        steps: How many. The published text says 200; its code makes 201 updates, the last at index 200.

    Raises:
        InputError: With fewer than 0 steps; when called with a run of fewer steps than ``steps``.

    References:
        Ramé et al. (2023), Model ratatouille, appendix F.1.
    """
    if steps < 0:
        raise InputError(f"classifier_first: expected 0 or more steps, got {steps}.")

    def frozen_at_first(theta: Any, task: Any, run: Run, /) -> Any:
        return train(theta, task, run if theta is pretrained else run.with_(classifier_steps=steps))

    return frozen_at_first


# One expert per reward.


def rewarded_soup(
    trains: Mapping[str, Train],
    theta: Any,
    task: Any,
    runs: Run | Mapping[str, Run],
    coefficients: Sequence[Mapping[str, float]],
    combine: Interpolate = interpolate,
) -> Iterator[Any]:
    """theta_lambda = sum_i lambda_i Train_{R_i}(theta_sft, D; c_i), for every lambda.

    One expert for each reward R_i, all from one start; no training is for a lambda. An expert is trained when it
    first has a coefficient other than 0, and once for all lambdas: it is kept until the iterator ends. Soups come one
    by one in the order of ``coefficients``.

    Experts differ in their reward alone: give them one run, unless their seeds are to differ too.

    Args:
        trains: From the name of an expert to the training that maximises its reward.
        theta: The start of all experts, which is also the reference of a KL penalty.
        task: The prompts, or the environment.
        runs: One configuration for all experts, or one for each by name.
        coefficients: The lambdas, each with one number for each expert, on the simplex: `rewards.simplex_design`.
        combine: The interpolation.

    Returns:
        An iterator over the soups.

    Raises:
        InputError: Before any training: without ``trains``, or when names of runs or coefficients are not those of
            the experts, or coefficients do not sum to one.

    References:
        Ramé et al. (2023), Rewarded soups; thesis, section 6.2.1.
    """
    if not isinstance(trains, Mapping) or not trains:
        raise InputError("trains: expected a mapping from the name of each expert to its training.")
    runs_of = runs if isinstance(runs, Mapping) else dict.fromkeys(trains, runs)
    _check_keys("runs", runs_of, "experts", trains)
    _cycle("coefficients", coefficients)
    for i, shares in enumerate(coefficients):
        _check_keys(f"coefficients of soup {i}", shares, "experts", trains)
        total = math.fsum(shares.values())
        if not abs(total - 1) <= 1e-6:
            raise InputError(f"coefficients of soup {i}: expected numbers that sum to one, got {total:.9g}.")
    return _soups(trains, theta, task, runs_of, coefficients, combine)


def _soups(
    trains: Mapping[str, Train],
    theta: Any,
    task: Any,
    runs: Mapping[str, Run],
    coefficients: Sequence[Mapping[str, float]],
    combine: Interpolate,
) -> Iterator[Any]:
    experts: dict[str, Any] = {}
    for shares in coefficients:
        taking_part = [name for name in trains if shares[name] != 0]
        for name in taking_part:
            if name not in experts:
                experts[name] = trains[name](theta, task, runs[name])
        yield combine([experts[name] for name in taking_part], [shares[name] for name in taking_part])


def morl(
    train_of: Callable[[Mapping[str, float]], Train],
    theta: Any,
    task: Any,
    run: Run,
    preferences: Sequence[Mapping[str, float]],
) -> Iterator[Any]:
    """theta_j = Train_{sum_i mu_i^j R_i}(theta_sft, D; c), for every mu^j: what `rewarded_soup` is compared with.

    Multi-objective reinforcement learning by linear scalarisation: one training for each preference, with the budget
    of one expert. Rewards are averaged before the training where a soup averages weights after it. The user keeps the
    policy with the largest reward of their own. Policies are trained one by one, when they are asked for.

    Preferences are used as given. Two things make policies incomparable with soups if ignored: halving the scale of
    the rewards doubles what a KL penalty weighs; and of rewards on different scales the one that spreads most
    decides, so normalise each first (`rewards.zscore`).

    Args:
        train_of: From a preference, a weight for each reward, to the training that maximises their weighted sum.
        theta: The start, the same as that of the experts.
        task: As for the experts.
        run: As for the experts.
        preferences: The mu^j, all of the same rewards.

    Returns:
        An iterator over the policies.

    Raises:
        InputError: Before any training: without preferences, or when they are not of the same rewards.

    References:
        Barrett and Narayanan (2008), Learning all optimal policies with multiple criteria; Ramé et al. (2023),
        Rewarded soups; thesis, section 6.2.1.
    """
    _cycle("preferences", preferences)
    for j, weights in enumerate(preferences):
        _check_keys(f"preferences of policy {j}", weights, "rewards", preferences[0])
    return (train_of(weights)(theta, task, run) for weights in preferences)


# What the equations leave unsaid.

Item = TypeVar("Item")
Other = TypeVar("Other")


def _cycle(name: str, values: Sequence[Item]) -> Iterator[Item]:
    """The values again and again; at least one, in a list."""
    if isinstance(values, str | Mapping) or callable(values):
        raise InputError(
            f"{name}: expected a list, got a single {type(values).__name__}; put it in one: [x]."
        )
    values = list(values)
    if not values:
        raise InputError(f"{name}: expected at least one, got none.")
    return itertools.cycle(values)


def _check_keys(name: str, values: Mapping[str, Any], owner: str, keys: Mapping[str, Any]) -> None:
    """One value for each key and no other."""
    if not isinstance(values, Mapping) or set(values) != set(keys):
        got = ", ".join(map(repr, values)) if isinstance(values, Mapping) else repr(values)
        raise InputError(
            f"{name}: expected one for each of the {owner} {', '.join(map(repr, keys))}, got {got or 'none'}."
        )


def _pairs(
    name: str, values: Sequence[Item], other: str, others: Sequence[Other]
) -> list[tuple[Item, Other]]:
    """The values side by side; at least one, as many of the one as of the other."""
    _cycle(name, values)
    if len(values) != len(others):
        raise InputError(f"{other}: expected one for each of {len(values)} {name}, got {len(others)}.")
    return list(zip(values, others, strict=True))
