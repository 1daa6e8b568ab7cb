"""theta_pt: the pre-trained start that all members share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mirepoix.checkpoints import fingerprint
from mirepoix.data import Task, digits_pretraining_task
from mirepoix.heads import with_head
from mirepoix.models import NetworkSpec, initial_weights, load_pretrained
from mirepoix.recipe import Experiment
from mirepoix.store import Store, cached
from mirepoix.training import Loop, Trainer
from mirepoix.types import Diverged, InputError, Weights

__all__ = ["Start", "build_start", "find_weights"]


@dataclass(frozen=True)
class Start:
    """A network and the weights every run begins with.

    Attributes:
        network: What is trained.
        theta: Pre-trained featurizer with a fresh classifier, shared by all runs.
        description: Where the featurizer came from, in words.
        sha256: Fingerprint of ``theta``.
    """

    network: NetworkSpec
    theta: Weights
    description: str
    sha256: str


def build_start(
    recipe: Experiment,
    task: Task,
    data: Path | None,
    recipe_path: Path,
    store: Store,
    loop: Loop,
    on_progress: Callable[[int, int, float, float | None], None] | None = None,
    *,
    digits: int | None = None,
) -> Start:
    """Load the pre-trained weights the recipe names, or make them on the set-apart built-in images.

    Args:
        recipe: What to start from.
        task: Whose classes the classifier is for.
        data: What ``--data`` named.
        recipe_path: Its folder is looked through for files of weights.
        store: Where a pre-training is kept.
        loop: Of a pre-training.
        on_progress: Told of a pre-training.
        digits: Size of the built-in images, where it is them that the recipe uses.
    """
    table = recipe.network
    channels = task.domains[0].images.shape[0]
    network = NetworkSpec(
        name=table.name,
        classes=len(task.classes),
        channels=channels,
        width=table.width,
        frozen_batch_norm=table.frozen_batch_norm,
        pretrained=table.pretrained,
    )
    theta: Weights
    pretraining = recipe.pretraining_run()
    if pretraining is not None:
        if digits is None:
            raise InputError(
                "pretraining: only the built-in 'digits' sets images apart; name network.weights instead."
            )
        source = digits_pretraining_task(size=digits)
        run = pretraining.with_(collect="last")
        whole = dataclasses.replace(network, classes=len(source.classes))
        trainer = Trainer(whole, loop=loop, on_progress=on_progress)
        try:
            pretrained = cached(trainer, store)(initial_weights(whole), source.split(None), run)
        except Diverged as diverged:
            raise InputError(
                f"the pre-training diverged: {diverged} Lower pretraining.learning_rate."
            ) from None
        # The classes are the same, but a start must not know the labels: its classifier is made anew.
        theta = with_head(pretrained, initial_weights(network, seed=1))
        images = sum(len(domain) for domain in source.domains)
        origin = f"pre-trained for {run.steps} steps on {images} images that no domain holds"
    elif table.weights is not None:
        path = find_weights(table.weights, data, recipe_path)
        theta = load_pretrained(network, path)
        origin = f"pre-trained weights from {path.name}"
    elif table.pretrained:
        theta = initial_weights(network)
        origin = "pre-trained weights from the hub of timm"
    elif table.scratch:
        theta = initial_weights(network)
        origin = "random weights that all runs share"
    else:
        raise InputError(
            'network: members need one pre-trained start. Name a file with network.weights = "...", or take a '
            "timm network with network.pretrained = true; network.scratch = true starts from random weights."
        )
    digest = fingerprint(theta)
    return Start(network, theta, f"{network.name}, {origin} (fingerprint {digest[:12]})", digest)


def find_weights(name: str, data: Path | None, recipe_path: Path, *, key: str = "network.weights") -> Path:
    """A file beside the current folder, the recipe, or the data; ``key`` is where the recipe names it."""
    places = [Path.cwd(), recipe_path.parent, *([data] if data else [])]
    for place in places:
        if (place / name).is_file():
            return place / name
    looked = ", ".join(str(place / name) for place in places)
    raise InputError(f"{key}: there is no file {name!r}; looked for {looked}.")
