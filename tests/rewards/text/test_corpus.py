import zipfile

import pytest

from mirepoix.rewards.text import movie_reviews
from mirepoix.types import InputError
from tests.rewards.text import small


def test_lines_have_one_space_between_words_and_the_label_of_their_review(corpus):
    for lines in corpus.parts.values():
        for line in lines:
            assert 20 <= len(line.text) <= 120
            assert line.text == " ".join(line.text.split())
            assert line.label == line.review.startswith("pos/")
            assert any(word in line.text for word in (small.GOOD if line.label else small.BAD))


def test_a_review_is_in_one_part_and_most_are_for_training(corpus):
    reviews = {name: {line.review for line in lines} for name, lines in corpus.parts.items()}
    assert sum(map(len, reviews.values())) == len(set.union(*reviews.values())) == 120
    assert len(reviews["train"]) > 0.7 * 120


def test_prompts_are_beginnings_drawn_by_seed(corpus):
    prompts = corpus.prompts("train", 40, seed=3, words=(2, 5))
    assert len(prompts) == 40
    known = {line.text for line in corpus.part("train")}
    for text, rest in zip(prompts.texts, prompts.references, strict=True):
        assert 2 <= len(text.split()) <= 5
        assert rest
        assert f"{text} {rest}" in known
    assert prompts.digest == corpus.prompts("train", 40, seed=3, words=(2, 5)).digest
    assert prompts.digest != corpus.prompts("train", 40, seed=4, words=(2, 5)).digest


def test_equal_files_have_equal_digests(corpus, tmp_path):
    assert movie_reviews(small.write_reviews(tmp_path / "again.zip")).digest == corpus.digest
    fewer = movie_reviews(small.write_reviews(tmp_path / "fewer.zip", reviews=59))
    assert fewer.digest != corpus.digest


def test_what_is_no_corpus_is_refused(corpus, tmp_path):
    with pytest.raises(InputError, match=r"none\.zip: expected movie_reviews\.zip"):
        movie_reviews(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(InputError, match="cannot be read as a zip archive"):
        movie_reviews(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("movie_reviews/pos/a.txt", "a line that is long enough")
    with pytest.raises(InputError, match=r"expected lines of 20 to 120 characters in pos/\*\.txt"):
        movie_reviews(tmp_path / "empty.zip")
    with pytest.raises(InputError, match="count: expected 1 to"):
        corpus.prompts("test", 10**6)
    with pytest.raises(InputError, match="part: expected one of train, validation, test, got 'dev'"):
        corpus.part("dev")
    with pytest.raises(InputError, match="words: expected two rising"):
        corpus.prompts("test", 1, words=(4, 2))


@pytest.mark.shared
def test_the_real_corpus(shared):
    path = shared / "data" / "text" / "movie_reviews.zip"
    if not path.is_file():
        pytest.skip("movie_reviews.zip is not here")
    corpus = movie_reviews(path)
    assert {name: len(lines) for name, lines in corpus.parts.items()} == {
        "train": 28190,
        "validation": 3590,
        "test": 3317,
    }
    assert len(corpus.prompts("train", 2000)) == 2000
