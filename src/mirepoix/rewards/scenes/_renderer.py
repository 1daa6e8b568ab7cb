"""Scenes of real digits: a few handwritten digits on a canvas, with what can be said about them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = ["CANVAS", "PARTS", "SCALES", "Digit", "Part", "Relation", "Scene", "render"]

Part = Literal["train", "validation", "test"]

PARTS: tuple[Part, ...] = ("train", "validation", "test")
SCALES = (0.5, 1.0, 2.0)
"""Of the 8 x 8 pixels of a digit."""

CANVAS = 32
"""Width and height of a scene in pixels."""

GRID = 4
"""Digits lie at multiples of so many pixels, the patches of the network, so that a small one soon learns to read."""

THIN, BOLD = 4.6, 5.15
"""A digit with less mean ink (in [0, 16]) than the first is thin, with more than the second bold: about a third each.
Those between are not used, so that the word is always true."""

MARGIN = 2.0
"""In pixels: how much longer one distance between two centres is than the other, so that one relation holds."""


@dataclass(frozen=True, slots=True)
class Digit:
    """One digit of a scene.

    Attributes:
        label: Its class, 0 to 9.
        box: ``(x0, y0, x1, y1)`` in pixels; x to the right, y downwards, ``x1`` and ``y1`` excluded.
        scale: 0.5, 1 or 2: 4, 8 or 16 pixels wide and high.
        stroke: ``thin`` or ``bold``, by the mean ink of the handwriting.
        sample: Which row of scikit-learn's digits it is.
    """

    label: int
    box: tuple[int, int, int, int]
    scale: float
    stroke: Literal["thin", "bold"]
    sample: int

    @property
    def centre(self) -> tuple[float, float]:
        """``(x, y)`` in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True, slots=True)
class Relation:
    """Where one digit is with respect to another.

    Attributes:
        first: Index of a digit in its scene.
        name: ``left of`` where the centres lie further apart in x than in y, else ``above``.
        second: Index of the other, which is to the right or below.
    """

    first: int
    name: Literal["left of", "above"]
    second: int


@dataclass(frozen=True, slots=True)
class Scene:
    """What is on a canvas.

    Attributes:
        digits: Of different classes, in the order drawn.
        relations: One for each pair of digits.
    """

    digits: tuple[Digit, ...]
    relations: tuple[Relation, ...]


def render(
    count: int,
    *,
    part: Part = "train",
    seed: int = 0,
    digits: int | Sequence[int] = 2,
    scales: Sequence[float] = SCALES,
) -> tuple[NDArray[np.uint8], tuple[Scene, ...]]:
    """Scenes of digits from scikit-learn's handwritten ones, on a dark canvas of 32 x 32 pixels, none overlapping.

    Classes, strokes, scales and then places are drawn uniformly, places until all digits fit; of three digits at most
    two are at scale 2. Digits lie at multiples of 4 pixels. A scene depends on seed, part and its number alone, so more
    scenes begin with the same ones. No handwritten sample appears in two parts, whatever the seeds: each has 60, 20 and
    20 percent of every class and stroke.

    Args:
        count: How many scenes.
        part: ``train``, ``validation`` or ``test``.
        seed: Of everything that is drawn.
        digits: How many digits in a scene, 1 to 3, or several numbers to draw from.
        scales: Some of 0.5, 1 and 2.

    Returns:
        Images, shape (count, 32, 32), 0 for the canvas to 255 for ink; and their scenes.

    Raises:
        InputError: For a count below 1, or a part, number of digits or scale that is not there.

    Example:
        >>> images, scenes = render(3, seed=1)
        >>> images.shape, len(scenes[0].digits)
        ((3, 32, 32), 2)
    """
    if count < 1:
        raise InputError(f"count: expected at least 1 scene, got {count}.")
    if part not in PARTS:
        raise InputError(f"part: expected one of {', '.join(PARTS)}, got {part!r}.")
    counts = (digits,) if isinstance(digits, int) else tuple(digits)
    if not counts or not set(counts) <= {1, 2, 3}:
        raise InputError(f"digits: expected 1, 2 or 3, or several of them, got {digits!r}.")
    if not scales or not set(scales) <= set(SCALES):
        raise InputError(f"scales: expected some of {', '.join(map(str, SCALES))}, got {scales!r}.")
    if set(scales) == {2} and 3 in counts:
        raise InputError(
            "scales: expected a smaller one than 2 too, as three digits of scale 2 hardly ever fit."
        )
    images = np.zeros((count, CANVAS, CANVAS), dtype=np.uint8)
    scenes = []
    for number in range(count):
        random = stream("scene", seed, part, number)
        scene = _layout(random, part, counts, tuple(float(scale) for scale in scales))
        for digit in scene.digits:
            x0, y0, x1, y1 = digit.box
            images[number, y0:y1, x0:x1] = _scaled(digit.sample, digit.scale)
        scenes.append(scene)
    return images, tuple(scenes)


def _layout(
    random: np.random.Generator, part: Part, counts: tuple[int, ...], scales: tuple[float, ...]
) -> Scene:
    """What is drawn, and then where: until there is a place for all."""
    labels = random.permutation(10)[: counts[random.integers(len(counts))]]
    sizes = [scales[random.integers(len(scales))] for _ in labels]
    while len(sizes) == 3 and min(sizes) == 2:  # three large ones hardly ever fit
        sizes = [scales[random.integers(len(scales))] for _ in labels]
    looks: list[tuple[Literal["thin", "bold"], int]] = []
    for label in labels:
        stroke: Literal["thin", "bold"] = "bold" if random.integers(2) else "thin"
        samples = _samples()[part, int(label), stroke]
        looks.append((stroke, int(samples[random.integers(len(samples))])))
    while True:
        drawn: list[Digit] = []
        for label, scale, (stroke, sample) in zip(labels, sizes, looks, strict=True):
            side = int(8 * scale)
            free = np.flatnonzero(_free(side, drawn))
            if not len(free):
                break
            row, column = divmod(int(free[random.integers(len(free))]), (CANVAS - side) // GRID + 1)
            x, y = GRID * column, GRID * row
            drawn.append(Digit(int(label), (x, y, x + side, y + side), scale, stroke, sample))
        if len(drawn) == len(labels):
            pairs = ((i, j) for j in range(len(drawn)) for i in range(j))
            return Scene(tuple(drawn), tuple(_relation(drawn, i, j) for i, j in pairs))


def _free(side: int, drawn: Sequence[Digit]) -> NDArray[np.bool_]:
    """Whether a digit overlaps no other and has one clear relation to each, by its y0 and x0 in steps of the grid."""
    places = np.arange(0, CANVAS - side + 1, GRID)
    free = np.ones((len(places), len(places)), dtype=bool)
    for digit in drawn:
        x0, y0, x1, y1 = digit.box
        beside, stacked = (places >= x1) | (places + side <= x0), (places >= y1) | (places + side <= y0)
        dx, dy = (abs(places + side / 2 - centre) for centre in digit.centre)
        free &= (beside[None, :] | stacked[:, None]) & (abs(dx[None, :] - dy[:, None]) >= MARGIN)
    return free


def _relation(digits: Sequence[Digit], i: int, j: int) -> Relation:
    dx, dy = (q - p for p, q in zip(digits[i].centre, digits[j].centre, strict=True))
    name: Literal["left of", "above"] = "left of" if abs(dx) > abs(dy) else "above"
    first, second = (i, j) if (dx if name == "left of" else dy) > 0 else (j, i)
    return Relation(first, name, second)


@functools.cache
def _digits() -> Any:
    from sklearn.datasets import load_digits

    return load_digits()


@functools.cache
def _samples() -> dict[tuple[str, int, str], NDArray[np.int64]]:
    """The rows of each part, class and stroke."""
    images, labels = _digits().images, _digits().target
    ink = images.mean(axis=(1, 2))
    found: dict[tuple[str, int, str], NDArray[np.int64]] = {}
    for label in range(10):
        for stroke, drawn in (("thin", ink < THIN), ("bold", ink > BOLD)):
            rows = np.flatnonzero(drawn & (labels == label)).astype(np.int64)
            rows = stream("parts", label, stroke).permutation(rows)
            cuts = [round(0.6 * len(rows)), round(0.8 * len(rows))]
            for part, own in zip(PARTS, np.split(rows, cuts), strict=True):
                found[part, label, stroke] = own
    return found


def _scaled(sample: int, scale: float) -> NDArray[np.uint8]:
    """Enlarged by repetition, reduced by the mean of four pixels."""
    image: NDArray[Any] = _digits().images[sample]
    if scale < 1:
        image = image.reshape(4, 2, 4, 2).mean(axis=(1, 3))
    elif scale > 1:
        image = np.kron(image, np.ones((2, 2)))
    return np.round(image * (255 / 16)).astype(np.uint8)
