import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import meteor_2007 as reference
from tests.rewards.scenes import texts

pytest.importorskip("nltk", reason="pip install 'mirepoix[text]'")

from mirepoix.rewards.scenes._meteor import meteor
from mirepoix.types import InputError

SYNONYMS = {"above": ["over"], "bold": ["thick", "heavy"], "digit": ["figure"]}


def of(answer, *references, synonyms=None):
    return meteor([answer], [list(references)], synonyms)[0]


def test_scores_by_hand():
    # Matches in places (0, 0), (1, 2), (2, 3): two chunks.
    expected = reference.meteor([(0, 0), (1, 2), (2, 3)], 3, 4)
    assert of("a seven above", "a bold seven above") == pytest.approx(expected)
    # Two chunks of one word: half of the fraction is lost.
    assert of("seven bold", "bold seven") == pytest.approx(0.5)
    # Stems match: "sevens" and "seven".
    assert of("bold sevens", "bold seven") == pytest.approx(1 - 0.5 / 8)
    # The best of the references.
    assert of("two", "a two", "two") == pytest.approx(0.5)
    assert of("", "two") == of("nothing right", "two") == 0


@pytest.mark.parametrize(
    ("one", "two"),
    [("bold", "thick"), ("thick", "bold"), ("above", "over"), ("OVER", "above"), ("digits", "figure")],
)
def test_synonyms_match_both_ways_and_through_stems(one, two):
    found = of(f"a seven {one} it", f"a seven {two} it", synonyms=SYNONYMS)
    assert found == pytest.approx(1 - 0.5 / 4**3)
    assert of(f"a seven {one} it", f"a seven {two} it") == pytest.approx(
        reference.meteor([(0, 0), (1, 1), (3, 3)], 4, 4)
    )


def test_a_synonym_of_a_synonym_is_none():
    assert of("thick", "heavy", synonyms=SYNONYMS) == 0
    assert of("thick", "heavy", synonyms={**SYNONYMS, "thick": ["heavy"]}) == 0.5


@given(texts.words, st.data())
def test_an_answer_that_is_its_reference_has_the_maximum(words, data):
    text = " ".join(words)
    most = 1 - 0.5 / len(words) ** 3
    assert of(text.upper(), text, synonyms=SYNONYMS) == pytest.approx(most)
    assert of(data.draw(texts.answers), text, synonyms=SYNONYMS) <= most + 1e-12


@given(texts.several, texts.answers, st.data())
def test_the_order_of_references_does_not_matter(several, answer, data):
    score = meteor([answer], [several], SYNONYMS)
    assert score == meteor([answer], [data.draw(st.permutations(several))], SYNONYMS)
    assert score.dtype == np.float64
    assert 0 <= score < 1


def test_bad_input_is_named():
    for arguments, message in texts.refusals("meteor"):
        with pytest.raises(InputError, match=message):
            meteor(*arguments)
    with pytest.raises(InputError, match="synonyms: expected single words, got 'left of' for 'beside'"):
        meteor(["a"], [["a"]], {"beside": ["left of"]})
    with pytest.raises(InputError, match="synonyms: expected a list of words for 'bold', got 'thick'"):
        meteor(["a"], [["a"]], {"bold": "thick"})
    with pytest.raises(InputError, match="synonyms: expected a mapping"):
        meteor(["a"], [["a"]], ["bold"])
