import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_erm import batches
from tests.objectives.test_mmd import without_values
from tests.reference.causirl import causirl, cuts, squared_moments
from tests.reference.mmd import Adam, squared_mmd

from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._causirl import CausIRLCORAL, CausIRLMMD
from mirepoix.types import Batch, InputError, Outputs

BOTH = [(CausIRLCORAL, squared_moments), (CausIRLMMD, squared_mmd)]
KINDS = [CausIRLCORAL, CausIRLMMD]


@pytest.mark.parametrize(
    ("sizes", "mmd_gamma"), [((4, 4), 7.0), ((2, 5, 3), 1.0), ((1, 2), 7.0), ((6,), 3.0)]
)
@pytest.mark.parametrize(("kind", "distance"), BOTH)
def test_three_updates_are_those_of_the_formula(kind, distance, sizes, mmd_gamma):
    model, objective = TwoLayers(), kind(mmd_gamma)
    slow = copy.deepcopy(model)
    optimizer, adam = torch.optim.Adam(model.parameters(), lr=0.05), Adam(slow)
    given = batches(sizes)
    for seed in range(3):
        torch.manual_seed(seed)
        places = cuts(given)
        expected = causirl(slow, given, mmd_gamma, distance, places)
        torch.manual_seed(seed)
        logged = objective.step(model, given, optimizer)
        adam.step(expected, 0.05)
        assert logged["loss"].item() == pytest.approx(expected.item(), abs=1e-10)
    for one, other in zip(model.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


class Recording(CausIRLMMD):
    """Keeps the two sets."""

    def distance(self, one, other):
        self.sets = one, other
        return super().distance(one, other)


def test_every_cut_from_nothing_to_all_but_one_is_as_likely():
    def model(images):
        return Outputs(images.flatten(1), torch.zeros(len(images), 2, dtype=torch.float64))

    # The feature of a sample is its number.
    numbers = torch.arange(8.0, dtype=torch.float64).reshape(8, 1, 1, 1)
    label = torch.zeros(4, dtype=torch.int64)
    given = [Batch(part, label, label) for part in numbers.split(4)]
    torch.manual_seed(0)
    objective, seen = Recording(), []
    for _ in range(400):
        objective.sets = (torch.empty(0, 1), torch.empty(0, 1))
        objective(model, given)
        first, second = (part.flatten().tolist() for part in objective.sets)
        if first:
            assert first == sorted(first)
            assert second == sorted(second)
            assert sorted(first + second) == list(range(8))
            assert {3.0, 7.0} <= set(second)
            seen.append((sum(n < 4 for n in first), sum(n >= 4 for n in first)))
    # With fewer than two samples in the first set there is no distance.
    assert set(seen) == {(a, b) for a in range(4) for b in range(4) if a + b >= 2}
    counts = [seen.count(pair) for pair in set(seen)]
    assert max(abs(count - 25) for count in counts) < 5 * math.sqrt(25)  # five standard errors


@pytest.mark.parametrize("kind", KINDS)
def test_weight_zero_is_erm_on_domains_of_one_size(kind):
    one, two = TwoLayers(), TwoLayers()
    given = batches((4, 4, 4))
    kind(0.0).step(one, given, torch.optim.SGD(one.parameters(), lr=0.1))
    ERM().step(two, given, torch.optim.SGD(two.parameters(), lr=0.1))
    for name, value in two.state_dict().items():  # up to rounding: a pass per domain here, a joint one there
        torch.testing.assert_close(one.state_dict()[name], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sizes", [(1,), (1, 1), (1, 1, 1), (2,)])
@pytest.mark.parametrize("kind", KINDS)
def test_without_two_samples_on_either_side_there_is_no_penalty(kind, sizes):
    model, given = TwoLayers(), batches(sizes)
    loss = kind(100.0)(model, given)
    torch.testing.assert_close(loss, ERM()(model, given), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_within_the_sets_does_not_matter(kind):
    objective = kind()
    random = torch.Generator().manual_seed(0)
    one, other = (torch.randn(n, 3, generator=random, dtype=torch.float64) for n in (4, 5))
    distance = objective.distance(one, other)
    torch.testing.assert_close(distance, objective.distance(one.flip(0), other.flip(0)), rtol=1e-12, atol=0)
    torch.testing.assert_close(distance, objective.distance(other, one), rtol=1e-12, atol=0)
    assert objective.distance(one, one).item() == pytest.approx(0, abs=1e-12)
    assert distance > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_cuts_are_drawn_before_the_network_draws(kind):
    class Noisy(TwoLayers):
        def forward(self, images):
            features = F.dropout(torch.tanh(images.flatten(1) @ self.first.T), 0.5)
            return Outputs(features, features @ self.last.T)

    given = batches((4, 6))
    torch.manual_seed(3)
    places = cuts(given)
    noise = [F.dropout(torch.ones(len(b.labels), 3, dtype=torch.float64), 0.5) for b in given]
    model = TwoLayers()
    outputs = []
    for batch, factors in zip(given, noise, strict=True):
        features = model(batch.images).features * factors
        outputs.append(Outputs(features, features @ model.last.T))
    risk = sum(F.cross_entropy(o.logits, b.labels) for o, b in zip(outputs, given, strict=True)) / 2
    one = torch.cat([o.features[:place] for o, place in zip(outputs, places, strict=True)])
    other = torch.cat([o.features[place:] for o, place in zip(outputs, places, strict=True)])
    assert min(len(one), len(other)) > 1
    torch.manual_seed(3)
    loss = kind()(Noisy(), given)
    torch.testing.assert_close(loss, risk + kind().distance(one, other), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bits_and_numpy_is_not_touched(kind):
    model, given = TwoLayers(), batches((9, 11))
    before = np.random.get_state()[2]  # noqa: NPY002
    losses = []
    for seed in (11, 11, 12):
        torch.manual_seed(seed)
        losses.append(kind()(model, given))
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    assert np.random.get_state()[2] == before  # noqa: NPY002


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_not_taken_in_half_precision(kind):
    def model(images):
        features = images.flatten(1).bfloat16()  # as under autocast
        return Outputs(features, torch.zeros(len(features), 2))

    given = [Batch(b.images.float(), b.labels % 2, b.domains) for b in batches((6, 6))]
    torch.manual_seed(0)
    expected = kind()(model, given)
    assert expected.dtype == torch.float32
    assert expected > math.log(2) + 1e-3
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kind()(model, given), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_features_that_overflow_are_not_hidden(kind):
    def model(images):
        return Outputs(images.flatten(1) * math.inf, torch.zeros(len(images), 3, dtype=torch.float64))

    torch.manual_seed(0)
    assert kind()(model, batches((8, 8))).isnan()


@pytest.mark.parametrize("kind", KINDS)
def test_a_domain_may_lack_classes(kind):
    model, given = TwoLayers(), batches((4, 4))
    given = [Batch(b.images, torch.full_like(b.labels, k), b.domains) for k, b in enumerate(given)]
    kind().step(model, given, torch.optim.Adam(model.parameters()))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_never_waits_for_the_device(kind):
    assert kind()(TwoLayers(), without_values(batches((4, 5, 4)))).shape == ()


@pytest.mark.parametrize("kind", KINDS)
def test_both_passes_of_sharpness_aware_minimisation_see_the_same_cuts(kind):
    model, given = TwoLayers(), batches((9, 11))
    torch.manual_seed(5)
    logged = SAM(kind(5.0), 1e-9).step(model, given, torch.optim.SGD(model.parameters(), lr=0.1))
    assert logged["loss"].item() == pytest.approx(logged["unperturbed_loss"].item(), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_option_is_named(kind):
    assert kind().configuration() == {"mmd_gamma": 1.0}
    assert kind(mmd_gamma=3).configuration() == {"mmd_gamma": 3.0}
    assert kind().state_dict() == {}


@pytest.mark.parametrize("mmd_gamma", [-1, math.inf, math.nan])
@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_must_be_a_number_from_zero(kind, mmd_gamma):
    with pytest.raises(InputError, match=rf"{kind.__name__} needs a finite mmd_gamma of 0 or more, got"):
        kind(mmd_gamma)
