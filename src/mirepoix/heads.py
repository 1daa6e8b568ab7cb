"""theta = (omega, phi): the classifier omega and the featurizer phi.

Between two trainings the head is replaced: the classes changed, the features did not. All members that are
to be averaged must share one head to start from, best a linear probe of the original features.
"""

from __future__ import annotations

from typing import Any

from mirepoix.runs import Run
from mirepoix.types import InputError, Train, Weights

__all__ = ["linear_probe", "split_head", "with_head"]

PREFIX = "classifier."


def split_head(theta: Weights, *, prefix: str = PREFIX) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights of the featurizer and those of the classifier, in this order.

    Args:
        theta: Weights of a whole network.
        prefix: What the names of the classifier begin with.

    Raises:
        InputError: If no name begins so.
    """
    classifier = {name: theta[name] for name in theta if name.startswith(prefix)}
    if not classifier:
        names = ", ".join(list(theta)[-3:])
        raise InputError(f"split_head: no weights begin with {prefix!r}; the last names are {names}.")
    return {name: theta[name] for name in theta if name not in classifier}, classifier


def with_head(theta: Weights, head: Weights, *, prefix: str = PREFIX) -> dict[str, Any]:
    """The featurizer of ``theta`` with the classifier of ``head``.

    Args:
        theta: Weights of a whole network.
        head: Weights that hold the classifier: another whole network, or the classifier alone.
        prefix: What the names of the classifier begin with.

    Raises:
        InputError: If one of them has no classifier under this prefix.
    """
    featurizer, _ = split_head(theta, prefix=prefix)
    _, classifier = split_head(head, prefix=prefix)
    return {**featurizer, **classifier}


def linear_probe(train: Train, theta: Any, task: Any, run: Run) -> Any:
    """omega_lp: train the classifier alone, on frozen features.

    One probe, shared by all runs, is the start of every published table of weight averaging: members that
    begin with different random heads end too far apart to average.

    Args:
        train: Any training that honours ``run.classifier_steps``.
        theta: The network with a fresh classifier.
        task: The source domains.
        run: The configuration of the probe; all of its steps train the classifier.

    Returns:
        The whole network: ``theta`` with the probe as its classifier.
    """
    return train(theta, task, run.with_(classifier_steps=run.steps))
