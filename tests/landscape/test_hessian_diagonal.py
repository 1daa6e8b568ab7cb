"""The diagonal against the Hessian written out."""

import pytest
import torch
from torch import nn

from mirepoix.landscape._hessian_diagonal import hessian_diagonal
from mirepoix.models import NetworkSpec
from mirepoix.types import Batch, InputError
from tests.landscape.curves import batches_of, copied, full_hessian, relu_network, small_network


def flat(values: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.reshape(-1) for value in values.values()])


def test_the_exact_diagonal_is_that_of_the_full_hessian():
    model, batches = small_network(), batches_of()
    found = hessian_diagonal(model, model.state_dict(), batches)
    assert (found.method, found.samples, found.relative_error) == ("exact", 0, 0)
    assert found.standard_error is None
    assert {name: value.shape for name, value in found.values.items()} == {
        name: p.shape for name, p in model.named_parameters()
    }
    torch.testing.assert_close(
        flat(found.values), full_hessian(model, batches).diagonal(), rtol=1e-9, atol=1e-14
    )


def test_some_parameters_have_the_same_entries_in_the_order_asked_for():
    model, batches = small_network(), batches_of()
    theta = model.state_dict()
    every = hessian_diagonal(model, theta, batches).values
    found = hessian_diagonal(model, theta, batches, names=["2.bias", "0.weight"]).values
    assert list(found) == ["2.bias", "0.weight"]
    for name, value in found.items():
        torch.testing.assert_close(value, every[name], rtol=1e-12, atol=1e-15)


def test_the_estimate_has_the_error_that_it_says():
    model, batches = small_network(), batches_of()
    hessian = full_hessian(model, batches)
    exact = hessian.diagonal()
    found = hessian_diagonal(model, model.state_dict(), batches, exact_limit=56, samples=200)
    assert (found.method, found.samples) == ("hutchinson", 200)
    error = flat(found.standard_error)
    # Of one entry, the variance is the squares of the rest of its row.
    expected = ((hessian.square().sum(1) - exact.square()) / 200).sqrt()
    torch.testing.assert_close(error, expected, rtol=0.3, atol=1e-12)
    z = (flat(found.values) - exact) / error
    assert z.abs().max() < 4
    assert 0.7 < z.square().mean().sqrt() < 1.3
    assert found.relative_error == pytest.approx((error.norm() / flat(found.values).norm()).item())
    more = hessian_diagonal(model, model.state_dict(), batches, method="hutchinson", samples=800)
    assert found.relative_error / more.relative_error == pytest.approx(2, rel=0.25)


def test_gauss_newton_is_exact_where_logits_are_piecewise_linear_in_each_weight():
    batches = batches_of(classes=3)
    model = relu_network()
    theta = model.state_dict()
    found = hessian_diagonal(model, theta, batches, method="gauss_newton")
    assert found.method == "gauss_newton"
    exact = hessian_diagonal(model, theta, batches, method="exact")
    torch.testing.assert_close(flat(found.values), flat(exact.values), rtol=1e-9, atol=1e-14)
    smooth = small_network()
    left_out = hessian_diagonal(smooth, smooth.state_dict(), batches_of(), method="gauss_newton")
    exact = hessian_diagonal(smooth, smooth.state_dict(), batches_of())
    assert not torch.allclose(left_out.values["0.weight"], exact.values["0.weight"], rtol=0.01)
    torch.testing.assert_close(left_out.values["3.weight"], exact.values["3.weight"], rtol=1e-9, atol=1e-14)


def test_gauss_newton_is_exact_for_a_network_with_frozen_batch_norm():
    spec = NetworkSpec(name="cifar_resnet20", classes=3)
    model = spec.build().double()
    random = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 16, 16, generator=random, dtype=torch.float64)
    batches = [Batch(images, torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.long))]
    names = ["featurizer.layer3.0.bn1.weight", "classifier.bias"]
    theta = model.state_dict()
    found = hessian_diagonal(model, theta, batches, names=names, method="gauss_newton")
    exact = hessian_diagonal(model, theta, batches, names=names)
    assert exact.method == "exact"
    torch.testing.assert_close(flat(found.values), flat(exact.values), rtol=1e-7, atol=1e-12)


def test_the_same_seed_gives_the_same_bits_and_nothing_given_is_changed():
    model = small_network().train()
    before = copied(model)
    options = {"method": "hutchinson", "samples": 5}
    once, again, other = (
        hessian_diagonal(model, before, batches_of(), seed=seed, **options) for seed in (1, 1, 2)
    )
    assert torch.equal(flat(once.values), flat(again.values))
    assert not torch.equal(flat(once.values), flat(other.values))
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_errors_say_what_was_expected_and_what_came():
    model = nn.Linear(4, 17).double()
    theta, batches = model.state_dict(), batches_of()
    with pytest.raises(InputError, match=r"at most 16 classes for 'gauss_newton'.*got 17"):
        hessian_diagonal(model, theta, batches, method="gauss_newton")
    with pytest.raises(InputError, match=r"method: expected 'auto', 'exact'.*got 'diag'"):
        hessian_diagonal(model, theta, batches, method="diag")
    with pytest.raises(InputError, match="samples: expected at least 2, got 1"):
        hessian_diagonal(model, theta, batches, samples=1)
    with pytest.raises(InputError, match="hessian_diagonal: names: expected parameters of the network"):
        hessian_diagonal(model, theta, batches, names=["head"])
