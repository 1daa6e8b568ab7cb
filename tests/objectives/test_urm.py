import copy
import math

import pytest
import torch
from tests.objectives.test_and_mask import (
    Single,
    adam_of,
    assert_continues,
    drawn,
    in_single,
    reordered,
)
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_rsc import Headed
from tests.reference import urm
from tests.reference.plain import new_adam
from torch import nn

from mirepoix.data import digits_task
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._urm import URM
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError, Outputs

KINDS = ["tanh", "relu", "sigmoid", "none"]


def small():
    return Headed(4)


def make(features=4, **options):
    return URM(features=features, **options).double()


def weights_of(module):
    return {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters()}


def draws(samples, features, smoothing, lowest):
    """Those of one update, from the generator as it stands."""

    def targets(target):
        if not smoothing:
            return [target] * samples
        away = smoothing * torch.rand(samples, 1).double().flatten()
        return (target - away if target else away).tolist()

    aims = targets(1.0)
    noise = lowest + (1 - lowest) * torch.rand(samples, features).double()
    return aims, list(noise), targets(1.0), targets(0.0)


@pytest.mark.parametrize(
    ("sizes", "weight", "activation", "smoothing", "optimizer", "hidden"),
    [
        ((2, 3, 1), 0.1, "tanh", 0.0, "adam", 1),
        ((2, 3), 2.0, "relu", 0.3, "adam", 2),
        ((1,), 0.5, "sigmoid", 1.0, "sgd", 1),
        ((3, 2), 0.5, "none", 0.1, "sgd", 0),
        ((3,), 0.0, "tanh", 0.0, "adam", 3),
    ],
)
def test_four_updates_are_those_of_the_reference(sizes, weight, activation, smoothing, optimizer, hidden):
    objective = make(
        urm_adv_lambda=weight,
        urm_generator_output=activation,
        urm_discriminator_label_smoothing=smoothing,
        urm_discriminator_optimizer=optimizer,
        urm_discriminator_hidden_layers=hidden,
        urm_discriminator_lr=0.02,
        weight_decay=0.03,
    )
    model, own = small(), objective.discriminator
    given_optimizer = adam_of(model, lr=0.05)
    theta, discriminator = weights_of(model), weights_of(own.module)
    adam, memory = new_adam(), new_adam() if optimizer == "adam" else {}
    lowest = -1.0 if activation in ("tanh", "none") else 0.0
    for step in range(4):
        given = drawn(step, sizes)
        torch.manual_seed(step)
        theta, discriminator, expected = urm.update(
            theta,
            adam,
            discriminator,
            memory,
            given,
            draws(sum(sizes), 4, smoothing, lowest),
            weight=weight,
            activation=activation,
            optimizer=optimizer,
            lr=0.02,
            decay=0.03,
        )
        torch.manual_seed(step)
        logged = objective.step(model, given, given_optimizer)
        assert logged.keys() == expected.keys()
        for name, value in expected.items():
            assert logged[name].item() == pytest.approx(value.item(), abs=1e-10)
            assert logged[name].shape == ()
            assert not logged[name].requires_grad
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, theta[name], rtol=0, atol=1e-10)
        torch.testing.assert_close(
            given_optimizer.state[parameter]["exp_avg"], adam["first"][name], rtol=0, atol=1e-10
        )
    for name, parameter in own.module.named_parameters():
        torch.testing.assert_close(parameter, discriminator[name], rtol=0, atol=1e-10)
        state = own.optimizer.state[parameter]
        if optimizer == "adam":
            torch.testing.assert_close(state["exp_avg_sq"], memory["second"][name], rtol=0, atol=1e-10)
        else:
            torch.testing.assert_close(state["momentum_buffer"], memory[name], rtol=0, atol=1e-10)


def test_one_sample_by_hand():
    # A discriminator that says 0.8 whatever it sees: BCE(D(z), 1) = log(1 / 0.8).
    objective = make(urm_adv_lambda=0.5)
    last = objective.discriminator.module[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(math.log(4))
    model = small()
    logged = objective.step(model, drawn(0, (1,)), adam_of(model))
    assert logged["penalty"].item() == pytest.approx(-math.log(0.8), rel=1e-12)
    assert logged["discriminator"].item() == pytest.approx(
        -math.log(0.8) - 0.5 * math.log(1 - 0.8), rel=1e-12
    )


@pytest.mark.parametrize(
    ("hidden", "widths"), [(0, [4, 100, 1]), (1, [4, 100, 100, 1]), (3, [4, *[100] * 4, 1])]
)
def test_the_layers_of_the_discriminator(hidden, widths):
    module = make(urm_discriminator_hidden_layers=hidden).discriminator.module
    linear = [layer for layer in module if isinstance(layer, nn.Linear)]
    assert [linear[0].in_features, *(layer.out_features for layer in linear)] == widths
    assert sum(isinstance(layer, nn.LeakyReLU) for layer in module) == len(linear) - 1


# What equals ERM


class Activated(Headed):
    """The same network that ends in the activation itself."""

    def __init__(self, activation):
        super().__init__(4)
        self.activation = activation

    def forward(self, images):
        features = self.activation(super().forward(images).features)
        return Outputs(features, self.classifier(features))


@pytest.mark.parametrize("kind", KINDS)
def test_weight_zero_is_erm_on_the_activated_features(kind):
    one = small()
    two = Activated(urm.ACTIVATIONS["none"] if kind == "none" else getattr(torch, kind))
    objective = make(urm_adv_lambda=0, urm_generator_output=kind)
    optimizers = adam_of(one), adam_of(two)
    for step in range(3):
        logged = objective.step(one, drawn(step), optimizers[0])
        expected = ERM().step(two, drawn(step), optimizers[1])
        torch.testing.assert_close(logged["loss"], expected["loss"], rtol=1e-12, atol=0)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["tanh", "relu", "sigmoid"])
def test_a_network_that_ends_in_the_activation_is_trained_alike_without_one_here(kind):
    # Up to the noise, whose range is that of tanh.
    one, two = small(), Activated(getattr(torch, kind))
    with_, without = make(urm_generator_output=kind), make(urm_generator_output="none")
    torch.testing.assert_close(with_(one, drawn(0)), without(two, drawn(0)), rtol=1e-12, atol=0)
    images = drawn(0)[0].images
    torch.testing.assert_close(with_.predict(one, images).logits, two(images).logits, rtol=1e-12, atol=0)
    torch.testing.assert_close(without.predict(two, images).logits, two(images).logits, rtol=0, atol=0)


# Who is trained when


def test_network_and_discriminator_are_trained_each_by_its_own_optimizer():
    model, objective = small(), make()
    assert objective.trained_with_network() == []
    before = copy.deepcopy([*model.parameters(), *objective.parameters()])
    objective.step(model, drawn(0), adam_of(model))
    for one, other in zip([*model.parameters(), *objective.parameters()], before, strict=True):
        assert not torch.equal(one, other)
    assert all(parameter.grad is None for parameter in objective.parameters())


def test_the_discriminator_learns_from_the_features_before_the_step_of_the_network():
    model, objective = small(), make()
    seen = []
    objective.discriminator.module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    expected = objective.predict(model, torch.cat([b.images for b in drawn(0)])).features
    objective.step(model, drawn(0), adam_of(model, lr=1.0))
    assert len(seen) == 3  # features, noise, features
    assert torch.equal(seen[0], expected)
    assert torch.equal(seen[2], expected)
    assert seen[0].requires_grad
    assert not seen[2].requires_grad


@pytest.mark.parametrize(("kind", "low"), [("tanh", -1), ("none", -1), ("relu", 0), ("sigmoid", 0)])
def test_the_noise_fills_the_range_of_the_activation(kind, low):
    model, objective = small(), make(urm_generator_output=kind)
    seen = []
    objective.discriminator.module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    torch.manual_seed(0)
    objective.step(model, drawn(0, (2000,)), adam_of(model))
    noise = seen[1]
    assert low <= noise.min() < low + 0.01
    assert 0.99 < noise.max() <= 1
    assert noise.mean().item() == pytest.approx((low + 1) / 2, abs=0.03)


def test_smoothed_targets_lie_beside_one_and_zero(monkeypatch):
    seen = []
    binary = nn.functional.binary_cross_entropy_with_logits

    def watched(logits, targets):
        seen.append(targets)
        return binary(logits, targets)

    monkeypatch.setattr(nn.functional, "binary_cross_entropy_with_logits", watched)
    model, objective = small(), make(urm_discriminator_label_smoothing=0.2)
    torch.manual_seed(0)
    objective.step(model, drawn(0, (500,)), adam_of(model))
    for targets, (low, high) in zip(seen, [(0.8, 1.0), (0.8, 1.0), (0.0, 0.2)], strict=True):
        assert low <= targets.min() < low + 0.01
        assert high - 0.01 < targets.max() <= high
    assert not torch.equal(seen[0], seen[1])


def test_the_discriminator_learns_to_tell_and_the_network_to_pass():
    model, given = small(), drawn(0, (60,))
    objective = make(urm_adv_lambda=1.0, urm_discriminator_lr=1e-2)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    torch.manual_seed(0)
    told = [objective.step(model, given, still)["discriminator"].item() for _ in range(60)]
    assert told[-1] < 0.8 * told[0]
    fixed = make(urm_adv_lambda=100.0, urm_discriminator_lr=1e-12)
    fixed.load_state_dict(objective.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    passed = [fixed.step(model, given, optimizer)["penalty"].item() for _ in range(60)]
    assert passed[-1] < 0.8 * passed[0]


def test_gradients_of_an_earlier_step_are_forgotten():
    ends = []
    for gradient in (None, 1e6):
        model, objective = small(), make()
        for parameter in (*model.parameters(), *objective.parameters()):
            parameter.grad = None if gradient is None else torch.full_like(parameter, gradient)
        torch.manual_seed(0)
        objective.step(model, drawn(0), adam_of(model))
        ends.append(torch.cat([p.detach().flatten() for p in (*model.parameters(), *objective.parameters())]))
    assert torch.equal(*ends)


def test_with_frozen_features_the_classifier_is_trained():
    model = small()
    model.first.requires_grad_(False)
    before = copy.deepcopy(model)
    make().step(model, drawn(0), adam_of(model))
    assert torch.equal(model.first, before.first)
    assert not torch.equal(model.classifier.weight, before.classifier.weight)


def test_the_order_of_samples_and_of_domains_does_not_matter():
    model, objective, given = small(), make(urm_adv_lambda=2.0), drawn(0)
    expected = objective(model, given)
    torch.testing.assert_close(objective(model, given[::-1]), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(objective(model, reordered(given)), expected, rtol=1e-12, atol=0)


# Prediction


def test_predictions_are_made_of_activated_features():
    model, images = small(), drawn(0)[0].images
    for kind in KINDS:
        outputs = make(urm_generator_output=kind).predict(model, images)
        expected = urm.ACTIVATIONS[kind](model(images).features)
        torch.testing.assert_close(outputs.features, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(outputs.logits, model.classifier(expected), rtol=1e-12, atol=1e-14)


# Precision


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind):
    ends = []
    for half in (False, True):
        model, objective = Single(), URM(features=6, urm_generator_output=kind, urm_adv_lambda=0.5)
        optimizer = adam_of(model, objective, lr=1e-2)
        seen = []
        objective.discriminator.module.register_forward_hook(
            lambda _, inputs, output, seen=seen: seen.extend([*inputs, output])
        )
        for step in range(3):
            given = in_single(drawn(step))
            if step == 2:
                given = [Batch(b.images, torch.ones_like(b.labels), b.domains) for b in given]
            torch.manual_seed(step)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                logged = objective.step(model, given, optimizer)
            assert all(value.isfinite() for value in logged.values())
        assert {value.dtype for value in (*seen, *logged.values())} == {torch.float32}
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    before = torch.cat([p.detach().flatten() for p in Single().parameters()])
    assert not torch.equal(*ends)
    assert (ends[0] - ends[1]).norm() < 0.2 * (ends[0] - before).norm()


def test_a_network_in_half_precision():
    model, objective = Single().bfloat16(), URM(features=6)
    given = [Batch(b.images.bfloat16(), b.labels, b.domains) for b in drawn(0)]
    outputs = objective.predict(model, given[0].images)
    assert (outputs.features.dtype, outputs.logits.dtype) == (torch.float32, torch.bfloat16)
    assert objective.step(model, given, adam_of(model))["loss"].isfinite()


def test_the_scale_of_a_scaler_cancels():
    ends = []
    for scaler in (
        None,
        torch.amp.GradScaler("cpu", enabled=False),
        torch.amp.GradScaler("cpu", init_scale=2.0**10),
    ):
        model, objective = small(), make()
        optimizer = adam_of(model)
        for step in range(3):
            torch.manual_seed(step)
            objective.step(model, drawn(step), optimizer, scaler)
        ends.append(torch.cat([p.detach().flatten() for p in (*model.parameters(), *objective.parameters())]))
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-8, atol=1e-10)


# State and training


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_run_continues_with_the_same_bits(optimizer):
    assert_continues(
        lambda: make(urm_discriminator_optimizer=optimizer, urm_discriminator_label_smoothing=0.1), small
    )


def test_the_discriminator_depends_on_its_seed_alone():
    torch.manual_seed(1)
    one = make()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    two, other = make(), make(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
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
        objective = URM(features=16, urm_discriminator_lr=1e-2, **options)
        trainer = Trainer(network, objective, Loop(device="cpu", save_every=0.0), on_progress=on_progress)
        return trainer.fit(theta, split, run, workspace=workspace).weights["last"]

    whole = trained()
    with pytest.raises(Stopped):
        trained(tmp_path, stop)
    continued = trained(tmp_path)
    assert all(torch.equal(value, continued[name]) for name, value in whole.items())
    other = trained(urm_adv_lambda=1.0)
    assert not torch.equal(whole["featurizer.conv4.weight"], other["featurizer.conv4.weight"])


# Corners


def test_a_model_without_classifier_is_refused_where_one_is_needed():
    with pytest.raises(
        InputError, match=r"URM needs a model with a module `classifier` .* TwoLayers without"
    ):
        make(3)(TwoLayers(), drawn(0))
    assert make(3, urm_generator_output="none")(TwoLayers(), drawn(0)).isfinite()


def test_other_features_are_refused():
    with pytest.raises(InputError, match="URM was made for 5 features, got 4; make it with features=4"):
        make(5)(small(), drawn(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"urm_adv_lambda": -1}, r"a finite urm_adv_lambda of 0 or more, got -1; 0\.1 is usual"),
        ({"urm_adv_lambda": math.nan}, "a finite urm_adv_lambda"),
        ({"weight_decay": -1}, "a finite weight_decay of 0 or more, got -1; 0 is usual"),
        (
            {"urm_discriminator_label_smoothing": 1.5},
            r"urm_discriminator_label_smoothing to be in \[0, 1\], got 1\.5",
        ),
        (
            {"urm_discriminator_optimizer": "rmsprop"},
            "urm_discriminator_optimizer to be 'adam' or 'sgd', got 'r",
        ),
        (
            {"urm_generator_output": "gelu"},
            "urm_generator_output to be 'tanh', 'relu', 'sigmoid', or 'none' .*, got 'gelu'",
        ),
        ({"urm_discriminator_lr": 0}, "a positive, finite urm_discriminator_lr, got 0; 5e-5 is usual"),
        (
            {"urm_discriminator_hidden_layers": -1},
            "urm_discriminator_hidden_layers to be a whole number from 0",
        ),
        ({"features": 0}, "features to be a whole number from 1, got 0"),
        ({"features": True}, "features to be a whole number from 1, got True"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=f"URM needs {message}"):
        make(**options)


def test_the_options_are_named():
    defaults = {
        "urm_adv_lambda": 0.1,
        "urm_discriminator_label_smoothing": 0.0,
        "urm_discriminator_optimizer": "adam",
        "urm_discriminator_hidden_layers": 1,
        "urm_generator_output": "tanh",
        "urm_discriminator_lr": 5e-5,
        "weight_decay": 0.0,
        "features": 4,
        "seed": 0,
    }
    assert URM(features=4).configuration() == defaults
    options = {
        "urm_adv_lambda": 0.2,
        "urm_discriminator_label_smoothing": 0.1,
        "urm_discriminator_optimizer": "sgd",
        "urm_discriminator_hidden_layers": 2,
        "urm_generator_output": "relu",
        "urm_discriminator_lr": 1e-3,
        "weight_decay": 0.5,
        "features": 3,
        "seed": 7,
    }
    assert URM(**options).configuration() == options


def test_sam_refuses_it():
    with pytest.raises(InputError, match="SAM cannot wrap URM"):
        SAM(make())
