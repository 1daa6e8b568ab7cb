"""Members of a job and of somebody on their source domains: the same numbers by other means, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import make_folder

from mirepoix.checkpoints import open_weights, write_weights
from mirepoix.data import Subset, digits_task, evaluation_batches
from mirepoix.evidence import classifier_invariance, source_invariance, source_of_files, source_of_folder
from mirepoix.evidence._classifier_invariance import QUANTITIES
from mirepoix.evidence._source_invariance import _answer
from mirepoix.experiment import run_recipe
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.recipe import load_recipe
from mirepoix.report import write_report
from mirepoix.scores import validation_folder
from mirepoix.types import InputError
from mirepoix.weights import average

QUICK = ["members=2", "pretraining.steps=4", "probe.steps=2", "run.steps=4", "run.check_every=2"]
QUICK += ["run.average_from=2", "size=8", "network.width=8"]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Two members on the built-in digits, for one target."""
    out = tmp_path_factory.mktemp("job")
    changes = [change.replace("size=8", "data.size=8") for change in QUICK]
    recipe, path = load_recipe("digits", [*changes, 'data.targets=["rotated_75"]'])
    write_report(run_recipe(recipe, recipe_path=path, out=out), out)
    return out


def test_a_job_is_measured_on_the_training_images_of_its_source_domains(job):
    told = []
    found = source_invariance(
        source_of_folder(job), folder=job, seed=3, progress=lambda *event: told.append(event)
    )
    (block,) = found.blocks
    assert list(block.found) == ["start", "run-0", "run-1", "average"]
    assert told[-1] == (4, 4, "rotated_75: average")
    task = digits_task(size=8)
    split = task.split("rotated_75")
    assert block.domains == tuple(subset.name for subset in split.train)
    network = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8).build()
    files = {
        "start": job / "starts" / "rotated_75.safetensors",
        "run-1": job / "members" / "rotated_75" / "run-1.safetensors",
        "average": job / "soups" / "rotated_75" / "average.safetensors",
    }
    for name, path in files.items():
        data = {subset.name: evaluation_batches(subset, task.transform) for subset in split.train}
        expected = classifier_invariance(network, open_weights(path), data, seed=3)
        assert block.found[name] == expected
        assert [domain.images for domain in expected.domains.values()] == [len(s) for s in split.train]


def test_the_total_is_the_mean_over_members_and_blocks(job):
    found = source_invariance(source_of_folder(job), folder=job)
    (block,) = found.blocks
    twice = replace(found, blocks=(block, block))
    for one, blocks in ((found, 1), (twice, 2)):
        content = json.loads(json.dumps(one.to_dict(), allow_nan=False))
        start, mean, last = content["rows"]
        assert [start["name"], mean["name"], last["name"]] == ["start", "mean", "average"]
        assert (mean["of"], last["of"]) == (2 * blocks, blocks)
        members = [block.found[name] for name in ("run-0", "run-1")]
        for quantity in QUANTITIES:
            assert last["distance"][quantity] == pytest.approx(
                getattr(block.found["average"].distance, quantity)
            )
            for what in ("distance", "chance"):
                values = [getattr(getattr(member, what), quantity) for member in members]
                assert mean[what][quantity] == pytest.approx(sum(values) / 2)
            assert mean["seen"][quantity] == blocks * sum(member.seen(quantity) for member in members)
        assert content["shuffles"] == 19
        assert [row["name"] for row in content["blocks"][0]["rows"]] == ["start", "run-0", "run-1", "average"]


def test_one_member_is_not_called_a_mean_and_has_no_average(job):
    source = source_of_folder(job)
    alone = replace(source, blocks=(replace(source.blocks[0], members=("run-0",)),))
    content = source_invariance(alone, folder=job).to_dict()
    assert [row["name"] for row in content["rows"]] == ["start", "member"]
    assert "for the member" in content["answer"][0].lower()
    assert "for the start" in content["answer"][1]


def rows_of(distance, seen, of=1):
    """A total in which every quantity is so far, beside chance 1."""
    far = dict(zip(QUANTITIES, distance, strict=True))
    one = {"distance": far, "chance": dict.fromkeys(QUANTITIES, 1.0), "of": of}
    return [{"name": "average", **one, "seen": dict(zip(QUANTITIES, seen, strict=True))}]


def test_the_answer_follows_from_what_is_seen():
    text = _answer(rows_of((3, 2, 4), (1, 1, 1)), ())[0]
    assert text.startswith("No. For the average, source domains are further apart")
    assert "losses 3 times, gradient variances 2 times, curvatures 4 times as far" in text
    text = _answer(rows_of((3, 2, 4), (3, 1, 2), of=4), ())[0]
    assert text.startswith("Partly. ")
    assert "losses 3 times (seen on 3 of 4) as far" in text
    assert "not clearly so: gradient variances 2 times (seen on 1 of 4), curvatures 4 times" in text
    text = _answer(rows_of((1.1, 0.9, 1), (0, 0, 0)), ())[0]
    assert text.startswith("As far as these images tell, yes. ")
    zero = rows_of((0, 0, 0), (0, 0, 0))
    zero[0]["chance"] = dict.fromkeys(QUANTITIES, 0.0)
    assert "losses not determined" in _answer(zero, ())[0]


def test_other_images_or_missing_files_of_a_job_are_refused(job, tmp_path, monkeypatch):
    source = source_of_folder(job)
    with pytest.raises(InputError, match="go with weights of your own"):
        source_invariance(source, folder=job, model="mnist_cnn")
    with pytest.raises(InputError, match="built in and reads no folder"):
        source_invariance(source, folder=job, data=tmp_path)
    block = source.blocks[0]
    for changed, message in (
        (replace(block, start=None), "expected the start of rotated_75, and there is none. Run the same"),
        (replace(block, weights={}), "expected the weights of run-0, and there are none. Run the same"),
    ):
        with pytest.raises(InputError, match=message):
            source_invariance(replace(source, blocks=(changed,)), folder=job)
    (tmp_path / "job.json").write_text('{"recipe": {"members": "many"}}')
    with pytest.raises(InputError, match=r"job\.json: expected the record of a job"):
        source_invariance(source, folder=tmp_path)
    record = json.loads((job / "job.json").read_text())
    record["task"]["digest"] = "0"
    (tmp_path / "job.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="made by another version of mirepoix"):
        source_invariance(source, folder=tmp_path)


@pytest.fixture
def own(tmp_path):
    """Images of two domains, a start and two members."""
    make_folder(tmp_path / "images", domains=("x", "y"))
    spec = NetworkSpec(name="mnist_cnn", classes=2, width=8)
    for seed, name in enumerate(("start", "a", "b")):
        write_weights(tmp_path / f"{name}.safetensors", initial_weights(spec, seed=seed))
    return tmp_path


def given(own, **changes):
    options = {"weights": [own / "a.safetensors", own / "b.safetensors"], "start": own / "start.safetensors"}
    return source_of_files(**{**options, **changes})


def test_weights_of_your_own_are_measured_with_their_average(own):
    options = {"data": own / "images", "model": "mnist_cnn", "width": 8, "size": 16}
    found = source_invariance(given(own), **options, shuffles=2)
    (block,) = found.blocks
    assert list(block.found) == ["start", "a", "b", "average"]
    assert block.domains == ("x", "y")
    task = validation_folder(own / "images", size=16)
    thetas = [open_weights(own / f"{name}.safetensors") for name in "ab"]
    network = NetworkSpec(name="mnist_cnn", classes=2, width=8).build()

    def data():
        return {
            domain.name: evaluation_batches(
                Subset(domain, k, torch.arange(len(domain)).numpy()), task.transform
            )
            for k, domain in enumerate(task.domains)
        }

    assert block.found["b"] == classifier_invariance(network, thetas[1], data(), shuffles=2)
    assert block.found["average"] == classifier_invariance(network, average(thetas), data(), shuffles=2)
    alone = source_invariance(given(own, start=None, weights=[own / "a.safetensors"]), **options)
    assert list(alone.blocks[0].found) == ["a"]


def test_an_average_that_is_given_is_not_made_again(own):
    (own / "b.safetensors").rename(own / "average.safetensors")
    source = given(own, weights=[own / "a.safetensors", own / "average.safetensors"], start=None)
    found = source_invariance(source, data=own / "images", model="mnist_cnn", width=8, size=16, shuffles=1)
    assert list(found.blocks[0].found) == ["a", "average"]


def test_one_source_domain_leaves_nothing_to_compare(own):
    found = source_invariance(given(own), data=own / "images" / "x", model="mnist_cnn", width=8, size=16)
    content = found.to_dict()
    assert content["rows"] == []
    (sentence,) = content["answer"]
    assert sentence.startswith("There is one source domain (")
    assert all(row["distance"] is None for row in content["blocks"][0]["rows"])
    unshuffled = source_invariance(
        given(own), data=own / "images", model="mnist_cnn", width=8, size=16, shuffles=0
    )
    assert unshuffled.to_dict()["answer"][0].startswith("The images were not shuffled")


def test_what_files_lack_is_named(own):
    options = {"data": own / "images", "model": "mnist_cnn"}
    with pytest.raises(InputError, match=r"needs --model NAME, their network; --data FOLDER, images of the"):
        source_invariance(given(own))
    block = given(own).blocks[0]
    for weights, message in (
        ({}, r"needs --weights CKPTS, the weights of the members\.$"),
        ({"a": block.weights["a"]}, "expected weights of all members, and b has none"),
    ):
        lacking = replace(given(own), blocks=(replace(block, weights=weights),))
        with pytest.raises(InputError, match=message):
            source_invariance(lacking, **options)
    with pytest.raises(InputError, match=r"a\.safetensors: .*shape"):
        source_invariance(given(own, start=None), **options, width=16, size=16)
    with pytest.raises(InputError, match="expected members of other names than 'start' beside --start"):
        source_invariance(
            given(own, weights=[own / "start.safetensors", own / "a.safetensors"]), **options, width=8
        )
    with pytest.raises(InputError, match="exported members do not say which images"):
        source_invariance(replace(given(own), kind="export"), folder=Path("exported"), **options)
