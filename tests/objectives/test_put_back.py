import pytest
import torch

from mirepoix.objectives._put_back import put_back


def test_tensors_come_back_bit_for_bit_also_after_an_error():
    weight = torch.nn.Parameter(torch.randn(3, generator=torch.Generator().manual_seed(0)))
    before = weight.detach().clone()

    def move_and_fail():
        with put_back([(weight, before)]):
            with torch.no_grad():
                weight.mul_(3).sub_(1)
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        move_and_fail()
    assert torch.equal(weight, before)
    assert weight.requires_grad
