"""The built-in task: scikit-learn's 1,797 digits, rotated. It needs no file and runs anywhere in seconds.

A fixed half of the digits is set apart for pre-training, and the other half is dealt to six domains, so that
no image is in two domains or in both tasks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mirepoix.data._images import IntArray
from mirepoix.data._mnist import ANGLES, array_task, rotated
from mirepoix.data._task import Task
from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = ["digits_pretraining_task", "digits_task"]

CLASSES = tuple("0123456789")
DARKEST = 16  # the values of scikit-learn's digits are 0 to 16


def digits_task(*, size: int = 16) -> Task:
    """Half of the digits in six domains, rotated counter-clockwise by 0, 15, 30, 45, 60 and 75 degrees.

    Images are resized from 8 x 8 and rotated, both bilinearly; what comes in at the corners is zero.

    Args:
        size: Side in pixels.

    Example:
        >>> digits_task().domain_names
        ('rotated_0', 'rotated_15', 'rotated_30', 'rotated_45', 'rotated_60', 'rotated_75')
    """
    images, labels = _half(size, pretraining=False)
    domains = [
        (f"rotated_{angle}", rotated(images[number :: len(ANGLES)], angle), labels[number :: len(ANGLES)])
        for number, angle in enumerate(ANGLES)
    ]
    return array_task("digits", CLASSES, domains, size)


def digits_pretraining_task(*, size: int = 16) -> Task:
    """The other half of the digits, in one domain named ``upright``: split it with target ``None``.

    Args:
        size: Side in pixels.
    """
    images, labels = _half(size, pretraining=True)
    return array_task("digits for pre-training", CLASSES, [("upright", images[:, None], labels)], size)


def _half(size: int, *, pretraining: bool) -> tuple[NDArray[np.uint8], IntArray]:
    from sklearn.datasets import load_digits

    if size < 8:
        raise InputError(f"size: expected at least the digits' 8 pixels, got {size}.")
    digits = load_digits()
    # Equal images would stay together, whatever later versions of the data contain.
    _, content = np.unique(digits.data, axis=0, return_inverse=True)
    order = stream("digits").permutation(content.max() + 1)
    place = np.argsort(order)[content]
    chosen = np.argsort(place, kind="stable")
    cut = int(np.count_nonzero(place < len(order) // 2))
    chosen = chosen[:cut] if pretraining else chosen[cut:]
    values = np.rint(digits.images[chosen] * (255 / DARKEST)).astype(np.uint8)
    resized = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in values]
    return np.stack([np.asarray(image) for image in resized]), digits.target[chosen].astype(np.int64)
