"""``mirepoix check``: a verdict, the file at fault, what to do, and an exit code."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from tests.cli.conftest import call
from tests.merging.check_samples import network, write
from tests.merging.lora_files import arrays, save


def test_yes_is_code_0_with_what_was_seen_and_what_to_do(tmp_path):
    paths = write(tmp_path, {"a": network(0), "b": network(1)})
    result = call("check", *paths)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].startswith("files       2, 1.34 kB to read")
    assert "each        4 weights (147 parameters), 2 statistics, 2 integers; " in result.out
    assert "head        fc, 7 rows" in result.out
    assert "start       not told by these files" in result.out
    assert "batch norm  1 layers" in result.out
    assert "mirepoix.merging.reestimate_batch_norm" in result.out
    assert re.search(r"result      668 bytes \(float32\), memory \d+\.\d MB; ", result.out)
    assert lines[-2:] == ["2 files can be averaged.", "Average them: mirepoix soup ... -o soup.safetensors"]


def test_no_is_code_1_with_each_file_and_advice(tmp_path):
    members = {name: network(i) for i, name in enumerate("abcd")} | {"e": network(classes=3)}
    paths = write(tmp_path, members)
    paths[0].write_bytes(b"no")
    result = call("check", *paths)
    assert result.code == 1
    text = " ".join(result.out.split())
    assert (
        f"5 files cannot be averaged: {paths[0]} and {paths[4]} are at fault. Without them, 3 can be." in text
    )
    assert f"{paths[0]}: is not a whole safetensors file" in text
    assert f"{paths[4]}: has a head of 3 rows, the other 3 of 7" in text
    assert "with_head(theta, head, prefix='fc.')" in text
    assert "Average them" not in text


def test_equal_faults_of_several_files_are_told_once(tmp_path):
    members = {name: network(i) for i, name in enumerate("abcde")}
    members |= {name: network(classes=3) for name in "xy"}
    paths = write(tmp_path, members)
    out = call("check", *paths).out
    assert out.count("has a head of 3 rows") == 1
    assert f"  {paths[5]} and {paths[6]}: has a head" in out


def test_bad_input_is_code_2(tmp_path):
    (path,) = write(tmp_path, {"a": network()})
    assert call("check", path).err.startswith("mirepoix: check: expected two or more files of weights")
    result = call("check", path, tmp_path / "nope")
    assert (result.code, result.out) == (2, "")
    assert (
        result.err == f"mirepoix: {tmp_path / 'nope'}: expected weights, got nothing there. Check the path."
    )


def test_json_is_the_whole_result_with_the_same_code(tmp_path):
    paths = write(tmp_path, {"a": network(), "b": network(), "c": network(classes=2)})
    result = call("check", *paths, "--json")
    content = json.loads(result.out)
    assert result.code == 1
    assert content["ok"] is False
    assert content["faults"][0]["member"] == str(paths[2])
    assert json.loads(call("check", *paths[:2], "--json").out)["ok"] is True


def test_options_reach_the_check(tmp_path):
    members = {f"n{n}": {"embed_tokens.weight": np.full((n, 2), np.nan)} for n in (3, 4)}
    a, b = write(tmp_path, members)
    assert call("check", a, b).code == 1
    allowed = call("check", a, b, "--rows")
    assert allowed.code == 0
    assert "note: 'embed_tokens.weight' has 3 to 4 rows" in allowed.out
    found = call("check", a, b, "--rows", "--finite")
    assert found.code == 1
    assert "holds NaN or infinity in 'embed_tokens.weight' (6 NaN, 0 infinite of 6 values)" in found.out
    assert "values      all were read" in found.out
    base = call("check", a, "--base", b)
    assert (base.code, "1 file cannot be merged with the base" in base.out) == (1, True)


def test_adapters_are_summed_up(tmp_path):
    folders = [
        save(tmp_path / name, arrays(np.random.default_rng(i)), use_rslora=True)
        for i, name in enumerate("ab")
    ]
    out = call("check", *folders).out
    assert "adapters    4 layers, rank 2, alpha 3, rslora; exact soup of rank 4" in out
    assert "start       the base 'some/base'" in out
    assert out.endswith("2 adapters can be averaged.\nAverage them: mirepoix soup ... -o FOLDER\n")


@pytest.mark.parametrize("verb", ["check", "inspect", "convert"])
def test_no_verb_on_files_loads_torch_or_rich(tmp_path, verb):
    paths = write(tmp_path, {"a": network(), "b": network(1)})
    arguments = {
        "check": [*paths, "--finite"],
        "inspect": [paths[0], "--finite"],
        "convert": [paths[0], tmp_path / "out.safetensors", "--dtype", "bfloat16"],
    }[verb]
    code = f"""
import sys
from mirepoix.cli import main
sys.argv = ["mirepoix", {verb!r}, *{[str(a) for a in arguments]!r}]
try:
    main()
except SystemExit as end:
    assert not end.code
print([name for name in ("torch", "scipy", "rich") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
