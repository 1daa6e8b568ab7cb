import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.rewards.scenes._rouge import longest_common_subsequence, rouge_l
from mirepoix.types import InputError
from tests.reference import rouge_l as reference
from tests.rewards.scenes import texts


def test_scores_by_hand():
    # Three of four words in order, of a reference of five.
    precision, recall = 3 / 4, 3 / 5
    expected = 2.44 * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(["a seven above two"], [["a bold seven and two"]]) == pytest.approx(expected)
    # The best precision is that of the first reference, the best recall that of the second.
    precision, recall = 1, 1
    several = ["a bold seven above a two", "bold"]
    assert rouge_l(["a bold seven"], [several]) == pytest.approx(2.44 / (1 + 1.44))
    assert rouge_l(["a bold seven"], [several[:1]]) == pytest.approx(2.44 * 0.5 / (0.5 + 1.44))
    assert rouge_l(["", "nothing right"], [several] * 2).tolist() == [0, 0]


@given(texts.pairs)
def test_scores_are_those_of_the_definition(pairs):
    answers, references = zip(*pairs, strict=True)
    expected = [reference.rouge_l(answer, these) for answer, these in pairs]
    np.testing.assert_allclose(rouge_l(answers, references), expected, rtol=1e-12, atol=1e-12)


@given(texts.words, texts.words)
def test_precision_and_recall_are_those_of_rouge_score(one, two):
    scorers = pytest.importorskip("rouge_score.rouge_scorer", reason="pip install 'mirepoix[text]'")

    class Spaces:
        def tokenize(self, text):
            return text.split()

    score = scorers.RougeScorer(["rougeL"], tokenizer=Spaces()).score(" ".join(two), " ".join(one))["rougeL"]
    common = longest_common_subsequence(tuple(one), tuple(two))
    assert (common / len(one), common / len(two)) == (score.precision, score.recall)


@given(texts.several, st.data())
def test_a_reference_has_the_maximum_and_their_order_does_not_matter(several, data):
    assert rouge_l([several[0].upper()], [several]) == pytest.approx(1)
    shuffled = data.draw(st.permutations(several))
    answer = data.draw(texts.answers)
    score = rouge_l([answer], [several])
    assert score == rouge_l([answer], [shuffled])
    assert score.dtype == np.float64
    assert 0 <= score <= 1


def test_bad_input_is_named():
    for arguments, message in texts.refusals("rouge_l"):
        with pytest.raises(InputError, match=message):
            rouge_l(*arguments)
