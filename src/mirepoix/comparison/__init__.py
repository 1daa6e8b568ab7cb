"""Ensembles compared: the systems of a recipe, trained from one start in several trials, and what each is worth."""

from mirepoix.comparison._measure import MEASURES, quality
from mirepoix.comparison._recipe import Comparison, SystemTable, load_comparison
from mirepoix.comparison._run import run_comparison
from mirepoix.comparison._table import moments, paired

__all__ = [
    "MEASURES",
    "Comparison",
    "SystemTable",
    "load_comparison",
    "moments",
    "paired",
    "quality",
    "run_comparison",
]
