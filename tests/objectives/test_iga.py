import copy
import math

import pytest
import torch
from tests.objectives.test_and_mask import (
    adam_of,
    assert_continues,
    assert_follows,
    assert_half_precision_trains,
    drawn,
    mean_risk_step,
    moved,
    reordered,
)
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_erm import batches
from tests.reference import iga
from torch import nn

from mirepoix.objectives import ERM
from mirepoix.objectives._iga import IGA
from mirepoix.types import Batch, InputError, Outputs


@pytest.mark.parametrize("penalty", [1000.0, 3.0])
@pytest.mark.parametrize("sizes", [(3, 5, 4), (1, 4)])
def test_updates_are_those_of_the_reference(penalty, sizes):
    assert_follows(IGA(penalty=penalty), iga.update, sizes, penalty=penalty)


def test_two_gradients_by_hand():
    class Slope(nn.Module):
        """Logits (0, w x)."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, images):
            logits = torch.cat([torch.zeros_like(images.flatten(1)), self.weight * images.flatten(1)], 1)
            return Outputs(logits, logits)

    def domain(x):
        return Batch(torch.full((1, 1, 1, 1), x, dtype=torch.float64), torch.tensor([1]), torch.tensor([0]))

    # At w = 0 the gradient is -x / 2: -1 and -3, at distance 1 from their mean each. The second derivative is x^2 / 4,
    # so the gradient of the penalty is 2 (1 * 1 - 1 * 9) = -16, and that of the mean risk is -2.
    model = Slope()
    logged = IGA(penalty=10).step(
        model, [domain(2.0), domain(6.0)], torch.optim.SGD(model.parameters(), lr=1.0)
    )
    assert logged["penalty"].item() == pytest.approx(2)
    assert logged["nll"].item() == pytest.approx(math.log(2))
    assert logged["loss"].item() == pytest.approx(math.log(2) + 20)
    assert model.weight.item() == pytest.approx(2 + 160)


def test_the_mean_may_be_a_constant():
    model, given = TwoLayers(), drawn(0)
    parameters = list(model.parameters())
    risks = [ERM()(model, [batch]) for batch in given]
    gradients = [torch.autograd.grad(risk, parameters, create_graph=True) for risk in risks]
    distances = 0.0
    for of_domains in zip(*gradients, strict=True):
        stacked = torch.stack(of_domains)
        distances = distances + (stacked - stacked.mean(0)).square().sum()  # with a graph
    expected = torch.autograd.grad(sum(risks) / 3 + 7 * distances, parameters)
    IGA(penalty=7)(model, given).backward()
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)


def test_penalty_zero_is_the_mean_risk():
    given = drawn(0)
    torch.testing.assert_close(moved(IGA(penalty=0), given), mean_risk_step(given), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [1, 6])
def test_one_domain_has_no_penalty(size):
    given = drawn(0, (size,))
    torch.testing.assert_close(moved(IGA(penalty=1e5), given), mean_risk_step(given), rtol=1e-12, atol=1e-14)


def test_equal_domains_have_no_penalty():
    model, (batch,) = TwoLayers(), batches((5,))
    loss = IGA(penalty=1e5)(model, [batch] * 3)
    torch.testing.assert_close(loss, ERM()(model, [batch]), rtol=1e-12, atol=0)


def test_the_order_of_samples_and_of_domains_does_not_matter():
    given = drawn(0)
    expected = moved(IGA(penalty=5), given)
    torch.testing.assert_close(moved(IGA(penalty=5), given[::-1]), expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(moved(IGA(penalty=5), reordered(given)), expected, rtol=1e-11, atol=1e-13)


def test_frozen_and_idle_weights_do_not_count():
    model, given = TwoLayers(), drawn(0)
    with_all = IGA(penalty=5)(model, given)
    model.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))
    assert torch.equal(IGA(penalty=5)(model, given), with_all)
    model.first.requires_grad_(False)
    before = copy.deepcopy(model)
    logged = IGA(penalty=5).step(model, given, adam_of(model))
    assert logged["loss"] < with_all
    assert torch.equal(model.first, before.first)
    assert torch.equal(model.idle, before.idle)
    assert not torch.equal(model.last, before.last)


def test_a_compiled_network_is_used_as_it_was():
    class Compiled(nn.Module):
        """As `torch.compile` wraps."""

        def __init__(self, model):
            super().__init__()
            self._orig_mod = model

        def forward(self, images):
            raise RuntimeError("does not currently support double backward")

    given = drawn(0)
    assert torch.equal(moved(IGA(), given, Compiled(TwoLayers())), moved(IGA(), given))


def test_half_precision():
    assert_half_precision_trains(lambda: IGA(penalty=1.0))


def test_a_scaler_that_is_off_changes_nothing():
    one, two, given = TwoLayers(), TwoLayers(), drawn(0)
    IGA().step(one, given, adam_of(one))
    IGA().step(two, given, adam_of(two), torch.amp.GradScaler("cpu", enabled=False))
    assert torch.equal(one.first, two.first)


def test_a_scaler_that_is_on_is_refused():
    model = TwoLayers()
    with pytest.raises(InputError, match=r"IGA cannot be trained with a gradient scaler, got .*Use bf16"):
        IGA().step(model, drawn(0), adam_of(model), torch.amp.GradScaler("cpu"))


def test_a_run_continues_with_the_same_bits():
    assert_continues(lambda: IGA(penalty=2))
    assert IGA().state_dict() == {}


def test_a_copy_can_be_made_after_a_step():
    objective, model = IGA(), TwoLayers()
    objective.step(model, drawn(0), adam_of(model))
    assert copy.deepcopy(objective).configuration() == objective.configuration()


def test_the_option_is_named():
    assert IGA().configuration() == {"penalty": 1000.0}
    assert IGA(penalty=3).configuration() == {"penalty": 3.0}


@pytest.mark.parametrize("penalty", [-1, math.inf, math.nan])
def test_the_penalty_must_be_a_number_from_zero(penalty):
    with pytest.raises(InputError, match=r"IGA needs a finite penalty of 0 or more, got .*; 1000 is usual"):
        IGA(penalty=penalty)
