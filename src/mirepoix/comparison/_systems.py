"""The members of every kind of system, by the page of equations, and what that page prints of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mirepoix.comparison._recipe import CYCLIC, Kind
from mirepoix.strategies import ratatouille, snapshot, star
from mirepoix.types import Train
from mirepoix.weights import average

__all__ = ["Later", "equation", "trained"]

Later = Callable[[Sequence[Any]], Train]
"""From the members before one to what trains it."""


def trained(
    kind: Kind,
    train: Train,
    starts: Sequence[Any],
    task: Any,
    runs: Sequence[Any],
    later: Later | None = None,
    average: Callable[[Sequence[Any]], Any] = average,
) -> list[Any]:
    """The trainings of a system, in order: members, networks of several members, or what members are drawn from.

    Args:
        kind: Of the system.
        train: Any training.
        starts: Where members begin, in turn; later members of a snapshot ensemble and a star begin with earlier ones.
        task: The source domains.
        runs: The configuration of each training.
        later: What trains a member that knows of the earlier ones; ``train`` itself unless given.
        average: Of vertices of a simplex, where the next one starts.
    """
    members: list[Any] = []
    match kind:
        case "simplex":
            for run in runs:
                own = later(members) if later and members else train
                members.append(own(average(members) if members else starts[0], task, run))
        case "snapshot":
            members = snapshot(train, starts[0], task, runs, list, later=later)
        case "star" | "swag" | "laplace":
            members = star(train, starts[0], task, runs, list, later=later)
        case "deep_ensemble" | "joint":
            members = ratatouille(train, starts, task, runs, list)
    return list(members)


def equation(kind: Kind, members: int, copies: int, starts: int, criterion: str, later: str) -> str:
    """How the last member of a system comes about, as its strategy says it.

    Args:
        kind: Of the system.
        members: How many.
        copies: Networks of the kind ``joint``.
        starts: How many different ones there are.
        criterion: Name of what trainings minimise; nothing for the risk.
        later: Name of what later members minimise; nothing for ``criterion``.

    Example:
        >>> equation("star", 5, 1, 1, "", "mse")
        'theta_1 = Train(theta_pt, D; c_1), theta_i = Train_mse(theta_1, D; c_i)'
    """

    def called(name: str) -> Any:
        head = f"Train_{name}" if name else "Train"
        return lambda theta, task, run: f"{head}({theta}, {task}; {run})"

    if kind in CYCLIC or kind == "laplace":
        before = "theta_1" if kind == "star" else "theta_(i-1)"
        first = f"theta_1 = {trained(kind, called(criterion), ['theta_pt'], 'D', ['c_1'])[0]}"
        if kind == "swag":
            return f"{first}, theta_i ~ SWAG along {called(criterion)('theta_1', 'D', 'c_2')}"
        if kind == "laplace":
            return f"{first}, theta_i ~ N(theta_1, s (H + tau I)^-1)"
        if kind == "simplex":
            vertex = called("simplex")("1/(n-1) sum_(j<n) w_j", "D", "c_n")
            return f"{first} = w_1, w_n = {vertex}, theta_i = sum_n lambda_in w_n"
        return f"{first}, theta_i = {called(later or criterion)(before, 'D', 'c_i')}"
    start = "theta_pt" if starts == 1 else "phi_i"
    several = members if kind == "deep_ensemble" else copies
    made = trained(kind, called(criterion), [start], "D", ["c_i" if several > 1 else "c"])[0]
    if kind == "joint":
        whole = "(theta_1, ..., theta_M)"
        return f"{whole}{'_i' if copies > 1 else ''} = {made}"
    return f"{'theta_i' if several > 1 else 'theta'} = {made}"
