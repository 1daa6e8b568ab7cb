import math

import pytest
import torch
from tests.reference import prediction_repulsion as reference
from tests.snapshots.later_samples import (
    CLASSES,
    SPEC,
    adam_of,
    assert_updates_are,
    drawn,
    joined,
    network,
    weights,
)
from torch import nn
from torch.nn import functional as F

from mirepoix.objectives import ERM
from mirepoix.snapshots import PredictionRepulsion
from mirepoix.types import Batch, InputError

CHOICES = [
    {"samples": samples, "target": target, "reduction": reduction, "cap": cap}
    for samples in ("wrong", "all")
    for target in ("hard", "soft")
    for reduction in ("subset", "batch")
    for cap in (None, 1.0)
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
@pytest.mark.parametrize(("alpha", "sizes"), [(0.1, (3, 2)), (0.3, (1,))])
def test_updates_are_those_of_the_reference(alpha, sizes, choice):
    member = weights(1)

    def loss(theta, images, labels):
        return reference.prediction_repulsion(theta, member, images, labels, alpha=alpha, **choice)

    assert_updates_are(loss, PredictionRepulsion(SPEC, [member], alpha=alpha, **choice), sizes)


def sure(seed=1, scale=1e4):
    """A member whose probabilities are 0 and 1."""
    theta = weights(seed)
    return {name: value * scale if name.startswith("classifier.") else value for name, value in theta.items()}


def right(member):
    """Batches whose labels are what a member predicts."""
    model = SPEC.build().eval()
    model.load_state_dict(member)
    with torch.no_grad():
        return [Batch(b.images, model(b.images).logits.argmax(1), b.domains) for b in drawn(0)]


@pytest.mark.parametrize("target", ["hard", "soft"])
@pytest.mark.parametrize("reduction", ["subset", "batch"])
def test_where_the_member_is_right_everywhere_it_is_the_risk(reduction, target):
    objective = PredictionRepulsion(SPEC, [weights(1)], alpha=10, reduction=reduction, target=target)
    model, other = network(), network()
    loss, risk = objective(model, right(weights(1))), ERM()(other, right(weights(1)))
    assert torch.equal(loss, risk)
    assert objective.parts["repelled"] == 0
    assert objective.parts["repelled_share"] == 0
    loss.backward(), risk.backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_the_soft_target_of_a_sure_member_is_the_hard_one():
    for samples in ("wrong", "all"):
        losses = [
            PredictionRepulsion(SPEC, [sure()], samples=samples, target=target)(network(), drawn(0))
            for target in ("hard", "soft")
        ]
        torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    unsure = [
        PredictionRepulsion(SPEC, [weights(1)], samples="all", target=target)(network(), drawn(0))
        for target in ("hard", "soft")
    ]
    assert not torch.isclose(*unsure)


def test_over_all_samples_it_is_the_cross_entropy_with_a_difference_of_targets():
    model, objective = network(), PredictionRepulsion(SPEC, [weights(1)], alpha=0.25, samples="all")
    images, labels = joined(drawn(0))
    predicted = objective.member(0)(images).logits.argmax(1)
    target = F.one_hot(torch.tensor(labels), CLASSES) - 0.25 * F.one_hot(predicted, CLASSES)
    expected = -(target * model(images).logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(objective(model, drawn(0)), expected)


def test_the_mean_over_the_subset_weighs_more_than_that_over_the_batch():
    found = {}
    for reduction in ("subset", "batch"):
        objective = PredictionRepulsion(SPEC, [weights(1)], reduction=reduction)
        objective(network(), drawn(0, (6, 4)))
        found[reduction], share = objective.parts["repelled"], objective.parts["repelled_share"]
    assert 0 < share < 1
    torch.testing.assert_close(found["batch"], share * found["subset"])


def test_a_cap_ends_the_gradient():
    model, batches = network(), drawn(0)
    free = PredictionRepulsion(SPEC, [weights(1)], alpha=2, samples="all")
    free(model, batches)
    objective = PredictionRepulsion(SPEC, [weights(1)], alpha=2, samples="all", cap=1e-3)
    difference = objective(model, batches) - ERM()(model, batches)
    assert difference.item() == pytest.approx(-2e-3)
    assert objective.parts["repelled"] < free.parts["repelled"]
    for gradient in torch.autograd.grad(difference, list(model.parameters())):
        assert gradient.abs().max() < 1e-12


def test_the_member_is_drawn_anew_in_every_step():
    members = [weights(seed) for seed in (1, 2, 3)]
    objective, model, found = (
        PredictionRepulsion(SPEC, members, target="soft", samples="all"),
        network(),
        set(),
    )
    for step in range(40):
        torch.manual_seed(step)
        objective(model, drawn(0))
        found.add(objective.parts["repelled"].item())
    assert len(found) == 3


def test_it_makes_a_member_disagree_with_another_one():
    member, batches, found = weights(1), drawn(0, (60,)), []
    images, _ = joined(batches)
    for alpha in (0.0, 0.3):
        model, objective = network(), PredictionRepulsion(SPEC, [member], alpha=alpha, cap=5.0)
        optimizer = adam_of(model, objective)
        for _ in range(60):
            objective.step(model, batches, optimizer)
        predicted = objective.member(0)(images).logits.argmax(1)
        found.append((model(images).logits.argmax(1) == predicted).double().mean().item())
    assert found[1] < found[0] - 0.1


def test_without_members_it_is_the_risk():
    objective = PredictionRepulsion(SPEC, [], alpha=10)
    assert torch.equal(objective(network(), drawn(0)), ERM()(network(), drawn(0)))
    assert set(objective.parts) == {"nll"}


def test_other_classes_are_refused():
    model = network()
    model.classifier = nn.Linear(4, 5).double()
    message = r"the network in training has logits of shape \(5, 5\), the members have \(5, 3\)"
    with pytest.raises(InputError, match=message):
        PredictionRepulsion(SPEC, [weights(1)])(model, drawn(0))


def test_the_options_are_named():
    plain = {
        "network": SPEC.to_dict(),
        "alpha": 0.1,
        "samples": "wrong",
        "target": "hard",
        "reduction": "subset",
        "cap": None,
    }
    assert PredictionRepulsion(SPEC, [weights(1)]).configuration() == plain
    given = {"alpha": 0.3, "samples": "all", "target": "soft", "reduction": "batch", "cap": 2.0}
    assert PredictionRepulsion(SPEC, [weights(1)], **given).configuration() == {**plain, **given}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, "PredictionRepulsion needs alpha to be 0 or more, got -0.1"),
        ({"alpha": math.inf}, "PredictionRepulsion needs alpha to be a finite number, got inf"),
        ({"samples": "right"}, "PredictionRepulsion needs samples to be 'wrong' or 'all', got 'right'"),
        ({"target": "label"}, "PredictionRepulsion needs target to be 'hard' or 'soft', got 'label'"),
        ({"reduction": "sum"}, "PredictionRepulsion needs reduction to be 'subset' or 'batch', got 'sum'"),
        ({"cap": 0}, "PredictionRepulsion needs cap to be positive or None, got 0.0"),
        ({"cap": math.nan}, "PredictionRepulsion needs cap to be a finite number, got nan"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        PredictionRepulsion(SPEC, [weights(1)], **options)
