import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tests.ensembles.test_bottleneck import RUN, Members, adam_of, drawn, joined, leaves, trained
from tests.reference import one as reference
from tests.reference.plain import adam_step, new_adam
from tests.tiny import tiny_network, tiny_task

from mirepoix.checkpoints import fingerprint
from mirepoix.ensembles import Independent, average_logits
from mirepoix.ensembles._one import ONE, distillation
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError, Outputs


def make(members=3, features=2, **options):
    return ONE(features=features, members=members, **options).double()


def in_order(order, model, objective):
    """The same members in another order, with the gate that knows them by it."""
    model, objective = copy.deepcopy(model), copy.deepcopy(objective)
    with torch.no_grad():
        model.first.copy_(model.first[order])
        model.classifier = torch.nn.ModuleList(model.classifier[m] for m in order)
        for layer in objective.gate[:2]:
            layer.weight.copy_(layer.weight[order])
            layer.bias.copy_(layer.bias[order])
    return model, objective


def shuffled(batches, order):
    return [Batch(b.images[order], b.labels[order], b.domains[order]) for b in batches]


def assert_resumes(objective, tmp_path, classes=2):
    """A run that was stopped after 4 of 6 updates ends with the bits of one that was not."""
    one = tiny_network(classes)
    spec = NetworkSpec(**{**one.to_dict(), "members": 2, "split_at": "last_stage"})
    split, theta = tiny_task(classes=classes).split("domain_2"), initial_weights(spec)

    class Stopped(Exception):
        pass

    def stop(made, *_):
        if made == 4:
            raise Stopped

    whole = Trainer(spec, objective).fit(theta, split, RUN)
    with pytest.raises(Stopped):
        Trainer(spec, objective, loop=Loop(save_every=0), on_progress=stop).fit(
            theta, split, RUN, workspace=tmp_path
        )
    resumed = Trainer(spec, objective).fit(theta, split, RUN, workspace=tmp_path)
    assert {k: fingerprint(v) for k, v in resumed.weights.items()} == {
        k: fingerprint(v) for k, v in whole.weights.items()
    }
    assert resumed.record["checks"] == whole.record["checks"]
    return whole


@pytest.mark.parametrize("sizes", [(3, 2), (2,)])
@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0.3, "temperature": 1.5, "ramp_steps": 2}, {"detach_teacher": True, "ramp_steps": 9}],
)
def test_updates_are_those_of_the_reference(options, sizes):
    model, objective = Members(), make(**options)
    optimizer, theta, memory = adam_of(model, objective), leaves(trained(model, objective)), new_adam()
    statistics = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for step in range(3):
        images, labels = joined(drawn(step, sizes))
        weight = options.get("alpha", 1) * reference.ramp(step, options.get("ramp_steps", 0))
        expected, parts, (means, variances) = reference.one(
            theta,
            images,
            labels,
            weight=weight,
            temperature=options.get("temperature", 3),
            detach=options.get("detach_teacher", False),
        )
        theta = adam_step(theta, expected, memory)
        logged = objective.step(model, drawn(step, sizes), optimizer)
        assert set(logged) == {"loss", "nll", "teacher_nll", "distillation"}
        for name, value in {"loss": expected, **parts}.items():
            assert logged[name].item() == pytest.approx(value.item(), rel=1e-10, abs=1e-13)
        for name, value in trained(model, objective).items():
            assert (value - theta[name]).abs().max() < 1e-10
        n = len(labels)
        moments = torch.stack(means).detach(), torch.stack(variances).detach() * n / (n - 1)
        statistics = tuple(0.9 * old + 0.1 * new for old, new in zip(statistics, moments, strict=True))
        assert (objective.gate[1].running_mean - statistics[0]).abs().max() < 1e-10
        assert (objective.gate[1].running_var - statistics[1]).abs().max() < 1e-10
    assert objective.updates == 3


def test_the_divergence_has_its_target_first():
    student = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()[None]
    target = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()[None]
    expected = (0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)) / 2
    assert distillation(student, target, 1.0).item() == pytest.approx(expected, rel=1e-6)
    twice = distillation(student.repeat(2, 1, 1), target.repeat(2, 1, 1), 1.0)
    assert twice.item() == pytest.approx(2 * expected, rel=1e-6)
    assert distillation(2 * student, 2 * target, 2.0).item() == pytest.approx(4 * expected, rel=1e-6)


def test_a_higher_temperature_keeps_the_size_of_the_gradient():
    random = torch.Generator().manual_seed(0)
    target, start = 0.1 * torch.randn(2, 1, 5, 4, generator=random)
    sizes = []
    for temperature in (3.0, 6.0):
        student = start.clone().requires_grad_()
        distillation(student, target, temperature).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_without_distillation_it_is_independent_members_and_a_teacher():
    model, objective = Members(), make(alpha=0)
    outputs = model(joined(drawn(0))[0])
    teacher = objective.teacher(outputs)
    _, labels = joined(drawn(0))
    expected = Independent()(model, drawn(0)) + F.cross_entropy(teacher, torch.tensor(labels))
    assert torch.equal(objective(model, drawn(0)), expected)


def test_the_teacher_is_between_its_members():
    objective = make()
    outputs = Members()(joined(drawn(0))[0])
    teacher = objective.teacher(outputs)
    assert (teacher >= outputs.logits.amin(0)).all()
    assert (teacher <= outputs.logits.amax(0)).all()
    assert (teacher - outputs.logits.mean(0)).abs().max() > 1e-3
    same = Outputs(features=outputs.features, logits=outputs.logits[:1].expand(3, -1, -1))
    torch.testing.assert_close(objective.teacher(same), outputs.logits[0])


def test_one_member_is_its_own_teacher():
    model, objective = Members(members=1), make(members=1)
    loss = objective(model, drawn(0))
    assert objective.parts["distillation"].abs() < 1e-15
    torch.testing.assert_close(loss, 2 * Independent()(model, drawn(0)))


def test_the_order_of_samples_does_not_matter_and_members_go_with_their_gate():
    model, objective = Members(), make(ramp_steps=3)
    (batch,) = drawn(0, (5,))
    expected = objective(model, [batch])
    torch.testing.assert_close(objective(model, shuffled([batch], [3, 0, 4, 1, 2])), expected)
    torch.testing.assert_close(objective(model, drawn(1)[::-1]), objective(model, drawn(1)))
    other, its = in_order([2, 0, 1], model, objective)
    torch.testing.assert_close(its(other, [batch]), expected)


def test_a_detached_teacher_does_not_learn_from_its_students():
    # The loss less its risks: what is left is the divergence.
    for detach in (False, True):
        model, objective = Members(), make(detach_teacher=detach, alpha=1e6)
        objective(model, drawn(0)).backward()
        gate = objective.gate[0].weight.grad.norm().item()
        plain = make(alpha=0)
        plain(Members(), drawn(0)).backward()
        without = plain.gate[0].weight.grad.norm().item()
        assert (gate == pytest.approx(without, rel=1e-9)) is detach
        assert model.first.grad.norm() > 1e3


def test_predictions_are_the_average_or_those_of_the_gate():
    model, images = Members(), joined(drawn(0))[0]
    averaged = make().eval().predict(model, images)
    assert torch.equal(averaged.logits, average_logits(model(images).logits))
    objective = make(combiner="gate")
    objective.step(model, drawn(1), adam_of(model, objective))
    objective.eval()
    gated = objective.predict(model, images)
    assert torch.equal(gated.logits, objective.teacher(model(images)))
    assert not torch.allclose(gated.logits, average_logits(model(images).logits))
    assert gated.features.shape == (3, 5, 2)
    # Statistics, not those of the batch.
    alone = torch.cat([objective.predict(model, image[None]).logits for image in images])
    torch.testing.assert_close(alone, gated.logits)


def test_what_it_owns_is_trained_and_gradients_are_finite():
    model, objective = Members(), make()
    objective(model, drawn(0)).backward()
    for parameter in [*model.parameters(), *objective.parameters()]:
        assert parameter.grad.isfinite().all()
    assert objective.gate[0].weight.grad.abs().max() > 0
    assert len(objective.trained_with_network()) == len(list(objective.parameters())) == 4


def test_classes_that_are_missing_and_sure_members_give_finite_gradients():
    model = Members()
    with torch.no_grad():
        for own in model.classifier:
            own.weight.mul_(1e4)
    (batch,) = drawn(0, (4,))
    given = [Batch(batch.images, torch.ones(4, dtype=torch.int64), batch.domains)]
    loss = make()(model, given)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_half_precision():
    model, objective = Members().float(), ONE(features=2, members=3, combiner="gate")
    seen = []
    objective.gate.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(model, drawn(0, dtype=torch.float32))
        predicted = objective.eval().predict(model, drawn(0, dtype=torch.float32)[0].images).logits
    assert {value.dtype for value in (*seen, loss, predicted, *objective.parts.values())} == {torch.float32}
    loss.backward()
    parameters = [*model.parameters(), *objective.parameters()]
    assert all(parameter.grad.isfinite().all() for parameter in parameters)


@pytest.mark.parametrize("combiner", ["logits", "gate"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(combiner, tmp_path):
    assert_resumes(ONE(features=16, members=2, ramp_steps=5, combiner=combiner), tmp_path)


def test_the_state_and_the_seed():
    model, objective = Members(), make()
    objective.step(model, drawn(0), adam_of(model, objective))
    other = make(seed=3)
    other.load_state_dict(copy.deepcopy(objective.state_dict()))
    assert other.updates == 1
    assert torch.equal(other(model, drawn(1)), objective(model, drawn(1)))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, three = (ONE(features=4, members=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.gate[0].weight, two.gate[0].weight)
    assert not torch.equal(one.gate[0].weight, three.gate[0].weight)


def test_the_options_are_named():
    assert ONE(features=4, members=2).configuration() == {
        "features": 4,
        "members": 2,
        "alpha": 1.0,
        "temperature": 3.0,
        "ramp_steps": 0,
        "detach_teacher": False,
        "combiner": "logits",
        "seed": 0,
    }
    options = {
        "features": 4,
        "members": 1,
        "alpha": 0.5,
        "temperature": 2.0,
        "ramp_steps": 5,
        "detach_teacher": True,
        "combiner": "gate",
        "seed": 2,
    }
    assert ONE(**options).configuration() == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "ONE needs features to be a whole number from 1, got 0"),
        ({"members": 0}, "ONE needs members to be a whole number from 1, got 0"),
        ({"alpha": -1}, "ONE needs alpha to be 0 or more, got -1.0; 0 leaves its term out"),
        ({"alpha": math.nan}, "ONE needs alpha to be a finite number, got nan"),
        ({"temperature": 0}, "ONE needs temperature to be positive, got 0.0"),
        ({"ramp_steps": -1}, "ONE needs ramp_steps to be a whole number of updates from 0, got -1"),
        ({"combiner": "vote"}, "ONE needs combiner to be one of logits, gate, got 'vote'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ONE(**{"features": 2, "members": 2, **options})


def test_another_network_or_a_single_sample_is_refused():
    message = "ONE was made with members=3, features=2, got a network of members=2, features=2; make it with"
    with pytest.raises(InputError, match=message):
        make()(Members(members=2), drawn(0))
    with pytest.raises(InputError, match=message):
        make(combiner="gate").predict(Members(members=2), drawn(0)[0].images)
    with pytest.raises(InputError, match=r"ONE needs at least 2 samples in the joint batch.*larger"):
        make()(Members(), drawn(0, (1,)))
    with pytest.raises(InputError, match="ONE needs a network of several members"):
        make()(tiny_network().build().double(), big())


def big():
    return [Batch(torch.randn(2, 1, 28, 28, dtype=torch.float64), torch.tensor([0, 1]), torch.zeros(2))]
