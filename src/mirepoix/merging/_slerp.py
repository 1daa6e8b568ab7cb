"""Spherical interpolation: along the great circle instead of the chord, so that lengths do not shrink."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mirepoix.merging._coefficients import check_coefficients, resolve
from mirepoix.merging._gram import cosines, gram
from mirepoix.merging._rule import Array, Coefficient, Coefficients, Inputs, Line, LinearRule, TensorInputs
from mirepoix.merging._statistics import positive_weights
from mirepoix.types import InputError

__all__ = ["Slerp"]

STRAIGHT = 0.9995
"""Cosine from which the chord is taken for the arc; they then differ by less than 1.3e-4 of the length."""


@dataclass(frozen=True)
class Slerp(LinearRule):
    r"""Spherical linear interpolation of each tensor.

    For two members at the angle :math:`\Omega`,

    .. math:: \theta = \frac{\sin((1 - t)\Omega)\, \theta_1 + \sin(t\Omega)\, \theta_2}{\sin \Omega},

    and for more the same with the coefficients of the weighted Karcher mean of the directions
    :math:`u_i = \theta_i / \|\theta_i\|`, the point :math:`u` of the sphere with
    :math:`\sum_i w_i \log_u u_i = 0`, which for two is the formula above:

    .. math:: \theta = \sum_i \beta_i \theta_i, \qquad u = \sum_i \beta_i u_i, \qquad
        \beta_i \propto w_i \frac{\Omega_i}{\sin \Omega_i}, \quad \cos \Omega_i = u^\top u_i.

    Members of equal length give a result of that length; the coefficients act on the members as they are, so
    of members of unequal lengths the longer counts more, for any number of them.

    The result is the weighted mean :math:`\sum_i w_i \theta_i` instead where a member is zero, where all
    cosines are beyond 0.9995 in absolute value, and where more than two members have no unique mean (opposite
    directions). Fine-tunings of one ancestor are usually that near to each other; their differences from it are
    not, hence ``on="delta"``. Signs and lengths are those of whole tensors, so tensors of one entry are always
    averaged. Coefficients of a proper arc sum to more than one: entries on which all members agree change too.

    Args:
        t: Where on the arc from the first (0) to the second (1) of two members; by default the middle. A
            number, a function of the tensor's name, or pairs of a pattern and a number.
        coefficients: The weights :math:`w` of any number of members, at least 0, divided by their sum; by
            default equal. Give either these or ``t``.
        on: Interpolate the weights, or their differences from the base, which are then added to it.

    Raises:
        InputError: If ``t`` is outside [0, 1], a coefficient is negative or all are zero.

    Example:
        >>> import numpy as np
        >>> from mirepoix.merging import Slerp, merge
        >>> members = [{"w": np.array([1.0, 0.0])}, {"w": np.array([0.0, 1.0])}]
        >>> merge(members, Slerp())["w"].round(4).tolist()  # not [0.5, 0.5]
        [0.7071, 0.7071]

    References:
        Shoemake (1985), *Animating rotation with quaternion curves*; Karcher (1977).
    """

    method = "slerp"

    t: Coefficient | None = None
    coefficients: Coefficients | None = None
    on: Literal["weights", "delta"] = "weights"

    def __post_init__(self) -> None:
        if self.on not in ("weights", "delta"):
            raise InputError(f"on: expected 'weights' or 'delta', got {self.on!r}.")
        if self.t is not None and self.coefficients is not None:
            raise InputError("slerp: give either t or coefficients, not both.")
        if isinstance(self.t, int | float):
            _place(self.t, "slerp")

    @property
    def needs_base(self) -> bool:  # type: ignore[override]
        """Only differences need it."""
        return self.on == "delta"

    def check(self, labels: Sequence[str]) -> None:
        """Two members for ``t``, at least two in any case."""
        if len(labels) < 2 or (self.t is not None and len(labels) != 2):
            expected = (
                "at least 2 members" if self.t is None else "2 members for t (use coefficients for more)"
            )
            raise InputError(f"slerp: expected {expected}, got {len(labels)}.")
        check_coefficients([self.t] if self.t is not None else None, ["t"])
        check_coefficients(self.coefficients, labels)

    def survey(self, inputs: Inputs) -> Sequence[str]:
        """The members' names."""
        return tuple(inputs.labels)

    def measure(self, tensor: TensorInputs, survey: Any) -> Line:
        """The coefficients for one tensor, from its angles; 0 for members that do not hold it."""
        weights = self._weights(tensor, survey)
        cos = cosines(inner := gram(tensor, deltas=self.on == "delta"))
        arc = None
        # NaN must reach the result, and does so along the line.
        if np.isfinite(inner).all() and (np.diagonal(inner) > 0).all() and (np.abs(cos) <= STRAIGHT).any():
            arc = _arc(cos[0, 1], weights[1]) if len(weights) == 2 else karcher(cos, weights)
        held = dict(zip(tensor.labels, (weights if arc is None else arc).tolist(), strict=True))
        coefficients = [held.get(label, 0.0) for label in survey]
        if arc is None:
            return Line(coefficients)
        if self.on == "weights":
            return Line(coefficients, affine=False)
        return Line(coefficients, base=1.0 - math.fsum(coefficients), clamp=True)

    def line(self, name: str, count: int, measured: Any) -> Line:
        """As measured."""
        line: Line = measured
        return line

    def _weights(self, tensor: TensorInputs, labels: Sequence[str]) -> Array:
        if self.t is not None and len(tensor.labels) == 2:  # a tensor that only one of two holds is that
            t = _place(resolve([self.t], ["t"], tensor.name)[0], repr(tensor.name))
            return np.array([1.0 - t, t])
        weights = np.array(positive_weights(self.coefficients, labels, tensor))
        return np.asarray(weights / weights.sum())


def _place(t: float, where: str) -> float:
    if not 0 <= t <= 1:
        raise InputError(f"t for {where}: expected a number in [0, 1], got {t!r}.")
    return float(t)


def _arc(cos: float, t: float) -> Array:
    angle = math.acos(cos)
    return np.array([math.sin((1 - t) * angle), math.sin(t * angle)]) / math.sin(angle)


def karcher(cos: Array, weights: Array) -> Array | None:
    """Coefficients of the mean direction in terms of the directions, or None where there is no unique one.

    Its equation says that the coefficients are in proportion to ``pull``, which depends on their angles to the mean
    they give: put in, and again, until nothing changes. Only the cosines of the directions matter.
    """
    beta = weights
    for _ in range(1000):
        square = float((beta[:, None] * beta * cos).sum())
        if square < 1e-12:
            return None
        beta = beta / math.sqrt(square)
        c = np.clip((cos * beta).sum(1), -1.0, 1.0)
        if (c < 1e-9 - 1).any():
            return None
        sine = np.sqrt(1 - c * c)
        pull = weights * np.where(sine < 1e-7, 1.0, np.arccos(c) / np.maximum(sine, 1e-7))
        size = float((pull * c).sum())
        if np.abs(pull - size * beta).max() < 1e-14:
            return beta
        beta = pull
    return None
