"""Transfer: features with which no classifier nearby does better in one source domain than in another."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import single
from mirepoix.objectives._owned import Owned
from mirepoix.objectives._scheduled import Scheduled
from mirepoix.types import Batch, InputError

__all__ = ["Transfer"]


class Transfer(Scheduled):
    r"""Transferability (Zhang et al., 2021): risks that differ little, whatever classifier is put on the features.

    With :math:`\phi` the featurizer, :math:`w` the classifier, :math:`a` an adversary of the same shape,
    :math:`R_e(a)` the mean cross-entropy of :math:`a \circ \phi` in domain :math:`e`, and :math:`R` that of
    :math:`w \circ \phi` on the joint batch,

    .. math:: \min_{\phi, w} R + t \, G(a^*), \qquad G(a) = \max_e R_e(a) - \min_e R_e(a), \qquad
        a^* = \arg\max_{\lVert a - w \rVert \le \delta} G(a)

    in alternating steps. One update is, in this order,

    1. a step of the optimizer down :math:`R`, in :math:`\phi` and :math:`w`;
    2. a step of the same optimizer, moments included, down :math:`t \, G(a)`, in :math:`\phi` alone, with the adversary
       that the update before left;
    3. :math:`a \leftarrow w`;
    4. ``d_steps_per_g`` times, a step of gradient descent of the adversary up :math:`t \, G(a)`, after each of which
       :math:`a` goes back to the nearest point of the ball of radius :math:`\delta` around :math:`w`; the distance
       is the Euclidean norm over all weights and biases together.

    In the first update the adversary of step 2 is the classifier as it was at the start.

    It addresses correlation and diversity shift that the source domains show: a domain on which a classifier near the
    one in use would fail while it works on another is far in the features, which then move.

    `step` logs ``loss``, which is :math:`R + t \, G`, with both as steps 1 and 2 see them, ``nll`` (:math:`R`, what the
    release logs as its loss), ``gap`` (:math:`G` in step 2) and ``adversarial_gap`` (:math:`G` at the last step up,
    before it). `forward` is that loss at the weights as they are.

    In :math:`R` domains weigh by their batch size. Neither the order of samples nor that of domains matters, but for
    equal risks, of which the first domain counts as the largest and the smallest, on every device. With one source
    domain the gap is 0, and with ``t_lambda=0`` it has no weight: then step 2 has gradients of zero, which plain
    gradient descent ignores, so this is ERM; an Adam moves the featurizer by its momentum even so. Missing classes and
    a batch of one need no special case. If the featurizer is frozen, step 2 is left out. The adversary and its risks
    are in single precision at least, also under autocast.

    Learning rate and weight decay of the optimizer are those of the run. The release has two more options that it never
    reads, ``weight_decay_d`` and ``beta1``, which are left out. Older versions of PyTorch move :math:`w` by its
    momentum in step 2; here it stays. In step 4 the features are computed once, not once per step: they are the same,
    unless there is dropout, of which there is one draw here.

    **A correction.** ``gda=True`` asks for plain gradient descent in steps 1 and 2: SGD over :math:`\phi` and
    :math:`w`. The released one is an SGD over the adversary alone, so the network stays as it was drawn, in every
    configuration of the random trials. Here the run says what the optimizer is,
    ``Run(optimizer="sgd", momentum=0)``, and ``gda=True`` refuses a kind other than SGD; the momentum is the run's.
    With ``parity=True`` and ``gda=True`` the network is not trained, as released; ``parity`` changes nothing else.

    A gradient scaler that is on scales steps 1 and 2, and is updated after each.

    State: the adversary and the number of updates. An update costs one joint forward and backward pass, two forward
    passes per domain and one backward pass, and ``d_steps_per_g`` passes of the adversary.

    Args:
        features: Number of features of the network.
        classes: Number of classes.
        t_lambda: Weight :math:`t` of the gap. Default as in DomainBed, where random trials draw 10^U(-2, 1).
        delta: Radius :math:`\delta` of the ball; with 0 the adversary is the classifier. Random trials draw U(0.1, 3).
        d_steps_per_g: Steps of the adversary per update; random trials draw from {1, 2, 5}.
        lr_d: Learning rate of the adversary; random trials draw 10^U(-4.5, -2.5).
        gda: Insist on an SGD; True in random trials.
        parity: With ``gda``, train nothing, as released.

    Raises:
        InputError: If an option is out of its range; in a step, if the ``classifier`` of the model is not a linear
            layer of this shape, or with ``gda`` the optimizer is not an SGD.

    References:
        Zhang et al. (2021), Quantifying and improving transferability in domain generalization.
    """

    def __init__(
        self,
        *,
        features: int,
        classes: int,
        t_lambda: float = 1.0,
        delta: float = 2.0,
        d_steps_per_g: int = 10,
        lr_d: float = 1e-3,
        gda: bool = False,
        parity: bool = False,
    ) -> None:
        super().__init__()
        for name, count, unit in (
            ("features", features, "features"),
            ("classes", classes, "classes"),
            ("d_steps_per_g", d_steps_per_g, "steps"),
        ):
            if isinstance(count, bool) or count != int(count) or count < 1:
                raise InputError(
                    f"Transfer needs {name} to be a whole number of {unit} from 1, got {count!r}."
                )
        for name, value, usual in (
            ("t_lambda", t_lambda, "1"),
            ("delta", delta, "2"),
            ("lr_d", lr_d, "0.001"),
        ):
            if not 0 <= value < math.inf:
                raise InputError(
                    f"Transfer needs a finite {name} of 0 or more, got {value}; {usual} is usual."
                )
        self.features, self.classes = int(features), int(classes)
        self.t_lambda, self.delta, self.lr_d = float(t_lambda), float(delta), float(lr_d)
        self.d_steps_per_g = int(d_steps_per_g)
        self.gda, self.parity = bool(gda), bool(parity)
        with torch.random.fork_rng(devices=[]):
            head = nn.Linear(self.features, self.classes)
        # Zeros, not a draw: the first update makes it a copy of the classifier.
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        self.adversary = Owned(head, partial(torch.optim.SGD, lr=self.lr_d))

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {
            "features": self.features,
            "classes": self.classes,
            "t_lambda": self.t_lambda,
            "delta": self.delta,
            "d_steps_per_g": self.d_steps_per_g,
            "lr_d": self.lr_d,
            "gda": self.gda,
            "parity": self.parity,
        }

    def resets(self) -> Collection[int]:
        """None: no weight jumps."""
        return ()

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The risk of the joint batch plus the weighted gap of the adversary, a scalar in nats."""
        self._begin(model)
        return self._risk(model, batches) + self.t_lambda * self._gap(self._features(model, batches), batches)

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, Tensor]:
        """Make one update: the network down its risk, the featurizer down the gap, the adversary up the gap."""
        classifier = self._begin(model)
        untrained = self.gda and self.parity
        if self.gda and not self.parity and not isinstance(optimizer, torch.optim.SGD):
            raise InputError(
                f"Transfer with gda=True needs torch.optim.SGD, got {type(optimizer).__name__}; "
                'use Run(optimizer="sgd", momentum=0), or gda=False.'
            )
        every = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        others = {id(parameter) for parameter in classifier.parameters()}
        featurizer = [parameter for parameter in every if id(parameter) not in others]

        risk = self._risk(model, batches)
        if not untrained:
            _descend(risk, every, optimizer, scaler)

        gap = self._gap(self._features(model, batches), batches)
        if featurizer and not untrained:
            _descend(self.t_lambda * gap, featurizer, optimizer, scaler)

        self._copy(classifier)
        with torch.no_grad():
            features = self._features(model, batches)
        for _ in range(self.d_steps_per_g):
            adversarial_gap = self._gap(features, batches)
            self.adversary.descend(-self.t_lambda * adversarial_gap)
            self._project(classifier)
        self.updates += 1
        risk, gap = risk.detach(), gap.detach()
        self.parts = {"nll": risk, "gap": gap, "adversarial_gap": adversarial_gap.detach()}
        return {"loss": risk + self.t_lambda * gap, **self.parts}

    def _begin(self, model: nn.Module) -> nn.Linear:
        """The classifier of the model, of which the adversary is a copy at first."""
        classifier = getattr(model, "classifier", None)
        if not isinstance(classifier, nn.Linear) or classifier.bias is None:
            raise InputError(
                f"Transfer needs a model with a linear layer `classifier` with a bias, of which the adversary is a "
                f"copy, got a {type(model).__name__} without one; `mirepoix.models.Network` has one."
            )
        classes, features = classifier.weight.shape
        if (features, classes) != (self.features, self.classes):
            raise InputError(
                f"Transfer was made for {self.features} features and {self.classes} classes, got a classifier of "
                f"{features} and {classes}; make it with features={features}, classes={classes}."
            )
        if self.updates == 0:
            self._copy(classifier)
        return classifier

    def _copy(self, classifier: nn.Linear) -> None:
        with torch.no_grad():
            for own, other in zip(self.adversary.parameters(), classifier.parameters(), strict=True):
                own.copy_(other)

    def _project(self, classifier: nn.Linear) -> None:
        """Take the adversary back to the ball around the classifier; what lies in it keeps its bits."""
        with torch.no_grad():
            pairs = list(zip(self.adversary.parameters(), classifier.parameters(), strict=True))
            offsets = [own - other for own, other in pairs]
            distance = torch.linalg.vector_norm(torch.cat([offset.flatten() for offset in offsets]))
            # A choice, not an if: the device alone knows the distance.
            for (own, other), offset in zip(pairs, offsets, strict=True):
                own.copy_(torch.where(distance > self.delta, other + self.delta / distance * offset, own))

    def _risk(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        return F.cross_entropy(single(model(images).logits), labels)

    def _features(self, model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
        return [single(model(batch.images).features) for batch in batches]

    def _gap(self, features: Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        """The largest less the smallest risk of the adversary; of equal ones, that of the first domain."""
        with torch.autocast(features[0].device.type, enabled=False):
            pairs = zip(features, batches, strict=True)
            risks = torch.stack([F.cross_entropy(self.adversary(z), batch.labels) for z, batch in pairs])
            # Along an axis the first one has all of the gradient; `amax` would share it.
            return risks.max(0).values - risks.min(0).values


def _descend(
    loss: Tensor,
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
) -> None:
    """One step of the optimizer in some of its parameters; the others have no gradient and stay."""
    optimizer.zero_grad(set_to_none=True)
    scaled = loss if scaler is None else scaler.scale(loss)
    gradients = torch.autograd.grad(scaled, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    # Autocast remembers its half-precision copies of the weights: the next pass would see the old ones.
    torch.clear_autocast_cache()
