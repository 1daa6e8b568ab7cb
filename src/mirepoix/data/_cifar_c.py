"""CIFAR-10-C and CIFAR-100-C: the official test images under corruptions, one domain for each.

The files are NumPy arrays: ``<corruption>.npy`` of five blocks, one for each severity from 1 to 5, that hold all
test images (10,000) in the same order; and ``labels.npy``. They are mapped from the disk and never unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from mirepoix.data._cache import Progress
from mirepoix.data._cifar import CIFAR, SIDE
from mirepoix.data._images import IntArray
from mirepoix.data._task import Domain, Task, digest_of, make_task, nearest
from mirepoix.data._transform import AugmentationName, Transform
from mirepoix.types import InputError

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

__all__ = ["CORRUPTED", "SEVERITIES", "cifar_c_task"]

CORRUPTED = {"CIFAR10-C": "CIFAR-10-C", "CIFAR100-C": "CIFAR-100-C"}  # and their folders
SEVERITIES = 5
IMAGES = SEVERITIES * 10_000
LABELS = "labels.npy"
CORRUPTIONS = (
    "brightness",
    "contrast",
    "defocus_blur",
    "elastic_transform",
    "fog",
    "frost",
    "gaussian_blur",
    "gaussian_noise",
    "glass_blur",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "pixelate",
    "saturate",
    "shot_noise",
    "snow",
    "spatter",
    "speckle_noise",
    "zoom_blur",
)


def cifar_c_task(
    dataset: str,
    root: str | Path,
    *,
    size: int = SIDE,
    augmentation: AugmentationName = "none",
    domains: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Task:
    """Corrupted test images of CIFAR-10 or CIFAR-100: one domain per corruption, of all five severities.

    They are for tests of a network that was trained on ``CIFAR10`` or ``CIFAR100``, whose classes and transform they
    have: ``task.split("fog").test`` is all of one corruption. In a domain of 50,000 images, those from
    ``10000 (s - 1)`` on have severity ``s``. Published means are over all nineteen corruptions or over fifteen of them,
    without ``gaussian_blur``, ``saturate``, ``spatter`` and ``speckle_noise``, which were meant for tuning.

    Images stay on disk until they are read. Each start reads every file once, for the digest of the task.

    Args:
        dataset: ``CIFAR10-C`` or ``CIFAR100-C``.
        root: The folder that holds ``CIFAR-10-C`` or ``CIFAR-100-C``, or that folder itself.
        size: Side in pixels of what the network sees.
        augmentation: Of training images, if someone trains on some of them.
        domains: Names of the corruptions to use; all files of the folder by default.
        progress: Called with (done, total, "reading images") after each file.

    Raises:
        InputError: For a missing folder or file, or files of another form.

    References:
        Hendrycks and Dietterich (2019), Benchmarking neural network robustness to common corruptions and
        perturbations.
    """
    classes = CIFAR[dataset.removesuffix("-C")].classes
    folder = _folder(dataset, Path(root))
    files = {file.stem: file for file in sorted(folder.glob("*.npy")) if file.name != LABELS}
    for domain in domains if domains is not None else ():
        if domain not in files:
            raise InputError(
                f"{folder}: expected the file {domain}.npy, got none.{nearest(domain, files)} Corruptions: "
                f"{', '.join(files)}."
            )
    chosen = [name for name in files if domains is None or name in domains]
    if not chosen:
        raise InputError(
            f"{dataset}: expected at least one corruption, got none. Leave domains out to take all."
        )
    labels = _labels(folder / LABELS, len(classes))
    parts, digests = [], []
    for name in chosen:
        images = _images(files[name], len(labels))
        digests.append(digest_of(images))
        parts.append(Domain(name, _Rows(images), labels))
        if progress is not None:
            progress(len(parts) * len(labels), len(chosen) * len(labels), "reading images")
    transform = Transform(size, augmentation=augmentation)
    notes = _notes(dataset, list(files) if domains is None else CORRUPTIONS, len(labels))
    return make_task(dataset, classes, parts, transform, image_digests=digests, notes=notes)


class _Rows:
    """Images of an array with the channels last, mapped from a file."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self._array = array

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        _, height, width, channels = self._array.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self._array)

    def read(self, indices: IntArray) -> UInt8[Tensor, "samples channels height width"]:
        """A copy of these rows, channels first."""
        return torch.from_numpy(np.ascontiguousarray(self._array[indices].transpose(0, 3, 1, 2)))


def _folder(dataset: str, root: Path) -> Path:
    name = CORRUPTED[dataset]
    for folder in (root / name, root / dataset, root):
        if (folder / LABELS).is_file():
            return folder
    raise InputError(
        f"{dataset}: expected {LABELS} and the arrays of the corruptions (fog.npy, ...) in {root / name} or {root}, "
        f"got no {LABELS}. Unpack {name}.tar there, or name the folder that holds it."
    )


def _array(path: Path) -> NDArray[np.generic]:
    try:
        array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path}: expected an array of NumPy, got {type(error).__name__}: {error}. Unpack the file again."
        ) from error
    return array


def _labels(path: Path, classes: int) -> IntArray:
    labels = _array(path)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or len(labels) % SEVERITIES:
        raise InputError(
            f"{path}: expected {IMAGES:,} class numbers, those of the test images {SEVERITIES} times, got an "
            f"array of {labels.dtype} with shape {labels.shape}. Unpack the file again."
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"{path}: expected classes from 0 to {classes - 1}, got {labels.min()} to {labels.max()}. Are these the "
            f"labels of another dataset?"
        )
    return labels.astype(np.int64)


def _images(path: Path, count: int) -> NDArray[np.uint8]:
    images = _array(path)
    if images.dtype != np.uint8 or images.shape != (count, SIDE, SIDE, 3):
        raise InputError(
            f"{path}: expected an array of uint8 with shape {(count, SIDE, SIDE, 3)}, one image for each entry of "
            f"{LABELS}, got {images.dtype} with shape {images.shape}. Unpack the file again."
        )
    return images.view(np.uint8)


def _notes(dataset: str, names: Sequence[str], count: int) -> list[str]:
    notes = []
    missing = [name for name in CORRUPTIONS if name not in names]
    if missing:
        notes.append(
            f"{dataset} was published with {len(CORRUPTIONS)} corruptions; missing: {', '.join(missing)}"
        )
    if count != IMAGES:
        notes.append(f"each corruption has {count:,} images; {dataset} was published with {IMAGES:,}")
    return notes
