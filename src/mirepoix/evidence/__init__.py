"""What a pool of members tells about averaging and ensembling them: how much they gain, and on what it depends."""

from mirepoix.evidence._classifier_invariance import ClassifierInvariance, SourceDomain, classifier_invariance
from mirepoix.evidence._explain import explain
from mirepoix.evidence._figures import (
    accuracy_against_members,
    accuracy_against_share,
    accuracy_against_tasks,
    gain_against_diversity,
    interpolation_curve,
)
from mirepoix.evidence._label_corruption import corrupt_labels, forgetting_curve, memorisation, recovery
from mirepoix.evidence._source_invariance import Examined, SourceInvariance, source_invariance
from mirepoix.evidence._sources import Source, source_of_files, source_of_folder
from mirepoix.evidence._subsets import Extreme, Fit, SeparatingLine, Subsets, ensembles_of_size

__all__ = [
    "ClassifierInvariance",
    "Examined",
    "Extreme",
    "Fit",
    "SeparatingLine",
    "Source",
    "SourceDomain",
    "SourceInvariance",
    "Subsets",
    "accuracy_against_members",
    "accuracy_against_share",
    "accuracy_against_tasks",
    "classifier_invariance",
    "corrupt_labels",
    "ensembles_of_size",
    "explain",
    "forgetting_curve",
    "gain_against_diversity",
    "interpolation_curve",
    "memorisation",
    "recovery",
    "source_invariance",
    "source_of_files",
    "source_of_folder",
]
