import copy
import math

import pytest
import torch
from tests.objectives.test_and_mask import (
    adam_of,
    assert_continues,
    assert_follows,
    assert_half_precision_trains,
    assert_scaler_changes_nothing,
    drawn,
    mean_risk_step,
    moved,
    reordered,
)
from tests.objectives.test_coral import TwoLayers
from tests.reference import sand_mask

from mirepoix.objectives import ERM
from mirepoix.objectives._sand_mask import SANDMask
from mirepoix.types import InputError


@pytest.mark.parametrize(
    "options", [{"tau": 0.5, "k": 10.0}, {"tau": 0.2, "k": 0.004}, {"tau": 0.0, "k": 1e-3}]
)
@pytest.mark.parametrize("sizes", [(3, 5, 4), (1, 4), (6,)])
def test_updates_are_those_of_the_reference(options, sizes):
    assert_follows(SANDMask(**options), sand_mask.update, sizes, **options)


def test_a_mask_by_hand():
    # Signs +++ with variance 1; ++- with variance 3; ++0 with variance 1 / 3; and no variance at all.
    gradients = torch.tensor([[1.0, 2, 1, 4], [2, 2, 1, 4], [3, -1, 0, 4]], dtype=torch.float64)
    assert SANDMask(tau=0.5, k=0.7).mask(gradients).tolist() == pytest.approx(
        [math.tanh(0.7 * 0.5), 0, math.tanh(0.7 * 3 * (2 / 3 - 0.5)), 1]
    )


def test_zero_variance_and_an_agreement_of_exactly_tau_is_the_released_number():
    gradients = torch.zeros(2, 3)  # a variance of 0 and an agreement of 0
    assert SANDMask(tau=0.0).mask(gradients).tolist() == pytest.approx([1e-17] * 3)
    assert SANDMask(tau=0.5).mask(gradients).tolist() == [0, 0, 0]


def test_the_default_trains():
    model = TwoLayers()
    before = copy.deepcopy(model)
    logged = SANDMask().step(model, drawn(0), adam_of(model, weight_decay=0))
    assert logged["kept"] > 0
    for one, other in zip(model.parameters(), before.parameters(), strict=True):
        assert not torch.equal(one, other)


def test_the_released_default_trains_nothing():
    model = TwoLayers()
    before = copy.deepcopy(model)
    optimizer = adam_of(model, weight_decay=0)
    for step in range(3):
        logged = SANDMask(parity=True).step(model, drawn(step), optimizer)
        assert logged["kept"].item() == 0.0
    for one, other in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("domains", [1, 2, 3, 4, 5, 6])
def test_unanimous_entries_move_at_the_default_whatever_the_number_of_domains(domains):
    random = torch.Generator().manual_seed(0)
    gradients = 1e-3 * torch.rand(domains, 4, generator=random) + 1e-4
    assert torch.equal(SANDMask().mask(gradients), torch.ones(4))


def test_a_steep_mask_at_tau_near_one_is_the_and_mask():
    from mirepoix.objectives._and_mask import ANDMask

    given = drawn(0)
    torch.testing.assert_close(moved(SANDMask(tau=0.99, k=1e5), given), moved(ANDMask(tau=1), given))


def test_one_domain_is_erm():
    given = drawn(0, (6,))
    torch.testing.assert_close(moved(SANDMask(), given), mean_risk_step(given), rtol=1e-8, atol=1e-9)


def test_forward_is_the_mean_risk():
    model, given = TwoLayers(), drawn(0)
    expected = sum(ERM()(model, [batch]) for batch in given) / 3
    torch.testing.assert_close(SANDMask()(model, given), expected, rtol=1e-12, atol=0)


def test_the_order_of_samples_and_of_domains_does_not_matter():
    given = drawn(0)
    expected = moved(SANDMask(k=0.01), given)
    torch.testing.assert_close(moved(SANDMask(k=0.01), given[::-1]), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(moved(SANDMask(k=0.01), reordered(given)), expected, rtol=1e-12, atol=1e-14)


def test_gradients_that_are_not_finite_stay_so():
    model = TwoLayers()
    with torch.no_grad():
        model.last[0, 0] = math.nan
    SANDMask().step(model, drawn(0), adam_of(model))
    assert model.last.isnan().any()


def test_half_precision():
    assert_half_precision_trains(lambda: SANDMask(tau=0.2, k=1e-3))


def test_the_mask_is_that_of_gradients_without_the_scale_of_a_scaler():
    assert_scaler_changes_nothing(lambda: SANDMask(tau=0.2, k=0.01))


def test_a_run_continues_with_the_same_bits():
    assert_continues(SANDMask)
    assert SANDMask().state_dict() == {}


def test_the_options_are_named():
    assert SANDMask().configuration() == {"tau": 0.5, "k": 10.0, "parity": False}
    assert SANDMask(parity=True).configuration() == {"tau": 1.0, "k": 10.0, "parity": True}
    options = {"tau": 0.3, "k": 2.0, "parity": True}
    assert SANDMask(**options).configuration() == options


@pytest.mark.parametrize("tau", [-0.1, 1.1, math.nan])
def test_tau_must_be_a_share(tau):
    with pytest.raises(InputError, match=r"SANDMask needs tau to be a share in \[0, 1\), got .*0\.5 trains"):
        SANDMask(tau=tau)


def test_a_tau_that_trains_nothing_is_refused():
    with pytest.raises(
        InputError, match=r"SANDMask needs tau below 1, got 1: .*nothing would be trained.*parity=True"
    ):
        SANDMask(tau=1)


@pytest.mark.parametrize("k", [0, -1, math.inf, math.nan])
def test_k_must_be_positive(k):
    with pytest.raises(InputError, match=r"SANDMask needs a positive, finite k, got .*; 10 is usual"):
        SANDMask(k=k)
