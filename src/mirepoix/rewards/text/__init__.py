"""Rewarded soups of language models: rewards of texts, fine-tunings by TRL from one start, evaluation of any weights.

The names are imported when they are first used. Corpus and simple rewards aside, they need
``pip install 'mirepoix[text]'``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirepoix.lazy import contents

if TYPE_CHECKING:
    from mirepoix.rewards.text._adapters import AdaptedWeights, interpolate_adapters, soup
    from mirepoix.rewards.text._corpus import Corpus, Line, Prompts, movie_reviews
    from mirepoix.rewards.text._generate import TextEvaluation, TextModel
    from mirepoix.rewards.text._rewards import (
        BUILTIN,
        Reward,
        as_reward,
        automated_readability,
        bleu,
        classifier,
        distinct,
        length_target,
        load_reward,
        named_reward,
        rouge_l,
        sentiment,
        vader,
    )
    from mirepoix.rewards.text._start import TextStart
    from mirepoix.rewards.text._task import TextTask
    from mirepoix.rewards.text._tiny_model import tiny_start
    from mirepoix.rewards.text._train import FAR, NEAR, TextExpert, TextRun, TextTrainer

_PLACES = {
    "BUILTIN": "_rewards",
    "FAR": "_train",
    "NEAR": "_train",
    "AdaptedWeights": "_adapters",
    "Corpus": "_corpus",
    "Line": "_corpus",
    "Prompts": "_corpus",
    "Reward": "_rewards",
    "TextEvaluation": "_generate",
    "TextExpert": "_train",
    "TextModel": "_generate",
    "TextRun": "_train",
    "TextStart": "_start",
    "TextTask": "_task",
    "TextTrainer": "_train",
    "as_reward": "_rewards",
    "automated_readability": "_rewards",
    "bleu": "_rewards",
    "classifier": "_rewards",
    "distinct": "_rewards",
    "interpolate_adapters": "_adapters",
    "length_target": "_rewards",
    "load_reward": "_rewards",
    "movie_reviews": "_corpus",
    "named_reward": "_rewards",
    "rouge_l": "_rewards",
    "sentiment": "_rewards",
    "soup": "_adapters",
    "tiny_start": "_tiny_model",
    "vader": "_rewards",
}

__getattr__, __dir__ = contents(__name__, _PLACES)

__all__ = [
    "BUILTIN",
    "FAR",
    "NEAR",
    "AdaptedWeights",
    "Corpus",
    "Line",
    "Prompts",
    "Reward",
    "TextEvaluation",
    "TextExpert",
    "TextModel",
    "TextRun",
    "TextStart",
    "TextTask",
    "TextTrainer",
    "as_reward",
    "automated_readability",
    "bleu",
    "classifier",
    "distinct",
    "interpolate_adapters",
    "length_target",
    "load_reward",
    "movie_reviews",
    "named_reward",
    "rouge_l",
    "sentiment",
    "soup",
    "tiny_start",
    "vader",
]
