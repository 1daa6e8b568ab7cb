"""Torch files read without torch: `torch.load(weights_only=True)` is the oracle."""

from __future__ import annotations

import datetime
import pathlib
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints import hostile

from mirepoix.checkpoints import Checkpoint, fingerprint, open_weights, write_weights
from mirepoix.checkpoints._tensors import DTYPES, raw
from mirepoix.types import UnsafeCheckpoint


def assert_same(opened, expected):
    assert list(opened) == list(expected)
    for name, tensor in expected.items():
        assert opened[name].dtype == tensor.dtype
        assert opened[name].shape == tensor.shape
        assert opened.shapes[name] == tuple(tensor.shape)
        assert opened.dtypes[name] == str(tensor.dtype).removeprefix("torch.")
        assert bytes(raw(name, opened[name]).data) == bytes(raw(name, tensor).data)
        assert bytes(opened.raw(name).data) == bytes(raw(name, tensor).data)
        assert not opened[name].requires_grad


def round_trip(path, value, **options):
    torch.save(value, path, **options)
    return open_weights(path), torch.load(path, weights_only=True)


views = st.integers(1, 4).flatmap(
    lambda rank: st.tuples(
        st.lists(st.integers(1, 4), min_size=rank, max_size=rank),
        st.permutations(range(rank)),
        st.integers(0, 3),
    )
)


@given(views=st.lists(views, min_size=1, max_size=4), data=st.data())
def test_any_view_shows_what_torch_shows(tmp_path_factory, views, data):
    theta = {}
    for number, (shape, order, skip) in enumerate(views):
        base = torch.arange(skip + float(np.prod(shape)))[skip:].reshape(shape).permute(order)
        steps = [data.draw(st.integers(1, 3)) for _ in shape]
        theta[str(number)] = base[tuple(slice(None, None, step) for step in steps)]
    path = tmp_path_factory.mktemp("law") / "w.pt"
    opened, expected = round_trip(path, theta)
    assert_same(opened, expected)
    for name, tensor in theta.items():
        content = raw(name, tensor).data
        start = data.draw(st.integers(0, len(content)))
        part = np.zeros(data.draw(st.integers(0, len(content) - start)), dtype=np.uint8)
        opened.read_into(name, start, part.data)
        assert part.tobytes() == bytes(content[start : start + len(part)])


@pytest.mark.parametrize("dtype", [name for name, _ in DTYPES.values()])
def test_every_dtype(tmp_path, dtype):
    values = torch.arange(24, dtype=torch.uint8).view(getattr(torch, dtype))
    if dtype == "bool":
        values = torch.tensor([True, False, True, True])
    assert_same(*round_trip(tmp_path / "w.pt", {"w": values, "column": values.reshape(-1, 1)}))


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_protocol(tmp_path, protocol):
    saved = {
        "w": torch.ones(2),
        "n": 2**40,
        "t": (1, -2, 2.5, None, True),
        "s": {"ä"},
        "b": b"x",
        "l": [[1]] * 2000,
    }
    saved |= {
        "lr": -1,
        "parameter": torch.nn.Parameter(torch.zeros(3)),
        "f": frozenset({1}),
        "long": "x" * 5000,
    }
    torch.save(saved, tmp_path / "w.pt", pickle_protocol=protocol)
    opened = open_weights(tmp_path / "w.pt")
    assert_same(opened, {name: saved[name].detach() for name in ("w", "parameter")})


def test_shapes_that_are_special(tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    theta = {
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "empty view": torch.arange(4.0)[4:],
        "transposed": base.transpose(0, 2),
        "channels last": base[None].to(memory_format=torch.channels_last),
        "one": base[:1, :, :1],
        "diagonal": base[0, :, :3].diagonal(),
        "offset": base[1],
        "once expanded": torch.ones(1, 4).expand(1, 4),
    }
    opened, loaded = round_trip(tmp_path / "w.pt", theta)
    assert_same(opened, loaded)
    assert opened.aliases == {}
    assert opened.nbytes == sum(tensor.nbytes for tensor in loaded.values())


def test_tied_weights_are_aliases(tmp_path):
    class Language(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(5, 3)
            self.norm = torch.nn.BatchNorm1d(3)
            self.head = torch.nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    theta = Language().state_dict()
    assert theta._metadata  # which torch pickles as an attribute
    opened, loaded = round_trip(tmp_path / "w.pt", theta)
    assert_same(opened, loaded)
    assert opened.aliases == {"head.weight": "embed.weight"}
    assert opened.nbytes == sum(tensor.nbytes for name, tensor in theta.items() if name != "head.weight")
    again = {"a": theta["embed.weight"], "b": theta["embed.weight"].T, "c": theta["embed.weight"][:2]}
    opened, loaded = round_trip(tmp_path / "w.pt", again)
    assert_same(opened, loaded)
    assert opened.aliases == {}  # one storage, but other tensors


def test_parameters_with_attributes_and_buffers(tmp_path):
    parameter = torch.nn.Parameter(torch.arange(3.0))
    parameter.layer = 4
    theta = {"w": parameter, "b": torch.nn.Buffer(torch.ones(2)), "t": torch.nn.Parameter(torch.ones(2, 3).T)}
    torch.save(theta, tmp_path / "w.pt")
    opened = open_weights(tmp_path / "w.pt")
    assert_same(opened, {name: tensor.detach() for name, tensor in theta.items()})


def test_what_training_leaves_beside_the_weights(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(2, 1, 5, 5)).sum().backward()
    optimizer.step()
    # As Lightning, timm and the trainers of transformers save them.
    saved = {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": network.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": {"lr": 1e-3, "path": pathlib.PurePosixPath("a"), "args": Namespace(x=1)},
        "counts": Counter("aab"),
        "default": defaultdict(list, a=[1]),
        "when": datetime.datetime(2026, 1, 1),
        "numpy": (np.float64(2.5), np.arange(3), np.dtype("f4"), np.bool_(True)),
        "rng": np.random.RandomState(0).get_state(),
        "cuda": (torch.float16, torch.device("cpu"), torch.Size([2, 3]), torch.strided),
    }
    for protocol in (2, 4):
        torch.save(saved, tmp_path / "w.ckpt", pickle_protocol=protocol)
        assert_same(open_weights(tmp_path / "w.ckpt"), network.state_dict())


@pytest.mark.parametrize("wide", [False, True])
def test_archives_others_packed(tmp_path, wide):
    theta = {"w": torch.arange(4.0)}
    path = tmp_path / "w.pt"
    torch.save(theta, path)
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    path.write_bytes(hostile.archive(members, wide=wide))
    assert_same(open_weights(path), theta)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            with archive.open(name, "w", force_zip64=wide) as member:
                member.write(data)
    assert_same(open_weights(path), theta)


def test_names_of_any_kind(tmp_path):
    theta = {
        "": torch.ones(1),
        "../../etc": torch.ones(2),
        "ä" * 2048: torch.ones(3),
        "x\n[31m": torch.ones(4),
    }
    assert_same(*round_trip(tmp_path / "w.pt", theta))


def test_a_conjugate_needs_torch(tmp_path):
    theta = {"w": torch.tensor([1 + 2j]).conj()}
    torch.save(theta, tmp_path / "w.pt")
    with pytest.raises(UnsafeCheckpoint, match=r"\[view-odd\]"):
        open_weights(tmp_path / "w.pt")
    opened = open_weights(tmp_path / "w.pt", allow_torch_load=True)
    assert fingerprint(opened) == fingerprint(theta)


def test_old_files_behave_alike(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    theta = {"module.a": base, "module.b": base, "module.t": base.T, "module.n": torch.tensor(3)}
    torch.save({"state_dict": theta, "epoch": 3}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeCheckpoint, match=r"allow_torch_load=True.*\[legacy-torch\]"):
        open_weights(tmp_path / "w.pth")
    opened = open_weights(tmp_path / "w.pth", allow_torch_load=True)
    assert isinstance(opened, Checkpoint)
    assert_same(opened, {name.removeprefix("module."): tensor for name, tensor in theta.items()})
    assert opened.aliases == {"b": "a"}
    part = bytearray(8)
    opened.read_into("t", 4, memoryview(part))
    assert np.frombuffer(part, "f4").tolist() == [3, 1]
    with pytest.raises(TypeError):
        opened["a"] = base
    opened["a"].zero_()
    assert opened["a"].sum() == 15
    write_weights(tmp_path / "w.safetensors", opened)
    assert fingerprint(open_weights(tmp_path / "w.safetensors")) == fingerprint(opened)


def test_torch_is_not_imported(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    torch.save(OrderedDict(w=base.T, tied=base.T, p=torch.nn.Parameter(base)), tmp_path / "w.pt")
    code = """
import sys
from mirepoix.checkpoints import open_weights
theta = open_weights("w.pt", framework="numpy")
assert theta["w"].tolist() == [[0, 3], [1, 4], [2, 5]] and theta.aliases == {"tied": "w"}
sys.exit("torch" in sys.modules or "pickle" in str(theta.record))
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
