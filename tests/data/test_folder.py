from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirepoix.data import Task, folder_task
from mirepoix.types import InputError

MakeFolder = Callable[..., Path]


def pixels(task: Task, domain: int) -> np.ndarray:
    images = task.domains[domain].images
    return images.read(np.arange(len(images))).numpy()


def save(
    path: Path, value: int | tuple[int, ...] = 7, mode: str = "RGB", size: tuple[int, int] = (10, 12)
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def test_a_folder_becomes_a_task(make_folder: MakeFolder) -> None:
    root = make_folder(domains=("ink", "clay", "Zinc"), classes=("dog", "cat"), per_class=3)
    task = folder_task(root, size=8)
    assert task.name == "things"
    assert task.domain_names == ("Zinc", "clay", "ink")
    assert task.classes == ("cat", "dog")
    assert [domain.labels.tolist() for domain in task.domains] == [[0, 0, 0, 1, 1, 1]] * 3
    assert task.transform.size == 8
    assert task.notes == ()
    for number, domain in enumerate(task.domain_names):
        files = [root / domain / label / f"{name}.png" for label in task.classes for name in range(3)]
        expected = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])
        assert (pixels(task, number) == expected).all()


def test_pictures_are_in_the_references_order(tmp_path: Path) -> None:
    names = ["b.png", "B.PNG", "a10.jpeg", "a2.png", "deeper/a.png", "deep/z.png", "deep-er/a.png"]
    for domain in ("one", "two"):
        for label in ("x", "y"):
            for value, name in enumerate(names):
                save(tmp_path / domain / label / name, (value, value, value))
    from torchvision.datasets import ImageFolder

    listed = ImageFolder(str(tmp_path / "one")).samples
    folders = [tmp_path / "one" / label for label in "xy"]
    expected = [names.index(Path(file).relative_to(folders[label]).as_posix()) for file, label in listed]
    task = folder_task(tmp_path, size=8)
    assert pixels(task, 0)[:, 0, 0, 0].tolist() == expected
    assert task.domains[0].labels.tolist() == [label for _, label in listed]


def test_a_class_missing_in_one_domain_moves_no_label(make_folder: MakeFolder) -> None:
    root = make_folder(classes=("cat", "dog", "eel"), per_class=2)
    shutil.rmtree(root / "clay" / "cat")
    task = folder_task(root, size=8)
    assert task.classes == ("cat", "dog", "eel")
    assert [domain.labels.tolist() for domain in task.domains] == [[1, 1, 2, 2], [0, 0, 1, 1, 2, 2]]
    assert task.notes == ("class 'cat' is missing in domains: clay",)


def test_domains_can_be_chosen_and_the_task_named(make_folder: MakeFolder) -> None:
    root = make_folder(domains=("a", "b", "c"), per_class=1)
    task = folder_task(root, name="two", size=8, augmentation="none", domains=("c", "a"))
    assert (task.name, task.domain_names, task.transform.augmentation) == ("two", ("a", "c"), "none")
    with pytest.raises(
        InputError, match=r"folder of domain 'bb', got none\. Did you mean 'b'\? Domains: a, b, c\."
    ):
        folder_task(root, domains=("a", "bb"))
    with pytest.raises(InputError, match=r"at least 2 domains, .* got 1: b\."):
        folder_task(root, domains=("b",))


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"one sub-folder per domain, got .*nowhere, which does not exist"):
        folder_task(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"got .*file, which is not a folder\. Check the path"):
        folder_task(tmp_path / "file")


def test_a_folder_without_domains_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    save(tmp_path / "picture.png")
    with pytest.raises(InputError, match=r"<domain>/<class>/<picture>\), got none"):
        folder_task(tmp_path)


def test_one_domain_and_one_class_are_refused(make_folder: MakeFolder) -> None:
    with pytest.raises(InputError, match=r"at least 2 domains, .* got 1: ink\."):
        folder_task(make_folder("lonely", domains=("ink",)))
    with pytest.raises(InputError, match=r"at least 2 classes, got 1: cat\."):
        folder_task(make_folder("uniform", classes=("cat",)))


def test_all_domains_without_pictures_are_named(make_folder: MakeFolder) -> None:
    root = make_folder(per_class=1)
    (root / "empty").mkdir()
    (root / "flat").mkdir()
    save(root / "flat" / "picture.png")
    with pytest.raises(InputError, match=r"got none in domains: empty, flat\. Add some \(\.bmp, .*\.webp\)"):
        folder_task(root)


def test_hidden_files_and_litter_are_ignored_and_others_counted(make_folder: MakeFolder) -> None:
    root = make_folder(per_class=2)
    before = folder_task(root, size=8)
    for ignored in (
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        ".thumbs/1.png",
        "clay/.git/1.png",
        "clay/cat/.1.png",
    ):
        save(root / f"{ignored}.png")
        (root / f"{ignored}.png").rename(root / ignored)
    shutil.copy(root / "Thumbs.db", root / "clay" / "cat" / "Thumbs.db")
    assert folder_task(root, size=8).digest == before.digest
    assert folder_task(root, size=8).notes == ()
    for other in ("clay/cat/notes.txt", "clay/readme.md", "ink/dog/0.gif"):
        (root / other).write_text("words")
    after = folder_task(root, size=8)
    assert after.digest == before.digest
    (note,) = after.notes
    assert note.startswith("3 files are not pictures in a class folder and were left out, such as ")
    assert note.endswith(str(Path("clay", "readme.md")))


def spoil(root: Path) -> list[str]:
    """Five unreadable pictures, and what should be said of them in order."""
    whole = root / "ink" / "cat" / "whole.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(whole)
    (root / "ink" / "cat" / "cut.jpg").write_bytes(whole.read_bytes()[:900])
    whole.unlink()
    (root / "clay" / "dog" / "text.jpg").write_text("I am a dog")
    (root / "clay" / "dog" / "zero.png").touch()
    png = (root / "ink" / "dog" / "0.png").read_bytes()
    (root / "ink" / "dog" / "cut.png").write_bytes(png[: len(png) // 2])
    Image.new("F", (4, 4)).save(root / "ink" / "dog" / "real.tiff")
    return [
        f"{Path('clay', 'dog', 'text.jpg')} (not a picture Pillow knows)",
        f"{Path('clay', 'dog', 'zero.png')} (not a picture Pillow knows)",
        f"{Path('ink', 'cat', 'cut.jpg')} (OSError: ",
        f"{Path('ink', 'dog', 'cut.png')} (",
        f"{Path('ink', 'dog', 'real.tiff')} (ValueError: floating-point pixels have no agreed range",
    ]


def test_all_unreadable_pictures_are_listed_at_once(make_folder: MakeFolder) -> None:
    root = make_folder()
    expected = spoil(root)
    with pytest.raises(InputError) as caught:
        folder_task(root, size=8, workers=3)
    first, *lines, last = str(caught.value).splitlines()
    assert first == "5 of 25 pictures cannot be read:"
    assert len(lines) == 5
    assert all(line.startswith(f"  {root / start}") for line, start in zip(lines, expected, strict=True))
    assert "--skip-unreadable" in last
    assert "skip_unreadable=True" in last
    assert " object at 0x" not in str(caught.value)


def test_unreadable_pictures_can_be_left_out_with_a_note(make_folder: MakeFolder) -> None:
    root = make_folder()
    readable = folder_task(root, size=8)
    expected = spoil(root)
    task = folder_task(root, size=8, skip_unreadable=True)
    assert [len(domain) for domain in task.domains] == [10, 10]
    assert all(start in task.notes[0] for start in expected)
    assert task.notes[0].startswith("5 unreadable: ")
    assert task.notes == folder_task(root, size=8, skip_unreadable=True).notes
    for one, other in zip(readable.domains, task.domains, strict=True):
        assert one.labels.tolist() == other.labels.tolist()


def test_a_long_list_of_unreadable_pictures_is_cut(make_folder: MakeFolder) -> None:
    root = make_folder(per_class=1)
    for number in range(23):
        (root / "clay" / "cat" / f"bad{number}.png").touch()
    with pytest.raises(InputError, match=r"23 of 27 pictures cannot be read") as caught:
        folder_task(root, size=8)
    assert "  and 3 more" in str(caught.value).splitlines()


def test_a_domain_of_unreadable_pictures_is_refused(make_folder: MakeFolder) -> None:
    root = make_folder(per_class=1)
    for file in (root / "clay").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(
        InputError, match="domain 'clay' of things: expected pictures, got none that can be read"
    ):
        folder_task(root, size=8, skip_unreadable=True)


def test_every_mode_of_picture_becomes_rgb(tmp_path: Path) -> None:
    modes = {
        "1rgb.png": ("RGB", (200, 30, 60)),
        "2rgba.png": ("RGBA", (200, 30, 60, 9)),
        "3grey.png": ("L", 77),
        "4deep.png": ("I;16", 77 * 257),
        "5print.jpg": ("CMYK", (0, 0, 0, 255)),
        "6palette.png": ("P", 5),
    }
    for folder in (("a", "x"), ("a", "y"), ("b", "x")):
        for name, (mode, value) in modes.items():
            save(tmp_path / Path(*folder) / name, value, mode)
    palette = Image.new("RGB", (10, 12), (1, 2, 3)).quantize(2)
    palette.save(tmp_path / "b" / "x" / "6palette.png", transparency=bytes([0, 255]))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (10, 12), (0, 0, 0)).save(tmp_path / "b" / "x" / "7turned.jpg", exif=exif)
    task = folder_task(tmp_path, size=8)
    assert task.domains[1].images.shape == (3, 12, 10)
    expected = [(200, 30, 60), (200, 30, 60), (77,) * 3, (77,) * 3, (0,) * 3, (1, 2, 3), (0,) * 3]
    assert np.abs(pixels(task, 1)[:, :, 5, 5].astype(int) - np.array(expected)).max() <= 2


def test_pictures_of_one_small_size_are_kept_and_others_resized(make_folder: MakeFolder) -> None:
    root = make_folder(extent=(12, 10))
    assert folder_task(root, size=21).domains[0].images.shape == (3, 12, 10)
    save(root / "ink" / "dog" / "9.png", 200, "L", (30, 15))
    task = folder_task(root, size=21)
    assert task.domains[0].images.shape == task.domains[1].images.shape == (3, 24, 24)
    with Image.open(root / "clay" / "cat" / "0.png") as image:
        expected = np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert (pixels(task, 0)[0] == expected).all()


def test_the_digest_ignores_place_time_and_way_of_reading(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder()
    digest = folder_task(root, size=8).digest
    copy = tmp_path / "elsewhere"
    shutil.copytree(root, copy)
    for file in copy.rglob("*.png"):
        os.utime(file, (1, 1))
    assert folder_task(copy, size=8).digest == digest
    assert folder_task(root, size=8, name="other", memory_budget=0, workers=2).digest == digest
    assert folder_task(root, size=8, cache_dir=tmp_path / "cache").digest == digest


def test_the_digest_follows_contents_labels_names_and_transform(make_folder: MakeFolder) -> None:
    root = make_folder()
    digests = [folder_task(root, size=8).digest]
    digests += [folder_task(root, size=9).digest, folder_task(root, size=8, augmentation="none").digest]

    def changed(old: str, new: str) -> None:
        (root / old).rename(root / new)
        digests.append(folder_task(root, size=8).digest)

    changed("clay/cat/0.png", "clay/dog/9.png")  # another label
    changed("clay", "wax")  # another domain
    changed("wax/dog", "wax/eel")  # another class
    with Image.open(root / "ink" / "cat" / "0.png") as image:
        pixel = image.convert("RGB")
    red, green, blue = pixel.getpixel((3, 3))
    pixel.putpixel((3, 3), (red ^ 1, green, blue))
    pixel.save(root / "ink" / "cat" / "0.png")
    digests.append(folder_task(root, size=8).digest)
    assert len(set(digests)) == 7


def test_progress_counts_to_the_end(make_folder: MakeFolder) -> None:
    told: list[tuple[int, int, str]] = []
    folder_task(make_folder(), size=8, progress=lambda *what: told.append(what))
    assert told == [(0, 20, "reading images"), (20, 20, "reading images")]


def test_no_thread_to_decode_is_refused(make_folder: MakeFolder) -> None:
    with pytest.raises(InputError, match="workers: expected at least 1 thread, got 0"):
        folder_task(make_folder(), size=8, workers=0)
