import dataclasses
import json
import signal

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="pip install 'mirepoix[diffusion]'")

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards.diffusion import DiffusionTrainer, DigitDiffusion
from mirepoix.rewards.diffusion._network import build_network, load_, trainable_names
from mirepoix.rewards.diffusion._samples import generated_images
from mirepoix.seeds import generator
from mirepoix.store import Store
from mirepoix.strategies import morl, rewarded_soup
from mirepoix.types import Diverged, InputError
from mirepoix.weights import interpolate
from tests.reference import diffusion_weights as reference
from tests.rewards.diffusion import small

LEGIBLE = DiffusionTrainer(reward={"legibility": 1.0})


def pairs(*rewards):
    return [dict(zip(small.TASK.rewards, row, strict=True)) for row in rewards]


def test_same_arguments_same_bits_and_what_is_global_stays():
    torch.manual_seed(99)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert small.same(LEGIBLE(small.start(), small.TASK, small.RUN), small.expert("legibility"))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_every_argument_counts():
    run = small.RUN.with_(steps=3)
    changes = [
        {"seed": 2},
        {"steps": 2},
        {"learning_rate": 2e-3},
        {"batch_size": 4},
        {"generated": 50},
        {"kept": 0.9},
        {"clip": 1.1},
        {"trainable": "all"},
        {"sampling_steps": 4},
        {"samples_seed": 1},
    ]
    found = [
        fingerprint(LEGIBLE(small.start(), small.TASK, run.with_(**change))) for change in ({}, *changes)
    ]
    found += [
        fingerprint(DiffusionTrainer(reward={"boldness": 1.0})(small.start(), small.TASK, run)),
        fingerprint(LEGIBLE(small.expert("boldness"), small.TASK, run)),
    ]
    assert len(set(found)) == len(changes) + 3
    assert fingerprint(LEGIBLE(small.start(), small.TASK, run.with_(checkpoint_every=1))) == found[0]


def test_what_is_not_trained_has_the_bits_of_the_start():
    start, expert = small.start(), small.expert("legibility")
    trained = set(trainable_names(build_network(small.TASK), "small"))
    assert 0 < len(trained) < len(start)
    for name, tensor in start.items():
        assert torch.equal(tensor, expert[name]) == (name not in trained), name
    whole = LEGIBLE(start, small.TASK, small.RUN.with_(trainable="all"))
    assert not any(torch.equal(tensor, whole[name]) for name, tensor in start.items())


def test_the_start_is_not_changed():
    theta = {name: x.clone() for name, x in small.start().items()}
    LEGIBLE(theta, small.TASK, small.RUN)
    assert small.same(theta, small.start())


def test_morl_with_one_coefficient_is_the_expert(tmp_path):
    store = Store(tmp_path)
    alone = DiffusionTrainer(reward={"boldness": 0.0, "legibility": 1.0}, store=store)
    assert alone.made_of() == LEGIBLE.made_of()
    assert small.same(alone(small.start(), small.TASK, small.RUN), small.expert("legibility"))
    made = len(store.made)
    dataclasses.replace(LEGIBLE, store=store)(small.start(), small.TASK, small.RUN)
    assert len(store.made) == made


def test_the_page_of_equations_takes_it():
    trains = {name: DiffusionTrainer(reward={name: 1.0}) for name in small.TASK.rewards}
    soups = rewarded_soup(trains, small.start(), small.TASK, small.RUN, pairs((0.3, 0.7), (1.0, 0.0)))
    mixed, alone = soups
    experts = [small.expert(name) for name in small.TASK.rewards]
    assert small.same(mixed, interpolate(experts, [0.3, 0.7]))
    assert small.same(alone, experts[0])
    one, even = morl(
        lambda shares: DiffusionTrainer(reward=shares),
        small.start(),
        small.TASK,
        small.RUN,
        pairs((0.0, 1.0), (0.5, 0.5)),
    )
    assert small.same(one, experts[1])
    assert not any(small.same(even, other) for other in (*experts, mixed))


@pytest.mark.parametrize("shares", [{"legibility": 1.0}, {"legibility": 0.4, "boldness": 1.6}])
def test_the_first_loss_and_the_record_as_the_loops_find_them(shares):
    run = small.RUN.with_(steps=1, clip=1.5, kept=0.6)
    record = DiffusionTrainer(reward=shares)(small.start(), small.TASK, run).record
    network = build_network(small.TASK).eval()
    load_(network, small.start())
    images, labels = generated_images(network, "", run, None)
    rewards = {name: values.tolist() for name, values in small.TASK.score(images, labels).items()}
    for name in shares:
        mean, deviation = reference.mean_and_deviation(rewards[name])
        assert record["normaliser"]["offset"][name] == pytest.approx(mean, rel=1e-9)
        assert record["normaliser"]["scale"][name] == pytest.approx(deviation, rel=1e-9)
    chosen, weights = reference.kept_and_weights(reference.scalar_rewards(rewards, shares), 0.6, 1.5)
    assert record["images"] == {
        "generated": 40,
        "kept": 24,
        "largest weight": pytest.approx(max(weights), rel=1e-9),
    }
    assert set(record["kept"]) == {"legibility", "boldness", "symmetry"}
    for name, values in rewards.items():
        assert record["generated"][name] == pytest.approx(np.mean(values), rel=1e-9)
        assert record["kept"][name] == pytest.approx(np.mean([values[i] for i in chosen]), rel=1e-9)

    random = generator("diffusion expert", run.seed, 0)
    rows = torch.randint(24, (8,), generator=random).tolist()
    times = torch.randint(200, (8,), generator=random)
    noise = torch.randn(8, 1, 8, 8, generator=random)
    picked = [chosen[row] for row in rows]
    noised = [
        reference.noised(images[i].ravel().tolist(), noise[j].flatten().tolist(), int(times[j]))
        for j, i in enumerate(picked)
    ]
    with torch.no_grad():
        stacked = torch.tensor(noised).view(8, 1, 8, 8)
        predicted = network(stacked, times, class_labels=torch.from_numpy(labels[picked])).sample
    expected = reference.weighted_loss(
        [weights[row] for row in rows], noise.flatten(1).tolist(), predicted.flatten(1).tolist()
    )
    assert record["losses"] == [{"step": 1, "loss": pytest.approx(expected, rel=1e-4)}]


def test_coefficients_may_be_multiplied():
    one, three = (
        DiffusionTrainer(reward={"legibility": s, "boldness": 2 * s})(small.start(), small.TASK, small.RUN)
        for s in (1.0, 4.0)
    )
    assert small.same(one, three)


def test_images_are_generated_once_for_all_rewards(tmp_path):
    store = Store(tmp_path)
    for reward in ({"legibility": 1.0}, {"boldness": 1.0}, {"legibility": 0.5, "boldness": 0.5}):
        DiffusionTrainer(reward=reward, store=store)(
            small.start(), small.TASK, small.RUN.with_(seed=len(reward))
        )
    assert len(list((tmp_path / "diffusion-images").glob("*/record.json"))) == 1
    assert len(list((tmp_path / "diffusion-experts").glob("*/record.json"))) == 3


class Killed(Exception):
    pass


@pytest.mark.parametrize("stretches", [1, 2])
def test_an_interrupted_training_continues_with_the_same_bits(stretches, tmp_path):
    steps = []

    def kill(done, of, means):
        steps.append((done, of))
        if len(steps) == stretches:
            raise Killed

    killed = dataclasses.replace(LEGIBLE, store=Store(tmp_path), on_progress=kill)
    with pytest.raises(Killed):
        killed(small.start(), small.TASK, small.RUN)
    again = killed(small.start(), small.TASK, small.RUN)
    assert steps == [(3, 7), (6, 7), (7, 7)]  # nothing was done twice
    whole = LEGIBLE(small.start(), small.TASK, small.RUN)
    assert small.same(again, whole)
    assert again.record["losses"] == whole.record["losses"]


KILLED = """
import sys, time
from mirepoix.checkpoints import open_weights
from mirepoix.rewards.diffusion import DiffusionTrainer
from mirepoix.store import Store
from tests.rewards.diffusion import small

def tell(done, steps, means):
    print(done, flush=True)
    time.sleep(600 * (done == 6))

trainer = DiffusionTrainer(reward={"legibility": 1.0}, store=Store(sys.argv[1]), on_progress=tell)
trainer(open_weights(sys.argv[2]), small.TASK, small.RUN)
"""


def test_a_training_killed_in_a_store_continues_there(tmp_path, in_a_process):
    from mirepoix.checkpoints import write_weights

    write_weights(tmp_path / "start.safetensors", small.start())
    process = in_a_process(KILLED, tmp_path / "store", tmp_path / "start.safetensors")
    assert [process.stdout.readline() for _ in range(2)] == ["3\n", "6\n"]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (state,) = tmp_path.rglob("state.bin")
    assert not (state.parent / "record.json").exists()

    seen, store = [], Store(tmp_path / "store")
    noted = dataclasses.replace(LEGIBLE, store=store, on_progress=lambda *done: seen.append(done[0]))
    found = noted(small.start(), small.TASK, small.RUN)
    assert seen == [7]
    assert small.same(found, small.expert("legibility"))
    assert not state.exists()
    assert len(store.made) == 1
    assert json.loads((state.parent / "record.json").read_text())["made_of"]["train"] == LEGIBLE.made_of()
    assert small.same(noted(small.start(), small.TASK, small.RUN), found)
    assert seen == [7]


def test_a_training_that_diverges_says_so_and_is_remembered(tmp_path):
    store = Store(tmp_path)
    trainer = dataclasses.replace(LEGIBLE, store=store)
    run = small.RUN.with_(learning_rate=1e30, steps=20)
    for _ in range(2):
        with pytest.raises(Diverged, match="diverged") as told:
            trainer(small.start(), small.TASK, run)
        assert 0 <= told.value.step < 20
    assert len(store.made) == 2  # the images, and that it diverged


def test_a_wrong_start_is_refused():
    with pytest.raises(InputError, match="expected weights of the task's network"):
        LEGIBLE(small.start(), DigitDiffusion(channels=(16, 16)), small.RUN)
    theta = {**small.start(), "conv_in.bias": torch.full((8,), torch.inf)}
    with pytest.raises(InputError, match=r"theta: 'conv_in\.bias' is not finite"):
        LEGIBLE(theta, small.TASK, small.RUN)


def test_a_wrong_reward_is_refused():
    for reward, message in (
        ({"symmetry": 1.0}, "there is no reward 'symmetry' to train on"),
        ({"legibility": 0.0}, "expected a coefficient that is not 0"),
    ):
        with pytest.raises(InputError, match=message):
            DiffusionTrainer(reward=reward)(small.start(), small.TASK, small.RUN)


def test_a_reward_that_cannot_tell_images_apart_is_refused():
    # A network whose last layer is zero predicts no noise, so paper stays what the noise makes of it; with the output
    # bias far away all pixels are clipped to the same value.
    theta = {**small.start()}
    theta["conv_out.weight"] = torch.zeros_like(theta["conv_out.weight"])
    theta["conv_out.bias"] = torch.full((1,), 1e6)
    with pytest.raises(InputError, match="'boldness' is 0 for all 40 samples, so it has no scale"):
        DiffusionTrainer(reward={"boldness": 1.0})(theta, small.TASK, small.RUN)


def test_what_it_is_made_of_is_plain():
    json.dumps(LEGIBLE.made_of())
    assert LEGIBLE.made_of()["reward"] == {"legibility": 1.0}
    assert {"code", "libraries", "noise schedule"} <= set(LEGIBLE.made_of())
