"""Variance by the discrepancy of inputs: loops, the exact posterior, and an independent Gaussian process."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mirepoix.landscape import _variance_shift as module
from mirepoix.landscape._variance_shift import (
    constant_diagonal,
    cosine_kernel,
    empirical_ntk,
    gaussian_process_variance,
    mmd,
    rbf_kernel,
    variance_by_mmd,
)
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.types import InputError

seeds = st.integers(0, 2**31)


def points(count, features, seed, shift=0.0):
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.normal(size=(count, features)) + shift)


def kernels(source, target, kernel):
    return kernel(source), kernel(source, target), kernel(target)


# Kernels.


@given(seeds, st.integers(1, 5), st.integers(1, 4), st.floats(0.1, 10))
def test_the_gaussian_kernel_by_loops(seed, count, features, bandwidth):
    a, b = points(count, features, seed), points(3, features, seed + 1, shift=100.0)
    for other in (None, b, b - 100):
        found = rbf_kernel(a, other, bandwidth=bandwidth)
        for i, x in enumerate(a):
            for j, y in enumerate(a if other is None else other):
                expected = math.exp(-float(((x - y) ** 2).sum()) / bandwidth)
                assert float(found[i, j]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(
        rbf_kernel(a, b - 100, bandwidth=bandwidth).square(), rbf_kernel(a, b - 100, bandwidth=bandwidth / 2)
    )
    assert (rbf_kernel(a, bandwidth=bandwidth).diagonal() == 1).all()


def test_images_and_half_precision_are_inputs_too():
    images = torch.randn(3, 2, 4, 4).half()
    flat = images.double().flatten(1)
    torch.testing.assert_close(rbf_kernel(images, bandwidth=9.0), rbf_kernel(flat, bandwidth=9.0))
    torch.testing.assert_close(cosine_kernel(images), cosine_kernel(flat))


@given(seeds)
def test_the_cosine_kernel_by_loops(seed):
    a, b = points(4, 3, seed), points(2, 3, seed + 1)
    found = cosine_kernel(a, b, scale=2.5)
    for i, j in np.ndindex(4, 2):
        expected = 2.5 * float(a[i] @ b[j]) / math.sqrt(float(a[i] @ a[i])) / math.sqrt(float(b[j] @ b[j]))
        assert float(found[i, j]) == pytest.approx(expected, abs=1e-12)
    assert (cosine_kernel(a, scale=2.5).diagonal() == 2.5).all()


def test_a_constant_diagonal_is_the_cosine_of_the_linear_kernel():
    a, b = points(4, 3, 0), points(2, 3, 1)
    found = constant_diagonal(a @ a.T, a @ b.T, b @ b.T, scale=3.0)
    for got, expected in zip(found, kernels(a, b, lambda *x: cosine_kernel(*x, scale=3.0)), strict=True):
        torch.testing.assert_close(got, expected)


def by_gradients(model, theta, a, b, names):
    """One backward pass per image and class."""

    def gradients(images):
        rows = []
        for image in images:
            row = []
            leaves = {name: value.clone().requires_grad_(name in names) for name, value in theta.items()}
            out = torch.func.functional_call(model, leaves, (image[None],))
            logits = (out.logits if hasattr(out, "logits") else out)[0]
            for c in range(len(logits)):
                found = torch.autograd.grad(logits[c], [leaves[n] for n in names], retain_graph=True)
                row.append(torch.cat([each.flatten() for each in found]))
            rows.append(torch.stack(row))
        return torch.stack(rows).double()  # (images, classes, parameters)

    first, second = gradients(a), gradients(b)
    return torch.einsum("acp,bcp->ab", first, second) / first.shape[1]


def small_network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.5)]
    model = nn.Sequential(*layers, nn.Linear(12, 4)).double()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("block", [None, 1, 2, 5])
@pytest.mark.parametrize("names", [None, ("5.weight", "5.bias"), ("0.weight",)])
def test_the_tangent_kernel_is_that_of_gradients_one_by_one(block, names, monkeypatch):
    model = small_network()
    theta = {name: value.clone() for name, value in model.state_dict().items()}
    a, b = torch.randn(5, 1, 4, 4).double(), torch.randn(3, 1, 4, 4).double()
    wanted = names or [name for name, _ in model.named_parameters()]
    model.train()
    model[3].eval()
    found = empirical_ntk(model, theta, a, b, names=names, block=block)
    own = empirical_ntk(model, theta, a, names=names, block=block)
    assert model.training
    assert not model[3].training
    assert all(torch.equal(value, theta[name]) for name, value in model.state_dict().items())
    model.eval()
    torch.testing.assert_close(found, by_gradients(model, theta, a, b, wanted))
    torch.testing.assert_close(own, by_gradients(model, theta, a, a, wanted))
    torch.testing.assert_close(own, own.T, rtol=0, atol=0)


def test_blocks_follow_from_the_memory_and_change_nothing(monkeypatch):
    model = small_network()
    a = torch.randn(5, 1, 4, 4).double()
    whole = empirical_ntk(model, model.state_dict(), a)
    monkeypatch.setattr(module, "BLOCK", 2 * 4 * sum(p.numel() for p in model.parameters()))
    torch.testing.assert_close(empirical_ntk(model, model.state_dict(), a), whole)


def test_the_tangent_kernel_of_a_linear_model_is_that_of_its_inputs():
    model = nn.Linear(3, 2, bias=False)
    a, b = torch.randn(4, 3), torch.randn(2, 3)
    torch.testing.assert_close(
        empirical_ntk(model, model.state_dict(), a, b), (a @ b.T).double(), rtol=1e-5, atol=1e-6
    )


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    model[1].weight = model[0].weight
    w, images = model[0].weight.detach(), torch.randn(3, 2).double()

    def gradients(image):  # of both entries of W W x
        return torch.autograd.functional.jacobian(lambda w: w @ w @ image, w).flatten(1)

    rows = torch.stack([gradients(image) for image in images])
    expected = torch.einsum("acp,bcp->ab", rows, rows) / 2
    torch.testing.assert_close(empirical_ntk(model, model.state_dict(), images), expected)


def test_our_networks_have_a_tangent_kernel_and_the_head_is_that_of_features():
    spec = NetworkSpec(name="mnist_cnn", classes=3, channels=1, width=8)
    model = spec.build()
    theta = initial_weights(spec, seed=0)
    images = torch.randn(3, 1, 28, 28)
    head = [
        name for name, _ in model.named_parameters() if name.startswith("classifier.") and "weight" in name
    ]
    found = empirical_ntk(model, theta, images, names=head)
    model.load_state_dict(theta)
    features = model.eval()(images).features.detach().double()
    torch.testing.assert_close(found, features @ features.T, rtol=1e-4, atol=1e-5)
    full = empirical_ntk(model, theta, images)
    assert (torch.linalg.eigvalsh(full) > 0).all()


# The discrepancy.


@given(seeds, st.integers(2, 5), st.integers(2, 4))
def test_the_discrepancy_by_loops(seed, n, m):
    a, b = points(n, 3, seed), points(m, 3, seed + 1, shift=0.5)
    k_ss, k_st, k_tt = kernels(a, b, lambda *x: rbf_kernel(*x, bandwidth=2.0))
    own = sum(float(k_ss[i, j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(float(k_tt[i, j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    cross = sum(float(k_st[i, j]) for i in range(n) for j in range(m)) / (n * m)
    assert float(mmd(k_ss, k_st, k_tt)) == pytest.approx(own + other - 2 * cross, abs=1e-12)
    assert float(mmd(k_tt, k_st.T, k_ss)) == pytest.approx(own + other - 2 * cross, abs=1e-12)


def test_the_discrepancy_has_no_bias_and_is_not_clipped():
    values = []
    for seed in range(300):
        a, b = points(8, 2, 2 * seed), points(6, 2, 2 * seed + 1)
        values.append(float(mmd(*kernels(a, b, lambda *x: rbf_kernel(*x, bandwidth=2.0)))))
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(300)
    assert 0.3 < np.mean(np.array(values) < 0) < 0.8


def test_farther_targets_are_farther():
    a = points(20, 2, 0)
    values = [
        float(mmd(*kernels(a, points(20, 2, 1, shift), lambda *x: rbf_kernel(*x, bandwidth=4.0))))
        for shift in (0, 1, 2, 3)
    ]
    assert values == sorted(values)


# The proposition.


def orthogonal(seed, n, m, scale=1.7):
    """Source inputs that are orthogonal and of one length, targets anywhere."""
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.normal(size=(n + 3, n + 3)))[0]
    a = torch.from_numpy(math.sqrt(scale) * basis[:n])
    b = torch.from_numpy(random.normal(size=(m, n + 3)) * 0.3)
    return a @ a.T, a @ b.T, b @ b.T


@given(seeds, st.integers(2, 6), st.integers(2, 5))
def test_for_orthogonal_sources_it_is_the_exact_posterior(seed, n, m):
    three = orthogonal(seed, n, m)
    found = variance_by_mmd(*three)
    exact = float(gaussian_process_variance(*three).mean())
    assert found.value == pytest.approx(exact, abs=1e-12)
    assert found.first_order == pytest.approx(exact, abs=1e-12)
    assert found.lambda_s == pytest.approx(1.7)
    assert found.epsilon < 1e-12
    assert found.spread < 1e-12
    assert found.applies


@given(seeds, st.integers(2, 6), st.integers(2, 5))
def test_every_term_by_its_definition(seed, n, m):
    a, b = points(n, 4, seed), points(m, 4, seed + 1, shift=0.3)
    k_ss, k_st, k_tt = kernels(a, b, lambda *x: cosine_kernel(*x, scale=2.0))
    found = variance_by_mmd(k_ss, k_st, k_tt)
    factor = n / (2 * 2.0)
    assert found.mmd_squared == pytest.approx(float(mmd(k_ss**2, k_st**2, k_tt**2)), abs=1e-12)
    assert found.mmd_term == pytest.approx(factor * found.mmd_squared, abs=1e-12)
    beta = np.mean([float(k_tt[i, j]) ** 2 for i in range(m) for j in range(m) if i != j])
    assert found.beta_t == pytest.approx(beta, abs=1e-12)
    assert found.beta_term == pytest.approx(factor * beta, abs=1e-12)
    assert found.lambda_t == pytest.approx(2, abs=1e-12)
    assert found.value == pytest.approx(found.mmd_term + found.lambda_t - found.beta_term, abs=1e-12)
    assert found.first_order == pytest.approx(2 - n / 2 * float((k_st**2).mean()), abs=1e-12)
    between = [float(k_ss[i, j]) ** 2 for i in range(n) for j in range(n) if i != j]
    assert found.value - found.first_order == pytest.approx(factor * np.mean(between), abs=1e-11)
    assert found.epsilon == pytest.approx(math.sqrt(max(between)), abs=1e-12)
    assert found.epsilon_ratio == pytest.approx(found.epsilon / 2)
    rows = [sum(abs(float(k_ss[i, j])) for j in range(n) if j != i) for i in range(n)]
    assert found.crowding == pytest.approx(max(rows) / 2, abs=1e-12)
    assert found.applies == (found.crowding < 1)
    assert (found.n_source, found.n_target) == (n, m)


def test_it_comes_closer_to_the_posterior_as_sources_become_unlike():
    a, b = points(30, 12, 0), points(40, 12, 1)
    gaps, ratios = [], []
    for bandwidth in (4.0, 2.0, 1.0):
        three = kernels(a, b, lambda *x, h=bandwidth: rbf_kernel(*x, bandwidth=h))
        found = variance_by_mmd(*three)
        gaps.append(abs(found.first_order - float(gaussian_process_variance(*three).mean())))
        ratios.append(found.epsilon_ratio)
    assert ratios == sorted(ratios, reverse=True)
    assert gaps[2] < gaps[1] / 10 < gaps[0] / 100
    assert gaps[0] > 1e-3


def test_a_farther_target_is_more_uncertain():
    a = points(20, 8, 0)
    values = []
    for shift in (0.0, 0.5, 1.0):
        three = kernels(a, points(50, 8, 1, shift), lambda *x: rbf_kernel(*x, bandwidth=3.0))
        found = variance_by_mmd(*three)
        values.append((found.value, float(gaussian_process_variance(*three).mean()), found.mmd_squared))
    for column in zip(*values, strict=True):
        assert list(column) == sorted(column)


def test_where_assumptions_fail_it_may_be_negative_and_says_so():
    a = torch.ones(5, 2, dtype=torch.float64) + 0.01 * points(5, 2, 0)
    three = kernels(a, a[:3] + 0.01, lambda *x: rbf_kernel(*x, bandwidth=1.0))
    found = variance_by_mmd(*three)
    assert found.first_order < -3
    assert found.epsilon_ratio > 0.9
    assert not found.applies
    assert "whose assumptions fail here: epsilon / lambda_S = 1, crowding 4," in found.verdict()
    k_ss = torch.diag(torch.tensor([1.0, 1.0, 1.3]))
    uneven = variance_by_mmd(k_ss, torch.zeros(3, 2), torch.eye(2))
    assert uneven.spread == pytest.approx(0.2 / 1.1)
    assert not uneven.applies
    fine = variance_by_mmd(torch.eye(3), torch.zeros(3, 2), torch.eye(2))
    assert fine.verdict() == (
        "Mean variance on the target 1: epsilon / lambda_S = 0, crowding 0, the diagonal of the source differs by 0 %."
    )
    content = json.loads(json.dumps(uneven.to_dict(), allow_nan=False))
    assert content["applies"] is False
    assert content["lambda_t"] == 1
    assert content["n_source"] == 3


# The exact posterior.


@pytest.mark.parametrize("noise", [1e-6, 0.3])
def test_the_posterior_of_another_library(noise):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    a, b = points(12, 3, 0), points(7, 3, 1)
    three = kernels(a, b, lambda *x: rbf_kernel(*x, bandwidth=2 * 1.3**2))
    regressor = GaussianProcessRegressor(RBF(1.3, "fixed"), alpha=noise, optimizer=None)
    _, deviation = regressor.fit(a.numpy(), np.zeros(12)).predict(b.numpy(), return_std=True)
    found = gaussian_process_variance(*three, noise=noise)
    assert found.numpy() == pytest.approx(deviation**2, abs=1e-9)


def test_the_posterior_vanishes_on_the_source_and_is_the_prior_far_away():
    a = points(6, 3, 0)
    known = gaussian_process_variance(*kernels(a, a, lambda x, *y: rbf_kernel(x, *y, bandwidth=1.0)))
    assert known.abs().max() < 1e-12
    far = gaussian_process_variance(*kernels(a, a + 100, lambda x, *y: rbf_kernel(x, *y, bandwidth=1.0)))
    torch.testing.assert_close(far, torch.ones(6).double())


# Errors.


def test_what_is_refused():
    def refused(match, call):
        with pytest.raises(InputError, match=match):
            call()

    eye = torch.eye(3)
    x = torch.ones(2, 3)
    refused("bandwidth: expected a number above 0, got 0", lambda: rbf_kernel(x, bandwidth=0))
    refused("inputs of one shape", lambda: rbf_kernel(x, torch.ones(2, 4), bandwidth=1))
    refused("at least one input on each side", lambda: rbf_kernel(x[:0], bandwidth=1))
    refused("inputs must be finite", lambda: cosine_kernel(x * math.nan))
    refused(
        "features 1 of the second are all zero",
        lambda: cosine_kernel(x, torch.eye(3)[[0, 1]] * torch.tensor([[1], [0]])),
    )
    refused(r"got shapes \(3, 3\), \(2, 3\) and \(3, 3\)", lambda: mmd(eye, torch.zeros(2, 3), eye))
    refused(
        "at least 2 inputs of source and of target, got 3 and 1", lambda: mmd(eye, eye[:, :1], eye[:1, :1])
    )
    refused("kernels must be finite, k_st is not", lambda: variance_by_mmd(eye, eye * math.nan, eye))
    refused("diagonal of k_ss must have a mean above 0", lambda: variance_by_mmd(0 * eye, eye, eye))
    refused("diagonal of k_tt must be above 0, got 0 at 0", lambda: constant_diagonal(eye, eye, 0 * eye))
    refused("noise: expected a variance", lambda: gaussian_process_variance(eye, eye, eye, noise=-1))
    twice = torch.ones(2, 2)
    refused("not positive definite from its row 1 on", lambda: gaussian_process_variance(twice, twice, twice))
    model = nn.Linear(3, 2)
    theta = model.state_dict()
    refused(r"such as weight, bias, got \['head'\]", lambda: empirical_ntk(model, theta, x, names=["head"]))
    refused("got none", lambda: empirical_ntk(model, theta, x, names=[]))
    refused("'bias' is in one of the two only", lambda: empirical_ntk(model, {"weight": theta["weight"]}, x))
    refused("block: expected at least 1 image, got 0", lambda: empirical_ntk(model, theta, x, block=0))
    refused("at least one image", lambda: empirical_ntk(model, theta, x[:0]))
