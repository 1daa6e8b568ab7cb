r"""Visual grounding: where on the image is the digit that a few words name?

The answer is a box in words: the bins of its left, upper, right and lower edge.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mirepoix.rewards.scenes._captioning import DIGITS
from mirepoix.rewards.scenes._iou import intersection_over_union
from mirepoix.rewards.scenes._renderer import CANVAS, Digit, Part, Scene, render
from mirepoix.rewards.scenes._task import SceneExamples, SceneTask, Scores
from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = ["BINS", "Grounding", "box_of", "location"]

Box = tuple[int, int, int, int]

BINS = 16
"""Of each axis of the canvas; a bin is two pixels."""

BIN = CANVAS // BINS
TOKENS = tuple(f"<bin_{number}>" for number in range(BINS))
PLACES = {token: place for place, token in enumerate(TOKENS)}
SIZES = ("small", "medium", "large")
RIGHT = 0.5


@dataclass(frozen=True, kw_only=True)
class Grounding(SceneTask):
    r"""The box of one digit among two or three, with one reward for each size of what is looked for.

    The prompt names the target, ``the bold seven``; the answer is ``<bin_3> <bin_0> <bin_6> <bin_3>``, the bins of
    :math:`x_0, y_0, x_1, y_1`, the last two inclusive. With :math:`b` the box of the target in pixels and
    :math:`\hat b` that of the answer,

    .. math:: R_k = 1[\text{size}(b) = k] \cdot 1[\text{IoU}(b, \hat b) > 0.5], \qquad
        k \in \{\text{small}, \text{medium}, \text{large}\},

    so a reward is 0 for all targets of other sizes, and its mean over all examples is at most the share of its size,
    about a third. An answer that is not four bins, or whose box ends before it begins, has 0. Sizes are thirds of the
    training set by area. All are maximised.

    Digits are 4, 8 or 16 pixels wide. Small ones are targets only where two pixels are fine enough, so that every
    target has an answer that is right. Half of the loss is the cross-entropy of the true answer.

    References:
        Thesis, section 6.3.4, with referring expressions on photographs; Wang et al. (2022), OFA.
    """

    name: ClassVar[str] = "grounding"
    rewards: ClassVar[tuple[str, ...]] = SIZES
    trained: ClassVar[tuple[str, ...]] = SIZES
    vocabulary: ClassVar[tuple[str, ...]] = ("the", "thin", "bold", *DIGITS, *TOKENS)
    longest: ClassVar[int] = 5  # with the end
    longest_prompt: ClassVar[int] = 3
    cross_entropy: ClassVar[float] = 0.5
    files: ClassVar[tuple[str, ...]] = ("_grounding.py", "_iou.py")

    def make(self, part: Part, count: int) -> SceneExamples:
        """Scenes of two or three digits, a target in each."""
        rendered = count
        while True:
            images, scenes = render(rendered, part=part, seed=self.seed, digits=(2, 3))
            targets = [self._target(scene, part, number) for number, scene in enumerate(scenes)]
            rows = [row for row, target in enumerate(targets) if target is not None][:count]
            if len(rows) == count:
                break
            rendered += 2 * (count - len(rows))  # a scene with small digits only may have no target
        chosen = [target for target in (targets[row] for row in rows) if target is not None]
        return SceneExamples(
            images[rows],
            [f"the {digit.stroke} {DIGITS[digit.label]}" for digit in chosen],
            [[location(digit.box)] for digit in chosen],
            [scenes[row] for row in rows],
        )

    def measure(self, examples: SceneExamples, rows: Sequence[int], answers: Sequence[str]) -> Scores:
        """The reward of the size of the target is 1 for a box that is right; all others are 0."""
        right = np.zeros(len(answers))
        sizes = np.array([self.size_of(target_of(examples, row)) for row in rows], dtype=object)
        told = {place: box for place, answer in enumerate(answers) if (box := box_of(answer)) is not None}
        if told:
            expected = [target_of(examples, rows[place]).box for place in told]
            right[list(told)] = intersection_over_union(list(told.values()), expected) > RIGHT
        return {size: right * (sizes == size) for size in SIZES}

    def size_of(self, digit: Digit) -> str:
        """``small``, ``medium`` or ``large``, by thirds of the targets of the training set.

        Raises:
            InputError: If the targets of the training set have fewer than three areas.
        """
        return SIZES[int(np.searchsorted(_edges(self), _area(digit)))]

    def _target(self, scene: Scene, part: Part, number: int) -> Digit | None:
        """One of the digits that can be told with bins."""
        good = [digit for digit in scene.digits if _can_be_told(digit.box)]
        return good[stream("target", self.seed, part, number).integers(len(good))] if good else None


def location(box: Box) -> str:
    """The smallest box of bins that contains the box, in words.

    Args:
        box: ``(x0, y0, x1, y1)`` in pixels, ``x1`` and ``y1`` excluded.

    Example:
        >>> location((3, 0, 7, 4))
        '<bin_1> <bin_0> <bin_3> <bin_1>'
    """
    x0, y0, x1, y1 = box
    return " ".join(TOKENS[place] for place in (x0 // BIN, y0 // BIN, (x1 - 1) // BIN, (y1 - 1) // BIN))


def box_of(answer: str) -> Box | None:
    """The box in pixels that an answer tells; None if it is not four bins, or ends before it begins.

    Example:
        >>> box_of("<bin_1> <bin_0> <bin_3> <bin_1>"), box_of("<bin_1> <bin_0> <bin_0> <bin_1>"), box_of("seven")
        ((2, 0, 8, 4), None, None)
    """
    words = answer.split()
    if len(words) != 4 or any(word not in PLACES for word in words):
        return None
    x0, y0, x1, y1 = (PLACES[word] for word in words)
    return (BIN * x0, BIN * y0, BIN * (x1 + 1), BIN * (y1 + 1)) if x0 <= x1 and y0 <= y1 else None


def target_of(examples: SceneExamples, row: int) -> Digit:
    """The digit of an example that its prompt names; no two digits of a scene have one class."""
    label = DIGITS.index(examples.prompts[row].split()[-1])
    return next(digit for digit in examples.scenes[row].digits if digit.label == label)


def _can_be_told(box: Box) -> bool:
    told = box_of(location(box))
    return told is not None and bool(intersection_over_union(told, box) > RIGHT)


def _area(digit: Digit) -> int:
    x0, y0, x1, y1 = digit.box
    return (x1 - x0) * (y1 - y0)


@functools.lru_cache(maxsize=16)
def _edges(task: Grounding) -> tuple[float, float]:
    """Areas between small, medium and large: between two areas that occur, where the share below is nearest a third."""
    examples = task.examples("train")
    areas = np.array([_area(target_of(examples, row)) for row in range(len(examples))])
    found, counts = np.unique(areas, return_counts=True)
    if len(found) < 3:
        raise InputError(
            f"train: expected targets of at least three areas, to have small, medium and large ones, got "
            f"{len(found)} in {len(examples)} examples. Take more examples."
        )
    below = np.cumsum(counts)[:-1] / len(areas)
    first = int(np.argmin(abs(below - 1 / 3)[:-1]))
    second = first + 1 + int(np.argmin(abs(below - 2 / 3)[first + 1 :]))
    between = (found[:-1] + found[1:]) / 2
    return float(between[first]), float(between[second])
