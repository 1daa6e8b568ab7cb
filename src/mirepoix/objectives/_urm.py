"""URM: features that a discriminator cannot tell from uniform noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._classifier import classifier_of
from mirepoix.objectives._joint import single
from mirepoix.objectives._objective import Objective
from mirepoix.objectives._owned import Owned
from mirepoix.types import Batch, InputError, Outputs

__all__ = ["URM"]

_WIDTH = 100
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}
_LOWEST = {"tanh": -1.0, "none": -1.0, "relu": 0.0, "sigmoid": 0.0}


class URM(Objective):
    r"""Uniform risk minimisation (Krishnamachari et al., 2024): features like uniform noise.

    With :math:`z = a(\phi(x))` the activated features of the joint batch, after dropout, :math:`w` the classifier, and
    :math:`D` a discriminator with one logit, the network descends

    .. math:: \frac{1}{n} \sum_i \mathrm{CE}(w(z_i), y_i) + \lambda \, \mathrm{BCE}(D(z_i), 1)

    and then the discriminator descends, on the same :math:`z` from before the step of the network, a constant,

    .. math:: \frac{1}{n} \sum_i \mathrm{BCE}(D(u_i), 1) + \lambda \, \mathrm{BCE}(D(z_i), 0), \qquad
        u_{ik} \sim U(-1, 1) \text{ for tanh, } U(0, 1) \text{ for ReLU and sigmoid}

    with BCE the binary cross-entropy of a logit, and :math:`n` draws of :math:`u`. With label smoothing :math:`s` every
    target 1 is a draw from :math:`U(1 - s, 1)`, and every 0 one from :math:`U(0, s)`. :math:`D` is Linear(d, 100),
    LeakyReLU, then ``urm_discriminator_hidden_layers`` times Linear(100, 100), LeakyReLU, and Linear(100, 1).

    It addresses diversity shift: features that fill their range evenly leave less room to a domain of its own.

    **The network predicts with the activation.** `predict` applies it between the features and the classifier, and so
    does the evaluation in training. The weights of the network alone do not know it: loaded into a
    `mirepoix.models.Network`, they predict without it, and wrongly. To have weights that predict by themselves, let the
    featurizer end in the activation, and give ``urm_generator_output="none"``: then there is none here, and
    :math:`u \sim U(-1, 1)`, as for a featurizer that ends in tanh.

    Domains weigh by their batch size; the order of samples and that of domains matter only in draws. One source domain,
    a batch of one and missing classes need no special case. With ``urm_adv_lambda=0`` the network is trained as by ERM
    on the activated features, and the discriminator learns about :math:`u` alone. The discriminator and its inputs are
    in single precision at least, also under autocast; a gradient scaler scales the loss of the network only.

    Learning rate and weight decay of the network are those of the run. The targets of the network, :math:`u`, and
    the other targets come from torch's global generator of the processor, in this order, whatever the device, which the
    trainer seeds for every step.

    `step` logs ``loss``, what the network minimises, its terms ``nll`` and ``penalty`` (without :math:`\lambda`), and
    ``discriminator``, what that minimises.

    State: weights and moments of the discriminator. An update costs one joint forward and one backward pass, and a
    second pass of the classifier.

    Args:
        urm_adv_lambda: Weight :math:`\lambda`. Default as in DomainBed, where random trials draw U(0, 0.2).
        urm_discriminator_label_smoothing: :math:`s`, from 0, none, to 1; not drawn in random trials.
        urm_discriminator_optimizer: ``adam``, or ``sgd`` with momentum 0.9; not drawn.
        urm_discriminator_hidden_layers: Layers between the first and the last; random trials draw from {1, 2, 3}.
        urm_generator_output: The activation :math:`a`: ``tanh``, ``relu``, ``sigmoid``, or ``none``; random trials draw
            from {tanh, relu}.
        urm_discriminator_lr: Learning rate of the discriminator; random trials draw 10^U(-6, -4.5). For images of 28
            pixels it is 1e-3, and 10^U(-5.5, -3.5).
        weight_decay: Of the discriminator; the release gives it that of the network.
        features: The number :math:`d` of features of the network.
        seed: Of the weights of the discriminator, which depend on nothing else.

    Raises:
        InputError: If an option is out of its range; in a step, if the model has no ``classifier``, or its features are
            not as many as was said.

    References:
        Krishnamachari et al. (2024), Uniformly distributed feature representations for fair and robust learning.
    """

    def __init__(
        self,
        *,
        urm_adv_lambda: float = 0.1,
        urm_discriminator_label_smoothing: float = 0.0,
        urm_discriminator_optimizer: Literal["adam", "sgd"] = "adam",
        urm_discriminator_hidden_layers: int = 1,
        urm_generator_output: Literal["tanh", "relu", "sigmoid", "none"] = "tanh",
        urm_discriminator_lr: float = 5e-5,
        weight_decay: float = 0.0,
        features: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, usual in (
            ("urm_adv_lambda", urm_adv_lambda, "0.1"),
            ("weight_decay", weight_decay, "0"),
        ):
            if not 0 <= value < math.inf:
                raise InputError(f"URM needs a finite {name} of 0 or more, got {value}; {usual} is usual.")
        if not 0 <= urm_discriminator_label_smoothing <= 1:
            raise InputError(
                "URM needs urm_discriminator_label_smoothing to be in [0, 1], got "
                f"{urm_discriminator_label_smoothing}; 0 is none."
            )
        if urm_discriminator_optimizer not in ("adam", "sgd"):
            raise InputError(
                "URM needs urm_discriminator_optimizer to be 'adam' or 'sgd', got "
                f"{urm_discriminator_optimizer!r}."
            )
        if urm_generator_output not in _LOWEST:
            raise InputError(
                "URM needs urm_generator_output to be 'tanh', 'relu', 'sigmoid', or 'none' for a network that ends "
                f"in an activation itself, got {urm_generator_output!r}."
            )
        if not 0 < urm_discriminator_lr < math.inf:
            raise InputError(
                f"URM needs a positive, finite urm_discriminator_lr, got {urm_discriminator_lr}; 5e-5 is usual."
            )
        for name, count, least in (
            ("urm_discriminator_hidden_layers", urm_discriminator_hidden_layers, 0),
            ("features", features, 1),
        ):
            if isinstance(count, bool) or count != int(count) or count < least:
                raise InputError(f"URM needs {name} to be a whole number from {least}, got {count!r}.")
        self.urm_adv_lambda = float(urm_adv_lambda)
        self.urm_discriminator_label_smoothing = float(urm_discriminator_label_smoothing)
        self.urm_discriminator_optimizer = urm_discriminator_optimizer
        self.urm_discriminator_hidden_layers = int(urm_discriminator_hidden_layers)
        self.urm_generator_output = urm_generator_output
        self.urm_discriminator_lr = float(urm_discriminator_lr)
        self.weight_decay = float(weight_decay)
        self.features, self.seed = int(features), int(seed)
        kind: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
        if self.urm_discriminator_optimizer == "sgd":
            kind = partial(torch.optim.SGD, momentum=0.9)
        self.discriminator = Owned(
            _discriminator(self.features, self.urm_discriminator_hidden_layers, self.seed),
            partial(kind, lr=self.urm_discriminator_lr, weight_decay=self.weight_decay),
        )

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {
            "urm_adv_lambda": self.urm_adv_lambda,
            "urm_discriminator_label_smoothing": self.urm_discriminator_label_smoothing,
            "urm_discriminator_optimizer": self.urm_discriminator_optimizer,
            "urm_discriminator_hidden_layers": self.urm_discriminator_hidden_layers,
            "urm_generator_output": self.urm_generator_output,
            "urm_discriminator_lr": self.urm_discriminator_lr,
            "weight_decay": self.weight_decay,
            "features": self.features,
            "seed": self.seed,
        }

    def predict(self, model: nn.Module, images: Tensor) -> Outputs:
        """The activated features and their logits."""
        outputs: Outputs = model(images)
        activation = _ACTIVATIONS.get(self.urm_generator_output)
        if activation is None:
            return outputs
        features = activation(single(outputs.features))
        return Outputs(features, classifier_of("URM", model)(features.to(outputs.features.dtype)))

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy of the joint batch plus the weighted penalty, a scalar."""
        return self._play(model, batches)[0]

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, Tensor]:
        """Make a step of the network, and then one of the discriminator."""
        optimizer.zero_grad(set_to_none=True)
        loss, features = self._play(model, batches)
        if scaler is None:
            torch.autograd.backward(loss)
            optimizer.step()
        else:
            torch.autograd.backward(scaler.scale(loss))
            scaler.step(optimizer)
            scaler.update()
        with torch.autocast(features.device.type, enabled=False):
            lowest = _LOWEST[self.urm_generator_output]
            noise = lowest + (1 - lowest) * torch.rand(features.shape).to(features)
            told = self._told(noise, 1.0) + self.urm_adv_lambda * self._told(features.detach(), 0.0)
            self.discriminator.descend(told)
        return {"loss": loss.detach(), **self.parts, "discriminator": told.detach()}

    def _play(self, model: nn.Module, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """What the network minimises, and its activated features in single precision at least."""
        outputs = self.predict(model, torch.cat([batch.images for batch in batches]))
        labels = torch.cat([batch.labels for batch in batches])
        if outputs.features.shape[1] != self.features:
            raise InputError(
                f"URM was made for {self.features} features, got {outputs.features.shape[1]}; "
                f"make it with features={outputs.features.shape[1]}."
            )
        nll = F.cross_entropy(single(outputs.logits), labels)
        with torch.autocast(labels.device.type, enabled=False):
            features = single(outputs.features)
            penalty = self._told(features, 1.0)
        self.parts = {"nll": nll.detach(), "penalty": penalty.detach()}
        return nll + self.urm_adv_lambda * penalty, features

    def _told(self, features: Tensor, target: float) -> Tensor:
        """The mean binary cross-entropy of the discriminator against 1 or 0, smoothed or not."""
        logits: Tensor = self.discriminator(features)
        targets = torch.full_like(logits, target)
        if self.urm_discriminator_label_smoothing > 0:
            away = self.urm_discriminator_label_smoothing * torch.rand(logits.shape).to(logits)
            targets = (targets - away).abs()
        return F.binary_cross_entropy_with_logits(logits, targets)


def _discriminator(features: int, hidden: int, seed: int) -> nn.Sequential:
    """Of weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(features, _WIDTH), nn.LeakyReLU()]
        for _ in range(hidden):
            layers += [nn.Linear(_WIDTH, _WIDTH), nn.LeakyReLU()]
        return nn.Sequential(*layers, nn.Linear(_WIDTH, 1))
