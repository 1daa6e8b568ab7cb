"""Language models: the tiny one that is trained on movie reviews, or one that is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mirepoix.checkpoints import read_json, write_json
from mirepoix.fronts._files import input_file, input_folder
from mirepoix.fronts._prompts import read_prompts
from mirepoix.fronts._recipe import FrontRecipe, changed, table_of
from mirepoix.fronts._subject import Place, default_steps, told
from mirepoix.recipe import Count, Natural
from mirepoix.rewards import Expert
from mirepoix.rewards.text import (
    AdaptedWeights,
    Corpus,
    Reward,
    TextEvaluation,
    TextModel,
    TextRun,
    TextStart,
    TextTask,
    TextTrainer,
    classifier,
    load_reward,
    movie_reviews,
    named_reward,
    sentiment,
    soup,
    tiny_start,
)
from mirepoix.store import key_of
from mirepoix.training import choose_device
from mirepoix.types import InputError, Weights

__all__ = ["LanguageSubject", "build", "tables"]

SEEDED = ("seed", "adapter_seed")

MOVIE_TASK = {"corpus": str, "prompts": Count, "prompt_words": tuple[int, ...]}
MOVIE_START = {
    "steps": Count,
    "batch_size": Count,
    "learning_rate": float,
    "words": Count,
    "width": Count,
    "layers": Count,
    "longest": Count,
}
TEXT_TASK = {"model": str, "prompts": str, "device": str}
GENERATION = {"max_tokens": Count, "temperature": float, "seed": Natural, "batch_size": Count}
MOVIE_EVALUATION = {"prompts": Count, "part": str, **GENERATION}
TEXT_EVALUATION = {"prompts": str, "limit": Count, **GENERATION}
REWARDS: Mapping[str, Mapping[str, Any]] = {
    "function": {"function": str, "version": str},
    "builtin": {"builtin": str},
    "classifier": {
        "classifier": str,
        "label": str | int,
        "minus": str | int,
        "with_prompt": bool,
        "batch_size": Count,
        "device": str,
    },
}
"""What a table of a reward may hold, by the kind of reward."""


def run_of(values: Mapping[str, Any]) -> TextRun:
    """The configuration of an expert."""
    return changed("run", lambda: TextRun(**table_of("run", TextRun, values, without=SEEDED)))


def tables(subject: str) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    """The tables of the recipes."""
    if subject == "movie-reviews":
        return {
            "task": lambda values: table_of("task", MOVIE_TASK, values),
            "start": lambda values: table_of("start", MOVIE_START, values),
            "run": run_of,
            "evaluation": lambda values: table_of("evaluation", MOVIE_EVALUATION, values),
        }
    return {
        "task": lambda values: _needs("task", table_of("task", TEXT_TASK, values), ("model", "prompts")),
        "run": run_of,
        "evaluation": lambda values: _needs(
            "evaluation", table_of("evaluation", TEXT_EVALUATION, values), ("prompts",)
        ),
        "rewards": _check_rewards,
    }


def _needs(key: str, values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    for name in names:
        if name not in values:
            raise InputError(f"{key}.{name}: missing")
    return values


def _check_rewards(values: Mapping[str, Mapping[str, Any]]) -> None:
    for name, options in values.items():
        kinds = [kind for kind in REWARDS if kind in options]
        if len(kinds) != 1:
            raise InputError(f"rewards.{name}: expected one of function, classifier and builtin.")
        table_of(f"rewards.{name}", REWARDS[kinds[0]], options)


def build(recipe: FrontRecipe, place: Place, seed: int) -> LanguageSubject:
    """The subject for one seed: of the start, of the trainings, and of the adapters' first values."""
    run = run_of(recipe.run).with_(seed=seed, adapter_seed=seed)
    made = _Movies if recipe.front.subject == "movie-reviews" else _Given
    return made(recipe, place, run)


class LanguageSubject:
    """LoRA experts of one language model, by TRL."""

    start_steps = 0
    device: str | None = None

    def __init__(self, recipe: FrontRecipe, place: Place, run: TextRun) -> None:
        self.recipe, self.place, self.run = recipe, place, run
        self.names = (*recipe.front.experts, *recipe.front.also)
        self.steps = run.steps
        self._start: TextStart | None = None
        self._evaluation: TextEvaluation | None = None
        self.prepare()

    # What the two kinds differ in.

    task: TextTask
    held_out: tuple[str, ...]
    columns: dict[str, list[Any]]
    measured: list[Reward]

    def prepare(self) -> None:
        """Read prompts and rewards."""
        raise NotImplementedError

    def text_start(self) -> TextStart:
        """The common start."""
        raise NotImplementedError

    # What they share.

    @property
    def inputs(self) -> str:
        """Names prompts and rewards."""
        columns = {name: [str(value) for value in values] for name, values in self.columns.items()}
        rewards = [[reward.name, reward.digest] for reward in self.measured]
        return key_of(
            {
                "task": self.task.digest,
                "held_out": list(self.held_out),
                "columns": columns,
                "rewards": rewards,
            }
        )

    @property
    def rewards(self) -> tuple[str, ...]:
        """All that is measured."""
        return tuple(reward.name for reward in self.measured)

    @property
    def given(self) -> TextStart:
        """The common start, made once."""
        if self._start is None:
            self._start = self.text_start()
        return self._start

    @property
    def judge(self) -> TextEvaluation:
        """One network in memory."""
        if self._evaluation is None:
            options = {key: value for key, value in self.recipe.evaluation.items() if key in GENERATION}
            self._evaluation = TextEvaluation(
                TextModel(self.given, device=self.device),
                self.held_out,
                self.measured,
                columns=self.columns,
                **options,
            )
        return self._evaluation

    @property
    def evaluation(self) -> str:
        """Names prompts, rewards, start and generation."""
        return self.judge.digest

    def rehearse(self) -> None:
        """Every reward on the first prompt and a true answer."""
        columns = {name: values[:1] for name, values in self.task.columns.items()}
        for reward in self.task.rewards:
            reward(self.task.prompts[:1], ["A word, and a few more."], **columns)
        columns = {name: values[:1] for name, values in self.columns.items()}
        for reward in self.measured:
            reward(self.held_out[:1], ["A word, and a few more."], **columns)

    def start(self) -> Weights:
        """Its weights."""
        return self.given.weights

    def train(self, reward: Mapping[str, float]) -> Weights:
        """An adapter."""
        trainer = TextTrainer(
            start=self.given,
            reward=reward,
            store=self.place.store,
            device=self.device,
            on_progress=told(self.place.progress, self.recipe.front.experts),
        )
        return trainer(self.given.weights, self.task, self.run)

    def expert(self, name: str, theta: Weights) -> Expert:
        """With start, tokenizer and settings of generation."""
        assert isinstance(theta, AdaptedWeights)
        return theta.expert(name)

    def evaluate(self, theta: Weights) -> Mapping[str, Any]:
        """Rewards of completions."""
        return self.judge(theta)

    def ensemble(self, thetas: Mapping[str, Weights], coefficients: Mapping[str, float]) -> Mapping[str, Any]:
        """Probabilities of tokens averaged."""
        return self.judge.ensemble(thetas, coefficients)

    def items(self, count: int) -> list[dict[str, Any]]:
        """The first prompts."""
        return [{"prompt": text, "image": None} for text in self.held_out[:count]]

    def answers(self, theta: Weights, count: int) -> list[Any]:
        """Their completions."""
        self.judge.model.write_(theta)
        texts = self.judge.model.complete(self.held_out[:count], **self.judge.options)
        return [text.strip() for text in texts]

    def export(self, thetas: Mapping[str, Weights], coefficients: Mapping[str, float], folder: Path) -> str:
        """One adapter that PEFT can load over the start: exact, by longer factors."""
        adapted = {name: theta for name, theta in thetas.items() if isinstance(theta, AdaptedWeights)}
        made = soup(adapted, {name: coefficients[name] for name in adapted})
        place = folder / "chosen"
        made.save_adapter(place, overwrite=True)
        settings = read_json(place / "adapter_config.json")
        # So that PEFT finds the start by itself.
        write_json(
            place / "adapter_config.json",
            {**settings, "base_model_name_or_path": str(self.given.folder.resolve())},
        )
        return "chosen"

    def close(self) -> None:
        """Let the network go."""
        self._evaluation = None


class _Movies(LanguageSubject):
    """A tokenizer and a language model from nothing, trained on lines of reviews."""

    def prepare(self) -> None:
        place, task = self.place, self.recipe.task
        path = input_file("task.corpus", str(task.get("corpus", "movie_reviews.zip")), place)
        self.corpus: Corpus = movie_reviews(path)
        words = task.get("prompt_words", (2, 8))
        options = {"words": (int(words[0]), int(words[1]))} if len(words) == 2 else {"words": words}
        prompts = self.corpus.prompts("train", task.get("prompts", 2000), **options)
        self.task = TextTask(
            prompts.texts,
            [self._reward(name) for name in self.recipe.front.experts],
            {"reference": list(prompts.references)},
        )
        evaluation = self.recipe.evaluation
        held_out = self.corpus.prompts(
            evaluation.get("part", "test"), evaluation.get("prompts", 1000), **options
        )
        self.held_out, self.columns = held_out.texts, {"reference": list(held_out.references)}
        self.measured = [*self.task.rewards, *(self._reward(name) for name in self.recipe.front.also)]
        self.options = dict(self.recipe.start)
        self.start_steps = int(self.options.get("steps", default_steps(tiny_start)))

    def _reward(self, name: str) -> Reward:
        return sentiment(self.corpus) if name == "sentiment" else named_reward(name, known=("sentiment",))

    def text_start(self) -> TextStart:
        """Found in the store, or trained."""
        folder = self.place.store.path / "text-starts"
        folder.mkdir(parents=True, exist_ok=True)
        made_of = {"corpus": self.corpus.digest, "seed": self.run.seed, **self.options}

        def step(done: int, steps: int, loss: float) -> None:
            self.place.progress.step(done, steps, f"loss {loss:.3f}")

        return tiny_start(
            self.corpus, folder / key_of(made_of), seed=self.run.seed, on_progress=step, **self.options
        )

    def facts(self) -> list[tuple[str, str]]:
        """As the report says it."""
        lines = {name: f"{len(self.corpus.part(name)):,}" for name in ("train", "test")}
        parameters = sum(int(tensor.numel()) for tensor in self.given.weights.values())
        return [
            (
                "Start",
                f"A language model of {parameters:,} parameters, trained in {self.start_steps:,} steps on "
                f"{lines['train']} lines of movie reviews.",
            ),
            *_training_facts(self.run, len(self.task.prompts)),
            (
                "Evaluation",
                _evaluation_fact(self.judge, "beginnings of lines of reviews that no training saw"),
            ),
        ]


class _Given(LanguageSubject):
    """A model in a folder of transformers, and prompts in files."""

    def prepare(self) -> None:
        place, task, evaluation = self.place, self.recipe.task, self.recipe.evaluation
        self.device = str(choose_device(str(task.get("device", "auto"))))
        unused = [name for name in self.recipe.rewards if name not in self.names]
        if unused:
            raise InputError(
                f"rewards.{unused[0]}: it is neither among front.experts nor front.also. Name it there, or leave it "
                "out."
            )
        self.folder = input_folder("task.model", str(task["model"]), place)
        prompts, columns = self._prompts("task.prompts", str(task["prompts"]), None)
        held_out, self.columns = self._prompts(
            "evaluation.prompts", str(evaluation["prompts"]), evaluation.get("limit")
        )
        self.held_out = tuple(held_out)
        self.task = TextTask(prompts, [self._reward(name) for name in self.recipe.front.experts], columns)
        self.measured = [*self.task.rewards, *(self._reward(name) for name in self.recipe.front.also)]

    def _prompts(self, key: str, name: str, limit: int | None) -> tuple[list[str], dict[str, list[Any]]]:
        prompts, columns = read_prompts(input_file(key, name, self.place), f"{key}:")
        return prompts[:limit], {column: values[:limit] for column, values in columns.items()}

    def _reward(self, name: str) -> Reward:
        options = dict(self.recipe.rewards.get(name, {}))
        if not options:
            return named_reward(name)
        if "function" in options:
            here = [self.place.recipe.parent, *([self.place.data] if self.place.data else []), Path.cwd()]
            return load_reward(
                str(options["function"]),
                name,
                version=str(options.get("version", "")),
                folders=[folder for folder in here if folder.is_dir()],
            )
        if "builtin" in options:
            return named_reward(options["builtin"], name)
        place = input_folder(f"rewards.{name}.classifier", str(options.pop("classifier")), self.place)
        return classifier(place, name=name, **options)

    def text_start(self) -> TextStart:
        """As given."""
        return TextStart(self.folder)

    def facts(self) -> list[tuple[str, str]]:
        """As the report says it."""
        return [
            ("Start", f"The language model {self.folder.name}."),
            *_training_facts(self.run, len(self.task.prompts)),
            ("Evaluation", _evaluation_fact(self.judge, "prompts")),
        ]


def _training_facts(run: TextRun, prompts: int) -> list[tuple[str, str]]:
    return [
        (
            "Training",
            f"{run.algorithm.upper()} on a LoRA adapter of rank {run.rank}, {run.steps} steps of {run.batch_size} "
            f"completions, KL coefficient {run.beta:g}, on {prompts:,} prompts.",
        )
    ]


def _evaluation_fact(judge: TextEvaluation, what: str) -> str:
    temperature = judge.options["temperature"]
    how = "the most probable token each time" if temperature == 0 else f"temperature {temperature:g}"
    return (
        f"{len(judge.prompts):,} {what}, completions of at most {judge.options['max_tokens']} tokens, {how}; the same "
        "random numbers for all weights."
    )
