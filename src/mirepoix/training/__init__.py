"""One fine-tuning: the loop, what is collected along it, and how it continues after an interruption."""

from mirepoix.training._collectors import Best, Check, Collector, Last, UniformAverage
from mirepoix.training._device import choose_device
from mirepoix.training._trainer import Fit, Loop, Trainer

__all__ = ["Best", "Check", "Collector", "Fit", "Last", "Loop", "Trainer", "UniformAverage", "choose_device"]
