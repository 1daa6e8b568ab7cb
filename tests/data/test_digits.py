from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from mirepoix.data import AUXILIARY_DIGITS, Task, digits_auxiliary_task, digits_pretraining_task, digits_task
from mirepoix.data import _digits as digits_module
from mirepoix.data._digits import _half
from mirepoix.types import InputError


def originals(*, pretraining: bool) -> list[bytes]:
    images, _ = _half(8, pretraining=pretraining)
    return [image.tobytes() for image in images]


def pixels(task: Task, domain: int = 0) -> np.ndarray:
    return task.domains[domain].images.read(np.arange(len(task.domains[domain]))).numpy()


def test_the_halves_share_no_image_and_miss_none() -> None:
    ours, theirs = originals(pretraining=False), originals(pretraining=True)
    assert not set(ours) & set(theirs)
    every = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    assert sorted(ours + theirs) == sorted(image.tobytes() for image in every)
    assert abs(len(ours) - len(theirs)) <= 1


def test_six_rotated_domains_share_out_one_half() -> None:
    task = digits_task(size=8)
    assert task.domain_names == tuple(f"rotated_{angle}" for angle in (0, 15, 30, 45, 60, 75))
    assert sum(len(domain) for domain in task.domains) == len(originals(pretraining=False))
    half, labels = _half(8, pretraining=False)
    for number, angle in enumerate((0, 15, 30, 45, 60, 75)):
        part = half[number::6]
        assert task.domains[number].labels.tolist() == labels[number::6].tolist()
        expected = [
            np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR)) for image in part
        ]
        assert (pixels(task, number)[:, 0] == np.stack(expected)).all()


def test_labels_belong_to_their_images() -> None:
    digits = load_digits()
    known = {
        np.rint(image * (255 / 16)).astype(np.uint8).tobytes(): int(label)
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    for pretraining in (False, True):
        images, labels = _half(8, pretraining=pretraining)
        assert [known[image.tobytes()] for image in images] == labels.tolist()


def test_equal_images_stay_on_one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_digits()
    order = np.random.default_rng(0).permutation(3 * 100) % 100  # each of a hundred images three times
    twice = Bunch(data=digits.data[order], images=digits.images[order], target=digits.target[order])
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: twice)
    ours, theirs = originals(pretraining=False), originals(pretraining=True)
    assert (len(ours), len(theirs)) == (150, 150)
    assert not set(ours) & set(theirs)


def test_the_task_is_the_same_in_every_version() -> None:
    first, last = digits_task().domains[0], digits_task().domains[-1]
    assert (len(first), len(last)) == (150, 149)
    assert first.labels[:12].tolist() == [2, 7, 0, 1, 3, 5, 9, 9, 5, 0, 0, 6]
    assert last.labels[-12:].tolist() == [3, 1, 5, 3, 8, 2, 8, 3, 0, 8, 7, 4]


def test_the_default_tasks_have_the_digests_of_every_version() -> None:
    assert digits_task().digest == "1673da2328cde56bdc96831d10117fba1fbd8e462274719e2cfa0b958c25e34a"
    assert digits_pretraining_task().digest.startswith("9b6a9208ed2aae02fd051dd79cdbf3a82d64a634ddd2f013")


def test_rotation_is_counter_clockwise() -> None:
    from mirepoix.data._mnist import rotated

    image = np.zeros((1, 9, 9), dtype=np.uint8)
    image[0, 4, 8] = 255  # to the right of the centre
    assert rotated(image, 90)[0, 0, 0, 4] == 255  # above it


def test_the_pretraining_half_is_one_upright_domain() -> None:
    task = digits_pretraining_task()
    assert task.domain_names == ("upright",)
    assert pixels(task).shape == (898, 1, 16, 16)
    assert set(task.domains[0].labels.tolist()) == set(range(10))
    assert len(task.split(None).validation[0]) == 179


@pytest.mark.parametrize("make", [digits_task, digits_pretraining_task])
def test_the_size_is_that_of_the_images(make) -> None:  # type: ignore[no-untyped-def]
    task = make(size=20)
    assert task.domains[0].images.shape == (1, 20, 20)
    assert task.transform.size == 20
    assert task.notes == ()
    assert make(size=20).digest == task.digest != make().digest
    with pytest.raises(InputError, match="expected at least the digits' 8 pixels, got 4"):
        make(size=4)


AUXILIARY_SHAPES = {
    "parity": (["left", "right"], ("even", "odd")),
    "inverted": (["inverted"], tuple("0123456789")),
    "sloped": (["from_left", "from_top"], tuple("0123456789")),
    "quarter_turns": (["turned"], ("0", "90", "180", "270")),
}


def test_each_auxiliary_task_has_its_own_domains_and_classes() -> None:
    assert tuple(AUXILIARY_SHAPES) == AUXILIARY_DIGITS
    digests = set()
    for name, (domains, classes) in AUXILIARY_SHAPES.items():
        task = digits_auxiliary_task(name)
        assert task.name == f"digits, {name}"
        assert (list(task.domain_names), task.classes) == (domains, classes)
        assert sum(len(domain) for domain in task.domains) == len(originals(pretraining=True))
        assert all(domain.images.shape == (1, 16, 16) for domain in task.domains)
        for domain in task.domains:
            counts = np.bincount(domain.labels, minlength=len(classes))
            assert counts.min() > 0.7 * counts.mean()
        assert task.notes == ()
        assert (
            task.digest == digits_auxiliary_task(name).digest != digits_auxiliary_task(name, size=17).digest
        )
        digests.add(task.digest)
    assert len(digests) == 4


@pytest.mark.parametrize("name", AUXILIARY_DIGITS)
def test_auxiliary_tasks_read_the_set_apart_half_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def half(size: int, *, pretraining: bool) -> object:
        asked.append(pretraining)
        images, labels = _half(size, pretraining=True)
        return images[:40], labels[:40]

    monkeypatch.setattr(digits_module, "_half", half)
    assert sum(len(domain) for domain in digits_auxiliary_task(name).domains) == 40
    assert asked == [True]


def test_quarter_turns_can_be_turned_back_to_the_set_apart_half() -> None:
    task = digits_auxiliary_task("quarter_turns", size=8)
    labels = task.domains[0].labels
    back = [np.rot90(image, -label) for image, label in zip(pixels(task)[:, 0], labels.tolist(), strict=True)]
    contents = [image.tobytes() for image in back]
    assert contents == originals(pretraining=True)
    assert not set(contents) & set(originals(pretraining=False))


def test_inverted_and_sloped_digits_are_the_set_apart_half_on_other_backgrounds() -> None:
    half, labels = _half(16, pretraining=True)
    inverted = digits_auxiliary_task("inverted")
    assert inverted.domains[0].labels.tolist() == labels.tolist()
    noise = pixels(inverted)[:, 0].astype(int) - (255 - half.astype(int))
    assert np.abs(noise).max() == 32
    inner = noise[(half > 32) & (half < 223)]  # where nothing is cut off
    assert abs(inner.mean()) < 4 * (64 / 12**0.5) / len(inner) ** 0.5
    sloped = digits_auxiliary_task("sloped")
    for number in range(2):
        images = pixels(sloped, number)[:, 0]
        background = np.tile(np.arange(16) * 127 // 15, (16, 1))
        background = background if number == 0 else background.T
        assert (images == np.where(half[number::2] > background, half[number::2], background)).all()
        assert sloped.domains[number].labels.tolist() == labels[number::2].tolist()


def test_parity_is_sheared_to_two_sides() -> None:
    half, labels = _half(16, pretraining=True)
    task = digits_auxiliary_task("parity")
    across = np.arange(16)
    for number, sign in enumerate((-1, 1)):
        images = pixels(task, number)[:, 0].astype(float)
        assert task.domains[number].labels.tolist() == (labels[number::2] % 2).tolist()
        upright = half[number::2].astype(float)
        for rows, side in ((slice(0, 4), sign), (slice(12, 16), -sign)):
            moved = images[:, rows].sum(axis=(0, 1)), upright[:, rows].sum(axis=(0, 1))
            shift = (moved[0] @ across) / moved[0].sum() - (moved[1] @ across) / moved[1].sum()
            assert 0.5 < side * shift < 2  # 1.5 on average, less what leaves the image


@pytest.mark.parametrize("name", AUXILIARY_DIGITS)
def test_auxiliary_tasks_can_be_learnt(name: str) -> None:
    """The nearest training image has the label of a validation image: chance is a half at most."""
    task = digits_auxiliary_task(name)
    split = task.split(None)

    def read(subsets: object) -> tuple[np.ndarray, np.ndarray]:
        images = [subset.domain.images.read(subset.indices).flatten(1) for subset in subsets]  # type: ignore[attr-defined]
        labels = [subset.labels for subset in subsets]  # type: ignore[attr-defined]
        return np.concatenate([some.numpy() for some in images]).astype(float), np.concatenate(labels)

    (known, answers), (asked, truth) = read(split.train), read(split.validation)
    distance = (known**2).sum(axis=1) - 2 * asked @ known.T
    assert (answers[distance.argmin(axis=1)] == truth).mean() > 0.9


def test_unknown_auxiliary_tasks_and_sizes_are_refused() -> None:
    names = r"Did you mean 'parity'\? Names: parity, inverted, sloped, quarter_turns"
    with pytest.raises(InputError, match=r"got 'paritty'\. " + names):
        digits_auxiliary_task("paritty")
    with pytest.raises(InputError, match="expected at least the digits' 8 pixels, got 4"):
        digits_auxiliary_task("parity", size=4)
