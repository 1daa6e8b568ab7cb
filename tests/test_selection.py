import itertools
import math
import weakref
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.checkpoints import open_weights, write_weights
from mirepoix.data import digits_task
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.runs import Run
from mirepoix.scores import ClassificationScore
from mirepoix.selection import (
    Choice,
    Trial,
    best,
    forward_selection,
    greedy,
    learned_coefficients,
    threshold,
    top_k,
)
from mirepoix.store import Store, cached
from mirepoix.types import Diverged, InputError
from mirepoix.weights import RunningAverage, average, interpolate

NAN = math.nan


def theta(value):
    return {"w": np.array([float(value)])}


class Scripted:
    """Returns the given scores in the order of the calls."""

    def __init__(self, *scores):
        self.scores, self.calls = list(scores), []

    def __call__(self, weights):
        self.calls.append(float(weights["w"][0]))
        return self.scores[len(self.calls) - 1]


class Lazy(Mapping):
    """Weights that count how often each tensor is read, and hold none of them."""

    def __init__(self, value):
        self.value, self.reads = value, Counter()

    def __getitem__(self, name):
        self.reads[name] += 1
        return np.array([float(self.value)])

    def __iter__(self):
        return iter(("w", "v"))

    def __len__(self):
        return 2


def nearness(goal):
    return lambda weights: -abs(float(weights["w"][0]) - goal)


def test_best_takes_the_highest_and_of_equal_ones_the_first():
    choice = best([theta(0), theta(1), theta(2)], Scripted(0.5, 0.9, 0.9))
    assert choice.kept == (1,)
    assert choice.order == (1, 2, 0)
    assert choice.scores == (0.9, 0.9, 0.5)
    assert choice.theta["w"][0] == 1


def test_best_with_known_scores_evaluates_nothing():
    score = Scripted()
    assert best([theta(0), theta(1)], score, member_scores=[0.1, 0.2]).kept == (1,)
    assert not score.calls


def test_nan_is_worse_than_any_score():
    assert best([theta(0), theta(1)], Scripted(float("nan"), -5.0)).kept == (1,)


def test_greedy_keeps_an_equal_score_and_drops_a_lower_one():
    members = [theta(0), theta(2), theta(4)]
    score = Scripted(0.80, 0.80, 0.79)
    choice = greedy(members, score, member_scores=[0.8, 0.7, 0.6])
    assert choice.kept == (0, 1)
    assert score.calls == [0, 1, 2]  # the means of {0}, {0, 2}, {0, 2, 4}
    assert choice.theta["w"][0] == 1


def test_greedy_strict_keeps_only_what_rises():
    choice = greedy(
        [theta(0), theta(2), theta(4)], Scripted(0.80, 0.80, 0.79), strict=True, member_scores=[3, 2, 1]
    )
    assert choice.kept == (0,)


def test_greedy_goes_from_the_best_member_down_and_ties_keep_their_order():
    score = Scripted(1, 2, 3, 4)
    choice = greedy([theta(i) for i in range(4)], score, member_scores=[0.5, 0.7, 0.7, 0.6])
    assert choice.order == (1, 2, 3, 0)
    assert choice.kept == (1, 2, 3, 0)


def test_greedy_skips_a_bad_member_and_still_tries_the_next():
    choice = greedy([theta(0), theta(100), theta(2)], Scripted(0.5, 0.1, 0.6), member_scores=[3, 2, 1])
    assert choice.kept == (0, 2)
    assert choice.theta["w"][0] == 1


def test_one_member_is_its_own_soup():
    choice = greedy([theta(3)], Scripted(0.2), member_scores=[0.2])
    assert choice.kept == (0,)
    assert choice.theta["w"][0] == 3


def test_a_score_that_is_nan_is_never_kept_after_the_first():
    choice = greedy([theta(0), theta(1)], Scripted(0.5, float("nan")), member_scores=[2, 1])
    assert choice.kept == (0,)


def test_greedy_whose_first_is_nan_keeps_the_first_number_and_then_compares_with_it():
    choice = greedy([theta(0), theta(1), theta(2)], Scripted(NAN, 0.5, 0.4), member_scores=[NAN, NAN, NAN])
    assert choice.kept == (0, 1)


def test_no_member_is_an_error():
    for select in (
        best,
        greedy,
        forward_selection,
        learned_coefficients,
        lambda *args: top_k(*args, k=1),
        lambda *args: threshold(*args, delta=1),
    ):
        with pytest.raises(InputError, match="at least one member"):
            select([], lambda weights: 0.0)


def test_wrong_number_of_scores_is_an_error():
    with pytest.raises(InputError, match=r"expected one per member \(2\), got 1"):
        greedy([theta(0), theta(1)], lambda weights: 0.0, member_scores=[1.0])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.booleans())
def test_greedy_equals_its_definition(values, strict):
    """Brute force: recompute the average of kept and candidate from nothing each time."""

    def score(weights):
        return -abs(float(weights["w"][0]) - 1.0)

    members = [theta(value) for value in values]
    order = sorted(range(len(values)), key=lambda i: -score(members[i]))
    kept = [order[0]]
    for i in order[1:]:
        now, then = (
            score(average([members[j] for j in kept])),
            score(average([members[j] for j in [*kept, i]])),
        )
        if then > now or (then == now and not strict):
            kept.append(i)
    choice = greedy(members, score, strict=strict)
    assert list(choice.kept) == kept
    assert choice.theta["w"] == pytest.approx(average([members[j] for j in kept])["w"], rel=1e-15)


def test_greedy_is_never_worse_than_the_best_member_on_its_own_score():
    random = np.random.default_rng(0)
    for _ in range(20):
        points = random.normal(size=(5, 3))
        goal = random.normal(size=3)
        members = [{"w": point} for point in points]

        def score(weights, goal=goal):
            return -float(np.sum((weights["w"] - goal) ** 2))

        choice = greedy(members, score)
        assert score(choice.theta) >= max(map(score, members)) - 1e-12
        assert all(a <= b for a, b in itertools.pairwise(s for s in np.maximum.accumulate(choice.scores)))


def test_running_average_is_average_bit_for_bit():
    random = np.random.default_rng(1)
    members = [{"w": random.normal(size=50).astype(np.float32), "n": np.array(i)} for i in (3, 3, 3)]
    running = RunningAverage()
    for count, member in enumerate(members, 1):
        before = running.weights() if running.count else None
        after = running.plus(member)
        if before:
            assert np.array_equal(running.weights()["w"], before["w"])  # left as it was
        running = after
        expected = average(members[:count])
        got = running.weights()
        assert np.array_equal(got["w"], expected["w"])
        assert got["w"].dtype == np.float32
        assert running.count == count


def test_running_average_names_the_member_that_does_not_fit():
    running = RunningAverage().plus({"w": np.zeros(2)})
    with pytest.raises(InputError, match="members 0 and 1 cannot be averaged: 'w' has shape"):
        running.plus({"w": np.zeros(3)})
    with pytest.raises(InputError, match="no member"):
        RunningAverage().weights()


def test_running_average_warns_of_different_dtypes_as_average_does():
    members = [{"w": np.ones(2, np.float32)}, {"w": np.ones(2)}]
    running = RunningAverage().plus(members[0]).plus(members[1])
    with pytest.warns(UserWarning, match="dtypes differ"):
        theta = running.weights()
    assert theta["w"].dtype == np.float64


# Cost.


@pytest.mark.parametrize("known", [False, True])
def test_greedy_reads_each_lazy_member_once_and_evaluates_each_candidate_once(known):
    members = [Lazy(value) for value in (0, 1, 100, 2)]
    score = Scripted(*[0.0] * 8)
    greedy(members, score, member_scores=[0.4, 0.3, 0.2, 0.1] if known else None)
    # The score of these tests reads "w" alone; "v" is read for the sum, once.
    assert [member.reads["v"] for member in members] == [1] * 4
    assert len(score.calls) == (4 if known else 4 + 3)  # the best member is its own average


def test_best_does_not_read_what_the_score_does_not():
    members = [Lazy(value) for value in (0, 1)]
    assert best(members, nearness(1)).theta is members[1]
    assert not members[1].reads["v"]


def test_forward_selection_evaluates_one_average_per_member_and_round():
    members, score = [Lazy(value) for value in (0, 1, 2)], Scripted(*range(20))
    choice = forward_selection(members, score, rounds=4)
    assert len(score.calls) == len(choice.trace) == 12
    assert [member.reads["v"] for member in members] == [4] * 3


def test_selections_on_files_equal_those_in_memory(tmp_path):
    random = np.random.default_rng(0)
    members = [{"w": random.normal(size=3).astype(np.float32), "n": np.array(7)} for _ in range(4)]
    for i, member in enumerate(members):
        write_weights(tmp_path / f"{i}.safetensors", member)
    files = [open_weights(tmp_path / f"{i}.safetensors", framework="numpy") for i in range(4)]
    for select in (greedy, forward_selection):
        expected, got = select(members, nearness(0.1)), select(files, nearness(0.1))
        assert got.trace == expected.trace
        assert np.array_equal(got.theta["w"], expected.theta["w"])


# The trace.


def test_a_choice_has_equal_coefficients_and_a_trace_of_what_was_tried():
    choice = Choice(theta(0), (2, 0), (2, 1, 0), (0.9, 0.8, 0.9))
    assert choice.coefficients == (0.5, 0.5)
    assert choice.trace == (Trial(2, 0.9, True), Trial(1, 0.8, False), Trial(0, 0.9, True))


# The best k, and those close to the best.


def test_top_k_averages_the_best_and_of_equal_ones_the_first():
    members = [theta(0), theta(2), theta(10), theta(4)]
    choice = top_k(members, Scripted(), 2, member_scores=[0.5, 0.9, 0.1, 0.5])
    assert choice.kept == (1, 0)
    assert choice.order == (1, 0, 3, 2)
    assert choice.scores == (0.9, 0.5, 0.5, 0.1)
    assert choice.theta["w"][0] == 1


def test_top_k_of_one_is_the_best_and_of_all_the_average():
    members = [theta(value) for value in (3, 1, 8)]
    assert top_k(members, nearness(7), 1).kept == best(members, nearness(7)).kept
    assert top_k(members, nearness(7), 3).theta["w"] == average(members)["w"]


@pytest.mark.parametrize("k", [0, 4])
def test_top_k_wants_as_many_members(k):
    with pytest.raises(InputError, match=f"k: expected 1 to 3 members, got {k}"):
        top_k([theta(0)] * 3, nearness(0), k)


def test_top_k_never_takes_a_member_whose_score_is_nan():
    with pytest.raises(
        InputError, match=r"expected 1 to 1 members \(of 2; the score of the others is NaN\), got 2"
    ):
        top_k([theta(0), theta(1)], Scripted(NAN, 0.5), 2)


def test_threshold_keeps_what_is_close_to_the_best_the_edge_included():
    members = [theta(0), theta(2), theta(4), theta(6)]
    choice = threshold(members, Scripted(0.75, 1.0, 0.5, 0.74), 0.25)
    assert choice.kept == (1, 0)
    assert choice.theta["w"][0] == 1
    assert choice.order == (1, 0, 3, 2)


def test_threshold_zero_keeps_the_best_and_its_equals_and_infinity_all_but_nan():
    members = [theta(value) for value in range(4)]
    scores = [0.5, 0.9, 0.9, NAN]
    assert threshold(members, Scripted(*scores), 0).kept == (1, 2)
    assert threshold(members, Scripted(*scores), math.inf).kept == (1, 2, 0)
    assert threshold(members, Scripted(*[NAN] * 4), 1).kept == (0,)


@pytest.mark.parametrize("delta", [-0.1, NAN])
def test_threshold_wants_a_distance(delta):
    with pytest.raises(InputError, match="delta: expected a distance from the best score, 0 or more, got"):
        threshold([theta(0)], nearness(0), delta)


# Forward selection.


def forward_by_hand(values, score, rounds, replacement):
    """From the definition: the multiset of each round, and the best of them, each average from nothing."""
    drawn, bags = [], []
    for _ in range(rounds):
        left = [i for i in range(len(values)) if replacement or i not in drawn]
        tried = [score(average([theta(values[j]) for j in [*drawn, i]])) for i in left]
        drawn = [*drawn, left[tried.index(max(tried))]]
        bags.append((drawn, max(tried)))
    top = max(value for _, value in bags)
    return next(bag for bag, value in bags if value == top)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=4), st.integers(1, 4), st.booleans())
def test_forward_selection_equals_its_definition(values, rounds, replacement):
    rounds = rounds if replacement else min(rounds, len(values))
    choice = forward_selection(
        [theta(value) for value in values], nearness(1.2), rounds=rounds, replacement=replacement
    )
    bag = forward_by_hand(values, nearness(1.2), rounds, replacement)
    assert choice.kept == tuple(dict.fromkeys(bag))
    assert choice.coefficients == tuple(bag.count(i) / len(bag) for i in choice.kept)
    assert choice.theta["w"] == pytest.approx(np.mean([values[i] for i in bag]), abs=1e-15)
    assert sum(trial.kept for trial in choice.trace) == len(bag)


def test_forward_selection_turns_multiplicities_into_coefficients():
    choice = forward_selection([theta(0), theta(4)], nearness(1), rounds=4)
    assert choice.kept == (0, 1)
    assert choice.coefficients == (0.75, 0.25)
    assert choice.theta["w"][0] == 1
    assert [trial.member for trial in choice.trace if trial.kept] == [0, 0, 1, 0]


def test_forward_selection_returns_the_best_round_and_not_the_last():
    choice = forward_selection([theta(1), theta(5)], nearness(1), rounds=2, replacement=False)
    assert choice.kept == (0,)
    assert [trial.kept for trial in choice.trace] == [True, False, False]


def test_forward_selection_never_adds_nan_where_there_is_a_number():
    choice = forward_selection([theta(0), theta(1)], Scripted(NAN, 0.5, NAN, 0.6), rounds=2)
    assert choice.kept == (1,)
    assert choice.coefficients == (1.0,)


def test_equal_scores_and_one_member_give_the_first_alone():
    assert forward_selection([theta(0), theta(1)], lambda weights: 0.5).kept == (0,)
    assert forward_selection([theta(3)], nearness(0), rounds=3).coefficients == (1.0,)


def test_rounds_are_checked():
    with pytest.raises(InputError, match="rounds: expected 1 or more, got 0"):
        forward_selection([theta(0)], nearness(0), rounds=0)
    with pytest.raises(
        InputError, match=r"rounds: expected 1 to 1 \(the members, without replacement\), got 2"
    ):
        forward_selection([theta(0)], nearness(0), rounds=2, replacement=False)


# Learned coefficients.


def corners(dtype=torch.float64):
    """Three members whose averages are the points of a triangle, in two tensors, with an integer buffer."""
    eye = torch.eye(3, dtype=dtype)
    return [{"phi": eye[i], "n": torch.tensor(4), "omega": eye[i].clone()} for i in range(3)]


def distances(**goals):
    return lambda theta, step: sum((theta[name] - goal).square().sum() for name, goal in goals.items())


def test_learned_coefficients_find_a_known_point_of_the_triangle():
    goal = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    members = corners()
    learned = learned_coefficients(members, distances(phi=goal, omega=goal), steps=400)
    assert learned.coefficients["model"] == pytest.approx(goal.tolist(), abs=1e-3)
    assert sum(learned.coefficients["model"]) == pytest.approx(1, abs=1e-12)
    expected = interpolate(members, learned.coefficients["model"])
    assert list(learned.theta) == list(members[0])
    assert all(torch.equal(learned.theta[name], expected[name]) for name in expected)
    assert len(learned.losses) == 400
    assert learned.losses[0] == pytest.approx(2 * float((goal - 1 / 3).square().sum()), rel=1e-12)
    assert learned.losses[-1] < 1e-5


@pytest.mark.parametrize("groups", ["tensor", ["^phi", "."]])
def test_learned_coefficients_of_groups_are_apart(groups):
    a = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    b = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    learned = learned_coefficients(corners(), distances(phi=a, omega=b), groups=groups, steps=400)
    first, second = learned.coefficients
    assert [first, second] == (["phi", "omega"] if groups == "tensor" else groups)
    assert learned.coefficients[first] == pytest.approx(a.tolist(), abs=1e-3)
    assert learned.coefficients[second] == pytest.approx(b.tolist(), abs=1e-3)
    assert learned.theta["omega"].tolist() == pytest.approx(b.tolist(), abs=1e-3)


def test_positive_coefficients_stay_inside_and_free_ones_leave_and_still_sum_to_one():
    goal = torch.tensor([1.5, -0.25, -0.25], dtype=torch.float64)
    inside = learned_coefficients(corners(), distances(phi=goal), steps=100)
    assert all(0 <= value <= 1 for value in inside.coefficients["model"])
    free = learned_coefficients(corners(), distances(phi=goal), softmax=False, steps=800, learning_rate=0.02)
    assert free.coefficients["model"] == pytest.approx(goal.tolist(), abs=1e-3)
    assert free.theta["phi"].tolist() == pytest.approx(goal.tolist(), abs=1e-3)


def test_free_coefficients_keep_variances_from_falling_below_zero():
    members = [{"bn.running_var": torch.tensor([value])} for value in (0.0, 1.0)]

    def loss(theta, step):
        assert float(theta["bn.running_var"].detach()) >= 0
        return (theta["bn.running_var"] + 1).square().sum()

    with pytest.warns(UserWarning, match="negative running variances"):
        learned = learned_coefficients(members, loss, softmax=False, steps=30, learning_rate=0.1)
    assert learned.theta["bn.running_var"] == 0


def test_learned_coefficients_leave_the_members_as_they_are_and_keep_dtypes():
    members = corners(torch.bfloat16)
    before = [{name: value.clone() for name, value in member.items()} for member in members]

    def loss(theta, step):
        assert theta["phi"].dtype == torch.bfloat16
        assert theta["n"] == 4
        return theta["phi"][0].float()

    learned = learned_coefficients(members, loss, steps=3)
    assert learned.theta["phi"].dtype == torch.bfloat16
    assert not learned.theta["phi"].requires_grad
    for member, kept in zip(members, before, strict=True):
        assert all(torch.equal(member[name], kept[name]) for name in kept)


def test_learned_coefficients_of_arrays_are_arrays_and_lazy_members_are_read_once():
    members = [Lazy(0), Lazy(1)]
    learned = learned_coefficients(
        iter(members), lambda theta, step: (theta["w"] - 0.8).square().sum(), steps=200
    )
    assert isinstance(learned.theta["w"], np.ndarray)
    assert learned.theta["w"][0] == pytest.approx(0.8, abs=1e-3)
    assert [member.reads for member in members] == [{"w": 1, "v": 1}] * 2


def test_learned_coefficients_give_the_step_and_one_member_keeps_its_bits():
    seen = []

    def loss(theta, step):
        seen.append(step)
        return theta["w"].sum()

    learned = learned_coefficients([{"w": torch.tensor([0.1])}], loss, steps=3)
    assert seen == [0, 1, 2]
    assert learned.coefficients == {"model": (1.0,)}
    assert torch.equal(learned.theta["w"], torch.tensor([0.1]))


def test_what_learned_coefficients_refuse():
    def plain(theta, step):
        return theta["phi"].sum()

    def refused(match, loss=plain, **options):
        with pytest.raises(InputError, match=match):
            learned_coefficients(corners(), loss, **options)

    refused("at least 1 step and a learning rate above 0, got 0 and 0.05", steps=0)
    refused("at least 1 step and a learning rate above 0, got 100 and nan", learning_rate=NAN)
    refused("got 'omega' in none of phi", groups=["phi"])
    refused("got none for 'psi'", groups=["phi", "psi", "."])
    refused("expected 'model', 'tensor' or a list of expressions, got 'layer'", groups="layer")
    refused("scalar tensor with a gradient .* got a float", lambda theta, step: 0.5)
    refused(r"got a tensor of shape \(\) without a gradient", lambda theta, step: theta["phi"].sum().detach())
    refused(r"got a tensor of shape \(3,\) with a gradient", lambda theta, step: theta["phi"])
    with pytest.raises(Diverged, match="nan at step 1") as error:
        learned_coefficients(corners(), lambda theta, step: theta["phi"].sum() * (NAN if step else 1))
    assert error.value.step == 1
    with pytest.raises(InputError, match="members 0 and 1 cannot be averaged"):
        learned_coefficients([{"w": torch.zeros(2)}, {"w": torch.zeros(3)}], plain)


def test_learned_coefficients_of_networks_go_to_the_better_member():
    """Of a trained network and its start, the held-out loss prefers the trained one, per layer too."""
    split = digits_task(size=8).split("rotated_0")
    spec = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8)
    score = ClassificationScore(spec, split, metric="nll", batch_size=128, device="cpu")
    start = initial_weights(spec, seed=0)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=3e-3)
    for step in range(15):
        optimizer.zero_grad()
        score.loss(leaves, step).backward()
        optimizer.step()
    trained = {name: tensor.detach() for name, tensor in leaves.items()}
    for groups in ("model", ["^featurizer", "^classifier"]):
        learned = learned_coefficients(
            [start, trained], score.loss, groups=groups, steps=10, learning_rate=0.3
        )
        assert all(second > 0.7 for _, second in learned.coefficients.values())
        assert score(learned.theta) > score(average([start, trained]))


def test_greedy_over_sixty_stored_members_reads_each_once_and_keeps_one_sum(tmp_path, monkeypatch):
    """As many members as one target of the published tables has with a dagger."""

    class Counted(Mapping):
        def __init__(self, weights):
            self.weights, self.reads = weights, 0

        def __getitem__(self, name):
            self.reads += 1
            return self.weights[name]

        def __iter__(self):
            return iter(self.weights)

        def __len__(self):
            return len(self.weights)

    class Data:
        digest = "sixty"

    def train(start, task, run):
        return {"w": start["w"] + run.seed % 7}

    store = Store(tmp_path)
    remembered = cached(train, store, made_of={"name": "seed", "version": 1})
    start = {"w": torch.zeros(4)}
    members = [Counted(remembered(start, Data(), Run(seed=seed))) for seed in range(60)]
    assert len(store.made) == 60
    evaluated, alive, sums = [], [], weakref.WeakSet()
    begin = RunningAverage.__init__

    def counted(self):
        begin(self)
        sums.add(self)

    monkeypatch.setattr(RunningAverage, "__init__", counted)

    def score(weights):
        evaluated.append(float(weights["w"][0]))
        alive.append(len(sums))
        return -abs(evaluated[-1] - 3)

    values = [seed % 7 for seed in range(60)]
    choice = greedy(members, score, member_scores=[-abs(value - 3) for value in values])
    assert [member.reads for member in members] == [1] * 60
    assert len(evaluated) == 60
    assert max(alive) == 2  # the sum of the kept members, and that of the candidate
    assert {values[i] for i in choice.kept[:9]} == {3}
    assert float(choice.theta["w"][0]) == pytest.approx(
        sum(values[i] for i in choice.kept) / len(choice.kept)
    )
