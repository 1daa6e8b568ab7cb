"""Small real inputs made in memory: domains whose classes are told by where an image is bright."""

import numpy as np

from mirepoix.data import Domain, Task, Transform
from mirepoix.data._images import ArrayImages
from mirepoix.data._task import make_task
from mirepoix.models import NetworkSpec


def tiny_task(
    domains: int = 3, images: int = 40, classes: int = 2, size: int = 8, noise: float = 40.0
) -> Task:
    """Grey images; class ``k`` is bright in its band of rows; domain ``d`` is shifted in brightness."""
    random = np.random.default_rng(0)
    made, digests = [], []
    for number in range(domains):
        labels = np.arange(images) % classes
        pixels = random.normal(60 + 20 * number, noise, size=(images, 1, size, size))
        band = size // classes
        for i, label in enumerate(labels):
            pixels[i, :, label * band : (label + 1) * band] += 70
        array = pixels.clip(0, 255).astype(np.uint8)
        made.append(Domain(f"domain_{number}", ArrayImages(array), labels))
        digests.append(str(array.sum()))
    transform = Transform(size=size, normalise=False, augmentation="none")
    return make_task("tiny", [str(k) for k in range(classes)], made, transform, image_digests=digests)


def tiny_network(classes: int = 2) -> NetworkSpec:
    return NetworkSpec(name="mnist_cnn", classes=classes, channels=1, width=8)
