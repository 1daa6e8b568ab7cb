import copy
import math

import pytest
import torch
from tests.objectives.test_and_mask import Overflowing, Single, in_single, reordered
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_irm import drawn
from tests.reference import transfer
from tests.tiny import tiny_network, tiny_task
from torch import nn

from mirepoix.models import initial_weights
from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._transfer import Transfer
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError, Outputs

# Shared with the tests of other objectives that look at the classifier


class Headed(nn.Module):
    """Features of one layer, and a classifier with a bias."""

    def __init__(self, width=3):
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(torch.randn(width, 2, generator=random, dtype=torch.float64))
        self.classifier = nn.Linear(width, 3, dtype=torch.float64)
        for parameter in self.classifier.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64))

    def forward(self, images):
        features = torch.tanh(images.flatten(1) @ self.first.T)
        return Outputs(features, self.classifier(features))


def optimizer_of(model, objective, kind=torch.optim.Adam, **options):
    """What the trainer makes: without the parameters that have an optimizer of their own."""
    parameters = [*model.parameters(), *objective.trained_with_network()]
    return kind(parameters, **{"lr": 0.05, "weight_decay": 0.01, **options})


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def as_theta(model):
    return {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}


def assert_continues(make, updates=6):
    """A run that was saved and loaded into new objects ends with the same bits."""
    ends = []
    for interrupted in (False, True):
        model, objective = Headed(), make()
        optimizer = optimizer_of(model, objective)
        for step in range(updates):
            if interrupted and step == updates // 2:
                saved = copy.deepcopy([part.state_dict() for part in (model, objective, optimizer)])
                model, objective = Headed(), make()
                optimizer = optimizer_of(model, objective)
                for part, state in zip((model, objective, optimizer), saved, strict=True):
                    part.load_state_dict(state)
            objective.step(model, drawn(step), optimizer)
        ends.append({**model.state_dict(), **objective.state_dict()})
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def assert_half_precision(make, near):
    """Under autocast updates are finite and near those in full precision; also with one class alone."""
    ends = []
    for half in (False, True):
        model, objective = Single(), make()
        optimizer = optimizer_of(model, objective, lr=1e-2)
        for step in range(3):
            given = in_single(drawn(step))
            if step == 2:
                given = [Batch(b.images, torch.ones_like(b.labels), b.domains) for b in given]
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                logged = objective.step(model, given, optimizer)
            assert all(value.isfinite() and value.dtype == torch.float32 for value in logged.values())
        ends.append(weights(model))
        assert ends[-1].isfinite().all()
        assert weights(objective).isfinite().all()
    assert not torch.equal(ends[0], ends[1])
    assert (ends[0] - ends[1]).norm() < near * (ends[0] - weights(Single())).norm()


# Transfer


def make(**options):
    return Transfer(features=3, classes=3, **{"lr_d": 0.3, **options}).double()


def stepped(objective, given, updates=3, model=None, **options):
    model = Headed() if model is None else model
    optimizer = optimizer_of(model, objective, **options)
    for _ in range(updates):
        logged = objective.step(model, given, optimizer)
    return model, logged


PLAIN = {"kind": torch.optim.SGD, "weight_decay": 0}


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (4, 7, 2)),
        ({"t_lambda": 2.5, "delta": 0.2, "d_steps_per_g": 3}, (4, 7, 2)),
        ({"lr_d": 0.01, "d_steps_per_g": 1}, (1, 5)),
        ({}, (6,)),
        ({"gda": True, "t_lambda": 0.5, "delta": 0.4, "d_steps_per_g": 4}, (4, 3, 5)),
        ({"gda": True, "parity": True, "d_steps_per_g": 2}, (4, 3, 5)),
    ],
)
def test_updates_are_those_of_the_reference(options, sizes):
    objective, model, state = make(**options), Headed(), {}
    kind = torch.optim.SGD if objective.gda else torch.optim.Adam
    optimizer, theta = optimizer_of(model, objective, kind), as_theta(model)
    near = {"rtol": 0, "atol": 1e-10}
    for step in range(4):
        given = drawn(step, sizes)
        logged = objective.step(model, given, optimizer)
        theta, expected = transfer.update(
            theta,
            state,
            given,
            t_lambda=objective.t_lambda,
            delta=objective.delta,
            d_steps_per_g=objective.d_steps_per_g,
            lr_d=objective.lr_d,
            gda=objective.gda,
            trained=not objective.parity,
        )
        assert set(expected) == set(logged)
        for name, value in expected.items():
            assert not logged[name].requires_grad
            torch.testing.assert_close(logged[name], value.detach(), **near)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), theta[name].detach(), **near)
        for name, parameter in objective.adversary.module.named_parameters():
            torch.testing.assert_close(parameter.detach(), state["adversary"][name].detach(), **near)
        if kind is torch.optim.Adam:
            assert optimizer.state[model.first]["step"] == state["phi"]["count"] == 2 * (step + 1)
            assert optimizer.state[model.classifier.bias]["step"] == state["w"]["count"] == step + 1


def test_only_an_adversary_outside_the_ball_is_taken_back():
    ends = {}
    for delta in (0.2, 2.0):
        objective = make(delta=delta, lr_d=0.05)
        model, _ = stepped(objective, drawn(0), 1)
        ends[delta] = (weights(objective) - weights(model.classifier)).norm().item()
    assert ends[0.2] == pytest.approx(0.2, rel=1e-12)
    assert 0.2 < ends[2.0] < 2.0


@pytest.mark.parametrize("case", ["no weight", "one domain", "equal domains"])
def test_without_a_gap_plain_gradient_descent_is_that_of_erm(case):
    given = drawn(0, (5,)) if case == "one domain" else drawn(0)
    if case == "equal domains":
        given = [given[0]] * 3
    ours, logged = stepped(make(t_lambda=0.0 if case == "no weight" else 1.0), given, **PLAIN)
    erm, _ = stepped(ERM(), given, **PLAIN)
    torch.testing.assert_close(weights(ours), weights(erm), rtol=1e-14, atol=1e-14)
    if case != "no weight":
        assert logged["gap"] == logged["adversarial_gap"] == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_at_equal_risks_the_first_domain_counts(sign):
    def adversary(given):
        objective, model = make(d_steps_per_g=1), Headed()
        with torch.no_grad():
            model.classifier.weight.zero_()  # the label alone says what the risk is
            model.classifier.bias.copy_(sign * torch.tensor([0.0, 1.0, 2.0]))
        objective.step(model, given, torch.optim.SGD(model.parameters(), lr=0.0))
        return weights(objective)

    images = [batch.images for batch in drawn(0, (4, 4, 4))]
    labels = torch.tensor([0, 0, 2])  # largest risks for one sign, smallest for the other
    one, two, last = (Batch(x, y.expand(4), torch.zeros(4)) for x, y in zip(images, labels, strict=True))
    assert torch.equal(adversary([one, two, last]), adversary([one, last]))
    assert torch.equal(adversary([two, one, last]), adversary([two, last]))
    assert not torch.equal(adversary([one, last]), adversary([two, last]))


@pytest.mark.parametrize("delta", [0.0, 0.05, 100.0])
def test_the_adversary_stays_in_the_ball_around_the_classifier(delta):
    objective = make(delta=delta, lr_d=3.0)
    model = Headed()
    optimizer = optimizer_of(model, objective)
    for step in range(4):
        objective.step(model, drawn(step), optimizer)
        distance = (weights(objective) - weights(model.classifier)).norm().item()
        assert distance <= delta * (1 + 1e-12)
        assert (distance > 0) is (delta > 0)


def test_the_adversary_widens_the_gap():
    given = drawn(0)
    gaps = []
    for count in (1, 2, 5, 20):
        objective = make(d_steps_per_g=count, lr_d=0.05)
        _, logged = stepped(objective, given, 1)
        gaps.append(logged["adversarial_gap"].item())
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1]


def test_a_step_down_the_gap_moves_the_features_alone():
    given, model, objective = drawn(0), Headed(), make()
    other = copy.deepcopy(model)
    objective.step(model, given, optimizer_of(model, objective))
    optimizer = optimizer_of(other, ERM())
    ERM().step(other, given, optimizer)
    assert torch.equal(model.classifier.weight, other.classifier.weight)
    assert torch.equal(model.classifier.bias, other.classifier.bias)
    assert not torch.equal(model.first, other.first)


def test_the_order_of_samples_and_of_domains_does_not_matter():
    given = drawn(0)
    expected, logged = stepped(make(), given)
    for changed in (reordered(given), given[::-1]):
        objective = make()
        model, log = stepped(objective, changed)
        torch.testing.assert_close(weights(model), weights(expected), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(log, logged, rtol=1e-10, atol=1e-12)


def test_forward_is_the_risk_plus_the_gap_of_the_adversary():
    given, objective = drawn(0), make(t_lambda=0.7)
    model, _ = stepped(objective, given)
    expected = transfer.joint_risk(as_theta(model), given) + 0.7 * transfer.gap(
        as_theta(model), dict(objective.adversary.module.named_parameters()), given
    )
    torch.testing.assert_close(objective(model, given), expected, rtol=1e-12, atol=0)
    # Before the first update the adversary is the classifier.
    model = Headed()
    fresh = transfer.gap(as_theta(model), transfer.head_of(as_theta(model)), given)
    torch.testing.assert_close(make()(model, given) - ERM()(model, given), fresh, rtol=1e-12, atol=0)


def test_a_frozen_featurizer_stays_and_the_adversary_moves():
    model, objective = Headed(), make()
    before = copy.deepcopy(model)
    model.first.requires_grad_(False)
    optimizer = torch.optim.Adam(model.classifier.parameters(), lr=0.05)
    objective.step(model, drawn(0), optimizer, torch.amp.GradScaler("cpu", init_scale=8.0))
    assert torch.equal(model.first, before.first)
    assert not torch.equal(model.classifier.weight, before.classifier.weight)
    assert not torch.equal(objective.adversary.module.weight, model.classifier.weight)


def test_all_parameters_move_and_the_network_does_not_hold_the_adversary():
    objective = make()
    assert objective.trained_with_network() == []
    model, _ = stepped(objective, drawn(0), 1, weight_decay=0)
    for own, other in zip(model.parameters(), Headed().parameters(), strict=True):
        assert (own != other).all()
    for own, other in zip(objective.parameters(), model.classifier.parameters(), strict=True):
        assert (own != other).all()


def test_released_gda_trains_the_adversary_alone():
    for parity in (True, False):
        objective = make(gda=True, parity=parity)
        model, _ = stepped(objective, drawn(0), kind=torch.optim.SGD)
        assert torch.equal(weights(model), weights(Headed())) is parity
        assert not torch.equal(weights(objective), weights(model.classifier))


def test_parity_changes_nothing_without_gda():
    ends = [weights(stepped(make(parity=parity), drawn(0))[0]) for parity in (False, True)]
    assert torch.equal(*ends)


def test_gda_refuses_an_optimizer_with_other_rules():
    with pytest.raises(
        InputError, match=r'gda=True needs torch.optim.SGD, got Adam; use Run\(optimizer="sgd", momentum=0\)'
    ):
        stepped(make(gda=True), drawn(0))


def test_half_precision():
    assert_half_precision(lambda: Transfer(features=6, classes=3, lr_d=0.1), near=0.3)


def test_the_adversary_is_not_in_half_precision():
    objective, model = Transfer(features=6, classes=3), Single()
    seen = []
    objective.adversary.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(model, in_single(drawn(0)))
    assert {value.dtype for value in (*seen, loss)} == {torch.float32}


def test_under_autocast_each_pass_sees_the_weights_as_they_are():
    given = in_single(drawn(0))
    gaps = []
    for half in (False, True):
        model, objective = Single(), Transfer(features=6, classes=3)
        optimizer = torch.optim.SGD(model.parameters(), lr=30.0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            gaps.append(objective.step(model, given, optimizer)["gap"].item())
    unmoved = Transfer(features=6, classes=3).step(
        Single(), given, torch.optim.SGD(Single().parameters(), lr=0.0)
    )
    assert gaps[1] == pytest.approx(gaps[0], rel=0.1)
    assert abs(gaps[0] - unmoved["gap"].item()) > 0.3 * gaps[0]


def test_the_scale_of_a_scaler_cancels():
    ends = []
    for scaler in (
        None,
        torch.amp.GradScaler("cpu", enabled=False),
        torch.amp.GradScaler("cpu", init_scale=2.0**10),
    ):
        model, objective = Headed(), make()
        optimizer = optimizer_of(model, objective)
        for step in range(3):
            objective.step(model, drawn(step), optimizer, scaler)
        ends.append(weights(model))
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-9, atol=1e-11)


def test_a_scaler_skips_the_step_that_overflows_alone():
    class Wide(Headed, Overflowing):
        def __init__(self):
            Headed.__init__(self)
            self.first_pass = True

        def forward(self, images):
            outputs = Headed.forward(self, images)
            if self.first_pass:
                self.first_pass = False
                outputs.logits.register_hook(lambda gradient: gradient * math.inf)
            return outputs

    model, objective, scaler = Wide(), make(), torch.amp.GradScaler("cpu", init_scale=8.0)
    objective.step(model, drawn(0), optimizer_of(model, objective), scaler)
    assert torch.equal(weights(model.classifier), weights(Headed().classifier))
    assert not torch.equal(model.first, Headed().first)
    assert model.first.isfinite().all()
    assert scaler.get_scale() == 4.0


def test_a_run_continues_with_the_same_bits():
    assert_continues(make)
    model, objective = Headed(), make()
    stepped(objective, drawn(0), 2, model)
    other = make()
    other.load_state_dict(objective.state_dict())
    assert other.updates == 2
    assert torch.equal(weights(other), weights(objective))


def test_a_training_trains_network_and_adversary():
    task, network = tiny_task(), tiny_network()
    objective = Transfer(features=16, classes=2)
    start = initial_weights(network)
    run = Run(steps=3, batch_size=4, learning_rate=1e-3, collect="last")
    split = task.split("domain_2")
    end = Trainer(network, objective, Loop(device="cpu"))(start, split, run)
    assert not torch.equal(end["featurizer.conv4.weight"], start["featurizer.conv4.weight"])
    run = Run(steps=2, batch_size=4, learning_rate=1e-3, collect="last", optimizer="sgd", momentum=0)
    gda = Transfer(features=16, classes=2, gda=True)
    end = Trainer(network, gda, Loop(device="cpu"))(start, split, run)
    assert not torch.equal(end["featurizer.conv4.weight"], start["featurizer.conv4.weight"])


def test_building_one_draws_nothing():
    before = torch.get_rng_state()
    objective = Transfer(features=4, classes=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert not weights(objective).any()


def test_models_without_such_a_classifier_are_refused():
    with pytest.raises(
        InputError, match=r"linear layer `classifier` with a bias.*got a TwoLayers without one"
    ):
        make().step(TwoLayers(), drawn(0), torch.optim.Adam(TwoLayers().parameters()))
    with pytest.raises(
        InputError,
        match=r"made for 4 features and 3 classes, got a classifier of 3 and 3; make it with features=3",
    ):
        Transfer(features=4, classes=3)(Headed(), drawn(0))
    with pytest.raises(InputError, match=r"SAM cannot wrap Transfer"):
        SAM(make())


def test_the_options_are_named():
    assert Transfer(features=4, classes=2).configuration() == {
        "features": 4,
        "classes": 2,
        "t_lambda": 1.0,
        "delta": 2.0,
        "d_steps_per_g": 10,
        "lr_d": 1e-3,
        "gda": False,
        "parity": False,
    }
    options = {
        "features": 5,
        "classes": 3,
        "t_lambda": 0.1,
        "delta": 0.2,
        "d_steps_per_g": 3,
        "lr_d": 0.4,
        "gda": True,
        "parity": True,
    }
    assert Transfer(**options).configuration() == options


@pytest.mark.parametrize("name", ["t_lambda", "delta", "lr_d"])
@pytest.mark.parametrize("value", [-1, math.inf, math.nan])
def test_numbers_must_be_finite_and_not_negative(name, value):
    with pytest.raises(
        InputError, match=rf"Transfer needs a finite {name} of 0 or more, got .*; .* is usual"
    ):
        make(**{name: value})


@pytest.mark.parametrize("name", ["features", "classes", "d_steps_per_g"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_counts_must_be_counts(name, value):
    with pytest.raises(InputError, match=rf"Transfer needs {name} to be a whole number of .* from 1, got"):
        Transfer(**{"features": 3, "classes": 3, name: value})
