"""Train several fine-tunings from one pre-trained start, combine them, and know why it worked.

The public names are gathered here by what they are for. They are imported when first used, so that
``import mirepoix`` is quick and loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirepoix.checkpoints import open_weights, write_weights
    from mirepoix.ensembles import Ensemble
    from mirepoix.heads import linear_probe, with_head
    from mirepoix.predictions import Predictions
    from mirepoix.runs import Run, sample_runs
    from mirepoix.selection import best, greedy
    from mirepoix.store import Store, cached
    from mirepoix.strategies import diwa, fine_tuning, moving_average, wise
    from mirepoix.training import Trainer
    from mirepoix.types import Diverged, InputError
    from mirepoix.weights import add, average, check_averageable, distance, interpolate, subtract

__version__ = "0.1.0"

__all__ = [
    "Diverged",
    "Ensemble",
    "InputError",
    "Predictions",
    "Run",
    "Store",
    "Trainer",
    "__version__",
    "add",
    "average",
    "best",
    "cached",
    "check_averageable",
    "distance",
    "diwa",
    "fine_tuning",
    "greedy",
    "interpolate",
    "linear_probe",
    "moving_average",
    "open_weights",
    "sample_runs",
    "subtract",
    "wise",
    "with_head",
    "write_weights",
]

_PLACES = {
    # weights
    "average": "weights",
    "interpolate": "weights",
    "add": "weights",
    "subtract": "weights",
    "distance": "weights",
    "check_averageable": "weights",
    # files
    "open_weights": "checkpoints",
    "write_weights": "checkpoints",
    # strategies
    "fine_tuning": "strategies",
    "moving_average": "strategies",
    "diwa": "strategies",
    "wise": "strategies",
    # training
    "Run": "runs",
    "sample_runs": "runs",
    "Trainer": "training",
    "Store": "store",
    "cached": "store",
    "linear_probe": "heads",
    "with_head": "heads",
    # choosing and combining predictions
    "best": "selection",
    "greedy": "selection",
    "Ensemble": "ensembles",
    "Predictions": "predictions",
    # errors
    "Diverged": "types",
    "InputError": "types",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'mirepoix' has no attribute {name!r}")
    return getattr(import_module(f"mirepoix.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
