"""Measures of one predictor on labelled samples: how often it is right, and what its confidence is worth.

Each is a function of logits and labels, from one model, from the average of several, or from an ensemble.
Probabilities are never guessed: log-probabilities are logits too (the softmax of them gives them back), and
probabilities are not. Values are fractions, in the dtype of the logits and in float32 at least. Higher is
better for accuracies, lower for the rest. No samples, a label that names no class, or logits whose largest is
not a finite number (NaN, infinity, or all of them minus infinity) are errors.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from mirepoix.types import InputError

__all__ = ["accuracy", "brier", "by_domain", "ece", "nll", "top_k_accuracy", "worst_domain"]


def accuracy(logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"]) -> Float[Tensor, ""]:
    r"""The fraction of samples whose largest logit is that of the label.

    .. math:: \frac1N \sum_n [\arg\max_k z_{nk} = y_n].

    In [0, 1], higher is better. Among equal logits the first class is the prediction.

    Args:
        logits: A score per class.
        labels: The true classes.

    Raises:
        InputError: See the head of this module.

    Example:
        >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        tensor(0.5000)
    """
    return top_k_accuracy(logits, labels, k=1)


def top_k_accuracy(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"], k: int = 5
) -> Float[Tensor, ""]:
    """The fraction of samples whose label is among the ``k`` largest logits.

    In [0, 1], higher is better; 1 with ``k`` classes or fewer. Equal logits are ranked by class, the first
    class first.

    Args:
        logits: A score per class.
        labels: The true classes.
        k: How many guesses there are.

    Raises:
        InputError: With ``k`` below 1; and see the head of this module.

    Example:
        >>> top_k_accuracy(torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), torch.tensor([1, 2]), k=2)
        tensor(0.5000)
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}.")
    logits = _checked(logits, labels)
    own = logits.gather(1, labels[:, None].long())  # (samples, 1)
    classes = torch.arange(logits.shape[1], device=logits.device)
    before = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    return (before.sum(1) < k).to(logits.dtype).mean()


def nll(logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"]) -> Float[Tensor, ""]:
    r"""The negative log-likelihood of the labels, in nats.

    .. math:: -\frac1N \sum_n \log p_{n y_n}, \qquad p_n = \mathrm{softmax}(z_n).

    At least 0, lower is better. A label of probability 0 (a logit of minus infinity) makes it infinite.

    Args:
        logits: A score per class.
        labels: The true classes.

    Raises:
        InputError: See the head of this module.

    Example:
        >>> nll(torch.zeros(2, 4), torch.tensor([0, 3]))  # log 4
        tensor(1.3863)
    """
    log_p = _checked(logits, labels).log_softmax(1)
    return -log_p.gather(1, labels[:, None].long()).mean()


def ece(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"], *, bins: int = 15
) -> Float[Tensor, ""]:
    r"""The expected calibration error: how far confidence is from accuracy.

    Samples fall by their confidence, the largest probability, into bins of equal width, each open on the
    left and closed on the right, and

    .. math:: \sum_b \frac{n_b}{N} \left| \mathrm{acc}_b - \mathrm{conf}_b \right| .

    In [0, 1], lower is better. An empty bin counts nothing. The estimate is biased upwards, the more so the
    fewer samples there are in a bin: compare equal numbers of samples and bins.

    Args:
        logits: A score per class.
        labels: The true classes.
        bins: How many bins divide [0, 1]; 15 in Guo et al.

    Raises:
        InputError: With less than one bin; and see the head of this module.

    Example:
        >>> ece(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))  # confidence 1/2, right 3 times of 4
        tensor(0.2500)

    References:
        Guo et al. (2017), On calibration of modern neural networks, equation 3.
    """
    if bins < 1:
        raise InputError(f"bins must be at least 1, got {bins}.")
    p = _checked(logits, labels).softmax(1)
    confidence, predicted = p.max(1)
    edges = torch.arange(1, bins, dtype=p.dtype, device=p.device) / bins
    place = torch.bucketize(confidence, edges)  # edges[i - 1] < confidence <= edges[i]
    # n_b (acc_b - conf_b) is one sum over the samples of the bin.
    gaps = torch.zeros(bins, dtype=p.dtype, device=p.device)
    gaps = gaps.index_add(0, place, (predicted == labels).to(p.dtype) - confidence)
    return gaps.abs().sum() / len(labels)


def brier(logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"]) -> Float[Tensor, ""]:
    r"""The squared distance between probabilities and the one-hot label.

    .. math:: \frac1N \sum_n \sum_k (p_{nk} - [y_n = k])^2, \qquad p_n = \mathrm{softmax}(z_n).

    In [0, 2], lower is better. Some divide it by the number of classes as well; here it is the sum.

    Args:
        logits: A score per class.
        labels: The true classes.

    Raises:
        InputError: See the head of this module.

    Example:
        >>> brier(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        tensor(0.5000)

    References:
        Brier (1950), equation 2.
    """
    p = _checked(logits, labels).softmax(1)
    return (p - one_hot(labels.long(), p.shape[1])).square().sum(1).mean()


def by_domain(
    metric: Callable[[Tensor, Tensor], Tensor],
    logits: Float[Tensor, "samples classes"],
    labels: Int[Tensor, " samples"],
    domains: Int[Tensor, " samples"],
) -> dict[int, float]:
    """A metric on each domain alone, the domains in increasing order.

    Args:
        metric: A function of logits and labels, such as `accuracy`.
        logits: A score per class.
        labels: The true classes.
        domains: The domain of each sample.

    Raises:
        InputError: Without samples, or when the number of domains is not that of samples.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> by_domain(accuracy, logits, torch.tensor([0, 1, 1]), torch.tensor([0, 0, 7]))
        {0: 0.5, 7: 1.0}
    """
    _checked(logits, labels)
    if domains.shape != labels.shape:
        raise InputError(f"domains must have shape {tuple(labels.shape)}, got {tuple(domains.shape)}.")
    values = {}
    for domain in sorted(set(domains.tolist())):
        inside = domains == domain
        values[domain] = float(metric(logits[inside], labels[inside]))
    return values


def worst_domain(
    metric: Callable[[Tensor, Tensor], Tensor],
    logits: Float[Tensor, "samples classes"],
    labels: Int[Tensor, " samples"],
    domains: Int[Tensor, " samples"],
    *,
    higher_is_better: bool,
) -> tuple[int, float]:
    """The domain on which a metric is worst, and its value there.

    Among equals it is the domain of the smallest number. NaN is worse than any value.

    Args:
        metric: A function of logits and labels, such as `accuracy`.
        logits: A score per class.
        labels: The true classes.
        domains: The domain of each sample.
        higher_is_better: The direction of the metric: true for accuracies, false for the other measures here.

    Raises:
        InputError: As in `by_domain`.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> labels, domains = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 7])
        >>> worst_domain(accuracy, logits, labels, domains, higher_is_better=True)
        (0, 0.5)
    """
    values = by_domain(metric, logits, labels, domains)
    sign = 1 if higher_is_better else -1
    worst = min(values, key=lambda domain: (not math.isnan(values[domain]), sign * values[domain]))
    return worst, values[worst]


def _checked(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits in float32 at least, once they and the labels make sense together."""
    # Without this, labels of shape (samples, 1) would be compared with every sample, and no one would notice.
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise InputError(
            "expected logits of shape (samples, classes) and labels of shape (samples,), "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if not logits.is_floating_point() or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(
            f"expected float logits and labels that are classes, got {logits.dtype} and {labels.dtype}."
        )
    samples, classes = logits.shape
    if samples == 0 or classes == 0:
        raise InputError(
            f"expected at least one sample and one class, got logits of shape {tuple(logits.shape)}."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"labels must lie in 0 to {classes - 1}, as there are {classes} logits, got {low} to {high}."
        )
    finite = logits.amax(1).isfinite()
    if not finite.all():
        sample = int((~finite).nonzero()[0])
        raise InputError(
            f"logits must be numbers, but the largest of sample {sample} is {float(logits[sample].max())}; "
            f"so it is for {int((~finite).sum())} of {samples} samples. Did the training diverge?"
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
