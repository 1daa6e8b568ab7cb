"""The closed form of a classifier against a loop over images, automatic differentiation, and the slow measure."""

import itertools
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mirepoix.evidence import _classifier_invariance as module
from mirepoix.evidence._classifier_invariance import classifier_invariance
from mirepoix.landscape import domain_invariance
from mirepoix.types import Batch, InputError, Outputs


class Small(nn.Module):
    """Two layers in double precision."""

    def __init__(self, bias=True, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.featurizer = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.classifier = nn.Linear(5, 3, bias=bias)
        self.double()

    def forward(self, images):
        features = self.featurizer(images)
        return Outputs(features=features, logits=self.classifier(features))


def batches(sizes, seed, shift=0.0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    for size in sizes:
        labels = torch.randint(3, (size,), generator=random)
        images = torch.randn(size, 4, generator=random, dtype=dtype) + shift * labels[:, None]
        yield Batch(images, labels, torch.zeros_like(labels))


def domains(shift=1.0):
    return {
        "a": list(batches((6, 5), 1)),
        "b": list(batches((9,), 2, shift)),
        "c": list(batches((4, 4), 3, 2 * shift)),
    }


def by_a_loop(model, found):
    """Loss, gradient variance and diagonal of the Hessian of the classifier, one image and one weight at a time."""
    parameters = list(model.classifier.parameters())
    gradients, diagonals, losses = [], [], []
    for batch in found:
        for image, label in zip(batch.images, batch.labels, strict=True):
            loss = F.cross_entropy(model(image[None]).logits, label[None])
            first = torch.cat(
                [g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)]
            )
            second = []
            for k, entry in enumerate(first):
                row = torch.autograd.grad(entry, parameters, retain_graph=True)
                second.append(torch.cat([r.reshape(-1) for r in row])[k].item())
            losses.append(loss.item())
            gradients.append(first.detach())
            diagonals.append(second)
    n = len(losses)
    mean = sum(gradients) / n
    variance = sum((g - mean) ** 2 for g in gradients) / (n - 1)
    return sum(losses) / n, variance, torch.tensor(diagonals, dtype=torch.float64).mean(0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("entries", [2**24, 20])
def test_it_is_what_a_loop_over_images_and_weights_finds(bias, entries, monkeypatch):
    monkeypatch.setattr(module, "ENTRIES", entries)  # a class at a time
    monkeypatch.setattr(module, "IMAGES", 3)
    model, data = Small(bias), domains()
    found = classifier_invariance(model, model.state_dict(), data, shuffles=2)
    expected = {name: by_a_loop(model, one) for name, one in data.items()}
    for name, (risk, variance, diagonal) in expected.items():
        one = found.domains[name]
        assert one.images == sum(len(batch.labels) for batch in data[name])
        assert one.risk == pytest.approx(risk, rel=1e-12)
        assert one.cosine == pytest.approx(F.cosine_similarity(variance, diagonal, dim=0).item(), rel=1e-10)
    assert list(found.pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    for (a, b), pair in found.pairs.items():
        risks, variances, diagonals = zip(expected[a], expected[b], strict=True)
        assert pair.risk == pytest.approx((risks[0] - risks[1]) ** 2, rel=1e-10)
        assert pair.gradient_variance == pytest.approx(
            (variances[0] - variances[1]).square().sum().item(), rel=1e-10
        )
        assert pair.hessian_diagonal == pytest.approx(
            (diagonals[0] - diagonals[1]).square().sum().item(), rel=1e-10
        )
    for quantity in module.QUANTITIES:
        each = [getattr(pair, quantity) for pair in found.pairs.values()]
        assert getattr(found.distance, quantity) == pytest.approx(sum(each) / 3)


def test_it_is_the_slow_measure_of_the_classifier_alone():
    model, data = Small(), domains()
    theta = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    found = classifier_invariance(model, theta, data)
    slow = domain_invariance(
        model, theta, data, names=["classifier.weight", "classifier.bias"], method="exact"
    )
    for name, one in slow.domains.items():
        assert found.domains[name].risk == pytest.approx(one.risk)
        assert found.domains[name].cosine == pytest.approx(one.head_cosine)
    for names, pair in slow.pairs.items():
        for quantity in module.QUANTITIES:
            assert getattr(found.pairs[names], quantity) == pytest.approx(getattr(pair, quantity), rel=1e-8)


def test_chance_is_the_distance_of_images_dealt_out_again():
    model = Small()
    data = domains()
    found = classifier_invariance(model, model.state_dict(), data, shuffles=3, seed=4)
    images = torch.cat([batch.images for one in data.values() for batch in one])
    labels = torch.cat([batch.labels for one in data.values() for batch in one])
    sizes = [sum(len(batch.labels) for batch in one) for one in data.values()]
    each = []
    for number in range(3):
        order = torch.randperm(len(labels), generator=module.generator("invariance", 4, number))
        dealt = {
            str(k): [Batch(images[rows], labels[rows], labels[rows])]
            for k, rows in enumerate(torch.split(order, sizes))
        }
        each.append(classifier_invariance(model, model.state_dict(), dealt, shuffles=0).distance)
    for quantity in module.QUANTITIES:
        values = [getattr(one, quantity) for one in each]
        assert getattr(found.chance, quantity) == pytest.approx(sum(values) / 3)
        assert found.reached[quantity] == sum(value >= getattr(found.distance, quantity) for value in values)
    again = classifier_invariance(model, model.state_dict(), data, shuffles=3, seed=4)
    assert again == found
    assert classifier_invariance(model, model.state_dict(), data, shuffles=3, seed=5) != found


def test_domains_of_one_kind_are_told_from_chance_no_more_often_than_one_in_twenty():
    model = Small()
    seen = dict.fromkeys(module.QUANTITIES, 0)
    for number in range(60):
        data = {name: batches((30,), 100 * number + k) for k, name in enumerate("ab")}
        found = classifier_invariance(model, model.state_dict(), data)
        for quantity in seen:
            seen[quantity] += found.seen(quantity)
    assert all(count <= 3 + 3 * math.sqrt(60 * 0.05 * 0.95) for count in seen.values()), seen
    apart = classifier_invariance(
        model, model.state_dict(), {"a": batches((60,), 1), "b": batches((60,), 2, 3.0)}
    )
    assert all(apart.seen(quantity) for quantity in module.QUANTITIES)
    assert apart.shuffles == 19
    assert all(getattr(apart.distance, quantity) > 3 * getattr(apart.chance, quantity) for quantity in seen)


def test_few_shuffles_show_nothing():
    model = Small()
    data = {"a": list(batches((60,), 1)), "b": list(batches((60,), 2, 3.0))}
    found = classifier_invariance(model, model.state_dict(), data, shuffles=18)
    assert set(found.reached.values()) == {0}
    assert not any(found.seen(quantity) for quantity in module.QUANTITIES)


def test_equal_domains_have_no_distance():
    model, same = Small(), list(batches((7,), 0))
    found = classifier_invariance(model, model.state_dict(), {"a": same, "b": same})
    for quantity in module.QUANTITIES:
        assert getattr(found.distance, quantity) == 0
        assert not found.seen(quantity)


def test_one_domain_has_a_loss_and_a_cosine_and_nothing_to_compare():
    model = Small()
    found = classifier_invariance(model, model.state_dict(), {"a": batches((7,), 0)})
    assert (found.pairs, found.distance, found.chance, found.shuffles) == ({}, None, None, 0)
    assert not found.seen("risk")
    assert 0 < found.domains["a"].cosine < 1
    json.dumps(found.to_dict(), allow_nan=False)


def test_what_is_undefined_is_none_in_plain_values():
    model = Small(bias=False)
    theta = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    found = classifier_invariance(model, theta, {"a": batches((4,), 0), "b": batches((4,), 1)})
    assert math.isnan(found.domains["a"].cosine)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["domains"]["a"] == {"images": 4, "risk": pytest.approx(math.log(3)), "cosine": None}
    assert plain["pairs"] == [
        {"domains": ["a", "b"], "gradient_variance": 0, "risk": 0, "hessian_diagonal": 0}
    ]
    assert plain["seen"] == dict.fromkeys(module.QUANTITIES, False)


def test_half_precision_is_widened_and_nothing_given_is_changed():
    model = Small().float().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    theta = {name: (2 * tensor).half() for name, tensor in before.items()}
    data = {name: list(batches((8,), k, k, torch.float32)) for k, name in enumerate("ab")}
    found = classifier_invariance(model, theta, data)
    wide = classifier_invariance(model, {name: tensor.double() for name, tensor in theta.items()}, data)
    for quantity in module.QUANTITIES:
        assert getattr(found.distance, quantity) == pytest.approx(getattr(wide.distance, quantity), rel=1e-4)
    assert model.training
    assert not model.classifier._forward_pre_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_errors_say_what_was_expected_and_what_came():
    model, data = Small(), domains()
    theta = model.state_dict()
    with pytest.raises(InputError, match="expected at least one domain, got none"):
        classifier_invariance(model, theta, {})
    with pytest.raises(InputError, match="shuffles: expected 0 or more, got -1"):
        classifier_invariance(model, theta, data, shuffles=-1)
    with pytest.raises(InputError, match=r"a linear classifier called 'featurizer' .*, got a Sequential"):
        classifier_invariance(model, theta, data, head="featurizer")
    with pytest.raises(InputError, match=r"called 'fc' .*, got nothing of that name"):
        classifier_invariance(model, theta, data, head="fc")
    with pytest.raises(InputError, match=r"domain 'b': expected at least 2 images.*got 1"):
        classifier_invariance(model, theta, {"a": data["a"], "b": batches((1,), 0)})
    with pytest.raises(InputError, match="domain 'b': expected at least 2 images"):
        classifier_invariance(model, theta, {"a": data["a"], "b": []})
    with pytest.raises(InputError, match=r"expected weights of the network\. Missing key.*featurizer"):
        classifier_invariance(model, {"classifier.weight": torch.zeros(3, 5)}, data)
    with pytest.raises(InputError, match=r"domain 'a': expected finite logits"):
        classifier_invariance(model, {name: tensor * math.inf for name, tensor in theta.items()}, data)
    wrong = Batch(torch.zeros(2, 4).double(), torch.tensor([0, 3]), torch.zeros(2).long())
    with pytest.raises(InputError, match=r"domain 'a': expected labels from 0 to 2.*got 3"):
        classifier_invariance(model, theta, {"a": [wrong]})


@pytest.mark.parametrize("kind", ["scaled", "unused", "twice"])
def test_a_network_that_does_more_than_its_classifier_is_refused(kind):
    class More(Small):
        def forward(self, images):
            logits = super().forward(images).logits
            if kind == "scaled":
                return 5 * logits
            return logits + self.classifier(self.featurizer(-images)) if kind == "twice" else images[:, :3]

    model = More()
    with pytest.raises(
        InputError, match="expected a network that returns the output of its linear classifier"
    ):
        classifier_invariance(model, model.state_dict(), domains())


def test_a_network_may_return_logits_alone():
    class Plain(Small):
        def forward(self, images):
            return super().forward(images).logits

    whole, plain = Small(), Plain()
    assert classifier_invariance(plain, plain.state_dict(), domains()) == classifier_invariance(
        whole, whole.state_dict(), domains()
    )


def test_pairs_of_four_domains_are_all_there():
    model = Small()
    data = {name: batches((5,), k) for k, name in enumerate("wxyz")}
    found = classifier_invariance(model, model.state_dict(), data, shuffles=1)
    assert list(found.pairs) == list(itertools.combinations("wxyz", 2))
