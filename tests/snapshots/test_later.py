import copy
import math

import numpy as np
import pytest
import torch
from tests.snapshots.later_samples import SPEC, adam_of, drawn, network, weights
from tests.tiny import tiny_network
from torch import nn

from mirepoix.checkpoints import fingerprint
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import ERM, SAM
from mirepoix.snapshots._later import LaterMember, check_number, check_weight, joint_batch, uncompiled
from mirepoix.store import key_of
from mirepoix.training import Trainer
from mirepoix.types import InputError


class Repelled(LaterMember):
    """The risk, and what a drawn member says."""

    def __init__(self, network, members):
        super().__init__(network, members)
        self.seen = []

    def configuration(self):
        return super().configuration()

    def forward(self, model, batches):
        images, labels = joint_batch(batches)
        nll = self.nll(model(images), labels)
        member = self.drawn()
        self.seen.append(next(place for place in range(len(self.members)) if self.member(place) is member))
        theirs = self.look(member, images)
        assert not theirs.logits.requires_grad
        return nll - 0.1 * (theirs.logits * nll).mean()


def made(count=2):
    return Repelled(SPEC, [weights(seed) for seed in range(1, count + 1)])


def test_members_are_copies_that_nothing_trains():
    given = [weights(1), weights(2)]
    objective, model = Repelled(SPEC, given), network()
    optimizer = adam_of(model, objective)
    for step in range(8):
        torch.manual_seed(step)
        objective.step(model, drawn(step), optimizer)
    assert set(objective.seen) == {0, 1}
    for place, theta in enumerate(given):
        for name, value in objective.member(place).state_dict().items():
            assert torch.equal(value, theta[name])
            assert value.data_ptr() != theta[name].data_ptr()
    assert objective.trained_with_network() == []
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert not any(parameter.requires_grad for parameter in objective.parameters())
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert known == {id(parameter) for parameter in model.parameters()}


def test_members_stay_in_evaluation_mode_and_have_no_dropout():
    spec = NetworkSpec(name="cifar_resnet20", classes=3, frozen_batch_norm=False)
    objective = Repelled(spec, [initial_weights(spec)])
    before = fingerprint(objective.state_dict())
    for mode in (objective.train(), SAM(objective).train().objective, copy.deepcopy(objective).train()):
        assert mode.training
        assert not any(module.training for module in mode.members.modules())
        mode.look(mode.member(0), torch.randn(4, 3, 8, 8))
        assert fingerprint(mode.state_dict()) == before  # no running statistic has moved
    assert all(module.p == 0 for module in objective.member(0).modules() if isinstance(module, nn.Dropout))
    assert not objective.eval().training


def test_members_are_part_of_what_a_result_is_made_of():
    keys = {
        key_of(Trainer(SPEC, objective).made_of())
        for objective in (made(1), made(2), Repelled(SPEC, [weights(5)]), Repelled(SPEC, []))
    }
    assert len(keys) == 4
    assert key_of(Trainer(SPEC, made(2)).made_of()) == key_of(Trainer(SPEC, made(2)).made_of())


def test_every_member_is_drawn_as_often_and_by_the_seed():
    objective, places = made(4), []
    with torch.random.fork_rng(devices=[]):
        for seed in range(400):
            torch.manual_seed(seed)
            member = objective.drawn()
            torch.manual_seed(seed)
            assert objective.drawn() is member
            places.append(next(place for place in range(4) if objective.member(place) is member))
    # Standard deviation of a count: sqrt(400 / 4 * 3 / 4) = 8.7.
    assert all(abs(places.count(place) - 100) < 35 for place in range(4))


def test_the_draw_leaves_the_dropout_of_the_network_as_it_is():
    plain = SPEC.build(dropout=0.5).train()
    images, labels = joint_batch(drawn(0))
    objective = made(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = ERM()(plain, drawn(0))
        torch.manual_seed(3)
        model = SPEC.build(dropout=0.5).train()
        torch.manual_seed(3)
        assert torch.equal(objective.nll(model(images), labels), expected)
        torch.manual_seed(3)
        found = objective(model, drawn(0))
    theirs = objective.look(objective.member(objective.seen[-1]), images).logits.mean()
    torch.testing.assert_close(found, expected * (1 - 0.1 * theirs))


def test_arrays_are_weights_too():
    arrays = {name: value.numpy() for name, value in weights(1).items()}
    for array in arrays.values():
        array.flags.writeable = False
    objective = Repelled(SPEC, [arrays])
    assert fingerprint(objective.state_dict()) == fingerprint(made(1).state_dict())
    assert isinstance(arrays["classifier.bias"], np.ndarray)


def test_pairs_are_by_name_also_of_a_compiled_network():
    objective, model = made(1), network()
    pairs = {name: (own, theirs) for name, own, theirs in objective.pairs(model, objective.member(0))}
    assert list(pairs) == [name for name, _ in model.named_parameters()]
    for name, (own, theirs) in pairs.items():
        assert own.data_ptr() == model.get_parameter(name).data_ptr()
        assert torch.equal(theirs, weights(1)[name])
    compiled = torch.compile(model, backend="eager")
    assert uncompiled(compiled) is model
    assert [name for name, _, _ in objective.pairs(compiled, objective.member(0))] == list(pairs)


def test_pairs_with_another_network_are_refused():
    objective = made(1)
    message = (
        r"Repelled compares weights, so the network in training must be that of its members, mnist_cnn: "
        r"'featurizer.conv1.weight' is of shape \(8, 1, 3, 3\) there and missing in the members"
    )
    with pytest.raises(InputError, match=message):
        list(objective.pairs(tiny_network().build(), objective.member(0)))
    wider = nn.ModuleDict({"featurizer": network().featurizer, "classifier": nn.Linear(4, 5).double()})
    with pytest.raises(
        InputError, match=r"'classifier.weight' is of shape \(5, 4\) there and of shape \(3, 4\)"
    ):
        list(objective.pairs(wider, objective.member(0)))


def without(theta, name):
    return {other: value for other, value in theta.items() if other != name}


@pytest.mark.parametrize(
    ("network", "members", "message"),
    [
        ("mnist_cnn", [], "Repelled: network must be a NetworkSpec, got 'mnist_cnn'"),
        (
            NetworkSpec(name="cifar_resnet20", classes=3, members=2),
            [],
            r"Repelled trains one member after the other, .* got a network with members=2, split_at=None and inputs=1",
        ),
        (NetworkSpec(name="cifar_resnet20", classes=3, inputs=2), [], "inputs=2; use network.one_member()"),
        (NetworkSpec(name="cifar_resnet20", classes=3, split_at="layer3"), [], "split_at='layer3'"),
        (SPEC, weights(1), r"Repelled: members must be a list of weights, got one mapping; write \[theta\]"),
        (SPEC, [weights(1), "theta"], "Repelled: member 1 must be weights, names to tensors, got a str"),
        (
            SPEC,
            [weights(1), without(weights(1), "classifier.bias")],
            r"member 1 is of another network: 'classifier.bias' is missing there and of shape \(3,\) in the network",
        ),
        (
            SPEC,
            [{**weights(1), "extra": torch.zeros(2)}],
            r"member 0 is of another network: 'extra' is of shape \(2,\) there and missing in the network",
        ),
        (
            SPEC,
            [{**weights(1), "classifier.weight": torch.zeros(5, 4)}],
            r"'classifier.weight' is of shape \(5, 4\) there and of shape \(3, 4\) in the network. Earlier members",
        ),
        (
            SPEC,
            [{**weights(1), "classifier.bias": torch.tensor([0.0, math.nan, 0.0])}],
            "member 0 holds NaN or infinity in 'classifier.bias'; a member that diverged is no anchor",
        ),
    ],
)
def test_what_cannot_be_held_is_refused(network, members, message):
    with pytest.raises(InputError, match=message):
        Repelled(network, members)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None])
def test_numbers_are_finite(value):
    with pytest.raises(InputError, match=r"^RTD needs alpha to be a finite number, got"):
        check_number("RTD", "alpha", value)


def test_weights_are_not_negative():
    assert check_weight("RTD", "alpha", 0) == 0.0
    assert check_number("RTD", "alpha", -3) == -3.0
    with pytest.raises(
        InputError, match=r"RTD needs alpha to be 0 or more, got -1\.0; 0 leaves its term out"
    ):
        check_weight("RTD", "alpha", -1)
