"""Members, soups and predictions, each with its record, where a person looks for them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mirepoix import __version__
from mirepoix.checkpoints import fingerprint, write_json, write_weights
from mirepoix.data import Split
from mirepoix.models import NetworkSpec
from mirepoix.predictions import Predictions
from mirepoix.recipe import Recipe
from mirepoix.types import Weights

__all__ = ["keep", "link"]


def keep(
    out: Path,
    recipe: Recipe,
    split: Split,
    network: NetworkSpec,
    start: Weights,
    numbers: Sequence[int],
    models: Mapping[str, Any],
    kept: Sequence[int],
    validation: Predictions,
    test: Predictions,
) -> None:
    """Write what one split gave.

    Args:
        out: The job's folder.
        recipe: What was done.
        split: For which target and data seed.
        network: What the weights belong to.
        start: Where the members began.
        numbers: Of the runs that are members.
        models: All weights by name: ``run-0`` and so on, then the soups.
        kept: Places in ``numbers`` of the members of the greedy soup.
        validation: Predictions of all models on ID validation.
        test: The same on the target domain.
    """
    folder = quote(str(split.target), safe=" +,()")
    if len(recipe.data.seeds) > 1:
        folder += f"-seed-{split.data_seed}"
    train = recipe.objective.train
    origin = {"target": split.target, "data_seed": split.data_seed, "mirepoix": __version__}

    members = [models[f"run-{number}"] for number in numbers]
    for number, member in zip(numbers, members, strict=True):
        path = out / "members" / folder / f"run-{number}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        link(member.path, path)
        write_json(
            path.with_suffix(".json"), {**origin, "equation": f"{train}(theta_pt, D; c)", **member.record}
        )

    def ingredients(places: Sequence[int]) -> list[dict[str, Any]]:
        return [{"run": numbers[i], "fingerprint": fingerprint(members[i])} for i in places]

    m, share = len(members), recipe.evidence.wise
    made: dict[str, dict[str, Any]] = {
        "wise": {"equation": f"{1 - share:g} {train}(theta_pt, D; c) + {share:g} theta_pt"},
        "moving_average": {"equation": f"mean_t theta_t along {train}(theta_pt, D; c)"},
        "average": {"equation": f"1/{m} sum_i {train}(theta_pt, D; c_i)", "members": ingredients(range(m))},
        "greedy": {
            "equation": f"1/{len(kept)} sum_(i kept) {train}(theta_pt, D; c_i)",
            "members": ingredients(kept),
        },
    }
    for name, how in made.items():
        path = out / "soups" / folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        theta: Weights = models[name]
        record = {
            **origin,
            **how,
            "fingerprint": fingerprint(theta),
            "network": network.to_dict(),
            "classes": list(split.task.classes),
        }
        write_weights(path, theta, record=record)

    path = out / "starts" / f"{folder}.safetensors"
    path.parent.mkdir(exist_ok=True)
    record = {
        **origin,
        "equation": "theta_pt with the head of the members",
        "fingerprint": fingerprint(start),
    }
    write_weights(
        path, start, record={**record, "network": network.to_dict(), "classes": list(split.task.classes)}
    )

    predictions = out / "predictions"
    predictions.mkdir(exist_ok=True)
    validation.save(predictions / f"{folder}-validation.safetensors")
    test.save(predictions / f"{folder}-test.safetensors")


def link(source: Path, path: Path) -> None:
    """The same file under a second name, or a copy where the file system has no links."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, path)
    temporary.unlink(missing_ok=True)  # a rename onto another link of the same file leaves both names
