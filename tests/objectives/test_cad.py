import copy
import math

import pytest
import torch
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_erm import batches
from tests.reference import cad as reference

from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._cad import CAD
from mirepoix.objectives._cond_cad import CondCAD
from mirepoix.types import Batch, InputError, Outputs

KINDS = [CAD, CondCAD]


def slow_options(objective):
    projection = objective.projection
    return {
        "conditional": isinstance(objective, CondCAD),
        "lmbda": objective.lmbda,
        "temperature": objective.temperature,
        "normalized": objective.is_normalized,
        "flipped": objective.is_flipped,
        "head": None if not objective.is_project else list(projection.parameters()),
    }


def domain(pixels, labels):
    images = torch.tensor(pixels, dtype=torch.float64).reshape(-1, 1, 1, 1)
    return Batch(images, torch.tensor(labels), torch.zeros(len(labels), dtype=torch.int64))


def pixels_as_features(images):
    return Outputs(images.flatten(1), torch.zeros(len(images), 3, dtype=torch.float64))


@pytest.mark.parametrize("sizes", [(4, 6, 3), (1, 1), (5,), (1,), (2, 1, 1, 1)])
@pytest.mark.parametrize("flipped", [True, False])
@pytest.mark.parametrize("options", [{}, {"is_normalized": True, "temperature": 0.05}, {"is_project": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_updates_are_those_of_the_formula(kind, options, flipped, sizes):
    one, two, given = TwoLayers(), TwoLayers(), batches(sizes)
    fast = kind(**{"lmbda": 0.7, "temperature": 0.5, "features": 3, **options}, is_flipped=flipped).double()
    slow = copy.deepcopy(fast)
    optimizers = [  # with eps, as Adam would divide gradients that are zero up to rounding by their own size
        torch.optim.Adam([*model.parameters(), *own.parameters()], 1e-2, eps=1e-4)
        for model, own in ((one, fast), (two, slow))
    ]
    for _ in range(3):
        logged = fast.step(one, given, optimizers[0])
        optimizers[1].zero_grad()
        loss = reference.loss(two, given, **slow_options(slow))
        loss.backward()
        optimizers[1].step()
        assert logged["loss"].item() == pytest.approx(loss.item(), abs=1e-10)
    for a, b in zip(
        [*one.parameters(), *fast.parameters()], [*two.parameters(), *slow.parameters()], strict=True
    ):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=1e-10)


def test_three_samples_by_hand():
    # All of one class; similarities at temperature 1: 2 within the first domain, 3 and 6 to the other.
    given = [domain([1, 2], [0, 0]), domain([3], [0])]
    two, three, six = math.exp(2), math.exp(3), math.exp(6)

    def penalty(kind, flipped):
        loss = kind(lmbda=0.07, temperature=1.0, is_flipped=flipped)(pixels_as_features, given).item()
        return loss - math.log(3)  # 0.07 cancels the base temperature

    drawn = -(math.log(three / (two + three)) + math.log(six / (two + six)) + 0) / 3
    assert penalty(CAD, True) == pytest.approx(drawn, abs=1e-12)
    assert penalty(CondCAD, True) == pytest.approx(drawn, abs=1e-12)
    pushed = math.log((1 + two) / (two + three)) + math.log((1 + two) / (two + six)) - math.log(three + six)
    assert penalty(CAD, False) == pytest.approx(pushed / 3, abs=1e-12)
    within = (math.log(two / (two + three)) + math.log(two / (two + six))) / 2  # the third has no one at home
    assert penalty(CondCAD, False) == pytest.approx(within, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_weight_it_is_erm(kind):
    model, given = TwoLayers(), batches((4, 6))
    assert torch.equal(kind(lmbda=0.0)(model, given), ERM()(model, given))


@pytest.mark.parametrize("flipped", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_samples_and_of_domains_does_not_matter(kind, flipped):
    model, given = TwoLayers(), batches((3, 4, 5))
    objective = kind(lmbda=3.0, is_flipped=flipped)
    turned = [Batch(batch.images.flip(0), batch.labels.flip(0), batch.domains) for batch in given[::-1]]
    torch.testing.assert_close(objective(model, turned), objective(model, given), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_one_domain_has_no_penalty(kind):
    model, given = TwoLayers(), batches((6,))
    loss = kind(lmbda=3.0)(model, given)
    assert torch.equal(loss, ERM()(model, given))
    (gradient,) = torch.autograd.grad(loss, [model.first])
    assert gradient.isfinite().all()


def test_classes_of_one_domain_each_have_no_conditional_penalty():
    given = [domain([1, 2], [0, 0]), domain([3, 1], [1, 1])]
    assert CondCAD()(pixels_as_features, given).item() == pytest.approx(math.log(3), abs=1e-12)
    assert CAD()(pixels_as_features, given).item() > math.log(3) + 0.01


@pytest.mark.parametrize("flipped", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_where_similarities_are_large(kind, flipped):
    model = TwoLayers()
    given = [Batch(1000 * batch.images, batch.labels, batch.domains) for batch in batches((4, 1))]
    with torch.no_grad():
        model.last.mul_(1e-3)

    def large(images):
        outputs = model(images)
        return Outputs(1000 * outputs.features, outputs.logits)

    kind(is_flipped=flipped, lmbda=1e-6)(large, given).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_similarities_are_not_taken_in_half_precision(kind):
    def model(images):
        features = images.flatten(1).half()  # as under autocast; the products are beyond half precision
        return Outputs(features, torch.zeros(len(features), 3))

    given = [Batch(500 * batch.images.float(), batch.labels, batch.domains) for batch in batches((4, 6))]
    objective = kind(is_project=True, features=2)
    expected = objective(model, given)
    assert expected.isfinite()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(objective(model, given), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_trained_and_saved(kind):
    model, given = TwoLayers(), batches((4, 6))
    objective, other = (kind(is_project=True, features=3, seed=seed).double() for seed in (0, 1))
    assert [tuple(parameter.shape) for parameter in objective.parameters()] == [
        (3, 3),
        (3,),
        (128, 3),
        (128,),
    ]
    optimizer = torch.optim.Adam([*model.parameters(), *objective.parameters()], 1e-2)
    before = copy.deepcopy(objective.state_dict())
    for step in range(4):
        if step == 2:
            saved = copy.deepcopy((model.state_dict(), objective.state_dict(), optimizer.state_dict()))
        objective.step(model, given, optimizer)
    assert all(not torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    again = TwoLayers()
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    resumed = torch.optim.Adam([*again.parameters(), *other.parameters()], 1e-2)
    resumed.load_state_dict(saved[2])
    for _ in range(2):
        other.step(again, given, resumed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(objective.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_depends_on_its_seed_alone(kind):
    torch.manual_seed(0)
    one = kind(is_project=True, features=3)
    drawn = torch.rand(1)
    two, other = kind(is_project=True, features=3), kind(is_project=True, features=3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), drawn)
    assert kind().state_dict() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_sam_can_wrap_it(kind):
    model, given = TwoLayers(), batches((4, 6))
    logged = SAM(kind()).step(model, given, torch.optim.SGD(model.parameters(), 0.1))
    assert logged["loss"] > logged["unperturbed_loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_all_options_are_named(kind):
    options = {
        "lmbda": 3.0,
        "temperature": 0.05,
        "is_normalized": True,
        "is_project": True,
        "is_flipped": False,
        "features": 4,
        "seed": 5,
    }
    assert kind(**options).configuration() == options
    default = kind().configuration()
    assert (default["lmbda"], default["temperature"]) == (0.1, 0.1)
    assert (default["is_normalized"], default["is_project"], default["is_flipped"]) == (False, False, True)


@pytest.mark.parametrize("kind", KINDS)
def test_options_out_of_range_are_refused(kind):
    name = kind.__name__
    with pytest.raises(InputError, match=f"{name} needs a finite lmbda of 0 or more, got -1"):
        kind(lmbda=-1)
    with pytest.raises(InputError, match=f"{name} needs a positive, finite temperature, got 0"):
        kind(temperature=0)
    with pytest.raises(
        InputError, match=f"{name} with is_project=True needs the number of features, .* got None"
    ):
        kind(is_project=True)
    with pytest.raises(InputError, match=f"{name} was made for 4 features, got 3; make it with features=3"):
        kind(is_project=True, features=4)(TwoLayers(), batches())
