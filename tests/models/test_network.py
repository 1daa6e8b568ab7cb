"""Networks: sizes known from the literature, frozen statistics, seeds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mirepoix.models import Network, NetworkSpec, has_batch_norm, initial_weights, input_size_hint
from mirepoix.models._cifar_resnet import _Block
from mirepoix.types import InputError

SMALL = [
    "cifar_resnet20",
    "wrn28_1",
    "mnist_cnn",
    "timm:test_resnet",
    "timm:test_vit",
    "timm:mobilenetv3_small_050",
]


def test_the_network_is_a_classifier_on_a_featurizer():
    network = NetworkSpec(name="mnist_cnn", classes=5, width=8).build(dropout=0.5)
    images = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        outputs = network(images)
    assert outputs.features.shape == (4, network.feature_size) == (4, 16)
    assert torch.equal(outputs.logits, network.classifier(outputs.features))
    assert (outputs.features == 0).any()  # what the classifier saw, dropout included
    network.eval()
    assert torch.equal(network(images).features, network.featurizer(images))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("name", SMALL)
def test_every_network_takes_images_of_its_size(name, channels):
    spec = NetworkSpec(name=name, classes=5, channels=channels)
    network = spec.build().eval()
    size = input_size_hint(spec)
    with torch.no_grad():
        outputs = network(torch.zeros(2, channels, size, size))
    assert outputs.features.shape == (2, network.feature_size)
    assert outputs.logits.shape == (2, 5)
    assert all(key.split(".")[0] in ("featurizer", "classifier") for key in network.state_dict())


@pytest.mark.parametrize(
    ("name", "millions", "digits"),
    [
        # He et al. (2016), table 6
        ("cifar_resnet20", 0.27, 2),
        ("cifar_resnet32", 0.46, 2),
        ("cifar_resnet44", 0.66, 2),
        ("cifar_resnet56", 0.85, 2),
        ("cifar_resnet110", 1.7, 1),
        # Zagoruyko and Komodakis (2016), table 4
        ("wrn28_10", 36.5, 1),
        ("timm:resnet50.tv_in1k", 23.5, 1),
    ],
)
def test_sizes_are_those_of_the_papers(name, millions, digits):
    network = NetworkSpec(name=name, classes=10).build_empty()
    assert all(parameter.is_meta for parameter in network.parameters())
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, digits) == millions


@pytest.mark.parametrize("depth", [20, 110])
def test_depth_counts_the_weighted_layers(depth):
    network = NetworkSpec(name=f"cifar_resnet{depth}", classes=10).build_empty()
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == depth


def test_the_mnist_network_is_that_of_domainbed():
    network = NetworkSpec(name="mnist_cnn", classes=2, channels=2).build()
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels, conv.stride[0]) for conv in layers] == [
        (2, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 128, 1),
    ]
    assert [module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)] == [8] * 4
    featurizer = network.featurizer
    images = torch.rand(2, 2, 28, 28, generator=torch.Generator().manual_seed(0))
    x = images
    for i, stride in enumerate([1, 2, 1, 1], start=1):
        conv, norm = getattr(featurizer, f"conv{i}"), getattr(featurizer, f"norm{i}")
        x = F.group_norm(
            F.conv2d(x, conv.weight, conv.bias, stride, 1).clamp(min=0), 8, norm.weight, norm.bias
        )
    assert torch.allclose(featurizer(images), x.flatten(2).mean(2), atol=1e-6)


def test_option_a_takes_every_other_pixel_and_pads_on_both_sides():
    block = _Block(2, 4, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)  # so that the shortcut alone remains
    x = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = block(x)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


def batch_norms(network):
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", ["cifar_resnet20", "wrn28_1", "timm:test_resnet"])
@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_statistics_stay_while_scale_and_shift_are_trained(name, frozen):
    network = NetworkSpec(name=name, classes=3, frozen_batch_norm=frozen).build(seed=1)
    # timm begins the last scale of a block at zero, where most gradients vanish
    for norm in batch_norms(network):
        nn.init.ones_(norm.weight)
    before = copy.deepcopy(network.state_dict())
    network.eval().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(network(images).logits, torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    after = network.state_dict()
    for key in before:
        if "running" in key or "num_batches" in key:
            assert torch.equal(before[key], after[key]) == frozen
    norms = {id(norm.weight) for norm in batch_norms(network)}
    trained = [name for name, parameter in network.named_parameters() if id(parameter) in norms]
    assert trained
    assert all(not torch.equal(before[key], after[key]) for key in trained)


def test_a_new_network_is_already_frozen_and_evaluation_mode_is_whole():
    network = NetworkSpec(name="cifar_resnet20", classes=3).build()
    assert network.training
    assert not any(norm.training for norm in batch_norms(network))
    assert not any(module.training for module in network.eval().modules())
    assert copy.deepcopy(network).train().training


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_and_the_global_state_is_untouched(name):
    spec = NetworkSpec(name=name, classes=3)
    state = torch.get_rng_state()
    first, again, other = (
        initial_weights(spec, seed=1),
        initial_weights(spec, seed=1),
        initial_weights(spec, seed=2),
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    assert any(not torch.equal(first[key], other[key]) for key in first if key.startswith("featurizer."))
    assert not any(tensor.requires_grad for tensor in first.values())
    assert all(torch.equal(first[key], tensor) for key, tensor in spec.build(seed=1).state_dict().items())


def test_equal_seeds_give_equal_classifiers_on_other_featurizers():
    wide = initial_weights(NetworkSpec(name="wrn28_1", classes=3), seed=4)
    deep = initial_weights(NetworkSpec(name="cifar_resnet20", classes=3), seed=4)
    assert torch.equal(wide["classifier.weight"], deep["classifier.weight"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cifar_resnet20", True), ("wrn28_2", True), ("mnist_cnn", False), ("timm:test_vit", False)],
)
def test_has_batch_norm(name, expected):
    assert has_batch_norm(NetworkSpec(name=name, classes=3)) is expected
    assert (
        has_batch_norm(NetworkSpec(name=name, classes=3, width=8 if name == "mnist_cnn" else None))
        is expected
    )


def test_has_batch_norm_of_a_module():
    assert has_batch_norm(Network(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), 4, 2))
    assert not has_batch_norm(nn.Linear(2, 2))


def test_input_sizes():
    sizes = {
        "cifar_resnet20": 32,
        "wrn28_2": 32,
        "mnist_cnn": 28,
        "timm:resnet50.tv_in1k": 224,
        "timm:test_vit": 160,
    }
    for name, size in sizes.items():
        assert input_size_hint(NetworkSpec(name=name, classes=2)) == size


def test_a_spec_is_plain_values():
    spec = NetworkSpec(name="mnist_cnn", classes=2, channels=2, width=16, frozen_batch_norm=False)
    assert spec.to_dict() == {
        "name": "mnist_cnn",
        "classes": 2,
        "channels": 2,
        "width": 16,
        "frozen_batch_norm": False,
        "pretrained": False,
    }
    assert NetworkSpec(**spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cifar_resnet21"}, r"network\.name: expected cifar_resnet20, .* got 'cifar_resnet21'"),
        ({"name": "wrn28_0"}, "got 'wrn28_0'"),
        ({"name": "timm:hf-hub:someone/model"}, "got 'timm:hf-hub:someone/model'"),
        ({"name": "timm:local-dir:/model"}, "got 'timm:local-dir:/model'"),
        ({"name": "mnist_cnn", "classes": 0}, r"network\.classes: expected at least 1 class, got 0"),
        ({"name": "mnist_cnn", "channels": 0}, r"network\.channels: expected at least 1 channel, got 0"),
        ({"name": "mnist_cnn", "width": 12}, r"network\.width: expected a multiple of 8, got 12"),
        ({"name": "mnist_cnn", "width": 0}, "got 0"),
        ({"name": "wrn28_2", "width": 8}, r"network\.width: expected none for wrn28_2"),
        ({"name": "wrn28_2", "pretrained": True}, r"network\.pretrained: expected false.*give a file"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(fields, message):
    with pytest.raises(InputError, match=message):
        NetworkSpec(**{"classes": 2, **fields})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet5000", r"expected a model of timm .*got 'resnet5000'\. Near: resnet50"),
        ("timm:resnet50.nope", r"expected a tag of resnet50 \(.*tv_in1k.*\), got 'nope'"),
    ],
)
def test_an_unknown_timm_model_has_neighbours(name, message):
    spec = NetworkSpec(name=name, classes=2)
    for ask in (spec.build, lambda: input_size_hint(spec), lambda: initial_weights(spec)):
        with pytest.raises(InputError, match=message):
            ask()
