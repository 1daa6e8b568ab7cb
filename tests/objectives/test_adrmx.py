import copy
import math

import pytest
import torch
from tests.objectives.test_and_mask import assert_half_precision_trains
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_dann import assert_moments, weights_of
from tests.objectives.test_irm import assert_training_continues, drawn, one_class
from tests.reference import adrmx
from tests.reference.dann import new_state
from tests.tiny import tiny_network
from torch import nn

from mirepoix.models import Network
from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._adrmx import ADRMX, _classifier, _contrast
from mirepoix.types import Batch, InputError

D = 8


def featurizer(seed=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(2, D), nn.Tanh())


def network(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(featurizer(), D, 3, **options).double()


def make(seed_of_featurizer=2, **options):
    options = {"mlp_width": 5, "mlp_depth": 3, "lr": 0.02, "domains": 3, "classes": 3, **options}
    options.setdefault("featurizer", featurizer(seed_of_featurizer))
    return ADRMX(features=D, **options).double()


def adam(model, objective, **options):
    parameters = [*model.parameters(), *objective.trained_with_network()]
    return torch.optim.Adam(parameters, **{"lr": 0.05, "weight_decay": 0.01, **options})


def all_of(model, objective):
    """What the optimizer of the network trains, by the names of the reference."""
    named = [(f"network.{name}", value) for name, value in model.named_parameters()]
    others = [
        (f"objective.{name}", value)
        for name, value in objective.named_parameters()
        if not name.startswith("discriminator")
    ]
    return [*named, *others]


def as_lists(given):
    labels = torch.cat([batch.labels for batch in given]).tolist()
    return labels, [domain for domain, batch in enumerate(given) for _ in batch.labels]


def joined(given):
    labels, domains = as_lists(given)
    return torch.tensor(labels), torch.tensor(domains)


# The formula


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize(
    ("weights", "k", "beta1", "turns", "sizes"),
    [
        ((1.0, 1.0, 0.75, 1.0), 2, 0.5, "DGDDG", (4, 2, 3)),
        ((0.3, 2.0, 1.5, 0.6), 1, 0.0, "GDGD", (1, 5, 3)),
    ],
)
def test_updates_follow_the_reference(weights, k, beta1, turns, sizes, parity):
    model = network()
    cnt, dclf, disc, rmxd = weights
    objective = make(
        cnt_lambda=cnt,
        dclf_lambda=dclf,
        disc_lambda=disc,
        rmxd_lambda=rmxd,
        d_steps_per_g_step=k,
        beta1=beta1,
        parity=parity,
    )
    owned, optimizer, state = objective.discriminator, adam(model, objective), new_state()
    theta = {name: value.detach().clone().requires_grad_() for name, value in all_of(model, objective)}
    discriminator = weights_of(owned.module)
    options = {"cnt": cnt, "dclf": dclf, "disc": disc, "rmxd": rmxd, "k": k, "beta1": beta1}
    options |= {"lr": 0.05, "weight_decay": 0.01, "lr_d": 0.02}
    taken = ""
    for seed in range(len(turns)):
        given = drawn(seed, sizes)
        labels, domains = as_lists(given)
        torch.manual_seed(seed)
        if parity:
            pairs = adrmx.released_pairs(labels, 3)
        else:
            keys = torch.rand(len(labels), len(labels)).tolist()
            pairs = adrmx.pair_of_each_class(keys, labels, domains, 3)
        assert pairs
        before = state["network"]["count"]
        theta, discriminator, expected = adrmx.update(theta, discriminator, state, given, pairs, **options)
        taken += "G" if state["network"]["count"] > before else "D"
        torch.manual_seed(seed)
        logged = objective.step(model, given, optimizer)
        assert set(logged) == set(expected)
        for name, value in expected.items():
            assert not logged[name].requires_grad
            torch.testing.assert_close(logged[name], value.detach(), rtol=0, atol=1e-10)
        for name, parameter in all_of(model, objective):
            torch.testing.assert_close(parameter.detach(), theta[name].detach(), rtol=0, atol=1e-10)
        for name, parameter in owned.module.named_parameters():
            torch.testing.assert_close(parameter.detach(), discriminator[name].detach(), rtol=0, atol=1e-10)
        assert_moments(all_of(model, objective), optimizer, state["network"])
        assert_moments(owned.module.named_parameters(), owned.optimizer, state["discriminator"])
    assert taken == turns
    assert objective.updates == len(turns)


def test_contrast_by_hand():
    # Two samples of a class along one axis, one of another class at a right angle; that one has no partner.
    features = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    near, far = math.exp(1 / 0.07) / 2, 0.5
    each = -math.log(near / (near + far + 1e-5) + 1e-5)
    value = _contrast(features, torch.tensor([1, 1, 0]))
    assert value.item() == pytest.approx(2 * each / (2 + 1), abs=1e-12)
    assert _contrast(features, torch.tensor([0, 1, 2])) == 0
    assert _contrast(features[:1], torch.tensor([0])) == 0


def test_the_contrast_of_a_vector_of_zeros_has_a_finite_gradient():
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    _contrast(features, torch.tensor([0, 0, 1])).backward()
    assert features.grad.isfinite().all()


def test_nothing_but_the_risk_of_the_network_is_erm():
    # The second classifier has no weight of its own in the loss, so here it is one that sees nothing.
    class Blind(nn.Module):
        def forward(self, features):
            return torch.zeros(len(features), 3, dtype=features.dtype)

    one, two = network(), network()
    objective = make(cnt_lambda=0, dclf_lambda=0, disc_lambda=0, rmxd_lambda=0, d_steps_per_g_step=1)
    objective.difference_classifier = Blind()
    optimizer = adam(one, objective)
    plain = torch.optim.Adam(two.parameters(), lr=0.05, weight_decay=0.01, betas=(0.5, 0.9))
    for seed in range(6):
        objective.step(one, drawn(seed), optimizer)
        if seed % 2 == 0:
            ERM().step(two, drawn(seed), plain)
    for parameter, other in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-10, atol=1e-12)


def test_the_classifiers_have_two_hidden_layers():
    shapes = [tuple(layer.weight.shape) for layer in _classifier(64, 5) if isinstance(layer, nn.Linear)]
    assert shapes == [(32, 64), (16, 32), (5, 16)]
    shapes = [tuple(layer.weight.shape) for layer in _classifier(1, 5) if isinstance(layer, nn.Linear)]
    assert shapes == [(1, 1), (1, 1), (5, 1)]


# Pairs


def test_pairs_are_of_one_class_and_two_domains_and_all_as_likely():
    labels = torch.tensor([0, 0, 1, 0, 2, 2, 1, 0])
    domains = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    objective = make(classes=4)
    allowed = [
        {
            (a, b)
            for a in range(8)
            for b in range(8)
            if labels[a] == labels[b] == label and domains[a] != domains[b]
        }
        for label in range(4)
    ]
    assert [len(pairs) for pairs in allowed] == [10, 2, 0, 0]
    draws, counts = 4000, {}
    torch.manual_seed(0)
    for _ in range(draws):
        one, other, present = objective._pairs(labels, domains)
        assert present.tolist() == [True, True, False, False]
        for label in range(2):
            pair = (one[label].item(), other[label].item())
            counts[label, pair] = counts.get((label, pair), 0) + 1
    assert set(counts) == {(label, pair) for label in range(2) for pair in allowed[label]}
    for (label, _), count in counts.items():
        share = 1 / len(allowed[label])
        assert abs(count - draws * share) < 5 * (draws * share * (1 - share)) ** 0.5


def test_parity_takes_places_in_the_class_for_places_in_the_batch():
    labels, domains = torch.tensor([2, 0, 1, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    torch.manual_seed(3)
    expected = adrmx.released_pairs(labels.tolist(), 3)
    torch.manual_seed(3)
    one, other, present = make(parity=True)._pairs(labels, domains)
    assert list(zip(one.tolist(), other.tolist(), strict=True)) == expected
    assert present.tolist() == [True, True]
    assert max(one.max(), other.max()) < 3  # the largest class has 3 samples


def test_parity_changes_the_remix_alone():
    model, given = network(), drawn(0, (6, 5, 4))
    parts = []
    for parity in (False, True):
        objective = make(parity=parity)
        torch.manual_seed(0)
        objective(model, given)
        parts.append(objective.parts)
    for name in parts[0]:
        assert torch.equal(parts[0][name], parts[1][name]) == (name != "remix")


def test_without_a_class_in_two_domains_there_is_no_remix():
    model, objective = network(), make(d_steps_per_g_step=1)
    given = [Batch(b.images, torch.full_like(b.labels, d), b.domains) for d, b in enumerate(drawn(0))]
    optimizer = adam(model, objective)
    assert objective.step(model, given, optimizer)["remix"] == 0
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_parity_without_a_class_of_two_samples_is_an_error():
    given = [
        Batch(b.images, torch.full_like(b.labels, d), b.domains) for d, b in enumerate(drawn(0, (1, 1, 1)))
    ]
    with pytest.raises(
        InputError, match=r"ADRMX with parity=True needs a class with at least 2 samples .*parity=False"
    ):
        make(parity=True)(network(), given)


# Turns and what is trained


def test_each_turn_changes_one_side_alone():
    model, objective = network(), make()
    optimizer = adam(model, objective)
    for seed, changed in enumerate(["D", "G", "D", "D", "G"]):
        before = copy.deepcopy([model.state_dict(), objective.state_dict()])
        objective.step(model, drawn(seed), optimizer)
        same = {}
        for old, new in zip(before, (model.state_dict(), objective.state_dict()), strict=True):
            for name, value in old.items():
                if not name.endswith("extra_state") and "optimizer_state" not in name:
                    side = "D" if name.startswith("discriminator") else "G"
                    same.setdefault(side, []).append(torch.equal(value, new[name]))
        assert all(same["D" if changed == "G" else "G"])
        assert not any(same[changed])


def test_the_optimizer_of_the_network_trains_all_but_the_discriminator():
    objective = make()
    names = {name for name, _ in objective.named_parameters()}
    trained = {
        name
        for name, parameter in objective.named_parameters()
        if any(parameter is other for other in objective.trained_with_network())
    }
    assert {name.split(".")[0] for name in trained} == {
        "featurizer",
        "difference_classifier",
        "domain_classifier",
    }
    assert {name.split(".")[0] for name in names - trained} == {"discriminator"}


def test_the_featurizer_is_copied():
    model = network()
    objective = make(featurizer=model.featurizer)
    before = copy.deepcopy(objective.featurizer.state_dict())
    for seed in range(2):
        objective.step(model, drawn(seed), adam(model, objective))
    other = make(featurizer=model.featurizer)
    assert not torch.equal(other.featurizer[1].weight, before["1.weight"])
    assert not torch.equal(objective.featurizer[1].weight, other.featurizer[1].weight)


def test_two_equal_featurizers_have_differences_of_zero_and_finite_updates():
    model = network()
    objective = make(featurizer=model.featurizer, lr=1e-3)
    optimizer = adam(model, objective, lr=1e-3)
    for seed in range(6):
        logged = objective.step(model, drawn(seed), optimizer)
        assert all(value.isfinite() for value in logged.values())
    assert all(parameter.isfinite().all() for parameter in (*model.parameters(), *objective.parameters()))


def test_batch_norm_and_dropout_are_those_of_the_network():
    def with_norm():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(2, D), nn.BatchNorm1d(D))

    for frozen in (True, False):
        model = Network(with_norm(), D, 3, frozen_batch_norm=frozen).double().train()
        objective = make(featurizer=model.featurizer).train()
        optimizer = adam(model, objective)
        for seed, learns in enumerate([False, True, False]):
            kept = objective.featurizer[2].running_mean.clone()
            objective.step(model, drawn(seed), optimizer)
            assert torch.equal(kept, objective.featurizer[2].running_mean) == (frozen or not learns)
    model = network(dropout=0.5)
    objective = make(featurizer=model.featurizer)
    seen = []
    objective.domain_classifier.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    objective(model, drawn(0))
    assert 0.2 < (seen[0] == 0).double().mean() < 0.8


def test_prediction_is_the_network_alone():
    model, objective = network(), make()
    images = drawn(0)[0].images
    torch.testing.assert_close(objective.predict(model, images).logits, model(images).logits, rtol=0, atol=0)


# Laws


def parts_of(given, objective, model):
    objective(model, given)
    return {name: value for name, value in objective.parts.items() if name != "remix"}


def test_the_order_of_samples_does_not_matter_but_for_the_draw():
    model, objective, given = network(), make(), drawn(0)
    other = [Batch(b.images.flip(0), b.labels.flip(0), b.domains) for b in given]
    torch.testing.assert_close(
        parts_of(given, objective, model), parts_of(other, objective, model), rtol=1e-11, atol=1e-13
    )


def test_domains_are_told_by_their_position():
    model, objective, given = network(), make(), drawn(0)
    turned = copy.deepcopy(objective)
    with torch.no_grad():
        for module in (turned.discriminator.module, turned.domain_classifier):
            for values in module[-1].parameters():
                values.copy_(values.flip(0))
    torch.testing.assert_close(
        parts_of(given, objective, model), parts_of(given[::-1], turned, model), rtol=1e-11, atol=1e-13
    )


# Corners


@pytest.mark.parametrize("sizes", [(1, 1, 1), (4, 1, 2)])
def test_small_batches_and_missing_classes_give_finite_updates(sizes):
    model, objective = network(), make(d_steps_per_g_step=1)
    for seed in range(2):
        logged = objective.step(model, one_class(drawn(seed, sizes)), adam(model, objective))
        assert all(value.isfinite() and value.ndim == 0 for value in logged.values())
    assert all(parameter.isfinite().all() for parameter in (*model.parameters(), *objective.parameters()))


def test_half_precision():
    class TanhOfLinear(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(5)
            self.layer = nn.Linear(2, 6)

        def forward(self, images):
            return torch.tanh(self.layer(images.flatten(1)))

    options = {"features": 6, "domains": 3, "classes": 3, "d_steps_per_g_step": 1, "lr": 1e-2}
    assert_half_precision_trains(lambda: ADRMX(featurizer=TanhOfLinear(), **options), near=0.3)


def test_the_scale_of_a_scaler_cancels():
    ends = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)):
        model, objective = network(), make()
        optimizer = adam(model, objective)
        for seed in range(4):
            torch.manual_seed(seed)
            objective.step(model, drawn(seed), optimizer, scaler)
        ends.append([*model.parameters(), *objective.parameters()])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-11)


def test_what_it_was_not_made_for_is_refused():
    with pytest.raises(InputError, match=r"ADRMX needs at least 2 source domains, .*nothing to tell apart"):
        make(domains=1)
    with pytest.raises(
        InputError, match="ADRMX was made for 3 source domains, got 2; make it with domains=2"
    ):
        make()(network(), drawn(0, (4, 4)))
    with pytest.raises(InputError, match="ADRMX was made for 4 classes, got 3; make it with classes=3"):
        make(classes=4)(network(), drawn(0))
    with pytest.raises(InputError, match="ADRMX was made for 4 features, got 8; make it with features=8"):
        ADRMX(featurizer=featurizer(), features=4, domains=3, classes=3).double()(network(), drawn(0))
    with pytest.raises(InputError, match=r"ADRMX needs a model with a module `classifier`.*got a TwoLayers"):
        make()(TwoLayers(), drawn(0))
    with pytest.raises(InputError, match="ADRMX needs a featurizer that is a module, got a str"):
        make(featurizer="resnet50")


def test_sam_refuses_it():
    with pytest.raises(InputError, match="SAM cannot wrap ADRMX"):
        SAM(make())


# State


def test_a_run_that_was_saved_and_loaded_ends_with_the_same_bits():
    ends = []
    for stop in (None, 2, 3):
        model, objective = network(), make()
        optimizer = adam(model, objective)
        for seed in range(6):
            if seed == stop:
                saved = copy.deepcopy([part.state_dict() for part in (model, objective, optimizer)])
                model, objective = network(), make()
                optimizer = adam(model, objective)
                for part, state in zip((model, objective, optimizer), saved, strict=True):
                    part.load_state_dict(state)
            torch.manual_seed(seed)
            objective.step(model, drawn(seed), optimizer)
        ends.append([part.state_dict() for part in (model, objective, optimizer)])
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=0, atol=0)


def test_a_training_that_was_interrupted_ends_with_the_same_bits(tmp_path):
    torch.manual_seed(0)
    second = tiny_network().build().featurizer
    assert_training_continues(ADRMX(featurizer=second, features=16, classes=2, domains=2), tmp_path)


def test_weights_depend_on_the_seed_alone():
    given = featurizer()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = make(featurizer=given)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    two, other = make(featurizer=given), make(featurizer=given, seed=1)
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)
    for (name, value), drawn_anew in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(value, drawn_anew) == name.startswith("featurizer")


# Options


def test_the_options_are_named():
    given = {"features": 4, "classes": 2, "domains": 3}
    defaults = {
        "cnt_lambda": 1.0,
        "dclf_lambda": 1.0,
        "disc_lambda": 0.75,
        "rmxd_lambda": 1.0,
        "d_steps_per_g_step": 2,
        "beta1": 0.5,
        "mlp_width": 256,
        "mlp_depth": 9,
        "mlp_dropout": 0.0,
        "lr": 3e-5,
        "seed": 0,
        "parity": False,
    }
    objective = ADRMX(featurizer=featurizer(), **given)
    assert objective.configuration() == {"featurizer": "Sequential", **given, **defaults}
    options = {
        name: value + 0.125 if isinstance(value, float) else value + 1 for name, value in defaults.items()
    }
    options["parity"] = True
    objective = ADRMX(featurizer=featurizer(), **given, **options)
    assert objective.configuration() == {"featurizer": "Sequential", **given, **options}
    assert objective.discriminator.optimizer.defaults["betas"] == (0.625, 0.9)
    assert objective.discriminator.optimizer.defaults["lr"] == 3e-5 + 0.125


@pytest.mark.parametrize("name", ["cnt_lambda", "dclf_lambda", "disc_lambda", "rmxd_lambda"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_weights_are_numbers_from_zero(name, value):
    with pytest.raises(InputError, match=f"ADRMX needs a finite {name} of 0 or more, got .* is usual"):
        make(**{name: value})


def test_the_learning_rate_is_positive():
    with pytest.raises(InputError, match="ADRMX needs a positive, finite lr, got 0; 3e-05 is usual"):
        make(lr=0)
