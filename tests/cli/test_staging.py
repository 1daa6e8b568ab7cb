"""Results take their names when they are whole, and only names that are free."""

import errno
import os
import subprocess
import sys

import pytest

from mirepoix.cli import _staging
from mirepoix.cli._staging import check_out, is_file_name, publish, staging
from mirepoix.types import InputError


def staged(out, names=("soup.safetensors", "soup.json")):
    context = staging(out)
    folder = context.__enter__()
    for name in names:
        (folder / name).write_text(name)
    return context, folder


def test_files_appear_together_and_the_folder_goes(tmp_path):
    out = tmp_path / "soup.safetensors"
    context, folder = staged(out)
    publish(folder, out, [], force=False)
    context.__exit__(None, None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["soup.json", "soup.safetensors"]


def test_a_taken_name_takes_back_those_given_before(tmp_path):
    out = tmp_path / "soup.safetensors"
    context, folder = staged(out)
    out.write_text("mine")
    with pytest.raises(InputError, match="appeared while the soup was made"):
        publish(folder, out, [], force=False)
    context.__exit__(None, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["soup.safetensors"]
    assert out.read_text() == "mine"


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(_staging.os, "link", refuse)
    out = tmp_path / "soup.safetensors"
    context, folder = staged(out)
    publish(folder, out, [], force=False)
    context.__exit__(None, None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["soup.json", "soup.safetensors"]
    context, folder = staged(out)
    with pytest.raises(InputError, match="appeared"):
        publish(folder, out, [], force=False)
    context.__exit__(None, None, None)


def test_what_a_dead_process_left_is_removed_and_what_a_live_one_makes_is_not(tmp_path):
    out = tmp_path / "soup.safetensors"
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    host = os.uname().nodename[:30]
    left = tmp_path / f".soup.safetensors.{host}.{dead.stdout.strip()}.abcd.tmp"
    live = tmp_path / f".soup.safetensors.{host}.{os.getppid()}.abcd.tmp"
    other = tmp_path / f".soup.safetensors.elsewhere.{dead.stdout.strip()}.abcd.tmp"
    for folder in (left, live, other):
        folder.mkdir()
    with staging(out):
        assert (left.exists(), live.exists(), other.exists()) == (False, True, True)


@pytest.mark.parametrize("name", ["soup.pt", "soup.bin", "soup.json", "soup.gguf"])
def test_other_formats_are_refused(name):
    with pytest.raises(InputError, match="`mirepoix convert` writes other formats"):
        is_file_name(_staging.Path(name))


def test_an_empty_folder_may_be_filled_and_a_file_is_no_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    check_out(tmp_path / "empty", force=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="expected a folder or nothing there, got a file"):
        check_out(tmp_path / "file", force=True)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(InputError, match="expected the name of a file, got a folder"):
        check_out(tmp_path / "folder.safetensors", force=True)
    with pytest.raises(InputError, match="does not exist"):
        check_out(tmp_path / "no" / "x.safetensors", force=False)
