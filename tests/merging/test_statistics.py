import numpy as np
import pytest
from tests.merging.driver import InputsOf, bits

from mirepoix.merging._statistics import mean, opened, positive_weights, statistics, weights_of
from mirepoix.types import InputError


def test_the_mean_is_weighted_per_number_or_per_entry():
    members = [np.array([1.0, 2.0]), np.array([3.0, 6.0])]
    np.testing.assert_allclose(mean(members, [1.0, 3.0]), [2.5, 5.0])
    np.testing.assert_allclose(mean(members, [np.array([1.0, 0.0]), np.array([3.0, 2.0])]), [2.5, 6.0])


def test_equal_entries_are_kept_to_the_last_bit():
    x = np.array([-0.0, 0.1, 1e-320, np.inf, 3.0])
    y = x + np.array([0, 0, 0, 0, 1.0])
    merged = mean([x, x, y], [np.full(5, 0.1), np.full(5, 0.3), np.full(5, 0.7)])
    assert bits({"w": merged[:4]}) == bits({"w": x[:4]})
    assert np.isnan(mean([np.array([np.nan])] * 2, [1.0, 1.0])).all()


def test_the_dtype_is_that_of_the_members():
    assert mean([np.ones(2, "f4"), np.zeros(2, "f4")], [np.ones(2), np.ones(2)]).dtype == np.float32


def test_statistics_are_found_by_member_in_their_order_or_by_name():
    one, two = {"w": np.ones(2)}, {"w": np.zeros(2)}
    for given in ([one, two], {"y": two, "x": one}):
        found = opened(given, ["x", "y"], "fishers")
        assert list(found) == ["x", "y"]
        assert found["x"].wide("w", 0, 2).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{}], r"fishers: expected one per member \(2\), got 1"),
        ({"x": {}, "z": {}}, "fishers: expected the members x, y, got x, z"),
        (
            [{}, "file"],
            "fishers of member y: expected tensors by name, got str. Open a file with `open_weights`",
        ),
    ],
)
def test_statistics_that_do_not_fit_the_members_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        opened(given, ["x", "y"], "fishers")


def test_statistics_of_a_tensor_are_all_or_none_and_of_its_shape():
    full = opened([{"w": np.ones(2)}, {"w": np.ones(2)}], "xy", "fishers").values()
    assert statistics(list(full), "w", (2,)) == list(full)
    assert statistics(list(full), "b", (2,)) is None
    with pytest.raises(
        InputError, match=r"fishers of member x: 'w' must be floats of shape \(3,\), got F64 of \(2,\)"
    ):
        statistics(list(full), "w", (3,))
    half = opened([{"w": np.ones(2)}, {}], "xy", "fishers").values()
    with pytest.raises(InputError, match="fishers of member y: has no 'w', which fishers of member x has"):
        statistics(list(half), "w", (2,))
    whole = opened([{"w": np.ones(2, int)}], "x", "fishers").values()
    with pytest.raises(InputError, match="must be floats of shape"):
        statistics(list(whole), "w", (2,))


def test_weights_are_those_of_the_members_that_hold_a_tensor():
    inputs = InputsOf({"x": {"w": np.ones(1)}, "y": {"v": np.ones(1), "w": np.ones(1)}}, None, 5)
    given = {"y": 2.0, "x": [("v", 1.0), ("", 3.0)]}
    assert weights_of(given, inputs.labels, inputs.tensor("w")) == [3.0, 2.0]
    assert weights_of([3.0, 2.0], inputs.labels, inputs.tensor("v")) == [2.0]
    assert weights_of(None, inputs.labels, inputs.tensor("v")) == [1.0]


def test_weights_are_not_negative_and_not_all_zero():
    tensor = InputsOf({"x": {"w": np.ones(1)}, "y": {"w": np.ones(1)}}, None, 5).tensor("w")
    assert positive_weights([0.0, 2.0], "xy", tensor) == [0.0, 2.0]
    for wrong in ([1.0, -1.0], [0.0, 0.0]):
        with pytest.raises(
            InputError, match="coefficients for 'w': expected numbers of at least 0, not all 0"
        ):
            positive_weights(wrong, "xy", tensor)
