"""AND-mask: an entry of the weights moves only where the source domains agree on its direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mirepoix.objectives._masked import Masked
from mirepoix.types import InputError

__all__ = ["ANDMask"]


class ANDMask(Masked):
    r"""Learning explanations that are hard to vary (Parascandolo et al., 2021).

    With :math:`g_e` the gradient of the risk of domain :math:`e` of :math:`E` in one tensor of weights, in one forward
    pass per domain, the update is made with

    .. math:: \frac{m \, \bar g}{10^{-10} + \bar m}, \qquad \bar g = \frac{1}{E} \sum_e g_e, \qquad
        m = \Big[ \Big\lvert \frac{1}{E} \sum_e \mathrm{sign}(g_e) \Big\rvert \ge \tau \Big]

    entry by entry, where :math:`\bar m` is the mean over the entries of the tensor: the fewer are kept, the larger
    they get. With :math:`\tau = 1` the domains must be unanimous.

    It addresses correlation shift: what one domain alone pulls at, such as a background of its own, is not learned.

    Domains weigh the same, whatever their batch size; neither their order nor that of samples matters. An entry whose
    gradient is zero has sign 0, so that at :math:`\tau = 1` one such domain masks it. At :math:`\tau = 0` nothing is
    masked, and this is the mean risk. With one source domain only zeros are masked, which changes their share alone:
    the gradient of a tensor is that of the risk divided by the share of entries that are not zero. A tensor that is
    masked as a whole has gradient zero, not none: moments and weight decay still move it. A batch of one and classes
    that are missing need no special case.

    There is no state. An update costs one forward and one backward pass per domain, as much as a joint one
    altogether, and the memory of :math:`E` gradients. The mask does not depend on the scale of a gradient scaler.
    `step` logs ``loss``, the mean risk, and ``kept``, the mean of the mask over all weights.

    The division by the mean of the mask is that of DomainBed.

    Args:
        tau: The agreement :math:`\tau` that is asked for, in [0, 1]. Default as in DomainBed, where random trials draw
            U(0.5, 1).

    Raises:
        InputError: If ``tau`` is out of its range.

    References:
        Parascandolo et al. (2021), Learning explanations that are hard to vary.
    """

    def __init__(self, *, tau: float = 1.0) -> None:
        super().__init__()
        if not 0 <= tau <= 1:
            raise InputError(f"ANDMask needs tau to be a share in [0, 1], got {tau}; 1 is usual.")
        self.tau = float(tau)

    def configuration(self) -> Mapping[str, Any]:
        """The agreement that is asked for."""
        return {"tau": self.tau}

    def mask(self, gradients: Tensor) -> Tensor:
        """1 where enough domains have the same sign, else 0."""
        # Sums of signs are exact. Some devices take a mean by a reciprocal, and 49 * (1 / 49) is less than 1.
        agreement = gradients.sign().sum(0).abs()
        return (agreement >= self.tau * len(gradients)).to(gradients.dtype)
