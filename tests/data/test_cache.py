from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirepoix.data import Task, folder_task
from mirepoix.data import _cache as cache
from mirepoix.data._cache import Loading
from mirepoix.types import InputError

MakeFolder = Callable[..., Path]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each picture decoded from now on."""
    calls: list[object] = []
    decode = cache.decode

    def counted(file: object, extent: tuple[int, int]) -> object:
        calls.append(file)
        return decode(file, extent)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "decode", counted)
    return calls


def pixels(task: Task) -> list[bytes]:
    return [domain.images.read(np.arange(len(domain))).numpy().tobytes() for domain in task.domains]


def same(one: Task, other: Task) -> bool:
    labels = zip(one.domains, other.domains, strict=True)
    return (
        (one.digest, one.notes, one.classes) == (other.digest, other.notes, other.classes)
        and pixels(one) == pixels(other)
        and all((a.labels == b.labels).all() for a, b in labels)
    )


def entries(folder: Path) -> list[str]:
    return sorted(entry.suffix or "pixels" for entry in folder.iterdir() if entry.name != ".lock")


def the_pixels(folder: Path) -> Path:
    (place,) = (entry for entry in folder.iterdir() if entry.is_dir())
    return place


def the_manifest(folder: Path) -> Path:
    (manifest,) = folder.glob("*.json")
    return manifest


def test_a_second_call_decodes_nothing(
    make_folder: MakeFolder, tmp_path: Path, decoded: list[object]
) -> None:
    root, kept = make_folder(), tmp_path / "deep" / "cache"
    first = folder_task(root, size=8, cache_dir=kept)
    assert len(decoded) == 20
    second = folder_task(root, size=8, cache_dir=kept)
    assert len(decoded) == 20
    assert same(first, second)
    assert same(first, folder_task(root, size=8))
    assert entries(kept) == [".json", "pixels"]


def test_another_size_finds_the_same_pixels_if_they_are_kept_as_they_are(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    root, kept = make_folder(), tmp_path / "cache"
    folder_task(root, size=8, cache_dir=kept)
    folder_task(root, size=9, cache_dir=kept)
    assert entries(kept) == [".json", ".json", "pixels"]


def test_a_changed_file_is_read_again(make_folder: MakeFolder, tmp_path: Path, decoded: list[object]) -> None:
    root, kept = make_folder(), tmp_path / "cache"
    first = folder_task(root, size=8, cache_dir=kept)
    Image.new("RGB", (10, 12), (1, 2, 3)).save(root / "clay" / "cat" / "0.png")
    second = folder_task(root, size=8, cache_dir=kept)
    assert len(decoded) == 40
    assert first.digest != second.digest
    assert second.domains[0].images.read(np.array([0]))[0, :, 4, 4].tolist() == [1, 2, 3]


def test_folders_alike_in_names_sizes_and_times_are_not_confused(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    one, other = (make_folder(name, extension="bmp") for name in ("one", "other"))
    Image.new("RGB", (10, 12), (1, 2, 3)).save(other / "clay" / "cat" / "0.bmp")
    for root in (one, other):
        for file in root.rglob("*.bmp"):
            os.utime(file, (7, 7))
    tasks = [folder_task(root, name="same", size=8, cache_dir=tmp_path / "cache") for root in (one, other)]
    assert tasks[0].digest != tasks[1].digest
    assert pixels(tasks[0]) != pixels(tasks[1])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a byte of the pixels": lambda kept: flip_a_byte(the_pixels(kept) / "images.u8"),
    "half of the pixels": lambda kept: halve(the_pixels(kept) / "images.u8"),
    "no pixels": lambda kept: (the_pixels(kept) / "images.u8").unlink(),
    "half of the index": lambda kept: halve(the_pixels(kept) / "index.json"),
    "no index": lambda kept: (the_pixels(kept) / "index.json").unlink(),
    "a byte of the manifest": lambda kept: flip_a_byte(the_manifest(kept)),
    "half of the manifest": lambda kept: halve(the_manifest(kept)),
    "an empty manifest": lambda kept: the_manifest(kept).write_bytes(b""),
    "a manifest of something else": lambda kept: the_manifest(kept).write_text(json.dumps([1, 2])),
    "no manifest": lambda kept: the_manifest(kept).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_made_again(
    damage: Callable[[Path], object], make_folder: MakeFolder, tmp_path: Path, decoded: list[object]
) -> None:
    root, kept = make_folder(per_class=2), tmp_path / "cache"
    memory = folder_task(root, size=8)
    folder_task(root, size=8, cache_dir=kept)
    damage(kept)
    assert same(folder_task(root, size=8, cache_dir=kept), memory)
    assert len(decoded) == 24
    assert same(folder_task(root, size=8, cache_dir=kept), memory)
    assert len(decoded) == 24
    assert entries(kept) == [".json", "pixels"]


def test_what_a_dead_process_left_is_removed(make_folder: MakeFolder, tmp_path: Path) -> None:
    kept = tmp_path / "cache"
    (kept / "images.tmp-999999").mkdir(parents=True)
    (kept / "images.tmp-999999" / "images.u8").write_bytes(b"half")
    (kept / "abc.json.tmp-999999").write_bytes(b"{")
    folder_task(make_folder(), size=8, cache_dir=kept)
    assert entries(kept) == [".json", "pixels"]


KILLED = """
import os, sys
from mirepoix.data import _cache as cache, folder_task
def die(*args): os._exit(9)
where, root, kept = sys.argv[1:]
if where == "decoding":
    decode, calls = cache.decode, []
    def decode_some(*args):
        calls.append(args)
        return die() if len(calls) == 7 else decode(*args)
    cache.decode = decode_some
else:
    setattr(cache, where, die)
folder_task(root, size=8, cache_dir=kept, workers=1)
"""


@pytest.mark.parametrize("where", ["decoding", "_checksum", "_manifest"])
def test_a_run_killed_while_writing_leaves_nothing_wrong(
    where: str, make_folder: MakeFolder, tmp_path: Path
) -> None:
    root, kept = make_folder(), tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, where, str(root), str(kept)]
    assert subprocess.run(command, check=False).returncode == 9
    assert entries(kept)
    assert same(folder_task(root, size=8, cache_dir=kept), folder_task(root, size=8))
    assert entries(kept) == [".json", "pixels"]


def test_too_small_a_budget_streams_the_same_pixels(
    make_folder: MakeFolder, tmp_path: Path, decoded: list[object]
) -> None:
    root, kept = make_folder(), tmp_path / "cache"
    size = 20 * 3 * 12 * 10  # bytes
    whole = folder_task(root, size=8, memory_budget=size, cache_dir=tmp_path / "whole")
    assert entries(tmp_path / "whole") == [".json", "pixels"]
    small = Loading(memory_budget=size - 1, cache_dir=kept, workers=2)
    assert same(folder_task(root, size=8, **small), whole)
    assert entries(kept) == [".json"]
    read = len(decoded)
    assert same(folder_task(root, size=8, **small), whole)
    assert len(decoded) == read
    assert same(folder_task(root, size=8, memory_budget=0), whole)
    assert same(folder_task(root, size=8, cache_dir=kept), whole)  # with room again
    assert entries(kept) == [".json", "pixels"]


@pytest.mark.parametrize("budget", [0, 2**20])
def test_resized_pictures_are_the_same_however_they_are_read(
    budget: int, make_folder: MakeFolder, tmp_path: Path
) -> None:
    root = make_folder()
    Image.new("RGB", (30, 20), (9, 8, 7)).save(root / "ink" / "cat" / "wide.jpg")
    memory = folder_task(root, size=14)
    assert memory.domains[0].images.shape == (3, 16, 16)
    assert same(folder_task(root, size=14, cache_dir=tmp_path / "c", memory_budget=budget), memory)


def test_unreadable_pictures_are_remembered(
    make_folder: MakeFolder, tmp_path: Path, decoded: list[object]
) -> None:
    root, kept = make_folder(), tmp_path / "cache"
    (root / "clay" / "cat" / "2.png").write_bytes(b"words")
    with pytest.raises(InputError, match="1 of 20 pictures cannot be read"):
        folder_task(root, size=8, cache_dir=kept)
    assert entries(kept) == []
    decoded.clear()
    first = folder_task(root, size=8, cache_dir=kept, skip_unreadable=True)
    second = folder_task(root, size=8, cache_dir=kept, skip_unreadable=True)
    assert len(decoded) == 20
    assert same(first, second)
    assert same(first, folder_task(root, size=8, skip_unreadable=True))
    with pytest.raises(InputError, match=r"2\.png \(not a picture Pillow knows\)"):
        folder_task(root, size=8, cache_dir=kept)


def test_the_pixels_can_be_mapped_but_not_changed(make_folder: MakeFolder, tmp_path: Path) -> None:
    kept = tmp_path / "cache"
    task = folder_task(make_folder(), size=8, cache_dir=kept)
    before = (the_pixels(kept) / "images.u8").read_bytes()
    task.domains[0].images.read(np.arange(3)).fill_(0)
    assert (the_pixels(kept) / "images.u8").read_bytes() == before


@pytest.mark.parametrize(
    ("size", "said"), [(999, "999 bytes"), (14_400, "14.4 KB"), (2_500_000, "2.5 MB"), (4 * 10**9, "4.0 GB")]
)
def test_a_full_disk_is_an_error_that_names_the_room_needed(
    size: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    place = tmp_path / "images.tmp-1"
    place.mkdir()
    with pytest.raises(
        InputError, match=f"room for {said} of decoded images in .*, got No space left"
    ) as caught:
        cache._mapped(place / "images.u8", (size,))
    assert "--store" in str(caught.value)
    assert "cache_dir" in str(caught.value)


def test_a_full_disk_leaves_nothing_behind(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"room for 7\.2 KB"):
        folder_task(make_folder(), size=8, cache_dir=tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_a_cache_that_is_a_file_is_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(InputError, match=r"cache_dir: expected a folder that can be written, got .*--store"):
        folder_task(make_folder(), size=8, cache_dir=tmp_path / "cache")


def test_a_large_file_is_checked_by_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "images.u8"
    path.write_bytes(bytes(1000))
    monkeypatch.setattr(cache, "WHOLE", 999)
    monkeypatch.setattr(cache, "BLOCK", 100)
    monkeypatch.setattr(cache, "SAMPLES", 3)  # bytes 0-99, 450-549 and 900-999
    whole = cache._checksum(path)
    for place, seen in ((0, True), (300, False), (500, True), (999, True)):
        data = bytearray(1000)
        data[place] = 1
        path.write_bytes(data)
        assert (cache._checksum(path) != whole) == seen
