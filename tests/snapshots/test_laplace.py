import copy
import math
import sys
import types
import warnings

import pytest
import torch
from tests.snapshots.local_samples import SPEC, SPLIT, batches, first_member, loss_and_accuracy
from torch import nn

from mirepoix.data import evaluation_batches
from mirepoix.models import Network, NetworkSpec
from mirepoix.snapshots import laplace_samples
from mirepoix.types import Batch, InputError, Outputs


class Exact:
    """What is used of laplace-torch, with all of the curvature: parameter by parameter and sample by sample."""

    made: list = []  # noqa: RUF012

    def __init__(self, model, likelihood, *, subset_of_weights, hessian_structure, prior_precision):
        assert (likelihood, subset_of_weights) == ("classification", "all")
        self.model, self.structure, self.prior = model, hessian_structure, prior_precision
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        Exact.made.append(self)

    def fit(self, loader):
        self.model.eval()
        assert self.model(next(iter(loader))[0][:1]).ndim == 2
        size = sum(parameter.numel() for parameter in self.trained)
        self.precision, seen = self.prior * torch.eye(size, dtype=torch.float64), 0
        for inputs, labels in loader:
            assert len(inputs) == len(labels)
            for one in inputs:
                logits = self.model(one[None])[0]
                rows = [torch.autograd.grad(z, self.trained, retain_graph=True) for z in logits]
                jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()
                p = logits.softmax(0).detach().double()
                self.precision += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
            seen += len(inputs)
        assert seen == len(loader.dataset)

    def sample(self, count):
        mean = nn.utils.parameters_to_vector(self.trained).detach()
        root = torch.linalg.cholesky(self.precision)
        z = torch.randn(len(mean), count, dtype=torch.float64)
        return mean + torch.linalg.solve_triangular(root.T, z, upper=True).T.to(mean.dtype)


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setitem(sys.modules, "laplace", types.SimpleNamespace(Laplace=Exact))
    monkeypatch.setattr(Exact, "made", [])
    return Exact.made


@pytest.fixture
def real():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("laplace", reason="laplace-torch is not installed")


def network(dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        featurizer = nn.Sequential(
            nn.Conv2d(1, 2, 2, bias=False), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
        )
        made = Network(featurizer, 3, 3).to(dtype)
        made.featurizer[1].running_var.fill_(2.0)
    return made


def data(sizes=(6, 5), dtype=torch.float64):
    random = torch.Generator().manual_seed(1)
    return [
        Batch(
            torch.randn(n, 1, 3, 3, generator=random, dtype=torch.float64).to(dtype),
            torch.randint(3, (n,), generator=random),
            torch.zeros(n, dtype=torch.long),
        )
        for n in sizes
    ]


def flat(theta, names):
    return torch.cat([theta[name].double().flatten() for name in names])


CLASSIFIER = ["classifier.weight", "classifier.bias"]


def last_layer_curvature(model):
    """Of the classifier, weights first, by the closed form: the sum of (diag p - p p') x (h, 1)(h, 1)'."""
    blocks = torch.zeros(3, 4, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        for batch in data():
            outputs = model.eval()(batch.images)
            for h, p in zip(outputs.features, outputs.logits.softmax(1), strict=True):
                extended = torch.cat([h, torch.ones(1, dtype=torch.float64)])
                middle = torch.diag(p) - torch.outer(p, p)
                blocks += torch.einsum("ij,a,b->iajb", middle, extended, extended)
    order = [4 * row + column for row in range(3) for column in range(3)] + [3, 7, 11]
    return blocks.view(12, 12)[order][:, order]


def assert_covariance(members, theta, names, expected):
    found = torch.stack([flat(member, names) for member in members]) - flat(theta, names)
    spread, draws = expected.diagonal().sqrt(), len(members)
    assert (found.mean(0).abs() < 5 * spread / math.sqrt(draws)).all()
    error = ((expected.square() + torch.outer(spread, spread).square()) / draws).sqrt()
    assert ((found.T.cov() - expected).abs() < 5 * error).all()


def test_members_have_the_covariance_of_the_method(exact):
    model = network()
    theta = model.state_dict()
    members = laplace_samples(
        model,
        theta,
        data(),
        count=4000,
        seed=0,
        scale=0.3,
        prior_precision=2.0,
        structure="full",
        layers="last",
    )
    expected = 0.3 * torch.linalg.inv(last_layer_curvature(model) + 2 * torch.eye(12))
    assert_covariance(members, theta, CLASSIFIER, expected)
    assert exact[0].structure == "full"


def test_only_what_is_asked_for_is_sampled(exact):
    model = network()
    theta, state = model.state_dict(), torch.get_rng_state()
    for layers, moving in (
        ("last", set(CLASSIFIER)),
        ("all", {*CLASSIFIER, "featurizer.0.weight", "featurizer.4.weight", "featurizer.4.bias"}),
    ):
        (member,) = laplace_samples(model, theta, data(), count=1, seed=0, layers=layers)
        assert list(member) == list(theta)
        assert {name for name in theta if not torch.equal(member[name], theta[name])} == moving
    assert [made.structure for made in exact] == ["kron", "kron"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training
    assert not any(isinstance(getattr(module, "output_size", None), int) for module in model.modules())


def test_weights_reach_their_own_place(exact):
    """With so large a prior precision that nothing else counts, all entries spread alike."""
    model = network()
    theta = model.state_dict()
    members = laplace_samples(model, theta, data(), count=3000, seed=1, prior_precision=1e6)
    names = ["featurizer.0.weight", "featurizer.4.weight", "featurizer.4.bias", *CLASSIFIER]
    size = len(flat(theta, names))
    assert_covariance(members, theta, names, torch.eye(size, dtype=torch.float64) / 1e6)


def test_the_solution_is_that_of_theta_and_not_of_the_network(exact):
    model, other = network(), network()
    theta = {
        name: value + 1 if value.is_floating_point() else value for name, value in other.state_dict().items()
    }
    one, same = (laplace_samples(given, theta, data(), count=1, seed=0)[0] for given in (model, other))
    assert all(torch.equal(one[name], same[name]) for name in theta)
    copies = laplace_samples(model, theta, data(), count=2, seed=0, scale=0)
    assert all(torch.equal(copy[name], theta[name]) for copy in copies for name in theta)


def test_the_scale_multiplies_the_covariance_and_the_seed_decides(exact):
    model = network()
    theta = model.state_dict()

    def deviation(seed, scale):
        member = laplace_samples(model, theta, iter(data()), count=1, seed=seed, scale=scale)[0]
        return flat(member, CLASSIFIER) - flat(theta, CLASSIFIER)

    one = deviation(0, 1.0)
    torch.testing.assert_close(deviation(0, 4.0), 2 * one)
    assert torch.equal(deviation(0, 1.0), one)
    assert not torch.allclose(deviation(1, 1.0), one)


def test_dtypes_are_those_of_theta(exact):
    model = network(torch.float32)
    theta = {
        name: value.to(torch.bfloat16) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    before = copy.deepcopy(theta)
    (member,) = laplace_samples(model, theta, data(dtype=torch.float32), count=1, seed=0)
    for name, value in theta.items():
        assert member[name].dtype == value.dtype
        assert torch.equal(value, before[name])


def test_a_split_is_its_training_images_without_augmentation(exact):
    theta = first_member()
    plain = [
        batch for s in SPLIT.train for batch in evaluation_batches(s, SPLIT.task.transform, batch_size=7)
    ]
    found = [
        laplace_samples(SPEC.build(), theta, given, count=2, seed=0, layers="last")
        for given in (SPLIT, plain)
    ]
    assert len(exact) == 2
    torch.testing.assert_close(exact[0].precision, exact[1].precision)
    for one, other in zip(*found, strict=True):
        for name in theta:
            torch.testing.assert_close(one[name], other[name])


class Unsupported(Exact):
    def fit(self, loader):
        raise NotImplementedError("no factors for ConvTranspose2d")


class Old(Exact):
    def sample(self, count):
        return super().sample(count)[:, 1:]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            Unsupported,
            r"no 'kron' curvature for a layer of this network \(no factors .*take another structure",
        ),
        (Old, r"samples of shape \(2, 11\), expected \(2, 12\); install version 0.3"),
    ],
)
def test_what_the_library_cannot_do_is_told(monkeypatch, kind, message):
    monkeypatch.setitem(sys.modules, "laplace", types.SimpleNamespace(Laplace=kind))
    model = network()
    with pytest.raises(InputError, match=message):
        laplace_samples(model, model.state_dict(), data(), count=2, seed=0, layers="last")


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "laplace", None)
    model = network()
    with pytest.raises(
        InputError, match=r"laplace_samples needs laplace-torch: pip install 'mirepoix\[laplace\]'"
    ):
        laplace_samples(model, model.state_dict(), data(), count=2, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count to be a whole number from 1, got 0"),
        ({"count": 1.0}, "count to be a whole number from 1, got 1.0"),
        ({"scale": -1}, "scale to be a finite number of 0 or more, got -1"),
        ({"prior_precision": 0}, "prior_precision to be a positive, finite number, got 0"),
        ({"prior_precision": math.nan}, "prior_precision to be a positive, finite number, got nan"),
        ({"structure": "kfac"}, "structure to be one of 'kron', 'diag', 'full', got 'kfac'"),
        ({"layers": "first"}, "layers to be one of 'all', 'last', got 'first'"),
        ({"data": []}, "laplace_samples needs training images, got none"),
        (
            {"theta": {"w": torch.ones(1)}},
            "theta is of another network: 'featurizer.0.weight' is missing there",
        ),
    ],
)
def test_what_is_out_of_range_is_told(exact, options, message):
    model = network()
    given = {"theta": model.state_dict(), "data": data(), "count": 1, "seed": 0, **options}
    with pytest.raises(InputError, match=message):
        laplace_samples(model, given.pop("theta"), given.pop("data"), **given)


def test_the_last_layer_must_be_a_linear_classifier(exact):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(9, 3).double()

        def forward(self, images):
            return Outputs(images.flatten(1), self.linear(images.flatten(1)))

    model = Other()
    with pytest.raises(InputError, match="network with a linear classifier, got Other with NoneType"):
        laplace_samples(model, model.state_dict(), data(), count=1, seed=0, layers="last")
    assert len(laplace_samples(model, model.state_dict(), data(), count=3, seed=0)) == 3


# With the library -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_kronecker_factors_of_the_classifier_are_those_of_the_closed_form(real):
    """In one batch: the sum of (diag p - p p') in one factor, the mean of h h' in the other."""
    model, (batch,) = network(), data((11,))
    theta = model.state_dict()
    members = laplace_samples(
        model, theta, [batch], count=4000, seed=0, scale=0.5, prior_precision=3.0, layers="last"
    )
    with torch.no_grad():
        outputs = model.eval()(batch.images)
    p = outputs.logits.softmax(1)
    middle = torch.diag(p.sum(0)) - p.T @ p
    weights = torch.kron(middle, outputs.features.T @ outputs.features / 11)
    precision = torch.block_diag(weights, middle) + 3 * torch.eye(12)
    assert_covariance(members, theta, CLASSIFIER, 0.5 * torch.linalg.inv(precision))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("structure", ["kron", "diag"])
def test_members_around_a_trained_network_are_members(real, structure):
    theta = first_member()
    members = laplace_samples(
        SPEC.build(), theta, batches(), count=4, seed=0, scale=0.01, prior_precision=10.0, structure=structure
    )
    accuracy = loss_and_accuracy(theta)[1]
    assert all(loss_and_accuracy(member)[1] > accuracy - 0.2 for member in members)
    assert len({member["classifier.weight"].sum().item() for member in members}) == 4


@pytest.mark.filterwarnings("ignore")
def test_a_residual_network_is_sampled(real):
    spec = NetworkSpec(name="cifar_resnet20", classes=3, channels=1)
    model, random = spec.build(), torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 1])
    given = [Batch(torch.randn(4, 1, 8, 8, generator=random), labels, labels)]
    theta = model.state_dict()
    (member,) = laplace_samples(model, theta, given, count=1, seed=0, scale=1e-4)
    assert not torch.equal(member["featurizer.conv1.weight"], theta["featurizer.conv1.weight"])
    assert torch.equal(member["featurizer.bn1.weight"], theta["featurizer.bn1.weight"])
