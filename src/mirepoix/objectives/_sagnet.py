"""SagNet: logits of features whose style is that of other samples, and features that do not tell a class by style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._classifier import classifier_of
from mirepoix.objectives._joint import single
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError

__all__ = ["SagNet"]

_EPSILON = 1e-5


class SagNet(Objective):
    r"""Style-agnostic network (Nam et al., 2021), on features.

    The style of sample :math:`i` is the mean :math:`\mu_i` and the unbiased variance :math:`v_i` over the entries of
    its features :math:`z_i`; what is left is its content :math:`\hat z_i = (z_i - \mu_i) / \sqrt{v_i + 10^{-5}}`. With
    :math:`\pi` a random permutation of the samples of the joint batch and :math:`\alpha_i \sim U(0, 1)`,

    .. math:: z^s_i = \sqrt{\tilde v_i + 10^{-5}} \, \hat z_i + \tilde\mu_i, \qquad
        \tilde\mu_i = \alpha_i \mu_i + (1 - \alpha_i) \mu_{\pi(i)}, \quad
        \tilde v_i = \alpha_i v_i + (1 - \alpha_i) v_{\pi(i)}

    has the content of sample :math:`i` and a random style, and

    .. math:: z^c_i = \sqrt{v_i + 10^{-5}} \, \hat z_{\pi(i)} + \mu_i

    has its style and the content of another sample, which is a constant for the gradient. With the featurizer
    :math:`\phi`, the classifier :math:`w` of the network and a linear style head :math:`s`, an update is three steps:

    1. :math:`\phi` and :math:`w` descend :math:`\frac{1}{n} \sum_i \mathrm{CE}(w(z^s_i), y_i)`, the loss of `forward`;
    2. :math:`s` descends :math:`\frac{1}{n} \sum_i \mathrm{CE}(s(z^c_i), y_i)`, so it tells the class by style;
    3. :math:`\phi` descends :math:`\frac{c}{n} \sum_i \frac{1}{K} \sum_k -\log p_s(k \mid z^c_i)` over the :math:`K`
       classes, least where the style head knows nothing: :math:`c` is ``sag_w_adv``.

    Each has a forward pass and draws of its own, and sees the weights that the step before it left. It addresses
    diversity shift, where domains differ in style: what the classifier uses is content.

    All steps are of the optimizer given, which holds the network and the style head; what a step does not train has no
    gradient in it, so its moments stay. That is the same as the three optimizers of the release, whose options are the
    same: learning rate and weight decay are those of the run. :math:`\phi` is all of the network but ``classifier``.

    Domains weigh by their batch size; which domain a sample is from does not matter. In a joint batch of one sample,
    and among samples of one style, styles are exchanged for themselves, which changes nothing. With ``sag_w_adv=0``
    there is no third step, not even one of the moments: where styles do not differ, the network is then trained as by
    ERM. The same holds for :math:`\phi` where it is frozen. Missing classes and one source domain need no special case.
    Styles and the style head are in single precision at least, also under autocast. A gradient scaler scales, checks
    and updates in every step, so it may skip one of the three. Batch norm that is not frozen moves its statistics in
    all three passes.

    ``step`` logs ``loss``, the first scalar, ``style``, the second, and ``adversarial``, the third without its weight.

    :math:`\alpha` and then :math:`\pi` come from torch's global generator of the processor, whatever the device, which
    the trainer seeds for every step.

    State: the weights of the style head. An update costs three forward and two backward passes.

    The paper exchanges the statistics of feature maps within the network, behind which style has layers of its own;
    this is the version of DomainBed, on the features themselves, with a linear head.

    Args:
        sag_w_adv: Weight :math:`c` of the third step. Default as in DomainBed, where random trials draw 10^U(-2, 1).
        features: The number of features of the network, at least 2.
        classes: The number :math:`K` of classes.
        seed: Of the weights of the style head, which depend on nothing else.

    Raises:
        InputError: If an option is out of its range; in a step, if the model has no ``classifier``, or its features or
            classes are not as many as was said.

    References:
        Nam et al. (2021), Reducing domain gap by reducing style bias.
    """

    def __init__(self, *, sag_w_adv: float = 0.1, features: int, classes: int, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= sag_w_adv < math.inf:
            raise InputError(f"SagNet needs a finite sag_w_adv of 0 or more, got {sag_w_adv}; 0.1 is usual.")
        if isinstance(features, bool) or features != int(features) or features < 2:
            raise InputError(
                f"SagNet needs a whole number of features from 2, got {features!r}: the style of a sample is the "
                "variance over its features, and one has none."
            )
        if isinstance(classes, bool) or classes != int(classes) or classes < 1:
            raise InputError(f"SagNet needs a whole number of classes from 1, got {classes!r}.")
        self.sag_w_adv, self.seed = float(sag_w_adv), int(seed)
        self.features, self.classes = int(features), int(classes)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            self.style = nn.Linear(self.features, self.classes)

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {
            "sag_w_adv": self.sag_w_adv,
            "features": self.features,
            "classes": self.classes,
            "seed": self.seed,
        }

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy of the joint batch in random styles, a scalar in nats."""
        classifier = classifier_of("SagNet", model)
        features, labels = self._joint(model, batches)
        with torch.autocast(labels.device.type, enabled=False):
            restyled = _with_style(single(features), *_draws(features))
        return F.cross_entropy(single(classifier(restyled.to(features.dtype))), labels)

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, Tensor]:
        """Make the three steps of one update; every scalar is from before its step."""
        optimizer.zero_grad(set_to_none=True)
        loss = self(model, batches)
        _backward(loss, scaler)
        _descend(optimizer, scaler)

        with torch.no_grad():
            features, labels = self._joint(model, batches)
        style = F.cross_entropy(self._style(features), labels)
        _backward(style, scaler)
        _descend(optimizer, scaler)

        with torch.set_grad_enabled(self.sag_w_adv > 0):
            features, _ = self._joint(model, batches)
        adversarial = -self._style(features).log_softmax(1).mean()
        if features.requires_grad:
            _backward(self.sag_w_adv * adversarial, scaler)
            self.style.zero_grad(set_to_none=True)
            _descend(optimizer, scaler)
        return {"loss": loss.detach(), "style": style.detach(), "adversarial": adversarial.detach()}

    def _joint(self, model: nn.Module, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Features and labels of the joint batch."""
        outputs = model(torch.cat([batch.images for batch in batches]))
        if outputs.features.shape[1] != self.features:
            raise InputError(
                f"SagNet was made for {self.features} features, got {outputs.features.shape[1]}; "
                f"make it with features={outputs.features.shape[1]}."
            )
        if outputs.logits.shape[1] != self.classes:
            raise InputError(
                f"SagNet was made for {self.classes} classes, got {outputs.logits.shape[1]}; "
                f"make it with classes={outputs.logits.shape[1]}."
            )
        return outputs.features, torch.cat([batch.labels for batch in batches])

    def _style(self, features: Tensor) -> Tensor:
        """What the style head makes of features with the content of other samples."""
        with torch.autocast(features.device.type, enabled=False):
            _, order = _draws(features)
            logits: Tensor = self.style(_with_content(single(features), order))
            return logits


def _draws(features: Tensor) -> tuple[Tensor, Tensor]:
    """The shares of the own style, and a permutation."""
    # Both also where the shares are not used, as in the release: equal seeds then give equal permutations.
    share = torch.rand(len(features), 1)
    return share.to(features.device), torch.randperm(len(features)).to(features.device)


def _parts(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Content, mean and variance of every sample."""
    variance, mean = torch.var_mean(features, 1, keepdim=True)  # (samples, 1)
    return (features - mean) / (variance + _EPSILON).sqrt(), mean, variance


def _with_style(features: Tensor, share: Tensor, order: Tensor) -> Tensor:
    """The content of every sample with a style between its own and that of another."""
    content, mean, variance = _parts(features)
    share = share.to(features.dtype)
    mean = share * mean + (1 - share) * mean[order]
    variance = share * variance + (1 - share) * variance[order]
    return content * (variance + _EPSILON).sqrt() + mean


def _with_content(features: Tensor, order: Tensor) -> Tensor:
    """The style of every sample with the content of another, a constant."""
    content, mean, variance = _parts(features)
    return content[order].detach() * (variance + _EPSILON).sqrt() + mean


def _backward(loss: Tensor, scaler: torch.amp.GradScaler | None) -> None:
    torch.autograd.backward(loss if scaler is None else scaler.scale(loss))


def _descend(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    """One step of what has a gradient, and a clean sheet for the next."""
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()  # it checks one step per update
    optimizer.zero_grad(set_to_none=True)
    # Autocast remembers its half-precision copies of the weights: the next pass would see the old ones.
    torch.clear_autocast_cache()
