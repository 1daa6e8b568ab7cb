"""The built-in task: scikit-learn's 1,797 digits, rotated. It needs no file and runs anywhere in seconds.

A fixed half of the digits is set apart for pre-training, and the other half is dealt to six domains, so that
no image is in two domains or in both tasks. The half set apart also makes the auxiliary tasks, which ask other
things of the same images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mirepoix.data._images import IntArray
from mirepoix.data._mnist import ANGLES, array_task, rotated
from mirepoix.data._task import Task, nearest
from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = ["AUXILIARY_DIGITS", "digits_auxiliary_task", "digits_pretraining_task", "digits_task"]

AUXILIARY_DIGITS = ("parity", "inverted", "sloped", "quarter_turns")
"""The names that ``digits_auxiliary_task`` knows."""

CLASSES = tuple("0123456789")
SHEAR = 0.25  # sideways pixels per pixel of height
NOISE = 32  # of 255
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


def digits_auxiliary_task(name: str, *, size: int = 16) -> Task:
    """Another task on the half of the digits that ``digits_pretraining_task`` has, for inter-training.

    No image of ``digits_task`` is in it. Split it with target ``None``.

    - ``parity``: even or odd, in the domains ``left`` and ``right`` to which the top is sheared, by a quarter
      of the height.
    - ``inverted``: the ten digits dark on bright, with uniform noise of up to 32 of 255, in one domain.
    - ``sloped``: the ten digits on a background that brightens from 0 to 127 of 255, in the domains
      ``from_left`` and ``from_top``.
    - ``quarter_turns``: by how many degrees the digit is turned counter-clockwise, 0, 90, 180 or 270, in one
      domain, ``turned``.

    Each digit is in one domain and occurs once. Nothing is drawn anew: a name and a size are always the same
    task.

    Args:
        name: One of ``AUXILIARY_DIGITS``.
        size: Side in pixels.

    Raises:
        InputError: For an unknown name, or fewer pixels than the digits have.

    Example:
        >>> digits_auxiliary_task("parity").classes
        ('even', 'odd')

    References:
        Rame et al. (2023), model ratatouille, for the use; Gidaris et al. (2018) for the turns.
    """
    if name not in AUXILIARY_DIGITS:
        raise InputError(
            f"expected the name of an auxiliary task of the digits, got {name!r}."
            f"{nearest(name, AUXILIARY_DIGITS)} Names: {', '.join(AUXILIARY_DIGITS)}."
        )
    images, labels = _half(size, pretraining=True)
    classes: tuple[str, ...] = CLASSES
    if name == "parity":
        classes, labels = ("even", "odd"), labels % 2
        domains = {"left": _sheared(images[0::2], SHEAR), "right": _sheared(images[1::2], -SHEAR)}
    elif name == "inverted":
        noise = stream("digits", name, size).integers(-NOISE, NOISE, images.shape, endpoint=True)
        domains = {"inverted": np.clip(255 - images.astype(np.int64) + noise, 0, 255).astype(np.uint8)}
    elif name == "sloped":
        ramp = (np.arange(size) * 127 // (size - 1)).astype(np.uint8)
        domains = {
            "from_left": np.maximum(images[0::2], ramp),
            "from_top": np.maximum(images[1::2], ramp[:, None]),
        }
    else:
        # The order of the half is already random, so that the turns are dealt evenly to the digits.
        classes, labels = ("0", "90", "180", "270"), np.arange(len(images), dtype=np.int64) % 4
        turned = [np.rot90(image, int(turns)) for image, turns in zip(images, labels, strict=True)]
        domains = {"turned": np.stack(turned)}
    dealt = [
        (domain, some[:, None], labels[number :: len(domains)])
        for number, (domain, some) in enumerate(domains.items())
    ]
    return array_task(f"digits, {name}", classes, dealt, size)


def _sheared(images: NDArray[np.uint8], shear: float) -> NDArray[np.uint8]:
    """Images whose rows move sideways with their height: to the left at the top for a positive shear."""
    size = images.shape[1]
    matrix = (1, -shear, shear * size / 2, 0, 1, 0)  # from a place in the result to one in the image
    moved = [
        Image.fromarray(image).transform(
            (size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )
        for image in images
    ]
    return np.stack([np.asarray(image) for image in moved])


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
