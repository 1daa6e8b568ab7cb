"""Members whose features say little twice: DICE, and the ablations of it that are adversarial too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mirepoix.ensembles._bottleneck import Bottleneck, Bounded, check_number, check_whole, ramped
from mirepoix.ensembles._redundancy import Discriminator, PartnerQueue, clipped, discrimination, partners_in
from mirepoix.objectives._owned import Owned
from mirepoix.types import Batch, InputError

__all__ = ["CEBR", "DICE", "IBR", "Redundancy"]

_CHOICES = {
    "pairs": ("per_member", "mean"),
    "ramp": ("exp", "linear"),
    "clip": ("soft", "hard"),
    "partners": ("queue", "balanced", "batch"),
}


class Redundancy(Bottleneck):
    """A bottleneck, and the redundancy of pairs of members; the kinds differ in what each of them is given."""

    of_class: ClassVar[bool]
    conditional: ClassVar[bool]
    """Whether the redundancy is that beyond the class."""

    def __init__(
        self,
        *,
        features: int,
        classes: int,
        members: int,
        delta: int | float = 0.1,
        beta: int | float = 100.0,
        tau: int | float = 10.0,
        clip: str = "soft",
        pairs: str = "per_member",
        ramp_steps: int = 0,
        ramp: str = "exp",
        discriminator_steps: int = 4,
        discriminator_learning_rate: int | float = 3e-3,
        hidden: Sequence[int] = (256, 256, 100),
        embedding: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(
            features=features,
            classes=classes,
            members=members,
            beta=beta,
            ramp_steps=ramp_steps,
            seed=seed,
        )
        name = type(self).__name__
        if self.members < 2:
            raise InputError(
                f"{name} needs at least 2 members, got {members}: one has nobody to be redundant with; use "
                f"{'CEB' if self.of_class else 'IB'}."
            )
        self.delta = check_number(name, "delta", delta)
        self.tau = check_number(name, "tau", tau)
        self.discriminator_learning_rate = check_number(
            name, "discriminator_learning_rate", discriminator_learning_rate
        )
        for option in ("tau", "discriminator_learning_rate"):
            if getattr(self, option) <= 0:
                raise InputError(f"{name} needs {option} to be positive, got {getattr(self, option)}.")
        self.clip = check_choice(name, "clip", clip)
        self.pairs = check_choice(name, "pairs", pairs)
        self.ramp = check_choice(name, "ramp", ramp)
        self.discriminator_steps = check_whole(name, "discriminator_steps", discriminator_steps, 1)
        self.hidden = tuple(check_whole(name, "hidden", width, 1) for width in hidden)
        self.embedding = check_whole(name, "embedding", embedding, 1)
        self.discriminator = Owned(
            Discriminator(
                2 * self.features,
                classes=self.classes if self.conditional else None,
                embedding=self.embedding,
                hidden=self.hidden,
                seed=self.seed,
            ),
            partial(torch.optim.RMSprop, lr=self.discriminator_learning_rate),
        )
        self.queue: PartnerQueue | None = None
        self.seen: Bounded | None = None

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {
            **super().configuration(),
            "delta": self.delta,
            "tau": self.tau,
            "clip": self.clip,
            "pairs": self.pairs,
            "ramp": self.ramp,
            "discriminator_steps": self.discriminator_steps,
            "discriminator_learning_rate": self.discriminator_learning_rate,
            "hidden": list(self.hidden),
            "embedding": self.embedding,
        }

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The bounded members plus the weighted redundancy of their pairs, a scalar in nats."""
        seen = self.bounded(model, batches)
        with torch.autocast(seen.labels.device.type, enabled=False):
            # The gradient reaches the members through these weights and leaves them alone.
            frozen = {name: weight.detach() for name, weight in self.discriminator.module.named_parameters()}
            logits = functional_call(
                self.discriminator.module, frozen, (*self.couples(seen.noisy, seen.noisy), seen.labels)
            )
            estimates = clipped(logits, self.tau, self.clip).mean(1)  # (pairs,)
            redundancy = (
                estimates.sum() / (self.members - 1) if self.pairs == "per_member" else estimates.mean()
            )
        self.parts["redundancy"] = redundancy.detach()
        self.seen = Bounded(*(value.detach() for value in seen))
        return seen.loss + self.delta * ramped(self.ramp, self.updates, self.ramp_steps) * redundancy

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, Tensor]:
        """Make one update of the members, and then those of the discriminator on the features they had."""
        logged = super().step(model, batches, optimizer, scaler)
        assert self.seen is not None
        (_, mean, scale, noisy, labels), self.seen = self.seen, None
        steps = []
        with torch.autocast(labels.device.type, enabled=False):
            for _ in range(self.discriminator_steps):
                noisy = mean + scale * torch.randn_like(mean)
                others, paired = self.drawn_partners(noisy, labels)
                joint = self.discriminator(*self.couples(noisy, noisy), labels)
                product = self.discriminator(*self.couples(noisy, others), labels)
                loss, accuracy = discrimination(joint, product, paired)
                self.discriminator.descend(loss)
                steps.append(torch.stack([loss.detach(), accuracy]))
            if self.queue is not None:
                self.queue.push(noisy, labels)
        loss, accuracy = torch.stack(steps).mean(0)
        return {**logged, "discriminator_loss": loss, "discriminator_accuracy": accuracy}

    def couples(self, noisy: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """The first members' features of all pairs, and the second members', (pairs, samples, features)."""
        first, second = zip(*combinations(range(self.members), 2), strict=True)
        return torch.stack([noisy[m] for m in first]), torch.stack([others[m] for m in second])

    def drawn_partners(self, noisy: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The features of another sample for each, and whether there is one: here any other one of the batch."""
        partners, paired = partners_in(torch.zeros_like(labels), shuffled(labels))
        return noisy[:, partners], paired


class IBR(Redundancy):
    r"""`IB`, and members that say different things of the image (Ramé and Cord, 2021, an ablation of DICE).

    .. math:: L_{\mathrm{IB}} + \frac{\delta}{M - 1} \sum_{m < m'} \hat R_{m m'}, \qquad \hat R_{m m'} \approx
        I(Z_m; Z_{m'})

    with the loss of `IB`, and the redundancy estimated as in `DICE`, but by a discriminator that is not told the class,
    whose product pairs are of any two images of the batch. What members have in common because both know the class is
    redundant too, so the accuracy of members is worked against.

    Draws, deviations, log, state, cost and options are those of `DICE`, but for the queue, which this does not need. In
    a batch of one there is no product pair, and the discriminator waits.

    Args:
        features: The number :math:`d` of features of a member.
        classes: The number of classes.
        members: The number :math:`M` of members, 2 at least.
        delta: :math:`\delta`. The default is a decision of this library; less than 0 makes members alike.
        beta: :math:`\beta` of the bottleneck.
        tau: Bound of the log-ratio.
        clip: How it is bounded, ``"soft"`` or ``"hard"``.
        pairs: ``"per_member"`` as above, or ``"mean"`` over pairs.
        ramp_steps: Updates in which :math:`\delta` and :math:`1 / \beta` grow from 0; 0 for none.
        ramp: Shape of that of :math:`\delta`, ``"exp"`` or ``"linear"``.
        discriminator_steps: Updates of the discriminator per update of the members.
        discriminator_learning_rate: That of its RMSprop.
        hidden: Widths of its layers.
        embedding: Not used, as there are no labels.
        seed: Of the weights of the discriminator and the vectors.

    Raises:
        InputError: As in `DICE`.

    References:
        Ramé and Cord (2021), DICE: diversity in deep ensembles via conditional redundancy adversarial estimation.
    """

    of_class = False
    conditional = False


class CEBR(Redundancy):
    r"""`CEB`, and members that say different things of the image (Ramé and Cord, 2021, an ablation of DICE).

    .. math:: L_{\mathrm{CEB}} + \frac{\delta}{M - 1} \sum_{m < m'} \hat R_{m m'}, \qquad \hat R_{m m'} \approx
        I(Z_m; Z_{m'})

    As `IBR`, with the loss of `CEB`: features are drawn to the centre of their class and told apart all the same. At
    equal weight it reaches the diversity of `DICE` with weaker members.

    Args:
        features: The number :math:`d` of features of a member.
        classes: The number of classes.
        members: The number :math:`M` of members, 2 at least.
        delta: :math:`\delta`. The default is a decision of this library; less than 0 makes members alike.
        beta: :math:`\beta` of the bottleneck.
        tau: Bound of the log-ratio.
        clip: How it is bounded, ``"soft"`` or ``"hard"``.
        pairs: ``"per_member"`` as above, or ``"mean"`` over pairs.
        ramp_steps: Updates in which :math:`\delta` and :math:`1 / \beta` grow from 0; 0 for none.
        ramp: Shape of that of :math:`\delta`, ``"exp"`` or ``"linear"``.
        discriminator_steps: Updates of the discriminator per update of the members.
        discriminator_learning_rate: That of its RMSprop.
        hidden: Widths of its layers.
        embedding: Not used, as the discriminator is not told labels.
        seed: Of the weights of the discriminator and the table.

    Raises:
        InputError: As in `DICE`.

    References:
        Ramé and Cord (2021), DICE: diversity in deep ensembles via conditional redundancy adversarial estimation.
    """

    of_class = True
    conditional = False


class DICE(Redundancy):
    r"""Members that share the class and nothing else (Ramé and Cord, 2021).

    With the noisy features :math:`z_m` of each of :math:`M` members, and the loss of `CEB`,

    .. math:: L_{\mathrm{CEB}} + \frac{\delta}{M - 1} \sum_{m < m'} \hat R_{m m'}, \qquad
        \hat R_{m m'} = \frac1n \sum_{i = 1}^{n} \tau \tanh \frac{\ell(z_{m i}, z_{m' i}, y_i)}{\tau}
        \approx I(Z_m; Z_{m'} \mid Y)

    where :math:`\ell` is the logit of a discriminator. After each update of the members it is trained, four times, to
    tell features of one image from those of two images of one class, all detached, with :math:`\pi(i)` drawn anew:

    .. math:: -\frac12 \, \mathrm{mean} \log \mathrm{sigmoid} \, \ell(z_{m i}, z_{m' i}, y_i)
        - \frac12 \, \mathrm{mean} \log \mathrm{sigmoid} \big({-\ell(z_{m i}, z_{m' \pi(i)}, y_i)}\big)

    averaged over pairs. Its best logit is the log-ratio :math:`\log p(z, z' \mid y) - \log p(z \mid y) p(z' \mid y)`,
    whose mean is the conditional redundancy in nats. One discriminator serves all pairs, and is a perceptron on both
    features and an embedding of the label. The second term of the Donsker-Varadhan bound is dropped, as in the paper;
    `redundancy_estimate` has it.

    It makes errors of members differ without working against what each knows of the class, for ensembles in and out of
    distribution.

    **Partners.** In a batch of 128 of CIFAR-100, a quarter of the samples are alone in their class. ``"queue"``: one
    of the other samples of the class in the batch and of the last 16 of that class before it, each as likely. Those of
    the queue are from earlier updates, so from slightly older members, and an image that comes back after an epoch may
    be its own partner, with another augmentation and noise. ``"batch"``: of the batch alone. ``"balanced"``: the next
    of its class in the batch, cyclically, which wants batches with several samples per class. A sample without a
    partner is left out of both means; if all are, the loss of the discriminator is 0, and it stays as it is.

    **Deviations.** Those of `IB`: the mean of :math:`z` is the feature itself, where the method as described has one
    more linear layer, and the optimizer's weight decay acts on table and scales too. The queue, the ramps and the
    default :math:`\beta` are decisions of this library; widths, rates and :math:`\tau` are not in the thesis, and only
    partly confirmed by the code of others. With ``"hard"`` clipping, a pair beyond :math:`\tau` gets no gradient.

    Predictions take no noise and no discriminator: members are plain networks, and their logits are averaged.

    A missing class needs no special case. In a batch of one, only the queue has partners. The order of samples matters
    only in the draws; that of members matters a little, as the discriminator sees the earlier one first. Rates,
    log-ratios and the discriminator are in single precision at least, also under autocast. All draws are from torch's
    global generator of the device, like dropout, which the trainer seeds for every step; nothing waits for the device.
    `SAM` cannot wrap it, as it makes its own step.

    Logged: ``nll``, ``compression`` and ``redundancy``, which with their weights are the loss; of the updates of the
    discriminator the mean ``discriminator_loss`` and ``discriminator_accuracy``, one half if there was no pair to tell.
    If it stays above 0.98, a lower ``discriminator_learning_rate`` helps, if at one half, a higher one.

    State: as `CEB`, the discriminator with the moments of its optimizer, and the queue, :math:`16 K M d` numbers: 0.4
    million for four members with 64 features and 100 classes, but 98 million for three with 2048 and 1000;
    ``queue_size`` or another choice of partners makes that less. An update costs one forward and one backward pass of
    the network, one of the discriminator on :math:`n M (M - 1) / 2` pairs, and four on twice as many.

    Args:
        features: The number :math:`d` of features of a member.
        classes: The number :math:`K` of classes.
        members: The number :math:`M` of members, 2 at least.
        delta: :math:`\delta`, from the thesis; 0.05 to 0.6 are worth a try. Less than 0 makes members alike.
        beta: :math:`\beta` of the bottleneck; 10 to 1000 are worth a try.
        tau: :math:`\tau`, the bound of the log-ratio.
        clip: ``"soft"`` as above, or ``"hard"``: the log-ratio cut off at :math:`\pm \tau`.
        pairs: ``"per_member"`` as above, where the pressure on a member does not depend on :math:`M`, or ``"mean"``
            over pairs, where it becomes less; the same for two members.
        ramp_steps: Updates in which :math:`\delta` and :math:`1 / \beta` grow from 0; 0 for none. Published: 80 of 300
            epochs, which on CIFAR with batches of 128 are 31 280 updates.
        ramp: Shape of that of :math:`\delta`: ``"exp"``, which is :math:`e^{-5 (1 - t)^2}`, or ``"linear"``. That of
            :math:`1 / \beta` is linear.
        discriminator_steps: Updates of the discriminator per update of the members.
        discriminator_learning_rate: That of its RMSprop.
        hidden: Widths of its layers.
        embedding: Width of its embedding of labels.
        partners: ``"queue"``, ``"balanced"`` or ``"batch"``.
        queue_size: Rows of the queue per class.
        seed: Of the weights of the discriminator and the table: two equal objectives give equal results.

    Raises:
        InputError: If an option is out of its range, or there is one member; in a step, if the network is not of these
            sizes or has no classifier per member.

    References:
        Ramé and Cord (2021), DICE: diversity in deep ensembles via conditional redundancy adversarial estimation;
        thesis, chapter 3.
    """

    of_class = True
    conditional = True

    def __init__(
        self,
        *,
        features: int,
        classes: int,
        members: int,
        delta: int | float = 0.2,
        beta: int | float = 100.0,
        tau: int | float = 10.0,
        clip: str = "soft",
        pairs: str = "per_member",
        ramp_steps: int = 0,
        ramp: str = "exp",
        discriminator_steps: int = 4,
        discriminator_learning_rate: int | float = 3e-3,
        hidden: Sequence[int] = (256, 256, 100),
        embedding: int = 64,
        partners: str = "queue",
        queue_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(
            features=features,
            classes=classes,
            members=members,
            delta=delta,
            beta=beta,
            tau=tau,
            clip=clip,
            pairs=pairs,
            ramp_steps=ramp_steps,
            ramp=ramp,
            discriminator_steps=discriminator_steps,
            discriminator_learning_rate=discriminator_learning_rate,
            hidden=hidden,
            embedding=embedding,
            seed=seed,
        )
        self.partners = check_choice("DICE", "partners", partners)
        self.queue_size = check_whole("DICE", "queue_size", queue_size, 1)
        if self.partners == "queue":
            self.queue = PartnerQueue(self.classes, self.queue_size, self.members, self.features)

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {**super().configuration(), "partners": self.partners, "queue_size": self.queue_size}

    def drawn_partners(self, noisy: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The features of another sample of the class for each, and whether there is one."""
        if self.queue is not None:
            return self.queue.draw(noisy, labels)
        order = torch.arange(len(labels), device=labels.device)
        partners, paired = partners_in(labels, order if self.partners == "balanced" else shuffled(labels))
        return noisy[:, partners], paired


def shuffled(labels: Tensor) -> Tensor:
    """Their places in random order."""
    return torch.rand(len(labels), device=labels.device).argsort(stable=True)


def check_choice(owner: str, name: str, value: str) -> str:
    """One of the values of an option.

    Raises:
        InputError: For another.
    """
    if value not in _CHOICES[name]:
        raise InputError(f"{owner} needs {name} to be one of {', '.join(_CHOICES[name])}, got {value!r}.")
    return value
