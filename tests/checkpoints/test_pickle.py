"""The pickle machine against Python's own, on what both may read; hostile pickles are in test_hostile."""

from __future__ import annotations

import ast
import inspect
import pickle
import pickletools
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.checkpoints import _pickle
from mirepoix.checkpoints._entry import Refused
from mirepoix.checkpoints._pickle import read_pickle

numbers = st.integers(-(2**200), 2**200) | st.floats(allow_nan=False) | st.booleans() | st.none()
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    numbers | texts,
    lambda inside: st.tuples(inside, inside) | st.dictionaries(texts, inside, max_size=5) | st.tuples(inside),
    max_leaves=20,
)


@given(value=values, protocol=st.integers(2, 5))
def test_what_is_kept_is_what_python_reads(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol), 10**6) == value
    assert read_pickle(pickletools.optimize(pickle.dumps(value, protocol)), 10**6) == value


@given(value=st.dictionaries(texts, st.lists(numbers) | st.sets(texts) | st.binary(), min_size=1))
def test_lists_sets_and_bytes_are_there_but_empty(value):
    read = read_pickle(pickle.dumps(value, 4), 10**6)
    assert list(read) == list(value)
    assert all(not item if isinstance(item, list) else item is _pickle.OBJECT for item in read.values())


def test_mappings_of_all_kinds_keep_their_texts():
    value = {"a": OrderedDict(b=1, c={"d": 2}), 3: {"e": 4}}
    for protocol in range(1, 6):
        assert read_pickle(pickle.dumps(value, protocol), 10**6) == {"a": {"b": 1, "c": {"d": 2}}}


def test_a_value_in_many_places_is_read_once():
    shared = {"a": (1, 2)}
    read = read_pickle(pickle.dumps({"x": shared, "y": shared}), 10**6)
    assert read["x"] is read["y"]


def test_a_large_mapping_comes_in_parts():
    value = {str(i): i for i in range(5000)}
    assert read_pickle(pickle.dumps(value), 10**7) == value


@pytest.mark.parametrize("budget", [100, 1000, 10_000])
def test_the_budget_is_kept(budget):
    value = pickle.dumps({str(i): float(i) for i in range(200)})
    with pytest.raises(Refused, match="far more memory"):
        read_pickle(value, budget)


def test_every_prefix_is_refused():
    whole = pickle.dumps({"a": OrderedDict(b=(1, 2.5, "c")), "d": [2**70]}, 2)
    for length in range(len(whole)):
        with pytest.raises(Refused):
            read_pickle(whole[:length], 10**6)


def test_the_machine_cannot_reach_anything():
    tree = ast.parse(inspect.getsource(_pickle))
    imported = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    } | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {
        "__future__",
        "collections.abc",
        "mirepoix.checkpoints._entry",
        "mirepoix.checkpoints._tensors",
        "struct",
        "sys",
        "typing",
    }
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {
        "getattr",
        "setattr",
        "eval",
        "exec",
        "compile",
        "__import__",
        "open",
        "globals",
        "vars",
    }
    assert not [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("modules", "import_module")
    ]
    assert all(isinstance(entry, _pickle.Global) for entry in _pickle.GLOBALS.values())
