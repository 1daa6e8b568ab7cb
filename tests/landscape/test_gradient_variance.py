"""Gradient variances against a loop over images, and the report of domains against its parts."""

import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirepoix.landscape._gradient_variance import domain_invariance, gradient_variance
from mirepoix.landscape._hessian_diagonal import hessian_diagonal
from mirepoix.models import NetworkSpec
from mirepoix.types import Batch, InputError
from tests.landscape.curves import batches_of, copied, full_hessian, joined, relu_network, small_network


def by_a_loop(model: nn.Module, batches: list[Batch], centred: bool) -> dict[str, Tensor]:
    rows = []
    for image, label in zip(*joined(batches), strict=True):
        model.zero_grad()
        out = model(image[None])
        F.cross_entropy(getattr(out, "logits", out), label[None]).backward()
        rows.append({name: p.grad.double().clone() for name, p in model.named_parameters()})
    found = {}
    for name in rows[0]:
        gradients = torch.stack([row[name] for row in rows])
        mean = gradients.mean(0) if centred else torch.zeros_like(gradients[0])
        total = torch.zeros_like(mean)
        for gradient in gradients:
            total += (gradient - mean) ** 2
        found[name] = total / (len(rows) - centred)
    return found


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_it_is_what_a_loop_over_images_finds(centred, chunk):
    model, batches = small_network(), batches_of()
    found = gradient_variance(model, model.state_dict(), batches, centred=centred, chunk=chunk)
    expected = by_a_loop(model, batches, centred)
    assert list(found) == [name for name, _ in model.named_parameters()]
    for name, value in found.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-16)


def test_a_network_with_batch_norm_and_in_place_operations():
    spec = NetworkSpec(name="timm:resnet10t", classes=3)
    model = spec.build().eval()
    random = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=random)
    batches = [Batch(images, torch.tensor([0, 1, 2, 0]), torch.zeros(4, dtype=torch.long))]
    names = ["featurizer.conv1.0.weight", "featurizer.layer1.0.bn1.weight", "classifier.weight"]
    found = gradient_variance(model, model.state_dict(), batches, names=names)
    expected = by_a_loop(model, batches, True)
    assert list(found) == names
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-9)


def test_a_large_mean_gradient_does_not_cancel_the_variance():
    """Gradients of about 10,000 that differ by about 0.01."""
    model = nn.Linear(1, 2, bias=False)
    images = 20_000 + 0.01 * torch.randn(
        64, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    labels = torch.zeros(64, dtype=torch.long)
    theta = {"weight": torch.zeros(2, 1, dtype=torch.float64)}
    found = gradient_variance(model, theta, [Batch(images, labels, labels)], chunk=5)["weight"]
    expected = (images / 2).var()
    torch.testing.assert_close(found, expected.expand(2, 1), rtol=1e-8, atol=0)


def test_not_centred_is_larger_by_the_squared_mean():
    model, batches = small_network(), batches_of()
    theta = model.state_dict()
    images, labels = joined(batches)
    F.cross_entropy(model(images), labels).backward()
    centred = gradient_variance(model, theta, batches)
    raw = gradient_variance(model, theta, batches, centred=False)
    for name, p in model.named_parameters():
        torch.testing.assert_close(raw[name], centred[name] * 13 / 14 + p.grad**2, rtol=1e-10, atol=1e-16)


def test_one_image_has_no_variance_but_a_square():
    model = small_network()
    batches = batches_of((1,))
    with pytest.raises(InputError, match=r"gradient_variance: expected at least 2 images.*got 1"):
        gradient_variance(model, model.state_dict(), batches)
    found = gradient_variance(model, model.state_dict(), batches, centred=False)
    expected = by_a_loop(model, batches, False)
    torch.testing.assert_close(found["0.weight"], expected["0.weight"])


def test_nothing_given_is_changed():
    model = small_network().train()
    before = copied(model)
    theta = {name: 2 * tensor for name, tensor in before.items()}
    gradient_variance(model, theta, batches_of())
    domain_invariance(model, theta, {"a": batches_of()}, head="3.")
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(theta[name], 2 * before[name])


def domains() -> dict[str, list[Batch]]:
    first = batches_of((6, 5), classes=3)
    second = [Batch(2 * b.images, b.labels.flip(0), b.domains) for b in batches_of((8,), classes=3)]
    return {"a": first, "b": second, "c": batches_of((4, 4), classes=3)}


@pytest.mark.parametrize("method", ["auto", "gauss_newton", "hutchinson"])
def test_the_report_is_made_of_variances_diagonals_and_risks(method):
    model, data = relu_network(), domains()
    theta = model.state_dict()
    found = domain_invariance(model, theta, data, head="2.", method=method, samples=40)
    variances = {e: gradient_variance(model, theta, batches) for e, batches in data.items()}
    diagonals = {e: hessian_diagonal(model, theta, b, method=method, samples=40) for e, b in data.items()}

    def flat(values, head: bool) -> Tensor:
        return torch.cat([v.reshape(-1) for name, v in values.items() if name.startswith("2.") or not head])

    for e, batches in data.items():
        images, labels = joined(batches)
        one = found.domains[e]
        assert one.risk == pytest.approx(F.cross_entropy(model(images), labels).item())
        assert one.images == len(labels)
        assert one.method == diagonals[e].method == ("exact" if method == "auto" else method)
        assert one.relative_error == pytest.approx(diagonals[e].relative_error)
        cosine = F.cosine_similarity(flat(diagonals[e].values, False), flat(variances[e], False), dim=0)
        assert one.cosine == pytest.approx(cosine.item())
        if method != "hutchinson":
            exact = full_hessian(model, batches).diagonal()[30:]
            cosine = F.cosine_similarity(exact, flat(variances[e], True), dim=0)
            assert one.head_cosine == pytest.approx(cosine.item())
    assert list(found.pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    for (a, b), pair in found.pairs.items():
        difference = flat(variances[a], False) - flat(variances[b], False)
        assert pair.gradient_variance == pytest.approx(difference.square().sum().item())
        difference = flat(diagonals[a].values, False) - flat(diagonals[b].values, False)
        assert pair.hessian_diagonal == pytest.approx(difference.square().sum().item())
        assert pair.risk == pytest.approx((found.domains[a].risk - found.domains[b].risk) ** 2)


def test_a_head_that_is_small_enough_is_exact_also_beside_an_estimate():
    model, data = relu_network(), domains()
    theta = model.state_dict()
    exact = domain_invariance(model, theta, data, head="2.")
    found = domain_invariance(model, theta, data, head="2.", exact_limit=21, samples=4)
    for e in data:
        assert found.domains[e].method == "hutchinson"
        assert found.domains[e].relative_error > 0
        assert found.domains[e].head_cosine == pytest.approx(exact.domains[e].head_cosine, rel=1e-9)
        assert found.domains[e].cosine != exact.domains[e].cosine


def test_equal_domains_have_no_distance_and_calibrated_labels_a_cosine_near_one():
    """Labels drawn from the network's own predictions: there the gradient variance is the Fisher information."""
    model = relu_network()
    random = torch.Generator().manual_seed(0)
    images = torch.randn(4000, 4, generator=random, dtype=torch.float64)
    with torch.no_grad():
        labels = torch.multinomial(model(images).softmax(1), 1, generator=random)[:, 0]
    batches = [Batch(images, labels, torch.zeros_like(labels))]
    found = domain_invariance(model, model.state_dict(), {"a": batches, "b": batches}, head="2.", chunk=1000)
    assert found.domains["a"].cosine > 0.998
    assert found.domains["a"].head_cosine > 0.998
    [pair] = found.pairs.values()
    assert (pair.gradient_variance, pair.risk, pair.hessian_diagonal) == (0, 0, 0)
    wrong = [Batch(images, (labels + 1) % 3, labels)]
    assert domain_invariance(model, model.state_dict(), {"a": wrong}, head="2.").domains["a"].cosine < 0.99


def test_zero_gradients_have_no_cosine_and_the_plain_values_say_so():
    model = nn.Linear(2, 2, bias=False).double()
    batch = Batch(torch.zeros(3, 2).double(), torch.zeros(3).long(), torch.zeros(3).long())
    found = domain_invariance(model, {"weight": torch.zeros(2, 2)}, {"a": [batch], "b": [batch]}, head="w")
    assert math.isnan(found.domains["a"].cosine)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["domains"]["a"]["cosine"] is None
    assert plain["pairs"][0]["domains"] == ["a", "b"]


def test_errors_say_what_was_expected_and_what_came():
    model, batches = small_network(), batches_of()
    theta = model.state_dict()
    with pytest.raises(InputError, match="expected at least one domain, got none"):
        domain_invariance(model, theta, {})
    with pytest.raises(InputError, match=r"names begin with 'classifier.', got none; the last is '3.weight'"):
        domain_invariance(model, theta, {"a": batches})
    with pytest.raises(InputError, match="domain 'b': batches: expected at least one image, got none"):
        domain_invariance(model, theta, {"a": batches, "b": []}, head="3.")
    with pytest.raises(InputError, match="domain 'b': expected at least 2 images"):
        domain_invariance(model, theta, {"a": batches, "b": batches_of((1,))}, head="3.")
    with pytest.raises(InputError, match="chunk: expected at least 1"):
        gradient_variance(model, theta, batches, chunk=0)
    with pytest.raises(InputError, match="method: expected"):
        domain_invariance(model, theta, {"a": batches}, head="3.", method="fisher")
