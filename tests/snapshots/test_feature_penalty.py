import math

import pytest
import torch
from tests.snapshots.later_samples import SPEC, drawn, network, weights
from tests.tiny import tiny_network
from torch import nn

from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import ERM
from mirepoix.snapshots._feature_penalty import FEATURES, FeaturePenalty
from mirepoix.snapshots._later import joint_batch
from mirepoix.types import InputError


class Gap(FeaturePenalty):
    """The difference of the means of all features."""

    called = "gap"

    def __init__(self, network, members, *, alpha=1.0, layers=None):
        super().__init__(network, members, alpha=alpha, layers=layers)
        self.shapes = []

    def configuration(self):
        return super().configuration()

    def distance(self, anchor, own):
        assert anchor.dtype == own.dtype
        assert anchor.dtype in (torch.float32, torch.float64)
        assert own.requires_grad
        assert not anchor.requires_grad
        self.shapes.append(tuple(own.shape))
        return own.mean() - anchor.mean()


def test_layers_are_what_their_modules_return():
    objective, model = Gap(SPEC, [weights(1)], alpha=3, layers={"conv": 0.5, FEATURES: 2.0}), network()
    images, labels = joint_batch(drawn(0))
    loss = objective(model, drawn(0))
    member = objective.member(0)
    gaps = {
        "conv": model.featurizer.conv(images).mean() - member.featurizer.conv(images).mean(),
        FEATURES: model(images).features.mean() - member(images).features.mean(),
    }
    expected = 0.5 * gaps["conv"] + 2 * gaps[FEATURES]
    torch.testing.assert_close(loss, nn.functional.cross_entropy(model(images).logits, labels) + 3 * expected)
    torch.testing.assert_close(objective.parts["gap"], expected.detach())
    assert set(objective.parts) == {"nll", "gap", "gap.conv", "gap.features"}
    torch.testing.assert_close(objective.parts["gap.conv"], gaps["conv"].detach())
    assert objective.shapes == [(5, 4, 1, 1), (5, 4)]
    assert objective.configuration()["layers"] == {"conv": 0.5, FEATURES: 2.0}


def test_the_features_are_the_default_and_need_no_hook():
    objective, model = Gap(SPEC, [weights(1)]), network()
    chosen = Gap(SPEC, [weights(1)], layers={FEATURES: 1})
    assert torch.equal(objective(model, drawn(0)), chosen(model, drawn(0)))
    assert objective.configuration() == chosen.configuration()
    assert set(objective.parts) == {"nll", "gap"}


def test_the_anchor_is_the_first_of_the_members():
    one, two = Gap(SPEC, [weights(1)]), Gap(SPEC, [weights(1), weights(2)])
    assert one.state_dict().keys() == two.state_dict().keys()
    assert torch.equal(one(network(), drawn(0)), two(network(), drawn(0)))
    assert not torch.equal(one(network(), drawn(0)), Gap(SPEC, [weights(2)])(network(), drawn(0)))


def test_no_hook_is_left_even_after_an_error():
    objective, model = Gap(SPEC, [weights(1)], layers={"conv": 1.0}), network()
    objective(model, drawn(0))
    hooked = [*model.modules(), *objective.modules()]
    assert not any(module._forward_hooks for module in hooked)
    unused = Gap(SPEC, [weights(1)], layers={"conv": 1.0, "unused": 1.0})
    with pytest.raises(InputError, match="Gap: the layer 'unused' is not used by the network"):
        unused(model, drawn(0))
    assert not any(module._forward_hooks for module in (*model.modules(), *unused.modules()))


def test_inner_modules_have_names_with_dots():
    spec = NetworkSpec(name="cifar_resnet20", classes=3)
    objective = Gap(spec, [initial_weights(spec)], layers={"layer2.0": 1.0, "layer3": 0.5})
    batches = drawn(0)
    images = [torch.randn(len(batch.images), 3, 8, 8) for batch in batches]
    batches = [type(b)(x, b.labels, b.domains) for b, x in zip(batches, images, strict=True)]
    assert objective(spec.build(seed=1), batches).isfinite()
    assert objective.shapes == [(5, 32, 4, 4), (5, 64, 2, 2)]


class Twice(nn.Module):
    def __init__(self, output=None):
        super().__init__()
        self.conv, self.output = SPEC.build().featurizer.conv, output

    def forward(self, images):
        return torch.tanh((self.conv(images) + self.conv(images)).flatten(1))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = SPEC.build().featurizer.conv

    def forward(self, images):
        return self.inner(images), None


def test_layers_that_give_no_single_tensor_are_refused():
    objective, model = Gap(SPEC, [weights(1)], layers={"conv": 1.0}), network()
    model.featurizer = Twice()
    with pytest.raises(
        InputError, match="Gap: the layer 'conv' is called more than once; choose another layer"
    ):
        objective(model, drawn(0))
    model = network()
    model.featurizer.conv = Pair()
    with pytest.raises(InputError, match="Gap: the layer 'conv' returns a tuple, no tensor"):
        objective(model, drawn(0))


def test_a_network_without_the_layer_is_refused():
    objective, model = Gap(SPEC, [weights(1)], layers={"conv": 1.0}), network()
    model.featurizer = nn.Flatten()
    with pytest.raises(InputError, match="the network in training has no layer 'conv' in its featurizer"):
        objective(model, drawn(0))


def test_a_compiled_network_trains_on_the_features_and_uncompiled_on_layers():
    compiled = torch.compile(network(), backend="eager")
    for layers in (None, {"conv": 1.0}):
        objective = Gap(SPEC, [weights(1)], layers=layers)
        torch.testing.assert_close(objective(compiled, drawn(0)), objective(network(), drawn(0)))


def test_dropout_is_of_the_network_in_training_alone():
    theta = weights(1)
    objective, model = Gap(SPEC, [theta], layers={FEATURES: 1.0}), SPEC.build(seed=1, dropout=0.5).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        erm = ERM()(model, drawn(0))
        torch.manual_seed(0)
        assert objective(model, drawn(0)) != erm
        torch.manual_seed(0)
        assert torch.equal(Gap(SPEC, [theta], alpha=0)(model, drawn(0)), erm)
        model.eval()
        assert torch.equal(objective(model, drawn(0)), ERM()(model, drawn(0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1}, "Gap needs alpha to be 0 or more, got -1.0"),
        ({"alpha": math.nan}, "Gap needs alpha to be a finite number, got nan"),
        (
            {"layers": {}},
            r"Gap needs layers to be names with their weights, such as {'features': 1.0}, got {}",
        ),
        ({"layers": ["conv"]}, r"Gap needs layers to be names with their weights, .* got \['conv'\]"),
        (
            {"layers": {"layer2": 1.0}},
            r"layers must be 'features' or modules of the featurizer of mnist_cnn \(conv, unused, or one inside "
            r"them\), got 'layer2'",
        ),
        (
            {"layers": {"conv": 0}},
            "needs the weight of layer 'conv' to be positive, got 0; leave the layer out",
        ),
        ({"layers": {"conv": math.inf}}, "needs the weight of layer 'conv' to be a finite number, got inf"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Gap(SPEC, [weights(1)], **options)


def test_an_anchor_is_needed():
    with pytest.raises(InputError, match="Gap needs an anchor as the first of its members, got none"):
        Gap(SPEC, [])
    with pytest.raises(InputError, match="Gap: members must be a list of weights, got one mapping"):
        Gap(SPEC, weights(1))
    with pytest.raises(InputError, match="Gap: member 0 is of another network"):
        Gap(SPEC, [initial_weights(tiny_network())])
