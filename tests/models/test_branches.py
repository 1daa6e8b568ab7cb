"""Several members in one network: one member changes nothing, several share what they should."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mirepoix.models import (
    BranchNetwork,
    NetworkSpec,
    branch_weights,
    initial_weights,
    input_size_hint,
    load_pretrained,
    member_weights,
)
from mirepoix.models._branches import cut
from mirepoix.types import InputError

SMALL = [
    "cifar_resnet20",
    "wrn28_1",
    "mnist_cnn",
    "timm:test_resnet",
    "timm:vit_tiny_patch16_224",
    "timm:mobilenetv3_small_050",
]


def images(spec, samples=3):
    size = input_size_hint(spec)
    return torch.randn(samples, spec.channels, size, size, generator=torch.Generator().manual_seed(0))


def gradients(network, given):
    network.zero_grad()
    torch.manual_seed(0)
    outputs = network(given)
    outputs.logits.logsumexp(-1).sum().backward()
    return outputs, {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("split_at", [None, "last_stage"])
@pytest.mark.parametrize("name", SMALL)
def test_one_member_is_the_plain_network_bit_for_bit(name, split_at):
    plain = NetworkSpec(name=name, classes=5, frozen_batch_norm=False)
    spec = NetworkSpec(name=name, classes=5, frozen_batch_norm=False, split_at=split_at or "last_stage")
    one, network = plain.build(dropout=0.3, seed=2), spec.build(dropout=0.3, seed=2)
    assert isinstance(network, BranchNetwork)
    if split_at is None:
        network = BranchNetwork(
            [copy.deepcopy(one.featurizer)], one.feature_size, 5, dropout=0.3, frozen_batch_norm=False
        )
        network.classifier[0].load_state_dict(one.classifier.state_dict())
    (expected, expected_gradients), (found, found_gradients) = (
        gradients(net.train(), images(plain)) for net in (one, network)
    )
    assert torch.equal(found.logits[0], expected.logits)
    assert torch.equal(found.features[0], expected.features)
    for name, gradient in member_weights(found_gradients, 0).items():
        assert torch.equal(gradient, expected_gradients.pop(name))
    assert not expected_gradients
    buffers = member_weights(network.state_dict(), 0)
    assert all(torch.equal(buffers[name], value) for name, value in one.state_dict().items())


@pytest.mark.parametrize("name", ["cifar_resnet20", "timm:vit_tiny_patch16_224"])
def test_members_share_the_trunk_and_nothing_else(name):
    spec = NetworkSpec(name=name, classes=4, members=3, split_at="last_stage")
    network = spec.build().eval()
    outputs = network(images(spec))
    assert outputs.logits.shape == (3, 3, 4)
    assert outputs.features.shape == (3, 3, network.feature_size)
    theta = network.state_dict()
    for place in range(3):
        one = spec.one_member().build().eval()
        one.load_state_dict(member_weights(theta, place))
        assert torch.equal(one(images(spec)).logits, outputs.logits[place])
    assert not torch.equal(outputs.logits[0], outputs.logits[1])
    network.zero_grad()
    outputs.logits[1].sum().backward()
    moved = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.split(".")[2] for name in moved if ".members." in name} == {"1"}
    assert all(p.grad is not None for p in network.featurizer.trunk.parameters())


def test_without_a_split_members_share_nothing():
    spec = NetworkSpec(name="mnist_cnn", classes=4, width=8, members=2)
    network = spec.build()
    assert network.members == 2
    assert network.featurizer.trunk is None
    plain = spec.one_member().build()
    assert sum(p.numel() for p in network.parameters()) == 2 * sum(p.numel() for p in plain.parameters())


def test_the_published_split_has_the_published_size():
    """Stage 3 of ResNet-32 and the classifier are what a branch adds."""
    sizes = [
        sum(
            p.numel()
            for p in NetworkSpec(name="cifar_resnet32", classes=100, members=m, split_at="layer3")
            .build()
            .parameters()
        )
        for m in (1, 2, 3)
    ]
    stage = 9 * 32 * 64 + 9 * 9 * 64 * 64 + 10 * 2 * 64  # ten convolutions and as many norms
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == stage + 65 * 100


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "convnext_atto", "resnet50"])
def test_backbones_of_timm_are_cut_at_their_last_stage(name):
    spec = NetworkSpec(name=f"timm:{name}", classes=3, members=2, split_at="last_stage")
    network = spec.build_empty()
    inside = {name.split(".")[3] for name in network.state_dict() if ".members.0." in name}
    shared = {name.split(".")[2] for name in network.state_dict() if ".trunk." in name}
    assert inside
    assert shared
    plain = set(spec.one_member().build_empty().state_dict())
    assert set(member_weights(network.state_dict(), 1)) == plain


def test_frozen_batch_norm_stays_frozen_in_every_member():
    network = NetworkSpec(name="cifar_resnet20", classes=3, members=2, split_at="layer3").build().train()
    before = copy.deepcopy(network.state_dict())
    network(images(NetworkSpec(name="cifar_resnet20", classes=3)))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_dropout_differs_between_members():
    spec = NetworkSpec(name="mnist_cnn", classes=4, width=8, members=2, split_at="conv4")
    network = spec.build(dropout=0.5)
    network.featurizer.members[1].load_state_dict(network.featurizer.members[0].state_dict())
    muted = network(images(spec, 16)).features == 0
    assert (muted[0] != muted[1]).any()


def test_networks_put_together_come_apart_again():
    spec = NetworkSpec(name="cifar_resnet20", classes=3, members=2, split_at="layer3")
    members = [initial_weights(spec.one_member(), seed=seed) for seed in (1, 2)]
    whole = branch_weights(members, spec.build().state_dict())
    network = spec.build()
    network.load_state_dict(whole)
    second = member_weights(network.state_dict(), 1)
    for name, value in second.items():
        origin = members[1] if name.startswith(("featurizer.layer3", "classifier")) else members[0]
        assert torch.equal(value, origin[name])


def test_members_begin_with_one_featurizer_and_classifiers_of_their_own():
    spec = NetworkSpec(name="cifar_resnet20", classes=3, members=2, split_at="layer3")
    source = initial_weights(NetworkSpec(name="cifar_resnet20", classes=10), seed=5)
    one, two = (member_weights(load_pretrained(spec, source), place) for place in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one if name.startswith("featurizer."))
    assert torch.equal(one["featurizer.layer3.0.conv1.weight"], source["featurizer.layer3.0.conv1.weight"])
    assert not torch.equal(one["classifier.weight"], two["classifier.weight"])
    assert torch.equal(one["classifier.weight"], initial_weights(spec.one_member())["classifier.weight"])


def test_errors_say_what_there_is():
    with pytest.raises(
        InputError, match=r"split_at: expected the name of a module.*conv1, .*layer3.*got 'layer4'"
    ):
        NetworkSpec(name="cifar_resnet20", classes=3, split_at="layer4").build()
    with pytest.raises(InputError, match=r"members: expected at least 1 member, got 0"):
        NetworkSpec(name="cifar_resnet20", classes=3, members=0)
    theta = NetworkSpec(name="mnist_cnn", classes=3, width=8, members=2).build().state_dict()
    for member in (-1, 2):
        with pytest.raises(
            InputError, match=rf"member: expected 0 to 1, a member of these weights, got {member}"
        ):
            member_weights(theta, member)
    with pytest.raises(InputError, match=r"expected as many members as the network has, got 1"):
        branch_weights([initial_weights(NetworkSpec(name="mnist_cnn", classes=3, width=8))], theta)
    with pytest.raises(InputError, match=r"member 0 has no weight 'featurizer\.conv1"):
        branch_weights([{}, {}], theta)


def test_members_of_a_network_of_several_inputs_are_no_networks():
    theta = NetworkSpec(name="mnist_cnn", classes=3, width=8, inputs=2).build().state_dict()
    with pytest.raises(InputError, match="share its core and are no networks"):
        member_weights(theta, 0)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(self.layer(x))


class Deciding(Twice):
    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("network", "split_at", "message"),
    [
        (Twice(), "layer", r"got 'layer', which is called 2 times"),
        (Twice(), "unused", r"got 'unused', which is called 0 times"),
        (
            NetworkSpec(name="timm:test_vit", classes=2).build().featurizer,
            "blocks.5",
            "VisionTransformer cannot be cut",
        ),
        (Deciding(), "layer", r"Deciding cannot be cut at 'layer', as its forward decides by values"),
    ],
)
def test_what_cannot_be_cut_is_said(network, split_at, message):
    with pytest.raises(InputError, match=message):
        cut(network, split_at)
