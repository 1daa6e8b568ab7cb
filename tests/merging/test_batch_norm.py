import numpy as np
import pytest
import torch
from torch import nn

from mirepoix.merging._batch_norm import recommend_batch_norm, reestimate_batch_norm
from mirepoix.models import NetworkSpec
from mirepoix.types import Batch, InputError, Outputs


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.second = nn.BatchNorm1d(3, momentum=0.3)

    def forward(self, images):
        features = self.second(self.drop(self.first(images)).mean((2, 3)))
        return Outputs(features, features)


def batches(sizes=(7, 64, 33), dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randn(n, 3, 4, 5, generator=random, dtype=dtype) * 3 + 2 * i,
            torch.zeros(n).long(),
            torch.zeros(n),
        )
        for i, n in enumerate(sizes)
    ]


def test_statistics_are_pooled_over_all_batches():
    model, given = Small().double(), batches()
    theta = reestimate_batch_norm(model, given)
    values = torch.cat([batch.images for batch in given]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(theta["first.running_mean"], values.mean(1))
    torch.testing.assert_close(theta["first.running_var"], values.var(1))  # within and between batches


def test_a_later_layer_sees_batches_normalised_by_themselves_and_without_dropout():
    model, given = Small().double(), batches()
    theta = reestimate_batch_norm(model, given)
    seen = []
    for batch in given:
        mean = batch.images.mean((0, 2, 3), keepdim=True)
        var = batch.images.var((0, 2, 3), correction=0, keepdim=True)
        seen.append(((batch.images - mean) / (var + model.first.eps).sqrt()).mean((2, 3)))
    torch.testing.assert_close(theta["second.running_mean"], torch.cat(seen).mean(0))
    torch.testing.assert_close(theta["second.running_var"], torch.cat(seen).var(0))


def test_a_single_batch_gives_what_torch_gives():
    model, given = Small().double(), batches((50,))
    ours = reestimate_batch_norm(model, given)
    theirs = Small().double()
    theirs.drop.p = 0.0
    torch.optim.swa_utils.update_bn([batch.images for batch in given], theirs)
    for name in ("first.running_mean", "first.running_var", "second.running_mean", "second.running_var"):
        torch.testing.assert_close(ours[name], theirs.state_dict()[name])


def test_the_model_is_left_as_it_was():
    model = Small().double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reestimate_batch_norm(model, batches())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert model.training
    assert not model.first._forward_pre_hooks


def test_order_of_batches_does_not_matter():
    model = Small().double()
    one, two = reestimate_batch_norm(model, batches()), reestimate_batch_norm(model, batches()[::-1])
    for name in one:
        torch.testing.assert_close(one[name], two[name])


def test_frozen_layers_of_a_network_are_measured_all_the_same():
    network = NetworkSpec(name="cifar_resnet20", classes=2, frozen_batch_norm=True).build()
    random = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 32, 32, generator=random)
    theta = reestimate_batch_norm(network, [Batch(images, torch.zeros(16).long(), torch.zeros(16))])
    changed = [name for name, value in network.state_dict().items() if not torch.equal(theta[name], value)]
    assert changed
    assert all("running" in name or "num_batches" in name for name in changed)


def test_too_little_data_names_the_layer():
    with pytest.raises(InputError, match="'first' saw 0 values per channel"):
        reestimate_batch_norm(Small().double(), [])


def test_without_batch_norm_the_weights_are_copied():
    model = nn.Linear(2, 2)
    theta = reestimate_batch_norm(model, [])
    assert torch.equal(theta["weight"], model.weight)
    assert theta["weight"].data_ptr() != model.weight.data_ptr()


def test_old_statistics_and_momentum_play_no_part_and_counters_go_on():
    model = Small().double()
    model.first.num_batches_tracked.fill_(99)
    model.first.running_mean.fill_(torch.nan)
    theta = reestimate_batch_norm(model, batches())
    assert theta["first.num_batches_tracked"] == 99 + 3
    assert theta["second.num_batches_tracked"] == 3
    other = Small().double()
    other.first.momentum = other.second.momentum = None
    again = reestimate_batch_norm(other, batches())
    assert all(torch.equal(theta[name], again[name]) for name in theta if "running" in name)


class Recorded(dict):
    """Weights that remember what was read."""

    def __init__(self, values):
        super().__init__(values)
        self.read = set()

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)


def member(direction, *, distance=0.0, statistics=0.0):
    """Weights of norm 1, and a step of the given length away from them."""
    values = {"w": np.zeros(3), "bn.running_mean": np.full(2, statistics), "bn.running_var": np.ones(2)}
    values["w"][0] = 1.0
    values["w"][direction] += distance
    values["bn.num_batches_tracked"] = np.array(7)
    return values


def test_without_batch_norm_nothing_is_read_and_nothing_is_needed():
    thetas = [Recorded({"w": np.ones(2)}), Recorded({"w": np.zeros(2)})]
    found = recommend_batch_norm(thetas)
    assert found.level == "none"
    assert "no batch norm" in found.reason
    assert not any(theta.read for theta in thetas)


def test_frozen_statistics_are_all_that_is_read():
    thetas = [Recorded(member(1, distance=9.0)), Recorded(member(2))]
    found = recommend_batch_norm(thetas)
    assert found.level == "none"
    assert "the same statistics in all 2 tensors" in found.reason
    assert all(theta.read == {"bn.running_mean", "bn.running_var"} for theta in thetas)


@pytest.mark.parametrize(
    ("step", "with_base", "without_base"),
    [(0.1, "optional", "optional"), (0.3, "optional", "required"), (0.6, "required", "required")],
)
def test_members_far_apart_need_new_statistics(step, with_base, without_base):
    # Orthogonal steps from a start of norm 1: distance sqrt(2) step, norms sqrt(1 + step^2).
    thetas = [member(1, distance=step), member(2, distance=step, statistics=1.0)]
    apart = 2**0.5 * step / (1 + step**2) ** 0.5
    found = recommend_batch_norm(thetas, member(1))
    assert found.level == with_base
    assert f"{apart:.2g} of their norm apart" in found.reason
    assert f"moved {step:.2g} of the norm" in found.reason
    found = recommend_batch_norm(thetas)
    assert found.level == without_base
    assert "no common start" in found.reason


def test_members_near_each_other_but_far_from_the_start_need_them_too():
    thetas = [member(1, distance=1.0), member(1, distance=1.1, statistics=1.0)]
    assert recommend_batch_norm(thetas).level == "optional"
    assert recommend_batch_norm(thetas, member(1)).level == "required"
    near = [member(1, distance=0.7), member(1, distance=0.8, statistics=1.0)]
    assert recommend_batch_norm(near, member(1)).level == "optional"


def test_torch_in_half_precision_gives_the_same():
    thetas = [member(1, distance=0.5), member(2, distance=0.5, statistics=1.0)]
    tensors = [{name: torch.from_numpy(x) for name, x in theta.items()} for theta in thetas]
    halves = [
        {name: x.bfloat16() if x.is_floating_point() else x for name, x in theta.items()} for theta in tensors
    ]
    assert recommend_batch_norm(thetas) == recommend_batch_norm(tensors) == recommend_batch_norm(halves)


def test_a_single_member_needs_nothing():
    assert recommend_batch_norm([member(1)]).level == "none"


def test_members_must_be_there_and_agree():
    with pytest.raises(InputError, match="no member"):
        recommend_batch_norm([])
    other = {name: x for name, x in member(1).items() if name != "w"}
    with pytest.raises(InputError, match="members 0 and 1 have different names: 'w'"):
        recommend_batch_norm([member(1), other])
