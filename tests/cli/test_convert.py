"""``mirepoix convert``: the same bits in another file, and nothing lost without a word."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.cli.conftest import call
from tests.merging.check_samples import model_folder, network
from tests.merging.samples import bits

from mirepoix import open_weights
from mirepoix.checkpoints import fingerprint, write_weights


class Hostile:
    def __reduce__(self):
        return os.system, ("touch ran",)


def every_kind():
    nan = torch.tensor([0x7F800001, 0x7FC01234, -1], dtype=torch.int32).view(
        torch.float32
    )  # other bits of NaN
    theta = {
        "nan": nan,
        "double": torch.tensor([1.5, float("inf")], dtype=torch.float64),
        "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
        "brain": torch.arange(3, dtype=torch.bfloat16),
        "float8": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
        "odd8": torch.tensor([1.0, 2.0]).to(torch.float8_e5m2fnuz),
        "complex": torch.tensor([1 + 2j]),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "slice": torch.arange(10.0)[3:7],
    }
    theta["alias"] = theta["half"]
    return theta


def converted(*arguments):
    result = call("convert", *arguments, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_a_torch_file_becomes_safetensors_bit_for_bit(tmp_path):
    theta = every_kind()
    torch.save({"model": theta, "epoch": 3}, tmp_path / "w.pt")
    done = converted(tmp_path / "w.pt", tmp_path / "w.safetensors")
    assert bits(open_weights(tmp_path / "w.safetensors")) == bits(theta)
    assert set(load_file(tmp_path / "w.safetensors")) == set(theta) - {"alias"}
    assert (done["tensors"], done["exact"], done["aliases"]) == (12, True, {"alias": "half"})
    assert done["files"] == {str(tmp_path / "w.safetensors"): (tmp_path / "w.safetensors").stat().st_size}
    assert done["bytes"] == sum(x.numel() * x.element_size() for n, x in theta.items() if n != "alias")


def test_large_tensors_go_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("mirepoix.cli._convert.STEP", 5)
    theta = every_kind() | {"long": torch.randn(17)}
    torch.save(theta, tmp_path / "w.pt")
    for suffix in ("safetensors", "pt"):
        converted(tmp_path / "w.pt", tmp_path / f"out.{suffix}")
        assert bits(open_weights(tmp_path / f"out.{suffix}")) == bits(theta)


def test_what_was_done_is_printed(tmp_path):
    torch.save(every_kind(), tmp_path / "w.pt")
    out = call("convert", tmp_path / "w.pt", tmp_path / "w.safetensors").out
    assert out == (
        f"12 tensors, 108 bytes: {tmp_path / 'w.safetensors'}\ntied: alias = half\n"
        "All values are the same, bit for bit.\n"
    )


def test_untied_weights_are_written_under_each_name(tmp_path):
    torch.save(every_kind(), tmp_path / "w.pt")
    assert converted(tmp_path / "w.pt", tmp_path / "w.safetensors", "--untie")["aliases"] == {}
    assert set(load_file(tmp_path / "w.safetensors")) == set(every_kind())
    assert open_weights(tmp_path / "w.safetensors").aliases == {}


def test_nothing_in_a_hostile_file_is_run(tmp_path, cli):
    torch.save({"w": torch.ones(2), "hook": Hostile()}, tmp_path / "w.pt")
    result = cli("convert", tmp_path / "w.pt", "out.safetensors")
    assert result.code == 2
    assert "It was not run" in result.err
    assert os.listdir() == []


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_dtype_is_rounded_to_as_torch_rounds_and_integers_stay(tmp_path, dtype):
    random = torch.Generator().manual_seed(0)
    theta = {
        "double": torch.randn(2000, generator=random, dtype=torch.float64) * 10,
        "float": torch.randn(2000, generator=random),
        "brain": torch.randn(50, generator=random).bfloat16(),
        "count": torch.tensor([1, 2]),
    }
    write_weights(tmp_path / "w.safetensors", theta)
    done = converted(tmp_path / "w.safetensors", tmp_path / "out.safetensors", "--dtype", dtype)
    to = getattr(torch, dtype)
    expected = {name: x.to(to) if x.is_floating_point() else x for name, x in theta.items()}
    assert bits(open_weights(tmp_path / "out.safetensors")) == bits(expected)
    lost = {
        name: int((x.to(to).double() != x.double()).sum()) for name, x in theta.items() if name != "count"
    }
    assert {name: loss["changed"] for name, loss in done["losses"].items()} == {
        n: c for n, c in lost.items() if c
    }
    assert done["exact"] == (not any(lost.values()))


def test_rounding_is_told_with_what_vanished(tmp_path):
    write_weights(tmp_path / "w.safetensors", {"w": np.array([1.0, 1 + 2**-20, 1e-30]), "v": np.ones(2)})
    done = call("convert", tmp_path / "w.safetensors", tmp_path / "h.safetensors", "--dtype", "float16")
    assert "2 tensors, 10 bytes as float16" in done.out
    assert "note: 2 of 5 values were rounded in 'w', 1 of them to 0." in done.out
    done = call("convert", tmp_path / "w.safetensors", tmp_path / "s.safetensors", "--dtype", "float64")
    assert done.out.endswith("No value was rounded.\n")


def test_overflow_is_an_error_that_names_the_tensor_and_leaves_nothing(tmp_path):
    write_weights(tmp_path / "w.safetensors", {"a": np.ones(2), "big": np.array([1.0, 70000.0])})
    result = call("convert", tmp_path / "w.safetensors", tmp_path / "h.safetensors", "--dtype", "float16")
    assert result.code == 2
    assert "'big' holds 70000, which is infinite as float16. Choose a dtype of wider range" in result.err
    assert sorted(os.listdir(tmp_path)) == ["w.safetensors"]
    converted(tmp_path / "w.safetensors", tmp_path / "h.safetensors", "--dtype", "bfloat16")


def test_infinity_and_nan_that_were_there_before_are_no_overflow(tmp_path):
    values = np.array([np.inf, -np.inf, np.nan, 1])
    write_weights(tmp_path / "w.safetensors", {"w": values})
    done = converted(tmp_path / "w.safetensors", tmp_path / "h.safetensors", "--dtype", "float16")
    assert done["losses"] == {}
    found = open_weights(tmp_path / "h.safetensors", framework="numpy")["w"]
    np.testing.assert_array_equal(found, values.astype(np.float16))


def test_float8_is_widened_by_its_values_if_they_are_known(tmp_path):
    theta = {"w": torch.tensor([0.5, -2.0, 448.0]).to(torch.float8_e4m3fn)}
    write_weights(tmp_path / "w.safetensors", theta)
    converted(tmp_path / "w.safetensors", tmp_path / "o.safetensors", "--dtype", "float32")
    assert open_weights(tmp_path / "o.safetensors")["w"].tolist() == [0.5, -2.0, 448.0]
    write_weights(tmp_path / "v.safetensors", {"w": torch.ones(1).to(torch.float8_e5m2fnuz)})
    result = call("convert", tmp_path / "v.safetensors", tmp_path / "x.safetensors", "--dtype", "float32")
    assert "'w' is F8_E5M2FNUZ, which cannot be read as float32" in result.err


def test_names_change_in_order_and_may_not_collide(tmp_path):
    write_weights(tmp_path / "w.safetensors", {"module.a=1": np.ones(1), "module.b": np.ones(2)})
    converted(
        tmp_path / "w.safetensors", tmp_path / "o.safetensors", "--rename", r"^module\.=", "--rename", "a=1=c"
    )
    assert set(open_weights(tmp_path / "o.safetensors")) == {"c", "b"}
    clash = call("convert", tmp_path / "w.safetensors", tmp_path / "x.safetensors", "--rename", ".*=z")
    assert (clash.code, "both 'z" in clash.err) == (2, True)
    wrong = call("convert", tmp_path / "w.safetensors", tmp_path / "x.safetensors", "--rename", "nothing")
    assert wrong.err == "mirepoix: --rename: expected REGEX=NEW, got 'nothing'."


def test_tied_names_are_renamed_together(tmp_path):
    torch.save(every_kind(), tmp_path / "w.pt")
    done = converted(tmp_path / "w.pt", tmp_path / "o.safetensors", "--rename", "^=net.")
    assert done["aliases"] == {"net.alias": "net.half"}
    assert set(open_weights(tmp_path / "o.safetensors")) == {f"net.{name}" for name in every_kind()}


def test_shards_are_written_and_read_and_replace_each_other(tmp_path):
    write_weights(tmp_path / "w.safetensors", network())
    out, index = tmp_path / "o.safetensors", tmp_path / "o.safetensors.index.json"
    done = converted(tmp_path / "w.safetensors", out, "--max-shard", "300")
    assert len(done["files"]) > 1
    assert fingerprint(open_weights(index)) == fingerprint(network())
    refused = call("convert", tmp_path / "w.safetensors", out)
    assert refused.err.startswith(f"mirepoix: {index}: exists already.")
    converted(tmp_path / "w.safetensors", out, "--force")
    assert sorted(os.listdir(tmp_path)) == ["o.safetensors", "w.safetensors"]
    converted(tmp_path / "w.safetensors", out, "--force", "--max-shard", "500B")
    assert not out.exists()
    assert fingerprint(open_weights(index)) == fingerprint(network())
    back = converted(index, tmp_path / "back.safetensors")
    assert back["exact"]
    assert fingerprint(open_weights(tmp_path / "back.safetensors")) == fingerprint(network())
    assert call("convert", index, out, "--max-shard", "500B", "--force").code == 2
    assert fingerprint(open_weights(index)) == fingerprint(network())


def test_what_exists_is_not_replaced_without_force_and_the_input_never(tmp_path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_weights(a, network(0))
    write_weights(b, network(1))
    before = b.read_bytes()
    result = call("convert", a, b)
    assert (result.code, b.read_bytes() == before) == (2, True)
    assert result.err == f"mirepoix: {b}: exists already. Name another file, or pass --force to replace it."
    (tmp_path / "link.safetensors").symlink_to(a)
    for out in (a, tmp_path / "link.safetensors"):
        result = call("convert", a, out, "--force")
        assert (result.code, "is the file to convert" in result.err) == (2, True)
    folder = model_folder(tmp_path / "m", network(2))
    assert call("convert", folder, folder / "model.safetensors", "--force").code == 2
    converted(a, b, "--force")
    assert fingerprint(open_weights(b)) == fingerprint(network(0))


def test_metadata_is_kept(tmp_path):
    write_weights(tmp_path / "w.safetensors", network(), metadata={"classes": "a,b"})
    converted(tmp_path / "w.safetensors", tmp_path / "o.safetensors")
    assert open_weights(tmp_path / "o.safetensors").metadata == {"classes": "a,b", "format": "pt"}


def test_a_record_goes_with_the_same_weights_only(tmp_path):
    record = {"equation": "Train(theta_pt, D; c)"}
    write_weights(tmp_path / "w.safetensors", network(), record=record)
    converted(tmp_path / "w.safetensors", tmp_path / "o.safetensors")
    assert open_weights(tmp_path / "o.safetensors").record == record
    converted(tmp_path / "w.safetensors", tmp_path / "o.safetensors", "--dtype", "float16", "--force")
    assert open_weights(tmp_path / "o.safetensors").record is None
    (tmp_path / "mine.json").write_text("{}")
    converted(tmp_path / "w.safetensors", tmp_path / "mine.safetensors")
    assert (tmp_path / "mine.json").read_text() == "{}"
    torch.save(dict(open_weights(tmp_path / "w.safetensors")), tmp_path / "w.pt")
    converted(tmp_path / "w.pt", tmp_path / "w.safetensors", "--force")
    assert open_weights(tmp_path / "w.safetensors").record == record


def test_npz_is_for_numpy(tmp_path):
    theta = {
        **network(),
        "half": np.ones((2, 3), np.float16),
        "flag": np.array(True),
        "a/b": np.zeros((0, 2)),
    }
    write_weights(tmp_path / "w.safetensors", theta)
    converted(tmp_path / "w.safetensors", tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz", allow_pickle=False) as found:
        assert set(found) == set(theta)
        for name, value in theta.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)
    first = (tmp_path / "w.npz").read_bytes()
    converted(tmp_path / "w.safetensors", tmp_path / "w.npz", "--force")
    assert (tmp_path / "w.npz").read_bytes() == first
    write_weights(tmp_path / "b.safetensors", {"w": torch.ones(1).bfloat16()})
    result = call("convert", tmp_path / "b.safetensors", tmp_path / "b.npz")
    assert "'w' is bfloat16, which NumPy does not know. Pass --dtype float32." in result.err
    assert not (tmp_path / "b.npz").exists()


def test_pt_is_for_torch_with_ties(tmp_path):
    theta = every_kind()
    torch.save(theta, tmp_path / "w.pt")
    converted(tmp_path / "w.pt", tmp_path / "o.safetensors")
    converted(tmp_path / "o.safetensors", tmp_path / "back.pt")
    found = torch.load(tmp_path / "back.pt", weights_only=True)
    assert bits(found) == bits(theta)
    assert found["alias"].data_ptr() == found["half"].data_ptr()
    torch.save({"half": theta["half"], "alias": theta["half"]}, tmp_path / "tied.pt")
    converted(tmp_path / "tied.pt", tmp_path / "tied.npz")
    with np.load(tmp_path / "tied.npz") as arrays:
        np.testing.assert_array_equal(arrays["alias"], arrays["half"])


def test_torch_options_reach_the_reader(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert call("convert", tmp_path / "old.pt", tmp_path / "a.safetensors").code == 2
    assert converted(tmp_path / "old.pt", tmp_path / "a.safetensors", "--allow-torch-load")["exact"]
    torch.save({"w": torch.ones(1).expand(9)}, tmp_path / "wide.pt")
    assert call("convert", tmp_path / "wide.pt", tmp_path / "b.safetensors").code == 2
    converted(tmp_path / "wide.pt", tmp_path / "b.safetensors", "--allow-expand")
    assert open_weights(tmp_path / "b.safetensors")["w"].tolist() == [1.0] * 9
    torch.save({"model": {"w": torch.ones(1)}, "teacher": {"v": torch.ones(1)}}, tmp_path / "two.pt")
    assert "in one place" in call("convert", tmp_path / "two.pt", tmp_path / "c.safetensors").err
    converted(tmp_path / "two.pt", tmp_path / "c.safetensors", "--container", "teacher")
    assert set(open_weights(tmp_path / "c.safetensors")) == {"v"}


def test_bad_input_is_code_2(tmp_path):
    write_weights(tmp_path / "w.safetensors", network())
    w = tmp_path / "w.safetensors"
    for arguments, text in (
        ((w, tmp_path / "o.txt"), "expected a name ending in .safetensors, .pt or .npz, got '.txt'"),
        ((w, tmp_path / "o"), "got 'no suffix'"),
        ((w, tmp_path / "o.pt", "--max-shard", "5GB"), "only .safetensors files come in shards"),
        ((w, tmp_path / "o.safetensors", "--max-shard", "many"), "such as 5GB or 500MB, got 'many'"),
        (
            (w, tmp_path / "o.safetensors", "--dtype", "int8"),
            "expected float64, float32, float16 or bfloat16",
        ),
        ((tmp_path / "nope.pt", tmp_path / "o.safetensors"), "got nothing there"),
        ((w, tmp_path / "no" / "o.safetensors"), "does not exist"),
        ((w, tmp_path / "no" / "o.npz"), "does not exist"),
    ):
        result = call("convert", *arguments)
        assert (result.code, text in result.err) == (2, True), result.err
    assert sorted(os.listdir(tmp_path)) == ["w.safetensors"]
