"""The task: draw a wanted digit, legibly, boldly, or alike on both sides."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mirepoix.store import key_of
from mirepoix.types import InputError

__all__ = ["DIGITS", "MEASURED", "SIZE", "DigitDiffusion", "digits_digest", "real_digits"]

DIGITS = 10
SIZE = 8
"""Pixels on each side."""

GROUPS = 8
"""Of each group normalisation: widths are multiples of it."""

MEASURED = ("legibility", "boldness", "symmetry")
"""Every reward there is, whether or not something is trained on it."""

REGULARISATION = 0.1
"""``C`` of the classifier; its accuracy on the digits it is fitted on is 0.98."""


@dataclass(frozen=True, kw_only=True)
class DigitDiffusion:
    r"""Handwritten digits of 8 by 8 pixels, made by a diffusion model for a wanted digit :math:`c`.

    The digits are scikit-learn's (``load_digits``, 1797 images), scaled to [-1, 1]: -1 is paper, 1 is ink. With
    :math:`u = (x + 1) / 2` the ink of a pixel, the rewards of an image, all maximised, are

    .. math::
        R_\text{legibility} = \log \frac{p(c \mid x)}{1 - p(c \mid x)}, \qquad
        R_\text{boldness} = \tfrac{1}{64} \textstyle\sum_{ij} u_{ij}, \qquad
        R_\text{symmetry} = -\tfrac{1}{64} \textstyle\sum_{ij} \lvert u_{ij} - u_{i,9-j} \rvert,

    where :math:`p` is a multinomial logistic regression, fitted once on the real digits. Legibility is the
    log-odds, of any sign, in nats; it does not saturate as the probability does. Boldness is in [0, 1], symmetry in
    [-1, 0], where 0 is a mirror image of itself.

    Attributes:
        rewards: Names of the rewards that experts can be trained on, some of legibility, boldness, symmetry. All
            three are measured anyway.
        channels: Widths of the two stages of the network, multiples of 8.

    Raises:
        InputError: Without rewards, for one that is not there or comes twice, and for widths that do not fit.

    Example:
        >>> task = DigitDiffusion()
        >>> task.rewards
        ('legibility', 'boldness')
        >>> sorted(task.score(np.full((1, 8, 8), -1.0), [7]))
        ['boldness', 'legibility', 'symmetry']

    References:
        Ramé et al. (2023), Rewarded soups, the experiment with diffusion models; here on digits instead of photographs.
    """

    rewards: tuple[str, ...] = ("legibility", "boldness")
    channels: tuple[int, int] = (32, 64)

    def __post_init__(self) -> None:
        rewards, channels = tuple(self.rewards), tuple(self.channels)
        if isinstance(self.rewards, str) or not rewards or len(set(rewards)) < len(rewards):
            raise InputError(
                f"rewards: expected different names, some of {', '.join(MEASURED)}, got {self.rewards!r}."
            )
        unknown = [name for name in rewards if name not in MEASURED]
        if unknown:
            raise InputError(f"rewards: there is no {unknown[0]!r}; expected some of {', '.join(MEASURED)}.")
        if len(channels) != 2 or any(width < GROUPS or width % GROUPS for width in channels):
            raise InputError(
                f"channels: expected two widths, multiples of {GROUPS}, such as (32, 64), got {self.channels!r}."
            )
        object.__setattr__(self, "rewards", rewards)
        object.__setattr__(self, "channels", channels)

    @property
    def measured(self) -> tuple[str, ...]:
        """The names of all rewards that `score` gives: those to train on first."""
        return (*self.rewards, *(name for name in MEASURED if name not in self.rewards))

    @property
    def digest(self) -> str:
        """A text that names the content of the task, the real digits included."""
        return key_of({**self.to_dict(), "digits": digits_digest(), "regularisation": REGULARISATION})

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a record; the order of the rewards counts."""
        return {"rewards": list(self.rewards), "channels": list(self.channels)}

    def shares(self, reward: Mapping[str, float]) -> tuple[float, ...]:
        r"""The coefficients :math:`\mu_k` of a scalar reward, in the order of ``rewards``; 0 for those not named.

        They are used as given: they need not sum to one, and are not divided by their sum.

        Raises:
            InputError: For a name that is no reward to train on, a coefficient that is not finite, or none but zeros.
        """
        for name, share in reward.items():
            if name not in self.rewards:
                raise InputError(
                    f"reward: there is no reward {name!r} to train on; expected some of {', '.join(self.rewards)}."
                )
            if not math.isfinite(share):
                raise InputError(f"reward[{name!r}]: expected a finite coefficient, got {share}.")
        if not any(reward.values()):
            raise InputError(
                f"reward: expected a coefficient that is not 0, for one of {', '.join(self.rewards)}, got "
                f"{dict(reward)}."
            )
        return tuple(float(reward.get(name, 0.0)) for name in self.rewards)

    def score(self, images: ArrayLike, labels: ArrayLike) -> dict[str, NDArray[np.float64]]:
        """Every reward of every image, in the order of `measured`.

        Args:
            images: ``(images, 8, 8)`` or ``(images, 1, 8, 8)``, in [-1, 1].
            labels: The wanted digits, ``(images,)``, from 0 to 9.

        Raises:
            InputError: For other shapes, or values that are not finite or out of their range.
        """
        pixels, wanted = np.asarray(images, dtype=np.float64), np.asarray(labels)
        if (
            pixels.shape[-2:] != (SIZE, SIZE)
            or pixels.ndim not in (3, 4)
            or pixels.shape[1:-2] not in ((), (1,))
        ):
            raise InputError(
                f"images: expected shape (images, {SIZE}, {SIZE}) or (images, 1, {SIZE}, {SIZE}), got "
                f"{pixels.shape}."
            )
        if not (np.abs(pixels) <= 1).all():  # NaN included
            raise InputError(
                "images: expected finite pixels in [-1, 1], got others. Divide bytes by 127.5, less 1."
            )
        if wanted.shape != pixels.shape[:1] or not np.isin(wanted, range(DIGITS)).all():
            raise InputError(
                f"labels: expected a digit from 0 to 9 for each of {len(pixels)} images, got shape {wanted.shape}"
                + (f" with {wanted.min()} to {wanted.max()}." if wanted.size else ".")
            )
        pixels, wanted = pixels.reshape(-1, SIZE, SIZE), wanted.astype(np.int64)
        ink = (pixels + 1) / 2
        found = {
            "legibility": _log_odds(pixels.reshape(len(pixels), SIZE * SIZE), wanted),
            "boldness": ink.mean(axis=(1, 2)),
            "symmetry": -np.abs(ink - ink[:, :, ::-1]).mean(axis=(1, 2)),
        }
        return {name: found[name] for name in self.measured}


@functools.cache
def real_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The digits of scikit-learn, ``(1797, 1, 8, 8)`` in [-1, 1], and what they are."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[:, None] / 8 - 1).astype(np.float32)
    labels = digits.target.astype(np.int64)
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


def digits_digest() -> str:
    """A text that names the content of the real digits."""
    images, labels = real_digits()
    return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


@functools.cache
def _classifier() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coefficients ``(10, 64)`` and intercepts of the classifier of real digits."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    images, labels = real_digits()
    with threadpool_limits(1):  # the bits of a sum depend on the number of threads
        fitted = LogisticRegression(C=REGULARISATION, max_iter=1000).fit(
            images.reshape(len(images), -1).astype(np.float64), labels
        )
    return fitted.coef_, fitted.intercept_


def _log_odds(pixels: NDArray[np.float64], wanted: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of the wanted digits, from flat images."""
    weight, bias = _classifier()
    logits = np.einsum("np,kp->nk", pixels, weight) + bias
    own = np.take_along_axis(logits, wanted[:, None], axis=1)[:, 0]
    others = np.where(np.arange(DIGITS) == wanted[:, None], -np.inf, logits)
    result: NDArray[np.float64] = own - np.logaddexp.reduce(others, axis=1)
    return result
