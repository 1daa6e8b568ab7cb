import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.rewards.scenes._grounding import BINS, Grounding, box_of, location, target_of
from mirepoix.rewards.scenes._iou import intersection_over_union
from mirepoix.types import InputError

TASK = Grounding(train=60, validation=20, test=30)


def test_a_true_answer_has_the_reward_of_its_size_and_no_other():
    for part in ("train", "validation", "test"):
        examples = TASK.examples(part)
        scores = TASK.score(examples, range(len(examples)), [texts[0] for texts in examples.references])
        assert tuple(scores) == ("small", "medium", "large")
        sizes = [TASK.size_of(target_of(examples, row)) for row in range(len(examples))]
        for size, values in scores.items():
            np.testing.assert_array_equal(values, [float(size == other) for other in sizes])
        np.testing.assert_array_equal(sum(scores.values()), 1)


def test_sizes_are_those_of_the_drawn_digits():
    examples = TASK.examples("test")
    names = {0.5: "small", 1.0: "medium", 2.0: "large"}
    for row in range(len(examples)):
        target = target_of(examples, row)
        assert TASK.size_of(target) == names[target.scale]


def test_a_prompt_names_one_digit_and_the_answer_contains_it():
    examples = TASK.examples("train")
    texts = [*examples.prompts, *(text for texts in examples.references for text in texts)]
    words = {word for text in texts for word in text.split()}
    assert words <= set(TASK.vocabulary)
    numbers = [len(scene.digits) for scene in examples.scenes]
    assert set(numbers) == {2, 3}
    for row, prompt in enumerate(examples.prompts):
        target = target_of(examples, row)
        assert prompt.split()[:2] == ["the", target.stroke]
        told = box_of(examples.references[row][0])
        assert all(a <= b for a, b in zip(told[:2], target.box[:2], strict=True))
        assert all(a >= b for a, b in zip(told[2:], target.box[2:], strict=True))
        assert intersection_over_union(told, target.box) > 0.5


def test_half_a_box_is_not_more_than_half():
    examples = TASK.examples("train")
    rows = [row for row in range(60) if box_of(examples.references[row][0]) == target_of(examples, row).box]
    row = next(row for row in rows if target_of(examples, row).scale == 2)
    x0, y0, x1, y1 = target_of(examples, row).box

    def reward(box):
        return TASK.score(examples, [row], [location(box)])["large"][0]

    assert reward((x0, y0, x1, y0 + 8)) == 0  # exactly one half
    assert reward((x0, y0, x1, y0 + 10)) == 1
    assert intersection_over_union((x0, y0, x1, y0 + 8), (x0, y0, x1, y1)) == 0.5


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "<bin_1> <bin_1> <bin_2>",
        "<bin_1> <bin_1> <bin_2> <bin_2> <bin_2>",
        "<bin_3> <bin_1> <bin_2> <bin_2>",
        "<bin_1> <bin_3> <bin_2> <bin_2>",
        "<bin_1> <bin_1> <bin_2> seven",
        "the bold seven",
    ],
)
def test_what_is_no_box_has_nothing(answer):
    assert box_of(answer) is None
    examples = TASK.examples("train")
    scores = TASK.score(examples, [0, 1], [answer, examples.references[1][0]])
    assert [sum(values[place] for values in scores.values()) for place in (0, 1)] == [0, 1]


@given(st.data())
def test_a_box_of_bins_is_told_without_loss(data):
    side = st.tuples(st.integers(0, BINS - 1), st.integers(0, BINS - 1)).map(sorted)
    (x0, x1), (y0, y1) = data.draw(side), data.draw(side)
    box = (2 * x0, 2 * y0, 2 * x1 + 2, 2 * y1 + 2)
    assert box_of(location(box)) == box


def test_more_examples_begin_with_the_same_ones():
    more = dataclasses.replace(TASK, train=90).examples("train")
    assert more.prompts[:60] == TASK.examples("train").prompts
    np.testing.assert_array_equal(more.images[:60], TASK.examples("train").images)
    other = dataclasses.replace(TASK, seed=1)
    assert other.examples("train").prompts != TASK.examples("train").prompts
    assert other.digest != TASK.digest


def test_too_few_examples_to_tell_three_sizes():
    few = Grounding(train=2, validation=1, test=1)
    with pytest.raises(InputError, match="train: expected targets of at least three areas"):
        few.score(few.examples("test"), [0], [""])
