import math

import pytest
import torch
from tests.reference import mixmo

from mirepoix.ensembles._mixing_masks import (
    cut_masks,
    descended,
    drawn_coefficients,
    drawn_orders,
    linear_masks,
    loss_weights,
    realised,
)
from mirepoix.objectives._boxes import box, corners, drawn_centres

DOUBLE = torch.float64


def boxes(share, size=(32, 32)):
    """Boxes of these shares at random places."""
    return box(corners(share, drawn_centres(len(share), size), size), size)


@pytest.mark.parametrize("members", [1, 2, 3, 4])
@pytest.mark.parametrize("cut", [False, True])
def test_masks_are_those_of_the_reference_and_sum_to_one(members, cut):
    torch.manual_seed(members)
    kappa = drawn_coefficients(2, members, 50)
    centres = drawn_centres(50, (5, 6))
    masks = cut_masks(kappa, box(corners(kappa[0], centres, (5, 6)), (5, 6))) if cut else linear_masks(kappa)
    masks = masks.expand(members, 50, 1, 5, 6)
    assert (masks >= 0).all()
    torch.testing.assert_close(masks.sum(0), torch.ones(50, 1, 5, 6, dtype=DOUBLE), rtol=1e-12, atol=0)
    torch.testing.assert_close(realised(masks).sum(0), torch.ones(50, dtype=DOUBLE), rtol=1e-12, atol=0)
    for i in range(50):
        expected = mixmo.masks(kappa[:, i].tolist(), centres[i].tolist(), (5, 6), range(members), cut=cut)
        for mask, found in zip(expected, masks[:, i, 0], strict=True):
            torch.testing.assert_close(found, torch.tensor(mask, dtype=DOUBLE), rtol=1e-12, atol=0)
            assert found.mean().item() == pytest.approx(mixmo.mean_of(mask), rel=1e-12)


def test_if_the_first_has_all_the_others_share_what_is_left():
    inside = box(torch.tensor([[0, 4, 0, 3]]), (4, 4))
    masks = cut_masks(torch.tensor([[1.0], [0.0], [0.0]]), inside)
    assert torch.equal(masks[1], masks[2])
    assert torch.equal(realised(masks)[:, 0], torch.tensor([0.75, 0.125, 0.125]))


def test_boxes_are_smaller_than_what_was_drawn():
    """On 32 x 32 pixels a coefficient of one half in the mean is a box of 0.31, by adding up all places and sizes."""
    sides = [
        2 * (int(32 * math.sqrt((i + 0.5) / 10_000)) // 2) for i in range(10_000)
    ]  # of equally likely areas
    lengths = {
        side: sum(min(32, centre + side // 2) - max(0, centre - side // 2) for centre in range(32)) / 32 / 32
        for side in set(sides)
    }
    density = [6 * (i + 0.5) / 10_000 * (1 - (i + 0.5) / 10_000) for i in range(10_000)]  # Beta(2, 2)
    exact = sum(p * lengths[side] ** 2 for p, side in zip(density, sides, strict=True)) / 10_000
    assert exact == pytest.approx(0.31, abs=0.005)
    torch.manual_seed(0)
    kappa = drawn_coefficients(2, 2, 20_000)
    area = realised(cut_masks(kappa, boxes(kappa[0])))[0]
    for values, expected in ((kappa[0], 0.5), (area, exact)):
        assert values.mean().item() == pytest.approx(
            expected, abs=4 * values.std().item() / math.sqrt(20_000)
        )
    assert (area <= kappa[0] + 1e-12).all()


def test_coefficients_are_dirichlet():
    torch.manual_seed(0)
    for alpha, members in ((2, 2), (0.5, 3), (2, 4)):
        kappa = drawn_coefficients(alpha, members, 20_000)
        assert kappa.shape == (members, 20_000)
        torch.testing.assert_close(kappa.sum(0), torch.ones(20_000, dtype=DOUBLE), rtol=1e-12, atol=0)
        variance = (members - 1) / (members**2 * (members * alpha + 1))
        for own in kappa:
            assert own.mean().item() == pytest.approx(1 / members, abs=5 * math.sqrt(variance / 20_000))
            assert own.var().item() == pytest.approx(variance, rel=0.05)
    assert torch.equal(drawn_coefficients(0, 4, 2), torch.full((4, 2), 0.25, dtype=DOUBLE))
    assert torch.equal(drawn_coefficients(-1.0, 2, 2), torch.full((2, 2), 0.5, dtype=DOUBLE))
    assert torch.equal(drawn_coefficients(2, 1, 3), torch.ones(1, 3, dtype=DOUBLE))


@pytest.mark.parametrize(("kappa", "weight"), [(0.1, 0.6493), (0.25, 0.8189), (0.5, 1.0), (0.0, 0.0)])
def test_the_published_weights(kappa, weight):
    pair = torch.tensor([[kappa], [1 - kappa]], dtype=DOUBLE)
    assert loss_weights(pair, 3)[0, 0].item() == pytest.approx(weight, abs=5e-5)
    assert loss_weights(pair, 3)[1, 0].item() == pytest.approx(2 - weight, abs=5e-5)


@pytest.mark.parametrize("members", [1, 2, 3])
def test_weights_sum_to_the_members_and_have_their_limits(members):
    torch.manual_seed(0)
    kappa = drawn_coefficients(2, members, 20)
    for r in (0.5, 1, 3, 1e9):
        found = loss_weights(kappa, r)
        torch.testing.assert_close(
            found.sum(0), torch.full((20,), float(members), dtype=DOUBLE), rtol=1e-12, atol=0
        )
        expected = torch.tensor([mixmo.weights(kappa[:, i].tolist(), r) for i in range(20)], dtype=DOUBLE).T
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(loss_weights(kappa, 1), members * kappa, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss_weights(kappa, 1e9), torch.ones_like(kappa), rtol=1e-6, atol=0)
    unseen = loss_weights(torch.tensor([[0.0], [1.0]], dtype=DOUBLE), 1e9)
    assert unseen.flatten().tolist() == [0, 2]


@pytest.mark.parametrize("share", [0, 0.5, 1, 0.9])
@pytest.mark.parametrize("repetition", [1, 3])
def test_each_member_sees_each_image_as_often_as_it_is_repeated(share, repetition):
    torch.manual_seed(0)
    orders = drawn_orders(4, 10, repetition, share)
    assert orders.shape == (4, 10 * repetition)
    for order in orders:
        assert torch.bincount(order).tolist() == [repetition] * 10
    same = (orders == orders[0]).all(0)
    kept = round(10 * repetition * share)
    assert same[10 * repetition - kept :].all()
    if share == 0:
        assert same.float().mean() < 0.2
    if share == 1:
        assert not torch.equal(orders[0], torch.arange(10 * repetition) % 10)


def test_members_see_images_independently():
    """Any two images are met equally often."""
    torch.manual_seed(0)
    met = torch.zeros(3, 3)
    for _ in range(2000):
        first, second = drawn_orders(2, 3, 2)
        met.index_put_((first, second), torch.ones(6), accumulate=True)
    assert (met / met.sum() - 1 / 9).abs().max() < 0.01


def test_the_descent():
    for p in (0.5, 1.0):
        found = [descended(p, done) for done in (0, 0.5, 11 / 12, 23 / 24, 1, 2)]
        assert found == pytest.approx([p, p, p, p / 2, 0, 0], abs=1e-12)
