import random
import time
from graphlib import TopologicalSorter

import pytest

from mirepoix.cluster import ClusterLost, Done, Inline, Work, WorkerLost, WorkFuture, carry_out
from mirepoix.types import InputError
from tests.cluster.calls import (
    add,
    diverge,
    leave,
    raise_unsendable,
    refuse,
    return_unsendable,
    torch_threads,
)


class Scripted:
    """An engine whose futures a test ends by hand: what it was given, and when."""

    def __init__(self, workers=2):
        self.workers = workers
        self.open = []
        self.most = 0
        self.answers = {}

    def submit(self, function, /, *arguments):
        future = WorkFuture()
        self.open.append((future, arguments))
        self.most = max(self.most, len(self.open))
        if len(self.open) >= 2 * self.workers or not self.more(arguments):
            self.end_all()
        return future

    def more(self, arguments):
        return False

    def end_all(self):
        for future, arguments in self.open:
            answer = self.answers.get(arguments[0], [arguments[0]])
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        self.open.clear()


def run(works, **options):
    with Inline() as engine:
        return carry_out(works, engine, **options)


def values(done):
    return {name: result.value for name, result in done.items()}


def test_every_work_is_done_after_what_it_needs():
    random.seed(0)
    for _ in range(20):
        names = [f"w{i}" for i in range(30)]
        works = [
            Work(name, add, (i,), needs=tuple(random.sample(names[:i], min(i, 3))), weight=random.random())
            for i, name in enumerate(names)
        ]
        random.shuffle(works)
        events = []
        done = run(works, on_event=events.append)
        order = [event.name for event in events if event.kind == "done"]
        assert sorted(order) == sorted(names)
        assert all(order.index(need) < order.index(work.name) for work in works for need in work.needs)
        assert list(done) == [work.name for work in works]
        assert values(done) == {f"w{i}": i for i in range(30)}
        assert {(result.status, result.attempts) for result in done.values()} == {("done", 1)}


def test_the_longest_way_comes_first():
    works = [
        Work("short", add, weight=4),
        Work("long-1", add, weight=1),
        Work("long-2", add, needs=("long-1",), weight=2),
        Work("long-3", add, needs=("long-2",), weight=3),
        Work("middle", add, weight=5),
    ]
    events = []
    run(works, on_event=events.append)
    order = [event.name for event in events if event.kind == "submitted"]
    # Ways: long-1 6, long-2 5, long-3 3, middle 5, short 4; equals in the order given.
    assert order == ["long-1", "long-2", "middle", "short", "long-3"]


def test_equals_start_in_the_order_given():
    events = []
    run([Work(name, add) for name in "cab"], on_event=events.append)
    assert [event.name for event in events if event.kind == "submitted"] == list("cab")


def test_no_works_are_no_results():
    assert run([]) == {}


@pytest.mark.parametrize(
    ("works", "message"),
    [
        ([Work("a", add), Work("a", add)], "two works are called 'a'"),
        ([Work("a", add, needs=("b",))], "work 'a' needs 'b', which is none of the 1 works"),
        ([Work("a", add, needs=("a",))], "wait for each other: 'a' needs 'a'"),
        (
            [Work("x", add), *(Work(a, add, needs=(b, "x")) for a, b in ("ab", "bc", "ca"))],
            r"wait for each other: '(a' needs 'b' needs 'c' needs 'a|b' needs 'c' needs 'a' needs 'b|"
            r"c' needs 'a' needs 'b' needs 'c)'",
        ),
        ([Work("a", add, weight=-1)], "weight of at least 0, got -1"),
    ],
)
def test_works_that_make_no_sense_are_refused(works, message):
    with pytest.raises(InputError, match=message):
        run(works)


def test_retries_are_not_negative():
    with pytest.raises(InputError, match="retries of at least 0, got -1"):
        run([], retries=-1)


CHAIN = [
    Work("bad", refuse, ("no such domain",)),
    Work("child", add, needs=("bad",)),
    Work("grandchild", add, (1,), needs=("child", "good")),
    Work("good", add, (2, 3)),
]


def test_a_failure_skips_what_needs_it_and_nothing_else():
    done = run(CHAIN)
    assert done["bad"].status == "failed"
    assert done["bad"].message == "no such domain"
    for name in ("child", "grandchild"):
        assert done[name] == Done("skipped", None, "it needs 'bad', which failed: no such domain")
    assert (done["good"].status, done["good"].value) == ("done", 5)


def test_a_long_chain_of_skipped_works_is_no_recursion():
    works = [Work("w0", refuse, ("no",)), *(Work(f"w{i}", add, needs=(f"w{i - 1}",)) for i in range(1, 3000))]
    assert sum(result.status == "skipped" for result in run(works).values()) == 2999


def test_without_keep_going_no_further_work_starts():
    done = run([Work("first", add, weight=9), *CHAIN], keep_going=False)
    assert {name: result.status for name, result in done.items()} == {
        "first": "done",
        "bad": "failed",
        "child": "skipped",
        "grandchild": "skipped",
        "good": "skipped",
    }
    assert done["good"].message == "not started, as 'bad' failed"


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (refuse, ("say it",), "say it"),
        (diverge, (7,), "the loss is nan at step 7"),
        (raise_unsendable, (), "one and two"),
        (add, ("text",), "TypeError: unsupported operand"),
    ],
)
def test_a_failure_says_what_was_raised(function, arguments, message):
    done = run([Work("w", function, arguments)])["w"]
    assert done.status == "failed"
    assert message in done.message


def test_leaving_in_this_process_leaves():
    with pytest.raises(SystemExit, match="4"):
        run([Work("w", leave, (4,)), Work("other", add, (1, 2))])


def test_events_count_the_whole_sweep():
    events = []
    run(CHAIN, on_event=events.append)
    assert [(event.kind, event.name) for event in events] == [
        ("submitted", "bad"),
        ("started", "bad"),
        ("failed", "bad"),
        ("skipped", "child"),
        ("skipped", "grandchild"),
        ("submitted", "good"),
        ("started", "good"),
        ("done", "good"),
    ]
    last = events[-1]
    assert (last.done, last.failed, last.skipped, last.running, last.total) == (1, 1, 2, 0, 4)
    assert events[0].running == 1
    for event in events:
        assert event.done + event.failed + event.skipped + event.running <= event.total


def test_only_a_few_works_are_submitted_at_once():
    class Patient(Scripted):
        def more(self, arguments):
            return True

    engine = Patient(workers=3)
    works = [Work(f"w{i}", add, (i,)) for i in range(600)]
    assert values(carry_out(works, engine)) == {f"w{i}": i for i in range(600)}
    assert engine.most == 6


def test_a_lost_worker_is_tried_again_up_to_the_retries():
    engine, events = Scripted(), []
    lost = WorkerLost("its worker was killed by SIGKILL")
    engine.answers = {1: [lost, lost, "saved"], 2: [lost]}
    works = [Work("one", add, (1,)), Work("two", add, (2,)), Work("after", add, (3,), needs=("two",))]
    done = carry_out(works, engine, retries=2, on_event=events.append)
    assert (done["one"].value, done["one"].attempts) == ("saved", 3)
    assert (done["two"].status, done["two"].attempts) == ("failed", 3)
    assert done["two"].message == "its worker was killed by SIGKILL, 3 times"
    assert done["after"].status == "skipped"
    assert [event.name for event in events if event.kind == "retried"].count("one") == 2


def test_a_loss_that_the_engine_gave_up_on_is_not_tried_again():
    engine = Scripted()
    engine.answers = {1: [WorkerLost("lost after all retries", final=True)]}
    done = carry_out([Work("one", add, (1,))], engine)["one"]
    assert (done.status, done.message, done.attempts) == ("failed", "lost after all retries", 1)


def test_a_lost_cluster_ends_the_sweep_and_says_that_it_can_go_on():
    engine = Scripted(workers=1)
    engine.answers = {2: [ClusterLost("the Ray cluster at head:6379 no longer answers.")]}
    with pytest.raises(
        ClusterLost, match=r"head:6379 no longer answers\. 1 of 3 works are done.*same command"
    ):
        carry_out([Work(f"w{i}", add, (i,), weight=5 - i) for i in (1, 2, 3)], engine)


def test_an_error_of_on_event_ends_the_sweep():
    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(CHAIN, on_event=stop)


def test_inline_works_in_this_process_and_takes_no_time():
    assert "one work at a time" in Inline().describe()
    started = time.perf_counter()
    done = run([Work(f"w{i}", add, (i,)) for i in range(2000)])
    assert time.perf_counter() - started < 2
    assert sum(result.value for result in done.values()) == 1999 * 1000
    with Inline() as engine:
        assert engine.submit(return_unsendable).result()() is None


def test_the_order_agrees_with_graphlib():
    works = {"a": ("b", "c"), "b": ("c",), "c": (), "d": ("a",)}
    events = []
    run([Work(name, add, needs=needs) for name, needs in works.items()], on_event=events.append)
    done = [event.name for event in events if event.kind == "done"]
    assert done == list(TopologicalSorter(works).static_order())


def test_inline_sets_the_threads_of_torch_inside_its_block():
    import torch

    before = torch.get_num_threads()
    with Inline(threads=2) as engine:
        assert [engine.submit(torch_threads).result() for _ in range(2)] == [2, 2]
    assert torch.get_num_threads() == before
    with pytest.raises(InputError, match="Inline: threads: expected at least 1, got 0"):
        Inline(threads=0)
