from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mirepoix.data import Task, evaluation_batches, named_task
from mirepoix.data._cifar import CIFAR
from mirepoix.data._cifar_c import CORRUPTIONS
from mirepoix.types import InputError

NAMES = ("snow", "fog", "zoom_blur")
BLOCK = 6  # images of each severity


def arrays(names: tuple[str, ...] = NAMES) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.integers(0, 256, (5 * BLOCK, 32, 32, 3), dtype=np.uint8) for name in names}


def write(folder: Path, names: tuple[str, ...] = NAMES, classes: int = 10) -> Path:
    folder.mkdir(parents=True)
    for name, images in arrays(names).items():
        np.save(folder / f"{name}.npy", images)
    labels = np.random.default_rng(1).integers(0, classes, BLOCK).astype(np.uint8)
    np.save(folder / "labels.npy", np.tile(labels, 5))
    return folder


def counted(task: Task) -> list[str]:
    return [note for note in task.notes if not note.startswith("class ")]


@pytest.mark.parametrize(("dataset", "classes"), [("CIFAR10-C", 10), ("CIFAR100-C", 100)])
def test_each_corruption_is_a_domain_of_five_severities(tmp_path: Path, dataset: str, classes: int) -> None:
    folder = write(tmp_path / dataset.replace("CIFAR", "CIFAR-"), classes=classes)
    task = named_task(dataset, tmp_path)
    assert named_task(dataset, folder).digest == task.digest
    assert (task.name, task.domain_names) == (dataset, ("fog", "snow", "zoom_blur"))
    assert task.classes == CIFAR[dataset.removesuffix("-C")].classes
    assert (task.transform.size, task.transform.augmentation) == (32, "none")
    for domain in task.domains:
        images = domain.images.read(np.array([7, 0, 7]))
        assert images.is_contiguous()
        assert torch.equal(images.permute(0, 2, 3, 1), torch.from_numpy(arrays()[domain.name][[7, 0, 7]]))
        assert (domain.images.shape, len(domain.images)) == ((3, 32, 32), 5 * BLOCK)
        blocks = domain.labels.reshape(5, BLOCK)
        assert (blocks == blocks[0]).all()
    missing = ", ".join(name for name in CORRUPTIONS if name not in NAMES)
    assert counted(task) == [
        f"{dataset} was published with 19 corruptions; missing: {missing}",
        f"each corruption has 30 images; {dataset} was published with 50,000",
    ]


def test_a_network_is_tested_on_one_corruption(tmp_path: Path) -> None:
    write(tmp_path / "CIFAR-10-C")
    task = named_task("CIFAR10-C", tmp_path, size=16)
    (test,) = task.split("fog").test
    batches = list(evaluation_batches(test, task.transform, batch_size=8))
    assert torch.cat([batch.labels for batch in batches]).tolist() == test.labels.tolist()
    raw = torch.from_numpy(arrays()["fog"]).permute(0, 3, 1, 2).contiguous()
    torch.testing.assert_close(torch.cat([batch.images for batch in batches]), task.transform.plain(raw))


def test_all_published_corruptions_are_known(tmp_path: Path) -> None:
    assert len(set(CORRUPTIONS)) == 19
    assert sorted(CORRUPTIONS) == list(CORRUPTIONS)
    write(tmp_path / "CIFAR-10-C", names=CORRUPTIONS)
    assert len(counted(named_task("CIFAR10-C", tmp_path))) == 1


def test_the_domains_and_the_progress_are_those_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "CIFAR-10-C")
    told: list[tuple[int, int, str]] = []
    task = named_task(
        "CIFAR10-C", tmp_path, domains=["snow", "fog"], progress=lambda *args: told.append(args)
    )
    assert task.domain_names == ("fog", "snow")
    assert told == [(30, 60, "reading images"), (60, 60, "reading images")]
    assert not any("corruptions" in note for note in task.notes)
    one = named_task("CIFAR10-C", tmp_path, domains=["snow"], augmentation="augmix")
    assert one.transform.augmentation == "augmix"
    assert len(one.split(None, holdout=0.5).train[0]) == 15


def test_the_digest_depends_on_every_pixel_and_label(tmp_path: Path) -> None:
    folder = write(tmp_path / "CIFAR-10-C")
    before = named_task("CIFAR10-C", folder).digest
    images = np.load(folder / "fog.npy")
    images[-1, -1, -1, -1] ^= 1
    np.save(folder / "fog.npy", images)
    changed = named_task("CIFAR10-C", folder).digest
    labels = np.load(folder / "labels.npy")
    labels[-1] = 9 - labels[-1]
    np.save(folder / "labels.npy", labels)
    assert len({before, changed, named_task("CIFAR10-C", folder).digest}) == 3


def test_pickles_are_refused_and_not_read(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (pytest.fail, ("unpickled",))

    folder = write(tmp_path / "CIFAR-10-C")
    np.save(folder / "fog.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"fog\.npy: expected an array of NumPy, got ValueError"):
        named_task("CIFAR10-C", folder)


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "CIFAR-10-C")

    def refuse(match: str, dataset: str = "CIFAR10-C") -> None:
        with pytest.raises(InputError, match=match):
            named_task(dataset, folder)

    intact = (folder / "fog.npy").read_bytes()
    (folder / "fog.npy").write_bytes(intact[:-1])
    refuse(r"fog\.npy: expected an array of NumPy, got ValueError")
    (folder / "fog.npy").write_bytes(b"")
    refuse(r"fog\.npy: expected an array of NumPy, got")
    np.save(folder / "fog.npy", arrays()["fog"][:20])
    refuse(
        r"fog\.npy: expected an array of uint8 with shape \(30, 32, 32, 3\), .* got uint8 with shape \(20,"
    )
    np.save(folder / "fog.npy", arrays()["fog"].astype(np.float32))
    refuse(r"one image for each entry of labels\.npy, got float32")
    np.save(folder / "labels.npy", np.arange(30))
    refuse(r"labels\.npy: expected classes from 0 to 9, got 0 to 29\. Are these the labels of another")
    np.save(folder / "labels.npy", np.arange(31) % 10)
    refuse(r"labels\.npy: expected 50,000 class numbers, .* got an array of int64 with shape \(31,\)")
    (folder / "labels.npy").unlink()
    refuse(r"expected labels\.npy and the arrays .* got no labels\.npy\. Unpack CIFAR-10-C\.tar there")


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "CIFAR-10-C")
    with pytest.raises(
        InputError, match=r"the file frog\.npy, got none\. Did you mean 'fog'\? Corruptions: fog"
    ):
        named_task("CIFAR10-C", folder, domains=["frog"])
    with pytest.raises(InputError, match="CIFAR10-C: expected at least one corruption, got none"):
        named_task("CIFAR10-C", folder, domains=[])
    with pytest.raises(
        InputError, match="CIFAR10-C: expected no limit, because these are test images, got 5"
    ):
        named_task("CIFAR10-C", folder, limit=5)
    with pytest.raises(InputError, match="CIFAR10-C: expected the option channels for ColoredMNIST"):
        named_task("CIFAR10-C", folder, channels=3)
