import json
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from mirepoix.remote_store import RemoteStore, open_store
from mirepoix.runs import Run
from mirepoix.store import Store, cached, key_of
from mirepoix.types import InputError

MADE_OF = {"name": "doubling", "seed": 1}
KEY = key_of(MADE_OF)


class Making:
    """Makes one result and counts."""

    def __init__(self):
        self.calls = 0

    def __call__(self, workspace):
        self.calls += 1
        (workspace / "state.bin").write_bytes(b"half way")
        return {"best": {"w": np.arange(3.0)}, "last": {"w": np.ones(2)}}, {"status": "finished"}


class Watched(LocalFileSystem):
    """The local file system under another name, which counts what is asked of it and can refuse."""

    protocol = ("watched",)
    read: list[str] = []  # noqa: RUF012
    written: list[str] = []  # noqa: RUF012
    refuse: Exception | None = None
    full_after: int | None = None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("watched://"))

    def note(self, notes, path):
        if self.refuse:
            raise self.refuse
        notes.append(Path(path).name)

    def info(self, path, **options):
        if self.refuse:
            raise self.refuse
        return super().info(path, **options)

    def cat_file(self, path, *arguments, **options):
        self.note(self.read, path)
        return super().cat_file(path, *arguments, **options)

    def get_file(self, path, *arguments, **options):
        self.note(self.read, path)
        return super().get_file(path, *arguments, **options)

    def put_file(self, path, to, *arguments, **options):
        if Watched.full_after is not None and len(self.written) >= Watched.full_after:
            raise OSError("connection reset by peer")
        self.note(self.written, to)
        return super().put_file(path, to, *arguments, **options)

    def pipe_file(self, path, *arguments, **options):
        self.note(self.written, path)
        return super().pipe_file(path, *arguments, **options)


fsspec.register_implementation("watched", Watched, clobber=True)


@pytest.fixture
def watched(tmp_path):
    Watched.read, Watched.written, Watched.refuse, Watched.full_after = [], [], None, None
    yield f"watched://{tmp_path}/remote"
    Watched.refuse = Watched.full_after = None


def remote_entry(tmp_path: Path) -> Path:
    return tmp_path / "remote" / "weights" / KEY


def test_a_path_gives_a_store(tmp_path):
    for place in (tmp_path, str(tmp_path), "a/b"):
        assert type(open_store(place)) is Store
    assert open_store("a/b").path == Path("a/b")


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_stores_with_other_caches_share_results(tmp_path, scheme):
    url = f"{scheme}://{tmp_path}/remote/"
    making = Making()
    one, other = (open_store(url, cache=tmp_path / name) for name in ("one", "other"))
    for store in (one, one, other):
        weights, record = store.get_or_make("weights", MADE_OF, making)
        assert weights["best"]["w"].tolist() == [0, 1, 2]
        assert weights["last"]["w"].tolist() == [1, 1]
        assert record["status"] == "finished"
    assert making.calls == 1
    assert (one.made, other.made) == ([KEY], [])
    assert one.find("weights", KEY)[1] == other.find("weights", KEY)[1]
    third = open_store(url, cache=tmp_path / "third")
    assert third.find("weights", KEY) is not None
    assert third.find("weights", "0" * 32) is None


def test_files_are_pushed_first_the_record_last_and_no_state(tmp_path, watched):
    store = open_store(watched, cache=tmp_path / "cache")
    store.get_or_make("weights", MADE_OF, Making())
    assert Watched.written == ["best.safetensors", "last.safetensors", "record.json"]
    assert {path.name for path in remote_entry(tmp_path).iterdir()} == set(Watched.written)


def test_what_was_downloaded_is_not_read_there_again(tmp_path, watched):
    open_store(watched, cache=tmp_path / "one").get_or_make("weights", MADE_OF, Making())
    Watched.read.clear()
    other = open_store(watched, cache=tmp_path / "other")
    assert other.find("weights", KEY)
    assert sorted(Watched.read) == ["best.safetensors", "last.safetensors", "record.json"]
    Watched.read.clear()
    for store in (other, open_store(watched, cache=tmp_path / "other")):
        assert store.find("weights", KEY)
        store.get_or_make("weights", MADE_OF, Making())
    assert Watched.read == []
    assert len(Watched.written) == 3


@pytest.mark.parametrize("written", [0, 1, 2])
def test_an_interrupted_push_is_no_result_and_is_pushed_again_later(tmp_path, watched, written):
    Watched.full_after = written
    one, other = (open_store(watched, cache=tmp_path / name) for name in ("one", "other"))
    if written < 2:
        with pytest.raises(OSError, match=r"connection reset by peer.*kept in .*one, and pushed when"):
            one.get_or_make("weights", MADE_OF, Making())
    else:
        one.get_or_make("weights", MADE_OF, Making())
        (remote_entry(tmp_path) / "record.json").unlink()
        (one.entry("weights", KEY) / next(one.entry("weights", KEY).glob(".shared-*")).name).unlink()
    assert other.find("weights", KEY) is None
    assert not (remote_entry(tmp_path) / "record.json").exists()
    Watched.full_after = None
    making = Making()
    one.get_or_make("weights", MADE_OF, making)
    assert making.calls == 0
    assert other.find("weights", KEY)


@pytest.mark.parametrize("harm", ["flip", "remove", "record", "other number", "another place", "list"])
def test_a_damaged_remote_result_counts_as_absent_and_is_replaced(tmp_path, caplog, harm):
    url, making = f"file://{tmp_path}/remote", Making()
    open_store(url, cache=tmp_path / "one").get_or_make("weights", MADE_OF, making)
    entry = remote_entry(tmp_path)
    record = json.loads((entry / "record.json").read_text())
    if harm == "flip":
        content = bytearray((entry / "last.safetensors").read_bytes())
        content[-1] ^= 1
        (entry / "last.safetensors").write_bytes(content)
    elif harm == "remove":
        (entry / "best.safetensors").unlink()
    elif harm == "another place":
        (tmp_path / "remote" / "weights" / "secret.safetensors").write_bytes(b"x")
        record["files"]["../secret.safetensors"] = "0" * 64
        del record["sha256"]
        record["sha256"] = key_of(record)
        (entry / "record.json").write_text(json.dumps(record))
    else:
        changed = {"record": "{", "list": "[]", "other number": json.dumps({**record, "status": "better"})}
        (entry / "record.json").write_text(changed[harm])
    other = open_store(url, cache=tmp_path / "other")
    assert other.find("weights", KEY) is None
    assert "is damaged" in caplog.text
    assert not list((tmp_path / "other").rglob("*.safetensors"))
    other.get_or_make("weights", MADE_OF, making)
    assert making.calls == 2
    assert open_store(url, cache=tmp_path / "third").find("weights", KEY)


def test_a_damaged_cache_is_mended_from_the_remote(tmp_path, caplog):
    store, making = open_store(f"file://{tmp_path}/remote", cache=tmp_path / "cache"), Making()
    store.get_or_make("weights", MADE_OF, making)
    (store.entry("weights", KEY) / "best.safetensors").write_bytes(b"x")
    weights, _ = store.find("weights", KEY)
    assert weights["best"]["w"].tolist() == [0, 1, 2]
    assert making.calls == 1
    assert len(list((tmp_path / "cache" / "damaged").iterdir())) == 1


def test_unfinished_work_stays_local(tmp_path):
    store = open_store(f"file://{tmp_path}/remote", cache=tmp_path / "cache")

    def interrupted(workspace):
        (workspace / "state.bin").write_bytes(b"half way")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get_or_make("weights", MADE_OF, interrupted)
    assert (store.entry("weights", KEY) / "state.bin").read_bytes() == b"half way"
    assert not (tmp_path / "remote").exists()


def test_a_store_travels_to_workers(tmp_path):
    store = open_store(f"file://{tmp_path}/remote", cache=tmp_path / "cache")
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    copy.get_or_make("weights", MADE_OF, Making())
    assert open_store(store.url, cache=tmp_path / "other").find("weights", KEY)


def test_a_cached_training_is_shared(tmp_path):
    class Data:
        digest = "d"

    calls = []

    def train(theta, task, run):
        calls.append(run)
        return {"w": theta["w"] + run.seed}

    for name in ("one", "other"):
        store = open_store(f"file://{tmp_path}/remote", cache=tmp_path / name)
        result = cached(train, store, made_of={"name": "adding"})({"w": np.zeros(2)}, Data(), Run(seed=3))
        assert result["w"].tolist() == [3, 3]
    assert len(calls) == 1


def test_the_cache_has_its_own_folder_for_each_url(tmp_path, monkeypatch):
    monkeypatch.setenv("MIREPOIX_CACHE", str(tmp_path / "caches"))
    one, same, other = (open_store(f"memory://{name}") for name in ("x", "x/", "y"))
    assert isinstance(one, RemoteStore)
    assert one.path.parent == tmp_path / "caches" / "stores"
    assert one.path == same.path != other.path


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere://x", "expected a URL that fsspec knows"),
        (Path("s3://bucket/x"), "loses a slash; give it as text, s3://"),
    ],
)
def test_what_is_no_place_is_refused(place, message):
    with pytest.raises(InputError, match=message):
        open_store(place)


def test_a_missing_package_is_named():
    pytest.importorskip("fsspec")
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match=r"pip install s3fs"):
            open_store("s3://bucket/x")
    else:
        pytest.skip("s3fs is installed")


def test_missing_credentials_say_what_to_give(tmp_path, watched):
    Watched.refuse = PermissionError("Access Denied")
    with pytest.raises(
        InputError, match=r"we are not let in \(PermissionError: Access Denied\).*AWS_ACCESS_KEY_ID"
    ):
        open_store(watched, cache=tmp_path)
    Watched.refuse = TimeoutError("no route")
    with pytest.raises(OSError, match=r"does not answer as it should \(TimeoutError: no route\)"):
        open_store(watched, cache=tmp_path)


def test_a_result_that_another_machine_pushed_first_is_left_alone(tmp_path, watched, caplog):
    caplog.set_level(logging.WARNING)
    one, other = (open_store(watched, cache=tmp_path / name) for name in ("one", "other"))

    def meanwhile(workspace):
        one.get_or_make("weights", MADE_OF, Making())
        return Making()(workspace)

    other.get_or_make("weights", MADE_OF, meanwhile)
    assert Watched.written.count("record.json") == 1
    assert not caplog.records


def test_many_pull_into_one_cache_at_once(tmp_path):
    url = f"file://{tmp_path}/remote"
    keys = []
    for seed in range(10):
        store = open_store(url, cache=tmp_path / "one")
        store.get_or_make("weights", {"seed": seed}, Making())
        keys += store.made
    making = Making()

    def pull(_):
        store = open_store(url, cache=tmp_path / "other")
        found = [store.find("weights", key) is not None for key in keys]
        results = [store.get_or_make("weights", {"seed": seed}, making) for seed in range(10)]
        return found, [weights["best"]["w"].tolist() for weights, _ in results]

    with ThreadPoolExecutor(6) as threads:
        for found, values in threads.map(pull, range(6)):
            assert all(found)
            assert values == [[0, 1, 2]] * 10
    assert making.calls == 0
    assert not (tmp_path / "other" / "damaged").exists()
    assert not list((tmp_path / "other").glob(".incoming-*"))


def test_a_result_that_is_being_made_here_is_not_pulled_into(tmp_path, monkeypatch):
    monkeypatch.setattr("mirepoix.remote_store.PATIENCE", 0.1)
    url = f"file://{tmp_path}/remote"
    open_store(url, cache=tmp_path / "one").get_or_make("weights", MADE_OF, Making())
    other = open_store(url, cache=tmp_path / "other")
    entry = other.entry("weights", KEY)
    entry.mkdir(parents=True)
    with filelock.FileLock(entry / "lock"):  # as the process that makes it holds it
        assert other.find("weights", KEY) is None
        assert [path.name for path in entry.iterdir()] == ["lock"]
    assert other.find("weights", KEY)
