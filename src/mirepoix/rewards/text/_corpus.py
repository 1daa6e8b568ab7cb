"""Movie reviews, line by line, with the opinion of the review: a small corpus for the study of several rewards."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = ["Corpus", "Line", "Prompts", "movie_reviews"]

PARTS = ("train", "validation", "test")
OPINIONS = {"neg": 0, "pos": 1}


class Line(NamedTuple):
    """One line of a review.

    Attributes:
        text: Its words, with one space between them.
        label: 1 if the review is positive, 0 if it is negative.
        review: Which review it is from.
    """

    text: str
    label: int
    review: str


@dataclass(frozen=True)
class Prompts:
    """Beginnings of lines, and how the lines went on.

    Attributes:
        texts: The first words of each line.
        references: The rest of each line, without the space before it.
    """

    texts: tuple[str, ...]
    references: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def digest(self) -> str:
        """Names the content."""
        return _digest(part for pair in zip(self.texts, self.references, strict=True) for part in pair)


@dataclass(frozen=True)
class Corpus:
    """Lines of labelled reviews in three parts; all lines of a review are in one part.

    Attributes:
        parts: From ``train``, ``validation`` and ``test`` to their lines.
    """

    parts: Mapping[str, tuple[Line, ...]]

    def part(self, name: str) -> tuple[Line, ...]:
        """The lines of one part.

        Raises:
            InputError: If there is no part of that name.
        """
        if name not in self.parts:
            raise InputError(f"part: expected one of {', '.join(self.parts)}, got {name!r}.")
        return self.parts[name]

    @cached_property
    def digest(self) -> str:
        """Names the content, part by part."""
        return _digest(
            piece
            for name, lines in self.parts.items()
            for piece in (name, *(f"{line.label} {line.review} {line.text}" for line in lines))
        )

    def prompts(self, part: str, count: int, *, seed: int = 0, words: tuple[int, int] = (2, 8)) -> Prompts:
        """First words of some lines, drawn without replacement.

        How many words is drawn too, uniformly from ``words``, both ends included. A line with fewer words keeps at
        least its last one for the reference; a line with no more than the fewest words is left out.

        Args:
            part: Of the corpus.
            count: How many prompts.
            seed: Of the draws.
            words: The fewest and the most words of a prompt; 2 and 8 in the text experiments of rewarded soups.

        Raises:
            InputError: If the part has fewer lines that are long enough, or ``words`` are no two rising numbers.
        """
        fewest, most = words
        if not 1 <= fewest <= most:
            raise InputError(f"words: expected two rising whole numbers from 1, got {words!r}.")
        long = [tokens for line in self.part(part) if len(tokens := line.text.split(" ")) > fewest]
        if not 1 <= count <= len(long):
            raise InputError(f"count: expected 1 to {len(long)} prompts from {part!r}, got {count}.")
        random = stream("prompts", part, seed)
        chosen = random.choice(len(long), size=count, replace=False)
        numbers = random.integers(fewest, most + 1, size=count)
        pairs = []
        for place, number in zip(chosen, numbers, strict=True):
            tokens = long[int(place)]
            cut = min(int(number), len(tokens) - 1)
            pairs.append((" ".join(tokens[:cut]), " ".join(tokens[cut:])))
        return Prompts(tuple(text for text, _ in pairs), tuple(rest for _, rest in pairs))


def movie_reviews(
    path: str | os.PathLike[str], *, shortest: int = 20, longest: int = 120, held_out: int = 10
) -> Corpus:
    """Read the polarity corpus of movie reviews (Pang and Lee, 2004) as NLTK packs it.

    A line is about a sentence. Lines are kept if they have from ``shortest`` to ``longest`` characters. The part of a
    review depends on its name alone: of ``held_out`` reviews about one is for validation and one for the test.

    Args:
        path: ``movie_reviews.zip``, with ``pos/`` and ``neg/`` and a text file per review; only these are read.
        shortest: The fewest characters of a line.
        longest: The most characters of a line.
        held_out: See above.

    Raises:
        InputError: If it is no such file, or no line is left in one of the parts.

    References:
        Pang and Lee (2004), A sentimental education.
    """
    path = Path(path)
    if held_out < 3:
        raise InputError(f"held_out: expected at least 3, got {held_out}.")
    if not path.is_file():
        raise InputError(
            f"{path}: expected movie_reviews.zip, the corpus of Pang and Lee as NLTK packs it, got no such file."
        )
    parts: dict[str, list[Line]] = {name: [] for name in PARTS}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                place = PurePosixPath(name)
                if place.suffix != ".txt" or place.parent.name not in OPINIONS:
                    continue
                review = f"{place.parent.name}/{place.stem}"
                part = parts[_part(review, held_out)]
                for line in archive.read(name).decode("utf-8", errors="replace").splitlines():
                    text = " ".join(line.split())
                    if shortest <= len(text) <= longest:
                        part.append(Line(text, OPINIONS[place.parent.name], review))
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: cannot be read as a zip archive: {error}.") from error
    empty = [name for name, lines in parts.items() if len({line.label for line in lines}) < 2]
    if empty:
        raise InputError(
            f"{path}: expected lines of {shortest} to {longest} characters in pos/*.txt and neg/*.txt, got too few "
            f"for the part {empty[0]!r}."
        )
    return Corpus({name: tuple(lines) for name, lines in parts.items()})


def _part(review: str, held_out: int) -> str:
    number = int.from_bytes(hashlib.sha256(review.encode()).digest()[:8], "big") % held_out
    return {0: "test", 1: "validation"}.get(number, "train")


def _digest(pieces: object) -> str:
    digest = hashlib.sha256()
    for piece in pieces:  # type: ignore[attr-defined]
        digest.update(str(piece).encode() + b"\0")
    return digest.hexdigest()[:32]
