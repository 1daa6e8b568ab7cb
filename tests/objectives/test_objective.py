import pytest
import torch
from tests.objectives.test_erm import Linear, batches
from torch import nn

from mirepoix.objectives import ERM, Objective
from mirepoix.types import InputError, Outputs


def test_a_criterion_must_say_its_scalar():
    with pytest.raises(TypeError, match="forward"):
        Objective()


def test_a_criterion_with_options_must_name_them():
    with pytest.raises(TypeError, match=r"Penalised takes options, so it must define configuration\(\)"):

        class Penalised(ERM):
            def __init__(self, weight):
                super().__init__()
                self.weight = weight


def test_configuration_is_empty_by_default():
    assert ERM().configuration() == {}


def test_a_scaler_that_is_off_changes_nothing():
    one, two = Linear(), Linear()
    ERM().step(one, batches(), torch.optim.Adam(one.parameters()))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    ERM().step(two, batches(), torch.optim.Adam(two.parameters()), scaler)
    assert torch.equal(one.weight, two.weight)


def test_a_scaler_skips_a_step_whose_gradient_overflows():
    class Exploding(Objective):
        def forward(self, model, batches):
            return model.weight.sum() * torch.tensor(float("inf"), dtype=torch.float64)

    model = Linear()
    before = model.weight.detach().clone()
    Exploding().step(model, [], torch.optim.SGD(model.parameters(), lr=1.0), torch.amp.GradScaler("cpu"))
    assert torch.equal(model.weight, before)


def test_parameters_of_a_criterion_belong_to_it():
    class Owner(ERM):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(2, 2)

    assert len(list(Owner().parameters())) == 2
    assert isinstance(Linear()(batches()[0].images), Outputs)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda model: model.weight.sum(1), r"got a tensor of shape \(2,\); take the mean"),
        (lambda model: model.weight.sum().detach(), "got one that depends on no parameter"),
        (lambda model: 1.5, "got a float"),
    ],
)
def test_a_forward_that_returns_no_scalar_is_told(returned, message):
    class Wrong(Objective):
        def forward(self, model, batches):
            return returned(model)

    model = nn.Linear(3, 2)
    with pytest.raises(InputError, match=rf"Wrong\.forward must return one scalar tensor .*{message}"):
        Wrong().step(model, [], torch.optim.SGD(model.parameters(), lr=1.0))


def test_most_begin_at_once():
    assert ERM().begins() == 0
