import numpy as np
import pytest
import torch
from tests.merging.driver import bits, check_copies, drive
from torch import nn
from torch.nn import functional

from mirepoix.merging._regmean import RegMean, gram_matrices
from mirepoix.types import Batch, InputError


def problem(seed=0, counts=(30, 50, 40), inputs=6, outputs=4):
    random = np.random.default_rng(seed)
    x = [random.normal(size=(n, inputs)) @ random.normal(size=(inputs, inputs)) for n in counts]
    w = [random.normal(size=(outputs, inputs)) for _ in counts]
    return x, w


def grams_of(x):
    return [{"w": each.T @ each / len(each)} for each in x]


def named(w):
    return [{"w": each} for each in w]


def test_it_is_least_squares_on_all_data_together():
    x, w = problem()
    targets = np.concatenate([a @ b.T for a, b in zip(x, w, strict=True)])
    best = np.linalg.lstsq(np.concatenate(x), targets)[0].T
    rule = RegMean(grams_of(x), coefficients=[30.0, 50.0, 40.0], scaling=1.0, ridge=0.0)
    np.testing.assert_allclose(drive(rule, named(w))["w"], best, rtol=1e-9)


def test_by_default_members_count_alike_with_shrunk_products():
    x, w = problem()
    left, right = np.zeros((6, 6)), np.zeros((6, 4))
    for a, b in zip(x, w, strict=True):
        g = a.T @ a / len(a)
        g = 0.9 * g + 0.1 * np.diag(np.diag(g))
        left, right = left + g, right + g @ b.T
    ridge, centre = 1e-6 * np.trace(left) / 6 * np.eye(6), sum(w).T / 3
    expected = np.linalg.solve(left + ridge, right + ridge @ centre).T
    np.testing.assert_allclose(drive(RegMean(grams_of(x)), named(w))["w"], expected, rtol=1e-10)
    strong = drive(RegMean(grams_of(x), scaling=0.3, ridge=0.5), named(w))["w"]
    assert abs(strong - expected).max() > 0.1


def test_without_products_it_is_a_weighted_mean_per_input():
    x, w = problem()
    d = np.array([(a * a).mean(0) for a in x])
    expected = sum(d[i] * w[i] for i in range(3)) / d.sum(0)
    np.testing.assert_allclose(drive(RegMean(grams_of(x), scaling=0.0, ridge=0.0), named(w))["w"], expected)


def test_a_large_ridge_gives_the_mean():
    x, w = problem()
    rule = RegMean(grams_of(x), coefficients=[1.0, 2.0, 1.0], ridge=1e9)
    np.testing.assert_allclose(drive(rule, named(w))["w"], (w[0] + 2 * w[1] + w[2]) / 4, rtol=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_along_inputs_that_nobody_has_the_mean_stays(ridge):
    x, w = problem(inputs=7)
    for a in x:
        a[:, 3] = 0.0
    merged = drive(RegMean(grams_of(x), coefficients=[1.0, 2.0, 1.0], ridge=ridge), named(w))["w"]
    np.testing.assert_allclose(merged[:, 3], (w[0] + 2 * w[1] + w[2])[:, 3] / 4, rtol=1e-9)
    assert abs(merged[:, 0] - ((w[0] + 2 * w[1] + w[2]) / 4)[:, 0]).max() > 1e-3


def test_a_singular_system_is_solved_by_least_squares():
    x, w = problem(counts=(2, 2), inputs=6)
    rule = RegMean(grams_of(x), scaling=1.0, ridge=0.0)
    merged = drive(rule, named(w))["w"]
    targets = np.concatenate([a @ b.T for a, b in zip(x, w, strict=True)])
    np.testing.assert_allclose(np.concatenate(x) @ merged.T, targets, atol=1e-6)  # 4 equations, 6 unknowns
    assert abs(merged).max() < 100


def test_filters_are_rows_of_patches():
    x, w = problem(inputs=12)
    rule = RegMean(grams_of(x))
    merged = drive(rule, [{"w": b.reshape(4, 3, 2, 2)} for b in w])["w"]
    np.testing.assert_array_equal(merged.reshape(4, 12), drive(rule, named(w))["w"])


def test_tensors_without_a_gram_matrix_are_averaged():
    x, w = problem()
    members = [{"w": b, "bias": b[:, 0].copy()} for b in w]
    merged = drive(RegMean(grams_of(x), coefficients=[1.0, 2.0, 5.0]), members)
    np.testing.assert_allclose(merged["bias"], (w[0] + 2 * w[1] + 5 * w[2])[:, 0] / 8, rtol=1e-14)


def test_rows_that_agree_are_kept_to_the_last_bit():
    x, w = problem()
    for b in w:
        b[1] = [0.1, -0.0, 0.3, 1e-30, -2.0, 1 / 3]
    merged = drive(RegMean(grams_of(x), coefficients=[0.1, 0.2, 0.7]), named(w))["w"]
    assert bits({"w": merged[1]}) == bits({"w": w[0][1]})


def test_copies_give_the_same_bits():
    def make(labels, theta):
        random = np.random.default_rng(0)
        grams = {}
        for label in labels:
            x = {"a": random.normal(size=(20, 7)), "c": random.normal(size=(5, 12))}
            grams[label] = {n: each.T @ each for n, each in x.items()}
        return RegMean(grams, coefficients=[0.1, 0.3, 0.7])

    assert RegMean.whole
    check_copies(make)


def test_half_precision_members_are_solved_in_float64():
    x, w = problem()
    half = [b.astype("f2") for b in w]
    merged = drive(RegMean(grams_of(x)), named(half))["w"]
    exact = drive(RegMean(grams_of(x)), named([b.astype("f8") for b in half]))["w"]
    np.testing.assert_array_equal(merged, exact.astype("f4").astype("f2"))


def test_not_a_number_reaches_the_result():
    x, w = problem()
    w[1][2, 3] = np.nan
    with np.errstate(invalid="ignore"):
        assert np.isnan(drive(RegMean(grams_of(x)), named(w))["w"][2]).all()


def test_a_tensor_that_some_members_lack_is_merged_from_the_others():
    x, w = problem(counts=(9, 9))
    grams = grams_of(x)
    members = [{"v": np.ones(1)}, {"v": np.ones(1), "w": w[1]}]
    assert bits(drive(RegMean([{}, grams[1]]), members)) == bits(members[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, w: RegMean([], scaling=1.5), r"scaling: expected a number in \[0, 1\], got 1.5"),
        (lambda x, w: RegMean([], ridge=-1.0), "ridge: expected a number of at least 0, got -1.0"),
        (
            lambda x, w: drive(RegMean(grams_of(x)[:2]), named(w)),
            r"grams: expected one per member \(3\), got 2",
        ),
        (lambda x, w: drive(RegMean([{}, *grams_of(x)[1:]]), named(w)), "grams of member 0: has no 'w'"),
        (
            lambda x, w: drive(RegMean(grams_of(x)), named([b.T.copy() for b in w])),
            r"grams of member 0: 'w' must be floats of shape \(4, 4\), got F64 of \(6, 6\)",
        ),
        (
            lambda x, w: drive(RegMean([{"w": np.full((6, 6), np.inf)}, *grams_of(x)[1:]]), named(w)),
            "grams of member 0: 'w' holds NaN or infinity",
        ),
        (lambda x, w: drive(RegMean(grams_of(x), coefficients=[-1.0, 1, 1]), named(w)), "at least 0"),
        (
            lambda x, w: drive(RegMean(grams_of(x), coefficients=[1.0]), named(w)),
            "one coefficient per member",
        ),
    ],
)
def test_errors_say_what_was_expected(make, message):
    with pytest.raises(InputError, match=message):
        make(*problem())


# The Gram matrices themselves.


def batches(*shapes):
    random = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randn(*s, generator=random, dtype=torch.float64),
            torch.zeros(s[0]).long(),
            torch.zeros(s[0]),
        )
        for s in shapes
    ]


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Linear(5, 5, bias=False)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        h = self.drop(self.first(x)).tanh()
        return self.second(self.second(h))  # called twice


def test_every_vector_that_enters_a_layer_counts():
    model, given = Tokens().double().train(), batches((4, 7, 3), (2, 7, 3))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    found = gram_matrices(model, given)
    assert set(found) == {"first.weight", "second.weight"}
    x = torch.cat([b.images.reshape(-1, 3) for b in given])
    torch.testing.assert_close(found["first.weight"], x.T @ x / len(x))
    h = model.first(x).tanh()
    h = torch.cat([h, model.second(h)]).detach()
    torch.testing.assert_close(found["second.weight"], h.T @ h / len(h))
    assert model.training
    assert not model.first._forward_pre_hooks
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_layer_by_itself_is_called_weight():
    (name,) = gram_matrices(nn.Linear(3, 2).double(), batches((4, 3)))
    assert name == "weight"


def test_sums_of_half_precision_inputs_are_in_float64():
    model = nn.Linear(3, 2).to(torch.bfloat16)
    given = [Batch(b.images.to(torch.bfloat16), b.labels, b.domains) for b in batches((500, 3))]
    x = given[0].images.double()
    torch.testing.assert_close(gram_matrices(model, given)["weight"], x.T @ x / 500, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1, "stride": 2},
        {"padding": (2, 0), "dilation": (1, 2)},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": "same", "padding_mode": "circular"},
    ],
)
def test_filters_see_patches(options):
    kernel = (3, 3) if options.get("padding") == "same" else (3, 2)
    size = 2 * kernel[0] * kernel[1]
    layer = nn.Conv2d(2, 4, kernel, bias=False, **options).double()
    with torch.no_grad():
        one = functional.one_hot(torch.arange(size), size).double().reshape(size, 2, *kernel)
        spread = nn.Conv2d(2, size, kernel, bias=False, **options).double()
        spread.weight.copy_(one)  # its outputs are the patches
        given = batches((3, 2, 6, 7))
        patches = spread(given[0].images).transpose(0, 1).flatten(1)
    found = gram_matrices(layer, given, convolutions=True)
    torch.testing.assert_close(found["weight"], patches @ patches.T / patches.shape[1])


def test_filters_are_measured_on_request_and_without_groups():
    model = nn.Sequential(
        nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(), nn.Linear(8, 1)
    ).double()
    assert set(gram_matrices(model, batches((3, 2, 2, 2)))) == {"3.weight"}
    assert set(gram_matrices(model, batches((3, 2, 2, 2)), convolutions=True)) == {"0.weight", "3.weight"}


def test_layers_of_a_transformer_are_all_seen():
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True).double()
    assert set(gram_matrices(layer, batches((3, 5, 4)))) == {"linear1.weight", "linear2.weight"}


def test_nothing_to_measure_is_an_error():
    for given in ([], batches((3, 2, 2, 2))):
        with pytest.raises(InputError, match="no linear layer of the network was called"):
            gram_matrices(nn.Sequential(nn.Conv2d(2, 2, 1)).double(), given)


def test_the_merged_layer_fits_the_outputs_of_both_members():
    torch.manual_seed(0)
    models = [nn.Linear(6, 3).double() for _ in range(2)]
    given = batches((40, 6), (40, 6))
    for batch, mix in zip(given, torch.randn(2, 6, 6, dtype=torch.float64), strict=True):
        batch.images.copy_(batch.images @ mix)
    grams = [gram_matrices(m, [b]) for m, b in zip(models, given, strict=True)]
    thetas = [{n: t.detach().numpy() for n, t in m.state_dict().items()} for m in models]

    def loss(weight):
        gaps = [b.images.numpy() @ (weight - t["weight"]).T for b, t in zip(given, thetas, strict=True)]
        return sum((g**2).sum() for g in gaps)

    merged = drive(RegMean(grams, scaling=1.0), thetas)["weight"]
    assert loss(merged) < 0.9 * loss((thetas[0]["weight"] + thetas[1]["weight"]) / 2)
