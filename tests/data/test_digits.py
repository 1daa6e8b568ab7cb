from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from mirepoix.data import Task, digits_pretraining_task, digits_task
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
