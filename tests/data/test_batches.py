from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.data import Task, draw, evaluation_batches, prefetch
from mirepoix.types import Batch, InputError


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.domains, b.domains)
        for a, b in zip(one, other, strict=True)
    )


def test_one_minibatch_per_source_domain(small_task: Task) -> None:
    batches = draw(small_task.split("b"), 0, batch_size=5, seed=0)
    assert [batch.domains.tolist() for batch in batches] == [[0] * 5, [2] * 5]
    assert all(
        batch.images.shape == (5, 3, 8, 8) and batch.images.dtype == torch.float32 for batch in batches
    )
    assert all(batch.labels.dtype == torch.int64 for batch in batches)


@given(step=st.integers(0, 10**6), seed=st.integers(0, 10**6))
def test_a_draw_depends_on_seed_step_and_domain_only(small_task: Task, step: int, seed: int) -> None:
    split = small_task.split("b")
    batches = draw(split, step, batch_size=3, seed=seed)
    torch.rand(3)
    draw(split, step + 1, batch_size=3, seed=seed)
    assert same(draw(split, step, batch_size=3, seed=seed), batches)
    assert same(draw(small_task.split("a"), step, batch_size=3, seed=seed)[1:], batches[1:])


def test_seed_step_and_augmentation_each_change_a_draw(small_task: Task) -> None:
    split = small_task.split("b")
    first = draw(split, 0, batch_size=8, seed=0)
    assert not same(draw(split, 1, batch_size=8, seed=0), first)
    assert not same(draw(split, 0, batch_size=8, seed=1), first)
    plain = draw(split, 0, batch_size=8, seed=0, augment=False)
    assert torch.equal(plain[0].labels, first[0].labels)
    assert not torch.equal(plain[0].images, first[0].images)


def test_a_draw_never_touches_the_global_generators(small_task: Task) -> None:
    before, numpy_before = torch.random.get_rng_state(), legacy_state()
    draw(small_task.split("b"), 0, batch_size=8, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert legacy_state() == numpy_before


def legacy_state() -> str:
    return repr(np.random.mtrand._rand.get_state(legacy=False))


def test_draws_are_uniform_over_the_training_samples_and_no_others(small_task: Task) -> None:
    split = small_task.split("b")
    plain = small_task.transform.plain
    every = plain(small_task.domains[0].images.read(np.arange(20))).flatten(1)
    (drawn, _) = draw(split, 0, batch_size=4000, seed=0, augment=False)
    which = torch.cdist(drawn.images.flatten(1).double(), every.double()).argmin(dim=1)
    counts = torch.bincount(which, minlength=20).numpy()
    indices = split.train[0].indices
    assert counts.sum() == counts[indices].sum() == 4000
    # Chi-squared with 15 degrees of freedom: mean 15, standard deviation sqrt(30).
    expected = 4000 / len(indices)
    assert abs(((counts[indices] - expected) ** 2 / expected).sum() - 15) < 4 * 30**0.5
    assert drawn.labels.tolist() == small_task.domains[0].labels[which.numpy()].tolist()


def test_evaluation_sees_every_sample_once_in_order(small_task: Task) -> None:
    subset = small_task.split("b").validation[1]
    batches = list(evaluation_batches(subset, small_task.transform, batch_size=3))
    assert [len(batch.labels) for batch in batches] == [3, 3, 2]
    assert torch.cat([batch.labels for batch in batches]).tolist() == subset.labels.tolist()
    assert torch.cat([batch.domains for batch in batches]).unique().tolist() == [2]
    expected = small_task.transform.plain(subset.domain.images.read(subset.indices))
    torch.testing.assert_close(torch.cat([batch.images for batch in batches]), expected)


def test_evaluation_is_augmented_only_with_a_generator_and_by_it_alone(small_task: Task) -> None:
    subset = small_task.split("b").validation[0]

    def seen(seed: int | None) -> torch.Tensor:
        augmented = None if seed is None else torch.Generator().manual_seed(seed)
        return torch.cat(
            [batch.images for batch in evaluation_batches(subset, small_task.transform, augmented=augmented)]
        )

    raw = subset.domain.images.read(subset.indices)
    torch.testing.assert_close(seen(None), small_task.transform.plain(raw))
    torch.testing.assert_close(seen(3), small_task.transform.train(raw, torch.Generator().manual_seed(3)))
    assert not torch.equal(seen(3), seen(None))
    assert not torch.equal(seen(3), seen(4))
    batches = evaluation_batches(subset, small_task.transform, batch_size=3, augmented=torch.Generator())
    assert torch.cat([batch.labels for batch in batches]).tolist() == subset.labels.tolist()


def test_an_empty_batch_is_refused(small_task: Task) -> None:
    split = small_task.split("b")
    with pytest.raises(InputError, match="batch_size: expected at least 1 image per domain, got 0"):
        draw(split, 0, batch_size=0, seed=0)
    with pytest.raises(InputError, match="batch_size: expected at least 1 image, got 0"):
        next(evaluation_batches(split.test[0], small_task.transform, batch_size=0))


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mirepoix-prefetch"]


@given(count=st.integers(0, 20), depth=st.integers(1, 5))
def test_prefetching_changes_no_value_and_no_order(count: int, depth: int) -> None:
    assert list(prefetch(lambda step: step * 2, range(count), depth=depth)) == [
        2 * step for step in range(count)
    ]


def test_prefetch_works_ahead_by_its_depth_and_no_more() -> None:
    made: list[int] = []
    values = prefetch(lambda step: made.append(step) or step, range(100), depth=3)
    assert next(values) == 0
    deadline = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1, 2]
    values.close()
    assert not workers()


def test_an_exception_surfaces_at_its_step() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise InputError("step 2 is broken")
        return step

    values = prefetch(make, range(5))
    assert [next(values), next(values)] == [0, 1]
    with pytest.raises(InputError, match="step 2 is broken"):
        next(values)
    assert not workers()


def test_an_exception_of_the_steps_themselves_surfaces_too() -> None:
    def steps() -> Iterator[int]:
        yield 0
        raise KeyError("no more")

    values = prefetch(lambda step: step, steps())
    assert next(values) == 0
    with pytest.raises(KeyError, match="no more"):
        next(values)


def test_dropping_the_iterator_stops_the_thread() -> None:
    values = prefetch(lambda step: step, range(10**9))
    next(values)
    assert len(workers()) == 1
    del values
    gc.collect()
    assert not workers()


def test_prefetch_refuses_a_depth_of_nothing() -> None:
    with pytest.raises(InputError, match="depth: expected at least 1 value ahead, got 0"):
        prefetch(lambda step: step, range(3), depth=0)


def test_drawing_ahead_leaves_the_threads_of_the_caller_alone():
    before = torch.get_num_threads()
    seen = []

    def make(step):
        seen.append(torch.get_num_threads())
        return step

    wanted = before + 1
    torch.set_num_threads(wanted)
    try:
        iterator = prefetch(make, range(3))
        assert next(iterator) == 0
        assert torch.get_num_threads() == wanted
        assert list(iterator) == [1, 2]
        assert torch.get_num_threads() == wanted
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1, 1]
