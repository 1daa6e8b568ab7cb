"""MTL: a classifier that is also told the mean feature of its domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import single
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError, Outputs

__all__ = ["MTL"]


class MTL(Objective):
    r"""Marginal transfer learning (Blanchard et al., 2011, 2021).

    The classifier sees the features :math:`z` of a sample and an embedding :math:`\mu_e` of its domain :math:`e`. Its
    linear layer on both side by side is that of the network on :math:`z`, plus one on :math:`\mu_e` without bias, which
    belongs to the objective. In one forward pass per domain,

    .. math:: \sum_e \frac{1}{n_e} \sum_{i \in e} \mathrm{CE}(W z_i + b + W_\mu \mu_e, \, y_i), \qquad
        \mu_e = a \, \bar z_e + (1 - a) \, m_e, \qquad m_e \leftarrow \mu_e

    where :math:`\bar z_e` is the mean feature of the minibatch, :math:`m_e` what is remembered of those before, zero at
    first, and :math:`a` the weight of the new one. The gradient goes through :math:`\bar z_e`, not through :math:`m_e`.
    The risks are summed, not averaged: the loss of :math:`E` domains is :math:`E` times as large.

    It addresses a shift in which the best classifier differs from domain to domain, in a way that the inputs of a
    domain tell.

    **Predictions depend on the batch.** The domain of a test image is unknown, so `predict` takes the mean feature of
    the images it is given as :math:`\mu`: give it many, of one domain. Where they are sorted by class, it is the mean
    of a class. The weights of the network alone, which are what a training returns, predict with :math:`\mu = 0`.

    **A correction.** In released code the embedding is overwritten with noise from N(0, 1), drawn anew for each domain
    and each prediction, before the classifier sees it. With ``parity=True`` it is here too, so predictions are random
    and :math:`W_\mu` learns to be blind. The noise has no gradient; :math:`m_e` goes on without it, and nothing reads
    it. It comes from torch's global generator of the processor, whatever the device, which the trainer seeds for every
    step; there is no other randomness.

    Domains weigh alike, whatever their batch size. Their order does not matter as long as it is the same in every
    update, because an embedding belongs to a position. Neither does that of samples. Missing classes, one source domain
    and a batch of one need no special case: its mean is itself. Embeddings and what they add to the logits are in
    single precision at least, also under autocast.

    State: the parameter ``weight``, :math:`W_\mu`, which the trainer trains with the network, drawn as the right half
    of ``nn.Linear(2 * features, classes)`` would be; and the buffer ``embeddings``, the :math:`m_e`. They move in
    training mode alone, and `predict` never moves them. An update costs one forward pass per domain, as much as a joint
    one altogether, and one backward pass.

    The paper embeds the distribution of the inputs with a kernel; the mean feature is DomainBed's.

    Args:
        features: The number of features of the network.
        classes: The number of classes.
        domains: How many source domains there are.
        mtl_ema: Weight :math:`a` of the mean feature of the minibatch; with 1 nothing is remembered. Default as in
            DomainBed, where random trials draw from {0.5, 0.9, 0.99, 1}.
        parity: Noise in place of the embedding, as released.
        seed: Of :math:`W_\mu`, which depends on nothing else: two equal objectives give equal results.

    Raises:
        InputError: If an option is out of its range; in a step, if domains, features or classes are not as many as was
            said.

    References:
        Blanchard et al. (2011), Generalizing from several related classification tasks to a new unlabeled sample.
        Blanchard et al. (2021), Domain generalization by marginal transfer learning.
    """

    embeddings: Tensor

    def __init__(
        self,
        *,
        features: int,
        classes: int,
        domains: int,
        mtl_ema: float = 0.99,
        parity: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("features", features), ("classes", classes), ("domains", domains)):
            if isinstance(value, bool) or value != int(value) or value < 1:
                raise InputError(f"MTL needs a whole number of {name} from 1, got {value!r}.")
        if (
            not 0 < mtl_ema <= 1
        ):  # with 0 the embeddings would stay zero, and predictions would have one never seen
            raise InputError(f"MTL needs mtl_ema to be above 0 and at most 1, got {mtl_ema}; 0.99 is usual.")
        self.features, self.classes, self.domains = int(features), int(classes), int(domains)
        self.mtl_ema, self.parity, self.seed = float(mtl_ema), bool(parity), int(seed)
        bound = (2 * self.features) ** -0.5
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            self.weight = nn.Parameter(torch.empty(self.classes, self.features).uniform_(-bound, bound))
        self.register_buffer("embeddings", torch.zeros(self.domains, self.features))

    def configuration(self) -> Mapping[str, Any]:
        """The sizes, the weight of the new mean, whether the embedding is noise, and the seed of the weights."""
        return {
            "features": self.features,
            "classes": self.classes,
            "domains": self.domains,
            "mtl_ema": self.mtl_ema,
            "parity": self.parity,
            "seed": self.seed,
        }

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The sum of the risks with the embeddings, which move in training mode, a scalar in nats."""
        if len(batches) != self.domains:
            raise InputError(
                f"MTL was made for {self.domains} source domains, got {len(batches)}; "
                f"make it with domains={len(batches)}."
            )
        risks = []
        for domain, batch in enumerate(batches):
            outputs = self._single(model(batch.images))
            mean = self.mtl_ema * outputs.features.mean(0) + (1 - self.mtl_ema) * self.embeddings[domain]
            if self.training:
                self.embeddings[domain] = mean.detach()
            risks.append(F.cross_entropy(self._logits(outputs, mean), batch.labels))
        return torch.stack(risks).sum()

    def predict(self, model: nn.Module, images: Tensor) -> Outputs:
        """Logits with the mean feature of these images as their embedding: they depend on all of them."""
        outputs = self._single(model(images))
        return Outputs(outputs.features, self._logits(outputs, outputs.features.mean(0)))

    def _single(self, outputs: Outputs) -> Outputs:
        for name, values, expected in (
            ("features", outputs.features, self.features),
            ("classes", outputs.logits, self.classes),
        ):
            if values.shape[1] != expected:
                raise InputError(
                    f"MTL was made for {expected} {name}, got {values.shape[1]}; "
                    f"make it with {name}={values.shape[1]}."
                )
        return Outputs(single(outputs.features), single(outputs.logits))

    def _logits(self, outputs: Outputs, embedding: Tensor) -> Tensor:
        """Those of the network, with what the embedding adds."""
        if self.parity:
            embedding = torch.randn(self.features, dtype=embedding.dtype).to(embedding.device)
        with torch.autocast(embedding.device.type, enabled=False):
            return outputs.logits + F.linear(embedding, self.weight)
