"""The subjects by name: the tables that their recipes have, and how they are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from mirepoix.fronts._recipe import FrontRecipe
from mirepoix.fronts._subject import Place, Subject

__all__ = ["build", "tables"]

MODULES = {
    "movie-reviews": "_language",
    "text": "_language",
    "locomotion": "_locomotion",
    "diffusion": "_diffusion",
    "captioning": "_scenes",
    "grounding": "_scenes",
    "visual-questions": "_scenes",
}


def _module(subject: str) -> Any:
    return import_module(f"mirepoix.fronts.{MODULES[subject]}")


def tables(subject: str) -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
    """From the name of a table to what checks its values; the subject has no others."""
    found: Mapping[str, Callable[[Mapping[str, Any]], Any]] = _module(subject).tables(subject)
    return found


def build(recipe: FrontRecipe, place: Place, seed: int) -> Subject:
    """The subject of a recipe, for one seed."""
    built: Subject = _module(recipe.front.subject).build(recipe, place, seed)
    return built
