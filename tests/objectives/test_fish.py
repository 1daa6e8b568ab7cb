import copy
import math

import pytest
import torch
from tests.objectives.test_and_mask import (
    LR,
    WEIGHT_DECAY,
    Overflowing,
    Single,
    adam_of,
    as_lists,
    assert_continues,
    assert_follows,
    assert_half_precision_trains,
    assert_same,
    assert_scaler_changes_nothing,
    drawn,
    in_single,
    moved,
    reordered,
    weights_of,
)
from tests.objectives.test_coral import TwoLayers
from tests.reference import fish
from tests.reference.complex_step import fresh
from tests.tiny import tiny_task

from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._fish import Fish
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import InputError


class Tracking(TwoLayers):
    """With buffers that a forward pass moves, like those of batch norm, and some that it does not."""

    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.tensor(7))
        self.register_buffer("level", torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("attention", torch.tensor([0.0, -math.inf]))
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, images):
        self.passes += 1
        self.level.copy_(0.75 * self.level + 0.25 * images.mean())
        self.ready.fill_(True)
        return super().forward(images)


def pass_over(buffers, domain):
    pixels = [value for x, _ in domain for value in x]
    return {
        "passes": buffers["passes"] + 1,
        "level": 0.75 * buffers["level"] + 0.25 * sum(pixels) / len(pixels),
    }


@pytest.mark.parametrize("meta_lr", [0.5, 0.05, 1.0])
@pytest.mark.parametrize("sizes", [(3, 5, 4), (1, 4), (6,)])
def test_updates_are_those_of_the_reference(meta_lr, sizes):
    assert_follows(Fish(meta_lr=meta_lr), fish.update, sizes, meta_lr=meta_lr)


@pytest.mark.parametrize("meta_lr", [0.5, 0.1, 1.0])
def test_buffers_go_part_of_the_way_and_counters_are_rounded_down(meta_lr):
    model, objective = Tracking(), Fish(meta_lr=meta_lr)
    optimizer, theta = adam_of(model), weights_of(model)
    memory, buffers = fresh(theta), {"passes": 7, "level": 1.0}
    for step in range(3):
        given = drawn(step)
        theta, memory, _, buffers = fish.update(
            theta, memory, as_lists(given), LR, WEIGHT_DECAY, meta_lr, buffers, pass_over
        )
        objective.step(model, given, optimizer)
        assert_same(theta, memory, optimizer, model)
        assert model.passes.item() == buffers["passes"]
        assert model.level.item() == pytest.approx(buffers["level"], abs=1e-12)
    assert model.passes.dtype == torch.int64
    assert model.passes.item() == {0.5: 10, 0.1: 7, 1.0: 16}[meta_lr]
    assert model.attention.tolist() == [0.0, -math.inf]
    assert model.ready.item() is True


def test_the_moments_are_those_of_all_inner_steps():
    model, objective = TwoLayers(), Fish()
    optimizer = adam_of(model)
    for step in range(2):
        objective.step(model, drawn(step), optimizer)
    assert optimizer.state[model.first]["step"].item() == 6


def test_the_whole_way_on_one_domain_is_erm():
    given = drawn(0, (6,))
    assert torch.equal(moved(Fish(meta_lr=1), given), moved(ERM(), given))


def test_the_whole_way_is_one_step_per_domain():
    one, two, given = TwoLayers(), TwoLayers(), drawn(0)
    Fish(meta_lr=1).step(one, given, adam_of(one))
    optimizer = adam_of(two)
    for batch in given:
        ERM().step(two, [batch], optimizer)
    assert torch.equal(one.first, two.first)
    assert torch.equal(one.last, two.last)


def test_a_small_step_increases_the_inner_product_of_gradients():
    # To the second order, the way from theta is that of the mean risk plus the gradient of the inner products.
    given = drawn(0, (4, 4))
    rate = 1e-4

    def gradient(model, batch, graph=False):
        parameters = list(model.parameters())
        parts = torch.autograd.grad(ERM()(model, [batch]), parameters, create_graph=graph)
        return torch.cat([part.flatten() for part in parts])

    start = TwoLayers()
    before = torch.cat([parameter.detach().flatten() for parameter in start.parameters()])
    inner = torch.dot(*(gradient(start, batch, graph=True) for batch in given))
    both = [sum(moved(Fish(meta_lr=1), order, lr=rate) - before for order in (given, given[::-1])) / 2][0]
    descent = -rate * sum(gradient(start, batch) for batch in given)
    product = torch.cat([part.flatten() for part in torch.autograd.grad(inner, list(start.parameters()))])
    torch.testing.assert_close((both - descent) / rate**2, product / 2, rtol=1e-3, atol=1e-5)


def test_the_order_of_samples_does_not_matter_and_that_of_domains_does():
    given = drawn(0)
    expected = moved(Fish(), given)
    torch.testing.assert_close(moved(Fish(), reordered(given)), expected, rtol=1e-12, atol=1e-14)
    assert (moved(Fish(), given[::-1]) - expected).norm() > 1e-5


def test_the_loss_is_the_mean_on_the_way_and_forward_the_one_before_it():
    model, given = TwoLayers(), drawn(0)
    expected = sum(ERM()(model, [batch]) for batch in given) / 3
    torch.testing.assert_close(Fish()(model, given), expected, rtol=1e-12, atol=0)
    logged = Fish().step(model, given, adam_of(model))
    assert set(logged) == {"loss"}
    assert 0 < abs(logged["loss"].item() - expected.item()) < 0.5


def test_frozen_weights_stay():
    model = TwoLayers()
    before = copy.deepcopy(model)
    model.first.requires_grad_(False)
    Fish(meta_lr=0.3).step(model, drawn(0), adam_of(model))
    assert torch.equal(model.first, before.first)
    assert not torch.equal(model.last, before.last)


def test_half_precision():
    assert_half_precision_trains(Fish)


def test_inner_passes_under_autocast_see_the_weights_of_the_last_inner_step():
    # With a step so long that half precision can tell.
    losses = []
    for half in (False, True):
        model = Single()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
            losses.append(Fish(meta_lr=1).step(model, in_single(drawn(0)), optimizer)["loss"].item())
    with torch.no_grad():
        unmoved = Fish()(Single(), in_single(drawn(0))).item()
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert abs(losses[0] - unmoved) > 0.2


def test_the_scale_of_a_scaler_cancels():
    assert_scaler_changes_nothing(Fish)


def test_a_scaler_skips_the_inner_step_that_overflows():
    model, scaler = Overflowing(), torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = adam_of(model)
    logged = Fish().step(model, drawn(0), optimizer, scaler)
    assert logged["loss"].isfinite()
    assert scaler.get_scale() == 4.0
    assert optimizer.state[model.first]["step"].item() == 2
    assert model.first.isfinite().all()


def test_a_run_continues_with_the_same_bits():
    assert_continues(Fish)
    assert_continues(lambda: Fish(meta_lr=0.1), Tracking)
    assert Fish().state_dict() == {}


class Stopped(Exception):
    pass


def test_a_training_that_was_interrupted_ends_with_the_same_bits(tmp_path):
    split = tiny_task().split("domain_2")
    network = NetworkSpec(name="cifar_resnet20", classes=2, channels=1, frozen_batch_norm=False)
    theta = initial_weights(network)
    run = Run(steps=3, batch_size=2, learning_rate=1e-3, collect="last")

    def stop_after_one(step, *_):
        if step == 2:
            raise Stopped

    def trained(objective, workspace=None, on_progress=None):
        trainer = Trainer(network, objective, Loop(device="cpu", save_every=0.0), on_progress=on_progress)
        return trainer.fit(theta, split, run, workspace=workspace).weights["last"]

    whole = trained(Fish())
    with pytest.raises(Stopped):
        trained(Fish(), tmp_path, stop_after_one)
    continued = trained(Fish(), tmp_path)
    assert all(torch.equal(value, continued[name]) for name, value in whole.items())
    assert not torch.equal(whole["classifier.weight"], theta["classifier.weight"])
    assert not torch.equal(whole["featurizer.bn1.running_mean"], theta["featurizer.bn1.running_mean"])


def test_the_option_is_named():
    assert Fish().configuration() == {"meta_lr": 0.5}
    assert Fish(meta_lr=0.1).configuration() == {"meta_lr": 0.1}


@pytest.mark.parametrize("meta_lr", [0, -0.1, 1.1, math.nan])
def test_meta_lr_must_be_a_part_of_the_way(meta_lr):
    with pytest.raises(InputError, match=r"Fish needs meta_lr .* in \(0, 1\], got .*; 0\.5 is usual"):
        Fish(meta_lr=meta_lr)


def test_sam_refuses_it():
    with pytest.raises(InputError, match="SAM cannot wrap Fish"):
        SAM(Fish())
