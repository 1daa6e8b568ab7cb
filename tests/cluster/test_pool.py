import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from mirepoix.cluster import Inline, LocalPool, Work, WorkerLost, carry_out
from mirepoix.cluster._pool import ending, visible_gpu
from mirepoix.types import InputError
from tests.cluster import calls


@pytest.fixture(scope="module")
def pool():
    with LocalPool(2) as opened:
        yield opened


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_values_come_back_in_the_order_asked_for(pool):
    futures = [pool.submit(calls.add, i, 1) for i in range(50)]
    assert [future.result() for future in futures] == list(range(1, 51))
    assert all(0 <= future.seconds < 1 for future in futures)
    assert pool.workers == 2


def test_the_bits_are_those_of_one_process(pool):
    works = [Work(f"seed {seed}", calls.train_bits, (seed,)) for seed in range(3)]
    with Inline(threads=1) as engine:
        here, there = carry_out(works, engine), carry_out(works, pool)
    assert [here[name].value for name in here] == [there[name].value for name in here]
    assert len({result.value for result in here.values()}) == 3


def test_a_worker_that_is_killed_loses_its_work_only_and_that_is_done_again(pool, tmp_path):
    log = tmp_path / "log"
    works = [
        Work("victim", calls.die_once, (tmp_path / "marker",), weight=9),
        Work("exits", calls.die_once, (tmp_path / "other", "exit"), weight=8),
        *(Work(f"w{i}", calls.write, (log, i)) for i in range(20)),
        Work("long", calls.sleep, (0.5,), weight=7),
        Work("after", calls.add, (1,), needs=("victim",)),
    ]
    events = []
    done = carry_out(works, pool, on_event=events.append)
    assert {result.status for result in done.values()} == {"done"}
    assert {name: result.attempts for name, result in done.items() if result.attempts > 1} == {
        "victim": 2,
        "exits": 2,
    }
    assert sorted(log.read_text().split(), key=int) == [str(i) for i in range(20)]  # each once
    retried = {event.name: event.message for event in events if event.kind == "retried"}
    assert retried["victim"] == "its worker was killed by SIGKILL; perhaps the memory ran out"
    assert retried["exits"] == "its worker ended with exit code 3"


def test_a_work_that_kills_every_worker_fails_and_the_pool_lives(pool):
    done = carry_out([Work("bad", calls.die), Work("good", calls.add, (1, 2))], pool, retries=1)
    assert done["bad"].message == "its worker was killed by SIGKILL; perhaps the memory ran out, 2 times"
    assert done["bad"].attempts == 2
    assert done["good"].value == 3


def test_an_idle_worker_that_was_killed_is_replaced(pool):
    futures = [pool.submit(calls.environment) for _ in range(4)]
    for process in {future.result()[0] for future in futures}:  # all are idle now
        os.kill(process, signal.SIGKILL)
        assert wait_until(lambda process=process: not alive(process))
    # A process with several threads is a zombie a moment before it can be waited for.
    assert wait_until(lambda: not any(slot.process and slot.process.is_alive() for slot in pool._slots))
    assert pool.submit(calls.add, 1).result() == 1


def test_errors_keep_their_type_their_text_and_where_they_were_raised(pool):
    error = pool.submit(calls.refuse, "no such domain").exception()
    assert type(error) is InputError
    assert str(error) == "no such domain"
    assert "calls.py" in error.__notes__[0]
    assert "the loss is nan at step 3" in str(pool.submit(calls.diverge, 3).exception())
    error = pool.submit(calls.raise_unsendable).exception()
    assert str(error) == "Unsendable: one and two"
    done = carry_out([Work("w", calls.raise_unsendable)], pool)["w"]
    assert done.message == "Unsendable: one and two"
    assert str(pool.submit(calls.leave, 4).exception()) == "SystemExit: 4"


def test_what_cannot_travel_is_refused(pool):
    with pytest.raises(InputError, match=r"cannot be sent to a worker .* use a function of a module"):
        pool.submit(lambda: None).result()
    with pytest.raises(InputError, match=r"cannot be sent back .* return plain values"):
        pool.submit(calls.return_unsendable).result()
    assert pool.submit(calls.add, 1).result() == 1


def test_threads_are_set_before_and_after_torch_is_there():
    with LocalPool(1, threads=2) as pool:
        assert pool.describe() == "1 process on this machine, 2 threads"
        _, *variables = pool.submit(calls.environment, "OMP_NUM_THREADS", "MKL_NUM_THREADS").result()
        assert variables == ["2", "2"]
        assert [pool.submit(calls.torch_threads).result() for _ in range(2)] == [2, 2]
    assert os.environ.get("OMP_NUM_THREADS") == "1"  # as conftest set it: ours is as it was


def test_each_worker_sees_one_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5")
    with LocalPool(3, gpus=(0, 1)) as pool:
        assert pool.describe() == "3 processes on this machine, 1 thread each, on GPU 4, GPU-5"
        seen = set()
        assert wait_until(
            lambda: (
                seen.update(
                    future.result()
                    for future in [pool.submit(calls.environment, "CUDA_VISIBLE_DEVICES") for _ in range(3)]
                )
                or len(seen) == 3
            )
        )
    assert sorted(device for _, device in seen) == ["4", "4", "GPU-5"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,GPU-5"


def test_gpus_are_counted_as_the_driver_counts_them(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert visible_gpu(1) == "5"
    for gpu in (2, -1):
        with pytest.raises(InputError, match=rf"got {gpu}; CUDA_VISIBLE_DEVICES is '4,5'"):
            LocalPool(1, gpus=(gpu,))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES is ''"):
        LocalPool(1, gpus=(0,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpu(3) == "3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers: expected at least 1, got 0"),
        ({"workers": 1, "threads": 0}, "threads: expected"),
    ],
)
def test_counts_below_one_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        LocalPool(**options)


def test_a_pool_works_in_its_block_only():
    with pytest.raises(InputError, match="inside its `with` block"):
        LocalPool(1).submit(calls.add)


def test_leaving_the_block_waits_and_leaving_it_by_an_error_does_not(tmp_path):
    with LocalPool(1) as pool:
        futures = [pool.submit(calls.write, tmp_path / "log", i) for i in range(5)]
    assert [future.result() for future in futures] == list(range(5))
    started = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt), LocalPool(1) as pool:
        process = pool.submit(calls.environment).result()[0]
        running, waiting = pool.submit(calls.sleep, 60), pool.submit(calls.sleep, 60)
        assert wait_until(running.running)
        raise KeyboardInterrupt
    assert time.monotonic() - started < 15
    assert isinstance(running.exception(), WorkerLost)
    assert waiting.cancelled()
    assert not alive(process)


def test_the_ways_a_process_ends_have_words():
    assert ending(0) == "ended with exit code 0"
    assert ending(-signal.SIGSEGV) == "was killed by SIGSEGV"
    assert ending(None) == "closed its pipe"


DRIVER = """
    import os, sys
    sys.path.insert(0, {root!r})
    from mirepoix.cluster import LocalPool, Work, carry_out
    from tests.cluster import calls

    if __name__ == "__main__":
        os.environ["WORD"] = "said"
        with LocalPool(2) as pool:
            works = [Work(f"w{{i}}", calls.write, ({log!r}, i), weight=9 - i) for i in range(3)]
            works += [Work(f"pid {{i}}", {module}.busy, ({log!r},), needs=("w0", "w1", "w2")) for i in range(4)]
            carry_out(works, pool)
"""


def start_driver(root, tmp_path):
    """A script whose two workers have written their process ids and compute on."""
    log = tmp_path / "log"
    (tmp_path / "busy_work.py").write_text(
        "import os, time\n"
        "def busy(log):\n"
        "    with open(log, 'a') as file:\n"
        "        file.write(f'pid {os.getpid()}\\n')\n"
        "    until = time.monotonic() + 60\n"
        "    while time.monotonic() < until:\n"
        "        sum(range(1000))\n"
    )
    script = tmp_path / "driver.py"
    text = textwrap.dedent(DRIVER).format(root=str(root), log=str(log), module="busy_work")
    script.write_text(text.replace("import os, sys\n", "import os, sys, busy_work\n"))
    driver = subprocess.Popen(
        [sys.executable, script], start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    found = wait_until(lambda: log.exists() and log.read_text().count("pid") == 2, 30)
    processes = [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("pid")]
    assert found, driver.stderr
    return driver, processes, log


def test_workers_end_with_a_driver_that_is_killed_and_finished_works_are_kept(root, tmp_path):
    driver, processes, log = start_driver(root, tmp_path)
    assert all(alive(process) for process in processes)
    driver.kill()
    driver.communicate()
    assert wait_until(lambda: not any(alive(process) for process in processes), 5)
    assert sorted(log.read_text().split()[:3]) == ["0", "1", "2"]


def test_ctrl_c_ends_driver_and_workers_at_once(root, tmp_path):
    driver, processes, _ = start_driver(root, tmp_path)
    started = time.monotonic()
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, told = driver.communicate(timeout=20)
    assert time.monotonic() - started < 3
    assert told.rstrip().endswith(b"KeyboardInterrupt")
    assert b"mirepoix-pool" not in told
    assert wait_until(lambda: not any(alive(process) for process in processes), 2)


def test_no_thread_is_left():
    with LocalPool(2) as pool:
        pool.submit(calls.add).result()
        assert sum(thread.name == "mirepoix-pool" for thread in threading.enumerate()) >= 2
        mine = [slot.thread for slot in pool._slots]
    assert not any(thread.is_alive() for thread in mine)
