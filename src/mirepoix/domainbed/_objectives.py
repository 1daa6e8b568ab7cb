"""The criteria that a benchmark's recipe can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mirepoix.objectives import CORAL, ERM, SAM, Mixup, Objective

__all__ = ["OBJECTIVES", "objective"]

OBJECTIVES: Mapping[str, Callable[[], Objective]] = {"erm": ERM, "mixup": Mixup, "coral": CORAL}


def objective(name: str, *, sharpness_radius: float) -> Objective:
    """The criterion of this name; ``sam`` is ERM made sharpness-aware."""
    return SAM(ERM(), rho=sharpness_radius) if name == "sam" else OBJECTIVES[name]()
