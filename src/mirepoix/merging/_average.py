"""The average, uniform or weighted: every other rule is compared with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mirepoix.merging._coefficients import check_coefficients, resolve
from mirepoix.merging._rule import Coefficients, Line, LinearRule
from mirepoix.types import InputError

__all__ = ["Average"]


@dataclass(frozen=True)
class Average(LinearRule):
    r"""The average of the members.

    .. math:: \theta = \frac{\sum_i w_i \theta_i}{\sum_i w_i},

    summed in the order of the members and divided once; a member with :math:`w_i = 0` is not read.

    Args:
        coefficients: One per member, :math:`w_i`; all equal where none are given. Each may be a number, a
            function of the tensor's name, or pairs of a regular expression and a number.
        normalize: Divide by the sum of the coefficients. Without it the sum itself is the result, which
            shrinks or grows the weights unless the coefficients sum to one.
        extrapolate: Allow negative coefficients. Running variances of batch norm that turn negative are
            then raised to 0, with a warning.

    Raises:
        InputError: From `merge`, when coefficients are too many or too few, negative without
            ``extrapolate=True``, or sum to zero.

    References:
        Izmailov et al. (2018); Wortsman et al. (2022), uniform soup; Ramé et al. (2022), DiWA.
    """

    method = "average"
    partial = True

    coefficients: Coefficients | None = None
    normalize: bool = True
    extrapolate: bool = False

    def check(self, labels: Sequence[str]) -> None:
        """One coefficient per member."""
        check_coefficients(self.coefficients, labels)

    def survey(self, inputs: Any) -> list[str]:
        """The members' names, to find their coefficients by."""
        return list(inputs.labels)

    def line(self, name: str, count: int, measured: Any) -> Line:
        """The coefficients, and their sum to divide by."""
        if self.coefficients is None:
            return Line([1.0] * count, divisor=float(count) if self.normalize else 1.0, affine=self.normalize)
        values = resolve(self.coefficients, measured, name)
        negative = [value for value in values if value < 0]
        if negative and not self.extrapolate:
            raise InputError(
                f"coefficients for {name!r}: expected none below 0, got {negative[0]:g}. "
                "Pass extrapolate=True (--extrapolate) to leave the span of the members."
            )
        try:
            total = math.fsum(values)
        except OverflowError:
            raise InputError(
                f"coefficients for {name!r}: their sum is too large, {values}. Divide them by the largest."
            ) from None
        if (self.normalize and abs(total) < 1e-12 * sum(map(abs, values))) or not any(values):
            raise InputError(
                f"coefficients for {name!r}: expected a sum other than 0 to divide by, got {values}."
            )
        return Line(
            values, divisor=total if self.normalize else 1.0, clamp=bool(negative), affine=self.normalize
        )
