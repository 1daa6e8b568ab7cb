"""The engine: the same bits on files and in memory, whatever the pieces; what does not fit is refused."""

import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from tests.merging.samples import bits, network

from mirepoix import open_weights, write_weights
from mirepoix.checkpoints import WeightsWriter
from mirepoix.merging import (
    Average,
    Dare,
    ExponentialAverage,
    ModelStock,
    Slerp,
    TaskArithmetic,
    Ties,
    merge,
    merge_files,
)
from mirepoix.types import InputError

RULES = {
    "average": Average(),
    "weighted": Average([0.7, 0.1, 0.2]),
    "regex": Average([[("bias", 0.0), ("", 1.0)], 2.0, lambda name: len(name)]),
    "extrapolated": Average([1.5, -0.25, -0.25], extrapolate=True),
    "task arithmetic": TaskArithmetic([0.4, -0.3, 1.0], scale=0.5),
    "ema": ExponentialAverage(0.3),
    "ties global": Ties(density=0.3, scope="global"),
    "ties tensor": Ties([1.0, 2.0, 0.5], density=0.4, scope="tensor", scale=0.7),
    "dare": Dare(density=0.6, seed=3),
    "dare l1": Dare([0.5, 0.2, 0.3], density=0.6, seed=3, rescale="l1"),
    "dare ties": Dare(density=0.6, seed=1, elect=True),
    "stock": ModelStock(),
    "stock by row": ModelStock(scope="row"),
    "slerp": Slerp(),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    paths = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for name, seed in (("base", 0), ("a", 1), ("b", 2), ("c", 3)):
            path = folder / f"{name}-{str(dtype).removeprefix('torch.')}.safetensors"
            save_file(network(seed, dtype, spread=0 if name == "base" else 0.1), path)
            paths[name, dtype] = path
    return paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_streaming_gives_the_bits_of_memory_whatever_the_pieces_and_workers(rule, dtype, files, tmp_path):
    members = [files[name, dtype] for name in "abc"]
    loaded = [dict(open_weights(path)) for path in members]
    base = files["base", dtype]
    options = {"base": base, "names": "strict"}
    with_base = dict(open_weights(base))
    expected = bits(merge(loaded, RULES[rule], base=with_base))
    for chunk, workers in ((1009, 2), (65_536, 1), (None, 3)):
        out = tmp_path / f"{chunk}-{workers}.safetensors"
        merge_files(members, out, RULES[rule], chunk=chunk, workers=workers, **options)
        assert bits(open_weights(out)) == expected, (chunk, workers)


def test_pieces_of_one_and_of_seven_entries_give_the_same_bits(tmp_path):
    rng = np.random.default_rng(0)
    members = [{"w": rng.standard_normal((5, 9)).astype(np.float32)} for _ in range(3)]
    base = {"w": np.zeros((5, 9), np.float32)}
    for rule in RULES.values():
        expected = merge(members, rule, base=base)["w"]
        for chunk in (1, 7):
            np.testing.assert_array_equal(merge(members, rule, base=base, chunk=chunk)["w"], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_copies_of_a_file_give_its_bits_back(rule, dtype, files):
    path = files["a", dtype]
    result = merge([path] * 3, RULES[rule], base=path)
    expected = bits(open_weights(path))
    found = bits(
        {
            name: torch.as_tensor(x)
            for name, x in merge(
                [dict(open_weights(path))] * 3, RULES[rule], base=dict(open_weights(path))
            ).items()
        }
    )
    assert found == expected
    assert set(result) == set(expected)


# NaN and infinity.


def test_a_result_that_is_not_finite_names_tensor_and_member():
    a, b = {"w": np.zeros(3)}, {"w": np.array([0, np.inf, 0])}
    with pytest.raises(
        InputError, match=r"'w' of the result is not finite: member 1 holds NaN or infinity there"
    ):
        merge([a, b])
    with pytest.raises(InputError, match=r"member 1: 'w' holds NaN or infinity"):
        merge([a, b], check="inputs")
    assert np.isinf(merge([a, b], check="none")["w"]).any()
    with pytest.raises(InputError, match=r"the dtype of the result overflows"):
        merge([{"w": np.float32([1e6])}], dtype="float16")


def test_inputs_are_checked_even_where_the_result_would_hide_them():
    a, b = {"w": np.float32([np.nan])}, {"w": np.float32([1.0])}
    with pytest.raises(InputError, match=r"member 0"):
        merge([a, b], Average([1.0, 1.0]), check="inputs")


# Files.


def test_a_single_member_is_copied_to_the_bit_even_where_it_is_not_finite(tmp_path):
    x = np.array([0x7F800001, 0xFF800000, 0x80000000, 1], np.uint32).view(
        np.float32
    )  # a signalling NaN among them
    write_weights(tmp_path / "a.safetensors", {"w": x})
    merge_files([tmp_path / "a.safetensors"], tmp_path / "b.safetensors", check="none")
    assert load_file(tmp_path / "b.safetensors")["w"].tobytes() == x.tobytes()


def test_the_result_is_read_by_the_reference_library(files, tmp_path):
    out = tmp_path / "soup.safetensors"
    report = merge_files([files[name, torch.float32] for name in "ab"], out)
    found = load_file(out)
    assert set(found) == set(network(1))
    assert out.stat().st_size == report.bytes_written
    assert (report.tensors, report.integers) == (7, 2)
    assert report.bytes_read == 2 * sum(x.nbytes for x in found.values())


def test_shards_hold_the_same_weights_and_open_as_one(files, tmp_path):
    members = [files[name, torch.float32] for name in "ab"]
    merge_files(members, tmp_path / "one.safetensors")
    report = merge_files(members, tmp_path / "many.safetensors", max_shard=1000)
    assert len(report.files) > 2
    assert all(file.name.startswith("many-0000") for file in report.files)
    index = tmp_path / "many.safetensors.index.json"
    assert bits(open_weights(index)) == bits(open_weights(tmp_path / "one.safetensors"))
    assert json.loads(index.read_text())["metadata"]["total_size"] == sum(
        x.numel() * x.element_size() for x in network(1).values()
    )


def test_a_member_is_never_overwritten(files, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(files["a", torch.float32].read_bytes())
    with pytest.raises(InputError, match=r"is one of the members"):
        merge_files([path, files["b", torch.float32]], path)
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    with pytest.raises(InputError, match=r"is one of the members|symbolic link"):
        merge_files([path, files["b", torch.float32]], link)
    assert path.read_bytes() == files["a", torch.float32].read_bytes()


def test_progress_counts_bytes_to_the_end(files, tmp_path):
    seen = []
    merge_files(
        [files[name, torch.float32] for name in "ab"],
        tmp_path / "o.safetensors",
        chunk=64,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1] > 0
    assert seen == sorted(seen)


def test_an_error_or_a_stop_leaves_nothing(files, tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        raise Stop

    with pytest.raises(Stop):
        merge_files([files["a", torch.float32]] * 2, tmp_path / "o.safetensors", chunk=16, progress=stop)
    bad = {"w": np.array([np.nan])}
    with pytest.raises(InputError):
        merge_files([bad], tmp_path / "o.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing(files, tmp_path):
    """A limit on the size of files raises the error that a full disk does, on any machine."""
    code = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from mirepoix.merging import merge_files
try:
    merge_files([{str(files["a", torch.float32])!r}] * 2, {str(tmp_path / "o.safetensors")!r})
except OSError as error:
    print(error.errno, error.filename)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["27", str(tmp_path / "o.safetensors")]
    assert list(tmp_path.iterdir()) == []


def test_a_real_full_file_system_leaves_nothing(small_disk, tmp_path):
    save_file({"w": torch.zeros(4_000_000)}, tmp_path / "large.safetensors")  # 16 MB
    with pytest.raises(OSError, match=r"No space left"):
        merge_files([tmp_path / "large.safetensors"] * 2, small_disk / "o.safetensors")
    assert os.listdir(small_disk) == []


def test_a_killed_merge_leaves_nothing_under_the_name(tmp_path):
    members = []
    for i in range(3):
        members.append(str(tmp_path / f"{i}.safetensors"))
        save_file({f"w{j}": torch.randn(250_000) for j in range(4)}, members[-1])
    out = tmp_path / "out" / "soup.safetensors"
    out.parent.mkdir()
    code = f"""
from mirepoix.merging import merge_files
print("ready", flush=True)
merge_files({members!r}, {str(out)!r}, chunk=256)
print("done", flush=True)
"""
    for delay in (0.0, 0.02, 0.1, 0.3):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.kill()
        said = process.stdout.read()
        process.wait()
        process.stdout.close()
        assert ("done" in said) == out.exists()
        if out.exists():  # then whole
            assert set(load_file(out)) == {"w0", "w1", "w2", "w3"}
            out.unlink()


def test_merging_files_loads_no_torch_and_stays_small(tmp_path):
    for i in range(12):
        save_file({"w": torch.full((3000, 1000), float(i))}, tmp_path / f"{i}.safetensors")  # 12 MB each
    code = f"""
import resource, sys
from mirepoix.merging import Ties, merge_files
import pathlib
members = sorted(pathlib.Path({str(tmp_path)!r}).glob("*.safetensors"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge_files(members, {str(tmp_path / "o.safetensors")!r})
merge_files(members[:3], {str(tmp_path / "p.safetensors")!r}, Ties(), base=members[0])
print("torch" in sys.modules, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, kilobytes = result.stdout.split()
    assert loaded == "False"
    assert int(kilobytes) < 36_000  # members together: 144 MB


def test_threads_of_a_caller_do_not_disturb_each_other(files, tmp_path):
    members = [files[name, torch.float32] for name in "abc"]
    results = {}

    def work(i):
        merge_files(members, tmp_path / f"{i}.safetensors", chunk=1000)
        results[i] = (tmp_path / f"{i}.safetensors").read_bytes()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results.values())) == 1


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "expected at least one"),
        ({"w": np.zeros(1)}, "expected weights by member, got the weights of one"),
        ([{}], "nothing can be merged|shares no name"),
    ],
)
def test_what_is_no_set_of_members_is_refused(members, message):
    with pytest.raises(InputError, match=message):
        merge(members)


@pytest.mark.parametrize(("option", "value"), [("integers", "min"), ("check", "all"), ("names", "loose")])
def test_options_are_checked(option, value):
    with pytest.raises(InputError, match=f"{option}: expected one of"):
        merge([{"w": np.zeros(1)}], **{option: value})


@pytest.mark.parametrize("option", ["chunk", "workers"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_pieces_and_workers_are_at_least_one(option, value, tmp_path):
    write_weights(tmp_path / "a.safetensors", {"w": np.ones(3, np.float32)})
    with pytest.raises(InputError, match=f"{option}: expected a whole number of at least 1, got {value!r}"):
        merge([{"w": np.zeros(1)}], **{option: value})
    with pytest.raises(InputError, match=f"{option}: expected"):
        merge_files([tmp_path / "a.safetensors"], tmp_path / "o.safetensors", **{option: value})
    assert merge([{"w": np.ones(3)}], **{option: np.int64(1)})["w"].tolist() == [1, 1, 1]


def test_the_size_of_shards_may_be_text_and_must_be_one(files, tmp_path):
    paths = [files["a", torch.float32]]
    assert len(merge_files(paths, tmp_path / "a.safetensors", max_shard="5GB").files) == 1
    assert len(merge_files(paths, tmp_path / "b.safetensors", max_shard="1KB").files) > 1
    for bad in (0, -1, "0", "some"):
        with pytest.raises(InputError, match=r"size: expected"):
            merge_files(paths, tmp_path / "c.safetensors", max_shard=bad)


def test_metadata_must_be_text(files, tmp_path):
    with pytest.raises(InputError, match=r"metadata: expected texts"):
        merge_files([files["a", torch.float32]], tmp_path / "o.safetensors", metadata={"a": 1})


def test_labels_that_read_the_same_are_refused():
    a = {"w": np.zeros(1)}
    with pytest.raises(InputError, match=r"members: expected a name for each, got '1' twice"):
        merge({1: a, "1": a})


@pytest.mark.parametrize("workers", [1, 2])
def test_tensors_are_measured_one_at_a_time_and_in_the_order_of_the_file(workers, tmp_path, monkeypatch):
    theta = {
        "h": np.ones(3, np.float16),
        "w": np.ones(3, np.float32),
        "d": np.ones(3),
        "x": np.ones(2, np.float32),
    }
    write_weights(tmp_path / "a.safetensors", theta)
    events = []

    class Measuring(Average):
        def measure(self, tensor, survey):
            events.append(("measure", tensor.name))
            return survey

    real = WeightsWriter.write

    def write(self, name, *args, **options):
        events.append(("write", name))
        real(self, name, *args, **options)

    monkeypatch.setattr(WeightsWriter, "write", write)
    merge_files([tmp_path / "a.safetensors"] * 2, tmp_path / "o.safetensors", Measuring(), workers=workers)
    order = ["d", "w", "x", "h"]
    assert [name for kind, name in events if kind == "measure"] == order
    if workers == 1:
        assert events == [(kind, name) for name in order for kind in ("measure", "write")]


@pytest.mark.parametrize("linear", [True, False])
def test_a_stop_is_answered_while_a_tensor_is_measured(linear, files, tmp_path):
    class Endless(Average if linear else Ties):
        def measure(self, tensor, survey):
            end = time.monotonic() + 5
            while time.monotonic() < end:
                for _ in tensor.blocks():
                    time.sleep(0.001)
            return survey

    def stop(done, total):
        raise KeyboardInterrupt

    path = files["a", torch.float32]
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        merge_files([path] * 2, tmp_path / "o.safetensors", Endless(), base=path, progress=stop)
    assert time.monotonic() - started < 1  # 0.1 until it is heard
    assert list(tmp_path.iterdir()) == []


def test_a_signal_is_answered_while_everything_is_surveyed(tmp_path):
    code = """
import os, signal, threading, time
import numpy as np
from mirepoix.merging import Average, merge
class Endless(Average):
    def survey(self, inputs):
        end = time.monotonic() + 10
        while time.monotonic() < end:
            for _ in inputs.tensor("w").blocks():
                pass
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
started = time.monotonic()
try:
    merge([{"w": np.zeros(10)}], Endless())
except KeyboardInterrupt:
    print(time.monotonic() - started)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 1


@pytest.mark.parametrize(
    ("rule", "options", "read"),
    [
        (Average(), {}, [0, 1]),
        (Average([1.0, 0.0]), {}, [0]),
        (TaskArithmetic([1.0, 1.0]), {}, [0, 1, 2]),
        (TaskArithmetic([0.5, 0.5]), {}, [0, 1]),  # nothing is left for the base
        (Ties(scope="tensor", density=1.0), {"integers": "first"}, None),
    ],
    ids=str,
)
def test_bytes_are_counted_as_they_are_read(rule, options, read, tmp_path):
    x = {"w": torch.ones(70_000), "i": torch.arange(50), "e": torch.zeros(0)}
    members = [x, {name: t.bfloat16() if name == "w" else t for name, t in x.items()}, x]
    for i, theta in enumerate(members):
        save_file(theta, tmp_path / f"{i}.safetensors")
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    seen = []
    report = merge_files(
        paths[:2],
        tmp_path / "o.safetensors",
        rule,
        base=paths[2],
        dtype="float32",
        chunk=1000,
        progress=lambda *counts: seen.append(counts),
        **options,
    )
    sizes = [280_000, 140_000, 280_000]
    if read is None:  # measured, then merged; one member's integers
        assert report.bytes_read >= sum(sizes) + 400
        assert seen[-1] == (sum(sizes) + 400,) * 2
    else:
        expected = sum(sizes[i] for i in read) + 2 * 400
        assert report.bytes_read == expected
        assert seen[-1] == (expected, expected)
    assert seen == sorted(seen)


def test_rows_are_counted_where_they_are_read(files, tmp_path):
    for i, rows in enumerate((4, 6, 5)):
        save_file({"w": torch.ones(rows, 10)}, tmp_path / f"{i}.safetensors")
    seen = []
    report = merge_files(
        [tmp_path / f"{i}.safetensors" for i in range(3)],
        tmp_path / "o.safetensors",
        rows=True,
        progress=lambda *counts: seen.append(counts),
    )
    assert report.bytes_read == (3 * 4 + 2) * 10 * 4
    assert seen[-1] == (report.bytes_read,) * 2


@pytest.mark.parametrize(
    "rule", [Average(), Average([0.2, 0.8]), TaskArithmetic([0.5, 0.3]), ExponentialAverage(0.9)]
)
def test_many_small_tensors_side_by_side_are_merged_as_if_apart(rule, tmp_path):
    rng = np.random.default_rng(0)
    names = [
        f"layer{i}.{kind}" for i in range(30) for kind in ("weight", "bias", "running_var", "running_mean")
    ]
    members = [
        {name: rng.random(1 + 7 * (i % 5)).astype(np.float32) for i, name in enumerate(names)}
        for _ in range(3)
    ]
    for i, theta in enumerate(members):
        write_weights(tmp_path / f"{i}.safetensors", theta)
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    expected = merge(members[:2], rule, base=members[2])
    for options in ({}, {"chunk": 5}, {"max_shard": 300}, {"check": "inputs"}):
        merge_files(paths, tmp_path / "o.safetensors", rule, base=tmp_path / "2.safetensors", **options)
        out = tmp_path / ("o.safetensors.index.json" if "max_shard" in options else "o.safetensors")
        found = open_weights(out, framework="numpy")
        for name, x in expected.items():
            np.testing.assert_array_equal(found[name], x, err_msg=f"{name} {options}")


def test_a_bad_entry_among_many_small_tensors_is_named(tmp_path):
    good = {f"t{i}": np.ones(3, np.float32) for i in range(9)}
    write_weights(tmp_path / "a.safetensors", good)
    write_weights(tmp_path / "b.safetensors", good | {"t4": np.float32([1, np.nan, 1])})
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    with pytest.raises(InputError, match=r"'t4' of the result is not finite: .*b.safetensors holds NaN"):
        merge_files(paths, tmp_path / "o.safetensors")
    with pytest.raises(InputError, match=r"b.safetensors: 't4' holds NaN"):
        merge_files(
            [tmp_path / "a.safetensors", tmp_path / "b.safetensors"],
            tmp_path / "o.safetensors",
            check="inputs",
        )
