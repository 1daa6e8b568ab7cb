import dataclasses

import pytest
import torch
from tests.tiny import tiny_network, tiny_task

from mirepoix.experiment import Judge
from mirepoix.merging import reestimate_batch_norm
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.seeds import generator
from mirepoix.store import Store
from mirepoix.types import Batch

CPU = torch.device("cpu")


def judge(tmp_path, network, split=None):
    return Judge(network, split or tiny_task().split("domain_0"), Store(tmp_path), CPU)


def test_without_batch_norm_weights_are_returned_as_they_are(tmp_path):
    theta = initial_weights(tiny_network())
    assert judge(tmp_path, tiny_network()).refresh(theta) is theta


def test_frozen_statistics_stay_as_they_are(tmp_path):
    frozen = NetworkSpec(name="cifar_resnet20", classes=2, channels=1, frozen_batch_norm=True)
    theta = initial_weights(frozen)
    assert judge(tmp_path, frozen).refresh(theta) is theta


@pytest.mark.parametrize("images", [40, 90])
def test_statistics_are_made_new_on_the_training_images_of_the_sources(tmp_path, images):
    network = NetworkSpec(name="cifar_resnet20", classes=2, channels=1, frozen_batch_norm=False)
    split = tiny_task(images=images).split("domain_0")
    theta = initial_weights(network)
    before = {name: value.clone() for name, value in theta.items()}
    fresh = judge(tmp_path, network, split).refresh(theta)
    assert all(torch.equal(theta[name], before[name]) for name in before)
    changed = {name for name in theta if not torch.equal(fresh[name], theta[name])}
    assert changed
    assert all("running_" in name or "num_batches" in name for name in changed)
    # The first layer's input needs no other statistics: its mean is that of the convolved images.
    first = next(name for name in theta if name.endswith("running_mean"))
    model = network.build()
    model.load_state_dict(theta)
    layer = dict(model.named_modules())[first.removesuffix(".running_mean")]
    seen = []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].double()))
    model.eval()
    with torch.no_grad():
        for start in range(0, images, 64):
            batch = [subset.indices[start : start + 64] for subset in split.train]
            parts = [
                split.task.transform.plain(subset.domain.images.read(chosen))
                for subset, chosen in zip(split.train, batch, strict=True)
                if len(chosen)
            ]
            if parts:
                model(torch.cat(parts))
    weights = torch.tensor([float(len(each)) for each in seen], dtype=torch.float64)
    means = torch.stack([each.mean((0, 2, 3)) for each in seen])
    expected = (weights[:, None] * means).sum(0) / weights.sum()
    torch.testing.assert_close(fresh[first].double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("augment", [True, False])
def test_statistics_are_those_of_images_as_the_training_saw_them(tmp_path, augment):
    network = NetworkSpec(name="cifar_resnet20", classes=2, channels=1, frozen_batch_norm=False)
    task = tiny_task()
    task = dataclasses.replace(task, transform=dataclasses.replace(task.transform, augmentation="crop_flip"))
    split, theta = task.split("domain_0"), initial_weights(network)
    found = Judge(network, split, Store(tmp_path), CPU, augment=augment).refresh(theta)

    def measured(images):
        model = network.build()
        model.load_state_dict(theta)
        labels = torch.zeros(len(images), dtype=torch.long)
        return reestimate_batch_norm(model, [Batch(images, labels, labels)])

    stored = [subset.domain.images.read(subset.indices) for subset in split.train]
    seen = [
        task.transform.train(images, generator("batch norm", subset.name))
        if augment
        else task.transform.plain(images)
        for images, subset in zip(stored, split.train, strict=True)
    ]
    expected = measured(torch.cat(seen))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)
    other = measured(torch.cat([task.transform.plain(images) for images in stored]))
    first = next(name for name in theta if name.endswith("running_mean"))
    assert torch.allclose(found[first], other[first], rtol=1e-4) == (not augment)


def test_the_target_does_not_move_the_statistics(tmp_path):
    network = NetworkSpec(name="cifar_resnet20", classes=2, channels=1, frozen_batch_norm=False)
    theta = initial_weights(network)
    three, pair = tiny_task().split("domain_0"), tiny_task().split(None, without=("domain_0",))
    one, other = (judge(tmp_path, network, split).refresh(theta) for split in (three, pair))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_targets_of_one_training_have_their_own_predictions(tmp_path):
    task, theta = tiny_task(domains=4), initial_weights(tiny_network())
    one = judge(tmp_path, tiny_network(), task.split("domain_0", without=("domain_1",)))
    other = judge(tmp_path, tiny_network(), task.split("domain_1", without=("domain_0",)))
    assert torch.equal(one.logits(theta, "validation"), other.logits(theta, "validation"))
    assert not torch.equal(one.logits(theta, "test"), other.logits(theta, "test"))
    assert len(one.store.made) == 2
    assert len(other.store.made) == 1  # the validation part is the same
