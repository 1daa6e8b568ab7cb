from __future__ import annotations

import json

import numpy as np
import pytest
from tests.merging.lora_files import PREFIX, SHAPES, arrays, change, close, combine, config, read, save

from mirepoix.checkpoints import open_weights, write_weights
from mirepoix.merging import _lora_dense
from mirepoix.merging._lora import merge_adapters
from mirepoix.merging._lora_adapter import LoraAdapter
from mirepoix.merging._lora_dense import merge_into_base
from mirepoix.types import InputError

HEAD = "head.weight"


def base_of(shapes=SHAPES, dtype=np.float32, **others):
    rng = np.random.default_rng(99)
    theta = {f"{module}.weight": rng.normal(size=shape).astype(dtype) for module, shape in shapes.items()}
    theta |= {"fc.bias": rng.normal(size=5).astype(dtype), "count": np.int64([7])}
    return theta | others


def several(
    tmp_path, count=2, shapes=SHAPES, *, ranks=None, dtype=np.float32, others=({}, {}, {}), **settings
):
    ranks = ranks or [2] * count
    return [
        save(
            tmp_path / f"member{i}",
            arrays(np.random.default_rng(i), shapes, ranks[i], dtype) | others[i],
            **{"r": ranks[i], **settings},
        )
        for i in range(count)
    ]


def merged(base, adapters, out, *args, **options):
    report = merge_into_base(base, adapters, out, *args, **options)
    theta = open_weights(out, framework="numpy")
    return {name: theta[name] for name in theta}, report


def expected(base, folders, coefficients, shapes=SHAPES):
    theta = {
        name: value.astype(np.float64) if value.dtype.kind == "f" else value for name, value in base.items()
    }
    for module, delta in combine(folders, coefficients, shapes).items():
        theta[f"{module}.weight"] = theta[f"{module}.weight"] + delta
    return theta


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("coefficients", [(0.5, 0.3, 0.2), (2.0, -0.7, 0)])
def test_the_base_changes_by_the_sum_of_the_changes(tmp_path, monkeypatch, dtype, tolerance, coefficients):
    folders = several(tmp_path, 3, ranks=[1, 2, 3], dtype=dtype, use_rslora=True, lora_alpha=4)
    base = base_of(dtype=dtype)
    write_weights(tmp_path / "base.safetensors", base)
    exact = expected(base, folders, coefficients)
    for number, step in enumerate((1 << 20, 13, 1)):
        monkeypatch.setattr(_lora_dense, "STEP", step)
        theta, report = merged(
            tmp_path / "base.safetensors", folders, tmp_path / f"{number}.safetensors", coefficients
        )
        close(theta, exact, tolerance)
        assert {name: value.dtype for name, value in theta.items()} == {k: v.dtype for k, v in base.items()}
        for layer in report.layers:
            norm = np.linalg.norm(combine(folders, coefficients)[layer.module])
            assert layer.norm == pytest.approx(norm, rel=1e-9)
            assert (layer.rank, layer.error, layer.lost_energy) == (None, 0, 0)
    metadata = open_weights(tmp_path / "0.safetensors").metadata
    assert metadata["mirepoix.method"] == "lora-dense"
    assert json.loads(metadata["mirepoix.coefficients"]) == dict(zip("012", coefficients, strict=True))


def test_the_dense_merge_is_the_merged_adapter_added(tmp_path):
    folders = several(tmp_path, 2, ranks=[1, 3], dtype=np.float64)
    base = base_of(dtype=np.float64)
    merge_adapters(folders, tmp_path / "cat", [0.4, -1.6])
    direct, _ = merged(base, folders, tmp_path / "direct.safetensors", [0.4, -1.6])
    detour, _ = merged(base, [tmp_path / "cat"], tmp_path / "detour.safetensors", [1])
    close(direct, detour, 1e-12)


def test_what_no_adapter_changes_keeps_its_bits(tmp_path):
    import torch

    folders = several(tmp_path, 2, {"fc": (5, 8)})
    base = {
        "fc.weight": torch.randn(5, 8).bfloat16(),
        "other": torch.randn(7, 3).bfloat16(),
        "count": torch.tensor(3),
        "mask": torch.tensor([True, False]),
    }
    write_weights(tmp_path / "base.safetensors", base)
    merge_into_base(tmp_path / "base.safetensors", folders, tmp_path / "out.safetensors")
    theta = open_weights(tmp_path / "out.safetensors")
    assert all(torch.equal(theta[name], base[name]) for name in ("other", "count", "mask"))
    # Rounded once, from the exact sum.
    exact = base["fc.weight"].double().numpy() + combine(folders, [0.5, 0.5], {"fc": 0})["fc"]
    assert torch.equal(theta["fc.weight"], torch.from_numpy(exact).bfloat16())
    merge_into_base(tmp_path / "base.safetensors", folders, tmp_path / "none.safetensors", [0, 0])
    assert all(torch.equal(open_weights(tmp_path / "none.safetensors")[name], base[name]) for name in base)


def test_weights_stored_as_in_out_are_told_by_their_shape(tmp_path):
    folders = several(tmp_path, fan_in_fan_out=True)
    base = base_of()
    base["block.fc.weight"] = base["block.fc.weight"].T.copy()
    theta, _ = merged(base, folders, tmp_path / "out.safetensors", [0.5, 0.25])
    exact = combine(folders, [0.5, 0.25])
    close({"w": theta["block.fc.weight"]}, {"w": base["block.fc.weight"] + exact["block.fc"].T})
    close({"w": theta["fc.weight"]}, {"w": base["fc.weight"] + exact["fc"]})
    close({"w": theta["emb.weight"]}, {"w": base["emb.weight"] + exact["emb"]})
    close({"w": theta["conv.weight"]}, {"w": base["conv.weight"] + exact["conv"]})


@pytest.mark.parametrize("turned", [False, True])
def test_square_weights_follow_the_settings_unless_these_are_wrong_elsewhere(tmp_path, turned):
    shapes = {"square": (4, 4), "long": (3, 4)}
    (folder,) = several(tmp_path, 1, shapes, fan_in_fan_out=turned)
    square, long = (change(folder, module) for module in shapes)
    zero = {"square.weight": np.zeros((4, 4)), "long.weight": np.zeros((4, 3) if turned else (3, 4))}
    theta, _ = merged(zero, [folder], tmp_path / "out.safetensors")
    close(theta, {"square.weight": square.T if turned else square, "long.weight": long.T if turned else long})
    odd = zero | {"long.weight": zero["long.weight"].T}
    with pytest.raises(
        InputError, match=r"'square.weight' is square, and fan_in_fan_out is wrong for 'long'"
    ):
        merge_into_base(odd, [folder], tmp_path / "odd.safetensors")
    theta, _ = merged(odd, [folder], tmp_path / "odd.safetensors", transposed="^sq")
    close(theta, {"square.weight": square.T, "long.weight": long if turned else long.T})
    theta, _ = merged(odd, [folder], tmp_path / "straight.safetensors", transposed="nothing")
    close(theta, {"square.weight": square, "long.weight": long if turned else long.T})


def test_adapters_that_disagree_about_square_weights_are_refused(tmp_path):
    a = save(tmp_path / "a", arrays(np.random.default_rng(0), {"q": (4, 4)}))
    b = save(tmp_path / "b", arrays(np.random.default_rng(1), {"q": (4, 4)}), fan_in_fan_out=True)
    with pytest.raises(InputError, match="fan_in_fan_out is not the same in all adapters"):
        merge_into_base({"q.weight": np.zeros((4, 4))}, [a, b], tmp_path / "out.safetensors")


def test_an_attention_of_torch_is_left_to_peft(tmp_path):
    shapes = {"attn": (18, 6), "attn.base_layer.out_proj": (6, 6)}
    (folder,) = several(tmp_path, 1, shapes)
    base = {"attn.in_proj_weight": np.zeros((18, 6)), "attn.out_proj.weight": np.zeros((6, 6))}
    with pytest.raises(InputError, match=r"count 'attn.base_layer.out_proj' twice .* Use merge_adapters"):
        merge_into_base(base, [folder], tmp_path / "out.safetensors")


def dora(tmp_path, number, shapes=SHAPES, **settings):
    """An adapter with magnitudes, and the weights it makes of a base, output by output."""
    rng = np.random.default_rng(number)
    tensors = arrays(rng, shapes)
    for module, shape in shapes.items():
        count = shape[1] if module == "emb" else shape[0]
        magnitude = rng.uniform(0.5, 2, size=count).astype(np.float32)
        magnitude = magnitude.reshape(1, -1, 1, 1) if len(shape) == 4 else magnitude
        tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = magnitude
    folder = save(tmp_path / f"dora{number}", tensors, use_dora=True, **settings)

    def apply(base):
        theta = {}
        for module in shapes:
            weight = base[f"{module}.weight"].astype(np.float64) + change(folder, module)
            outputs = weight.T if module == "emb" else weight
            for i, m in enumerate(tensors[f"{PREFIX}{module}.lora_magnitude_vector"].reshape(-1)):
                outputs[i] *= m / np.sqrt((outputs[i] ** 2).sum())
            theta[f"{module}.weight"] = weight
        return theta

    return folder, apply


def test_dora_rescales_every_output_of_the_changed_base(tmp_path):
    folder, apply = dora(tmp_path, 0)
    base = base_of()
    theta, report = merged(base, [folder], tmp_path / "out.safetensors", [1])
    close(theta, base | apply(base))
    for layer in report.layers:
        name = f"{layer.module}.weight"
        assert layer.norm == pytest.approx(np.linalg.norm(apply(base)[name] - base[name]), rel=1e-9)


def test_dora_of_a_base_stored_as_in_out(tmp_path):
    folder, apply = dora(tmp_path, 0, {"fc": (5, 8)}, fan_in_fan_out=True)
    base = {"fc.weight": np.random.default_rng(5).normal(size=(5, 8))}
    theta, _ = merged({"fc.weight": base["fc.weight"].T}, [folder], tmp_path / "out.safetensors", [1])
    close({"fc.weight": theta["fc.weight"].T}, apply(base))


def test_dora_is_combined_with_others_by_its_dense_change(tmp_path):
    (folder, apply), (other, apply_other), plain = (
        dora(tmp_path, 0),
        dora(tmp_path, 1),
        several(tmp_path, 1)[0],
    )
    base = base_of(dtype=np.float64)
    theta, _ = merged(base, [folder, other, plain], tmp_path / "out.safetensors", [0.5, -0.25, 2.0])
    for module in SHAPES:
        name = f"{module}.weight"
        moved = 0.5 * (apply(base)[name] - base[name]) - 0.25 * (apply_other(base)[name] - base[name])
        np.testing.assert_allclose(theta[name], base[name] + moved + 2 * change(plain, module), atol=1e-12)


def test_dora_of_an_output_without_inputs_is_refused(tmp_path):
    folder, _ = dora(tmp_path, 0, {"fc": (5, 8)})
    settings, tensors = read(folder)
    tensors[PREFIX + "fc.lora_B.weight"][2] = 0
    base = {"fc.weight": np.ones((5, 8))}
    base["fc.weight"][2] = 0
    with pytest.raises(InputError, match=r"'fc.weight' is not finite"):
        merge_into_base(base, [LoraAdapter(settings, tensors)], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_the_bias_of_a_factor_changes_the_bias_of_the_layer(tmp_path):
    bias = {PREFIX + "fc.lora_B.bias": np.float32([1, 2, 3, 4, 5])}
    folders = several(tmp_path, 2, {"fc": (5, 8)}, others=(bias, bias), lora_bias=True)
    base = base_of({"fc": (5, 8)})
    theta, _ = merged(base, folders, tmp_path / "out.safetensors", [2, -0.5])
    close({"b": theta["fc.bias"]}, {"b": base["fc.bias"] + 1.5 * 1.5 * np.arange(1, 6)})
    del base["fc.bias"]
    with pytest.raises(InputError, match=r"expected 'fc.bias', which the adapters change \(lora_bias\)"):
        merge_into_base(base, folders, tmp_path / "again.safetensors")
    both = bias | {PREFIX + "fc.base_layer.bias": np.float32([1, 2, 3, 4, 5])}
    adapter = LoraAdapter(config(), arrays(np.random.default_rng(0), {"fc": (5, 8)}) | both)
    with pytest.raises(InputError, match=r"'fc.bias' is changed twice"):
        merge_into_base(base_of({"fc": (5, 8)}), [adapter], tmp_path / "again.safetensors")


@pytest.mark.parametrize("coefficients", [(0.25, 0.75), (1.5, -2.0), (1, 0)])
def test_what_is_saved_whole_moves_from_the_base(tmp_path, coefficients):
    bias, head = PREFIX + "fc.base_layer.bias", PREFIX + HEAD
    saved = [{bias: np.arange(5.0) * (i + 1), head: np.float32([i, 2])} for i in range(2)]
    folders = several(tmp_path, others=saved, modules_to_save=["head"], bias="all")
    base = base_of(dtype=np.float64, **{HEAD: np.float32([10, 20])})
    theta, report = merged(base, folders, tmp_path / "out.safetensors", coefficients)
    for name, key in (("fc.bias", bias), (HEAD, head)):
        moved = sum(c * (tensors[key] - base[name]) for c, tensors in zip(coefficients, saved, strict=True))
        close({name: theta[name]}, {name: base[name] + moved})
    assert report.averaged == (bias, head)
    assert report.added == ()
    if coefficients == (1, 0):
        assert (theta["fc.bias"] == saved[0][bias]).all()


def test_a_new_head_is_added_as_an_average(tmp_path):
    saved = [{PREFIX + HEAD: np.float32([1, 2])}, {PREFIX + HEAD: np.float32([3, 6])}]
    folders = several(tmp_path, others=saved, modules_to_save=["head"])
    theta, report = merged(base_of(), folders, tmp_path / "out.safetensors", [0.25, 0.75])
    assert theta[HEAD].tolist() == [2.5, 5.0]
    assert report.added == (HEAD,)
    with pytest.raises(InputError, match=r"head.weight: expected coefficients that sum to one"):
        merge_into_base(base_of(), folders, tmp_path / "again.safetensors", [1, 1])
    (tmp_path / "c").mkdir()
    folders = several(tmp_path / "c", others=saved)
    with pytest.raises(InputError, match=r"expected 'head.weight', which .* changes, got no such name"):
        merge_into_base(base_of(), folders, tmp_path / "again.safetensors")


def test_copies_of_the_base_are_compared_and_biases_saved_thrice_are_read_once(tmp_path):
    base = base_of(**{"head.bias": np.float32([1])})
    others = {
        PREFIX + "emb.base_layer.weight": base["emb.weight"],
        PREFIX + "head.bias": np.float32([5]),
        PREFIX + "head.modules_to_save.bias": np.float32([5]),
        PREFIX + "head.original_module.bias": np.float32([1]),
    }
    folders = several(tmp_path, others=(others, others), modules_to_save=["head"], bias="all")
    theta, report = merged(base, folders, tmp_path / "out.safetensors", [0.5, 0.25])
    close({"w": theta["emb.weight"]}, {"w": base["emb.weight"] + combine(folders, [0.5, 0.25])["emb"]})
    assert theta["head.bias"].tolist() == [1 + 0.75 * 4]
    assert report.averaged == (PREFIX + "head.bias",)
    base["emb.weight"] = base["emb.weight"] + 1
    with pytest.raises(InputError, match=r"'emb.weight' differs from the copy in .* Is it another base"):
        merge_into_base(base, folders, tmp_path / "again.safetensors")


def test_counters_of_a_head_are_the_largest(tmp_path):
    name = "norm.num_batches_tracked"
    saved = [{PREFIX + name: np.int64(3)}, {PREFIX + name: np.int64(300)}]
    folders = several(tmp_path, others=saved, modules_to_save=["norm"])
    assert merged(base_of(), folders, tmp_path / "new.safetensors")[0][name] == 300
    theta, _ = merged(base_of(**{name: np.int64(1)}), folders, tmp_path / "known.safetensors")
    assert theta[name] == 300
    with pytest.raises(InputError, match=r"'norm.num_batches_tracked' has dtype F32, I64 in"):
        merge_into_base(base_of(**{name: np.float32(1)}), folders, tmp_path / "out.safetensors")


def test_an_adapter_changes_by_nothing_what_it_does_not_have(tmp_path):
    rng = np.random.default_rng(0)
    head = {PREFIX + HEAD: np.float32([4, 4])}
    a = save(tmp_path / "a", arrays(rng, {"fc": (5, 8)}) | head, modules_to_save=["head"])
    b = save(tmp_path / "b", arrays(rng, {"fc": (5, 8), "block.fc": (8, 6)}))
    base = base_of(**{HEAD: np.float32([0, 8])})
    with pytest.raises(InputError, match=r"adapts 1 layers that .*a does not: 'block.fc'"):
        merge_into_base(base, [a, b], tmp_path / "out.safetensors")
    theta, _ = merged(base, [a, b], tmp_path / "out.safetensors", [0.25, 0.5], strict=False)
    assert theta[HEAD].tolist() == [1, 7]
    close({"w": theta["block.fc.weight"]}, {"w": base["block.fc.weight"] + 0.5 * change(b, "block.fc")})
    c = save(tmp_path / "c", arrays(rng, {"fc": (5, 8)}))
    with pytest.raises(InputError, match=r"changes 'head.weight', .*c does not. Pass strict=False"):
        merge_into_base(base, [a, c], tmp_path / "again.safetensors")
    with pytest.raises(InputError, match=r"c does not. The base does not have it"):
        merge_into_base(base_of(), [a, c], tmp_path / "again.safetensors", strict=False)


def test_names_can_be_translated(tmp_path):
    (folder,) = several(tmp_path, 1, {"model.fc": (5, 8)})
    base = {"net.fc.weight": np.zeros((5, 8))}
    with pytest.raises(InputError, match=r"expected 'model.fc.weight'.* but 'net.fc.weight'. Pass rename"):
        merge_into_base(base, [folder], tmp_path / "out.safetensors")
    theta, _ = merged(base, [folder], tmp_path / "out.safetensors", rename={"^model": "net"})
    close(theta, {"net.fc.weight": change(folder, "model.fc")})
    with pytest.raises(InputError, match=r"rename: '\(' -> 'x' is not a substitution"):
        merge_into_base(base, [folder], tmp_path / "again.safetensors", rename={"(": "x"})


def test_shards_hold_the_same_weights_as_one_file(tmp_path):
    folders, base = several(tmp_path), base_of()
    one, _ = merged(base, folders, tmp_path / "one.safetensors")
    merge_into_base(base, folders, tmp_path / "out.safetensors", max_shard="300B")
    index = json.loads((tmp_path / "out.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    for name, value in one.items():
        assert (open_weights(tmp_path / index[name], framework="numpy")[name] == value).all()
    with pytest.raises(InputError, match="exists already"):
        merge_into_base(base, folders, tmp_path / "out.safetensors")


def test_the_result_never_replaces_an_input_nor_another_file_unasked(tmp_path):
    folders = several(tmp_path)
    write_weights(tmp_path / "base.safetensors", base_of())
    for path in (tmp_path / "base.safetensors", folders[0] / "adapter_model.safetensors"):
        with pytest.raises(InputError, match="is one of the inputs"):
            merge_into_base(tmp_path / "base.safetensors", folders, path, overwrite=True)
    out = tmp_path / "out.safetensors"
    merge_into_base(tmp_path / "base.safetensors", folders, out)
    with pytest.raises(InputError, match="exists already"):
        merge_into_base(tmp_path / "base.safetensors", folders, out)
    theta, _ = merged(tmp_path / "base.safetensors", folders, out, [1, 0], overwrite=True)
    close(theta, expected(base_of(), folders, [1, 0]))


def test_tied_weights_of_which_one_is_changed_are_refused(tmp_path):
    import torch

    adapter = LoraAdapter(config(), arrays(np.random.default_rng(0), {"embed_tokens": (11, 6)}))
    weight = torch.zeros(11, 6)
    torch.save({"embed_tokens.weight": weight, "lm_head.weight": weight}, tmp_path / "base.bin")
    with pytest.raises(InputError, match="are tied, and an adapter changes one of them"):
        merge_into_base(tmp_path / "base.bin", [adapter], tmp_path / "out.safetensors")
    base = tmp_path / "base"
    base.mkdir()
    write_weights(base / "model.safetensors", {"embed_tokens.weight": weight})
    for settings, refused in (
        ({"tie_word_embeddings": True}, True),
        ({"text_config": {"tie_word_embeddings": True}}, True),
        ({"tie_word_embeddings": False}, False),
    ):
        (base / "config.json").write_text(json.dumps(settings))
        if refused:
            with pytest.raises(InputError, match=r"ties input and output|are tied, and an adapter"):
                merge_into_base(base, [adapter], tmp_path / "out.safetensors")
        else:
            merge_into_base(base, [adapter], tmp_path / "out.safetensors")


def test_tied_weights_that_no_adapter_changes_are_written_once(tmp_path):
    import torch

    folders, weight = several(tmp_path, 1, {"fc": (5, 8)}), torch.ones(3)
    torch.save({"fc.weight": torch.zeros(5, 8), "a": weight, "b": weight}, tmp_path / "base.bin")
    merge_into_base(tmp_path / "base.bin", folders, tmp_path / "out.safetensors")
    out = open_weights(tmp_path / "out.safetensors")
    assert {*out.aliases, *out.aliases.values()} == {"a", "b"}
    assert torch.equal(out["a"], weight)
    assert torch.equal(out["b"], weight)
    written = (tmp_path / "out.safetensors").read_bytes()
    assert written.count(b'"dtype"') == 2


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"fc.weight": np.zeros((5, 7))}, r"'fc.weight' has shape \(5, 7\), .* a weight of shape \(5, 8\)"),
        (
            {"fc.weight": np.zeros((5, 8), np.int8)},
            r"'fc.weight' has dtype I8, expected floats. Is it quantised",
        ),
        ({"q.weight": np.zeros((5, 8))}, r"expected 'fc.weight', .* Is it another model"),
        ({"fc.weight": np.full((5, 8), np.inf)}, r"'fc.weight' is not finite"),
    ],
)
def test_bases_that_do_not_fit_are_refused_and_nothing_stays(tmp_path, base, message):
    folders = several(tmp_path, 1, {"fc": (5, 8)})
    with pytest.raises(InputError, match=message):
        merge_into_base(base, folders, tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["member0"]


def test_tables_and_kernels_must_have_the_shape_of_the_base(tmp_path):
    (folder,) = several(tmp_path, 1)
    for name, shape in (
        ("emb.weight", (6, 11)),
        ("conv.weight", (2, 4, 3, 3)),
        ("conv.weight", (3, 3, 2, 4)),
    ):
        with pytest.raises(InputError, match=f"{name}' has shape"):
            merge_into_base(base_of(**{name: np.zeros(shape)}), [folder], tmp_path / "out.safetensors")


def test_repeated_layers_are_left_to_peft(tmp_path):
    (folder,) = several(tmp_path, 1, layer_replication=[[0, 2]])
    with pytest.raises(InputError, match="repeats layers of its base"):
        merge_into_base(base_of(), [folder], tmp_path / "out.safetensors")
