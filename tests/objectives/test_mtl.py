import math

import pytest
import torch
import torch.nn.functional as F
from tests.objectives.test_and_mask import (
    Single,
    adam_of,
    assert_continues,
    assert_half_precision_trains,
    in_single,
    reordered,
)
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_irm import assert_training_continues, drawn, one_class, value
from tests.reference import mtl
from tests.reference.plain import new_adam
from tests.tiny import tiny_network, tiny_task
from torch import nn

from mirepoix.models import initial_weights
from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._mtl import MTL
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import InputError


def make(domains=3, width=3, **options):
    return MTL(features=width, classes=3, domains=domains, **options).double()


def assert_near(one, other, tolerance=1e-10):
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def theta_of(*modules):
    return {
        name: weight.detach().clone().requires_grad_()
        for module in modules
        for name, weight in module.named_parameters()
    }


def sum_of_risks(model, given):
    return sum(ERM()(model, [batch]) for batch in given)


# The formula


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("ema", [0.99, 0.3, 1.0])
@pytest.mark.parametrize("sizes", [(4, 7, 2), (1, 5), (3,)])
def test_updates_follow_the_reference(sizes, ema, parity):
    model, objective = TwoLayers(), make(len(sizes), mtl_ema=ema, parity=parity)
    optimizer = adam_of(model, objective, lr=0.05)
    theta, state = theta_of(model, objective), {"adam": new_adam()}
    for seed in range(4):
        given = drawn(seed, sizes)
        torch.manual_seed(seed)
        noise = [torch.randn(3, dtype=torch.float64) for _ in given] if parity else None
        theta, expected = mtl.update(theta, state, given, mtl_ema=ema, noise=noise)
        torch.manual_seed(seed)
        logged = objective.step(model, given, optimizer)
        assert set(logged) == {"loss"}
        assert_near(logged["loss"], expected["loss"].detach())
        assert_near(objective.embeddings, torch.stack(state["embeddings"]))
        for module in (model, objective):
            for name, parameter in module.named_parameters():
                assert_near(parameter.detach(), theta[name].detach())
                assert_near(optimizer.state[parameter]["exp_avg"], state["adam"]["first"][name])
                assert_near(optimizer.state[parameter]["exp_avg_sq"], state["adam"]["second"][name])
    if not parity:
        images = drawn(9, (5,))[0].images
        assert_near(objective.predict(model, images).logits, mtl.predict(theta, images))


def test_it_is_one_linear_layer_on_features_and_embedding():
    model, objective, (batch,) = TwoLayers(), make(1, mtl_ema=1.0), drawn(0, (4,))
    wide = nn.Linear(6, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        wide.weight.copy_(torch.cat([model.last, objective.weight], 1))
    features = model(batch.images).features
    logits = wide(torch.cat([features, features.mean(0).expand(4, 3)], 1))
    torch.testing.assert_close(
        objective(model, [batch]), F.cross_entropy(logits, batch.labels), rtol=1e-12, atol=0
    )
    outputs = objective.predict(model, batch.images)
    torch.testing.assert_close(outputs.logits, logits, rtol=1e-12, atol=1e-14)
    assert torch.equal(outputs.features, features)


def test_without_its_weights_it_is_the_sum_of_risks():
    objective = make()
    objective.weight.requires_grad_(False).zero_()
    ends = []
    for criterion in (objective, sum_of_risks):
        model = TwoLayers()
        optimizer = adam_of(model)
        for seed in range(3):
            optimizer.zero_grad()
            criterion(model, drawn(seed)).backward()
            optimizer.step()
        ends.append(model.state_dict())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-12)
    images = drawn(0)[0].images
    assert torch.equal(objective.predict(model, images).logits, model(images).logits)


def test_the_embedding_is_nearly_the_mean_feature_and_remembers_a_little():
    model, objective, (batch,) = TwoLayers(), make(1, mtl_ema=0.75), drawn(0, (4,))
    mean = model(batch.images).features.mean(0).detach()
    for share in (0.75, 0.9375):
        objective(model, [batch])
        torch.testing.assert_close(objective.embeddings[0], share * mean, rtol=1e-12, atol=0)
    assert not objective.embeddings.requires_grad


# Laws


def test_the_order_of_samples_does_not_matter():
    model, one, two = TwoLayers(), make(), make()
    for seed in range(2):
        given = drawn(seed)
        assert value(one, model, given) == pytest.approx(value(two, model, reordered(given)), rel=1e-12)


def test_the_order_of_domains_does_not_matter_if_it_stays():
    model, one, two = TwoLayers(), make(), make()
    for seed in range(3):
        given = drawn(seed)
        assert value(one, model, given) == pytest.approx(value(two, model, given[::-1]), rel=1e-12)
    torch.testing.assert_close(one.embeddings, two.embeddings.flip(0), rtol=1e-12, atol=0)


def test_a_prediction_depends_on_the_whole_batch_but_not_on_its_order():
    model, objective, images = TwoLayers(), make(), drawn(0)[1].images
    all_of_them = objective.predict(model, images).logits
    backwards = objective.predict(model, images.flip(0)).logits
    torch.testing.assert_close(backwards.flip(0), all_of_them, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(objective.predict(model, images[:2]).logits, all_of_them[:2])


@pytest.mark.parametrize("training", [False, True])
def test_a_prediction_changes_nothing(training):
    model, objective = TwoLayers(), make()
    objective(model, drawn(0))
    before = objective.embeddings.clone()
    objective.train(training).predict(model, drawn(1)[0].images)
    assert torch.equal(objective.embeddings, before)


def test_embeddings_move_in_training_mode_alone():
    model, objective = TwoLayers(), make()
    objective.eval()(model, drawn(0))
    assert torch.equal(objective.embeddings, torch.zeros_like(objective.embeddings))
    objective.train()(model, drawn(0))
    assert (objective.embeddings != 0).all()


# Released code


def test_with_parity_the_embedding_is_noise_of_unit_variance():
    model = TwoLayers(width=3)
    objective = make(1, parity=True)
    images = drawn(0, (1,))[0].images
    plain = model(images).logits
    torch.manual_seed(0)
    draws = 4000
    added = torch.cat([objective.predict(model, images).logits - plain for _ in range(draws)]).detach()
    expected = objective.weight.detach() @ objective.weight.detach().T
    error = expected.diagonal().max() * (2 / draws) ** 0.5
    assert (added.mean(0).abs() < 5 * (expected.diagonal() / draws).sqrt()).all()
    assert ((added.T.cov() - expected).abs() < 5 * error).all()


def test_without_parity_nothing_is_drawn():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    objective, model = make(), TwoLayers()
    torch.set_rng_state(state)
    objective(model, drawn(0))
    objective.predict(model, drawn(0)[0].images)
    assert torch.equal(torch.get_rng_state(), state)
    make(parity=True)(model, drawn(0))
    assert not torch.equal(torch.get_rng_state(), state)


# Its weights


def test_the_weights_depend_on_the_seed_alone_and_have_the_bound_of_the_wide_layer():
    torch.manual_seed(1)
    one = MTL(features=50, classes=20, domains=2)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    two, other = MTL(features=50, classes=20, domains=2), MTL(features=50, classes=20, domains=2, seed=1)
    assert torch.equal(one.weight, two.weight)
    assert not torch.equal(one.weight, other.weight)
    assert 0.99 * 100**-0.5 < one.weight.abs().max() <= 100**-0.5
    assert one.weight.shape == (20, 50)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_they_are_trained_with_the_network():
    model, objective = TwoLayers(), make()
    assert objective.trained_with_network() == [objective.weight]
    before = objective.weight.detach().clone()
    objective.step(model, drawn(0), adam_of(model, objective, weight_decay=0))
    assert (objective.weight != before).all()


def test_a_training_predicts_with_them():
    split = tiny_task().split("domain_0")
    network = tiny_network()
    run = Run(steps=4, batch_size=4, learning_rate=1e-2, check_every=1, collect="last")
    losses = []
    for parity in (False, True):
        objective = MTL(features=16, classes=2, domains=2, parity=parity)
        fit = Trainer(network, objective, Loop(device="cpu")).fit(initial_weights(network), split, run)
        losses.append([check["loss"] for check in fit.record["checks"]])
        assert len(set(losses[-1])) > 1
    assert losses[0] != losses[1]


# Corners


@pytest.mark.parametrize("parity", [False, True])
def test_a_run_continues_with_the_same_bits(parity):
    assert_continues(lambda: make(mtl_ema=0.5, parity=parity))


def test_a_training_that_was_interrupted_ends_with_the_same_bits(tmp_path):
    assert_training_continues(MTL(features=16, classes=2, domains=2, mtl_ema=0.5, parity=True), tmp_path)


def test_half_precision():
    assert_half_precision_trains(lambda: MTL(features=6, classes=3, domains=3))


def test_embeddings_are_not_in_half_precision():
    model, given = Single(), in_single(drawn(0))
    objective = MTL(features=6, classes=3, domains=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = model(given[0].images)
        outputs = objective.predict(model, given[0].images)
        loss = objective(model, given)
    assert own.logits.dtype == torch.bfloat16
    mean = own.features.float().mean(0)
    assert torch.equal(outputs.logits, own.logits.float() + F.linear(mean, objective.weight))
    assert loss.dtype == outputs.features.dtype == torch.float32


def test_missing_classes_and_batches_of_one_give_finite_gradients():
    for sizes in ((4, 7, 2), (1, 1, 1)):
        model, objective = TwoLayers(), make()
        objective(model, one_class(drawn(0, sizes))).backward()
        for parameter in (*model.parameters(), *objective.parameters()):
            assert parameter.grad.isfinite().all()


def test_a_scaler_changes_nothing_but_rounding():
    ends = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        model, objective = TwoLayers(), make()
        objective.step(model, drawn(0), adam_of(model, objective), scaler)
        ends.append({**model.state_dict(), **objective.state_dict()})
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=0)


def test_within_sam_the_embeddings_move_once():
    model, objective = TwoLayers(), make(mtl_ema=0.5)
    SAM(objective, rho=1e-12).step(model, drawn(0), adam_of(model, objective))
    still = make(mtl_ema=0.5)
    still(TwoLayers(), drawn(0))
    torch.testing.assert_close(objective.embeddings, still.embeddings, rtol=1e-9, atol=0)


def test_losses_of_two_updates_can_be_kept():
    model, objective = TwoLayers(), make()
    (objective(model, drawn(0)) + objective(model, drawn(1))).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_other_sizes_are_refused():
    model, given = TwoLayers(), drawn(0)
    with pytest.raises(InputError, match=r"MTL was made for 2 source domains, got 3; make it with domains=3"):
        make(2)(model, given)
    with pytest.raises(InputError, match=r"MTL was made for 4 features, got 3; make it with features=3"):
        make(width=4)(model, given)
    with pytest.raises(InputError, match=r"MTL was made for 5 classes, got 3; make it with classes=3"):
        MTL(features=3, classes=5, domains=3).double().predict(model, given[0].images)


def test_the_options_are_named():
    options = {"features": 4, "classes": 3, "domains": 2}
    assert MTL(**options).configuration() == {**options, "mtl_ema": 0.99, "parity": False, "seed": 0}
    options = {"features": 5, "classes": 2, "domains": 1, "mtl_ema": 0.5, "parity": True, "seed": 3}
    assert MTL(**options).configuration() == options


@pytest.mark.parametrize("name", ["features", "classes", "domains"])
@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_sizes_must_be_counts(name, wrong):
    with pytest.raises(InputError, match=f"MTL needs a whole number of {name} from 1, got"):
        MTL(**{"features": 4, "classes": 3, "domains": 2, name: wrong})


@pytest.mark.parametrize("ema", [0, -0.1, 1.1, math.nan])
def test_the_weight_of_the_new_mean_must_be_a_share(ema):
    with pytest.raises(InputError, match=r"MTL needs mtl_ema to be above 0 and at most 1, got .*; 0\.99 is"):
        make(mtl_ema=ema)


def test_a_domain_of_one_image_is_its_own_embedding():
    given = drawn(0, (1,))
    model, objective = TwoLayers(), make(1, mtl_ema=1.0)
    outputs = model(given[0].images)
    expected = F.cross_entropy(outputs.logits + outputs.features @ objective.weight.T, given[0].labels)
    torch.testing.assert_close(objective(model, given), expected, rtol=1e-12, atol=0)
