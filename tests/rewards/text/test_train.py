import json
import logging
import os
import random
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

pytest.importorskip("trl", reason="pip install 'mirepoix[text]'")
pytest.importorskip("peft", reason="pip install 'mirepoix[text]'")
pytest.importorskip("datasets", reason="pip install 'mirepoix[text]'")

import torch

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards.text import (
    FAR,
    NEAR,
    TextExpert,
    TextModel,
    TextRun,
    TextTask,
    TextTrainer,
    as_reward,
    interpolate_adapters,
    length_target,
    soup,
)
from mirepoix.rewards.text._libraries import quiet
from mirepoix.store import Store
from mirepoix.strategies import morl, rewarded_soup
from mirepoix.types import Diverged, InputError
from tests.rewards.text import small


def factors(expert):
    (adapter,) = expert.adapters.values()
    return {m: [values.tolist() for values in adapter.factors(m)] for m in adapter.layers}


def test_an_expert_and_its_record(start, trained):
    _, experts = trained
    expert = experts["sentiment"]
    assert isinstance(expert, TextExpert)
    record = expert.record
    assert record["start"] == start.identity
    assert [row["step"] for row in record["history"]] == [1, 2, 3, 4, 5, 6]
    # All rewards are recorded, whichever is trained on, and the first completions are those of the start.
    assert all({"sentiment", "length", "kl"} <= set(row) for row in record["history"])
    assert record["history"][0]["kl"] == pytest.approx(0, abs=1e-6)
    assert record["generation"]["max_tokens"] == 6
    assert record["adapter"]["base_model_name_or_path"] == start.fingerprint[:16]
    assert json.loads(json.dumps(record)) == record
    assert fingerprint(expert) != fingerprint(experts["length"]) != start.fingerprint


def test_same_arguments_same_bits_and_nothing_is_left_behind(
    start, trained, capfd, caplog, tmp_path, monkeypatch
):
    task, experts = trained
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    before = dict(os.environ), torch.random.get_rng_state(), random.getstate()
    again = TextTrainer(start=start, reward={"sentiment": 1.0})(start.weights, task, small.RUN)
    assert factors(again) == factors(experts["sentiment"])
    assert dict(os.environ) == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert random.getstate() == before[2]
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert caplog.records == []
    assert list(tmp_path.iterdir()) == []


def test_experts_begin_with_one_adapter_whatever_their_seed(start, trained):
    task, _ = trained
    still = small.RUN.with_(steps=1, learning_rate=1e-12, normalise="none")
    one, other = (
        TextTrainer(start=start, reward={"length": 1.0})(start.weights, task, still.with_(seed=seed))
        for seed in (0, 5)
    )
    for (_, first), (_, second) in zip(factors(one).values(), factors(other).values(), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-9)
    third = TextTrainer(start=start, reward={"length": 1.0})(start.weights, task, still.with_(adapter_seed=1))
    assert factors(third) != factors(one)


def vowels(prompts, completions, **columns):
    return [10 * sum(mark in "aeiou" for mark in text) / (len(text) + 1) for text in completions]


def test_it_learns_what_is_rewarded(start, trained):
    task = TextTask(trained[0].prompts, [as_reward(vowels)])
    run = small.RUN.with_(steps=30, batch_size=16, beta=0.01, learning_rate=5e-2)
    expert = TextTrainer(start=start, reward={"vowels": 1.0})(start.weights, task, run)
    rewards = [row["vowels"] for row in expert.record["history"]]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.3
    model = TextModel(start, device="cpu")
    values = []
    for theta in (start.weights, expert):
        model.write_(theta)
        values.append(np.mean(vowels([], model.complete(task.prompts, max_tokens=6, temperature=1.0))))
    assert values[1] > values[0] + 0.3


def test_morl_with_all_its_weight_on_one_reward_is_that_expert(start, trained):
    task, experts = trained
    alone = TextTrainer(start=start, reward={"sentiment": 1.0, "length": 0.0})(start.weights, task, small.RUN)
    assert factors(alone) == factors(experts["sentiment"])
    assert alone.record["normaliser"]["method"] == "zscore"


def test_strategies_take_it(start, trained):
    task, experts = trained
    trains = {name: TextTrainer(start=start, reward={name: 1.0}) for name in task.names}
    half = dict.fromkeys(task.names, 0.5)
    (mixed,) = rewarded_soup(trains, start.weights, task, small.RUN, [half], combine=interpolate_adapters)
    (averaged,) = rewarded_soup(trains, start.weights, task, small.RUN, [half])
    expected = soup(experts, half)
    for name in expected:
        assert torch.equal(mixed[name], expected[name])
        torch.testing.assert_close(averaged[name], expected[name], atol=1e-6, rtol=0)
    train_of = partial(_trainer, start)
    (alone,) = morl(train_of, start.weights, task, small.RUN, [{"sentiment": 0.0, "length": 1.0}])
    assert factors(alone) == factors(experts["length"])


def _trainer(start, reward):
    return TextTrainer(start=start, reward=reward)


def test_morl_follows_scaled_rewards_and_keeps_their_scale(start, trained):
    task, experts = trained
    trainer = TextTrainer(start=start, reward={"sentiment": 0.5, "length": 0.5})
    both = trainer(start.weights, task, small.RUN)
    fitted = both.record["normaliser"]
    assert fitted["method"] == "zscore"
    assert fitted == trainer.normaliser(start.weights, task, small.RUN).to_dict()
    texts = TextModel(start, device="cpu").complete(task.prompts[:16], max_tokens=6, temperature=1.0)
    values = task.rewards[1](task.prompts[:16], texts)
    assert fitted["offset"]["length"] == pytest.approx(np.mean(values))
    assert fitted["scale"]["length"] == pytest.approx(np.std(values))
    # The record has rewards as they are: the first step is that of the expert, with the same seed.
    first, expected = (theta.record["history"][0] for theta in (both, experts["length"]))
    assert first["length"] == pytest.approx(expected["length"], abs=1e-5)
    raw = trainer(start.weights, task, small.RUN.with_(normalise="none"))
    assert factors(raw) != factors(both)


def test_grpo(start, trained):
    task, _ = trained
    run = small.RUN.with_(algorithm="grpo", steps=2, options={"num_iterations": 1})
    expert = TextTrainer(start=start, reward={"sentiment": 0.5, "length": 0.5})(start.weights, task, run)
    assert len(expert.record["history"]) == 2
    assert any(np.any(b) for b, _ in factors(expert).values())


def test_results_are_kept_and_snapshots_too(start, trained, tmp_path):
    task, experts = trained
    store = Store(tmp_path)
    run = small.RUN.with_(snapshots=2)
    trainer = TextTrainer(start=start, reward={"sentiment": 1.0}, store=store, checkpoint_every=4)
    expert = trainer(start.weights, task, run)
    assert len(store.made) == 2  # the scale of the rewards, and the expert
    assert factors(expert) == factors(experts["sentiment"])
    assert list(expert.snapshots) == [2, 4]
    assert len({fingerprint(theta) for theta in (expert, *expert.snapshots.values())}) == 3
    found = TextTrainer(start=start, reward={"sentiment": 1, "length": 0}, store=store)(
        start.weights, task, run
    )
    assert len(store.made) == 2
    assert fingerprint(found) == fingerprint(expert)
    assert list(found.snapshots) == [2, 4]
    (entry,) = (tmp_path / "text-experts").iterdir()
    assert sorted(path.name for path in entry.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "record.json",
        "step-000002.safetensors",
        "step-000004.safetensors",
    ]
    import peft

    with quiet():
        loaded = peft.PeftModel.from_pretrained(start.model(), entry)
    assert loaded.peft_config["default"].r == 2


def test_a_training_that_was_stopped_continues_with_the_same_bits(start, trained, tmp_path):
    task, experts = trained
    store = Store(tmp_path)
    steps = []

    def stop(step, total, rewards):
        steps.append(step)
        assert set(rewards) == {"sentiment", "length"}
        if len(steps) == 5:
            raise KeyboardInterrupt

    trainer = TextTrainer(
        start=start, reward={"sentiment": 1.0}, store=store, checkpoint_every=2, on_progress=stop
    )
    run = small.RUN.with_(snapshots=3)
    with pytest.raises(KeyboardInterrupt):
        trainer(start.weights, task, run)
    (entry,) = (tmp_path / "text-experts").iterdir()
    assert (entry / "state.bin").is_file()
    expert = trainer(start.weights, task, run)
    assert steps == [1, 2, 3, 4, 5, 5, 6]
    assert factors(expert) == factors(experts["sentiment"])
    assert [row["step"] for row in expert.record["history"]] == [1, 2, 3, 4, 5, 6]
    assert list(expert.snapshots) == [3]
    assert not (entry / "state.bin").exists()


def test_training_can_begin_at_an_expert(start, trained):
    task, experts = trained
    run = small.RUN.with_(steps=2)
    second = TextTrainer(start=start, reward={"length": 1.0})(experts["sentiment"], task, run)
    assert second.record["start"]["weights"] == fingerprint(experts["sentiment"])
    name = second.changed[0]
    moved = (second[name] - experts["sentiment"][name]).abs().max()
    assert 0 < moved < (second[name] - start.weights[name]).abs().max() * 5


def test_a_reward_that_breaks_is_named_and_trl_is_not(start, trained):
    task, _ = trained
    calls = []

    def sometimes(prompts, completions, **columns):
        calls.append(set(columns))
        return [0.0] * (len(completions) - (len(calls) > 1))

    broken = TextTask(task.prompts, [as_reward(sometimes, "sometimes")], task.columns)
    trainer = TextTrainer(start=start, reward={"sometimes": 1.0})
    with pytest.raises(InputError, match="reward 'sometimes': expected one number per completion, 8, got 7"):
        trainer(start.weights, broken, small.RUN.with_(normalise="none"))
    assert calls[0] == {"reference"}


def test_a_reward_without_scale_is_refused(start, trained):
    task, _ = trained
    flat = TextTask(
        task.prompts,
        [length_target(), as_reward(lambda p, completions, **c: [1.0] * len(completions), "flat")],
    )
    trainer = TextTrainer(start=start, reward={"length": 0.5, "flat": 0.5})
    with pytest.raises(InputError, match="reward 'flat': is the same for all 16 samples"):
        trainer(start.weights, flat, small.RUN)


def test_a_training_that_diverges_says_so(start, trained, tmp_path):
    task, _ = trained
    run = small.RUN.with_(learning_rate=1e30, options={"max_grad_norm": 0.0})
    trainer = TextTrainer(start=start, reward={"length": 1.0}, store=Store(tmp_path))
    for _ in range(2):  # the second time it is remembered
        with pytest.raises(Diverged, match="not finite"):
            trainer(start.weights, task, run)


def test_settings_that_make_no_sense_are_refused(start, trained):
    task, _ = trained
    for change, expected in (
        ({"steps": 0}, "run.steps: expected at least 1"),
        ({"completions": 1}, "run.completions: expected at least 2"),
        ({"batch_size": 9}, r"run.batch_size: expected a multiple of completions \(4\)"),
        ({"beta": -1.0}, "run.beta"),
        ({"algorithm": "ppo"}, "run.algorithm: expected one of rloo, grpo"),
        ({"normalise": "rank"}, "run.normalise"),
        ({"learning_rate": float("nan")}, "run.learning_rate"),
        ({"snapshots": 0}, "run.snapshots"),
    ):
        with pytest.raises(InputError, match=expected):
            small.RUN.with_(**change)
    trainer = TextTrainer(start=start, reward={"length": 1.0})
    with pytest.raises(InputError, match="RLOOConfig has no 'learnin_rate'"):
        trainer(start.weights, task, small.RUN.with_(options={"learnin_rate": 1.0}))
    with pytest.raises(InputError, match="'max_steps' follows from the run"):
        trainer(start.weights, task, small.RUN.with_(options={"max_steps": 3}))
    with pytest.raises(InputError, match="expected some of sentiment, length, got 'funny'"):
        TextTrainer(start=start, reward={"funny": 1.0})(start.weights, task, small.RUN)
    with pytest.raises(InputError, match="checkpoint_every"):
        TextTrainer(start=start, reward={"length": 1.0}, checkpoint_every=0)


def test_presets():
    assert NEAR.beta > FAR.beta
    assert NEAR.learning_rate < FAR.learning_rate
    assert TextRun(targets=["q_proj"]).to_dict()["targets"] == ["q_proj"]


SCRIPT = """
import socket, sys
from pathlib import Path

def refuse(self, address, *rest):
    if self.family != socket.AF_UNIX:
        Path(sys.argv[1], "network.txt").write_text(str(address))
        raise OSError("no network here")

socket.socket.connect = refuse
socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *names, **more: refuse(socket.socket(), names)
from mirepoix.rewards.text import TextStart, TextTask, TextTrainer, length_target, movie_reviews, sentiment
from mirepoix.store import Store
from tests.rewards.text import small

folder = Path(sys.argv[1])
corpus = movie_reviews(small.write_reviews(folder / "reviews.zip"))
prompts = corpus.prompts("train", 64, words=(2, 4))
task = TextTask(prompts.texts, [sentiment(corpus), length_target()], {"reference": prompts.references})
start = TextStart(sys.argv[2])
say = lambda step, total, rewards: print(step, flush=True)
trainer = TextTrainer(
    start=start, reward={"sentiment": 1.0}, store=Store(folder / "store"), checkpoint_every=2, on_progress=say
)
trainer(start.weights, task, small.RUN)
"""


@pytest.mark.slow
def test_a_killed_training_continues_and_nothing_asks_a_network(root, start, trained, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(root / "src"), str(root)])
    environment["HF_HOME"] = str(tmp_path / "hub")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(start.folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 5:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert not list((tmp_path / "store" / "text-experts").glob("*/record.json"))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert [int(line) for line in done.stdout.split()] == [5, 6]
    assert done.stderr == ""
    assert not (tmp_path / "network.txt").exists(), (tmp_path / "network.txt").read_text()
    task, experts = trained
    store = Store(tmp_path / "store")
    expert = TextTrainer(start=start, reward={"sentiment": 1.0}, store=store)(start.weights, task, small.RUN)
    assert store.made == []
    assert factors(expert) == factors(experts["sentiment"])
