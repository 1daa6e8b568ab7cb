from __future__ import annotations

import itertools
import math

import pytest
import torch
from torchvision import transforms
from torchvision.transforms.v2 import functional as reference

from mirepoix.data import Transform
from mirepoix.data._augment import (
    Augmentation,
    _resample_all,
    _resample_each,
    augmented,
    draw_augmentation,
    grey_,
    jitter_,
    resample,
)

ADJUST = (
    reference.adjust_brightness,
    reference.adjust_contrast,
    reference.adjust_saturation,
    reference.adjust_hue,
)
COUNT = 4000


def pictures(count: int, height: int = 20, width: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def z(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The difference of two means in standard errors."""
    error = (ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt()
    return float((ours.mean() - theirs.mean()).abs() / error)


@pytest.mark.parametrize("size", [9, 20, 47], ids=["down", "mixed", "up"])
@pytest.mark.parametrize("path", [resample, _resample_each, _resample_all])
def test_crop_flip_and_resize_are_torchvisions(path: object, size: int) -> None:
    images = pictures(6)
    boxes = torch.tensor(
        [[0, 0, 20, 24], [3, 5, 14, 17], [6, 0, 14, 24], [0, 12, 20, 12], [19, 23, 1, 1], [2, 1, 5, 21]]
    )
    flips = torch.tensor([False, True, False, True, True, False])
    assert callable(path)
    seen = path(images, boxes, flips, size)
    for image, box, flip, ours in zip(images, boxes.tolist(), flips.tolist(), seen, strict=True):
        expected = reference.resized_crop(image, *box, size=[size, size], antialias=True)
        expected = reference.horizontal_flip(expected) if flip else expected
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("factors", [(0.7, 0.75, 0.8, -0.3), (1.3, 1.2, 1.3, 0.3), (1.0, 1.0, 1.0, 0.0)])
@pytest.mark.parametrize("which", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_each_adjustment_is_torchvisions(which: int, factors: tuple[float, ...]) -> None:
    images = pictures(5)
    images[0] = 0.4  # no colour, so no hue
    images[1] = images[1].round()  # equal channels, black and white
    alone = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(5, 1)
    alone[:, which] = factors[which]
    seen = images.clone()
    jitter_(seen, alone, torch.arange(4).repeat(5, 1))
    torch.testing.assert_close(seen, ADJUST[which](images, factors[which]), atol=1e-5, rtol=0)


def test_each_image_is_adjusted_in_its_own_order() -> None:
    orders = torch.tensor(list(itertools.permutations(range(4))))
    images = pictures(len(orders))
    factors = torch.tensor([1.3, 0.7, 1.3, 0.2]) + torch.linspace(-0.1, 0.1, 24)[:, None]
    seen = images.clone()
    jitter_(seen, factors, orders)
    for image, some, order, ours in zip(images, factors.tolist(), orders.tolist(), seen, strict=True):
        expected = image
        for which in order:
            expected = ADJUST[which](expected, some[which])
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)


def test_grey_takes_the_colour_of_the_chosen_images_only() -> None:
    images = pictures(4)
    seen = images.clone()
    grey_(seen, torch.tensor([True, False, True, False]))
    torch.testing.assert_close(seen[::2], reference.rgb_to_grayscale(images[::2], 3), atol=1e-5, rtol=0)
    assert torch.equal(seen[1::2], images[1::2])


@pytest.mark.parametrize("size", [7, 150])
def test_the_steps_are_crop_then_colours_then_grey(size: int) -> None:
    images = (pictures(3) * 255).to(torch.uint8)
    drawn = Augmentation(
        boxes=torch.tensor([[1, 2, 15, 20], [0, 0, 20, 24], [4, 4, 16, 18]]),
        flips=torch.tensor([True, False, True]),
        factors=torch.tensor([[0.8, 1.2, 0.9, 0.1], [1.3, 0.7, 1.1, -0.2], [0.9, 0.9, 1.3, 0.3]]).double(),
        orders=torch.tensor([[3, 1, 0, 2], [0, 1, 2, 3], [2, 3, 1, 0]]),
        greys=torch.tensor([False, True, False]),
    )
    seen = augmented(images, drawn, size)
    for row in range(3):
        expected = reference.resized_crop(
            images[row] / 255, *drawn.boxes[row].tolist(), size=[size, size], antialias=True
        )
        expected = reference.horizontal_flip(expected) if drawn.flips[row] else expected
        for which in drawn.orders[row].tolist():
            expected = ADJUST[which](expected, float(drawn.factors[row, which]))
        expected = reference.rgb_to_grayscale(expected, 3) if drawn.greys[row] else expected
        torch.testing.assert_close(seen[row], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (40, 56), (70, 40)])
def test_boxes_are_distributed_like_torchvisions(height: int, width: int) -> None:
    drawn = draw_augmentation(COUNT, height, width, seeded(1)).boxes.double()
    image = torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        theirs = torch.tensor(
            [transforms.RandomResizedCrop.get_params(image, [0.7, 1.0], [3 / 4, 4 / 3]) for _ in range(COUNT)]
        ).double()
    assert (drawn[:, 0] + drawn[:, 2] <= height).all()
    assert (drawn[:, 1] + drawn[:, 3] <= width).all()
    for quantity in (
        lambda boxes: boxes[:, 2] * boxes[:, 3],
        lambda boxes: boxes[:, 2] * boxes[:, 3] * boxes[:, 2] * boxes[:, 3],
        lambda boxes: (boxes[:, 3] / boxes[:, 2]).log(),
        lambda boxes: (boxes[:, 3] / boxes[:, 2]).log() ** 2,
        lambda boxes: boxes[:, 0],
        lambda boxes: boxes[:, 1] * boxes[:, 0],
        lambda boxes: boxes[:, 1],
    ):
        assert z(quantity(drawn), quantity(theirs)) < 4


def test_too_narrow_an_image_keeps_its_short_side() -> None:
    wide = draw_augmentation(50, 10, 40, seeded(0)).boxes
    assert wide.unique(dim=0).tolist() == [[0, 13, 10, 13]]
    assert draw_augmentation(50, 40, 10, seeded(0)).boxes.unique(dim=0).tolist() == [[13, 0, 13, 10]]


def test_rates_ranges_and_orders_are_those_of_the_protocol() -> None:
    drawn = draw_augmentation(COUNT, 30, 30, seeded(3))

    def within(share: float, rate: float) -> bool:
        return abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / COUNT)

    assert within(float(drawn.flips.double().mean()), 0.5)
    assert within(float(drawn.greys.double().mean()), 0.1)
    assert within(float((drawn.flips & drawn.greys).double().mean()), 0.05)
    spread = drawn.factors - torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert (spread.abs() <= 0.3).all()
    # A uniform variable on [-0.3, 0.3]: its extremes come within 0.3 / 400, its deviation is 0.3 / sqrt(3).
    assert (spread.amax(dim=0) > 0.299).all()
    assert (spread.amin(dim=0) < -0.299).all()
    assert (spread.mean(dim=0).abs() < 4 * 0.3 / math.sqrt(3 * COUNT)).all()
    # The square of such a variable has the deviation 0.09 * sqrt(4 / 45).
    assert ((spread.square().mean(dim=0) - 0.03).abs() < 4 * 0.09 * math.sqrt(4 / 45 / COUNT)).all()
    assert (spread.T.corrcoef() - torch.eye(4).double()).abs().max() < 4 / math.sqrt(COUNT)
    found, counts = drawn.orders.unique(dim=0, return_counts=True)
    assert sorted(map(tuple, found.tolist())) == list(itertools.permutations(range(4)))
    # Chi-squared with 23 degrees of freedom: mean 23, standard deviation sqrt(46).
    assert abs(float(((counts - COUNT / 24) ** 2 / (COUNT / 24)).sum()) - 23) < 4 * math.sqrt(46)


def test_augmented_pixels_are_distributed_like_torchvisions() -> None:
    count, size = 600, 8
    image = (pictures(1, 16, 20, seed=5) ** 2 * 255).to(torch.uint8)
    pipeline = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.7, 1.0), antialias=True),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
            transforms.RandomGrayscale(),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torch.stack([pipeline(image[0] / 255) for _ in range(count)])
    ours = Transform(size, normalise=False).train(image.expand(count, -1, -1, -1), seeded(1))
    for quantity in (
        lambda seen: seen.mean(dim=(2, 3)),
        lambda seen: seen.std(dim=(2, 3)),
        lambda seen: seen.mean(dim=(2, 3)).square(),
        lambda seen: seen[:, :, 0, 0],
        lambda seen: seen[:, :, 3, 6],
    ):
        for channel in range(3):
            assert z(quantity(ours)[:, channel], quantity(theirs)[:, channel]) < 4


def test_one_generator_gives_one_augmentation() -> None:
    images = (pictures(9) * 255).to(torch.uint8)
    transform = Transform(11)
    first = transform.train(images, seeded(4))
    assert torch.equal(transform.train(images, seeded(4)), first)
    assert not torch.equal(transform.train(images, seeded(5)), first)
    one = images[:1].expand(9, -1, -1, -1)
    assert len(transform.train(one, seeded(4)).unique(dim=0)) == 9
