import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.rewards.scenes._cider import CiderD
from mirepoix.types import InputError
from tests.reference import cider_d as reference
from tests.rewards.scenes import texts

CORPUS = [["a bold seven", "the seven"], ["a thin two", "a two"], ["a nine"], ["one a one"]]


def test_scores_by_hand():
    cider = CiderD(CORPUS)
    # "a" is in all four items and weighs nothing; "bold" and "seven" are in one and weigh log 4 each, "thin" and "two"
    # likewise. Pairs: "a bold", "bold seven" weigh log 4. Triple: "a bold seven". No order of four.
    assert cider(["a bold seven"], [["a bold seven"]]) == pytest.approx(10 * 3 / 4)
    # Words: "bold" of "bold", "seven" in the reference: log4^2 / (log4 * sqrt(2) log4). Two words shorter.
    expected = 10 / 4 * (1 / math.sqrt(2)) * math.exp(-(2**2) / (2 * 36))
    assert cider(["bold"], [["a bold seven"]]) == pytest.approx(expected)
    # Repeating is clipped: min(3, 1) * 1 of (3 * 1), the same length.
    assert cider(["one one one"], [["nine one two"]]) == pytest.approx(10 / 4 * 1 / (3 * math.sqrt(3)))
    # The mean over references, with one of which there is nothing in common.
    assert cider(["a nine"], [["a nine", "one two"]]) == pytest.approx(10 / 4 * (1 + 1) / 2)
    # A word that no item has weighs log 4 too.
    assert cider(["a zero"], [["a zero"]]) == pytest.approx(10 / 4 * 2)
    assert cider(["", "a", "other words"], [["a nine"]] * 3).tolist() == [0, 0, 0]


@given(st.lists(texts.several, min_size=2, max_size=5), texts.pairs)
def test_scores_are_those_of_the_definition(corpus, pairs):
    answers, references = zip(*pairs, strict=True)
    expected = [reference.cider_d(answer, these, corpus) for answer, these in pairs]
    np.testing.assert_allclose(CiderD(corpus)(answers, references), expected, rtol=1e-10, atol=1e-10)


@given(st.lists(texts.several, min_size=2, max_size=5), st.data())
def test_a_reference_has_the_maximum_and_their_order_does_not_matter(corpus, data):
    cider = CiderD(corpus)
    answer, several = data.draw(texts.answers), data.draw(texts.several)
    score = cider([answer], [several])
    assert score == cider([answer], [data.draw(st.permutations(several))])
    assert score.dtype == np.float64
    assert 0 <= score <= 10
    own = cider([several[0].upper()], [several[:1]])
    assert cider([answer], [several[:1]]) <= own + 1e-9


def test_an_answer_that_is_its_only_reference_has_ten():
    words = "one two three four five"
    assert CiderD([[words], ["nine"]])([words], [[words]]) == pytest.approx(10)


def test_the_digest_names_the_corpus():
    assert CiderD(CORPUS).digest == CiderD([[t.upper() for t in texts] for texts in CORPUS]).digest
    assert CiderD(CORPUS).digest != CiderD(CORPUS[:2]).digest


def test_bad_input_is_named():
    cider = CiderD(CORPUS)
    for arguments, message in texts.refusals("CiderD"):
        with pytest.raises(InputError, match=message):
            cider(*arguments)
    with pytest.raises(InputError, match="at least two items, got 1"):
        CiderD(CORPUS[:1])
    with pytest.raises(InputError, match="reference of at least one word, got ''"):
        CiderD([["a"], [""]])
