"""``mirepoix domainbed``: what is planned is trained once, and the tables say what the store holds."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.conftest import Result, call, make_folder

RECIPE = """
name = "tiny"
runs = 2
strategies = ["mean_member", "fine_tuning", "moving_average", "ensemble", "diwa", "diwa_greedy", "diwa_dagger",
  "ratatouille"]
selection = ["training-domain", "oracle"]
shared_probe = true
auxiliary_runs = 1
frozen_steps = 2
figures = false
[[datasets]]
dataset = "digits"
size = 8
targets = ["rotated_0"]
seeds = [0, 1]
[[auxiliaries]]
dataset = "digits-inverted"
size = 8
[network]
name = "mnist_cnn"
width = 8
[pretraining]
steps = 12
learning_rate = 3e-3
[probe]
steps = 4
learning_rate = 1e-2
[run]
steps = 6
batch_size = 4
learning_rate = 2e-3
check_every = 3
average_from = 3
[space]
learning_rate = [1e-3, 3e-3]
[loop]
threads = 1
"""

# A probe; from it, for each of two data seeds, two runs, and run 1 from the auxiliary task (run 0 is the same as
# without); once, the probe of the auxiliary task and its run.
TRAININGS = 1 + 2 * (2 + 1) + 2
MEMBERS = 8 * 2 * 2  # rows, data seeds, runs
SPLITS = 2
ROWS = [
    "mean member",
    "vanilla fine-tuning",
    "moving average",
    "ensemble",
    "DiWA uniform",
    "DiWA greedy",
    "DiWA†",
    "ratatouille uniform",
]
RUN = ("domainbed", "run", "tiny.toml", "--workers", "0")
CONTINUES = "stopped; the same command continues where it was."


def make_recipe(folder: Path, text: str = RECIPE) -> None:
    (folder / "tiny.toml").write_text(text)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A current folder with the recipe."""
    make_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def swept_once(tmp_path_factory) -> tuple[Path, Result]:
    """A folder with a finished sweep; copy it before you change it."""
    folder = tmp_path_factory.mktemp("swept")
    make_recipe(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = call(*RUN, "--out", "out")
    return folder, result


@pytest.fixture
def swept(swept_once, tmp_path, monkeypatch) -> Result:
    """The finished sweep, copied into a current folder of this test's own."""
    folder, result = swept_once
    assert result.code == 0, result.err
    shutil.copytree(folder, tmp_path / "sweep")
    monkeypatch.chdir(tmp_path / "sweep")
    return result


def records(store: str = "out/store") -> dict[str, int]:
    """From the key of every finished training to when its record was written."""
    return {p.parent.name: p.stat().st_mtime_ns for p in Path(store, "weights").glob("*/record.json")}


def cells(folder: str = "out") -> list[dict]:
    return json.loads(Path(folder, "cells.json").read_text())["cells"]


def numbers(found: list[dict]) -> list[tuple]:
    """What a cell is and says, without the places in a store."""
    return [(c["row"], c["selection"], c["data_seed"], c["whole"], c["part"], c["choice"]) for c in found]


# Plan


def test_the_plan_counts_every_training_once_and_trains_none(here):
    result = call("domainbed", "plan", "tiny.toml", "--out", "out", "--json")
    assert result.code == 0, result.err
    planned = json.loads(result.out)
    counts = {name: planned[name] for name in ("trainings", "asked_by_rows", "splits", "stored", "to_train")}
    assert counts == {
        "trainings": TRAININGS,
        "asked_by_rows": MEMBERS,
        "splits": SPLITS,
        "stored": 0,
        "to_train": TRAININGS,
    }
    labels = [entry["training"] for entry in planned["list"]]
    assert len(set(labels)) == TRAININGS
    assert labels[0] == "digits without rotated_0, data seed 0: linear probe"
    # Runs whose start is not there yet wait for it.
    assert {entry["status"] for entry in planned["list"]} == {"missing", "waiting"}
    assert set(planned["forecast"]) == {"hours", "gigabytes", "workers", "origin"}
    assert planned["forecast"]["origin"] == "a few steps made now"
    # Only the start itself is made, as without it there is nothing to plan with.
    assert len(records()) == 1
    assert not Path("out/cells.json").exists()


def test_the_plan_for_people_names_tasks_and_forecast(swept):
    (Path("out/store/weights") / next(iter(trained_runs()))).rename("moved")
    result = call("domainbed", "plan", "tiny.toml", "--out", "out")
    assert result.out == ""
    assert (
        f"{TRAININGS} distinct trainings serve {MEMBERS} members of 8 rows on {SPLITS} splits." in result.err
    )
    assert "1 are to be trained" in result.err
    assert "at a time (from the trainings stored), " in result.err
    assert "digits-inverted, data seed 0: 2 trainings, 2 stored" in result.err


def test_a_dry_run_prints_the_plan_and_stops(here):
    result = call(*RUN, "--out", "out", "--dry-run", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["to_train"] == TRAININGS
    assert len(records()) == 1
    assert not Path("out/cells.json").exists()
    assert not Path("out/job.json").exists()


def test_the_forecast_is_for_the_trainings_that_run_at_a_time(swept):
    (Path("out/store/weights") / trained_runs()[0]).rename("moved")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def told(*words: str) -> int:
        result = call("domainbed", *words, "--out", "out", "--json")
        assert result.code == 0, result.err
        workers = json.loads(result.out)["forecast"]["workers"]
        assert f" with {workers} at a time (from the trainings stored), " in result.err
        return workers

    dry = ("run", "tiny.toml", "--dry-run")
    assert told("plan", "tiny.toml", "--set", 'loop.device="cpu"') == cores
    assert told(*dry, "--set", 'loop.device="cpu"') == cores
    assert told("plan", "tiny.toml", "--set", 'loop.device="cpu"', "--set", "loop.threads=1000") == 1
    assert told(*dry, "--workers", "3") == 3
    assert told(*dry, "--workers", "0") == 1


# Run


def test_the_sweep_prints_a_table_for_each_selection_and_writes_them(swept):
    for selection in ("training-domain validation", "oracle (test-domain validation)"):
        assert f"### digits, {selection}" in swept.out
    assert "mean ± standard error over 2 data seeds" in swept.out
    shown = [line.split("|")[1].strip() for line in swept.out.splitlines() if line.startswith("| ")]
    assert shown == ["Row", "---", *ROWS] * 2
    for name in ("tables.md", "tables.csv", "tables.tex", "tables-80-percent.md", "job.json"):
        assert Path("out", name).is_file(), name
    assert f"Report: {Path('out') / 'report.html'}" in swept.out
    assert Path("out/tables.md").read_text() in swept.out
    job = json.loads(Path("out/job.json").read_text())
    assert job["status"] == "finished"
    assert job["counts"]["trained_now"] == TRAININGS
    assert job["recipe"]["runs"] == 2


def test_every_training_was_made_once_and_no_other(swept):
    assert len(records()) == TRAININGS + 1  # and the start
    assert (
        f"[{TRAININGS + SPLITS + 1}/{TRAININGS + SPLITS + 1}]" in swept.err
    )  # measured: splits, and all seeds
    assert not [p for p in Path("out").rglob("*") if p.name in ("lock", ".lock", "state.bin")]


def test_every_number_names_the_trainings_it_was_computed_from(swept):
    members = {
        "diwa": 2,
        "ratatouille": 2,
        "ensemble": 2,
        "mean_member": 2,
        "fine_tuning": 1,
        "diwa_dagger": 4,
    }
    for cell in cells():
        assert cell["missing"] is None
        for source in cell["sources"]:
            assert Path("out/store", source, "record.json").is_file()
        if cell["row"] in members:
            assert len(cell["sources"]) == members[cell["row"]], cell["row"]
        assert cell["inference_cost"] == (2 if cell["row"] == "ensemble" else 1)
        assert cell["data_seed"] in ([None] if cell["row"] == "diwa_dagger" else [0, 1])


def test_the_same_command_trains_nothing_again(swept):
    before, told = records(), numbers(cells())
    result = call(*RUN, "--out", "out")
    assert result.code == 0, result.err
    assert records() == before
    assert numbers(cells()) == told
    assert result.out == swept.out
    assert json.loads(Path("out/job.json").read_text())["counts"]["trained_now"] == 0


def test_the_report_has_the_tables_and_if_asked_the_figures(swept):
    before = records()
    page = Path("out/report.html").read_text()
    assert "DiWA uniform" in page
    assert "<svg" not in page
    assert "DiWA uniform" in Path("out/report.md").read_text()
    result = call(*RUN, "--out", "out", "--set", "figures=true", "--set", "subsets=1")
    assert result.code == 0, result.err
    assert "figures of digits without rotated_0, data seed 0" in result.err
    assert "figures of digits without rotated_0, data seed 1" not in result.err
    assert "<svg" in Path("out/report.html").read_text()
    assert records() == before


def test_another_row_trains_only_what_it_adds(swept):
    before = records()
    result = call(
        *RUN, "--out", "more", "--store", "out/store", "--json", "--set", 'strategies=["sam", "diwa"]'
    )
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["trained_now"] == 2 * 2
    assert not Path("more/store").exists()
    assert {key: records()[key] for key in before} == before
    again = [cell for cell in content["cells"] if cell["row"] == "diwa"]
    assert numbers(again) == numbers([cell for cell in cells() if cell["row"] == "diwa"])


def test_json_goes_to_standard_output_alone(swept):
    result = call(*RUN, "--out", "out", "--json")
    content = json.loads(result.out)
    assert content["cells"] == cells()
    assert content["failed"] == {}
    assert content["trainings"] == content["stored"] == TRAININGS
    assert content["engine"] == "this process, one work at a time"
    assert "distinct trainings" in result.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_sweep_goes_on_where_it_was(swept, tmp_path, number, code):
    make_recipe(tmp_path)
    command = [sys.executable, "-m", "mirepoix", *RUN, "--out", "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    store = str(tmp_path / "out/store")
    until = time.monotonic() + 120
    while len(records(store)) < 4 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert told.rstrip().endswith(f"mirepoix: {CONTINUES}") is (number == signal.SIGINT)
    assert "failed" not in told  # the work that it stopped did not fail
    assert "Traceback" not in told
    assert json.loads((tmp_path / "out/job.json").read_text())["status"] == "unfinished"
    assert not (tmp_path / "out/cells.json").exists()
    before = records(store)
    assert 4 <= len(before) < TRAININGS + 1
    os.chdir(tmp_path)  # `swept` puts the current folder back
    result = call(*RUN, "--out", "out")
    assert result.code == 0, result.err
    after = records()
    assert len(after) == TRAININGS + 1
    assert {key: after[key] for key in before} == before
    assert numbers(cells()) == numbers(cells("sweep/out"))


def trained_runs() -> list[str]:
    """Keys of the trainings that no other one starts from: those of six steps, not on the auxiliary task."""
    found = []
    for path in sorted(Path("out/store/weights").glob("*/record.json")):
        run = json.loads(path.read_text())["made_of"]["run"]
        if run["steps"] == 6 and run["classifier_steps"] == 2:
            found.append(path.parent.name)
    assert len(found) == 2  # run 1 from the auxiliary task, for each data seed
    return found


def test_a_work_that_fails_is_code_1_and_the_others_go_on(swept):
    first, second = trained_runs()
    for key in (first, second):
        shutil.rmtree(Path("out/store/weights") / key)
    Path("out/store/weights", first).write_text("in the way")
    result = call(*RUN, "--out", "out", "--json")
    assert result.code == 1
    content = json.loads(result.out)
    assert content["trained_now"] == 1
    failed = content["failed"]  # what it leaves is measured
    assert ["inter-training, run 1" in label for label in failed] == [True]
    assert "works failed or were skipped; the first: digits without rotated_0" in result.err
    missing = [c for c in cells() if c["missing"]]
    assert [c["row"] for c in missing] == ["ratatouille"] * 2  # one data seed, two selections
    (label,) = failed
    assert all(c["missing"].startswith(f"1 of 2 runs are not trained yet; {label} failed: ") for c in missing)
    assert json.loads(Path("out/job.json").read_text())["status"] == "failed"
    Path("out/store/weights", first).unlink()
    assert call(*RUN, "--out", "out").code == 0
    assert not [cell for cell in cells() if cell["missing"]]


def test_a_diverged_run_is_left_out_and_named(here):
    changes = ["space.learning_rate=[1e30]", "run.optimizer=sgd", 'strategies=["mean_member", "diwa"]']
    changes += ['selection=["training-domain"]']
    result = call(*RUN, "--out", "out", "--json", *(word for each in changes for word in ("--set", each)))
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["diverged"] == 0  # when the plan was made
    assert content["diverged_now"] == [
        f"digits without rotated_0, data seed {s}: fine-tuning, run 1" for s in (0, 1)
    ]
    for cell in content["cells"]:
        assert cell["members"] == 1
        assert cell["choice"]["diverged"] == [1]


def test_the_reference_protocol_chooses_among_the_steps_of_all_runs(here):
    changes = ['protocol="reference"', 'strategies=["fine_tuning"]']
    result = call(*RUN, "--out", "out", "--json", *(word for each in changes for word in ("--set", each)))
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["trainings"] == 1 + 2 * 2  # one probe for both data seeds
    steps = {cell["selection"]: cell["choice"]["step"] for cell in content["cells"]}
    assert steps["oracle"] == 5  # the last one: it may not stop early
    for cell in content["cells"]:
        record = json.loads(Path("out/store", cell["sources"][0], "record.json").read_text())
        assert record["made_of"]["run"]["augment_validation"] is True
        check = next(check for check in record["checks"] if check["step"] == cell["choice"]["step"])
        assert cell["part"] == check["left_out"]["rotated_0"]["train"]
    table = call(
        "domainbed",
        "table",
        "tiny.toml",
        "--out",
        "out",
        "--measure",
        "part",
        "--set",
        changes[0],
        "--set",
        changes[1],
    )
    assert "Protocol reference" in table.out
    assert "80 % part of the target domain" in table.out
    assert "–" not in table.out


def test_the_folders_of_a_user_are_read(here):
    make_folder(here / "images/mine")
    changes = ['datasets=[{dataset="folder", path="mine", name="animals", size=16}]', "network.scratch=true"]
    changes += ["auxiliaries=[]", 'strategies=["diwa"]', 'selection=["training-domain"]', "runs=1"]
    text = RECIPE.replace("[pretraining]\nsteps = 12\nlearning_rate = 3e-3\n", "")
    make_recipe(here, text)
    words = [word for each in changes for word in ("--set", each)]
    result = call(*RUN, "--data", "images", "--out", "out", *words)
    assert result.code == 0, result.err
    assert "### animals, training-domain validation" in result.out
    assert "| Row | a | b | c | Avg |" in result.out
    result = call(*RUN, "--out", "other", *words)
    assert result.code == 2
    assert "name the folder of its images with --data DIR" in result.err


def test_a_job_reads_the_folder_below_data_that_its_recipe_names(here, small, images):
    (here / "elsewhere").mkdir()
    images.rename(here / "elsewhere/mine")
    direct = call("run", small, "--data", "elsewhere/mine", "--out", "direct")
    below = call("run", small, "--data", "elsewhere", "--out", "below", "--set", "data.path=mine")
    assert direct.code == below.code == 0, below.err
    one, other = (json.loads(Path(name, "report.json").read_text())["rows"] for name in ("direct", "below"))
    assert one == other
    result = call("run", small, "--data", "elsewhere", "--out", "wrong", "--set", "data.path=yours")
    assert result.code == 2
    assert str(Path("elsewhere/yours")) in result.err
    result = call("run", small, "--out", "none", "--set", "data.path=mine")
    assert result.code == 2
    assert "the recipe's dataset is 'folder': name the folder of its images with --data DIR." in result.err


# Table and trace


def test_the_table_says_what_is_missing_before_anything_is_trained(here):
    result = call("domainbed", "table", "tiny.toml", "--out", "out")
    assert result.code == 0, result.err
    assert "| DiWA uniform | – | – |" in result.out
    assert "- DiWA uniform, rotated_0: data seed 1: 2 of 2 runs are not trained yet" in result.out
    assert len(records()) == 1  # only the start is made
    listed = json.loads(call("domainbed", "table", "tiny.toml", "--out", "out", "--json").out)["cells"]
    assert len(listed) == 2 * (7 * 2 + 1)
    assert all(cell["missing"] and cell["whole"] is None for cell in listed)


def test_the_table_is_the_same_in_every_form(swept):
    def table(*options: str) -> str:
        result = call("domainbed", "table", "tiny.toml", "--out", "out", *options)
        assert result.code == 0, result.err
        return result.out

    assert table("--format", "csv") == Path("out/tables.csv").read_text() + "\n"
    assert table("--format", "latex") == Path("out/tables.tex").read_text() + "\n"
    assert table("--measure", "part") == Path("out/tables-80-percent.md").read_text() + "\n"
    assert json.loads(table("--json"))["cells"] == cells()
    own = [cell["whole"] for cell in cells() if (cell["row"], cell["selection"]) == ("diwa", "oracle")]
    rows = list(csv.DictReader(table("--format", "csv").splitlines()))
    (row,) = [r for r in rows if (r["row"], r["selection"], r["target"]) == ("diwa", "oracle", "rotated_0")]
    assert float(row["mean"]) == pytest.approx(sum(own) / 2)
    # Of two numbers the population deviation is half their distance; by the square root of 2.
    assert float(row["error"]) == pytest.approx(abs(own[0] - own[1]) / 2 / 2**0.5)


def test_the_trace_leads_from_a_number_to_the_records(swept):
    result = call("domainbed", "trace", "out", "diwa", "rotated_0")
    assert result.code == 0, result.err
    assert "digits, DiWA uniform (diwa), target rotated_0, training-domain, data seed 0" in result.out
    assert result.out.count("from: weights/") == 4  # two selections, two data seeds
    file = call("domainbed", "trace", "out/cells.json", "diwa", "rotated_0", "--dataset", "digits")
    assert file.out == result.out


def test_a_folder_of_a_benchmark_is_explained_after_its_export(swept):
    result = call("explain", "out")
    assert result.code == 2
    assert "out: holds the tables of a benchmark" in result.err
    assert "`mirepoix domainbed export RECIPE --out out`, then `mirepoix explain out/exported`" in result.err


def test_the_report_says_by_which_objectives_with_which_options(here):
    from mirepoix.cli._domainbed import _protocol
    from mirepoix.domainbed import load_benchmark

    def terms(*changes: str) -> dict[str, str]:
        return _protocol(load_benchmark("tiny.toml", changes)[0])

    assert terms() == {"protocol": "corrected"}
    turns = ["strategies=['diverse_objectives', 'sd']", "objectives=['coral', 'sam']"]
    said = "objective_options.coral={mmd_gamma=0.5}"
    assert terms(*turns, said) == {
        "protocol": "corrected",
        "objectives in turn": "coral, sam",
        "options of coral": "mmd_gamma = 0.5",
        "options of sam": "rho = 0.05",
        "all other options": "the defaults, in every run",
    }
    drawn = terms(*turns, said, "search_objectives=true")
    assert "options of sam" not in drawn  # rho is drawn
    assert drawn["options of coral"] == "mmd_gamma = 0.5"
    assert drawn["all other options"].startswith("drawn for run 1 and later")


# What a person can mend


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("runss=3", "tiny.toml: runss: unknown key (did you mean 'runs'?)"),
        ("run.stepz=3", "tiny.toml: run.stepz: unknown key (did you mean 'steps'?)"),
        ('strategies=["diwo"]', "there is no strategy 'diwo' (did you mean 'diwa'?)"),
        (
            'strategies=["fine_tuning/mode"]',
            "'mode' is no way to combine members; expected one of mean, best",
        ),
        ('strategies=["diwa", "diwa"]', "expected each strategy once"),
        ("auxiliaries=[]", "'ratatouille' needs 1 auxiliary task other than the dataset 'digits', got 0"),
        ('selection=["target"]', "selection"),
        ('objectives=["sma"]', "there is no objective 'sma' (did you mean 'sam'?)"),
        ("objective_options.fishr={lamda=1}", "objective_options.fishr.lamda: fishr has no such option"),
        (
            'strategies=["fishr"]',
            "fishr begins at update 1500, and a run on digits has 6 steps, so it would never be",
        ),
        (
            "objective_options.coral={}",
            "objective_options.coral: no row trains by 'coral'; the rows train by erm.",
        ),
        ('datasets=[{dataset="digits", size=8, targets=["rotated_1"]}]', "rotated_1"),
        ('datasets=[{dataset="PACZ"}]', "--data DIR"),
        (
            "shared_probe=false",
            "'diwa_dagger' averages members of all data seeds, which must begin with one head",
        ),
        ('datasets=[{dataset="digits"}]', "share one pre-training, so all their tables need the same size"),
        ('datasets=[{dataset="digits"}, {dataset="digits"}]', "got 'digits' twice; set `name`"),
        ("run.learning_rate=-1", "run.learning_rate: expected a positive number"),
        ("auxiliary_run.dropout=2", "auxiliary_run.dropout: expected a probability"),
    ],
)
def test_a_recipe_that_cannot_be_is_code_2(here, change, told):
    result = call("domainbed", "plan", "tiny.toml", "--out", "out", "--set", change)
    assert result.code == 2
    assert told in result.err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            ['strategies=["fine_tuning", "coral"]', "run.batch_size=1"],
            "digits without rotated_0, data seed 0: CORAL, run 0: CORAL needs at least 2 samples",
        ),
        (
            ['strategies=["diwa", "dann"]', 'datasets=[{dataset="digits-parity", size=8, targets=["left"]}]'],
            "digits-parity without left, data seed 0: DANN, run 0: DANN",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "run"])
def test_an_objective_that_cannot_make_an_update_is_code_2_before_any_is_made(here, verb, changes, told):
    words = [word for each in [*changes, "auxiliaries=[]"] for word in ("--set", each)]
    result = call("domainbed", verb, "tiny.toml", "--out", "out", *words)
    assert result.code == 2
    assert told in result.err
    assert len(list(Path("out/store/weights").glob("*/record.json"))) == 1  # the pre-training


def test_a_plan_says_how_many_drawn_objectives_begin_after_the_last_step(here):
    changes = ['strategies=["diverse_objectives"]', 'objectives=["erm", "irm"]', "search_objectives=true"]
    words = [word for each in [*changes, "runs=4", "run.steps=20"] for word in ("--set", each)]
    result = call("domainbed", "plan", "tiny.toml", "--out", "out", *words)
    assert result.code == 0, result.err
    from mirepoix.objectives import draw_options

    drawn = [draw_options("irm", h, seed)["irm_penalty_anneal_iters"] for h in (1, 3) for seed in (0, 1)]
    late = sum(value >= 20 for value in drawn)
    assert 0 < late < 4
    assert f"{late} of the 4 trainings by irm with drawn options begin after their last step" in result.err


def test_tasks_of_other_channels_are_code_2_before_anything_is_trained(here):
    make_folder(here / "images/mine")
    text = RECIPE.replace("[pretraining]\nsteps = 12\nlearning_rate = 3e-3\n", "")
    make_recipe(here, text)
    changes = ['datasets=[{dataset="folder", path="mine", name="animals", size=8}]', "network.scratch=true"]
    words = [word for each in changes for word in ("--set", each)]
    result = call("domainbed", "plan", "tiny.toml", "--data", "images", "--out", "out", *words)
    assert result.code == 2
    assert "images of animals have 3 channels and those of digits-" in result.err


def test_an_unknown_dataset_is_code_2(here):
    make_folder(here / "images")
    change = 'datasets=[{dataset="PACZ"}]'
    result = call("domainbed", "plan", "tiny.toml", "--out", "out", "--data", "images", "--set", change)
    assert result.code == 2
    assert "PACZ" in result.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("domainbed", "run", "digits"), "this recipe is one job; run it with `mirepoix run digits`"),
        (("domainbed", "run", "nothing.toml"), "there is no such recipe file"),
        (("run", "tiny.toml"), "run it with `mirepoix domainbed run tiny.toml`"),
        (
            ("domainbed", "plan", "tiny.toml", "--data", "nowhere"),
            "expected a folder that holds the datasets",
        ),
        (("domainbed", "table", "tiny.toml", "--format", "html"), "markdown"),
        (("domainbed", "run", "tiny.toml", "--workers", "-1"), "--workers"),
        (("domainbed", "trace", "nowhere", "diwa", "a"), "nowhere"),
    ],
)
def test_a_call_that_cannot_be_is_code_2_and_says_what_to_do(here, arguments, told):
    result = call(*arguments)
    assert result.code == 2
    assert told in result.err


def test_a_trace_of_what_is_not_there_names_what_is(swept):
    result = call("domainbed", "trace", "out", "diwo", "rotated_0")
    assert result.code == 2
    assert "row diwo (there: mean_member, fine_tuning" in result.err


def test_a_ray_cluster_that_does_not_answer_is_code_2(here):
    pytest.importorskip("ray")
    result = call("domainbed", "run", "tiny.toml", "--out", "out", "--ray", "127.0.0.1:1")
    assert result.code == 2
    assert "no Ray cluster answers at '127.0.0.1:1'" in result.err
    assert not Path("out/cells.json").exists()


def test_a_cluster_and_this_process_are_not_both_asked_for(here):
    result = call(*RUN, "--out", "out", "--ray", "127.0.0.1:1")
    assert result.code == 2
    assert "--workers 0 trains in this process, and --ray on a cluster: leave one of them out." in result.err
    assert not Path("out").exists()


def contents(folder: str = "out") -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_the_results_of_another_recipe_are_not_overwritten(swept):
    before = contents()
    for change in ([], ["--dry-run"]):
        result = call(*RUN, *change, "--out", "out", "--set", 'name="other"')
        assert result.code == 2
        assert "out: holds the results of another recipe ('tiny'). Choose another --out" in result.err
        assert f"with --store {Path('out/store')} it takes over the trainings that are the same" in result.err
        assert contents() == before
    taken = call(*RUN, "--out", "more", "--store", "out/store", "--set", 'name="other"', "--json")
    assert taken.code == 0, taken.err
    assert json.loads(taken.out)["trained_now"] == 0


@pytest.mark.parametrize(
    "job", [{"recipe": {"name": "tiny", "data": {"dataset": "digits"}}, "status": "finished"}, {}, []]
)
def test_the_results_of_a_job_are_not_overwritten(here, job):
    Path("out").mkdir()
    Path("out/job.json").write_text(json.dumps(job))
    before = contents()
    result = call(*RUN, "--out", "out")
    assert result.code == 2
    name = "tiny" if job else "unknown"
    assert f"out: holds the results of another recipe ({name!r}). Choose another --out" in result.err
    assert contents() == before


def test_two_sweeps_do_not_share_a_folder(here):
    from mirepoix.experiment import claimed

    with claimed(Path("out")):
        result = call(*RUN, "--out", "out")
    assert result.code == 2
    assert "another process is working in this folder" in result.err


def test_a_store_behind_a_url_serves_another_machine(here):
    url = (here / "bucket").as_uri()
    words = (
        "--set",
        'strategies=["diwa"]',
        "--set",
        'selection=["training-domain"]',
        "--store",
        url,
        "--json",
    )
    first = call(*RUN, "--out", "one", *words)
    assert first.code == 0, first.err
    assert json.loads(first.out)["trained_now"] > 0
    second = call(*RUN, "--out", "two", *words)  # with a cache of its own
    assert second.code == 0, second.err
    assert json.loads(second.out)["trained_now"] == json.loads(second.out)["to_train"] == 0
    assert Path("one/cells.json").read_bytes() == Path("two/cells.json").read_bytes()


def test_members_are_written_as_files_for_the_other_verbs(swept):
    result = call("domainbed", "export", "tiny.toml", "--out", "out")
    assert result.code == 0, result.err
    assert "12 files in out/exported" in result.out
    assert "rotated_0-seed-1: 2 members" in result.err
    members = [f"out/exported/members/rotated_0-seed-0/run-{run}.safetensors" for run in (0, 1)]
    assert call("check", *members).code == 0
    refused = call("domainbed", "export", "tiny.toml", "--out", "out", "--along", "now")
    assert refused.code == 2
    assert "--along now: expected whole numbers" in refused.err
