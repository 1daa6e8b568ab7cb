from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirepoix.data._decode import FilePicture
from mirepoix.data._images import ArrayImages, StreamedImages
from mirepoix.types import InputError


def test_reading_keeps_the_order_and_repeats() -> None:
    array = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(3, axis=1)
    images = ArrayImages(array, np.array([4, 2, 0]))
    assert len(images) == 3
    assert images.shape == (3, 1, 1)
    assert images.read(np.array([2, 0, 0]))[:, 0, 0, 0].tolist() == [0, 4, 4]


def test_what_is_read_is_a_copy() -> None:
    array = np.zeros((2, 3, 2, 2), dtype=np.uint8)
    ArrayImages(array).read(np.array([0, 1])).fill_(7)
    assert not array.any()


@pytest.mark.parametrize("workers", [1, 3])
def test_streaming_gives_the_pixels_of_the_files(tmp_path: Path, workers: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    images = StreamedImages([FilePicture(path) for path in paths], (6, 5), workers)
    indices = np.array([3, 0, 3])
    assert (images.read(indices).numpy() == pixels[indices].transpose(0, 3, 1, 2)).all()
    paths[0].unlink()
    with pytest.raises(
        InputError, match=r"0\.png again, got FileNotFoundError: .* restore it, or open the task"
    ):
        images.read(indices)
