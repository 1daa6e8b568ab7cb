import math

import pytest
import torch
from tests.ensembles.test_bottleneck import Members, adam_of, drawn, joined, leaves, trained
from tests.ensembles.test_okddip import in_order
from tests.ensembles.test_one import assert_resumes, big, shuffled
from tests.reference import adp as reference
from tests.reference.plain import adam_step, new_adam
from tests.tiny import tiny_network

from mirepoix.ensembles import Independent, average_logits
from mirepoix.ensembles._adp import ADP, log_volumes
from mirepoix.types import Batch, InputError

CLASSES = 5


def network(members=3, classes=CLASSES):
    return Members(members=members, features=4, classes=classes)


def given(step, sizes=(3, 2), dtype=torch.float64):
    return drawn(step, sizes, classes=CLASSES, dtype=dtype)


@pytest.mark.parametrize("sizes", [(3, 2), (1,)])
@pytest.mark.parametrize("members", [1, 2, 3, 4])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.3, "beta": 1.5}, {"alpha": 2, "beta": 0}])
def test_updates_are_those_of_the_reference(options, members, sizes):
    model, objective = network(members), ADP(**options)
    optimizer, theta, memory = adam_of(model, objective), leaves(trained(model, objective)), new_adam()
    for step in range(3):
        images, labels = joined(given(step, sizes))
        expected, parts = reference.adp(theta, images, labels, **objective.configuration())
        theta = adam_step(theta, expected, memory)
        logged = objective.step(model, given(step, sizes), optimizer)
        assert set(logged) == {"loss", *parts}
        for name, value in {"loss": expected, **parts}.items():
            assert logged[name].item() == pytest.approx(value.item(), rel=1e-10)
        for name, value in trained(model, objective).items():
            assert (value - theta[name]).abs().max() < 1e-10


def test_without_weights_it_is_independent_members():
    model = network()
    assert torch.equal(ADP(alpha=0, beta=0)(model, given(0)), Independent()(model, given(0)))
    images = given(0)[0].images
    assert torch.equal(ADP().predict(model, images).logits, average_logits(model(images).logits))


@pytest.mark.parametrize("members", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_members_that_say_the_same_span_nothing(members, dtype):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 6, CLASSES, generator=random, dtype=dtype).repeat(members, 1, 1).requires_grad_()
    found = log_volumes(logits, torch.arange(6) % CLASSES)
    expected = math.log(members + 1e-6) + (members - 1) * math.log(1e-6)
    torch.testing.assert_close(found, torch.full((6,), expected, dtype=dtype), rtol=1e-6, atol=1e-9)
    found.sum().backward()
    assert logits.grad.abs().max() < 1e-6


def test_members_that_are_wrong_in_different_ways_span_a_unit_cube():
    logits = torch.full((3, 1, CLASSES), -200.0)
    labels = torch.tensor([1])
    for member, wrong in enumerate((0, 3, 4)):
        logits[member, 0, wrong] = 0.0
    assert log_volumes(logits, labels).item() == pytest.approx(3 * math.log1p(1e-6), abs=1e-7)


def test_what_members_say_of_the_true_class_does_not_matter():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, CLASSES, generator=random).requires_grad_()
    labels = torch.arange(6) % CLASSES
    true = torch.nn.functional.one_hot(labels, CLASSES).bool()
    log_volumes(logits, labels).sum().backward()
    assert logits.grad[:, true].abs().max() == 0
    assert logits.grad[:, ~true].abs().max() > 0
    # Also where the others have no probability in single precision.
    sure = logits.detach() + 300.0 * true
    assert (sure.softmax(-1)[:, ~true] == 0).all()
    torch.testing.assert_close(log_volumes(sure, labels), log_volumes(logits, labels).detach())


def test_the_determinant_is_not_lost_in_the_rounding_of_single_precision():
    random = torch.Generator().manual_seed(0)
    members, classes = 20, 50
    logits = torch.randn(1, 40, classes, generator=random) + 1e-4 * torch.randn(
        members, 40, classes, generator=random
    )
    labels = torch.zeros(40, dtype=torch.int64)
    found = log_volumes(logits, labels)
    torch.testing.assert_close(found.double(), log_volumes(logits.double(), labels), rtol=1e-6, atol=0)
    rows = logits.double()[:, :, 1:].softmax(-1).transpose(0, 1)
    rows = rows / rows.norm(dim=-1, keepdim=True)
    eigenvalues = 1e-6 + torch.linalg.svdvals(rows).square()
    torch.testing.assert_close(found.double(), eigenvalues.log().sum(-1), rtol=1e-6, atol=0)


def test_the_order_of_samples_and_of_members_does_not_matter():
    model, objective = network(), ADP()
    (batch,) = given(0, (5,))
    expected = objective(model, [batch])
    torch.testing.assert_close(objective(model, shuffled([batch], [3, 0, 4, 1, 2])), expected)
    torch.testing.assert_close(objective(in_order([2, 0, 1], model), [batch]), expected)


def test_the_terms_make_up_the_loss_and_have_their_signs():
    objective = ADP(alpha=3, beta=0.25)
    logged = objective.step(network(), given(0), adam_of(network(), objective))
    total = logged["nll"] - 3 * logged["entropy"] - 0.25 * logged["log_det"]
    torch.testing.assert_close(logged["loss"], total)
    assert 0 < logged["entropy"] < math.log(CLASSES)
    assert logged["log_det"] < 0


def test_it_makes_members_differ():
    ends = []
    for beta in (0, 2):
        model, objective = network(2), ADP(alpha=1, beta=beta)
        optimizer = adam_of(model, objective)
        for _ in range(20):
            objective.step(model, given(0), optimizer)
        images, labels = joined(given(0))
        ends.append(log_volumes(model(images).logits, torch.tensor(labels)).mean().item())
    assert ends[1] > ends[0] + 0.1


def test_more_members_than_wrong_classes_are_refused():
    message = (
        "ADP needs at most 4 members for 5 classes, got 5: there is no room for more directions among the wrong "
        "classes; use fewer members, or beta=0"
    )
    with pytest.raises(InputError, match=message):
        ADP()(network(5), given(0))
    assert ADP(beta=0)(network(5), given(0)).isfinite()
    with pytest.raises(InputError, match="ADP needs a network of several members"):
        ADP()(tiny_network().build().double(), big())


def test_missing_classes_and_sure_members_give_finite_gradients():
    for scale in (1, 1e4):
        model = network().float()
        with torch.no_grad():
            for own in model.classifier:
                own.weight.mul_(scale)
        (batch,) = given(0, (4,), torch.float32)
        loss = ADP()(model, [Batch(batch.images, torch.ones(4, dtype=torch.int64), batch.domains)])
        loss.backward()
        assert loss.isfinite()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_half_precision():
    model, objective = network().float(), ADP()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(model, given(0, dtype=torch.float32))
    assert {value.dtype for value in (loss, *objective.parts.values())} == {torch.float32}
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    assert_resumes(ADP(), tmp_path, classes=4)


def test_the_options_are_named():
    assert ADP().configuration() == {"alpha": 2.0, "beta": 0.5}
    assert ADP(alpha=1, beta=0).configuration() == {"alpha": 1.0, "beta": 0.0}
    assert not list(ADP().parameters())
    assert not ADP().state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1}, "ADP needs alpha to be 0 or more, got -1.0"),
        ({"beta": -0.5}, "ADP needs beta to be 0 or more, got -0.5; 0 leaves its term out"),
        ({"beta": math.inf}, "ADP needs beta to be a finite number, got inf"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ADP(**options)
