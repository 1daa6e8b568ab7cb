"""A check finds the file at fault, all of its faults, and reads no weights unless asked."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.merging.check_samples import faults, network, write

from mirepoix.checkpoints import write_weights
from mirepoix.merging._check import check_files, nonfinite
from mirepoix.merging._inputs import STORED
from mirepoix.types import InputError


def test_of_twenty_the_one_at_fault_is_named_wherever_it_stands(tmp_path):
    members = {f"m{i}": network(i, classes=65 if i == 0 else 7) for i in range(20)}
    paths = write(tmp_path, members)
    for order in (paths, paths[::-1]):
        ((member, what, _),) = faults(order)
        assert member == "m0.safetensors"
        assert what.startswith("has a head of 65 rows, the other 19 of 7")
        check = check_files(order)
        assert check.verdict == f"20 files cannot be averaged: {paths[0]} is at fault. Without it, 19 can be."
    assert check_files(paths[1:]).verdict == "19 files can be averaged."


def test_two_that_differ_do_not_fit_each_other(tmp_path):
    a, b = write(tmp_path, {"a": network(), "b": network(classes=3)})
    check = check_files([a, b])
    assert check.verdict == f"2 files cannot be averaged: {a} and {b} do not fit each other."
    assert check.faults[0].member == str(b)
    assert f"{a} of 7" in check.faults[0].what


def test_without_a_majority_no_file_is_called_guilty(tmp_path):
    paths = write(tmp_path, {f"m{n}": network(classes=n) for n in (2, 3, 4)})
    check = check_files(paths)
    assert check.verdict == "3 files cannot be averaged: no structure is that of most of them."
    assert len(check.faults) == 2


def test_damaged_and_unsafe_files_are_at_fault_and_do_not_hide_the_rest(tmp_path):
    members = {name: network(i) for i, name in enumerate("abcd")} | {"e": network(9, classes=2)}
    paths = write(tmp_path, members)
    paths[1].write_bytes(paths[1].read_bytes()[:-8])
    hostile = tmp_path / "hostile.pt"
    torch.save({"w": torch.ones(2), "hook": subprocess.run}, hostile)
    (b, cut, advice), (pt, unsafe, _), (e, head, _) = faults([*paths[:2], hostile, *paths[2:]])
    assert b == "b.safetensors"
    assert cut.startswith("is not a whole safetensors file")
    assert advice == "Replace it, or leave it out."
    assert pt == "hostile.pt"
    assert "pickled objects beyond tensors" in unsafe
    assert "was not run" in unsafe
    assert e == "e.safetensors"
    assert "head of 2 rows, the other 3 of 7" in head
    assert check_files([*paths[:2], hostile, *paths[2:]]).verdict.endswith("Without them, 3 can be.")


def test_a_file_that_may_not_be_read_is_at_fault(tmp_path, monkeypatch):
    from mirepoix.merging import _check

    real = _check.open_source

    def denied(path, *arguments, **options):
        if str(path).endswith("b.safetensors"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    paths = write(tmp_path, {name: network() for name in "abc"})
    monkeypatch.setattr(_check, "open_source", denied)
    ((member, what, advice),) = faults(paths)
    assert (member, what) == ("b.safetensors", "cannot be read: Permission denied")
    assert "permissions" in advice
    with pytest.raises(InputError, match=r"b.safetensors: cannot be read: Permission denied"):
        check_files(paths[1:2] * 2)


def test_what_a_person_may_allow_can_be_converted(tmp_path):
    (a,) = write(tmp_path, {"a": {"w": np.ones(3, np.float32)}})
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"w": torch.ones(1).expand(3)}, tmp_path / "wide.pt")
    (_, _, old), (_, _, wide) = faults([a, tmp_path / "old.pt", tmp_path / "wide.pt"])
    assert f"`mirepoix convert {tmp_path / 'old.pt'} OUT.safetensors --allow-torch-load`" in old
    assert f"`mirepoix convert {tmp_path / 'wide.pt'} OUT.safetensors --allow-expand`" in wide


def test_where_nothing_can_be_opened_the_reasons_are_the_error(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_bytes(b"no")
    with pytest.raises(InputError) as error:
        check_files([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    assert [line.split(":")[0].rpartition("/")[2] for line in str(error.value).splitlines()] == [
        "a.safetensors",
        "b.safetensors",
    ]


def test_paths_are_two_or_more_and_exist(tmp_path):
    (path,) = write(tmp_path, {"a": network()})
    with pytest.raises(InputError, match=r"expected two or more files.*got 1. .*mirepoix inspect"):
        check_files([path])
    with pytest.raises(InputError, match=r"got 0"):
        check_files([], base=path)
    with pytest.raises(InputError, match=r"expected a list of files, got '.*a.safetensors'"):
        check_files(path)
    with pytest.raises(InputError, match=r"nope: expected weights, got nothing there, nor at 1 other paths"):
        check_files([path, tmp_path / "nope", tmp_path / "neither"])
    with pytest.raises(InputError, match=r"nope: expected weights"):
        check_files([path], base=tmp_path / "nope")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"bad.safetensors: is not a whole"):
        check_files([path], base=tmp_path / "bad.safetensors")


def test_a_file_given_twice_counts_twice_and_is_told(tmp_path):
    a, b = write(tmp_path, {"a": network(), "b": network(1)})
    (tmp_path / "link.safetensors").symlink_to(a)
    check = check_files([a, b, tmp_path / "link.safetensors"])
    assert check.ok
    assert check.warnings == (f"{a} is given 2 times, and counts 2 times.",)


def test_the_container_of_torch_files_can_be_chosen(tmp_path):
    theta = {"w": torch.ones(2)}
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for path in paths:
        torch.save({"model": theta, "state_dict_ema": theta}, path)
    with pytest.raises(InputError, match=r"expected weights in one place"):
        check_files(paths)
    assert check_files(paths, container="model").ok


def test_values_are_read_when_asked_and_the_file_and_tensor_are_named(tmp_path):
    members = {name: network(i) for i, name in enumerate("abc")}
    members["b"]["conv.weight"][0, 0, 0, :2] = np.nan
    members["b"]["conv.weight"][1, 0, 0, 0] = -np.inf
    members["b"]["fc.bias"][3] = np.inf
    paths = write(tmp_path, members)
    assert check_files(paths).ok
    seen = []
    ((member, what, advice),) = faults(paths, finite=True, progress=lambda *step: seen.append(step))
    assert member == "b.safetensors"
    assert "'conv.weight' (2 NaN, 1 infinite of 108 values)" in what
    assert "'fc.bias' (0 NaN, 1 infinite of 7 values)" in what
    assert "Leave it out" in advice
    total = check_files(paths).facts["bytes_to_read"]
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


@pytest.mark.parametrize("code", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_nan_and_infinity_are_counted_as_torch_does(code):
    dtype = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
             "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}[code]  # fmt: skip
    if dtype.itemsize <= 2:  # every bit pattern there is
        bits = np.arange(256**dtype.itemsize, dtype=f"u{dtype.itemsize}")
    else:
        values = np.array([0, 1, -1, np.inf, -np.inf, np.nan, -np.nan, 1e38, 5e-45], f"f{dtype.itemsize}")
        quiet = values.view(f"u{dtype.itemsize}")
        bits = np.concatenate(
            [quiet, quiet[5:6] - 5, quiet[3:4] + 1]
        )  # NaN with other bits, a signalling one
    tensor = torch.from_numpy(bits.view(np.uint8).copy()).view(dtype).double()
    expected = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    assert nonfinite(code, bits.view(STORED[code])) == expected
    assert expected[0] > 0
    finite = bits[tensor.isfinite().numpy()]
    assert nonfinite(code, finite.view(STORED[code])) == (0, 0)
    assert nonfinite(code, bits[:0].view(STORED[code])) == (0, 0)
    assert nonfinite("I64", np.arange(3)) == (0, 0)


def test_a_disk_too_small_for_the_result_is_told(tmp_path, monkeypatch):
    paths = write(tmp_path, {"a": network(), "b": network()})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    check = check_files(paths)
    assert check.ok
    assert check.facts["free_bytes"] == 100
    assert check.warnings == (
        "the result needs 668 bytes, and the disk of this folder has 100 bytes free. Make room, or write it to "
        "another disk.",
    )


def test_the_result_is_plain_values(tmp_path):
    import json

    check = check_files(write(tmp_path, {"a": network(), "b": network(classes=2)}))
    content = json.loads(json.dumps(check.as_json()))
    assert content.keys() == {"ok", "verdict", "faults", "warnings", "facts"}
    assert content["ok"] is False
    assert content["faults"][0].keys() == {"member", "what", "advice"}


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["plain", "head", "names", "kind"]), min_size=2, max_size=5))
def test_yes_means_that_a_merge_takes_them(tmp_path_factory, kinds):
    from mirepoix.merging import merge

    def member(kind, i):
        theta = network(i, classes=3 if kind == "head" else 2)
        if kind == "names":
            theta = {f"module.{name}": value for name, value in theta.items()}
        if kind == "kind":
            theta["positions"] = np.arange(5.0)
        return theta

    members = {f"m{i}": member(kind, i) for i, kind in enumerate(kinds)}
    check = check_files(write(tmp_path_factory.mktemp("files"), members))
    assert check.ok == (len(set(kinds)) == 1)
    if check.ok:
        merge(list(members.values()))
    else:
        with pytest.raises(InputError):
            merge(list(members.values()))


def test_neither_torch_nor_scipy_is_loaded_and_no_weight_is_read(tmp_path):
    paths = write(tmp_path, {"a": network(), "b": network(1)})
    code = f"""
import sys
from mirepoix.merging._check import check_files
from mirepoix.checkpoints import Checkpoint
def refuse(self, name, *rest):
    assert name == "positions", name
    return real(self, name, *rest)
real = Checkpoint.raw
Checkpoint.raw, Checkpoint.read_into = refuse, None
assert check_files({[str(path) for path in paths]!r}).ok
print([name for name in ("torch", "scipy", "rich", "typer") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_members_of_several_formats_are_compared(tmp_path):
    theta = network()
    a = tmp_path / "a.safetensors"
    write_weights(a, theta)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in theta.items()}
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in tensors.items()}}, tmp_path / "b.pt"
    )
    assert faults([a, tmp_path / "b.pt"]) == []
