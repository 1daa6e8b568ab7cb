import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import mirepoix
from mirepoix.checkpoints import fingerprint
from mirepoix.models import initial_weights
from mirepoix.runs import Run
from mirepoix.store import Store, cached, code_version, key_of, result_key
from mirepoix.strategies import diwa, moving_average
from mirepoix.training import Loop, Trainer
from mirepoix.types import Diverged, InputError
from tests.tiny import tiny_network, tiny_task

RUN = Run(seed=1, steps=6, learning_rate=1e-3, batch_size=2, check_every=3, average_from=2)


class Data:
    """A user's own task: all the store asks for is a digest."""

    def __init__(self, digest="d"):
        self.digest = digest


class Counting:
    """A user's own training, in NumPy."""

    def __init__(self):
        self.calls = 0

    def __call__(self, theta, task, run):
        self.calls += 1
        return {"w": next(iter(theta.values())) * 2 + run.seed}


THETA = {"w": np.arange(3.0)}


def lookup(store, train, made_of=None):
    return cached(train, store, made_of=made_of or {"name": "doubling", "version": 1})


def test_a_result_is_made_once(tmp_path):
    train = Counting()
    for _ in range(3):
        result = lookup(Store(tmp_path), train)(THETA, Data(), RUN)
        assert result["w"].tolist() == [1, 3, 5]
    assert train.calls == 1


@pytest.mark.parametrize(
    "other",
    [
        {"theta": {"w": np.arange(3.0) + 1e-12}},
        {"theta": {"v": np.arange(3.0)}},
        {"task": Data("e")},
        {"run": RUN.with_(seed=2)},
        {"run": RUN.with_(learning_rate=1.1e-3)},
        {"made_of": {"name": "doubling", "version": 2}},
    ],
)
def test_everything_that_decides_a_result_is_part_of_its_key(tmp_path, other):
    train, store = Counting(), Store(tmp_path)
    lookup(store, train)(THETA, Data(), RUN)
    again = lookup(store, train, other.get("made_of"))
    again(other.get("theta", THETA), other.get("task", Data()), other.get("run", RUN))
    assert train.calls == 2


def test_a_training_that_does_not_say_what_it_is_made_of_is_refused(tmp_path):
    with pytest.raises(InputError, match="nothing says what"):
        cached(lambda theta, task, run: theta, Store(tmp_path))


def test_a_task_without_digest_is_refused(tmp_path):
    with pytest.raises(InputError, match="needs a `digest`"):
        lookup(Store(tmp_path), Counting())(THETA, "my data", RUN)


def test_a_record_lies_beside_every_result(tmp_path):
    store = Store(tmp_path)
    result = lookup(store, Counting())(THETA, Data(), RUN)
    record = result.record
    assert record["made_of"]["run"]["learning_rate"] == 1e-3
    assert record["made_of"]["train"] == {"name": "doubling", "version": 1}
    assert set(record["environment"]) >= {"python", "torch", "mirepoix"}
    assert result.path == store.entry("weights", store.made[0]) / "best.safetensors"
    assert json.loads((result.path.parent / "record.json").read_text()) == record


@pytest.mark.parametrize("harm", ["flip", "shorten", "remove", "record", "empty record", "other number"])
def test_a_damaged_result_is_set_aside_and_made_again(tmp_path, caplog, harm):
    train, store = Counting(), Store(tmp_path)
    path = lookup(store, train)(THETA, Data(), RUN).path
    if harm == "flip":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif harm == "shorten":
        path.write_bytes(path.read_bytes()[:-4])
    elif harm == "remove":
        path.unlink()
    elif harm == "record":
        (path.parent / "record.json").write_text("{")
    elif harm == "other number":
        record = path.parent / "record.json"
        record.write_text(record.read_text().replace('"steps": 6', '"steps": 7'))
    else:
        (path.parent / "record.json").write_text("{}")
    result = lookup(store, train)(THETA, Data(), RUN)
    assert result["w"].tolist() == [1, 3, 5]
    assert train.calls == 2
    assert "damaged" in caplog.text
    assert len(list((tmp_path / "damaged").iterdir())) == 1
    lookup(store, train)(THETA, Data(), RUN)
    assert train.calls == 2


def test_results_that_are_damaged_again_and_again_are_all_kept_aside(tmp_path):
    store = Store(tmp_path)
    for aside in (1, 2, 2, 3):
        lookup(store, Counting())(THETA, Data(), RUN).path.write_bytes(b"x")
        lookup(store, Counting())(THETA, Data(), RUN)
        kept = sorted((tmp_path / "damaged").iterdir())
        assert len(kept) == aside
        if len(kept) == 2 and aside == 2 and not (tmp_path / "once").exists():
            shutil.rmtree(kept[0])  # a person tidies up: numbers must not collide
            (tmp_path / "once").touch()


def test_what_a_killed_process_left_beside_a_finished_result_is_removed(tmp_path):
    train, store = Counting(), Store(str(tmp_path))
    entry = lookup(store, train)(THETA, Data(), RUN).path.parent
    for name in ("state.bin", "lock", ".best.safetensors.123-0a1b2c3d.tmp"):
        (entry / name).write_bytes(b"")
    lookup(store, train)(THETA, Data(), RUN)
    assert train.calls == 1
    assert sorted(path.name for path in entry.iterdir()) == ["best.safetensors", "record.json"]


def test_a_failed_training_leaves_nothing_that_looks_finished(tmp_path):
    def fail(theta, task, run):
        raise RuntimeError("no")

    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="no"):
        lookup(store, fail)(THETA, Data(), RUN)
    train = Counting()
    lookup(store, train)(THETA, Data(), RUN)
    assert train.calls == 1


def test_nothing_temporary_is_left(tmp_path):
    store = Store(tmp_path)
    split, theta = tiny_task().split("domain_0"), initial_weights(tiny_network())
    cached(Trainer(tiny_network(), loop=Loop(save_every=0.0)), store)(theta, split, RUN)
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"best.safetensors", "last.safetensors", "moving_average.safetensors", "record.json"}


def test_one_training_serves_all_that_is_collected_along_it(tmp_path):
    store = Store(tmp_path)
    train = cached(Trainer(tiny_network()), store)
    split, theta = tiny_task().split("domain_0"), initial_weights(tiny_network())
    best = diwa(train, theta, split, [RUN], combine=list)[0]
    mean = moving_average(train, theta, split, RUN)
    assert len(store.made) == 1
    assert best.path.name == "best.safetensors"
    assert mean.path.name == "moving_average.safetensors"
    plain = Trainer(tiny_network()).fit(theta, split, RUN).weights
    for name, theta_ in (("best", best), ("moving_average", mean)):
        assert all(torch.equal(theta_[k], plain[name][k]) for k in plain[name])


def test_a_diverged_run_is_remembered_with_its_reason(tmp_path):
    store = Store(tmp_path)
    train = cached(Trainer(tiny_network()), store)
    split, theta = tiny_task().split("domain_0"), initial_weights(tiny_network())
    wild = RUN.with_(learning_rate=1e30, optimizer="sgd")
    messages = []
    for _ in range(2):
        with pytest.raises(Diverged) as error:
            train(theta, split, wild)
        messages.append((str(error.value), error.value.step))
    assert messages[0] == messages[1]
    assert len(store.made) == 1


def test_keys_do_not_depend_on_the_order_of_what_they_name():
    assert key_of({"a": 1, "b": {"c": 2.5, "d": None}}) == key_of({"b": {"d": None, "c": 2.5}, "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    with pytest.raises(ValueError, match="JSON"):
        key_of({"a": float("nan")})


def test_the_code_version_changes_with_the_sources(tmp_path, monkeypatch):
    import mirepoix.store as room

    copy = tmp_path / "mirepoix"
    shutil.copytree(Path(room.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(room.resources, "files", lambda name: copy)
    versions = []
    for change in ("", "# another line\n"):
        with (copy / "training" / "_trainer.py").open("a") as file:
            file.write(change)
        versions.append(code_version.__wrapped__())
    with (copy / "report" / "_page.py").open("a") as file:  # decides nothing
        file.write("# another line\n")
    assert versions[0] == code_version()
    assert versions[1] != versions[0]
    assert code_version.__wrapped__() == versions[1]


def _slowly(path: str, started: str) -> None:
    def train(theta, task, run):
        Path(started).write_text("x")
        time.sleep(1.5)
        return {"w": theta["w"] + os.getpid()}

    lookup(Store(Path(path)), train)(THETA, Data(), RUN)


def test_two_processes_do_not_make_the_same_result_twice(tmp_path):
    context = multiprocessing.get_context("fork")
    started = tmp_path / "started"
    other = context.Process(target=_slowly, args=(str(tmp_path / "store"), str(started)))
    other.start()
    while not started.exists():
        time.sleep(0.01)
    train = Counting()
    logging.getLogger("mirepoix").setLevel(logging.INFO)
    result = lookup(Store(tmp_path / "store"), train)(THETA, Data(), RUN)
    other.join()
    assert other.exitcode == 0
    assert train.calls == 0
    assert result["w"][0] == other.pid
    assert not list(tmp_path.rglob("lock"))


def test_a_lock_dies_with_its_process(tmp_path):
    code = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from pathlib import Path
        from tests.test_store import lookup, Store, THETA, Data, RUN
        def train(theta, task, run):
            os.kill(os.getpid(), signal.SIGKILL)
        lookup(Store(Path({str(tmp_path)!r})), train)(THETA, Data(), RUN)
    """)
    process = subprocess.run([sys.executable, "-c", code], check=False)
    assert process.returncode == -signal.SIGKILL
    train = Counting()
    assert lookup(Store(tmp_path), train)(THETA, Data(), RUN)["w"].tolist() == [1, 3, 5]
    assert train.calls == 1
    assert not list(tmp_path.rglob("lock"))


def test_the_key_of_a_result_is_known_before_it_is_made(tmp_path):
    store, trainer = Store(tmp_path), Trainer(tiny_network())
    split, theta = tiny_task().split("domain_0"), initial_weights(tiny_network())
    key = result_key(trainer, theta, split, RUN)
    assert store.record("weights", key) is None
    made = cached(trainer, store)(theta, split, RUN)
    assert store.made == [key]
    assert made.path.parent.name == key
    assert result_key(trainer, fingerprint(theta), split, RUN) == key
    # One training serves every collector that is kept, so they share a key; another has its own.
    assert result_key(trainer, theta, split, RUN.with_(collect="last")) == key
    assert result_key(trainer, theta, split, RUN.with_(collect="ema")) != key
    others = [
        result_key(trainer, theta, split, RUN.with_(seed=2)),
        result_key(trainer, theta, tiny_task().split("domain_1"), RUN),
        result_key(trainer, made, split, RUN),
        result_key(Trainer(tiny_network(), watch_left_out=True), theta, split, RUN),
    ]
    assert len({key, *others}) == 5


def test_a_key_needs_a_trainer_that_says_what_it_is_and_a_task_with_a_digest():
    with pytest.raises(InputError, match="nothing says what"):
        result_key(lambda theta, task, run: theta, THETA, Data(), RUN)
    with pytest.raises(InputError, match="the task needs a `digest`"):
        result_key(Trainer(tiny_network()), THETA, object(), RUN)


def test_a_record_is_read_without_its_files(tmp_path):
    store = Store(tmp_path)
    result = lookup(store, Counting())(THETA, Data(), RUN)
    key = store.made[0]
    result.path.write_bytes(b"x")
    assert store.record("weights", key) == result.record
    assert store.find("weights", key) is None
    for text in ("{", "[1, 2]", ""):
        (result.path.parent / "record.json").write_text(text)
        assert store.record("weights", key) is None
    assert store.record("weights", "0" * 32) is None
    assert store.record("predictions", key) is None


def test_a_record_tells_a_diverged_run(tmp_path):
    store, trainer = Store(tmp_path), Trainer(tiny_network())
    split, theta = tiny_task().split("domain_0"), initial_weights(tiny_network())
    wild = RUN.with_(learning_rate=1e30, optimizer="sgd")
    with pytest.raises(Diverged):
        cached(trainer, store)(theta, split, wild)
    record = store.record("weights", result_key(trainer, theta, split, wild))
    assert record["status"] == "diverged"
    assert record["files"] == {}


def test_a_result_that_depends_on_more_files_has_their_digest(monkeypatch, tmp_path):
    package = tmp_path / "mirepoix"
    shutil.copytree(Path(mirepoix.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("mirepoix.store.resources.files", lambda name: package)
    also = ("merging/_fisher.py", "diversity")

    def versions():
        code_version.cache_clear()
        return code_version(), code_version(*also)

    try:
        before = versions()
        assert before[0] != before[1]
        for name in ("merging/_fisher.py", "diversity/_ratio_error.py"):
            (package / name).write_text((package / name).read_text() + "\n")
            after = versions()
            assert after[0] == before[0]
            assert after[1] != before[1]
            before = after
    finally:
        code_version.cache_clear()
