import math

import pytest
import torch
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_irm import (
    assert_continues,
    assert_follows,
    assert_half_precision,
    drawn,
    mean_risk,
    one_class,
    shuffled,
    value,
)
from tests.reference import vrex

from mirepoix.objectives import ERM
from mirepoix.objectives._vrex import VREx
from mirepoix.types import InputError


@pytest.mark.parametrize(("weight", "anneal"), [(7.0, 2), (0.3, 0), (10.0, 10)])
@pytest.mark.parametrize("sizes", [(4, 7, 2), (5, 1)])
def test_updates_follow_the_reference_across_the_anneal_step(weight, anneal, sizes):
    options = {"vrex_lambda": weight, "vrex_penalty_anneal_iters": anneal}
    objective = VREx(**options)
    state = assert_follows(objective, vrex.update, options, sizes)
    assert objective.updates == state["updates"] == 4
    assert state["adam"]["count"] == (2 if anneal == 2 else 4)  # fresh moments


def test_two_risks_by_hand():
    # Risks a and b: the mean is (a + b) / 2 and the variance ((a - b) / 2)^2.
    model, given = TwoLayers(), drawn(0, (3, 5))
    a, b = (mean_risk(model, [batch]) for batch in given)
    objective = VREx(vrex_lambda=20, vrex_penalty_anneal_iters=0)
    assert value(objective, model, given) == pytest.approx((a + b) / 2 + 20 * ((a - b) / 2) ** 2, rel=1e-12)


def test_the_logged_nll_is_the_mean_risk_and_not_that_of_the_last_domain():
    model, given = TwoLayers(), drawn(0)
    expected = mean_risk(model, given)
    logged = VREx().step(model, given, torch.optim.SGD(model.parameters(), lr=0.1))
    assert logged["nll"].item() == pytest.approx(expected, rel=1e-12)


def test_weight_zero_is_the_mean_risk_and_erm_on_domains_of_one_size():
    model = TwoLayers()
    objective = VREx(vrex_lambda=0, vrex_penalty_anneal_iters=0)
    assert value(objective, model, drawn(0)) == pytest.approx(mean_risk(model, drawn(0)), abs=1e-12)
    given = drawn(0, (4, 4))
    torch.testing.assert_close(objective(model, given), ERM()(model, given), rtol=1e-12, atol=0)


def test_the_order_of_domains_and_of_samples_does_not_matter():
    model, given = TwoLayers(), drawn(0)
    expected = value(VREx(), model, given)
    assert value(VREx(), model, given[::-1]) == pytest.approx(expected, rel=1e-12)
    reverse = shuffled(given, lambda n: list(range(n))[::-1])
    assert value(VREx(), model, reverse) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [1, 6])
def test_one_domain_has_no_penalty_and_no_nan(size):
    one, two, given = TwoLayers(), TwoLayers(), drawn(0, (size,))
    loss = VREx(vrex_lambda=1e5, vrex_penalty_anneal_iters=0)(one, given)
    loss.backward()
    expected = ERM()(two, given)
    expected.backward()
    assert torch.equal(loss, expected)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_equal_domains_have_no_penalty():
    model, (batch,) = TwoLayers(), drawn(0, (5,))
    objective = VREx(vrex_lambda=1e5, vrex_penalty_anneal_iters=0)
    torch.testing.assert_close(objective(model, [batch] * 3), ERM()(model, [batch]), rtol=1e-12, atol=0)


def test_missing_classes_give_finite_gradients():
    model = TwoLayers()
    VREx()(model, one_class(drawn(0))).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_half_precision_is_the_networks_alone():
    assert_half_precision(VREx(vrex_lambda=30.0, vrex_penalty_anneal_iters=0))


def test_a_run_that_was_saved_and_loaded_ends_with_the_same_bits():
    forgotten, whole = assert_continues(lambda: VREx(vrex_lambda=9, vrex_penalty_anneal_iters=3))
    assert not torch.equal(forgotten[1]["first"], whole[1]["first"])


def test_the_options_are_named():
    assert VREx().configuration() == {"vrex_lambda": 10.0, "vrex_penalty_anneal_iters": 500}
    options = {"vrex_lambda": 3.5, "vrex_penalty_anneal_iters": 7}
    assert VREx(**options).configuration() == options


@pytest.mark.parametrize("weight", [-1, math.inf, math.nan])
def test_the_weight_must_be_a_number_from_zero(weight):
    with pytest.raises(
        InputError, match=r"VREx needs a finite vrex_lambda of 0 or more, got .*; 10 is usual"
    ):
        VREx(vrex_lambda=weight)


def test_the_anneal_step_must_be_a_count():
    with pytest.raises(
        InputError, match=r"VREx needs vrex_penalty_anneal_iters to be a whole number .*got -1"
    ):
        VREx(vrex_penalty_anneal_iters=-1)
