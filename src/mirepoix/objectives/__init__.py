"""What one network minimises: one file per training criterion."""

from mirepoix.objectives._coral import CORAL
from mirepoix.objectives._erm import ERM
from mirepoix.objectives._mixup import Mixup
from mirepoix.objectives._objective import Objective
from mirepoix.objectives._sam import SAM

__all__ = ["CORAL", "ERM", "SAM", "Mixup", "Objective"]
