import os
import pickle
import secrets
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mirepoix.cluster import Inline, RayCluster, Work, carry_out, gathered, on_ray
from mirepoix.cluster._ray import greet
from mirepoix.runs import Run
from mirepoix.strategies import diwa, fine_tuning, wise
from mirepoix.types import InputError
from mirepoix.weights import average, interpolate
from tests.cluster import calls

ray = pytest.importorskip("ray", reason="pip install 'mirepoix[sweep]'")

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray's processes and sockets, at its end
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one to the home folder
        with RayCluster("local", workers=2) as opened:
            yield opened
    assert not ray.is_initialized()


def test_a_cluster_on_this_machine_says_what_it_has(cluster):
    assert cluster.workers == 2
    assert cluster.describe() == "Ray cluster on this machine, 1 CPU per work, 1 thread each, 2 at once"


def test_the_bits_are_those_of_one_process(cluster):
    works = [Work(f"seed {seed}", calls.train_bits, (seed,)) for seed in range(3)]
    with Inline(threads=1) as engine:
        here, there = carry_out(works, engine), carry_out(works, cluster)
    assert [here[name].value for name in here] == [there[name].value for name in here]


def test_threads_are_set_before_and_after_torch_is_there(cluster):
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    assert cluster.submit(calls.environment, *names).result()[1:] == ("1", "1", "1")
    assert [cluster.submit(calls.torch_threads).result() for _ in range(4)] == [1] * 4


def test_ray_starts_a_work_again_whose_worker_was_lost(cluster, tmp_path):
    log = tmp_path / "log"
    works = [
        Work("victim", calls.die_once, (tmp_path / "marker",), weight=9),
        Work("exits", calls.die_once, (tmp_path / "other", "exit"), weight=8),
        *(Work(f"w{i}", calls.write, (log, i)) for i in range(20)),
        Work("after", calls.add, (1,), needs=("victim",)),
    ]
    done = carry_out(works, cluster)
    assert {result.status for result in done.values()} == {"done"}
    assert sorted(log.read_text().split(), key=int) == [str(i) for i in range(20)]


def test_a_work_that_kills_every_worker_fails(cluster):
    done = carry_out([Work("bad", calls.die), Work("good", calls.add, (1, 2))], cluster)
    assert done["bad"].status == "failed"
    assert done["bad"].message.startswith("its worker was lost, after all retries")
    assert done["good"].value == 3


def test_a_failure_skips_what_needs_it(cluster):
    works = [
        Work("bad", calls.refuse, ("no such domain",)),
        Work("child", calls.add, needs=("bad",)),
        Work("good", calls.add, (2, 3)),
    ]
    done = carry_out(works, cluster)
    assert (done["bad"].status, done["bad"].message) == ("failed", "no such domain")
    assert done["child"].message == "it needs 'bad', which failed: no such domain"
    assert done["good"].value == 5
    assert type(cluster.submit(calls.refuse, "x").exception()) is InputError


def test_what_cannot_travel_is_refused(cluster):
    with pytest.raises(InputError, match=r"cannot be sent to a worker"):
        cluster.submit(calls.add, socket.socket()).result()


# The page of equations


def equation():
    import torch

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 5, generator=generator), torch.randn(64, generator=generator)
    theta = {"w": torch.zeros(5)}
    runs = [Run(seed=seed, steps=20, learning_rate=0.01 * (seed + 1)) for seed in range(4)]
    return theta, (x, y), runs


def bits(theta):
    return {name: tensor.numpy().tobytes() for name, tensor in theta.items()}


def test_the_page_of_equations_has_the_same_bits_on_ray(cluster):
    theta, task, runs = equation()
    here = diwa(calls.train, theta, task, runs, combine=average)
    there = diwa(on_ray(calls.train), theta, task, runs, combine=gathered(average))
    assert bits(there) == bits(here)
    assert bits(here) != bits(theta)


def test_references_may_stand_for_weights_task_and_run(cluster):
    theta, task, runs = equation()
    train = on_ray(calls.train, cpus=0.5)
    first = train(ray.put(theta), ray.put(task), ray.put(runs[0]))
    assert isinstance(first, ray.ObjectRef)
    there = diwa(train, first, task, runs[1:], combine=gathered(average))  # starts that are not there yet
    here = diwa(calls.train, calls.train(theta, task, runs[0]), task, runs[1:])
    assert bits(there) == bits(here)


def test_gathered_serves_every_combine(cluster):
    theta, task, runs = equation()
    train = on_ray(calls.train)
    here = wise(calls.train, theta, task, runs[0], 0.25)
    assert bits(wise(train, theta, task, runs[0], 0.25, combine=gathered(interpolate))) == bits(here)
    members = fine_tuning(train, theta, task, runs, combine=gathered(list))
    assert [bits(member) for member in members] == [bits(calls.train(theta, task, run)) for run in runs]


def test_all_members_are_submitted_before_the_first_is_fetched(cluster):
    submitted = []

    def train(number):
        submitted.append(number)
        return ray.put(number)

    def first(members):
        assert next(members) == 0
        return len(submitted)

    assert gathered(first)(train(number) for number in range(5)) == 5


# Addresses and numbers


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_answers_fails_at_once(scheme):
    address = f"{scheme}127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(InputError, match=rf"no Ray cluster answers at '{address}'.*ray start --head"):
        reach_in_fresh_process(address)
    assert time.monotonic() - started < 30


def reach_in_fresh_process(address):
    """Enter a cluster where this process's own one is not in the way; its error is raised here."""
    code = f"""
        import pickle, sys
        from mirepoix.cluster import RayCluster
        from mirepoix.types import InputError
        try:
            with RayCluster({address!r}):
                pass
        except InputError as error:
            sys.stdout.buffer.write(pickle.dumps(error))
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, timeout=60, env=environment
    )
    raise pickle.loads(told.stdout)


def test_a_server_that_is_no_cluster_is_recognised():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(TimeoutError):
            greet(address, 0.2)
        with pytest.raises(InputError, match="no Ray cluster answers"):
            greet_then_talk(listening, address)


def greet_then_talk(listening, address):
    import threading

    from mirepoix.cluster._ray import reach

    def talk():
        for _ in range(2):  # the first one is the greeting that was given up
            connection, _ = listening.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        reach(address)
    finally:
        thread.join()


def test_the_head_of_a_cluster_is_recognised(cluster):
    greet(ray.get_runtime_context().gcs_address, 5)


@pytest.mark.parametrize("address", ["locall", "host", "host:port", ":6379", "ray://host"])
def test_an_address_of_another_form_is_refused(address):
    with pytest.raises(InputError, match=r"expected 'local', 'auto', 'HOST:PORT'"):
        reach_in_fresh_process(address)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads: expected at least 1, got 0"),
        ({"workers": 0}, "workers: expected at least 1, got 0"),
        ({"cpus_per_work": 0}, "above 0, got cpus_per_work=0 and gpus_per_work=0"),
        ({"cpus_per_work": -1, "gpus_per_work": 2}, "above 0"),
        ({"gpus_per_work": 1.5}, "a fraction of one GPU or whole GPUs per work, got 1.5"),
        ({"retries": -1}, "retries of at least 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        RayCluster(**options)


def test_a_cluster_works_in_its_block_only():
    with pytest.raises(InputError, match="inside its `with` block"):
        RayCluster().submit(calls.add)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'mirepoix\[sweep\]'"), RayCluster():
        pass
    with pytest.raises(InputError, match=r"pip install 'mirepoix\[sweep\]'"):
        on_ray(calls.train)


def test_shares_decide_how_many_works_fit(cluster, caplog):
    with RayCluster("local", cpus_per_work=0.5) as shared:  # the connection that is there already
        assert shared.workers == 4
        assert shared.submit(calls.add, 1, 2).result() == 3
    with RayCluster("local", cpus_per_work=0.5, gpus_per_work=0.25, workers=3) as shared:
        assert shared.workers == 1  # no GPU now; a cluster that grows may bring one
        assert (
            "no node of the Ray cluster has room for one work now (0.5 CPU, 0.25 GPU, 0 bytes)" in caplog.text
        )
        assert "0.5 CPU and 0.25 GPU per work" in shared.describe()
    assert ray.is_initialized()


def test_a_work_lies_on_one_node():
    def nodes(*processors):
        return [
            {"Alive": number < 3, "Resources": {"CPU": c, "GPU": 1.0}} for number, c in enumerate(processors)
        ]

    assert RayCluster(cpus_per_work=2)._count(nodes(3.0, 1.0, 4.0, 8.0)) == 1 + 0 + 2
    assert RayCluster(cpus_per_work=0.5, gpus_per_work=0.25)._count(nodes(3.0, 1.0)) == 4 + 2
    assert RayCluster(workers=5)._count(nodes(3.0, 4.0)) == 5
    assert RayCluster(memory_per_work=1)._count(nodes(3.0)) == 0


DRIVER = """
    import os, signal, subprocess, sys
    sys.path.insert(0, {root!r})
    from mirepoix.cluster import ClusterLost, RayCluster, Work, carry_out
    from tests.cluster import calls

    with RayCluster("local", workers=2) as cluster:
        assert carry_out([Work("a", calls.add, (1,))], cluster)["a"].value == 1
        children = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True).stdout
        for process in children.split():
            with open(f"/proc/{{process}}/cmdline") as file:
                if file.read().split("\\0")[0].endswith({victim!r}):
                    os.kill(int(process), signal.SIGKILL)
        works = [Work("b", calls.sleep, (300,)), Work("c", calls.add, (1,), needs=("b",))]
        try:
            carry_out(works, cluster)
        except ClusterLost as error:
            print("LOST", error)
    print("LEFT")
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["gcs_server", "raylet"])
def test_a_cluster_that_goes_away_is_noticed_and_the_driver_lives(root, victim):
    code = textwrap.dedent(DRIVER).format(root=str(root), victim=victim)
    environment = {**os.environ, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=150, env=environment
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("LOST")  # and nothing of Ray's own
    assert "no longer answers" in told.stdout
    assert " 0 of 2 works are done, and what they made is kept in the store." in told.stdout
    assert told.stdout.rstrip().endswith("LEFT")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_cluster_that_runs_already_is_joined_and_left_running(mode, tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    private = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    private["HOME"] = str(tmp_path)
    address = f"127.0.0.1:{free_port()}"
    start = ["ray", "start", "--head", "--block", "--include-dashboard=false", "--num-cpus=2"]
    head = subprocess.Popen(
        [*start, f"--port={address.partition(':')[2]}"],
        executable=str(Path(sys.executable).with_name("ray")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**private, "RAY_AUTH_MODE": mode},
    )
    code = f"""
        import math, os
        from mirepoix.cluster import RayCluster, Work, carry_out
        for _ in range(2):
            with RayCluster({address!r}, cpus_per_work=0.5, threads=3) as cluster:
                print(cluster.describe())
                works = [Work("root", math.sqrt, (9,)), Work("threads", os.getenv, ("OMP_NUM_THREADS",))]
                print({{name: done.value for name, done in carry_out(works, cluster).items()}})
    """
    try:
        assert until_answered(address)
        told = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            timeout=90,
            env=private,
        )
        assert told.returncode == 0, told.stderr
    finally:
        head.terminate()
        head.wait(60)
    said = [f"Ray cluster at {address}, 0.5 CPU per work, 3 threads each, 4 at once"]
    assert told.stdout.splitlines() == [*said, "{'root': 3.0, 'threads': '3'}"] * 2


def until_answered(address):
    for _ in range(120):
        try:
            greet(address, 1)
        except OSError:
            time.sleep(0.5)
        else:
            time.sleep(3)  # the node follows its head
            return True
    return False


@pytest.mark.slow
def test_a_machine_without_room_for_one_work_says_so():
    code = """
        import ray
        from mirepoix.cluster import RayCluster
        from mirepoix.types import InputError
        try:
            with RayCluster("local", cpus_per_work=4, workers=2):
                pass
        except InputError as error:
            print(error, ray.is_initialized())
    """
    environment = {**os.environ, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    told = subprocess.check_output(
        [sys.executable, "-c", textwrap.dedent(code)], text=True, timeout=90, env=environment
    )
    message = "this machine has no room for one work (4 CPU, 0 GPU, 0 bytes); ask for less. False"
    assert told.strip() == f"RayCluster: {message}"


@pytest.mark.slow
def test_ctrl_c_ends_driver_and_cluster(root):
    code = f"""
        import sys
        sys.path.insert(0, {str(root)!r})
        from mirepoix.cluster import RayCluster, Work, carry_out
        from tests.cluster import calls
        with RayCluster("local", workers=2) as cluster:
            carry_out([Work("a", calls.add, (1,))], cluster)
            print("READY", flush=True)
            carry_out([Work("b", calls.sleep, (300,))], cluster)
    """
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "RAY_AUTH_TOKEN": secrets.token_hex(32)},
    )
    assert driver.stdout.readline() == "READY\n"
    time.sleep(1)
    started = time.monotonic()
    driver.send_signal(signal.SIGINT)
    _, told = driver.communicate(timeout=60)
    assert time.monotonic() - started < 20
    assert "KeyboardInterrupt" in told
