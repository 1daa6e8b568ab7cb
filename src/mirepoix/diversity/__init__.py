"""How differently the members of an ensemble or an average behave: one file per measure."""

from mirepoix.diversity._cka import MinibatchCKA, cka, cka_matrix, ckac
from mirepoix.diversity._difficulty import difficulty
from mirepoix.diversity._disagreement import (
    agreement,
    agreement_matrix,
    disagreement,
    disagreement_matrix,
    oracle_disagreement,
    oracle_disagreement_matrix,
)
from mirepoix.diversity._double_fault import double_fault, double_fault_matrix
from mirepoix.diversity._entropy import entropy_of_correctness, vote_entropy
from mirepoix.diversity._error_correlation import error_correlation, error_correlation_matrix
from mirepoix.diversity._generalised_diversity import generalised_diversity
from mirepoix.diversity._groups import GroupMeans, PairSummary, group_means, summarise_pairs
from mirepoix.diversity._interrater_agreement import interrater_agreement
from mirepoix.diversity._jensen_shannon import jensen_shannon, jensen_shannon_matrix
from mirepoix.diversity._kohavi_wolpert import kohavi_wolpert, label_variance
from mirepoix.diversity._kullback_leibler import kullback_leibler, kullback_leibler_matrix
from mirepoix.diversity._measures import MEASURES, Measure, Measured, Spread, measure_predictions
from mirepoix.diversity._mutual_information import mutual_information
from mirepoix.diversity._normalised_difference import normalised_difference, normalised_difference_matrix
from mirepoix.diversity._pairs import PairCounts, mean_over_pairs, pair_counts
from mirepoix.diversity._q_statistic import q_diversity, q_statistic, q_statistic_matrix
from mirepoix.diversity._ratio_error import pooled_ratio_error, ratio_error, ratio_error_matrix
from mirepoix.diversity._representation_distance import representation_mse, sliced_wasserstein, wasserstein
from mirepoix.diversity._weight_cosine import weight_cosine, weight_cosine_by_layer, weight_cosine_matrix
from mirepoix.diversity._weight_distance import (
    distance_to_average,
    weight_distance_by_layer,
    weight_distance_matrix,
    weight_mean_square_matrix,
)

__all__ = [
    "MEASURES",
    "GroupMeans",
    "Measure",
    "Measured",
    "MinibatchCKA",
    "PairCounts",
    "PairSummary",
    "Spread",
    "agreement",
    "agreement_matrix",
    "cka",
    "cka_matrix",
    "ckac",
    "difficulty",
    "disagreement",
    "disagreement_matrix",
    "distance_to_average",
    "double_fault",
    "double_fault_matrix",
    "entropy_of_correctness",
    "error_correlation",
    "error_correlation_matrix",
    "generalised_diversity",
    "group_means",
    "interrater_agreement",
    "jensen_shannon",
    "jensen_shannon_matrix",
    "kohavi_wolpert",
    "kullback_leibler",
    "kullback_leibler_matrix",
    "label_variance",
    "mean_over_pairs",
    "measure_predictions",
    "mutual_information",
    "normalised_difference",
    "normalised_difference_matrix",
    "oracle_disagreement",
    "oracle_disagreement_matrix",
    "pair_counts",
    "pooled_ratio_error",
    "q_diversity",
    "q_statistic",
    "q_statistic_matrix",
    "ratio_error",
    "ratio_error_matrix",
    "representation_mse",
    "sliced_wasserstein",
    "summarise_pairs",
    "vote_entropy",
    "wasserstein",
    "weight_cosine",
    "weight_cosine_by_layer",
    "weight_cosine_matrix",
    "weight_distance_by_layer",
    "weight_distance_matrix",
    "weight_mean_square_matrix",
]
