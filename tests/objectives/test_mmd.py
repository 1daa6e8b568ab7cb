import copy
import math

import pytest
import torch
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_erm import Linear, batches, slow_erm
from tests.reference.mmd import Adam, mmd
from torch._subclasses.fake_tensor import FakeTensorMode

from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._mmd import MMD
from mirepoix.types import Batch, InputError, Outputs


@pytest.mark.parametrize("mmd_gamma", [1.0, 7.0])
@pytest.mark.parametrize("sizes", [(2, 5, 3), (1, 3), (4,)])
def test_three_updates_are_those_of_the_formula(sizes, mmd_gamma):
    model, objective = TwoLayers(), MMD(mmd_gamma)
    slow = copy.deepcopy(model)
    optimizer, adam = torch.optim.Adam(model.parameters(), lr=0.05), Adam(slow)
    for _ in range(3):
        given = batches(sizes)
        expected = mmd(slow, given, mmd_gamma)
        logged = objective.step(model, given, optimizer)
        adam.step(expected, 0.05)
        assert logged["loss"].item() == pytest.approx(expected.item(), abs=1e-10)
    for one, other in zip(model.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def domain(*points):
    images = torch.tensor(points, dtype=torch.float64).reshape(len(points), 1, 1, -1)
    return Batch(images, torch.arange(len(points)) % 2, torch.zeros(len(points), dtype=torch.int64))


def bare(images):
    features = images.flatten(1)
    return Outputs(features, torch.zeros(len(features), 2, dtype=features.dtype))


def without_values(given):
    """Batches that stand for some on a busy accelerator: to ask for a value raises."""
    fake = FakeTensorMode(allow_non_fake_inputs=True).from_tensor
    return [Batch(fake(batch.images), fake(batch.labels), batch.domains) for batch in given]


def test_two_domains_of_one_sample_by_hand():
    # Each sample is at distance 0 of itself, where the seven kernels sum to 7, and 5 from the other: 25 squared.
    kernels = sum(math.exp(-(10.0**power) * 25) for power in range(-3, 4))
    expected = math.log(2) + 0.5 * (14 - 2 * kernels)
    assert MMD(0.5)(bare, [domain([0, 0]), domain([3, 4])]).item() == pytest.approx(expected, abs=1e-12)


def test_domains_far_apart_are_at_the_largest_distance():
    given = [domain([0, 0]), domain([1e3, 0])]
    assert MMD()(bare, given).item() == pytest.approx(math.log(2) + 14, abs=1e-12)


def test_a_difference_that_no_moment_shows_is_seen():
    # Equal mean and covariance, as CORAL compares them, on a line: -1, 0, 0, 1 and four of +-1/sqrt 2.
    half = math.sqrt(0.5)
    given = [domain([-1.0], [0.0], [0.0], [1.0]), domain([-half], [half], [-half], [half])]
    assert MMD()(bare, given).item() > math.log(2) + 0.5


def test_weight_zero_is_erm_on_domains_of_one_size():
    one, two = TwoLayers(), TwoLayers()
    given = batches((4, 4, 4))
    MMD(0.0).step(one, given, torch.optim.SGD(one.parameters(), lr=0.1))
    ERM().step(two, given, torch.optim.SGD(two.parameters(), lr=0.1))
    for name, value in two.state_dict().items():  # up to rounding: a pass per domain here, a joint one there
        torch.testing.assert_close(one.state_dict()[name], value, rtol=1e-12, atol=1e-14)


def test_domains_weigh_the_same_whatever_their_size():
    model, given = Linear(), batches((2, 6))
    expected = (slow_erm(model, given[:1]) + slow_erm(model, given[1:])) / 2
    assert MMD(0.0)(model, given).item() == pytest.approx(expected, abs=1e-12)


def test_equal_domains_have_no_penalty():
    model, (batch,) = TwoLayers(), batches((5,))
    torch.testing.assert_close(MMD(100.0)(model, [batch] * 3), ERM()(model, [batch]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 6])
def test_one_domain_has_no_penalty(size):
    model, given = TwoLayers(), batches((size,))
    assert torch.equal(MMD(100.0)(model, given), ERM()(model, given))


def test_the_order_of_domains_and_of_samples_does_not_matter():
    model, given = TwoLayers(), batches((3, 4, 5))
    shuffled = [Batch(b.images.flip(0), b.labels.flip(0), b.domains) for b in given[::-1]]
    torch.testing.assert_close(MMD()(model, given), MMD()(model, shuffled), rtol=1e-12, atol=0)


def test_precise_kernels_see_no_rounding_of_large_features_in_single_precision():
    # Far from the origin, norms and products would lose the small distances that the kernel of 1000 resolves.
    random = torch.Generator().manual_seed(0)
    offsets = (0.02 * torch.randn(8, 1, 1, 16, generator=random)).double()
    offsets = torch.round(offsets * 2**12) / 2**12  # on a grid that is kept after the shift
    given = [
        Batch(part, torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
        for part in offsets.split(4)
    ]
    shifted = [Batch((b.images + 32).float(), b.labels, b.domains) for b in given]
    assert MMD()(bare, shifted).item() == pytest.approx(MMD()(bare, given).item(), rel=1e-5)


def test_coinciding_samples_have_a_finite_gradient():
    model, (batch,) = TwoLayers(), batches((4,))
    images = batch.images[:1].expand(4, -1, -1, -1)
    same = Batch(images, batch.labels, batch.domains)
    MMD()(model, [same, same, batch]).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_kernels_are_not_taken_in_half_precision():
    def model(images):
        features = images.flatten(1).bfloat16()  # as under autocast
        return Outputs(features, torch.zeros(len(features), 2))

    given = [Batch(b.images.float(), b.labels % 2, b.domains) for b in batches()]
    expected = MMD()(model, given)
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(MMD()(model, given), expected)


def test_a_domain_may_lack_classes():
    model, given = TwoLayers(), batches((4, 4))
    given = [Batch(b.images, torch.full_like(b.labels, k), b.domains) for k, b in enumerate(given)]
    MMD().step(model, given, torch.optim.Adam(model.parameters()))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_it_never_waits_for_the_device():
    assert MMD()(TwoLayers(), without_values(batches((3, 5, 4)))).shape == ()


def test_it_can_be_minimised_sharpness_aware():
    model, given = TwoLayers(), batches((3, 4))
    logged = SAM(MMD(2.0)).step(model, given, torch.optim.SGD(model.parameters(), lr=0.1))
    assert torch.equal(logged["unperturbed_loss"], MMD(2.0)(TwoLayers(), given).detach())


def test_the_option_is_named():
    assert MMD().configuration() == {"mmd_gamma": 1.0}
    assert MMD(mmd_gamma=3).configuration() == {"mmd_gamma": 3.0}
    assert MMD().state_dict() == {}


@pytest.mark.parametrize("mmd_gamma", [-1, math.inf, math.nan])
def test_the_weight_must_be_a_number_from_zero(mmd_gamma):
    with pytest.raises(InputError, match=r"MMD needs a finite mmd_gamma of 0 or more, got .*; 1 is usual"):
        MMD(mmd_gamma)
