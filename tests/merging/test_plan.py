"""What a merge decides before it reads: names, kinds, dtypes, rows, tied weights."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from tests.merging.samples import bits, network

from mirepoix import open_weights
from mirepoix.merging import Average, Slerp, TaskArithmetic, merge, merge_files
from mirepoix.types import InputError


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
        UserWarning, match=r"'w' is float32 in member 0 and bfloat16 in member 1, and float32 in the result"
    ):
        assert merge([a, b])["w"].dtype == torch.float32
    assert merge([a, b], dtype="float16")["w"].dtype == torch.float16
    half = {"w": torch.tensor([2.0], dtype=torch.float16)}
    with pytest.warns(UserWarning, match=r"dtypes differ"):
        assert merge([b, half])["w"].dtype == torch.float32
    with pytest.raises(InputError, match=r"dtype: expected float64"):
        merge([a], dtype="int8")


def test_float8_needs_to_be_asked_for():
    a = {"w": torch.tensor([1.5, -3.0]).to(torch.float8_e4m3fn)}
    b = {"w": torch.tensor([2.5, 3.0]).to(torch.float8_e4m3fn)}
    with pytest.raises(InputError, match=r"'w' is float8_e4m3fn.*upcast=True"):
        merge([a, b])
    found = merge([a, b], upcast=True)["w"]
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu], ids=str
)
def test_other_float8_is_refused_and_never_taken_for_integers(dtype):
    theta = {"w": torch.zeros(2, dtype=torch.uint8).view(dtype)}
    for upcast in (False, True):
        with pytest.raises(InputError, match=r"member 0: 'w' is float8.*Dequantise it first"):
            merge([theta, theta], integers="first", upcast=upcast)


def test_booleans_and_bytes_follow_the_policy_for_integers():
    a, b = {"m": np.array([True, False, False])}, {"m": np.array([True, True, False])}
    with pytest.raises(InputError, match=r"'m' differs, False and True at entry 1, one of 1"):
        merge([a, b])
    assert merge([a, b], integers="first")["m"].tolist() == [True, False, False]
    assert merge([a, b], integers="max")["m"].tolist() == [True, True, False]
    odd = {"m": np.array([2, 0, 0], np.uint8).view(bool)}  # true, though stored as another byte
    for policy in ("auto", "first", "max", "error"):
        assert merge([a, odd], integers=policy)["m"].tobytes() == a["m"].tobytes()
    x = [{"m": np.array(v, np.uint8)} for v in (200, 255, 3)]
    assert merge(x, integers="max")["m"] == 255


def test_complex_and_kinds_that_differ_are_refused():
    with pytest.raises(InputError, match=r"'w' in member 0.*got complex128"):
        merge([{"w": np.zeros(1, np.complex128)}])
    with pytest.raises(InputError, match=r"'w' is complex64. Split it"):
        merge([{"w": torch.zeros(1, dtype=torch.complex64)}])
    with pytest.raises(InputError, match=r"'w' is float32 in member 0 and int64 in member 1"):
        merge([{"w": torch.zeros(1)}, {"w": torch.zeros(1, dtype=torch.int64)}])


def test_new_rows_of_a_vocabulary_are_copied_and_common_rows_averaged(tmp_path):
    a = {"embed": torch.arange(8.0).reshape(4, 2)}
    b = {"embed": torch.ones(3, 2)}
    with pytest.raises(InputError, match=r"number of rows differs.*rows=True"):
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


def test_names_that_differ_are_refused_with_both_sides():
    a, b = {"w": np.zeros(1), "x": np.zeros(1)}, {"w": np.zeros(1), "y": np.zeros(1), "z": np.zeros(1)}
    with pytest.raises(
        InputError,
        match=r"member 0 and member 1 cannot be merged: names differ, 1 only in member 0: 'x'; 2 only in member 1: 'y'",
    ):
        merge([a, b])
    assert list(merge([a, b], names="intersection")) == ["w"]
    union = merge(
        [{"w": np.float32([1]), "x": np.float32([4])}, {"w": np.float32([3])}],
        Average([1.0, 3.0]),
        names="union",
    )
    assert {name: x.tolist() for name, x in union.items()} == {"w": [2.5], "x": [4.0]}
    with pytest.raises(InputError, match=r"coefficients for 'x': expected a sum other than 0"):
        merge(
            [{"w": np.ones(1), "x": np.ones(1)}, {"w": np.ones(1), "x": np.ones(1)}, {"w": np.ones(1)}],
            Average([1.0, -1.0, 1.0], extrapolate=True),
            names="union",
        )
    with pytest.raises(InputError, match=r"names='union' cannot be used"):
        merge([a, b], Slerp(), names="union")
    with pytest.raises(InputError, match=r"shares no name"):
        merge([{"a": np.zeros(1)}, {"b": np.zeros(1)}], names="intersection")


@pytest.mark.parametrize(
    ("coefficients", "expected"),
    [([0.5, 0.5], 3.0), ([2.0, -1.0], 9.0), ([0.25, 0.5], 2.0), ([0.0, 1.0], 1.0)],
)
def test_a_member_that_lacks_a_tensor_counts_as_the_base_in_task_arithmetic(coefficients, expected):
    base = {"w": np.float32([0]), "v": np.float32([1])}
    members = [{"w": np.float32([1]), "v": np.float32([5])}, {"w": np.float32([2])}]
    for of, numbers in ((members, coefficients), (members[::-1], coefficients[::-1])):
        found = merge(of, TaskArithmetic(numbers), base=base, names="union")
        assert found["v"].tolist() == [expected]
        assert found["w"].tolist() == [coefficients[0] + 2 * coefficients[1]]


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
        InputError, match=r"'lm_head.weight' and 'model.embed_tokens.weight' differ.*untie=True"
    ):
        merge([tied / "apart.safetensors", tied / "tied.pt"])
    found = merge([tied / "apart.safetensors", tied / "tied.pt"], untie=True)
    assert float((found["lm_head.weight"] - found["model.embed_tokens.weight"]).mean()) == pytest.approx(0.5)


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("untie", [False, True])
def test_names_tied_in_another_order_keep_all_names_and_values(untie, tmp_path):
    a, c, x = draw(0, 3, 2), draw(1, 3, 2), torch.ones(2)
    torch.save({"emb": a, "head": a, "x": x}, tmp_path / "p.pt")
    torch.save({"head": c, "emb": c, "x": x}, tmp_path / "q.pt")
    members = [tmp_path / "p.pt", tmp_path / "q.pt"]
    for of in (members, members[::-1]):
        found = merge(of, untie=untie)
        assert list(found) == (["emb", "head", "x"] if of is members else ["head", "emb", "x"])
        for name in ("emb", "head"):
            torch.testing.assert_close(found[name], ((a.double() + c.double()) / 2).float(), rtol=0, atol=0)
        assert (found["emb"] is found["head"]) is not untie
    if not untie:
        report = merge_files(members, tmp_path / "o.safetensors")
        assert report.aliases == {"head": "emb"}
        assert bits(open_weights(tmp_path / "o.safetensors")) == bits(found)


def test_chains_of_tied_names_become_one_tensor(tmp_path):
    a, b, c = (draw(i, 2, 2) for i in range(3))
    # Tied pair by pair, and equal: only together the three members say that all three names are one.
    torch.save({"u": a, "v": a, "w": a.clone(), "x": a[0].clone()}, tmp_path / "0.pt")
    torch.save({"w": b, "v": b, "u": b.clone(), "x": b[0].clone()}, tmp_path / "1.pt")
    torch.save({"w": c, "u": c, "v": c, "x": c[0].clone()}, tmp_path / "2.pt")
    members = [tmp_path / f"{i}.pt" for i in range(3)]
    report = merge_files(members, tmp_path / "o.safetensors")
    assert report.aliases == {"v": "u", "w": "u"}
    expected = ((a.double() + b.double() + c.double()) / 3).float()
    found = open_weights(tmp_path / "o.safetensors")
    for name in "uvw":
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0)
    different = {"u": a, "v": a, "w": a + 1, "x": a[0].clone()}
    torch.save(different, tmp_path / "0.pt")
    with pytest.raises(InputError, match=r"0.pt: 'u' and 'w' differ, but .*pt holds them as one.*untie=True"):
        merge(members)


def test_the_name_that_all_hold_carries_tied_weights(tmp_path):
    a, c = draw(0, 2, 2), draw(1, 2, 2)
    torch.save({"emb": a, "head": a}, tmp_path / "p.pt")
    save_file({"head": c}, tmp_path / "q.safetensors")
    found = merge([tmp_path / "p.pt", tmp_path / "q.safetensors"])
    torch.testing.assert_close(found["emb"], ((a.double() + c.double()) / 2).float(), rtol=0, atol=0)
    assert found["emb"] is found["head"]
    save_file({"y": c}, tmp_path / "r.safetensors")
    members = [tmp_path / "p.pt", tmp_path / "r.safetensors"]
    assert set(merge(members, names="union")) == {"emb", "head", "y"}
    with pytest.raises(InputError, match=r"shares no name"):
        merge(members, names="intersection")
    torch.save({"emb": a, "third": a}, tmp_path / "s.pt")
    torch.save({"head": a, "third": a}, tmp_path / "t.pt")
    with pytest.raises(InputError, match=r"'emb', 'head', 'third' are one tensor.*no name that all"):
        merge([tmp_path / "p.pt", tmp_path / "s.pt", tmp_path / "t.pt"])


def test_equal_bytes_of_another_shape_are_not_tied(tmp_path):
    z = torch.zeros(2, 3)
    torch.save({"emb": z, "head": z}, tmp_path / "p.pt")
    torch.save({"emb": z.clone(), "head": torch.zeros(3, 2)}, tmp_path / "q.pt")
    with pytest.raises(InputError, match=r"q.pt: 'emb' and 'head' differ"):
        merge([tmp_path / "p.pt", tmp_path / "q.pt"])


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


def test_a_head_of_its_own_is_merged_with_the_embedding_of_others_when_untied(tmp_path):
    a, b = llama_folder(tmp_path / "a", 1), llama_folder(tmp_path / "b", 2, head=True)
    theta = dict(open_weights(b))
    theta["lm_head.weight"] = theta["lm_head.weight"] + 1
    save_file(theta, b / "model.safetensors")
    with pytest.raises(InputError, match=r"'lm_head.weight'.*differ.*untie=True"):
        merge([a, b])
    embeddings = [open_weights(folder)["model.embed_tokens.weight"].double() for folder in (a, b)]
    for members in ([a, b], [b, a]):
        found = merge(members, untie=True)
        expected = ((embeddings[0] + theta["lm_head.weight"].double()) / 2).float()
        torch.testing.assert_close(found["lm_head.weight"], expected, rtol=0, atol=0)
        torch.testing.assert_close(
            found["model.embed_tokens.weight"], (sum(embeddings) / 2).float(), rtol=0, atol=0
        )
    found = merge([b], TaskArithmetic([0.5]), base=a, untie=True)
    torch.testing.assert_close(found["lm_head.weight"], expected, rtol=0, atol=0)
    # Tied by configuration and written by nobody: no name of the result.
    assert "lm_head.weight" not in merge([a, a], untie=True)
