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

__all__ = ["array_task", "check_limit", "colored_mnist", "rotated", "rotated_mnist"]

PARTS = ("train", "t10k")
ANGLES = (0, 15, 30, 45, 60, 75)
# The probability that the colour disagrees with the label, by the correlation that names the domain.
DISAGREEMENT = {"+90%": 0.1, "+80%": 0.2, "-90%": 0.9}
LABEL_NOISE = 0.25
SIDE = 28  # pixels of an image of MNIST


def colored_mnist(
    root: str | Path, *, data_seed: int = 0, size: int = SIDE, channels: int = 2, limit: int | None = None
) -> Task:
    """MNIST with two classes, where the colour predicts the noisy label, in one domain the wrong way round.

    A digit is of class 1 if it is below 5, and a quarter of the labels are flipped. The colour equals the
    label except with probability 0.1, 0.2 and 0.9 in the three domains. Images have two channels of 28 x 28;
    the digit is in the channel of its colour, the other is zero.

    With three channels the images are red or green, blue is zero, and they are normalised and padded as in
    ``rotated_mnist``.

    Args:
        root: The folder with the four idx files, gzipped or not, or one that holds them in ``MNIST/raw``
            or ``raw``.
        data_seed: Of the permutation, the label noise and the colours, drawn in this order.
        size: As for ``rotated_mnist``.
        channels: 2, or 3 for a network that takes colour images.
        limit: As for ``rotated_mnist``; the images kept have the colours and labels they have without it.

    Raises:
        InputError: As for ``rotated_mnist``.

    References:
        Arjovsky et al. (2019), section 5.1; DomainBed keeps the full resolution.
    """
    _check_form("ColoredMNIST", size, channels, (2, 3), limit)
    digits, labels = _mnist(Path(root))
    random = stream("ColoredMNIST", int(data_seed))
    order = random.permutation(len(digits))
    domains = []
    notes: list[str] = []
    for number, (name, disagreement) in enumerate(DISAGREEMENT.items()):
        part = order[number :: len(DISAGREEMENT)]
        noisy = (labels[part] < 5) ^ (random.random(len(part)) < LABEL_NOISE)
        colour = noisy ^ (random.random(len(part)) < disagreement)
        # Everything is drawn for all images before some are kept, so that a limit changes none of those.
        kept = part[:limit]
        images = np.zeros((len(kept), channels, *digits.shape[1:]), dtype=np.uint8)
        images[np.arange(len(kept)), colour[:limit].astype(np.int64)] = digits[kept]
        domains.append((name, _padded(images, size), noisy[:limit].astype(np.int64)))
        notes += _left_out(name, len(kept), len(part))
    return array_task(
        "ColoredMNIST", ("5 to 9", "0 to 4"), domains, size, normalise=channels == 3, notes=notes
    )


def rotated_mnist(
    root: str | Path, *, data_seed: int = 0, size: int = SIDE, channels: int = 1, limit: int | None = None
) -> Task:
    """MNIST in six domains, rotated counter-clockwise by 0, 15, 30, 45, 60 and 75 degrees.

    Each digit is in one domain. Rotation is bilinear and fills with zeros.

    With one channel, values are in [0, 1], as in the reference. With three, the grey is repeated and
    normalised with the mean and deviation of ImageNet's colours, as the images of ``folder_task`` are: what
    a network that starts from weights for colour images expects, so that one network can train on both.

    Args:
        root: As for ``colored_mnist``.
        data_seed: Of the permutation that deals the digits to the domains.
        size: Side in pixels, at least 28. A larger one adds zeros around the rotated digit, equally on all
            sides (an odd row goes below, an odd column to the right), and changes none of its pixels.
        channels: 1, or 3 for a network that takes colour images.
        limit: Images per domain, the first that the permutation deals to it; all of them by default. A
            smaller limit takes some of those that a larger one takes.

    Raises:
        InputError: For missing or damaged files, a size below 28, another number of channels or a limit
            below 1.

    References:
        Ghifary et al. (2015); DomainBed.
    """
    _check_form("RotatedMNIST", size, channels, (1, 3), limit)
    digits, labels = _mnist(Path(root))
    order = stream("RotatedMNIST", int(data_seed)).permutation(len(digits))
    domains = []
    notes: list[str] = []
    for number, angle in enumerate(ANGLES):
        part = order[number :: len(ANGLES)]
        kept = part[:limit]
        # Repeated in memory: rows of a broadcast view would be read with the channel axis innermost.
        images = np.repeat(_padded(rotated(digits[kept], angle), size), channels, axis=1)
        domains.append((str(angle), images, labels[kept]))
        notes += _left_out(str(angle), len(kept), len(part))
    return array_task(
        "RotatedMNIST", tuple("0123456789"), domains, size, normalise=channels == 3, notes=notes
    )


def check_limit(where: object, limit: int | None) -> None:
    """At least one image per domain, if there is a limit."""
    if limit is not None and limit < 1:
        raise InputError(
            f"{where}: limit: expected at least 1 image per domain, got {limit}. Leave it out to take all."
        )


def _check_form(name: str, size: int, channels: int, known: tuple[int, int], limit: int | None) -> None:
    if size < SIDE:
        raise InputError(
            f"{name}: size: expected at least the digits' {SIDE} pixels, which are padded with zeros and "
            f"never shrunk, got {size}."
        )
    if channels not in known:
        raise InputError(
            f"{name}: channels: expected {known[0]}, or {known[1]} for a network that takes colour images, "
            f"got {channels}."
        )
    check_limit(name, limit)


def _padded(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Images in the middle of zeros."""
    height, width = ((size - side) for side in images.shape[2:])
    edges = ((0, 0), (0, 0), (height // 2, height - height // 2), (width // 2, width - width // 2))
    return np.pad(images, edges) if height or width else images


def _left_out(domain: str, kept: int, count: int) -> list[str]:
    return [f"domain {domain!r} has the first {kept:,} of {count:,} images (limit)"] if kept < count else []


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
    *,
    normalise: bool = False,
    notes: Sequence[str] = (),
) -> Task:
    """A task whose images are at hand and not augmented."""
    return make_task(
        name,
        classes,
        [Domain(domain, ArrayImages(images), labels) for domain, images, labels in domains],
        Transform(size, normalise=normalise, augmentation="none"),
        image_digests=[digest_of(images) for _, images, _ in domains],
        notes=notes,
    )


def _mnist(root: Path) -> tuple[NDArray[np.uint8], IntArray]:
    """The 70,000 digits and their labels, training images first."""
    folder = _raw_folder(root)
    digits = [_idx(folder, f"{part}-images-idx3-ubyte", axes=3) for part in PARTS]
    labels = [_idx(folder, f"{part}-labels-idx1-ubyte", axes=1) for part in PARTS]
    for part, some, theirs in zip(PARTS, digits, labels, strict=True):
        if some.shape[1:] != (SIDE, SIDE):
            raise InputError(
                f"{folder}: expected images of {SIDE} x {SIDE} pixels, got "
                f"{' x '.join(map(str, some.shape[1:]))} in {part}. Fetch MNIST's files again."
            )
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
