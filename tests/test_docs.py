"""What the pages say is what the code does: snippets run, tables and commands agree, links lead somewhere."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import io
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import tomlkit
from pydantic import BaseModel

import mirepoix
from mirepoix import diversity, merging, objectives, rewards, strategies
from mirepoix.cli._methods import METHODS, SELECTIONS
from mirepoix.comparison import Comparison, SystemTable, load_comparison
from mirepoix.comparison._recipe import Along, Kind
from mirepoix.domainbed import COMBINES, FAMILIES, ROWS, load_benchmark
from mirepoix.domainbed._rows import Row
from mirepoix.domainbed._settings import Benchmark
from mirepoix.fronts import load_front_recipe
from mirepoix.recipe import Data, Experiment, Recipe, RunTable, builtin_recipes, load_recipe
from mirepoix.runs import Run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = [*PAGES, ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]
LATER = {"benchmarks.md", "results.md"}  # written apart from the other pages

OUTPUTS = ("text", "output")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    output: str | None  # of a python block: the text block that follows it


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    result = []
    for number, match in enumerate(found):
        following = found[number + 1] if number + 1 < len(found) else None
        output = None
        if following and following[1] in OUTPUTS and not text[match.end() : following.start()].strip():
            output = following[2]
        result.append(Block(match[1], match[2], text[: match.start()].count("\n") + 1, output))
    return result


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def table_rows(page: str, column: str) -> list[list[str]]:
    """The rows of all tables of a page whose first column has this head."""
    rows, inside = [], False
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == column:
            inside = True
        elif inside and not set(cells[0]) <= set("-: "):
            rows.append(cells)
    return rows


def code_of(cell: str) -> str:
    """The first code in a cell."""
    found = re.match(r"`([^`]+)`", cell)
    assert found, f"expected code at the beginning of {cell!r}"
    return found[1]


def write_named(block: Block, folder: Path) -> None:
    """Write a recipe that opens with the comment ``# NAME.toml`` to that file."""
    name = re.match(r"# ([\w-]+\.toml)\n", block.text)
    if block.language == "toml" and name:
        (folder / name[1]).write_text(block.text)


# Snippets


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=named)
def test_the_snippets_of_a_page_run_and_print_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        write_named(block, tmp_path)
        if block.language != "python":
            continue
        printed = io.StringIO()
        code = compile("\n" * block.line + block.text, str(page), "exec", dont_inherit=True)
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if block.output is not None:
            assert printed.getvalue() == block.output, f"{named(page)}:{block.line}"
        else:
            assert not printed.getvalue(), f"{named(page)}:{block.line} prints, and the page does not show it"


def test_a_text_block_is_always_the_output_of_a_snippet():
    for page in PAGES:
        found = blocks(page)
        shown = sum(block.output is not None for block in found if block.language == "python")
        assert sum(block.language in OUTPUTS for block in found) == shown, named(page)


TOML = [(page, block) for page in PAGES for block in blocks(page) if block.language == "toml"]


@pytest.mark.parametrize(("page", "block"), TOML, ids=[f"{named(p)}:{b.line}" for p, b in TOML])
def test_recipes_in_the_pages_can_be_read(page, block, tmp_path):
    values = tomllib.loads(block.text)
    benchmark = bool({"datasets", "auxiliaries"} & set(values))
    if "network" not in values and "front" not in values:  # some tables of a recipe
        whole = tomllib.loads(builtin_recipes()["ratatouille-digits" if benchmark else "folder"].read_text())
        given = {
            key: {**whole.get(key, {}), **table} if isinstance(table, dict) else table
            for key, table in values.items()
        }
        values = {**whole, **given}
    file = tmp_path / "recipe.toml"
    file.write_text(tomlkit.dumps(values))
    kinds = {"front": load_front_recipe, "systems": load_comparison}
    load = next((load for table, load in kinds.items() if table in values), load_recipe)
    (load_benchmark if benchmark else load)(file)


# Commands


def shell_lines() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.language in ("sh", "console", "bash"):
                text = block.text.replace("\\\n", " ")
                found += [(f"{named(page)}:{block.line}", line) for line in text.splitlines() if line.strip()]
    return found


def mirepoix_arguments(line: str) -> list[list[str]]:
    """The arguments of every `mirepoix` on a line."""
    calls: list[list[str]] = []
    for part in line.removeprefix("$ ").split("&&"):
        words = shlex.split(part, comments=True)
        if words[:2] == ["uv", "run"] and "mirepoix" in words:
            words = words[words.index("mirepoix") :]
        if words[:1] == ["mirepoix"]:
            calls.append(words[1:])
    return calls


COMMANDS = [(where, call) for where, line in shell_lines() for call in mirepoix_arguments(line)]


@pytest.mark.parametrize(("where", "call"), COMMANDS, ids=[f"{w} {' '.join(c)}" for w, c in COMMANDS])
def test_commands_in_the_pages_exist(where, call):
    import typer

    from mirepoix.cli import app

    command: Any = typer.main.get_command(app)
    arguments, verbs = list(call), []
    while hasattr(command, "commands"):
        verbs.append(arguments.pop(0))
        assert verbs[-1] in command.commands, f"{where}: no verb {' '.join(verbs)!r}"
        command = command.commands[verbs[-1]]
    context = command.make_context(verbs[-1], arguments)  # reads the options, runs nothing
    changes = context.params.get("changes") or ()
    if changes and verbs[0] == "domainbed":
        load_benchmark("ratatouille-digits", changes)
    elif changes and where.startswith("docs/comparing-ensembles.md"):
        load_comparison("cifar10-dice", changes)
    elif changes and any(change.startswith("front.") for change in changes):
        load_front_recipe(context.params["recipe"], changes)
    elif changes:
        load_recipe("folder", changes)
    recipe = context.params.get("recipe") if verbs[0] in ("run", "domainbed") else None
    assert recipe is None or recipe.endswith(".toml") or recipe in builtin_recipes(), f"{where}: {recipe}"


def test_there_are_commands_to_check():
    verbs = {call[0] for _, call in COMMANDS}
    assert verbs == {
        "run",
        "report",
        "check",
        "soup",
        "connect",
        "rebuild",
        "convert",
        "domainbed",
        "diversity",
        "landscape",
        "explain",
        "front",
    }


def options_of(*verbs: str) -> set[str]:
    import typer

    from mirepoix.cli import app

    command: Any = typer.main.get_command(app)
    for verb in verbs:
        command = command.commands[verb]
    return {name for p in command.params for name in p.opts if name.startswith("--")} - {"--help"}


def test_every_option_of_run_is_explained():
    explained = {code_of(row[0]).split()[0] for row in table_rows("docs/getting-started.md", "Option")}
    assert explained == options_of("run")


@pytest.mark.parametrize(
    "verb", ["soup", "check", "connect", "landscape", "diversity", "explain", "rebuild", "inspect", "convert"]
)
def test_every_option_of_the_verbs_on_checkpoints_is_explained(verb):
    explained = [code_of(row[0]).split()[0] for row in table_rows("docs/commands.md", f"Option of `{verb}`")]
    assert sorted(explained) == sorted(options_of(verb))


@pytest.mark.parametrize("verb", ["plan", "run", "table", "trace", "export"])
def test_every_option_of_the_verbs_of_domainbed_is_explained(verb):
    rows = table_rows("docs/commands.md", "Option of `domainbed`")
    explained = [code_of(row[0]).split()[0] for row in rows if f"`{verb}`" in row[1]]
    assert sorted(explained) == sorted(options_of("domainbed", verb))


def test_every_verb_is_in_the_table_of_commands():
    import typer

    from mirepoix.cli import app

    group: Any = typer.main.get_command(app)
    told = [tuple(code_of(row[0]).split()[1:]) for row in table_rows("docs/commands.md", "Command")]
    verbs = []
    for name, command in group.commands.items():
        verbs += [(name, each) for each in command.commands] if hasattr(command, "commands") else [(name,)]
    assert sorted(told) == sorted(verbs)


def shown_results(page: Path) -> list[tuple[int, str, str]]:
    """Line, command and output of every command whose output a plain block shows."""
    text, found = page.read_text(encoding="utf-8"), []
    fences = list(FENCE.finditer(text))
    for shell, output in itertools.pairwise(fences):
        if shell[1] == "sh" and not output[1] and not text[shell.end() : output.start()].strip():
            found.append((text[: shell.start()].count("\n") + 1, shell[2].strip(), output[2]))
    return found


def without_numbers(text: str) -> str:
    """A text in which every number, its unit and the space around it are the same."""
    text = re.sub(r"\b[0-9a-f]{32}\b", "#", text)  # keys of a store
    text = re.sub(r"-?\d[\d.,]*(e-?\d+)?( (bytes|kB|MB|GB|TB)\b)?", "#", text)
    return re.sub(r" +", " ", re.sub(r"(?m)^ +| +$", "", text)).strip()


SHOWING = [ROOT / "docs" / name for name in ("merging.md", "checkpoints.md", "domainbed.md")]


@pytest.mark.parametrize("page", SHOWING, ids=named)
def test_commands_print_what_the_page_shows(page, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from mirepoix.cli import app

    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    results = {line: (command, output) for line, command, output in shown_results(page)}
    assert results
    for block in blocks(page):
        write_named(block, tmp_path)
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.text, str(page), "exec", dont_inherit=True), namespace)
        elif block.line in results:
            command, output = results[block.line]
            (arguments,) = mirepoix_arguments(command)
            words = [file for word in arguments for file in (sorted(glob.glob(word)) or [word])]
            result = CliRunner().invoke(app, words)
            assert result.exit_code in (0, 1), result.output
            assert without_numbers(result.stdout) == without_numbers(output), f"{named(page)}:{block.line}"


# Tables against the code


def is_table(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def told(value: Any) -> str:
    """A value as a table shows it."""
    value = list(value) if isinstance(value, tuple) else value
    return "none" if value is None else f"`{tomlkit.item(value).as_string()}`"


def default(field: Any) -> str:
    return "required" if field.is_required() else told(field.default)


def recipe_keys() -> dict[str, str]:
    """Every key that a recipe may have, with its default in TOML; two tables are as `[run]`."""

    keys = {}
    for name, field in Recipe.model_fields.items():
        table = is_table(field.annotation)
        if table is RunTable and name != "run":
            keys[name] = "empty" if field.default is not None else "none"
        elif table is None:
            keys[name] = default(field)
        else:
            for key, inner in table.model_fields.items():
                keys[f"{name}.{key}"] = told(getattr(Run(), key)) if table is RunTable else default(inner)
    return keys


def benchmark_keys() -> dict[str, str]:
    """Every key that only the recipe of a benchmark has, with its default in TOML."""
    keys = {}
    for name in [name for name in Benchmark.model_fields if name not in Experiment.model_fields]:
        field = Benchmark.model_fields[name]
        table = is_table(field.annotation)
        if table is None:
            keys[name] = default(field)
        elif table is RunTable:
            keys[name] = "empty"
        else:
            for key in [key for key in table.model_fields if key not in Data.model_fields]:
                inner = table.model_fields[key]
                keys[f"{name}.{key}"] = "empty" if is_table(inner.annotation) else default(inner)
    return keys


def comparison_keys() -> dict[str, str]:
    """Every key that only the recipe of a comparison has, with its default in TOML."""
    keys = {}
    own = [name for name in Comparison.model_fields if name not in {*Experiment.model_fields, "data"}]
    for name in own:
        if name not in ("systems", "evidence"):
            keys[name] = default(Comparison.model_fields[name])
    for name, table in (("evidence", Along), ("systems", SystemTable)):
        for key, field in table.model_fields.items():
            table_of_run = is_table(field.annotation) is RunTable and field.default is not None
            empty = table_of_run or field.default == {}
            keys[f"{name}.{key}"] = "empty" if empty else default(field)
    return keys


@pytest.mark.parametrize(
    ("page", "heads", "expected"),
    [
        ("docs/recipes.md", ["Key"], recipe_keys()),
        ("docs/domainbed.md", ["Benchmark key", "Key of a dataset"], benchmark_keys()),
        ("docs/comparing-ensembles.md", ["Comparison key", "Key of a system"], comparison_keys()),
    ],
    ids=["recipes", "domainbed", "comparing-ensembles"],
)
def test_every_key_of_a_recipe_is_in_the_table_and_no_other(page, heads, expected):
    rows = [row for head in heads for row in table_rows(page, head)]
    shown = {code_of(row[0]): row[2] for row in rows}
    assert len(shown) == len(rows), "a key is told twice"
    assert set(shown) == set(expected)
    for key, value in expected.items():
        same = shown[key] == value or (shown[key] == "unset" and value == "none")
        if not same and value.startswith("`") and shown[key].startswith("`"):
            read = [tomllib.loads(f"x = {text.strip('`')}")["x"] for text in (shown[key], value)]
            same = read[0] == read[1]
        assert same, f"{key}: the page says {shown[key]}, the code {value}"


def test_every_kind_and_criterion_of_a_system_is_in_the_tables_and_no_other():
    from mirepoix.ensembles._named import JOINT
    from mirepoix.snapshots._named import LATER

    page = "docs/comparing-ensembles.md"
    assert [code_of(row[0]) for row in table_rows(page, "Kind")] == list(get_args(Kind))
    joint = {code_of(row[0]): row[1] for row in table_rows(page, "Name of members trained together")}
    later = {code_of(row[0]): row[1] for row in table_rows(page, "Name of later members")}
    for told, made in (
        (joint, {name: kind.__name__ for name, kind in JOINT.items()}),
        (later, {name: each.kind.__name__ for name, each in LATER.items()}),
    ):
        assert list(told) == list(made)
        assert all(f"`{made[name]}`" in text for name, text in told.items())


def test_every_row_of_the_benchmark_is_in_the_table_and_no_other():
    rows = {code_of(row[0]): row[1:] for row in table_rows("docs/domainbed.md", "Name in a recipe")}
    assert list(rows) == list(ROWS)
    for key, (label, place) in rows.items():
        row = Row.of(key)
        assert (label, code_of(place)) == (row.label, f"{row.family}/{row.combine}")
    families = {code_of(row[0]): row[1] for row in table_rows("docs/domainbed.md", "Family")}
    assert families == {name: f"`{family.equation}`" for name, family in FAMILIES.items()}
    combines = [code_of(row[0]) for row in table_rows("docs/domainbed.md", "Combination")]
    assert combines == list(COMBINES)


def test_the_count_of_trainings_on_the_page_is_that_of_the_plan(tmp_path):
    from mirepoix.domainbed import Workbench, make_plan

    benchmark, path = load_benchmark("ratatouille-digits", ["pretraining.steps=1"])
    plan = make_plan(Workbench(benchmark, path, str(tmp_path / "store"), tmp_path))
    of_task = [str(planned.node.task) for planned in plan.trainings]
    target = of_task.count("digits without rotated_0, data seed 0")
    auxiliary = of_task.count("digits-inverted, data seed 0")
    page = (ROOT / "docs/domainbed.md").read_text()
    assert f"members on 2 targets: {plan.asked} members. {len(plan.trainings)}\ntrainings" in page
    assert f"2 × {target} + 2 × {auxiliary} = {len(plan.trainings)}." in page


def test_every_recipe_that_comes_along_is_named():
    rows = table_rows("docs/recipes.md", "Comes with mirepoix")
    assert {code_of(row[0]) for row in rows} == set(builtin_recipes())


def test_every_measure_of_diversity_is_listed():
    page = (ROOT / "docs/diversity.md").read_text()
    assert not [name for name in diversity.__all__ if f"`{name}`" not in page]
    for row in table_rows("docs/diversity.md", "Measure"):
        assert code_of(row[0]) in diversity.__all__


def test_every_strategy_is_in_the_table_and_no_other():
    rows = table_rows("docs/strategies.md", "Strategy") + table_rows("docs/strategies.md", "Part")
    assert {code_of(row[0]) for row in rows} == {*strategies.__all__, "linear_probe", "with_head"}


def test_every_objective_is_in_the_table_and_no_other():
    rows = table_rows("docs/objectives.md", "Objective")
    public = [getattr(objectives, name) for name in objectives.__all__]
    criteria = {x.__name__ for x in public if isinstance(x, type) and issubclass(x, objectives.Objective)}
    assert {code_of(row[0]) for row in rows} == criteria - {"Objective"}


def test_every_ensemble_trained_together_is_in_the_table_and_no_other():
    from mirepoix import ensembles

    rows = table_rows("docs/ensembles.md", "Ensemble")
    public = [getattr(ensembles, name) for name in ensembles.__all__]
    joint = {x.__name__ for x in public if isinstance(x, type) and issubclass(x, ensembles.JointObjective)}
    assert {code_of(row[0]) for row in rows} == joint - {"JointObjective", "MixMo"}


def test_every_way_to_a_later_member_is_in_a_table_and_no_other():
    from mirepoix import snapshots

    later = {
        name
        for name in snapshots.__all__
        if isinstance(getattr(snapshots, name), type)
        and issubclass(getattr(snapshots, name), snapshots.LaterMember)
    }
    rows = {code_of(row[0]) for row in table_rows("docs/ensembles.md", "Later member")}
    assert rows == later - {"LaterMember"}
    samplers = {code_of(row[0]) for row in table_rows("docs/ensembles.md", "Sampler")}
    assert rows | samplers | {"LaterMember", "simplex_volume"} == set(snapshots.__all__)


def test_every_name_of_an_objective_is_in_the_table_and_no_other():
    rows = {code_of(row[0]): code_of(row[1]) for row in table_rows("docs/objectives.md", "Name")}
    assert rows == {name: criterion.__name__ for name, criterion in objectives.OBJECTIVES.items()}


def test_every_merging_rule_and_method_is_in_the_table_and_no_other():
    rows = table_rows("docs/merging-rules.md", "Rule")
    public = [getattr(merging, name) for name in merging.__all__]
    rules = {x.__name__ for x in public if isinstance(x, type) and issubclass(x, merging.Rule)}
    assert {code_of(row[0]) for row in rows} == rules - {"Rule", "LinearRule"}
    assert {code_of(row[1]): code_of(row[0]) for row in rows} == {
        name: method.rule for name, method in METHODS.items()
    }


def test_every_selection_is_in_the_table_and_no_other():
    from mirepoix import selection

    rows = table_rows("docs/merging-rules.md", "Selection")
    assert [code_of(row[0]) for row in rows] == list(SELECTIONS)
    functions = {code_of(row[1]) for row in rows}
    assert functions == {name for name in selection.__all__ if name.islower()}


def test_what_a_rule_needs_is_what_the_table_says():
    for row in table_rows("docs/merging-rules.md", "Rule"):
        rule = getattr(merging, code_of(row[0]))
        assert ("base" in row[3]) == bool(rule.needs_base), row[0]


def test_every_rule_of_the_readers_is_in_the_tables_and_no_other():
    sources = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    raised = set(re.findall(r'(?:UnsafeCheckpoint|Refused)\(\s*"([\w-]+)"', sources))
    listed = [code_of(row[0]) for row in table_rows("docs/checkpoints.md", "Rule")]
    assert raised
    assert sorted(listed) == sorted(raised)


def test_the_values_of_lora_are_in_the_table():
    from mirepoix.merging._lora import Mode

    rows = table_rows("docs/merging.md", "`--lora`")
    assert {code_of(row[0]) for row in rows} == {*get_args(Mode), "dense"}


def test_every_row_of_the_report_is_explained():
    from mirepoix.experiment._table import LABELS

    assert [row[0] for row in table_rows("docs/getting-started.md", "Row")] == list(LABELS.values())
    shown = re.findall(r"^│ (.+?) +│ +\d", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert shown == list(LABELS.values())


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs/api.md").read_text()
    listed = set(re.findall(r"^::: mirepoix\.(?:\w+\.)*(\w+)$", page, re.MULTILINE))
    for members in re.findall(r"members: \[([^]]*)\]", page):
        listed |= {name.strip() for name in members.split(",")}
    assert not set(mirepoix.__all__) - {"__version__"} - listed
    for name in re.findall(r"^::: (mirepoix\S*)$", page, re.MULTILINE):
        place, _, last = name.rpartition(".")
        __import__(place)
        assert hasattr(sys.modules[place], last) or importlib.util.find_spec(name), name
    # A name that is in no module would be left out of the site without a word.
    for name, members in re.findall(
        r"^::: (mirepoix\S*)\n.*\n.*\n +members: \[([^]]*)\]$", page, re.MULTILINE
    ):
        module = importlib.import_module(name)
        assert not [member for member in members.split(", ") if not hasattr(module, member)], name


def test_every_public_name_of_merging_and_selection_is_in_the_reference():
    from mirepoix import cluster, domainbed, landscape, remote_store, scores, selection, training

    page = (ROOT / "docs/api.md").read_text()
    rooms = (
        merging,
        selection,
        scores,
        landscape,
        strategies,
        training,
        cluster,
        domainbed,
        remote_store,
        rewards,
    )
    for module in rooms:
        assert not [name for name in module.__all__ if not re.search(rf"\b{name}\b", page)], module.__name__


@pytest.mark.parametrize("message", [row[0] for row in table_rows("docs/your-data.md", "The message says")])
def test_error_messages_in_the_pages_are_those_of_the_code(message):
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # texts that go on in the next line
    for piece in message.strip("`").split("..."):
        assert piece.strip() in source, message


# Links


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ +(.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head.lower()).strip()) for head in heads}


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if file.parent == ROOT / "docs" and file.name in LATER and not file.exists():
            continue
        assert file.is_file(), f"{named(page)}: {target}"
        assert not anchor or anchor in anchors(file), f"{named(page)}: {target}"


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"([\w/-]+\.md)\s*$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    docs = ROOT / "docs"
    assert {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")} | LATER == listed | LATER


# The site, and the files beside it


def test_the_site_builds_without_a_warning(tmp_path):
    builder = Path(sys.executable).with_name("zensical")
    if not builder.exists():
        pytest.skip("zensical is not installed: uv sync --group docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "src").symlink_to(ROOT / "src")
    for name in LATER:
        page = tmp_path / "docs" / name
        if not page.exists():
            page.write_text(f"# {name}\n")
    command = [builder, "build", "--strict", "-f", "mkdocs.yml"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    for page in (tmp_path / "docs").rglob("*.md"):
        place = page.relative_to(tmp_path / "docs").with_suffix("")
        built = tmp_path / "site" / ("index.html" if place.name == "index" else f"{place}/index.html")
        assert built.is_file(), place
    reference = (tmp_path / "site/api/index.html").read_text()
    assert "fine_tuning" in reference
    assert ".. math::" not in reference
    assert "fonts.googleapis" not in reference


def test_the_citation_file_is_valid():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == mirepoix.__version__
    assert citation["license"] == "Apache-2.0"
    for work in [citation, *citation["references"]]:
        assert work["title"]
        assert work["authors"]
    for reference in citation["references"]:
        assert reference["type"] == "conference-paper"
        assert reference["year"] in (2022, 2023)
        assert all(set(author) == {"family-names", "given-names"} for author in reference["authors"])


def test_the_changelog_speaks_of_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert mirepoix.__version__ in text
    assert re.search(r"^## \[Unreleased\]$", text, re.MULTILINE)
    assert re.search(r"^### Added$", text, re.MULTILINE)


def test_the_pages_name_no_place_on_a_machine():
    for page in [*TEXTS, ROOT / "mkdocs.yml", ROOT / "CITATION.cff"]:
        found = re.findall(r"(?<![\w.>])/(?:home|root|tmp|work|Users)/\S+", page.read_text())
        assert not found, f"{named(page)}: {found}"
