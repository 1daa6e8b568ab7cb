from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from mirepoix.data import Task, Transform, colored_mnist, named_task, rotated_mnist
from mirepoix.types import InputError

TRAIN, TEST = 900, 300
# Of the tasks made from the files of ``raw``: a change here is another task under an old name.
ROTATED = "a4b3b9721fc2250303d8d812ced46a07c5dc5b9e10eb56f812beb598ae4215c1"
COLORED = "515fb024bd58669e8bdd9c222be63812410c1d4d83cbf0647dc1f682bf299628"


def idx(values: np.ndarray) -> bytes:
    lengths = b"".join(length.to_bytes(4, "big") for length in values.shape)
    return bytes([0, 0, 8, values.ndim]) + lengths + values.tobytes()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Small files in MNIST's format; each image carries its number in its first three pixels."""
    random = np.random.default_rng(0)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count, start in (("train", TRAIN, 0), ("t10k", TEST, TRAIN)):
        images = random.integers(1, 256, (count, 28, 28), dtype=np.uint8)
        number = np.arange(start, start + count)
        images[:, 0, 0], images[:, 0, 1] = number % 250, number // 250
        labels = (number % 10).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


def pixels(task: Task, domain: int) -> np.ndarray:
    return task.domains[domain].images.read(np.arange(len(task.domains[domain]))).numpy()


def test_rotated_deals_each_digit_to_one_domain(raw: Path) -> None:
    task = rotated_mnist(raw)
    assert task.domain_names == ("0", "15", "30", "45", "60", "75")
    assert [len(domain) for domain in task.domains] == [200] * 6
    assert task.transform == Transform(28, normalise=False, augmentation="none")
    upright = pixels(task, 0)
    assert upright.shape == (200, 1, 28, 28)
    number = upright[:, 0, 0, 0].astype(int) + 250 * upright[:, 0, 0, 1].astype(int)
    assert (task.domains[0].labels == number % 10).all()
    assert len(set(number)) == 200
    assert number.max() >= TRAIN > number.min()
    assert (upright[:, 0] == originals(raw)[number]).all()


def originals(raw: Path) -> np.ndarray:
    files = [raw / f"{part}-images-idx3-ubyte" for part in ("train", "t10k")]
    return np.concatenate(
        [np.frombuffer(file.read_bytes()[16:], np.uint8).reshape(-1, 28, 28) for file in files]
    )


@pytest.mark.parametrize("number", range(6))
def test_each_domain_is_turned_counter_clockwise_by_its_name(number: int, raw: Path) -> None:
    images = np.zeros((TRAIN, 28, 28), dtype=np.uint8)
    images[:, 12:16, 20:24] = 200  # to the right of the centre
    (raw / "train-images-idx3-ubyte").write_bytes(idx(images))
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx(images[:TEST]))
    task = rotated_mnist(raw, data_seed=3)
    mass = pixels(task, number)[:, 0].astype(float)
    right = (mass.sum(axis=1) @ (np.arange(28) - 13.5)) / mass.sum(axis=(1, 2))
    up = (mass.sum(axis=2) @ (13.5 - np.arange(28))) / mass.sum(axis=(1, 2))
    angle = np.degrees(np.arctan2(up, right))
    assert np.abs(angle - int(task.domain_names[number])).max() < 1
    assert np.abs(np.hypot(right, up) - 8).max() < 0.1


def test_colours_share_out_the_digits(raw: Path) -> None:
    task = colored_mnist(raw, data_seed=2)
    seen = np.concatenate([pixels(task, domain).max(axis=1) for domain in range(3)])
    assert sorted(image.tobytes() for image in seen) == sorted(image.tobytes() for image in originals(raw))


def test_colour_hides_in_one_of_two_channels_and_agrees_as_often_as_named(raw: Path) -> None:
    task = colored_mnist(raw)
    assert task.domain_names == ("+90%", "+80%", "-90%")
    assert len(task.classes) == 2
    for domain, disagreement in enumerate((0.1, 0.2, 0.9)):
        images, labels = pixels(task, domain), task.domains[domain].labels
        assert images.shape == (400, 2, 28, 28)
        filled = images.any(axis=(2, 3))
        assert (filled.sum(axis=1) == 1).all()
        colour = filled[:, 1].astype(int)
        grey = images.sum(axis=1)
        digit = (grey[:, 0, 0].astype(int) + 250 * grey[:, 0, 1]) % 10
        for rate, differs in ((disagreement, colour != labels), (0.25, (digit < 5) != labels)):
            assert abs(differs.mean() - rate) < 4 * (rate * (1 - rate) / 400) ** 0.5


@pytest.mark.parametrize("make", [colored_mnist, rotated_mnist])
def test_the_data_seed_and_nothing_else_decides(make, raw: Path) -> None:  # type: ignore[no-untyped-def]
    task = make(raw)
    np.random.default_rng().random()
    assert make(raw.parent.parent).digest == make(raw.parent).digest == task.digest
    assert make(raw, data_seed=1).digest != task.digest
    assert named_task(make(raw).name, raw, data_seed=1).digest == make(raw, data_seed=1).digest


def test_the_default_tasks_are_the_same_in_every_version(raw: Path) -> None:
    assert rotated_mnist(raw).digest == named_task("RotatedMNIST", raw).digest == ROTATED
    assert colored_mnist(raw).digest == named_task("ColoredMNIST", raw).digest == COLORED
    assert rotated_mnist(raw, size=28, channels=1, limit=200).digest == ROTATED
    assert colored_mnist(raw, size=28, channels=2, limit=400).digest == COLORED


@pytest.mark.parametrize("size", [28, 32, 33])
def test_larger_images_are_the_same_within_zeros(size: int, raw: Path) -> None:
    small, large = rotated_mnist(raw), rotated_mnist(raw, size=size)
    start = (size - 28) // 2
    assert large.transform == Transform(size, normalise=False, augmentation="none")
    for number in range(6):
        expected = np.zeros((200, 1, size, size), dtype=np.uint8)
        expected[:, :, start : start + 28, start : start + 28] = pixels(small, number)
        assert (pixels(large, number) == expected).all()
        assert (large.domains[number].labels == small.domains[number].labels).all()


def test_three_channels_repeat_the_grey_and_are_normalised_like_photographs(raw: Path) -> None:
    grey, colour = rotated_mnist(raw, size=32), rotated_mnist(raw, size=32, channels=3)
    assert colour.domains[2].images.shape == (3, 32, 32)
    assert (pixels(colour, 2) == pixels(grey, 2)).all()  # the one channel against each of the three
    images = colour.domains[2].images.read(np.arange(5))
    seen = colour.transform.train(images, torch.Generator())
    assert (seen == Transform(32).plain(images)).all()  # as a folder task validates
    assert images.is_contiguous()
    assert seen[0, :, 0, 0].tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])


def test_three_channels_of_colours_leave_blue_empty(raw: Path) -> None:
    two, three = colored_mnist(raw, size=30), colored_mnist(raw, size=30, channels=3)
    assert three.transform == Transform(30, augmentation="none")
    assert two.transform == Transform(30, normalise=False, augmentation="none")
    for number in range(3):
        assert (pixels(three, number)[:, :2] == pixels(two, number)).all()
        assert not pixels(three, number)[:, 2].any()
        assert (three.domains[number].labels == two.domains[number].labels).all()


@pytest.mark.parametrize("make", [colored_mnist, rotated_mnist])
def test_a_limit_keeps_the_first_of_each_domain(make, raw: Path) -> None:  # type: ignore[no-untyped-def]
    every, some = make(raw, data_seed=4), make(raw, data_seed=4, limit=7)
    for number, domain in enumerate(some.domains):
        assert len(domain) == 7
        assert (pixels(some, number) == pixels(every, number)[:7]).all()
        assert (domain.labels == every.domains[number].labels[:7]).all()
    count = len(every.domains[0])
    note = f"domain {every.domain_names[0]!r} has the first 7 of {count} images (limit)"
    assert note in some.notes
    assert not any("limit" in note for note in make(raw, limit=count).notes)
    assert named_task(some.name, raw, data_seed=4, limit=7).digest == some.digest
    assert make(raw, data_seed=5, limit=7).digest != some.digest


def test_a_named_task_takes_the_same_form(raw: Path) -> None:
    rotated = named_task("RotatedMNIST", raw, size=32, channels=3, limit=20)
    assert rotated.digest == rotated_mnist(raw, size=32, channels=3, limit=20).digest
    colored = named_task("ColoredMNIST", raw, size=32, channels=3, limit=20)
    assert colored.digest == colored_mnist(raw, size=32, channels=3, limit=20).digest


def test_forms_that_do_not_exist_are_refused(raw: Path) -> None:
    with pytest.raises(InputError, match=r"RotatedMNIST: size: expected at least the digits' 28 .* got 27"):
        rotated_mnist(raw, size=27)
    with pytest.raises(InputError, match=r"RotatedMNIST: channels: expected 1, or 3 for .* got 2"):
        rotated_mnist(raw, channels=2)
    with pytest.raises(InputError, match=r"ColoredMNIST: channels: expected 2, or 3 for .* got 1"):
        colored_mnist(raw, channels=1)
    with pytest.raises(InputError, match=r"ColoredMNIST: limit: expected at least 1 image .* got 0"):
        colored_mnist(raw, limit=0)


def test_images_of_another_size_are_refused(raw: Path) -> None:
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((TEST, 14, 20), dtype=np.uint8)))
    with pytest.raises(InputError, match=r"expected images of 28 x 28 pixels, got 14 x 20 in t10k"):
        rotated_mnist(raw)


def test_missing_files_are_named(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte, gzipped or not, in .*/nowhere/MNIST/raw"):
        rotated_mnist(tmp_path / "nowhere")
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"expected t10k-labels-idx1-ubyte, gzipped or not, got none"):
        rotated_mnist(raw)


def test_damaged_files_are_named(raw: Path) -> None:
    zipped = raw / "t10k-labels-idx1-ubyte.gz"
    whole = zipped.read_bytes()
    for damaged in (whole[:-20], b"text", whole[:15] + bytes(10) + whole[25:]):
        zipped.write_bytes(damaged)
        with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte\.gz: expected a gzipped idx file, got"):
            colored_mnist(raw)
    zipped.write_bytes(whole)
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"expected an idx file of bytes with 3 axes, got 705615 bytes"):
        colored_mnist(raw)


def test_images_and_labels_must_pair(raw: Path) -> None:
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(7, dtype=np.uint8)))
    with pytest.raises(InputError, match=r"got 900 images and 7 labels in train"):
        colored_mnist(raw)


@pytest.mark.shared
def test_the_real_digits_have_the_published_sizes(shared: Path) -> None:
    rotated, colored = rotated_mnist(shared / "data"), colored_mnist(shared / "data")
    assert [len(domain) for domain in rotated.domains] == [11667] * 4 + [11666] * 2
    assert [len(domain) for domain in colored.domains] == [23334, 23333, 23333]
    assert rotated.notes == colored.notes == ()
    # These are in published records: the default form must never change.
    assert rotated.digest == "be9ae170ca637fa5b5cfbdc97833b24a18f3f5a3cd03374537d61e60c5d69550"
    assert colored.digest == "d5844ca77cc99c40353217bb9c1bd37cc14affcd20151349cd8cdc2cb52e127d"
