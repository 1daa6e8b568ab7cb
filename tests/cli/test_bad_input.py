"""Bad input ends with exit code 2 and one message: what, where, what was expected, what came, what to do."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import call, make_folder

from mirepoix.checkpoints import open_weights, write_weights


def refused(result, *fragments):
    assert result.code == 2, result.err
    assert "mirepoix: " in result.err
    for fragment in fragments:
        assert fragment in result.err
    assert not result.out


def test_a_missing_folder(cli, small, tmp_path):
    missing = tmp_path / "nowhere"
    refused(cli("run", small, "--data", missing), str(missing))


def test_no_data_at_all(cli, small):
    refused(cli("run", small), "dataset is 'folder'", "--data DIR")


def test_data_for_a_recipe_that_reads_none(cli, images):
    refused(cli("run", "digits", "--data", images), "'digits'", "built in and reads no folder")


def test_a_file_for_a_folder(cli, small, images):
    refused(cli("run", small, "--data", images / "a" / "cat" / "0.png"), "0.png")


def test_a_domain_with_no_images(cli, small, images):
    for label in ("cat", "dog"):
        shutil.rmtree(images / "b" / label)
        (images / "b" / label).mkdir()
    refused(cli("run", small, "--data", images), "got none in domains: b")


def test_one_domain_only(cli, small, tmp_path):
    folder = make_folder(tmp_path / "one", domains=("only",))
    refused(cli("run", small, "--data", folder), "domain", "only", "2")


def test_one_class_only(cli, small, tmp_path):
    folder = make_folder(tmp_path / "one", classes=("cat",))
    refused(cli("run", small, "--data", folder), "cat", "2 classes")


def test_an_unknown_target_suggests_the_nearest(cli, small, images):
    (images / "a").rename(images / "sketch")
    refused(
        cli("run", small, "--data", images, "--target", "skech"), "'skech'", "Did you mean 'sketch'?", "b, c"
    )


def test_a_class_in_one_domain_only_is_reported_and_the_job_goes_on(cli, small, images):
    (images / "b" / "dog").rename(images / "b" / "bird")
    shutil.copytree(images / "b" / "bird", images / "b" / "dog")
    weights = open_weights(small.parent / "start.safetensors")
    theta = {name: weights[name] for name in weights}
    write_weights(small.parent / "start.safetensors", theta)
    result = cli("run", small, "--data", images, "--target", "a", "--out", "out")
    assert result.code == 0, result.err
    assert "class 'bird' is missing in domains: a, c" in result.err
    assert "class 'bird' is missing in domains: a, c" in Path("out/report.md").read_text()


def test_a_domain_too_small_to_split(cli, small, tmp_path):
    folder = make_folder(tmp_path / "few", images=2)
    refused(
        cli("run", small, "--data", folder, "--target", "a"), "domain 'b'", "4 images", "0 for validation"
    )


def spoil(images):
    good = images / "a" / "cat" / "0.png"
    (images / "a" / "cat" / "whole.jpg").write_bytes(b"")
    from PIL import Image

    Image.open(good).resize((64, 64)).save(images / "b" / "dog" / "cut.jpg")
    cut = images / "b" / "dog" / "cut.jpg"
    cut.write_bytes(cut.read_bytes()[:-300])
    (images / "c" / "cat" / "text.jpg").write_text("this is not a picture")


def test_unreadable_images_are_all_listed_at_once(cli, small, images):
    spoil(images)
    result = cli("run", small, "--data", images)
    refused(result, "whole.jpg", "cut.jpg", "text.jpg", "3", "--skip-unreadable")


def test_unreadable_images_can_be_left_out_and_the_report_says_so(cli, small, images):
    spoil(images)
    result = cli("run", small, "--data", images, "--skip-unreadable", "--target", "a", "--out", "out")
    assert result.code == 0, result.err
    page, record = Path("out/report.md").read_text(), Path("out/job.json").read_text()
    for name in ("whole.jpg", "cut.jpg", "text.jpg"):
        assert name in result.err
        assert name in page
        assert name in record


def test_a_wrong_key_and_a_wrong_type_in_a_recipe(cli, small, images):
    text = small.read_text()
    small.write_text(text.replace("steps = 4", "stpes = 4"))
    refused(cli("run", small, "--data", images), "small.toml: run.stpes: unknown key (did you mean 'steps'?)")
    small.write_text(text.replace("steps = 4", 'steps = "4"'))
    refused(cli("run", small, "--data", images), "small.toml: run.steps", "integer, got '4'")


def test_a_wrong_change_on_the_command_line(cli):
    refused(cli("run", "--set", "run.stpes=4"), "run.stpes: unknown key (did you mean 'steps'?)")


def test_an_unknown_option_and_verb_are_usage_errors(cli):
    for arguments in (["run", "--nosuch"], ["rn"]):
        assert cli(*arguments).code == 2


def change_start(small, change):
    path = small.parent / "start.safetensors"
    weights = open_weights(path)
    theta = {name: weights[name] for name in weights}
    change(theta)
    write_weights(path, theta)


def test_a_weight_file_without_a_key(cli, small, images):
    names = []

    def drop(theta):
        names.append(next(name for name in theta if name.startswith("featurizer.")))
        del theta[names[0]]

    change_start(small, drop)
    refused(cli("run", small, "--data", images), "start.safetensors", names[0].removeprefix("featurizer."))


def test_a_weight_file_with_a_misshapen_key(cli, small, images):
    def reshape(theta):
        theta["featurizer.conv1.weight"] = theta["featurizer.conv1.weight"][:3]

    change_start(small, reshape)
    result = cli("run", small, "--data", images)
    refused(result, "start.safetensors", "(8, 3, 3, 3)", "(3, 3, 3, 3)")


def test_a_weight_file_that_is_none(cli, small, images):
    (small.parent / "start.safetensors").write_bytes(b"\0" * 64)
    refused(cli("run", small, "--data", images), "start.safetensors", "safetensors")


def test_a_weight_file_that_is_missing_says_where_it_looked(cli, small, images):
    (small.parent / "start.safetensors").unlink()
    refused(
        cli("run", small, "--data", images), "no file 'start.safetensors'", str(small.parent), str(images)
    )


def test_no_start_at_all(cli, small, images):
    small.write_text(small.read_text().replace('weights = "start.safetensors"\n', ""))
    refused(cli("run", small, "--data", images), "network.weights", "network.pretrained")


def test_an_output_that_is_a_file(cli, small, images):
    Path("out").touch()
    refused(cli("run", small, "--data", images, "--out", "out"), "out: expected a folder", "--out")


def test_a_read_only_output_folder(cli, small, images, tmp_path):
    if os.getuid() == 0:
        folder = "/proc/mirepoix"  # even root may not write here
    else:
        (tmp_path / "locked").mkdir()
        (tmp_path / "locked").chmod(0o500)
        folder = str(tmp_path / "locked" / "out")
    refused(
        cli("run", small, "--data", images, "--out", folder),
        folder,
        "cannot write here",
        "choose another --out.",
    )


def limited(size):
    """Files of this process cannot grow past ``size`` bytes: what a disk that fills up does to a job."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def test_a_full_disk_ends_with_a_message_and_nothing_half_written(finished, tmp_path):
    code = (
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from mirepoix.cli import main; main()"
    )
    arguments = ["run", "recipe/small.toml", "--data", "images", "--target", "a", "--out", "new"]
    assert call(*arguments, "--store", "out/store").code == 0  # decodes the images of this place
    for folder in ("new", "out/store/weights"):
        shutil.rmtree(folder)
    command = [sys.executable, "-c", code, *arguments, "--store", "out/store"]
    run = subprocess.run(command, preexec_fn=limited(20_000), capture_output=True, text=True, check=False)
    assert run.returncode == 2, run.stderr
    assert "no file may be so large there" in run.stderr
    assert "run the same command again" in run.stderr
    assert "Traceback" not in run.stderr
    for folder in ("new", "out"):
        assert not [p for p in Path(folder).rglob("*") if p.name.endswith(".tmp")]
    again = call(*arguments, "--store", "out/store")
    assert again.code == 0, again.err
    for folder in ("new", "out"):
        left = [p for p in Path(folder).rglob("*") if "tmp" in p.name or p.name in ("lock", "state.bin")]
        assert not left


def test_no_room_for_decoded_images_is_told_before_training(small, images, tmp_path):
    code = (
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from mirepoix.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "run", str(small), "--data", str(images), "--out", "out"]
    run = subprocess.run(
        command, preexec_fn=limited(20_000), capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert run.returncode == 2, run.stderr
    assert "decoded images" in run.stderr
    assert "Traceback" not in run.stderr


def test_an_interrupted_report_says_how_to_finish(cli, small, images):
    assert cli("run", small, "--data", images, "--target", "a", "--out", "out").code == 0
    os.unlink("out/report.json")
    refused(cli("report", "out"), "out", "has not finished", "same command")
    again = cli("run", small, "--data", images, "--target", "a", "--out", "out")
    assert again.code == 0
    assert cli("report", "out").code == 0


def test_a_report_of_something_else(cli, tmp_path):
    (tmp_path / "report.json").write_text("{")
    refused(cli("report", tmp_path), "report.json")
    refused(cli("report", tmp_path / "nowhere"), "nowhere")


def test_results_of_another_recipe_are_not_overwritten(cli, small, images):
    assert cli("run", small, "--data", images, "--target", "a", "--out", "out").code == 0
    before = Path("out/report.html").read_text()
    result = cli("run", small, "--data", images, "--target", "a", "--out", "out", "--set", "run.steps=5")
    refused(result, "finished results of another recipe (run.steps was 4, now 5)", "--store")
    assert Path("out/report.html").read_text() == before


def test_results_for_other_images_are_not_overwritten(cli, small, images, tmp_path):
    assert cli("run", small, "--data", images, "--target", "a", "--out", "out").code == 0
    before = Path("out/report.html").read_text()
    other = make_folder(tmp_path / "other", images=9)
    result = cli("run", small, "--data", other, "--target", "a", "--out", "out")
    refused(result, "finished results of another recipe (images was", "--store")
    assert Path("out/report.html").read_text() == before


def test_an_unfinished_job_gives_way_and_leaves_nothing_behind(cli, small, images):
    arguments = ["run", small, "--data", images, "--out", "out"]
    assert cli(*arguments, "--target", "a").code == 0
    job = Path("out/job.json")
    job.write_text(job.read_text().replace('"finished"', '"unfinished"'))
    assert cli(*arguments, "--target", "b").code == 0
    assert [path.name for path in Path("out/members").iterdir()] == ["b"]
    assert not list(Path("out/predictions").glob("a-*"))


def test_other_peoples_files_are_left_alone(cli, small, images):
    mine = Path("out/project/.precious.tmp")
    mine.parent.mkdir(parents=True)
    mine.touch()
    Path("out/.mine.tmp").touch()
    assert cli("run", small, "--data", images, "--target", "a", "--out", "out").code == 0
    assert mine.exists()
    assert Path("out/.mine.tmp").exists()


def test_a_folder_in_use_is_not_shared(cli, small, images):
    import filelock

    Path("out").mkdir()
    with filelock.FileLock("out/.lock"):
        refused(cli("run", small, "--data", images, "--out", "out"), "another process is working", "--store")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.targets=[]", "data.targets"),
        ("space.learning_rate=[]", "space.learning_rate"),
        ("space.dropout=[1.5]", "space.dropout: expected a probability"),
        ("probe.dropout=1.5", "probe.dropout: expected a probability"),
        ("data.memory_budget=inf", "data.memory_budget"),
        ("loop.threads=100000000", "loop.threads"),
        ("data.seeds=[1, 1]", "data.seeds: expected each entry once"),
    ],
)
def test_values_no_run_can_have_are_told_before_any_work(cli, small, images, change, message):
    refused(cli("run", small, "--data", images, "--set", change), message)
    assert not Path("mirepoix-small").exists()


def test_a_probe_that_diverges_is_named(cli, small, images):
    wild = ["--set", "probe.learning_rate=3e38", "--set", "probe.steps=8", "--set", "run.optimizer=sgd"]
    refused(cli("run", small, "--data", images, *wild), "linear probe diverged", "Lower probe.learning_rate")


def test_a_store_that_is_a_file(cli, small, images):
    Path("afile").touch()
    refused(cli("run", small, "--data", images, "--store", "afile"), "afile")


def test_a_probe_does_not_inherit_the_classifier_steps(cli, small, images):
    result = cli("run", small, "--data", images, "--target", "a", "--set", "run.classifier_steps=3")
    assert result.code == 0, result.err


def test_all_runs_diverging_is_an_error_with_advice(cli, small, images):
    arguments = ["--set", "run.learning_rate=1e30", "--set", "space.learning_rate=[1e30]"]
    refused(
        cli("run", small, "--data", images, "--target", "a", *arguments, "--set", "run.optimizer=sgd"),
        "all 2 runs diverged",
        "Lower run.learning_rate",
    )


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here(cli, small, images, name):
    refused(cli("run", small, "--data", images, "--set", f"loop.device={name}"), name)


def test_numpy_is_not_asked_to_be_quiet():
    assert np.geterr()["invalid"] == "warn"
