"""Edges of H1 bars: both engines, and a column reduction over Z/2 written out."""

from __future__ import annotations

import sys
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.landscape._persistence import Engine, h1_edges
from mirepoix.types import InputError

Simplex = tuple[int, ...]


def lengths(matrix: np.ndarray, edges: np.ndarray) -> list[tuple[float, float]]:
    return sorted(zip(matrix[edges[:, 0], edges[:, 1]], matrix[edges[:, 2], edges[:, 3]], strict=True))


def by_reduction(matrix: np.ndarray) -> list[tuple[float, float]]:
    """The standard algorithm: reduce the boundary matrix of all edges and triangles, column by column."""

    def length(simplex: Simplex) -> float:
        return max((matrix[pair] for pair in combinations(simplex, 2)), default=0.0)

    simplices = [
        s for size in (1, 2, 3) for s in combinations(range(len(matrix)), size) if length(s) < np.inf
    ]
    simplices.sort(key=lambda s: (length(s), len(s)))
    place = {s: i for i, s in enumerate(simplices)}
    by_low: dict[int, set[int]] = {}
    bars = []
    for simplex in simplices:
        column = {place[face] for face in combinations(simplex, len(simplex) - 1) if face}
        while column and max(column) in by_low:
            column ^= by_low[max(column)]
        if column:
            by_low[max(column)] = column
            born = simplices[max(column)]
            if len(born) == 2 and length(simplex) > length(born):
                bars.append((length(born), length(simplex)))
    return sorted(bars)


@st.composite
def graphs(draw: st.DrawFn) -> np.ndarray:
    """Symmetric, not a metric; with ties, zeros and missing edges, or without any."""
    size = draw(st.integers(3, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["any", "ties", "missing"]))
    matrix = random.random((size, size)) if kind == "any" else random.integers(0, 5, (size, size)) / 4
    if kind == "missing":
        matrix[random.random((size, size)) < 0.2] = np.inf
    matrix = np.triu(matrix, 1)
    return matrix + matrix.T


@pytest.mark.parametrize("engine", ["gudhi", "simplex_tree"])
@given(matrix=graphs())
def test_the_bars_are_those_of_the_reduction_by_hand(engine: Engine, matrix: np.ndarray) -> None:
    assert lengths(matrix, h1_edges(matrix, engine)) == by_reduction(matrix)


@given(matrix=graphs())
def test_both_engines_name_the_same_edges(matrix: np.ndarray) -> None:
    matrix = np.where(
        np.eye(len(matrix), dtype=bool), 0, matrix + 0.25
    )  # edges of length 0 are not told apart
    first, second = (sorted(map(tuple, h1_edges(matrix, engine))) for engine in ("gudhi", "simplex_tree"))
    assert first == second


@pytest.mark.parametrize("engine", ["gudhi", "simplex_tree"])
def test_a_square_has_one_loop_that_dies_at_a_diagonal(engine: Engine) -> None:
    square = np.array([[0, 1, 3, 1], [1, 0, 1, 2], [3, 1, 0, 1], [1, 2, 1, 0]], dtype=float)
    (bar,) = h1_edges(square, engine).tolist()
    assert bar == [3, 2, 3, 1]  # of the four sides of length 1 the last one closes the loop


@pytest.mark.parametrize("engine", ["gudhi", "simplex_tree"])
@pytest.mark.parametrize(
    "matrix", [np.zeros((4, 4)), np.where(np.eye(4), 0, np.inf), np.where(np.eye(3), 0, 1.0)], ids=str
)
def test_no_loops(engine: Engine, matrix: np.ndarray) -> None:
    assert h1_edges(matrix, engine).shape == (0, 4)


@pytest.mark.parametrize("engine", ["gudhi", "simplex_tree"])
def test_a_loop_that_never_ends_is_left_out(engine: Engine) -> None:
    square = np.array([[0, 1, np.inf, 1], [1, 0, 1, np.inf], [np.inf, 1, 0, 1], [1, np.inf, 1, 0]])
    assert h1_edges(square, engine).shape == (0, 4)


def test_lengths_closer_than_float32_are_told_apart() -> None:
    square = np.array([[0, 1, 3, 1], [1, 0, 1, 2], [3, 1, 0, 1], [1, 2, 1, 0]], dtype=float)
    square[1, 0] = square[0, 1] = 1 + 1e-12
    (bar,) = h1_edges(square).tolist()
    assert bar == [1, 0, 3, 1]


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = "ripser"
    with pytest.raises(InputError, match="engine must be 'gudhi' or 'simplex_tree', got 'ripser'"):
        h1_edges(np.zeros((3, 3)), engine)
    for module in ("gudhi", "gudhi.sklearn.rips_persistence"):
        monkeypatch.setitem(sys.modules, module, None)
    engines: tuple[Engine, ...] = ("gudhi", "simplex_tree")
    for name in engines:
        with pytest.raises(InputError, match=r"needs gudhi: pip install 'mirepoix\[analysis\]'"):
            h1_edges(np.zeros((3, 3)), name)
