"""SWAD: the mean of all iterates in a window that the validation loss opens and closes.

The iterates between two checks form a segment. Both collectors here see the same segments and the same losses;
they differ in which segments they count, and how often.
"""

from __future__ import annotations

import math
import statistics
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mirepoix.training._collectors import Check, _copy, _floats, _Sum, _with_floats
from mirepoix.types import Diverged, InputError

__all__ = ["SWAD", "ReleasedSWAD"]


@dataclass(frozen=True, slots=True)
class _Segment:
    """The mean of the iterates of the steps from ``first`` to ``last``, and the loss of the last one."""

    first: int
    last: int
    loss: float
    values: list[Tensor]


class _Window:
    """The segments counted so far, and their sum."""

    def __init__(self) -> None:
        self.counts: dict[tuple[int, int], int] = {}
        self.sum = _Sum()

    def add(self, segments: Sequence[_Segment]) -> None:
        for segment in segments:
            steps = segment.first, segment.last
            self.counts[steps] = self.counts.get(steps, 0) + 1
            self.sum.add(segment.values)

    def plus(self, segments: Sequence[_Segment]) -> _Window:
        other = _Window()
        other.counts, other.sum = dict(self.counts), self.sum.clone()
        other.add(segments)
        return other

    def state(self) -> dict[str, Any]:
        return {"counts": [[*steps, count] for steps, count in self.counts.items()], "sum": self.sum.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.counts = {(first, last): count for first, last, count in state["counts"]}
        self.sum.load(state["sum"])


class _Valley(ABC):
    """Makes segments, keeps the latest ones, and averages those that a subclass counts.

    ``_recent`` holds the segments that may still be needed; before the start, its last one is the latest.
    """

    def __init__(self, start_patience: int = 3, end_patience: int = 6, tolerance: float = 0.3) -> None:
        for name, patience in (("start_patience", start_patience), ("end_patience", end_patience)):
            if patience < 1:
                raise InputError(f"{name} counts checks: expected 1 or more, got {patience}.")
        if not 0 <= tolerance < math.inf:
            raise InputError(
                f"the tolerance is a fraction of the loss: expected 0 or more, got {tolerance}; "
                "0.3 allows losses up to 1.3 times those at the start."
            )
        self.start_patience, self.end_patience, self.tolerance = start_patience, end_patience, tolerance
        self.threshold: float | None = None
        self.ended = False
        self._first = 0
        self._iterates = _Sum()
        self._recent: list[_Segment] = []
        self._counted = _Window()

    def after_step(self, update: int, theta: Mapping[str, Tensor]) -> None:
        """Add one iterate to the segment under way; after the end of the window, nothing."""
        if self.ended:
            return
        if not self._iterates.count:
            self._first = update - 1
        self._iterates.add(_floats(theta))

    def after_check(self, check: Check, theta: Mapping[str, Tensor]) -> None:
        """Close the segment; after the end of the window, nothing.

        Raises:
            Diverged: If the loss is not a finite number.
            InputError: If no step was made since the previous check.
        """
        if self.ended:
            return
        if not math.isfinite(check.loss):
            raise Diverged(
                f"the validation loss was {check.loss} after step {check.step}, and SWAD compares losses; "
                "a smaller learning rate helps.",
                check.step,
            )
        if not self._iterates.count:
            raise InputError(
                f"SWAD averages the iterates between two checks, but none came before the check of step "
                f"{check.step}; call after_step for every update and after_check once after some of them."
            )
        values = [
            mean.to(torch.promote_types(value.dtype, torch.float32))
            for mean, value in zip(self._iterates.means(), _floats(theta), strict=True)
        ]
        self._iterates = _Sum()
        self._close(_Segment(self._first, check.step, check.loss, values))
        if self.ended:
            self._recent = []

    @property
    def window(self) -> list[tuple[int, int, int]]:
        """The segments that `weights` averages: first step and last step, from 0, and how often it counts."""
        steps = [(segment.first, segment.last) for segment in self._remaining()]
        counts = dict(self._counted.counts)
        for key in steps:
            counts[key] = counts.get(key, 0) + 1
        return [(first, last, count) for (first, last), count in sorted(counts.items())]

    def weights(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean of the segments in the window, each as often as it counts.

        Warns:
            UserWarning: If no start was found; the weights are then the mean of the last segment, or, before
                the first check, a copy of the live weights.
        """
        if self.threshold is None:
            last = self._recent[-1] if self._recent else None
            given = f"the mean of the steps {last.first} to {last.last}" if last else "the live ones"
            warnings.warn(
                f"SWAD found no start: no validation loss was the smallest of {self.start_patience} in a row, "
                f"so the weights are {given}. Train longer, check more often, or take a smaller "
                "start_patience; if this is meant, filter the warning by 'SWAD found no start'.",
                UserWarning,
                stacklevel=2,
            )
            if last is None:
                return _copy(theta)
        return _with_floats(theta, self._counted.plus(self._remaining()).sum.means())

    def state(self) -> dict[str, Any]:
        """The segment under way, the segments kept, the sum over the window, and the threshold."""
        return {
            "first": self._first,
            "iterates": self._iterates.state(),
            "recent": [[kept.first, kept.last, kept.loss, kept.values] for kept in self._recent],
            "counted": self._counted.state(),
            "threshold": self.threshold,
            "ended": self.ended,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue."""
        self._first = state["first"]
        self._iterates.load(state["iterates"])
        self._recent = [_Segment(*fields) for fields in state["recent"]]
        self._counted.load(state["counted"])
        self.threshold, self.ended = state["threshold"], state["ended"]

    def _starting(self) -> list[_Segment]:
        """The latest segments, if they show that the first of them is a start; sets the threshold."""
        latest = self._recent[-self.start_patience :]
        losses = [segment.loss for segment in latest]
        if len(latest) < self.start_patience or losses[0] > min(losses):
            return []
        # The exact mean, so that equal losses are never above a threshold of tolerance 0.
        self.threshold = (1 + self.tolerance) * statistics.mean(losses)
        return latest

    def _above(self, segment: _Segment) -> bool:
        assert self.threshold is not None
        return segment.loss > self.threshold

    @abstractmethod
    def _close(self, segment: _Segment) -> None:
        """Take a new segment in."""

    @abstractmethod
    def _remaining(self) -> list[_Segment]:
        """What to add to the segments counted if the training ends here."""


class SWAD(_Valley):
    r"""Stochastic weight averaging, densely: the mean of the iterates in the valley of the validation loss.

    Segment :math:`j` is the mean of the iterates since the check before check :math:`j`, and :math:`L_j` the
    validation loss of the weights at that check. With :math:`N_s` the ``start_patience``, :math:`N_e` the
    ``end_patience`` and :math:`r` the ``tolerance``:

    1. The window starts with the first segment :math:`j` with
       :math:`L_j = \min(L_j, \dots, L_{j+N_s-1})`. The threshold is
       :math:`\tau = (1 + r) \, \frac{1}{N_s} \sum_{i=0}^{N_s-1} L_{j+i}`.
    2. It ends at the first check after these :math:`N_s` at which the last :math:`N_e` losses are all above
       :math:`\tau`: these :math:`N_e` segments are left out, and whatever comes after them. The training goes
       on for the other collectors.
    3. The result is the mean of the segments in the window. Each counts once, however many steps it has: so
       the first one, which is often a single step, counts like the others.

    Corners:

    - A segment above the threshold is held back until it is known whether the window ended before it. It is
      added as soon as a later loss is not above the threshold, or when :math:`N_e` newer segments are held.
    - If the training ends first, the window runs to its end, with the segments still held back: fewer than
      :math:`N_e` bad losses in a row do not close it. Iterates after the last check have no loss and are left
      out.
    - Without a start the result is the mean of the last segment, with a warning.
    - A loss that is not finite raises `mirepoix.types.Diverged`, except after the end of the window.

    At most :math:`\max(N_s, N_e)` segments are kept, on the CPU, in float32 (float64 for float64 networks);
    sums are in float64 where the device has it. Floating-point buffers are averaged alike; integer buffers
    are those of the last iterate. Unfrozen batch-norm statistics should be estimated again.

    Attributes:
        threshold: :math:`\tau` in nats, or None before the start is known.
        ended: Whether the window has ended.

    Args:
        start_patience: :math:`N_s`, in checks.
        end_patience: :math:`N_e`, in checks.
        tolerance: :math:`r`; the paper takes 0.3, and 0.2 for VLCS.

    Raises:
        InputError: If a patience is less than 1 or the tolerance negative.

    References:
        Cha et al. (2021), SWAD: Domain generalization by seeking flat minima, algorithm 1.
    """

    def _close(self, segment: _Segment) -> None:
        self._recent.append(segment)
        if self.threshold is None:
            self._recent = self._starting() or self._recent[-self.start_patience :]
            if self.threshold is not None:
                self._settle(1)  # the start itself is never held back
            return
        self._settle(0)
        if len(self._recent) >= self.end_patience:
            self._counted.add(self._recent[: -self.end_patience])
            self.ended = True

    def _settle(self, at_least: int) -> None:
        """Count everything up to the latest segment that is not above the threshold."""
        settled = [k for k, segment in enumerate(self._recent, 1) if not self._above(segment)]
        count = max([at_least, *settled])
        self._counted.add(self._recent[:count])
        self._recent = self._recent[count:]

    def _remaining(self) -> list[_Segment]:
        return self._recent[-1:] if self.threshold is None else self._recent


class ReleasedSWAD(_Valley):
    r"""SWAD as its authors released it, which counts some segments twice; to reproduce published numbers.

    Start and threshold are those of `SWAD`. What is counted differs. With :math:`Q` the latest :math:`N_e`
    segments (fewer in the beginning), oldest first:

    - When the start :math:`j` is known, with :math:`N_e > N_s`, look back: among the :math:`N_e - N_s + 1`
      oldest of :math:`Q`, let :math:`s` be the place after the last one above the threshold, or the first place
      if there is none; count those after place :math:`s`, itself skipped. With :math:`N_e < N_s`, count the
      :math:`N_s - N_e` segments after the start. With :math:`N_e = N_s`, count nothing.
    - At every later check: if the oldest of :math:`Q` is older than the start, do nothing. If all of :math:`Q`
      is above the threshold, the window has ended. Else count the oldest of :math:`Q`.
    - At the end of a training whose window has not ended, leave the oldest of :math:`Q` out, and count the
      others, oldest first, until all that remain are above the threshold.

    So the start mostly counts twice, and the segments after it up to three times if it is found early, when
    :math:`Q` is still short. If nothing was counted at all, the result is the start alone. Everything else is
    as in `SWAD`: arguments, attributes, the warning without a start, the errors.

    References:
        Cha et al. (2021), SWAD, and the released code (state of December 2022), checked by simulation.
    """

    def __init__(self, start_patience: int = 3, end_patience: int = 6, tolerance: float = 0.3) -> None:
        super().__init__(start_patience, end_patience, tolerance)
        self._start: _Segment | None = None

    def _close(self, segment: _Segment) -> None:
        kept = max(self.start_patience, self.end_patience)
        self._recent = [*self._recent, segment][-kept:]
        queue = self._recent[-self.end_patience :]
        if self._start is None:
            latest = self._starting()
            if latest:
                self._start = latest[0]
                self._counted.add(self._extension(latest, queue))
        elif queue[0].last >= self._start.last:
            if all(map(self._above, queue)):
                self.ended = True
            else:
                self._counted.add(queue[:1])

    def _extension(self, latest: list[_Segment], queue: list[_Segment]) -> list[_Segment]:
        """What is counted when the start becomes known."""
        more = self.end_patience - self.start_patience
        if more <= 0:
            return latest[1 : 1 - more]
        oldest = queue[: more + 1]
        skipped = max((k for k, segment in enumerate(oldest, 1) if self._above(segment)), default=0)
        return oldest[skipped + 1 :]

    def _remaining(self) -> list[_Segment]:
        if self._start is None:
            return self._recent[-1:]
        rest: list[_Segment] = []
        if not self.ended:
            rest = self._recent[-self.end_patience :][1:]
            while rest and self._above(rest[-1]):
                rest.pop()
        return rest if rest or self._counted.counts else [self._start]

    def state(self) -> dict[str, Any]:
        """As for `SWAD`, and the start."""
        start = self._start
        fields = start and [start.first, start.last, start.loss, start.values]
        return {**super().state(), "start": fields}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue."""
        super().load(state)
        self._start = state["start"] and _Segment(*state["start"])
