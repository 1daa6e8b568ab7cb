import math
import sys

import numpy as np
import pytest

from mirepoix.rewards.text import (
    Reward,
    as_reward,
    automated_readability,
    bleu,
    classifier,
    distinct,
    length_target,
    load_reward,
    movie_reviews,
    rouge_l,
    sentiment,
    vader,
)
from mirepoix.types import InputError


def of(reward, *completions, **columns):
    return reward(["a prompt"] * len(completions), completions, **columns)


def test_length_target():
    assert of(length_target(), "", "a b c d e", " a  b c d e f g h", " ".join("x" * 35)) == [
        pytest.approx(1 - 5 / 15),
        1.0,
        pytest.approx(1 - 3 / 15),
        -1.0,
    ]
    with pytest.raises(InputError, match="slack > 0"):
        length_target(slack=0)


def test_distinct():
    assert of(distinct(2), "a b a b", "a b c", "a", "") == [pytest.approx(2 / 3), 1.0, 0.0, 0.0]
    assert of(distinct(1), "a a a b") == [0.5]
    assert distinct(3).name == "distinct-3"
    with pytest.raises(InputError, match="order of at least 1"):
        distinct(0)


def test_automated_readability():
    # 9 words, 37 letters, 2 sentences.
    text = "the film was quite long . nobody laughed anyway !"
    words = ["the", "film", "was", "quite", "long", "nobody", "laughed", "anyway"]
    expected = 4.71 * sum(map(len, words)) / len(words) + 0.5 * len(words) / 2 - 21.43
    assert of(automated_readability(easier=False), text, " . ! ", "")[0] == pytest.approx(expected)
    assert of(automated_readability(), text, "...") == [pytest.approx(-expected), 0.0]


def test_sentiment_is_the_log_odds_of_the_regression(corpus):
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    reward = sentiment(corpus)
    lines = corpus.part("train")
    counts = CountVectorizer(binary=True, min_df=5, token_pattern=r"[a-z]+(?:'[a-z]+)?")
    model = LogisticRegression(C=0.1, max_iter=1000, tol=1e-6)
    model.fit(counts.fit_transform([line.text for line in lines]), [line.label for line in lines])
    texts = ["the film is great", "a dull , dull plot", "", "unknown words"]
    odds = model.decision_function(counts.transform(texts))
    np.testing.assert_allclose(of(reward, *texts), odds, atol=1e-9)
    good, bad, empty, unknown = of(reward, *texts)
    assert good > 0.5 > -0.5 > bad
    assert empty == unknown
    assert sentiment(corpus).digest == reward.digest != sentiment(corpus, strength=1.0).digest


def test_a_reward_that_says_what_is_no_reward_is_named_with_the_texts():
    def broken(answer):
        return as_reward(lambda prompts, completions, **columns: answer, "broken")

    good = ["good", "fine"]
    assert broken([1, np.float32(0.5)])(good, good) == [1.0, 0.5]
    assert broken(np.array([1, 2]))(good, good) == [1.0, 2.0]
    with pytest.raises(InputError, match="reward 'broken': expected one number per completion, 2, got 1"):
        broken([1.0])(good, good)
    with pytest.raises(InputError, match="expected a list of 2 numbers, got float"):
        broken(1.0)(good, good)
    for bad in (math.nan, -math.inf, None, "1", True, 1j):
        with pytest.raises(
            InputError, match=r"'broken': expected a finite number.*prompt 'good'.*completion 'fine'"
        ):
            broken([1.0, bad])(["bad", "good"], ["so", "fine"])
    with pytest.raises(InputError, match="expected a name of letters"):
        Reward("two words", len, {})
    with pytest.raises(InputError, match="expected a function"):
        as_reward(3)


def test_any_function_by_module_and_name(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def shorter(prompts, completions, **columns):\n    return [-len(text) for text in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    reward = load_reward("my_rewards:shorter")
    assert reward.name == "shorter"
    assert of(reward, "abc") == [-3.0]
    assert load_reward("my_rewards:shorter", version="2").digest != reward.digest
    assert load_reward("my_rewards:shorter", "brief").name == "brief"
    with pytest.raises(InputError, match="my_rewards has no 'longer'"):
        load_reward("my_rewards:longer")
    with pytest.raises(InputError, match="no module 'nowhere_at_all'"):
        load_reward("nowhere_at_all:f")
    with pytest.raises(InputError, match="expected module:function"):
        load_reward("my_rewards")
    del sys.modules["my_rewards"]


def test_vader():
    pytest.importorskip("vaderSentiment", reason="pip install 'mirepoix[text]'")
    good, bad, none = of(vader(), "a great , lovely film", "an awful , boring film", "the of and")
    assert 1 >= good > 0.5 > -0.5 > bad >= -1
    assert none == 0


def test_rouge_l_and_bleu():
    pytest.importorskip("rouge_score", reason="pip install 'mirepoix[text]'")
    pytest.importorskip("sacrebleu", reason="pip install 'mirepoix[text]'")
    references = ["the film is good"] * 3
    texts = ["the film is good", "the film was bad", "unrelated words"]
    rouge = of(rouge_l(stemmed=False), *texts, reference=references)
    # The longest common subsequence of the second has two words of four.
    assert rouge == [1.0, pytest.approx(0.5), 0.0]
    assert of(bleu(order=1), *texts, reference=references)[:2] == [pytest.approx(1), pytest.approx(0.5)]
    assert of(bleu(), *texts, reference=references)[0] == pytest.approx(1)
    with pytest.raises(InputError, match=r"'rouge-l': expected the data to have the column 'reference'"):
        of(rouge_l(), "a")
    with pytest.raises(InputError, match="expected 1 values in the column"):
        of(bleu(), "a", reference=["a", "b"])


def test_a_classifier_of_transformers(start, tmp_path):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig.from_pretrained(start.folder)
    config.num_labels, config.id2label, config.label2id = 2, {0: "no", 1: "yes"}, {"no": 0, "yes": 1}
    model = transformers.LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "judge")
    start.tokenizer.save_pretrained(tmp_path / "judge")
    prompts, completions = ["the film", "the plot is"], [" is good .", "dull and long indeed ."]
    expected = []
    for text in ("the film is good .", "the plot is dull and long indeed ."):
        with torch.no_grad():
            expected.append(model(**start.tokenizer(text, return_tensors="pt")).logits[0].tolist())
    yes = classifier(tmp_path / "judge", label="yes", name="judge")
    both = classifier(tmp_path / "judge", label=1, minus="no", batch_size=1)
    assert yes(prompts, completions) == pytest.approx([row[1] for row in expected], abs=1e-5)
    assert both(prompts, completions) == pytest.approx([row[1] - row[0] for row in expected], abs=1e-5)
    with pytest.raises(InputError, match=r"has 2 labels, no, yes\. Name the one to reward"):
        classifier(tmp_path / "judge")
    with pytest.raises(InputError, match="label: expected one of no, yes"):
        classifier(tmp_path / "judge", label="maybe")
    with pytest.raises(InputError, match=r"expected the folder of a sequence classifier"):
        classifier(tmp_path)


@pytest.mark.shared
def test_sentiment_of_the_real_reviews(shared):
    path = shared / "data" / "text" / "movie_reviews.zip"
    if not path.is_file():
        pytest.skip("movie_reviews.zip is not here")
    corpus = movie_reviews(path)
    reward = sentiment(corpus)
    lines = corpus.part("validation")
    odds = np.array(reward([""] * len(lines), [line.text for line in lines]))
    # A line says little about its review; the words of one that speaks are worth more than chance.
    assert ((odds > 0) == [line.label == 1 for line in lines]).mean() > 0.6


def test_a_function_that_raises_names_itself_and_the_prompt():
    def picky(prompts, completions, **columns):
        return [1 / len(text) for text in completions]

    with pytest.raises(
        InputError, match=r"reward 'picky' failed for the prompt 'two' and .* '': ZeroDivision"
    ):
        as_reward(picky)(["one", "two"], ["a", ""])

    def lonely(prompts, completions, **columns):
        if len(prompts) > 1:
            raise KeyError("batch")
        return [0.0]

    with pytest.raises(InputError, match="for all 2 prompts together, of which the first is 'one': KeyError"):
        as_reward(lonely)(["one", "two"], ["a", "b"])
    with pytest.raises(InputError, match="got 1; the first prompt is 'one'"):
        as_reward(lambda prompts, completions, **columns: [0.0], "few")(["one", "two"], ["a", "b"])
