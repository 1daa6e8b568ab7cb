"""Members that pass on noisy features, whose information on the image is bounded: IB and CEB."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.ensembles._joint_objective import JointObjective, cross_entropies, outputs_and_labels
from mirepoix.objectives._joint import single
from mirepoix.objectives._scheduled import Scheduled, check_count
from mirepoix.types import Batch, InputError, Outputs

__all__ = ["CEB", "IB", "Bottleneck", "Bounded", "check_number", "check_whole", "ramped", "rate"]

SMALLEST_SCALE = 1e-4
FIRST_SCALE = 0.5


class Bounded(NamedTuple):
    """A loss, the noisy features (members, samples, features) that it is of, their mean and scale, and the labels."""

    loss: Tensor
    mean: Tensor
    scale: Tensor
    noisy: Tensor
    labels: Tensor


class Bottleneck(JointObjective, Scheduled):
    """Noisy features and the information in them; the kinds differ in what the features are compared with."""

    of_class: ClassVar[bool]
    """Whether the centres are those of the classes; else each member has one."""

    def __init__(
        self,
        *,
        features: int,
        classes: int,
        members: int,
        beta: int | float = 100.0,
        ramp_steps: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.features = check_whole(name, "features", features, 1)
        self.classes = check_whole(name, "classes", classes, 1)
        self.members = check_whole(name, "members", members, 1)
        self.beta = check_number(name, "beta", beta)
        if self.beta <= 0:
            raise InputError(
                f"{name} needs a positive beta, got {beta}; 100 is usual, and 1e6 hardly compresses."
            )
        self.ramp_steps = check_count(name, "ramp_steps", ramp_steps)
        self.seed = int(seed)
        # The first scale is the same whatever the features, as the weights of its layer are zero.
        self.scale_weight = nn.Parameter(torch.zeros(self.members, self.features, self.features))
        self.scale_bias = nn.Parameter(torch.zeros(self.members, self.features))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            centres = torch.randn(self.members, self.classes if self.of_class else 1, self.features)
        self.centres = nn.Parameter(0.01 * centres)

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {
            "features": self.features,
            "classes": self.classes,
            "members": self.members,
            "beta": self.beta,
            "ramp_steps": self.ramp_steps,
            "seed": self.seed,
        }

    def resets(self) -> Collection[int]:
        """None: the ramps are smooth."""
        return ()

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The members' cross-entropies on noisy features plus the weighted rates, a scalar in nats."""
        return self.bounded(model, batches).loss

    def bounded(self, model: nn.Module, batches: Sequence[Batch]) -> Bounded:
        """That loss, with the features that it is of."""
        outputs, labels = outputs_and_labels(self, model, batches)
        classifiers = self.classifiers(model, outputs)
        with torch.autocast(labels.device.type, enabled=False):
            mean = single(outputs.features)
            scale = self.scale(mean)
            noisy = mean + scale * torch.randn_like(mean)
            centres = self.centres[:, labels] if self.of_class else self.centres
            compression = rate(mean, scale, centres).mean(1).sum()
        logits = torch.stack([own(z) for own, z in zip(classifiers, noisy, strict=True)])
        nll = cross_entropies(logits, labels).sum()
        share = ramped("linear", self.updates, self.ramp_steps)
        self.parts = {"nll": nll.detach(), "compression": compression.detach()}
        return Bounded(nll + share / self.beta * compression, mean, scale, noisy, labels)

    def scale(self, mean: Tensor) -> Tensor:
        """The standard deviation of each feature, from all features of its member."""
        shift = math.log(math.expm1(FIRST_SCALE - SMALLEST_SCALE))
        raw = torch.baddbmm(self.scale_bias[:, None], mean, self.scale_weight)
        return F.softplus(raw + shift) + SMALLEST_SCALE

    def classifiers(self, model: nn.Module, outputs: Outputs) -> nn.ModuleList:
        """Those of the members, if the network is one that this was made for."""
        name, found = type(self).__name__, getattr(model, "classifier", None)
        members, _, features = outputs.features.shape
        sizes = {"members": members, "features": features, "classes": outputs.logits.shape[2]}
        if sizes != {option: getattr(self, option) for option in sizes}:
            made = ", ".join(f"{option}={getattr(self, option)}" for option in sizes)
            needed = ", ".join(f"{option}={size}" for option, size in sizes.items())
            raise InputError(f"{name} was made with {made}, got a network of {needed}; make it with these.")
        if not isinstance(found, nn.ModuleList):
            raise InputError(
                f"{name} classifies noisy features, so it needs a network with a classifier per member, "
                f"model.classifier[m], got {type(found).__name__}; mirepoix.models.BranchNetwork is one."
            )
        return found


class IB(Bottleneck):
    r"""Information bottleneck for each member (Alemi et al., 2017): features that hold little of the image.

    With :math:`h_m(x)` the features of member :math:`m` of :math:`M`, :math:`\sigma_m(x)` a standard deviation for each
    of them, and one draw of noise :math:`\epsilon \sim N(0, I)` per sample and member,

    .. math:: \sum_{m = 1}^{M} \frac{1}{n} \sum_{i = 1}^{n} \Big( -\log p_m(y_i \mid z_{m i})
        + \frac{1}{\beta} D_{m i} \Big), \qquad z_{m i} = h_m(x_i) + \sigma_m(x_i) \, \epsilon_{m i}

    where the rate :math:`D`, in nats, bounds the information that :math:`z` has on :math:`x`:

    .. math:: D_{m i} = \mathrm{KL}\big(N(h_m, \sigma_m^2) \,\big\|\, N(b_m, I)\big)
        = \frac12 \sum_{j = 1}^{d} \big( \sigma_j^2 - \log \sigma_j^2 - 1 + (h_j - b_j)^2 \big)

    with :math:`b_m` one learned vector per member. A larger :math:`\beta` compresses less.

    It regularises each member: what an image says beyond its class is dropped. It does nothing for diversity; it is
    here as the ablation of `DICE` that neither knows the class nor the other members.

    Predictions take :math:`z = h`, without noise: members are plain networks, and their logits are averaged.

    **Deviations.** The mean of :math:`z` is the feature of the network itself, with no linear layer between; so what is
    after a ReLU stays positive. :math:`\sigma = \mathrm{softplus}(W h + a + c) + 10^{-4}` with :math:`W` and :math:`a`
    zero at first and :math:`c` such that :math:`\sigma = 0.5` then. Scales and vectors are parameters of the objective,
    which the optimizer of the network holds, so that its weight decay acts on them too.

    One member is fine, and so is a batch of one. The order of samples or members matters only in the draws. Rates and
    noisy features are in single precision at least, also under autocast. The noise comes from torch's global generator
    of the device, like dropout, which the trainer seeds for every step.

    Logged: ``nll``, the sum of the cross-entropies, and ``compression``, the sum of the mean rates.

    State: the parameters, :math:`M (d^2 + 2 d)` numbers, and the number of updates. An update costs one forward and
    one backward pass of the network, and of a linear layer of :math:`d` by :math:`d` per member.

    Args:
        features: The number :math:`d` of features of a member.
        classes: The number of classes.
        members: The number :math:`M` of members.
        beta: :math:`\beta`. The default is a decision of this library; 10 to 1000 are worth a try.
        ramp_steps: Updates in which :math:`1 / \beta` grows from 0, linearly; 0 for none. Schedules of papers are in
            epochs: 80 epochs of CIFAR with batches of 128 are 31 280 updates.
        seed: Of the vectors, which depend on nothing else: two equal objectives give equal results.

    Raises:
        InputError: If an option is out of its range; in a step, if the network is not of these sizes or has no
            classifier per member.

    References:
        Alemi et al. (2017), Deep variational information bottleneck; Ramé and Cord (2021), DICE: diversity in deep
        ensembles via conditional redundancy adversarial estimation, where it is an ablation.
    """

    of_class = False


class CEB(Bottleneck):
    r"""Conditional entropy bottleneck for each member (Fischer, 2020): features that hold little but the class.

    As `IB`, but the vector that features are compared with is that of the class, :math:`b_m(y)`, from a learned table:

    .. math:: \sum_{m = 1}^{M} \frac{1}{n} \sum_{i = 1}^{n} \Big( -\log p_m(y_i \mid z_{m i})
        + \frac{1}{\beta} \mathrm{KL}\big(N(h_m(x_i), \sigma_m^2(x_i)) \,\big\|\, N(b_m(y_i), I)\big) \Big)

    so what :math:`z` has to say of the class costs nothing: the rate bounds :math:`I(Z; X \mid Y)`. Symbols, noise,
    predictions, deviations, log, cost and options are those of `IB`; the table has :math:`K d` numbers per member. A
    class that is missing in a batch leaves its row as it is, but for weight decay and momentum.

    It is the part of `DICE` that does not know the other members.

    Args:
        features: The number :math:`d` of features of a member.
        classes: The number :math:`K` of classes.
        members: The number :math:`M` of members.
        beta: :math:`\beta`. The default is a decision of this library; 10 to 1000 are worth a try.
        ramp_steps: Updates in which :math:`1 / \beta` grows from 0, linearly; 0 for none.
        seed: Of the table, which depends on nothing else.

    Raises:
        InputError: As in `IB`.

    References:
        Fischer (2020), The conditional entropy bottleneck; Ramé and Cord (2021), DICE: diversity in deep ensembles via
        conditional redundancy adversarial estimation, where it is an ablation.
    """

    of_class = True


def rate(mean: Tensor, scale: Tensor, centre: Tensor) -> Tensor:
    """The divergence of a diagonal Gaussian from one of unit variance, summed over the last axis, in nats."""
    square = scale.square()
    # Appendix C.2.1 of the thesis prints 1 + s^2 - log s^2: one nat too many per dimension, with the same gradient.
    return 0.5 * (square - square.log() - 1 + (mean - centre).square()).sum(-1)


def ramped(shape: str, update: int, steps: int) -> float:
    """The share of its final value that a weight has at an update, from 0."""
    done = min(update / steps, 1.0) if steps else 1.0
    return done if shape == "linear" else math.exp(-5 * (1 - done) ** 2)


def check_whole(owner: str, name: str, value: int | float, least: int) -> int:
    """A whole number.

    Raises:
        InputError: For what is none, or is too small.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value < math.inf or value != int(value):
        raise InputError(f"{owner} needs {name} to be a whole number from {least}, got {value!r}.")
    return int(value)


def check_number(owner: str, name: str, value: int | float) -> float:
    """A finite number.

    Raises:
        InputError: For what is none.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{owner} needs {name} to be a finite number, got {value!r}.")
    return float(value)
