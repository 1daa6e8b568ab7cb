import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tests.objectives.test_and_mask import (
    Single,
    adam_of,
    assert_continues,
    assert_half_precision_trains,
    drawn,
    in_single,
    moved,
)
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_rsc import Headed
from tests.reference import sagnet
from tests.reference.plain import new_adam
from torch import nn

from mirepoix.data import digits_task
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import ERM, SAM, _sagnet
from mirepoix.objectives._sagnet import SagNet, _with_content, _with_style
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError, Outputs


def small():
    return Headed(4)


def make(features=4, classes=3, **options):
    return SagNet(features=features, classes=classes, **options).double()


def draws(samples):
    """Those of one update, from the generator as it stands."""
    return [(torch.rand(samples, 1).flatten().tolist(), torch.randperm(samples).tolist()) for _ in range(3)]


def weights_of(*modules):
    return {
        name: parameter.detach().clone().requires_grad_()
        for module in modules
        for name, parameter in module.named_parameters()
    }


@pytest.mark.parametrize("weight", [0.1, 3.0, 0.0])
@pytest.mark.parametrize("sizes", [(2, 4, 3), (1, 3), (4,), (1,)])
def test_four_updates_are_those_of_the_reference(sizes, weight):
    model, objective = small(), make(sag_w_adv=weight)
    optimizer = adam_of(model, objective, lr=0.05)
    theta = weights_of(model, objective)
    adams = {player: new_adam() for player in sagnet.PLAYERS}
    for step in range(4):
        given = drawn(step, sizes)
        torch.manual_seed(step)
        theta, expected = sagnet.update(theta, adams, given, draws(sum(sizes)), weight=weight)
        torch.manual_seed(step)
        logged = objective.step(model, given, optimizer)
        assert logged.keys() == expected.keys()
        for name, value in expected.items():
            assert logged[name].item() == pytest.approx(value.item(), abs=1e-10)
            assert logged[name].shape == ()
            assert not logged[name].requires_grad
    parameters = {**dict(model.named_parameters()), **dict(objective.named_parameters())}
    for player, names in sagnet.PLAYERS.items():
        for name in names:
            state = optimizer.state[parameters[name]]
            torch.testing.assert_close(parameters[name], theta[name], rtol=0, atol=1e-10)
            torch.testing.assert_close(state["exp_avg"], adams[player]["first"][name], rtol=0, atol=1e-10)
            torch.testing.assert_close(state["exp_avg_sq"], adams[player]["second"][name], rtol=0, atol=1e-10)
            assert state["step"].item() == adams[player]["count"]


# Style and content


def some_features(samples=6, features=5):
    return torch.randn(samples, features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def order_of(samples=6):
    return torch.randperm(samples, generator=torch.Generator().manual_seed(3))


def test_a_random_style_has_the_moments_between_and_the_content_of_its_own():
    features, order = some_features(), order_of()
    share = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None]
    restyled = _with_style(features, share, order)
    mean = share * features.mean(1, keepdim=True) + (1 - share) * features[order].mean(1, keepdim=True)
    variance = share * features.var(1, keepdim=True) + (1 - share) * features[order].var(1, keepdim=True)
    torch.testing.assert_close(restyled.mean(1, keepdim=True), mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(restyled.var(1, keepdim=True), variance, rtol=1e-3, atol=0)
    for one, other in zip(restyled, features, strict=True):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1].item() == pytest.approx(1, abs=1e-12)


def test_random_content_keeps_the_moments_and_is_that_of_another():
    features, order = some_features(), order_of()
    mixed = _with_content(features, order)
    torch.testing.assert_close(mixed.mean(1), features.mean(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mixed.var(1), features.var(1), rtol=1e-3, atol=0)
    for one, other in zip(mixed, features[order], strict=True):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1].item() == pytest.approx(1, abs=1e-12)


def test_a_sample_exchanged_for_itself_stays():
    features = some_features()
    same = torch.arange(6)
    torch.testing.assert_close(_with_content(features, same), features, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        _with_style(features, torch.full((6, 1), 0.3), same), features, rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        _with_style(features, torch.ones(6, 1), order_of()), features, rtol=1e-12, atol=1e-12
    )


def test_no_gradient_flows_into_the_content_of_another_but_into_its_style():
    for function, flows in (
        (lambda z, o: _with_style(z, torch.zeros(6, 1), o), True),
        (_with_content, False),
    ):
        features = some_features().requires_grad_()
        order = torch.tensor([1, 2, 3, 4, 5, 0])
        (gradient,) = torch.autograd.grad(function(features, order)[0].square().sum(), features)
        assert gradient[0].any()
        assert gradient[1].any() == flows
        assert not gradient[2:].any()


def test_features_that_are_all_the_same_are_finite():
    features = torch.ones(3, 4, requires_grad=True)
    total = _with_style(features, torch.rand(3, 1), torch.tensor([1, 2, 0])).sum()
    (total + _with_content(features, torch.tensor([1, 2, 0])).sum()).backward()
    assert features.grad.isfinite().all()


def test_samples_in_another_order_with_the_draws_in_that_order_have_the_same_results_in_it():
    features, order, share = some_features(), order_of(), torch.rand(6, 1, dtype=torch.float64)
    again = torch.tensor([3, 0, 5, 1, 4, 2])
    place = again.argsort()  # where a sample is now
    same = place[order[again]]
    torch.testing.assert_close(
        _with_style(features[again], share[again], same), _with_style(features, share, order)[again]
    )
    torch.testing.assert_close(_with_content(features[again], same), _with_content(features, order)[again])


def test_the_order_of_domains_does_not_matter_without_draws(monkeypatch):
    monkeypatch.setattr(torch, "randperm", torch.arange)
    given = drawn(0)
    ends = [
        torch.cat([one.detach().flatten() for one in stepped(make(), batches)[0].parameters()])
        for batches in (
            given,
            given[::-1],
            [Batch(b.images.flip(0), b.labels.flip(0), b.domains) for b in given],
        )
    ]
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-10, atol=1e-12)


def stepped(objective, given, model=None):
    model = small() if model is None else model
    optimizer = torch.optim.SGD([*model.parameters(), *objective.trained_with_network()], lr=0.1)
    torch.manual_seed(0)
    logged = objective.step(model, given, optimizer)
    return model, logged


# What equals ERM


class OneStyle(Headed):
    """Features of which every sample has mean 0 and the same variance."""

    def forward(self, images):
        features = F.layer_norm(images.flatten(1) @ self.first.T, (len(self.first),), eps=1e-12)
        return Outputs(features, self.classifier(features))


@pytest.mark.parametrize(("model", "sizes"), [(small, (1,)), (lambda: OneStyle(4), (3, 4))])
def test_where_styles_do_not_differ_weight_zero_is_erm(model, sizes):
    one, two, objective = model(), model(), make(sag_w_adv=0)
    # Large, so that Adam does not divide rounding by itself.
    optimizers = adam_of(one, objective, eps=1e-2), adam_of(two, eps=1e-2)
    for step in range(3):
        given = drawn(step, sizes)
        logged = objective.step(one, given, optimizers[0])
        expected = ERM().step(two, given, optimizers[1])
        torch.testing.assert_close(logged["loss"], expected["loss"], rtol=1e-9, atol=1e-12)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert all(optimizers[0].state[parameter]["step"] == 3 for parameter in one.parameters())


def test_where_styles_differ_weight_zero_is_not_erm():
    given = drawn(0)
    assert not torch.allclose(moved(make(sag_w_adv=0), given, small()), moved(ERM(), given, small()))


# Who is trained when


def test_the_style_head_is_trained_and_every_part_of_the_network():
    model, objective = small(), make()
    before = copy.deepcopy([*model.parameters(), *objective.parameters()])
    assert objective.trained_with_network() == list(objective.style.parameters())
    stepped(objective, drawn(0), model)
    for one, other in zip([*model.parameters(), *objective.parameters()], before, strict=True):
        assert (one != other).all()


def test_who_moves_in_which_step():
    model, objective = small(), make()
    optimizer = torch.optim.Adam([*model.parameters(), *objective.parameters()])
    counts = []

    def count(*_):
        players = (model.first, model.classifier.weight, objective.style.weight)
        counts.append([int(optimizer.state.get(player, {}).get("step", 0)) for player in players])

    optimizer.register_step_post_hook(count)
    objective.step(model, drawn(0), optimizer)
    assert counts == [[1, 1, 0], [1, 1, 1], [2, 1, 1]]
    assert all(parameter.grad is None for parameter in [*model.parameters(), *objective.parameters()])


def test_the_third_step_makes_style_tell_less():
    class Third(SagNet):
        def forward(self, model, batches):
            return 0.0 * super().forward(model, batches)

    # Small steps of gradient descent in the featurizer alone, with the same draws.
    model, objective = small(), Third(features=4, classes=3, sag_w_adv=1.0).double()
    fixed = {"params": list(objective.parameters()), "lr": 0.0}
    optimizer = torch.optim.SGD([{"params": [model.first]}, fixed], lr=1e-3)
    values = []
    for _ in range(20):
        torch.manual_seed(0)
        values.append(objective.step(model, drawn(0), optimizer)["adversarial"].item())
    assert values == sorted(values, reverse=True)
    assert math.log(3) < values[-1] < values[0]


def test_gradients_of_an_earlier_step_are_forgotten():
    model, given = small(), drawn(0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    assert torch.equal(moved(make(), given, model), moved(make(), given, small()))


@pytest.mark.parametrize("scaled", [False, True])
def test_with_frozen_features_classifier_and_style_head_are_trained(scaled):
    model, objective = small(), make()
    model.first.requires_grad_(False)
    before = copy.deepcopy([*model.parameters(), *objective.parameters()])
    optimizer = adam_of(model, objective)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0) if scaled else None
    logged = objective.step(model, drawn(0), optimizer, scaler)
    changed = [
        not torch.equal(one, other)
        for one, other in zip([*model.parameters(), *objective.parameters()], before, strict=True)
    ]
    assert changed == [False, True, True, True, True]
    assert logged["adversarial"] >= math.log(3)


def test_forward_is_the_loss_of_the_classifier_on_random_styles():
    model, objective, given = small(), make(), drawn(0, (3, 2))
    theta = weights_of(model)
    samples = [(x, int(y)) for b in given for x, y in zip(b.images, b.labels, strict=True)]
    torch.manual_seed(4)
    shares, order = draws(5)[0]
    torch.manual_seed(4)
    loss = objective(model, given)
    assert loss.item() == pytest.approx(
        sagnet.classification(theta, samples, shares, order).item(), abs=1e-12
    )
    loss.backward()
    assert all(parameter.grad is None for parameter in objective.parameters())


# Precision


def test_half_precision():
    # Steps against each other: rounding decides more than elsewhere.
    assert_half_precision_trains(lambda: SagNet(features=6, classes=3), near=0.3)


def test_under_autocast_every_pass_sees_the_weights_of_the_step_before():
    ends = []
    for cached in (True, False):
        model, objective = Single(), SagNet(features=6, classes=3, sag_w_adv=5.0)
        optimizer = adam_of(model, objective, lr=0.1)
        for step in range(3):
            torch.manual_seed(step)
            with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached):
                objective.step(model, in_single(drawn(step)), optimizer)
        ends.append(torch.cat([p.detach().flatten() for p in (*model.parameters(), *objective.parameters())]))
    assert torch.equal(*ends)


def test_styles_and_the_style_head_are_not_in_half_precision(monkeypatch):
    objective, model = SagNet(features=6, classes=3), Single()
    seen = []
    parts = _sagnet._parts
    monkeypatch.setattr(_sagnet, "_parts", lambda features: seen.append(features) or parts(features))
    objective.style.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logged = objective.step(model, in_single(drawn(0)), adam_of(model, objective))
    assert len(seen) == 3 + 2 * 2
    assert {value.dtype for value in (*seen, *logged.values())} == {torch.float32}


def test_a_network_in_half_precision():
    model, objective = Single().bfloat16(), SagNet(features=6, classes=3)
    given = [Batch(b.images.bfloat16(), b.labels, b.domains) for b in drawn(0)]
    logged = objective.step(model, given, adam_of(model, objective))
    assert all(value.isfinite() for value in logged.values())


def test_the_scale_of_a_scaler_cancels():
    ends = []
    for scaler in (
        None,
        torch.amp.GradScaler("cpu", enabled=False),
        torch.amp.GradScaler("cpu", init_scale=2.0**10),
    ):
        model, objective = small(), make()
        optimizer = adam_of(model, objective)
        for step in range(3):
            torch.manual_seed(step)
            objective.step(model, drawn(step), optimizer, scaler)
        ends.append(torch.cat([p.detach().flatten() for p in (*model.parameters(), *objective.parameters())]))
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-8, atol=1e-9)


def test_a_scaler_skips_the_step_that_overflows_and_makes_the_next():
    class Overflowing(Headed):
        passes = 0

        def forward(self, images):
            self.passes += 1
            outputs = super().forward(images)
            if self.passes == 1:
                outputs.features.register_hook(lambda gradient: gradient * math.inf)
            return outputs

    model, objective = Overflowing(4), make()
    before = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    objective.step(model, drawn(0), adam_of(model, objective), scaler)
    assert scaler.get_scale() == 4.0
    assert torch.equal(model.classifier.weight, before.classifier.weight)
    assert not torch.equal(model.first, before.first)
    assert model.first.isfinite().all()


# State and training


def test_a_run_continues_with_the_same_bits():
    assert_continues(make, small)


def test_the_same_seed_gives_the_same_bits():
    given = drawn(0)
    ends = [moved(make(), given, small(), seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_the_head_depends_on_its_seed_alone():
    torch.manual_seed(1)
    one = make()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    two, other = make(), make(seed=1)
    assert torch.equal(one.style.weight, two.style.weight)
    assert not torch.equal(one.style.weight, other.style.weight)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


class Stopped(Exception):
    pass


def test_a_training_that_was_interrupted_ends_with_the_same_bits(tmp_path):
    split = digits_task(size=8).split("rotated_75")
    network = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8)
    theta = initial_weights(network)
    run = Run(steps=4, batch_size=4, learning_rate=1e-3, dropout=0.1, classifier_steps=1, collect="last")

    def stop(step, *_):
        if step == 3:
            raise Stopped

    def trained(workspace=None, on_progress=None, **options):
        objective = SagNet(features=16, classes=10, **options)
        trainer = Trainer(network, objective, Loop(device="cpu", save_every=0.0), on_progress=on_progress)
        return trainer.fit(theta, split, run, workspace=workspace).weights["last"]

    whole = trained()
    with pytest.raises(Stopped):
        trained(tmp_path, stop)
    continued = trained(tmp_path)
    assert all(torch.equal(value, continued[name]) for name, value in whole.items())
    other = trained(sag_w_adv=1.0)
    assert not torch.equal(whole["featurizer.conv4.weight"], other["featurizer.conv4.weight"])


# Corners


def test_a_class_alone_and_domains_without_classes():
    for label in (0, 2):
        given = [Batch(b.images, torch.full_like(b.labels, label), b.domains) for b in drawn(0)]
        model, logged = stepped(make(), given)
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert all(value.isfinite() for value in logged.values())


def test_a_model_without_classifier_is_refused():
    with pytest.raises(
        InputError, match=r"SagNet needs a model with a module `classifier` .* TwoLayers without"
    ):
        make(3)(TwoLayers(), drawn(0))


def test_other_features_and_classes_are_refused():
    with pytest.raises(InputError, match="SagNet was made for 5 features, got 4; make it with features=4"):
        make(5)(small(), drawn(0))
    with pytest.raises(InputError, match="SagNet was made for 4 classes, got 3; make it with classes=3"):
        make(classes=4)(small(), drawn(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sag_w_adv": -1}, r"a finite sag_w_adv of 0 or more, got -1; 0\.1 is usual"),
        ({"sag_w_adv": math.nan}, "a finite sag_w_adv"),
        ({"features": 1}, "a whole number of features from 2, got 1: the style .* and one has none"),
        ({"features": 2.5}, "a whole number of features from 2"),
        ({"features": True}, "a whole number of features from 2"),
        ({"classes": 0}, "a whole number of classes from 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=f"SagNet needs {message}"):
        make(**options)


def test_the_options_are_named():
    assert SagNet(features=4, classes=2).configuration() == {
        "sag_w_adv": 0.1,
        "features": 4,
        "classes": 2,
        "seed": 0,
    }
    options = {"sag_w_adv": 2.0, "features": 3, "classes": 5, "seed": 7}
    assert SagNet(**options).configuration() == options


def test_sam_refuses_it():
    with pytest.raises(InputError, match="SAM cannot wrap SagNet"):
        SAM(make())


def test_parameters_of_other_modules_stay():
    model, objective = small(), make()
    model.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))
    objective.step(model, drawn(0), adam_of(model, objective))
    assert model.idle.tolist() == [1.0, 1.0]
