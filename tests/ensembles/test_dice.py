import copy
import math

import pytest
import torch
from tests.ensembles.test_bottleneck import RUN, Members, adam_of, drawn, joined, leaves, make, trained
from tests.reference import dice
from tests.reference.plain import adam_step, new_adam
from tests.tiny import tiny_network, tiny_task
from torch import nn

from mirepoix.checkpoints import fingerprint
from mirepoix.ensembles import Independent
from mirepoix.ensembles._bottleneck import CEB, IB
from mirepoix.ensembles._dice import CEBR, DICE, IBR
from mirepoix.ensembles._redundancy import redundancy_estimate
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import SAM
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError, Outputs

KINDS = [IBR, CEBR, DICE]
SMALL = {"hidden": (3, 2), "embedding": 2, "discriminator_steps": 2}
SETTINGS = [
    (DICE, {"queue_size": 2}),
    (DICE, {"partners": "batch", "pairs": "mean", "clip": "hard", "tau": 0.1, "delta": -0.5}),
    (DICE, {"partners": "balanced", "ramp_steps": 2, "ramp": "linear"}),
    (IBR, {"ramp_steps": 2, "delta": 3.0, "tau": 0.3}),
    (CEBR, {"discriminator_learning_rate": 0.1}),
]


def places_in_order(uniform):
    return sorted(range(len(uniform)), key=lambda i: uniform[i].item())


@pytest.mark.parametrize(("kind", "options"), SETTINGS)
def test_updates_are_those_of_the_reference(kind, options):
    model, objective = Members(), make(kind, **SMALL, **options)
    configuration = objective.configuration()
    optimizer, theta, memory = adam_of(model, objective), leaves(trained(model, objective)), new_adam()
    weights, moments = leaves(dict(objective.discriminator.module.named_parameters())), {}
    queue, steps = {}, options.get("ramp_steps", 0)
    for step in range(3):
        images, labels = joined(drawn(step, (3, 2)))
        torch.manual_seed(step)
        noise = torch.randn(3, 5, 2, dtype=torch.float64)
        done = min(step / steps, 1) if steps else 1
        ramp = done if options.get("ramp") == "linear" else math.exp(-5 * (1 - done) ** 2)
        expected, parts = dice.loss(
            theta,
            {name: value.detach() for name, value in weights.items()},
            images,
            labels,
            noise,
            beta=done / 100,
            delta=ramp * configuration["delta"],
            **{name: configuration[name] for name in ("tau", "clip", "pairs")},
        )
        before = {name: value.detach() for name, value in theta.items()}
        theta = adam_step(theta, expected, memory)
        found = []
        for _ in range(2):
            noise = torch.randn(3, 5, 2, dtype=torch.float64)
            z = dice.noisy(before, images, noise)
            others = partners_of(objective, z, labels, queue)
            loss, accuracy = dice.discrimination(weights, z, others, labels)
            weights = dice.rmsprop_step(
                weights, loss, moments, lr=configuration["discriminator_learning_rate"]
            )
            found.append((loss.item(), accuracy))
        for i, label in enumerate(labels):
            queue.setdefault(label, []).append([rows[i] for rows in z])
        torch.manual_seed(step)
        logged = objective.step(model, drawn(step, (3, 2)), optimizer)
        for name, value in {"loss": expected, **parts}.items():
            assert logged[name].item() == pytest.approx(value.item(), rel=1e-10)
        assert logged["discriminator_loss"].item() == pytest.approx(sum(x for x, _ in found) / 2, rel=1e-10)
        assert logged["discriminator_accuracy"].item() == pytest.approx(sum(x for _, x in found) / 2)
        for name, value in trained(model, objective).items():
            assert (value - theta[name]).abs().max() < 1e-10
        for name, value in objective.discriminator.module.named_parameters():
            assert (value - weights[name]).abs().max() < 1e-10


def partners_of(objective, z, labels, queue):
    if not isinstance(objective, DICE):
        partners = dice.cyclic([0] * len(labels), places_in_order(torch.rand(len(labels))))
    elif objective.partners == "queue":
        size = objective.queue_size
        uniform = torch.rand(len(labels), len(labels) + size).tolist()
        return dice.from_queue(z, labels, queue, uniform, size)
    elif objective.partners == "batch":
        partners = dice.cyclic(labels, places_in_order(torch.rand(len(labels))))
    else:
        partners = dice.cyclic(labels, range(len(labels)))
    return [None if other is None else [rows[other] for rows in z] for other in partners]


@pytest.mark.parametrize(("kind", "plain"), [(IBR, IB), (CEBR, CEB), (DICE, CEB)])
def test_with_delta_zero_members_are_trained_by_the_bottleneck_alone(kind, plain):
    ends = []
    for objective in (make(kind, delta=0, **SMALL), make(plain)):
        model = Members()
        optimizer = adam_of(model, objective)
        for step in range(3):
            torch.manual_seed(step)
            objective.step(model, drawn(step), optimizer)
        ends.append(model.first.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


def test_without_both_weights_it_is_independent_members_with_noise():
    objective, model = make(DICE, delta=0.0, beta=1e300, **SMALL), Members()
    torch.manual_seed(0)
    noise = torch.randn(3, 5, 2, dtype=torch.float64)

    class Noisy(Members):
        def forward(self, images):
            features = super().forward(images).features
            features = features + objective.scale(features) * noise
            logits = [own(z) for own, z in zip(self.classifier, features, strict=True)]
            return Outputs(features=features, logits=torch.stack(logits))

    expected = Independent()(Noisy(), drawn(0))
    torch.manual_seed(0)
    assert torch.equal(objective(model, drawn(0)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", ["per_member", "mean"])
def test_the_terms_make_up_the_loss(kind, pairs):
    model, objective = Members(), make(kind, delta=0.7, beta=5.0, pairs=pairs, ramp_steps=4, **SMALL)
    for step in range(3):
        logged = objective.step(model, drawn(step), adam_of(model, objective))
    weight = 0.7 * math.exp(-5 * 0.5**2)
    total = logged["nll"] + 0.5 / 5 * logged["compression"] + weight * logged["redundancy"]
    torch.testing.assert_close(logged["loss"], total, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_leaks_from_members_to_discriminator_or_back(kind):
    model, objective = Members(), make(kind, delta=5.0, **SMALL)
    before = copy.deepcopy(objective.discriminator)
    torch.manual_seed(0)
    objective(model, drawn(0)).backward()
    assert all(parameter.grad is None for parameter in objective.discriminator.parameters())
    # The redundancy reaches all members, their features and scales.
    with_it = model.first.grad.clone()
    plain, other = make(IB if kind is IBR else CEB), Members()
    torch.manual_seed(0)
    plain(other, drawn(0)).backward()
    assert (with_it - other.first.grad).abs().amin((1, 2)).min() > 0
    # In a step that does not move the members, the discriminator moves alone, and leaves no gradient on them.
    still = torch.optim.SGD(trained(model, objective).values(), lr=0.0)
    state = fingerprint(model.state_dict())
    objective.zero_grad()
    model.zero_grad()
    objective.step(model, drawn(0), still)
    gradients = [parameter.grad.clone() for parameter in trained(model, objective).values()]
    assert fingerprint(model.state_dict()) == state
    for one, two in zip(objective.discriminator.parameters(), before.parameters(), strict=True):
        assert not torch.equal(one, two)
        assert one.grad is None
    # Those left are of the members' loss alone: with more steps of the discriminator they are the same.
    again = make(kind, delta=5.0, **{**SMALL, "discriminator_steps": 1})
    torch.manual_seed(0)
    again.step(same := Members(), drawn(0), torch.optim.SGD(trained(same, again).values(), lr=0.0))
    expected = [parameter.grad.clone() for parameter in trained(same, again).values()]
    torch.manual_seed(0)
    more = make(kind, delta=5.0, **{**SMALL, "discriminator_steps": 3})
    more.step(same := Members(), drawn(0), torch.optim.SGD(trained(same, more).values(), lr=0.0))
    found = [parameter.grad for parameter in trained(same, more).values()]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_discriminator_is_not_among_what_the_network_is_trained_with():
    objective = make(DICE)
    assert len(objective.trained_with_network()) == 3
    assert isinstance(objective.discriminator.optimizer, torch.optim.RMSprop)
    assert objective.discriminator.optimizer.param_groups[0]["lr"] == 3e-3


def test_less_than_zero_is_the_other_way():
    ends = []
    for delta in (0.0, 2.0, -2.0):
        model, objective = Members(), make(DICE, delta=delta, **SMALL)
        torch.manual_seed(0)
        objective(model, drawn(0)).backward()
        ends.append(model.first.grad)
    torch.testing.assert_close(ends[1] - ends[0], ends[0] - ends[2], rtol=1e-9, atol=1e-12)


def test_for_two_members_both_ways_to_weigh_pairs_are_one():
    losses = []
    for pairs in ("per_member", "mean"):
        torch.manual_seed(0)
        losses.append(make(DICE, members=2, pairs=pairs, delta=3.0)(Members(members=2), drawn(0)))
    assert torch.equal(*losses)
    sums = []
    for pairs in ("per_member", "mean"):
        objective = make(DICE, members=4, pairs=pairs)
        torch.manual_seed(0)
        objective(Members(members=4), drawn(0))
        sums.append(objective.parts["redundancy"])
    torch.testing.assert_close(sums[0], 2 * sums[1])  # 6 pairs: a third of the sum, or a sixth


@pytest.mark.parametrize(("kind", "options"), SETTINGS)
def test_a_batch_of_one_has_no_pair_to_tell(kind, options):
    model, objective = Members(), make(kind, **SMALL, **options)
    before = fingerprint(objective.discriminator.module.state_dict())
    logged = objective.step(model, drawn(0, (1,)), adam_of(model, objective))
    assert logged["discriminator_loss"] == 0
    assert logged["discriminator_accuracy"] == 0.5
    assert fingerprint(objective.discriminator.module.state_dict()) == before
    assert logged["loss"].isfinite()


def test_the_queue_has_the_partners_that_the_batch_lacks():
    (batch,) = drawn(0, (3,))
    batch = Batch(batch.images, torch.tensor([2, 0, 1]), batch.domains)
    found = {}
    for partners in ("queue", "batch", "balanced"):
        model, objective = Members(), make(DICE, partners=partners)
        optimizer = adam_of(model, objective)
        found[partners] = [
            objective.step(model, [batch], optimizer)["discriminator_loss"] > 0 for _ in range(2)
        ]
    assert found == {"queue": [False, True], "batch": [False, False], "balanced": [False, False]}
    assert set(make(DICE, partners="batch").state_dict()) == {
        name for name in make(DICE).state_dict() if not name.startswith("queue.")
    }


def test_predictions_are_those_of_the_network_alone():
    model, objective = Members(), make(DICE)
    images = drawn(0)[0].images
    found = objective.predict(model, images)
    torch.testing.assert_close(found.logits, model(images).logits.mean(0), rtol=1e-12, atol=0)
    assert torch.equal(found.features, model(images).features)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind):
    model = Members().float()
    objective = kind(features=2, classes=3, members=3, **SMALL)
    seen = []
    objective.discriminator.module.register_forward_hook(lambda _, inputs, out: seen.append(out.dtype))
    optimizer = adam_of(model, objective)
    for step in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logged = objective.step(model, drawn(step, dtype=torch.float32), optimizer)
    assert all(value.isfinite() for value in logged.values())
    assert set(seen) == {torch.float32}
    assert all(parameter.isfinite().all() for parameter in [*model.parameters(), *objective.parameters()])


def test_the_scale_of_a_scaler_cancels():
    ends = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)):
        model, objective = Members(), make(DICE, **SMALL)
        optimizer = adam_of(model, objective)
        for step in range(3):
            torch.manual_seed(step)
            objective.step(model, drawn(step), optimizer, scaler)
        ends.append(model.first.detach())
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("kind", "options"), SETTINGS)
def test_a_state_that_was_saved_goes_on_bit_for_bit(kind, options):
    model, objective = Members(), make(kind, **SMALL, **options)
    optimizer = adam_of(model, objective)
    for step in range(2):
        objective.step(model, drawn(step), optimizer)
    other, again = copy.deepcopy(model), make(kind, **SMALL, **options)
    again.load_state_dict(copy.deepcopy(objective.state_dict()))
    fresh = adam_of(other, again)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(2, 4):
        for network, criterion, its in ((model, objective, optimizer), (other, again, fresh)):
            torch.manual_seed(step)
            criterion.step(network, drawn(step), its)
    assert fingerprint(other.state_dict()) == fingerprint(model.state_dict())
    assert fingerprint(again.state_dict()) == fingerprint(objective.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_was_stopped_goes_on_bit_for_bit(kind, tmp_path):
    spec = NetworkSpec(**{**tiny_network().to_dict(), "members": 2, "split_at": "last_stage"})
    split, theta = tiny_task().split("domain_2"), initial_weights(spec)
    objective = kind(features=16, classes=2, members=2, hidden=(8,), ramp_steps=3)

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
    assert (tmp_path / "state.bin").exists()
    resumed = Trainer(spec, objective).fit(theta, split, RUN, workspace=tmp_path)
    assert {k: fingerprint(v) for k, v in resumed.weights.items()} == {
        k: fingerprint(v) for k, v in whole.weights.items()
    }
    assert resumed.record["checks"] == whole.record["checks"]
    unlike = Trainer(spec, IB(features=16, classes=2, members=2, ramp_steps=3)).fit(theta, split, RUN)
    assert fingerprint(unlike.weights["last"]) != fingerprint(whole.weights["last"])


class Linear(nn.Module):
    """Two members that start as copies, nearly."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.eye(4)[:2].repeat(2, 1, 1) + 0.01 * torch.randn(2, 2, 4))
        self.classifier = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))

    def forward(self, images):
        features = images.flatten(1) @ self.first.mT
        logits = [own(h) for own, h in zip(self.classifier, features, strict=True)]
        return Outputs(features=features, logits=torch.stack(logits))


def gaussian(size):
    images, labels = torch.randn(size, 1, 1, 4), torch.randint(2, (size,))
    images[:, 0, 0, :] += (2 * labels[:, None] - 1) * 0.5
    return Batch(images, labels, torch.zeros(size))


@torch.no_grad()
def known_redundancy(objective, model):
    """Of Gaussian features given the class, from their covariance: half of log det A det B / det C, in nats."""
    given = gaussian(4000)
    z = objective.bounded(model, [given]).noisy.double()
    values = []
    for label in range(2):
        c = torch.cat([*z[:, given.labels == label]], 1).T.cov()
        values.append(0.5 * (c[:2, :2].logdet() + c[2:, 2:].logdet() - c.logdet()).item())
    return sum(values) / 2


def test_members_become_less_redundant_and_with_delta_below_zero_more():
    found = {}
    for delta in (2.0, -1.0):
        torch.manual_seed(0)
        model = Linear()
        objective = DICE(
            features=2, classes=2, members=2, delta=delta, beta=10.0, hidden=(16, 16), embedding=2
        )
        before = known_redundancy(objective, model)
        optimizer = torch.optim.Adam([*model.parameters(), *objective.trained_with_network()], lr=0.02)
        for _ in range(80):
            logged = objective.step(model, [gaussian(64)], optimizer)
        found[delta] = known_redundancy(objective, model)
    assert found[2.0] < 0.3 * before < before < 0.5 * found[-1.0]
    assert logged["redundancy"] > 1
    assert logged["discriminator_accuracy"] > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed(kind):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, three = (kind(features=4, classes=3, members=2, seed=seed, **SMALL) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert fingerprint(one.state_dict()) == fingerprint(two.state_dict())
    assert fingerprint(one.state_dict()) != fingerprint(three.state_dict())


COMMON = {
    "features": 4,
    "classes": 3,
    "members": 2,
    "delta": -0.3,
    "beta": 30.0,
    "tau": 5.0,
    "clip": "hard",
    "pairs": "mean",
    "ramp_steps": 7,
    "ramp": "linear",
    "discriminator_steps": 1,
    "discriminator_learning_rate": 1e-4,
    "hidden": [8, 8],
    "embedding": 3,
    "seed": 2,
}


def test_the_options_are_named():
    assert IBR(**COMMON).configuration() == COMMON
    assert CEBR(**COMMON).configuration() == COMMON
    options = {**COMMON, "partners": "balanced", "queue_size": 5}
    assert DICE(**options).configuration() == options
    assert DICE(features=4, classes=3, members=2).configuration() == {
        "features": 4,
        "classes": 3,
        "members": 2,
        "delta": 0.2,
        "beta": 100.0,
        "tau": 10.0,
        "clip": "soft",
        "pairs": "per_member",
        "ramp_steps": 0,
        "ramp": "exp",
        "discriminator_steps": 4,
        "discriminator_learning_rate": 3e-3,
        "hidden": [256, 256, 100],
        "embedding": 64,
        "partners": "queue",
        "queue_size": 16,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"members": 1},
            "DICE needs at least 2 members, got 1: one has nobody to be redundant with; use CEB",
        ),
        ({"delta": math.nan}, "DICE needs delta to be a finite number, got nan"),
        ({"tau": 0}, "DICE needs tau to be positive, got 0"),
        (
            {"discriminator_learning_rate": -1.0},
            "DICE needs discriminator_learning_rate to be positive, got -1",
        ),
        ({"discriminator_steps": 0}, "DICE needs discriminator_steps to be a whole number from 1, got 0"),
        ({"hidden": (4, 0)}, "DICE needs hidden to be a whole number from 1, got 0"),
        ({"embedding": 0}, "DICE needs embedding to be a whole number from 1, got 0"),
        ({"queue_size": 0}, "DICE needs queue_size to be a whole number from 1, got 0"),
        ({"pairs": "sum"}, "DICE needs pairs to be one of per_member, mean, got 'sum'"),
        ({"ramp": "cosine"}, "DICE needs ramp to be one of exp, linear, got 'cosine'"),
        ({"clip": "none"}, "DICE needs clip to be one of soft, hard, got 'none'"),
        ({"partners": "all"}, "DICE needs partners to be one of queue, balanced, batch, got 'all'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DICE(**{"features": 2, "classes": 3, "members": 2, **options})


def test_one_member_is_told_what_to_use():
    with pytest.raises(InputError, match=r"IBR needs at least 2 members.*use IB"):
        IBR(features=2, classes=3, members=1)


def test_sam_cannot_wrap_it():
    with pytest.raises(InputError, match="SAM cannot wrap DICE"):
        SAM(make(DICE))


def test_features_of_a_network_can_be_estimated():
    model = Members(members=2).float()
    images, labels = joined(drawn(0, (60,), dtype=torch.float32))
    first, second = model(images).features
    found = redundancy_estimate(first, second, torch.tensor(labels), steps=3, hidden=(4,))
    assert math.isfinite(found.log_ratio)
