"""Members that were trained as one: killed on the way, taken apart, and then plain checkpoints to every door."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import call, make_folder
from tests.tiny import tiny_network, tiny_task

from mirepoix import average, open_weights
from mirepoix.checkpoints import fingerprint, read_json, write_weights
from mirepoix.data import Subset, evaluation_batches, folder_task
from mirepoix.ensembles import DICE
from mirepoix.metrics import accuracy
from mirepoix.models import NetworkSpec, initial_weights, member_weights
from mirepoix.predictions import Predictions, predict
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer

MEMBERS = 3

# Killed in the middle -------------------------------------------------------------------------------------------------

LONG = Run(seed=3, steps=40, learning_rate=3e-3, batch_size=4, check_every=8, average_from=5)


def killable() -> tuple[NetworkSpec, DICE]:
    """Three branches and a criterion with a discriminator, an optimizer of its own, a queue and a ramp."""
    spec = NetworkSpec(**{**tiny_network().to_dict(), "members": MEMBERS, "split_at": "last_stage"})
    return spec, DICE(features=16, classes=2, members=MEMBERS, hidden=(16, 8), ramp_steps=30, queue_size=5)


def train_and_tell(workspace: Path) -> None:
    """What runs in the process that is killed."""
    spec, criterion = killable()

    def tell(made: int, *_: object) -> None:
        print(made, flush=True)

    trainer = Trainer(spec, criterion, loop=Loop(device="cpu", save_every=0), on_progress=tell)
    trainer.fit(initial_weights(spec), tiny_task().split("domain_2"), LONG, workspace=workspace)


def killed_at(update: int, workspace: Path) -> int:
    """Train until an update is told, kill the process, and return the first update that it made."""
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from pathlib import Path
        from tests.end_to_end.test_joint_members import train_and_tell
        train_and_tell(Path({str(workspace)!r}))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = 0
    for line in process.stdout:
        first = first or int(line)
        if int(line) >= update:
            break
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    return first


def test_a_killed_training_of_branches_discriminator_and_queue_ends_in_the_same_bits(tmp_path):
    spec, criterion = killable()
    theta, split = initial_weights(spec), tiny_task().split("domain_2")
    told: list[int] = []
    loop = Loop(device="cpu", save_every=1e9)
    trainer = Trainer(spec, criterion, loop=loop, on_progress=lambda made, *_: told.append(made))
    whole = trainer.fit(theta, split, LONG)
    assert killed_at(6, tmp_path) == 1
    assert 6 <= killed_at(21, tmp_path) < 21
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")] == ["state.bin"]
    told.clear()
    resumed = trainer.fit(theta, split, LONG, workspace=tmp_path)
    assert 21 <= told[0] < 40
    assert told == list(range(told[0], 41))
    for name, weights in whole.weights.items():
        assert fingerprint(resumed.weights[name]) == fingerprint(weights), name
    assert resumed.record["checks"] == whole.record["checks"]
    states = resumed.objective.state_dict(), whole.objective.state_dict()
    assert any(name.startswith("queue.") for name in states[0])
    assert any("optimizer_state" in name for name in states[0])
    assert fingerprint(states[0]) == fingerprint(states[1])


# Plain checkpoints afterwards -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """Three members, as files, with their predictions; and what the network that they were one of says."""

    files: list[str]
    held_out: Path
    id_file: str
    ood_file: str
    together: dict[str, Predictions]
    combined: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("joint")
    pictures = make_folder(folder / "images", images=24)
    task = folder_task(pictures, size=32, cache_dir=folder / "cache")
    split = task.split("c")
    spec = NetworkSpec(
        name="cifar_resnet20",
        classes=2,
        members=MEMBERS,
        split_at="last_stage",
        frozen_batch_norm=False,
    )
    criterion = DICE(features=64, classes=2, members=MEMBERS, hidden=(16,))
    run = Run(seed=1, steps=6, learning_rate=2e-3, batch_size=8, check_every=5, average_from=1, augment=False)
    fit = Trainer(spec, criterion, loop=Loop(device="cpu")).fit(initial_weights(spec), split, run)
    theta = fit.weights["last"]
    model = spec.build().eval()
    model.load_state_dict(dict(theta))
    one = spec.one_member()
    files = []
    for place in range(MEMBERS):
        files.append(str(folder / f"member-{place}.safetensors"))
        write_weights(files[-1], member_weights(theta, place), record={"run": run.to_dict(), "member": place})
    names = tuple(f"member-{place}" for place in range(MEMBERS))
    together, combined, alone = {}, {}, {}
    for kind, subsets in (("id", split.validation), ("ood", task.split(None).train)):
        subsets = subsets if kind == "id" else [subset for subset in subsets if subset.name == "c"]
        logits, labels = joint_logits(model, subsets, split.task.transform)
        together[kind] = predictions(logits, labels, names, task.classes)
        batches = [batch for subset in subsets for batch in evaluation_batches(subset, task.transform)]
        with torch.no_grad():
            combined[kind] = torch.cat(
                [fit.objective.predict(model, batch.images).logits for batch in batches]
            )
        own = []
        for file in files:
            network = one.build().eval()
            network.load_state_dict(
                {name: torch.as_tensor(value) for name, value in open_weights(file).items()}
            )
            own.append(predict(network, batches))
        alone[kind] = str(folder / f"{kind}.safetensors")
        predictions(torch.stack(own), labels, names, task.classes).save(alone[kind])
    return Trained(files, pictures / "c", alone["id"], alone["ood"], together, combined)


def joint_logits(model: Any, subsets: list[Subset], transform: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of all members, from the network that they were trained in, and labels."""
    batches = [batch for subset in subsets for batch in evaluation_batches(subset, transform)]
    with torch.no_grad():
        logits = torch.cat([model(batch.images).logits for batch in batches], 1)
    return logits, torch.cat([batch.labels for batch in batches])


def predictions(logits: torch.Tensor, labels: torch.Tensor, members: Any, classes: Any) -> Predictions:
    domains = torch.zeros_like(labels)
    return Predictions(logits, labels, domains, tuple(members), tuple(classes), ("all",))


@pytest.mark.parametrize("kind", ["id", "ood"])
def test_a_member_from_its_file_predicts_as_it_did_among_the_others(trained, kind):
    alone = Predictions.load(trained.id_file if kind == "id" else trained.ood_file)
    torch.testing.assert_close(alone.logits, trained.together[kind].logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone.logits.mean(0), trained.combined[kind], rtol=1e-5, atol=1e-6)
    assert not torch.equal(alone.logits[0], alone.logits[1])


def test_members_are_checked_averaged_and_made_again(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("check", *trained.files)
    assert result.code == 0, result.out
    assert "3 files can be averaged." in result.out
    result = call("inspect", trained.files[1])
    assert (result.code, "classifier.weight" in result.out) == (0, True)
    result = call("soup", *trained.files, "-o", "soup.safetensors")
    assert result.code == 0, result.err
    expected = average([open_weights(file) for file in trained.files])
    assert fingerprint(open_weights("soup.safetensors")) == fingerprint(expected)
    assert [Path(name).name for name in read_json("soup.json")["members"]] == [
        Path(file).name for file in trained.files
    ]
    assert call("rebuild", "soup.json", "--verify").code == 0
    one = NetworkSpec(name="cifar_resnet20", classes=2).build()
    one.load_state_dict(
        {name: torch.as_tensor(value) for name, value in open_weights("soup.safetensors").items()}
    )


def test_a_soup_of_members_is_chosen_on_images(trained, tmp_path):
    network = ["--model", "cifar_resnet20", "--validation", trained.held_out]
    out = tmp_path / "greedy.safetensors"
    result = call("soup", *trained.files, "-o", out, "-m", "greedy", *network)
    assert result.code == 0, result.err
    assert set(open_weights(out)) == set(open_weights(trained.files[0]))


def test_the_diversity_of_members_is_measured(trained):
    result = call("diversity", trained.id_file, "--ood", trained.ood_file, "--json")
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["members"] == ["member-0", "member-1", "member-2"]
    for label, kind in (("ID", "id"), ("OOD", "ood")):
        found, given = content["sets"][label], trained.together[kind]
        for name, logits in zip(given.members, given.logits, strict=True):
            expected = float(accuracy(logits, given.labels))
            assert found["metrics"][name]["accuracy"] == pytest.approx(expected)
        combined = float(accuracy(trained.combined[kind], given.labels))
        assert found["ensemble"]["accuracy"] == pytest.approx(combined)
        assert len(found["pairs"]["disagreement"]) == MEMBERS


def test_the_way_between_members_is_measured(trained):
    options = ["--model", "cifar_resnet20", "--validation", trained.held_out]
    result = call("connect", *trained.files[:2], *options, "--points", 3, "--device", "cpu", "--json")
    content = json.loads(result.out)
    assert result.code == (0 if content["connected"] else 1)
    given = trained.together["ood"]
    ends = [content["points"][0]["value"], content["points"][-1]["value"]]
    assert ends == [pytest.approx(float(accuracy(given.logits[m], given.labels))) for m in (0, 1)]
    result = call("landscape", *trained.files, *options, "--points", 3, "--device", "cpu", "--json")
    assert result.code in (0, 1)
    json.loads(result.out)


def test_members_are_reported(trained, tmp_path):
    result = call(
        "explain",
        "--id",
        trained.id_file,
        "--ood",
        trained.ood_file,
        "--weights",
        *trained.files,
        "--out",
        tmp_path / "page",
        "--json",
        "--resamples",
        100,
    )
    assert result.code == 0, result.err
    content = json.loads(result.out)
    for block in content["blocks"]:
        assert block["weights"]["members"] == ["member-0", "member-1", "member-2"]
        assert block["weights"]["between"][0][1] > 0
    assert (tmp_path / "page" / "explanation.html").stat().st_size > 0
