import math

import numpy as np
import pytest
import torch
from tests.objectives.test_and_mask import (
    assert_continues,
    assert_follows,
    assert_half_precision_trains,
    drawn,
    moved,
    reordered,
)
from tests.objectives.test_coral import TwoLayers
from tests.reference import rsc
from torch import nn

from mirepoix.data import digits_task
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._rsc import RSC, _quantile
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError, Outputs


class Headed(nn.Module):
    """Two layers, of which the last is a module."""

    def __init__(self, width=7):
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(torch.randn(width, 2, generator=random, dtype=torch.float64))
        self.classifier = nn.Linear(width, 3, dtype=torch.float64)
        with torch.no_grad():
            for parameter in self.classifier.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64))

    def forward(self, images):
        features = torch.tanh(images.flatten(1) @ self.first.T)
        return Outputs(features, self.classifier(features))


@pytest.mark.parametrize(("f", "b"), [(1 / 3, 1 / 3), (0.5, 0.2), (0.1, 0.9), (0.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("sizes", [(3, 5, 4), (1, 4), (1,)])
def test_updates_are_those_of_the_reference(sizes, f, b):
    options = {"rsc_f_drop_factor": f, "rsc_b_drop_factor": b}
    assert_follows(RSC(**options), rsc.update, sizes, Headed(), **options)


@pytest.mark.parametrize("width", [1, 4, 64, 100])
def test_a_share_that_falls_on_an_entry_mutes_it_whatever_the_rounding(width):
    values = torch.randn(5, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = 1 - 1 / 3  # times 63, in floating point, this is more than 42
    assert ((values >= _quantile(values, share)).sum(1) == (width - 1) // 3 + 1).all()


@pytest.mark.parametrize("share", [0.0, 0.31, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("width", [1, 2, 9, 50])
def test_quantiles_are_those_of_numpy(width, share):
    values = torch.randn(3, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = np.percentile(values.numpy(), 100 * share, axis=1, keepdims=True)
    torch.testing.assert_close(_quantile(values, share), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_two_samples_by_hand():
    # Logits (z, 0) of two features, label 0: the gradient is the row (3, 1), the first feature is muted. Muting costs
    # the first sample much and the second little, so the second is kept whole.
    class Identity(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = nn.Linear(2, 2, bias=False, dtype=torch.float64)
            with torch.no_grad():
                self.classifier.weight.copy_(torch.tensor([[3.0, 1.0], [0.0, 0.0]]))

        def forward(self, images):
            return Outputs(images.flatten(1), self.classifier(images.flatten(1)))

    images = torch.tensor([[1.0, 0.5], [0.1, 2.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    batch = Batch(images, torch.tensor([0, 0]), torch.tensor([0, 0]))
    loss = RSC(rsc_f_drop_factor=0.5, rsc_b_drop_factor=0.5)(Identity(), [batch])
    expected = (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(-2.3))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_most_samples_are_kept_whole_with_a_small_share():
    # Only the sample that loses most is challenged: the loss is above that of ERM by its part.
    model, given = Headed(), drawn(0, (6, 6))
    challenged = RSC(rsc_f_drop_factor=0.5, rsc_b_drop_factor=0.0)(model, given)
    images = torch.cat([batch.images for batch in given])
    labels = torch.cat([batch.labels for batch in given])
    every = nn.functional.cross_entropy(model(images).logits, labels, reduction="none")
    above = challenged * 12 - every.sum()
    assert above > 0
    assert above < RSC(rsc_f_drop_factor=0.5, rsc_b_drop_factor=1.0)(model, given) * 12 - every.sum()


def test_everything_is_muted_at_a_classifier_of_zeros():
    model, given = Headed(), drawn(0)
    with torch.no_grad():
        model.classifier.weight.zero_()
    RSC()(model, given).backward()
    assert not model.first.grad.any()


def test_no_gradient_flows_through_the_masks():
    model, given = Headed(), drawn(0)
    RSC()(model, given).backward()
    (theta,) = [dict(model.named_parameters())]
    step = 1e-6
    for name, parameter in theta.items():
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[0] += sign * step
            values.append(RSC()(model, given).item())
            with torch.no_grad():
                parameter.view(-1)[0] -= sign * step
        assert parameter.grad.view(-1)[0].item() == pytest.approx(
            (values[0] - values[1]) / (2 * step), abs=1e-7
        ), name


def test_the_order_of_samples_and_of_domains_does_not_matter():
    given = drawn(0)
    expected = moved(RSC(), given, Headed())
    torch.testing.assert_close(moved(RSC(), given[::-1], Headed()), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(moved(RSC(), reordered(given), Headed()), expected, rtol=1e-12, atol=1e-14)


def test_a_loss_without_gradients_has_the_same_value():
    model, given = Headed(), drawn(0)
    with torch.no_grad():
        loss = RSC()(model, given)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, RSC()(model, given).detach(), rtol=0, atol=0)


def test_with_frozen_features_the_classifier_is_trained():
    model = Headed()
    model.first.requires_grad_(False)
    before = model.classifier.weight.detach().clone()
    moved(RSC(), drawn(0), model)
    assert not torch.equal(model.classifier.weight, before)


def test_gradients_of_the_masks_are_not_left_behind():
    model = Headed()
    with torch.no_grad():
        RSC()(model, drawn(0))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_half_precision():
    # Loosely: half precision orders features and samples differently, and then other ones are muted.
    assert_half_precision_trains(RSC, near=1.0)


def test_masks_are_not_made_in_half_precision():
    seen = []

    class Watched(nn.Linear):
        def forward(self, features):
            seen.append((features.dtype, torch.is_autocast_enabled("cpu")))
            return super().forward(features)

    model = Headed()
    model.classifier = Watched(7, 3)
    model.float()
    given = [Batch(b.images.float(), b.labels, b.domains) for b in drawn(0)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        RSC()(model, given)
    assert [autocast for _, autocast in seen] == [True, False, False, True]
    assert [dtype for dtype, autocast in seen if not autocast] == [torch.float32] * 2


def test_the_scale_of_a_scaler_cancels():
    ends = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)):
        model = Headed()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(3):
            RSC().step(model, drawn(step), optimizer, scaler)
        ends.append(model.first.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-11)


def test_sam_can_wrap_it():
    model = Headed()
    logged = SAM(RSC()).step(model, drawn(0), torch.optim.SGD(model.parameters(), lr=0.1))
    assert logged["loss"] > logged["unperturbed_loss"]


def test_a_run_continues_with_the_same_bits():
    assert_continues(RSC, Headed)
    assert RSC().state_dict() == {}


def test_the_network_of_the_library_has_a_classifier():
    split = digits_task(size=8).split("rotated_75")
    network = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8)
    run = Run(steps=2, batch_size=4, learning_rate=1e-3, dropout=0.3, collect="last")
    ends = [
        Trainer(network, objective, Loop(device="cpu"))(initial_weights(network), split, run)
        for objective in (RSC(), ERM())
    ]
    assert not torch.equal(ends[0]["classifier.weight"], ends[1]["classifier.weight"])


def test_a_model_without_a_classifier_is_refused():
    with pytest.raises(
        InputError, match=r"RSC needs a model with a module `classifier` .*got a TwoLayers without one"
    ):
        RSC()(TwoLayers(), drawn(0))


def test_the_options_are_named():
    assert RSC().configuration() == {"rsc_f_drop_factor": 1 / 3, "rsc_b_drop_factor": 1 / 3}
    options = {"rsc_f_drop_factor": 0.2, "rsc_b_drop_factor": 0.4}
    assert RSC(**options).configuration() == options


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("name", ["rsc_f_drop_factor", "rsc_b_drop_factor"])
def test_shares_must_be_shares(name, share):
    with pytest.raises(InputError, match=rf"RSC needs {name} to be a share in \[0, 1\], got .*1/3 is usual"):
        RSC(**{name: share})
