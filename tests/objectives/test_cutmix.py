import math

import pytest
import torch
from tests.reference import cutmix
from torch import nn

from mirepoix.objectives import ERM, CutMix
from mirepoix.types import Batch, InputError, Outputs

SIZE = (5, 4)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(7)
        self.weight = nn.Parameter(torch.randn(3, 2 * 5 * 4, generator=random, dtype=torch.float64))

    def forward(self, images):
        features = images.flatten(1)
        return Outputs(features, features @ self.weight.T)


def batches(sizes=(3, 4), dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randn(n, 2, *SIZE, generator=random, dtype=torch.float64).to(dtype),
            torch.randint(3, (n,), generator=random),
            torch.full((n,), domain),
        )
        for domain, n in enumerate(sizes)
    ]


@pytest.mark.parametrize(("alpha", "probability"), [(1.0, 0.5), (0.3, 1.0), (5.0, 0.8)])
@pytest.mark.parametrize("sizes", [(3, 4), (1,), (5, 1, 2)])
def test_loss_and_gradient_are_those_of_the_reference(sizes, alpha, probability):
    model, given = Linear(), batches(sizes)
    torch.manual_seed(3)
    loss = CutMix(alpha, probability)(model, given)
    images, labels = torch.cat([b.images for b in given]), torch.cat([b.labels for b in given]).tolist()
    torch.manual_seed(3)
    drawn = cutmix.draws(sum(sizes), SIZE, alpha, probability)
    expected = cutmix.loss(lambda image: model.weight @ image.flatten(), images, labels, **drawn)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    found, (slow,) = (torch.autograd.grad(each, model.weight) for each in (loss, expected))
    torch.testing.assert_close(found[0], slow, rtol=1e-10, atol=1e-12)


def test_at_a_probability_of_zero_it_is_erm():
    model, given = Linear(), batches()
    torch.testing.assert_close(CutMix(probability=0)(model, given), ERM()(model, given), rtol=1e-12, atol=0)


def seen_by(objective, given, seed=0):
    seen = []

    def model(images):
        seen.append(images)
        return Outputs(images.flatten(1), torch.zeros(len(images), 3, dtype=images.dtype))

    torch.manual_seed(seed)
    objective(model, given)
    return seen[0]


def constant(count, size=(8, 8)):
    """Images that are told by their value."""
    values = torch.arange(float(count))[:, None, None, None].expand(count, 1, *size)
    return [Batch(values.contiguous(), torch.zeros(count, dtype=torch.long), torch.zeros(count).long())]


def test_each_image_has_one_box_of_one_other_image():
    seen = seen_by(CutMix(probability=1), constant(50))
    partners = []
    for own, image in enumerate(seen[:, 0]):
        others = image[image != own].unique().tolist()
        assert len(others) <= 1
        if others:
            rows, columns = (image == others[0]).any(1), (image == others[0]).any(0)
            assert (image == others[0]).sum() == rows.sum() * columns.sum()  # a whole rectangle
            for edge in (rows, columns):
                assert edge.int().diff().abs().sum() <= 2
            partners.append(others[0])
    assert len(partners) > 30
    assert len(set(partners)) == len(partners)  # of a permutation


def test_the_labels_weigh_what_is_seen_of_both():
    """With logits that are the pixels seen of each image, up to a scale, the loss tells the shares."""
    count = 6
    images = torch.eye(count, dtype=torch.float64)[:, :, None, None].expand(count, count, 8, 8).contiguous()
    labels = torch.arange(count)
    seen = []

    def model(mixed):
        seen.append(mixed.mean((2, 3)))  # the share of each image: (samples, images)
        return Outputs(mixed.flatten(1), seen[-1].log().clamp(min=-1e3))

    torch.manual_seed(1)
    loss = CutMix(probability=1)(model, [Batch(images, labels, labels)])
    shares = seen[0]
    torch.testing.assert_close(shares.sum(1), torch.ones(count, dtype=torch.float64))
    entropy = -torch.special.xlogy(shares, shares).sum(1).mean()  # the least that the loss can be
    torch.testing.assert_close(loss, entropy, rtol=1e-9, atol=1e-12)


def test_as_many_images_have_a_box_as_was_asked_for():
    """Of 4000 images half, but for boxes without a pixel and partners that are the image itself."""
    given = constant(4000, (32, 32))
    changed = (seen_by(CutMix(), given) != given[0].images).flatten(1).any(1).double().mean().item()
    whole = (seen_by(CutMix(probability=1), given) != given[0].images).double()
    none = (whole.flatten(1).sum(1) == 0).double().mean().item()
    deviation = math.sqrt(0.25 / 4000)
    assert changed == pytest.approx(0.5 * (1 - none), abs=5 * deviation)
    # 0.2993 by adding up all places and sizes.
    area = whole.mean((1, 2, 3))
    assert area.mean().item() == pytest.approx(0.2993, abs=5 * area.std().item() / math.sqrt(4000))


def test_a_small_alpha_pastes_all_or_nothing_and_a_large_one_half():
    def areas(alpha):
        given = constant(400, (32, 32))
        return (seen_by(CutMix(alpha, 1), given) != given[0].images).double().mean((1, 2, 3))

    extreme, even = areas(0.01), areas(1e7)
    pasted = extreme > 0
    assert 0.4 < pasted.double().mean() < 0.6
    assert extreme[pasted].median() > 0.3  # nearly the whole frame, before it is cut off
    assert even.max() == (22 / 32) ** 2  # 32 times the root of one half, rounded down
    assert even[even > 0].min() >= (11 / 32) ** 2


def test_the_same_seed_gives_the_same_bits_and_batches_stay():
    model, given = Linear(), batches()
    before = [batch.images.clone() for batch in given]
    losses = []
    for seed in (11, 11, 12):
        torch.manual_seed(seed)
        losses.append(CutMix()(model, given))
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    assert all(torch.equal(batch.images, old) for batch, old in zip(given, before, strict=True))


def test_the_kind_of_number_of_the_images_is_kept():
    for dtype in (torch.float32, torch.bfloat16):
        seen = seen_by(CutMix(probability=1), batches(dtype=dtype))
        assert seen.dtype == dtype


def test_the_options_are_named():
    assert CutMix().configuration() == {"alpha": 1.0, "probability": 0.5}
    assert CutMix(alpha=2, probability=1).configuration() == {"alpha": 2.0, "probability": 1.0}
    assert CutMix().state_dict() == {}


@pytest.mark.parametrize("alpha", [0, -1, math.inf, math.nan])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(InputError, match=r"CutMix needs a positive, finite alpha, got .*1 is usual"):
        CutMix(alpha)


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_a_probability_is_one(probability):
    with pytest.raises(InputError, match=r"CutMix needs a probability from 0 to 1, got .*0\.5 is usual"):
        CutMix(probability=probability)
