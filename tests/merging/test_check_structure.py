"""Differences of names, kinds and shapes, and what they are advised to be."""

import numpy as np
import pytest
from tests.merging.check_samples import network

from mirepoix.merging import merge
from mirepoix.merging._check_structure import differences, find_head, structure_of
from mirepoix.merging._inputs import Source
from mirepoix.types import InputError


def structure(theta, rows=False):
    return structure_of(Source(theta, "m"), {}, rows)


def told(own, others):
    return differences(structure(own), structure(others), "the other 19")


def without(theta, *names):
    return {name: value for name, value in theta.items() if name not in names}


def renamed(theta, old, new):
    return {name.replace(old, new): value for name, value in theta.items()}


def test_equal_structures_do_not_differ_whatever_their_order_values_and_float_dtypes():
    other = dict(reversed(network(3, dtype=np.float16).items()))
    assert told(network(), other) == []


def test_another_number_of_classes_is_told_as_such_with_the_prefix_of_the_head():
    ((what, advice),) = told(network(classes=65), network())
    assert what == (
        "has a head of 65 rows, the other 19 of 7: 'fc.weight' is (65, 4) instead of (7, 4), 'fc.bias' is (65,) "
        "instead of (7,)"
    )
    assert "with_head(theta, head, prefix='fc.')" in advice


def test_a_vocabulary_is_told_from_a_head_and_may_differ_where_rows_are_allowed():
    a, b = (
        {"model.embed_tokens.weight": np.ones((n, 4)), "lm_head.weight": np.ones((n, 4))} for n in (10, 12)
    )
    ((what, advice),) = told(b, a)
    assert what.startswith(
        "has a vocabulary of 12 rows, the other 19 of 10: 'model.embed_tokens.weight' is (12, 4)"
    )
    assert "rows=True (--rows)" in advice
    assert structure(a, rows=True) == structure(b, rows=True)
    assert structure({"w": np.ones((2, 3))}, rows=True) != structure({"w": np.ones((2, 4))}, rows=True)
    assert structure({"n": np.arange(2)}, rows=True) != structure({"n": np.arange(3)}, rows=True)


def test_a_transpose_is_told():
    ((what, advice),) = told({"w": np.ones((2, 3))}, {"w": np.ones((3, 2))})
    assert what == "has 'w' transposed, compared with the other 19: 'w' is (2, 3) instead of (3, 2)"
    assert "another library" in advice


def test_another_width_is_told_with_three_tensors_and_a_count():
    a, b = ({name: np.ones((n, n)) for name in "abcde"} for n in (2, 3))
    ((what, advice),) = told(b, a)
    assert what == (
        "has 5 tensors ('a', 'b', 'c' and 2 more) of another shape than the other 19: 'a' is (3, 3) instead of "
        "(2, 2), 'b' is (3, 3) instead of (2, 2), 'c' is (3, 3) instead of (2, 2) and 2 more"
    )
    assert "another architecture or width" in advice


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "network.0."])
def test_a_prefix_of_all_names_is_found_on_either_side_and_the_advice_merges_them(prefix):
    long = {prefix + name: value for name, value in network().items()}
    ((what, advice),) = told(long, network())
    assert what == f"has other names: its names begin with {prefix!r}"
    ((other, _),) = told(network(), long)
    assert other == f"has other names: the names of the other 19 begin with {prefix!r}"
    pattern = advice.partition("--rename '")[2].rpartition("=')")[0]
    assert merge([long, network()], rename={pattern: ""}).keys() == network().keys()


def test_what_differs_besides_a_prefix_is_told_too():
    long = {f"module.{name}": value for name, value in network(classes=3).items()}
    assert [what.split(":")[0] for what, _ in told(long, network())] == [
        "has other names",
        "has a head of 3 rows, the other 19 of 7",
    ]


def test_a_prefix_is_no_name_within_a_name():
    """'w' ends 'layer.w', but no prefix makes all names of one side out of those of the other."""
    found = told({"layer.w": np.ones(1), "other.v": np.ones(1)}, {"w": np.ones(1), "v": np.ones(1)})
    assert [what.split(" ")[0] for what, _ in found] == ["lacks"]


def test_a_missing_head_can_be_left_out_by_all():
    ((what, advice),) = told(without(network(), "fc.weight", "fc.bias"), network())
    assert what == "lacks 2 tensors ('fc.weight', 'fc.bias'), unlike the other 19"
    assert "with_head(theta, head)" in advice
    assert "names='intersection' (--names intersection)" in advice


def test_counters_that_old_files_lack_do_not_matter():
    ((what, advice),) = told(without(network(), "bn.num_batches_tracked"), network())
    assert what == "lacks 'bn.num_batches_tracked', unlike the other 19"
    assert "names='union' (--names union)" in advice
    merge([network(), without(network(), "bn.num_batches_tracked")], names="union")


def test_a_renamed_layer_is_recognised_by_its_shapes_and_the_advice_merges_it():
    other = renamed(network(), "fc.", "classifier.head.")
    ((what, advice),) = told(other, network())
    assert what == (
        "lacks 2 tensors ('fc.weight', 'fc.bias') and has 2 tensors ('classifier.head.weight', "
        "'classifier.head.bias') besides, unlike the other 19"
    )
    pattern, _, new = advice.partition("--rename '")[2].rpartition("')")[0].rpartition("=")
    assert merge([other, network()], rename={pattern: new}).keys() == network().keys()


def test_other_names_are_another_architecture():
    ((what, advice),) = told({**network(), "extra.weight": np.ones((2, 2))}, network())
    assert what == "has 'extra.weight' besides, unlike the other 19"
    assert "one architecture" in advice


def test_a_float_is_no_integer():
    ((what, advice),) = told({**network(), "positions": np.arange(5.0)}, network())
    assert what == "holds 'positions' as float, the other 19 as int64"
    assert "Convert it" in advice
    ((what, _),) = told({**network(), "positions": np.arange(5, dtype=np.int32)}, network())
    assert what == "holds 'positions' as int32, the other 19 as int64"


@pytest.mark.parametrize(
    ("names", "head"),
    [
        (("conv1.weight", "fc.weight"), "fc"),
        (("classifier.0.weight", "classifier.3.weight", "classifier.10.weight"), "classifier.10"),
        (("layers.0.fc.weight", "head.fc.weight"), "head.fc"),
        (("vit.heads.head.weight", "vit.encoder.weight"), "vit.heads.head"),
        (("model.embed_tokens.weight", "lm_head.weight"), "lm_head"),
        (("layer1.linear.weight", "linear.weight", "fc1.weight"), "linear"),
        (("fc1.weight", "layer1.linear.weight", "attention.output_dense.weight"), None),
    ],
)
def test_heads_are_found_by_name_outermost_and_last(names, head):
    found = find_head({name: (i + 2, 4) for i, name in enumerate(names)} | {"fc.bias": (3,)})
    assert (found and found["name"]) == head
    if head:
        assert found["rows"] == names.index(f"{head}.weight") + 2


def test_whatever_is_told_to_differ_is_refused_by_a_merge():
    for other in (network(classes=3), without(network(), "fc.bias"), {**network(), "x": np.ones(1)},
                  renamed(network(), "fc", "head"), {**network(), "positions": np.arange(5.0)}):  # fmt: skip
        assert told(other, network())
        with pytest.raises(InputError):
            merge([network(), other])
