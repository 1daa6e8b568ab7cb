import math

import pytest
import torch
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_irm import (
    Replay,
    assert_continues,
    assert_follows,
    assert_half_precision,
    drawn,
    mean_risk,
    one_class,
    shuffled,
    value,
)
from tests.reference import iberm

from mirepoix.objectives import ERM
from mirepoix.objectives._iberm import IBERM
from mirepoix.types import Batch, InputError, Outputs


@pytest.mark.parametrize(("weight", "anneal"), [(7.0, 2), (0.3, 0), (100.0, 10)])
def test_updates_follow_the_reference_across_the_anneal_step(weight, anneal):
    options = {"ib_lambda": weight, "ib_penalty_anneal_iters": anneal}
    objective = IBERM(**options)
    state = assert_follows(objective, iberm.update, options)
    assert objective.updates == state["updates"] == 4
    assert state["adam"]["count"] == (2 if anneal == 2 else 4)  # fresh moments


def test_two_domains_by_hand():
    def model(images):
        return Outputs(images.flatten(1), torch.zeros(len(images), 2, dtype=torch.float64))

    def domain(*rows):
        images = torch.tensor(rows, dtype=torch.float64).reshape(-1, 1, 1, 2)
        return Batch(images, torch.zeros(len(rows), dtype=torch.int64), torch.zeros(len(rows)))

    # Variances (2, 8) and (1, 0), so 5 and 0.5 on average; between the domains nothing is compared.
    given = [domain((0, 0), (2, 4)), domain((9, 5), (10, 5), (11, 5))]
    objective = IBERM(ib_lambda=10, ib_penalty_anneal_iters=0)
    assert value(objective, model, given) == pytest.approx(math.log(2) + 10 * 2.75, abs=1e-12)


@pytest.mark.parametrize("anneal", [1, 0])
def test_before_the_anneal_step_and_with_weight_zero_it_is_the_mean_risk(anneal):
    model = TwoLayers()
    objective = IBERM(ib_lambda=100 * anneal, ib_penalty_anneal_iters=anneal)
    assert value(objective, model, drawn(0)) == pytest.approx(mean_risk(model, drawn(0)), abs=1e-12)
    given = drawn(0, (4, 4))
    torch.testing.assert_close(objective(model, given), ERM()(model, given), rtol=1e-12, atol=0)


def test_the_logged_nll_is_without_the_penalty():
    model, given = TwoLayers(), drawn(0)
    expected = mean_risk(model, given)
    objective = IBERM(ib_penalty_anneal_iters=0)
    logged = objective.step(model, given, torch.optim.SGD(model.parameters(), lr=0.1))
    assert logged["nll"].item() == pytest.approx(expected, rel=1e-12)
    assert logged["loss"].item() == pytest.approx(expected + 100 * logged["penalty"].item(), rel=1e-12)


def test_the_order_of_domains_and_of_samples_does_not_matter():
    model, given = TwoLayers(), drawn(0)
    objective = IBERM(ib_penalty_anneal_iters=0)
    expected = value(objective, model, given)
    assert value(objective, model, given[::-1]) == pytest.approx(expected, rel=1e-12)
    reverse = shuffled(given, lambda n: list(range(n))[::-1])
    assert value(objective, model, reverse) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("given", [drawn(0, (6,)), one_class(drawn(0))])
def test_one_domain_and_missing_classes_give_finite_gradients(given):
    model = TwoLayers()
    IBERM(ib_penalty_anneal_iters=0)(model, given).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_features_that_do_not_vary_give_finite_gradients():
    model, (batch,) = TwoLayers(), drawn(0, (1,))
    twice = Batch(batch.images.repeat(2, 1, 1, 1), batch.labels.repeat(2), batch.domains.repeat(2))
    objective = IBERM(ib_penalty_anneal_iters=0)
    objective(model, [twice, twice]).backward()
    assert objective.parts["penalty"] == 0
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("sizes", [(3, 1), (1,)])
@pytest.mark.parametrize("anneal", [0, 9])
def test_a_domain_of_one_sample_has_no_variance(sizes, anneal):
    with pytest.raises(
        InputError,
        match=r"IBERM needs at least 2 samples per domain for a variance, got 1 of domain \[\d\]; use a larger",
    ):
        IBERM(ib_penalty_anneal_iters=anneal)(TwoLayers(), drawn(0, sizes))


def test_half_precision_is_the_networks_alone():
    assert_half_precision(IBERM(ib_lambda=30.0, ib_penalty_anneal_iters=0))


def test_variances_beyond_half_precision_are_finite():
    given = drawn(0)
    random = torch.Generator().manual_seed(0)
    half = Outputs(2000 * torch.randn(13, 4, generator=random).half(), torch.zeros(13, 3))
    assert IBERM(ib_penalty_anneal_iters=0)(Replay(half, given), given).item() > 1e8


def test_a_run_that_was_saved_and_loaded_ends_with_the_same_bits():
    forgotten, whole = assert_continues(lambda: IBERM(ib_lambda=9, ib_penalty_anneal_iters=3))
    assert not torch.equal(forgotten[1]["first"], whole[1]["first"])


def test_the_options_are_named():
    assert IBERM().configuration() == {"ib_lambda": 100.0, "ib_penalty_anneal_iters": 500}
    options = {"ib_lambda": 3.5, "ib_penalty_anneal_iters": 7}
    assert IBERM(**options).configuration() == options


@pytest.mark.parametrize("weight", [-1, math.inf, math.nan])
def test_the_weight_must_be_a_number_from_zero(weight):
    with pytest.raises(
        InputError, match=r"IBERM needs a finite ib_lambda of 0 or more, got .*; 100 is usual"
    ):
        IBERM(ib_lambda=weight)


def test_the_anneal_step_must_be_a_count():
    with pytest.raises(
        InputError, match=r"IBERM needs ib_penalty_anneal_iters to be a whole number .*got -1"
    ):
        IBERM(ib_penalty_anneal_iters=-1)
