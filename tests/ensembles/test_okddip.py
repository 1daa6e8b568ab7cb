import copy
import math

import pytest
import torch
from tests.ensembles.test_bottleneck import Members, adam_of, drawn, joined, leaves, trained
from tests.ensembles.test_one import assert_resumes, big, shuffled
from tests.reference import one as reference
from tests.reference.plain import adam_step, new_adam
from tests.tiny import tiny_network

from mirepoix.ensembles import Independent, average_logits
from mirepoix.ensembles._okddip import OKDDip
from mirepoix.types import Batch, InputError


def network(members=3):
    return Members(members=members, features=4)


def make(members=3, **options):
    objective = OKDDip(**{"features": 4, "members": members, "factor": 2, **options}).double()
    with torch.no_grad():  # so that attention is far from uniform
        for parameter in objective.parameters():
            parameter.mul_(4)
    return objective


def in_order(order, model):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.first.copy_(model.first[order])
        model.classifier = torch.nn.ModuleList(model.classifier[m] for m in order)
    return model


@pytest.mark.parametrize("sizes", [(3, 2), (1,)])
@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0.3, "temperature": 1.5, "ramp_steps": 2}, {"leader": True, "factor": 4, "ramp_steps": 9}],
)
def test_updates_are_those_of_the_reference(options, sizes):
    model, objective = network(), make(**options)
    optimizer, theta, memory = adam_of(model, objective), leaves(trained(model, objective)), new_adam()
    for step in range(3):
        images, labels = joined(drawn(step, sizes))
        expected, parts = reference.okddip(
            theta,
            images,
            labels,
            weight=options.get("alpha", 1) * reference.ramp(step, options.get("ramp_steps", 0)),
            temperature=options.get("temperature", 3),
            leader=options.get("leader", False),
        )
        theta = adam_step(theta, expected, memory)
        logged = objective.step(model, drawn(step, sizes), optimizer)
        assert set(logged) == {"loss", *parts}
        for name, value in {"loss": expected, **parts}.items():
            assert logged[name].item() == pytest.approx(value.item(), rel=1e-10)
        for name, value in trained(model, objective).items():
            assert (value - theta[name]).abs().max() < 1e-10
    assert objective.updates == 3


@pytest.mark.parametrize("leader", [False, True])
def test_without_distillation_it_is_independent_members(leader):
    model = network()
    assert torch.equal(make(alpha=0, leader=leader)(model, drawn(0)), Independent()(model, drawn(0)))


def test_a_single_peer_learns_from_the_labels_alone():
    model = network(1)
    objective = make(members=1)
    torch.testing.assert_close(objective(model, drawn(0)), Independent()(model, drawn(0)))
    assert objective.parts["distillation"].abs() < 1e-15
    led = make(members=2, leader=True)
    led(network(2), drawn(0))
    assert led.parts["distillation"].abs() < 1e-15
    assert led.parts["leader_distillation"] > 0


def test_attention_rows_sum_to_one_and_differ():
    attention = make().attention(network()(joined(drawn(0))[0]).features)
    assert attention.shape == (5, 3, 3)
    torch.testing.assert_close(attention.sum(-1), torch.ones(5, 3, dtype=torch.float64))
    assert (attention[:, 0] - attention[:, 1]).abs().max() > 0.01


def test_without_attention_every_peer_has_the_average_as_target():
    model, objective = network(), make(temperature=1)
    with torch.no_grad():
        objective.query.weight.zero_()
    objective(model, drawn(0))
    logits = model(joined(drawn(0))[0]).logits.log_softmax(-1)
    target = average_logits(logits).log_softmax(-1)
    expected = (target.exp() * (target - logits)).sum(-1).mean(1).sum()
    torch.testing.assert_close(objective.parts["distillation"], expected)


@pytest.mark.parametrize("leader", [False, True])
def test_the_order_of_samples_and_of_peers_does_not_matter(leader):
    model, objective = network(4), make(4, leader=leader, ramp_steps=3)
    (batch,) = drawn(0, (5,))
    expected = objective(model, [batch])
    torch.testing.assert_close(objective(model, shuffled([batch], [3, 0, 4, 1, 2])), expected)
    torch.testing.assert_close(objective(in_order([2, 0, 1, 3], model), [batch]), expected)
    last = objective(in_order([3, 0, 1, 2], model), [batch])
    assert torch.allclose(last, expected, rtol=1e-6) is not leader


def test_predictions_are_the_average_or_those_of_the_leader():
    model, images = network(), joined(drawn(0))[0]
    logits = model(images).logits
    assert torch.equal(make().predict(model, images).logits, average_logits(logits))
    led = make(leader=True).predict(model, images)
    assert torch.equal(led.logits, logits[2])
    assert led.features.shape == (3, 5, 4)


def test_nobody_listens_to_the_leader_who_moves_the_peers():
    model, objective = network(), make(leader=True)
    objective(model, drawn(0))
    before = objective.parts["distillation"]
    with torch.no_grad():
        model.classifier[2].weight.mul_(5)
    objective(model, drawn(0))
    assert torch.equal(objective.parts["distillation"], before)
    grads = []
    for scale in (1, 5):
        model = network()
        with torch.no_grad():
            model.classifier[2].weight.mul_(scale)
        make(leader=True)(model, drawn(0)).backward()
        grads.append(model.classifier[0].weight.grad)
    assert not torch.allclose(*grads)


@pytest.mark.parametrize("leader", [False, True])
def test_what_it_owns_is_trained_and_gradients_are_finite(leader):
    model, objective = network(), make(leader=leader)
    objective(model, drawn(0)).backward()
    for parameter in [*model.parameters(), *objective.parameters()]:
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0
    assert len(objective.trained_with_network()) == 2


def test_classes_that_are_missing_and_sure_members_give_finite_gradients():
    model = network()
    with torch.no_grad():
        for own in model.classifier:
            own.weight.mul_(1e4)
    (batch,) = drawn(0, (4,))
    loss = make()(model, [Batch(batch.images, torch.ones(4, dtype=torch.int64), batch.domains)])
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_half_precision():
    model, objective = network().float(), OKDDip(features=4, members=3, factor=2, leader=True)
    seen = []
    for layer in (objective.query, objective.key):
        layer.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(model, drawn(0, dtype=torch.float32))
        predicted = objective.predict(model, drawn(0, dtype=torch.float32)[0].images).logits
    assert {value.dtype for value in (*seen, loss, predicted, *objective.parts.values())} == {torch.float32}
    loss.backward()
    parameters = [*model.parameters(), *objective.parameters()]
    assert all(parameter.grad.isfinite().all() for parameter in parameters)


@pytest.mark.parametrize("leader", [False, True])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(leader, tmp_path):
    assert_resumes(OKDDip(features=16, members=2, ramp_steps=5, leader=leader), tmp_path)


def test_the_state_and_the_seed():
    model, objective = network(), make()
    objective.step(model, drawn(0), adam_of(model, objective))
    other = make(seed=3)
    other.load_state_dict(copy.deepcopy(objective.state_dict()))
    assert other.updates == 1
    assert torch.equal(other(model, drawn(1)), objective(model, drawn(1)))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, three = (OKDDip(features=8, members=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.query.weight, two.query.weight)
    assert not torch.equal(one.query.weight, three.query.weight)
    assert not torch.equal(one.query.weight, one.key.weight)


def test_the_projections_have_an_eighth_of_the_features():
    assert OKDDip(features=64, members=2).query.weight.shape == (8, 64)
    assert OKDDip(features=15, members=2).key.weight.shape == (1, 15)


def test_the_options_are_named():
    assert OKDDip(features=8, members=2).configuration() == {
        "features": 8,
        "members": 2,
        "alpha": 1.0,
        "temperature": 3.0,
        "ramp_steps": 0,
        "factor": 8,
        "leader": False,
        "seed": 0,
    }
    options = {
        "features": 4,
        "members": 3,
        "alpha": 0.5,
        "temperature": 2.0,
        "ramp_steps": 5,
        "factor": 2,
        "leader": True,
        "seed": 2,
    }
    assert OKDDip(**options).configuration() == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "OKDDip needs features to be a whole number from 1, got 0"),
        ({"members": True}, "OKDDip needs members to be a whole number from 1, got True"),
        ({"alpha": -1}, "OKDDip needs alpha to be 0 or more, got -1.0"),
        ({"temperature": math.inf}, "OKDDip needs temperature to be a finite number, got inf"),
        ({"temperature": -2}, "OKDDip needs temperature to be positive, got -2.0"),
        ({"ramp_steps": -2}, "OKDDip needs ramp_steps to be a whole number of updates from 0, got -2"),
        ({"factor": 9}, "OKDDip needs factor to be at most the number of features, 8, got 9: no row"),
        ({"members": 1, "leader": True}, "OKDDip needs at least 2 members for leader=True, got 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        OKDDip(**{"features": 8, "members": 2, **options})


def test_another_network_is_refused():
    with pytest.raises(
        InputError,
        match="OKDDip was made with members=3, features=4, got a network of members=2, features=4; make it with",
    ):
        make()(network(2), drawn(0))
    with pytest.raises(InputError, match="OKDDip needs a network of several members"):
        make()(tiny_network().build().double(), big())
