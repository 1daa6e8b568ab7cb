from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.merging.lora_files import (
    PREFIX,
    SHAPES,
    arrays,
    change,
    changes,
    close,
    combine,
    config,
    read,
    save,
    scale,
)

from mirepoix.checkpoints import open_weights, write_weights
from mirepoix.merging._lora import merge_adapters
from mirepoix.merging._lora_adapter import LoraAdapter, open_adapter
from mirepoix.types import InputError

HEAD = PREFIX + "head.weight"


def several(tmp_path, count=2, *, ranks=None, dtype=np.float32, **settings):
    """Unrelated random adapters."""
    ranks = ranks or [2] * count
    return [
        save(
            tmp_path / f"member{i}",
            arrays(np.random.default_rng(i), ranks=ranks[i], dtype=dtype),
            r=ranks[i],
            **{name: values[i] for name, values in settings.items()},
        )
        for i in range(count)
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("coefficients", [(0.5, 0.3, 0.2), (2.0, -0.7, 1.5), (1, -1, 1), (0, 0, 0)])
def test_cat_is_the_exact_sum_for_any_coefficients_and_ranks(tmp_path, dtype, tolerance, coefficients):
    folders = several(
        tmp_path, 3, ranks=[1, 2, 3], dtype=dtype, lora_alpha=[3, 7, 4], use_rslora=[True, False, True]
    )
    report = merge_adapters(folders, tmp_path / "out", coefficients)
    close(changes(tmp_path / "out"), combine(folders, coefficients), tolerance)
    settings, tensors = read(tmp_path / "out")
    assert settings["use_rslora"] is False
    assert {value.dtype for value in tensors.values()} == {np.dtype(dtype)}
    assert (report.mode, report.lost_energy) == ("cat", 0.0)
    for layer in report.layers:
        exact = combine(folders, coefficients)[layer.module]
        assert layer.norm == pytest.approx(np.linalg.norm(exact), rel=1e-6)
        assert (layer.coefficients, layer.ranks) == (coefficients, (1, 2, 3))
        assert layer.rank == (6 if any(coefficients) else 1)


@given(
    coefficients=st.lists(st.floats(-2, 2, allow_subnormal=False), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_cat_is_the_exact_sum_whatever_is_merged(tmp_path_factory, coefficients, seed, data):
    rng, shapes = np.random.default_rng(seed), {"fc": (4, 5), "emb": (3, 4)}
    folder, members = tmp_path_factory.mktemp("law"), []
    for i, _ in enumerate(coefficients):
        r = data.draw(st.integers(1, 3))
        settings = {
            "r": r,
            "lora_alpha": data.draw(st.integers(1, 9)),
            "use_rslora": data.draw(st.booleans()),
        }
        members.append(save(folder / f"member{i}", arrays(rng, shapes, r, np.float64), **settings))
    merge_adapters(members, folder / "out", coefficients)
    close(changes(folder / "out", shapes), combine(members, coefficients, shapes), 1e-12)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_one_times_one_adapter_gives_that_adapter_back(tmp_path, use_rslora):
    rng = np.random.default_rng(0)
    tensors = arrays(rng, ranks={"conv": 3}) | {HEAD: rng.normal(size=(3, 5)).astype(np.float32)}
    settings = {
        "use_rslora": use_rslora,
        "rank_pattern": {"conv": 3},
        "alpha_pattern": {"fc": 5.5},
        "modules_to_save": ["head"],
        "init_lora_weights": "eva",
    }
    one = save(tmp_path / "one", tensors, **settings)
    two = save(tmp_path / "two", arrays(rng, ranks={"conv": 3}) | {HEAD: tensors[HEAD] + 1}, **settings)
    for number, (members, coefficients) in enumerate(
        [([one], [1]), ([one, two], [1, 0]), ([two, one], [0, 1])]
    ):
        merge_adapters(members, tmp_path / f"out{number}", coefficients)
        merged, values = read(tmp_path / f"out{number}")
        assert merged == read(one)[0]
        assert values.keys() == tensors.keys()
        assert all((values[name] == tensors[name]).all() for name in tensors)


@pytest.mark.parametrize("mode", ["cat", "svd", "factor"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_average_of_copies_is_the_copy(tmp_path, mode, use_rslora):
    one = several(tmp_path, 1, use_rslora=[use_rslora])[0]
    for name, coefficients in (("half", [0.5, 0.5]), ("uneven", [0.8, 0.2]), ("uniform", None)):
        report = merge_adapters([one, one], tmp_path / name, coefficients, mode=mode)
        close(changes(tmp_path / name), changes(one))
        assert report.lost_energy == pytest.approx(0, abs=1e-12)


def test_a_uniform_average_of_equals_rounds_no_factor(tmp_path):
    import torch

    folders = []
    for i in range(3):
        tensors = arrays(np.random.default_rng(i))
        folder = save(tmp_path / f"member{i}", tensors, lora_alpha=5)
        tensors = {name: torch.from_numpy(value).to(torch.bfloat16) for name, value in tensors.items()}
        write_weights(folder / "adapter_model.safetensors", tensors)
        folders.append(folder)
    merge_adapters(folders, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["rank_pattern"]) == (6, 5, {})
    merged = open_weights(tmp_path / "out" / "adapter_model.safetensors")
    thetas = [open_weights(folder / "adapter_model.safetensors") for folder in folders]
    for module in SHAPES:
        a, b = (
            ("lora_embedding_A", "lora_embedding_B")
            if module == "emb"
            else ("lora_A.weight", "lora_B.weight")
        )
        for part, axis in ((a, 0), (b, 1)):
            name = f"{PREFIX}{module}.{part}"
            assert merged[name].dtype == torch.bfloat16
            assert torch.equal(merged[name], torch.cat([theta[name] for theta in thetas], dim=axis))


def test_a_pattern_in_the_result_fits_its_module_alone(tmp_path):
    shapes = {"fc": (5, 8), "block.fc": (8, 6), "block_fc": (3, 4), "q": (3, 4), "a.q": (3, 4)}
    ranks = [{"fc": 1, "block.fc": 3, "block_fc": 2, "q": 2, "a.q": 2}, {}]
    folders = [
        save(
            tmp_path / f"member{i}",
            arrays(np.random.default_rng(i), shapes, ranks[i]),
            rank_pattern={f"^{re.escape(name)}": r for name, r in ranks[i].items()},
            alpha_pattern={"a.q": 8} if i else {},
        )
        for i in range(2)
    ]
    merge_adapters(folders, tmp_path / "out", [0.75, 0.5])
    settings, _ = read(tmp_path / "out")
    assert settings["r"] == 4
    assert settings["rank_pattern"] == {"^fc": 3, "^block\\.fc": 5}
    assert settings["alpha_pattern"] == {"^fc": 3, "^block\\.fc": 3.75}  # both count 0.75 there
    close(changes(tmp_path / "out", shapes), combine(folders, [0.75, 0.5], shapes))
    assert open_adapter(tmp_path / "out").layers["a.q"].rank == 4


def test_a_pair_in_one_attention_keeps_one_rank(tmp_path):
    shapes = {"attn": (18, 6), "attn.base_layer.out_proj": (6, 6), "fc": (3, 6), "q": (3, 6), "v": (3, 6)}
    folders = [
        save(
            tmp_path / f"member{i}",
            arrays(np.random.default_rng(i), shapes, {"attn": 3, "attn.base_layer.out_proj": 3}),
            rank_pattern={"attn": 3},
        )
        for i in range(2)
    ]
    numbers = [0.3, [("attn$", 0.9), ("", 0.1)]]
    merge_adapters(folders, tmp_path / "out", numbers)
    assert read(tmp_path / "out")[0]["rank_pattern"] == {"^attn": 6}
    layers = open_adapter(tmp_path / "out").layers
    assert layers["attn.base_layer.out_proj"].rank == 6
    merged = merge_adapters(folders, tmp_path / "again", numbers).layers
    assert {x.module: x.coefficients for x in merged}["attn.base_layer.out_proj"] == (0.3, 0.9)


def test_coefficients_by_name_and_by_layer(tmp_path):
    a, b = several(tmp_path)
    numbers = {"x": lambda module: 0.25 if module == "fc" else 0.0, "y": [("conv", -1), ("", 2.0)]}
    merge_adapters({"x": a, "y": b}, tmp_path / "out", numbers)
    expected = {
        module: (0.25 if module == "fc" else 0) * change(a, module)
        + (-1 if module == "conv" else 2) * change(b, module)
        for module in SHAPES
    }
    close(changes(tmp_path / "out"), expected)
    assert read(tmp_path / "out")[0]["rank_pattern"] == {"^fc": 4}
    assert "mirepoix.coefficients" not in open_weights(tmp_path / "out").metadata
    merge_adapters({"x": a, "y": b}, tmp_path / "plain", {"y": 0.75, "x": 0.25})
    close(changes(tmp_path / "plain"), combine([a, b], [0.25, 0.75]))
    metadata = open_weights(tmp_path / "plain" / "adapter_model.safetensors").metadata
    assert json.loads(metadata["mirepoix.coefficients"]) == {"x": 0.25, "y": 0.75}
    assert metadata["mirepoix.method"] == "lora-cat"


def test_adapters_in_memory_are_merged_like_folders(tmp_path):
    folders = several(tmp_path)
    merge_adapters(folders, tmp_path / "out", [0.5, 0.25])
    merge_adapters([LoraAdapter(*read(folder)) for folder in folders], tmp_path / "memory", [0.5, 0.25])
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("out", "memory")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_singular_values_that_are_cut_off_are_the_lost_energy(tmp_path):
    folders = several(tmp_path, 3, ranks=[2, 1, 2], dtype=np.float64, use_rslora=[False, True, False])
    report = merge_adapters(folders, tmp_path / "out", [0.5, -0.25, 1.0], mode="svd", rank=3)
    exact, merged = combine(folders, [0.5, -0.25, 1.0]), changes(tmp_path / "out")
    total = lost = 0
    for layer in report.layers:
        dense = exact[layer.module].reshape(len(exact[layer.module]), -1)
        values = np.linalg.svd(dense, compute_uv=False)
        assert layer.rank == 3
        assert layer.lost_energy == pytest.approx((values[3:] ** 2).sum() / (values**2).sum(), rel=1e-9)
        error = np.linalg.norm(merged[layer.module] - exact[layer.module])
        assert error == pytest.approx(layer.error, rel=1e-9)
        assert error == pytest.approx(np.sqrt((values[3:] ** 2).sum()), rel=1e-9)
        total, lost = total + (values**2).sum(), lost + (values[3:] ** 2).sum()
    assert report.lost_energy == pytest.approx(lost / total, rel=1e-9)


def test_the_truncation_is_exact_from_the_sum_of_the_ranks_on(tmp_path):
    folders = several(tmp_path, 2, ranks=[1, 3], dtype=np.float64)
    report = merge_adapters(folders, tmp_path / "out", [0.5, -2.0], mode="svd", rank=9)
    close(changes(tmp_path / "out"), combine(folders, [0.5, -2.0]), 1e-12)
    assert report.lost_energy == 0
    assert [layer.rank for layer in report.layers] == [4, 4, 4, 4]
    default = merge_adapters(folders, tmp_path / "default", mode="svd")
    assert [layer.rank for layer in default.layers] == [3, 3, 3, 3]
    assert default.lost_energy > 0.001


def test_averaged_factors_miss_the_soup_by_the_cross_terms(tmp_path):
    folders = several(tmp_path, 3, dtype=np.float64, lora_alpha=[3, 3, 3])
    weights = [0.5, 0.2, 0.3]
    report = merge_adapters(folders, tmp_path / "out", weights, mode="factor")
    exact, merged = combine(folders, weights), changes(tmp_path / "out")
    pairs = [open_adapter(folder).factors("fc") for folder in folders]
    mean_b, mean_a = (sum(w * pair[i] for w, pair in zip(weights, pairs, strict=True)) for i in (0, 1))
    cross = 1.5 * sum(w * (b - mean_b) @ (a - mean_a) for w, (b, a) in zip(weights, pairs, strict=True))
    np.testing.assert_allclose(merged["fc"], exact["fc"] - cross, rtol=1e-12, atol=1e-12)
    for layer in report.layers:
        wrong = np.linalg.norm(merged[layer.module] - exact[layer.module])
        assert layer.error == pytest.approx(wrong, rel=1e-9)
        assert layer.lost_energy == pytest.approx(
            (wrong / np.linalg.norm(exact[layer.module])) ** 2, rel=1e-9
        )


def test_averaged_factors_of_two_miss_by_the_product_of_their_differences(tmp_path):
    folders = several(tmp_path, 2, dtype=np.float64, lora_alpha=[2, 2])
    merge_adapters(folders, tmp_path / "out", [0.3, 0.7], mode="factor")
    (b1, a1), (b2, a2) = (open_adapter(folder).factors("fc") for folder in folders)
    got = change(tmp_path / "out", "fc") - combine(folders, [0.3, 0.7])["fc"]
    np.testing.assert_allclose(got, -0.3 * 0.7 * (b1 - b2) @ (a1 - a2), atol=1e-13)


def test_averaged_factors_need_equal_ranks_scales_and_an_average(tmp_path):
    a, b = several(tmp_path, lora_alpha=[3, 4])
    with pytest.raises(InputError, match=r"same rank and scale in all adapters, got 2 and 1.5, 2 and 2"):
        merge_adapters([a, b], tmp_path / "out", mode="factor")
    with pytest.raises(InputError, match=r"sum to one, got \[0.5, 0.6\].* Use mode='cat'"):
        merge_adapters([a, a], tmp_path / "out", [0.5, 0.6], mode="factor")


def test_the_bias_of_a_factor_is_scaled_like_its_product(tmp_path):
    name, folders = PREFIX + "fc.lora_B.bias", []
    for i in range(2):
        rng = np.random.default_rng(i)
        tensors = arrays(rng, {"fc": (5, 8)}, dtype=np.float64) | {name: rng.normal(size=5)}
        folders.append(save(tmp_path / f"member{i}", tensors, lora_bias=True, lora_alpha=3 + i))
    expected = sum(
        c * scale(read(f)[0], "fc") * read(f)[1][name] for f, c in zip(folders, [0.7, -1.1], strict=True)
    )
    for mode in ("cat", "svd"):
        merge_adapters(folders, tmp_path / mode, [0.7, -1.1], mode=mode)
        settings, tensors = read(tmp_path / mode)
        assert settings["lora_bias"] is True
        np.testing.assert_allclose(scale(settings, "fc") * tensors[name], expected, rtol=1e-12)
    mean = read(folders[0])[1][name] * 0.25 + read(folders[0])[1][name] * 0.75
    merge_adapters([folders[0]] * 2, tmp_path / "factor", [0.25, 0.75], mode="factor")
    np.testing.assert_allclose(read(tmp_path / "factor")[1][name], mean, rtol=1e-12)


def with_others(tmp_path, *others, **settings):
    return [
        save(tmp_path / f"member{i}", arrays(np.random.default_rng(i)) | tensors, **settings)
        for i, tensors in enumerate(others)
    ]


def test_heads_and_biases_are_averaged_plainly(tmp_path):
    bias, copy = PREFIX + "fc.base_layer.bias", PREFIX + "emb.base_layer.weight"
    count = PREFIX + "head.norm.num_batches_tracked"
    folders = with_others(
        tmp_path,
        {HEAD: np.float32([1, 2]), bias: np.float32([4]), copy: np.float32([7]), count: np.int64(3)},
        {HEAD: np.float32([3, -2]), bias: np.float32([8]), copy: np.float32([7]), count: np.int64(300)},
        modules_to_save=["head"],
        bias="all",
    )
    for mode in ("cat", "svd", "factor"):
        report = merge_adapters(folders, tmp_path / mode, [0.25, 0.75], mode=mode)
        settings, tensors = read(tmp_path / mode)
        assert tensors[HEAD].tolist() == [2.5, -1.0]
        assert tensors[bias].tolist() == [7.0]
        assert tensors[copy].tolist() == [7.0]
        assert tensors[count] == 300
        assert set(report.averaged) == {HEAD, bias, copy, count}
        assert (settings["modules_to_save"], settings["bias"]) == (["head"], "all")


def test_what_is_saved_whole_needs_an_average_and_the_same_tensors(tmp_path):
    a, b = with_others(tmp_path, {HEAD: np.float32([1, 2])}, {HEAD: np.float32([3, 4])})
    with pytest.raises(
        InputError, match=r"head.weight: expected coefficients that sum to one, got \[1.0, -0.5\]"
    ):
        merge_adapters([a, b], tmp_path / "out", [1.0, -0.5])
    (tmp_path / "c").mkdir()
    (c,) = with_others(tmp_path / "c", {})
    with pytest.raises(
        InputError, match=r"not trained on the same besides factors: 'base_model.model.head.weight' is"
    ):
        merge_adapters([a, c], tmp_path / "out", strict=False)
    (tmp_path / "d").mkdir()
    (d,) = with_others(tmp_path / "d", {HEAD: np.float32([3, 4, 5])})
    with pytest.raises(InputError, match=r"head.weight: has shape \(2,\) of F32 .* They need the same head"):
        merge_adapters([a, d], tmp_path / "out")
    name = PREFIX + "emb.base_layer.weight"
    (tmp_path / "e").mkdir()
    pair = with_others(tmp_path / "e", {name: np.float32([1])}, {name: np.float32([2])})
    with pytest.raises(InputError, match="is the base's own weight, but differs"):
        merge_adapters(pair, tmp_path / "out")
    name = PREFIX + "head.steps"
    (tmp_path / "f").mkdir()
    pair = with_others(tmp_path / "f", {name: np.int64([1])}, {name: np.int64([2])})
    with pytest.raises(InputError, match=r"head.steps: holds integers that differ"):
        merge_adapters(pair, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_value_head_is_dropped_and_reported(tmp_path):
    folders = with_others(tmp_path, {"v_head.summary.weight": np.float32([1])}, {})
    assert merge_adapters(folders, tmp_path / "out").dropped == ("v_head.summary.weight",)
    assert read(tmp_path / "out")[1].keys() == arrays(np.random.default_rng(0)).keys()


def test_layers_that_differ_are_refused_or_changed_by_nothing(tmp_path):
    rng = np.random.default_rng(0)
    a = save(tmp_path / "a", arrays(rng, {"fc": (5, 8), "q.x": (3, 4)}), layers_pattern="layers")
    b = save(tmp_path / "b", arrays(rng, {"fc": (5, 8), "v": (2, 3)}))
    with pytest.raises(InputError, match=r"adapts 1 layers that .*b does not: 'q.x'. Pass strict=False"):
        merge_adapters([a, b], tmp_path / "out")
    report = merge_adapters([a, b], tmp_path / "out", [0.25, 0.75], strict=False)
    expected = {
        "fc": 0.25 * change(a, "fc") + 0.75 * change(b, "fc"),
        "q.x": 0.25 * change(a, "q.x"),
        "v": 0.75 * change(b, "v"),
    }
    close(changes(tmp_path / "out", expected), expected)
    assert {layer.module: layer.ranks for layer in report.layers} == {
        "fc": (2, 2),
        "q.x": (2, 0),
        "v": (0, 2),
    }
    settings, _ = read(tmp_path / "out")
    assert settings["target_modules"] == r"fc|q\.x|v"
    assert settings["layers_pattern"] is None


def test_adapters_of_different_bases_or_layers_are_refused(tmp_path):
    a, b = several(tmp_path, base_model_name_or_path=["x", "y"], revision=[None, None])
    with pytest.raises(InputError, match="have different bases, 'x' and 'y'"):
        merge_adapters([a, b], tmp_path / "out")
    merge_adapters([a, b], tmp_path / "out", same_base=False)
    close(changes(tmp_path / "out"), combine([a, b], [0.5, 0.5]))
    c = save(tmp_path / "c", arrays(np.random.default_rng(0)), base_model_name_or_path="x", revision="v2")
    with pytest.raises(InputError, match="'x' and 'x' at v2"):
        merge_adapters([a, c], tmp_path / "again")
    d = save(
        tmp_path / "d", arrays(np.random.default_rng(0), SHAPES | {"fc": (5, 7)}), base_model_name_or_path="x"
    )
    with pytest.raises(InputError, match=r"fc has factors of shapes .*They were trained on different layers"):
        merge_adapters([a, d], tmp_path / "again")


def test_dora_and_tied_factors_cannot_become_an_adapter(tmp_path):
    magnitude = PREFIX + "fc.lora_magnitude_vector"
    tensors = arrays(np.random.default_rng(0), {"fc": (5, 8)}) | {magnitude: np.ones(5, np.float32)}
    dora = save(tmp_path / "dora", tensors, use_dora=True)
    for mode in ("cat", "svd", "factor"):
        with pytest.raises(InputError, match=r"uses DoRA, which is not linear .* Use merge_into_base"):
            merge_adapters([dora], tmp_path / "out", [1.0], mode=mode)
    (tied,) = several(tmp_path, 1, ensure_weight_tying=[True])
    with pytest.raises(InputError, match="ties its factors"):
        merge_adapters([tied], tmp_path / "out")


def test_the_dtype_is_the_wider_one_or_the_one_asked_for(tmp_path):
    wide = save(tmp_path / "wide", arrays(np.random.default_rng(0), dtype=np.float64))
    half = save(tmp_path / "half", arrays(np.random.default_rng(1), dtype=np.float16))
    merge_adapters([half, wide], tmp_path / "out", [0.3, 0.7])
    assert {x.dtype.name for x in read(tmp_path / "out")[1].values()} == {"float64"}
    close(changes(tmp_path / "out"), combine([half, wide], [0.3, 0.7]), 1e-12)
    merge_adapters([half, half], tmp_path / "narrow", [0.3, 0.7])
    assert {x.dtype.name for x in read(tmp_path / "narrow")[1].values()} == {"float16"}
    merge_adapters([half, half], tmp_path / "asked", [0.3, 0.7], dtype="float32")
    assert {x.dtype.name for x in read(tmp_path / "asked")[1].values()} == {"float32"}
    close(changes(tmp_path / "asked"), changes(half))
    merge_adapters([half], tmp_path / "single", [1.0], dtype="float64")
    assert {x.dtype.name for x in read(tmp_path / "single")[1].values()} == {"float64"}
    with pytest.raises(InputError, match="expected one of float64, float32, float16, bfloat16, got 'int8'"):
        merge_adapters([half], tmp_path / "again", dtype="int8")


def test_a_result_beyond_the_dtype_is_refused_and_nothing_stays(tmp_path):
    half = several(tmp_path, dtype=np.float16)
    with pytest.raises(InputError, match=r"lora_B.weight' is not finite after merging in float16"):
        merge_adapters(half, tmp_path / "out", [1e6, 1.0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["member0", "member1"]


def test_the_folder_is_new_or_replaced_on_request_and_never_an_input(tmp_path):
    a, b = several(tmp_path)
    before = {path: path.read_bytes() for folder in (a, b) for path in folder.iterdir()}
    merge_adapters([a, b], tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(InputError, match=r"exists already. Name another folder, or pass overwrite=True"):
        merge_adapters([a, b], tmp_path / "out")
    merge_adapters([a, b], tmp_path / "out", [2.0, 0.5], overwrite=True)
    close(changes(tmp_path / "out"), combine([a, b], [2.0, 0.5]))
    with pytest.raises(InputError, match="is one of the inputs"):
        merge_adapters([a, b], a, overwrite=True)
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="this one holds no adapter"):
        merge_adapters([a, b], tmp_path / "mine", overwrite=True)
    with pytest.raises(InputError, match=r"does not exist. Create it first"):
        merge_adapters([a, b], tmp_path / "no" / "out")
    assert before == {path: path.read_bytes() for folder in (a, b) for path in folder.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["member0", "member1", "mine", "out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "linear"}, "mode: expected one of cat, svd, factor, got 'linear'"),
        ({"rank": 2}, "rank: expected a whole number from 1 with mode='svd', got 2 with mode='cat'"),
        ({"rank": 0, "mode": "svd"}, "rank: expected a whole number from 1"),
        ({"coefficients": [1.0]}, "expected one coefficient per member, got 1 for 2"),
        ({"coefficients": [1.0, float("nan")]}, "expected finite numbers"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path, options, message):
    adapters = [LoraAdapter(config(), arrays(np.random.default_rng(i))) for i in range(2)]
    with pytest.raises(InputError, match=message):
        merge_adapters(adapters, tmp_path / "out", **options)


def test_nothing_to_merge_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected adapters to merge, got none"):
        merge_adapters([], tmp_path / "out")
