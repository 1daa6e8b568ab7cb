"""The landscape between and around weights, what is in their representations, and what their error is made of.

The names are imported when they are first used: a path between checkpoints needs none of the libraries of the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirepoix.lazy import contents

if TYPE_CHECKING:
    from mirepoix.landscape._average_against_ensemble import (
        Contraction,
        SubsetScores,
        average_against_ensemble,
        compare_on_subsets,
    )
    from mirepoix.landscape._bias_variance import (
        BVCL,
        BiasVariance,
        BiasVarianceCovariance,
        bias_variance,
        bias_variance_covariance,
        bvcl,
    )
    from mirepoix.landscape._connect import Connection, Point, connect
    from mirepoix.landscape._cross_entropy_decomposition import (
        Ambiguity,
        CrossEntropyDecomposition,
        DiversityEffect,
        ambiguity,
        cross_entropy_decomposition,
        diversity_effect,
    )
    from mirepoix.landscape._distances import Divergence
    from mirepoix.landscape._flatness import TraceEstimate, hessian_trace, top_eigenvalues
    from mirepoix.landscape._gradient_variance import (
        DomainCurvature,
        DomainInvariance,
        PairDistance,
        domain_invariance,
        gradient_variance,
    )
    from mirepoix.landscape._hessian_diagonal import HessianDiagonal, hessian_diagonal
    from mirepoix.landscape._locality import Angles, Locality, angles, locality
    from mirepoix.landscape._plane import Place, Plane, plane
    from mirepoix.landscape._plot import plot
    from mirepoix.landscape._rtd import directed_rtd, rtd, rtd_loss
    from mirepoix.landscape._rtd_lite import rtd_lite, rtd_lite_barcode, rtd_lite_loss
    from mirepoix.landscape._variance_shift import (
        VarianceByMMD,
        constant_diagonal,
        cosine_kernel,
        empirical_ntk,
        gaussian_process_variance,
        mmd,
        rbf_kernel,
        variance_by_mmd,
    )

__all__ = [
    "BVCL",
    "Ambiguity",
    "Angles",
    "BiasVariance",
    "BiasVarianceCovariance",
    "Connection",
    "Contraction",
    "CrossEntropyDecomposition",
    "Divergence",
    "DiversityEffect",
    "DomainCurvature",
    "DomainInvariance",
    "HessianDiagonal",
    "Locality",
    "PairDistance",
    "Place",
    "Plane",
    "Point",
    "SubsetScores",
    "TraceEstimate",
    "VarianceByMMD",
    "ambiguity",
    "angles",
    "average_against_ensemble",
    "bias_variance",
    "bias_variance_covariance",
    "bvcl",
    "compare_on_subsets",
    "connect",
    "constant_diagonal",
    "cosine_kernel",
    "cross_entropy_decomposition",
    "directed_rtd",
    "diversity_effect",
    "domain_invariance",
    "empirical_ntk",
    "gaussian_process_variance",
    "gradient_variance",
    "hessian_diagonal",
    "hessian_trace",
    "locality",
    "mmd",
    "plane",
    "plot",
    "rbf_kernel",
    "rtd",
    "rtd_lite",
    "rtd_lite_barcode",
    "rtd_lite_loss",
    "rtd_loss",
    "top_eigenvalues",
    "variance_by_mmd",
]

_PLACES = {
    "Contraction": "_average_against_ensemble",
    "SubsetScores": "_average_against_ensemble",
    "average_against_ensemble": "_average_against_ensemble",
    "compare_on_subsets": "_average_against_ensemble",
    "BVCL": "_bias_variance",
    "BiasVariance": "_bias_variance",
    "BiasVarianceCovariance": "_bias_variance",
    "bias_variance": "_bias_variance",
    "bias_variance_covariance": "_bias_variance",
    "bvcl": "_bias_variance",
    "Connection": "_connect",
    "Point": "_connect",
    "connect": "_connect",
    "Ambiguity": "_cross_entropy_decomposition",
    "CrossEntropyDecomposition": "_cross_entropy_decomposition",
    "DiversityEffect": "_cross_entropy_decomposition",
    "ambiguity": "_cross_entropy_decomposition",
    "cross_entropy_decomposition": "_cross_entropy_decomposition",
    "diversity_effect": "_cross_entropy_decomposition",
    "Divergence": "_distances",
    "TraceEstimate": "_flatness",
    "hessian_trace": "_flatness",
    "top_eigenvalues": "_flatness",
    "DomainCurvature": "_gradient_variance",
    "DomainInvariance": "_gradient_variance",
    "PairDistance": "_gradient_variance",
    "domain_invariance": "_gradient_variance",
    "gradient_variance": "_gradient_variance",
    "HessianDiagonal": "_hessian_diagonal",
    "hessian_diagonal": "_hessian_diagonal",
    "Angles": "_locality",
    "Locality": "_locality",
    "angles": "_locality",
    "locality": "_locality",
    "Place": "_plane",
    "Plane": "_plane",
    "plane": "_plane",
    "plot": "_plot",
    "directed_rtd": "_rtd",
    "rtd": "_rtd",
    "rtd_loss": "_rtd",
    "rtd_lite": "_rtd_lite",
    "rtd_lite_barcode": "_rtd_lite",
    "rtd_lite_loss": "_rtd_lite",
    "VarianceByMMD": "_variance_shift",
    "constant_diagonal": "_variance_shift",
    "cosine_kernel": "_variance_shift",
    "empirical_ntk": "_variance_shift",
    "gaussian_process_variance": "_variance_shift",
    "mmd": "_variance_shift",
    "rbf_kernel": "_variance_shift",
    "variance_by_mmd": "_variance_shift",
}


__getattr__, __dir__ = contents(__name__, _PLACES)
