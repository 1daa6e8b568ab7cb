"""A corpus of invented reviews, and a language model that learns it in a second."""

from __future__ import annotations

import zipfile
from pathlib import Path

from mirepoix.rewards.text import Corpus, TextRun, TextStart, movie_reviews, tiny_start
from mirepoix.seeds import stream

NOUNS = ("film", "plot", "actor", "scene", "story", "script", "hero", "music", "ending", "camera")
GOOD = ("great", "moving", "lovely", "clever", "warm")
BAD = ("dull", "awful", "boring", "clumsy", "weak")
RUN = TextRun(
    steps=6, batch_size=8, completions=4, max_tokens=6, learning_rate=5e-3, rank=2, alpha=4, samples=16
)
RESULTS: dict[str, object] = {}


def write_reviews(path: Path, reviews: int = 60, lines: int = 12) -> Path:
    """A zip archive like that of the real corpus."""
    random = stream("small reviews")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("movie_reviews/README", "invented")
        for opinion, words in (("pos", GOOD), ("neg", BAD)):
            for number in range(reviews):
                text = []
                for _ in range(lines):
                    noun, other = random.choice(NOUNS, 2)
                    word, more = random.choice(words, 2)
                    text.append(f"the {noun} is {word} and the {other}   was {more} .")
                archive.writestr(
                    f"movie_reviews/{opinion}/cv{number:03d}.txt", "\n".join([*text, "short", "x" * 200])
                )
    return path


def corpus(folder: Path) -> Corpus:
    return movie_reviews(write_reviews(folder / "reviews.zip"))


def start(corpus: Corpus, folder: Path, **options: object) -> TextStart:
    made = {
        "steps": 60,
        "words": 320,
        "width": 16,
        "layers": 1,
        "batch_size": 16,
        "learning_rate": 1e-2,
        **options,
    }
    return tiny_start(corpus, folder, **made)  # type: ignore[arg-type]
