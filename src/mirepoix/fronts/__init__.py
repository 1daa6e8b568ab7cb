"""Fronts of rewarded soups from beginning to end: a recipe, or experts somebody already has, to a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirepoix.lazy import contents

if TYPE_CHECKING:
    from mirepoix.fronts._choice import choice
    from mirepoix.fronts._content import Trial, front_report
    from mirepoix.fronts._given import GivenFront, front_of_experts
    from mirepoix.fronts._recipe import FrontRecipe, load_front_recipe
    from mirepoix.fronts._run import run_front

_PLACES = {
    "FrontRecipe": "_recipe",
    "GivenFront": "_given",
    "Trial": "_content",
    "choice": "_choice",
    "front_of_experts": "_given",
    "front_report": "_content",
    "load_front_recipe": "_recipe",
    "run_front": "_run",
}

__getattr__, __dir__ = contents(__name__, _PLACES)

__all__ = [
    "FrontRecipe",
    "GivenFront",
    "Trial",
    "choice",
    "front_of_experts",
    "front_report",
    "load_front_recipe",
    "run_front",
]
