from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mirepoix.data._decode import decode, picture_size, stored_extent

RED = (200, 30, 60)


def saved(image: Image.Image, extension: str, **options: object) -> BytesIO:
    file = BytesIO()
    image.save(file, extension, **options)
    file.seek(0)
    return file


def decoded(image: Image.Image, extension: str = "PNG", **options: object) -> np.ndarray:
    return decode(saved(image, extension, **options), (image.height, image.width))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (5, 4), RED), RED),
        (Image.new("RGBA", (5, 4), (*RED, 10)), RED),
        (Image.new("L", (5, 4), 77), (77, 77, 77)),
        (Image.new("LA", (5, 4), (77, 0)), (77, 77, 77)),
        (Image.new("1", (5, 4), 1), (255, 255, 255)),
        (Image.new("RGB", (5, 4), RED).quantize(4), RED),
        (Image.fromarray(np.full((4, 5), 77 * 257, dtype=np.uint16)), (77, 77, 77)),
        (Image.fromarray(np.full((4, 5), 65535, dtype=np.uint16)), (255, 255, 255)),
    ],
    ids=["RGB", "RGBA", "L", "LA", "1", "P", "I;16", "I;16 white"],
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    pixels = decoded(image)
    assert pixels.shape == (3, 4, 5)
    assert pixels.dtype == np.uint8
    assert (pixels == np.array(expected)[:, None, None]).all()


def test_the_transparency_of_a_palette_is_dropped_without_a_warning() -> None:
    image = Image.new("RGB", (5, 4), RED).quantize(4)
    pixels = decoded(image, transparency=bytes([0, 128, 255, 255]))
    assert (pixels == np.array(RED)[:, None, None]).all()


def test_cmyk_is_converted() -> None:
    pixels = decoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert abs(pixels.astype(int) - np.array([255, 0, 0])[:, None, None]).max() <= 3


def test_32_bit_integers_are_16_bit_values_or_refused() -> None:
    within = Image.fromarray(np.full((4, 5), 77 * 257, dtype=np.int32))
    assert (decoded(within, "TIFF") == 77).all()
    with pytest.raises(ValueError, match="beyond 16 bits"):
        decoded(Image.fromarray(np.full((4, 5), 70000, dtype=np.int32)), "TIFF")


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="no agreed range"):
        decoded(Image.fromarray(np.ones((4, 5), dtype=np.float32)), "TIFF")


def test_the_exif_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image = Image.new("RGB", (5, 4), RED)
    assert decode(saved(image, "JPEG", exif=exif), (4, 5)).shape == (3, 4, 5)
    assert picture_size(saved(image, "JPEG", exif=exif)) == (4, 5)


def test_another_size_is_resized_like_pillow_does() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = np.asarray(image.resize((5, 4), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert (decode(saved(image, "PNG"), (4, 5)) == expected).all()


@pytest.mark.parametrize(
    ("sizes", "size", "expected"),
    [
        ({(227, 227)}, 224, (227, 227)),
        ({(96, 90)}, 32, (96, 90)),
        ({(300, 200)}, 224, (256, 256)),
        ({(300, 200)}, 300, (300, 200)),
        ({(96, 96), (96, 90)}, 224, (256, 256)),
        ({(96, 96), (96, 90)}, 28, (32, 32)),
        (set(), 224, (256, 256)),
    ],
)
def test_one_small_size_is_stored_as_it_is(
    sizes: set[tuple[int, int]], size: int, expected: tuple[int, int]
) -> None:
    assert stored_extent(sizes, size) == expected
