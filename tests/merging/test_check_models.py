"""What must agree besides structure, from headers, small integers and the texts beside the files."""

import json

import numpy as np
import pytest
import torch
from tests.merging.check_samples import faults, model_folder, network, write

from mirepoix.checkpoints import fingerprint, write_weights
from mirepoix.merging import merge_files
from mirepoix.merging._check import check_files
from mirepoix.types import InputError


def test_counters_of_batch_norm_may_differ_and_its_layers_are_counted(tmp_path):
    check = check_files(write(tmp_path, {"a": network(0), "b": network(1)}))
    assert check.ok
    assert check.warnings == ()
    facts = check.facts
    assert (facts["tensors"], facts["weights"], facts["statistics"], facts["integers"]) == (8, 4, 2, 2)
    assert facts["parameters"] == 4 * 3 * 9 + 4 + 7 * 4 + 7
    assert facts["batch_norm"] == 1
    assert facts["head"] == {"name": "fc", "rows": 7}
    assert facts["dtypes"] == {"float32": 6, "int64": 2}


def test_the_forecast_is_what_a_merge_reads_and_writes(tmp_path):
    paths = write(tmp_path, {name: network(i) for i, name in enumerate("abc")})
    facts = check_files(paths).facts
    report = merge_files(paths, tmp_path / "soup.safetensors")
    assert facts["bytes_to_read"] == report.bytes_read
    header = report.bytes_written - facts["result_bytes"]
    assert 0 < header < 1500
    assert 40e6 < facts["memory_bytes"] < 60e6
    assert facts["free_bytes"] > 0
    assert facts["result_dtypes"] == {"float32": 6}


def test_small_integers_are_read_and_the_odd_one_is_named(tmp_path):
    members = {name: network(i) for i, name in enumerate("abcd")}
    members["c"]["positions"] = np.array([0, 1, 2, 3, 5])
    ((member, what, advice),) = faults(write(tmp_path, members))
    assert (member, what) == ("c.safetensors", "holds other integers in 'positions' than the other 3")
    assert "integers='first'" in advice


def test_large_integers_are_left_to_the_merge_unless_all_is_read(tmp_path):
    members = {name: {"w": np.ones(2), "table": np.arange(9000)} for name in "ab"}
    members["b"]["table"] = members["b"]["table"] + 1
    paths = write(tmp_path, members)
    check = check_files(paths)
    assert check.ok
    assert check.facts["unread_integers"] == ["table"]
    assert "'table' is integer, and too large to be read here" in check.warnings[0]
    assert [what for _, what, _ in faults(paths, finite=True)] == [
        f"holds other integers in 'table' than {paths[0]}"
    ]


def test_the_integers_read_of_a_file_are_at_most_64_kib(tmp_path):
    names = [f"t{i}" for i in range(4)]
    members = {name: {"w": np.ones(2), **{n: np.arange(3000) for n in names}} for name in "ab"}
    assert check_files(write(tmp_path, members)).facts["unread_integers"] == ["t2", "t3"]


def test_mixed_dtypes_are_a_warning_that_names_the_odd_one(tmp_path):
    members = {name: network(i) for i, name in enumerate("abc")}
    members["c"]["fc.weight"] = members["c"]["fc.weight"].astype(np.float16)
    members["c"]["fc.bias"] = members["c"]["fc.bias"].astype(np.float64)
    check = check_files(write(tmp_path, members))
    assert check.ok
    texts = [text.replace(str(tmp_path), "") for text in check.warnings]
    assert sorted(texts) == [
        "/c.safetensors holds 'fc.bias' as float64, the other 2 as float32: the result takes the wider one. Name its "
        "dtype to be sure: dtype= (--dtype).",
        "/c.safetensors holds 'fc.weight' as float16, the other 2 as float32: the result takes the wider one. Name "
        "its dtype to be sure: dtype= (--dtype).",
    ]
    assert check.facts["result_dtypes"] == {"float32": 5, "float64": 1}


def test_no_average_of_float8_complex_and_quantised_tensors(tmp_path):
    float8 = {"w": torch.ones(2).to(torch.float8_e4m3fn)}
    no_scale = {"w": torch.ones(2).to(torch.float8_e5m2fnuz)}
    complex64 = {"w": torch.ones(2, dtype=torch.complex64)}
    quantised = {"l.weight": torch.ones(2, 2, dtype=torch.int8), "l.SCB": torch.ones(2)}
    expected = {
        "float8": (float8, "holds float8_e4m3fn in 'w', whose values may need scales", "upcast=True"),
        "no_scale": (no_scale, "holds float8_e5m2fnuz in 'w', whose values may need scales", "Dequantise it first."),
        "complex": (complex64, "holds complex64 in 'w'", "real and imaginary"),
        "quantised": (quantised, "is quantised: 2 tensors ('l.", "Dequantise"),
    }  # fmt: skip
    for name, (theta, what, advice) in expected.items():
        first, second = write(tmp_path, {f"{name}1": theta, f"{name}2": theta})
        found = faults([first, second])
        assert [member for member, _, _ in found] == [first.name, second.name]
        assert all(text.startswith(what) and advice in hint for _, text, hint in found), found
    assert "upcast" not in faults(write(tmp_path, {"x": no_scale, "y": no_scale}))[0][2]
    folders = [
        model_folder(tmp_path / name, network(), quantization_config={"bits": 4}) for name in ("p", "q")
    ]
    assert [what for _, what, _ in faults(folders)] == ["is quantised: its config.json says so"] * 2


def shared(tmp_path, name, theta, other="b.weight"):
    """A torch file in which two names are one tensor."""
    torch.save({"a.weight": theta, other: theta}, tmp_path / f"{name}.pt")
    return tmp_path / f"{name}.pt"


def test_tied_weights_are_counted_once_and_told(tmp_path):
    files = [shared(tmp_path, name, torch.full((2, 2), float(i))) for i, name in enumerate("mn", start=1)]
    check = check_files(files)
    assert check.ok
    assert check.facts["aliases"] == {"b.weight": "a.weight"}
    assert check.facts["parameters"] == 4
    once = write(tmp_path, {"once": {"a.weight": np.ones((2, 2), np.float32)}})
    assert check_files([*files, *once]).warnings == ()


def test_weights_tied_in_some_files_only_are_compared_when_all_is_read(tmp_path):
    tied = shared(tmp_path, "tied", torch.ones(2, 2))
    equal, other = write(
        tmp_path,
        {
            "equal": {"a.weight": np.ones((2, 2), np.float32), "b.weight": np.ones((2, 2), np.float32)},
            "other": {"a.weight": np.ones((2, 2), np.float32), "b.weight": np.zeros((2, 2), np.float32)},
        },
    )
    check = check_files([tied, equal])
    assert check.ok
    assert f"{equal} holds 'b.weight' and 'a.weight' twice, other files once (tied)" in check.warnings[0]
    assert check.facts["tied_in_some"] == ["b.weight"]
    assert faults([tied, equal], finite=True) == []
    ((member, what, advice),) = faults([tied, other], finite=True)
    assert member == "other.safetensors"
    assert what.startswith("holds other values in 'b.weight' than in 'a.weight'")
    assert "untie=True" in advice


def test_rows_that_grew_are_a_fault_until_allowed(tmp_path):
    members = {f"n{n}": {"embed_tokens.weight": np.ones((n, 2))} for n in (3, 5, 4)}
    paths = write(tmp_path, members)
    assert [member for member, _, _ in faults(paths)] == ["n5.safetensors", "n4.safetensors"]
    check = check_files(paths, rows=True)
    assert check.ok
    assert check.warnings == (
        "'embed_tokens.weight' has 3 to 5 rows: the first 3 are averaged, the others copied from the first file that "
        "has most.",
    )
    assert check.facts["result_bytes"] == 5 * 2 * 8


def test_the_base_is_compared_with_the_members_and_is_the_one_at_fault(tmp_path):
    *paths, base = write(tmp_path, {"a": network(1), "b": network(2), "base": network(0, classes=1000)})
    ((member, what, _),) = faults(paths, base=base)
    assert member == "base.safetensors"
    assert what.startswith("has a head of 1000 rows, the members of 7")
    check = check_files(paths, base=base)
    assert check.verdict == f"2 files cannot be averaged: {base} is at fault. Without it, 2 can be."
    assert check.facts["bytes_to_read"] > check_files(paths).facts["bytes_to_read"]
    assert check_files(paths[:1], base=paths[1]).verdict == "1 file can be merged with the base."


def with_record(path, start, **more):
    path.with_suffix(".json").write_text(json.dumps({"made_of": {"theta": start}, **more}))


def test_starts_are_compared_where_records_name_them(tmp_path):
    paths = write(tmp_path, {name: network(i) for i, name in enumerate("abc")})
    start = check_files(paths).facts["start"]
    assert start["same"] is None
    assert "not told by these files" in start["text"]
    for path in paths[:2]:
        with_record(path, "0123456789abcdef")
    start = check_files(paths).facts["start"]
    assert start == {
        "known": 2, "same": True, "text": "the same (0123456789ab) for the 2 of 3 files that tell",
    }  # fmt: skip
    with_record(paths[2], "ffffffffffffffff")
    check = check_files(paths)
    assert check.ok
    assert check.facts["start"]["same"] is False
    assert check.warnings == (
        f"starts differ: 0123456789ab for {paths[0]} and {paths[1]}; ffffffffffff for {paths[2]}. An average is good "
        "only where the loss stays low between the members: try `mirepoix connect A B`.",
    )


def test_a_base_that_is_not_the_start_of_the_records_is_a_warning(tmp_path):
    paths = write(tmp_path, {"a": network(1), "b": network(2)})
    theta = network(0)
    base = tmp_path / "base.safetensors"
    write_weights(base, theta, record={"fingerprint": fingerprint(theta)})
    for path in paths:
        with_record(path, fingerprint(theta))
    assert check_files(paths, base=base).warnings == ()
    for path in paths:
        with_record(path, "ffffffffffffffff")
    (text,) = check_files(paths, base=base).warnings
    assert text == (
        f"{base} is not the start that the records of the members name: it is {fingerprint(theta)[:12]}, they name "
        "ffffffffffff."
    )


def test_a_json_that_is_no_record_is_nobodys_start(tmp_path):
    paths = write(tmp_path, {"a": network(1), "b": network(2), "c": network(3)})
    for path, text in zip(paths, ("[1]", "{not json", '{"made_of": 3}'), strict=True):
        path.with_suffix(".json").write_text(text)
    check = check_files(paths)
    assert check.ok
    assert check.facts["start"]["known"] == 0


def test_folders_tell_their_start_and_settings_that_change_no_shape(tmp_path):
    a = model_folder(tmp_path / "a", network(1), _name_or_path="bert", num_attention_heads=2)
    b = model_folder(tmp_path / "b", network(2), _name_or_path="bert", num_attention_heads=2)
    c = model_folder(tmp_path / "c", network(3), _name_or_path="other", num_attention_heads=4)
    assert check_files([a, b]).facts["start"]["text"] == "the same ('bert', by its name)"
    assert check_files([a, b]).warnings == ()
    starts, heads = check_files([a, b, c]).warnings
    assert starts.startswith(f"starts differ: 'bert' for {a} and {b}; 'other' for {c}.")
    assert heads == (
        f"num_attention_heads differs (config.json): 2 in {a} and {b}, 4 in {c}. The same weights are another function "
        "then."
    )


@pytest.mark.parametrize("by", ["record", "config"])
def test_classes_must_be_the_same_in_the_same_order(tmp_path, by):
    def member(name, classes):
        if by == "config":
            labels = {str(i): label for i, label in enumerate(classes)}
            return model_folder(tmp_path / name, network(classes=3), id2label=labels)
        write_weights(tmp_path / f"{name}.safetensors", network(classes=3), record={"classes": list(classes)})
        return tmp_path / f"{name}.safetensors"

    a, b = member("a", ("cat", "dog", "owl")), member("b", ("cat", "dog", "owl"))
    c, d = member("c", ("cat", "owl", "dog")), member("d", ("cat", "dog", "fox"))
    assert faults([a, b]) == []
    (_, what, advice), *none = faults([a, b, c])
    assert not none
    assert what == "has the same classes in another order: number 1 is 'owl', the other 2 have 'dog'"
    assert "with_head" in advice
    ((_, what, _),) = faults([a, b, d])
    assert what == "has other classes: number 2 is 'fox', the other 2 have 'owl'"


def test_what_only_a_plan_finds_is_told_without_a_member(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise InputError("the plan says no.")

    monkeypatch.setattr("mirepoix.merging._check_models.plan_merge", refuse)
    check = check_files(write(tmp_path, {"a": network(), "b": network()}))
    assert check.faults == ((None, "the plan says no.", ""),)
    assert check.verdict == "2 files cannot be averaged: a merge would refuse them."
