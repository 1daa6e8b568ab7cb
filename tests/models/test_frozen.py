"""What comes before a module stays as it is: shares of the parameters, and the bits of a training."""

import pytest
import torch
from tests.tiny import tiny_task

from mirepoix.models import NetworkSpec, initial_weights, part_before
from mirepoix.objectives import ERM
from mirepoix.runs import Run
from mirepoix.training import Trainer
from mirepoix.types import InputError


def trained_share(spec: NetworkSpec, train_from: str) -> tuple[int, int]:
    network = spec.build_empty()
    frozen = sum(p.numel() for p in part_before(network, spec, train_from).parameters())
    whole = sum(p.numel() for p in network.parameters())
    return whole - frozen, whole


@pytest.mark.parametrize(
    ("train_from", "percent"),
    [("layer3", 93.9), ("layer4", 64.0), ("last_stage", 64.0), ("classifier", 0.86)],
)
def test_published_shares_of_a_resnet50_with_100_classes(train_from, percent):
    trained, whole = trained_share(NetworkSpec(name="timm:resnet50", classes=100), train_from)
    assert round(whole / 1e6, 2) == 23.71
    assert 100 * trained / whole == pytest.approx(percent, abs=0.05 if percent > 1 else 0.005)
    if train_from == "layer3":
        assert round(trained / 1e6, 2) == 22.27


@pytest.mark.parametrize("name", ["cifar_resnet20", "wrn28_1", "mnist_cnn"])
def test_any_network_has_a_last_stage_and_a_classifier(name):
    spec = NetworkSpec(name=name, classes=10)
    trained, whole = trained_share(spec, "last_stage")
    assert 0.3 * whole < trained < whole
    feature_size = spec.build_empty().feature_size
    assert trained_share(spec, "classifier")[0] == 10 * feature_size + 10


def test_the_parts_of_a_vision_transformer_that_are_no_layers_are_frozen_too():
    spec = NetworkSpec(name="timm:vit_tiny_patch16_224", classes=10)
    network = spec.build_empty()
    frozen = {id(p) for p in part_before(network, spec, "blocks.6").parameters()}
    assert id(network.featurizer.pos_embed) in frozen
    assert id(network.featurizer.cls_token) in frozen


SPEC = NetworkSpec(name="cifar_resnet20", classes=2, channels=1, frozen_batch_norm=False)
RUN = Run(
    seed=3,
    steps=3,
    learning_rate=0.1,
    weight_decay=1e-2,
    optimizer="sgd",
    batch_size=4,
    check_every=3,
    collect="last",
)


@pytest.mark.parametrize("train_from", ["layer2", "layer3", "classifier"])
@pytest.mark.parametrize("statistics", [False, True])
def test_what_is_frozen_keeps_its_bits_whatever_the_weight_decay(train_from, statistics):
    theta = initial_weights(SPEC)
    run = RUN.with_(train_from=train_from, frozen_statistics=statistics)
    after = Trainer(SPEC, ERM(), keep=("last",))(theta, tiny_task(size=16).split("domain_2"), run)
    before = part_before(SPEC.build_empty(), SPEC, train_from)
    frozen = {f"featurizer.{name}" for name, _ in before.named_parameters()}
    assert frozen
    for name, _ in SPEC.build_empty().named_parameters():
        assert torch.equal(after[name], theta[name]) == (name in frozen), name
    for name in (f"featurizer.{name}" for name, _ in before.named_buffers()):
        assert torch.equal(after[name], theta[name]) == statistics, name


def test_a_frozen_part_does_not_depend_on_where_a_training_was_stopped(tmp_path):
    theta, split = initial_weights(SPEC), tiny_task(size=16).split("domain_2")
    run = RUN.with_(train_from="layer2", steps=4)
    whole = Trainer(SPEC, ERM(), keep=("last",)).fit(theta, split, run).weights["last"]

    class Stop(Exception):
        pass

    def stop(step, *_):
        if step == 3:
            raise Stop

    from mirepoix.training import Loop

    trainer = Trainer(SPEC, ERM(), keep=("last",), loop=Loop(save_every=0), on_progress=stop)
    with pytest.raises(Stop):
        trainer.fit(theta, split, run, workspace=tmp_path)
    resumed = Trainer(SPEC, ERM(), keep=("last",)).fit(theta, split, run, workspace=tmp_path).weights["last"]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("spec", "train_from", "message"),
    [
        (SPEC, "layer9", r"run.train_from: expected the name of a module of the featurizer \(.*layer1"),
        (NetworkSpec(name="cifar_resnet20", classes=2, members=2), "layer2", "network of one member"),
        (NetworkSpec(name="cifar_resnet20", classes=2, inputs=2), "layer2", "network of one member"),
    ],
)
def test_what_cannot_be_frozen_is_told(spec, train_from, message):
    with pytest.raises(InputError, match=message):
        part_before(spec.build_empty(), spec, train_from)
