"""The one table of names: ``--method`` and the rule it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.merging import Rule

__all__ = ["METHODS", "SELECTIONS", "Method", "rule_of"]


@dataclass(frozen=True)
class Method:
    """A rule of `mirepoix.merging`, the options it takes and where they start, and its equation in a line."""

    rule: str
    equation: str
    takes: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


METHODS = {
    "average": Method(
        "Average", "sum_i w_i theta_i / sum_i w_i", ("coefficients", "normalize", "extrapolate")
    ),
    "interpolate": Method("Interpolation", "(1 - t) theta_1 + t theta_2", ("t", "extrapolate")),
    "task-arithmetic": Method(
        "TaskArithmetic",
        "theta_0 + scale sum_i alpha_i (theta_i - theta_0)",
        ("coefficients", "scale"),
        needs=("coefficients",),
    ),
    "ema": Method("ExponentialAverage", "m_t = d m_(t-1) + (1 - d) theta_t", ("decay", "buffers")),
    "slerp": Method("Slerp", "spherical interpolation per tensor", ("t", "on", "coefficients")),
    "ties": Method(
        "Ties",
        "theta_0 + scale mean over agreeing signs of trim(theta_i - theta_0)",
        ("coefficients", "density", "scale", "scope", "normalize"),
    ),
    "dare": Method(
        "Dare",
        "theta_0 + sum_i alpha_i drop(theta_i - theta_0) / density",
        ("coefficients", "density", "seed", "rescale", "scale", "normalize"),
    ),
    "dare-ties": Method(
        "Dare",
        "theta_0 + mean over agreeing signs of drop(theta_i - theta_0) / density",
        ("coefficients", "density", "seed", "rescale", "scale", "normalize"),
        {"elect": True, "normalize": True},
    ),
    "model-stock": Method(
        "ModelStock",
        "theta_0 + t mean_i (theta_i - theta_0), t from the angle between them",
        ("scope", "clamp"),
    ),
    "fisher": Method(
        "Fisher",
        "sum_i w_i F_i theta_i / sum_i w_i F_i",
        ("fishers", "coefficients", "floor", "normalize"),
        needs=("fishers",),
    ),
    "regmean": Method(
        "RegMean",
        "(sum_i G_i)^-1 sum_i G_i W_i for linear layers",
        ("grams", "coefficients", "scaling", "ridge"),
        needs=("grams",),
    ),
}

SELECTIONS = ("best", "greedy", "forward", "top-k", "threshold", "learned")
"""Methods that need a score, and end as an average of the members they choose."""


def rule_of(method: str, parameters: Mapping[str, Any]) -> Rule:
    """The rule, from its name and what a record or the command line says about it.

    Raises:
        InputError: For an unknown name, a parameter it does not take, or one that is missing.
    """
    if method not in METHODS:
        known = ", ".join((*METHODS, *SELECTIONS))
        raise InputError(f"--method: expected one of {known}, got {method!r}.")
    entry = METHODS[method]
    for name in parameters:
        if name not in entry.takes:
            raise InputError(
                f"--{name.replace('_', '-')}: {method} does not take it. It takes: {', '.join(entry.takes)}; what has "
                "no option of its own goes by --set KEY=VALUE."
            )
    for name in entry.needs:
        if name not in parameters:
            raise InputError(f"--method {method}: needs --{name}. See mirepoix soup --help.")
    from mirepoix import merging

    rule: Rule = getattr(merging, entry.rule)(**{**entry.fixed, **parameters})
    return rule
