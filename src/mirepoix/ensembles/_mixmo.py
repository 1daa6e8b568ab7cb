"""Members that share one core, each with an image of its own, mixed in one sum: MIMO, Linear-MixMo, Cut-MixMo."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.ensembles._joint_objective import JointObjective
from mirepoix.ensembles._mixing_masks import (
    cut_masks,
    descended,
    drawn_coefficients,
    drawn_orders,
    linear_masks,
    loss_weights,
    realised,
)
from mirepoix.objectives._boxes import box, corners, drawn_centres
from mirepoix.objectives._joint import single
from mirepoix.objectives._scheduled import Scheduled, check_count
from mirepoix.types import Batch, InputError

__all__ = ["MIMO", "CutMixMo", "LinearMixMo", "MixMo"]


class MixMo(JointObjective, Scheduled):
    """What all of them do; they differ in their options."""

    def __init__(
        self,
        *,
        alpha: int | float = 2,
        r: int | float = 3,
        cut_probability: int | float = 0.5,
        total_steps: int | None = None,
        repetition: int = 1,
        input_repetition: int | float = 0,
        cutmix_probability: int | float = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.alpha = _number(name, "alpha", alpha, -math.inf, math.inf)
        self.r = _number(name, "r", r, -math.inf, math.inf)
        if self.r <= 0:
            raise InputError(
                f"{name} needs r to be positive, got {r}; 3 is usual, and 1 is not to rebalance."
            )
        self.cut_probability = _number(name, "cut_probability", cut_probability, 0, 1)
        self.total_steps = None if total_steps is None else check_count(name, "total_steps", total_steps)
        if self.total_steps == 0:
            raise InputError(f"{name} needs total_steps to be 1 or more, got 0; leave it out for no descent.")
        self.repetition = check_count(name, "repetition", repetition)
        if self.repetition < 1:
            raise InputError(
                f"{name} needs repetition to be 1 or more, got {repetition}; 1 is not to repeat."
            )
        self.input_repetition = _number(name, "input_repetition", input_repetition, 0, 1)
        self.cutmix_probability = _number(name, "cutmix_probability", cutmix_probability, 0, 1)

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {
            "alpha": self.alpha,
            "r": self.r,
            "cut_probability": self.cut_probability,
            "total_steps": self.total_steps,
            "repetition": self.repetition,
            "input_repetition": self.input_repetition,
            "cutmix_probability": self.cutmix_probability,
        }

    def resets(self) -> Collection[int]:
        """None: the descent is smooth."""
        return ()

    def probability(self) -> float:
        """That of a cut mask in this update; the last of ``total_steps`` has 0."""
        if self.total_steps is None:
            return self.cut_probability
        return descended(self.cut_probability, (self.updates + 1) / self.total_steps)

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The weighted cross-entropies of all members, each on images of its own, a scalar in nats."""
        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        members = _members(type(self).__name__, model)
        device, dtype = labels.device, single(images).dtype
        # All draws are made on the processor, so that they are the same for every device.
        orders = drawn_orders(members, len(labels), self.repetition, self.input_repetition)
        size = model.mask_size(images)  # type: ignore[operator]
        masks = self.drawn_masks(members, orders.shape[1], size, torch.empty((), dtype=dtype, device=device))
        orders = orders.to(device)
        coefficients = realised(masks)
        inputs = [images[order] for order in orders]
        partners = None
        if self.cutmix_probability > 0:
            inputs, partners, shares = self.cut_and_pasted(images, inputs, masks)
        outputs = model(inputs, masks)
        targets = labels[orders]  # (members, samples)
        with torch.autocast(device.type, enabled=False):
            losses = _cross_entropies(outputs.logits, targets)
            if partners is not None:
                others = _cross_entropies(outputs.logits, labels[partners])
                losses = shares * losses + (1 - shares) * others
            weights = loss_weights(coefficients, self.r)
            loss = (weights * losses).mean(1).sum()
        self.parts = {"nll": losses.detach().mean(1).sum()}
        return loss

    def drawn_masks(self, members: int, samples: int, size: tuple[int, int], like: Tensor) -> Tensor:
        """Masks of one kind and one order of roles for the batch, with coefficients and a box for each sample."""
        coefficients = drawn_coefficients(self.alpha, members, samples)
        cut = torch.rand((), dtype=torch.float64).item() < self.probability()
        roles = torch.randperm(members).to(like.device)
        if not cut:
            return linear_masks(coefficients.to(like))[roles]
        edges = corners(coefficients[0], drawn_centres(samples, size), size).to(like.device)
        return cut_masks(coefficients.to(like), box(edges, size))[roles]

    def cut_and_pasted(
        self, images: Tensor, inputs: Sequence[Tensor], masks: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Images with boxes of others in them, where the others are in the batch, and the share of the own labels.

        Of the pasted box only that counts which the mask of the member shows. Where it is more than half of what is
        shown, box and surroundings change places.
        """
        members, samples = masks.shape[:2]
        size = (images.shape[2], images.shape[3])
        chosen = torch.rand(members, samples, dtype=torch.float64) < self.cutmix_probability
        area = torch.rand(members, samples, dtype=torch.float64) * chosen  # others get an empty box
        edges = [corners(of_member, drawn_centres(samples, size), size) for of_member in area]
        partners = torch.randint(len(images), (members, samples)).to(images.device)
        chosen = chosen.to(images.device)
        pasted, shares = [], []
        for place, own in enumerate(inputs):
            inside = box(edges[place].to(images.device), size)  # (samples, 1, height, width)
            kept = 1 - inside.to(masks.dtype)
            shown = F.adaptive_avg_pool2d(kept, (masks.shape[3], masks.shape[4]))
            share = (shown * masks[place]).mean((1, 2, 3)) / (masks[place].mean((1, 2, 3)) + 1e-8)
            swapped = chosen[place] & (share < 0.5)
            kept = torch.where(swapped[:, None, None, None], 1 - kept, kept).to(own.dtype)
            share = torch.where(swapped, 1 - share, share)
            shares.append(torch.where(chosen[place], share, 1))
            pasted.append(kept * own + (1 - kept) * images[partners[place]])
        return pasted, partners, torch.stack(shares)


class MIMO(MixMo):
    r"""Multi-input multi-output training: images of the members are added up (Havasi et al., 2021).

    With :math:`x_i` the image of member :math:`i` of :math:`M`, drawn independently of those of the others,
    :math:`c_i` its encoder, :math:`C` the core and :math:`d_i` its classifier
    (`mirepoix.models.MultiInputNetwork`),

    .. math:: \sum_{i = 1}^{M} \mathrm{CE}\Big(d_i\big(C(c_1(x_1) + \dots + c_M(x_M))\big), y_i\Big)

    averaged over samples. The members become nearly independent paths through one network, so that an ensemble is
    predicted in one pass: all encoders get the same image, and logits are averaged, where the release averages
    probabilities. It needs a wide network, with room for all of them.

    It is `LinearMixMo` with equal coefficients. Batches, draws, state, cost, corner cases are those of `CutMixMo`.

    Args:
        repetition: Times :math:`b` that each image is in a batch, 4 in the paper.
        input_repetition: Share of the batch in which all members see the same image, from 0 to 1. It makes members
            less independent, for networks that are too small for them.
        cutmix_probability: That of a box of another image in the image of a member, see `CutMixMo`.

    Raises:
        InputError: As in `CutMixMo`.

    References:
        Havasi et al. (2021), Training independent subnetworks for robust prediction.
    """

    def __init__(
        self,
        *,
        repetition: int = 1,
        input_repetition: int | float = 0,
        cutmix_probability: int | float = 0,
    ) -> None:
        super().__init__(
            alpha=0,
            r=1,
            cut_probability=0,
            repetition=repetition,
            input_repetition=input_repetition,
            cutmix_probability=cutmix_probability,
        )

    def configuration(self) -> Mapping[str, Any]:
        """The options."""
        kept = ("repetition", "input_repetition", "cutmix_probability")
        return {name: value for name, value in super().configuration().items() if name in kept}


class LinearMixMo(MixMo):
    r"""Mixing by interpolation: images of the members are added up, with random coefficients (Ramé et al., 2021).

    .. math:: \sum_{i = 1}^{M} w_i \, \mathrm{CE}\Big(d_i\big(C(M \textstyle\sum_j \kappa_j \, c_j(x_j))\big), y_i\Big),
        \qquad w_i = M \, \frac{\kappa_i^{1 / r}}{\sum_j \kappa_j^{1 / r}}

    with one draw :math:`\kappa \sim \mathrm{Dirichlet}(\alpha, \dots, \alpha)` per sample. It is `CutMixMo` without
    cutting, and `MIMO` for equal coefficients.

    Args:
        alpha: :math:`\alpha`, from the paper; 0 or less for coefficients of 1/M.
        r: :math:`r`, from the paper: 1 weighs members by their coefficients, much more weighs all the same.
        repetition: Times :math:`b` that each image is in a batch; 2 and 4 in the paper.
        input_repetition: Share of the batch in which all members see the same image, from 0 to 1.
        cutmix_probability: That of a box of another image in the image of a member, see `CutMixMo`.

    Raises:
        InputError: As in `CutMixMo`.

    References:
        Ramé et al. (2021), MixMo: mixing multiple inputs for multiple outputs via deep subnetworks.
    """

    def __init__(
        self,
        *,
        alpha: int | float = 2,
        r: int | float = 3,
        repetition: int = 1,
        input_repetition: int | float = 0,
        cutmix_probability: int | float = 0,
    ) -> None:
        super().__init__(
            alpha=alpha,
            r=r,
            cut_probability=0,
            repetition=repetition,
            input_repetition=input_repetition,
            cutmix_probability=cutmix_probability,
        )

    def configuration(self) -> Mapping[str, Any]:
        """The options."""
        dropped = ("cut_probability", "total_steps")
        return {name: value for name, value in super().configuration().items() if name not in dropped}


class CutMixMo(MixMo):
    r"""Mixing by patches: one member is seen in a box, the others around it (Ramé et al., 2021).

    With :math:`x_i` the image of member :math:`i` of :math:`M`, drawn independently of those of the others,
    :math:`c_i` its encoder, :math:`C` the core, :math:`d_i` its classifier (`mirepoix.models.MultiInputNetwork`), and
    masks :math:`m_i` with the sum 1 at every place,

    .. math:: \sum_{i = 1}^{M} w_i \, \mathrm{CE}\Big(d_i\big(C(M \textstyle\sum_j m_j \odot c_j(x_j))\big), y_i\Big),
        \qquad w_i = M \, \frac{\kappa_i^{1 / r}}{\sum_j \kappa_j^{1 / r}}

    averaged over samples, where :math:`\kappa_i` is the mean of :math:`m_i`.

    **Masks.** Draws :math:`\kappa \sim \mathrm{Dirichlet}(\alpha, \dots, \alpha)` per sample. With probability
    ``cut_probability``, drawn once per batch, the first role has a box of area :math:`\kappa_1` at a random place, cut
    off at the frame, and the others share what is around it in proportion to their :math:`\kappa`; else the masks are
    the coefficients. Then :math:`\kappa` is the mean that masks really have, about 0.31 for a box rather than 0.5. A
    random order of the batch says which member has which role.

    A prediction takes one pass: all encoders get the same image, with the plain sum, and logits are averaged. That is
    the linear mask, so in the last twelfth of a training cutting is given up: with ``total_steps``, its probability
    falls to 0 in a straight line. It falls at every update, in the paper at every epoch. After ``total_steps`` it
    stays 0.

    **Batches.** Each member sees the joint batch in a random order of its own, :math:`b` times over. So a batch of
    :math:`n` images makes :math:`n b` sums. Published numbers are for 64 sums, so a batch size of 64 / b, and for the
    learning rate of 64 images divided by :math:`b`, and a warm-up of :math:`b` times as many updates, all of which is
    up to the caller: nothing but the batch is changed here. Epochs become :math:`b` times as many updates by
    themselves.

    **Pixels.** With probability ``cutmix_probability``, 0.5 in the paper, the image of a member gets a box of another
    image of the batch, of uniform area, before the encoders (CutMix), and its label is the mixture
    :math:`\lambda y + (1 - \lambda) y'`. :math:`\lambda` is the share of the own image in what the member's mask shows
    of both; if it is less than one half, both change places. The release takes the other image from the whole
    training set.

    It gains most in wide networks, and needs more epochs than one network does. Members that begin as copies (of a
    pre-trained file) have encoders that only their classifiers and images tell apart.

    A `MultiInputNetwork` of one input is trained as by `mirepoix.objectives.ERM`, in random order; a plain network is
    refused. A batch of one image shows it to all members. A missing class needs no special case. Coefficients, masks
    and losses are in single precision at least, also under autocast. All draws are from torch's global generator of the
    processor, whatever the device, which the trainer seeds for every step. `SAM` cannot wrap it, as it makes its own
    step.

    Logged: ``nll``, the sum over members of their mean cross-entropies, without weights.

    State: the number of updates. An update costs :math:`b` times that of a plain network with the same batch, and
    :math:`M - 1` more convolutions and classifiers; a prediction costs that of one plain network, and these.

    Args:
        alpha: :math:`\alpha`, from the paper; 0 or less for coefficients of 1/M.
        r: :math:`r`, from the paper: 1 weighs members by their coefficients, much more weighs all the same.
        cut_probability: That of boxes in a batch, from the paper; 0.5 to 0.6 was best.
        total_steps: Updates of the training, for the descent at its end; without it there is none.
        repetition: :math:`b`, 2 and 4 in the paper.
        input_repetition: Share of the batch in which all members see the same image, from 0 to 1; 0 in the paper.
        cutmix_probability: That of a box of another image in the image of a member.

    Raises:
        InputError: If an option is out of its range; in a step, if the network has no inputs for each member.

    References:
        Ramé et al. (2021), MixMo: mixing multiple inputs for multiple outputs via deep subnetworks; thesis, appendix D.
    """


def _members(name: str, model: nn.Module) -> int:
    """How many inputs there are."""
    if not hasattr(model, "mixed"):
        raise InputError(
            f"{name} gives each member an image of its own, so it needs a network of several inputs, got "
            f"{type(model).__name__}; mirepoix.models.NetworkSpec(inputs=2) makes one."
        )
    return int(model.members)  # type: ignore[arg-type]


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each member and sample, in nats."""
    losses = F.cross_entropy(single(logits).flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view_as(labels)


def _number(owner: str, name: str, value: int | float, lowest: int | float, highest: int | float) -> float:
    """A finite number in a range, both ends included."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not lowest <= value <= highest:
        expected = "a finite number" if math.isinf(lowest) else f"a number from {lowest:g} to {highest:g}"
        raise InputError(f"{owner} needs {name} to be {expected}, got {value!r}.")
    return float(value)
