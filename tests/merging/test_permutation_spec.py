import numpy as np
import pytest
import torch
from tests.merging.networks import built, randomised, weights
from torch import nn

from mirepoix.merging._permutation_spec import permutation_spec
from mirepoix.models import NetworkSpec
from mirepoix.types import InputError, Outputs


def places(spec, name):
    return [(act.tensor, act.axis) for act in spec.groups[name].acts]


def shapes(spec):
    return {name: group.shape for name, group in spec.groups.items()}


def test_an_mlp_has_one_group_for_each_hidden_layer():
    model, images = built("mlp")
    spec = permutation_spec(model, images)
    assert shapes(spec) == {"0": (8,), "2": (6,)}
    assert places(spec, "0") == [("0.weight", 0), ("0.bias", 0), ("2.weight", 1)]
    assert places(spec, "2") == [("2.weight", 0), ("2.bias", 0), ("4.weight", 1)]
    assert all(act.index.tolist() == [[i] for i in range(8)] for act in spec.groups["0"].acts)
    assert spec.shapes == {name: tuple(x.shape) for name, x in model.state_dict().items()}
    assert spec.notices == ()


def test_batch_norm_and_its_statistics_belong_to_the_group():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    spec = permutation_spec(model, torch.zeros(1, 3, 5, 5))
    assert places(spec, "0") == [
        ("0.weight", 0),
        ("1.weight", 0),
        ("1.bias", 0),
        ("1.running_mean", 0),
        ("1.running_var", 0),
        ("3.weight", 1),
    ]


def test_shortcuts_unify_and_zeros_split_groups():
    """Option A: 16 channels become the middle of 32, those become the middle of 64."""
    model, images = built("resnet")
    spec = permutation_spec(model, images)
    stream = {
        name: group for name, group in spec.groups.items() if ".conv1" not in name[-6:] or "layer" not in name
    }
    assert {name: group.shape for name, group in stream.items()} == {
        "featurizer.conv1": (16,),
        "featurizer.layer2.0.conv2": (16,),
        "featurizer.layer3.0.conv2": (32,),
    }
    head = [
        act.index.ravel().tolist()
        for group in stream.values()
        for act in group.acts
        if act.tensor == "classifier.weight"
    ]
    assert head == [
        list(range(24, 40)),
        [*range(16, 24), *range(40, 48)],
        [*range(16), *range(48, 64)],
    ]
    assert len([name for name in shapes(spec) if name not in stream]) == 9  # inside each block


def test_a_shortcut_with_weights_starts_a_new_group():
    model, images = built("bottleneck_resnet")
    spec = permutation_spec(model, images)
    (stream,) = [name for name in spec.groups if ("layer1.0.bn3.weight", 0) in places(spec, name)]
    assert ("layer1.0.downsample.0.weight", 0) in places(spec, stream)
    assert ("layer1.0.downsample.0.weight", 1) in places(spec, "conv1")
    assert ("layer2.0.conv1.weight", 1) in places(spec, stream)


def test_a_flattened_channel_moves_with_its_pixels():
    model, images = built("vgg")
    spec = permutation_spec(model, images)
    acts = {(act.tensor, act.axis): act.index for group in spec.groups.values() for act in group.acts}
    index = acts["classifier.0.weight", 1]
    assert index.shape == (10, 49)
    assert all(sorted(row) == list(range(49 * i, 49 * i + 49)) for i, row in enumerate(index.tolist()))
    assert (index - index[:1] == 49 * np.arange(10)[:, None]).all()  # pixels in the same order in each


@pytest.mark.parametrize(
    ("name", "qkv", "out"),
    [
        ("timm_vit", "blocks.0.attn.qkv", "blocks.0.attn.proj"),
        (
            "torchvision_vit",
            "encoder.layers.encoder_layer_0.self_attention",
            "encoder.layers.encoder_layer_0.self_attention.out_proj",
        ),
    ],
)
def test_attention_has_heads_and_two_orders_inside_them(name, qkv, out):
    model, images = built(name)  # 4 heads of 6 entries
    spec = permutation_spec(model, images)
    weight = f"{qkv}.weight" if name == "timm_vit" else f"{qkv}.in_proj_weight"
    assert spec.groups[f"{qkv}:blocks"].shape == (4,)
    one, two = (group for group in spec.groups.values() if group.parent == f"{qkv}:blocks")
    assert one.shape == two.shape == (4, 6)
    queries_keys, values = ({(a.tensor, a.axis): a.index for a in group.acts} for group in (one, two))
    for h, j in np.ndindex(4, 6):
        assert sorted(queries_keys[weight, 0][h, j]) == [6 * h + j, 24 + 6 * h + j]
        assert values[weight, 0][h, j].tolist() == [48 + 6 * h + j]
        assert values[f"{out}.weight", 1][h, j].tolist() == [6 * h + j]
    assert (f"{out}.weight", 1) not in queries_keys
    assert spec.notices == ()
    stream = [
        g for g in spec.groups.values() if any(a.tensor == f"{out}.weight" and a.axis == 0 for a in g.acts)
    ]
    assert [group.shape for group in stream] == [(24,)]
    assert {(weight, 1), ("pos_embed" if name == "timm_vit" else "encoder.pos_embedding", 2)} <= {
        (act.tensor, act.axis) for act in stream[0].acts
    }


def test_what_all_heads_share_keeps_its_order_inside_them():
    model, images = built("timm_vit", qk_norm=True)
    spec = permutation_spec(model, images)
    blocks = "blocks.0.attn.qkv:blocks"
    assert spec.groups[blocks].shape == (4,)
    assert spec.groups[blocks].acts[0].index.shape == (4, 12)  # queries and keys move with their head
    assert [group.shape for group in spec.groups.values() if group.parent == blocks] == [(4, 6)]
    assert any("q_norm.weight" in notice and "serves all heads" in notice for notice in spec.notices)


def test_group_norm_moves_groups_and_channels_inside_them():
    model, images = built("group_norm")
    spec = permutation_spec(model, images)
    assert spec.groups["featurizer.conv1:blocks"].shape == (8,)
    inner = spec.groups["featurizer.conv1:within"]
    assert inner.parent == "featurizer.conv1:blocks"
    assert inner.acts[0].index[..., 0].tolist() == [[2 * i, 2 * i + 1] for i in range(8)]


def test_input_and_logits_stay():
    model, images = built("resnet")
    spec = permutation_spec(model, images)
    moved = {(act.tensor, act.axis) for group in spec.groups.values() for act in group.acts}
    assert ("featurizer.conv1.weight", 0) in moved
    assert ("featurizer.conv1.weight", 1) not in moved
    assert ("classifier.weight", 1) in moved
    assert not moved & {("classifier.weight", 0), ("classifier.bias", 0)}


class Pair(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(3, 4), nn.Linear(4, 2), kind

    def forward(self, x):
        features = self.a(x)
        return self.kind(features, self.b(features))


def test_all_outputs_stay_but_features():
    def moving(kind):
        return list(permutation_spec(Pair(kind), torch.zeros(1, 3)).groups)

    assert moving(Outputs) == ["a"]
    assert moving(lambda features, logits: logits) == ["a"]
    assert moving(lambda features, logits: (features, logits)) == []
    assert moving(lambda features, logits: {"x": [features, {"y": logits}]}) == []


def test_a_grouped_convolution_freezes_what_it_touches_and_says_so():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    spec = permutation_spec(model, torch.zeros(1, 3, 4, 4))
    assert shapes(spec) == {"2": (4,)}
    assert spec.notices == (
        "channels of '0.weight', '0.bias', '1.weight', '1.bias' and 1 more keep their order: "
        "a convolution of 2 groups.",
    )


class Recurrent(nn.Module):
    """``x + W x``: the group acts on both axes of ``W``."""

    def __init__(self):
        super().__init__()
        self.a, self.w, self.b = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.a(x)
        return self.b(x + self.w(x))


class Tied(nn.Module):
    """One matrix, read as rows here and as columns there."""

    def __init__(self):
        super().__init__()
        self.a, self.w, self.b = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b((self.w(self.a(x)).relu() @ self.w.weight.T).relu())


@pytest.mark.parametrize("kind", [Recurrent, Tied])
def test_one_group_on_two_axes_of_a_tensor_is_frozen(kind):
    spec = permutation_spec(kind(), torch.zeros(1, 3))
    assert spec.groups == {}
    assert "two axes of 'w.weight'" in spec.notices[0]


def test_tied_tensors_move_under_all_their_names():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 2))
    model[3].weight = model[1].weight
    spec = permutation_spec(model, torch.zeros(1, 3))
    assert places(spec, "0") == [
        ("0.weight", 0),
        ("0.bias", 0),
        ("1.weight", 0),
        ("1.bias", 0),
        ("3.weight", 0),
        ("3.bias", 0),
        ("4.weight", 1),
    ]


def test_what_the_forward_pass_does_not_use_is_named_and_stays():
    model, images = built("mlp")
    model.spare = nn.Linear(8, 2)
    model.forward = model[:5].forward
    spec = permutation_spec(model, images)
    assert shapes(spec) == {"0": (8,), "2": (6,)}
    assert not any(act.tensor.startswith("spare") for group in spec.groups.values() for act in group.acts)
    assert spec.notices == (
        "'spare.weight', 'spare.bias': stays as it is, because the forward pass does not use it.",
    )


def test_the_model_keeps_weights_and_modes():
    model, images = built("vgg")
    model.train()
    model.classifier.eval()
    before, modes = weights(model), [module.training for module in model.modules()]
    permutation_spec(model, images)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.backends.mha.get_fastpath_enabled()


def test_shapes_are_enough():
    spec = NetworkSpec(name="cifar_resnet20", classes=3)
    empty = permutation_spec(spec.build_empty(), torch.zeros(1, 3, 16, 16, device="meta"))
    full = permutation_spec(spec.build(), torch.zeros(4, 3, 16, 16))
    assert shapes(empty) == shapes(full)
    for name in full.groups:
        for a, b in zip(empty.groups[name].acts, full.groups[name].acts, strict=True):
            assert (a.tensor, a.axis) == (b.tensor, b.axis)
            assert np.array_equal(a.index, b.index)


def test_random_permutations_depend_on_the_generator_alone():
    model, images = built("timm_vit")
    spec = permutation_spec(model, images)
    one, two, three = (spec.random(np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(one[name], two[name]) for name in spec.groups)
    assert any(not np.array_equal(one[name], three[name]) for name in spec.groups)
    rows = one["blocks.0.attn.qkv:within"]
    assert not (rows == rows[0]).all()  # each head has an order of its own


def test_the_inverse_of_blocks_is_hand_checked():
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1)))
    spec = permutation_spec(model, torch.zeros(1, 3, 2, 2).double())
    inverse = spec.inverse({"0:blocks": np.array([1, 0]), "0:within": np.array([[1, 0], [0, 1]])})
    # Block 0 of the result was block 1, turned; so to undo it, block 1 is turned.
    assert inverse["0:blocks"].tolist() == [1, 0]
    assert inverse["0:within"].tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("wrong", [torch.zeros(0, 3), torch.tensor(1.0), [1, 2]])
def test_a_sample_is_needed(wrong):
    with pytest.raises(InputError, match="at least one sample, got shape"):
        permutation_spec(nn.Linear(3, 2), wrong)
