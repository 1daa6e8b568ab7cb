"""The images a recipe asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mirepoix import data as room
from mirepoix.data import Task
from mirepoix.recipe import Data
from mirepoix.types import InputError

__all__ = ["build_task"]

DEFAULT_SIZE = 224
DIGITS_SIZE = 16


def build_task(
    table: Data, folder: Path | None, *, cache_dir: Path, progress: Callable[[int, int, str], None]
) -> Task:
    """Read the images, or find them in the cache.

    Args:
        table: The recipe's ``[data]``.
        folder: What ``--data`` named.
        cache_dir: Where decoded images are kept.
        progress: Called with images done, all images, and a text.
    """
    if table.dataset == "digits" or table.dataset.startswith("digits-"):
        if folder is not None:
            raise InputError(
                f"--data {folder}: the recipe's dataset is {table.dataset!r}, which is built in and reads no folder. "
                "Use a recipe with data.dataset = 'folder', or leave --data out."
            )
        if table.augmentation not in (None, "none"):
            raise InputError("data.augmentation: the built-in digits have none; leave it out.")
        size = table.size or DIGITS_SIZE
        if table.dataset == "digits":
            return room.digits_task(size=size)
        return room.digits_auxiliary_task(table.dataset.removeprefix("digits-"), size=size)
    if folder is not None and table.path is not None:
        folder = folder / table.path
    if folder is None:
        raise InputError(
            f"the recipe's dataset is {table.dataset!r}: name the folder of its images with --data DIR."
        )
    options = room.Loading(
        cache_dir=cache_dir,
        memory_budget=int(table.memory_budget * 2**30),
        skip_unreadable=table.skip_unreadable,
        progress=progress,
    )
    size = table.size or DEFAULT_SIZE
    augmentation = table.augmentation or "domainbed"
    if table.dataset == "folder":
        return room.folder_task(folder, size=size, augmentation=augmentation, **options)
    if table.dataset == "parquet":
        return room.parquet_task(
            folder,
            domain_column=table.domain_column or None,
            label_column=table.label_column,
            image_column=table.image_column,
            limit=table.limit,
            data_seed=table.seeds[0],
            size=size,
            augmentation=augmentation,
            **options,
        )
    return room.named_task(
        table.dataset,
        folder,
        size=table.size,
        data_seed=table.seeds[0],
        channels=table.channels,
        limit=table.limit,
        augmentation=table.augmentation,
        **options,
    )
