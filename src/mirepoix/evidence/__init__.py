"""What a pool of members tells about averaging and ensembling them: how much they gain, and on what it depends."""

from mirepoix.evidence._figures import (
    accuracy_against_members,
    accuracy_against_share,
    accuracy_against_tasks,
    gain_against_diversity,
    interpolation_curve,
)

__all__ = [
    "accuracy_against_members",
    "accuracy_against_share",
    "accuracy_against_tasks",
    "gain_against_diversity",
    "interpolation_curve",
]
