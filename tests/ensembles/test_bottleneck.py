import copy
import math

import pytest
import torch
from tests.reference import dice
from tests.reference.plain import adam_step, new_adam
from tests.tiny import tiny_network, tiny_task
from torch import nn
from torch.distributions import Independent as Joint
from torch.distributions import Normal, kl_divergence

from mirepoix.checkpoints import fingerprint
from mirepoix.ensembles import Independent
from mirepoix.ensembles._bottleneck import CEB, IB, ramped, rate
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError, Outputs

KINDS = [IB, CEB]
RUN = Run(seed=3, steps=6, learning_rate=3e-3, batch_size=4, check_every=2, average_from=2)


class Members(nn.Module):
    """Two layers with a tanh between them, per member."""

    def __init__(self, members=3, features=2, classes=3):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(members, features, 2, generator=random, dtype=torch.float64))
        self.classifier = nn.ModuleList(nn.Linear(features, classes).double() for _ in range(members))
        for parameter in self.classifier.parameters():
            nn.init.normal_(parameter, generator=random)

    def forward(self, images):
        features = torch.tanh(images.flatten(1) @ self.first.mT)
        logits = [own(h) for own, h in zip(self.classifier, features, strict=True)]
        return Outputs(features=features, logits=torch.stack(logits))


def drawn(step, sizes=(3, 2), classes=3, dtype=torch.float64):
    random = torch.Generator().manual_seed(step)
    return [
        Batch(
            torch.randn(size, 1, 1, 2, generator=random, dtype=dtype),
            torch.randint(classes, (size,), generator=random),
            torch.full((size,), place),
        )
        for place, size in enumerate(sizes)
    ]


def make(kind, members=3, **options):
    objective = kind(features=2, classes=3, members=members, **options).double()
    with torch.no_grad():  # away from where it starts
        for parameter in objective.trained_with_network():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return objective


def trained(model, objective):
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    return {
        **dict(model.named_parameters()),
        **{names[id(parameter)]: parameter for parameter in objective.trained_with_network()},
    }


def leaves(parameters):
    return {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}


def adam_of(model, objective):
    return torch.optim.Adam(trained(model, objective).values(), lr=0.05, weight_decay=0.01)


def joined(batches):
    images = torch.cat([batch.images for batch in batches])
    return images, torch.cat([batch.labels for batch in batches]).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(3, 2), (1,)])
def test_updates_are_those_of_the_reference(kind, sizes):
    model, objective = Members(), make(kind, beta=7.0, ramp_steps=2)
    optimizer, theta, memory = adam_of(model, objective), leaves(trained(model, objective)), new_adam()
    for step in range(3):
        images, labels = joined(drawn(step, sizes))
        torch.manual_seed(step)
        noise = torch.randn(3, len(labels), 2, dtype=torch.float64)
        share = min(step / 2, 1) / 7
        expected, parts = dice.loss(theta, None, images, labels, noise, beta=share, delta=None)
        theta = adam_step(theta, expected, memory)
        torch.manual_seed(step)
        logged = objective.step(model, drawn(step, sizes), optimizer)
        assert set(logged) == {"loss", "nll", "compression"}
        for name, value in {"loss": expected, **parts}.items():
            assert logged[name].item() == pytest.approx(value.item(), rel=1e-10)
        for name, value in trained(model, objective).items():
            assert (value - theta[name]).abs().max() < 1e-10


def test_the_rate_is_the_divergence_of_two_gaussians():
    random = torch.Generator().manual_seed(0)
    mean, centre = torch.randn(2, 5, 4, generator=random, dtype=torch.float64)
    scale = torch.rand(5, 4, generator=random, dtype=torch.float64) + 0.01
    one, other = Joint(Normal(mean, scale), 1), Joint(Normal(centre, torch.ones_like(scale)), 1)
    found = rate(mean, scale, centre)
    torch.testing.assert_close(found, kl_divergence(one, other), rtol=1e-12, atol=1e-12)
    assert (found >= 0).all()
    assert rate(centre, torch.ones_like(scale), centre).abs().max() == 0


def test_the_ramps():
    assert [ramped("linear", update, 4) for update in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert [ramped("exp", update, 4) for update in (0, 2, 4, 9)] == [math.exp(-5), math.exp(-1.25), 1, 1]
    assert [ramped(shape, update, 0) for shape in ("exp", "linear") for update in (0, 3)] == [1] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_without_compression_it_is_independent_members_with_noise(kind):
    model, objective, batches = Members(), make(kind, beta=1e300), drawn(0)
    torch.manual_seed(0)
    noise = torch.randn(3, 5, 2, dtype=torch.float64)

    class Noisy(Members):
        def forward(self, images):
            features = super().forward(images).features
            features = features + objective.scale(features) * noise
            logits = [own(z) for own, z in zip(self.classifier, features, strict=True)]
            return Outputs(features=features, logits=torch.stack(logits))

    torch.manual_seed(0)
    assert torch.equal(objective(model, batches), Independent()(Noisy(), batches))


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_and_compression_it_is_independent_members(kind):
    model, objective = Members(), make(kind, beta=1e300)
    with torch.no_grad():
        objective.scale_bias.fill_(-60.0)
    expected = Independent()(model, drawn(0))
    torch.testing.assert_close(objective(model, drawn(0)), expected, rtol=1e-3, atol=0)
    assert torch.equal(
        objective.predict(model, drawn(0)[0].images).logits,
        Independent().predict(model, drawn(0)[0].images).logits,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_is_one_half_at_first(kind):
    objective = kind(features=2, classes=3, members=3)
    scale = objective.scale(torch.randn(3, 5, 2))
    torch.testing.assert_close(scale, torch.full_like(scale, 0.5))


def test_one_centre_or_one_per_class():
    assert IB(features=2, classes=3, members=4).centres.shape == (4, 1, 2)
    assert CEB(features=2, classes=3, members=4).centres.shape == (4, 3, 2)
    assert 0.005 < CEB(features=64, classes=10, members=2).centres.std().item() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_is_missing_leaves_its_centre(kind):
    model, objective = Members(), make(kind)
    (batch,) = drawn(0, (4,))
    objective(model, [Batch(batch.images, torch.tensor([0, 2, 2, 0]), batch.domains)]).backward()
    moved = objective.centres.grad.abs().sum((0, 2)) > 0
    assert moved.tolist() == ([True, False, True] if kind is CEB else [True])


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_owns_is_trained_and_gradients_are_finite(kind):
    model, objective = Members(), make(kind)
    objective(model, drawn(0)).backward()
    for parameter in [*model.parameters(), *objective.parameters()]:
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0
    assert len(objective.trained_with_network()) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind):
    model, objective = Members().float(), kind(features=2, classes=3, members=3)
    seen = []
    model.classifier[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bounded = objective.bounded(model, drawn(0, dtype=torch.float32))
    assert {value.dtype for value in bounded[:4]} == {torch.float32}
    assert seen[-1] == torch.float32
    bounded.loss.backward()
    assert all(
        parameter.grad.isfinite().all() for parameter in [*model.parameters(), *objective.parameters()]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(kind, tmp_path):
    spec = NetworkSpec(**{**tiny_network().to_dict(), "members": 2, "split_at": "last_stage"})
    split, theta = tiny_task().split("domain_2"), initial_weights(spec)
    objective = kind(features=16, classes=2, members=2, ramp_steps=3)

    class Stopped(Exception):
        pass

    def stop(made, *_):
        if made == 4:
            raise Stopped

    whole = Trainer(spec, objective).fit(theta, split, RUN)
    with pytest.raises(Stopped):
        Trainer(spec, objective, loop=Loop(save_every=0), on_progress=stop).fit(
            theta, split, RUN, workspace=tmp_path
        )
    resumed = Trainer(spec, objective).fit(theta, split, RUN, workspace=tmp_path)
    assert {k: fingerprint(v) for k, v in resumed.weights.items()} == {
        k: fingerprint(v) for k, v in whole.weights.items()
    }
    assert resumed.record["checks"] == whole.record["checks"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_and_the_seed(kind):
    model, objective = Members(), make(kind)
    objective.step(model, drawn(0), adam_of(model, objective))
    other = make(kind)
    other.load_state_dict(copy.deepcopy(objective.state_dict()))
    assert other.updates == 1
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, three = (kind(features=4, classes=3, members=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.centres, two.centres)
    assert not torch.equal(one.centres, three.centres)


@pytest.mark.parametrize("kind", KINDS)
def test_the_options_are_named(kind):
    options = {"features": 4, "classes": 3, "members": 1, "beta": 30.0, "ramp_steps": 5, "seed": 2}
    assert kind(**options).configuration() == options
    assert kind(features=4, classes=3, members=2).configuration() == {
        "features": 4,
        "classes": 3,
        "members": 2,
        "beta": 100.0,
        "ramp_steps": 0,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "IB needs features to be a whole number from 1, got 0"),
        ({"classes": True}, "IB needs classes to be a whole number from 1, got True"),
        ({"members": 0}, "IB needs members to be a whole number from 1, got 0"),
        ({"beta": 0}, "IB needs a positive beta, got 0; 100 is usual"),
        ({"beta": -1.0}, "IB needs a positive beta"),
        ({"beta": math.inf}, "IB needs beta to be a finite number, got inf"),
        ({"ramp_steps": -1}, "IB needs ramp_steps to be a whole number of updates from 0, got -1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        IB(**{"features": 2, "classes": 3, "members": 2, **options})


def test_another_network_is_refused():
    with pytest.raises(
        InputError,
        match="CEB was made with members=3, features=2, classes=3, got a network of members=2, features=2, classes=3",
    ):
        make(CEB)(Members(members=2), drawn(0))
    with pytest.raises(InputError, match="IB needs a network of several members"):
        make(IB)(NetworkSpec(name="mnist_cnn", classes=3, channels=1, width=8).build().double(), [big()])

    class Shared(nn.Module):
        classifier = nn.Linear(2, 3)

        def forward(self, images):
            return Members()(images)

    with pytest.raises(InputError, match=r"IB .*needs a network with a classifier per member.*got Linear"):
        make(IB)(Shared(), drawn(0))


def big():
    return Batch(torch.randn(2, 1, 28, 28, dtype=torch.float64), torch.tensor([0, 1]), torch.zeros(2))
