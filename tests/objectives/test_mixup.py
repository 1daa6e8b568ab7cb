import copy
import math

import numpy as np
import pytest
import torch
from tests.objectives.test_erm import Linear, batches

from mirepoix.objectives import ERM, Mixup
from mirepoix.types import Batch, InputError, Outputs


def slow_mixup(model, given, alpha, seed):
    """Sample by sample and pair by pair, from the same draws."""
    torch.manual_seed(seed)
    order = torch.randperm(len(given))
    alpha = torch.tensor(alpha, dtype=torch.float64)
    coefficients = torch.distributions.Beta(alpha, alpha).sample((len(given),))
    total = 0.0
    for e in range(len(given)):
        one, other = given[order[e]], given[order[(e + 1) % len(given)]]
        c = coefficients[e].item()
        pair, samples = 0.0, 0
        for x, y, x2, y2 in zip(one.images, one.labels, other.images, other.labels, strict=False):
            logits = (model.weight.detach() @ (c * x + (1 - c) * x2).flatten()).tolist()
            log_sum = math.log(sum(map(math.exp, logits)))
            pair += c * (log_sum - logits[y]) + (1 - c) * (log_sum - logits[y2])
            samples += 1
        total += pair / samples
    return total / len(given)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 7.5])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (3, 5), (1, 7, 2)])
def test_mixup_is_the_mean_over_pairs_of_the_interpolated_loss(sizes, alpha):
    model, given = Linear(), batches(sizes)
    torch.manual_seed(3)
    loss = Mixup(alpha)(model, given)
    assert loss.item() == pytest.approx(slow_mixup(model, given, alpha, 3), abs=1e-12)


def test_a_pair_mixes_a_domain_with_the_next_of_a_random_order():
    seen = []

    class Watching(Linear):
        def forward(self, images):
            seen.append(images.detach())
            return super().forward(images)

    # The image of a domain is a unit vector, so a mixed image says who was mixed, and by how much.
    given = [
        Batch(
            torch.eye(4, dtype=torch.float64)[e, :].reshape(1, 1, 1, 4), torch.tensor([0]), torch.tensor([e])
        )
        for e in range(4)
    ]
    model = Watching()
    model.weight = torch.nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))
    orders = set()
    for seed in range(20):
        torch.manual_seed(seed)
        seen.clear()
        Mixup(5.0)(model, given)
        mixed = torch.cat([images.flatten(1) for images in seen])
        assert torch.allclose(mixed.sum(1), torch.ones(4, dtype=torch.float64))
        used = mixed > 0
        assert used.sum(1).tolist() == [2] * 4  # two domains per pair
        assert used.sum(0).tolist() == [2] * 4  # every domain first once and second once
        assert len(set(mixed.max(1).values.tolist())) == 4  # a draw per pair
        orders.add(tuple(map(tuple, used.tolist())))
    assert len(orders) > 3


def test_one_domain_is_paired_with_itself():
    model, given = Linear(), batches((6,))
    torch.testing.assert_close(Mixup()(model, given), ERM()(model, given), rtol=1e-12, atol=0)


def test_a_small_alpha_mixes_little_and_a_large_one_evenly():
    def from_an_end(alpha):
        seen = []

        def model(images):
            seen.append(images)
            return Outputs(images.flatten(1), images.flatten(1))

        given = [
            Batch(torch.full((1, 1, 1, 2), float(e)), torch.tensor([0]), torch.tensor([e])) for e in range(2)
        ]
        torch.manual_seed(0)
        for _ in range(20):
            Mixup(alpha)(model, given)
        values = torch.cat(seen)
        return torch.minimum(values, 1 - values).median().item()

    assert from_an_end(0.01) < 1e-3
    assert from_an_end(1e6) > 0.49


def test_the_same_seed_gives_the_same_bits():
    model, given = Linear(), batches((3, 5, 4))
    losses = []
    for seed in (11, 11, 12):
        torch.manual_seed(seed)
        losses.append(Mixup()(model, given))
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_the_stream_of_numpy_is_not_touched():
    before = np.random.get_state()[1:3]  # noqa: NPY002
    Mixup()(Linear(), batches())
    after = np.random.get_state()[1:3]  # noqa: NPY002
    assert (before[0] == after[0]).all()
    assert before[1] == after[1]


def test_a_step_descends_the_mixed_loss():
    model, given = Linear(), batches((3, 5))
    by_hand = copy.deepcopy(model)
    torch.manual_seed(2)
    logged = Mixup(1.0).step(model, given, torch.optim.SGD(model.parameters(), lr=0.1))
    torch.manual_seed(2)
    loss = Mixup(1.0)(by_hand, given)
    (gradient,) = torch.autograd.grad(loss, by_hand.parameters())
    torch.testing.assert_close(model.weight, by_hand.weight - 0.1 * gradient, rtol=1e-12, atol=1e-15)
    assert torch.equal(logged["loss"], loss.detach())


def test_the_kind_of_number_of_the_images_is_kept():
    def model(images):
        assert images.dtype == torch.float32
        return Outputs(images.flatten(1), images.flatten(1))

    given = [Batch(batch.images.float(), batch.labels % 2, batch.domains) for batch in batches()]
    assert Mixup()(model, given).dtype == torch.float32


def test_the_option_is_named():
    assert Mixup().configuration() == {"mixup_alpha": 0.2}
    assert Mixup(mixup_alpha=3).configuration() == {"mixup_alpha": 3.0}
    assert Mixup().state_dict() == {}


@pytest.mark.parametrize("alpha", [0, -1, math.inf, math.nan])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(InputError, match=r"Mixup needs a positive, finite mixup_alpha, got .*0\.2 is usual"):
        Mixup(alpha)
