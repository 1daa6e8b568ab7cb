"""Start weights from files: names, channels and classifiers of others, and errors that name the key."""

from __future__ import annotations

import io

import numpy as np
import pytest
import timm
import torch

from mirepoix.checkpoints import open_weights, write_weights
from mirepoix.models import NetworkSpec, initial_weights, load_pretrained
from mirepoix.models._pretrained import _our_names
from mirepoix.types import InputError

RESNET20 = NetworkSpec(name="cifar_resnet20", classes=10)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def theta():
    """A ResNet-20 with weights of its own everywhere, statistics included."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else torch.tensor(3)
        for key, tensor in RESNET20.build().state_dict().items()
    }


def bare(theta, classifier="linear"):
    return {
        key.removeprefix("featurizer.").replace("classifier.", f"{classifier}."): tensor
        for key, tensor in theta.items()
    }


def test_our_own_file_comes_back(tmp_path, theta):
    write_weights(tmp_path / "w.safetensors", theta)
    assert same(load_pretrained(RESNET20, tmp_path / "w.safetensors", keep_classifier=True), theta)
    loaded = load_pretrained(RESNET20, str(tmp_path / "w.safetensors"), seed=5)
    fresh = initial_weights(RESNET20, seed=5)
    assert torch.equal(loaded["classifier.weight"], fresh["classifier.weight"])
    assert torch.equal(loaded["classifier.bias"], fresh["classifier.bias"])
    assert torch.equal(loaded["featurizer.conv1.weight"], theta["featurizer.conv1.weight"])


@pytest.mark.parametrize("classifier", ["linear", "fc", "classifier"])
def test_a_bare_backbone_is_understood(theta, classifier):
    assert same(load_pretrained(RESNET20, bare(theta, classifier), keep_classifier=True), theta)


def test_a_classifier_of_other_classes_is_replaced_unless_it_is_to_be_kept(theta):
    seven = NetworkSpec(name="cifar_resnet20", classes=7)
    loaded = load_pretrained(seven, bare(theta), seed=2)
    assert torch.equal(loaded["classifier.weight"], initial_weights(seven, seed=2)["classifier.weight"])
    with pytest.raises(InputError, match=r"linear\.weight, expected shape \(7, 64\), got shape \(10, 64\)"):
        load_pretrained(seven, bare(theta), keep_classifier=True)
    headless = {key: tensor for key, tensor in theta.items() if key.startswith("featurizer.")}
    with pytest.raises(InputError, match=r"2 missing: classifier\.weight, expected shape \(10, 64\)"):
        load_pretrained(RESNET20, headless, keep_classifier=True)


def test_other_channels_cycle_through_the_three(theta):
    for channels in (1, 2, 5):
        spec = NetworkSpec(name="cifar_resnet20", classes=10, channels=channels)
        weight = load_pretrained(spec, theta)["featurizer.conv1.weight"]
        for i in range(channels):
            assert torch.equal(weight[:, i], theta["featurizer.conv1.weight"][:, i % 3])
        network = spec.build()
        network.load_state_dict(load_pretrained(spec, theta))


def test_loading_gives_new_tensors_of_the_dtype_of_the_network(theta):
    halves = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in theta.items()}
    loaded = load_pretrained(RESNET20, halves)
    assert loaded["featurizer.conv1.weight"].dtype == torch.float32
    loaded = load_pretrained(RESNET20, theta)
    loaded["featurizer.conv1.weight"].zero_()
    assert theta["featurizer.conv1.weight"].any()
    arrays = {key: np.asarray(tensor) for key, tensor in theta.items()}
    assert same(load_pretrained(RESNET20, arrays, keep_classifier=True), theta)


def test_old_files_have_no_counters(theta):
    old = {key: tensor for key, tensor in bare(theta).items() if "num_batches_tracked" not in key}
    loaded = load_pretrained(RESNET20, old)
    assert loaded.keys() == theta.keys()
    assert loaded["featurizer.bn1.num_batches_tracked"] == 0
    assert loaded["featurizer.bn1.num_batches_tracked"].dtype == torch.int64


def test_errors_name_file_key_and_shapes(tmp_path, theta):
    wrong = bare(theta)
    wrong["conv1.weight"] = torch.zeros(8, 3, 3, 3)
    del wrong["layer1.0.bn1.weight"]
    wrong["layer4.0.bn1.weight"] = torch.zeros(128)
    write_weights(tmp_path / "w.safetensors", wrong)
    with pytest.raises(InputError) as error:
        load_pretrained(RESNET20, tmp_path / "w.safetensors")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'w.safetensors'}: expected 114 tensors of the network, got 114; ")
    assert "1 missing: featurizer.layer1.0.bn1.weight, expected shape (16,);" in message
    assert "1 unexpected: layer4.0.bn1.weight, got shape (128,);" in message
    assert (
        "1 of another shape: conv1.weight, expected shape (16, 3, 3, 3), got shape (8, 3, 3, 3)." in message
    )


def test_long_errors_show_the_first_ten_and_the_count(theta):
    with pytest.raises(InputError) as error:
        load_pretrained(NetworkSpec(name="cifar_resnet32", classes=10), theta)
    message = str(error.value)
    assert message.startswith("the weights given: ")
    assert "60 missing: " in message
    assert message.count("expected shape") == 10
    assert "..." in message


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_a_timm_file_loads_and_computes_the_same(tmp_path, name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=4).eval()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean += 0.5
            norm.running_var *= 2
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    spec = NetworkSpec(name=f"timm:{name}", classes=4)
    network = spec.build().eval()
    network.load_state_dict(load_pretrained(spec, tmp_path / "w.pth", keep_classifier=True))
    images = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(network(images).logits, model(images), atol=1e-6)


def test_a_torchvision_resnet_loads_into_timms():
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.resnet18(weights=None, num_classes=4).eval()
    spec = NetworkSpec(name="timm:resnet18", classes=4)
    network = spec.build().eval()
    network.load_state_dict(load_pretrained(spec, model.state_dict(), keep_classifier=True))
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(network(images).logits, model(images), atol=1e-5)


def test_two_classifiers_are_none_that_could_be_kept():
    spec = NetworkSpec(name="timm:deit_tiny_distilled_patch16_224", classes=2)
    keys = ["cls_token", "head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]
    names = _our_names(spec, dict.fromkeys(keys))
    assert list(names.values()) == keys
    assert list(names) == ["featurizer.cls_token", *(f"classifier.{key}" for key in keys[1:])]


def test_without_the_hub_a_local_file_is_asked_for():
    spec = NetworkSpec(name="timm:test_resnet.r160_in1k", classes=4, pretrained=True)
    with pytest.raises(InputError, match=r"test_resnet\.r160_in1k from the model hub.*weights = \"path/to/"):
        initial_weights(spec)


def test_hub_weights_come_with_a_new_classifier_and_our_rule_for_channels(tmp_path, monkeypatch):
    create = timm.create_model
    model = create("test_resnet", num_classes=1000)
    write_weights(tmp_path / "hub.safetensors", model.state_dict())

    def create_from_file(*args, **options):
        if options.get("pretrained"):
            options["pretrained_cfg_overlay"] = {"file": str(tmp_path / "hub.safetensors")}
        return create(*args, **options)

    monkeypatch.setattr(timm, "create_model", create_from_file)
    spec = NetworkSpec(name="timm:test_resnet.r160_in1k", classes=4, channels=2, pretrained=True)
    theta = initial_weights(spec, seed=3)
    source = model.state_dict()
    assert torch.equal(theta["featurizer.conv1.0.weight"], source["conv1.0.weight"][:, :2])
    assert torch.equal(theta["featurizer.layer4.0.conv1.weight"], source["layer4.0.conv1.weight"])
    assert torch.equal(theta["classifier.weight"], initial_weights(spec, seed=3)["classifier.weight"])
    assert theta["classifier.weight"].shape == (4, model.num_features)
    spec.build().load_state_dict(theta)


@pytest.mark.shared
def test_the_real_resnet20_reaches_its_accuracy(shared):
    """81.0 % on the test images that went through JPEG once; 2,000 of them have a standard error of 0.9."""
    from PIL import Image
    from pyarrow import parquet

    rows = (
        parquet.read_table(shared / "data" / "cifar10" / "test-00000-of-00001.parquet")
        .slice(0, 2000)
        .to_pylist()
    )
    pixels = np.stack(
        [np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in rows]
    )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (images - mean[:, None, None]) / std[:, None, None]
    labels = torch.tensor([row["label"] for row in rows])
    network = RESNET20.build()
    network.load_state_dict(
        load_pretrained(RESNET20, shared / "weights" / "resnet20-12fca82f.th", keep_classifier=True)
    )
    network.eval()
    with torch.no_grad():
        logits = torch.cat([network(part).logits for part in images.split(500)])
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    assert abs(accuracy - 0.81) < 0.003


@pytest.mark.shared
def test_the_real_resnet32_loads_with_its_classifier(shared):
    path = shared / "weights" / "resnet32-d509ac18.th"
    spec = NetworkSpec(name="cifar_resnet32", classes=10)
    theta = load_pretrained(spec, path, keep_classifier=True)
    spec.build().load_state_dict(theta)
    assert torch.equal(theta["classifier.weight"], open_weights(path, allow_torch_load=True)["linear.weight"])
    with pytest.raises(InputError, match="60 unexpected: layer1"):
        load_pretrained(RESNET20, path)
