"""From the rewards of generated images to those that are kept, and to their weights in the loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_of", "loss_weights"]


def best_of(scores: NDArray[np.float64], kept: float) -> NDArray[np.int64]:
    """The indices of the best scores, in ascending order of the index; of equal scores the first.

    Args:
        scores: ``(images,)``, higher is better.
        kept: The share that is kept, rounded up to whole images.
    """
    count = int(np.ceil(kept * len(scores) - 1e-9))
    result: NDArray[np.int64] = np.sort(np.argsort(-scores, kind="stable")[:count])
    return result


def loss_weights(scores: NDArray[np.float64], clip: float) -> NDArray[np.float64]:
    r"""The weights of the kept images in the loss, whose mean is 1.

    .. math::
        \tilde w_i = \min\left(\exp \frac{r_i - \bar r}{s}, \text{clip}\right), \qquad
        w_i = \tilde w_i \Big/ \tfrac1n \textstyle\sum_j \tilde w_j

    with mean :math:`\bar r` and standard deviation :math:`s` (divided by :math:`n`) of the kept scores. Equal scores
    have equal weights, 1.

    Args:
        scores: Of the kept images.
        clip: The largest weight before the division by their mean.
    """
    spread = scores.max() - scores.min()
    centred = (scores - scores.mean()) / scores.std() if spread > 0 else np.zeros_like(scores)
    raw = np.minimum(np.exp(centred), clip)
    result: NDArray[np.float64] = raw / raw.mean()
    return result
