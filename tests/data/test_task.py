from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mirepoix.data import Domain, Task, Transform, split_indices
from mirepoix.data._images import ArrayImages
from mirepoix.data._task import digest_of, make_task
from mirepoix.types import InputError


def task_of(
    *, labels: tuple[int, ...] = (0, 1, 0), classes: tuple[str, ...] = ("x", "y"), **changes: object
) -> Task:
    images = np.zeros((3, 3, 4, 4), dtype=np.uint8)
    images[0] = changes.get("pixel", 0)
    domains = [
        Domain(str(changes.get("domain", "a")), ArrayImages(images), np.array(labels)),
        Domain("b", ArrayImages(images), np.array([0, 1, 1])),
    ]
    transform = changes.get("transform", Transform(4))
    assert isinstance(transform, Transform)
    digests = [digest_of(images), digest_of(images)]
    return make_task(str(changes.get("name", "t")), classes, domains, transform, image_digests=digests)


def test_the_target_is_tested_whole_and_the_sources_are_divided(small_task: Task) -> None:
    split = small_task.split("b", data_seed=1)
    assert [subset.name for subset in split.train] == ["a", "c"]
    assert [subset.number for subset in split.validation] == [0, 2]
    (test,) = split.test
    assert test.indices.tolist() == list(range(30))
    assert test.labels.tolist() == small_task.domains[1].labels.tolist()
    for train, validation in zip(split.train, split.validation, strict=True):
        golden = split_indices(len(train.domain), data_seed=1, domain=train.number)
        assert (train.indices.tolist(), validation.indices.tolist()) == tuple(
            part.tolist() for part in golden
        )


def test_without_a_target_all_domains_are_sources(small_task: Task) -> None:
    split = small_task.split(None)
    assert [len(subset) for subset in split.train] == [16, 24, 32]
    assert split.test == ()


def test_the_division_of_a_domain_does_not_depend_on_the_target(small_task: Task) -> None:
    left_a, left_b = small_task.split("a"), small_task.split("b")
    assert left_a.train[1].indices.tolist() == left_b.train[1].indices.tolist()


def test_an_unknown_target_names_the_domains_and_the_nearest() -> None:
    with pytest.raises(InputError, match=r"got 'aa'\. Did you mean 'a'\? Domains: a, b\."):
        task_of().split("aa")


def test_a_domain_too_small_to_divide_is_named_with_its_count() -> None:
    with pytest.raises(
        InputError, match=r"domain 'b' of t: .* got 3 images, that is 3 for training and 0 for"
    ):
        task_of().split("a")
    assert len(task_of().split("a", holdout=0.4).validation[0]) == 1


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.1])
def test_a_holdout_is_a_fraction(small_task: Task, holdout: float) -> None:
    with pytest.raises(InputError, match=r"holdout: expected a fraction between 0 and 1, got"):
        small_task.split("a", holdout=holdout)


def test_one_domain_cannot_be_left_out(small_task: Task) -> None:
    lonely = dataclasses.replace(small_task, domains=small_task.domains[:1])
    with pytest.raises(InputError, match="one to leave out and one to train on"):
        lonely.split("a")
    assert len(lonely.split(None).train) == 1


def test_a_class_missing_somewhere_is_noted() -> None:
    assert task_of(labels=(0, 0, 0)).notes == ("class 'y' is missing in domains: a",)
    assert task_of().notes == ()


def test_the_digest_is_of_the_contents() -> None:
    digests = {
        task.digest
        for task in (
            task_of(),
            task_of(pixel=1),
            task_of(labels=(1, 0, 0)),
            task_of(classes=("x", "z")),
            task_of(domain="c"),
            task_of(transform=Transform(5)),
        )
    }
    assert len(digests) == 6
    assert task_of(name="other").digest == task_of().digest


def test_the_digest_of_a_split_follows_each_argument(small_task: Task) -> None:
    splits = [
        small_task.split("a"),
        small_task.split("b"),
        small_task.split(None),
        small_task.split("a", data_seed=1),
        small_task.split("a", holdout=0.3),
    ]
    assert len({split.digest for split in splits}) == 5
    assert small_task.split("a").digest == splits[0].digest


def test_labels_are_read_only_and_one_per_image() -> None:
    images = ArrayImages(np.zeros((2, 3, 4, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        Domain("a", images, np.array([0, 1])).labels[0] = 1
    with pytest.raises(InputError, match="got 3 labels for 2 images"):
        Domain("a", images, np.array([0, 1, 1]))


def test_further_domains_are_left_out_and_not_tested(small_task: Task) -> None:
    split = small_task.split("a", without=["c"])
    assert split.without == ("c",)
    assert [subset.name for subset in split.train] == ["b"]
    assert [subset.name for subset in split.validation] == ["b"]
    assert [subset.name for subset in split.test] == ["a"]
    alone = small_task.split("a")
    assert split.train[0].indices.tolist() == alone.train[0].indices.tolist()
    assert [subset.name for subset in small_task.split(None, without=("b",)).train] == ["a", "c"]
    assert small_task.split(None, without=("b",)).test == ()


def test_what_is_left_out_is_whole_and_in_the_order_of_the_task(small_task: Task) -> None:
    left_out = small_task.split("c", without=("a",)).left_out
    assert [(subset.name, subset.number) for subset in left_out] == [("a", 0), ("c", 2)]
    assert [subset.indices.tolist() for subset in left_out] == [list(range(20)), list(range(40))]
    assert [subset.name for subset in small_task.split("b").left_out] == ["b"]
    assert small_task.split(None).left_out == ()


def test_leaving_two_domains_out_is_one_training_whichever_is_tested(small_task: Task) -> None:
    digests = {
        small_task.split("a", without=("c",)).digest,
        small_task.split("c", without=("a",)).digest,
        small_task.split(None, without=("c", "a")).digest,
    }
    assert len(digests) == 1
    others = [small_task.split("a"), small_task.split("c"), small_task.split("a", without=("b",))]
    assert digests.isdisjoint(split.digest for split in others)
    assert small_task.split("a", without=("c",), data_seed=1).digest not in digests


def test_a_further_domain_must_exist_and_one_must_stay(small_task: Task) -> None:
    with pytest.raises(InputError, match=r"expected a domain of small as target, got 'd'.*Domains: a, b, c"):
        small_task.split("a", without=("d",))
    with pytest.raises(
        InputError, match="expected at least 4 domains, 3 to leave out and one to train on, got 3"
    ):
        small_task.split("a", without=("b", "c"))
