import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_erm import Linear, batches
from torch import nn

from mirepoix.data import digits_task
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import CORAL, ERM, SAM, Mixup, Objective
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import InputError, Outputs


class Quadratic(Objective):
    """Half the sum of a_k w_k^2, in the weights of a model and, if asked, a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

    def forward(self, model, batches):
        return 0.5 * (model.weight.square().sum() + 3 * self.own.square().sum())


class Point(nn.Module):
    def __init__(self, *values, dtype=torch.float64):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(values, dtype=dtype))


def test_a_quadratic_by_hand():
    # g = (3, 0, 6 - 2) has norm 5 with the own parameter at 4/3: 3 * 4/3 = 4.
    model, objective = Point(3.0, 0.0), Quadratic()
    with torch.no_grad():
        objective.own.fill_(4 / 3)
    sam = SAM(objective, rho=0.5)
    optimizer = torch.optim.SGD([*model.parameters(), *sam.parameters()], lr=0.1)
    logged = sam.step(model, [], optimizer)
    # epsilon = 0.5 (3, 0, 4) / 5 = (0.3, 0, 0.4)
    expected = torch.tensor([3 - 0.1 * 3.3, 0.0], dtype=torch.float64)
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-14, atol=0)
    assert objective.own.item() == pytest.approx(4 / 3 - 0.1 * 3 * (4 / 3 + 0.4), rel=1e-14)
    assert logged["unperturbed_loss"].item() == pytest.approx(0.5 * (9 + 3 * (4 / 3) ** 2))
    assert logged["loss"].item() == pytest.approx(0.5 * (3.3**2 + 3 * (4 / 3 + 0.4) ** 2))
    assert not logged["loss"].requires_grad
    assert not logged["unperturbed_loss"].requires_grad


@pytest.mark.parametrize("objective", [ERM(), CORAL(3.0)])
@pytest.mark.parametrize("rho", [0.05, 1.0])
def test_a_step_is_descent_with_the_gradient_of_the_perturbed_weights(objective, rho):
    model, given = TwoLayers(), batches((4, 6))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    gradients = torch.autograd.grad(objective(model, given), list(model.parameters()))
    norm = math.sqrt(sum(value**2 for gradient in gradients for value in gradient.flatten().tolist()))
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, gradient in zip(shifted.parameters(), gradients, strict=True):
            parameter.add_(rho * gradient / norm)
    loss = objective(shifted, given)
    gradients = torch.autograd.grad(loss, list(shifted.parameters()))

    logged = SAM(objective, rho).step(model, given, torch.optim.SGD(model.parameters(), lr=0.1))
    assert logged["loss"].item() == pytest.approx(loss.item(), rel=1e-12)
    for parameter, old, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.1 * gradient, rtol=1e-12, atol=1e-14)


def test_the_weights_are_restored_bit_for_bit_before_the_optimizer_moves_them():
    random = torch.Generator().manual_seed(0)
    model = Point(*torch.randn(1000, generator=random).tolist(), dtype=torch.float32)
    before = model.weight.detach().clone()
    sam = SAM(Quadratic().float(), rho=3.7)
    at_step = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: at_step.append(model.weight.detach().clone()))
    sam.step(model, [], optimizer)
    assert torch.equal(at_step[0], before)
    epsilon = 3.7 * before / before.norm()
    assert not torch.equal((before + epsilon) - epsilon, before)  # what a subtraction would have left


def test_the_weights_come_back_when_the_second_pass_fails():
    class Failing(Quadratic):
        calls = 0

        def forward(self, model, batches):
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("out of memory")
            return super().forward(model, batches)

    model = Point(3.0, 4.0)
    before = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match="out of memory"):
        SAM(Failing(), 0.5).step(model, [], torch.optim.SGD(model.parameters(), lr=0.1))
    assert torch.equal(model.weight, before)


def test_only_parameters_of_the_optimizer_are_moved():
    model, given = TwoLayers(), batches((4, 6))
    model.first.requires_grad_(False)
    (gradient,) = torch.autograd.grad(ERM()(model, given), [model.last])
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        shifted.last.add_(0.5 * gradient / gradient.norm())  # the norm is that of the classifier alone
    first = model.first.detach().clone()
    logged = SAM(rho=0.5).step(model, given, torch.optim.SGD([model.last], lr=0.1))
    torch.testing.assert_close(logged["loss"], ERM()(shifted, given).detach(), rtol=1e-12, atol=0)
    assert torch.equal(model.first, first)


def test_parameters_without_a_gradient_are_left_out():
    model = Point(3.0, 4.0)
    idle = nn.Parameter(torch.ones(2, dtype=torch.float64))
    objective = Quadratic()
    objective.own.requires_grad_(False)
    SAM(objective, 0.5).step(model, [], torch.optim.SGD([model.weight, idle], lr=0.1))
    expected = torch.tensor([3 - 0.1 * 3.3, 4 - 0.1 * 4.4], dtype=torch.float64)
    torch.testing.assert_close(model.weight.detach(), expected)
    assert idle.tolist() == [1.0, 1.0]


def test_a_gradient_of_norm_zero_perturbs_nothing():
    model = Point(0.0, 0.0)
    objective = Quadratic()
    with torch.no_grad():
        objective.own.zero_()
    logged = SAM(objective, 0.5).step(
        model, [], torch.optim.SGD([*model.parameters(), *objective.parameters()], 0.1)
    )
    assert model.weight.tolist() == [0.0, 0.0]
    assert logged["loss"].item() == 0.0


def test_gradients_of_an_earlier_step_are_forgotten():
    model, other, given = Linear(), Linear(), batches()
    model.weight.grad = torch.full_like(model.weight, 1e6)
    SAM().step(model, given, torch.optim.SGD(model.parameters(), lr=0.1))
    SAM().step(other, given, torch.optim.SGD(other.parameters(), lr=0.1))
    assert torch.equal(model.weight, other.weight)


def test_forward_is_that_of_the_wrapped_objective():
    model, given = TwoLayers(), batches((3, 4))
    assert torch.equal(SAM(CORAL(7.0))(model, given), CORAL(7.0)(model, given))
    assert torch.equal(SAM()(model, given), ERM()(model, given))


def test_the_larger_rho_the_larger_the_loss_of_a_convex_objective():
    given = batches()
    losses = []
    for rho in (1e-6, 0.05, 0.1, 1.0):
        model = Linear()
        losses.append(
            SAM(rho=rho).step(model, given, torch.optim.SGD(model.parameters(), lr=0.1))["loss"].item()
        )
    assert losses == sorted(losses)
    assert losses[0] == pytest.approx(ERM()(Linear(), given).item(), abs=1e-4)


# Random draws and state


class Noisy(TwoLayers):
    def forward(self, images):
        features = F.dropout(torch.tanh(images.flatten(1) @ self.first.T), 0.5)
        return Outputs(features, features @ self.last.T)


@pytest.mark.parametrize(("objective", "kind"), [(ERM(), Noisy), (Mixup(1.0), TwoLayers)])
def test_both_passes_see_the_same_draws(objective, kind):
    model, given = kind(), batches((4, 6))
    torch.manual_seed(5)
    logged = SAM(objective, 1e-9).step(model, given, torch.optim.SGD(model.parameters(), lr=0.1))
    assert logged["loss"].item() == pytest.approx(logged["unperturbed_loss"].item(), abs=1e-7)
    torch.manual_seed(5)
    assert objective(kind(), given).item() == logged["unperturbed_loss"].item()


def test_the_same_seed_gives_the_same_bits():
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model, sam = Noisy(), SAM(Mixup())
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(3):
            sam.step(model, batches((4, 6)), optimizer)
        results.append(model.first.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


class Counting(ERM):
    """State in place, state replaced, and state that is first set in a forward pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("late", None)

    def forward(self, model, batches):
        loss = super().forward(model, batches) * (1 + self.count)
        self.count += 1
        self.mean = 0.5 * self.mean + 0.5 * loss.detach()
        self.late = loss.detach() if self.late is None else self.late + loss.detach()
        return loss


def test_the_state_of_the_wrapped_objective_moves_once_per_update():
    model, given, objective = Linear(), batches(), Counting()
    sam = SAM(objective)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = sam.step(model, given, optimizer)["loss"]
    assert objective.count.item() == 1
    assert objective.mean == 0.5 * first
    assert objective.late == first
    second = sam.step(model, given, optimizer)["loss"]
    assert objective.count.item() == 2
    assert objective.late == first + second


def test_the_state_of_the_wrapped_objective_survives_a_round_trip():
    sam = SAM(Quadratic(), 0.3)
    with torch.no_grad():
        sam.objective.own.fill_(9.0)
    assert list(sam.state_dict()) == ["objective.own"]
    other = SAM(Quadratic(), 0.3)
    other.load_state_dict(sam.state_dict())
    assert other.objective.own.item() == 9.0
    assert [parameter.item() for parameter in other.parameters()] == [9.0]


# Precision


def test_the_second_pass_under_autocast_sees_the_perturbed_weights():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, images):
            features = images.flatten(1).float()
            return Outputs(features, self.layer(features))

    torch.manual_seed(0)
    model, given = Wide(), batches()
    one = copy.deepcopy(model)
    plain = SAM(rho=1.0).step(one, given, torch.optim.SGD(one.parameters(), lr=0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = SAM(rho=1.0).step(model, given, torch.optim.SGD(model.parameters(), lr=0.1))
    assert plain["loss"] > plain["unperturbed_loss"] + 0.1
    torch.testing.assert_close(half["loss"], plain["loss"], rtol=0.02, atol=0.02)


def test_the_scale_of_a_scaler_cancels():
    one, two, given = TwoLayers(), TwoLayers(), batches()
    SAM(rho=0.5).step(one, given, torch.optim.SGD(one.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    SAM(rho=0.5).step(two, given, torch.optim.SGD(two.parameters(), lr=0.1), scaler)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_scaler_that_is_off_changes_nothing():
    one, two, given = Linear(), Linear(), batches()
    SAM().step(one, given, torch.optim.Adam(one.parameters()))
    SAM().step(two, given, torch.optim.Adam(two.parameters()), torch.amp.GradScaler("cpu", enabled=False))
    assert torch.equal(one.weight, two.weight)


class Overflowing(Objective):
    """Multiplies the loss by infinity in the passes named."""

    def __init__(self, *passes):
        super().__init__()
        self.passes, self.calls, self.seen = passes, 0, []

    def configuration(self):
        return {}

    def forward(self, model, batches):
        factor = math.inf if self.calls in self.passes else 1.0
        self.calls += 1
        self.seen.append(model.weight.detach().clone())
        return (model.weight * torch.tensor([factor, 1.0], dtype=torch.float64)).sum()


@pytest.mark.parametrize("passes", [(0,), (1,), (0, 1)])
def test_a_scaler_skips_a_step_when_either_gradient_overflows(passes):
    model = Point(1.0, 2.0)
    before = model.weight.detach().clone()
    objective = Overflowing(*passes)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SAM(objective, 0.5).step(model, [], optimizer, scaler)
    assert torch.equal(model.weight, before)
    assert scaler.get_scale() == 4.0
    if 0 in passes:
        assert torch.equal(objective.seen[1], before)  # nothing was perturbed, so no NaN reached batch norm
    SAM(objective, 0.5).step(model, [], optimizer, scaler)  # and the next one is made
    assert not torch.equal(model.weight, before)
    assert model.weight.isfinite().all()


def test_without_a_scaler_a_gradient_that_is_not_finite_ends_in_nan():
    model = Point(1.0, 2.0)
    SAM(Overflowing(0), 0.5).step(model, [], torch.optim.SGD(model.parameters(), lr=0.1))
    assert model.weight.isnan().any()


# In a training


class Stopped(Exception):
    pass


def test_a_training_that_was_interrupted_ends_with_the_same_bits(tmp_path):
    split = digits_task(size=8).split("rotated_75")
    network = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8)
    theta = initial_weights(network)
    run = Run(steps=4, batch_size=4, learning_rate=1e-3, dropout=0.3, collect="last")

    def stop_after_two(step, *_):
        if step == 3:
            raise Stopped

    def trained(objective, workspace=None, on_progress=None):
        trainer = Trainer(network, objective, Loop(device="cpu", save_every=0.0), on_progress=on_progress)
        return trainer.fit(theta, split, run, workspace=workspace).weights["last"]

    objective = SAM(Mixup())
    whole = trained(objective)
    with pytest.raises(Stopped):
        trained(objective, tmp_path, stop_after_two)
    continued = trained(objective, tmp_path)
    assert all(torch.equal(value, continued[name]) for name, value in whole.items())
    other = trained(SAM(Mixup(), rho=0.1))
    assert not all(torch.equal(value, other[name]) for name, value in whole.items())


# Options


def test_the_options_name_the_wrapped_objective():
    assert SAM().configuration() == {"objective": {"name": "mirepoix.objectives._erm.ERM"}, "rho": 0.05}
    assert SAM(Mixup(0.7), rho=0.2).configuration() == {
        "objective": {"name": "mirepoix.objectives._mixup.Mixup", "mixup_alpha": 0.7},
        "rho": 0.2,
    }


@pytest.mark.parametrize("rho", [0, -0.1, math.inf, math.nan])
def test_rho_must_be_positive(rho):
    with pytest.raises(InputError, match=r"SAM needs a positive, finite rho, got .*ERM is rho 0"):
        SAM(rho=rho)


def test_an_objective_with_its_own_step_is_refused():
    with pytest.raises(InputError, match="SAM cannot wrap SAM: it makes its own step"):
        SAM(SAM())


def test_it_predicts_as_the_wrapped_objective_does():
    class Shifted(ERM):
        def predict(self, model, images):
            outputs = model(images)
            return Outputs(outputs.features, outputs.logits + 1)

    model, (given, *_) = TwoLayers(), batches()
    assert torch.equal(SAM(Shifted()).predict(model, given.images).logits, model(given.images).logits + 1)
    assert torch.equal(SAM().predict(model, given.images).logits, model(given.images).logits)
