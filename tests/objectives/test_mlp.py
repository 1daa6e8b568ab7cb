import torch
from torch import nn

from mirepoix.objectives._mlp import mlp


def test_layers_are_those_of_the_benchmark():
    layers = mlp(5, 2, width=7, depth=4, dropout=0.1, seed=0)
    assert [type(layer) for layer in layers] == [nn.Linear, nn.Dropout, nn.ReLU] * 3 + [nn.Linear]
    sizes = [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]
    assert sizes == [(5, 7), (7, 7), (7, 7), (7, 2)]


def test_the_seed_alone_says_the_weights_and_nothing_is_drawn():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one = mlp(5, 2, width=7, depth=3, dropout=0, seed=1)
    assert torch.equal(torch.rand(1), expected)
    two = mlp(5, 2, width=7, depth=3, dropout=0, seed=1)
    other = mlp(5, 2, width=7, depth=3, dropout=0, seed=2)
    assert torch.equal(one[0].weight, two[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
