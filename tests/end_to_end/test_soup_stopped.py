"""A soup that is stopped, killed or out of room leaves no file under its name; stopped kindly, no file at all."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from mirepoix.merging import Ties, merge


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    for i in range(4):
        save_file(
            {f"w{j}": torch.full((1_000_000,), float(i + j)) for j in range(5)}, folder / f"{i}.safetensors"
        )
    return sorted(map(str, folder.iterdir()))


def soup(members, out, **options):
    command = [
        sys.executable,
        "-m",
        "mirepoix",
        "soup",
        *members,
        "-m",
        "ties",
        "--base",
        members[0],
        "-o",
        str(out),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def started(folder, process):
    """Wait until bytes are being written."""
    while process.poll() is None and not list(folder.glob(".*.tmp")):
        time.sleep(0.005)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2, 0.5])
def test_a_killed_soup_leaves_nothing_under_its_name(delay, members, tmp_path):
    process = soup(members, tmp_path / "soup.safetensors")
    started(tmp_path, process)
    time.sleep(delay)
    process.kill()
    process.communicate()
    if (tmp_path / "soup.safetensors").exists():  # then whole, and the only possible one
        whole = merge(members, Ties(), base=members[0])
        found = load_file(tmp_path / "soup.safetensors")
        assert all(torch.equal(found[name], x) for name, x in whole.items())


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_stopped_soup_leaves_nothing_and_says_so(sent, code, members, tmp_path):
    process = soup(members, tmp_path / "soup.safetensors")
    started(tmp_path, process)
    process.send_signal(sent)
    _, said = process.communicate()
    assert process.returncode == code
    if sent == signal.SIGINT:
        assert said == "mirepoix: stopped; nothing was written.\n"
    assert list(tmp_path.iterdir()) == []


def test_a_soup_on_a_full_disk_says_so_and_leaves_nothing(members, small_disk):
    process = soup(members, small_disk / "soup.safetensors")
    _, said = process.communicate()
    assert process.returncode == 2
    assert f"{small_disk}/soup.safetensors: No space left on device: there is no room left." in said
    assert "nothing was written" in said
    assert os.listdir(small_disk) == []


def test_a_file_too_large_for_its_place_says_so_and_leaves_nothing(members, tmp_path):
    def limit():
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))

    process = soup(members, tmp_path / "soup.safetensors", preexec_fn=limit)
    _, said = process.communicate()
    assert process.returncode == 2
    assert "soup.safetensors: File too large: no file may be so large there." in said
    assert os.listdir(tmp_path) == []


def test_what_a_killed_soup_left_is_gone_after_the_next(members, tmp_path):
    process = soup(members, tmp_path / "soup.safetensors")
    started(tmp_path, process)
    process.kill()
    process.communicate()
    left = list(tmp_path.glob(".*.tmp"))
    assert soup(
        members,
        tmp_path / "soup.safetensors",
    ).communicate()[0]
    assert left
    assert sorted(path.name for path in tmp_path.iterdir()) == ["soup.json", "soup.safetensors"]
