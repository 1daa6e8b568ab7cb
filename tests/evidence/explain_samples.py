"""Members that are right and wrong where a test says, with logits to match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mirepoix.evidence._sources import Block, Source, _roles
from mirepoix.predictions import Predictions

CLASSES = 5


def wrong_on(images: int, *places: int | range) -> np.ndarray:
    """Right everywhere but on these images."""
    right = np.ones(images, dtype=bool)
    for place in places:
        right[place if isinstance(place, int) else list(place)] = False
    return right


def predictions(
    right: Mapping[str, np.ndarray],
    *,
    domains: Sequence[str] = ("all",),
    size: float = 2.0,
    classes: int = CLASSES,
    missing: int = 0,
) -> Predictions:
    """A logit of ``size`` for the label, or where a member is wrong for another class: not the same for all members."""
    images = len(next(iter(right.values())))
    labels = torch.arange(images) % (classes - missing)
    logits = torch.zeros(len(right), images, classes)
    for k, each in enumerate(right.values()):
        wrong = (labels + 1 + k % (classes - 1)) % classes
        guess = torch.where(torch.as_tensor(each), labels, wrong)
        logits[k, torch.arange(images), guess] = size
    where = torch.arange(images) * len(domains) // images
    names = tuple(str(c) for c in range(classes))
    return Predictions(logits, labels, where, tuple(right), names, tuple(domains))


def block(
    inner: Mapping[str, np.ndarray] | None, outer: Mapping[str, np.ndarray] | None, **options: Any
) -> Block:
    """One target, from who is right on ID validation and on OOD data."""
    sides = [None if right is None else predictions(right, **options) for right in (inner, outer)]
    names = next(side for side in sides if side is not None).members
    members, combined = _roles(names)
    return Block("your members", members, combined=combined, id=sides[0], ood=sides[1])


def source(*blocks: Block, **options: Any) -> Source:
    return Source("a test", "files", blocks, **options)


def apart(images: int = 400, *, weak: float = 0.15, average: float = 0.02) -> dict[str, np.ndarray]:
    """Four members that fail on different images, and an average that fails on few."""
    n = int(weak * images)
    right = {f"run-{i}": wrong_on(images, range(i * n, (i + 1) * n)) for i in range(4)}
    return right | {"average": wrong_on(images, range(int(average * images)))}
