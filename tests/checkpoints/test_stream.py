"""Writing piece by piece: whole files or none, shards of a size, and what is refused before the first byte."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from mirepoix.checkpoints import WeightsWriter, parse_size, write_weights
from mirepoix.types import InputError

LAYOUT = {"half": ("F16", (3,)), "a": ("F32", (2, 2)), "b": ("F32", (4,)), "none": ("F32", (0, 5))}
THETA = {
    "half": np.float16([1, 2, 3]),
    "a": np.float32([[1, 2], [3, 4]]),
    "b": np.float32([5, 6, 7, 8]),
    "none": np.zeros((0, 5), np.float32),
}


def write(path, **options):
    """All tensors, in single bytes and backwards."""
    with WeightsWriter(path, LAYOUT, **options) as writer:
        for name, x in reversed(THETA.items()):
            data = memoryview(x.tobytes())
            for i in reversed(range(len(data))):
                writer.write(name, i, data[i : i + 1])
    return writer


def check(found):
    assert set(found) == set(THETA)
    for name, x in THETA.items():
        np.testing.assert_array_equal(found[name], x, strict=True)


def test_bytes_in_any_order_give_a_file_that_the_reference_library_reads(tmp_path):
    writer = write(tmp_path / "w.safetensors", metadata={"key": "text ä"})
    check(load_file(tmp_path / "w.safetensors"))
    with safe_open(tmp_path / "w.safetensors", "numpy") as opened:
        assert opened.metadata() == {"format": "pt", "key": "text ä"}
    assert writer.nbytes == (tmp_path / "w.safetensors").stat().st_size
    assert writer.files == [tmp_path / "w.safetensors"]
    assert writer.place("a") < writer.place("b") < writer.place("half")  # wide elements first


@pytest.mark.parametrize(("most", "count"), [(16, 3), ("32B", 2), (1, 4), ("1GB", 1), (None, 1)])
def test_shards_hold_at_most_what_is_asked_for_or_one_tensor(most, count, tmp_path):
    writer = write(tmp_path / "w.safetensors", max_shard=most)
    assert len(writer.files) == count
    parts = [load_file(file) for file in writer.files]
    check({name: x for part in parts for name, x in part.items()})
    if count > 1:
        index = json.loads((tmp_path / "w.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in THETA.values())
        held = {name: file.name for file, part in zip(writer.files, parts, strict=True) for name in part}
        assert index["weight_map"] == held


@pytest.mark.parametrize("most", [0, -1, "0", "", "five", "-5GB", 0.5, True, "9" * 400])
def test_a_size_of_shards_that_is_none_is_refused(most, tmp_path):
    with pytest.raises(InputError, match=r"size: expected a number of bytes"):
        WeightsWriter(tmp_path / "w.safetensors", LAYOUT, max_shard=most)


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"a": None}, {"a": b"b"}])
def test_metadata_that_is_no_text_is_refused(metadata, tmp_path):
    with pytest.raises(InputError, match=r"metadata: expected texts by name, got .*json.dumps"):
        WeightsWriter(tmp_path / "w.safetensors", LAYOUT, metadata=metadata)
    assert list(tmp_path.iterdir()) == []


def test_an_error_or_a_missing_byte_leaves_nothing(tmp_path):
    def stop(count):
        with WeightsWriter(tmp_path / "w.safetensors", LAYOUT) as writer:
            writer.write("a", 0, memoryview(bytes(count)))
            if count:
                raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        stop(16)
    with pytest.raises(AssertionError, match="0 of 38 bytes"):
        stop(0)
    assert list(tmp_path.iterdir()) == []


def test_bytes_outside_a_tensor_are_never_written(tmp_path):
    with (
        pytest.raises(AssertionError, match="a: 8"),
        WeightsWriter(tmp_path / "w.safetensors", LAYOUT) as writer,
    ):
        writer.write("a", 8, memoryview(bytes(9)))
    with WeightsWriter(tmp_path / "w.safetensors", LAYOUT) as writer:
        writer.write("a", 0, memoryview(THETA["a"].tobytes() + THETA["b"].tobytes()), beyond=True)
        writer.write("half", 0, memoryview(THETA["half"].tobytes()))
    check(load_file(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("w.bin", LAYOUT, r"ending in .safetensors, got '.bin'"),
        ("w", LAYOUT, r"got 'no suffix'"),
        ("folder.safetensors", LAYOUT, r"got a folder"),
        ("link.safetensors", LAYOUT, r"symbolic link"),
        ("no/w.safetensors", LAYOUT, r"does not exist. Create it"),
        ("w.safetensors", {}, r"got no tensors"),
        ("w.safetensors", {"__metadata__": ("F32", (1,))}, r"can be called '__metadata__'"),
        ("w.safetensors", {"\ud800": ("F32", (1,))}, r"not valid text"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(name, tensors, message, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=message):
        WeightsWriter(tmp_path / name, tensors)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("500 mb", 500 * 10**6),
        ("1GiB", 2**30),
        ("1.5KiB", 1536),
        ("2T", 2 * 10**12),
        ("17", 17),
        ("17B", 17),
        (123_456_789_012_345_678, 123_456_789_012_345_678),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "0.2", "5 G B", "1e9", "nan", True, "9" * 400])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match=r"size: expected a number of bytes such as 5GB"):
        parse_size(text)


@pytest.mark.parametrize("name", ["a\0b", "x" * 4097])
def test_names_that_no_reader_takes_are_not_written(name, tmp_path):
    with pytest.raises(InputError, match="has no NUL and at most 4096 bytes"):
        WeightsWriter(tmp_path / "x.safetensors", {name: ("F32", (1,))})
    with pytest.raises(InputError, match="has no NUL and at most 4096 bytes"):
        write_weights(tmp_path / "x.safetensors", {name: np.zeros(1)})
    assert list(tmp_path.iterdir()) == []
