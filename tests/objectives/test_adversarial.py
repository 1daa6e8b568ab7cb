import copy

import pytest
import torch
import torch.nn.functional as F
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_irm import drawn

from mirepoix.objectives._adversarial import Adversarial, told_apart
from mirepoix.types import InputError

SIZES = {
    "features": 3,
    "domains": 3,
    "beta1": 0.5,
    "mlp_width": 5,
    "mlp_depth": 2,
    "mlp_dropout": 0.0,
    "seed": 0,
}


class Hiding(Adversarial):
    """The risk, and a discriminator of the domains."""

    def __init__(self, turns):
        super().__init__(d_steps_per_g_step=turns, **SIZES)
        self.discriminator = self.own(self.perceptron().double(), lr=0.1, weight_decay=0.0)

    def configuration(self):
        return super().configuration()

    def losses(self, model, batches):
        images, labels, domains = self.joined(batches)
        outputs = model(images)
        told = F.cross_entropy(self.discriminator(outputs.features), domains)
        return F.cross_entropy(outputs.logits, labels) - told, told


@pytest.mark.parametrize(("turns", "expected"), [(1, "GDGDGD"), (2, "DGDDGD"), (3, "DDGDDD")])
def test_one_player_learns_in_each_update(turns, expected):
    model, given = TwoLayers(), drawn(0)
    objective = Hiding(turns)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    found = ""
    for _ in expected:
        network, adversary = (
            copy.deepcopy(part.state_dict()) for part in (model, objective.discriminator.module)
        )
        objective.step(model, given, optimizer)
        moved = [
            any(not torch.equal(before[name], after[name]) for name in before)
            for before, after in (
                (network, model.state_dict()),
                (adversary, objective.discriminator.module.state_dict()),
            )
        ]
        assert sum(moved) == 1
        found += "G" if moved[0] else "D"
    assert found == expected
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)


def test_as_many_domains_as_said():
    with pytest.raises(
        InputError, match=r"Hiding was made for 3 source domains, got 2; make it with domains=2"
    ):
        Hiding(1)(TwoLayers(), drawn(0)[:2])


def test_the_share_of_domains_told_apart():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    assert told_apart(logits, torch.tensor([0, 1, 1])).item() == pytest.approx(2 / 3)
