"""``mirepoix soup`` and ``rebuild``: files in, one file and its record out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mirepoix import average, interpolate, open_weights
from mirepoix.checkpoints import read_json, write_json
from mirepoix.cli._methods import METHODS, SELECTIONS, rule_of
from mirepoix.merging import Rule


@pytest.fixture
def members(cli, tmp_path):
    """Three members and their start, in the current folder."""
    start = {
        "fc.weight": torch.randn(4, 6, generator=torch.Generator().manual_seed(9)),
        "steps": torch.tensor(3),
    }
    for i, name in enumerate(("a", "b", "c")):
        noise = torch.randn(4, 6, generator=torch.Generator().manual_seed(i))
        save_file({**start, "fc.weight": start["fc.weight"] + 0.1 * noise}, f"{name}.safetensors")
    save_file(start, "start.safetensors")
    return ["a.safetensors", "b.safetensors", "c.safetensors"]


def thetas(members):
    return [load_file(member) for member in members]


def test_the_average_of_files_and_its_record(cli, members):
    result = cli("soup", *members, "-o", "soup.safetensors")
    assert result.code == 0
    assert "3 members, average" in result.out
    expected = average(thetas(members))
    found = load_file("soup.safetensors")
    assert torch.equal(found["fc.weight"], expected["fc.weight"])
    record = read_json("soup.json")
    assert record["members"] == members
    assert record["equation"] == METHODS["average"].equation
    assert set(record["inputs"]) == set(members)
    assert open_weights("soup.safetensors").record == record


@pytest.mark.parametrize(
    "method", [name for name in METHODS if not METHODS[name].needs and name != "interpolate"]
)
def test_every_method_runs_and_is_rebuilt_to_the_bit(method, cli, members):
    base = ["--base", "start.safetensors"] if rule_of(method, {}).needs_base else []
    first = cli("soup", *members, "-o", "soup.safetensors", "-m", method, *base)
    assert first.code == 0, first.err
    again = cli("rebuild", "soup.json", "--verify")
    assert (again.code, "the same bits again" in again.out) == (0, True)


def test_options_reach_the_rule(cli, members):
    a, b, c = thetas(members)
    start = load_file("start.safetensors")["fc.weight"].double()
    result = cli("soup", *members, "-o", "w.safetensors", "--coefficients", "0.5, 0.25,0.25", "--json")
    assert json.loads(result.out)["parameters"] == {"coefficients": [0.5, 0.25, 0.25]}
    expected = interpolate([a, b, c], [0.5, 0.25, 0.25])["fc.weight"]
    assert torch.equal(load_file("w.safetensors")["fc.weight"], expected)
    cli("soup", *members[:2], "-o", "t.safetensors", "-m", "interpolate", "--t", "0.25")
    expected = (0.75 * a["fc.weight"].double() + 0.25 * b["fc.weight"].double()).float()
    assert torch.equal(load_file("t.safetensors")["fc.weight"], expected)
    cli("soup", *members[:2], "-o", "ta.safetensors", "-m", "task-arithmetic", "--base", "start.safetensors",
        "--coefficients", "1 -1", "--scale", "0.5")  # fmt: skip
    expected = start + 0.5 * (a["fc.weight"].double() - b["fc.weight"].double())
    torch.testing.assert_close(load_file("ta.safetensors")["fc.weight"].double(), expected, rtol=0, atol=1e-6)
    cli("soup", *members[:2], "-o", "ema.safetensors", "-m", "ema", "--decay", "0.9")
    expected = (0.9 * a["fc.weight"].double() + 0.1 * b["fc.weight"].double()).float()
    torch.testing.assert_close(load_file("ema.safetensors")["fc.weight"], expected, rtol=1e-6, atol=0)


def test_coefficients_for_a_pattern_of_names(cli, members):
    a, _, _ = thetas(members)
    result = cli(
        "soup", *members[:2], "-o", "s.safetensors", "--coefficients-for", "^fc=1,0", "--coefficients", "0,1"
    )
    assert result.code == 0, result.err
    assert torch.equal(load_file("s.safetensors")["fc.weight"], a["fc.weight"])
    assert read_json("s.json")["parameters"]["coefficients"] == [
        [["^fc", 1.0], ["", 0.0]],
        [["^fc", 0.0], ["", 1.0]],
    ]
    assert cli("rebuild", "s.safetensors", "--verify").code == 0


def test_options_of_the_merge_reach_it_and_are_rebuilt(cli, members):
    save_file({"module.fc.weight": torch.ones(5, 6), "module.steps": torch.tensor(3)}, "d.safetensors")
    wrong = cli("soup", "a.safetensors", "d.safetensors", "-o", "s.safetensors")
    assert wrong.code == 2
    assert "--rename '^module.='" in wrong.err
    result = cli("soup", "a.safetensors", "d.safetensors", "-o", "s.safetensors", "--rename", "^module.=",
                 "--rows", "--dtype", "bfloat16", "--max-shard", "50B")  # fmt: skip
    assert result.code == 0, result.err
    found = open_weights("s.safetensors.index.json")
    assert (found["fc.weight"].dtype, tuple(found["fc.weight"].shape)) == (torch.bfloat16, (5, 6))
    assert cli("rebuild", "s.json", "--verify").code == 0


def test_model_folders_become_a_model_folder(cli, members):
    for name in ("a", "b"):
        folder = f"model-{name}"
        os.mkdir(folder)
        shutil.move(f"{name}.safetensors", f"{folder}/model.safetensors")
        write_json(f"{folder}/config.json", {"architectures": ["X"], "torch_dtype": "float32"})
        Path(f"{folder}/tokenizer.json").write_text("{}")
        Path(f"{folder}/pytorch_model.bin.index.json.bak").write_text("")
    result = cli("soup", "model-a", "model-b", "-o", "soup", "--dtype", "float16")
    assert result.code == 0, result.err
    assert sorted(os.listdir("soup")) == ["config.json", "model.json", "model.safetensors", "tokenizer.json"]
    assert read_json("soup/config.json")["torch_dtype"] == "float16"
    assert cli("rebuild", "soup", "--verify").code == 0
    again = cli("soup", "model-a", "model-b", "-o", "soup")
    assert (again.code, "--force" in again.err) == (2, True)
    assert cli("soup", "model-a", "model-b", "-o", "soup", "--force").code == 0
    assert load_file("soup/model.safetensors")["fc.weight"].dtype == torch.float32
    os.mkdir("mine")
    Path("mine/thesis.tex").write_text("x")
    kept = cli("soup", "model-a", "model-b", "-o", "mine", "--force")
    assert (kept.code, "is not the result of a soup" in kept.err) == (2, True)
    assert not [name for name in os.listdir(".") if name.endswith((".tmp", ".old"))]


SCORE = """
import torch
calls = 0
def score(theta):
    return -float((theta["fc.weight"] - torch.load("goal.pt")).square().mean())
"""


def test_greedy_keeps_what_the_score_keeps_and_writes_its_trace(cli, members):
    a, _, c = thetas(members)
    torch.save((a["fc.weight"] + c["fc.weight"]) / 2, "goal.pt")
    Path("judge.py").write_text(SCORE)
    result = cli("soup", *members, "-o", "s.safetensors", "-m", "greedy", "--score", "judge:score")
    assert result.code == 0, result.err
    assert "kept 2 of 3" in result.out
    expected = average([a, c])["fc.weight"]
    torch.testing.assert_close(load_file("s.safetensors")["fc.weight"], expected, rtol=0, atol=0)
    record = read_json("s.json")
    assert [trial["kept"] for trial in record["selection"]["trace"]].count(True) == 2
    assert cli("rebuild", "s.json", "--verify").code == 0  # without the score


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["best"], 1),
        (["top-k", "--top", "2"], 2),
        (["threshold", "--delta", "100"], 3),
        (["forward", "--rounds", "2"], 2),
    ],
)
def test_the_other_choices(arguments, kept, cli, members):
    a, _, c = thetas(members)
    torch.save((a["fc.weight"] + c["fc.weight"]) / 2, "goal.pt")
    Path("judge2.py").write_text(SCORE)
    result = cli("soup", *members, "-o", "s.safetensors", "-m", *arguments, "--score", "judge2:score")
    assert result.code == 0, result.err
    assert read_json("s.json")["selection"]["kept"] == kept


MERGEKIT = """
merge_method: linear
models:
  - {model: a.safetensors, parameters: {weight: 3.0}}
  - {model: b.safetensors, parameters: {weight: 1.0}}
dtype: float32
"""


def test_a_recipe_of_mergekit(cli, members):
    Path("r.yml").write_text(MERGEKIT)
    result = cli("soup", "--recipe", "r.yml", "-o", "s.safetensors")
    assert result.code == 0, result.err
    expected = interpolate(thetas(members)[:2], [0.75, 0.25])["fc.weight"]
    torch.testing.assert_close(load_file("s.safetensors")["fc.weight"], expected, rtol=0, atol=1e-7)
    assert cli("rebuild", "s.json", "--verify").code == 0
    both = cli("soup", "a.safetensors", "--recipe", "r.yml", "-o", "t.safetensors")
    assert (both.code, "give it alone" in both.err) == (2, True)


def test_rebuild_notices_inputs_and_results_that_changed(cli, members):
    cli("soup", *members, "-o", "s.safetensors")
    data = bytearray(Path("s.safetensors").read_bytes())
    data[-1] ^= 1
    Path("s.safetensors").write_bytes(data)
    changed = cli("rebuild", "s.json", "--verify")
    assert (changed.code, "s.safetensors: other bytes" in changed.out) == (1, True)
    os.remove("s.safetensors")
    assert cli("rebuild", "s.json", "--verify").code == 0  # against the digest of the record
    assert cli("rebuild", "s.json").code == 0
    assert cli("rebuild", "s.json", "--verify").code == 0
    save_file({"fc.weight": torch.zeros(4, 6), "steps": torch.tensor(3)}, "b.safetensors")
    changed = cli("rebuild", "s.json", "--verify", "--json")
    assert changed.code == 1
    assert json.loads(changed.out)["problems"] == ["b.safetensors: its content changed"]
    os.remove("b.safetensors")
    gone = cli("rebuild", "s.json", "-o", "t.safetensors")
    assert (gone.code, "b.safetensors: is no longer there" in gone.err) == (2, True)
    assert not [name for name in os.listdir(".") if name.startswith(".rebuild")]


def test_a_folder_can_be_moved_with_its_record(cli, members):
    cli("soup", *members, "-o", "s.safetensors")
    os.mkdir("elsewhere")
    for name in (*members, "s.safetensors", "s.json"):
        shutil.move(name, f"elsewhere/{name}")
    assert cli("rebuild", "elsewhere/s.json", "--verify").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.safetensors"], "expected a name for the result"),
        (["-o", "s.safetensors"], "expected at least one checkpoint"),
        (
            ["a.safetensors", "-o", "a.safetensors", "--force"],
            "is one of the inputs, which are never changed",
        ),
        (["a.safetensors", "-o", "b.safetensors"], "exists already. Choose another name, or pass --force"),
        (["a.safetensors", "-o", "s.pt"], "expected a name ending in .safetensors, or that of a folder"),
        (["a.safetensors", "-o", "no/s.safetensors"], "the folder no does not exist"),
        (["nothing.safetensors", "-o", "s.safetensors"], "nothing.safetensors: expected"),
        (["a.safetensors", "-o", "s.safetensors", "-m", "mean"], "--method: expected one of average"),
        (["a.safetensors", "-o", "s.safetensors", "--density", "0.5"], "--density: average does not take it"),
        (["a.safetensors", "-o", "s.safetensors", "-m", "ties"], "needs the common start"),
        (["a.safetensors", "-o", "s.safetensors", "-m", "fisher"], "needs --fishers"),
        (["a.safetensors", "-o", "s.safetensors", "-m", "greedy"], "needs a score"),
        (["a.safetensors", "-o", "s.safetensors", "--strict"], "--strict: average uses no score"),
        (["a.safetensors", "-o", "s.safetensors", "--coefficients", "1,x"], "expected numbers such as"),
        (
            ["a.safetensors", "-o", "s.safetensors", "--coefficients", "1,2"],
            "one number per checkpoint (1), got 2",
        ),
        (["a.safetensors", "-o", "s.safetensors", "--rename", "x"], "--rename: expected REGEX=NEW"),
        (["a.safetensors", "-o", "s.safetensors", "--max-shard", "big"], "size: expected a number of bytes"),
        (["a.safetensors", "-o", "s.safetensors", "--lora", "cat"], "expected adapter folders"),
        (["a.safetensors", "-o", "s.safetensors", "--dtype", "int8"], "dtype: expected float64"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(arguments, message, cli, members):
    before = {name: Path(name).read_bytes() for name in os.listdir(".")}
    result = cli("soup", *arguments)
    assert result.code == 2
    assert message in result.err
    assert {name: Path(name).read_bytes() for name in os.listdir(".")} == before


def test_a_record_of_something_else_cannot_be_rebuilt(cli, members):
    write_json("x.json", {"equation": "x"})
    result = cli("rebuild", "x.json")
    assert (result.code, "expected the record of a soup" in result.err) == (2, True)
    assert "got nothing there" in cli("rebuild", "y.json").err


def test_the_table_of_methods_matches_what_is_public():
    from mirepoix import merging

    rules = {
        name
        for name in merging.__all__
        if isinstance(getattr(merging, name), type)
        and issubclass(getattr(merging, name), Rule)
        and name not in ("Rule", "LinearRule")
    }
    assert {method.rule for method in METHODS.values()} == rules
    assert not set(METHODS) & set(SELECTIONS)
    for name, method in METHODS.items():
        fields = set(getattr(merging, method.rule).__dataclass_fields__)
        assert {*method.takes, *method.fixed} <= fields, name
    assert isinstance(rule_of("ties", {"density": 0.5}), merging.Ties)


def test_a_soup_loads_no_torch(members):
    code = """
import sys
from mirepoix.cli import main
sys.argv = ["mirepoix", "soup", "a.safetensors", "b.safetensors", "-o", "s.safetensors"]
try:
    main()
except SystemExit as end:
    assert not end.code
print([name for name in ("torch", "scipy", "rich", "yaml", "pydantic", "matplotlib") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert np.isfinite(load_file("s.safetensors")["fc.weight"].numpy()).all()


# What may not be lost.


def test_a_file_of_somebody_is_not_replaced_by_the_record(cli, members):
    Path("run.json").write_text('{"learning_rate": 0.1}')
    for force in ([], ["--force"]):
        result = cli("soup", *members, "-o", "run.safetensors", *force)
        assert (result.code, "run.json: would be replaced" in result.err) == (2, True)
    assert Path("run.json").read_text() == '{"learning_rate": 0.1}'
    assert not Path("run.safetensors").exists()


def test_an_input_is_never_written_whatever_the_output_is_called(cli, members):
    os.mkdir("model")
    cli("soup", *members[:2], "-o", "model", "--force")
    cli("soup", *members[:2], "-o", "shards.safetensors", "--max-shard", "50B")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    index = "shards.safetensors.index.json"
    for arguments in (
        ["model", "c.safetensors", "-o", "model", "--force"],
        [
            "a.safetensors",
            "b.safetensors",
            "-m",
            "task-arithmetic",
            "--coefficients",
            "1 1",
            "--base",
            "model",
            "-o",
            "model",
        ],
        [index, index, "-o", "shards.safetensors", "--max-shard", "50B", "--force"],
    ):
        result = cli("soup", *arguments, *(["--force"] if "--force" not in arguments else []))
        assert (result.code, "is one of the inputs" in result.err) == (2, True), arguments
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_what_lies_in_a_folder_beside_a_soup_stays_when_the_soup_is_replaced(cli, members):
    cli("soup", *members[:2], "-o", "soup", "--max-shard", "50B")
    Path("soup/notes.md").write_text("mine")
    assert cli("soup", *members, "-o", "soup", "--force").code == 0
    assert sorted(os.listdir("soup")) == ["model.json", "model.safetensors", "notes.md"]
    assert cli("rebuild", "soup", "--verify").code == 0


def test_shards_and_one_file_of_the_same_name_replace_each_other_only_by_force(cli, members):
    assert cli("soup", *members, "-o", "s.safetensors", "--max-shard", "50B").code == 0
    again = cli("soup", *members, "-o", "s.safetensors", "--max-shard", "50B")
    assert (again.code, "exists already" in again.err) == (2, True)
    assert cli("soup", *members, "-o", "s.safetensors", "--force").code == 0
    assert sorted(path.name for path in Path().glob("s.*")) == ["s.json", "s.safetensors"]
    assert not list(Path().glob("s-*"))


def test_what_appears_meanwhile_is_left_alone(cli, members, monkeypatch):
    from mirepoix.cli import _soup

    def slow(description, opened, folder, out, progress=None):
        report = make(description, opened, folder, out, progress)
        Path("soup").mkdir(exist_ok=True)
        Path("soup/thesis.tex").write_text("x")
        Path("soup.safetensors").write_text("y")
        return report

    make = _soup.make
    monkeypatch.setattr(_soup, "make", slow)
    for out in ("soup", "soup.safetensors"):
        result = cli("soup", *members, "-o", out)
        assert (result.code, "appeared while the soup was made" in result.err) == (2, True)
        for path in Path().glob("soup*"):
            assert path.read_text() == "y" if path.is_file() else os.listdir(path) == ["thesis.tex"]
        shutil.rmtree("soup")
        os.remove("soup.safetensors")


def test_a_folder_may_have_dots_in_its_name_and_a_link_is_not_followed(cli, members):
    assert cli("soup", *members, "-o", "Llama-3.1-8B-soup").code == 0
    assert cli("rebuild", "Llama-3.1-8B-soup", "--verify").code == 0
    os.symlink("Llama-3.1-8B-soup", "link")
    result = cli("soup", *members, "-o", "link", "--force")
    assert (result.code, "is a symbolic link" in result.err) == (2, True)


def test_a_member_behind_a_link_can_be_rebuilt(cli, members):
    os.mkdir("blobs")
    shutil.move("a.safetensors", "blobs/deadbeef")
    os.symlink("blobs/deadbeef", "a.safetensors")
    assert cli("soup", *members, "-o", "s.safetensors").code == 0
    assert read_json("s.json")["members"][0] == "a.safetensors"
    assert cli("rebuild", "s.json", "--verify").code == 0


def test_fisher_statistics_are_inputs_like_members(cli, members):
    for name in "fgh":
        save_file({"fc.weight": torch.rand(4, 6)}, f"{name}.safetensors")
    arguments = ["--fishers", "f.safetensors", "--fishers", "g.safetensors"]
    assert cli("soup", *members[:2], "-m", "fisher", *arguments, "-o", "s.safetensors").code == 0
    assert cli("rebuild", "s.json", "--verify").code == 0
    shutil.copy("h.safetensors", "g.safetensors")
    result = cli("rebuild", "s.json", "-o", "t.safetensors")
    assert (result.code, "g.safetensors: its content changed" in result.err) == (2, True)


def test_a_record_somebody_changed_is_noticed(cli, members):
    cli("soup", *members, "-o", "s.safetensors")
    record = read_json("s.json")
    for key, value in (
        ("result", None), ("inputs", None), ("options", {"evil": 1}), ("members", [1]), ("parameters", {"t": 1}),
        ("adapters", {}), ("result", {"name": "../s.safetensors", "files": {}}), ("method", "greedy"),
    ):  # fmt: skip
        write_json("x.json", record | {key: value})
        result = cli("rebuild", "x.json", "-o", "t.safetensors")
        assert result.code == 2, key
    digests = {"s.safetensors": {"bytes": 1, "quick_digest": "0"}}
    write_json("x.json", record | {"result": {"name": "s.safetensors", "files": digests}})
    assert cli("rebuild", "x.json", "-o", "t.safetensors").code == 1
    assert not Path("t.safetensors").exists()


def test_a_record_names_no_place_on_a_machine(cli, members):
    result = cli(
        "soup", *(os.path.abspath(member) for member in members), "-o", os.path.abspath("s.safetensors")
    )
    assert result.code == 0
    assert os.getcwd() not in Path("s.json").read_text()


def test_the_configuration_of_the_result_is_that_of_its_tensors(cli, members):
    for name, words, dtype in (("p", 4, torch.bfloat16), ("q", 6, torch.bfloat16)):
        os.mkdir(name)
        save_file({"embed.weight": torch.ones(words, 2, dtype=dtype)}, f"{name}/model.safetensors")
        write_json(f"{name}/config.json", {"vocab_size": words, "torch_dtype": "bfloat16"})
    assert cli("soup", "p", "q", "-o", "soup", "--rows", "--dtype", "fp32").code == 0
    assert read_json("soup/config.json") == {"vocab_size": 6, "torch_dtype": "float32"}
    result = cli("soup", *members, "-o", "plain")
    assert "no configuration or tokenizer was copied" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "start.safetensors"], "--base: average does not use one"),
        (["--top", "0"], "--top: average uses no score"),
        (["--metric", "nll"], "--metric: average uses no score"),
        (["--rename", "^nothing=x"], "'^nothing' matches no name"),
        (["--coefficients-for", "nothing=1,1,1"], "'nothing' matches no name"),
        (["--set", "x"], "--set: expected KEY=VALUE"),
        (["-m", "slerp", "--set", "nothing=1"], "--nothing: slerp does not take it"),
    ],
)
def test_nothing_that_was_asked_for_is_ignored(arguments, message, cli, members):
    result = cli("soup", *members, "-o", "s.safetensors", *arguments)
    assert (result.code, message in result.err) == (2, True), result.err
    assert not Path("s.safetensors").exists()


def test_a_parameter_without_an_option_of_its_own(cli, members):
    arguments = ["-m", "slerp", "--set", "on=delta", "--base", "start.safetensors"]
    assert cli("soup", *members[:2], "-o", "s.safetensors", *arguments).code == 0
    assert read_json("s.json")["parameters"] == {"on": "delta"}
    assert cli("rebuild", "s.json", "--verify").code == 0


def test_scores_that_are_no_numbers_are_refused_and_nothing_is_written(cli, members):
    Path("judge3.py").write_text("def score(theta):\n    return float('nan')\n")
    for method in (["greedy"], ["top-k", "--top", "2"], ["best"]):
        result = cli("soup", *members, "-o", "s.safetensors", "-m", *method, "--score", "judge3:score")
        assert (result.code, "NaN" in result.err) == (2, True), result.err
    assert not Path("s.safetensors").exists()


def test_members_that_do_not_fit_are_named_before_the_first_evaluation(cli, members):
    Path("judge4.py").write_text("def score(theta):\n    raise RuntimeError('evaluated')\n")
    save_file({"fc.weight": torch.zeros(5, 6), "steps": torch.tensor(3)}, "odd.safetensors")
    result = cli("soup", "a.safetensors", "odd.safetensors", "b.safetensors", "-o", "s.safetensors", "-m", "greedy",
                 "--score", "judge4:score")  # fmt: skip
    assert (result.code, "odd.safetensors" in result.err) == (2, True)


def test_the_printed_score_is_that_of_the_soup(cli, members):
    a, _, c = thetas(members)
    torch.save((a["fc.weight"] + c["fc.weight"]) / 2, "goal.pt")
    Path("judge5.py").write_text(SCORE)
    cli("soup", *members, "-o", "s.safetensors", "-m", "top-k", "--top", "3", "--score", "judge5:score")
    goal = (a["fc.weight"] + c["fc.weight"]) / 2
    expected = -float((load_file("s.safetensors")["fc.weight"] - goal).square().mean())
    assert read_json("s.json")["selection"]["score"] == pytest.approx(expected, rel=1e-6)


def test_a_soup_that_was_renamed_is_compared_itself(cli, members):
    cli("soup", *members, "-o", "s.safetensors")
    os.rename("s.safetensors", "t.safetensors")
    os.rename("s.json", "t.json")
    assert cli("rebuild", "t.safetensors", "--verify").code == 0
    data = bytearray(Path("t.safetensors").read_bytes())
    data[-1] ^= 1
    Path("t.safetensors").write_bytes(data)
    result = cli("rebuild", "t.safetensors", "--verify")
    assert (result.code, "t.safetensors: other bytes" in result.out) == (1, True)


def test_a_score_that_raises_is_named_with_file_and_line(cli, members):
    Path("judge6.py").write_text("def score(theta):\n    return theta['nothing']\n")
    result = cli("soup", *members, "-o", "s.safetensors", "-m", "greedy", "--score", "judge6:score")
    assert result.code == 2
    assert "judge6:score failed on a.safetensors: KeyError: 'nothing' (judge6.py, line 2)" in result.err


def test_a_base_that_is_not_finite_is_named(cli, members):
    base = load_file("start.safetensors")
    save_file(base | {"fc.weight": torch.full((4, 6), torch.nan)}, "nan.safetensors")
    result = cli("soup", *members, "-o", "s.safetensors", "-m", "ties", "--base", "nan.safetensors")
    assert (result.code, "nan.safetensors holds NaN" in result.err) == (2, True)


def test_a_warning_is_a_note(members):
    save_file({"fc.weight": torch.ones(4, 6).half(), "steps": torch.tensor(3)}, "half.safetensors")
    command = [
        sys.executable,
        "-m",
        "mirepoix",
        "soup",
        "a.safetensors",
        "half.safetensors",
        "-o",
        "s.safetensors",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr.startswith("note: dtypes differ: 'fc.weight' is float32 in a.safetensors")
    assert "UserWarning" not in result.stderr
