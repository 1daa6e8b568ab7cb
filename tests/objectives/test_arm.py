import copy

import pytest
import torch
from tests.objectives.test_and_mask import adam_of, reordered
from tests.objectives.test_irm import assert_training_continues, one_class, value
from tests.objectives.test_mtl import assert_near, theta_of
from tests.reference import arm
from tests.reference.plain import new_adam
from tests.tiny import tiny_task
from torch import nn

from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._arm import ARM
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError, Outputs

SHAPE = (2, 2, 3)  # channels, height, width


class Tiny(nn.Module):
    """Two layers, for images with one channel more."""

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(torch.randn(3, 18, generator=random, dtype=torch.float64) / 3)
        self.last = nn.Parameter(torch.randn(3, 3, generator=random, dtype=torch.float64))

    def forward(self, images):
        assert images.shape[1:] == (3, 2, 3)
        features = torch.tanh(images.flatten(1) @ self.first.T)
        return Outputs(features, features @ self.last.T)


def drawn(seed, sizes=(3, 2, 4)):
    random = torch.Generator().manual_seed(seed)
    return [
        Batch(
            torch.randn(n, *SHAPE, generator=random, dtype=torch.float64) + 0.5 * domain,
            torch.randint(3, (n,), generator=random),
            torch.full((n,), domain),
        )
        for domain, n in enumerate(sizes)
    ]


def make(**options):
    return ARM(channels=2, **options).double()


def constant(objective, number):
    """A context network that says the same of every pixel."""
    with torch.no_grad():
        objective.context[6].weight.zero_()
        objective.context[6].bias.fill_(number)
    return objective


# The formula


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("sizes", [(3, 2, 4), (1, 3), (3,)])
def test_updates_follow_the_reference(sizes, parity):
    model, objective = Tiny(), make(parity=parity, support_size=2)
    optimizer = adam_of(model, objective, lr=0.05)
    modules = (model,) if parity else (model, objective)
    theta, state = theta_of(*modules), {"adam": new_adam()}
    fixed = {name: weight.detach() for name, weight in theta_of(objective).items()} if parity else {}
    for seed in range(3):
        given = drawn(seed, sizes)
        theta, expected = arm.update(theta, state, given, fixed=fixed)
        logged = objective.step(model, given, optimizer)
        assert set(logged) == {"loss"}
        assert_near(logged["loss"], expected["loss"].detach())
        for module in modules:
            for name, parameter in module.named_parameters():
                assert_near(parameter.detach(), theta[name].detach())
                assert_near(optimizer.state[parameter]["exp_avg"], state["adam"]["first"][name])
                assert_near(optimizer.state[parameter]["exp_avg_sq"], state["adam"]["second"][name])
        for name, (mean, variance) in state["statistics"].items():
            assert_near(objective.get_submodule(name).running_mean, mean)
            assert_near(objective.get_submodule(name).running_var, variance)
    for name, weight in fixed.items():
        assert torch.equal(objective.get_parameter(name), weight)
    for n in (4, 5):  # two groups, and one
        (batch,) = drawn(9, (n,))
        expected = arm.predict({**theta, **fixed}, state, batch.images, 2)
        assert_near(objective.predict(model, batch.images).logits, expected)


def test_the_context_is_the_last_channel_and_the_mean_over_the_domain():
    seen = []

    def model(images):
        seen.append(images)
        return Tiny()(images)

    objective, given = make(), drawn(0)
    objective(model, given)
    (images,) = seen
    first = 0
    for batch in given:
        part = images[first : first + len(batch.labels)]
        assert torch.equal(part[:, :2], batch.images)
        assert torch.equal(part[:, 2], part[:1, 2].expand(len(part), 2, 3))
        first += len(part)
    maps = objective.context(torch.cat([batch.images for batch in given]))
    torch.testing.assert_close(images[3, 2], maps[3:5, 0].mean(0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("number", [0.0, 0.7])
def test_with_a_constant_context_it_is_erm_on_images_with_one_more_channel(number):
    wide = [
        Batch(torch.cat([b.images, torch.full_like(b.images[:, :1], number)], 1), b.labels, b.domains)
        for b in drawn(0)
    ]
    ends = []
    for objective, given in ((constant(make(parity=True), number), drawn(0)), (ERM(), wide)):
        model = Tiny()
        optimizer = adam_of(model)
        for _ in range(3):
            objective.step(model, given, optimizer)
        ends.append(model.state_dict())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-12)


# Laws


def test_neither_the_order_of_samples_nor_that_of_domains_matters():
    model, given = Tiny(), drawn(0)
    expected = value(make(), model, given)
    assert value(make(), model, reordered(given)) == pytest.approx(expected, rel=1e-12)
    assert value(make(), model, given[::-1]) == pytest.approx(expected, rel=1e-12)


def test_an_image_changes_the_context_of_its_own_domain_alone():
    given = drawn(0)
    objective = make().eval()  # else batch norm carries it to the others
    seen = []

    def model(images):
        seen.append(images[:, 2])
        return Tiny()(images)

    objective(model, given)
    given[1].images[0].add_(1.0)
    objective(model, given)
    changed = (seen[0] != seen[1]).flatten(1).any(1)
    assert changed.tolist() == [False] * 3 + [True] * 2 + [False] * 4


@pytest.mark.parametrize(
    ("images", "support_size", "groups"),
    [(6, 2, [2, 2, 2]), (6, 3, [3, 3]), (6, 6, [6]), (6, 4, [6]), (6, 8, [6]), (5, 1, [1] * 5), (1, 8, [1])],
)
def test_groups_at_prediction(images, support_size, groups):
    model, objective = Tiny(), make(support_size=support_size)
    (batch,) = drawn(0, (images,))
    found = objective.predict(model, batch.images).logits
    alone = make(support_size=99)
    expected = torch.cat([alone.predict(model, part).logits for part in batch.images.split(groups)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("training", [False, True])
def test_a_prediction_changes_nothing_and_reads_the_statistics_of_training(training):
    model, objective = Tiny(), make()
    objective.step(model, drawn(0), adam_of(model, objective))
    (batch,) = drawn(1, (5,))
    expected = copy.deepcopy(objective).eval().predict(model, batch.images).logits
    before = copy.deepcopy(objective.state_dict())
    found = objective.train(training).predict(model, batch.images).logits
    assert torch.equal(found, expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())
    assert all(module.training is training for module in objective.modules())


# The context network


def test_its_layers():
    with torch.device("meta"):
        context = ARM(channels=3).context
    shapes = [tuple(layer.weight.shape) for layer in context if isinstance(layer, nn.Conv2d)]
    assert shapes == [(64, 3, 5, 5), (64, 64, 5, 5), (1, 64, 5, 5)]
    assert [type(layer).__name__ for layer in context] == [
        *("Conv2d", "BatchNorm2d", "ReLU") * 2,
        "Conv2d",
    ]


def test_it_is_trained_by_default_and_not_with_parity():
    for parity in (False, True):
        model, objective = Tiny(), make(parity=parity)
        before, network = copy.deepcopy(objective), copy.deepcopy(model)
        optimizer = adam_of(model, objective, weight_decay=0)
        for seed in range(2):
            objective.step(model, drawn(seed), optimizer)
        changed = [
            not torch.equal(one, other)
            for one, other in zip(objective.parameters(), before.parameters(), strict=True)
        ]
        assert changed == [not parity] * 10
        assert not torch.equal(model.first, network.first)
        assert objective.context[1].num_batches_tracked == 2  # its statistics move either way
        assert all(p.requires_grad is not parity for p in objective.trained_with_network())


def test_it_depends_on_its_seed_alone():
    torch.manual_seed(1)
    one = ARM(channels=2)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    two, other = ARM(channels=2), ARM(channels=2, seed=1)
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert not torch.equal(one.context[0].weight, other.context[0].weight)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_training_with_a_network_of_one_more_channel():
    split = tiny_task().split("domain_0")
    network = NetworkSpec(name="mnist_cnn", classes=2, channels=2, width=8)
    run = Run(steps=3, batch_size=4, learning_rate=1e-2, collect="last")
    ends = [
        Trainer(network, ARM(channels=1, support_size=4, parity=parity), Loop(device="cpu"))(
            initial_weights(network), split, run
        )
        for parity in (False, True)
    ]
    assert not torch.equal(ends[0]["featurizer.conv1.weight"], ends[1]["featurizer.conv1.weight"])


# Corners


@pytest.mark.parametrize("parity", [False, True])
def test_a_run_continues_with_the_same_bits(parity):
    ends = []
    for interrupted in (False, True):
        parts = _parts(parity)
        for seed in range(4):
            if interrupted and seed == 2:
                saved = copy.deepcopy([part.state_dict() for part in parts])
                parts = _parts(parity)
                for part, state in zip(parts, saved, strict=True):
                    part.load_state_dict(state)
            model, objective, optimizer = parts
            objective.step(model, drawn(seed), optimizer)
        ends.append({**model.state_dict(), **objective.state_dict()})
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


def _parts(parity):
    model, objective = Tiny(), make(parity=parity)
    return model, objective, adam_of(model, objective)


def test_a_training_that_was_interrupted_ends_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tests.objectives.test_irm.tiny_network",
        lambda: NetworkSpec(name="mnist_cnn", classes=2, channels=2, width=8),
    )
    assert_training_continues(ARM(channels=1), tmp_path)


def test_half_precision():
    ends = []
    for half in (False, True):
        torch.manual_seed(0)
        model, objective = Tiny().float(), ARM(channels=2)
        optimizer = adam_of(model, objective, lr=1e-2)
        for seed in range(3):
            given = [Batch(b.images.float(), b.labels, b.domains) for b in drawn(seed)]
            given = one_class(given) if seed == 2 else given
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                logged = objective.step(model, given, optimizer)
            assert logged["loss"].isfinite()
            assert logged["loss"].dtype == torch.float32
        assert all(tensor.isfinite().all() for tensor in objective.state_dict().values())
        ends.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    before = torch.cat([parameter.detach().flatten() for parameter in Tiny().float().parameters()])
    assert (ends[0] - ends[1]).norm() < 0.2 * (ends[0] - before).norm()


def test_missing_classes_and_a_batch_of_one_give_finite_gradients():
    for sizes in ((3, 2), (1,)):
        model, objective = Tiny(), make()
        objective(model, one_class(drawn(0, sizes))).backward()
        for parameter in (*model.parameters(), *objective.parameters()):
            assert parameter.grad.isfinite().all()


def test_a_scaler_changes_nothing_but_rounding():
    ends = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        model, objective = Tiny(), make()
        objective.step(model, drawn(0), adam_of(model, objective), scaler)
        ends.append({**model.state_dict(), **objective.state_dict()})
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-11)


def test_within_sam_the_statistics_move_once():
    model, objective = Tiny(), make()
    SAM(objective).step(model, drawn(0), adam_of(model, objective))
    assert objective.context[1].num_batches_tracked == 1


def test_other_images_are_refused():
    objective, given = ARM(channels=3).double(), drawn(0)
    message = (
        r"ARM was made for images of 3 channels, \(samples, 3, height, width\), got \(9, 2, 2, 3\); "
        r"make it with channels=2\. The network takes one channel more than the images have"
    )
    with pytest.raises(InputError, match=message):
        objective(Tiny(), given)
    with pytest.raises(InputError, match=r"got \(3, 2, 2, 3\); make it with channels=2"):
        objective.predict(Tiny(), given[0].images)
    with pytest.raises(InputError, match=r"got \(3, 12\)\. The network"):
        objective.predict(Tiny(), given[0].images.flatten(1))


def test_the_options_are_named():
    expected = {"channels": 3, "support_size": 8, "parity": False, "seed": 0}
    assert ARM(channels=3).configuration() == expected
    options = {"channels": 1, "support_size": 4, "parity": True, "seed": 3}
    assert ARM(**options).configuration() == options


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_counts_must_be_counts(wrong):
    with pytest.raises(InputError, match="ARM needs a whole number of channels from 1, got channels="):
        ARM(channels=wrong)
    with pytest.raises(InputError, match="ARM needs a whole number of images in support_size from 1, got"):
        ARM(channels=3, support_size=wrong)
