"""Every rule of the readers has a file that breaks it; each is refused by that rule, and nothing in it runs."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tests.checkpoints import hostile

import mirepoix.checkpoints
from mirepoix.checkpoints import _entry, _layout, _pickle, _torch_zip, open_weights, write_weights
from mirepoix.types import InputError, UnsafeCheckpoint


@pytest.mark.parametrize(("rule", "make"), hostile.CASES.values(), ids=hostile.CASES)
def test_a_hostile_file_is_refused_by_its_rule(tmp_path, monkeypatch, rule, make):
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnsafeCheckpoint) as caught:
        open_weights(path, framework="numpy")
    assert caught.value.rule == rule
    assert isinstance(caught.value, InputError)
    assert str(path if path.is_file() else tmp_path) in str(caught.value)
    assert str(caught.value).endswith(f"[{rule}]")
    assert len(str(caught.value)) < 1000 + len(str(path))
    assert sorted(tmp_path.rglob("*")) == before


def test_every_rule_has_its_file():
    folder = Path(mirepoix.checkpoints.__file__).parent
    source = "".join(path.read_text() for path in folder.glob("*.py"))
    rules = set(re.findall(r'(?:Refused|UnsafeCheckpoint)\(\s*"([a-z0-9-]+)"', source))
    elsewhere = {"max-tensors", "max-bytes", "pickle-opcodes", "torch-load"}  # in the tests below
    assert rules == {rule for rule, _ in hostile.CASES.values()} | elsewhere


def test_nothing_is_imported_opened_for_writing_or_run(tmp_path):
    for number, (_, make) in enumerate(hostile.CASES.values()):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "path").write_text(str(make(tmp_path / str(number))))
    code = """
import sys
from pathlib import Path
import numpy as np
from mirepoix.checkpoints import open_weights
from mirepoix.types import UnsafeCheckpoint
paths = [Path(path.read_text()) for path in Path().glob("*/path")]
seen = set()
def watch(event, arguments):
    if event == "open" and arguments[1] not in (None, "r", "rb") and arguments[2] & 3:
        seen.add((event, arguments))
    if event in ("pickle.find_class", "import", "exec", "compile", "os.system", "subprocess.Popen", "socket.connect"):
        seen.add((event, str(arguments)[:200]))
sys.addaudithook(watch)
for path in paths:
    try:
        open_weights(path, framework="numpy")
    except UnsafeCheckpoint:
        continue
    raise SystemExit(f"{path} was opened")
sys.exit(f"{seen}" if seen or "torch" in sys.modules else len(paths) - %d)
""" % len(hostile.CASES)  # noqa: UP031
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert not list(tmp_path.rglob("ran"))


def test_torch_does_not_run_them_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, (name, (_, make)) in enumerate(hostile.CASES.items()):
        if name.startswith(tuple(hostile.PAYLOADS)):
            (tmp_path / str(number)).mkdir()
            with pytest.raises(UnsafeCheckpoint, match="pickle-global"):
                open_weights(make(tmp_path / str(number)), allow_torch_load=True)
    assert not list(tmp_path.rglob("ran"))


def test_what_torch_cannot_read_is_refused(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"\x80\x02")
    with pytest.raises(UnsafeCheckpoint, match=r"is not a whole torch file.*\[torch-load\]"):
        open_weights(tmp_path / "w.pt", allow_torch_load=True)


def test_the_archive_is_checked_even_where_torch_may_read(tmp_path):
    for name in ("a bomb", "a member twice", "two sizes", "a view of four gigabytes"):
        rule, make = hostile.CASES[name]
        with pytest.raises(UnsafeCheckpoint, match=rf"\[{rule}\]"):
            open_weights(make(tmp_path), allow_torch_load=True)


def test_an_old_torch_is_not_asked(tmp_path, monkeypatch):
    import torch

    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(InputError, match=r"torch 2\.9\.1\+cpu is older than 2\.10"):
        open_weights(tmp_path / "w.pt", allow_torch_load=True)


def test_too_many_tensors(tmp_path, monkeypatch):
    write_weights(tmp_path / "w.safetensors", {name: np.ones(1) for name in "abc"})
    (tmp_path / "w.pt").write_bytes(
        hostile.torch_file(hostile.mapping(*((name, hostile.tensor()) for name in "abc")))
    )
    for module in (_layout, _torch_zip):
        monkeypatch.setattr(module, "MOST_TENSORS", 3)
    assert len(open_weights(tmp_path / "w.safetensors")) == len(open_weights(tmp_path / "w.pt")) == 3
    for module in (_layout, _torch_zip):
        monkeypatch.setattr(module, "MOST_TENSORS", 2)
    for path in tmp_path.iterdir():
        with pytest.raises(UnsafeCheckpoint, match=r"\[max-tensors\]"):
            open_weights(path)
    assert _entry.MOST_TENSORS == 1_000_000


def test_too_many_opcodes(tmp_path, monkeypatch):
    (tmp_path / "w.pt").write_bytes(hostile.with_(b"N0" * 500 + b"N"))
    assert list(open_weights(tmp_path / "w.pt")) == ["w"]
    monkeypatch.setattr(_pickle, "MOST_OPCODES", 1000)
    with pytest.raises(UnsafeCheckpoint, match=r"\[pickle-opcodes\]"):
        open_weights(tmp_path / "w.pt")


def test_more_bytes_than_wanted(tmp_path):
    write_weights(tmp_path / "w.safetensors", {"w": np.ones(4, "f4")})
    assert open_weights(tmp_path / "w.safetensors", max_bytes=16).nbytes == 16
    with pytest.raises(UnsafeCheckpoint, match=r"at most 15 bytes, got 16.*\[max-bytes\]"):
        open_weights(tmp_path / "w.safetensors", max_bytes=15)


def test_an_expanded_view_is_opened_when_asked_for(tmp_path):
    (tmp_path / "w.pt").write_bytes(
        hostile.torch_file(
            hostile.mapping(("w", hostile.tensor((2, 3), (0, 1)))), np.arange(4, dtype="f4").tobytes()
        )
    )
    assert open_weights(tmp_path / "w.pt", allow_expand=True)["w"].tolist() == [[0, 1, 2]] * 2
    _, make = hostile.CASES["a view of four gigabytes"]
    with pytest.raises(UnsafeCheckpoint, match=r"\[view-total\]"):
        open_weights(make(tmp_path), allow_expand=True)


@pytest.mark.parametrize("content", [b"]", b"}", b"N", b"K\xff", b"M\xff\xff", b"]\x94", b"X\1\0\0\0a"])
def test_a_small_pickle_stays_small(tmp_path, monkeypatch, content):
    monkeypatch.setattr(_torch_zip, "SLACK", 1 << 17)
    path = tmp_path / "w.pt"
    path.write_bytes(hostile.with_(content * (400_000 // len(content))))
    tracemalloc.start()
    try:
        with pytest.raises(UnsafeCheckpoint):
            open_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * path.stat().st_size + (1 << 18)
    finally:
        tracemalloc.stop()


def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="got a device or a pipe"):
        open_weights(tmp_path / "w.safetensors")


def test_an_unsafe_checkpoint_survives_the_way_from_another_process():
    import pickle

    error = pickle.loads(pickle.dumps(UnsafeCheckpoint("zip-end", "w.pt: no")))
    assert (error.rule, str(error)) == ("zip-end", "w.pt: no [zip-end]")
