import dataclasses

import numpy as np
import pytest

pytest.importorskip("sacrebleu", reason="pip install 'mirepoix[text]'")
pytest.importorskip("nltk", reason="pip install 'mirepoix[text]'")

from mirepoix.rewards.scenes._captioning import DIGITS
from mirepoix.rewards.scenes._renderer import Digit, Relation, Scene, render
from mirepoix.rewards.scenes._task import SceneExamples
from mirepoix.rewards.scenes._vqa import VisualQuestions, questions_of

TASK = VisualQuestions(train=200, validation=20, test=30)


def digit(label, stroke):
    return Digit(label, (0, 0, 8, 8), 1.0, stroke, 0)


SCENE = Scene(
    (digit(3, "bold"), digit(7, "thin"), digit(9, "thin")),
    (Relation(0, "left of", 1), Relation(0, "left of", 2), Relation(2, "above", 1)),
)


def asked(question, references):
    return SceneExamples(np.zeros((1, 32, 32), np.uint8), [question], [references], [SCENE])


def test_questions_of_a_scene():
    where, count, which = questions_of(SCENE)
    # Two digits are right of the three, so nothing is asked about that.
    assert dict(where) == {
        "what is left of the seven": ["three", "bold three"],
        "what is left of the nine": ["three", "bold three"],
        "what is above the seven": ["nine", "thin nine"],
        "what is below the nine": ["seven", "thin seven"],
    }
    assert count == [("how many digits", ["three"])]
    assert which == [
        ("which are thin", ["seven and nine", "nine and seven"]),
        ("which is bold", ["three"]),
    ]


def test_nothing_is_asked_about_three_digits_of_one_stroke():
    scene = dataclasses.replace(SCENE, digits=tuple(digit(label, "bold") for label in (3, 7, 9)))
    assert len(questions_of(scene)) == 2


def test_what_is_asked_about_places_is_true():
    for scene in render(100, digits=(2, 3), seed=3)[1]:
        for question, (name, described) in questions_of(scene)[0]:
            *place, _, other = question.removeprefix("what is ").split()
            one, two = (
                next(digit for digit in scene.digits if DIGITS[digit.label] == word) for word in (name, other)
            )
            assert described == f"{one.stroke} {name}"
            (x0, y0), (x1, y1) = one.centre, two.centre
            beside = abs(x0 - x1) > abs(y0 - y1)
            expected = ("left of" if x0 < x1 else "right of") if beside else ("above" if y0 < y1 else "below")
            assert " ".join(place) == expected


def test_kinds_of_questions_are_about_as_frequent():
    examples = TASK.examples("train")
    first = [prompt.split()[0] for prompt in examples.prompts]
    for word in ("what", "how", "which"):
        assert 40 < first.count(word) < 95  # a third of 200, and four standard errors
    texts = [*examples.prompts, *(text for texts in examples.references for text in texts)]
    assert {word for text in texts for word in text.split()} <= set(TASK.vocabulary)
    assert max(len(text.split()) for text in examples.prompts) == TASK.longest_prompt
    answers = {len(text.split()) for texts in examples.references for text in texts}
    assert answers == {1, 2, 3}
    assert max(answers) + 1 == TASK.longest


def test_partial_credit():
    examples = asked("what is left of the seven", ["three", "bold three"])
    answers = ["three", "bold three", "thin three", "thin nine", "bold", "bold nine", ""]
    scores = TASK.score(examples, [0] * len(answers), answers)
    np.testing.assert_allclose(scores["bleu1"], [1, 1, 0.5, 0, 1, 0.5, 0])
    # One word of two right against "three": P = 1/2, R = 1, one chunk of one word.
    partial = (0.5 / (0.9 * 0.5 + 0.1)) * 0.5
    half = 0.5 * 0.5  # against "bold three"
    only = (0.5 / (0.9 + 0.1 * 0.5)) * 0.5
    np.testing.assert_allclose(scores["meteor"], [0.5, 0.9375, partial, 0, only, half, 0])
    np.testing.assert_array_equal(scores["exact"], [1, 1, 0, 0, 0, 0, 0])


def test_more_examples_begin_with_the_same_ones():
    more = dataclasses.replace(TASK, train=230).examples("train")
    assert more.prompts[:200] == TASK.examples("train").prompts
    assert dataclasses.replace(TASK, seed=1).digest != TASK.digest
