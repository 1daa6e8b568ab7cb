"""A network is a featurizer ``phi`` and a linear classifier ``omega``: ``theta = (omega, phi)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mirepoix.types import Outputs

if TYPE_CHECKING:
    from jaxtyping import Float

    from mirepoix.models._spec import NetworkSpec

__all__ = ["Network", "has_batch_norm"]


class Network(nn.Module):
    """Featurizer, dropout, linear classifier; the names of all weights say which part they belong to.

    The names begin with ``featurizer.`` or ``classifier.``. With ``frozen_batch_norm``, batch-norm layers
    stay in evaluation mode whenever the network is put in training mode: their running mean and variance are
    used and never updated, while their scale and shift are trained as usual.

    Args:
        featurizer: From images to ``(samples, features)``.
        feature_size: Number of features.
        classes: Number of classes.
        dropout: Probability of dropping a feature before the classifier.
        frozen_batch_norm: Whether batch-norm statistics stay as they are in the weights.
    """

    def __init__(
        self,
        featurizer: nn.Module,
        feature_size: int,
        classes: int,
        *,
        dropout: float = 0.0,
        frozen_batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.featurizer = featurizer
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(feature_size, classes)
        self.feature_size = feature_size
        self.frozen_batch_norm = frozen_batch_norm
        self.train(self.training)

    def forward(self, images: Float[Tensor, "samples channels height width"]) -> Outputs:
        """The features as the classifier sees them, so after dropout, and its logits."""
        features = self.dropout(self.featurizer(images))  # (samples, features)
        return Outputs(features=features, logits=self.classifier(features))

    def train(self, mode: bool = True) -> Self:
        """Choose training or evaluation mode; frozen batch-norm layers are always in evaluation mode."""
        super().train(mode)
        if self.frozen_batch_norm:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def has_batch_norm(network: nn.Module | NetworkSpec) -> bool:
    """Whether a network has layers whose statistics an average of weights may leave wrong."""
    if not isinstance(network, nn.Module):
        network = network.build_empty()
    return any(isinstance(module, _BatchNorm) for module in network.modules())
