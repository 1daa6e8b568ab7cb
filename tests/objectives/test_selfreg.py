import copy

import numpy as np
import pytest
import torch
from tests.objectives.test_and_mask import (
    LR,
    WEIGHT_DECAY,
    Single,
    adam_of,
    as_lists,
    assert_continues,
    assert_half_precision_trains,
    assert_same,
    drawn,
    in_single,
    moved,
    weights_of,
)
from tests.objectives.test_coral import TwoLayers
from tests.reference import selfreg
from tests.reference.complex_step import fresh, gradient
from torch import nn

from mirepoix.data import digits_task
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._selfreg import SelfReg, _shuffled
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError


def partners(labels):
    """Of each sample, by a permutation: the k-th sample of a class gets the k-th of that class in a random order."""
    order = torch.randperm(len(labels)).tolist()
    result = [None] * len(labels)
    for label in set(labels):
        members = [i for i in range(len(labels)) if labels[i] == label]
        for i, partner in zip(members, [i for i in order if labels[i] == label], strict=True):
            result[i] = partner
    return result


def make(width=3, **options):
    return SelfReg(features=width, **options).double()


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("sizes", [(3, 5, 4), (1, 4), (6,)])
def test_updates_are_those_of_the_reference(sizes, parity):
    model, objective = TwoLayers(width=2), make(2, parity=parity)
    optimizer, theta = adam_of(model, objective), weights_of(model, objective)
    trained = list(weights_of(model)) if parity else list(theta)
    memory = fresh({name: theta[name] for name in trained})
    statistics = {}
    for step in range(3):
        given = drawn(step, sizes)
        labels = torch.cat([batch.labels for batch in given]).tolist()
        torch.manual_seed(step)
        half = torch.tensor(0.5, dtype=torch.float64)
        share = torch.distributions.Beta(half, half).sample().item()
        one, other = partners(labels), partners(labels)
        theta, memory, parts, moments = selfreg.update(
            theta, memory, as_lists(given), LR, WEIGHT_DECAY, share, one, other, trained
        )
        torch.manual_seed(step)
        logged = objective.step(model, given, optimizer)
        assert_same(theta, memory, optimizer, model, objective)
        assert logged["loss"].item() == pytest.approx(parts["loss"], rel=1e-10)
        for name, (mean, variance) in moments.items():
            before = statistics.get(name, (np.zeros(len(mean)), np.ones(len(mean))))
            statistics[name] = (0.9 * before[0] + 0.1 * mean, 0.9 * before[1] + 0.1 * variance)
            layer = objective.get_submodule(name)
            assert np.abs(layer.running_mean.numpy() - statistics[name][0]).max() < 1e-10
            assert np.abs(layer.running_var.numpy() - statistics[name][1]).max() < 1e-10


def test_a_shuffle_stays_within_its_class_and_every_order_is_as_likely():
    labels = torch.tensor([2, 0, 2, 1, 2, 0])
    torch.manual_seed(0)
    counts = {}
    draws = 6000
    for _ in range(draws):
        order = _shuffled(labels)
        assert labels[order].tolist() == [0, 0, 1, 2, 2, 2]
        assert sorted(order.tolist()) == list(range(6))
        counts[tuple(order.tolist())] = counts.get(tuple(order.tolist()), 0) + 1
    assert len(counts) == 2 * 6
    error = (draws * (1 / 12) * (11 / 12)) ** 0.5
    assert all(abs(count - draws / 12) < 5 * error for count in counts.values())


def test_the_two_shuffles_differ():
    labels = torch.zeros(50, dtype=torch.int64)
    assert not torch.equal(_shuffled(labels), _shuffled(labels))


def test_samples_alone_in_their_class_have_no_penalty_on_logits():
    # All that is left is the distance of features to their own projection, which the head makes zero here.
    class Same(nn.Module):
        def forward(self, features):
            return features

    (batch,) = drawn(0, (3,))
    batch = Batch(batch.images, torch.tensor([2, 0, 1]), batch.domains)
    objective = make()
    objective.projection = Same()
    model = TwoLayers()
    torch.testing.assert_close(objective(model, [batch]), ERM()(model, [batch]), rtol=1e-12, atol=0)


def test_equal_samples_of_a_class_have_no_penalty_on_logits():
    class Same(nn.Module):
        def forward(self, features):
            return features

    (batch,) = drawn(0, (1,))
    given = [Batch(batch.images.expand(4, 1, 1, 2), torch.ones(4, dtype=torch.int64), torch.zeros(4))] * 2
    objective = make()
    objective.projection = Same()
    model = TwoLayers()
    torch.testing.assert_close(objective(model, given), ERM()(model, given), rtol=1e-12, atol=0)


def test_the_order_of_samples_and_of_domains_does_not_matter_without_draws():
    # With one sample per class there is nothing to permute.
    (batch,) = drawn(0, (3,))
    given = [
        Batch(batch.images[i : i + 1], torch.tensor([label]), torch.tensor([i]))
        for i, label in enumerate([2, 0, 1])
    ]
    torch.manual_seed(0)
    expected = make()(TwoLayers(), given)
    torch.manual_seed(0)
    torch.testing.assert_close(make()(TwoLayers(), given[::-1]), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("scale", "least", "most"), [(0.1, 1.0, 1.2), (-4.0, 1.2, 9.0), (3.0, 0.0, 0.9)])
def test_the_factor_is_the_risk_at_most_one_and_a_constant(scale, least, most):
    model, objective = TwoLayers(), make()
    (batch,) = drawn(0, (5,))
    labels = model(batch.images).logits.argmax(1)  # what the network thinks is right
    batch = Batch(batch.images, labels, batch.domains)
    with torch.no_grad():
        model.last.mul_(scale)
    torch.manual_seed(0)
    half = torch.tensor(0.5, dtype=torch.float64)
    share = torch.distributions.Beta(half, half).sample().item()
    one, other = partners(labels.tolist()), partners(labels.tolist())
    risk = ERM()(model, [batch]).item()
    assert least < risk < most
    theta = weights_of(model, objective)

    def slow(shifted):
        return selfreg.loss({**theta, **shifted}, *as_lists([batch]), share, one, other, min(1.0, risk))[0]

    torch.manual_seed(0)
    loss = objective(model, [batch])
    assert loss.item() == pytest.approx(slow(theta), rel=1e-12)
    loss.backward()
    for name, expected in gradient(slow, weights_of(model)).items():
        assert np.abs(model.get_parameter(name).grad.numpy() - expected).max() < 1e-10


def test_the_head_is_trained_by_default_and_not_with_parity():
    for parity in (False, True):
        model, objective = TwoLayers(), make(parity=parity)
        before = copy.deepcopy(objective)
        optimizer = adam_of(model, objective, weight_decay=0)
        for step in range(2):
            objective.step(model, drawn(step), optimizer)
        changed = [
            not torch.equal(one, other)
            for one, other in zip(objective.parameters(), before.parameters(), strict=True)
        ]
        assert changed == [not parity] * len(changed)
        assert all(parameter.requires_grad is not parity for parameter in objective.parameters())
        assert not torch.equal(model.first, TwoLayers().first)


def test_a_training_trains_the_head():
    split = digits_task(size=8).split("rotated_75")
    network = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8)
    run = Run(steps=3, batch_size=4, learning_rate=1e-3, collect="last")
    ends = [
        Trainer(network, SelfReg(features=16, parity=parity), Loop(device="cpu"))(
            initial_weights(network), split, run
        )
        for parity in (False, True)
    ]
    assert not torch.equal(ends[0]["featurizer.conv4.weight"], ends[1]["featurizer.conv4.weight"])


def test_the_head_depends_on_its_seed_alone():
    torch.manual_seed(1)
    one = SelfReg(features=4)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    two = SelfReg(features=4)
    other = SelfReg(features=4, seed=1)
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(one.projection[0].weight, other.projection[0].weight)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("features", "hidden"), [(3, 6), (512, 1024), (2048, 2048)])
def test_the_width_of_the_head(features, hidden):
    with torch.device("meta"):
        head = SelfReg(features=features).projection
    shapes = [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)]
    assert shapes == [(hidden, features), (hidden, hidden), (features, hidden)]


def test_half_precision():
    assert_half_precision_trains(lambda: SelfReg(features=6))


def test_the_penalty_and_the_head_are_not_in_half_precision():
    objective, model = SelfReg(features=6), Single()
    seen = []
    objective.projection.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(model, in_single(drawn(0)))
    assert [value.dtype for value in (*seen, loss)] == [torch.float32] * 3


def test_the_scale_of_a_scaler_cancels():
    ends = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)):
        model, objective = TwoLayers(), make()
        optimizer = adam_of(model, objective)
        for step in range(3):
            torch.manual_seed(step)
            objective.step(model, drawn(step), optimizer, scaler)
        ends.append(model.first.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-11)


def test_the_same_seed_gives_the_same_bits():
    given = drawn(0)
    ends = [moved(make(), given, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_sam_can_wrap_it():
    model, objective = TwoLayers(), make()
    optimizer = adam_of(model, objective)
    logged = SAM(objective).step(model, drawn(0), optimizer)
    assert logged["loss"] > logged["unperturbed_loss"]
    assert objective.projection[1].num_batches_tracked.item() == 1


def test_a_run_continues_with_the_same_bits():
    assert_continues(make)
    assert_continues(lambda: make(parity=True))


def test_a_joint_batch_of_one_is_refused():
    with pytest.raises(
        InputError, match=r"SelfReg needs at least 2 samples in the joint batch, .*larger batch size"
    ):
        make()(TwoLayers(), drawn(0, (1,)))


def test_other_features_are_refused():
    with pytest.raises(InputError, match="SelfReg was made for 4 features, got 3; make it with features=3"):
        make(4)(TwoLayers(), drawn(0))


def test_the_options_are_named():
    assert SelfReg(features=4).configuration() == {"features": 4, "parity": False, "seed": 0}
    options = {"features": 5, "parity": True, "seed": 3}
    assert SelfReg(**options).configuration() == options


@pytest.mark.parametrize("features", [0, -1, 1.5, True])
def test_features_must_be_a_count(features):
    with pytest.raises(InputError, match="SelfReg needs a whole number of features from 1, got"):
        SelfReg(features=features)
