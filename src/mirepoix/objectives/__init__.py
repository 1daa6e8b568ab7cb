"""What one network minimises: one file per training criterion."""

from mirepoix.objectives._erm import ERM
from mirepoix.objectives._objective import Objective

__all__ = ["ERM", "Objective"]
