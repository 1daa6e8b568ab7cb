"""From a recipe to members, combinations, predictions and the evidence of why."""

from mirepoix.experiment._run import Progress, run_recipe

__all__ = ["Progress", "run_recipe"]
