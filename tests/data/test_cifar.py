from __future__ import annotations

import json
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mirepoix.data import Task, named_task
from mirepoix.data._cifar import CIFAR, stratified
from mirepoix.types import InputError

CLASSES = {"CIFAR10": 10, "CIFAR100": 100}
COUNTS = {"train": 100, "test": 20}
DATASETS = ["CIFAR10", "CIFAR100"]


def pixels(domain: str, count: int) -> np.ndarray:
    random = np.random.default_rng(len(domain))
    return random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def labels(dataset: str, domain: str) -> np.ndarray:
    return np.arange(COUNTS[domain]) % CLASSES[dataset]


def write_binary(folder: Path, dataset: str, names: bool = True) -> Path:
    """The official layout with 100 training and 20 test images."""
    folder.mkdir(parents=True)
    layout = CIFAR[dataset]
    for domain, files in layout.files.items():
        images, classes = pixels(domain, COUNTS[domain]), labels(dataset, domain)
        # CIFAR-100 has the coarse class first; 255 is none, so that it cannot be taken for the fine one.
        columns = [np.full(len(classes), 255), classes][-layout.labels :]
        records = np.column_stack([*columns, images.reshape(len(images), -1)]).astype(np.uint8)
        for file, some in zip(files, np.array_split(records, len(files)), strict=True):
            some.tofile(folder / file)
    if names:
        (folder / layout.names).write_text("\n".join(layout.classes) + "\n\n")
    return folder


def encoded(image: np.ndarray, form: str) -> bytes:
    file = BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, form)
    return file.getvalue()


def write_tables(folder: Path, dataset: str, form: str = "PNG") -> Path:
    """The layout of the hub, training images in two files."""
    folder.mkdir(parents=True)
    for domain, count in COUNTS.items():
        pictures = [{"bytes": encoded(image, form), "path": None} for image in pixels(domain, count)]
        table = {"img": pictures, CIFAR[dataset].column: labels(dataset, domain).tolist()}
        if dataset == "CIFAR100":
            table["coarse_label"] = [0] * count
        rows = pa.table(table)
        shards = 2 if domain == "train" else 1
        for shard in range(shards):
            part = rows.slice(shard * count // shards, count // shards)
            pq.write_table(part, folder / f"{domain}-{shard:05}-of-{shards:05}.parquet")
    return folder


def contents(task: Task) -> dict[str, torch.Tensor]:
    return {domain.name: domain.images.read(np.arange(len(domain))) for domain in task.domains}


def check_contents(task: Task, dataset: str) -> None:
    assert (task.name, task.domain_names) == (dataset, ("train", "test"))
    assert task.classes == CIFAR[dataset].classes
    for domain, images in zip(task.domains, contents(task).values(), strict=True):
        assert images.dtype == torch.uint8
        assert torch.equal(images, torch.from_numpy(pixels(domain.name, COUNTS[domain.name])))
        assert domain.labels.tolist() == labels(dataset, domain.name).tolist()


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_binary_version_is_read_as_it_lies(tmp_path: Path, dataset: str) -> None:
    write_binary(tmp_path / CIFAR[dataset].binary[0], dataset)
    task = named_task(dataset, tmp_path)
    check_contents(task, dataset)
    assert (task.transform.size, task.transform.augmentation) == (32, "crop_flip")
    assert (
        f"domain 'train' has 100 images; {dataset} was published with 50,000",
        f"domain 'test' has 20 images; {dataset} was published with 10,000",
    ) == tuple(note for note in task.notes if "missing" not in note)
    split = task.split("test", holdout=0.1)
    assert [len(subset) for subset in (*split.train, *split.validation, *split.test)] == [90, 10, 20]


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_tables_of_the_hub_are_read_as_they_lie(tmp_path: Path, dataset: str) -> None:
    root = write_tables(tmp_path / dataset.lower(), dataset)
    task = named_task(dataset, tmp_path, cache_dir=tmp_path / "cache")
    check_contents(task, dataset)
    assert not any("JPEG" in note for note in task.notes)
    again = named_task(dataset, root, size=40, augmentation="none", cache_dir=tmp_path / "cache")
    check_contents(again, dataset)
    assert (again.transform.size, again.transform.augmentation) == (40, "none")
    assert (
        task.split("test").task.notes[-1]
        == f"domain 'test' has 20 images; {dataset} was published with 10,000"
    )


@pytest.mark.parametrize("place", [".", "cifar10", "CIFAR10", "cifar10/cifar-10-batches-bin"])
def test_the_folder_is_found(tmp_path: Path, place: str) -> None:
    write_binary(tmp_path / "data" / place, "CIFAR10")
    check_contents(named_task("CIFAR10", tmp_path / "data"), "CIFAR10")
    write_tables(tmp_path / "tables" / place / "plain_text", "CIFAR10")
    if "bin" not in place:
        check_contents(named_task("CIFAR10", tmp_path / "tables", cache_dir=tmp_path / "cache"), "CIFAR10")


def test_exact_pixels_are_preferred_and_jpeg_is_noted(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "cifar10", "CIFAR10", "JPEG")
    task = named_task("CIFAR10", tmp_path, cache_dir=tmp_path / "cache")
    assert task.notes[-1].startswith("the images are stored as JPEG, which changed their pixels")
    assert not torch.equal(contents(task)["test"], torch.from_numpy(pixels("test", 20)))
    write_binary(folder / "cifar-10-batches-bin", "CIFAR10")
    check_contents(named_task("CIFAR10", tmp_path), "CIFAR10")


def test_classes_have_the_names_of_the_folder_or_the_official_ones(tmp_path: Path) -> None:
    assert len(set(CIFAR["CIFAR100"].classes)) == 100
    assert CIFAR["CIFAR100"].classes[99] == "worm"
    folder = write_binary(tmp_path / "cifar10", "CIFAR10", names=False)
    assert named_task("CIFAR10", tmp_path).classes[0] == "airplane"
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    assert named_task("CIFAR10", tmp_path).classes == tuple("abcdefghij")
    (folder / "batches.meta.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"batches\.meta\.txt: expected the names of 10 classes, .* got 2\."):
        named_task("CIFAR10", tmp_path)


def test_one_domain_may_be_chosen_and_needs_its_files_only(tmp_path: Path) -> None:
    folder = write_binary(tmp_path / "cifar10", "CIFAR10")
    (folder / "test_batch.bin").unlink()
    task = named_task("CIFAR10", tmp_path, domains=["train"])
    assert task.domain_names == ("train",)
    assert len(task.split(None).train[0]) == 80
    with pytest.raises(
        InputError, match=r"test_batch\.bin: expected a file of 30,730,000 bytes, got No such"
    ):
        named_task("CIFAR10", tmp_path)


@pytest.mark.parametrize("limit", [7, 10, 23, 99])
def test_a_limit_is_even_over_the_classes_and_of_training_images_only(tmp_path: Path, limit: int) -> None:
    root = write_binary(tmp_path / "cifar10", "CIFAR10")
    task = named_task("CIFAR10", root, limit=limit)
    train, test = task.domains
    counts = np.bincount(train.labels, minlength=10)
    assert (len(train), len(test)) == (limit, 20)
    assert counts.max() - counts.min() <= 1
    assert task.notes[-2] == (
        f"domain 'train' has {limit} of 100 images, spread evenly over the classes (limit)"
    )
    assert torch.equal(contents(task)["test"], torch.from_numpy(pixels("test", 20)))
    whole = contents(named_task("CIFAR10", root))["train"]
    places = [
        int((whole == image).flatten(1).all(1).nonzero().item())
        for image in train.images.read(np.arange(limit))
    ]
    assert places == sorted(set(places))
    assert [place % 10 for place in places] == train.labels.tolist()
    more = contents(named_task("CIFAR10", root, limit=limit + 1))["train"]
    assert all((more == whole[place]).flatten(1).all(1).any() for place in places)
    for other in ({"data_seed": 1}, {"data_seed": 2}):
        assert named_task("CIFAR10", root, limit=limit, **other).digest == task.digest


def test_a_limit_takes_the_same_images_from_tables(tmp_path: Path) -> None:
    binary = write_binary(tmp_path / "binary", "CIFAR10")
    tables = write_tables(tmp_path / "tables", "CIFAR10")
    options = {"limit": 23, "cache_dir": tmp_path / "cache"}
    some, others = named_task("CIFAR10", binary, **options), named_task("CIFAR10", tables, **options)
    assert torch.equal(contents(some)["train"], contents(others)["train"])
    assert (some.domains[0].labels == others.domains[0].labels).all()
    assert named_task("CIFAR10", tables, cache_dir=tmp_path / "cache", limit=100).digest != others.digest


def test_stratified_takes_turns_until_a_class_runs_out() -> None:
    of = np.array([0] * 10 + [1] * 3 + [2] * 1)
    assert np.bincount(of[stratified(of, 9, "x")]).tolist() == [5, 3, 1]
    assert np.bincount(of[stratified(of, 4, "x")]).tolist() == [2, 1, 1]
    assert stratified(of, 14, "x").tolist() == stratified(of, None, "x").tolist() == list(range(14))
    chosen = {tuple(stratified(of, 3, "x", seed)) for seed in range(40)}
    assert len(chosen) > 15  # of 30


def test_the_second_start_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tables(tmp_path / "cifar100", "CIFAR100")
    first = named_task("CIFAR100", tmp_path, cache_dir=tmp_path / "cache")
    monkeypatch.setattr("mirepoix.data._cache.decode", None)
    second = named_task("CIFAR100", tmp_path, cache_dir=tmp_path / "cache")
    assert first.digest == second.digest
    check_contents(second, "CIFAR100")
    # As many images as there are is all of them.
    assert named_task("CIFAR100", tmp_path, limit=100, cache_dir=tmp_path / "cache").digest == first.digest


def test_damaged_binary_files_are_named_with_both_sizes(tmp_path: Path) -> None:
    folder = write_binary(tmp_path / "cifar10", "CIFAR10")
    file = folder / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-1])
    match = r"data_batch_3\.bin: expected 30,730,000 bytes \(3,073 for each image\), got 61,459: .* truncated"
    with pytest.raises(InputError, match=match):
        named_task("CIFAR10", tmp_path)
    file.write_bytes(b"")
    with pytest.raises(InputError, match=r"got 0: the file is truncated"):
        named_task("CIFAR10", tmp_path)
    file.write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(
        InputError, match=r"expected labels below 10, got 10 for image 0: the file is damaged"
    ):
        named_task("CIFAR10", tmp_path)


def test_tables_of_another_dataset_are_refused(tmp_path: Path) -> None:
    hundred = write_tables(tmp_path / "hundred", "CIFAR100")
    with pytest.raises(
        InputError, match=r"a column 'label', as CIFAR10 has, got none\. Columns: img, fine_label, coarse"
    ):
        named_task("CIFAR10", hundred, cache_dir=tmp_path / "cache")


def test_other_classes_are_noted(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    features = {"img": {"_type": "Image"}, "label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    stated = {"huggingface": json.dumps({"info": {"features": features}})}
    for domain in ("train", "test"):
        pictures = [{"bytes": encoded(image, "PNG"), "path": None} for image in pixels(domain, 3)]
        rows = pa.table({"img": pictures, "label": [2, 1, 0]}).replace_schema_metadata(stated)
        pq.write_table(rows, folder / f"{domain}-00000-of-00001.parquet")
    task = named_task("CIFAR10", tmp_path, cache_dir=tmp_path / "cache")
    assert task.classes == ("a", "b", "c")
    assert task.notes[0] == "there are 3 classes; CIFAR10 was published with 10"
    assert [domain.labels.tolist() for domain in task.domains] == [[2, 1, 0]] * 2


@pytest.mark.parametrize("value", [10, -1, None])
def test_tables_with_labels_that_are_none_are_refused(tmp_path: Path, value: int | None) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for domain in ("train", "test"):
        rows = {"img": [encoded(image, "PNG") for image in pixels(domain, 3)], "label": [0, 1, value]}
        pq.write_table(pa.table(rows), folder / f"{domain}-00000-of-00001.parquet")
    with pytest.raises(InputError, match=rf"a number from 0 to 9 in column 'label' .* got {value} in row 2"):
        named_task("CIFAR10", tmp_path, cache_dir=tmp_path / "cache")


def test_the_python_version_is_never_read(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("unpickled",))

    for dataset in DATASETS:
        name, file = CIFAR[dataset].python
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(pickle.dumps(Trap()))
        binary = CIFAR[dataset].binary[1]
        for root in (tmp_path, tmp_path / name):
            with pytest.raises(
                InputError, match=rf"got the Python version in .*{name}\. .* version, {binary}"
            ):
                named_task(dataset, root)


def test_errors_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"CIFAR10: expected data_batch_1\.bin .* got none\. Unpack cifar-10-binary"
    ):
        named_task("CIFAR10", tmp_path)
    with pytest.raises(InputError, match=r"got 'CIFAR1'\. Did you mean 'CIFAR10'"):
        named_task("CIFAR1", tmp_path)
    with pytest.raises(InputError, match=r"train and test, got 'trian'\. Did you mean 'train'\?"):
        named_task("CIFAR10", tmp_path, domains=["trian"])
    with pytest.raises(InputError, match="at least one of the domains train and test, got none"):
        named_task("CIFAR10", tmp_path, domains=[])
    with pytest.raises(InputError, match="CIFAR10: limit: expected at least 1 image"):
        named_task("CIFAR10", tmp_path, limit=0)
    with pytest.raises(InputError, match=r"CIFAR10: expected the option channels for ColoredMNIST"):
        named_task("CIFAR10", tmp_path, channels=3)


@pytest.mark.shared
def test_cifar10_has_its_published_images(shared: Path, tmp_path: Path) -> None:
    task = named_task("CIFAR10", shared / "data", limit=200, cache_dir=tmp_path)
    assert task.classes == CIFAR["CIFAR10"].classes
    assert [len(domain) for domain in task.domains] == [200, 10_000]
    assert np.bincount(task.domains[0].labels).tolist() == [20] * 10
    assert np.bincount(task.domains[1].labels).tolist() == [1000] * 10
    assert task.domains[0].images.shape == (3, 32, 32)
    assert len(task.notes) == 2
    assert task.notes[0] == "domain 'train' has 200 of 50,000 images, spread evenly over the classes (limit)"
