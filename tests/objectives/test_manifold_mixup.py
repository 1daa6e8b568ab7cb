import math

import pytest
import torch
from tests.reference import manifold_mixup
from torch import nn
from torch.nn import functional as F

from mirepoix.models import Network, NetworkSpec
from mirepoix.objectives import ERM, ManifoldMixup
from mirepoix.types import Batch, InputError


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        featurizer = nn.Sequential(
            nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 4)
        )
        return Network(featurizer, 4, 3).double()


def batches(sizes=(3, 4), shape=(1, 3, 4), dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randn(n, *shape, generator=random, dtype=torch.float64).to(dtype),
            torch.randint(3, (n,), generator=random),
            torch.full((n,), domain),
        )
        for domain, n in enumerate(sizes)
    ]


def draws(layers, samples, alpha):
    """The numbers that an update draws, in their order."""
    layer = torch.randint(layers, ()).item()
    alpha = torch.tensor(alpha, dtype=torch.float64)
    coefficient = torch.distributions.Beta(alpha, alpha).sample().item()
    return {"layer": layer, "coefficient": coefficient, "partners": torch.randperm(samples).tolist()}


@pytest.mark.parametrize(("alpha", "layers"), [(2.0, None), (0.4, ["3"]), (1.0, ["5", ""])])
@pytest.mark.parametrize("sizes", [(3, 4), (1,), (5, 1, 2)])
def test_loss_and_gradient_are_those_of_the_reference(sizes, alpha, layers):
    model, given = network(), batches(sizes)
    modules = [*model.featurizer, model.classifier]
    modules[0] = torch.flatten  # of one image
    images, labels = torch.cat([b.images for b in given]), torch.cat([b.labels for b in given]).tolist()
    places = [int(name or 0) for name in layers] if layers else [0, 1, 2, 3]
    used = set()
    for seed in range(8):
        torch.manual_seed(seed)
        loss = ManifoldMixup(alpha, layers)(model, given)
        torch.manual_seed(seed)
        drawn = draws(len(places), sum(sizes), alpha)
        drawn["layer"] = places[drawn["layer"]]
        used.add(drawn["layer"])
        expected = manifold_mixup.loss(modules, images, labels, **drawn)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        found, slow = (torch.autograd.grad(each, list(model.parameters())) for each in (loss, expected))
        for one, other in zip(found, slow, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert used == set(places)


def stages(spec, featurizer):
    """The featurizer as functions, cut where the default layers are."""
    f = featurizer
    if spec.startswith("cifar"):
        return [lambda x: F.relu(f.bn1(f.conv1(x))), f.layer1, f.layer2, lambda x: f.layer3(x).mean((2, 3))]
    if spec.startswith("wrn"):
        return [f.conv1, f.layer1, f.layer2, lambda x: F.relu(f.bn(f.layer3(x))).mean((2, 3))]
    if spec == "mnist_cnn":
        norms = [f.norm1, f.norm2, f.norm3, f.norm4]
        convolutions = [f.conv1, f.conv2, f.conv3, f.conv4]
        parts = [lambda x, c=c, n=n: n(F.relu(c(x))) for c, n in zip(convolutions, norms, strict=True)]
        return [*parts[:3], lambda x: parts[3](x).mean((2, 3))]
    return [
        lambda x: f.maxpool(f.act1(f.bn1(f.conv1(x)))),
        f.layer1,
        f.layer2,
        lambda x: f.global_pool(f.layer4(f.layer3(x))),
    ]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["cifar_resnet20", "wrn28_1", "timm:resnet18", "mnist_cnn"])
def test_the_layers_found_are_the_images_the_stem_and_the_stages(name, frozen):
    width = 8 if name == "mnist_cnn" else None
    spec = NetworkSpec(name=name, classes=3, width=width, frozen_batch_norm=frozen)
    model = spec.build(seed=1).double().train()
    given = batches((4,), (3, 32, 32))
    images, labels = given[0].images, given[0].labels
    parts, layers = stages(name, model.featurizer), set()
    for seed in range(12):
        torch.manual_seed(seed)
        loss = ManifoldMixup()(model, given)
        torch.manual_seed(seed)
        drawn = draws(4, 4, 2.0)
        layers.add(drawn["layer"])
        values, c, partners = images, drawn["coefficient"], drawn["partners"]
        for place, part in enumerate(parts):
            if place == drawn["layer"]:
                values = c * values + (1 - c) * values[partners]
            values = part(values)
        logits = model.classifier(values)
        expected = c * F.cross_entropy(logits, labels) + (1 - c) * F.cross_entropy(logits, labels[partners])
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    assert layers == {0, 1, 2, 3}


def test_nothing_is_left_of_it_also_after_an_error():
    model, given = network(), batches()
    alone = ERM()(model, given)
    for seed in range(5):
        torch.manual_seed(seed)
        ManifoldMixup()(model, given)

    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    model.featurizer.add_module("6", Broken())
    with pytest.raises(RuntimeError, match="broken"):
        ManifoldMixup(layers=["3"])(model, given)
    assert not any(module._forward_pre_hooks for module in model.modules())
    del model.featurizer[6]
    assert torch.equal(ERM()(model, given), alone)


def test_with_one_image_it_is_erm():
    model, given = network(), batches((1,))
    for seed in range(5):
        torch.manual_seed(seed)
        torch.testing.assert_close(ManifoldMixup()(model, given), ERM()(model, given), rtol=1e-12, atol=0)


def test_in_a_linear_network_all_layers_are_the_same():
    """Mixing commutes with what is linear."""
    model, given = network(), batches()
    model.featurizer[2], model.featurizer[4] = nn.Identity(), nn.Identity()
    losses = []
    for layer in ("", "1", "2", "3", "5"):
        torch.manual_seed(0)
        losses.append(ManifoldMixup(layers=[layer])(model, given))
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-12, atol=0)


def test_draws_are_one_per_batch_and_as_told():
    torch.manual_seed(0)
    drawn = [draws(4, 3, 2.0)["coefficient"] for _ in range(4000)]
    assert sum(drawn) / 4000 == pytest.approx(0.5, abs=5 * math.sqrt(0.05 / 4000))
    assert sum((c - 0.5) ** 2 for c in drawn) / 4000 == pytest.approx(1 / 20, rel=0.1)  # of Beta(2, 2)


def test_half_precision_hidden_states():
    model, given = network().float(), batches(dtype=torch.float32)
    for seed in range(6):
        torch.manual_seed(seed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = ManifoldMixup()(model, given)
        assert loss.dtype == torch.float32
        assert loss.isfinite()


def test_other_networks_need_their_layers_named():
    spec = NetworkSpec(name="timm:vit_tiny_patch16_224", classes=3)
    model, given = spec.build(), batches((2,), (3, 224, 224), torch.float32)
    with pytest.raises(
        InputError, match=r"VisionTransformer has none of the stages .*layers=\['', 'blocks'\]"
    ):
        ManifoldMixup()(model, given)
    assert ManifoldMixup(layers=["", "blocks"])(model, given).isfinite()


def test_hidden_states_of_a_compiled_network_are_mixed_in_the_network_itself():
    model, given = network(), batches()

    class Compiled(nn.Module):
        def __init__(self):
            super().__init__()
            self._orig_mod = model

        def forward(self, images):  # knows of no hooks
            raise AssertionError

    for layer in ("1", "3"):
        losses = []
        for each in (model, Compiled()):
            torch.manual_seed(0)
            losses.append(ManifoldMixup(layers=[layer])(each, given))
        assert torch.equal(*losses)


def test_stages_of_a_convnext_can_be_named():
    model, given = NetworkSpec(name="timm:convnext_atto", classes=3).build(), batches((2,), (3, 32, 32))
    given = [Batch(b.images.float(), b.labels, b.domains) for b in given]
    for layer in ("", "stages.0", "stages.1", "stages.2"):
        assert ManifoldMixup(layers=[layer])(model, given).isfinite()


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(12, 12)
        self.never = nn.Linear(12, 12)
        self.whole = nn.Identity()
        self.named = nn.Linear(12, 12)

    def forward(self, x):
        x = self.twice(self.twice(x.flatten(1)))
        return self.named(input=x) + self.whole(x.flatten())[: x.numel()].view_as(x)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer9", r"names of modules of the featurizer \(twice, never, whole, named, or .*got 'layer9'"),
        ("twice", "called once, got 'twice', which was called 2 times"),
        ("never", "called once, got 'never', which was called 0 times"),
        ("whole", r"'whole' must be given a tensor of 7 samples first, got shape \(84,\)"),
        ("named", "'named' must be given a tensor of 7 samples first, got NoneType"),
    ],
)
def test_a_layer_that_cannot_be_mixed_is_told(layer, message):
    model = Network(Odd(), 12, 3).double()
    with pytest.raises(InputError, match=message):
        ManifoldMixup(layers=[layer])(model, batches())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_options_are_named():
    assert ManifoldMixup().configuration() == {"alpha": 2.0, "layers": None}
    made = ManifoldMixup(alpha=1, layers=("", "layer1"))
    assert made.configuration() == {"alpha": 1.0, "layers": ["", "layer1"]}
    assert made.state_dict() == {}


@pytest.mark.parametrize("alpha", [0, -1, math.inf, math.nan])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(InputError, match=r"ManifoldMixup needs a positive, finite alpha, got .*2 is usual"):
        ManifoldMixup(alpha)


@pytest.mark.parametrize("layers", [[], ["a", "a"], "layer1"])
def test_layers_are_different_names(layers):
    with pytest.raises(InputError, match="ManifoldMixup needs layers to be different names of modules"):
        ManifoldMixup(layers=layers)
