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

__all__ = [
    "accuracy",
    "adaptive_ece",
    "brier",
    "by_domain",
    "confidence_auroc",
    "ece",
    "nll",
    "tace",
    "top_k_accuracy",
    "worst_domain",
]


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
        Guo et al. (2017), On calibration of modern neural networks.
    """
    _check_bins(bins)
    p = _checked(logits, labels).softmax(1)
    confidence, predicted = p.max(1)
    edges = torch.arange(1, bins, dtype=p.dtype, device=p.device) / bins
    place = torch.bucketize(confidence, edges)  # edges[i - 1] < confidence <= edges[i]
    # n_b (acc_b - conf_b) is one sum over the samples of the bin.
    gaps = torch.zeros(bins, dtype=p.dtype, device=p.device)
    gaps = gaps.index_add(0, place, (predicted == labels).to(p.dtype) - confidence)
    return gaps.abs().sum() / len(labels)


def adaptive_ece(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"], *, bins: int = 15
) -> Float[Tensor, ""]:
    r"""The expected calibration error over bins of equal mass: as many samples in one as in another.

    The sum of `ece` over other bins. With :math:`\ell_n` samples less confident than sample n and :math:`e_n` equally
    confident, itself included, sample n is in bin

    .. math:: \left\lfloor \frac{B\,(2 \ell_n + e_n)}{2N} \right\rfloor \in \{0, \dots, B - 1\}.

    Without ties, the sizes of bins differ by at most one. Equal confidences stay in one bin, so the order of the
    samples does not matter; a model that is often certain to the last bit has one large bin.

    In [0, 1], lower is better. Confident models leave most of the equal widths of `ece` empty; equal masses do not.
    With fewer samples than bins each is alone, and the value says little.

    Args:
        logits: A score per class.
        labels: The true classes.
        bins: How many bins, B.

    Raises:
        InputError: With less than one bin; and see the head of this module.

    Example:
        >>> p = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.8, 0.2], [0.9, 0.1]])
        >>> adaptive_ece(p.log(), torch.tensor([1, 0, 0, 0]), bins=2)  # |1/2 - 0.65| and |1 - 0.85|
        tensor(0.1500)

    References:
        Nguyen and O'Connor (2015), Posterior calibration and exploratory analysis; Nixon et al. (2019).
    """
    _check_bins(bins)
    confidence, predicted = _checked(logits, labels).softmax(1).max(1)
    return _equal_mass_error(confidence, (predicted == labels).to(confidence.dtype), bins)


def tace(
    logits: Float[Tensor, "samples classes"],
    labels: Int[Tensor, " samples"],
    *,
    bins: int = 15,
    threshold: float = 0.01,
) -> Float[Tensor, ""]:
    r"""The thresholded adaptive calibration error: every class's probability, not the largest alone.

    With :math:`N_k = \{n : p_{nk} > \varepsilon\}`, cut into bins b of equal mass as in `adaptive_ece`,

    .. math:: \frac1K \sum_k \sum_b \frac{n_{kb}}{|N_k|}
              \left| \operatorname{mean}_{n \in b} [y_n = k] - \operatorname{mean}_{n \in b} p_{nk} \right| .

    In [0, 1], lower is better. Without the threshold the many tiny probabilities, which are nearly right, hide the
    others. A class that is nowhere above it counts 0.

    Args:
        logits: A score per class.
        labels: The true classes.
        bins: How many bins for each class.
        threshold: What a probability must exceed, :math:`\varepsilon`; 0 counts all that are not zero.

    Raises:
        InputError: With less than one bin, or a threshold outside [0, 1); and see the head of this module.

    Example:
        >>> tace(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))  # |3/4 - 1/2| and |1/4 - 1/2|
        tensor(0.2500)

    References:
        Nixon et al. (2019), Measuring calibration in deep learning. They weigh bins equally, which is the same where
        bins are equal.
    """
    _check_bins(bins)
    if not 0 <= threshold < 1:
        raise InputError(f"threshold must be at least 0 and below 1, got {threshold}.")
    p = _checked(logits, labels).softmax(1)
    total = p.new_zeros(())
    for k, column in enumerate(p.T):
        counted = column > threshold
        if counted.any():
            total = total + _equal_mass_error(column[counted], (labels[counted] == k).to(p.dtype), bins)
    return total / p.shape[1]


def confidence_auroc(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"]
) -> Float[Tensor, ""]:
    r"""How well confidence tells right predictions from wrong ones: the area under the ROC curve.

    The probability that of a right and a wrong prediction the right one is more confident, ties counting half. With
    the midranks :math:`r_n` of the confidences :math:`\max_k p_{nk}` and :math:`N_1` right, :math:`N_0` wrong,

    .. math:: \frac{\sum_{n\ \text{right}} r_n - N_1 (N_1 + 1) / 2}{N_1 N_0}.

    In [0, 1], higher is better, 1/2 by chance. NaN where all predictions are right or all are wrong. It measures
    order alone, and compares models of different accuracy on different tasks: read it beside the accuracy.

    Args:
        logits: A score per class.
        labels: The true classes.

    Raises:
        InputError: See the head of this module.

    Example:
        >>> p = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.8, 0.2]])
        >>> confidence_auroc(p.log(), torch.tensor([0, 1, 0]))  # right at 0.6 and 0.8, wrong at 0.7
        tensor(0.5000)

    References:
        Hendrycks and Gimpel (2017), A baseline for detecting misclassified and out-of-distribution examples.
    """
    logits = _checked(logits, labels)
    top, predicted = logits.max(1, keepdim=True)
    # The order of 1 / confidence - 1, which does not round away where confidence rounds to 1.
    doubt = (logits - top).exp().scatter(1, predicted, 0).sum(1)
    right = predicted[:, 0] == labels
    return _auroc(-doubt, right).to(logits.dtype)


def brier(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"], *, per_class: bool = False
) -> Float[Tensor, ""]:
    r"""The squared distance between probabilities and the one-hot label.

    .. math:: \frac1N \sum_n \sum_k (p_{nk} - [y_n = k])^2, \qquad p_n = \mathrm{softmax}(z_n).

    In [0, 2], lower is better.

    Args:
        logits: A score per class.
        labels: The true classes.
        per_class: Divide by the number of classes as well, as the public code of MixMo does.

    Raises:
        InputError: See the head of this module.

    Example:
        >>> brier(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        tensor(0.5000)

    References:
        Brier (1950), Verification of forecasts expressed in terms of probability.
    """
    p = _checked(logits, labels).softmax(1)
    value = (p - one_hot(labels.long(), p.shape[1])).square().sum(1).mean()
    return value / p.shape[1] if per_class else value


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
        values[domain] = float(metric(logits.detach()[inside], labels[inside]))
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


def _equal_mass_error(p: Tensor, hits: Tensor, bins: int) -> Tensor:
    """The mean gap between probabilities and how often they came true, in bins of equal mass, ties together."""
    ordered = p.sort().values
    place = bins * _twice_the_middle(ordered, p) // (2 * len(p))
    # n_b (acc_b - conf_b) is one sum over the samples of the bin.
    return p.new_zeros(bins).index_add(0, place, hits - p).abs().sum() / len(p)


def _auroc(score: Tensor, positive: Tensor) -> Tensor:
    """The area under the ROC curve by midranks, in float64 where there is one; NaN with one kind only."""
    exact = torch.float32 if score.device.type == "mps" else torch.float64
    ranks = (_twice_the_middle(score.sort().values, score) + 1).to(exact) / 2
    ones = positive.sum().to(exact)
    zeros = len(score) - ones
    return (ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros)


def _twice_the_middle(ordered: Tensor, values: Tensor) -> Tensor:
    """Twice as many as are smaller, and as many as are equal: the midrank from 1 is half of one more."""
    return torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True)


def _check_bins(bins: int) -> None:
    if bins < 1:
        raise InputError(f"bins must be at least 1, got {bins}.")


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
