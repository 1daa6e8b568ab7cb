import pytest
import torch
from tests.objectives.test_and_mask import adam_of, drawn, mean_risk_step, moved
from tests.objectives.test_coral import TwoLayers

from mirepoix.objectives import ERM
from mirepoix.objectives._masked import Masked


class Constant(Masked):
    """The same number for every entry."""

    def __init__(self, value):
        super().__init__()
        self.value = value
        self.seen = []

    def configuration(self):
        return {"value": self.value}

    def mask(self, gradients):
        self.seen.append(gradients)
        return torch.full_like(gradients[0], self.value)


class FirstColumn(Masked):
    def mask(self, gradients):
        mask = torch.zeros_like(gradients[0])
        mask[:, 0] = 1
        return mask


def test_a_mask_is_what_a_subclass_writes():
    with pytest.raises(TypeError, match="mask"):
        Masked()


@pytest.mark.parametrize("value", [1.0, 0.25])
def test_a_mask_that_is_the_same_everywhere_is_the_mean_risk(value):
    given = drawn(0)
    torch.testing.assert_close(moved(Constant(value), given), mean_risk_step(given), rtol=1e-8, atol=1e-9)


def test_a_mask_of_zero_moves_nothing():
    given = drawn(0)
    assert torch.equal(moved(Constant(0.0), given), moved(ERM(), given, lr=0.0))


def test_what_is_kept_grows_by_the_share_of_its_own_tensor():
    model, given = TwoLayers(), drawn(0)
    start = moved(ERM(), given, lr=0.0)
    whole = mean_risk_step(given) - start
    kept = moved(FirstColumn(), given, model) - start
    first, last = whole[:6].reshape(3, 2), whole[6:].reshape(3, 3)
    expected = torch.zeros_like(first), torch.zeros_like(last)
    expected[0][:, 0], expected[1][:, 0] = 2 * first[:, 0], 3 * last[:, 0]
    torch.testing.assert_close(kept, torch.cat([e.flatten() for e in expected]), rtol=1e-8, atol=1e-9)


def test_a_mask_sees_the_gradients_of_each_domain_the_domains_first():
    model, given, objective = TwoLayers(), drawn(0), Constant(0.5)
    expected = [torch.autograd.grad(ERM()(model, [batch]), list(model.parameters())) for batch in given]
    logged = objective.step(model, given, adam_of(model), torch.amp.GradScaler("cpu", init_scale=8.0))
    for seen, of_domains in zip(objective.seen, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(seen, torch.stack(of_domains), rtol=1e-12, atol=1e-14)
    assert logged["kept"].item() == 0.5
    assert not logged["loss"].requires_grad
