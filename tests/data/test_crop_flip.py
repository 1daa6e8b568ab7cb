from __future__ import annotations

import itertools

import pytest
import torch

from mirepoix.data import Transform
from mirepoix.data._crop_flip import CropFlip, crop_flipped, draw_crop_flip, padding


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, height: int = 16, width: int = 16, channels: int = 3) -> torch.Tensor:
    # No pixel is black, so that what comes in can be told from what was there.
    return torch.randint(1, 256, (count, channels, height, width), generator=seeded(0), dtype=torch.uint8)


def slowly(image: torch.Tensor, top: int, left: int, flip: bool, pad: int) -> torch.Tensor:
    """Pixel by pixel: the window at (top, left) of the image in its black frame, then mirrored."""
    channels, height, width = image.shape
    seen = torch.zeros_like(image)
    for channel, row, column in itertools.product(range(channels), range(height), range(width)):
        source = (row + top - pad, (width - 1 - column if flip else column) + left - pad)
        if 0 <= source[0] < height and 0 <= source[1] < width:
            seen[channel, row, column] = image[channel, source[0], source[1]]
    return seen


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [7, 8, 16])
def test_every_pixel_is_that_of_the_shifted_and_mirrored_image(size: int, channels: int) -> None:
    pad = size // 8
    cases = list(itertools.product(range(2 * pad + 1), range(2 * pad + 1), (False, True)))
    images = pictures(len(cases), size, size, channels)
    drawn = CropFlip(torch.tensor([case[:2] for case in cases]), torch.tensor([flip for _, _, flip in cases]))
    seen = crop_flipped(images, drawn)
    assert seen.dtype == torch.uint8
    for image, (top, left, flip), ours in zip(images, cases, seen, strict=True):
        assert torch.equal(ours, slowly(image, top, left, flip, pad))


def test_the_padding_is_an_eighth_of_the_side() -> None:
    assert [padding(size) for size in (7, 8, 28, 32, 64, 224)] == [0, 1, 3, 4, 8, 28]


def test_all_shifts_are_equally_likely_and_half_of_the_images_flip() -> None:
    count = 81 * 200
    drawn = draw_crop_flip(count, 32, seeded(3))
    cells = torch.bincount(drawn.corners[:, 0] * 9 + drawn.corners[:, 1], minlength=81)
    assert len(cells) == 81
    # Chi-square with 80 degrees of freedom: mean 80, deviation sqrt(160); with flips, both at four deviations.
    assert abs(float(((cells - 200) ** 2 / 200).sum()) - 80) < 4 * 160**0.5
    assert abs(int(drawn.flips.sum()) - count / 2) < 4 * (count / 4) ** 0.5
    # A flip says nothing of the shift.
    flipped = torch.bincount(drawn.corners[drawn.flips][:, 0], minlength=9) / drawn.flips.sum()
    assert (flipped - 1 / 9).abs().max() < 4 * (8 / 81 / (count / 2)) ** 0.5


def test_black_comes_in_before_colours_are_normalised() -> None:
    images = torch.full((50, 3, 32, 32), 255, dtype=torch.uint8)
    seen = Transform(32, augmentation="crop_flip").train(images, seeded(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for channel, (low, high) in enumerate(zip(-mean / std, (1 - mean) / std, strict=True)):
        values = seen[:, channel].unique()
        torch.testing.assert_close(values, torch.stack([low, high]), atol=1e-5, rtol=0)


def test_images_of_another_size_are_resized_first() -> None:
    images = pictures(6, 13, 17)
    bare = Transform(16, normalise=False, augmentation="crop_flip")
    resized = bare.plain(images)
    drawn = draw_crop_flip(6, 16, seeded(5))
    seen = bare.train(images, seeded(5))
    assert torch.equal(seen, crop_flipped(resized, drawn))
    for image, (top, left), flip, ours in zip(
        resized, drawn.corners.tolist(), drawn.flips.tolist(), seen, strict=True
    ):
        assert torch.equal(ours, slowly(image, top, left, flip, 2))


def test_the_generator_alone_decides_and_the_bytes_stay() -> None:
    images = pictures(20, 32, 32)
    transform = Transform(32, augmentation="crop_flip")
    before = torch.get_rng_state()
    first, again = transform.train(images, seeded(1)), transform.train(images, seeded(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, transform.train(images, seeded(2)))
    assert torch.equal(images, pictures(20, 32, 32))
    assert torch.equal(before, torch.get_rng_state())


def test_one_channel_needs_no_normalisation_and_no_images_are_no_trouble() -> None:
    bare = Transform(16, normalise=False, augmentation="crop_flip")
    assert bare.train(pictures(3, channels=1), seeded(0)).shape == (3, 1, 16, 16)
    assert bare.train(pictures(3)[:0], seeded(0)).shape == (0, 3, 16, 16)
