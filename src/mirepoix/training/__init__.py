"""One fine-tuning: the loop, what is collected along it, and how it continues after an interruption."""

from mirepoix.training._collectors import Best, Check, Collector, Last, UniformAverage
from mirepoix.training._device import choose_device
from mirepoix.training._ema import ExponentialAverage
from mirepoix.training._snapshots import Snapshots, snapshots
from mirepoix.training._swad import SWAD, ReleasedSWAD
from mirepoix.training._trainer import Fit, Loop, Trainer

__all__ = [
    "SWAD",
    "Best",
    "Check",
    "Collector",
    "ExponentialAverage",
    "Fit",
    "Last",
    "Loop",
    "ReleasedSWAD",
    "Snapshots",
    "Trainer",
    "UniformAverage",
    "choose_device",
    "snapshots",
]
