"""Rows of the table: how members are made, and how they become one model or one prediction.

Two axes span all strategies: the *family* says where each run starts and how it is trained, the *combination*
what becomes of the members. Published names are points of this grid; any other point is ``family/combine``. The name
of an objective is a family too: fine-tuning by it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from mirepoix.objectives._named import NOT_IN_RECIPES, OBJECTIVES, label_of
from mirepoix.types import InputError

__all__ = ["COMBINES", "FAMILIES", "ROWS", "Family", "Row", "family_of"]


@dataclass(frozen=True, slots=True)
class Family:
    """How one member is made.

    Attributes:
        label: For tables.
        equation: Of member ``i``.
        collect: Which weights along its run.
        objective: The criterion; None where the recipe's ``objectives`` take turns.
        auxiliaries: Whether it starts from fine-tunings on auxiliary tasks.
    """

    label: str
    equation: str
    collect: str = "best"
    objective: str | None = "erm"
    auxiliaries: bool = False


FAMILIES: Mapping[str, Family] = {
    "fine_tuning": Family("fine-tuning", "Train(theta_pt, D; c_i)"),
    "moving_average": Family(
        "moving average", "mean_t theta_t along Train(theta_pt, D; c_i)", "moving_average"
    ),
    "ema": Family("exponential moving average", "EMA_t theta_t along Train(theta_pt, D; c_i)", "ema"),
    "swad": Family("SWAD", "mean_(t in valley) theta_t along Train(theta_pt, D; c_i)", "swad"),
    "swad_released": Family(
        "SWAD (released code)", "mean_(t in valley) theta_t along Train(theta_pt, D; c_i)", "swad_released"
    ),
    "sam": Family("SAM", "Train_SAM(theta_pt, D; c_i)", objective="sam"),
    "sam_moving_average": Family(
        "moving average + SAM", "mean_t theta_t along Train_SAM(theta_pt, D; c_i)", "moving_average", "sam"
    ),
    "inter_training": Family("inter-training", "Train(Train(theta_pt, A_i), D; c_i)", auxiliaries=True),
    "sequential": Family(
        "sequential inter-training", "Train(Train(Train(theta_pt, A_i), A_j), D; c_i)", auxiliaries=True
    ),
    "robust": Family("robust inter-training", "Train(mean_t Train(theta_pt, A_i), D; c_i)", auxiliaries=True),
    "fusing": Family("fusing", "Train(sum_j lambda_ij Train(theta_pt, A_j), D; c_i)", auxiliaries=True),
    "objectives": Family("diverse objectives", "Train_(o_i)(theta_pt, D; c_i)", objective=None),
}

BY_NAME = [name for name in OBJECTIVES if name not in (*FAMILIES, *NOT_IN_RECIPES)]
"""The objectives whose name is a family; SAM has two of its own."""


def family_of(name: str) -> Family:
    """The family of a name, or fine-tuning by the objective of this name.

    Raises:
        InputError: If there is neither, or combinations of weights by that objective cannot be evaluated.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    if name in NOT_IN_RECIPES:
        raise InputError(f"{name!r} can be no row: {NOT_IN_RECIPES[name]}")
    if name not in BY_NAME:
        raise InputError(
            f"family: expected one of {', '.join(FAMILIES)}, or an objective ({', '.join(BY_NAME)}), got {name!r}."
        )
    return Family(label_of(name), f"Train_{name}(theta_pt, D; c_i)", objective=name)


COMBINES: Mapping[str, tuple[str, str]] = {
    "mean": ("mean member", "mean_i of the accuracy of {}"),
    "best": ("best on validation", "best_i {}"),
    "wise": ("WiSE", "(1 - lambda) best_i {} + lambda (its start)"),
    "average": ("uniform average", "1/M sum_i {}"),
    "greedy": ("greedy soup", "1/|K| sum_(i in K) {}"),
    "ensemble": ("ensemble", "1/M sum_i f(x; {})"),
    "dagger": ("average over data seeds", "1/(M S) sum_(s, i) {}"),
}
"""What becomes of the members: a label and the form of the equation."""

_PUBLISHED: Mapping[str, tuple[str, str, str]] = {
    # name: label, family, combine
    "mean_member": ("mean member", "fine_tuning", "mean"),
    "fine_tuning": ("vanilla fine-tuning", "fine_tuning", "best"),
    "wise": ("WiSE", "fine_tuning", "wise"),
    "moving_average": ("moving average", "moving_average", "best"),
    "ema": ("exponential moving average", "ema", "best"),
    "swad": ("SWAD", "swad", "best"),
    "swad_released": ("SWAD (released code)", "swad_released", "best"),
    "sam": ("SAM", "sam", "best"),
    "sam_moving_average": ("moving average + SAM", "sam_moving_average", "best"),
    "ensemble": ("ensemble", "fine_tuning", "ensemble"),
    "moving_average_ensemble": ("ensemble of moving averages", "moving_average", "ensemble"),
    "swad_ensemble": ("ensemble of SWAD", "swad", "ensemble"),
    "diwa": ("DiWA uniform", "fine_tuning", "average"),
    "diwa_greedy": ("DiWA greedy", "fine_tuning", "greedy"),
    "diwa_dagger": ("DiWA†", "fine_tuning", "dagger"),
    "inter_training": ("inter-training", "inter_training", "best"),
    "inter_training_ensemble": ("ensemble of inter-training", "inter_training", "ensemble"),
    "sequential_inter_training": ("sequential inter-training", "sequential", "best"),
    "fusing": ("fusing", "fusing", "best"),
    "fusing_ensemble": ("ensemble of fusing", "fusing", "ensemble"),
    "ratatouille": ("ratatouille uniform", "inter_training", "average"),
    "ratatouille_greedy": ("ratatouille greedy", "inter_training", "greedy"),
    "ratatouille_dagger": ("ratatouille†", "inter_training", "dagger"),
    "robust_inter_training": ("robust inter-training", "robust", "best"),
    "robust_inter_training_ensemble": ("ensemble of robust inter-training", "robust", "ensemble"),
    "robust_ratatouille": ("robust ratatouille uniform", "robust", "average"),
    "robust_ratatouille_greedy": ("robust ratatouille greedy", "robust", "greedy"),
    "robust_ratatouille_dagger": ("robust ratatouille†", "robust", "dagger"),
    "diverse_objectives": ("diverse objectives", "objectives", "average"),
    "diverse_objectives_ensemble": ("ensemble of diverse objectives", "objectives", "ensemble"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        key: As in a recipe.
        label: As in a table.
        family: How members are made.
        combine: What becomes of them.
    """

    key: str
    label: str
    family: str
    combine: str

    @property
    def equation(self) -> str:
        """How the row's model comes about."""
        return COMBINES[self.combine][1].format(family_of(self.family).equation)

    @staticmethod
    def of(key: str) -> Row:
        """The row of a published name, of ``family/combine``, or of an objective, which is its ``best`` one.

        Raises:
            InputError: For a name that is neither, with the nearest known ones.
        """
        if key in _PUBLISHED:
            return Row(key, *_PUBLISHED[key])
        family, _, combine = key.partition("/")
        if family in NOT_IN_RECIPES:
            family_of(family)  # says why not
        if key in BY_NAME:
            return Row(key, label_of(key), key, "best")
        if family in (*FAMILIES, *BY_NAME) and combine in COMBINES:
            return Row(key, f"{family_of(family).label}, {COMBINES[combine][0]}", family, combine)
        if family in (*FAMILIES, *BY_NAME) and combine:
            raise InputError(
                f"{key!r}: {combine!r} is no way to combine members; expected one of {', '.join(COMBINES)}"
            )
        near = difflib.get_close_matches(key, [*_PUBLISHED, *BY_NAME], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(
            f"there is no strategy {key!r}{hint}; known: {', '.join(_PUBLISHED)}; or family/combine with a family of "
            f"{', '.join(FAMILIES)}, or an objective ({', '.join(BY_NAME)}), and a combination of {', '.join(COMBINES)}"
        )


ROWS: tuple[str, ...] = tuple(_PUBLISHED)
"""The published names."""
