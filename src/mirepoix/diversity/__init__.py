"""How differently the members of an ensemble or an average behave: one file per measure."""

from mirepoix.diversity._pairs import PairCounts, mean_over_pairs, pair_counts
from mirepoix.diversity._q_statistic import q_diversity, q_statistic, q_statistic_matrix
from mirepoix.diversity._ratio_error import pooled_ratio_error, ratio_error, ratio_error_matrix

__all__ = [
    "PairCounts",
    "mean_over_pairs",
    "pair_counts",
    "pooled_ratio_error",
    "q_diversity",
    "q_statistic",
    "q_statistic_matrix",
    "ratio_error",
    "ratio_error_matrix",
]
