import copy
import itertools
import math

import numpy as np
import pytest
import torch
from tests.reference import simplex as reference
from tests.reference.plain import adam_step, new_adam
from tests.snapshots.local_samples import RUN, SPEC, first_member, loss_and_accuracy, trained
from torch import nn

from mirepoix.models import Network, NetworkSpec
from mirepoix.snapshots import SimplexVolume, sample_simplex, simplex_volume
from mirepoix.types import Batch, InputError
from mirepoix.weights import average, distance, interpolate


class Plain(NetworkSpec):
    """The network of the reference."""

    def build(self, *, dropout=0.0, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            featurizer = nn.Sequential(nn.Flatten(), nn.Linear(2, 4, bias=False), nn.Tanh())
            return Network(featurizer, 4, self.classes, dropout=dropout).double()


PLAIN = Plain(name="mnist_cnn", classes=3, channels=1)


def weights(seed):
    return {name: value.clone() for name, value in PLAIN.build(seed=seed).state_dict().items()}


def drawn(step, sizes=(3, 2)):
    random = torch.Generator().manual_seed(step)
    return [
        Batch(
            torch.randn(size, 1, 1, 2, generator=random, dtype=torch.float64),
            torch.randint(3, (size,), generator=random),
            torch.full((size,), place),
        )
        for place, size in enumerate(sizes)
    ]


def points_of(rows):
    return [{"a": torch.tensor(row[:1]), "b": torch.tensor(row[1:]).view(-1, 1)} for row in rows]


# Volumes ----------------------------------------------------------------------------------------------------


def test_a_segment_has_its_length_and_a_triangle_its_area():
    random = np.random.default_rng(0)
    for _ in range(20):
        points = random.normal(size=(3, 5))
        a, b, c = (float(np.linalg.norm(points[i] - points[j])) for i, j in ((0, 1), (0, 2), (1, 2)))
        assert simplex_volume(points_of(points[:2].tolist())) == pytest.approx(a, rel=1e-6)
        assert simplex_volume(points_of(points.tolist())) == pytest.approx(reference.heron(a, b, c), rel=1e-5)


@pytest.mark.parametrize("side", [1.0, 0.3, 20.0])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
def test_a_regular_simplex_has_the_volume_of_the_closed_form(count, side):
    rows = (np.eye(count) * side / math.sqrt(2)).tolist()
    points = [{"w": torch.tensor(row, dtype=torch.float64)} for row in rows]
    d = count - 1
    expected = side**d / math.factorial(d) * math.sqrt((d + 1) / 2**d)
    assert simplex_volume(points) == pytest.approx(expected, rel=1e-9)
    assert simplex_volume(points, root=False) == pytest.approx(expected**2, rel=1e-9)


def test_the_volume_is_blind_to_order_place_and_direction_and_grows_by_its_power():
    random = np.random.default_rng(1)
    points = random.normal(size=(4, 6))
    turn, _ = np.linalg.qr(random.normal(size=(6, 6)))

    def volume(rows):
        return simplex_volume([{"w": row} for row in rows])

    expected = reference.volume(points.tolist())
    for rows in (points, points[[2, 0, 3, 1]], points + 7, points @ turn):
        assert volume(rows) == pytest.approx(expected, rel=1e-9)
    assert volume(3 * points) == pytest.approx(27 * expected, rel=1e-9)
    flat = points.copy()
    flat[3] = flat[:3].mean(0)
    assert volume(flat) < 1e-6


# The objective ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "options"),
    [(1, {"alpha": 0.5}), (2, {"alpha": 0.1, "points": 2}), (3, {"alpha": 2.0, "points": 1, "root": False})],
)
def test_updates_are_those_of_the_reference(count, options):
    vertices = [weights(seed) for seed in range(1, count + 1)]
    model, objective = PLAIN.build().train(), SimplexVolume(PLAIN, vertices, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=0.01)
    memory = new_adam()
    theta = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    options = {"points": 5, "root": True, **options}
    for step in range(3):
        batches = drawn(step)
        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches]).tolist()
        torch.manual_seed(step)
        ones = torch.ones(count + 1, dtype=torch.float64)
        shares = torch.distributions.Dirichlet(ones).sample((options.pop("points"),)).tolist()
        options["points"] = len(shares)
        expected, parts = reference.loss(
            theta, vertices, images, labels, shares=shares, alpha=options["alpha"], root=options["root"]
        )
        theta = adam_step(theta, expected, memory)
        torch.manual_seed(step)
        logged = objective.step(model, batches, optimizer)
        assert set(logged) == {"loss", "nll", "volume"}
        for name, value in {"loss": expected, **parts}.items():
            assert logged[name].item() == pytest.approx(value.item(), rel=1e-9), name
        for name, value in model.named_parameters():
            assert (value - theta[name]).abs().max() < 1e-9, name


def test_a_vertex_that_begins_at_the_mean_has_finite_gradients_and_leaves_it():
    for count in (1, 2, 3, 4):
        vertices = [weights(seed) for seed in range(count)]
        start = average(vertices)
        for root in (True, False):
            objective, model = SimplexVolume(PLAIN, vertices, alpha=1e-3, root=root), PLAIN.build()
            model.load_state_dict(start)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            for step in range(3):
                torch.manual_seed(step)
                objective.step(model, drawn(step), optimizer)
                assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
            volume = simplex_volume([*vertices, model.state_dict()], root=root)
            assert volume > simplex_volume([*vertices, start], root=root)


def test_without_the_volume_it_is_the_risk_between_the_vertices():
    vertices, model, batches = [weights(1)], PLAIN.build(), drawn(0)
    torch.manual_seed(0)
    loss = SimplexVolume(PLAIN, vertices, alpha=0, points=400)(model, batches)
    images, labels = torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
    losses = []
    other = PLAIN.build()
    for share in torch.linspace(0, 1, 201).tolist():
        other.load_state_dict(interpolate([vertices[0], model.state_dict()], [1 - share, share]))
        losses.append(nn.functional.cross_entropy(other(images).logits, labels).item())
    spread = float(np.std(losses)) / math.sqrt(400)
    assert loss.item() == pytest.approx(float(np.trapezoid(losses, dx=1 / 200)), abs=5 * spread)


def test_batch_norm_gathers_statistics_of_all_points_and_vertices_keep_theirs():
    spec = NetworkSpec(name="cifar_resnet20", classes=3, channels=1, frozen_batch_norm=False)
    vertices = [{name: value.clone() for name, value in spec.build(seed=1).state_dict().items()}]
    objective, model = SimplexVolume(spec, vertices, alpha=1e-3, points=3).train(), spec.build().train()
    before = copy.deepcopy(objective.state_dict())
    random = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 1])
    batch = Batch(torch.randn(4, 1, 8, 8, generator=random), labels, labels)
    torch.manual_seed(0)
    objective.step(model, [batch], torch.optim.SGD(model.parameters(), lr=0.1))
    assert model.featurizer.bn1.num_batches_tracked == 3
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_a_simplex_grows_and_stays_low():
    """Three vertices, as in the docstring: all its members are good, and the second part grows with alpha."""
    run, volumes = RUN.with_(steps=60), {}
    first = first_member()
    for alpha in (0.0, 0.02):
        vertices = [first]
        for _ in range(2):
            objective = SimplexVolume(SPEC, vertices, alpha=alpha, points=2)
            vertices.append(trained(average(vertices), run.with_(seed=len(vertices)), objective=objective))
        volumes[alpha] = simplex_volume(vertices)
    assert volumes[0.02] > 2 * volumes[0.0] > 0
    members = [sample_simplex(vertices, seed) for seed in range(4)]
    worst = min(loss_and_accuracy(theta)[1] for theta in members)
    assert worst > loss_and_accuracy(first)[1] - 0.1
    assert min(distance(one, other) for one, other in itertools.combinations(members, 2)) > 0.01


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ([], {}, "SimplexVolume needs the vertices before this one, got none"),
        ([weights(0)], {"alpha": -1}, "SimplexVolume needs alpha to be 0 or more, got -1"),
        ([weights(0)], {"points": 0}, "SimplexVolume needs points to be a whole number from 1, got 0"),
        ([weights(0)], {"points": 1.5}, "SimplexVolume needs points to be a whole number from 1, got 1.5"),
        ([{"w": torch.ones(1)}], {}, "SimplexVolume: member 0 is of another network"),
    ],
)
def test_what_cannot_be_a_simplex_is_told(members, options, message):
    with pytest.raises(InputError, match=message):
        SimplexVolume(PLAIN, members, **{"alpha": 0.1, **options})


def test_the_options_are_named():
    made = SimplexVolume(PLAIN, [weights(0)], alpha=2, points=3, root=False)
    assert made.configuration() == {"network": PLAIN.to_dict(), "alpha": 2.0, "points": 3, "root": False}
    assert {name.split(".")[0] for name in made.state_dict()} == {"members"}


# Members ----------------------------------------------------------------------------------------------------


def test_members_lie_everywhere_in_the_simplex_equally_often():
    """Shares have the mean 1/n, the variance (n - 1)/(n^2 (n + 1)) and the covariance -1/(n^2 (n + 1))."""
    count, draws = 4, 4000
    vertices = [{"w": row} for row in torch.eye(count, dtype=torch.float64)]
    found = torch.stack([sample_simplex(vertices, seed)["w"] for seed in range(draws)])
    torch.testing.assert_close(found.sum(1), torch.ones(draws, dtype=torch.float64), rtol=0, atol=1e-9)
    assert (found >= 0).all()
    variance = (count - 1) / (count**2 * (count + 1))
    assert ((found.mean(0) - 1 / count).abs() < 5 * math.sqrt(variance / draws)).all()
    expected = torch.full((count, count), -1 / (count**2 * (count + 1)), dtype=torch.float64)
    expected.fill_diagonal_(variance)
    assert ((found.T.cov() - expected).abs() < 5 * variance * math.sqrt(3 / draws)).all()


def test_the_same_seed_gives_the_same_member():
    vertices, state = [weights(seed) for seed in range(3)], torch.get_rng_state()
    one, same, other = (sample_simplex(vertices, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    alone = sample_simplex(vertices[:1], 5)
    assert all(torch.equal(alone[name], value) for name, value in vertices[0].items())


def test_without_vertices_there_are_no_members():
    with pytest.raises(InputError, match="no member to combine"):
        sample_simplex([], 0)
    for given in ([weights(0)], weights(0)):
        with pytest.raises(InputError, match="simplex_volume needs a list of two vertices or more"):
            simplex_volume(given)
    with pytest.raises(InputError, match="do not match"):
        simplex_volume([weights(0), {"w": torch.ones(1)}])
