import torch
from tests.reference import mixmo

from mirepoix.objectives._boxes import box, corners, drawn_centres


def test_a_box_is_that_of_the_reference():
    torch.manual_seed(0)
    share = torch.cat([torch.rand(300).double(), torch.tensor([0.0, 1.0, 0.25, 1.0]).double()])
    size = (7, 10)
    centres = drawn_centres(304, size)
    centres[-4:] = torch.tensor([[3, 3], [0, 0], [6, 9], [3, 5]])
    found = box(corners(share, centres, size), size)
    assert found.shape == (304, 1, 7, 10)
    for s, centre, inside in zip(share.tolist(), centres.tolist(), found, strict=True):
        assert inside[0].double().tolist() == mixmo.box(s, centre, size)
    assert found.flatten(1).sum(1)[-4:].tolist() == [0, 15, 6, 60]


def test_every_pixel_is_a_centre_equally_often():
    torch.manual_seed(0)
    counts = torch.zeros(3, 5)
    rows, columns = drawn_centres(15_000, (3, 5)).T
    counts.index_put_((rows, columns), torch.ones(15_000), accumulate=True)
    assert (counts - 1000).abs().max() < 5 * 31  # the standard deviation of each is 31
