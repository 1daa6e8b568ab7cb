import copy
import math

import pytest
import torch
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_erm import Linear, batches
from tests.objectives.test_mmd import without_values
from tests.reference.rdm import Rdm, parts

from mirepoix.data import digits_task
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._rdm import RDM
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError, Outputs


@pytest.mark.parametrize(("weight", "variance_weight", "own_rate"), [(5.0, 0.004, 0.01), (0.3, 2.0, 1e-5)])
@pytest.mark.parametrize(
    ("sizes", "anneal"), [((4, 4), 0), ((2, 4, 3), 1), ((3, 2, 2), 2), ((6,), 2), ((3, 3), 9)]
)
def test_four_updates_are_those_of_the_formula(sizes, anneal, weight, variance_weight, own_rate):
    model = TwoLayers()
    slow = Rdm(copy.deepcopy(model), weight, anneal, variance_weight, own_rate, rate=0.05)
    objective = RDM(
        rdm_lambda=weight,
        rdm_penalty_anneal_iters=anneal,
        variance_weight=variance_weight,
        rdm_lr=own_rate,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    given = batches(sizes)
    for _ in range(4):
        expected = slow.update(given)
        assert objective.step(model, given, optimizer)["loss"].item() == pytest.approx(expected, abs=1e-10)
    for one, other in zip(model.parameters(), slow.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert objective.updates == slow.counter
    for parameter, m, v in zip(model.parameters(), slow.adam.first, slow.adam.second, strict=True):
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], m, rtol=0, atol=1e-10)
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg_sq"], v, rtol=0, atol=1e-10)
        assert optimizer.state[parameter]["step"].item() == slow.adam.t


def test_two_domains_by_hand():
    # One logit x against 0 and label 1: a loss of log(1 + e^-x). Losses 0 (twice) and 2 (twice).
    logit = -math.log(math.exp(2) - 1)

    def model(images):
        logits = images.flatten(1)
        return Outputs(logits, torch.cat([torch.zeros_like(logits), logits], 1))

    def domain(x):
        return Batch(
            torch.full((2, 1, 1, 1), x, dtype=torch.float64), torch.ones(2, dtype=torch.int64), torch.zeros(2)
        )

    # The worst is the second. Its losses are all 2, those of both 0 and 2 as often: with the weights (1/2, -1/2) of a
    # loss 0 and a loss 2, a kernel adds 1/4 + 1/4 - k(2)/2. Squared distance 4; variances 4/3 and 0.
    matching = sum(0.5 - 0.5 * math.exp(-(10.0**power) * 4) for power in range(-4, 4))
    objective = RDM(rdm_lambda=2.0, rdm_penalty_anneal_iters=0, variance_weight=3.0)
    expected = 1 + 2 * matching + 3 * 4 / 3
    assert objective(model, [domain(800.0), domain(logit)]).item() == pytest.approx(expected, abs=1e-12)


def test_without_weights_it_is_erm_on_domains_of_one_size():
    one, two = TwoLayers(), TwoLayers()
    given = batches((4, 4, 4))
    objective = RDM(rdm_lambda=0, rdm_penalty_anneal_iters=0, variance_weight=0, rdm_lr=0.1)
    objective.step(one, given, torch.optim.SGD(one.parameters(), lr=1.0))
    ERM().step(two, given, torch.optim.SGD(two.parameters(), lr=0.1))
    for parameter, other in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-12, atol=1e-14)


def test_before_the_anneal_step_it_is_the_mean_risk_at_the_rate_of_the_loop():
    one, two = TwoLayers(), TwoLayers()
    given = batches((4, 4))
    optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
    logged = RDM(rdm_penalty_anneal_iters=1).step(one, given, optimizer)
    ERM().step(two, given, torch.optim.SGD(two.parameters(), lr=0.1))
    for parameter, other in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-12, atol=1e-14)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert torch.equal(logged["nll"], logged["loss"])


def test_equal_domains_have_no_discrepancy():
    model, (batch,) = TwoLayers(), batches((5,))
    objective = RDM(rdm_lambda=100.0, rdm_penalty_anneal_iters=0, variance_weight=0)
    torch.testing.assert_close(objective(model, [batch] * 3), ERM()(model, [batch]), rtol=1e-12, atol=1e-12)


def test_the_order_of_domains_and_of_samples_does_not_matter():
    model, given = TwoLayers(), batches((3, 4, 5))
    objective = RDM(rdm_penalty_anneal_iters=0, variance_weight=1.0)
    shuffled = [Batch(b.images.flip(0), b.labels.flip(0), b.domains) for b in given[::-1]]
    torch.testing.assert_close(objective(model, given), objective(model, shuffled), rtol=1e-12, atol=0)


def test_what_is_logged():
    model, given = TwoLayers(), batches((3, 4))
    risk, matching, variance = (part.item() for part in parts(copy.deepcopy(model), given))
    objective = RDM(rdm_lambda=3.0, rdm_penalty_anneal_iters=0, variance_weight=0.5)
    logged = objective.step(model, given, torch.optim.SGD(model.parameters(), lr=0.1))
    assert set(logged) == {"loss", "nll", "matching_penalty", "variance_penalty"}
    assert logged["nll"].item() == pytest.approx(risk, abs=1e-12)
    assert logged["matching_penalty"].item() == pytest.approx(matching, abs=1e-12)
    assert logged["variance_penalty"].item() == pytest.approx(variance, abs=1e-12)
    assert logged["loss"].item() == pytest.approx(risk + 3 * matching + 0.5 * variance, abs=1e-12)
    assert not any(value.requires_grad for value in logged.values())


# The schedule


def test_the_learning_rate_stays_though_a_loop_sets_its_own_before_every_update():
    model, given = TwoLayers(), batches((3, 4))
    objective = RDM(rdm_penalty_anneal_iters=2, rdm_lr=1e-3)
    groups = [{"params": [model.first]}, {"params": [model.last], "lr": 0.5}]
    optimizer = torch.optim.Adam(groups, lr=0.1)
    rates = []
    for _ in range(4):
        optimizer.param_groups[0]["lr"] = 0.1
        objective.step(model, given, optimizer)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates == [[0.1, 0.5], [0.1, 0.5], [1e-3, 1e-3], [1e-3, 1e-3]]


def run_of_updates(stop=None):
    """Four updates; those after `stop` are made by new objects that know the state alone."""
    model, objective = TwoLayers(), RDM(rdm_penalty_anneal_iters=2, rdm_lr=0.03)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for update in range(4):
        if update == stop:
            state = [copy.deepcopy(part.state_dict()) for part in (model, objective, optimizer)]
            model, objective = TwoLayers(), RDM(rdm_penalty_anneal_iters=2, rdm_lr=0.03)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
            for part, kept in zip((model, objective, optimizer), state, strict=True):
                part.load_state_dict(kept)
        objective.step(model, batches((3, 4)), optimizer)
    return model.state_dict()


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_updates_continue_from_the_state_with_the_same_bits(stop):
    whole, continued = run_of_updates(), run_of_updates(stop)
    assert all(torch.equal(value, continued[name]) for name, value in whole.items())


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", [2, 3, 4])
def test_a_training_that_was_interrupted_ends_with_the_same_bits(tmp_path, after):
    split = digits_task(size=8).split("rotated_75")
    network = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8)
    theta = initial_weights(network)
    run = Run(steps=5, batch_size=4, learning_rate=1e-3, schedule="cosine", collect="last")

    def stop(step, *_):
        if step == after + 1:
            raise Stopped

    def trained(own_rate, workspace=None, on_progress=None):
        objective = RDM(rdm_penalty_anneal_iters=3, rdm_lr=own_rate)
        trainer = Trainer(network, objective, Loop(device="cpu", save_every=0.0), on_progress=on_progress)
        return trainer.fit(theta, split, run, workspace=workspace).weights["last"]

    whole = trained(1e-4)
    with pytest.raises(Stopped):
        trained(1e-4, tmp_path, stop)
    continued = trained(1e-4, tmp_path)
    assert all(torch.equal(value, continued[name]) for name, value in whole.items())
    if after == 2:
        other = trained(1e-5)
        assert not all(torch.equal(value, other[name]) for name, value in whole.items())


# Corners


@pytest.mark.parametrize("anneal", [0, 100])
def test_a_domain_of_one_sample_is_refused_at_the_first_update(anneal):
    with pytest.raises(
        InputError,
        match=r"RDM needs at least 2 samples per domain for a variance, got 1 of domain \[1\]; "
        "use a larger batch size, or variance_weight=0",
    ):
        RDM(rdm_penalty_anneal_iters=anneal)(TwoLayers(), batches((3, 1)))


def test_without_variances_a_domain_may_have_one_sample():
    model, given = TwoLayers(), batches((1, 3))
    objective = RDM(rdm_lambda=2.0, rdm_penalty_anneal_iters=0, variance_weight=0)
    loss = objective(model, given)
    assert loss.isfinite()
    assert loss > objective.parts["nll"]
    assert "variance_penalty" not in objective.parts
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_losses_are_not_compared_in_half_precision():
    class Half(TwoLayers):
        def forward(self, images):
            outputs = super().forward(images)
            return Outputs(outputs.features, outputs.logits.bfloat16())

    model, given = Half(), batches((4, 5))
    objective = RDM(rdm_penalty_anneal_iters=0, variance_weight=1.0)
    expected = objective(model, given)
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(model, given)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_domain_may_lack_classes():
    model, given = TwoLayers(), batches((4, 4))
    given = [Batch(b.images, torch.full_like(b.labels, k), b.domains) for k, b in enumerate(given)]
    objective = RDM(rdm_penalty_anneal_iters=0)
    objective.step(model, given, torch.optim.Adam(model.parameters()))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_perfect_predictions_have_no_penalty_and_no_gradient():
    model = Linear()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e4, 0.0], [-1e4, 0.0], [-1e4, 0.0]]))
    images = torch.ones(3, 1, 1, 2, dtype=torch.float64)
    given = [Batch(images, torch.zeros(3, dtype=torch.int64), torch.zeros(3))] * 2
    objective = RDM(rdm_penalty_anneal_iters=0)
    loss = objective(model, given)
    loss.backward()
    assert loss.item() == 0
    assert not model.weight.grad.any()


@torch.no_grad()
def test_it_never_waits_for_the_device():
    objective = RDM(rdm_penalty_anneal_iters=0)
    assert objective(TwoLayers(), without_values(batches((3, 5, 4)))).shape == ()


def test_it_can_be_copied_after_an_update():
    model, given = TwoLayers(), batches((3, 4))
    objective, optimizer = RDM(rdm_penalty_anneal_iters=1), torch.optim.SGD(model.parameters(), lr=0.1)
    objective.step(model, given, optimizer)
    assert torch.equal(copy.deepcopy(objective)(model, given), objective(model, given))
    assert list(objective.state_dict()) == ["_extra_state"]


def test_sharpness_aware_minimisation_refuses_it():
    with pytest.raises(InputError, match="SAM cannot wrap RDM: it makes its own step"):
        SAM(RDM(rdm_penalty_anneal_iters=1))


def test_a_scaler_changes_nothing_but_rounding():
    one, two, given = TwoLayers(), TwoLayers(), batches((3, 4))
    for model, scaler in ((one, None), (two, torch.amp.GradScaler("cpu", init_scale=2.0**10))):
        objective = RDM(rdm_penalty_anneal_iters=1, rdm_lr=0.02)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            objective.step(model, given, optimizer, scaler)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_the_options_are_named():
    assert RDM().configuration() == {
        "rdm_lambda": 5.0,
        "rdm_penalty_anneal_iters": 1500,
        "variance_weight": 0.004,
        "rdm_lr": 1.5e-5,
    }
    given = {"rdm_lambda": 2.0, "rdm_penalty_anneal_iters": 3, "variance_weight": 0.1, "rdm_lr": 1e-3}
    assert RDM(**given).configuration() == given


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rdm_lambda": -1}, "a finite rdm_lambda of 0 or more, got -1"),
        ({"variance_weight": math.inf}, "a finite variance_weight of 0 or more, got inf"),
        ({"rdm_penalty_anneal_iters": 2.5}, "rdm_penalty_anneal_iters to be a whole number of updates"),
        ({"rdm_lr": 0}, r"a positive, finite rdm_lr, got 0; 1\.5e-5 is usual"),
        ({"rdm_lr": math.nan}, "a positive, finite rdm_lr"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=f"RDM needs {message}"):
        RDM(**options)
