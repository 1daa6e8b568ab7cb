"""The common start of all experts: a network that learned true answers by cross-entropy."""

from __future__ import annotations

import math
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards.scenes._loop import Progress, descend, one_thread
from mirepoix.rewards.scenes._network import SceneNetwork, Sequences, initial_network
from mirepoix.rewards.scenes._task import SceneExamples, SceneTask, code_digest
from mirepoix.seeds import stream
from mirepoix.store import Store, StoredWeights
from mirepoix.types import Diverged, InputError, Weights

__all__ = ["LIBRARIES", "scene_start", "true_answers"]

LIBRARIES = ("numpy", "torch", "transformers")
"""Those whose versions may change what comes out of a training."""


def scene_start(
    task: SceneTask,
    store: Store | None = None,
    *,
    seed: int = 0,
    steps: int = 2000,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    width: int = 64,
    layers: int = 2,
    on_progress: Progress | None = None,
) -> Weights:
    r"""A network from nothing, after supervised training on the references of the training scenes.

    .. math:: \min_\theta - \frac{1}{\sum_i |y_i|} \sum_i \sum_t \log p_\theta(y_{i,t} | y_{i,<t}, x_i)

    over the tokens of one reference, drawn anew in each step, for each of ``batch_size`` images. AdamW (weight decay
    0.01) with a rate that rises for a twentieth of the steps and then falls to zero along half a cosine; gradients are
    clipped to norm 1. The same arguments give the same bits on CPU; it takes one thread.

    Args:
        task: Scenes and words.
        store: Where the result is kept by what it was made of; a training that was killed continues there.
        seed: Of the first weights and of all that is drawn.
        steps: Updates.
        batch_size: Images of an update.
        learning_rate: The highest.
        width: Of the network: see `initial_network`.
        layers: Likewise.
        on_progress: Called after each step with the steps done, all steps, and the loss.

    Returns:
        The weights, with the ``record`` of their training.

    Raises:
        InputError: For numbers that cannot be.
        Diverged: If the loss is not finite any more.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name}: expected at least 1, got {value}.")
    if not 0 < learning_rate < math.inf:
        raise InputError(f"learning_rate: expected a positive number, got {learning_rate}.")
    first = initial_network(task, seed=seed, width=width, layers=layers)
    options = {"seed": seed, "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    identity = {
        "theta": fingerprint(first),
        "task": task.digest,
        "run": options,
        "train": {
            "name": "scene start",
            "code": code_digest("_network.py", "_loop.py", "_start.py"),
            "libraries": {name: metadata.version(name) for name in LIBRARIES},
        },
    }

    def make(workspace: Path | None) -> tuple[dict[str, Weights], dict[str, Any]]:
        with one_thread():
            network = SceneNetwork(task, first)
            examples = task.examples("train")
            optimizer = torch.optim.AdamW(
                network.model.parameters(), lr=learning_rate, weight_decay=0.01, foreach=False
            )

            def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
                rows = stream(seed, "images", step).integers(len(examples), size=batch_size).tolist()
                chosen = true_answers(network, examples, rows, seed, step)
                logs = network.log_probabilities(network.see(examples.images[rows]), chosen)
                loss = -logs.sum() / chosen.answered.sum()
                return loss, {"loss": float(loss.detach())}

            def rate(step: int) -> float:
                rising, falling = (step + 1) / max(1, steps // 20), (1 + math.cos(math.pi * step / steps)) / 2
                return learning_rate * min(1.0, rising) * falling

            try:
                record = descend(
                    network,
                    optimizer,
                    loss_of,
                    steps=steps,
                    learning_rate=rate,
                    workspace=workspace,
                    largest_gradient=1.0,
                    save_every=100,
                    on_progress=on_progress,
                )
            except Diverged as diverged:
                return {}, {"status": "diverged", "step": diverged.step, "message": str(diverged)}
            return {"last": network.weights()}, record

    weights, record = make(None) if store is None else store.get_or_make("scene-starts", identity, make)
    if record["status"] == "diverged":
        raise Diverged(record["message"], record["step"])
    return StoredWeights(weights["last"], record)


def true_answers(
    network: SceneNetwork, examples: SceneExamples, rows: list[int], seed: int, step: int
) -> Sequences:
    """For each of the rows one of its references, drawn for this step."""
    random = stream(seed, "references", step)
    texts = [examples.references[row][random.integers(len(examples.references[row]))] for row in rows]
    return network.sequences([examples.prompts[row] for row in rows], texts)
