"""Combinations of predictions: the members are kept, and each is run; and criteria that train them together."""

from mirepoix.ensembles._combiners import average_logits, average_probabilities, vote
from mirepoix.ensembles._ensemble import Ensemble
from mirepoix.ensembles._joint_objective import Independent, JointObjective

__all__ = [
    "Ensemble",
    "Independent",
    "JointObjective",
    "average_logits",
    "average_probabilities",
    "vote",
]
