import pytest
import torch
from tests.merging.networks import built, weights
from torch import nn

from mirepoix.merging._batch_norm import reestimate_batch_norm
from mirepoix.merging._repair import repair
from mirepoix.types import Batch, InputError, Outputs
from mirepoix.weights import average, interpolate


def batches(*shape, sizes=(7, 20, 12), dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [
        Batch(
            torch.randn(n, *shape, generator=random, dtype=dtype) + i, torch.zeros(n).long(), torch.zeros(n)
        )
        for i, n in enumerate(sizes)
    ]


def statistics(model, theta, data):
    """Mean and standard deviation of each layer's channels, all batches at once."""
    model.load_state_dict(theta)
    model.eval()
    seen = {}

    def keep(name):
        def hook(module, _, out):
            channels = out.movedim(-1 if isinstance(module, nn.Linear) else 1, 0).flatten(1)
            seen[name] = torch.stack([channels.mean(1), channels.std(1, correction=0)])

        return hook

    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    with torch.no_grad():
        model(torch.cat([batch.images for batch in data]))
    for handle in handles:
        handle.remove()
    return seen


def ends(name, **options):
    (model, _), (other, _) = built(name, **options), built(name, seed=1, **options)
    return model, [weights(model), weights(other)]


@pytest.mark.parametrize(
    ("name", "options", "shape", "last"),
    [("mlp", {}, (4,), "4"), ("vgg", {"batch_norm": False}, (3, 28, 28), "classifier.5")],
)
@pytest.mark.parametrize("coefficients", [None, [0.2, 0.8]])
def test_every_channel_gets_the_averaged_statistics(name, options, shape, last, coefficients):
    model, members = ends(name, **options)
    data = batches(*shape)
    c = coefficients or [0.5, 0.5]
    mean = interpolate(members, c)
    theta = repair(model, mean, members, data, coefficients=coefficients)
    wanted = [statistics(model, member, data) for member in members]
    before, after = statistics(model, mean, data), statistics(model, theta, data)
    assert list(after)[-1] == last
    for layer in list(after)[:-1]:
        expected = c[0] * wanted[0][layer] + c[1] * wanted[1][layer]
        torch.testing.assert_close(after[layer], expected, rtol=1e-8, atol=1e-8)
        assert not torch.allclose(before[layer], expected, rtol=1e-2)
    for key in (f"{last}.weight", f"{last}.bias"):
        assert torch.equal(theta[key], mean[key])


def test_in_float32_statistics_agree_to_five_digits():
    model, members = ends("mlp")
    model = model.float()
    members = [{name: x.float() for name, x in member.items()} for member in members]
    data = batches(4, dtype=torch.float32)
    theta = repair(model, average(members), members, data)
    wanted = [statistics(model, member, data) for member in members]
    after = statistics(model, theta, data)
    for layer in ("0", "2"):
        torch.testing.assert_close(
            after[layer], (wanted[0][layer] + wanted[1][layer]) / 2, rtol=1e-5, atol=1e-5
        )
    assert all(x.dtype == torch.float32 for x in theta.values())


def test_one_layer_by_hand():
    """Inputs -1 and 1. Members 3 x and 1 - x: standard deviations 3 and 1, means 0 and 1; average 1/2 + x."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    head = {"2.weight": torch.ones(1, 1).double(), "2.bias": torch.zeros(1).double()}
    members = [
        {"0.weight": torch.tensor([[w]]).double(), "0.bias": torch.tensor([b]).double(), **head}
        for w, b in ((3.0, 0.0), (-1.0, 1.0))
    ]
    data = [Batch(torch.tensor([[-1.0], [1.0]]).double(), torch.zeros(2), torch.zeros(2))]
    theta = repair(model, average(members), members, data)
    assert theta["0.weight"].item() == pytest.approx(2.0)
    assert theta["0.bias"].item() == pytest.approx(0.5)


def test_a_member_alone_needs_no_repair():
    model, (a, _) = ends("vgg", batch_norm=False)
    theta = repair(model, a, [a, a], batches(3, 28, 28))
    for name in a:
        torch.testing.assert_close(theta[name], a[name], rtol=1e-9, atol=1e-9)


def test_batches_may_come_once_and_in_any_cut():
    model, members = ends("mlp")
    data = batches(4)
    joint = [Batch(torch.cat([b.images for b in data]), torch.zeros(39), torch.zeros(39))]
    one = repair(model, average(members), members, iter(data))
    two = repair(model, average(members), members, joint)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-9, atol=1e-9)


def test_a_constant_channel_is_shifted_only():
    model, members = ends("mlp")
    for member, bias in zip(members, (1.0, 3.0), strict=True):
        member["0.weight"][0], member["0.bias"][0] = 0.0, bias
    mean = average(members)
    mean["0.bias"][0] = 7.0
    theta = repair(model, mean, members, batches(4))
    assert theta["0.weight"][0].tolist() == [0.0] * 4
    assert theta["0.bias"][0].item() == pytest.approx(2.0)


def test_numpy_members_and_an_untouched_model():
    model, members = ends("mlp")
    before = weights(model)
    arrays = [{name: x.numpy() for name, x in member.items()} for member in members]
    one = repair(model, average(arrays), arrays, batches(4))
    two = repair(model, average(members), members, batches(4))
    assert all(torch.equal(one[name], two[name]) for name in two)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_with_batch_norm_statistics_are_measured_again():
    model, members = ends("vgg")
    data = batches(3, 28, 28)
    theta = repair(model, average(members), members, data)
    model.load_state_dict(average(members))
    expected = reestimate_batch_norm(model, data)
    assert all(torch.equal(theta[name], expected[name]) for name in expected)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(3, 3)

    def forward(self, x):
        return Outputs(x, self.b(self.a(self.a(x))))


def test_a_layer_that_runs_twice_is_refused():
    model = Twice()
    with pytest.raises(InputError, match=r"'a' runs 6 times in 3 forward passes"):
        repair(model, weights(model), [weights(model)], batches(3, dtype=torch.float32))


def test_layers_without_bias_are_named():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(InputError, match="without bias cannot be shifted: '0'"):
        repair(model, weights(model), [weights(model)], batches(3, dtype=torch.float32))


def test_layers_that_share_a_weight_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
    model[2].weight = model[0].weight
    with pytest.raises(InputError, match="'0' shares its weight"):
        repair(model, weights(model), [weights(model)], batches(3, dtype=torch.float32))


def test_members_data_and_coefficients_must_be_there():
    model, members = ends("mlp")
    mean = average(members)
    with pytest.raises(InputError, match="no member"):
        repair(model, mean, [], batches(4))
    with pytest.raises(InputError, match="at least one batch"):
        repair(model, mean, members, [])
    with pytest.raises(InputError, match="got 1 for 2 members"):
        repair(model, mean, members, batches(4), coefficients=[1.0])
    with pytest.raises(InputError, match="must sum to one"):
        repair(model, mean, members, batches(4), coefficients=[0.5, 0.6])
