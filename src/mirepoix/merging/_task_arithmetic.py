"""Task arithmetic: weights moved along the directions in which fine-tunings moved them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mirepoix.merging._coefficients import check_coefficients, resolve
from mirepoix.merging._rule import Coefficients, Line, LinearRule

__all__ = ["TaskArithmetic"]


@dataclass(frozen=True)
class TaskArithmetic(LinearRule):
    r"""The base, moved along the task vectors of the members.

    .. math:: \theta = \theta_0 + \sum_i \alpha_i (\theta_i - \theta_0)

    Negative coefficients unlearn. With :math:`\alpha_i = 1/N` it is the average. For several tasks, values of
    0.3 to 0.5 are usual; the best ones are found on validation data. Running variances of batch norm that turn
    negative are raised to 0, with a warning.

    Args:
        coefficients: One per member, :math:`\alpha_i`; not normalised. Each may be a number, a function of the
            tensor's name, or pairs of a regular expression and a number.
        scale: A factor on all of them.

    References:
        Ilharco et al. (2023), Editing models with task arithmetic.
    """

    method = "task-arithmetic"
    partial = True
    needs_base = True

    coefficients: Coefficients
    scale: float = 1.0

    def check(self, labels: Sequence[str]) -> None:
        """One coefficient per member."""
        check_coefficients(self.coefficients, labels)
        check_coefficients([self.scale], ["scale"])

    def survey(self, inputs: Any) -> list[str]:
        """The members' names, to find their coefficients by."""
        return list(inputs.labels)

    def line(self, name: str, count: int, measured: Any) -> Line:
        """What is left for the base is ``1 - sum``, so that no difference is ever rounded."""
        values = [self.scale * value for value in resolve(self.coefficients, measured, name)]
        return Line(values, base=1 - math.fsum(values), clamp=True)
