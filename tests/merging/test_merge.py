"""The engine: the same bits on files and in memory, whatever the pieces; what does not fit is refused."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file
from safetensors.torch import save_file

import mirepoix
from mirepoix import average, interpolate, open_weights, write_weights
from mirepoix.merging import (
    Average,
    Dare,
    ExponentialAverage,
    Interpolation,
    ModelStock,
    Slerp,
    TaskArithmetic,
    Ties,
    merge,
    merge_files,
)
from mirepoix.types import InputError

RULES = {
    "average": Average(),
    "weighted": Average([0.7, 0.1, 0.2]),
    "regex": Average([[("bias", 0.0), ("", 1.0)], 2.0, lambda name: len(name)]),
    "extrapolated": Average([1.5, -0.25, -0.25], extrapolate=True),
    "task arithmetic": TaskArithmetic([0.4, -0.3, 1.0], scale=0.5),
    "ema": ExponentialAverage(0.3),
    "ties global": Ties(density=0.3, scope="global"),
    "ties tensor": Ties([1.0, 2.0, 0.5], density=0.4, scope="tensor", scale=0.7),
    "dare": Dare(density=0.6, seed=3),
    "dare l1": Dare([0.5, 0.2, 0.3], density=0.6, seed=3, rescale="l1"),
    "dare ties": Dare(density=0.6, seed=1, elect=True),
    "stock": ModelStock(),
    "stock by row": ModelStock(scope="row"),
    "slerp": Slerp(),
}


def network(seed: int, dtype=torch.float32, spread: float = 0.1, start: int = 0) -> dict[str, torch.Tensor]:
    def draw(shape, of):
        return torch.randn(shape, generator=torch.Generator().manual_seed(of))

    theta = {
        "conv.weight": (16, 3, 3, 3),
        "bn.weight": (16,),
        "fc.weight": (10, 7001),
        "fc.bias": (10,),
        "scalar": (),
    }
    theta = {
        name: (draw(shape, start + 50) + spread * draw(shape, seed)).to(dtype)
        for name, shape in theta.items()
    }
    theta["bn.running_var"] = theta["bn.weight"].abs() + 1
    theta["bn.num_batches_tracked"] = torch.tensor(seed)
    theta["position_ids"] = torch.arange(5)
    theta["empty"] = torch.zeros(0, 4, dtype=dtype)
    return theta


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    paths = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for name, seed in (("base", 0), ("a", 1), ("b", 2), ("c", 3)):
            path = folder / f"{name}-{str(dtype).removeprefix('torch.')}.safetensors"
            save_file(network(seed, dtype, spread=0 if name == "base" else 0.1), path)
            paths[name, dtype] = path
    return paths


def bits(theta) -> dict[str, tuple]:
    return {
        name: (str(x.dtype), tuple(x.shape), bytes(x.contiguous().reshape(-1).view(torch.uint8).numpy()))
        for name, x in theta.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_streaming_gives_the_bits_of_memory_whatever_the_pieces_and_workers(rule, dtype, files, tmp_path):
    members = [files[name, dtype] for name in "abc"]
    loaded = [dict(open_weights(path)) for path in members]
    base = files["base", dtype]
    options = {"base": base, "names": "strict"}
    with_base = dict(open_weights(base))
    expected = bits(merge(loaded, RULES[rule], base=with_base))
    for chunk, workers in ((7, 2), (65_536, 1), (None, 3)):
        out = tmp_path / f"{chunk}-{workers}.safetensors"
        merge_files(members, out, RULES[rule], chunk=chunk, workers=workers, **options)
        assert bits(open_weights(out)) == expected, (chunk, workers)


def test_pieces_of_one_entry_give_the_same_bits(tmp_path):
    rng = np.random.default_rng(0)
    members = [{"w": rng.standard_normal((5, 9)).astype(np.float32)} for _ in range(3)]
    base = {"w": np.zeros((5, 9), np.float32)}
    for rule in RULES.values():
        expected = merge(members, rule, base=base)["w"]
        np.testing.assert_array_equal(merge(members, rule, base=base, chunk=1)["w"], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_copies_of_a_file_give_its_bits_back(rule, dtype, files):
    path = files["a", dtype]
    result = merge([path] * 3, RULES[rule], base=path)
    expected = {name: x for name, x in bits(open_weights(path)).items()}
    found = bits(
        {
            name: torch.as_tensor(x)
            for name, x in merge(
                [dict(open_weights(path))] * 3, RULES[rule], base=dict(open_weights(path))
            ).items()
        }
    )
    assert found == expected
    assert set(result) == set(expected)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 20)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_the_average_of_float32_is_the_rounded_float64_mean(x):
    expected = np.zeros(x.shape[1])
    for row in x:
        expected = expected + row.astype(np.float64)
    found = merge([{"w": row} for row in x])["w"]
    np.testing.assert_array_equal(found, (expected / len(x)).astype(np.float32))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1000, 1000, width=16), min_size=1, max_size=9))
def test_the_average_of_few_small_float32_is_the_exact_mean_rounded_once(values):
    exact = sum(map(Fraction, values)) / len(values)
    found = Fraction(float(merge([{"w": np.float32([v])} for v in values])["w"][0]))
    near = np.float32(float(exact))
    around = [
        Fraction(float(v))
        for v in (np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf)))
    ]
    assert abs(found - exact) == min(abs(v - exact) for v in around)


def test_the_average_of_bfloat16_goes_through_float32():
    members = [torch.randn(50_000, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(8)]
    expected = (sum(x.float() for x in members) / 8).bfloat16()
    assert torch.equal(merge([{"w": x} for x in members])["w"], expected)


@pytest.mark.parametrize("coefficients", [None, [0.5, 0.25, 0.25]])
def test_the_engine_and_the_functions_on_weights_agree_to_the_bit(coefficients):
    members = [network(seed) for seed in (1, 2, 3)]
    expected = average(members) if coefficients is None else interpolate(members, coefficients)
    assert bits(merge(members, Average(coefficients))) == bits(expected)


def test_interpolation_ends_are_the_members_exactly_and_the_middle_is_not_skipped():
    a, b = network(1), network(2)
    a["bn.num_batches_tracked"] = b["bn.num_batches_tracked"] = torch.tensor(1)
    assert bits(merge([a, b], Interpolation(0.0))) == bits(a)
    assert bits(merge([a, b], Interpolation(1.0))) == bits(b)
    quarter = merge([a, b], Interpolation(0.25))["fc.bias"]
    expected = (0.75 * a["fc.bias"].double() + 0.25 * b["fc.bias"].double()).float()
    assert torch.equal(quarter, expected)
    with pytest.raises(InputError, match="expected a number in \\[0, 1\\], got 1.5"):
        merge([a, b], Interpolation(1.5))
    beyond = merge([a, b], Interpolation(1.5, extrapolate=True))["fc.bias"]
    torch.testing.assert_close(beyond, 1.5 * b["fc.bias"] - 0.5 * a["fc.bias"])
    with pytest.raises(InputError, match="expected two members, got 3"):
        merge([a, b, a], Interpolation(0.5))


def test_task_arithmetic_moves_the_base_along_the_differences():
    base, a, b = {"w": np.float32([1, 1])}, {"w": np.float32([2, 1])}, {"w": np.float32([1, 5])}
    found = merge([a, b], TaskArithmetic([2.0, -0.5]), base=base)["w"]
    np.testing.assert_array_equal(found, np.float32([1 + 2 * 1, 1 - 0.5 * 4]))
    halved = merge([a, b], TaskArithmetic([2.0, -0.5], scale=0.5), base=base)["w"]
    np.testing.assert_array_equal(halved, np.float32([2, 0]))
    same = merge([a, b], TaskArithmetic([0.5, 0.5]), base=base)["w"]
    np.testing.assert_array_equal(same, merge([a, b])["w"])
    with pytest.raises(InputError, match="needs the common start"):
        merge([a, b], TaskArithmetic([1.0, 1.0]))


def test_coefficients_by_name_by_pattern_and_by_function_mean_the_same():
    members = {"first": network(1), "second": network(2)}
    pattern = [("^fc", 3.0), ("", 1.0)]
    by_list = merge(list(members.values()), Average([pattern, 1.0]))
    by_name = merge(members, Average({"second": 1.0, "first": pattern}))
    by_function = merge(members, Average([lambda name: 3.0 if name.startswith("fc") else 1.0, 1.0]))
    assert bits(by_list) == bits(by_name) == bits(by_function)
    w = [x["fc.bias"].double() for x in members.values()]
    torch.testing.assert_close(by_list["fc.bias"], ((3 * w[0] + w[1]) / 4).float(), rtol=0, atol=0)
    w = [x["conv.weight"].double() for x in members.values()]
    torch.testing.assert_close(by_list["conv.weight"], ((w[0] + w[1]) / 2).float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ([1.0], "expected one coefficient per member, got 1 for 2 members"),
        ([1.0, float("nan")], "expected finite numbers, got nan"),
        ([1.0, -1.0], "expected none below 0, got -1"),
        ([0.0, 0.0], "expected a sum other than 0"),
        ([[("fc", 1.0)], 1.0], "no pattern of member 0 matches 'w'"),
        ([[("(", 1.0)], 1.0], "is not a regular expression"),
        ({"x": 1.0, "y": 2.0}, "expected the members 0, 1, got x, y"),
    ],
)
def test_coefficients_that_do_not_fit_are_refused(coefficients, message):
    with pytest.raises(InputError, match=message):
        merge([{"w": np.zeros(2)}, {"w": np.ones(2)}], Average(coefficients))


def test_a_sum_without_normalisation_is_a_sum():
    members = [{"w": np.float32([2.0])}, {"w": np.float32([3.0])}]
    assert merge(members, Average([2.0, 0.5], normalize=False))["w"].tolist() == [5.5]
    assert merge([members[0]] * 2, Average([2.0, 0.5], normalize=False))["w"].tolist() == [5.0]


def test_a_member_without_weight_is_not_read(tmp_path):
    class Counting(dict):
        reads = 0

        def __getitem__(self, name):
            Counting.reads += 1
            return super().__getitem__(name)

    a, b = {"w": np.ones(3)}, Counting(w=np.full(3, np.nan))
    merge([a, b], Average([1.0, 0.0]))
    assert Counting.reads <= 1  # its dtype and shape must be seen, its values are not used


# Kinds.


def test_counters_keep_the_largest_and_other_integers_must_agree():
    a, b = network(1), network(2)
    assert int(merge([a, b])["bn.num_batches_tracked"]) == 2
    with pytest.raises(InputError, match=r"'bn.num_batches_tracked' differs, 1 and 2 at entry 0, one of 1"):
        merge([a, b], integers="error")
    b["position_ids"] = b["position_ids"] + torch.tensor([0, 0, 0, 4, 1])
    with pytest.raises(
        InputError, match=r"'position_ids' differs, 3 and 7 at entry 3, one of 2.*integers='first'"
    ):
        merge([a, b])
    assert merge([a, b], integers="first")["position_ids"].tolist() == [0, 1, 2, 3, 4]
    assert merge([a, b], integers="max")["position_ids"].tolist() == [0, 1, 2, 7, 5]


def test_mixed_dtypes_give_the_widest_with_a_warning_or_the_one_asked_for():
    a, b = {"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0], dtype=torch.bfloat16)}
    with pytest.warns(
        UserWarning, match="'w' is float32 in member 0 and bfloat16 in member 1, and float32 in the result"
    ):
        assert merge([a, b])["w"].dtype == torch.float32
    assert merge([a, b], dtype="float16")["w"].dtype == torch.float16
    half = {"w": torch.tensor([2.0], dtype=torch.float16)}
    with pytest.warns(UserWarning, match="dtypes differ"):
        assert merge([b, half])["w"].dtype == torch.float32
    with pytest.raises(InputError, match="dtype: expected float64"):
        merge([a], dtype="int8")


def test_float8_needs_to_be_asked_for():
    a = {"w": torch.tensor([1.5, -3.0]).to(torch.float8_e4m3fn)}
    b = {"w": torch.tensor([2.5, 3.0]).to(torch.float8_e4m3fn)}
    with pytest.raises(InputError, match="'w' is float8_e4m3fn.*upcast=True"):
        merge([a, b])
    found = merge([a, b], upcast=True)["w"]
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [2.0, 0.0]


def test_complex_and_kinds_that_differ_are_refused():
    with pytest.raises(InputError, match="'w' is complex64. Split it"):
        merge([{"w": torch.zeros(1, dtype=torch.complex64)}])
    with pytest.raises(InputError, match="'w' is float32 in member 0 and int64 in member 1"):
        merge([{"w": torch.zeros(1)}, {"w": torch.zeros(1, dtype=torch.int64)}])


def test_new_rows_of_a_vocabulary_are_copied_and_common_rows_averaged(tmp_path):
    a = {"embed": torch.arange(8.0).reshape(4, 2)}
    b = {"embed": torch.ones(3, 2)}
    with pytest.raises(InputError, match="number of rows differs.*rows=True"):
        merge([a, b])
    expected = torch.cat([(a["embed"][:3] + 1) / 2, a["embed"][3:]])
    for members in ([a, b], [b, a]):
        for chunk in (1, 3, 7, None):
            assert torch.equal(merge(members, rows=True, chunk=chunk)["embed"], expected)
    base = {"embed": torch.zeros(2, 2)}
    found = merge([a, b], TaskArithmetic([1.0, 1.0]), base=base, rows=True)["embed"]
    assert torch.equal(found, torch.cat([a["embed"][:2] + 1, a["embed"][2:]]))
    with pytest.raises(InputError, match=r"'embed' has shape \(4, 2\) in member 0 and \(3, 3\) in member 1"):
        merge([a, {"embed": torch.ones(3, 3)}], rows=True)


def test_negative_variances_are_raised_to_zero_and_said():
    a, b = {"bn.running_var": np.float32([1.0, 4.0])}, {"bn.running_var": np.float32([3.0, 4.0])}
    with pytest.warns(UserWarning, match="raised to 0 in 'bn.running_var'"):
        found = merge([a, b], Interpolation(-1.0, extrapolate=True))
    assert found["bn.running_var"].tolist() == [0.0, 4.0]


# Names.


def test_names_that_differ_are_refused_with_both_sides():
    a, b = {"w": np.zeros(1), "x": np.zeros(1)}, {"w": np.zeros(1), "y": np.zeros(1), "z": np.zeros(1)}
    with pytest.raises(
        InputError,
        match=r"member 0 and member 1 cannot be merged: names differ, 1 only in member 0: 'x'; 2 only in member 1: 'y', 'z'",
    ):
        merge([a, b])
    assert list(merge([a, b], names="intersection")) == ["w"]
    union = merge(
        [{"w": np.float32([1]), "x": np.float32([4])}, {"w": np.float32([3])}],
        Average([1.0, 3.0]),
        names="union",
    )
    assert {name: x.tolist() for name, x in union.items()} == {"w": [2.5], "x": [4.0]}
    with pytest.raises(InputError, match="names='union' cannot be used"):
        merge([a, b], Slerp(), names="union")
    with pytest.raises(InputError, match="shares no name"):
        merge([{"a": np.zeros(1)}, {"b": np.zeros(1)}], names="intersection")


def test_a_prefix_that_one_member_has_is_named_and_can_be_removed():
    a, b = {"w": np.zeros(1)}, {"module.w": np.full(1, 2.0)}
    with pytest.raises(InputError, match=r"agree without the prefix 'module.': rename=\{'\^module.': ''\}"):
        merge([a, b])
    assert merge([a, b], rename={"^module.": ""})["w"].tolist() == [1.0]


def test_the_result_has_the_order_of_the_first_member():
    a = {name: np.zeros(1) for name in "zax"}
    b = {name: np.zeros(1) for name in "axz"}
    assert list(merge([a, b])) == ["z", "a", "x"]


@pytest.fixture
def tied(tmp_path):
    embedding = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    theta = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": embedding,
        "norm.weight": torch.ones(4),
    }
    torch.save(theta, tmp_path / "tied.pt")
    save_file({name: x.clone() for name, x in theta.items()}, tmp_path / "twice.safetensors")
    other = {**theta, "lm_head.weight": embedding + 1}
    save_file(other, tmp_path / "apart.safetensors")
    return tmp_path


def test_tied_weights_are_written_once_and_named_twice(tied):
    out = tied / "out.safetensors"
    report = merge_files([tied / "tied.pt", tied / "tied.pt"], out)
    assert report.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    assert set(load_file(out)) == {"model.embed_tokens.weight", "norm.weight"}
    assert bits(open_weights(out)) == bits(open_weights(tied / "tied.pt"))


def test_weights_tied_in_one_member_and_equal_in_another_stay_tied(tied):
    report = merge_files([tied / "twice.safetensors", tied / "tied.pt"], tied / "out.safetensors")
    assert report.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    with pytest.raises(
        InputError, match="'lm_head.weight' and 'model.embed_tokens.weight' differ.*untie=True"
    ):
        merge([tied / "apart.safetensors", tied / "tied.pt"])
    found = merge([tied / "apart.safetensors", tied / "tied.pt"], untie=True)
    assert float((found["lm_head.weight"] - found["model.embed_tokens.weight"]).mean()) == pytest.approx(0.5)


def llama_folder(folder, seed, *, head=False):
    folder.mkdir()
    embedding = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    theta = {"model.embed_tokens.weight": embedding, "model.norm.weight": torch.ones(4)}
    if head:
        theta["lm_head.weight"] = embedding.clone()
    save_file(theta, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True})
    )
    return folder


def test_a_head_that_the_configuration_ties_may_be_missing_in_some_members(tmp_path):
    a, b = llama_folder(tmp_path / "a", 1), llama_folder(tmp_path / "b", 2, head=True)
    found = merge([a, b])
    assert set(found) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    np.testing.assert_array_equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


# NaN and infinity.


def test_a_result_that_is_not_finite_names_tensor_and_member():
    a, b = {"w": np.zeros(3)}, {"w": np.array([0, np.inf, 0])}
    with pytest.raises(
        InputError, match="'w' of the result is not finite: member 1 holds NaN or infinity there"
    ):
        merge([a, b])
    with pytest.raises(InputError, match="member 1: 'w' holds NaN or infinity"):
        merge([a, b], check="inputs")
    assert np.isinf(merge([a, b], check="none")["w"]).any()
    with pytest.raises(InputError, match="the dtype of the result overflows"):
        merge([{"w": np.float32([1e6])}], dtype="float16")


def test_inputs_are_checked_even_where_the_result_would_hide_them():
    a, b = {"w": np.float32([np.nan])}, {"w": np.float32([1.0])}
    with pytest.raises(InputError, match="member 0"):
        merge([a, b], Average([1.0, 1.0]), check="inputs")


# Files.


def test_a_single_member_is_copied_to_the_bit_even_where_it_is_not_finite(tmp_path):
    x = np.array([0x7F800001, 0xFF800000, 0x80000000, 1], np.uint32).view(
        np.float32
    )  # a signalling NaN among them
    write_weights(tmp_path / "a.safetensors", {"w": x})
    merge_files([tmp_path / "a.safetensors"], tmp_path / "b.safetensors", check="none")
    assert load_file(tmp_path / "b.safetensors")["w"].tobytes() == x.tobytes()


def test_the_result_is_read_by_the_reference_library(files, tmp_path):
    out = tmp_path / "soup.safetensors"
    report = merge_files([files[name, torch.float32] for name in "ab"], out)
    found = load_file(out)
    assert set(found) == set(network(1))
    assert out.stat().st_size == report.bytes_written
    assert (report.tensors, report.integers) == (7, 2)
    assert report.bytes_read == 2 * sum(x.nbytes for x in found.values())


def test_shards_hold_the_same_weights_and_open_as_one(files, tmp_path):
    members = [files[name, torch.float32] for name in "ab"]
    merge_files(members, tmp_path / "one.safetensors")
    report = merge_files(members, tmp_path / "many.safetensors", max_shard=1000)
    assert len(report.files) > 2
    assert all(file.name.startswith("many-0000") for file in report.files)
    index = tmp_path / "many.safetensors.index.json"
    assert bits(open_weights(index)) == bits(open_weights(tmp_path / "one.safetensors"))
    assert json.loads(index.read_text())["metadata"]["total_size"] == sum(
        x.numel() * x.element_size() for x in network(1).values()
    )


def test_a_member_is_never_overwritten(files, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(files["a", torch.float32].read_bytes())
    with pytest.raises(InputError, match="is one of the members"):
        merge_files([path, files["b", torch.float32]], path)
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    with pytest.raises(InputError, match="is one of the members|symbolic link"):
        merge_files([path, files["b", torch.float32]], link)
    assert path.read_bytes() == files["a", torch.float32].read_bytes()


def test_progress_counts_bytes_to_the_end(files, tmp_path):
    seen = []
    merge_files(
        [files[name, torch.float32] for name in "ab"],
        tmp_path / "o.safetensors",
        chunk=64,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1] > 0
    assert seen == sorted(seen)


def test_an_error_or_a_stop_leaves_nothing(files, tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        raise Stop

    with pytest.raises(Stop):
        merge_files([files["a", torch.float32]] * 2, tmp_path / "o.safetensors", chunk=16, progress=stop)
    bad = {"w": np.array([np.nan])}
    with pytest.raises(InputError):
        merge_files([bad], tmp_path / "o.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing(files, tmp_path):
    """A limit on the size of files raises the error that a full disk does, on any machine."""
    code = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from mirepoix.merging import merge_files
try:
    merge_files([{str(files["a", torch.float32])!r}] * 2, {str(tmp_path / "o.safetensors")!r})
except OSError as error:
    print(error.errno, error.filename)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["27", str(tmp_path / "o.safetensors")]
    assert list(tmp_path.iterdir()) == []


def test_a_real_full_file_system_leaves_nothing(files):
    mount = os.environ.get("MIREPOIX_SMALL_DISK")
    if not mount:
        pytest.skip("no small file system named by MIREPOIX_SMALL_DISK")
    with pytest.raises(OSError, match="No space left"):
        merge_files([files["a", torch.float32]] * 2, f"{mount}/o.safetensors")
    assert os.listdir(mount) == []


def test_a_killed_merge_leaves_nothing_under_the_name(tmp_path):
    members = []
    for i in range(3):
        members.append(str(tmp_path / f"{i}.safetensors"))
        save_file({f"w{j}": torch.randn(250_000) for j in range(4)}, members[-1])
    out = tmp_path / "out" / "soup.safetensors"
    out.parent.mkdir()
    code = f"""
from mirepoix.merging import merge_files
print("ready", flush=True)
merge_files({members!r}, {str(out)!r}, chunk=256)
print("done", flush=True)
"""
    for delay in (0.0, 0.02, 0.1, 0.3):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.kill()
        said = process.stdout.read()
        process.wait()
        process.stdout.close()
        assert ("done" in said) == out.exists()
        if out.exists():  # then whole
            assert set(load_file(out)) == {"w0", "w1", "w2", "w3"}
            out.unlink()


def test_merging_files_loads_no_torch_and_stays_small(tmp_path):
    for i in range(12):
        save_file({"w": torch.full((3000, 1000), float(i))}, tmp_path / f"{i}.safetensors")  # 12 MB each
    code = f"""
import resource, sys
from mirepoix.merging import Ties, merge_files
import pathlib
members = sorted(pathlib.Path({str(tmp_path)!r}).glob("*.safetensors"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge_files(members, {str(tmp_path / "o.safetensors")!r})
merge_files(members[:3], {str(tmp_path / "p.safetensors")!r}, Ties(), base=members[0])
print("torch" in sys.modules, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, kilobytes = result.stdout.split()
    assert loaded == "False"
    assert int(kilobytes) < 36_000  # members together: 144 MB


def test_threads_of_a_caller_do_not_disturb_each_other(files, tmp_path):
    members = [files[name, torch.float32] for name in "abc"]
    results = {}

    def work(i):
        merge_files(members, tmp_path / f"{i}.safetensors", chunk=1000)
        results[i] = (tmp_path / f"{i}.safetensors").read_bytes()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results.values())) == 1


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "expected at least one"),
        ({"w": np.zeros(1)}, "expected weights by member, got the weights of one"),
        ([{}], "nothing can be merged|shares no name"),
    ],
)
def test_what_is_no_set_of_members_is_refused(members, message):
    with pytest.raises(InputError, match=message):
        merge(members)


@pytest.mark.parametrize(("option", "value"), [("integers", "min"), ("check", "all"), ("names", "loose")])
def test_options_are_checked(option, value):
    with pytest.raises(InputError, match=f"{option}: expected one of"):
        merge([{"w": np.zeros(1)}], **{option: value})


def test_one_public_name():
    assert mirepoix.merge is merge
    assert signal.SIGKILL
    assert resource.RUSAGE_SELF == 0
