"""Domains, splits, transforms, datasets and batches."""

from mirepoix.data._batches import draw, evaluation_batches, prefetch
from mirepoix.data._cache import Loading
from mirepoix.data._digits import (
    AUXILIARY_DIGITS,
    digits_auxiliary_task,
    digits_pretraining_task,
    digits_task,
)
from mirepoix.data._folder import folder_task
from mirepoix.data._images import Images, IntArray
from mirepoix.data._mnist import colored_mnist, rotated_mnist
from mirepoix.data._named import named_task
from mirepoix.data._parquet import parquet_task
from mirepoix.data._split import split_indices
from mirepoix.data._task import Domain, Split, Subset, Task
from mirepoix.data._transform import Transform

__all__ = [
    "AUXILIARY_DIGITS",
    "Domain",
    "Images",
    "IntArray",
    "Loading",
    "Split",
    "Subset",
    "Task",
    "Transform",
    "colored_mnist",
    "digits_auxiliary_task",
    "digits_pretraining_task",
    "digits_task",
    "draw",
    "evaluation_batches",
    "folder_task",
    "named_task",
    "parquet_task",
    "prefetch",
    "rotated_mnist",
    "split_indices",
]
