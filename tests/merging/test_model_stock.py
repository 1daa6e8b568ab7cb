import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.merging.driver import bits, check_copies, check_pieces, drive, example, start

from mirepoix.merging._model_stock import ModelStock
from mirepoix.types import InputError


def pair(cos, base, lengths=(1.0, 1.0)):
    """Two members whose differences from the base have this cosine."""
    a, b = np.zeros(3), np.zeros(3)
    a[0] = lengths[0]
    b[:2] = lengths[1] * np.array([cos, np.sqrt(1 - cos**2)])
    return [{"w": base + a}, {"w": base + b}]


@pytest.mark.parametrize(
    ("cos", "t"), [(1.0, 1.0), (0.5, 2 / 3), (0.25, 0.4), (0.0, 0.0), (-0.5, 0.0), (-1.0, 0.0)]
)
def test_two_members_give_the_published_ratio(cos, t):
    base = np.array([3.0, -1.0, 2.0])
    members = pair(cos, base, (2.0, 5.0))
    centre = (members[0]["w"] + members[1]["w"]) / 2
    merged = drive(ModelStock(), members, {"w": base})["w"]
    np.testing.assert_allclose(merged, base + t * (centre - base), atol=1e-14)


def test_without_clamp_opposite_ways_lead_away_from_the_mean():
    base = np.array([3.0, -1.0, 2.0])
    members = pair(-0.5, base)
    centre = (members[0]["w"] + members[1]["w"]) / 2
    merged = drive(ModelStock(clamp=False), members, {"w": base})["w"]
    np.testing.assert_allclose(merged, base - 2 * (centre - base), atol=1e-12)  # 2 cos / (1 + cos) = -2


@given(st.integers(2, 6), st.floats(0.1, 3), st.floats(0.1, 3))
def test_it_is_the_nearest_point_to_the_centre_of_the_shell(count, shared, own):
    """The paper's geometry: members at right angles around a centre, the base at right angles to all of it."""
    random = np.random.default_rng(count)
    axes = np.linalg.qr(random.normal(size=(20, 20)))[0]
    base = random.normal(size=20)
    centre = base + shared * axes[0]
    members = [{"w": centre + own * axes[1 + i]} for i in range(count)]
    mean = np.mean([m["w"] for m in members], 0)
    direction = mean - base
    nearest = base + direction * ((centre - base) @ direction) / (direction @ direction)
    np.testing.assert_allclose(drive(ModelStock(), members, {"w": base})["w"], nearest, atol=1e-12)


def test_the_cosine_is_the_mean_over_all_pairs():
    random = np.random.default_rng(0)
    base, deltas = random.normal(size=30), random.normal(size=(4, 30)) + random.normal(size=30)
    merged = drive(ModelStock(), [{"w": base + d} for d in deltas], {"w": base})["w"]
    pairs = [
        deltas[i] @ deltas[j] / np.linalg.norm(deltas[i]) / np.linalg.norm(deltas[j])
        for i in range(4)
        for j in range(i)
    ]
    cos = np.mean(pairs)
    assert 0.2 < cos < 0.8
    np.testing.assert_allclose(merged, base + 4 * cos / (1 + 3 * cos) * deltas.mean(0), rtol=1e-12)


def test_rows_are_measured_each_by_itself():
    random = np.random.default_rng(0)
    shape = (300, 4, 5, 20)  # rows of 400 entries: more than one block of whole rows
    base = {"w": random.normal(size=shape)}
    common = random.normal(size=shape)
    members = [{"w": base["w"] + common + random.normal(size=shape)} for _ in range(3)]
    merged = drive(ModelStock(scope="row"), members, base)["w"]
    for row in range(0, 300, 7):
        alone = drive(ModelStock(), [{"w": m["w"][row]} for m in members], {"w": base["w"][row]})["w"]
        np.testing.assert_allclose(merged[row], alone, rtol=1e-12)
    assert abs(merged - drive(ModelStock(), members, base)["w"]).max() > 1e-3


def test_tensors_of_one_axis_have_one_place_in_either_scope():
    members, base = [example(1), example(2)], start()
    rows, whole = drive(ModelStock(scope="row"), members, base), drive(ModelStock(), members, base)
    for name in ("b", "scalar", "none"):
        assert bits({name: rows[name]}) == bits({name: whole[name]})


def test_a_member_that_did_not_move_is_unrelated():
    base = np.array([3.0, -1.0, 2.0])
    moved = {"w": base + np.array([1.0, 0.0, 0.0])}
    merged = drive(ModelStock(), [moved, moved, {"w": base}], {"w": base})["w"]
    t = 3 * (1 / 3) / (1 + 2 / 3)  # one pair of three agrees
    np.testing.assert_allclose(merged, base + t * np.array([2 / 3, 0, 0]), rtol=1e-14)
    assert bits(drive(ModelStock(), [moved, {"w": base}], {"w": base})) == bits({"w": base})


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_copies_away_from_the_base_give_themselves_back(scope):
    for dtype in ("float16", "float32", "float64"):
        theta = example(1, dtype=dtype)
        for count in (2, 3, 7):
            merged = drive(ModelStock(scope), [theta] * count, start(dtype))
            assert bits(merged) == bits(theta)


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_entries_that_all_share_stay_to_the_last_bit(scope):
    random = np.random.default_rng(0)
    shared = random.normal(size=(1, 500))
    shared[0, :9] = -0.0
    base, *members = ({"w": np.hstack([shared, random.normal(size=(1, 4)) + 3 * i])} for i in (0, 1, 1))
    merged = drive(ModelStock(scope), members, base)["w"]
    assert bits({"w": merged[:, :500]}) == bits({"w": shared})
    assert (merged[:, 500:] != base["w"][:, 500:]).all()


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_both_ends_are_reached_to_the_last_bit(scope):
    base = {"w": np.array([[1.0, -0.0, 0.0, np.pi]])}
    theta = {"w": np.array([[-0.0, 0.3, -0.0, 1e30]])}
    assert bits(drive(ModelStock(scope), [theta, theta], base)) == bits(theta)
    opposite = [{"w": np.array([[2.0, 1.0, 1.0, 3.0]])}, {"w": np.array([[0.0, -1.0, -1.0, 3.0]])}]
    opposite[1]["w"][0, 3] = opposite[0]["w"][0, 3] = np.pi
    opposite[0]["w"][0, 1], opposite[1]["w"][0, 1] = 1.0, -0.5
    assert bits(drive(ModelStock(scope), opposite, base)) == bits(base)


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_copies_give_the_same_bits(scope):
    check_copies(lambda labels, theta: ModelStock(scope))


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_pieces_do_not_matter(scope):
    assert ModelStock(scope).whole == (scope == "row")
    check_pieces(lambda labels, theta: ModelStock(scope))


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_what_is_not_finite_reaches_the_result(scope):
    members, base = [example(1), example(2)], start()
    members[1]["a"][2, 3] = np.nan
    assert np.isnan(drive(ModelStock(scope), members, base)["a"][2, 3])


def test_a_tensor_of_one_member_only_is_that():
    a, b = example(1), example(2)
    merged = drive(ModelStock(), [a, {"b": b["b"]}], start())
    assert bits({"a": merged["a"]}) == bits({"a": a["a"]})


def test_errors_say_what_to_do():
    base = np.array([3.0, -1.0, 2.0])
    with pytest.raises(InputError, match="at least 2 members, got 1"):
        drive(ModelStock(), [{"w": base}], {"w": base})
    with pytest.raises(InputError, match="scope: expected 'tensor' or 'row', got 'column'"):
        ModelStock(scope="column")
    with pytest.raises(InputError, match=r"'w': the members' differences from the base cancel.*clamp=True"):
        drive(ModelStock(clamp=False), [{"w": np.ones(2)}, {"w": -np.ones(2)}], {"w": np.zeros(2)})
