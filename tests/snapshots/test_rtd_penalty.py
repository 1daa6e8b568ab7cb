import math

import pytest
import torch
from tests.reference import rtd_penalty as reference
from tests.snapshots.later_samples import (
    REAL,
    SPEC,
    assert_updates_are,
    drawn,
    first_member,
    joined,
    moved,
    network,
    real_features,
    trained,
    weights,
)

from mirepoix.landscape import rtd, rtd_loss
from mirepoix.objectives import ERM
from mirepoix.snapshots import RTDPenalty
from mirepoix.types import Batch, InputError


@pytest.mark.parametrize("layers", [{"features": 1.0}, {"conv": 0.5}, {"features": 2.0, "conv": 0.25}])
@pytest.mark.parametrize("alpha", [0.0316, 3.0])
def test_updates_are_those_of_the_reference(alpha, layers):
    anchor = weights(1)
    objective = RTDPenalty(SPEC, [anchor], alpha=alpha, layers=layers)

    def loss(theta, images, labels):
        return reference.rtd_penalty(theta, anchor, images, labels, alpha=alpha, layers=layers)

    assert_updates_are(loss, objective, sizes=(2, 1))
    assert objective.parts["rtd"] > 0


def test_the_topology_is_that_of_the_training_mode_of_rtd():
    model, objective = network(), RTDPenalty(SPEC, [weights(1)], alpha=2)
    images, _ = joined(drawn(0, (40, 30)))
    with torch.no_grad():
        p, q = objective.member(0)(images).features, model(images).features
    objective(model, drawn(0, (40, 30)))
    assert objective.parts["rtd"].item() == pytest.approx(
        rtd(p, q, normalisation="dimension", longest=50).mean
    )
    assert torch.equal(objective.parts["rtd"], rtd_loss(p, q))


def test_transfer_is_the_gradient_of_the_public_code():
    gradients = []
    for gradient in ("exact", "transfer"):
        model, objective = network(), RTDPenalty(SPEC, [weights(1)], alpha=2, gradient=gradient)
        images, _ = joined(drawn(0, (20, 10)))
        loss = objective(model, drawn(0, (20, 10)))
        anchor = objective.member(0)(images).features
        term = rtd_loss(anchor, model(images).features, gradient=gradient)
        torch.testing.assert_close(loss, ERM()(model, drawn(0, (20, 10))) + 2 * term)
        (found,) = torch.autograd.grad(loss, [model.featurizer.conv.weight])
        (risk,) = torch.autograd.grad(ERM()(model, drawn(0, (20, 10))), [model.featurizer.conv.weight])
        (expected,) = torch.autograd.grad(term, [model.featurizer.conv.weight])
        torch.testing.assert_close(found, risk + 2 * expected)
        gradients.append(found)
    assert not torch.allclose(*gradients)


def test_at_the_anchor_the_term_and_its_gradient_are_zero():
    model, objective = network(1), RTDPenalty(SPEC, [weights(1)], alpha=100)
    loss = objective(model, drawn(0))
    loss.backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    risk = ERM()(model, drawn(0))
    risk.backward()
    assert torch.equal(loss, risk)
    assert objective.parts["rtd"] == 0
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        assert torch.equal(gradient, parameter.grad)


def test_it_brings_a_member_back_to_the_topology_of_the_first():
    first = first_member()
    start = moved(first)
    anchor = real_features(first)
    found = {}
    for alpha in (0.0, 3.0):
        member = trained(RTDPenalty(REAL, [first], alpha=alpha), start)
        found[alpha] = rtd(anchor, real_features(member), normalisation="dimension", longest=50).mean
    assert rtd(anchor, real_features(start), normalisation="dimension", longest=50).mean > 0
    assert found[3.0] < 0.7 * found[0.0]


def test_features_that_are_not_finite_make_the_loss_nan():
    model, objective = network(), RTDPenalty(SPEC, [weights(1)])
    with torch.no_grad():
        model.featurizer.conv.weight.fill_(math.nan)
    loss = objective(model, drawn(0))
    assert loss.isnan()
    loss.backward()


def test_images_that_are_all_equal_have_finite_gradients():
    model, objective = network(), RTDPenalty(SPEC, [weights(1)], alpha=5)
    ones = [Batch(torch.ones_like(b.images), b.labels, b.domains) for b in drawn(0)]
    loss = objective(model, ones)
    loss.backward()
    assert objective.parts["rtd"] == 0
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_fewer_than_three_samples_are_refused():
    message = "RTDPenalty needs at least 3 samples in the joint batch, got 2: fewer points have no topology"
    with pytest.raises(InputError, match=message):
        RTDPenalty(SPEC, [weights(1)])(network(), drawn(0, (1, 1)))


def test_the_options_are_named():
    plain = {"network": SPEC.to_dict(), "alpha": 0.0316, "layers": {"features": 1.0}, "gradient": "exact"}
    assert RTDPenalty(SPEC, [weights(1)]).configuration() == plain
    given = {"alpha": 1.0, "layers": {"conv": 2.0}, "gradient": "transfer"}
    assert RTDPenalty(SPEC, [weights(1)], **given).configuration() == {**plain, **given}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, "RTDPenalty needs alpha to be 0 or more, got -0.1; 0 leaves its term out"),
        ({"alpha": math.inf}, "RTDPenalty needs alpha to be a finite number, got inf"),
        ({"gradient": "public"}, "RTDPenalty needs gradient to be 'exact' or 'transfer', got 'public'"),
        ({"layers": {"layer9": 1.0}}, "RTDPenalty: layers must be 'features' or modules .* got 'layer9'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        RTDPenalty(SPEC, [weights(1)], **options)
