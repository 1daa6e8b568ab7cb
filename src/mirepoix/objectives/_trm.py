"""TRM: features on which the best classifier of one source domain is good in the others."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import joint
from mirepoix.objectives._owned import Owned
from mirepoix.objectives._scheduled import Scheduled, check_count
from mirepoix.types import Batch, InputError

__all__ = ["TRM"]

_ROUNDS = 30
_TERMS = 10
_LARGEST = 10.0


class TRM(Scheduled):
    r"""Transfer risk minimisation (Xu and Jaakkola, 2021): a predictor for one domain should do for another.

    Every source domain :math:`Q` of :math:`E` has a linear head :math:`W_Q` (with a bias) of its own on the features
    :math:`z`. Let :math:`R_{Qi}` be the mean cross-entropy of head :math:`Q` in domain :math:`i`, and :math:`R` that of
    the classifier of the network on the joint batch. From update ``iters`` on, an update minimises

    .. math:: R + \frac{1}{E} \sum_Q \Big( \sum_{i \ne Q} \alpha_{Qi} R_{Qi} - c \, h_Q \cdot g_Q \Big), \qquad
        g_Q = \nabla_{W_Q} R_{QQ}, \qquad
        h_Q \approx H_Q^{-1} \nabla_{W_Q} \sum_{i \ne Q} \alpha_{Qi} R_{Qi}

    in the featurizer and the classifier, with the heads, :math:`h_Q` and :math:`\alpha` as constants; before, it
    minimises :math:`R` alone. The second term is how the risk elsewhere changes through the head, which follows its
    domain, as the features move. :math:`H_Q` is the Hessian of :math:`R_{QQ}`; it, :math:`g_Q` and :math:`h_Q` are of
    the weights of the head, not of its bias. In this order:

    1. the rows of :math:`\alpha`, which begins as 1 outside its diagonal of 0, are divided by their sums;
    2. with ``class_balanced``, the weights of the classifier are copied into all heads;
    3. each head makes 30 steps of gradient descent (learning rate 0.1) on :math:`R_{QQ}`, on features that are
       constants;
    4. :math:`h_Q = \sum_{k=0}^{10} u_k`, with :math:`u_0` the gradient that :math:`H_Q^{-1}` is applied to and
       :math:`u_{k+1} = u_k - H_Q u_k` (the Neumann series), ended early after a term that makes an entry of the sum
       larger than 10 in size;
    5. the loss above is made, and then :math:`\alpha_{Qi} \leftarrow \alpha_{Qi} \exp(\eta \, \alpha_{Qi} R_{Qi})`.

    It addresses correlation shift: on features whose relation to labels is the same everywhere, one head is best for
    all domains.

    **Corrections.** Both are of numbers that released code writes over while they are in use; ``parity=True`` brings
    both back. The released sum is :math:`2 u_1 + u_2 + \dots + u_{10}`. And the gradient of the released loss has the
    :math:`\alpha` of after step 5, while its value and :math:`h_Q` have the one of before, as all three have here.

    In :math:`R` domains weigh by their batch size, in the rest equally. The order of samples does not matter, that of
    domains only in that head and weights belong to a position: it has to be the same in every update. A batch of one
    and classes that are missing need no special case. One source domain is an error: there is nowhere to transfer to.
    Nothing bounds :math:`\alpha`, nor the step of a head on long features: where they overflow, the loss is not finite
    and the training ends, as with any loss. Heads and what is computed with them are in single precision at least, also
    under autocast. `step` logs ``loss``, ``nll`` (:math:`R`) and ``penalty``, the rest; it is 0 before ``iters``.

    Learning rate and weight decay are those of the run: the release has an Adam for the featurizer and one for the
    classifier, with equal options, which is one over both. It has one more head, never used, which is left out. Its
    Hessian products are second derivatives; here both derivatives of a linear head are written out.

    State: the heads, :math:`\alpha`, and the number of updates. An update costs one joint forward and one backward
    pass, and from ``iters`` on 30 steps of every head, :math:`E^2` passes of heads and 10 Hessian products per head.

    Args:
        features: Number of features of the network.
        classes: Number of classes.
        domains: How many source domains there are, from 2.
        cos_lambda: Weight :math:`c` of the change through the head. Default as in DomainBed, where random trials draw
            10^U(-5, 0).
        iters: Update, from 0, at which the transfer risk begins; random trials draw int 10^U(0, 4).
        groupdro_eta: Step size :math:`\eta` of :math:`\alpha`; with 0 its rows stay uniform. Random trials draw
            10^U(-3, -1).
        class_balanced: Begin each update with heads that have the weights of the classifier, for domains whose class
            frequencies differ. False in random trials too.
        parity: Reproduce the two mistakes above.
        seed: Of the weights of the heads, which depend on nothing else: two equal objectives give equal results.

    Raises:
        InputError: If an option is out of its range; in a step, if the domains, features or classes are not as many as
            was said, or with ``class_balanced`` the model has no linear ``classifier``.

    References:
        Xu and Jaakkola (2021), Learning representations that support robust transfer of predictors.
    """

    alpha: Tensor

    def __init__(
        self,
        *,
        features: int,
        classes: int,
        domains: int,
        cos_lambda: float = 1e-4,
        iters: int = 200,
        groupdro_eta: float = 1e-2,
        class_balanced: bool = False,
        parity: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, count, least in (
            ("features", features, 1),
            ("classes", classes, 1),
            ("domains", domains, 2),
        ):
            if isinstance(count, bool) or count != int(count) or count < least:
                raise InputError(
                    f"TRM needs {name} to be a whole number of {name} from {least}, got {count!r}."
                    + (" With one domain there is ERM." if name == "domains" and count == 1 else "")
                )
        for name, value, usual in (
            ("cos_lambda", cos_lambda, "0.0001"),
            ("groupdro_eta", groupdro_eta, "0.01"),
        ):
            if not 0 <= value < math.inf:
                raise InputError(f"TRM needs a finite {name} of 0 or more, got {value}; {usual} is usual.")
        self.features, self.classes, self.domains = int(features), int(classes), int(domains)
        self.cos_lambda, self.groupdro_eta = float(cos_lambda), float(groupdro_eta)
        self.iters = check_count("TRM", "iters", iters)
        self.class_balanced, self.parity, self.seed = bool(class_balanced), bool(parity), int(seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            heads = [nn.Linear(self.features, self.classes) for _ in range(self.domains)]
        self.heads = Owned(nn.ModuleList(heads), partial(torch.optim.SGD, lr=0.1))
        self.register_buffer("alpha", 1 - torch.eye(self.domains))

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {
            "features": self.features,
            "classes": self.classes,
            "domains": self.domains,
            "cos_lambda": self.cos_lambda,
            "iters": self.iters,
            "groupdro_eta": self.groupdro_eta,
            "class_balanced": self.class_balanced,
            "parity": self.parity,
            "seed": self.seed,
        }

    def resets(self) -> Collection[int]:
        """None: the optimizer keeps its moments when the transfer risk begins."""
        return ()

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The risk of the joint batch, from ``iters`` on with the transfer risk, for which heads and alpha move."""
        if len(batches) != self.domains:
            raise InputError(
                f"TRM was made for {self.domains} source domains, got {len(batches)}; it needs the same ones in every "
                f"update, at least 2"
                + (
                    f": make it with domains={len(batches)}."
                    if len(batches) > 1
                    else ". With one there is ERM."
                )
            )
        classifier = self._classifier(model) if self.class_balanced else None
        outputs = joint(model, batches)
        sizes = outputs[0].features.shape[1], outputs[0].logits.shape[1]
        if sizes != (self.features, self.classes):
            raise InputError(
                f"TRM was made for {self.features} features and {self.classes} classes, got {sizes[0]} and {sizes[1]}; "
                f"make it with features={sizes[0]}, classes={sizes[1]}."
            )
        logits = torch.cat([output.logits for output in outputs])
        risk = F.cross_entropy(logits, torch.cat([batch.labels for batch in batches]))
        self.parts = {"nll": risk.detach(), "penalty": torch.zeros_like(risk.detach())}
        if self.updates < self.iters:
            return risk
        with torch.autocast(risk.device.type, enabled=False):
            if classifier is not None:
                self._copy(classifier)
            penalty = self._transfer_risk([o.features for o in outputs], [b.labels for b in batches])
        self.parts["penalty"] = penalty.detach()
        return risk + penalty

    def _transfer_risk(self, features: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """The second term of the loss, and the new heads and weights."""
        constant = [z.detach() for z in features]
        alpha = self.alpha / self.alpha.sum(1, keepdim=True)
        for _ in range(_ROUNDS):
            own = zip(self.heads.module.children(), constant, labels, strict=True)
            self.heads.descend(torch.stack([F.cross_entropy(head(z), y) for head, z, y in own]).sum())
        heads = [tuple(p.detach() for p in head.parameters()) for head in self.heads.module.children()]
        risks = torch.stack(
            [
                torch.stack([_risk(head, z, y) for z, y in zip(features, labels, strict=True)])
                for head in heads
            ]
        )  # (heads, domains)
        through_heads = []
        for place, (head, row) in enumerate(zip(heads, alpha, strict=True)):
            elsewhere = torch.stack(
                [_gradient(head, z, y) for z, y in zip(constant, labels, strict=True)]
            )  # (domains, classes, features); that of its own domain has weight 0
            vector = (row[:, None, None] * elsewhere).sum(0)
            solution = _solution(head, constant[place], vector, released=self.parity)
            through_heads.append((solution * _gradient(head, features[place], labels[place])).sum())
        moved = alpha * (self.groupdro_eta * alpha * risks.detach()).exp()
        self.alpha.copy_(moved)
        swapped = (alpha * risks).sum()
        if self.parity:  # the value of the one, the gradient of the other
            wrong = (moved * risks).sum()
            swapped = swapped.detach() + (wrong - wrong.detach())
        return (swapped - self.cos_lambda * torch.stack(through_heads).sum()) / self.domains

    def _classifier(self, model: nn.Module) -> nn.Linear:
        classifier = getattr(model, "classifier", None)
        if not isinstance(classifier, nn.Linear):
            raise InputError(
                f"TRM with class_balanced=True needs a model with a linear layer `classifier`, whose weights the heads "
                f"copy, got a {type(model).__name__} without one; `mirepoix.models.Network` has one."
            )
        return classifier

    def _copy(self, classifier: nn.Linear) -> None:
        with torch.no_grad():
            for head in self.heads.module.children():
                assert isinstance(head, nn.Linear)
                head.weight.copy_(classifier.weight)


def _risk(head: Sequence[Tensor], features: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(features, *head), labels)


def _gradient(head: Sequence[Tensor], features: Tensor, labels: Tensor) -> Tensor:
    """That of the risk of a head in its weights, which can be differentiated in the features."""
    probabilities = F.linear(features, *head).softmax(1)
    errors = probabilities - F.one_hot(labels, probabilities.shape[1])
    return errors.T @ features / len(labels)  # (classes, features)


def _solution(head: Sequence[Tensor], features: Tensor, vector: Tensor, *, released: bool) -> Tensor:
    """The Neumann series for the inverse of the Hessian of the risk of a head, applied to a vector."""
    probabilities = F.linear(features, *head).softmax(1)
    term = total = vector
    going = torch.ones((), dtype=torch.bool, device=vector.device)
    for count in range(_TERMS):
        change = probabilities * (features @ term.T)  # (samples, classes)
        change = change - probabilities * change.sum(1, keepdim=True)
        term = term - change.T @ features / len(features)
        if released and count == 0:
            total = term
        # A choice, not a break: the device alone knows how large the sum is.
        total = torch.where(going, total + term, total)
        going = going & ~(total.abs().max() > _LARGEST)
    return total
