from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from mirepoix.data._transform import AugmentationName
from mirepoix.experiment import build_task
from mirepoix.recipe import Data


def write_cifar10(folder: Path) -> None:
    folder.mkdir()
    names = [f"data_batch_{number}.bin" for number in range(1, 6)]
    for name in (*names, "test_batch.bin"):
        records = np.zeros((10, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(10)
        records.tofile(folder / name)


@pytest.mark.parametrize(
    ("options", "size", "augmentation", "images"),
    [
        ({}, 32, "crop_flip", 50),
        ({"size": 16, "augmentation": "none", "limit": 20, "seeds": [3, 4]}, 16, "none", 20),
    ],
)
def test_a_recipe_reads_cifar_by_name(
    tmp_path: Path, options: dict[str, Any], size: int, augmentation: str, images: int
) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    table = Data(dataset="CIFAR10", targets=["test"], **options)
    task = build_task(table, tmp_path, cache_dir=tmp_path / "cache", progress=lambda *_: None)
    assert (task.transform.size, task.transform.augmentation) == (size, augmentation)
    assert [len(domain) for domain in task.domains] == [images, 10]


def test_a_recipe_knows_every_augmentation() -> None:
    (names, _) = get_args(get_type_hints(Data)["augmentation"])
    assert get_args(names) == get_args(AugmentationName)
