"""Temperature scaling: what a predictor's confidence is worth once its scale is set on held-out samples.

One number divides all logits. It changes no prediction, so accuracies stay; losses and calibration errors of
different predictors then compare what they know, not how loudly they say it. An ensemble is combined first and scaled
afterwards, as one predictor: the logarithm of averaged probabilities is as good as logits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mirepoix.metrics import accuracy, adaptive_ece, brier, ece, nll
from mirepoix.seeds import stream
from mirepoix.types import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

__all__ = ["Calibrated", "Temperature", "calibrated", "fit_temperature", "scale"]

SMALLEST, LARGEST = 1e-3, 1e3  # of s = 1 / T


@dataclass(frozen=True, slots=True)
class Temperature:
    """A temperature and what it changed, on the samples that it was fitted on.

    Attributes:
        value: What logits are divided by. Above 1 the predictor was too confident.
        at_bound: Whether it is 0.001 or 1,000, where the search ends: labels that the logits separate ask for ever
            smaller values, logits that point away from the labels for ever larger ones.
        nll_before: At temperature 1.
        nll_after: At the value; never larger.
    """

    value: float
    at_bound: bool
    nll_before: float
    nll_after: float


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The measures of a predictor whose temperature was set on samples that they do not see.

    Attributes:
        temperature: The mean of the temperatures.
        nll: The calibrated negative log-likelihood, in nats.
        ece: As `mirepoix.metrics.ece`, with 15 bins.
        adaptive_ece: As `mirepoix.metrics.adaptive_ece`, with 15 bins.
        brier: As `mirepoix.metrics.brier`, the sum over classes.
        accuracy: On all samples; no temperature changes it.
        at_bound: Whether some temperature ended where the search does, which its mean then follows.
    """

    temperature: float
    nll: float
    ece: float
    adaptive_ece: float
    brier: float
    accuracy: float
    at_bound: bool

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is not finite becomes ``None``."""
        return {name: value if np.isfinite(value) else None for name, value in asdict(self).items()}


def fit_temperature(logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"]) -> Temperature:
    r"""The temperature with the smallest negative log-likelihood.

    .. math:: T = 1 / s, \qquad
              s = \arg\min_s \frac1N \sum_n \Big( \log \textstyle\sum_k e^{s z_{nk}} - s z_{n y_n} \Big),
              \qquad 10^{-3} \le s \le 10^3.

    Convex in s: Newton steps in float64, halved where they leave the bracket, find the one minimum. The temperature
    stays 1 where no other is better, as for equal logits, or where a label has probability 0 at every temperature.

    Args:
        logits: A score per class, of held-out samples; of an ensemble, the combined ones.
        labels: The true classes.

    Raises:
        InputError: As the functions of `mirepoix.metrics`: for shapes and labels that do not fit, or logits whose
            largest is not finite.

    Example:
        >>> p = torch.tensor([[0.9, 0.1]]).repeat(4, 1)  # right three times of four
        >>> found = fit_temperature(p.log(), torch.tensor([0, 0, 0, 1]))
        >>> round(found.value, 4), found.at_bound  # log 9 / log 3
        (2.0, False)

    References:
        Guo et al. (2017), On calibration of modern neural networks, section 4.2.
    """
    nll(logits, labels)  # for its checks
    z = logits.detach().to("cpu", torch.float64)
    y = labels.to("cpu").long()
    z = z - z.amax(1, keepdim=True)  # (samples, classes), at most 0
    before = float(nll(z, y))
    if before == np.inf:
        return Temperature(1.0, False, before, before)
    # A probability of 0 stays one at every temperature, without infinity times zero.
    s = _smallest_loss(z.clamp(min=-1e100), z.gather(1, y[:, None])[:, 0])
    after = float(nll(s * z, y))
    if not after < before:
        return Temperature(1.0, False, before, before)
    return Temperature(1 / s, s in (SMALLEST, LARGEST), before, after)


def scale(
    logits: Float[Tensor, "samples classes"], temperature: float | Temperature
) -> Float[Tensor, "samples classes"]:
    r"""Logits divided by a temperature.

    .. math:: z / T

    The prediction stays; the confidence falls for temperatures above 1. Half precision is widened to float32.

    Args:
        logits: A score per class, of one predictor: combine members before.
        temperature: A positive number, or what `fit_temperature` found.

    Raises:
        InputError: For a temperature that is not a positive number; for logits of another shape.

    Example:
        >>> scale(torch.tensor([[2.0, -4.0]]), 2.0)
        tensor([[ 1., -2.]])
    """
    value = temperature.value if isinstance(temperature, Temperature) else float(temperature)
    if not 0 < value < np.inf:
        raise InputError(f"temperature: expected a positive number, got {value}.")
    if logits.ndim != 2 or not logits.is_floating_point():
        raise InputError(
            f"expected float logits of shape (samples, classes), got {logits.dtype} of shape {tuple(logits.shape)}. "
            "Combine members first, with `mirepoix.ensembles.average_logits` for instance."
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / value


def calibrated(
    logits: Float[Tensor, "samples classes"],
    labels: Int[Tensor, " samples"],
    *,
    splits: int = 1,
    seed: int = 0,
) -> Calibrated:
    r"""The measures after temperature scaling, when there are no held-out samples but those to be measured.

    The samples are shuffled and halved into A and B, B with the odd one. The temperature fitted on A is used on B, and
    that of B on A; with a measure m, the result is

    .. math:: \tfrac12 \big( m(z_B / T_A) + m(z_A / T_B) \big), \qquad T = \tfrac12 (T_A + T_B).

    No sample is measured with a temperature that has seen it. Only the accuracy is that of all samples. With several
    splits, everything is the mean over them.

    Args:
        logits: A score per class, of one predictor; of an ensemble, the combined ones.
        labels: The true classes.
        splits: How many random halvings, 1 as published.
        seed: Of the halvings.

    Raises:
        InputError: For fewer than two samples, or less than one split; and as in `fit_temperature`.

    Example:
        >>> p = torch.tensor([[0.9, 0.1]]).repeat(80, 1)
        >>> found = calibrated(p.log(), torch.arange(80) % 4 // 3)  # right three times of four
        >>> found.accuracy, 1.3 < found.temperature < 3.2, found.ece < 0.2
        (0.75, True, True)

    References:
        Ashukha et al. (2020), Pitfalls of in-domain uncertainty estimation (test-time cross-validation).
    """
    whole = float(accuracy(logits, labels))
    if len(labels) < 2 or splits < 1:
        raise InputError(
            f"expected at least two samples to halve and at least one split, got {len(labels)} samples and "
            f"splits={splits}."
        )
    z, y = logits.detach().to("cpu", torch.float64), labels.to("cpu")
    rows, bound = [], False
    for split in range(splits):
        order = torch.as_tensor(stream("calibrated", seed, split).permutation(len(y)))
        a, b = order[: len(y) // 2], order[len(y) // 2 :]
        for fitted, measured in ((a, b), (b, a)):
            temperature = fit_temperature(z[fitted], y[fitted])
            scaled = scale(z[measured], temperature)
            bound = bound or temperature.at_bound
            measures = (metric(scaled, y[measured]) for metric in (nll, ece, adaptive_ece, brier))
            rows.append([temperature.value, *map(float, measures)])
    temperature_, nll_, ece_, adaptive_, brier_ = (float(value) for value in np.mean(rows, axis=0))
    return Calibrated(temperature_, nll_, ece_, adaptive_, brier_, whole, bound)


def _smallest_loss(z: Tensor, own: Tensor) -> float:
    """The s of the smallest mean of ``logsumexp(s z) - s own``, whose derivative never falls."""

    def derivatives(s: float) -> tuple[float, float]:
        p = (s * z).softmax(1)
        mean = (p * z).sum(1)
        return float((mean - own).mean()), float((p * (z - mean[:, None]).square()).sum(1).mean())

    if derivatives(LARGEST)[0] <= 0:
        return LARGEST
    if derivatives(SMALLEST)[0] >= 0:
        return SMALLEST
    low, high, s = SMALLEST, LARGEST, 1.0
    for _ in range(200):
        slope, curvature = derivatives(s)
        if slope == 0:
            break
        low, high = (s, high) if slope < 0 else (low, s)
        step = s - slope / curvature if curvature > 0 else np.inf
        # The geometric mean, since the bracket spans six orders of magnitude.
        following = step if low < step < high else float(np.sqrt(low * high))
        if abs(following - s) <= 1e-12 * s:
            s = following
            break
        s = following
    return s
