"""The line through two members, and what lies beyond its ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mirepoix.merging._coefficients import check_coefficients, resolve
from mirepoix.merging._rule import Coefficient, Line, LinearRule
from mirepoix.types import InputError

__all__ = ["Interpolation"]


@dataclass(frozen=True)
class Interpolation(LinearRule):
    r"""A point on the line through two members.

    .. math:: \theta = (1 - t)\,\theta_1 + t\,\theta_2

    Args:
        t: 0 is the first member, 1 the second, exactly. A number, a function of the tensor's name, or pairs of
            a regular expression and a number.
        extrapolate: Allow ``t`` outside [0, 1]. Running variances of batch norm that turn negative are then
            raised to 0, with a warning.

    Raises:
        InputError: From `merge`, without exactly two members, or for a ``t`` outside [0, 1] without
            ``extrapolate=True``.

    References:
        Wortsman et al. (2022), Robust fine-tuning (WiSE-FT), equation 1, where t is called alpha.
    """

    method = "interpolate"

    t: Coefficient = 0.5
    extrapolate: bool = False

    def check(self, labels: Sequence[str]) -> None:
        """Two members, one number."""
        if len(labels) != 2:
            raise InputError(
                f"interpolate: expected two members, got {len(labels)}. Use the average for more."
            )
        check_coefficients([self.t], ["t"])

    def line(self, name: str, count: int, measured: Any) -> Line:
        """``1 - t`` and ``t``."""
        (t,) = resolve([self.t], ["t"], name)
        outside = not 0 <= t <= 1
        if outside and not self.extrapolate:
            raise InputError(
                f"t for {name!r}: expected a number in [0, 1], got {t:g}. "
                "Pass extrapolate=True (--extrapolate) to leave the segment between the members."
            )
        return Line([1 - t, t], clamp=outside)
