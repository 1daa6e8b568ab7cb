"""Every operation in a small network: what the graph lets move leaves the function as it was."""

import numpy as np
import pytest
import torch
from tests.merging.networks import outputs, randomised, weights
from torch import nn
from torch.nn import functional as F

from mirepoix.merging._channel_graph import Graph, Trace
from mirepoix.merging._permutation import permute
from mirepoix.merging._permutation_spec import permutation_spec


class Between(nn.Module):
    """A linear layer to ``width`` channels, an operation, and a linear layer from what it leaves."""

    def __init__(self, operation, width=8, left=None):
        super().__init__()
        self.a, self.b = nn.Linear(3, width), nn.Linear(left or width, 2)
        self.scale = nn.Parameter(torch.ones(width))
        self.operation = operation

    def forward(self, x):
        return self.b(self.operation(self.a(x), self.scale))


def moving(model, images):
    """How many units may move, after checking on random permutations that the function stays."""
    spec = permutation_spec(model, images)
    theta = weights(model)
    before = outputs(model, theta, images)
    assert before.std() > 1e-3
    for seed in range(3):
        shuffled = permute(theta, spec, spec.random(np.random.default_rng(seed)))
        torch.testing.assert_close(outputs(model, shuffled, images), before, rtol=1e-10, atol=1e-10)
    return sorted(np.prod(group.shape).item() for group in spec.groups.values()), spec


FOLLOWED = {
    "scale": (lambda x, s: F.gelu(x) * s, {}, [8]),
    "softmax": (lambda x, s: (x + s).softmax(-1), {}, [8]),
    "centred": (lambda x, s: x * s - x.mean(-1, keepdim=True), {}, [8]),
    "largest": (lambda x, s: x * s / x.amax(1, keepdim=True).abs(), {}, [8]),
    "halves multiplied": (lambda x, s: (x * s).chunk(2, -1)[0] * x.chunk(2, -1)[1].sigmoid(), {"left": 4}, [4]),
    "halves apart": (lambda x, s: torch.cat([x[:, :4].relu(), x[:, 4:].tanh()], 1) * s, {}, [4, 4]),
    "halves swapped": (lambda x, s: torch.cat([x[:, 4:] * s[4:], x[:, :4] * s[:4]], 1), {}, [4, 4]),
    "part": (lambda x, s: (x * s)[:, 2:5], {"left": 3}, [3, 5]),
    "every other": (lambda x, s: (x * s)[:, ::2], {"left": 4}, [4, 4]),
    "one channel": (lambda x, s: x * s * x[:, :1], {}, [7]),
    "another channel": (lambda x, s: x * s + x[:, 3].unsqueeze(1), {}, [7]),
    "twice": (lambda x, s: torch.cat([x.relu(), (x * s).tanh()], -1), {"left": 16}, [8]),
    "the same twice": (lambda x, s: torch.cat([x * s] * 2, -1), {"left": 16}, [8]),
    "zeros around": (lambda x, s: F.pad(x * s, (2, 1)) * 3, {"left": 11}, [3, 8]),
    "cropped": (lambda x, s: F.pad(x * s, (-2, -2)), {"left": 4}, [4, 4]),
    "written into zeros": (lambda x, s: torch.zeros_like(x).copy_(x) * s, {}, [8]),
    "in place": (lambda x, s: x.mul_(s).relu_(), {}, [8]),
    "outer product": (lambda x, s: (x.unsqueeze(2) * s).sum(2), {}, [8, 8]),
    "stacked and summed": (lambda x, s: torch.stack([x, x * s], 1).sum(1), {}, [8]),
    "matrix and back": (lambda x, s: (x * s).view(-1, 2, 4).transpose(1, 2).transpose(1, 2).flatten(1), {}, [2, 8]),
    "blocks normalised": (lambda x, s: F.group_norm(x, 4, s), {}, [4, 8]),
    "one block": (lambda x, s: F.group_norm(x, 1, s), {}, [8]),
    "layer norm": (lambda x, s: F.layer_norm(x, (8,), s), {}, [8]),
    "rms norm": (lambda x, s: F.rms_norm(x, (8,), s), {}, [8]),
    "blocks summed": (lambda x, s: (x * s).view(-1, 4, 2).sum(2), {"left": 4}, [4, 8]),
    "einsum": (lambda x, s: torch.einsum("nc,c,nc->nc", x, s, x), {}, [8]),
    "where": (lambda x, s: torch.where(x > 0, x, s), {}, [8]),
    "prelu": (lambda x, s: F.prelu(x, s), {}, [8]),
    "hardswish": (lambda x, s: F.hardswish(x) * s, {}, [8]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_followed_moves_and_leaves_the_function(name):
    operation, options, expected = FOLLOWED[name]
    torch.manual_seed(0)
    model = randomised(Between(operation, **options))
    units, spec = moving(model, torch.randn(4, 3).double())
    assert units == expected
    assert spec.notices == ()


REFUSED = {
    "mirrored": (lambda x, s: x * s + x.flip(1), "'flip'"),
    "rolled": (lambda x, s: x * s + x.roll(1, 1), "'roll'"),
    "summed up": (lambda x, s: (x * s).cumsum(1), "'cumsum'"),
    "sorted": (lambda x, s: (x * s).sort(1).values, "'sort'"),
    "indexed": (lambda x, s: (x * s)[:, torch.tensor([1, 0, 2, 3, 4, 5, 7, 6])], "'index'"),
    "shuffled": (lambda x, s: (x * s).view(-1, 2, 4).transpose(1, 2).flatten(1), "'clone'|'view'|'_unsafe_view'"),
    "ranked": (lambda x, s: x * s * torch.arange(8), "a constant that is no weight"),
    "own order": (lambda x, s: x * s + x[:, [*range(1, 8), 0]], "'index'"),
    "spread": (lambda x, s: (x * s)[:, :, None].expand(-1, 8, 2).flatten(1)[:, :8], "a reshape"),
    "half mirrored": (lambda x, s: torch.cat([x[:, :4], x[:, :4].flip(1)], 1) * s, "'flip'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_followed_stays_with_a_notice(name):
    operation, reason = REFUSED[name]
    torch.manual_seed(0)
    model = randomised(Between(operation))
    units, spec = moving(model, torch.randn(4, 3).double())
    assert sum(units) < 8
    text = " ".join(spec.notices)
    assert "'a.weight'" in text
    assert any(part in text for part in reason.split("|"))


IMAGES = {
    "convolution": (lambda: [nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=2), nn.ReLU()], [8]),
    "transposed": (lambda: [nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1)], [6, 8]),
    "depthwise": (lambda: [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding="same", groups=8)], [8]),
    "depthwise transposed": (lambda: [nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 3, groups=8)], [8]),
    "pooled": (lambda: [nn.Conv2d(3, 8, 1), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(2)], [8]),
    "larger": (lambda: [nn.Conv2d(3, 8, 1), nn.Upsample(scale_factor=2, mode="bilinear")], [8]),
    "batch norm": (lambda: [nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)], [8]),
    "two group norms": (lambda: [nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.ReLU(), nn.GroupNorm(4, 8)], [4, 8]),
    "nested group norms": (lambda: [nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.GroupNorm(2, 8)], [2] * 4),
    "grouped": (lambda: [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2)], []),
    "grouped transposed": (lambda: [nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 1, groups=2)], []),
    "more depthwise": (lambda: [nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1, groups=4)], []),
    "pixels from channels": (lambda: [nn.Conv2d(3, 32, 1), nn.PixelShuffle(2)], []),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_layers_on_images(name):
    build, expected = IMAGES[name]
    torch.manual_seed(0)
    model = randomised(nn.Sequential(*build(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2)))
    units, spec = moving(model, torch.randn(2, 3, 9, 9).double())
    assert units == expected
    assert bool(spec.notices) is (expected == [] or name == "nested group norms")


def test_embeddings_pass_their_entries_on_and_keep_their_words():
    torch.manual_seed(0)
    model = randomised(nn.Sequential(nn.Embedding(6, 8), nn.LayerNorm(8), nn.Flatten(), nn.Linear(32, 2)))
    units, spec = moving(model, torch.tensor([[0, 3, 3, 5]]))
    assert units == [8]
    act = spec.groups["0"].acts[0]
    assert (act.tensor, act.axis) == ("0.weight", 1)


def test_operations_of_others_are_not_followed():
    library = torch.library.Library("mirepoix_test", "DEF")
    library.define("mul(Tensor self) -> Tensor")
    library.impl("mul", lambda x: x * torch.arange(8), "CPU")
    torch.manual_seed(0)
    model = randomised(Between(lambda x, s: torch.ops.mirepoix_test.mul(x * s)))
    units, spec = moving(model, torch.randn(2, 3).double())
    assert units == []
    assert "'mul'" in spec.notices[0]


def test_nodes_are_new_each_time_and_fixed_ones_are_known():
    graph = Graph()
    a, b = graph.fresh(2, 3), graph.fresh(2)
    assert a.shape == (2, 3)
    assert len({*a.ravel(), *b}) == graph.count == 8
    assert not graph.is_fixed(a)
    graph.fix(a[0])
    assert graph.is_fixed(a[0])
    assert not graph.is_fixed(a)


def test_a_reshape_and_its_inverse_give_the_same_axes():
    trace = Trace()
    layout = trace.free((2, 3, 4))
    merged = trace._reshape(layout, (6, 4))
    again = trace._reshape(merged, (2, 1, 3, 4))
    assert [axis.size for axis in again] == [2, 1, 3, 4]
    for before, after in zip(layout, [again[0], again[2], again[3]], strict=True):
        assert np.array_equal(before.nodes, after.nodes)
    split = trace._reshape(trace.free((12,)), (3, 2, 2))
    assert [(axis.nodes.shape, axis.given) for axis in split] == [
        ((3,), ()),
        ((3, 2), (0,)),
        ((3, 2, 2), (0, 1)),
    ]
    assert np.array_equal(trace._reshape(split, (12,))[0].nodes, split[2].nodes.ravel())
