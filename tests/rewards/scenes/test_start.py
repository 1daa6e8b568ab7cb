import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="pip install 'mirepoix[text]'")

from mirepoix.rewards.scenes import scene_start
from mirepoix.store import Store
from mirepoix.types import Diverged, InputError
from tests.rewards.scenes import small


def test_same_arguments_same_bits_and_nothing_global_changes():
    torch.manual_seed(99)
    threads, before = torch.get_num_threads(), torch.get_rng_state()
    arrays = np.random.get_state()[1].copy()  # noqa: NPY002
    assert small.same(scene_start(small.TASK, **small.START), small.start())
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == arrays).all()  # noqa: NPY002
    assert torch.get_num_threads() == threads


def test_every_argument_counts():
    short = {**small.START, "steps": 3}
    found = [
        scene_start(small.TASK, **{**short, **change})
        for change in (
            {},
            {"seed": 1},
            {"steps": 4},
            {"batch_size": 6},
            {"learning_rate": 1e-3},
            {"width": 32},
            {"layers": 1},
        )
    ] + [scene_start(small.Strokes(seed=1), **short)]
    for place, one in enumerate(found):
        assert not any(small.same(one, other) for other in found[:place])


def test_the_loss_falls():
    losses = [row["loss"] for row in scene_start(small.TASK, **small.START).record["history"]]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])


KILLED = """
import sys, time
from mirepoix.rewards.scenes import scene_start
from mirepoix.store import Store
from tests.rewards.scenes import small

def tell(done, steps, noted):
    print(done, flush=True)
    time.sleep(600 * (done == 110))

scene_start(small.TASK, Store(sys.argv[1]), **{**small.START, "steps": 120}, on_progress=tell)
"""


def test_a_start_killed_in_a_store_continues_there(tmp_path, root):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for _ in range(110):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (state,) = tmp_path.rglob("state.bin")
    assert not list(tmp_path.rglob("record.json"))

    seen, store = [], Store(tmp_path)
    options = {**small.START, "steps": 120}
    found = scene_start(small.TASK, store, **options, on_progress=lambda *done: seen.append(done[0]))
    assert seen == list(range(101, 121))  # a state is saved every 100 steps
    assert small.same(found, scene_start(small.TASK, **options))
    assert not state.exists()
    assert json.loads((state.parent / "record.json").read_text())["made_of"]["task"] == small.TASK.digest
    assert len(found.record["history"]) == 120
    assert small.same(scene_start(small.TASK, store, **options), found)
    assert len(store.made) == 1


def test_a_start_that_diverges_says_so_and_is_remembered(tmp_path):
    store, wild = Store(tmp_path), {**small.START, "learning_rate": 1e30}
    with pytest.raises(Diverged, match=r"not finite|the loss is (nan|inf)") as told:
        scene_start(small.TASK, store, **wild)
    with pytest.raises(Diverged) as again:
        scene_start(small.TASK, store, **wild)
    assert len(store.made) == 1
    assert str(again.value) == str(told.value)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("steps", 0, "steps: expected at least 1, got 0"),
        ("batch_size", 0, "batch_size: expected at least 1, got 0"),
        ("learning_rate", float("nan"), "learning_rate: expected a positive number, got nan"),
        ("width", 8, "width: expected a multiple of 16, got 8"),
    ],
)
def test_wrong_options_are_refused(option, value, message):
    with pytest.raises(InputError, match=message):
        scene_start(small.TASK, **{**small.START, option: value})
