import itertools

import numpy as np
import pytest
import torch
from tests.merging.networks import ALL, built, outputs, randomised, same, weights
from torch import nn

from mirepoix.merging._permutation import activation_costs, align, permute
from mirepoix.merging._permutation_spec import permutation_spec
from mirepoix.types import Batch, InputError
from mirepoix.weights import distance


@pytest.mark.parametrize("name", ALL)
def test_a_permuted_network_is_the_same_function_and_is_recovered_exactly(name):
    model, images = built(name)
    theta = weights(model)
    spec = permutation_spec(model, images)
    shuffled = permute(theta, spec, spec.random(np.random.default_rng(1)))
    moved = [key for key in theta if not torch.equal(theta[key], shuffled[key])]
    assert len(moved) > len(theta) / 2
    before = outputs(model, theta, images)
    assert before.std() > 0.01
    torch.testing.assert_close(outputs(model, shuffled, images), before, rtol=0, atol=1e-9)

    alignment = align(shuffled, theta, spec)
    assert same(alignment.theta, theta)  # running statistics included
    assert alignment.converged
    assert alignment.after > alignment.before


def test_the_logits_in_float32_agree_to_five_digits():
    model, images = built("resnet")
    model, images = model.float(), images.float()
    theta = weights(model)
    spec = permutation_spec(model, images)
    shuffled = permute(theta, spec, spec.random(np.random.default_rng(2)))
    before = outputs(model, theta, images)
    torch.testing.assert_close(outputs(model, shuffled, images), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet", "torchvision_vit", "timm_vit"])
def test_a_permutation_and_its_inverse_give_the_weights_back(name):
    model, images = built(name)
    theta = weights(model)
    spec = permutation_spec(model, images)
    permutations = spec.random(np.random.default_rng(3))
    shuffled = permute(theta, spec, permutations)
    assert not same(shuffled, theta)
    assert same(permute(shuffled, spec, spec.inverse(permutations)), theta)
    assert same(permute(permute(theta, spec, spec.inverse(permutations)), spec, permutations), theta)
    assert same(permute(theta, spec, spec.identity()), theta)


def one_hidden_layer(seed):
    torch.manual_seed(seed)
    return randomised(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))


@pytest.mark.parametrize("seed", range(3))
def test_with_one_hidden_layer_the_match_is_the_best_of_all_permutations(seed):
    model = one_hidden_layer(seed)
    theta, reference = weights(model), weights(one_hidden_layer(seed + 10))
    spec = permutation_spec(model, torch.zeros(1, 3).double())
    best = min(
        distance(permute(theta, spec, {"0": list(order)}), reference)
        for order in itertools.permutations(range(5))
    )
    assert distance(align(theta, reference, spec).theta, reference) == pytest.approx(best, rel=1e-12)


def test_heads_and_what_is_inside_them_are_matched_jointly():
    torch.manual_seed(0)
    model = randomised(Attention(6, 2))
    theta = weights(model)
    reference = weights(randomised(Attention(6, 2)))
    spec = permutation_spec(model, torch.zeros(1, 4, 6).double())
    blocks = "qkv:blocks"
    inner = [name for name, group in spec.groups.items() if group.parent == blocks]
    assert [spec.groups[name].shape for name in inner] == [(2, 3), (2, 3)]
    orders = list(itertools.permutations(range(3)))
    best = min(
        distance(
            permute(theta, spec, {blocks: heads, inner[0]: [a, b], inner[1]: [c, d]}),
            reference,
            squared=True,
        )
        for heads in ([0, 1], [1, 0])
        for a, b, c, d in itertools.product(orders, repeat=4)
    )
    found = distance(align(theta, reference, spec).theta, reference, squared=True)
    assert found == pytest.approx(best, rel=1e-12)


class Attention(nn.Module):
    def __init__(self, size, heads):
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(size, 3 * size), nn.Linear(size, size), heads

    def forward(self, x):
        n, length, size = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.out((attention @ v).transpose(1, 2).reshape(n, length, size))


def pair(name="mlp"):
    (model, images), (other, _) = built(name), built(name, seed=1)
    return model, images, weights(model), weights(other)


@pytest.mark.parametrize("name", ["mlp", "resnet", "timm_vit"])
def test_alignment_never_leads_away_and_reports_what_it_gained(name):
    model, images, theta, reference = pair(name)
    alignment = align(theta, reference, permutation_spec(model, images))
    before = distance(theta, reference, squared=True)
    after = distance(alignment.theta, reference, squared=True)
    # |a - P b|^2 = |a|^2 + |b|^2 - 2 <a, P b>, and a permutation keeps the norms.
    assert before - after == pytest.approx(2 * (alignment.after - alignment.before), rel=1e-9)
    assert before > after


def test_a_network_that_is_near_stays_as_it_is():
    model, images = built("resnet")
    reference = weights(model)
    torch.manual_seed(5)
    theta = {k: x + 0.01 * torch.randn(x.shape) if x.is_floating_point() else x for k, x in reference.items()}
    assert same(align(theta, reference, permutation_spec(model, images)).theta, theta)


def test_running_statistics_follow_the_weights_and_are_not_matched():
    model, images, theta, reference = pair("resnet")
    spec = permutation_spec(model, images)
    noisy = {name: 100 * x if "running" in name else x for name, x in reference.items()}
    one, two = align(theta, reference, spec), align(theta, noisy, spec)
    assert all(np.array_equal(one.permutations[name], two.permutations[name]) for name in spec.groups)
    order = one.permutations["featurizer.conv1"]
    assert torch.equal(
        one.theta["featurizer.bn1.running_var"], theta["featurizer.bn1.running_var"][list(order)]
    )


def test_the_same_seed_gives_the_same_alignment_and_another_may_not():
    model, images, theta, reference = pair("bottleneck_resnet")
    spec = permutation_spec(model, images)
    found = [align(theta, reference, spec, seed=seed) for seed in (0, 0, 1)]
    assert same(found[0].theta, found[1].theta)
    assert found[0].after == found[1].after
    assert not same(found[0].theta, found[2].theta)


def test_restarts_keep_the_best():
    model, images, theta, reference = pair("vgg")
    spec = permutation_spec(model, images)
    values = [align(theta, reference, spec, restarts=n).after for n in range(4)]
    assert values == sorted(values)
    assert values[-1] > values[0]


def test_sweeps_are_counted_and_limited():
    model, images, theta, reference = pair("bottleneck_resnet")
    spec = permutation_spec(model, images)
    full, short = align(theta, reference, spec), align(theta, reference, spec, sweeps=1)
    assert full.converged
    assert full.sweeps > 1
    assert not short.converged
    assert short.sweeps == 1
    assert short.after < full.after


def test_numpy_and_torch_give_the_same_and_inputs_stay():
    model, images, theta, reference = pair("vgg")
    spec = permutation_spec(model, images)
    arrays = [{name: x.numpy().copy() for name, x in y.items()} for y in (theta, reference)]
    kept = {name: x.copy() for name, x in arrays[0].items()}
    found, expected = align(*arrays, spec).theta, align(theta, reference, spec).theta
    assert all(isinstance(x, np.ndarray) for x in found.values())
    assert all(np.array_equal(found[name], expected[name].numpy()) for name in expected)
    assert all(np.array_equal(arrays[0][name], kept[name]) for name in kept)
    assert not any(np.shares_memory(found[name], arrays[0][name]) for name in kept)


def test_half_precision_is_matched_and_kept():
    model, images = built("mlp")
    spec = permutation_spec(model, images)
    theta = {name: x.bfloat16() for name, x in weights(model).items()}
    shuffled = permute(theta, spec, spec.random(np.random.default_rng(0)))
    aligned = align(shuffled, theta, spec).theta
    assert same(aligned, theta)
    assert all(x.dtype == torch.bfloat16 for x in aligned.values())


def test_notices_of_the_spec_are_reported():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2)).double()
    spec = permutation_spec(model, torch.zeros(1, 3, 4, 4).double())
    assert spec.notices
    assert align(weights(model), weights(model), spec).notices == spec.notices


# Activations.


def batches(images, count=2):
    zeros = torch.zeros(len(images))
    return [Batch(images + i, zeros.long(), zeros) for i in range(count)]


def test_activation_costs_are_correlations():
    torch.manual_seed(0)
    model = randomised(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 2)))
    other = weights(randomised(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))))
    theta = weights(model)
    other["0.weight"][1], other["0.bias"][1] = 0.0, 1.0  # a unit that never varies
    images = torch.randn(6, 2, 2, 2).double()
    spec = permutation_spec(model, images)
    costs = activation_costs(model, other, theta, spec, batches(images))
    values = []
    for weight in (theta, other):
        model.load_state_dict(weight)
        x = torch.cat([model[0](batch.images) for batch in batches(images)])
        values.append(x.detach().transpose(0, 1).flatten(1).numpy())
    for i, j in np.ndindex(3, 3):
        expected = 0.0 if j == 1 else np.corrcoef(values[0][i], values[1][j])[0, 1]
        assert costs["0"][i, j] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_activations_recover_a_permutation_too(name):
    model, images = built(name)
    theta = weights(model)
    spec = permutation_spec(model, images)
    shuffled = permute(theta, spec, spec.random(np.random.default_rng(1)))
    many = torch.cat([images, torch.randn(20, *images.shape[1:]).double()])
    costs = activation_costs(model, shuffled, theta, spec, batches(many))
    alignment = align(shuffled, theta, spec, costs=costs)
    assert same(alignment.theta, theta)
    units = sum(
        group.shape[0] * sum(1 for act in group.acts if act.axis == 0 and is_layer(model, act.tensor))
        for group in spec.groups.values()
    )
    assert alignment.after == pytest.approx(units)  # every correlation is one
    assert same(weights(model), theta)


def is_layer(model, tensor):
    layer, _, kind = tensor.rpartition(".")
    return kind == "weight" and isinstance(model.get_submodule(layer), nn.Linear | nn.Conv2d)


def test_activation_costs_say_what_they_cannot_match():
    model, images = built("timm_vit")
    spec = permutation_spec(model, images)
    with pytest.raises(InputError, match=r"'blocks\.0\.attn\.qkv:blocks' lies in blocks"):
        activation_costs(model, weights(model), weights(model), spec, batches(images))
    model, images = built("mlp")
    spec = permutation_spec(model, images)
    with pytest.raises(InputError, match="at least one batch"):
        activation_costs(model, weights(model), weights(model), spec, [])


def test_given_costs_decide():
    model, images, theta, reference = pair()
    spec = permutation_spec(model, images)
    order = np.roll(np.arange(8), 3)
    costs = {"0": np.eye(8)[order], "2": np.eye(6)}
    alignment = align(theta, reference, spec, costs=costs)
    assert alignment.permutations["0"].tolist() == order.tolist()
    assert alignment.permutations["2"].tolist() == list(range(6))
    assert (alignment.before, alignment.after) == (6.0, 14.0)
    with pytest.raises(InputError, match=r"one matrix for each of \['0', '2'\], got \['0'\]"):
        align(theta, reference, spec, costs={"0": costs["0"]})
    with pytest.raises(InputError, match=r"'2' needs a finite matrix of shape \(6, 6\), got \(5, 6\)"):
        align(theta, reference, spec, costs={**costs, "2": np.eye(6)[:5]})
    with pytest.raises(InputError, match="finite"):
        align(theta, reference, spec, costs={**costs, "2": np.full((6, 6), np.nan)})


# Errors.


def test_weights_of_another_network_are_refused():
    model, images, theta, reference = pair()
    spec = permutation_spec(model, images)
    fewer = {name: x for name, x in theta.items() if name != "2.bias"}
    with pytest.raises(InputError, match=r"theta: expected the 6 tensors .* got 5; missing '2\.bias'"):
        permute(fewer, spec, spec.identity())
    with pytest.raises(InputError, match=r"reference: .* unexpected 'extra'"):
        align(theta, {**reference, "extra": theta["2.bias"]}, spec)
    with pytest.raises(InputError, match=r"reference: '2\.bias' has shape \(5,\), and \(6,\)"):
        align(theta, {**reference, "2.bias": reference["2.bias"][:5]}, spec)
    with pytest.raises(InputError, match=r"'2\.bias' of reference holds NaN"):
        align(theta, {**reference, "2.bias": reference["2.bias"] * torch.nan}, spec)


@pytest.mark.parametrize("wrong", [[0, 0, 2, 3, 4, 5], [0, 1, 2], [0, 1, 2, 3, 4, 6]])
def test_what_is_no_permutation_is_refused(wrong):
    model, images, theta, _ = pair()
    spec = permutation_spec(model, images)
    with pytest.raises(InputError, match=r"group '2' needs each of 0\.\.5 once"):
        permute(theta, spec, {**spec.identity(), "2": wrong})
    with pytest.raises(InputError, match=r"expected one for each of '0', '2', got '0'"):
        permute(theta, spec, {"0": np.arange(8)})


@pytest.mark.parametrize("options", [{"sweeps": 0}, {"restarts": -1}])
def test_sweeps_and_restarts_must_make_sense(options):
    model, images, theta, reference = pair()
    with pytest.raises(InputError, match="sweeps >= 1 and restarts >= 0"):
        align(theta, reference, permutation_spec(model, images), **options)
