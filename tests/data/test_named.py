from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mirepoix.data import Domain, Task, Transform, folder_task, named_task
from mirepoix.data import _named as named
from mirepoix.types import InputError

MakeFolder = Callable[..., Path]
PACS = ("art_painting", "cartoon", "photo", "sketch")


def test_the_folder_is_found_from_above_or_given_itself(make_folder: MakeFolder) -> None:
    root = make_folder("PACS", domains=PACS)
    above, itself = named_task("PACS", root.parent, size=8), named_task("PACS", root, size=8)
    assert above.digest == itself.digest == folder_task(root, size=8).digest
    assert above.name == "PACS"


def test_the_usual_folder_name_is_found(make_folder: MakeFolder) -> None:
    root = make_folder("office_home", domains=("Art", "Clipart", "Product", "Real World"))
    assert named_task("OfficeHome", root.parent).domain_names[3] == "Real World"


def test_counts_and_classes_that_differ_are_noted(make_folder: MakeFolder) -> None:
    root = make_folder("PACS", domains=PACS)
    assert named_task("PACS", root, size=8).notes == (
        "there are 2 classes; PACS was published with 7",
        "domain 'art_painting' has 10 images; PACS was published with 2,048",
        "domain 'cartoon' has 10 images; PACS was published with 2,344",
        "domain 'photo' has 10 images; PACS was published with 1,670",
        "domain 'sketch' has 10 images; PACS was published with 3,929",
    )


def test_other_domains_are_noted_unless_chosen(make_folder: MakeFolder) -> None:
    root = make_folder("PACS", domains=PACS[1:])
    note = "the domains are cartoon, photo, sketch; those published for PACS are art_painting, cartoon, photo, sketch"
    assert named_task("PACS", root, size=8).notes[0] == note
    chosen = named_task("PACS", root, size=8, domains=["photo", "sketch"])
    assert chosen.domain_names == ("photo", "sketch")
    assert not any(note.startswith("the domains are") for note in chosen.notes)


def test_the_two_sizes_of_terra_incognita_are_told_apart() -> None:
    def notes(counts: dict[str, int]) -> list[str]:
        domains = tuple(Domain(name, range(count), [0] * count) for name, count in counts.items())  # type: ignore[arg-type]
        task = Task("TerraIncognita", tuple("abcdefghij"), domains, Transform(224), digest="")
        return named._differences("TerraIncognita", published, 10, task)

    published = dict(named.PUBLISHED["TerraIncognita"].images)
    assert sum(published.values()) == 24788
    assert sum(named.TERRA_TODAY.values()) == 24330
    assert notes(published) == []
    (note,) = notes(named.TERRA_TODAY)
    assert note.startswith("these are the 24,330 images")


@pytest.mark.parametrize(
    ("dataset", "total"), [("PACS", 9991), ("VLCS", 10729), ("OfficeHome", 15588), ("DomainNet", 586575)]
)
def test_published_counts_add_up(dataset: str, total: int) -> None:
    images = named.PUBLISHED[dataset].images
    assert sum(images.values()) == total
    assert list(images) == sorted(images)


def test_errors_name_the_nearest_dataset_and_the_expected_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got 'PACKS'\. Did you mean 'PACS'\? Datasets: PACS, VLCS"):
        named_task("PACKS", tmp_path)
    with pytest.raises(
        InputError, match=r"PACS: expected the folder .*/PACS with the sub-folders art_painting"
    ):
        named_task("PACS", tmp_path)


def test_options_that_a_dataset_does_not_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"RotatedMNIST: size: expected at least .* 28 pixels, .* got 27"):
        named_task("RotatedMNIST", tmp_path, size=27)
    with pytest.raises(InputError, match=r"ColoredMNIST: expected augmentation 'none' and all domains, got"):
        named_task("ColoredMNIST", tmp_path, augmentation="domainbed")
    with pytest.raises(InputError, match=r"all domains, got augmentation None and domains \['15'\]"):
        named_task("RotatedMNIST", tmp_path, domains=["15"])
    only = r"PACS: expected the options channels and limit for ColoredMNIST and RotatedMNIST only .* got "
    with pytest.raises(InputError, match=only + "channels 3 and limit None"):
        named_task("PACS", tmp_path, channels=3)
    with pytest.raises(InputError, match=only + "channels None and limit 5"):
        named_task("PACS", tmp_path, limit=5)


@pytest.mark.shared
def test_pacs_has_its_published_images(shared: Path) -> None:
    task = named_task("PACS", shared / "data", size=32)
    assert {domain.name: len(domain) for domain in task.domains} == named.PUBLISHED["PACS"].images
    assert sum(len(domain) for domain in task.domains) == 9991
    assert task.classes == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    assert task.notes == ()
    assert task.domains[0].images.shape == (3, 96, 96)
