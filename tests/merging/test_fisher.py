import numpy as np
import pytest
import torch
from tests.merging.driver import bits, check_copies, check_pieces, drive, example
from torch import nn

from mirepoix.merging._fisher import Fisher, fisher_diagonal
from mirepoix.types import Batch, InputError, Outputs


def like(theta, seed, without=()):
    random = np.random.default_rng(seed)
    return {n: random.gamma(1.0, size=x.shape) for n, x in theta.items() if n not in without}


def test_the_minimum_of_the_sum_of_quadratic_losses_is_found():
    random = np.random.default_rng(0)
    minima, curvatures = random.normal(size=(3, 8)), random.gamma(1.0, size=(3, 8))
    weights = np.array([0.5, 1.0, 2.0])
    rule = Fisher([{"w": f} for f in curvatures], coefficients=weights.tolist(), floor=1e-300)
    merged = drive(rule, [{"w": m} for m in minima])["w"]
    hessian = np.diag((weights[:, None] * curvatures).sum(0))
    best = np.linalg.solve(hessian, (weights[:, None] * curvatures * minima).sum(0))
    np.testing.assert_allclose(merged, best, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-9])
def test_a_constant_diagonal_gives_the_weighted_mean(value):
    members = [example(1, dtype="float64"), example(2, dtype="float64")]
    fishers = [{n: np.full(x.shape, value) for n, x in members[0].items()}] * 2
    merged = drive(Fisher(fishers, coefficients=[1.0, 3.0]), members)
    for n in merged:
        np.testing.assert_allclose(
            merged[n], 0.25 * members[0][n] + 0.75 * members[1][n], rtol=1e-12, atol=1e-15
        )


def test_the_floor_is_added_to_every_entry():
    members = [{"w": np.zeros(2)}, {"w": np.ones(2)}]
    merged = drive(Fisher([{"w": np.array([0.0, 1.0])}, {"w": np.array([1.0, 0.0])}], floor=0.5), members)[
        "w"
    ]
    np.testing.assert_allclose(merged, [0.75, 0.25])


def test_each_diagonal_may_be_divided_by_its_length_over_all_tensors():
    members = [{"v": np.zeros(1), "w": np.zeros(1)}, {"v": np.ones(1), "w": np.ones(1)}]
    fishers = [{"v": np.array([30.0]), "w": np.array([40.0])}, {"v": np.array([0.08]), "w": np.array([0.06])}]
    merged = drive(Fisher(fishers, normalize=True, floor=0.1), members)
    np.testing.assert_allclose(merged["v"], 0.9 / (0.7 + 0.9))
    np.testing.assert_allclose(merged["w"], 0.7 / (0.9 + 0.7))


def test_the_length_is_summed_over_blocks():
    size = 70_000
    members = [{"w": np.zeros(size)}, {"w": np.ones(size)}]
    fishers = [{"w": np.full(size, 2.0)}, {"w": np.full(size, 3.0)}]
    merged = drive(Fisher(fishers, normalize=True, floor=1e-12), members)["w"]
    np.testing.assert_allclose(merged, 0.5, rtol=1e-9)


def test_tensors_without_a_diagonal_are_averaged():
    members = [example(1, dtype="float64"), example(2, dtype="float64")]
    rule = Fisher([like(members[0], i, without=("b",)) for i in range(2)], coefficients=[1.0, 3.0])
    merged = drive(rule, members)
    np.testing.assert_allclose(merged["b"], 0.25 * members[0]["b"] + 0.75 * members[1]["b"], rtol=1e-14)
    assert abs(merged["a"] - 0.25 * members[0]["a"] - 0.75 * members[1]["a"]).max() > 1e-3


def test_diagonals_may_be_given_by_name_and_in_torch():
    members = {"x": example(1), "y": example(2)}
    fishers = {"y": like(members["x"], 1), "x": like(members["x"], 0)}
    in_torch = {k: {n: torch.from_numpy(np.asarray(f)) for n, f in d.items()} for k, d in fishers.items()}
    in_order = [fishers["x"], fishers["y"]]
    expected = bits(drive(Fisher(in_order), members))
    assert bits(drive(Fisher(fishers), members)) == bits(drive(Fisher(in_torch), members)) == expected


@pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
def test_a_diagonal_that_cannot_be_one_is_refused(wrong):
    members = [{"w": np.zeros(3)}, {"w": np.ones(3)}]
    fishers = [{"w": np.ones(3)}, {"w": np.array([1.0, wrong, 1.0])}]
    with pytest.raises(
        InputError, match="fishers of member 1: 'w' holds entries that are negative or not finite"
    ):
        drive(Fisher(fishers), members)


def test_errors_say_what_was_expected():
    for floor in (0.0, -1.0, np.inf):
        with pytest.raises(InputError, match="floor: expected a number above 0"):
            Fisher([], floor=floor)
    with pytest.raises(InputError, match=r"fishers: expected one per member \(2\), got 1"):
        Fisher([{}]).check("xy")
    with pytest.raises(InputError, match="one coefficient per member"):
        Fisher([{}, {}], coefficients=[1.0]).check("xy")
    with pytest.raises(InputError, match="fishers of member 0: has the squared length 0"):
        drive(Fisher([{"w": np.zeros(2)}] * 2, normalize=True), [{"w": np.zeros(2)}] * 2)


@pytest.mark.parametrize("normalize", [False, True])
def test_copies_give_the_same_bits_and_pieces_do_not_matter(normalize):
    def make(labels, theta):
        fishers = {label: like(theta, i, without=("b",)) for i, label in enumerate(labels)}
        return Fisher(fishers, coefficients=[0.1, 0.3, 0.7], normalize=normalize)

    check_copies(make)
    check_pieces(make)


def test_a_tensor_that_some_members_lack_is_merged_from_the_others():
    members = [{"w": np.array([1.0])}, {"w": np.array([2.0]), "v": np.array([5.0])}]
    fishers = [{"w": np.ones(1)}, {"w": np.ones(1), "v": np.ones(1)}]
    assert drive(Fisher(fishers), members)["v"].tolist() == [5.0]


# The diagonal itself.


class Small(nn.Module):
    def __init__(self, classes=3, *, bare=False):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, classes)
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.again = self.head
        self.bare = bare

    def forward(self, images):
        features = self.drop(self.frozen(self.relu(self.norm(self.conv(images))).mean((2, 3))))
        logits = self.again(features)
        return logits if self.bare else Outputs(features, logits)


def network(**options):
    torch.manual_seed(0)
    model = Small(**options).double()
    model.norm.running_mean += torch.randn(4, dtype=torch.float64)
    return model


def data(sizes=(3, 6), classes=3):
    random = torch.Generator().manual_seed(1)
    return [
        Batch(
            torch.randn(n, 2, 5, 5, generator=random, dtype=torch.float64),
            torch.randint(classes, (n,), generator=random),
            torch.zeros(n),
        )
        for n in sizes
    ]


def by_loop(model, batches, weigh):
    """Per example and label: a gradient, squared, times ``weigh(probabilities, label of the data)``."""
    model = model.eval()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total, count = {n: torch.zeros_like(p) for n, p in trained.items()}, 0
    for batch in batches:
        for image, label in zip(batch.images, batch.labels, strict=True):
            out = model(image[None])
            scores = getattr(out, "logits", out)[0].log_softmax(-1)
            for c, weight in enumerate(weigh(scores.exp().detach(), label)):
                gradients = torch.autograd.grad(scores[c], list(trained.values()), retain_graph=True)
                for n, g in zip(trained, gradients, strict=True):
                    total[n] += weight * g.square()
            count += 1
    return {n: t / count for n, t in total.items()}


@pytest.mark.parametrize("bare", [False, True])
def test_the_exact_expectation_is_that_of_a_loop(bare):
    expected = by_loop(network(bare=bare), data(), lambda p, label: p)
    found = fisher_diagonal(network(bare=bare), data(), chunk=4)
    for name, f in expected.items():
        torch.testing.assert_close(found[name], f)


def test_labels_of_the_data_are_those_of_a_loop():
    expected = by_loop(network(), data(), lambda p, label: nn.functional.one_hot(label, 3))
    found = fisher_diagonal(network(), data(), labels="true", chunk=2)
    for name, f in expected.items():
        torch.testing.assert_close(found[name], f)


def test_with_many_classes_one_label_is_drawn_per_example():
    classes = 17
    model, batches = network(classes=classes), data((4, 3), classes)
    seeds = 400
    draws = [fisher_diagonal(model, batches, seed=seed)["head.bias"] for seed in range(seeds)]
    exact = by_loop(model, batches, lambda p, label: p)["head.bias"]
    draws = torch.stack(draws)
    error = draws.std(0) / seeds**0.5
    assert ((draws.mean(0) - exact).abs() < 4.5 * error).all()
    assert (draws.std(0) > 0).all()


def test_drawn_labels_depend_on_the_seed_alone():
    model, one = network(classes=20), data((9,), 20)
    split = [
        Batch(one[0].images[a:b], one[0].labels[a:b], one[0].domains[a:b])
        for a, b in ((0, 2), (2, 7), (7, 9))
    ]
    first = fisher_diagonal(model, one, seed=3)
    for batches, chunk in ((one, 1), (split, 8), (split, 2)):
        again = fisher_diagonal(model, batches, seed=3, chunk=chunk)
        torch.testing.assert_close(again, first)
    assert not torch.allclose(fisher_diagonal(model, one, seed=4)["head.bias"], first["head.bias"])


def test_at_most_so_many_samples_are_used():
    expected = fisher_diagonal(
        network(),
        [Batch(d.images[:n], d.labels[:n], d.domains[:n]) for d, n in zip(data(), (3, 2), strict=True)],
    )
    torch.testing.assert_close(fisher_diagonal(network(), data(), samples=5), expected)
    torch.testing.assert_close(
        fisher_diagonal(network(), data(), samples=100), fisher_diagonal(network(), data())
    )


def test_trained_parameters_are_measured_under_all_their_names_and_nothing_is_changed():
    model = network().float().train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    found = fisher_diagonal(model, [Batch(d.images.float(), d.labels, d.domains) for d in data()])
    assert set(found) == {
        "conv.weight", "conv.bias", "norm.weight", "norm.bias", "head.weight", "head.bias", "again.weight", "again.bias"
    }  # fmt: skip
    assert torch.equal(found["again.bias"], found["head.bias"])
    assert found["head.bias"].dtype == torch.float32
    assert model.training
    assert model.drop.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_fisher_needs_examples_and_known_options():
    for wrong, message in (
        ({"labels": "drawn"}, "labels: expected 'model' or 'true', got 'drawn'"),
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"chunk": 0}, "chunk: expected at least 1, got 0"),
    ):
        with pytest.raises(InputError, match=message):
            fisher_diagonal(network(), data(), **wrong)
    with pytest.raises(InputError, match="expected at least one example, got none"):
        fisher_diagonal(network(), [])


def test_the_merge_takes_what_was_measured():
    models = [network(), network()]
    for p in models[1].parameters():
        p.data += 0.1
    thetas = [{n: t.numpy() for n, t in m.state_dict().items() if t.is_floating_point()} for m in models]
    fishers = [fisher_diagonal(m, data()) for m in models]
    merged = drive(Fisher(fishers, floor=1e-12), thetas)
    f = [d["head.weight"].numpy() + 1e-12 for d in fishers]
    expected = (f[0] * thetas[0]["head.weight"] + f[1] * thetas[1]["head.weight"]) / (f[0] + f[1])
    np.testing.assert_allclose(merged["head.weight"], expected)
    np.testing.assert_allclose(merged["norm.running_mean"], thetas[0]["norm.running_mean"])
