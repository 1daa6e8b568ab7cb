from typing import get_args

import pytest

from mirepoix.fronts import load_front_recipe
from mirepoix.fronts._locomotion import run_of
from mirepoix.fronts._recipe import Subject
from mirepoix.recipe import builtin_recipes, load_recipe
from mirepoix.types import InputError

MODEL = ('[task]\nmodel = "m"\nprompts = "p.txt"', '[evaluation]\nprompts = "h.txt"')


@pytest.fixture
def written(tmp_path):
    def write(*lines, subject="locomotion"):
        path = tmp_path / "own.toml"
        head = ['name = "own"', "[front]", f'subject = "{subject}"', 'experts = ["risky", "cautious"]']
        path.write_text("\n".join([*head, *lines]))
        return path

    return write


def test_defaults(written):
    recipe, _ = load_front_recipe(written())
    assert recipe.front.points == 11
    assert recipe.front.seeds == [0]
    assert recipe.front.ensemble == "uniform"
    assert recipe.front.preferences == [{"risky": 0.5, "cautious": 0.5}]


def test_morl_runs_name_their_rewards(written):
    recipe, _ = load_front_recipe(written("morl = [{risky = 1.0}, {cautious = 0.25, risky = 0.75}]"))
    assert recipe.front.preferences == [{"risky": 1.0, "cautious": 0.0}, {"risky": 0.75, "cautious": 0.25}]
    assert load_front_recipe(written("morl = []"))[0].front.preferences == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["point = 5"], r"front.point: unknown key \(did you mean 'points'\?\)"),
        (["points = 2"], "front.points: .*greater than or equal to 3.*got 2"),
        (["seeds = [0, 0]"], "front.seeds: expected each entry once"),
        (['also = ["risky"]'], "front.also: 'risky' is an expert's reward already"),
        (["morl = [{fast = 1.0}]"], "front.morl: there is no reward 'fast'"),
        (["preference = {risky = 0.0}"], "front.preference: expected weights of 0 or more, one above 0"),
        (["preference = {risky = -1.0, cautious = 2.0}"], "front.preference: expected weights of 0 or more"),
        (["[run]", "step = 5"], r"run.step: unknown key \(did you mean 'steps'\?\)"),
        (["[run]", 'steps = "many"'], "run.steps: .*valid integer.*got 'many'"),
        (["[run]", "learning_rate = -1.0"], "run.learning_rate: expected a positive number, got -1.0"),
        (["[run]", "seed = 3"], "run.seed: unknown key"),
        (["[start]", "steps = 0"], "start.steps: expected at least 1, got 0"),
        (["[task]", "alphas = {risky = -1.0}"], "task.alphas"),
        (["[rewards.risky]", 'builtin = "vader"'], "rewards: the subject 'locomotion' has no such table"),
        (["[evaluation]", "episode = 3"], r"evaluation.episode: unknown key \(did you mean 'episodes'\?\)"),
    ],
)
def test_mistakes_name_the_key(written, lines, message):
    with pytest.raises(InputError, match=message) as caught:
        load_front_recipe(written(*lines))
    assert str(caught.value).startswith(str(written(*lines)))


def test_an_unknown_subject_lists_those_there_are(written):
    with pytest.raises(InputError, match=r"front.subject: .*'movie-reviews'.*'locomotion'.*got 'chess'"):
        load_front_recipe(written(subject="chess"))


def test_settings_change_it(written):
    recipe, _ = load_front_recipe(written(), ["front.seeds=[3, 4]", "run.steps=20"])
    assert recipe.front.seeds == [3, 4]
    assert run_of("run", recipe.run).steps == 20


def test_other_doors_say_where_to_go(written):
    with pytest.raises(InputError, match="trains rewarded soups; run it with `mirepoix run"):
        load_recipe(written())
    with pytest.raises(InputError, match=r"a table \[front\], got one without"):
        load_front_recipe("digits")


FRONTS = [name for name, path in builtin_recipes().items() if "[front]" in path.read_text()]


def test_there_are_recipes_for_all_kinds():
    assert {load_front_recipe(name)[0].front.subject for name in FRONTS} >= set(get_args(Subject)) - {"text"}


@pytest.mark.parametrize("name", FRONTS)
def test_the_recipes_that_come_with_it(name):
    recipe, path = load_front_recipe(name)
    assert recipe.name == name == path.stem
    assert any(line.startswith("# Command: ") for line in path.read_text().splitlines()[:8])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['[task]\nprompts = "p.txt"', '[evaluation]\nprompts = "h.txt"'], "task.model: missing"),
        (['[task]\nmodel = "m"\nprompts = "p.txt"'], "evaluation.prompts: missing"),
        (
            [*MODEL, "[rewards.risky]"],
            "rewards.risky: expected one of function, classifier and builtin",
        ),
        ([*MODEL, "[run]\ncompletions = 1"], "run.completions: expected at least 2"),
        ([*MODEL, "[run]\nadapter_seed = 1"], "run.adapter_seed: unknown key"),
    ],
)
def test_a_language_model_of_your_own(written, lines, message):
    with pytest.raises(InputError, match=message):
        load_front_recipe(written(*lines, subject="text"))
