"""Reading parts of tensors: the right bytes, few files open, and no change unnoticed."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints import hostile

from mirepoix.checkpoints import Checkpoint, open_weights, write_weights
from mirepoix.checkpoints._reader import read_at, read_bytes
from mirepoix.types import InputError


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def read(checkpoint, name, start, length):
    part = bytearray(length)
    checkpoint.read_into(name, start, memoryview(part))
    return bytes(part)


@pytest.fixture
def path(tmp_path):
    write_weights(
        tmp_path / "w.safetensors",
        {"a": np.arange(1000, dtype="f4"), "b": np.arange(7, dtype="u1"), "empty": np.ones((0, 2))},
        metadata={"mirepoix.aliases": '{"tied": "a", "again": "a"}'},
    )
    return tmp_path / "w.safetensors"


def test_what_a_checkpoint_says_without_reading(path):
    checkpoint = Checkpoint(path)
    assert sorted(checkpoint) == ["a", "again", "b", "empty", "tied"]
    assert checkpoint.codes == {"a": "F32", "b": "U8", "empty": "F64", "tied": "F32", "again": "F32"}
    assert checkpoint.aliases == {"tied": "a", "again": "a"}
    assert checkpoint.files == (path,)
    assert checkpoint.nbytes == 4007
    assert checkpoint.config is None
    assert torch.equal(checkpoint["tied"], checkpoint["a"])


@given(start=st.integers(0, 4000), length=st.integers(0, 4000))
def test_any_part_of_a_tensor(tmp_path_factory, start, length):
    path = tmp_path_factory.mktemp("law") / "w.safetensors"
    values = np.arange(1000, dtype="f4")
    write_weights(path, {"a": values})
    with Checkpoint(path) as checkpoint:
        if start + length <= 4000:
            assert read(checkpoint, "a", start, length) == values.tobytes()[start : start + length]
        else:
            with pytest.raises(ValueError, match="a: expected bytes within 0 to 4000"):
                read(checkpoint, "a", start, length)


def test_buffers_of_any_type(path):
    with Checkpoint(path) as checkpoint:
        values = np.empty((2, 5), dtype="f4")
        checkpoint.read_into("a", 40, memoryview(values))
        assert values.ravel().tolist() == list(range(10, 20))
        checkpoint.read_into("empty", 0, memoryview(b"").cast("B"))
        with pytest.raises(ValueError, match="within 0 to 4000, got -4"):
            checkpoint.read_into("a", -4, memoryview(values))
        with pytest.raises(KeyError):
            checkpoint.read_into("c", 0, memoryview(values))


def test_one_file_is_open_between_reads_and_none_after(path):
    before = descriptors()
    checkpoints = [Checkpoint(path) for _ in range(50)]
    for checkpoint in checkpoints:
        assert checkpoint["b"].sum() == 21
        assert checkpoint.raw("b").data.nbytes == 7
    assert descriptors() == before  # opening, and reading whole tensors, leaves nothing open
    with checkpoints[0] as checkpoint:
        for start in range(5):
            read(checkpoint, "b", start, 1)
            assert descriptors() == before + 1
            assert checkpoint["b"].sum() == 21
    assert descriptors() == before
    assert read(checkpoint, "b", 3, 2) == b"\3\4"  # opened again
    del checkpoint, checkpoints
    assert descriptors() == before
    with pytest.raises(InputError):
        Checkpoint(path.with_suffix(".pt"))


def test_shards_share_one_open_file(tmp_path):
    names = {}
    for i in range(5):
        write_weights(tmp_path / f"model-{i}.safetensors", {f"w{i}": np.full(3, i, dtype="u1")})
        names[f"w{i}"] = f"model-{i}.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {names}}}'.replace("'", '"'))
    before = descriptors()
    with Checkpoint(tmp_path) as checkpoint:
        for i in (0, 1, 1, 4, 0):
            assert read(checkpoint, f"w{i}", 0, 3) == bytes([i] * 3)
            assert descriptors() == before + 1
    assert descriptors() == before


@pytest.mark.parametrize("kind", ["safetensors", "pt", "shards"])
def test_threads_share_a_checkpoint(tmp_path, kind):
    values = {f"w{i}": np.random.default_rng(i).integers(0, 256, 5000, dtype="u1") for i in range(4)}
    if kind == "pt":
        path = tmp_path / "w.pt"
        torch.save({name: torch.from_numpy(value).reshape(50, 100).T for name, value in values.items()}, path)
        values = {
            name: np.ascontiguousarray(value.reshape(50, 100).T).ravel() for name, value in values.items()
        }
    elif kind == "shards":
        path = tmp_path
        for name, value in values.items():
            write_weights(path / f"{name}.safetensors", {name: value})
        names = ", ".join(f'"{name}": "{name}.safetensors"' for name in values)
        (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{names}}}}}')
    else:
        path = tmp_path / "w.safetensors"
        write_weights(path, values)
    checkpoint, wrong = Checkpoint(path, framework="numpy"), []

    def work(seed):
        draw = np.random.default_rng(seed)
        for _ in range(300):
            name, start = f"w{draw.integers(4)}", int(draw.integers(4000))
            if read(checkpoint, name, start, 1000) != values[name][start : start + 1000].tobytes():
                wrong.append(name)
            if not np.array_equal(checkpoint[name].ravel(), values[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    checkpoint.close()


@pytest.mark.parametrize("change", ["replaced", "grown", "cut", "touched", "gone"])
@pytest.mark.parametrize("is_open", [False, True])
def test_a_change_is_noticed_by_the_next_read(path, change, is_open):
    checkpoint = Checkpoint(path)
    if is_open:
        read(checkpoint, "a", 0, 4)
    if change == "replaced":
        write_weights(path, {"a": np.zeros(1000, "f4")})
    elif change == "grown":
        with path.open("ab") as file:
            file.write(b"x")
    elif change == "cut":
        os.truncate(path, path.stat().st_size - 10)
    elif change == "touched":
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    if is_open and change in ("replaced", "gone"):  # the open file is still the one whose header was read
        assert read(checkpoint, "a", 4, 4) == np.float32(1).tobytes()
        checkpoint.close()
    expected = (
        "nothing there" if change == "gone" else "changed while open, 'a' cannot be read. Open it again"
    )
    with pytest.raises(InputError, match=expected):
        read(checkpoint, "a", 0, 4)
    with pytest.raises(InputError, match=expected):
        checkpoint["a"]


def test_a_tensor_out_of_order_is_gathered_once(tmp_path, monkeypatch):
    base = torch.arange(30.0).reshape(5, 6)
    torch.save({"w": base.T, "v": base[:, ::2]}, tmp_path / "w.pt")
    checkpoint = Checkpoint(tmp_path / "w.pt")
    whole, read_whole = [], Checkpoint.raw
    monkeypatch.setattr(Checkpoint, "raw", lambda self, name: whole.append(name) or read_whole(self, name))
    for name, expected in (("w", base.T), ("v", base[:, ::2]), ("w", base.T)):
        content = expected.contiguous().numpy().tobytes()
        parts = [read(checkpoint, name, start, 12) for start in range(0, len(content), 12)]
        assert b"".join(parts) == content
    assert whole == ["w", "v", "w"]
    assert torch.equal(checkpoint["v"], base[:, ::2])


def test_a_copy_is_opened_in_the_same_way(tmp_path):
    path = tmp_path / "w.pt"
    value = hostile.mapping(
        ("model", hostile.mapping(("w", hostile.tensor((2, 4), (0, 1))))),
        ("teacher", hostile.mapping(("v", hostile.tensor((4,))))),
    )
    path.write_bytes(hostile.torch_file(value))
    checkpoint = Checkpoint(path, framework="numpy", container="model", allow_expand=True, max_bytes=100)
    read(checkpoint, "w", 0, 4)
    for other in (pickle.loads(pickle.dumps(checkpoint)), copy.copy(checkpoint), copy.deepcopy(checkpoint)):
        assert other["w"].shape == (2, 4)
        assert isinstance(other["w"], np.ndarray)
    checkpoint.close()


def test_the_record_is_that_of_the_weights(tmp_path):
    write_weights(tmp_path / "model.safetensors", {"w": np.ones(1)}, record={"a": 1})
    assert Checkpoint(tmp_path / "model.safetensors").record == Checkpoint(tmp_path).record == {"a": 1}
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pt")
    assert Checkpoint(tmp_path / "w.pt").record is None


def test_short_reads_are_completed(tmp_path, monkeypatch):
    (tmp_path / "w").write_bytes(bytes(range(100)))
    descriptor = os.open(tmp_path / "w", os.O_RDONLY)
    preadv, pread = os.preadv, os.pread
    monkeypatch.setattr(os, "preadv", lambda file, buffers, start: preadv(file, [buffers[0][:7]], start))
    monkeypatch.setattr(os, "pread", lambda file, count, start: pread(file, min(count, 7), start))
    buffer = bytearray(50)
    assert read_at(descriptor, 20, memoryview(buffer))
    assert buffer == bytes(range(20, 70))
    assert not read_at(descriptor, 60, memoryview(buffer))
    assert read_bytes(descriptor, 20, 50) == bytes(range(20, 70))
    assert read_bytes(descriptor, 90, 50) == bytes(range(90, 100))
    os.close(descriptor)


def test_what_is_opened_knows_its_options(tmp_path):
    write_weights(tmp_path / "w.safetensors", {"w": np.ones(1)})
    assert isinstance(open_weights(tmp_path / "w.safetensors"), Checkpoint)
    with pytest.raises(InputError, match="'torch' or 'numpy', got 'jax'"):
        open_weights(tmp_path / "w.safetensors", framework="jax")
