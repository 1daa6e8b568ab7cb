import numpy as np
import pytest
from tests.merging.driver import check_copies, check_pieces, drive, example, start

from mirepoix.merging._dare import Dare, kept
from mirepoix.merging._rule import Piece
from mirepoix.types import InputError

SIX = {
    "x": {"w": np.array([5.0, -4.0, 3.0, -2.0, 1.0, 0.5])},
    "y": {"w": np.array([-1.0, -6.0, 4.0, 3.0, 0.1, 2.0])},
}
BASE = {"w": np.array([1.0, 1.0, -1.0, 0.0, 2.0, 0.5])}


def masks(seed=0, density=0.5, name="w", labels="xy", size=6):
    return [kept(seed, label, Piece(name, (size,), 0, size), density) for label in labels]


def mixed_seed():
    """A seed under which each of the four fates of an entry occurs."""
    return next(s for s in range(100) if len({tuple(c) for c in np.array(masks(s)).T.tolist()}) == 4)


def test_six_entries_by_hand():
    seed = mixed_seed()
    expected = BASE["w"].copy()
    for e in range(6):
        for label, mask, weight in zip("xy", masks(seed), (0.5, 2.0), strict=True):
            if mask[e]:
                expected[e] += 0.8 * weight * (SIX[label]["w"][e] - BASE["w"][e]) / 0.5
    merged = drive(Dare(coefficients=[0.5, 2.0], seed=seed, scale=0.8), SIX, BASE)["w"]
    np.testing.assert_allclose(merged, expected, rtol=1e-14)


@pytest.mark.parametrize(("normalize", "below"), [(False, 1.0), (True, 2.5), ("count", 2.0)])
def test_the_sum_is_divided_as_asked(normalize, below):
    plain = drive(Dare(coefficients=[0.5, -2.0]), SIX, BASE)["w"] - BASE["w"]
    divided = drive(Dare(coefficients=[0.5, -2.0], normalize=normalize), SIX, BASE)["w"] - BASE["w"]
    assert abs(plain).max() > 1
    np.testing.assert_allclose(divided, plain / below, atol=1e-14)


@pytest.mark.parametrize("normalize", [False, True, "count"])
def test_election_adds_only_what_agrees(normalize):
    seed = mixed_seed()
    weights = (0.5, 2.0)
    expected = BASE["w"].copy()
    for e in range(6):
        terms = [
            (w, w * m[e] * (SIX[label]["w"][e] - BASE["w"][e]) / 0.5)
            for label, m, w in zip("xy", masks(seed), weights, strict=True)
        ]
        sign = 1 if sum(v for _, v in terms) >= 0 else -1
        agree = [(w, v) for w, v in terms if v * sign > 0]
        below = {False: 1, True: sum(w for w, _ in agree), "count": len(agree)}[normalize]
        if agree:
            expected[e] += sum(v for _, v in agree) / below
    rule = Dare(coefficients=list(weights), seed=seed, elect=True, normalize=normalize)
    np.testing.assert_allclose(drive(rule, SIX, BASE)["w"], expected, rtol=1e-14)


def test_kept_changes_are_left_or_restore_the_sum_of_magnitudes():
    shapes = {"w": (300, 300)}
    member, base = example(1, shapes=shapes, dtype="float64"), start("float64", shapes=shapes)
    delta = member["w"] - base["w"]
    mask = kept(0, "0", Piece("w", (300, 300), 0, 90_000), 0.3).reshape(300, 300)
    left = drive(Dare(density=0.3, rescale=None), [member], base)["w"] - base["w"]
    np.testing.assert_allclose(left, delta * mask, atol=1e-14)
    restored = drive(Dare(density=0.3, rescale="l1"), [member], base)["w"] - base["w"]
    np.testing.assert_allclose(abs(restored).sum(), abs(delta).sum(), rtol=1e-12)
    np.testing.assert_allclose(
        restored, delta * mask * (abs(delta).sum() / abs(delta * mask).sum()), atol=1e-14
    )


def test_where_nothing_is_kept_nothing_is_restored():
    base, member = {"w": np.zeros(1)}, {"w": np.ones(1)}
    seed = next(s for s in range(100) if not masks(s, labels="0", size=1)[0])
    assert drive(Dare(rescale="l1", seed=seed), [member], base)["w"].tolist() == [0.0]


def test_the_expectation_is_the_mean():
    members, base = [example(i, dtype="float64") for i in (1, 2, 3)], start("float64")
    draws = 400
    for density in (0.2, [0.2, 0.5, 0.9]):
        totals = {n: np.zeros(x.shape) for n, x in base.items()}
        for seed in range(draws):
            for n, x in drive(Dare(density=density, seed=seed), members, base).items():
                totals[n] += x
        shares = density if isinstance(density, list) else [density] * 3
        z = []
        for n in base:
            deltas = [m[n] - base[n] for m in members]
            error = np.sqrt(
                sum((d / 3) ** 2 * (1 / q - 1) for d, q in zip(deltas, shares, strict=True)) / draws
            )
            gap = totals[n] / draws - base[n] - sum(deltas) / 3
            z.append((gap[error > 0] / error[error > 0]).ravel())
        z = np.concatenate(z)
        assert len(z) > 50
        assert abs(z).max() < 4.5  # standard errors
        assert 0.7 < z.std() < 1.3


def test_everything_kept_is_task_arithmetic():
    members, base = [example(1, dtype="float64"), example(2, dtype="float64")], start("float64")
    for rescale in ("expectation", "l1", None):
        merged = drive(Dare(coefficients=[0.3, -0.2], density=1.0, rescale=rescale), members, base)
        for n in base:
            expected = base[n] + 0.3 * (members[0][n] - base[n]) - 0.2 * (members[1][n] - base[n])
            np.testing.assert_allclose(merged[n], expected, rtol=1e-13, atol=1e-15)


# The random numbers.


def test_entries_are_kept_at_the_density():
    for density in (0.01, 0.3, 0.9):
        mask = kept(5, "m", Piece("w", (10**6,), 0, 10**6), density)
        assert abs(mask.mean() - density) < 4.5 * np.sqrt(density * (1 - density) / 10**6)
        lag = np.corrcoef(mask[1:], mask[:-1])[0, 1]
        assert abs(lag) < 4.5e-3
    assert kept(5, "m", Piece("w", (1000,), 0, 1000), 1.0).all()


def test_a_place_keeps_its_number_whatever_the_piece():
    whole = kept(1, "m", Piece("w", (1000,), 0, 1000), 0.4)
    for start_, stop in [(0, 1), (1, 9), (7, 8), (8, 16), (13, 999), (999, 1000), (5, 5)]:
        np.testing.assert_array_equal(
            kept(1, "m", Piece("w", (1000,), start_, stop), 0.4), whole[start_:stop]
        )


def test_more_density_keeps_more_of_the_same():
    few, many = (kept(1, "m", Piece("w", (1000,), 0, 1000), q) for q in (0.2, 0.6))
    assert (few <= many).all()


def test_seeds_members_and_tensors_draw_independently():
    piece = Piece("w", (10**5,), 0, 10**5)
    drawn = [
        kept(0, "m", piece, 0.5),
        kept(1, "m", piece, 0.5),
        kept(0, "n", piece, 0.5),
        kept(0, "m", Piece("v", (10**5,), 0, 10**5), 0.5),
        kept(-1, "m", piece, 0.5),
    ]
    table = np.corrcoef(drawn) - np.eye(5)
    assert abs(table).max() < 4.5 / np.sqrt(10**5)
    np.testing.assert_array_equal(drawn[0], kept(0, "m", piece, 0.5))


def test_the_numbers_stay_the_same_from_release_to_release():
    mask = kept(3, "member", Piece("layer.weight", (24,), 0, 24), 0.5)
    assert "".join(str(int(k)) for k in mask) == "001110011011100010000100"


def test_names_of_members_and_not_their_order_decide():
    merged = drive(Dare(seed=4), SIX, BASE)
    swapped = drive(Dare(seed=4), {"y": SIX["y"], "x": SIX["x"]}, BASE)
    np.testing.assert_allclose(merged["w"], swapped["w"], rtol=1e-14)
    renamed = drive(Dare(seed=4), {"v": SIX["x"], "u": SIX["y"]}, BASE)
    assert abs(merged["w"] - renamed["w"]).max() > 0.1


# Contracts.


def test_dropped_entries_are_the_base_to_the_last_bit():
    base, member = {"w": np.full(100, -0.0, "f4")}, {"w": np.ones(100, "f4")}
    merged = drive(Dare(density=0.3), [member], base)["w"]
    assert 10 < np.signbit(merged).sum() < 90
    assert (merged[~np.signbit(merged)] > 3).all()


def test_not_a_number_is_not_dropped():
    base, member = {"w": np.zeros(50)}, {"w": np.full(50, np.nan)}
    for rule in (Dare(density=0.1), Dare(density=0.1, elect=True), Dare(density=0.1, rescale="l1")):
        assert np.isnan(drive(rule, [member], base)["w"]).all()


@pytest.mark.parametrize("elect", [False, True])
@pytest.mark.parametrize("rescale", ["expectation", "l1", None])
def test_copies_give_the_same_bits(elect, rescale):
    check_copies(lambda labels, theta: Dare(rescale=rescale, elect=elect))


@pytest.mark.parametrize("elect", [False, True])
@pytest.mark.parametrize("rescale", ["expectation", "l1", None])
def test_pieces_do_not_matter(elect, rescale):
    check_pieces(lambda labels, theta: Dare(density=[0.3, 0.5, 0.9], rescale=rescale, elect=elect))


def test_a_tensor_that_some_members_lack_is_merged_from_the_others():
    base = {"a": np.zeros(2), "b": np.zeros(2)}
    members = {"x": {"b": np.ones(2)}, "y": {"a": np.ones(2), "b": np.ones(2)}}
    merged = drive(Dare(density={"x": 0.3, "y": 1.0}), members, base)
    assert merged["a"].tolist() == [1.0, 1.0]
    assert drive(Dare(coefficients=[5.0, 2.0], density=1.0), members, base)["a"].tolist() == [2.0, 2.0]


def test_densities_may_differ_by_name():
    base = {"a": np.zeros(2), "b": np.zeros(2)}
    seed = next(s for s in range(100) if masks(s, name="b", labels="0", size=2)[0].tolist() == [False, True])
    rule = Dare(density=[[("a", 1.0), ("", 0.5)]], seed=seed)
    merged = drive(rule, [{"a": np.ones(2), "b": np.ones(2)}], base)
    assert (merged["a"].tolist(), merged["b"].tolist()) == ([1, 1], [0, 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dare(density=0.0), r"density: expected the kept share, in \(0, 1\], got 0.0"),
        (lambda: Dare(rescale="l2"), "rescale: expected 'expectation', 'l1' or None, got 'l2'"),
        (lambda: Dare(seed=0.5), "seed: expected a whole number, got 0.5"),
        (lambda: Dare(scale=float("nan")), "scale: expected a finite number, got nan"),
        (lambda: Dare(normalize="sum"), "normalize: expected"),
        (lambda: Dare(density=[0.5]).check("xy"), r"density: expected one per member \(2\), got 1"),
        (lambda: Dare(coefficients=[1.0]).check("xy"), "one coefficient per member"),
    ],
)
def test_errors_say_what_was_expected(make, message):
    with pytest.raises(InputError, match=message):
        make()
