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
    value,
)
from tests.reference import ibirm

from mirepoix.objectives._iberm import IBERM
from mirepoix.objectives._ibirm import IBIRM
from mirepoix.objectives._irm import IRM
from mirepoix.types import InputError


def at_once(**options):
    return IBIRM(irm_penalty_anneal_iters=0, ib_penalty_anneal_iters=0, **options)


@pytest.mark.parametrize("estimate", ["product", "square"])
@pytest.mark.parametrize(("irm_anneal", "ib_anneal", "moments"), [(1, 3, 1), (2, 1, 2), (2, 2, 2), (0, 9, 4)])
def test_updates_follow_the_reference_across_both_anneal_steps(irm_anneal, ib_anneal, moments, estimate):
    options = {
        "irm_lambda": 7.0,
        "irm_penalty_anneal_iters": irm_anneal,
        "ib_lambda": 3.0,
        "ib_penalty_anneal_iters": ib_anneal,
        "irm_estimate": estimate,
    }
    objective = IBIRM(**options)
    state = assert_follows(objective, ibirm.update, options)
    assert objective.updates == state["updates"] == 4
    assert state["adam"]["count"] == moments  # since the later anneal step


def test_one_weight_zero_leaves_the_other_objective():
    model, given = TwoLayers(), drawn(0)
    only_irm = at_once(irm_lambda=5, ib_lambda=0)
    assert value(only_irm, model, given) == pytest.approx(
        value(IRM(irm_lambda=5, irm_penalty_anneal_iters=0), model, given), rel=1e-12
    )
    only_ib = at_once(irm_lambda=0, ib_lambda=5)
    assert value(only_ib, model, given) == pytest.approx(
        value(IBERM(ib_lambda=5, ib_penalty_anneal_iters=0), model, given), rel=1e-12
    )
    neither = at_once(irm_lambda=0, ib_lambda=0)
    assert value(neither, model, given) == pytest.approx(mean_risk(model, given), rel=1e-12)


def test_before_both_anneal_steps_it_is_irm():
    model, given = TwoLayers(), drawn(0)
    assert torch.equal(IBIRM()(model, given), IRM()(model, given))


def test_the_logged_terms_add_up():
    model, given = TwoLayers(), drawn(0)
    logged = at_once(irm_lambda=5, ib_lambda=7).step(
        model, given, torch.optim.SGD(model.parameters(), lr=0.1)
    )
    total = logged["nll"] + 5 * logged["irm_penalty"] + 7 * logged["ib_penalty"]
    torch.testing.assert_close(logged["loss"], total, rtol=1e-12, atol=0)


def test_the_order_of_domains_does_not_matter():
    model, given = TwoLayers(), drawn(0)
    assert value(at_once(), model, given) == pytest.approx(value(at_once(), model, given[::-1]), rel=1e-12)


@pytest.mark.parametrize("given", [drawn(0, (6,)), one_class(drawn(0))])
def test_one_domain_and_missing_classes_give_finite_gradients(given):
    model = TwoLayers()
    at_once()(model, given).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("estimate", ["product", "square"])
def test_a_domain_of_one_sample_is_refused(estimate):
    with pytest.raises(
        InputError, match=r"IBIRM needs at least 2 samples per domain .* got 1 of domain \[1\]"
    ):
        IBIRM(irm_estimate=estimate)(TwoLayers(), drawn(0, (3, 1)))


def test_half_precision_is_the_networks_alone():
    assert_half_precision(at_once(irm_lambda=30.0, ib_lambda=20.0))


@pytest.mark.parametrize(("irm_anneal", "ib_anneal"), [(3, 1), (1, 3), (2, 9)])
def test_a_run_that_was_saved_and_loaded_ends_with_the_same_bits(irm_anneal, ib_anneal):
    def make():
        return IBIRM(
            irm_lambda=9, irm_penalty_anneal_iters=irm_anneal, ib_lambda=8, ib_penalty_anneal_iters=ib_anneal
        )

    forgotten, whole = assert_continues(make)
    assert not torch.equal(forgotten[1]["first"], whole[1]["first"])


def test_the_options_are_named():
    assert IBIRM().configuration() == {
        "irm_lambda": 100.0,
        "irm_penalty_anneal_iters": 500,
        "ib_lambda": 100.0,
        "ib_penalty_anneal_iters": 500,
        "irm_estimate": "product",
    }
    options = {
        "irm_lambda": 3.5,
        "irm_penalty_anneal_iters": 7,
        "ib_lambda": 4.5,
        "ib_penalty_anneal_iters": 8,
        "irm_estimate": "square",
    }
    assert IBIRM(**options).configuration() == options


@pytest.mark.parametrize("weight", [-1, math.inf, math.nan])
@pytest.mark.parametrize("name", ["irm_lambda", "ib_lambda"])
def test_the_weights_must_be_numbers_from_zero(name, weight):
    with pytest.raises(InputError, match=rf"IBIRM needs a finite {name} of 0 or more, got .*; 100 is usual"):
        IBIRM(**{name: weight})


@pytest.mark.parametrize("name", ["irm_penalty_anneal_iters", "ib_penalty_anneal_iters"])
def test_the_anneal_steps_must_be_counts(name):
    with pytest.raises(InputError, match=rf"IBIRM needs {name} to be a whole number .*got -1"):
        IBIRM(**{name: -1})


def test_the_estimate_is_one_of_two():
    with pytest.raises(InputError, match="IBIRM needs irm_estimate to be 'product' or 'square', got 'both'"):
        IBIRM(irm_estimate="both")
