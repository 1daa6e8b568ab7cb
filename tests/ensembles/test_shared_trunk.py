"""What is shared is there once, and learns from all members."""

import pytest
import torch

from mirepoix.ensembles import Independent
from mirepoix.models import NetworkSpec, member_weights
from mirepoix.objectives import ERM
from mirepoix.types import Batch

MEMBERS = 3


def spec_of(split_at):
    return NetworkSpec(
        name="cifar_resnet20", classes=4, members=MEMBERS, split_at=split_at, frozen_batch_norm=False
    )


def gradients(model, objective, batch):
    objective(model.double().train(), [batch]).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("split_at", ["layer2", "last_stage", "layer3.1"])
def test_the_trunk_gets_the_sum_of_the_members_gradients_and_a_branch_its_own(split_at):
    spec = spec_of(split_at)
    random = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 16, 16, generator=random, dtype=torch.float64)
    batch = Batch(images, torch.arange(6) % 4, torch.zeros(6, dtype=torch.int64))
    network = spec.build()
    theta = {name: value.double() for name, value in network.state_dict().items()}
    found = gradients(network, Independent(), batch)
    alone = []
    for place in range(MEMBERS):
        one = spec.one_member().build()
        one.load_state_dict(member_weights(theta, place))
        alone.append(gradients(one, ERM(), batch))
    shared = 0
    for name, gradient in found.items():
        if name.startswith("featurizer.trunk."):
            plain = "featurizer." + name.removeprefix("featurizer.trunk.")
            expected = sum(own[plain] for own in alone)
            shared += 1
        else:
            place = int(name.split(".")[2 if name.startswith("featurizer.") else 1])
            plain = name.replace(f"members.{place}.", "").replace(f"classifier.{place}.", "classifier.")
            expected = alone[place][plain]
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    assert shared > 0


@pytest.mark.parametrize("split_at", ["layer2", "last_stage", None])
def test_what_is_shared_is_there_once(split_at):
    network, plain = spec_of(split_at).build(), spec_of(None).one_member().build()
    listed = [id(parameter) for parameter in network.parameters()]
    assert len(listed) == len(set(listed))
    sizes = {name: parameter.numel() for name, parameter in plain.named_parameters()}
    first = {"layer2": ("layer2", "layer3"), "last_stage": ("layer3",), None: ("",)}[split_at]
    branch = sum(
        size
        for name, size in sizes.items()
        if name.startswith("classifier.") or name.removeprefix("featurizer.").startswith(first)
    )
    total = sum(parameter.numel() for parameter in network.parameters())
    assert total == sum(sizes.values()) + (MEMBERS - 1) * branch
