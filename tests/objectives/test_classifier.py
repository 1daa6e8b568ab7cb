import pytest
from torch import nn

from mirepoix.models import NetworkSpec
from mirepoix.objectives._classifier import classifier_of
from mirepoix.types import InputError


def test_the_classifier_of_a_network():
    network = NetworkSpec(name="mnist_cnn", classes=3, width=8).build()
    assert classifier_of("URM", network) is network.classifier


def test_a_model_without_one_is_named():
    with pytest.raises(
        InputError, match=r"URM needs a model with a module `classifier`.*got a Linear without one"
    ):
        classifier_of("URM", nn.Linear(2, 2))
