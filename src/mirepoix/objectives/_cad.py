"""Contrastive adversarial domain bottleneck: features from whose neighbours the domain cannot be told."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import single
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError

__all__ = ["CAD", "Bottleneck", "log_share"]

PROJECTED = 128
BASE_TEMPERATURE = 0.07


class Bottleneck(Objective):
    """The risk plus a contrast between the features of all domains; the two kinds differ in `contrast`."""

    def __init__(
        self,
        *,
        lmbda: float = 0.1,
        temperature: float = 0.1,
        is_normalized: bool = False,
        is_project: bool = False,
        is_flipped: bool = True,
        features: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not 0 <= lmbda < math.inf:
            raise InputError(f"{name} needs a finite lmbda of 0 or more, got {lmbda}; 0.1 is usual.")
        if not 0 < temperature < math.inf:
            raise InputError(f"{name} needs a positive, finite temperature, got {temperature}; 0.1 is usual.")
        if is_project and (isinstance(features, bool) or features is None or features < 1):
            raise InputError(
                f"{name} with is_project=True needs the number of features, at least 1, got {features!r}; "
                "a ResNet-50 has 2048."
            )
        self.lmbda, self.temperature = float(lmbda), float(temperature)
        self.is_normalized, self.is_flipped = bool(is_normalized), bool(is_flipped)
        self.is_project, self.seed = bool(is_project), int(seed)
        self.features = None if features is None else int(features)
        self.projection: nn.Module = nn.Identity()
        if self.is_project and self.features:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.seed)
                self.projection = nn.Sequential(
                    nn.Linear(self.features, self.features),
                    nn.ReLU(),
                    nn.Linear(self.features, PROJECTED),
                )

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {
            "lmbda": self.lmbda,
            "temperature": self.temperature,
            "is_normalized": self.is_normalized,
            "is_project": self.is_project,
            "is_flipped": self.is_flipped,
            "features": self.features,
            "seed": self.seed,
        }

    @abstractmethod
    def contrast(self, similarity: Tensor, labels: Tensor, domains: Tensor) -> tuple[Tensor, Tensor]:
        """One value per sample, and whether it has one; values without are finite."""

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The risk of the joint batch plus the weighted mean contrast, a scalar."""
        labels = torch.cat([batch.labels for batch in batches])
        domains = torch.cat([torch.full_like(batch.labels, place) for place, batch in enumerate(batches)])
        outputs = model(torch.cat([batch.images for batch in batches]))
        if self.is_project and outputs.features.shape[1] != self.features:
            raise InputError(
                f"{type(self).__name__} was made for {self.features} features, got {outputs.features.shape[1]}; "
                f"make it with features={outputs.features.shape[1]}."
            )
        with torch.autocast(labels.device.type, enabled=False):
            risk = F.cross_entropy(single(outputs.logits), labels)
            if len(labels) < 2 or self.lmbda == 0:
                return risk
            z = self.projection(single(outputs.features))
            z = F.normalize(z) if self.is_normalized else z
            similarity = z @ z.T / self.temperature  # (samples, samples)
            values, rows = self.contrast(similarity, labels, domains)
            penalty = torch.where(rows, values, 0.0).sum() / rows.sum().clamp(min=1)
            return risk + self.lmbda * self.temperature / BASE_TEMPERATURE * penalty


class CAD(Bottleneck):
    r"""Contrastive adversarial domain bottleneck (Ruan, Dubois and Maddison, 2022).

    With :math:`z_i` the features of sample :math:`i` of the joint batch, :math:`y_i` its label, :math:`d_i` its domain,
    and :math:`R` the risk of the joint batch,

    .. math:: R + \lambda \frac{\tau}{0.07} \frac{1}{|I|} \sum_{i \in I} b_i, \qquad
        b_i = -\log \sum_{j : d_j \neq d_i} p(j \mid i), \qquad
        p(j \mid i) = \frac{e^{S_{ij}}}{\sum_{k \neq i} e^{S_{ik}}}, \qquad S_{ij} = \frac{z_i \cdot z_j}{\tau}

    over the samples :math:`I` with another one of their class, if there is another domain. Turned the other way,
    ``is_flipped=False``, neighbours of the own domain are pushed away instead of those of others drawn near,

    .. math:: b_i = \log \Big( 1 + \sum_{j \neq i : d_j = d_i} e^{S_{ij}} \Big) - \log \sum_{j \neq i} e^{S_{ij}}

    over the samples with another one of their class; the 1 is the sample itself, as in the released code.

    It addresses diversity shift: features that look alike in all source domains have the support of an unseen one.

    Domains are told by their position in the list of batches. The order of domains and of samples does not matter.
    Where :math:`I` is empty, and if flipped with one source domain, there is no penalty. Similarities are in single
    precision at least, also under autocast.

    State: none, but for the weights of the projection, which are trained with those of the network. An update costs
    one forward and one backward pass. `SAM` can wrap it.

    In DomainBed ``is_project`` raises an error; here it is the head that was meant, which the optimizer trains.

    Args:
        lmbda: Weight :math:`\lambda` of the penalty. Random trials of DomainBed draw it from {1e-4, 1e-3, ..., 1e2}.
        temperature: :math:`\tau`. Random trials draw it from {0.05, 0.1}.
        is_normalized: Divide :math:`z` by its norm. Random trials leave this and the next two as they are.
        is_project: Put a head before it: linear, ReLU, linear to 128.
        is_flipped: The first form above; otherwise the second.
        features: Number of features, for ``is_project``.
        seed: Of the weights of the head, which depend on nothing else: two equal objectives give equal results.

    Raises:
        InputError: If an option is out of its range; in a step, if the features are not as many as was said.

    References:
        Ruan, Dubois and Maddison (2022), Optimal representations for covariate shift, section 4.
    """

    def contrast(self, similarity: Tensor, labels: Tensor, domains: Tensor) -> tuple[Tensor, Tensor]:
        """How little of the neighbourhood is of other domains, or how much of it is of the own."""
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        elsewhere = domains[:, None] != domains
        rows = ((labels[:, None] == labels) & ~itself).any(1)
        if self.is_flipped:
            rows = rows & elsewhere.any(1)
            return -log_share(similarity, elsewhere, ~itself, rows), rows
        near = similarity.masked_fill(itself, 0.0).masked_fill(elsewhere, -math.inf).logsumexp(1)
        every = similarity.masked_fill(itself, -math.inf).logsumexp(1)
        return near - every, rows


def log_share(similarity: Tensor, part: Tensor, whole: Tensor, rows: Tensor) -> Tensor:
    """The logarithm of the probability that the whole gives to the part, in these rows; zero in the others."""
    # Rows without a part would be the logarithm of nothing, whose gradient is NaN even where it is not used.
    part, whole = part | ~rows[:, None], whole | ~rows[:, None]
    shares = [similarity.masked_fill(~terms, -math.inf).logsumexp(1) for terms in (part, whole)]
    return shares[0] - shares[1]
