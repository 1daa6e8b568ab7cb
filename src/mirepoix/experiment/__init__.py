"""From a recipe to members, combinations, predictions and the evidence of why."""

from mirepoix.experiment._judge import Judge
from mirepoix.experiment._objective import objective_for
from mirepoix.experiment._run import Progress, claimed, run_recipe
from mirepoix.experiment._start import Start, build_start
from mirepoix.experiment._task import DIGITS_SIZE, build_task

__all__ = [
    "DIGITS_SIZE",
    "Judge",
    "Progress",
    "Start",
    "build_start",
    "build_task",
    "claimed",
    "objective_for",
    "run_recipe",
]
