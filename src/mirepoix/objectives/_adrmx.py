"""ADRMX: features less what tells their domain, and samples remixed from two domains."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mirepoix.objectives._adversarial import Adversarial, told_apart
from mirepoix.objectives._classifier import classifier_of
from mirepoix.objectives._joint import single
from mirepoix.seeds import seed_hash
from mirepoix.types import Batch, InputError

__all__ = ["ADRMX"]

_TEMPERATURE = 0.07
_SHARE = 0.5  # the weight of terms within a domain, and of those across domains


class ADRMX(Adversarial):
    r"""Additive disentanglement of domain features with remix loss (Demirel et al., 2023).

    The network has features :math:`z = \phi(x)` and logits :math:`w(z)`. A second featurizer has the features :math:`v`
    of the domain, so that :math:`u = z - v` is to be free of it. A classifier :math:`c` tells the class from :math:`u`,
    another one, :math:`c_d`, the domain from :math:`v`; a discriminator :math:`D` tries to tell the domain from
    :math:`u`. With :math:`R` the mean cross-entropies over the joint batch, of classes :math:`y` or domains :math:`d`,

    .. math:: L = R(w(z), y) + R(c(u), y) + \lambda_{dclf} \, R(c_d(v), d) + \lambda_{rmxd} \, M
        + \lambda_{cnt} \, (S(z) + S(u)) - \lambda_{disc} \, \ell_D, \qquad \ell_D = R(D(u), d)

    The remix loss swaps domains. Of every class :math:`k` that is present in at least two domains, one pair of samples
    :math:`(a_k, b_k)` from two different domains is drawn, in either order, all pairs as likely; with :math:`K` the
    number of these classes (0 of them give :math:`M = 0`),

    .. math:: M = \frac{1}{K} \sum_k \mathrm{CE}(w(u_{a_k} + v_{b_k}), k)

    :math:`S` contrasts the samples of a class with the others. With :math:`s_{ij} = \cos(z_i, z_j) / 0.07` and
    :math:`P_i` the other samples of the class of :math:`i`,

    .. math:: S = \frac{1}{1 + \#\{i : P_i \neq \emptyset\}} \sum_{i : P_i \neq \emptyset} \frac{-1}{|P_i|}
        \sum_{p \in P_i} \log \Big( \frac{e^{s_{ip}} / 2}{\sum_{j \neq i} e^{s_{ij}} / 2 + 10^{-5}} + 10^{-5} \Big)

    with the 1 of the release in the denominator. The factors 1/2 are its weights of pairs within and across domains.

    An update is a step either of the discriminator, down :math:`\ell_D`, or of all else, down :math:`L`. Update
    :math:`t`, from 0, is the latter if :math:`(t + 1) \bmod (k + 1) = k`, with :math:`k` the number of steps of the
    discriminator for each: 2 give the second, the fifth, ... So only one update in :math:`k + 1` trains the network. In
    the turns of the discriminator nothing else changes, not even statistics of batch norm.

    It addresses diversity shift: what differs between domains is put into features of its own, and a class is to be
    recognised whatever these are.

    Prediction is the network alone, :math:`w(z)`. The second featurizer and both classifiers are trained with it, by
    the optimizer that `step` is given, whose learning rate (``lr`` of the release) and weight decay (0 there) are those
    of the caller. Its betas, if it has any, are set to (``beta1``, 0.9) at every step, as released. A scaler is used in
    its turns; the loss of the discriminator needs none.

    Domains are told by their position in the list of batches. The order of samples or domains matters only in the draw
    of the pairs, not in distribution. Missing classes and batches of one need no special case. One source domain is
    refused, as there is nothing to tell apart. Both featurizers have the dropout of the network, and batch norm that is
    frozen in the network is frozen in both. All that follows the features is in single precision at least, also under
    autocast. Pairs are drawn before the forward pass from torch's global generator of the processor, whatever the
    device, which the trainer seeds for every step.

    **Two deviations.** In the release :math:`w` has two hidden layers, as :math:`c` and :math:`c_d` have here
    (widths d/2 and d/4, ReLU); here it is the linear classifier of the network. And the release takes the first two
    entries of a random permutation of :math:`0, \ldots, n_k - 1`, with :math:`n_k` the number of samples of the class,
    for places in the joint batch: samples of any class and domain, whose label is that of :math:`a`. With
    ``parity=True`` so does this, :math:`K` is then the number of classes of at least two samples; without any it is an
    error, as released.

    A trainer that begins with the classifier alone holds still the featurizer of the network, not the second one.

    State: the weights of the second featurizer, of both classifiers and of the discriminator, the moments of its
    optimizer, and the number of updates. An update costs two joint forward passes, one of each featurizer, and in one
    of :math:`k + 1` updates the backward passes of both. `step` logs in either turn ``loss`` (:math:`L`), ``nll``
    (:math:`R(w(z), y)`), ``difference_nll`` (:math:`R(c(u), y)`), ``domain_nll`` (:math:`R(c_d(v), d)`), ``remix``
    (:math:`M`), ``contrast`` (:math:`S(z) + S(u)`), ``discriminator`` (:math:`\ell_D`) and ``domain_accuracy``, the
    share of samples whose domain the discriminator tells right.

    Args:
        featurizer: The second featurizer, usually that of the network with its first weights; it is copied, so what is
            given does not change.
        features: Number of features of both.
        classes: Number of classes.
        domains: Number of source domains.
        cnt_lambda: Weight of the contrast. Defaults are those of DomainBed, where random trials draw none of the
            options but ``mlp_depth`` and ``lr``.
        dclf_lambda: Weight of telling the domain from :math:`v`.
        disc_lambda: Weight of the discriminator in the loss of the network.
        rmxd_lambda: Weight of the remix loss.
        d_steps_per_g_step: :math:`k`.
        beta1: Decay of the first moments of both optimizers.
        mlp_width: Width of the discriminator.
        mlp_depth: Number of its linear layers; from {8, 9, 10}.
        mlp_dropout: Its dropout.
        lr: Its learning rate, that of the network too in the release; from {2e-5, 3e-5, 4e-5, 5e-5}. For images of 28
            pixels 3e-3, {5e-4, 1e-3, 2e-3, 3e-3}.
        seed: Of the first weights of the discriminator and the classifiers, which depend on nothing else.
        parity: Remix the samples that the release remixes.

    Raises:
        InputError: If an option is out of its range, so with one domain; in a step, if the model has no ``classifier``,
            or there are not as many features, classes or domains as was said; with ``parity``, if no class has two
            samples.

    References:
        Demirel et al. (2023), ADRMX: additive disentanglement of domain features with remix loss.
    """

    def __init__(
        self,
        *,
        featurizer: nn.Module,
        features: int,
        classes: int,
        domains: int,
        cnt_lambda: float = 1.0,
        dclf_lambda: float = 1.0,
        disc_lambda: float = 0.75,
        rmxd_lambda: float = 1.0,
        d_steps_per_g_step: int = 2,
        beta1: float = 0.5,
        mlp_width: int = 256,
        mlp_depth: int = 9,
        mlp_dropout: float = 0.0,
        lr: float = 3e-5,
        seed: int = 0,
        parity: bool = False,
    ) -> None:
        super().__init__(
            features=features,
            domains=domains,
            d_steps_per_g_step=d_steps_per_g_step,
            beta1=beta1,
            mlp_width=mlp_width,
            mlp_depth=mlp_depth,
            mlp_dropout=mlp_dropout,
            seed=seed,
        )
        if not isinstance(featurizer, nn.Module):
            raise InputError(
                f"ADRMX needs a featurizer that is a module, got a {type(featurizer).__name__}; "
                "that of the network, `network.featurizer`, is usual."
            )
        self.classes = self.whole("classes", classes)
        self.cnt_lambda = self.amount("cnt_lambda", cnt_lambda, 1)
        self.dclf_lambda = self.amount("dclf_lambda", dclf_lambda, 1)
        self.disc_lambda = self.amount("disc_lambda", disc_lambda, 0.75)
        self.rmxd_lambda = self.amount("rmxd_lambda", rmxd_lambda, 1)
        self.lr = self.amount("lr", lr, 3e-5, positive=True)
        self.parity = bool(parity)
        self.featurizer = copy.deepcopy(featurizer)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_hash(self.seed, "classifiers"))
            self.difference_classifier = _classifier(self.features, self.classes)
            self.domain_classifier = _classifier(self.features, self.domains)
        self.discriminator = self.own(self.perceptron(), lr=self.lr, weight_decay=0.0)

    def configuration(self) -> Mapping[str, Any]:
        """All options; the featurizer by the name of its class, its weights are in the state."""
        return {
            "featurizer": type(self.featurizer).__qualname__,
            "classes": self.classes,
            "cnt_lambda": self.cnt_lambda,
            "dclf_lambda": self.dclf_lambda,
            "disc_lambda": self.disc_lambda,
            "rmxd_lambda": self.rmxd_lambda,
            "lr": self.lr,
            "parity": self.parity,
            **super().configuration(),
        }

    def losses(self, model: nn.Module, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """The weighted sum of all losses but that of the discriminator, less that one, and that one."""
        classifier = classifier_of("ADRMX", model)
        images, labels, domains = self.joined(batches)
        # Before the forward passes: dropout on a processor draws from the same generator.
        pairs = self._pairs(labels, domains)
        outputs = model(images)
        self.expect("features", "features", self.features, outputs.features.shape[1])
        self.expect("classes", "classes", self.classes, outputs.logits.shape[1])
        of_domain = self._features_of_domain(model, images)
        with torch.autocast(images.device.type, enabled=False):
            features, of_domain = single(outputs.features), single(of_domain)
            difference = features - of_domain
            nll = F.cross_entropy(single(outputs.logits), labels)
            difference_nll = F.cross_entropy(self.difference_classifier(difference), labels)
            domain_nll = F.cross_entropy(self.domain_classifier(of_domain), domains)
            one, other, present = pairs
            remixed = classifier(difference[one] + of_domain[other])
            errors = F.cross_entropy(remixed, labels[one], reduction="none") * present
            remix = errors.sum() / present.sum().clamp(min=1)
            contrast = _contrast(features, labels) + _contrast(difference, labels)
            guesses = self.discriminator(difference)
            discriminator = F.cross_entropy(guesses, domains)
            loss = nll + difference_nll + self.dclf_lambda * domain_nll + self.rmxd_lambda * remix
            loss = loss + self.cnt_lambda * contrast - self.disc_lambda * discriminator
        parts = {
            "nll": nll,
            "difference_nll": difference_nll,
            "domain_nll": domain_nll,
            "remix": remix,
            "contrast": contrast,
            "discriminator": discriminator,
            "domain_accuracy": told_apart(guesses, domains),
        }
        self.parts = {name: value.detach() for name, value in parts.items()}
        return loss, discriminator

    def _features_of_domain(self, model: nn.Module, images: Tensor) -> Tensor:
        """Those of the second featurizer, treated as the network treats its own."""
        if getattr(model, "frozen_batch_norm", False):
            for module in self.featurizer.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        features: Tensor = self.featurizer(images)
        dropout = getattr(model, "dropout", None)
        return dropout(features) if isinstance(dropout, nn.Module) else features

    def _pairs(self, labels: Tensor, domains: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The places of two samples for each class, and whether it has any, without waiting for the device."""
        if self.parity:
            return self._released_pairs(labels)
        pairs = (labels[:, None] == labels) & (domains[:, None] != domains)
        # The pair of a class is the one with the largest random number; with none it is -1.
        keys = torch.rand(len(labels), len(labels)).to(labels.device).masked_fill(~pairs, -1.0)
        largest, partner = keys.max(1)
        of_class = torch.arange(self.classes, device=labels.device)[:, None] == labels  # (classes, samples)
        largest, one = largest.expand_as(of_class).masked_fill(~of_class, -1.0).max(1)
        return one, partner[one], largest >= 0

    def _released_pairs(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same as released: places that were meant within the class, used in the joint batch."""
        counts = torch.bincount(labels, minlength=self.classes).tolist()
        drawn = [torch.randperm(count)[:2] for count in counts if count >= 2]
        if not drawn:
            raise InputError(
                "ADRMX with parity=True needs a class with at least 2 samples in the joint batch to remix, got none; "
                "use a larger batch size, or parity=False."
            )
        one, other = torch.stack(drawn, 1).to(labels.device)
        return one, other, torch.ones_like(one, dtype=torch.bool)


def _classifier(features: int, outputs: int) -> nn.Sequential:
    """The nonlinear classifier of DomainBed."""
    half, quarter = max(1, features // 2), max(1, features // 4)
    return nn.Sequential(
        nn.Linear(features, half), nn.ReLU(), nn.Linear(half, quarter), nn.ReLU(), nn.Linear(quarter, outputs)
    )


def _contrast(features: Tensor, labels: Tensor) -> Tensor:
    """How little samples look like those of their class, compared with all others."""
    # At the start both featurizers may be equal, so that all differences are 0, which have no direction.
    directions = F.normalize(features, eps=1e-8)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels) & ~itself
    terms = _SHARE * (directions @ directions.T / _TEMPERATURE).exp()  # (samples, samples)
    whole = terms.masked_fill(itself, 0.0).sum(1, keepdim=True) + 1e-5
    losses = -(terms / whole + 1e-5).log().masked_fill(~positive, 0.0).sum(1)
    partners = positive.sum(1)
    return (losses / partners.clamp(min=1)).sum() / ((partners > 0).sum() + 1)
