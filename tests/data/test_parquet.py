from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mirepoix.data import parquet_task
from mirepoix.types import InputError

DOMAINS = ["ink", "clay", "ink", "clay", "ink", "clay"]
LABELS = ["dog", "cat", "cat", "dog", "dog", "cat"]


def encoded(value: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (6, 5), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, **columns: list[Any]) -> Path:
    pictures = [encoded(10 * row) for row in range(6)]
    table = {"image": pictures, "label": LABELS, "style": DOMAINS} | columns
    pq.write_table(pa.table({name: column for name, column in table.items() if column}), path)
    return path


def reds(task: Any) -> list[list[int]]:
    return [domain.images.read(np.arange(len(domain)))[:, 0, 0, 0].tolist() for domain in task.domains]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_rows_go_to_the_domain_they_name(tmp_path: Path, cache: Path) -> None:
    task = parquet_task(write(tmp_path / "t.parquet"), domain_column="style", size=4, cache_dir=cache)
    assert task.name == "t"
    assert task.domain_names == ("clay", "ink")
    assert task.classes == ("cat", "dog")
    assert [domain.labels.tolist() for domain in task.domains] == [[0, 1, 0], [1, 0, 1]]
    assert reds(task) == [[10, 30, 50], [0, 20, 40]]
    assert task.domains[0].images.shape == (3, 5, 6)


def test_nested_pictures_numbers_and_other_names(tmp_path: Path, cache: Path) -> None:
    nested = [{"bytes": encoded(10 * row), "path": None} for row in range(6)]
    path = write(tmp_path / "t.parquet", image=[], img=nested, label=[], kind=[7, 7, 3, 3, 7, 3])
    task = parquet_task(
        path, domain_column="style", label_column="kind", name="pots", size=4, cache_dir=cache
    )
    assert (task.name, task.classes) == ("pots", ("3", "7"))
    assert [domain.labels.tolist() for domain in task.domains] == [[1, 0, 0], [1, 0, 1]]
    assert reds(task) == [[10, 30, 50], [0, 20, 40]]


def test_a_folder_is_one_table_or_one_domain_per_file(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("b", "a"):
        write(folder / f"{name}.parquet")
    together = parquet_task(folder, domain_column="style", size=4, cache_dir=cache)
    assert [len(domain) for domain in together.domains] == [6, 6]
    apart = parquet_task(folder, domain_column=None, size=4, cache_dir=cache)
    assert apart.domain_names == ("a", "b")
    assert reds(apart) == [[0, 10, 20, 30, 40, 50]] * 2


def test_files_of_one_name_in_two_folders_are_two_domains(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "tables"
    for name in ("new", "old"):
        (folder / name).mkdir(parents=True)
        write(folder / name / "0.parquet", label=["cat", "dog"] * 3)
    task = parquet_task(folder, domain_column=None, size=4, cache_dir=cache)
    assert task.domain_names == ("new/0", "old/0")
    assert reds(task) == [[0, 10, 20, 30, 40, 50]] * 2


def test_one_file_may_be_the_one_domain(tmp_path: Path, cache: Path) -> None:
    task = parquet_task(write(tmp_path / "t.parquet"), domain_column=None, size=4, cache_dir=cache)
    assert task.domain_names == ("t",)
    split = task.split(None, holdout=0.5)
    assert (len(split.train[0]), len(split.validation[0]), split.test) == (3, 3, ())
    with pytest.raises(InputError, match=r"at least 2 domains, .* got 1\."):
        task.split("t")


def test_one_of_several_files_may_be_the_one_domain(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("b", "a"):
        write(folder / f"{name}.parquet")
    task = parquet_task(folder, domain_column=None, domains=["b"], size=4, cache_dir=cache)
    assert task.domain_names == ("b",)
    with pytest.raises(InputError, match=r"at least 2 domains, one to leave out .* got 0: \."):
        parquet_task(folder, domain_column=None, domains=[], size=4, cache_dir=cache)


def limited(path: Path, cache: Path, limit: int | None, **options: Any) -> Any:
    table: dict[str, Any] = {"domain_column": "style", "size": 4, "cache_dir": cache, "limit": limit}
    return parquet_task(path, **(table | options))


def test_a_limit_takes_some_rows_of_each_domain_in_their_order(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "t.parquet", label=["cat", "dog"] * 3, style=["ink"] * 4 + ["clay"] * 2)
    chosen: set[tuple[int, ...]] = set()
    for data_seed in range(12):
        one = reds(limited(path, cache, 1, data_seed=data_seed))
        three = limited(path, cache, 3, data_seed=data_seed)
        clay, ink = reds(three)
        assert clay == [40, 50]  # it has no more
        assert ink == sorted(set(ink))
        assert set(ink) < {0, 10, 20, 30}
        assert set(one[1]) < set(ink)  # fewer are some of more
        assert [domain.labels.tolist() for domain in three.domains] == [
            [red // 10 % 2 for red in reds] for reds in (clay, ink)
        ]
        assert three.notes == (f"domain 'ink' has 3 of 4 rows, drawn with data seed {data_seed} (limit)",)
        chosen.add(tuple(ink))
    assert len(chosen) == 4


def test_a_limit_gives_the_same_images_from_the_cache_and_in_memory(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "t.parquet")
    first, other = limited(path, cache, 2), limited(path, cache, 2, data_seed=1)
    every = limited(path, cache, None)
    assert len({task.digest for task in (first, other, every)}) == 3
    # As many rows as there are, or more, is the whole table and needs no decoding of its own.
    monkeypatch.setattr("mirepoix.data._cache.decode", None)
    assert limited(path, cache, 3).digest == limited(path, cache, 9, data_seed=1).digest == every.digest
    again = limited(path, cache, 2)
    assert (again.digest, reds(again)) == (first.digest, reds(first))
    monkeypatch.undo()
    path.rename(tmp_path / "moved.parquet")
    assert limited(tmp_path / "moved.parquet", tmp_path / "another", 2).digest == first.digest


def test_a_limit_neither_changes_the_classes_nor_decodes_what_it_leaves_out(
    tmp_path: Path, cache: Path
) -> None:
    path = write(tmp_path / "t.parquet", label=["cat", "cat", "dog", "dog", "owl", "owl"])
    for data_seed in range(5):
        assert limited(path, cache, 1, data_seed=data_seed).classes == ("cat", "dog", "owl")
    kept = reds(limited(path, cache, 2))
    pictures = [encoded(red) if any(red in some for some in kept) else b"text" for red in range(0, 60, 10)]
    broken = write(tmp_path / "broken.parquet", image=pictures)
    assert reds(limited(broken, cache, 2)) == kept


def test_chosen_domains_streaming_and_augmentation(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "t.parquet", style=["c", "a", "b"] * 2)
    task = parquet_task(
        path,
        domain_column="style",
        domains=["c", "a"],
        augmentation="none",
        size=4,
        cache_dir=cache,
        memory_budget=1,
    )
    assert task.domain_names == ("a", "c")
    assert task.transform.augmentation == "none"
    assert reds(task) == [[10, 40], [0, 30]]


def test_the_cache_gives_the_same_task(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t.parquet")
    first = parquet_task(path, domain_column="style", size=4, cache_dir=cache)
    monkeypatch.setattr("mirepoix.data._cache.decode", None)  # nothing is decoded again
    second = parquet_task(path, domain_column="style", size=4, cache_dir=cache)
    assert first.digest == second.digest
    assert reds(first) == reds(second)


def test_errors_name_the_column_the_domain_and_the_row(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "t.parquet")

    def refuse(match: str, path: Path = path, **options: Any) -> None:
        with pytest.raises(InputError, match=match):
            parquet_task(path, **({"domain_column": "style", "size": 4, "cache_dir": cache} | options))

    refuse(
        r"a column 'styles', got none\. Did you mean 'style'\? Columns: image, label, style",
        domain_column="styles",
    )
    refuse(r"a column 'klass', got none", label_column="klass")
    refuse(r"a column 'img', got none", image_column="img")
    refuse(r"column 'label': expected encoded pictures", image_column="label")
    refuse(r"domain 'inc', got none\. Did you mean 'ink'\?", domains=["inc", "clay"])
    refuse(r"at least 2 domains, one to leave out .* got 1: clay", domains=["clay"])
    refuse(r"got .*/none\.parquet, which could not be read", path=tmp_path / "none.parquet")
    (tmp_path / "empty").mkdir()
    refuse(r"expected Parquet files in .*/empty, got none", path=tmp_path / "empty")
    (tmp_path / "text.parquet").write_text("text")
    refuse(r"text\.parquet, which could not be read", path=tmp_path / "text.parquet")
    refuse(r"t\.parquet: limit: expected at least 1 image per domain, got 0", limit=0)
    holes = write(tmp_path / "holes.parquet", label=["cat", None, "dog", "cat", None, "dog"])
    refuse(r"got none in 2 rows, such as row 1", path=holes)
    nowhere = write(tmp_path / "nowhere.parquet", style=["ink", None, "clay", "ink", None, "clay"])
    refuse(r"a domain in column 'style' of every row, got none in 2 rows, such as row 1", path=nowhere)
    same = write(tmp_path / "same.parquet", label=["cat"] * 6)
    refuse(r"expected at least 2 classes, got 1: cat", path=same)
    broken = write(tmp_path / "broken.parquet", image=[encoded(0)] * 5 + [b"text"])
    refuse(r"1 of 6 pictures cannot be read:\n  row 5 of column 'image' \(", path=broken)


def test_rows_without_a_picture_can_be_left_out(tmp_path: Path, cache: Path) -> None:
    path = write(
        tmp_path / "t.parquet", image=[encoded(0), None, encoded(20), b"text", encoded(40), encoded(50)]
    )
    task = parquet_task(path, domain_column="style", size=4, cache_dir=cache, skip_unreadable=True)
    assert reds(task) == [[50], [0, 20, 40]]
    assert [domain.labels.tolist() for domain in task.domains] == [[0], [1, 0, 1]]
    assert (
        "2 unreadable: row 1 of column 'image' (ValueError: the row holds no picture); row 3"
        in task.notes[-1]
    )


def test_a_missing_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'mirepoix\[data\]'"):
        parquet_task(tmp_path, domain_column="style")


@pytest.mark.shared
def test_cifar10_reads_as_it_lies(shared: Path, cache: Path) -> None:
    file = shared / "data" / "cifar10" / "test-00000-of-00001.parquet"
    task = parquet_task(file, domain_column="label", size=32, cache_dir=cache)
    assert (task.classes[0], task.classes[9]) == ("airplane", "truck")
    assert [len(domain) for domain in task.domains] == [1000] * 10
    assert task.domains[0].images.shape == (3, 32, 32)
    assert len(task.notes) == 10
    assert torch.is_tensor(task.domains[3].images.read(np.array([0])))


@pytest.mark.shared
def test_a_part_of_cifar10_is_an_auxiliary_task(shared: Path, cache: Path) -> None:
    folder = shared / "data" / "cifar10"
    task = parquet_task(folder, domain_column=None, limit=300, name="CIFAR-10", size=32, cache_dir=cache)
    assert task.domain_names == ("test-00000-of-00001", "train-00000-of-00001")
    assert [len(domain) for domain in task.domains] == [300, 300]
    assert (len(task.classes), task.classes[9]) == (10, "truck")
    assert all((np.bincount(domain.labels) > 10).all() for domain in task.domains)
    assert task.notes == tuple(
        f"domain '{name}-00000-of-00001' has 300 of {count} rows, drawn with data seed 0 (limit)"
        for name, count in (("test", "10,000"), ("train", "50,000"))
    )
    one = parquet_task(
        folder, domain_column=None, domains=["train-00000-of-00001"], limit=300, size=32, cache_dir=cache
    )
    assert (one.domains[0].labels == task.domains[1].labels).all()
    assert len(one.split(None).train[0]) == 240
