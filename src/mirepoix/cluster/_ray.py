"""A Ray cluster, or one that is started on this machine for as long as the engine lives."""

from __future__ import annotations

import builtins
import contextlib
import logging
import os
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mirepoix.cluster._engine import (
    Attempt,
    ClusterLost,
    WorkerLost,
    WorkFuture,
    at_least_one,
    attempt,
    settle,
)
from mirepoix.cluster._pool import environment, thread_variables
from mirepoix.types import InputError

__all__ = ["RayCluster", "import_ray", "quiet"]

log = logging.getLogger(__name__)

SETTINGS = {
    # Else Ray runs `uv run` again for every worker of a driver that was started by it, and hangs.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Works without a GPU keep the CUDA_VISIBLE_DEVICES they have.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
REACH = 10.0  # seconds to open a connection to the head
PULSE = 5.0  # seconds between looks at whether the head lives
MISSED = 3  # looks without an answer after which it is lost; Ray itself would end this process after 60 s
OBJECTS = 200 * 2**20  # bytes of shared memory of a cluster on this machine; larger objects go to its disk


class RayCluster:
    """Works as tasks of Ray.

    Every node needs the same mirepoix and the same store. Ray starts a work again whose worker or node was lost;
    GPUs may be shared by giving a work a fraction (Ray counts, it does not limit their memory).

    Args:
        address: ``local`` starts a cluster on this machine, and ends it on leaving;
            ``auto`` is the one this machine belongs to, or the one of ``RAY_ADDRESS``; or ``HOST:PORT`` of the
            head; or ``ray://HOST:PORT`` from outside the cluster. If this process is connected already,
            that connection is used, and kept on leaving.
        cpus_per_work: Processors that Ray sets aside for a work; 0.5 puts two on one.
        gpus_per_work: Likewise GPUs; 0.25 puts four works on one.
        threads: Of torch and the other numerical libraries in a worker, as for `LocalPool`.
        retries: How often Ray starts a work again after its worker was lost.
        memory_per_work: Bytes that Ray sets aside for a work; None does not count memory.
        workers: With ``local``, the processors of the cluster, by default all; else the most works at once.

    Raises:
        InputError: Without Ray; for numbers out of range; on entering, if no cluster answers at the address, or
            this machine has no room for one work.
    """

    def __init__(
        self,
        address: str = "local",
        cpus_per_work: float = 1,
        gpus_per_work: float = 0,
        threads: int = 1,
        retries: int = 2,
        memory_per_work: int | None = None,
        workers: int | None = None,
    ) -> None:
        at_least_one("RayCluster: threads", threads)
        if workers is not None:
            at_least_one("RayCluster: workers", workers)
        if cpus_per_work < 0 or gpus_per_work < 0 or cpus_per_work + gpus_per_work == 0:
            raise InputError(
                "RayCluster: expected processors or GPUs per work above 0, "
                f"got cpus_per_work={cpus_per_work} and gpus_per_work={gpus_per_work}."
            )
        if gpus_per_work > 1 and gpus_per_work != int(gpus_per_work):
            raise InputError(
                f"RayCluster: expected a fraction of one GPU or whole GPUs per work, got {gpus_per_work}."
            )
        if retries < 0:
            raise InputError(f"RayCluster: expected retries of at least 0, got {retries}.")
        self.address, self.threads, self.limit = address, threads, workers
        self.cpus_per_work, self.gpus_per_work, self.memory_per_work = (
            cpus_per_work,
            gpus_per_work,
            memory_per_work,
        )
        self.retries = retries
        self._ray: Any = None
        self._task: Any = None
        self._ours = False
        self._fit = 1
        self._lost = ""
        self._left = threading.Event()
        self._lock = threading.Lock()
        self._waiting: dict[WorkFuture, Any] = {}

    @property
    def workers(self) -> int:
        """How many works fit at once, as the cluster is now; at least 1, so that one that grows can begin."""
        self._entered()
        return self._fit

    def _count(self, nodes: Iterable[Mapping[str, Any]]) -> int:
        """How many works fit on these nodes; a work lies on one of them."""
        needs = {"CPU": self.cpus_per_work, "GPU": self.gpus_per_work, "memory": self.memory_per_work}
        fits = sum(
            min(int(node["Resources"].get(name, 0) / need) for name, need in needs.items() if need)
            for node in nodes
            if node["Alive"]
        )
        return fits if self.limit is None else min(fits, self.limit)

    def describe(self) -> str:
        """The engine in words."""
        place = "on this machine" if self.address == "local" else f"at {self.address}"
        share = f"{self.cpus_per_work:g} CPU" + (
            f" and {self.gpus_per_work:g} GPU" if self.gpus_per_work else ""
        )
        text = f"Ray cluster {place}, {share} per work, {self.threads} thread{'s' if self.threads > 1 else ''} each"
        return text if self._task is None else f"{text}, {self.workers} at once"

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> WorkFuture:
        """Call ``function(*arguments)`` in a task.

        The future ends with the function's value or its error, with `InputError` if something cannot be sent,
        with `WorkerLost` after Ray's retries, or with `ClusterLost`.
        """
        ray = self._entered()
        future = WorkFuture()
        future.set_running_or_notify_cancel()  # Ray does not say when it starts; it is cancelled through Ray
        if self._lost:
            future.set_exception(ClusterLost(self._lost))
            return future
        try:
            call = ray.cloudpickle.dumps((function, arguments))
        except Exception as error:
            future.set_exception(
                InputError(f"{function!r} or its arguments cannot be sent to a worker ({error}).")
            )
            return future
        try:
            with self._lock:
                self._waiting[future] = None
            reference = self._task.remote(call, self.threads)
            with self._lock:
                if future in self._waiting:
                    self._waiting[future] = reference
            reference.future().add_done_callback(lambda ended: self._arrived(future, ended))
        except Exception as error:
            self._fail(future, self._reason(error))
        return future

    def __enter__(self) -> Self:
        self._print = builtins.print  # Ray puts one of its own in its place
        self._ray = ray = import_ray()
        self._ours = not ray.is_initialized()
        self._left.clear()
        self._lost = ""
        variables = thread_variables(self.threads)
        address = self.address
        if address == "auto":
            address = os.environ.get("RAY_ADDRESS") or address
        try:
            if self._ours:
                self._connect(ray, address, variables)
            fit = self._count(ray.nodes())
            if not fit:
                self._refuse_or_warn(address)
            self._fit = max(1, fit)
            options: dict[str, Any] = {
                "num_cpus": self.cpus_per_work,
                "num_gpus": self.gpus_per_work,
                "max_retries": self.retries,
                "retry_exceptions": False,
            }
            if self.memory_per_work:
                options["memory"] = self.memory_per_work
            if address != "local" or not self._ours:
                options["runtime_env"] = {
                    "env_vars": variables
                }  # a local cluster inherits them, which is faster
            self._task = ray.remote(**options)(on_worker)
            head, node = address.removeprefix("ray://"), None
            if not address.startswith("ray://"):
                context = ray.get_runtime_context()
                head, node = context.gcs_address, context.get_node_id()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        threading.Thread(target=self._watch, args=(head, node), daemon=True, name="mirepoix-ray").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        with self._lock:
            waiting = dict(self._waiting)
        try:
            for future, reference in waiting.items():
                if error is None:
                    with contextlib.suppress(Exception):
                        future.result()
                elif reference is not None and not self._ours and not self._lost:
                    with contextlib.suppress(Exception):
                        self._ray.cancel(reference, force=True)
        finally:
            if self._ours and self._ray.is_initialized():
                with quiet():
                    self._ray.shutdown()
            self._ray = self._task = None
            builtins.print = self._print

    def _entered(self) -> Any:
        if self._ray is None:
            raise InputError("RayCluster: it works inside its `with` block only.")
        return self._ray

    def _refuse_or_warn(self, address: str) -> None:
        """No node has room for one work."""
        share = f"{self.cpus_per_work:g} CPU, {self.gpus_per_work:g} GPU, {self.memory_per_work or 0} bytes"
        if address == "local" and self._ours:
            raise InputError(f"RayCluster: this machine has no room for one work ({share}); ask for less.")
        log.warning("no node of the Ray cluster has room for one work now (%s); works wait for one.", share)

    def _connect(self, ray: Any, address: str, variables: dict[str, str]) -> None:
        errors_to_stderr(ray)
        if address == "local":
            with quiet(), environment(variables):
                ray.init(
                    address="local",
                    num_cpus=self.limit,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    object_store_memory=OBJECTS,
                )
            return
        if address != "auto":
            reach(address)
        try:
            with quiet():
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (Exception, SystemExit) as error:  # Ray ends the process that it cannot connect
            raise InputError(
                f"no Ray cluster could be joined with the address {self.address!r} ({one_line(error)}); start one "
                "with `ray start --head`, name the head as HOST:6379, or use the address 'local'. If the cluster "
                "asks for a token, this machine needs the same one (`ray get-auth-token`)."
            ) from error

    def _watch(self, head: str, node: str | None) -> None:
        """Count what the cluster has, as it may grow, and notice that its head or its part here is gone.

        For the first, Ray would end this process after a minute; for the second, the futures would never end.
        """
        missed = 0
        while not self._left.wait(PULSE):
            try:
                greet(head, PULSE)  # first, as Ray's own questions wait for a minute
                nodes = self._ray.nodes()
                self._fit = max(1, self._count(nodes))
                here = not node or any(x["Alive"] for x in nodes if x["NodeID"] == node)
            except Exception:
                here = False
            missed = 0 if here else missed + 1
            if missed == MISSED and not self._left.is_set():
                self._lost = f"the Ray cluster at {head} no longer answers."
                with self._lock:
                    waiting = list(self._waiting)
                for future in waiting:
                    self._fail(future, ClusterLost(self._lost))
                return

    def _arrived(self, future: WorkFuture, ended: Any) -> None:
        try:
            result: Attempt = ended.result()
        except BaseException as error:
            self._fail(future, self._reason(error))
            return
        if self._taken(future):
            settle(future, result)

    def _fail(self, future: WorkFuture, error: Exception) -> None:
        if self._taken(future):
            future.set_exception(error)

    def _taken(self, future: WorkFuture) -> bool:
        """Whether the future was still open; the watch and Ray may both want to end it."""
        with self._lock:
            return self._waiting.pop(future, None) is not None

    def _reason(self, error: BaseException) -> Exception:
        """Ray's error in our words."""
        errors = self._ray.exceptions if self._ray else import_ray().exceptions
        if isinstance(error, errors.OutOfMemoryError):
            return WorkerLost(
                "its node ran out of memory, after all retries; give it more per work", final=True
            )
        lost = (errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError)
        if isinstance(error, lost):
            return WorkerLost(f"its worker was lost, after all retries ({one_line(error)})", final=True)
        if isinstance(error, errors.RayTaskError):
            return RuntimeError(
                f"a worker could not begin ({one_line(error)}); every node needs the same mirepoix and torch."
            )
        gone = (errors.LocalRayletDiedError, errors.RaySystemError, errors.RpcError, ConnectionError)
        if isinstance(error, gone):
            return ClusterLost(f"the Ray cluster at {self.address} no longer answers ({one_line(error)}).")
        return error if isinstance(error, Exception) else RuntimeError(repr(error))


def on_worker(call: bytes, threads: int) -> Attempt:
    """What a worker does with one call."""
    import pickle

    return attempt(lambda: pickle.loads(call), threads)


def import_ray() -> Any:
    """Ray, with the settings it reads while it is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # `ray start` asks for a token when there is one; a driver that joins does not show it unless it is told to.
    token = Path.home() / ".ray" / "auth_token"
    if "ray" not in sys.modules and (
        token.is_file() or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        with quiet():
            import ray
    except ImportError as error:
        raise InputError(
            f"a Ray cluster needs Ray, which cannot be imported ({error}): pip install 'mirepoix[sweep]'."
        ) from error
    return ray


def errors_to_stderr(ray: Any) -> None:
    """Ray prints lost workers on standard output, even unasked; that belongs to our results."""
    worker = ray._private.worker
    plain = getattr(worker, "print_to_stdstream", None)
    if plain is not None and not hasattr(plain, "mirepoix"):

        def printed(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
            plain({**data, "is_err": True}, *arguments, **options)

        printed.mirepoix = True  # type: ignore[attr-defined]
        worker.print_to_stdstream = printed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ray's warnings about its own inside are not the user's to act on."""
    with warnings.catch_warnings():
        for category in (ResourceWarning, FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        yield


def reach(address: str) -> None:
    """Refuse an address where nothing listens: Ray would try for minutes."""
    host_and_port = address.removeprefix("ray://")
    host, colon, port = host_and_port.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise InputError(
            f"Ray address: expected 'local', 'auto', 'HOST:PORT' or 'ray://HOST:PORT', got {address!r}."
        )
    try:
        greet(host_and_port, REACH)
    except OSError as error:
        raise InputError(
            f"no Ray cluster answers at {address!r} ({error}); start it with `ray start --head`, and give the "
            "address that it prints (port 6379, or 10001 after ray://)."
        ) from None


def greet(address: str, timeout: float) -> None:
    """Open a connection and see that the other side speaks gRPC, as a head that lives does."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout) as connection:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return
        connection.settimeout(timeout)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        head = connection.recv(9)
        if len(head) < 4 or head[3] != 4:  # both sides begin with their settings, a frame of type 4
            raise OSError("something listens there that is no Ray cluster")


def one_line(error: BaseException) -> str:
    """The last line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
