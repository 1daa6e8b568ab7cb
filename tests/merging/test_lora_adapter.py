from __future__ import annotations

import json

import numpy as np
import pytest
from tests.merging.lora_files import PREFIX, SHAPES, arrays, changes, close, config, save

from mirepoix.merging._lora_adapter import LoraAdapter, adapter_delta, open_adapter
from mirepoix.types import InputError


def deltas(folder, **options):
    adapter = open_adapter(folder)
    return {module: adapter_delta(adapter, module, **options) for module in adapter.layers}


def test_the_change_of_each_kind_of_layer_is_the_scaled_product_of_its_factors(tmp_path):
    folder = save(tmp_path / "a", arrays(np.random.default_rng(0)), lora_alpha=5)
    close(deltas(folder), changes(folder), 1e-12)
    adapter = open_adapter(folder)
    assert {module: adapter_delta(adapter, module).shape for module in SHAPES} == SHAPES
    assert not adapter.uses_dora
    assert repr(adapter) == f"LoraAdapter({str(folder)!r}): 4 layers"
    adapter.close()


def test_the_scale_is_alpha_over_the_rank_or_over_its_root_with_rslora(tmp_path):
    tensors = arrays(np.random.default_rng(0), {"fc": (5, 8)}, ranks=4)
    plain = open_adapter(save(tmp_path / "a", tensors, r=4, lora_alpha=6))
    stable = open_adapter(save(tmp_path / "b", tensors, r=4, lora_alpha=6, use_rslora=True))
    assert plain.layers["fc"].scale == 1.5
    assert stable.layers["fc"].scale == 3.0
    np.testing.assert_allclose(adapter_delta(stable, "fc"), 2 * adapter_delta(plain, "fc"), rtol=1e-15)


def test_patterns_fit_the_end_of_a_name_and_the_first_wins():
    shapes = {"fc": (5, 8), "block.fc": (8, 6), "blockfc": (3, 4), "layers.1.q": (3, 4)}
    ranks = {"fc": 3, "block.fc": 3, "blockfc": 2, "layers.1.q": 4}
    settings = config(
        rank_pattern={"fc": 3, "block.fc": 7, r"layers\.\d+\.q": 4},
        alpha_pattern={"^block.fc": 9, "fc": 6},
    )
    layers = LoraAdapter(settings, arrays(np.random.default_rng(0), shapes, ranks)).layers
    assert {name: layer.rank for name, layer in layers.items()} == ranks
    scales = {name: layer.scale for name, layer in layers.items()}
    assert scales == {"fc": 2.0, "block.fc": 3.0, "blockfc": 1.5, "layers.1.q": 0.75}


def test_the_projection_inside_an_attention_has_its_settings():
    shapes = {"attn": (18, 6), "attn.base_layer.out_proj": (6, 6)}
    adapter = LoraAdapter(config(rank_pattern={"attn": 4}), arrays(np.random.default_rng(0), shapes, ranks=4))
    assert [layer.rank for layer in adapter.layers.values()] == [4, 4]
    with pytest.raises(InputError, match="depends on the version of PEFT"):
        adapter_delta(adapter, "attn.base_layer.out_proj")


def test_fan_in_fan_out_turns_linear_layers_only(tmp_path):
    rng = np.random.default_rng(0)
    folder = save(tmp_path / "a", arrays(rng), fan_in_fan_out=True)
    expected = changes(folder)
    close(deltas(folder), {k: v.T if "fc" in k else v for k, v in expected.items()}, 1e-12)
    close(deltas(folder, transposed=False), expected, 1e-12)


def test_sixteen_bit_factors_are_read_exactly_and_torch_files_too(tmp_path):
    import torch

    tensors = {
        name: torch.from_numpy(value).to(torch.bfloat16)
        for name, value in arrays(np.random.default_rng(0)).items()
    }
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config()))
    torch.save(tensors, folder / "adapter_model.bin")
    adapter = open_adapter(folder)
    assert {layer.code for layer in adapter.layers.values()} == {"BF16"}
    b, a = adapter.factors("conv")
    assert (b == tensors[PREFIX + "conv.lora_B.weight"].double().numpy().reshape(4, 2)).all()
    assert (a == tensors[PREFIX + "conv.lora_A.weight"].double().numpy().reshape(2, 18)).all()


def test_what_is_no_factor_is_listed_and_value_heads_are_dropped():
    tensors = arrays(np.random.default_rng(0)) | {
        PREFIX + "head.weight": np.ones(3, np.float32),
        "v_head.summary.weight": np.ones(3, np.float32),
    }
    adapter = LoraAdapter(config(), tensors)
    assert adapter.others == [PREFIX + "head.weight"]
    assert adapter.dropped == ["v_head.summary.weight"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "expected a LoRA adapter, got peft_type 'IA3'"),
        ({"r": "2"}, "expected numbers r and lora_alpha"),
        ({"r": True}, "expected numbers r and lora_alpha"),
        ({"lora_alpha": None}, "expected numbers r and lora_alpha"),
        ({"r": 3}, "block.fc has rank 2, but adapter_config.json says 3"),
        ({"rank_pattern": {"conv": 4}}, "conv has rank 2, but adapter_config.json says 4"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern has '\\(', no regular expression"),
        ({"target_parameters": ["experts.w"]}, "adapts parameters instead of layers"),
        ({"trainable_token_indices": [1]}, "replaces single tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base it was trained on"),
        ({"init_lora_weights": "loftq"}, "changed the base it was trained on"),
        ({"use_dora": True}, "block.fc has no magnitudes, but adapter_config.json says use_dora True"),
    ],
)
def test_settings_that_mean_another_change_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        LoraAdapter(config(**settings), arrays(np.random.default_rng(0)), "mine")


@pytest.mark.parametrize("start", [False, "gaussian", "eva"])
def test_starts_that_leave_the_base_alone_are_read(start):
    assert LoraAdapter(config(init_lora_weights=start), arrays(np.random.default_rng(0))).layers


FC = PREFIX + "fc.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({FC + "B.weight": None}, "fc has lora_A.weight without lora_B.weight"),
        ({FC + "A.weight": None}, "fc has lora_B.weight without lora_A.weight"),
        ({FC + "A.default.weight": np.ones(2)}, "got 'base_model.model.fc.lora_A.default.weight'"),
        ({"unet.fc.lora_A.weight": np.ones(2)}, "save_pretrained"),
        ({FC + "B.weight": np.ones((5, 3))}, "whose ranks differ. Save it again"),
        ({FC + "B.weight": np.ones(10)}, "factors of shapes \\(2, 8\\) and \\(10,\\)"),
        ({FC + "A.weight": np.ones((0, 8))}, "Gather the shards"),
        ({FC + "A.weight": np.ones((2, 8), np.int8)}, "has dtype I8, expected floats"),
        ({PREFIX + "conv.lora_B.weight": np.ones((4, 1, 1, 1))}, "Convolutions in groups cannot be merged"),
        ({PREFIX + "conv.lora_B.weight": np.ones((4, 2, 3, 1))}, "for a convolution with a kernel"),
    ],
)
def test_tensors_that_are_no_pair_of_factors_are_refused(change, message):
    tensors = arrays(np.random.default_rng(0)) | change
    with pytest.raises(InputError, match=message):
        LoraAdapter(config(), {name: value for name, value in tensors.items() if value is not None}, "mine")


def test_an_adapter_without_factors_is_none():
    with pytest.raises(InputError, match="mine: expected factors lora_A and lora_B, got none"):
        LoraAdapter(config(), {PREFIX + "head.weight": np.ones(3)}, "mine")


def test_values_that_are_not_finite_are_refused_by_name():
    tensors = arrays(np.random.default_rng(0))
    tensors[FC + "A.weight"][0, 0] = np.nan
    with pytest.raises(InputError, match=r"mine: 'base_model.model.fc.lora_A.weight' holds NaN"):
        LoraAdapter(config(), tensors, "mine").factors("fc")


def test_folders_that_hold_no_adapter_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"got no adapter_config.json"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(InputError, match="expected settings by name, got a list"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config()))
    with pytest.raises(InputError, match=r"expected adapter_model.safetensors beside"):
        open_adapter(tmp_path)


def test_a_change_that_is_not_there_or_depends_on_the_base_is_refused():
    tensors = arrays(np.random.default_rng(0), {"fc": (5, 8)})
    with pytest.raises(InputError, match="'q' is not adapted, expected one of 'fc'"):
        adapter_delta(LoraAdapter(config(), tensors), "q")
    tensors[PREFIX + "fc.lora_magnitude_vector"] = np.ones(5, np.float32)
    adapter = LoraAdapter(config(use_dora=True), tensors)
    assert adapter.uses_dora
    with pytest.raises(InputError, match="Use merge_into_base"):
        adapter_delta(adapter, "fc")
