"""``mirepoix inspect``: everything a header says, and what is unusual in it."""

import json

import numpy as np
import pytest
import torch
from tests.cli.conftest import call
from tests.merging.check_samples import model_folder, network
from tests.merging.lora_files import arrays, save

from mirepoix.checkpoints import write_weights
from mirepoix.merging import merge_files


def inspected(*arguments):
    result = call("inspect", *arguments, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.fixture
def file(tmp_path):
    write_weights(tmp_path / "w.safetensors", network(), metadata={"author": "somebody"})
    return tmp_path / "w.safetensors"


def test_the_header_in_numbers(file):
    content = inspected(file)
    assert content["format"] == "safetensors"
    assert content["container"] is None
    assert (content["tensors"], content["parameters"], content["buffers"]) == (8, 147, 4 + 4 + 1 + 5)
    assert content["bytes"] == 668
    assert content["files"] == {str(file): file.stat().st_size}
    assert content["dtypes"] == {
        "float32": {"tensors": 6, "bytes": 620}, "int64": {"tensors": 2, "bytes": 48},
    }  # fmt: skip
    assert (content["batch_norm"], content["head"]) == (1, {"name": "fc", "rows": 7})
    assert content["metadata"] == {"author": "somebody", "format": "pt"}
    assert content["tensor"]["fc.weight"] == {"dtype": "float32", "shape": [7, 4], "bytes": 112}
    assert content["suspicious"] == []
    assert (content["aliases"], content["config"], content["record"]) == ({}, None, None)


def test_the_table_has_a_line_for_each_tensor(file):
    out = call("inspect", file).out
    assert "size        668 bytes in 8 tensors" in out
    assert "parameters  147, and 14 entries of buffers" in out
    assert "dtypes      float32 (6 tensors, 620 bytes), int64 (2 tensors, 48 bytes)" in out
    assert "metadata    author = somebody" in out
    (line,) = [line for line in out.splitlines() if line.startswith("conv.weight")]
    assert line.split() == ["conv.weight", "float32", "4x3x3x3", "432", "bytes"]
    (line,) = [line for line in out.splitlines() if line.startswith("bn.num_batches")]
    assert line.split() == ["bn.num_batches_tracked", "int64", "scalar", "8", "bytes"]


def test_the_list_can_be_filtered(file):
    content = inspected(file, "--filter", r"^fc\.")
    assert list(content["tensor"]) == ["fc.bias", "fc.weight"]
    assert content["tensors"] == 8
    assert "(2 of 8 tensors)" in call("inspect", file, "--filter", "^fc").out
    none = call("inspect", file, "--filter", "nothing")
    assert (none.code, none.err) == (
        2,
        "mirepoix: --filter nothing: matches none of the 8 names, such as 'bn.num_batches_tracked'.",
    )
    assert "--filter (: expected a regular expression" in call("inspect", file, "--filter", "(").err


@pytest.mark.parametrize("container", ["state_dict", "teacher", "."])
def test_the_container_of_a_torch_file_is_told(tmp_path, container):
    theta = {"w": torch.ones(2)}
    torch.save(theta if container == "." else {container: theta, "epoch": 3}, tmp_path / "w.pt")
    content = inspected(tmp_path / "w.pt")
    assert (content["format"], content["container"]) == ("torch", container)
    out = call("inspect", tmp_path / "w.pt").out
    assert (f"torch, container '{container}'" in out) == (container != ".")


def test_of_several_containers_the_one_asked_for_is_taken(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "teacher": {"v": torch.ones(3)}}, tmp_path / "w.pt")
    assert "in one place" in call("inspect", tmp_path / "w.pt").err
    content = inspected(tmp_path / "w.pt", "--container", "teacher")
    assert (content["container"], list(content["tensor"])) == ("teacher", ["v"])


def test_old_torch_files_need_a_word(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    assert call("inspect", tmp_path / "w.pt").code == 2
    assert inspected(tmp_path / "w.pt", "--allow-torch-load")["container"] == "."
    torch.save({"params": {"w": torch.ones(2)}}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    assert inspected(tmp_path / "w.pt", "--allow-torch-load")["container"] == "params"


def test_tied_weights_are_named_and_counted_once(tmp_path):
    table = torch.ones(3, 2)
    torch.save({"embed.weight": table, "lm_head.weight": table}, tmp_path / "w.pt")
    content = inspected(tmp_path / "w.pt")
    assert content["aliases"] == {"lm_head.weight": "embed.weight"}
    assert (content["tensors"], content["bytes"]) == (1, 24)
    assert content["tensor"]["lm_head.weight"]["same_as"] == "embed.weight"
    out = call("inspect", tmp_path / "w.pt").out
    assert "tied        lm_head.weight = embed.weight" in out
    assert "= embed.weight" in out.splitlines()[-1]


def test_shards_settings_and_adapters(tmp_path):
    model_folder(
        tmp_path / "m", network(), architectures=["Net"], num_classes=7, tie_word_embeddings=False, other=1
    )
    content = inspected(tmp_path / "m")
    assert content["config"] == {"architectures": ["Net"], "num_classes": 7, "tie_word_embeddings": False}
    assert 'config      architectures = ["Net"]' in call("inspect", tmp_path / "m").out
    merge_files([network()], tmp_path / "s.safetensors", max_shard=300)
    shards = inspected(tmp_path / "s.safetensors.index.json")
    assert shards["format"] == f"safetensors, {len(shards['files'])} shards"
    assert len(shards["files"]) > 1
    assert shards["tensors"] == 8
    folder = save(tmp_path / "a", arrays(np.random.default_rng(0)), use_rslora=True)
    settings = inspected(folder)["config"]
    assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (2, 3, True)
    assert settings["base_model_name_or_path"] == "some/base"


def test_the_record_is_summed_up(tmp_path):
    record = {"equation": "1/2 sum_i", "method": "average", "members": [1, 2], "checks": [3] * 99,
              "made_of": {"theta": "abc", "task": "t", "run": {}}}  # fmt: skip
    write_weights(tmp_path / "w.safetensors", network(), record=record)
    assert inspected(tmp_path / "w.safetensors")["record"] == {
        "equation": "1/2 sum_i", "method": "average", "members": 2, "start": "abc", "task": "t",
    }  # fmt: skip
    assert "record      equation = 1/2 sum_i" in call("inspect", tmp_path / "w.safetensors").out
    (tmp_path / "w.json").write_text("[1]")
    assert inspected(tmp_path / "w.safetensors")["record"] is None


def test_what_is_unusual_is_told(tmp_path):
    theta = {
        "state.exp_avg": torch.ones(2),
        "empty": torch.zeros(0, 3),
        "a name": torch.ones(1),
        "turned": torch.ones(2, 3).T,
        "fc.weight": torch.ones(21841, 1),
        "float8": torch.ones(1).to(torch.float8_e5m2),
        "l.qweight": torch.ones(1, dtype=torch.int32),
        "wide": torch.ones(1, dtype=torch.float64),
    }
    torch.save({"model": theta, "optimizer": {"spare": torch.ones(600_000)}}, tmp_path / "w.pt")
    assert inspected(tmp_path / "w.pt")["suspicious"] == [
        "'empty': empty",
        "'state.exp_avg': named like the state of an optimizer",
        "'a name': with unusual signs in the name",
        "'turned': not in C order, so read whole and put in order",
        "'float8': float8 or complex, so without an average as stored",
        "'l.qweight': quantised, so without an average as stored",
        "the head fc has 21,841 rows: a classifier of so many classes?",
        "the files hold 2.4 MB besides these tensors, such as the state of an optimizer: `mirepoix convert` leaves it "
        "behind",
        "'wide': float64 among float32",
    ]
    assert "note: 'empty': empty" in call("inspect", tmp_path / "w.pt").out


def test_a_prefix_of_all_names_is_told(tmp_path):
    write_weights(tmp_path / "w.safetensors", {f"module.{n}": v for n, v in network().items()})
    (text,) = inspected(tmp_path / "w.safetensors")["suspicious"]
    assert text == "all names begin with 'module.': --rename '^module\\.=' of `mirepoix convert` drops it"


def test_values_are_read_when_asked_and_nan_is_code_1(file, tmp_path):
    result = call("inspect", file, "--finite")
    assert (result.code, result.out.splitlines()[-1]) == (0, "All values are finite.")
    theta = network()
    theta["fc.bias"][:2] = np.nan
    theta["conv.weight"][0, 0, 0, 0] = np.inf
    write_weights(tmp_path / "bad.safetensors", theta)
    result = call("inspect", tmp_path / "bad.safetensors", "--finite", "--json")
    assert result.code == 1
    assert json.loads(result.out)["not_finite"] == {
        "conv.weight": {"nan": 0, "infinite": 1},
        "fc.bias": {"nan": 2, "infinite": 0},
    }
    out = call("inspect", tmp_path / "bad.safetensors", "--finite").out
    assert "not finite: fc.bias holds 2 NaN and 0 infinite values" in out
    assert call("inspect", tmp_path / "bad.safetensors").code == 0


def test_signs_that_would_move_the_cursor_are_written_out(tmp_path):
    write_weights(tmp_path / "w.safetensors", {"a\x1b[2J": np.ones(1)}, metadata={"note": "x\x1b[2J"})
    out = call("inspect", tmp_path / "w.safetensors").out
    assert "\x1b" not in out
    assert r"a\x1b[2J" in out


def test_bad_files_are_code_2(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no")
    result = call("inspect", tmp_path / "w.safetensors")
    assert result.code == 2
    assert "is not a whole safetensors file" in result.err
