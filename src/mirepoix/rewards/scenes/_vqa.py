"""Visual question answering: short questions about a scene, with answers of one to three words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mirepoix.rewards.scenes._bleu import bleu
from mirepoix.rewards.scenes._captioning import DIGITS
from mirepoix.rewards.scenes._meteor import meteor
from mirepoix.rewards.scenes._renderer import Digit, Part, Scene, render
from mirepoix.rewards.scenes._task import SceneExamples, SceneTask, Scores
from mirepoix.seeds import stream

__all__ = ["VisualQuestions", "questions_of"]

Question = tuple[str, list[str]]
"""With its true answers."""

OPPOSITE = {"left of": "right of", "above": "below"}


@dataclass(frozen=True, kw_only=True)
class VisualQuestions(SceneTask):
    r"""One question about two or three digits; the rewards compare the answer with all true ones.

    | question | true answers |
    | --- | --- |
    | what is left of the seven (right of, above, below) | three; bold three |
    | how many digits | two |
    | which is bold (thin) | three |
    | which are bold (thin) | three and nine; nine and three |

    The kind of question is drawn first, so each is about as frequent as the others. All questions have one meaning:
    nothing else is left of the seven.

    ``bleu1`` is the share of the words of the answer that are in a true one, with a penalty for answers shorter than
    the shortest, and gives credit to an answer that is right in part. ``meteor`` asks for the words of a true answer
    rather than for no others: it prefers ``bold three`` (0.94) to ``three`` (0.5, the most that one word can have),
    where for ``bleu1`` a word more is a risk more. ``exact`` is 1 for an answer that is one of the true ones and 0
    otherwise; by default no expert is trained on it. All are maximised.

    It needs ``pip install 'mirepoix[text]'``, for sacrebleu and NLTK.

    References:
        Thesis, section 6.3.4, with questions about photographs (VQA v2); `bleu`, `meteor`.
    """

    name: ClassVar[str] = "visual-questions"
    rewards: ClassVar[tuple[str, ...]] = ("bleu1", "meteor", "exact")
    trained: ClassVar[tuple[str, ...]] = ("bleu1", "meteor")
    vocabulary: ClassVar[tuple[str, ...]] = (
        *(
            "what",
            "which",
            "how",
            "many",
            "digits",
            "is",
            "are",
            "the",
            "left",
            "right",
            "of",
            "above",
            "below",
        ),
        *("and", "thin", "bold"),
        *DIGITS,
    )
    longest: ClassVar[int] = 4  # with the end
    longest_prompt: ClassVar[int] = 6
    files: ClassVar[tuple[str, ...]] = ("_vqa.py", "_bleu.py", "_meteor.py", "_words.py")

    def make(self, part: Part, count: int) -> SceneExamples:
        """Scenes of two or three digits, a question about each."""
        images, scenes = render(count, part=part, seed=self.seed, digits=(2, 3))
        asked = []
        for number, scene in enumerate(scenes):
            random = stream("question", self.seed, part, number)
            kinds = questions_of(scene)
            questions = kinds[random.integers(len(kinds))]
            asked.append(questions[random.integers(len(questions))])
        return SceneExamples(
            images, [question for question, _ in asked], [answers for _, answers in asked], list(scenes)
        )

    def measure(self, examples: SceneExamples, rows: Sequence[int], answers: Sequence[str]) -> Scores:
        """Each reward of each answer, against all true ones."""
        references = [examples.references[row] for row in rows]
        exact = [answer in true for answer, true in zip(answers, references, strict=True)]
        return {
            "bleu1": bleu(answers, references, order=1),
            "meteor": meteor(answers, references),
            "exact": np.array(exact, dtype=np.float64),
        }


def questions_of(scene: Scene) -> list[list[Question]]:
    """All questions about a scene with one meaning, by their kind; no kind is empty.

    Example:
        >>> from mirepoix.rewards.scenes._renderer import render
        >>> scene = render(1, seed=0)[1][0]
        >>> questions_of(scene)[1]
        [('how many digits', ['two'])]
    """
    kinds = [_where(scene), [("how many digits", [DIGITS[len(scene.digits)]])], _which(scene)]
    return [questions for questions in kinds if questions]


def _where(scene: Scene) -> list[Question]:
    found: dict[str, list[Digit]] = {}
    for relation in scene.relations:
        first, second = scene.digits[relation.first], scene.digits[relation.second]
        found.setdefault(f"what is {relation.name} the {DIGITS[second.label]}", []).append(first)
        found.setdefault(f"what is {OPPOSITE[relation.name]} the {DIGITS[first.label]}", []).append(second)
    return [
        (question, [DIGITS[digit.label], f"{digit.stroke} {DIGITS[digit.label]}"])
        for question, (digit, *others) in found.items()
        if not others
    ]


def _which(scene: Scene) -> list[Question]:
    found = []
    for stroke in ("thin", "bold"):
        names = [DIGITS[digit.label] for digit in scene.digits if digit.stroke == stroke]
        if len(names) == 1:
            found.append((f"which is {stroke}", names))
        elif len(names) == 2:
            found.append((f"which are {stroke}", [" and ".join(names), " and ".join(reversed(names))]))
    return found
