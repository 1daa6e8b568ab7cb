"""Train several fine-tunings from one pre-trained start, combine them, and know why it worked.

The public names are gathered here by what they are for. They are imported when first used, so that
``import mirepoix`` is quick and loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirepoix.lazy import contents

if TYPE_CHECKING:
    from mirepoix.checkpoints import open_weights, write_weights
    from mirepoix.data import digits_task, folder_task, named_task
    from mirepoix.ensembles import Ensemble
    from mirepoix.heads import linear_probe, with_head
    from mirepoix.merging import merge, merge_files
    from mirepoix.models import NetworkSpec, initial_weights, load_pretrained
    from mirepoix.predictions import Predictions
    from mirepoix.runs import EXTREME, MILD, Run, sample_runs
    from mirepoix.selection import best, greedy
    from mirepoix.store import Store, cached
    from mirepoix.strategies import (
        classifier_first,
        dagger,
        diverse_objectives,
        diwa,
        exponential_average,
        fine_tuning,
        fusing,
        fusing_coefficients,
        inter_training,
        moving_average,
        ratatouille,
        recycle,
        robust_recycle,
        sequence,
        swad,
        wise,
        wise_sweep,
    )
    from mirepoix.training import Trainer
    from mirepoix.types import Diverged, InputError
    from mirepoix.weights import (
        RunningAverage,
        add,
        average,
        check_averageable,
        distance,
        interpolate,
        subtract,
    )

__version__ = "0.1.0"

__all__ = [
    "EXTREME",
    "MILD",
    "Diverged",
    "Ensemble",
    "InputError",
    "NetworkSpec",
    "Predictions",
    "Run",
    "RunningAverage",
    "Store",
    "Trainer",
    "__version__",
    "add",
    "average",
    "best",
    "cached",
    "check_averageable",
    "classifier_first",
    "dagger",
    "digits_task",
    "distance",
    "diverse_objectives",
    "diwa",
    "exponential_average",
    "fine_tuning",
    "folder_task",
    "fusing",
    "fusing_coefficients",
    "greedy",
    "initial_weights",
    "inter_training",
    "interpolate",
    "linear_probe",
    "load_pretrained",
    "merge",
    "merge_files",
    "moving_average",
    "named_task",
    "open_weights",
    "ratatouille",
    "recycle",
    "robust_recycle",
    "sample_runs",
    "sequence",
    "subtract",
    "swad",
    "wise",
    "wise_sweep",
    "with_head",
    "write_weights",
]

_PLACES = {
    # weights
    "average": "weights",
    "interpolate": "weights",
    "add": "weights",
    "subtract": "weights",
    "RunningAverage": "weights",
    "distance": "weights",
    "check_averageable": "weights",
    # files
    "open_weights": "checkpoints",
    "write_weights": "checkpoints",
    "merge": "merging",
    "merge_files": "merging",
    # data and networks
    "digits_task": "data",
    "folder_task": "data",
    "named_task": "data",
    "NetworkSpec": "models",
    "initial_weights": "models",
    "load_pretrained": "models",
    # strategies
    "fine_tuning": "strategies",
    "moving_average": "strategies",
    "diwa": "strategies",
    "wise": "strategies",
    "classifier_first": "strategies",
    "dagger": "strategies",
    "diverse_objectives": "strategies",
    "exponential_average": "strategies",
    "fusing": "strategies",
    "fusing_coefficients": "strategies",
    "inter_training": "strategies",
    "ratatouille": "strategies",
    "recycle": "strategies",
    "robust_recycle": "strategies",
    "sequence": "strategies",
    "swad": "strategies",
    "wise_sweep": "strategies",
    # training
    "Run": "runs",
    "sample_runs": "runs",
    "MILD": "runs",
    "EXTREME": "runs",
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


__getattr__, __dir__ = contents(__name__, _PLACES)
