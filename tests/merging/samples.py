"""Small weights of every kind of tensor, and their bits."""

import torch


def network(seed: int, dtype=torch.float32, spread: float = 0.1, start: int = 0) -> dict[str, torch.Tensor]:
    def draw(shape, of):
        return torch.randn(shape, generator=torch.Generator().manual_seed(of))

    theta = {
        "conv.weight": (16, 3, 3, 3),
        "bn.weight": (16,),
        "fc.weight": (10, 7001),
        "fc.bias": (10,),
        "scalar": (),
    }
    theta = {
        name: (draw(shape, start + 50) + spread * draw(shape, seed)).to(dtype)
        for name, shape in theta.items()
    }
    theta["bn.running_var"] = theta["bn.weight"].abs() + 1
    theta["bn.num_batches_tracked"] = torch.tensor(seed)
    theta["position_ids"] = torch.arange(5)
    theta["empty"] = torch.zeros(0, 4, dtype=dtype)
    return theta


def bits(theta) -> dict[str, tuple]:
    return {
        name: (str(x.dtype), tuple(x.shape), bytes(x.contiguous().reshape(-1).view(torch.uint8).numpy()))
        for name, x in theta.items()
    }
