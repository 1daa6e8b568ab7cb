import copy
import math

import pytest
import torch
from tests.objectives.test_and_mask import assert_continues, assert_half_precision_trains
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_irm import assert_training_continues, drawn, one_class, shuffled
from tests.reference import dann
from torch import nn

from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._dann import CDANN, DANN
from mirepoix.types import Batch, InputError, Outputs

SMALL = {"features": 3, "domains": 3, "mlp_width": 5, "lr_d": 0.02}
BOTH = pytest.mark.parametrize("kind", [DANN, CDANN])


def make(kind=DANN, **options):
    options = {**SMALL, **options}
    if kind is CDANN:
        options.setdefault("classes", 3)
    return kind(**options).double()


def adam(model, **options):
    return torch.optim.Adam(model.parameters(), **{"lr": 0.05, "weight_decay": 0.01, **options})


def weights_of(module):
    return {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters()}


def assert_moments(parameters, optimizer, memory):
    for name, parameter in parameters:
        if not memory["count"]:
            assert parameter not in optimizer.state
            continue
        moments = optimizer.state[parameter]
        assert moments["step"] == memory["count"]
        torch.testing.assert_close(moments["exp_avg"], memory["first"][name], rtol=0, atol=1e-10)
        torch.testing.assert_close(moments["exp_avg_sq"], memory["second"][name], rtol=0, atol=1e-10)


# The formula


@BOTH
@pytest.mark.parametrize(
    ("k", "lambda_", "grad_penalty", "beta1", "wd_d", "depth", "turns"),
    [
        (1, 1.0, 0.0, 0.5, 0.0, 3, "GDGD"),
        (2, 0.3, 0.7, 0.0, 0.01, 2, "DGDDG"),
        (3, 2.0, 3.0, 0.5, 0.1, 4, "DDGD"),
    ],
)
def test_updates_follow_the_reference(kind, k, lambda_, grad_penalty, beta1, wd_d, depth, turns):
    model = TwoLayers()
    objective = make(
        kind,
        lambda_=lambda_,
        d_steps_per_g_step=k,
        grad_penalty=grad_penalty,
        beta1=beta1,
        weight_decay_d=wd_d,
        mlp_depth=depth,
        seed=4,
    )
    owned = objective.discriminator
    optimizer, state = adam(model), dann.new_state()
    theta, discriminator = weights_of(model), weights_of(owned.module)
    options = {"lambda_": lambda_, "k": k, "grad_penalty": grad_penalty, "beta1": beta1}
    options |= {"lr": 0.05, "weight_decay": 0.01, "lr_d": 0.02, "wd_d": wd_d}
    taken = ""
    for seed in range(len(turns)):
        given = drawn(seed)
        before = state["network"]["count"]
        theta, discriminator, expected = dann.update(theta, discriminator, state, given, **options)
        taken += "G" if state["network"]["count"] > before else "D"
        logged = objective.step(model, given, optimizer)
        assert set(logged) == set(expected)
        for name, value in expected.items():
            assert not logged[name].requires_grad
            torch.testing.assert_close(logged[name], value.detach(), rtol=0, atol=1e-10)
        for module, weights in ((model, theta), (owned.module, discriminator)):
            for name, parameter in module.named_parameters():
                torch.testing.assert_close(parameter.detach(), weights[name].detach(), rtol=0, atol=1e-10)
        assert_moments(model.named_parameters(), optimizer, state["network"])
        assert_moments(owned.module.named_parameters(), owned.optimizer, state["discriminator"])
    assert taken == turns
    assert objective.updates == len(turns)


def test_class_weights_by_hand():
    objective = make(CDANN)
    errors = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    # Three samples of class 0, one of class 2: 1/9 each and 1/3; class 1 is missing, so the sum is 2/3.
    value = objective.average(errors, torch.tensor([0, 2, 0, 0]))
    assert value.item() == pytest.approx(13 / 9 + 2 / 3, abs=1e-12)
    # No larger label in the batch: the class is not counted.
    assert objective.average(errors, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(3 / 4 + 3, abs=1e-12)


@BOTH
def test_penalty_zero_is_erm_after_as_many_turns_of_the_network(kind):
    one, two = TwoLayers(), TwoLayers()
    objective = make(kind, lambda_=0, grad_penalty=0.5)
    optimizer, plain = adam(one), adam(two, betas=(0.5, 0.9))
    for seed in range(6):
        objective.step(one, drawn(seed), optimizer)
        if seed % 2 == 0:
            ERM().step(two, drawn(seed), plain)
    for parameter, other in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-12, atol=1e-14)


@BOTH
def test_forward_is_the_loss_of_the_network_in_either_turn(kind):
    model, given = TwoLayers(), drawn(0)
    objective = make(kind, d_steps_per_g_step=2, grad_penalty=0.5, lambda_=3.0)
    for _ in range(2):
        value = objective(model, given).detach()
        parts = dict(objective.parts)
        logged = objective.step(model, given, adam(model))
        torch.testing.assert_close(logged["loss"], value, rtol=1e-12, atol=0)
        torch.testing.assert_close(value, parts["nll"] - 3 * parts["discriminator"], rtol=1e-12, atol=0)


def test_the_network_hides_and_the_discriminator_finds():
    # Domains shifted apart along one axis, classes told by the other.
    def update(seed):
        random = torch.Generator().manual_seed(seed)
        given = []
        for domain in range(2):
            images = torch.randn(40, 1, 1, 2, generator=random, dtype=torch.float64)
            labels = (images[:, 0, 0, 1] > 0).long()
            images[:, 0, 0, 0] += 4 * domain - 2
            given.append(Batch(images, labels, torch.full((40,), domain)))
        return given

    ends = {}
    for lambda_ in (0.0, 1.0):
        model = TwoLayers()
        objective = make(domains=2, lambda_=lambda_, lr_d=0.01, mlp_width=16)
        optimizer = adam(model, lr=0.01, weight_decay=0)
        accuracies = [
            objective.step(model, update(seed), optimizer)["domain_accuracy"].item() for seed in range(240)
        ]
        ends[lambda_] = sum(accuracies[-40:]) / 40
    assert ends[0.0] > 0.95
    assert ends[1.0] < 0.8


# Turns


class WithStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.featurizer = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.classifier = nn.Linear(3, 3)
        self.double()

    def forward(self, images):
        features = self.featurizer(images)
        return Outputs(features, self.classifier(features))


@BOTH
def test_each_turn_changes_one_player_alone(kind):
    model, objective = WithStatistics(), make(kind, d_steps_per_g_step=2, grad_penalty=0.5)
    optimizer = adam(model)
    for seed, changed in enumerate(["D", "G", "D", "D", "G"]):
        network = copy.deepcopy(model.state_dict())
        adversary = copy.deepcopy(objective.discriminator.state_dict())
        moments = copy.deepcopy(optimizer.state_dict()["state"])
        objective.step(model, drawn(seed), optimizer)
        moved = [
            any(not torch.equal(value, part.state_dict()[name]) for name, value in before.items())
            for part, before in ((model, network), (objective.discriminator, adversary))
        ]
        assert moved == [changed == "G", changed == "D"]
        if changed == "D":
            torch.testing.assert_close(optimizer.state_dict()["state"], moments, rtol=0, atol=0)
        assert all(p.requires_grad and p.grad is None for p in objective.parameters())


@BOTH
def test_all_that_it_owns_is_trained_and_none_of_it_by_the_optimizer_of_the_network(kind):
    model, objective = TwoLayers(), make(kind)
    before = copy.deepcopy(objective)
    for seed in range(4):
        objective.step(model, drawn(seed), adam(model))
    for (name, one), other in zip(objective.named_parameters(), before.parameters(), strict=True):
        assert not torch.equal(one, other), name
    assert objective.trained_with_network() == []
    assert not torch.equal(model.first, TwoLayers().first)


def test_betas_are_set_on_groups_that_have_some():
    model, objective = TwoLayers(), make(beta1=0.25)
    optimizer = adam(model)
    objective.step(model, drawn(0), optimizer)
    assert optimizer.param_groups[0]["betas"] == (0.25, 0.9)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    objective.step(model, drawn(1), plain)
    objective.step(model, drawn(2), plain)
    assert "betas" not in plain.param_groups[0]


@BOTH
def test_a_featurizer_that_is_not_trained_now(kind):
    model = TwoLayers()
    model.first.requires_grad_(False)
    objective = make(kind, grad_penalty=1.0)
    optimizer = torch.optim.Adam([model.last], lr=0.05)
    for seed in range(2):
        assert objective.step(model, drawn(seed), optimizer)["loss"].isfinite()
    assert torch.equal(model.first, TwoLayers().first)
    assert not torch.equal(model.last, TwoLayers().last)


# Laws


@BOTH
def test_the_order_of_samples_does_not_matter(kind):
    model, objective = TwoLayers(), make(kind, grad_penalty=0.4)
    given = drawn(0)
    other = shuffled(given, lambda n: list(range(n - 1, -1, -1)))
    torch.testing.assert_close(objective(model, given), objective(model, other), rtol=1e-12, atol=0)


@BOTH
def test_domains_are_told_by_their_position(kind):
    model, objective = TwoLayers(), make(kind)
    given = drawn(0)
    renamed = [Batch(b.images, b.labels, b.domains + 7) for b in given]
    assert torch.equal(objective(model, given), objective(model, renamed))
    # In another order they have the outputs of the discriminator in that order.
    turned = copy.deepcopy(objective)
    with torch.no_grad():
        for values in list(turned.discriminator.module.perceptron[-1].parameters()):
            values.copy_(values.flip(0))
    torch.testing.assert_close(objective(model, given), turned(model, given[::-1]), rtol=1e-12, atol=0)


def test_without_differences_of_classes_the_conditional_one_is_the_other():
    model = TwoLayers()
    given = [Batch(b.images, torch.arange(6) % 3, b.domains) for b in drawn(0, (6, 6, 6))]
    one, two = make(grad_penalty=0.5), make(CDANN, grad_penalty=0.5)
    two.discriminator.module.perceptron.load_state_dict(one.discriminator.module.perceptron.state_dict())
    with torch.no_grad():
        two.discriminator.module.embedding.weight.zero_()
    torch.testing.assert_close(one(model, given), two(model, given), rtol=1e-12, atol=0)


# Corners


@BOTH
@pytest.mark.parametrize("sizes", [(1, 1, 1), (4, 1, 2)])
def test_small_batches_and_missing_classes_give_finite_updates(kind, sizes):
    model, objective = TwoLayers(), make(kind, grad_penalty=1.0)
    for seed in range(2):
        logged = objective.step(model, one_class(drawn(seed, sizes)), adam(model))
        assert all(value.isfinite() and value.ndim == 0 for value in logged.values())
    assert all(parameter.isfinite().all() for parameter in (*model.parameters(), *objective.parameters()))


@BOTH
def test_half_precision(kind):
    options = {"features": 6, "domains": 3, "grad_penalty": 0.5, "lr_d": 1e-2}
    options |= {"classes": 3} if kind is CDANN else {}
    assert_half_precision_trains(lambda: kind(**options))


@BOTH
def test_the_scale_of_a_scaler_cancels(kind):
    ends = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)):
        model, objective = TwoLayers(), make(kind, grad_penalty=0.5)
        optimizer = adam(model)
        for seed in range(4):
            objective.step(model, drawn(seed), optimizer, scaler)
        ends.append([*model.parameters(), *objective.parameters()])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-11)


@BOTH
def test_one_domain_is_refused(kind):
    with pytest.raises(
        InputError, match=rf"^{kind.__name__} needs at least 2 source domains, .*nothing to tell apart, got 1"
    ):
        make(kind, domains=1)


@BOTH
def test_what_it_was_not_made_for_is_refused(kind):
    with pytest.raises(InputError, match=r"was made for 3 source domains, got 2; make it with domains=2\.$"):
        make(kind)(TwoLayers(), drawn(0, (4, 4)))
    with pytest.raises(InputError, match=r"was made for 4 features, got 3; make it with features=3\.$"):
        make(kind, features=4)(TwoLayers(), drawn(0))


def test_another_number_of_classes_is_refused():
    with pytest.raises(InputError, match=r"CDANN was made for 5 classes, got 3; make it with classes=3\.$"):
        make(CDANN, classes=5)(TwoLayers(), drawn(0))


def test_sam_refuses_it():
    with pytest.raises(InputError, match="SAM cannot wrap DANN"):
        SAM(make())


# State


@BOTH
@pytest.mark.parametrize("k", [1, 2])
def test_a_run_that_was_saved_and_loaded_ends_with_the_same_bits(kind, k):
    assert_continues(lambda: make(kind, d_steps_per_g_step=k, grad_penalty=0.3))


def test_a_training_that_was_interrupted_ends_with_the_same_bits(tmp_path):
    # The network of that test has 16 features, 2 classes and, with one domain left out, 2 sources.
    assert_training_continues(CDANN(features=16, classes=2, domains=2, mlp_dropout=0.2), tmp_path)


@BOTH
def test_weights_depend_on_the_seed_alone(kind):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = make(kind)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    two, other = make(kind), make(kind, seed=1)
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)
    for (name, value), drawn_anew in zip(one.named_parameters(), other.parameters(), strict=True):
        assert not torch.equal(value, drawn_anew), name


# Options


def test_the_options_are_named():
    common = {
        "lambda_": 1.0,
        "d_steps_per_g_step": 1,
        "grad_penalty": 0.0,
        "beta1": 0.5,
        "mlp_width": 256,
        "mlp_depth": 3,
        "mlp_dropout": 0.0,
        "lr_d": 5e-5,
        "weight_decay_d": 0.0,
        "seed": 0,
    }
    given = {"features": 4, "domains": 3}
    assert DANN(**given).configuration() == {**common, **given}
    assert CDANN(**given, classes=2).configuration() == {**common, **given, "classes": 2}
    options = {name: value + 0.25 for name, value in common.items() if isinstance(value, float)}
    options |= {"d_steps_per_g_step": 2, "mlp_width": 8, "mlp_depth": 4, "seed": 3, **given}
    assert DANN(**options).configuration() == options
    assert CDANN(**options, classes=2).configuration() == {**options, "classes": 2}
    assert DANN(**options).discriminator.optimizer.defaults["betas"] == (0.75, 0.9)


@pytest.mark.parametrize("name", ["features", "domains", "classes", "d_steps_per_g_step", "mlp_width"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, math.nan, math.inf])
def test_counts_are_whole_numbers(name, value):
    least = 2 if name == "domains" else 1
    with pytest.raises(InputError, match=f"^CDANN needs {name} to be a whole number from {least}, got"):
        make(CDANN, **{name: value})


def test_the_discriminator_has_two_layers_at_least():
    with pytest.raises(InputError, match="DANN needs mlp_depth to be a whole number from 2, got 1"):
        make(mlp_depth=1)


@pytest.mark.parametrize("name", ["lambda_", "grad_penalty", "weight_decay_d"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_weights_are_numbers_from_zero(name, value):
    with pytest.raises(InputError, match=f"^DANN needs a finite {name} of 0 or more, got .*; [01] is usual"):
        make(**{name: value})


@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_the_learning_rate_is_positive(value):
    with pytest.raises(InputError, match=r"DANN needs a positive, finite lr_d, got .*; 5e-05 is usual"):
        make(lr_d=value)


@pytest.mark.parametrize("name", ["beta1", "mlp_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1, math.nan])
def test_shares_are_below_one(name, value):
    with pytest.raises(InputError, match=rf"DANN needs {name} to be in \[0, 1\), got"):
        make(**{name: value})
