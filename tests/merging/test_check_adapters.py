"""Adapters are compared by the layers they change, whatever their ranks."""

import numpy as np
import pytest
from tests.merging.check_samples import faults, network, write
from tests.merging.lora_files import PREFIX, SHAPES, arrays, save

from mirepoix.checkpoints import write_weights
from mirepoix.merging._check import check_files


def adapter(folder, seed=0, shapes=SHAPES, ranks=2, extra=None, **settings):
    tensors = arrays(np.random.default_rng(seed), shapes, ranks) | (extra or {})
    return save(folder, tensors, **settings)


def base_of(path, **changes):
    names = {name: f"{name}.weight" for name in SHAPES}
    write_weights(
        path, {names[name]: np.ones(changes.get(name, SHAPES[name]), np.float32) for name in SHAPES}
    )
    return path


def test_adapters_of_several_ranks_fit_and_their_ranks_add_up(tmp_path):
    paths = [
        adapter(tmp_path / "a"),
        adapter(tmp_path / "b", ranks=3, r=3, use_rslora=True),
        adapter(tmp_path / "c", ranks={"fc": 4}, rank_pattern={"^fc": 4}),
    ]
    check = check_files(paths)
    assert check.ok
    assert check.verdict == "3 adapters can be averaged."
    assert check.facts["adapters"] == {
        "layers": 4,
        "ranks": [2, 3, 4],
        "alphas": [3],
        "rslora": True,
        "dora": False,
        "patterns": True,
        "base": "some/base",
        "result_rank": 2 + 3 + 4,
    }
    assert check.facts["start"] == {"known": 3, "same": True, "text": "the base 'some/base'"}
    assert check.facts["result_bytes"] == check.facts["bytes_to_read"]


def test_the_one_of_another_base_is_named(tmp_path):
    paths = [adapter(tmp_path / name, i) for i, name in enumerate("ab")]
    paths.append(adapter(tmp_path / "c", base_model_name_or_path="other", revision="v2"))
    ((member, what, advice),) = faults(paths)
    assert (member, what) == ("c", "was trained on 'other at v2', the other 2 on 'some/base'")
    assert "same_base=False" in advice
    assert check_files(paths).facts["start"]["same"] is False


def test_layers_and_shapes_that_differ_are_told(tmp_path):
    fewer = {name: shape for name, shape in SHAPES.items() if name != "conv"} | {"more": (3, 3)}
    wider = SHAPES | {"fc": (5, 9)}
    paths = [adapter(tmp_path / name, i) for i, name in enumerate("abc")]
    paths += [adapter(tmp_path / "d", shapes=fewer), adapter(tmp_path / "e", shapes=wider)]
    (d, layers, strict), (e, shapes, _) = faults(paths)
    assert (d, layers) == ("d", "does not change 'conv' and changes 'more' besides, unlike the other 3")
    assert "strict=False" in strict
    assert (e, shapes) == ("e", "changes 'fc' of another shape than the other 3")


def test_what_is_saved_whole_must_be_the_same(tmp_path):
    head = {f"{PREFIX}score.weight": np.ones((2, 4), np.float32)}
    paths = [
        adapter(tmp_path / "a", extra=head),
        adapter(tmp_path / "b", extra=head),
        adapter(tmp_path / "c"),
    ]
    ((member, what, _),) = faults(paths)
    assert (member, what) == ("c", f"does not change '{PREFIX}score.weight', unlike the other 2")


def test_models_and_adapters_do_not_mix_and_the_fewer_are_at_fault(tmp_path):
    a, b = adapter(tmp_path / "a"), adapter(tmp_path / "b")
    m, n = write(tmp_path, {"m": network(), "n": network()})
    assert faults([a, b, m]) == [
        ("m.safetensors", "is a whole model, the others are LoRA adapters", "Leave it out.")
    ]
    for paths in ([a, m, n], [a, m]):
        ((member, what, advice),) = faults(paths)
        assert (member, what) == ("a", "is a LoRA adapter, the others are whole models")
        assert f"mirepoix soup {a} --lora dense --base BASE" in advice


def test_factors_without_settings_have_no_scale(tmp_path):
    paths = [adapter(tmp_path / name) for name in "ab"]
    found = faults([path / "adapter_model.safetensors" for path in paths])
    assert [what for _, what, _ in found] == ["holds the factors of an adapter without its settings"] * 2
    assert "Name its folder" in found[0][2]


def test_an_adapter_that_cannot_be_read_is_at_fault_with_its_reason(tmp_path):
    paths = [adapter(tmp_path / "a"), adapter(tmp_path / "b"), adapter(tmp_path / "c", r=7)]
    ((member, what, _),) = faults(paths)
    assert member == "c"
    assert "has rank 2, but adapter_config.json says 7" in what


def test_dora_needs_the_base(tmp_path):
    magnitude = {f"{PREFIX}fc.lora_magnitude_vector": np.ones(5, np.float32)}
    paths = [
        adapter(tmp_path / name, shapes={"fc": SHAPES["fc"]}, extra=magnitude, use_dora=True) for name in "ab"
    ]
    found = faults(paths)
    assert ["uses DoRA" in what for _, what, _ in found] == [True, True]
    assert "--lora dense --base BASE" in found[0][2]
    check = check_files(paths, base=base_of(tmp_path / "base.safetensors"))
    assert check.ok
    assert check.facts["adapters"]["dora"] is True


def test_a_value_head_is_left_out_with_a_word(tmp_path):
    paths = [adapter(tmp_path / name, extra={"v_head.weight": np.ones(2, np.float32)}) for name in "ab"]
    check = check_files(paths)
    assert check.ok
    assert check.warnings[0] == f"{paths[0]} has a value head, no part of the model: it will be left out."


@pytest.mark.parametrize("turned", [False, True])
def test_the_base_must_have_the_weights_in_either_orientation(tmp_path, turned):
    paths = [adapter(tmp_path / name) for name in "ab"]
    shape = SHAPES["fc"][::-1] if turned else SHAPES["fc"]
    base = base_of(tmp_path / "base.safetensors", fc=shape)
    # A table is stored as (words, dimensions), the transpose of its factors' product.
    assert faults(paths, base=base) == []


def test_a_base_of_another_model_is_told(tmp_path):
    paths = [adapter(tmp_path / "a"), adapter(tmp_path / "b", shapes=SHAPES | {"fc": (5, 8)})]
    base = base_of(tmp_path / "base.safetensors", fc=(5, 9))
    found = faults(paths, base=base)
    assert [what for _, what, _ in found] == [f"changes 'fc.weight', of another shape than in {base}"] * 2
    (other,) = write(tmp_path, {"other": network()})
    assert "which " in faults(paths, base=other)[0][1]
