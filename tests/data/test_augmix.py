from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mirepoix.data import Transform
from mirepoix.data._augmix import CHAINS, DEPTH, OPERATIONS, AugMix, augmixed, draw_augmix, operate
from mirepoix.data._crop_flip import crop_flipped, draw_crop_flip
from mirepoix.types import InputError

COUNT = 6000
EXACT = ("identity", "equalize", "posterize", "solarize", "invert", "translate_x", "translate_y")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, side: int = 32) -> torch.Tensor:
    """Smooth images with noise, so that a pixel is told from its neighbours."""
    rows = torch.linspace(20, 200, side)
    images = rows[:, None] + rows.flip(0) / 4 + 40 * torch.rand(count, 3, side, side, generator=seeded(0))
    return images.clamp(0, 255).to(torch.uint8)


def by_pillow(image: torch.Tensor, operation: str, sign: int) -> torch.Tensor:
    """The operation as MixMo's published code does it, at severity 3 of 30."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    side = image.shape[-1]
    affine = {
        "shear_x": (1, sign * 0.03, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, sign * 0.03, 1, 0),
        "translate_x": (1, 0, sign * 0.045 * side, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, sign * 0.045 * side),
    }
    if operation in affine:
        seen = picture.transform(picture.size, Image.Transform.AFFINE, affine[operation])
    elif operation == "rotate":
        seen = picture.rotate(3 * sign)
    else:
        level = {"posterize": (4,), "solarize": (25.6,)}.get(operation, ())
        seen = picture if operation == "identity" else getattr(ImageOps, operation)(picture, *level)
    return torch.from_numpy(np.array(seen)).permute(2, 0, 1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_is_pillows_in_one_direction_or_the_other(operation: str, sign: int) -> None:
    images = pictures(8)
    seen = operate(images, operation, sign)
    # Directions are equally likely, so which of the two is called positive does not matter.
    same = max(
        float(
            torch.stack([(by_pillow(image, operation, direction) == ours).all(0) for image, ours in pairs])
            .double()
            .mean()
        )
        for direction in (1, -1)
        for pairs in [list(zip(images, seen, strict=True))]
    )
    assert same == 1 if operation in EXACT else same > 0.97  # ties between nearest pixels


@pytest.mark.parametrize("operation", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_the_two_directions_differ(operation: str) -> None:
    images = pictures(2)
    one, other = operate(images, operation, 1), operate(images, operation, -1)
    assert not torch.equal(one, other)
    assert not torch.equal(one, images)


def slowly(image: torch.Tensor, drawn: AugMix, row: int) -> torch.Tensor:
    """The formula, chain by chain, in double precision."""
    total = torch.zeros(image.shape, dtype=torch.float64)
    for chain in range(CHAINS):
        seen = image[None]
        for step in range(DEPTH):
            operation = OPERATIONS[int(drawn.operations[row, chain, step])]
            seen = operate(seen, operation, int(drawn.signs[row, chain, step]))
        total += float(drawn.weights[row, chain]) * seen[0].double() / 255
    blend = float(drawn.blends[row])
    return (1 - blend) * image.double() / 255 + blend * total


def test_a_batch_is_the_formula_image_by_image() -> None:
    images, drawn = pictures(40), draw_augmix(40, seeded(1))
    seen = augmixed(images, drawn)
    assert seen.dtype == torch.float32
    assert 0 <= seen.min() <= seen.max() <= 1
    for row, (image, ours) in enumerate(zip(images, seen, strict=True)):
        torch.testing.assert_close(ours.double(), slowly(image, drawn, row), atol=1e-6, rtol=0)
    assert torch.equal(images, pictures(40))


def test_no_blend_and_no_operation_change_nothing() -> None:
    images, drawn = pictures(5), draw_augmix(5, seeded(1))
    bare = AugMix(drawn.operations, drawn.signs, drawn.weights, torch.zeros(5))
    still = AugMix(torch.zeros_like(drawn.operations), drawn.signs, drawn.weights, drawn.blends)
    for some in (bare, still):
        torch.testing.assert_close(augmixed(images, some), images / 255, atol=1e-6, rtol=0)


def test_depths_operations_weights_and_blends_have_their_distributions() -> None:
    drawn = draw_augmix(COUNT, seeded(2))
    total = COUNT * CHAINS
    # The first operation of a chain is always drawn, uniformly from ten.
    first = torch.bincount(drawn.operations[..., 0].flatten(), minlength=10) / total
    assert (first - 0.1).abs().max() < 4 * math.sqrt(0.09 / total)
    # Later ones are the identity where the chain has ended: with probability 1/3 and 2/3.
    for step, ended in ((1, 1 / 3), (2, 2 / 3)):
        share = (drawn.operations[..., step] == 0).double().mean()
        expected = ended + (1 - ended) / 10
        assert abs(float(share) - expected) < 4 * math.sqrt(expected * (1 - expected) / total)
    directed = (drawn.operations == 3) | ((drawn.operations >= 5) & (drawn.operations <= 8))
    assert (drawn.signs[~directed] == 1).all()
    assert abs(float(drawn.signs[directed].double().mean())) < 4 / math.sqrt(int(directed.sum()))
    # Dirichlet(1, 1, 1): mean 1/3, variance 1/18, covariance -1/36; Beta(1, 1): mean 1/2, variance 1/12.
    torch.testing.assert_close(drawn.weights.sum(1), torch.ones(COUNT), atol=1e-6, rtol=0)
    assert (drawn.weights >= 0).all()
    assert (drawn.weights.mean(0) - 1 / 3).abs().max() < 4 * math.sqrt(1 / 18 / COUNT)
    covariance = torch.cov(drawn.weights.double().T)
    expected_covariance = torch.eye(3) / 12 - 1 / 36
    torch.testing.assert_close(covariance, expected_covariance.double(), atol=4e-3, rtol=0)
    assert abs(float(drawn.blends.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / COUNT)
    assert abs(float(drawn.blends.var()) - 1 / 12) < 4e-3


@pytest.mark.parametrize("side", [32, 20])
def test_the_transform_shifts_then_mixes_then_normalises(side: int) -> None:
    images = pictures(10, side)
    transform = Transform(32, augmentation="augmix")
    seen = transform.train(images, seeded(3))
    generator = seeded(3)
    bare = Transform(32, normalise=False).plain(images)
    shifted = crop_flipped((bare * 255).round().to(torch.uint8), draw_crop_flip(10, 32, generator))
    mixed = augmixed(shifted, draw_augmix(10, generator))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (mixed - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)
    assert torch.equal(transform.plain(images), Transform(32).plain(images))


def test_the_generator_alone_decides() -> None:
    images = pictures(10)
    transform = Transform(32, augmentation="augmix")
    before = torch.get_rng_state()
    first = transform.train(images, seeded(1))
    assert torch.equal(first, transform.train(images, seeded(1)))
    assert not torch.equal(first, transform.train(images, seeded(2)))
    assert torch.equal(before, torch.get_rng_state())
    assert transform.train(images[:0], seeded(1)).shape == (0, 3, 32, 32)


def test_grey_images_are_refused() -> None:
    with pytest.raises(InputError, match="expected images with 3 channels, got 1"):
        Transform(32, normalise=False, augmentation="augmix").train(pictures(2)[:, :1], seeded(0))
