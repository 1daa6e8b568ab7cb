"""The recipes for PACS on real images of it, cut down to what takes a minute."""

import json
import shutil
import subprocess
import sys

import pytest

from mirepoix.checkpoints import write_weights


@pytest.fixture
def few(shared, tmp_path):
    """Three images per class and domain."""
    for folder in (shared / "data" / "PACS").glob("*/*"):
        target = tmp_path / "PACS" / folder.parent.name / folder.name
        target.mkdir(parents=True)
        for image in sorted(folder.iterdir())[:3]:
            shutil.copyfile(image, target / image.name)
    return tmp_path


def run(*arguments):
    command = [sys.executable, "-m", "mirepoix", "run", *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished


@pytest.mark.shared
@pytest.mark.slow
def test_three_steps_of_the_published_protocol_with_a_local_weight_file(few, tmp_path):
    import timm

    write_weights(tmp_path / "r50.safetensors", timm.create_model("resnet50").state_dict())
    changes = ["members=2", "data.seeds=[0]", "run.steps=3", "run.batch_size=2", "evidence.subsets=0"]
    changes += ["network.pretrained=false", f'network.weights="{tmp_path}/r50.safetensors"']
    words = [word for change in changes for word in ("--set", change)]
    run("pacs-resnet50", "--data", few, "--target", "sketch", "--out", tmp_path / "out", *words)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["network"] == "timm:resnet50.tv_in1k"
    assert report["protocol"]["batch_norm"] == "frozen, averaged"
    assert [domain["images"] for domain in report["task"]["domains"]] == [21, 21, 21, 21]
    assert all(row["best_step"] in (0, 2) for row in report["runs"])


@pytest.mark.shared
def test_the_small_recipe_finds_the_weights_beside_the_data(few, shared, tmp_path):
    (tmp_path / "data").mkdir()
    (few / "PACS").rename(tmp_path / "data" / "PACS")
    shutil.copytree(shared / "weights", tmp_path / "weights")
    changes = ["members=2", "run.steps=2", "probe.steps=2", "run.batch_size=2", "evidence.subsets=0"]
    words = [word for change in changes for word in ("--set", change)]
    arguments = ["--data", tmp_path / "data", "--target", "photo", "--out", tmp_path / "out"]
    run("pacs-resnet20", *arguments, *words)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "resnet20-12fca82f.th" in report["start"]
    assert len(report["rows"]) == 7
