import copy
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
    assert_training_continues,
    drawn,
    mean_risk,
    one_class,
    shuffled,
    value,
)
from tests.reference import group_dro

from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._group_dro import GroupDRO
from mirepoix.types import Batch, InputError, Outputs


@pytest.mark.parametrize("eta", [0.01, 0.7, 20.0])
@pytest.mark.parametrize("sizes", [(4, 7, 2), (1, 5)])
def test_updates_follow_the_reference_and_so_do_the_weights_of_domains(eta, sizes):
    objective = GroupDRO(domains=len(sizes), groupdro_eta=eta).double()
    state = assert_follows(objective, group_dro.update, {"groupdro_eta": eta}, sizes)
    assert objective.log_weights.exp().tolist() == pytest.approx(state["q"], abs=1e-12)


def test_two_domains_by_hand():
    # Logits (0, 0) and (log 3, 0), class 1: risks log 2 and log 4, so with eta 1 the weights are 1/3 and 2/3.
    def model(images):
        return Outputs(images.flatten(1), images.flatten(1))

    def domain(logit):
        images = torch.tensor([[logit, 0.0]], dtype=torch.float64).reshape(1, 1, 1, 2)
        return Batch(images, torch.tensor([1]), torch.tensor([0]))

    given = [domain(0.0), domain(math.log(3))]
    objective = GroupDRO(domains=2, groupdro_eta=1).double()
    assert value(objective, model, given) == pytest.approx(math.log(2) / 3 + 2 * math.log(4) / 3, abs=1e-12)
    # The same again: 1/3 * 2 and 2/3 * 4, so 1/5 and 4/5.
    assert value(objective, model, given) == pytest.approx(math.log(2) / 5 + 4 * math.log(4) / 5, abs=1e-12)
    assert objective.log_weights.exp().tolist() == pytest.approx([0.2, 0.8], abs=1e-12)


def test_eta_zero_is_the_mean_risk_and_erm_on_domains_of_one_size():
    model = TwoLayers()
    objective = GroupDRO(domains=3, groupdro_eta=0).double()
    for seed in range(3):
        assert value(objective, model, drawn(seed)) == pytest.approx(mean_risk(model, drawn(seed)), abs=1e-12)
    given = drawn(0, (4, 4, 4))
    torch.testing.assert_close(objective(model, given), ERM()(model, given), rtol=1e-12, atol=0)


def test_the_weights_are_a_constant_for_the_gradient():
    model, given = TwoLayers(), drawn(0)
    objective = GroupDRO(domains=3, groupdro_eta=5.0).double()
    gradients = torch.autograd.grad(objective(model, given), list(model.parameters()))
    weights = objective.log_weights.exp()
    risks = torch.stack([ERM()(model, [batch]) for batch in given])
    expected = torch.autograd.grad(weights @ risks, list(model.parameters()))
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-14)


def test_the_order_of_domains_and_of_samples_does_not_matter():
    one, two = GroupDRO(domains=3, groupdro_eta=3), GroupDRO(domains=3, groupdro_eta=3)
    model = TwoLayers()
    for seed in range(3):
        given = drawn(seed)
        other = shuffled(given[::-1], lambda n: list(range(n))[::-1])
        assert value(one, model, given) == pytest.approx(value(two, model, other), rel=1e-6)
    torch.testing.assert_close(one.log_weights, two.log_weights.flip(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 6])
def test_one_domain_is_erm(size):
    model, given = TwoLayers(), drawn(0, (size,))
    objective = GroupDRO(domains=1, groupdro_eta=0.5)
    for _ in range(2):
        assert torch.equal(objective(model, given), ERM()(model, given))


def test_a_domain_that_was_forgotten_comes_back():
    # Its weight is e^-600, which is zero in single precision: as a product it would stay there.
    def model(images):
        return Outputs(images.flatten(1), images.flatten(1))

    def domain(logit):
        images = torch.tensor([[logit, 0.0]]).reshape(1, 1, 1, 2)
        return Batch(images, torch.tensor([1]), torch.tensor([0]))

    objective = GroupDRO(domains=2, groupdro_eta=1)
    bad, good = domain(300.0), domain(-300.0)
    assert [value(objective, model, [bad, good]) for _ in range(2)] == [300.0, 300.0]
    assert objective.log_weights.exp().tolist() == [1.0, 0.0]
    losses = [value(objective, model, [good, bad]) for _ in range(3)]
    assert losses[0] < 1e-30
    assert losses[1] == pytest.approx(150)
    assert losses[2] == pytest.approx(300)


def test_missing_classes_give_finite_gradients():
    model = TwoLayers()
    GroupDRO(domains=3)(model, one_class(drawn(0))).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_half_precision_is_the_networks_alone():
    assert_half_precision(GroupDRO(domains=3, groupdro_eta=2.0))


def test_risks_are_in_single_precision_for_a_network_in_half_precision_too():
    given = drawn(0)
    half = Outputs(torch.zeros(13, 1), TwoLayers()(torch.cat([b.images for b in given])).logits.bfloat16())
    single = Outputs(half.features, half.logits.float())
    losses = [GroupDRO(domains=3)(Replay(outputs, given), given) for outputs in (half, single)]
    assert torch.equal(*losses)


def test_the_state_has_its_shape_from_the_start_and_stays_out_of_the_gradient():
    objective, model = GroupDRO(domains=3, groupdro_eta=2), TwoLayers()
    fresh = objective.state_dict()
    assert fresh["log_weights"].tolist() == pytest.approx([-math.log(3)] * 3)
    objective.step(model, drawn(0), adam(model))
    GroupDRO(domains=3).load_state_dict(objective.state_dict())  # strictly
    assert not objective.log_weights.requires_grad
    assert list(objective.parameters()) == []


def test_a_run_that_was_saved_and_loaded_ends_with_the_same_bits():
    forgotten, whole = assert_continues(lambda: GroupDRO(domains=3, groupdro_eta=2))
    assert not torch.equal(forgotten[1]["first"], whole[1]["first"])
    assert_continues(lambda: GroupDRO(domains=3, groupdro_eta=2), torch.float64)


def test_a_training_that_was_interrupted_ends_with_the_same_bits(tmp_path):
    assert_training_continues(GroupDRO(domains=2, groupdro_eta=0.5), tmp_path)


def test_within_sam_the_weights_move_once():
    model, given = TwoLayers(), drawn(0)
    objective = GroupDRO(domains=3, groupdro_eta=4.0).double()
    still = copy.deepcopy(objective)
    SAM(objective, rho=1e-9).step(model, given, torch.optim.SGD(model.parameters(), lr=0.0))
    still(model, given)
    torch.testing.assert_close(objective.log_weights, still.log_weights, rtol=1e-6, atol=0)


def test_losses_of_two_updates_can_be_kept():
    model, objective = TwoLayers(), GroupDRO(domains=3)
    (objective(model, drawn(0)) + objective(model, drawn(1))).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_another_number_of_domains_is_refused():
    with pytest.raises(
        InputError, match=r"GroupDRO was made for 2 source domains, got 3; make it with domains=3"
    ):
        GroupDRO(domains=2)(TwoLayers(), drawn(0))


def test_the_options_are_named():
    assert GroupDRO(domains=3).configuration() == {"domains": 3, "groupdro_eta": 0.01}
    options = {"domains": 4, "groupdro_eta": 0.05}
    assert GroupDRO(**options).configuration() == options


@pytest.mark.parametrize("eta", [-1, math.inf, math.nan])
def test_eta_must_be_a_number_from_zero(eta):
    with pytest.raises(
        InputError, match=r"GroupDRO needs a finite groupdro_eta of 0 or more, got .*; 0\.01 is usual"
    ):
        GroupDRO(domains=3, groupdro_eta=eta)


@pytest.mark.parametrize("domains", [0, -2, 1.5, True])
def test_domains_must_be_a_count(domains):
    with pytest.raises(InputError, match="GroupDRO needs a whole number of domains from 1, got"):
        GroupDRO(domains=domains)
