"""Known datasets by name: which folders they are, and how many images were published.

Nothing is downloaded. A count that differs is a note, because a result on other images is still a result, but
not one that compares with a published table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from mirepoix.data._cache import Loading
from mirepoix.data._cifar import CIFAR, SIDE, cifar_task
from mirepoix.data._cifar_c import CORRUPTED, cifar_c_task
from mirepoix.data._folder import folder_task, subfolders
from mirepoix.data._mnist import colored_mnist, rotated_mnist
from mirepoix.data._task import Task, nearest
from mirepoix.data._transform import AugmentationName
from mirepoix.types import InputError

__all__ = ["named_task"]


@dataclass(frozen=True, slots=True)
class _Published:
    """What is known of a dataset: its folder, its domains with their images, its number of classes."""

    folder: str
    images: dict[str, int | None]
    classes: int


PUBLISHED = {
    "PACS": _Published("PACS", {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929}, 7),
    "VLCS": _Published("VLCS", {"Caltech101": 1415, "LabelMe": 2656, "SUN09": 3282, "VOC2007": 3376}, 5),
    "OfficeHome": _Published(
        "office_home", {"Art": 2427, "Clipart": 4365, "Product": 4439, "Real World": 4357}, 65
    ),
    "TerraIncognita": _Published(
        "terra_incognita",
        {"location_100": 4879, "location_38": 9767, "location_43": 4020, "location_46": 6122},
        10,
    ),
    "DomainNet": _Published(
        "domain_net",
        {
            "clipart": 48129,
            "infograph": 51605,
            "painting": 72266,
            "quickdraw": 172500,
            "real": 172947,
            "sketch": 69128,
        },
        345,
    ),
    # The reference states no counts for SVIRO.
    "SVIRO": _Published(
        "sviro",
        dict.fromkeys(
            ["aclass", "escape", "hilux", "i3", "lexus", "tesla", "tiguan", "tucson", "x5", "zoe"], None
        ),
        7,
    ),
}
GENERATED = {"ColoredMNIST": colored_mnist, "RotatedMNIST": rotated_mnist}
# What the benchmark's download has yielded since the source moved to a smaller archive.
TERRA_TODAY = {"location_100": 4741, "location_38": 9736, "location_43": 3970, "location_46": 5883}


def named_task(
    dataset: str,
    root: str | Path,
    *,
    size: int | None = None,
    data_seed: int = 0,
    augmentation: AugmentationName | None = None,
    domains: Sequence[str] | None = None,
    channels: int | None = None,
    limit: int | None = None,
    **loading: Unpack[Loading],
) -> Task:
    """A known dataset, checked against its published counts.

    Args:
        dataset: One of the benchmark: PACS, VLCS, OfficeHome, TerraIncognita, DomainNet, SVIRO, ColoredMNIST or
            RotatedMNIST. Or CIFAR10 or CIFAR100, whose domains are ``train`` and ``test``, in their official binary
            version or as Parquet files of the hub. Images of some copies of the hub went through JPEG, which costs a
            few points of published accuracies; a note says so. Or CIFAR10-C or CIFAR100-C, their test images under
            corruptions, with one domain per corruption and in it the five severities one after the other.
        root: The folder that contains the dataset's folder, or that folder itself.
        size: Side in pixels of what the network sees: 224 by default; 28 by default and at least for the
            MNIST variants; 32 by default for CIFAR.
        data_seed: Of the MNIST variants, which are generated: it deals the digits and draws the noise.
        augmentation: ``domainbed`` by default, ``crop_flip`` for CIFAR; none for corrupted images, and always
            for the MNIST variants.
        domains: Names of the domains to use; all of them by default, and always for the MNIST variants.
        channels: Of the MNIST variants only: 3 for a network that takes colour images, see
            ``rotated_mnist``.
        limit: Images per domain of the MNIST variants, or training images of CIFAR; all of them by default.
            Those of CIFAR are spread evenly over the classes and are the same for every data seed; the test
            images stay all. A smaller limit takes some of those that a larger one takes.
        **loading: As for ``folder_task``: ``cache_dir``, ``memory_budget``, ``skip_unreadable``, ``workers``,
            ``progress``. Only pictures need them, not the arrays of the MNIST variants, of CIFAR's
            binary version and of the corrupted images.

    Raises:
        InputError: For an unknown name, a missing folder, an option that this dataset does not take, or what
            ``folder_task`` or ``rotated_mnist`` refuse; for damaged files of CIFAR, or those of its Python
            version alone, which are pickled and never read.
    """
    if dataset in GENERATED:
        if augmentation not in (None, "none") or domains is not None:
            raise InputError(
                f"{dataset}: expected augmentation 'none' and all domains, got augmentation {augmentation!r} "
                f"and domains {domains}. Leave these options out."
            )
        form = {"size": size, "channels": channels, "limit": limit}
        given = {option: value for option, value in form.items() if value is not None}
        return GENERATED[dataset](root, data_seed=data_seed, **given)
    if dataset in CIFAR:
        _refuse_channels(dataset, channels)
        return cifar_task(
            dataset,
            root,
            size=SIDE if size is None else size,
            augmentation="crop_flip" if augmentation is None else augmentation,
            domains=domains,
            limit=limit,
            **loading,
        )
    if dataset in CORRUPTED:
        _refuse_channels(dataset, channels)
        if limit is not None:
            raise InputError(
                f"{dataset}: expected no limit, because these are test images, got {limit}. Leave it out, and name "
                f"the domains to use."
            )
        return cifar_c_task(
            dataset,
            root,
            size=SIDE if size is None else size,
            augmentation="none" if augmentation is None else augmentation,
            domains=domains,
            progress=loading.get("progress"),
        )
    if dataset not in PUBLISHED:
        known = [*PUBLISHED, *GENERATED, *CIFAR, *CORRUPTED]
        raise InputError(
            f"expected the name of a dataset, got {dataset!r}.{nearest(dataset, known)} "
            f"Datasets: {', '.join(known)}; any other folder is a `folder_task`."
        )
    if channels is not None or limit is not None:
        raise InputError(
            f"{dataset}: expected the options channels and limit for {' and '.join(GENERATED)} only (limit also for "
            f"{' and '.join(CIFAR)}), got channels {channels} and limit {limit}. Leave them out."
        )
    published = PUBLISHED[dataset]
    task = folder_task(
        _folder(dataset, published, Path(root)),
        name=dataset,
        size=224 if size is None else size,
        augmentation="domainbed" if augmentation is None else augmentation,
        domains=domains,
        **loading,
    )
    expected = {name: count for name, count in published.images.items() if domains is None or name in domains}
    notes = _differences(dataset, expected, published.classes, task)
    return Task(task.name, task.classes, task.domains, task.transform, task.digest, (*notes, *task.notes))


def _refuse_channels(dataset: str, channels: int | None) -> None:
    if channels is not None:
        raise InputError(
            f"{dataset}: expected the option channels for {' and '.join(GENERATED)} only, got {channels}: the images "
            f"have 3. Leave it out."
        )


def _folder(dataset: str, published: _Published, root: Path) -> Path:
    """The folder of the dataset: inside ``root`` under its usual or its own name, or ``root`` itself."""
    for name in (published.folder, dataset):
        if (root / name).is_dir():
            return root / name
    if root.is_dir() and any(folder.name in published.images for folder in subfolders(root)):
        return root
    raise InputError(
        f"{dataset}: expected the folder {root / published.folder} with the sub-folders "
        f"{', '.join(published.images)}, got none. Unpack the dataset there, or name the "
        f"folder that holds it."
    )


def _differences(dataset: str, expected: dict[str, int | None], classes: int, task: Task) -> list[str]:
    notes = []
    if set(task.domain_names) != set(expected):
        notes.append(
            f"the domains are {', '.join(task.domain_names)}; those published for {dataset} are "
            f"{', '.join(expected)}"
        )
    if len(task.classes) != classes:
        notes.append(f"there are {len(task.classes)} classes; {dataset} was published with {classes}")
    counts = {domain.name: len(domain) for domain in task.domains}
    if dataset == "TerraIncognita" and counts == TERRA_TODAY:
        notes.append(
            "these are the 24,330 images that the benchmark's download yields today; published tables use "
            "24,788, so results are not strictly comparable"
        )
        return notes
    for name, count in expected.items():
        if count is not None and counts.get(name, count) != count:
            notes.append(
                f"domain {name!r} has {counts[name]:,} images; {dataset} was published with {count:,}"
            )
    return notes
