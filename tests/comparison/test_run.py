"""A comparison of every kind of system from recipe to report, and again."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from mirepoix.checkpoints import fingerprint, open_weights
from mirepoix.comparison import MEASURES, load_comparison, run_comparison
from mirepoix.models import NetworkSpec
from mirepoix.predictions import Predictions
from mirepoix.report import read_report, terminal_table, write_report
from mirepoix.types import InputError
from mirepoix.weights import average
from tests.comparison.conftest import RECIPE, Listening

LABELS = [
    "Local DE",
    "SSE",
    "StarSSE",
    "StarSSE soup",
    "StarSSE-CE",
    "StarSSE PEFT (1)",
    "DICE",
    "MIMO",
]
TRIALS = (0, 1)


def predictions(out, trial, label):
    return Predictions.load(out / "predictions" / f"trial-{trial}" / f"{label}.safetensors")


def test_there_is_a_row_for_every_system_and_soup(job):
    _, content, _ = job
    assert [row["label"] for row in content["rows"]] == LABELS
    for row in content["rows"]:
        assert set(row["measures"]) == set(MEASURES)
        assert len(row["trials"]) == 2


def test_the_table_is_what_the_saved_predictions_say(job):
    out, content, _ = job
    for row in content["rows"]:
        values = []
        for trial in TRIALS:
            saved = predictions(out, trial, row["label"])
            logits, labels = saved.logits.double(), saved.labels
            together = (logits.mean(0).argmax(1) == labels).double().mean().item()
            alone = (logits.argmax(2) == labels).double().mean().item()
            found = row["trials"][trial]
            assert found["accuracy"] == pytest.approx(together)
            assert found["member_accuracy"] == pytest.approx(alone)
            nll = torch.nn.functional.cross_entropy(logits.mean(0), labels).item()
            assert found["nll"] == pytest.approx(nll)
            values.append(together)
        measure = row["measures"]["accuracy"]
        assert measure["mean"] == pytest.approx(sum(values) / 2)
        assert measure["error"] == pytest.approx(abs(values[0] - values[1]) / 2)
        if row["label"] != "Local DE":
            base = content["rows"][0]["trials"]
            difference = [value - base[t]["accuracy"] for t, value in enumerate(values)]
            assert row["difference"]["mean"] == pytest.approx(sum(difference) / 2)


def test_members_are_named_and_counted(job):
    out, content, _ = job
    rows = {row["label"]: row for row in content["rows"]}
    assert predictions(out, 0, "Local DE").members == ("member-1", "member-2", "member-3")
    assert predictions(out, 0, "MIMO").members == (
        "network-1-member-1",
        "network-1-member-2",
        "network-2-member-1",
        "network-2-member-2",
    )
    counts = {label: row["measures"]["members"]["mean"] for label, row in rows.items()}
    assert counts == dict(zip(LABELS, (3, 3, 3, 1, 3, 3, 2, 4), strict=True))
    updates = {label: row["measures"]["updates"]["mean"] for label, row in rows.items()}
    assert updates == dict(zip(LABELS, (18, 14, 14, 14, 14, 14, 6, 12), strict=True))
    forwards = {label: row["measures"]["forward_cost"]["mean"] for label, row in rows.items()}
    assert forwards["StarSSE"] == 3
    assert forwards["StarSSE soup"] == 1
    assert 1 < forwards["DICE"] < 2 < forwards["MIMO"] < 3


def test_members_are_plain_checkpoints(job):
    out, _, _ = job
    plain = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8)
    names = set(plain.build().state_dict())
    first = {}
    for label, count in (("Local DE", 3), ("SSE", 3), ("StarSSE", 3), ("DICE", 2)):
        files = sorted((out / "members" / "trial-0" / label).glob("*.safetensors"))
        assert [file.name for file in files] == [f"member-{m}.safetensors" for m in range(1, 1 + count)]
        for file in files:
            theta, record = open_weights(file), json.loads(file.with_suffix(".json").read_text())
            assert set(theta) == names
            assert record["fingerprint"] == fingerprint(theta)
            assert record["system"] == label
            assert record["network"]["name"] == "mnist_cnn"
        first[label] = fingerprint(open_weights(files[0]))
    assert first["Local DE"] == first["SSE"] == first["StarSSE"]
    whole = open_weights(out / "members" / "trial-1" / "MIMO" / "network-2.safetensors")
    record = json.loads((out / "members" / "trial-1" / "MIMO" / "network-2.json").read_text())
    assert set(whole) == set(NetworkSpec(**record["network"]).build().state_dict())


def test_saved_members_predict_what_is_saved_of_them(job):
    from mirepoix.data import digits_task, evaluation_batches
    from mirepoix.predictions import predict

    out, _, _ = job
    split = digits_task(size=8).split("rotated_0", holdout=0.1)
    model = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8).build()
    for label in ("SSE", "DICE"):
        for m in (1, 2):
            model.load_state_dict(
                dict(open_weights(out / "members" / "trial-0" / label / f"member-{m}.safetensors"))
            )
            batches = evaluation_batches(split.test[0], split.task.transform)
            saved = predictions(out, 0, label).of([f"member-{m}"]).logits[0]
            torch.testing.assert_close(predict(model, batches), saved, rtol=1e-4, atol=1e-5)


def test_a_soup_is_the_average_of_the_members(job):
    out, content, _ = job
    members = [open_weights(out / "members/trial-1/StarSSE" / f"member-{m}.safetensors") for m in (1, 2, 3)]
    soup = open_weights(out / "soups/trial-1/StarSSE.safetensors")
    assert all(torch.equal(soup[name], value) for name, value in average(members).items())
    rows = {row["label"]: row for row in content["rows"]}
    for trial in TRIALS:
        own = rows["StarSSE soup"]["trials"][trial]["accuracy"]
        assert rows["StarSSE"]["trials"][trial]["soup_accuracy"] == own
    assert rows["SSE"]["measures"]["soup_accuracy"]["mean"] is not None  # measured, though it has no row
    assert rows["DICE"]["measures"]["soup_accuracy"]["mean"] is None


def test_equal_trainings_of_two_systems_are_made_once(job):
    out, _, heard = job
    made = [json.loads(path.read_text()) for path in out.glob("store/weights/*/record.json")]
    # Of each trial: 3 of the ensemble; 2 of SSE; 1 more of the star; 1 pushed away; 2 frozen; 1 DICE; 2 MIMO.
    assert len(made) == 1 + 2 * (3 + 2 + 1 + 1 + 2 + 1 + 2)
    steps = sum(record["made_of"]["run"]["steps"] for record in made)
    assert heard.planned == steps == sum(steps for _, steps in heard.stages)


def test_what_was_asked_for_along_the_training_is_there(job):
    out, content, _ = job
    found = {(each["system"], each["trial"], each["network"]): each["points"] for each in content["along"]}
    assert set(found) == {("DICE", t, 1) for t in TRIALS} | {("MIMO", t, n) for t in TRIALS for n in (1, 2)}
    for (label, trial, _), points in found.items():
        assert [point["step"] for point in points] == [1, 4, 6]
        assert all(0 <= point["accuracy"] <= 1 for point in points)
        assert ("redundancy" in points[-1]["terms"]) == (label == "DICE")
        if label == "DICE":  # the last check is the finished network, on some of the images
            saved = predictions(out, trial, "DICE")
            right = (saved.logits.mean(0).argmax(1) == saved.labels).double()
            assert points[-1]["accuracy"] * 40 == pytest.approx(round(points[-1]["accuracy"] * 40))
            assert abs(points[-1]["accuracy"] - right.mean().item()) < 0.3


def test_numbers_are_there_as_text_too(job):
    out, content, _ = job
    lines = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert [line["system"] for line in lines] == LABELS
    assert float(lines[1]["accuracy"]) == content["rows"][1]["measures"]["accuracy"]["mean"]
    each = list(csv.DictReader((out / "trials.csv").read_text().splitlines()))
    assert len(each) == 2 * len(LABELS)
    assert float(each[3]["nll"]) == content["rows"][1]["trials"][1]["nll"]


def test_the_report_is_in_every_form(job):
    out, content, _ = job
    assert {path.name for path in out.glob("report.*")} == {"report.json", "report.md", "report.html"}
    assert (out / "figures" / "along_redundancy.svg").is_file()
    assert read_report(out) == content
    assert terminal_table(content).title == "Accuracy on rotated_0, percent"


def test_the_record_of_the_job_names_what_was_made(job):
    out, content, _ = job
    record = json.loads((out / "job.json").read_text())
    assert record["status"] == "finished"
    assert record["made_now"] > 20
    assert "space" not in record["recipe"]
    assert content["protocol"]["trials"] == [0, 1]


def test_nothing_temporary_is_left(job):
    out, _, _ = job
    names = [path.name for path in out.rglob("*") if path.is_file()]
    assert not [name for name in names if ".tmp" in name or name in ("lock", ".lock", "state.bin")]


@pytest.fixture
def again(job, tmp_path):
    """A copy of the finished job, and what runs its recipe there with changes."""
    shutil.copytree(job[0], tmp_path / "out")
    (tmp_path / "small.toml").write_text(RECIPE)

    def run(*changes, out="out", **options):
        recipe, path = load_comparison(tmp_path / "small.toml", changes)
        content = run_comparison(
            recipe, recipe_path=path, out=tmp_path / out, command="mirepoix run small.toml", **options
        )
        write_report(content, tmp_path / out)
        return content, json.loads((tmp_path / out / "job.json").read_text())["made_now"]

    return tmp_path, run


def test_again_trains_nothing_and_gives_the_same_bytes(again):
    folder, run = again

    def contents():
        made = (path for path in (folder / "out").rglob("*") if path.is_file() and path.name != "job.json")
        return {path: path.read_bytes() for path in made if "store" not in path.parts}

    before = contents()
    _, made = run()
    assert made == 0
    assert contents() == before


def test_another_job_takes_over_what_is_the_same(again):
    folder, run = again
    _, made = run("systems.DICE.objective.delta=0.3", out="other", store=folder / "out" / "store")
    # The training, its predictions, and what is measured along it, in two trials.
    assert made == 2 * 3
    with pytest.raises(InputError, match=r"holds the finished results of another recipe \(systems"):
        run("systems.DICE.objective.delta=0.3")


def test_a_target_that_is_not_there_is_told_before_anything_is_trained(again):
    folder, run = again
    with pytest.raises(InputError, match="expected a domain of digits as target, got 'rotated_1'"):
        run("data.targets=['rotated_1']", out="other")
    with pytest.raises(InputError, match=r"systems.StarSSE PEFT \(1\): .*conv9"):
        run("systems.StarSSE PEFT (1).cycle.train_from=conv9", out="third")
    assert not list((folder / "third").glob("store/weights/*/record.json"))[1:]  # the pre-training alone


def test_diverged_members_are_left_out_and_said(again):
    _, run = again
    content, _ = run(
        "systems.SSE.cycle={learning_rate=1e30, optimizer='sgd'}",
        "systems.Local DE.run={learning_rate=1e30, optimizer='sgd'}",
        "data.seeds=[0]",
        "baseline=StarSSE",
        out="other",
    )
    rows = {row["label"]: row for row in content["rows"]}
    assert rows["SSE"]["measures"]["members"]["mean"] == 1
    assert rows["SSE"]["measures"]["ratio_error"]["mean"] is None
    assert rows["Local DE"]["measures"]["accuracy"]["mean"] is None
    assert rows["Local DE"]["difference"] is None
    warnings = [item["text"] for item in content["trust"] if item["level"] == "warning"]
    assert any("SSE, trial 0: training 2 is left out: the" in text for text in warnings)
    assert any("Local DE has no member in some trial" in text for text in warnings)
    lost = [row["number"] for row in content["members"] if row["status"] == "diverged"]
    assert lost == [1, 2, 3, 2, 3]


def test_starts_are_taken_in_turn(tmp_path):
    from mirepoix.checkpoints import write_weights
    from mirepoix.models import initial_weights

    network = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8)
    for seed, name in enumerate("ab"):
        write_weights(tmp_path / f"{name}.safetensors", initial_weights(network, seed=seed))
    (tmp_path / "starts.toml").write_text(
        RECIPE.partition("[evidence]")[0]
        + '[[systems]]\nname = "Global DE"\nkind = "deep_ensemble"\n'
        + 'starts = ["a.safetensors", "b.safetensors"]\n'
    )
    recipe, path = load_comparison(tmp_path / "starts.toml", ["data.seeds=[0]"])
    heard = Listening()
    content = run_comparison(recipe, recipe_path=path, out=tmp_path / "out", progress=heard)
    records = [
        json.loads((tmp_path / f"out/members/trial-0/Global DE/member-{m}.json").read_text())
        for m in (1, 2, 3)
    ]
    starts = [record["made_of"]["theta"] for record in records]
    assert starts[0] == starts[2] != starts[1]
    assert content["starts"] == {"a.safetensors": starts[0], "b.safetensors": starts[1]}
    assert content["rows"][0]["equation"] == "theta_i = Train(phi_i, D; c_i)"
    assert content["rows"][0]["measures"]["soup_accuracy"]["mean"] is None
    assert any("One trial" in item["text"] for item in content["trust"])
    recipe, path = load_comparison(path, ['systems.Global DE.starts=["c.safetensors"]'])
    with pytest.raises(InputError, match=r"there is no file 'c.safetensors'"):
        run_comparison(recipe, recipe_path=path, out=tmp_path / "other")


def test_random_starts_are_said_and_frozen_statistics_of_them_are_warned_of(tmp_path):
    (tmp_path / "scratch.toml").write_text(
        'name = "scratch"\nmembers = 2\n[data]\ndataset = "digits"\nsize = 8\ntargets = ["rotated_0"]\n'
        'seeds = [0]\n[network]\nname = "cifar_resnet20"\nscratch = true\n[run]\nsteps = 1\nbatch_size = 4\n'
        '[[systems]]\nname = "DE"\nkind = "deep_ensemble"\n'
    )

    def run(*changes):
        recipe, path = load_comparison(tmp_path / "scratch.toml", changes)
        heard = Listening()
        out = tmp_path / f"out-{len(changes)}"
        return run_comparison(recipe, recipe_path=path, out=out, progress=heard), heard

    content, heard = run()
    assert content["start"] == "cifar_resnet20, random weights, others for every network"
    warned = [item["text"] for item in content["trust"] if item["level"] == "warning"]
    assert any("DE: batch-norm statistics are frozen at those of random weights" in text for text in warned)
    assert any("frozen at those" in note for note in heard.notes)
    content, heard = run("network.frozen_batch_norm=false")
    assert not any("frozen" in item["text"] for item in content["trust"])
    assert not heard.notes


# From the command line.


def test_the_command_line_runs_and_reports(again, monkeypatch):
    from tests.cli.conftest import call

    folder, _ = again
    monkeypatch.chdir(folder)
    result = call("run", "small.toml", "--out", "out")
    assert result.code == 0, result.err
    assert "Accuracy on rotated_0, percent" in result.out
    assert "Highest accuracy: " in result.out
    assert str(Path("out") / "report.html") in result.out
    content = call("report", "out", "--json")
    assert json.loads(content.out)["kind"] == "comparison"
    assert call("report", "out").code == 0
    diverse = call("diversity", "out/predictions/trial-0/DICE.safetensors")
    assert diverse.code == 0, diverse.err
    assert "member-2" in diverse.out
    refused = call("explain", "out")
    assert refused.code == 2
    assert "holds a comparison of ensembles" in refused.err
    wrong = call("run", "small.toml", "--target", "all", "--out", "out")
    assert wrong.code == 2
    assert "data.targets" in wrong.err
