"""Folders of small pictures, written by the tests themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirepoix.data import Domain, Task, Transform
from mirepoix.data._images import ArrayImages
from mirepoix.data._task import digest_of, make_task

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write ``per_class`` random pictures for each class of each domain."""

    def make(
        name: str = "things",
        domains: tuple[str, ...] = ("clay", "ink"),
        classes: tuple[str, ...] = ("cat", "dog"),
        per_class: int = 5,
        extent: tuple[int, int] = (12, 10),
        extension: str = "png",
    ) -> Path:
        root = tmp_path / name
        random = np.random.default_rng(0)
        for domain in domains:
            for label in classes:
                folder = root / domain / label
                folder.mkdir(parents=True)
                for number in range(per_class):
                    pixels = random.integers(0, 256, (*extent, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.{extension}")
        return root

    return make


@pytest.fixture(scope="session")
def small_task() -> Task:
    """Three domains of 20, 30 and 40 random images of 9 x 9."""
    random = np.random.default_rng(0)
    domains, digests = [], []
    for number, name in enumerate(("a", "b", "c")):
        count = 20 + 10 * number
        images = random.integers(0, 256, (count, 3, 9, 9), dtype=np.uint8)
        domains.append(Domain(name, ArrayImages(images), np.arange(count) % 4))
        digests.append(digest_of(images))
    return make_task("small", ("k", "l", "m", "n"), domains, Transform(8), image_digests=digests)
