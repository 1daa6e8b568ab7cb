import math

import pytest
import torch
from tests.reference import weight_orthogonalisation as reference
from tests.snapshots.later_samples import SPEC, adam_of, assert_updates_are, drawn, network, weights
from torch import nn

from mirepoix.models import NetworkSpec
from mirepoix.objectives import ERM
from mirepoix.snapshots import WeightOrthogonalisation
from mirepoix.types import InputError

NAMES = {"all": list(weights(0)), "convolutions": ["featurizer.conv.weight"]}


@pytest.mark.parametrize("sizes", [(3, 2), (1,)])
@pytest.mark.parametrize("which", ["all", "convolutions"])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("alpha", [-3.16, 1, 31.6])
def test_updates_are_those_of_the_reference(alpha, relative, which, sizes):
    member, start = weights(1), weights(2) if relative else None
    objective = WeightOrthogonalisation(SPEC, [member], alpha=alpha, parameters=which, relative_to=start)

    def loss(theta, images, labels):
        return reference.weight_orthogonalisation(
            theta, member, start, images, labels, alpha=alpha, names=NAMES[which]
        )

    assert_updates_are(loss, objective, sizes)


def slope(objective, model):
    """The gradient of the term alone, flat."""
    difference = objective(model, drawn(0)) - ERM()(model, drawn(0))
    gradients = torch.autograd.grad(difference, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def test_the_gradient_is_orthogonal_to_the_weights_and_not_zero():
    model, objective = network(), WeightOrthogonalisation(SPEC, [weights(1)], alpha=10)
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    found = slope(objective, model)
    assert found.norm() > 0.1
    assert abs(found @ flat) < 1e-13 * found.norm() * flat.norm() * 100


def test_detached_the_term_has_no_gradient_and_the_same_value():
    model = network()
    plain = WeightOrthogonalisation(SPEC, [weights(1)], alpha=10)
    detached = WeightOrthogonalisation(SPEC, [weights(1)], alpha=10, detach=True)
    assert torch.equal(plain(model, drawn(0)), detached(model, drawn(0)))
    assert torch.equal(plain.parts["cos2"], detached.parts["cos2"])
    assert slope(detached, model).abs().max() < 1e-15
    one, other = network(), network()
    for step in range(3):
        detached.step(one, drawn(step), (first := adam_of(one, detached)))
        ERM().step(other, drawn(step), (second := adam_of(other, ERM())))
        assert first is not second
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_the_member_is_drawn_anew_in_every_step():
    members = [weights(seed) for seed in (1, 2, 3)]
    objective, model, found = WeightOrthogonalisation(SPEC, members, alpha=1), network(), []
    for step in range(40):
        torch.manual_seed(step)
        objective(model, drawn(0))
        found.append(objective.parts["cos2"].item())
    each = []
    for member in members:
        alone = WeightOrthogonalisation(SPEC, [member], alpha=1)
        alone(model, drawn(0))
        each.append(alone.parts["cos2"].item())
    assert set(found) == set(each)
    assert len(set(each)) == 3


def test_members_that_are_parallel_have_one_and_orthogonal_ones_zero():
    model, objective = network(1), WeightOrthogonalisation(SPEC, [weights(1)], alpha=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-3)
    objective(model, drawn(0))
    assert objective.parts["cos2"].item() == pytest.approx(1, abs=1e-12)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "classifier.weight":
                parameter.zero_()
            else:
                parameter.copy_(parameter[:, [1, 0, 3, 2]] * torch.tensor([1.0, -1.0, 1.0, -1.0]))
    objective(model, drawn(0))
    assert objective.parts["cos2"].item() == pytest.approx(0, abs=1e-25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_member_that_has_not_moved_from_the_start_has_no_direction(dtype):
    start = weights(2)
    objective = WeightOrthogonalisation(SPEC, [weights(1)], alpha=10, relative_to=start).to(dtype)
    model = network(2).to(dtype)
    batches = drawn(0, dtype=dtype)
    loss = objective(model, batches)
    assert objective.parts["cos2"] == 0
    assert loss == ERM()(model, batches)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():  # a step so small that its square would be lost
        for parameter in model.parameters():
            parameter.add_(1e-6 if dtype == torch.float32 else 1e-12)
    objective(model, batches).backward()
    assert objective.parts["cos2"] > 0
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    same = WeightOrthogonalisation(SPEC, [start], alpha=10, relative_to=start).to(dtype)
    same(model, batches)
    assert same.parts["cos2"] == 0


@pytest.mark.parametrize(("alpha", "larger"), [(1.0, False), (-1.0, True)])
def test_it_turns_weights_away_or_towards(alpha, larger):
    found = []
    for weight in (0.0, alpha):
        model, objective = network(), WeightOrthogonalisation(SPEC, [weights(1)], alpha=weight)
        with torch.no_grad():  # near the member, but not at it, where the gradient is 0
            for name, parameter in model.named_parameters():
                parameter.add_(weights(1)[name])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(20):
            objective.step(model, drawn(step, (10,)), optimizer)
        found.append(objective.parts["cos2"].item())
    assert (found[1] > found[0]) == larger
    assert abs(found[1] - found[0]) > 0.2


def test_without_members_it_is_the_risk():
    for start in (None, weights(2)):
        objective = WeightOrthogonalisation(SPEC, [], alpha=10, relative_to=start)
        assert torch.equal(objective(network(), drawn(0)), ERM()(network(), drawn(0)))
        assert set(objective.parts) == {"nll"}


def test_the_start_is_held_as_members_are():
    objective = WeightOrthogonalisation(SPEC, [weights(1)], alpha=1, relative_to=weights(2)).train()
    assert not objective.start.training
    assert objective.trained_with_network() == []
    assert not any(parameter.requires_grad for parameter in objective.parameters())
    assert any(name.startswith("start.") for name in objective.state_dict())


def test_the_options_are_named():
    made = WeightOrthogonalisation(SPEC, [weights(1)], alpha=-1)
    plain = {
        "network": SPEC.to_dict(),
        "alpha": -1.0,
        "parameters": "all",
        "relative": False,
        "detach": False,
    }
    assert made.configuration() == plain
    given = {"alpha": 2.0, "parameters": "convolutions", "detach": True}
    other = WeightOrthogonalisation(SPEC, [weights(1)], relative_to=weights(2), **given)
    assert other.configuration() == {**plain, **given, "relative": True}


class Dense(NetworkSpec):
    def build(self, *, dropout=0.0, seed=0):
        return nn.ModuleDict({"featurizer": nn.Flatten(), "classifier": nn.Linear(2, 3)})


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (SPEC, {"alpha": math.nan}, "WeightOrthogonalisation needs alpha to be a finite number, got nan"),
        (SPEC, {"alpha": -math.inf}, "WeightOrthogonalisation needs alpha to be a finite number, got -inf"),
        (SPEC, {"alpha": 1, "parameters": "conv"}, "parameters to be 'all' or 'convolutions', got 'conv'"),
        (
            SPEC,
            {"alpha": 1, "relative_to": {"classifier.bias": torch.zeros(3)}},
            "relative_to is of another network: 'featurizer.conv.weight' is missing there",
        ),
        (
            Dense(name="mnist_cnn", classes=3),
            {"alpha": 1, "parameters": "convolutions"},
            "mnist_cnn has no convolutions; use parameters='all'",
        ),
    ],
)
def test_options_out_of_range_are_refused(spec, options, message):
    with pytest.raises(InputError, match=message):
        WeightOrthogonalisation(spec, [], **options)
