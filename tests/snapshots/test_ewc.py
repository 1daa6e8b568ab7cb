import math

import pytest
import torch
from tests.reference import ewc as reference
from tests.snapshots.later_samples import SPEC, assert_updates_are, drawn, joined, network, weights

from mirepoix.checkpoints import fingerprint
from mirepoix.merging import fisher_diagonal
from mirepoix.objectives import ERM
from mirepoix.snapshots import EWC, L2SP
from mirepoix.types import InputError


def anchored():
    model = network(1)
    return weights(1), fisher_diagonal(model, drawn(50, (20, 10)), labels="true")


@pytest.mark.parametrize("sizes", [(3, 2), (1,)])
@pytest.mark.parametrize("named", ["all", "featurizer"])
@pytest.mark.parametrize("alpha", [0.5, 1000])
def test_updates_are_those_of_the_reference(alpha, named, sizes):
    anchor, _ = anchored()
    fisher = reference.empirical_fisher(anchor, *joined(drawn(50, (20, 10))))
    if named == "featurizer":
        fisher = {name: value for name, value in fisher.items() if name.startswith("featurizer.")}

    def loss(theta, images, labels):
        return reference.ewc(theta, anchor, fisher, images, labels, alpha=alpha)

    assert_updates_are(loss, EWC(SPEC, [anchor], fisher=fisher, alpha=alpha), sizes)


def test_the_diagonal_is_that_of_merging_with_the_labels_of_the_data():
    anchor, fisher = anchored()
    expected = reference.empirical_fisher(anchor, *joined(drawn(50, (20, 10))))
    assert fisher.keys() == expected.keys()
    for name, value in expected.items():
        assert (fisher[name] - value).abs().max() < 1e-12


def test_with_ones_for_the_featurizer_it_is_l2_sp():
    anchor = weights(1)
    ones = {name: torch.ones_like(v) for name, v in anchor.items() if name.startswith("featurizer.")}
    loss = EWC(SPEC, [anchor], fisher=ones, alpha=3)(network(), drawn(0))
    torch.testing.assert_close(loss, L2SP(SPEC, [anchor], alpha=3)(network(), drawn(0)))


def test_at_the_anchor_or_without_a_weight_it_is_the_risk():
    anchor, fisher = anchored()
    assert torch.equal(
        EWC(SPEC, [anchor], fisher=fisher, alpha=1e3)(network(1), drawn(0)), ERM()(network(1), drawn(0))
    )
    assert torch.equal(
        EWC(SPEC, [anchor], fisher=fisher, alpha=0)(network(), drawn(0)), ERM()(network(), drawn(0))
    )


def test_what_the_anchor_depends_on_stays_nearer():
    anchor = weights(1)
    fisher = {name: torch.zeros_like(value) for name, value in anchor.items()}
    fisher["featurizer.conv.weight"][0] = 1.0
    model, objective = network(), EWC(SPEC, [anchor], fisher=fisher, alpha=100)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(100):
        objective.step(model, drawn(step, (20,)), optimizer)
    gaps = (model.featurizer.conv.weight.detach() - anchor["featurizer.conv.weight"]).flatten(1).norm(dim=1)
    assert gaps[0] < 0.05
    assert gaps[1:].min() > 0.2


def test_the_diagonal_is_part_of_the_state():
    anchor, fisher = anchored()
    made = EWC(SPEC, [anchor], fisher=fisher, alpha=1)
    assert made.fisher.shape == (sum(value.numel() for value in anchor.values()),)
    assert not made.fisher.requires_grad
    half = {name: value / 2 for name, value in fisher.items()}
    less = {name: fisher[name] for name in list(fisher)[1:]}
    states = [EWC(SPEC, [anchor], fisher=f, alpha=1).state_dict() for f in (fisher, half, less)]
    assert len({fingerprint(state) for state in states}) == 3
    before = {name: value.clone() for name, value in fisher.items()}
    made.fisher.zero_()
    assert all(torch.equal(fisher[name], value) for name, value in before.items())


def test_the_options_are_named():
    anchor, fisher = anchored()
    made = EWC(SPEC, [anchor], fisher=fisher, alpha=2)
    assert made.configuration() == {"network": SPEC.to_dict(), "alpha": 2.0}


GOOD = {"classifier.bias": torch.ones(3)}


@pytest.mark.parametrize(
    ("members", "fisher", "alpha", "message"),
    [
        ([weights(1)], GOOD, -1, "EWC needs alpha to be 0 or more, got -1.0"),
        ([weights(1)], GOOD, math.nan, "EWC needs alpha to be a finite number, got nan"),
        ([], GOOD, 1, "EWC needs an anchor as the first of its members, got none"),
        (weights(1), GOOD, 1, "EWC: members must be a list of weights, got one mapping"),
        ([weights(1)], {}, 1, "EWC needs fisher to be names of parameters with their diagonals, .* got none"),
        ([weights(1)], [1.0], 1, "EWC needs fisher to be names of parameters .* got list"),
        (
            [weights(1)],
            {"conv": torch.ones(3)},
            1,
            "EWC: fisher has 'conv', which is no parameter of the network",
        ),
        (
            [weights(1)],
            {"classifier.bias": torch.ones(4)},
            1,
            r"EWC: fisher has shape \(4,\) for 'classifier.bias', the parameter has \(3,\)",
        ),
        (
            [weights(1)],
            {"classifier.bias": -torch.ones(3)},
            1,
            "negative or not finite for 'classifier.bias'",
        ),
        ([weights(1)], {"classifier.bias": torch.full((3,), math.nan)}, 1, "negative or not finite"),
    ],
)
def test_options_out_of_range_are_refused(members, fisher, alpha, message):
    with pytest.raises(InputError, match=message):
        EWC(SPEC, members, fisher=fisher, alpha=alpha)
