"""Loops of a weighted graph: at which edges each one is born and dies.

The persistence libraries give the two lengths of a bar. A gradient needs the two edges, as the barcode is no more than
a choice of entries of the matrix. So the libraries are given ranks in place of lengths: each rank is one edge, and
survives float32. Looking the lengths up instead finds wrong edges where two have the same length, and a gradient at
an edge that has nothing to do with the loop.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mirepoix.types import InputError

__all__ = ["Engine", "h1_edges"]

Engine = Literal["gudhi", "simplex_tree"]


def h1_edges(matrix: NDArray[np.float64], engine: Engine = "gudhi") -> NDArray[np.int64]:
    """The edges at which the loops of a Vietoris-Rips filtration are born and die, over Z/2.

    Of edges of equal length, the one whose larger vertex is smaller comes first, then the one whose other vertex is;
    so the edges are the same with each engine. Only edges of length 0 come all at once, and any of them may be named.
    Bars of length 0 and bars that never end are left out.

    Args:
        matrix: Symmetric lengths of the edges ``(vertices, vertices)``, not negative, with a zero diagonal; infinite
            where there is no edge.
        engine: ``"gudhi"`` reduces cohomology (Ripser inside); ``"simplex_tree"`` builds all triangles, 10 to 100
            times slower.

    Returns:
        Vertices ``(bars, 4)``: birth u, birth v, death u, death v, with u > v.

    Raises:
        InputError: For another engine, or without gudhi.
    """
    larger, smaller = np.tril_indices(len(matrix), -1)
    lengths = matrix[larger, smaller]
    order = np.argsort(lengths, kind="stable")
    zeros = int(np.count_nonzero(lengths == 0))
    finite = int(np.count_nonzero(np.isfinite(lengths)))
    rank = np.empty(len(order))
    rank[order] = np.arange(1, len(order) + 1) - zeros
    rank[order[:zeros]] = 0
    rank[order[finite:]] = np.inf
    ranks = np.zeros_like(matrix)
    ranks[larger, smaller] = ranks[smaller, larger] = rank
    longest = float(finite - zeros)
    match engine:
        case "gudhi":
            bars = _ripser(ranks, longest)
        case "simplex_tree":
            bars = _simplex_tree(ranks, longest)
        case _:
            raise InputError(f"engine must be 'gudhi' or 'simplex_tree', got {engine!r}.")
    found = order[(zeros - 1 + bars).clip(min=0)]  # (bars, 2)
    edges: NDArray[np.int64] = np.stack([larger[found], smaller[found]], axis=-1).reshape(-1, 4)
    return edges[matrix[edges[:, 2], edges[:, 3]] > matrix[edges[:, 0], edges[:, 1]]]


def _ripser(ranks: NDArray[np.float64], longest: float) -> NDArray[np.int64]:
    """Birth and death of each bar, as ranks."""
    rips = _gudhi("gudhi.sklearn.rips_persistence").RipsPersistence(
        homology_dimensions=1,
        threshold=longest,
        input_type="full distance matrix",
        num_collapses=0,  # collapsing edges first was 10 times slower in dimension 1
        homology_coeff_field=2,
    )
    bars = np.asarray(rips.fit_transform([ranks])[0], dtype=np.float64).reshape(-1, 2)
    return bars[np.isfinite(bars).all(axis=1)].astype(np.int64)


def _simplex_tree(ranks: NDArray[np.float64], longest: float) -> NDArray[np.int64]:
    """The same, from the edges that the library names itself."""
    tree = _gudhi("gudhi").SimplexTree.create_from_array(ranks, max_filtration=longest)
    tree.expansion(2)
    tree.compute_persistence(homology_coeff_field=2, min_persistence=0)
    by_dimension = tree.flag_persistence_generators()[1]
    edges = np.asarray(by_dimension[0] if by_dimension else [], dtype=np.int64).reshape(-1, 2, 2)
    return np.asarray(ranks[edges[..., 0], edges[..., 1]], dtype=np.int64)


def _gudhi(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            "topology divergence needs gudhi: pip install 'mirepoix[analysis]', or take rtd_lite."
        ) from error
