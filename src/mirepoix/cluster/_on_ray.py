"""The page of equations on a cluster: weights become references that Ray resolves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mirepoix.cluster._engine import at_least_one, set_threads
from mirepoix.cluster._pool import thread_variables
from mirepoix.cluster._ray import SETTINGS, import_ray
from mirepoix.types import Train

__all__ = ["gathered", "on_ray"]


def on_ray(
    train: Train, *, cpus: float = 1, gpus: float = 0, threads: int = 1, retries: int = 2
) -> Callable[[Any, Any, Any], Any]:
    """``train`` as tasks of the Ray cluster that this process is connected to.

    The result takes ``(theta, task, run)`` and returns at once a reference to the weights. Each of the three may
    be a reference too, so trainings that start from the result of others wait for them on the cluster, not
    here. What is given again and again, such as one task for many runs, is sent once; so do not change it in place.
    Give the strategy a `gathered` combine.

    Args:
        train: The training, ``(theta, task, run) -> Weights``; anything that cloudpickle can send.
        cpus: Processors that Ray sets aside for one training.
        gpus: Likewise GPUs; a fraction shares one.
        threads: Of torch and the other numerical libraries in a worker.
        retries: How often Ray starts a training again after its worker was lost.

    Raises:
        InputError: Without Ray, or for less than one thread.

    Example:
        ``ray.init(); diwa(on_ray(train), theta, task, runs, combine=gathered(average))``
    """
    at_least_one("on_ray: threads", threads)
    ray = import_ray()
    remote = ray.remote(
        num_cpus=cpus,
        num_gpus=gpus,
        max_retries=retries,
        runtime_env={"env_vars": {**SETTINGS, **thread_variables(threads)}},
    )(trained)
    sent: dict[
        int, tuple[Any, Any, Any]
    ] = {}  # by position: the last argument, where it was sent, its reference

    def put(position: int, value: Any) -> Any:
        if isinstance(value, ray.ObjectRef):
            return value
        job = ray.get_runtime_context().get_job_id()
        last = sent.get(position)
        if last is None or last[0] is not value or last[1] != job:
            last = sent[position] = (value, job, ray.put(value))
        return last[2]

    def submit(theta: Any, task: Any, run: Any) -> Any:
        values = (train, theta, task, run)
        return remote.remote(threads, *(put(position, value) for position, value in enumerate(values)))

    return submit


def trained(threads: int, train: Train, theta: Any, task: Any, run: Any) -> Any:
    """What a worker does with one training."""
    set_threads(threads)
    return train(theta, task, run)


def gathered(combine: Callable[..., Any]) -> Callable[..., Any]:
    """``combine`` for members that may be references: all are asked for first, then fetched one by one.

    Members arrive in the order given, so the result has the same bits as without Ray.
    """

    def combined(thetas: Iterable[Any], /, *arguments: Any, **options: Any) -> Any:
        ray = import_ray()
        members = list(thetas)  # a generator trains what it yields: submit all before waiting for the first
        fetched = (ray.get(theta) if isinstance(theta, ray.ObjectRef) else theta for theta in members)
        return combine(fetched, *arguments, **options)

    return combined
