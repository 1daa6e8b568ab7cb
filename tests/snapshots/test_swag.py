import copy
import math

import numpy as np
import pytest
import torch
from tests.reference import swag as reference
from tests.snapshots.local_samples import RUN, batches, first_member, loss_and_accuracy, trained

from mirepoix.merging import reestimate_batch_norm
from mirepoix.models import NetworkSpec
from mirepoix.seeds import generator
from mirepoix.snapshots import SWAG
from mirepoix.training import snapshots
from mirepoix.types import InputError
from mirepoix.weights import average, distance


def iterates(count=7, dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    return [
        {
            "a": (5 + torch.randn(2, 2, generator=random, dtype=torch.float64)).to(dtype),
            "count": torch.tensor(i),
            "b": (0.1 * torch.randn(3, generator=random, dtype=torch.float64)).to(dtype),
        }
        for i in range(count)
    ]


def flat(theta):
    return torch.cat([theta["a"].flatten(), theta["b"]]).double().tolist()


@pytest.mark.parametrize(("count", "rank", "scale"), [(7, 20, 0.5), (7, 3, 0.5), (9, 2, 2.0), (2, 20, 1.0)])
def test_a_sample_is_that_of_the_reference(count, rank, scale):
    given = iterates(count)
    found = SWAG(given, rank=rank)
    assert (found.count, found.rank) == (count, min(count, rank))
    for seed in (0, 5):
        random = generator("swag", seed)
        z2, *z1 = (torch.randn(size, generator=random, dtype=torch.float64) for size in (found.rank, 4, 3))
        expected = reference.sample(
            [flat(theta) for theta in given], rank, scale, torch.cat(z1).tolist(), z2.tolist()
        )
        assert flat(found.sample(seed, scale)) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_without_columns_it_is_the_diagonal_one():
    given = iterates()
    found = SWAG(given, rank=0)
    assert found.rank == 0
    random = generator("swag", 1)
    z1 = torch.cat([torch.randn(size, generator=random, dtype=torch.float64) for size in (0, 4, 3)]).tolist()
    expected = reference.sample([flat(theta) for theta in given], 0, 1.0, z1, [])
    assert flat(found.sample(1, scale=1)) == pytest.approx(expected, rel=1e-12)


def test_the_covariance_of_samples_is_that_of_the_method():
    given = iterates(6)
    draws = 8000
    made = SWAG(given, rank=4)
    found = torch.tensor([flat(made.sample(seed)) for seed in range(draws)], dtype=torch.float64)
    expected = torch.tensor(reference.covariance([flat(theta) for theta in given], 4, 0.5))
    spread = expected.diagonal().sqrt()
    assert ((found.mean(0) - torch.tensor(flat(made.mean()))).abs() < 5 * spread / math.sqrt(draws)).all()
    # The variance of an entry of a covariance of Gaussians is (c_ij^2 + c_ii c_jj) / n.
    error = ((expected.square() + torch.outer(spread, spread).square()) / draws).sqrt()
    assert ((found.T.cov() - expected).abs() < 5 * error).all()


def test_the_mean_is_the_average_and_a_scale_of_zero_gives_it():
    given = iterates()
    made = SWAG(iter(given))
    expected = average(given, integers="max")
    for theta in (made.mean(), made.sample(3, scale=0)):
        assert list(theta) == ["a", "count", "b"]
        for name in theta:
            torch.testing.assert_close(theta[name], expected[name], rtol=1e-14, atol=0)


def test_the_same_seed_gives_the_same_bits_and_another_another_member():
    made, state = SWAG(iterates()), torch.get_rng_state()
    one, same, other = made.sample(0), made.sample(0), made.sample(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in ("a", "b"))


def test_iterates_that_are_all_equal_leave_one_point():
    """Up to the least standard deviation, 1e-15, and what their sum is rounded by."""
    given = [{"w": torch.tensor([1.0, -3.0, 0.0, 0.1])}] * 6
    for seed in range(4):
        found = SWAG(given).sample(seed, scale=1.0)["w"]
        assert torch.equal(found[:2], given[0]["w"][:2])
        assert (found - given[0]["w"]).abs().max() < 1e-7
        assert found[2].abs() < 1e-14


def test_digits_survive_a_large_mean():
    """The difference of mean squares would be lost."""
    given = [{"w": torch.tensor([1e9 + i], dtype=torch.float64)} for i in range(4)]
    made = SWAG(given, rank=0)
    random = generator("swag", 0)
    torch.randn(0, generator=random, dtype=torch.float64)
    z = torch.randn(1, generator=random, dtype=torch.float64)
    assert made.sample(0, 1)["w"].item() - (1e9 + 1.5) == pytest.approx(math.sqrt(1.25) * z.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_are_kept_and_iterates_stay(dtype):
    given = iterates(dtype=dtype)
    before = copy.deepcopy(given)
    made = SWAG(given)
    for theta in (made.mean(), made.sample(0)):
        assert theta["a"].dtype == theta["b"].dtype == dtype
        assert theta["count"].dtype == torch.int64
        assert theta["count"] == 6
    wide = SWAG([{k: v.double() if v.is_floating_point() else v for k, v in t.items()} for t in given])
    torch.testing.assert_close(made.sample(2)["a"], wide.sample(2)["a"].to(dtype))
    for one, other in zip(given, before, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_arrays_of_numpy_are_read():
    given = [{"w": np.array([1.0, 2.0])}, {"w": np.array([2.0, 0.0])}]
    assert torch.equal(SWAG(given).mean()["w"], torch.tensor([1.5, 1.0], dtype=torch.float64))


def test_running_statistics_are_those_of_the_mean_until_they_are_measured_again():
    spec = NetworkSpec(name="cifar_resnet20", classes=4, channels=1, frozen_batch_norm=False)
    start = {name: value.clone() for name, value in spec.build().state_dict().items()}
    run = RUN.with_(steps=4, check_every=1, collect="snapshots", batch_size=4)
    kept = snapshots(trained(start, run, spec))
    made = SWAG(kept.values())
    assert made.count == 4
    mean, theta = made.mean(), made.sample(0)
    statistics = [name for name in theta if name.endswith(("running_mean", "running_var"))]
    assert statistics
    for name in theta:
        assert torch.equal(theta[name], mean[name]) == (name in statistics or "num_batches" in name), name
    model = spec.build()
    model.load_state_dict(theta)
    measured = reestimate_batch_norm(model, batches())
    for name in theta:
        assert torch.equal(theta[name], measured[name]) == (name not in statistics and "num_b" not in name)


def test_samples_around_a_trained_member_are_members():
    run = RUN.with_(steps=50, check_every=5, collect="snapshots", learning_rate=3e-3)
    made = SWAG(snapshots(trained(first_member(), run)).values())
    assert made.count == made.rank == 11
    members = [made.sample(seed) for seed in range(4)]
    assert len({distance(made.mean(), theta) for theta in members}) == 4
    accuracy = loss_and_accuracy(made.mean())[1]
    assert accuracy > 0.7
    assert min(loss_and_accuracy(theta)[1] for theta in members) > accuracy - 0.2


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, "at least 2 iterates, got 0"),
        (iterates(1), {}, "at least 2 iterates, got 1"),
        (iterates(3), {"rank": 1}, "rank to be 0 or a whole number from 2, got 1"),
        (iterates(3), {"rank": -1}, "rank to be 0 or a whole number from 2, got -1"),
        (iterates(3), {"rank": 2.0}, "rank to be 0 or a whole number from 2, got 2.0"),
        ({"000001/w": torch.ones(1)}, {}, r"got one mapping. Split .* snapshots\(theta\).values\(\)"),
        (
            [*iterates(2), {"a": torch.ones(2, 2)}],
            {},
            "iterate 2 is of another network: 'count' is missing there and of shape",
        ),
        (
            [{"a": torch.ones(2)}, {"a": torch.ones(3)}],
            {},
            r"iterate 1 .* 'a' is of shape \(3,\) there and of shape \(2,\) in iterate 0",
        ),
        ([{"a": torch.ones(2)}, {"a": torch.ones(2).long()}], {}, "'a' is torch.int64 in iterate 1"),
        ([{"a": torch.ones(2)}, {"a": torch.tensor([1, math.nan])}], {}, "iterate 1 holds NaN .* in 'a'"),
    ],
)
def test_what_cannot_be_sampled_from_is_told(given, options, message):
    with pytest.raises(InputError, match=message):
        SWAG(given, **options)


@pytest.mark.parametrize("scale", [-1, math.inf, math.nan])
def test_a_scale_is_finite(scale):
    with pytest.raises(InputError, match="scale to be a finite number of 0 or more"):
        SWAG(iterates()).sample(0, scale)
