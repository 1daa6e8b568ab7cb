"""Several inputs in one network: one changes nothing, several are a convolution of more channels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mirepoix.models import (
    MultiInputNetwork,
    NetworkSpec,
    initial_weights,
    load_pretrained,
    multi_input_weights,
)
from mirepoix.types import InputError

SIZES = {
    "cifar_resnet20": 8,
    "wrn28_1": 8,
    "mnist_cnn": 8,
    "timm:resnet18": 32,
    "timm:vit_tiny_patch16_224": 224,
}
LARGE = [name for name in SIZES if name.startswith("timm:")]


def images(name, samples=2, seed=0):
    return torch.randn(samples, 3, SIZES[name], SIZES[name], generator=torch.Generator().manual_seed(seed))


def of(name, inputs=2, **fields):
    return NetworkSpec(name=name, classes=4, inputs=inputs, **fields)


def alone(plain):
    """A network of one input with the weights of a plain one."""
    one = MultiInputNetwork(
        [copy.deepcopy(plain.featurizer)],
        plain.feature_size,
        plain.classifier.out_features,
        dropout=plain.dropout.p,
        frozen_batch_norm=plain.frozen_batch_norm,
    )
    one.load_state_dict(multi_input_weights(plain.state_dict(), one))
    return one


@pytest.mark.parametrize(
    ("name", "training"),
    [(name, training) for name in SIZES for training in (True, False)[: 2 - (name in LARGE)]],
)
def test_one_input_is_the_plain_network_bit_for_bit(name, training):
    plain = of(name, 1, frozen_batch_norm=False).build(dropout=0.3 if training else 0.0, seed=2)
    one, given = alone(plain), images(name)
    found = {}
    for kind, network, call in (
        ("plain", plain, lambda network: network(given)),
        ("one", one, lambda network: network(given)),
        ("mixed", copy.deepcopy(one), lambda network: network.mixed([given], torch.ones(1, 2, 1, 1, 1))),
    ):
        network.train(training)
        torch.manual_seed(0)
        outputs = call(network)
        outputs.logits.logsumexp(-1).sum().backward()
        found[kind] = (
            outputs,
            {name: p.grad for name, p in network.named_parameters()},
            list(network.buffers()),
        )
    expected, gradients, buffers = found.pop("plain")
    for outputs, others, moved in found.values():
        assert torch.equal(outputs.logits[0], expected.logits)
        assert torch.equal(outputs.features[0], expected.features)
        assert len(others) == len(gradients)
        for name, gradient in others.items():
            assert torch.equal(gradient, gradients[in_plain(name, one)])
        assert all(torch.equal(a, b) for a, b in zip(moved, buffers, strict=True))


def in_plain(name, network):
    """What a weight of the first member is called in the plain network."""
    first = f"featurizer.{network.featurizer.replaced}."
    name = name.replace("featurizer.core.", "featurizer.").replace("featurizer.encoders.0.", first)
    return name.replace("classifier.0.", "classifier.")


@pytest.mark.parametrize("name", SIZES)
def test_the_sum_of_encoders_is_one_convolution_of_more_channels(name):
    network = of(name, 3).build().eval()
    encoders = network.featurizer.encoders
    inputs = [images(name, seed=seed) for seed in range(3)]
    seen = []
    network.featurizer.core.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    outputs = network.mixed(inputs, torch.full((3, 2, 1, 1, 1), 1 / 3))
    assert outputs.logits.shape == (3, 2, 4)
    assert outputs.features.shape == (3, 2, network.feature_size)
    assert torch.equal(outputs.features[0], outputs.features[2])
    bias = encoders[0].bias
    expected = F.conv2d(
        torch.cat(inputs, 1),
        torch.cat([encoder.weight for encoder in encoders], 1),
        None if bias is None else sum(encoder.bias for encoder in encoders),
        encoders[0].stride,
        encoders[0].padding,
    )
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)
    assert network.mask_size(inputs[0]) == expected.shape[2:]


@pytest.mark.parametrize("members", [2, 3])
def test_inference_is_training_on_equal_images_with_equal_masks(members):
    network = of("cifar_resnet20", members).build().double().eval()
    given = images("cifar_resnet20").double()
    expected = network(given).logits
    masks = torch.full((members, 2, 1, 1, 1), 1 / members, dtype=torch.float64)
    found = network.mixed([given] * members, masks).logits
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    found = network.mixed([given.clone() for _ in range(members)], masks.expand(-1, -1, 1, 8, 8)).logits
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert torch.equal(network(given, None).logits, expected)


def test_a_mask_says_where_an_input_is_seen():
    network = of("wrn28_1").build().eval()
    first, second, other = (images("wrn28_1", seed=seed) for seed in range(3))
    masks = torch.zeros(2, 2, 1, 8, 8)
    masks[0, :, :, :, :4], masks[1, :, :, :, 4:] = 1, 1
    changed = second.clone()
    changed[..., :3] = other[..., :3]  # a filter sees one column beside its own
    assert torch.equal(
        network.mixed([first, second], masks).logits, network.mixed([first, changed], masks).logits
    )
    assert not torch.equal(
        network.mixed([first, second], masks).logits, network.mixed([first, other], masks).logits
    )


def test_the_names_of_the_weights():
    network = of("cifar_resnet20", 2).build_empty()
    plain = of("cifar_resnet20", 1).build_empty().state_dict()
    expected = {f"featurizer.encoders.{i}.weight" for i in range(2)}
    expected |= {f"classifier.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")}
    expected |= {
        name.replace("featurizer.", "featurizer.core.")
        for name in plain
        if not name.startswith(("classifier.", "featurizer.conv1."))
    }
    assert set(network.state_dict()) == expected
    assert "featurizer.encoders.1.bias" in of("mnist_cnn", 2).build_empty().state_dict()


def test_an_input_adds_a_convolution_and_a_classifier():
    sizes = [sum(p.numel() for p in of("wrn28_2", m).build_empty().parameters()) for m in (1, 2, 3)]
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == 27 * 16 + 129 * 4


def test_encoders_and_classifiers_are_drawn_for_each_and_the_core_is_that_of_the_plain_network():
    network, plain = of("cifar_resnet20", 2).build(seed=3), of("cifar_resnet20", 1).build(seed=3)
    theta, one = network.state_dict(), plain.state_dict()
    assert torch.equal(theta["featurizer.encoders.0.weight"], one["featurizer.conv1.weight"])
    assert not torch.equal(theta["featurizer.encoders.1.weight"], one["featurizer.conv1.weight"])
    assert torch.equal(theta["classifier.0.weight"], one["classifier.weight"])
    assert not torch.equal(theta["classifier.1.weight"], one["classifier.weight"])
    same = "featurizer.core.layer3.0.conv1.weight"
    assert torch.equal(theta[same], one[same.replace("core.", "")])


@pytest.mark.parametrize(
    ("name", "inputs", "exact"),
    [
        ("cifar_resnet20", 2, True),
        ("cifar_resnet20", 3, False),
        ("mnist_cnn", 4, True),
        ("timm:resnet18", 2, True),
    ],
)
def test_a_network_of_inputs_computes_what_the_file_did(name, inputs, exact):
    source = initial_weights(of(name, 1), seed=5)
    network = of(name, inputs).build().eval()
    plain = of(name, 1).build().eval()
    plain.load_state_dict(source)
    network.load_state_dict(load_pretrained(of(name, inputs), source, keep_classifier=True))
    found, expected = network(images(name)), plain(images(name))
    for member in range(inputs):
        if exact:
            assert torch.equal(found.logits[member], expected.logits)
        torch.testing.assert_close(found.logits[member], expected.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.features[member], expected.features, rtol=1e-4, atol=1e-5)
    fresh = load_pretrained(of(name, inputs), source, seed=1)
    assert not torch.equal(fresh["classifier.0.weight"], fresh["classifier.1.weight"])
    assert torch.equal(
        fresh["classifier.1.weight"], of(name, inputs).build(seed=1).state_dict()["classifier.1.weight"]
    )


def test_other_channels_and_bare_files_begin_as_those_of_one_input():
    source = {
        name.removeprefix("featurizer."): w for name, w in initial_weights(of("cifar_resnet20", 1)).items()
    }
    source = {name: weight for name, weight in source.items() if not name.startswith("classifier")}
    theta = load_pretrained(of("cifar_resnet20", 2, channels=2), source)
    assert torch.equal(theta["featurizer.encoders.1.weight"], source["conv1.weight"][:, :2] / 2)


def test_frozen_batch_norm_stays_frozen_and_can_be_saved_as_it_is():
    network = of("cifar_resnet20").build().train()
    before = copy.deepcopy(network.state_dict())
    network.mixed([images("cifar_resnet20")] * 2, torch.full((2, 2, 1, 1, 1), 0.5))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    other = copy.deepcopy(network)
    other.load_state_dict(before)
    assert torch.equal(other(images("cifar_resnet20")).logits, network(images("cifar_resnet20")).logits)


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "convnext_atto", "resnet50d", "densenet121"]
)
def test_backbones_of_timm_have_their_first_convolution_replaced(name):
    spec = NetworkSpec(name=f"timm:{name}", classes=3, inputs=2)
    names = set(spec.build_empty().state_dict())
    plain = set(spec.one_member().build_empty().state_dict())
    assert "featurizer.encoders.1.weight" in names
    core = {name.replace("core.", "") for name in names if ".core." in name}
    assert core < plain
    first = plain - core - {"classifier.weight", "classifier.bias"}
    assert {name.rpartition(".")[2] for name in first} in ({"weight"}, {"weight", "bias"})


def test_the_spec_is_kept_in_a_record():
    """A record of a plain network is what it was before there were several members."""
    fields = {"members", "split_at", "inputs"}
    for spec, kept in (
        (of("wrn28_1", 3), {"inputs"}),
        (NetworkSpec(name="wrn28_1", classes=4, members=2, split_at="layer3"), {"members", "split_at"}),
        (of("wrn28_1", 1), set()),
    ):
        assert fields & set(spec.to_dict()) == kept
        assert NetworkSpec(**spec.to_dict()) == spec
    spec = of("wrn28_1", 3)
    assert spec.one_member() == of("wrn28_1", 1)


@pytest.mark.parametrize("others", [{"members": 2}, {"split_at": "layer3"}])
def test_only_one_way_to_share(others):
    with pytest.raises(
        InputError, match=r"network\.inputs: expected 1 beside members or split_at, got inputs=2, "
    ):
        of("cifar_resnet20", 2, **others)
    with pytest.raises(InputError, match=r"network\.inputs: expected at least 1 input, got 0"):
        of("cifar_resnet20", 0)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.second(self.first(x)).mean((2, 3))


class Scaled(Small):
    def forward(self, x):
        return super().forward(2 * x)


class Twice(Small):
    def forward(self, x):
        return (self.first(x) + self.first(-x)).mean((2, 3))


class Again(Small):
    def forward(self, x):
        return super().forward(x) + x.mean()


class Deciding(Small):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Linear(2, 2), r"whose first module is a convolution, got Linear, which has none"),
        (nn.Conv2d(3, 2, 1), r"got Conv2d, which is one"),
        (Scaled(), r"got Scaled, where other things come before 'first'"),
        (Twice(), r"got Twice, whose 'first' is called 2 times"),
        (Again(), r"got Again, whose forward uses the image again after 'first'"),
        (Deciding(), r"Deciding cannot be taken apart after 'first', as its forward decides by values"),
    ],
)
def test_what_does_not_begin_with_a_convolution_is_said(network, message):
    with pytest.raises(InputError, match=message):
        MultiInputNetwork([network], 4, 2)


def test_one_featurizer_given_twice_has_encoders_of_its_own():
    network = MultiInputNetwork([one := Small()] * 2, 4, 2)
    assert network.featurizer.encoders[0].weight is not network.featurizer.encoders[1].weight
    assert network.featurizer.core.second is one.second


def test_errors_of_a_step():
    network = of("mnist_cnn").build()
    given = images("mnist_cnn")
    for inputs, masks in ((1, 2), (2, 1), (3, 3)):
        with pytest.raises(
            InputError,
            match=f"inputs: expected images and a mask for each of 2 members, got {inputs} inputs and {masks} masks",
        ):
            network.mixed([given] * inputs, torch.ones(masks, 2, 1, 1, 1))


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean()
        return F.conv2d(x, weight / weight.std(), self.bias)


def test_a_first_convolution_that_cannot_be_shared_out_is_refused():
    small = Small()
    network = MultiInputNetwork([small, small], 4, 2)
    with pytest.raises(
        InputError, match=r"theta has no weight 'featurizer\.second\.weight', which the network"
    ):
        multi_input_weights({}, network)
    small.first = Standardised(3, 4, 1)
    network = MultiInputNetwork([small, small], 4, 2)
    with pytest.raises(
        InputError, match=r"first: expected a convolution that is linear in its weights.*Standardised"
    ):
        multi_input_weights({}, network)
