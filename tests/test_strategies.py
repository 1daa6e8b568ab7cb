"""A strategy given text prints its equation; given an affine ``train`` it does the algebra."""

import itertools
import math
import random

import numpy as np
import pytest

from mirepoix.ensembles import Ensemble
from mirepoix.heads import with_head
from mirepoix.runs import Run
from mirepoix.selection import best
from mirepoix.strategies import (
    classifier_first,
    dagger,
    diverse_objectives,
    diwa,
    exponential_average,
    fine_tuning,
    fusing,
    fusing_coefficients,
    inter_training,
    morl,
    moving_average,
    ratatouille,
    recycle,
    rewarded_soup,
    robust_recycle,
    sequence,
    snapshot,
    star,
    swad,
    wise,
    wise_sweep,
)
from mirepoix.types import InputError
from mirepoix.weights import average, interpolate

RUNS = [Run(seed=seed) for seed in (1, 2, 3)]
STARTS = ["theta_pt", "phi_1"]


def text_train(theta, task, run):
    suffix = "" if run.collect == "best" else f", {run.collect}"
    suffix += f", head {run.classifier_steps}" if run.classifier_steps else ""
    return f"Train({theta}, {task}; c{run.seed}{suffix})"


def text_mean(terms):
    terms = list(terms)
    return f"1/{len(terms)} ({' + '.join(terms)})"


def text_best(terms):
    return f"best({', '.join(terms)})"


def text_sum(thetas, coefficients):
    return " + ".join(f"{c:g} {t}" for c, t in zip(coefficients, thetas, strict=True))


def affine_train(theta, task, run):
    """theta -> 2 theta + seed * task, so that every equation has a value one can work out."""
    return {"w": 2 * theta["w"] + run.seed * task}


def never_train(theta, task, run):
    raise AssertionError("trained before the inputs were looked at")


START = {"w": np.array([1.0, -2.0])}
OTHER = {"w": np.array([5.0, 7.0])}
TASK = np.array([10.0, 20.0])
AUXILIARIES = [np.array([1.0, 0.0]), np.array([0.0, 3.0])]


# Equations


def test_fine_tuning_prints_its_equation():
    assert fine_tuning(text_train, "theta_pt", "D", RUNS, text_best) == (
        "best(Train(theta_pt, D; c1), Train(theta_pt, D; c2), Train(theta_pt, D; c3))"
    )


def test_diwa_prints_its_equation():
    assert diwa(text_train, "theta_pt", "D", RUNS, combine=text_mean) == (
        "1/3 (Train(theta_pt, D; c1) + Train(theta_pt, D; c2) + Train(theta_pt, D; c3))"
    )


def test_diverse_objectives_print_their_equation():
    def trained_by(name):
        return lambda theta, task, run: f"Train_{name}({theta}, {task}; c{run.seed})"

    trains = [trained_by("erm"), trained_by("coral")]
    assert diverse_objectives(trains, "theta_pt", "D", RUNS, text_mean) == (
        "1/3 (Train_erm(theta_pt, D; c1) + Train_coral(theta_pt, D; c2) + Train_erm(theta_pt, D; c3))"
    )


def test_dagger_prints_its_equation():
    runs = [RUNS[:2], RUNS[2:]]  # data seeds need not have equally many
    assert dagger(text_train, "theta_pt", ["D_0", "D_1"], runs, text_mean) == (
        "1/3 (Train(theta_pt, D_0; c1) + Train(theta_pt, D_0; c2) + Train(theta_pt, D_1; c3))"
    )


def test_dagger_of_ratatouille_prints_its_equation():
    printed = dagger(text_train, STARTS, ["D_0", "D_1"], [RUNS[:2]] * 2, text_mean, strategy=ratatouille)
    assert printed == (
        "1/4 (Train(theta_pt, D_0; c1) + Train(phi_1, D_0; c2)"
        " + Train(theta_pt, D_1; c1) + Train(phi_1, D_1; c2))"
    )


@pytest.mark.parametrize(
    ("strategy", "collected"),
    [(moving_average, "moving_average"), (exponential_average, "ema"), (swad, "swad")],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_averages_along_a_run_print_their_equation(strategy, collected):
    assert strategy(text_train, "theta_pt", "D", RUNS[1]) == f"Train(theta_pt, D; c2, {collected})"


def test_wise_prints_its_equation():
    assert (
        wise(text_train, "theta_pt", "D", RUNS[0], 0.25, text_sum)
        == "0.75 Train(theta_pt, D; c1) + 0.25 theta_pt"
    )


def test_wise_sweep_prints_its_equation():
    swept = wise_sweep(text_train, "theta_pt", "D", RUNS[0], len, (0, 0.25), text_sum)
    assert swept.theta == "0.75 Train(theta_pt, D; c1) + 0.25 theta_pt"


def test_snapshot_prints_its_equation():
    assert snapshot(text_train, "theta_pt", "D", RUNS, list) == [
        "Train(theta_pt, D; c1)",
        "Train(Train(theta_pt, D; c1), D; c2)",
        "Train(Train(Train(theta_pt, D; c1), D; c2), D; c3)",
    ]


def test_star_prints_its_equation():
    assert star(text_train, "theta_pt", "D", RUNS, list) == [
        "Train(theta_pt, D; c1)",
        "Train(Train(theta_pt, D; c1), D; c2)",
        "Train(Train(theta_pt, D; c1), D; c3)",
    ]


@pytest.mark.parametrize("strategy", [snapshot, star])
def test_the_training_of_a_later_member_knows_those_before_it(strategy):
    known = []

    def later(members):
        known.append(members)
        return lambda theta, task, run: f"Later(c{run.seed})"

    members = strategy(text_train, "theta_pt", "D", RUNS, list, later=later)
    assert members == ["Train(theta_pt, D; c1)", "Later(c2)", "Later(c3)"]
    assert known == [tuple(members[:1]), tuple(members[:2])]


@pytest.mark.parametrize("strategy", [snapshot, star])
def test_members_after_one_another_are_trained_when_asked_for(strategy):
    made = []

    def train(theta, task, run):
        made.append(run.seed)
        return theta + run.seed

    members = strategy(train, 0, "D", RUNS, iter)
    assert not made
    assert next(members) == 1
    assert made == [1]
    assert list(members) == ([3, 6] if strategy is snapshot else [3, 4])


@pytest.mark.parametrize("strategy", [snapshot, star])
def test_no_runs_are_no_members(strategy):
    assert strategy(text_train, "theta_pt", "D", [], list) == []


def test_recycle_prints_its_equation():
    assert recycle(text_train, "theta_pt", ["A_1", "A_2"], RUNS[:2]) == [
        "Train(theta_pt, A_1; c1)",
        "Train(theta_pt, A_2; c2)",
    ]


def test_robust_recycle_prints_its_equation():
    assert robust_recycle(text_train, "theta_pt", ["A_1", "A_2"], RUNS[:2]) == [
        "Train(theta_pt, A_1; c1, moving_average)",
        "Train(theta_pt, A_2; c2, moving_average)",
    ]


def test_sequence_prints_its_equation():
    assert sequence(text_train, "theta_pt", ["A_1", "A_2", "A_3"], RUNS) == (
        "Train(Train(Train(theta_pt, A_1; c1), A_2; c2), A_3; c3)"
    )


def test_inter_training_prints_its_equation():
    assert inter_training(text_train, STARTS, "D", RUNS, text_best) == (
        "best(Train(theta_pt, D; c1), Train(phi_1, D; c2), Train(theta_pt, D; c3))"
    )


def test_ratatouille_prints_its_equation():
    assert ratatouille(text_train, STARTS, "D", RUNS, text_mean) == (
        "1/3 (Train(theta_pt, D; c1) + Train(phi_1, D; c2) + Train(theta_pt, D; c3))"
    )


def test_robust_inter_training_and_robust_ratatouille_print_their_equations():
    starts = robust_recycle(text_train, "theta_pt", ["A_1", "A_2"], RUNS[:2])
    terms = [
        "Train(Train(theta_pt, A_1; c1, moving_average), D; c1)",
        "Train(Train(theta_pt, A_2; c2, moving_average), D; c2)",
    ]
    assert inter_training(text_train, starts, "D", RUNS[:2], text_best) == text_best(terms)
    assert ratatouille(text_train, starts, "D", RUNS[:2], text_mean) == text_mean(terms)


def test_fusing_prints_its_equation():
    shares = [[0.25, 0.75], [1, 0]]
    assert fusing(text_train, STARTS, "D", RUNS[:2], shares, text_best, text_sum) == (
        "best(Train(0.25 theta_pt + 0.75 phi_1, D; c1), Train(1 theta_pt + 0 phi_1, D; c2))"
    )


def trained_for(name):
    return lambda theta, task, run: f"Train_{name}({theta}, {task}; c{run.seed})"


def test_a_rewarded_soup_prints_its_equation():
    trains = {"R1": trained_for("R1"), "R2": trained_for("R2")}
    shares = [{"R1": 1, "R2": 0}, {"R1": 0.75, "R2": 0.25}, {"R2": 1, "R1": 0}]
    assert list(rewarded_soup(trains, "theta_sft", "D", RUNS[0], shares, text_sum)) == [
        "1 Train_R1(theta_sft, D; c1)",
        "0.75 Train_R1(theta_sft, D; c1) + 0.25 Train_R2(theta_sft, D; c1)",
        "1 Train_R2(theta_sft, D; c1)",
    ]


def test_experts_of_a_rewarded_soup_may_have_runs_of_their_own():
    trains = {"R1": trained_for("R1"), "R2": trained_for("R2")}
    runs = {"R2": RUNS[1], "R1": RUNS[0]}
    (soup,) = rewarded_soup(trains, "theta_sft", "D", runs, [{"R1": 0.5, "R2": 0.5}], text_sum)
    assert soup == "0.5 Train_R1(theta_sft, D; c1) + 0.5 Train_R2(theta_sft, D; c2)"


def test_morl_prints_its_equation():
    def train_of(preference):
        return trained_for(" + ".join(f"{mu:g} {name}" for name, mu in preference.items()))

    preferences = [{"R1": 1, "R2": 0}, {"R1": 0.5, "R2": 0.5}]
    assert list(morl(train_of, "theta_sft", "D", RUNS[0], preferences)) == [
        "Train_1 R1 + 0 R2(theta_sft, D; c1)",
        "Train_0.5 R1 + 0.5 R2(theta_sft, D; c1)",
    ]


def test_the_classifier_comes_first_in_equations_that_do_not_start_at_theta_pt():
    train = classifier_first(text_train, STARTS[0])
    assert ratatouille(train, STARTS, "D", RUNS, text_mean) == (
        "1/3 (Train(theta_pt, D; c1) + Train(phi_1, D; c2, head 200) + Train(theta_pt, D; c3))"
    )


# Algebra


def test_diwa_averages_by_default():
    # mean over c of (2 theta + c D) with c = 1, 2, 3 is 2 theta + 2 D
    assert diwa(affine_train, START, TASK, RUNS)["w"] == pytest.approx([22, 36])


def test_diverse_objectives_average_by_default():
    def doubled(theta, task, run):
        return {"w": 10 * affine_train(theta, task, run)["w"]}

    # runs 1 and 3 by the one, run 2 by the other: (2 theta + D + 10 (2 theta + 2 D) + 2 theta + 3 D) / 3
    mean = diverse_objectives([affine_train, doubled], START, TASK, RUNS)["w"]
    assert mean == pytest.approx(8 * START["w"] + 8 * TASK)


def test_dagger_is_the_mean_of_the_averages_of_the_data_seeds():
    splits = [TASK, 3 * TASK, TASK - 7]
    averages = [diwa(affine_train, START, split, RUNS)["w"] for split in splits]
    whole = dagger(affine_train, START, splits, [RUNS] * 3)["w"]
    assert whole == pytest.approx(np.mean(averages, axis=0), abs=1e-6)
    assert whole == pytest.approx(2 * START["w"] + 2 * np.mean(splits, axis=0))


def test_dagger_with_one_data_seed_is_its_strategy():
    starts = [START, OTHER]
    assert np.array_equal(
        dagger(affine_train, starts, [TASK], [RUNS], strategy=ratatouille)["w"],
        ratatouille(affine_train, starts, TASK, RUNS)["w"],
    )


def test_wise_interpolates_with_lambda_on_the_start():
    trained = affine_train(START, TASK, RUNS[2])["w"]
    for share in (0.0, 0.3, 1.0):
        expected = (1 - share) * trained + share * START["w"]
        assert wise(affine_train, START, TASK, RUNS[2], share)["w"] == pytest.approx(expected)


def test_wise_sweep_finds_the_top_of_a_parabola_with_one_training():
    calls = []

    def train(theta, task, run):
        calls.append(run)
        return affine_train(theta, task, run)

    tuned = affine_train(START, TASK, RUNS[0])["w"]
    top = 0.72 * tuned + 0.28 * START["w"]
    swept = wise_sweep(train, START, TASK, RUNS[0], lambda theta: -np.sum((theta["w"] - top) ** 2))
    assert len(calls) == 1
    assert swept.coefficient == 0.3
    assert swept.theta["w"] == pytest.approx(0.7 * tuned + 0.3 * START["w"])
    assert list(swept.scores) == [i / 10 for i in range(11)]
    squared = np.sum((tuned - START["w"]) ** 2)
    assert [swept.scores[i / 10] for i in range(11)] == pytest.approx(
        [-((i / 10 - 0.28) ** 2) * squared for i in range(11)]
    )


@pytest.mark.parametrize("order", list(itertools.permutations((0.25, 0.5, 1.0))))
def test_of_equal_scores_the_sweep_keeps_the_one_closest_to_the_fine_tuned(order):
    def score(theta):
        return float(theta["w"][0] < 20)  # the fine-tuned 12, the start 1

    assert wise_sweep(affine_train, START, TASK, RUNS[0], score, order).coefficient == 0.25


def test_a_score_that_is_nan_is_worse_than_any_number():
    scores = iter([math.nan, -math.inf, math.nan, -5.0, math.nan])
    swept = wise_sweep(affine_train, START, TASK, RUNS[0], lambda _: next(scores), (0, 0.25, 0.5, 0.75, 1))
    assert swept.coefficient == 0.75
    numbers = iter([math.nan, -math.inf])
    assert wise_sweep(affine_train, START, TASK, RUNS[0], lambda _: next(numbers), (0, 1)).coefficient == 1
    assert wise_sweep(affine_train, START, TASK, RUNS[0], lambda _: math.nan).coefficient == 0


def test_recycle_and_sequence_do_the_algebra():
    phi = recycle(affine_train, START, AUXILIARIES, RUNS[1:])
    assert phi[0]["w"] == pytest.approx(2 * START["w"] + 2 * AUXILIARIES[0])
    assert phi[1]["w"] == pytest.approx(2 * START["w"] + 3 * AUXILIARIES[1])
    chain = sequence(affine_train, START, AUXILIARIES, RUNS[1:])
    assert chain["w"] == pytest.approx(4 * START["w"] + 4 * AUXILIARIES[0] + 3 * AUXILIARIES[1])


def test_ratatouille_averages_over_starts_and_runs():
    # run 1 and 3 from START, run 2 from OTHER: 2 (2 START + OTHER) / 3 + 2 D
    mean = ratatouille(affine_train, [START, OTHER], TASK, RUNS)["w"]
    assert mean == pytest.approx(2 * (2 * START["w"] + OTHER["w"]) / 3 + 2 * TASK)


def test_inter_training_chooses_among_the_members_of_ratatouille():
    members = ratatouille(affine_train, [START, OTHER], TASK, RUNS, combine=list)
    chosen = inter_training(
        affine_train,
        [START, OTHER],
        TASK,
        RUNS,
        lambda thetas: best(thetas, lambda theta: -theta["w"][0]).theta,
    )
    lowest = min(members, key=lambda theta: theta["w"][0])
    assert np.array_equal(chosen["w"], lowest["w"])


def test_fusing_interpolates_the_starts_and_then_trains():
    shares = [(0.25, 0.75), (0.5, 0.5)]
    fused = fusing(affine_train, [START, OTHER], TASK, RUNS[:2], shares, list)
    for member, (a, b), run in zip(fused, shares, RUNS[:2], strict=True):
        assert member["w"] == pytest.approx(2 * (a * START["w"] + b * OTHER["w"]) + run.seed * TASK)


def test_fusing_with_all_weight_on_one_start_is_training_from_it():
    fused = fusing(affine_train, [START, OTHER], TASK, RUNS, [(0, 1)] * 3, average)
    assert np.array_equal(fused["w"], diwa(affine_train, OTHER, TASK, RUNS)["w"])


def toward(goal):
    """Half the way from theta to a goal, plus the task times the seed: one goal per reward."""
    return lambda theta, task, run: {"w": (theta["w"] + goal) / 2 + run.seed * task}


GOALS = {"R1": np.array([4.0, 0.0]), "R2": np.array([0.0, 8.0]), "R3": np.array([-2.0, -2.0])}


def test_a_rewarded_soup_averages_its_experts_by_name():
    trains = {name: toward(goal) for name, goal in GOALS.items()}
    shares = [{"R3": 0.5, "R1": 0.2, "R2": 0.3}, {"R1": 0, "R2": 1, "R3": 0}]
    soups = list(rewarded_soup(trains, START, TASK, RUNS[1], shares))
    for soup, coefficients in zip(soups, shares, strict=True):
        goal = sum(coefficients[name] * goal for name, goal in GOALS.items())
        assert soup["w"] == pytest.approx(toward(goal)(START, TASK, RUNS[1])["w"])
    assert np.array_equal(soups[1]["w"], trains["R2"](START, TASK, RUNS[1])["w"])


def test_morl_with_all_weight_on_one_reward_is_its_expert():
    trains = {name: toward(goal) for name, goal in GOALS.items()}

    def train_of(preference):
        return toward(sum(mu * GOALS[name] for name, mu in preference.items()))

    vertices = [{name: float(name == own) for name in GOALS} for own in GOALS]
    policies = list(morl(train_of, START, TASK, RUNS[0], vertices))
    experts = list(rewarded_soup(trains, START, TASK, RUNS[0], vertices))
    for policy, expert in zip(policies, experts, strict=True):
        assert np.array_equal(policy["w"], expert["w"])


def test_experts_are_trained_once_when_first_needed_and_policies_one_by_one():
    made = []

    def expert(name):
        def train(theta, task, run):
            made.append(name)
            return affine_train(theta, task, run)

        return train

    shares = [{"R1": 1, "R2": 0, "R3": 0}, {"R1": 0.5, "R2": 0.5, "R3": 0}, {"R1": 0.3, "R2": 0.7, "R3": 0}]
    soups = rewarded_soup({name: expert(name) for name in GOALS}, START, TASK, RUNS[0], shares)
    assert made == []
    next(soups)
    assert made == ["R1"]
    next(soups)
    next(soups)
    assert made == ["R1", "R2"]
    assert list(soups) == []
    policies = morl(lambda mu: expert(mu["R1"]), START, TASK, RUNS[0], [{"R1": 0.25}, {"R1": 0.5}])
    assert made == ["R1", "R2"]
    next(policies)
    assert made == ["R1", "R2", 0.25]


# Laws


@pytest.mark.parametrize("strategy", [ratatouille, inter_training])
def test_from_one_start_the_members_are_those_of_diwa(strategy):
    members = strategy(affine_train, [START], TASK, RUNS, combine=list)
    for member, expected in zip(members, diwa(affine_train, START, TASK, RUNS, list), strict=True):
        assert np.array_equal(member["w"], expected["w"])


@pytest.mark.parametrize(
    "average_of",
    [
        lambda run: diwa(affine_train, START, TASK, [run]),
        lambda run: ratatouille(affine_train, [START], TASK, [run]),
        lambda run: inter_training(affine_train, [START], TASK, [run], average),
        lambda run: diverse_objectives([affine_train], START, TASK, [run]),
        lambda run: dagger(affine_train, START, [TASK], [[run]]),
        lambda run: fusing(affine_train, [START], TASK, [run], [[1.0]], average),
        lambda run: wise(affine_train, START, TASK, run, 0),
        lambda run: wise_sweep(affine_train, START, TASK, run, lambda _: 0.0).theta,
        lambda run: sequence(affine_train, START, [TASK], [run]),
        lambda run: recycle(affine_train, START, [TASK], [run])[0],
    ],
)
def test_with_one_member_every_strategy_is_that_training(average_of):
    assert np.array_equal(average_of(RUNS[1])["w"], affine_train(START, TASK, RUNS[1])["w"])


@pytest.mark.parametrize("strategy", [inter_training, ratatouille])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_starts_come_in_turn_whether_fewer_or_more_than_runs(strategy, count):
    starts = [f"phi_{i}" for i in range(count)]
    members = strategy(text_train, starts, "D", RUNS, list)
    assert members == [f"Train(phi_{h % count}, D; c{h + 1})" for h in range(3)]


def test_objectives_come_in_turn_whether_fewer_or_more_than_runs():
    for count in (1, 2, 5):
        trains = [lambda theta, task, run, name=name: (name, run.seed) for name in range(count)]
        members = diverse_objectives(trains, "theta_pt", "D", RUNS, list)
        assert members == [(h % count, h + 1) for h in range(3)]


def test_twenty_runs_use_each_of_sixteen_auxiliary_runs_once():
    starts = ["pt" if h % 5 == 0 else f"phi_{h % 5}.{h % 4}" for h in range(20)]
    members = ratatouille(text_train, starts, "D", [Run(seed=h) for h in range(20)], list)
    used = [member.removeprefix("Train(").split(",")[0] for member in members]
    assert used.count("pt") == 4
    assert {name for name in used if name != "pt"} == {f"phi_{i}.{j}" for i in range(1, 5) for j in range(4)}


@pytest.mark.parametrize(
    "members_of",
    [
        lambda train, combine: diwa(train, START, TASK, RUNS, combine),
        lambda train, combine: ratatouille(train, [START, OTHER], TASK, RUNS, combine),
        lambda train, combine: inter_training(train, [START, OTHER], TASK, RUNS, combine),
        lambda train, combine: diverse_objectives([train], START, TASK, RUNS, combine),
        lambda train, combine: dagger(train, START, [TASK], [RUNS], combine),
        lambda train, combine: dagger(train, START, [TASK] * 3, [[run] for run in RUNS], combine),
        lambda train, combine: fusing(train, [START], TASK, RUNS, [[1.0]] * 3, combine),
    ],
)
def test_members_are_trained_lazily_one_at_a_time(members_of):
    alive = []

    def train(theta, task, run):
        alive.append(run.seed)
        return affine_train(theta, task, run)

    def combine(thetas):
        iterator = iter(thetas)
        next(iterator)
        assert alive == [1]
        return list(iterator)

    assert len(members_of(train, combine)) == 2


def test_the_same_members_serve_every_combination():
    members = diwa(affine_train, START, TASK, RUNS, combine=list)
    assert np.array_equal(average(members)["w"], diwa(affine_train, START, TASK, RUNS)["w"])


def test_every_combination_may_be_an_ensemble():
    for ensemble in (
        diwa(affine_train, START, TASK, RUNS, Ensemble),
        ratatouille(affine_train, [START, OTHER], TASK, RUNS, Ensemble),
        diverse_objectives([affine_train], START, TASK, RUNS, Ensemble),
        fusing(affine_train, [START, OTHER], TASK, RUNS, [[0.5, 0.5]] * 3, Ensemble),
        dagger(affine_train, START, [TASK], [RUNS], Ensemble),
    ):
        assert len(ensemble) == 3


def test_runs_and_starts_are_not_changed():
    runs, starts = list(RUNS), list(STARTS)
    swad(text_train, "theta_pt", "D", runs[0])
    robust_recycle(text_train, "theta_pt", ["A_1", "A_2", "A_3"], runs)
    ratatouille(classifier_first(text_train, starts[0]), starts, "D", runs, list)
    assert runs == [Run(seed=seed) for seed in (1, 2, 3)]
    assert starts == ["theta_pt", "phi_1"]


# Heads between two trainings


def text_attach(theta, task):
    return f"[head of {task}]{theta}"


def test_recycle_attaches_the_head_of_an_auxiliary_before_its_training():
    assert recycle(text_train, "theta_pt", ["A_1", "A_2"], RUNS[:2], text_attach) == [
        "Train([head of A_1]theta_pt, A_1; c1)",
        "Train([head of A_2]theta_pt, A_2; c2)",
    ]
    (robust,) = robust_recycle(text_train, "theta_pt", ["A_1"], RUNS[:1], text_attach)
    assert robust == "Train([head of A_1]theta_pt, A_1; c1, moving_average)"


def test_sequence_attaches_a_head_before_every_stage():
    assert sequence(text_train, "theta_pt", ["A_1", "A_2"], RUNS[:2], text_attach) == (
        "Train([head of A_2]Train([head of A_1]theta_pt, A_1; c1), A_2; c2)"
    )


def test_weights_go_from_one_task_to_the_next_with_their_heads():
    def network(classes):
        return {"featurizer.w": np.zeros(2), "classifier.w": np.full((classes, 2), float(classes))}

    def train(theta, task, run):
        assert theta["classifier.w"].shape == (task, 2)  # a task is its number of classes here
        return {name: tensor + run.seed for name, tensor in theta.items()}

    def attach(theta, task):
        return with_head(theta, network(task))

    target = network(4)
    starts = [target, *(with_head(phi, target) for phi in recycle(train, target, [7, 5], RUNS[:2], attach))]
    assert [start["featurizer.w"][0] for start in starts] == [0, 1, 2]
    assert all(np.array_equal(start["classifier.w"], target["classifier.w"]) for start in starts)
    soup = ratatouille(train, starts, 4, RUNS)
    assert soup["featurizer.w"] == pytest.approx([3, 3])
    assert soup["classifier.w"] == pytest.approx(np.full((4, 2), 6.0))
    chain = with_head(sequence(train, target, [7, 5], RUNS[:2], attach), target)
    assert chain["featurizer.w"] == pytest.approx([3, 3])
    # Fusing starts of one head leaves the head alone.
    heads = fusing(lambda theta, task, run: theta, starts, 4, RUNS[:1], [(0.5, 0.25, 0.25)], list)
    assert heads[0]["classifier.w"] == pytest.approx(target["classifier.w"])


@pytest.mark.parametrize("pretrained", ["theta_pt", START, object()], ids=["text", "weights", "symbol"])
def test_classifier_first_knows_the_start_by_identity(pretrained):
    train = classifier_first(lambda theta, task, run: run, pretrained, steps=7)
    run = Run(seed=1, learning_rate=1e-3)
    assert train(pretrained, TASK, run) is run
    assert train({"w": START["w"]}, TASK, run) == run.with_(classifier_steps=7)
    assert train("phi_1", TASK, run) == run.with_(classifier_steps=7)


def test_classifier_first_reads_two_hundred_steps_and_may_leave_none():
    def train(theta, task, run):
        return run.classifier_steps

    assert classifier_first(train, "theta_pt")("phi_1", "D", Run()) == 200
    assert classifier_first(train, "theta_pt", 0)("phi_1", "D", Run(classifier_steps=9)) == 0


# Coefficients of fusing


def test_fusing_coefficients_are_the_softmax_of_uniform_draws():
    generator = random.Random(17)
    powers = [math.exp(generator.uniform(0, 4)) for _ in range(5)]
    assert fusing_coefficients(5, 17) == pytest.approx([power / sum(powers) for power in powers])


def test_fusing_coefficients_are_positive_sum_to_one_and_are_no_further_apart_than_the_range():
    for seed in range(300):
        shares = fusing_coefficients(1 + seed % 9, seed)
        assert len(shares) == 1 + seed % 9
        assert min(shares) > 0
        assert math.fsum(shares) == pytest.approx(1, abs=1e-12)
        assert max(shares) / min(shares) < math.exp(4)


def test_fusing_coefficients_cover_their_range():
    ratios = [max(shares) / min(shares) for shares in (fusing_coefficients(2, seed) for seed in range(2000))]
    # |kappa_1 - kappa_2| of two uniform draws has the mean kappa_max / 3 and the variance kappa_max^2 / 18
    gaps = np.log(ratios)
    assert gaps.mean() == pytest.approx(4 / 3, abs=4 * math.sqrt(16 / 18 / 2000))
    assert gaps.max() > 3.8


def test_fusing_coefficients_depend_on_the_seed_and_on_nothing_else():
    random.seed(5)
    state = random.getstate()
    first = fusing_coefficients(4, 3)
    assert random.getstate() == state
    assert fusing_coefficients(4, 3) == first
    assert fusing_coefficients(4, 4) != first
    assert fusing_coefficients(4, 3, kappa_max=0) == (0.25,) * 4
    assert fusing_coefficients(1, 3) == (1.0,)
    assert fusing_coefficients(3, 1, kappa_max=5000)  # no overflow


def test_a_coefficient_of_a_start_does_not_depend_on_later_starts():
    three, two = fusing_coefficients(3, 8), fusing_coefficients(2, 8)
    assert three[0] / three[1] == pytest.approx(two[0] / two[1])


def test_fusing_coefficients_go_into_interpolate():
    shares = fusing_coefficients(2, 1)
    fused = interpolate([START, OTHER], shares)["w"]
    assert fused == pytest.approx(shares[0] * START["w"] + shares[1] * OTHER["w"])


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ratatouille(never_train, [], "D", RUNS, list), "starts: expected at least one, got none"),
        (lambda: inter_training(never_train, [], "D", RUNS, list), "starts: expected at least one, got none"),
        (lambda: ratatouille(never_train, START, "D", RUNS), "starts: expected a list, got a single dict"),
        (
            lambda: inter_training(never_train, "phi", "D", RUNS, list),
            "a list, got a single str; put it in one",
        ),
        (lambda: diverse_objectives([], START, "D", RUNS, list), "trains: expected at least one, got none"),
        (
            lambda: diverse_objectives(never_train, START, "D", RUNS),
            "trains: expected a list, got a single f",
        ),
        (lambda: recycle(never_train, START, [], []), "auxiliaries: expected at least one, got none"),
        (lambda: sequence(never_train, START, [], []), "auxiliaries: expected at least one, got none"),
        (
            lambda: recycle(never_train, START, ["A"], RUNS),
            "runs: expected one for each of 1 auxiliaries, got 3",
        ),
        (lambda: sequence(never_train, START, ["A"] * 4, RUNS), "one for each of 4 auxiliaries, got 3"),
        (lambda: dagger(never_train, START, [], [], list), "splits: expected at least one, got none"),
        (
            lambda: dagger(never_train, START, ["D"], [RUNS] * 2),
            "runs: expected one for each of 1 splits, got 2",
        ),
        (lambda: fusing(never_train, [], "D", RUNS, [[]] * 3, list), "starts: expected at least one"),
        (lambda: fusing(never_train, [START], "D", [], [], list), "runs: expected at least one, got none"),
        (
            lambda: fusing(never_train, [START], "D", RUNS, [[1.0]], list),
            "coefficients: expected one for each of 3",
        ),
        (
            lambda: fusing(never_train, [START, OTHER], "D", RUNS, [[0.5, 0.5], [1.0], [0, 1]], list),
            "one coefficient for each of 2 starts, got 1 for run 1",
        ),
        (lambda: fusing_coefficients(0, 1), "at least 1 start, got 0"),
        (lambda: fusing_coefficients(2, 1, kappa_max=-1), "kappa_max of 0 or more, got -1"),
        (lambda: fusing_coefficients(2, 1, kappa_max=math.nan), "kappa_max of 0 or more, got nan"),
        (lambda: wise_sweep(never_train, START, "D", RUNS[0], len, ()), "in \\[0, 1\\], got none"),
        (lambda: wise_sweep(never_train, START, "D", RUNS[0], len, (0, 1.5)), "in \\[0, 1\\], got 1.5"),
        (lambda: wise_sweep(never_train, START, "D", RUNS[0], len, (math.nan,)), "in \\[0, 1\\], got nan"),
        (lambda: classifier_first(never_train, START, -1), "0 or more steps, got -1"),
        (
            lambda: classifier_first(never_train, START)(OTHER, "D", Run(steps=50)),
            "0 to 50 \\(steps\\), got 200",
        ),
        (lambda: rewarded_soup({}, START, "D", RUNS[0], [{}]), "trains: expected a mapping from the name"),
        (lambda: rewarded_soup([never_train], START, "D", RUNS[0], [{}]), "trains: expected a mapping"),
        (
            lambda: rewarded_soup({"a": never_train}, START, "D", RUNS[0], []),
            "coefficients: expected at least one",
        ),
        (
            lambda: rewarded_soup({"a": never_train}, START, "D", RUNS[0], {"a": 1}),
            "coefficients: expected a list, got a single dict",
        ),
        (
            lambda: rewarded_soup({"a": never_train}, START, "D", RUNS[0], [{"a": 1}, {"b": 1}]),
            "coefficients of soup 1: expected one for each of the experts 'a', got 'b'",
        ),
        (
            lambda: rewarded_soup({"a": never_train}, START, "D", RUNS[0], [[1.0]]),
            "coefficients of soup 0: .* got \\[1.0\\]",
        ),
        (
            lambda: rewarded_soup(
                {"a": never_train, "b": never_train}, START, "D", RUNS[0], [{"a": 1, "b": 1}]
            ),
            "coefficients of soup 0: expected numbers that sum to one, got 2",
        ),
        (
            lambda: rewarded_soup({"a": never_train}, START, "D", {"b": RUNS[0]}, [{"a": 1}]),
            "runs: expected one for each of the experts 'a', got 'b'",
        ),
        (lambda: morl(never_train, START, "D", RUNS[0], []), "preferences: expected at least one, got none"),
        (
            lambda: morl(never_train, START, "D", RUNS[0], [{"a": 1}, {"b": 1}]),
            "preferences of policy 1: expected one for each of the rewards 'a', got 'b'",
        ),
        (lambda: diwa(never_train, START, "D", []), "at least one|no member|member"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_training(call, message):
    with pytest.raises(InputError, match=message):
        call()
