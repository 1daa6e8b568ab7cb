"""What `CondCAD` has alone: it shares its options with `CAD`, and `test_cad.py` runs all of its tests for both."""

import pytest
import torch
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_erm import batches

from mirepoix.objectives import ERM
from mirepoix.objectives._cad import CAD
from mirepoix.objectives._cond_cad import CondCAD
from mirepoix.types import Batch


@pytest.mark.parametrize("size", [1, 6])
def test_one_domain_turned_the_other_way_has_no_penalty_either(size):
    model, given = TwoLayers(), batches((size,))
    loss = CondCAD(lmbda=3.0, is_flipped=False)(model, given)
    torch.testing.assert_close(loss, ERM()(model, given), rtol=1e-12, atol=0)


def test_with_one_class_it_is_cad():
    model = TwoLayers()
    given = [Batch(batch.images, torch.zeros_like(batch.labels), batch.domains) for batch in batches((3, 5))]
    torch.testing.assert_close(CondCAD()(model, given), CAD()(model, given), rtol=1e-12, atol=0)


def test_classes_do_not_see_each_other():
    """The term of each class is that of a batch of this class alone, weighed by its samples."""
    model, given = TwoLayers(), batches((8, 8), classes=2)
    whole = CondCAD(lmbda=1.0)(model, given) - ERM()(model, given)
    parts, counts = [], []
    for label in range(2):
        alone = [Batch(b.images[b.labels == label], b.labels[b.labels == label], b.domains) for b in given]
        parts.append(CondCAD(lmbda=1.0)(model, alone) - ERM()(model, alone))
        counts.append(sum(len(batch.labels) for batch in alone))
    assert min(counts) > 3
    expected = sum(part * count for part, count in zip(parts, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(whole, expected, rtol=1e-10, atol=0)
