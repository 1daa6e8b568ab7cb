"""Inputs that a recipe names (files and folders), and the files that a study writes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mirepoix.checkpoints import write_weights
from mirepoix.fronts._subject import Place
from mirepoix.types import InputError, Weights
from mirepoix.weights import interpolate

__all__ = ["data_uri", "input_file", "input_folder", "write_soup"]


def _found(key: str, name: str, place: Place, folder: bool) -> Path:
    places = [*([place.data] if place.data else []), place.recipe.parent, Path.cwd()]
    if place.data is not None and place.data.name == name and place.data.exists():
        return place.data  # the file itself was given
    for parent in places:
        path = parent / name
        if path.is_dir() if folder else path.is_file():
            return path
    looked = ", ".join(str(parent / name) for parent in places)
    kind = "folder" if folder else "file"
    advice = "" if place.data else " Name the folder it is in with --data."
    raise InputError(f"{key}: there is no {kind} {name!r}; looked for {looked}.{advice}")


def input_file(key: str, name: str, place: Place) -> Path:
    """A file in the folder of the data, beside the recipe or in the current folder.

    Raises:
        InputError: If there is none, naming where it was looked for.
    """
    return _found(key, name, place, folder=False)


def input_folder(key: str, name: str, place: Place) -> Path:
    """A folder likewise.

    Raises:
        InputError: If there is none, naming where it was looked for.
    """
    return _found(key, name, place, folder=True)


def write_soup(thetas: Mapping[str, Weights], coefficients: Mapping[str, float], folder: Path) -> str:
    """Write the soup of dense weights as ``chosen.safetensors`` into a folder: the name of the file."""
    names = list(thetas)
    soup = interpolate([thetas[name] for name in names], [coefficients[name] for name in names])
    write_weights(folder / "chosen.safetensors", soup)
    return "chosen.safetensors"


def data_uri(image: NDArray[np.uint8]) -> str:
    """A grey image of shape (height, width) as a PNG inside a page."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image, dtype=np.uint8)).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
