"""A folder of a job and files of anybody become the same blocks; what does not fit is refused with its file."""

import json
import shutil

import numpy as np
import pytest
import torch
from tests.evidence.explain_samples import predictions, wrong_on

from mirepoix.checkpoints import write_weights
from mirepoix.evidence._sources import source_of_files, source_of_folder
from mirepoix.predictions import Predictions
from mirepoix.types import InputError

RIGHT = {
    "run-0": wrong_on(40, 1, 2),
    "run-1": wrong_on(40, 3),
    "average": wrong_on(40),
    "wise": wrong_on(40, 5),
}


@pytest.fixture
def folder(tmp_path):
    """What `mirepoix run` leaves, with two targets, of which one has a strange name."""
    targets = ["a", "b/c"]
    for target, name in zip(targets, ("a", "b%2Fc"), strict=True):
        (tmp_path / "predictions").mkdir(exist_ok=True)
        for ending in ("validation", "test"):
            predictions(RIGHT).save(tmp_path / "predictions" / f"{name}-{ending}.safetensors")
        members = tmp_path / "members" / name
        members.mkdir(parents=True)
        for k in range(2):
            write_weights(members / f"run-{k}.safetensors", {"w": torch.tensor([float(k), len(target)])})
    run = {"data_seed": 0, "status": "finished", "message": None}
    report = {
        "format": 1,
        "name": "small",
        "title": "A small job",
        "command": "mirepoix run small.toml",
        "task": {"name": "small", "classes": ["0", "1", "2", "3", "4"]},
        "start": "somewhere",
        "protocol": {"data_seeds": [0], "validation": "held out"},
        "targets": targets,
        "runs": [{**run, "target": target, "run": k} for target in targets for k in range(2)]
        + [{**run, "target": "a", "run": 2, "status": "diverged", "message": "NaN"}],
        "why": [{"target": "a", "data_seed": 0, "distance_to_start": [1.0, 1.0]}],
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    return tmp_path


def test_a_folder_has_a_block_for_each_target(folder):
    source = source_of_folder(folder)
    assert (source.title, source.kind, source.data_seeds) == ("A small job", "run", 1)
    assert [block.name for block in source.blocks] == ["a", "b/c"]
    first = source.blocks[0]
    assert first.members == ("run-0", "run-1")
    assert dict(first.combined) == {"average": "average", "wise": "wise"}
    assert set(first.weights) == {"run-0", "run-1"}
    assert first.recorded["distance_to_start"] == [1.0, 1.0]
    assert first.notes == ("a: run 2 diverged and is not among the members.",)


def test_folders_of_several_data_seeds_are_found(folder):
    report = json.loads((folder / "report.json").read_text())
    report["protocol"]["data_seeds"] = [0, 7]
    report["targets"] = ["a"]
    report["runs"] = [{**run, "data_seed": seed} for run in report["runs"][:2] for seed in (0, 7)]
    (folder / "report.json").write_text(json.dumps(report))
    for ending in ("validation", "test"):
        for seed in (0, 7):
            shutil.copy(
                folder / "predictions" / f"a-{ending}.safetensors",
                folder / "predictions" / f"a-seed-{seed}-{ending}.safetensors",
            )
    source = source_of_folder(folder)
    assert [(block.name, block.data_seed) for block in source.blocks] == [
        ("a, seed 0", 0),
        ("a, seed 7", 7),
    ]


def test_weights_may_be_missing(folder):
    shutil.rmtree(folder / "members")
    assert all(not block.weights for block in source_of_folder(folder).blocks)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "report.json").unlink(), "no report.json"),
        (lambda f: (f / "report.json").write_text("{"), "report in JSON"),
        (lambda f: (f / "report.json").write_text('{"format": 1}'), "'targets' is missing"),
        (lambda f: (f / "predictions" / "a-test.safetensors").unlink(), "a-test.safetensors"),
        (lambda f: (f / "predictions" / "a-test.safetensors").write_bytes(b"x" * 90), "a-test.safetensors"),
        (
            lambda f: predictions({"run-0": RIGHT["run-0"]}).save(f / "predictions" / "a-test.safetensors"),
            "'average' is in one of them only",
        ),
        (
            lambda f: [
                predictions({"run-0": RIGHT["run-0"]}).save(f / "predictions" / f"a-{ending}.safetensors")
                for ending in ("validation", "test")
            ],
            "run-1 is missing",
        ),
    ],
)
def test_a_damaged_folder_is_refused_with_the_file(folder, break_it, message):
    break_it(folder)
    with pytest.raises(InputError, match=message):
        source_of_folder(folder)


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        source_of_folder(tmp_path / "nowhere")


@pytest.fixture
def exported(tmp_path):
    """What `mirepoix domainbed export` leaves: two targets with two data seeds each, and the way of the runs."""
    folder = tmp_path / "exported"
    for target in ("photo", "b/c"):
        for seed in (10, 2):
            split = f"{target.replace('/', '%2F')}-seed-{seed}"
            record = {"dataset": "PACS", "target": target, "data_seed": seed}
            for k in range(2):
                path = folder / "members" / split / f"run-{k}.safetensors"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_weights(path, {"w": torch.tensor([float(k), seed])}, record=record)
            for path in (
                folder / "starts" / f"{split}.safetensors",
                folder / "soups" / split / "average.safetensors",
                folder / "along" / split / "run-0 step 75.safetensors",
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_weights(path, {"w": torch.tensor([0.5, seed])}, record=record)
            (folder / "predictions").mkdir(exist_ok=True)
            three = {name: RIGHT[name] for name in ("run-0", "run-1", "average")}
            for ending in ("validation", "test"):
                predictions(three).save(folder / "predictions" / f"{split}-{ending}.safetensors")
            way = {"run-0 step 75": RIGHT["run-0"]}
            predictions(way).save(folder / "predictions" / f"{split}-along-test.safetensors")
    return folder


def test_an_export_has_a_block_for_each_target_and_data_seed(exported):
    source = source_of_folder(exported)
    assert (source.title, source.kind, source.data_seeds) == ("members of PACS", "export", 2)
    assert [(block.name, block.target, block.data_seed) for block in source.blocks] == [
        ("b/c, seed 2", "b/c", 2),
        ("b/c, seed 10", "b/c", 10),
        ("photo, seed 2", "photo", 2),
        ("photo, seed 10", "photo", 10),
    ]
    for block in source.blocks:
        assert block.members == ("run-0", "run-1")
        assert dict(block.combined) == {"average": "average"}
        assert set(block.weights) == {"run-0", "run-1"}
        assert block.id is not None
        assert block.ood is not None
    assert source.blocks[1].start == exported / "starts" / "b%2Fc-seed-10.safetensors"


def test_the_same_target_of_two_datasets_is_two(exported):
    for path in (exported / "members" / "photo-seed-2").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": "DomainNet"}))
    targets = {block.target for block in source_of_folder(exported).blocks}
    assert targets == {"PACS: b/c", "PACS: photo", "DomainNet: photo"}


def test_weights_of_an_export_may_be_missing_and_its_records_not(exported):
    for path in exported.glob("members/*/*.safetensors"):
        path.unlink()
    assert all(not block.weights for block in source_of_folder(exported).blocks)
    shutil.rmtree(exported / "members" / "photo-seed-2")
    with pytest.raises(InputError, match=r"photo-seed-2: expected a record beside each member"):
        source_of_folder(exported)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda f: (f / "predictions" / "photo-seed-2-test.safetensors").unlink(),
            "no such file. Run `mirepoix dom",
        ),
        (lambda f: (f / "predictions" / "photo-seed-2-validation.safetensors").unlink(), "no such file"),
        (
            lambda f: predictions({"run-0": RIGHT["run-0"]}).save(
                f / "predictions" / "photo-seed-2-test.safetensors"
            ),
            "'average' is in one of them only",
        ),
        (
            lambda f: (f / "members" / "photo-seed-2" / "run-0.json").write_text("{"),
            r"run-0\.json: expected the rec",
        ),
        (
            lambda f: (f / "members" / "photo-seed-2" / "run-0.json").write_text("[]"),
            r"run-0\.json: expected the rec",
        ),
        (lambda f: [shutil.rmtree(f / name) for name in ("members", "predictions")], "there are none"),
        (lambda f: shutil.rmtree(f / "starts"), "no report.json"),
    ],
)
def test_a_damaged_export_is_refused_with_the_file(exported, break_it, message):
    break_it(exported)
    with pytest.raises(InputError, match=message):
        source_of_folder(exported)


@pytest.fixture
def files(tmp_path):
    """Two members and their average, on ID and on OOD data."""
    for side in ("id", "ood"):
        (tmp_path / side).mkdir()
        sample = predictions(RIGHT)
        for k, name in enumerate(("first", "second", "Soup")):
            np.savez(
                tmp_path / side / f"{name}.npz",
                logits=sample.logits[k].numpy() + (side == "id"),
                labels=sample.labels.numpy(),
            )
    return tmp_path


def test_files_become_one_block(files):
    found = source_of_files(
        id_predictions=sorted((files / "id").iterdir()),
        ood_predictions=sorted((files / "ood").iterdir(), reverse=True),
    )
    (block,) = found.blocks
    assert block.members == ("first", "second")
    assert dict(block.combined) == {"average": "Soup"}
    assert block.id.members == block.ood.members  # in one order, whatever that of the files
    assert found.title == "2 members of your own"


def test_one_side_is_enough(files):
    (block,) = source_of_files(ood_predictions=sorted((files / "ood").iterdir())).blocks
    assert block.id is None
    (block,) = source_of_files(id_predictions=sorted((files / "id").iterdir())).blocks
    assert block.ood is None


def test_weights_belong_to_the_member_of_their_name(files):
    for name in ("first", "second"):
        write_weights(files / f"{name}.safetensors", {"w": torch.zeros(2)})
    given = [files / "ood" / "first.npz", files / "ood" / "second.npz"]
    (block,) = source_of_files(ood_predictions=given, weights=[files / "second.safetensors"]).blocks
    assert list(block.weights) == ["second"]
    write_weights(files / "third.safetensors", {"w": torch.zeros(2)})
    with pytest.raises(InputError, match="no member 'third'"):
        source_of_files(ood_predictions=given, weights=[files / "third.safetensors"])


def test_members_of_nan_are_left_out_with_a_note():
    right = {f"run-{k}": wrong_on(40, k) for k in range(3)}

    def sample():
        found = predictions(right)
        logits = found.logits.clone()
        logits[1, 4:9, 2] = torch.nan
        return Predictions(
            logits, found.labels, found.domains, found.members, found.classes, found.domain_names
        )

    from mirepoix.evidence._sources import Block, _without_diverged

    block = _without_diverged(Block("x", tuple(right), ood=sample()))
    assert block.members == ("run-0", "run-2")
    assert block.notes == (
        "run-1 is left out: its logits are not numbers on 5 images. Did its training diverge?",
    )
    alone = Block("x", ("run-1",), ood=sample().of(["run-1"]))
    with pytest.raises(InputError, match="every member has logits that are not numbers"):
        _without_diverged(alone)


def test_what_does_not_fit_together_is_refused(files):
    ood = sorted((files / "ood").iterdir())
    with pytest.raises(InputError, match=r"^--id: expected the same members .* 'second' is missing"):
        source_of_files(
            ood_predictions=ood, id_predictions=[files / "id" / "Soup.npz", files / "id" / "first.npz"]
        )
    with pytest.raises(InputError, match="cannot be confirmed on them"):
        source_of_files(ood_predictions=ood, id_predictions=ood[::-1])
    with pytest.raises(InputError, match="expected the folder of a job, or files"):
        source_of_files()
    with pytest.raises(InputError, match="combinations only: Soup"):
        source_of_files(ood_predictions=[files / "ood" / "Soup.npz"])
    shutil.copy(files / "ood" / "first.npz", files / "best.npz")
    with pytest.raises(InputError, match=r"other names than 'mean' and 'best'.* got 'best'"):
        source_of_files(ood_predictions=[files / "best.npz", *ood])
    with pytest.raises(InputError, match=r"^--start: goes with --weights"):
        source_of_files(ood_predictions=ood, start=files / "start.pt")
    with pytest.raises(InputError, match=r"^--ood-labels: goes with --ood"):
        source_of_files(id_predictions=ood, ood_labels=files / "labels.npy")
    with pytest.raises(InputError, match=r"^--labels: goes with --id"):
        source_of_files(ood_predictions=ood, labels=files / "labels.npy")


def test_both_sides_know_the_same_classes(files):
    sample = predictions(RIGHT)
    columns = {name: sample.logits[0, :, k].numpy() for k, name in enumerate("vwxyz")}
    for side, names in (("ood", "vwxyz"), ("id", "zyxwv")):
        lines = [",".join([*names, "label"])]
        lines += [
            ",".join(str(float(columns[name][n])) for name in names) + f",{'vwxyz'[int(sample.labels[n])]}"
            for n in range(40)
        ]
        (files / side / "m.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match="expected the classes of --ood"):
        source_of_files(ood_predictions=[files / "ood" / "m.csv"], id_predictions=[files / "id" / "m.csv"])
