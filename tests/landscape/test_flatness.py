"""The trace and the top eigenvalues against the Hessian written out, and against curvlinops."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from mirepoix.landscape._flatness import TraceEstimate, hessian_trace, top_eigenvalues
from mirepoix.models import NetworkSpec
from mirepoix.types import Batch, InputError, Outputs
from tests.landscape.curves import batches_of, copied, full_hessian, joined, small_network


@pytest.fixture
def model() -> nn.Sequential:
    return small_network()


def images_of(spec: NetworkSpec, count: int = 3, size: int = 16) -> list[Batch]:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(count, spec.channels, size, size, generator=random)
    labels = torch.arange(count) % spec.classes
    return [Batch(images, labels, torch.zeros_like(labels))]


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_estimate_is_within_three_standard_errors_of_the_trace(model, method, seed):
    batches = batches_of()
    assert sum(p.numel() for p in model.parameters()) == 57
    hessian = full_hessian(model, batches)
    exact = hessian.trace().item()
    estimate = hessian_trace(
        model, model.state_dict(), batches, samples=90, relative_error=None, method=method, seed=seed
    )
    assert estimate.samples == 90
    assert estimate.images == 14
    assert abs(estimate.value - exact) < 3 * estimate.standard_error + 1e-12 * abs(exact)
    if method == "hutchinson":
        variance = 2 * (hessian.square().sum() - hessian.diagonal().square().sum())  # of one probe
        assert estimate.standard_error == pytest.approx((variance / 90).sqrt().item(), rel=0.3)


def test_the_standard_error_is_what_estimates_really_vary_by(model):
    batches, theta = batches_of(), model.state_dict()
    exact = full_hessian(model, batches).trace().item()
    made = [
        hessian_trace(model, theta, batches, samples=20, relative_error=None, seed=seed) for seed in range(40)
    ]
    z = np.array([(one.value - exact) / one.standard_error for one in made])
    assert abs(z.mean()) < 3 * z.std(ddof=1) / np.sqrt(len(z))  # unbiased
    assert 0.7 < z.std(ddof=1) < 1.5


def test_the_standard_error_shrinks_as_one_over_the_square_root(model):
    batches, theta = batches_of(), model.state_dict()
    few, many = (
        hessian_trace(model, theta, batches, samples=samples, relative_error=None).standard_error
        for samples in (64, 1024)
    )
    assert few / many == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_parts_of_layers_sum_to_the_whole_and_are_the_traces_of_the_blocks(model, method):
    batches = batches_of()
    hessian = full_hessian(model, batches)
    diagonal = hessian.diagonal()
    estimate = hessian_trace(
        model, model.state_dict(), batches, samples=600, relative_error=None, method=method
    )
    blocks = dict(
        zip(("0", "2", "3"), (diagonal[:30].sum(), diagonal[30:51].sum(), diagonal[51:].sum()), strict=True)
    )
    assert list(estimate.by_layer) == list(estimate.by_layer_error) == list(blocks)
    assert sum(estimate.by_layer.values()) == pytest.approx(estimate.value, rel=1e-12)
    for layer, block in blocks.items():
        assert abs(estimate.by_layer[layer] - block) < 3 * estimate.by_layer_error[layer] + 1e-10
    if method == "hutchinson":
        rows = torch.zeros_like(hessian)
        rows[:30] = hessian[:30]
        symmetric = (rows + rows.T) / 2
        variance = 2 * (symmetric.square().sum() - symmetric.diagonal().square().sum())  # of one probe
        assert estimate.by_layer_error["0"] == pytest.approx((variance / 600).sqrt().item(), rel=0.2)


def test_some_parameters_give_the_trace_of_their_block(model):
    batches = batches_of()
    block = full_hessian(model, batches)[51:, 51:]
    found = hessian_trace(
        model, model.state_dict(), batches, names=["3.weight"], samples=2000, relative_error=None
    )
    assert abs(found.value - block.trace()) < 3 * found.standard_error
    assert list(found.by_layer) == ["3"]


def test_a_diagonal_hessian_needs_no_luck():
    model = nn.Linear(1, 2).double()  # one weight and a zero input: the Hessian of the biases alone
    batch = Batch(torch.zeros(4, 1).double(), torch.tensor([0, 1, 0, 1]), torch.zeros(4, dtype=torch.long))
    theta = {"weight": torch.zeros(2, 1), "bias": torch.tensor([0.0, np.log(3)])}
    found = hessian_trace(model, theta, [batch], names=["weight"])
    assert (found.value, found.standard_error, found.samples) == (0, 0, 10)
    # p = (1/4, 3/4): the trace of diag(p) - pp^T is 2 p (1 - p).
    both = hessian_trace(model, theta, [batch], samples=1000, relative_error=None)
    assert abs(both.value - 2 * 3 / 16) < 3 * both.standard_error
    exact = hessian_trace(model, theta, [batch], samples=12, method="hutch++")
    assert exact.value == pytest.approx(2 * 3 / 16)  # of rank one, so nothing is left to estimate


def test_softmax_regression_in_closed_form():
    torch.manual_seed(0)
    model, batches = nn.Linear(4, 3).double(), batches_of(classes=3)
    images, _ = joined(batches)
    p = model(images).softmax(1)
    lengths = images.square().sum(1) + 1  # of the image with a one for the bias
    exact = (lengths * (1 - p.square().sum(1))).mean().item()
    found = hessian_trace(model, model.state_dict(), batches, samples=1000, relative_error=None)
    assert abs(found.value - exact) < 3 * found.standard_error
    assert found.standard_error < 0.05 * exact


def test_it_stops_when_the_standard_error_is_small_enough(model):
    batches, theta = batches_of(), model.state_dict()
    whole = hessian_trace(model, theta, batches, samples=500, relative_error=None)
    some = hessian_trace(model, theta, batches, samples=500, relative_error=0.2)
    assert 10 <= some.samples < whole.samples == 500
    assert some.standard_error <= 0.2 * some.value
    fewer = hessian_trace(model, theta, batches, samples=some.samples, relative_error=None)
    assert (fewer.value, fewer.standard_error) == (some.value, some.standard_error)


def test_the_same_arguments_give_the_same_bits_and_another_seed_does_not(model):
    batches, theta = batches_of(), model.state_dict()
    once, again, other = (hessian_trace(model, theta, batches, seed=seed) for seed in (3, 3, 4))
    assert once == again
    assert once.value != other.value


def test_batches_of_any_size_and_a_generator_of_them_give_the_same(model):
    batches, theta = batches_of(), model.state_dict()
    images, labels = joined(batches)
    whole = hessian_trace(model, theta, [Batch(images, labels, labels)])
    parts = hessian_trace(model, theta, iter(batches))
    assert parts.value == pytest.approx(whole.value, rel=1e-12)
    assert parts.loss == pytest.approx(nn.functional.cross_entropy(model(images), labels).item())


def test_the_networks_weights_and_mode_are_left_as_they_are(model):
    model.train()
    model[0].weight.requires_grad_(False)
    before = copied(model)
    theta = {name: tensor + 1 for name, tensor in before.items()}
    kept = {name: tensor.clone() for name, tensor in theta.items()}
    shifted = small_network()
    shifted.load_state_dict(theta)
    for measure in (hessian_trace, top_eigenvalues):
        measure(model, theta, batches_of())
    assert model.training
    assert not model[0].weight.requires_grad
    assert model[2].weight.grad is None
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(theta[name], kept[name])
    exact = full_hessian(
        shifted, batches_of()
    ).trace()  # so theta was measured, not the network's own weights
    found = hessian_trace(model, theta, batches_of(), relative_error=None)
    assert abs(found.value - exact) < 3 * found.standard_error


def test_dropout_is_off_and_batch_norm_uses_its_running_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2)).double()
    model[1].running_mean += 0.3
    theta = copied(model)
    exact = full_hessian(model.eval(), batches_of()).trace()
    found = hessian_trace(model.train(), theta, batches_of(), samples=400, relative_error=None)
    assert abs(found.value - exact) < 3 * found.standard_error
    assert torch.equal(model[1].running_mean, theta["1.running_mean"])


def test_progress_counts_the_products(model):
    seen: list[tuple[int, int]] = []
    for method, samples in (("hutchinson", 13), ("hutch++", 13)):
        seen.clear()
        hessian_trace(
            model,
            model.state_dict(),
            batches_of(),
            samples=samples,
            relative_error=None,
            method=method,
            progress=lambda done, total: seen.append((done, total)),
        )
        assert seen[-1] == (13, 13)
        assert seen == sorted(seen)


def test_half_precision_and_arrays_are_widened(model):
    theta = {name: tensor.half() for name, tensor in model.state_dict().items()}
    arrays = {name: tensor.numpy() for name, tensor in theta.items()}
    single = {name: tensor.float() for name, tensor in theta.items()}
    found = [hessian_trace(model, one, batches_of()).value for one in (theta, arrays, single)]
    assert found[0] == found[1] == found[2]
    double = {name: tensor.double() for name, tensor in theta.items()}
    assert hessian_trace(model, double, batches_of()).value == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec(name="mnist_cnn", classes=3, channels=1, width=8),
        NetworkSpec(name="cifar_resnet20", classes=3),
        NetworkSpec(name="timm:resnet10t", classes=3),
    ],
    ids=lambda spec: spec.name,
)
def test_real_networks_have_a_trace_and_in_place_operations_do_no_harm(spec):
    model, batches = spec.build(), images_of(spec)
    found = hessian_trace(model, model.state_dict(), batches, samples=4)
    assert np.isfinite([found.value, found.standard_error]).all()
    assert "classifier" in found.by_layer
    # The part of the head in closed form: the logits are linear in it.
    with torch.no_grad():
        out = model.eval()(batches[0].images)
    p = out.logits.softmax(1)
    exact = ((out.features.square().sum(1) + 1) * (1 - p.square().sum(1))).mean().item()
    head = hessian_trace(
        model, model.state_dict(), batches, names=["classifier.weight", "classifier.bias"], samples=100
    )
    assert abs(head.value - exact) < 4 * head.standard_error


class Attention(nn.Module):
    """Fused attention, whose usual form has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> Outputs:
        q, k, v = self.into(images).unflatten(-1, (3, 1, 4)).unbind(-3)
        tokens = nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])
        features = tokens.flatten(1)
        return Outputs(features=features, logits=self.out(features))


def test_attention_has_second_derivatives():
    torch.manual_seed(0)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model = NetworkSpec(name="timm:vit_tiny_patch16_224", classes=3).build()
    batches = images_of(NetworkSpec(name="mnist_cnn", classes=3), count=1, size=224)
    names = ["featurizer.blocks.11.attn.qkv.weight"]
    found = hessian_trace(model, model.state_dict(), batches, names=names, samples=2)
    assert np.isfinite(found.value)
    small = Attention().double()
    with sdpa_kernel(SDPBackend.MATH):
        exact = full_hessian(small, batches_of()).trace()
    found = hessian_trace(small, small.state_dict(), batches_of(), samples=200, relative_error=None)
    assert abs(found.value - exact) < 3 * found.standard_error


@pytest.mark.parametrize("count", [1, 3, 57])
def test_top_eigenvalues_are_those_of_the_full_hessian(model, count):
    batches = batches_of()
    values = np.linalg.eigvalsh(full_hessian(model, batches).numpy())[::-1]
    found = top_eigenvalues(model, model.state_dict(), batches, count=count, tolerance=1e-10)
    assert found.shape == (count,)
    np.testing.assert_allclose(found.numpy(), values[:count], atol=1e-8 * values[0])


def test_top_eigenvalues_are_the_largest_and_not_the_largest_in_magnitude():
    """At weights that are far from a minimum the Hessian has a negative eigenvalue of larger magnitude."""
    for seed in range(5):
        model = small_network(seed)
        theta = {name: 3 * tensor for name, tensor in model.state_dict().items()}
        model.load_state_dict(theta)
        values = np.linalg.eigvalsh(full_hessian(model, batches_of()).numpy())
        found = top_eigenvalues(model, theta, batches_of(), seed=seed)
        assert found.item() == pytest.approx(values[-1], rel=1e-2)


def test_a_hessian_of_zero_has_eigenvalues_of_zero_and_one_of_low_rank_as_many():
    model = nn.Linear(20, 2, bias=False).double()
    images = torch.zeros(4, 20, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1])
    found = top_eigenvalues(model, model.state_dict(), [Batch(images, labels, labels)], count=3)
    assert found.tolist() == [0, 0, 0]
    images[:, 0] = 2  # p (1 - p) times [[1, -1], [-1, 1]] times the square of 2
    theta = {"weight": torch.zeros(2, 20, dtype=torch.float64)}
    found = top_eigenvalues(model, theta, [Batch(images, labels, labels)], count=3)
    assert found.tolist() == pytest.approx([2, 0, 0], abs=1e-9)


def test_the_products_are_those_of_curvlinops():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curvlinops = pytest.importorskip("curvlinops")
    from mirepoix.landscape._loss import MeanLoss

    spec = NetworkSpec(name="cifar_resnet20", classes=3)
    model = spec.build().double().eval()
    batches = [*images_of(spec), *images_of(spec, count=1)]
    loss = MeanLoss("test", model, model.state_dict(), batches)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = loss.network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network(images).logits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = curvlinops.HessianLinearOperator(
            Logits(), nn.CrossEntropyLoss(), loss.parameters, loss.batches, check_deterministic=False
        )
        vectors = torch.randn(2, loss.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        expected = (operator @ vectors.T).T
    torch.testing.assert_close(loss.products(vectors), expected, rtol=1e-8, atol=1e-10)


class Hard(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(nn.functional.hardsigmoid(self.first(images)))


def test_errors_say_what_was_expected_and_what_came(model):
    theta, batches = model.state_dict(), batches_of()

    def message(*given, measure=hessian_trace, **options) -> str:
        with pytest.raises(InputError) as raised:
            measure(*given, **options)
        return str(raised.value)

    assert "batches: expected at least one image, got none" in message(model, theta, [])
    assert "labels from 0 to 1" in message(model, theta, batches_of(classes=5))
    missing = {name: tensor for name, tensor in theta.items() if name != "0.bias"}
    assert "'0.bias' is missing" in message(model, missing, batches)
    assert "'more' is unknown" in message(model, {**theta, "more": torch.ones(1)}, batches)
    misshapen = {**theta, "0.bias": torch.ones(7)}
    assert "'0.bias' has shape (7,), expected (6,)" in message(model, misshapen, batches)
    assert "names: expected parameters" in message(model, theta, batches, names=["head"])
    assert "got none" in message(model, theta, batches, names=[])
    broken = {**theta, "0.bias": torch.full((6,), torch.nan)}
    assert "expected a finite loss at these weights, got nan" in message(model, broken, batches)
    assert "samples: expected at least 2" in message(model, theta, batches, samples=1)
    assert "at least 4 for hutch++" in message(model, theta, batches, samples=3, method="hutch++")
    assert "relative_error" in message(model, theta, batches, relative_error=0)
    assert "method: expected 'hutchinson' or 'hutch++'" in message(model, theta, batches, method="xtrace")
    assert "count: expected 1 to 57" in message(model, theta, batches, measure=top_eigenvalues, count=58)
    assert "tolerance" in message(model, theta, batches, measure=top_eigenvalues, tolerance=-1)
    hard = Hard()
    assert "differentiated twice" in message(hard, hard.state_dict(), batches)


def test_a_result_is_plain_values(model):
    found = hessian_trace(model, model.state_dict(), batches_of(), samples=10)
    assert isinstance(found, TraceEstimate)
    assert type(found.value) is type(found.standard_error) is type(found.loss) is float
    assert found.method == "hutchinson"
