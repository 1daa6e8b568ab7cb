import dataclasses
import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="pip install 'mirepoix[text]'")

from mirepoix.rewards.scenes import SceneNetwork, SceneRun, SceneTrainer, decode
from mirepoix.rewards.scenes._train import advantages
from mirepoix.seeds import generator, stream
from mirepoix.store import Store
from mirepoix.strategies import morl, rewarded_soup
from mirepoix.types import Diverged, InputError
from mirepoix.weights import interpolate
from tests.reference import self_critical
from tests.rewards.scenes import small

RIGHT = SceneTrainer(reward={"right": 1.0})


def test_same_arguments_same_bits():
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert small.same(RIGHT(small.start(), small.TASK, small.RUN), small.expert("right"))


def test_every_argument_counts():
    run = small.RUN.with_(steps=2)
    found = [
        SceneTrainer(reward=reward)(small.start(), task, changed)
        for reward, task, changed in (
            ({"right": 1.0}, small.TASK, run),
            ({"short": 1.0}, small.TASK, run),
            ({"right": 0.5, "short": 0.5}, small.TASK, run),
            ({"right": 1.0}, small.Strokes(seed=3), run),
            ({"right": 1.0}, small.Anchored(), run),
            *(
                ({"right": 1.0}, small.TASK, run.with_(**change))
                for change in (
                    {"seed": 2},
                    {"steps": 3},
                    {"batch_size": 5},
                    {"samples": 4},
                    {"learning_rate": 1e-3},
                    {"baseline": "greedy"},
                    {"normalise": "none"},
                )
            ),
        )
    ]
    for place, one in enumerate(found):
        assert not any(small.same(one, other) for other in found[:place])


def test_what_is_global_is_afterwards_what_it_was():
    threads = torch.get_num_threads()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    theta = {name: tensor.clone() for name, tensor in small.start().items()}
    moved = RIGHT(theta, small.TASK, small.RUN.with_(steps=1))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    assert torch.get_num_threads() == threads
    assert small.same(theta, small.start())
    assert not small.same(moved, theta)


@pytest.mark.parametrize("baseline", ["leave_one_out", "greedy"])
@pytest.mark.parametrize("task", [small.TASK, small.Anchored()], ids=["policy", "with cross-entropy"])
def test_the_loss_is_that_of_the_formula(baseline, task):
    reward = {"right": 0.25, "short": 2.0}
    trainer, run = SceneTrainer(reward=reward), small.RUN.with_(steps=1, baseline=baseline)
    record = trainer(small.start(), task, run).record

    network, examples = SceneNetwork(task, small.start()), task.examples("train")
    rows = stream(run.seed, "images", 0).choice(len(examples), run.batch_size, replace=False).tolist()
    images, prompts = examples.images[rows], [examples.prompts[row] for row in rows]
    draws = generator(run.seed, "answers", 0)
    drawn = decode([network], [1.0], images, prompts, samples=run.samples, generator=draws)
    with torch.no_grad():
        seen = network.see(images)
        logs = network.log_probabilities(seen.repeat_interleave(run.samples, dim=0), drawn).sum(dim=1)
    constants = record["normaliser"]

    def earned(some, answers):
        scores = task.score(examples, some, answers)
        return [
            sum(
                share * (float(scores[name][i]) - constants["offset"][name]) / constants["scale"][name]
                for name, share in reward.items()
            )
            for i in range(len(answers))
        ]

    every = earned([row for row in rows for _ in range(3)], network.texts(drawn))
    table = [every[3 * image : 3 * image + 3] for image in range(4)]
    greedy = earned(rows, network.texts(decode([network], [1.0], images, prompts)))
    expected = self_critical.loss(
        table, logs.reshape(4, 3).tolist(), greedy if baseline == "greedy" else None
    )
    if task.cross_entropy:
        pick = stream(run.seed, "references", 0)
        answers = [examples.references[row][pick.integers(2)] for row in rows]
        terms, tokens = 0.0, 0
        for image, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            one = network.sequences([prompt], [answer])
            with torch.no_grad():
                terms -= float(network.log_probabilities(seen[image : image + 1], one).sum())
            tokens += len(answer.split()) + 1
        expected += 0.5 * terms / tokens
    assert record["history"][0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert abs(expected) > 1e-3


def test_the_baseline_is_the_mean_of_the_others():
    found = advantages(np.array([[1.0, 0.0, 5.0], [2.0, 2.0, 2.0]]))
    np.testing.assert_allclose(found, [[-1.5, -3.0, 4.5], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(advantages(np.array([[1.0, 3.0]]), np.array([2.0])), [[-1.0, 1.0]])


def test_morl_with_one_coefficient_is_the_expert():
    alone = SceneTrainer(reward={"short": 0.0, "right": 1.0})
    assert alone.made_of() == RIGHT.made_of()
    assert small.same(alone(small.start(), small.TASK, small.RUN), small.expert("right"))


def test_the_page_of_equations_takes_it():
    trains = {name: SceneTrainer(reward={name: 1.0}) for name in ("right", "short")}
    shares = [{"right": 0.3, "short": 0.7}]
    (soup,) = rewarded_soup(trains, small.start(), small.TASK, small.RUN, shares)
    assert small.same(soup, interpolate([small.expert("right"), small.expert("short")], [0.3, 0.7]))
    alone, even = morl(
        lambda weights: SceneTrainer(reward=weights),
        small.start(),
        small.TASK,
        small.RUN,
        [{"right": 1.0, "short": 0.0}, {"right": 0.5, "short": 0.5}],
    )
    assert small.same(alone, small.expert("right"))
    assert not small.same(even, soup)


def test_a_reward_raises_itself():
    # Of drawn answers in the first steps and in the last.
    run = small.RUN.with_(steps=60, learning_rate=1e-2)
    for baseline in ("leave_one_out", "greedy"):
        trained = SceneTrainer(reward={"short": 1.0})(small.start(), small.TASK, run.with_(baseline=baseline))
        earned = [row["short"] for row in trained.record["history"]]
        assert np.mean(earned[-10:]) > np.mean(earned[:10]) + 0.05


def test_the_scale_is_that_of_the_start():
    run = small.RUN.with_(steps=1)
    fitted = RIGHT.normaliser(small.start(), small.TASK, run)
    assert fitted.method == "zscore"
    assert set(fitted.rewards) == {"right", "short"}  # a constant has no scale
    network, examples = SceneNetwork(small.TASK, small.start()), small.TASK.examples("train")
    drawn = decode(
        [network],
        [1.0],
        examples.images[:32],
        examples.prompts[:32],
        generator=generator("scene normaliser", 0),
    )
    values = small.TASK.score(examples, range(32), network.texts(drawn))["short"]
    assert fitted.offset["short"] == pytest.approx(values.mean())
    record = RIGHT(small.start(), small.TASK, run).record
    assert record["normaliser"] == fitted.to_dict()
    plain = RIGHT(small.start(), small.TASK, run.with_(normalise="none")).record
    assert plain["normaliser"]["method"] == "none"


def test_a_reward_without_a_scale_is_refused():
    with pytest.raises(InputError, match="reward 'constant': is the same for all 32 samples of the start"):
        SceneTrainer(reward={"constant": 1.0})(small.start(), small.TASK, small.RUN)


KILLED = """
import dataclasses, sys, time
from mirepoix.rewards.scenes import SceneTrainer
from mirepoix.store import Store
from tests.rewards.scenes import small

def tell(done, steps, rewards):
    print(done, flush=True)
    time.sleep(600 * (done == 5))

trainer = SceneTrainer(reward={"right": 1.0}, store=Store(sys.argv[1]), save_every=2, on_progress=tell)
trainer(small.start(), small.TASK, small.RUN)
"""


def test_a_training_killed_in_a_store_continues_there(tmp_path, root):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for _ in range(5):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (state,) = tmp_path.rglob("state.bin")
    assert not list((tmp_path / "scene-experts").rglob("record.json"))

    seen, store = [], Store(tmp_path)
    trainer = SceneTrainer(reward={"right": 1.0}, store=store, on_progress=lambda *done: seen.append(done[0]))
    found = trainer(small.start(), small.TASK, small.RUN)
    assert seen == [5, 6]
    assert small.same(found, small.expert("right"))
    assert not state.exists()
    assert [row["step"] for row in found.record["history"]] == [1, 2, 3, 4, 5, 6]
    assert len(store.made) == 1
    assert small.same(trainer(small.start(), small.TASK, small.RUN), found)
    assert len(store.made) == 1


def test_a_damaged_state_is_begun_again(tmp_path, caplog):
    seen = []

    def kill(done, steps, rewards):
        seen.append(done)
        if done == 4:
            raise KeyboardInterrupt

    trainer = SceneTrainer(reward={"right": 1.0}, store=Store(tmp_path), save_every=2, on_progress=kill)
    with pytest.raises(KeyboardInterrupt):
        trainer(small.start(), small.TASK, small.RUN)
    (state,) = tmp_path.rglob("state.bin")
    state.write_bytes(b"nonsense")
    again = dataclasses.replace(trainer, on_progress=None)
    assert small.same(again(small.start(), small.TASK, small.RUN), small.expert("right"))
    assert "damaged" in caplog.text


def test_a_training_that_diverges_says_so_and_is_remembered(tmp_path):
    trainer = SceneTrainer(reward={"right": 1.0}, store=Store(tmp_path))
    wild = small.RUN.with_(steps=12, learning_rate=1e30)  # RAdam's first steps are plain momentum
    for _ in range(2):
        with pytest.raises(Diverged, match=r"not finite|the loss is (nan|inf)"):
            trainer(small.start(), small.TASK, wild)
    assert len(trainer.store.made) == 2  # with the scale of the rewards


def test_a_wrong_trainer_is_refused():
    with pytest.raises(InputError, match="there is no reward 'long'"):
        SceneTrainer(reward={"long": 1.0})(small.start(), small.TASK, small.RUN)
    with pytest.raises(InputError, match="save_every: expected at least 1 step, got 0"):
        SceneTrainer(reward={"right": 1.0}, save_every=0)
    with pytest.raises(InputError, match="batch_size: expected at most the 40 images to train on, got 41"):
        RIGHT(small.start(), small.TASK, small.RUN.with_(batch_size=41))
    with pytest.raises(InputError, match="normaliser_samples: expected at most the 40 images"):
        RIGHT(small.start(), small.TASK, small.RUN.with_(normaliser_samples=41))
    with pytest.raises(InputError, match="expected weights of a network"):
        RIGHT({"w": torch.zeros(2)}, small.TASK, small.RUN)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("samples", 1, "at least 2 with the baseline 'leave_one_out'"),
        ("learning_rate", 0.0, "a positive number"),
        ("baseline", "mean", "one of leave_one_out, greedy"),
        ("normalise", "auto", "one of zscore, none"),
        ("normaliser_samples", 1, "at least 2"),
    ],
)
def test_a_wrong_run_is_refused(field, value, message):
    with pytest.raises(InputError, match=rf"run\.{field}: expected {message}, got {value!r}"):
        SceneRun(**{field: value})


def test_a_run_is_plain_values():
    run = SceneRun(samples=1, baseline="greedy")
    assert SceneRun(**json.loads(json.dumps(run.to_dict()))) == run
    json.dumps(RIGHT.made_of())
