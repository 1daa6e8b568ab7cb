from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from mirepoix.data import Transform
from mirepoix.types import InputError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def pictures(channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, channels, 13, 17), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [7, 15, 31])
def test_plain_is_an_exact_resize_and_imagenets_normalisation(size: int) -> None:
    images = pictures()
    resized = reference.resize(images / 255, [size, size], antialias=True)
    expected = reference.normalize(resized, MEAN, STD)
    torch.testing.assert_close(Transform(size).plain(images), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(Transform(size, normalise=False).plain(images), resized, atol=1e-5, rtol=0)


def test_an_image_of_the_right_size_is_only_scaled() -> None:
    images = pictures()[..., :13]
    assert torch.equal(Transform(13, normalise=False).plain(images), images / 255)


def test_training_images_are_normalised_after_the_augmentation() -> None:
    seen = Transform(9).train(pictures(), torch.Generator().manual_seed(1))
    bare = Transform(9, normalise=False).train(pictures(), torch.Generator().manual_seed(1))
    assert 0 <= bare.min() < bare.max() <= 1
    torch.testing.assert_close(seen, reference.normalize(bare, MEAN, STD), atol=1e-5, rtol=0)


def test_without_augmentation_training_sees_what_validation_sees() -> None:
    transform = Transform(9, augmentation="none")
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(transform.train(pictures(), generator), transform.plain(pictures()))
    assert generator.get_state().equal(torch.Generator().manual_seed(1).get_state())


@pytest.mark.parametrize("channels", [1, 2])
def test_other_than_three_channels_are_scaled_to_one(channels: int) -> None:
    images = pictures(channels)[..., :13]
    transform = Transform(13, normalise=False, augmentation="none")
    assert torch.equal(transform.train(images, torch.Generator()), images / 255)
    assert torch.equal(transform.plain(images), images / 255)


def test_the_stored_bytes_are_left_alone() -> None:
    images = pictures()
    Transform(13).plain(images)
    Transform(13).train(images, torch.Generator().manual_seed(0))
    assert torch.equal(images, pictures())


def test_colours_of_grey_images_are_refused_with_the_way_out() -> None:
    way_out = r"3 channels, got 1\. Use Transform\(size, normalise=False, augmentation='none'\)"
    with pytest.raises(InputError, match=way_out):
        Transform(9).plain(pictures(1))
    with pytest.raises(InputError, match=way_out):
        Transform(9, normalise=False).train(pictures(1), torch.Generator())


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InputError, match="size: expected at least 1 pixel, got 0"):
        Transform(0)
    with pytest.raises(
        InputError, match="expected 'domainbed', 'crop_flip', 'augmix' or 'none', got 'mixup'"
    ):
        Transform(9, augmentation="mixup")  # type: ignore[arg-type]
