"""``mirepoix diversity``: predictions of strangers in, every measure out, as tables, JSON and figures."""

import csv
import json

import numpy as np
import pytest
import torch
from tests.cli.conftest import call

from mirepoix.diversity import ratio_error_matrix
from mirepoix.metrics import accuracy, nll

MEMBERS = ["run0-step0", "run0-step1", "run1-step0", "run1-step1"]


def make_logits(samples, seed, classes=3):
    """Labels and the logits of two runs of two members each, alike within a run."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, samples)
    base = 2 * np.eye(classes)[labels]
    runs = [base + 1.5 * random.normal(size=base.shape) for _ in range(2)]
    logits = [run + 0.5 * random.normal(size=base.shape) for run in runs for _ in range(2)]
    return labels, np.stack(logits)


@pytest.fixture
def files(cli, tmp_path):
    """Files of four members on 60 ID samples of two domains and on 40 OOD ones, in the current folder."""
    from pathlib import Path

    for name, samples, seed in (("id", 60, 0), ("ood", 40, 1)):
        Path(name).mkdir()
        labels, logits = make_logits(samples, seed)
        for member, each in zip(MEMBERS, logits, strict=True):
            domains = (
                np.array(["photo", "art"])[np.arange(samples) % 2] if name == "id" else np.zeros(samples, int)
            )
            np.savez(f"{name}/{member}.npz", logits=each, labels=labels, domains=domains)
    return [f"id/{member}.npz" for member in MEMBERS], [f"ood/{member}.npz" for member in MEMBERS]


def test_the_result_holds_every_measure_of_both_sets(files):
    ids, oods = files
    result = call("diversity", *ids, "--ood", *oods, "--group-by", r"^run\d", "--json")
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["members"] == MEMBERS
    assert content["groups"] == ["run0", "run0", "run1", "run1"]
    assert content["files"] == {"ID": ids, "OOD": oods}
    for label, samples, seed in (("ID", 60, 0), ("OOD", 40, 1)):
        labels, logits = make_logits(samples, seed)
        labels, logits = torch.from_numpy(labels), torch.from_numpy(logits)
        found = content["sets"][label]
        assert found["samples"] == samples
        expected = ratio_error_matrix(logits.argmax(-1) == labels)
        np.testing.assert_allclose(found["pairs"]["ratio_error"], expected, rtol=1e-6)
        off = expected[~torch.eye(4, dtype=torch.bool)]
        assert found["values"]["ratio_error"] == pytest.approx(float(off.mean()))
        assert found["spread"]["ratio_error"]["lowest"] == pytest.approx(float(off.min()))
        for member, each in zip(MEMBERS, logits, strict=True):
            assert found["metrics"][member]["accuracy"] == pytest.approx(float(accuracy(each, labels)))
            assert found["metrics"][member]["nll"] == pytest.approx(float(nll(each, labels)))
        assert found["ensemble"]["nll"] == pytest.approx(float(nll(logits.mean(0), labels)))
        groups = found["groups"]["disagreement"]
        matrix = np.array(found["pairs"]["disagreement"])
        assert groups["within"]["value"] == pytest.approx((matrix[0, 1] + matrix[2, 3]) / 2)
        assert groups["across"]["value"] == pytest.approx(matrix[:2, 2:].mean())
        assert groups["difference"]["value"] > 0
    assert "jensen_shannon" not in content["measures"]
    assert content["measures"]["q_statistic"] == {
        "label": "Q-statistic",
        "higher_is_diverse": False,
        "pairwise": True,
    }
    assert set(content["sets"]["ID"]["values"]) == set(content["measures"])


def test_domains_are_measured_apart_where_there_are_several(files):
    ids, oods = files
    content = json.loads(call("diversity", *ids, "--ood", *oods, "--json").out)
    domains = content["sets"]["ID"]["domains"]
    labels, logits = make_logits(60, 0)
    correct = torch.from_numpy(logits.argmax(-1) == labels)
    assert [each["samples"] for each in domains.values()] == [30, 30]
    for name, start in (("photo", 0), ("art", 1)):
        matrix = ratio_error_matrix(correct[:, start::2])
        off = matrix[~torch.eye(4, dtype=torch.bool)]
        assert domains[name]["values"]["ratio_error"] == pytest.approx(float(off.mean()))
    assert content["sets"]["OOD"]["domains"] == {}
    text = call("diversity", *ids).out
    assert "\ndomains" in text
    assert "ID domains" in call("diversity", *ids, "--ood", *oods).out
    assert "OOD" not in text


def test_the_tables_show_members_measures_groups_and_pairs(files):
    ids, oods = files
    result = call(
        "diversity",
        *ids,
        "--ood",
        *oods,
        "--group-by",
        r"^(run\d)-",
        "--measures",
        "ratio-error,vote_entropy",
    )
    assert result.code == 0, result.err
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0][:2] == ["member", "group"]
    assert lines[1][:2] == ["run0-step0", "run0"]
    labels, logits = make_logits(60, 0)
    assert lines[1][2] == f"{100 * (logits[0].argmax(-1) == labels).mean():.1f}"
    assert lines[5][0] == "mean"
    assert lines[6][:3] == ["ensemble", "of", "logits"]
    assert ["measure", "more", "diverse", "ID", "pairs", "OOD", "pairs"] in lines
    rows = {tuple(line[:2]): line for line in lines if len(line) > 2}
    assert len(rows["ratio-error", "higher"]) == 2 + 2 * 4  # value and "lowest to highest" of both sets
    assert ["pairs", "of", "same", "group", "different", "groups", "difference"] in lines
    assert "2 groups, 2 pairs in the same and 4 in different ones" in result.out
    assert "ratio-error, OOD" in result.out
    assert "entropy of votes, OOD" not in result.out  # has no pairs
    assert "disagreement" not in result.out
    assert "reading predictions" in result.err


def test_figures_come_with_the_numbers_behind_them(files, tmp_path):
    ids, oods = files
    out = tmp_path / "out"
    command = (
        "diversity",
        *ids,
        "--ood",
        *oods,
        "--group-by",
        r"^run\d",
        "--measures",
        "q_diversity",
        "-o",
        out,
    )
    result = call(*command, "--parquet")
    assert result.code == 0, result.err
    assert f"Figures and numbers: {out}" in result.out
    names = (
        "q_diversity_id_pairs",
        "q_diversity_ood_pairs",
        "q_diversity_id_histogram",
        "q_diversity_ood_histogram",
        "q_diversity_against_accuracy",
    )
    files = {f"{name}.{end}" for name in names for end in ("svg", "png", "csv", "parquet")}
    assert {path.name for path in out.iterdir()} == files | {"diversity.json"}
    content = json.loads((out / "diversity.json").read_text())
    assert content == json.loads(call(*command, "--json").out)
    pairs = content["sets"]["OOD"]["pairs"]["q_diversity"]
    with (out / "q_diversity_ood_pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for row in rows:
        i, j = MEMBERS.index(row["first"]), MEMBERS.index(row["second"])
        assert float(row["value"]) == pairs[i][j]
        assert row["first_group"] == MEMBERS[i][:4]
    with (out / "q_diversity_ood_histogram.csv").open(newline="") as file:
        series = [row["group"] for row in csv.DictReader(file)]
    assert series == ["same group"] * 2 + ["different groups"] * 4
    with (out / "q_diversity_against_accuracy.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["series"].startswith("OOD"))
    metrics = content["sets"]["OOD"]["metrics"]
    mean = 50 * sum(metrics[name]["accuracy"] for name in row["name"].split(", "))
    assert float(row["x"]) == pytest.approx(mean)


def test_without_groups_the_sets_share_a_histogram(files, tmp_path):
    ids, oods = files
    out = tmp_path / "out"
    assert call("diversity", *ids, "--ood", *oods, "-o", out).code == 0
    with (out / "disagreement_histogram.csv").open(newline="") as file:
        series = [row["group"] for row in csv.DictReader(file)]
    assert series == ["ID"] * 6 + ["OOD"] * 6
    drawn = {path.stem.rsplit("_", 2)[0] for path in out.glob("*_id_pairs.svg")}
    assert drawn == {"ratio_error", "q_diversity", "disagreement"}


def test_what_is_combined_of_the_members_is_left_aside(files):
    from pathlib import Path

    ids, oods = files
    command = ("diversity", *ids, "--ood", *oods)
    alone = json.loads(call(*command, "--json").out)
    assert alone["left_aside"] == []
    assert "left aside" not in call(*command).out
    for folder, names in (("id", ("average", "Greedy")), ("ood", ("average", "wise"))):
        for name in names:
            Path(folder, f"{name}.npz").write_bytes(Path(folder, f"{MEMBERS[0]}.npz").read_bytes())
    more = ("diversity", "id/average.npz", *ids, "id/Greedy.npz")
    more += ("--ood", "ood/wise.npz", *oods, "ood/average.npz")
    found = json.loads(call(*more, "--json").out)
    assert found["left_aside"] == ["average", "Greedy", "wise"]
    assert (found["members"], found["sets"]) == (alone["members"], alone["sets"])
    text = call(*more).out
    assert text.count("note: left aside, as they are combined of the others: average, Greedy, wise") == 1
    lines = "".join(f"{member},x\n" for member in [*MEMBERS, "average"])
    Path("groups.csv").write_text(lines)
    assert call(*more, "--groups", "groups.csv").code == 0
    result = call("diversity", ids[0], "id/average.npz")
    assert result.code == 2
    assert "got run0-step0 alone, beside average, combined of others" in result.err
    result = call("diversity", "id/average.npz", "id/Greedy.npz")
    assert result.code == 2
    assert "got average, Greedy alone: these names mean what was combined of others" in result.err


def test_without_ood_no_set_is_named(files, tmp_path):
    ids, oods = files
    out = tmp_path / "out"
    result = call("diversity", *ids, "--group-by", r"^run\d", "--measures", "disagreement", "-o", out)
    assert result.code == 0, result.err
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["member", "group", "accuracy,", "%", "nll", "ece,", "%"]
    assert ["measure", "more", "diverse", "mean", "pairs"] in lines
    assert ["pairs", "same", "group", "different", "groups", "difference"] in lines
    assert not any("ID" in line for line in lines)
    names = ("disagreement_pairs", "disagreement_histogram", "disagreement_against_accuracy")
    drawn = {f"{name}.{end}" for name in names for end in ("svg", "png", "csv")}
    assert {path.name for path in out.iterdir()} == drawn | {"diversity.json"}
    assert call("diversity", *ids, "-o", tmp_path / "plain").code == 0
    for name, column in (("histogram", "group"), ("against_accuracy", "series")):
        with (tmp_path / "plain" / f"disagreement_{name}.csv").open(newline="") as file:
            assert {row[column] for row in csv.DictReader(file)} == {"all pairs"}
    assert "ID accuracy, %" in call("diversity", *ids, "--ood", *oods).out


def test_members_that_exclude_different_classes_are_combined(cli):
    labels = np.array([0, 1])
    np.savez("a.npz", probabilities=np.array([[1, 0], [0.4, 0.6]]), labels=labels)
    np.savez("b.npz", probabilities=np.array([[0, 1], [0.2, 0.8]]), labels=labels)
    result = call("diversity", "a.npz", "b.npz", "--measures", "disagreement", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)["sets"]["ID"]
    assert "in the ensemble, probabilities of zero count as e^-100 of the largest" in found["notes"]
    first, second = np.log(2), -np.log(np.sqrt(0.48) / (np.sqrt(0.48) + np.sqrt(0.08)))
    assert found["ensemble"]["nll"] == pytest.approx((first + second) / 2)
    assert found["metrics"]["b"]["nll"] == "infinite"


def test_groups_can_be_told_in_a_file(files):
    from pathlib import Path

    ids, _ = files
    lines = [f"{member},{kind}\n" for member, kind in zip(MEMBERS, "xyxy", strict=True)]
    Path("groups.csv").write_text("member,group\n" + "".join(reversed(lines)))
    content = json.loads(call("diversity", *ids, "--groups", "groups.csv", "--json").out)
    assert content["groups"] == list("xyxy")
    assert content["sets"]["ID"]["groups"]["ratio_error"]["pairs_within"] == 2


def test_ood_members_are_found_by_name_and_not_by_place(files):
    ids, oods = files
    straight = json.loads(call("diversity", *ids, "--ood", *oods, "--json").out)
    # Options may come first, and one file at a time.
    arguments = [word for path in reversed(oods) for word in ("--ood", path)]
    turned = json.loads(call("diversity", *arguments, "--json", *ids).out)
    assert turned["sets"] == straight["sets"]


def test_perfect_members_are_no_numbers_and_not_an_error(cli, tmp_path):
    labels = np.array([0, 1, 0, 1])
    for name in "ab":
        np.savez(f"{name}.npz", logits=5 * np.eye(2)[labels], labels=labels)
    out = tmp_path / "out"
    result = call("diversity", "a.npz", "b.npz", "--group-by", "^", "-o", out, "--logits")
    assert result.code == 0, result.err
    assert "n/a" in result.out
    assert "note: ratio_error" in result.out
    content = json.loads((out / "diversity.json").read_text())
    assert content["sets"]["ID"]["values"]["ratio_error"] is None
    assert not (out / "ratio_error_histogram.svg").exists()
    assert (out / "disagreement_histogram.svg").exists()
    wrong = np.array([[9.0, 0], [0, 9], [9, 0], [9, 0]]), np.array([[0, 9.0], [0, 9], [9, 0], [0, 9]])
    for name, logits in zip("ab", wrong, strict=True):
        np.savez(f"{name}.npz", logits=logits, labels=labels)
    content = json.loads(call("diversity", "a.npz", "b.npz", "--json").out)
    assert content["sets"]["ID"]["pairs"]["ratio_error"][0][1] == "infinite"


def test_probabilities_must_be_said(cli):
    labels, logits = make_logits(30, 0)
    np.save("labels.npy", labels)
    for number, each in enumerate(logits):
        exps = np.exp(each)
        np.save(f"m{number}.npy", exps / exps.sum(-1, keepdims=True))
    names = [f"m{number}.npy" for number in range(4)]
    result = call("diversity", *names, "--labels", "labels.npy")
    assert result.code == 2
    assert "these look like probabilities" in result.err
    assert not result.out
    content = json.loads(call("diversity", *names, "--labels", "labels.npy", "--probabilities", "--json").out)
    expected = float(nll(torch.from_numpy(logits[0]), torch.from_numpy(labels)))
    assert content["sets"]["ID"]["metrics"]["m0"]["nll"] == pytest.approx(expected)
    assert call("diversity", *names, "--labels", "labels.npy", "--logits").code == 0


def test_bad_input_exits_with_two_and_says_what_to_do(files, tmp_path):
    from pathlib import Path

    ids, oods = files
    Path("short.csv").write_text("run0-step0,x\n")
    Path("strange.csv").write_text("run9,x\n")
    Path("wide.csv").write_text("run0-step0,x,y\n")
    Path("twice.csv").write_text("".join(f"{m},x\n" for m in [*MEMBERS, MEMBERS[0]]))
    for arguments, message in (
        ((ids[0],), "expected two members or more, got run0-step0 alone"),
        ((*ids, "--ood", *oods[:3]), "'run1-step1' is in the ID predictions only. Name the files alike"),
        ((*ids[:3], "--ood", *oods), "'run1-step1' is in --ood only"),
        (
            (*ids, "--measures", "ratio"),
            "--measures: did you mean ratio_error? Expected names among ratio_error",
        ),
        ((*ids, "--measures", "xyz"), "--measures: Expected names among ratio_error"),
        ((*ids, "--measures", ","), "got none"),
        ((*ids, "--groups", "short.csv"), "expected each member once; 'run0-step1' is missing"),
        ((*ids, "--groups", "twice.csv"), "there are 5 lines for 4 members"),
        ((*ids, "--groups", "strange.csv"), "expected members among run0-step0"),
        ((*ids, "--groups", "wide.csv"), "got 'run0-step0,x,y'"),
        ((*ids, "--groups", "none.csv"), "and there is none"),
        ((*ids, "--group-by", "("), "expected a regular expression"),
        ((*ids, "--group-by", "run0"), "'run0' is not found in the name of the member 'run1-step0'"),
        ((*ids, "--groups", "short.csv", "--group-by", "x"), "expected one of them, got both"),
        ((*ids, "--ood-labels", "x.npy"), "goes with --ood only"),
        ((*ids, "--parquet"), "goes with --out only"),
        ((*ids, "-o", ids[0]), "expected the name of a folder, got a file"),
        (("none.npz",), "none.npz: expected a file of predictions"),
    ):
        result = call("diversity", *arguments)
        assert result.code == 2, arguments
        assert message in result.err, result.err
        assert not result.out
