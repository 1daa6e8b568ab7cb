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
        schedule: The learning rate stays ``constant`` or follows half a ``cosine`` down to zero.
        augment: Whether training images are augmented (validation and test images never are).
        classifier_steps: First steps that train the classifier alone; then a new optimizer trains all
            weights. With ``classifier_steps=steps`` the run is a linear probe.
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
    schedule: Literal["constant", "cosine"] = "constant"
    augment: bool = True
    classifier_steps: int = 0
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
        expect(self.schedule in ("constant", "cosine"), "schedule", "'constant' or 'cosine'")
        expect(0 <= self.classifier_steps <= self.steps, "classifier_steps", f"0 to {self.steps} (steps)")
        expect(self.check_every >= 1, "check_every", "at least 1 step")
        expect(self.average_from >= 1, "average_from", "at least 1 update")
        expect(0 <= self.ema_decay < 1, "ema_decay", "a number in [0, 1)")
        expect(self.swad_start_patience >= 1, "swad_start_patience", "at least 1 evaluation")
        expect(self.swad_end_patience >= 1, "swad_end_patience", "at least 1 evaluation")
        expect(math.isfinite(self.swad_tolerance) and self.swad_tolerance >= 0, "swad_tolerance", "0 or more")
        expect(self.collect in COLLECTED, "collect", f"one of {', '.join(COLLECTED)}")

    def with_(self, **changes: Any) -> Run:
        """The same run with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a record."""
        return dataclasses.asdict(self)


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
