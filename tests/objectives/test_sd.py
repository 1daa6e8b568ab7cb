import math

import pytest
import torch
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_irm import (
    Replay,
    adam,
    assert_continues,
    assert_follows,
    assert_half_precision,
    drawn,
    one_class,
    shuffled,
    value,
)
from tests.reference import sd

from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._sd import SD
from mirepoix.types import Batch, InputError, Outputs


@pytest.mark.parametrize("weight", [0.1, 4.0])
@pytest.mark.parametrize("sizes", [(4, 7, 2), (1,), (1, 5)])
def test_updates_follow_the_reference(weight, sizes):
    assert_follows(SD(sd_reg=weight), sd.update, {"sd_reg": weight}, sizes, updates=3)


def test_two_samples_by_hand():
    def model(images):
        return Outputs(images.flatten(1), images.flatten(1))

    # Squares 9, 9, 1, 1, so 5 on average; the logits of a sample are equal, so the risk is log 2.
    images = torch.tensor([[3.0, 3.0], [-1.0, -1.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    given = [Batch(images, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.int64))]
    assert value(SD(sd_reg=0.3), model, given) == pytest.approx(math.log(2) + 1.5, abs=1e-12)


def test_weight_zero_is_erm():
    model, given = TwoLayers(), drawn(0)
    assert torch.equal(SD(sd_reg=0)(model, given), ERM()(model, given))


def test_the_order_and_the_borders_of_domains_and_the_order_of_samples_do_not_matter():
    model, given = TwoLayers(), drawn(0)
    expected = value(SD(), model, given)
    assert value(SD(), model, given[::-1]) == pytest.approx(expected, rel=1e-12)
    reverse = shuffled(given, lambda n: list(range(n))[::-1])
    assert value(SD(), model, reverse) == pytest.approx(expected, rel=1e-12)
    fields = ("images", "labels", "domains")
    one = Batch(*(torch.cat([getattr(batch, field) for batch in given]) for field in fields))
    assert value(SD(), model, [one]) == expected


def test_missing_classes_give_finite_gradients():
    model = TwoLayers()
    SD()(model, one_class(drawn(0))).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_half_precision_is_the_networks_alone():
    assert_half_precision(SD(sd_reg=3.0))


def test_squares_beyond_half_precision_are_finite():
    given = drawn(0)
    half = Outputs(torch.zeros(13, 1), torch.full((13, 3), 1000.0).half())
    assert SD(sd_reg=1)(Replay(half, given), given).item() == pytest.approx(1e6 + math.log(3))


def test_there_is_no_state_so_a_run_continues_without():
    assert SD().state_dict() == {}
    forgotten, whole = assert_continues(SD)
    torch.testing.assert_close(forgotten, whole, rtol=0, atol=0)


def test_sam_can_wrap_it():
    model = TwoLayers()
    logged = SAM(SD(sd_reg=2)).step(model, drawn(0), adam(model))
    assert logged["unperturbed_loss"].item() == value(SD(sd_reg=2), TwoLayers(), drawn(0))


def test_the_option_is_named():
    assert SD().configuration() == {"sd_reg": 0.1}
    assert SD(sd_reg=3).configuration() == {"sd_reg": 3.0}


@pytest.mark.parametrize("weight", [-1, math.inf, math.nan])
def test_the_weight_must_be_a_number_from_zero(weight):
    with pytest.raises(InputError, match=r"SD needs a finite sd_reg of 0 or more, got .*; 0\.1 is usual"):
        SD(sd_reg=weight)
