"""What two members' features say twice: a discriminator of joint from product samples estimates it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import single
from mirepoix.types import InputError

__all__ = [
    "Discriminator",
    "PartnerQueue",
    "RedundancyEstimate",
    "clipped",
    "discrimination",
    "partners_in",
    "redundancy_estimate",
]

_REDRAWS = 10


class Discriminator(nn.Module):
    """The logit that two features come from one image; its value is the log-ratio of joint to product density.

    A perceptron with leaky ReLUs on both features and, if there are ``classes``, an embedding of the label. Its weights
    depend on ``seed`` alone.
    """

    def __init__(
        self, inputs: int, *, classes: int | None, embedding: int, hidden: Sequence[int], seed: int
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.embedding = None if classes is None else nn.Embedding(classes, embedding)
            sizes = [inputs + (0 if classes is None else embedding), *hidden]
            layers: list[nn.Module] = []
            for size, following in pairwise(sizes):
                layers += [nn.Linear(size, following), nn.LeakyReLU(0.2)]
            self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
        """Logits (pairs, samples) of features (pairs, samples, features); labels (samples) are of all pairs."""
        inputs = [first, second]
        if self.embedding is not None:
            inputs.append(self.embedding(labels).expand(len(first), -1, -1))
        logits: Tensor = self.layers(torch.cat(inputs, -1)).squeeze(-1)
        return logits


class PartnerQueue(nn.Module):
    """Per class the last features of all members, from which partners are drawn where the batch has few of a class.

    Drawing and pushing do not wait for the device.
    """

    rows: Tensor
    pushed: Tensor

    def __init__(self, classes: int, size: int, members: int, features: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(classes, size, members, features))
        self.register_buffer("pushed", torch.zeros(classes, dtype=torch.int64))

    def draw(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """For each sample the features of another one of its class, all members'; and whether there is one.

        Every other sample of the class in the batch and every row of the class in the queue is as likely.
        """
        samples, size = len(labels), self.rows.shape[1]
        places = torch.arange(samples, device=labels.device)
        others = (labels[:, None] == labels) & (places[:, None] != places)
        filled = torch.arange(size, device=labels.device) < self.pushed[labels][:, None]
        open_ = torch.cat([others, filled], 1)  # (samples, samples + size)
        chosen = torch.rand(open_.shape, device=labels.device).masked_fill(~open_, -1.0).argmax(1)
        near = features[:, chosen.clamp(max=samples - 1)]  # (members, samples, features)
        far = self.rows[labels, (chosen - samples).clamp(min=0)].movedim(1, 0)
        return torch.where((chosen < samples)[:, None], near, far), open_.any(1)

    def push(self, features: Tensor, labels: Tensor) -> None:
        """Each class gets its samples in their order, and forgets the oldest."""
        classes, size = self.rows.shape[:2]
        places = torch.arange(len(labels), device=labels.device)
        before = (labels[:, None] == labels).tril(-1).sum(1)  # of the same class, in this batch
        slots = labels * size + (self.pushed[labels] + before) % size
        # Where two samples share a slot, the later one has it; -1 where there is none.
        last = torch.full((classes * size,), -1, device=labels.device)
        last = last.scatter_reduce(0, slots, places, "amax").view(classes, size)
        fresh = features.movedim(0, 1)[last.clamp(min=0)].to(self.rows)
        self.rows.copy_(torch.where((last < 0)[:, :, None, None], self.rows, fresh))
        self.pushed.add_((labels == torch.arange(classes, device=labels.device)[:, None]).sum(1))


def partners_in(labels: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample the next of its class in this order, the first after the last; and whether it is another one.

    In a random order, every other sample of the class is as likely.
    """
    order = order[labels[order].argsort(stable=True)]
    grouped, places = labels[order], torch.arange(len(labels), device=labels.device)
    first = torch.searchsorted(grouped, grouped)
    after = torch.searchsorted(grouped, grouped, right=True)
    following = torch.where(places + 1 < after, places + 1, first)
    partners = torch.empty_like(order).scatter(0, order, order[following])
    return partners, partners != places


def discrimination(joint: Tensor, product: Tensor, paired: Tensor) -> tuple[Tensor, Tensor]:
    """The discriminator's loss and accuracy, from logits (pairs, samples); with no partner at all, 0 and one half.

    Samples without a partner count in neither batch: else the label would tell which batch a sample is of.
    """
    weights = paired.to(joint.dtype) / paired.sum().clamp(min=1)
    loss = 0.5 * ((F.softplus(-joint) + F.softplus(product)) * weights).sum(1).mean()
    right = 0.5 * (((joint > 0).to(weights) + (product <= 0).to(weights)) * weights).sum(1).mean()
    return loss, torch.where(paired.any(), right, 0.5).detach()


def clipped(logits: Tensor, tau: float, clip: str) -> Tensor:
    """Logits within ``tau`` of 0, softly or with an edge."""
    return tau * torch.tanh(logits / tau) if clip == "soft" else logits.clamp(-tau, tau)


@dataclass(frozen=True)
class RedundancyEstimate:
    """How much two features say of each other, in nats, on samples that the discriminator was not trained on.

    Attributes:
        log_ratio: The mean of the discriminator's logit over joint samples, which `DICE` minimises. It estimates the
            information directly, and is right if the discriminator is.
        donsker_varadhan: The same less the logarithm of the mean of its exponential over product samples. It is a
            lower bound of the information, but for the error of the samples.
        accuracy: How often joint and product samples are told apart; one half without any redundancy.
    """

    log_ratio: float
    donsker_varadhan: float
    accuracy: float


def redundancy_estimate(
    first: Tensor,
    second: Tensor,
    labels: Tensor | None = None,
    *,
    steps: int = 500,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    hidden: Sequence[int] = (64, 64),
    embedding: int = 64,
    held_out: float = 0.5,
    seed: int = 0,
) -> RedundancyEstimate:
    r"""What two members' features say of each other, :math:`I(Z_1; Z_2)`, or beyond the class, given labels.

    A fresh discriminator :math:`w` is trained to tell pairs :math:`(z_1, z_2)` of one image from pairs of two images,
    of the same class if there are labels. Its best logit is the log-ratio of both densities, so that

    .. math:: I(Z_1; Z_2 \mid Y) \approx \frac{1}{n} \sum_i \ell(z_{1 i}, z_{2 i}, y_i), \qquad
        I(Z_1; Z_2 \mid Y) \ge \mathbb{E}_J[\ell] - \log \mathbb{E}_P[e^\ell], \qquad \ell = \log \frac{w}{1 - w}

    in nats, over samples that were held out: on those of the training it would be too large. Less redundant members
    are more diverse. Zero means independent (given the class); estimates may be slightly negative. No estimate from
    :math:`n` samples exceeds about :math:`\log n` in earnest, so what is identical is only seen to be large.

    Features are detached, and standardised one by one, which leaves the information as it is. The loss falls by Adam,
    whose learning rate goes to 0 linearly. The average over pairs of members is that of an ensemble. The network is
    smaller than that of `DICE`, as it sees fewer samples: a larger one would learn them by heart.

    Args:
        first: Features of one member, (samples, features).
        second: Those of the other on the same images; their number may differ.
        labels: Classes, as whole numbers; without them the redundancy is not conditional.
        steps: Updates of the discriminator.
        batch_size: Pairs of each kind per update.
        learning_rate: The first one.
        hidden: Widths of its layers.
        embedding: Width of the embedding of labels.
        held_out: Share of the samples to estimate on.
        seed: Of the weights, the parts and the pairs; the same arguments give the same estimate on one kind of device.

    Returns:
        Both estimates and the accuracy of the discriminator. Samples that are alone in their class, in their part, are
        left out.

    Raises:
        InputError: If features or labels do not fit together, are not finite, or no class has two samples in each part.

    Example:
        >>> random = torch.Generator().manual_seed(0)
        >>> first, second = torch.randn(2, 400, 3, generator=random)
        >>> estimate = redundancy_estimate(first, second, steps=100, hidden=(16,))
        >>> abs(estimate.log_ratio) < 0.1
        True

    References:
        Ramé and Cord (2021), DICE: diversity in deep ensembles via conditional redundancy adversarial estimation;
        Belghazi et al. (2018), MINE: mutual information neural estimation, for the bound.
    """
    _check(first, second, labels, held_out)
    random = torch.Generator().manual_seed(seed)
    device = first.device
    groups = torch.zeros(len(first), dtype=torch.int64) if labels is None else labels.cpu()
    groups = torch.unique(groups, return_inverse=True)[1]
    order = torch.randperm(len(first), generator=random)
    held = round(held_out * len(first))
    parts = order[held:], order[:held]
    for part in parts:
        if not partners_in(groups[part], torch.arange(len(part)))[1].any():
            raise InputError(
                "redundancy_estimate needs a class with two samples both for training and held out, got "
                f"{len(first)} samples of {int(groups.max()) + 1} classes; give more samples."
            )
    with torch.autocast(device.type, enabled=False), torch.enable_grad():
        x, y = _standardised(first, parts[0]), _standardised(second, parts[0])
        discriminator = Discriminator(
            x.shape[1] + y.shape[1],
            classes=None if labels is None else int(groups.max()) + 1,
            embedding=embedding,
            hidden=hidden,
            seed=seed,
        ).to(x)

        def logits(ones: Tensor, others: Tensor) -> Tensor:
            of = (x[ones.to(device)], y[others.to(device)], groups[ones].to(device))
            found: Tensor = discriminator(of[0][None], of[1][None], of[2])[0]
            return found

        optimizer = torch.optim.Adam(discriminator.parameters(), lr=learning_rate)
        ones, others = _pairs(parts[0], groups, random)
        for step in range(steps):
            for options in optimizer.param_groups:
                options["lr"] = learning_rate * (1 - step / steps)
            if len(ones) < batch_size:
                more = _pairs(parts[0], groups, random)
                ones, others = torch.cat([ones, more[0]]), torch.cat([others, more[1]])
            now, partners = ones[:batch_size], others[:batch_size]
            ones, others = ones[batch_size:], others[batch_size:]
            loss = 0.5 * (F.softplus(-logits(now, now)).mean() + F.softplus(logits(now, partners)).mean())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            drawn = [_pairs(parts[1], groups, random) for _ in range(_REDRAWS)]
            joint = logits(drawn[0][0], drawn[0][0]).double()
            product = torch.stack([logits(*pairs).double() for pairs in drawn])
            log_ratio = joint.mean()
            bound = log_ratio - (product.flatten().logsumexp(0) - torch.tensor(product.numel()).log())
            accuracy = 0.5 * ((joint > 0).double().mean() + (product <= 0).double().mean())
    return RedundancyEstimate(log_ratio.item(), bound.item(), accuracy.item())


def _pairs(part: Tensor, groups: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """The samples of a part that have a partner there, in random order, and their partners."""
    partners, paired = partners_in(groups[part], torch.randperm(len(part), generator=random))
    kept = torch.randperm(len(part), generator=random)
    kept = kept[paired[kept]]
    return part[kept], part[partners[kept]]


def _standardised(features: Tensor, part: Tensor) -> Tensor:
    """Features with mean 0 and variance 1 on a part; what is constant there stays so."""
    features = single(features.detach())
    own = features[part.to(features.device)]
    deviation = own.std(0, correction=0)
    return (features - own.mean(0)) / torch.where(deviation > 0, deviation, 1.0)


def _check(first: Tensor, second: Tensor, labels: Tensor | None, held_out: float) -> None:
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise InputError(
            "redundancy_estimate needs features (samples, features) of two members on the same samples, got shapes "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    if labels is not None and labels.shape != first.shape[:1]:
        raise InputError(
            f"redundancy_estimate needs one label per sample, got {tuple(labels.shape)} for {len(first)} samples."
        )
    if len(first) < 4:
        raise InputError(f"redundancy_estimate needs at least 4 samples, got {len(first)}.")
    if not 0 < held_out < 1:
        raise InputError(f"redundancy_estimate needs held_out between 0 and 1, got {held_out}; 0.5 is usual.")
    if not (first.isfinite().all() and second.isfinite().all()):
        raise InputError("redundancy_estimate needs finite features, got some that are not.")
