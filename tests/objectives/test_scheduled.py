"""The count of updates: it decides when moments are forgotten, and survives an interruption."""

import copy

import pytest
import torch
from torch import nn

from mirepoix.objectives import DANN, EQRM, IBIRM, IRM, TRM, ERMPlusPlus, Fishr
from mirepoix.objectives._scheduled import Scheduled, check_count
from mirepoix.types import Batch, InputError, Outputs


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, images):
        logits = self.linear(images.flatten(1))
        return Outputs(features=images.flatten(1), logits=logits)


class Jump(Scheduled):
    """The weight of the loss is 1 before update 2 and 3 from it on."""

    def resets(self):
        return (2,)

    def forward(self, model, batches):
        weight = 1.0 if self.updates < 2 else 3.0
        return weight * model(batches[0].images).logits.square().mean()


def setting() -> tuple[Model, Jump, torch.optim.Adam, list[Batch]]:
    torch.manual_seed(0)
    model = Model()
    labels = torch.tensor([0, 1])
    batch = Batch(torch.randn(2, 1, 1, 3), labels, torch.zeros_like(labels))
    return model, Jump(), torch.optim.Adam(model.parameters(), lr=0.1), [batch]


def test_moments_are_forgotten_before_the_update_and_at_no_other() -> None:
    model, objective, optimizer, batches = setting()
    steps = []
    for _ in range(4):
        objective.step(model, batches, optimizer)
        steps.append(int(optimizer.state[model.linear.weight]["step"]))
    assert steps == [1, 2, 1, 2]
    assert objective.updates == 4


def test_a_run_goes_on_at_the_same_place_of_the_schedule() -> None:
    model, objective, optimizer, batches = setting()
    for _ in range(2):
        objective.step(model, batches, optimizer)
    other = copy.deepcopy(model)
    again = Jump()
    again.load_state_dict(objective.state_dict())
    fresh = torch.optim.Adam(other.parameters(), lr=0.1)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        one = objective.step(model, batches, optimizer)["loss"]
        two = again.step(other, batches, fresh)["loss"]
        assert torch.equal(one, two)
    assert again.updates == 5


@pytest.mark.parametrize("value", [-1, 1.5, True, float("inf"), float("nan"), "many"])
def test_what_is_no_count_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="Jump needs start to be a whole number of updates from 0, got"):
        check_count("Jump", "start", value)  # type: ignore[arg-type]


def test_a_whole_number_is_a_count() -> None:
    assert [check_count("Jump", "start", value) for value in (0, 7, 3.0)] == [0, 7, 3]


def test_each_says_when_it_begins():
    assert IRM(irm_penalty_anneal_iters=7).begins() == 7
    assert IBIRM(irm_penalty_anneal_iters=7, ib_penalty_anneal_iters=9).begins() == 9
    assert Fishr(domains=2, penalty_anneal_iters=11, reset=False).begins() == 11
    assert EQRM(eqrm_burnin_iters=12.5, parity=True).begins() == 13
    assert TRM(features=2, classes=2, domains=2, iters=3).begins() == 3
    assert ERMPlusPlus(linear_steps=5).begins() == 6
    assert DANN(features=2, domains=2).begins() == 0
