"""Rewarded soups: one expert per reward, their soups, and the front of what these earn.

The names are imported when they are first used; the numbers of a front need NumPy and no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirepoix.lazy import contents

if TYPE_CHECKING:
    from mirepoix.rewards._choose import (
        CrossValidation,
        Fold,
        LambdaChoice,
        Refined,
        cross_validate,
        grid_then_refine,
        lambda_equals_mu,
        lambda_quadratic,
        quadratic_optimum,
        suboptimality_bound,
    )
    from mirepoix.rewards._compare import (
        FrontComparison,
        RewardCurve,
        RewardCurves,
        SpiderArea,
        compare_fronts,
        reward_curves,
        spider_area,
    )
    from mirepoix.rewards._connectivity import (
        RewardConnectivity,
        RewardMargin,
        chord_margin,
        reward_connectivity,
    )
    from mirepoix.rewards._experts import Expert, ExpertCheck, check_experts
    from mirepoix.rewards._front import FrontPoint, RewardFront
    from mirepoix.rewards._hypervolume import Volume, area_over_front, common_box, hypervolume
    from mirepoix.rewards._normalise import Normaliser, init_worst, minmax, none, rank, zscore
    from mirepoix.rewards._pareto import nondominated_probability, pareto_mask
    from mirepoix.rewards._simplex import simplex_design, simplex_lattice, simplex_uniform
    from mirepoix.rewards._sweep import evaluate_policies, sweep

__all__ = [
    "CrossValidation",
    "Expert",
    "ExpertCheck",
    "Fold",
    "FrontComparison",
    "FrontPoint",
    "LambdaChoice",
    "Normaliser",
    "Refined",
    "RewardConnectivity",
    "RewardCurve",
    "RewardCurves",
    "RewardFront",
    "RewardMargin",
    "SpiderArea",
    "Volume",
    "area_over_front",
    "check_experts",
    "chord_margin",
    "common_box",
    "compare_fronts",
    "cross_validate",
    "evaluate_policies",
    "grid_then_refine",
    "hypervolume",
    "init_worst",
    "lambda_equals_mu",
    "lambda_quadratic",
    "minmax",
    "nondominated_probability",
    "none",
    "pareto_mask",
    "quadratic_optimum",
    "rank",
    "reward_connectivity",
    "reward_curves",
    "simplex_design",
    "simplex_lattice",
    "simplex_uniform",
    "spider_area",
    "suboptimality_bound",
    "sweep",
    "zscore",
]

_PLACES = {
    "CrossValidation": "_choose",
    "Fold": "_choose",
    "LambdaChoice": "_choose",
    "Refined": "_choose",
    "cross_validate": "_choose",
    "grid_then_refine": "_choose",
    "lambda_equals_mu": "_choose",
    "lambda_quadratic": "_choose",
    "quadratic_optimum": "_choose",
    "suboptimality_bound": "_choose",
    "FrontComparison": "_compare",
    "RewardCurve": "_compare",
    "RewardCurves": "_compare",
    "SpiderArea": "_compare",
    "compare_fronts": "_compare",
    "reward_curves": "_compare",
    "spider_area": "_compare",
    "RewardConnectivity": "_connectivity",
    "RewardMargin": "_connectivity",
    "chord_margin": "_connectivity",
    "reward_connectivity": "_connectivity",
    "Expert": "_experts",
    "ExpertCheck": "_experts",
    "check_experts": "_experts",
    "FrontPoint": "_front",
    "RewardFront": "_front",
    "Volume": "_hypervolume",
    "area_over_front": "_hypervolume",
    "common_box": "_hypervolume",
    "hypervolume": "_hypervolume",
    "Normaliser": "_normalise",
    "init_worst": "_normalise",
    "minmax": "_normalise",
    "none": "_normalise",
    "rank": "_normalise",
    "zscore": "_normalise",
    "nondominated_probability": "_pareto",
    "pareto_mask": "_pareto",
    "simplex_design": "_simplex",
    "simplex_lattice": "_simplex",
    "simplex_uniform": "_simplex",
    "evaluate_policies": "_sweep",
    "sweep": "_sweep",
}


__getattr__, __dir__ = contents(__name__, _PLACES)
