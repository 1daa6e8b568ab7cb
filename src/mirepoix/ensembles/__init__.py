"""Combinations of predictions: the members are kept, and each is run."""

from mirepoix.ensembles._combiners import average_logits, average_probabilities, vote
from mirepoix.ensembles._ensemble import Ensemble

__all__ = ["Ensemble", "average_logits", "average_probabilities", "vote"]
