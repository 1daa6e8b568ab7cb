import copy
import io
import math

import pytest
import torch
from tests.objectives.test_coral import TwoLayers
from tests.reference import irm
from tests.reference.plain import new_adam, risk
from tests.tiny import tiny_network, tiny_task

from mirepoix.models import initial_weights
from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._irm import IRM, _slopes
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError, Outputs

# Shared with the tests of the other objectives that are a risk and a penalty


def drawn(seed, sizes=(4, 7, 2), dtype=torch.float64):
    """The batches of one update."""
    random = torch.Generator().manual_seed(seed)
    return [
        Batch(
            torch.randn(n, 1, 1, 2, generator=random, dtype=dtype),
            torch.randint(3, (n,), generator=random),
            torch.full((n,), domain),
        )
        for domain, n in enumerate(sizes)
    ]


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=0.01)


def assert_follows(objective, update, options, sizes=(4, 7, 2), updates=4):
    """The same weights, moments and logs as the reference after every update; returns the reference's state."""
    model, state = TwoLayers(), {"adam": new_adam()}
    optimizer = adam(model)
    theta = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    near = {"rtol": 0, "atol": 1e-10}
    for seed in range(updates):
        given = drawn(seed, sizes)
        logged = objective.step(model, given, optimizer)
        theta, expected = update(theta, state, given, **options)
        assert set(expected) == set(logged)
        for name, value in expected.items():
            assert not logged[name].requires_grad
            torch.testing.assert_close(logged[name], value.detach(), **near)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), theta[name].detach(), **near)
            moments = optimizer.state[parameter]
            assert moments["step"] == state["adam"]["count"]
            torch.testing.assert_close(moments["exp_avg"], state["adam"]["first"][name], **near)
            torch.testing.assert_close(moments["exp_avg_sq"], state["adam"]["second"][name], **near)
    return state


def assert_continues(make, dtype=torch.float32):
    """A run whose state went through a file after two updates ends after four with the same bits."""

    def start():
        model = TwoLayers().to(dtype)
        return make(), model, adam(model)

    def advance(parts, first, last):
        objective, model, optimizer = parts
        for seed in range(first, last):
            objective.step(model, drawn(seed, dtype=dtype), optimizer)

    def states(parts):
        return [part.state_dict() for part in parts]

    whole, before, after = start(), start(), start()
    advance(whole, 0, 4)
    advance(before, 0, 2)
    file = io.BytesIO()
    torch.save(states(before), file)
    file.seek(0)
    for part, state in zip(after, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    advance(after, 2, 4)
    torch.testing.assert_close(states(after), states(whole), rtol=0, atol=0)
    start_again = start()  # without the objective's state the end is another one
    for part, state in zip(start_again[1:], states(before)[1:], strict=True):
        part.load_state_dict(state)
    advance(start_again, 2, 4)
    return states(start_again), states(whole)


def assert_half_precision(objective):
    """Finite in bfloat16, and all that follows the network in single precision."""
    model, given = TwoLayers(width=16).float(), drawn(0, (4, 8, 4), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(torch.cat([batch.images for batch in given]))
        assert outputs.logits.dtype == torch.bfloat16
        # The same numbers as single precision, through the same network: rounding is the network's alone.
        wide = Outputs(outputs.features.double(), outputs.logits.double())
        kept = copy.deepcopy(objective)
        loss = objective(model, given)
        assert loss.dtype == torch.float32
        objective.step(model, given, torch.optim.Adam(model.parameters()))
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.testing.assert_close(loss.double(), kept(Replay(wide, given), given), rtol=1e-5, atol=0)


class Replay:
    """Outputs that were made before, by the images they were made from."""

    def __init__(self, outputs, given):
        self.outputs = outputs
        self.images = torch.cat([batch.images for batch in given])

    def __call__(self, images):
        (first,) = [n for n in range(len(self.images)) if torch.equal(self.images[n], images[0])]
        rows = slice(first, first + len(images))
        return Outputs(self.outputs.features[rows], self.outputs.logits[rows])


def mean_risk(model, given):
    theta = dict(model.named_parameters())
    return (sum(risk(theta, batch) for batch in given) / len(given)).item()


def one_class(given):
    return [Batch(b.images, torch.zeros_like(b.labels), b.domains) for b in given]


def shuffled(given, order):
    """The samples of every domain in another order."""
    result = []
    for batch in given:
        places = order(len(batch.labels))
        result.append(Batch(batch.images[places], batch.labels[places], batch.domains))
    return result


def value(objective, model, given):
    return objective(model, given).item()


# The formula


@pytest.mark.parametrize("estimate", ["product", "square"])
@pytest.mark.parametrize(("weight", "anneal"), [(7.0, 2), (0.3, 0), (100.0, 10)])
def test_updates_follow_the_reference_across_the_anneal_step(weight, anneal, estimate):
    options = {"irm_lambda": weight, "irm_penalty_anneal_iters": anneal, "irm_estimate": estimate}
    objective = IRM(**options)
    state = assert_follows(objective, irm.update, options)
    assert objective.updates == state["updates"] == 4
    assert state["adam"]["count"] == (2 if anneal == 2 else 4)  # fresh moments


def test_two_samples_by_hand():
    def model(images):
        return Outputs(images.flatten(1), images.flatten(1))

    # Logits (a, 0), a = log 3: p = 3/4, so the slope is 3/4 a - a = -a/4 for class 0 and 3/4 a for class 1.
    a = math.log(3)
    images = torch.tensor([[a, 0.0], [a, 0.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    given = [Batch(images, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.int64))]
    nll = (math.log(4 / 3) + math.log(4)) / 2
    product = IRM(irm_lambda=5, irm_penalty_anneal_iters=0)
    assert value(product, model, given) == pytest.approx(nll - 5 * 3 / 16 * a**2, abs=1e-12)  # negative
    square = IRM(irm_lambda=5, irm_penalty_anneal_iters=0, irm_estimate="square")
    assert value(square, model, given) == pytest.approx(nll + 5 * (a / 4) ** 2, abs=1e-12)


def test_the_product_is_unbiased_and_the_square_too_large_by_the_variance():
    # All batches of 2 from 4 samples, with replacement and in order: expectations without sampling error.
    model, (pool,) = TwoLayers(), drawn(3, (4,))
    slopes = _slopes(model(pool.images).logits, pool.labels).detach()

    def expectation(estimate):
        objective = IRM(irm_lambda=1, irm_penalty_anneal_iters=0, irm_estimate=estimate)
        values = []
        for i in range(4):
            for j in range(4):
                places = torch.tensor([i, j])
                objective(model, [Batch(pool.images[places], pool.labels[places], pool.domains[:2])])
                values.append(objective.parts["penalty"])
        return torch.stack(values).mean()

    torch.testing.assert_close(expectation("product"), slopes.mean() ** 2)
    torch.testing.assert_close(expectation("square"), slopes.mean() ** 2 + slopes.var(unbiased=False) / 2)


def test_the_weight_is_one_before_the_anneal_step():
    model, given = TwoLayers(), drawn(0)
    objective = IRM(irm_lambda=50, irm_penalty_anneal_iters=3)
    objective.updates = 2
    before = value(objective, model, given)
    penalty, nll = objective.parts["penalty"].item(), objective.parts["nll"].item()
    assert before == pytest.approx(nll + penalty, rel=1e-12)
    objective.updates = 3
    assert value(objective, model, given) == pytest.approx(nll + 50 * penalty, rel=1e-12)


def test_weight_zero_is_the_mean_risk_and_erm_on_domains_of_one_size():
    model = TwoLayers()
    objective = IRM(irm_lambda=0, irm_penalty_anneal_iters=0)
    assert value(objective, model, drawn(0)) == pytest.approx(mean_risk(model, drawn(0)), abs=1e-12)
    given = drawn(0, (4, 4))
    torch.testing.assert_close(objective(model, given), ERM()(model, given), rtol=1e-12, atol=0)


# Laws


def test_the_order_of_domains_does_not_matter():
    model, given = TwoLayers(), drawn(0)
    assert value(IRM(), model, given) == pytest.approx(value(IRM(), model, given[::-1]), rel=1e-12)


def test_the_order_of_samples_matters_only_by_who_shares_a_half():
    model, given = TwoLayers(), drawn(0, (6, 4))
    expected = value(IRM(), model, given)

    def within_halves(n):
        return [*range(n - 2, -1, -2), *range(n - 1, 0, -2)]  # evens and odds, reversed, one after the other

    def interleaved(n):
        halves = within_halves(n)
        return [halves[place // 2 + (n // 2) * (place % 2)] for place in range(n)]

    same = shuffled(given, interleaved)
    assert value(IRM(), model, same) == pytest.approx(expected, rel=1e-12)
    other = shuffled(given, within_halves)
    assert abs(value(IRM(), model, other) - expected) > 1e-4
    square = IRM(irm_estimate="square")
    assert value(square, model, other) == pytest.approx(value(square, model, given), rel=1e-12)


def test_one_domain_has_a_penalty_too():
    model, given = TwoLayers(), drawn(0, (6,))
    objective = IRM()
    objective(model, given)
    expected = irm.penalty(dict(model.named_parameters()), given, "product")
    torch.testing.assert_close(objective.parts["penalty"], expected.detach(), rtol=1e-12, atol=0)


# Corners


@pytest.mark.parametrize("estimate", ["product", "square"])
def test_missing_classes_give_finite_gradients(estimate):
    model = TwoLayers()
    IRM(irm_estimate=estimate)(model, one_class(drawn(0))).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("estimate", ["product", "square"])
def test_half_precision_is_the_networks_alone(estimate):
    assert_half_precision(IRM(irm_lambda=30.0, irm_penalty_anneal_iters=0, irm_estimate=estimate))


def test_logits_beyond_half_precision_when_squared_are_harmless():
    model, given = TwoLayers(), drawn(0)
    half = Outputs(torch.zeros(13, 1), 300 * model(torch.cat([b.images for b in given])).logits.half())
    assert IRM()(Replay(half, given), given).isfinite()


def test_a_domain_of_one_sample_has_no_halves():
    model, given = TwoLayers(), drawn(0, (3, 1))
    with pytest.raises(
        InputError,
        match=r"IRM needs at least 2 samples per domain for two halves, got 1 of domain \[1\].*larger batch.*square",
    ):
        IRM()(model, given)
    assert IRM(irm_estimate="square")(model, given).isfinite()


# State


def test_a_run_that_was_saved_and_loaded_ends_with_the_same_bits():
    forgotten, whole = assert_continues(lambda: IRM(irm_lambda=9, irm_penalty_anneal_iters=3))
    assert not torch.equal(forgotten[1]["first"], whole[1]["first"])
    assert_continues(lambda: IRM(irm_lambda=9, irm_penalty_anneal_iters=2))
    assert_continues(lambda: IRM(irm_lambda=9, irm_penalty_anneal_iters=1))


class Stopped(Exception):
    pass


def test_a_training_that_was_interrupted_ends_with_the_same_bits(tmp_path):
    assert_training_continues(IRM(irm_lambda=9, irm_penalty_anneal_iters=3), tmp_path)


def assert_training_continues(objective, tmp_path):
    split = tiny_task().split("domain_0")
    network = tiny_network()
    theta = initial_weights(network)
    run = Run(steps=5, batch_size=4, learning_rate=1e-3, dropout=0.3, collect="last")

    def stop_after_two(step, *_):
        if step == 3:
            raise Stopped

    def trained(workspace=None, on_progress=None):
        trainer = Trainer(network, objective, Loop(device="cpu", save_every=0.0), on_progress=on_progress)
        return trainer.fit(theta, split, run, workspace=workspace).weights["last"]

    whole = trained()
    with pytest.raises(Stopped):
        trained(tmp_path, stop_after_two)
    continued = trained(tmp_path)
    assert all(torch.equal(value, continued[name]) for name, value in whole.items())


def test_a_copy_goes_on_alone():
    model, objective = TwoLayers(), IRM()
    objective.step(model, drawn(0), adam(model))
    other = copy.deepcopy(objective)
    other.step(model, drawn(1), adam(model))
    assert (objective.updates, other.updates) == (1, 2)


def test_a_scaler_changes_nothing_but_rounding():
    one, two = TwoLayers(), TwoLayers()
    IRM().step(one, drawn(0), adam(one))
    IRM().step(two, drawn(0), adam(two), torch.amp.GradScaler("cpu", init_scale=1024.0))
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=1e-12, atol=0)


def test_sam_refuses_it():
    with pytest.raises(InputError, match="SAM cannot wrap IRM"):
        SAM(IRM())


# Options


def test_the_options_are_named():
    assert IRM().configuration() == {
        "irm_lambda": 100.0,
        "irm_penalty_anneal_iters": 500,
        "irm_estimate": "product",
    }
    options = {"irm_lambda": 3.5, "irm_penalty_anneal_iters": 7, "irm_estimate": "square"}
    assert IRM(**options).configuration() == options


@pytest.mark.parametrize("weight", [-1, math.inf, math.nan])
def test_the_weight_must_be_a_number_from_zero(weight):
    with pytest.raises(InputError, match=r"IRM needs a finite irm_lambda of 0 or more, got .*; 100 is usual"):
        IRM(irm_lambda=weight)


def test_the_anneal_step_must_be_a_count():
    with pytest.raises(
        InputError, match=r"IRM needs irm_penalty_anneal_iters to be a whole number .*got 1\.5"
    ):
        IRM(irm_penalty_anneal_iters=1.5)


def test_the_estimate_is_one_of_two():
    with pytest.raises(InputError, match="IRM needs irm_estimate to be 'product' or 'square', got 'squared'"):
        IRM(irm_estimate="squared")
