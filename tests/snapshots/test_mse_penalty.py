import math

import pytest
import torch
from tests.reference import mse_penalty as reference
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
from torch import nn

from mirepoix.objectives import ERM
from mirepoix.snapshots import MSEPenalty
from mirepoix.types import InputError


@pytest.mark.parametrize("sizes", [(3, 2), (1,)])
@pytest.mark.parametrize("layers", [{"features": 1.0}, {"conv": 0.5}, {"features": 2.0, "conv": 0.25}])
@pytest.mark.parametrize("alpha", [20, 0.3])
def test_updates_are_those_of_the_reference(alpha, layers, sizes):
    anchor = weights(1)
    objective = MSEPenalty(SPEC, [anchor], alpha=alpha, layers=layers)

    def loss(theta, images, labels):
        return reference.mse_penalty(theta, anchor, images, labels, alpha=alpha, layers=layers)

    assert_updates_are(loss, objective, sizes)


def test_the_mean_is_over_samples_and_features():
    model, objective = network(), MSEPenalty(SPEC, [weights(1)])
    images, _ = joined(drawn(0))
    objective(model, drawn(0))
    difference = model(images).features - objective.member(0)(images).features
    torch.testing.assert_close(objective.parts["mse"], difference.detach().square().sum() / (5 * 4))


def test_at_the_anchor_the_term_and_its_gradient_are_zero():
    model, objective = network(1), MSEPenalty(SPEC, [weights(1)], alpha=100)
    loss, risk = objective(model, drawn(0)), ERM()(model, drawn(0))
    assert torch.equal(loss, risk)
    gradients = [torch.autograd.grad(value, list(model.parameters())) for value in (loss, risk)]
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_it_brings_the_features_of_a_member_back_to_those_of_the_first():
    first = first_member()
    start, anchor, found = moved(first), real_features(first), {}
    for alpha in (0.0, 20.0):
        member = trained(MSEPenalty(REAL, [first], alpha=alpha), start)
        found[alpha] = (real_features(member) - anchor).square().mean().item()
    assert found[20.0] < 0.5 * found[0.0]


def test_features_of_another_shape_are_refused():
    model = network()
    model.featurizer.conv, model.classifier = nn.Conv2d(1, 6, (1, 2)).double(), nn.Linear(6, 3).double()
    message = (
        r"MSEPenalty compares features one by one, got shape \(5, 6\) in the network in training and \(5, 4\)"
    )
    with pytest.raises(InputError, match=message):
        MSEPenalty(SPEC, [weights(1)])(model, drawn(0))


def test_the_options_are_named():
    plain = {"network": SPEC.to_dict(), "alpha": 20.0, "layers": {"features": 1.0}}
    assert MSEPenalty(SPEC, [weights(1)]).configuration() == plain
    given = {"alpha": 1.0, "layers": {"conv": 2.0}}
    assert MSEPenalty(SPEC, [weights(1)], **given).configuration() == {**plain, **given}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -20}, "MSEPenalty needs alpha to be 0 or more, got -20.0"),
        ({"alpha": math.nan}, "MSEPenalty needs alpha to be a finite number, got nan"),
        ({"layers": {"layer9": 1.0}}, "MSEPenalty: layers must be 'features' or modules .* got 'layer9'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        MSEPenalty(SPEC, [weights(1)], **options)
