import json
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import call

from mirepoix.checkpoints import fingerprint, open_weights
from mirepoix.predictions import Predictions
from mirepoix.weights import average

ROWS = [
    ("fine_tuning", "mean"),
    ("fine_tuning", "best"),
    ("wise", "interpolate"),
    ("moving_average", "best"),
    ("diwa", "average"),
    ("diwa", "greedy"),
    ("diwa", "ensemble"),
]


def report(folder="out"):
    return json.loads(Path(folder, "report.json").read_text())


def test_the_job_prints_a_table_and_names_the_report(finished):
    assert "mean member" in finished.out
    assert "ensemble of logits" in finished.out
    assert str(Path("out") / "report.html") in finished.out


def test_report_json_has_a_row_per_strategy_and_target(finished):
    rows = report()["rows"]
    assert [(r["strategy"], r["combine"], r["target"]) for r in rows] == [
        (*kind, target) for target in ("a", "b", "c") for kind in ROWS
    ]
    for row in rows:
        assert 0 <= row["id_accuracy"] <= 1
        assert 0 <= row["ood_accuracy"] <= 1
        assert row["inference_cost"] == (3 if row["combine"] == "ensemble" else 1)
        assert row["ood_standard_error"] is None
    assert {row["members"] for row in rows if row["combine"] in ("average", "ensemble")} == {3}


def test_rows_are_what_the_saved_files_say(finished):
    """The numbers of the report, worked out again from predictions and weights alone."""
    for target in ("a", "b", "c"):
        test = Predictions.load(f"out/predictions/{target}-test.safetensors")
        validation = Predictions.load(f"out/predictions/{target}-validation.safetensors")
        found = {(r["strategy"], r["combine"]): r for r in report()["rows"] if r["target"] == target}
        names = ["run-0", "run-1", "run-2"]
        assert set(test.members) >= {*names, "average", "greedy", "wise", "moving_average"}
        assert target not in {validation.domain_names[i] for i in validation.domains}

        def ood(logits, test=test):
            return (logits.argmax(-1) == test.labels).double().mean(-1)

        def identity(logits, validation=validation):
            right = (logits.argmax(-1) == validation.labels).double()
            return torch.stack(
                [right[..., validation.domains == d].mean(-1) for d in validation.domains.unique()]
            ).mean(0)

        each = ood(test.of(names).logits)
        assert found["fine_tuning", "mean"]["ood_accuracy"] == pytest.approx(each.mean().item())
        best = identity(validation.of(names).logits).argmax()
        assert found["fine_tuning", "best"]["ood_accuracy"] == pytest.approx(each[best].item())
        averaged = ood(test.of(["average"]).logits)[0].item()
        assert found["diwa", "average"]["ood_accuracy"] == pytest.approx(averaged)
        ensemble = ood(test.of(names).logits.mean(0)).item()
        assert found["diwa", "ensemble"]["ood_accuracy"] == pytest.approx(ensemble)
        assert found["diwa", "ensemble"]["id_accuracy"] == pytest.approx(
            identity(validation.of(names).logits.mean(0)).item()
        )
        members = [open_weights(f"out/members/{target}/{name}.safetensors") for name in names]
        soup = open_weights(f"out/soups/{target}/average.safetensors")
        expected = average(members)
        assert all(torch.equal(soup[name], expected[name]) for name in expected)


def test_every_file_has_its_record(finished):
    for path in Path("out").glob("members/*/*.safetensors"):
        record = json.loads(path.with_suffix(".json").read_text())
        assert record["target"] == path.parent.name
        assert record["made_of"]["run"]["steps"] == 4
        assert torch.__version__.startswith(record["environment"]["torch"])
    for path in Path("out").glob("soups/*/average.safetensors"):
        record = json.loads(path.with_suffix(".json").read_text())
        assert record["equation"] == "1/3 sum_i Train(theta_pt, D; c_i)"
        for member in record["members"]:
            source = open_weights(f"out/members/{path.parent.name}/run-{member['run']}.safetensors")
            assert fingerprint(source) == member["fingerprint"]
    job = json.loads(Path("out/job.json").read_text())
    assert job["status"] == "finished"
    assert job["made_now"] > 0


def test_nothing_temporary_is_left_and_all_lies_under_out(finished):
    assert sorted(path.name for path in Path().iterdir()) == ["images", "out", "recipe"]
    names = [path.name for path in Path("out").rglob("*") if path.is_file()]
    assert not [n for n in names if n.endswith(".tmp") or ".tmp-" in n or n in ("lock", "state.bin")]


def test_again_trains_nothing_and_gives_the_same_bytes(finished):
    def contents():
        made = (p for p in Path("out").rglob("*") if p.is_file() and p.name != "job.json")
        # The cache of decoded images knows that the folder was copied to another place for this test.
        return {p: p.read_bytes() for p in made if "images" not in p.parts}

    before = contents()
    assert (
        call("run", "recipe/small.toml", "--data", "images", "--out", "out", "--set", "members=3").code == 0
    )
    assert contents() == before
    assert json.loads(Path("out/job.json").read_text())["made_now"] == 0


def test_a_shared_store_serves_another_job(finished):
    arguments = ["--out", "other", "--store", "out/store", "--set", "members=3", "--set", "evidence.wise=0.2"]
    assert call("run", "recipe/small.toml", "--data", "images", *arguments).code == 0
    job = json.loads(Path("other/job.json").read_text())
    trained = list(Path("out/store/weights").iterdir())
    assert len(trained) == 3 * (3 + 1)  # three targets, three runs and a probe
    assert not Path("other/store").exists()
    assert job["made_now"] == 3 * 2  # predictions of the new WiSE weights, on validation and test
    theta = open_weights("other/soups/a/wise.safetensors")
    assert theta["classifier.bias"].isfinite().all()


def test_json_goes_to_standard_output_alone(cli, small, images):
    result = cli("run", small, "--data", images, "--target", "b", "--json", "--out", "out")
    assert json.loads(result.out)["rows"] == report()["rows"]
    again = cli("report", "out", "--json")
    assert json.loads(again.out) == report()


def test_several_data_seeds_give_standard_errors(cli, small, images):
    result = cli(
        "run", small, "--data", images, "--target", "b", "--set", "data.seeds=[0, 1, 2]", "--out", "out"
    )
    assert result.code == 0, result.err
    row = next(r for r in report()["rows"] if r["combine"] == "mean")
    values = torch.tensor([entry["ood_accuracy"] for entry in row["per_seed"]], dtype=torch.float64)
    assert len(values) == 3
    assert row["ood_accuracy"] == pytest.approx(values.mean().item())
    assert row["ood_standard_error"] == pytest.approx((values.std(correction=0) / 3**0.5).item())
    assert {path.name for path in Path("out/members").iterdir()} == {"b-seed-0", "b-seed-1", "b-seed-2"}


def test_one_member_is_enough(cli, small, images):
    result = cli("run", small, "--data", images, "--target", "b", "--set", "members=1", "--out", "out")
    assert result.code == 0, result.err
    rows = {(r["strategy"], r["combine"]): r for r in report()["rows"]}
    same = {rows[kind]["ood_accuracy"] for kind in ROWS if kind[0] in ("fine_tuning", "diwa")}
    assert len(same) == 1
    assert report()["why"][0]["ratio_error"]["ood"] is None


def test_a_diverged_run_is_left_out_and_reported(cli, small, images):
    spaces = ["--set", "space.learning_rate=[1e30]", "--set", "run.optimizer=sgd", "--set", "members=2"]
    result = cli("run", small, "--data", images, "--target", "b", *spaces, "--out", "out")
    assert result.code == 0, result.err  # run 0 has the base's own learning rate
    assert "run 1 diverged and is left out" in result.err
    content = report()
    assert [row["status"] for row in content["runs"]] == ["finished", "diverged"]
    assert any("Run 1" in item["text"] for item in content["trust"])


def test_networks_whose_batch_norm_moves_are_measured_again(cli, small, images, tmp_path):
    from mirepoix.checkpoints import write_weights
    from mirepoix.models import NetworkSpec, initial_weights

    write_weights(
        small.parent / "start.safetensors", initial_weights(NetworkSpec(name="cifar_resnet20", classes=2))
    )
    text = small.read_text().replace('"mnist_cnn"\nwidth = 8', '"cifar_resnet20"\nfrozen_batch_norm = false')
    small.write_text(text.replace("size = 16", "size = 32"))
    result = cli("run", small, "--data", images, "--target", "b", "--out", "out")
    assert result.code == 0, result.err
    assert report()["protocol"]["batch_norm"] == "re-estimated after averaging"
    members = [open_weights(f"out/members/b/run-{i}.safetensors") for i in range(2)]
    soup, plain = open_weights("out/soups/b/average.safetensors"), average(members)
    for name in plain:
        assert torch.equal(soup[name], plain[name]) == (
            "running_" not in name and "num_batches" not in name
        ), name


def test_no_recipe_but_data_is_the_folder_recipe(cli, images):
    result = cli("run", "--data", images)
    assert result.code == 2  # the hub is not reached in the tests
    assert "network.weights" in result.err or "weights = " in result.err


def test_a_local_file_takes_the_place_of_the_hub(cli, images, tmp_path):
    """The published protocol, three steps of it, on small images and a small network of timm."""
    import timm

    from mirepoix.checkpoints import write_weights

    torch.manual_seed(0)
    write_weights(tmp_path / "w.safetensors", timm.create_model("test_resnet", num_classes=10).state_dict())
    settings = {
        "data.dataset": "folder",
        "data.size": 32,
        "data.seeds": "[0]",
        "network.name": "timm:test_resnet",
        "network.pretrained": "false",
        "network.weights": f'"{tmp_path}/w.safetensors"',
        "members": 2,
        "run.steps": 3,
        "run.batch_size": 2,
        "probe.steps": 3,
    }
    changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    result = cli("run", "pacs-resnet50", "--data", images, "--target", "a", "--out", "out", *changes)
    assert result.code == 0, result.err
    assert report()["protocol"]["batch_norm"] == "frozen, averaged"


FEW = [
    "run.steps=4",
    "run.check_every=2",
    "run.average_from=2",
    "probe.steps=2",
    "pretraining.steps=4",
    "members=2",
    "data.size=8",
    "network.width=8",
    "evidence.subsets=0",
]
TINY = [word for change in [*FEW, 'data.targets=["rotated_0"]'] for word in ("--set", change)]


def test_a_job_minimises_what_its_recipe_says(cli):
    for objective, out in (("fishr", "by-name"), ("erm", "plain")):
        options = ["--set", "objective.ema=0.5", "--set", "objective.penalty_anneal_iters=0"]
        options = options if objective == "fishr" else []
        where = ["--out", out, "--store", "store", "--set", f"objective={objective}"]
        result = cli("run", "digits", *TINY, *where, *options)
        assert result.code == 0, result.err
    found = report("by-name")
    assert found["protocol"]["objective"] == "fishr, ema = 0.5, penalty_anneal_iters = 0"
    assert found["equation"] == "theta = 1/2 sum_i Train_fishr(theta_pt, D; c_i)"
    assert report("plain")["protocol"]["objective"] == "erm"
    assert report("plain")["equation"] == "theta = 1/2 sum_i Train(theta_pt, D; c_i)"
    job = json.loads(Path("by-name/job.json").read_text())
    assert job["recipe"]["objective"] == {"name": "fishr", "ema": 0.5, "penalty_anneal_iters": 0}
    members = {}
    for out in ("by-name", "plain"):
        record = json.loads(Path(out, "members/rotated_0/run-0.json").read_text())
        members[out] = record["made_of"]["train"].pop("objective"), record["made_of"]
    fishr, erm = (members[out][0] for out in ("by-name", "plain"))
    assert fishr["name"] == "mirepoix.objectives._fishr.Fishr"
    assert (fishr["domains"], fishr["ema"]) == (5, 0.5)
    assert set(erm) == {"name", "state"}
    by_name, plain = (
        open_weights(f"{out}/members/rotated_0/run-0.safetensors") for out in ("by-name", "plain")
    )
    assert any(not torch.equal(by_name[key], plain[key]) for key in plain)
    assert members["by-name"][1] == members["plain"][1]  # one start and one probe for both
    trained = [
        json.loads(path.read_text())["made_of"]["train"]
        for path in Path("store/weights").glob("*/record.json")
    ]
    names = sorted(each["objective"]["name"].rpartition(".")[2] for each in trained)
    assert names == ["ERM"] * 4 + ["Fishr"] * 2  # pre-training, probe, and two members of each
    other = cli("run", "digits", *TINY, "--out", "plain", "--store", "store", "--set", "objective=coral")
    assert other.code == 2
    assert "holds the finished results of another recipe (objective" in other.err
    job = json.loads(Path("plain/job.json").read_text())
    del job["recipe"]["objective"]  # as written before objectives had names
    Path("plain/job.json").write_text(json.dumps(job))
    again = cli("run", "digits", *TINY, "--out", "plain", "--store", "store")
    assert again.code == 0, again.err
    assert json.loads(Path("plain/job.json").read_text())["made_now"] == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "objective=fisher",
            "digits.toml: objective.name: there is no objective 'fisher' (did you mean 'fishr'?)",
        ),
        ("objective=urm", "objective.name: no recipe can name 'urm'"),
        (
            'objective={name="fishr", lamda=1}',
            "objective.lamda: fishr has no such option (did you mean 'lambda_'?)",
        ),
        (
            "objective=fishr",
            "digits.toml: objective: fishr begins at update 1500, and a run has 60 steps, so it would never be what it "
            "is called; set objective.penalty_anneal_iters below 60, or run.steps higher.",
        ),
    ],
)
def test_an_objective_that_cannot_be_is_code_2_before_anything_is_made(cli, change, told):
    result = cli("run", "digits", "--set", change)
    assert result.code == 2
    assert told in result.err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["objective=coral", "run.batch_size=1"], "objective: with 'rotated_0' left out: CORAL needs"),
        (
            ['objective={name="fishr", layers=["nonexistent"], penalty_anneal_iters=0}'],
            "objective: with 'rotated_0' left out: Fishr",
        ),
        (["objective=iga", "loop.mixed_precision=fp16"], "IGA cannot be trained with a gradient scaler"),
        (['objective={name="transfer", gda=true}'], "objective: with 'rotated_0' left out: Transfer"),
        (["objective=coral", "space.batch_size=[1]"], "objective: with 'rotated_0' left out: CORAL needs"),
    ],
)
def test_an_objective_that_cannot_make_an_update_is_told_before_any_is_made(cli, changes, told):
    words = [word for change in changes for word in ("--set", change)]
    result = cli("run", "digits", *TINY, "--out", "out", *words)
    assert result.code == 2, result.out
    assert told in result.err
    assert "run 0" not in result.err
    records = Path("out/store/weights").glob("*/record.json")
    assert len(list(records)) == 1  # the pre-training: no probe and no run


def test_systems_need_a_recipe_of_their_own(cli):
    result = cli("run", "--set", 'systems=[{name="a",kind="deep_ensemble"}]')
    assert result.code == 2
    assert "compares no ensembles; write one with [[systems]]" in result.err
