import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.merging.driver import bits, check_copies, check_pieces, drive, example

from mirepoix.merging import merge
from mirepoix.merging._slerp import Slerp, _arc, karcher
from mirepoix.types import InputError


def at(degrees, length=1.0, size=2):
    angle = np.deg2rad(degrees)
    return {"w": length * np.array([np.cos(angle), np.sin(angle), *[0.0] * (size - 2)])}


def test_at_a_right_angle_the_coefficients_are_sine_and_cosine():
    merged = drive(Slerp(t=1 / 3), [{"w": np.array([2.0, 0.0])}, {"w": np.array([0.0, 5.0])}])["w"]
    np.testing.assert_allclose(merged, [2 * np.sqrt(3) / 2, 5 / 2], rtol=1e-14)  # sin 60, sin 30


@given(st.floats(3, 177), st.floats(0, 1), st.floats(-180, 180), st.floats(0.1, 10))
def test_equal_lengths_are_kept_and_the_angle_grows_evenly(angle, t, turn, length):
    merged = drive(Slerp(t=t), [at(turn, length), at(turn + angle, length)])["w"]
    np.testing.assert_allclose(merged, at(turn + t * angle, length)["w"], atol=1e-9 * length)


def test_the_ends_are_the_members_to_the_last_bit():
    a, b = example(1, base=False), example(2, base=False)
    for t, end in ((0.0, a), (1.0, b), (0, a)):
        assert bits(drive(Slerp(t=t), [a, b])) == bits(end)


def test_no_t_and_equal_coefficients_are_the_middle():
    a, b = example(1, base=False), example(2, base=False)
    middle = bits(drive(Slerp(t=0.5), [a, b]))
    assert bits(drive(Slerp(), [a, b])) == middle
    assert bits(drive(Slerp(coefficients=[2.0, 2.0]), [a, b])) == middle


def test_two_coefficients_are_t():
    a, b = example(1, base=False), example(2, base=False)
    by_name = Slerp(coefficients={"y": 3.0, "x": 1.0})
    assert bits(drive(by_name, {"x": a, "y": b})) == bits(drive(Slerp(t=0.75), [a, b]))


def test_t_may_differ_from_tensor_to_tensor():
    a, b = example(1, base=False), example(2, base=False)
    merged = drive(Slerp(t=[("^a$", 0.0), ("", 1.0)]), [a, b])
    assert bits(merged) == bits({**b, "a": a["a"]})
    with pytest.raises(InputError, match=r"t for 'b': expected a number in \[0, 1\], got 1.5"):
        drive(Slerp(t=lambda name: 1.5 if name == "b" else 0.5), [a, b])


@pytest.mark.parametrize("cos", [0.9996, 1.0, -0.9996, -1.0])
def test_almost_parallel_members_take_the_line(cos):
    a, b = np.array([1.0, 0.0]), 3 * np.array([cos, np.sqrt(1 - cos**2)])
    np.testing.assert_allclose(drive(Slerp(t=0.25), [{"w": a}, {"w": b}])["w"], 0.75 * a + 0.25 * b)


def test_just_outside_the_cone_line_and_arc_nearly_agree():
    cos = 0.9994
    a, b = np.array([1.0, 0.0]), np.array([cos, np.sqrt(1 - cos**2)])
    merged = drive(Slerp(), [{"w": a}, {"w": b}])["w"]
    gap = np.linalg.norm(merged - (a + b) / 2)
    assert 1e-5 < gap < 2e-4
    np.testing.assert_allclose(np.linalg.norm(merged), 1)


def test_a_zero_member_takes_the_line():
    merged = drive(Slerp(t=0.25), [at(20), {"w": np.zeros(2)}])["w"]
    np.testing.assert_allclose(merged, 0.75 * at(20)["w"])
    three = drive(Slerp(), [at(0), {"w": np.zeros(2)}, at(90)])["w"]
    np.testing.assert_allclose(three, [1 / 3, 1 / 3])


def test_on_an_arc_shared_entries_are_not_kept():
    a, b = {"w": np.array([1.0, 2.0, 0.0])}, {"w": np.array([1.0, 0.0, 2.0])}
    merged = drive(Slerp(), [a, b])["w"]
    assert merged[0] > 1.2
    np.testing.assert_allclose(np.linalg.norm(merged), np.sqrt(5))


def test_differences_are_turned_about_the_base():
    base = example(0, spread=0.0)
    steps = [{n: x.astype("f8") - base[n] for n, x in example(i).items()} for i in (1, 2)]
    members = [{n: base[n] + d for n, d in step.items()} for step in steps]
    rule = Slerp(t=0.3, on="delta")
    assert rule.needs_base
    assert not Slerp().needs_base
    merged, turned = drive(rule, members, base), drive(Slerp(t=0.3), steps)
    for name in base:
        np.testing.assert_allclose(merged[name], base[name] + turned[name], atol=1e-12)
    line = drive(Slerp(t=0.3), members)
    assert abs(merged["a"] - line["a"]).max() > 1e-3  # while the weights themselves are almost parallel


# More than two members.


@given(st.lists(st.tuples(st.floats(0, 85), st.floats(0.1, 1)), min_size=2, max_size=6), st.floats(0, 360))
def test_on_a_circle_the_mean_is_the_mean_angle(members, turn):
    angles, weights = np.array(members).T
    cos = np.cos(np.deg2rad(angles[:, None] - angles))
    rule = Slerp(coefficients=weights.tolist())
    merged = drive(rule, [at(turn + a, 2.0) for a in angles])["w"]
    if (abs(cos) > 0.9995).all():
        return
    np.testing.assert_allclose(merged, at(turn + angles @ weights / weights.sum(), 2.0)["w"], atol=1e-9)


def test_the_pulls_of_the_members_cancel_at_the_mean():
    random = np.random.default_rng(0)
    x = random.normal(size=(5, 40)) + random.normal(size=40)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    weights = random.uniform(0.1, 1, size=5)
    mean = drive(Slerp(coefficients=weights.tolist()), [{"w": row} for row in x])["w"]
    np.testing.assert_allclose(np.linalg.norm(mean), 1, rtol=1e-12)
    c = x @ mean
    pulls = (np.arccos(c) / np.sqrt(1 - c * c))[:, None] * (x - c[:, None] * mean)
    np.testing.assert_allclose(weights @ pulls, 0, atol=1e-12)


def test_the_mean_of_two_is_the_arc():
    for cos in (0.9, 0.3, -0.5):
        table = np.array([[1.0, cos], [cos, 1.0]])
        np.testing.assert_allclose(karcher(table, np.array([0.7, 0.3])), _arc(cos, 0.3), rtol=1e-12)


def test_a_member_given_twice_counts_twice():
    a, b = at(10, 1.0, 5), at(75, 3.0, 5)
    np.testing.assert_allclose(drive(Slerp(), [a, a, b])["w"], drive(Slerp(t=1 / 3), [a, b])["w"], rtol=1e-12)


def test_many_orthogonal_members_keep_their_length():
    merged = drive(Slerp(), [{"w": row} for row in 3 * np.eye(9)])["w"]
    np.testing.assert_allclose(merged, np.full(9, 1.0), rtol=1e-12)


def test_without_a_unique_mean_the_line_is_taken():
    far = [at(angle, size=3) for angle in (0, 120, 240)]  # out of their plane there is something nearer
    np.testing.assert_allclose(drive(Slerp(coefficients=[4, 3, 3]), far)["w"], [0.1, 0, 0], atol=1e-15)
    cross = [at(angle) for angle in (0, 180, 90, 270)]  # one is opposite to the mean of the others
    np.testing.assert_allclose(drive(Slerp(coefficients=[5, 1, 2, 2]), cross)["w"], [0.4, 0], atol=1e-15)
    np.testing.assert_allclose(drive(Slerp(), [at(0), at(120), at(240)])["w"], 0, atol=1e-15)
    opposite = drive(Slerp(coefficients=[2.0, 1.0, 1.0]), [at(0), at(180), at(1)])["w"]
    np.testing.assert_allclose(
        opposite, 0.5 * at(0)["w"] + 0.25 * at(180)["w"] + 0.25 * at(1)["w"], atol=1e-12
    )
    balanced = drive(Slerp(), cross)["w"]
    np.testing.assert_allclose(balanced, [0, 0], atol=1e-15)


def test_variances_that_turn_negative_are_raised_to_zero():
    base = {"bn.running_var": np.array([1.0, 1.0, 1.0])}
    members = [{"bn.running_var": np.array(v)} for v in ([0.01, 0.01, 1.9], [0.01, 1.9, 0.01])]
    with pytest.warns(UserWarning, match="negative running variances"):
        merged = merge(members, Slerp(on="delta"), base=base)["bn.running_var"]
    unclamped = drive(Slerp(on="delta"), members, base)["bn.running_var"]
    assert unclamped[0] < -0.1
    np.testing.assert_array_equal(merged, np.maximum(unclamped, 0))


# Contracts.


def test_what_is_not_finite_reaches_the_result():
    assert np.isnan(drive(Slerp(), [at(0), {"w": np.array([np.nan, 1.0])}])["w"][0])
    assert np.isinf(drive(Slerp(), [at(0), {"w": np.array([np.inf, 1.0])}])["w"][0])


@pytest.mark.parametrize("on", ["weights", "delta"])
@pytest.mark.parametrize("count", [2, 3])
def test_copies_give_the_same_bits(on, count):
    check_copies(lambda labels, theta: Slerp(on=on), count=count)


def test_unequal_coefficients_of_copies_give_the_same_bits():
    check_copies(lambda labels, theta: Slerp(coefficients=[0.1, 0.2, 0.7]))


@pytest.mark.parametrize("on", ["weights", "delta"])
def test_pieces_do_not_matter(on):
    check_pieces(lambda labels, theta: Slerp(on=on))


def test_a_tensor_of_one_member_only_is_that():
    a, b = {"w": at(0)["w"], "x": np.array([-0.0, 2.0])}, at(90)
    for rule in (Slerp(t=0.25), Slerp(coefficients=[0.3, 0.7])):
        assert bits({"x": drive(rule, [a, b])["x"]}) == bits({"x": a["x"]})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Slerp(t=1.1), r"t for slerp: expected a number in \[0, 1\], got 1.1"),
        (lambda: Slerp(on="tasks"), "on: expected 'weights' or 'delta', got 'tasks'"),
        (lambda: Slerp(t=0.5, coefficients=[1, 1]), "give either t or coefficients"),
        (lambda: drive(Slerp(), [at(0)]), "expected at least 2 members, got 1"),
        (
            lambda: drive(Slerp(t=0.5), [at(0)] * 3),
            r"expected 2 members for t \(use coefficients for more\), got 3",
        ),
        (lambda: drive(Slerp(coefficients=[1, -1]), [at(0), at(90)]), "coefficients for 'w'.*at least 0"),
        (lambda: drive(Slerp(coefficients=[0, 0]), [at(0), at(90)]), "not all 0"),
        (lambda: drive(Slerp(coefficients=[1]), [at(0), at(90)]), "one coefficient per member"),
    ],
)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(InputError, match=message):
        make()
