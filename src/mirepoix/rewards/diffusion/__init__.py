"""Rewarded soups of diffusion models: handwritten digits, reward-weighted fine-tunings, the same noise for all.

The names are imported when they are first used; all but the task need ``pip install 'mirepoix[diffusion]'``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirepoix.lazy import contents

if TYPE_CHECKING:
    from mirepoix.rewards.diffusion._digits import DigitDiffusion
    from mirepoix.rewards.diffusion._evaluate import DiffusionEvaluation
    from mirepoix.rewards.diffusion._experts import diffusion_expert
    from mirepoix.rewards.diffusion._run import DiffusionRun
    from mirepoix.rewards.diffusion._start import diffusion_start
    from mirepoix.rewards.diffusion._train import DiffusionTrainer

_PLACES = {
    "DiffusionEvaluation": "_evaluate",
    "DiffusionRun": "_run",
    "DiffusionTrainer": "_train",
    "DigitDiffusion": "_digits",
    "diffusion_expert": "_experts",
    "diffusion_start": "_start",
}

__getattr__, __dir__ = contents(__name__, _PLACES)

__all__ = [
    "DiffusionEvaluation",
    "DiffusionRun",
    "DiffusionTrainer",
    "DigitDiffusion",
    "diffusion_expert",
    "diffusion_start",
]
