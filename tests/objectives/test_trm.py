import copy
import math

import pytest
import torch
from tests.objectives.test_and_mask import Single, in_single, reordered
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_irm import drawn
from tests.objectives.test_transfer import (
    Headed,
    as_theta,
    assert_continues,
    assert_half_precision,
    optimizer_of,
    weights,
)
from tests.reference import trm
from tests.reference.plain import new_adam
from tests.tiny import tiny_network, tiny_task

from mirepoix.models import initial_weights
from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._trm import TRM, _gradient, _solution
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError, Outputs


def make(domains=3, **options):
    return TRM(features=3, classes=3, domains=domains, **{"iters": 0, "cos_lambda": 0.3, **options}).double()


class Long(Headed):
    """With features so long that the series does not converge."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, images):
        features = self.scale * torch.tanh(images.flatten(1) @ self.first.T)
        return Outputs(features, self.classifier(features))


def state_of(objective):
    heads = [
        {name: value.detach().clone() for name, value in head.named_parameters()}
        for head in objective.heads.module
    ]
    return {"heads": heads, "alpha": objective.alpha.tolist(), "updates": 0, "adam": new_adam()}


def stepped(objective, given, updates=2, model=None, optimizer=None):
    model = Headed() if model is None else model
    optimizer = optimizer_of(model, objective) if optimizer is None else optimizer
    for _ in range(updates):
        logged = objective.step(model, given, optimizer)
    return model, logged


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize(
    ("options", "sizes", "scale"),
    [
        ({"iters": 2}, (4, 3, 2), 1.0),
        ({"class_balanced": True, "groupdro_eta": 0.7, "iters": 1}, (1, 4), 1.0),
        ({"cos_lambda": 0.05, "groupdro_eta": 0.4}, (3, 4), 6.0),
        ({"cos_lambda": 0.0, "groupdro_eta": 0.0}, (2, 3), 1.0),
    ],
)
def test_updates_are_those_of_the_reference(options, sizes, scale, parity):
    objective, model = make(len(sizes), parity=parity, **options), Long(scale)
    optimizer, theta, state = optimizer_of(model, objective), as_theta(model), state_of(objective)
    near = {"rtol": 0, "atol": 1e-10}
    terms = []
    for step in range(4):
        given = drawn(step, sizes)
        logged = objective.step(model, given, optimizer)
        theta, expected = trm.update(
            theta,
            state,
            given,
            scale=scale,
            cos_lambda=objective.cos_lambda,
            iters=objective.iters,
            groupdro_eta=objective.groupdro_eta,
            class_balanced=objective.class_balanced,
            parity=parity,
        )
        terms += state.get("terms", [])
        assert set(expected) == set(logged)
        for name, value in expected.items():
            assert not logged[name].requires_grad
            torch.testing.assert_close(logged[name], value.detach(), **near)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), theta[name].detach(), **near)
        for head, other in zip(objective.heads.module, state["heads"], strict=True):
            for name, parameter in head.named_parameters():
                torch.testing.assert_close(parameter.detach(), other[name].detach(), **near)
        alpha = torch.tensor(state["alpha"], dtype=torch.float64)
        torch.testing.assert_close(objective.alpha, alpha, **near)
    assert (min(terms) < 10) is (scale > 1)  # the series was ended early in the long one


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0, 3.0, 5.0, 40.0])
def test_the_series_ends_where_its_sum_is_large(scale, released):
    random = torch.Generator().manual_seed(3)
    weight, z = (torch.randn(n, 3, generator=random, dtype=torch.float64) for n in (3, 6))
    z = scale * z
    vector = torch.randn(3, 3, generator=random, dtype=torch.float64)
    bias, y = torch.tensor([0.1, -0.4, 0.2], dtype=torch.float64), [0, 1, 2, 1, 1, 0]
    matrix = trm.hessian(weight, bias, list(zip(z, y, strict=True)))
    expected, count = trm.neumann(matrix, vector.flatten(), released)
    result = _solution((weight, bias), z, vector, released=released)
    torch.testing.assert_close(result.flatten(), expected, rtol=1e-10, atol=1e-12)
    assert (count == 10) is (scale <= 2)
    assert result.isfinite().all()
    slopes = torch.autograd.functional.jacobian(
        lambda w: trm.risk(w, bias, list(zip(z, y, strict=True))), weight
    )
    torch.testing.assert_close(_gradient((weight, bias), z, torch.tensor(y)), slopes, rtol=1e-10, atol=1e-12)


def test_a_series_that_converges_is_the_solution():
    # One sample and one feature, two classes of probability 1/2: H is [[1, -1], [-1, 1]] / 4, with eigenvalue 1/2.
    head = (torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    one, vector = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    result = _solution(head, one, vector, released=False)
    torch.testing.assert_close(result, (2 - 2.0**-10) * vector)
    released = _solution(head, one, vector, released=True)
    torch.testing.assert_close(released, (1.5 - 2.0**-10) * vector)


def test_before_iters_it_is_erm():
    given = drawn(0)
    objective = make(iters=3)
    before = copy.deepcopy(objective.state_dict())
    ours, logged = stepped(objective, given, 3)
    erm, _ = stepped(ERM(), given, 3)
    assert torch.equal(weights(ours), weights(erm))
    assert logged["penalty"] == 0
    assert logged["loss"] == logged["nll"]
    assert all(
        torch.equal(objective.state_dict()[name], before[name]) for name in ("alpha", "heads.module.0.weight")
    )
    assert objective.step(ours, given, optimizer_of(ours, objective))["penalty"] > 0
    assert not torch.equal(objective.alpha, before["alpha"])


def test_heads_depend_on_their_seed_alone():
    torch.manual_seed(1)
    one = make()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(weights(make()), weights(one))
    assert not torch.equal(weights(make(seed=1)), weights(one))
    assert not torch.equal(one.heads.module[0].weight, one.heads.module[1].weight)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_all_parameters_move_and_the_network_does_not_hold_the_heads():
    objective = make()
    assert objective.trained_with_network() == []
    model, _ = stepped(objective, drawn(0), 1)
    for module, before in ((model, Headed()), (objective, make())):
        for own, other in zip(module.parameters(), before.parameters(), strict=True):
            assert (own != other).all()
            assert module is model or own.grad is None


def test_the_order_of_samples_does_not_matter():
    given = drawn(0)
    expected, logged = stepped(make(), given)
    model, log = stepped(make(), reordered(given))
    torch.testing.assert_close(weights(model), weights(expected), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(log, logged, rtol=1e-9, atol=1e-11)


def test_domains_with_their_heads_can_change_places():
    given, order = drawn(0), [2, 0, 1]
    one, other = make(groupdro_eta=0.5), make(groupdro_eta=0.5)
    for place, source in enumerate(order):
        other.heads.module[place].load_state_dict(one.heads.module[source].state_dict())
    expected, logged = stepped(one, given)
    model, log = stepped(other, [given[source] for source in order])
    torch.testing.assert_close(weights(model), weights(expected), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(log, logged, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(other.alpha, one.alpha[order][:, order], rtol=1e-9, atol=1e-11)


def test_alpha_grows_where_a_head_is_bad():
    objective = make(groupdro_eta=0.5)
    stepped(objective, drawn(0), 1)
    assert objective.alpha.diagonal().tolist() == [0, 0, 0]
    outside = objective.alpha[~torch.eye(3, dtype=torch.bool)]
    assert (outside > 0.5).all()
    equal = make(groupdro_eta=0)
    stepped(equal, drawn(0), 2)
    assert equal.alpha.tolist() == [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]


def test_parity_changes_the_gradient_by_the_new_alpha_alone_without_the_series():
    # The value is that of the old one; with eta 0 old and new are the same.
    for eta, same in ((0.0, True), (0.5, False)):
        ends = [
            stepped(make(cos_lambda=0, groupdro_eta=eta, parity=parity), drawn(0), 1)
            for parity in (False, True)
        ]
        torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-12, atol=0)
        assert torch.allclose(weights(ends[0][0]), weights(ends[1][0]), rtol=1e-12, atol=0) is same


def test_half_precision():
    def half():
        return TRM(features=6, classes=3, domains=3, iters=1)

    assert_half_precision(half, near=0.3)


def test_the_heads_are_not_in_half_precision():
    objective, model = TRM(features=6, classes=3, domains=3, iters=0), Single()
    seen = []
    for head in objective.heads.module:
        head.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(model, in_single(drawn(0)))
    assert {value.dtype for value in (*seen, loss)} == {torch.float32}
    assert len(seen) == 2 * 3 * 30


@pytest.mark.parametrize("class_balanced", [False, True])
def test_a_missing_class_and_batches_of_one(class_balanced):
    given = [Batch(b.images, torch.ones_like(b.labels), b.domains) for b in drawn(0, (1, 1, 3))]
    model, logged = stepped(make(class_balanced=class_balanced), given, 3)
    assert all(value.isfinite() for value in logged.values())
    assert weights(model).isfinite().all()


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
        ends.append(torch.cat([weights(model), weights(objective)]))
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-9, atol=1e-11)


def test_a_run_continues_with_the_same_bits():
    assert_continues(make)
    assert_continues(lambda: make(iters=4))  # saved before the transfer risk begins


def test_a_training_trains_the_network():
    split, network = tiny_task().split("domain_2"), tiny_network()
    start = initial_weights(network)
    run = Run(steps=3, batch_size=4, learning_rate=1e-3, collect="last")
    ends = []
    for iters in (1, 2):
        objective = TRM(features=16, classes=2, domains=2, iters=iters, class_balanced=True)
        ends.append(
            Trainer(network, objective, Loop(device="cpu"))(start, split, run)["featurizer.conv4.weight"]
        )
    assert not torch.equal(ends[0], start["featurizer.conv4.weight"])
    assert not torch.equal(ends[0], ends[1])


def test_other_numbers_of_domains_are_refused():
    with pytest.raises(
        InputError, match=r"TRM was made for 3 source domains, got 2; .*make it with domains=2"
    ):
        make(iters=5)(Headed(), drawn(0, (3, 3)))
    with pytest.raises(
        InputError, match=r"TRM was made for 3 source domains, got 1; .*With one there is ERM"
    ):
        make()(Headed(), drawn(0, (3,)))
    with pytest.raises(
        InputError, match=r"domains to be a whole number of domains from 2, got 1\. With one .* ERM"
    ):
        make(domains=1)


def test_other_networks_are_refused():
    with pytest.raises(
        InputError,
        match=r"made for 4 features and 3 classes, got 3 and 3; make it with features=3, classes=3",
    ):
        TRM(features=4, classes=3, domains=3)(Headed(), drawn(0))
    with pytest.raises(
        InputError, match=r"class_balanced=True needs .*`classifier`.*got a TwoLayers without"
    ):
        make(class_balanced=True, iters=5)(TwoLayers(), drawn(0))
    make()(TwoLayers(), drawn(0))  # without it none is needed
    with pytest.raises(InputError, match="SAM cannot wrap TRM"):
        SAM(make())


def test_the_options_are_named():
    assert TRM(features=4, classes=2, domains=3).configuration() == {
        "features": 4,
        "classes": 2,
        "domains": 3,
        "cos_lambda": 1e-4,
        "iters": 200,
        "groupdro_eta": 1e-2,
        "class_balanced": False,
        "parity": False,
        "seed": 0,
    }
    options = {
        "features": 5,
        "classes": 3,
        "domains": 4,
        "cos_lambda": 0.1,
        "iters": 7,
        "groupdro_eta": 0.2,
        "class_balanced": True,
        "parity": True,
        "seed": 8,
    }
    assert TRM(**options).configuration() == options


@pytest.mark.parametrize("name", ["cos_lambda", "groupdro_eta"])
@pytest.mark.parametrize("value", [-1, math.inf, math.nan])
def test_numbers_must_be_finite_and_not_negative(name, value):
    with pytest.raises(InputError, match=rf"TRM needs a finite {name} of 0 or more, got .*; .* is usual"):
        make(**{name: value})


@pytest.mark.parametrize("name", ["features", "classes", "domains"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_counts_must_be_counts(name, value):
    with pytest.raises(InputError, match=rf"TRM needs {name} to be a whole number of .* from [12], got"):
        TRM(**{"features": 3, "classes": 3, "domains": 3, name: value})


@pytest.mark.parametrize("iters", [-1, 1.5, True])
def test_iters_must_be_a_count(iters):
    with pytest.raises(InputError, match="TRM needs iters to be a whole number of updates from 0, got"):
        make(iters=iters)
