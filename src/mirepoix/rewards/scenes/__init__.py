"""Rewarded soups of networks that see: captions, boxes and answers about scenes of handwritten digits.

The names are imported when they are first used. Networks and metrics of text need ``pip install 'mirepoix[text]'``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirepoix.lazy import contents

if TYPE_CHECKING:
    from mirepoix.rewards.scenes._bleu import bleu
    from mirepoix.rewards.scenes._captioning import Captioning
    from mirepoix.rewards.scenes._cider import CiderD
    from mirepoix.rewards.scenes._evaluate import SceneEvaluation
    from mirepoix.rewards.scenes._expert import scene_expert
    from mirepoix.rewards.scenes._grounding import Grounding
    from mirepoix.rewards.scenes._iou import intersection_over_union
    from mirepoix.rewards.scenes._meteor import meteor
    from mirepoix.rewards.scenes._network import SceneNetwork, decode, initial_network
    from mirepoix.rewards.scenes._renderer import Digit, Relation, Scene, render
    from mirepoix.rewards.scenes._rouge import rouge_l
    from mirepoix.rewards.scenes._start import scene_start
    from mirepoix.rewards.scenes._task import SceneExamples, SceneTask
    from mirepoix.rewards.scenes._train import SceneRun, SceneTrainer
    from mirepoix.rewards.scenes._vqa import VisualQuestions

_PLACES = {
    "Captioning": "_captioning",
    "CiderD": "_cider",
    "Digit": "_renderer",
    "Grounding": "_grounding",
    "Relation": "_renderer",
    "Scene": "_renderer",
    "SceneEvaluation": "_evaluate",
    "SceneExamples": "_task",
    "SceneNetwork": "_network",
    "SceneRun": "_train",
    "SceneTask": "_task",
    "SceneTrainer": "_train",
    "VisualQuestions": "_vqa",
    "bleu": "_bleu",
    "decode": "_network",
    "initial_network": "_network",
    "intersection_over_union": "_iou",
    "meteor": "_meteor",
    "render": "_renderer",
    "rouge_l": "_rouge",
    "scene_expert": "_expert",
    "scene_start": "_start",
}

__getattr__, __dir__ = contents(__name__, _PLACES)

__all__ = [
    "Captioning",
    "CiderD",
    "Digit",
    "Grounding",
    "Relation",
    "Scene",
    "SceneEvaluation",
    "SceneExamples",
    "SceneNetwork",
    "SceneRun",
    "SceneTask",
    "SceneTrainer",
    "VisualQuestions",
    "bleu",
    "decode",
    "initial_network",
    "intersection_over_union",
    "meteor",
    "render",
    "rouge_l",
    "scene_expert",
    "scene_start",
]
