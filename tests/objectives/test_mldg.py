import copy
import math

import pytest
import torch
from tests.objectives.test_and_mask import (
    LR,
    WEIGHT_DECAY,
    Overflowing,
    Single,
    adam_of,
    as_lists,
    assert_continues,
    assert_half_precision_trains,
    assert_same,
    assert_scaler_changes_nothing,
    drawn,
    in_single,
    moved,
    reordered,
    weights_of,
)
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_fish import Tracking
from tests.reference import mldg
from tests.reference.complex_step import fresh
from torch import nn

from mirepoix.objectives import ERM
from mirepoix.objectives._mldg import MLDG
from mirepoix.types import InputError


def assert_follows_with_draws(objective, sizes, n_meta_test, mldg_beta, tolerance=1e-10):
    model = TwoLayers()
    optimizer, theta = adam_of(model), weights_of(model)
    memory = fresh(theta)
    for step in range(3):
        torch.manual_seed(step)
        order = torch.randperm(len(sizes)).tolist()
        given = drawn(step, sizes)
        theta, memory, parts = mldg.update(
            theta, memory, as_lists(given), LR, WEIGHT_DECAY, mldg_beta, n_meta_test, order
        )
        torch.manual_seed(step)
        logged = objective.step(model, given, optimizer)
        assert_same(theta, memory, optimizer, model, tolerance=tolerance)
        assert logged["loss"].item() == pytest.approx(parts["loss"], rel=1e-10)
        assert not logged["loss"].requires_grad


@pytest.mark.parametrize("mldg_beta", [1.0, 0.3])
@pytest.mark.parametrize(
    ("sizes", "n_meta_test"), [((3, 5, 4), 2), ((3, 5, 4), 1), ((2, 3, 1, 4, 2), 2), ((2, 3, 2, 4, 2), 3)]
)
def test_updates_are_those_of_the_reference(sizes, n_meta_test, mldg_beta):
    objective = MLDG(mldg_beta=mldg_beta, n_meta_test=n_meta_test)
    assert_follows_with_draws(objective, sizes, n_meta_test, mldg_beta)


@pytest.mark.parametrize("sizes", [(3, 5), (4, 4)])
def test_meta_test_domains_are_at_most_one_less_than_domains(sizes):
    assert_follows_with_draws(MLDG(n_meta_test=2), sizes, 1, 1.0)


def test_the_released_default_trains_nothing_on_two_domains():
    model, given = TwoLayers(), drawn(0, (3, 5))
    before = copy.deepcopy(model)
    logged = MLDG(parity=True).step(model, given, adam_of(model, weight_decay=0))
    assert torch.equal(model.first, before.first)
    assert logged["loss"].item() == 0.0
    assert_follows_with_draws(MLDG(parity=True), (3, 5), 2, 1.0)  # weight decay alone
    assert_follows_with_draws(MLDG(parity=True, n_meta_test=1), (3,), 1, 1.0)


def test_parity_changes_nothing_where_there_are_pairs():
    given = drawn(0)
    assert torch.equal(moved(MLDG(parity=True), given), moved(MLDG(), given))


def test_one_domain_is_refused():
    model = TwoLayers()
    with pytest.raises(
        InputError, match=r"MLDG needs at least 2 source domains, .*got 1\. With one there is ERM"
    ):
        MLDG().step(model, drawn(0, (4,)), adam_of(model))


def test_without_meta_test_risks_it_is_part_of_the_mean_risk():
    # One pair of three domains: the gradient of the domain that comes first, a third of it.
    given = drawn(0, (4, 4, 4))
    torch.manual_seed(0)
    first = given[torch.randperm(3)[0]]
    start = moved(ERM(), [first], lr=0.0)
    expected = start + (moved(ERM(), [first]) - start) / 3
    torch.testing.assert_close(moved(MLDG(mldg_beta=0), given), expected, rtol=1e-12, atol=1e-14)


def test_the_inner_step_is_that_of_the_optimizer_given():
    # Gradient descent: the second gradient is taken at theta - lr g.
    one, two = given = drawn(0, (4, 4))
    torch.manual_seed(0)
    if torch.randperm(2)[0] == 1:
        one, two = two, one
    model = TwoLayers()
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    gradients = torch.autograd.grad(ERM()(model, [one]), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(0.1 * gradient)
    tested = torch.autograd.grad(ERM()(model, [two]), parameters)
    expected = [b - 0.1 * (g + 3 * t) / 2 for b, g, t in zip(before, gradients, tested, strict=True)]
    result = moved(MLDG(mldg_beta=3), given)
    torch.testing.assert_close(result, torch.cat([e.flatten() for e in expected]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_the_moments_of_the_optimizer_move_once(kind):
    model = TwoLayers()
    optimizer = kind(model.parameters(), lr=0.01, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    for step in range(2):
        MLDG().step(model, drawn(step), optimizer)
    for state in optimizer.state.values():
        assert state.get("step", torch.tensor(2)).item() == 2
        assert len(state) > 0


def test_buffers_come_back():
    model = Tracking()
    MLDG().step(model, drawn(0), adam_of(model))
    assert model.passes.item() == 7
    assert model.level.item() == 1.0


def test_weights_come_back_when_a_pass_fails():
    class Failing(Tracking):
        def forward(self, images):
            outputs = super().forward(images)
            if self.passes == 9:
                raise RuntimeError("out of memory")
            return outputs

    model = Failing()
    before = copy.deepcopy(model.state_dict())
    optimizer = adam_of(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        MLDG().step(model, drawn(0), optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not optimizer.state


def test_parameters_that_no_domain_uses_have_gradient_zero():
    model = TwoLayers()
    model.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))
    MLDG().step(model, drawn(0), torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5))
    assert model.idle.tolist() == [0.95, 0.95]


def test_frozen_weights_stay():
    model = TwoLayers()
    before = copy.deepcopy(model)
    model.first.requires_grad_(False)
    MLDG().step(model, drawn(0), adam_of(model))
    assert torch.equal(model.first, before.first)
    assert not torch.equal(model.last, before.last)


def test_every_domain_is_sometimes_met_and_the_same_seed_gives_the_same_bits():
    given = drawn(0, (4, 4, 4))
    ends = [tuple(moved(MLDG(), given, seed=seed).tolist()) for seed in range(40)]
    assert len(set(ends)) == 6  # one ordered pair of three domains
    assert tuple(moved(MLDG(), given, seed=0).tolist()) == ends[0]


def test_the_order_of_samples_does_not_matter():
    given = drawn(0, (4, 4, 4))
    torch.testing.assert_close(moved(MLDG(), reordered(given)), moved(MLDG(), given), rtol=1e-12, atol=1e-14)


def test_the_order_of_domains_does_not_matter_in_distribution():
    given = drawn(0, (4, 4, 4))

    def ends(domains):
        found = {
            tuple(round(x, 10) for x in moved(MLDG(), domains, seed=seed).tolist()) for seed in range(40)
        }
        return sorted(found)

    assert ends(given) == ends(given[::-1])


def test_forward_is_the_mean_risk():
    model, given = TwoLayers(), drawn(0)
    expected = sum(ERM()(model, [batch]) for batch in given) / 3
    torch.testing.assert_close(MLDG()(model, given), expected, rtol=1e-12, atol=0)


def test_half_precision():
    assert_half_precision_trains(MLDG)


def test_the_second_pass_under_autocast_sees_the_weights_of_the_inner_step():
    losses = []
    for half in (False, True):
        model = Single()
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            optimizer = torch.optim.SGD(model.parameters(), lr=3.0)
            losses.append(MLDG(mldg_beta=10.0).step(model, in_single(drawn(0)), optimizer)["loss"].item())
    torch.manual_seed(0)
    unmoved = MLDG(mldg_beta=10.0).step(
        Single(), in_single(drawn(0)), torch.optim.SGD(Single().parameters(), lr=0.0)
    )
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert abs(losses[0] - unmoved["loss"].item()) > 0.3


def test_the_scale_of_a_scaler_cancels():
    assert_scaler_changes_nothing(MLDG)


def test_a_scaler_skips_a_step_whose_inner_gradient_overflows_and_the_loss_is_a_number():
    model, scaler = Overflowing(), torch.amp.GradScaler("cpu", init_scale=8.0)
    before = copy.deepcopy(model)
    optimizer = adam_of(model)
    logged = MLDG().step(model, drawn(0), optimizer, scaler)
    assert logged["loss"].isfinite()
    assert torch.equal(model.first, before.first)
    assert scaler.get_scale() == 4.0
    MLDG().step(model, drawn(1), optimizer, scaler)
    assert model.first.isfinite().all()
    assert not torch.equal(model.first, before.first)


def test_without_a_scaler_a_gradient_that_is_not_finite_ends_in_nan():
    model = Overflowing()
    MLDG().step(model, drawn(0), adam_of(model))
    assert model.first.isnan().any()


def test_a_run_continues_with_the_same_bits():
    assert_continues(MLDG)
    assert MLDG().state_dict() == {}


def test_the_options_are_named():
    assert MLDG().configuration() == {"mldg_beta": 1.0, "n_meta_test": 2, "parity": False}
    options = {"mldg_beta": 0.5, "n_meta_test": 1, "parity": True}
    assert MLDG(**options).configuration() == options


@pytest.mark.parametrize("beta", [-1, math.inf, math.nan])
def test_beta_must_be_a_number_from_zero(beta):
    with pytest.raises(InputError, match=r"MLDG needs a finite mldg_beta of 0 or more, got .*; 1 is usual"):
        MLDG(mldg_beta=beta)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_meta_test_domains_must_be_a_count(count):
    with pytest.raises(
        InputError, match="MLDG needs n_meta_test to be a whole number of domains from 1, got"
    ):
        MLDG(n_meta_test=count)
