"""``mirepoix explain``: the verdict in the terminal, the page in a folder, and errors that name the file."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cli.conftest import call, make_folder
from tests.evidence.explain_samples import apart, predictions, wrong_on

from mirepoix.checkpoints import open_weights, write_weights
from mirepoix.data import digits_task, evaluation_batches
from mirepoix.landscape import domain_invariance
from mirepoix.models import NetworkSpec, initial_weights

QUICK = ["--resamples", 100]


def write(folder, right, **options):
    """A file for each member."""
    folder.mkdir()
    sample = predictions(right, **options)
    for k, name in enumerate(sample.members):
        np.savez(folder / f"{name}.npz", logits=sample.logits[k].numpy(), labels=sample.labels.numpy())


@pytest.fixture
def own(cli, tmp_path):
    """Predictions of four members and their average in the current folder."""
    write(tmp_path / "work" / "ood", apart())
    write(tmp_path / "work" / "id", apart(), size=2.5)
    return cli


def test_a_finished_job_is_explained(finished, tmp_path):
    result = call("explain", "out", *QUICK)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].startswith("What to ship: ")
    assert lines[1].startswith("Trust it: ")
    assert lines[-1] == "Page: out/explanation/explanation.html"
    content = json.loads((tmp_path / "job" / "out" / "explanation" / "explanation.json").read_text())
    assert content["title"] == "small"
    assert [block["target"] for block in content["blocks"]] == ["a", "b", "c"]
    report = json.loads((tmp_path / "job" / "out" / "report.json").read_text())
    for block in content["blocks"]:
        for row, combine in (
            ("mean", "mean"),
            ("best", "best"),
            ("average", "average"),
            ("ensemble", "ensemble"),
        ):
            theirs = next(
                r
                for r in report["rows"]
                if r["target"] == block["target"]
                and r["combine"] == combine
                and r["strategy"] != "moving_average"
            )
            ours = next(r for r in block["rows"] if r["name"] == row)
            for side in ("id", "ood"):
                assert ours[side]["value"] == pytest.approx(theirs[f"{side}_accuracy"], abs=1e-6)
    assert all(block["weights"]["cosines"] for block in content["blocks"])


def test_own_files_are_explained(own):
    result = own("explain", "--id", "id/*.npz", "--ood", "ood/*.npz", "-o", "page", *QUICK)
    assert result.code == 0, result.err
    assert "What to ship: Ship the average of the 4 members" in result.out
    trust = next(line for line in result.out.splitlines() if line.startswith("Trust it: yes. "))
    assert "13.0 points better than run-0" in trust
    assert "Page: page/explanation.html" in result.out


def test_an_option_takes_all_files_after_it(own):
    files = {side: [f"{side}/run-{k}.npz" for k in range(2)] for side in ("id", "ood")}
    result = own("explain", "--id", *files["id"], "--ood", *files["ood"], "-o", "page", "--json", *QUICK)
    assert result.code == 0, result.err
    assert json.loads(result.out)["blocks"][0]["names"] == ["run-0", "run-1"]


def test_json_is_the_file(own, tmp_path):
    result = own("explain", "--ood", "ood/*.npz", "--json", *QUICK)
    assert result.code == 0, result.err
    folder = tmp_path / "work" / "explanation"
    assert json.loads(result.out) == json.loads((folder / "explanation.json").read_text())


def test_labels_may_stand_apart(cli, tmp_path):
    sample = predictions(apart())
    for k in range(2):
        np.save(tmp_path / "work" / f"m{k}.npy", sample.logits[k].numpy())
    np.save(tmp_path / "work" / "labels.npy", sample.labels.numpy())
    given = ["--ood", "m0.npy", "--ood", "m1.npy"]
    assert cli("explain", *given, "--ood-labels", "labels.npy", *QUICK).code == 0
    result = cli("explain", *given, *QUICK)
    assert result.code == 2
    assert "--ood-labels for files of --ood" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected the folder of a job, or files"),
        (["nowhere"], "there is no such folder"),
        (["id"], "there is no report.json"),
        (
            ["id", "--ood", "ood/run-0.npz"],
            "expected the folder of a job or files of your own, got both",
        ),
        (["id", "--labels", "x.npy"], "go with files of your own"),
        (
            ["ood/run-0.npz", "ood/run-1.npz"],
            "got ood/run-0.npz and 1 more. Predictions go after --id (ID validation) and --ood (OOD data)",
        ),
        (["ood/run-0.npz"], "got ood/run-0.npz. Predictions go after --id"),
        (["ood/run-0.npz", "--ood-labels", "x.npy"], "after --labels and --ood-labels"),
        (["--ood", "ood/*.txt"], "it names none"),
        (["--ood", "ood/run-0.npz", "--id", "id/run-1.npz"], "expected the same members"),
        (["--ood", "ood/run-0.npz", "--resamples", 5], "at least 100"),
        (
            ["--ood", "ood/run-0.npz", "--invariance"],
            "it needs --weights CKPTS, the weights of the members; --model NAME, their network; --data FOLDER",
        ),
        (["--ood", "ood/run-0.npz", "--data", "images"], "go with --invariance"),
        (["--ood", "ood/run-0.npz", "--device", "cpu"], "go with --invariance"),
        (["--ood", "ood/run-0.npz", "-o", "id/run-0.npz"], "expected the name of a folder, got a file"),
    ],
)
def test_what_a_person_can_mend_exits_with_two(own, arguments, message):
    result = own("explain", *arguments)
    assert result.code == 2
    assert message in result.err


def test_names_of_files_that_are_no_text_are_spelled_out(cli, tmp_path):
    folder = os.fsencode(tmp_path / "work")
    sample = predictions(apart())
    try:
        for k in range(2):
            with open(folder + b"/m\xff%d.npz" % k, "wb") as file:
                np.savez(file, logits=sample.logits[k].numpy(), labels=sample.labels.numpy())
    except OSError:
        pytest.skip("this file system takes no names that are not text")
    result = cli("explain", "--id", "*.npz", "--json", *QUICK)
    assert result.code == 0, result.err
    assert json.loads(result.out)["blocks"][0]["names"] == ["m\\udcff0", "m\\udcff1"]
    assert (tmp_path / "work" / "explanation" / "explanation.html").exists()


def test_one_image_leaves_every_difference_within_what_is_possible(cli, tmp_path):
    for k, logits in enumerate(([[3.0, 1.0]], [[1.0, 3.0]])):
        np.savez(tmp_path / "work" / f"m{k}.npz", logits=np.array(logits), labels=np.array([0]))
    result = cli("explain", "--ood", "*.npz", "--json", *QUICK)
    assert result.code == 0, result.err
    for one in json.loads(result.out)["total"]["comparisons"]:
        assert -1 <= one["low"] <= one["high"] <= 1


def test_exported_members_are_explained_with_the_terms_of_their_error(cli, tmp_path):
    exported = tmp_path / "work" / "exported"
    sample = predictions({"run-0": wrong_on(40, 1, 2), "run-1": wrong_on(40, 3), "average": wrong_on(40)})
    (exported / "predictions").mkdir(parents=True)
    for seed in (0, 1):
        split = f"photo-seed-{seed}"
        for ending in ("validation", "test"):
            sample.save(exported / "predictions" / f"{split}-{ending}.safetensors")
        for folder in ("members", "starts"):
            (exported / folder / (split if folder == "members" else "")).mkdir(parents=True, exist_ok=True)
        record = {"dataset": "PACS", "target": "photo", "data_seed": seed}
        write_weights(exported / "starts" / f"{split}.safetensors", {"w": torch.zeros(2)}, record=record)
        for k in range(2):
            path = exported / "members" / split / f"run-{k}.safetensors"
            write_weights(path, {"w": torch.tensor([1.0 + k, seed])}, record=record)
    result = cli("explain", "exported", "-o", "page", *QUICK)
    assert result.code == 0, result.err
    assert not (exported / "explanation").exists()
    content = json.loads((tmp_path / "work" / "page" / "explanation.json").read_text())
    (terms,) = content["terms"]
    assert (terms["target"], terms["replicates"], terms["members"]) == ("photo", 2, 2)
    for name in ("bias_squared", "variance", "covariance"):
        assert terms["terms"][name]["low"] <= terms["terms"][name]["value"] <= terms["terms"][name]["high"]
    assert terms["locality"]["distance"] == pytest.approx(0.5)
    assert content["blocks"][0]["weights"]["cosines"]
    page = (tmp_path / "work" / "page" / "explanation.html").read_text()
    assert "What the error on photo is made of" in page
    assert "members lie 0.5 from their average" in page


def test_a_job_on_real_digits_says_whether_it_is_invariant_across_its_source_domains(cli, tmp_path):
    quick = ["members=2", "data.size=8", "network.width=8", "pretraining.steps=20", "probe.steps=4"]
    quick += ["run.steps=6", "run.check_every=3", "run.average_from=3", 'data.targets=["rotated_75"]']
    settings = [word for change in quick for word in ("--set", change)]
    assert cli("run", "digits", "--out", "out", *settings).code == 0
    result = cli("explain", "out", "--invariance", "--device", "cpu", *QUICK)
    assert result.code == 0, result.err
    answer = next(line for line in result.out.splitlines() if line.startswith("Invariant across the source"))
    folder = tmp_path / "work" / "out" / "explanation"
    found = json.loads((folder / "explanation.json").read_text())["invariance"]
    assert answer == f"Invariant across the source domains? {found['answer'][0]}"
    (block,) = found["blocks"]
    assert block["domains"] == [f"rotated_{angle}" for angle in (0, 15, 30, 45, 60)]
    # The same numbers by the slow measure, for the average and one pair of domains.
    task = digits_task(size=8)
    batches = {
        subset.name: evaluation_batches(subset, task.transform) for subset in task.split("rotated_75").train
    }
    network = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8).build()
    slow = domain_invariance(
        network,
        open_weights(tmp_path / "work" / "out" / "soups" / "rotated_75" / "average.safetensors"),
        {name: batches[name] for name in ("rotated_0", "rotated_60")},
        names=["classifier.weight", "classifier.bias"],
        method="exact",
    )
    row = next(row for row in block["rows"] if row["name"] == "average")
    for name, domain in slow.domains.items():
        assert row["domains"][name]["risk"] == pytest.approx(domain.risk, rel=1e-4)
        assert row["domains"][name]["cosine"] == pytest.approx(domain.head_cosine, rel=1e-3)
    pair = next(one for one in row["pairs"] if one["domains"] == ["rotated_0", "rotated_60"])
    for quantity in ("risk", "gradient_variance", "hessian_diagonal"):
        expected = getattr(slow.pairs[("rotated_0", "rotated_60")], quantity)
        assert pair[quantity] == pytest.approx(expected, rel=2e-3, abs=1e-9)
    page = (folder / "explanation.html").read_text()
    assert "4. Is it invariant across the source domains?" in page
    assert f"<td>{row['domains']['rotated_0']['risk']:.3f}</td>" in page
    assert (folder / "figures" / "invariance.csv").exists()
    # without the option nothing of it is there
    assert cli("explain", "out", *QUICK).code == 0
    assert "Is it invariant" not in (folder / "explanation.html").read_text()


def test_a_job_on_a_folder_needs_its_images_to_say_so(finished):
    result = call("explain", "out", "--invariance", *QUICK)
    assert result.code == 2
    assert "name the folder of its images with --data DIR" in result.err
    result = call("explain", "out", "--invariance", "--data", "images", "--json", *QUICK)
    assert result.code == 0, result.err
    found = json.loads(result.out)["invariance"]
    assert [block["domains"] for block in found["blocks"]] == [["b", "c"], ["a", "c"], ["a", "b"]]
    make_folder(Path("others"), images=9)
    result = call("explain", "out", "--invariance", "--data", "others", *QUICK)
    assert result.code == 2
    assert "--data others: expected the images of the job in out, got others" in result.err


def test_objectives_are_compared_from_their_weights_alone(cli, tmp_path):
    work = tmp_path / "work"
    make_folder(work / "images", domains=("x", "y"))
    spec = NetworkSpec(name="mnist_cnn", classes=2, width=8)
    for seed, name in enumerate(("erm", "fishr")):
        write_weights(work / f"{name}.safetensors", initial_weights(spec, seed=seed))
    options = ["--weights", "erm.safetensors", "fishr.safetensors", "--invariance", "--model", "mnist_cnn"]
    result = cli("explain", *options, "--width", 8, "--size", 16, "--data", "images", "--json", *QUICK)
    assert result.code == 0, result.err
    (block,) = json.loads(result.out)["invariance"]["blocks"]
    assert [row["name"] for row in block["rows"]] == ["erm", "fishr", "average"]
    assert block["domains"] == ["x", "y"]
    assert {row["domains"]["x"]["images"] for row in block["rows"]} == {16}
    page = (work / "explanation" / "explanation.html").read_text()
    assert '<th scope="row">fishr</th>' in page
