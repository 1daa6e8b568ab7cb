"""The page of equations: every strategy as where a run starts, how it is trained, how members are combined.

``train`` is passed in, so a strategy knows nothing of networks, losses or devices. With a ``train`` and a
``combine`` that return text, a strategy prints its own equation; with ``combine=list``, a greedy selection or
an `Ensemble`, the same members serve every row of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mirepoix.types import Combine, Train
from mirepoix.weights import average, interpolate

if TYPE_CHECKING:
    from mirepoix.runs import Run

__all__ = ["diwa", "fine_tuning", "moving_average", "wise"]


def fine_tuning(train: Train, theta: Any, task: Any, runs: Iterable[Run], combine: Combine[Any]) -> Any:
    """theta = best_i Train(theta_pt, D; c_i).

    ``combine`` chooses: usually the best on ID validation (`mirepoix.selection.best`).
    """
    return combine(train(theta, task, run) for run in runs)


def moving_average(train: Train, theta: Any, task: Any, run: Run) -> Any:
    """theta = mean_t theta_t along one Train(theta_pt, D; c).

    References:
        Arpit et al. (2021), Ensemble of averages; Izmailov et al. (2018).
    """
    return train(theta, task, run.with_(collect="moving_average"))


def diwa(train: Train, theta: Any, task: Any, runs: Iterable[Run], combine: Combine[Any] = average) -> Any:
    """theta = 1/M sum_i Train(theta_pt, D; c_i).

    References:
        Ramé et al. (2022), Diverse weight averaging; Wortsman et al. (2022), Model soups.
    """
    return combine(train(theta, task, run) for run in runs)


def wise(
    train: Train,
    theta: Any,
    task: Any,
    run: Run,
    coefficient: float = 0.5,
    combine: Callable[[Sequence[Any], Sequence[float]], Any] = interpolate,
) -> Any:
    """theta = (1 - lambda) Train(theta_pt, D; c) + lambda theta_pt.

    ``coefficient`` is lambda, the share of the start: 0 is fine-tuning, 1 the start itself.

    References:
        Wortsman et al. (2022), Robust fine-tuning of zero-shot models, with alpha = 1 - lambda.
    """
    return combine([train(theta, task, run), theta], [1 - coefficient, coefficient])
