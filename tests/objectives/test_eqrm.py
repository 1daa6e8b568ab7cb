import copy
import math

import pytest
import torch
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_erm import batches
from tests.objectives.test_mmd import without_values
from tests.reference.eqrm import Eqrm, bandwidth, normal, quantile

from mirepoix.data import digits_task
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._eqrm import EQRM, _quantile
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError, Outputs


@pytest.mark.parametrize(("share", "own_rate"), [(0.75, 0.01), (0.55, 0.2), (0.97, 1e-6)])
@pytest.mark.parametrize(
    ("sizes", "burnin"), [((4, 4), 0), ((2, 5, 3), 1), ((1, 3, 1, 2), 2), ((4, 3, 5), 2), ((3, 3), 9)]
)
def test_four_updates_are_those_of_the_formula(sizes, burnin, share, own_rate):
    model = TwoLayers()
    slow = Eqrm(copy.deepcopy(model), share, burnin, own_rate, rate=0.05)
    objective = EQRM(eqrm_quantile=share, eqrm_burnin_iters=burnin, eqrm_lr=own_rate)
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


# The quantile


@pytest.mark.parametrize("share", [0.02, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("risks", [[0.1, 2.0], [1.0, 1.1, 5.0], [3.0, 0.0, 0.2, 0.3, 0.1]])
def test_the_distribution_function_takes_the_share_at_the_quantile(risks, share):
    found = _quantile(torch.tensor(risks, dtype=torch.float64), share).item()
    assert sum(normal((found - risk) / bandwidth(risks)) for risk in risks) / len(risks) == pytest.approx(
        share, abs=1e-9
    )


def test_the_median_of_a_symmetric_distribution_is_its_mean():
    risks = torch.tensor([1.0, 2.0, 3.0, 6.0, 7.0, 8.0], dtype=torch.float64)
    assert _quantile(risks, 0.5).item() == pytest.approx(4.5, abs=1e-8)


def test_the_larger_the_share_the_larger_the_quantile_and_beyond_all_risks_at_last():
    risks = torch.tensor([0.5, 1.0, 2.5], dtype=torch.float64)
    found = [_quantile(risks, share).item() for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)]
    assert found == sorted(found)
    assert found[-1] > 2.5


def test_the_gradient_flows_through_the_least_risk_the_largest_and_the_bandwidth():
    values = [0.4, 1.0, 1.3, 2.2]
    risks = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    _quantile(risks, 0.8).backward()
    slow = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]
    quantile(slow, 0.8).backward()
    torch.testing.assert_close(risks.grad, torch.stack([risk.grad for risk in slow]), rtol=1e-9, atol=0)
    # Moving all risks together moves the quantile as much.
    assert risks.grad.sum().item() == pytest.approx(1, abs=1e-12)


def test_the_quantile_of_equal_risks_is_the_risk_with_the_gradient_of_the_mean():
    risks = torch.full((3,), 1.7, dtype=torch.float64, requires_grad=True)
    found = _quantile(risks, 0.9)
    found.backward()
    assert found.item() == 1.7
    torch.testing.assert_close(risks.grad, torch.full_like(risks, 1 / 3), rtol=1e-9, atol=0)


def test_domains_that_share_the_least_or_the_largest_risk_share_its_gradient():
    risks = torch.tensor([1.0, 3.0, 1.0, 3.0, 2.0], dtype=torch.float64, requires_grad=True)
    _quantile(risks, 0.4).backward()
    assert risks.grad[0] == risks.grad[2]
    assert risks.grad[1] == risks.grad[3]


def test_equal_domains_are_trained_as_one():
    one, two = TwoLayers(), TwoLayers()
    (batch,) = batches((5,))
    EQRM(eqrm_burnin_iters=0, eqrm_lr=0.1).step(one, [batch] * 3, torch.optim.SGD(one.parameters(), lr=1.0))
    ERM().step(two, [batch], torch.optim.SGD(two.parameters(), lr=0.1))
    for parameter, other in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("burnin", [0, 5])
def test_the_order_of_domains_and_of_samples_does_not_matter(burnin):
    model, given, objective = TwoLayers(), batches((3, 4, 5)), EQRM(eqrm_burnin_iters=burnin)
    shuffled = [Batch(b.images.flip(0), b.labels.flip(0), b.domains) for b in given[::-1]]
    torch.testing.assert_close(objective(model, given), objective(model, shuffled), rtol=1e-9, atol=0)


# The schedule


def test_before_the_burn_in_it_is_erm_on_domains_of_one_size():
    one, two = TwoLayers(), TwoLayers()
    given = batches((4, 4, 4))
    optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
    logged = EQRM(eqrm_burnin_iters=1).step(one, given, optimizer)
    ERM().step(two, given, torch.optim.SGD(two.parameters(), lr=0.1))
    for parameter, other in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-12, atol=1e-14)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert torch.equal(logged["nll"], logged["loss"])


def test_what_is_logged():
    model, given = TwoLayers(), batches((3, 4))
    logged = EQRM(eqrm_burnin_iters=0).step(model, given, torch.optim.SGD(model.parameters(), lr=0.1))
    assert set(logged) == {"loss", "nll"}
    assert logged["loss"] > logged["nll"]  # three quarters of the domains are below
    assert not any(value.requires_grad for value in logged.values())


def test_the_learning_rate_stays_though_a_loop_sets_its_own_before_every_update():
    model, given, objective = TwoLayers(), batches((3, 4)), EQRM(eqrm_burnin_iters=2, eqrm_lr=1e-3)
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
    model, objective = TwoLayers(), EQRM(eqrm_burnin_iters=2, eqrm_lr=0.03)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for update in range(4):
        if update == stop:
            state = [copy.deepcopy(part.state_dict()) for part in (model, objective, optimizer)]
            model, objective = TwoLayers(), EQRM(eqrm_burnin_iters=2, eqrm_lr=0.03)
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
        objective = EQRM(eqrm_burnin_iters=3, eqrm_lr=own_rate)
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


# Parity


def test_a_fraction_of_the_burn_in_is_cut_off():
    objective = EQRM(eqrm_burnin_iters=2.6)
    assert objective.configuration()["eqrm_burnin_iters"] == 2
    assert objective.resets() == (2,)


def test_with_parity_a_fraction_delays_the_quantile_and_neither_moments_nor_rate_change():
    def run(objective):
        model = TwoLayers()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        quantiles = []
        for _ in range(5):
            logged = objective.step(model, batches((3, 4)), optimizer)
            quantiles.append(not torch.equal(logged["loss"], logged["nll"]))
        made = optimizer.state[model.first]["step"].item()
        return quantiles, made, optimizer.param_groups[0]["lr"]

    options = {"eqrm_burnin_iters": 2.6, "eqrm_lr": 1e-3}
    assert run(EQRM(**options)) == ([False, False, True, True, True], 3, 1e-3)
    assert run(EQRM(**options, parity=True)) == ([False, False, False, True, True], 5, 0.05)


def test_with_parity_a_whole_number_is_as_without():
    objective = EQRM(eqrm_burnin_iters=2.0, parity=True)
    assert objective.resets() == (2,)
    assert objective.configuration()["eqrm_burnin_iters"] == 2.0


# Corners


@pytest.mark.parametrize("burnin", [0, 100])
def test_one_domain_is_refused_at_the_first_update(burnin):
    with pytest.raises(
        InputError, match="EQRM needs at least 2 source domains for a distribution of risks, got 1; use more"
    ):
        EQRM(eqrm_burnin_iters=burnin)(TwoLayers(), batches((4,)))


def test_the_quantile_is_not_taken_in_half_precision():
    class Half(TwoLayers):
        def forward(self, images):
            outputs = super().forward(images)
            return Outputs(outputs.features, outputs.logits.bfloat16())

    model, given, objective = Half(), batches((4, 5)), EQRM(eqrm_burnin_iters=0)
    expected = objective(model, given)
    assert expected.dtype == torch.float32
    # Autocast takes the risks in single precision, and rounds nothing after them.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(model, given)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_domain_may_lack_classes():
    model, given = TwoLayers(), batches((4, 4))
    given = [Batch(b.images, torch.full_like(b.labels, k), b.domains) for k, b in enumerate(given)]
    EQRM(eqrm_burnin_iters=0).step(model, given, torch.optim.Adam(model.parameters()))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_loss_that_is_not_a_number_stays_one():
    assert _quantile(torch.tensor([1.0, math.nan, 2.0]), 0.7).isnan()


@torch.no_grad()
def test_it_never_waits_for_the_device():
    objective = EQRM(eqrm_burnin_iters=0)
    assert objective(TwoLayers(), without_values(batches((3, 5, 4)))).shape == ()


def test_it_can_be_copied_after_an_update():
    model, given = TwoLayers(), batches((3, 4))
    objective, optimizer = EQRM(eqrm_burnin_iters=1), torch.optim.SGD(model.parameters(), lr=0.1)
    objective.step(model, given, optimizer)
    assert torch.equal(copy.deepcopy(objective)(model, given), objective(model, given))
    assert list(objective.state_dict()) == ["_extra_state"]


def test_sharpness_aware_minimisation_refuses_it():
    with pytest.raises(InputError, match="SAM cannot wrap EQRM: it makes its own step"):
        SAM(EQRM(eqrm_burnin_iters=1))


def test_a_scaler_changes_nothing_but_rounding():
    one, two, given = TwoLayers(), TwoLayers(), batches((3, 4))
    for model, scaler in ((one, None), (two, torch.amp.GradScaler("cpu", init_scale=2.0**10))):
        objective = EQRM(eqrm_burnin_iters=1, eqrm_lr=0.02)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            objective.step(model, given, optimizer, scaler)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_the_options_are_named():
    assert EQRM().configuration() == {
        "eqrm_quantile": 0.75,
        "eqrm_burnin_iters": 2500,
        "eqrm_lr": 1e-6,
        "parity": False,
    }
    assert EQRM(eqrm_quantile=0.9, eqrm_burnin_iters=7, eqrm_lr=1e-3, parity=True).configuration() == {
        "eqrm_quantile": 0.9,
        "eqrm_burnin_iters": 7.0,
        "eqrm_lr": 1e-3,
        "parity": True,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eqrm_quantile": 0}, r"an eqrm_quantile between 0 and 1, got 0; 0\.75 is usual"),
        ({"eqrm_quantile": 1.0}, "an eqrm_quantile between 0 and 1"),
        ({"eqrm_quantile": math.nan}, "an eqrm_quantile between 0 and 1"),
        ({"eqrm_burnin_iters": -1}, "eqrm_burnin_iters to be updates from 0, got -1"),
        ({"eqrm_burnin_iters": math.inf}, "eqrm_burnin_iters to be updates from 0, got inf"),
        ({"eqrm_lr": 0}, "a positive, finite eqrm_lr, got 0; 1e-6 is usual"),
        ({"eqrm_lr": math.nan}, "a positive, finite eqrm_lr"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=f"EQRM needs {message}"):
        EQRM(**options)
