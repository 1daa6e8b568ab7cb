import pytest
import torch
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_irm import drawn, mean_risk
from torch import nn

from mirepoix.objectives._joint import joint, risks, single
from mirepoix.types import Outputs


def test_the_outputs_of_a_domain_are_those_of_its_own_images():
    model, given = TwoLayers(), drawn(0, (4, 1, 7))
    for output, batch in zip(joint(model, given), given, strict=True):
        alone = model(batch.images)
        torch.testing.assert_close(output.features, alone.features, rtol=1e-12, atol=0)
        torch.testing.assert_close(output.logits, alone.logits, rtol=1e-12, atol=0)


def test_the_network_sees_all_domains_in_one_pass():
    class Counting(nn.Module):
        seen = ()

        def forward(self, images):
            self.seen = (*self.seen, len(images))
            return Outputs(images.flatten(1), images.flatten(1))

    model = Counting()
    joint(model, drawn(0, (4, 1, 7)))
    assert model.seen == (12,)


def test_risks_are_those_of_the_domains_in_their_order():
    model, given = TwoLayers(), drawn(0)
    expected = [mean_risk(model, [batch]) for batch in given]
    assert risks(joint(model, given), given).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_single_precision_is_the_least(given, expected):
    assert single(torch.ones(2, dtype=given)).dtype == expected
    outputs = Outputs(torch.ones(13, 1, dtype=given), torch.ones(13, 3, dtype=given))
    for output in joint(lambda images: outputs, drawn(0)):
        assert output.features.dtype == output.logits.dtype == expected
