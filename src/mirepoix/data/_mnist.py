"""Two tasks made from MNIST: digits whose colour misleads, and digits that are rotated.

Which digit goes to which domain, and the noise, depend on the name of the dataset and the data seed only. In
the reference they depend on the seed of each run, so that two runs on one split see different data.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mirepoix.data._images import ArrayImages, IntArray
from mirepoix.data._task import Domain, Task, digest_of, make_task
from mirepoix.data._transform import Transform
from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = ["array_task", "colored_mnist", "rotated", "rotated_mnist"]

PARTS = ("train", "t10k")
ANGLES = (0, 15, 30, 45, 60, 75)
# The probability that the colour disagrees with the label, by the correlation that names the domain.
DISAGREEMENT = {"+90%": 0.1, "+80%": 0.2, "-90%": 0.9}
LABEL_NOISE = 0.25


def colored_mnist(root: str | Path, *, data_seed: int = 0) -> Task:
    """MNIST with two classes, where the colour predicts the noisy label, in one domain the wrong way round.

    A digit is of class 1 if it is below 5, and a quarter of the labels are flipped. The colour equals the
    label except with probability 0.1, 0.2 and 0.9 in the three domains. Images have two channels of 28 x 28;
    the digit is in the channel of its colour, the other is zero.

    Args:
        root: The folder with the four idx files, gzipped or not, or one that holds them in ``MNIST/raw``
            or ``raw``.
        data_seed: Of the permutation, the label noise and the colours, drawn in this order.

    References:
        Arjovsky et al. (2019), section 5.1; DomainBed keeps the full resolution.
    """
    digits, labels = _mnist(Path(root))
    random = stream("ColoredMNIST", int(data_seed))
    order = random.permutation(len(digits))
    domains = []
    for number, (name, disagreement) in enumerate(DISAGREEMENT.items()):
        part = order[number :: len(DISAGREEMENT)]
        noisy = (labels[part] < 5) ^ (random.random(len(part)) < LABEL_NOISE)
        colour = noisy ^ (random.random(len(part)) < disagreement)
        images = np.zeros((len(part), 2, *digits.shape[1:]), dtype=np.uint8)
        images[np.arange(len(part)), colour.astype(np.int64)] = digits[part]
        domains.append((name, images, noisy.astype(np.int64)))
    return array_task("ColoredMNIST", ("5 to 9", "0 to 4"), domains, digits.shape[1])


def rotated_mnist(root: str | Path, *, data_seed: int = 0) -> Task:
    """MNIST in six domains, rotated counter-clockwise by 0, 15, 30, 45, 60 and 75 degrees.

    Each digit is in one domain. Rotation is bilinear and fills with zeros.

    Args:
        root: As for ``colored_mnist``.
        data_seed: Of the permutation that deals the digits to the domains.

    References:
        Ghifary et al. (2015); DomainBed.
    """
    digits, labels = _mnist(Path(root))
    order = stream("RotatedMNIST", int(data_seed)).permutation(len(digits))
    domains = [
        (
            str(angle),
            rotated(digits[order[number :: len(ANGLES)]], angle),
            labels[order[number :: len(ANGLES)]],
        )
        for number, angle in enumerate(ANGLES)
    ]
    return array_task("RotatedMNIST", tuple("0123456789"), domains, digits.shape[1])


def rotated(images: NDArray[np.uint8], angle: float) -> NDArray[np.uint8]:
    """Grey images rotated counter-clockwise about their centre (degrees), with a channel axis."""
    if angle:
        turned = [Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR) for image in images]
        images = np.stack([np.asarray(image) for image in turned])
    return images[:, None]  # (samples, 1, height, width)


def array_task(
    name: str,
    classes: Sequence[str],
    domains: Sequence[tuple[str, NDArray[np.uint8], IntArray]],
    size: int,
) -> Task:
    """A task whose images are at hand, neither augmented nor normalised."""
    return make_task(
        name,
        classes,
        [Domain(domain, ArrayImages(images), labels) for domain, images, labels in domains],
        Transform(size, normalise=False, augmentation="none"),
        image_digests=[digest_of(images) for _, images, _ in domains],
    )


def _mnist(root: Path) -> tuple[NDArray[np.uint8], IntArray]:
    """The 70,000 digits and their labels, training images first."""
    folder = _raw_folder(root)
    digits = [_idx(folder, f"{part}-images-idx3-ubyte", axes=3) for part in PARTS]
    labels = [_idx(folder, f"{part}-labels-idx1-ubyte", axes=1) for part in PARTS]
    for part, some, theirs in zip(PARTS, digits, labels, strict=True):
        if len(some) != len(theirs):
            raise InputError(
                f"{folder}: expected one label per image, got {len(some)} images and {len(theirs)} labels in "
                f"{part}. Fetch the files again."
            )
    return np.concatenate(digits), np.concatenate(labels).astype(np.int64)


def _raw_folder(root: Path) -> Path:
    for folder in (root / "MNIST" / "raw", root / "raw", root):
        if any((folder / f"{PARTS[0]}-images-idx3-ubyte{end}").is_file() for end in ("", ".gz")):
            return folder
    raise InputError(
        f"expected MNIST's file {PARTS[0]}-images-idx3-ubyte, gzipped or not, in {root / 'MNIST' / 'raw'}, "
        f"{root / 'raw'} or {root}, got none. Put the four idx files there."
    )


def _idx(folder: Path, name: str, *, axes: int) -> NDArray[np.uint8]:
    """An idx file of bytes: two zeros, the type (8), the number of axes, their lengths, the values."""
    plain, zipped = folder / name, folder / f"{name}.gz"
    path = plain if plain.is_file() else zipped
    try:
        data = plain.read_bytes() if path == plain else gzip.decompress(zipped.read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: expected {name}, gzipped or not, got none. Put the four idx files there."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: expected a gzipped idx file, got {type(error).__name__}: {error}. Fetch it again."
        ) from error
    start = 4 + 4 * axes
    shape = tuple(int(length) for length in np.frombuffer(data[4:start], dtype=">u4"))
    if data[:4] != bytes([0, 0, 8, axes]) or len(data) - start != np.prod(shape):
        raise InputError(
            f"{path}: expected an idx file of bytes with {axes} axes, got {len(data)} bytes that begin with "
            f"{data[:4].hex()}. Fetch it again."
        )
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
