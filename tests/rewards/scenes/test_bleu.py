import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import sentence_bleu
from tests.rewards.scenes import texts

pytest.importorskip("sacrebleu", reason="pip install 'mirepoix[text]'")

from mirepoix.rewards.scenes._bleu import bleu
from mirepoix.types import InputError


def test_scores_by_hand():
    references = ["a bold seven above a two", "a two below"]
    # Five of six words, three of five pairs, two of four triples, one of three fours.
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu(["a bold seven above the two"], [references[:1]]) == pytest.approx(expected)
    # Two words of three, one pair of two, and no triple, which counts as a half of one.
    assert bleu(["a two above"], [["a two below"]]) == pytest.approx((2 / 3 * 1 / 2 * 0.5 / 1) ** (1 / 3))
    # A word counts no more often than in a reference.
    assert bleu(["a a a"], [references], order=1) == pytest.approx(2 / 3)
    # Of references three and six words long the answer of four words is compared with that of three.
    assert bleu(["a bold two below"], [references], order=1) == pytest.approx(1)
    assert bleu(["bold"], [references[:1]], order=1) == pytest.approx(math.exp(1 - 6))
    assert bleu(["", "nothing right"], [references] * 2).tolist() == [0, 0]


@given(texts.pairs, st.integers(1, 4))
def test_scores_are_those_of_the_definition(pairs, order):
    answers, references = zip(*pairs, strict=True)
    expected = [sentence_bleu.bleu(answer, these, order) for answer, these in pairs]
    np.testing.assert_allclose(bleu(answers, references, order), expected, rtol=1e-12, atol=1e-12)


@given(texts.several, st.data(), st.integers(1, 4))
def test_a_reference_has_the_maximum_and_their_order_does_not_matter(several, data, order):
    assert bleu([several[0].upper()], [several], order) == pytest.approx(1)
    shuffled = data.draw(st.permutations(several))
    answer = data.draw(texts.answers)
    score = bleu([answer], [several], order)
    assert score == bleu([answer], [shuffled], order)
    assert score.dtype == np.float64
    assert 0 <= score <= 1


def test_bad_input_is_named():
    for arguments, message in texts.refusals("bleu"):
        with pytest.raises(InputError, match=message):
            bleu(*arguments)
    for order in (0, 1.5, True):
        with pytest.raises(InputError, match="bleu: expected an order of at least 1"):
            bleu(["a"], [["a"]], order)
