import dataclasses
import json
import math

import numpy as np
import pytest

from mirepoix.rewards.scenes import Captioning, Grounding, SceneExamples, VisualQuestions
from mirepoix.types import InputError
from tests.rewards.scenes import small

TASKS = [
    small.TASK,
    Captioning(train=60, validation=20, test=20),
    Grounding(train=60, validation=20, test=20),
    VisualQuestions(train=60, validation=20, test=20),
]
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@each_task
def test_examples_are_of_the_vocabulary_and_not_too_long(task):
    words = set(task.vocabulary)
    assert len(words) == len(task.vocabulary)
    for part in ("train", "validation", "test"):
        examples = task.examples(part)
        assert len(examples) == getattr(task, part)
        assert examples.images.shape == (len(examples), 32, 32)
        assert examples.images.dtype == np.uint8
        for prompt, references in zip(examples.prompts, examples.references, strict=True):
            assert len(prompt.split()) <= task.longest_prompt
            assert set(prompt.split()) <= words
            assert references
            for text in references:
                assert 0 < len(text.split()) < task.longest
                assert set(text.split()) <= words


@each_task
def test_examples_are_made_once_and_follow_from_the_fields(task):
    assert task.examples("test") is task.examples("test")
    again = task.make("test", task.test)
    assert again.prompts == task.examples("test").prompts
    assert again.references == task.examples("test").references
    other = dataclasses.replace(task, seed=7).examples("test")
    assert (other.images != again.images).any()


@each_task
def test_a_score_depends_on_the_answer_and_its_row_alone(task):
    examples = task.examples("validation")
    answers = [texts[-1] for texts in examples.references]
    every = task.score(examples, range(len(examples)), answers)
    assert set(every) == set(task.rewards)
    rows = [3, 3, 0, 5]
    some = task.score(examples, rows, [answers[row] for row in rows])
    for name in task.rewards:
        np.testing.assert_array_equal(some[name], every[name][rows])
    empty = task.score(examples, [0], [""])
    assert all(np.isfinite(values).all() for values in empty.values())


@each_task
def test_a_task_is_named_by_its_content(task):
    json.dumps(task.to_dict())
    assert task.digest == dataclasses.replace(task).digest
    assert task.digest != dataclasses.replace(task, seed=7).digest
    assert task.digest != dataclasses.replace(task, train=61).digest
    assert len({one.digest for one in TASKS}) == len({one.words for one in TASKS}) == 4
    assert set(task.trained) <= set(task.rewards)


def test_cross_entropy_belongs_to_the_content():
    assert small.Anchored().digest != small.TASK.digest


def test_shares_are_in_the_order_of_the_rewards_and_as_given():
    assert small.TASK.shares({"short": 3, "right": 0.5}) == (0.5, 3.0, 0.0)
    for reward, message in (
        ({"long": 1.0}, "there is no reward 'long'; expected some of right, short, constant"),
        ({"short": math.inf}, r"reward\['short'\]: expected a finite coefficient, got inf"),
        ({"short": 0.0}, "expected a coefficient that is not 0"),
        ({}, "expected a coefficient that is not 0"),
    ):
        with pytest.raises(InputError, match=message):
            small.TASK.shares(reward)


def test_wrong_questions_are_refused():
    examples = small.TASK.examples("test")
    with pytest.raises(InputError, match="part: expected one of train, validation, test, got 'dev'"):
        small.TASK.examples("dev")
    with pytest.raises(InputError, match="test: expected at least 1 example, got 0"):
        small.Strokes(test=0)
    with pytest.raises(InputError, match="rows: expected one for each of 2 answers, got 1"):
        small.TASK.score(examples, [0], ["thin", "bold"])
    with pytest.raises(InputError, match="rows: expected numbers from 0 to 11, got 12"):
        small.TASK.score(examples, [12], ["thin"])
    with pytest.raises(InputError, match="expected as many images as prompts"):
        SceneExamples(examples.images, examples.prompts[:3], examples.references, examples.scenes)


def test_a_reward_that_is_no_number_is_found():
    class Broken(small.Strokes):
        def measure(self, examples, rows, answers):
            return {name: np.full(len(answers), np.nan) for name in self.rewards}

    with pytest.raises(FloatingPointError, match="reward 'right': expected a finite number"):
        Broken().score(Broken().examples("test"), [0], ["thin"])
