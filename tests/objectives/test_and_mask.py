import copy
import math

import numpy as np
import pytest
import torch
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_erm import Linear, batches
from tests.reference import and_mask
from tests.reference.complex_step import fresh
from torch import nn

from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._and_mask import ANDMask
from mirepoix.types import Batch, InputError, Outputs

LR, WEIGHT_DECAY = 0.03, 0.01


def drawn(step, sizes=(3, 5, 4)):
    """Other samples for every step; what the label depends on is partly the same in every domain."""
    random = torch.Generator().manual_seed(100 + step)
    given = []
    for domain, n in enumerate(sizes):
        images = torch.randn(n, 1, 1, 2, generator=random, dtype=torch.float64)
        labels = (images.sum((1, 2, 3)) > 0) + torch.randint(2, (n,), generator=random)
        given.append(Batch(images + 0.3 * domain, labels, torch.full((n,), domain)))
    return given


def as_lists(given):
    """A domain as the references read it: pairs of a vector and a label."""
    return [
        [(x.flatten().numpy(), int(y)) for x, y in zip(batch.images, batch.labels, strict=True)]
        for batch in given
    ]


def weights_of(*modules):
    return {n: p.detach().numpy().copy() for module in modules for n, p in module.named_parameters()}


def adam_of(*modules, **options):
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return torch.optim.Adam(parameters, **{"lr": LR, "weight_decay": WEIGHT_DECAY, **options})


def assert_same(theta, memory, optimizer, *modules, tolerance=1e-10):
    """Weights, and moments of the optimizer, are those of a reference."""
    for module in modules:
        for name, parameter in module.named_parameters():
            assert np.abs(parameter.detach().numpy() - theta[name]).max() < tolerance
            if not parameter.requires_grad:
                continue
            state = optimizer.state[parameter]
            assert state["step"].item() == memory["count"]
            assert np.abs(state["exp_avg"].numpy() - memory["first"][name]).max() < tolerance
            assert np.abs(state["exp_avg_sq"].numpy() - memory["second"][name]).max() < tolerance


def assert_follows(objective, update, sizes=(3, 5, 4), model=None, **options):
    """Three updates with Adam are those of a reference."""
    model = TwoLayers() if model is None else model
    optimizer = adam_of(model)
    theta = weights_of(model)
    memory = fresh(theta)
    for step in range(3):
        given = drawn(step, sizes)
        theta, memory, parts = update(theta, memory, as_lists(given), LR, WEIGHT_DECAY, **options)
        logged = objective.step(model, given, optimizer)
        assert_same(theta, memory, optimizer, model)
        assert set(logged) == set(parts)
        for name, value in parts.items():
            assert logged[name].item() == pytest.approx(value, rel=1e-10)
            assert not logged[name].requires_grad
    return model


def assert_continues(make, make_model=TwoLayers, sizes=(3, 5, 4)):
    """A run that was saved and loaded into new objects ends with the same bits."""
    ends = []
    for interrupted in (False, True):
        model, objective = make_model(), make()
        optimizer = adam_of(model, objective)
        for step in range(6):
            if interrupted and step == 3:
                saved = copy.deepcopy(
                    [model.state_dict(), objective.state_dict(), optimizer.state_dict()]
                )  # what the trainer saves
                model, objective = make_model(), make()
                optimizer = adam_of(model, objective)
                for part, state in zip((model, objective, optimizer), saved, strict=True):
                    part.load_state_dict(state)
            torch.manual_seed(step)
            objective.step(model, drawn(step, sizes), optimizer)
        ends.append({**model.state_dict(), **objective.state_dict()})
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def moved(objective, given, model=None, seed=0, **options):
    """The weights after one step of gradient descent, all in one vector."""
    model = TwoLayers() if model is None else model
    torch.manual_seed(seed)
    objective.step(model, given, torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options}))
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def mean_risk_step(given, model=None):
    model = TwoLayers() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.stack([ERM()(model, [batch]) for batch in given]).mean().backward()
    optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def reordered(given):
    """The samples of each domain, backwards."""
    return [Batch(b.images.flip(0), b.labels.flip(0), b.domains) for b in given]


class Single(nn.Module):
    """A network in single precision with layers that autocast knows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.featurizer = nn.Linear(2, 6)
        self.classifier = nn.Linear(6, 3)

    def forward(self, images):
        features = torch.tanh(self.featurizer(images.flatten(1)))
        return Outputs(features, self.classifier(features))


def in_single(given):
    return [Batch(b.images.float(), b.labels, b.domains) for b in given]


def assert_half_precision_trains(make, sizes=(4, 5, 4), near=0.2):
    """Under autocast an update is finite and near that in full precision; also with one class alone."""
    ends = []
    for half in (False, True):
        model, objective = Single(), make()
        optimizer = adam_of(model, objective, lr=1e-2)
        for step in range(3):
            given = in_single(drawn(step, sizes))
            if step == 2:
                given = [Batch(b.images, torch.ones_like(b.labels), b.domains) for b in given]
            torch.manual_seed(step)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                logged = objective.step(model, given, optimizer)
            assert all(value.isfinite() and value.dtype == torch.float32 for value in logged.values())
        ends.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        assert ends[-1].isfinite().all()
    before = torch.cat([parameter.detach().flatten() for parameter in Single().parameters()])
    assert not torch.equal(ends[0], ends[1])
    assert (ends[0] - ends[1]).norm() < near * (ends[0] - before).norm()


def assert_scaler_changes_nothing(make, sizes=(3, 5, 4), exact=True):
    """A scale that is a power of two, and a scaler that is off."""
    ends = []
    for scaler in (
        None,
        torch.amp.GradScaler("cpu", enabled=False),
        torch.amp.GradScaler("cpu", init_scale=2.0**10),
    ):
        model, objective = TwoLayers(), make()
        optimizer = adam_of(model, objective)
        for step in range(3):
            torch.manual_seed(step)
            objective.step(model, drawn(step, sizes), optimizer, scaler)
        ends.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-9, atol=1e-11)


class Overflowing(TwoLayers):
    """Whose gradient is infinite, once."""

    def __init__(self):
        super().__init__()
        self.first_pass = True

    def forward(self, images):
        outputs = super().forward(images)
        if self.first_pass:
            self.first_pass = False
            outputs.logits.register_hook(lambda gradient: gradient * math.inf)
        return outputs


# AND-mask


@pytest.mark.parametrize("tau", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("sizes", [(3, 5, 4), (1, 4), (6,)])
def test_updates_are_those_of_the_reference(tau, sizes):
    assert_follows(ANDMask(tau=tau), and_mask.update, sizes, tau=tau)


def test_a_mask_by_hand():
    # Three domains: signs +++, ++-, +-0, all zero. The means are 2, 1, 0, 0.
    gradients = torch.tensor([[1.0, 2, 1, 0], [2, 2, -1, 0], [3, -1, 0, 0]])
    assert ANDMask(tau=1).mask(gradients).tolist() == [1, 0, 0, 0]
    assert ANDMask(tau=1 / 3).mask(gradients).tolist() == [1, 1, 0, 0]
    assert ANDMask(tau=0).mask(gradients).tolist() == [1, 1, 1, 1]


def test_what_is_kept_is_divided_by_its_share():
    class Table(nn.Module):
        """Logits of two classes that are the weights, one row per image."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, images):
            logits = images.flatten(1) * self.weight
            return Outputs(logits, logits)

    def domain(x):
        return Batch(
            torch.tensor(x, dtype=torch.float64).reshape(1, 1, 1, 2), torch.tensor([0]), torch.tensor([0])
        )

    # At zero the gradients are (-x_1, x_2) / 2: here (-1, 1) and (-2, -3). Only the first entry has one sign.
    model = Table()
    logged = ANDMask().step(
        model, [domain([2.0, 2]), domain([4.0, -6])], torch.optim.SGD(model.parameters(), lr=1.0)
    )
    assert model.weight.tolist() == pytest.approx([1.5 / 0.5, 0])
    assert logged["kept"].item() == 0.5
    assert logged["loss"].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("domains", [2, 3, 49])
def test_unanimity_is_exact_for_any_number_of_domains(domains):
    assert ANDMask(tau=1).mask(torch.full((domains, 2), -1e-30)).tolist() == [1, 1]


def test_at_tau_zero_a_step_is_that_of_the_mean_risk():
    given = drawn(0)
    torch.testing.assert_close(moved(ANDMask(tau=0), given), mean_risk_step(given), rtol=1e-8, atol=1e-9)


def test_one_domain_is_erm_where_no_gradient_is_zero():
    given = drawn(0, (6,))
    torch.testing.assert_close(moved(ANDMask(tau=1), given), mean_risk_step(given), rtol=1e-8, atol=1e-9)


def test_forward_is_the_mean_risk():
    model, given = TwoLayers(), drawn(0)
    expected = sum(ERM()(model, [batch]) for batch in given) / 3
    torch.testing.assert_close(ANDMask()(model, given), expected, rtol=1e-12, atol=0)


def test_the_order_of_samples_and_of_domains_does_not_matter():
    given = drawn(0)
    expected = moved(ANDMask(tau=0.9), given)
    torch.testing.assert_close(moved(ANDMask(tau=0.9), given[::-1]), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(moved(ANDMask(tau=0.9), reordered(given)), expected, rtol=1e-12, atol=1e-14)


def test_where_domains_disagree_nothing_moves():
    (batch,) = batches((4,))
    model = Linear()
    with torch.no_grad():
        model.weight.zero_()
    before = model.weight.detach().clone()
    opposite = Batch(-batch.images, batch.labels, batch.domains)  # at zero weights, the opposite gradient
    logged = ANDMask().step(model, [batch, opposite], torch.optim.SGD(model.parameters(), lr=1.0))
    assert torch.equal(model.weight, before)
    assert logged["kept"].item() == 0.0


def test_parameters_that_no_domain_uses_stay():
    model = TwoLayers()
    model.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))
    model.idle.grad = torch.ones_like(model.idle)  # of an earlier step
    ANDMask().step(model, drawn(0), adam_of(model))
    assert model.idle.tolist() == [1.0, 1.0]


def test_parameters_that_some_domains_use_have_zeros_of_the_others():
    class Gated(Linear):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, images):
            return super().forward(images * self.gate if len(images) == 5 else images)

    for tau, moves in ((1.0, False), (0.3, True)):
        model = Gated()
        ANDMask(tau=tau).step(model, drawn(0), torch.optim.SGD(model.parameters(), lr=0.1))
        assert (model.gate.tolist() != [1.0, 1.0]) is moves


def test_frozen_weights_stay_and_others_move():
    model = TwoLayers()
    before = copy.deepcopy(model)
    model.first.requires_grad_(False)
    ANDMask(tau=0.3).step(model, drawn(0), adam_of(model))
    assert torch.equal(model.first, before.first)
    assert not torch.equal(model.last, before.last)


def test_gradients_of_an_earlier_step_are_forgotten():
    model, given = TwoLayers(), drawn(0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    assert torch.equal(moved(ANDMask(), given, model), moved(ANDMask(), given))


def test_half_precision():
    assert_half_precision_trains(lambda: ANDMask(tau=0.3))


def test_the_scale_of_a_scaler_cancels():
    assert_scaler_changes_nothing(ANDMask)


def test_a_scaler_skips_a_step_that_overflows_and_makes_the_next():
    model, scaler = Overflowing(), torch.amp.GradScaler("cpu", init_scale=8.0)
    before = model.last.detach().clone()
    optimizer = adam_of(model)
    ANDMask(tau=0.3).step(model, drawn(0), optimizer, scaler)
    assert torch.equal(model.last, before)
    assert scaler.get_scale() == 4.0
    ANDMask(tau=0.3).step(model, drawn(1), optimizer, scaler)
    assert model.last.isfinite().all()
    assert not torch.equal(model.last, before)


def test_a_run_continues_with_the_same_bits():
    assert_continues(ANDMask)
    assert ANDMask().state_dict() == {}


def test_the_option_is_named():
    assert ANDMask().configuration() == {"tau": 1.0}
    assert ANDMask(tau=0.7).configuration() == {"tau": 0.7}


@pytest.mark.parametrize("tau", [-0.1, 1.1, math.nan])
def test_tau_must_be_a_share(tau):
    with pytest.raises(InputError, match=r"ANDMask needs tau to be a share in \[0, 1\], got .*1 is usual"):
        ANDMask(tau=tau)


def test_sam_refuses_it():
    with pytest.raises(InputError, match="SAM cannot wrap ANDMask"):
        SAM(ANDMask())
