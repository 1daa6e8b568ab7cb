import numpy as np
import pytest

pytest.importorskip("sacrebleu", reason="pip install 'mirepoix[text]'")
pytest.importorskip("nltk", reason="pip install 'mirepoix[text]'")

from mirepoix.rewards.scenes import Captioning, CiderD, bleu, meteor, rouge_l
from mirepoix.rewards.scenes._captioning import DIGITS, PLACES, STROKES, SYNONYMS

TASK = Captioning(train=200, validation=20, test=30)


def words_for(scene):
    (relation,) = scene.relations
    first, second = scene.digits[relation.first], scene.digits[relation.second]
    return (
        DIGITS[first.label],
        DIGITS[second.label],
        STROKES[first.stroke],
        STROKES[second.stroke],
        relation.name,
    )


def test_references_are_true():
    examples = TASK.examples("train")
    for scene, references in zip(examples.scenes, examples.references, strict=True):
        first, second, look, other, relation = words_for(scene)
        ahead, back = PLACES[relation]
        assert len(references) == 5
        one, two, three, four, five = references
        for text in references:
            digits = [word for word in text.split() if word in DIGITS]
            assert digits == ([second, first] if text == two else [first, second])
        for text, places in ((one, ahead), (two, back), (three, ahead), (five, ahead)):
            middle = text.split(digits[0] if text != two else second, 1)[1].split(
                second if text != two else first
            )[0]
            assert any(f" {place} " in middle for place in places)
        assert one.split()[1] in look
        assert two.split()[1] in other
        assert any(f" {word} " in five for word in look)
        assert not set(four.split()) & {"left", "right", "above", "below"}


def test_references_begin_with_the_article_that_fits():
    for texts in TASK.examples("train").references:
        for text in texts:
            for word, following in zip(text.split(), text.split()[1:], strict=False):
                if word in ("a", "an"):
                    assert (word == "an") == (following in ("eight", "image"))


def test_every_word_is_used_and_synonyms_are_words():
    used = {
        word
        for texts in Captioning(train=1000).examples("train").references
        for text in texts
        for word in text.split()
    }
    assert used == set(TASK.vocabulary)
    assert {word for one, others in SYNONYMS.items() for word in (one, *others)} <= used


def test_rewards_are_the_metrics_with_the_end_as_a_word():
    examples = TASK.examples("test")
    rows, answers = [0, 1, 1, 2], [examples.references[0][0], "a seven", "", "a " * 17 + "a"]
    found = TASK.score(examples, rows, answers)
    said = [f"{answers[0]} <end>", "a seven <end>", " <end>", answers[3]]  # the last one never ended
    wanted = [[f"{text} <end>" for text in examples.references[row]] for row in rows]
    corpus = [[f"{text} <end>" for text in texts] for texts in TASK.examples("train").references]
    for name, values in (
        ("bleu1", bleu(said, wanted, order=1)),
        ("bleu4", bleu(said, wanted)),
        ("rouge", rouge_l(said, wanted)),
        ("meteor", meteor(said, wanted, SYNONYMS)),
        ("cider", CiderD(corpus)(said, wanted)),
    ):
        np.testing.assert_array_equal(found[name], values)
    assert found["bleu4"][0] == pytest.approx(1)


def test_no_caption_has_all_of_every_reward():
    # The five references of a scene say different things, so that rewards can disagree.
    examples = TASK.examples("test")
    best = []
    for row in range(len(examples)):
        scores = TASK.score(examples, [row] * 5, examples.references[row])
        best.append({name: int(np.argmax(scores[name])) for name in ("rouge", "meteor", "cider")})
    assert any(len(set(one.values())) > 1 for one in best)
