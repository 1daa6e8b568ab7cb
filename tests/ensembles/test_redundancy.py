import math
from collections import Counter

import pytest
import torch

from mirepoix.ensembles._redundancy import (
    Discriminator,
    PartnerQueue,
    clipped,
    discrimination,
    partners_in,
    redundancy_estimate,
)
from mirepoix.types import InputError

FAST = {"steps": 250, "hidden": (64, 64), "learning_rate": 3e-3}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The estimate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditional", [False, True])
def test_correlated_gaussians_have_the_information_that_is_known(conditional):
    first, noise = normal(2, 4000, 2)
    second = 0.8 * first + 0.6 * noise
    labels = None
    if conditional:  # the correlation is that within each class
        labels = torch.arange(4000) % 3
        first, second = (x + 2 * normal(3, 2, seed=3)[labels] for x in (first, second))
    expected = -math.log(1 - 0.8**2)  # nats: half of it per dimension, of which there are two
    found = redundancy_estimate(first, second, labels, **FAST)
    # On 2000 samples the standard error is about 0.03, and the discriminator adds as much.
    assert found.log_ratio == pytest.approx(expected, abs=0.15)
    assert found.donsker_varadhan == pytest.approx(expected, abs=0.15)


def test_scale_and_place_of_features_do_not_matter():
    first, noise = normal(2, 400, 2)
    second = first + noise
    options = {"steps": 20, "hidden": (8,)}
    found = redundancy_estimate(first, second, **options)
    moved = redundancy_estimate(first * 1000 - 500, second / 1000, **options)
    assert moved.log_ratio == pytest.approx(found.log_ratio, abs=1e-3)
    with torch.no_grad():
        assert redundancy_estimate(first, second, **options) == found
    assert redundancy_estimate(first, second, seed=1, **options) != found


def test_what_only_the_class_makes_common_is_not_redundant_given_the_class():
    labels = torch.randint(4, (4000,), generator=torch.Generator().manual_seed(1))
    centres = 2.0 * normal(4, 2, seed=2)
    first, second = centres[labels] + normal(2, 4000, 2)
    without = redundancy_estimate(first, second, **FAST)
    given = redundancy_estimate(first, second, labels, **FAST)
    assert without.log_ratio > 0.3
    assert without.donsker_varadhan > 0.3
    assert without.accuracy > 0.6
    assert abs(given.log_ratio) < 0.05
    assert abs(given.donsker_varadhan) < 0.05
    assert given.accuracy == pytest.approx(0.5, abs=0.03)


def test_identical_features_are_told_apart_from_those_of_two_images():
    features = normal(2000, 3)
    labels = torch.arange(2000) % 2 * 7  # any whole numbers
    found = redundancy_estimate(features, features, labels, **FAST)
    assert found.accuracy > 0.95
    assert found.log_ratio > 2
    assert found.donsker_varadhan > 2


def test_features_of_two_sizes_and_samples_alone_in_their_class():
    labels = torch.cat([torch.arange(30), torch.zeros(70, dtype=torch.int64)])
    found = redundancy_estimate(normal(100, 3), normal(100, 2, seed=1), labels, steps=3, hidden=(4,))
    assert math.isfinite(found.donsker_varadhan)


def test_a_constant_feature_is_no_nan():
    found = redundancy_estimate(torch.ones(50, 2), normal(50, 2), steps=3, hidden=(4,))
    assert math.isfinite(found.log_ratio)


@pytest.mark.parametrize(
    ("first", "second", "labels", "options", "message"),
    [
        (normal(8, 2), normal(7, 2), None, {}, r"same samples, got shapes \(8, 2\) and \(7, 2\)"),
        (normal(8, 2), normal(8), None, {}, r"features \(samples, features\) of two members"),
        (
            normal(8, 2),
            normal(8, 2),
            torch.zeros(7, dtype=torch.int64),
            {},
            r"one label per sample, got \(7,\) for 8",
        ),
        (normal(3, 2), normal(3, 2), None, {}, "at least 4 samples, got 3"),
        (
            normal(8, 2),
            normal(8, 2),
            None,
            {"held_out": 1.0},
            "held_out between 0 and 1, got 1.0; 0.5 is usual",
        ),
        (
            normal(8, 2),
            normal(8, 2),
            None,
            {"held_out": 0.01},
            "a class with two samples both for training and",
        ),
        (normal(8, 2), normal(8, 2), torch.arange(8), {}, "got 8 samples of 8 classes; give more samples"),
        (normal(8, 2) * math.nan, normal(8, 2), None, {}, "finite features, got some"),
    ],
)
def test_what_does_not_fit_is_refused(first, second, labels, options, message):
    with pytest.raises(InputError, match=f"redundancy_estimate needs .*{message}"):
        redundancy_estimate(first, second, labels, **options)


# Partners -------------------------------------------------------------------------------------------------------------


def test_partners_are_the_next_of_the_class():
    labels = torch.tensor([2, 0, 2, 1, 2, 0])
    partners, paired = partners_in(labels, torch.arange(6))
    assert partners.tolist() == [2, 5, 4, 3, 0, 1]
    assert paired.tolist() == [True, True, True, False, True, True]
    partners, _ = partners_in(labels, torch.tensor([4, 3, 2, 1, 0, 5]))
    assert partners.tolist() == [4, 5, 0, 3, 2, 1]


def test_in_random_order_every_other_sample_of_the_class_is_as_likely():
    labels, draws, random = torch.tensor([1, 0, 1, 1, 1]), 4000, torch.Generator().manual_seed(0)
    counts = Counter(
        partners_in(labels, torch.randperm(5, generator=random))[0][0].item() for _ in range(draws)
    )
    error = (draws * (1 / 3) * (2 / 3)) ** 0.5
    assert set(counts) == {2, 3, 4}
    assert all(abs(count - draws / 3) < 4 * error for count in counts.values())


def rows_of(queue, label):
    """The first feature of the first member of what a class has, the oldest first."""
    size, pushed = queue.rows.shape[1], queue.pushed[label].item()
    return [queue.rows[label, k % size, 0, 0].item() for k in range(max(0, pushed - size), pushed)]


def test_the_queue_keeps_the_last_of_each_class():
    queue = PartnerQueue(3, 2, members=2, features=1)
    expected = {label: [] for label in range(3)}
    random = torch.Generator().manual_seed(0)
    for step in range(8):
        labels = torch.randint(3, (step % 5 + 1,), generator=random)
        features = torch.randn(2, len(labels), 1, generator=random)
        queue.push(features, labels)
        for i, label in enumerate(labels.tolist()):
            expected[label] = [*expected[label], features[0, i, 0].item()][-2:]
        assert {label: rows_of(queue, label) for label in range(3)} == expected


def test_a_draw_from_the_queue_is_of_the_class_and_another_sample_each_as_likely():
    queue = PartnerQueue(3, 4, members=2, features=1)
    past = torch.tensor([[[10.0], [11.0], [20.0]], [[110.0], [111.0], [120.0]]])
    queue.push(past, torch.tensor([0, 0, 1]))
    features = torch.tensor([[[0.0], [1.0], [2.0], [3.0]], [[100.0], [101.0], [102.0], [103.0]]])
    labels = torch.tensor([0, 1, 0, 2])
    torch.manual_seed(0)
    draws, found = 1000, [Counter() for _ in range(3)]
    for _ in range(draws):
        rows, paired = queue.draw(features, labels)
        assert paired.tolist() == [True, True, True, False]
        assert torch.equal(rows[1, :3], rows[0, :3] + 100)  # all members' features are of one sample
        for i in range(3):
            found[i][rows[0, i, 0].item()] += 1
    assert [set(counts) for counts in found] == [{2.0, 10.0, 11.0}, {20.0}, {0.0, 10.0, 11.0}]
    error = (draws * (1 / 3) * (2 / 3)) ** 0.5
    assert all(abs(count - draws / 3) < 4 * error for i in (0, 2) for count in found[i].values())


def test_an_empty_queue_and_a_batch_of_one_have_no_partner():
    queue = PartnerQueue(3, 4, members=2, features=1)
    assert not queue.draw(torch.randn(2, 1, 1), torch.tensor([1]))[1].any()
    assert not partners_in(torch.tensor([1]), torch.tensor([0]))[1].any()
    queue.push(torch.randn(2, 1, 1), torch.tensor([1]))
    assert queue.draw(torch.randn(2, 1, 1), torch.tensor([1]))[1].all()


# The discriminator ----------------------------------------------------------------------------------------------------


def test_the_discriminators_loss_is_the_pooled_cross_entropy():
    joint, product = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    paired = torch.tensor([True, True, False, True, False])
    loss, accuracy = discrimination(joint, product, paired)
    pooled = torch.cat([joint[:, paired], product[:, paired]])
    truth = torch.cat([torch.ones(3, 3), torch.zeros(3, 3)]).double()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(pooled, truth)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(accuracy, ((pooled > 0) == truth.bool()).double().mean())


def test_without_any_partner_there_is_no_loss():
    joint = torch.randn(3, 4, requires_grad=True)
    loss, accuracy = discrimination(joint, joint + 1, torch.zeros(4, dtype=torch.bool))
    loss.backward()
    assert (loss.item(), accuracy.item()) == (0.0, 0.5)
    assert joint.grad.abs().max() == 0


def test_log_ratios_are_bounded():
    logits = torch.tensor([-1000.0, -1.0, 0.0, 0.5, 30.0], requires_grad=True)
    soft = clipped(logits, 2.0, "soft")
    torch.testing.assert_close(soft, 2 * torch.tanh(logits / 2))
    assert soft.abs().max() <= 2
    assert clipped(logits, 2.0, "hard").tolist() == [-2.0, -1.0, 0.0, 0.5, 2.0]


def test_the_discriminator_is_the_published_one():
    network = Discriminator(128, classes=10, embedding=64, hidden=(256, 256, 100), seed=0)
    shapes = [tuple(value.shape) for name, value in network.named_parameters() if name.endswith("weight")]
    assert shapes == [(10, 64), (256, 192), (256, 256), (100, 256), (1, 100)]
    assert all(layer.negative_slope == 0.2 for layer in network.layers[1::2])
    torch.manual_seed(3)
    state = torch.get_rng_state()
    same = Discriminator(128, classes=10, embedding=64, hidden=(256, 256, 100), seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))
    assert Discriminator(4, classes=None, embedding=64, hidden=(5,), seed=0).embedding is None
