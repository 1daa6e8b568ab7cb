"""The short way into a verb reads what typer reads, or leaves it to typer."""

import functools
import inspect

import pytest
import typer
from typer.testing import CliRunner

from mirepoix.cli._app import FAST
from mirepoix.cli._fast import parsed

WELL_FORMED = [
    ["a", "b", "-o", "c"],
    ["a", "--out=c", "b", "--rows", "--json"],
    ["--rename", "a=b", "x", "--rename", "c=d=e", "--t", "-0.5", "-o", "y"],
    ["x", "-m", "ties", "--density", "1e-1", "--seed", "7", "--top", "3", "--fishers", "f", "--fishers", "g"],
    ["x", "--coefficients", "0.5,0.5", "--coefficients-for", "^fc=1,0", "--max-shard", "5GB", "--force"],
    [],
]


CHECK = [["a", "b"], ["a", "--finite", "--base", "c", "--json"], ["--rows", "a", "--container=model"]]


@pytest.mark.parametrize(
    ("verb", "words"),
    [*(("soup", words) for words in WELL_FORMED), *(("check", words) for words in CHECK)],
    ids=str,
)
def test_it_reads_what_typer_reads(verb, words):
    function = FAST[verb]
    seen = {}

    @functools.wraps(function)
    def spy(**arguments):
        seen.update(arguments)

    app = typer.Typer()
    app.command()(spy)
    assert CliRunner().invoke(app, words).exit_code == 0
    defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    found = defaults | parsed(function, words)
    assert {name: value for name, value in found.items() if value not in (None, [], ())} == {
        name: value for name, value in seen.items() if value not in (None, [], ())
    }


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--nothing"],
        ["a", "--t"],
        ["a", "--t", "x"],
        ["a", "--rows=1"],
        ["--seed", "1.5"],
        ["-oc"],
    ],
)
def test_what_is_not_well_formed_is_left_to_typer(words):
    assert parsed(FAST["soup"], words) is None


def test_a_missing_argument_is_left_to_typer():
    assert parsed(FAST["check"], []) is None

    def verb(name: str, other: str = "x") -> None: ...

    assert parsed(verb, []) is None
