import copy

import pytest
import torch
from torch import nn

from mirepoix.checkpoints import fingerprint
from mirepoix.objectives._owned import Owned


def owned(kind=torch.optim.Adam):
    torch.manual_seed(0)
    return Owned(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), lambda parameters: kind(parameters, lr=0.1))


def loss(module, step):
    return module(torch.randn(5, 3, generator=torch.Generator().manual_seed(step))).square().sum()


def moved(module, steps):
    for step in steps:
        module.descend(loss(module, step))
    return module


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_moments_are_saved_and_go_on_bit_for_bit(kind):
    whole = moved(owned(kind), range(5))
    half = moved(owned(kind), range(2))
    other = owned(kind)
    other.load_state_dict(half.state_dict())
    moved(half, range(2, 5))  # what was loaded is a copy
    assert fingerprint(moved(other, range(2, 5)).state_dict()) == fingerprint(whole.state_dict())
    forgotten = owned(kind)
    forgotten.module.load_state_dict(moved(owned(kind), range(2)).module.state_dict())
    assert fingerprint(moved(forgotten, range(2, 5)).state_dict()) != fingerprint(whole.state_dict())


def test_a_copy_has_moments_and_parameters_of_its_own():
    one = moved(owned(), range(2))
    two = copy.deepcopy(one)
    before = fingerprint(one.state_dict())
    moved(two, range(2, 4))
    assert fingerprint(one.state_dict()) == before
    assert fingerprint(moved(one, range(2, 4)).state_dict()) == fingerprint(two.state_dict())


def test_a_fresh_state_forgets_moments():
    module, fresh = moved(owned(), range(2)), owned().state_dict()
    module.load_state_dict(fresh)
    assert fingerprint(moved(module, range(3)).state_dict()) == fingerprint(
        moved(owned(), range(3)).state_dict()
    )


def test_a_part_of_something_larger_is_loaded_strictly():
    whole = nn.ModuleDict({"one": moved(owned(), range(2)), "two": owned()})
    other = nn.ModuleDict({"one": owned(), "two": owned()})
    other.load_state_dict(whole.state_dict())
    assert fingerprint(other.state_dict()) == fingerprint(whole.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected"):
        other.load_state_dict({**whole.state_dict(), "one.other": torch.zeros(1)})


def test_gradients_of_others_are_left_alone():
    module, outside = owned(), nn.Linear(3, 3)
    outside.weight.grad = torch.ones(3, 3)
    module.descend(module(outside(torch.ones(2, 3))).sum())
    assert torch.equal(outside.weight.grad, torch.ones(3, 3))
    assert outside.bias.grad is None


def test_moments_follow_their_parameters():
    module = moved(owned(), range(2)).double()
    for parameter in module.module.parameters():
        state = module.optimizer.state[parameter]
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float64
        assert state["step"].dtype == torch.float32
    module.descend(module(torch.ones(2, 3, dtype=torch.float64)).sum())
    copy.deepcopy(module).to("meta")
