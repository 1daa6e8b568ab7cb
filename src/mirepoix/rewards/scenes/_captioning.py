"""The task of captioning: what the two digits of a scene are, how they are drawn, and where."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mirepoix.rewards.scenes._renderer import Part, Scene, render
from mirepoix.rewards.scenes._task import SceneExamples, SceneTask, Scores
from mirepoix.seeds import stream

__all__ = ["DIGITS", "Captioning"]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

STROKES = {"thin": ("thin", "fine", "slim"), "bold": ("bold", "thick", "heavy")}

PLACES = {
    "left of": (("left of", "to the left of"), ("right of", "to the right of")),
    "above": (("above", "over", "on top of"), ("below", "under", "beneath")),
}
"""For each relation how to say it of the first digit, and how of the second."""

NOUNS = ("digit", "number", "figure")

SYNONYMS = {
    "thin": ("fine", "slim"),
    "bold": ("thick", "heavy"),
    "above": ("over",),
    "below": ("under", "beneath"),
    "digit": ("number", "figure"),
    "fine": ("slim",),
    "thick": ("heavy",),
    "under": ("beneath",),
    "number": ("figure",),
    "picture": ("image",),
}

FRAME = ("a", "an", "and", "image", "in", "is", "it", "of", "picture", "see", "the", "there", "we")

STOP = "<end>"
"""The end of a caption as a word, so that metrics see whether a caption ended."""


@dataclass(frozen=True, kw_only=True)
class Captioning(SceneTask):
    """Captions of two handwritten digits at scale 1 or 2, each with five references.

    The references say classes, strokes and relation, or a part of that, in five sentences of 7 to 16 words; synonyms
    are drawn. So a caption cannot have all of them right, and each reward prefers another way to speak.

    The rewards compare a caption with its references: ``bleu1`` and ``bleu4`` of the sentence, ``rouge`` (ROUGE-L),
    ``meteor`` with the synonyms of this task, and ``cider`` (CIDEr-D, with document frequencies of the training
    references). As in the published trainings, the end of a caption counts as its last word, in references too; a
    caption that was cut off has none.

    Example:
        >>> task = Captioning(train=10, validation=2, test=2)
        >>> task.examples("test").references[0][0]
        'a bold six to the left of a heavy eight'

    References:
        Ramé et al. (2023), Rewarded soups, the captioning experiment. Rennie et al. (2017), Self-critical sequence
        training for image captioning: the end token belongs to the caption.
    """

    train: int = 8000

    name: ClassVar[str] = "captioning"
    rewards: ClassVar[tuple[str, ...]] = ("bleu1", "bleu4", "rouge", "meteor", "cider")
    trained: ClassVar[tuple[str, ...]] = ("bleu1", "rouge")
    vocabulary: ClassVar[tuple[str, ...]] = tuple(
        dict.fromkeys(
            [
                *DIGITS,
                *(word for words in STROKES.values() for word in words),
                *(
                    word
                    for ways in PLACES.values()
                    for some in ways
                    for text in some
                    for word in text.split()
                ),
                *NOUNS,
                *FRAME,
            ]
        )
    )
    longest: ClassVar[int] = 18
    files: ClassVar[tuple[str, ...]] = (
        "_captioning.py",
        "_words.py",
        "_bleu.py",
        "_rouge.py",
        "_meteor.py",
        "_cider.py",
    )

    def make(self, part: Part, count: int) -> SceneExamples:
        """Scenes and their captions."""
        images, scenes = render(count, part=part, seed=self.seed, digits=2, scales=(1.0, 2.0))
        references = [
            _captions(scene, stream("captions", self.seed, part, place)) for place, scene in enumerate(scenes)
        ]
        return SceneExamples(images, [""] * count, references, list(scenes))

    def measure(self, examples: SceneExamples, rows: Sequence[int], answers: Sequence[str]) -> Scores:
        """All five rewards of each caption."""
        from mirepoix.rewards.scenes._bleu import bleu
        from mirepoix.rewards.scenes._meteor import meteor
        from mirepoix.rewards.scenes._rouge import rouge_l

        said = [f"{text} {STOP}" if len(text.split()) < self.longest else text for text in answers]
        expected = [[f"{text} {STOP}" for text in examples.references[row]] for row in rows]
        return {
            "bleu1": bleu(said, expected, order=1),
            "bleu4": bleu(said, expected),
            "rouge": rouge_l(said, expected),
            "meteor": meteor(said, expected, SYNONYMS),
            "cider": _cider(self)(said, expected),
        }


def _captions(scene: Scene, random: np.random.Generator) -> list[str]:
    """Five references."""

    def one(words: Sequence[str]) -> str:
        return words[int(random.integers(len(words)))]

    (relation,) = scene.relations
    first, second = scene.digits[relation.first], scene.digits[relation.second]
    places, inverse = PLACES[relation.name]
    a, b = DIGITS[first.label], DIGITS[second.label]

    def look(stroke: str) -> str:
        return one(STROKES[stroke])

    return [
        f"a {look(first.stroke)} {a} {one(places)} a {look(second.stroke)} {b}",
        f"the {look(second.stroke)} {b} is {one(inverse)} the {look(first.stroke)} {a}",
        f"there is {_a(a)} {one(places)} {_a(b)} in the {one(('picture', 'image'))}",
        f"{one(('a picture', 'an image'))} of the {look(first.stroke)} {a} and the {look(second.stroke)} {b}",
        f"we see a {look(first.stroke)} {one(NOUNS)} {a} and it is {one(places)} a {look(second.stroke)} {b}",
    ]


def _a(word: str) -> str:
    return f"an {word}" if word == "eight" else f"a {word}"


@functools.lru_cache(maxsize=8)
def _cider(task: Captioning) -> Any:
    from mirepoix.rewards.scenes._cider import CiderD

    return CiderD([[f"{text} {STOP}" for text in texts] for texts in task.examples("train").references])
