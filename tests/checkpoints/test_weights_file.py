"""Safetensors files: identity, determinism, laziness, damage; the reference library is the oracle."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mirepoix.checkpoints import Checkpoint, file_digest, fingerprint, open_weights, write_weights
from mirepoix.types import InputError

DTYPES = [
    "float64",
    "float32",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
]
arrays = st.sampled_from([*DTYPES, "bool", "complex64"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12).filter(
    lambda name: name != "__metadata__"
)
thetas = st.dictionaries(names, arrays, min_size=1, max_size=5)


def assert_same(theta, other):
    assert set(theta) == set(other)
    for name in theta:
        a, b = theta[name], other[name]
        assert a.dtype == b.dtype
        assert tuple(a.shape) == tuple(b.shape)
        same = torch.equal if isinstance(a, torch.Tensor) else lambda a, b: a.tobytes() == b.tobytes()
        assert same(a, b)


@given(theta=thetas)
def test_what_was_written_is_read(tmp_path_factory, theta):
    path = tmp_path_factory.mktemp("law") / "w.safetensors"
    write_weights(path, theta)
    assert_same(theta, open_weights(path, framework="numpy"))
    assert_same(theta, safetensors.numpy.load_file(path))  # the reference reads what we write
    in_torch = open_weights(path)
    assert fingerprint(theta) == fingerprint(in_torch) == fingerprint(dict(in_torch))
    assert fingerprint(open_weights(path, framework="numpy")) == fingerprint(theta)


@given(theta=thetas)
def test_what_the_reference_wrote_is_read(tmp_path_factory, theta):
    path = tmp_path_factory.mktemp("law") / "w.safetensors"
    safetensors.numpy.save_file(theta, path)
    assert_same(theta, open_weights(path, framework="numpy"))


@given(theta=thetas, other=thetas)
def test_fingerprints_are_equal_exactly_when_contents_are(theta, other):
    def content(weights):
        return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in weights.items()}

    assert (fingerprint(theta) == fingerprint(other)) == (content(theta) == content(other))
    assert fingerprint(theta) == fingerprint(dict(reversed(theta.items())))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"w": np.zeros(2, "f4")}, {"v": np.zeros(2, "f4")}),
        ({"w": np.zeros(2, "f4")}, {"w": np.zeros((1, 2), "f4")}),
        ({"w": np.zeros(2, "f4")}, {"w": np.zeros(1, "f8")}),
        ({"w": np.zeros(2, "f4")}, {"w": np.zeros(2, "i4")}),
        ({"w": np.zeros(2, "f4")}, {"w": np.array([0, 1e-45], "f4")}),
        ({"a": np.zeros(1, "u1"), "b": np.zeros(0, "u1")}, {"a": np.zeros(0, "u1"), "b": np.zeros(1, "u1")}),
    ],
    ids=["name", "shape", "size", "dtype", "last bit", "which of two"],
)
def test_fingerprint_sees(a, b):
    assert fingerprint(a) != fingerprint(b)


def test_torch_tensors_of_every_kind_come_back(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    theta = {
        "bfloat16": torch.randn(5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
        "float8": torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "transposed": base.T,
        "strided": base[:, ::2],
        "expanded": torch.ones(1).expand(4),
        "view": base[1],
        "tied": base,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "flag": torch.tensor([True, False]),
    }
    write_weights(tmp_path / "w.safetensors", theta)
    for read in (
        open_weights(tmp_path / "w.safetensors"),
        safetensors.torch.load_file(tmp_path / "w.safetensors"),
    ):
        assert set(read) == set(theta)
        for name in theta:
            assert read[name].dtype == theta[name].dtype
            assert read[name].shape == theta[name].shape
            assert torch.equal(read[name].to(torch.complex64), theta[name].detach().to(torch.complex64))
            assert not read[name].requires_grad
    assert fingerprint(read) == fingerprint(theta) == fingerprint(open_weights(tmp_path / "w.safetensors"))


def test_bytes_depend_on_content_alone(tmp_path):
    theta = {"b": np.arange(6, dtype="f4").reshape(2, 3), "a": np.int64(3), "c": np.ones(3, "u1")}
    variants = [
        theta,
        dict(reversed(theta.items())),
        {name: torch.from_numpy(np.array(value)) for name, value in theta.items()},
        {**theta, "b": np.asfortranarray(theta["b"])},
        {**theta, "b": theta["b"].astype(">f4")},
    ]
    digests = {write_weights(tmp_path / f"{i}.safetensors", variant) for i, variant in enumerate(variants)}
    digests.add(write_weights(tmp_path / "again.safetensors", Checkpoint(tmp_path / "0.safetensors")))
    (digest,) = digests
    assert digest == file_digest(tmp_path / "0.safetensors")
    assert digest == hashlib.sha256((tmp_path / "0.safetensors").read_bytes()).hexdigest()
    assert write_weights(tmp_path / "0.safetensors", theta, metadata={"y": "1", "x": "2"}) == write_weights(
        tmp_path / "1.safetensors", theta, metadata={"x": "2", "y": "1"}
    )


def test_every_tensor_is_aligned_to_its_elements(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(
        path, {"a": np.ones(3, "u1"), "b": np.ones(3, "f2"), "c": np.ones(1, "f8"), "d": np.ones(1, "f4")}
    )
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert (8 + length) % 8 == 0
    for name, size in {"a": 1, "b": 2, "c": 8, "d": 4}.items():
        assert header[name]["data_offsets"][0] % size == 0


def test_a_checkpoint_is_a_lazy_mapping(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(
        path, {"w": np.arange(3.0), "n": np.int64(2)}, record={"run": 1}, metadata={"op": "average"}
    )
    checkpoint = Checkpoint(path)
    assert len(checkpoint) == 2
    assert "w" in checkpoint
    assert "v" not in checkpoint
    assert checkpoint.metadata == {"format": "pt", "op": "average"}
    assert checkpoint.record == {"run": 1}
    assert checkpoint.shapes == {"w": (3,), "n": ()}
    assert checkpoint.dtypes == {"w": "float64", "n": "int64"}
    assert "2 tensors" in repr(checkpoint)
    with pytest.raises(KeyError):
        checkpoint["v"]
    checkpoint["w"].zero_()
    assert checkpoint["w"].tolist() == [0, 1, 2]
    array = Checkpoint(path, framework="numpy")["w"]
    array += 1  # writable, and ours
    assert Checkpoint(path, framework="numpy")["w"].tolist() == [0, 1, 2]


def test_copies_and_pickles_hold_the_path_alone(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"w": np.ones(100_000)})
    checkpoint = Checkpoint(path, framework="numpy")
    assert len(pickle.dumps(checkpoint)) < 1000
    for other in (pickle.loads(pickle.dumps(checkpoint)), copy.copy(checkpoint), copy.deepcopy(checkpoint)):
        assert other.path == path
        assert other.framework == "numpy"
        assert other["w"].sum() == 100_000


def test_a_file_replaced_while_open_is_noticed(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"w": np.ones(3)})
    checkpoint = Checkpoint(path)
    write_weights(path, {"w": np.zeros(3)})
    with pytest.raises(InputError, match=r"w\.safetensors: changed while open, 'w' cannot be read"):
        checkpoint["w"]
    path.unlink()
    with pytest.raises(InputError, match="nothing there"):
        checkpoint["w"]


def test_a_record_never_outlives_its_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    assert write_weights(path, {"w": np.ones(3)}, record={"seed": 0, "a": [1, None]})
    assert (tmp_path / "w.json").read_text() == '{\n "seed": 0,\n "a": [\n  1,\n  null\n ]\n}\n'
    write_weights(path, {"w": np.zeros(3)})
    assert Checkpoint(path).record is None
    (tmp_path / "other.json").write_text("{}")
    write_weights(tmp_path / "other.safetensors", {"w": np.zeros(3)})
    assert (tmp_path / "other.json").exists()  # replaced nothing, so removed nothing


@pytest.mark.parametrize(
    ("theta", "options", "message"),
    [
        ({}, {}, "got no tensors"),
        ({"w": [1.0]}, {}, "w: expected a torch tensor or a NumPy array, got list"),
        ({"w": np.array(["x"])}, {}, "got str"),
        ({"w": np.ones(2, "c16")}, {}, "got complex128"),
        ({"w": torch.ones(2, 2).to_sparse()}, {}, "expected a dense tensor"),
        ({"w": torch.empty(2, device="meta")}, {}, "device meta"),
        ({1: np.ones(2)}, {}, "names that are text, got 1"),
        ({"__metadata__": np.ones(2)}, {}, "Rename it"),
        ({"\ud800": np.ones(2)}, {}, "not valid text"),
        ({"w": np.ones(2)}, {"metadata": {"steps": 3}}, "metadata of names and texts"),
        ({"w": np.ones(2)}, {"record": {"loss": float("nan")}}, r"w\.json: expected values JSON can hold"),
        ({"w": np.ones(2)}, {"record": {"loss": np.float32(1)}}, "float32 is not JSON serializable"),
    ],
)
def test_what_cannot_be_written_changes_nothing(tmp_path, theta, options, message):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"old": np.ones(2)}, record={"old": True})
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        write_weights(path, theta, **options)
    assert path.read_bytes() == before
    assert Checkpoint(path).record == {"old": True}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.json", "w.safetensors"]


def test_only_safetensors_are_written(tmp_path):
    with pytest.raises(InputError, match=r"ending in \.safetensors, got '\.pt'"):
        write_weights(tmp_path / "w.pt", {"w": np.ones(2)})
    with pytest.raises(InputError, match="does not exist"):
        write_weights(tmp_path / "missing" / "w.safetensors", {"w": np.ones(2)})


def test_numpy_says_what_it_cannot_hold(tmp_path):
    write_weights(tmp_path / "w.safetensors", {"w": torch.ones(2, dtype=torch.bfloat16)})
    with pytest.raises(InputError, match=r"w\.safetensors: w: has dtype bfloat16.*framework='torch'"):
        open_weights(tmp_path / "w.safetensors", framework="numpy")["w"]
    assert fingerprint(open_weights(tmp_path / "w.safetensors", framework="numpy"))
    with pytest.raises(InputError, match="'torch' or 'numpy', got 'jax'"):
        open_weights(tmp_path / "w.safetensors", framework="jax")


def test_numpy_weights_need_no_torch(tmp_path):
    code = """
import sys
import numpy as np
from mirepoix.checkpoints import fingerprint, open_weights, write_weights
write_weights("w.safetensors", {"w": np.arange(3.0)}, record={"run": 1})
weights = open_weights("w.safetensors", framework="numpy")
assert weights["w"].tolist() == [0, 1, 2] and weights.record == {"run": 1}
fingerprint(weights)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def _file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _entry(start=0, end=4, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


DAMAGED = {
    "nothing": b"",
    "a few bytes": b"abc",
    "text": b"this is not a checkpoint at all",
    "a header longer than the file": (10**6).to_bytes(8, "little") + b"{}",
    "a header that is a list": _file([1]),
    "a header cut short": _file(b'{"w": '),
    "a header that is not text": _file(b'{"\xff": 1}'),
    "a deep header": _file(b'{"w": ' + b"[" * 100_000),
    "a tensor twice": _file(b'{"w":%b,"w":%b}' % ((json.dumps(_entry()).encode(),) * 2), bytes(4)),
    "an unknown dtype": _file({"w": _entry(dtype="F4")}, bytes(4)),
    "an unhashable dtype": _file({"w": _entry(dtype=["F32"])}, bytes(4)),
    "a negative size": _file({"w": _entry(shape=(-1, -1))}, bytes(4)),
    "a size that is no integer": _file({"w": _entry(shape=(1.0,))}, bytes(4)),
    "too few bytes for the shape": _file({"w": _entry(shape=(2,))}, bytes(4)),
    "an enormous shape": _file({"w": _entry(shape=(2**40, 2**40))}, bytes(4)),
    "data cut short": _file({"w": _entry()}, bytes(3)),
    "bytes after the end": _file({"w": _entry()}, bytes(5)),
    "a hole": _file({"w": _entry(4, 8)}, bytes(8)),
    "an overlap": _file({"v": _entry(0, 4), "w": _entry(0, 4)}, bytes(4)),
    "a missing field": _file({"w": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "metadata that is not text": _file({"__metadata__": {"a": 1}, "w": _entry()}, bytes(4)),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"w\.safetensors: is not a whole safetensors file"):
        open_weights(path)


def test_every_cut_of_a_file_is_noticed(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"w": np.arange(3.0), "b": np.ones(1, "u1")})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="not a whole safetensors file"):
            open_weights(path)


def test_a_file_without_tensors_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(_file({"__metadata__": {"format": "pt"}}))
    with pytest.raises(InputError, match="without tensors"):
        open_weights(tmp_path / "w.safetensors")


def test_a_record_that_is_no_record_is_refused(tmp_path):
    write_weights(tmp_path / "w.safetensors", {"w": np.ones(1)}, record={})
    assert Checkpoint(tmp_path / "w.safetensors").record == {}
    (tmp_path / "w.json").write_text("[1]")
    with pytest.raises(InputError, match=r"w\.json: expected a record with named fields, got a list"):
        _ = Checkpoint(tmp_path / "w.safetensors").record
