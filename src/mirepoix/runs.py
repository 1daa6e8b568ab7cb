"""A run: one training configuration ``c_i`` with its seed, and the spaces it is drawn from.

The spaces of the thesis are data: a mapping from a field's name to a distribution. Each field is drawn from
a seed derived from its own name, as in DomainBed, so adding a field to a space moves no other draw. Run 0 of
a space is always the defaults.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from mirepoix.seeds import seed_hash
from mirepoix.types import InputError

__all__ = [
    "COLLECTED",
    "EXTREME",
    "EXTREME_SMALL",
    "MILD",
    "SPACES",
    "Distribution",
    "Run",
    "Space",
    "choice",
    "log_uniform",
    "log_uniform_int",
    "sample_runs",
    "uniform",
    "uniform_int",
]


COLLECTED = ("best", "last", "moving_average", "ema", "swad", "swad_released", "snapshots")
"""What `Run.collect` can name."""

SCHEDULES = ("constant", "cosine", "steps", "triangular")
"""What `Run.schedule` can name."""

LOWEST = 0.01
"""Where ``triangular`` begins and ends, a share of the learning rate (Garipov et al., 2018)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One training configuration; the defaults are DomainBed's for 224-pixel images.

    Attributes:
        seed: Of everything random in the run: order of the data, augmentation, dropout.
        steps: Updates of the weights.
        learning_rate: Of the optimizer.
        weight_decay: L2 penalty added to the gradient (``adam``, ``sgd``) or decoupled (``adamw``).
        dropout: Probability of dropping a feature before the classifier.
        batch_size: Images per source domain and step.
        optimizer: ``adam`` (betas 0.9 and 0.999), ``adamw``, or ``sgd`` with ``momentum``.
        momentum: Of ``sgd``.
        nesterov: Whether the momentum of ``sgd`` is Nesterov's.
        schedule: Of the learning rate: ``constant``; half a ``cosine`` down to zero; ``steps``, multiplied by
            ``decay`` at each of the ``milestones``; ``triangular``, up from a hundredth to the middle of the run
            and down again. See `Run.learning_rate_at`.
        schedule_every: Steps between two changes of the learning rate; an epoch, in many published schedules.
        warmup_steps: First steps, in which the learning rate rises linearly from zero; the schedules ``cosine`` and
            ``triangular`` are then those of the steps that are left.
        milestones: Of ``steps``: shares of the run.
        decay: Of ``steps``: what the learning rate is multiplied by.
        augment: Whether training images are augmented (validation and test images never are).
        classifier_steps: First steps that train the classifier alone; then a new optimizer trains all
            weights. With ``classifier_steps=steps`` the run is a linear probe.
        train_from: First module of the featurizer that is trained, such as ``layer3`` or ``last_stage``, or
            ``classifier``: what comes before it in the forward pass is frozen. All is trained by default.
        frozen_statistics: Whether the batch-norm statistics of what is frozen by ``train_from`` stay as they are too;
            those of a published public code move.
        check_every: Steps between two evaluations on ID validation; the last step is always evaluated.
        augment_validation: Whether ID validation reads augmented images too, as the reference code of the
            benchmark does; each check draws them anew.
        average_from: First iterate, counted in updates, of the moving average (Arpit et al., 2021: 100).
        ema_decay: Of the exponential moving average: the share of the past.
        swad_start_patience: Of SWAD, evaluations without improvement after which the average begins (3).
        swad_end_patience: Of SWAD, evaluations above the tolerated loss after which it ends (6).
        swad_tolerance: Of SWAD, how far above the loss at the beginning is tolerated, a share of it (0.3).
        collect: Which weights of the run are its result: ``best`` on ID validation (the earliest maximum),
            ``last``, the ``moving_average`` of the iterates, their exponential one (``ema``), ``swad`` (as
            published; ``swad_released`` is what its code does), or ``snapshots`` of all evaluations. One training
            yields all that its trainer keeps.
    """

    seed: int = 0
    steps: int = 5001
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    dropout: float = 0.0
    batch_size: int = 32
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.9
    nesterov: bool = False
    schedule: Literal["constant", "cosine", "steps", "triangular"] = "constant"
    schedule_every: int = 1
    warmup_steps: int = 0
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1
    augment: bool = True
    classifier_steps: int = 0
    train_from: str | None = None
    frozen_statistics: bool = False
    check_every: int = 100
    augment_validation: bool = False
    average_from: int = 100
    ema_decay: float = 0.999
    swad_start_patience: int = 3
    swad_end_patience: int = 6
    swad_tolerance: float = 0.3
    collect: Literal["best", "last", "moving_average", "ema", "swad", "swad_released", "snapshots"] = "best"

    def __post_init__(self) -> None:
        def expect(ok: bool, field: str, expected: str) -> None:
            if not ok:
                raise InputError(f"run.{field}: expected {expected}, got {getattr(self, field)!r}.")

        expect(self.steps >= 1, "steps", "at least 1 step")
        expect(
            math.isfinite(self.learning_rate) and self.learning_rate > 0, "learning_rate", "a positive number"
        )
        expect(math.isfinite(self.weight_decay) and self.weight_decay >= 0, "weight_decay", "0 or more")
        expect(0 <= self.dropout < 1, "dropout", "a probability in [0, 1)")
        expect(self.batch_size >= 1, "batch_size", "at least 1 image per domain")
        expect(self.optimizer in ("adam", "adamw", "sgd"), "optimizer", "'adam', 'adamw' or 'sgd'")
        expect(0 <= self.momentum < 1, "momentum", "a number in [0, 1)")
        expect(
            not self.nesterov or (self.optimizer == "sgd" and self.momentum > 0),
            "nesterov",
            "false without the momentum of 'sgd'",
        )
        expect(self.schedule in SCHEDULES, "schedule", f"one of {', '.join(SCHEDULES)}")
        expect(self.schedule_every >= 1, "schedule_every", "at least 1 step")
        expect(
            0 <= self.warmup_steps < self.steps, "warmup_steps", f"0 to {self.steps - 1} (fewer than steps)"
        )
        object.__setattr__(self, "milestones", tuple(self.milestones))
        expect(
            all(0 < share < 1 for share in self.milestones)
            and list(self.milestones) == sorted(set(self.milestones)),
            "milestones",
            "shares of the run between 0 and 1 that rise, such as (0.5, 0.75)",
        )
        expect(math.isfinite(self.decay) and self.decay > 0, "decay", "a positive number")
        expect(0 <= self.classifier_steps <= self.steps, "classifier_steps", f"0 to {self.steps} (steps)")
        expect(self.train_from != "", "train_from", "the name of a module, or none at all")
        expect(
            not self.frozen_statistics or self.train_from is not None,
            "frozen_statistics",
            "false without train_from",
        )
        expect(self.check_every >= 1, "check_every", "at least 1 step")
        expect(self.average_from >= 1, "average_from", "at least 1 update")
        expect(0 <= self.ema_decay < 1, "ema_decay", "a number in [0, 1)")
        expect(self.swad_start_patience >= 1, "swad_start_patience", "at least 1 evaluation")
        expect(self.swad_end_patience >= 1, "swad_end_patience", "at least 1 evaluation")
        expect(math.isfinite(self.swad_tolerance) and self.swad_tolerance >= 0, "swad_tolerance", "0 or more")
        expect(self.collect in COLLECTED, "collect", f"one of {', '.join(COLLECTED)}")

    def learning_rate_at(self, step: int) -> float:
        r"""The learning rate of an update.

        With :math:`t` the first step of the period of ``schedule_every`` steps in which it lies,

        .. math:: \frac{\eta}{2} \left(1 + \cos \frac{\pi t}{T}\right)

        for ``cosine``: with periods of an epoch the schedule of published snapshot ensembles, which never reaches
        zero. ``triangular`` is :math:`\eta (0.01 + 0.99 (1 - |2 t / T - 1|))`; ``steps`` is :math:`\eta` times
        ``decay`` to the power of the number of milestones up to :math:`t`. After :math:`W` ``warmup_steps``, in which
        it is :math:`\eta (t + p) / W` for periods of :math:`p` steps, cosine and triangle have :math:`t - W` and
        :math:`T - W` in place of :math:`t` and :math:`T`.

        Args:
            step: From 0.

        Example:
            >>> run = Run(steps=25, learning_rate=0.05, schedule="cosine")
            >>> [round(run.learning_rate_at(epoch), 4) for epoch in (0, 12, 24)]
            [0.05, 0.0266, 0.0002]
        """
        first = step - step % self.schedule_every
        if step < self.warmup_steps:
            return self.learning_rate * min(1.0, (first + self.schedule_every) / self.warmup_steps)
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "steps":
            passed = sum(first >= round(share * self.steps) for share in self.milestones)
            return float(self.learning_rate * self.decay**passed)
        done = max(first - self.warmup_steps, 0) / (self.steps - self.warmup_steps)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * (LOWEST + (1 - LOWEST) * (1 - abs(2 * done - 1)))

    def with_(self, **changes: Any) -> Run:
        """The same run with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a record."""
        return {**dataclasses.asdict(self), "milestones": list(self.milestones)}


Distribution: TypeAlias = Callable[[np.random.RandomState], Any]
Space: TypeAlias = Mapping[str, tuple[str, Distribution]]
"""From a field of `Run` to the name DomainBed seeds it with, and how to draw it."""


def choice(*values: Any) -> Distribution:
    """One of the values, each as likely as the others."""
    return lambda random: values[int(random.choice(len(values)))]


def uniform(low: float, high: float) -> Distribution:
    """A number between the two."""
    return lambda random: float(random.uniform(low, high))


def uniform_int(low: float, high: float) -> Distribution:
    """The whole part of a number between the two."""
    return lambda random: int(random.uniform(low, high))


def log_uniform(base: float, low: float, high: float) -> Distribution:
    """``base`` to the power of a number between the two."""
    return lambda random: float(base ** random.uniform(low, high))


def log_uniform_int(base: float, low: float, high: float) -> Distribution:
    """The whole part of ``base`` to the power of a number between the two."""
    return lambda random: int(base ** random.uniform(low, high))


MILD: Space = {
    "learning_rate": ("lr", choice(1e-5, 3e-5, 5e-5)),
    "dropout": ("resnet_dropout", choice(0.0, 0.1, 0.5)),
    "weight_decay": ("weight_decay", choice(1e-4, 1e-6)),
}
"""The mild space of SWAD, DiWA and model ratatouille: members stay averageable."""

EXTREME: Space = {
    "learning_rate": ("lr", log_uniform(10, -5, -3.5)),
    "dropout": ("resnet_dropout", choice(0.0, 0.1, 0.5)),
    "weight_decay": ("weight_decay", log_uniform(10, -6, -2)),
    "batch_size": ("batch_size", log_uniform_int(2, 3, 5.5)),
}
"""DomainBed's space for 224-pixel images: more diverse, often too far apart to average."""

EXTREME_SMALL: Space = {
    "learning_rate": ("lr", log_uniform(10, -4.5, -2.5)),
    "dropout": ("resnet_dropout", choice(0.0, 0.1, 0.5)),
    "batch_size": ("batch_size", log_uniform_int(2, 3, 9)),
}
"""DomainBed's space for 28-pixel images, whose defaults are ``learning_rate=1e-3, batch_size=64``."""

SPACES: Mapping[str, Space] = {"mild": MILD, "extreme": EXTREME, "extreme-small": EXTREME_SMALL}


def sample_runs(
    space: Space, count: int, *, data_seed: int = 0, base: Run | None = None, first: int = 0
) -> list[Run]:
    """Draw ``count`` configurations ``c_i``; the first of them, run 0, is ``base`` itself.

    Run ``h >= 1`` draws each field of ``space`` from a generator seeded by ``(h, data_seed)`` and the field's
    name in DomainBed, so for the published spaces the values are DomainBed's own. Seeds of the runs are
    derived from ``(h, data_seed)`` too.

    Args:
        space: The distribution of each field that varies.
        count: How many runs.
        data_seed: The trial; other trials draw other configurations.
        base: Values of the fields that are not in ``space``, and of run 0.
        first: Number of the first run; ``first=20`` continues a list of 20 runs.

    Raises:
        InputError: With ``count`` below 1.
    """
    if count < 1:
        raise InputError(f"members: expected at least 1 run, got {count}.")
    base = base or Run()
    runs = []
    for h in range(first, first + count):
        seed = seed_hash(h, data_seed)
        drawn = {
            field: draw(np.random.RandomState(seed_hash(seed, name))) for field, (name, draw) in space.items()
        }
        runs.append(base.with_(seed=seed_hash("run", h, data_seed), **(drawn if h else {})))
    return runs
