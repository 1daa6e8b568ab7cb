"""Any members can be combined from logits that were computed once; one member is itself."""

from itertools import combinations

import pytest
import torch

from mirepoix.ensembles import Ensemble, average_logits, average_probabilities, vote
from mirepoix.predictions import Predictions

NAMES = ("a", "b", "c", "d")
LOGITS = 2 * torch.randn(4, 30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
GIVEN = Predictions(
    LOGITS, torch.arange(30) % 5, torch.zeros(30, dtype=torch.int64), NAMES, tuple("vwxyz"), ("all",)
)


@pytest.mark.parametrize("name", NAMES)
def test_one_member_is_itself(name):
    own = GIVEN.of([name]).logits
    assert torch.equal(average_logits(own), own[0])
    torch.testing.assert_close(average_probabilities(own), own[0].log_softmax(-1), rtol=1e-12, atol=1e-12)
    assert torch.equal(vote(own), own[0].argmax(-1))
    assert torch.equal(Ensemble([{"place": own[0]}]).logits(lambda theta: theta["place"]), own[0])


def test_every_subset_is_the_ensemble_of_its_members():
    for size in range(1, 5):
        for names in combinations(NAMES, size):
            own = GIVEN.of(names).logits
            places = [NAMES.index(name) for name in names]
            geometric = LOGITS[places].log_softmax(-1).mean(0).softmax(-1)
            torch.testing.assert_close(average_logits(own).softmax(-1), geometric, rtol=0, atol=1e-12)
            arithmetic = LOGITS[places].softmax(-1).mean(0)
            torch.testing.assert_close(average_probabilities(own).exp(), arithmetic, rtol=0, atol=1e-12)
            ensemble = Ensemble([{"place": torch.tensor(place)} for place in places])
            found = ensemble.logits(lambda theta: LOGITS[int(theta["place"])])
            torch.testing.assert_close(found, average_logits(own), rtol=1e-12, atol=1e-12)
