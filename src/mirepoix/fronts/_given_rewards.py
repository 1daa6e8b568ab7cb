"""Rewards of weights: by functions of the weights, or by what a language model completes with them.

Every value is kept as soon as it is known, by the content of the weights, of the prompts and of the reward.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirepoix.checkpoints import read_json, write_json
from mirepoix.fronts._given_experts import Point, quoted
from mirepoix.fronts._prompts import read_prompts
from mirepoix.rewards._sweep import as_float64, kept_values
from mirepoix.scores import load_score
from mirepoix.store import key_of
from mirepoix.types import InputError, Weights

if TYPE_CHECKING:
    from mirepoix.rewards.text import Reward, TextModel, TextStart

__all__ = ["Evaluation", "OfTexts", "OfWeights", "Speaking", "forget"]

COMPLETIONS = "completions"
KEPT = re.compile(r"[0-9a-f]{32}\.json")
SHOWN = 3
"""Prompts whose completions are shown."""


@dataclass(frozen=True, kw_only=True)
class Speaking:
    """How weights of a language model are made to speak.

    Attributes:
        prompts: A ``.txt`` file with a prompt per line, or a ``.json`` or ``.jsonl`` file of objects with the key
            ``prompt``, whose other keys become the columns that rewards ask for.
        max_tokens: The most tokens of a completion; 32 is that of the published evaluations.
        temperature: 0, the default, takes the most probable token, as the published evaluations did.
        batch_size: Prompts at once.
        device: Such as ``cuda``; ``auto`` is the accelerator if there is one, else the CPU.
    """

    prompts: Path
    max_tokens: int = 32
    temperature: float = 0.0
    batch_size: int = 64
    device: str = "auto"


class Evaluation:
    """Rewards of weights, found among the kept values or computed and kept.

    Attributes:
        names: Of the rewards; empty while they are not known.
        identity: What decides the values beside the weights.
    """

    names: tuple[str, ...] = ()
    identity: dict[str, Any]

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.items: int | None = None
        self.first = ""

    def table(self, point: Point) -> dict[str, list[float]]:
        """From each reward to its values, one per item."""
        raise NotImplementedError

    def facts(self, items: int) -> list[tuple[str, str]]:
        raise NotImplementedError

    def protocol(self) -> dict[str, Any]:
        raise NotImplementedError

    def samples(self, shown: Sequence[tuple[str, Point]]) -> dict[str, Any] | None:
        return None

    def lookup(
        self,
        identity: Mapping[str, Any],
        compute: Callable[[], Mapping[str, Any]],
        where: Callable[[str], str],
    ) -> dict[str, list[float]]:
        """The values kept under an identity, else computed, checked and kept."""
        path = self.folder / f"{key_of(identity)}.json"
        values = kept_values(path, identity)
        if values is not None and self.items not in (None, *map(len, values.values())):
            values = None  # what the reward reads has changed since
        if values is None:
            with _seeded(self.seed):
                found = compute()
            values = {name: self._checked(found[name], where(name)) for name in found}
            write_json(path, {"format": 1, "made_of": dict(identity), "values": values})
        for name, numbers in values.items():
            self._count(len(numbers), where(name))
        return values

    def _checked(self, found: Any, where: str) -> list[float]:
        array = as_float64(found)
        if array is None or array.ndim != 1 or not array.size:
            shape = "something else" if array is None else f"shape {array.shape}"
            raise InputError(f"{where}: expected a list with one number per evaluation item, got {shape}.")
        self._count(len(array), where)
        bad = np.flatnonzero(~np.isfinite(array))
        if len(bad):
            raise InputError(
                f"{where}: expected finite numbers, got {array[bad[0]]} for item {bad[0]}, and {len(bad)} such in all. "
                "Mend the reward, or leave the item out."
            )
        return [float(value) for value in array]

    def _count(self, count: int, where: str) -> None:
        if self.items is None:
            self.items, self.first = count, where
        if count != self.items:
            raise InputError(
                f"{where}: expected {self.items} values, one per item as from {self.first}, got {count}. All rewards "
                "judge the same items every time; if what they read has changed, pass --fresh."
            )


class OfWeights(Evaluation):
    """By functions of the weights."""

    def __init__(self, rewards: Sequence[str], folder: Path, seed: int) -> None:
        super().__init__(folder, seed)
        self.functions: list[tuple[str | None, str, Callable[[Weights], Any], str]] = []
        for text in rewards:
            name, place = _name_and_place(text)
            if ":" not in place:
                more = (
                    " Texts are rewarded with --prompts."
                    if _is_built_in(place) or Path(place).is_dir()
                    else ""
                )
                raise InputError(
                    f"--rewards: expected [NAME=]MODULE:FUNCTION, a function of weights, got {text!r}.{more}"
                )
            try:
                function = load_score(place)
            except InputError as error:
                raise InputError(f"--rewards: {str(error).removeprefix('score: ')}") from error
            self.functions.append((name, place, function, _module_text(place)))
        called = [name or place.rpartition(":")[2].rpartition(".")[2] for name, place, *_ in self.functions]
        self.called = _checked_names(called)
        if len(called) > 1:
            self.names = self.called
        self.identity = {
            "rewards": [
                [name, place, _digest(text)]
                for name, (_, place, _, text) in zip(called, self.functions, strict=True)
            ],
            "seed": self.seed,
        }

    def table(self, point: Point) -> dict[str, list[float]]:
        weights = cache(point.weights)
        table: dict[str, list[float]] = {}
        for (_, place, function, text), name in zip(self.functions, self.called, strict=True):
            identity = {
                "soup": point.made_of,
                "function": place,
                "source": _digest(text),
                "name": name,
                "seed": self.seed,
            }

            def compute(
                function: Callable[[Weights], Any] = function, place: str = place, name: str = name
            ) -> Mapping[str, Any]:
                return self._called(function, weights(), place, name, point)

            table |= self.lookup(identity, compute, lambda name: f"reward {name!r} at {point.place}")
        if not self.names:
            self.names = _checked_names(list(table))
        if set(table) != set(self.names):
            raise InputError(
                f"--rewards: expected {quoted(self.names)} from {self.functions[0][1]} at {point.place}, as before, "
                f"got {quoted(table) or 'nothing'}."
            )
        return table

    def _called(
        self, function: Callable[[Weights], Any], theta: Weights, place: str, name: str, point: Point
    ) -> Mapping[str, Any]:
        try:
            found = function(theta)
        except InputError as error:
            raise InputError(
                f"reward {name!r} at {point.place}: {str(error).removeprefix('score: ')}"
            ) from error
        if not isinstance(found, Mapping):
            return {name: found}
        if len(self.functions) > 1 or self.functions[0][0] is not None:
            raise InputError(
                f"reward {name!r} at {point.place}: {place} returns rewards by name. Give it alone and without a name "
                "of its own."
            )
        if not found:
            raise InputError(f"reward {name!r} at {point.place}: {place} returns no reward.")
        _checked_names(list(found))
        return found

    def facts(self, items: int) -> list[tuple[str, str]]:
        places = ", ".join(dict.fromkeys(place for _, place, *_ in self.functions))
        return [("Evaluation", f"{items} items, by {places}.")]

    def protocol(self) -> dict[str, Any]:
        return {"rewards": [place for _, place, *_ in self.functions]}


class OfTexts(Evaluation):
    """By what a language model says to prompts."""

    def __init__(
        self, rewards: Sequence[str], folder: Path, seed: int, *, start: TextStart, speaking: Speaking
    ) -> None:
        super().__init__(folder, seed)
        from mirepoix.rewards.text._generate import check_columns, code_version
        from mirepoix.training import choose_device

        self.start, self.speaking = start, speaking
        self.device = str(choose_device(speaking.device))
        self.prompts, columns = read_prompts(speaking.prompts)
        try:
            self.columns = check_columns(columns, len(self.prompts))
        except InputError as error:
            raise InputError(f"{speaking.prompts}: {error}") from error
        self.rewards = [_text_reward(text) for text in rewards]
        self.names = _checked_names([reward.name for reward in self.rewards])
        for reward in self.rewards:
            column = reward.made_of.get("column")
            if column is not None and column not in self.columns:
                raise InputError(
                    f"reward {reward.name!r}: needs the key {column!r} beside each prompt in {speaking.prompts}, which "
                    f"has {quoted(self.columns) or 'prompts alone'}."
                )
        self.items, self.first = len(self.prompts), str(speaking.prompts)
        self.options: dict[str, Any] = {
            "max_tokens": speaking.max_tokens,
            "temperature": speaking.temperature,
            "seed": seed,
            "batch_size": speaking.batch_size,
        }
        drawn = ("seed",) if not speaking.temperature else ()
        self.made_of = {
            "start": {part: text for part, text in self.start.identity.items() if part != "weights"},
            "prompts": _digest(json.dumps(self.prompts)),
            "code": code_version(),
            "options": {name: value for name, value in self.options.items() if name not in drawn},
        }
        self.identity = {
            **self.made_of,
            "columns": _digest(json.dumps(self.columns, sort_keys=True, default=str)),
            "rewards": [[reward.name, reward.digest] for reward in self.rewards],
        }

    @cached_property
    def model(self) -> TextModel:
        from mirepoix.rewards.text import TextModel

        return TextModel(self.start, device=self.device)

    def texts(self, point: Point) -> list[str]:
        """What these weights say to each prompt, kept or said now."""
        identity = {"soup": point.made_of, **self.made_of}
        path = self.folder / COMPLETIONS / f"{key_of(identity)}.json"
        kept = _kept_texts(path, identity, len(self.prompts))
        if kept is None:
            self.model.write_(point.weights())
            kept = self.model.complete(self.prompts, **self.options)
            write_json(path, {"format": 1, "made_of": identity, "completions": kept})
        return kept

    def table(self, point: Point) -> dict[str, list[float]]:
        texts = cache(lambda: self.texts(point))
        table: dict[str, list[float]] = {}
        for reward in self.rewards:
            identity = {
                "soup": point.made_of,
                **self.made_of,
                "columns": self.identity["columns"],
                "reward": [reward.name, reward.digest],
                "seed": self.seed,
            }

            def compute(reward: Reward = reward) -> Mapping[str, Any]:
                return {reward.name: self._score(reward, texts(), point)}

            table |= self.lookup(identity, compute, lambda name: f"reward {name!r} at {point.place}")
        return table

    def _score(self, reward: Reward, texts: list[str], point: Point) -> list[float]:
        try:
            return reward(self.prompts, texts, **self.columns)
        except InputError as error:
            raise InputError(f"{str(error).rstrip('.')} (at {point.place}).") from error

    def facts(self, items: int) -> list[tuple[str, str]]:
        how = (
            "the most probable tokens"
            if not self.speaking.temperature
            else f"tokens drawn at temperature {self.speaking.temperature:g} with the same random numbers for all"
        )
        return [
            ("Evaluation", f"{items} prompts of {self.speaking.prompts}."),
            ("Completions", f"At most {self.speaking.max_tokens} tokens, {how}."),
        ]

    def protocol(self) -> dict[str, Any]:
        return {
            "rewards": list(self.names),
            "prompts": str(self.speaking.prompts),
            "max_tokens": self.speaking.max_tokens,
            "temperature": self.speaking.temperature,
        }

    def samples(self, shown: Sequence[tuple[str, Point]]) -> dict[str, Any] | None:
        count = len(self.prompts)
        rows = sorted({0, count // 2, count - 1})[:SHOWN]
        return {
            "items": [{"prompt": self.prompts[row]} for row in rows],
            "columns": [
                {"label": label, "answers": [texts[row] for row in rows]}
                for label, texts in ((label, self.texts(point)) for label, point in shown)
            ],
        }


# Rewards by name


def _name_and_place(text: str) -> tuple[str | None, str]:
    """``name=place``, or a place alone, which may be a path with an equals sign."""
    name, equals, place = text.partition("=")
    if not equals or Path(text).exists():
        return None, text
    if not place:
        raise InputError(f"--rewards: expected something after the = of {text!r}.")
    return name, place


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+", name):
            raise InputError(
                f"--rewards: expected names of letters, digits and any of _ . + -, got {name!r}. Name it: "
                "--rewards NAME=..."
            )
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise InputError(f"--rewards: {twice!r} comes twice. Name one of them otherwise: --rewards NAME=...")
    return tuple(names)


def _is_built_in(place: str) -> bool:
    return re.fullmatch(r"vader|readability|rouge-l|length(-\d+)?|(distinct|bleu)-\d+", place) is not None


def _text_reward(text: str) -> Reward:
    """A reward of texts, by its name, by the folder of a classifier, or by its place in a module."""
    from mirepoix.rewards import text as library

    name, place = _name_and_place(text)
    if _is_built_in(place):
        return library.named_reward(place, name)
    folder, _, label = (place, "", "") if Path(place).is_dir() else place.rpartition(":")
    if folder and Path(folder).is_dir():
        called = name or Path(folder).resolve().name
        _checked_names([called])
        try:
            return library.classifier(folder, label=label or None, name=called)
        except InputError as error:
            advice = f" As in --rewards {called}={folder}:LABEL." if str(error).startswith("label") else ""
            raise InputError(f"--rewards: {error}{advice}") from error
    if ":" not in place:
        raise InputError(
            f"--rewards: expected [NAME=]MODULE:FUNCTION, the folder of a sequence classifier or one of "
            f"{', '.join(library.BUILTIN)}, got {text!r}."
        )
    try:
        return library.load_reward(place, name, folders=[os.getcwd()])
    except InputError as error:
        raise InputError(f"--rewards: {error}") from error


def _module_text(place: str) -> str:
    """The source of the module of a function, as far as there is one."""
    try:
        return inspect.getsource(sys.modules[place.partition(":")[0]])
    except (OSError, TypeError, KeyError):
        return ""


def forget(folder: Path) -> None:
    """Remove kept values, and nothing else."""
    for place in (folder, folder / COMPLETIONS):
        for file in place.iterdir():
            if KEPT.fullmatch(file.name):
                file.unlink(missing_ok=True)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within the block the global generators begin with the seed; afterwards they are as they were."""
    import torch

    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _kept_texts(path: Path, identity: Mapping[str, Any], count: int) -> list[str] | None:
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        texts = record["completions"] if record["made_of"] == dict(identity) else None
    except (InputError, KeyError, TypeError):
        return None
    whole = isinstance(texts, list) and len(texts) == count and all(isinstance(t, str) for t in texts)
    return texts if whole else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
