import math

import pytest
import torch
from tests.reference import l2sp as reference
from tests.snapshots.later_samples import (
    REAL,
    SPEC,
    assert_updates_are,
    drawn,
    first_member,
    moved,
    network,
    trained,
    weights,
)
from tests.tiny import tiny_network

from mirepoix.objectives import ERM
from mirepoix.snapshots import L2SP
from mirepoix.types import InputError


@pytest.mark.parametrize("sizes", [(3, 2), (1,)])
@pytest.mark.parametrize("alpha", [0.1, 7])
def test_updates_are_those_of_the_reference(alpha, sizes):
    anchor = weights(1)

    def loss(theta, images, labels):
        return reference.l2sp(theta, anchor, images, labels, alpha=alpha)

    assert_updates_are(loss, L2SP(SPEC, [anchor], alpha=alpha), sizes)


def test_the_classifier_is_free_and_so_is_that_of_the_anchor():
    anchor, model = weights(1), network()
    other = {**anchor, "classifier.weight": anchor["classifier.weight"] + 5}
    loss = L2SP(SPEC, [anchor], alpha=3)(model, drawn(0))
    assert torch.equal(L2SP(SPEC, [other], alpha=3)(model, drawn(0)), loss)
    risk = ERM()(model, drawn(0))
    held = torch.autograd.grad(loss - risk, list(model.parameters()), allow_unused=True)
    for (name, parameter), gradient in zip(model.named_parameters(), held, strict=True):
        if name.startswith("featurizer."):
            torch.testing.assert_close(gradient, 3 * (parameter.detach() - anchor[name]))
        else:
            assert gradient.abs().max() < 1e-15


def test_without_a_weight_it_is_the_risk():
    loss = L2SP(SPEC, [weights(1)], alpha=0)(network(), drawn(0))
    assert torch.equal(loss, ERM()(network(), drawn(0)))


def test_it_brings_the_featurizer_of_a_member_back():
    first = first_member()
    start, found = moved(first), {}
    for alpha in (0.0, 10.0):
        member = trained(L2SP(REAL, [first], alpha=alpha), start)
        found[alpha] = sum(
            (member[name] - value).square().sum().item()
            for name, value in first.items()
            if name.startswith("featurizer.")
        )
    assert found[10.0] < 0.5 * found[0.0]


def test_another_network_is_refused():
    with pytest.raises(InputError, match="L2SP compares weights, so the network in training must be that of"):
        L2SP(SPEC, [weights(1)], alpha=1)(
            tiny_network().build(), [type(b)(b.images.float(), b.labels % 2, b.domains) for b in drawn(0)]
        )


def test_the_options_are_named():
    assert L2SP(SPEC, [weights(1)], alpha=1).configuration() == {"network": SPEC.to_dict(), "alpha": 1.0}


@pytest.mark.parametrize(
    ("members", "alpha", "message"),
    [
        ([weights(1)], -1, "L2SP needs alpha to be 0 or more, got -1.0"),
        ([weights(1)], math.inf, "L2SP needs alpha to be a finite number, got inf"),
        ([], 1, "L2SP needs an anchor as the first of its members, got none"),
        (weights(1), 1, "L2SP: members must be a list of weights, got one mapping"),
    ],
)
def test_options_out_of_range_are_refused(members, alpha, message):
    with pytest.raises(InputError, match=message):
        L2SP(SPEC, members, alpha=alpha)
