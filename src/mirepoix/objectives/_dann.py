"""Domain-adversarial training: features from which a discriminator cannot tell the domain."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._adversarial import Adversarial, told_apart
from mirepoix.objectives._joint import single
from mirepoix.seeds import seed_hash
from mirepoix.types import Batch

__all__ = ["CDANN", "DANN"]


class _Discriminator(nn.Module):
    """From features to domains; with classes, a vector for each is added to the features first."""

    def __init__(self, perceptron: nn.Module, embedding: nn.Module | None) -> None:
        super().__init__()
        self.perceptron, self.embedding = perceptron, embedding

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the perceptron is given, to be differentiated, and its logits."""
        inputs = features if self.embedding is None else features + self.embedding(labels)
        if not inputs.requires_grad:  # nothing before it is trained at present
            inputs = inputs.detach().requires_grad_()
        return inputs, self.perceptron(inputs)


class _DomainAdversarial(Adversarial):
    """What both have in common: all but what the discriminator is given, and how its losses are averaged."""

    def __init__(
        self,
        *,
        lambda_: float,
        grad_penalty: float,
        lr_d: float,
        weight_decay_d: float,
        classes: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.lambda_ = self.amount("lambda_", lambda_, 1)
        self.grad_penalty = self.amount("grad_penalty", grad_penalty, 0)
        self.lr_d = self.amount("lr_d", lr_d, 5e-5, positive=True)
        self.weight_decay_d = self.amount("weight_decay_d", weight_decay_d, 0)
        self.classes = None if classes is None else self.whole("classes", classes)
        embedding = None
        if self.classes is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed_hash(self.seed, "embedding"))
                embedding = nn.Embedding(self.classes, self.features)
        self.discriminator = self.own(
            _Discriminator(self.perceptron(), embedding), lr=self.lr_d, weight_decay=self.weight_decay_d
        )

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {
            "lambda_": self.lambda_,
            "grad_penalty": self.grad_penalty,
            "lr_d": self.lr_d,
            "weight_decay_d": self.weight_decay_d,
            **super().configuration(),
        }

    @abstractmethod
    def average(self, errors: Tensor, labels: Tensor) -> Tensor:
        """Of the cross-entropies of the discriminator, a scalar."""

    def losses(self, model: nn.Module, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """The risk of the joint batch less the weighted loss of the discriminator, and that loss."""
        images, labels, domains = self.joined(batches)
        outputs = model(images)
        self.expect("features", "features", self.features, outputs.features.shape[1])
        if self.classes is not None:
            self.expect("classes", "classes", self.classes, outputs.logits.shape[1])
        with torch.autocast(images.device.type, enabled=False):
            nll = F.cross_entropy(single(outputs.logits), labels)
            inputs, logits = self.discriminator(single(outputs.features), labels)
            errors = F.cross_entropy(logits, domains, reduction="none")
            discriminator = self.average(errors, labels)
            if self.grad_penalty > 0:
                (slopes,) = torch.autograd.grad(errors.sum(), inputs, create_graph=True)
                discriminator = discriminator + self.grad_penalty * slopes.square().sum(1).mean()
            self.parts = {
                "nll": nll.detach(),
                "discriminator": discriminator.detach(),
                "domain_accuracy": told_apart(logits, domains),
            }
            return nll - self.lambda_ * discriminator, discriminator


class DANN(_DomainAdversarial):
    r"""Domain-adversarial neural networks (Ganin et al., 2016).

    A discriminator :math:`D`, a perceptron, learns to tell from the features :math:`z_i` of sample :math:`i` the domain
    :math:`d_i` it comes from, and the network learns to make it fail. With :math:`n` samples in the joint batch, whose
    risk is :math:`R`,

    .. math:: \ell_D = \frac{1}{n} \sum_i \mathrm{CE}(D(z_i), d_i)
        + \gamma \, \frac{1}{n} \sum_i \big\lVert \nabla_{z_i} \mathrm{CE}(D(z_i), d_i) \big\rVert^2, \qquad
        L = R - \lambda \, \ell_D

    An update is a step either of the discriminator, down :math:`\ell_D`, or of the network, down :math:`L`. Update
    :math:`t`, from 0, is the network's if :math:`(t + 1) \bmod (k + 1) = k`: with :math:`k = 1` the first and every
    second one after it. So only one update in :math:`k + 1` trains the network. In the turns of the discriminator the
    network does not change at all, not even its statistics of batch norm.

    It addresses diversity shift: features that look alike in all source domains have the support of an unseen one.

    Domains are told by their position in the list of batches. The order of samples does not matter. Domains weigh by
    their batch size. Missing classes and batches of one need no special case; one source domain is refused, as there is
    nothing to tell apart. The discriminator is in single precision at least, also under autocast.

    The learning rate and weight decay of the network, ``lr_g`` and ``weight_decay_g`` in the release, are those of the
    optimizer that `step` is given. Its betas, if it has any, are set to (``beta1``, 0.9) at every step, as released. A
    scaler is used in the turns of the network; the loss of the discriminator needs none.

    State: the weights of the discriminator, the moments of its optimizer, and the number of updates. An update costs
    one joint forward pass, that of the discriminator, and a backward pass: of both in the turns of the network, of the
    discriminator alone in the others; the gradient penalty adds two of the discriminator. `step` logs in either turn
    ``loss`` (:math:`L`), ``nll`` (:math:`R`), ``discriminator`` (:math:`\ell_D`, with its penalty) and
    ``domain_accuracy``, the share of samples whose domain is told right.

    The paper trains both at once, by reversing the gradient between them; turns and penalty are those of DomainBed, of
    which the table of class vectors is left out: only `CDANN` uses it.

    Args:
        features: Number of features of the network.
        domains: Number of source domains.
        lambda_: Weight :math:`\lambda` of the discriminator in the loss of the network; with 0 the turns of the network
            are ERM. Defaults are those of DomainBed, where random trials draw this from 10^U(-2, 2).
        d_steps_per_g_step: :math:`k`, the steps of the discriminator for each of the network; int 2^U(0, 3).
        grad_penalty: Weight :math:`\gamma`; 10^U(-2, 1).
        beta1: Decay of the first moments of both optimizers; from {0, 0.5}.
        mlp_width: Width of the discriminator; int 2^U(6, 10).
        mlp_depth: Number of its linear layers; from {3, 4, 5}.
        mlp_dropout: Its dropout; from {0, 0.1, 0.5}.
        lr_d: Its learning rate; 10^U(-5, -3.5). For images of 28 pixels 1e-3, 10^U(-4.5, -2.5).
        weight_decay_d: Its weight decay; 10^U(-6, -2).
        seed: Of its first weights, which depend on nothing else: two equal objectives give equal results.

    Raises:
        InputError: If an option is out of its range, so with one domain; in a step, if there are not as many features
            or domains as was said.

    References:
        Ganin et al. (2016), Domain-adversarial training of neural networks.
    """

    def __init__(
        self,
        *,
        features: int,
        domains: int,
        lambda_: float = 1.0,
        d_steps_per_g_step: int = 1,
        grad_penalty: float = 0.0,
        beta1: float = 0.5,
        mlp_width: int = 256,
        mlp_depth: int = 3,
        mlp_dropout: float = 0.0,
        lr_d: float = 5e-5,
        weight_decay_d: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            features=features,
            domains=domains,
            lambda_=lambda_,
            d_steps_per_g_step=d_steps_per_g_step,
            grad_penalty=grad_penalty,
            beta1=beta1,
            mlp_width=mlp_width,
            mlp_depth=mlp_depth,
            mlp_dropout=mlp_dropout,
            lr_d=lr_d,
            weight_decay_d=weight_decay_d,
            seed=seed,
        )

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return super().configuration()

    def average(self, errors: Tensor, labels: Tensor) -> Tensor:
        """The mean."""
        return errors.mean()


class CDANN(_DomainAdversarial):
    r"""Conditional domain-adversarial neural networks (Li et al., 2018).

    As `DANN`, where turns, cost, state, what is logged and whose the learning rate of the network is are told, but the
    discriminator knows the class :math:`y_i` of each sample, and all classes weigh the same. With :math:`e_y` a vector
    for class :math:`y`, which is trained with the discriminator, and :math:`n_y` the number of samples of class
    :math:`y` in the joint batch,

    .. math:: \ell_D = \sum_i \omega_i \, \mathrm{CE}(D(u_i), d_i)
        + \gamma \, \frac{1}{n} \sum_i \big\lVert \nabla_{u_i} \mathrm{CE}(D(u_i), d_i) \big\rVert^2, \qquad
        u_i = z_i + e_{y_i}, \qquad \omega_i = \frac{1}{C \, n_{y_i}}, \qquad L = R - \lambda \, \ell_D

    where :math:`C` is one more than the largest label in the batch. So the weights add up to 1 only if no class below
    that is missing; the penalty is not weighted. This is the release; the paper has a discriminator per class.

    It addresses diversity shift also where classes are not as frequent in every domain: features of a class are to look
    alike, not those of whole domains.

    Args:
        features: Number of features of the network.
        domains: Number of source domains.
        classes: Number of classes.
        lambda_: Weight :math:`\lambda` of the discriminator in the loss of the network; with 0 the turns of the network
            are ERM. Defaults are those of DomainBed, where random trials draw this from 10^U(-2, 2).
        d_steps_per_g_step: :math:`k`, the steps of the discriminator for each of the network; int 2^U(0, 3).
        grad_penalty: Weight :math:`\gamma`; 10^U(-2, 1).
        beta1: Decay of the first moments of both optimizers; from {0, 0.5}.
        mlp_width: Width of the discriminator; int 2^U(6, 10).
        mlp_depth: Number of its linear layers; from {3, 4, 5}.
        mlp_dropout: Its dropout; from {0, 0.1, 0.5}.
        lr_d: Learning rate of the discriminator and of the vectors; 10^U(-5, -3.5). For images of 28 pixels 1e-3,
            10^U(-4.5, -2.5).
        weight_decay_d: Their weight decay; 10^U(-6, -2).
        seed: Of their first values, which depend on nothing else; the vectors are drawn from N(0, 1).

    Raises:
        InputError: If an option is out of its range, so with one domain; in a step, if there are not as many features,
            domains or classes as was said.

    References:
        Li et al. (2018), Deep domain generalization via conditional invariant adversarial networks.
    """

    def __init__(
        self,
        *,
        features: int,
        domains: int,
        classes: int,
        lambda_: float = 1.0,
        d_steps_per_g_step: int = 1,
        grad_penalty: float = 0.0,
        beta1: float = 0.5,
        mlp_width: int = 256,
        mlp_depth: int = 3,
        mlp_dropout: float = 0.0,
        lr_d: float = 5e-5,
        weight_decay_d: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            features=features,
            domains=domains,
            classes=classes,
            lambda_=lambda_,
            d_steps_per_g_step=d_steps_per_g_step,
            grad_penalty=grad_penalty,
            beta1=beta1,
            mlp_width=mlp_width,
            mlp_depth=mlp_depth,
            mlp_dropout=mlp_dropout,
            lr_d=lr_d,
            weight_decay_d=weight_decay_d,
            seed=seed,
        )

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {"classes": self.classes, **super().configuration()}

    def average(self, errors: Tensor, labels: Tensor) -> Tensor:
        """That in which all classes weigh the same."""
        counts = (labels[:, None] == labels).sum(1)  # samples of the class of each
        return (errors / (counts * (labels.max() + 1))).sum()
