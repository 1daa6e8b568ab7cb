import pytest
import torch
from torch import nn

from mirepoix.merging import reestimate_batch_norm
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
