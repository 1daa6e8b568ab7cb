import io
import math
import warnings
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.training import SWAD, Check, ReleasedSWAD
from mirepoix.types import Diverged, InputError

VALLEY = [0.5, 0.55, 0.6, 0.62, 0.63, 0.64, 0.66]
DOWN_AND_UP = [1.0, 0.9, 0.8, 0.7, 0.6, *VALLEY, 0.7, *[0.9] * 6]
STEEP = [3.0, 2.9, 2.8, 2.7, 2.6, *VALLEY, 0.7, *[0.9] * 6]
FROM_THE_START = [*VALLEY, 0.6, 0.6, 0.6, 0.6]


def reload(state):
    """The state as it comes back from a file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


class Walk:
    """A training whose iterate t is the t-th unit vector: an average shows the coefficient of every iterate.

    The first check comes after one step, the others after ``every`` more, as in the published protocol.
    """

    def __init__(self, losses, every=1, dtype=torch.float64):
        self.losses, self.every = losses, every
        self.steps = 1 + every * (len(losses) - 1)
        self.theta = {
            "w": torch.zeros(self.steps, dtype=dtype),
            "batches": torch.tensor(0),
            "running": torch.zeros((), dtype=dtype),
        }

    def move(self, step):
        """What an update does: the weights change in place."""
        self.theta["w"].zero_()[step] = 1
        self.theta["batches"].fill_(step + 1)
        self.theta["running"].fill_(step)

    def __call__(self, *collectors, steps=None):
        for step in range(self.steps) if steps is None else steps:
            self.move(step)
            for collector in collectors:
                collector.after_step(step + 1, self.theta)
                if step % self.every == 0:
                    collector.after_check(Check(step, 0.5, self.losses[step // self.every], {}), self.theta)
        return self

    def weights(self, collector):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "SWAD found no start")
            return collector.weights(self.theta)

    def coefficients(self, counts):
        """The mean of segments, each counted as told, as coefficients of the iterates."""
        result = [Fraction(0)] * self.steps
        for j, count in counts.items():
            members = self.segment(j)
            for step in members:
                result[step] += Fraction(count, sum(counts.values()) * len(members))
        return [float(c) for c in result]

    def segment(self, j):
        return range(self.every * (j - 1) + 1, self.every * j + 1) if j else range(1)

    def window(self, counts):
        return [(self.segment(j)[0], self.segment(j)[-1], count) for j, count in sorted(counts.items())]


def start(losses, patience, tolerance):
    """The place of the start and the threshold, from all losses at once."""
    for j in range(len(losses) - patience + 1):
        if losses[j] == min(losses[j : j + patience]):
            mean = float(sum(map(Fraction, losses[j : j + patience])) / patience)
            return j, mean * (1 + tolerance)
    return None


def published(losses, start_patience, end_patience, tolerance):
    """Which segments count how often, from all losses at once, by the definition."""
    found = start(losses, start_patience, tolerance)
    if found is None:
        return {len(losses) - 1: 1}
    first, threshold = found
    for e in range(first + start_patience, len(losses)):
        if e - end_patience + 1 > first and min(losses[e - end_patience + 1 : e + 1]) > threshold:
            return dict.fromkeys(range(first, e - end_patience + 1), 1)
    return dict.fromkeys(range(first, len(losses)), 1)


def released(losses, start_patience, end_patience, tolerance):
    """The released rule in terms of indices: no queue, all losses at once."""
    n, counts = len(losses), {}
    found = start(losses, start_patience, tolerance)
    if found is None:
        return {n - 1: 1}
    first, threshold = found

    def add(j):
        counts[j] = counts.get(j, 0) + 1

    def oldest(i):
        return max(0, i - end_patience + 1)

    detected = first + start_patience - 1
    if end_patience > start_patience:
        stop = min(oldest(detected) + end_patience - start_patience + 1, detected + 1)
        begin = oldest(detected)
        for j in range(begin, stop):
            if losses[j] > threshold:
                begin = j + 1
        for j in range(begin + 1, stop):
            add(j)
    else:
        for j in range(first + 1, first + start_patience - end_patience + 1):
            add(j)
    for i in range(detected + 1, n):
        if oldest(i) < first:
            continue
        if all(loss > threshold for loss in losses[oldest(i) : i + 1]):
            return counts or {first: 1}
        add(oldest(i))
    for j in range(oldest(n - 1) + 1, n):
        if any(loss <= threshold for loss in losses[j:]):
            add(j)
    return counts or {first: 1}


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(
    ("kind", "losses", "counts"),
    [
        (SWAD, DOWN_AND_UP, dict.fromkeys(range(5, 13), 1)),
        (SWAD, STEEP, dict.fromkeys(range(5, 13), 1)),
        (SWAD, FROM_THE_START, dict.fromkeys(range(11), 1)),
        (ReleasedSWAD, DOWN_AND_UP, {4: 1, 5: 2, **dict.fromkeys(range(6, 13), 1)}),
        (ReleasedSWAD, STEEP, dict.fromkeys(range(5, 13), 1)),
        (ReleasedSWAD, FROM_THE_START, {0: 3, 1: 2, 2: 2, **dict.fromkeys(range(3, 11), 1)}),
    ],
)
def test_swad_averages_the_segments_of_the_worked_examples(kind, losses, counts, every):
    collector = kind()
    walk = Walk(losses, every)(collector)
    assert collector.threshold == pytest.approx(0.715, rel=1e-12)
    assert collector.window == walk.window(counts)
    assert collector.ended == (losses is not FROM_THE_START)
    assert walk.weights(collector)["w"].tolist() == pytest.approx(walk.coefficients(counts), rel=1e-12)


losses_ = st.lists(
    st.one_of(
        st.integers(0, 8).map(lambda k: k / 4),  # many ties
        st.floats(0, 4, width=32),
    ),
    min_size=1,
    max_size=24,
)
patience = st.integers(1, 7)
tolerance = st.sampled_from([0.0, 0.2, 0.3, 1.0])


@pytest.mark.parametrize(("kind", "rule"), [(SWAD, published), (ReleasedSWAD, released)])
@given(losses=losses_, ns=patience, ne=patience, r=tolerance, every=st.integers(1, 3))
def test_swad_agrees_with_the_rule_that_has_all_losses_at_once(kind, rule, losses, ns, ne, r, every):
    collector = kind(ns, ne, r)
    walk = Walk(losses, every)(collector)
    counts = rule(losses, ns, ne, r)
    assert collector.window == walk.window(counts)
    assert walk.weights(collector)["w"].tolist() == pytest.approx(walk.coefficients(counts), abs=1e-12)


@pytest.mark.parametrize("kind", [SWAD, ReleasedSWAD])
@given(losses=losses_, ns=patience, ne=patience, every=st.integers(1, 3), data=st.data())
def test_swad_continues_from_its_state_with_the_same_bits(kind, losses, ns, ne, every, data):
    whole, first, second = kind(ns, ne, 0.3), kind(ns, ne, 0.3), kind(ns, ne, 0.3)
    walk = Walk(losses, every, torch.float32)
    cut = data.draw(st.integers(0, walk.steps))
    walk(whole)
    walk(first, steps=range(cut))
    second.load(reload(first.state()))
    walk(second, steps=range(cut, walk.steps))
    walk.move(walk.steps - 1)
    assert second.window == whole.window
    assert second.threshold == whole.threshold
    assert second.ended == whole.ended
    expected, got = walk.weights(whole), walk.weights(second)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", [SWAD, ReleasedSWAD])
@pytest.mark.parametrize("cut", [0, 1, 6, 9, 14, 30, 37, 40, 54, 57, 60])
def test_swad_continues_from_before_and_after_its_end(kind, cut):
    whole, first, second = kind(), kind(), kind()
    walk = Walk([*DOWN_AND_UP, 0.4, 0.3, 0.4, 0.4], 3, torch.float32)(whole)
    walk(first, steps=range(cut))
    second.load(reload(first.state()))
    walk(second, steps=range(cut, walk.steps))
    assert second.window == whole.window
    assert second.window[-1] == (34, 36, 1)
    assert torch.equal(walk.weights(second)["w"], walk.weights(whole)["w"])


def test_swad_looks_for_its_end_only_after_the_checks_that_found_its_start():
    collector = SWAD(3, 1)
    Walk([1.0, 9.0, 9.0, 9.0, 1.0])(collector)  # the threshold is 8.2
    assert collector.ended
    assert [first for first, _, _ in collector.window] == [0, 1, 2]


def test_swad_does_not_end_on_equal_losses_with_tolerance_zero():
    loss = 0.78
    assert sum([loss] * 3) / 3 < loss  # the rounded mean would be a threshold below them
    collector = SWAD(3, 2, 0.0)
    Walk([loss] * 20)(collector)
    assert collector.threshold == loss
    assert len(collector.window) == 20


@pytest.mark.parametrize("kind", [SWAD, ReleasedSWAD])
@given(losses=losses_, ns=patience, ne=patience)
def test_swad_keeps_few_segments(kind, losses, ns, ne):
    collector = kind(ns, ne)
    walk = Walk(losses)
    for step in range(walk.steps):
        walk(collector, steps=[step])
        assert len(collector.state()["recent"]) <= max(ns, ne)
    if collector.ended:
        assert collector.state()["recent"] == []


@pytest.mark.parametrize("kind", [SWAD, ReleasedSWAD])
def test_swad_loaded_twice_from_one_state_gives_the_same_twice(kind):
    walk, first = Walk(DOWN_AND_UP, 3, torch.float32), kind()
    walk(first, steps=range(30))
    state = reload(first.state())
    results = []
    for _ in range(2):
        collector = kind()
        collector.load(state)
        walk(collector, steps=range(30, walk.steps))
        results.append(walk.weights(collector)["w"])
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", [SWAD, ReleasedSWAD])
def test_asking_swad_for_weights_changes_nothing(kind):
    asked, quiet = kind(), kind()
    walk = Walk(DOWN_AND_UP, 2)
    for step in range(walk.steps):
        walk(asked, quiet, steps=[step])
        walk.weights(asked)["w"].zero_()
        asked.window.clear()
    assert torch.equal(walk.weights(asked)["w"], walk.weights(quiet)["w"])
    assert asked.window == quiet.window


def test_swad_keeps_the_dtypes_and_the_last_integers():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        collector = SWAD()
        walk = Walk(FROM_THE_START, 2, dtype)(collector)
        got = walk.weights(collector)
        assert got["w"].dtype == got["running"].dtype == dtype
        assert got["batches"] == walk.steps
        means = [sum(walk.segment(j)) / len(walk.segment(j)) for j in range(11)]
        assert got["running"].item() == pytest.approx(math.fsum(means) / 11, rel=1e-2)


def test_swad_held_in_float32_is_close_to_float64():
    narrow, wide = SWAD(), SWAD()
    a, b = Walk(DOWN_AND_UP, 7, torch.float32)(narrow), Walk(DOWN_AND_UP, 7)(wide)
    torch.testing.assert_close(a.weights(narrow)["w"].double(), b.weights(wide)["w"], rtol=2e-7, atol=0)


def test_swad_runs_to_the_end_of_training_with_a_few_bad_losses():
    losses = [1.0, 1.1, 1.2, *[9.0] * 5]
    published_, released_ = SWAD(), ReleasedSWAD()
    Walk(losses)(published_, released_)
    assert [first for first, _, _ in published_.window] == list(range(8))
    assert [first for first, _, _ in released_.window] == [0, 1, 2]  # drops the trailing run
    assert not published_.ended
    Walk([*losses, 9.0])(longer := SWAD())
    assert longer.ended
    assert [first for first, _, _ in longer.window] == [0, 1, 2]


def test_swad_ignores_what_comes_after_its_end():
    collector = SWAD(1, 1)
    walk = Walk([1.0, 2.0, math.nan, 0.1])(collector)
    assert collector.window == [(0, 0, 1)]
    assert walk.weights(collector)["batches"] == 4  # integers are those of the last iterate


def test_swad_leaves_out_the_iterates_after_the_last_check():
    collector = SWAD()
    walk = Walk(FROM_THE_START, 5)
    walk(collector, steps=range(walk.steps - 2))
    assert collector.window[-1] == (41, 45, 1)
    assert walk.weights(collector)["w"][46:].tolist() == [0.0] * 5


@pytest.mark.parametrize("kind", [SWAD, ReleasedSWAD])
def test_swad_without_a_start_is_the_last_segment_and_warns(kind):
    collector = kind()
    walk = Walk([5.0, 4.0, 3.0, 2.0, 1.0], 3)(collector)
    with pytest.warns(
        UserWarning, match=r"smallest of 3 in a row, so the weights are the mean of the steps 10 to 12"
    ):
        got = collector.weights(walk.theta)
    assert got["w"].tolist() == pytest.approx(walk.coefficients({4: 1}))
    assert collector.window == [(10, 12, 1)]


@pytest.mark.parametrize("kind", [SWAD, ReleasedSWAD])
def test_swad_before_the_first_check_is_a_copy_of_the_live_weights_and_warns(kind):
    theta = {"w": torch.ones(2)}
    collector = kind()
    collector.after_step(1, theta)
    with pytest.warns(UserWarning, match="the weights are the live ones"):
        got = collector.weights(theta)
    theta["w"].zero_()
    assert got["w"].tolist() == [1.0, 1.0]
    assert collector.window == []


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("kind", [SWAD, ReleasedSWAD])
def test_swad_refuses_a_loss_that_is_not_finite(kind, loss):
    with pytest.raises(Diverged, match=f"{loss} after step 1.*smaller learning rate") as caught:
        Walk([1.0, loss, 1.0])(kind())
    assert caught.value.step == 1


def test_swad_refuses_two_checks_without_a_step_between():
    walk, collector = Walk([1.0]), SWAD()
    walk(collector)
    with pytest.raises(InputError, match="none came before the check of step 0; call after_step"):
        collector.after_check(Check(0, 0.5, 1.0, {}), walk.theta)


@pytest.mark.parametrize("kind", [SWAD, ReleasedSWAD])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 6, 0.3), "start_patience counts checks: expected 1 or more, got 0"),
        ((3, -1, 0.3), "end_patience counts checks: expected 1 or more, got -1"),
        ((3, 6, -0.1), "expected 0 or more, got -0.1; 0.3 allows"),
        ((3, 6, math.nan), "expected 0 or more, got nan"),
    ],
)
def test_swad_refuses_arguments_out_of_range(kind, arguments, message):
    with pytest.raises(InputError, match=message):
        kind(*arguments)


def test_swad_of_a_linear_network_predicts_the_mean_of_the_predictions_in_its_window():
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 3)
    images, labels = torch.randn(64, 4), torch.randint(3, (64,))
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    theta, collector, segments, current = network.state_dict(), SWAD(2, 2, 0.05), [], []
    losses = [1.5, 1.2, 1.0, 1.01, 0.99, 1.0, 1.3, 1.3, 1.3]
    for step in range(33):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        collector.after_step(step + 1, theta)
        current.append(network(images).detach().double())
        if step % 4 == 0:
            collector.after_check(Check(step, 0.5, losses[step // 4], {}), theta)
            segments.append(torch.stack(current).mean(0))
            current = []
    assert collector.window == [(5, 8, 1), (9, 12, 1), (13, 16, 1), (17, 20, 1)]
    network.load_state_dict(collector.weights(theta))
    expected = torch.stack(segments[2:6]).mean(0)
    torch.testing.assert_close(network(images).detach().double(), expected, rtol=1e-5, atol=1e-6)
