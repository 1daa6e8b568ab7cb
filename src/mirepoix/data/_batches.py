"""Batches: drawn at random for training, in order for evaluation, and ahead of time in a thread.

A training batch depends on the seed, the step and the domain only, not on what was drawn before. A killed run
goes on in the middle with the same batches, and evaluating more often changes nothing.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from mirepoix.data._images import IntArray
from mirepoix.data._task import Split, Subset
from mirepoix.data._transform import Transform
from mirepoix.seeds import generator, stream
from mirepoix.types import Batch, InputError

__all__ = ["draw", "evaluation_batches", "prefetch"]

Value = TypeVar("Value")
Device = torch.device | str | None


def draw(
    split: Split, step: int, *, batch_size: int, seed: int, augment: bool = True, device: Device = None
) -> list[Batch]:
    """One minibatch per source domain, each sample drawn uniformly with replacement.

    Args:
        split: Whose training subsets to draw from.
        step: Number of the step, from 0.
        batch_size: Images per domain, which may be more than the domain has.
        seed: Of the run.
        augment: Whether the images are augmented.
        device: Where the images are transformed and the batch lies; the CPU by default.

    Returns:
        The batches, in the order of ``split.train``.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1 image per domain, got {batch_size}.")
    batches = []
    for subset in split.train:
        place = (int(seed), int(step), subset.name)
        picks = stream("order", *place).integers(len(subset), size=batch_size)
        images = _raw(subset, subset.indices[picks], device)
        transform = split.task.transform
        seen = transform.train(images, generator("augment", *place)) if augment else transform.plain(images)
        batches.append(_batch(subset, subset.indices[picks], seen))
    return batches


def evaluation_batches(
    subset: Subset,
    transform: Transform,
    *,
    batch_size: int = 256,
    device: Device = None,
    augmented: torch.Generator | None = None,
) -> Iterator[Batch]:
    """Every sample once, in the order of the subset, without augmentation unless a generator for it is given."""
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1 image, got {batch_size}.")
    for first in range(0, len(subset), batch_size):
        indices = subset.indices[first : first + batch_size]
        images = _raw(subset, indices, device)
        seen = transform.plain(images) if augmented is None else transform.train(images, augmented)
        yield _batch(subset, indices, seen)


def _raw(subset: Subset, indices: IntArray, device: Device) -> Tensor:
    images = subset.domain.images.read(indices)
    target = torch.device("cpu" if device is None else device)
    if target.type == "cuda":
        # The copy of pinned bytes overlaps with what the device is doing; floats would be four times as many.
        return images.pin_memory().to(target, non_blocking=True)
    return images.to(target)


def _batch(subset: Subset, indices: IntArray, images: Tensor) -> Batch:
    labels = torch.from_numpy(subset.domain.labels[indices]).to(images.device)
    return Batch(images, labels, torch.full_like(labels, subset.number))


def prefetch(
    make: Callable[[int], Value], steps: Iterable[int], *, depth: int = 2
) -> Generator[Value, None, None]:
    """``make(step)`` for each step in order, computed ahead by one background thread.

    At most ``depth`` values wait. An exception of ``make`` surfaces at the step that raised it. Closing the
    iterator, or dropping it, stops the thread after the value it is working on.

    Example:
        >>> list(prefetch(lambda step: step * step, range(4)))
        [0, 1, 4, 9]
    """
    if depth < 1:
        raise InputError(f"depth: expected at least 1 value ahead, got {depth}.")
    return _prefetch(make, steps, depth)


def _prefetch(make: Callable[[int], Value], steps: Iterable[int], depth: int) -> Generator[Value, None, None]:
    ready: queue.SimpleQueue[Callable[[], Value] | None] = queue.SimpleQueue()
    free = threading.Semaphore(depth)
    stop = threading.Event()
    threads, settled = torch.get_num_threads(), threading.Event()

    def work() -> None:
        # Operations on one image are too short to share: waiting for a second thread costs more than it saves,
        # and takes the processor from the training. Asking first initialises this thread, which would
        # otherwise undo the setting.
        torch.get_num_threads()
        torch.set_num_threads(1)
        settled.set()
        try:
            for step in steps:
                free.acquire()
                if stop.is_set():
                    return
                value = make(step)
                ready.put(lambda value=value: value)  # type: ignore[misc]
        except BaseException as error:
            ready.put(lambda error=error: _raise(error))  # type: ignore[misc]
        else:
            ready.put(None)

    # A daemon, so that a program that ends in the middle of an iteration does not wait for it.
    thread = threading.Thread(target=work, name="mirepoix-prefetch", daemon=True)
    thread.start()
    settled.wait()
    torch.set_num_threads(threads)  # also what threads that start later begin with
    try:
        while (result := ready.get()) is not None:
            yield result()
            free.release()
    finally:
        stop.set()
        free.release()
        if threading.current_thread() is not thread:  # it is when the collector drops the iterator from there
            thread.join()


def _raise(error: BaseException) -> Value:  # type: ignore[type-var]
    raise error
