r"""Rewards of texts: what is said of a completion, as one number, larger is better.

Each is a `Reward`: called with ``prompts`` and ``completions`` (and the other columns of the data by name), it returns
one finite number per completion, and says so if it cannot. Any function of that form becomes one with `as_reward`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import math
import numbers
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mirepoix.rewards.text._corpus import Corpus
from mirepoix.rewards.text._libraries import library, quiet
from mirepoix.types import InputError

__all__ = [
    "BUILTIN",
    "Reward",
    "as_reward",
    "automated_readability",
    "bleu",
    "classifier",
    "distinct",
    "length_target",
    "load_reward",
    "named_reward",
    "rouge_l",
    "sentiment",
    "vader",
]

Function: TypeAlias = Callable[..., Sequence[float]]
"""``function(prompts, completions, **columns)``, one number per completion."""

WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


@dataclass(frozen=True)
class Reward:
    """A named reward, whose answers are checked.

    Attributes:
        name: In tables, in coefficients and in messages.
        function: ``function(prompts, completions, **columns)``; takes lists of texts and every other column of the
            data as a list, returns one number per completion.
        made_of: Plain values that decide the answers; results kept in a store are looked up by them.
    """

    name: str
    function: Function = field(repr=False)
    made_of: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.+-]+", self.name):
            raise InputError(
                f"reward: expected a name of letters, digits and any of _ . + -, got {self.name!r}."
            )

    @cached_property
    def digest(self) -> str:
        """Names the answers: equal digests, equal rewards."""
        text = json.dumps({**self.made_of, "code": _code_version()}, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """One number per completion.

        Raises:
            InputError: If the function raises, with the prompt it fails at; if it returns another number of values, or
                one that is no finite number.
        """
        try:
            values = self.function(list(prompts), list(completions), **columns)
        except InputError:
            raise
        except Exception as error:  # the function is the user's: it may raise anything
            where, found_error = self._culprit(prompts, completions, columns, error)
            raise InputError(
                f"reward {self.name!r} failed {where}: {type(found_error).__name__}: {found_error}."
            ) from error
        try:
            found = list(values)
        except TypeError as error:
            raise InputError(
                f"reward {self.name!r}: expected a list of {len(completions)} numbers, got {type(values).__name__}."
            ) from error
        if len(found) != len(completions):
            raise InputError(
                f"reward {self.name!r}: expected one number per completion, {len(completions)}, got {len(found)}; the "
                f"first prompt is {_shown(prompts[0]) if prompts else 'none'}."
            )
        result = []
        for place, value in enumerate(found):
            number = _number(value)
            if number is None or not math.isfinite(number):
                raise InputError(
                    f"reward {self.name!r}: expected a finite number, got {value!r} for the prompt "
                    f"{_shown(prompts[place])} and the completion {_shown(completions[place])}."
                )
            result.append(number)
        return result

    def _culprit(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Any],
        error: Exception,
    ) -> tuple[str, Exception]:
        """The first prompt with which the function fails by itself."""
        for place, (prompt, text) in enumerate(zip(prompts, completions, strict=True)):
            try:
                self.function([prompt], [text], **{name: [values[place]] for name, values in columns.items()})
            except Exception as found:
                return f"for the prompt {_shown(prompt)} and the completion {_shown(text)}", found
        first = _shown(prompts[0]) if prompts else "none"
        return f"for all {len(completions)} prompts together, of which the first is {first}", error


def as_reward(function: Function | Reward, name: str | None = None, *, version: str = "") -> Reward:
    """Any function as a `Reward`.

    Results in a store are looked up by the text of the function, that of its module and by ``version``, not by what it
    reads or calls elsewhere: give another version when that changes.

    Args:
        function: See `Reward`. A `Reward` comes back as it is, or under a new name.
        name: By default the name of the function.
        version: See above.

    Raises:
        InputError: If it cannot be called.
    """
    if isinstance(function, Reward):
        return function if name is None else Reward(name, function.function, function.made_of)
    if not callable(function):
        raise InputError(f"reward: expected a function, got {function!r}.")
    called = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        source = ""
    made_of = {
        "function": f"{getattr(function, '__module__', '')}:{called}",
        "source": source,
        "module": _module_digest(function),
        "version": version,
    }
    return Reward(name or called.rsplit(".", 1)[-1].strip("<>"), function, made_of)


@functools.cache
def _code_version() -> str:
    """A digest of this file, which decides what built-in rewards say."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def _module_digest(function: Any) -> str:
    """Of the source of the module that a function is from, as far as there is one."""
    try:
        text = inspect.getsource(sys.modules[function.__module__])
    except (OSError, TypeError, KeyError, AttributeError):
        return ""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load_reward(
    place: str, name: str | None = None, *, version: str = "", folders: Sequence[str | os.PathLike[str]] = ()
) -> Reward:
    """The function at ``module:function``, imported; for rewards that are named in a file or a command.

    Args:
        place: See above.
        name: As in `as_reward`.
        version: Likewise.
        folders: Where modules are looked for first; they stay on the path of Python.

    Raises:
        InputError: If there is no such module or function, or the module cannot be imported.
    """
    module, _, attribute = place.partition(":")
    if not module or not attribute:
        raise InputError(f"reward: expected module:function, got {place!r}.")
    for folder in reversed([os.path.abspath(folder) for folder in folders]):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the module is the user's: it may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name and module.startswith(error.name):
            raise InputError(
                f"reward {place!r}: there is no module {error.name!r}. Is its folder on the Python path?"
            ) from error
        raise InputError(
            f"reward {place!r}: module {module!r} could not be imported: {type(error).__name__}: {error}."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(f"reward {place!r}: {module} has no {attribute!r}.")
        found = getattr(found, part)
    return as_reward(found, name, version=version)  # type: ignore[arg-type]


BUILTIN = ("length", "distinct-2", "readability", "vader", "rouge-l", "bleu-4")
"""What `named_reward` knows, with an example of a number where one may be given."""


def named_reward(kind: str, name: str | None = None, *, known: Sequence[str] = ()) -> Reward:
    """A built-in reward by its name, for recipes and command lines.

    Args:
        kind: ``length``, or ``length-7`` for a target of 7 words (5 by default); ``distinct-2`` for the share of
            different pairs of words; ``readability``; ``vader``; ``rouge-l`` and ``bleu-4``, which read the column
            ``reference``.
        name: Of the reward; ``kind`` by default.
        known: Other names that messages list.

    Raises:
        InputError: For a name that is none of these.
    """
    plain, _, number = kind.rpartition("-")
    found: Reward | None = None
    if kind == "length":
        found = length_target(name=name or kind)
    elif kind == "readability":
        found = automated_readability(name=name or kind)
    elif kind == "vader":
        found = vader(name=name or kind)
    elif kind == "rouge-l":
        found = rouge_l(name=name or kind)
    elif number.isdecimal() and int(number) > 0:
        if plain == "length":
            found = length_target(int(number), name=name or kind)
        elif plain == "distinct":
            found = distinct(int(number), name=name or kind)
        elif plain == "bleu":
            found = bleu(order=int(number), name=name or kind)
    if found is None:
        raise InputError(
            f"reward: there is no built-in {kind!r}; expected one of {', '.join((*known, *BUILTIN))}, or a function as "
            "module:function."
        )
    return found


def length_target(words: int = 5, slack: float = 15.0, *, name: str = "length") -> Reward:
    r"""How near a completion is to a number of words: :math:`1 - |n - n^\star| / s`.

    1 at the target, 0 when ``slack`` words away, negative beyond. Words are what spaces separate. A reward that only
    asks for shorter texts ends in empty ones; a target does not.

    Args:
        words: The target.
        slack: See above.
        name: Of the reward.

    Raises:
        InputError: If ``slack`` is not positive or ``words`` negative.
    """
    if not (math.isfinite(slack) and slack > 0) or words < 0:
        raise InputError(f"length_target: expected words >= 0 and slack > 0, got {words} and {slack}.")

    def near(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [1 - abs(len(text.split()) - words) / slack for text in completions]

    return Reward(name, near, {"kind": "length_target", "words": words, "slack": slack})


def distinct(order: int = 2, *, name: str | None = None) -> Reward:
    """The share of different n-grams of words among those of the completion: 1 if none comes twice.

    0 for a completion with fewer than ``order`` words, so that silence does not win.

    Args:
        order: Words of an n-gram.
        name: Of the reward; ``distinct-2`` and so on by default.

    Raises:
        InputError: If ``order`` is below 1.

    References:
        Li et al. (2016), A diversity-promoting objective function for neural conversation models.
    """
    if order < 1:
        raise InputError(f"distinct: expected an order of at least 1, got {order}.")

    def share(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        values = []
        for text in completions:
            words = text.split()
            grams = [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]
            values.append(len(set(grams)) / len(grams) if grams else 0.0)
        return values

    return Reward(name or f"distinct-{order}", share, {"kind": "distinct", "order": order})


def automated_readability(*, easier: bool = True, name: str = "readability") -> Reward:
    r"""The automated readability index of the completion, with its sign turned: higher is easier to read.

    .. math:: \text{ARI} = 4.71\, \frac{\text{characters}}{\text{words}} + 0.5\,
        \frac{\text{words}}{\text{sentences}} - 21.43,

    about the school grade that is needed. Characters are letters and digits, words have at least one of them, and a
    sentence ends at ``.``, ``!`` or ``?``, or with the text. A text without words has index 0.

    Args:
        easier: Whether the sign is turned. Pass False to reward texts that are harder to read.
        name: Of the reward.

    References:
        Senter and Smith (1967), Automated readability index.
    """
    sign = -1.0 if easier else 1.0

    def index(text: str) -> float:
        words = [word for word in text.split() if any(mark.isalnum() for mark in word)]
        if not words:
            return 0.0
        sentences = sum(any(m.isalnum() for m in part) for part in re.split(r"[.!?]+", text))
        characters = sum(mark.isalnum() for word in words for mark in word)
        return 4.71 * characters / len(words) + 0.5 * len(words) / sentences - 21.43

    def values(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [sign * index(text) for text in completions]

    return Reward(name, values, {"kind": "automated_readability", "easier": easier})


def sentiment(
    corpus: Corpus, *, part: str = "train", least: int = 5, strength: float = 0.1, name: str = "sentiment"
) -> Reward:
    r"""How much a completion speaks for a positive review: the log-odds of a logistic regression on words.

    .. math:: \log \frac{p(\text{positive} \mid y)}{p(\text{negative} \mid y)} = b + \sum_{w \in y} c_w,

    where a word counts once however often it comes. The regression is fitted on the lines of the corpus, each with
    the label of its review. Zero is undecided, no bound on either side; an empty completion has :math:`b`, about 0.

    Args:
        corpus: With labels.
        part: Fitted on.
        least: Lines in which a word must come to be counted.
        strength: Inverse strength of the L2 penalty (scikit-learn's ``C``).
        name: Of the reward.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    lines = corpus.part(part)
    counts = CountVectorizer(binary=True, min_df=least, token_pattern=WORD.pattern)
    seen = counts.fit_transform([line.text for line in lines])
    fitted = LogisticRegression(C=strength, max_iter=1000, tol=1e-6)
    fitted.fit(seen, np.array([line.label for line in lines]))
    words = dict(zip(counts.get_feature_names_out().tolist(), fitted.coef_[0].tolist(), strict=True))
    constant = float(fitted.intercept_[0])

    def log_odds(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [
            constant + math.fsum(words.get(word, 0.0) for word in set(WORD.findall(text.lower())))
            for text in completions
        ]

    made_of = {
        "kind": "sentiment",
        "corpus": corpus.digest,
        "part": part,
        "least": least,
        "strength": strength,
    }
    return Reward(name, log_odds, made_of)


def vader(*, name: str = "vader") -> Reward:
    """The compound score of VADER in [-1, 1]: from negative to positive; 0 where the lexicon knows no word.

    Most short texts have 0, so it is a reward to evaluate with rather than to train with.

    Args:
        name: Of the reward.

    References:
        Hutto and Gilbert (2014), VADER: a parsimonious rule-based model for sentiment analysis.
    """
    module = library("vaderSentiment.vaderSentiment")
    analyzer = module.SentimentIntensityAnalyzer()

    def compound(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [float(analyzer.polarity_scores(text)["compound"]) for text in completions]

    return Reward(name, compound, {"kind": "vader"})


def rouge_l(*, column: str = "reference", stemmed: bool = True, name: str = "rouge-l") -> Reward:
    """ROUGE-L against a reference, the F-measure in [0, 1].

    Args:
        column: Of the data, with the reference of each prompt.
        stemmed: Whether words are compared by their stems.
        name: Of the reward.

    References:
        Lin (2004), ROUGE: a package for automatic evaluation of summaries.
    """
    scorer = library("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=stemmed)

    def measure(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        references = _column(name, column, columns, completions)
        return [
            float(scorer.score(reference, text)["rougeL"].fmeasure)
            for reference, text in zip(references, completions, strict=True)
        ]

    return Reward(name, measure, {"kind": "rouge_l", "column": column, "stemmed": stemmed})


def bleu(*, column: str = "reference", order: int = 4, name: str | None = None) -> Reward:
    """BLEU of each completion against a reference, in [0, 1].

    Of a single sentence: exponential smoothing, and no n-grams longer than the sentence.

    Args:
        column: Of the data, with the reference of each prompt.
        order: The longest n-gram; 1 is BLEU-1.
        name: Of the reward; ``bleu-4`` and so on by default.

    References:
        Papineni et al. (2002), BLEU; Post (2018), A call for clarity in reporting BLEU scores.
    """
    if order < 1:
        raise InputError(f"bleu: expected an order of at least 1, got {order}.")
    metric = library("sacrebleu").metrics.BLEU(effective_order=True, max_ngram_order=order)
    called = name or f"bleu-{order}"

    def measure(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        references = _column(called, column, columns, completions)
        return [
            metric.sentence_score(text, [reference]).score / 100
            for reference, text in zip(references, completions, strict=True)
        ]

    return Reward(called, measure, {"kind": "bleu", "column": column, "order": order})


def classifier(
    folder: str | os.PathLike[str],
    *,
    label: int | str | None = None,
    minus: int | str | None = None,
    with_prompt: bool = True,
    batch_size: int = 32,
    device: str = "auto",
    name: str = "classifier",
) -> Reward:
    """A logit of a sequence classifier of transformers: a reward model, or a detector.

    Args:
        folder: As ``save_pretrained`` writes it, with the tokenizer. Nothing is downloaded.
        label: Which logit, by number or by its name in the settings; the only one by default.
        minus: A logit to subtract, as in logit(faithful) - logit(hallucinated).
        with_prompt: Whether it reads the prompt before the completion.
        batch_size: Texts at once. One that is too long loses its beginning.
        device: Where it runs: ``auto`` is the accelerator if there is one, else the CPU.
        name: Of the reward.

    Raises:
        InputError: If it is no such folder, has no such label, or has several and none is named.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: expected the folder of a sequence classifier, got no config.json in it.")
    import torch

    from mirepoix.training import choose_device

    transformers = library("transformers")
    chosen = choose_device(device)
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        ).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model.to(chosen)
    tokenizer.truncation_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    labels = {str(text): int(number) for number, text in model.config.id2label.items()}

    def number_of(given: int | str, option: str) -> int:
        found = labels.get(given) if isinstance(given, str) else given
        if found is None or not 0 <= found < len(labels):
            raise InputError(f"{option}: expected one of {', '.join(labels)}, or its number, got {given!r}.")
        return found

    if label is None and len(labels) > 1:
        raise InputError(
            f"label: {folder} has {len(labels)} labels, {', '.join(labels)}. Name the one to reward."
        )
    plus = number_of(0 if label is None else label, "label")
    other = None if minus is None else number_of(minus, "minus")

    def logits(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        texts = (
            [_joined(p, c) for p, c in zip(prompts, completions, strict=True)] if with_prompt else completions
        )
        values: list[float] = []
        for first in range(0, len(texts), batch_size):
            batch = tokenizer(
                texts[first : first + batch_size], padding=True, truncation=True, return_tensors="pt"
            )
            with torch.no_grad():
                found = model(**batch.to(model.device)).logits.float()
            values += (found[:, plus] - (0 if other is None else found[:, other])).tolist()
        return values

    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".json", ".bin"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(file.name.encode() + b"\0" + hashlib.file_digest(content, "sha256").digest())
    made_of = {
        "kind": "classifier",
        "files": digest.hexdigest(),
        "label": plus,
        "minus": other,
        "with_prompt": with_prompt,
    }
    return Reward(name, logits, made_of)


def _joined(prompt: str, completion: str) -> str:
    """A tokenizer of words drops the space with which a completion begins."""
    return prompt + completion if completion[:1].isspace() or not prompt else f"{prompt} {completion}"


def _column(name: str, column: str, columns: Mapping[str, Any], completions: Sequence[str]) -> Sequence[str]:
    if column not in columns:
        have = ", ".join(sorted(columns)) or "none"
        raise InputError(
            f"reward {name!r}: expected the data to have the column {column!r}, got columns: {have}."
        )
    found: Sequence[str] = columns[column]
    if len(found) != len(completions):
        raise InputError(
            f"reward {name!r}: expected {len(completions)} values in the column {column!r}, got {len(found)}."
        )
    return found


def _number(value: Any) -> float | None:
    """A real number as a float; None for anything else, truth values and texts included."""
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, numbers.Real):
        return float(value)
    if getattr(value, "ndim", None) == 0:  # a tensor or array of one number
        return _number(value.item())
    return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
