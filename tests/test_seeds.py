import numpy as np
import pytest
import torch

from mirepoix.seeds import generator, seed_hash, stream


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((0, 1), 1514274641),
        ((5,), 90124583),
        (("PACS", "ERM", [0], 3, 1), 1704687671),
        (("OfficeHome", "ERM", [0], 1, 0), 191826797),
    ],
)
def test_seed_hash_has_the_published_values(parts, expected):
    assert seed_hash(*parts) == expected


def test_streams_depend_on_their_name_and_on_nothing_else():
    first = stream(3, "order", 7).random(5)
    np.random.default_rng().random(3)
    assert np.array_equal(stream(3, "order", 7).random(5), first)
    for other in (
        stream(3, "order", 8),
        stream(3, "augment", 7),
        stream(4, "order", 7),
        stream("3", "order", 7),
    ):
        assert not np.array_equal(other.random(5), first)


def test_torch_generators_leave_the_global_one_alone():
    before = torch.get_rng_state()
    drawn = torch.rand(4, generator=generator(1, "a"))
    assert torch.equal(drawn, torch.rand(4, generator=generator(1, "a")))
    assert not torch.equal(drawn, torch.rand(4, generator=generator(1, "b")))
    assert torch.equal(torch.get_rng_state(), before)
