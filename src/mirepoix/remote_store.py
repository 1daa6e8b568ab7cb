"""A store that machines without a shared disk share: a local cache, and the same folders behind a URL.

Results are looked up in the cache first, then behind the URL. What is made here is pushed there: the files
first, ``record.json`` last, so a result that is not whole is no result there either. Whatever comes from there is
compared with the digests in its record, as in any `Store`. Locks and the state of unfinished trainings stay local:
two machines that make the same result at the same time both do the work, and each goes on with its own; behind the
URL stays the record written last. On equal hardware they are the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mirepoix.checkpoints import file_digest, write_atomically
from mirepoix.store import Result, Store, key_of
from mirepoix.types import InputError

__all__ = ["RemoteStore", "open_store"]

log = logging.getLogger(__name__)

SCHEME = re.compile(r"([A-Za-z][\w+.-]+):/")
BUCKETS = (
    "s3",
    "s3a",
    "gs",
    "gcs",
    "az",
    "abfs",
    "abfss",
    "oci",
)  # no folders; making one could make a bucket
PATIENCE = 2.0  # seconds to wait for another process that pulls the same result
FILE = re.compile(r"\w[\w.-]*\.safetensors")  # a name in a record must not lead out of its folder


def open_store(place: str | Path, *, cache: Path | None = None) -> Store:
    """The store at a path, or behind a URL.

    Args:
        place: A folder, which gives a `Store`; or a URL that fsspec knows, such as ``s3://bucket/results``,
            ``gs://...`` or ``file:///share/results``, which gives a `RemoteStore`. Keys and regions come from where
            the service's own tools read them, or from fsspec's configuration.
        cache: The local folder of a `RemoteStore`; by default one for this URL in ``MIREPOIX_CACHE``, or in
            ``~/.cache/mirepoix``. Unfinished trainings keep their state there, so let it survive a restart.

    Raises:
        InputError: If no package reads this kind of URL, or the service does not let us in.
    """
    text = str(place)
    scheme = SCHEME.match(text)
    if not scheme:
        return Store(Path(place))
    if not text.startswith(f"{scheme[1]}://"):
        raise InputError(
            f"{text}: this is a URL that was made a path, which loses a slash; give it as text, "
            f"{scheme[1]}://..."
        )
    url = text.rstrip("/")
    if cache is None:
        home = Path(os.environ.get("MIREPOIX_CACHE") or Path.home() / ".cache" / "mirepoix")
        cache = home / "stores" / hashlib.sha256(url.encode()).hexdigest()[:16]
    store = RemoteStore(cache, url=url)
    store.check()
    return store


@dataclass(frozen=True)
class RemoteStore(Store):
    """A local store in front of one behind a URL; make it with `open_store`.

    Attributes:
        url: Where results are shared.
        broken: Keys of results that were found damaged behind the URL, and will be replaced there.
    """

    url: str = ""
    broken: set[str] = field(default_factory=set, compare=False, repr=False)

    def check(self) -> None:
        """See that the URL can be reached; a place that does not exist yet is fine.

        Raises:
            InputError: If it cannot.
        """
        with self._remote() as (files, root), contextlib.suppress(FileNotFoundError):
            files.info(root)

    def find(self, kind: str, key: str) -> Result | None:
        """A finished result, from the cache or else from behind the URL, every file of it verified."""
        found = super().find(kind, key)
        if found is None and self._pull(kind, key):
            found = super().find(kind, key)
        return found

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        """The record of a finished result, from the cache or else from behind the URL, without its files."""
        found = super().record(kind, key)
        if found is not None:
            return found
        text = self._record(kind, key)
        try:
            record = json.loads(text) if text is not None else None
        except ValueError:
            return None
        return record if isinstance(record, dict) else None

    def get_or_make(self, kind: str, made_of: Mapping[str, Any], make: Callable[[Path], Result]) -> Result:
        """The result made of ``made_of``: found here or behind the URL, or made now, kept here and pushed."""
        key = key_of(made_of)
        self.find(kind, key)
        # A plain store from here on: under the lock of a result nothing is pulled into its folder.
        result = Store(self.path, self.made).get_or_make(kind, made_of, make)
        self._push(kind, key)
        return result

    def _pull(self, kind: str, key: str) -> bool:
        """Bring a result here, if it is there and whole."""
        import filelock

        text = self._record(kind, key)
        if text is None:
            return False
        entry = self.entry(kind, key)
        entry.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=self.path) as folder:
            incoming = Path(folder)
            try:
                names = self._fetch(kind, key, text, incoming)
            except _Damaged as damaged:
                log.warning(
                    "%s/%s/%s is damaged (%s); it counts as not there, and is replaced when it is made again.",
                    *(self.url, kind, key, damaged),
                )
                self.broken.add(key)
                return False
            lock = filelock.FileLock(entry / "lock")
            try:
                lock.acquire(timeout=PATIENCE)
            except filelock.Timeout:  # another process makes this result here; let it finish
                return False
            try:
                if super().find(kind, key) is None:
                    if (entry / "record.json").is_file():
                        self._set_aside(entry, "it does not agree with its record")
                    for name in names:
                        (incoming / name).replace(entry / name)
                    write_atomically(entry / "record.json", text)
                self._shared(entry).touch()
            finally:
                if (entry / "record.json").is_file():
                    (entry / "lock").unlink(missing_ok=True)
                lock.release()
        return True

    def _fetch(self, kind: str, key: str, text: bytes, folder: Path) -> list[str]:
        """Download the files that a record names and compare them with it."""
        try:
            record = json.loads(text)
            sealed = record.pop("sha256")
            if key_of(record) != sealed or key_of(record["made_of"]) != key:
                raise _Damaged("record.json is not the file that was written")
            digests = dict(record["files"])
            for name in digests:
                if not FILE.fullmatch(name):
                    raise _Damaged(f"the record names a file {name!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _Damaged(f"its record cannot be read: {error}") from error
        for name, digest in digests.items():
            try:
                with self._remote() as (files, root):
                    files.get_file(f"{root}/{kind}/{key}/{name}", str(folder / name))
            except FileNotFoundError:
                raise _Damaged(f"{name} is missing") from None
            if file_digest(folder / name) != digest:
                raise _Damaged(f"{name} is not the file that was written")
        return list(digests)

    def _push(self, kind: str, key: str) -> None:
        """Share a result, unless it is there already."""
        entry = self.entry(kind, key)
        if self._shared(entry).exists():
            return
        text = (entry / "record.json").read_bytes()
        there = self._record(kind, key)
        if there is None or key in self.broken:
            place = f"{kind}/{key}"
            try:
                with self._remote() as (files, root):
                    if there is not None:
                        files.rm_file(f"{root}/{place}/record.json")
                    if not set(BUCKETS) & {files.protocol, *files.protocol}:
                        files.makedirs(f"{root}/{place}", exist_ok=True)
                    for name in json.loads(text)["files"]:
                        files.put_file(str(entry / name), f"{root}/{place}/{name}")
                    files.pipe_file(f"{root}/{place}/record.json", text)
            except FileNotFoundError as error:
                raise InputError(
                    f"{self.url}: results cannot be written there ({error}); make the bucket or folder first. "
                    f"The result is kept in {entry}."
                ) from error
            self.broken.discard(key)
        self._shared(entry).touch()

    def _record(self, kind: str, key: str) -> bytes | None:
        """The record behind the URL, as it is; None without one."""
        try:
            with self._remote() as (files, root):
                text: bytes = files.cat_file(f"{root}/{kind}/{key}/record.json")
                return text
        except FileNotFoundError:
            return None

    def _shared(self, entry: Path) -> Path:
        """The empty file that says that this result is behind the URL too."""
        return entry / f".shared-{hashlib.sha256(self.url.encode()).hexdigest()[:8]}"

    @contextlib.contextmanager
    def _remote(self) -> Iterator[tuple[Any, str]]:
        """The file system behind the URL and the root in it; its errors say what to do."""
        try:
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]

            files, root = url_to_fs(self.url)
            yield files, str(root).rstrip("/")
        except (FileNotFoundError, InputError):
            raise
        except ImportError as error:
            raise InputError(
                f"{self.url}: no package that reads such a URL is installed ({error}); install it, as in "
                "`pip install s3fs` for s3:// or `pip install gcsfs` for gs://."
            ) from error
        except ValueError as error:
            raise InputError(
                f"{self.url}: expected a URL that fsspec knows, such as s3://BUCKET/FOLDER: {error}"
            ) from error
        except Exception as error:
            if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
                raise InputError(
                    f"{self.url}: we are not let in ({type(error).__name__}: {error}); give the keys as the "
                    "service's own tools take them (for s3://: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                    "`aws configure`), on every machine."
                ) from error
            raise OSError(
                f"{self.url}: the service does not answer as it should ({type(error).__name__}: {error}). "
                f"Finished results are kept in {self.path}, and pushed when they are asked for again."
            ) from error


class _Damaged(Exception):
    """What lies behind the URL is not a whole result."""
