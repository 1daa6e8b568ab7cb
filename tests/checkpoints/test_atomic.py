"""A file is the old one or the whole new one, whatever happens in between."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from mirepoix.checkpoints import atomic_path, file_digest, read_json, write_atomically, write_json
from mirepoix.types import InputError

KILLED = """
import os, sys
import numpy as np
from mirepoix.checkpoints import write_weights
os.replace = os.rename = lambda *paths: os._exit(9)
write_weights("w.safetensors", {"w": np.zeros(1000)}, record={"new": True})
"""

FULL = """
import resource
import numpy as np
from mirepoix.checkpoints import write_weights
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_weights("w.safetensors", {"w": np.zeros(1000)}, record={"new": True})
except OSError as error:
    print(error.strerror)
"""


@pytest.fixture
def old(tmp_path):
    write_atomically(tmp_path / "w.safetensors", b"old")
    return tmp_path


def test_a_kill_before_the_rename_leaves_the_old_file(old):
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=old)
    assert done.returncode == 9
    assert (old / "w.safetensors").read_bytes() == b"old"
    (leftover,) = [path for path in old.iterdir() if path.name != "w.safetensors"]
    assert leftover.name.startswith(".w.safetensors.")
    assert leftover.suffix == ".tmp"  # so that no search for weights finds it


def test_a_full_disk_leaves_the_old_file_and_nothing_else(old):
    done = subprocess.run([sys.executable, "-c", FULL], cwd=old, capture_output=True, text=True, check=True)
    assert "large" in done.stdout
    assert [path.name for path in old.iterdir()] == ["w.safetensors"]
    assert (old / "w.safetensors").read_bytes() == b"old"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_inside_the_block_leaves_the_old_file_and_nothing_else(old, error):
    with pytest.raises(error), atomic_path(old / "w.safetensors") as path:  # noqa: PT012
        path.write_bytes(b"half")
        raise error
    assert [path.name for path in old.iterdir()] == ["w.safetensors"]
    assert (old / "w.safetensors").read_bytes() == b"old"


def test_a_failed_rename_leaves_nothing_new(old, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(old / "w.safetensors", b"new")
    assert [path.name for path in old.iterdir()] == ["w.safetensors"]
    assert (old / "w.safetensors").read_bytes() == b"old"


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with atomic_path(tmp_path / "a") as first, atomic_path(tmp_path / "a") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"  # the one that ended last
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["a", "ä" * 100, "x" * 255])
def test_text_is_written_as_utf8_under_any_name(tmp_path, name):
    write_atomically(tmp_path / name, "θ = φ\n")
    assert (tmp_path / name).read_bytes() == "θ = φ\n".encode()
    assert len(list(tmp_path.iterdir())) == 1


def test_folders_are_not_files(tmp_path):
    with pytest.raises(InputError, match="got a folder"):
        write_atomically(tmp_path, b"")
    with pytest.raises(InputError, match="does not exist"):
        write_atomically(tmp_path / "b" / "c", b"")
    with pytest.raises(InputError, match="got a folder"):
        read_json(tmp_path)
    with pytest.raises(InputError, match="got a folder"):
        file_digest(tmp_path)


def test_json_is_the_same_text_for_the_same_value(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": {"θ": "φ"}}
    write_json(tmp_path / "v.json", value)
    text = (tmp_path / "v.json").read_text(encoding="utf-8")
    assert text == '{\n "b": [\n  1,\n  2.5,\n  null,\n  true\n ],\n "a": {\n  "θ": "φ"\n }\n}\n'
    assert read_json(tmp_path / "v.json") == value
    assert list(read_json(tmp_path / "v.json")) == ["b", "a"]


@pytest.mark.parametrize("text", ["", "{", '{"a": NaN}', "[Infinity]", "[" * 100_000, "\x00"])
def test_what_is_not_json_is_named(tmp_path, text):
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(InputError, match=r"v\.json: expected JSON"):
        read_json(tmp_path / "v.json")


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": object()}, {1, 2}])
def test_what_json_cannot_hold_is_not_written(tmp_path, value):
    with pytest.raises(InputError, match=r"v\.json: expected values JSON can hold"):
        write_json(tmp_path / "v.json", value)
    assert not list(tmp_path.iterdir())


def test_digest_of_a_file(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    assert file_digest(tmp_path / "f") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    with pytest.raises(InputError, match="nothing there"):
        file_digest(tmp_path / "g")
    with pytest.raises(InputError, match="nothing there"):
        read_json(tmp_path / "g")
